//! Looking back: the stream of pipeline events as history, and the dead letters.

use async_nats::jetstream::{
    consumer::{DeliverPolicy, push},
    stream,
};
use bytes::Bytes;
use futures::StreamExt;
use proto::{
    envelope::Envelope,
    id::{ServiceName, Workspace},
    subject,
};

use super::{Bus, CALL, CONNECT, Error, reading::Reading};

/// An event as it lies in the stream.
#[derive(Debug, Clone)]
pub struct Past {
    /// The tenant.
    pub workspace: Workspace,
    /// The service it is about.
    pub service: ServiceName,
    /// Noun and event.
    pub event_type: String,
    /// Who said it, when, and in which trace.
    pub envelope: Envelope,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream took it (RFC 3339, UTC).
    pub time: String,
    /// The same in Unix milliseconds.
    pub time_ms: u64,
    /// The event's JSON.
    pub body: Bytes,
    /// How many more there were when it was read.
    pub pending: u64,
}

/// Events of one workspace from a place in the stream on, then those to come; endless until shutdown.
pub struct History {
    bus: Bus,
    workspace: Workspace,
    next_sequence: u64,
    reading: Reading<push::Ordered>,
}

impl Bus {
    /// Reads the events of a workspace from a stream sequence on (0: from the beginning).
    ///
    /// # Errors
    ///
    /// Fails when the server could not be had for 30 s.
    pub async fn history(&self, workspace: &Workspace, from: u64) -> Result<History, Error> {
        let mut history = History {
            bus: self.clone(),
            workspace: workspace.clone(),
            next_sequence: from.max(1),
            reading: Reading::new(self, "history"),
        };
        history.reading.about_to_open();
        let messages = self.retry(CONNECT, || history.open()).await?;
        history.reading.opened(Ok(messages)).await;
        Ok(history)
    }

    /// Shows all events of all workspaces that the stream has now, oldest first. What names no service is passed over.
    ///
    /// # Errors
    ///
    /// Fails when the server is away before the last of them has come: what was shown is then not all.
    pub async fn every_past(&self, mut show: impl FnMut(Past)) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("history: {error}"));
        let last = self.last_sequence().await?;
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            deliver_policy: DeliverPolicy::All,
            ..push::OrderedConfig::default()
        };
        let stream = self.events_stream(subject::EVENTS).await?;
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(&error))?;
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.map_err(|error| failed(&error))?;
        while left > 0 {
            let next = tokio::time::timeout(CALL, messages.next()).await.map_err(|error| failed(&error))?;
            let message = next.ok_or_else(|| failed(&"it ended early"))?.map_err(|error| failed(&error))?;
            let info = message.info().map_err(|error| failed(&error))?;
            left = if info.stream_sequence >= last { 0 } else { info.pending };
            if let Some(past) = read(&message) {
                show(past);
            }
        }
        Ok(())
    }

    /// The last stream sequence of the pipeline events.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn last_sequence(&self) -> Result<u64, Error> {
        Ok(self.events_stream(subject::EVENTS).await?.cached_info().state.last_sequence)
    }

    /// The newest dead letters, newest first, at most `most`.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn dead_letters(&self, most: usize) -> Result<Vec<DeadLetter>, Error> {
        let stream = self.events_stream(subject::DEAD_LETTERS).await?;
        let state = stream.cached_info().state.clone();
        let mut letters = Vec::new();
        let mut sequence = state.last_sequence;
        while letters.len() < most && sequence >= state.first_sequence.max(1) {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                letters.push(DeadLetter::read(sequence, &message));
            }
            sequence -= 1;
        }
        Ok(letters)
    }

    /// Puts a dead letter's message where it was before, as a new message, and takes the letter away.
    ///
    /// # Errors
    ///
    /// Fails when there is no such letter, its body was left out because of its size, or the server is away.
    pub async fn replay_dead_letter(&self, letter: u64) -> Result<u64, Error> {
        let stream = self.events_stream(subject::DEAD_LETTERS).await?;
        let gone = |error: &dyn std::fmt::Display| Error::Unavailable(format!("dead letter {letter}: {error}"));
        let message = stream.get_raw_message(letter).await.map_err(|error| gone(&error))?;
        let read = DeadLetter::read(letter, &message);
        if let Some(length) = message.headers.get(super::LEFT_OUT) {
            let what = format!("dead letter {letter}: its body of {length} bytes was left out; send the request again");
            return Err(Error::TooLarge(what));
        }
        let headers = self.headers("", &format!("replay/{letter}"));
        let mut kept = message.headers.clone();
        // The old id would make the stream drop it as a repeat.
        for name in [proto::envelope::MESSAGE_ID, "ce-id"] {
            if let Some(value) = headers.get(name) {
                kept.insert(name, value.as_str());
            }
        }
        let sequence =
            self.retry(CALL, || self.publish(read.subject.clone(), kept.clone(), message.payload.clone())).await?;
        stream.delete_message(letter).await.map_err(|error| gone(&error))?;
        Ok(sequence)
    }

    async fn events_stream(&self, name: &'static str) -> Result<stream::Stream, Error> {
        self.context.get_stream(name).await.map_err(|error| Error::Unavailable(format!("stream {name}: {error}")))
    }
}

