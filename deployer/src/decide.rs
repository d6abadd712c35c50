//! What is done about one service: a state machine without clock, I/O, randomness or logging.
//!
//! [`Service::on`] takes one piece of news and returns what to do about it. Three truths are kept apart: what the bucket holds (`stored`),
//! what it should hold (`record`), and what runs (`replicas`, the route that was written). Events and observations change `record`;
//! nothing is started, stopped or routed for a decision before it is stored. So whatever is cut short begins again from the bucket,
//! and a message is settled only when its effect is in there.
//!
//! It does not know what a replica is made of, how a message is carried, or what a key looks like.

mod effects;
mod intent;
mod judge;
mod progress;
mod replica;
mod restarts;
mod route;
mod routers;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::{collections::BTreeMap, time::Duration};

use proto::{
    builder::ImageResolved,
    deployer::{Announcement, DeploymentFailed, DeploymentProgressed, KeyRing, Release, Route, ServiceRecord},
    failure::Failure,
    id::{Generation, ReplicaId, ServiceName, Workspace},
    router::ServiceUtilization,
    scaler::ScaleRequested,
};
use tokio::time::Instant;

use self::{replica::Replica, restarts::Restarts, route::Routed, routers::Routers};
use crate::backend::{Observed, Order};

/// For how long the entry of a deleted service keeps late events from bringing it back: as long as the stream keeps events.
pub const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a message waits that came while the record was being read again.
const REREAD: Duration = Duration::from_millis(100);

/// Names a message or question that is to be settled; the shell knows which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// News about one service.
#[derive(Debug, Clone)]
pub enum Input {
    /// What the bucket holds: told at the start, and after each [`Action::Load`].
    Recorded {
        /// The record; none when there is no entry.
        record: Option<Box<ServiceRecord>>,
        /// Its revision; 0 when there is no entry.
        revision: u64,
        /// How long ago it was written.
        age: Duration,
    },
    /// Which route the bucket holds: told once, at the start.
    RouteFound {
        /// The route; none when there is no entry.
        route: Option<Box<Route>>,
        /// Its revision.
        revision: u64,
    },
    /// Which replicas of the service there are: told after each has been told as [`Input::Observed`]. Any other is gone.
    Inventory(Vec<ReplicaId>),
    /// The last [`Action::Store`] is done; its revision.
    Stored(u64),
    /// The last [`Action::Store`] found that somebody else has changed the record.
    Conflicted,
    /// The last [`Action::Store`] can never be done, and why.
    Refused(String),
    /// The last [`Action::Route`] is done; the entry's revision.
    Routed(u64),
    /// An event has been said and is kept.
    Said(Announcement),
    /// Whether the last [`Action::Purge`] was done.
    Purged(bool),
    /// How a replica is.
    Observed(Box<Observed>),
    /// What a router says.
    Utilization(Box<ServiceUtilization>),
    /// A generation's environment is there: start it.
    Resolved(Token, Box<Resolved>),
    /// An earlier stage could not go on.
    Failed(Token, Box<DeploymentFailed>, When),
    /// Another number of replicas, or other bounds, are asked for; its stream sequence.
    Scale(Token, Box<ScaleRequested>, u64),
    /// The service should go.
    Delete(Token, Generation, When),
    /// The service gets other keys.
    Rekey(Token, Box<KeyRing>),
    /// Time has passed.
    Tick,
}

/// `image.resolved` and what the shell made of it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The event.
    pub event: ImageResolved,
    /// The keys that came with it, or that the shell made for the case that there are none yet.
    pub keys: KeyOffer,
    /// When it came.
    pub when: When,
}

/// When a message came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// The wall clock (RFC 3339, UTC), for the record.
    pub at: String,
    /// Whether it was handed out for the first time, or only handed back with [`Action::Retry`] before.
    pub first: bool,
}

/// Keys for a service.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyOffer {
    /// The user's own: they replace what there is.
    Given(KeyRing),
    /// New ones, for a service that has none.
    Fresh(KeyRing),
    /// The user's own, but they cannot be read.
    Unreadable(Failure),
}

