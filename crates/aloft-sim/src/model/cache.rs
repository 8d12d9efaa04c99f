//! Which results stand in for identical work, and who computes while others wait.

use std::collections::{BTreeMap, BTreeSet};

use aloft_core::{Phase, Time};

use super::{Action, End, Life, Model, Run, Why};
use crate::{
    ids::{ActionId, Place, Reuse, RunId},
    rules::{Check, reuse},
    seen::Details,
    step::{Caching, Kind},
};

/// `CatalogCacheStatus` numbers.
pub const DISABLED: i32 = 0;
/// See [`DISABLED`].
pub const MISS: i32 = 1;
/// See [`DISABLED`].
pub const HIT: i32 = 2;
const POPULATED: i32 = 3;
const LOOKUP_FAILURE: i32 = 4;
const SKIPPED: i32 = 6;

/// What identical work shares. Never across projects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    project: String,
    task: u8,
    input: u8,
    version: u8,
}

/// How an action is cached and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cached {
    /// What it shares with identical work.
    pub key: Key,
    /// The domain whose results stand in and whose actions it waits for; empty for all of the project.
    pub scope: String,
    /// What its task declares.
    pub declared: Caching,
    /// Whether it computes in any case.
    pub overwrite: bool,
    /// What came of the lookup.
    pub looked: Looked,
}

/// What came of a lookup.
#[derive(Clone, Debug, PartialEq)]
pub enum Looked {
    /// It is to come, or to be repeated when the one that computes has ended.
    Pending {
        /// Whether the object store was away when a result might have stood in: what is looked at again is not certain.
        late: bool,
    },
    /// Nothing stands in: the action computes, or has.
    Computes {
        /// The status that says why.
        why: i32,
        /// Whether its result is cached.
        populated: bool,
    },
    /// The result of an attempt stands in.
    Hit(ActionId, u32),
}

/// A cached result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    by: ActionId,
    attempt: u32,
    at: Time,
    output: String,
}

/// What the cache holds: results by key and domain.
pub(super) type Results = BTreeMap<(Key, String), Stored>;

/// What was seen of an action after the lookups.
enum Told {
    /// Nothing was decided.
    Waits {
        /// Whether it says that it waits for something.
        says_so: bool,
    },
    /// It computes.
    Computes(i32),
    /// Another's result stands in.
    Hit,
}

impl Told {
    fn of(details: &Details) -> Self {
        match details.shown.cache {
            DISABLED => {
                let waiting = |(phase, _): &(Phase, Time)| *phase == Phase::WaitingForResources;
                Self::Waits { says_so: details.attempts.iter().any(|a| a.phases.iter().any(waiting)) }
            }
            HIT => Self::Hit,
            status => Self::Computes(status),
        }
    }
}

/// What must come of a lookup.
struct Expected {
    /// The result that stands in.
    hit: Option<Stored>,
    /// Why it computes otherwise.
    computes: BTreeSet<i32>,
}

/// What only one at a time computes: a scope and a key.
type Turn = (String, Key);

impl Cached {
    /// How a task of a run in `place` is cached, if it is.
    pub fn new(place: &Place, kind: &Kind, reuse: &Reuse, forced: bool) -> Option<Self> {
        let Kind::Task(work) = kind else { return None };
        let declared = work.policy.cache.clone()?;
        let project = place.project.clone();
        Some(Self {
            key: Key { project, task: work.task, input: work.input, version: declared.version },
            scope: if reuse.own_domain { place.domain.clone() } else { String::new() },
            declared,
            overwrite: reuse.overwrite || forced,
            looked: Looked::Pending { late: false },
        })
    }

    /// The status that views show.
    pub fn status(&self) -> i32 {
        match self.looked {
            Looked::Pending { .. } => DISABLED,
            Looked::Computes { populated: true, .. } => POPULATED,
            Looked::Computes { why, populated: false } => why,
            Looked::Hit(..) => HIT,
        }
    }

    /// The status that views show of the attempts before the last.
    pub fn status_before(&self) -> i32 {
        match self.looked {
            Looked::Computes { why, .. } => why,
            Looked::Pending { .. } | Looked::Hit(..) => self.status(),
        }
    }

    fn turn(&self) -> Turn {
        (self.scope.clone(), self.key.clone())
    }
}

impl Action {
    /// Whether its lookup is to come.
    pub fn looks(&self) -> bool {
        matches!(self.cache, Some(Cached { looked: Looked::Pending { .. }, .. }))
    }

    /// Whether others wait for it: it computes, and its record does not say yet that it has ended.
    fn holds(&self) -> Option<Turn> {
        let cached = self.cache.as_ref().filter(|c| c.declared.serialize)?;
        let computes = matches!(cached.looked, Looked::Computes { .. });
        (computes && (self.end.is_none() || !self.settled)).then(|| cached.turn())
    }
}

