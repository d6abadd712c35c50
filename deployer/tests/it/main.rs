//! Tests of the deployer from outside: its backends, and its loop on a real bus.

#![expect(clippy::unwrap_used, reason = "what a test stands on is there, or the test fails")]

mod backends;
mod bus;
mod containers;
mod dock;
mod place;
mod program;
mod registry;
mod replicas;
