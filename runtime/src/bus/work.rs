//! Work that is handed out once: a durable pull consumer shared by the instances of a component.

use std::{future::Future, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        AckKind,
        consumer::{AckPolicy, PullConsumer, pull},
    },
};
use bytes::Bytes;
use proto::{
    envelope::Envelope,
    event::Event,
    id::{ServiceName, Workspace},
    subject,
};

use super::{Bus, Error, reading::Reading};

/// Which events a component takes from the stream of pipeline events.
#[derive(Debug, Clone)]
pub struct WorkQueue {
    /// The name of the consumer; instances that use the same one share the work.
    pub consumer: &'static str,
    /// The subjects, from [`subject::any`].
    pub subjects: Vec<String>,
    /// How long a message may stay without a sign of life before it is handed out again.
    pub ack_wait: Duration,
    /// How many messages are handed out and not settled at a time.
    pub max_in_flight: usize,
}

/// The messages of a [`WorkQueue`], endless until shutdown.
pub struct Deliveries {
    bus: Bus,
    queue: WorkQueue,
    reading: Reading<pull::Stream>,
}

/// One message, to be settled by exactly one of [`Delivery::ack`], [`Delivery::retry`] and [`Delivery::reject`].
///
/// One that is dropped unsettled is handed out again after the queue's `ack_wait`.
pub struct Delivery {
    /// The tenant, from the subject.
    pub workspace: Workspace,
    /// The service, from the subject.
    pub service: ServiceName,
    /// Noun and event, from the subject.
    pub event_type: String,
    /// The subject.
    pub subject: String,
    /// Who said it, when, and in which trace.
    pub envelope: Envelope,
    /// Its place in the stream.
    pub sequence: u64,
    /// How many times it has been handed out, from 1.
    pub attempt: u64,
    /// The event's JSON.
    pub body: Bytes,
    message: async_nats::jetstream::Message,
    bus: Bus,
    ack_wait: Duration,
}

impl Bus {
    /// Opens a queue of work, creating its consumer or adding subjects to it.
    ///
    /// # Errors
    ///
    /// Fails when the server could not be had for 30 s.
    pub async fn work(&self, queue: WorkQueue) -> Result<Deliveries, Error> {
        let mut reading = Reading::new(self, queue.consumer);
        reading.about_to_open();
        reading.opened(Ok(self.retry(super::CONNECT, || open(self, &queue)).await?)).await;
        Ok(Deliveries { bus: self.clone(), queue, reading })
    }
}

async fn open(bus: &Bus, queue: &WorkQueue) -> Result<pull::Stream, Error> {
    let config = pull::Config {
        durable_name: Some(queue.consumer.to_owned()),
        filter_subjects: queue.subjects.clone(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: queue.ack_wait,
        max_ack_pending: i64::try_from(queue.max_in_flight).unwrap_or(i64::MAX),
        // A message that cannot be settled is retried for ever with a delay; one that can never succeed is rejected by its reader.
        max_deliver: -1,
        ..pull::Config::default()
    };
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("consumer {}: {error}", queue.consumer));
    let consumer: PullConsumer =
        bus.context.create_consumer_on_stream(config, subject::EVENTS).await.map_err(|error| failed(&error))?;
    consumer
        .stream()
        .max_messages_per_batch(queue.max_in_flight.max(1))
        .expires(Duration::from_secs(30))
        .heartbeat(Duration::from_secs(5))
        .messages()
        .await
        .map_err(|error| failed(&error))
}

