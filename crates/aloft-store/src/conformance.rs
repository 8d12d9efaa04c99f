//! The suite that every engine passes. An engine's tests call [`run_all`] with a maker of empty stores, so that a case
//! that exists for one engine exists for all.

mod children;
mod lists;
mod retention;
mod sites;
mod workers;

use std::{future::Future, sync::Arc};

use aloft_core::{
    ActionName, Asks, AttemptOutcome, CacheEntry, CachePlan, CacheScope, CacheStatus, Command, ConditionSeed,
    DEFAULT_QUEUE, EndedBy, ErrorKind, Event, Lease, LeaseToken, OutputRefs, Phase, Priority, Progress, QueueLimits,
    QueueSpec, QueueState, Refusal, Reply, Reservation, RunInfo, RunKey, Scope, Seed, Seen, SignalKind, SignalValue,
    Subject, TaskError, TaskPolicy, TaskRef, TaskSeed, Time, TrackedReport, TrackedStep, WebhookOutcome, WorkerId,
};
use bytes::Bytes;

use crate::{
    Blob, Census, Committed, DeployedTask, Domain, DomainUse, ListQuery, ListScope, Logged, MAX_DELETED_QUEUES,
    Observer, OfferPlace, Project, ProjectLimits, Queue, QueueLoad, SettingsKey, SettingsVersion, Store, Submission,
    SubmitError, TaskId, Which,
};

use self::workers::workers_are_known_by_their_session;

type Handle = Arc<dyn Store>;

/// Runs every case, each on a store of its own.
///
/// # Panics
/// When a case does not hold.
pub async fn run_all<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Handle>,
{
    logs_are_gapless_and_replayable(make().await).await;
    creation_is_idempotent(make().await).await;
    refusals_change_nothing(make().await).await;
    concurrent_writers_share_commits(make().await).await;
    commands_in_order_build_on_each_other(make().await).await;
    what_runs_elsewhere_waits_for_nothing_here(make().await).await;
    watchers_miss_nothing(make().await).await;
    watchers_see_what_is_recorded(make().await).await;
    commits_are_told_and_what_lives_is_counted(make().await).await;
    leases_and_limits_are_indexed(make().await).await;
    what_is_in_flight_is_counted(make().await).await;
    workers_are_known_by_their_session(make().await).await;
    a_parent_that_is_tried_again_does_not_wait_in_line(make().await).await;
    results_are_cached_and_computed_once(make().await).await;
    reservations_from_outside_lapse(make().await).await;
    conditions_ask_for_a_call_once(make().await).await;
    the_end_of_a_parent_shows_at_once(make().await).await;
    children::run_all(&make).await;
    lists::run_all(&make).await;
    retention::run_all(&make).await;
    records_are_kept(make().await).await;
    domains_are_kept_while_they_are_used(make().await).await;
    settings_keep_every_version(make().await).await;
    sites::a_run_is_created_by_what_is_there(make().await).await;
    queues_are_kept(make().await).await;
    deleted_queues_are_bounded(make().await).await;
    queues_know_what_they_hold(make().await).await;
    queues_and_projects_take_so_much(make().await).await;
    limits_of_projects_are_kept(make().await).await;
}

fn key(name: &str) -> RunKey {
    RunKey::new(Scope::new("local", "p", "development").expect("valid"), name).expect("valid")
}

fn action(name: &str) -> ActionName {
    ActionName::new(name).expect("valid")
}

fn seed(digest: &str, policy: TaskPolicy) -> Seed {
    let task = TaskRef {
        digest: digest.into(),
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
        policy,
        input_uri: "s3://b/in.pb".into(),
        run_output_base: "s3://b/r".into(),
        cache: None,
        queue: DEFAULT_QUEUE.into(),
        asks: Asks::default(),
    })
}

fn create(run: &RunKey, digest: &str) -> Submission {
    let info = RunInfo {
        created_by: Subject { id: "me".into(), ..Subject::default() },
        labels: [("team".to_owned(), run.name.clone())].into(),
        ..RunInfo::default()
    };
    let command = Command::create_run(seed(digest, TaskPolicy::default()), info);
    let blob = Blob { digest: digest.into(), bytes: Bytes::from_static(b"spec"), own: false };
    Submission { run: run.clone(), command, blobs: vec![blob], site_revision: None, turn: None }
}

fn enqueue(run: &RunKey, name: &str, parent: &str) -> Submission {
    enqueue_seed(run, name, parent, seed("d", TaskPolicy::default()))
}

fn enqueue_seed(run: &RunKey, name: &str, parent: &str, seed: Seed) -> Submission {
    Submission::new(run.clone(), Command::enqueue(action(name), action(parent), "g", seed))
}

fn lease(run: &RunKey, name: &str, worker: &str, token: u64) -> Submission {
    let lease = Lease { worker: WorkerId(worker.into()), token: LeaseToken(token) };
    Submission::new(run.clone(), Command::Lease { action: action(name), lease })
}

fn report(run: &RunKey, name: &str, token: u64, progress: Progress) -> Submission {
    let command = Command::Report { action: action(name), attempt: 1, token: LeaseToken(token), progress };
    Submission::new(run.clone(), command)
}

fn done() -> Progress {
    Progress::Ended(AttemptOutcome::Succeeded(OutputRefs::default()))
}

fn query(limit: usize) -> ListQuery {
    ListQuery::newest(Vec::new(), limit)
}

fn scope() -> ListScope {
    ListScope { org: "local".into(), project: "p".into(), domain: "development".into() }
}

async fn ok(store: &Handle, submission: Submission) -> Reply {
    store.submit(submission).await.expect("accepted")
}

async fn logs_are_gapless_and_replayable(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, lease(&run, "x1", "w", 1)).await;
    ok(&store, report(&run, "x1", 1, Progress::Running)).await;
    ok(&store, report(&run, "x1", 1, done())).await;
    let events = store.events_after(&run, 0, 100).await.unwrap();
    let numbers: Vec<_> = events.iter().map(|e| e.seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5], "numbered from 1 without gaps");
    let tail = store.events_after(&run, 3, 1).await.unwrap();
    assert_eq!(tail[..], events[3..4], "read from a cursor, bounded");
    let snapshot = store.snapshot(&run, Which::All).await.unwrap().unwrap();
    assert_eq!(snapshot.seq, 5);
    for state in snapshot.actions {
        let mine = events.iter().filter(|e| e.event.action() == &state.name);
        let folded = mine.fold(None, |s, e| aloft_core::apply(s, &e.event, e.at));
        assert_eq!(folded.as_ref(), Some(&state), "the projection is the fold of the log");
    }
    assert_eq!(store.blob("d").await.unwrap().as_deref(), Some(&b"spec"[..]));
    assert_eq!(store.blob("other").await.unwrap(), None);
    assert_eq!(store.snapshot(&key("nowhere"), Which::All).await.unwrap(), None);
}

