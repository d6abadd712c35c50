//! A constant load through ten rollouts and ten scale-downs, and not one request fails.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tests::{Kaai, http::Ask, project::Project};

/// Callers that ask again as soon as they have been answered, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    versions: Arc<Mutex<BTreeMap<String, u64>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    tasks: runtime::shutdown::Tasks,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(url: &str, callers: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            versions: Arc::default(),
            wrong: Arc::default(),
            tasks: runtime::shutdown::Tasks::default(),
            callers: Vec::new(),
        };
        for _ in 0..callers {
            let ask = Ask::post(url, r#"{"sleep": 0.01}"#);
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            let (versions, wrong) = (load.versions.clone(), load.wrong.clone());
            load.callers.push(load.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match ask.try_send().await {
                        Ok(answer) if answer.status == 200 => {
                            let version = answer.json()["version"].as_str().unwrap_or("?").to_owned();
                            *versions.lock().unwrap().entry(version).or_default() += 1;
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        failed => wrong.lock().unwrap().push(format!("{failed:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        load
    }

    async fn stop(self) -> (u64, BTreeMap<String, u64>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        let (versions, wrong) = (self.versions.lock().unwrap().clone(), self.wrong.lock().unwrap().clone());
        (self.answered.load(Ordering::Relaxed), versions, wrong)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rollouts_and_ten_scale_downs_lose_no_request() {
    let kaai = Kaai::start();
    // The wait is generous because two cores start Python beside serving: what is tested is that nothing is lost, not speed.
    let project = Project::echo("under-load", "v0")
        .deployment(r#""authEnabled": false, "numReplicas": 2, "maxQueueWaitMs": 60000"#);
    kaai.run(&["deploy", &project.folder()]).good();
    let load = Load::start(&kaai.url("under-load", "score"), 4);
    for round in 1..=10 {
        project.write("score.py", &Project::script(&format!("v{round}")));
        kaai.run(&["deploy", &project.folder()]).good();
        kaai.run(&["scale", "under-load", "--replicas", "3"]).good();
        kaai.run(&["scale", "under-load", "--replicas", "1"]).good();
        let status = kaai.json(&["status", "under-load"]);
        assert_eq!(status[0]["service"]["ready"], 1, "{status:#}");
    }
    let (answered, versions, wrong) = load.stop().await;
    assert!(wrong.is_empty(), "{} of {} requests failed: {:#?}", wrong.len(), answered, &wrong[..wrong.len().min(5)]);
    for round in 0..=10 {
        assert!(versions.contains_key(&format!("v{round}")), "nobody was answered by v{round}: {versions:?}");
    }
}
