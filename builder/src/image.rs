//! Environments as images: looked for in the registries, else made here and pushed.
//!
//! An image is known by a tag that is the environment's hash, in one repository of a registry; it is used by digest from then on.
//! The tag is pushed last, so whoever finds it finds all that belongs to the image. It knows registries and what an image consists of.
//! It does not know leases, events or who waits.

mod assemble;
mod attest;
mod base;
mod copy;
mod engine;
mod glibc;
mod gzip;
mod layer;
mod login;
mod registry;
mod repository;
mod scratch;
pub(crate) mod steps;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use oci_distribution::Reference;
use proto::{
    builder::{Image, Lookup, RegistryAsked, RegistryOutcome, RegistryRole, Scan},
    failure::{Failure, Stage},
    id::EnvironmentHash,
    packager::RegistryLogin,
};
use tokio::time::{Instant, timeout};

pub(crate) use self::{engine::Engine, login::Logins, registry::Access, repository::Repository};
use self::{layer::HOME, registry::Registries};
use crate::{
    build_log::BuildLog,
    conda_packages::CondaProgram,
    docker,
    environment::{Definition, Refused},
    identity,
    maker::{Found, Made, Maker, Planned},
    plan::Plan,
    scan::{Scanner, Subject},
    uv::Uv,
    venv::too_long,
};

/// What is said of an image in its manifest: the version of its Python.
const PYTHON: &str = "io.kaai.python";

/// Finds and makes images.
#[derive(Clone)]
pub struct Images {
    registries: Registries,
    access: Access,
    workspace: Repository,
    global: Option<Repository>,
    /// The base image for each minor of Python 3, for environments that name none.
    bases: BTreeMap<u64, String>,
    /// What runs docker steps, where there is one.
    engine: Option<Engine>,
    /// What images have to pass.
    scanner: Option<Scanner>,
    uv: Uv,
    conda: CondaProgram,
    /// Where environments are filled before they are packed, and where is kept what is known of base images.
    scratch: PathBuf,
    deadline: Duration,
}

/// What images need besides uv.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) workspace: Repository,
    pub(crate) global: Option<Repository>,
    pub(crate) bases: BTreeMap<u64, String>,
    pub(crate) access: Access,
    pub(crate) engine: Option<Engine>,
    pub(crate) scratch: PathBuf,
    pub(crate) deadline: Duration,
}

impl Images {
    /// Opens the place.
    ///
    /// # Errors
    ///
    /// Fails when the certificate of an authority is none.
    pub(crate) fn new(
        settings: Settings,
        uv: Uv,
        conda: CondaProgram,
        scanner: Option<Scanner>,
    ) -> Result<Self, String> {
        let Settings { workspace, global, bases, access, engine, scratch, deadline } = settings;
        let registries = Registries::new(access.clone())?;
        Ok(Self { registries, access, workspace, global, bases, engine, scanner, uv, conda, scratch, deadline })
    }

    /// The same with a user's own login. Nothing of it is shared: a token that was given for it is no one else's.
    fn with(&self, login: Option<&RegistryLogin>) -> Result<Self, Failure> {
        let Some(login) = login else { return Ok(self.clone()) };
        let access = Access { logins: self.access.logins.with(login), ..self.access.clone() };
        let registries = Registries::new(access.clone()).map_err(defect)?;
        Ok(Self { registries, access, ..self.clone() })
    }

    /// The image that an environment stands on, by its digest of now.
    async fn resolve(&self, name: &str) -> Result<Reference, Failure> {
        let reference: Reference = name.parse().map_err(|error| {
            let cause = format!("{name:?} is no name of an image: {error}");
            Failure::project(Stage::Building, cause, "name the base image as in `docker pull`")
        })?;
        match self.registries.manifest(&reference).await {
            Ok((_, digest)) => Ok(reference.clone_with_digest(digest)),
            Err(registry::Error::Missing(what)) => Err(Failure::project(
                Stage::Building,
                format!("the base image {what} does not exist"),
                "check baseImage, or leave it out, which chooses one for the Python of the conda file",
            )),
            Err(error) => Err(error.into_failure()),
        }
    }

    /// The images that a Dockerfile stands on, with their digests.
    async fn resolve_all(&self, dockerfile: &[String]) -> Result<Vec<(String, Reference)>, Failure> {
        let mut resolved = Vec::new();
        for name in steps::images(dockerfile) {
            let image = self.resolve(&name).await?;
            resolved.push((name, image));
        }
        Ok(resolved)
    }

