//! A bus, builders on it whose maker pretends, and requests.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use builder::{
    build_log::BuildLog,
    config::Limits,
    environment::{Definition, Refused},
    identity,
    maker::{Found, Made, Maker, Planned},
    plan::Plan,
};
use proto::{
    builder::{EnvironmentRecord, Image, ImageResolved, Lookup},
    deployer::DeploymentFailed,
    event::Event,
    failure::{Blame, Failure, Stage},
    id::{EnvironmentHash, Generation, ServiceName, Workspace},
    packager::{Archive, ProjectPackaged, RegistryLogin},
    spec::{CondaSpec, EnvironmentSpec, ServiceSpec},
    subject,
};
use runtime::{
    Runtime,
    bus::Bucket,
    sealing::KeyPair,
    testing::{Nats, until},
};
use tokio::{sync::Notify, task::JoinHandle};

/// How long a test waits for anything.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What all pretending makers of a test share: the world in which environments are.
#[derive(Default)]
pub(crate) struct World {
    /// How many builds were begun.
    pub(crate) begun: AtomicUsize,
    /// How many builds run now.
    pub(crate) running: AtomicUsize,
    /// How many builds ran at the same time at most.
    pub(crate) most: AtomicUsize,
    /// Builds wait here until the test lets them go on.
    pub(crate) gate: Notify,
    /// Whether builds wait at the gate.
    pub(crate) gated: bool,
    /// Why builds fail, if they do.
    pub(crate) failure: Mutex<Option<Failure>>,
    /// What a package cannot have in its line to be built.
    pub(crate) impossible: Option<&'static str>,
    /// The environments that are there.
    pub(crate) there: Mutex<Vec<Image>>,
}

/// A maker that makes nothing.
pub(crate) struct Pretender(pub(crate) Arc<World>);

struct Running<'a>(&'a World);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Maker for Pretender {
    async fn plan(&self, definition: Definition, _: Option<RegistryLogin>) -> Result<Planned, Failure> {
        let plan = Plan::without_images(&definition, false).map_err(Refused::into_failure)?;
        Ok(Planned { hash: identity::hash_of(&definition), plan })
    }

    async fn make(&self, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Made, Failure> {
        let world = &self.0;
        let number = world.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let running = world.running.fetch_add(1, Ordering::SeqCst) + 1;
        let _running = Running(world);
        world.most.fetch_max(running, Ordering::SeqCst);
        log.line("Resolved 3 packages in 1ms");
        log.line("+ thing==1 from https://user:hunter2@host/simple");
        // A real one would wait for something here.
        tokio::task::yield_now().await;
        if world.impossible.is_some_and(|never| format!("{plan:?}").contains(never)) {
            return Err(failure(Blame::Project));
        }
        if world.gated {
            world.gate.notified().await;
        }
        if let Some(failure) = world.failure.lock().unwrap().clone() {
            return Err(failure);
        }
        let image = Image::VirtualEnvironment { path: format!("/made/{hash}/{number}"), python: "3.11.7".to_owned() };
        world.there.lock().unwrap().push(image.clone());
        Ok(Made { image, scan: None })
    }

    async fn is_there(&self, made: &Made) -> Result<bool, Failure> {
        Ok(self.0.there.lock().unwrap().contains(&made.image))
    }

    async fn find(&self, hash: &EnvironmentHash, _: &Plan, _: &BuildLog) -> Result<Found, Failure> {
        let there = self.0.there.lock().unwrap();
        let of_hash =
            |image: &&Image| matches!(image, Image::VirtualEnvironment { path, .. } if path.contains(hash.as_str()));
        let made = there.iter().find(of_hash).map(|image| (Made { image: image.clone(), scan: None }, Lookup::Cached));
        Ok(Found { made, asked: Vec::new() })
    }
}

/// A bus with builders.
pub(crate) struct Scene {
    pub(crate) nats: Nats,
    pub(crate) world: Arc<World>,
    pub(crate) limits: Limits,
    /// The test's own connection.
    pub(crate) rt: Runtime,
    pub(crate) bucket: Bucket<EnvironmentRecord>,
}

/// One builder that runs, on threads of its own.
pub(crate) struct Live {
    pub(crate) rt: Runtime,
    threads: Option<tokio::runtime::Runtime>,
    task: JoinHandle<()>,
}

impl Scene {
    pub(crate) async fn new(world: World) -> Self {
        let nats = Nats::start().await;
        let rt = nats.runtime("test").await;
        let limits = Limits {
            lease: Duration::from_secs(2),
            logs: nats.folder().join("logs"),
            concurrent_builds: 8,
            ..Limits::default()
        };
        let bucket = rt.bus.bucket(subject::ENVIRONMENTS).await.unwrap();
        Self { nats, world: Arc::new(world), limits, rt, bucket }
    }

