//! In and out of a gate: a request's wait for a slot, and the slot itself.

use std::sync::Arc;

use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use super::Gate;
use crate::{
    queue::Ticket,
    refusal::Refusal,
    slots::{Entered, Peer, Serial},
};

impl Gate {
    /// Waits for a slot until a moment, at most `bound` requests at a time. A request that comes again brings its ticket, and with it
    /// its place in the line. Dropping the future leaves the line at once.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        now: Instant,
        ticket: &mut Option<Ticket>,
        until: Instant,
        bound: usize,
    ) -> Result<Slot, Refusal> {
        let mut waiting = {
            let mut inner = self.lock();
            if inner.gone {
                return Err(self.no_such_service());
            }
            match inner.slots.enter(now, ticket, bound) {
                Entered::Taken(serial, peer) => return Ok(Slot::new(self, serial, peer, now)),
                Entered::Full => return Err(Refusal::Overloaded(self.crowd(&inner))),
                Entered::Deserted => return Err(Refusal::NoReplicas(self.crowd(&inner))),
                Entered::Wait(place) => {
                    let (sender, receiver) = oneshot::channel();
                    inner.slots.wait(now, place, sender);
                    Waiting { gate: self, place, receiver }
                }
            }
        };
        match tokio::time::timeout_at(until, &mut waiting.receiver).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) => Err(self.no_such_service()),
            Err(_) => waiting.give_up(),
        }
    }

    fn release(self: &Arc<Self>, serial: Serial, served: Option<Duration>) {
        let (emptied, somebody_waits) = {
            let mut inner = self.lock();
            if let Some(latency) = served {
                inner.completed += 1;
                inner.latencies.record(latency);
            }
            let emptied = inner.slots.release(Instant::now(), serial);
            (emptied, inner.slots.gauges().queued > 0)
        };
        if somebody_waits {
            self.hand_out();
        }
        if emptied {
            self.announce();
        }
    }

    /// Gives free slots to whoever waits, first come first served.
    pub(super) fn hand_out(self: &Arc<Self>) {
        loop {
            let now = Instant::now();
            let Some((waiter, serial, peer)) = self.lock().slots.hand_out(now) else { return };
            if let Err(mut slot) = waiter.send(Slot::new(self, serial, peer, now)) {
                // Gone in this very moment. Put back here, not by the slot's own drop, which would come back to this loop.
                slot.held = false;
                if self.lock().slots.release(Instant::now(), serial) {
                    self.announce();
                }
            }
        }
    }
}

/// A request in the line. Leaves it when dropped.
struct Waiting<'a> {
    gate: &'a Arc<Gate>,
    place: Ticket,
    receiver: oneshot::Receiver<Slot>,
}

impl Waiting<'_> {
    /// The wait is over: takes a slot that came in this very moment, else says why there was none.
    fn give_up(mut self) -> Result<Slot, Refusal> {
        let crowd = {
            let mut inner = self.gate.lock();
            let crowd = self.gate.crowd(&inner);
            inner.slots.leave(Instant::now(), self.place);
            crowd
        };
        match self.receiver.try_recv() {
            Ok(slot) => Ok(slot),
            Err(_) if crowd.ready == 0 => Err(Refusal::NoReplicas(crowd)),
            Err(_) => Err(Refusal::Overloaded(crowd)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.lock().slots.leave(Instant::now(), self.place);
    }
}

/// A request's place in a replica. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<Gate>,
    serial: Serial,
    peer: Arc<Peer>,
    granted: Instant,
    served: Option<Duration>,
    held: bool,
}

impl Slot {
    fn new(gate: &Arc<Gate>, serial: Serial, peer: Arc<Peer>, granted: Instant) -> Self {
        Self { gate: gate.clone(), serial, peer, granted, served: None, held: true }
    }

    /// When the request got it.
    pub(crate) fn granted(&self) -> Instant {
        self.granted
    }

    /// The replica.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The replica has answered, so long after the request came.
    pub(crate) fn served(&mut self, latency: Duration) {
        self.served = Some(latency);
    }

    /// Gives the slot back, and chooses the replica no more until it is found well. Returns who is to be looked after, if somebody is.
    pub(crate) fn set_aside(self) -> Option<(Arc<Gate>, Serial, Arc<Peer>)> {
        let (gate, serial, peer) = (self.gate.clone(), self.serial, self.peer.clone());
        // Before the slot is given back, so that no waiter gets it.
        gate.set_aside(serial).then_some((gate, serial, peer))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.held {
            self.gate.release(self.serial, self.served);
        }
    }
}
