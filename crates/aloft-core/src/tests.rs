//! The invariants of the core under random commands: duplicated, reordered, from stale workers, at any time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::*;

mod tracked;

/// A run as a store would keep it.
#[derive(Default)]
struct World {
    states: BTreeMap<ActionName, ActionState>,
    log: Vec<(Time, Event)>,
    entry: Option<CacheEntry>,
    /// The result of another domain.
    elsewhere: Option<CacheEntry>,
    holder: Option<Reservation>,
    queues: BTreeMap<String, QueueRoom>,
}

impl View for World {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        self.states.get(name)
    }

    fn open_children(&self, name: &ActionName) -> EndedBelow {
        let open = self.states.values().filter(|s| s.parent() == Some(name) && !s.phase.is_terminal());
        let names: Vec<_> = open.map(|s| s.name.clone()).collect();
        EndedBelow { count: names.len() as u64, names }
    }

    fn cache(&self, state: &ActionState) -> CacheView {
        let me = Reservation::owner_of(&run(), &state.name);
        let entries = self.entry.iter().chain(&self.elsewhere).cloned().collect();
        CacheView { entries, holder: self.holder.clone(), me }
    }

    fn queue(&self, name: &str) -> Option<QueueRoom> {
        self.queues.get(name).cloned()
    }

    fn places(&self) -> Vec<QueueRoom> {
        Vec::new()
    }
}

fn run() -> RunKey {
    RunKey::new(Scope::new("o", "p", "d").unwrap(), "r").unwrap()
}

impl World {
    /// The state as every view shows it.
    fn shown(&self, state: &ActionState) -> ActionState {
        match ActionState::that_ended_below(state.ancestors.iter().map(|a| &self.states[a])) {
            Some(ended) => state.clone().shown_under(ended),
            None => state.clone(),
        }
    }

    fn submit(&mut self, command: &Command, now: Time) -> Result<Reply, Refusal> {
        let decision = decide(self, command, now)?;
        assert_eq!(decision.events.is_empty(), decision.reply == Reply::Unchanged, "{command:?}");
        for event in decision.events {
            let name = event.action().clone();
            let before = self.states.remove(&name);
            let state = apply(before.clone(), &event, now).expect("decide yields only events that apply");
            for effect in effects(&run(), before.as_ref(), &state, now) {
                match effect {
                    Effect::Cache { entry, .. } => self.entry = Some(entry),
                    Effect::Reserve { reservation, .. } => {
                        assert!(self.holder.is_none(), "at most one computes: {:?} and {reservation:?}", self.holder);
                        self.holder = Some(reservation);
                    }
                    Effect::Release { owner, .. } => {
                        assert_eq!(self.holder.take().map(|h| h.owner), Some(owner), "only the holder gives back");
                    }
                }
            }
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
        cache: None,
        queue: DEFAULT_QUEUE.into(),
        asks: Asks::default(),
    })
}

fn cached(serialize: bool, overwrite: bool) -> Seed {
    let Seed::Task(mut task) = seed(1) else { unreachable!() };
    let max_age_ms = Some(20_000);
    task.cache = Some(CachePlan { key: "k".into(), serialize, overwrite, max_age_ms, ..CachePlan::default() });
    Seed::Task(task)
}

fn condition() -> Seed {
    Seed::Condition(ConditionSeed {
        name: "approve".into(),
        kind: SignalKind::Int,
        timeout_ms: Some(30_000),
        webhook: true,
        spec_digest: "d".into(),
    })
}

fn recovered() -> Recovered {
    let from = ActionRef { run: RunKey { name: "old".into(), ..run() }, action: name(1) };
    Recovered { from, outputs: OutputRefs { output_uri: "s3://b/old".into(), ..OutputRefs::default() }, signal: None }
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
    create_with(seed(retries))
}

fn create_with(seed: Seed) -> Command {
    Command::create_run(seed, RunInfo::default())
}

fn enqueue(action: u8, parent: u8, seed: Seed) -> Command {
    Command::enqueue(name(action), name(parent), "", seed)
}