impl Model {
    /// The actions whose lookups are to come, or were before they ended.
    pub fn looking(&self) -> Vec<ActionId> {
        self.all().filter(|(.., a)| a.looks()).map(|(run, name, _)| run.action(name)).collect()
    }

    /// The outputs that there are, the newest last.
    pub fn outputs(&self) -> Vec<String> {
        let mut ended: Vec<_> =
            self.all().filter_map(|(run, name, a)| Some((a.order, run, name, a.result(run, name)?))).collect();
        ended.sort();
        ended.into_iter().map(|(.., output)| output).filter(|output| !self.vanished.contains(output)).collect()
    }

    /// What was written at `output` is gone.
    pub fn vanish(&mut self, output: &str) {
        self.vanished.insert(output.to_owned());
    }

    /// The result of an action is cached, if its task declares it.
    pub(super) fn populate(&mut self, id: &ActionId, at: Time) {
        let Some(action) = self.runs.get_mut(&id.run).and_then(|run| run.actions.get_mut(&id.name)) else { return };
        let (Some(cached), Some(attempt)) = (&mut action.cache, action.attempts.last()) else { return };
        let Looked::Computes { why, .. } = cached.looked else { return };
        cached.looked = Looked::Computes { why, populated: true };
        let stored = Stored { by: id.clone(), attempt: attempt.number, at, output: attempt.output.clone() };
        self.results.insert((cached.key.clone(), id.run.place.domain.clone()), stored);
    }

    /// The results that may stand in for an action, the first first.
    fn candidates(&self, domain: &str, cached: &Cached, at: Time) -> Vec<&Stored> {
        let fresh = |s: &&Stored| {
            let age = at.as_micros() - s.at.as_micros();
            cached.declared.max_age.is_none_or(|max| age <= i64::from(max) * 1000)
        };
        let own = self.results.get(&(cached.key.clone(), domain.to_owned()));
        let elsewhere =
            self.results.iter().filter(|((key, d), _)| *key == cached.key && d != domain && cached.scope.is_empty());
        let mut elsewhere: Vec<_> = elsewhere.map(|(_, stored)| stored).collect();
        elsewhere.sort_by_key(|s| std::cmp::Reverse(s.at));
        own.into_iter().chain(elsewhere).filter(fresh).collect()
    }

    fn expected(&self, domain: &str, cached: &Cached, at: Time, reachable: bool) -> Expected {
        let compute = |status: &[i32]| Expected { hit: None, computes: status.iter().copied().collect() };
        if cached.overwrite {
            return compute(&[SKIPPED]);
        }
        let candidates = self.candidates(domain, cached, at);
        let there = candidates.iter().find(|s| !self.vanished.contains(&s.output));
        match (there, reachable) {
            (Some(stored), true) => Expected { hit: Some((*stored).clone()), computes: BTreeSet::new() },
            (Some(_), false) => compute(&[LOOKUP_FAILURE]),
            // That a result is gone may have been noticed before.
            (None, false) if !candidates.is_empty() => compute(&[LOOKUP_FAILURE, MISS]),
            (None, _) => compute(&[MISS]),
        }
    }

    /// Every lookup that was due at `at` was decided; `seen` are the actions that looked.
    ///
    /// # Errors
    /// What was decided otherwise than it must.
    pub fn looked_up(&mut self, at: Time, reachable: bool, seen: &[Details]) -> Check {
        let mut computing: BTreeMap<Turn, Vec<ActionId>> = BTreeMap::new();
        let mut waiting: BTreeMap<Turn, Vec<ActionId>> = BTreeMap::new();
        for (run, name, action) in self.all() {
            if let Some(turn) = action.holds() {
                computing.entry(turn).or_default().push(run.action(name));
            }
        }
        let mut changes = Vec::new();
        for details in seen {
            let id = &details.shown.id;
            let Some((run, action)) = self.runs.get(&id.run).and_then(|r| Some((r, r.actions.get(&id.name)?))) else {
                continue;
            };
            let Some(cached) = action.cache.as_ref().filter(|_| action.looks()) else { continue };
            let Looked::Pending { late } = cached.looked else { continue };
            let told = Told::of(details);
            if run.life(&id.name, false) != Life::Live {
                reuse::rule_5_nothing_is_looked_up_below_what_has_ended(id, matches!(told, Told::Waits { .. }))?;
                continue;
            }
            let expected = self.expected(&id.run.place.domain, cached, at, reachable);
            // What looks below something that finds a result itself may be overtaken by that.
            let overtaken = self.is_overtaken(id, at, reachable);
            match &told {
                Told::Hit => reuse::rule_2_only_what_is_cached_stands_in(id, expected.hit.is_some())?,
                Told::Computes(status) => {
                    reuse::rule_2_a_cached_result_stands_in(id, expected.hit.is_none())?;
                    reuse::rule_2_a_miss_says_why(id, *status, &expected.computes)?;
                    if cached.declared.serialize {
                        computing.entry(cached.turn()).or_default().push(id.clone());
                    }
                }
                Told::Waits { .. } if overtaken => {}
                Told::Waits { says_so } => {
                    reuse::rule_2_a_cached_result_stands_in(id, expected.hit.is_none() || late)?;
                    reuse::rule_2_who_waits_says_so(id, *says_so && cached.declared.serialize)?;
                    waiting.entry(cached.turn()).or_default().push(id.clone());
                }
            }
            let failed = expected.computes.contains(&LOOKUP_FAILURE);
            changes.push((run.depth(&id.name), id.clone(), told, expected.hit, late || failed));
        }
        for (turn, computing) in &computing {
            reuse::rule_2_identical_work_is_computed_once(turn, computing)?;
        }
        for (turn, waiting) in &waiting {
            reuse::rule_2_who_waits_waits_for_somebody(waiting, computing.get(turn).map_or(0, Vec::len))?;
        }
        // The deepest first: what ended above took along what had not ended.
        changes.sort_by_key(|(depth, ..)| std::cmp::Reverse(*depth));
        for (_, id, told, hit, late) in &changes {
            self.found(id, told, hit.as_ref(), *late, at);
        }
        for (_, id, ..) in changes.iter().filter(|(_, _, told, ..)| matches!(told, Told::Hit)) {
            if let Some(run) = self.runs.get_mut(&id.run) {
                run.cascade(&id.name, false);
            }
        }
        Ok(())
    }

