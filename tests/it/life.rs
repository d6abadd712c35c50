//! The life of `kaai up`: it starts, refuses a twin, ends without a trace, and finds its services again after any end.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use runtime::testing::until;
use tests::{Kaai, PATIENCE, Ran, binary, http::Ask, processes_with, project::Project, signal};

#[tokio::test]
async fn ctrl_c_leaves_no_process_and_no_open_port() {
    let mut kaai = Kaai::start();
    let project = Project::echo("leaves-nothing", "x").deployment(r#""authEnabled": false, "numReplicas": 2"#);
    kaai.run(&["deploy", &project.folder()]).good();
    let home = kaai.home().display().to_string();
    assert!(processes_with(&home).len() >= 3, "kaai, nats-server and replicas run");
    let ports: Vec<_> =
        [&kaai.router, &kaai.bus, &kaai.admin].map(|url| url.split("//").nth(1).unwrap().to_owned()).into();

    assert_eq!(kaai.interrupt(), 0);
    let left = processes_with(&home);
    assert!(left.is_empty(), "{left:#?}");
    for port in ports {
        assert!(std::net::TcpStream::connect(&port).is_err(), "{port} is still open");
    }
    assert!(
        !kaai.home().join("deployer/replicas").read_dir().is_ok_and(|mut entries| entries.next().is_some()),
        "temporary storage stays"
    );
}

#[tokio::test]
async fn services_are_found_and_served_again_after_a_clean_end_and_after_a_kill() {
    let mut kaai = Kaai::start();
    let project = Project::echo("found-again", "x").deployment(r#""numReplicas": 2"#);
    kaai.run(&["deploy", &project.folder()]).good();
    let key = kaai.key("found-again");
    for end in ["clean", "kill"] {
        match end {
            "clean" => assert_eq!(kaai.interrupt(), 0),
            _ => kaai.kill(),
        }
        kaai.resume(&[]);
        let answer = until("the service answers again", PATIENCE, async || {
            let answer = Ask::post(kaai.url("found-again", "score"), "{}").key(&key).send().await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert_eq!(answer.json()["version"], "x", "after a {end} end, with the same key");
        until("all replicas are back, and no more", PATIENCE, async || {
            (kaai.json(&["status", "found-again"])[0]["service"]["ready"] == 2).then_some(())
        })
        .await;
        let servers = processes_with(&kaai.home().display().to_string());
        let servers = servers.iter().filter(|(_, command)| command.contains("nats-server")).count();
        assert_eq!(servers, 1, "one bus after a {end} end");
    }
}

#[test]
fn a_second_one_on_the_same_state_folder_refuses_in_words() {
    let kaai = crate::shared();
    let ran = kaai.run(&["up", "--bus-port", "0", "--router-address", "127.0.0.1:0"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("already runs on") && ran.stderr.contains(&kaai.pid().to_string()), "{ran:#?}");
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_chooses_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = tempfile::tempdir().unwrap();
    let kaai = crate::shared();
    for (args, flag) in [
        (
            [
                "--bus-port".to_owned(),
                address.port().to_string(),
                "--router-address".to_owned(),
                "127.0.0.1:0".to_owned(),
            ],
            "--bus-port",
        ),
        (
            ["--bus-port".to_owned(), "0".to_owned(), "--router-address".to_owned(), address.to_string()],
            "--router-address",
        ),
    ] {
        let mut command = kaai.command(&["up"]);
        let ran = Ran::new(command.args(args).env("KAAI_HOME", home.path()));
        assert!(ran.code == 1 || ran.code == 3, "{ran:#?}");
        assert!(ran.stderr.contains(&address.port().to_string()) && ran.stderr.contains(flag), "{ran:#?}");
    }
    let left = processes_with(&home.path().display().to_string());
    assert!(left.is_empty(), "nothing is left running: {left:#?}");
}

/// `kaai up` on a state folder of its own, not waited for.
fn begin(home: &Path, more: &[&str]) -> Child {
    let mut command = crate::shared().command(&["up", "--bus-port", "0", "--router-address", "127.0.0.1:0"]);
    command.args(more).env("KAAI_HOME", home).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn ctrl_c_at_any_moment_of_the_start_leaves_no_process() {
    // The bus runs from the first file on, components from the second on, and with the last one all is up.
    for sign in ["nats/pid", "store", "deployer", "context.json"] {
        let home = tempfile::tempdir().unwrap();
        let mut kaai = begin(home.path(), &[]);
        until(&format!("{sign} is there"), PATIENCE, async || home.path().join(sign).exists().then_some(())).await;
        signal("INT", kaai.id());
        let ended = kaai.wait().unwrap();
        let left = processes_with(&home.path().display().to_string());
        assert!(ended.code() == Some(0) && left.is_empty(), "after {sign}: {ended}, {left:#?}");
    }
}

#[test]
fn the_next_command_that_is_shown_can_be_typed() {
    let stubs = tempfile::tempdir().unwrap();
    std::fs::write(stubs.path().join("kaai"), "").unwrap();
    let tools = tests::root().join(".tools/bin").display().to_string();
    let own = binary("kaai").canonicalize().unwrap().display().to_string();
    let path = std::env::var_os("PATH").unwrap();
    // Whatever this machine has installed is left out.
    let without = std::env::split_paths(&path).filter(|folder| !folder.join("kaai").exists());
    let without = std::env::join_paths(without.chain([tools.into()])).unwrap().into_string().unwrap();
    for (path, program) in [(without.clone(), own.as_str()), (format!("{without}:{}", stubs.path().display()), "kaai")]
    {
        let home = tempfile::tempdir().unwrap();
        let mut command = crate::shared().command(&["up", "--bus-port", "0", "--router-address", "127.0.0.1:0"]);
        let command = command.env("KAAI_HOME", home.path()).env("PATH", path).stderr(Stdio::piped());
        let mut kaai = command.spawn().unwrap();
        let lines = BufReader::new(kaai.stderr.take().unwrap()).lines().map_while(Result::ok);
        let next = lines.take_while(|line| !line.starts_with("stopping")).find(|line| line.starts_with("next"));
        signal("INT", kaai.id());
        kaai.wait().unwrap();
        let next = next.unwrap();
        let shown = format!("KAAI_HOME={} {program} deploy FOLDER", home.path().display());
        assert!(next.ends_with(&shown), "{next} does not end with {shown}");
    }
}

#[test]
fn a_start_that_fails_leaves_no_process() {
    let home = tempfile::tempdir().unwrap();
    let ended = begin(home.path(), &["--uv", "/bin/true"]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(3) && said.contains("install uv"), "{said}");
    let left = processes_with(&home.path().display().to_string());
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test]
async fn a_deployment_goes_on_by_itself_after_the_bus_was_dead_for_ten_seconds() {
    let kaai = Kaai::start();
    let project = Project::echo("outage", "x")
        .file("score.py", "import time\n\ndef init():\n    time.sleep(4)\n\ndef run(data):\n    return 'alive'\n");
    kaai.run(&["deploy", &project.folder(), "--no-wait"]).good();
    let home = kaai.home().display().to_string();
    let (server, _) = processes_with(&home).into_iter().find(|(_, command)| command.contains("nats-server")).unwrap();
    // Stopped, not ended: connections hang as they do when a machine has gone.
    signal("STOP", server);
    tokio::time::sleep(Duration::from_secs(10)).await;
    signal("CONT", server);
    until("the service answers", PATIENCE, async || {
        let answer = Ask::post(kaai.url("outage", "score"), "{}").send().await;
        (answer.status == 200).then_some(())
    })
    .await;

    // And ended: kaai starts it again, and what was acknowledged is still there.
    project.write("score.py", &Project::script("second"));
    kaai.run(&["deploy", &project.folder(), "--no-wait"]).good();
    let (server, _) = processes_with(&home).into_iter().find(|(_, command)| command.contains("nats-server")).unwrap();
    signal("KILL", server);
    until("the second generation answers", PATIENCE, async || {
        let answer = Ask::post(kaai.url("outage", "score"), "{}").send().await;
        assert!(answer.status == 200, "the old generation serves meanwhile: {answer:?}");
        (answer.json()["version"] == "second").then_some(())
    })
    .await;
    let events = kaai.run(&["events", "--service", "outage", "--output", "json"]).good().stdout;
    assert_eq!(events.matches("\"type\":\"deployment.ready\"").count(), 2, "each deployment ended once: {events}");
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let ran = Ran::new(Command::new(binary("kaai")).arg("--help")).good();
    for command in
        ["up", "deploy", "status", "logs", "events", "invoke", "scale", "keys", "delete", "package", "models", "env"]
    {
        assert!(ran.stdout.contains(&format!("\n  {command}")), "{command} is not in {}", ran.stdout);
    }
    assert!(ran.stdout.contains("Exit codes: 0 done, 1 you can mend it"), "{}", ran.stdout);
}