    /// Starts one more builder.
    pub(crate) async fn builder(&self) -> Live {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (maker, limits, settings) =
            (Pretender(self.world.clone()), self.limits.clone(), self.nats.settings("builder"));
        let connecting =
            threads.spawn(async move { Runtime::new("builder", &settings, Default::default()).await.unwrap() });
        let rt = connecting.await.unwrap();
        let (own, keys) = (rt.clone(), KeyPair::open(&self.nats.folder().join("builder.seed")).unwrap());
        let task = threads.spawn(async move { builder::serve(maker, limits, keys, own).await.unwrap() });
        until("the builder is ready", LONG, async || rt.health.reason().is_none().then_some(())).await;
        Live { rt, threads: Some(threads), task }
    }

    /// Says that a project has been packaged.
    pub(crate) async fn request(&self, service: &str, generation: u64, environment: EnvironmentSpec) {
        self.say(service, packaged(generation, environment)).await;
    }

    pub(crate) async fn say(&self, service: &str, event: ProjectPackaged) {
        let service: ServiceName = service.parse().unwrap();
        let id = format!("test/{service}/{}", event.generation);
        self.rt.bus.say(&Workspace::default(), &service, &id, &event).await.unwrap();
    }

    /// What was said of a service so far, in order, as far as it is such an event.
    pub(crate) async fn said<E: Event>(&self, service: &str) -> Vec<E> {
        let mut history = self.rt.bus.history(&Workspace::default(), 0).await.unwrap();
        let mut said = Vec::new();
        loop {
            let Some(past) = history.next().await else { return said };
            if past.service.as_str() == service && past.event_type == E::TYPE {
                said.push(serde_json::from_slice(&past.body).unwrap());
            }
            if past.pending == 0 {
                return said;
            }
        }
    }

    /// Waits until something was said of a service, and returns the first.
    pub(crate) async fn first<E: Event>(&self, service: &str) -> E {
        until(&format!("{} is said of {service}", E::TYPE), LONG, async || self.said(service).await.into_iter().next())
            .await
    }

    pub(crate) async fn resolved(&self, service: &str) -> ImageResolved {
        self.first(service).await
    }

    pub(crate) async fn failed(&self, service: &str) -> DeploymentFailed {
        self.first(service).await
    }

    /// What is recorded of an environment.
    pub(crate) async fn record(&self, environment: &EnvironmentSpec) -> Option<EnvironmentRecord> {
        let hash = identity::hash(environment).unwrap();
        self.bucket.get(hash.as_str()).await.unwrap().map(|entry| entry.value)
    }

    /// Waits until so many builds run.
    pub(crate) async fn building(&self, number: usize) {
        until("a build runs", LONG, async || (self.world.running.load(Ordering::SeqCst) == number).then_some(())).await;
    }

    /// Waits until so many requests wait in these builders together.
    pub(crate) async fn waiting(&self, builders: &[Live], number: usize) {
        let of_one = |builder: &Live| -> usize {
            let metrics = builder.rt.metrics.encode();
            let line = metrics.lines().find_map(|line| line.strip_prefix("kaai_builder_waiting "));
            line.map_or(0, |number| number.parse().unwrap())
        };
        let all = || builders.iter().map(of_one).sum::<usize>();
        until("all requests wait", LONG, async || (all() == number).then_some(())).await;
    }

    pub(crate) fn begun(&self) -> usize {
        self.world.begun.load(Ordering::SeqCst)
    }
}

impl Live {
    /// Ends the builder without a word, as `kill -9` would: nothing is said any more, nothing is given back.
    pub(crate) fn kill(mut self) {
        self.threads.take().unwrap().shutdown_background();
    }

    /// Stops the builder as SIGTERM would, and waits until it has ended.
    pub(crate) async fn stop(&mut self) {
        self.rt.shutdown.cancel();
        (&mut self.task).await.unwrap();
        self.rt.tasks.wait().await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

pub(crate) fn environment(pip: &[&str]) -> EnvironmentSpec {
    let conda = CondaSpec {
        file: Some("environment.yml".to_owned()),
        dependencies: vec!["python=3.11".to_owned()],
        pip: pip.iter().map(|line| (*line).to_owned()).collect(),
        ..CondaSpec::default()
    };
    EnvironmentSpec { conda, ..EnvironmentSpec::default() }
}

pub(crate) fn packaged(generation: u64, environment: EnvironmentSpec) -> ProjectPackaged {
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    ProjectPackaged {
        generation: Generation(generation),
        archive: Archive { digest, size: 1, files: 1, ignored: 0 },
        spec: ServiceSpec {
            entry_script: "score.py".to_owned(),
            source_directory: None,
            environment,
            models: Vec::new(),
            auth: proto::spec::Auth::default(),
            scaling: proto::spec::Scaling::default(),
            resources: proto::spec::Resources::default(),
            requests: proto::spec::RequestLimits::default(),
            liveness: proto::spec::Liveness::default(),
            collect_model_data: false,
            request_telemetry: false,
            description: None,
            tags: Default::default(),
            properties: Default::default(),
            extra: proto::Extra::new(),
        },
        sealed_keys: None,
        sealed_login: None,
        warnings: vec!["from the packager".to_owned()],
        took_ms: 1,
        extra: proto::Extra::new(),
    }
}

pub(crate) fn failure(blame: Blame) -> Failure {
    Failure { blame, ..Failure::project(Stage::Building, "there is no package x", "check its spelling") }
}
