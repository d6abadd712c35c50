//! The words of kaai: the names, specifications, events and queries that the components exchange.
//!
//! This crate owns the contract and nothing else: what a word means, what it looks like in JSON, and which subject carries it.
//! It knows neither NATS nor tokio, reads no file and no clock, so that anything may depend on it.

pub mod bounds;
pub mod builder;
pub mod cli;
pub mod deployer;
pub mod envelope;
pub mod event;
pub mod failure;
pub mod id;
pub mod packager;
pub mod query;
pub mod router;
pub mod scaler;
pub mod schema;
pub mod secret;
pub mod spec;
pub mod subject;

/// Members of a document that this version does not know; they survive a read and a write.
pub type Extra = serde_json::Map<String, serde_json::Value>;
