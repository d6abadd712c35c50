//! What is seen: exits, starts that take too long, a candidate that is ready, a deletion that is done. Each changes the record.

use std::time::Duration;

use proto::{
    Extra,
    deployer::{Announcement, DeploymentFailed, DeploymentReady, Release, ServiceRecord, ServiceState},
    failure::Failure,
    id::{Generation, ReplicaId},
};
use tokio::time::Instant;

use super::{Service, replica::Phase};
use crate::{
    backend::{Ended, Exit},
    diagnose,
};

/// So many failed starts in a row end a candidate.
const ATTEMPTS: u32 = 3;
/// What the server ends with when the script cannot be served; trying again would end the same way.
const CANNOT_SERVE: i32 = 3;

impl Service {
    pub(super) fn judge(&mut self, now: Instant) {
        self.give_up_slow_starts(now);
        self.count_exits(now);
        self.switch();
        self.finish_deletion();
    }

    /// When a replica that is starting will have had its time.
    pub(super) fn deadline(&self, generation: Generation, since: Instant) -> Option<Instant> {
        let seconds = self.release(generation)?.spec.liveness.initial_delay_seconds;
        Some(since + Duration::from_secs(u64::from(seconds)))
    }

    fn give_up_slow_starts(&mut self, now: Instant) {
        let slow: Vec<_> = self
            .replicas
            .iter()
            .filter_map(|(id, replica)| match replica.phase {
                Phase::Starting(since) if replica.is_live() => {
                    self.deadline(replica.generation, since).filter(|at| now >= *at).map(|_| id.clone())
                }
                _ => None,
            })
            .collect();
        for id in slow {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            let generation = replica.generation;
            // It still runs, but counts as ended from here on; its end is ordered with those of all that have exited.
            let limit = self.release(generation).map_or(0, |release| release.spec.liveness.initial_delay_seconds);
            let exit = Exit { cause: Some(diagnose::slow_init(limit)), ..Exit::default() };
            if let Some(replica) = self.replicas.get_mut(&id) {
                replica.phase = Phase::Exited(Box::new(exit));
            }
        }
    }

