//! What a replica as a process gets, and what becomes of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use deployer::{
    backend::{Backend, Ended, LogWanted, Observed, Status},
    process::{Error, ProcessBackend, Settings},
};
use proto::id::{ReplicaId, Workspace};
use runtime::{
    shutdown::Tasks,
    testing::{SmallDisk, until},
};
use serde_json::{Value, json};

use crate::place::{EXITS, GOOD, Place, ask, news, order, start};

const GRACE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);

fn is_ready(status: &Status) -> bool {
    *status == Status::Ready
}

fn has_exited(status: &Status) -> bool {
    matches!(status, Status::Exited(_))
}

async fn answer(observed: &Observed, body: Value) -> Value {
    let (status, text) = ask(observed, &body).await.expect("an answer");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn two_at_a_time() -> Value {
    json!({ "requests": { "maxConcurrentPerReplica": 2, "maxQueueWaitMs": 500, "scoringTimeoutMs": 60000 } })
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

fn folders(place: &Place) -> (PathBuf, PathBuf) {
    (place.folder.path().join("state/replicas"), place.folder.path().join("state/s"))
}

async fn exit(backend: &ProcessBackend, observed: Observed) -> deployer::backend::Exit {
    backend.stop(&observed.replica, GRACE).await;
    match observed.status {
        Status::Exited(exit) => *exit,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_replica_gets_v1s_layout_and_nothing_of_this_machine() {
    let Some(place) = Place::new("a_replica_gets_v1s_layout_and_nothing_of_this_machine") else { return };
    let model = place.archive(&[("coefficients/scale.json", "[1, 2]")]).await;
    let models = json!([{ "name": "scale", "version": 2, "digest": model }]);
    let more = json!({ "entryScript": "src/score.py", "sourceDirectory": "churn", "models": models });
    let files = [("src/score.py", GOOD), ("data.txt", "beside it")];
    let release = place.release_with(7, &files, more).await;
    let backend = place.backend().await;
    let replica = start(&backend, order("r-1", &release), is_ready).await;
    let variables = answer(&replica, json!({ "environment": 1 })).await;
    let root = fs::canonicalize(place.folder.path().join("state/replicas/r-1/azureml-app")).unwrap();
    assert_eq!(variables["AML_APP_ROOT"], json!(root));
    assert_eq!(variables["AZUREML_ENTRY_SCRIPT"], json!("churn/src/score.py"));
    assert_eq!(variables["AZUREML_MODEL_DIR"], json!(root.join("azureml-models/scale/2")));
    assert_eq!(answer(&replica, json!({})).await["cwd"], json!(root));
    assert_eq!(answer(&replica, json!({ "read": "churn/data.txt" })).await, json!("beside it"));
    let model = root.join("azureml-models/scale/2/coefficients/scale.json");
    assert_eq!(answer(&replica, json!({ "read": model })).await, json!("[1, 2]"));
    for name in std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO") || name == "PWD") {
        assert!(variables.get(&name).is_none(), "{name} leaks");
    }
    let home = PathBuf::from(variables["HOME"].as_str().unwrap());
    assert!(home.is_dir() && home != dirs_home());
    backend.end(GRACE).await;
}

fn dirs_home() -> PathBuf {
    std::env::home_dir().unwrap_or_default()
}

#[tokio::test]
async fn what_one_replica_does_to_its_files_reaches_no_other() {
    let Some(place) = Place::new("what_one_replica_does_to_its_files_reaches_no_other") else { return };
    let script = "import os\n\ndef init():\n    path = os.path.join(os.environ['AML_APP_ROOT'], 'data.txt')\n    \
                  print(open(path).read(), 'seen')\n    open(path, 'w').write('spoilt')\n\ndef run(data):\n    return 1\n";
    let release = place.release_with(1, &[("score.py", script), ("data.txt", "fresh")], json!({})).await;
    let backend = place.backend().await;
    start(&backend, order("r-1", &release), is_ready).await;
    start(&backend, order("r-2", &release), is_ready).await;
    let wanted = LogWanted {
        workspace: Workspace::default(),
        service: "ridge".parse().unwrap(),
        generation: None,
        replica: None,
        lines: 100,
    };
    let logs = backend.logs(&wanted).await;
    assert!(logs.len() == 2 && logs.iter().all(|log| log.text.lines.iter().any(|line| line.contains("fresh seen"))));
    backend.end(GRACE).await;
}

#[tokio::test]
async fn nothing_of_a_stopped_replica_is_left_but_its_log() {
    let Some(place) = Place::new("nothing_of_a_stopped_replica_is_left_but_its_log") else { return };
    let backend = place.backend().await;
    let replica = start(&backend, order("r-1", &place.release(1, GOOD).await), is_ready).await;
    let main = answer(&replica, json!({})).await["pid"].clone();
    let escaped = answer(&replica, json!({ "child": 1 })).await;
    assert!(runs(&main) && runs(&escaped));
    backend.stop(&replica.replica, GRACE).await;
    assert!(!runs(&main), "the server is gone");
    assert!(!runs(&escaped), "what left its process group is gone too");
    let (replicas, sockets) = folders(&place);
    assert!(is_empty(&replicas) && is_empty(&sockets));
    assert!(place.folder.path().join("state/logs/default/ridge/1-r-1.log").exists());
}

#[tokio::test]
async fn a_replica_that_is_stopped_finishes_what_it_has_in_hand() {
    let Some(place) = Place::new("a_replica_that_is_stopped_finishes_what_it_has_in_hand") else { return };
    let backend = place.backend().await;
    let replica = start(&backend, order("r-1", &place.release(1, GOOD).await), is_ready).await;
    let begun = place.folder.path().join("begun");
    let order = json!({ "touch": begun, "sleep": 1 });
    let asking = ask(&replica, &order);
    let stopping = async {
        until("the request is in hand", LIMIT, async || begun.exists().then_some(())).await;
        backend.stop(&replica.replica, GRACE).await;
    };
    let (answered, ()) = tokio::join!(asking, stopping);
    assert_eq!(answered.map(|(status, _)| status), Some(200));
}

#[tokio::test]
async fn a_worker_that_dies_takes_its_replica_with_it() {
    let Some(place) = Place::new("a_worker_that_dies_takes_its_replica_with_it") else { return };
    let backend = place.backend().await;
    let mut changes = backend.changes();
    let one = order("r-1", &place.release(1, GOOD).await);
    backend.start(one).await;
    let replica = news(&mut changes, &"r-1".parse().unwrap(), is_ready).await;
    assert_eq!(ask(&replica, &json!({ "exit": 9 })).await, None, "the connection is closed without an answer");
    let ended = news(&mut changes, &replica.replica, has_exited).await;
    assert_eq!(exit(&backend, ended).await.how, Ended::Code(9));

    let two = place.release_with(2, &[("score.py", GOOD)], two_at_a_time()).await;
    backend.start(order("r-2", &two)).await;
    let replica = news(&mut changes, &"r-2".parse().unwrap(), is_ready).await;
    let (sleep, die) = (json!({ "sleep": 2 }), json!({ "exit": 9 }));
    let (slow, dead) = tokio::join!(ask(&replica, &sleep), ask(&replica, &die));
    assert_eq!((slow.map(|(status, _)| status), dead), (Some(200), None), "the other worker answers before it goes");
    let ended = news(&mut changes, &replica.replica, has_exited).await;
    assert_eq!(exit(&backend, ended).await.how, Ended::Code(9));
}

#[tokio::test]
async fn a_long_request_does_not_make_a_replica_dead() {
    let Some(place) = Place::new("a_long_request_does_not_make_a_replica_dead") else { return };
    let more = json!({ "liveness": { "periodSeconds": 1, "initialDelaySeconds": 60, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 1 } });
    let release = place.release_with(1, &[("score.py", GOOD)], more).await;
    let backend = place.backend().await;
    let replica = start(&backend, order("r-1", &release), is_ready).await;
    answer(&replica, json!({ "sleep": 4 })).await;
    assert!(backend.list().await.iter().all(|observed| observed.status == Status::Ready));
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_worker_without_a_sign_of_life_is_ended() {
    let Some(place) = Place::new("a_worker_without_a_sign_of_life_is_ended") else { return };
    let more = json!({ "liveness": { "periodSeconds": 1, "initialDelaySeconds": 60, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 1 } });
    let release = place.release_with(1, &[("score.py", GOOD)], more).await;
    let backend = place.backend().await;
    let mut changes = backend.changes();
    backend.start(order("r-1", &release)).await;
    let replica = news(&mut changes, &"r-1".parse().unwrap(), is_ready).await;
    // The clock of heartbeats is the monotonic one: its beginning is longer ago than any worker may be silent.
    let heartbeat = fs::File::options().write(true).open(place.folder.path().join("state/replicas/r-1/heartbeat"));
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    if seconds < 400.0 {
        runtime::testing::skip("a_worker_without_a_sign_of_life_is_ended", "this machine has just been started");
        return;
    }
    let pid = answer(&replica, json!({})).await["pid"].to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success(), "it can touch nothing any more");
    heartbeat.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let ended = news(&mut changes, &replica.replica, has_exited).await;
    let cause = exit(&backend, ended).await.cause.unwrap().cause;
    assert_eq!(cause, "run() was stuck for more than 300 s");
}

#[tokio::test]
async fn a_replica_that_passes_its_memory_limit_is_known_to_have() {
    let Some(place) = Place::new("a_replica_that_passes_its_memory_limit_is_known_to_have") else { return };
    let backend = place.backend().await;
    if let Some(why) = backend.limits_missing() {
        runtime::testing::skip("a_replica_that_passes_its_memory_limit_is_known_to_have", why);
        return;
    }
    let script = "def init():\n    global hog\n    hog = bytearray(2 << 30)\n    hog[::4096] = b'x' * len(hog[::4096])\n\ndef run(data):\n    return 1\n";
    let more = json!({ "resources": { "cpu": 0.1, "memoryGb": 0.25, "memoryGbLimit": 0.5 } });
    let release = place.release_with(1, &[("score.py", script)], more).await;
    let ended = start(&backend, order("r-1", &release), has_exited).await;
    assert_eq!(ended.unlimited, None);
    let exit = exit(&backend, ended).await;
    assert!(exit.out_of_memory, "{exit:?}");
    let failure = deployer::diagnose::failure(&exit, &release, &"ridge".parse().unwrap());
    assert_eq!(failure.cause, "killed at its memory limit of 0.5 GiB");
}

/// Opens the place again as soon as the one before has let go of it.
async fn reopen(place: &Place, before: ProcessBackend) -> ProcessBackend {
    before.leave();
    drop(before);
    until("the state folder is free", LIMIT, async || {
        ProcessBackend::open(place.settings(), place.store.clone(), Tasks::default()).await.ok()
    })
    .await
}

#[tokio::test]
async fn a_replica_that_runs_is_adopted_and_one_that_ended_is_cleared_away() {
    let Some(place) = Place::new("a_replica_that_runs_is_adopted_and_one_that_ended_is_cleared_away") else { return };
    let release = place.release(1, GOOD).await;
    let backend = place.backend().await;
    let kept = start(&backend, order("r-kept", &release), is_ready).await;
    let lost = start(&backend, order("r-lost", &release), is_ready).await;
    let pid = answer(&kept, json!({})).await["pid"].clone();
    let (dead, escaped) = (answer(&lost, json!({})).await["pid"].clone(), answer(&lost, json!({ "child": 1 })).await);
    let half_done = place.folder.path().join("state/replicas/r-half");
    fs::create_dir(&half_done).unwrap();
    backend.leave();
    assert!(Command::new("kill").args(["-9", &dead.to_string()]).status().unwrap().success());
    until("the process is gone", LIMIT, async || (!runs(&dead)).then_some(())).await;

    let backend = reopen(&place, backend).await;
    let mut changes = backend.changes();
    let listed = backend.list().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0].status, &listed[0].address), (&Status::Ready, &kept.address));
    assert_eq!(answer(&listed[0], json!({})).await["pid"], pid, "it is the same process");
    assert!(!half_done.exists() && !runs(&escaped), "what was left of the others is gone");

    assert_eq!(ask(&listed[0], &json!({ "exit": 1 })).await, None);
    let ended = news(&mut changes, &kept.replica, has_exited).await;
    assert_eq!(exit(&backend, ended).await.how, Ended::Unknown, "its exit code went to another parent");
    let (replicas, sockets) = folders(&place);
    assert!(is_empty(&replicas) && is_empty(&sockets));
}

