//! The bus: the only code that knows NATS.
//!
//! Events go out with [`Bus::say`] (kept) and [`Bus::tell`] (at most once), work comes in by [`Bus::work`], state lives in [`Bucket`]s,
//! and questions are put with [`Bus::ask`] and heard with [`Bus::answer`]. Every wait has a deadline, and every reader finds its way back
//! after the server was away.

mod bucket;
mod history;
mod listen;
mod query;
mod reading;
mod work;

use std::{sync::Arc, time::Duration};

use async_nats::{
    ConnectOptions, HeaderMap,
    connection::State,
    jetstream::{self, context::PublishErrorKind},
};
use bytes::Bytes;
use proto::{
    envelope::Envelope,
    event::Event,
    id::{InstanceId, ServiceName, Workspace},
    subject,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::{
    bucket::{Bucket, Change, Entry, Watch},
    history::{DeadLetter, History, Past},
    listen::Listener,
    query::{AskError, Question, Questions},
    work::{Deliveries, Delivery, WorkQueue},
};
use crate::{backoff::Backoff, clock, config::BusSettings, streams};

/// How long one call to the server may take.
const CALL: Duration = Duration::from_secs(5);
/// How long a component looks for the bus when it starts.
const CONNECT: Duration = Duration::from_secs(30);
/// The header of a dead letter whose body was left out, with the body's length in bytes.
const LEFT_OUT: &str = "Kaai-Body-Left-Out";
/// Room for the headers and the subject of a message, in bytes.
const HEADERS: usize = 4096;
/// How long [`Bus::say`] tries in all.
const SAY: Duration = Duration::from_secs(60);
/// The oldest server that understands all that is configured here; an older one drops what it does not know without an error.
const OLDEST: (i64, i64, i64) = (2, 12, 0);

/// Something that the bus could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Somebody else changed it first: read it again.
    #[error("{0} was changed by somebody else meanwhile")]
    Conflict(String),
    /// The server did not answer in time, or is away: try again.
    #[error("the bus is not reachable: {0}")]
    Unavailable(String),
    /// The server is there and has no room to keep it: try again once somebody has made some.
    #[error("the bus has no room left: {0}")]
    Full(String),
    /// The message is larger than the server takes.
    #[error("the message is too large for the bus: {0}")]
    TooLarge(String),
    /// What is kept under a name cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, String),
    /// The server or something on it is not as kaai needs it; only a person can mend that.
    #[error("{0}")]
    Incompatible(String),
}

/// What to do about an error met while handling an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again after a while.
    Retry(Duration),
    /// It can never succeed.
    Reject,
    /// The component cannot go on.
    Fatal,
}

impl Error {
    /// Something failed; the server says by these codes and words that its disk or its limit is full.
    pub(crate) fn of(what: &str, error: &dyn std::fmt::Display) -> Self {
        let text = format!("{what}: {error}");
        let full = ["error code 10023", "error code 10047", "no space left", "disk quota exceeded"];
        let lower = text.to_ascii_lowercase();
        if full.iter().any(|word| lower.contains(word)) { Self::Full(text) } else { Self::Unavailable(text) }
    }

    /// Whether the same may succeed later: the server is away, or full.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }

    /// What to do about this error.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Conflict(_) => Disposition::Retry(Duration::from_millis(50)),
            Self::Unavailable(_) => Disposition::Retry(Duration::from_secs(1)),
            Self::Full(_) => Disposition::Retry(Duration::from_secs(10)),
            Self::TooLarge(_) | Self::Unreadable(..) => Disposition::Reject,
            Self::Incompatible(_) => Disposition::Fatal,
        }
    }
}

/// A connection to the bus. Clones share it.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) context: jetstream::Context,
    pub(crate) shutdown: CancellationToken,
    component: &'static str,
    instance: InstanceId,
    traceparent: Option<String>,
    /// Counts connections, so that readers begin anew at once instead of waiting for a missed heartbeat.
    connections: watch::Receiver<u64>,
}

