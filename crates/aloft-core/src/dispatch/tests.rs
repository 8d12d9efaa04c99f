//! The dispatcher's rules over random offers, and its fairness in the small.

use proptest::prelude::*;

use super::*;
use crate::{Priority, ResourceCaps, Scope};

fn key(n: usize) -> RunKey {
    RunKey::new(Scope::new("o", "p", "d").unwrap(), &format!("r{n}")).unwrap()
}

fn candidate(n: usize, ready: i64, memory: u64) -> Candidate {
    let action = if n == 0 { ActionName::root() } else { ActionName::new(&format!("x{n}")).unwrap() };
    let asks = Asks { memory, ..Asks::default() };
    Candidate { action, ready_at: Time::from_micros(ready), asks, counts: true }
}

fn lane(name: &str, limits: QueueLimits, priority: Priority, fairness: Fairness) -> Lane {
    Lane { name: name.to_owned(), spec: QueueSpec { limits, priority, fairness }, load: Load::default() }
}

fn run(n: usize, max_actions: Option<u32>) -> WaitingRun {
    WaitingRun { run: key(n), max_actions, in_flight: 0, started: true, places: Vec::new() }
}

fn limit() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), (0u32..4).prop_map(Some)]
}

fn any_lane() -> impl Strategy<Value = Lane> {
    (limit(), limit(), prop::option::of(0u64..6), 0u64..3, any::<bool>(), any::<bool>()).prop_map(
        |(runs, actions, memory, used, high, fifo)| Lane {
            name: "queue q".to_owned(),
            spec: QueueSpec {
                limits: QueueLimits {
                    run_concurrency: runs,
                    action_concurrency: actions,
                    depth: None,
                    resources: ResourceCaps { memory, ..ResourceCaps::default() },
                },
                priority: if high { Priority::High } else { Priority::Low },
                fairness: if fifo { Fairness::FirstInFirstOut } else { Fairness::RoundRobin },
            },
            load: Load { runs: used.min(1), actions: used, asks: Asks { memory: used, ..Asks::default() } },
        },
    )
}

fn offer() -> impl Strategy<Value = Offer> {
    let runs = prop::collection::vec((limit(), 0u64..3, any::<bool>(), any::<bool>()), 1..5);
    let groups = prop::collection::vec((0usize..5, 0usize..3, prop::collection::vec((0i64..50, 0u64..4), 1..6)), 0..8);
    (prop::collection::vec(any_lane(), 1..4), prop::collection::vec(any_lane(), 1..2), runs, groups).prop_map(
        |(queues, places, runs, groups)| {
            let runs: Vec<_> = runs
                .into_iter()
                .enumerate()
                .map(|(n, (max_actions, in_flight, started, placed))| WaitingRun {
                    run: key(n),
                    max_actions,
                    in_flight,
                    started,
                    places: if placed { vec![0] } else { Vec::new() },
                })
                .collect();
            let groups = groups
                .into_iter()
                .enumerate()
                .map(|(g, (r, q, candidates))| Group {
                    run: r % runs.len(),
                    queue: q % queues.len(),
                    candidates: candidates
                        .into_iter()
                        .enumerate()
                        .map(|(c, (ready, memory))| candidate(g * 10 + c, ready, memory))
                        .collect(),
                })
                .collect();
            Offer { runs, queues, places, groups }
        },
    )
}

