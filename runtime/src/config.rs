//! The settings that components have in common: as typed ([`CommonArgs`], [`StoreArgs`]) and as checked ([`Settings`]).

mod credentials;
mod store;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use proto::id::InstanceId;

pub use self::{
    credentials::Credentials,
    store::{StoreArgs, StoreSettings},
};

/// Settings that every component has.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Address of the bus (NATS 2.12 or newer with JetStream)
    #[arg(long, env = "KAAI_BUS", default_value = "nats://127.0.0.1:4222")]
    pub bus: String,
    /// Name of this component's user on the bus
    #[arg(long, env = "KAAI_BUS_USER", requires = "bus_password_file")]
    pub bus_user: Option<String>,
    /// File that holds the password of that user
    #[arg(long, env = "KAAI_BUS_PASSWORD_FILE", requires = "bus_user")]
    pub bus_password_file: Option<PathBuf>,
    /// Address for /live, /ready and /metrics
    #[arg(long, env = "KAAI_ADMIN_ADDRESS", default_value = "127.0.0.1:0")]
    pub admin_address: SocketAddr,
    /// Ask the component at the admin address whether it is ready, and end: with 0 if it is (for health checks)
    #[arg(long)]
    pub is_ready: bool,
    /// Name of this instance among others of the same component [default: a new one at each start]
    #[arg(long, env = "KAAI_INSTANCE")]
    pub instance: Option<InstanceId>,
    /// Seconds that work in hand may take after SIGTERM
    #[arg(long, env = "KAAI_DRAIN_SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,
    /// How logs are written, to standard error
    #[arg(long, env = "KAAI_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,
    /// Which logs are written, in the syntax of tracing's EnvFilter
    #[arg(long, env = "KAAI_LOG", default_value = "info")]
    pub log_level: String,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// Checked settings of a component's runtime.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the bus.
    pub bus: BusSettings,
    /// The object store, for a component that uses one.
    pub store: Option<StoreSettings>,
    /// This process among others of the same component.
    pub instance: InstanceId,
    /// How long work in hand may take at the end.
    pub drain: Duration,
}

/// How to reach the bus.
#[derive(Clone)]
pub struct BusSettings {
    /// One or more addresses, separated by commas.
    pub address: String,
    /// User and password.
    pub login: Option<(String, String)>,
}

impl std::fmt::Debug for BusSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| user);
        f.debug_struct("BusSettings").field("address", &self.address).field("user", &user).finish_non_exhaustive()
    }
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The password file cannot be read.
    #[error("cannot read the password file {path}: {source}")]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl CommonArgs {
    /// Checks the settings and reads the password; the object store is added by whoever uses one.
    ///
    /// # Errors
    ///
    /// Fails when the password file cannot be read.
    pub fn settings(&self, component: &str) -> Result<Settings, Error> {
        let login = match (&self.bus_user, &self.bus_password_file) {
            (Some(user), Some(path)) => Some((user.clone(), read_password(path)?)),
            _ => None,
        };
        Ok(Settings {
            bus: BusSettings { address: self.bus.clone(), login },
            store: None,
            instance: self.instance.clone().unwrap_or_else(|| new_instance(component)),
            drain: Duration::from_secs(self.drain_seconds),
        })
    }
}

/// Reads a password from a file; a line end after it does not count.
///
/// # Errors
///
/// Fails when the file cannot be read.
pub fn read_password(path: &std::path::Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Password { path: path.to_owned(), source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A name for an instance of a component that no other has.
pub fn new_instance(component: &str) -> InstanceId {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{component}-{}", &unique[..8]).parse().expect("a component's name and eight digits are an instance id")
}
