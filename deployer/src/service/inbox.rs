//! Where news come from: each source has a task that passes them on, so that none holds up another.

use proto::{
    builder::ImageResolved,
    deployer::{DeploymentDelete, DeploymentFailed},
    query::{GetKeys, GetLog, Query, RegenerateKey},
    router::ServiceUtilization,
    scaler::ScaleRequested,
    subject,
};
use runtime::{
    Runtime,
    bus::{self, Delivery, Question, WorkQueue},
};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Key;
use crate::{backend::Observed, decide::Input};

/// How many messages may be unsettled at a time; each is settled within milliseconds, once its effect is stored.
const IN_FLIGHT: usize = 64;
/// How long a message may stay unsettled before it is handed out again: what a killed deployer had in hand waits that long.
const ACK_WAIT: Duration = Duration::from_secs(6);

/// Something to be looked at.
pub(super) enum News {
    Delivery(Box<Delivery>),
    Observed(Box<Observed>),
    Utilization(Key, Box<ServiceUtilization>),
    /// Something that was to be done for a service is done.
    Done(Key, Box<Input>),
    GetKeys(Question<GetKeys>),
    RegenerateKey(Question<RegenerateKey>),
    GetLog(Question<GetLog>),
}

/// Opens all sources. They end at shutdown.
pub(super) async fn open(
    rt: &Runtime,
    inbox: &UnboundedSender<News>,
    mut changes: UnboundedReceiver<Observed>,
) -> Result<(), bus::Error> {
    let queue = WorkQueue {
        consumer: "deployer",
        subjects: vec![
            subject::any::<ImageResolved>(),
            subject::any::<DeploymentFailed>(),
            subject::any::<ScaleRequested>(),
            subject::any::<DeploymentDelete>(),
        ],
        ack_wait: ACK_WAIT,
        max_in_flight: IN_FLIGHT,
    };
    let mut utilization = rt.bus.listen::<ServiceUtilization>().await?;
    questions(rt, inbox, News::GetKeys).await?;
    questions(rt, inbox, News::RegenerateKey).await?;
    questions(rt, inbox, News::GetLog).await?;
    // Last, because the server answers here: by then it knows the subscriptions before it, and nobody who sees us ready asks in vain.
    let mut deliveries = rt.bus.work(queue).await?;
    // A send fails when the loop has ended, and then nobody waits for news.
    let to = inbox.clone();
    rt.tasks.spawn(async move {
        while let Some(delivery) = deliveries.next().await {
            let _ = to.send(News::Delivery(Box::new(delivery)));
        }
    });
    let to = inbox.clone();
    rt.tasks.spawn(async move {
        while let Some((workspace, service, event)) = utilization.next().await {
            let _ = to.send(News::Utilization((workspace, service), Box::new(event)));
        }
    });
    let (to, shutdown) = (inbox.clone(), rt.shutdown.clone());
    rt.tasks.spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                observed = changes.recv() => match observed {
                    Some(observed) => drop(to.send(News::Observed(Box::new(observed)))),
                    None => break,
                },
            }
        }
    });
    Ok(())
}

async fn questions<Q: Query>(
    rt: &Runtime,
    inbox: &UnboundedSender<News>,
    as_news: fn(Question<Q>) -> News,
) -> Result<(), bus::Error> {
    let mut questions = rt.bus.answer::<Q>().await?;
    let to = inbox.clone();
    rt.tasks.spawn(async move {
        while let Some(question) = questions.next().await {
            let _ = to.send(as_news(question));
        }
    });
    Ok(())
}
