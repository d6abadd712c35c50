//! The loop: requests from the stream, each handled in a task of its own, and the questions about uploads and models.

use std::{future::Future, sync::Arc, time::Duration};

use proto::{
    event::Event,
    id::{Generation, Workspace},
    packager::DeploymentRequested,
    query::{ListModels, Prune, Query, Refusal, RegisterModel, UploadDone, UploadTicket},
    subject,
};
use runtime::{
    Runtime,
    bus::{self, Bus, Delivery, WorkQueue},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Error,
    config::Config,
    decide::{Action, Attempt, Outcome, Settlement, decide, settle},
    job::{self, Job, News, Parts},
    metrics::Metrics,
    needs,
    prune::Pruner,
    registry::Registry,
    shelf::Shelf,
    upload::Uploads,
    work::Work,
};

/// How long a request may go without a sign of life; a killed packager's requests come again after this.
const ACK_WAIT: Duration = Duration::from_secs(6);
/// How many questions of one kind are answered at a time.
const ANSWERS: usize = 8;

/// Packages what is asked for, until shutdown.
///
/// # Errors
///
/// Fails when the bus cannot be used at all, or the folder for work cannot be written.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let shelf = Shelf::open(&rt.bus, rt.store.clone()).await?;
    let parts = Arc::new(Parts {
        registry: Registry::open(&rt.bus, shelf.clone()).await?,
        shelf: shelf.clone(),
        facts: rt.bus.bucket::<String>(subject::FACTS).await?,
        limits: config.limits,
        folders: config.folders,
        work: Work::open(&config.work).map_err(|source| Error::Work { folder: config.work, source })?,
        metrics: Metrics::new(&rt.metrics),
        rt: rt.clone(),
    });
    let uploads = Uploads::open(&rt.bus, shelf.clone(), config.max_upload).await?;
    answer_questions(&parts, &uploads).await?;
    let buckets = Arc::new(needs::buckets(&rt.bus).await?);
    let pruner = Pruner { shelf, bus: rt.bus.clone(), buckets, turn: Arc::default() };
    serve::<Prune, _>(&rt, move |_, query| {
        let pruner = pruner.clone();
        async move { pruner.prune(&query).await }
    })
    .await?;
    let queue = WorkQueue {
        consumer: "packager",
        subjects: vec![subject::any::<DeploymentRequested>()],
        ack_wait: ACK_WAIT,
        max_in_flight: config.jobs,
    };
    let mut requests = rt.bus.work(queue).await?;
    let slots = Arc::new(Semaphore::new(config.jobs));
    rt.health.ready(true);
    while let Some(request) = requests.next().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let parts = parts.clone();
        rt.tasks.spawn(async move {
            handle(&parts, &request).await;
            drop(slot);
        });
    }
    Ok(())
}

/// Handles one request to its settlement.
async fn handle(parts: &Parts, delivery: &Delivery) {
    let attempt = Attempt { generation: Generation(delivery.sequence), number: delivery.attempt };
    let bus = parts.rt.bus.following(&delivery.envelope);
    let outcome = delivery.while_working(work(parts, delivery, &bus)).await;
    if let Outcome::Transient(cause) = &outcome {
        let (service, generation) = (&delivery.service, attempt.generation);
        tracing::warn!(%service, %generation, cause, attempt = attempt.number, "packaging did not succeed this time");
    }
    parts.metrics.count(&outcome);
    let settlement = match decide(attempt, outcome) {
        Action::Settle(settlement) => settlement,
        Action::Packaged(event) => said(delivery, say(delivery, &bus, &*event).await),
        Action::Failed(event) => said(delivery, say(delivery, &bus, &*event).await),
    };
    match settlement {
        Settlement::Ack => delivery.ack().await,
        Settlement::Retry(after) => delivery.retry(after).await,
        Settlement::Reject(reason) => delivery.reject(reason).await,
    }
}

async fn work(parts: &Parts, delivery: &Delivery, bus: &Bus) -> Outcome {
    let request = match delivery.parse::<DeploymentRequested>() {
        Ok(request) => request,
        Err(reason) => return Outcome::Malformed(reason),
    };
    let begun = Instant::now();
    let (workspace, service) = (&delivery.workspace, &delivery.service);
    let news = News { bus, workspace, service, generation: Generation(delivery.sequence) };
    match (Job { parts, workspace, service, news, request }).run().await {
        Ok(done) => Outcome::Done(Box::new(done), begun.elapsed()),
        Err(job::Error::Failure(failure)) => Outcome::Failed(failure),
        Err(job::Error::Transient(_)) if parts.rt.shutdown.is_cancelled() => Outcome::Stopped,
        Err(job::Error::Transient(cause)) => Outcome::Transient(cause),
    }
}

/// Says what became of a request. The id is the same for a repeated one, so that the stream keeps it once.
async fn say<E: Event>(delivery: &Delivery, bus: &Bus, event: &E) -> Result<u64, bus::Error> {
    let (workspace, service) = (&delivery.workspace, &delivery.service);
    let id = format!("{}/{workspace}/{service}/{}", E::TYPE, delivery.sequence);
    delivery.while_working(bus.say(workspace, service, &id, event)).await
}

fn said(delivery: &Delivery, said: Result<u64, bus::Error>) -> Settlement {
    if let Err(error) = &said {
        tracing::warn!(service = %delivery.service, sequence = delivery.sequence, %error, "the outcome could not be said");
    }
    settle(said.map(drop).map_err(|error| error.disposition()))
}

async fn answer_questions(parts: &Arc<Parts>, uploads: &Uploads) -> Result<(), Error> {
    let shared = uploads.clone();
    serve::<UploadTicket, _>(&parts.rt, move |_, query| {
        let uploads = shared.clone();
        async move { uploads.ticket(&query).await }
    })
    .await?;
    let (shared, work) = (uploads.clone(), parts.clone());
    serve::<UploadDone, _>(&parts.rt, move |_, query| {
        let (uploads, parts) = (shared.clone(), work.clone());
        async move {
            uploads.done(&query, parts.work.path()).await?;
            parts.metrics.uploads.inc();
            Ok(())
        }
    })
    .await?;
    let shared = parts.clone();
    serve::<RegisterModel, _>(&parts.rt, move |workspace, query| {
        let parts = shared.clone();
        async move { parts.registry.register(&workspace, &query).await.map_err(Refusal::from) }
    })
    .await?;
    let shared = parts.clone();
    serve::<ListModels, _>(&parts.rt, move |workspace, _| {
        let parts = shared.clone();
        async move { parts.registry.list(&workspace).await.map_err(Refusal::from) }
    })
    .await
}

/// Answers questions of one kind, each in a task of its own, at most [`ANSWERS`] at a time.
async fn serve<Q: Query + Clone, F>(
    rt: &Runtime,
    answer: impl Fn(Workspace, Q) -> F + Send + 'static,
) -> Result<(), Error>
where
    F: Future<Output = Result<Q::Reply, Refusal>> + Send + 'static,
{
    let mut questions = rt.bus.answer::<Q>().await?;
    let (tasks, slots) = (rt.tasks.clone(), Arc::new(Semaphore::new(ANSWERS)));
    rt.tasks.spawn(async move {
        while let Some(question) = questions.next().await {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let answering = answer(question.workspace.clone(), question.query.clone());
            tasks.spawn(async move {
                question.reply(answering.await).await;
                drop(slot);
            });
        }
    });
    Ok(())
}
