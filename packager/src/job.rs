//! One request, from its source to a stored archive and a complete specification. Done twice, it gives the same.

use std::path::{Path, PathBuf};

use proto::{
    deployer::DeploymentProgressed,
    failure::{Failure, Stage},
    id::{Digest, Generation, ModelName, ServiceName, Workspace},
    packager::{Archive, DeploymentRequested, RegistryLogin, Sealed, Source},
    query::{Keys, RegisterModel},
    spec::{ModelRef, ServiceSpec},
    subject,
};
use runtime::{
    Runtime,
    bus::{Bucket, Bus},
    sealing,
    store::archive_key,
};
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    archive,
    metrics::Metrics,
    project::{self, Project, given, models::NamedModel},
    registry::Registry,
    shelf::Shelf,
    source::{Checkout, Means, checkout, fetch_archive},
    trouble::{TOO_BIG, io, packed, walked},
    upload::{Contents, contents},
    walk::{Limits, Links, Walk},
    work::Work,
};

pub(crate) use crate::trouble::Error;

/// How long the public key of another component is waited for: one that has never run yet has none.
const PUBLIC_KEY: Duration = Duration::from_secs(30);

/// What a project's own files say that nobody but one component may read.
#[derive(Default)]
struct Secrets {
    keys: Option<Keys>,
    login: Option<RegistryLogin>,
}

/// What jobs share.
pub(crate) struct Parts {
    pub(crate) rt: Runtime,
    pub(crate) registry: Registry,
    pub(crate) shelf: Shelf,
    pub(crate) facts: Bucket<String>,
    pub(crate) limits: Limits,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) work: Work,
    pub(crate) metrics: Metrics,
}

/// A request for one service.
pub(crate) struct Job<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) workspace: &'a Workspace,
    pub(crate) service: &'a ServiceName,
    pub(crate) news: News<'a>,
    pub(crate) request: DeploymentRequested,
}

/// What `project.packaged` says.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) archive: Archive,
    pub(crate) spec: ServiceSpec,
    pub(crate) sealed_keys: Option<Sealed>,
    pub(crate) sealed_login: Option<Sealed>,
    pub(crate) warnings: Vec<String>,
}

/// Tells whoever watches how far it is.
pub(crate) struct News<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) workspace: &'a Workspace,
    pub(crate) service: &'a ServiceName,
    pub(crate) generation: Generation,
}

impl News<'_> {
    async fn tell(&self, stage: Stage, message: String) {
        let (log, extra) = (Vec::new(), serde_json::Map::new());
        let progress = DeploymentProgressed { generation: self.generation, stage, message, log, extra };
        self.bus.tell(self.workspace, self.service, &progress).await;
    }
}

