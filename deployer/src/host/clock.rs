//! The clock that replicas and the deployer share.

/// Seconds of the clock that stands still while the machine sleeps; the same for all processes of one boot, in a container or not.
pub(super) fn monotonic() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
