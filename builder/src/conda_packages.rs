//! Conda packages: what is asked of `kaai-conda`, what it says, and what its failures mean.
//!
//! It knows that program's words and its lock. It solves nothing itself, and does not know where environments lie in the end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::failure::{Failure, Stage};
use serde::Deserialize;
use serde_json::json;

use crate::{
    build_log::BuildLog,
    disk::{disk, replace},
    environment::{Definition, Problem},
    process,
    uv::{Room, Uv},
};

/// The file in an environment that says which conda packages were installed, with hashes.
pub(crate) const LOCK: &str = "conda.lock";
/// The channel of a file that names none.
const CHANNEL: &str = "conda-forge";
/// Conda's pip brought a setuptools that still has `pkg_resources`; the same holds here unless the user asks for another.
const COMPATIBLE_SETUPTOOLS: &str = "setuptools[version=\"<81\"]";
/// How long a channel may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How much of a reason is told; the log has all of it.
const LONGEST: usize = 400;

/// The program that installs conda packages.
#[derive(Debug, Clone)]
pub(crate) struct CondaProgram {
    /// The program; where there is none, conda packages are refused.
    pub(crate) program: Option<PathBuf>,
    /// What stands before the names of channels.
    pub(crate) alias: String,
    /// The folder for what is fetched.
    pub(crate) cache: PathBuf,
}

/// What is wanted of conda.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    channels: Vec<String>,
    specs: Vec<String>,
    constraints: Vec<String>,
}

/// Where an environment is made, and what it is going to run on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Where it is filled.
    pub(crate) room: Room<'a>,
    /// Where it is going to lie, when that is elsewhere.
    pub(crate) home: Option<&'a str>,
    /// The glibc of the image that it is going to run in; that of this machine, and what else it has, if nothing is said.
    pub(crate) glibc: Option<&'a str>,
}

/// One package that was installed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct CondaPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) build: String,
    #[serde(default)]
    pub(crate) channel: Option<String>,
    pub(crate) subdir: String,
    #[serde(default)]
    pub(crate) sha256: Option<String>,
}

/// A lock, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Lock {
    packages: Vec<CondaPackage>,
}

impl Wanted {
    /// What a definition wants.
    pub(crate) fn of(definition: &Definition) -> Self {
        let spec = |name: &str, versions: &str, build: Option<&str>| {
            let versions = (versions != "any").then(|| format!("version=\"{versions}\""));
            let conditions: Vec<_> =
                versions.into_iter().chain(build.map(|build| format!("build=\"{build}\""))).collect();
            if conditions.is_empty() { name.to_owned() } else { format!("{name}[{}]", conditions.join(",")) }
        };
        let mut specs = vec![spec("python", &definition.python.to_string(), None)];
        let others = definition.conda.iter();
        specs.extend(others.map(|((name, build), versions)| spec(name, &versions.to_string(), build.as_deref())));
        let named = |tool: &str| definition.conda.keys().any(|(name, _)| bare(name) == tool);
        let constraints = if named("setuptools") { Vec::new() } else { vec![COMPATIBLE_SETUPTOOLS.to_owned()] };
        let mut channels: Vec<_> = definition.channels.iter().filter(|name| *name != "nodefaults").cloned().collect();
        if channels.is_empty() {
            channels.push(CHANNEL.to_owned());
        }
        Self { channels, specs, constraints }
    }
}

/// A package's name without its channel.
pub(crate) fn bare(name: &str) -> &str {
    name.rsplit("::").next().unwrap_or(name)
}

/// Refuses channels that are neither a name nor an address: a path would be one of the builder's machine.
pub(crate) fn refuse_paths(definition: &Definition, problems: &mut Vec<Problem>) {
    let of_specs = definition.conda.keys().filter_map(|(name, _)| Some(name.rsplit_once("::")?.0));
    for channel in definition.channels.iter().map(String::as_str).chain(of_specs) {
        if !is_channel(channel) {
            problems.push(Problem::new(
                format!("{channel:?} in {} is no channel that can be asked", definition.file),
                "write its name, conda-forge for example, or its address with https://",
            ));
        }
    }
}

fn is_channel(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
        return !rest.is_empty();
    }
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    text.split('/').all(part)
}

impl CondaProgram {
    /// Whether this builder can install conda packages.
    pub(crate) fn is_there(&self) -> bool {
        self.program.is_some()
    }

