//! The children of an action in windows.

use super::*;
use crate::{ChildPlace, ChildQuery, PhaseCounts};

pub(super) async fn run_all<F, Fut>(make: &F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Handle>,
{
    groups_are_counted_as_they_change(make().await).await;
    windows_show_each_child_once(make().await).await;
    what_ended_with_its_parent_is_counted_as_aborted(make().await).await;
}

fn grouped(run: &RunKey, name: &str, parent: &str, group: &str) -> Submission {
    let seed = seed("d", TaskPolicy::default());
    Submission::new(run.clone(), Command::enqueue(action(name), action(parent), group, seed))
}

fn phases(counts: &PhaseCounts) -> Vec<(Phase, u64)> {
    counts.iter().collect()
}

/// What the groups of the root's children hold, one window after the other.
async fn groups(store: &Handle, run: &RunKey, limit: usize) -> Vec<(String, Vec<(Phase, u64)>)> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let window = store.child_groups(run, &action("a0"), after.as_deref(), limit).await.unwrap().unwrap();
        assert!(window.groups.len() <= limit);
        found.extend(window.groups.iter().map(|g| (g.name.clone(), phases(&g.counts))));
        let Some(last) = window.groups.last().filter(|_| window.more) else { return found };
        after = Some(last.name.clone());
    }
}

async fn groups_are_counted_as_they_change(store: Handle) {
    let run = key("r");
    ok(&store, create(&run, "d")).await;
    assert_eq!(groups(&store, &run, 10).await, []);
    for (name, group) in [("x1", "b"), ("x2", "a"), ("x3", "b"), ("x4", "")] {
        ok(&store, grouped(&run, name, "a0", group)).await;
    }
    ok(&store, grouped(&run, "y1", "x1", "a")).await;
    let (queued, running) = (Phase::Queued, Phase::Running);
    let at_first = [("", vec![(queued, 1)]), ("a", vec![(queued, 1)]), ("b", vec![(queued, 2)])];
    for limit in [1, 2, 10] {
        let found = groups(&store, &run, limit).await;
        assert_eq!(found, at_first.clone().map(|(g, n)| (g.to_owned(), n)), "windows of {limit}");
    }
    ok(&store, lease(&run, "x3", "w", 1)).await;
    ok(&store, report(&run, "x3", 1, Progress::Running)).await;
    let found = groups(&store, &run, 10).await;
    assert_eq!(found[2], ("b".to_owned(), vec![(queued, 1), (running, 1)]));
    ok(&store, report(&run, "x3", 1, done())).await;
    let window = store.child_groups(&run, &action("a0"), Some("a"), 1).await.unwrap().unwrap();
    assert_eq!(phases(&window.groups[0].counts), [(queued, 1), (Phase::Succeeded, 1)]);
    assert_eq!(phases(&window.counts), [(queued, 3), (Phase::Succeeded, 1)], "of all groups");
    assert_eq!(window.seq, store.snapshot(&run, Which::All).await.unwrap().unwrap().seq);
    assert_eq!(store.child_groups(&run, &action("nobody"), None, 1).await.unwrap(), None);
    assert_eq!(store.child_groups(&key("no"), &action("a0"), None, 1).await.unwrap(), None);
}

async fn windows_show_each_child_once(store: Handle) {
    let run = key("r");
    ok(&store, create(&run, "d")).await;
    // Against the order of names, so that it is the order of creation that is seen.
    for i in (0..9).rev() {
        ok(&store, grouped(&run, &format!("x{i}"), "a0", ["b", "", "a"][i % 3])).await;
    }
    for (name, group) in [("y1", "g"), ("y2", "g"), ("y3", "h")] {
        ok(&store, grouped(&run, name, "x4", group)).await;
    }
    ok(&store, lease(&run, "y3", "w", 1)).await;
    ok(&store, report(&run, "y3", 1, done())).await;
    let expected = ["x7", "x4", "x1", "x8", "x5", "x2", "x6", "x3", "x0"];
    for limit in [1, 2, 4, 9, 100] {
        let (mut names, mut after): (Vec<String>, Option<ChildPlace>) = (Vec::new(), None);
        loop {
            let query = ChildQuery { parent: action("a0"), group: None, after, limit };
            let window = store.child_window(&run, &query).await.unwrap().unwrap();
            assert!(window.rows.len() <= limit);
            for row in &window.rows {
                names.push(row.state.name.as_str().to_owned());
                let below = if row.state.name.as_str() == "x4" {
                    vec![(Phase::Queued, 2), (Phase::Succeeded, 1)]
                } else {
                    vec![]
                };
                assert_eq!(phases(&row.children), below, "{}", row.state.name);
                assert_eq!(row.place.group, row.state.group);
            }
            let Some(last) = window.rows.last().filter(|_| window.more) else { break };
            after = Some(last.place.clone());
        }
        assert_eq!(names, expected, "windows of {limit}");
    }
    let of_group = |group: &str| ChildQuery { parent: action("a0"), group: Some(group.into()), after: None, limit: 2 };
    let window = store.child_window(&run, &of_group("a")).await.unwrap().unwrap();
    let names: Vec<_> = window.rows.iter().map(|r| r.state.name.as_str()).collect();
    assert_eq!((names, window.more), (vec!["x8", "x5"], true));
    let window = store.child_window(&run, &of_group("none")).await.unwrap().unwrap();
    assert!(window.rows.is_empty() && !window.more);
    let nobody = ChildQuery { parent: action("nobody"), ..of_group("a") };
    assert_eq!(store.child_window(&run, &nobody).await.unwrap(), None);
}

async fn what_ended_with_its_parent_is_counted_as_aborted(store: Handle) {
    let run = key("r");
    ok(&store, create(&run, "d")).await;
    ok(&store, grouped(&run, "x1", "a0", "g")).await;
    ok(&store, grouped(&run, "y1", "x1", "g")).await;
    let abort = Command::Abort { action: action("a0"), by: EndedBy::asked("me", "enough") };
    ok(&store, Submission::new(run.clone(), abort)).await;
    let aborted = [(Phase::Aborted, 1)];
    for settled in [false, true] {
        for parent in ["a0", "x1"] {
            let window = store.child_groups(&run, &action(parent), None, 10).await.unwrap().unwrap();
            assert_eq!(phases(&window.counts), aborted, "below {parent}, settled: {settled}");
            assert_eq!(phases(&window.groups[0].counts), aborted);
        }
        let query = ChildQuery { parent: action("a0"), group: None, after: None, limit: 10 };
        let window = store.child_window(&run, &query).await.unwrap().unwrap();
        assert_eq!(window.rows[0].state.phase, Phase::Aborted);
        assert_eq!(phases(&window.rows[0].children), aborted);
        let actions = vec![action("x1"), action("y1")];
        ok(&store, Submission::new(run.clone(), Command::Settle { actions })).await;
    }
}
