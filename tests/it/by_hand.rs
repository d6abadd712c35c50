//! Anything that can publish to NATS can deploy, and what cannot be read is kept with its reason.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use serde_json::{Value, json};
use tests::{Kaai, PATIENCE, Ran, http::Ask, project::Project, root};

use crate::shared;

async fn publish(kaai: &Kaai, subject: &str, body: &str) {
    let password = fs::read_to_string(kaai.home().join("nats/passwords/cli")).unwrap();
    let options = async_nats::ConnectOptions::new()
        .user_and_password("cli".to_owned(), password)
        .custom_inbox_prefix("_INBOX_cli");
    let client = options.connect(&kaai.bus).await.unwrap();
    client.publish(subject.to_owned(), body.to_owned().into()).await.unwrap();
    client.flush().await.unwrap();
}

async fn ends(kaai: &Kaai, service: &str) -> Value {
    runtime::testing::until("the deployment ends", PATIENCE, async || {
        let events = kaai.run(&["events", "--service", service, "--output", "json"]).good().stdout;
        let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.find(|event| event["type"] == "deployment.ready" || event["type"] == "deployment.failed")
    })
    .await
}

/// A program in a folder that only tells with what it was called.
fn stub(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn what_the_readme_publishes_by_hand_deploys_a_folder() {
    let kaai = shared();
    let stubs = tempfile::tempdir().unwrap();
    stub(stubs.path(), "nats", "printf '%s\\n' \"$NATS_PASSWORD\" \"$@\"");
    stub(stubs.path(), "kaai", "");
    let block = tests::readme::block_with(" pub kaai.v1.");
    let path = format!("{}:/usr/bin:/bin", stubs.path().display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &block]).current_dir(root()).env("PATH", path).env("KAAI_HOME", kaai.home());
    let said = Ran::new(&mut shell).good().stdout;
    let words: Vec<_> = said.lines().collect();
    let [password, "--server", "nats://127.0.0.1:4222", "--user", "cli", "pub", subject, body] = words[..] else {
        panic!("{words:#?}")
    };
    assert_eq!(password, fs::read_to_string(kaai.home().join("nats/passwords/cli")).unwrap());
    publish(kaai, subject, body).await;
    let service = subject.rsplit('.').next().unwrap();
    let end = ends(kaai, service).await;
    assert_eq!(end["type"], "deployment.ready", "{end}");
    let sample = fs::read(root().join("examples/ridge-diabetes/sample-request.json")).unwrap();
    let answer = Ask::post(kaai.url(service, "score"), sample).key(&kaai.key(service)).send().await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_mistake_by_hand_fails_in_words() {
    let kaai = shared();
    publish(kaai, "kaai.v1.default.deployment.requested.no-folder", r#"{"source": {"folder": "/no/such/folder"}}"#)
        .await;
    let end = ends(kaai, "no-folder").await;
    assert_eq!(end["type"], "deployment.failed");
    assert!(end["data"]["failure"]["cause"].as_str().unwrap().contains("/no/such/folder"), "{end}");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_becomes_a_dead_letter_with_its_reason() {
    let kaai = shared();
    publish(kaai, "kaai.v1.default.deployment.requested.not-json", "{\"source\": ").await;
    let letter = runtime::testing::until("the dead letter is there", PATIENCE, async || {
        let letters = kaai.json(&["dead-letters", "list"]);
        letters
            .as_array()
            .unwrap()
            .iter()
            .find(|letter| letter["subject"].as_str().unwrap().ends_with(".not-json"))
            .cloned()
    })
    .await;
    assert_eq!(letter["component"], "packager");
    assert!(letter["reason"].as_str().unwrap().contains("deployment.requested"), "{letter}");
}

#[tokio::test]
async fn a_git_revision_deploys() {
    let kaai = shared();
    let project = Project::echo("from-git", "of git");
    for args in [
        &["init", "-q", "-b", "main"][..],
        &["add", "."],
        &["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "one"],
    ] {
        assert!(Command::new("git").args(args).current_dir(project.path()).status().unwrap().success());
    }
    let address = format!("file://{}", project.folder());
    kaai.run(&["deploy", "--git", &address, "--revision", "main", "--name", "from-git"]).good();
    assert_eq!(Ask::post(kaai.url("from-git", "score"), "{}").send().await.json()["version"], "of git");
}

#[test]
fn a_git_address_with_a_login_is_refused_before_anything_is_asked() {
    let nowhere = tempfile::tempdir().unwrap();
    let kaai = shared();
    let address = "https://user:hunter2@example.com/a.git";
    let mut command = kaai.command(&["deploy", "--git", address, "--revision", "main", "--name", "with-login"]);
    let ran = Ran::new(command.env("KAAI_HOME", nowhere.path()));
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("the git address holds a login") && !ran.stderr.contains("hunter2"), "{ran:#?}");
}

#[tokio::test]
async fn a_machine_that_has_only_the_bus_sends_its_project_and_models() {
    let kaai = shared();
    let project = Project::echo("sent-over", "sent").file("models/weights.bin", &"w".repeat(9 << 20)).file(
        "score.py",
        "import os\n\ndef init():\n    global size\n    size = os.path.getsize(os.path.join(os.environ['AZUREML_MODEL_DIR'], 'weights.bin'))\n\ndef run(data):\n    return size\n",
    );
    let router = kaai.router.clone();
    let password = kaai.home().join("nats/passwords/cli").display().to_string();
    let set = [
        "context",
        "set",
        "far",
        "--bus",
        &kaai.bus,
        "--router",
        &router,
        "--user",
        "cli",
        "--password-file",
        &password,
    ];
    kaai.run(&set).good();
    let deployed = kaai.json(&["deploy", &project.folder(), "--context", "far"]);
    assert_eq!(deployed["service"], "sent-over");
    let answer = Ask::post(kaai.url("sent-over", "score"), "{}").send().await;
    assert_eq!(answer.json(), json!(9 << 20));
}
