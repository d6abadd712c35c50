//! The scaler: decides how many replicas a service needs.
//!
//! It hears `service.utilization` from every router (core NATS, at most once), `scale.requested` and `deployment.deleted`, and
//! says `scale.requested`, which the deployer carries out. It reads no route and asks nobody: all that a decision needs
//! is in the events, and all state is rebuilt from the next ones. Any number of instances may run: one decides, by a lease in
//! the bucket `kaai_leases`; the others hear the same events and are ready to go on within three seconds.
//!
//! What holds, always:
//!
//! - Unknown is not zero: nothing is scaled down unless every router that spoke within the time a scale-down needs speaks now.
//! - A number asked for lies within the bounds of the service; a fixed number is never touched.
//! - Old, late and repeated news moves nothing.
//! - A decision is an event with its inputs and its reason; it is absolute, and void for another generation, so that
//!   carrying it out twice, or late, does no harm that the next second does not mend.
//!
//! The core is [`decide::Scaler`], a function of time and events without a clock or a bus.

mod aggregate;
mod config;
pub mod decide;
mod lease;
mod metrics;
mod pace;
mod rule;
mod service;
mod watched;
mod window;

pub use aggregate::{Dropped, Facts, Load, MAX_ROUTERS, Unknown, View};
pub use config::{Args, Config, Error as ConfigError};
pub use rule::Demand;
pub use service::run;

/// Why the scaler had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] runtime::bus::Error),
}
