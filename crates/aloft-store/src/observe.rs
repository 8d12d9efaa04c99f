//! What a store tells of its own commits, for whoever measures. Told after the commit; who listens must not keep the writer
//! waiting. A batch mostly does the same to many actions of one task, so what is told is put together by task: its names are
//! copied once for each batch and not for each event.

use std::time::Duration;

use aloft_core::{ActionState, Event, Phase, RunKey, Stage, Time, Was, stages};

/// Who hears of commits.
pub trait Observer: Send + Sync + 'static {
    /// Something was committed by this process. Whoever waits for the answers may have them by then.
    fn committed(&self, commit: Committed);

    /// Whether it wants to know whole actions of this run as they end.
    fn wants_ends(&self, run: &RunKey) -> bool;
}

/// A commit.
#[derive(Debug, Default)]
pub struct Committed {
    /// How many commands were carried out in it.
    pub commands: usize,
    /// How many events it appended.
    pub events: usize,
    /// How long it took, from when the writer took the commands up to when they were durable.
    pub took: Duration,
    /// What became of actions.
    pub seen: Vec<Seen>,
}

/// What became of actions of one task in one project and domain. A commit may tell of the same task more than once.
#[derive(Debug)]
pub struct Seen {
    /// The project of the runs.
    pub project: String,
    /// The domain of the runs.
    pub domain: String,
    /// The name of the task.
    pub task: String,
    /// The stages that ended, in order.
    pub stages: Vec<(Stage, Duration)>,
    /// The phases that actions ended in, and whether each was the root of its run.
    pub ended: Vec<(Phase, bool)>,
    /// What actions ended as, with their runs, of those runs that the observer wants to know of.
    pub ends: Vec<(RunKey, ActionState)>,
}

/// How many of the tasks that were told of last are looked through for one that is told of again. So a batch of as many tasks
/// as commands costs no more than it holds.
const LOOKED_THROUGH: usize = 8;

impl Seen {
    /// Adds what there is to tell of an event, if anything.
    pub fn add(
        all: &mut Vec<Self>,
        observer: &dyn Observer,
        run: &RunKey,
        before: Option<Was>,
        event: &Event,
        after: &ActionState,
        at: Time,
    ) {
        let mut stages = stages(before, event, after, at).peekable();
        let was = before.is_some_and(|b| b.ended);
        let ended = after.phase.is_terminal() && !was && after.task().is_some();
        if stages.peek().is_none() && !ended {
            return;
        }
        let seen = Self::of_task(all, &run.scope.project, &run.scope.domain, after.title());
        seen.stages.extend(stages);
        if ended {
            seen.ended.push((after.phase, after.name.is_root()));
            if observer.wants_ends(run) {
                seen.ends.push((run.clone(), after.clone()));
            }
        }
    }

    fn of_task<'a>(all: &'a mut Vec<Self>, project: &str, domain: &str, task: &str) -> &'a mut Self {
        let same = |s: &Self| s.task == task && s.project == project && s.domain == domain;
        let found = all.iter().rev().take(LOOKED_THROUGH).position(same);
        let place = found.map_or(all.len(), |back| all.len() - 1 - back);
        if found.is_none() {
            let (project, domain, task) = (project.to_owned(), domain.to_owned(), task.to_owned());
            all.push(Self { project, domain, task, stages: Vec::new(), ended: Vec::new(), ends: Vec::new() });
        }
        &mut all[place]
    }
}
