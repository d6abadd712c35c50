//! One build for one environment, whatever happens to builders and bus.

use std::sync::atomic::Ordering;

use futures::future::join_all;
use proto::{
    builder::{EnvironmentRecord, Image, Lookup},
    deployer::{DeploymentFailed, DeploymentProgressed},
    failure::Blame,
    id::Workspace,
    query::ForgetFailure,
};
use runtime::{bus::AskError, testing::until};

use crate::harness::{LONG, Scene, World, environment, failure};

#[tokio::test]
async fn twenty_requests_and_three_builders_make_one_build() {
    let scene = Scene::new(World { gated: true, ..World::default() }).await;
    let builders = [scene.builder().await, scene.builder().await, scene.builder().await];
    let spellings = [environment(&["Numpy==1.0", "x"]), environment(&["x", "numpy == 1"])];
    let services: Vec<String> = (0..20).map(|n| format!("service-{n}")).collect();
    join_all(
        services.iter().enumerate().map(|(n, service)| scene.request(service, n as u64 + 1, spellings[n % 2].clone())),
    )
    .await;
    scene.waiting(&builders, 20).await;
    scene.building(1).await;
    scene.world.gate.notify_one();
    let resolved = join_all(services.iter().map(|service| scene.resolved(service))).await;
    assert_eq!(scene.begun(), 1);
    let first = &resolved[0];
    for resolved in &resolved {
        assert_eq!((&resolved.image, &resolved.environment), (&first.image, &first.environment));
        assert_eq!(resolved.warnings, ["from the packager"]);
    }
    assert!(resolved.iter().all(|resolved| resolved.lookup == Lookup::Built));
    scene.request("later", 21, environment(&["x", "numpy==1"])).await;
    assert_eq!(scene.resolved("later").await.lookup, Lookup::Cached);
    assert_eq!(scene.begun(), 1);
}

#[tokio::test]
async fn different_environments_are_built_beside_each_other_up_to_the_limit() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    scene.limits.concurrent_builds = 2;
    let builders = [scene.builder().await];
    for n in 0..4 {
        scene.request(&format!("service-{n}"), n + 1, environment(&[&format!("x=={n}")])).await;
    }
    scene.waiting(&builders, 4).await;
    scene.building(2).await;
    for n in 1..=4 {
        scene.world.gate.notify_one();
        until("a build ended", LONG, async || (scene.world.there.lock().unwrap().len() >= n).then_some(())).await;
    }
    for n in 0..4 {
        scene.resolved(&format!("service-{n}")).await;
    }
    assert_eq!(scene.world.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_builder_that_is_killed_in_the_middle_is_replaced() {
    let scene = Scene::new(World { gated: true, ..World::default() }).await;
    let first = scene.builder().await;
    for n in 0..5 {
        scene.request(&format!("service-{n}"), n + 1, environment(&["x"])).await;
    }
    scene.building(1).await;
    let _second = scene.builder().await;
    first.kill();
    until("another build is begun", LONG, async || (scene.begun() == 2).then_some(())).await;
    scene.building(1).await;
    scene.world.gate.notify_one();
    for n in 0..5 {
        scene.resolved(&format!("service-{n}")).await;
    }
    assert_eq!(scene.begun(), 2);
}

#[tokio::test]
async fn a_builder_that_is_stopped_gives_its_work_back_at_once() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    // Nobody could wait until this lease lapses.
    scene.limits.lease = LONG * 100;
    let mut first = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    first.stop().await;
    assert_eq!(scene.record(&environment(&["x"])).await, None);
    let _second = scene.builder().await;
    until("another build is begun", LONG, async || (scene.begun() == 2).then_some(())).await;
    scene.world.gate.notify_one();
    scene.resolved("service").await;
}

#[tokio::test]
async fn a_lease_is_kept_as_long_as_a_build_takes() {
    let scene = Scene::new(World { gated: true, ..World::default() }).await;
    let _builders = [scene.builder().await, scene.builder().await];
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    let lease = async || match scene.record(&environment(&["x"])).await {
        Some(EnvironmentRecord::Building { lease_until_ms, .. }) => lease_until_ms,
        other => panic!("{other:?}"),
    };
    let (first, length) = (lease().await, scene.limits.lease.as_millis() as u64);
    until("the lease was pushed on beyond its first end", LONG, async || {
        (lease().await > first + length).then_some(())
    })
    .await;
    assert_eq!(scene.begun(), 1);
    scene.world.gate.notify_one();
    scene.resolved("service").await;
}