/// What is to be done. Each may be done again after a crash, and none moves the world backwards.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write the record over this revision (0: there must be no entry); answer with `Stored`, `Conflicted` or `Refused`.
    Store(Box<ServiceRecord>, u64),
    /// Read the record again; answer with `Recorded`.
    Load,
    /// The effect of a message is durable.
    Ack(Token),
    /// Hand a message out again after a while.
    Retry(Token, Duration),
    /// A message can never succeed, and why.
    Reject(Token, String),
    /// Write the route, or end its entry; answer with `Routed`.
    Route(Option<Box<Route>>),
    /// Say an event until it is kept; answer with `Said`.
    Say(Announcement),
    /// Tell whoever watches.
    Tell(DeploymentProgressed),
    /// Start a replica.
    Start(Box<Order>),
    /// Stop a replica; the last observation of it is `Gone`.
    Stop(ReplicaId),
    /// End the entry of a deleted service if it still has this revision; answer with `Purged`.
    Purge(u64),
}

/// One service.
pub struct Service {
    workspace: Workspace,
    name: ServiceName,
    ids: Ids,
    /// What the bucket holds, once it is known.
    stored: Option<ServiceRecord>,
    revision: u64,
    loaded: bool,
    /// What the bucket should hold.
    record: Option<ServiceRecord>,
    writing: Option<Writing>,
    /// Messages whose effect is in `record`, to be settled when the next write is done.
    waiting: Vec<Token>,
    replicas: BTreeMap<ReplicaId, Replica>,
    inventoried: bool,
    route: Routed,
    routers: Routers,
    restarts: BTreeMap<Generation, Restarts>,
    saying: Vec<Announcement>,
    /// What has been said and may still be in the stored outbox.
    said: Vec<Announcement>,
    /// The progress that was told last.
    told: Option<String>,
    gone_since: Option<Instant>,
    purging: bool,
}

struct Writing {
    record: ServiceRecord,
    tokens: Vec<Token>,
}

impl Service {
    /// A service of which nothing is known yet; `seed` makes the names of its replicas unlike those of any other start of the deployer.
    pub fn new(workspace: Workspace, name: ServiceName, seed: u64, now: Instant) -> Self {
        Self {
            workspace,
            name,
            ids: Ids { seed, next: 0 },
            stored: None,
            revision: 0,
            loaded: false,
            record: None,
            writing: None,
            waiting: Vec::new(),
            replicas: BTreeMap::new(),
            inventoried: false,
            route: Routed::default(),
            routers: Routers::since(now),
            restarts: BTreeMap::new(),
            saying: Vec::new(),
            said: Vec::new(),
            told: None,
            gone_since: None,
            purging: false,
        }
    }

    /// What the bucket should hold of the service.
    pub fn record(&self) -> Option<&ServiceRecord> {
        self.record.as_ref()
    }

    /// Whether there is nothing left to know or do about the service.
    pub fn is_over(&self) -> bool {
        self.loaded
            && self.inventoried
            && self.record.is_none()
            && self.stored.is_none()
            && self.writing.is_none()
            && self.waiting.is_empty()
            && self.replicas.is_empty()
            && self.route.is_absent()
    }

    /// How many replicas are preparing or starting, ready, and on their way out.
    pub fn counts(&self) -> (u32, u32, u32) {
        let count =
            |wanted: fn(&Replica) -> bool| self.replicas.values().filter(|replica| wanted(replica)).count() as u32;
        (
            count(|replica| replica.is_live() && !replica.is_ready()),
            count(|replica| replica.is_live() && replica.is_ready()),
            count(|replica| !replica.is_live()),
        )
    }

    /// Takes one piece of news and decides.
    pub fn on(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.learn(now, input, &mut actions);
        if self.is_known() {
            self.judge(now);
            self.act(now, &mut actions);
            self.describe();
        }
        self.keep(now, &mut actions);
        actions
    }

    /// Whether all that there is of the service has been told.
    fn is_known(&self) -> bool {
        self.loaded && self.inventoried && self.route.is_known()
    }

