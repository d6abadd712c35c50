//! The builder as a whole: on a real bus with a maker that only pretends, and with uv.

#![expect(clippy::unwrap_used, reason = "this is a test from end to end")]

mod conda;
mod conformance;
mod front;
mod ground;
mod harness;
mod images;
mod requests;
mod scan;
mod single_flight;
mod uv;
