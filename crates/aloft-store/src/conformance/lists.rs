//! Lists: every filter against a plain evaluation of it, pages under concurrent writes, totals and changes of runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aloft_core::{
    ActionName, ActionState, AttemptOutcome, CacheStatus, Command, ConditionSeed, EndedBy, ErrorKind, LeaseToken,
    OutputRefs, Phase, Progress, RunInfo, RunKey, Scope, Seed, SignalKind, SignalValue, Subject, TaskError, TaskPolicy,
    TaskSeed, Time,
};
use bytes::Bytes;

use super::{Handle, action, done, enqueue, key, lease, ok, report, scope, seed};
use crate::{
    Blob, Cursor, DeployedTask, Direction, Field, FieldType, Filter, ListQuery, ListScope, Listed, Op, RunRow, SortBy,
    StoreError, Submission, TaskId, TaskTotals, Which,
};

pub(super) async fn run_all<F, Fut>(make: &F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Handle>,
{
    every_filter_of_runs_selects(make().await).await;
    every_filter_of_actions_selects(make().await).await;
    every_filter_of_tasks_selects(make().await).await;
    several_keys_sort_in_order(make().await).await;
    for seed in 0..6 {
        pages_hold_every_run_once(make().await, seed).await;
        pages_hold_every_action_once(make().await, seed).await;
    }
    pages_of_names_outlive_new_versions(make().await).await;
    tokens_are_checked(make().await).await;
    changes_are_found_and_totals_add_up(make().await).await;
    the_latest_run_of_a_task_is_known(make().await).await;
    outlines_have_parents_first(make().await).await;
    runs_that_wait_for_somebody_are_found(make().await).await;
}

/// A value as a filter and the plain evaluation see it.
fn holds(value: &Cursor, field: &Field, op: Op, wanted: &[Cursor]) -> bool {
    let first = &wanted.first().cloned().unwrap_or(Cursor::Null);
    let above = |or_equal: bool| match (value, first) {
        (Cursor::Int(a), Cursor::Int(b)) => a > b || (or_equal && a == b),
        (Cursor::Text(a), Cursor::Text(b)) => a > b || (or_equal && a == b),
        _ => false,
    };
    let known = *value != Cursor::Null;
    let text = |f: fn(&str, &str) -> bool| match (value, first) {
        (Cursor::Text(a), Cursor::Text(b)) => f(a, b),
        _ => false,
    };
    let set = match value {
        Cursor::Null => false,
        Cursor::Text(t) => !t.is_empty() || matches!(field, Field::Label(_)),
        Cursor::Int(_) => true,
    };
    match op {
        Op::Equal => known && value == first,
        Op::NotEqual => value != first,
        Op::Greater => above(false),
        Op::GreaterOrEqual => above(true),
        Op::Less => known && !above(true),
        Op::LessOrEqual => known && !above(false),
        Op::Contains => text(|a, b| a.contains(b)),
        Op::ContainsNoCase => text(|a, b| a.to_lowercase().contains(&b.to_lowercase())),
        Op::In => known && wanted.contains(value),
        Op::NotIn => !wanted.contains(value),
        Op::EndsWith => text(|a, b| a.ends_with(b)),
        Op::NotEndsWith => !text(|a, b| a.ends_with(b)),
        Op::Exists => set,
        Op::NotExists => !set,
    }
}

/// Every filter worth trying on a field of which these are the values of some rows.
fn filters_on(field: &Field, values: &[Cursor]) -> Vec<Filter> {
    let mut candidates: Vec<Cursor> = Vec::new();
    for value in values {
        if *value != Cursor::Null && !candidates.contains(value) && candidates.len() < 4 {
            candidates.push(value.clone());
        }
    }
    match field.value_type() {
        FieldType::Text => {
            let parts: Vec<_> = candidates
                .iter()
                .filter_map(|v| if let Cursor::Text(t) = v { Some(t) } else { None })
                .flat_map(|t| [t.to_uppercase(), t.chars().skip(1).collect(), t.chars().take(2).collect()])
                .map(Cursor::Text)
                .collect();
            candidates.extend(parts);
            candidates.extend(["", "%", "_", "' OR 1 --", "é", "nowhere"].map(|t| Cursor::Text(t.to_owned())));
        }
        _ => candidates.extend([Cursor::Int(0), Cursor::Int(1), Cursor::Int(i64::MAX)]),
    }
    let mut filters = Vec::new();
    for op in Op::ALL {
        if op.is_textual() && field.value_type() != FieldType::Text {
            continue;
        }
        match op {
            Op::Exists | Op::NotExists => filters.push(Filter { field: field.clone(), op, values: Vec::new() }),
            Op::In | Op::NotIn => {
                for n in [0, 1, 3, candidates.len()] {
                    let values = candidates.iter().take(n).cloned().collect();
                    filters.push(Filter { field: field.clone(), op, values });
                }
            }
            op => {
                filters.extend(candidates.iter().map(|v| Filter { field: field.clone(), op, values: vec![v.clone()] }))
            }
        }
    }
    filters
}

fn text(t: &str) -> Cursor {
    Cursor::Text(t.to_owned())
}

fn int(n: impl Into<i64>) -> Cursor {
    Cursor::Int(n.into())
}

fn maybe(at: Option<Time>) -> Cursor {
    at.map_or(Cursor::Null, Cursor::from)
}

/// What a run is made of.
struct Made<'m> {
    name: &'m str,
    task: &'m str,
    version: &'m str,
    by: &'m str,
    source: i32,
    labels: &'m [(&'m str, &'m str)],
}

