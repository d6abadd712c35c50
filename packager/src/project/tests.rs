//! Whole projects, read.

use std::{fs, path::Path};

use proto::spec::Auth;
use tempfile::TempDir;

use super::*;

const SCRIPT: &str = "def init():\n    pass\n\ndef run(data):\n    return data\n";

fn project(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("churn");
    for (file, content) in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn read_it(root: &TempDir, options: &ProjectOptions) -> Result<Project, Failure> {
    read(&root.path().join("churn"), options, &"churn".parse().unwrap())
}

fn sent(project: &Project) -> Vec<&str> {
    project.files.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn with_a_source_directory_the_whole_folder_is_sent() {
    let root = project(&[
        (
            "inferenceconfig.json",
            r#"{"entryScript": "./lib/score.py", "sourceDirectory": ".", "condaFile": "lib/env.yml"}"#,
        ),
        ("lib/score.py", SCRIPT),
        ("lib/env.yml", "dependencies: [python=3.11]"),
        (".amlignore", "notes/\n"),
        ("notes/n.md", "n"),
    ]);
    let project = read_it(&root, &ProjectOptions::default()).unwrap();
    assert_eq!(project.spec.entry_script, "lib/score.py");
    assert_eq!(project.spec.source_directory.as_deref(), Some("churn"));
    assert_eq!(sent(&project), [".amlignore", "inferenceconfig.json", "lib/env.yml", "lib/score.py"]);
    assert_eq!(project.spec.environment.conda.dependencies, ["python=3.11"]);
    assert_eq!(project.spec.auth, Auth::Key, "no deployment configuration: the defaults of aks");
}

#[test]
fn without_a_source_directory_only_the_entry_script_is_sent() {
    let root = project(&[
        (
            "inferenceconfig.json",
            r#"{"entryScript": "src/score.py", "sourceDirectory": null, "condaFile": "../conda.yml"}"#,
        ),
        ("src/score.py", SCRIPT),
        ("other.txt", "x"),
    ]);
    fs::write(root.path().join("conda.yml"), "dependencies: [python=3.11]").unwrap();
    let project = read_it(&root, &ProjectOptions::default()).unwrap();
    assert_eq!((project.spec.entry_script.as_str(), project.spec.source_directory.as_deref()), ("score.py", None));
    assert_eq!(sent(&project), ["score.py"]);
}

#[test]
fn a_project_without_configuration_works_by_convention() {
    let root = project(&[("score.py", SCRIPT), ("requirements.txt", "numpy # n\n"), ("models/m.pkl", "m")]);
    let project = read_it(&root, &ProjectOptions::default()).unwrap();
    assert_eq!(project.spec.environment.conda.pip, ["numpy"]);
    assert_eq!(project.models[0].name.as_str(), "churn");
    let none = ProjectOptions { no_models: true, ..ProjectOptions::default() };
    assert!(read_it(&root, &none).unwrap().models.is_empty());
}

#[test]
fn options_count_more_than_files() {
    let root = project(&[
        (
            "inferenceconfig.json",
            r#"{"entryScript": "score.py", "sourceDirectory": ".", "condaFile": "environment.yml"}"#,
        ),
        ("ic.json", r#"{"entryScript": "other.py", "sourceDirectory": "."}"#),
        ("dc.yml", "computeType: aks\nauthEnabled: false\n"),
        ("score.py", SCRIPT),
        ("other.py", SCRIPT),
        ("environment.yml", "dependencies: [python=3.11]"),
        ("env2.yml", "dependencies: [python=3.12]"),
    ]);
    let options = ProjectOptions {
        inference_config: Some("ic.json".into()),
        deployment_config: Some("dc.yml".into()),
        conda_file: Some("env2.yml".into()),
        ..ProjectOptions::default()
    };
    let project = read_it(&root, &options).unwrap();
    assert_eq!(project.spec.entry_script, "other.py");
    assert_eq!(project.spec.auth, Auth::None);
    assert_eq!(project.spec.environment.conda.dependencies, ["python=3.12"]);
    let options = ProjectOptions { entry_script: Some("other.py".into()), ..ProjectOptions::default() };
    assert_eq!(read_it(&root, &options).unwrap().spec.entry_script, "other.py");
}

#[test]
fn each_mistake_names_what_is_wrong_and_what_to_do() {
    let config = |text: &'static str| ("inferenceconfig.json", text);
    for (files, word) in [
        (vec![("x", "")], "neither inferenceconfig.json nor score.py"),
        (vec![config(r#"{"sourceDirectory": "."}"#)], "names no entryScript"),
        (vec![config(r#"{"entryScript": "score.py", "sourceDirectory": "."}"#)], "score.py does not exist"),
        (vec![config(r#"{"entryScript": "score.py", "sourceDirectory": "nowhere"}"#)], "nowhere"),
        (vec![config("[]")], "a list, not an object"),
        (
            vec![config(r#"{"entryScript": "score.py", "condaFile": "no.yml"}"#), ("score.py", SCRIPT)],
            "no.yml does not exist",
        ),
        (vec![("score.py", SCRIPT), (".amlignore", "*.py\n")], "left out by the ignore rules"),
        (vec![("score.py", SCRIPT), ("deploymentconfig.json", "{}")], "computeType is missing"),
    ] {
        let failure = read_it(&project(&files), &ProjectOptions::default()).unwrap_err();
        assert!(failure.cause.contains(word), "{word}: {failure}");
        assert!(!failure.remedy.is_empty() && failure.stage == Stage::Reading, "{failure:?}");
    }
}

#[test]
fn a_project_from_elsewhere_cannot_make_the_packager_read_its_own_machine() {
    let hidden = ("../hidden.yml", "secret: hidden-word\n");
    let config = |text: &'static str| ("inferenceconfig.json", text);
    for (files, options) in [
        (
            vec![config(r#"{"entryScript": "score.py", "sourceDirectory": "..", "runtime": "python"}"#)],
            ProjectOptions::default(),
        ),
        (vec![config(r#"{"entryScript": "score.py", "condaFile": "../hidden.yml"}"#)], ProjectOptions::default()),
        (
            vec![config(r#"{"entryScript": "score.py", "extraDockerfileSteps": "../hidden.yml"}"#)],
            ProjectOptions::default(),
        ),
        (vec![config(r#"{"entryScript": "../hidden.py"}"#)], ProjectOptions::default()),
        (
            vec![config(
                r#"{"entryScript": "score.py", "environment": {"python": {"condaDependenciesFile": "../hidden.yml"}}}"#,
            )],
            ProjectOptions::default(),
        ),
        (vec![], ProjectOptions { inference_config: Some("../hidden.yml".into()), ..ProjectOptions::default() }),
        (vec![], ProjectOptions { deployment_config: Some("../hidden.yml".into()), ..ProjectOptions::default() }),
        (vec![], ProjectOptions { conda_file: Some("../hidden.yml".into()), ..ProjectOptions::default() }),
        (vec![], ProjectOptions { models: vec!["m=../hidden.yml".into()], ..ProjectOptions::default() }),
    ] {
        let files = [files, vec![("score.py", SCRIPT), hidden, ("../hidden.py", SCRIPT)]].concat();
        let root = project(&files);
        let folder = root.path().join("churn");
        let service = "churn".parse().unwrap();
        let failure = read_within(&folder, &options, &service, Limits::PROJECT, Links::Inside).unwrap_err();
        assert!(failure.cause.contains("lies outside"), "{files:?} {options:?}: {failure}");
        assert!(!format!("{failure:?}").contains("hidden-word"), "{failure:?}");
    }
}

#[test]
fn a_credential_is_refused_by_its_place_and_never_repeated() {
    let config = |text: &'static str| ("inferenceconfig.json", text);
    let of_image = config(r#"{"entryScript": "score.py", "baseImage": "a", "baseImageRegistry": "u:hunter2@h"}"#);
    let of_steps = config(r#"{"entryScript": "score.py", "extraDockerfileSteps": "steps"}"#);
    let inline = r#"{"entryScript": "score.py", "environment": {"python": {"condaDependencies":
        {"dependencies": ["python=3.11", {"pip": ["x @ https://u:hunter2@h/x.whl"]}]}}}}"#;
    for (files, place) in [
        (vec![("requirements.txt", "numpy\n-i https://u:hunter2@h/s\n")], "line 2 of requirements.txt"),
        (vec![("requirements.txt", "numpy\nx \\\n  @ https://hunter2@h/s\n")], "line 3 of requirements.txt"),
        (vec![("environment.yml", "channels:\n  - https://h/t/hunter2/main\n")], "line 2 of environment.yml"),
        (vec![("environment.yml", "channels:\n  - 'https://h/a/t/hunter2/main'\n")], "line 2 of environment.yml"),
        (
            vec![("environment.yml", "dependencies:\n- pip:\n  - https://h/x?sig=hunter2\n")],
            "line 3 of environment.yml",
        ),
        (vec![of_steps, ("steps", "RUN true\nRUN curl https://u:hunter2@h/\n")], "line 2 of steps"),
        (vec![of_image], "the base image"),
        (vec![config(inline)], "entry 1 of the list pip of inferenceconfig.json"),
        // Mistakes of another kind quote what is there.
        (vec![("environment.yml", "dependencies:\n  - https://u:hunter2@h/x: [y]\n")], "only a list named pip"),
        (vec![("environment.yml", "- pip: [https://u:hunter2@h/x\n- b\n")], "malformed"),
        (vec![config(r#"{"entryScript": "score.py", "condaFile": "https://u:hunter2@h/x.yml"}"#)], "does not exist"),
    ] {
        let root = project(&[files, vec![("score.py", SCRIPT)]].concat());
        let failure = read_it(&root, &ProjectOptions::default()).unwrap_err();
        assert!(failure.cause.contains(place), "{place}: {failure}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
    let root = project(&[
        ("score.py", SCRIPT),
        ("deploymentconfig.json", r#"{"computeType": "aks", "http://u:hunter2@h": 1}"#),
    ]);
    let warnings = read_it(&root, &ProjectOptions::default()).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("http://***@h is not known")), "{warnings:?}");
}

#[test]
fn what_the_user_should_know_is_told() {
    let root = project(&[
        ("score.py", SCRIPT),
        ("environment.yml", "dependencies: [pip]"),
        (".amlignore", "notes/\n*.log\n"),
        ("notes/a", "a"),
        ("notes/b", "b"),
        ("c.log", "c"),
    ]);
    let warnings = read_it(&root, &ProjectOptions::default()).unwrap().warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("2 files or folders were left out by .amlignore")),
        "{warnings:?}"
    );
    assert!(warnings.iter().any(|warning| warning.contains("3.10 is taken")), "{warnings:?}");
    let quiet =
        project(&[("score.py", SCRIPT), ("environment.yml", "dependencies: [python=3.11]"), (".amlignore", "x\n")]);
    assert!(read_it(&quiet, &ProjectOptions::default()).unwrap().warnings.is_empty());
}

#[test]
fn a_specification_that_no_event_could_carry_is_refused() {
    let lines: String = (0..40_000).map(|n| format!("package-number-{n}\n")).collect();
    let root = project(&[("score.py", SCRIPT), ("requirements.txt", &lines)]);
    assert!(read_it(&root, &ProjectOptions::default()).unwrap_err().cause.contains("more than the 524288"));
}

#[test]
fn the_entry_script_lies_in_the_source_directory() {
    let root = project(&[
        ("inferenceconfig.json", r#"{"entryScript": "../score.py", "sourceDirectory": "src"}"#),
        ("score.py", SCRIPT),
        ("src/x", ""),
    ]);
    let failure = read_it(&root, &ProjectOptions::default()).unwrap_err();
    assert!(failure.cause.contains("outside the sourceDirectory"), "{failure}");
}

#[test]
fn a_folder_gives_its_service_a_name() {
    for (folder, name) in
        [("/a/Ridge_Diabetes", "ridge-diabetes"), ("/a/2nd-model", "nd-model"), ("/a/My Model!", "my-model")]
    {
        assert_eq!(default_name(Path::new(folder)).unwrap().as_str(), name);
    }
    for folder in ["/", "/a/__", "/a/ab"] {
        assert!(default_name(Path::new(folder)).unwrap_err().remedy.contains("--name"), "{folder}");
    }
}
