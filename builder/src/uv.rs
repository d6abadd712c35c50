//! uv: Pythons found, virtual environments made and filled.
//!
//! It knows uv's commands and what Python needs to run. It does not know where environments lie, nor who asked for them.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::failure::{Failure, Stage};
use tokio::{process::Command, time::timeout, try_join};

use crate::{
    build_log::BuildLog,
    diagnosis,
    disk::disk,
    plan::{COMPATIBLE_SETUPTOOLS, Plan},
    process::{self, Ended},
};

/// What every service imports; the user's script is not among it.
const IMPORTS: &str = "import gunicorn.app.wsgiapp, azureml_inference_server_http.server.create_app";
/// How long a Python may take to say its version.
const QUICK: Duration = Duration::from_secs(20);
/// How long fetching a Python may take.
const FETCH: Duration = Duration::from_secs(300);
/// The oldest uv whose words are understood.
const OLDEST_UV: (u64, u64) = (0, 4);

/// The uv program, and what it and all that it starts may see of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Uv {
    /// The program.
    pub(crate) program: PathBuf,
    /// Whether uv may fetch a Python that this machine does not have.
    pub(crate) python_downloads: bool,
    /// All environment variables of what is started.
    pub(crate) variables: Vec<(String, OsString)>,
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

/// Where an environment is filled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room<'a> {
    /// The environment.
    pub(crate) environment: &'a Path,
    /// A folder for lists and locks: a package could replace them in the environment.
    pub(crate) notes: &'a Path,
}

impl Room<'_> {
    fn python(&self) -> PathBuf {
        self.environment.join("bin/python")
    }

    /// What old packages are built with.
    fn constraints(&self) -> PathBuf {
        self.notes.join("build-constraints.txt")
    }
}

impl Uv {
    /// Makes sure that uv is there and new enough, and returns what it says of itself.
    ///
    /// # Errors
    ///
    /// Fails when it is not.
    pub(crate) async fn check(&self) -> Result<String, UvError> {
        let program = self.program.display().to_string();
        let missing = |why: String| UvError::Missing { program: program.clone(), why };
        let mut command = self.command(&self.program);
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

    /// A command with our variables and no others, in a folder without any project's settings.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value))).current_dir("/");
        if !self.python_downloads {
            command.env("UV_PYTHON_DOWNLOADS", "never");
        }
        command
    }

    fn uv(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.program);
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
    pub(crate) async fn version(&self, python: &Path) -> Option<String> {
        let mut command = self.command(python);
        command.args(["-I", "-S", "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"]);
        let ended = timeout(QUICK, process::run(command, |_| ())).await.ok()?.ok()?;
        ended.stdout.first().filter(|_| ended.status.success()).cloned()
    }

