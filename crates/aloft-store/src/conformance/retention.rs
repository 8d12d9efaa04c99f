//! What is left when history has been given up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aloft_core::Relation;

use super::*;
use crate::{Direction, Field, Pruned, Retention, SortBy};

/// Runs the cases of this part, each on a store of its own.
pub(super) async fn run_all<F, Fut>(make: &F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Handle>,
{
    whole_runs_are_given_up(make().await).await;
    what_lives_or_is_needed_stays(make().await).await;
    numbers_are_never_given_out_again(make().await).await;
    blobs_stay_while_anything_uses_them(make().await).await;
    the_latest_run_of_a_task_is_one_that_is_left(make().await).await;
    a_large_run_goes_in_parts(make().await).await;
    pages_go_on_without_what_was_given_up(make().await).await;
    writers_and_others_who_give_up_are_not_disturbed(make().await).await;
    for seed in 1..=4 {
        only_what_is_live_or_younger_is_left(make().await, seed).await;
    }
}

/// Far more than the days whose uses of blobs are left alone.
const AGE: Duration = Duration::from_secs(10 * 86_400);

/// Everything that ended at `before` or earlier is too old at the time that comes with it.
fn before(before: Time) -> (Retention, Time) {
    (Retention { runs: Some(AGE), ..Retention::default() }, before.plus(AGE))
}

/// Later than anything that happens in these cases.
const LATE: Time = Time::from_micros(1_800_000_000_000_000);

/// Gives up what can be, in steps of `most` rows, and returns the sum.
async fn prune(store: &Handle, (retention, now): &(Retention, Time), most: usize) -> Pruned {
    let mut sum = Pruned::default();
    loop {
        let step = store.prune(retention, *now, most).await.unwrap();
        assert!(step.actions + step.events <= 2 * most as u64, "bounded: {step:?}");
        sum.add(step);
        if !step.more {
            return sum;
        }
    }
}

fn own(run: &RunKey) -> String {
    format!("own {run}")
}

/// A run with a blob of its own, related to another if `of` says so.
async fn begin(store: &Handle, run: &RunKey, of: Option<&RunKey>) {
    let recover = Some(Vec::new());
    let info = RunInfo {
        spec_digest: own(run),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        relation: of.map(|to| Relation { to: to.clone(), kind: 2, recover: recover.clone() }),
        ..RunInfo::default()
    };
    let shared = Blob { digest: "d".into(), bytes: Bytes::from_static(b"spec"), own: false };
    let own = Blob { digest: own(run), bytes: Bytes::from(run.name.clone()), own: true };
    let command = Command::create_run(seed("d", TaskPolicy::default()), info);
    ok(store, Submission { run: run.clone(), command, blobs: vec![shared, own], site_revision: None, turn: None })
        .await;
}

async fn end(store: &Handle, run: &RunKey, name: &str) {
    ok(store, lease(run, name, "w", 1)).await;
    ok(store, report(run, name, 1, done())).await;
}

/// A run of a root and a child, which both have ended.
async fn ended(store: &Handle, run: &RunKey) {
    begin(store, run, None).await;
    ok(store, enqueue(run, "x1", "a0")).await;
    end(store, run, "x1").await;
    end(store, run, "a0").await;
}

async fn ended_at(store: &Handle, run: &RunKey) -> Option<Time> {
    let root = store.snapshot(run, Which::One(ActionName::root())).await.unwrap()?;
    root.actions.into_iter().next()?.ended_at
}

async fn names(store: &Handle) -> BTreeSet<String> {
    let page = store.list_runs(&scope(), &query(1000)).await.unwrap();
    page.rows.into_iter().map(|row| row.run.key.name).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Nothing tells that there was such a run.
async fn is_gone(store: &Handle, run: &RunKey) {
    assert_eq!(store.run(run).await.unwrap(), None);
    assert_eq!(store.snapshot(run, Which::All).await.unwrap(), None);
    assert_eq!(store.outline(run).await.unwrap(), None);
    assert!(store.events_after(run, 0, 10).await.unwrap().is_empty());
    assert!(store.list_actions(run, &query(10)).await.unwrap().rows.is_empty());
    assert!(store.matched(run, &[ActionName::root()], &[], 0).await.unwrap().is_empty());
    assert!(!names(store).await.contains(&run.name));
    assert_eq!(store.blob(&own(run)).await.unwrap(), None, "what only it had");
    assert!(store.feed_after(0, 1000).await.unwrap().iter().all(|item| item.run != *run));
    let refused = store.submit(enqueue(run, "x9", "a0")).await;
    assert_eq!(refused, Err(SubmitError::Refused(Refusal::NoSuchRun)));
}

async fn whole_runs_are_given_up(store: Handle) {
    let [old, young, live] = ["old", "young", "live"].map(key);
    let elsewhere = RunKey::new(Scope::new("local", "kept", "development").unwrap(), "old").unwrap();
    begin(&store, &live, None).await;
    ended(&store, &elsewhere).await;
    ended(&store, &old).await;
    let at = ended_at(&store, &old).await.unwrap();
    ended(&store, &young).await;
    let forever = (Retention::default(), LATE);
    assert_eq!(prune(&store, &forever, 100).await, Pruned::default(), "everything is kept for ever");
    let (mut retention, now) = before(at);
    retention.projects.insert("kept".to_owned(), None);
    let rules = (retention, now);
    let pruned = prune(&store, &rules, 100).await;
    assert_eq!((pruned.runs, pruned.actions, pruned.events), (1, 2, 6));
    assert_eq!(prune(&store, &rules, 100).await, Pruned::default(), "nothing is left to do");
    is_gone(&store, &old).await;
    assert_eq!(names(&store).await, set(&["young", "live"]));
    assert!(store.run(&elsewhere).await.unwrap().is_some(), "its project keeps runs for ever");
    for left in [&young, &live, &elsewhere] {
        let events = store.events_after(left, 0, 100).await.unwrap();
        let snapshot = store.snapshot(left, Which::All).await.unwrap().unwrap();
        assert!(events.iter().map(|e| e.seq).eq(1..=snapshot.seq), "the others' logs are whole");
        assert!(store.blob(&own(left)).await.unwrap().is_some());
    }
    let cursor = store.feed_after(0, 3).await.unwrap().last().unwrap().pos;
    let rest = store.feed_after(cursor, 1000).await.unwrap();
    assert!(rest.iter().any(|item| item.run == young), "a cursor goes on behind what is gone");

    // The name is free, for other work too.
    let other = Submission::new(old.clone(), Command::create_run(seed("e", TaskPolicy::default()), RunInfo::default()));
    assert!(matches!(ok(&store, other).await, Reply::Created(_)));
    assert_eq!(store.events_after(&old, 0, 10).await.unwrap().len(), 1, "its log begins anew");
}

async fn what_lives_or_is_needed_stays(store: Handle) {
    let rules = before(LATE);
    let [unsettled, source, recovering, elsewhere] = ["unsettled", "source", "recovering", "elsewhere"].map(key);
    begin(&store, &unsettled, None).await;
    ok(&store, enqueue(&unsettled, "x1", "a0")).await;
    end(&store, &unsettled, "a0").await;
    ended(&store, &source).await;
    begin(&store, &recovering, Some(&source)).await;
    let domain = |id: &str| Domain { org: "local".into(), id: id.into(), name: id.into(), created_at: LATE };
    store.seed_domains("local", vec![domain("development"), domain("production")]).await.unwrap();
    ended(&store, &elsewhere).await;
    let production = RunKey::new(Scope::new("local", "p", "production").unwrap(), "other").unwrap();
    begin(&store, &production, Some(&elsewhere)).await;

    assert_eq!(prune(&store, &rules, 100).await.runs, 0);
    ok(&store, Submission::new(unsettled.clone(), Command::Settle { actions: vec![action("x1")] })).await;
    end(&store, &recovering, "a0").await;
    end(&store, &production, "a0").await;
    assert_eq!(prune(&store, &rules, 100).await.runs, 5);
    for run in [unsettled, source, recovering, elsewhere, production] {
        assert_eq!(store.run(&run).await.unwrap(), None, "{run}");
    }
}

async fn numbers_are_never_given_out_again(store: Handle) {
    let (first, second) = (key("first"), key("second"));
    ended(&store, &first).await;
    let (hint, changed) = (*store.feed().borrow(), store.last_run_change().await.unwrap());
    let last = store.feed_after(0, 100).await.unwrap().last().unwrap().pos;
    assert_eq!(prune(&store, &before(LATE), 100).await.runs, 1);
    assert!(store.feed_after(0, 100).await.unwrap().is_empty());
    let none = store.runs_changed(&scope(), &[], changed, 10).await.unwrap();
    assert!(none.rows.is_empty());
    begin(&store, &second, None).await;
    let found = store.feed_after(last.max(hint), 100).await.unwrap();
    assert_eq!(found.len(), 1, "who followed the feed finds what is new");
    let changes = store.runs_changed(&scope(), &[], changed.max(none.upto), 10).await.unwrap();
    assert_eq!(changes.rows.len(), 1, "and so does who followed the changes of runs");
}

async fn blobs_stay_while_anything_uses_them(store: Handle) {
    let with = |digest: &str| Blob { digest: digest.into(), bytes: Bytes::from_static(b"x"), own: false };
    let start = async |name: &str, digest: &str| {
        let run = key(name);
        let command = Command::create_run(seed(digest, TaskPolicy::default()), RunInfo::default());
        ok(
            &store,
            Submission { run: run.clone(), command, blobs: vec![with(digest)], site_revision: None, turn: None },
        )
        .await;
        run
    };
    for (name, digest) in [("r1", "alone"), ("r2", "shared"), ("r3", "deployed")] {
        let run = start(name, digest).await;
        end(&store, &run, "a0").await;
    }
    let live = start("r4", "shared").await;
    let task = DeployedTask {
        id: TaskId { scope: live.scope.clone(), name: "env.f".into(), version: "1".into() },
        digest: "deployed".into(),
        short_name: "f".into(),
        environment: "env".into(),
        entrypoint: false,
        deployed_at: Time::from_micros(1),
        deployed_by: Subject::default(),
    };
    assert!(store.put_task(task, with("deployed")).await.unwrap());
    let is_there = async |digest: &str| store.blob(digest).await.unwrap().is_some();

    // Of this day a run is left, so its blobs are.
    assert_eq!(prune(&store, &before(LATE), 100).await.runs, 3);
    for digest in ["alone", "shared", "deployed"] {
        assert!(is_there(digest).await, "{digest}");
    }
    end(&store, &live, "a0").await;
    let (retention, now) = before(LATE);
    let later = (retention, now.plus(Duration::from_secs(7200)));
    let pruned = prune(&store, &later, 100).await;
    assert_eq!((pruned.runs, pruned.blobs), (1, 2));
    assert!(!is_there("alone").await && !is_there("shared").await && is_there("deployed").await);
    start("r5", "alone").await;
    assert!(is_there("alone").await, "who uses it next brings it again");
}

async fn the_latest_run_of_a_task_is_one_that_is_left(store: Handle) {
    let (older, newer) = (key("older"), key("newer"));
    begin(&store, &older, None).await;
    ended(&store, &newer).await;
    let task = DeployedTask {
        id: TaskId { scope: older.scope.clone(), name: "env.f".into(), version: "1".into() },
        digest: "d".into(),
        short_name: "f".into(),
        environment: "env".into(),
        entrypoint: false,
        deployed_at: Time::from_micros(1),
        deployed_by: Subject::default(),
    };
    store.put_task(task, Blob { digest: "d".into(), bytes: Bytes::new(), own: false }).await.unwrap();
    let latest = async || {
        let mut found = Vec::new();
        for names in [true, false] {
            let page = store.list_tasks(&scope(), names, &query(10)).await.unwrap();
            found.extend(page.page.rows.into_iter().map(|t| t.latest_run.map(|r| r.run.name)));
        }
        found
    };
    let of = |name: &str| vec![Some(name.to_owned()); 2];
    assert_eq!(latest().await, of("newer"));
    assert_eq!(prune(&store, &before(LATE), 100).await.runs, 1);
    assert_eq!(latest().await, of("older"));
    end(&store, &older, "a0").await;
    assert_eq!(prune(&store, &before(LATE), 100).await.runs, 1);
    assert_eq!(latest().await, vec![None, None]);
}

async fn a_large_run_goes_in_parts(store: Handle) {
    let run = key("large");
    begin(&store, &run, None).await;
    let mut steps: Vec<_> = (0..300).map(|i| enqueue(&run, &format!("x{i}"), "a0")).collect();
    steps.extend((0..300).map(|i| lease(&run, &format!("x{i}"), "w", 1)));
    steps.extend((0..300).map(|i| report(&run, &format!("x{i}"), 1, done())));
    for reply in store.submit_in_order(steps).await {
        assert!(matches!(reply, Ok(Reply::Done | Reply::Created(_) | Reply::Leased(_))), "{reply:?}");
    }
    end(&store, &run, "a0").await;
    let rules = before(LATE);
    let (mut sum, mut reused) = (Pruned::default(), false);
    loop {
        let step = store.prune(&rules.0, rules.1, 50).await.unwrap();
        sum.add(step);
        if !step.more {
            break;
        }
        if !reused {
            is_gone(&store, &run).await;
            // A run of the same name has nothing to do with the rows that are still there.
            begin(&store, &run, None).await;
            reused = true;
        }
        assert_eq!(store.snapshot(&run, Which::All).await.unwrap().unwrap().actions.len(), 1);
        assert_eq!(store.events_after(&run, 0, 100).await.unwrap().len(), 1);
        assert_eq!(store.feed_after(0, 100).await.unwrap().len(), 1);
    }
    assert_eq!((sum.runs, sum.actions, sum.events), (1, 301, 903));
    assert!(store.blob(&own(&run)).await.unwrap().is_some(), "the new one's own");
}

async fn pages_go_on_without_what_was_given_up(store: Handle) {
    for n in 0..20 {
        let run = key(&format!("r{n:02}"));
        if n % 2 == 0 { ended(&store, &run).await } else { begin(&store, &run, None).await }
    }
    let sorts = [vec![], vec![SortBy { field: Field::UpdatedAt, direction: Direction::Descending }]];
    let mut pages = Vec::new();
    for sort in sorts {
        let mut query = ListQuery { sort, ..query(5) };
        let page = store.list_runs(&scope(), &query).await.unwrap();
        query.token = page.next;
        pages.push((query, page.rows.into_iter().map(|row| row.run.key.name).collect::<Vec<_>>()));
    }
    assert_eq!(prune(&store, &before(LATE), 100).await.runs, 10);
    for (mut query, mut seen) in pages {
        while !query.token.is_empty() {
            let page = store.list_runs(&scope(), &query).await.unwrap();
            seen.extend(page.rows.into_iter().map(|row| row.run.key.name));
            query.token = page.next;
        }
        assert_eq!(seen.len(), seen.iter().collect::<BTreeSet<_>>().len(), "each once");
        for n in (1..20).step_by(2) {
            assert!(seen.contains(&format!("r{n:02}")), "what is left is on some page");
        }
    }
}

async fn writers_and_others_who_give_up_are_not_disturbed(store: Handle) {
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..25 {
                    ended(&store, &key(&format!("w{w}-{n}"))).await;
                }
                begin(&store, &key(&format!("w{w}-live")), None).await;
            })
        })
        .collect();
    let rules = before(LATE);
    let sweepers: Vec<_> = (0..2)
        .map(|_| {
            let (store, rules) = (Arc::clone(&store), rules.clone());
            tokio::spawn(async move {
                let mut runs = 0;
                for _ in 0..200 {
                    runs += store.prune(&rules.0, rules.1, 40).await.unwrap().runs;
                    tokio::task::yield_now().await;
                }
                runs
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("nothing is refused and nothing fails");
    }
    let mut runs = 0;
    for sweeper in sweepers {
        runs += sweeper.await.expect("no panic");
    }
    runs += prune(&store, &rules, 40).await.runs;
    assert_eq!(runs, 100, "each run is given up once");
    assert_eq!(names(&store).await, set(&["w0-live", "w1-live", "w2-live", "w3-live"]));
}

/// A run of a random history, as the case knows it.
struct Known {
    run: RunKey,
    of: Option<usize>,
    ended: bool,
    /// Live actions below it, by their own record.
    open: BTreeSet<String>,
    made: u32,
}

async fn only_what_is_live_or_younger_is_left(store: Handle, seed: u64) {
    let mut dice = lists::Dice(seed);
    let mut known: Vec<Known> = Vec::new();
    for _ in 0..400 {
        let new = known.len() < 40 && (known.is_empty() || dice.roll(4) == 0);
        if new {
            let of = (!known.is_empty() && dice.roll(5) == 0).then(|| dice.roll(known.len()));
            let run = key(&format!("r{:02}", known.len()));
            begin(&store, &run, of.map(|i: usize| &known[i].run)).await;
            known.push(Known { run, of, ended: false, open: BTreeSet::new(), made: 0 });
            continue;
        }
        let at = dice.roll(known.len());
        let Known { run, ended, open, made, .. } = &mut known[at];
        match (dice.roll(4), *ended) {
            (0 | 1, false) => {
                let name = format!("x{made}");
                *made += 1;
                ok(&store, enqueue(run, &name, "a0")).await;
                open.insert(name);
            }
            (2, false) => {
                if let Some(name) = open.pop_first() {
                    end(&store, run, &name).await;
                }
            }
            (3, false) => {
                end(&store, run, "a0").await;
                *ended = true;
            }
            (_, true) => {
                if let Some(name) = open.pop_first() {
                    let command = Command::Settle { actions: vec![action(&name)] };
                    ok(&store, Submission::new(run.clone(), command)).await;
                }
            }
            _ => {}
        }
    }
    let mut ends: Vec<Time> = Vec::new();
    for k in &known {
        ends.extend(ended_at(&store, &k.run).await);
    }
    ends.sort();
    let cut = ends[ends.len() * 2 / 3];
    let lives = |k: &Known| !k.ended || !k.open.is_empty();
    let mut logs = BTreeMap::new();
    for (i, k) in known.iter().enumerate() {
        let needed = known.iter().any(|other| other.of == Some(i) && lives(other));
        let young = ended_at(&store, &k.run).await.is_none_or(|at| at > cut);
        if lives(k) || needed || young {
            let snapshot = store.snapshot(&k.run, Which::All).await.unwrap();
            logs.insert(k.run.name.clone(), (snapshot, store.events_after(&k.run, 0, 1000).await.unwrap()));
        }
    }
    let feed: Vec<_> = store.feed_after(0, 10_000).await.unwrap();
    let rules = before(cut);
    let pruned = prune(&store, &rules, 7).await;
    assert_eq!(pruned.runs as usize, known.len() - logs.len());
    assert_eq!(names(&store).await, logs.keys().cloned().collect());
    for (name, (snapshot, events)) in &logs {
        let run = key(name);
        assert_eq!(store.snapshot(&run, Which::All).await.unwrap(), *snapshot, "{name}");
        assert_eq!(store.events_after(&run, 0, 1000).await.unwrap(), *events, "{name}");
        assert!(store.blob(&own(&run)).await.unwrap().is_some(), "{name}");
    }
    let left: Vec<_> = feed.into_iter().filter(|item| logs.contains_key(&item.run.name)).collect();
    for (from, limit) in [(0, 10_000), (left.len() / 2, 3)] {
        let pos = if from == 0 { 0 } else { left[from - 1].pos };
        let found = store.feed_after(pos, limit).await.unwrap();
        assert_eq!(found[..], left[from..left.len().min(from + limit)], "the feed is that of what is left");
    }
    assert!(store.blob("d").await.unwrap().is_some(), "what is left uses it");
}
