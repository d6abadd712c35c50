//! The slots of a service's replicas and who waits for one: the core that decides, with no clock, no I/O and no lock of its own.
//!
//! Held here: a replica never has more requests than its limit; nobody overtakes a waiter who came before; a replica that is being
//! emptied, set aside or gone from the route is never chosen.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use proto::id::ReplicaId;
use tokio::time::{Duration, Instant};

use crate::{
    address::Address,
    load::{Gauges, Load, Window},
    queue::{Queue, Ticket},
};

/// How long after its last ready replica a service is worth waiting for, although nothing says that another is coming.
const LATELY: Duration = Duration::from_secs(10);

/// One appearance of a replica in the routes; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Serial(u64);

/// A replica and where it listens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The replica.
    pub(crate) id: ReplicaId,
    /// Where it listens.
    pub(crate) address: Address,
}

/// What a route says of one replica.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// The replica.
    pub(crate) peer: Arc<Peer>,
    /// Whether it is being emptied.
    pub(crate) draining: bool,
}

#[derive(Debug)]
struct Replica {
    peer: Arc<Peer>,
    in_flight: u32,
    /// Named by the route.
    listed: bool,
    draining: bool,
    /// Not to be chosen until a probe has found it well.
    aside: bool,
}

impl Replica {
    /// May be chosen as far as the route says.
    fn open(&self) -> bool {
        self.listed && !self.draining
    }

    fn ready(&self) -> bool {
        self.open() && !self.aside
    }
}

/// What became of a request that wants a slot.
#[derive(Debug)]
pub(crate) enum Entered {
    /// It has one.
    Taken(Serial, Arc<Peer>),
    /// It is to wait at this place.
    Wait(Ticket),
    /// The line is full.
    Full,
    /// No replica is ready, and nothing says that one is coming.
    Deserted,
}

/// Slots, queue and load of one service. `W` is whatever wakes a waiter.
#[derive(Debug)]
pub(crate) struct Slots<W> {
    limit: u32,
    starting: u32,
    replicas: BTreeMap<Serial, Replica>,
    queue: Queue<W>,
    /// The last one chosen: the search begins behind it, so that ties go round.
    turn: Serial,
    next: u64,
    ready: u32,
    last_ready: Option<Instant>,
    load: Load,
}

