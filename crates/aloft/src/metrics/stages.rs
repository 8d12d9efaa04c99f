//! What commits cost, and how long actions are in each stage of their lives. The writer of the store hands over what it has
//! committed and goes on; a task of its own counts it.

use std::{sync::Arc, time::Duration};

use aloft_control::Meter;
use aloft_core::{Phase, RunKey, Stage};
use aloft_store::{Committed, Observer, Seen};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Buckets, names::Names};
use crate::{config::Metrics as Limits, trace::Runs};

/// From a millisecond, the least that a commit takes, to a day.
const STAGE_SECONDS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
    86_400.0,
];

/// From a fifth of a millisecond, a commit without a disk, to ten seconds, a commit in trouble.
const COMMIT_SECONDS: [f64; 15] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Up to as many as one commit takes.
const COMMANDS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How much may wait to be counted, in stages and ends. Each is counted in a few tens of nanoseconds, well under the time that it
/// took to commit; beyond this, which is a few megabytes, commits are dropped, and that is counted.
pub(crate) const WAITING: usize = 1 << 16;

/// What a whole action weighs against [`WAITING`]: about a kilobyte.
const WHOLE: usize = 16;

/// What is to be counted.
#[derive(Debug)]
pub(crate) enum Told {
    /// What a commit did to actions.
    Seen(Vec<Seen>),
    /// A task was created.
    Accepted { run: RunKey, task: String, took: Duration },
}

impl Told {
    fn weight(&self) -> usize {
        match self {
            Self::Seen(all) => all.iter().map(|s| 1 + s.stages.len() + s.ended.len() + s.ends.len() * WHOLE).sum(),
            Self::Accepted { .. } => 1,
        }
    }
}

/// What was told, and the room that it takes until it is dropped.
pub(crate) type Waiting = (Told, OwnedSemaphorePermit);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfStage {
    stage: &'static str,
    project: String,
    domain: String,
    task: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEnd {
    project: String,
    domain: String,
    task: String,
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRun {
    project: String,
    domain: String,
    phase: String,
}

/// What is counted of the life of actions, and of commits.
#[derive(Debug)]
pub(super) struct Stages {
    stages: Family<OfStage, Histogram, Buckets>,
    ended: Family<OfEnd, Counter>,
    runs: Family<OfRun, Counter>,
    commits: Histogram,
    commands: Histogram,
    events: Counter,
    lag: Histogram,
    dropped: Counter,
}

impl Stages {
    /// Declares them.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let made = Self {
            stages: Family::new_with_constructor(Buckets(&STAGE_SECONDS)),
            ended: Family::default(),
            runs: Family::default(),
            commits: Histogram::new(COMMIT_SECONDS),
            commands: Histogram::new(COMMANDS),
            events: Counter::default(),
            lag: Histogram::new(STAGE_SECONDS),
            dropped: Counter::default(),
        };
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "aloft_stage_duration",
            "Stages of the lives of actions that have ended, and how long they took",
            seconds(),
            made.stages.clone(),
        );
        registry.register("aloft_actions_ended", "Actions of tasks that have ended", made.ended.clone());
        registry.register("aloft_runs_ended", "Runs that have ended", made.runs.clone());
        registry.register_with_unit(
            "aloft_store_commit_duration",
            "Commits of this process, and how long they took",
            seconds(),
            made.commits.clone(),
        );
        registry.register(
            "aloft_store_commit_commands",
            "Commits of this process, and how many commands were carried out in each",
            made.commands.clone(),
        );
        registry.register("aloft_store_events", "Events that this process has appended", made.events.clone());
        registry.register_with_unit(
            "aloft_feed_lag",
            "How long after they happened events were read from the feed",
            seconds(),
            made.lag.clone(),
        );
        registry.register(
            "aloft_metrics_dropped",
            "Commits of which stages and ends were not counted, because too many waited for it",
            made.dropped.clone(),
        );
        made
    }
}

/// Hears of commits, and hands them on.
pub(crate) struct Listener {
    metrics: Option<Arc<super::Metrics>>,
    told: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
    runs: Option<Arc<Runs>>,
}

