//! The invariants of the core under random commands: duplicated, reordered, from stale workers, at any time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::*;

/// A run as a store would keep it.
#[derive(Default)]
struct World {
    states: BTreeMap<ActionName, ActionState>,
    log: Vec<(Time, Event)>,
}

impl View for World {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        self.states.get(name)
    }
}

impl World {
    fn submit(&mut self, command: &Command, now: Time) -> Result<Reply, Refusal> {
        let decision = decide(self, command, now)?;
        assert_eq!(decision.events.is_empty(), decision.reply == Reply::Unchanged, "{command:?}");
        for event in decision.events {
            let name = event.action().clone();
            let state = apply(self.states.remove(&name), &event, now).expect("decide yields only events that apply");
            self.states.insert(name, state);
            self.log.push((now, event));
        }
        Ok(decision.reply)
    }
}

fn name(n: u8) -> ActionName {
    if n == 0 { ActionName::root() } else { ActionName::new(&format!("x{n}")).unwrap() }
}

fn seed(retries: u32) -> Seed {
    let task = TaskRef {
        digest: "d".into(),
        project: "p".into(),
        domain: "d".into(),
        name: "env.f".into(),
        version: "1".into(),
        task_type: "python".into(),
        short_name: "f".into(),
        environment: "env".into(),
    };
    let policy = TaskPolicy {
        retries,
        backoff: Some(Backoff { base_ms: 10, factor: 2.0, cap_ms: None }),
        max_runtime_ms: Some(5_000),
        queued_timeout_ms: Some(50_000),
        deadline_ms: Some(100_000),
    };
    Seed::Task(TaskSeed {
        task,
        policy,
        input_uri: "s3://b/in".into(),
        run_output_base: "s3://b/run".into(),
        cache_key: String::new(),
    })
}

fn trace() -> Seed {
    Seed::Trace(TraceSeed {
        name: "t".into(),
        phase: Phase::Succeeded,
        started_at: Time::from_micros(1),
        ended_at: Time::from_micros(2),
        outputs: OutputRefs::default(),
        error: None,
        spec_digest: String::new(),
    })
}

fn error(recoverable: bool) -> TaskError {
    TaskError::new("Boom", "it broke", ErrorKind::User, recoverable)
}

fn lease(token: u64) -> Lease {
    Lease { worker: WorkerId("w".into()), token: LeaseToken(token) }
}

fn create(retries: u32) -> Command {
    Command::CreateRun { seed: Box::new(seed(retries)), info: Box::default() }
}

fn command() -> impl Strategy<Value = Command> {
    let action = (0u8..6).prop_map(name);
    let progress = prop_oneof![
        Just(Progress::Waiting { reason: "memory".into() }),
        Just(Progress::Initializing),
        Just(Progress::Running),
        Just(Progress::Ended(AttemptOutcome::Succeeded(OutputRefs::default()))),
        any::<bool>().prop_map(|r| Progress::Ended(AttemptOutcome::Failed(error(r), OutputRefs::default()))),
        Just(Progress::Ended(AttemptOutcome::Lost(error(true)))),
    ];
    prop_oneof![
        1 => (0u32..3).prop_map(create),
        4 => (1u8..6, 0u8..6, 0u32..3, any::<bool>()).prop_map(|(a, p, r, is_trace)| Command::Enqueue {
            action: name(a),
            parent: name(p),
            group: String::new(),
            seed: Box::new(if is_trace { trace() } else { seed(r) }),
        }),
        5 => (action.clone(), 0u64..4).prop_map(|(action, t)| Command::Lease { action, lease: lease(t) }),
        12 => (action.clone(), 1u32..4, 0u64..4, progress)
            .prop_map(|(action, attempt, t, progress)| Command::Report {
                action,
                attempt,
                token: LeaseToken(t),
                progress
            }),
        1 => action.clone().prop_map(|action| Command::Abort {
            action,
            by: EndedBy { subject: "me".into(), reason: "enough".into() }
        }),
        2 => Just(Command::Settle { actions: (0..6).map(name).collect() }),
        2 => action.prop_map(|action| Command::CheckLimits { action }),
    ]
}

/// What must hold of one action between two moments.
fn check_step(before: &ActionState, after: &ActionState) {
    if before.phase.is_terminal() {
        assert_eq!(before, after, "a terminal action is final");
    }
    assert!(after.attempts.len() >= before.attempts.len(), "attempts only increase");
    for (b, a) in before.attempts.iter().zip(&after.attempts) {
        assert_eq!(b.number, a.number);
        assert!(a.phase.rank() >= b.phase.rank(), "within an attempt phases only advance");
        assert!(a.transitions.starts_with(&b.transitions), "what an attempt went through is kept");
        if let (Some(held), false) = (&b.lease, b.phase.is_terminal()) {
            assert_eq!(a.lease.as_ref(), Some(held), "one holder per attempt");
        }
    }
}

