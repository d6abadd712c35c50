//! The deployer: makes the world match the desired state of services, and says what is really there.
//!
//! # The contract
//!
//! Hears, as the durable consumer `deployer` of the stream of pipeline events:
//! - `image.resolved`: a generation can be started. It serves once all its replicas are ready; until then, and if it fails, the one before does.
//! - `scale.requested`: another number of replicas, or other bounds.
//! - `deployment.delete`: the service goes, and what was asked for before does not bring it back.
//! - `deployment.failed`: an earlier stage could not go on; it is kept in the service's record.
//!
//! Hears `service.utilization` over core NATS: which replicas the routers have emptied.
//!
//! Says `deployment.ready`, `deployment.failed` and `deployment.deleted`, each once a generation, and tells `deployment.progressed`.
//! Answers `get-keys`, `regenerate-key` and `get-log`.
//!
//! Owns the buckets `kaai_services` (desired state) and `kaai_routes` (what routers go by), and the entry `deployer.public-key` of `kaai_facts`.
//! One deployer works on a bus at a time.
//!
//! # The shape
//!
//! [`decide`] is pure and decides about one service; [`service`] is the loop that feeds it and does what it says; a [`backend::Backend`] runs
//! the replicas, [`process::ProcessBackend`] as processes, [`docker::DockerBackend`] as containers; [`keys`] seals, [`diagnose`] explains.
//! Both places share `host`: files, logs, probes and the life of a replica; behind its `Engine` is what differs.

pub mod backend;
pub mod config;
pub mod conformance;
pub mod decide;
pub mod diagnose;
pub mod docker;
pub mod fake;
mod host;
pub mod keys;
mod metrics;
pub mod process;
pub mod service;

use runtime::{Runtime, bus};

use crate::backend::Backend;

pub use crate::config::{Args, Config, OnStop};

/// The deployer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place for replicas cannot be used.
    #[error(transparent)]
    Place(#[from] host::Error),
    /// The Docker engine, or the place for containers, cannot be used.
    #[error(transparent)]
    Docker(#[from] docker::Error),
    /// The deployer's own key cannot be had.
    #[error(transparent)]
    Keys(#[from] keys::Error),
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// An entry of a bucket cannot be read; to go on would be to end its replicas.
    #[error(
        "the entry {key} of the bucket {bucket} cannot be read by this version of kaai; run a newer one, or delete the entry"
    )]
    Unreadable {
        /// The bucket.
        bucket: &'static str,
        /// The entry.
        key: String,
    },
}

/// Runs the deployer over the place that is chosen, until shutdown.
///
/// # Errors
///
/// Fails at the start, when its folder, the Docker engine or the bus cannot be used; afterwards it waits for what is away.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let (place, store, tasks) = (config.place.clone(), rt.store.clone(), rt.tasks.clone());
    match config.docker.clone() {
        None => serve(process::ProcessBackend::open(place, store, tasks).await?, config, rt).await,
        Some(docker) => serve(docker::DockerBackend::open(place, docker, store, tasks).await?, config, rt).await,
    }
}

async fn serve<E: host::engine::Engine>(backend: host::Host<E>, config: Config, rt: Runtime) -> Result<(), Error> {
    let keyring = keys::Keyring::open(&config.place.state.join("deployer.seed")).inspect_err(|_| backend.leave())?;
    let limits_enforced = backend.limits_missing().is_none();
    let options = service::Options { keyring, on_stop: config.on_stop, grace: config.grace, limits_enforced };
    service::run(backend, options, rt).await
}
