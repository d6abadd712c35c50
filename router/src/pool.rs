//! Connections to replicas that may be used again: a few, for a short time, of one thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use crate::{slots::Peer, upstream::Wire};

/// Connections kept to one replica.
const MOST: usize = 256;

/// Idle connections.
pub(crate) struct Pool {
    /// By the place of the peer in memory, which is its own as long as it is held here: comparing numbers is all that a look-up costs.
    /// Used by one thread; the lock is there since tasks may move in principle.
    idle: Mutex<BTreeMap<usize, Idle>>,
    keep: Duration,
}

struct Idle {
    _peer: Arc<Peer>,
    /// The one used last at the end.
    wires: Vec<(Wire, Instant)>,
}

impl Pool {
    /// Keeps connections for so long. It should be shorter than replicas do: one that is closed just as a request is written to it
    /// fails that request, since nobody can say whether it was begun.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { idle: Mutex::default(), keep }
    }

    /// A connection that the other side still holds. The one used last, since it is the least likely to be closed.
    pub(crate) fn take(&self, peer: &Arc<Peer>) -> Option<Wire> {
        let mut idle = self.lock();
        let wires = &mut idle.get_mut(&place(peer))?.wires;
        while let Some((mut wire, since)) = wires.pop() {
            if since.elapsed() >= self.keep {
                // All others are older still.
                wires.clear();
                return None;
            }
            if wire.is_usable() {
                return Some(wire);
            }
        }
        None
    }

    /// Keeps a connection whose answer has come whole, unless the replica closes it.
    pub(crate) fn keep(&self, peer: &Arc<Peer>, wire: Wire) {
        if self.keep.is_zero() || !wire.lasts() {
            return;
        }
        let mut idle = self.lock();
        let new = || Idle { _peer: peer.clone(), wires: Vec::new() };
        let wires = &mut idle.entry(place(peer)).or_insert_with(new).wires;
        if wires.len() < MOST {
            wires.push((wire, Instant::now()));
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, idle| {
            idle.wires.retain(|(_, since)| since.elapsed() < self.keep);
            !idle.wires.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(peer: &Arc<Peer>) -> usize {
    Arc::as_ptr(peer).addr()
}