    /// Makes an environment of conda packages, with conda's own Python, and returns what is in it.
    ///
    /// # Errors
    ///
    /// Fails with cause and remedy.
    pub(crate) async fn install(
        &self,
        (uv, file): (&Uv, &str),
        wanted: &Wanted,
        place: Place<'_>,
        log: &BuildLog,
    ) -> Result<Vec<CondaPackage>, Failure> {
        let Some(program) = &self.program else { return Err(cannot_run("there is none")) };
        let lock = place.room.notes.join(LOCK);
        let request = place.room.notes.join("conda.json");
        let virtual_packages = place.glibc.map(virtual_packages);
        let asked = json!({
            "channels": wanted.channels,
            "channelAlias": self.alias,
            "specs": wanted.specs,
            "constraints": wanted.constraints,
            "virtualPackages": virtual_packages,
            "cache": self.cache,
            "lock": lock,
            "prefix": place.room.environment,
            "finalPrefix": place.home,
            "timeoutSeconds": SILENCE.as_secs(),
        });
        let written = async {
            tokio::fs::create_dir_all(place.room.environment).await?;
            tokio::fs::write(&request, asked.to_string()).await
        };
        written.await.map_err(|error| disk(&request, &error))?;
        let mut command = uv.command(program);
        command.arg("install").arg(&request);
        // Its result is for programs, and is in the lock as well.
        let heard = |line: &str| {
            if !line.starts_with('{') {
                log.line(line)
            }
        };
        let ended = process::run(command, heard).await.map_err(|error| cannot_run(&error.to_string()))?;
        if !ended.status.success() {
            return Err(failure(ended.status.code(), &ended.stderr, file));
        }
        noted(&lock).await
    }
}

/// What the machine has that an image is going to run on, as far as that can be said for all of them.
fn virtual_packages(glibc: &str) -> Vec<String> {
    ["__unix=0=0", "__linux=4.18=0"].into_iter().map(str::to_owned).chain([format!("__glibc={glibc}=0")]).collect()
}

/// The conda packages of an environment that is done; none where conda had no part in it.
pub(crate) async fn installed(environment: &Path) -> Result<Vec<CondaPackage>, Failure> {
    noted(&environment.join(LOCK)).await
}

/// Has the lock of conda's packages in the environment, when there can be no other any more; none where conda had no part in it.
pub(crate) fn keep_lock(room: Room<'_>) -> io::Result<()> {
    let kept = room.environment.join(LOCK);
    match fs::read(room.notes.join(LOCK)) {
        Ok(lock) => replace(&kept, &lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(error) => Err(error),
    }
}

/// What a lock says; nothing where there is none.
async fn noted(path: &Path) -> Result<Vec<CondaPackage>, Failure> {
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(disk(path, &error)),
    };
    let lock: Result<Lock, _> = serde_json::from_slice(&text);
    lock.map(|lock| lock.packages).map_err(|error| {
        let cause = format!("the lock of kaai-conda is not understood: {error}");
        Failure::platform(Stage::Building, cause, "install the kaai-conda that belongs to this builder")
    })
}

fn cannot_run(why: &str) -> Failure {
    Failure::platform(
        Stage::Building,
        format!("kaai-conda cannot be run: {why}"),
        "build it with `make conda`, and name it with --conda-program",
    )
}

/// Turns the end of kaai-conda into a failure.
fn failure(status: Option<i32>, said: &[String], file: &str) -> Failure {
    let why = said.iter().rev().find_map(|line| line.strip_prefix("error: "));
    let why: String = why.unwrap_or("it ended without a word").chars().take(LONGEST).collect();
    let project = |cause: String, remedy: String| Failure::project(Stage::Building, cause, remedy);
    let platform = |cause: String, remedy: &str| Failure::platform(Stage::Building, cause, remedy);
    let failure = match status {
        Some(2) => {
            project(format!("the conda packages of {file} are not understood: {why}"), format!("correct {file}"))
        }
        Some(3) => project(
            format!("the conda packages of {file} cannot be had together: {why}"),
            format!("change versions or channels in {file}, or move packages that pip has under `pip:`"),
        ),
        Some(4) if why.contains("invalid peer certificate") => platform(
            format!("the certificate of a conda channel is not trusted: {why}"),
            "have the builder trust the authority that signed it (SSL_CERT_FILE), then deploy again",
        ),
        Some(4) if ["401 Unauthorized", "403 Forbidden"].iter().any(|status| why.contains(status)) => platform(
            format!("a conda channel does not let this builder in: {why}"),
            "let it in there, or set a mirror for the builder (--conda-channel-alias), then deploy again",
        ),
        Some(4) => platform(
            format!("a conda channel cannot be reached: {why}"),
            "mend the network, or set a mirror for the builder (--conda-channel-alias, HTTPS_PROXY), then deploy again",
        ),
        Some(5) => platform(
            format!("a conda package is damaged: {why}"),
            "deploy again; if it stays so, tell whoever keeps the channel",
        ),
        Some(6) => platform(why, "free some space where the environments lie, then deploy again"),
        Some(7) => project(why, format!("check the channels in {file}, and --conda-channel-alias of the builder")),
        _ => platform(format!("kaai-conda failed: {why}"), "look at the build's log"),
    };
    failure.with_details(said.iter().filter(|line| !line.starts_with("error: ")).map(String::as_str))
}