/// The loads after the grants.
fn after(offer: &Offer, plan: &Plan) -> Offer {
    let mut offer = offer.clone();
    for grant in &plan.grants {
        let (group, c) = offer
            .groups
            .iter()
            .find_map(|g| {
                let of = offer.runs[g.run].run == grant.run;
                g.candidates.iter().find(|c| of && c.action == grant.action).map(|c| (g.clone(), c.clone()))
            })
            .expect("a grant is one of the candidates");
        take(&mut offer, group.run, group.queue, &c);
    }
    offer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn no_limit_is_passed_and_no_place_is_wasted(offer in offer(), slots in 0usize..12) {
        let planned = plan(offer.clone(), slots);
        prop_assert!(planned.grants.len() <= slots);
        let then = after(&offer, &planned);
        for (before, after) in offer.queues.iter().chain(&offer.places).zip(then.queues.iter().chain(&then.places)) {
            let limits = &before.spec.limits;
            let within = |limit: Option<u32>, before: u64, after: u64| {
                limit.is_none_or(|l| after <= u64::from(l).max(before))
            };
            prop_assert!(within(limits.action_concurrency, before.load.actions, after.load.actions));
            prop_assert!(within(limits.run_concurrency, before.load.runs, after.load.runs));
            if let Some(cap) = limits.resources.memory {
                prop_assert!(after.load.asks.memory <= cap.max(before.load.asks.memory));
            }
        }
        for (before, after) in offer.runs.iter().zip(&then.runs) {
            prop_assert!(before.max_actions.is_none_or(|l| after.in_flight <= u64::from(l).max(before.in_flight)));
        }
        // Every candidate is granted, held, refused, or there was no slot left.
        let all: usize = offer.groups.iter().map(|g| g.candidates.len()).sum();
        let placed = planned.grants.len() + planned.held.len() + planned.never.len();
        prop_assert!(placed <= all);
        if planned.grants.len() < slots {
            prop_assert_eq!(placed, all, "with a slot free, whatever waits is held by a limit that is named");
        }
    }

    #[test]
    fn what_is_unlimited_is_granted_in_full(n in 1usize..20, slots in 0usize..30) {
        let candidates = (1..=n).map(|i| candidate(i, i as i64, 0)).collect();
        let offer = Offer {
            runs: vec![run(0, None)],
            queues: vec![Lane::default()],
            places: Vec::new(),
            groups: vec![Group { run: 0, queue: 0, candidates }],
        };
        prop_assert_eq!(plan(offer, slots).grants.len(), n.min(slots));
    }
}

fn two_runs(fairness: Fairness) -> Offer {
    Offer {
        runs: vec![run(0, None), run(1, None)],
        queues: vec![lane("queue q", QueueLimits::default(), Priority::Medium, fairness)],
        places: Vec::new(),
        groups: vec![
            Group { run: 0, queue: 0, candidates: (1..=4).map(|i| candidate(i, 1, 0)).collect() },
            Group { run: 1, queue: 0, candidates: (1..=2).map(|i| candidate(i, 5, 0)).collect() },
        ],
    }
}

fn order(plan: &Plan) -> Vec<&str> {
    plan.grants.iter().map(|g| g.run.name.as_str()).collect()
}

#[test]
fn runs_take_turns_or_wait_in_line() {
    assert_eq!(order(&plan(two_runs(Fairness::RoundRobin), 4)), ["r0", "r1", "r0", "r1"]);
    assert_eq!(order(&plan(two_runs(Fairness::FirstInFirstOut), 5)), ["r0", "r0", "r0", "r0", "r1"]);
}

#[test]
fn a_higher_priority_goes_first() {
    let mut offer = two_runs(Fairness::RoundRobin);
    offer.queues.push(lane("queue high", QueueLimits::default(), Priority::High, Fairness::RoundRobin));
    offer.groups[1].queue = 1;
    assert_eq!(order(&plan(offer, 3)), ["r1", "r1", "r0"]);
}

#[test]
fn a_full_run_does_not_hold_up_its_queue() {
    let mut offer = two_runs(Fairness::FirstInFirstOut);
    offer.runs[0].max_actions = Some(1);
    let planned = plan(offer, 10);
    assert_eq!(order(&planned), ["r0", "r1", "r1"]);
    assert_eq!(planned.held.len(), 3);
    assert!(planned.held[0].reason.contains("max_action_concurrency"), "{}", planned.held[0].reason);
}