    fn is_overtaken(&self, id: &ActionId, at: Time, reachable: bool) -> bool {
        let Some(run) = self.runs.get(&id.run) else { return false };
        let hits = |action: &Action| {
            let cached = action.cache.as_ref().filter(|_| action.looks());
            cached.is_some_and(|c| self.expected(&id.run.place.domain, c, at, reachable).hit.is_some())
        };
        run.actions.iter().any(|(name, action)| run.below(&id.name, name) && hits(action))
    }

    fn found(&mut self, id: &ActionId, told: &Told, hit: Option<&Stored>, late: bool, at: Time) {
        let Some(action) = self.runs.get_mut(&id.run).and_then(|run| run.actions.get_mut(&id.name)) else { return };
        match (told, hit) {
            (Told::Computes(why), _) => set(action, Looked::Computes { why: *why, populated: false }),
            (Told::Hit, Some(stored)) => {
                set(action, Looked::Hit(stored.by.clone(), stored.attempt));
                if let Some(attempt) = action.attempts.last_mut() {
                    attempt.output.clone_from(&stored.output);
                }
                action.finish(Phase::Succeeded, at, Why::Itself(None));
            }
            (Told::Waits { says_so }, _) => {
                set(action, Looked::Pending { late });
                if *says_so {
                    action.advance(Phase::WaitingForResources, at);
                }
            }
            (Told::Hit, None) => {}
        }
    }

    /// What is known of the action whose result stands in for another.
    pub(super) fn computed(&self, id: &ActionId, attempt: u32) -> Option<reuse::Computed> {
        let action = self.runs.get(&id.run)?.actions.get(&id.name)?;
        let output = action.attempts.iter().find(|a| a.number == attempt)?.output.clone();
        let End { phase, at, .. } = action.end.as_ref()?;
        Some(reuse::Computed { phase: (*phase)?, at: *at, output })
    }

    /// Actions of which only one computes at a time, in groups.
    pub fn turns(&self) -> Vec<Vec<ActionId>> {
        let mut turns: BTreeMap<Turn, Vec<ActionId>> = BTreeMap::new();
        for (run, name, action) in self.all() {
            if let Some(cached) = action.cache.as_ref().filter(|c| c.declared.serialize) {
                turns.entry(cached.turn()).or_default().push(run.action(name));
            }
        }
        turns.into_values().collect()
    }

    /// Whether two actions are identical work in one project.
    pub fn are_identical(&self, one: &ActionId, other: &ActionId) -> bool {
        let key = |id: &ActionId| Some(&self.runs.get(&id.run)?.actions.get(&id.name)?.cache.as_ref()?.key);
        key(one).is_some_and(|k| key(other) == Some(k))
    }
}

fn set(action: &mut Action, looked: Looked) {
    if let Some(cached) = &mut action.cache {
        cached.looked = looked;
    }
}

impl Run {
    fn depth(&self, name: &str) -> usize {
        self.actions.keys().filter(|above| self.below(name, above)).count()
    }
}

impl Action {
    /// Where its result lies, if it wrote or recorded one.
    fn result(&self, run: &RunId, name: &str) -> Option<String> {
        match (&self.recovered, &self.kind) {
            (Some(_), _) => None,
            (None, Kind::Condition(_)) => None,
            (None, Kind::Trace { .. }) => Some(crate::ids::output_prefix(&run.action(name), 1)),
            (None, Kind::Task(_)) => {
                let computed = self.cache.as_ref().is_none_or(|c| matches!(c.looked, Looked::Computes { .. }));
                self.attempts.last().map(|a| a.output.clone()).filter(|output| computed && !output.is_empty())
            }
        }
    }
}
