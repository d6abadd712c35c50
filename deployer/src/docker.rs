//! Replicas as containers of a Docker engine on this host.
//!
//! Each replica is a container that may do little: a read-only root, no capabilities, a user of its own, limits, and no port. It listens on
//! a unix socket in a folder that is mounted into it, so that only who may open that folder reaches it. Its network is there for the
//! script's own calls to the outside; containers do not see each other in it.
//! Everything made here carries the labels of this place. What does not is never looked at twice.

mod api;
mod container;
mod image;
mod login;
mod network;
mod owner;
mod unit;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use proto::{
    builder::Image,
    failure::{Failure, Stage},
    id::{Digest, ReplicaId},
};
use runtime::{shutdown::Tasks, store::Store};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::{
    api::{Abilities, Api},
    container::Plan,
    network::Network,
    unit::Container,
};
use crate::{
    backend::Order,
    host::{
        self, Host,
        archives::{Archives, disk},
        engine::{Engine, Environment, Made, Start, View},
        ground::Ground,
        kept::{Folder, Kept, Layout},
        log, model_path,
    },
};

/// The place. Clones share it.
pub type DockerBackend = Host<Containers>;

/// A replica may write in a part of its folder; others may pass through to its socket, if they have the group.
const LAYOUT: Layout = Layout { own: "own", mode: 0o711 };
/// Who may use the socket of a replica with a user of its own: that user, and the group.
const SOCKET: u32 = 0o660;

/// What may be chosen about this place beyond what is the same for all places of a host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The engine's socket: `unix:///var/run/docker.sock`. The engine must be on this host.
    pub engine: String,
    /// The user that replicas run as; chosen by [`User::usual`] when left out.
    pub user: Option<User>,
    /// A network that is there already, in place of one that is made for this place.
    pub network: Option<String>,
    /// A Docker `config.json` with the logins for registries.
    pub login: Option<PathBuf>,
    /// The state folder as the engine sees it; the same path when left out.
    pub host_state: Option<HostState>,
    /// Labels for replicas besides those of this place, which they do not replace.
    pub labels: BTreeMap<String, String>,
}

/// Where the engine's host has the state folder of a deployer that runs in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostState {
    /// In this folder.
    Folder(PathBuf),
    /// In the volume of this name, whose folder the engine knows.
    Volume(String),
}

impl FromStr for HostState {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("volume:") {
            Some(name) if name.is_empty() || name.contains('/') => Err("write volume: and the name of a Docker volume"),
            Some(name) => Ok(Self::Volume(name.to_owned())),
            None if text.starts_with('/') => Ok(Self::Folder(text.into())),
            None => Err("write the whole path of a folder of the host, or volume:NAME"),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let engine = "unix:///var/run/docker.sock".to_owned();
        Self { engine, user: None, network: None, login: None, host_state: None, labels: BTreeMap::new() }
    }
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group; a router that runs in it reaches the replicas.
    pub gid: u32,
}

impl User {
    /// One without any rights where the deployer is root, else the deployer's own.
    pub fn usual() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() { Self { uid: 10001, gid: 10001 } } else { Self { uid: uid.as_raw(), gid: gid.as_raw() } }
    }
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "write UID:GID, two numbers, neither of them 0";
        let (uid, gid) = text.split_once(':').ok_or(wrong)?;
        let number = |text: &str| text.parse().ok().filter(|number| *number != 0).ok_or(wrong);
        Ok(Self { uid: number(uid)?, gid: number(gid)? })
    }
}

/// The place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be used.
    #[error(transparent)]
    Place(#[from] host::Error),
    /// The engine's address is of another kind.
    #[error(
        "{0:?} is no unix socket; the Docker engine must be on this host, write unix:///var/run/docker.sock for example"
    )]
    Address(String),
    /// The engine cannot be asked.
    #[error("cannot use the Docker engine at {address}: {why}")]
    Engine {
        /// Its address.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// The volume with the state folder is not known to the engine.
    #[error("the Docker engine has no volume {0}, in which the state folder is said to be: see --host-state")]
    Volume(String),
    /// Files cannot be given to another user.
    #[error("only root can run replicas as another user; leave out --replica-user, or give it the deployer's own")]
    User,
}