fn task_seed(task: &str, version: &str, policy: TaskPolicy) -> Seed {
    let mut seed = seed(&format!("{task}@{version}"), policy);
    if let Seed::Task(TaskSeed { task: reference, .. }) = &mut seed {
        reference.name = task.to_owned();
        reference.version = version.to_owned();
        reference.short_name = task.rsplit('.').next().unwrap_or_default().to_owned();
        reference.environment = task.split_once('.').map(|(env, _)| env).unwrap_or_default().to_owned();
    }
    seed
}

fn create_run(made: &Made<'_>) -> Submission {
    let info = RunInfo {
        created_by: Subject { id: made.by.into(), name: made.by.to_uppercase(), ..Subject::default() },
        labels: made.labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        source: made.source,
        ..RunInfo::default()
    };
    let policy = TaskPolicy { retries: 1, ..TaskPolicy::default() };
    let seed = task_seed(made.task, made.version, policy);
    Submission::new(key(made.name), Command::create_run(seed, info))
}

fn plain(name: &str) -> Submission {
    create_run(&Made { name, task: "env.f", version: "1", by: "me", source: 2, labels: &[] })
}

fn ended(outcome: &str, recoverable: bool) -> Progress {
    let error = TaskError::new(outcome, "m", ErrorKind::User, recoverable);
    Progress::Ended(AttemptOutcome::Failed(error, OutputRefs::default()))
}

fn report_on(run: &RunKey, name: &str, attempt: u32, token: u64, progress: Progress) -> Submission {
    let command = Command::Report { action: action(name), attempt, token: LeaseToken(token), progress };
    Submission::new(run.clone(), command)
}

fn abort(run: &RunKey, name: &str) -> Submission {
    let by = EndedBy::asked("me", "no");
    Submission::new(run.clone(), Command::Abort { action: action(name), by })
}

/// Runs of many kinds.
async fn make_runs(store: &Handle) {
    let made = [
        ("alpha", "env.f", "1", "me", 2, &[("team", "red"), ("empty", "")][..]),
        ("Alpine", "env.f", "2", "me", 1, &[("team", "blue")]),
        ("beta", "env.g", "1", "you", 2, &[("team", "red"), ("Ö", "Éa")]),
        ("gamma", "other.f", "1", "you", 3, &[]),
        ("delta", "bare", "1", "me", 2, &[("team", "RED")]),
        ("running", "env.f", "1", "me", 2, &[]),
    ];
    for (name, task, version, by, source, labels) in made {
        ok(store, create_run(&Made { name, task, version, by, source, labels })).await;
    }
    let run = |name: &str| key(name);
    ok(store, lease(&run("beta"), "a0", "w", 1)).await;
    ok(store, report(&run("beta"), "a0", 1, Progress::Running)).await;
    ok(store, report(&run("beta"), "a0", 1, done())).await;
    ok(store, lease(&run("gamma"), "a0", "w", 1)).await;
    ok(store, report(&run("gamma"), "a0", 1, ended("E", true))).await;
    ok(store, lease(&run("gamma"), "a0", "w", 2)).await;
    ok(store, report_on(&run("gamma"), "a0", 2, 2, ended("E", false))).await;
    ok(store, lease(&run("running"), "a0", "w", 1)).await;
    ok(store, report(&run("running"), "a0", 1, Progress::Running)).await;
    ok(store, abort(&run("delta"), "a0")).await;
    let elsewhere = Scope::new("local", "q", "development").expect("valid");
    let mut outside = plain("alpha");
    outside.run = RunKey::new(elsewhere, "alpha").expect("valid");
    ok(store, outside).await;
}

async fn updated_at(store: &Handle, run: &RunKey, name: &ActionName) -> Time {
    let events = store.events_after(run, 0, 10_000).await.expect("readable");
    events.iter().filter(|e| e.event.action() == name).map(|e| e.at).max().expect("created")
}

fn common_value(field: &Field, state: &ActionState, updated: Time) -> Cursor {
    let task = state.task().map(|t| &t.task);
    let of_task = |f: fn(&aloft_core::TaskRef) -> &String| task.map_or(Cursor::Null, |t| text(f(t)));
    match field {
        Field::Phase => int(state.phase.number()),
        Field::CreatedAt => state.created_at.into(),
        Field::UpdatedAt => updated.into(),
        Field::StartedAt => maybe(state.started_at),
        Field::EndedAt => maybe(state.ended_at),
        Field::Duration => state
            .ended_at
            .map_or(Cursor::Null, |end| int(i64::try_from(end.since(state.created_at).as_millis()).expect("short"))),
        Field::Attempts => int(i64::try_from(state.attempts.len()).expect("few")),
        Field::TaskName => of_task(|t| &t.name),
        Field::TaskVersion => of_task(|t| &t.version),
        Field::TaskProject => of_task(|t| &t.project),
        Field::TaskDomain => of_task(|t| &t.domain),
        Field::ShortName => of_task(|t| &t.short_name),
        Field::Environment => of_task(|t| &t.environment),
        Field::Kind => int(state.kind().number()),
        Field::CacheStatus => text(match state.cache.status {
            CacheStatus::Disabled => "disabled",
            CacheStatus::Miss => "miss",
            other => unreachable!("{other:?} is not made here"),
        }),
        _ => Cursor::Null,
    }
}

