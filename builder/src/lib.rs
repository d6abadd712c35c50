//! wip
mod conda;
mod docker;
pub mod environment;
pub mod identity;
mod pip;
mod plan;
mod secret;
