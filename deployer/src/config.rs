//! The deployer's settings: as typed ([`Args`]) and as checked ([`Config`]).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use runtime::config::{CommonArgs, StoreArgs};

use crate::{docker, process};

/// How many labels may be added to replicas.
const MOST_LABELS: usize = 32;
/// How long one may be, in bytes.
const LONGEST_LABEL: usize = 1024;

/// Makes the world match the desired state of services.
///
/// Hears `image.resolved`, `scale.requested`, `deployment.delete` and `deployment.failed`, runs replicas as processes of this machine
/// or as containers, and writes the routes that routers go by.
#[derive(Debug, Parser)]
#[command(name = "kaai-deployer", version)]
pub struct Args {
    /// Settings of every component.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where archives, models and logs lie.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Folder for replicas, their logs, fetched archives and this deployer's own key; one deployer uses it at a time
    #[arg(long, env = "KAAI_DEPLOYER_STATE", default_value = "/var/lib/kaai/deployer")]
    pub state: PathBuf,
    /// Folder with a short path (at most 80 bytes) for sockets [default: one in the state folder, or in /tmp if that is too long]
    #[arg(long, env = "KAAI_DEPLOYER_SOCKETS")]
    pub sockets: Option<PathBuf>,
    /// What becomes of the replicas when the deployer stops: the next one finds those that it leaves
    #[arg(long, env = "KAAI_DEPLOYER_ON_STOP", value_enum, default_value = "leave")]
    pub on_stop: OnStop,
    /// Seconds that a replica may take to finish what it has in hand when it is stopped
    #[arg(long, env = "KAAI_DEPLOYER_GRACE_SECONDS", default_value_t = 10)]
    pub grace_seconds: u64,
    /// Environment variable for every replica: NAME=VALUE, or NAME to hand on this process's own
    #[arg(long = "replica-env", env = "KAAI_REPLICA_ENV", value_delimiter = ',', value_name = "NAME[=VALUE]")]
    pub replica_env: Vec<String>,
    /// Processes and threads that a replica may have
    #[arg(long, env = "KAAI_REPLICA_PROCESSES", default_value_t = 4096)]
    pub replica_processes: u64,
    /// Size of the cache of fetched archives and of models that containers share, in GiB
    #[arg(long, env = "KAAI_DEPLOYER_CACHE_GIB", default_value_t = 10)]
    pub cache_gib: u64,
    /// What replicas are: processes of this machine, for environments that are folders, or containers, for those that are images
    #[arg(long, env = "KAAI_PLACE", value_enum, default_value = "process")]
    pub place: Place,
    /// Settings of containers.
    #[command(flatten)]
    pub docker: DockerArgs,
}

/// Settings of replicas as containers; they change nothing where replicas are processes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Replicas as containers (--place docker)")]
pub struct DockerArgs {
    /// Unix socket of the Docker engine on this host
    #[arg(long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock")]
    pub docker_host: String,
    /// User and group of replicas, by number; a router in that group reaches them [default: 10001:10001 if this process is root, else its own]
    #[arg(long, env = "KAAI_REPLICA_USER", value_name = "UID:GID")]
    pub replica_user: Option<docker::User>,
    /// A Docker network for the calls of replicas to the outside [default: one that is made for them, in which they do not reach each other]
    #[arg(long, env = "KAAI_REPLICA_NETWORK", value_name = "NAME")]
    pub replica_network: Option<String>,
    /// Docker config.json with the logins for registries
    #[arg(long, env = "KAAI_REGISTRY_LOGIN", value_name = "FILE")]
    pub registry_login: Option<PathBuf>,
    /// The state folder as the Docker engine sees it, where this process runs in a container: a folder of the host, or volume:NAME [default: the same path]
    #[arg(long, env = "KAAI_DEPLOYER_HOST_STATE", value_name = "FOLDER")]
    pub host_state: Option<docker::HostState>,
    /// A label for the containers of replicas, besides kaai's own (io.kaai.…), so that other tools know them
    #[arg(long = "replica-label", env = "KAAI_REPLICA_LABELS", value_delimiter = ',', value_name = "KEY=VALUE")]
    pub replica_labels: Vec<String>,
}

/// What replicas are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// Processes of this machine.
    Process,
    /// Containers of a Docker engine on this machine.
    Docker,
}

/// What becomes of the replicas when the deployer stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnStop {
    /// They go on, and are adopted by the next deployer.
    Leave,
    /// They are ended; the next deployer starts them anew.
    End,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The place where replicas run.
    pub place: process::Settings,
    /// How they run as containers; as processes when left out.
    pub docker: Option<docker::Settings>,
    /// What becomes of the replicas when the deployer stops.
    pub on_stop: OnStop,
    /// How long a replica may take to finish what it has in hand when it is stopped.
    pub grace: Duration,
}

