//! The one place where the wall clock is read.

use jiff::Timestamp;

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The time now, in UTC with milliseconds (RFC 3339).
pub fn now_rfc3339() -> String {
    format!("{:.3}", Timestamp::now())
}