#[tokio::test]
async fn an_adopted_replica_can_be_stopped() {
    let Some(place) = Place::new("an_adopted_replica_can_be_stopped") else { return };
    let backend = place.backend().await;
    let replica = start(&backend, order("r-1", &place.release(1, GOOD).await), is_ready).await;
    let pid = answer(&replica, json!({})).await["pid"].clone();
    let backend = reopen(&place, backend).await;
    backend.stop(&replica.replica, GRACE).await;
    assert!(!runs(&pid) && backend.list().await.is_empty() && is_empty(&folders(&place).0));
}

#[tokio::test]
async fn what_keeps_a_replica_from_starting_is_said_in_words() {
    let Some(place) = Place::new("what_keeps_a_replica_from_starting_is_said_in_words") else { return };
    let backend = place.backend().await;
    let mut no_environment = place.release(1, GOOD).await;
    no_environment.image =
        proto::builder::Image::VirtualEnvironment { path: "/gone".to_owned(), python: "3.11.7".to_owned() };
    let no_script = place.release_with(1, &[("other.py", GOOD)], json!({})).await;
    let mut no_archive = place.release(1, GOOD).await;
    no_archive.archive = proto::id::Digest::from_sha256([9; 32]);
    for (replica, release, cause) in [
        ("r-1", no_environment, "the environment is gone: there is no /gone/bin/python"),
        ("r-2", no_script, "the project has no score.py"),
        ("r-3", no_archive, "the project cannot be fetched: the object store has no archives/"),
    ] {
        let ended = start(&backend, order(replica, &release), has_exited).await;
        let failure = exit(&backend, ended).await.cause.unwrap();
        assert!(failure.cause.starts_with(cause), "{failure}");
    }
    assert!(is_empty(&folders(&place).0));
}

