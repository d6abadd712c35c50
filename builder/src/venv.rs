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
    builder::Image,
    failure::{Failure, Stage},
    id::EnvironmentHash,
};
use tokio::{process::Command, time::timeout};

use self::folder::{Marker, attempts, blocking, boot, is_synced, remove, sweep, sync, whole, write_marker};
use crate::{
    build_log::BuildLog,
    diagnosis,
    identity::RECIPE,
    maker::Maker,
    plan::{COMPATIBLE_SETUPTOOLS, Plan},
    process::{self, Ended},
};

/// What every service imports; the user's script is not among it.
const IMPORTS: &str = "import gunicorn.app.wsgiapp, azureml_inference_server_http.server.create_app";
/// How long a Python may take to say its version.
const QUICK: Duration = Duration::from_secs(20);
/// How long fetching a Python may take.
const FETCH: Duration = Duration::from_secs(300);
/// How long a new environment is left to the kernel, which writes it to disk by and by.
const SETTLE: Duration = Duration::from_secs(45);
/// The oldest uv whose words are understood.
const OLDEST_UV: (u64, u64) = (0, 4);

/// Makes virtual environments.
#[derive(Debug, Clone)]
pub struct Venv {
    /// The uv program.
    pub(crate) uv: PathBuf,
    /// The folder that all environments lie in, as an absolute path.
    pub(crate) environments: PathBuf,
    /// Whether uv may fetch a Python that this machine does not have.
    pub(crate) python_downloads: bool,
    /// How long making one environment may take in all.
    pub(crate) deadline: Duration,
    /// All environment variables of what is started.
    pub(crate) variables: Vec<(String, std::ffi::OsString)>,
    /// Environments that are about to be synced.
    pub(crate) syncing: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// uv cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UvError {
    /// It does not run.
    #[error("{program} cannot be run ({why}); install uv (`pip install uv`) or name it with --uv")]
    Missing {
        /// The program.
        program: String,
        /// Why.
        why: String,
    },
    /// It is too old.
    #[error(
        "{program} is {version}, and uv 0.4 or newer is needed; upgrade it (`pip install -U uv`) or name another with --uv"
    )]
    TooOld {
        /// The program.
        program: String,
        /// What it says of itself.
        version: String,
    },
}