/// Runs replicas as containers.
pub struct Containers {
    api: Api,
    /// Tells the containers of this place from those of another on the same engine.
    identity: String,
    network: Network,
    settings: Settings,
    user: User,
    state: PathBuf,
    /// The state folder as the engine sees it.
    host_state: PathBuf,
    processes: u64,
    archives: Archives,
    abilities: Abilities,
    tasks: Tasks,
}

/// By what a replica's container is known again.
#[derive(Serialize, Deserialize)]
struct Handle {
    container: String,
    models: Vec<Digest>,
}

impl DockerBackend {
    /// Takes the state folder, adopts the containers that still run and takes away what is left of others.
    ///
    /// # Errors
    ///
    /// Fails when the engine or a folder cannot be used, or another deployer uses the folder.
    pub async fn open(place: host::Settings, settings: Settings, store: Store, tasks: Tasks) -> Result<Self, Error> {
        let user = settings.user.unwrap_or_else(User::usual);
        let own = User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        if own.uid != 0 && user != own {
            return Err(Error::User);
        }
        let api = Api::connect(&settings.engine).await?;
        let failed = |why: api::Error| Error::Engine { address: settings.engine.clone(), why: why.to_string() };
        let abilities = api.abilities().await.map_err(failed)?;
        let host_state = match &settings.host_state {
            None => None,
            Some(HostState::Folder(folder)) => Some(folder.clone()),
            Some(HostState::Volume(name)) => {
                let folder = api.volume(name).await.map_err(failed)?;
                Some(folder.ok_or_else(|| Error::Volume(name.clone()))?)
            }
        };
        let ground = Ground::take(&place, "docker", LAYOUT)?;
        let archives = ground.archives(&place, store, &tasks);
        let engine = Containers {
            identity: ground.identity.clone(),
            network: Network::new(settings.network.clone(), &ground.identity),
            host_state: host_state.unwrap_or_else(|| ground.state.clone()),
            state: ground.state.clone(),
            processes: place.processes,
            archives: archives.clone(),
            tasks: tasks.clone(),
            api,
            user,
            abilities,
            settings,
        };
        Ok(Self::begin(ground, engine, archives, place.variables, tasks).await)
    }
}

impl Containers {
    /// A path as the engine sees it.
    fn on_host(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.state) {
            Ok(inside) => self.host_state.join(inside),
            Err(_) => path.to_owned(),
        }
    }

    /// Whether replicas have a user of their own.
    fn foreign(&self) -> bool {
        self.user.uid != rustix::process::geteuid().as_raw()
    }

    /// Models as they are mounted: the folder on this host, and where it appears.
    async fn models(&self, order: &Order, given_up: &CancellationToken) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
        let mut models = Vec::new();
        for model in &order.release.spec.models {
            let what = format!("the model {}:{}", model.name, model.version);
            models.push((self.archives.unpacked(&model.digest, &what, given_up).await?, model_path(model)));
        }
        Ok(models)
    }

    fn container(&self, id: String, models: Vec<Digest>, folder: &Folder) -> Container {
        Container { api: self.api.clone(), handle: Handle { container: id, models }, order: order_file(folder) }
    }
}

fn order_file(folder: &Folder) -> PathBuf {
    folder.program().join("order.json")
}

impl Engine for Containers {
    type Unit = Container;

    fn limits_missing(&self) -> Option<&str> {
        self.abilities.missing.as_deref()
    }

    async fn environment(&self, image: &Image) -> Result<Environment, Failure> {
        match image {
            Image::Container { reference, interpreter, .. } => {
                image::environment(&self.api, reference, interpreter, self.settings.login.as_deref()).await
            }
            Image::VirtualEnvironment { path, .. } => {
                let cause =
                    format!("this place runs containers, and the environment is a folder of a machine ({path})");
                let remedy = "let builder and deployer agree: both with images, or neither";
                Err(Failure::platform(Stage::Starting, cause, remedy))
            }
        }
    }

