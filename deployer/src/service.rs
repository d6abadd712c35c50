//! The loop: news come in, [`crate::decide`] says what to do, and it is done. It decides nothing itself.

mod inbox;
mod logs;
mod questions;
mod read;
mod shell;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use proto::{
    deployer::{Route, ServiceRecord},
    envelope::Envelope,
    id::{Generation, ReplicaId, ServiceName, Workspace},
    subject,
};
use runtime::{
    Runtime,
    bus::{Bucket, Change, Entry},
};
use tokio::{sync::mpsc, time::Instant};

use self::{inbox::News, shell::Shell};
use crate::{
    Error, OnStop,
    backend::{Backend, Observed, Status},
    decide::{Input, Service},
    keys::Keyring,
};

/// Names a service.
pub type Key = (Workspace, ServiceName);

/// How many messages that caused a generation are remembered of each service, for the traces of what follows.
const CAUSES: usize = 4;

/// What the loop is given besides its backend.
pub struct Options {
    /// The deployer's own key.
    pub keyring: Keyring,
    /// What becomes of the replicas at the end.
    pub on_stop: OnStop,
    /// How long a replica may take to finish what it has in hand.
    pub grace: Duration,
    /// Whether limits hold in this place, for the metrics.
    pub limits_enforced: bool,
}

/// One service and what the loop keeps with it.
struct Kept {
    service: Service,
    /// The messages that asked for its newest generations.
    causes: BTreeMap<Generation, Envelope>,
    /// When it is to be looked at without any news.
    wake: Option<Instant>,
}

/// Runs the loop on a backend until shutdown.
///
/// # Errors
///
/// Fails at the start, when the bus cannot be used or holds what this version cannot read.
pub async fn run<B: Backend>(backend: B, options: Options, rt: Runtime) -> Result<(), Error> {
    let backend = Arc::new(backend);
    let (on_stop, grace) = (options.on_stop, options.grace);
    let worked = work(backend.clone(), options, &rt).await;
    rt.health.ready(false);
    match (&worked, on_stop) {
        (Ok(()), OnStop::End) => backend.end(grace).await,
        // One that could not begin does not know which replicas are wanted.
        _ => backend.leave(),
    }
    // What failed because the end had come is no failure.
    if rt.shutdown.is_cancelled() { Ok(()) } else { worked }
}

async fn work<B: Backend>(backend: Arc<B>, options: Options, rt: &Runtime) -> Result<(), Error> {
    let services = rt.bus.bucket::<ServiceRecord>(subject::SERVICES).await?;
    let routes = rt.bus.bucket::<Route>(subject::ROUTES).await?;
    publish_key(&options.keyring, rt).await?;
    let Some(records) = load(&services, subject::SERVICES).await? else { return Ok(()) };
    let Some(routed) = load(&routes, subject::ROUTES).await? else { return Ok(()) };
    let (inbox, mut news) = mpsc::unbounded_channel();
    let changes = backend.changes();
    let mut fleet = Fleet {
        services: HashMap::new(),
        wakes: BTreeSet::new(),
        shell: Shell::new(backend.clone(), options, rt.clone(), (services, routes), inbox.clone()),
    };
    fleet.begin(records, routed, backend.list().await).await;
    inbox::open(rt, &inbox, changes).await?;
    rt.health.ready(true);
    loop {
        let next = fleet.next_wake();
        tokio::select! {
            biased;
            () = rt.shutdown.cancelled() => return Ok(()),
            Some(news) = news.recv() => fleet.hear(news).await,
            () = tokio::time::sleep_until(next) => fleet.tick().await,
        }
    }
}

/// Publishes the key that users encrypt their keys to.
async fn publish_key(keyring: &Keyring, rt: &Runtime) -> Result<(), Error> {
    let facts = rt.bus.bucket::<String>(subject::FACTS).await?;
    let key = keyring.public_key();
    let known = facts.get(subject::DEPLOYER_KEY).await?;
    if known.is_none_or(|known| known.value != key) {
        facts.put(subject::DEPLOYER_KEY, &key).await?;
    }
    Ok(())
}

/// All entries of a bucket; `None` when shutdown has begun.
async fn load<T>(bucket: &Bucket<T>, name: &'static str) -> Result<Option<HashMap<Key, Entry<T>>>, Error>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut entries = HashMap::new();
    let mut watch = bucket.watch();
    loop {
        match watch.next().await {
            None => return Ok(None),
            Some(Change::Synced) => break,
            Some(Change::Gone { .. }) => {}
            Some(Change::Put { key, value, revision }) => {
                if let Some(key) = subject::parse_service_key(&key) {
                    entries.insert(key, Entry { value, revision });
                }
            }
        }
    }
    let read = |key: &String| subject::parse_service_key(key).is_some_and(|key| entries.contains_key(&key));
    match bucket.keys().await?.into_iter().find(|key| !read(key)) {
        Some(key) => Err(Error::Unreadable { bucket: name, key }),
        None => Ok(Some(entries)),
    }
}

/// All services, and when each is to be looked at.
struct Fleet<B> {
    services: HashMap<Key, Kept>,
    wakes: BTreeSet<(Instant, Key)>,
    shell: Shell<B>,
}

