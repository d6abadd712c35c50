//! The builder: hears `project.packaged`, finds the environment of the project by its hash or builds it once, and says `image.resolved`,
//! or `deployment.failed` with the cause.
//!
//! - An environment's identity is what it means, not how it is written ([`identity`]).
//! - One build at a time for one environment, however many builders and requests there are: the record in the bucket `kaai_environments`
//!   is a lease while somebody builds, then the answer for everybody else. A builder that dies is replaced when its lease lapses.
//! - A failure is remembered with an expiry, so that the twentieth request does not wait for what the first has found out.
//! - A request is acknowledged after what follows from it is kept. Killed anywhere, the builder is asked again and gets the same answer.
//!
//! How an environment is made is behind [`maker::Maker`]: virtual environments on this machine, or images in a registry.

pub mod build_log;
mod bytecode;
mod conda;
mod conda_packages;
pub mod config;
pub mod conformance;
mod decide;
mod diagnosis;
mod disk;
mod docker;
pub mod environment;
mod flight;
pub mod identity;
pub(crate) mod image;
mod kept;
pub mod maker;
mod metrics;
mod pip;
pub mod plan;
mod process;
mod question;
mod request;
mod sbom;
mod scan;
mod service;
mod uv;
pub mod venv;

use runtime::{
    Runtime,
    sealing::{self, KeyPair},
};

pub use crate::{
    config::{Args, Config},
    image::Images,
    service::serve,
    uv::UvError,
};

/// Why the builder could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] runtime::bus::Error),
    /// The builder's own key cannot be used.
    #[error(transparent)]
    Key(#[from] sealing::Error),
    /// uv cannot be used.
    #[error(transparent)]
    Uv(#[from] UvError),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
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
    let venv = config.venv(&rt.store);
    let uv = venv.uv.check().await?;
    venv.prepare().await?;
    let keys = KeyPair::open(&venv.environments.join("builder.seed"))?;
    let environments = venv.environments.display();
    match config.images(&rt.store)? {
        Some(images) => {
            tracing::info!(uv, %environments, "environments are made here, and pushed as images");
            serve(images, config.limits(), keys, rt).await
        }
        None => {
            tracing::info!(uv, %environments, "environments are made here");
            serve(venv, config.limits(), keys, rt).await
        }
    }
}
