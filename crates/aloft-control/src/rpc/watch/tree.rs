//! The tree of a run's actions as one watcher knows it: names, phases, what is to be sent. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use aloft_core::{ActionName, Phase};

use super::Look;

/// Phases are numbered from 1.
const PHASES: usize = Phase::ALL.len() + 1;

/// One action. Some 140 bytes with its name, whatever the action carries, so that a watcher of a run of a hundred thousand
/// actions holds 14 MB.
struct Node {
    name: Arc<str>,
    parent: Option<u32>,
    /// Of most actions there is nothing below.
    below: Option<Box<Below>>,
    /// As shown; `None` until its state has been read.
    phase: Option<Phase>,
    /// Whether it is to be looked at again.
    pending: bool,
    /// The number of the last event that is known to have changed how it is shown; `None` if that was another's end.
    since: Option<u64>,
    /// What was last sent of it, as a digest; `None` if it was not, or was sent as leaving.
    sent: Option<u64>,
    /// Whether something below it has been sent, so that it must be known too.
    needed: bool,
}

/// The children of an action.
#[derive(Default)]
struct Below {
    children: Vec<u32>,
    /// How many of them are in each phase.
    counts: [u32; PHASES],
}

/// The tree. Actions are numbered in the order in which they become known; a run has fewer than 2^24.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    index: HashMap<Arc<str>, u32>,
    pending: VecDeque<u32>,
    /// How many may still change.
    live: usize,
}

fn is_live(phase: Option<Phase>) -> bool {
    !phase.is_some_and(Phase::is_terminal)
}

impl Tree {
    /// Adds an action after its parent, to be looked at. Does nothing if it is known.
    pub(super) fn add(&mut self, name: &ActionName, parent: Option<&ActionName>, phase: Option<Phase>, seq: u64) {
        if self.index.contains_key(name.as_str()) {
            return;
        }
        let parent = parent.and_then(|p| self.at(p));
        let Ok(at) = u32::try_from(self.nodes.len()) else { return };
        let shared: Arc<str> = name.as_str().into();
        self.nodes.push(Node {
            name: Arc::clone(&shared),
            parent,
            below: None,
            phase: None,
            pending: false,
            since: Some(seq),
            sent: None,
            needed: false,
        });
        self.index.insert(shared, at);
        self.live += 1;
        if let Some(parent) = parent {
            self.node(parent).below.get_or_insert_default().children.push(at);
        }
        self.mark(at);
        if let Some(phase) = phase {
            self.enter(at, phase);
        }
    }

    /// Has a look at an action to come, if it is known, because of event `seq`.
    pub(super) fn touch(&mut self, name: &ActionName, seq: u64) {
        if let Some(at) = self.at(name) {
            // Once only what is read anew will do, that stays so until it is.
            let node = self.node(at);
            node.since = node.since.map(|_| seq);
            self.mark(at);
        }
    }

    /// Records the phase of an action. What is not known to have ended below one that has is looked at again: it was aborted
    /// with it, or had ended just before.
    pub(super) fn set(&mut self, name: &ActionName, phase: Phase) {
        let Some(at) = self.at(name) else { return };
        if !self.enter(at, phase) || !phase.is_terminal() {
            return;
        }
        let children = self.nodes[at as usize].below.iter().flat_map(|b| &b.children).copied();
        let live: Vec<_> = children.filter(|c| is_live(self.nodes[*c as usize].phase)).collect();
        for child in live {
            self.node(child).since = None;
            self.mark(child);
        }
    }

    /// Whether that changed anything.
    fn enter(&mut self, at: u32, phase: Phase) -> bool {
        let before = self.node(at).phase;
        // A state that was read earlier may come later: an end stands.
        if before == Some(phase) || !is_live(before) {
            return false;
        }
        self.node(at).phase = Some(phase);
        if phase.is_terminal() {
            self.live -= 1;
        }
        if let Some(parent) = self.node(at).parent {
            let counts = &mut self.node(parent).below.get_or_insert_default().counts;
            if let Some(before) = before {
                counts[before as usize] -= 1;
            }
            counts[phase as usize] += 1;
            self.mark(parent);
        }
        true
    }

