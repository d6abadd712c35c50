//! Requests that wait for a slot: first come, first served.
//!
//! Time and slots are not known here.

use std::collections::BTreeMap;

/// A place in the line; a smaller one came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// A line of waiters, any of whom may leave at any time.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    waiting: BTreeMap<Ticket, W>,
    next: u64,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), next: 0 }
    }
}

impl<W> Queue<W> {
    /// A ticket behind all others.
    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether somebody came before this ticket and still waits.
    pub(crate) fn is_behind(&self, ticket: Ticket) -> bool {
        self.waiting.first_key_value().is_some_and(|(first, _)| *first < ticket)
    }

    /// Waits at the ticket's place.
    pub(crate) fn wait(&mut self, ticket: Ticket, waiter: W) {
        self.waiting.insert(ticket, waiter);
    }

    /// Leaves the line.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<W> {
        self.waiting.remove(&ticket)
    }

    /// Takes whoever came first.
    pub(crate) fn pop(&mut self) -> Option<W> {
        self.waiting.pop_first().map(|(_, waiter)| waiter)
    }

    /// Sends everybody away.
    pub(crate) fn clear(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}