fn run_value(field: &Field, row: &RunRow, updated: Time) -> Cursor {
    let record = &row.run;
    match field {
        Field::Name | Field::RunName => text(&record.key.name),
        Field::Org => text(&record.key.scope.org),
        Field::Project => text(&record.key.scope.project),
        Field::Domain => text(&record.key.scope.domain),
        Field::CreatedBy => text(&record.info.created_by.id),
        Field::RelatedTo => record.info.relation.as_ref().map_or(Cursor::Null, |r| text(&r.to.name)),
        Field::Source => int(record.info.source),
        Field::Label(key) => record.info.labels.get(key).map_or(Cursor::Null, |v| text(v)),
        field => common_value(field, &row.root, updated),
    }
}

fn fields_of(of: Listed) -> Vec<Field> {
    let mut fields = vec![
        Field::Name,
        Field::RunName,
        Field::Org,
        Field::Project,
        Field::Domain,
        Field::Phase,
        Field::CreatedAt,
        Field::UpdatedAt,
        Field::StartedAt,
        Field::EndedAt,
        Field::Duration,
        Field::Attempts,
        Field::CacheStatus,
        Field::TaskName,
        Field::TaskVersion,
        Field::TaskProject,
        Field::TaskDomain,
        Field::ShortName,
        Field::Environment,
        Field::CreatedBy,
        Field::Source,
        Field::Kind,
        Field::TriggerName,
        Field::TriggerRevision,
    ];
    match of {
        Listed::Runs => {
            fields.push(Field::RelatedTo);
            fields.extend(["team", "empty", "Ö", "x' OR 1 --"].map(|k| Field::Label(k.to_owned())));
        }
        Listed::Actions => fields.extend([Field::Parent, Field::Group]),
        Listed::Tasks | Listed::Versions => fields.push(Field::Entrypoint),
    }
    fields
}

async fn listed_runs(store: &Handle, filters: Vec<Filter>) -> BTreeSet<String> {
    let page = store.list_runs(&scope(), &ListQuery::newest(filters, 100)).await.expect("listed");
    page.rows.into_iter().map(|r| r.run.key.name).collect()
}

async fn every_filter_of_runs_selects(store: Handle) {
    make_runs(&store).await;
    let rows = store.list_runs(&scope(), &ListQuery::newest(Vec::new(), 100)).await.expect("listed").rows;
    assert_eq!(rows.len(), 6, "the scope is part of every list");
    let mut updated = HashMap::new();
    for row in &rows {
        updated.insert(row.run.key.name.clone(), updated_at(&store, &row.run.key, &ActionName::root()).await);
    }
    for field in fields_of(Listed::Runs) {
        let value = |row: &RunRow| run_value(&field, row, updated[&row.run.key.name]);
        let values: Vec<_> = rows.iter().map(value).collect();
        for filter in filters_on(&field, &values) {
            let expected: BTreeSet<_> = rows
                .iter()
                .filter(|row| holds(&value(row), &field, filter.op, &filter.values))
                .map(|row| row.run.key.name.clone())
                .collect();
            assert_eq!(listed_runs(&store, vec![filter.clone()]).await, expected, "{filter:?} of {values:?}");
            let changes = store.runs_changed(&scope(), std::slice::from_ref(&filter), 0, 100).await.expect("read");
            let meet: BTreeSet<_> =
                changes.rows.into_iter().filter(|(_, meets)| *meets).map(|(r, _)| r.run.key.name).collect();
            assert_eq!(meet, expected, "changes say the same: {filter:?}");
        }
    }
    let both = vec![Filter::equal(Field::Label("team".into()), "red"), Filter::equal(Field::CreatedBy, "me")];
    assert_eq!(listed_runs(&store, both).await, BTreeSet::from(["alpha".to_owned()]), "all must hold");
    let waiting = Filter { field: Field::PausedActions, op: Op::Exists, values: Vec::new() };
    assert!(listed_runs(&store, vec![waiting]).await.is_empty(), "nobody is waited for");
    let everywhere = ListScope { org: "local".into(), ..ListScope::default() };
    assert_eq!(store.list_runs(&everywhere, &ListQuery::newest(Vec::new(), 100)).await.expect("listed").rows.len(), 7);
}

