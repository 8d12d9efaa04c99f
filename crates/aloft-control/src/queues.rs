//! What may happen to a queue, decided on the record and on what it holds.

use aloft_core::{DEFAULT_DEPTH, DEFAULT_QUEUE, QueueSpec, QueueState, Subject, Time};
use aloft_store::{Queue, QueueLoad};

/// Most queues of an organisation that are not deleted. The dispatcher reads them all on each of its rounds.
pub(crate) const MAX_QUEUES: usize = 1000;

/// A change that an administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Declare this instead.
    Spec(QueueSpec),
    /// Take work.
    Activate,
    /// Take no more work.
    Drain,
    /// Delete it, so that it can be brought back.
    Delete,
    /// Bring it back.
    Undelete,
}

/// Why a queue was not created or changed. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueRefusal {
    /// There is no such queue.
    #[error("queue {0} does not exist; create it with `aloft create queue {0}`")]
    Missing(String),
    /// One of this name exists and declares something else.
    #[error(
        "queue {name} exists already with another {difference}; change it with `aloft update queue {name}`, or choose \
         another name"
    )]
    Exists {
        /// Its name.
        name: String,
        /// What differs.
        difference: String,
    },
    /// One of this name exists and is deleted.
    #[error("queue {0} is deleted; bring it back with `aloft undelete queue {0}`, or choose another name")]
    Deleted(String),
    /// It is the one that always exists.
    #[error(
        "queue {DEFAULT_QUEUE} always takes whatever names no queue, so it cannot be {0}: create another one for that"
    )]
    Default(&'static str),
    /// It still holds something.
    #[error(
        "queue {name} still holds {} ({} waiting, {} running): drain it first with `aloft update queue {name} --state \
         draining`, and delete it once it is drained", counted(load), load.waiting, load.running
    )]
    HasWork {
        /// Its name.
        name: String,
        /// What it holds.
        load: QueueLoad,
    },
    /// It was changed since the client read it.
    #[error(
        "expected_generation: queue {name} has generation {found}, not {expected}: it was changed since; read it again"
    )]
    Changed {
        /// Its name.
        name: String,
        /// What the client has read.
        expected: u64,
        /// What it is now.
        found: u64,
    },
    /// Others change it all the time.
    #[error("queue {0} is being changed by others; try again")]
    Busy(String),
    /// No more fit.
    #[error("there are {MAX_QUEUES} queues, which is as many as there can be: delete one first")]
    TooMany,
}

fn counted(load: &QueueLoad) -> String {
    match load.held() {
        0 => format!("{} running {}", load.runs, if load.runs == 1 { "run" } else { "runs" }),
        1 => "1 action".to_owned(),
        n => format!("{n} actions"),
    }
}

/// The queue that always exists: no limits, and no record.
pub(crate) fn default_queue(org: &str) -> Queue {
    Queue {
        org: org.to_owned(),
        name: DEFAULT_QUEUE.to_owned(),
        spec: QueueSpec::default(),
        state: QueueState::Active,
        generation: 0,
        created_at: Time::default(),
        created_by: Subject::default(),
        updated_at: Time::default(),
        deleted_at: None,
    }
}

/// Decides about creating a queue of a name that is taken.
///
/// # Errors
/// [`QueueRefusal`] unless the queue there is the one asked for.
pub(crate) fn create_again(there: &Queue, spec: &QueueSpec) -> Result<(), QueueRefusal> {
    if there.deleted_at.is_some() {
        return Err(QueueRefusal::Deleted(there.name.clone()));
    }
    match difference(&there.spec, spec) {
        None => Ok(()),
        Some(difference) => Err(QueueRefusal::Exists { name: there.name.clone(), difference }),
    }
}

/// Decides whether one more queue fits beside `all`, deleted ones among them. Two that ask at the same time may pass the
/// bound by one, which does no harm.
///
/// # Errors
/// [`QueueRefusal::TooMany`].
pub(crate) fn check_room(all: &[Queue]) -> Result<(), QueueRefusal> {
    match all.iter().filter(|q| q.deleted_at.is_none()).count() {
        n if n < MAX_QUEUES => Ok(()),
        _ => Err(QueueRefusal::TooMany),
    }
}

