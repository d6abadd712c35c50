//! The scaler on a real bus: a decision is stored, and another instance takes over when the one that decides is killed.

use std::time::Duration;

use proto::{event::Event, id::Generation, router::ServiceUtilization, scaler::ScaleRequested};
use runtime::{
    Runtime, clock,
    testing::{Nats, until},
};
use scaler::Config;
use tokio_util::sync::CancellationToken;

use crate::world::{auto, idle, key};

/// How long anything may take before the test gives up; nothing here takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(60);

/// A router and a reader of the stream.
struct Observer {
    rt: Runtime,
    sequence: u64,
    from: u64,
    generation: u64,
}

impl Observer {
    /// Speaks as a router of an overloaded service of `replicas` until a number is asked for.
    async fn first_ask(&mut self, replicas: u32) -> ScaleRequested {
        let mut history = self.rt.bus.history(&key().workspace, self.from).await.unwrap();
        let asking = async {
            loop {
                self.sequence += 1;
                let event = ServiceUtilization {
                    sequence: self.sequence,
                    at_ms: clock::now_ms(),
                    generation: Generation(self.generation),
                    replicas,
                    concurrent: f64::from(replicas),
                    busy: f64::from(replicas),
                    arrivals: 60,
                    completed: u64::from(replicas) * 10,
                    queued: 5.0,
                    refused: [("queue".to_owned(), 50)].into(),
                    scaling: auto(1, 10),
                    ..idle("a")
                };
                self.rt.bus.tell(&key().workspace, &key().service, &event).await;
                if let Ok(Some(past)) = tokio::time::timeout(Duration::from_millis(200), history.next()).await
                    && past.event_type == ScaleRequested::TYPE
                {
                    self.from = past.sequence + 1;
                    return serde_json::from_slice(&past.body).unwrap();
                }
            }
        };
        tokio::time::timeout(LIMIT, asking).await.expect("a scaler asks for replicas")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_scalers_decides_and_the_other_takes_over_when_it_is_killed() {
    let nats = Nats::start().await;
    let mut observer = Observer { rt: nats.runtime("router").await, sequence: 0, from: 0, generation: 1 };
    // On an executor of its own, so that all of it can be ended at once, as SIGKILL does.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let settings = nats.settings("scaler");
    let first = doomed
        .spawn(async move { Runtime::new("scaler", &settings, CancellationToken::new()).await.unwrap() })
        .await
        .unwrap();
    doomed.spawn(scaler::run(Config::default(), first.clone()));
    let ask = observer.first_ask(1).await;
    assert!(ask.replicas > Some(1), "{ask:?}");
    assert_eq!(ask.by, format!("scaler/{}", first.instance));

    let second = nats.runtime("scaler").await;
    let running = observer.rt.tasks.spawn(scaler::run(Config::default(), second.clone()));
    until("the second one stands by", LIMIT, async || second.health.reason().is_none().then_some(())).await;
    doomed.shutdown_background();
    let own = format!("scaler/{}", second.instance);
    // The first one may have asked once more before its end.
    while observer.first_ask(2).await.by != own {}
    until("the decision is counted", LIMIT, async || {
        second.metrics.encode().contains("kaai_scaler_decisions_total{outcome=\"stored\"}").then_some(())
    })
    .await;

    // One that stops gives the lease up, so that a third need not wait for its end.
    second.shutdown.cancel();
    running.await.unwrap().unwrap();
    let leases = observer.rt.bus.bucket::<serde_json::Value>(proto::subject::LEASES).await.unwrap();
    assert_eq!(leases.get("scaler").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_was_away_loses_no_scaler() {
    let mut nats = Nats::start().await;
    let mut observer = Observer { rt: nats.runtime("router").await, sequence: 0, from: 0, generation: 1 };
    let rt = nats.runtime("scaler").await;
    let running = observer.rt.tasks.spawn(scaler::run(Config::default(), rt.clone()));
    observer.first_ask(1).await;
    nats.kill();
    until("the scaler has noticed", LIMIT, async || rt.health.reason()).await;
    nats.resume().await;
    // What was asked for an older generation is not waited for.
    observer.generation += 1;
    assert!(observer.first_ask(3).await.replicas > Some(3));
    rt.shutdown.cancel();
    running.await.unwrap().unwrap();
}