impl Deliveries {
    /// The next message; `None` once shutdown has begun.
    pub async fn next(&mut self) -> Option<Delivery> {
        let shutdown = self.bus.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            delivery = self.next_or_reopen() => Some(delivery),
        }
    }

    async fn next_or_reopen(&mut self) -> Delivery {
        loop {
            if !self.reading.is_open() {
                self.reading.about_to_open();
                self.reading.opened(open(&self.bus, &self.queue).await).await;
            }
            if let Some(message) = self.reading.next().await
                && let Some(delivery) = self.accept(message).await
            {
                return delivery;
            }
        }
    }

    /// Reads subject and headers; a message whose subject names no service is rejected here.
    async fn accept(&self, message: async_nats::jetstream::Message) -> Option<Delivery> {
        let (sequence, attempt) = match message.info() {
            Ok(info) => (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)),
            Err(error) => {
                tracing::error!(%error, "a message without an acknowledgement address came from the stream");
                return None;
            }
        };
        let subject = message.subject.to_string();
        let header = |name: &str| super::header(&message, name);
        let (workspace, event_type, service) = match subject::parse(&subject) {
            Some(parsed) => parsed,
            None => {
                let reason = "the subject does not name a valid workspace and service";
                reject(&self.bus, &message, sequence, reason).await;
                return None;
            }
        };
        Some(Delivery {
            envelope: Envelope::from_headers(header, event_type, subject::EVENTS, sequence),
            event_type: event_type.to_owned(),
            body: message.payload.clone(),
            bus: self.bus.clone(),
            ack_wait: self.queue.ack_wait,
            workspace,
            service,
            subject,
            sequence,
            attempt,
            message,
        })
    }
}

impl Delivery {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// Fails with the reason for a dead letter when the body is not such an event.
    pub fn parse<E: Event>(&self) -> Result<E, String> {
        serde_json::from_slice(&self.body).map_err(|error| format!("the body is no {}: {error}", E::TYPE))
    }

    /// Says that the effect of the message is durable: it is not handed out again.
    ///
    /// If the bus is away the message comes again later, which its reader must bear anyway.
    pub async fn ack(&self) {
        if let Err(error) = self.message.double_ack().await {
            tracing::warn!(subject = self.subject, sequence = self.sequence, %error, "not acknowledged; it will come again");
        }
    }

    /// Asks for the message again after a while.
    pub async fn retry(&self, after: Duration) {
        if let Err(error) = self.message.ack_with(AckKind::Nak(Some(after))).await {
            tracing::debug!(subject = self.subject, sequence = self.sequence, %error, "not handed back; it will come again");
        }
    }

    /// Puts the message among the dead letters with the reason, and has it handed out no more.
    pub async fn reject(&self, reason: impl AsRef<str>) {
        reject(&self.bus, &self.message, self.sequence, reason.as_ref()).await;
    }

    /// Runs a future and meanwhile tells the bus that the message is being worked on.
    pub async fn while_working<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(self.ack_wait / 3);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                biased;
                output = &mut work => return output,
                _ = tick.tick() => {
                    if let Err(error) = self.message.ack_with(AckKind::Progress).await {
                        tracing::debug!(subject = self.subject, %error, "no sign of life could be sent");
                    }
                }
            }
        }
    }
}

/// How many characters of a reason are kept.
const REASON: usize = 1000;

/// Keeps the message among the dead letters before the stream is told to hand it out no more: killed in between, it comes again
/// and is kept once, by its id.
async fn reject(bus: &Bus, message: &async_nats::jetstream::Message, sequence: u64, reason: &str) {
    tracing::warn!(subject = %message.subject, sequence, reason, "rejected: kept as a dead letter");
    let mut headers: HeaderMap = message.headers.clone().unwrap_or_default();
    let reason: String = reason.chars().take(REASON).map(|c| if matches!(c, '\r' | '\n') { ' ' } else { c }).collect();
    headers.insert("Kaai-Reason", reason.as_str());
    headers.insert("Kaai-Component", bus.component);
    headers.insert("Kaai-Sequence", sequence.to_string().as_str());
    headers.insert(proto::envelope::MESSAGE_ID, format!("dead/{}/{sequence}", bus.component).as_str());
    let subject = subject::dead_letter(bus.component, &message.subject);
    let mut body = message.payload.clone();
    if bus.fits(&subject, body.len()).is_err() {
        // With its reason it would not fit any more. The stream that it came from has it as long as it keeps it.
        headers.insert(super::LEFT_OUT, body.len().to_string().as_str());
        body = Bytes::new();
    }
    let kept = bus.retry(super::SAY, || bus.publish(subject.clone(), headers.clone(), body.clone())).await;
    match kept {
        Ok(_) => {
            if let Err(error) = message.ack_with(AckKind::Term).await {
                tracing::debug!(%error, "not terminated; it will come again");
            }
        }
        Err(error) => tracing::warn!(%error, "the dead letter could not be kept; the message will come again"),
    }
}
