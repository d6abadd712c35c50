//! Failures speak: stage, cause and remedy in words, an exit code that is not zero, and the old generation still answers.

use std::io::Read;

use runtime::testing::SmallDisk;
use serde_json::Value;
use tests::{
    Kaai, Ran,
    http::Ask,
    project::{PLAIN_CONDA, Project},
};

use crate::shared;

/// Deploys a project that must fail, and gives what was said of it.
#[track_caller]
fn fails(kaai: &Kaai, project: &Project, stage: &str, words: &[&str]) -> Value {
    let ran = kaai.run(&["deploy", &project.folder(), "--output", "json"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let error = ran.json()["error"].clone();
    assert_eq!(error["failure"]["stage"], stage, "{error:#}");
    for word in words {
        assert!(error["failure"]["cause"].as_str().unwrap().contains(word), "{word:?} is not in the cause: {error:#}");
    }
    assert!(!error["failure"]["remedy"].as_str().unwrap().is_empty(), "{error:#}");
    error
}

/// What `kaai events` says of the newest failure of a service.
fn failed_event(kaai: &Kaai, service: &str) -> Value {
    let events = kaai.run(&["events", "--service", service, "--output", "json"]).good().stdout;
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.rfind(|event| event["type"] == "deployment.failed").unwrap()
}

#[tokio::test]
async fn a_generation_that_fails_leaves_the_one_before_it_serving() {
    let kaai = shared();
    let project = Project::echo("keeps-serving", "good");
    let first = kaai.json(&["deploy", &project.folder()]);
    for (script, words) in [
        ("def init():\n    raise ValueError('no luck today')\n\ndef run(d):\n    return d\n", &["no luck today"][..]),
        (
            "import pandas_is_not_here\n\ndef init():\n    pass\n\ndef run(d):\n    return d\n",
            &["pandas_is_not_here", "environment.yml"],
        ),
        ("import os\n\ndef init():\n    os._exit(9)\n\ndef run(d):\n    return d\n", &["9"]),
    ] {
        project.write("score.py", script);
        let error = fails(kaai, &project, "starting", words);
        assert!(error["failure"]["log"].as_str().unwrap().starts_with("kaai logs keeps-serving"), "{error:#}");
        let event = failed_event(kaai, "keeps-serving");
        assert_eq!(event["data"]["failure"]["cause"], error["failure"]["cause"], "the event says the same");
        assert_eq!(event["data"]["serving"], first["generation"]);
        let answer = Ask::post(kaai.url("keeps-serving", "score"), "{}").send().await;
        assert_eq!((answer.status.as_u16(), &answer.json()["version"]), (200, &Value::from("good")));
    }
    project.write("score.py", &Project::script("better"));
    kaai.run(&["deploy", &project.folder()]).good();
    assert_eq!(Ask::post(kaai.url("keeps-serving", "score"), "{}").send().await.json()["version"], "better");
}

#[test]
fn the_last_lines_for_a_person_are_cause_and_remedy() {
    let kaai = shared();
    let project = Project::echo("for-people", "x")
        .file("score.py", "def init():\n    raise KeyError('weights')\n\ndef run(d):\n    return d\n");
    let ran = kaai.run(&["deploy", &project.folder()]);
    assert_eq!(ran.code, 1);
    let lines: Vec<_> = ran.stderr.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines[lines.len() - 1].starts_with("→ "), "{lines:#?}");
    assert!(
        lines[lines.len() - 2].starts_with("failed at starting: ") && lines[lines.len() - 2].contains("weights"),
        "{lines:#?}"
    );
    assert!(ran.stderr.contains("line 2"), "the traceback is shown: {}", ran.stderr);
    assert!(ran.stdout.is_empty());
}

#[test]
fn a_project_without_its_script_is_refused_before_anything_is_sent() {
    let kaai = shared();
    let project = Project::echo("no-script", "x");
    project.remove("score.py");
    fails(kaai, &project, "reading", &["score.py"]);
    project.write("score.py", "def init():\n    pass\n");
    fails(kaai, &project, "reading", &["run()"]);
    project.write("score.py", "def init(:\n");
    let ran = kaai.run(&["deploy", &project.folder(), "--output", "json"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
}

#[test]
fn a_password_in_an_address_is_refused_before_anything_is_said_and_not_repeated() {
    let kaai = shared();
    let conda = PLAIN_CONDA.replace("server-http\n", "server-http\n      - --index-url https://u:hunter2@h/simple\n");
    let project = Project::echo("with-password", "x").file("environment.yml", &conda);
    let ran = kaai.run(&["deploy", &project.folder()]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("line 5 of environment.yml") && ran.stderr.contains("UV_INDEX_URL"), "{ran:#?}");
    let events = kaai.run(&["events", "--service", "with-password", "--output", "json"]).good().stdout;
    assert!(events.is_empty(), "{events}");
    for ran in [ran, kaai.run(&["env", "show", &project.folder()])] {
        assert!(!format!("{ran:?}").contains("hunter2"), "{ran:#?}");
    }
}

#[test]
fn the_builder_says_what_an_environment_is_and_whether_it_can_be() {
    let kaai = shared();
    let project = Project::echo("described", "x");
    let show = |more: &[&str]| kaai.run(&[&["env", "show", &project.folder(), "--output", "json"][..], more].concat());
    assert_eq!(show(&["--resolve"]).good().json(), show(&[]).good().json(), "without images nothing is to be resolved");
    let other = Project::echo("described-too", "x").file("environment.yml", &PLAIN_CONDA.replace("3.11", "2.7"));
    let ran = kaai.run(&["env", "show", &other.folder(), "--resolve"]);
    assert!(ran.code == 1 && ran.stderr.contains("2.7"), "{ran:#?}");
}

#[test]
fn a_project_that_is_too_big_may_be_let_through_as_the_message_says() {
    let mut kaai = Kaai::start();
    assert_eq!(kaai.interrupt(), 0);
    kaai.resume(&["--max-project-size", "1"]);
    let project = Project::echo("too-big", "x");
    // It takes no space, and whoever counts bytes counts them all.
    std::fs::File::create(project.path().join("big.bin")).unwrap().set_len(301 << 20).unwrap();
    let folder = project.folder();
    let error = fails(&kaai, &project, "reading", &["314572800"]);
    assert!(error["failure"]["remedy"].as_str().unwrap().contains("KAAI_MAX_PROJECT_SIZE"), "{error:#}");
    assert!(kaai.run(&["events", "--service", "too-big", "--output", "json"]).good().stdout.is_empty());
    let by_flag = kaai.run(&["deploy", &folder, "--max-project-size", "302"]);
    let by_variable = Ran::new(kaai.command(&["deploy", &folder]).env("KAAI_MAX_PROJECT_SIZE", "302"));
    for ran in [by_flag, by_variable] {
        assert!(ran.code == 1 && ran.stderr.contains("1048576"), "the packager's own limit is met next: {ran:#?}");
    }
    kaai.run(&["env", "show", &folder]).good();
}

#[test]
fn a_full_disk_of_this_machine_is_named_and_no_fault_of_the_project() {
    let (test, folder) =
        ("a_full_disk_of_this_machine_is_named_and_no_fault_of_the_project", tempfile::tempdir().unwrap());
    let Some(small) = SmallDisk::mount(test, folder.path().join("small"), 512) else { return };
    let kaai = shared();
    let project = Project::echo("full-disk", "x");
    let mut noise = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(2 << 20).read_to_end(&mut noise).unwrap();
    std::fs::write(project.path().join("noise.bin"), noise).unwrap();

    // A kaai that does not see the user's folders: the project is packed here.
    let password = kaai.home().join("nats/passwords/cli").display().to_string();
    let login = ["--user", "cli", "--password-file", &password];
    let set = ["context", "set", "far-away", "--bus", &kaai.bus, "--router", &kaai.router];
    kaai.run(&[&set[..], &login].concat()).good();
    let sent =
        Ran::new(kaai.command(&["deploy", &project.folder(), "--context", "far-away"]).env("TMPDIR", small.path()));
    let zip = small.path().join("x.zip").display().to_string();
    for ran in [sent, kaai.run(&["package", &project.folder(), &zip])] {
        let said = format!(
            "no space is left on the disk of {0}\n→ free some space in {0}, then try again\n",
            small.path().display()
        );
        assert!(ran.code == 3 && ran.stderr.ends_with(&said), "{ran:#?}");
    }
}

#[test]
fn malformed_files_are_named_with_line_and_column() {
    let kaai = shared();
    let project = Project::echo("malformed", "x")
        .file("deploymentconfig.json", "{\"computeType\": \"aks\",\n  \"numReplicas\": 1,,\n}");
    fails(kaai, &project, "reading", &["deploymentconfig.json", "line 2", "column"]);
    let project =
        Project::echo("malformed", "x").file("environment.yml", "dependencies:\n  - python=3.11\n - pip: [x\n");
    fails(kaai, &project, "reading", &["environment.yml", "line"]);
}

#[test]
fn all_violations_of_a_v1_file_are_told_at_once() {
    let kaai = shared();
    let project = Project::echo("violations", "x")
        .deployment(r#""numReplicas": 0, "maxQueueWaitMs": -1, "containerResourceRequirements": {"cpu": 0}"#);
    let error = fails(kaai, &project, "reading", &[]);
    let text = error.to_string();
    for parameter in ["num_replicas", "max_request_wait_time", "cpu_cores"] {
        assert!(text.contains(parameter), "{parameter} is not in {error:#}");
    }
}

#[test]
fn an_unknown_key_is_warned_of_and_refused_by_nobody() {
    let kaai = shared();
    let project = Project::echo("unknown-key", "x").deployment(r#""sslEnabled": true, "authEnabled": false"#);
    let deployed = kaai.json(&["deploy", &project.folder()]);
    assert!(deployed["warnings"].to_string().contains("sslEnabled"), "{deployed:#}");
}

#[test]
fn a_package_that_does_not_exist_is_named() {
    let kaai = shared();
    let conda = PLAIN_CONDA.replace("server-http\n", "server-http\n      - kaai-test-no-such-package-a8c1\n");
    let project = Project::echo("no-package", "x").file("environment.yml", &conda);
    fails(kaai, &project, "building", &["kaai-test-no-such-package-a8c1"]);
    let again = fails(kaai, &project, "building", &["kaai-test-no-such-package-a8c1"]);
    assert!(again.to_string().contains("remember"), "a failure is remembered, and it says so: {again:#}");
    let log = kaai.run(&["env", "log", "--folder", &project.folder()]);
    assert!(log.stdout.contains("kaai-test-no-such-package-a8c1"), "{log:#?}");
}

#[test]
fn a_clash_of_packages_is_told_as_one() {
    let kaai = shared();
    let conda = PLAIN_CONDA.replace("server-http\n", "server-http\n      - six==1.16.0\n      - six==1.15.0\n");
    let project = Project::echo("clash", "x").file("environment.yml", &conda);
    fails(kaai, &project, "building", &["six"]);
}

#[test]
fn a_python_that_cannot_be_had_is_a_clear_error() {
    let kaai = shared();
    let project = Project::echo("old-python", "x").file("environment.yml", &PLAIN_CONDA.replace("3.11", "3.2"));
    fails(kaai, &project, "building", &["3.2"]);
}

#[test]
fn a_name_that_is_not_valid_is_refused_with_the_rule() {
    let kaai = shared();
    let project = Project::echo("valid", "x");
    let ran = kaai.run(&["deploy", &project.folder(), "--name", "Not_Valid"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.stderr.contains("3 to 32 lower-case letters"), "{ran:#?}");
}

#[test]
fn an_init_that_takes_longer_than_it_may_is_given_up() {
    let kaai = shared();
    let project = Project::echo("slow", "x")
        .file("score.py", "import time\n\ndef init():\n    time.sleep(600)\n\ndef run(d):\n    return d\n")
        .deployment(r#""authEnabled": false, "livenessProbeRequirements": {"initialDelaySeconds": 3}"#);
    fails(kaai, &project, "starting", &["init()", "3 s"]);
}