async fn creation_is_idempotent(store: Handle) {
    let run = key("r1");
    let Reply::Created(root) = ok(&store, create(&run, "d")).await else { panic!("it is new") };
    let snapshot = store.snapshot(&run, Which::All).await.unwrap().expect("the run exists");
    assert_eq!(snapshot.actions, [*root], "the answer is what is recorded");
    assert_eq!(store.run(&run).await.unwrap().expect("the run exists").created_at, snapshot.actions[0].created_at);
    assert_eq!(ok(&store, create(&run, "d")).await, Reply::Unchanged);
    let other = store.submit(create(&run, "e")).await;
    assert!(matches!(other, Err(SubmitError::Refused(Refusal::DifferentWork { .. }))), "{other:?}");
    let elsewhere = RunKey::new(Scope::new("local", "q", "development").unwrap(), "r1").unwrap();
    assert!(matches!(ok(&store, create(&elsewhere, "e")).await, Reply::Created(_)), "the scope is part of the key");
    assert_eq!(store.events_after(&run, 0, 100).await.unwrap().len(), 1);
}

async fn refusals_change_nothing(store: Handle) {
    let run = key("r1");
    let refused = store.submit(enqueue(&run, "x1", "a0")).await;
    assert_eq!(refused, Err(SubmitError::Refused(Refusal::NoSuchRun)));
    ok(&store, create(&run, "d")).await;
    let refused = store.submit(enqueue(&run, "x1", "x9")).await;
    assert_eq!(refused, Err(SubmitError::Refused(Refusal::NoSuchParent(action("x9")))));
    let refused = store.submit(report(&run, "a0", 7, done())).await;
    assert!(matches!(refused, Err(SubmitError::Refused(Refusal::Fenced { .. }))), "{refused:?}");
    assert_eq!(store.events_after(&run, 0, 100).await.unwrap().len(), 1);
}

async fn concurrent_writers_share_commits(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let (store, run) = (Arc::clone(&store), run.clone());
            // Each name twice, as a client that retries would.
            tokio::spawn(async move { store.submit(enqueue(&run, &format!("x{}", i / 2), "a0")).await })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        created += usize::from(task.await.expect("no panic").expect("accepted") == Reply::Done);
    }
    assert_eq!(created, 100, "each action is created once");
    let events = store.events_after(&run, 0, 1000).await.unwrap();
    assert!(events.iter().map(|e| e.seq).eq(1..=101), "gapless under concurrency");
    let feed = store.feed_after(0, 1000).await.unwrap();
    let (mut sifted, mut upto) = (Vec::new(), 0);
    loop {
        let part = store.sift_feed(upto, 7, crate::Sift::Roots).await.unwrap();
        sifted.extend(part.items);
        upto = part.upto;
        if !part.more {
            break;
        }
    }
    let roots: Vec<_> = feed.iter().filter(|item| item.logged.event.action().is_root()).cloned().collect();
    assert_eq!((sifted, upto), (roots, feed.last().map_or(0, |item| item.pos)), "what is looked for, and how far");
    assert!(feed.is_sorted_by_key(|f| f.pos));
    assert_eq!(feed.len(), 101);
}

async fn commands_in_order_build_on_each_other(store: Handle) {
    let run = key("r1");
    let mut chain = vec![create(&run, "d")];
    for n in 1..=200u32 {
        chain.push(enqueue(&run, &format!("x{n}"), &if n == 1 { "a0".to_owned() } else { format!("x{}", n - 1) }));
    }
    chain.push(enqueue(&run, "y", "nobody"));
    chain.push(enqueue(&run, "x200", "x199"));
    let results = store.submit_in_order(chain).await;
    assert_eq!(results.len(), 203, "one answer for each");
    assert!(matches!(results[0], Ok(Reply::Created(_))));
    assert!(results[1..201].iter().all(|r| *r == Ok(Reply::Done)), "each finds what those before it made");
    assert_eq!(results[201], Err(SubmitError::Refused(Refusal::NoSuchParent(action("nobody")))));
    assert_eq!(results[202], Ok(Reply::Unchanged), "a refusal does not stop the others");
    assert_eq!(store.submit_in_order(Vec::new()).await, []);
}

async fn what_runs_elsewhere_waits_for_nothing_here(store: Handle) {
    let run = key("r1");
    let policy =
        TaskPolicy { retries: 1, max_runtime_ms: Some(1), queued_timeout_ms: Some(1), ..TaskPolicy::default() };
    let begin = Command::CreateTracked { seed: Box::new(seed("d", policy)), info: Box::default(), began: None };
    ok(&store, Submission::new(run.clone(), begin)).await;
    let far = Time::from_micros(i64::MAX);
    let say = |version, step| {
        let report = TrackedReport {
            attempt: 1,
            version,
            step,
            at: Time::default(),
            outputs: OutputRefs::default(),
            cache: CacheStatus::Miss,
        };
        let root = || action("a0");
        let (action, parent, group) = (root(), root(), String::new());
        Submission::new(run.clone(), Command::Track { action, parent, group, began: None, seed: None, report })
    };
    ok(&store, say(0, TrackedStep::Running)).await;
    let offered = store.offer(far, &OfferPlace::default(), 10, 10).await.unwrap();
    assert_eq!((offered.offer.groups.len(), offered.next_ready), (0, None), "it is never handed out");
    assert_eq!(store.due(far, 10).await.unwrap(), (Vec::new(), None), "and has no time limit");
    let failed = TaskError::new("E", "it broke", ErrorKind::User, true);
    ok(&store, say(1, TrackedStep::Failed(failed))).await;
    let due = store.due(far, 10).await.unwrap();
    assert_eq!(due.0, [(run.clone(), action("a0"))], "but the wait for the next attempt has");
    let settled = Submission::new(run.clone(), Command::Settle { actions: vec![action("a0")] });
    assert_eq!(store.submit(settled).await, Ok(Reply::Unchanged), "nothing above it has ended");
    let state = store.snapshot(&run, Which::All).await.unwrap().unwrap().actions.remove(0);
    assert_eq!((state.phase, state.attempts[0].phase), (Phase::Queued, Phase::Failed));
}

