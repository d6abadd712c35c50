//! Questions with one answer, over core NATS.

use std::{marker::PhantomData, time::Duration};

use async_nats::RequestErrorKind;
use futures::StreamExt;
use proto::{
    id::Workspace,
    query::{Answer, Query, Refusal},
    subject,
};

use super::{Bus, Error};

/// A question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Whoever answers such questions does not run.
    #[error("nobody answers: the component that knows is not running")]
    Nobody,
    /// No answer came in time.
    #[error("no answer came within {0:?}")]
    Timeout(Duration),
    /// The answer is no.
    #[error(transparent)]
    Refused(Refusal),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] Error),
}

/// Questions of one kind from all workspaces, each handed to one instance.
pub struct Questions<Q> {
    bus: Bus,
    subscriber: async_nats::Subscriber,
    query: PhantomData<fn() -> Q>,
}

/// One question.
pub struct Question<Q> {
    /// The tenant that asks.
    pub workspace: Workspace,
    /// What is asked.
    pub query: Q,
    bus: Bus,
    reply: async_nats::Subject,
}

impl Bus {
    /// Asks and waits for the answer.
    ///
    /// # Errors
    ///
    /// Fails when nobody answers, not in time, or the answer is a refusal.
    pub async fn ask<Q: Query>(
        &self,
        workspace: &Workspace,
        query: &Q,
        timeout: Duration,
    ) -> Result<Q::Reply, AskError> {
        let subject = subject::query(workspace.as_str(), Q::NAME);
        let request = async_nats::Request::new().payload(super::encode(query)?.into()).timeout(Some(timeout));
        let message = self.client.send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => AskError::Nobody,
            RequestErrorKind::TimedOut => AskError::Timeout(timeout),
            _ => AskError::Bus(Error::Unavailable(error.to_string())),
        })?;
        match serde_json::from_slice(&message.payload) {
            Ok(Answer::Ok(reply)) => Ok(reply),
            Ok(Answer::Refused(refusal)) => Err(AskError::Refused(refusal)),
            Err(error) => {
                Err(AskError::Bus(Error::Unreadable(format!("the answer to {}", Q::NAME), error.to_string())))
            }
        }
    }

    /// Hears questions of one kind; instances of a component share them.
    ///
    /// # Errors
    ///
    /// Fails when the subscription cannot be made.
    pub async fn answer<Q: Query>(&self) -> Result<Questions<Q>, Error> {
        let group = self.component.to_owned();
        let subscriber = self.client.queue_subscribe(subject::query("*", Q::NAME), group).await;
        let subscriber = subscriber.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(Questions { bus: self.clone(), subscriber, query: PhantomData })
    }
}

impl<Q: Query> Questions<Q> {
    /// The next question; `None` once shutdown has begun. One that cannot be read is refused here.
    pub async fn next(&mut self) -> Option<Question<Q>> {
        loop {
            let message = tokio::select! {
                biased;
                () = self.bus.shutdown.cancelled() => return None,
                message = self.subscriber.next() => message?,
            };
            let Some(reply) = message.reply else { continue };
            let workspace = message.subject.split('.').nth(2).and_then(|workspace| workspace.parse().ok());
            match (workspace, serde_json::from_slice(&message.payload)) {
                (Some(workspace), Ok(query)) => {
                    return Some(Question { workspace, query, bus: self.bus.clone(), reply });
                }
                (_, parsed) => {
                    let why =
                        parsed.err().map_or_else(|| "the workspace is not valid".to_owned(), |error| error.to_string());
                    let refusal =
                        Refusal::new("invalid", format!("not a {} query: {why}", Q::NAME), "check what was sent");
                    answer::<Q>(&self.bus, reply, Err(refusal)).await;
                }
            }
        }
    }
}

impl<Q: Query> Question<Q> {
    /// Answers.
    pub async fn reply(self, answered: Result<Q::Reply, Refusal>) {
        answer::<Q>(&self.bus, self.reply, answered).await;
    }
}

async fn answer<Q: Query>(bus: &Bus, reply: async_nats::Subject, answered: Result<Q::Reply, Refusal>) {
    let answer = match answered {
        Ok(reply) => Answer::Ok(reply),
        Err(refusal) => Answer::Refused(refusal),
    };
    let sent = match super::encode(&answer) {
        Ok(body) => bus.client.publish(reply, body.into()).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = sent {
        tracing::warn!(query = Q::NAME, error, "the answer could not be sent");
    }
}