impl Bus {
    /// Connects, checks the server's version and makes the streams of the contract.
    ///
    /// # Errors
    ///
    /// Fails when no server answers within 30 s, it refuses the login, or it is older than 2.12 or without JetStream.
    pub async fn connect(
        component: &'static str,
        instance: &InstanceId,
        settings: &BusSettings,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let (client, connections) = find(component, settings).await?;
        let info = client.server_info();
        if !client.is_server_compatible(OLDEST.0, OLDEST.1, OLDEST.2) {
            return Err(Error::Incompatible(format!(
                "the bus at {} runs nats-server {}, which silently drops settings that kaai needs; use {}.{} or newer",
                settings.address, info.version, OLDEST.0, OLDEST.1
            )));
        }
        let mut context = jetstream::new(client.clone());
        context.set_timeout(CALL);
        let bus =
            Self { client, context, shutdown, component, instance: instance.clone(), traceparent: None, connections };
        bus.retry(CONNECT, || streams::ensure(&bus.context, streams::events(), component)).await?;
        bus.retry(CONNECT, || streams::ensure(&bus.context, streams::dead_letters(), component)).await?;
        Ok(bus)
    }

    /// Whether the server is connected now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// The same bus for what follows from a message: what is said through it belongs to that message's trace.
    #[must_use]
    pub fn following(&self, cause: &Envelope) -> Self {
        Self { traceparent: cause.traceparent.clone(), ..self.clone() }
    }

    /// Says an event that the stream keeps, and returns its stream sequence once the server has it on disk.
    ///
    /// `id` names the event: said again within ten minutes it is kept once, and the first one's sequence is returned.
    ///
    /// # Errors
    ///
    /// Fails when the server could not be had for 60 s or until shutdown, or the event is too large.
    pub async fn say<E: Event>(
        &self,
        workspace: &Workspace,
        service: &ServiceName,
        id: &str,
        event: &E,
    ) -> Result<u64, Error> {
        debug_assert!(E::STORED, "{} is not kept: tell it", E::TYPE);
        let body = Bytes::from(encode(event)?);
        let headers = self.headers(E::TYPE, id);
        let subject = subject::event::<E>(workspace, service);
        self.retry(SAY, || self.publish(subject.clone(), headers.clone(), body.clone())).await
    }

    /// Tells an event to whoever listens now: at most once, without waiting.
    pub async fn tell<E: Event>(&self, workspace: &Workspace, service: &ServiceName, event: &E) {
        debug_assert!(!E::STORED, "{} is kept: say it", E::TYPE);
        let sent = match encode(event) {
            Ok(body) => {
                let headers = self.headers(E::TYPE, &uuid::Uuid::now_v7().to_string());
                let subject = subject::event::<E>(workspace, service);
                self.client.publish_with_headers(subject, headers, body.into()).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::debug!(event = E::TYPE, error, "not told");
        }
    }

    /// Sends what is still in the client's buffer; waits at most five seconds.
    pub async fn close(&self) {
        if !self.is_connected() || tokio::time::timeout(CALL, self.client.flush()).await.is_err() {
            tracing::debug!("the bus was away at the end");
        }
    }

    /// Publishes into a stream and waits for the acknowledgement.
    pub(crate) async fn publish(&self, subject: String, headers: HeaderMap, body: Bytes) -> Result<u64, Error> {
        let what = subject.clone();
        let failed = |error: jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Error::TooLarge(what.clone()),
            PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => Error::Conflict(what.clone()),
            _ => Error::of(&what, &error),
        };
        let pending = self.context.publish_with_headers(subject, headers, body).await.map_err(failed)?;
        Ok(pending.await.map_err(failed)?.sequence)
    }

