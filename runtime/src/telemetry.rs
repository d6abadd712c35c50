//! Logs and metrics.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::registry::Registry;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Sends logs to a file, to which they are appended, as lines for people: for a program whose terminal belongs to its user.
///
/// # Errors
///
/// Fails when the file cannot be opened.
pub fn init_file(path: &Path, filter: &str) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let layer = fmt::layer().with_writer(Mutex::new(file)).with_target(false).with_ansi(false);
    let _already_there = tracing_subscriber::registry().with(filter).with(layer).try_init();
    Ok(())
}

/// Sends logs to standard error. A second call changes nothing, so that a test may start many components.
///
/// A filter that cannot be read is replaced by `info`, with a warning.
pub fn init(format: LogFormat, filter: &str) {
    let (parsed, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let registry = tracing_subscriber::registry().with(parsed);
    let _already_there = match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(filter, %error, "the log filter cannot be read; using info");
    }
}

/// The metrics of one component, all named `kaai_<component>_…`.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// An empty set.
    pub fn new(component: &str) -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix(format!("kaai_{component}")))))
    }

    /// Adds metrics; the closure gets the registry.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes all metrics in the text format of OpenMetrics 1.0, without the end mark, so that several sets can follow each other.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text.trim_end_matches("# EOF\n").to_owned(),
            Err(_) => String::new(),
        }
    }
}
