//! What is left when a caller has gone or its time is over: a replica that may still be working, an upload that nobody wants.
//!
//! A slot is not given away while the replica may still be at it. So an unfinished exchange goes on here, without a caller, until the
//! replica has answered; only when it has not within the grace is the slot given back, and the replica set aside until it is found well.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use runtime::shutdown::Tasks;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    caller::Caller,
    config::Limits,
    gate::Slot,
    probe,
    request_body::Fate,
    upstream::{Failed, Wire},
};

/// How long an unwanted upload is read away.
const LINGER: Duration = Duration::from_secs(5);
/// How much of it, in bytes.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// An exchange with a replica, up to the head of its answer.
pub(crate) type Exchange = Pin<Box<dyn Future<Output = Result<(Response<Incoming>, Wire), Failed>> + Send>>;

enum Leftover {
    Exchange { exchange: Exchange, slot: Slot, until: Instant },
    Answer { body: Incoming, wire: Wire, slot: Slot },
    Upload(Incoming),
}

/// Where leftovers are left.
#[derive(Clone)]
pub(crate) struct Leftovers(mpsc::UnboundedSender<Leftover>);

/// Whoever sees to them.
pub(crate) struct Janitor {
    leftovers: mpsc::UnboundedReceiver<Leftover>,
    limits: Arc<Limits>,
    tasks: Tasks,
}

impl Leftovers {
    /// A place for leftovers, and the janitor that must run beside it.
    pub(crate) fn new(limits: Arc<Limits>, tasks: Tasks) -> (Self, Janitor) {
        let (sender, leftovers) = mpsc::unbounded_channel();
        (Self(sender), Janitor { leftovers, limits, tasks })
    }

    /// An upload that nobody wants, read away for a while so that its sender gets to read the answer.
    pub(crate) fn upload(&self, incoming: Incoming) {
        self.leave(Leftover::Upload(incoming));
    }

    /// An answer that nobody reads.
    pub(crate) fn answer(&self, body: Incoming, wire: Wire, slot: Slot) {
        self.leave(Leftover::Answer { body, wire, slot });
    }

    fn leave(&self, leftover: Leftover) {
        // Without a janitor the thread is at its end, and so is everything that it held.
        let _ = self.0.send(leftover);
    }
}

impl Janitor {
    /// Sees to leftovers until there is nobody to leave any.
    pub(crate) async fn tend(mut self) {
        while let Some(leftover) = self.leftovers.recv().await {
            self.tasks.spawn(finish(leftover, self.limits.clone()));
        }
    }
}

async fn finish(leftover: Leftover, limits: Arc<Limits>) {
    let (finished, slot) = match leftover {
        Leftover::Exchange { exchange, slot, until } => {
            let whole = async {
                if let Ok((response, wire)) = exchange.await {
                    read_away(response.into_body(), wire).await;
                }
            };
            (tokio::time::timeout_at(until, whole).await.is_ok(), slot)
        }
        Leftover::Answer { body, wire, slot } => {
            (tokio::time::timeout(limits.grace, read_away(body, wire)).await.is_ok(), slot)
        }
        Leftover::Upload(incoming) => {
            // Whether it ended or was given up, the connection knows what to do next.
            let _ = tokio::time::timeout(LINGER, linger(incoming)).await;
            return;
        }
    };
    if finished {
        return;
    }
    tracing::warn!(replica = %slot.peer().id, "a replica is still at a request whose time is over; set aside until it answers");
    if let Some((gate, serial, peer)) = slot.set_aside() {
        probe::until_well(gate, serial, peer, limits).await;
    }
}

async fn read_away(mut body: Incoming, mut wire: Wire) {
    while let Some(Ok(_)) = poll_fn(|cx| wire.poll_body(&mut body, cx)).await {}
}

async fn linger(mut incoming: Incoming) {
    let mut read = 0;
    while let Some(Ok(frame)) = incoming.frame().await {
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > LINGER_BYTES {
            return;
        }
    }
}

/// A request in a replica, as long as its caller waits. Dropped before the answer came, it goes on as a leftover.
pub(crate) struct InFlight<'a> {
    exchange: Option<Exchange>,
    slot: Option<Slot>,
    fate: &'a Fate,
    until: Instant,
    leftovers: &'a Leftovers,
}

impl<'a> InFlight<'a> {
    /// An exchange in a slot; `until` is when the replica's last grace is over.
    pub(crate) fn new(
        exchange: Exchange,
        slot: Slot,
        fate: &'a Fate,
        until: Instant,
        leftovers: &'a Leftovers,
    ) -> Self {
        Self { exchange: Some(exchange), slot: Some(slot), fate, until, leftovers }
    }

    /// What came of it by the deadline; `None` when it goes on without its caller.
    pub(crate) async fn by(
        mut self,
        deadline: Instant,
        caller: &Caller,
    ) -> Option<(Result<(Response<Incoming>, Wire), Failed>, Slot)> {
        let exchange = self.exchange.as_mut()?;
        let answered = poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => caller.poll_deadline(cx, deadline).map(|()| None),
        });
        let answered = answered.await?;
        self.exchange = None;
        Some((answered, self.slot.take()?))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let (Some(exchange), Some(slot)) = (self.exchange.take(), self.slot.take()) else { return };
        // Without its whole body a request does not get far: the replica sees the connection end, and is free.
        if !self.fate.is_flowing() {
            self.leftovers.leave(Leftover::Exchange { exchange, slot, until: self.until });
        }
    }
}
