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
        let matters = replica.ready();
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
