//! Replicas as processes of this machine: v1's layout and contract, served on a unix socket.
//!
//! Each replica has a folder, a process group, a home and a temporary folder of its own, limits where the machine allows them, and a task
//! here that watches it. A replica outlives a deployer that is killed; the next one finds its folder and either adopts it or ends it.
//! Processes of one user are not kept from each other's files: this place is for one user's own services.

mod adopt;
mod archives;
mod cgroup;
mod kept;
mod log;
mod look;
mod main_process;
mod prepare;
mod probe;
mod status;
mod supervise;
mod table;
mod variables;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use proto::id::{ReplicaId, ServiceName, Workspace};
use runtime::{shutdown::Tasks, store::Store};
use rustix::fs::FlockOperation;
use sha2::Digest as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::{archives::Archives, cgroup::Limits, kept::Folder, log::Logs, supervise::Supervisor};
use crate::backend::{Backend, LogWanted, Observed, Order, ReplicaLog, Status};

/// The longest path of a folder for sockets: with what comes behind it, it must fit into the 108 bytes of a socket's address.
const LONGEST: usize = 80;

/// What may be chosen about this place.
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
    /// The folder for sockets cannot hold any.
    #[error("the folder for sockets {path} {why}; choose another")]
    Sockets {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The place. Clones share it.
#[derive(Clone)]
pub struct ProcessBackend(Arc<Place>);

struct Place {
    /// Tells what is this place's from what is another's on the same machine.
    identity: String,
    replicas_folder: PathBuf,
    sockets: PathBuf,
    variables: BTreeMap<String, String>,
    processes: u64,
    archives: Archives,
    logs: Logs,
    limits: Limits,
    tasks: Tasks,
    /// Cancelled when replicas are to be let go of.
    leaving: CancellationToken,
    replicas: Mutex<BTreeMap<ReplicaId, Entry>>,
    news: Mutex<Option<mpsc::UnboundedSender<Observed>>>,
    /// Held for as long as the place is used.
    _lock: File,
}

struct Entry {
    observed: Observed,
    /// Set to the grace once the replica is to end.
    stop: watch::Sender<Option<Duration>>,
    /// Cancelled when nothing is left of it.
    done: CancellationToken,
}

impl ProcessBackend {
    /// Takes the state folder, adopts the replicas that still run and clears away what is left of others.
    ///
    /// # Errors
    ///
    /// Fails when a folder cannot be used, or another deployer uses it.
    pub async fn open(settings: Settings, store: Store, tasks: Tasks) -> Result<Self, Error> {
        let (state, lock) = take(&settings.state)?;
        let identity = identity(&state);
        let sockets = match settings.sockets {
            Some(sockets) => sockets,
            None if state.as_os_str().len() + 2 <= LONGEST => state.join("s"),
            None => std::env::temp_dir().join(format!("kaai-{}-{identity}", rustix::process::geteuid().as_raw())),
        };
        check_sockets(&sockets)?;
        for folder in ["replicas", "archives", "logs"] {
            make(&state.join(folder))?;
        }
        let limits = Limits::find(&format!("kaai-{identity}"));
        if let Some(why) = limits.missing() {
            tracing::warn!(why, "limits of CPU and memory are not enforced in this place");
        }
        let place = Arc::new(Place {
            identity,
            replicas_folder: state.join("replicas"),
            sockets,
            variables: settings.variables,
            processes: settings.processes,
            archives: Archives::new(state.join("archives"), settings.cache, store, tasks.clone()),
            logs: Logs(state.join("logs")),
            limits,
            tasks,
            leaving: CancellationToken::new(),
            replicas: Mutex::default(),
            news: Mutex::default(),
            _lock: lock,
        });
        adopt::adopt(&place).await;
        Ok(Self(place))
    }

    /// Why limits are not enforced here; `None` when they are.
    pub fn limits_missing(&self) -> Option<&str> {
        self.0.limits.missing()
    }
}

impl Backend for ProcessBackend {
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
        self.0.limits.remove();
    }

    fn leave(&self) {
        self.0.leaving.cancel();
    }
}

impl Place {
    fn replicas(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Entry>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a replica and returns its supervisor; `None` when it is there already.
    fn admit(self: &Arc<Self>, observed: Observed) -> Option<Supervisor> {
        let mut replicas = self.replicas();
        if replicas.contains_key(&observed.replica) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        let done = CancellationToken::new();
        let folder = Folder::new(&self.replicas_folder, &self.sockets, &observed.replica);
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

/// Makes the state folder and locks it. The lock goes with the process, however it ends.
fn take(state: &Path) -> Result<(PathBuf, File), Error> {
    make(state)?;
    let failed = |source| Error::Folder { path: state.to_owned(), source };
    let state = state.canonicalize().map_err(failed)?;
    let lock = File::create(state.join("lock")).map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((state, lock)),
        Err(_) => Err(Error::Taken(state)),
    }
}

/// Tells the things of one state folder from those of another.
fn identity(state: &Path) -> String {
    let digest = sha2::Sha256::digest(state.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn make(path: &Path) -> Result<(), Error> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(path).map_err(|source| Error::Folder { path: path.to_owned(), source })
}

/// Makes the folder for sockets; it must be ours alone, since whoever may enter it may ask every model.
fn check_sockets(path: &Path) -> Result<(), Error> {
    let wrong = |why| Error::Sockets { path: path.to_owned(), why };
    if path.as_os_str().len() > LONGEST {
        return Err(wrong("has a path of more than 80 bytes"));
    }
    make(path)?;
    let failed = |source| Error::Folder { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong("belongs to somebody else"));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}
