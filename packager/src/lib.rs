//! The packager: turns a project into an archive and a complete specification.
//!
//! It hears `deployment.requested` and says `project.packaged`, or `deployment.failed` with stage, cause and remedy. On the way it finds
//! the project's files ([`walk`]) by its ignore rules, reads what Azure ML v1 would have read ([`project`]), writes a zip that depends on
//! content alone ([`archive`]), stores it under its digest, and registers models. It answers questions about uploads and models.
//!
//! What holds, always:
//!
//! - Done twice, a request gives the same archive, the same models and the same event.
//! - An archive that is stored already is not written again.
//! - No plain key leaves this crate: keys of a deployment configuration are encrypted to the deployer (`runtime::sealing`).
//!
//! The command line uses the same library to read and pack a project on its user's machine.

pub mod archive;
mod config;
mod decide;
mod deflate;
mod ignore;
mod job;
mod lease;
mod metrics;
mod needs;
mod pattern;
pub mod project;
mod prune;
mod registry;
mod service;
mod shelf;
mod source;
mod trouble;
pub mod upload;
pub mod walk;
mod work;
mod zip;

pub use config::{Args, Config, Error as ConfigError};
pub use job::root_entry;
pub use service::run;
pub use source::check_git;
pub use trouble::{not_packed, walked};

/// Why the packager had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] runtime::bus::Error),
    /// The folder for work cannot be written.
    #[error("the folder {folder} for work cannot be used: {source}")]
    Work {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