async fn every_filter_of_actions_selects(store: Handle) {
    let run = key("r1");
    ok(&store, plain("r1")).await;
    let child = |name: &str, parent: &str, task: &str, group: &str| {
        let seed = task_seed(task, "1", TaskPolicy::default());
        Submission::new(key("r1"), Command::enqueue(action(name), action(parent), group, seed))
    };
    ok(&store, child("x1", "a0", "env.g", "red")).await;
    ok(&store, child("x2", "a0", "env.Ünder", "")).await;
    ok(&store, child("x3", "x1", "env.g", "red")).await;
    ok(&store, child("x4", "x3", "env.g", "")).await;
    ok(&store, lease(&run, "x2", "w", 1)).await;
    ok(&store, report(&run, "x2", 1, Progress::Running)).await;
    ok(&store, report(&run, "x2", 1, done())).await;
    // Once as it is, and once with live actions below an ended one, which are shown as aborted from that commit on.
    for aborted in [false, true] {
        if aborted {
            ok(&store, abort(&run, "x1")).await;
        }
        let states = store.snapshot(&run, Which::All).await.expect("read").expect("exists").actions;
        assert_eq!(states.iter().filter(|s| s.phase == Phase::Aborted).count(), if aborted { 3 } else { 0 });
        let mut updated = HashMap::new();
        for state in &states {
            updated.insert(state.name.clone(), updated_at(&store, &run, &state.name).await);
        }
        for field in fields_of(Listed::Actions) {
            let value = |state: &ActionState| match &field {
                Field::Name => text(state.name.as_str()),
                Field::RunName => text("r1"),
                Field::Org => text("local"),
                Field::Project => text("p"),
                Field::Domain => text("development"),
                Field::CreatedBy => text("me"),
                Field::Source => int(2),
                Field::Parent => state.parent().map_or(Cursor::Null, |p| text(p.as_str())),
                Field::Group => text(&state.group),
                // A start is not invented for what is shown as aborted before its record follows.
                field => common_value(field, state, updated[&state.name]),
            };
            let values: Vec<_> = states.iter().map(value).collect();
            for filter in filters_on(&field, &values) {
                let expected: BTreeSet<_> = states
                    .iter()
                    .filter(|s| holds(&value(s), &field, filter.op, &filter.values))
                    .map(|s| s.name.clone())
                    .collect();
                let query = ListQuery::newest(vec![filter.clone()], 100);
                let found = store.list_actions(&run, &query).await.expect("listed").rows;
                let found: BTreeSet<_> = found.into_iter().map(|s| s.name).collect();
                assert_eq!(found, expected, "{filter:?} of {values:?}, aborted: {aborted}");
                let names: Vec<_> = states.iter().map(|s| s.name.clone()).collect();
                let matched = store.matched(&run, &names, std::slice::from_ref(&filter), 0).await.expect("read");
                assert_eq!(matched.len(), states.len());
                for ((state, meets), shown) in matched.iter().zip(&states) {
                    assert_eq!(state, shown, "as every view shows it");
                    assert_eq!(*meets, expected.contains(&state.name), "{filter:?} on {}", state.name);
                }
            }
        }
    }
    assert!(store.matched(&run, &[action("x9")], &[], 0).await.expect("read").is_empty());
    assert!(store.list_actions(&key("r2"), &ListQuery::newest(Vec::new(), 9)).await.expect("read").rows.is_empty());
}

fn deployed(name: &str, version: &str, at: i64, by: &str) -> DeployedTask {
    DeployedTask {
        id: TaskId {
            scope: Scope::new("local", "p", "development").expect("valid"),
            name: name.into(),
            version: version.into(),
        },
        digest: "d".into(),
        short_name: name.rsplit('.').next().unwrap_or_default().into(),
        environment: name.split_once('.').map(|(env, _)| env).unwrap_or_default().into(),
        entrypoint: version == "2",
        deployed_at: Time::from_micros(at),
        deployed_by: Subject { id: by.into(), ..Subject::default() },
    }
}

async fn deploy(store: &Handle, task: DeployedTask) {
    let blob = Blob { digest: "d".into(), bytes: Bytes::from_static(b"spec"), own: false };
    assert!(store.put_task(task, blob).await.expect("stored"));
}

async fn every_filter_of_tasks_selects(store: Handle) {
    let tasks = [
        deployed("env.f", "1", 10, "me"),
        deployed("env.f", "2", 30, "you"),
        deployed("env.g", "1", 20, "me"),
        deployed("bare", "2", 25, "me"),
        deployed("Über.é", "3", 5, "you"),
    ];
    for task in &tasks {
        deploy(&store, task.clone()).await;
    }
    let newest = |t: &&DeployedTask| !(t.id.name == "env.f" && t.id.version == "1");
    for latest in [false, true] {
        let shown: Vec<_> = tasks.iter().filter(|t| !latest || newest(t)).collect();
        for field in fields_of(if latest { Listed::Tasks } else { Listed::Versions }) {
            let value = |t: &DeployedTask| match &field {
                Field::Name | Field::TaskName => text(&t.id.name),
                Field::TaskVersion => text(&t.id.version),
                Field::Org => text(&t.id.scope.org),
                Field::Project | Field::TaskProject => text(&t.id.scope.project),
                Field::Domain | Field::TaskDomain => text(&t.id.scope.domain),
                Field::CreatedAt | Field::UpdatedAt => t.deployed_at.into(),
                Field::CreatedBy => text(&t.deployed_by.id),
                Field::ShortName => text(&t.short_name),
                Field::Environment => text(&t.environment),
                Field::Entrypoint => int(t.entrypoint),
                _ => Cursor::Null,
            };
            let values: Vec<_> = shown.iter().map(|t| value(t)).collect();
            for filter in filters_on(&field, &values) {
                let expected: BTreeSet<_> = shown
                    .iter()
                    .filter(|t| holds(&value(t), &field, filter.op, &filter.values))
                    .map(|t| (t.id.name.clone(), t.id.version.clone()))
                    .collect();
                let query = ListQuery::newest(vec![filter.clone()], 100);
                let found = store.list_tasks(&scope(), latest, &query).await.expect("listed");
                assert_eq!((found.total, found.filtered), (shown.len() as u64, expected.len() as u64), "{filter:?}");
                let found: BTreeSet<_> =
                    found.page.rows.into_iter().map(|t| (t.task.id.name, t.task.id.version)).collect();
                assert_eq!(found, expected, "{filter:?} of {values:?}, latest: {latest}");
            }
        }
    }
}

