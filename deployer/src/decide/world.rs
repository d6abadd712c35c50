//! A small world to try decisions in: a bucket, routers with requests in hand, a place that runs replicas, a bus that repeats itself,
//! and a deployer that may be killed at any moment. Everything that a shell would do is done here, later and in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    Extra,
    builder::{Image, ImageResolved, Lookup},
    deployer::{Announcement, DeploymentFailed, KeyRing, Route, ServiceRecord, StartParts},
    id::{Digest, EnvironmentHash, Generation, InstanceId, ReplicaId, ServiceName, Workspace},
    packager::{Archive, Sealed},
    scaler::ScaleRequested,
    spec::{Scaling, ServiceSpec},
};
use tokio::time::Instant;

use super::{Action, Input, KeyOffer, Resolved, Service, Token, When};
use crate::backend::{Ended, Exit, Observed, Order, Report, Status};

mod asks;
mod routers;

/// How the replicas of a generation behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Good,
    /// `init()` raises.
    Raises,
    /// The process ends before it is ready, each time.
    Crashes,
    /// `init()` never ends.
    Hangs,
}

impl Kind {
    fn script(self) -> &'static str {
        match self {
            Self::Good => "good.py",
            Self::Raises => "raises.py",
            Self::Crashes => "crashes.py",
            Self::Hangs => "hangs.py",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Resolved(Box<ImageResolved>),
    Failed(DeploymentFailed),
    Scale(ScaleRequested, u64),
    Delete(Generation),
}

struct Message {
    event: Event,
    attempts: u32,
    settled: bool,
}

struct SimReplica {
    order: Order,
    status: Status,
}

pub(super) struct SimRouter {
    id: InstanceId,
    sequence: u64,
    route: Option<Route>,
    revision: u64,
    pub(super) in_flight: BTreeMap<ReplicaId, u32>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) service: Service,
    seed: u64,
    sequence: u64,
    revision: u64,
    pub(super) record: Option<(ServiceRecord, u64)>,
    pub(super) route: Option<(Route, u64)>,
    route_revision: u64,
    replicas: BTreeMap<ReplicaId, SimReplica>,
    pub(super) routers: Vec<SimRouter>,
    messages: Vec<Message>,
    todo: Vec<Action>,
    news: Vec<Input>,
    /// Everything said, in order, repetitions included.
    pub(super) said: Vec<Announcement>,
    pub(super) restarted: bool,
    pub(super) crashed: bool,
    pub(super) scaled: bool,
    /// Requests that were in a replica when it was stopped.
    pub(super) lost: u32,
}

fn name() -> ServiceName {
    "ridge".parse().unwrap()
}

pub(super) fn ring(byte: u8) -> KeyRing {
    let sealed = Sealed { recipient: "X".into(), sender: "Y".into(), sealed: format!("{byte:02x}") };
    KeyRing { sealed, digests: vec![Digest::from_sha256([byte; 32])] }
}

pub(super) fn resolved(generation: u64, kind: Kind, scaling: Scaling) -> ImageResolved {
    let spec =
        ServiceSpec { scaling, ..serde_json::from_value(serde_json::json!({ "entryScript": kind.script() })).unwrap() };
    ImageResolved {
        generation: Generation(generation),
        archive: Archive { digest: Digest::from_sha256([generation as u8; 32]), size: 1, files: 1, ignored: 0 },
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
    }
}

pub(super) fn auto(min_replicas: u32, max_replicas: u32) -> Scaling {
    Scaling::Auto { min_replicas, max_replicas, target_utilization: 70, refresh_seconds: 1 }
}

impl World {
    pub(super) fn new(routers: usize) -> Self {
        let now = Instant::now();
        let router = |n| SimRouter {
            id: format!("router-{n}").parse().unwrap(),
            sequence: 0,
            route: None,
            revision: 0,
            in_flight: BTreeMap::new(),
        };
        let mut world = Self {
            now,
            service: Service::new(Workspace::default(), name(), 1, now),
            seed: 1,
            sequence: 0,
            revision: 0,
            record: None,
            route: None,
            route_revision: 0,
            replicas: BTreeMap::new(),
            routers: (0..routers).map(router).collect(),
            messages: Vec::new(),
            todo: Vec::new(),
            news: Vec::new(),
            said: Vec::new(),
            restarted: false,
            crashed: false,
            scaled: false,
            lost: 0,
        };
        world.begin();
        world
    }

