//! What is done about a decision: written, said, started, stopped, settled. Everything that takes time is a task of its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    builder::ImageResolved,
    deployer::{Announcement, DeploymentProgressed, Route, ServiceRecord, StartParts},
    envelope::Envelope,
    event::Event,
    failure::{Failure, Stage},
    id::{Generation, ReplicaId},
    subject,
};
use runtime::{
    Runtime,
    backoff::Backoff,
    bus::{self, Bucket, Bus, Delivery},
    clock,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Key, Options,
    inbox::News,
    questions::Rekeying,
    read::{Unread, read},
};
use crate::{
    backend::{Backend, Observed, Status},
    decide::{Action, Input, KeyOffer, Resolved, Token, When},
    keys::Keyring,
    metrics::Metrics,
};

/// How long nothing is tried again after something that can never be done.
const HOPELESS: Duration = Duration::from_secs(5);
/// How many messages that were handed back are remembered.
const HANDED_BACK: usize = 10_000;

/// Something that is settled when its effect is stored.
pub(super) enum Pending {
    Delivery(Box<Delivery>),
    Rekeying(Box<Rekeying>),
}

/// All that the loop acts with.
pub(super) struct Shell<B> {
    pub(super) backend: Arc<B>,
    pub(super) keyring: Keyring,
    pub(super) rt: Runtime,
    pub(super) metrics: Metrics,
    services: Bucket<ServiceRecord>,
    routes: Bucket<Route>,
    inbox: UnboundedSender<News>,
    progress: UnboundedSender<(Bus, Key, DeploymentProgressed)>,
    grace: Duration,
    pending: HashMap<Token, Pending>,
    next_token: u64,
    /// How often each message was handed back, by its place in the stream.
    handed_back: BTreeMap<u64, u64>,
}

/// What the bucket holds, as news.
pub(super) fn recorded(record: Option<ServiceRecord>, revision: Option<u64>) -> Input {
    let written: Option<Timestamp> = record.as_ref().and_then(|record| record.updated.parse().ok());
    let now = i64::try_from(clock::now_ms()).unwrap_or(i64::MAX);
    let age = written.map_or(0, |written| now.saturating_sub(written.as_millisecond()));
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    Input::Recorded { record: record.map(Box::new), revision: revision.unwrap_or(0), age }
}

impl<B: Backend> Shell<B> {
    pub(super) fn new(
        backend: Arc<B>,
        options: Options,
        rt: Runtime,
        (services, routes): (Bucket<ServiceRecord>, Bucket<Route>),
        inbox: UnboundedSender<News>,
    ) -> Self {
        // In order: what is told of a start would make no sense in another.
        let (progress, mut told) = tokio::sync::mpsc::unbounded_channel::<(Bus, Key, DeploymentProgressed)>();
        rt.tasks.spawn(async move {
            while let Some((bus, (workspace, service), event)) = told.recv().await {
                bus.tell(&workspace, &service, &event).await;
            }
        });
        Self {
            backend,
            keyring: options.keyring,
            metrics: Metrics::new(&rt.metrics, options.limits_enforced),
            rt,
            services,
            routes,
            inbox,
            progress,
            grace: options.grace,
            pending: HashMap::new(),
            next_token: 0,
            handed_back: BTreeMap::new(),
        }
    }

