//! The core: from what routers say, second by second, to requests for replicas. Pure: time is an argument.
//!
//! Owns what comes in, what goes out, and the set of services under watch. It knows no bus, no clock and no lease: it is told
//! whether it leads, and a standby does the same without a word, so that it can go on at any moment.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    event::Event,
    id::{InstanceId, ServiceName, Workspace},
    router::ServiceUtilization,
    scaler::{ScaleInputs, ScaleRequested},
    spec::Scaling,
};
use tokio::time::Instant;

use crate::{
    aggregate::{Dropped, Unknown, View},
    rule::Demand,
    watched::Watched,
};

/// How many services are watched; news of further ones is dropped.
pub const MAX_SERVICES: usize = 100_000;

/// The times that govern decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a higher need must have held; zero follows the first news of it.
    pub up: Duration,
    /// How long a lower need must have held.
    pub down: Duration,
    /// How old the newest news of a router may be before what it sees is unknown.
    pub stale: Duration,
    /// How long a request may take to show in the replicas before it is made again; doubled with each repetition.
    pub patience: Duration,
    /// After which silence a service is forgotten.
    pub forget: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            up: Duration::ZERO,
            down: Duration::from_secs(60),
            stale: Duration::from_secs(3),
            patience: Duration::from_secs(10),
            forget: Duration::from_secs(3600),
        }
    }
}

/// A service of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub service: ServiceName,
}

/// What the scaler is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A router spoke of a service.
    Heard {
        /// The service.
        key: Key,
        /// What was said.
        event: Box<ServiceUtilization>,
        /// The wall clock when it came (Unix milliseconds).
        received_ms: u64,
    },
    /// Someone, perhaps this very scaler, asked for a number of replicas.
    Asked {
        /// The service.
        key: Key,
        /// What was asked.
        event: Box<ScaleRequested>,
    },
    /// A request of this scaler could not be stored.
    Failed {
        /// The service.
        key: Key,
    },
    /// A service is gone.
    Deleted {
        /// The service.
        key: Key,
    },
    /// Whether this scaler decides, or stands by.
    Lead(bool),
    /// Time has passed.
    Tick,
}

/// What the scaler wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say that another number of replicas is wanted.
    Ask {
        /// The service.
        key: Key,
        /// The id of the event: another for each decision, the same however often the decision is sent.
        id: String,
        /// The decision.
        event: Box<ScaleRequested>,
    },
    /// Report that nothing is scaled down because the load is unknown.
    Freeze {
        /// The service.
        key: Key,
        /// What is unknown.
        why: Unknown,
    },
    /// Report that the load is known again.
    Thaw {
        /// The service.
        key: Key,
    },
    /// Count news that was not taken.
    Drop(Dropped),
}

/// Decides for all services.
#[derive(Debug)]
pub struct Scaler {
    timing: Timing,
    by: String,
    epoch: u64,
    decisions: u64,
    leads: bool,
    services: BTreeMap<Key, Watched>,
}

impl Scaler {
    /// A scaler that stands by. `epoch` distinguishes this start from others of the same instance; Unix milliseconds will do.
    pub fn new(timing: Timing, instance: &InstanceId, epoch: u64) -> Self {
        let by = format!("scaler/{instance}");
        Self { timing, by, epoch, decisions: 0, leads: false, services: BTreeMap::new() }
    }

    /// How many services are watched.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// How many of them are not scaled down because their load is unknown.
    pub fn frozen(&self) -> usize {
        self.services.values().filter(|service| service.frozen).count()
    }

    /// Takes one input in. `now` must not go backwards.
    pub fn on(&mut self, now: Instant, input: Input) -> Vec<Action> {
        match input {
            Input::Heard { key, event, received_ms } => self.heard(now, key, &event, received_ms),
            Input::Asked { key, event } => {
                if let (Some(service), Some(replicas)) = (self.services.get_mut(&key), event.replicas) {
                    service.expect(now, self.timing.patience, event.generation, replicas);
                }
                Vec::new()
            }
            Input::Failed { key } => {
                if let Some(service) = self.services.get_mut(&key) {
                    service.expect_nothing();
                }
                Vec::new()
            }
            Input::Deleted { key } => {
                self.services.remove(&key);
                Vec::new()
            }
            Input::Lead(leads) => {
                self.leads = leads;
                Vec::new()
            }
            Input::Tick => self.tick(now),
        }
    }

    fn heard(&mut self, now: Instant, key: Key, event: &ServiceUtilization, received_ms: u64) -> Vec<Action> {
        if !self.services.contains_key(&key) && self.services.len() >= MAX_SERVICES {
            return vec![Action::Drop(Dropped::Crowd)];
        }
        let timing = self.timing;
        let service = self.services.entry(key.clone()).or_insert_with(|| Watched::new(now, timing));
        let mut actions = match service.hear(now, received_ms, event) {
            Ok(()) => Vec::new(),
            Err(dropped) => vec![Action::Drop(dropped)],
        };
        if service.is_due(now) {
            self.look(now, &key, &mut actions);
        }
        actions
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        let forget = self.timing.forget;
        self.services.retain(|_, service| service.silence(now) <= forget);
        let due: Vec<_> =
            self.services.iter().filter(|(_, service)| service.is_due(now)).map(|(key, _)| key.clone()).collect();
        let mut actions = Vec::new();
        for key in due {
            self.look(now, &key, &mut actions);
        }
        actions
    }

    /// Looks at one service, and decides if its time has come.
    fn look(&mut self, now: Instant, key: &Key, actions: &mut Vec<Action>) {
        let Some(service) = self.services.get_mut(key) else { return };
        let seen = service.look(now, &self.timing);
        let unknown = match &seen {
            None => Some(&Unknown::Nothing),
            Some((view, _)) if matches!(view.facts.scaling, Scaling::Fixed { .. }) => None,
            Some((view, _)) => view.unknown.as_ref(),
        };
        match unknown {
            Some(why) if !service.frozen => actions.push(Action::Freeze { key: key.clone(), why: why.clone() }),
            None if service.frozen => actions.push(Action::Thaw { key: key.clone() }),
            _ => {}
        }
        service.frozen = unknown.is_some();
        let Some((view, demand)) = seen else { return };
        let Some((replicas, demand)) = service.decide(now, &self.timing, &view, demand) else { return };
        if self.leads {
            service.expect(now, self.timing.patience, Some(view.facts.generation), replicas);
            self.decisions += 1;
            actions.push(self.ask(key, replicas, &view, &demand));
        }
    }

    fn ask(&self, key: &Key, replicas: u32, view: &View, demand: &Demand) -> Action {
        let (Key { workspace, service }, View { facts, load, .. }) = (key, view);
        let (ty, by, epoch, number) = (ScaleRequested::TYPE, &self.by, self.epoch, self.decisions);
        let utilization = if facts.replicas > 0 { load.busy / f64::from(facts.replicas) * 100.0 } else { 0.0 };
        let event = ScaleRequested {
            by: self.by.clone(),
            generation: Some(facts.generation),
            replicas: Some(replicas),
            scaling: None,
            reason: demand.explain(facts),
            inputs: Some(ScaleInputs {
                routers: view.routers,
                replicas: facts.replicas,
                starting: facts.starting,
                concurrent: load.concurrent,
                queued: load.queued,
                utilization,
                concurrency: facts.concurrency,
            }),
            extra: proto::Extra::new(),
        };
        Action::Ask {
            key: key.clone(),
            id: format!("{ty}/{workspace}/{service}/{}/{by}/{epoch}/{number}", facts.generation),
            event: Box::new(event),
        }
    }
}
