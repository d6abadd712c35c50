//! Events that are delivered at most once to everyone who listens.

use std::marker::PhantomData;

use futures::StreamExt;
use proto::{
    event::Event,
    id::{ServiceName, Workspace},
    subject,
};

use super::{Bus, Error};

/// Events of one kind about any service, from now on; what comes while the bus is away is lost.
pub struct Listener<E> {
    bus: Bus,
    subscriber: async_nats::Subscriber,
    event: PhantomData<fn() -> E>,
}

impl Bus {
    /// Listens to an event about all services of all workspaces.
    ///
    /// # Errors
    ///
    /// Fails when the subscription cannot be made.
    pub async fn listen<E: Event>(&self) -> Result<Listener<E>, Error> {
        let subscriber = self.client.subscribe(subject::any::<E>()).await;
        let subscriber = subscriber.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(Listener { bus: self.clone(), subscriber, event: PhantomData })
    }
}

impl<E: Event> Listener<E> {
    /// The next event; `None` once shutdown has begun. What cannot be read is passed over.
    pub async fn next(&mut self) -> Option<(Workspace, ServiceName, E)> {
        loop {
            let message = tokio::select! {
                biased;
                () = self.bus.shutdown.cancelled() => return None,
                message = self.subscriber.next() => message?,
            };
            let Some((workspace, _, service)) = subject::parse(&message.subject) else { continue };
            match serde_json::from_slice(&message.payload) {
                Ok(event) => return Some((workspace, service, event)),
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "passed over: the body is no {}", E::TYPE)
                }
            }
        }
    }
}
