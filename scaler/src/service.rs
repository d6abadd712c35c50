//! The loop: events in, decisions out. It decides nothing itself.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use proto::{
    deployer::DeploymentDeleted,
    id::{ServiceName, Workspace},
    router::ServiceUtilization,
    scaler::ScaleRequested,
};
use runtime::{Runtime, bus, clock};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Error,
    decide::{Action, Input, Key, Scaler},
    lease::{self, Until},
    metrics::Metrics,
};

/// How often the core is told that time has passed.
const TICK: Duration = Duration::from_millis(250);

/// Runs until shutdown; returns when decisions in hand are stored and the lease is given up.
///
/// # Errors
///
/// Fails when the bus cannot be listened to.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let mut utilization = rt.bus.listen::<ServiceUtilization>().await?;
    let mut asked = rt.bus.listen::<ScaleRequested>().await?;
    let mut deleted = rt.bus.listen::<DeploymentDeleted>().await?;
    let epoch = clock::now_ms();
    let (sender, mut until) = watch::channel(None);
    let release = CancellationToken::new();
    let keeper = rt.tasks.spawn(lease::keep(rt.clone(), epoch, sender, release.clone()));
    let metrics = Metrics::register(&rt.metrics);
    let mut scaler = Scaler::new(config.timing, &rt.instance, epoch);
    let mut shell = Shell { rt: rt.clone(), metrics, until: until.clone(), saying: FuturesUnordered::new() };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rt.health.ready(true);
    loop {
        let input = tokio::select! {
            biased;
            () = rt.shutdown.cancelled() => break,
            Ok(()) = until.changed() => Input::Lead(until.borrow_and_update().is_some()),
            Some(said) = shell.saying.next() => match shell.settle(said) {
                Some(input) => input,
                None => continue,
            },
            Some(heard) = deleted.next() => Input::Deleted { key: key(heard.0, heard.1) },
            Some(heard) = asked.next() => Input::Asked { key: key(heard.0, heard.1), event: Box::new(heard.2) },
            _ = tick.tick() => Input::Tick,
            Some((workspace, service, event)) = utilization.next() => {
                shell.metrics.heard.inc();
                Input::Heard { key: key(workspace, service), event: Box::new(event), received_ms: clock::now_ms() }
            }
        };
        shell.show(&input, &scaler);
        for action in scaler.on(Instant::now(), input) {
            shell.perform(action);
        }
    }
    rt.health.ready(false);
    while let Some(said) = shell.saying.next().await {
        shell.settle(said);
    }
    release.cancel();
    // It ends by itself within the time a call to the bus may take.
    if let Err(error) = keeper.await {
        tracing::error!(%error, "the keeper of the lease broke");
    }
    Ok(())
}

fn key(workspace: Workspace, service: ServiceName) -> Key {
    Key { workspace, service }
}

/// What became of a decision.
struct Said {
    key: Key,
    outcome: Result<u64, String>,
}

/// Performs what the core wants.
struct Shell {
    rt: Runtime,
    metrics: Metrics,
    until: watch::Receiver<Until>,
    saying: FuturesUnordered<BoxFuture<'static, Said>>,
}

impl Shell {
    fn show(&self, input: &Input, scaler: &Scaler) {
        match input {
            // Each renewal says again that it leads; only a change is told.
            Input::Lead(leads) if self.metrics.leads.set(i64::from(*leads)) != i64::from(*leads) => {
                tracing::info!(leads, "{}", if *leads { "this instance decides" } else { "this instance stands by" });
            }
            Input::Tick => {
                self.metrics.services.set(i64::try_from(scaler.services()).unwrap_or(i64::MAX));
                self.metrics.frozen.set(i64::try_from(scaler.frozen()).unwrap_or(i64::MAX));
            }
            _ => {}
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Ask { key, id, event } => {
                tracing::info!(workspace = %key.workspace, service = %key.service, replicas = event.replicas, reason = event.reason, "asking");
                self.saying.push(Box::pin(say(self.rt.bus.clone(), *self.until.borrow(), key, id, event)));
            }
            Action::Freeze { key, why } => {
                tracing::info!(workspace = %key.workspace, service = %key.service, %why, "frozen: unknown is not zero");
            }
            Action::Thaw { key } => {
                tracing::info!(workspace = %key.workspace, service = %key.service, "load known again")
            }
            Action::Drop(why) => {
                self.metrics.dropped(why);
                tracing::debug!(%why, "news not taken");
            }
        }
    }

    fn settle(&self, said: Said) -> Option<Input> {
        self.metrics.decided(said.outcome.is_ok());
        match said.outcome {
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(workspace = %said.key.workspace, service = %said.key.service, error, "decision not stored");
                Some(Input::Failed { key: said.key })
            }
        }
    }
}

/// Says a decision while the lease lasts: what was decided under it must not be said after another has taken over.
async fn say(bus: bus::Bus, until: Until, key: Key, id: String, event: Box<ScaleRequested>) -> Said {
    let outcome = match until {
        Some(until) => {
            let saying = bus.say(&key.workspace, &key.service, &id, &*event);
            match tokio::time::timeout_at(until, saying).await {
                Ok(stored) => stored.map_err(|error| error.to_string()),
                Err(_) => Err("the lease ended before the bus had stored it".to_owned()),
            }
        }
        None => Err("the lease ended before it was said".to_owned()),
    };
    Said { key, outcome }
}
