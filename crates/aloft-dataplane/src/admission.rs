//! Which waiting attempts may start: a pure decision over what this machine runs and what waits.
//!
//! Every running process counts its memory. It counts its CPU unless it waits for attempts below it that are here: a parent
//! must not keep its own children from starting. Work that is done inline ([`crate::inline`]) counts nothing and ends by
//! itself; what waits for it counts no CPU either. Should memory alone be used up by parents that wait, the deepest waiting
//! attempt starts nevertheless, since only the deepest work can end first.
//!
//! **Invariant:** if every attempt ends once the attempts it waits for have ended, all of them end (asserted below over
//! random trees).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aloft_core::{ActionName, RunKey};

use crate::needs::Machine;

/// How often others may start before an attempt that does not fit, before they have to wait for it.
///
/// Letting small work pass keeps the machine busy; a bound keeps large work from waiting for ever.
const MAX_PASSED: u32 = 64;

/// An action, as far as admission tells them apart.
pub type ActionKey = (Arc<RunKey>, ActionName);

/// An attempt that is here.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its action.
    pub action: ActionKey,
    /// The action that started it.
    pub parent: Option<ActionKey>,
    /// How many actions are above it.
    pub depth: u32,
    /// The order in which it came.
    pub seq: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Thousandths of a core.
    pub cpu: u64,
    /// Whether it runs or waits.
    pub state: State,
    /// How often others were started before it although it came first.
    pub passed: u32,
}

/// Whether an attempt runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has a process, or is about to.
    Running,
    /// It could start.
    Waiting,
    /// It cannot start yet: an attempt of the same action before it still has a process.
    Held,
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Indices of the attempts to start, in this order.
    pub start: Vec<usize>,
    /// Indices of waiting attempts that others pass in this decision.
    pub passed: Vec<usize>,
}

/// Which of `items` to start on `machine`, with `inline` telling how many attempts are done inline below which action.
pub fn admit(machine: &Machine, items: &[&Item], inline: &HashMap<ActionKey, usize>) -> Decision {
    let parents: HashSet<&ActionKey> = items.iter().filter_map(|item| item.parent.as_ref()).collect();
    // An action has live children here if an attempt names it as its parent.
    let waits = |item: &Item| parents.contains(&item.action) || inline.contains_key(&item.action);
    let cpu_of = |item: &Item| if waits(item) { 0 } else { item.cpu };

    let (mut memory, mut cpu, mut progress) = (0u64, 0u64, !inline.is_empty());
    for item in items.iter().filter(|item| item.state == State::Running) {
        memory = memory.saturating_add(item.memory);
        cpu = cpu.saturating_add(cpu_of(item));
        progress |= !waits(item);
    }

    let mut queue: Vec<usize> = (0..items.len()).filter(|&i| items[i].state == State::Waiting).collect();
    queue.sort_unstable_by_key(|&i| (std::cmp::Reverse(items[i].depth), items[i].seq));

    let mut decision = Decision::default();
    let mut left: Vec<usize> = Vec::new();
    for i in queue {
        let item = items[i];
        let fits =
            memory.saturating_add(item.memory) <= machine.memory && cpu.saturating_add(cpu_of(item)) <= machine.cpu;
        // Nothing here can end by itself, so this one must run whatever it takes; being first, it is the deepest.
        let must = !progress;
        if fits || must {
            memory = memory.saturating_add(item.memory);
            cpu = cpu.saturating_add(cpu_of(item));
            progress |= !waits(item);
            decision.start.push(i);
            decision.passed.append(&mut left);
        } else if item.passed >= MAX_PASSED {
            break;
        } else {
            left.push(i);
        }
    }
    decision
}

/// What the person who looks at a waiting attempt is told.
pub fn reason(machine: &Machine, items: &[&Item], inline: &HashMap<ActionKey, usize>, waiting: &Item) -> String {
    const MIB: u64 = 1024 * 1024;
    let parents: HashSet<&ActionKey> = items.iter().filter_map(|item| item.parent.as_ref()).collect();
    let running = || items.iter().filter(|item| item.state == State::Running);
    let memory: u64 = running().map(|item| item.memory).sum();
    let waits = |item: &Item| parents.contains(&item.action) || inline.contains_key(&item.action);
    let cpu: u64 = running().filter(|item| !waits(item)).map(|item| item.cpu).sum();
    let count = running().count();
    if waiting.state == State::Held {
        return "waits until the attempt before it has stopped".to_owned();
    }
    if memory.saturating_add(waiting.memory) > machine.memory {
        return format!(
            "waits for {} MiB of memory: {} MiB of {} MiB are taken by {count} running attempts",
            waiting.memory / MIB,
            memory / MIB,
            machine.memory / MIB
        );
    }
    format!(
        "waits for a CPU: {count} attempts run and take {} of {} cores (each core is shared by several)",
        cpu as f64 / 1000.0,
        machine.cpu as f64 / 1000.0
    )
}