#[tokio::test]
async fn a_worker_that_cannot_load_ends_the_one_that_waits_for_it() {
    let Some(place) = Place::new("a_worker_that_cannot_load_ends_the_one_that_waits_for_it") else { return };
    let script = "import os, time\n\ndef init():\n    try:\n        os.mkdir('../first')\n    except FileExistsError:\n\
        \x20       while '\"loaded\"' not in open('../status').read():\n            time.sleep(0.01)\n\
        \x20       raise RuntimeError('no room for two')\n\ndef run(data):\n    return 1\n";
    let backend = place.backend().await;
    let release = place.release_with(1, &[("score.py", script)], two_at_a_time()).await;
    let exit = exit(&backend, start(&backend, order("r-1", &release), has_exited).await).await;
    assert_eq!(exit.report.unwrap().message, "no room for two");
}

#[tokio::test]
async fn a_full_disk_is_said_in_words() {
    let test = "a_full_disk_is_said_in_words";
    let Some(place) = Place::new(test) else { return };
    let small = place.folder.path().join("small");
    let Some(_mounted) = SmallDisk::mount(test, small.clone(), 512) else { return };
    let large = "x".repeat(4 << 20);
    let release = place.release_with(1, &[("score.py", GOOD), ("large.txt", &large)], json!({})).await;
    let backend = ProcessBackend::open(Settings::new(small.join("state")), place.store.clone(), Tasks::default()).await;
    let backend = backend.unwrap();
    let ended = start(&backend, order("r-1", &release), has_exited).await;
    let failure = exit(&backend, ended).await.cause.unwrap();
    assert!(failure.cause.contains("no space is left"), "{failure}");
    assert_eq!(failure.remedy, "free some space, then deploy again");
}

