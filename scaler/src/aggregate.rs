//! What the routers say of one service, brought together: the newest news of each, summed.
//!
//! Owns the question which news counts: late ones do not, nonsense does not, and a router that has fallen silent makes the
//! whole unknown. It does not know what is decided from the sum.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    id::{Generation, InstanceId},
    router::ServiceUtilization,
    spec::Scaling,
};
use tokio::time::Instant;

/// The stages of refusal that show a want of replicas; a refused key, for example, does not.
const WANT: [&str; 2] = ["queue", "capacity"];

/// The time that a sample stands for; shorter ones are mixed with what the router said before, in proportion.
const SAMPLE: Duration = Duration::from_secs(1);

/// How many routers of one service are remembered; news of further ones is dropped.
pub const MAX_ROUTERS: usize = 1_000;

/// News said longer ago than this (by the router's clock) is a replay, or the clocks differ: either way it is not believed.
const TOO_LATE_MS: u64 = 30_000;

/// No figure of a sample is larger: a larger one is nonsense.
const MAX_FIGURE: f64 = 1e9;

/// Why news was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Dropped {
    /// Newer news of the same router is known, or it was said too long ago.
    #[error("it came late or twice")]
    Late,
    /// It contradicts itself; the router counts as silent.
    #[error("it contradicts itself")]
    Nonsense,
    /// There are too many routers or services already.
    #[error("there are too many of them")]
    Crowd,
}

/// What holds for a service whatever its load is: it comes from the route, the same for all routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The generation that serves.
    pub generation: Generation,
    /// Replicas that may be chosen.
    pub replicas: u32,
    /// Replicas that have been started and are not ready yet.
    pub starting: u32,
    /// Requests that one replica may work on at a time.
    pub concurrency: u32,
    /// The bounds and target that hold.
    pub scaling: Scaling,
}

impl Facts {
    /// Replicas that are there or coming.
    pub fn coming(&self) -> u32 {
        self.replicas.saturating_add(self.starting)
    }

    /// Whether both can come from the same revision of a route.
    fn agrees(&self, other: &Self) -> bool {
        self.generation == other.generation && self.concurrency == other.concurrency && self.scaling == other.scaling
    }
}

/// The load of a service, on average over about a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Replicas with at least one request.
    pub busy: f64,
    /// Requests in replicas.
    pub concurrent: f64,
    /// Requests in queues.
    pub queued: f64,
    /// Requests that come, a second.
    pub arrivals: f64,
    /// Requests answered by a replica, a second.
    pub completed: f64,
    /// Requests refused for want of replicas, a second.
    pub refused: f64,
}

impl Load {
    /// Combines two loads member by member.
    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            busy: f(self.busy, other.busy),
            concurrent: f(self.concurrent, other.concurrent),
            queued: f(self.queued, other.queued),
            arrivals: f(self.arrivals, other.arrivals),
            completed: f(self.completed, other.completed),
            refused: f(self.refused, other.refused),
        }
    }
}

/// Why the load is not known, or not in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No router says anything that can be believed.
    #[error("no news from any router")]
    Nothing,
    /// A router that was heard within the window has fallen silent, or says nonsense.
    #[error("no news from router {0}")]
    Silent(InstanceId),
    /// Routers contradict each other about the same revision of the route.
    #[error("router {0} contradicts another")]
    Contradiction(InstanceId),
}

/// What is known of a service at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What the newest revision of the route says.
    pub facts: Facts,
    /// The sum over the routers with fresh news.
    pub load: Load,
    /// How many those are.
    pub routers: u32,
    /// What is missing, if something is: then the sum is a lower bound.
    pub unknown: Option<Unknown>,
}

/// The newest news of each router about one service.
#[derive(Debug, Default)]
pub(crate) struct Routers {
    heard: BTreeMap<InstanceId, Heard>,
    grew: bool,
}

/// One router. It stays known while it says anything at all, be it late or nonsense: then what it sees is unknown.
#[derive(Debug)]
struct Heard {
    at: Instant,
    sequence: u64,
    at_ms: u64,
    news: Option<News>,
}

#[derive(Debug)]
struct News {
    at: Instant,
    revision: u64,
    facts: Facts,
    load: Load,
}