async fn watchers_miss_nothing(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let mut hint = store.changes(&run);
    let writer = {
        let (store, run) = (Arc::clone(&store), run.clone());
        tokio::spawn(async move {
            for i in 0..50 {
                ok(&store, enqueue(&run, &format!("x{i}"), "a0")).await;
            }
        })
    };
    let mut seen = 1;
    while seen < 51 {
        let events = store.events_after(&run, seen, 10).await.unwrap();
        match events.last() {
            Some(last) => {
                assert_eq!(events[0].seq, seen + 1, "no gap between reads");
                seen = last.seq;
            }
            None => hint.changed().await.expect("the store is open"),
        }
    }
    writer.await.expect("no panic");
}

/// What a watcher reads between snapshots is what a snapshot shows, whoever keeps what of it.
async fn watchers_see_what_is_recorded(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let _watched = store.changes(&run);
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "x1")).await;
    ok(&store, lease(&run, "x1", "w", 1)).await;
    ok(&store, lease(&run, "x2", "w", 2)).await;
    same_as_recorded(&store, &run).await;
    // Its child is shown as ended with it, though its own record does not say so yet.
    ok(&store, report(&run, "x1", 1, done())).await;
    same_as_recorded(&store, &run).await;
    ok(&store, Submission::new(run.clone(), Command::Settle { actions: vec![action("x2")] })).await;
    same_as_recorded(&store, &run).await;
    ok(&store, enqueue(&run, "x3", "a0")).await;
    same_as_recorded(&store, &run).await;
}

async fn same_as_recorded(store: &Handle, run: &RunKey) {
    let snapshot = store.snapshot(run, Which::All).await.unwrap().expect("the run exists");
    let names: Vec<_> = snapshot.actions.iter().map(|state| state.name.clone()).collect();
    for some in (0..names.len()).map(|first| &names[first..]) {
        let matched = store.matched(run, some, &[], snapshot.seq).await.unwrap();
        let mut matched: Vec<_> = matched.into_iter().map(|(state, _)| state).collect();
        matched.sort_by_key(|state| names.iter().position(|name| *name == state.name));
        assert_eq!(matched, snapshot.actions[names.len() - some.len()..]);
    }
    for after in 0..=snapshot.seq {
        let mut read = Vec::new();
        while let Some(last) =
            store.events_after(run, read.last().map_or(after, |e: &Logged| e.seq), 2).await.unwrap().pop()
        {
            read.push(last);
        }
        assert_eq!(read.last().map_or(after, |event| event.seq), snapshot.seq);
    }
    let events = store.events_after(run, 0, 100).await.unwrap();
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=snapshot.seq).collect::<Vec<_>>());
}

/// Keeps what it is told.
#[derive(Default)]
struct Heard(std::sync::Mutex<Vec<Committed>>);

impl Heard {
    /// What it was told, if that is of this many commands.
    fn take(&self, commands: usize) -> Option<Vec<Committed>> {
        let mut heard = self.0.lock().expect("nobody panics");
        let all = heard.iter().map(|c| c.commands).sum::<usize>() >= commands;
        all.then(|| std::mem::take(&mut *heard))
    }

    /// What it is told of this many commands. A store may answer before it tells.
    async fn of(&self, commands: usize) -> Vec<Committed> {
        for _ in 0..1000 {
            if let Some(all) = self.take(commands) {
                return all;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("it was not told of {commands} commands: {:?}", self.0)
    }
}

impl Observer for Heard {
    fn committed(&self, commit: Committed) {
        self.0.lock().expect("nobody panics").push(commit);
    }

    fn wants_ends(&self, run: &RunKey) -> bool {
        run.name == "r1"
    }
}

async fn commits_are_told_and_what_lives_is_counted(store: Handle) {
    let heard = Arc::new(Heard::default());
    store.observe(heard.clone());
    store.observe(Arc::new(Heard::default()));
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "a0")).await;
    ok(&store, lease(&run, "x1", "w", 1)).await;
    let load = QueueLoad { waiting: 2, running: 1, runs: 0 };
    let queues = [(("local".to_owned(), DEFAULT_QUEUE.to_owned()), load)].into();
    assert_eq!(store.census().await.unwrap(), Census { queues, runs: 1, actions: 3, workers: 1 });
    ok(&store, report(&run, "x1", 1, Progress::Initializing)).await;
    ok(&store, report(&run, "x1", 1, Progress::Running)).await;
    ok(&store, report(&run, "x1", 1, done())).await;
    assert_eq!(ok(&store, create(&run, "d")).await, Reply::Unchanged, "and nothing to tell of it");
    let by = EndedBy::asked("me", "enough");
    ok(&store, Submission::new(run.clone(), Command::Abort { action: ActionName::root(), by })).await;
    ok(&store, Submission::new(run.clone(), Command::Settle { actions: vec![action("x2")] })).await;
    assert_eq!(store.census().await.unwrap(), Census::default());
    let commits = heard.of(9).await;
    let told: Vec<_> = commits.iter().flat_map(|c| &c.seen).collect();
    let stages: Vec<_> = told.iter().flat_map(|s| s.stages.iter().map(|(stage, _)| stage.name())).collect();
    assert_eq!(stages, ["queue", "transition", "execution", "completion", "completion", "completion"]);
    let ended: Vec<_> = told.iter().flat_map(|s| s.ended.clone()).collect();
    assert_eq!(ended, [(Phase::Succeeded, false), (Phase::Aborted, true), (Phase::Aborted, false)]);
    let ends: Vec<_> =
        told.iter().flat_map(|s| &s.ends).map(|(run, end)| (run, end.name.as_str(), end.phase)).collect();
    let expected = [("x1", Phase::Succeeded), ("a0", Phase::Aborted), ("x2", Phase::Aborted)];
    assert_eq!(ends, expected.map(|(name, phase)| (&run, name, phase)));
    let place = (run.scope.project.as_str(), run.scope.domain.as_str(), "env.f");
    assert!(told.iter().all(|s| (s.project.as_str(), s.domain.as_str(), s.task.as_str()) == place));
    let commands = [("x3", 2), ("x4", 3)];
    let other = key("r2");
    ok(&store, create(&other, "d")).await;
    let mut batch = Vec::new();
    for (name, token) in commands {
        ok(&store, enqueue(&other, name, "a0")).await;
        ok(&store, lease(&other, name, "w", token)).await;
        batch.extend([report(&other, name, token, Progress::Running), report(&other, name, token, done())]);
    }
    heard.of(1 + 2 * 2).await;
    assert!(store.submit_in_order(batch).await.iter().all(Result::is_ok));
    let others = heard.of(2 * 2).await;
    let told: Vec<_> = others.iter().flat_map(|c| &c.seen).collect();
    assert!(told.len() <= others.len(), "of one task once in a commit: {told:?}");
    assert_eq!(
        told.iter().map(|s| (s.stages.len(), s.ended.len())).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (8, 2)
    );
    assert!(told.iter().all(|s| s.ends.is_empty()), "not of that run");
    assert_eq!(commits.iter().map(|c| c.events).sum::<usize>(), store.events_after(&run, 0, 100).await.unwrap().len());
}

