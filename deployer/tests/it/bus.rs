//! The loop on a real bus, over a place that runs nothing.

use std::time::Duration;

use deployer::{OnStop, fake::FakeBackend, keys::Keyring, service};
use proto::{
    Extra,
    builder::{Image, ImageResolved, Lookup},
    deployer::{DeploymentDelete, DeploymentFailed, DeploymentReady, Route, ServiceRecord, ServiceState},
    event::Event,
    failure::{Blame, Failure, Stage},
    id::{Digest, EnvironmentHash, Generation, ReplicaId, ServiceName, Workspace},
    packager::Archive,
    query::{GetKeys, GetLog, Keys, RegenerateKey, WhichKey},
    router::ServiceUtilization,
    scaler::ScaleRequested,
    spec::{Auth, Scaling, ServiceSpec},
    subject,
};
use runtime::{
    Runtime,
    bus::{AskError, History, Past},
    testing::{Nats, until},
};

const LIMIT: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_secs(10);

/// A bus with a deployer on it, and somebody who watches.
struct Case {
    nats: Nats,
    backend: FakeBackend,
    user: Runtime,
    deployer: Option<(Runtime, tokio::task::JoinHandle<()>)>,
    /// All that has been said, as far as it was read.
    past: tokio::sync::Mutex<(History, Vec<Past>)>,
}

fn service() -> ServiceName {
    "ridge".parse().unwrap()
}

fn ws() -> Workspace {
    Workspace::default()
}

impl Case {
    async fn new() -> Self {
        let nats = Nats::start().await;
        let user = nats.runtime("cli").await;
        let past = tokio::sync::Mutex::new((user.bus.history(&ws(), 0).await.unwrap(), Vec::new()));
        let mut case = Self { nats, backend: FakeBackend::default(), user, deployer: None, past };
        case.start().await;
        case
    }

    async fn start(&mut self) {
        let rt = self.nats.runtime("deployer").await;
        let keyring = Keyring::open(&self.nats.folder().join("deployer.seed")).unwrap();
        let options =
            service::Options { keyring, on_stop: OnStop::Leave, grace: Duration::from_secs(1), limits_enforced: false };
        let running = service::run(self.backend.clone(), options, rt.clone());
        let task = rt.tasks.spawn(async move { running.await.unwrap() });
        self.deployer = Some((rt.clone(), task));
        until("the deployer is ready", LIMIT, async || rt.health.reason().is_none().then_some(())).await;
    }

    /// Ends the loop where it stands, and what it was about to do with it.
    async fn kill(&mut self) {
        let (rt, task) = self.deployer.take().unwrap();
        task.abort();
        rt.shutdown.cancel();
    }

    async fn resolve(&self, id: &str, generation: u64, script: &str, more: impl FnOnce(&mut ImageResolved)) {
        let mut spec: ServiceSpec = serde_json::from_value(serde_json::json!({ "entryScript": script })).unwrap();
        spec.scaling = Scaling::Auto { min_replicas: 1, max_replicas: 4, target_utilization: 70, refresh_seconds: 1 };
        let mut event = ImageResolved {
            generation: Generation(generation),
            archive: Archive { digest: Digest::from_sha256([1; 32]), size: 1, files: 1, ignored: 0 },
            spec,
            sealed_keys: None,
            warnings: Vec::new(),
            environment: EnvironmentHash::from_sha256([0; 32]),
            image: Image::VirtualEnvironment { path: "/env".into(), python: "3.11.7".into() },
            lookup: Lookup::Cached,
            asked: Vec::new(),
            scan: None,
            took_ms: 0,
            extra: Extra::new(),
        };
        more(&mut event);
        self.user.bus.say(&ws(), &service(), id, &event).await.unwrap();
    }

    /// Everything of one kind that has been said.
    async fn said<E: Event>(&self) -> Vec<E> {
        let last = self.user.bus.last_sequence().await.unwrap();
        let (history, past) = &mut *self.past.lock().await;
        while past.last().is_none_or(|past: &Past| past.sequence < last) && last > 0 {
            past.push(history.next().await.unwrap());
        }
        let said = past.iter().filter(|past| past.event_type == E::TYPE);
        said.map(|past| serde_json::from_slice(&past.body).unwrap()).collect()
    }

    async fn ready(&self, generation: u64) -> DeploymentReady {
        until("a generation is ready", LIMIT, async || {
            self.said::<DeploymentReady>().await.into_iter().find(|ready| ready.generation.0 == generation)
        })
        .await
    }

    async fn failed(&self, generation: u64) -> DeploymentFailed {
        until("a generation has failed", LIMIT, async || {
            self.said::<DeploymentFailed>().await.into_iter().find(|failed| failed.generation.0 == generation)
        })
        .await
    }

