//! What a store tells of its own commits, for whoever measures. Told after the commit; who listens must not keep the writer
//! waiting.

use std::time::Duration;

use aloft_core::{ActionState, Event, Phase, RunKey, Stage, Time, Was, stages};

/// Who hears of commits.
pub trait Observer: Send + Sync + 'static {
    /// Something was committed by this process.
    fn committed(&self, commit: Committed);

    /// Whether it wants to know whole actions as they end.
    fn wants_ends(&self) -> bool;
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
    /// What became of actions, in order.
    pub seen: Vec<Seen>,
}

/// What an event did to an action.
#[derive(Debug)]
pub struct Seen {
    /// Its run.
    pub run: RunKey,
    /// The name of its task.
    pub task: String,
    /// Whether it is the root of its run.
    pub root: bool,
    /// The stages that ended.
    pub stages: Vec<(Stage, Duration)>,
    /// The phase it ended in, if this ended it.
    pub ended: Option<Phase>,
    /// What it ended as, for an observer that wants to know.
    pub end: Option<Box<ActionState>>,
}

impl Seen {
    /// What there is to tell of an event; `None` if nothing.
    pub fn of(
        observer: &dyn Observer,
        run: &RunKey,
        before: Option<Was>,
        event: &Event,
        after: &ActionState,
        at: Time,
    ) -> Option<Self> {
        let stages: Vec<_> = stages(before, event, after, at).collect();
        let was = before.is_some_and(|b| b.ended);
        let ended = Some(after.phase).filter(|phase| phase.is_terminal() && !was && after.task().is_some());
        if stages.is_empty() && ended.is_none() {
            return None;
        }
        let end = ended.filter(|_| observer.wants_ends()).map(|_| Box::new(after.clone()));
        Some(Self { run: run.clone(), task: after.title().to_owned(), root: after.name.is_root(), stages, ended, end })
    }
}
