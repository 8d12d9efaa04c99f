//! States that a writer keeps from one batch to the next, so that the commands of an action's life read it once.
//!
//! Nothing is committed by what is kept of a run unless the batch holds the lock on the run's row, and the row says that nothing
//! was appended to its log since: every change of an action is an event, so the number of the last one tells. Whoever else
//! has changed the run, here or elsewhere, has changed that number. A batch looks before it decides, or, where all that it looks
//! at is kept, after ([`super::guard`]).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use aloft_core::{ActionName, ActionState, Command, RunKey, TaskRef};
use aloft_store::Submission;

use super::{
    Learnt,
    decide::Decided,
    guard::Guard,
    load::{Known, Limited, Places, Queues, RunRow, Stored},
    write::ACTIONS,
};

/// Most actions that one writer keeps: some 12 MB.
const MAX_KEPT: usize = 8192;

/// How many batches in a row must have found a run as this writer left it before one is decided without looking. Where several
/// programs write to a run in turns, none of them ever is.
const QUIET: u8 = 4;

/// How long what limits new work is kept, and numbers for runs. What others add in this time is not seen; runs that others make
/// in it may have higher numbers than those that are made later here.
const MOMENT: Duration = Duration::from_millis(250);

/// The least depth that is kept: far more than others add while it is.
const DEEP: i64 = 4000;

/// How long it is known what is recorded of a run, and most of it.
const NOTED: (Duration, usize) = (Duration::from_secs(60), 64);

struct KeptRun {
    row: RunRow,
    actions: HashMap<ActionName, Stored>,
    noted: Noted,
}

/// What is known to be recorded of a run, and need not be again: it stays as long as the run does.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    since: Instant,
    /// Tasks that name it, or a newer run, as their latest.
    tasks: HashSet<TaskRef>,
    /// Blobs that it uses.
    blobs: HashSet<String>,
}

impl Default for Noted {
    fn default() -> Self {
        Self { since: Instant::now(), tasks: HashSet::new(), blobs: HashSet::new() }
    }
}

impl Noted {
    pub(super) fn has_task(&self, task: &TaskRef) -> bool {
        self.is_fresh() && self.tasks.contains(task)
    }

    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.is_fresh() && self.blobs.contains(digest)
    }

    /// Tasks may have been given another run since, if the newest was given up.
    fn is_fresh(&self) -> bool {
        self.since.elapsed() <= NOTED.0
    }

    /// Notes what an action that was written uses.
    fn add(&mut self, state: &ActionState) {
        if !self.is_fresh() || self.tasks.len() + self.blobs.len() > NOTED.1 {
            *self = Self::default();
        }
        if let Some(task) = state.task().map(|t| &t.task).filter(|task| !self.tasks.contains(task)) {
            self.tasks.insert(task.clone());
        }
        if let Some(digest) = aloft_store::shared_blob(state).filter(|digest| !self.blobs.contains(*digest)) {
            self.blobs.insert(digest.to_owned());
        }
    }
}

/// What limits new work, as it was a moment ago.
struct KeptLimits {
    since: Instant,
    revision: u64,
    of: Limited,
    queues: Queues,
    places: Places,
}

impl KeptLimits {
    /// Whether they are as good as those that would be read now: nothing is near a limit.
    fn cover(&self, of: &Limited) -> bool {
        let known = of.queues.is_subset(&self.of.queues) && of.scopes.is_subset(&self.of.scopes);
        let far = of.queues.iter().all(|queue| {
            // One that is not there does not limit anything.
            self.queues.get(queue).is_none_or(|(queue, held)| {
                let depth = i64::from(queue.spec.limits.depth.unwrap_or(aloft_core::DEFAULT_DEPTH));
                depth >= DEEP && (held.waiting + held.counted) * 2 < depth
            })
        });
        let free =
            of.scopes.iter().all(|s| self.places.get(s).is_none_or(|p| p.iter().all(|(l, _)| l.depth.is_none())));
        self.since.elapsed() < MOMENT && known && far && free
    }
}

/// What one writer keeps.
#[derive(Default)]
pub(super) struct Kept {
    runs: HashMap<RunKey, KeptRun>,
    limits: Option<KeptLimits>,
    numbers: Option<(Instant, Vec<i64>)>,
}

impl Kept {
    /// What is known of a run whose row is locked; nothing of it is kept then, until [`Kept::keep`].
    pub(super) fn take(&mut self, key: &RunKey, row: &mut RunRow) -> (HashMap<ActionName, Stored>, Noted) {
        match self.runs.remove(key) {
            Some(run) if run.row.id == row.id && run.row.seq == row.seq => {
                row.quiet = run.row.quiet.saturating_add(1);
                (run.actions, run.noted)
            }
            _ => Default::default(),
        }
    }

