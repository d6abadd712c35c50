//! The messages of a consumer, and the way back to them after the bus was away.

use std::{fmt::Display, time::Duration};

use async_nats::jetstream::Message;
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use super::{Bus, Error};
use crate::backoff::Backoff;

/// What is read from a consumer. Its reader opens it whenever it is not open.
pub(super) struct Reading<S> {
    /// What is read, for messages to people.
    name: String,
    messages: Option<S>,
    /// Counts connections to the bus: after a new one the consumer is opened anew at once, not only after a missed heartbeat.
    connections: watch::Receiver<u64>,
    backoff: Backoff,
}

impl<S, E> Reading<S>
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    E: Display,
{
    pub(super) fn new(bus: &Bus, name: impl Into<String>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        Self { name: name.into(), messages: None, connections: bus.connections.clone(), backoff }
    }

    pub(super) fn is_open(&self) -> bool {
        self.messages.is_some()
    }

    /// To be called before each attempt to open it: a connection made from here on makes it open again.
    pub(super) fn about_to_open(&mut self) {
        self.connections.mark_unchanged();
    }

    /// Takes what the attempt came to; after a failure it waits, so that the next one may follow at once.
    pub(super) async fn opened(&mut self, messages: Result<S, Error>) {
        match messages {
            Ok(messages) => self.messages = Some(messages),
            Err(error) => {
                tracing::warn!(reading = self.name, %error, "cannot be read; trying again");
                tokio::time::sleep(self.backoff.next_delay()).await;
            }
        }
    }

    /// The next message; `None` when it has to be opened again.
    pub(super) async fn next(&mut self) -> Option<Message> {
        let messages = self.messages.as_mut()?;
        let next = tokio::select! {
            // What has come already is handed out before anything else: dropped, it would come again only after `ack_wait`.
            biased;
            next = messages.next() => next,
            Ok(()) = self.connections.changed() => None,
        };
        match next {
            Some(Ok(message)) => {
                self.backoff.reset();
                return Some(message);
            }
            Some(Err(error)) => {
                tracing::debug!(reading = self.name, %error, "reading again");
                self.messages = None;
                tokio::time::sleep(self.backoff.next_delay()).await;
            }
            None => self.messages = None,
        }
        None
    }
}