async fn leases_and_limits_are_indexed(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let policy = TaskPolicy { max_runtime_ms: Some(1), ..TaskPolicy::default() };
    ok(&store, enqueue_seed(&run, "x1", "a0", seed("d", policy))).await;
    let far = Time::from_micros(i64::MAX / 2);
    assert_eq!(waiting(&store, far).await, [(run.clone(), action("a0")), (run.clone(), action("x1"))]);
    let none = store.offer(Time::from_micros(0), &OfferPlace::default(), 10, 10).await.unwrap();
    assert!(none.offer.groups.is_empty() && none.next_ready.is_some(), "what becomes ready later is announced");
    ok(&store, lease(&run, "x1", "w", 5)).await;
    assert_eq!(waiting(&store, far).await, [(run.clone(), action("a0"))]);
    let held = store.held_by(&WorkerId("w".into())).await.unwrap();
    assert_eq!(held.len(), 1);
    assert!(store.due(far, 10).await.unwrap().0.is_empty(), "the runtime counts from the start of the code");
    ok(&store, report(&run, "x1", 5, Progress::Running)).await;
    assert_eq!(store.due(far, 10).await.unwrap().0, [(run.clone(), action("x1"))]);
    let failed = TaskError::new("E", "m", ErrorKind::User, false);
    let ended = Progress::Ended(AttemptOutcome::Failed(failed, OutputRefs::default()));
    ok(&store, report(&run, "x1", 5, ended)).await;
    assert!(store.due(far, 10).await.unwrap().0.is_empty());
    let worker = WorkerId("w".into());
    assert!(store.held_by(&worker).await.unwrap().is_empty());
    assert_eq!(store.held_part(&worker, None, 2).await.unwrap(), (Vec::new(), None));
    for (name, token) in [("x2", 6), ("x3", 7), ("x4", 8)] {
        ok(&store, enqueue_seed(&run, name, "a0", seed("d", TaskPolicy::default()))).await;
        ok(&store, lease(&run, name, "w", token)).await;
    }
    let (mut held, mut after) = (Vec::new(), None);
    loop {
        let (part, next) = store.held_part(&worker, after, 2).await.unwrap();
        held.extend(part);
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(held.len(), 3);
    assert_eq!(held, store.held_by(&worker).await.unwrap(), "all of it, in the order of its creation");
}

/// Everything that may be handed out at `now`, read in parts of one group.
async fn waiting(store: &Handle, now: Time) -> Vec<(RunKey, ActionName)> {
    let (mut found, mut at) = (Vec::new(), OfferPlace::default());
    loop {
        let part = store.offer(now, &at, 1, 100).await.unwrap();
        for group in &part.offer.groups {
            let run = &part.offer.runs[group.run].run;
            found.extend(group.candidates.iter().map(|c| (run.clone(), c.action.clone())));
        }
        match part.next {
            Some(next) => at = next,
            None => return found,
        }
    }
}

async fn a_parent_that_is_tried_again_does_not_wait_in_line(store: Handle) {
    let far = Time::from_micros(i64::MAX / 2);
    let run = key("r1");
    let policy = TaskPolicy { retries: 1, ..TaskPolicy::default() };
    ok(&store, Submission::new(run.clone(), Command::create_run(seed("d", policy), RunInfo::default()))).await;
    ok(&store, lease(&run, "a0", "w", 1)).await;
    for child in ["x1", "x2", "x3"] {
        ok(&store, enqueue(&run, child, "a0")).await;
    }
    let offered = || async {
        let part = store.offer(far, &OfferPlace::default(), 10, 2).await.unwrap();
        let group = part.offer.groups.into_iter().next().expect("work waits");
        group.candidates.iter().map(|c| (c.action.as_str().to_owned(), c.counts)).collect::<Vec<_>>()
    };
    let child = |name: &str| (name.to_owned(), true);
    assert_eq!(offered().await, [child("x1"), child("x2")]);
    let error = TaskError::new("Boom", "it broke", ErrorKind::User, true);
    let failed = Progress::Ended(AttemptOutcome::Failed(error, OutputRefs::default()));
    ok(&store, report(&run, "a0", 1, failed)).await;
    assert_eq!(offered().await, [("a0".to_owned(), false), child("x1"), child("x2")], "before those that were first");
}

async fn what_is_in_flight_is_counted(store: Handle) {
    let far = Time::from_micros(i64::MAX / 2);
    let run = key("r1");
    let info = RunInfo { max_action_concurrency: Some(3), ..RunInfo::default() };
    ok(&store, Submission::new(run.clone(), Command::create_run(seed("d", TaskPolicy::default()), info))).await;
    let in_flight = || async {
        let part = store.offer(far, &OfferPlace::default(), 10, 10).await.unwrap();
        let found = part.offer.runs.iter().find(|r| r.run == run).expect("it has work waiting").clone();
        assert_eq!(found.max_actions, Some(3));
        (found.in_flight, found.started)
    };
    assert_eq!(in_flight().await, (0, false));
    ok(&store, lease(&run, "a0", "w", 1)).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "a0")).await;
    assert_eq!(in_flight().await, (0, true), "a parent with unfinished children does not count");
    ok(&store, lease(&run, "x1", "w", 2)).await;
    assert_eq!(in_flight().await, (1, true));
    ok(&store, enqueue(&run, "x3", "x2")).await;
    ok(&store, report(&run, "x1", 2, done())).await;
    assert_eq!(in_flight().await, (0, true));
    ok(&store, Submission::new(run.clone(), abort("x2"))).await;
    ok(&store, Submission::new(run.clone(), Command::Settle { actions: vec![action("x3")] })).await;
    ok(&store, enqueue(&run, "x4", "a0")).await;
    ok(&store, Submission::new(run.clone(), abort("x4"))).await;
    ok(&store, create(&key("r2"), "d")).await;
    let part = store.offer(far, &OfferPlace::default(), 10, 10).await.unwrap();
    assert_eq!(part.offer.runs.len(), 1, "{part:?}");
    let held = store.held_by(&WorkerId("w".into())).await.unwrap();
    assert_eq!(held.len(), 1, "the parent alone, which counts again");
}

