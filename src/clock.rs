//! The one file that reads the clock.
//!
//! Everything else takes time as an argument or asks here, so that a rule that depends on time can be
//! tested under a virtual one. Wall time is for people (history records) only: no decision rests on it.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The present moment of the monotonic clock.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds of the monotonic clock since this process first asked.
///
/// Fits in atomics that several threads share; never goes back.
pub fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = now().duration_since(*START.get_or_init(now));
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 of the wall clock, for records that people read.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
