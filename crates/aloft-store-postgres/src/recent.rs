//! What this process committed lately to the logs of runs that somebody watches here: its watchers are told from memory, and
//! Postgres is asked only for what others committed.
//!
//! Events are kept without a gap, so what follows a number that is kept, or precedes the first that is, is the log. A commit
//! of another process leaves a gap before the next of this one, and what was kept is dropped. States are as the last event
//! that is kept left them: whoever knows of a later one reads.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use aloft_core::{ActionName, ActionState, RunKey};
use aloft_store::Logged;
use parking_lot::Mutex;

use crate::batch::Commit;

/// Events of one run that are kept, and as many states.
const OF_RUN: usize = 2048;

/// Events of all runs that are kept: some 30 MB with the states.
const OF_ALL: usize = 16_384;

/// Runs of which something is kept.
const RUNS: usize = 4096;

/// What is kept of one run.
#[derive(Default)]
struct Tail {
    events: VecDeque<Arc<Logged>>,
    states: HashMap<ActionName, ActionState>,
    /// Whether something has ended above what lives, so that what is shown differs from what is recorded.
    lost: bool,
}

/// What is kept of all runs.
#[derive(Default)]
pub(crate) struct Recent(Mutex<HashMap<RunKey, Tail>>);

impl Recent {
    /// Keeps what a commit did to runs that are watched, and forgets those that are not.
    pub(crate) fn note(&self, commit: &Commit<'_>, is_watched: impl Fn(&RunKey) -> bool) {
        let mut tails = self.0.lock();
        let mut watched: HashMap<&RunKey, bool> = HashMap::new();
        for (run, logged) in commit.events() {
            if !*watched.entry(run).or_insert_with(|| is_watched(run)) {
                tails.remove(run);
                continue;
            }
            if !tails.contains_key(run) {
                tails.insert(run.clone(), Tail::default());
            }
            let Some(tail) = tails.get_mut(run) else { continue };
            if tail.events.back().is_some_and(|last| last.seq + 1 != logged.seq) {
                *tail = Tail { lost: tail.lost, ..Tail::default() };
            }
            tail.events.push_back(Arc::clone(logged));
        }
        for (run, state, open_children) in commit.states() {
            let Some(tail) = tails.get_mut(run) else { continue };
            tail.lost |= state.phase.is_terminal() && open_children > 0;
            tail.states.insert(state.name.clone(), state.clone());
        }
        for run in watched.into_keys() {
            let Some(tail) = tails.get_mut(run) else { continue };
            let surplus = tail.events.len().saturating_sub(OF_RUN);
            tail.events.drain(..surplus);
            if tail.states.len() > OF_RUN {
                tail.states.clear();
            }
        }
        if tails.len() > RUNS || tails.values().map(|tail| tail.events.len()).sum::<usize>() > OF_ALL {
            tails.clear();
        }
    }

    /// Forgets runs that others have changed.
    pub(crate) fn forget<'r>(&self, runs: impl Iterator<Item = &'r RunKey>) {
        let mut tails = self.0.lock();
        for run in runs {
            tails.remove(run);
        }
    }

    /// Up to `limit` events after number `seq`, if they are kept and there are any.
    pub(crate) fn events_after(&self, run: &RunKey, seq: u64, limit: usize) -> Option<Vec<Logged>> {
        let tails = self.0.lock();
        let events = &tails.get(run)?.events;
        let (first, last) = (events.front()?.seq, events.back()?.seq);
        if last <= seq || first > seq + 1 {
            return None;
        }
        let skip = usize::try_from(seq + 1 - first).ok()?;
        Some(events.iter().skip(skip).take(limit).map(|logged| Logged::clone(logged)).collect())
    }

    /// These actions as they are shown, with all events up to number `upto`, if all of them are kept.
    pub(crate) fn states(&self, run: &RunKey, names: &[ActionName], upto: u64) -> Option<Vec<ActionState>> {
        let tails = self.0.lock();
        let tail = tails.get(run)?;
        if tail.lost || tail.events.back()?.seq < upto {
            return None;
        }
        names.iter().map(|name| tail.states.get(name).cloned()).collect()
    }
}