impl Listener {
    /// Hands on to `told`, which `room` bounds. Whole actions are asked for if `runs` are traced.
    pub(crate) fn new(
        metrics: Option<Arc<super::Metrics>>,
        told: mpsc::UnboundedSender<Waiting>,
        room: usize,
        runs: Option<Arc<Runs>>,
    ) -> Self {
        Self { metrics, told, room: Arc::new(Semaphore::new(room)), runs }
    }

    fn tell(&self, told: Told) {
        let weight = u32::try_from(told.weight()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(weight);
        let handed_on = room.is_ok_and(|room| self.told.send((told, room)).is_ok());
        if !handed_on && let Some(metrics) = &self.metrics {
            metrics.stages.dropped.inc();
        }
    }
}

impl Observer for Listener {
    fn committed(&self, commit: Committed) {
        if let Some(metrics) = &self.metrics {
            let stages = &metrics.stages;
            stages.commits.observe(commit.took.as_secs_f64());
            stages.commands.observe(commit.commands as f64);
            stages.events.inc_by(commit.events as u64);
        }
        if !commit.seen.is_empty() {
            self.tell(Told::Seen(commit.seen));
        }
    }

    fn wants_ends(&self, run: &RunKey) -> bool {
        self.runs.as_ref().is_some_and(|runs| runs.keeps(run))
    }
}

impl Meter for Listener {
    fn accepted(&self, run: &RunKey, task: &str, took: Duration) {
        self.tell(Told::Accepted { run: run.clone(), task: task.to_owned(), took });
    }

    fn followed(&self, lag: Duration) {
        if let Some(metrics) = &self.metrics {
            metrics.stages.lag.observe(lag.as_secs_f64());
        }
    }
}

/// The counters of one task, each once it was needed. Held here, so that counting neither makes labels nor looks for them.
#[derive(Debug)]
struct OfTask {
    project: String,
    domain: String,
    task: String,
    stages: [Option<Histogram>; Stage::ALL.len()],
    ended: Vec<(Phase, Counter)>,
    runs: Vec<(Phase, Counter)>,
}

impl OfTask {
    fn new([project, domain, task]: [&str; 3]) -> Self {
        let (project, domain, task) = (project.to_owned(), domain.to_owned(), task.to_owned());
        Self { project, domain, task, stages: Default::default(), ended: Vec::new(), runs: Vec::new() }
    }

    fn stage(&mut self, all: &Stages, stage: Stage, took: Duration) {
        let Self { project, domain, task, stages, .. } = self;
        let histogram = stages[stage as usize].get_or_insert_with(|| {
            let (project, domain, task) = (project.clone(), domain.clone(), task.clone());
            all.stages.get_or_create(&OfStage { stage: stage.name(), project, domain, task }).clone()
        });
        histogram.observe(took.as_secs_f64());
    }

    fn ended(&mut self, all: &Stages, phase: Phase, root: bool) {
        let Self { project, domain, task, ended, runs, .. } = self;
        let words = || phase.words().replace(' ', "_");
        count(ended, phase, || {
            let (project, domain, task) = (project.clone(), domain.clone(), task.clone());
            all.ended.get_or_create(&OfEnd { project, domain, task, phase: words() }).clone()
        });
        if root {
            count(runs, phase, || {
                let (project, domain) = (project.clone(), domain.clone());
                all.runs.get_or_create(&OfRun { project, domain, phase: words() }).clone()
            });
        }
    }
}

/// Counts one more of a phase.
fn count(counters: &mut Vec<(Phase, Counter)>, phase: Phase, make: impl FnOnce() -> Counter) {
    if let Some((_, counter)) = counters.iter().find(|(p, _)| *p == phase) {
        counter.inc();
    } else {
        let counter = make();
        counter.inc();
        counters.push((phase, counter));
    }
}

/// Counts what it is told.
pub(crate) struct Counting {
    metrics: Arc<super::Metrics>,
    names: Names<OfTask>,
}

impl Counting {
    /// Counts into `metrics`, with as many names as `limits` says.
    pub(crate) fn new(metrics: Arc<super::Metrics>, limits: &Limits) -> Self {
        let most = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self { metrics, names: Names::new(most(limits.places), most(limits.tasks)) }
    }