#[cfg(test)]
mod tests {
    use proto::{
        failure::Blame,
        spec::{CondaSpec, EnvironmentSpec},
    };

    use super::*;

    #[test]
    fn no_package_has_the_last_word_about_what_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room { environment: &folder.path().join("environment"), notes: folder.path() };
        let kept = room.environment.join(LOCK);
        fs::create_dir(room.environment).unwrap();
        for ours in [Some("what kaai-conda has installed"), None] {
            fs::write(&kept, r#"{"packages": []}"#).unwrap();
            match ours {
                Some(lock) => fs::write(room.notes.join(LOCK), lock).unwrap(),
                None => fs::remove_file(room.notes.join(LOCK)).unwrap(),
            }
            keep_lock(room).unwrap();
            assert_eq!(fs::read_to_string(&kept).ok().as_deref(), ours);
        }
    }

    fn definition(channels: &[&str], dependencies: &[&str]) -> Definition {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let conda = CondaSpec {
            file: Some("environment.yml".to_owned()),
            channels: own(channels),
            dependencies: own(dependencies),
            ..CondaSpec::default()
        };
        Definition::read(&EnvironmentSpec { conda, ..EnvironmentSpec::default() }).unwrap()
    }

    #[test]
    fn a_definition_is_asked_for_in_words_that_mean_the_same() {
        let file = ["python=3.11", "numpy=1.19", "x=2=py311_0", "conda-forge::y>=1,<2|3.*", "pip"];
        let wanted = Wanted::of(&definition(&["a", "nodefaults", "https://conda.anaconda.org/b/"], &file));
        let expected = [
            "python[version=\"3.11.*\"]",
            "conda-forge::y[version=\">=1,<2|3.*\"]",
            "numpy[version=\"1.19.*\"]",
            "pip",
            "x[version=\"2.*\",build=\"py311_0\"]",
        ];
        assert_eq!(wanted.specs, expected);
        assert_eq!(wanted.channels, ["a", "b"]);
        assert_eq!(wanted.constraints, [COMPATIBLE_SETUPTOOLS]);
        let own = Wanted::of(&definition(&[], &["numpy", "setuptools=82"]));
        assert_eq!((own.channels, own.constraints), (vec!["conda-forge".to_owned()], Vec::new()));
    }

    #[test]
    fn a_channel_that_is_a_path_is_refused() {
        for good in ["conda-forge", "pkgs/main", "https://conda.example.org/x", "a.b/label/dev_1"] {
            assert!(is_channel(good), "{good}");
        }
        for path in ["/etc", "./x", "../x", "a/../../b", "~/x", "file:///etc", "c:\\x", "", "https://"] {
            assert!(!is_channel(path), "{path}");
        }
        let mut problems = Vec::new();
        refuse_paths(&definition(&["conda-forge", "../up"], &["/tmp/c::numpy"]), &mut problems);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn each_end_has_a_cause_and_somebody_to_mend_it() {
        let said = |why: &str| vec!["asking conda-forge".to_owned(), format!("error: {why}")];
        let of = |status: i32| failure(Some(status), &said("why"), "environment.yml");
        assert_eq!(of(3).cause, "the conda packages of environment.yml cannot be had together: why");
        assert_eq!(of(3).details, ["asking conda-forge"]);
        for (status, blame) in [(1, Blame::Platform), (2, Blame::Project), (3, Blame::Project), (7, Blame::Project)] {
            assert_eq!(of(status).blame, blame, "{status}");
        }
        for status in [4, 5, 6] {
            assert_eq!(of(status).blame, Blame::Platform, "{status}");
        }
        let untrusted = failure(Some(4), &said("x: invalid peer certificate: UnknownIssuer"), "environment.yml");
        assert!(untrusted.remedy.contains("SSL_CERT_FILE") && !of(4).remedy.contains("SSL_CERT_FILE"));
        assert_eq!(failure(None, &[], "x").cause, "kaai-conda failed: it ended without a word");
    }
}
