//! deployer
pub mod backend;
pub mod conformance;
pub mod decide;
pub mod diagnose;
pub mod fake;
pub mod keys;
pub mod process;
