//! What differs between the places of one host: how a replica's program is started, told to end, waited for and cleared away.
//!
//! Files, logs, probes, the life of a replica and its adoption are the same for all of them, and are this module's neighbours.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::{Path, PathBuf},
};

use proto::{builder::Image, failure::Failure, id::ReplicaId};
use tokio_util::sync::CancellationToken;

use super::kept::{Folder, Kept};
use crate::backend::{Ended, Order};

/// What runs the programs of replicas on this host.
pub trait Engine: Send + Sync + 'static {
    /// A program that has been made.
    type Unit: Unit;

    /// Why limits of CPU and memory are not enforced here; `None` when they are.
    fn limits_missing(&self) -> Option<&str>;

    /// Finds the environment, or gets it; may be given up at any point.
    ///
    /// # Errors
    ///
    /// Fails in words for the user.
    fn environment(&self, image: &Image) -> impl Future<Output = Result<Environment, Failure>> + Send;

    /// Where a replica sees what is in its folder.
    fn view(&self, folder: &Folder) -> View;

    /// Brings the models of a release to where the replica will find them; ends soon once it is given up.
    ///
    /// # Errors
    ///
    /// Fails in words for the user, and when it is given up.
    fn bring_models(
        &self,
        folder: &Folder,
        order: &Order,
        given_up: &CancellationToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Makes a replica's program, which does nothing before [`Unit::go`], and ends by itself or is cleared away if that never comes.
    ///
    /// # Errors
    ///
    /// Fails in words for the user.
    fn make(&self, start: &Start<'_>) -> impl Future<Output = Result<Made<Self::Unit>, Failure>> + Send;

    /// A replica serves: from now on nothing takes the place of its socket, as far as that can be prevented.
    ///
    /// # Errors
    ///
    /// Fails when a folder cannot be changed.
    fn seal(&self, folder: &Folder) -> io::Result<()>;

    /// The program of a replica that an earlier deployer started, if it still runs.
    fn adopt(&self, kept: &Kept, folder: &Folder) -> impl Future<Output = Option<Self::Unit>> + Send;

    /// Brings a replica's log to this file, if it is not written there directly.
    fn bring_log(&self, replica: &ReplicaId, path: &Path) -> impl Future<Output = ()> + Send;

    /// Ends all that is left of a replica's program, and takes away what this engine made for it. One that is not there is fine.
    fn clear(&self, replica: &ReplicaId) -> impl Future<Output = ()> + Send;

    /// Ends and takes away what earlier deployers of this place left, except for these replicas.
    fn clear_strays(&self, running: &[ReplicaId]) -> impl Future<Output = ()> + Send;

    /// Takes away what was made for all replicas together: for a deployer that leaves nothing behind.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// The program of one replica.
pub trait Unit: Send + Sync + 'static {
    /// By what [`Engine::adopt`] will know it again; its form is the engine's own.
    fn handle(&self) -> serde_json::Value;

    /// Lets it go, with its order: one line of JSON.
    ///
    /// # Errors
    ///
    /// Fails in words for the user.
    fn go(&mut self, order: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Waits for its end. May be given up and called again.
    fn ended(&mut self) -> impl Future<Output = Ended> + Send;

    /// Whether it had no memory left.
    fn out_of_memory(&self) -> impl Future<Output = bool> + Send;

    /// Asks it to finish what it has in hand, and to end.
    fn ask_to_end(&mut self) -> impl Future<Output = ()> + Send;

    /// Ends it at once, with all that it has started.
    fn kill(&mut self) -> impl Future<Output = ()> + Send;
}

/// An environment that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The interpreter that has the packages.
    pub interpreter: PathBuf,
    /// What `PATH` is to be in it.
    pub path: String,
    /// The folder of a virtual environment, where it is one.
    pub folder: Option<PathBuf>,
}

/// Where a replica sees what is in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// v1's `/var/azureml-app`.
    pub app_root: PathBuf,
    /// Its own folder, where it may write; a short path, since its socket is in it.
    pub own: PathBuf,
    /// The folder for temporary files.
    pub temporary: PathBuf,
    /// Who may use its socket, as a file's mode; the launcher's own choice, its user alone, when left out.
    pub mode: Option<u32>,
}

/// What is to be started.
pub struct Start<'a> {
    /// Which replica, and of what.
    pub order: &'a Order,
    /// Its folder, with all its files in it.
    pub folder: &'a Folder,
    /// Its environment.
    pub environment: &'a Environment,
    /// Its environment variables, all of them.
    pub variables: &'a BTreeMap<String, String>,
    /// Where its log belongs.
    pub log: &'a Path,
}

/// What was made of it.
pub struct Made<U> {
    /// The program.
    pub unit: U,
    /// Why limits do not hold for it, in words.
    pub unlimited: Option<String>,
}
