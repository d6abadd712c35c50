//! Tests of the packager from outside, as the command line and the bus see it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod component;
mod full_disk;
mod ignore;
mod prune;
mod walk;
