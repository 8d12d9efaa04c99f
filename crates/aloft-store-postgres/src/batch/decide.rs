//! The decisions of a batch, each on what those before it left. No IO: what is not loaded is asked for and decided again.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use aloft_core::{
    ActionName, ActionState, CacheView, Command, Effect, EndedBelow, Event, QueueRoom, Refusal, Reply, Reservation,
    RunInfo, RunKey, Scope, Time, View, Was, apply, decide, effects,
};
use aloft_store::{Blob, Logged, Observer, Seen, StoreError, Submission, SubmitError};

use super::load::{Cached, Held, Known, Missing};
use crate::cache::{self, Place};

/// An event to append.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) run: RunKey,
    pub(super) logged: Arc<Logged>,
}

/// What a batch makes of an action.
#[derive(Clone, Debug)]
pub(super) struct Changed {
    /// Its place in the order of creation in the run, if it is new.
    pub(super) new: Option<i64>,
    pub(super) state: ActionState,
    /// When its state changed; `None` if only what is kept beside it has.
    pub(super) at: Option<Time>,
    pub(super) open_children: i64,
    /// When to look into the cache; the outer `None` leaves that as it is.
    pub(super) lookup_at: Option<Option<Time>>,
}

/// What a batch makes of a run.
#[derive(Clone, Debug)]
pub(super) struct ChangedRun {
    /// For a run that is new.
    pub(super) info: Option<RunInfo>,
    pub(super) seq: u64,
    pub(super) made: i64,
    pub(super) at: Time,
    pub(super) started: bool,
}

/// What a batch makes of a place in the cache, in the order in which it is to be done.
#[derive(Clone, Debug)]
pub(super) enum CacheChange {
    Put(aloft_core::CacheEntry),
    Hold(Reservation),
    Release(String),
}

/// The outcome of a batch.
#[derive(Debug, Default)]
pub(super) struct Decided {
    pub(super) answers: Vec<Result<Reply, SubmitError>>,
    pub(super) events: Vec<Appended>,
    pub(super) runs: BTreeMap<RunKey, ChangedRun>,
    pub(super) actions: HashMap<RunKey, HashMap<ActionName, Changed>>,
    /// By digest, each with the run that brings it.
    pub(super) blobs: BTreeMap<String, (RunKey, Blob)>,
    pub(super) cache: Vec<(Place, Scope, CacheChange)>,
    pub(super) missing: Missing,
    /// What there is to tell of it, if somebody listens.
    pub(super) seen: Vec<Seen>,
    /// The cache as the batch leaves it.
    cached: HashMap<Place, Cached>,
    /// Children that the batch adds and ends.
    added: HashMap<(RunKey, ActionName), Vec<ActionName>>,
    /// What it adds to queues and places.
    pub(super) loads: HashMap<(Scope, String), Held>,
}