    async fn record(&self) -> Option<ServiceRecord> {
        let bucket = self.user.bus.bucket(subject::SERVICES).await.unwrap();
        bucket.get(&subject::service_key(&ws(), &service())).await.unwrap().map(|entry| entry.value)
    }

    async fn route(&self) -> Option<(Route, u64)> {
        let bucket = self.user.bus.bucket(subject::ROUTES).await.unwrap();
        let entry = bucket.get(&subject::service_key(&ws(), &service())).await.unwrap();
        entry.map(|entry| (entry.value, entry.revision))
    }

    async fn until_record(&self, what: &str, wanted: impl Fn(&ServiceRecord) -> bool) -> ServiceRecord {
        until(what, LIMIT, async || self.record().await.filter(|record| wanted(record))).await
    }

    async fn until_route(&self, what: &str, wanted: impl Fn(&Route) -> bool) -> (Route, u64) {
        until(what, LIMIT, async || self.route().await.filter(|(route, _)| wanted(route))).await
    }

    async fn scale(&self, replicas: u32) {
        let event = ScaleRequested {
            by: "a person".into(),
            generation: None,
            replicas: Some(replicas),
            scaling: None,
            reason: "a test".into(),
            inputs: None,
            extra: Extra::new(),
        };
        self.user.bus.say(&ws(), &service(), &format!("scale/{replicas}"), &event).await.unwrap();
    }

    /// What a router says that has applied a revision and has these requests in hand.
    async fn utilization(&self, sequence: u64, revision: u64, draining: &[(&ReplicaId, u32)]) {
        let draining = draining.iter().map(|(replica, requests)| ((*replica).clone(), *requests)).collect();
        let router = "router-1".parse().unwrap();
        let event = ServiceUtilization { sequence, revision, draining, ..ServiceUtilization::idle(router) };
        self.user.bus.tell(&ws(), &service(), &event).await;
    }

    async fn running(&self) -> usize {
        use deployer::backend::Backend;
        self.backend.list().await.len()
    }
}

#[tokio::test]
async fn a_generation_that_is_resolved_twice_is_deployed_once() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.resolve("b", 7, "score.py", |_| {}).await;
    let ready = case.ready(7).await;
    assert_eq!((ready.replicas, ready.previous), (1, None));
    assert_eq!(ready.scoring_path, "/api/v1/service/ridge/score");
    case.resolve("c", 7, "score.py", |_| {}).await;
    case.resolve("d", 8, "score.py", |_| {}).await;
    assert_eq!(case.ready(8).await.previous, Some(Generation(7)));
    assert_eq!(case.said::<DeploymentReady>().await.len(), 2);
    assert_eq!(case.backend.started().len(), 2);
    let record = case.until_record("everything is said", |record| record.outbox.is_empty()).await;
    assert_eq!((record.state, record.ready), (ServiceState::Healthy, 1));
}

#[tokio::test]
async fn a_deployer_that_is_killed_in_the_middle_ends_what_it_began() {
    for pause in 0..8 {
        let mut case = Case::new().await;
        case.resolve("a", 7, "score.py", |_| {}).await;
        // Each time a little later on the way.
        for _ in 0..pause {
            tokio::time::timeout(Duration::from_millis(2), std::future::pending::<()>()).await.unwrap_err();
        }
        case.kill().await;
        case.start().await;
        case.ready(7).await;
        case.until_record("everything is said", |record| record.outbox.is_empty()).await;
        assert_eq!(case.said::<DeploymentReady>().await.len(), 1);
        assert_eq!(case.said::<DeploymentFailed>().await.len(), 0);
        let (route, _) = case.until_route("one replica serves", |route| route.replicas.len() == 1).await;
        assert_eq!(route.generation, Generation(7));
        until("nothing else runs", LIMIT, async || (case.running().await == 1).then_some(())).await;
    }
}

#[tokio::test]
async fn a_generation_that_fails_leaves_the_one_before_alone() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
    let (before, revision) = case.route().await.unwrap();
    case.resolve("b", 8, "raises.py", |_| {}).await;
    let failed = case.failed(8).await;
    assert_eq!(failed.failure.cause, "init() of raises.py raised RuntimeError: the weights file is damaged");
    assert_eq!((failed.failure.stage, failed.failure.blame), (Stage::Starting, Blame::Project));
    assert_eq!(failed.serving, Some(Generation(7)));
    assert_eq!(failed.failure.log.as_deref(), Some("kaai logs ridge --generation 8"));
    assert_eq!(case.route().await.unwrap(), (before, revision), "the route was not even written again");
    until("the failed one is gone", LIMIT, async || (case.running().await == 1).then_some(())).await;
    let query = GetLog { service: service(), generation: Some(Generation(8)), replica: None, lines: 10 };
    let log = case.user.bus.ask(&ws(), &query, ASK).await.unwrap();
    assert_eq!(log.lines.last().unwrap(), "RuntimeError: the weights file is damaged");
    let query = GetLog { generation: None, ..query };
    assert_eq!(case.user.bus.ask(&ws(), &query, ASK).await.unwrap().lines.last().unwrap(), "ready");
}

