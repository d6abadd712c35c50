//! What the packager hears and says: requests for deployments, packaged projects, registered models.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    event::Event,
    id::{Digest, Generation, ModelName},
    spec::ServiceSpec,
};

/// A user asks for a service. The stream sequence of this event becomes the generation of the service.
///
/// Only `source` must be given; what is left out is read from the project's own files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentRequested {
    /// Where the project is.
    pub source: Source,
    /// The whole specification, when the sender has already read the project's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ServiceSpec>,
    /// Which files to read and what to put in their place, when `spec` is left out.
    #[serde(default)]
    pub options: ProjectOptions,
    /// The service's keys, encrypted to the deployer: the JSON of [`crate::query::Keys`], where an empty secondary key is one to be
    /// generated. Both are generated when this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<Sealed>,
    /// The login at the registry of the base image, encrypted to the builder: the JSON of [`RegistryLogin`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_login: Option<Sealed>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for DeploymentRequested {
    const TYPE: &'static str = "deployment.requested";
}

/// Where a project's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A folder that the packager can see, as an absolute path.
    Folder(String),
    /// A revision in a git repository.
    Git(GitSource),
    /// An archive that was sent before, by its digest.
    Upload(Digest),
}

/// A revision in a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// The address, as `git clone` takes it; one with a password in it is refused.
    pub address: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The project's folder in the repository; the root when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// Which of a project's files describe it, and what is said in their place: v1's CLI flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectOptions {
    /// The inference configuration, relative to the project's folder; `inferenceconfig.json` when left out and there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_config: Option<String>,
    /// The deployment configuration, relative to the project's folder; `deploymentconfig.json` when left out and there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_config: Option<String>,
    /// The entry script, in place of the inference configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_script: Option<String>,
    /// The conda file, in place of the inference configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conda_file: Option<String>,
    /// Models, each as `NAME:VERSION` (registered) or `NAME[:VERSION]=PATH` (registered now, if it changed).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Whether models that lie in the folder by convention (`azureml-models/`, `models/`) are left alone.
    #[serde(default)]
    pub no_models: bool,
}

/// Something secret, encrypted to the public key of one component: no one else can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sealed {
    /// The public key (a NATS xkey) that it is encrypted to.
    pub recipient: String,
    /// The public key (a NATS xkey made for this once) of whoever encrypted it; it is needed to decrypt it.
    pub sender: String,
    /// The cipher text as `nkeys::XKey::seal` gives it, in hexadecimal digits.
    pub sealed: String,
}

/// A user's own login at the registry of a base image; it is sent encrypted alone, and never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryLogin {
    /// Host and port of the registry, `registry.example.com:5000`.
    pub host: String,
    /// The user's name there.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({} at {})", self.username, self.host)
    }
}

/// A project lies in the object store, and its specification is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectPackaged {
    /// Which change of the service this is.
    pub generation: Generation,
    /// The project's files.
    pub archive: Archive,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// The service's keys, encrypted to the deployer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<Sealed>,
    /// The login at the registry of the base image, encrypted to the builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_login: Option<Sealed>,
    /// What the user should know though it stops nothing, unknown keys of a v1 file for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How long packaging took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for ProjectPackaged {
    const TYPE: &'static str = "project.packaged";
}

/// The zip of a project or of a model's files, named by its digest in the object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// The SHA-256 of the zip.
    pub digest: Digest,
    /// The length of the zip in bytes.
    pub size: u64,
    /// How many files it holds.
    pub files: u64,
    /// How many files the ignore rules left out.
    #[serde(default)]
    pub ignored: u64,
}

/// All versions of a registered model: one entry of the models bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The model's name.
    pub name: ModelName,
    /// Its versions, oldest first.
    pub versions: Vec<ModelVersion>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One version of a registered model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelVersion {
    /// The number, from 1.
    pub version: u32,
    /// Its files: exactly one entry at the root, the file or folder that was registered.
    pub archive: Archive,
    /// The name of that entry.
    pub entry: String,
    /// When it was registered (RFC 3339, UTC).
    pub created: String,
}

/// Who counts on an archive: one entry of the archives bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum ArchiveLease {
    /// Somebody was told that it is there, or that its pieces may come: until then it is not deleted.
    #[serde(rename_all = "camelCase")]
    InUse {
        /// Until when (Unix milliseconds).
        until_ms: u64,
    },
    /// It is being deleted: until then nobody is told that it is there.
    #[serde(rename_all = "camelCase")]
    Going {
        /// Until when (Unix milliseconds); later, whoever deleted it has died.
        until_ms: u64,
    },
}
