//! A small world around the scaler: routers that say what they see each second, and a deployer that does what is asked.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    id::{Generation, InstanceId},
    router::ServiceUtilization,
    scaler::ScaleRequested,
    spec::Scaling,
};
use scaler::decide::{Action, Input, Key, Scaler, Timing};
use tokio::time::Instant;

pub(crate) fn auto(min: u32, max: u32) -> Scaling {
    Scaling::Auto { min_replicas: min, max_replicas: max, target_utilization: 70, refresh_seconds: 1 }
}

pub(crate) fn key() -> Key {
    Key { workspace: "default".parse().unwrap(), service: "ridge".parse().unwrap() }
}

pub(crate) fn router(name: &str) -> InstanceId {
    format!("router-{name}").parse().unwrap()
}

/// An idle service of one replica, as one router sees it in its first second.
pub(crate) fn idle(name: &str) -> ServiceUtilization {
    let (at_ms, generation) = (1_000_000, Generation(7));
    ServiceUtilization { at_ms, generation, scaling: auto(1, 10), ..ServiceUtilization::idle(router(name)) }
}

/// A request for replicas, the second it was made in, and its id.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) second: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) id: String,
    pub(crate) event: ScaleRequested,
}

pub(crate) struct World {
    pub(crate) scaler: Scaler,
    pub(crate) now: Instant,
    pub(crate) second: u64,
    /// Name and whether it speaks; all share the load.
    pub(crate) routers: Vec<(&'static str, bool)>,
    /// What does not depend on the load: generation, concurrency, scaling, replicas.
    pub(crate) service: ServiceUtilization,
    /// Requests a second, and seconds a request takes in a replica.
    pub(crate) load: (f64, f64),
    /// Seconds that a replica takes to start; `None` when the place has no room.
    pub(crate) start: Option<u64>,
    starting: Vec<u64>,
    /// Parts of requests that no router has counted yet: arrived, completed, refused.
    uncounted: [f64; 3],
    pub(crate) asks: Vec<Ask>,
    pub(crate) reports: Vec<Action>,
}

impl World {
    pub(crate) fn new(timing: Timing) -> Self {
        let mut scaler = Scaler::new(timing, &"scaler-1".parse().unwrap(), 1);
        let now = Instant::now();
        assert_eq!(scaler.on(now, Input::Lead(true)), []);
        Self {
            scaler,
            now,
            second: 0,
            routers: vec![("a", true)],
            service: idle("a"),
            load: (0.0, 0.1),
            start: Some(2),
            starting: Vec::new(),
            uncounted: [0.0; 3],
            asks: Vec::new(),
            reports: Vec::new(),
        }
    }

    pub(crate) fn with(load: (f64, f64), scaling: Scaling) -> Self {
        let mut world = Self::new(Timing::default());
        world.load = load;
        world.service.scaling = scaling;
        world
    }

    pub(crate) fn coming(&self) -> u32 {
        self.service.replicas + u32::try_from(self.starting.len()).unwrap()
    }

    /// Lets seconds pass.
    pub(crate) fn run(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.second();
        }
        self
    }

    /// The numbers asked for since the last call.
    pub(crate) fn asked(&mut self) -> Vec<u32> {
        self.asks.drain(..).map(|ask| ask.to).collect()
    }

    fn second(&mut self) {
        for _ in 0..4 {
            self.now += Duration::from_millis(250);
            self.give(Input::Tick);
        }
        self.second += 1;
        let second = self.second;
        let ready = self.starting.iter().filter(|at| **at <= second).count();
        self.starting.retain(|at| *at > second);
        self.service.replicas += u32::try_from(ready).unwrap();
        for event in self.said() {
            self.give(Input::Heard { key: key(), received_ms: event.at_ms + 5, event: Box::new(event) });
        }
    }

    /// What the routers that speak say of this second. Requests are counted whole, and over many seconds none too few or too many.
    fn said(&mut self) -> Vec<ServiceUtilization> {
        let (rate, time) = self.load;
        let room = f64::from(self.service.replicas * self.service.concurrency);
        let concurrent = (rate * time).min(room);
        let completed = if time > 0.0 { concurrent / time } else { rate };
        let refused = (rate - completed).max(0.0);
        let routers = self.routers.len() as f64;
        let share = |value: f64| value / routers;
        for (uncounted, new) in self.uncounted.iter_mut().zip([rate, completed, refused]) {
            *uncounted = uncounted.fract() + new;
        }
        let [arrived, answered, turned_away] = self.uncounted.map(|count| count as u64);
        let mut events = Vec::new();
        for (index, (name, _)) in self.routers.iter().enumerate().filter(|(_, (_, speaks))| *speaks) {
            // What does not divide goes to another router each second.
            let place = (index as u64 + self.second) % self.routers.len() as u64;
            let of = |count: u64| (count + place) / self.routers.len() as u64;
            events.push(ServiceUtilization {
                router: router(name),
                sequence: self.second,
                at_ms: 1_000_000 + self.second * 1_000,
                starting: u32::try_from(self.starting.len()).unwrap(),
                busy: share(concurrent.min(f64::from(self.service.replicas))),
                concurrent: share(concurrent),
                queued: share(refused * 0.5),
                arrivals: of(arrived),
                completed: of(answered),
                refused: BTreeMap::from([("queue".to_owned(), of(turned_away))]),
                ..self.service.clone()
            });
        }
        events
    }

    pub(crate) fn give(&mut self, input: Input) {
        for action in self.scaler.on(self.now, input) {
            match action {
                Action::Ask { key: asked, id, event } => {
                    assert_eq!(asked, key());
                    let (from, to) = (self.coming(), event.replicas.unwrap());
                    self.asks.push(Ask { second: self.second, from, to, id, event: (*event).clone() });
                    self.carry_out(to);
                    // Everyone hears it, this scaler too.
                    self.scaler.on(self.now, Input::Asked { key: asked, event });
                }
                other => self.reports.push(other),
            }
        }
    }

    /// Does what the deployer does.
    pub(crate) fn carry_out(&mut self, replicas: u32) {
        self.service.revision += 1;
        while self.coming() > replicas {
            if self.starting.pop().is_none() {
                self.service.replicas -= 1;
            }
        }
        while let Some(start) = self.start.filter(|_| self.coming() < replicas) {
            self.starting.push(self.second + start);
        }
    }
}
