//! The builder: hears `project.packaged`, finds the environment of the project by its hash or builds it once, and says `image.resolved`,
//! or `deployment.failed` with the cause.
//!
//! - An environment's identity is what it means, not how it is written ([`identity`]).
//! - One build at a time for one environment, however many builders and requests there are: the record in the bucket `kaai_environments`
//!   is a lease while somebody builds, then the answer for everybody else. A builder that dies is replaced when its lease lapses.
//! - A failure is remembered with an expiry, so that the twentieth request does not wait for what the first has found out.
//! - A request is acknowledged after what follows from it is kept. Killed anywhere, the builder is asked again and gets the same answer.
//!
//! How an environment is made is behind [`maker::Maker`]; [`venv::Venv`] makes virtual environments on this machine.

pub mod build_log;
mod conda;
pub mod config;
mod decide;
mod diagnosis;
mod docker;
pub mod environment;
mod flight;
pub mod identity;
pub mod maker;
mod metrics;
mod pip;
pub mod plan;
mod process;
mod question;
mod request;
mod service;
pub mod venv;

use runtime::Runtime;

pub use crate::{
    config::{Args, Config},
    service::serve,
};

/// Why the builder could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] runtime::bus::Error),
    /// uv cannot be used.
    #[error(transparent)]
    Uv(#[from] venv::UvError),
    /// The folder of the environments cannot be used.
    #[error("the folder {folder} for environments cannot be made: {source}; choose another with --environments")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs the builder of this place until shutdown.
///
/// # Errors
///
/// Fails when uv is not there, the folder of the environments cannot be made, or the bus could not be had.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let maker = config.maker();
    let uv = maker.check().await?;
    maker.prepare().await?;
    tracing::info!(uv, environments = %maker.environments.display(), "environments are made here");
    serve(maker, config.limits(), rt).await
}
