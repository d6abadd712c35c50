//! The life of one replica: prepared, started, watched, ended, cleared away. One task each.

use std::{pin::pin, sync::Arc, time::Duration};

use proto::failure::Failure;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Place, archives, clock,
    engine::{Engine, Environment, Start, Unit},
    kept::{Folder, Kept},
    log,
    look::Look,
    prepare,
    variables::{self, Identity, Places},
};
use crate::backend::{Ended, Exit, Observed, Order, Status};

/// How long a replica that is not ready may take to end: it has no request in hand.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How many of the last lines of a log are told of an exit.
const TAIL: usize = 50;

/// Where a replica listens, in the form of a route's address.
pub(super) fn address(folder: &Folder) -> String {
    format!("unix:{}", folder.socket().display())
}

/// Watches over one replica.
pub(super) struct Supervisor<E> {
    pub(super) place: Arc<Place<E>>,
    pub(super) folder: Folder,
    pub(super) observed: Observed,
    stop: watch::Receiver<Option<Duration>>,
    done: CancellationToken,
}

/// How a watch came to its end.
enum End {
    /// It ended by itself, or could not be started.
    Exited(Box<Exit>),
    /// It was told to.
    Stopped,
    /// It goes on without us.
    Left,
}

impl<E: Engine> Supervisor<E> {
    pub(super) fn new(
        place: Arc<Place<E>>,
        folder: Folder,
        observed: Observed,
        stop: watch::Receiver<Option<Duration>>,
        done: CancellationToken,
    ) -> Self {
        Self { place, folder, observed, stop, done }
    }

    /// Starts the replica and watches it to its end.
    pub(super) async fn run(mut self, order: Order) {
        self.tell(Status::Preparing);
        let end = match self.start(&order).await {
            Ok(Some((kept, unit))) => self.watch(kept, unit).await,
            Ok(None) => End::Stopped,
            Err(cause) => End::Exited(Box::new(Exit { cause: Some(*cause), ..Exit::default() })),
        };
        self.finish(end).await;
    }

    /// Watches a replica that was found running.
    pub(super) async fn go_on(mut self, kept: Kept, unit: E::Unit) {
        let end = self.watch(kept, unit).await;
        self.finish(end).await;
    }

    async fn finish(mut self, end: End) {
        match end {
            End::Left => return,
            End::Stopped => {}
            End::Exited(exit) => {
                self.tell(Status::Exited(exit));
                tokio::select! {
                    () = self.place.leaving.cancelled() => return,
                    _ = ordered_to_stop(&mut self.stop) => {}
                }
            }
        }
        self.clear().await;
        self.tell(Status::Gone);
        self.done.cancel();
    }

    pub(super) fn tell(&mut self, status: Status) {
        self.observed.status = status;
        self.place.tell(&self.observed);
    }

    /// Gets its environment and its files; `None` when it was told to end meanwhile.
    async fn prepare(&mut self, order: &Order) -> Result<Option<Environment>, Failure> {
        let given_up = CancellationToken::new();
        let mut stop = self.stop.clone();
        let mut preparing = pin!(prepare::prepare(&self.place, &self.folder, order, &given_up));
        tokio::select! {
            biased;
            _ = ordered_to_stop(&mut stop) => {
                given_up.cancel();
                // Nothing may be written any more when its folder is cleared away.
                let _ = preparing.await;
                Ok(None)
            }
            prepared = &mut preparing => prepared.map(Some),
        }
    }

    /// Prepares and starts the replica; `None` when it was told to end before there was a program.
    async fn start(&mut self, order: &Order) -> Result<Option<(Kept, E::Unit)>, Box<Failure>> {
        let began = Instant::now();
        let spec = &order.release.spec;
        let mut kept = Kept {
            replica: order.replica.clone(),
            workspace: order.workspace.clone(),
            service: order.service.clone(),
            generation: order.release.generation,
            handle: None,
            spawned: 0.0,
            ready: false,
            start: self.observed.start,
            liveness: spec.liveness.clone(),
            worker_timeout: variables::worker_timeout(spec),
            workers: spec.requests.max_concurrent_per_replica.max(1),
            unlimited: None,
        };
        let failed = |error: std::io::Error| archives::disk(&self.folder.app_root(), &error);
        self.folder.create().map_err(failed)?;
        self.folder.keep(&kept).map_err(failed)?;
        let Some(environment) = self.prepare(order).await? else { return Ok(None) };
        kept.start.fetch_ms = milliseconds(began.elapsed().as_secs_f64());
        let unit = self.launch(order, &environment, &mut kept).await?;
        Ok(Some((kept, unit)))
    }

