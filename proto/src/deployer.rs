//! What the deployer hears, says and keeps: desired state, routes, and how a deployment ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    builder::{Image, ImageResolved, Lookup, RegistryAsked, Scan},
    event::Event,
    failure::{Failure, Stage},
    id::{Digest, EnvironmentHash, Generation, ReplicaId, ServiceName, Workspace},
    spec::{Auth, RequestLimits, Scaling, ServiceSpec},
};

/// A generation serves, and the one before it has left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentReady {
    /// The generation that serves.
    pub generation: Generation,
    /// The generation that served before, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Generation>,
    /// The path below the router's address: `/api/v1/service/<name>/score`.
    pub scoring_path: String,
    /// Replicas that are ready.
    pub replicas: u32,
    /// How long its first replica's start took, in parts.
    #[serde(default)]
    pub start: StartParts,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentReady {
    const TYPE: &'static str = "deployment.ready";
}

/// The parts of a replica's start, in milliseconds; a part that was not measured is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StartParts {
    /// Fetching and unpacking the archive and the models.
    pub fetch_ms: u64,
    /// From the start of the process until the interpreter runs the server.
    pub interpreter_ms: u64,
    /// Importing the script and its packages, and `init()`.
    pub init_ms: u64,
    /// From the end of `init()` until the first probe was answered.
    pub probe_ms: u64,
}

/// A request could not be carried out. What served before goes on serving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentFailed {
    /// The generation that failed.
    pub generation: Generation,
    /// Stage, cause and remedy.
    pub failure: Failure,
    /// The generation that serves all the same, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Generation>,
    /// What the user should know besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentFailed {
    const TYPE: &'static str = "deployment.failed";
}

/// A user asks that a service go. Its stream sequence is its generation: a request made before it does not bring the service back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentDelete {
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentDelete {
    const TYPE: &'static str = "deployment.delete";
}

/// A service is gone: no route, no replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentDeleted {
    /// The generation of the request to delete it.
    pub generation: Generation,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentDeleted {
    const TYPE: &'static str = "deployment.deleted";
}

/// How far a deployment is, for whoever watches: at most once, never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentProgressed {
    /// Which change of the service this is.
    pub generation: Generation,
    /// What is being done.
    pub stage: Stage,
    /// The news in one line, `38 packages` for example.
    pub message: String,
    /// Lines of a log that have come since the last news; at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentProgressed {
    const TYPE: &'static str = "deployment.progressed";
    const STORED: bool = false;
}

/// What should be, and what is known to be: one entry of the services bucket, written by the deployer alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRecord {
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub name: ServiceName,
    /// The newest generation that was accepted, whether it serves, starts or failed.
    pub latest: Generation,
    /// The generation that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Release>,
    /// The generation that is being started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Release>,
    /// Replicas that are wanted.
    pub replicas: u32,
    /// The bounds and target that hold now.
    pub scaling: Scaling,
    /// The stream sequence of the newest scale request that was applied.
    #[serde(default)]
    pub scale_sequence: u64,
    /// The keys, encrypted to the deployer itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<crate::packager::Sealed>,
    /// What the router compares keys with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_digests: Vec<Digest>,
    /// The keys that the candidate brings; they hold once it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_keys: Option<KeyRing>,
    /// The state, in v1's words.
    pub state: ServiceState,
    /// Replicas that are ready.
    #[serde(default)]
    pub ready: u32,
    /// The newest failure, until a generation succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<DeploymentFailed>,
    /// Whether the service is on its way out, or gone (see [`ServiceRecord::gone`]).
    #[serde(default)]
    pub deleting: bool,
    /// The newest generation that was started or asked for deletion; one that is not newer changes nothing.
    #[serde(default = "no_generation")]
    pub accepted: Generation,
    /// What has been decided and must still be said; it is kept here so that neither is lost without the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbox: Vec<Announcement>,
    /// When it was first deployed (RFC 3339, UTC).
    #[serde(default)]
    pub created: String,
    /// When this entry last changed (RFC 3339, UTC).
    #[serde(default)]
    pub updated: String,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceRecord {
    /// Whether the service has been deleted: nothing of it is left, and the entry only keeps late events from bringing it back.
    pub fn gone(&self) -> bool {
        self.deleting && self.active.is_none() && self.candidate.is_none() && self.outbox.is_empty()
    }
}

fn no_generation() -> Generation {
    Generation(0)
}

/// Two keys of a service, as they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRing {
    /// The keys, encrypted to the deployer itself.
    pub sealed: crate::packager::Sealed,
    /// The SHA-256 of each.
    pub digests: Vec<Digest>,
}

/// An event that the deployer says about a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Announcement {
    /// `deployment.ready`, said when the route is switched.
    Ready(DeploymentReady),
    /// `deployment.failed`, said at once.
    Failed(DeploymentFailed),
    /// `deployment.deleted`, said when the last replica is gone.
    Deleted(DeploymentDeleted),
}

/// One generation, ready to be started: what `image.resolved` said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The generation.
    pub generation: Generation,
    /// The project's files.
    pub archive: Digest,
    /// The identity of the environment.
    pub environment: EnvironmentHash,
    /// The built environment.
    pub image: Image,
    /// How that was had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup: Option<Lookup>,
    /// The registries that were asked for it, in order, and what each said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<RegistryAsked>,
    /// The scan that the environment has passed; none where no scanner is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// What was asked for.
    pub spec: ServiceSpec,
}

impl From<ImageResolved> for Release {
    fn from(event: ImageResolved) -> Self {
        Self {
            generation: event.generation,
            archive: event.archive.digest,
            environment: event.environment,
            image: event.image,
            lookup: Some(event.lookup),
            asked: event.asked,
            scan: event.scan,
            spec: event.spec,
        }
    }
}

/// The state of a service, in v1's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Being deployed or scaled.
    Transitioning,
    /// Reachable.
    Healthy,
    /// Deployed, with fewer ready replicas than its minimum.
    Unhealthy,
    /// No generation of it ever served, and the newest failed.
    Failed,
    /// On its way out.
    Deleting,
}

/// What a router needs to forward to a service: one entry of the routes bucket, written by the deployer alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The tenant.
    pub workspace: Workspace,
    /// The service.
    pub service: ServiceName,
    /// The generation that serves.
    pub generation: Generation,
    /// The replicas that may be chosen, and those that are being emptied.
    pub replicas: Vec<Endpoint>,
    /// Replicas that have been started and are not ready yet.
    #[serde(default)]
    pub starting: u32,
    /// Who may call.
    pub auth: Auth,
    /// The SHA-256 of each key that is valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_digests: Vec<Digest>,
    /// The limits of a request.
    pub requests: RequestLimits,
    /// The bounds and target of the scaler, handed on with each utilization event.
    pub scaling: Scaling,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where one replica listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The replica.
    pub replica: ReplicaId,
    /// `unix:` and the path of a socket, or `http://` and an address with port.
    pub address: String,
    /// Whether it gets no new request because it is about to go.
    #[serde(default)]
    pub draining: bool,
}
