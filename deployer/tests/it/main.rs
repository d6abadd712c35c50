//! Tests of the deployer from outside: its backends, and its loop on a real bus.

mod backends;
mod place;
mod replicas;
