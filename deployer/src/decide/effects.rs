//! What follows from the stored record: replicas are started and let go, the route is led, decisions are said.

use std::time::Duration;

use proto::{
    deployer::{Announcement, Release, ServiceRecord},
    id::{Generation, ReplicaId},
};
use tokio::time::Instant;

use super::{
    Action, Service, TOMBSTONE, judge, replica,
    replica::{Phase, Replica},
    routers::LONGEST_ANSWER,
};
use crate::backend::{Observed, Order, Status};

/// How long a request may take beyond its scoring timeout until its replica counts as empty when no router says anything.
const BEYOND_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked at whether a replica has been emptied, besides when a router says something.
const LOOK: Duration = Duration::from_millis(500);

impl Service {
    pub(super) fn act(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.populate(now, actions);
        self.lead(actions);
        self.adopt_draining(now);
        self.retire(now, actions);
        self.announce(actions);
    }

    /// Takes what was seen of a replica.
    pub(super) fn observed(&mut self, now: Instant, observed: Observed, actions: &mut Vec<Action>) {
        let id = observed.replica.clone();
        if observed.status == Status::Gone {
            self.replicas.remove(&id);
            return;
        }
        let (rank, patience) = (self.next_rank(), self.patience(observed.generation));
        let replica = self.replicas.entry(id).or_insert_with(|| Replica::ordered(observed.generation, rank, patience));
        let was_ready = replica.is_ready();
        replica.observe(now, &observed);
        let (generation, became_ready) = (replica.generation, !was_ready && replica.is_ready());
        if became_ready && self.is_candidate(generation) {
            self.restarts.entry(generation).or_default().succeeded();
        }
        self.tell(generation, actions);
    }

    pub(super) fn is_candidate(&self, generation: Generation) -> bool {
        let candidate = self.record.as_ref().and_then(|record| record.candidate.as_ref());
        candidate.is_some_and(|candidate| candidate.generation == generation)
    }

    fn next_rank(&self) -> u64 {
        self.replicas.values().map(|replica| replica.age_rank).max().map_or(0, |rank| rank + 1)
    }

    /// Starts what is missing and marks what is too much.
    fn populate(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let targets = self.stored.as_ref().map(targets).unwrap_or_default();
        self.restarts.retain(|generation, _| targets.iter().any(|(release, _)| release.generation == *generation));
        for replica in self.replicas.values_mut() {
            replica.leaving |= targets.iter().all(|(release, _)| release.generation != replica.generation);
        }
        for (release, count) in targets {
            self.fit(now, &release, count as usize, actions);
        }
    }

    fn fit(&mut self, now: Instant, release: &Release, count: usize, actions: &mut Vec<Action>) {
        let generation = release.generation;
        let live = |replica: &Replica| replica.generation == generation && replica.is_live();
        let running = self.replicas.values().filter(|replica| live(replica)).count();
        let held = self.restarts.get_mut(&generation).map_or(0, |restarts| restarts.held(now));
        if running > count {
            let candidates = self.replicas.iter().filter(|(_, replica)| live(replica));
            for id in replica::victims(candidates, running - count) {
                if let Some(victim) = self.replicas.get_mut(&id) {
                    victim.leaving = true;
                }
            }
            return;
        }
        let missing = count - running - self.reclaim(generation, count - running);
        for _ in 0..missing.saturating_sub(held) {
            actions.push(self.order(release));
        }
    }

    /// Takes back replicas that are being emptied and not yet told to stop: nothing is sooner ready than they.
    fn reclaim(&mut self, generation: Generation, most: usize) -> usize {
        let back = |replica: &&mut Replica| {
            replica.generation == generation && replica.leaving && !replica.stopping && replica.is_ready()
        };
        let mut taken = 0;
        for replica in self.replicas.values_mut().filter(back).take(most) {
            (replica.leaving, replica.draining) = (false, None);
            taken += 1;
        }
        taken
    }

