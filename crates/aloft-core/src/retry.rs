//! When a failed attempt is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often an attempt may be lost to the platform (crash of a worker, lost lease) before the action fails.
///
/// Three is what Flyte's executor allows (`executor.maxSystemFailures`), and users' expectations are set by it. Counted
/// over the life of the action, not consecutively: an action that keeps killing its machine must end.
pub const MAX_SYSTEM_FAILURES: u32 = 3;

/// Pause before a system retry. Short: the cause is usually gone at once (a restart), and three tries bound the rest.
const SYSTEM_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause that a declared backoff can reach when it sets no cap.
const DEFAULT_CAP: Duration = Duration::from_secs(3600);

/// The declared pause between user retries (`flyteidl2.core.Backoff`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// Pause before the first retry, in milliseconds.
    pub base_ms: u64,
    /// Each further pause is this many times the one before; 1 if not declared.
    pub factor: f64,
    /// Longest pause, in milliseconds; an hour if not declared.
    pub cap_ms: Option<u64>,
}

impl Backoff {
    /// The pause before retry number `retry` (1 for the first).
    pub fn pause(&self, retry: u32) -> Duration {
        let cap = self.cap_ms.map_or(DEFAULT_CAP, Duration::from_millis);
        let factor = if self.factor.is_finite() && self.factor >= 1.0 { self.factor } else { 1.0 };
        let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
        let ms = self.base_ms as f64 * factor.powi(exponent);
        if ms.is_finite() && ms < cap.as_millis() as f64 { Duration::from_millis(ms as u64) } else { cap }
    }
}

/// The pause before the next attempt after `failures` user failures, or `None` when the declared retries are used up.
pub(crate) fn after_user_failure(retries: u32, backoff: Option<&Backoff>, failures: u32) -> Option<Duration> {
    (failures <= retries).then(|| backoff.map_or(Duration::ZERO, |b| b.pause(failures)))
}

/// The pause before the next attempt after `failures` system failures, or `None` when there were too many.
pub(crate) fn after_system_failure(failures: u32) -> Option<Duration> {
    (failures <= MAX_SYSTEM_FAILURES).then_some(SYSTEM_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap() {
        let b = Backoff { base_ms: 100, factor: 2.0, cap_ms: Some(350) };
        let pauses: Vec<_> = (1..=4).map(|n| b.pause(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 350, 350]);
        let absurd = Backoff { base_ms: u64::MAX, factor: f64::INFINITY, cap_ms: None };
        assert_eq!(absurd.pause(u32::MAX), DEFAULT_CAP);
    }

    #[test]
    fn retries_are_counted_from_the_first_failure() {
        assert_eq!(after_user_failure(0, None, 1), None);
        assert_eq!(after_user_failure(1, None, 1), Some(Duration::ZERO));
        assert_eq!(after_user_failure(1, None, 2), None);
        assert!(after_system_failure(MAX_SYSTEM_FAILURES).is_some());
        assert!(after_system_failure(MAX_SYSTEM_FAILURES + 1).is_none());
    }
}