/// How many more attempts to lease when `waiting` wait here.
///
/// `stalled` says that nothing has started or ended for a while. Then more are leased although many wait: those that wait
/// may be ones that cannot start before others, which the control plane still has, have run.
pub fn lease_room(waiting: usize, max_waiting: usize, stalled: bool) -> usize {
    /// Leased beyond `max_waiting` at a time.
    const BEYOND: usize = 64;
    /// A waiting attempt holds its task specification, some 10 KiB: this many hold 200 MiB.
    const LIMIT: usize = 20_000;
    /// How many times `max_waiting` wait at most. Who chose a small one wants others to have their share.
    const TIMES: usize = 40;
    match max_waiting.saturating_sub(waiting) {
        0 if stalled => {
            let limit = LIMIT.min(max_waiting.saturating_mul(TIMES));
            BEYOND.min(max_waiting).min(limit.saturating_sub(waiting))
        }
        room => room,
    }
}

#[cfg(test)]
mod tests {
    use aloft_core::Scope;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn key(name: &str) -> ActionKey {
        let run = RunKey::new(Scope::new("o", "p", "d").unwrap(), "r").unwrap();
        (Arc::new(run), ActionName::new(name).unwrap())
    }

    fn item(name: &str, parent: Option<&str>, depth: u32, seq: u64, state: State) -> Item {
        Item { action: key(name), parent: parent.map(key), depth, seq, memory: 128 * MIB, cpu: 500, state, passed: 0 }
    }

    /// Room for four attempts by CPU, eight by memory.
    fn machine() -> Machine {
        Machine { memory: 1024 * MIB, cpu: 2000, cores: 1000 }
    }

    fn decide(items: &[Item]) -> Decision {
        admit(&machine(), &items.iter().collect::<Vec<_>>(), &HashMap::new())
    }

    fn started(items: &[Item]) -> Vec<String> {
        decide(items).start.iter().map(|&i| items[i].action.1.to_string()).collect()
    }

    #[test]
    fn deepest_first_then_in_order() {
        use State::Waiting;
        let items = [
            item("a", None, 0, 1, Waiting),
            item("b", None, 2, 3, Waiting),
            item("c", None, 2, 2, Waiting),
            item("d", None, 1, 0, Waiting),
            item("e", None, 0, 0, Waiting),
        ];
        assert_eq!(started(&items), ["c", "b", "d", "e"]);
    }

    #[test]
    fn a_parent_that_waits_counts_memory_but_no_cpu() {
        let mut items = vec![item("p", None, 0, 0, State::Running)];
        items[0].cpu = 2000;
        assert!(started(&[items[0].clone(), item("x", None, 0, 1, State::Waiting)]).is_empty());
        items.push(item("c", Some("p"), 1, 1, State::Waiting));
        assert_eq!(started(&items), ["c"]);
        items[0].memory = 1000 * MIB;
        items.push(item("d", Some("c"), 2, 2, State::Running));
        assert!(started(&items).is_empty(), "memory counts always while something can end");
    }

    #[test]
    fn when_only_parents_run_the_deepest_starts_whatever_the_memory() {
        let mut items = vec![
            item("p", None, 0, 0, State::Running),
            item("shallow", Some("p"), 1, 1, State::Waiting),
            item("deep", Some("q"), 2, 2, State::Waiting),
            item("q", Some("p"), 1, 3, State::Running),
        ];
        items[0].memory = 4096 * MIB;
        assert_eq!(started(&items), ["deep"]);
    }

    #[test]
    fn what_waits_for_sleepers_leaves_the_cpu_to_others() {
        let mut items: Vec<Item> = (0..4).map(|n| item(&format!("r{n}"), None, 0, n, State::Running)).collect();
        items.push(item("w", None, 0, 9, State::Waiting));
        let refs: Vec<&Item> = items.iter().collect();
        assert!(admit(&machine(), &refs, &HashMap::new()).start.is_empty());
        let inline = HashMap::from([(key("r0"), 1000)]);
        assert_eq!(admit(&machine(), &refs, &inline).start, [4]);
        assert!(reason(&machine(), &refs, &inline, &items[4]).contains("1.5 of 2"));
    }

    #[test]
    fn memory_is_not_overstepped_while_a_sleeper_will_end() {
        // Two parents fill the memory and wait: one for sleepers, one for the work that does not fit.
        let mut items = [
            item("a", None, 0, 0, State::Running),
            item("b", None, 0, 1, State::Running),
            item("c", Some("b"), 1, 2, State::Waiting),
        ];
        items[0].memory = 512 * MIB;
        items[1].memory = 512 * MIB;
        let refs: Vec<&Item> = items.iter().collect();
        let inline = HashMap::from([(key("a"), 1)]);
        assert!(admit(&machine(), &refs, &inline).start.is_empty());
    }

