//! Questions with one answer, asked over core NATS: what the CLI needs and no event carries.
//!
//! A query changes nothing that must not be lost: asking again is always safe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    id::{Digest, EnvironmentHash, Generation, ModelName, ReplicaId, ServiceName},
    packager::{Archive, Model, ModelVersion},
    spec::EnvironmentSpec,
};

/// A question, asked on `kaai.v1.<workspace>.query.<NAME>` and answered by one instance of one component with an [`Answer`].
pub trait Query: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The last token of the subject.
    const NAME: &'static str;
    /// What a good answer holds.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// The body of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// Why not.
    Refused(Refusal),
}

/// Why a query was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{cause}")]
pub struct Refusal {
    /// A stable word for programs: `not-found`, `invalid`, `conflict`, `unavailable`.
    pub kind: String,
    /// What was wrong, a lower-case fragment.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

impl Refusal {
    /// Builds a refusal from its three parts.
    pub fn new(kind: &str, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), cause: cause.into(), remedy: remedy.into() }
    }
}

/// Asks the packager how an archive should be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadTicket {
    /// The digest of the archive.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Query for UploadTicket {
    const NAME: &'static str = "upload-ticket";
    type Reply = UploadRoute;
}

/// How an archive should be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UploadRoute {
    /// It is there already.
    Present,
    /// In pieces through the bus's object store, each piece an object `<digest hex>/<number>`; then [`UploadDone`].
    #[serde(rename_all = "camelCase")]
    Pieces {
        /// The bucket.
        bucket: String,
        /// The length of each piece but the last, in bytes.
        piece_size: u64,
        /// The numbers of the pieces that are there already, from an upload that was cut.
        present: Vec<u32>,
    },
}

/// Tells the packager that all pieces are there; it answers when the archive is checked and stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadDone {
    /// The digest of the archive.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Query for UploadDone {
    const NAME: &'static str = "upload-done";
    type Reply = ();
}

/// Registers a version of a model whose archive is in the store, or names it if that very archive is the newest version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisterModel {
    /// The model's name.
    pub name: ModelName,
    /// The number wanted; the next one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its files.
    pub archive: Archive,
    /// The name of the one entry at the root of the archive.
    pub entry: String,
    /// Whether an equal newest version is used again instead of counting on.
    #[serde(default)]
    pub reuse: bool,
}

impl Query for RegisterModel {
    const NAME: &'static str = "register-model";
    type Reply = ModelVersion;
}

/// Asks for all registered models of a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListModels {}

impl Query for ListModels {
    const NAME: &'static str = "list-models";
    type Reply = Vec<Model>;
}

/// Asks the packager what of the object store nobody needs any more, or has it deleted. Asked again, it goes on with what is left.
///
/// It speaks of all workspaces: equal archives are kept once for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Prune {
    /// What was written, or mentioned by a deployment, within this time stays; at least [`MIN_PRUNE_AGE_SECONDS`].
    pub older_than_seconds: u64,
    /// Whether it is deleted, at most [`MOST_PRUNED`] objects at a time.
    #[serde(default)]
    pub apply: bool,
}

impl Query for Prune {
    const NAME: &'static str = "prune";
    type Reply = Pruned;
}

/// The shortest time for which what nobody needs is kept: a deployment may be under way that will need it.
pub const MIN_PRUNE_AGE_SECONDS: u64 = 3600;

/// How many objects one answer to [`Prune`] names at most.
pub const MOST_PRUNED: usize = 200;

/// What of the object store nobody needs any more, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The objects, at most [`MOST_PRUNED`].
    pub objects: Vec<PrunedObject>,
    /// How many more there are.
    pub more: u64,
    /// The bytes of all that can be deleted, or of what was.
    pub bytes: u64,
}

/// An object that nobody needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrunedObject {
    /// What it is.
    pub kind: StoredKind,
    /// Its key in the object store.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written (Unix milliseconds).
    pub written_ms: u64,
    /// Why nobody needs it.
    pub why: String,
    /// What became of it.
    pub outcome: PruneOutcome,
}