fn abort(name: &str) -> Command {
    Command::Abort { action: action(name), by: EndedBy::asked("me", "no") }
}

fn cached(serialize: bool, scope: CacheScope) -> Seed {
    let Seed::Task(mut task) = seed("d", TaskPolicy::default()) else { unreachable!("seed makes tasks") };
    task.cache = Some(CachePlan { key: "k".into(), serialize, scope, ..CachePlan::default() });
    Seed::Task(task)
}

async fn look_up(store: &Handle, run: &RunKey, name: &str, seen: Seen) -> Reply {
    ok(store, Submission::new(run.clone(), Command::LookUp { action: action(name), seen })).await
}

async fn due_lookups(store: &Handle, now: Time) -> Vec<String> {
    store.lookups(now, 10).await.unwrap().0.into_iter().map(|(_, s)| s.name.to_string()).collect()
}

async fn results_are_cached_and_computed_once(store: Handle) {
    let far = Time::from_micros(i64::MAX / 2);
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    for name in ["x1", "x2"] {
        ok(&store, enqueue_seed(&run, name, "a0", cached(true, CacheScope::Global))).await;
    }
    assert_eq!(due_lookups(&store, far).await, ["x1", "x2"]);
    assert_eq!(waiting(&store, far).await.len(), 1, "nothing is handed out before its lookup");
    look_up(&store, &run, "x1", Seen::Nothing).await;
    look_up(&store, &run, "x2", Seen::Nothing).await;
    assert!(due_lookups(&store, far).await.is_empty(), "who waits does not look");
    ok(&store, lease(&run, "x1", "w", 1)).await;
    let outputs = OutputRefs { output_uri: "s3://b/r/x1/1".into(), ..OutputRefs::default() };
    ok(&store, report(&run, "x1", 1, Progress::Ended(AttemptOutcome::Succeeded(outputs)))).await;
    assert_eq!(due_lookups(&store, far).await, ["x2"], "the end of the holder wakes them");
    look_up(&store, &run, "x2", Seen::Data { output_uri: "s3://b/r/x1/1".into() }).await;
    let hit = store.snapshot(&run, Which::One(action("x2"))).await.unwrap().unwrap().actions.remove(0);
    assert_eq!((hit.phase, hit.cache.status), (Phase::Succeeded, CacheStatus::Hit));
    assert_eq!(hit.cache.source.unwrap().action, action("x1"));

    // From another domain of the project only where the scope says so.
    let plan = |scope| CachePlan { key: "k".into(), scope, ..CachePlan::default() };
    let elsewhere = Scope::new("local", "p", "production").unwrap();
    assert_eq!(store.cached(&elsewhere, &plan(CacheScope::Global)).await.unwrap().len(), 1);
    assert!(store.cached(&elsewhere, &plan(CacheScope::ProjectDomain)).await.unwrap().is_empty());
    let stranger = Scope::new("local", "q", "development").unwrap();
    assert!(store.cached(&stranger, &plan(CacheScope::Global)).await.unwrap().is_empty());

    // A result that is gone is forgotten, unless it was replaced meanwhile.
    assert!(!store.drop_cached(&run.scope, "k", "s3://b/other").await.unwrap());
    let own = CacheEntry {
        outputs: OutputRefs { output_uri: "s3://b/own".into(), ..OutputRefs::default() },
        source: None,
        metadata: Vec::new(),
        created_at: Time::default(),
        updated_at: Time::default(),
    };
    assert!(store.put_cached(&elsewhere, "k", own, false).await.unwrap());
    let found = store.cached(&elsewhere, &plan(CacheScope::Global)).await.unwrap();
    let found: Vec<_> = found.iter().map(|e| e.outputs.output_uri.as_str()).collect();
    assert_eq!(found, ["s3://b/own", "s3://b/r/x1/1"], "the own domain's first, however old");
    assert!(store.drop_cached(&elsewhere, "k", "s3://b/own").await.unwrap());
    assert!(store.drop_cached(&run.scope, "k", "s3://b/r/x1/1").await.unwrap());
    assert!(store.cached(&run.scope, &plan(CacheScope::Global)).await.unwrap().is_empty());
}

async fn reservations_from_outside_lapse(store: Handle) {
    let far = Time::from_micros(i64::MAX / 2);
    let run = key("r1");
    let wanted = |owner: &str, until: Time| Reservation { owner: owner.into(), expires_at: Some(until) };
    let now = Time::from_micros(1);
    let soon = Time::from_micros(i64::MAX / 4);
    let held = store.reserve(&run.scope, "k", wanted("me", soon), now).await.unwrap();
    assert_eq!(held.owner, "me");
    let held = store.reserve(&run.scope, "k", wanted("you", soon), now).await.unwrap();
    assert_eq!(held.owner, "me", "at most one holds");
    let held = store.reserve(&run.scope, "k", wanted("you", far), soon).await.unwrap();
    assert_eq!(held.owner, "you", "one that lapsed is replaced");
    assert!(!store.release(&run.scope, "k", "me").await.unwrap());

    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue_seed(&run, "x1", "a0", cached(true, CacheScope::ProjectDomain))).await;
    look_up(&store, &run, "x1", Seen::Nothing).await;
    assert_eq!(due_lookups(&store, far).await, ["x1"], "due again when the reservation lapses");
    assert!(due_lookups(&store, soon).await.is_empty());
    assert!(store.release(&run.scope, "k", "you").await.unwrap());
    assert_eq!(due_lookups(&store, soon).await, ["x1"]);
    let entry = CacheEntry {
        outputs: OutputRefs { output_uri: "s3://b/mine".into(), ..OutputRefs::default() },
        source: None,
        metadata: vec![1],
        created_at: now,
        updated_at: now,
    };
    assert!(store.put_cached(&run.scope, "k", entry.clone(), false).await.unwrap());
    assert!(!store.put_cached(&run.scope, "k", entry.clone(), false).await.unwrap());
    assert!(store.put_cached(&run.scope, "k", entry, true).await.unwrap());
}