#[test]
fn what_can_never_fit_is_refused_and_what_does_not_fit_now_waits() {
    let resources = ResourceCaps { memory: Some(600 << 20), ..ResourceCaps::default() };
    let limits = QueueLimits { resources, ..QueueLimits::default() };
    let mi = |n: u64| n << 20;
    let offer = Offer {
        runs: vec![run(0, None)],
        queues: vec![lane("queue caps", limits, Priority::Medium, Fairness::RoundRobin)],
        places: Vec::new(),
        groups: vec![Group {
            run: 0,
            queue: 0,
            candidates: vec![
                candidate(1, 1, mi(200)),
                candidate(2, 2, mi(601)),
                candidate(3, 3, mi(300)),
                candidate(4, 4, mi(200)),
            ],
        }],
    };
    let planned = plan(offer, 10);
    assert_eq!(planned.grants.len(), 2);
    assert_eq!(planned.held[0].reason, "queue caps has not enough memory left of its 600Mi for 200Mi");
    let never = &planned.never[0];
    assert_eq!((never.action.as_str(), never.error.code.as_str()), ("x2", "UNSCHEDULABLE"));
    assert!(never.error.message.contains("601Mi") && never.error.message.contains("600Mi"), "{}", never.error.message);
}

#[test]
fn one_run_at_a_time_means_one_root_and_any_number_of_children() {
    let limits = QueueLimits { run_concurrency: Some(1), ..QueueLimits::default() };
    let waiting = |n| WaitingRun { started: false, ..run(n, None) };
    let offer = Offer {
        runs: vec![waiting(0), waiting(1), run(2, None)],
        queues: vec![lane("queue runs-1", limits, Priority::Medium, Fairness::RoundRobin)],
        places: Vec::new(),
        groups: vec![
            Group { run: 0, queue: 0, candidates: vec![candidate(0, 1, 0)] },
            Group { run: 1, queue: 0, candidates: vec![candidate(0, 2, 0)] },
            Group { run: 2, queue: 0, candidates: vec![candidate(5, 3, 0)] },
        ],
    };
    let planned = plan(offer, 10);
    // The second root stands first in its queue's line, but its run is what is held, not the queue's work.
    assert_eq!(order(&planned), ["r0", "r2"]);
    assert_eq!(planned.held.len(), 1);
}

#[test]
fn a_parent_that_is_tried_again_waits_for_no_limit() {
    let limits = QueueLimits { action_concurrency: Some(1), ..QueueLimits::default() };
    let mut full = lane("queue q", limits, Priority::Medium, Fairness::FirstInFirstOut);
    full.load.actions = 1;
    let parent = Candidate { counts: false, ..candidate(7, 9, 0) };
    let groups =
        vec![Group { run: 0, queue: 0, candidates: vec![candidate(1, 1, 0), parent.clone(), candidate(2, 2, 0)] }];
    let runs = vec![WaitingRun { in_flight: 1, ..run(0, Some(1)) }];
    let offer = Offer { runs, queues: vec![full], places: Vec::new(), groups };
    let planned = plan(offer.clone(), 5);
    assert_eq!(planned.grants, [Grant { run: key(0), action: parent.action }]);
    assert_eq!(planned.held.len(), 2, "what counts is held by the limit");
    assert!(plan(offer, 0).grants.is_empty(), "a slot it needs all the same");
}

#[test]
fn what_starts_a_run_waits_for_the_limit_of_runs() {
    let limits = QueueLimits { run_concurrency: Some(0), ..QueueLimits::default() };
    let queue = lane("queue q", limits, Priority::Medium, Fairness::FirstInFirstOut);
    let root = Candidate { counts: false, ..candidate(0, 1, 0) };
    let groups = vec![Group { run: 0, queue: 0, candidates: vec![root] }];
    let runs = vec![WaitingRun { started: false, ..run(0, None) }];
    let planned = plan(Offer { runs, queues: vec![queue], places: Vec::new(), groups }, 5);
    assert_eq!((planned.grants.len(), planned.held.len()), (0, 1));
}
