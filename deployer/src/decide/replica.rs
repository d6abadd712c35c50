//! What is known of one replica, and what has been decided about it.

use std::time::Duration;

use proto::{
    deployer::StartParts,
    id::{Generation, ReplicaId},
};
use tokio::time::Instant;

use crate::backend::{Exit, Observed, Status};

/// One replica.
pub(super) struct Replica {
    pub(super) generation: Generation,
    pub(super) phase: Phase,
    /// When it first answered.
    pub(super) ready_since: Option<Instant>,
    pub(super) address: Option<String>,
    pub(super) start: StartParts,
    pub(super) unlimited: Option<String>,
    /// Whether it is no longer wanted.
    pub(super) leaving: bool,
    /// Whether its end has been ordered; there is no way back.
    pub(super) stopping: bool,
    /// Since when, and by which revision of the route, routers have been asked to empty it.
    pub(super) draining: Option<Draining>,
    /// How long after it left the routes it may have a request, as far as its scoring timeout goes.
    pub(super) patience: Duration,
    /// Whether its exit has been taken into account.
    pub(super) counted: bool,
    /// A number that grows with each replica: the youngest has the largest.
    pub(super) age_rank: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Draining {
    pub(super) since: Instant,
    pub(super) revision: u64,
}

/// How far it has come.
pub(super) enum Phase {
    /// Its start was ordered; nothing has been seen of it.
    Ordered,
    Preparing,
    /// Its process runs since then.
    Starting(Instant),
    /// It answers.
    Ready,
    Exited(Box<Exit>),
}

impl Replica {
    pub(super) fn ordered(generation: Generation, age_rank: u64, patience: Duration) -> Self {
        Self {
            generation,
            phase: Phase::Ordered,
            ready_since: None,
            address: None,
            start: StartParts::default(),
            unlimited: None,
            leaving: false,
            stopping: false,
            draining: None,
            patience,
            counted: false,
            age_rank,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    pub(super) fn has_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    /// Whether it serves or will serve.
    pub(super) fn is_live(&self) -> bool {
        !self.leaving && !self.stopping && !self.has_exited()
    }

    pub(super) fn was_observed(&self) -> bool {
        !matches!(self.phase, Phase::Ordered)
    }

    /// Takes what was observed. A replica never goes back: news that was overtaken does not make it start or live again.
    pub(super) fn observe(&mut self, now: Instant, observed: &Observed) {
        self.start = observed.start;
        self.unlimited.clone_from(&observed.unlimited);
        if observed.address.is_some() {
            self.address.clone_from(&observed.address);
        }
        let overtaken = self.is_ready() && matches!(observed.status, Status::Starting(_) | Status::Preparing);
        if self.has_exited() || overtaken {
            return;
        }
        self.phase = match (&observed.status, &self.phase) {
            (Status::Ready, _) => Phase::Ready,
            (Status::Starting(_), Phase::Starting(since)) => Phase::Starting(*since),
            (Status::Starting(age), _) => Phase::Starting(now.checked_sub(*age).unwrap_or(now)),
            (Status::Exited(exit), _) => Phase::Exited(exit.clone()),
            (Status::Preparing | Status::Gone, _) => Phase::Preparing,
        };
        if self.is_ready() {
            self.ready_since.get_or_insert(now);
        }
    }
}

/// Replicas to let go, the least useful first: those that are not ready, then the youngest, whose going loses the least warmth.
pub(super) fn victims<'a>(live: impl Iterator<Item = (&'a ReplicaId, &'a Replica)>, count: usize) -> Vec<ReplicaId> {
    let mut live: Vec<_> = live.collect();
    live.sort_by_key(|(id, replica)| (replica.is_ready(), std::cmp::Reverse(replica.age_rank), (*id).clone()));
    live.into_iter().take(count).map(|(id, _)| id.clone()).collect()
}