async fn conditions_ask_for_a_call_once(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let condition = Seed::Condition(ConditionSeed {
        name: "approve".into(),
        kind: SignalKind::Bool,
        timeout_ms: Some(5),
        webhook: true,
        spec_digest: String::new(),
    });
    ok(&store, enqueue_seed(&run, "c1", "a0", condition)).await;
    assert_eq!(store.calls_due(10).await.unwrap().len(), 1);
    let far = Time::from_micros(i64::MAX / 2);
    assert_eq!(store.due(far, 10).await.unwrap().0, [(run.clone(), action("c1"))], "its timeout is a timer");
    let called = Command::Called { action: action("c1"), outcome: WebhookOutcome::Delivered };
    ok(&store, Submission::new(run.clone(), called)).await;
    assert!(store.calls_due(10).await.unwrap().is_empty());
    let signal = |v| Command::Signal { action: action("c1"), value: SignalValue::Bool(v), by: Subject::default() };
    assert_eq!(ok(&store, Submission::new(run.clone(), signal(true))).await, Reply::Done);
    assert_eq!(ok(&store, Submission::new(run.clone(), signal(true))).await, Reply::Unchanged);
    let other = store.submit(Submission::new(run.clone(), signal(false))).await;
    assert!(matches!(other, Err(SubmitError::Refused(Refusal::SignalledAlready(_)))), "{other:?}");
    assert!(store.due(far, 10).await.unwrap().0.is_empty());
}

async fn the_end_of_a_parent_shows_at_once(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "x1")).await;
    let by = EndedBy::asked("me", "no");
    ok(&store, Submission::new(run.clone(), Command::Abort { action: action("a0"), by })).await;
    let all = store.snapshot(&run, Which::All).await.unwrap().unwrap();
    assert!(all.actions.iter().all(|a| a.phase == Phase::Aborted), "shown as aborted from that commit on");
    let listed = store.list_actions(&run, &query(10)).await.unwrap();
    assert_eq!(listed.rows.len(), 3);
    assert!(listed.rows.iter().all(|a| a.phase == Phase::Aborted));
    let unsettled = store.unsettled(10).await.unwrap();
    assert_eq!(unsettled, [(run.clone(), action("x1"))], "their records follow, parents first");
    let settle = Command::Settle { actions: vec![action("x1"), action("x2")] };
    ok(&store, Submission::new(run.clone(), settle)).await;
    assert!(store.unsettled(10).await.unwrap().is_empty());
    let events = store.events_after(&run, 4, 10).await.unwrap();
    assert!(events.iter().all(|e| matches!(e.event, Event::Aborted { .. })) && events.len() == 2);
}

async fn records_are_kept(store: Handle) {
    let project = Project { org: "local".into(), id: "p".into(), name: "P".into(), ..Project::default() };
    assert!(store.create_project(project.clone()).await.unwrap());
    assert!(!store.create_project(project.clone()).await.unwrap(), "once");
    let renamed = Project { name: "Q".into(), ..project };
    assert!(store.update_project(renamed.clone()).await.unwrap());
    assert_eq!(store.project("local", "p").await.unwrap(), Some(renamed.clone()));
    assert_eq!(store.projects("local").await.unwrap(), [renamed]);
    assert!(store.projects("other").await.unwrap().is_empty());

    let task = |version: &str, at: i64| DeployedTask {
        id: TaskId {
            scope: Scope::new("local", "p", "development").unwrap(),
            name: "env.f".into(),
            version: version.into(),
        },
        digest: "d".into(),
        short_name: "f".into(),
        environment: "env".into(),
        entrypoint: version == "2",
        deployed_at: Time::from_micros(at),
        deployed_by: Subject { id: "me".into(), ..Subject::default() },
    };
    let blob = Blob { digest: "d".into(), bytes: Bytes::from_static(b"spec"), own: false };
    for (version, at) in [("1", 10), ("2", 20)] {
        assert!(store.put_task(task(version, at), blob.clone()).await.unwrap());
    }
    assert!(!store.put_task(task("2", 30), blob).await.unwrap(), "a version is deployed once");
    assert_eq!(store.task(&task("2", 0).id).await.unwrap(), Some(task("2", 20)));
    let versions = |latest: bool| {
        let store = Arc::clone(&store);
        async move {
            let page = store.list_tasks(&scope(), latest, &query(10)).await.unwrap();
            page.page.rows.into_iter().map(|t| t.task.id.version).collect::<Vec<_>>()
        }
    };
    assert_eq!(versions(false).await, ["2", "1"]);
    assert_eq!(versions(true).await, ["2"]);
}

async fn domains_are_kept_while_they_are_used(store: Handle) {
    let domain = |org: &str, id: &str| Domain {
        org: org.into(),
        id: id.into(),
        name: id.into(),
        created_at: Time::from_micros(7),
    };
    let first = vec![domain("local", "production"), domain("local", "development"), domain("other", "x")];
    assert!(store.seed_domains("local", first.clone()).await.unwrap());
    assert!(!store.seed_domains("local", vec![domain("local", "late")]).await.unwrap(), "only the first ones");
    assert_eq!(store.domains("local").await.unwrap(), first[..2], "in the order of their creation");
    assert!(store.domains("other").await.unwrap().is_empty());

    assert!(store.create_domain(domain("local", "a")).await.unwrap());
    assert!(!store.create_domain(domain("local", "a")).await.unwrap(), "once");
    assert!(store.create_domain(domain("other", "a")).await.unwrap(), "names are an organisation's own");
    assert!(store.rename_domain("local", "a", "The A").await.unwrap());
    assert!(!store.rename_domain("local", "b", "The B").await.unwrap());
    let renamed = Domain { name: "The A".into(), ..domain("local", "a") };
    assert_eq!(store.domain("local", "a").await.unwrap(), Some(renamed));
    assert_eq!(store.domain("local", "b").await.unwrap(), None);

    for (id, state) in [("p", 0), ("ours", 2)] {
        let project = Project { org: "local".into(), id: id.into(), state, ..Project::default() };
        assert!(store.create_project(project).await.unwrap());
        let scope = Scope::new("local", id, "production").unwrap();
        let task = DeployedTask {
            id: TaskId { scope, name: "env.f".into(), version: "1".into() },
            digest: "d".into(),
            short_name: String::new(),
            environment: String::new(),
            entrypoint: false,
            deployed_at: Time::from_micros(1),
            deployed_by: Subject::default(),
        };
        store.put_task(task, Blob { digest: "d".into(), bytes: Bytes::new(), own: false }).await.unwrap();
    }
    ok(&store, create(&key("r"), "d")).await;
    let used = |id: &'static str| {
        let store = Arc::clone(&store);
        async move { store.domain_use("local", id).await.unwrap() }
    };
    assert_eq!(used("development").await, DomainUse { runs: 1, tasks: 0 });
    assert_eq!(used("production").await, DomainUse { runs: 0, tasks: 1 }, "the platform's own task does not count");
    assert_eq!(used("a").await, DomainUse::default());
    for used in ["development", "production", "nothere"] {
        assert!(!store.delete_domain("local", used).await.unwrap(), "{used}");
    }
    assert!(store.delete_domain("local", "a").await.unwrap());
    assert_eq!(store.domains("local").await.unwrap(), first[..2]);
    assert!(!store.delete_domain("other", "a").await.unwrap(), "the last one stays");
}