    /// The image that packages are put on: the base image, or what docker steps make of it, which is kept for the next environment with them.
    async fn ground(&self, plan: &Plan, log: &BuildLog) -> Result<Reference, Failure> {
        let (Some(engine), Some(dockerfile)) = (&self.engine, &plan.dockerfile) else {
            let base = plan.base.as_deref().unwrap_or_default();
            return base.parse().map_err(|_| defect(format!("{base:?} is no base image")));
        };
        let failed = registry::Error::into_failure;
        let image = self.workspace.ground(&steps::name(dockerfile));
        let known = self.registries.digest(&image).await.map_err(failed)?;
        if known.is_none() {
            engine.build(dockerfile, &image, &self.access.logins, log).await?;
        }
        let digest = match known {
            Some(digest) => Some(digest),
            None => self.registries.digest(&image).await.map_err(failed)?,
        };
        let digest = digest.ok_or_else(|| defect(format!("{} was pushed and is not there", image.whole())))?;
        Ok(image.clone_with_digest(digest))
    }

    /// The base image of an environment: its own, else that of this place for its Python.
    fn base_of(&self, definition: &Definition, plan: &Plan) -> Result<String, Failure> {
        if let Some(base) = &definition.base_image {
            return Ok(base.clone());
        }
        let known = plan.python.minors.iter().find_map(|minor| self.bases.get(minor));
        // Conda packages bring their own Python, so that any of them will do.
        let known = known.or(self.bases.values().next_back().filter(|_| plan.conda.is_some()));
        known.map(|base| docker::image(base)).ok_or_else(|| {
            let minors = |minors: &mut dyn Iterator<Item = &u64>| {
                minors.map(|minor| format!("3.{minor}")).collect::<Vec<_>>().join(", ")
            };
            let has = if self.bases.is_empty() { "none".to_owned() } else { minors(&mut self.bases.keys()) };
            Failure::project(
                Stage::Building,
                format!("there is no base image for Python {}", minors(&mut plan.python.minors.iter())),
                format!("name a baseImage that has it, or ask for a Python that has one here ({has})"),
            )
        })
    }

    /// Asks one registry for the image of an environment.
    async fn ask(
        &self,
        role: RegistryRole,
        repository: &Repository,
        environment: &EnvironmentHash,
    ) -> (RegistryAsked, Result<Option<Image>, registry::Error>) {
        let (began, reference) = (Instant::now(), repository.image(environment));
        let found = match self.registries.manifest(&reference).await {
            Ok((manifest, digest)) => {
                let python = manifest.annotations.and_then(|said| said.get(PYTHON).cloned());
                Ok(Some(image(&reference.clone_with_digest(digest), python)))
            }
            Err(registry::Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        };
        let outcome = match &found {
            Ok(Some(_)) => RegistryOutcome::Found,
            Ok(None) => RegistryOutcome::Missing,
            Err(error) => RegistryOutcome::Unavailable(error.to_string()),
        };
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        (RegistryAsked { registry: role, repository: repository.shown(), outcome, took_ms }, found)
    }

    async fn find_all(&self, environment: &EnvironmentHash, log: &BuildLog) -> Result<Found, Failure> {
        let (asked, found) = self.ask(RegistryRole::Workspace, &self.workspace, environment).await;
        let mut all = vec![asked];
        // Where nothing can be found nothing could be pushed.
        if let Some(image) = found.map_err(registry::Error::into_failure)? {
            let made = self.admitted(environment, image, log).await?;
            return Ok(Found { made: Some((made, Lookup::Cached)), asked: all });
        }
        let Some(global) = &self.global else { return Ok(Found { made: None, asked: all }) };
        let (asked, found) = self.ask(RegistryRole::Global, global, environment).await;
        all.push(asked);
        let made = match found {
            Ok(None) => None,
            Ok(Some(image)) => Some((self.bring(environment, image, log).await?, Lookup::Copied)),
            Err(error) => {
                tracing::warn!(%error, registry = global.shown(), "the global registry is left out");
                None
            }
        };
        Ok(Found { made, asked: all })
    }

    /// Brings an image of the global registry into the workspace's, scanned before the tag is there.
    async fn bring(&self, environment: &EnvironmentHash, image: Image, log: &BuildLog) -> Result<Made, Failure> {
        let Some(global) = &self.global else { return Err(defect("there is no global registry".to_owned())) };
        log.hand_on(format!("copying the image from {}", global.shown()));
        let (from, to) = (global.image(environment), self.workspace.image(environment));
        let failed = registry::Error::into_failure;
        let copied = copy::copy(&self.registries, &from, &to).await.map_err(failed)?;
        let image = relocated(image, &copied.by_digest);
        // What others have scanned is no business of this gate.
        let scan = self.scan(environment, &copied.by_digest, log).await?;
        copied.tag(&self.registries, &to).await.map_err(failed)?;
        Ok(Made { image, scan })
    }

    /// An image that is there already, scanned now if it was not by this scanner.
    async fn admitted(&self, environment: &EnvironmentHash, image: Image, log: &BuildLog) -> Result<Made, Failure> {
        let Some(scanner) = &self.scanner else { return Ok(Made { image, scan: None }) };
        let Image::Container { reference, .. } = &image else { return Ok(Made { image, scan: None }) };
        let reference: Reference = reference.parse().map_err(|_| defect(format!("{reference:?} is no image")))?;
        let said = attest::attached(&self.registries, &reference, attest::SCAN).await;
        let said = said.map_err(registry::Error::into_failure)?;
        let said = said.iter().rev().find_map(|said| attest::scan_of(said).filter(|scan| scanner.knows(Some(scan))));
        let scan = match said {
            Some(scan) => Some(scan),
            None => self.scan(environment, &reference, log).await?,
        };
        Ok(Made { image, scan })
    }

    /// Has an image scanned that is in the workspace's registry with its list of packages, and attaches what was found.
    async fn scan(
        &self,
        environment: &EnvironmentHash,
        image: &Reference,
        log: &BuildLog,
    ) -> Result<Option<Scan>, Failure> {
        let Some(scanner) = &self.scanner else { return Ok(None) };
        let failed = registry::Error::into_failure;
        let packages = attest::attached(&self.registries, image, attest::SBOM).await.map_err(failed)?.pop();
        let shown = image.whole();
        let subject = Subject { environment, image: Some(&shown), packages: packages.as_deref() };
        let (scan, report) = scanner.scan(&subject, log).await?;
        let said = (attest::SCAN, attest::scan_result(&scan, &report));
        attest::attach(&self.registries, image, &[said]).await.map_err(failed)?;
        Ok(Some(scan))
    }
}

impl Maker for Images {
    async fn plan(&self, mut definition: Definition, login: Option<RegistryLogin>) -> Result<Planned, Failure> {
        let this = self.with(login.as_ref())?;
        let mut plan =
            Plan::on_image(&definition, self.engine.is_some(), self.conda.is_there()).map_err(Refused::into_failure)?;
        // Digests count, not names: an image is the same wherever it lies, and a name that moved on is another.
        let mut meant = definition.clone();
        let base = if definition.dockerfile.is_empty() {
            let base = this.resolve(&self.base_of(&definition, &plan)?).await?;
            meant.base_image = base.digest().map(str::to_owned);
            base.whole()
        } else {
            let resolved = this.resolve_all(&definition.dockerfile).await?;
            let digest = |image: &Reference| image.digest().unwrap_or_default().to_owned();
            meant.dockerfile = steps::pinned(&definition.dockerfile, &resolved, digest);
            meant.base_image = None;
            definition.dockerfile = steps::pinned(&definition.dockerfile, &resolved, Reference::whole);
            String::new()
        };
        if let Some(engine) = self.engine.as_ref().filter(|_| definition.has_steps()) {
            plan.dockerfile = Some(steps::text(&base, &definition, engine.has_certificates()));
        }
        plan.base = Some(base);
        plan.login = login;
        plan.facts = identity::facts_of(&meant);
        Ok(Planned { hash: identity::hash_of(&meant), plan })
    }

