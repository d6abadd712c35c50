//! The builder's loops: requests, news of environments, questions for logs. Each ends with shutdown.

use std::{sync::Arc, time::Duration};

use proto::{
    builder::EnvironmentRecord,
    packager::ProjectPackaged,
    query::{DescribeEnvironment, ForgetFailure, GetBuildLog, GetScanReport},
    subject,
};
use runtime::{
    Runtime,
    bus::{self, Bucket, Deliveries, Questions, Watch, WorkQueue},
    sealing::KeyPair,
};

use crate::{Error, config::Limits, flight::Flights, maker::Maker, metrics::Metrics, question, request};

/// How many requests may wait in all builders together: more than this many services that need a build at once wait their turn.
const MAX_IN_FLIGHT: usize = 512;
/// How long a builder that holds a request may be silent before another gets it.
const ACK_WAIT: Duration = Duration::from_secs(6);

/// Serves until shutdown with any maker.
///
/// # Errors
///
/// Fails when the bus could not be had.
pub async fn serve<M: Maker>(maker: M, limits: Limits, keys: KeyPair, rt: Runtime) -> Result<(), Error> {
    let metrics = Metrics::new(&rt.metrics);
    let bucket: Bucket<EnvironmentRecord> = rt.bus.bucket(subject::ENVIRONMENTS).await?;
    publish_key(&keys, &rt).await?;
    let watch = bucket.watch();
    let questions = rt.bus.answer::<GetBuildLog>().await?;
    let orders = rt.bus.answer::<ForgetFailure>().await?;
    let scans = rt.bus.answer::<GetScanReport>().await?;
    let descriptions = rt.bus.answer::<DescribeEnvironment>().await?;
    let queue = WorkQueue {
        consumer: "builder",
        subjects: vec![subject::any::<ProjectPackaged>()],
        ack_wait: ACK_WAIT,
        max_in_flight: MAX_IN_FLIGHT,
    };
    let deliveries = rt.bus.work(queue).await?;
    let flights = Arc::new(Flights::new(maker, rt.clone(), bucket.clone(), limits, metrics.clone()));
    rt.health.ready(true);
    tokio::join!(
        take_requests(deliveries, &flights, Arc::new(keys), &metrics),
        hear_news(watch, &flights),
        answer_questions(questions, &flights, &bucket, &rt),
        forget_failures(orders, &bucket, &rt),
        show_reports(scans, &bucket, &rt),
        describe_environments(descriptions, &flights),
    );
    rt.health.ready(false);
    Ok(())
}

/// Publishes the key that logins at registries are encrypted to. Builders that share their environments share it.
async fn publish_key(keys: &KeyPair, rt: &Runtime) -> Result<(), bus::Error> {
    let facts = rt.bus.bucket::<String>(subject::FACTS).await?;
    let key = keys.public_key();
    if facts.get(subject::BUILDER_KEY).await?.is_none_or(|known| known.value != key) {
        facts.put(subject::BUILDER_KEY, &key).await?;
    }
    Ok(())
}

async fn take_requests<M: Maker>(
    mut deliveries: Deliveries,
    flights: &Arc<Flights<M>>,
    keys: Arc<KeyPair>,
    metrics: &Metrics,
) {
    while let Some(delivery) = deliveries.next().await {
        flights.rt().tasks.spawn(request::serve(flights.clone(), keys.clone(), metrics.clone(), delivery));
    }
}

async fn hear_news<M: Maker>(mut watch: Watch<EnvironmentRecord>, flights: &Flights<M>) {
    while let Some(change) = watch.next().await {
        flights.hear(&change);
    }
}

async fn forget_failures(mut orders: Questions<ForgetFailure>, bucket: &Bucket<EnvironmentRecord>, rt: &Runtime) {
    while let Some(order) = orders.next().await {
        let bucket = bucket.clone();
        rt.tasks.spawn(async move {
            let answered = question::forget(&order.query, &bucket).await;
            order.reply(answered).await;
        });
    }
}

async fn describe_environments<M: Maker>(mut questions: Questions<DescribeEnvironment>, flights: &Arc<Flights<M>>) {
    while let Some(question) = questions.next().await {
        let flights = flights.clone();
        flights.clone().rt().tasks.spawn(async move {
            let answered = question::describe(&question.query, &flights).await;
            question.reply(answered).await;
        });
    }
}

async fn show_reports(mut scans: Questions<GetScanReport>, bucket: &Bucket<EnvironmentRecord>, rt: &Runtime) {
    while let Some(question) = scans.next().await {
        let (bucket, store) = (bucket.clone(), rt.store.clone());
        rt.tasks.spawn(async move {
            let answered = question::report(&question.query, &bucket, &store).await;
            question.reply(answered).await;
        });
    }
}

async fn answer_questions<M: Maker>(
    mut questions: Questions<GetBuildLog>,
    flights: &Arc<Flights<M>>,
    bucket: &Bucket<EnvironmentRecord>,
    rt: &Runtime,
) {
    while let Some(question) = questions.next().await {
        let (flights, bucket, store) = (flights.clone(), bucket.clone(), rt.store.clone());
        rt.tasks.spawn(async move {
            let answered = question::answer(&question.query, &flights, &bucket, &store).await;
            question.reply(answered).await;
        });
    }
}