async fn settings_keep_every_version(store: Handle) {
    let level = |domain: &str, project: &str| SettingsKey {
        org: "local".into(),
        domain: domain.into(),
        project: project.into(),
    };
    let version = |key: &SettingsKey, version: u64| SettingsVersion {
        key: key.clone(),
        version,
        body: Bytes::from(format!("{key:?} {version}")),
        edited_at: Time::from_micros(version as i64),
        edited_by: Subject { id: "me".into(), ..Subject::default() },
        request: format!("request {version}"),
    };
    let (org, domain, project) = (level("", ""), level("d", ""), level("d", "p"));
    let elsewhere = [level("e", ""), level("d", "q"), level("e", "p"), SettingsKey { org: "o".into(), ..org.clone() }];
    assert!(store.settings_at(&project).await.unwrap().is_empty());
    assert!(!store.put_settings(version(&project, 2)).await.unwrap(), "numbers have no gaps");
    for key in elsewhere.iter().chain([&project, &domain]) {
        assert!(store.put_settings(version(key, 1)).await.unwrap());
        assert!(!store.put_settings(version(key, 1)).await.unwrap(), "a version is never replaced");
    }
    assert_eq!(store.settings_at(&project).await.unwrap(), [version(&domain, 1), version(&project, 1)]);
    assert!(store.put_settings(version(&org, 1)).await.unwrap());
    assert!(store.put_settings(version(&domain, 2)).await.unwrap());
    let all = [version(&org, 1), version(&domain, 2), version(&project, 1)];
    assert_eq!(store.settings_at(&project).await.unwrap(), all, "widest first, the newest of each");
    assert_eq!(store.settings_at(&domain).await.unwrap(), all[..2]);
    assert_eq!(store.settings_at(&org).await.unwrap(), all[..1]);
    let history = store.settings_history(&domain, 0, 10).await.unwrap();
    assert_eq!(history, [version(&domain, 1), version(&domain, 2)]);
    assert_eq!(store.settings_history(&domain, 1, 10).await.unwrap(), history[1..]);
    assert_eq!(store.settings_history(&domain, 0, 1).await.unwrap(), history[..1]);
    assert!(store.settings_history(&level("x", ""), 0, 10).await.unwrap().is_empty());

    // Two edits of the same version at a time: one of them is told so.
    let (one, two) = tokio::join!(store.put_settings(version(&org, 2)), store.put_settings(version(&org, 2)));
    assert!(one.unwrap() ^ two.unwrap());
}

fn queue(name: &str) -> Queue {
    Queue {
        org: "local".into(),
        name: name.into(),
        spec: QueueSpec::default(),
        state: QueueState::Active,
        generation: 1,
        created_at: Time::from_micros(10),
        created_by: Subject { id: "me".into(), ..Subject::default() },
        updated_at: Time::from_micros(10),
        deleted_at: None,
    }
}

async fn queues_are_kept(store: Handle) {
    let mut feed = store.feed();
    let mut woken = || {
        let woken = feed.has_changed().expect("the store is open");
        feed.mark_unchanged();
        woken
    };
    let first = queue("bulk");
    assert!(store.create_queue(first.clone()).await.unwrap());
    assert!(woken(), "what waits may go on");
    // One wake more does no harm: a hint may come again from another control plane's side.
    assert!(!store.create_queue(Queue { generation: 9, ..first.clone() }).await.unwrap(), "once");
    assert!(store.create_queue(Queue { org: "other".into(), ..first.clone() }).await.unwrap());
    assert_eq!(store.queue("local", "bulk").await.unwrap(), Some(first.clone()));
    assert_eq!(store.queue("local", "nothere").await.unwrap(), None);

    let limits = QueueLimits { run_concurrency: Some(0), ..QueueLimits::default() };
    let spec = QueueSpec { limits, priority: Priority::High, ..QueueSpec::default() };
    let second = Queue { spec, state: QueueState::Draining, generation: 2, ..first.clone() };
    for wrong in [0, 2, u64::MAX] {
        assert!(!store.replace_queue(second.clone(), wrong).await.unwrap(), "it has not generation {wrong}");
    }
    assert_eq!(store.queue("local", "bulk").await.unwrap(), Some(first.clone()));
    woken();
    assert!(store.replace_queue(second.clone(), 1).await.unwrap());
    assert!(woken(), "a limit that was raised lets something go on");
    assert!(!store.replace_queue(second.clone(), 1).await.unwrap(), "of two who read the same one, one wins");
    let nowhere = Queue { name: "nothere".into(), ..second.clone() };
    assert!(!store.replace_queue(nowhere, 1).await.unwrap());

    let third = Queue { generation: 3, deleted_at: Some(Time::from_micros(30)), ..second };
    assert!(store.replace_queue(third.clone(), 2).await.unwrap());
    assert!(!store.create_queue(first).await.unwrap(), "a deleted queue keeps its name");
    assert!(store.create_queue(queue("Alpha")).await.unwrap());
    assert_eq!(store.queues("local").await.unwrap(), [queue("Alpha"), third], "by name, deleted too");
    assert!(store.queues("nowhere").await.unwrap().is_empty());
}

async fn deleted_queues_are_bounded(store: Handle) {
    let make = |number: usize| {
        let deleted_at = (number > 0).then(|| Time::from_micros(number as i64));
        let (store, made) = (Arc::clone(&store), Queue { deleted_at, ..queue(&format!("q{number:04}")) });
        tokio::spawn(async move { assert!(store.create_queue(made).await.unwrap()) })
    };
    // Together, so that they share commits; the first is not deleted.
    for task in (0..MAX_DELETED_QUEUES + 3).map(make).collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    assert!(store.create_queue(queue("last")).await.unwrap());
    let names: Vec<_> = store.queues("local").await.unwrap().into_iter().map(|q| q.name).collect();
    assert_eq!(names.len(), 1 + 1 + MAX_DELETED_QUEUES, "what is not deleted is kept");
    assert_eq!(names[..3], ["last", "q0000", "q0003"], "those deleted longest ago are gone");
}