    /// Makes the program, keeps which one it is, and only then lets it go: killed in between, it never runs.
    async fn launch(&mut self, order: &Order, environment: &Environment, kept: &mut Kept) -> Result<E::Unit, Failure> {
        let view = self.place.engine.view(&self.folder);
        let mark = variables::mark(&self.place.ground.identity, &order.replica);
        let identity = Identity {
            replica: &order.replica,
            workspace: &order.workspace,
            service: &order.service,
            generation: order.release.generation.0,
            mark: &mark,
        };
        let places = Places { environment, view: &view };
        let variables = variables::variables(&places, &identity, &order.release.spec, &self.place.variables);
        let (folder, log) = (&self.folder, self.place.log(&self.observed));
        kept.spawned = clock::monotonic();
        let made =
            self.place.engine.make(&Start { order, folder, environment, variables: &variables, log: &log }).await?;
        let mut unit = made.unit;
        kept.handle = Some(unit.handle());
        kept.unlimited = made.unlimited.map(|why| format!("its limits are not enforced: {why}"));
        self.observed.unlimited.clone_from(&kept.unlimited);
        folder.keep(kept).map_err(|error| archives::disk(folder.root(), &error))?;
        let orders = serde_json::json!({
            "socket": view.own.join("s"),
            "status": view.own.join("status"),
            "heartbeat": view.own.join("heartbeat"),
            "mode": view.mode,
            "workers": kept.workers,
            "timeout": kept.worker_timeout,
        });
        unit.go(&orders.to_string()).await?;
        self.observed.start = kept.start;
        self.tell(Status::Starting(Duration::ZERO));
        Ok(unit)
    }

    /// Watches until the program ends, is told to end, or is let go of.
    async fn watch(&mut self, kept: Kept, mut unit: E::Unit) -> End {
        let (mut stop, leaving) = (self.stop.clone(), self.place.leaving.clone());
        let mut look = Look::new(kept, &self.folder);
        loop {
            let exit = tokio::select! {
                biased;
                how = unit.ended() => self.exit(how, &unit, &mut look).await,
                () = leaving.cancelled() => return End::Left,
                grace = ordered_to_stop(&mut stop) => {
                    let grace = if look.kept.ready { grace } else { grace.min(IDLE_GRACE) };
                    terminate(&mut unit, grace).await;
                    return End::Stopped;
                }
                unwell = look.once(self) => match unwell {
                    None => continue,
                    Some(cause) => {
                        terminate(&mut unit, Duration::ZERO).await;
                        Exit { cause: Some(cause), ..self.exit(Ended::Unknown, &unit, &mut look).await }
                    }
                },
            };
            return End::Exited(Box::new(exit));
        }
    }

    /// What is to be told of a program that has ended.
    async fn exit(&self, how: Ended, unit: &E::Unit, look: &mut Look) -> Exit {
        look.status.refresh();
        let how = match how {
            // Several workers: the code says by which signal the first of them ended, as a shell's does.
            Ended::Code(code) if look.kept.workers > 1 && (129..160).contains(&code) => Ended::Signal(code - 128),
            how => how,
        };
        let killed = !matches!(how, Ended::Code(_));
        let out_of_memory = killed && unit.out_of_memory().await;
        self.place.bring_log(&self.observed).await;
        let tail = log::tail(&self.place.log(&self.observed), TAIL).lines;
        Exit { how, out_of_memory, report: look.status.said.failed.take(), cause: None, tail }
    }

    /// Ends all of the replica that is left, and takes away its folder and the oldest logs.
    async fn clear(&self) {
        self.place.bring_log(&self.observed).await;
        self.place.engine.clear(&self.observed.replica).await;
        let (place, folder) = (self.place.clone(), self.folder.clone());
        let Observed { replica, workspace, service, .. } = self.observed.clone();
        let clearing = self.place.tasks.spawn_blocking(move || {
            if let Err(error) = folder.remove() {
                tracing::warn!(%replica, %error, "the folder of a replica cannot be removed");
            }
            let running: Vec<_> = place.replicas().keys().filter(|other| **other != replica).cloned().collect();
            place.logs.prune(&workspace, &service, &running);
        });
        // A panic in there leaves the folder for the next start of the deployer.
        let _ = clearing.await;
    }
}

/// Waits until the end is ordered, and returns the grace.
async fn ordered_to_stop(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    // The sender lives as long as the entry, which only the end of the replica's task removes.
    stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace).unwrap_or_default()
}

/// Lets a program finish, and ends it if it does not.
async fn terminate(unit: &mut impl Unit, grace: Duration) {
    if !grace.is_zero() {
        unit.ask_to_end().await;
        if tokio::time::timeout(grace, unit.ended()).await.is_ok() {
            return;
        }
    }
    unit.kill().await;
    unit.ended().await;
}

/// Whole milliseconds; a negative span is none.
pub(super) fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}