/// In which fields two declarations differ. An undeclared depth is the same as the one it stands for.
fn difference(a: &QueueSpec, b: &QueueSpec) -> Option<String> {
    let depth = |spec: &QueueSpec| spec.limits.depth.unwrap_or(DEFAULT_DEPTH);
    let fields = [
        ("run_concurrency", a.limits.run_concurrency != b.limits.run_concurrency),
        ("action_concurrency", a.limits.action_concurrency != b.limits.action_concurrency),
        ("depth", depth(a) != depth(b)),
        ("max_resources", a.limits.resources != b.limits.resources),
        ("priority", a.priority != b.priority),
        ("fairness", a.fairness != b.fairness),
    ];
    let names: Vec<_> = fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Decides a change of `queue` while it holds `load`: the queue as it becomes, or `None` if it is so already.
///
/// # Errors
/// [`QueueRefusal`].
pub(crate) fn change(
    queue: &Queue,
    load: QueueLoad,
    expected: Option<u64>,
    change: &Change,
    now: Time,
) -> Result<Option<Queue>, QueueRefusal> {
    let (name, found) = (queue.name.clone(), queue.generation);
    if let Some(expected) = expected.filter(|e| *e != found) {
        return Err(QueueRefusal::Changed { name, expected, found });
    }
    let deleted = queue.deleted_at.is_some();
    let closed = queue.state != QueueState::Active;
    let mut next = queue.clone();
    // Why the default queue cannot be changed so.
    let verb = match change {
        Change::Delete if deleted => return Ok(None),
        Change::Undelete if !deleted => return Ok(None),
        Change::Spec(_) | Change::Activate | Change::Drain if deleted => return Err(QueueRefusal::Deleted(name)),
        Change::Spec(spec) if *spec == queue.spec => return Ok(None),
        Change::Activate if !closed => return Ok(None),
        Change::Drain if closed => return Ok(None),
        Change::Spec(spec) => {
            next.spec = spec.clone();
            "limited"
        }
        Change::Activate => {
            next.state = QueueState::Active;
            "activated"
        }
        Change::Drain => {
            next.state = QueueState::Draining;
            "drained"
        }
        Change::Delete => {
            next.deleted_at = Some(now);
            "deleted"
        }
        Change::Undelete => {
            next.deleted_at = None;
            next.state = QueueState::Drained;
            "undeleted"
        }
    };
    if name == DEFAULT_QUEUE {
        return Err(QueueRefusal::Default(verb));
    }
    // An action may come in between this look and the commit. It is not lost: the dispatcher serves deleted queues too.
    if *change == Change::Delete && !load.is_empty() {
        return Err(QueueRefusal::HasWork { name, load });
    }
    next.generation += 1;
    next.updated_at = now;
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use aloft_core::{Priority, QueueLimits};

    use super::*;

    const NOW: Time = Time::from_micros(7);
    const EMPTY: QueueLoad = QueueLoad { waiting: 0, running: 0, runs: 0 };

    fn bulk() -> Queue {
        Queue { name: "bulk".into(), generation: 3, ..default_queue("local") }
    }

    fn high() -> QueueSpec {
        QueueSpec { priority: Priority::High, ..QueueSpec::default() }
    }

    fn changed(queue: &Queue, wanted: Change) -> Result<Option<Queue>, QueueRefusal> {
        change(queue, EMPTY, None, &wanted, NOW)
    }

    #[test]
    fn each_change_is_one_generation() {
        let next = changed(&bulk(), Change::Spec(high())).unwrap().unwrap();
        assert_eq!(next, Queue { spec: high(), generation: 4, updated_at: NOW, ..bulk() });
        let draining = changed(&next, Change::Drain).unwrap().unwrap();
        assert_eq!((draining.state, draining.generation), (QueueState::Draining, 5));
        let active = changed(&draining, Change::Activate).unwrap().unwrap();
        assert_eq!((active.state, active.generation), (QueueState::Active, 6));
        let deleted = changed(&active, Change::Delete).unwrap().unwrap();
        assert_eq!((deleted.deleted_at, deleted.generation), (Some(NOW), 7));
        let back = changed(&deleted, Change::Undelete).unwrap().unwrap();
        assert_eq!(
            (back.deleted_at, back.state, back.generation),
            (None, QueueState::Drained, 8),
            "it comes back drained"
        );
        assert_eq!(changed(&back, Change::Activate).unwrap().unwrap().state, QueueState::Active);
    }

    #[test]
    fn the_same_again_changes_nothing() {
        let deleted = Queue { deleted_at: Some(NOW), ..bulk() };
        let drained = Queue { state: QueueState::Drained, ..bulk() };
        for (queue, wanted) in [
            (bulk(), Change::Spec(QueueSpec::default())),
            (bulk(), Change::Activate),
            (bulk(), Change::Undelete),
            (deleted, Change::Delete),
            (drained, Change::Drain),
        ] {
            assert_eq!(changed(&queue, wanted.clone()), Ok(None), "{wanted:?}");
        }
        let same = QueueSpec {
            limits: QueueLimits { depth: Some(DEFAULT_DEPTH), ..QueueLimits::default() },
            ..QueueSpec::default()
        };
        assert_eq!(create_again(&bulk(), &same), Ok(()), "the depth it has anyway");
    }

    #[test]
    fn another_declaration_is_another_queue() {
        let refused = create_again(&bulk(), &high()).unwrap_err();
        assert!(refused.to_string().contains("another priority"), "{refused}");
        let deleted = Queue { deleted_at: Some(NOW), ..bulk() };
        assert_eq!(create_again(&deleted, &bulk().spec), Err(QueueRefusal::Deleted("bulk".into())));
        for wanted in [Change::Spec(high()), Change::Activate, Change::Drain] {
            assert_eq!(changed(&deleted, wanted), Err(QueueRefusal::Deleted("bulk".into())));
        }
    }

    #[test]
    fn what_was_read_must_still_be_so() {
        for wanted in [Change::Spec(high()), Change::Activate, Change::Drain, Change::Delete, Change::Undelete] {
            let refused = change(&bulk(), EMPTY, Some(2), &wanted, NOW);
            assert_eq!(refused, Err(QueueRefusal::Changed { name: "bulk".into(), expected: 2, found: 3 }));
        }
        assert!(change(&bulk(), EMPTY, Some(3), &Change::Delete, NOW).unwrap().is_some());
    }

    #[test]
    fn a_queue_that_holds_work_is_not_deleted() {
        for (load, words) in [
            (QueueLoad { waiting: 2, running: 1, runs: 1 }, "holds 3 actions (2 waiting, 1 running)"),
            (QueueLoad { waiting: 1, ..EMPTY }, "holds 1 action (1 waiting, 0 running)"),
            (QueueLoad { runs: 2, ..EMPTY }, "holds 2 running runs"),
        ] {
            let refused = change(&bulk(), load, None, &Change::Delete, NOW).unwrap_err().to_string();
            assert!(refused.contains(words) && refused.contains("--state draining"), "{refused}");
            assert!(change(&bulk(), load, None, &Change::Drain, NOW).unwrap().is_some());
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let mut all = vec![Queue { deleted_at: Some(NOW), ..bulk() }; 5];
        all.extend(vec![bulk(); MAX_QUEUES - 1]);
        assert_eq!(check_room(&all), Ok(()));
        all.push(bulk());
        assert_eq!(check_room(&all), Err(QueueRefusal::TooMany));
    }

    #[test]
    fn the_default_queue_stays_as_it_is() {
        let default = default_queue("local");
        for (wanted, verb) in
            [(Change::Spec(high()), "limited"), (Change::Drain, "drained"), (Change::Delete, "deleted")]
        {
            assert_eq!(changed(&default, wanted), Err(QueueRefusal::Default(verb)));
        }
        assert_eq!(changed(&default, Change::Activate), Ok(None));
        assert_eq!(create_again(&default, &QueueSpec::default()), Ok(()));
    }
}
