//! What the tasks of a fake fleet do: roots start children and wait for them; children take a while and end one way or
//! another, always the same way in the same attempt.

use std::{
    hash::{DefaultHasher, Hasher as _},
    sync::Arc,
    time::Duration,
};

use aloft_core::{
    ActionName, Asks, AttemptOutcome, Command, DEFAULT_QUEUE, ErrorKind, OutputRefs, Seed, TaskError, TaskPolicy,
    TaskRef, TaskSeed,
};
use aloft_plane::LeasedAttempt;
use aloft_store::{Store as _, Submission, SubmitError, Which};

use super::{Fleet, weather::OUT_OF};

/// The queue of which few actions run at a time.
pub(super) const NARROW: &str = "narrow";

/// The code of an error of a task that fails.
pub(super) const REFUSED: &str = "Refused";

/// What an action is.
pub(super) fn seed(queue: &str, retries: u32) -> Seed {
    let task = TaskRef {
        digest: "d".into(),
        project: "p".into(),
        domain: "development".into(),
        name: "env.f".into(),
        version: "1".into(),
        task_type: "python".into(),
        short_name: "f".into(),
        environment: "env".into(),
    };
    Seed::Task(TaskSeed {
        task,
        policy: TaskPolicy { retries, ..TaskPolicy::default() },
        input_uri: "s3://b/in.pb".into(),
        run_output_base: "s3://b/r".into(),
        cache: None,
        queue: if queue.is_empty() { DEFAULT_QUEUE.into() } else { queue.into() },
        asks: Asks::default(),
    })
}

/// A number that is always the same for the same thing.
fn number(of: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Runs an attempt to its end.
pub(super) async fn carry_out(fleet: &Arc<Fleet>, attempt: &LeasedAttempt) -> AttemptOutcome {
    let id = &attempt.lease.id;
    let outputs = OutputRefs { output_uri: attempt.output_prefix.clone(), ..OutputRefs::default() };
    if attempt.parent.is_none() {
        parent(fleet, attempt).await;
        return AttemptOutcome::Succeeded(outputs);
    }
    let chance = number((fleet.seed, &id.run.name, id.action.as_str(), id.attempt));
    let climate = fleet.weather.climate;
    tokio::time::sleep(Duration::from_millis(chance % climate.length)).await;
    let dice = number((chance, "how it ends")) % OUT_OF;
    if dice < climate.failing {
        // The first of them for good.
        let error = TaskError::new(REFUSED, "not today", ErrorKind::User, dice > 0);
        return AttemptOutcome::Failed(error, OutputRefs::default());
    }
    AttemptOutcome::Succeeded(outputs)
}

/// Starts children, the same in each attempt, and waits for them.
async fn parent(fleet: &Arc<Fleet>, attempt: &LeasedAttempt) {
    let run = &attempt.lease.id.run;
    let climate = fleet.weather.climate;
    let count = 1 + number((fleet.seed, &run.name)) % climate.children;
    let mut children = Vec::new();
    for child in 0..count {
        let Ok(name) = ActionName::new(&format!("c{child}")) else { continue };
        let queue = if child % 2 == 0 { NARROW } else { "" };
        let command = Command::enqueue(name.clone(), ActionName::root(), "", seed(queue, climate.retries));
        if submitted(fleet, Submission::new(run.clone(), command)).await {
            fleet.enqueued(run, &name);
            children.push(name);
        }
    }
    let mut pause = Duration::from_millis(500);
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(5));
        let Some(replica) = fleet.any_replica() else { continue };
        let which = Which::ChildrenOf(ActionName::root());
        let read = replica.reach.snapshot(run, which);
        let Some(Ok(Some(snapshot))) = replica.life.run_until_cancelled(read).await else { continue };
        let ended = |name: &ActionName| snapshot.actions.iter().any(|s| s.name == *name && s.phase.is_terminal());
        if children.iter().all(ended) {
            return;
        }
    }
}

/// Submits something until it is taken or refused, as the SDK does; whether it was taken.
pub(super) async fn submitted(fleet: &Arc<Fleet>, submission: Submission) -> bool {
    loop {
        let pause = fleet.weather.up_to(300);
        tokio::time::sleep(pause).await;
        let Some(replica) = fleet.any_replica() else { continue };
        match replica.life.run_until_cancelled(replica.reach.submit(submission.clone())).await {
            Some(Ok(_)) => return true,
            Some(Err(SubmitError::Refused(_))) => return false,
            Some(Err(SubmitError::Store(_))) | None => {}
        }
    }
}