    /// All that the commands look at, if it is kept and nobody else is likely to have changed it, with what has to hold then.
    /// Nothing of it is kept any more, until [`Kept::keep`]. Runs that are to be made are taken not to be there.
    pub(super) fn all(&mut self, submissions: &[Submission]) -> Option<(Known, Guard)> {
        let of = Limited::of(submissions);
        let limits = self.limits.as_ref().filter(|limits| !of.is_empty() && limits.cover(&of));
        if !of.is_empty() && limits.is_none() || !submissions.iter().all(|s| self.has_all(s)) {
            return None;
        }
        let mut known = Known::default();
        if let Some(limits) = limits {
            known.site_revision = Some(limits.revision);
            (known.queues, known.places) = (limits.queues.clone(), limits.places.clone());
        }
        for submission in submissions {
            if let Some(run) = self.runs.remove(&submission.run) {
                let key = &submission.run;
                known.runs.insert(key.clone(), run.row);
                known.actions.insert(key.clone(), run.actions);
                known.noted.insert(key.clone(), run.noted);
            }
        }
        let mut runs: Vec<(i64, i64)> = known.runs.values().map(|r| (r.id, r.seq as i64)).collect();
        runs.sort_unstable();
        let (runs, seqs) = runs.into_iter().unzip();
        Some((known, Guard { runs, seqs, revision: limits.map(|l| l.revision as i64) }))
    }

    /// Whether all that a command looks at is kept, but for what it makes.
    fn has_all(&self, submission: &Submission) -> bool {
        let command = &submission.command;
        let Some(run) = self.runs.get(&submission.run) else { return command.creates() };
        let mut wanted = command.touches();
        wanted.push(ActionName::root());
        let made: HashSet<ActionName> = match command {
            Command::Enqueue { parent, .. } | Command::Track { parent, .. } => {
                wanted.iter().filter(|name| *name != parent && !name.is_root()).cloned().collect()
            }
            _ => HashSet::new(),
        };
        let mut seen = HashSet::new();
        while let Some(name) = wanted.pop() {
            match run.actions.get(&name) {
                None if made.contains(&name) => {}
                None => return false,
                Some(stored) => {
                    if seen.insert(name) {
                        wanted.extend(stored.state.ancestors.iter().cloned());
                    }
                }
            }
        }
        run.row.quiet >= QUIET
    }

    /// Keeps what limits new work, just read behind its revision.
    pub(super) fn keep_limits(&mut self, known: &Known, of: Limited) {
        let Some(revision) = known.site_revision.filter(|_| !of.is_empty()) else { return };
        let (queues, places) = (known.queues.clone(), known.places.clone());
        self.limits = Some(KeptLimits { since: Instant::now(), revision, of, queues, places });
    }

    /// So many numbers for runs that may be new, if there are.
    pub(super) fn numbers(&mut self, count: usize) -> Option<Vec<i64>> {
        let (since, mut numbers) = self.numbers.take()?;
        numbers.truncate(count);
        (since.elapsed() < MOMENT && numbers.len() == count).then_some(numbers)
    }

    /// Forgets what limits new work.
    pub(super) fn forget_limits(&mut self) {
        self.limits = None;
    }

    /// What the commands touch and is not kept, of runs whose numbers are known. A guess, made before the runs are locked:
    /// what is kept may turn out to be of no use, and what is asked for by a number that has changed is not found.
    pub(super) fn missing(&self, submissions: &[Submission]) -> BTreeSet<(i64, ActionName)> {
        let mut missing = BTreeSet::new();
        for submission in submissions {
            let Some(run) = self.runs.get(&submission.run) else { continue };
            let touched = submission.command.touches().into_iter().chain([ActionName::root()]);
            missing.extend(touched.filter(|name| !run.actions.contains_key(name)).map(|name| (run.row.id, name)));
        }
        missing
    }

    /// Keeps what a batch has left, once it is committed.
    pub(super) fn keep(&mut self, learnt: Learnt) {
        let Learnt { known, decided, runs: ids, numbers, .. } = learnt;
        if !numbers.is_empty() {
            self.numbers = Some((Instant::now(), numbers));
        }
        let Known { runs, mut actions, mut noted, .. } = known;
        let Decided { runs: changed_runs, actions: changed, loads, .. } = decided;
        for ((scope, queue), load) in loads {
            let held = self.limits.as_mut().and_then(|limits| limits.queues.get_mut(&(scope.org, queue)));
            if let Some((_, held)) = held {
                held.waiting += load.waiting;
                held.counted += load.counted;
            }
        }
        let mut created = HashMap::new();
        for (key, changed) in changed {
            let Some(run_id) = ids.get(&key).copied() else { continue };
            let noted = noted.entry(key.clone()).or_default();
            if let Some(root) = changed.get(&ActionName::root()) {
                created.insert(key.clone(), root.state.created_at);
            }
            let known = actions.entry(key).or_default();
            for (name, changed) in changed {
                let id = changed.new.map(|n| run_id * ACTIONS + n).or_else(|| known.get(&name).map(|s| s.id));
                if changed.new.is_some() {
                    noted.add(&changed.state);
                }
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
            let was = runs.get(&key);
            let row = match (changed_runs.get(&key), was) {
                (Some(run), _) => {
                    let (id, made_at) =
                        (ids.get(&key).copied(), was.map(|r| r.created_at).or(created.get(&key).copied()));
                    let (Some(id), Some(created_at)) = (id, made_at) else { continue };
                    // What this writer has made itself nobody else knows of yet.
                    let quiet = was.map_or(QUIET, |r| r.quiet);
                    RunRow { id, seq: run.seq, made: run.made, at: run.at, started: run.started, created_at, quiet }
                }
                (None, Some(row)) => row.clone(),
                (None, None) => continue,
            };
            if !actions.is_empty() && actions.len() <= MAX_KEPT {
                let noted = noted.remove(&key).unwrap_or_default();
                self.runs.insert(key, KeptRun { row, actions, noted });
            }
        }
    }
}
