//! What the routers say, and whether a replica has been emptied by all of them.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    id::{InstanceId, ReplicaId},
    router::ServiceUtilization,
};
use tokio::time::Instant;

use super::replica::Draining;

/// A router that has said nothing for longer is not counted, as long as another is heard. Routers speak every second.
const FRESH: Duration = Duration::from_secs(3);

/// How long after a service was first routed a router may still be silent about it: one that was cut off from the bus is back by then.
const UNHEARD: Duration = Duration::from_secs(10);
/// An answer may be streamed for as long as its caller reads it; so long is waited for it, though routers tell of it.
pub(super) const LONGEST_ANSWER: Duration = Duration::from_secs(3600);

/// The routers of one service.
pub(super) struct Routers {
    listening_since: Instant,
    heard: BTreeMap<InstanceId, Heard>,
}

struct Heard {
    at: Instant,
    sequence: u64,
    at_ms: u64,
    revision: u64,
    draining: BTreeMap<ReplicaId, u32>,
}

impl Routers {
    pub(super) fn since(now: Instant) -> Self {
        Self { listening_since: now, heard: BTreeMap::new() }
    }

    /// Takes what a router said, unless it is late. Its sequence grows; a lower one that was said later means that it began anew.
    pub(super) fn heard(&mut self, now: Instant, said: &ServiceUtilization) {
        let late = self.heard.get(&said.router).is_some_and(|heard| {
            let began_anew = said.sequence < heard.sequence && said.at_ms > heard.at_ms;
            said.sequence <= heard.sequence && !began_anew
        });
        if late {
            return;
        }
        // A router keeps its name until it ends, so those that ended long ago would pile up.
        self.heard.retain(|_, heard| now < heard.at + Duration::from_secs(3600));
        let heard = Heard {
            at: now,
            sequence: said.sequence,
            at_ms: said.at_ms,
            revision: said.revision,
            draining: said.draining.clone(),
        };
        self.heard.insert(said.router.clone(), heard);
    }

    /// Routers begin to speak about a service when they see its route: who is silent before that has not been left out yet.
    pub(super) fn first_routed(&mut self, now: Instant) {
        self.listening_since = self.listening_since.max(now);
    }

    /// Whether no router has a request in the replica or can send it one. `patience` bounds how long a request takes to be answered.
    ///
    /// Unknown is not zero: when every router has fallen silent, the bus may be away, and only time tells.
    pub(super) fn have_emptied(
        &self,
        now: Instant,
        replica: &ReplicaId,
        draining: Draining,
        patience: Duration,
    ) -> bool {
        let (since, listening) = (draining.since, self.listening_since);
        if now < listening + FRESH {
            return false;
        }
        let mut fresh = self.heard.values().filter(|heard| now < heard.at + FRESH).peekable();
        if fresh.peek().is_none() {
            return now >= since + patience || self.heard.is_empty() && now >= listening + UNHEARD;
        }
        let is_empty = |heard: &Heard| {
            heard.revision >= draining.revision && heard.draining.get(replica).is_none_or(|requests| *requests == 0)
        };
        fresh.all(is_empty) || now >= since + patience.max(LONGEST_ANSWER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(65);

    fn said(router: &str, sequence: u64, revision: u64, in_flight: Option<u32>) -> ServiceUtilization {
        let draining = in_flight.map(|requests| (replica(), requests)).into_iter().collect();
        ServiceUtilization { sequence, revision, draining, ..ServiceUtilization::idle(router.parse().unwrap()) }
    }

    fn replica() -> ReplicaId {
        "r1".parse().unwrap()
    }

    struct Case {
        start: Instant,
        routers: Routers,
    }

    impl Case {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, routers: Routers::since(start) }
        }

        fn hear(&mut self, second: u64, said: &ServiceUtilization) {
            self.routers.heard(self.start + Duration::from_secs(second), said);
        }

        /// Whether a replica that has been draining since second 10 by revision 7 is empty.
        fn emptied(&self, second: u64) -> bool {
            let draining = Draining { since: self.start + Duration::from_secs(10), revision: 7 };
            self.routers.have_emptied(self.start + Duration::from_secs(second), &replica(), draining, MOST)
        }
    }

    #[test]
    fn every_router_must_have_seen_the_route_and_have_no_request_left() {
        let mut case = Case::new();
        case.hear(10, &said("a", 1, 7, None));
        case.hear(10, &said("b", 1, 6, None));
        assert!(!case.emptied(11), "b goes by an older route");
        case.hear(11, &said("b", 2, 7, Some(1)));
        assert!(!case.emptied(11), "b has a request there");
        case.hear(12, &said("b", 3, 8, Some(0)));
        assert!(case.emptied(12));
    }

    #[test]
    fn a_dead_router_does_not_hold_up_when_another_speaks() {
        let mut case = Case::new();
        case.hear(9, &said("dead", 1, 6, Some(3)));
        case.hear(12, &said("a", 1, 7, None));
        assert!(case.emptied(12));
    }

    #[test]
    fn silence_of_all_is_unknown_and_not_zero() {
        let mut case = Case::new();
        case.hear(10, &said("a", 1, 6, None));
        assert!(!case.emptied(20));
        assert!(!case.emptied(74));
        assert!(case.emptied(75), "no request can take longer");
    }

    #[test]
    fn a_request_that_a_router_tells_of_is_waited_for_however_long_it_takes() {
        let mut case = Case::new();
        case.hear(80, &said("a", 1, 7, Some(1)));
        assert!(!case.emptied(80), "an answer is being streamed, or the scoring timeout was longer before");
        case.hear(3610, &said("a", 2, 7, Some(1)));
        assert!(case.emptied(3610), "but not for ever");
    }

    #[test]
    fn a_router_that_begins_anew_under_its_old_name_is_heard() {
        let mut case = Case::new();
        case.hear(9, &said("a", 3000, 6, None));
        let mut anew = said("a", 1, 7, Some(1));
        anew.at_ms = 1;
        case.hear(80, &anew);
        assert!(!case.emptied(80), "it has a request there");
    }

    #[test]
    fn without_any_router_there_is_no_request() {
        let case = Case::new();
        assert!(!case.emptied(9), "one may come back");
        assert!(case.emptied(11));
    }

    #[test]
    fn routers_that_may_not_have_spoken_yet_are_waited_for() {
        let mut case = Case::new();
        case.routers.first_routed(case.start + Duration::from_secs(9));
        assert!(!case.emptied(18));
        assert!(case.emptied(19));
    }

    #[test]
    fn a_late_event_does_not_take_back_a_newer_one() {
        let mut case = Case::new();
        case.hear(11, &said("a", 5, 7, None));
        case.hear(11, &said("a", 4, 6, Some(1)));
        assert!(case.emptied(11));
    }
}