    async fn make(&self, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Made, Failure> {
        let this = self.with(plan.login.as_ref())?;
        timeout(self.deadline, this.assemble(hash, plan, log)).await.unwrap_or_else(|_| Err(too_long(self.deadline)))
    }

    async fn is_there(&self, made: &Made) -> Result<bool, Failure> {
        if self.scanner.as_ref().is_some_and(|scanner| !scanner.knows(made.scan.as_ref())) {
            return Ok(false);
        }
        let Image::Container { reference, .. } = &made.image else { return Ok(false) };
        // One of another repository than today's could not be pulled with today's logins.
        let Ok(reference) = reference.parse::<Reference>() else { return Ok(false) };
        if reference.registry() != self.workspace.host || reference.repository() != self.workspace.name {
            return Ok(false);
        }
        self.registries.digest(&reference).await.map(|digest| digest.is_some()).map_err(registry::Error::into_failure)
    }

    async fn find(&self, hash: &EnvironmentHash, _: &Plan, log: &BuildLog) -> Result<Found, Failure> {
        self.find_all(hash, log).await
    }
}

/// An image by digest. One whose packages are not ours has no version of Python noted, and runs the Python on its own PATH.
fn image(reference: &Reference, python: Option<String>) -> Image {
    let interpreter = if python.is_some() { format!("{HOME}/bin/python") } else { "python".to_owned() };
    Image::Container { reference: reference.whole(), interpreter, python }
}

fn relocated(image: Image, to: &Reference) -> Image {
    match image {
        Image::Container { interpreter, python, .. } => Image::Container { reference: to.whole(), interpreter, python },
        other @ Image::VirtualEnvironment { .. } => other,
    }
}

fn defect(cause: String) -> Failure {
    Failure::platform(Stage::Building, cause, "this is a defect of kaai; please report it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_our_packages_runs_its_own_python() {
        let reference: Reference = format!("r.example.com/e@sha256:{}", "0".repeat(64)).parse().unwrap();
        let Image::Container { interpreter, .. } = image(&reference, None) else { panic!() };
        assert_eq!(interpreter, "python");
        let Image::Container { interpreter, .. } = image(&reference, Some("3.11".to_owned())) else { panic!() };
        assert_eq!(interpreter, "/opt/kaai/environment/bin/python");
    }
}
