//! deployer
pub mod backend;
pub mod decide;
pub mod diagnose;