    fn learn(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Recorded { record, revision, age } => {
                self.stored = record.map(|record| *record);
                self.record = self.stored.clone();
                (self.revision, self.loaded) = (revision, true);
                self.forget_said();
                self.gone_since = self.is_gone().then(|| now.checked_sub(age).unwrap_or(now));
            }
            Input::RouteFound { route, revision } => self.route.found(route.map(|route| *route), revision),
            Input::Inventory(there) => {
                self.replicas.retain(|id, replica| !replica.was_observed() || there.contains(id));
                self.inventoried = true;
            }
            Input::Stored(revision) => self.stored(revision, actions),
            Input::Conflicted => self.conflicted(actions),
            Input::Refused(reason) => self.refused(&reason, actions),
            Input::Routed(revision) => self.routed(now, revision, actions),
            Input::Said(announcement) => self.said(announcement),
            Input::Purged(done) => self.purged(now, done),
            Input::Observed(observed) => self.observed(now, *observed, actions),
            Input::Utilization(utilization) => self.routers.heard(now, &utilization),
            Input::Tick => {}
            event => self.take(event, actions),
        }
    }

    fn stored(&mut self, revision: u64, actions: &mut Vec<Action>) {
        let Some(writing) = self.writing.take() else { return };
        self.said.retain(|said| writing.record.outbox.contains(said));
        self.stored = Some(writing.record);
        self.revision = revision;
        actions.extend(writing.tokens.into_iter().map(Action::Ack));
    }

    /// Forgets what was about to be written: the messages come again, and what was observed is judged again on the record as it is.
    fn conflicted(&mut self, actions: &mut Vec<Action>) {
        let written = self.writing.take().map(|writing| writing.tokens).unwrap_or_default();
        let tokens = written.into_iter().chain(self.waiting.drain(..));
        actions.extend(tokens.map(|token| Action::Retry(token, REREAD)));
        self.loaded = false;
        actions.push(Action::Load);
    }

    fn refused(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let written = self.writing.take().map(|writing| writing.tokens).unwrap_or_default();
        let tokens = written.into_iter().chain(self.waiting.drain(..));
        actions.extend(tokens.map(|token| Action::Reject(token, reason.to_owned())));
        self.record = self.stored.clone();
    }

    fn purged(&mut self, now: Instant, done: bool) {
        self.purging = false;
        self.gone_since = Some(now);
        if done && self.is_gone() {
            (self.stored, self.record, self.revision, self.gone_since) = (None, None, 0, None);
        }
    }

    /// Writes the record if it is not what the bucket holds, and settles the messages that need no write.
    fn keep(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.loaded {
            return;
        }
        if let Some(writing) = &mut self.writing {
            if Some(&writing.record) == self.record.as_ref() {
                writing.tokens.append(&mut self.waiting);
            }
            return;
        }
        if self.record == self.stored {
            actions.extend(self.waiting.drain(..).map(Action::Ack));
        } else if let Some(record) = &self.record {
            self.writing = Some(Writing { record: record.clone(), tokens: std::mem::take(&mut self.waiting) });
            actions.push(Action::Store(Box::new(record.clone()), self.revision));
        }
        self.bury(now, actions);
    }

    /// Ends the entry of a service that has been gone for long enough.
    fn bury(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_gone() || self.writing.is_some() {
            self.gone_since = None;
            return;
        }
        let since = *self.gone_since.get_or_insert(now);
        if now >= since + TOMBSTONE && !self.purging {
            self.purging = true;
            actions.push(Action::Purge(self.revision));
        }
    }

    fn is_gone(&self) -> bool {
        self.record.as_ref().is_some_and(ServiceRecord::gone)
    }

    /// The release of a generation that the record wants to run.
    fn release(&self, generation: Generation) -> Option<&Release> {
        let record = self.record.as_ref()?;
        [&record.active, &record.candidate].into_iter().flatten().find(|release| release.generation == generation)
    }
}

/// Names for replicas: without randomness here, and never used twice.
struct Ids {
    seed: u64,
    next: u64,
}

impl Ids {
    fn next(&mut self, service: &ServiceName, generation: Generation) -> ReplicaId {
        const DIGITS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        self.next += 1;
        // SplitMix64: neighbouring counters give unlike names.
        let mut mixed = self.seed.wrapping_add(self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let suffix: String = (0..8).map(|n| char::from(DIGITS[(mixed >> (5 * n)) as usize % DIGITS.len()])).collect();
        format!("{service}-{generation}-{suffix}")
            .parse()
            .expect("a service's name, a number and eight letters are a replica's id")
    }
}
