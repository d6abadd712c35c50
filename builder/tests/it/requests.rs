//! What is said about a request, and how its message is settled.

use std::time::Duration;

use proto::{
    builder::ImageResolved,
    deployer::DeploymentFailed,
    event::Event,
    failure::Blame,
    id::Workspace,
    packager::ProjectPackaged,
    query::{GetBuildLog, Refusal},
};
use runtime::{bus::AskError, testing::until};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::harness::{LONG, Scene, World, environment, failure, packaged};

/// Says that it is a packaged project, and is none.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Broken {
    generation: String,
}

impl Event for Broken {
    const TYPE: &'static str = ProjectPackaged::TYPE;
}

#[tokio::test]
async fn what_the_packager_said_travels_on() {
    let scene = Scene::new(World::default()).await;
    let builder = scene.builder().await;
    let mut event = packaged(1, environment(&["x"]));
    event.extra.insert("newer".to_owned(), 1.into());
    event.spec.environment.base_image = Some("python:3.11".to_owned());
    let service = "service".parse().unwrap();
    scene.rt.bus.say(&Workspace::default(), &service, "a", &event).await.unwrap();
    let resolved = scene.resolved("service").await;
    assert_eq!((resolved.generation, resolved.archive, resolved.spec), (event.generation, event.archive, event.spec));
    assert_eq!(resolved.extra, event.extra);
    assert_eq!(resolved.warnings.len(), 2, "{:?}", resolved.warnings);
    assert!(resolved.warnings[1].contains("base image docker.io/library/python:3.11"), "{:?}", resolved.warnings);
    let metrics = builder.rt.metrics.encode();
    assert!(
        metrics.contains("kaai_builder_builds_total 1") && metrics.contains("kaai_builder_cache_hits_total 0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_request_that_comes_again_is_answered_once() {
    let scene = Scene::new(World::default()).await;
    let mut builder = scene.builder().await;
    let (workspace, service) = (Workspace::default(), "service".parse().unwrap());
    for id in ["a", "b", "c"] {
        scene.rt.bus.say(&workspace, &service, id, &packaged(1, environment(&["x"]))).await.unwrap();
    }
    scene.request("other-service", 2, environment(&["x"])).await;
    scene.resolved("service").await;
    scene.resolved("other-service").await;
    builder.stop().await;
    assert_eq!(scene.said::<ImageResolved>("service").await.len(), 1);
    assert_eq!(scene.begun(), 1);
}

#[tokio::test]
async fn an_environment_that_is_not_supported_fails_with_its_name_and_a_remedy() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    let mut spec = environment(&["-r requirements.txt"]);
    scene.request("pip-file", 1, spec.clone()).await;
    let failed = scene.failed("pip-file").await;
    assert!(
        failed.failure.cause.contains("`-r requirements.txt` in the pip list of environment.yml"),
        "{:?}",
        failed.failure
    );
    spec.conda.pip.clear();
    spec.conda.dependencies.push("numpy=1.19".to_owned());
    scene.request("conda", 2, spec).await;
    let failed = scene.failed("conda").await;
    assert_eq!(failed.failure.blame, Blame::Project);
    assert!(failed.failure.remedy.contains("`numpy==1.19.*`"), "{:?}", failed.failure);
    assert_eq!(scene.begun(), 0);
}

#[tokio::test]
async fn another_patch_of_python_is_told() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    let mut spec = environment(&["x"]);
    spec.conda.dependencies = vec!["python=3.11.4".to_owned()];
    scene.request("service", 1, spec).await;
    let warnings = scene.resolved("service").await.warnings;
    assert_eq!(warnings[1], "environment.yml asks for python ==3.11.4; this machine has 3.11.7, which is used");
}

#[tokio::test]
async fn a_body_that_is_no_packaged_project_becomes_a_dead_letter() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    scene
        .rt
        .bus
        .say(&Workspace::default(), &"broken".parse().unwrap(), "broken", &Broken { generation: "one".to_owned() })
        .await
        .unwrap();
    let letter = until("a dead letter", LONG, async || scene.rt.bus.dead_letters(1).await.unwrap().pop()).await;
    assert!(letter.reason.contains("no project.packaged"), "{}", letter.reason);
    scene.request("service", 1, environment(&["x"])).await;
    scene.resolved("service").await;
}

#[tokio::test]
async fn the_log_of_a_build_can_be_asked_for() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    *scene.world.failure.lock().unwrap() = Some(failure(Blame::Project));
    scene.request("service", 1, environment(&["x"])).await;
    let failed = scene.failed("service").await.failure;
    let short = failed.log.unwrap().rsplit(' ').next().unwrap().to_owned();
    let ask = async |environment: &str, lines| {
        let query = GetBuildLog { environment: environment.to_owned(), lines };
        scene.rt.bus.ask(&Workspace::default(), &query, Duration::from_secs(5)).await
    };
    let log = ask(&short, 100).await.unwrap();
    assert!(log.lines[0].starts_with("building environment "), "{log:?}");
    assert!(log.lines.contains(&"+ thing==1 from https://***@host/simple".to_owned()), "{log:?}");
    assert_eq!(log.lines.last().unwrap(), "failed: there is no package x");
    assert_eq!(ask(&short, 1).await.unwrap().lines.len(), 1);
    // The file of the machine that built it is gone: the store has it too.
    std::fs::remove_dir_all(&scene.limits.logs).unwrap();
    assert_eq!(ask(&short, 100).await.unwrap(), log);
    for (asked, kind) in
        [("abc", "invalid"), ("zzzzzzzz", "invalid"), ("00000000", "not-found"), (&"0".repeat(64), "not-found")]
    {
        match ask(asked, 1).await {
            Err(AskError::Refused(Refusal { kind: said, .. })) => assert_eq!(said, kind, "{asked}"),
            other => panic!("{asked}: {other:?}"),
        }
    }
    assert!(
        scene.said::<ProjectPackaged>("service").await.len() == 1
            && scene.said::<DeploymentFailed>("service").await.len() == 1
    );
}
