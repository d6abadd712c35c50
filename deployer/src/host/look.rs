//! What is looked at from time to time while a replica runs: how its start goes on, whether it is well, how large its log is.

use std::{os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use proto::failure::{Failure, Stage};
use tokio::time::Instant;

use super::{
    clock,
    engine::Engine,
    kept::{Folder, Kept},
    log, probe,
    status::StatusFile,
    supervise::{Supervisor, address, milliseconds},
};
use crate::backend::Status;

/// How often a starting replica is looked at.
const STARTING: Duration = Duration::from_millis(10);
/// How often a ready one is looked at, besides what the kernel tells at once.
const READY: Duration = Duration::from_secs(1);
/// How often the size of a log is looked at.
const LOG: Duration = Duration::from_secs(2);

/// What is looked at from time to time while a replica runs.
pub(super) struct Look {
    pub(super) kept: Kept,
    pub(super) status: StatusFile,
    socket: PathBuf,
    /// Good probes in a row before it is ready, bad ones after.
    in_a_row: u32,
    next_probe: Instant,
    next_log: Instant,
    served: Option<f64>,
}

impl Look {
    pub(super) fn new(kept: Kept, folder: &Folder) -> Self {
        let now = Instant::now();
        let (status, socket) = (StatusFile::new(&folder.status()), folder.socket());
        Self { kept, status, socket, in_a_row: 0, next_probe: now, next_log: now + LOG, served: None }
    }

    /// Waits a moment and looks once; returns why the replica must end, if it must. May be given up at any point.
    pub(super) async fn once(&mut self, supervisor: &mut Supervisor<impl Engine>) -> Option<Failure> {
        tokio::time::sleep(if self.kept.ready { READY } else { STARTING }).await;
        self.cut_log(supervisor).await;
        if self.kept.ready {
            return self.check(supervisor).await;
        }
        self.status.refresh();
        self.measure(supervisor);
        if self.status.said.serving.is_some() && Instant::now() >= self.next_probe {
            self.probe(supervisor).await;
        }
        None
    }

    async fn cut_log(&mut self, supervisor: &Supervisor<impl Engine>) {
        let now = Instant::now();
        if now < self.next_log {
            return;
        }
        self.next_log = now + LOG;
        let path = supervisor.place.log(&supervisor.observed);
        let cutting = supervisor.place.tasks.spawn_blocking(move || log::cut(&path));
        if let Ok(Err(error)) = cutting.await {
            tracing::debug!(%error, "a log cannot be cut");
        }
    }

    /// Tells the parts of the start as they become known.
    fn measure(&mut self, supervisor: &mut Supervisor<impl Engine>) {
        let (said, start) = (&self.status.said, &mut self.kept.start);
        let before = *start;
        if let Some(import) = said.import {
            start.interpreter_ms = milliseconds(import - self.kept.spawned);
            start.init_ms = said.serving.map_or(0, |serving| milliseconds(serving - import).max(1));
        }
        if *start != before {
            supervisor.observed.start = *start;
            let age = Duration::try_from_secs_f64(clock::monotonic() - self.kept.spawned).unwrap_or_default();
            supervisor.tell(Status::Starting(age));
        }
    }

    /// Asks for a sign that it serves.
    async fn probe(&mut self, supervisor: &mut Supervisor<impl Engine>) {
        let liveness = &self.kept.liveness;
        let served = *self.served.get_or_insert_with(clock::monotonic);
        if !probe::answers(&self.socket, seconds(liveness.timeout_seconds)).await {
            self.in_a_row = 0;
            self.next_probe = Instant::now() + READY;
            return;
        }
        self.in_a_row += 1;
        let period = seconds(liveness.period_seconds);
        self.next_probe = Instant::now() + period;
        if self.in_a_row < liveness.success_threshold {
            return;
        }
        // What answered may have been put there by the script; what is there once the folder is sealed stays.
        let sealed = supervisor.place.engine.seal(&supervisor.folder);
        if sealed.is_err() || !probe::listens(&self.socket, seconds(liveness.timeout_seconds)).await {
            tracing::warn!(?sealed, replica = %self.kept.replica, "the socket of a replica cannot be trusted yet");
            self.in_a_row = 0;
            return;
        }
        (self.kept.ready, self.in_a_row) = (true, 0);
        self.kept.start.probe_ms = milliseconds(clock::monotonic() - served);
        if let Err(error) = supervisor.folder.keep(&self.kept) {
            // The next deployer would wait for it to become ready once more, and so it will.
            tracing::warn!(%error, "it cannot be kept that a replica is ready");
        }
        supervisor.observed.start = self.kept.start;
        supervisor.observed.address = Some(address(&supervisor.folder));
        supervisor.tell(Status::Ready);
    }

    /// Whether a ready replica is still well: somebody listens, and no worker is stuck.
    async fn check(&mut self, supervisor: &Supervisor<impl Engine>) -> Option<Failure> {
        if Instant::now() < self.next_probe {
            return None;
        }
        let liveness = &self.kept.liveness;
        let well = probe::listens(&self.socket, seconds(liveness.timeout_seconds)).await;
        self.next_probe = Instant::now() + seconds(liveness.period_seconds);
        self.in_a_row = if well { 0 } else { self.in_a_row + 1 };
        if self.in_a_row >= liveness.failure_threshold {
            let cause = format!("the replica did not listen at {} probes in a row", self.in_a_row);
            return Some(Failure::project(Stage::Starting, cause, "look at the whole log"));
        }
        let now = clock::monotonic();
        let stuck = supervisor.folder.heartbeats(self.kept.workers).into_iter().any(|path| {
            let touched = std::fs::symlink_metadata(path)
                .map_or(now, |file| file.mtime() as f64 + file.mtime_nsec() as f64 / 1e9);
            now - touched > self.kept.worker_timeout as f64
        });
        stuck.then(|| {
            let cause = format!("run() was stuck for more than {} s", self.kept.worker_timeout);
            let remedy = "find out what run() waits for, or raise WORKER_TIMEOUT among the environment variables";
            Failure::project(Stage::Starting, cause, remedy)
        })
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds.max(1)))
}