    /// Tries again while the bus is away, until the time is over or shutdown.
    pub(crate) async fn retry<T, F>(&self, limit: Duration, mut attempt: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = tokio::time::Instant::now() + limit;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let error = match attempt().await {
                Err(error @ Error::Unavailable(_)) => error,
                settled => return settled,
            };
            let next = tokio::time::Instant::now() + backoff.next_delay();
            if next >= deadline || self.shutdown.is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "trying again");
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.shutdown.cancelled() => return Err(error),
            }
        }
    }

    /// Checks that the server takes a message of this size, headers and subject included.
    pub(crate) fn fits(&self, what: &str, length: usize) -> Result<(), Error> {
        let most = self.client.server_info().max_payload.saturating_sub(HEADERS);
        if length <= most {
            return Ok(());
        }
        Err(Error::TooLarge(format!("{what} has {length} bytes, and {most} are the most")))
    }

    fn headers(&self, event_type: &str, id: &str) -> HeaderMap {
        let envelope = Envelope {
            id: id.to_owned(),
            source: format!("/kaai/{}/{}", self.component, self.instance),
            event_type: event_type.to_owned(),
            time: Some(clock::now_rfc3339()),
            traceparent: Some(self.traceparent.clone().unwrap_or_else(new_traceparent)),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in envelope.to_headers() {
            headers.insert(name, value.as_str());
        }
        headers
    }
}

/// Connects, waiting for a server that is not there yet, but not for one that refuses the login.
async fn find(component: &str, settings: &BusSettings) -> Result<(async_nats::Client, watch::Receiver<u64>), Error> {
    let (connected, connections) = watch::channel(0);
    let connected = Arc::new(connected);
    let deadline = tokio::time::Instant::now() + CONNECT;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let mut options = ConnectOptions::new()
            .name(format!("kaai-{component}"))
            .request_timeout(Some(CALL))
            .connection_timeout(CALL)
            .ping_interval(Duration::from_secs(10))
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback({
                let connected = connected.clone();
                move |event| {
                    let connected = connected.clone();
                    async move {
                        tracing::debug!(%event, "bus");
                        if event == async_nats::Event::Connected {
                            connected.send_modify(|count| *count += 1);
                        }
                    }
                }
            });
        if let Some((user, password)) = &settings.login {
            options =
                options.user_and_password(user.clone(), password.clone()).custom_inbox_prefix(format!("_INBOX_{user}"));
        }
        let addresses: Vec<&str> = settings.address.split(',').map(str::trim).collect();
        let error = match options.connect(addresses).await {
            Ok(client) => return Ok((client, connections)),
            Err(error) => error,
        };
        if matches!(
            error.kind(),
            async_nats::ConnectErrorKind::Authentication | async_nats::ConnectErrorKind::AuthorizationViolation
        ) {
            return Err(Error::Incompatible(format!("the bus at {} refuses the login: {error}", settings.address)));
        }
        let next = tokio::time::Instant::now() + backoff.next_delay();
        if next >= deadline {
            return Err(Error::Unavailable(format!("no nats-server answers at {}: {error}", settings.address)));
        }
        tokio::time::sleep_until(next).await;
    }
}

/// A header of a message as text.
fn header<'a>(message: &'a async_nats::Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// The first attempt comes at once: this delay is taken before the very first connection as well.
fn reconnect_delay(attempts: usize) -> Duration {
    match attempts {
        0 | 1 => Duration::ZERO,
        more => Duration::from_millis(50 << more.min(6)),
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Unreadable("what was to be sent".to_owned(), error.to_string()))
}

/// A new W3C trace context (version 00, sampled).
fn new_traceparent() -> String {
    let span = uuid::Uuid::new_v4().simple().to_string();
    format!("00-{}-{}-01", uuid::Uuid::new_v4().simple(), &span[..16])
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn a_full_server_is_not_one_that_is_away() {
        // As nats-server 2.15 answers once its disk is full.
        let full = "insufficient resources (code 503, error code 10023)";
        assert!(matches!(Error::of("x", &full), Error::Full(_)));
        assert!(matches!(Error::of("x", &"open /x: no space left on device"), Error::Full(_)));
        assert!(matches!(Error::of("x", &"timed out"), Error::Unavailable(_)));
    }
}