#[tokio::test]
async fn a_builder_whose_lease_was_taken_stops_its_build() {
    let scene = Scene::new(World { gated: true, ..World::default() }).await;
    let builder = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    let hash = builder::identity::hash(&environment(&["x"])).unwrap();
    let image = Image::VirtualEnvironment { path: "/made/by/another".to_owned(), python: "3.11.7".to_owned() };
    scene.world.there.lock().unwrap().push(image.clone());
    let record = EnvironmentRecord::Ready { image: image.clone(), built: String::new(), took_ms: 1, scan: None };
    scene.bucket.put(hash.as_str(), &record).await.unwrap();
    assert_eq!(scene.resolved("service").await.image, image);
    scene.building(0).await;
    assert_eq!(scene.record(&environment(&["x"])).await, Some(record));
    let metrics = builder.rt.metrics.encode();
    assert!(metrics.contains("kaai_builder_lost_leases_total 1"), "{metrics}");
}

#[tokio::test]
async fn the_end_of_a_build_does_not_count_once_another_has_taken_over() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    // No sign of life is due before the build ends: only its end meets the other's record.
    scene.limits.lease = LONG * 100;
    let _builder = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    let hash = builder::identity::hash(&environment(&["x"])).unwrap();
    let image = Image::VirtualEnvironment { path: "/made/by/another".to_owned(), python: "3.11.7".to_owned() };
    scene.world.there.lock().unwrap().push(image.clone());
    let record = EnvironmentRecord::Ready { image: image.clone(), built: String::new(), took_ms: 1, scan: None };
    scene.bucket.put(hash.as_str(), &record).await.unwrap();
    scene.world.gate.notify_one();
    assert_eq!(scene.resolved("service").await.image, image);
    assert_eq!(scene.record(&environment(&["x"])).await, Some(record));
}

#[tokio::test]
async fn a_build_goes_on_while_the_bus_is_away() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    let _builder = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    scene.nats.kill();
    scene.world.gate.notify_one();
    until("the build is done", LONG, async || (!scene.world.there.lock().unwrap().is_empty()).then_some(())).await;
    scene.nats.resume().await;
    scene.resolved("service").await;
    assert_eq!(scene.begun(), 1);
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_wait_and_remembered_until_it_expires() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    scene.limits.remember_project = LONG * 100;
    let builders = [scene.builder().await, scene.builder().await];
    *scene.world.failure.lock().unwrap() = Some(failure(Blame::Project));
    for n in 0..6 {
        scene.request(&format!("service-{n}"), n + 1, environment(&["x"])).await;
    }
    scene.waiting(&builders, 6).await;
    scene.building(1).await;
    scene.world.gate.notify_one();
    for n in 0..6 {
        let failed = scene.failed(&format!("service-{n}")).await;
        assert_eq!(failed.generation.0, n + 1);
        assert!(!failed.failure.cause.contains("remembered"), "{}", failed.failure.cause);
        assert!(failed.failure.log.unwrap().starts_with("kaai env log "));
        assert_eq!(failed.warnings, ["from the packager"]);
    }
    scene.request("later", 7, environment(&["x"])).await;
    let failed = scene.failed("later").await.failure;
    assert!(failed.cause.ends_with("(remembered from an earlier build)"), "{}", failed.cause);
    assert_eq!(scene.begun(), 1);
    // Its time is over: the record says so to everybody.
    let hash = builder::identity::hash(&environment(&["x"])).unwrap();
    let expired = EnvironmentRecord::Failed { failure: failure(Blame::Project), expires_ms: 1 };
    scene.bucket.put(hash.as_str(), &expired).await.unwrap();
    *scene.world.failure.lock().unwrap() = None;
    scene.request("again", 8, environment(&["x"])).await;
    scene.building(1).await;
    scene.world.gate.notify_one();
    scene.resolved("again").await;
    assert_eq!(scene.begun(), 2);
}

