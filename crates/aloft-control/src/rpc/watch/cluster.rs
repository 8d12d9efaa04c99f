//! Cluster events: what an attempt's phases say about the machine that runs it.

use aloft_core::{ActionState, Attempt, ErrorKind, Phase, PhaseTransition, TaskError};
use aloft_flyteidl2::flyteidl2::workflow::{
    ClusterEvent, WatchClusterEventsRequest, WatchClusterEventsResponse, cluster_event::Type,
};

use super::{Step, details::OneAction, stream};
use crate::{
    Control,
    rpc::{
        actions::Messages,
        convert,
        error::{Answer, invalid, not_found},
        run::find_action,
    },
};

/// Codes of errors of users' processes that tell about the machine and not about the code.
const OF_THE_MACHINE: [&str; 4] = ["OOMKilled", "Killed", "Crashed", "NonZeroExit"];

/// One event without its time.
struct Told {
    kind: Type,
    /// One word, as programs compare it.
    reason: String,
    /// Who says so.
    source: &'static str,
    message: String,
}

fn normal(reason: &str, source: &'static str, message: &str, because: &str) -> Told {
    let message = if because.is_empty() { message } else { because };
    Told { kind: Type::TYPE_NORMAL, reason: reason.to_owned(), source, message: message.to_owned() }
}

fn failed(error: Option<&TaskError>) -> Told {
    let Some(error) = error else { return normal("Failed", "worker", "The attempt failed.", "") };
    let of_the_machine = error.kind == ErrorKind::System || OF_THE_MACHINE.contains(&error.code.as_str());
    let (reason, message) = if of_the_machine {
        (error.code.clone(), error.message.clone())
    } else {
        ("Failed".to_owned(), format!("The task ended with an error of its own ({}).", error.code))
    };
    Told { kind: Type::TYPE_WARNING, reason, source: "worker", message }
}

fn told(attempt: &Attempt, step: &PhaseTransition) -> Told {
    let why = step.reason.as_str();
    match step.phase {
        Phase::Queued => {
            let pause = attempt.ready_at.since(step.at).as_secs_f64();
            let message = if pause > 0.0 {
                format!("Attempt {} waits {pause:.1} s before it may start.", attempt.number)
            } else {
                format!("Attempt {} waits for a worker.", attempt.number)
            };
            normal("Queued", "dispatcher", &message, why)
        }
        Phase::WaitingForResources => {
            normal("WaitingForResources", "dispatcher", "The attempt waits for room on a machine.", why)
        }
        Phase::Paused => normal("Paused", "dispatcher", "The action waits for somebody.", why),
        Phase::Initializing => normal("Preparing", "worker", "The task's environment is being prepared.", why),
        Phase::Running => normal("Started", "worker", "The task's process has started.", why),
        Phase::Succeeded if attempt.entered(Phase::Running).is_none() => {
            normal("Reused", "dispatcher", "Nothing was run: a result that was there already stands in.", why)
        }
        Phase::Succeeded => normal("Completed", "worker", "The task's process has ended well.", why),
        Phase::Recovered => normal("Recovered", "dispatcher", "The result of another run was taken over.", why),
        Phase::Failed => failed(attempt.error.as_ref()),
        Phase::TimedOut => {
            let error = attempt.error.as_ref();
            Told {
                kind: Type::TYPE_WARNING,
                reason: error.map_or("TimedOut", |e| &e.code).to_owned(),
                source: "dispatcher",
                message: error.map_or("A time limit passed.", |e| &e.message).to_owned(),
            }
        }
        Phase::Aborted => normal("Aborted", "dispatcher", "The attempt was stopped.", why),
    }
}

/// The events of an attempt of `state`, in order. They are only ever added to. No cluster knows of work that is done
/// elsewhere.
pub(in super::super) fn events(state: &ActionState, attempt: &Attempt) -> Vec<ClusterEvent> {
    if state.is_tracked() { Vec::new() } else { told_of(attempt) }
}

fn told_of(attempt: &Attempt) -> Vec<ClusterEvent> {
    let event = |step: &PhaseTransition| {
        let Told { kind, reason, source, message } = told(attempt, step);
        ClusterEvent {
            occurred_at: convert::timestamp(step.at).into(),
            message,
            r#type: kind.into(),
            reason,
            source_component: source.to_owned(),
            count: 1,
            ..Default::default()
        }
    };
    attempt.transitions.iter().map(event).collect()
}

struct Events {
    watch: OneAction,
    attempt: u32,
    /// How many of its events have been sent.
    sent: usize,
    over: bool,
}