    /// Counts one thing.
    pub(crate) fn count(&mut self, told: &Told) {
        let all = &self.metrics.stages;
        match told {
            Told::Accepted { run, task, took } => {
                let names = [run.scope.project.as_str(), &run.scope.domain, task];
                self.names.of(names, OfTask::new).stage(all, Stage::Acceptance, *took);
            }
            Told::Seen(seen) => {
                for seen in seen {
                    let of = self.names.of([seen.project.as_str(), &seen.domain, &seen.task], OfTask::new);
                    seen.stages.iter().for_each(|(stage, took)| of.stage(all, *stage, *took));
                    seen.ended.iter().for_each(|(phase, root)| of.ended(all, *phase, *root));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Role, metrics::Metrics};

    fn seen(project: &str, task: &str) -> Seen {
        let stages = vec![(Stage::Execution, Duration::from_millis(1500)), (Stage::Completion, Duration::ZERO)];
        let (project, domain, task) = (project.to_owned(), "d".to_owned(), task.to_owned());
        Seen { project, domain, task, stages, ended: vec![(Phase::Succeeded, true)], ends: Vec::new() }
    }

    #[test]
    fn what_is_told_is_counted_under_bounded_names() {
        let metrics = Arc::new(Metrics::new(Role::Server));
        let mut counting = Counting::new(Arc::clone(&metrics), &Limits { places: 2, tasks: 3 });
        for n in 0..5 {
            counting.count(&Told::Seen(vec![seen("p", &format!("f{n}")), seen(&format!("p{n}"), "g")]));
        }
        let text = metrics.text().unwrap();
        let count = |labels: &str| {
            let line = format!("aloft_stage_duration_seconds_count{{{labels}}} ");
            text.lines().find_map(|l| l.strip_prefix(&line)).map(|n| n.parse::<u64>().unwrap())
        };
        let of = |project: &str, domain: &str, task: &str| {
            count(&format!("stage=\"execution\",project=\"{project}\",domain=\"{domain}\",task=\"{task}\""))
        };
        assert_eq!((of("p", "d", "f0"), of("p0", "d", "g"), of("p", "d", "f1")), (Some(1), Some(1), Some(1)));
        assert_eq!((of("p", "d", "other"), of("other", "other", "other")), (Some(3), Some(4)));
        assert_eq!(text.matches("aloft_stage_duration_seconds_count{stage=\"execution\"").count(), 5, "and no more");
        let sum = "aloft_stage_duration_seconds_sum{stage=\"execution\",project=\"p\",domain=\"d\",task=\"other\"} 4.5";
        assert!(text.lines().any(|l| l == sum), "{text}");
        let ended = "aloft_actions_ended_total{project=\"p\",domain=\"d\",task=\"f0\",phase=\"succeeded\"} 1";
        assert!(text.lines().any(|l| l == ended), "{text}");
        assert!(text.contains("aloft_runs_ended_total{project=\"p\",domain=\"d\",phase=\"succeeded\"} 5"), "{text}");
    }

    #[test]
    fn who_commits_never_waits_for_the_count() {
        let metrics = Arc::new(Metrics::new(Role::Server));
        let (told, mut waiting) = mpsc::unbounded_channel();
        let one = Told::Seen(vec![seen("p", "f")]).weight();
        let listener = Listener::new(Some(Arc::clone(&metrics)), told, one, None);
        for _ in 0..3 {
            let seen = vec![seen("p", "f")];
            listener.committed(Committed { commands: 2, events: 4, took: Duration::from_millis(3), seen });
        }
        assert!(waiting.try_recv().is_ok() && waiting.try_recv().is_err());
        let seen = vec![seen("p", "f")];
        listener.committed(Committed { seen, ..Committed::default() });
        assert!(waiting.try_recv().is_ok(), "there is room again");
        let text = metrics.text().unwrap();
        for line in [
            "aloft_metrics_dropped_total 2",
            "aloft_store_events_total 12",
            "aloft_store_commit_commands_count 4",
            "aloft_store_commit_commands_sum 6.0",
            "aloft_store_commit_duration_seconds_bucket{le=\"0.005\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