    /// What a deployer does first.
    fn begin(&mut self) {
        let record = self.record.clone();
        let revision = record.as_ref().map_or(0, |(_, revision)| *revision);
        let record = record.map(|(record, _)| Box::new(record));
        self.feed(Input::Recorded { record, revision, age: Duration::ZERO });
        let route = self.route.clone().map(|(route, _)| Box::new(route));
        self.feed(Input::RouteFound { route, revision: self.route_revision });
        let there: Vec<_> = self.replicas.keys().cloned().collect();
        for id in &there {
            let observed = self.observe(id);
            self.feed(Input::Observed(Box::new(observed)));
        }
        self.feed(Input::Inventory(there));
    }

    /// Kills the deployer, whatever it was about to do, and starts another.
    pub(super) fn restart(&mut self) {
        self.seed += 1;
        self.restarted = true;
        self.todo.clear();
        self.news.clear();
        self.service = Service::new(Workspace::default(), name(), self.seed, self.now);
        self.begin();
    }

    fn feed(&mut self, input: Input) {
        let told = format!("{input:?}");
        for action in self.service.on(self.now, input) {
            match action {
                // It was not looked at, so this time does not count.
                Action::Retry(token, _) => self.messages[token.0 as usize].attempts -= 1,
                action => self.todo.push(action),
            }
        }
        // A replica that is taken back must not be stopped for having been empty before.
        let stale = self.service.replicas.values().any(|replica| !replica.leaving && replica.draining.is_some());
        assert!(!stale, "after {told}");
        // Nothing new, nothing to do.
        let again = self.service.on(self.now, Input::Tick);
        assert_eq!(again, [], "after {told}");
    }

    /// Delivers one message, `again` even if it has been settled.
    pub(super) fn deliver(&mut self, pick: usize, again: bool) {
        let open: Vec<usize> =
            (0..self.messages.len()).filter(|index| again || !self.messages[*index].settled).collect();
        let Some(index) = (!open.is_empty()).then(|| open[pick % open.len()]) else { return };
        self.messages[index].attempts += 1;
        let token = Token(index as u64);
        let when = When { at: "2026-11-25T00:00:00.000Z".into(), first: self.messages[index].attempts == 1 };
        let input = match self.messages[index].event.clone() {
            Event::Resolved(event) => {
                let keys = KeyOffer::Fresh(ring(event.generation.0 as u8));
                Input::Resolved(token, Box::new(Resolved { event: *event, keys, when }))
            }
            Event::Failed(event) => Input::Failed(token, Box::new(event), when),
            Event::Scale(event, sequence) => Input::Scale(token, Box::new(event), sequence),
            Event::Delete(generation) => Input::Delete(token, generation, when),
        };
        self.feed(input);
    }

    /// Does one of the things that were decided.
    pub(super) fn perform(&mut self, pick: usize) {
        if self.todo.is_empty() {
            return;
        }
        let index = pick % self.todo.len();
        // A replica's orders stay in order.
        let ordered = |action: &Action| matches!(action, Action::Start(_) | Action::Stop(_));
        let index = if ordered(&self.todo[index]) { self.todo.iter().position(ordered).unwrap() } else { index };
        match self.todo.remove(index) {
            Action::Store(record, revision) => self.store(*record, revision),
            Action::Load => {
                let record = self.record.clone();
                let revision = record.as_ref().map_or(0, |(_, revision)| *revision);
                let record = record.map(|(record, _)| Box::new(record));
                self.news.push(Input::Recorded { record, revision, age: Duration::ZERO });
            }
            Action::Ack(token) => self.messages[token.0 as usize].settled = true,
            Action::Retry(..) | Action::Tell(_) => {}
            Action::Reject(_, reason) => panic!("rejected: {reason}"),
            Action::Route(route) => self.write_route(route.map(|route| *route)),
            Action::Say(announcement) => {
                self.said.push(announcement.clone());
                self.news.push(Input::Said(announcement));
            }
            Action::Start(order) => {
                let id = order.replica.clone();
                let replica = SimReplica { order: *order, status: Status::Preparing };
                assert!(self.replicas.insert(id.clone(), replica).is_none(), "{id} is used twice");
                self.tell(&id);
            }
            Action::Stop(id) => self.stop(&id),
            Action::Purge(_) => {
                self.record = None;
                self.news.push(Input::Purged(true));
            }
        }
    }

