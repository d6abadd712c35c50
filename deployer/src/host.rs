//! Replicas on this host, whatever runs them: v1's layout and contract, served on a unix socket.
//!
//! Each replica has a folder, a home and a temporary folder of its own, and a task here that watches it. A replica outlives a deployer that
//! is killed; the next one finds its folder and either adopts it or ends it. How its program is started, ended and waited for is the
//! [`engine::Engine`]'s to know.

mod adopt;
pub(crate) mod archives;
mod clock;
pub(crate) mod engine;
pub(crate) mod ground;
pub(crate) mod kept;
pub(crate) mod log;
mod look;
mod prepare;
mod probe;
mod status;
mod supervise;
mod variables;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use proto::id::{ReplicaId, ServiceName, Workspace};
use runtime::shutdown::Tasks;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::variables::{MARK, mark, model_path};
use self::{archives::Archives, engine::Engine, ground::Ground, kept::Folder, log::Logs, supervise::Supervisor};
use crate::backend::{Backend, LogWanted, Observed, Order, ReplicaLog, Status};

/// What may be chosen about a place of this host, whatever runs the replicas.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder for everything that is kept of replicas; one deployer uses it at a time.
    pub state: PathBuf,
    /// A folder with a short path for sockets; chosen from `state` when left out.
    pub sockets: Option<PathBuf>,
    /// Environment variables for every replica, proxies for example.
    pub variables: BTreeMap<String, String>,
    /// How many processes and threads a replica may have, where that can be limited.
    pub processes: u64,
    /// How many bytes of fetched archives are kept for the next start.
    pub cache: u64,
}

impl Settings {
    /// The usual settings over a state folder.
    pub fn new(state: PathBuf) -> Self {
        Self { state, sockets: None, variables: BTreeMap::new(), processes: 4096, cache: 10 << 30 }
    }
}

