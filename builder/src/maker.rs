//! What a place does to make an environment: the one thing that differs between virtual environments, images and a test's pretence.

use std::future::Future;

use proto::{builder::Image, failure::Failure, id::EnvironmentHash};

use crate::{build_log::BuildLog, plan::Plan};

/// Makes environments, and says whether one is there.
///
/// One builder at a time makes an environment, but one that was thought dead may still be at it: what a maker does must not disturb
/// another making of the same environment, and an environment is there only when it is there whole.
pub trait Maker: Send + Sync + 'static {
    /// Makes an environment. Dropping the future stops it and all that it has started.
    ///
    /// # Errors
    ///
    /// Fails with cause and remedy; nothing of the environment can be found afterwards.
    fn make(
        &self,
        hash: &EnvironmentHash,
        plan: &Plan,
        log: &BuildLog,
    ) -> impl Future<Output = Result<Image, Failure>> + Send;

    /// Whether an environment that was made can be used now.
    fn is_there(&self, image: &Image) -> impl Future<Output = bool> + Send;

    /// An environment that is there though nobody remembers making it: the bus lost its files, or the builder died just before it said so.
    fn find(&self, hash: &EnvironmentHash) -> impl Future<Output = Option<Image>> + Send;
}
