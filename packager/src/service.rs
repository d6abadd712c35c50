//! The loop: requests from the stream, each handled in a task of its own, and the questions about uploads and models.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use proto::{
    deployer::{DeploymentFailed, DeploymentProgressed},
    event::Event,
    failure::{Failure, Stage},
    id::Generation,
    packager::{DeploymentRequested, ProjectPackaged},
    query::{ListModels, Query, Refusal, RegisterModel, UploadDone, UploadTicket},
    subject,
};
use runtime::{
    Runtime,
    bus::{Delivery, WorkQueue},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Error,
    config::Config,
    job::{self, Job},
    registry::Registry,
    upload::Uploads,
};

/// How long a request may go without a sign of life; a killed packager's requests come again after this.
const ACK_WAIT: Duration = Duration::from_secs(6);
/// How often a request is tried that fails for reasons of the platform.
const ATTEMPTS: u64 = 10;

/// Packages what is asked for, until shutdown.
///
/// # Errors
///
/// Fails when the bus cannot be used at all.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let registry = Registry::open(&rt.bus, rt.store.clone()).await?;
    let uploads = Uploads::open(&rt.bus, rt.store.clone(), config.max_upload).await?;
    let facts = rt.bus.bucket::<String>(subject::FACTS).await?;
    answer_questions(&rt, &registry, &uploads, &config.work).await?;
    let queue = WorkQueue {
        consumer: "packager",
        subjects: vec![subject::any::<DeploymentRequested>()],
        ack_wait: ACK_WAIT,
        max_in_flight: config.jobs,
    };
    let mut requests = rt.bus.work(queue).await?;
    let slots = Arc::new(Semaphore::new(config.jobs));
    let parts = Arc::new(job::Parts { rt: rt.clone(), registry, facts, limits: config.limits, work: config.work });
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
async fn handle(parts: &job::Parts, delivery: &Delivery) {
    let request = match delivery.parse::<DeploymentRequested>() {
        Ok(request) => request,
        Err(reason) => return delivery.reject(reason).await,
    };
    let generation = Generation(delivery.sequence);
    let begun = Instant::now();
    let job = Job { workspace: &delivery.workspace, service: &delivery.service, request };
    let progress = DeploymentProgressed {
        generation,
        stage: Stage::Packaging,
        message: String::new(),
        log: Vec::new(),
        extra: serde_json::Map::new(),
    };
    let bus = parts.rt.bus.following(&delivery.envelope);
    bus.tell(&delivery.workspace, &delivery.service, &progress).await;
    let failure = match delivery.while_working(job.run(parts)).await {
        Ok(done) => {
            let packaged = ProjectPackaged {
                generation,
                archive: done.archive,
                spec: done.spec,
                sealed_keys: done.sealed_keys,
                warnings: done.warnings,
                took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                extra: serde_json::Map::new(),
            };
            return settle(
                delivery,
                bus.say(&delivery.workspace, &delivery.service, &id::<ProjectPackaged>(delivery), &packaged),
            )
            .await;
        }
        Err(job::Error::Failure(failure)) => *failure,
        Err(job::Error::Transient(cause)) if parts.rt.shutdown.is_cancelled() || delivery.attempt < ATTEMPTS => {
            tracing::warn!(service = %delivery.service, %generation, cause, attempt = delivery.attempt, "trying again");
            return delivery.retry(Duration::from_millis(500 << delivery.attempt.min(5))).await;
        }
        Err(job::Error::Transient(cause)) => Failure::platform(
            Stage::Packaging,
            cause,
            "look at the packager's log and the object store, then deploy again",
        ),
    };
    let failed =
        DeploymentFailed { generation, failure, serving: None, warnings: Vec::new(), extra: serde_json::Map::new() };
    settle(delivery, bus.say(&delivery.workspace, &delivery.service, &id::<DeploymentFailed>(delivery), &failed)).await;
}

/// The id of what is said about a request: the same for a repeated one.
fn id<E: Event>(delivery: &Delivery) -> String {
    format!("{}/{}/{}/{}", E::TYPE, delivery.workspace, delivery.service, delivery.sequence)
}

/// Acknowledges once the outcome is said; else the request comes again.
async fn settle(delivery: &Delivery, said: impl Future<Output = Result<u64, runtime::bus::Error>>) {
    match delivery.while_working(said).await {
        Ok(_) => delivery.ack().await,
        Err(error) => match error.disposition() {
            runtime::bus::Disposition::Retry(after) => delivery.retry(after).await,
            _ => delivery.reject(format!("the outcome cannot be said: {error}")).await,
        },
    }
}

async fn answer_questions(rt: &Runtime, registry: &Registry, uploads: &Uploads, work: &Path) -> Result<(), Error> {
    let shared = uploads.clone();
    serve::<UploadTicket, _>(rt, move |_, query| {
        let uploads = shared.clone();
        async move { uploads.ticket(&query).await }
    })
    .await?;
    let (shared, work) = (uploads.clone(), Arc::<Path>::from(work));
    serve::<UploadDone, _>(rt, move |_, query| {
        let (uploads, work) = (shared.clone(), work.clone());
        async move { uploads.done(&query, &work).await }
    })
    .await?;
    let shared = registry.clone();
    serve::<RegisterModel, _>(rt, move |workspace, query| {
        let registry = shared.clone();
        async move { registry.register(&workspace, &query).await.map_err(Refusal::from) }
    })
    .await?;
    let shared = registry.clone();
    serve::<ListModels, _>(rt, move |workspace, _| {
        let registry = shared.clone();
        async move { registry.list(&workspace).await.map_err(Refusal::from) }
    })
    .await
}

/// Answers questions of one kind, each in a task of its own, at most eight at a time.
async fn serve<Q: Query + Clone, F>(
    rt: &Runtime,
    answer: impl Fn(proto::id::Workspace, Q) -> F + Send + 'static,
) -> Result<(), Error>
where
    F: Future<Output = Result<Q::Reply, Refusal>> + Send + 'static,
{
    let mut questions = rt.bus.answer::<Q>().await?;
    let (tasks, slots) = (rt.tasks.clone(), Arc::new(Semaphore::new(8)));
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
