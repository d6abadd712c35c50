//! The command line as a person and a program use it.

use std::fs;

use serde_json::{Value, json};
use tests::{Ran, binary, http::Ask, project::Project};

use crate::shared;

#[tokio::test]
async fn one_service_through_its_whole_life() {
    let kaai = shared();
    let project = Project::echo("whole-life", "x").deployment("");
    let deployed = kaai.json(&["deploy", &project.folder()]);
    assert_eq!(deployed["scoringUri"], kaai.url("whole-life", "score"));

    let said = kaai.json(&["invoke", "whole-life", "--data", r#"{"a": 1}"#]);
    assert_eq!((&said["status"], &said["body"]["asked"]), (&json!(200), &json!({ "a": 1 })));
    let text = kaai.run(&["invoke", "whole-life", "--data", "{}"]).good().stdout;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["version"], "x");

    let old = kaai.json(&["keys", "show", "whole-life"]);
    let new = kaai.json(&["keys", "regenerate", "whole-life", "primary"]);
    assert_ne!(old["primary"], new["primary"]);
    assert_eq!(old["secondary"], new["secondary"]);
    let status = |key: &Value| {
        let ask = Ask::post(kaai.url("whole-life", "score"), "{}").key(key.as_str().unwrap());
        async move { ask.send().await.status.as_u16() }
    };
    assert_eq!(status(&new["secondary"]).await, 200, "the other key never stopped being valid");
    runtime::testing::until("the new key holds and the old one does not", tests::PATIENCE, async || {
        (status(&new["primary"]).await == 200 && status(&old["primary"]).await == 401).then_some(())
    })
    .await;

    let scaled = kaai.json(&["scale", "whole-life", "--replicas", "3"]);
    assert_eq!((&scaled["ready"], &scaled["replicas"]), (&json!(3), &json!(3)));
    let table = kaai.run(&["status", "whole-life"]).good().stdout;
    assert!(table.lines().nth(1).is_some_and(|line| line.contains("healthy") && line.contains("3 of 3")), "{table}");
    assert!(kaai.run(&["logs", "whole-life"]).good().stdout.contains("init of x"));
    let types: Vec<_> = kaai
        .run(&["events", "--service", "whole-life", "--output", "json"])
        .good()
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(types[..4], ["deployment.requested", "project.packaged", "image.resolved", "deployment.ready"]);

    assert_eq!(kaai.json(&["delete", "whole-life"])["deleted"], true);
    assert_eq!(kaai.json(&["delete", "whole-life"])["deleted"], false, "deleting again is no error");
    assert_eq!(Ask::post(kaai.url("whole-life", "score"), "{}").send().await.status, 404);
    assert_eq!(kaai.run(&["status", "whole-life"]).code, 1);
    kaai.run(&["deploy", &project.folder()]).good();
    assert_eq!(kaai.json(&["invoke", "whole-life", "--data", "{}"])["status"], 200, "a name may begin anew");
}

#[test]
fn a_project_without_v1_files_works_by_convention_and_by_flags() {
    let kaai = shared();
    let project = Project::echo("by-convention", "x");
    project.remove("inferenceconfig.json");
    project.remove("deploymentconfig.json");
    kaai.run(&["deploy", &project.folder()]).good();
    assert_eq!(kaai.json(&["invoke", "by-convention", "--data", "{}"])["body"]["version"], "x");

    let project = Project::echo("by-flags", "x")
        .file("other.py", &Project::script("other"))
        .file("env.yml", tests::project::PLAIN_CONDA);
    for file in ["inferenceconfig.json", "deploymentconfig.json", "score.py", "environment.yml"] {
        project.remove(file);
    }
    kaai.run(&["deploy", &project.folder(), "--entry-script", "other.py", "--conda", "env.yml"]).good();
    assert_eq!(kaai.json(&["invoke", "by-flags", "--data", "{}"])["body"]["version"], "other");
}

#[test]
fn models_count_up_and_a_service_sees_the_one_it_names() {
    let kaai = shared();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.txt");
    for version in 1..=2 {
        fs::write(&file, format!("weights {version}")).unwrap();
        let registered = kaai.json(&["models", "register", "counted", file.to_str().unwrap()]);
        assert_eq!(registered["version"], version);
    }
    let listed = kaai.json(&["models", "list"]);
    let counted = listed.as_array().unwrap().iter().find(|model| model["name"] == "counted").unwrap();
    assert_eq!(counted["versions"].as_array().unwrap().len(), 2);
    let script = "import os\n\ndef init():\n    global text\n    text = open(os.path.join(os.environ['AZUREML_MODEL_DIR'], 'weights.txt')).read()\n\ndef run(data):\n    return text\n";
    let project = Project::echo("with-model", "x").file("score.py", script);
    for version in [1, 2] {
        kaai.run(&["deploy", &project.folder(), "--model", &format!("counted:{version}")]).good();
        assert_eq!(kaai.json(&["invoke", "with-model", "--data", "{}"])["body"], format!("weights {version}"));
    }
    let ran = kaai.run(&["deploy", &project.folder(), "--model", "counted:9"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("counted"), "{ran:#?}");
}

#[test]
fn a_change_of_source_alone_builds_nothing() {
    let kaai = shared();
    let project = Project::echo("source-alone", "one");
    kaai.run(&["deploy", &project.folder()]).good();
    project.write("score.py", &Project::script("two"));
    kaai.run(&["deploy", &project.folder()]).good();
    let events = kaai.run(&["events", "--service", "source-alone", "--output", "json"]).good().stdout;
    let last = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .rfind(|event| event["type"] == "image.resolved");
    assert_eq!(last.unwrap()["data"]["lookup"], "cached");
}

#[test]
fn the_identity_of_an_environment_is_shown_and_a_difference_explained() {
    let one = Project::echo("env-one", "x").file(
        "environment.yml",
        "dependencies:\n  - python=3.11\n  - pip:\n      - scikit-learn==1.9.1\n      - Joblib\n",
    );
    let same = Project::echo("env-two", "y").file(
        "environment.yml",
        "# again\nname: other\ndependencies:\n- pip:\n  - joblib\n  - scikit_learn == 1.9.1\n- python=3.11\n",
    );
    let other = Project::echo("env-three", "z").file(
        "environment.yml",
        "dependencies:\n  - python=3.11\n  - pip:\n      - scikit-learn==1.9.2\n      - joblib\n",
    );
    let kaai = |args: &[&str]| Ran::new(std::process::Command::new(binary("kaai")).args(args));
    let hash =
        |project: &Project| kaai(&["env", "show", &project.folder(), "--output", "json"]).good().json()["hash"].clone();
    assert_eq!(hash(&one), hash(&same));
    assert_ne!(hash(&one), hash(&other));
    let why = kaai(&["env", "why", &one.folder(), &other.folder()]).good().stdout;
    assert!(why.contains("scikit-learn") && why.contains("1.9.1") && why.contains("1.9.2"), "{why}");
    assert!(kaai(&["env", "why", &one.folder(), &same.folder()]).good().stdout.contains("same"));
}

#[test]
fn a_zip_is_the_same_whatever_the_clock_and_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let digest = |names: &[&str], zip: &str| {
        let project = folder.path().join(zip.trim_end_matches(".zip"));
        for name in names {
            fs::create_dir_all(project.join("deep")).unwrap();
            fs::write(project.join("deep").join(name), format!("content of {name}")).unwrap();
        }
        let zip = folder.path().join(zip);
        let mut command = std::process::Command::new(binary("kaai"));
        command.args(["package", "--output", "json"]).arg(&project).arg(&zip);
        Ran::new(&mut command).good().json()["digest"].clone()
    };
    assert_eq!(digest(&["a", "b", "c"], "one.zip"), digest(&["c", "a", "b"], "two.zip"));
}

#[test]
fn completion_is_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = Ran::new(std::process::Command::new(binary("kaai")).args(["completion", shell])).good();
        assert!(ran.stdout.contains("deploy"), "{shell}");
    }
}

#[test]
fn without_a_kaai_a_command_says_how_to_start_one() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(binary("kaai"));
    command
        .arg("status")
        .env("HOME", nowhere.path())
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("KAAI_HOME");
    let ran = Ran::new(&mut command);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("kaai up"), "{ran:#?}");
}