fn by(keys: &[(Field, Direction)]) -> Vec<SortBy> {
    keys.iter().map(|(field, direction)| SortBy { field: field.clone(), direction: *direction }).collect()
}

async fn all_runs(store: &Handle, mut query: ListQuery) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = store.list_runs(&scope(), &query).await.expect("listed");
        assert!(page.rows.len() <= query.limit);
        names.extend(page.rows.into_iter().map(|r| r.run.key.name));
        if page.next.is_empty() {
            return names;
        }
        query.token = page.next;
    }
}

async fn several_keys_sort_in_order(store: Handle) {
    use Direction::{Ascending, Descending};
    make_runs(&store).await;
    let sorted = |keys: Vec<SortBy>, limit: usize| {
        let store = Handle::clone(&store);
        async move { all_runs(&store, ListQuery { sort: keys, ..ListQuery::newest(Vec::new(), limit) }).await }
    };
    let expected = [
        (by(&[]), vec!["running", "delta", "gamma", "beta", "Alpine", "alpha"]),
        (by(&[(Field::Name, Ascending)]), vec!["Alpine", "alpha", "beta", "delta", "gamma", "running"]),
        (
            by(&[(Field::CreatedBy, Descending), (Field::Name, Ascending)]),
            vec!["beta", "gamma", "Alpine", "alpha", "delta", "running"],
        ),
        (
            by(&[(Field::TaskName, Ascending), (Field::TaskVersion, Descending), (Field::Name, Descending)]),
            vec!["delta", "Alpine", "running", "alpha", "beta", "gamma"],
        ),
        (
            by(&[(Field::Phase, Descending), (Field::Name, Ascending)]),
            vec!["delta", "gamma", "beta", "running", "Alpine", "alpha"],
        ),
        // What is not set comes first going up; ties follow the order of creation.
        (by(&[(Field::Label("team".into()), Ascending)]), vec!["gamma", "running", "delta", "Alpine", "alpha", "beta"]),
        (by(&[(Field::EndedAt, Descending)]), vec!["delta", "gamma", "beta", "running", "Alpine", "alpha"]),
    ];
    for (keys, names) in expected {
        for limit in [1, 2, 5, 100] {
            assert_eq!(sorted(keys.clone(), limit).await, names, "{keys:?} by {limit}");
        }
    }
}

/// Pseudo-random numbers that are the same for every engine.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).expect("small")
    }
}

fn random_sort(dice: &mut Dice) -> Vec<SortBy> {
    let fields = [
        Field::Phase,
        Field::UpdatedAt,
        Field::EndedAt,
        Field::Duration,
        Field::Attempts,
        Field::CreatedAt,
        Field::Name,
        Field::TaskName,
        Field::CreatedBy,
    ];
    let keys = 1 + dice.roll(3);
    (0..keys)
        .map(|_| SortBy {
            field: fields[dice.roll(fields.len())].clone(),
            direction: if dice.roll(2) == 0 { Direction::Ascending } else { Direction::Descending },
        })
        .collect()
}

/// One random step of one of the actions `names`, whatever it may refuse.
async fn random_step(store: &Handle, dice: &mut Dice, names: &[(RunKey, String)]) {
    let (run, name) = &names[dice.roll(names.len())];
    let snapshot = store.snapshot(run, Which::One(action(name))).await.expect("read").expect("exists");
    let Some(attempt) = snapshot.actions.first().and_then(|s| s.current()).map(|a| a.number) else { return };
    let submission = match dice.roll(6) {
        0 | 1 => lease(run, name, "w", u64::from(attempt)),
        2 => report_on(run, name, attempt, u64::from(attempt), Progress::Running),
        3 => report_on(run, name, attempt, u64::from(attempt), ended("E", true)),
        4 => report_on(run, name, attempt, u64::from(attempt), done()),
        _ if dice.roll(4) == 0 => abort(run, name),
        _ => return,
    };
    let _ = store.submit(submission).await;
}