/// A message that could never succeed.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its place among the dead letters.
    pub letter: u64,
    /// Its place in the stream it came from; 0 when that is not known.
    pub sequence: u64,
    /// The subject it came on.
    pub subject: String,
    /// The component that rejected it.
    pub component: String,
    /// Why.
    pub reason: String,
    /// The body.
    pub body: Bytes,
}

impl DeadLetter {
    fn read(letter: u64, message: &async_nats::jetstream::message::StreamMessage) -> Self {
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
        let component = header("Kaai-Component");
        let prefix = subject::dead_letter(&component, "");
        Self {
            letter,
            sequence: header("Kaai-Sequence").parse().unwrap_or(0),
            subject: message.subject.strip_prefix(&prefix).unwrap_or(&message.subject).to_owned(),
            component,
            reason: header("Kaai-Reason"),
            body: message.payload.clone(),
        }
    }
}

impl History {
    /// The next event; `None` once shutdown has begun. What names no service is passed over.
    pub async fn next(&mut self) -> Option<Past> {
        let shutdown = self.bus.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            past = self.next_or_reopen() => Some(past),
        }
    }

    async fn open(&self) -> Result<push::Ordered, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("history: {error}"));
        let config = push::OrderedConfig {
            deliver_subject: self.bus.client.new_inbox(),
            filter_subject: subject::all_of(&self.workspace),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next_sequence },
            ..push::OrderedConfig::default()
        };
        let opening = async {
            let stream = self.bus.context.get_stream_no_info(subject::EVENTS).await.map_err(|error| failed(&error))?;
            let consumer = stream.create_consumer(config).await.map_err(|error| failed(&error))?;
            consumer.messages().await.map_err(|error| failed(&error))
        };
        tokio::time::timeout(CALL, opening).await.map_err(|error| failed(&error))?
    }

    async fn next_or_reopen(&mut self) -> Past {
        loop {
            if !self.reading.is_open() {
                self.reading.about_to_open();
                let messages = self.open().await;
                self.reading.opened(messages).await;
            }
            if let Some(message) = self.reading.next().await
                && let Some(past) = read(&message)
            {
                self.next_sequence = past.sequence + 1;
                return past;
            }
        }
    }
}

fn read(message: &async_nats::jetstream::Message) -> Option<Past> {
    let info = message.info().ok()?;
    let (workspace, event_type, service) = subject::parse(&message.subject)?;
    let header = |name: &str| super::header(message, name);
    let published = jiff::Timestamp::from_nanosecond(info.published.unix_timestamp_nanos()).unwrap_or_default();
    Some(Past {
        workspace,
        service,
        envelope: Envelope::from_headers(header, event_type, subject::EVENTS, info.stream_sequence),
        event_type: event_type.to_owned(),
        sequence: info.stream_sequence,
        time: format!("{published:.3}"),
        time_ms: u64::try_from(published.as_millisecond()).unwrap_or(0),
        body: message.payload.clone(),
        pending: info.pending,
    })
}