fn new_seed() -> impl Strategy<Value = Seed> {
    prop_oneof![
        3 => (0u32..3).prop_map(seed),
        2 => Just(trace()),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(serialize, overwrite)| cached(serialize, overwrite)),
        1 => Just(condition()),
    ]
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
        1 => tracked::command(),
        4 => (1u8..6, 0u8..6, new_seed()).prop_map(|(a, p, seed)| enqueue(a, p, seed)),
        1 => (1u8..6, 0u8..6).prop_map(|(a, p)| match enqueue(a, p, seed(0)) {
            Command::Enqueue { action, parent, group, seed, .. } => Command::Enqueue {
                action, parent, group, seed,
                recovered: Some(Box::new(recovered())),
                traces: Vec::new(),
            },
            other => other,
        }),
        3 => (action.clone(), 0u8..3).prop_map(|(action, seen)| Command::LookUp {
            action,
            seen: match seen {
                0 => Seen::Nothing,
                1 => Seen::Failed,
                _ => Seen::Data { output_uri: String::new() },
            },
        }),
        1 => action.clone().prop_map(|action| Command::Hold { action, reason: "full".into() }),
        1 => action.clone().prop_map(|action| Command::Reject { action, error: error(false) }),
        2 => (action.clone(), 0i64..2).prop_map(|(action, n)| Command::Signal {
            action,
            value: SignalValue::Int(n),
            by: Subject::default(),
        }),
        1 => action.clone().prop_map(|action| Command::Called { action, outcome: WebhookOutcome::Delivered }),
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
            by: EndedBy::asked("me", "enough")
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
        assert!(!b.phase.is_terminal() || a == b, "what has ended is kept as it is");
        if let (Some(held), false) = (&b.lease, b.phase.is_terminal()) {
            assert_eq!(a.lease.as_ref(), Some(held), "one holder per attempt");
        }
    }
}