#[tokio::test]
async fn a_state_folder_has_one_deployer() {
    let Some(place) = Place::new("a_state_folder_has_one_deployer") else { return };
    let _first = place.backend().await;
    let second = ProcessBackend::open(place.settings(), place.store.clone(), Tasks::default()).await;
    assert!(matches!(second, Err(Error::Taken(_))));
}

#[tokio::test]
async fn a_folder_for_sockets_must_be_short_and_ours() {
    let Some(place) = Place::new("a_folder_for_sockets_must_be_short_and_ours") else { return };
    let open = async |sockets: PathBuf| {
        let settings = Settings { sockets: Some(sockets), ..place.settings() };
        ProcessBackend::open(settings, place.store.clone(), Tasks::default()).await.map(drop)
    };
    let long = place.folder.path().join("x".repeat(90));
    assert!(open(long).await.unwrap_err().to_string().contains("has a path of more than 80 bytes"));
    let link = place.folder.path().join("link");
    std::os::unix::fs::symlink("/tmp", &link).unwrap();
    assert!(open(link).await.unwrap_err().to_string().contains("belongs to somebody else"));
    let state = place.folder.path().join("a".repeat(80));
    let backend = ProcessBackend::open(Settings::new(state), place.store.clone(), Tasks::default()).await.unwrap();
    let replica = start(&backend, order("r-1", &place.release(1, GOOD).await), is_ready).await;
    assert!(replica.address.unwrap().len() < 100, "a long state folder has a short one for sockets");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_replica_that_ended_before_it_was_ready_tells_its_last_words() {
    let Some(place) = Place::new("a_replica_that_ended_before_it_was_ready_tells_its_last_words") else { return };
    let backend = place.backend().await;
    let script = EXITS.replace("    os._exit(7)", "    print('out of paper')\n    os._exit(7)");
    let ended = start(&backend, order("r-1", &place.release(1, &script).await), has_exited).await;
    let exit = exit(&backend, ended).await;
    assert!(exit.tail.last().unwrap().contains("out of paper"), "{exit:?}");
    let id: ReplicaId = "r-1".parse().unwrap();
    backend.stop(&id, GRACE).await;
}