impl Decided {
    pub(super) fn changes_anything(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The numbers that the logs have reached.
    pub(super) fn seqs(&self) -> HashMap<RunKey, u64> {
        self.runs.iter().map(|(key, run)| (key.clone(), run.seq)).collect()
    }
}

/// Decides every command, or says what is missing.
pub(super) fn all(known: &Known, submissions: &[Submission], observer: Option<&dyn Observer>, now: Time) -> Decided {
    let mut decided = Decided::default();
    for submission in submissions {
        let answer = one(known, &mut decided, submission, observer, now);
        decided.answers.push(answer);
    }
    decided
}

fn one(
    known: &Known,
    decided: &mut Decided,
    submission: &Submission,
    observer: Option<&dyn Observer>,
    now: Time,
) -> Result<Reply, SubmitError> {
    let Submission { run, command, blobs, site_revision, turn } = submission;
    if turn.is_some() && *turn != known.turn {
        return Err(SubmitError::Store(StoreError::TurnOver));
    }
    if site_revision.is_some() && *site_revision != known.site_revision {
        return Err(Refusal::Outdated.into());
    }
    let before = decided.runs.get(run).cloned();
    let before = before.or_else(|| {
        known.runs.get(run).map(|r| ChangedRun { info: None, seq: r.seq, made: r.made, at: r.at, started: r.started })
    });
    // Clocks of several machines differ; within a log time does not run backwards.
    let now = before.as_ref().map_or(now, |r| now.max(r.at));
    let look = Look { known, decided, run, missing: RefCell::default() };
    let decision = decide(&look, command, now);
    let missing = look.missing.into_inner();
    if !missing.is_empty() {
        decided.missing.children.extend(missing.children);
        decided.missing.cached.extend(missing.cached);
        return Ok(Reply::Unchanged);
    }
    let decision = decision?;
    if let Command::LookUp { action, .. } = command {
        park(known, decided, run, action, now);
    }
    if decision.events.is_empty() {
        return Ok(decision.reply);
    }
    let mut after = match before {
        Some(found) => found,
        None => ChangedRun { info: Some(new_run(run, &decision.events)?), seq: 0, made: 0, at: now, started: false },
    };
    decided.blobs.extend(blobs.iter().map(|b| (b.digest.clone(), (run.clone(), b.clone()))));
    for event in decision.events {
        after.seq += 1;
        after.at = now;
        change(known, decided, run, &mut after, &event, observer, now)?;
        let logged = Arc::new(Logged { seq: after.seq, at: now, event });
        decided.events.push(Appended { run: run.clone(), logged });
    }
    decided.runs.insert(run.clone(), after);
    Ok(decision.reply)
}

fn new_run(run: &RunKey, events: &[Event]) -> Result<RunInfo, StoreError> {
    match events.first() {
        Some(Event::Created { run: Some(info), .. }) => Ok(info.as_ref().clone()),
        _ => Err(StoreError::Corrupt(format!("the log of run {run} does not begin with its creation"))),
    }
}

/// Puts off the lookup of an action that has to wait for another's result, until that one gives its reservation back or
/// lets it lapse.
fn park(known: &Known, decided: &mut Decided, run: &RunKey, name: &ActionName, now: Time) {
    let look = Look { known, decided, run, missing: RefCell::default() };
    let Some(state) = look.action(name) else { return };
    if !state.pending_lookup().is_some_and(|plan| plan.serialize) {
        return;
    }
    let found = look.cache(state);
    let Some(holder) = found.holder.filter(|h| h.owner != found.me && h.holds(now)) else { return };
    let state = state.clone();
    let mut changed = current(known, decided, run, &state);
    changed.lookup_at = Some(holder.expires_at);
    decided.actions.entry(run.clone()).or_default().insert(name.clone(), changed);
}

/// An action as the batch has left it so far, to change it further.
fn current(known: &Known, decided: &Decided, run: &RunKey, state: &ActionState) -> Changed {
    if let Some(changed) = decided.actions.get(run).and_then(|a| a.get(&state.name)) {
        return changed.clone();
    }
    let stored = known.actions.get(run).and_then(|a| a.get(&state.name));
    Changed {
        new: None,
        state: state.clone(),
        at: None,
        open_children: stored.map_or(0, |s| s.open_children),
        lookup_at: None,
    }
}

/// Carries one event out on what the batch has so far.
fn change(
    known: &Known,
    decided: &mut Decided,
    run: &RunKey,
    after: &mut ChangedRun,
    event: &Event,
    observer: Option<&dyn Observer>,
    now: Time,
) -> Result<(), StoreError> {
    let name = event.action();
    // Taken out while it changes: states are large, and are copied once for each event.
    let taken = decided.actions.get_mut(run).and_then(|actions| actions.remove(name));
    let stored = known.actions.get(run).and_then(|actions| actions.get(name));
    let before = taken.as_ref().map(|changed| &changed.state).or(stored.map(|stored| &stored.state));
    let Some(state) = apply(before.cloned(), event, now) else {
        if let Some(taken) = taken {
            put(decided, run, taken);
        }
        return Err(StoreError::Corrupt(format!("event {} of run {run} does not fit action {name}", after.seq)));
    };
    if let Some(observer) = observer {
        Seen::add(&mut decided.seen, observer, run, before.map(Was::of), event, &state, now);
    }
    for effect in effects(run, before, &state, now) {
        record(known, decided, run, &effect);
    }
    let pending = state.pending_lookup().is_some();
    let mut lookup_at = taken.as_ref().and_then(|changed| changed.lookup_at);
    match before {
        None => lookup_at = Some(pending.then_some(now)),
        Some(_) if !pending => lookup_at = Some(None),
        Some(_) => {}
    }
    let (new, open_children) = match (&taken, stored) {
        (Some(changed), _) => (changed.new, changed.open_children),
        (None, Some(stored)) => (None, stored.open_children),
        (None, None) => {
            let place = after.made;
            after.made += 1;
            (Some(place), 0)
        }
    };
    if name.is_root() {
        after.started |= state.live_lease().is_some();
    }
    let (was, is) = (before.is_some_and(|b| !b.phase.is_terminal()), !state.phase.is_terminal());
    if let Some(parent) = state.parent().filter(|_| was != is) {
        count_child(known, decided, run, parent, name, is);
    }
    count_load(decided, run, before, &state);
    put(decided, run, Changed { new, state, at: Some(now), open_children, lookup_at });
    Ok(())
}

/// Puts an action as the batch has left it so far with the others of its run.
fn put(decided: &mut Decided, run: &RunKey, changed: Changed) {
    let name = changed.state.name.clone();
    match decided.actions.get_mut(run) {
        Some(actions) => drop(actions.insert(name, changed)),
        None => drop(decided.actions.insert(run.clone(), HashMap::from([(name, changed)]))),
    }
}

fn find<'d>(known: &'d Known, decided: &'d Decided, run: &RunKey, name: &ActionName) -> Option<&'d ActionState> {
    if let Some(changed) = decided.actions.get(run).and_then(|a| a.get(name)) {
        return Some(&changed.state);
    }
    known.actions.get(run)?.get(name).map(|s| &s.state)
}

fn count_child(
    known: &Known,
    decided: &mut Decided,
    run: &RunKey,
    parent: &ActionName,
    child: &ActionName,
    begins: bool,
) {
    if decided.actions.get(run).is_none_or(|actions| !actions.contains_key(parent)) {
        let Some(state) = find(known, decided, run, parent).cloned() else { return };
        let changed = current(known, decided, run, &state);
        put(decided, run, changed);
    }
    if let Some(changed) = decided.actions.get_mut(run).and_then(|actions| actions.get_mut(parent)) {
        changed.open_children += if begins { 1 } else { -1 };
    }
    let key = (run.clone(), parent.clone());
    let added = decided.added.entry(key).or_default();
    if begins {
        added.push(child.clone());
    } else {
        added.retain(|name| name != child);
    }
}

/// Keeps what queues hold, for the decisions that follow in the batch. Exact enough for a depth: who waits or runs.
fn count_load(decided: &mut Decided, run: &RunKey, before: Option<&ActionState>, after: &ActionState) {
    let Some(queue) = after.queue() else { return };
    let held = |s: &ActionState| match (s.phase.is_terminal(), s.live_lease().is_some()) {
        (true, _) => (0, 0),
        (false, true) => (0, 1),
        (false, false) => (1, 0),
    };
    let (was, is) = (before.map_or((0, 0), held), held(after));
    let load = decided.loads.entry((run.scope.clone(), queue.to_owned())).or_default();
    load.waiting += is.0 - was.0;
    load.counted += is.1 - was.1;
}

fn record(known: &Known, decided: &mut Decided, run: &RunKey, effect: &Effect<'_>) {
    let (plan, change) = match effect {
        Effect::Cache { plan, entry } => (*plan, CacheChange::Put(entry.clone())),
        Effect::Reserve { plan, reservation } => (*plan, CacheChange::Hold(reservation.clone())),
        Effect::Release { plan, owner } => (*plan, CacheChange::Release(owner.clone())),
    };
    let place = Place::of(&run.scope, plan);
    let cached = decided.cached.entry(place.clone());
    let cached = cached.or_insert_with(|| known.cached.get(&place).cloned().unwrap_or_default());
    match &change {
        CacheChange::Put(entry) => drop(cached.entries.insert(run.scope.domain.clone(), entry.clone())),
        CacheChange::Hold(reservation) => cached.holder = Some(reservation.clone()),
        CacheChange::Release(owner) => cached.holder = cached.holder.take().filter(|h| h.owner != *owner),
    }
    decided.cache.push((place, run.scope.clone(), change));
}

/// What a decision looks at: the batch so far, over what is known.
struct Look<'l> {
    known: &'l Known,
    decided: &'l Decided,
    run: &'l RunKey,
    missing: RefCell<Missing>,
}

