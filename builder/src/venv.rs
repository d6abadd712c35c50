//! Virtual environments on this machine, made by uv: the maker of the place without images.
//!
//! Each making has a folder of its own, `<environments>/<hash>/<attempt>`, and the environment is there once the marker file in it is, which
//! is written last. So a builder that was thought dead and goes on writing disturbs nobody; what it leaves behind is swept by the next one
//! that makes this environment. It knows uv's commands and Python's folders. It does not know leases, events or who waits.

mod folder;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{
    builder::{Image, Lookup, Scan},
    failure::{Failure, Stage},
    id::EnvironmentHash,
    packager::RegistryLogin,
};
use tokio::time::timeout;

use self::folder::{Marker, attempts, is_synced, remove, sweep, sync, whole, write_marker};
use crate::{
    build_log::BuildLog,
    bytecode::Modules,
    conda_packages::{self, CondaProgram, Place},
    disk::{blocking, boot, disk},
    environment::{Definition, Refused},
    identity::{self, RECIPE},
    maker::{Found, Made, Maker, Planned},
    plan::Plan,
    sbom,
    scan::{Scanner, Subject},
    uv::{Room, Uv},
};

/// How long a new environment is left to the kernel, which writes it to disk by and by.
const SETTLE: Duration = Duration::from_secs(45);

/// Makes virtual environments.
#[derive(Clone)]
pub struct Venv {
    pub(crate) uv: Uv,
    pub(crate) conda: CondaProgram,
    /// The folder that all environments lie in, as an absolute path.
    pub(crate) environments: PathBuf,
    /// How long making one environment may take in all.
    pub(crate) deadline: Duration,
    /// What they have to pass.
    pub(crate) scanner: Option<Scanner>,
    /// Environments that are about to be synced.
    pub(crate) syncing: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Venv {
    /// Has a new environment written to disk after a while, so that it survives a loss of power; until then that costs a build.
    ///
    /// Not at once: it would hold up the bus, whose every write waits for the disk, just when the service starts. A thread of its own,
    /// because the process may end without it; then it is caught up on when the environment is next looked at.
    fn sync_later(&self, folder: &Path) {
        let folder = folder.to_owned();
        if is_synced(&folder) || !self.syncing.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone()) {
            return;
        }
        let syncing = self.syncing.clone();
        let work = move || {
            std::thread::sleep(SETTLE);
            if let Err(error) = sync(&folder) {
                tracing::debug!(folder = %folder.display(), %error, "not synced; after a loss of power it is built again");
            }
            syncing.lock().unwrap_or_else(PoisonError::into_inner).remove(&folder);
        };
        if let Err(error) = std::thread::Builder::new().name("kaai-sync".to_owned()).spawn(work) {
            tracing::debug!(%error, "no thread to sync with");
        }
    }

    /// Makes the folder that all environments lie in.
    pub(crate) async fn prepare(&self) -> Result<(), crate::Error> {
        let made = tokio::fs::create_dir_all(&self.environments).await;
        made.map_err(|source| crate::Error::Folder { folder: self.environments.display().to_string(), source })
    }

    fn folder(&self, hash: &EnvironmentHash) -> PathBuf {
        self.environments.join(hash.as_str())
    }

    /// A new folder for one making.
    async fn new_folder(&self, hash: &EnvironmentHash) -> Result<PathBuf, Failure> {
        let parent = self.folder(hash);
        sweep(&parent).await;
        let make = move || {
            std::fs::create_dir_all(&parent)?;
            tempfile::Builder::new().prefix("").rand_bytes(8).tempdir_in(&parent).map(tempfile::TempDir::keep)
        };
        blocking(make).await.map_err(|error| disk(&self.environments, &error))
    }