impl Config {
    /// The usual settings over a state folder: replicas are left running when the deployer stops.
    pub fn new(state: PathBuf) -> Self {
        Self {
            place: process::Settings::new(state),
            docker: None,
            on_stop: OnStop::Leave,
            grace: Duration::from_secs(10),
        }
    }
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable for replicas has no valid name.
    #[error("{0:?} names no environment variable; write NAME=VALUE or NAME")]
    Variable(String),
    /// A network in which replicas would not be apart.
    #[error("the network {0:?} would join replicas to the host or to another container; name a network of its own")]
    Network(String),
    /// A label for replicas that cannot be.
    #[error("{0:?} is no label for replicas: {1}")]
    Label(String, &'static str),
    /// A variable to hand on is not set.
    #[error("the environment variable {0} is to be handed on to replicas, but it is not set")]
    Unset(String),
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let variables = args.replica_env.iter().map(|text| variable(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
        let docker = (args.place == Place::Docker).then(|| containers(args.docker)).transpose()?;
        Ok(Self {
            docker,
            place: process::Settings {
                state: args.state,
                sockets: args.sockets,
                variables,
                processes: args.replica_processes.max(1),
                cache: args.cache_gib.saturating_mul(1 << 30),
            },
            on_stop: args.on_stop,
            grace: Duration::from_secs(args.grace_seconds),
        })
    }
}

fn containers(args: DockerArgs) -> Result<docker::Settings, Error> {
    let joined = |name: &String| name == "host" || name.starts_with("container:");
    if let Some(name) = args.replica_network.clone().filter(joined) {
        return Err(Error::Network(name));
    }
    if args.replica_labels.len() > MOST_LABELS {
        let last = args.replica_labels.into_iter().next_back().unwrap_or_default();
        return Err(Error::Label(last, "there are more than 32"));
    }
    Ok(docker::Settings {
        labels: args.replica_labels.iter().map(|text| label(text)).collect::<Result<_, _>>()?,
        engine: args.docker_host,
        user: args.replica_user,
        network: args.replica_network,
        login: args.registry_login,
        host_state: args.host_state,
    })
}

fn label(text: &str) -> Result<(String, String), Error> {
    let wrong = |why| Error::Label(text.to_owned(), why);
    let (key, value) = text.split_once('=').ok_or_else(|| wrong("write KEY=VALUE"))?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    match key {
        "" => Err(wrong("it has no key")),
        key if !key.bytes().all(known) => Err(wrong("a key has letters, digits, dots, dashes and slashes")),
        // By these a deployer knows its own; one that could be chosen could be another's.
        key if key.starts_with("io.kaai.") => Err(wrong("io.kaai. is for kaai's own labels")),
        _ if text.len() > LONGEST_LABEL => Err(wrong("it is longer than 1024 bytes")),
        _ => Ok((key.to_owned(), value.to_owned())),
    }
}

fn variable(text: &str) -> Result<(String, String), Error> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Error::Variable(text.to_owned()));
    }
    #[expect(clippy::disallowed_methods, reason = "the name is a setting, read here as all settings are")]
    let value = value.or_else(|| std::env::var(name).ok());
    Ok((name.to_owned(), value.ok_or_else(|| Error::Unset(name.to_owned()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, Error> {
        Args::try_parse_from([&["kaai-deployer"], more].concat()).unwrap().try_into()
    }

    #[test]
    fn the_defaults_leave_replicas_running() {
        let config = config(&[]).unwrap();
        assert_eq!((config.on_stop, config.grace), (OnStop::Leave, Duration::from_secs(10)));
        assert!(config.place.variables.is_empty() && config.docker.is_none());
    }

    #[test]
    fn variables_for_replicas_are_given_or_handed_on() {
        let config = config(&["--replica-env", "A=b=c,PATH", "--replica-env", "HTTPS_PROXY="]).unwrap();
        assert_eq!(config.place.variables["A"], "b=c");
        assert!(!config.place.variables["PATH"].is_empty());
        assert_eq!(config.place.variables["HTTPS_PROXY"], "");
    }

    #[test]
    fn a_variable_that_cannot_be_is_refused() {
        assert!(matches!(config(&["--replica-env", "=x"]), Err(Error::Variable(_))));
        assert!(matches!(config(&["--replica-env", "KAAI_NO_SUCH_VARIABLE"]), Err(Error::Unset(_))));
    }

    #[test]
    fn replicas_are_containers_where_that_is_said() {
        let docker = config(&["--place", "docker", "--replica-user", "7:8", "--host-state", "/srv/kaai"])
            .unwrap()
            .docker
            .unwrap();
        assert_eq!(docker.user, Some(docker::User { uid: 7, gid: 8 }));
        assert_eq!(docker.host_state, Some(docker::HostState::Folder("/srv/kaai".into())));
        assert!(docker.engine.starts_with("unix://"));
    }

    #[test]
    fn replicas_are_neither_root_nor_joined_to_the_host() {
        for user in ["0:5", "5:0", "nobody", "5"] {
            assert!(Args::try_parse_from(["kaai-deployer", "--replica-user", user]).is_err(), "{user}");
        }
        for network in ["host", "container:x"] {
            assert!(matches!(config(&["--place", "docker", "--replica-network", network]), Err(Error::Network(_))));
        }
    }

    #[test]
    fn a_label_may_be_added_but_none_of_kaais_own() {
        let labels = |more: &[&str]| {
            config(&[&["--place", "docker"], more].concat()).map(|config| config.docker.unwrap().labels)
        };
        let labelled = labels(&["--replica-label", "a.b/c=x=y,d=", "--replica-label", "e=f"]).unwrap();
        let expected = [("a.b/c", "x=y"), ("d", ""), ("e", "f")];
        assert_eq!(labelled, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        for wrong in ["a", "=x", "a b=c", "io.kaai.place=x", &format!("a={}", "x".repeat(1100))] {
            assert!(matches!(labels(&["--replica-label", wrong]), Err(Error::Label(..))), "{wrong}");
        }
        assert!(matches!(labels(&["--replica-label", &["a=b"; 33].join(",")]), Err(Error::Label(..))));
    }

    #[test]
    fn the_state_folder_on_the_host_may_be_a_volume() {
        let state =
            |text: &str| config(&["--place", "docker", "--host-state", text]).unwrap().docker.unwrap().host_state;
        assert_eq!(state("volume:kaai_deployer"), Some(docker::HostState::Volume("kaai_deployer".to_owned())));
        for wrong in ["", "volume:", "volume:a/b", "relative/folder"] {
            assert!(Args::try_parse_from(["kaai-deployer", "--host-state", wrong]).is_err(), "{wrong}");
        }
    }
}
