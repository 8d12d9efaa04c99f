//! States that a writer keeps from one batch to the next, so that the commands of an action's life read it once.
//!
//! What is kept of a run is used only while the batch holds the lock on the run's row, and only if the row says that nothing
//! was appended to its log since: every change of an action is an event, so the number of the last one tells. Whoever else
//! has changed the run, here or elsewhere, has changed that number.

use std::collections::{BTreeSet, HashMap};

use aloft_core::{ActionName, RunKey};
use aloft_store::Submission;

use super::{
    decide::Decided,
    load::{Known, RunRow, Stored},
    write::ACTIONS,
};

/// Most actions that one writer keeps: some 12 MB.
const MAX_KEPT: usize = 8192;

struct KeptRun {
    id: i64,
    seq: u64,
    actions: HashMap<ActionName, Stored>,
}

/// What one writer keeps.
#[derive(Default)]
pub(super) struct Kept {
    runs: HashMap<RunKey, KeptRun>,
}

impl Kept {
    /// What is known of a run whose row is locked; nothing of it is kept then, until [`Kept::keep`].
    pub(super) fn take(&mut self, key: &RunKey, row: &RunRow) -> HashMap<ActionName, Stored> {
        match self.runs.remove(key) {
            Some(run) if run.id == row.id && run.seq == row.seq => run.actions,
            _ => HashMap::new(),
        }
    }

    /// What the commands touch and is not kept, of runs whose numbers are known. A guess, made before the runs are locked:
    /// what is kept may turn out to be of no use, and what is asked for by a number that has changed is not found.
    pub(super) fn missing(&self, submissions: &[Submission]) -> BTreeSet<(i64, ActionName)> {
        let mut missing = BTreeSet::new();
        for submission in submissions {
            let Some(run) = self.runs.get(&submission.run) else { continue };
            let touched = submission.command.touches().into_iter().chain([ActionName::root()]);
            missing.extend(touched.filter(|name| !run.actions.contains_key(name)).map(|name| (run.id, name)));
        }
        missing
    }

    /// Keeps what a batch has left, once it is committed.
    pub(super) fn keep(&mut self, known: Known, decided: Decided, ids: &HashMap<RunKey, i64>) {
        let Known { runs, mut actions, .. } = known;
        let Decided { runs: changed_runs, actions: changed, .. } = decided;
        for (key, changed) in changed {
            let Some(run_id) = ids.get(&key).copied() else { continue };
            let known = actions.entry(key).or_default();
            for (name, changed) in changed {
                let id = changed.new.map(|n| run_id * ACTIONS + n).or_else(|| known.get(&name).map(|s| s.id));
                if changed.state.phase.is_terminal() && changed.open_children == 0 {
                    known.remove(&name);
                } else if let Some(id) = id {
                    known.insert(name, Stored { id, state: changed.state, open_children: changed.open_children });
                }
            }
        }
        let size = |actions: &HashMap<ActionName, Stored>| actions.len();
        let kept: usize = self.runs.values().map(|run| size(&run.actions)).sum();
        if kept + actions.values().map(size).sum::<usize>() > MAX_KEPT {
            self.runs.clear();
        }
        for (key, actions) in actions {
            let id = ids.get(&key).copied().or_else(|| runs.get(&key).map(|r| r.id));
            let seq = changed_runs.get(&key).map(|r| r.seq).or_else(|| runs.get(&key).map(|r| r.seq));
            let (Some(id), Some(seq)) = (id, seq) else { continue };
            if !actions.is_empty() && actions.len() <= MAX_KEPT {
                self.runs.insert(key, KeptRun { id, seq, actions });
            }
        }
    }
}