#[tokio::test]
async fn a_failure_that_is_forgotten_on_request_is_built_again_at_once() {
    let mut scene = Scene::new(World { gated: true, ..World::default() }).await;
    scene.limits.remember_project = LONG * 100;
    let _builder = scene.builder().await;
    *scene.world.failure.lock().unwrap() = Some(failure(Blame::Project));
    let ask = async |environment: &str| {
        let query = ForgetFailure { environment: environment.to_owned() };
        scene.rt.bus.ask(&Workspace::default(), &query, LONG).await
    };
    let refused = async |environment: &str| match ask(environment).await {
        Err(AskError::Refused(refusal)) => refusal.kind,
        other => panic!("{other:?}"),
    };
    let hash = builder::identity::hash(&environment(&["x"])).unwrap();
    assert_eq!(refused(hash.as_str()).await, "not-found");
    scene.request("service", 1, environment(&["x"])).await;
    scene.building(1).await;
    assert_eq!(refused(hash.as_str()).await, "conflict", "it is being built");
    scene.world.gate.notify_one();
    scene.failed("service").await;
    assert_eq!(ask(hash.short()).await.unwrap(), hash);
    *scene.world.failure.lock().unwrap() = None;
    scene.request("again", 2, environment(&["x"])).await;
    scene.building(1).await;
    scene.world.gate.notify_one();
    scene.resolved("again").await;
    assert_eq!(scene.begun(), 2);
    assert_eq!(refused(hash.as_str()).await, "conflict", "it is there");
}

#[tokio::test]
async fn what_is_not_the_projects_fault_is_forgotten_soon() {
    let mut scene = Scene::new(World::default()).await;
    scene.limits.remember_project = LONG * 100;
    scene.limits.remember_platform = std::time::Duration::ZERO;
    let _builder = scene.builder().await;
    *scene.world.failure.lock().unwrap() = Some(failure(Blame::Platform));
    scene.request("service", 1, environment(&["x"])).await;
    scene.failed("service").await;
    *scene.world.failure.lock().unwrap() = None;
    scene.request("later", 2, environment(&["x"])).await;
    scene.resolved("later").await;
    assert_eq!(scene.begun(), 2);
}

#[tokio::test]
async fn an_environment_that_is_gone_is_built_again() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    let first = scene.resolved("service").await;
    scene.world.there.lock().unwrap().clear();
    scene.request("later", 2, environment(&["x"])).await;
    let later = scene.resolved("later").await;
    assert_ne!(later.image, first.image);
    assert_eq!((scene.begun(), later.lookup), (2, Lookup::Built));
}

#[tokio::test]
async fn an_environment_that_nobody_remembers_is_found_again() {
    let scene = Scene::new(World::default()).await;
    let _builder = scene.builder().await;
    scene.request("service", 1, environment(&["x"])).await;
    let first = scene.resolved("service").await;
    scene.bucket.delete(first.environment.as_str()).await.unwrap();
    scene.request("later", 2, environment(&["x"])).await;
    let later = scene.resolved("later").await;
    assert_eq!((later.image, later.lookup), (first.image, Lookup::Cached));
    assert_eq!(scene.begun(), 1);
}

#[tokio::test]
async fn everyone_who_waits_hears_the_lines_of_the_build_whoever_builds() {
    let scene = Scene::new(World { gated: true, ..World::default() }).await;
    let _builders = [scene.builder().await, scene.builder().await];
    let mut progress = scene.rt.bus.listen::<DeploymentProgressed>().await.unwrap();
    let services: Vec<String> = (0..6).map(|n| format!("service-{n}")).collect();
    for (n, service) in services.iter().enumerate() {
        scene.request(service, n as u64 + 1, environment(&["x"])).await;
    }
    let mut waiting: std::collections::BTreeSet<_> = services.iter().cloned().collect();
    let hear = async {
        while !waiting.is_empty() {
            let (_, service, news) = progress.next().await.unwrap();
            assert!(!news.log.iter().any(|line| line.contains("hunter2")), "{:?}", news.log);
            if news.log.iter().any(|line| line.contains("thing==1 from https://***@host/simple")) {
                waiting.remove(service.as_str());
            }
        }
    };
    tokio::time::timeout(LONG, hear).await.unwrap_or_else(|_| panic!("nothing was heard"));
    scene.world.gate.notify_one();
    for service in &services {
        scene.resolved(service).await;
        assert!(scene.said::<DeploymentFailed>(service).await.is_empty());
    }
}