#[tokio::test]
async fn a_failure_of_an_earlier_stage_is_kept_in_the_record() {
    let case = Case::new().await;
    let failure = Failure::project(Stage::Building, "no package named x", "name another");
    let event = DeploymentFailed {
        generation: Generation(5),
        failure,
        serving: None,
        warnings: Vec::new(),
        extra: Extra::new(),
    };
    case.user.bus.say(&ws(), &service(), "f", &event).await.unwrap();
    let record = case.until_record("it is known", |record| record.failure.is_some()).await;
    assert_eq!((record.state, record.latest), (ServiceState::Failed, Generation(5)));
    assert_eq!(case.said::<DeploymentFailed>().await, [event], "it is not said again");
}

#[tokio::test]
async fn a_key_is_replaced_while_the_other_stays_valid() {
    let case = Case::new().await;
    let nobody = case.user.bus.ask(&ws(), &GetKeys { service: service() }, ASK).await;
    assert!(matches!(nobody, Err(AskError::Refused(refusal)) if refusal.kind == "not-found"));
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
    let before: Keys = case.user.bus.ask(&ws(), &GetKeys { service: service() }, ASK).await.unwrap();
    let (route, _) = case.route().await.unwrap();
    let digests = |keys: &Keys| [deployer::keys::digest(&keys.primary), deployer::keys::digest(&keys.secondary)];
    assert_eq!(route.key_digests, digests(&before));

    let query = RegenerateKey { service: service(), which: WhichKey::Secondary, sealed_keys: None };
    let after: Keys = case.user.bus.ask(&ws(), &query, ASK).await.unwrap();
    assert!(after.primary == before.primary && after.secondary != before.secondary);
    let wanted = digests(&after);
    case.until_route("routers know the new key", |route| route.key_digests == wanted).await;

    case.resolve("b", 8, "score.py", |_| {}).await;
    case.ready(8).await;
    let kept: Keys = case.user.bus.ask(&ws(), &GetKeys { service: service() }, ASK).await.unwrap();
    assert!(kept == after, "a deployment without keys keeps those that there are");
    let stored = serde_json::to_string(&case.record().await).unwrap();
    assert!(!stored.contains(&after.primary), "the record has no key in the clear");
}

#[tokio::test]
async fn an_open_service_has_no_keys() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |event| event.spec.auth = Auth::None).await;
    case.ready(7).await;
    assert!(case.route().await.unwrap().0.key_digests.is_empty());
    let refused = case.user.bus.ask(&ws(), &GetKeys { service: service() }, ASK).await;
    assert!(matches!(refused, Err(AskError::Refused(refusal)) if refusal.kind == "invalid"));
}