    fn order(&mut self, release: &Release) -> Action {
        let id = self.ids.next(&self.name, release.generation);
        let from = |(_, replica): &(&ReplicaId, &Replica)| {
            replica.generation == release.generation && replica.is_live() && replica.is_ready()
        };
        let from = self.replicas.iter().find(from).map(|(id, _)| id.clone());
        let rank = self.next_rank();
        let patience = self.patience(release.generation);
        self.replicas.insert(id.clone(), Replica::ordered(release.generation, rank, patience));
        Action::Start(Box::new(Order {
            replica: id,
            workspace: self.workspace.clone(),
            service: self.name.clone(),
            release: release.clone(),
            from,
        }))
    }

    /// Ends replicas that are not wanted, once no request is in them, and tidies up after those that have ended.
    fn retire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (id, replica) in &mut self.replicas {
            if replica.stopping {
                continue;
            }
            let empty = || match replica.draining {
                Some(draining) => self.routers.have_emptied(now, id, draining, replica.patience),
                None => !self.route.contains(id),
            };
            if replica.has_exited() || replica.leaving && empty() {
                replica.stopping = true;
                actions.push(Action::Stop(id.clone()));
            }
        }
    }

    /// How long a request in a replica can take until its first byte of an answer; of a generation that is no longer known, any time.
    fn patience(&self, generation: Generation) -> Duration {
        let release = self.release(generation);
        release.map_or(LONGEST_ANSWER, |release| release.spec.requests.scoring_timeout() + BEYOND_TIMEOUT)
    }

    /// Says what was decided, once the decision is stored and what it promises is so.
    fn announce(&mut self, actions: &mut Vec<Action>) {
        let (Some(stored), Some(record)) = (&self.stored, &self.record) else { return };
        for announcement in &stored.outbox {
            if record.outbox.contains(announcement) && !self.saying.contains(announcement) && self.holds(announcement) {
                self.saying.push(announcement.clone());
                actions.push(Action::Say(announcement.clone()));
            }
        }
    }

    fn holds(&self, announcement: &Announcement) -> bool {
        let routed = self.route.generation();
        match announcement {
            Announcement::Failed(_) => true,
            Announcement::Ready(ready) => routed.is_some_and(|generation| generation >= ready.generation),
            Announcement::Deleted(deleted) => {
                let nobody_serves = self.stored.as_ref().is_some_and(|record| record.active.is_none());
                nobody_serves
                    && self.route.is_absent()
                    && self.replicas.values().all(|replica| replica.generation > deleted.generation)
            }
        }
    }

    pub(super) fn said(&mut self, announcement: Announcement) {
        self.saying.retain(|saying| *saying != announcement);
        self.said.push(announcement);
        self.forget_said();
    }

    /// Takes out of the record what has been said.
    pub(super) fn forget_said(&mut self) {
        let Some(record) = &mut self.record else { return };
        record.outbox.retain(|entry| !self.said.contains(entry));
        let deletion_is_said = !record.outbox.iter().any(|entry| matches!(entry, Announcement::Deleted(_)));
        let has_successor = record.candidate.is_some() || record.failure.is_some();
        record.deleting &= !(deletion_is_said && has_successor && record.active.is_none());
    }

    /// When something is to be done without any news.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        if !self.is_known() {
            // The news that it waits for wake it.
            return None;
        }
        let restarts = self.restarts.values().filter_map(super::Restarts::next);
        let deadlines = self.replicas.values().filter_map(|replica| match replica.phase {
            Phase::Starting(since) if replica.is_live() => self.deadline(replica.generation, since),
            _ => None,
        });
        let draining = self.replicas.values().any(|replica| replica.leaving && !replica.stopping);
        let burial = self.gone_since.filter(|_| !self.purging).map(|since| since + TOMBSTONE);
        restarts.chain(deadlines).chain(draining.then(|| now + LOOK)).chain(burial).min()
    }
}

/// What should run: which releases, and how many replicas of each.
fn targets(record: &ServiceRecord) -> Vec<(Release, u32)> {
    let active = record.active.iter().filter(|_| !record.deleting);
    let active = active.map(|release| (release.clone(), record.scaling.clamp(record.replicas)));
    let candidate = record.candidate.iter().map(|release| (release.clone(), judge::wanted(release, record)));
    active.chain(candidate).collect()
}