impl Job<'_> {
    /// Carries the request out.
    pub(crate) async fn run(mut self) -> Result<Done, Error> {
        let spec = self.request.spec.take();
        if let Some(spec) = &spec {
            given::check(spec)?;
            self.check_models(&spec.models).await?;
        }
        match (spec, &self.request.source) {
            (Some(spec), Source::Upload(digest)) => self.as_sent(spec, digest).await,
            (Some(spec), _) => {
                let checkout = self.checkout().await?;
                let files = given_files(&spec, &checkout, self.parts.limits).await?;
                let archive = self.pack(files).await?;
                self.done(spec, archive, Secrets::default(), Vec::new()).await
            }
            (None, _) => {
                let checkout = self.checkout().await?;
                self.as_read(&checkout).await
            }
        }
    }

    async fn checkout(&self) -> Result<Checkout, Error> {
        let parts = self.parts;
        let what = match &self.request.source {
            Source::Folder(_) => "reading the project".to_owned(),
            Source::Git(git) => format!("fetching {}", git.revision),
            Source::Upload(_) => "unpacking what was sent".to_owned(),
        };
        self.news.tell(Stage::Packaging, what).await;
        let means = Means {
            store: &parts.rt.store,
            work: parts.work.path(),
            folders: &parts.folders,
            bytes: parts.limits.bytes,
        };
        checkout(&self.request.source, self.service, &means).await
    }

    /// The sender has read and packed the project already: what it sent is the archive.
    async fn as_sent(&self, spec: ServiceSpec, digest: &Digest) -> Result<Done, Error> {
        let temporary = TempDir::new_in(self.parts.work.path()).map_err(|error| io(self.parts.work.path(), &error))?;
        self.parts.shelf.hold(digest).await?;
        let zip = fetch_archive(digest, &self.parts.shelf.store, temporary.path()).await?;
        let size = std::fs::metadata(&zip).map_err(|error| io(&zip, &error))?.len();
        let script = spec.entry_script.clone();
        let found = blocking(move || contents(&zip, &script)).await?;
        let wrong = |cause: String, remedy| Failure::project(Stage::Packaging, cause, remedy);
        let Contents { files, bytes, has_script } =
            found.map_err(|error| wrong(format!("what was sent is no zip: {error}"), "send a zip of the project"))?;
        let limit = self.parts.limits.bytes;
        if bytes > limit {
            let cause = format!("{bytes} bytes are more than the limit of {limit}");
            return Err(wrong(cause, TOO_BIG).into());
        }
        if !has_script {
            let cause = format!("{} is not in what was sent", spec.entry_script);
            return Err(wrong(cause, "name the entry script by its path in the archive").into());
        }
        let archive = Archive { digest: digest.clone(), size, files, ignored: 0 };
        self.done(spec, archive, Secrets::default(), Vec::new()).await
    }

    /// The project's own files say what it is.
    async fn as_read(&self, checkout: &Checkout) -> Result<Done, Error> {
        let (folder, options, service) = (checkout.folder.clone(), self.request.options.clone(), self.service.clone());
        let (limits, links) = (self.parts.limits, checkout.links);
        let read = blocking(move || project::read_within(&folder, &options, &service, limits, links)).await?;
        let Project { mut spec, files, models, registered, keys, login, warnings } = read?;
        for (name, version) in &registered {
            spec.models.push(self.reference(name, *version).await?);
        }
        for model in &models {
            spec.models.push(self.register(model, checkout.links).await?);
        }
        let archive = self.pack(files).await?;
        self.done(spec, archive, Secrets { keys, login }, warnings).await
    }

    async fn done(
        &self,
        spec: ServiceSpec,
        archive: Archive,
        secrets: Secrets,
        warnings: Vec<String>,
    ) -> Result<Done, Error> {
        let (request, Secrets { keys, login }) = (&self.request, secrets);
        let sealed_keys = self.sealed(request.sealed_keys.as_ref(), keys.as_ref(), subject::DEPLOYER_KEY).await?;
        let sealed_login = self.sealed(request.sealed_login.as_ref(), login.as_ref(), subject::BUILDER_KEY).await?;
        Ok(Done { archive, spec, sealed_keys, sealed_login, warnings })
    }

    /// What a specification says of registered models must be so.
    async fn check_models(&self, models: &[ModelRef]) -> Result<(), Error> {
        for model in models {
            let found = self.reference(&model.name, model.version).await?;
            if found.digest != model.digest {
                let cause = format!("the files of {}:{} are not the ones that were named", model.name, model.version);
                return Err(Failure::project(Stage::Packaging, cause, "look up its digest: kaai models list").into());
            }
        }
        Ok(())
    }

    async fn reference(&self, name: &ModelName, version: u32) -> Result<ModelRef, Error> {
        let found = self.parts.registry.find(self.workspace, name, version).await?;
        Ok(ModelRef { name: name.clone(), version, digest: found.archive.digest })
    }

    /// Stores a model's files and registers them, unless they are its newest version already.
    async fn register(&self, model: &NamedModel, links: Links) -> Result<ModelRef, Error> {
        self.news.tell(Stage::Packaging, format!("registering model {}", model.name)).await;
        let path = model.path.clone();
        let files = blocking(move || Walk::entry(&path, links)).await?;
        let files = files.map_err(|error| {
            let cause = format!("model {}: {error}", model.name);
            Failure::project(Stage::Packaging, cause, "mend or move its files")
        })?;
        let entry = root_entry(&files);
        let archive = self.pack(files).await?;
        let wanted = RegisterModel { name: model.name.clone(), version: model.version, archive, entry, reuse: true };
        let registered = self.parts.registry.register(self.workspace, &wanted).await?;
        Ok(ModelRef { name: model.name.clone(), version: registered.version, digest: registered.archive.digest })
    }

    /// Writes a zip in the folder for work and stores it, unless it is there already.
    async fn pack(&self, files: Walk) -> Result<Archive, Error> {
        self.news.tell(Stage::Packaging, counted(files.files.len())).await;
        let temporary = TempDir::new_in(self.parts.work.path()).map_err(|error| io(self.parts.work.path(), &error))?;
        let (zip, shutdown) = (temporary.path().join("archive.zip"), self.parts.rt.shutdown.clone());
        let out = zip.clone();
        let written = blocking(move || archive::write_while(&files, &out, &|| !shutdown.is_cancelled())).await?;
        let archive = written.map_err(packed)?;
        self.store(&archive, &zip).await?;
        Ok(archive)
    }

    async fn store(&self, archive: &Archive, zip: &Path) -> Result<(), Error> {
        let (shelf, metrics) = (&self.parts.shelf, &self.parts.metrics);
        // The name is the content's: what is there with that length is what would be written.
        if shelf.has(&archive.digest, archive.size).await? {
            metrics.present.inc();
            return Ok(());
        }
        shelf.store.put_file(&archive_key(&archive.digest), zip).await?;
        metrics.stored.inc();
        Ok(())
    }

    /// What came encrypted with the request, else what the project says, encrypted to the component that is to read it.
    async fn sealed<T: Serialize>(
        &self,
        brought: Option<&Sealed>,
        read: Option<&T>,
        recipient: &'static str,
    ) -> Result<Option<Sealed>, Error> {
        let Some(value) = read.filter(|_| brought.is_none()) else { return Ok(brought.cloned()) };
        let deadline = Instant::now() + PUBLIC_KEY;
        let facts = &self.parts.facts;
        let key = loop {
            let found = facts.get(recipient).await.map_err(|error| Error::Transient(error.to_string()))?;
            match found {
                Some(entry) => break entry.value,
                None if Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
                None => {
                    let component = recipient.split('.').next().unwrap_or(recipient);
                    let cause = format!("no {component} has told its public key yet; does one run?");
                    return Err(Error::Transient(cause));
                }
            }
        };
        sealing::seal(value, &key).map(Some).map_err(|error| Error::Transient(error.to_string()))
    }
}

/// The name of the one entry at the root of a model's archive.
pub fn root_entry(files: &Walk) -> String {
    let first = files.files.first().map(|file| file.path.as_str()).unwrap_or_default();
    first.split('/').next().unwrap_or_default().to_owned()
}

fn counted(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

/// The files of a project whose specification came with the request.
async fn given_files(spec: &ServiceSpec, checkout: &Checkout, limits: Limits) -> Result<Walk, Error> {
    let (folder, links) = (checkout.folder.clone(), checkout.links);
    let script = spec.source_directory.is_none().then(|| spec.entry_script.clone());
    let files = blocking(move || match script {
        Some(script) => project::only_script(&folder, &script, links),
        None => Walk::project(&folder, limits).map_err(walked),
    })
    .await??;
    if files.contains(&spec.entry_script) {
        return Ok(files);
    }
    let cause = format!("{} is not among the project's files", spec.entry_script);
    Err(Failure::project(Stage::Packaging, cause, "name the entry script relative to the project's folder").into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Transient(error.to_string()))
}
