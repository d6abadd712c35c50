//! One service under watch: what was heard of it, what held, and what was asked for.
//!
//! Owns when the rule is followed for this service. It does not know its name, nor whether anyone acts on the answer.

use std::time::Duration;

use proto::{id::Generation, router::ServiceUtilization, spec::Scaling};
use tokio::time::Instant;

use crate::{
    aggregate::{Dropped, Facts, Routers, View},
    decide::Timing,
    pace::Pace,
    rule::Demand,
    window::Window,
};

/// The least time between two looks at a service, whatever the number of routers that speak of it.
const LOOK: Duration = Duration::from_millis(500);

/// The most time between two looks at a service, so that silence is noticed; more than the second between two news of a
/// router, so that a look at old news does not put off the one at new news.
const CHECK: Duration = Duration::from_millis(1_500);

/// How often the wait for a request that shows no effect is doubled at most.
const MOST_DOUBLINGS: u32 = 5;

/// A service under watch.
#[derive(Debug)]
pub(crate) struct Watched {
    routers: Routers,
    heard: Instant,
    looked: Option<Instant>,
    decided: Option<Instant>,
    pace: Pace,
    recent: Window,
    held: Window,
    /// The most replicas since `held` began or a request was carried out: further ones get the whole time before they may go.
    ceiling: u32,
    asked: Option<Asked>,
    /// Whether its load was unknown at the last look.
    pub(crate) frozen: bool,
}

/// A number of replicas that was asked for and has not been seen yet.
#[derive(Debug, Clone, Copy)]
struct Asked {
    generation: Option<Generation>,
    replicas: u32,
    until: Instant,
    repeats: u32,
}

impl Watched {
    /// A service that was first heard of now.
    pub(crate) fn new(now: Instant, timing: Timing) -> Self {
        Self {
            routers: Routers::default(),
            heard: now,
            looked: None,
            decided: None,
            pace: Pace::default(),
            recent: Window::new(timing.up),
            held: Window::new(timing.down),
            ceiling: 0,
            asked: None,
            frozen: false,
        }
    }

    /// Takes news of a router in.
    pub(crate) fn hear(&mut self, now: Instant, received_ms: u64, event: &ServiceUtilization) -> Result<(), Dropped> {
        self.heard = now;
        self.routers.hear(now, received_ms, event)
    }

    /// For how long nothing was said of it.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Whether it is time for another look: soon when there is news, later when there is none.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now >= looked + if self.heard > looked { LOOK } else { CHECK })
    }

    /// Brings the windows up to date; `None` when there is no fresh news.
    pub(crate) fn look(&mut self, now: Instant, timing: &Timing) -> Option<(View, Demand)> {
        self.looked = Some(now);
        self.routers.forget(now, timing.down.max(timing.stale * 2));
        let Some(view) = self.routers.view(now, timing.stale) else {
            self.recent.clear();
            self.held.clear();
            return None;
        };
        self.pace.look(now, &view.load);
        let demand = Demand::of(&view.load, self.pace.seconds());
        self.recent.note(now, demand.requests);
        let grew = self.routers.grew();
        if view.unknown.is_some() || grew {
            // What was not seen may have been anything, and so may what a new router saw: the lower need has to hold anew.
            self.held.clear();
        } else {
            let coming = view.facts.coming();
            if self.held.high().is_none() {
                self.ceiling = coming;
            } else if coming > self.ceiling {
                self.ceiling = coming;
                self.held.restart(now);
            }
            self.held.note(now, demand.requests);
        }
        Some((view, demand))
    }

    /// Another number of replicas, if one is wanted now, and the demand that it follows from.
    pub(crate) fn decide(
        &mut self,
        now: Instant,
        timing: &Timing,
        view: &View,
        demand: Demand,
    ) -> Option<(u32, Demand)> {
        let Scaling::Auto { refresh_seconds, .. } = view.facts.scaling else { return None };
        let refresh = Duration::from_secs(refresh_seconds.max(1).into()).saturating_sub(LOOK);
        if self.decided.is_some_and(|decided| now < decided + refresh) {
            return None;
        }
        self.decided = Some(now);
        // With nothing there and nothing coming, the deployer is at it, or the service is on its way out.
        if view.facts.coming() == 0 {
            return None;
        }
        let target = self.target(now, &view.facts);
        let lasting = match self.recent.low() {
            Some(_) if timing.up.is_zero() => Some(demand),
            Some(low) if self.recent.is_full(now) => Some(Demand::lowest(low, timing.up)),
            _ => None,
        };
        if let Some((more, lasting)) = lasting.and_then(|lasting| Some((lasting.needed(&view.facts)?, lasting)))
            && more > target
        {
            return Some((more, lasting));
        }
        // `held` is empty while anything is unknown.
        let highest = Demand::highest(self.held.high().filter(|_| self.held.is_full(now))?, timing.down);
        let fewer = highest.needed(&view.facts)?;
        (fewer < target).then_some((fewer, highest))
    }

    /// The replicas that are there, are coming, or have been asked for.
    fn target(&mut self, now: Instant, facts: &Facts) -> u32 {
        let coming = facts.coming();
        match self.asked {
            Some(asked) if asked.generation.is_some_and(|generation| generation != facts.generation) => {
                self.asked = None;
                coming
            }
            Some(asked) if asked.replicas == coming => {
                self.asked = None;
                self.ceiling = coming;
                coming
            }
            Some(asked) if now < asked.until => asked.replicas,
            _ => coming,
        }
    }

    /// Forgets what was asked for: it was not stored.
    pub(crate) fn expect_nothing(&mut self) {
        self.asked = None;
    }

    /// Remembers what was asked for, and for how long to wait before it is asked for again.
    pub(crate) fn expect(&mut self, now: Instant, patience: Duration, generation: Option<Generation>, replicas: u32) {
        let repeats = match self.asked {
            // Its own request, heard back.
            Some(asked) if asked.replicas == replicas && now < asked.until => return,
            Some(asked) if now >= asked.until => (asked.repeats + 1).min(MOST_DOUBLINGS),
            Some(asked) => asked.repeats,
            None => 0,
        };
        if replicas > self.ceiling {
            self.ceiling = replicas;
            self.held.restart(now);
        }
        self.asked = Some(Asked { generation, replicas, until: now + patience * 2_u32.pow(repeats), repeats });
    }
}