#[tokio::test]
async fn what_cannot_be_read_goes_to_the_dead_letters_with_its_reason() {
    let case = Case::new().await;
    let client = async_nats::connect(case.nats.address()).await.unwrap();
    let subject = subject::event::<ImageResolved>(&ws(), &service());
    client.publish(subject.clone(), r#"{"generation": "seven"}"#.into()).await.unwrap();
    client.flush().await.unwrap();
    let letters = until("a dead letter", LIMIT, async || {
        let letters = case.user.bus.dead_letters(10).await.unwrap();
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!((letters.len(), &letters[0].subject), (1, &subject));
    assert!(letters[0].reason.contains("the body is no image.resolved"), "{}", letters[0].reason);
    case.resolve("many", 6, "score.py", |event| event.spec.scaling = Scaling::Fixed { replicas: 4_000_000_000 }).await;
    let reason = until("another dead letter", LIMIT, async || {
        case.user
            .bus
            .dead_letters(10)
            .await
            .unwrap()
            .into_iter()
            .map(|letter| letter.reason)
            .find(|it| it.contains("1 to"))
    })
    .await;
    assert_eq!(reason, "scaling.replicas must be from 1 to 10000");
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
}

#[tokio::test]
async fn a_replica_is_stopped_when_the_router_has_emptied_it_and_not_before() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
    let (route, revision) = case.route().await.unwrap();
    let old = route.replicas[0].replica.clone();
    case.utilization(1, revision, &[]).await;
    case.resolve("b", 8, "score.py", |_| {}).await;
    case.ready(8).await;
    let (_, revision) = case.until_route("the switch", |route| route.generation == Generation(8)).await;
    let mut sequence = 2;
    for _ in 0..40 {
        case.utilization(sequence, revision, &[(&old, 1)]).await;
        sequence += 1;
        tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.unwrap_err();
    }
    let (route, _) = case.route().await.unwrap();
    assert!(route.replicas.iter().any(|endpoint| endpoint.replica == old && endpoint.draining), "{route:?}");
    assert_eq!(case.running().await, 2, "a request is in hand");
    until("the old one is gone", LIMIT, async || {
        case.utilization(sequence, revision, &[(&old, 0)]).await;
        sequence += 1;
        (case.running().await == 1).then_some(())
    })
    .await;
    let (route, _) = case.until_route("it has left the route", |route| route.replicas.len() == 1).await;
    assert_ne!(route.replicas[0].replica, old);
}

#[tokio::test]
async fn replicas_follow_a_scale_request_within_the_bounds() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
    case.scale(9).await;
    case.until_route("as many as the maximum", |route| route.replicas.len() == 4).await;
    case.scale(2).await;
    case.until_route("two are left", |route| route.replicas.len() == 2).await;
    assert_eq!(case.until_record("they count", |record| record.ready == 2).await.replicas, 2);
}

#[tokio::test]
async fn a_crashed_replica_is_replaced() {
    let case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.ready(7).await;
    let (route, _) = case.route().await.unwrap();
    let old = route.replicas[0].replica.clone();
    case.backend.crash(&old);
    let elsewhere = |route: &Route| route.replicas.iter().any(|endpoint| endpoint.replica != old);
    case.until_route("another serves", elsewhere).await;
    case.until_record("all is well", |record| record.state == ServiceState::Healthy).await;
}

#[tokio::test]
async fn a_deleted_service_is_gone_and_stays_gone() {
    let mut case = Case::new().await;
    case.resolve("a", 1, "score.py", |_| {}).await;
    case.ready(1).await;
    let sequence = case.user.bus.say(&ws(), &service(), "delete", &DeploymentDelete::default()).await.unwrap();
    until("it is said", LIMIT, async || {
        let said = case.said::<proto::deployer::DeploymentDeleted>().await;
        said.iter().any(|deleted| deleted.generation.0 == sequence).then_some(())
    })
    .await;
    assert!(case.route().await.is_none() && case.running().await == 0);
    case.until_record("a tombstone is left", ServiceRecord::gone).await;
    case.resolve("late", sequence - 1, "score.py", |_| {}).await;
    case.failed(sequence - 1).await;
    case.kill().await;
    case.start().await;
    case.resolve("new", sequence + 1, "score.py", |_| {}).await;
    case.ready(sequence + 1).await;
    assert_eq!(case.running().await, 1);
}

#[tokio::test]
async fn a_bus_that_was_away_in_the_middle_only_takes_time() {
    let mut case = Case::new().await;
    case.resolve("a", 7, "score.py", |_| {}).await;
    case.nats.kill();
    let (rt, _) = case.deployer.as_ref().unwrap();
    until("the deployer has lost the bus", LIMIT, async || (!rt.bus.is_connected()).then_some(())).await;
    case.nats.resume().await;
    case.ready(7).await;
    assert_eq!(case.said::<DeploymentReady>().await.len(), 1);
    case.until_route("it is routed", |route| route.replicas.len() == 1).await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_deployer_and_not_the_service() {
    let mut case = Case::new().await;
    case.kill().await;
    let bucket = case.user.bus.bucket::<serde_json::Value>(subject::SERVICES).await.unwrap();
    bucket.put("default.other", &serde_json::json!({ "from": "the future" })).await.unwrap();
    let rt = case.nats.runtime("deployer").await;
    let keyring = Keyring::open(&case.nats.folder().join("deployer.seed")).unwrap();
    let options = service::Options { keyring, on_stop: OnStop::End, grace: Duration::ZERO, limits_enforced: false };
    let error = service::run(case.backend.clone(), options, rt).await.unwrap_err();
    assert!(
        error.to_string().contains("the entry default.other of the bucket kaai_services cannot be read"),
        "{error}"
    );
}

#[tokio::test]
async fn the_public_key_is_published_for_those_who_seal() {
    let case = Case::new().await;
    let facts = case.user.bus.bucket::<String>(subject::FACTS).await.unwrap();
    let key = facts.get(subject::DEPLOYER_KEY).await.unwrap().unwrap().value;
    assert!(key.starts_with('X') && key.len() == 56, "{key}");
}
