//! What a place does to make an environment: the one thing that differs between virtual environments, images and a test's pretence.

use std::future::Future;

use proto::{
    builder::{Image, Lookup, RegistryAsked, Scan},
    failure::Failure,
    id::EnvironmentHash,
    packager::RegistryLogin,
};

use crate::{build_log::BuildLog, environment::Definition, plan::Plan};

/// An environment, understood in terms of its place.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its identity there: a base image counts by what its name stands for now.
    pub hash: EnvironmentHash,
    /// What is to be done to make it.
    pub plan: Plan,
}

/// An environment that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Where it is.
    pub image: Image,
    /// The scan that it has passed; none where nobody scans.
    pub scan: Option<Scan>,
}

/// What was found of an environment without making it.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The environment, if it is there, and how it was had.
    pub made: Option<(Made, Lookup)>,
    /// The registries that were asked.
    pub asked: Vec<RegistryAsked>,
}

/// Makes environments, and says whether one is there.
///
/// One builder at a time makes an environment, but one that was thought dead may still be at it: what a maker does must not disturb
/// another making of the same environment, and an environment is there only when it is there whole.
pub trait Maker: Send + Sync + 'static {
    /// Settles what depends on this place: the identity, and what is to be done. The login is the user's own at the base image's registry.
    ///
    /// # Errors
    ///
    /// Fails when this place cannot give what is asked for, or cannot find out what it is.
    fn plan(
        &self,
        definition: Definition,
        login: Option<RegistryLogin>,
    ) -> impl Future<Output = Result<Planned, Failure>> + Send;

    /// Makes an environment, and has it scanned where this place asks for that. Dropping the future stops it and all that it has started.
    ///
    /// # Errors
    ///
    /// Fails with cause and remedy; nothing of the environment can be found afterwards.
    fn make(
        &self,
        hash: &EnvironmentHash,
        plan: &Plan,
        log: &BuildLog,
    ) -> impl Future<Output = Result<Made, Failure>> + Send;

    /// Whether an environment that was made can be used now: it is there, and has passed the scan that this place asks for.
    ///
    /// # Errors
    ///
    /// Fails when that cannot be found out.
    fn is_there(&self, made: &Made) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// An environment that is there though nobody remembers making it: the bus lost its files, the builder died just before it said so,
    /// or it was made elsewhere.
    ///
    /// # Errors
    ///
    /// Fails when that cannot be found out, and making it would be no use either.
    fn find(
        &self,
        hash: &EnvironmentHash,
        plan: &Plan,
        log: &BuildLog,
    ) -> impl Future<Output = Result<Found, Failure>> + Send;
}
