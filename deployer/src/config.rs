//! The deployer's settings: as typed ([`Args`]) and as checked ([`Config`]).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use runtime::config::CommonArgs;

use crate::process;

/// Makes the world match the desired state of services.
///
/// Hears `image.resolved`, `scale.requested`, `deployment.delete` and `deployment.failed`, runs replicas as processes of this machine,
/// and writes the routes that routers go by.
#[derive(Debug, Parser)]
#[command(name = "kaai-deployer", version)]
pub struct Args {
    /// Settings of every component.
    #[command(flatten)]
    pub common: CommonArgs,
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
    /// Size of the cache of fetched archives, in GiB
    #[arg(long, env = "KAAI_DEPLOYER_CACHE_GIB", default_value_t = 10)]
    pub cache_gib: u64,
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
    /// What becomes of the replicas when the deployer stops.
    pub on_stop: OnStop,
    /// How long a replica may take to finish what it has in hand when it is stopped.
    pub grace: Duration,
}

impl Config {
    /// The usual settings over a state folder: replicas are left running when the deployer stops.
    pub fn new(state: PathBuf) -> Self {
        Self { place: process::Settings::new(state), on_stop: OnStop::Leave, grace: Duration::from_secs(10) }
    }
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable for replicas has no valid name.
    #[error("{0:?} names no environment variable; write NAME=VALUE or NAME")]
    Variable(String),
    /// A variable to hand on is not set.
    #[error("the environment variable {0} is to be handed on to replicas, but it is not set")]
    Unset(String),
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let variables = args.replica_env.iter().map(|text| variable(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
        Ok(Self {
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
        assert!(config.place.variables.is_empty());
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
}
