//! Sessions of workers: who may hold leases, how a session begins, and when it is over. Decisions are pure; what they
//! decide is written only in place of the record that they were made on, so any number of control planes may make them.

use std::{collections::HashMap, time::Duration};

use aloft_core::WorkerId;
use aloft_store::WorkerRecord;
use tokio::time::Instant;

/// What to do with a worker that wants to begin a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// Begin one. What it holds stays its own.
    Begin,
    /// It was given up: first requeue what it still holds, then begin one.
    BeginAnew,
    /// Another process has its name, and lives.
    Displaced,
}

/// Decides how a session of `process` begins when its worker's record is `found`. `known` says whether this process has had a
/// session before: one that is new takes the place of the process before it, one that is not has lost it.
pub(crate) fn opening(found: Option<&WorkerRecord>, process: u64, known: bool) -> Opening {
    match found {
        None => Opening::Begin,
        Some(record) if record.expired => Opening::BeginAnew,
        Some(record) if record.session != 0 && record.about.process != process && known => Opening::Displaced,
        Some(_) => Opening::Begin,
    }
}

/// What one control plane has seen of workers' signs of life.
///
/// Times are its own and steady, never the records': a clock that steps ends no session. And it counts only what it could
/// see: after a gap between two looks, in which it or the database was away, everybody has the whole time again.
#[derive(Debug, Default)]
pub struct Vigil {
    /// The last number of each worker's record, and since when it is that.
    seen: HashMap<WorkerId, (u64, Instant)>,
    looked: Option<Instant>,
}

impl Vigil {
    /// How far apart two looks are, of workers that must be heard of every `lease`.
    pub(crate) fn interval(lease: Duration) -> Duration {
        (lease / 10).clamp(Duration::from_millis(50), Duration::from_secs(5))
    }

    /// Takes a look at all records, and says which of them have not changed for `lease`.
    pub(crate) fn look<'r>(
        &mut self,
        now: Instant,
        records: &'r [WorkerRecord],
        lease: Duration,
    ) -> Vec<&'r WorkerRecord> {
        // Looks that are late by no more than this are slow, not blind: signs of life come three to a lease.
        let blind = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) > lease / 3);
        if blind {
            self.seen.clear();
        }
        self.looked = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut silent = Vec::new();
        for record in records.iter().filter(|r| !r.expired) {
            let since = match before.get(&record.id) {
                Some((beat, since)) if *beat == record.beat => *since,
                _ => now,
            };
            if now.saturating_duration_since(since) >= lease {
                silent.push(record);
            }
            self.seen.insert(record.id.clone(), (record.beat, since));
        }
        silent
    }

    /// Forgets what was seen: everybody has the whole time again.
    pub(crate) fn reset(&mut self) {
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use aloft_store::AboutWorker;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn record(name: &str, beat: u64) -> WorkerRecord {
        let about = AboutWorker { process: 1, ..AboutWorker::default() };
        WorkerRecord { id: WorkerId(name.into()), session: 9, beat, expired: false, about }
    }

    fn names(silent: &[&WorkerRecord]) -> Vec<String> {
        silent.iter().map(|r| r.id.0.clone()).collect()
    }

    #[test]
    fn a_process_takes_the_place_of_the_one_before_and_of_no_other() {
        let there = record("w", 1);
        assert_eq!(opening(None, 1, false), Opening::Begin);
        assert_eq!(opening(Some(&there), 1, true), Opening::Begin, "it connects again");
        assert_eq!(opening(Some(&there), 1, false), Opening::Begin, "its welcome was lost");
        assert_eq!(opening(Some(&there), 2, false), Opening::Begin, "it was started anew");
        assert_eq!(opening(Some(&there), 2, true), Opening::Displaced);
        let expired = WorkerRecord { expired: true, ..there.clone() };
        for (process, known) in [(1, true), (2, false), (2, true)] {
            assert_eq!(opening(Some(&expired), process, known), Opening::BeginAnew);
        }
        let placeholder = WorkerRecord { session: 0, about: AboutWorker::default(), ..there };
        assert_eq!(opening(Some(&placeholder), 2, true), Opening::Begin, "nobody has said that name");
    }

    #[test]
    fn who_is_silent_for_a_lease_is_told_from_who_is_not() {
        let (mut vigil, start) = (Vigil::default(), Instant::now());
        for second in 0..30_u64 {
            let records = [record("dead", 5), record("live", second / 10)];
            assert!(vigil.look(start + Duration::from_secs(second), &records, LEASE).is_empty(), "{second}");
        }
        let records = [record("dead", 5), record("live", 3)];
        assert_eq!(names(&vigil.look(start + LEASE, &records, LEASE)), ["dead"]);
        assert_eq!(names(&vigil.look(start + LEASE, &records, LEASE)), ["dead"], "until somebody says so");
        let said = [WorkerRecord { expired: true, ..record("dead", 6) }];
        assert!(vigil.look(start + LEASE, &said, LEASE).is_empty());
    }

    #[test]
    fn nobody_is_judged_by_a_time_in_which_nobody_looked() {
        let (mut vigil, start) = (Vigil::default(), Instant::now());
        let records = [record("w", 1)];
        let look = |vigil: &mut Vigil, second: u64| {
            !vigil.look(start + Duration::from_secs(second), &records, LEASE).is_empty()
        };
        for second in [0, 9, 18, 27] {
            assert!(!look(&mut vigil, second));
        }
        // The database was away for ten minutes: everybody may come back.
        for second in [627, 636, 645, 654] {
            assert!(!look(&mut vigil, second), "{second}");
        }
        assert!(look(&mut vigil, 657), "and who does not is gone");
        vigil.reset();
        assert!(!look(&mut vigil, 658));
    }
}
