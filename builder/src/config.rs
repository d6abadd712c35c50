//! The builder's settings: as typed ([`Args`]) and as checked ([`Config`]).

mod conda;
mod images;
mod scan;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use runtime::{
    config::{CommonArgs, StoreArgs},
    store::Store,
};

pub use self::{
    conda::{CondaArgs, CondaSettings},
    images::{ImageArgs, ImageSettings},
    scan::ScanArgs,
};
pub use crate::scan::ScanSettings;
use crate::{conda_packages::CondaProgram, image::Images, scan::Scanner, uv::Uv, venv::Venv};

/// Finds or builds the environment of a project.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kaai-builder", version)]
pub struct Args {
    /// Settings that every component has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where archives, models and logs lie.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Folder that the environments lie in
    #[arg(long, env = "KAAI_ENVIRONMENTS", default_value = "/var/lib/kaai/environments", value_name = "FOLDER")]
    pub environments: PathBuf,
    /// The uv program (0.4 or newer)
    #[arg(long, env = "KAAI_UV", default_value = "uv", value_name = "PROGRAM")]
    pub uv: PathBuf,
    /// Whether uv may fetch a Python that this machine does not have
    #[arg(long, env = "KAAI_PYTHON_DOWNLOADS", value_enum, default_value = "automatic")]
    pub python_downloads: PythonDownloads,
    /// Folder of pyenv, whose Pythons are used as well [default: .pyenv in the home folder]
    #[arg(long, env = "PYENV_ROOT", value_name = "FOLDER")]
    pub pyenv: Option<PathBuf>,
    /// How many environments are built at a time
    #[arg(long, env = "KAAI_CONCURRENT_BUILDS", default_value_t = 2, value_name = "NUMBER")]
    pub concurrent_builds: usize,
    /// How many seconds one build may take
    #[arg(long, env = "KAAI_BUILD_DEADLINE_SECONDS", default_value_t = 1200, value_name = "SECONDS")]
    pub build_deadline_seconds: u64,
    /// For how many seconds a build that failed by the project's fault is remembered
    #[arg(long, env = "KAAI_REMEMBER_FAILURES_SECONDS", default_value_t = 600, value_name = "SECONDS")]
    pub remember_failures_seconds: u64,
    /// After how many seconds another builder takes over from one that gives no sign of life
    #[arg(long, env = "KAAI_BUILD_LEASE_SECONDS", default_value_t = 6, value_name = "SECONDS")]
    pub build_lease_seconds: u64,
    /// Registries and base images.
    #[command(flatten)]
    pub images: ImageArgs,
    /// The scanner.
    #[command(flatten)]
    pub scan: ScanArgs,
    /// Conda packages.
    #[command(flatten)]
    pub conda: CondaArgs,
}

/// Whether uv may fetch a Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PythonDownloads {
    /// When this machine has none that will do.
    Automatic,
    /// Never.
    Never,
}

/// Checked settings of the builder. `Config::default()` is what a builder without arguments has.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder that the environments lie in; made if missing.
    pub environments: PathBuf,
    /// The uv program; one without a slash is looked for on PATH.
    pub uv: PathBuf,
    /// What installs conda packages.
    pub conda: CondaSettings,
    /// Whether uv may fetch a Python that this machine does not have.
    pub python_downloads: bool,
    /// The folder of pyenv; one that is not there does no harm.
    pub pyenv: Option<PathBuf>,
    /// The registries and base images of a place with images; none where environments are virtual environments.
    pub images: Option<ImageSettings>,
    /// The scanner that environments have to pass; none where they are not scanned.
    pub scan: Option<ScanSettings>,
    /// The times and numbers that hold for any maker.
    pub limits: Limits,
}

/// Times and numbers that hold for any maker.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How many environments are built at a time; at least 1.
    pub concurrent_builds: usize,
    /// How long one build may take.
    pub build_deadline: Duration,
    /// For how long a failure is remembered that the project can mend.
    pub remember_project: Duration,
    /// For how long a failure is remembered that is not the project's: the network is back sooner than that.
    pub remember_platform: Duration,
    /// For how long a builder that gives no sign of life is waited for; it gives one three times as often.
    pub lease: Duration,
    /// Where the logs of builds are written while they run.
    pub logs: PathBuf,
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number that would stop all work.
    #[error("{name} is 0; choose at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A setting of the registries or of the scanner is wrong.
    #[error("{0}")]
    Wrong(String),
}

impl Default for Config {
    fn default() -> Self {
        let environments = PathBuf::from("/var/lib/kaai/environments");
        Self {
            uv: "uv".into(),
            conda: CondaSettings::default(),
            python_downloads: true,
            pyenv: default_pyenv(),
            images: None,
            scan: None,
            limits: Limits::default(),
            environments,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_builds: 2,
            build_deadline: Duration::from_secs(1200),
            remember_project: Duration::from_secs(600),
            remember_platform: Duration::from_secs(30),
            lease: Duration::from_secs(6),
            logs: PathBuf::new(),
        }
    }
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let named = [
            ("--concurrent-builds", args.concurrent_builds as u64),
            ("--build-deadline-seconds", args.build_deadline_seconds),
            ("--build-lease-seconds", args.build_lease_seconds),
        ];
        if let Some((name, _)) = named.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Zero { name });
        }
        Ok(Self {
            scan: args.scan.read(args.images.registry.is_some()).map_err(Error::Wrong)?,
            images: args.images.read().map_err(Error::Wrong)?,
            environments: args.environments,
            uv: args.uv,
            conda: args.conda.read().map_err(Error::Wrong)?,
            python_downloads: args.python_downloads == PythonDownloads::Automatic,
            pyenv: args.pyenv.or_else(default_pyenv),
            limits: Limits {
                concurrent_builds: args.concurrent_builds,
                build_deadline: Duration::from_secs(args.build_deadline_seconds),
                remember_project: Duration::from_secs(args.remember_failures_seconds),
                lease: Duration::from_secs(args.build_lease_seconds),
                ..Limits::default()
            },
        })
    }
}