/// What lies in the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoredKind {
    /// The zip of a project or of a model's files.
    Archive,
    /// The log of a build.
    BuildLog,
    /// What an upload left that was killed.
    UnfinishedUpload,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PruneOutcome {
    /// It would be deleted.
    Deletable,
    /// It was deleted.
    Deleted,
    /// It is there still, and why.
    Kept(String),
}

/// Asks the deployer for the keys of a service. The answer is for the asker alone; it is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GetKeys {
    /// The service.
    pub service: ServiceName,
}

impl Query for GetKeys {
    const NAME: &'static str = "get-keys";
    type Reply = Keys;
}

/// Both keys of a service, in the clear: only ever in an answer, encrypted in a request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// The primary key.
    pub primary: String,
    /// The secondary key.
    pub secondary: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// Replaces one key of a service; the other stays valid. Asked twice it gives two new keys, of which the second counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegenerateKey {
    /// The service.
    pub service: ServiceName,
    /// Which of the two.
    pub which: WhichKey,
    /// The new keys, encrypted to the deployer, when the user brings his own; only the one named counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<crate::packager::Sealed>,
}

impl Query for RegenerateKey {
    const NAME: &'static str = "regenerate-key";
    type Reply = Keys;
}

/// One of the two keys of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhichKey {
    /// The first.
    Primary,
    /// The second.
    Secondary,
}

/// Asks for a piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GetLog {
    /// The service.
    pub service: ServiceName,
    /// The generation; the one that serves, else the newest, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The replica; all of the generation when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// How many of the last lines, at most 100,000; what does not fit into an answer is left out at the front.
    pub lines: u32,
}

impl Query for GetLog {
    const NAME: &'static str = "get-log";
    type Reply = LogText;
}

/// Asks the builder how it understands an environment: where environments are images, base images count by the digests that their names
/// have at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DescribeEnvironment {
    /// The environment.
    pub environment: EnvironmentSpec,
}

impl Query for DescribeEnvironment {
    const NAME: &'static str = "describe-environment";
    type Reply = EnvironmentDescription;
}

/// The identity of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentDescription {
    /// Its hash.
    pub hash: EnvironmentHash,
    /// What the hash is over, in that order.
    pub facts: Vec<EnvironmentFact>,
}

/// One thing that is part of an environment's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentFact {
    /// What it is about, `pip scikit-learn` for example; no two facts of an environment share one.
    pub path: String,
    /// What it says, in canonical form.
    pub value: String,
}

/// Asks the builder for the log of an environment's newest build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GetBuildLog {
    /// The hash of the environment, or its first digits (at least 6).
    pub environment: String,
    /// How many of the last lines.
    pub lines: u32,
}

impl Query for GetBuildLog {
    const NAME: &'static str = "get-build-log";
    type Reply = LogText;
}

/// Has the builder forget that an environment could not be built, so that the next request builds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForgetFailure {
    /// The hash of the environment, or its first digits (at least 6).
    pub environment: String,
}

impl Query for ForgetFailure {
    const NAME: &'static str = "forget-failure";
    type Reply = EnvironmentHash;
}

/// Asks the builder for the report of the newest scan of an environment, whether it passed or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GetScanReport {
    /// The hash of the environment, or its first digits (at least 6).
    pub environment: String,
}

impl Query for GetScanReport {
    const NAME: &'static str = "get-scan-report";
    type Reply = ScanReport;
}

/// What a scanner reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanReport {
    /// The report as the scanner wrote it, from its beginning; at most [`MAX_LOG_BYTES`].
    pub text: String,
    /// Whether its end was left out.
    pub cut: bool,
}

/// A piece of a log; at most [`MAX_LOG_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogText {
    /// Its lines.
    pub lines: Vec<String>,
    /// Whether older lines were left out.
    pub cut: bool,
}

/// How many bytes of log one answer carries at most: half of the bus's payload limit.
pub const MAX_LOG_BYTES: usize = 512 * 1024;
