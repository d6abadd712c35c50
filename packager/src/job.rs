//! One request, from its source to a stored archive and a complete specification. Done twice, it gives the same.

use std::path::PathBuf;

use proto::{
    failure::{Failure, Stage},
    id::{ModelName, ServiceName, Workspace},
    packager::{Archive, DeploymentRequested, SealedKeys},
    query::{Keys, RegisterModel},
    spec::{ModelRef, ServiceSpec},
    subject,
};
use runtime::{
    Runtime,
    bus::Bucket,
    store::{self, archive_key},
};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    archive,
    project::{self, Project, models::NamedModel},
    registry::{self, Registry},
    seal,
    source::{self, Checkout, checkout},
    walk::{Limits, Links, Walk},
};

/// How long the deployer's public key is waited for: a deployer that has never run yet has none.
const DEPLOYER: Duration = Duration::from_secs(30);

/// What jobs share.
pub(crate) struct Parts {
    pub(crate) rt: Runtime,
    pub(crate) registry: Registry,
    pub(crate) facts: Bucket<String>,
    pub(crate) limits: Limits,
    pub(crate) work: PathBuf,
}

/// A request for one service.
pub(crate) struct Job<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) service: &'a ServiceName,
    pub(crate) request: DeploymentRequested,
}

/// What `project.packaged` says.
pub(crate) struct Done {
    pub(crate) archive: Archive,
    pub(crate) spec: ServiceSpec,
    pub(crate) sealed_keys: Option<SealedKeys>,
    pub(crate) warnings: Vec<String>,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be, as it is.
    #[error("{0}")]
    Failure(Box<Failure>),
    /// It may be, later.
    #[error("{0}")]
    Transient(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failure(Box::new(failure))
    }
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Self {
        match error {
            source::Error::Failure(failure) => Self::Failure(failure),
            source::Error::Transient(cause) => Self::Transient(cause),
        }
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Refused(refusal) => {
                Failure::project(Stage::Packaging, refusal.cause, refusal.remedy).into()
            }
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Full { .. } => full(error.to_string()).into(),
            other => Self::Transient(other.to_string()),
        }
    }
}

impl Job<'_> {
    /// Carries the request out.
    pub(crate) async fn run(self, parts: &Parts) -> Result<Done, Error> {
        let checkout = checkout(&self.request.source, self.service, &parts.rt.store, &parts.work).await?;
        let project = match self.request.spec.clone() {
            Some(spec) => given(spec, &checkout, parts.limits).await?,
            None => self.read(&checkout, parts.limits).await?,
        };
        let mut spec = project.spec;
        for (name, version) in &project.registered {
            spec.models.push(self.reference(parts, name, *version).await?);
        }
        for model in &project.models {
            spec.models.push(self.register(parts, model, checkout.own).await?);
        }
        for model in &spec.models {
            parts.registry.find(self.workspace, &model.name, model.version).await?;
        }
        let sealed_keys = match (self.request.sealed_keys, &project.keys) {
            (Some(sealed), _) => Some(sealed),
            (None, Some(keys)) => Some(sealed(parts, keys).await?),
            (None, None) => None,
        };
        let archive = pack(parts, project.files).await?;
        Ok(Done { archive, spec, sealed_keys, warnings: project.warnings })
    }

    async fn read(&self, checkout: &Checkout, limits: Limits) -> Result<Project, Error> {
        let (folder, options, service) = (checkout.folder.clone(), self.request.options.clone(), self.service.clone());
        let links = if checkout.own { Links::Anywhere } else { Links::Inside };
        Ok(blocking(move || project::read_within(&folder, &options, &service, limits, links)).await??)
    }

    async fn reference(&self, parts: &Parts, name: &ModelName, version: u32) -> Result<ModelRef, Error> {
        let found = parts.registry.find(self.workspace, name, version).await?;
        Ok(ModelRef { name: name.clone(), version, digest: found.archive.digest })
    }

    /// Stores a model's files and registers them, unless they are its newest version already.
    async fn register(&self, parts: &Parts, model: &NamedModel, own: bool) -> Result<ModelRef, Error> {
        let path = model.path.clone();
        let links = if own { Links::Anywhere } else { Links::Inside };
        let files = blocking(move || Walk::entry(&path, links)).await?;
        let files = files.map_err(|error| {
            Failure::project(Stage::Packaging, format!("model {}: {error}", model.name), "mend or move its files")
        })?;
        let entry = root_entry(&files);
        let archive = pack(parts, files).await?;
        let wanted = RegisterModel { name: model.name.clone(), version: model.version, archive, entry, reuse: true };
        let registered = parts.registry.register(self.workspace, &wanted).await?;
        Ok(ModelRef { name: model.name.clone(), version: registered.version, digest: registered.archive.digest })
    }
}

