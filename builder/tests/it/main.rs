//! The builder as a whole: on a real bus with a maker that only pretends, and with uv.

mod harness;
mod requests;
mod single_flight;
mod uv;