impl Look<'_> {
    fn added(&self, covers: impl Fn(&Scope, &str) -> bool) -> Held {
        self.decided.loads.iter().filter(|((scope, queue), _)| covers(scope, queue)).fold(
            Held::default(),
            |sum, (_, l)| Held { waiting: sum.waiting + l.waiting, counted: sum.counted + l.counted },
        )
    }

    fn room(name: String, depth: Option<u32>, held: Held, added: Held) -> QueueRoom {
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        QueueRoom {
            name,
            closed: None,
            depth,
            waiting: count(held.waiting + added.waiting),
            running: count(held.counted + added.counted),
        }
    }
}

impl View for Look<'_> {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        find(self.known, self.decided, self.run, name)
    }

    fn open_children(&self, name: &ActionName) -> EndedBelow {
        let stored = self.known.actions.get(self.run).and_then(|a| a.get(name));
        let changed = self.decided.actions.get(self.run).and_then(|a| a.get(name));
        let count = changed.map_or_else(|| stored.map_or(0, |s| s.open_children), |c| c.open_children);
        if count <= 0 {
            return EndedBelow::default();
        }
        let key = (self.run.clone(), name.clone());
        let mut names = Vec::new();
        if stored.is_some_and(|s| s.open_children > 0) {
            match self.known.children.get(&key) {
                Some(found) => names.extend(found.iter().cloned()),
                None => drop(self.missing.borrow_mut().children.insert(key.clone())),
            }
        }
        names.extend(self.decided.added.get(&key).into_iter().flatten().cloned());
        names.retain(|child| self.action(child).is_none_or(|c| !c.phase.is_terminal()));
        names.truncate(EndedBelow::NAMES);
        EndedBelow { count: count.unsigned_abs(), names }
    }

    fn cache(&self, state: &ActionState) -> CacheView {
        let me = Reservation::owner_of(self.run, &state.name);
        let Some(plan) = state.pending_lookup() else { return CacheView { me, ..CacheView::default() } };
        let place = Place::of(&self.run.scope, plan);
        let Some(cached) = self.decided.cached.get(&place).or_else(|| self.known.cached.get(&place)) else {
            self.missing.borrow_mut().cached.insert(place);
            return CacheView { me, ..CacheView::default() };
        };
        let entries = cache::usable(&cached.entries, &self.run.scope.domain, plan.scope);
        CacheView { entries, holder: cached.holder.clone(), me }
    }

    fn queue(&self, name: &str) -> Option<QueueRoom> {
        let org = &self.run.scope.org;
        let (queue, held) = self.known.queues.get(&(org.clone(), name.to_owned()))?;
        let depth = Some(queue.spec.limits.depth.unwrap_or(aloft_core::DEFAULT_DEPTH));
        let added = self.added(|scope, queue| scope.org == *org && queue == name);
        let room = Self::room(format!("queue {name}"), depth, *held, added);
        Some(QueueRoom { closed: Known::closed(queue), ..room })
    }

    fn places(&self) -> Vec<QueueRoom> {
        let limits = self.known.places.get(&self.run.scope).into_iter().flatten();
        let rooms = limits.filter(|(limits, _)| limits.depth.is_some()).map(|(limits, held)| {
            let name = match limits.domain.as_str() {
                "" => format!("project {}", limits.project),
                domain => format!("domain {domain} of project {}", limits.project),
            };
            let added = self.added(|scope, _| {
                let project = scope.org == limits.org && scope.project == limits.project;
                project && (limits.domain.is_empty() || scope.domain == limits.domain)
            });
            Self::room(name, limits.depth, *held, added)
        });
        rooms.collect()
    }
}
