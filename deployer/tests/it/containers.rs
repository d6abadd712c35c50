//! What a replica as a container gets, and what becomes of it.

use std::{fs, time::Duration};

use bollard::query_parameters as query;
use deployer::{
    backend::{Backend, Ended, Exit, LogWanted, Observed, Phase, Status},
    docker::{DockerBackend, HostState, Settings},
};
use futures::TryStreamExt;
use proto::{builder::Image, id::Workspace};
use runtime::testing::until;
use serde_json::{Value, json};

use crate::{
    dock::Dock,
    place::{GOOD, RAISES, ask, news, order, start},
    registry::Registry,
};

const GRACE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);

/// Answers with what an expression gives, or with the error that it raises.
const EVALUATES: &str = r#"
import json, os, socket, threading, time

def init():
    global server
    # Somebody who listens on TCP all the same.
    server = socket.create_server(("0.0.0.0", 8000))
    print("ready")

def run(data):
    try:
        return eval(json.loads(data), globals())
    except OSError as error:
        return "%s: %s" % (type(error).__name__, error.strerror or error)
"#;

fn is_ready(status: &Status) -> bool {
    *status == Status::Ready
}

fn has_exited(status: &Status) -> bool {
    matches!(status, Status::Exited(_))
}

async fn evaluate(observed: &Observed, expression: &str) -> Value {
    let (status, text) = ask(observed, &json!(expression)).await.expect("an answer");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn exit(backend: &DockerBackend, observed: Observed) -> Exit {
    backend.stop(&observed.replica, GRACE).await;
    match observed.status {
        Status::Exited(exit) => *exit,
        other => panic!("{other:?}"),
    }
}

/// Opens the place again as soon as the one before has let go of it.
async fn reopen(dock: &Dock, before: DockerBackend) -> DockerBackend {
    before.leave();
    drop(before);
    until("the state folder is free", LIMIT, async || {
        let place = &dock.place;
        DockerBackend::open(place.settings(), Settings::default(), place.store.clone(), Default::default()).await.ok()
    })
    .await
}

#[tokio::test]
async fn a_container_gets_v1s_layout_and_may_do_little() {
    let Some(dock) = Dock::new("a_container_gets_v1s_layout_and_may_do_little").await else { return };
    let release = dock.place.release_with(7, &[("score.py", EVALUATES), ("data.txt", "fresh")], json!({})).await;
    let backend = dock.backend().await;
    let replica = start(&backend, order("r-1", &release), is_ready).await;
    assert_eq!(evaluate(&replica, "os.getcwd()").await, json!("/var/azureml-app"));
    assert_eq!(evaluate(&replica, "os.environ['AML_APP_ROOT']").await, json!("/var/azureml-app"));
    assert_eq!(evaluate(&replica, "os.environ['AZUREML_MODEL_DIR']").await, json!("/var/azureml-app/azureml-models"));
    let status = "[line.split()[1] for line in open('/proc/self/status') if line.split(':')[0] in %s]";
    let capabilities = status.replace("%s", "('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')");
    assert_eq!(evaluate(&replica, &capabilities).await, json!(vec!["0000000000000000"; 5]));
    assert_eq!(evaluate(&replica, &status.replace("%s", "('NoNewPrivs',)")).await, json!(["1"]));
    assert_ne!(evaluate(&replica, "os.getuid()").await, json!(0));
    for path in ["/opt/x", "/etc/x", "/opt/kaai/replica/order.json", "/opt/kaai/environment/x"] {
        let written = evaluate(&replica, &format!("open('{path}', 'w').write('x')")).await;
        assert_eq!(written, json!("OSError: Read-only file system"), "{path}");
    }
    for path in ["'/tmp/x'", "'data.txt'", "os.environ['HOME'] + '/x'", "os.environ['TMPDIR'] + '/x'"] {
        assert_eq!(evaluate(&replica, &format!("open({path}, 'w').write('x')")).await, json!(1), "{path}");
    }
    let wanted = LogWanted {
        workspace: Workspace::default(),
        service: "ridge".parse().unwrap(),
        generation: None,
        replica: None,
        lines: 100,
    };
    // The engine hands on what a container says a moment after it was said.
    until("the log of one that runs", LIMIT, async || {
        let logs = backend.logs(&wanted).await;
        logs[0].text.lines.iter().any(|line| line.ends_with("ready")).then_some(())
    })
    .await;
    backend.end(GRACE).await;
    assert!(dock.containers().await.is_empty());
    assert!(dock.docker.inspect_network(&format!("kaai-{}", dock.identity()), None).await.is_err(), "it is removed");
}

#[tokio::test]
async fn limits_of_a_container_are_those_that_were_asked_for() {
    let Some(dock) = Dock::new("limits_of_a_container_are_those_that_were_asked_for").await else { return };
    let more = json!({ "resources": { "cpu": 0.1, "cpuLimit": 0.5, "memoryGb": 0.25, "memoryGbLimit": 0.5 } });
    let release = dock.place.release_with(1, &[("score.py", GOOD)], more).await;
    let labels = [("com.example.team", "a"), ("io.kaai.replica", "another")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let backend = dock.backend_with(Settings { labels, ..Settings::default() }).await;
    let replica = start(&backend, order("r-1", &release), is_ready).await;
    assert_eq!(replica.unlimited, None);
    let container = dock.docker.inspect_container(&dock.name("r-1"), None).await.unwrap();
    let host = container.host_config.unwrap();
    assert_eq!((host.nano_cpus, host.memory, host.memory_swap), (Some(500_000_000), Some(1 << 29), Some(1 << 29)));
    assert_eq!(host.pids_limit, Some(4096));
    assert!(host.port_bindings.is_none_or(|ports| ports.is_empty()), "no port is published");
    let labels = container.config.unwrap().labels.unwrap();
    assert_eq!((labels["io.kaai.replica"].as_str(), labels["io.kaai.generation"].as_str()), ("r-1", "1"));
    assert_eq!(labels["com.example.team"], "a");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_container_that_passes_its_memory_limit_is_known_to_have() {
    let test = "a_container_that_passes_its_memory_limit_is_known_to_have";
    let Some(dock) = Dock::new(test).await else { return };
    let backend = dock.backend().await;
    if let Some(why) = backend.limits_missing() {
        runtime::testing::skip(test, why);
        return;
    }
    let script = "def init():\n    global hog\n    hog = bytearray(2 << 30)\n    hog[::4096] = b'x' * len(hog[::4096])\n\ndef run(data):\n    return 1\n";
    let more = json!({ "resources": { "cpu": 0.1, "memoryGb": 0.25, "memoryGbLimit": 0.5 } });
    let release = dock.place.release_with(1, &[("score.py", script)], more).await;
    let ended = start(&backend, order("r-1", &release), has_exited).await;
    let exit = exit(&backend, ended).await;
    assert!(exit.out_of_memory && exit.how == Ended::Signal(9), "{exit:?}");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn models_are_unpacked_once_for_all_and_cannot_be_changed() {
    let Some(dock) = Dock::new("models_are_unpacked_once_for_all_and_cannot_be_changed").await else { return };
    let model = dock.place.archive(&[("coefficients/scale.json", "[1, 2]")]).await;
    let models = json!([{ "name": "scale", "version": 2, "digest": model }]);
    let release = dock.place.release_with(1, &[("score.py", EVALUATES)], json!({ "models": models })).await;
    let backend = dock.backend().await;
    let first = start(&backend, order("r-1", &release), is_ready).await;
    let second = start(&backend, order("r-2", &release), is_ready).await;
    let file = "os.environ['AZUREML_MODEL_DIR'] + '/coefficients/scale.json'";
    assert_eq!(evaluate(&first, &format!("open({file}).read()")).await, json!("[1, 2]"));
    let model_dir = evaluate(&first, "os.environ['AZUREML_MODEL_DIR']").await;
    assert_eq!(model_dir, json!("/var/azureml-app/azureml-models/scale/2"));
    let written = evaluate(&first, &format!("open({file}, 'w').write('x')")).await;
    assert!(written.as_str().unwrap().contains("Read-only file system"), "{written}");
    let inode = format!("os.stat({file}).st_ino");
    assert_eq!(evaluate(&first, &inode).await, evaluate(&second, &inode).await, "it is one file");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn no_other_container_reaches_a_replica() {
    let Some(dock) = Dock::new("no_other_container_reaches_a_replica").await else { return };
    let release = dock.place.release_with(1, &[("score.py", EVALUATES)], json!({})).await;
    let backend = dock.backend().await;
    let first = start(&backend, order("r-1", &release), is_ready).await;
    let second = start(&backend, order("r-2", &release), is_ready).await;
    let container = dock.docker.inspect_container(&dock.name("r-1"), None).await.unwrap();
    let networks = container.network_settings.unwrap().networks.unwrap();
    let address = networks.values().next().unwrap().ip_address.clone().unwrap();
    let call = |address: &str| format!("'reached' if socket.create_connection(('{address}', 8000), timeout=2) else ''");
    assert_eq!(evaluate(&first, &call(&address)).await, json!("reached"), "somebody listens there");
    let refused = evaluate(&second, &call(&address)).await;
    assert!(refused.as_str().unwrap().contains("timed out"), "{address}: {refused}");
    let seen = evaluate(&second, "os.listdir('/run/kaai')").await;
    assert_eq!(seen.as_array().unwrap().iter().filter(|name| **name == json!("s")).count(), 1, "its own socket alone");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn only_user_and_group_of_a_replica_may_use_its_socket() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(dock) = Dock::new("only_user_and_group_of_a_replica_may_use_its_socket").await else { return };
    let backend = dock.backend().await;
    let replica = start(&backend, order("r-1", &dock.place.release(1, EVALUATES).await), is_ready).await;
    let user = deployer::docker::User::usual();
    let socket = fs::metadata(dock.own("r-1").join("s")).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (user.uid, user.gid));
    assert_eq!(socket.permissions().mode() & 0o007, 0, "nobody else");
    assert_eq!(fs::metadata(dock.own("r-1")).unwrap().permissions().mode() & 0o007, 0, "nobody else gets there");
    if rustix::process::geteuid().is_root() {
        assert_eq!(socket.permissions().mode() & 0o777, 0o660, "a router with the group may");
        for change in
            ["os.rename('/run/kaai/s', '/run/kaai/home/s')", "os.unlink('/run/kaai/s')", "os.mkdir('/run/kaai/x')"]
        {
            let changed = evaluate(&replica, change).await;
            assert_eq!(changed, json!("PermissionError: Permission denied"), "{change}");
        }
    }
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_container_that_is_stopped_finishes_what_it_has_in_hand() {
    let Some(dock) = Dock::new("a_container_that_is_stopped_finishes_what_it_has_in_hand").await else { return };
    let backend = dock.backend().await;
    let replica = start(&backend, order("r-1", &dock.place.release(1, GOOD).await), is_ready).await;
    let (begun, body) = (dock.own("r-1").join("home/begun"), json!({ "touch": "/run/kaai/home/begun", "sleep": 1 }));
    let stopping = async {
        until("the request is in hand", LIMIT, async || begun.exists().then_some(())).await;
        backend.stop(&replica.replica, GRACE).await;
    };
    let (answered, ()) = tokio::join!(ask(&replica, &body), stopping);
    assert_eq!(answered.map(|(status, _)| status), Some(200));
    assert!(dock.containers().await.is_empty());
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_worker_that_dies_takes_its_container_with_it() {
    let Some(dock) = Dock::new("a_worker_that_dies_takes_its_container_with_it").await else { return };
    let two = json!({ "requests": { "maxConcurrentPerReplica": 2, "maxQueueWaitMs": 500, "scoringTimeoutMs": 60000 } });
    let backend = dock.backend().await;
    let mut changes = backend.changes();
    backend.start(order("r-1", &dock.place.release_with(1, &[("score.py", GOOD)], two).await)).await;
    let replica = news(&mut changes, &"r-1".parse().unwrap(), is_ready).await;
    let (begun, slow) = (dock.own("r-1").join("home/begun"), json!({ "touch": "/run/kaai/home/begun", "sleep": 3 }));
    let dying = async {
        until("the other worker is busy", LIMIT, async || begun.exists().then_some(())).await;
        assert_eq!(ask(&replica, &json!({ "exit": 9 })).await, None);
        let socket = replica.address.as_ref().unwrap().trim_start_matches("unix:");
        until("nobody is let in", LIMIT, async || tokio::net::UnixStream::connect(socket).await.err()).await;
        assert!(dock.is_running(&dock.name("r-1")).await, "the other worker is still there");
    };
    let (slow, ()) = tokio::join!(ask(&replica, &slow), dying);
    assert_eq!(slow.map(|(status, _)| status), Some(200), "the other worker answers before it goes");
    let ended = news(&mut changes, &replica.replica, has_exited).await;
    assert_eq!(exit(&backend, ended).await.how, Ended::Code(9));
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_container_that_runs_is_adopted_and_what_is_left_of_others_is_removed() {
    let test = "a_container_that_runs_is_adopted_and_what_is_left_of_others_is_removed";
    let Some(dock) = Dock::new(test).await else { return };
    let release = dock.place.release(1, GOOD).await;
    let backend = dock.backend().await;
    let kept = start(&backend, order("r-kept", &release), is_ready).await;
    start(&backend, order("r-lost", &release), is_ready).await;
    backend.leave();
    let kill = query::KillContainerOptions { signal: "SIGKILL".to_owned() };
    dock.docker.kill_container(&dock.name("r-lost"), Some(kill)).await.unwrap();
    // What a deployer leaves that is killed before it has kept what it made.
    let half_made = dock.stranger(&dock.name("r-half"), Some(&dock.identity())).await;
    until("it has ended", LIMIT, async || (!dock.is_running(&dock.name("r-lost")).await).then_some(())).await;

    let backend = reopen(&dock, backend).await;
    let mut changes = backend.changes();
    let listed = backend.list().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0].status, &listed[0].address), (&Status::Ready, &kept.address));
    assert_eq!(dock.containers().await.len(), 1, "the others are gone");
    assert!(!dock.is_running(&half_made).await);
    let wanted = LogWanted {
        workspace: Workspace::default(),
        service: "ridge".parse().unwrap(),
        generation: None,
        replica: Some("r-lost".parse().unwrap()),
        lines: 100,
    };
    assert_eq!(backend.logs(&wanted).await.len(), 1, "the log of what has ended meanwhile is kept");

    assert_eq!(ask(&listed[0], &json!({ "exit": 9 })).await, None);
    let ended = news(&mut changes, &kept.replica, has_exited).await;
    assert_eq!(exit(&backend, ended).await.how, Ended::Code(9), "the engine knows it, whoever started it");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn strangers_are_left_alone() {
    let Some(dock) = Dock::new("strangers_are_left_alone").await else { return };
    let backend = dock.backend().await;
    let identity = dock.identity();
    let nobodys = dock.stranger(&format!("stranger-{identity}"), None).await;
    let anothers = dock.stranger(&format!("kaai-another-{identity}-r-1"), Some(&format!("another-{identity}"))).await;
    let replica = start(&backend, order("r-1", &dock.place.release(1, GOOD).await), is_ready).await;
    backend.stop(&replica.replica, GRACE).await;
    let backend = reopen(&dock, backend).await;
    backend.end(GRACE).await;
    let left = (dock.is_running(&nobodys).await, dock.is_running(&anothers).await);
    dock.remove(&nobodys).await;
    dock.remove(&anothers).await;
    assert_eq!(left, (true, true));
}

#[tokio::test]
async fn the_engine_may_see_the_state_folder_elsewhere() {
    let Some(dock) = Dock::new("the_engine_may_see_the_state_folder_elsewhere").await else { return };
    let elsewhere = dock.place.folder.path().join("elsewhere");
    std::os::unix::fs::symlink(dock.place.folder.path().join("state"), &elsewhere).unwrap();
    let backend = dock
        .backend_with(Settings { host_state: Some(HostState::Folder(elsewhere.clone())), ..Settings::default() })
        .await;
    let model = dock.place.archive(&[("a", "1")]).await;
    let models = json!([{ "name": "scale", "version": 2, "digest": model }]);
    let release = dock.place.release_with(1, &[("score.py", GOOD)], json!({ "models": models })).await;
    start(&backend, order("r-1", &release), is_ready).await;
    let mounts = dock.mounts("r-1").await;
    assert_eq!(mounts.len(), 4);
    assert!(mounts.iter().all(|mount| mount.source.as_ref().unwrap().starts_with(elsewhere.to_str().unwrap())));
    backend.end(GRACE).await;
}

#[tokio::test]
async fn a_volume_that_the_engine_does_not_know_is_said_at_the_start() {
    let Some(dock) = Dock::new("a_volume_that_the_engine_does_not_know_is_said_at_the_start").await else { return };
    let host_state = Some(HostState::Volume("kaai-no-such-volume".to_owned()));
    let settings = Settings { host_state, ..Settings::default() };
    let opened = DockerBackend::open(dock.place.settings(), settings, dock.place.store.clone(), Default::default());
    let refused = opened.await.err().unwrap().to_string();
    assert!(refused.contains("no volume kaai-no-such-volume") && refused.contains("--host-state"), "{refused}");
}

#[tokio::test]
async fn what_keeps_a_container_from_starting_is_said_in_words() {
    let Some(dock) = Dock::new("what_keeps_a_container_from_starting_is_said_in_words").await else { return };
    let backend = dock.backend().await;
    let good = dock.place.release(1, GOOD).await;
    let with = |image: &str, interpreter: &str| {
        let mut release = good.clone();
        let (reference, interpreter) = (image.to_owned(), interpreter.to_owned());
        release.image = Image::Container { reference, interpreter, python: None };
        release
    };
    let mut folder = good.clone();
    folder.image = Image::VirtualEnvironment { path: "/envs/e".to_owned(), python: "3.11.7".to_owned() };
    let zeros = format!("sha256:{}", "0".repeat(64));
    let away = format!("127.0.0.1:{}/kaai/environments@{zeros}", runtime::testing::free_port());
    let no_script = dock.place.release_with(1, &[("other.py", GOOD)], json!({})).await;
    for (replica, release, cause) in [
        ("r-1", folder, "this place runs containers, and the environment is a folder of a machine".to_owned()),
        ("r-2", with(&zeros, "python"), format!("the image {zeros} is gone")),
        ("r-3", with(&away, "python"), format!("the image {away} cannot be had: ")),
        ("r-4", no_script, "the project has no score.py".to_owned()),
    ] {
        let ended = start(&backend, order(replica, &release), has_exited).await;
        let failure = exit(&backend, ended).await.cause.unwrap();
        assert!(failure.cause.starts_with(&cause), "{failure}");
    }
    let no_python = with(&dock.base().await, "/no/python");
    let ended = start(&backend, order("r-5", &no_python), has_exited).await;
    let exit = exit(&backend, ended).await;
    let failure = deployer::diagnose::failure(&exit, &no_python, &"ridge".parse().unwrap());
    assert!(failure.cause.contains("exit code 127") && failure.cause.contains("/no/python"), "{failure}");
    assert!(dock.containers().await.is_empty(), "nothing is left of them");
    backend.end(GRACE).await;
}

#[tokio::test]
async fn an_image_is_fetched_by_its_digest_with_the_registrys_login() {
    let test = "an_image_is_fetched_by_its_digest_with_the_registrys_login";
    let Some(dock) = Dock::new(test).await else { return };
    let Some(registry) = Registry::start(test).await else { return };
    let reference = registry.push(&dock).await;
    let mut release = dock.place.release(1, RAISES).await;
    release.image =
        Image::Container { reference: reference.clone(), interpreter: "python3.11".to_owned(), python: None };

    let backend = dock.backend().await;
    let ended = start(&backend, order("r-1", &release), has_exited).await;
    let failure = exit(&backend, ended).await.cause.expect("without a login");
    assert!(failure.remedy.contains("--registry-login"), "{failure:?}");
    backend.end(GRACE).await;
    drop(backend);

    let login = dock.place.folder.path().join("config.json");
    fs::write(&login, registry.login()).unwrap();
    let backend = until("the state folder is free", LIMIT, async || {
        let settings = Settings { login: Some(login.clone()), ..Settings::default() };
        DockerBackend::open(dock.place.settings(), settings, dock.place.store.clone(), Default::default()).await.ok()
    })
    .await;
    let ended = start(&backend, order("r-1", &release), has_exited).await;
    let exit = exit(&backend, ended).await;
    // The base image has a Python, found on its PATH, and no server.
    assert_eq!(exit.report.as_ref().map(|report| report.phase), Some(Phase::Server), "{exit:?}");
    backend.end(GRACE).await;
    let options = query::RemoveImageOptions { force: true, ..Default::default() };
    let _ = dock.docker.remove_image(&reference, Some(options), None).await;
}

/// Streams of the engine's steps, to their end.
pub(crate) async fn all<T>(steps: impl futures::Stream<Item = Result<T, bollard::errors::Error>>) {
    steps.try_for_each(|_| async { Ok(()) }).await.unwrap();
}
