//! The clock that everything else is given.

use std::time::{SystemTime, UNIX_EPOCH};

use aloft_core::Time;

/// The time now.
pub(crate) fn clock() -> Time {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else is given")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