impl Events {
    async fn next(&mut self) -> Answer<Step<WatchClusterEventsResponse>> {
        if self.over {
            return Ok(Step::End);
        }
        while let Some(state) = self.watch.next().await? {
            // An attempt that is not there yet may come, as long as the action goes on.
            let Some(attempt) = state.attempts.iter().find(|a| a.number == self.attempt) else { continue };
            self.over = attempt.phase.is_terminal();
            let new: Vec<_> = events(&state, attempt).into_iter().skip(self.sent).collect();
            if new.is_empty() && !self.over {
                continue;
            }
            self.sent += new.len();
            let message = WatchClusterEventsResponse { cluster_events: new, ..Default::default() };
            return Ok(if self.over { Step::Last(message) } else { Step::Send(message) });
        }
        Ok(Step::End)
    }
}

pub(in super::super) async fn cluster_events(
    control: Control,
    request: WatchClusterEventsRequest,
) -> Answer<Messages<WatchClusterEventsResponse>> {
    let (run, action) = control.action_id(request.id.as_option())?;
    let name = action.clone();
    let watch = OneAction::new(control.clone(), run.clone(), action).await?;
    let attempt = request.attempt;
    if attempt == 0 {
        return Err(invalid("attempt: must be 1 or more"));
    }
    let state = find_action(&control, &run, &name).await?;
    if state.phase.is_terminal() && state.attempts.iter().all(|a| a.number != attempt) {
        return Err(not_found(format!("action {name} has ended without an attempt {attempt}")));
    }
    let start = Events { watch, attempt, sent: 0, over: false };
    Ok(stream(start, |events| Box::pin(events.next())))
}

#[cfg(test)]
mod tests {
    use aloft_core::Time;

    use super::*;

    fn attempt(steps: &[(Phase, &str)], error: Option<TaskError>) -> Attempt {
        let step = |(i, (phase, reason)): (usize, &(Phase, &str))| PhaseTransition {
            phase: *phase,
            at: Time::from_micros(i as i64 * 1_000_000),
            reason: (*reason).to_owned(),
        };
        let transitions: Vec<_> = steps.iter().enumerate().map(step).collect();
        Attempt {
            number: 1,
            phase: steps.last().unwrap().0,
            ready_at: Time::from_micros(0),
            transitions,
            lease: None,
            ended_at: None,
            error,
            outputs: aloft_core::OutputRefs::default(),
        }
    }

    fn reasons(attempt: &Attempt) -> Vec<(String, Type)> {
        told_of(attempt).into_iter().map(|e| (e.reason, e.r#type.as_known().unwrap())).collect()
    }

    #[test]
    fn every_step_is_told_once_and_in_order() {
        use Phase::{Failed, Initializing, Queued, Running, WaitingForResources};
        let oom = TaskError::new("OOMKilled", "The machine ran out of memory.", ErrorKind::User, true);
        let steps = [
            (Queued, ""),
            (WaitingForResources, "2 of 2 processors are taken"),
            (Initializing, ""),
            (Running, ""),
            (Failed, ""),
        ];
        let told = told_of(&attempt(&steps, Some(oom)));
        let messages: Vec<_> = told.iter().map(|e| (e.reason.as_str(), e.message.as_str())).collect();
        assert_eq!(messages[1], ("WaitingForResources", "2 of 2 processors are taken"));
        assert_eq!(messages[4], ("OOMKilled", "The machine ran out of memory."));
        assert!(told.iter().all(|e| e.count == 1 && !e.source_component.is_empty()));
        for n in 1..steps.len() {
            assert_eq!(told_of(&attempt(&steps[..n], None)), told[..n], "only ever added to");
        }
    }

    #[test]
    fn errors_of_the_code_are_not_told_as_the_machines() {
        let steps = [(Phase::Queued, ""), (Phase::Running, ""), (Phase::Failed, "")];
        let of = |code: &str, kind| {
            reasons(&attempt(&steps, Some(TaskError::new(code, "text of the user", kind, true)))).pop().unwrap()
        };
        assert_eq!(of("ValueError", ErrorKind::User), ("Failed".to_owned(), Type::TYPE_WARNING));
        assert_eq!(of("ProcessLost", ErrorKind::System), ("ProcessLost".to_owned(), Type::TYPE_WARNING));
        assert_eq!(of("Killed", ErrorKind::User), ("Killed".to_owned(), Type::TYPE_WARNING));
    }

    #[test]
    fn what_was_not_run_is_not_said_to_have_run() {
        let hit = attempt(&[(Phase::Queued, ""), (Phase::Succeeded, "")], None);
        assert_eq!(reasons(&hit).pop().unwrap().0, "Reused");
        let run = attempt(&[(Phase::Queued, ""), (Phase::Running, ""), (Phase::Succeeded, "")], None);
        assert_eq!(reasons(&run).pop().unwrap().0, "Completed");
    }
}
