//! The data path on real sockets against replicas that behave as a test wants, and once with a real bus.

#![expect(clippy::unwrap_used, reason = "what a test stands on is there, or the test fails")]

mod access;
mod bus;
mod draining;
mod failures;
mod framing;
mod headers;
mod held;
mod limits;
mod payloads;
mod replica;
mod shutdown;
mod world;
