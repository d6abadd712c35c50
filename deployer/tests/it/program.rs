//! The deployer as a program of its own, killed and stopped as an operator would.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use proto::{
    Extra,
    builder::{ImageResolved, Lookup},
    deployer::{Release, Route},
    id::{ServiceName, Workspace},
    packager::Archive,
    subject,
};
use runtime::{
    Runtime,
    store::Store,
    testing::{Nats, until},
};
use serde_json::json;

use crate::{
    dock::Dock,
    place::{GOOD, Place, ask},
};

const LIMIT: Duration = Duration::from_secs(60);

struct Case {
    nats: Nats,
    place: Place,
    user: Runtime,
    /// Where the deployer says whether it is ready.
    admin: u16,
    kind: &'static str,
}

impl Case {
    async fn new(test: &str) -> Option<Self> {
        Some(Self::of(Place::new(test)?, "process").await)
    }

    async fn of(mut place: Place, kind: &'static str) -> Self {
        let nats = Nats::start().await;
        place.store = Store::open(nats.folder().join("store").as_path()).unwrap();
        let user = nats.runtime("cli").await;
        Self { nats, place, user, admin: runtime::testing::free_port(), kind }
    }

    fn deployer(&self, on_stop: &str) -> Child {
        self.program(on_stop, self.admin)
    }

    fn program(&self, on_stop: &str, admin: u16) -> Child {
        Command::new(env!("CARGO_BIN_EXE_kaai-deployer"))
            .args(["--bus", &self.nats.address(), "--on-stop", on_stop, "--log-level", "debug", "--place", self.kind])
            .args(["--admin-address", &format!("127.0.0.1:{admin}")])
            .arg("--store")
            .arg(self.nats.folder().join("store"))
            .arg("--state")
            .arg(self.place.folder.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ready(&self) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        until("the deployer is ready", LIMIT, async || {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }

    async fn resolve(&self, release: Release) {
        let event = ImageResolved {
            generation: release.generation,
            archive: Archive { digest: release.archive, size: 1, files: 1, ignored: 0 },
            spec: release.spec,
            sealed_keys: None,
            warnings: Vec::new(),
            environment: release.environment,
            image: release.image,
            lookup: Lookup::Cached,
            asked: Vec::new(),
            scan: None,
            took_ms: 0,
            extra: Extra::new(),
        };
        let service: ServiceName = "ridge".parse().unwrap();
        self.user.bus.say(&Workspace::default(), &service, "resolved", &event).await.unwrap();
    }

    /// The pid that answers by the route, once one does.
    async fn serving(&self, but: Option<&serde_json::Value>) -> serde_json::Value {
        let routes = self.user.bus.bucket::<Route>(subject::ROUTES).await.unwrap();
        until("a replica answers", LIMIT, async || {
            let route = routes.get("default.ridge").await.unwrap()?.value;
            let endpoint = route.replicas.into_iter().find(|endpoint| !endpoint.draining)?;
            let socket = endpoint.address.strip_prefix("unix:").unwrap();
            tokio::net::UnixStream::connect(socket).await.ok()?;
            let observed = observed(&endpoint);
            let (_, answer) = ask(&observed, &json!({})).await?;
            let pid = serde_json::from_str::<serde_json::Value>(&answer).unwrap()["pid"].clone();
            (Some(&pid) != but).then_some(pid)
        })
        .await
    }
}

fn observed(endpoint: &proto::deployer::Endpoint) -> deployer::backend::Observed {
    deployer::backend::Observed {
        replica: endpoint.replica.clone(),
        workspace: Workspace::default(),
        service: "ridge".parse().unwrap(),
        generation: proto::id::Generation(1),
        status: deployer::backend::Status::Ready,
        address: Some(endpoint.address.clone()),
        start: proto::deployer::StartParts::default(),
        unlimited: None,
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn runs(pid: &serde_json::Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn replicas_outlive_a_killed_deployer_and_end_with_one_that_ends_them() {
    let Some(case) = Case::new("replicas_outlive_a_killed_deployer_and_end_with_one_that_ends_them").await else {
        return;
    };
    let mut first = case.deployer("leave");
    case.resolve(case.place.release(1, GOOD).await).await;
    let pid = case.serving(None).await;
    signal(&first, "-KILL");
    first.wait().unwrap();
    assert_eq!(case.serving(None).await, pid, "it serves on without a deployer");

    let mut second = case.deployer("leave");
    let logs = case.place.folder.path().join("state/replicas");
    case.ready().await;
    let refused = case.program("leave", 0).wait().unwrap();
    assert!(!refused.success(), "there is one deployer of a folder");
    assert_eq!(case.serving(None).await, pid, "it was adopted, not started anew");
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 1);
    signal(&second, "-TERM");
    assert!(second.wait().unwrap().success());
    assert!(runs(&pid), "the lone deployer leaves it");

    let mut third = case.deployer("end");
    case.ready().await;
    let routes = case.user.bus.bucket::<Route>(subject::ROUTES).await.unwrap();
    let replica = routes.get("default.ridge").await.unwrap().unwrap().value.replicas[0].replica.clone();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    let another = case.serving(Some(&pid)).await;
    let now = routes.get("default.ridge").await.unwrap().unwrap().value.replicas[0].replica.clone();
    assert_ne!(now, replica, "what died was replaced");
    signal(&third, "-TERM");
    assert!(third.wait().unwrap().success());
    assert!(!runs(&another), "nothing is left running");
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 0);
}

#[tokio::test]
async fn containers_outlive_a_killed_deployer_too() {
    let Some(dock) = Dock::new("containers_outlive_a_killed_deployer_too").await else { return };
    let case = Case::of(dock.place.clone(), "docker").await;
    let mut first = case.deployer("leave");
    case.resolve(case.place.release(1, GOOD).await).await;
    case.serving(None).await;
    signal(&first, "-KILL");
    first.wait().unwrap();
    case.serving(None).await;
    let before = dock.containers().await;
    assert_eq!(before.len(), 1);

    let mut second = case.deployer("end");
    case.ready().await;
    case.serving(None).await;
    assert_eq!(dock.containers().await, before, "it was adopted, not started anew");
    signal(&second, "-TERM");
    assert!(second.wait().unwrap().success());
    assert!(dock.containers().await.is_empty(), "nothing is left");
}