fn default_pyenv() -> Option<PathBuf> {
    std::env::home_dir().map(|home| home.join(".pyenv"))
}

impl Config {
    /// uv, with an absolute path and a clean set of variables.
    pub(crate) fn uv(&self) -> Uv {
        let path = search_path(self.pyenv.as_deref());
        let uv = match self.uv.components().count() {
            1 => found_on(&path, &self.uv).unwrap_or_else(|| self.uv.clone()),
            _ => absolute(&self.uv),
        };
        let mut variables = inherited();
        if let Ok(path) = std::env::join_paths(&path) {
            variables.push(("PATH".to_owned(), path));
        }
        Uv { program: uv, python_downloads: self.python_downloads, variables }
    }

    /// What installs conda packages, with absolute paths.
    fn conda(&self) -> CondaProgram {
        CondaProgram {
            program: self.conda.found(&search_path(None)),
            alias: self.conda.alias.clone(),
            cache: absolute(&self.environments).join("conda"),
        }
    }

    /// The maker of virtual environments.
    pub fn venv(&self, store: &Store) -> Venv {
        Venv {
            uv: self.uv(),
            conda: self.conda(),
            environments: absolute(&self.environments),
            deadline: self.limits.build_deadline,
            scanner: self.scanner(store),
            syncing: Default::default(),
        }
    }

    fn scanner(&self, store: &Store) -> Option<Scanner> {
        self.scan.clone().map(|settings| Scanner::new(settings, store.clone()))
    }

    /// The maker of images, where this place has them.
    ///
    /// # Errors
    ///
    /// Fails when a certificate of --registry-ca is none.
    pub fn images(&self, store: &Store) -> Result<Option<Images>, Error> {
        let Some(images) = self.images.clone() else { return Ok(None) };
        let settings = images.with(absolute(&self.environments).join("images"), self.limits.build_deadline);
        let wrong = |why| Error::Wrong(format!("--registry-ca: {why}"));
        Images::new(settings, self.uv(), self.conda(), self.scanner(store)).map(Some).map_err(wrong)
    }

    /// The limits, with the folder of logs filled in.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = self.limits.clone();
        if limits.logs.as_os_str().is_empty() {
            limits.logs = absolute(&self.environments).join("logs");
        }
        limits
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// PATH with the true Pythons of pyenv in front, the newest first: its shims answer only for the versions that are switched on.
fn search_path(pyenv: Option<&Path>) -> Vec<PathBuf> {
    let mut pythons = Vec::new();
    for entry in
        pyenv.map(|root| root.join("versions")).and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten()
    {
        let Ok(entry) = entry else { continue };
        let release: Vec<u64> =
            entry.file_name().to_string_lossy().split('.').map_while(|part| part.parse().ok()).collect();
        pythons.push((release, entry.path().join("bin")));
    }
    pythons.sort_by(|one, two| two.cmp(one));
    let shims = pyenv.map(|root| root.join("shims"));
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let others: Vec<_> = std::env::split_paths(&path).filter(|folder| Some(folder) != shims.as_ref()).collect();
    pythons.into_iter().map(|(_, folder)| folder).chain(others).collect()
}

fn found_on(path: &[PathBuf], program: &Path) -> Option<PathBuf> {
    path.iter().map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// The variables that installations may see: where to find indexes, certificates, proxies and compilers; nothing else of the builder's.
fn inherited() -> Vec<(String, OsString)> {
    const NAMES: [&str; 22] = [
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "NETRC",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "SSL_CLIENT_CERT",
        "ALL_PROXY",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "CC",
        "CXX",
        "CFLAGS",
        "LDFLAGS",
        "MAKEFLAGS",
    ];
    let wanted = |name: &str| {
        // uv reads settings of its own; those that would change what is done here stay out.
        let ours = matches!(name, "UV_PYTHON" | "UV_PROJECT_ENVIRONMENT" | "UV_SYSTEM_PYTHON" | "UV_PROJECT");
        NAMES.contains(&name.to_ascii_uppercase().as_str()) || (name.starts_with("UV_") && !ours)
    };
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok().filter(|name| wanted(name))?, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn settings_that_would_stop_all_work_are_refused() {
        let config = |more: &str| Config::try_from(Args::parse_from(["kaai-builder", more]));
        assert_eq!(
            config("--concurrent-builds=0").unwrap_err().to_string(),
            "--concurrent-builds is 0; choose at least 1"
        );
        assert!(!config("--python-downloads=never").unwrap().python_downloads);
        assert_eq!(config("--build-lease-seconds=9").unwrap().limits.lease, Duration::from_secs(9));
    }

    #[test]
    fn the_newest_python_of_pyenv_comes_first_and_its_shims_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        for version in ["3.9.18", "3.10.13", "3.11.2", "3.11.7", "graalpy-1"] {
            std::fs::create_dir_all(root.path().join("versions").join(version).join("bin")).unwrap();
        }
        let path = search_path(Some(root.path()));
        let names: Vec<_> =
            path.iter().filter_map(|path| Some(path.strip_prefix(root.path()).ok()?.display().to_string())).collect();
        let expected = [
            "versions/3.11.7/bin",
            "versions/3.11.2/bin",
            "versions/3.10.13/bin",
            "versions/3.9.18/bin",
            "versions/graalpy-1/bin",
        ];
        assert_eq!(names, expected);
        assert!(search_path(None).len() < path.len());
    }
}