fn check_state(state: &ActionState) {
    let open = state.attempts.iter().filter(|a| !a.phase.is_terminal()).count();
    match state.kind() {
        _ if state.is_tracked() => tracked::check_state(state),
        ActionKind::Trace => assert!(state.phase.is_terminal() && state.attempts.is_empty()),
        _ if state.phase == Phase::Recovered => {
            assert!(state.recovered_from.is_some() && state.attempts.is_empty(), "what is recovered never ran");
        }
        ActionKind::Condition => {
            assert!(state.attempts.is_empty() && (state.phase == Phase::Paused || state.phase.is_terminal()));
            assert_eq!(state.phase == Phase::Succeeded, state.signal.is_some(), "it succeeds by a signal only");
        }
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
    assert!(!(state.cache.pending && state.live_lease().is_some()), "nothing is handed out before its lookup");
    assert!(!state.phase.is_terminal() || !(state.cache.pending || state.cache.reserved), "the end gives all back");
    if state.cache.status == CacheStatus::Hit && !state.is_tracked() {
        assert_eq!((state.phase, state.attempts.len()), (Phase::Succeeded, 1));
        assert!(state.attempts[0].lease.is_none(), "a hit never ran");
    }
    assert!(state.system_failures <= MAX_SYSTEM_FAILURES + 1);
    if let Some(task) = state.task().filter(|_| !state.is_tracked()) {
        assert!(state.user_failures <= task.policy.retries + 1, "no more tries than declared");
    }
}

/// Carries out the commands, each some milliseconds after the one before, and checks every invariant on the way.
fn check_invariants(steps: Vec<(Command, u64)>) {
    let mut world = World::default();
    let mut now = Time::from_micros(1_000_000_000);
    for (command, wait_ms) in steps {
        now = now.plus(std::time::Duration::from_millis(wait_ms));
        let before = world.states.clone();
        let log = world.log.len();
        let first = world.submit(&command, now);
        if first.is_err() {
            assert_eq!(world.log.len(), log, "a refusal changes nothing");
        }
        for (name, state) in &world.states {
            check_state(state);
            if let Some(before) = before.get(name) {
                check_step(before, state);
            }
        }
        // Again at once, as a client that lost the answer would: never a second effect.
        let repeatable = matches!(
            command,
            Command::CreateRun { .. }
                | Command::CreateTracked { .. }
                | Command::Enqueue { .. }
                | Command::Track { .. }
                | Command::Settle { .. }
        );
        if repeatable && first.is_ok() {
            assert_eq!(world.submit(&command, now), Ok(Reply::Unchanged), "{command:?}");
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
    assert_eq!(&replayed, &world.states);
    // After settling, nothing lives below what has ended, and every record says what was shown before it.
    let shown: BTreeMap<_, _> = world.states.values().map(|s| (s.name.clone(), world.shown(s))).collect();
    let all = Command::Settle { actions: world.states.keys().cloned().collect() };
    world.submit(&all, now).unwrap();
    for state in world.states.values() {
        if !state.phase.is_terminal() {
            assert!(state.ancestors.iter().all(|a| !world.states[a].phase.is_terminal()));
        }
        assert_eq!(&shown[&state.name], state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_under_any_commands(steps in prop::collection::vec((command(), 0u64..3000), 1..80)) {
        check_invariants(steps);
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
        let abort = Command::Abort { action: name(0), by: EndedBy::asked("me", "no") };
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
    world.submit(&enqueue(1, 0, seed(0)), t).unwrap();
    let abort = Command::Abort { action: name(0), by: EndedBy::asked("me", "no") };
    world.submit(&abort, t).unwrap();
    let shown = world.states[&name(1)].clone().shown_under(&world.states[&name(0)]);
    world.submit(&Command::Settle { actions: vec![name(1)] }, t).unwrap();
    assert_eq!(shown, world.states[&name(1)], "the record says what was shown");
    assert_eq!(world.states[&name(0)].ended_below.names, [name(1)], "and the parent says which it ended");
    assert!(matches!(world.submit(&enqueue(2, 1, seed(0)), t), Err(Refusal::AncestorEnded { .. })));
}

fn lookup(world: &mut World, action: u8, seen: Seen, at: i64) -> Result<Reply, Refusal> {
    world.submit(&Command::LookUp { action: name(action), seen }, Time::from_micros(at))
}

fn succeed(world: &mut World, action: u8, uri: &str, at: i64) {
    let at = Time::from_micros(at);
    world.submit(&Command::Lease { action: name(action), lease: lease(u64::from(action)) }, at).unwrap();
    let outputs = OutputRefs { output_uri: uri.into(), ..OutputRefs::default() };
    let progress = Progress::Ended(AttemptOutcome::Succeeded(outputs));
    let token = LeaseToken(u64::from(action));
    world.submit(&Command::Report { action: name(action), attempt: 1, token, progress }, at).unwrap();
}

#[test]
fn identical_work_is_computed_once_and_the_others_wait_for_it() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(1);
    for n in 1..=3 {
        world.submit(&enqueue(n, 0, cached(true, false)), t).unwrap();
        assert!(matches!(
            world.submit(&Command::Lease { action: name(n), lease: lease(9) }, t),
            Err(Refusal::NotReady(_))
        ));
    }
    assert_eq!(lookup(&mut world, 1, Seen::Nothing, 2), Ok(Reply::Done));
    assert_eq!(lookup(&mut world, 2, Seen::Nothing, 2), Ok(Reply::Done));
    assert_eq!(lookup(&mut world, 2, Seen::Nothing, 3), Ok(Reply::Unchanged), "it says once that it waits");
    let waiting = &world.states[&name(2)];
    assert_eq!((waiting.phase, waiting.ready_at()), (Phase::WaitingForResources, None));
    assert!(waiting.attempts[0].transitions[1].reason.contains("o/p/d/r/x1"));
    succeed(&mut world, 1, "s3://b/1", 4);
    assert_eq!(world.states[&name(1)].cache.status, CacheStatus::Populated);
    assert_eq!(world.holder, None);
    // What the waiting one saw before is not what is there now: it looks again.
    assert_eq!(lookup(&mut world, 2, Seen::Nothing, 5), Ok(Reply::Unchanged));
    lookup(&mut world, 2, Seen::Data { output_uri: "s3://b/1".into() }, 5).unwrap();
    let hit = &world.states[&name(2)];
    assert_eq!(
        (hit.phase, hit.cache.status, hit.outputs.output_uri.as_str()),
        (Phase::Succeeded, CacheStatus::Hit, "s3://b/1")
    );
    assert_eq!(hit.cache.source.as_ref().unwrap().action, name(1));
    // Too old for what the task declares.
    lookup(&mut world, 3, Seen::Nothing, 20_000_005).unwrap();
    assert_eq!(world.states[&name(3)].cache.status, CacheStatus::Miss);
}

#[test]
fn a_dead_holder_is_replaced() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(1);
    for n in 1..=2 {
        world.submit(&enqueue(n, 0, cached(true, false)), t).unwrap();
        lookup(&mut world, n, Seen::Nothing, 1).unwrap();
    }
    let by = EndedBy::asked("me", "no");
    world.submit(&Command::Abort { action: name(1), by }, t).unwrap();
    lookup(&mut world, 2, Seen::Nothing, 2).unwrap();
    let state = &world.states[&name(2)];
    assert!(state.cache.reserved && state.ready_at().is_some());
    assert_eq!(world.holder.as_ref().unwrap().owner, "o/p/d/r/x2");
    // One from outside that has lapsed does not hold anybody up.
    world.submit(&Command::Abort { action: name(2), by: EndedBy::asked("", "") }, t).unwrap();
    world.holder = Some(Reservation { owner: "elsewhere".into(), expires_at: Some(Time::from_micros(10)) });
    world.submit(&enqueue(3, 0, cached(true, false)), t).unwrap();
    lookup(&mut world, 3, Seen::Nothing, 9).unwrap();
    assert!(world.states[&name(3)].cache.pending);
    world.holder = None;
    lookup(&mut world, 3, Seen::Nothing, 10).unwrap();
    assert!(world.states[&name(3)].cache.reserved);
}

#[test]
fn each_reason_for_which_an_attempt_waits_is_said_once() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(1);
    for n in 1..=2 {
        world.submit(&enqueue(n, 0, cached(true, false)), t).unwrap();
        lookup(&mut world, n, Seen::Nothing, 1).unwrap();
    }
    let hold = |reason: &str| Command::Hold { action: name(2), reason: reason.into() };
    assert_eq!(world.submit(&hold("full"), t), Ok(Reply::Unchanged), "it waits for the other, not for room");
    world.submit(&Command::Abort { action: name(1), by: EndedBy::asked("me", "no") }, t).unwrap();
    lookup(&mut world, 2, Seen::Nothing, 2).unwrap();
    let t = Time::from_micros(3);
    for (reason, reply) in
        [("full", Reply::Done), ("full", Reply::Unchanged), ("other", Reply::Done), ("full", Reply::Unchanged)]
    {
        assert_eq!(world.submit(&hold(reason), t), Ok(reply), "{reason}");
    }
    let said: Vec<_> = world.states[&name(2)].attempts[0].transitions[2..].iter().map(|t| t.reason.as_str()).collect();
    assert_eq!(said, ["full", "other"]);
}

#[test]
fn overwriting_computes_and_replaces() {
    let mut world = World::default();
    started(&mut world, 0);
    let old = CacheEntry {
        outputs: OutputRefs { output_uri: "s3://b/old".into(), ..OutputRefs::default() },
        source: None,
        metadata: Vec::new(),
        created_at: Time::default(),
        updated_at: Time::default(),
    };
    world.entry = Some(old);
    world.submit(&enqueue(1, 0, cached(false, true)), Time::from_micros(1)).unwrap();
    lookup(&mut world, 1, Seen::Data { output_uri: "s3://b/old".into() }, 1).unwrap();
    assert_eq!(world.states[&name(1)].cache.status, CacheStatus::Skipped);
    succeed(&mut world, 1, "s3://b/new", 2);
    assert_eq!(world.entry.unwrap().outputs.output_uri, "s3://b/new");
    let cache = &world.states[&name(1)].cache;
    assert_eq!(
        (cache.status, cache.looked),
        (CacheStatus::Populated, Some(CacheStatus::Skipped)),
        "what was before stays"
    );
}

#[test]
fn the_first_result_that_is_young_enough_stands_in() {
    let mut world = World::default();
    started(&mut world, 0);
    let computed = |uri: &str, at| CacheEntry {
        outputs: OutputRefs { output_uri: uri.into(), ..OutputRefs::default() },
        source: None,
        metadata: Vec::new(),
        created_at: Time::from_micros(at),
        updated_at: Time::from_micros(at),
    };
    (world.entry, world.elsewhere) = (Some(computed("s3://b/own", 0)), Some(computed("s3://b/other", 20_000_000)));
    world.submit(&enqueue(1, 0, cached(false, false)), Time::from_micros(1)).unwrap();
    lookup(&mut world, 1, Seen::Data { output_uri: "s3://b/other".into() }, 30_000_000).unwrap();
    assert_eq!(world.states[&name(1)].outputs.output_uri, "s3://b/other");
}

#[test]
fn a_condition_waits_for_its_kind_of_value_and_takes_one() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(1);
    world.submit(&enqueue(1, 0, condition()), t).unwrap();
    assert_eq!(world.states[&name(1)].phase, Phase::Paused);
    assert!(world.states[&name(1)].webhook_is_due());
    let signal =
        |value| Command::Signal { action: name(1), value, by: Subject { id: "me".into(), ..Subject::default() } };
    let refused = world.submit(&signal(SignalValue::Text("5".into())), t).unwrap_err();
    assert_eq!(refused.to_string(), "condition x1 waits for an integer, not for a string");
    assert_eq!(world.submit(&signal(SignalValue::Int(5)), t), Ok(Reply::Done));
    assert_eq!(world.submit(&signal(SignalValue::Int(5)), t), Ok(Reply::Unchanged));
    assert_eq!(world.submit(&signal(SignalValue::Int(6)), t), Err(Refusal::SignalledAlready(name(1))));
    assert_eq!(world.states[&name(1)].signal.as_ref().unwrap().by.id, "me");
    assert!(!world.states[&name(1)].webhook_is_due());
    let not = Command::Signal { action: name(0), value: SignalValue::Int(1), by: Subject::default() };
    assert_eq!(world.submit(&not, t), Err(Refusal::NotACondition(name(0))));
}

#[test]
fn a_condition_that_nobody_signals_times_out() {
    let mut world = World::default();
    started(&mut world, 0);
    world.submit(&enqueue(1, 0, condition()), Time::from_micros(0)).unwrap();
    let check = Command::CheckLimits { action: name(1) };
    assert_eq!(world.submit(&check, Time::from_micros(29_999_999)), Ok(Reply::Unchanged));
    assert_eq!(world.submit(&check, Time::from_micros(30_000_000)), Ok(Reply::Done));
    let state = &world.states[&name(1)];
    assert_eq!((state.phase, state.error.as_ref().unwrap().code.as_str()), (Phase::TimedOut, "CONDITION_TIMED_OUT"));
    let late = Command::Signal { action: name(1), value: SignalValue::Int(1), by: Subject::default() };
    assert!(matches!(world.submit(&late, Time::from_micros(30_000_001)), Err(Refusal::Ended { .. })));
}

#[test]
fn queues_refuse_what_they_cannot_hold() {
    let mut world = World::default();
    started(&mut world, 0);
    let t = Time::from_micros(1);
    let queued = |queue: &str| {
        let Seed::Task(mut task) = seed(0) else { unreachable!() };
        task.queue = queue.into();
        enqueue(1, 0, Seed::Task(task))
    };
    assert_eq!(world.submit(&queued("q"), t), Err(Refusal::NoSuchQueue("q".into())));
    let load = QueueRoom { name: "queue q".into(), depth: Some(2), waiting: 1, running: 1, closed: None };
    world.queues.insert("q".into(), load.clone());
    assert_eq!(world.submit(&queued("q"), t), Err(Refusal::Full { what: "queue q".into(), depth: 2 }));
    world.queues.insert("q".into(), QueueRoom { closed: Some("draining"), ..load.clone() });
    assert!(matches!(world.submit(&queued("q"), t), Err(Refusal::QueueClosed { .. })));
    world.queues.insert("q".into(), QueueRoom { waiting: 0, ..load.clone() });
    assert_eq!(world.submit(&queued("q"), t), Ok(Reply::Done));
    // What works in a draining queue may finish there, with what it starts; not in a deleted one.
    let child = |closed| {
        let mut world = World::default();
        let Seed::Task(mut task) = seed(0) else { unreachable!() };
        task.queue = "q".into();
        world.queues.insert("q".into(), QueueRoom::default());
        world.submit(&create_with(Seed::Task(task)), t).unwrap();
        world.queues.insert("q".into(), QueueRoom { closed: Some(closed), ..QueueRoom::default() });
        world.submit(&queued("q"), t)
    };
    assert_eq!(child("draining"), Ok(Reply::Done));
    assert!(matches!(child("deleted"), Err(Refusal::QueueClosed { .. })));
    // What is there already is found again, however full the queue is.
    world.queues.insert("q".into(), load);
    assert_eq!(world.submit(&queued("q"), t), Ok(Reply::Unchanged));
}

#[test]
fn a_recovering_run_takes_over_results_and_traces() {
    let mut world = World::default();
    let taken = RecoveredTrace {
        action: name(4),
        group: "g".into(),
        seed: match trace() {
            Seed::Trace(seed) => seed,
            _ => unreachable!(),
        },
        from: recovered().from,
    };
    let Command::CreateRun { seed, info, .. } = create(0) else { unreachable!() };
    let traces = vec![taken];
    let again = Command::Enqueue {
        action: name(5),
        parent: name(0),
        group: String::new(),
        seed: Box::new(self::seed(0)),
        recovered: None,
        traces: traces.clone(),
    };
    let command = Command::CreateRun { seed, info, recovered: None, traces };
    world.submit(&command, Time::from_micros(1)).unwrap();
    let trace = &world.states[&name(4)];
    assert_eq!((trace.phase, trace.parent()), (Phase::Recovered, Some(&name(0))));
    assert_eq!(world.submit(&enqueue(4, 0, self::trace()), Time::from_micros(2)), Ok(Reply::Unchanged));
    assert_eq!(world.states[&name(4)].phase, Phase::Recovered, "what was taken over stands");
    // Stores load what a command touches, and nothing else can be seen to be there.
    assert!(again.touches().contains(&name(4)));
    world.submit(&again, Time::from_micros(3)).unwrap();
    assert_eq!(world.states[&name(4)].created_at, Time::from_micros(1), "it is not made twice");
}