    /// Makes the bare environment with a Python of this machine, else with one that uv fetches.
    pub(crate) async fn bare(&self, folder: &str, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
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
    pub(crate) async fn install(&self, room: Room<'_>, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        let requirements = self.write_lists(room, plan).await?;
        self.install_seeds(room, plan, log).await?;
        let mut install = self.uv(&["pip", "install"]);
        install.arg("-r").arg(requirements).args(self.how(room, plan)).args(into_condas(plan));
        succeeded(&self.run(install, log).await?, plan)
    }

    /// Resolves the packages first, into a list with versions and hashes, and installs just that; returns the list.
    pub(crate) async fn install_locked(&self, room: Room<'_>, plan: &Plan, log: &BuildLog) -> Result<PathBuf, Failure> {
        let requirements = self.write_lists(room, plan).await?;
        let lock = room.notes.join("lock.txt");
        let mut resolve = self.uv(&["pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]);
        resolve.arg("--output-file").arg(&lock).args(self.how(room, plan));
        if plan.conda.is_none() {
            resolve.arg(requirements);
            // Neither knows of the other, and both wait for the index.
            let (resolved, ()) = try_join!(self.run(resolve, log), self.install_seeds(room, plan, log))?;
            succeeded(&resolved, plan)?;
        } else {
            self.install_seeds(room, plan, log).await?;
            resolve.arg("--no-deps").arg(self.added_to_condas(room, plan, &requirements, log).await?);
            succeeded(&self.run(resolve, log).await?, plan)?;
        }
        let mut install = self.uv(&["pip", "install", "--no-deps"]);
        // The list has no options, since a builder's own index may have a password in its address.
        install.arg("-r").arg(&lock).args(options(plan)).args(self.how(room, plan)).args(into_condas(plan));
        succeeded(&self.run(install, log).await?, plan)?;
        Ok(lock)
    }

    /// Writes what has to be added to the packages that conda has installed, with exact versions: what is there and will do stays.
    async fn added_to_condas(
        &self,
        room: Room<'_>,
        plan: &Plan,
        requirements: &Path,
        log: &BuildLog,
    ) -> Result<PathBuf, Failure> {
        let mut ask = self.uv(&["pip", "install", "--dry-run"]);
        ask.arg("-r").arg(requirements).args(self.how(room, plan)).args(into_condas(plan));
        let ended = self.run(ask, log).await?;
        succeeded(&ended, plan)?;
        let options = plan.requirements.iter().take_while(|line| line.starts_with("--")).cloned();
        let lines: Vec<_> = options.chain(ended.stderr.iter().filter_map(|line| added(line))).collect();
        let pins = room.notes.join("pins.txt");
        tokio::fs::write(&pins, lines.join("\n") + "\n").await.map_err(|error| disk(&pins, &error))?;
        Ok(pins)
    }

    /// Writes what is to be installed, and what old packages are built with; returns the former.
    async fn write_lists(&self, room: Room<'_>, plan: &Plan) -> Result<PathBuf, Failure> {
        let requirements = room.notes.join("requirements.txt");
        // Old packages are built with the setuptools that they were written for.
        for (path, text) in [
            (&requirements, plan.requirements.join("\n") + "\n"),
            (&room.constraints(), COMPATIBLE_SETUPTOOLS.to_owned()),
        ] {
            tokio::fs::write(path, text).await.map_err(|error| disk(path, &error))?;
        }
        Ok(requirements)
    }

    async fn install_seeds(&self, room: Room<'_>, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        if plan.seeds.is_empty() {
            return Ok(());
        }
        let mut seed = self.uv(&["pip", "install", "--quiet", "--python"]);
        // Where the list has an index of its own, it has to be asked for these too.
        seed.arg(room.python()).args(&plan.seeds).args(index_arguments(plan)).args(into_condas(plan));
        if !self.run(seed, log).await?.status.success() {
            // The index may be one that has no setuptools. If it cannot be reached at all, what follows says so.
            log.line("going on without the setuptools of old");
        }
        Ok(())
    }

    /// What both resolving and installing are told.
    fn how(&self, room: Room<'_>, plan: &Plan) -> Vec<OsString> {
        let mut how: Vec<OsString> = vec!["--python".into(), room.python().into()];
        how.extend(["-b".into(), room.constraints().into()]);
        if plan.prereleases {
            how.extend(["--prerelease".into(), "allow".into()]);
        }
        how.extend(plan.trusted_hosts.iter().flat_map(|host| ["--allow-insecure-host".into(), host.into()]));
        how
    }

    /// The packages that an environment has, `numpy==2.4.6` for example.
    pub(crate) async fn packages(&self, folder: &Path) -> Vec<String> {
        let python = folder.join("bin/python");
        let freeze = self.uv(&["pip", "freeze", "--python", &python.display().to_string()]);
        process::run(freeze, |_| ()).await.map(|ended| ended.stdout).unwrap_or_default()
    }

    /// Imports what every service imports, so that packages that do not go together are found out here and not by every replica.
    pub(crate) async fn try_imports(&self, room: Room<'_>, plan: &Plan, log: &BuildLog) -> Result<(), Failure> {
        let mut command = self.command(&room.python());
        command
            .args(["-B", "-c", IMPORTS])
            .env("HOME", room.notes)
            .env("AML_APP_ROOT", room.notes)
            .current_dir(room.notes);
        let ended = process::run(command, |_| ()).await.map_err(|error| disk(room.environment, &error))?;
        if ended.status.success() {
            return Ok(());
        }
        ended.stderr.iter().for_each(|line| log.line(line));
        Err(diagnosis::not_importable(&ended.stderr, plan))
    }
}

fn succeeded(ended: &Ended, plan: &Plan) -> Result<(), Failure> {
    match ended.status.success() {
        true => Ok(()),
        false => Err(diagnosis::installation(&ended.stderr, &ended.status.to_string(), plan)),
    }
}

/// What uv is told where the Python is the environment's own and no virtual environment's.
fn into_condas(plan: &Plan) -> Option<&'static str> {
    plan.conda.is_some().then_some("--break-system-packages")
}

/// The requirement for a package that uv would add: it says ` + name==version`, or with ` (from address)` behind.
fn added(line: &str) -> Option<String> {
    let (name, rest) = line.trim_start().strip_prefix("+ ")?.split_once("==")?;
    Some(match rest.split_once(" (from ") {
        Some((_, address)) => format!("{name} @ {}", address.trim_end_matches(')')),
        None => format!("{name}=={}", rest.trim()),
    })
}

/// The options of the list, for a command that does not read the requirements file.
fn options(plan: &Plan) -> Vec<String> {
    let options = plan.requirements.iter().take_while(|line| line.starts_with("--"));
    options.flat_map(|line| line.split(' ').map(str::to_owned)).collect()
}

/// The options that say which index is asked.
fn index_arguments(plan: &Plan) -> Vec<String> {
    let options = plan.requirements.iter().take_while(|line| line.starts_with("--"));
    let of_index = options.filter(|line| !line.starts_with("--no-binary") && !line.starts_with("--only-binary"));
    let mut arguments: Vec<String> = of_index.flat_map(|line| line.split(' ').map(str::to_owned)).collect();
    arguments.extend(plan.trusted_hosts.iter().flat_map(|host| ["--allow-insecure-host".to_owned(), host.clone()]));
    arguments
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
        let check = async |uv: PathBuf| crate::Config { uv, ..crate::Config::default() }.uv().check().await;
        assert_eq!(check(said("uv 0.13.9")).await.unwrap(), "uv 0.13.9");
        assert!(check(said("uv 1.0.0-rc1")).await.is_ok());
        assert!(matches!(check(said("uv 0.3.5")).await, Err(UvError::TooOld { .. })));
        assert!(matches!(check(said("hello")).await, Err(UvError::Missing { .. })));
        let error = check(folder.path().join("nowhere")).await.unwrap_err().to_string();
        assert!(error.contains("nowhere cannot be run") && error.contains("--uv"), "{error}");
    }

    #[test]
    fn what_uv_would_add_is_read_as_requirements() {
        let said = ["Would install 2 packages", " + six==1.17.0", " - six==1.16.0", " + y==1.0 (from https://h/y.zip)"];
        let read: Vec<_> = said.into_iter().filter_map(added).collect();
        assert_eq!(read, ["six==1.17.0", "y @ https://h/y.zip"]);
    }

    #[test]
    fn the_lists_index_is_asked_for_the_seeds_too() {
        let pip = ["--extra-index-url https://a/simple", "--trusted-host a", "--no-binary x", "--pre", "x"];
        let conda = CondaSpec { pip: pip.map(str::to_owned).to_vec(), ..CondaSpec::default() };
        let definition = Definition::read(&EnvironmentSpec { conda, ..EnvironmentSpec::default() }).unwrap();
        let arguments = index_arguments(&Plan::without_images(&definition, false).unwrap());
        assert_eq!(arguments, ["--extra-index-url", "https://a/simple", "--allow-insecure-host", "a"]);
    }
}
