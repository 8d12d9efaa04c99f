//! What a client may believe, as plain data: every run and action, how far it has come, who holds it.
//!
//! [`Model::next`] takes a request with its answer and gives the models that are possible after it: one as a rule, two when
//! the answer was lost. [`Model::observe`] compares a model with what a view shows. Neither knows how the server does it.
//!
//! To add a kind of command: a variant in `step.rs` and its strategy in `draw.rs`, the request in `ids.rs`, one function
//! here that says what may be answered and what it changes, one arm in [`Model::next`], and its call in `client.rs`.

mod action;
mod beliefs;
mod cache;
mod client;
mod condition;
mod elsewhere;
mod expect;
mod lanes;
mod queues;
mod recover;
mod worker;

use std::collections::{BTreeMap, BTreeSet};

use aloft_core::Time;

pub use action::{Action, Attempt, End, Life, Why};
pub use beliefs::Beliefs;
pub use cache::{Cached, DISABLED, HIT, Looked, MISS};
use client::NewAction;
pub use client::trace_times;
pub use elsewhere::Start;
pub use expect::{function, output};
use queues::Queue;
pub use recover::Recovered;

use crate::{
    draw::Hands,
    ids::{ActionId, Place, Request, Reuse, RunId},
    rules::{Check, answers::Answer},
    step::Work,
};

/// What may be the case.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Who moves the tasks: what we do not move may have moved on since we looked.
    hands: Hands,
    /// Where runs can live.
    places: BTreeSet<Place>,
    runs: BTreeMap<RunId, Run>,
    queues: BTreeMap<String, Queue>,
    /// The runs of requests that the server named.
    requests: BTreeMap<(Place, String), RunId>,
    /// What the cache holds.
    results: cache::Results,
    /// The outputs that are gone.
    vanished: BTreeSet<String>,
    /// How many runs and actions there have been, to know their order.
    made: u32,
}

/// Attempts by their actions and numbers.
pub type Attempts = BTreeSet<(ActionId, u32)>;

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its place in the order of creation.
    pub order: u32,
    /// What identifies its work.
    pub work: Work,
    /// The queue that it names; empty for none.
    pub queue: String,
    /// How many of its actions run at most.
    pub most: Option<u8>,
    /// What of earlier work it reuses.
    pub reuse: Reuse,
    /// When it began, if it is carried out elsewhere.
    pub elsewhere: Option<Start>,
    /// Its actions by name.
    pub actions: BTreeMap<String, Action>,
}

/// A request, when it was asked, and whether nothing else was under way.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'r> {
    /// What was asked.
    pub request: &'r Request,
    /// The server's time.
    pub at: Time,
    /// Whether it was the only request.
    pub alone: bool,
}

impl Model {
    /// A server without runs, whose projects and domains are `places`.
    pub fn new(hands: Hands, places: impl IntoIterator<Item = Place>) -> Self {
        Self {
            hands,
            places: places.into_iter().collect(),
            runs: BTreeMap::new(),
            queues: BTreeMap::new(),
            requests: BTreeMap::new(),
            results: BTreeMap::new(),
            vanished: BTreeSet::new(),
            made: 0,
        }
    }

    /// What may be the case after a request was answered.
    ///
    /// # Errors
    /// The rule that the answer breaks.
    pub fn next(&self, asked: Asked<'_>, answer: &Answer) -> Check<Vec<Model>> {
        let at = asked.at;
        match asked.request {
            Request::Create { place, name, work, lane, reuse } => {
                self.create(place, name, (work, lane, reuse), answer, at)
            }
            Request::Enqueue { action, parent, kind, group, queue, .. } => {
                let how = NewAction { name: &action.name, parent: Some(parent), group, queue };
                self.enqueue(action, kind, &how, answer, at)
            }
            Request::Abort { run, action, reason, .. } => {
                let name = action.as_deref().unwrap_or(aloft_core::ROOT_ACTION);
                self.abort(&run.action(name), action.is_none(), reason, answer, at)
            }
            Request::Lease { worker, max } => self.lease(worker, *max, asked.alone, answer, at),
            Request::Report { lease, progress } => self.report(lease, progress, answer, at),
            Request::Signal { action, value, .. } => self.signal(action, *value, answer, at),
            Request::Track { place, name, work, start, .. } => {
                self.begin((place, name), work, Start(*start), answer, at)
            }
            Request::Tell { action, parent, kind, told } => self.tell(action, parent, kind.as_ref(), told, answer, at),
            Request::TimeOut => self.time_out(answer, at),
            Request::Queue { name, change } => self.change_queue(name, *change, answer),
        }
    }

    /// The runs, in the order of their creation.
    pub fn runs(&self) -> Vec<(&RunId, &Run)> {
        let mut runs: Vec<_> = self.runs.iter().collect();
        runs.sort_by_key(|(_, run)| run.order);
        runs
    }

    /// A run.
    pub fn run(&self, id: &RunId) -> Option<&Run> {
        self.runs.get(id)
    }

    /// The runs of `place`, newest first, as lists show them.
    pub fn runs_of(&self, place: &Place) -> Vec<&RunId> {
        self.runs().into_iter().rev().map(|(id, _)| id).filter(|id| id.place == *place).collect()
    }

    /// The actions of a run as its list shows them by default: newest first.
    pub fn listed(&self, run: &RunId) -> Vec<ActionId> {
        let Some(found) = self.runs.get(run) else { return Vec::new() };
        let mut actions: Vec<_> = found.actions.iter().collect();
        actions.sort_by_key(|(_, a)| std::cmp::Reverse((a.created, a.order)));
        actions.into_iter().map(|(name, _)| run.action(name)).collect()
    }

    /// Whose hands move the tasks.
    pub fn hands(&self) -> Hands {
        self.hands
    }

    /// The attempts that `worker` holds, and those that the records may say it holds although they have ended: an answer
    /// that gave one may have been overtaken by the end above it.
    pub fn attempts_of(&self, worker: &str) -> (Attempts, Attempts) {
        let (mut held, mut unsettled) = (Attempts::new(), Attempts::new());
        for (run, action, state) in self.all() {
            let Some(attempt) = state.attempts.last() else { continue };
            let holds = attempt.holder.as_ref().is_some_and(|h| h.worker == worker);
            let named = (run.action(action), attempt.number);
            if holds && state.end.is_none() {
                held.insert(named);
            } else if !state.settled {
                unsettled.insert(named);
            }
        }
        (held, unsettled)
    }

    fn all(&self) -> impl Iterator<Item = (&RunId, &str, &Action)> {
        self.runs.iter().flat_map(|(id, run)| run.actions.iter().map(move |(n, a)| (id, n.as_str(), a)))
    }
}

impl Run {
    /// The names of the actions, in the order of their creation.
    pub fn names(&self) -> Vec<&String> {
        let mut actions: Vec<_> = self.actions.iter().collect();
        actions.sort_by_key(|(_, a)| a.order);
        actions.into_iter().map(|(name, _)| name).collect()
    }

    /// Whether `name` lies below `above`.
    pub fn below(&self, name: &str, above: &str) -> bool {
        let mut current = self.actions.get(name).and_then(|a| a.parent.clone());
        while let Some(parent) = current {
            if parent == above {
                return true;
            }
            current = self.actions.get(&parent).and_then(|a| a.parent.clone());
        }
        false
    }
}