fn assert_once(found: &[String], existed: &BTreeSet<String>, what: &str) {
    let distinct: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(distinct.len(), found.len(), "nothing is repeated: {what}");
    let missing: Vec<_> = existed.difference(&distinct).collect();
    assert!(missing.is_empty(), "nothing is skipped: {missing:?} {what}");
}

async fn pages_hold_every_run_once(store: Handle, seed: u64) {
    let mut dice = Dice(seed);
    let mut names = Vec::new();
    for i in 0..40 {
        let (task, by) = (["env.f", "env.g"][dice.roll(2)], ["me", "you"][dice.roll(2)]);
        let name = format!("r{i}");
        ok(&store, create_run(&Made { name: &name, task, version: "1", by, source: 2, labels: &[] })).await;
        names.push((key(&name), "a0".to_owned()));
    }
    for round in 0..8 {
        for _ in 0..30 {
            random_step(&store, &mut dice, &names).await;
        }
        let sort = random_sort(&mut dice);
        // Also under a filter that rows may leave while the list is read.
        let live = Filter { field: Field::EndedAt, op: Op::NotExists, values: Vec::new() };
        let filters = if round % 2 == 0 { Vec::new() } else { vec![live] };
        let mut query = ListQuery { filters, sort, limit: 1 + dice.roll(9), token: String::new() };
        let what = format!("seed {seed}: {query:?}");
        let matching = |rows: Vec<RunRow>| rows.into_iter().map(|r| r.run.key.name).collect::<BTreeSet<_>>();
        let all = ListQuery { limit: 1000, ..query.clone() };
        let before = store.list_runs(&scope(), &all).await.expect("listed").rows;
        let order: Vec<_> = before.iter().map(|r| r.run.key.name.clone()).collect();
        let before = matching(before);
        let mut found = Vec::new();
        loop {
            let page = store.list_runs(&scope(), &query).await.expect("listed");
            for row in &page.rows {
                assert!(query.filters.is_empty() || !row.root.phase.is_terminal(), "as it is now: {what}");
            }
            found.extend(page.rows.into_iter().map(|r| r.run.key.name));
            if page.next.is_empty() {
                break;
            }
            query.token = page.next;
            for _ in 0..5 {
                random_step(&store, &mut dice, &names).await;
            }
            // Not for ever: going up, every new run is on one more page.
            if names.len() < 40 + 6 * (round + 1) {
                let name = format!("n{seed}-{round}-{}", found.len());
                ok(&store, plain(&name)).await;
                names.push((key(&name), "a0".to_owned()));
            }
        }
        let after = matching(store.list_runs(&scope(), &all).await.expect("listed").rows);
        let throughout: BTreeSet<_> = before.intersection(&after).cloned().collect();
        assert_once(&found, &throughout, &what);
        let places: Vec<_> = found.iter().filter_map(|n| order.iter().position(|o| o == n)).collect();
        assert!(places.is_sorted(), "in the order of the first page: {what}");
    }
}

async fn pages_hold_every_action_once(store: Handle, seed: u64) {
    let run = key("r1");
    ok(&store, plain("r1")).await;
    let mut dice = Dice(seed);
    let mut names = Vec::new();
    for i in 0..30 {
        let parent = if i > 4 && dice.roll(2) == 0 { format!("x{}", dice.roll(4)) } else { "a0".to_owned() };
        ok(&store, enqueue(&run, &format!("x{i}"), &parent)).await;
        names.push((run.clone(), format!("x{i}")));
    }
    for round in 0..6 {
        let mut query = ListQuery {
            filters: Vec::new(),
            sort: random_sort(&mut dice),
            limit: 1 + dice.roll(7),
            token: String::new(),
        };
        let what = format!("seed {seed}: {query:?}");
        let all = ListQuery { limit: 1000, ..query.clone() };
        let before = store.list_actions(&run, &all).await.expect("listed").rows;
        let before: BTreeSet<_> = before.into_iter().map(|s| s.name.to_string()).collect();
        let mut found = Vec::new();
        let mut new = 0;
        loop {
            let page = store.list_actions(&run, &query).await.expect("listed");
            found.extend(page.rows.into_iter().map(|s| s.name.to_string()));
            if page.next.is_empty() {
                break;
            }
            query.token = page.next;
            for _ in 0..4 {
                random_step(&store, &mut dice, &names).await;
            }
            if new < 5 {
                new += 1;
                ok(&store, enqueue(&run, &format!("n{round}-{new}"), "a0")).await;
            }
        }
        assert_once(&found, &before, &what);
    }
}