impl<W> Slots<W> {
    /// No replica, nobody waiting.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            limit: 1,
            starting: 0,
            replicas: BTreeMap::new(),
            queue: Queue::default(),
            turn: Serial(0),
            next: 1,
            ready: 0,
            last_ready: None,
            load: Load::new(now),
        }
    }

    /// Goes by a new route from now on. Says whether a replica is being emptied or has gone, which whoever stops it waits to hear.
    pub(crate) fn apply(&mut self, now: Instant, limit: u32, starting: u32, listed: Vec<Listed>) -> bool {
        self.limit = limit.max(1);
        self.starting = starting;
        let known: HashMap<ReplicaId, Serial> =
            self.replicas.iter().map(|(serial, replica)| (replica.peer.id.clone(), *serial)).collect();
        let before = self.replicas.values().filter(|replica| replica.listed).count();
        self.replicas.values_mut().for_each(|replica| replica.listed = false);
        let mut emptying = false;
        let mut kept = 0;
        for Listed { peer, draining } in listed {
            emptying |= draining;
            let known = known.get(&peer.id).and_then(|serial| self.replicas.get_mut(serial));
            let Some(replica) = known else {
                let replica = Replica { peer, in_flight: 0, listed: true, draining, aside: false };
                self.replicas.insert(Serial(self.next), replica);
                self.next += 1;
                continue;
            };
            kept += 1;
            replica.listed = true;
            replica.draining = draining;
            if replica.peer != peer {
                replica.peer = peer;
                replica.aside = false;
            }
        }
        self.replicas.retain(|_, replica| replica.listed || replica.in_flight > 0);
        self.recount(now);
        emptying || kept < before
    }

    /// Gives a request a slot, or its place in the line. A ticket that it has from before is its place still.
    pub(crate) fn enter(&mut self, now: Instant, ticket: &mut Option<Ticket>, bound: usize) -> Entered {
        let is_new = ticket.is_none();
        let place = *ticket.get_or_insert_with(|| self.queue.ticket());
        if !self.queue.is_behind(place)
            && let Some((serial, peer)) = self.take(now)
        {
            return Entered::Taken(serial, peer);
        }
        if !self.is_worth_waiting(now) {
            Entered::Deserted
        } else if is_new && self.queue.len() >= bound {
            Entered::Full
        } else {
            Entered::Wait(place)
        }
    }

    /// Waits at the place that [`Self::enter`] gave.
    pub(crate) fn wait(&mut self, now: Instant, place: Ticket, waiter: W) {
        self.queue.wait(place, waiter);
        self.note(now);
    }

    /// Leaves the line; nothing happens when the waiter has been served meanwhile.
    pub(crate) fn leave(&mut self, now: Instant, place: Ticket) -> Option<W> {
        let waiter = self.queue.leave(place);
        self.note(now);
        waiter
    }

    /// Takes a free slot for whoever waits longest.
    pub(crate) fn hand_out(&mut self, now: Instant) -> Option<(W, Serial, Arc<Peer>)> {
        if self.queue.len() == 0 {
            return None;
        }
        let (serial, peer) = self.take(now)?;
        let waiter = self.queue.pop()?;
        self.note(now);
        Some((waiter, serial, peer))
    }

    /// Gives a slot back. Says whether this has emptied a replica that is being emptied.
    pub(crate) fn release(&mut self, now: Instant, serial: Serial) -> bool {
        let Some(replica) = self.replicas.get_mut(&serial) else { return false };
        replica.in_flight = replica.in_flight.saturating_sub(1);
        let (empty, open, listed) = (replica.in_flight == 0, replica.open(), replica.listed);
        let mut gauges = self.load.gauges();
        gauges.concurrent = gauges.concurrent.saturating_sub(1);
        gauges.busy -= u32::from(empty && open && gauges.busy > 0);
        self.load.set(now, gauges);
        if empty && !listed {
            self.replicas.remove(&serial);
        }
        empty && !open
    }

    /// Chooses a replica no more until [`Self::restore`]. Says whether somebody should look after it: it was well until now, and matters.
    pub(crate) fn set_aside(&mut self, now: Instant, serial: Serial) -> bool {
        let Some(replica) = self.replicas.get_mut(&serial) else { return false };
        // One that is being emptied may be taken back.
        let matters = replica.listed && !replica.aside;
        replica.aside = true;
        self.recount(now);
        matters
    }

    /// Whether a replica still waits for somebody to find it well.
    pub(crate) fn is_aside(&self, serial: Serial) -> bool {
        self.replicas.get(&serial).is_some_and(|replica| replica.aside && replica.listed)
    }

    /// May choose a replica again.
    pub(crate) fn restore(&mut self, now: Instant, serial: Serial) {
        if let Some(replica) = self.replicas.get_mut(&serial) {
            replica.aside = false;
            self.recount(now);
        }
    }

    /// Sends everybody in the line away.
    pub(crate) fn dismiss(&mut self, now: Instant) -> Vec<W> {
        let waiters = self.queue.clear();
        self.note(now);
        waiters
    }

    /// Closes a window of load.
    pub(crate) fn close_window(&mut self, now: Instant) -> Window {
        self.load.close(now)
    }

    /// What is so now.
    pub(crate) fn gauges(&self) -> Gauges {
        self.load.gauges()
    }

    /// Replicas that the route says may be chosen.
    pub(crate) fn open(&self) -> u32 {
        count(self.replicas.values().filter(|replica| replica.open()))
    }

    /// Replicas that may be chosen and are not set aside.
    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    /// Replicas that are coming, as the route says.
    pub(crate) fn starting(&self) -> u32 {
        self.starting
    }

    /// Requests that one replica may have.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Requests in each replica that is being emptied or gone from the route.
    pub(crate) fn draining(&self) -> BTreeMap<ReplicaId, u32> {
        let leaving = self.replicas.values().filter(|replica| !replica.open());
        leaving.map(|replica| (replica.peer.id.clone(), replica.in_flight)).collect()
    }

    /// Whether no request is anywhere in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.load.gauges().concurrent == 0 && self.queue.len() == 0
    }

    /// The ready replica with the fewest requests, if that is fewer than its limit; the next one in turn among equals.
    fn take(&mut self, now: Instant) -> Option<(Serial, Arc<Peer>)> {
        let after = Serial(self.turn.0 + 1);
        let mut best: Option<(u32, Serial)> = None;
        for (serial, replica) in self.replicas.range(after..).chain(self.replicas.range(..after)) {
            let better = best.is_none_or(|(fewest, _)| replica.in_flight < fewest);
            if better && replica.in_flight < self.limit && replica.ready() {
                best = Some((replica.in_flight, *serial));
                if replica.in_flight == 0 {
                    break;
                }
            }
        }
        let (_, serial) = best?;
        let replica = self.replicas.get_mut(&serial)?;
        replica.in_flight += 1;
        self.turn = serial;
        let mut gauges = self.load.gauges();
        gauges.concurrent += 1;
        gauges.busy += u32::from(replica.in_flight == 1);
        self.load.set(now, gauges);
        Some((serial, replica.peer.clone()))
    }

    fn is_worth_waiting(&self, now: Instant) -> bool {
        self.starting > 0
            || self.replicas.values().any(Replica::open)
            || self.last_ready.is_some_and(|last| now.saturating_duration_since(last) < LATELY)
    }

    /// Counts anew after replicas have changed.
    fn recount(&mut self, now: Instant) {
        let was_ready = self.ready > 0;
        self.ready = count(self.replicas.values().filter(|replica| replica.ready()));
        if was_ready || self.ready > 0 {
            self.last_ready = Some(now);
        }
        self.load.set(
            now,
            Gauges {
                busy: count(self.replicas.values().filter(|replica| replica.open() && replica.in_flight > 0)),
                concurrent: self.replicas.values().map(|replica| replica.in_flight).sum(),
                queued: self.load.gauges().queued,
            },
        );
    }

    /// Counts the line anew.
    fn note(&mut self, now: Instant) {
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        self.load.set(now, Gauges { queued, ..self.load.gauges() });
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn listed(id: u32, draining: bool) -> Listed {
        let address = format!("unix:/r/{id}").parse().unwrap();
        Listed { peer: Arc::new(Peer { id: format!("r-{id}").parse().unwrap(), address }), draining }
    }

    fn with(now: Instant, limit: u32, ids: &[u32]) -> Slots<u32> {
        let mut slots = Slots::new(now);
        slots.apply(now, limit, 0, ids.iter().map(|id| listed(*id, false)).collect());
        slots
    }

    fn enter(slots: &mut Slots<u32>, now: Instant, waiter: u32) -> Entered {
        let entered = slots.enter(now, &mut None, 3);
        if let Entered::Wait(place) = entered {
            slots.wait(now, place, waiter);
        }
        entered
    }

    fn take(slots: &mut Slots<u32>, now: Instant) -> Serial {
        match enter(slots, now, 0) {
            Entered::Taken(serial, _) => serial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_that_comes_again_keeps_its_place() {
        let now = Instant::now();
        let mut slots = with(now, 1, &[1]);
        let mut ticket = None;
        let Entered::Taken(serial, _) = slots.enter(now, &mut ticket, 3) else { panic!("a slot is free") };
        enter(&mut slots, now, 7);
        // The replica could not be reached: it is set aside, and the request comes again, before the one that came later.
        assert!(slots.set_aside(now, serial));
        slots.release(now, serial);
        let Entered::Wait(place) = slots.enter(now, &mut ticket, 0) else {
            panic!("it waits, however full the line is")
        };
        slots.wait(now, place, 8);
        slots.restore(now, serial);
        assert_eq!(slots.hand_out(now).map(|(waiter, ..)| waiter), Some(8));
        slots.release(now, serial);
        assert_eq!(slots.hand_out(now).map(|(waiter, ..)| waiter), Some(7));
    }

    #[test]
    fn a_newcomer_does_not_take_a_slot_that_has_just_come_free_from_those_who_wait() {
        let now = Instant::now();
        let mut slots = with(now, 1, &[1]);
        let serial = take(&mut slots, now);
        assert!(matches!(enter(&mut slots, now, 7), Entered::Wait(_)));
        slots.release(now, serial);
        assert!(matches!(enter(&mut slots, now, 8), Entered::Wait(_)));
        assert_eq!(slots.hand_out(now).map(|(waiter, ..)| waiter), Some(7));
    }

    #[test]
    fn a_service_is_worth_waiting_for_while_a_replica_is_coming_or_was_there_lately() {
        let now = Instant::now();
        let mut slots = Slots::new(now);
        assert!(matches!(enter(&mut slots, now, 0), Entered::Deserted));
        slots.apply(now, 1, 1, Vec::new());
        assert!(matches!(enter(&mut slots, now, 0), Entered::Wait(_)));
        slots.apply(now, 1, 0, vec![listed(1, false)]);
        slots.apply(now, 1, 0, Vec::new());
        assert!(matches!(enter(&mut slots, now + LATELY / 2, 0), Entered::Wait(_)));
        assert!(matches!(enter(&mut slots, now + LATELY, 0), Entered::Deserted));
    }

    #[test]
    fn a_replica_that_leaves_is_listed_until_it_is_empty() {
        let now = Instant::now();
        let mut slots = with(now, 1, &[1, 2]);
        let serial = take(&mut slots, now);
        let id: ReplicaId = "r-1".parse().unwrap();
        assert!(slots.apply(now, 1, 0, vec![listed(1, true), listed(2, false)]), "that is news");
        assert_eq!(slots.draining(), [(id.clone(), 1)].into());
        assert!(slots.apply(now, 1, 0, vec![listed(2, false)]), "and so is that");
        assert_eq!(slots.draining(), [(id, 1)].into());
        assert!(!slots.apply(now, 1, 0, vec![listed(2, false)]), "that is not");
        assert!(slots.release(now, serial), "it is empty now");
        assert!(slots.draining().is_empty());
        let other = take(&mut slots, now);
        assert!(!slots.release(now, other));
    }

    #[test]
    fn a_replica_that_is_being_emptied_is_looked_after_too() {
        let now = Instant::now();
        let mut slots = with(now, 1, &[1]);
        let serial = take(&mut slots, now);
        slots.apply(now, 1, 0, vec![listed(1, true)]);
        assert!(slots.set_aside(now, serial), "it may be taken back");
        slots.release(now, serial);
        slots.apply(now, 1, 0, vec![listed(1, false)]);
        slots.restore(now, serial);
        assert_eq!(slots.ready(), 1);
        slots.apply(now, 1, 0, Vec::new());
        assert!(!slots.set_aside(now, serial), "one that is gone is nobody's matter");
    }

    #[test]
    fn a_replica_that_comes_back_under_another_address_is_well() {
        let now = Instant::now();
        let mut slots = with(now, 1, &[1]);
        let serial = take(&mut slots, now);
        slots.set_aside(now, serial);
        slots.release(now, serial);
        assert_eq!(slots.ready(), 0);
        let mut moved = listed(1, false);
        moved.peer = Arc::new(Peer { id: moved.peer.id.clone(), address: "unix:/elsewhere".parse().unwrap() });
        slots.apply(now, 1, 0, vec![moved]);
        assert_eq!(slots.ready(), 1);
        assert!(!slots.is_aside(serial));
    }

    /// What may happen to a service, in any order.
    #[derive(Debug, Clone)]
    enum Step {
        Enter,
        Release(prop::sample::Index),
        Leave(prop::sample::Index),
        Aside(prop::sample::Index),
        Restore,
        Apply { limit: u32, replicas: BTreeSet<u32>, draining: BTreeSet<u32> },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let some = || prop::collection::btree_set(0u32..5, 0..5);
        let step = prop_oneof![
            4 => Just(Step::Enter),
            3 => any::<prop::sample::Index>().prop_map(Step::Release),
            1 => any::<prop::sample::Index>().prop_map(Step::Leave),
            1 => any::<prop::sample::Index>().prop_map(Step::Aside),
            1 => Just(Step::Restore),
            1 => (1u32..4, some(), some()).prop_map(|(limit, replicas, draining)| Step::Apply { limit, replicas, draining }),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn whatever_happens_limits_order_and_counts_hold(steps in steps()) {
            let now = Instant::now();
            let mut slots: Slots<u32> = with(now, 2, &[0, 1, 2]);
            let (mut limit, mut open): (u32, BTreeSet<u32>) = (2, (0..3).collect());
            let (mut held, mut waiting, mut aside) = (Vec::new(), Vec::<(u32, Ticket)>::new(), Vec::new());
            let mut next = 0;
            for step in steps {
                // What is chosen now must be allowed now; a lower limit only stops more from coming.
                let mut chosen = Vec::new();
                match step {
                    Step::Enter => {
                        next += 1;
                        match enter(&mut slots, now, next) {
                            Entered::Taken(serial, peer) => {
                                prop_assert!(waiting.is_empty(), "nobody is overtaken");
                                chosen.push((serial, peer));
                            }
                            Entered::Wait(place) => waiting.push((next, place)),
                            Entered::Full => prop_assert_eq!(waiting.len(), 3),
                            Entered::Deserted => prop_assert!(open.is_empty()),
                        }
                    }
                    Step::Release(index) if !held.is_empty() => {
                        let (serial, _): (Serial, Arc<Peer>) = held.swap_remove(index.index(held.len()));
                        slots.release(now, serial);
                    }
                    Step::Leave(index) if !waiting.is_empty() => {
                        let (waiter, place) = waiting.remove(index.index(waiting.len()));
                        prop_assert_eq!(slots.leave(now, place), Some(waiter));
                        prop_assert_eq!(slots.leave(now, place), None);
                    }
                    Step::Aside(index) if !held.is_empty() => {
                        let (serial, peer) = held[index.index(held.len())].clone();
                        slots.set_aside(now, serial);
                        aside.push((serial, peer));
                    }
                    Step::Restore => aside.drain(..).for_each(|(serial, _)| slots.restore(now, serial)),
                    Step::Apply { limit: new, replicas, draining } => {
                        let list = replicas.iter().map(|id| listed(*id, draining.contains(id))).collect();
                        slots.apply(now, new, 0, list);
                        limit = new;
                        open = replicas.difference(&draining).copied().collect();
                        aside.retain(|(serial, _)| slots.is_aside(*serial));
                    }
                    Step::Release(_) | Step::Leave(_) | Step::Aside(_) => {}
                }
                while let Some((waiter, serial, peer)) = slots.hand_out(now) {
                    prop_assert_eq!(waiter, waiting.remove(0).0, "first come, first served");
                    chosen.push((serial, peer));
                }
                for (serial, peer) in chosen {
                    prop_assert!(open.contains(&peer.id.as_str()[2..].parse().unwrap()), "{:?} is not on offer", peer);
                    prop_assert!(!aside.iter().any(|(other, _)| *other == serial), "{:?} is set aside", peer);
                    held.push((serial, peer));
                    let there = held.iter().filter(|(other, _)| *other == serial).count();
                    prop_assert!(there <= limit as usize, "{} in {:?}", there, held);
                }
                let gauges = slots.gauges();
                prop_assert_eq!(gauges.concurrent as usize, held.len());
                prop_assert_eq!(gauges.queued as usize, waiting.len());
                let busy: BTreeSet<_> = held.iter().map(|(_, peer)| peer.id.as_str()[2..].parse().unwrap()).collect();
                prop_assert_eq!(gauges.busy as usize, open.intersection(&busy).count());
                prop_assert_eq!(slots.open() as usize, open.len());
            }
        }
    }
}
