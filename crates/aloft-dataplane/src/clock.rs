//! The time of day.

use jiff::Timestamp;

/// The time of day on this machine, for logs and records. Nothing is decided by it: what was seen is written down with
/// when it was seen.
#[expect(clippy::disallowed_methods, reason = "the one place of the executor that reads the clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