async fn pages_of_names_outlive_new_versions(store: Handle) {
    for i in 0..20 {
        deploy(&store, deployed(&format!("env.f{i}"), "1", 100 + i, "me")).await;
    }
    for (round, field) in [Field::CreatedAt, Field::Name, Field::TaskVersion, Field::CreatedBy].into_iter().enumerate()
    {
        let sort = by(&[(field, if round % 2 == 0 { Direction::Descending } else { Direction::Ascending })]);
        let mut query = ListQuery { sort, ..ListQuery::newest(Vec::new(), 3) };
        let mut found = Vec::new();
        loop {
            let list = store.list_tasks(&scope(), true, &query).await.expect("listed");
            assert_eq!(list.total, 20);
            found.extend(list.page.rows.into_iter().map(|t| t.task.id.name));
            if list.page.next.is_empty() {
                break;
            }
            query.token = list.page.next;
            for i in 0..20 {
                if (i + found.len()) % 3 == 0 {
                    let version = format!("{round}-{}", found.len());
                    let at = 1000 * (round as i64 + 1) + found.len() as i64 * 20 + i as i64;
                    deploy(&store, deployed(&format!("env.f{i}"), &version, at, "you")).await;
                }
            }
        }
        let names = (0..20).map(|i| format!("env.f{i}")).collect();
        assert_once(&found, &names, &format!("{query:?}"));
    }
}

async fn tokens_are_checked(store: Handle) {
    for i in 0..5 {
        ok(&store, plain(&format!("r{i}"))).await;
    }
    for field in [Field::CreatedAt, Field::Phase] {
        let sort = by(&[(field, Direction::Descending)]);
        let first = ListQuery { sort, ..ListQuery::newest(Vec::new(), 2) };
        let token = store.list_runs(&scope(), &first).await.expect("listed").next;
        let again = ListQuery { token: token.clone(), limit: 3, ..first.clone() };
        assert_eq!(store.list_runs(&scope(), &again).await.expect("listed").rows.len(), 3, "of any page size");
        let reversed = ListQuery { sort: by(&[(Field::Name, Direction::Ascending)]), ..again.clone() };
        let filtered = ListQuery { filters: vec![Filter::equal(Field::Name, "r1")], ..again.clone() };
        for wrong in [&reversed, &filtered, &ListQuery { token: "nonsense".into(), ..first.clone() }] {
            assert_eq!(store.list_runs(&scope(), wrong).await.unwrap_err(), StoreError::BadToken);
        }
        let elsewhere = ListScope { project: "q".into(), ..scope() };
        assert_eq!(store.list_runs(&elsewhere, &again).await.unwrap_err(), StoreError::BadToken);
        assert_eq!(store.list_actions(&key("r1"), &again).await.unwrap_err(), StoreError::BadToken);
    }
}

async fn changes_are_found_and_totals_add_up(store: Handle) {
    let mut dice = Dice(7);
    let mut names = Vec::new();
    let mut upto = store.last_run_change().await.expect("read");
    assert_eq!(upto, 0);
    // What somebody sees who follows the changes, page by page.
    let mut seen: HashMap<String, RunRow> = HashMap::new();
    for round in 0..12 {
        for i in 0..3 {
            let (task, by) = (["env.f", "env.g"][dice.roll(2)], ["me", "you"][dice.roll(2)]);
            let name = format!("r{round}-{i}");
            ok(&store, create_run(&Made { name: &name, task, version: "1", by, source: 2, labels: &[] })).await;
            names.push((key(&name), "a0".to_owned()));
        }
        for _ in 0..20 {
            random_step(&store, &mut dice, &names).await;
        }
        loop {
            let changes = store.runs_changed(&scope(), &[], upto, 4).await.expect("read");
            assert!(changes.rows.iter().all(|(row, _)| row.changed > upto), "only what is new");
            assert!(changes.rows.is_sorted_by_key(|(row, _)| row.changed));
            upto = changes.upto;
            let last = changes.rows.is_empty();
            seen.extend(changes.rows.into_iter().map(|(row, _)| (row.run.key.name.clone(), row)));
            if last {
                break;
            }
        }
        assert_eq!(upto, store.last_run_change().await.expect("read"));
        let rows = store.list_runs(&scope(), &ListQuery::newest(Vec::new(), 1000)).await.expect("listed").rows;
        assert_eq!(rows.len(), seen.len());
        for row in &rows {
            assert_eq!(seen.get(&row.run.key.name), Some(row), "the changes lead to what is listed");
        }
        let mine = Filter::equal(Field::CreatedBy, "me");
        for filters in [Vec::new(), vec![mine]] {
            let totals = store.run_totals(&scope(), &filters).await.expect("read");
            let counted = rows.iter().map(RunRow::summary).filter(|s| filters.is_empty() || s.created_by == "me");
            let mut expected: BTreeMap<String, TaskTotals> = BTreeMap::new();
            let mut live = BTreeSet::new();
            for summary in counted {
                expected.entry(summary.task_name.clone()).or_default().add(&summary);
                if !summary.phase.is_terminal() {
                    assert!(totals.live.contains(&summary), "{summary:?}");
                    live.insert(summary.run.name);
                }
            }
            assert_eq!(totals.tasks, expected);
            assert_eq!(totals.live.len(), live.len());
            assert_eq!(totals.upto, upto);
            let subjects: BTreeSet<_> = totals.subjects.iter().map(|s| (s.id.as_str(), s.name.as_str())).collect();
            let both = BTreeSet::from([("me", "ME"), ("you", "YOU")]);
            assert!(subjects.is_subset(&both) && subjects.len() == expected_subjects(&expected), "{subjects:?}");
        }
    }
    let elsewhere = ListScope { project: "q".into(), ..scope() };
    let none = store.runs_changed(&elsewhere, &[], 0, 4).await.expect("read");
    assert!(none.rows.is_empty() && none.upto == upto, "what is out of scope is not read again");
}