    /// Keeps something until its effect is stored.
    pub(super) fn pend(&mut self, pending: Pending) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, pending);
        token
    }

    /// Reads a message; one that cannot be read goes to the dead letters. Returns it as news, and the generation it asks for.
    pub(super) fn accept(&mut self, delivery: Delivery) -> Option<(Input, Option<(Generation, Envelope)>)> {
        let handed_back = self.handed_back.get(&delivery.sequence).copied().unwrap_or(0);
        let when = When { at: clock::now_rfc3339(), first: delivery.attempt <= handed_back + 1 };
        let (sequence, envelope) = (delivery.sequence, delivery.envelope.clone());
        let (event, generation) = match read(&delivery) {
            Ok(read) => read,
            Err(reason) => {
                self.rt.tasks.spawn(async move { delivery.reject(reason).await });
                return None;
            }
        };
        let token = self.pend(Pending::Delivery(Box::new(delivery)));
        let input = match event {
            Unread::Resolved(event) => {
                let keys = self.offer(&event);
                Input::Resolved(token, Box::new(Resolved { event: *event, keys, when }))
            }
            Unread::Failed(event) => Input::Failed(token, event, when),
            Unread::Scale(event) => Input::Scale(token, event, sequence),
            Unread::Delete => Input::Delete(token, Generation(sequence), when),
        };
        Some((input, generation.map(|generation| (generation, envelope))))
    }

    fn offer(&self, event: &ImageResolved) -> KeyOffer {
        let ring = match &event.sealed_keys {
            Some(sealed) => self.keyring.accept(sealed).map(KeyOffer::Given),
            None => self.keyring.generate().map(KeyOffer::Fresh),
        };
        ring.unwrap_or_else(|error| {
            let remedy = "deploy again, which encrypts them to this deployer";
            KeyOffer::Unreadable(Failure::project(Stage::Starting, error.to_string(), remedy))
        })
    }

    /// Does what was decided about a service.
    pub(super) async fn perform(&mut self, key: &Key, causes: &BTreeMap<Generation, Envelope>, action: Action) {
        match action {
            Action::Store(record, revision) => self.store(key, *record, revision),
            Action::Load => self.load(key),
            Action::Ack(token) => self.settle(token, Settle::Ack),
            Action::Retry(token, after) => self.settle(token, Settle::Retry(after)),
            Action::Reject(token, reason) => self.settle(token, Settle::Reject(reason)),
            Action::Route(route) => self.route(key, route.map(|route| *route)),
            Action::Say(announcement) => self.say(key, causes, announcement),
            Action::Tell(progress) => {
                let bus = self.following(causes, progress.generation);
                // The reader lives as long as this sender.
                let _ = self.progress.send((bus, key.clone(), progress));
            }
            Action::Start(order) => {
                self.metrics.started();
                tracing::info!(replica = %order.replica, generation = %order.release.generation, "starting a replica");
                self.backend.start(*order).await;
            }
            Action::Stop(replica) => self.stop(key, replica),
            Action::Purge(revision) => self.purge(key, revision),
        }
    }

    fn following(&self, causes: &BTreeMap<Generation, Envelope>, generation: Generation) -> Bus {
        causes.get(&generation).map_or_else(|| self.rt.bus.clone(), |cause| self.rt.bus.following(cause))
    }

    /// Runs a task whose outcome is news for a service.
    fn job(&self, key: &Key, work: impl Future<Output = Option<Input>> + Send + 'static) {
        let (key, inbox) = (key.clone(), self.inbox.clone());
        self.rt.tasks.spawn(async move {
            if let Some(done) = work.await {
                // The loop has ended; the next start begins from what is stored.
                let _ = inbox.send(News::Done(key, Box::new(done)));
            }
        });
    }

    fn store(&self, key: &Key, mut record: ServiceRecord, revision: u64) {
        let (bucket, rt, name) = (self.services.clone(), self.rt.clone(), subject::service_key(&key.0, &key.1));
        record.updated = clock::now_rfc3339();
        self.job(key, async move {
            let write = || async {
                match revision {
                    0 => bucket.create(&name, &record).await,
                    revision => bucket.update(&name, &record, revision).await,
                }
            };
            match patiently(&rt, write).await? {
                Ok(revision) => Some(Input::Stored(revision)),
                Err(bus::Error::Conflict(_)) => Some(Input::Conflicted),
                Err(error) => {
                    tracing::error!(%error, "the record of a service cannot be written");
                    tokio::time::sleep(HOPELESS).await;
                    Some(Input::Refused(error.to_string()))
                }
            }
        });
    }

    fn load(&self, key: &Key) {
        let (bucket, rt, name) = (self.services.clone(), self.rt.clone(), subject::service_key(&key.0, &key.1));
        self.job(key, async move {
            loop {
                match patiently(&rt, || bucket.get(&name)).await? {
                    Ok(entry) => {
                        let (record, revision) = entry.map(|entry| (entry.value, entry.revision)).unzip();
                        return Some(recorded(record, revision));
                    }
                    Err(error) => {
                        tracing::error!(%error, "the record of a service cannot be read; nothing is done about it");
                        tokio::time::sleep(HOPELESS).await;
                    }
                }
            }
        });
    }

    fn route(&self, key: &Key, route: Option<Route>) {
        let (bucket, rt, name) = (self.routes.clone(), self.rt.clone(), subject::service_key(&key.0, &key.1));
        self.job(key, async move {
            loop {
                let write = || async {
                    match &route {
                        Some(route) => bucket.put(&name, route).await,
                        None => bucket.delete(&name).await.map(|()| 0),
                    }
                };
                match patiently(&rt, write).await? {
                    Ok(revision) => return Some(Input::Routed(revision)),
                    Err(error) => {
                        tracing::error!(%error, "the route of a service cannot be written");
                        tokio::time::sleep(HOPELESS).await;
                    }
                }
            }
        });
    }

    fn say(&self, key: &Key, causes: &BTreeMap<Generation, Envelope>, announcement: Announcement) {
        let (generation, outcome) = match &announcement {
            Announcement::Ready(event) => (event.generation, "ready"),
            Announcement::Failed(event) => (event.generation, "failed"),
            Announcement::Deleted(event) => (event.generation, "deleted"),
        };
        self.metrics.ended(outcome);
        tracing::info!(service = %key.1, workspace = %key.0, %generation, outcome, "a generation has come to its end");
        let (bus, rt, to) = (self.following(causes, generation), self.rt.clone(), key.clone());
        self.job(key, async move {
            let say = || async {
                match &announcement {
                    Announcement::Ready(event) => say(&bus, &to, generation, event).await,
                    Announcement::Failed(event) => say(&bus, &to, generation, event).await,
                    Announcement::Deleted(event) => say(&bus, &to, generation, event).await,
                }
            };
            if let Err(error) = patiently(&rt, say).await? {
                // It can never be said; whoever waits finds the same in the record.
                tracing::error!(%error, "an event cannot be said");
            }
            Some(Input::Said(announcement))
        });
    }

    fn stop(&self, key: &Key, replica: ReplicaId) {
        let (backend, grace) = (self.backend.clone(), self.grace);
        let (workspace, service) = key.clone();
        self.job(key, async move {
            backend.stop(&replica, grace).await;
            tracing::info!(%replica, "a replica is gone");
            // The backend tells this too, unless it never knew the replica.
            Some(Input::Observed(Box::new(Observed {
                replica,
                workspace,
                service,
                generation: Generation(0),
                status: Status::Gone,
                address: None,
                start: StartParts::default(),
                unlimited: None,
            })))
        });
    }

    fn purge(&self, key: &Key, revision: u64) {
        let (bucket, backend, of) = (self.services.clone(), self.backend.clone(), key.clone());
        self.job(key, async move {
            let purged = bucket.delete_at(&subject::service_key(&of.0, &of.1), revision).await.is_ok();
            if purged {
                backend.forget(&of.0, &of.1).await;
            }
            Some(Input::Purged(purged))
        });
    }

    fn settle(&mut self, token: Token, how: Settle) {
        match self.pending.remove(&token) {
            None => {}
            Some(Pending::Rekeying(rekeying)) => {
                self.rt.tasks.spawn(rekeying.settle(matches!(how, Settle::Ack)));
            }
            Some(Pending::Delivery(delivery)) => {
                if let Settle::Retry(_) = how {
                    *self.handed_back.entry(delivery.sequence).or_default() += 1;
                    while self.handed_back.len() > HANDED_BACK {
                        self.handed_back.pop_first();
                    }
                }
                self.rt.tasks.spawn(async move {
                    match how {
                        Settle::Ack => delivery.ack().await,
                        Settle::Retry(after) => delivery.retry(after).await,
                        Settle::Reject(reason) => delivery.reject(reason).await,
                    }
                });
            }
        }
    }
}

enum Settle {
    Ack,
    Retry(Duration),
    Reject(String),
}

async fn say<E: Event>(
    bus: &Bus,
    (workspace, service): &Key,
    generation: Generation,
    event: &E,
) -> Result<u64, bus::Error> {
    // Said again after a crash it has the same name, and is kept once.
    bus.say(workspace, service, &format!("{}/{workspace}/{service}/{generation}", E::TYPE), event).await
}

/// Tries until the bus is there; `None` when shutdown has begun.
async fn patiently<T, F>(rt: &Runtime, attempt: impl Fn() -> F) -> Option<Result<T, bus::Error>>
where
    F: Future<Output = Result<T, bus::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match attempt().await {
            Err(error) if error.may_pass() => error,
            done => return Some(done),
        };
        tracing::debug!(%error, "trying again");
        tokio::select! {
            () = rt.shutdown.cancelled() => return None,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}