    async fn fill(&self, folder: &Path, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Made, Failure> {
        let path = folder.display().to_string();
        let notes = blocking(tempfile::tempdir).await.map_err(|error| disk(&std::env::temp_dir(), &error))?;
        let room = Room { environment: folder, notes: notes.path() };
        match &plan.conda {
            Some(wanted) => {
                let place = Place { room, home: None, glibc: None };
                drop(self.conda.install((&self.uv, &plan.file), wanted, place, log).await?);
            }
            None => self.uv.bare(&path, plan, log).await?,
        }
        self.uv.install(room, plan, log).await?;
        let modules = Modules { environment: folder, with_library: plan.conda.is_some(), home: folder, kept: None };
        modules.compile(&self.uv, log).await?;
        self.uv.try_imports(room, plan, log).await?;
        let Some(python) = self.uv.version(&folder.join("bin/python")).await else {
            return Err(Failure::platform(
                Stage::Building,
                "the new environment's Python does not run",
                "deploy again",
            ));
        };
        let packages = self.uv.packages(folder).await;
        conda_packages::keep_lock(room).map_err(|error| disk(folder, &error))?;
        let scan = self.scanned((hash, folder), &packages, log).await?;
        let marker = Marker {
            hash: hash.clone(),
            recipe: RECIPE,
            python: python.clone(),
            built: runtime::clock::now_rfc3339(),
            boot: boot(),
            packages,
            scan: scan.clone(),
        };
        self.mark(folder, marker).await?;
        self.sync_later(folder);
        Ok(Made { image: Image::VirtualEnvironment { path, python }, scan })
    }

    async fn mark(&self, folder: &Path, marker: Marker) -> Result<(), Failure> {
        let target = folder.to_owned();
        blocking(move || write_marker(&target, &marker)).await.map_err(|error| disk(folder, &error))
    }

    /// Has the packages of an environment scanned, where this place scans.
    async fn scanned(
        &self,
        (hash, folder): (&EnvironmentHash, &Path),
        packages: &[String],
        log: &BuildLog,
    ) -> Result<Option<Scan>, Failure> {
        let Some(scanner) = &self.scanner else { return Ok(None) };
        let conda = conda_packages::installed(folder).await?;
        let list = sbom::list(hash, &packages.join("\n"), &conda).to_string();
        let subject = Subject { environment: hash, image: None, packages: Some(list.as_bytes()) };
        scanner.scan(&subject, log).await.map(|(scan, _)| Some(scan))
    }
}

impl Venv {
    async fn usable(&self, folder: &Path) -> bool {
        let there = whole(folder).await.is_some() && self.uv.version(&folder.join("bin/python")).await.is_some();
        if there {
            self.sync_later(folder);
        }
        there
    }
}

impl Maker for Venv {
    async fn plan(&self, definition: Definition, _: Option<RegistryLogin>) -> Result<Planned, Failure> {
        let mut plan = Plan::without_images(&definition, self.conda.is_there()).map_err(Refused::into_failure)?;
        plan.facts = identity::facts_of(&definition);
        Ok(Planned { hash: identity::hash_of(&definition), plan })
    }

    async fn make(&self, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Made, Failure> {
        let folder = self.new_folder(hash).await?;
        let made = timeout(self.deadline, self.fill(&folder, hash, plan, log))
            .await
            .unwrap_or_else(|_| Err(too_long(self.deadline)));
        if made.is_err() {
            remove(folder).await;
        }
        made
    }

    async fn is_there(&self, made: &Made) -> Result<bool, Failure> {
        if self.scanner.as_ref().is_some_and(|scanner| !scanner.knows(made.scan.as_ref())) {
            return Ok(false);
        }
        match &made.image {
            Image::VirtualEnvironment { path, .. } => Ok(self.usable(Path::new(path)).await),
            Image::Container { .. } => Ok(false),
        }
    }

    async fn find(&self, hash: &EnvironmentHash, _: &Plan, log: &BuildLog) -> Result<Found, Failure> {
        for folder in attempts(&self.folder(hash)).await {
            let Some(mut marker) = whole(&folder).await else { continue };
            if marker.hash == *hash && marker.recipe == RECIPE && self.usable(&folder).await {
                let image =
                    Image::VirtualEnvironment { path: folder.display().to_string(), python: marker.python.clone() };
                if self.scanner.as_ref().is_some_and(|scanner| !scanner.knows(marker.scan.as_ref())) {
                    marker.scan = self.scanned((hash, &folder), &marker.packages, log).await?;
                    self.mark(&folder, marker.clone()).await?;
                }
                let made = Made { image, scan: marker.scan };
                return Ok(Found { made: Some((made, Lookup::Cached)), asked: Vec::new() });
            }
        }
        Ok(Found::default())
    }
}

/// A build that passed its deadline.
pub(crate) fn too_long(deadline: Duration) -> Failure {
    let time = match deadline.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} minutes", seconds / 60),
    };
    Failure::platform(
        Stage::Building,
        format!("the environment was not built within {time}"),
        "give builds more time with --build-deadline-seconds, or ask for packages that need no building",
    )
}