    fn mark(&mut self, at: u32) {
        if !self.node(at).pending {
            self.node(at).pending = true;
            self.pending.push_back(at);
        }
    }

    fn at(&self, name: &ActionName) -> Option<u32> {
        self.index.get(name.as_str()).copied()
    }

    fn node(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    /// Whether something is to be looked at.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Up to `limit` actions to look at, in the order of their changes, when the log was read to `upto`.
    pub(super) fn take(&mut self, limit: usize, upto: u64) -> Vec<Look> {
        let batch: Vec<_> = self.pending.drain(..self.pending.len().min(limit)).collect();
        batch
            .into_iter()
            .map(|at| {
                self.node(at).pending = false;
                self.look(at, upto)
            })
            .collect()
    }

    fn look(&mut self, at: u32, upto: u64) -> Look {
        let node = self.node(at);
        let since = node.since;
        node.since = Some(since.unwrap_or(upto));
        Look { name: Arc::clone(&node.name), since }
    }

    /// Nothing can change any more: the root has ended, and so has all below it.
    pub(super) fn is_over(&self) -> bool {
        !self.nodes.is_empty() && self.live == 0
    }

    /// How many children of an action are in each phase, by its number; no zeros.
    pub(super) fn counts(&self, name: &ActionName) -> Vec<(i32, i32)> {
        let below = self.at(name).and_then(|at| self.nodes[at as usize].below.as_ref());
        let Some(below) = below else { return Vec::new() };
        let counts = Phase::ALL.into_iter().map(|p| (p.number(), below.counts[p as usize]));
        counts.filter(|(_, n)| *n > 0).map(|(p, n)| (p, i32::try_from(n).unwrap_or(i32::MAX))).collect()
    }

    /// Has the actions above `name` sent whether they meet the filter or not, and returns those that have not been, the
    /// outermost first.
    pub(super) fn need_above(&mut self, name: &ActionName, upto: u64) -> Vec<Look> {
        let mut unsent = Vec::new();
        let mut at = self.at(name).and_then(|at| self.node(at).parent);
        while let Some(parent) = at {
            let node = self.node(parent);
            // What is above a needed action is needed, and sent before it.
            if node.needed && node.sent.is_some() {
                break;
            }
            node.needed = true;
            if node.sent.is_none() {
                unsent.push(parent);
            }
            at = node.parent;
        }
        unsent.into_iter().rev().map(|at| self.look(at, upto)).collect()
    }

    /// Whether an action is sent now: it meets the filter, something below it was sent, or it has just left the filter.
    /// Remembers that it was, with `digest` of what is sent, and says no if that is what was sent last.
    pub(super) fn sends(&mut self, name: &ActionName, meets: bool, digest: u64) -> bool {
        let Some(at) = self.at(name) else { return false };
        let node = self.node(at);
        let shown = meets || node.needed;
        if (!shown && node.sent.is_none()) || node.sent == Some(digest) {
            return false;
        }
        node.sent = shown.then_some(digest);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(i: usize) -> ActionName {
        if i == 0 { ActionName::root() } else { ActionName::new(&format!("x{i}")).unwrap() }
    }

    fn names(looks: Vec<Look>) -> Vec<ActionName> {
        looks.into_iter().map(|look| ActionName::new(&look.name).unwrap()).collect()
    }

    fn taken(tree: &mut Tree) -> Vec<ActionName> {
        names(tree.take(10, 0))
    }

    fn above(tree: &mut Tree, name: &ActionName) -> Vec<ActionName> {
        names(tree.need_above(name, 0))
    }

    #[test]
    fn what_another_ended_is_read_anew() {
        let mut tree = Tree::default();
        tree.add(&name(0), None, Some(Phase::Running), 3);
        tree.add(&name(1), Some(&name(0)), Some(Phase::Running), 4);
        let since = |looks: Vec<Look>| looks.into_iter().map(|l| l.since).collect::<Vec<_>>();
        assert_eq!(since(tree.take(10, 4)), [Some(3), Some(4)]);
        tree.touch(&name(1), 6);
        assert_eq!(since(tree.take(10, 9)), [Some(6)]);
        tree.set(&name(0), Phase::Failed);
        tree.touch(&name(1), 10);
        assert_eq!(since(tree.take(10, 12)), [None], "what was read before it may lack the end above");
        tree.touch(&name(1), 13);
        assert_eq!(since(tree.take(10, 13)), [Some(13)]);
    }

    #[test]
    fn counts_follow_phases_and_ends_reach_down() {
        let mut tree = Tree::default();
        tree.add(&name(0), None, Some(Phase::Running), 0);
        tree.add(&name(1), Some(&name(0)), Some(Phase::Running), 0);
        tree.add(&name(2), Some(&name(1)), None, 0);
        assert_eq!(taken(&mut tree), [name(0), name(1), name(2)], "parents first");
        assert_eq!(tree.counts(&name(0)), [(4, 1)]);
        assert_eq!(tree.counts(&name(1)), [], "not before it is read");
        tree.set(&name(2), Phase::Queued);
        assert_eq!((taken(&mut tree), tree.counts(&name(1))), (vec![name(1)], vec![(1, 1)]));
        tree.set(&name(1), Phase::Succeeded);
        let mut touched = taken(&mut tree);
        touched.sort();
        assert_eq!(touched, [name(0), name(2)], "what is below an end is looked at again");
        tree.set(&name(2), Phase::Aborted);
        tree.set(&name(2), Phase::Running);
        assert_eq!(tree.counts(&name(1)), [(7, 1)], "an end stands");
        assert!(!tree.is_over());
        tree.set(&name(0), Phase::Failed);
        assert!(tree.is_over());
    }

    #[test]
    fn what_leaves_the_filter_is_sent_once_more_and_then_not() {
        let mut tree = Tree::default();
        tree.add(&name(0), None, Some(Phase::Running), 0);
        tree.add(&name(1), Some(&name(0)), Some(Phase::Running), 0);
        assert!(!tree.sends(&name(0), false, 1), "it does not meet the filter");
        assert_eq!(above(&mut tree, &name(1)), [name(0)]);
        assert!(tree.sends(&name(0), false, 1), "what is above it is needed");
        assert!(tree.sends(&name(1), true, 2));
        assert!(!tree.sends(&name(1), true, 2), "nothing new");
        assert_eq!(above(&mut tree, &name(1)), []);
        assert!(tree.sends(&name(1), false, 3), "it leaves");
        assert!(!tree.sends(&name(1), false, 4), "and is gone");
        assert!(tree.sends(&name(1), true, 5), "until it is back");
    }

    proptest! {
        /// Counts are those of the phases, and what lives below an end is about to be looked at, whatever happens in
        /// whatever order.
        #[test]
        fn counts_add_up(steps in prop::collection::vec((0usize..30, 0usize..30, 0usize..10), 1..200)) {
            let mut tree = Tree::default();
            tree.add(&name(0), None, None, 0);
            for (node, parent, phase) in steps {
                if node > 0 && tree.at(&name(parent)).is_some() {
                    tree.add(&name(node), Some(&name(parent)), None, 0);
                }
                tree.set(&name(node), Phase::ALL[phase]);
                for node in &tree.nodes {
                    let mut counts = [0; PHASES];
                    for child in node.below.iter().flat_map(|b| &b.children) {
                        let child = &tree.nodes[*child as usize];
                        prop_assert!(is_live(node.phase) || !is_live(child.phase) || child.pending);
                        if let Some(phase) = child.phase {
                            counts[phase as usize] += 1;
                        }
                    }
                    prop_assert_eq!(counts, node.below.as_ref().map_or([0; PHASES], |b| b.counts));
                }
                let live = tree.nodes.iter().filter(|n| is_live(n.phase)).count();
                prop_assert_eq!(live, tree.live);
            }
        }
    }
}
