//! Queues: what an administrator makes of them, what they take, and what is shown of them.

use aloft_core::Time;

use super::{Action, Looked, Model};
use crate::{
    ids::{Request, RunId},
    lanes::{Change, QueueSpec, ShownQueue, State},
    rules::{
        Check,
        answers::{self, Answer},
        durable, lanes,
    },
    step::Kind,
};

/// The queue of everything that names none.
const DEFAULT: &str = "default";

/// What is believed about a queue.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Queue {
    pub(super) spec: QueueSpec,
    /// Not what is shown: a draining queue is shown as drained once it is empty.
    state: State,
    deleted: bool,
    generation: u64,
}

impl Queue {
    fn new(spec: QueueSpec) -> Self {
        Self { spec, state: State::Active, deleted: false, generation: 1 }
    }
}

/// Whether a queue takes an action.
enum Admission {
    Open,
    Missing,
    Closed,
    Full,
    /// It depends on what nobody has looked at since.
    Unsure,
}

impl Model {
    /// Where an action waits that names `own`, in a run that names `inherited`.
    pub(super) fn resolved(own: &str, inherited: &str) -> String {
        [own, inherited, DEFAULT].into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT).to_owned()
    }

    fn admission(&self, queue: &str, above: Option<(&RunId, &str)>) -> Admission {
        if queue == DEFAULT {
            return Admission::Open;
        }
        let Some(found) = self.queues.get(queue) else { return Admission::Missing };
        // What the work in a closed queue starts is part of that work.
        let starter = || above.is_some_and(|(run, parent)| self.is_within(queue, run, parent));
        if found.deleted || (found.state != State::Active && !starter()) {
            return Admission::Closed;
        }
        let held = self.deep(queue);
        match found.spec.depth.map(u64::from) {
            Some(depth) if held.least >= depth => Admission::Full,
            Some(depth) if held.most >= depth => Admission::Unsure,
            _ => Admission::Open,
        }
    }

    /// Whether `action` or one above it waits or runs in `queue`.
    fn is_within(&self, queue: &str, run: &RunId, action: &str) -> bool {
        let mut current = Some(action.to_owned());
        while let Some(name) = current {
            if self.queue_of(run, &name) == Some(queue) {
                return true;
            }
            current = self.runs.get(run).and_then(|r| r.actions.get(&name)).and_then(|a| a.parent.clone());
        }
        false
    }

    /// Whether new work is turned away by its queue; `false` if the queue takes it, or `free` work needs none. `above` is
    /// the run and the action that it starts below.
    pub(super) fn turned_away(
        &self,
        free: Option<bool>,
        queue: &str,
        above: Option<(&RunId, &str)>,
        answer: &Answer,
    ) -> Check<bool> {
        let code = if let Answer::Refused(r) = answer { r.code.as_str() } else { "" };
        if free == Some(true) || (free.is_none() && code.is_empty()) {
            return Ok(false);
        }
        match self.admission(queue, above) {
            Admission::Open => return Ok(false),
            Admission::Missing => answers::rule_9_what_is_missing_is_named(answer, queue)?,
            Admission::Closed => lanes::rule_10_a_closed_queue_takes_nothing(answer, queue)?,
            Admission::Full => lanes::rule_10_a_full_queue_refuses(answer, queue)?,
            Admission::Unsure if code == "resource_exhausted" => lanes::rule_10_a_full_queue_refuses(answer, queue)?,
            Admission::Unsure => return Ok(false),
        }
        Ok(true)
    }

    /// Whether a new action takes over a result although its queue would turn it away.
    pub fn passes_its_queue(&self, request: &Request, at: Time) -> bool {
        let Request::Enqueue { action, parent, kind, queue, .. } = request else { return false };
        let Some(run) = self.runs.get(&action.run).filter(|run| !run.actions.contains_key(&action.name)) else {
            return false;
        };
        let free = self.needs_no_room(&action.run, run.reuse.from.as_ref(), (&action.name, kind), at);
        let queue = self.queue_for(kind, &action.run, queue).filter(|_| free == Some(true));
        let admission = queue.map(|queue| self.admission(&queue, Some((&action.run, parent))));
        matches!(admission, Some(Admission::Closed | Admission::Full))
    }

    /// How many cached results stand in for actions of declared queues.
    pub fn hits_in_queues(&self) -> usize {
        let hit = |a: &Action| a.cache.as_ref().is_some_and(|c| matches!(c.looked, Looked::Hit(..)));
        let declared = |a: &Action| a.queue.as_ref().is_some_and(|queue| self.queues.contains_key(queue));
        self.all().filter(|(.., a)| hit(a) && declared(a)).count()
    }

    pub(super) fn change_queue(&self, name: &str, change: Change, answer: &Answer) -> Check<Vec<Model>> {
        let mut queue = match (self.queues.get(name), change) {
            _ if name == DEFAULT => return self.change_default(change, answer),
            (None, Change::Create(spec)) => return self.becomes(name, Queue::new(spec), answer),
            (None, _) => {
                answers::rule_9_what_is_missing_is_named(answer, name)?;
                return self.unchanged();
            }
            (Some(queue), _) => queue.clone(),
        };
        let same = match change {
            Change::Delete => queue.deleted,
            Change::Undelete => !queue.deleted,
            _ if queue.deleted => {
                lanes::rule_10_a_queue_with_work_stays(answer, name)?;
                return self.unchanged();
            }
            Change::Create(spec) if spec != queue.spec => {
                lanes::rule_4_another_queue_of_a_taken_name_is_refused(answer, name)?;
                return self.unchanged();
            }
            Change::Create(_) => true,
            Change::Update(spec) => spec == queue.spec,
            Change::Activate => queue.state == State::Active,
            Change::Drain => queue.state != State::Active,
        };
        if same {
            return self.becomes(name, queue, answer);
        }
        if change == Change::Delete {
            let held = self.holds(name);
            let refused = matches!(answer, Answer::Refused(_)) && held.iter().any(|count| count.most > 0);
            if refused || held.iter().any(|count| count.least > 0) {
                lanes::rule_10_a_queue_with_work_stays(answer, name)?;
                return self.unchanged();
            }
        }
        match change {
            Change::Create(_) => {}
            Change::Update(spec) => queue.spec = spec,
            Change::Activate => queue.state = State::Active,
            Change::Drain => queue.state = State::Draining,
            Change::Delete => queue.deleted = true,
            Change::Undelete => (queue.deleted, queue.state) = (false, State::Drained),
        }
        queue.generation += 1;
        self.becomes(name, queue, answer)
    }

    /// The queue that always is can only be asked for what it is anyway.
    fn change_default(&self, change: Change, answer: &Answer) -> Check<Vec<Model>> {
        match change {
            Change::Create(spec) if spec != QueueSpec::default() => {
                lanes::rule_4_another_queue_of_a_taken_name_is_refused(answer, DEFAULT)?;
            }
            Change::Update(spec) if spec != QueueSpec::default() => {
                lanes::rule_10_a_queue_with_work_stays(answer, DEFAULT)?;
            }
            Change::Drain | Change::Delete => lanes::rule_10_a_queue_with_work_stays(answer, DEFAULT)?,
            Change::Create(_) | Change::Update(_) | Change::Activate | Change::Undelete => {
                lanes::rule_3_a_queue_is_changed(answer)?;
            }
        }
        self.unchanged()
    }

    fn becomes(&self, name: &str, queue: Queue, answer: &Answer) -> Check<Vec<Model>> {
        let shown = lanes::rule_3_a_queue_is_changed(answer)?;
        let after = self.changed(shown.is_some(), |m| {
            m.queues.insert(name.to_owned(), queue);
        });
        if let (Some(shown), [after]) = (shown, after.as_slice()) {
            after.observe_queue(name, shown)?;
        }
        Ok(after)
    }

    /// The queues of the sequence.
    pub fn queue_names(&self) -> Vec<String> {
        self.queues.keys().cloned().collect()
    }

    /// Compares what is shown of a queue.
    ///
    /// # Errors
    /// What is shown and not believed.
    pub fn observe_queue(&self, name: &str, shown: &ShownQueue) -> Check {
        let found = durable::rule_3_what_is_shown_was_made(&name, self.queues.get(name))?;
        let told = (shown.spec, shown.deleted, shown.generation, shown.state == State::Active);
        let done = (found.spec, found.deleted, found.generation, found.state == State::Active);
        durable::rule_3_views_show_what_was_done(&name, &told, &done)?;
        lanes::rule_1_a_queue_says_what_it_holds(name, shown.load, self.holds(name))?;
        if found.state == State::Draining {
            let drained = shown.load == [0, 0, 0];
            durable::rule_3_views_show_what_was_done(&name, &(shown.state == State::Drained), &drained)?;
        }
        Ok(())
    }

    /// The queue that an enqueue of `kind` waits in; `None` for what waits in none.
    pub(super) fn queue_for(&self, kind: &Kind, run: &RunId, own: &str) -> Option<String> {
        let inherited = self.runs.get(run).map_or("", |run| run.queue.as_str());
        matches!(kind, Kind::Task(_)).then(|| Self::resolved(own, inherited))
    }
}
