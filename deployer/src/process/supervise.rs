//! The life of one replica: prepared, started, watched, ended, cleared away. One task each.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use proto::failure::{Failure, Stage};
use rustix::process::Signal;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Place, archives,
    cgroup::Group,
    kept::{Folder, Kept},
    log,
    look::Look,
    main_process::{MainProcess, Program},
    prepare,
    table::{self, ProcessId},
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
pub(super) struct Supervisor {
    pub(super) place: Arc<Place>,
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

impl Supervisor {
    pub(super) fn new(
        place: Arc<Place>,
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
            Ok(Some((kept, process))) => self.watch(kept, process).await,
            Ok(None) => End::Stopped,
            Err(cause) => End::Exited(Box::new(Exit { cause: Some(*cause), ..Exit::default() })),
        };
        self.finish(end).await;
    }

    /// Watches a replica that was found running.
    pub(super) async fn go_on(mut self, kept: Kept, process: MainProcess) {
        let end = self.watch(kept, process).await;
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

    /// Fetches and unpacks its files; false when it was told to end meanwhile.
    async fn prepare(&mut self, order: &Order) -> Result<bool, Failure> {
        let given_up = CancellationToken::new();
        let mut stop = self.stop.clone();
        let mut preparing = pin!(prepare::prepare(&self.place, &self.folder, &order.release, &given_up));
        tokio::select! {
            biased;
            _ = ordered_to_stop(&mut stop) => {
                given_up.cancel();
                // Nothing may be written any more when its folder is cleared away.
                let _ = preparing.await;
                Ok(false)
            }
            prepared = &mut preparing => prepared.map(|()| true),
        }
    }

    /// Prepares and starts the process; `None` when it was told to end before there was one.
    async fn start(&mut self, order: &Order) -> Result<Option<(Kept, MainProcess)>, Box<Failure>> {
        let began = Instant::now();
        let spec = &order.release.spec;
        let mut kept = Kept {
            replica: order.replica.clone(),
            workspace: order.workspace.clone(),
            service: order.service.clone(),
            generation: order.release.generation,
            process: None,
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
        if !self.prepare(order).await? {
            return Ok(None);
        }
        kept.start.fetch_ms = milliseconds(began.elapsed().as_secs_f64());
        let python = prepare::python(&order.release.image)?;
        let group = self.limit(order, &mut kept);
        let process = self.launch(order, &python, &mut kept, group).await.map_err(|error| {
            let cause = format!("the process cannot be started: {error}");
            Failure::platform(Stage::Starting, cause, "mend that, then deploy again")
        })?;
        Ok(Some((kept, process)))
    }

    /// Makes the group with the replica's limits; where that fails, it runs without them and says so.
    fn limit(&mut self, order: &Order, kept: &mut Kept) -> Option<Group> {
        let resources = &order.release.spec.resources;
        let asked = resources.cpu_limit.is_some() || resources.memory_gb_limit.is_some();
        let limits = &self.place.limits;
        let (group, why) = match limits.group(order.replica.as_str(), resources, self.place.processes) {
            Ok(group) => (group, limits.missing().map(str::to_owned)),
            Err(error) => {
                tracing::warn!(replica = %order.replica, %error, "runs without limits");
                (None, Some(error.to_string()))
            }
        };
        kept.unlimited = why.filter(|_| asked).map(|why| format!("its limits are not enforced: {why}"));
        self.observed.unlimited.clone_from(&kept.unlimited);
        group
    }

    /// Starts the process, keeps which one it is, and only then lets it go: killed in between, it ends by itself.
    async fn launch(
        &mut self,
        order: &Order,
        python: &Path,
        kept: &mut Kept,
        group: Option<Group>,
    ) -> std::io::Result<MainProcess> {
        let app_root = self.folder.app_root();
        let environment = python.ancestors().nth(2).unwrap_or(python);
        let places = Places { environment, app_root: &app_root, own: self.folder.own() };
        let mark = table::mark(&self.place.identity, &order.replica);
        let identity = Identity {
            replica: &order.replica,
            workspace: &order.workspace,
            service: &order.service,
            generation: order.release.generation.0,
            mark: &mark,
        };
        let variables = variables::variables(&places, &identity, &order.release.spec, &self.place.variables);
        let (launcher, log) = (self.folder.launcher(), self.log());
        let program = Program { python, launcher: &launcher, app_root: &app_root, variables: &variables, log: &log };
        kept.spawned = table::monotonic();
        let mut process = MainProcess::spawn(&program)?;
        let pid = process.pid().unsigned_abs();
        kept.process = Some(ProcessId::of(pid)?);
        if let Some(Err(error)) = group.map(|group| group.add(pid)) {
            tracing::warn!(replica = %order.replica, %error, "runs without limits");
        }
        self.folder.keep(kept)?;
        let orders = serde_json::json!({
            "socket": self.folder.socket(),
            "status": self.folder.status(),
            "heartbeat": self.folder.heartbeat(),
            "workers": kept.workers,
            "timeout": kept.worker_timeout,
        });
        process.go(&orders.to_string()).await?;
        self.observed.start = kept.start;
        self.tell(Status::Starting(Duration::ZERO));
        Ok(process)
    }

    pub(super) fn log(&self) -> PathBuf {
        let Observed { workspace, service, generation, replica, .. } = &self.observed;
        self.place.logs.path(workspace, service, *generation, replica)
    }

    /// Watches until the process ends, is told to end, or is let go of.
    async fn watch(&mut self, kept: Kept, mut process: MainProcess) -> End {
        let (mut stop, leaving) = (self.stop.clone(), self.place.leaving.clone());
        let mut look = Look::new(kept, &self.folder);
        loop {
            let exit = tokio::select! {
                biased;
                how = process.ended() => self.exit(how, &mut look),
                () = leaving.cancelled() => return End::Left,
                grace = ordered_to_stop(&mut stop) => {
                    let grace = if look.kept.ready { grace } else { grace.min(IDLE_GRACE) };
                    terminate(&mut process, grace).await;
                    return End::Stopped;
                }
                unwell = look.once(self) => match unwell {
                    None => continue,
                    Some(cause) => {
                        terminate(&mut process, Duration::ZERO).await;
                        Exit { cause: Some(cause), ..self.exit(Ended::Unknown, &mut look) }
                    }
                },
            };
            return End::Exited(Box::new(exit));
        }
    }

    /// What is to be told of a process that has ended.
    fn exit(&self, how: Ended, look: &mut Look) -> Exit {
        look.status.refresh();
        let how = match how {
            // Several workers: the code says by which signal the first of them ended, as a shell's does.
            Ended::Code(code) if look.kept.workers > 1 && (129..160).contains(&code) => Ended::Signal(code - 128),
            how => how,
        };
        let group = self.place.limits.named(self.observed.replica.as_str());
        let killed = !matches!(how, Ended::Code(_));
        let out_of_memory = killed && group.is_some_and(|group| group.out_of_memory_kills() > 0);
        let tail = log::tail(&self.log(), TAIL).lines;
        Exit { how, out_of_memory, report: look.status.said.failed.take(), cause: None, tail }
    }

    /// Ends every process of the replica that is left, and takes away its group, its folder and the oldest logs.
    async fn clear(&self) {
        let (place, folder) = (self.place.clone(), self.folder.clone());
        let Observed { replica, workspace, service, .. } = self.observed.clone();
        let clearing = self.place.tasks.spawn_blocking(move || {
            if let Some(group) = place.limits.named(replica.as_str()) {
                group.end();
            }
            table::kill_marked(&table::mark(&place.identity, &replica));
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

/// Lets a process finish, and ends its whole group if it does not.
async fn terminate(process: &mut MainProcess, grace: Duration) {
    if !grace.is_zero() {
        process.signal(Signal::TERM);
        if tokio::time::timeout(grace, process.ended()).await.is_ok() {
            return;
        }
    }
    // Its group is certainly its own as long as it has not been waited for.
    table::signal_group(process.pid(), Signal::KILL);
    process.ended().await;
}

/// Whole milliseconds; a negative span is none.
pub(super) fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}
