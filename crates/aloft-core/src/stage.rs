//! The stages of an action's life, as latencies: which of them an event brings to an end, and how long it took. Pure, from the
//! times of the log alone, except for [`Stage::Acceptance`], which ends with the commit that begins the log.

use std::time::Duration;

use crate::{ActionState, Attempt, Event, Phase, Time};

/// A stage of an action's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// From the arrival of the request that creates the action to the commit of that.
    Acceptance,
    /// From when an attempt may be handed out to when a worker begins to prepare it.
    Queue,
    /// From there to when the user's code runs.
    Transition,
    /// From there to the attempt's end.
    Execution,
    /// From when the action is over for everybody to when its own record says so: no time for one that ended by itself,
    /// some for one that ended with an action above it.
    Completion,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 5] = [Self::Acceptance, Self::Queue, Self::Transition, Self::Execution, Self::Completion];

    /// Its name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acceptance => "acceptance",
            Self::Queue => "queue",
            Self::Transition => "transition",
            Self::Execution => "execution",
            Self::Completion => "completion",
        }
    }
}

/// What an action was before an event, as far as its stages need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Was {
    /// Whether it had ended.
    pub ended: bool,
    /// The attempt that had not.
    live: Option<u32>,
}

impl Was {
    /// Of this state.
    pub fn of(state: &ActionState) -> Self {
        let live = state.current().filter(|a| a.ended_at.is_none()).map(|a| a.number);
        Self { ended: state.phase.is_terminal(), live }
    }
}

/// The stages that ended with an event at `at` that made `after` of `before`. Of tasks that data planes carry out only: others
/// wait for nobody and take as long as their reporter says.
pub fn stages(
    before: Option<Was>,
    event: &Event,
    after: &ActionState,
    at: Time,
) -> impl Iterator<Item = (Stage, Duration)> {
    let mut ended = [None, None];
    if after.queue().is_some() && after.recovered_from.is_none() {
        match event {
            Event::Progressed { phase: Phase::Initializing, .. } => {
                ended[0] = after.current().map(|a| (Stage::Queue, at.since(a.ready_at)));
            }
            Event::Progressed { phase: Phase::Running, .. } => {
                if let Some(attempt) = after.current() {
                    match attempt.entered(Phase::Initializing) {
                        Some(prepared) => ended[0] = Some((Stage::Transition, at.since(prepared))),
                        None => {
                            ended[0] = Some((Stage::Queue, at.since(attempt.ready_at)));
                            ended[1] = Some((Stage::Transition, Duration::ZERO));
                        }
                    }
                }
            }
            _ => {
                let live = before.and_then(|b| b.live);
                let over = after.attempts.iter().find(|a| Some(a.number) == live);
                ended[0] = over.and_then(execution).map(|took| (Stage::Execution, took));
            }
        }
        let was = before.is_some_and(|b| b.ended);
        if let Some(end) = after.ended_at.filter(|_| !was && after.phase.is_terminal()) {
            ended[1] = Some((Stage::Completion, at.since(end)));
        }
    }
    ended.into_iter().flatten()
}

/// How long an attempt's code ran, if it did and has ended.
fn execution(attempt: &Attempt) -> Option<Duration> {
    Some(attempt.ended_at?.since(attempt.entered(Phase::Running)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ActionName, AttemptOutcome, EndedBelow, EndedBy, ErrorKind, Lease, LeaseToken, OutputRefs, Seed, TaskError,
        TaskPolicy, TaskRef, TaskSeed, WorkerId, apply,
    };

    fn at(ms: i64) -> Time {
        Time::from_micros(ms * 1000)
    }

    fn task() -> Seed {
        let task = TaskRef {
            digest: "d".into(),
            project: "p".into(),
            domain: "d".into(),
            name: "f".into(),
            version: "1".into(),
            task_type: "python".into(),
            short_name: "f".into(),
            environment: "e".into(),
        };
        Seed::Task(TaskSeed {
            task,
            policy: TaskPolicy::default(),
            input_uri: String::new(),
            run_output_base: String::new(),
            cache: None,
            queue: "default".into(),
            asks: crate::Asks::default(),
        })
    }

    /// The stages that end as these events happen, each with its milliseconds.
    fn told(events: Vec<(i64, Event)>) -> Vec<(&'static str, u128)> {
        let (mut state, mut told) = (None, Vec::new());
        for (ms, event) in events {
            let after = apply(state.clone(), &event, at(ms)).expect("the events fit");
            let ended = stages(state.as_ref().map(Was::of), &event, &after, at(ms));
            told.extend(ended.map(|(stage, took)| (stage.name(), took.as_millis())));
            state = Some(after);
        }
        told
    }

    fn created() -> Event {
        Event::Created {
            action: ActionName::root(),
            ancestors: Vec::new(),
            group: String::new(),
            seed: Box::new(task()),
            run: None,
            recovered: None,
            tracked: None,
        }
    }

    fn leased(attempt: u32) -> Event {
        let lease = Lease { worker: WorkerId("w".into()), token: LeaseToken(1) };
        Event::Leased { action: ActionName::root(), attempt, lease }
    }

    fn enters(attempt: u32, phase: Phase) -> Event {
        Event::Progressed { action: ActionName::root(), attempt, phase, reason: String::new() }
    }

    fn aborted(since: Option<Time>) -> Event {
        let by = EndedBy::asked("me", "enough");
        Event::Aborted { action: ActionName::root(), by, below: EndedBelow::default(), since }
    }

    #[test]
    fn each_attempt_waits_is_prepared_and_runs() {
        let failed = AttemptOutcome::Failed(TaskError::new("E", "m", ErrorKind::User, true), OutputRefs::default());
        let AttemptOutcome::Failed(error, outputs) = failed else { unreachable!() };
        let failed = Event::Failed {
            action: ActionName::root(),
            attempt: 1,
            error,
            system: false,
            retry_at: Some(at(500)),
            outputs,
            below: EndedBelow::default(),
        };
        let succeeded = Event::Succeeded {
            action: ActionName::root(),
            attempt: 2,
            outputs: OutputRefs::default(),
            below: EndedBelow::default(),
        };
        let told = told(vec![
            (0, created()),
            (10, leased(1)),
            (15, enters(1, Phase::Initializing)),
            (35, enters(1, Phase::Running)),
            (135, failed),
            (501, leased(2)),
            (510, enters(2, Phase::Running)),
            (560, succeeded),
        ]);
        let expected = [
            ("queue", 15),
            ("transition", 20),
            ("execution", 100),
            ("queue", 10),
            ("transition", 0),
            ("execution", 50),
            ("completion", 0),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_never_ran_has_no_execution_and_what_was_ended_from_above_completes_late() {
        assert_eq!(told(vec![(0, created()), (5, aborted(None))]), [("completion", 0)]);
        let running = vec![(0, created()), (1, leased(1)), (2, enters(1, Phase::Initializing))];
        let running = running.into_iter().chain([(3, enters(1, Phase::Running)), (50, aborted(Some(at(10))))]);
        let expected = [("queue", 2), ("transition", 1), ("execution", 7), ("completion", 40)];
        assert_eq!(told(running.collect()), expected);
    }
}
