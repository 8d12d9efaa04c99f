//! Queues and limits.

use proptest::{collection::vec, option, prelude::*};

use super::{work, worker};
use crate::{
    lanes::{Change, Lane, QueueSpec},
    step::{Command, Kind, NOBODY, Naming, Reuse, Step, Work},
};

/// Most runs name no queue and no limit.
pub(super) fn lane() -> impl Strategy<Value = Lane> {
    let most = prop_oneof![12 => Just(0u8), 2 => Just(1), 1 => Just(2)];
    (option::weighted(0.05, 0u8..2), most).prop_map(|(queue, most)| Lane { queue, most })
}

pub(super) fn queue_spec() -> impl Strategy<Value = QueueSpec> {
    let limit = || option::weighted(0.5, prop_oneof![1 => Just(0u8), 6 => Just(1), 3 => Just(2)]);
    let depth = option::weighted(0.5, prop_oneof![1 => Just(0u8), 3 => Just(2), 3 => Just(3), 1 => Just(5)]);
    let flags = (any::<bool>(), any::<bool>());
    (option::weighted(0.3, 0u8..3), limit(), depth, flags)
        .prop_map(|(runs, actions, depth, (urgent, in_line))| QueueSpec { runs, actions, depth, urgent, in_line })
}

/// An administrator does something to a queue.
pub(super) fn queue() -> impl Strategy<Value = Command> {
    let change = prop_oneof![
        3 => queue_spec().prop_map(Change::Create),
        3 => queue_spec().prop_map(Change::Update),
        2 => Just(Change::Activate),
        2 => Just(Change::Drain),
        2 => Just(Change::Delete),
        1 => Just(Change::Undelete),
    ];
    let queue = prop_oneof![12 => Just(0u8), 3 => Just(1u8), 1 => Just(NOBODY)];
    (queue, change).prop_map(|(queue, change)| Command::Queue { queue, change })
}

/// A queue, and runs and actions in it: limits show where several wait for the same.
pub(super) fn queued() -> impl Strategy<Value = Vec<Step>> {
    let named = |n: u8, work: Work, most: u8| Command::Create {
        place: 0,
        name: Naming::Named(n),
        work,
        lane: Lane { queue: Some(0), most },
        reuse: Reuse::default(),
    };
    let root =
        move |n: u8| (work(), prop_oneof![4 => Just(0u8), 1 => Just(1)]).prop_map(move |(w, most)| named(n, w, most));
    let child = (0u8..2, 1u8..5, 0u8..3, work()).prop_map(|(run, action, parent, work)| Command::Enqueue {
        run,
        action,
        parent,
        kind: Kind::Task(work),
        old: false,
        queue: None,
    });
    let create = queue_spec().prop_map(|spec| Command::Queue { queue: 0, change: Change::Create(spec) });
    let lease = || (worker(), 1u8..5).prop_map(|(worker, max)| Command::Lease { worker, max });
    // Who comes when it is closed; from within it, children still may.
    let shut = prop_oneof![3 => Just(Change::Drain), 1 => Just(Change::Delete)];
    let late = (shut, work(), any::<bool>(), 1u8..5).prop_map(move |(change, work, below, action)| {
        let late = match below {
            true => Command::Enqueue { run: 1, action, parent: 0, kind: Kind::Task(work), old: false, queue: Some(0) },
            false => Command::Create {
                place: 1,
                name: Naming::Named(0),
                work,
                lane: Lane { queue: Some(0), most: 0 },
                reuse: Reuse::default(),
            },
        };
        vec![Command::Queue { queue: 0, change }, late]
    });
    (create, root(0), option::of(lease()), root(1), vec(child, 0..=4), lease(), option::weighted(0.3, late)).prop_map(
        |(create, first, started, second, children, lease, late)| {
            let commands = [create, first].into_iter().chain(started).chain([second]).chain(children).chain([lease]);
            commands.chain(late.into_iter().flatten()).map(Step::Do).collect()
        },
    )
}

/// Time passes, and it is said what limits hold back.
pub(super) fn held() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![3 => Just(400u16), 1 => Just(100)].prop_map(|wait| vec![Step::Wait(wait), Step::Hold])
}