    #[test]
    fn the_attempt_before_must_be_dead_first() {
        let dying = item("a", None, 0, 0, State::Running);
        assert!(started(&[dying, item("a", None, 0, 1, State::Held)]).is_empty());
    }

    #[test]
    fn small_work_passes_large_work_but_not_for_ever() {
        let mut large = item("large", None, 0, 0, State::Waiting);
        large.memory = 1000 * MIB;
        let items = [item("r", None, 0, 9, State::Running), large.clone(), item("s", None, 0, 1, State::Waiting)];
        let decision = decide(&items);
        assert_eq!((decision.start, decision.passed), (vec![2], vec![1]));
        large.passed = MAX_PASSED;
        let items = [item("r", None, 0, 9, State::Running), large, item("s", None, 0, 1, State::Waiting)];
        assert_eq!(decide(&items), Decision::default());
    }

    #[test]
    fn more_is_leased_when_what_waits_here_does_not_move() {
        assert_eq!(lease_room(500, 512, false), 12);
        assert_eq!(lease_room(512, 512, false), 0);
        assert_eq!(lease_room(600, 512, true), 64);
        assert_eq!(lease_room(20_000, 512, true), 0);
    }

    /// An action of a simulated run: what it needs, and the actions it starts and waits for.
    #[derive(Clone, Debug)]
    struct Node {
        parent: Option<usize>,
        memory: u64,
        cpu: u64,
    }

    fn trees() -> impl Strategy<Value = Vec<Node>> {
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..3000u64, 0..4000u64), 1..60).prop_map(
            |specs| {
                let mut nodes: Vec<Node> = Vec::new();
                for (index, is_root, memory, cpu) in specs {
                    let parent = (!is_root && !nodes.is_empty()).then(|| index.index(nodes.len()));
                    // Needs are clamped to the machine before they come here.
                    nodes.push(Node { parent, memory: (memory * MIB).min(1024 * MIB), cpu: cpu.min(1000) });
                }
                nodes
            },
        )
    }

    proptest! {
        /// Every set of finite trees finishes, and memory is exceeded only when nothing else could end.
        #[test]
        fn every_set_of_finite_trees_finishes(nodes in trees(), order in prop::collection::vec(any::<prop::sample::Index>(), 200)) {
            let depth = |mut n: usize| { let mut d = 0; while let Some(p) = nodes[n].parent { n = p; d += 1; } d };
            let name = |n: usize| format!("n{n}");
            let mut items: Vec<(usize, Item)> = Vec::new();
            let mut done = vec![false; nodes.len()];
            let mut seq = 0;
            let mut arrive = |items: &mut Vec<(usize, Item)>, n: usize| {
                seq += 1;
                items.push((n, Item {
                    action: key(&name(n)), parent: nodes[n].parent.map(|p| key(&name(p))), depth: depth(n), seq,
                    memory: nodes[n].memory, cpu: nodes[n].cpu, state: State::Waiting, passed: 0,
                }));
            };
            for n in (0..nodes.len()).filter(|&n| nodes[n].parent.is_none()) { arrive(&mut items, n); }
            let mut picks = order.iter().cycle();
            for _ in 0..nodes.len() * 4 {
                let view: Vec<Item> = items.iter().map(|(_, i)| i.clone()).collect();
                let decision = decide(&view);
                let before: u64 = view.iter().filter(|i| i.state == State::Running).map(|i| i.memory).sum();
                let parents: HashSet<_> = view.iter().filter_map(|i| i.parent.clone()).collect();
                let progress = view.iter().any(|i| i.state == State::Running && !parents.contains(&i.action));
                if progress {
                    let added: u64 = decision.start.iter().map(|&i| view[i].memory).sum();
                    prop_assert!(added == 0 || before + added <= machine().memory);
                }
                for i in decision.passed { items[i].1.passed += 1; }
                let fresh: Vec<usize> = decision.start.iter().map(|&i| items[i].0).collect();
                for i in decision.start { items[i].1.state = State::Running; }
                // What has started starts its own children at once.
                for n in fresh {
                    for c in (0..nodes.len()).filter(|&c| nodes[c].parent == Some(n)) { arrive(&mut items, c); }
                }
                // One of those that wait for nothing ends.
                let ready: Vec<usize> = items.iter().enumerate()
                    .filter(|(_, (n, i))| i.state == State::Running
                        && (0..nodes.len()).all(|c| nodes[c].parent != Some(*n) || done[c]))
                    .map(|(at, _)| at).collect();
                if items.is_empty() { break; }
                prop_assert!(!ready.is_empty() || items.iter().any(|(_, i)| i.state == State::Waiting));
                if let Some(pick) = (!ready.is_empty()).then(|| picks.next().unwrap().get(&ready)) {
                    done[items.remove(*pick).0] = true;
                }
            }
            prop_assert!(done.iter().all(|d| *d), "left: {items:?}");
        }
    }
}