impl Routers {
    /// Takes news in, unless it is late or makes no sense; `received_ms` is the wall clock (Unix milliseconds).
    ///
    /// A router's sequence grows; a lower one that was said later means that the router began anew.
    pub(crate) fn hear(&mut self, now: Instant, received_ms: u64, event: &ServiceUtilization) -> Result<(), Dropped> {
        if !self.heard.contains_key(&event.router) {
            if self.heard.len() >= MAX_ROUTERS {
                return Err(Dropped::Crowd);
            }
            self.heard.insert(event.router.clone(), Heard { at: now, sequence: 0, at_ms: 0, news: None });
            self.grew = true;
        }
        let Some(heard) = self.heard.get_mut(&event.router) else { return Err(Dropped::Crowd) };
        let began_anew = event.sequence < heard.sequence && event.at_ms > heard.at_ms;
        if event.sequence <= heard.sequence && !began_anew {
            return Err(Dropped::Late);
        }
        heard.at = now;
        if received_ms.saturating_sub(event.at_ms) > TOO_LATE_MS {
            return Err(Dropped::Late);
        }
        if !is_sane(event) {
            heard.news = None;
            return Err(Dropped::Nonsense);
        }
        (heard.sequence, heard.at_ms) = (event.sequence, event.at_ms);
        let before = heard.news.as_ref().map(|news| news.load).unwrap_or_default();
        let news = News { at: now, revision: event.revision, facts: facts_of(event), load: mix(before, event) };
        heard.news = Some(news);
        Ok(())
    }

    /// Whether a router was heard for the first time since this was last asked.
    pub(crate) fn grew(&mut self) -> bool {
        std::mem::take(&mut self.grew)
    }

    /// Forgets routers that have been silent for longer than `window`.
    pub(crate) fn forget(&mut self, now: Instant, window: Duration) {
        self.heard.retain(|_, heard| now.saturating_duration_since(heard.at) <= window);
    }

    /// Sums up what the routers say; news older than `stale` is not fresh. `None` when there is no fresh news at all.
    pub(crate) fn view(&self, now: Instant, stale: Duration) -> Option<View> {
        let fresh =
            |heard: &Heard| heard.news.as_ref().is_some_and(|news| now.saturating_duration_since(news.at) <= stale);
        let news = self.heard.values().filter(|heard| fresh(heard)).filter_map(|heard| heard.news.as_ref());
        let newest = news.max_by_key(|news| (news.revision, news.at))?;
        let mut view = View { facts: newest.facts.clone(), load: Load::default(), routers: 0, unknown: None };
        for (router, heard) in &self.heard {
            let Some(news) = heard.news.as_ref().filter(|_| fresh(heard)) else {
                view.unknown.get_or_insert_with(|| Unknown::Silent(router.clone()));
                continue;
            };
            view.routers += 1;
            view.load = view.load.zip(news.load, |sum, one| sum + one);
            if news.revision == newest.revision {
                if !news.facts.agrees(&newest.facts) {
                    view.unknown.get_or_insert_with(|| Unknown::Contradiction(router.clone()));
                }
                // A router may know a replica to be unreachable; it is there all the same.
                view.facts.replicas = view.facts.replicas.max(news.facts.replicas);
                view.facts.starting = view.facts.starting.max(news.facts.starting);
            }
        }
        Some(view)
    }
}

fn is_sane(event: &ServiceUtilization) -> bool {
    let figure = |value: f64| (0.0..=MAX_FIGURE).contains(&value);
    let count = |value: u64| value as f64 <= MAX_FIGURE;
    let scaling = match event.scaling {
        Scaling::Fixed { .. } => true,
        Scaling::Auto { min_replicas, max_replicas, target_utilization, .. } => {
            min_replicas <= max_replicas && (1..=100).contains(&target_utilization)
        }
    };
    scaling
        && event.concurrency > 0
        && [event.busy, event.concurrent, event.queued].into_iter().all(figure)
        && [event.arrivals, event.completed].into_iter().chain(event.refused.values().copied()).all(count)
        // A busy replica has at least one request; the slack is for figures that were not measured at the same instant.
        && event.busy <= 2.0 * event.concurrent + 1.0
}

fn facts_of(event: &ServiceUtilization) -> Facts {
    Facts {
        generation: event.generation,
        replicas: event.replicas,
        starting: event.starting,
        concurrency: event.concurrency,
        scaling: event.scaling.clone(),
    }
}

/// The load that a router says, mixed with what it said before if it covers less than a second: a router speaks at once
/// when a replica has been emptied, and a single request in a window of a few milliseconds is no load of one.
fn mix(before: Load, event: &ServiceUtilization) -> Load {
    // Less than a millisecond is told as none.
    let window = Duration::from_millis(event.window_ms.max(1)).as_secs_f64();
    let share = (window / SAMPLE.as_secs_f64()).min(1.0);
    let wanting: u64 = WANT.iter().filter_map(|stage| event.refused.get(*stage)).sum();
    let said = Load {
        busy: event.busy,
        concurrent: event.concurrent,
        queued: event.queued,
        arrivals: event.arrivals as f64 / window,
        completed: event.completed as f64 / window,
        refused: wanting as f64 / window,
    };
    before.zip(said, |old, new| old * (1.0 - share) + new * share)
}