    fn store(&mut self, record: ServiceRecord, expected: u64) {
        let there = self.record.as_ref().map_or(0, |(_, revision)| *revision);
        if there == expected {
            self.revision += 1;
            self.record = Some((record, self.revision));
            self.news.push(Input::Stored(self.revision));
        } else {
            self.news.push(Input::Conflicted);
        }
    }

    /// Somebody else writes the record, so that the next write of the deployer is a conflict.
    pub(super) fn interfere(&mut self) {
        self.revision += 1;
        if let Some((_, revision)) = &mut self.record {
            *revision = self.revision;
        }
    }

    fn write_route(&mut self, route: Option<Route>) {
        self.route_revision += 1;
        if let (Some((old, _)), Some(new)) = (&self.route, &route) {
            assert!(
                new.generation >= old.generation,
                "the route went back from {} to {}",
                old.generation,
                new.generation
            );
            let serving = |route: &Route| route.replicas.iter().filter(|endpoint| !endpoint.draining).count();
            // A crash, or a request to scale between the decision to switch and the switch, may leave fewer.
            let deleting = self.record.as_ref().is_some_and(|(record, _)| record.deleting);
            if new.generation > old.generation && !self.crashed && !self.scaled && !deleting {
                let most = new.scaling.bounds().1 as usize;
                assert!(
                    serving(new) >= serving(old).min(most).max(1),
                    "the rollout took replicas away: {old:?} → {new:?}"
                );
            }
        }
        self.route = route.map(|route| (route, self.route_revision));
        self.news.push(Input::Routed(self.route_revision));
    }

    fn stop(&mut self, id: &ReplicaId) {
        let Some(replica) = self.replicas.remove(id) else { return };
        if !matches!(replica.status, Status::Exited(_)) {
            self.lost += self.routers.iter_mut().filter_map(|router| router.in_flight.remove(id)).sum::<u32>();
        }
        let observed = Observed { status: Status::Gone, ..describe(&replica) };
        self.news.push(Input::Observed(Box::new(observed)));
    }

    /// Tells the service one piece of news; what concerns one replica comes in order.
    pub(super) fn hear(&mut self, pick: usize) {
        if self.news.is_empty() {
            return;
        }
        let index = pick % self.news.len();
        let index = match &self.news[index] {
            Input::Observed(observed) => {
                let same = |input: &Input| matches!(input, Input::Observed(other) if other.replica == observed.replica);
                self.news.iter().position(same).unwrap()
            }
            _ => index,
        };
        let input = self.news.remove(index);
        self.feed(input);
    }

    fn observe(&self, id: &ReplicaId) -> Observed {
        describe(&self.replicas[id])
    }

    fn tell(&mut self, id: &ReplicaId) {
        let observed = self.observe(id);
        self.news.push(Input::Observed(Box::new(observed)));
    }

