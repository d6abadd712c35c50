//! Five operating-system processes against one nats-server, started as the README says: each works alone, and each may be killed in the
//! middle of its work.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use runtime::{
    store::Store,
    testing::{Nats, ObjectServer, free_port, skip, until},
};
use serde_json::{Value, json};
use tests::{PATIENCE, Ran, binary, http::Ask, processes_with, project::Project, readme::started_alone, signal};

const COMPONENTS: [&str; 5] = ["packager", "builder", "deployer", "router", "scaler"];

struct Component {
    name: &'static str,
    child: Option<Child>,
    admin: u16,
}

/// All five, each in a process of its own, on folders of one test.
struct Fleet {
    nats: Nats,
    components: Vec<Component>,
    router: u16,
    /// Where archives lie in place of the folder that the README names, with what belongs to it.
    store: Option<Vec<String>>,
}

impl Fleet {
    async fn start() -> Self {
        Self::on(None).await
    }

    async fn on(store: Option<Vec<String>>) -> Self {
        let nats = Nats::start().await;
        let mut fleet = Self { nats, components: Vec::new(), router: free_port(), store };
        for name in COMPONENTS {
            fleet.components.push(Component { name, child: None, admin: free_port() });
            fleet.resume(name);
        }
        for component in &fleet.components {
            fleet.ready(component.name).await;
        }
        let contexts = json!({ "current": "fleet", "contexts": { "fleet": {
            "bus": fleet.nats.address(), "router": fleet.url(""), "workspace": "default", "sharedFiles": true } } });
        fs::create_dir_all(fleet.folder("config/kaai")).unwrap();
        fs::write(fleet.folder("config/kaai/contexts.json"), contexts.to_string()).unwrap();
        fleet
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.nats.folder().join(name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.router)
    }