    fn view(&self, _folder: &Folder) -> View {
        View {
            app_root: container::APP_ROOT.into(),
            own: container::OWN.into(),
            temporary: "/tmp".into(),
            mode: self.foreign().then_some(SOCKET),
        }
    }

    async fn bring_models(&self, folder: &Folder, order: &Order, given_up: &CancellationToken) -> Result<(), Failure> {
        let digests = order.release.spec.models.iter().map(|model| model.digest.clone());
        self.archives.hold(&order.replica, digests);
        for (_, path) in self.models(order, given_up).await? {
            // What is mounted there needs a folder to be mounted on.
            let on = folder.app_root().join(path);
            fs::create_dir_all(&on).map_err(|error| disk(&on, &error))?;
        }
        Ok(())
    }

    async fn make(&self, start: &Start<'_>) -> Result<Made<Container>, Failure> {
        self.network.ensure(&self.api).await?;
        let (folder, user) = (start.folder.clone(), self.foreign().then_some(self.user));
        let handing = self.tasks.spawn_blocking(move || owner::hand_over(&folder, user));
        let handed = handing.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
        handed.map_err(|error| disk(start.folder.root(), &error))?;
        // It says when the replica was started: logs are told in that order.
        log::open(start.log).map_err(|error| disk(start.log, &error))?;
        let plan = Plan {
            identity: &self.identity,
            labels: &self.settings.labels,
            start,
            models: self.models(start.order, &CancellationToken::new()).await?,
            user: self.user,
            network: self.network.name(),
            processes: self.processes,
            cores: self.abilities.cores,
            on_host: &|path| self.on_host(path),
        };
        let id = self.api.create(&container::name(&self.identity, &start.order.replica), plan.body()?).await;
        let id = id.map_err(|error| cannot_start(&error))?;
        let spec = &start.order.release.spec;
        let asked = spec.resources.cpu_limit.is_some() || spec.resources.memory_gb_limit.is_some();
        let models = spec.models.iter().map(|model| model.digest.clone()).collect();
        let unit = self.container(id, models, start.folder);
        Ok(Made { unit, unlimited: self.abilities.missing.clone().filter(|_| asked) })
    }

    fn seal(&self, folder: &Folder) -> std::io::Result<()> {
        if self.foreign() { owner::close(folder) } else { Ok(()) }
    }

    async fn adopt(&self, kept: &Kept, folder: &Folder) -> Option<Container> {
        let handle: Handle = serde_json::from_value(kept.handle.clone()?).ok()?;
        let state = self.api.state_patiently(&handle.container).await?;
        if !state.running.unwrap_or_default() {
            return None;
        }
        self.archives.hold(&kept.replica, handle.models.clone());
        Some(self.container(handle.container, handle.models, folder))
    }

    async fn bring_log(&self, replica: &ReplicaId, path: &Path) {
        let Ok(Some(text)) = self.api.log(&container::name(&self.identity, replica)).await else { return };
        let path = path.to_owned();
        let writing = self.tasks.spawn_blocking(move || log::replace(&path, &text));
        if let Ok(Err(error)) = writing.await {
            tracing::warn!(%replica, %error, "the log of a replica cannot be kept");
        }
    }

    async fn clear(&self, replica: &ReplicaId) {
        let labels = [container::place_label(&self.identity), container::replica_label(replica)];
        self.api.remove_all(&labels, |_| true).await;
        self.archives.release(replica);
    }

    async fn clear_strays(&self, running: &[ReplicaId]) {
        let stray = |replica: &str| running.iter().all(|running| running.as_str() != replica);
        self.api.remove_all(&[container::place_label(&self.identity)], stray).await;
    }

    async fn close(&self) {
        self.network.remove(&self.api).await;
    }
}

fn cannot_start(error: &api::Error) -> Failure {
    let cause = format!("the container cannot be started: {error}");
    Failure::platform(Stage::Starting, cause, "mend that, then deploy again")
}
