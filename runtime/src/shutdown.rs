//! How a process learns that it should stop, and how it waits for what it has begun.

use std::future::Future;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A token that is cancelled by the first SIGTERM or SIGINT. Further ones change nothing: every wait of a shutdown has a deadline.
pub fn on_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be caught here; the process ends without draining");
        return token;
    };
    Tasks::default().spawn(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: finishing what is in hand"),
            _ = int.recv() => tracing::info!("SIGINT: finishing what is in hand"),
        }
        cancelled.cancel();
    });
    token
}

/// The tasks of a component: spawned here, waited for at the end.
#[derive(Debug, Clone, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Runs a future beside the others.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.spawn(future)
    }

    /// Runs a closure that blocks, on a thread kept for that.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.0.spawn_blocking(work)
    }

    /// Waits until no task is left. Tasks may still be spawned meanwhile.
    pub async fn wait(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