    fn resume(&mut self, name: &'static str) {
        let index = self.components.iter().position(|component| component.name == name).unwrap();
        let folder = self.nats.folder().display().to_string();
        let mut words = started_alone(&format!("kaai-{name}"), &folder, &format!("127.0.0.1:{}", self.router));
        if let (Some(store), Some(at)) = (&self.store, words.iter().position(|word| word == "--store")) {
            words.splice(at..at + 2, store.iter().cloned());
        }
        let mut command = Command::new(binary(&words[0]));
        command.args(&words[1..]).args(["--bus", &self.nats.address(), "--admin-address"]);
        command.arg(format!("127.0.0.1:{}", self.components[index].admin));
        if name == "builder" {
            command.arg("--uv").arg(runtime::testing::program("uv").unwrap());
        }
        let log = File::options().create(true).append(true).open(self.folder(&format!("{name}.log"))).unwrap();
        self.components[index].child =
            Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn kill(&mut self, name: &'static str) {
        let component = self.components.iter_mut().find(|component| component.name == name).unwrap();
        let mut child = component.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    async fn ready(&self, name: &str) {
        let component = self.components.iter().find(|component| component.name == name).unwrap();
        let url = format!("http://127.0.0.1:{}/ready", component.admin);
        until(&format!("{name} is ready"), Duration::from_secs(60), async || {
            Ask::get(&url).try_send().await.ok().filter(|answer| answer.status == 200)
        })
        .await;
    }

    fn cli(&self, args: &[&str]) -> Ran {
        Ran::new(
            Command::new(binary("kaai"))
                .args(args)
                .env("XDG_CONFIG_HOME", self.folder("config"))
                .env_remove("KAAI_HOME"),
        )
    }

    fn events(&self) -> Vec<Value> {
        let stdout = self.cli(&["events", "--since", "1", "--output", "json"]).good().stdout;
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for component in &mut self.components {
            if let Some(mut child) = component.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // A lone deployer leaves its replicas to the next one; here there is none.
        for (pid, _) in processes_with(&self.nats.folder().display().to_string()) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

#[tokio::test]
async fn a_project_is_deployed_through_a_bucket_of_s3() {
    let Some(server) = ObjectServer::s3().await else {
        return skip("a_project_is_deployed_through_a_bucket_of_s3", "there is no weed: run python3 tools/stores.py");
    };
    let credentials = server.folder().join("credentials");
    fs::write(&credentials, server.credentials()).unwrap();
    let address = server.address("fleet");
    let store = ["--store", &address, "--store-endpoint", &server.endpoint(), "--store-credentials"].map(str::to_owned);
    let store = [&store[..], &[credentials.display().to_string()]].concat();
    let fleet = Fleet::on(Some(store)).await;
    let project = Project::echo("bucket", "from a bucket");
    fleet.cli(&["deploy", &project.folder()]).good();
    let answer = Ask::post(fleet.url("/api/v1/service/bucket/score"), "{}").try_send().await.unwrap();
    assert!(answer.status == 200 && answer.json().to_string().contains("from a bucket"), "{answer:?}");

    let objects = Store::open(server.settings("fleet")).unwrap();
    assert_eq!(objects.list("archives").await.unwrap().len(), 1);
    assert_eq!(objects.list("logs").await.unwrap().len(), 1, "the log of the build is there too");
    assert!(!fleet.folder("store").exists());
}

#[tokio::test]
async fn each_component_is_killed_in_the_middle_of_its_work_and_the_deployment_finishes_once() {
    let mut fleet = Fleet::start().await;
    for (round, victim) in COMPONENTS.into_iter().enumerate() {
        let name = format!("killed-{victim}");
        // Each round has an environment of its own, so that the builder has something to do.
        let conda = tests::project::PLAIN_CONDA
            .replace("server-http\n", &format!("server-http\n      - six==1.1{}.0\n", round + 2));
        let script = Project::script("x").replace("print(", "time.sleep(1); print(");
        let project = Project::echo(&name, "x").file("environment.yml", &conda).file("score.py", &script);
        fleet.cli(&["deploy", &project.folder(), "--no-wait"]).good();
        in_the_middle_of(&fleet, victim, &name).await;
        fleet.kill(victim);
        fleet.resume(victim);

        until(&format!("{name} answers"), PATIENCE, async || {
            let url = fleet.url(&format!("/api/v1/service/{name}/score"));
            Ask::post(url, "{}").try_send().await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        let status = until(&format!("{name} is settled"), PATIENCE, async || {
            let status = fleet.cli(&["status", &name, "--output", "json"]).good().json();
            (status[0]["service"]["state"] == "healthy").then_some(status)
        })
        .await;
        assert_eq!(status[0]["service"]["ready"], 1);
    }
    let events = fleet.events();
    for victim in COMPONENTS {
        let name = format!("killed-{victim}");
        let of = |kind: &str| {
            events.iter().filter(|event| event["service"] == name.as_str() && event["type"] == kind).count()
        };
        assert_eq!((of("deployment.ready"), of("deployment.failed")), (1, 0), "{name} ended exactly once");
        assert_eq!((of("project.packaged"), of("image.resolved")), (1, 1), "{name} was carried on exactly once");
    }
    let workers = processes_with(&fleet.folder("deployer").display().to_string());
    assert!(workers.len() >= COMPONENTS.len(), "each service has its replica: {workers:#?}");
}

/// Waits until the component has begun and not yet ended its part.
async fn in_the_middle_of(fleet: &Fleet, victim: &str, service: &str) {
    let said = |kind: &str| fleet.events().iter().any(|event| event["service"] == service && event["type"] == kind);
    let begun = match victim {
        "packager" => return,
        "builder" => "project.packaged",
        _ => "image.resolved",
    };
    until(&format!("{victim} has begun"), PATIENCE, async || said(begun).then_some(())).await;
}

#[tokio::test]
async fn each_component_has_help_health_metrics_json_logs_and_ends_when_asked() {
    let mut fleet = Fleet::start().await;
    for index in 0..COMPONENTS.len() {
        let (name, admin) = (fleet.components[index].name, fleet.components[index].admin);
        let help = Ran::new(Command::new(binary(&format!("kaai-{name}"))).arg("--help")).good();
        assert!(help.stdout.contains("--bus") && help.stdout.contains("KAAI_BUS"), "{help:#?}");
        for (path, word) in [("live", "live"), ("ready", "ready"), ("metrics", "# EOF")] {
            let answer = Ask::get(format!("http://127.0.0.1:{admin}/{path}")).send().await;
            assert_eq!(answer.status, 200, "{name} /{path}");
            assert!(String::from_utf8_lossy(&answer.body).contains(word), "{name} /{path}");
        }
        let mut child = fleet.components[index].child.take().unwrap();
        signal("TERM", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name} ends well when asked");
        let log = fs::read_to_string(fleet.folder(&format!("{name}.log"))).unwrap();
        for line in log.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"].is_string()), "{name}: {line}");
        }
    }
}
