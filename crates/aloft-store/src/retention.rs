//! Which history is given up, and what goes with it: the part of [`crate::Store::prune`] that needs no database.
//!
//! A run is given up as a whole. What only it has goes with it: its actions, its log, its labels, the blobs that are marked
//! as its own. Blobs that runs share are counted by days: whenever an action refers to one, the store notes that the runs of
//! this place that were created on this day use it. A day of a place of which no run is left uses nothing any more, and a
//! blob that nothing uses is removed. So noting costs one row for each blob, place and day, however many runs there are.

use std::{collections::BTreeMap, time::Duration};

use aloft_core::{ActionState, Seed, Time};

/// How long runs are kept, counted from their end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Those of projects that are not named below; `None` is for ever.
    pub runs: Option<Duration>,
    /// Those of projects by their identifiers; `None` is for ever.
    pub projects: BTreeMap<String, Option<Duration>>,
}

impl Retention {
    /// Whether nothing is ever given up.
    pub fn is_forever(&self) -> bool {
        self.shortest().is_none()
    }

    /// The shortest time that any run is kept.
    pub fn shortest(&self) -> Option<Duration> {
        self.projects.values().chain([&self.runs]).flatten().min().copied()
    }

    /// How long runs of `project` are kept; `None` for ever.
    pub fn of(&self, project: &str) -> Option<Duration> {
        *self.projects.get(project).unwrap_or(&self.runs)
    }

    /// At `now`, what ended at this time or before is given up in `project`; `None` if nothing is.
    pub fn before(&self, project: &str, now: Time) -> Option<Time> {
        let kept = self.of(project)?;
        let kept = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
        Some(Time::from_micros(now.as_micros().saturating_sub(kept)))
    }
}

/// What one step of giving up history did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Runs that are gone for everybody since this step.
    pub runs: u64,
    /// Rows of actions removed, of those and of runs of earlier steps.
    pub actions: u64,
    /// Rows of logs removed, as above.
    pub events: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Whether another step may find more to do.
    pub more: bool,
}

impl Pruned {
    /// Adds what another step did.
    pub fn add(&mut self, other: Self) {
        let Self { runs, actions, events, blobs, more } = other;
        self.runs += runs;
        self.actions += actions;
        self.events += events;
        self.blobs += blobs;
        self.more = more;
    }
}

/// How long a walk rests after it has come to its end.
const REST: Duration = Duration::from_secs(3600);

/// A walk over rows that are looked at one after the other, some in each step, for what is no longer needed. It begins again
/// after a rest, if something has been given up since. Engines keep it in memory: whoever starts walks once.
#[derive(Debug)]
pub struct Walk<P> {
    at: Option<P>,
    ended: Option<Time>,
    wanted: bool,
}

impl<P> Default for Walk<P> {
    fn default() -> Self {
        Self { at: None, ended: None, wanted: true }
    }
}

impl<P: Clone> Walk<P> {
    /// Where to go on at `now`, from `start` if this is the beginning; `None` while it rests.
    pub fn place(&mut self, now: Time, start: P) -> Option<P> {
        if self.at.is_none() {
            let rests = self.ended.is_some_and(|ended| now < ended.plus(REST));
            if rests || !std::mem::take(&mut self.wanted) {
                return None;
            }
            self.at = Some(start);
        }
        self.at.clone()
    }

    /// It has come to `at`.
    pub fn go_on(&mut self, at: P) {
        self.at = Some(at);
    }

    /// It has come to its end.
    pub fn end(&mut self, now: Time) {
        (self.at, self.ended) = (None, Some(now));
    }

    /// There is a reason to walk again.
    pub fn want(&mut self) {
        self.wanted = true;
    }
}

/// How long a day is, in microseconds.
pub const DAY: i64 = 86_400_000_000;

/// The days before today whose uses of blobs are not looked at yet: a run that is created as a day ends may be committed when
/// the next has begun, and the clocks of machines differ.
pub const OPEN_DAYS: i64 = 1;

/// The number of the day on which a run was created, by which its uses of blobs are noted.
pub fn day(created_at: Time) -> i64 {
    created_at.as_micros().div_euclid(DAY)
}

/// The blob that an action refers to, if any: what it was declared as. Runs share it.
pub fn shared_blob(action: &ActionState) -> Option<&str> {
    let digest = match &action.seed {
        Seed::Task(task) => &task.task.digest,
        Seed::Trace(trace) => &trace.spec_digest,
        Seed::Condition(condition) => &condition.spec_digest,
    };
    Some(digest.as_str()).filter(|d| !d.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_own_time_goes_before_the_others() {
        let hour = Duration::from_secs(3600);
        let retention =
            Retention { runs: Some(hour), projects: [("a".to_owned(), Some(2 * hour)), ("b".to_owned(), None)].into() };
        let now = Time::from_micros(10 * 3_600_000_000);
        assert_eq!(retention.before("a", now), Some(Time::from_micros(8 * 3_600_000_000)));
        assert_eq!(retention.before("b", now), None);
        assert_eq!(retention.before("c", now), Some(Time::from_micros(9 * 3_600_000_000)));
        assert_eq!(retention.shortest(), Some(hour));
        assert!(!retention.is_forever());
        assert!(Retention::default().is_forever());
        let only = Retention { runs: None, ..retention };
        assert_eq!((only.before("c", now), only.shortest()), (None, Some(2 * hour)));
    }

    #[test]
    fn a_walk_rests_until_there_is_a_reason() {
        let at = |seconds: i64| Time::from_micros(seconds * 1_000_000);
        let mut walk = Walk::default();
        assert_eq!(walk.place(at(0), 1), Some(1), "whoever starts walks once");
        walk.go_on(5);
        assert_eq!(walk.place(at(1), 1), Some(5));
        walk.end(at(2));
        assert_eq!(walk.place(at(10_000), 1), None, "nothing was given up");
        walk.want();
        assert_eq!(walk.place(at(3), 1), None, "it rests");
        assert_eq!(walk.place(at(2 + 3600), 1), Some(1));
    }

    #[test]
    fn days_are_counted_from_the_epoch() {
        assert_eq!([-1, 0, DAY - 1, DAY].map(|at| day(Time::from_micros(at))), [-1, 0, 0, 1]);
    }
}