impl Venv {
    /// Makes sure that uv is there and new enough, and returns what it says of itself.
    ///
    /// # Errors
    ///
    /// Fails when it is not.
    pub(crate) async fn check(&self) -> Result<String, UvError> {
        let program = self.uv.display().to_string();
        let missing = |why: String| UvError::Missing { program: program.clone(), why };
        let mut command = self.command(&self.uv);
        command.arg("--version");
        let ended = timeout(QUICK, process::run(command, |_| ())).await;
        let ended =
            ended.map_err(|_| missing("it does not answer".to_owned()))?.map_err(|error| missing(error.to_string()))?;
        let said = ended.stdout.first().cloned().unwrap_or_default();
        let mut numbers = said.strip_prefix("uv ").unwrap_or_default().split('.').map_while(|part| part.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) if (major, minor) >= OLDEST_UV => Ok(said),
            (Some(_), Some(_)) => Err(UvError::TooOld { program, version: said }),
            _ => Err(missing(format!("it says {said:?}"))),
        }
    }

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

    /// A command with our variables and no others, in a folder without any project's settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value))).current_dir("/");
        if !self.python_downloads {
            command.env("UV_PYTHON_DOWNLOADS", "never");
        }
        command
    }

    fn uv(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.uv);
        command.args(["--color", "never", "--no-progress"]).args(arguments);
        command
    }

    async fn run(&self, command: Command, log: &BuildLog) -> Result<Ended, Failure> {
        process::run(command, |line| log.line(line)).await.map_err(|error| {
            Failure::platform(
                Stage::Building,
                format!("uv cannot be run: {error}"),
                "install uv where the builder runs, or name it with --uv",
            )
        })
    }

    /// A Python of this machine that will do: one that is exactly as wanted, else one of the right minor.
    async fn local_python(&self, plan: &Plan) -> Result<Option<(PathBuf, String)>, Failure> {
        let mut almost = None;
        for minor in &plan.python.minors {
            let exact = (0..64).filter(|patch| plan.python.versions.admit(&[3, *minor, *patch])).collect::<Vec<u64>>();
            // Only a single patch is worth asking for by name.
            let exact = match exact.as_slice() {
                [patch] => Some(format!("3.{minor}.{patch}")),
                _ => None,
            };
            for request in exact.into_iter().chain([format!("3.{minor}")]) {
                let find = self.uv(&["python", "find", "--no-project", "--system", "--no-python-downloads", &request]);
                let Ok(Ok(found)) = timeout(QUICK, process::run(find, |_| ())).await else { continue };
                let Some(path) = found.stdout.first().filter(|_| found.status.success()).map(PathBuf::from) else {
                    // One that could not look has not found out that there is none.
                    diagnosis::no_space_to_look(&found.stderr).map_or(Ok(()), Err)?;
                    continue;
                };
                let Some(version) = self.version(&path).await else { continue };
                if plan.admits_python(&version) {
                    return Ok(Some((path, version)));
                }
                almost = almost.or(Some((path, version)));
            }
        }
        Ok(almost)
    }

    /// The version that a Python says it is; `None` when it does not run.
    async fn version(&self, python: &Path) -> Option<String> {
        let mut command = self.command(python);
        command.args(["-I", "-S", "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"]);
        let ended = timeout(QUICK, process::run(command, |_| ())).await.ok()?.ok()?;
        ended.stdout.first().filter(|_| ended.status.success()).cloned()
    }

    /// Makes the bare environment with a Python of this machine, else with one that uv fetches.
    async fn bare(&self, folder: &str, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        if let Some((python, version)) = self.local_python(plan).await? {
            log.line(&format!("Python {version} at {}", python.display()));
            let ended = self
                .run(self.uv(&["venv", "--no-project", "--python", &python.to_string_lossy(), folder]), log)
                .await?;
            return succeeded(&ended, plan);
        }
        let Some(minor) = plan.python.minors.first().filter(|_| self.python_downloads) else {
            return Err(diagnosis::no_python(&[], plan, self.python_downloads));
        };
        log.line(&format!("no Python 3.{minor} on this machine: fetching one"));
        let fetch = self.run(self.uv(&["venv", "--no-project", "--python", &format!("3.{minor}"), folder]), log);
        match timeout(FETCH, fetch).await {
            Ok(ended) => {
                let ended = ended?;
                if ended.status.success() { Ok(()) } else { Err(diagnosis::no_python(&ended.stderr, plan, true)) }
            }
            Err(_) => Err(diagnosis::no_python(&["fetching it timed out".to_owned()], plan, true)),
        }
    }

    /// Installs the packages, the seeds first.
    async fn install(&self, folder: &Path, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        let python = folder.join("bin/python").display().to_string();
        let (requirements, constraints) =
            (folder.join("kaai-requirements.txt"), folder.join("kaai-build-constraints.txt"));
        // Old packages are built with the setuptools that they were written for.
        for (path, text) in
            [(&requirements, plan.requirements.join("\n") + "\n"), (&constraints, COMPATIBLE_SETUPTOOLS.to_owned())]
        {
            tokio::fs::write(path, text).await.map_err(|error| disk(path, &error))?;
        }
        if !plan.seeds.is_empty() {
            let mut seed = self.uv(&["pip", "install", "--quiet", "--python", &python]);
            // Where the list has an index of its own, it has to be asked for these too.
            seed.args(&plan.seeds).args(index_arguments(plan));
            if !self.run(seed, log).await?.status.success() {
                // The index may be one that has no setuptools. If it cannot be reached at all, what follows says so.
                log.line("going on without the setuptools of old");
            }
        }
        let mut install = self.uv(&["pip", "install", "--python", &python, "--compile-bytecode"]);
        install.arg("-b").arg(&constraints).arg("-r").arg(&requirements);
        if plan.prereleases {
            install.args(["--prerelease", "allow"]);
        }
        install.args(plan.trusted_hosts.iter().flat_map(|host| ["--allow-insecure-host", host]));
        succeeded(&self.run(install, log).await?, plan)
    }

    /// Imports what every service imports, so that packages that do not go together are found out here and not by every replica.
    async fn try_imports(&self, folder: &Path, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        let mut command = self.command(&folder.join("bin/python"));
        command.args(["-c", IMPORTS]).env("HOME", folder).env("AML_APP_ROOT", folder).current_dir(folder);
        let ended = process::run(command, |_| ()).await.map_err(|error| disk(folder, &error))?;
        if ended.status.success() {
            return Ok(());
        }
        ended.stderr.iter().for_each(|line| log.line(line));
        Err(diagnosis::not_importable(&ended.stderr, plan))
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

    async fn fill(&self, folder: &Path, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Image, Failure> {
        let path = folder.display().to_string();
        self.bare(&path, plan, log).await?;
        self.install(folder, plan, log).await?;
        self.try_imports(folder, plan, log).await?;
        let python_path = folder.join("bin/python");
        let Some(python) = self.version(&python_path).await else {
            return Err(Failure::platform(
                Stage::Building,
                "the new environment's Python does not run",
                "deploy again",
            ));
        };
        let freeze = self.uv(&["pip", "freeze", "--python", &python_path.display().to_string()]);
        let packages = process::run(freeze, |_| ()).await.map(|ended| ended.stdout).unwrap_or_default();
        let marker = Marker {
            hash: hash.clone(),
            recipe: RECIPE,
            python: python.clone(),
            built: runtime::clock::now_rfc3339(),
            boot: boot(),
            packages,
        };
        let target = folder.to_owned();
        blocking(move || write_marker(&target, &marker)).await.map_err(|error| disk(folder, &error))?;
        self.sync_later(folder);
        Ok(Image::VirtualEnvironment { path, python })
    }
}

impl Maker for Venv {
    async fn make(&self, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Image, Failure> {
        let folder = self.new_folder(hash).await?;
        let made = timeout(self.deadline, self.fill(&folder, hash, plan, log)).await.unwrap_or_else(|_| {
            Err(Failure::platform(
                Stage::Building,
                format!("the environment was not built within {}", in_words(self.deadline)),
                "give builds more time with --build-deadline-seconds, or ask for packages that need no building",
            ))
        });
        if made.is_err() {
            remove(folder).await;
        }
        made
    }

    async fn is_there(&self, image: &Image) -> bool {
        let Image::VirtualEnvironment { path, .. } = image else { return false };
        let folder = Path::new(path);
        let there = whole(folder).await.is_some() && self.version(&folder.join("bin/python")).await.is_some();
        if there {
            self.sync_later(folder);
        }
        there
    }

    async fn find(&self, hash: &EnvironmentHash) -> Option<Image> {
        for folder in attempts(&self.folder(hash)).await {
            let Some(marker) = whole(&folder).await else { continue };
            let image = Image::VirtualEnvironment { path: folder.display().to_string(), python: marker.python };
            if marker.hash == *hash && marker.recipe == RECIPE && self.is_there(&image).await {
                return Some(image);
            }
        }
        None
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} minutes", seconds / 60),
    }
}

fn succeeded(ended: &Ended, plan: &Plan) -> Result<(), Failure> {
    match ended.status.success() {
        true => Ok(()),
        false => Err(diagnosis::installation(&ended.stderr, &ended.status.to_string(), plan)),
    }
}

/// The index options of the list, for a command that does not read the requirements file.
fn index_arguments(plan: &Plan) -> Vec<String> {
    let options = plan.requirements.iter().take_while(|line| line.starts_with("--"));
    let of_index = options.filter(|line| !line.starts_with("--no-binary") && !line.starts_with("--only-binary"));
    let mut arguments: Vec<String> = of_index.flat_map(|line| line.split(' ').map(str::to_owned)).collect();
    arguments.extend(plan.trusted_hosts.iter().flat_map(|host| ["--allow-insecure-host".to_owned(), host.clone()]));
    arguments
}

fn disk(path: &Path, error: &std::io::Error) -> Failure {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let path = path.display();
    let (cause, remedy) = match full {
        true => {
            (format!("no space is left on the disk of {path}"), "free some space there, then deploy again".to_owned())
        }
        false => (
            format!("{path} cannot be written: {error}"),
            "give the builder's user the right to write there".to_owned(),
        ),
    };
    Failure::platform(Stage::Building, cause, remedy)
}

#[cfg(test)]
mod tests {
    use proto::spec::{CondaSpec, EnvironmentSpec};

    use super::*;
    use crate::environment::Definition;

    #[tokio::test]
    async fn a_uv_that_is_not_there_or_too_old_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let said = |says: &str| {
            let program = folder.path().join("uv");
            std::fs::write(&program, format!("#!/bin/sh\necho {says}\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&program, mode).unwrap();
            program
        };
        let check = async |uv: PathBuf| crate::Config { uv, ..crate::Config::default() }.maker().check().await;
        assert_eq!(check(said("uv 0.13.9")).await.unwrap(), "uv 0.13.9");
        assert!(check(said("uv 1.0.0-rc1")).await.is_ok());
        assert!(matches!(check(said("uv 0.3.5")).await, Err(UvError::TooOld { .. })));
        assert!(matches!(check(said("hello")).await, Err(UvError::Missing { .. })));
        let error = check(folder.path().join("nowhere")).await.unwrap_err().to_string();
        assert!(error.contains("nowhere cannot be run") && error.contains("--uv"), "{error}");
    }

    #[test]
    fn the_lists_index_is_asked_for_the_seeds_too() {
        let pip = ["--extra-index-url https://a/simple", "--trusted-host a", "--no-binary x", "--pre", "x"];
        let conda = CondaSpec { pip: pip.map(str::to_owned).to_vec(), ..CondaSpec::default() };
        let definition = Definition::read(&EnvironmentSpec { conda, ..EnvironmentSpec::default() }).unwrap();
        let arguments = index_arguments(&Plan::of(&definition).unwrap());
        assert_eq!(arguments, ["--extra-index-url", "https://a/simple", "--allow-insecure-host", "a"]);
    }
}