/// The place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be made or read.
    #[error("cannot use the folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another deployer uses the state folder.
    #[error("another deployer uses {0}; stop that one, or give this one a folder of its own")]
    Taken(PathBuf),
    /// Another kind of place has replicas in the state folder.
    #[error(
        "{path} holds replicas of the place {kind}; end them with `--place {kind} --on-stop end`, or choose another folder"
    )]
    Another {
        /// The folder.
        path: PathBuf,
        /// What runs them.
        kind: String,
    },
    /// The folder for sockets cannot hold any.
    #[error("the folder for sockets {path} {why}; choose another")]
    Sockets {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A place of this host. Clones share it.
pub struct Host<E>(Arc<Place<E>>);

impl<E> Clone for Host<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Place<E> {
    ground: Ground,
    engine: E,
    variables: BTreeMap<String, String>,
    archives: Archives,
    logs: Logs,
    tasks: Tasks,
    /// Cancelled when replicas are to be let go of.
    leaving: CancellationToken,
    replicas: Mutex<BTreeMap<ReplicaId, Entry>>,
    news: Mutex<Option<mpsc::UnboundedSender<Observed>>>,
}

struct Entry {
    observed: Observed,
    /// Set to the grace once the replica is to end.
    stop: watch::Sender<Option<Duration>>,
    /// Cancelled when nothing is left of it.
    done: CancellationToken,
}

impl<E: Engine> Host<E> {
    /// Adopts the replicas that still run and clears away what is left of others.
    pub(crate) async fn begin(
        ground: Ground,
        engine: E,
        archives: Archives,
        variables: BTreeMap<String, String>,
        tasks: Tasks,
    ) -> Self {
        if let Some(why) = engine.limits_missing() {
            tracing::warn!(why, "limits of CPU and memory are not enforced in this place");
        }
        let place = Arc::new(Place {
            logs: Logs::new(ground.state.join("logs")),
            ground,
            engine,
            archives,
            variables,
            tasks,
            leaving: CancellationToken::new(),
            replicas: Mutex::default(),
            news: Mutex::default(),
        });
        adopt::adopt(&place).await;
        Self(place)
    }

    /// Why limits are not enforced here; `None` when they are.
    pub fn limits_missing(&self) -> Option<&str> {
        self.0.engine.limits_missing()
    }
}

impl<E: Engine> Backend for Host<E> {
    async fn start(&self, order: Order) {
        let observed = Observed {
            replica: order.replica.clone(),
            workspace: order.workspace.clone(),
            service: order.service.clone(),
            generation: order.release.generation,
            status: Status::Preparing,
            address: None,
            start: proto::deployer::StartParts::default(),
            unlimited: None,
        };
        if let Some(supervisor) = self.0.admit(observed) {
            self.0.tasks.spawn(supervisor.run(order));
        }
    }

    async fn stop(&self, replica: &ReplicaId, grace: Duration) {
        let done = match self.0.replicas().get(replica) {
            Some(entry) => {
                entry.stop.send_replace(Some(grace));
                entry.done.clone()
            }
            None => return,
        };
        tokio::select! {
            () = done.cancelled() => {}
            () = self.0.leaving.cancelled() => {}
        }
    }

    async fn list(&self) -> Vec<Observed> {
        self.0.replicas().values().map(|entry| entry.observed.clone()).collect()
    }

    fn changes(&self) -> mpsc::UnboundedReceiver<Observed> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    async fn logs(&self, wanted: &LogWanted) -> Vec<ReplicaLog> {
        let mut live = self.list().await;
        live.retain(|observed| wanted.workspace == observed.workspace && wanted.service == observed.service);
        join_all(live.iter().map(|observed| self.0.bring_log(observed))).await;
        let (logs, wanted) = (self.0.logs.clone(), wanted.clone());
        // A reader that panicked has read nothing.
        self.0.tasks.spawn_blocking(move || logs.read(&wanted)).await.unwrap_or_default()
    }

    async fn forget(&self, workspace: &Workspace, service: &ServiceName) {
        let (logs, workspace, service) = (self.0.logs.clone(), workspace.clone(), service.clone());
        let forgetting = self.0.tasks.spawn_blocking(move || logs.forget(&workspace, &service));
        // A panic in there leaves logs that nobody asks for.
        let _ = forgetting.await;
    }

    async fn end(&self, grace: Duration) {
        let all: Vec<_> = self.0.replicas().keys().cloned().collect();
        join_all(all.iter().map(|replica| self.stop(replica, grace))).await;
        self.0.engine.close().await;
    }

    fn leave(&self) {
        self.0.leaving.cancel();
    }
}

impl<E: Engine> Place<E> {
    fn replicas(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Entry>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, replica: &ReplicaId) -> Folder {
        Folder::new(&self.ground.replicas(), &self.ground.sockets, self.ground.layout, replica)
    }

    /// Where a replica's log is kept.
    fn log(&self, observed: &Observed) -> PathBuf {
        let Observed { workspace, service, generation, replica, .. } = observed;
        self.logs.path(workspace, service, *generation, replica)
    }

    /// Makes the kept log of a replica as new as it can be.
    async fn bring_log(&self, observed: &Observed) {
        self.engine.bring_log(&observed.replica, &self.log(observed)).await;
    }

    /// Enters a replica and returns its supervisor; `None` when it is there already.
    fn admit(self: &Arc<Self>, observed: Observed) -> Option<Supervisor<E>> {
        let mut replicas = self.replicas();
        if replicas.contains_key(&observed.replica) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        let done = CancellationToken::new();
        let folder = self.folder(&observed.replica);
        let supervisor = Supervisor::new(self.clone(), folder, observed.clone(), stopped, done.clone());
        replicas.insert(observed.replica.clone(), Entry { observed, stop, done });
        Some(supervisor)
    }

    /// Keeps what a replica's supervisor sees, and tells it.
    fn tell(&self, observed: &Observed) {
        {
            let mut replicas = self.replicas();
            if observed.status == Status::Gone {
                replicas.remove(&observed.replica);
            } else if let Some(entry) = replicas.get_mut(&observed.replica) {
                entry.observed = observed.clone();
            }
        }
        if let Some(news) = &*self.news.lock().unwrap_or_else(PoisonError::into_inner) {
            // A reader that is gone has no use for news.
            let _ = news.send(observed.clone());
        }
    }
}
