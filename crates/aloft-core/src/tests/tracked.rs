//! Runs that are carried out elsewhere: whatever is reported, in whatever order and however often.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    World, check_invariants, command as any_command, condition, create, enqueue, error, lease, name, seed, trace,
};
use crate::*;

fn step() -> impl Strategy<Value = TrackedStep> {
    prop_oneof![
        1 => Just(TrackedStep::Queued),
        1 => Just(TrackedStep::Initializing),
        4 => Just(TrackedStep::Running),
        2 => Just(TrackedStep::Succeeded),
        3 => any::<bool>().prop_map(|recoverable| TrackedStep::Failed(error(recoverable))),
        1 => Just(TrackedStep::TimedOut(error(true))),
        1 => Just(TrackedStep::Aborted(stopped())),
    ]
}

fn stopped() -> EndedBy {
    EndedBy::asked("me", "stopped by hand")
}

fn cache() -> impl Strategy<Value = CacheStatus> {
    prop_oneof![4 => Just(CacheStatus::Disabled), 1 => Just(CacheStatus::Miss), 1 => Just(CacheStatus::Hit)]
}

fn reported() -> impl Strategy<Value = TrackedReport> {
    // Clocks that run behind and ahead.
    (1u32..5, 0u32..4, step(), 0i64..3_000, cache()).prop_map(|(attempt, version, step, seconds, cache)| {
        TrackedReport {
            attempt,
            version,
            step,
            at: Time::from_micros(seconds * 1_000_000),
            outputs: OutputRefs::default(),
            cache,
        }
    })
}

/// Commands that only runs know which are carried out elsewhere.
pub(super) fn command() -> impl Strategy<Value = Command> {
    let work = prop_oneof![(0u32..3).prop_map(seed), Just(trace())];
    prop_oneof![
        1 => (0u32..3, prop::option::of(0i64..2)).prop_map(|(retries, began)| begin(retries, began)),
        8 => (0u8..6, 0u8..6, prop::option::of(work), reported()).prop_map(|(action, parent, seed, report)| {
            Command::Track {
                action: name(action),
                parent: name(parent),
                group: String::new(),
                began: None,
                seed: seed.map(Box::new),
                report,
            }
        }),
    ]
}

