//! `docker compose up` in `deploy/`: what an operator gets, with both versions of Compose, and what no container of it may do.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use runtime::{
    shutdown::Tasks,
    testing::{skip, until},
};
use serde_yaml_ng::Value;
use tests::{
    PATIENCE,
    http::Ask,
    root,
    stack::{Compose, Stack},
};
use tokio::task::JoinHandle;

const COMPONENTS: [&str; 5] = ["packager", "builder", "deployer", "router", "scaler"];
/// It has models, and an environment that is soon made.
const EXAMPLE: &str = "examples/two-models";
/// The example's configuration with one replica and patience: machines that test are busy.
const PATIENT: &str = r#"{"computeType": "aks", "numReplicas": 1, "autoScaler": {"autoscaleEnabled": false},
    "maxConcurrentRequestsPerContainer": 1, "maxQueueWaitMs": 60000, "scoringTimeoutMs": 60000,
    "containerResourceRequirements": {"cpu": 1, "memoryInGB": 0.5}}"#;

/// Callers that ask one service again and again until told to stop.
struct Load {
    tally: Arc<Tally>,
    callers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    answered: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    async fn call(self: Arc<Self>, ask: Ask) {
        while !self.over.load(Ordering::SeqCst) {
            match ask.try_send().await {
                Ok(answer) if answer.status == 200 => drop(self.answered.fetch_add(1, Ordering::SeqCst)),
                other => self.wrong.lock().unwrap().push(format!("{other:?}")),
            }
            // The machine has the restarts to do as well.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Load {
    fn start(ask: &Ask) -> Self {
        let (tally, tasks) = (Arc::<Tally>::default(), Tasks::default());
        let callers = (0..2).map(|_| tasks.spawn(tally.clone().call(ask.clone()))).collect();
        Self { tally, callers }
    }

    fn answered(&self) -> usize {
        self.tally.answered.load(Ordering::SeqCst)
    }

    fn assert_none_is_lost(&self) {
        assert_eq!(*self.tally.wrong.lock().unwrap(), Vec::<String>::new());
    }

    async fn more(&self, number: usize) {
        let before = self.answered();
        until("callers are answered", PATIENCE, async || (self.answered() >= before + number).then_some(())).await;
        self.assert_none_is_lost();
    }

    async fn stop(mut self) {
        self.tally.over.store(true, Ordering::SeqCst);
        for caller in self.callers.drain(..) {
            caller.await.unwrap();
        }
        self.assert_none_is_lost();
    }
}

/// The stack, and what an operator does with it.
struct Operator {
    stack: Stack,
    configuration: tempfile::NamedTempFile,
}

impl Operator {
    fn deploy(&self, name: &str, more: &[&str]) {
        let (project, file) = (root().join(EXAMPLE), self.configuration.path().display().to_string());
        let args = ["deploy", &project.display().to_string(), "--name", name, "--dc", &file];
        self.stack.kaai(&[&args[..], more].concat()).good();
    }

    fn ask(&self, service: &str) -> Ask {
        let sample = std::fs::read(root().join(EXAMPLE).join("sample-request.json")).unwrap();
        let key = self.stack.kaai(&["keys", "show", service, "--only", "primary"]).good().stdout;
        Ask::post(format!("{}/api/v1/service/{service}/score", self.stack.router), sample).key(key.trim())
    }

    async fn answers(&self, ask: &Ask) {
        until("the service answers", PATIENCE, async || {
            ask.try_send().await.ok().filter(|answer| answer.status == 200)
        })
        .await;
    }

    /// Whether the newest generation of a service serves, and no other is on its way.
    fn is_settled(&self, service: &str) -> bool {
        let told = self.stack.kaai(&["status", service, "--output", "json"]);
        let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap_or_default();
        let record = &told[0]["service"];
        record["candidate"].is_null() && record["active"]["generation"] == record["latest"]
    }

    /// Restarts one component, and waits until it is at work again.
    async fn restart(&self, compose: &Compose, component: &str) {
        self.stack.compose(compose, &["restart", component]).good();
        let ready = ["exec", "-T", component, &format!("kaai-{component}"), "--is-ready"];
        until(&format!("{component} is ready"), PATIENCE, async || {
            (self.stack.compose(compose, &ready).code == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compose_stack_serves_through_restarts_of_each_component_and_finds_everything_again() {
    let test = "the_compose_stack_serves_through_restarts_of_each_component_and_finds_everything_again";
    let Some(compose) = Compose::second() else {
        return skip(test, "there is no Compose 2: python3 tools/compose.py fetches it");
    };
    let stack = match Stack::new() {
        Ok(stack) => stack,
        Err(why) => return skip(test, why),
    };
    let configuration = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(configuration.path(), PATIENT).unwrap();
    let mut operator = Operator { stack, configuration };

    operator.stack.compose(&compose, &["build", "--quiet"]).good();
    operator.stack.compose(&compose, &["up", "--detach", "--wait"]).good();
    let prepared = operator.stack.compose(&compose, &["logs", "--no-color", "setup"]).good().stdout;
    assert!(prepared.contains("what the object store writes is on disk at once"), "{prepared}");
    operator.stack.push_base_image();
    operator.stack.introduce(&compose);
    operator.deploy("first", &[]);
    let ask = operator.ask("first");
    operator.answers(&ask).await;
    let replicas = operator.stack.replicas();

    let load = Load::start(&ask);
    for component in COMPONENTS {
        // Something is on its way while those that carry it are restarted.
        if matches!(component, "packager" | "deployer") {
            operator.deploy("meanwhile", &["--no-wait"]);
        }
        operator.restart(&compose, component).await;
        load.more(3).await;
    }
    load.stop().await;
    operator.answers(&operator.ask("meanwhile")).await;
    // It was asked for twice: the first one's replica goes when the second one's serves.
    let after = until("each service has its one replica", PATIENCE, async || {
        let running: BTreeSet<_> = operator.stack.replicas().into_iter().collect();
        (operator.is_settled("meanwhile") && running.len() == 2).then_some(running)
    })
    .await;
    assert!(replicas.iter().all(|replica| after.contains(replica)), "the replica went on: {replicas:?}, {after:?}");

    // Without more words replicas stay, and are found again.
    operator.stack.compose(&compose, &["down"]).good();
    assert_eq!(operator.stack.containers().len(), after.len());
    operator.stack.compose(&compose, &["up", "--detach", "--wait"]).good();
    operator.answers(&ask).await;
    assert_eq!(operator.stack.replicas().into_iter().collect::<BTreeSet<_>>(), after);
    operator.stack.compose(&compose, &["down", "--remove-orphans"]).good();
    assert_eq!(operator.stack.containers(), Vec::<String>::new());

    // The other version finds what this one has left.
    let Some(compose) = Compose::first() else {
        return skip(test, "there is no Compose 1.29 (Debian 12's docker-compose): the rest is left out");
    };
    operator.stack.compose(&compose, &["up", "--detach", "--no-build"]).good();
    operator.answers(&ask).await;
    operator.deploy("another", &[]);
    operator.answers(&operator.ask("another")).await;
    let load = Load::start(&ask);
    operator.restart(&compose, "router").await;
    load.more(3).await;
    load.stop().await;
    operator.stack.replicas();
    operator.stack.compose(&compose, &["down", "--remove-orphans"]).good();
    assert_eq!(operator.stack.containers(), Vec::<String>::new());
}

fn compose_file() -> Value {
    let text = std::fs::read_to_string(root().join("deploy/compose.yaml")).unwrap();
    let mut file: Value = serde_yaml_ng::from_str(&text).unwrap();
    // What is merged has been merged itself.
    for _ in 0..3 {
        file.apply_merge().unwrap();
    }
    file
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_sequence().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn no_container_of_the_stack_may_do_more_than_it_must() {
    let file = compose_file();
    let services = file["services"].as_mapping().unwrap();
    assert!(COMPONENTS.iter().all(|component| services.contains_key(component)));
    for (name, service) in services {
        let name = name.as_str().unwrap();
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert!(service["privileged"].is_null() && service["pid"].is_null() && service["ipc"].is_null(), "{name}");
        assert_ne!(service["network_mode"], "host", "{name}");
        let socket = texts(&service["volumes"]).iter().any(|volume| volume.contains("docker.sock"));
        assert_eq!(socket, ["builder", "deployer"].contains(&name), "{name}");
        let root = service["user"].as_str().expect("each says its user").starts_with("0:");
        assert_eq!(root, ["builder", "deployer", "setup"].contains(&name), "{name}");
        assert_eq!(!service["cap_add"].is_null(), ["deployer", "setup"].contains(&name), "{name}");
        // Those have ended when they could be asked.
        let ends = ["setup", "bucket"].contains(&name);
        assert_eq!(service["healthcheck"]["test"].is_null(), ends, "{name} has a health check");
        // The registry asks for no login, so that only the builder shares its network.
        let by_registry = service["network_mode"] == "service:loopback";
        assert_eq!(by_registry, ["builder", "registry"].contains(&name), "{name}");
        for port in texts(&service["ports"]) {
            assert!(
                port.starts_with("127.0.0.1:") || port.starts_with("${KAAI_ROUTER_HOST:-127.0.0.1}:"),
                "{name}: {port}"
            );
        }
        for (variable, value) in service["environment"].as_mapping().into_iter().flatten() {
            let (variable, value) = (variable.as_str().unwrap(), value.as_str().unwrap_or_default());
            assert!(!variable.contains("PASSWORD") || variable.ends_with("_FILE"), "{name}: {variable}");
            assert!(!value.contains('@'), "{name}: a login in {variable}");
        }
    }
}

#[test]
fn the_stack_is_written_for_old_engines_and_both_versions_of_compose() {
    let file = compose_file();
    assert!(file["name"].is_null() && file["include"].is_null(), "Compose 1.29 knows neither");
    let containerfile = std::fs::read_to_string(root().join("deploy/Containerfile")).unwrap();
    assert!(!containerfile.to_lowercase().contains("# syntax="), "it would have to be fetched");
    assert_eq!(texts(&file["services"]["loopback"]["networks"]), ["builds"], "the registry is in it");
    for component in COMPONENTS {
        assert!(containerfile.contains(&format!("AS {component}\n")), "{component} has no image");
    }
}
