//! Connections to replicas that may be used again: a few, for a short time, of one thread.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

use crate::{address::Address, upstream::Wire};

/// Connections kept to one replica.
const MOST: usize = 256;

/// Idle connections by address.
pub(crate) struct Pool {
    /// Used by one thread; the lock is there since tasks may move in principle.
    idle: Mutex<HashMap<Address, Vec<Idle>>>,
    keep: Duration,
}

struct Idle {
    wire: Wire,
    since: Instant,
}

impl Pool {
    /// Keeps connections for so long. It should be shorter than replicas do: one that is closed just as a request is written to it
    /// fails that request, since nobody can say whether it was begun.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { idle: Mutex::default(), keep }
    }

    /// A connection that the other side still holds. The one used last, since it is the least likely to be closed.
    pub(crate) fn take(&self, address: &Address) -> Option<Wire> {
        let mut idle = self.lock();
        let wires = idle.get_mut(address)?;
        let now = Instant::now();
        while let Some(mut last) = wires.pop() {
            if now - last.since >= self.keep {
                // All others are older still.
                wires.clear();
                return None;
            }
            if last.wire.is_usable() {
                return Some(last.wire);
            }
        }
        None
    }

    /// Keeps a connection, if it is ready for another request.
    pub(crate) fn keep(&self, address: &Address, mut wire: Wire) {
        if self.keep.is_zero() || !wire.is_usable() {
            return;
        }
        let mut idle = self.lock();
        let since = Instant::now();
        match idle.get_mut(address) {
            Some(wires) if wires.len() >= MOST => {}
            Some(wires) => wires.push(Idle { wire, since }),
            None => drop(idle.insert(address.clone(), vec![Idle { wire, since }])),
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, wires| {
            wires.retain(|idle| now - idle.since < self.keep);
            !wires.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
