//! What one serving thread has to itself, and what it shares.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use runtime::shutdown::Tasks;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    identity::Ids,
    leftover::{Janitor, Leftovers},
    metrics::Meters,
    pool::Pool,
    routes::Routes,
};

/// The surroundings of a request.
pub(crate) struct Thread {
    /// Limits of connections and requests.
    pub(crate) limits: Arc<Limits>,
    /// Which services there are; shared by all threads.
    pub(crate) routes: Arc<Routes>,
    /// What is measured; shared by all threads.
    pub(crate) meters: Arc<Meters>,
    /// Connections to replicas, of this thread alone.
    pub(crate) pool: Pool,
    /// Names for requests.
    pub(crate) ids: Ids,
    /// Where unfinished work is left.
    pub(crate) leftovers: Leftovers,
    /// Work that no caller waits for; it ends with the thread.
    pub(crate) background: Tasks,
    /// How connections learn that the server is being stopped.
    pub(crate) stopping: Stopping,
}

/// The end of a server. Looked at with each step of a connection, so the usual answer must cost next to nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping {
    token: CancellationToken,
    begun: Arc<AtomicBool>,
}

impl Stopping {
    /// The same end with waiters of its own, so that threads do not meet at one lock.
    pub(crate) fn for_one_thread(&self) -> Self {
        Self { token: self.token.child_token(), begun: self.begun.clone() }
    }

    /// Stops.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Waits for it.
    pub(crate) async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// Drives a future to its end, or returns `None` once stopping has begun.
    pub(crate) async fn or<F: Future + Unpin>(&self, mut future: F) -> Option<F::Output> {
        let mut begun = pin!(self.token.cancelled());
        let mut waits = false;
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut future).poll(cx) {
                return Poll::Ready(Some(output));
            }
            // A task's waker does not change, so it needs to be left only once.
            if !waits || self.begun.load(Ordering::Acquire) {
                waits = true;
                return begun.as_mut().poll(cx).map(|()| None);
            }
            Poll::Pending
        })
        .await
    }
}

impl Thread {
    /// Surroundings for one thread, and the janitor that must run on it.
    pub(crate) fn new(
        limits: Arc<Limits>,
        routes: Arc<Routes>,
        meters: Arc<Meters>,
        stopping: Stopping,
    ) -> (Arc<Self>, Janitor) {
        let background = Tasks::default();
        let (leftovers, janitor) = Leftovers::new(limits.clone(), background.clone());
        let (pool, ids) = (Pool::new(limits.pool_idle), Ids::new());
        (Arc::new(Self { limits, routes, meters, pool, ids, leftovers, background, stopping }), janitor)
    }
}
