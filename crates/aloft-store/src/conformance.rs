//! The suite that every engine passes. An engine's tests call [`run_all`] with a maker of empty stores, so that a case
//! that exists for one engine exists for all.

mod lists;

use std::{future::Future, sync::Arc};

use aloft_core::{
    ActionName, AttemptOutcome, Command, EndedBy, ErrorKind, Event, Lease, LeaseToken, OutputRefs, Phase, Progress,
    Refusal, Reply, RunInfo, RunKey, Scope, Seed, Subject, TaskError, TaskPolicy, TaskRef, TaskSeed, Time, WorkerId,
};
use bytes::Bytes;

use crate::{Blob, DeployedTask, ListQuery, ListScope, Project, Store, Submission, SubmitError, TaskId, Which};

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
    watchers_miss_nothing(make().await).await;
    leases_and_limits_are_indexed(make().await).await;
    the_end_of_a_parent_shows_at_once(make().await).await;
    lists::run_all(&make).await;
    records_are_kept(make().await).await;
}

fn key(name: &str) -> RunKey {
    RunKey::new(Scope::new("local", "p", "development").expect("valid"), name).expect("valid")
}

fn action(name: &str) -> ActionName {
    ActionName::new(name).expect("valid")
}

fn seed(digest: &str, policy: TaskPolicy) -> Box<Seed> {
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
    Box::new(Seed::Task(TaskSeed {
        task,
        policy,
        input_uri: "s3://b/in.pb".into(),
        run_output_base: "s3://b/r".into(),
        cache_key: String::new(),
    }))
}

fn create(run: &RunKey, digest: &str) -> Submission {
    let info = RunInfo {
        created_by: Subject { id: "me".into(), ..Subject::default() },
        labels: [("team".to_owned(), run.name.clone())].into(),
        ..RunInfo::default()
    };
    let command = Command::CreateRun { seed: seed(digest, TaskPolicy::default()), info: Box::new(info) };
    let blob = Blob { digest: digest.into(), bytes: Bytes::from_static(b"spec") };
    Submission { run: run.clone(), command, blobs: vec![blob] }
}

fn enqueue(run: &RunKey, name: &str, parent: &str) -> Submission {
    let command = Command::Enqueue {
        action: action(name),
        parent: action(parent),
        group: "g".into(),
        seed: seed("d", TaskPolicy::default()),
    };
    Submission::new(run.clone(), command)
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
    assert_eq!(ok(&store, create(&run, "d")).await, Reply::Done);
    assert_eq!(ok(&store, create(&run, "d")).await, Reply::Unchanged);
    let other = store.submit(create(&run, "e")).await;
    assert!(matches!(other, Err(SubmitError::Refused(Refusal::DifferentWork { .. }))), "{other:?}");
    let elsewhere = RunKey::new(Scope::new("local", "q", "development").unwrap(), "r1").unwrap();
    assert_eq!(ok(&store, create(&elsewhere, "e")).await, Reply::Done, "the scope is part of the key");
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
    assert!(feed.is_sorted_by_key(|f| f.pos));
    assert_eq!(feed.len(), 101);
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

async fn leases_and_limits_are_indexed(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    let policy = TaskPolicy { max_runtime_ms: Some(1), ..TaskPolicy::default() };
    let timed =
        Command::Enqueue { action: action("x1"), parent: action("a0"), group: String::new(), seed: seed("d", policy) };
    ok(&store, Submission::new(run.clone(), timed)).await;
    let far = Time::from_micros(i64::MAX / 2);
    let (ready, _) = store.ready(far, 10).await.unwrap();
    assert_eq!(ready.len(), 2);
    let (none, next) = store.ready(Time::from_micros(0), 10).await.unwrap();
    assert!(none.is_empty() && next.is_some(), "what becomes ready later is announced");
    ok(&store, lease(&run, "x1", "w", 5)).await;
    assert_eq!(store.ready(far, 10).await.unwrap().0, [(run.clone(), action("a0"))]);
    let held = store.held_by(&WorkerId("w".into())).await.unwrap();
    assert_eq!(held.len(), 1);
    assert!(store.due(far, 10).await.unwrap().0.is_empty(), "the runtime counts from the start of the code");
    ok(&store, report(&run, "x1", 5, Progress::Running)).await;
    assert_eq!(store.due(far, 10).await.unwrap().0, [(run.clone(), action("x1"))]);
    let failed = TaskError::new("E", "m", ErrorKind::User, false);
    let ended = Progress::Ended(AttemptOutcome::Failed(failed, OutputRefs::default()));
    ok(&store, report(&run, "x1", 5, ended)).await;
    assert!(store.due(far, 10).await.unwrap().0.is_empty());
    assert!(store.held_by(&WorkerId("w".into())).await.unwrap().is_empty());
}

async fn the_end_of_a_parent_shows_at_once(store: Handle) {
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    ok(&store, enqueue(&run, "x1", "a0")).await;
    ok(&store, enqueue(&run, "x2", "x1")).await;
    let by = EndedBy { subject: "me".into(), reason: "no".into() };
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
    let blob = Blob { digest: "d".into(), bytes: Bytes::from_static(b"spec") };
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
