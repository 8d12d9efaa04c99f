//! What lists and watches over runs read: rows, changes, totals by task.

use std::collections::{BTreeMap, btree_map::Entry};

use aloft_core::{ActionName, ActionState, ErrorKind, Phase, RunInfo, RunKey, Subject, Time};

/// A run as it was started.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// Its key.
    pub key: RunKey,
    /// When it was created.
    pub created_at: Time,
    /// What it was started with.
    pub info: RunInfo,
}

/// A run as a list shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    /// The run.
    pub run: RunRecord,
    /// Its root action.
    pub root: ActionState,
    /// Place of the last change of its root among the changes of all runs. Grows with every change.
    pub changed: u64,
}

/// Runs that have changed.
#[derive(Clone, Debug, PartialEq)]
pub struct RunChanges {
    /// Each run once, as it is now, in the order of their last changes; and whether it meets the filters.
    pub rows: Vec<(RunRow, bool)>,
    /// The place up to which nothing is left to read.
    pub upto: u64,
}

/// What a run counts for in the totals of its task.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// The run.
    pub run: RunKey,
    /// Full name of its root task.
    pub task_name: String,
    /// Who started it.
    pub created_by: String,
    /// Where it is.
    pub phase: Phase,
    /// When it was created.
    pub created_at: Time,
    /// When it first ran.
    pub started_at: Option<Time>,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// Whose error ended it.
    pub error: Option<ErrorKind>,
}

impl RunRow {
    /// What it counts for.
    pub fn summary(&self) -> RunSummary {
        RunSummary {
            run: self.run.key.clone(),
            task_name: self.root.task().map(|t| t.task.name.clone()).unwrap_or_default(),
            created_by: self.run.info.created_by.id.clone(),
            phase: self.root.phase,
            created_at: self.run.created_at,
            started_at: self.root.started_at,
            ended_at: self.root.ended_at,
            error: self.root.error.as_ref().map(|e| e.kind),
        }
    }
}

/// The runs of one task, counted. Sums, so that a run can be taken out again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskTotals {
    /// How many.
    pub runs: u64,
    /// How many in each phase, by its number; no zeros.
    pub phases: BTreeMap<i32, u64>,
    /// How many have ended.
    pub ended: u64,
    /// Milliseconds from creation to end, of those.
    pub duration_ms: u64,
    /// How many have run.
    pub started: u64,
    /// Milliseconds from creation to the first run, of those.
    pub waited_ms: u64,
    /// When the last one ended. Only grows: a run that has ended stays.
    pub latest_end: Option<Time>,
    /// How many ended by an error of the user, the platform, nobody known.
    pub errors: [u64; 3],
    /// How many each subject started; no zeros.
    pub created_by: BTreeMap<String, u64>,
}

fn millis(from: Time, to: Time) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

fn step<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, up: bool) {
    match counts.entry(key) {
        Entry::Vacant(entry) if up => drop(entry.insert(1)),
        Entry::Vacant(_) => {}
        Entry::Occupied(mut entry) if up => *entry.get_mut() += 1,
        Entry::Occupied(mut entry) if *entry.get() > 1 => *entry.get_mut() -= 1,
        Entry::Occupied(entry) => drop(entry.remove()),
    }
}

impl TaskTotals {
    /// Counts a run in.
    pub fn add(&mut self, run: &RunSummary) {
        self.count(run, true);
        self.latest_end = self.latest_end.max(run.ended_at);
    }

    /// Takes a run out that was counted in as it is given.
    pub fn remove(&mut self, run: &RunSummary) {
        self.count(run, false);
    }

    fn count(&mut self, run: &RunSummary, up: bool) {
        let add = |sum: &mut u64, n: u64| *sum = if up { sum.saturating_add(n) } else { sum.saturating_sub(n) };
        add(&mut self.runs, 1);
        step(&mut self.phases, run.phase.number(), up);
        step(&mut self.created_by, run.created_by.clone(), up);
        if let Some(at) = run.ended_at {
            add(&mut self.ended, 1);
            add(&mut self.duration_ms, millis(run.created_at, at));
        }
        if let Some(at) = run.started_at {
            add(&mut self.started, 1);
            add(&mut self.waited_ms, millis(run.created_at, at));
        }
        if let Some(kind) = run.error {
            add(&mut self.errors[error_index(kind)], 1);
        }
    }
}

/// The place of a kind of error in [`TaskTotals::errors`].
pub fn error_index(kind: ErrorKind) -> usize {
    match kind {
        ErrorKind::User => 0,
        ErrorKind::System => 1,
        ErrorKind::Unknown => 2,
    }
}

/// Totals of the runs of a scope at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct RunTotals {
    /// The place of the last change they include.
    pub upto: u64,
    /// By task name.
    pub tasks: BTreeMap<String, TaskTotals>,
    /// Those among the counted that have not ended, so that their changes can be followed.
    pub live: Vec<RunSummary>,
    /// Everybody who started one of them.
    pub subjects: Vec<Subject>,
}

/// The tree of a run's actions, without what they carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// The number of the last event it includes.
    pub seq: u64,
    /// Parents before children.
    pub actions: Vec<OutlineItem>,
}

/// One action of an [`Outline`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutlineItem {
    /// Its name.
    pub name: ActionName,
    /// The action that started it; `None` for the root.
    pub parent: Option<ActionName>,
    /// Its recorded phase. Below an action that has ended it is shown as aborted.
    pub phase: Phase,
}