fn expected_subjects(totals: &BTreeMap<String, TaskTotals>) -> usize {
    totals.values().flat_map(|t| t.created_by.keys()).collect::<BTreeSet<_>>().len()
}

async fn the_latest_run_of_a_task_is_known(store: Handle) {
    for (name, version, at) in [("env.f", "1", 10), ("env.f", "2", 20), ("env.g", "1", 30), ("env.h", "1", 40)] {
        deploy(&store, deployed(name, version, at, "me")).await;
    }
    let make = |name: &'static str, task: &'static str, version: &'static str| {
        create_run(&Made { name, task, version, by: "me", source: 2, labels: &[] })
    };
    ok(&store, make("r1", "env.f", "1")).await;
    ok(&store, make("r2", "env.f", "2")).await;
    ok(&store, make("r3", "env.f", "1")).await;
    let seed = task_seed("env.g", "1", TaskPolicy::default());
    ok(&store, Submission::new(key("r2"), Command::enqueue(action("x1"), action("a0"), "", seed))).await;
    ok(&store, abort(&key("r2"), "a0")).await;
    let latest = |names: bool| {
        let store = Handle::clone(&store);
        async move {
            let list = store.list_tasks(&scope(), names, &ListQuery::newest(Vec::new(), 10)).await.expect("listed");
            let rows = list.page.rows.into_iter().map(|row| {
                let run = row.latest_run.map(|l| (l.run.name, l.phase, l.root_task));
                ((row.task.id.name, row.task.id.version), run)
            });
            rows.collect::<BTreeMap<_, _>>()
        }
    };
    let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let run = |name: &str, phase, root: &str| Some((name.to_owned(), phase, root.to_owned()));
    let versions = latest(false).await;
    assert_eq!(versions[&id("env.f", "1")], run("r3", Phase::Queued, "env.f"));
    assert_eq!(versions[&id("env.f", "2")], run("r2", Phase::Aborted, "env.f"));
    assert_eq!(versions[&id("env.g", "1")], run("r2", Phase::Aborted, "env.f"), "below another task's root");
    assert_eq!(versions[&id("env.h", "1")], None, "never run");
    let names = latest(true).await;
    assert_eq!(names[&id("env.f", "2")], run("r3", Phase::Queued, "env.f"), "of any version");
    assert_eq!(names.len(), 3);
}

async fn outlines_have_parents_first(store: Handle) {
    let run = key("r1");
    assert_eq!(store.outline(&run).await.expect("read"), None);
    ok(&store, plain("r1")).await;
    for (name, parent) in [("z", "a0"), ("y", "z"), ("x", "y"), ("w", "a0")] {
        ok(&store, enqueue(&run, name, parent)).await;
    }
    ok(&store, abort(&run, "w")).await;
    let outline = store.outline(&run).await.expect("read").expect("exists");
    assert_eq!(outline.seq, 6);
    let found: Vec<_> =
        outline.actions.iter().map(|a| (a.name.as_str(), a.parent.as_ref().map(ActionName::as_str), a.phase)).collect();
    let queued = Phase::Queued;
    assert_eq!(
        found,
        [
            ("a0", None, queued),
            ("z", Some("a0"), queued),
            ("y", Some("z"), queued),
            ("x", Some("y"), queued),
            ("w", Some("a0"), Phase::Aborted)
        ]
    );
}

async fn runs_that_wait_for_somebody_are_found(store: Handle) {
    let condition = |run: &str, name: &str, parent: &str| {
        let seed = Seed::Condition(ConditionSeed {
            name: "approve".into(),
            kind: SignalKind::Bool,
            timeout_ms: None,
            webhook: false,
            spec_digest: String::new(),
        });
        Submission::new(key(run), Command::enqueue(action(name), action(parent), "", seed))
    };
    for run in ["direct", "below", "signalled", "aborted", "none"] {
        ok(&store, plain(run)).await;
    }
    ok(&store, condition("direct", "c1", "a0")).await;
    ok(&store, enqueue(&key("below"), "x1", "a0")).await;
    ok(&store, enqueue(&key("below"), "x2", "x1")).await;
    ok(&store, condition("below", "c1", "x2")).await;
    ok(&store, condition("signalled", "c1", "a0")).await;
    ok(&store, condition("aborted", "c1", "a0")).await;
    let paused = || vec![Filter { field: Field::PausedActions, op: Op::Exists, values: Vec::new() }];
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(listed_runs(&store, paused()).await, names(&["direct", "below", "signalled", "aborted"]));
    let signal = Command::Signal { action: action("c1"), value: SignalValue::Bool(true), by: Subject::default() };
    ok(&store, Submission::new(key("signalled"), signal)).await;
    ok(&store, abort(&key("aborted"), "a0")).await;
    assert_eq!(listed_runs(&store, paused()).await, names(&["direct", "below"]), "not what waits no more");
    ok(&store, abort(&key("below"), "x1")).await;
    assert_eq!(listed_runs(&store, paused()).await, names(&["direct"]), "even before its record follows");
}