async fn queues_know_what_they_hold(store: Handle) {
    let run = key("r1");
    assert_eq!(store.queue_load("local", DEFAULT_QUEUE).await.unwrap(), QueueLoad::default());
    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "a0")).await;
    let load = |waiting, running, runs| QueueLoad { waiting, running, runs };
    assert_eq!(store.queue_load("local", DEFAULT_QUEUE).await.unwrap(), load(3, 0, 0));
    ok(&store, lease(&run, "a0", "w", 1)).await;
    assert_eq!(store.queue_load("local", DEFAULT_QUEUE).await.unwrap(), load(2, 1, 1));
    ok(&store, lease(&run, "x1", "w", 2)).await;
    assert_eq!(store.queue_load("local", DEFAULT_QUEUE).await.unwrap(), load(1, 2, 1));
    assert_eq!(store.queue_loads("local").await.unwrap(), [(DEFAULT_QUEUE.to_owned(), load(1, 2, 1))].into());
    assert_eq!(store.queue_load("local", "other").await.unwrap(), QueueLoad::default());
    assert!(store.queue_loads("other").await.unwrap().is_empty(), "an organisation's own");
    for (name, token) in [("x1", 2), ("a0", 1)] {
        ok(&store, report(&run, name, token, done())).await;
    }
    ok(&store, Submission::new(run.clone(), Command::Settle { actions: vec![action("x2")] })).await;
    assert!(store.queue_loads("local").await.unwrap().is_empty());
}

async fn queues_and_projects_take_so_much(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let into = |name: &str, queue: &str| {
        let mut seed = seed("d", TaskPolicy::default());
        if let Seed::Task(task) = &mut seed {
            task.queue = queue.into();
        }
        let mut enqueued = enqueue(&run, name, "a0");
        if let Command::Enqueue { seed: enqueued, .. } = &mut enqueued.command {
            **enqueued = seed;
        }
        enqueued
    };
    let refused = |submission| {
        let store = Arc::clone(&store);
        async move {
            match store.submit(submission).await {
                Err(SubmitError::Refused(refusal)) => refusal,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(refused(into("x1", "bulk")).await, Refusal::NoSuchQueue("bulk".into()));
    let limits = QueueLimits { depth: Some(1), action_concurrency: Some(1), ..QueueLimits::default() };
    let mut bulk = queue("bulk");
    bulk.spec = QueueSpec { limits, priority: Priority::High, ..QueueSpec::default() };
    assert!(store.create_queue(bulk.clone()).await.unwrap());
    ok(&store, into("x1", "bulk")).await;
    assert_eq!(refused(into("x2", "bulk")).await, Refusal::Full { what: "queue bulk".into(), depth: 1 });
    let load = QueueLoad { waiting: 1, ..QueueLoad::default() };
    assert_eq!(store.queue_load("local", "bulk").await.unwrap(), load);
    let offered = store.offer(Time::from_micros(i64::MAX / 2), &OfferPlace::default(), 10, 10).await.unwrap();
    let lane = offered.offer.queues.iter().find(|lane| lane.name == "queue bulk").expect("it has work");
    assert_eq!(lane.spec, bulk.spec);

    ok(&store, lease(&run, "x1", "w", 1)).await;
    assert_eq!(refused(into("x2", "bulk")).await, Refusal::Full { what: "queue bulk".into(), depth: 1 }, "it runs");
    ok(&store, report(&run, "x1", 1, done())).await;
    let draining = Queue { state: QueueState::Draining, generation: 2, ..bulk.clone() };
    let drained = Queue { state: QueueState::Drained, generation: 3, ..bulk.clone() };
    let deleted = Queue { deleted_at: Some(Time::from_micros(1)), generation: 4, ..bulk.clone() };
    for (closed, state) in [(draining, "draining"), (drained, "drained"), (deleted, "deleted")] {
        let generation = closed.generation - 1;
        assert!(store.replace_queue(closed, generation).await.unwrap());
        assert_eq!(refused(into("x2", "bulk")).await, Refusal::QueueClosed { name: "bulk".into(), state });
    }
    assert!(store.replace_queue(Queue { generation: 5, ..bulk }, 4).await.unwrap());
    ok(&store, into("x2", "bulk")).await;

    // The root and x2 wait.
    let place = |domain: &str, depth| ProjectLimits {
        org: "local".into(),
        project: "p".into(),
        domain: domain.into(),
        depth: Some(depth),
        generation: 1,
        ..ProjectLimits::default()
    };
    assert!(store.replace_project_limits(place("development", 3), 0).await.unwrap());
    assert!(store.replace_project_limits(place("production", 0), 0).await.unwrap());
    ok(&store, into("x3", DEFAULT_QUEUE)).await;
    let full = |what: &str, depth| Refusal::Full { what: what.into(), depth };
    assert_eq!(refused(into("x4", DEFAULT_QUEUE)).await, full("domain development of project p", 3));
    assert!(store.replace_project_limits(place("", 2), 0).await.unwrap());
    assert_eq!(refused(into("x4", DEFAULT_QUEUE)).await, full("project p", 2));
    let offered = store.offer(Time::from_micros(i64::MAX / 2), &OfferPlace::default(), 10, 10).await.unwrap();
    let mut places: Vec<_> = offered.offer.places.iter().map(|lane| lane.name.as_str()).collect();
    places.sort_unstable();
    assert_eq!(places, ["domain development of project p", "project p"], "those that apply");
}

async fn limits_of_projects_are_kept(store: Handle) {
    let limits = |project: &str, domain: &str| ProjectLimits {
        org: "local".into(),
        project: project.into(),
        domain: domain.into(),
        depth: Some(5),
        generation: 1,
        updated_at: Time::from_micros(10),
        ..ProjectLimits::default()
    };
    let first = limits("p", "");
    assert!(!store.replace_project_limits(first.clone(), 1).await.unwrap(), "there are none");
    let mut feed = store.feed();
    feed.mark_unchanged();
    assert!(store.replace_project_limits(first.clone(), 0).await.unwrap());
    assert!(feed.has_changed().expect("the store is open"), "what waits may go on");
    assert!(!store.replace_project_limits(first.clone(), 0).await.unwrap(), "there are some");
    let second = ProjectLimits { depth: None, action_concurrency: Some(0), generation: 2, ..first };
    assert!(!store.replace_project_limits(second.clone(), 2).await.unwrap());
    assert!(store.replace_project_limits(second.clone(), 1).await.unwrap());
    for (project, domain) in [("p", "production"), ("o", "development")] {
        assert!(store.replace_project_limits(limits(project, domain), 0).await.unwrap());
    }
    let all = [limits("o", "development"), second, limits("p", "production")];
    assert_eq!(store.project_limits("local").await.unwrap(), all);
    assert!(store.project_limits("other").await.unwrap().is_empty());
}