/// The name of the one entry at the root of a model's archive.
pub fn root_entry(files: &Walk) -> String {
    let first = files.files.first().map(|file| file.path.as_str()).unwrap_or_default();
    first.split('/').next().unwrap_or_default().to_owned()
}

/// The project of a request that brings its specification: only its files are still to be found.
async fn given(spec: ServiceSpec, checkout: &Checkout, limits: Limits) -> Result<Project, Error> {
    let folder = checkout.folder.clone();
    let script = spec.source_directory.is_none().then(|| folder.join(&spec.entry_script));
    let files = blocking(move || match script {
        Some(script) => Walk::entry(&script, Links::Inside),
        None => Walk::project(&folder, limits),
    })
    .await?;
    let files = files.map_err(|error| {
        Failure::project(Stage::Packaging, error.to_string(), "mend it, or leave it out with .amlignore")
    })?;
    if !files.contains(&spec.entry_script) {
        let cause = format!("{} is not among the project's files", spec.entry_script);
        return Err(Failure::project(
            Stage::Packaging,
            cause,
            "name the entry script relative to the project's folder",
        )
        .into());
    }
    Ok(Project { spec, files, models: Vec::new(), registered: Vec::new(), keys: None, warnings: Vec::new() })
}

/// Writes the zip beside the store and stores it, unless it is there already.
async fn pack(parts: &Parts, files: Walk) -> Result<Archive, Error> {
    let temporary = tempfile::Builder::new().prefix("kaai-").tempdir_in(&parts.work).map_err(|error| io(&error))?;
    let (zip, shutdown) = (temporary.path().join("archive.zip"), parts.rt.shutdown.clone());
    let out = zip.clone();
    let written = blocking(move || archive::write_while(&files, &out, &|| !shutdown.is_cancelled())).await?;
    let archive = written.map_err(packed)?;
    let key = archive_key(&archive.digest);
    // The name is the content's: what is there with that length is what would be written.
    if parts.rt.store.size(&key).await? != Some(archive.size) {
        parts.rt.store.put_file(&key, &zip).await?;
    }
    Ok(archive)
}

fn packed(error: archive::Error) -> Error {
    let text = error.to_string();
    match error {
        archive::Error::GivenUp => Error::Transient(text),
        archive::Error::Write { source, .. } => io(&source),
        _ => Failure::project(
            Stage::Packaging,
            text,
            "mend it, or leave it out with a line in .amlignore, then deploy again",
        )
        .into(),
    }
}

fn io(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => full(error.to_string()).into(),
        _ => Error::Transient(error.to_string()),
    }
}

fn full(cause: String) -> Failure {
    Failure::platform(Stage::Packaging, cause, "free some space where the packager writes, then deploy again")
}

async fn sealed(parts: &Parts, keys: &Keys) -> Result<SealedKeys, Error> {
    let deadline = Instant::now() + DEPLOYER;
    let recipient = loop {
        let found =
            parts.facts.get(subject::DEPLOYER_KEY).await.map_err(|error| Error::Transient(error.to_string()))?;
        match found {
            Some(entry) => break entry.value,
            None if Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
            None => return Err(Error::Transient("no deployer has told its public key yet; does one run?".to_owned())),
        }
    };
    seal::seal(keys, &recipient).map_err(|error| Error::Transient(error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Transient(error.to_string()))
}
