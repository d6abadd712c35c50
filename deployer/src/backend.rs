//! The place where replicas run, as the deployer sees it: start one, stop one, see what is there, read its log.
//!
//! Nothing above this trait knows whether a replica is a process, a container or a pod; nothing below it knows routes, records or events.
//! Every call may be repeated and may come for a replica that is gone: a backend is told what should be, and says what is.

use std::{future::Future, time::Duration};

use proto::{
    deployer::{Release, StartParts},
    failure::Failure,
    id::{Generation, ReplicaId, ServiceName, Workspace},
    query::LogText,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// A place that runs replicas.
pub trait Backend: Send + Sync + 'static {
    /// Begins to start a replica and returns; how it goes on is told by [`Backend::changes`]. A second order for the same replica changes nothing.
    ///
    /// What keeps the replica from starting is told as [`Status::Exited`] with a cause, not by this call.
    fn start(&self, order: Order) -> impl Future<Output = ()> + Send;

    /// Ends a replica and takes away all that was made for it except its log; returns when nothing of it is left.
    ///
    /// It may finish what it has in hand for at most `grace`. A replica that is not there is fine.
    fn stop(&self, replica: &ReplicaId, grace: Duration) -> impl Future<Output = ()> + Send;

    /// All replicas that this place has, those included that an earlier deployer started.
    fn list(&self) -> impl Future<Output = Vec<Observed>> + Send;

    /// Each change of a replica from now on, [`Status::Gone`] last. There is one reader: a second call ends the first one's news.
    fn changes(&self) -> mpsc::UnboundedReceiver<Observed>;

    /// The logs of a service's replicas, oldest first; those of replicas that are gone too, as far as they are kept.
    fn logs(&self, wanted: &LogWanted) -> impl Future<Output = Vec<ReplicaLog>> + Send;

    /// Takes away what was kept of a service that is gone for good: its logs.
    fn forget(&self, workspace: &Workspace, service: &ServiceName) -> impl Future<Output = ()> + Send;

    /// Ends all replicas (see [`Backend::stop`]), for a deployer that leaves nothing behind.
    fn end(&self, grace: Duration) -> impl Future<Output = ()> + Send;

    /// Lets go of all replicas, which run on: the next deployer finds them with [`Backend::list`].
    fn leave(&self);
}

/// What a backend needs to start a replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The replica to be.
    pub replica: ReplicaId,
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub service: ServiceName,
    /// What to run.
    pub release: Release,
    /// A ready replica of the same generation that the new one may be started from (forked, for example) where the place can do that.
    pub from: Option<ReplicaId>,
}

/// What is known of a replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The replica.
    pub replica: ReplicaId,
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub service: ServiceName,
    /// Which generation of it.
    pub generation: Generation,
    /// How it is.
    pub status: Status,
    /// Where it listens, in the form of a route's address; known from [`Status::Ready`] on.
    pub address: Option<String>,
    /// How long the parts of its start took, as far as they are over.
    pub start: StartParts,
    /// Why limits that were asked for do not hold in this place, in words.
    pub unlimited: Option<String>,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// Its files are being fetched and unpacked.
    Preparing,
    /// Its process has been running for this long; `init()` is not over.
    Starting(Duration),
    /// It has answered a probe.
    Ready,
    /// It has ended by itself, or could not be started. What it leaves behind is taken away by [`Backend::stop`].
    Exited(Box<Exit>),
    /// Nothing is left of it.
    Gone,
}

/// How a replica ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exit {
    /// What its main process ended with, as far as that is known.
    pub how: Ended,
    /// Whether it was killed because it passed its memory limit.
    pub out_of_memory: bool,
    /// What the server said of the script's failure, if it said anything.
    pub report: Option<Report>,
    /// Why the place could not run it; nothing of the script's fault.
    pub cause: Option<Failure>,
    /// The last lines of its log.
    pub tail: Vec<String>,
}

/// What a process ended with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ended {
    /// It is not known: another process was the parent, or there was no process.
    #[default]
    Unknown,
    /// An exit code.
    Code(i32),
    /// A signal.
    Signal(i32),
}

/// What the server says when the script cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// During which step.
    pub phase: Phase,
    /// The name of the exception's class.
    pub kind: String,
    /// The exception's text.
    pub message: String,
    /// The module that could not be imported.
    #[serde(default)]
    pub module: Option<String>,
    /// The user's file in which it happened, relative to the app root.
    #[serde(default)]
    pub file: Option<String>,
    /// The line in that file.
    #[serde(default)]
    pub line: Option<u32>,
    /// The traceback without the server's own frames, at most 50 lines.
    #[serde(default)]
    pub traceback: Vec<String>,
}

/// A step of a replica's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Importing the scoring server itself.
    Server,
    /// Importing the script.
    Import,
    /// Running the script's `init()`.
    Init,
}

/// Which logs are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogWanted {
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub service: ServiceName,
    /// The generation; the newest that has a log when left out.
    pub generation: Option<Generation>,
    /// The replica; all of the generation when left out.
    pub replica: Option<ReplicaId>,
    /// How many of the last lines of each.
    pub lines: usize,
}

/// The log of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLog {
    /// The replica.
    pub replica: ReplicaId,
    /// Its generation.
    pub generation: Generation,
    /// Its last lines, at most [`proto::query::MAX_LOG_BYTES`] in all.
    pub text: LogText,
}