    fn count_exits(&mut self, now: Instant) {
        let ended: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.has_exited() && !replica.counted)
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            replica.counted = true;
            let (generation, wanted) = (replica.generation, !replica.leaving && !replica.stopping);
            let ready_for = replica.ready_since.map(|since| now - since);
            if let (true, Phase::Exited(exit)) = (wanted, &replica.phase) {
                let exit = exit.clone();
                self.lost(now, generation, ready_for, &exit);
            }
        }
    }

    /// A replica that was wanted has ended.
    fn lost(&mut self, now: Instant, generation: Generation, ready_for: Option<Duration>, exit: &Exit) {
        let Some(release) = self.release(generation).cloned() else { return };
        let in_a_row = self.restarts.entry(generation).or_default().crashed(now, ready_for);
        let is_candidate = self.candidate().is_some_and(|candidate| candidate.generation == generation);
        let failure = diagnose::failure(exit, &release, &self.name);
        if !is_candidate {
            let serving = self.serving();
            if let Some(record) = &mut self.record {
                record.failure = Some(failed(generation, failure, serving));
            }
        } else if ready_for.is_none() && is_final(exit) || in_a_row >= ATTEMPTS {
            self.fail_candidate(failure);
        }
    }

    fn fail_candidate(&mut self, failure: Failure) {
        let serving = self.serving();
        let Some(record) = &mut self.record else { return };
        let Some(candidate) = record.candidate.take() else { return };
        record.candidate_keys = None;
        let failed = failed(candidate.generation, failure, serving);
        // A failure of a newer generation, at an earlier stage, stays the newest.
        if record.failure.as_ref().is_none_or(|known| known.generation <= candidate.generation) {
            record.failure = Some(failed.clone());
        }
        self.announce_later(Announcement::Failed(failed));
    }

    fn candidate(&self) -> Option<&Release> {
        self.record.as_ref()?.candidate.as_ref()
    }

    pub(super) fn ready_of(&self, generation: Generation) -> u32 {
        let ready =
            |replica: &&super::Replica| replica.generation == generation && replica.is_live() && replica.is_ready();
        self.replicas.values().filter(ready).count() as u32
    }

    /// Makes the candidate the one that serves, once all its replicas are ready.
    fn switch(&mut self) {
        let Some(record) = &self.record else { return };
        let Some(candidate) = &record.candidate else { return };
        let generation = candidate.generation;
        let (wanted, ready) = (wanted(candidate, record), self.ready_of(generation));
        if record.deleting || ready < wanted {
            return;
        }
        let first = self.replicas.values().find(|replica| replica.generation == generation && replica.is_ready());
        let event = DeploymentReady {
            generation,
            previous: record.active.as_ref().map(|release| release.generation),
            scoring_path: format!("/api/v1/service/{}/score", self.name),
            replicas: ready,
            start: first.map(|replica| replica.start).unwrap_or_default(),
            extra: Extra::new(),
        };
        let Some(record) = &mut self.record else { return };
        record.active = record.candidate.take();
        if let Some(active) = &record.active {
            record.scaling = active.spec.scaling.clone();
            record.replicas = record.scaling.clamp(record.replicas);
        }
        if let Some(ring) = record.candidate_keys.take() {
            (record.sealed_keys, record.key_digests) = (Some(ring.sealed), ring.digests);
        }
        record.failure = record.failure.take().filter(|failure| failure.generation > generation);
        self.announce_later(Announcement::Ready(event));
    }

    /// Forgets what served, once nothing of it is left.
    fn finish_deletion(&mut self) {
        if !self.stored.as_ref().is_some_and(|stored| stored.deleting) {
            return;
        }
        let Some(record) = self.record.as_mut().filter(|record| record.deleting) else { return };
        let Some(active) = &record.active else { return };
        let generation = active.generation;
        if self.replicas.values().all(|replica| replica.generation > generation) {
            record.active = None;
            if let Some(candidate) = &record.candidate {
                record.scaling = candidate.spec.scaling.clone();
                record.replicas = record.scaling.clamp(record.replicas);
            }
        }
    }

    /// Writes into the record what is seen of the service.
    pub(super) fn describe(&mut self) {
        let Some(record) = &self.record else { return };
        let active = record.active.as_ref().map(|release| release.generation);
        let ready = active.map_or(0, |generation| self.ready_of(generation));
        let (least, _) = record.scaling.bounds();
        let state = if record.deleting {
            ServiceState::Deleting
        } else if active.is_some() && ready < least {
            ServiceState::Unhealthy
        } else if record.candidate.is_some() || active.is_some() && ready < record.scaling.clamp(record.replicas) {
            ServiceState::Transitioning
        } else if active.is_some() {
            ServiceState::Healthy
        } else {
            ServiceState::Failed
        };
        let Some(record) = &mut self.record else { return };
        (record.state, record.ready) = (state, ready);
        if ready >= least {
            // Why the one that serves was unwell is of no use when it is well again.
            record.failure = record.failure.take().filter(|failure| Some(failure.generation) != active);
        }
    }
}

/// How many replicas a candidate must have: what is wanted now, within its own bounds.
pub(super) fn wanted(candidate: &Release, record: &ServiceRecord) -> u32 {
    candidate.spec.scaling.clamp(record.replicas).max(1)
}

fn failed(generation: Generation, failure: Failure, serving: Option<Generation>) -> DeploymentFailed {
    DeploymentFailed { generation, failure, serving, warnings: Vec::new(), extra: Extra::new() }
}

/// Whether another attempt would end the same way.
fn is_final(exit: &Exit) -> bool {
    exit.how == Ended::Code(CANNOT_SERVE) || exit.report.is_some() || exit.cause.is_some() || exit.out_of_memory
}