    /// Lets one replica go on by a step of its start.
    pub(super) fn advance(&mut self, pick: usize) {
        let moving: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| matches!(replica.status, Status::Preparing | Status::Starting(_)))
            .map(|(id, _)| id.clone())
            .collect();
        if moving.is_empty() {
            return;
        }
        let id = moving[pick % moving.len()].clone();
        let replica = self.replicas.get_mut(&id).unwrap();
        let script = replica.order.release.spec.entry_script.clone();
        let was = replica.status.clone();
        replica.status = match (&was, script.as_str()) {
            (Status::Preparing, _) => Status::Starting(Duration::ZERO),
            (_, "raises.py") => Status::Exited(Box::new(raised())),
            (_, "crashes.py") => Status::Exited(Box::new(Exit { how: Ended::Code(1), ..Exit::default() })),
            (_, "hangs.py") => was.clone(),
            _ => Status::Ready,
        };
        if replica.status != was {
            self.tell(&id);
        }
    }

    /// Kills one replica from outside.
    pub(super) fn crash(&mut self, pick: usize) {
        let ready: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.status == Status::Ready)
            .map(|(id, _)| id.clone())
            .collect();
        if ready.is_empty() {
            return;
        }
        self.crashed = true;
        let id = ready[pick % ready.len()].clone();
        self.replicas.get_mut(&id).unwrap().status =
            Status::Exited(Box::new(Exit { how: Ended::Signal(9), ..Exit::default() }));
        for router in &mut self.routers {
            router.in_flight.remove(&id);
        }
        self.tell(&id);
    }

    /// Half a second goes by; routers report.
    pub(super) fn pass(&mut self) {
        self.now += Duration::from_millis(500);
        self.report();
        if self.service.wake(self.now).is_some_and(|at| at <= self.now) {
            self.feed(Input::Tick);
        }
        assert!(self.service.wake(self.now).is_none_or(|at| at > self.now), "it would never sleep again");
        self.bounds();
    }

    /// Everything that is under way comes to its end.
    pub(super) fn settle(&mut self) {
        for round in 0..4000 {
            let open = self.messages.iter().any(|message| !message.settled);
            if open {
                self.deliver(round, false);
            }
            for _ in 0..20 {
                self.perform(0);
                self.hear(0);
                self.advance(round);
            }
            for router in 0..self.routers.len() {
                self.apply_route(router);
                self.routers[router].in_flight.clear();
            }
            let quiet = !open && self.todo.is_empty() && self.news.is_empty();
            if quiet && self.service.wake(self.now).is_none_or(|at| at > self.now + Duration::from_secs(3600)) {
                return;
            }
            self.pass();
        }
        panic!("no end in sight: {:?}\n{:?}", self.service.record(), self.todo);
    }

    /// What holds at any time.
    fn bounds(&self) {
        let mut by_generation: BTreeMap<u64, u32> = BTreeMap::new();
        for replica in self.replicas.values().filter(|replica| !matches!(replica.status, Status::Exited(_))) {
            *by_generation.entry(replica.order.release.generation.0).or_default() += 1;
        }
        for (generation, count) in by_generation {
            // Some that leave may still be there beside their successors.
            assert!(count <= 2 * 5, "{count} replicas of generation {generation}");
        }
        for router in &self.routers {
            let gone: BTreeSet<_> = router.in_flight.keys().filter(|id| !self.replicas.contains_key(*id)).collect();
            assert!(gone.is_empty(), "requests in replicas that are gone: {gone:?}");
        }
    }

    /// How many replicas run, by generation.
    pub(super) fn running(&self) -> BTreeMap<u64, u32> {
        let mut running = BTreeMap::new();
        for replica in self.replicas.values() {
            *running.entry(replica.order.release.generation.0).or_default() += 1;
        }
        running
    }
}

fn describe(replica: &SimReplica) -> Observed {
    let order = &replica.order;
    Observed {
        replica: order.replica.clone(),
        workspace: order.workspace.clone(),
        service: order.service.clone(),
        generation: order.release.generation,
        status: replica.status.clone(),
        address: (replica.status == Status::Ready).then(|| format!("unix:/run/{}", order.replica)),
        start: StartParts::default(),
        unlimited: None,
    }
}

fn raised() -> Exit {
    let report: Report = serde_json::from_value(
        serde_json::json!({ "phase": "init", "kind": "RuntimeError", "message": "damaged", "file": "score.py", "line": 3 }),
    )
    .unwrap();
    Exit { how: Ended::Code(3), report: Some(report), ..Exit::default() }
}
