//! The time of day.

use jiff::Timestamp;

/// The time of day on this machine, for logs and records. Nothing is decided by it: what was seen is written down with
/// when it was seen.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