pub(super) fn check_state(state: &ActionState) {
    let open = state.attempts.iter().filter(|a| !a.phase.is_terminal()).count();
    let last = state.current().expect("it has an attempt from the first");
    assert_eq!(state.ready_at(), None, "it is never handed out");
    assert_eq!((state.queue(), state.pending_lookup(), state.live_lease()), (None, None, None));
    assert!(state.attempts.iter().all(|a| a.lease.is_none()) && !state.counts(0), "it counts against nothing");
    match state.next_attempt_by() {
        Some(by) => {
            assert_eq!((open, state.phase), (0, Phase::Queued), "it waits for the next attempt");
            assert!(matches!(last.phase, Phase::Failed | Phase::TimedOut) && last.error.is_some());
            assert_eq!((state.due_at(), state.task().is_some()), (Some(by), true));
        }
        None => {
            assert_eq!(open, usize::from(!state.phase.is_terminal()), "one attempt is under way until the end");
            assert_eq!(state.due_at(), None, "what runs elsewhere has no time limit here");
            if state.phase != Phase::Aborted {
                assert_eq!(last.phase, state.phase, "the action is where its attempt is");
            }
        }
    }
    let times: Vec<_> = state.attempts.iter().flat_map(|a| &a.transitions).map(|t| t.at).collect();
    assert!(times.is_sorted() && times[0] >= state.created_at, "time does not run backwards: {times:?}");
    assert_eq!(state.attempts.iter().filter(|a| a.error.is_some()).count(), state.user_failures as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_under_any_reports(
        retries in 0u32..3,
        steps in prop::collection::vec((prop_oneof![4 => command(), 1 => any_command()], 0u64..90_000), 1..80),
    ) {
        let first = (begin(retries, None), 0);
        check_invariants(std::iter::once(first).chain(steps).collect());
    }

    /// A reporter that says everything in order and says parts of it again, as one that lost answers does.
    #[test]
    fn what_is_said_again_changes_nothing(
        lives in lives(),
        again in prop::collection::vec((any::<prop::sample::Index>(), 1usize..12), 0..6),
    ) {
        let story = story(&lives);
        let tell = |repeats: &[(prop::sample::Index, usize)]| {
            let mut world = World::default();
            world.submit(&begin(2, Some(1)), at(0)).unwrap();
            for (n, command) in story.iter().enumerate() {
                let now = at(10_000 + n as u64);
                assert_eq!(world.submit(command, now), Ok(Reply::Done), "{command:?}");
                for (_, length) in repeats.iter().filter(|(index, _)| index.index(story.len()) == n) {
                    for old in &story[n.saturating_sub(*length)..=n] {
                        assert_eq!(world.submit(old, now), Ok(Reply::Unchanged), "{old:?}");
                    }
                }
            }
            world
        };
        let (once, often) = (tell(&[]), tell(&again));
        prop_assert_eq!(once.states, often.states);
        prop_assert_eq!(once.log, often.log);
    }

    /// However reports are mixed up, none of those that introduce their action is refused, and the last attempt counts.
    #[test]
    fn reports_may_come_in_any_order(mut lives in lives(), order in prop::collection::vec(any::<u32>(), 64)) {
        lives.iter_mut().for_each(|l| l.parent = 0);
        let mut world = World::default();
        world.submit(&begin(2, Some(1)), at(0)).unwrap();
        let mut mixed: Vec<_> = story(&lives).into_iter().zip(order).collect();
        mixed.sort_by_key(|(_, place)| *place);
        for (command, _) in &mixed {
            let done = world.submit(command, at(10_000));
            // Once the last attempt has failed for good, an earlier one is no news; so nothing is refused.
            prop_assert!(done.is_ok(), "{:?}: {:?}", command, done);
        }
        for (n, life) in lives.iter().enumerate() {
            let state = &world.states[&name(n as u8 + 1)];
            prop_assert_eq!(state.attempts.len(), life.attempts() as usize);
            prop_assert_eq!(state.phase.is_terminal(), life.is_over(), "{:?}", state);
        }
    }
}

/// What becomes of an action where it runs.
#[derive(Clone, Debug)]
struct Life {
    /// Its parent, if that goes on for ever.
    parent: u8,
    retries: u32,
    /// How many attempts fail.
    failures: u32,
    /// Whether the one after those succeeds, or runs for ever.
    ends: bool,
}

impl Life {
    fn attempts(&self) -> u32 {
        self.failures.min(self.retries) + 1
    }

    fn is_over(&self) -> bool {
        self.ends || self.failures > self.retries
    }
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let life = (0u8..6, 0u32..3, 0u32..4, any::<bool>()).prop_map(|(parent, retries, failures, ends)| Life {
        parent,
        retries,
        failures,
        ends,
    });
    prop::collection::vec(life, 1..6)
}

/// What the SDK says of such actions.
fn story(lives: &[Life]) -> Vec<Command> {
    let mut said = Vec::new();
    for (n, life) in lives.iter().enumerate() {
        let goes_on = |p: u8| usize::from(p) <= n && p > 0 && !lives[usize::from(p) - 1].is_over();
        let parent = if goes_on(life.parent) { life.parent } else { 0 };
        let mut say = |attempt, version, step| {
            said.push(introduce(n as u8 + 1, parent, life.retries, attempt, version, step));
        };
        for attempt in 1..=life.attempts() {
            say(attempt, 0, TrackedStep::Running);
            if attempt <= life.failures {
                say(attempt, 1, TrackedStep::Failed(error(true)));
            } else if life.ends {
                say(attempt, 1, TrackedStep::Succeeded);
            }
        }
    }
    said
}

fn at(seconds: u64) -> Time {
    Time::from_micros(1_000_000_000).plus(Duration::from_secs(seconds))
}

fn begin(retries: u32, began: Option<i64>) -> Command {
    Command::CreateTracked { seed: Box::new(seed(retries)), info: Box::default(), began: began.map(Time::from_micros) }
}

fn introduce(action: u8, parent: u8, retries: u32, attempt: u32, version: u32, step: TrackedStep) -> Command {
    Command::Track {
        action: name(action),
        parent: name(parent),
        group: "g".into(),
        began: None,
        seed: Some(Box::new(seed(retries))),
        report: said(attempt, version, step),
    }
}

fn said(attempt: u32, version: u32, step: TrackedStep) -> TrackedReport {
    TrackedReport { attempt, version, step, at: at(5), outputs: OutputRefs::default(), cache: CacheStatus::Disabled }
}

fn of(action: u8, report: TrackedReport) -> Command {
    Command::Track { action: name(action), parent: name(0), group: String::new(), began: None, seed: None, report }
}

/// A run with one action below its root, which runs.
fn begun(retries: u32) -> World {
    let mut world = World::default();
    world.submit(&begin(retries, Some(1)), at(0)).unwrap();
    world.submit(&of(0, said(1, 0, TrackedStep::Running)), at(5)).unwrap();
    world.submit(&introduce(1, 0, retries, 1, 0, TrackedStep::Running), at(6)).unwrap();
    world
}

#[test]
fn a_failed_attempt_waits_for_the_next_and_then_goes_on() {
    let mut world = begun(2);
    world.submit(&of(1, said(1, 1, TrackedStep::Failed(error(true)))), at(7)).unwrap();
    let waiting = &world.states[&name(1)];
    assert_eq!((waiting.phase, waiting.attempts.len()), (Phase::Queued, 1), "the attempt failed, the action waits");
    assert_eq!(waiting.attempts[0].phase, Phase::Failed);
    // Declared are ten milliseconds; another minute for a slow reporter.
    assert_eq!(waiting.due_at(), Some(at(67).plus(Duration::from_millis(10))));
    world.submit(&of(1, said(2, 0, TrackedStep::Running)), at(8)).unwrap();
    let check = Command::CheckLimits { action: name(1) };
    assert_eq!(world.submit(&check, at(1_000)), Ok(Reply::Unchanged), "it runs as long as it runs");
    world.submit(&of(1, said(2, 1, TrackedStep::Succeeded)), at(2_000)).unwrap();
    let done = &world.states[&name(1)];
    assert_eq!((done.phase, done.attempts.len(), done.user_failures), (Phase::Succeeded, 2, 1));
    assert_eq!(done.attempts[0].error.as_ref().unwrap().code, "Boom");
}

#[test]
fn a_failure_is_final_without_retries_and_after_the_wait() {
    let check = Command::CheckLimits { action: name(1) };
    // Not to be tried again, or none left: at once.
    for (retries, recoverable) in [(2, false), (0, true)] {
        let mut world = begun(retries);
        world.submit(&of(1, said(1, 1, TrackedStep::Failed(error(recoverable)))), at(7)).unwrap();
        assert_eq!(world.states[&name(1)].phase, Phase::Failed);
    }
    let mut world = begun(2);
    world.submit(&of(1, said(1, 1, TrackedStep::TimedOut(error(true)))), at(7)).unwrap();
    assert_eq!(world.submit(&check, at(67)), Ok(Reply::Unchanged));
    assert_eq!(world.submit(&check, at(68)), Ok(Reply::Done));
    let ended = &world.states[&name(1)];
    assert_eq!((ended.phase, ended.ended_at), (Phase::TimedOut, ended.attempts[0].ended_at), "it ended when it failed");
    assert_eq!(ended.error.as_ref().unwrap().code, "Boom");
    assert_eq!(world.submit(&check, at(69)), Ok(Reply::Unchanged));
    let late = world.submit(&of(1, said(2, 0, TrackedStep::Running)), at(70));
    assert_eq!(late, Err(Refusal::Ended { name: name(1), phase: Phase::TimedOut }));
}

#[test]
fn what_waits_for_an_attempt_is_aborted_when_its_parent_ends() {
    let mut world = begun(2);
    world.submit(&of(1, said(1, 1, TrackedStep::Failed(error(true)))), at(7)).unwrap();
    world.submit(&of(0, said(1, 1, TrackedStep::Aborted(stopped()))), at(8)).unwrap();
    assert_eq!(world.states[&name(0)].ended_below.names, [name(1)]);
    let shown = world.shown(&world.states[&name(1)]);
    world.submit(&Command::Settle { actions: vec![name(1)] }, at(9)).unwrap();
    let state = &world.states[&name(1)];
    assert_eq!((state.phase, state.phase), (shown.phase, Phase::Aborted), "it would have been tried again");
    assert_eq!(state.attempts[0].error.as_ref().unwrap().code, "Boom", "and its attempt keeps its error");
    assert_eq!(world.submit(&Command::CheckLimits { action: name(1) }, at(10_000)), Ok(Reply::Unchanged));
}

#[test]
fn attempts_that_nobody_reported_have_failed() {
    let mut world = begun(5);
    world.submit(&of(1, said(4, 0, TrackedStep::Running)), at(9)).unwrap();
    let state = &world.states[&name(1)];
    let phases: Vec<_> = state.attempts.iter().map(|a| a.phase).collect();
    assert_eq!(phases, [Phase::Failed, Phase::Failed, Phase::Failed, Phase::Running]);
    assert!(state.attempts[0].error.as_ref().unwrap().message.contains("was not reported"));
    let late = of(1, said(1, 7, TrackedStep::Failed(error(true))));
    assert_eq!(world.submit(&late, at(10)), Ok(Reply::Unchanged));
    let far = of(1, said(106, 0, TrackedStep::Running));
    assert_eq!(world.submit(&far, at(11)), Err(Refusal::Unheard { name: name(1), attempt: 106, known: 4 }));
    world.submit(&of(1, said(105, 0, TrackedStep::Running)), at(12)).unwrap();
    assert_eq!(world.states[&name(1)].attempts.len(), 105);
}

#[test]
fn what_lies_too_deep_is_refused() {
    let mut world = begun(0);
    let deep = |n: usize| ActionName::new(&format!("d{n}")).unwrap();
    for n in 0..=500 {
        let parent = if n == 0 { name(0) } else { deep(n - 1) };
        let Command::Track { group, began, seed, report, .. } = introduce(1, 0, 0, 1, 0, TrackedStep::Running) else {
            unreachable!()
        };
        let done = world.submit(&Command::Track { action: deep(n), parent, group, began, seed, report }, at(9));
        assert_eq!(done, if n < 500 { Ok(Reply::Done) } else { Err(Refusal::TooDeep(deep(n))) });
    }
}

#[test]
fn an_abort_holds_against_all_that_is_reported_later() {
    let mut world = begun(0);
    let abort = Command::Abort { action: name(0), by: EndedBy::asked("me", "no") };
    world.submit(&abort, at(7)).unwrap();
    let done = |action| of(action, said(1, 1, TrackedStep::Succeeded));
    assert_eq!(world.submit(&done(0), at(8)), Err(Refusal::Ended { name: name(0), phase: Phase::Aborted }));
    let above = Refusal::AncestorEnded { ancestor: name(0), phase: Phase::Aborted };
    assert_eq!(world.submit(&done(1), at(8)), Err(above.clone()));
    assert_eq!(world.submit(&introduce(2, 0, 0, 1, 0, TrackedStep::Running), at(8)), Err(above));
    let again = of(1, said(1, 0, TrackedStep::Running));
    assert_eq!(world.submit(&again, at(8)), Ok(Reply::Unchanged), "what was known before is no news");
    assert_eq!(world.states[&name(0)].aborted.as_ref().unwrap().reason, "no");
}

#[test]
fn a_reporter_that_is_stopped_says_so() {
    let mut world = begun(0);
    world.submit(&of(1, said(1, 1, TrackedStep::Aborted(stopped()))), at(7)).unwrap();
    let state = &world.states[&name(1)];
    assert_eq!((state.phase, state.aborted.clone()), (Phase::Aborted, Some(stopped())));
    // A parent that is tried again does its children again, but what has ended has ended.
    let again = of(1, said(1, 2, TrackedStep::Running));
    assert_eq!(world.submit(&again, at(8)), Ok(Reply::Unchanged));
}

#[test]
fn times_are_the_reporters_where_they_can_be() {
    let mut world = World::default();
    // The start that a run names may be any time.
    world.submit(&begin(0, Some(0)), at(100)).unwrap();
    let when = |seconds, version, step| TrackedReport { at: at(seconds), ..said(1, version, step) };
    let root = |world: &World| world.states[&name(0)].clone();
    assert_eq!(root(&world).created_at, at(100));
    world.submit(&of(0, when(101, 0, TrackedStep::Running)), at(105)).unwrap();
    assert_eq!(root(&world).started_at, Some(at(101)), "as it says");
    let child = Command::Track {
        action: name(1),
        parent: name(0),
        group: String::new(),
        began: Some(at(101)),
        seed: Some(Box::new(trace())),
        report: when(102, 0, TrackedStep::Running),
    };
    world.submit(&child, at(106)).unwrap();
    let child = &world.states[&name(1)];
    assert_eq!((child.created_at, child.started_at), (at(101), Some(at(102))));
    world.submit(&of(1, when(50, 1, TrackedStep::Succeeded)), at(107)).unwrap();
    assert_eq!(world.states[&name(1)].ended_at, Some(at(107)), "before it began is when it was heard");
    world.submit(&of(0, when(900, 1, TrackedStep::Succeeded)), at(108)).unwrap();
    assert_eq!(root(&world).ended_at, Some(at(108)), "and so is what is to come");
}

#[test]
fn later_versions_add_what_earlier_ones_did_not_know() {
    let mut world = begun(0);
    let running = |version, cache, report_uri: &str| {
        let outputs = OutputRefs { report_uri: report_uri.into(), ..OutputRefs::default() };
        of(0, TrackedReport { cache, outputs, ..said(1, version, TrackedStep::Running) })
    };
    assert_eq!(world.submit(&running(2, CacheStatus::Miss, "s3://b/r"), at(7)), Ok(Reply::Done));
    assert_eq!(world.submit(&running(1, CacheStatus::Hit, ""), at(7)), Ok(Reply::Unchanged), "an older one");
    assert_eq!(world.submit(&running(3, CacheStatus::Miss, ""), at(7)), Ok(Reply::Unchanged), "nothing new");
    let outputs = OutputRefs { report_uri: "s3://b/r".into(), output_uri: "s3://b/early".into() };
    let late = of(0, TrackedReport { outputs, ..said(1, 3, TrackedStep::Initializing) });
    assert_eq!(world.submit(&late, at(7)), Ok(Reply::Done), "of a phase that is over, it brings outputs");
    assert_eq!(world.submit(&running(2, CacheStatus::Hit, ""), at(7)), Ok(Reply::Unchanged), "still an older one");
    let root = &world.states[&name(0)];
    assert_eq!((root.cache.status, root.attempts[0].transitions.len()), (CacheStatus::Miss, 2));
    let outputs = OutputRefs { output_uri: "s3://b/o".into(), ..OutputRefs::default() };
    let done = TrackedReport { outputs, cache: CacheStatus::Populated, ..said(1, 4, TrackedStep::Succeeded) };
    world.submit(&of(0, done), at(8)).unwrap();
    let root = &world.states[&name(0)];
    assert_eq!((root.outputs.output_uri.as_str(), root.outputs.report_uri.as_str()), ("s3://b/o", "s3://b/r"));
    assert_eq!(root.cache.status, CacheStatus::Populated);
    assert_eq!(world.entry, None, "the reporter's cache is its own");
}

#[test]
fn runs_are_carried_out_here_or_elsewhere() {
    let mut tracked = begun(0);
    let t = at(9);
    assert_eq!(tracked.submit(&enqueue(3, 0, seed(0)), t), Err(Refusal::Tracked));
    assert_eq!(tracked.submit(&enqueue(3, 0, condition()), t), Err(Refusal::Tracked));
    assert!(matches!(tracked.submit(&create(0), t), Err(Refusal::DifferentWork { .. })));
    let take = Command::Lease { action: name(1), lease: lease(1) };
    assert_eq!(tracked.submit(&take, t), Err(Refusal::NotReady(name(1))));

    let mut here = World::default();
    here.submit(&create(0), t).unwrap();
    assert_eq!(here.submit(&of(0, said(1, 0, TrackedStep::Succeeded)), t), Err(Refusal::NotTracked));
    assert!(matches!(here.submit(&begin(0, None), t), Err(Refusal::DifferentWork { .. })));
}

#[test]
fn two_executions_of_one_name_are_told_apart() {
    let mut world = begun(0);
    assert_eq!(world.submit(&begin(0, Some(1)), at(9)), Ok(Reply::Unchanged), "asked again");
    assert_eq!(world.submit(&begin(0, None), at(9)), Ok(Reply::Unchanged), "nothing says that it is another");
    let other = world.submit(&begin(0, Some(2)), at(9)).unwrap_err();
    assert!(other.to_string().contains("another execution, started at another time"), "{other}");
    assert!(matches!(world.submit(&of(7, said(1, 0, TrackedStep::Running)), at(9)), Err(Refusal::NotIntroduced(_))));
    let orphan = introduce(7, 6, 0, 1, 0, TrackedStep::Running);
    assert_eq!(world.submit(&orphan, at(9)), Err(Refusal::NoSuchParent(name(6))));
    let other_kind = Command::Track {
        action: name(1),
        parent: name(0),
        group: String::new(),
        began: None,
        seed: Some(Box::new(trace())),
        report: said(1, 1, TrackedStep::Succeeded),
    };
    assert!(matches!(world.submit(&other_kind, at(9)), Err(Refusal::DifferentWork { what: "action", .. })));
}
