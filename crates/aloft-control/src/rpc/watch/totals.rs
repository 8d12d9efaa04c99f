//! Totals of runs by task, kept up by the changes of runs. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aloft_core::{RunKey, Subject};
use aloft_store::{RunRow, RunSummary, RunTotals, TaskTotals};

/// The totals of one watcher. Holds a number of counts for each task and some 300 bytes for each run that has not ended: one
/// that has ended stays counted as it is.
pub(super) struct Totals {
    tasks: BTreeMap<String, TaskTotals>,
    /// The runs that are counted and have not ended, as they are counted.
    live: HashMap<RunKey, RunSummary>,
    subjects: HashMap<String, Subject>,
}

impl Totals {
    /// Goes on from the totals of a moment.
    pub(super) fn new(from: RunTotals) -> Self {
        Self {
            tasks: from.tasks,
            live: from.live.into_iter().map(|run| (run.run.clone(), run)).collect(),
            subjects: from.subjects.into_iter().map(|s| (s.id.clone(), s)).collect(),
        }
    }

    /// Every task that has runs.
    pub(super) fn names(&self) -> Vec<String> {
        self.tasks.keys().cloned().collect()
    }

    /// The totals of a task; `None` if no run of it is counted.
    pub(super) fn of(&self, task: &str) -> Option<&TaskTotals> {
        self.tasks.get(task)
    }

    /// Those who started runs of a task.
    pub(super) fn subjects(&self, task: &TaskTotals, most: usize) -> Vec<Subject> {
        let known = |id: &String| {
            self.subjects.get(id).cloned().unwrap_or_else(|| Subject { id: id.clone(), ..Subject::default() })
        };
        task.created_by.keys().take(most).map(known).collect()
    }

    /// Takes in runs that have changed, each once, with whether it is to be counted. Returns the tasks whose totals have
    /// changed.
    pub(super) fn change(&mut self, rows: Vec<(RunRow, bool)>) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for (row, counts) in rows {
            let now = row.summary();
            let before = self.live.remove(&now.run);
            if let Some(before) = &before {
                if counts && *before == now {
                    self.live.insert(now.run.clone(), now);
                    continue;
                }
                self.task(before).remove(before);
                changed.insert(before.task_name.clone());
            }
            if counts {
                self.task(&now).add(&now);
                changed.insert(now.task_name.clone());
                self.subjects.entry(now.created_by.clone()).or_insert(row.run.info.created_by);
                if !now.phase.is_terminal() {
                    self.live.insert(now.run.clone(), now);
                }
            }
        }
        self.tasks.retain(|_, task| task.runs > 0);
        changed
    }

    fn task(&mut self, run: &RunSummary) -> &mut TaskTotals {
        self.tasks.entry(run.task_name.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use aloft_core::{
        ActionName, ActionState, Asks, Attempt, CacheUse, EndedBelow, ErrorKind, OutputRefs, Phase, RunInfo, Scope,
        Seed, TaskError, TaskPolicy, TaskRef, TaskSeed, Time,
    };
    use aloft_store::RunRecord;
    use proptest::prelude::*;

    use super::*;

    fn row(number: usize, phase: Phase, at: i64) -> RunRow {
        let task = TaskRef {
            digest: String::new(),
            project: "p".into(),
            domain: "d".into(),
            name: format!("task{}", number % 3),
            version: String::new(),
            task_type: String::new(),
            short_name: String::new(),
            environment: String::new(),
        };
        let seed = TaskSeed {
            task,
            policy: TaskPolicy::default(),
            input_uri: String::new(),
            run_output_base: String::new(),
            cache: None,
            queue: String::new(),
            asks: Asks::default(),
        };
        let created_at = Time::from_micros(number as i64 * 1000);
        let running = !matches!(phase, Phase::Queued | Phase::WaitingForResources);
        let root = ActionState {
            name: ActionName::root(),
            ancestors: Vec::new(),
            group: String::new(),
            seed: Seed::Task(seed),
            phase,
            created_at,
            started_at: running.then_some(created_at.plus(std::time::Duration::from_millis(7))),
            ended_at: phase.is_terminal().then_some(Time::from_micros(1_000_000 + at)),
            attempts: Vec::<Attempt>::new(),
            user_failures: 0,
            system_failures: 0,
            error: (phase == Phase::Failed).then(|| TaskError::new("E", "m", ErrorKind::User, false)),
            outputs: OutputRefs::default(),
            aborted: None,
            ended_below: EndedBelow::default(),
            cache: CacheUse::default(),
            recovered_from: None,
            signal: None,
            webhook: None,
            tracking: None,
        };
        let scope = Scope { org: "o".into(), project: "p".into(), domain: "d".into() };
        let created_by = Subject { id: format!("user{}", number % 2), ..Subject::default() };
        let info = RunInfo { created_by, ..RunInfo::default() };
        let run = RunRecord { key: RunKey { scope, name: format!("r{number}") }, created_at, info };
        RunRow { run, root, changed: 0 }
    }

    proptest! {
        /// Following changes gives the same as counting all runs anew, whenever the watcher began and whatever comes into
        /// the filter and leaves it.
        #[test]
        fn changes_lead_to_the_totals(
            steps in prop::collection::vec((0usize..12, 0usize..10, any::<bool>()), 1..120),
            from in 0usize..60,
        ) {
            let mut runs: BTreeMap<usize, (RunRow, bool)> = BTreeMap::new();
            let count = |runs: &BTreeMap<usize, (RunRow, bool)>| {
                let mut totals = RunTotals { upto: 0, tasks: BTreeMap::new(), live: Vec::new(), subjects: Vec::new() };
                for (row, _) in runs.values().filter(|(_, counts)| *counts) {
                    let run = row.summary();
                    totals.tasks.entry(run.task_name.clone()).or_default().add(&run);
                    if !run.phase.is_terminal() {
                        totals.live.push(run);
                    }
                }
                totals
            };
            let mut totals = None;
            for (i, (number, phase, counts)) in steps.into_iter().enumerate() {
                if i == from {
                    totals = Some(Totals::new(count(&runs)));
                }
                if runs.get(&number).is_some_and(|(row, _)| row.root.phase.is_terminal()) {
                    continue;
                }
                let changed = (row(number, Phase::ALL[phase], i as i64), counts);
                runs.insert(number, changed.clone());
                if let Some(totals) = &mut totals {
                    let before = totals.tasks.clone();
                    let touched = totals.change(vec![changed]);
                    let expected = count(&runs);
                    let mut now = totals.tasks.clone();
                    // The last end stays known when the run that it was of has left; only a live run can.
                    for (name, task) in &mut now {
                        task.latest_end = expected.tasks.get(name).and_then(|t| t.latest_end);
                    }
                    prop_assert_eq!(&now, &expected.tasks);
                    prop_assert_eq!(totals.live.len(), expected.live.len());
                    for name in before.keys().chain(totals.tasks.keys()) {
                        if before.get(name) != totals.tasks.get(name) {
                            prop_assert!(touched.contains(name), "what changed is told");
                        }
                    }
                }
            }
        }
    }
}