impl<B: Backend> Fleet<B> {
    /// Tells each service what there is of it: its record, its route, its replicas.
    async fn begin(
        &mut self,
        mut records: HashMap<Key, Entry<ServiceRecord>>,
        mut routes: HashMap<Key, Entry<Route>>,
        replicas: Vec<Observed>,
    ) {
        let mut running: HashMap<Key, Vec<Observed>> = HashMap::new();
        for observed in replicas {
            running.entry((observed.workspace.clone(), observed.service.clone())).or_default().push(observed);
        }
        let keys: BTreeSet<Key> = records.keys().chain(routes.keys()).chain(running.keys()).cloned().collect();
        for key in keys {
            let (record, revision) = records.remove(&key).map(|entry| (entry.value, entry.revision)).unzip();
            let route = routes.remove(&key);
            self.meet(&key, shell::recorded(record, revision), route, running.remove(&key).unwrap_or_default()).await;
            self.forget(&key);
        }
    }

    /// A service that was not known before.
    async fn meet(&mut self, key: &Key, recorded: Input, route: Option<Entry<Route>>, running: Vec<Observed>) {
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let service = Service::new(key.0.clone(), key.1.clone(), seed, Instant::now());
        self.services.insert(key.clone(), Kept { service, causes: BTreeMap::new(), wake: None });
        let (route, revision) = route.map(|entry| (Box::new(entry.value), entry.revision)).unzip();
        self.tell(key, recorded).await;
        self.tell(key, Input::RouteFound { route, revision: revision.unwrap_or(0) }).await;
        let there: Vec<ReplicaId> = running.iter().map(|observed| observed.replica.clone()).collect();
        for observed in running {
            self.tell(key, Input::Observed(Box::new(observed))).await;
        }
        self.tell(key, Input::Inventory(there)).await;
    }

    /// Takes one piece of news.
    async fn hear(&mut self, news: News) {
        match news {
            News::Delivery(delivery) => {
                let key = (delivery.workspace.clone(), delivery.service.clone());
                let Some((input, cause)) = self.shell.accept(*delivery) else { return };
                self.know(&key).await;
                if let (Some((generation, envelope)), Some(kept)) = (cause, self.services.get_mut(&key)) {
                    kept.causes.insert(generation, envelope);
                    while kept.causes.len() > CAUSES {
                        kept.causes.pop_first();
                    }
                }
                self.tell(&key, input).await;
                self.forget(&key);
            }
            News::Observed(observed) => {
                if matches!(observed.status, Status::Exited(_)) {
                    self.shell.metrics.exited();
                }
                let key = (observed.workspace.clone(), observed.service.clone());
                self.tell(&key, Input::Observed(observed)).await;
                self.forget(&key);
            }
            News::Utilization(key, utilization) => self.tell(&key, Input::Utilization(utilization)).await,
            News::Done(key, input) => {
                self.tell(&key, *input).await;
                self.forget(&key);
            }
            News::GetKeys(question) => {
                let key = (question.workspace.clone(), question.query.service.clone());
                let record = self.record(&key).cloned();
                self.shell.get_keys(question, record);
            }
            News::RegenerateKey(question) => {
                let key = (question.workspace.clone(), question.query.service.clone());
                let record = self.record(&key).cloned();
                if let Some(input) = self.shell.regenerate_key(question, record) {
                    self.tell(&key, input).await;
                }
            }
            News::GetLog(question) => {
                let key = (question.workspace.clone(), question.query.service.clone());
                let active = self.record(&key).and_then(|record| record.active.as_ref());
                let serving = active.map(|release| release.generation);
                self.shell.get_log(question, serving);
            }
        }
    }

    fn record(&self, key: &Key) -> Option<&ServiceRecord> {
        self.services.get(key).and_then(|kept| kept.service.record())
    }

    /// Begins to know a service of which there was nothing until now: all that there is of any was read at the start.
    async fn know(&mut self, key: &Key) {
        if !self.services.contains_key(key) {
            self.meet(key, shell::recorded(None, None), None, Vec::new()).await;
        }
    }

    /// Tells a service one piece of news and does what it decides.
    async fn tell(&mut self, key: &Key, input: Input) {
        let Some(kept) = self.services.get_mut(key) else { return };
        let now = Instant::now();
        let actions = kept.service.on(now, input);
        let wake = kept.service.wake(now);
        if wake != kept.wake {
            if let Some(at) = kept.wake {
                self.wakes.remove(&(at, key.clone()));
            }
            self.wakes.extend(wake.map(|at| (at, key.clone())));
            kept.wake = wake;
        }
        self.shell.metrics.replicas(key, kept.service.counts());
        for action in actions {
            self.shell.perform(key, &kept.causes, action).await;
        }
    }

    /// Forgets a service of which nothing is left.
    fn forget(&mut self, key: &Key) {
        let over = self.services.get(key).is_some_and(|kept| kept.service.is_over());
        if let Some(kept) = over.then(|| self.services.remove(key)).flatten() {
            if let Some(at) = kept.wake {
                self.wakes.remove(&(at, key.clone()));
            }
            self.shell.metrics.forget(key);
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        self.wakes.first().map_or(far, |(at, _)| *at)
    }

    /// Looks at each service whose time has come.
    async fn tick(&mut self) {
        let now = Instant::now();
        let due: Vec<Key> = self.wakes.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| key.clone()).collect();
        for key in due {
            self.tell(&key, Input::Tick).await;
        }
    }
}