fn check_state(state: &ActionState) {
    let open = state.attempts.iter().filter(|a| !a.phase.is_terminal()).count();
    match state.kind() {
        ActionKind::Trace => assert!(state.phase.is_terminal() && state.attempts.is_empty()),
        ActionKind::Task => {
            assert_eq!(open, usize::from(!state.phase.is_terminal()), "one attempt is under way until the end");
            assert_eq!(state.current().unwrap().phase, state.phase, "the action is where its attempt is");
        }
    }
    for (i, attempt) in state.attempts.iter().enumerate() {
        assert_eq!(attempt.number as usize, i + 1, "attempts are numbered from 1 without gaps");
        let ranks: Vec<_> = attempt.transitions.iter().map(|t| t.phase.rank()).collect();
        assert!(ranks.is_sorted());
        assert_eq!(attempt.ended_at.is_some(), attempt.phase.is_terminal());
    }
    assert_eq!(state.ended_at.is_some(), state.phase.is_terminal());
    assert_eq!(state.phase == Phase::Failed || state.phase == Phase::TimedOut, state.error.is_some(), "{state:?}");
    assert_eq!(state.phase == Phase::Aborted, state.aborted.is_some());
    assert!(state.system_failures <= MAX_SYSTEM_FAILURES + 1);
    if let Some(task) = state.task() {
        assert!(state.user_failures <= task.policy.retries + 1, "no more tries than declared");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_under_any_commands(steps in prop::collection::vec((command(), 0u64..3000), 1..80)) {
        let mut world = World::default();
        let mut now = Time::from_micros(1_000_000_000);
        for (command, wait_ms) in steps {
            now = now.plus(std::time::Duration::from_millis(wait_ms));
            let before = world.states.clone();
            let log = world.log.len();
            let first = world.submit(&command, now);
            if first.is_err() {
                prop_assert_eq!(world.log.len(), log, "a refusal changes nothing");
            }
            for (name, state) in &world.states {
                check_state(state);
                if let Some(before) = before.get(name) {
                    check_step(before, state);
                }
            }
            // Again at once, as a client that lost the answer would: never a second effect.
            if matches!(command, Command::CreateRun { .. } | Command::Enqueue { .. } | Command::Settle { .. }) && first.is_ok() {
                prop_assert_eq!(world.submit(&command, now), Ok(Reply::Unchanged));
            }
        }
        // The log alone makes the same states.
        let mut replayed = BTreeMap::new();
        for (at, event) in &world.log {
            let json = serde_json::to_string(event).unwrap();
            let event: Event = serde_json::from_str(&json).unwrap();
            let name = event.action().clone();
            let state = apply(replayed.remove(&name), &event, *at).unwrap();
            replayed.insert(name, state);
        }
        prop_assert_eq!(&replayed, &world.states);
        // After settling, nothing lives below what has ended.
        let all = Command::Settle { actions: world.states.keys().cloned().collect() };
        world.submit(&all, now).unwrap();
        for state in world.states.values().filter(|s| !s.phase.is_terminal()) {
            prop_assert!(state.ancestors.iter().all(|a| !world.states[a].phase.is_terminal()));
        }
    }
}

fn started(world: &mut World, retries: u32) {
    let t = Time::from_micros(0);
    world.submit(&create(retries), t).unwrap();
    world.submit(&Command::Lease { action: name(0), lease: lease(1) }, t).unwrap();
    report(world, 1, 1, Progress::Running, t).unwrap();
}

fn report(world: &mut World, attempt: u32, token: u64, progress: Progress, at: Time) -> Result<Reply, Refusal> {
    let command = Command::Report { action: name(0), attempt, token: LeaseToken(token), progress };
    world.submit(&command, at)
}

#[test]
fn a_failed_attempt_is_retried_after_its_backoff_and_keeps_its_error() {
    let mut world = World::default();
    started(&mut world, 1);
    let t = Time::from_micros(5_000);
    let failed = Progress::Ended(AttemptOutcome::Failed(error(true), OutputRefs::default()));
    report(&mut world, 1, 1, failed.clone(), t).unwrap();
    let state = &world.states[&name(0)];
    assert_eq!((state.phase, state.attempts.len()), (Phase::Queued, 2));
    assert_eq!(state.ready_at(), Some(Time::from_micros(15_000)));
    assert_eq!(state.attempts[0].error.as_ref().unwrap().code, "Boom");

    let early = Command::Lease { action: name(0), lease: lease(2) };
    assert!(world.submit(&early, t).is_err(), "not before its backoff");
    let t = Time::from_micros(15_000);
    world.submit(&early, t).unwrap();
    assert!(report(&mut world, 1, 1, Progress::Running, t).is_err(), "the first attempt is over");
    report(&mut world, 2, 2, failed, t).unwrap();
    assert_eq!(world.states[&name(0)].phase, Phase::Failed);
}

#[test]
fn a_non_recoverable_error_is_not_retried() {
    let mut world = World::default();
    started(&mut world, 5);
    let failed = Progress::Ended(AttemptOutcome::Failed(error(false), OutputRefs::default()));
    report(&mut world, 1, 1, failed, Time::from_micros(1)).unwrap();
    assert_eq!(world.states[&name(0)].phase, Phase::Failed);
}

#[test]
fn lost_attempts_do_not_use_up_user_retries() {
    let mut world = World::default();
    started(&mut world, 0);
    let mut t = Time::from_micros(1);
    for n in 1..=MAX_SYSTEM_FAILURES {
        report(&mut world, n, u64::from(n), Progress::Ended(AttemptOutcome::Lost(error(true))), t).unwrap();
        t = t.plus(std::time::Duration::from_secs(2));
        let again = Command::Lease { action: name(0), lease: lease(u64::from(n) + 1) };
        world.submit(&again, t).unwrap();
    }
    let last = MAX_SYSTEM_FAILURES + 1;
    report(&mut world, last, u64::from(last), Progress::Ended(AttemptOutcome::Lost(error(true))), t).unwrap();
    let state = &world.states[&name(0)];
    assert_eq!((state.phase, state.user_failures), (Phase::Failed, 0));
}

#[test]
fn an_abort_wins_or_loses_against_completion() {
    for abort_first in [true, false] {
        let mut world = World::default();
        started(&mut world, 0);
        let t = Time::from_micros(9);
        let abort = Command::Abort { action: name(0), by: EndedBy { subject: "me".into(), reason: "no".into() } };
        let done = Progress::Ended(AttemptOutcome::Succeeded(OutputRefs::default()));
        if abort_first {
            world.submit(&abort, t).unwrap();
            assert_eq!(report(&mut world, 1, 1, done, t), Ok(Reply::Unchanged));
            assert_eq!(world.states[&name(0)].phase, Phase::Aborted);
        } else {
            report(&mut world, 1, 1, done, t).unwrap();
            assert!(matches!(world.submit(&abort, t), Err(Refusal::Ended { .. })));
            assert_eq!(world.states[&name(0)].phase, Phase::Succeeded);
        }
    }
}

#[test]
fn time_limits_end_attempts_with_their_own_code() {
    let mut world = World::default();
    started(&mut world, 1);
    let check = Command::CheckLimits { action: name(0) };
    assert_eq!(world.submit(&check, Time::from_micros(4_999_999)), Ok(Reply::Unchanged));
    assert_eq!(world.submit(&check, Time::from_micros(5_000_000)), Ok(Reply::Done));
    let state = &world.states[&name(0)];
    assert_eq!(state.attempts[0].error.as_ref().unwrap().code, "MAX_RUNTIME_EXCEEDED");
    assert_eq!((state.attempts[0].phase, state.phase), (Phase::TimedOut, Phase::Queued), "the runtime is per attempt");
    assert_eq!(world.submit(&check, Time::from_micros(5_000_001)), Ok(Reply::Unchanged), "a stale timer does nothing");
    assert_eq!(world.submit(&check, Time::from_micros(100_000_000)), Ok(Reply::Done));
    assert_eq!(world.states[&name(0)].phase, Phase::TimedOut);
}

#[test]
fn what_lives_below_an_ended_action_is_shown_as_ended_before_its_record_follows() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(7);
    let child = Command::Enqueue { action: name(1), parent: name(0), group: String::new(), seed: Box::new(seed(0)) };
    world.submit(&child, t).unwrap();
    let abort = Command::Abort { action: name(0), by: EndedBy { subject: "me".into(), reason: "no".into() } };
    world.submit(&abort, t).unwrap();
    let shown = world.states[&name(1)].clone().shown_under(&world.states[&name(0)]);
    world.submit(&Command::Settle { actions: vec![name(1)] }, t).unwrap();
    assert_eq!(shown, world.states[&name(1)], "the record says what was shown");
    let late = Command::Enqueue { action: name(2), parent: name(1), group: String::new(), seed: Box::new(seed(0)) };
    assert!(matches!(world.submit(&late, t), Err(Refusal::AncestorEnded { .. })));
}
