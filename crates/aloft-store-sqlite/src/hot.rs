//! What the writer has under its hands: the runs and actions that commands touch, as they are after the commands before.
//!
//! There is one writer, so what it has read or written stays true until it changes it. A command is decided on these states,
//! and what it changes is written once for a batch: a parent of which a hundred children end in one commit is one row. What
//! a statement reads or changes beside that is written first ([`Hot::flush`]). If a batch fails, all is forgotten.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
};

use aloft_core::{
    ActionName, ActionState, CacheView, Command, EndedBelow, Event, QueueRoom, Refusal, Reply, Reservation, RunKey,
    Scope, Time, View, Was, apply, decide, effects,
};
use aloft_store::{Committed, Observer, Seen, Share, StoreError, Submission, SubmitError, shared_blob};
use rusqlite::Transaction;

use crate::{cache, children, error, lanes, places, save};

/// Most actions that are kept from one batch to the next: some 15 MB. What is under way between two batches is less.
const MAX_KEPT: usize = 8192;

/// Most digests of stored blobs that are remembered.
const MAX_BLOBS: usize = 4096;

/// A run.
pub(crate) struct HotRun {
    pub(crate) id: i64,
    pub(crate) seq: u64,
    created_at: Time,
    /// Whether its root has been handed out.
    pub(crate) started: bool,
    /// Whether its root has ended.
    pub(crate) ended: bool,
    /// What the batch adds to its actions that count.
    pub(crate) in_flight: i64,
    actions: HashMap<ActionName, HotAction>,
}

impl HotRun {
    /// A run of this row, as it is before its first event.
    pub(crate) fn new(id: i64, created_at: Time) -> Self {
        Self { id, seq: 0, created_at, started: false, ended: false, in_flight: 0, actions: HashMap::new() }
    }
}

/// An action.
pub(crate) struct HotAction {
    /// Its row, once it has one.
    pub(crate) row: Option<i64>,
    pub(crate) state: ActionState,
    pub(crate) open_children: i64,
    /// What of it is not written yet.
    pub(crate) unwritten: Unwritten,
    /// The batch that last touched it.
    batch: u64,
}

/// What of an action is not written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwritten {
    Nothing,
    /// How many of its children have not ended.
    Children,
    /// Everything.
    State,
}

/// What a batch changed, to wake watchers once it is committed.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) runs: HashMap<RunKey, u64>,
    pub(crate) pos: Option<u64>,
    /// Whether a submission has begun to write and not finished.
    pub(crate) half_written: bool,
    /// What there is to tell of it, if somebody listens.
    pub(crate) committed: Committed,
}

/// The states under change.
pub(crate) struct Hot {
    runs: HashMap<RunKey, HotRun>,
    /// How many actions are in `runs`.
    size: usize,
    /// Number of the batch, from 1.
    batch: u64,
    /// What is not written yet, in the order in which it was first changed: rows are numbered in the order of creation.
    unwritten: Vec<(RunKey, ActionName)>,
    unwritten_runs: HashSet<RunKey>,
    /// What has ended in the batch: nobody will touch it again.
    ended: Vec<(RunKey, ActionName)>,
    /// What the batch adds to what queues hold.
    shares: BTreeMap<(Scope, String), Share>,
    children: children::Deltas,
    /// The newest run of each task that the batch makes actions of.
    task_runs: BTreeMap<save::TaskKey, i64>,
    /// Blobs that are stored.
    blobs: HashSet<String>,
    /// The run and the shared blob whose use was noted last: most actions are started beside others of their kind.
    noted: Option<(i64, String)>,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            runs: HashMap::new(),
            size: 0,
            batch: 1,
            unwritten: Vec::new(),
            unwritten_runs: HashSet::new(),
            ended: Vec::new(),
            shares: BTreeMap::new(),
            children: HashMap::new(),
            task_runs: BTreeMap::new(),
            blobs: HashSet::new(),
            noted: None,
        }
    }
}

/// What a decision looks at.
struct Looking<'l> {
    tx: &'l Transaction<'l>,
    run: &'l RunKey,
    hot: Option<&'l HotRun>,
    shares: &'l BTreeMap<(Scope, String), Share>,
    /// The first read that failed. The decision made without it is thrown away.
    failure: RefCell<Option<StoreError>>,
}

impl Looking<'_> {
    fn read<T: Default>(&self, read: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> T {
        read(self.tx).unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            T::default()
        })
    }

    fn added(&self, covers: impl Fn(&Scope, &str) -> bool) -> Share {
        let mut sum = Share::default();
        let covered = self.shares.iter().filter(|((scope, queue), _)| covers(scope, queue));
        covered.for_each(|(_, share)| sum.add(*share));
        sum
    }
}

impl View for Looking<'_> {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        self.hot?.actions.get(name).map(|a| &a.state)
    }

    fn open_children(&self, name: &ActionName) -> EndedBelow {
        let Some(hot) = self.hot else { return EndedBelow::default() };
        match hot.actions.get(name).map_or(0, |a| a.open_children) {
            count if count <= 0 => EndedBelow::default(),
            count => {
                let names = self.read(|tx| lanes::first_children(tx, hot.id, name));
                EndedBelow { count: count.unsigned_abs(), names }
            }
        }
    }

    fn cache(&self, state: &ActionState) -> CacheView {
        let me = Reservation::owner_of(self.run, &state.name);
        let Some(plan) = state.pending_lookup() else { return CacheView { me, ..CacheView::default() } };
        self.read(|tx| {
            let entries = cache::entries(tx, &self.run.scope, plan)?;
            let holder = cache::holder(tx, &cache::place(&self.run.scope, plan))?;
            Ok(CacheView { entries, holder, me })
        })
    }

    fn queue(&self, name: &str) -> Option<QueueRoom> {
        let org = &self.run.scope.org;
        let added = self.added(|scope, queue| scope.org == *org && queue == name);
        self.read(|tx| lanes::queue_room(tx, org, name, added))
    }

    fn places(&self) -> Vec<QueueRoom> {
        let here = &self.run.scope;
        self.read(|tx| {
            lanes::place_rooms(tx, here, |domain| {
                self.added(|scope, _| {
                    scope.org == here.org
                        && scope.project == here.project
                        && (domain.is_empty() || scope.domain == domain)
                })
            })
        })
    }
}

/// The action that a command may end, with its children.
fn may_end(command: &Command) -> Option<&ActionName> {
    match command {
        Command::Report { action, .. }
        | Command::Abort { action, .. }
        | Command::CheckLimits { action }
        | Command::Track { action, .. } => Some(action),
        _ => None,
    }
}

impl Hot {
    /// Decides a command and carries it out.
    pub(crate) fn submit(
        &mut self,
        tx: &Transaction<'_>,
        submission: &Submission,
        observer: Option<&dyn Observer>,
        touched: &mut Touched,
        now: Time,
    ) -> Result<Reply, SubmitError> {
        // Nobody else has turns here.
        let Submission { run, command, blobs, site_revision, turn: _ } = submission;
        if let Some(site_revision) = site_revision
            && places::revision(tx).map_err(error::from_sqlite)? != *site_revision
        {
            return Err(Refusal::Outdated.into());
        }
        self.load(tx, run, command)?;
        let parent = may_end(command).and_then(|name| self.runs.get(run)?.actions.get(name));
        if parent.is_some_and(|a| a.open_children > 0) {
            // The decision names its children, as they are by now.
            touched.half_written = true;
            self.flush(tx, now)?;
            touched.half_written = false;
        }
        let view = Looking { tx, run, hot: self.runs.get(run), shares: &self.shares, failure: RefCell::default() };
        let decision = decide(&view, command, now);
        if let Some(failure) = view.failure.take() {
            return Err(failure.into());
        }
        let parked = match command {
            Command::LookUp { action, .. } => waits_for(&view, action, now),
            _ => None,
        };
        if let Some(failure) = view.failure.take() {
            return Err(failure.into());
        }
        let decision = decision?;
        touched.half_written = true;
        if let (Command::LookUp { action, .. }, Some(until)) = (command, parked) {
            self.flush(tx, now)?;
            let run_id = self.runs.get(run).map_or(0, |r| r.id);
            save::put_off(tx, run_id, action, until)?;
        }
        if decision.events.is_empty() {
            touched.half_written = false;
            return Ok(decision.reply);
        }
        let run_id = match self.runs.get(run) {
            Some(hot) => hot.id,
            None => {
                let id = save::insert_run(tx, run, &decision.events, now)?;
                self.runs.insert(run.clone(), HotRun::new(id, now));
                id
            }
        };
        for blob in blobs.iter().filter(|b| !self.blobs.contains(&b.digest)) {
            save::blob(tx, blob, run_id)?;
        }
        self.blobs.extend(blobs.iter().map(|b| b.digest.clone()));
        for event in &decision.events {
            touched.pos = Some(self.change(tx, run, event, observer, &mut touched.committed, now)?);
        }
        touched.runs.insert(run.clone(), self.runs.get(run).map_or(0, |r| r.seq));
        touched.half_written = false;
        Ok(decision.reply)
    }

    /// Reads what the command touches and everything above it. The root comes too: it tells a missing run from a missing
    /// action.
    fn load(&mut self, tx: &Transaction<'_>, run: &RunKey, command: &Command) -> Result<(), StoreError> {
        if !self.runs.contains_key(run) {
            let Some(found) = save::find_run(tx, run)? else { return Ok(()) };
            self.runs.insert(run.clone(), found);
        }
        let Some(hot) = self.runs.get_mut(run) else { return Ok(()) };
        let mut wanted = command.touches();
        wanted.push(ActionName::root());
        while let Some(name) = wanted.pop() {
            if let Some(known) = hot.actions.get_mut(&name) {
                if known.batch < self.batch {
                    known.batch = self.batch;
                    wanted.extend(known.state.ancestors.iter().cloned());
                }
                continue;
            }
            if let Some((row, state, open_children)) = save::load(tx, hot.id, &name)? {
                wanted.extend(state.ancestors.iter().cloned());
                let action = HotAction {
                    row: Some(row),
                    state,
                    open_children,
                    unwritten: Unwritten::Nothing,
                    batch: self.batch,
                };
                self.size += 1;
                hot.actions.insert(name, action);
            }
        }
        Ok(())
    }

    /// Carries one event out, and returns its place in the feed.
    fn change(
        &mut self,
        tx: &Transaction<'_>,
        run: &RunKey,
        event: &Event,
        observer: Option<&dyn Observer>,
        committed: &mut Committed,
        now: Time,
    ) -> Result<u64, StoreError> {
        let name = event.action();
        let hot = self.runs.get_mut(run).ok_or_else(|| StoreError::Corrupt(format!("run {run} is not there")))?;
        hot.seq += 1;
        let seq = hot.seq;
        let known = hot.actions.remove(name);
        let share = known.as_ref().map(|a| Share::of(&a.state, a.open_children, hot.started)).unwrap_or_default();
        // Only what may have effects is kept as it was.
        let cached = known.as_ref().filter(|a| a.state.task().is_some_and(|t| t.cache.is_some()));
        let before = cached.map(|a| a.state.clone());
        let was = known.as_ref().map(|a| Was::of(&a.state));
        let phase = known.as_ref().map(|a| a.state.phase);
        let (row, open_children, unwritten, state) = match known {
            Some(a) => (a.row, a.open_children, a.unwritten, Some(a.state)),
            None => (None, 0, Unwritten::Nothing, None),
        };
        let state = apply(state, event, now)
            .ok_or_else(|| StoreError::Corrupt(format!("event {seq} of run {run} does not fit action {name}")))?;
        let pos = save::append(tx, hot.id, seq, event, now)?;
        committed.events += 1;
        if let Some(observer) = observer {
            Seen::add(&mut committed.seen, observer, run, was, event, &state, now);
        }
        if unwritten == Unwritten::Nothing {
            self.unwritten.push((run.clone(), name.clone()));
        }
        self.unwritten_runs.insert(run.clone());
        if name.is_root() {
            hot.started |= state.live_lease().is_some();
            hot.ended = state.phase.is_terminal();
        }
        let after = Share::of(&state, open_children, hot.started);
        hot.in_flight += after.counted - share.counted;
        if let Some(queue) = state.queue().filter(|_| after != share) {
            add(&mut self.shares, run, queue, after, share);
        }
        children::count(&mut self.children, hot.id, phase, &state);
        if phase.is_none() {
            save::newest_run(&mut self.task_runs, run, hot.id, &state);
            if let Some(digest) = shared_blob(&state)
                && self.noted.as_ref().is_none_or(|(noted, last)| *noted != hot.id || last != digest)
            {
                save::blob_use(tx, run, hot.created_at, digest)?;
                self.noted = Some((hot.id, digest.to_owned()));
            }
        }
        let (was, is) = (phase.is_some_and(|p| !p.is_terminal()), !state.phase.is_terminal());
        let parent = state.parent().filter(|_| was != is).cloned();
        self.size += usize::from(phase.is_none());
        let batch = self.batch;
        let mut keep = |state| {
            let kept = HotAction { row, state, open_children, unwritten: Unwritten::State, batch };
            hot.actions.insert(name.clone(), kept);
        };
        let found = effects(run, before.as_ref(), &state, now);
        if found.is_empty() {
            drop(found);
            keep(state);
        } else {
            keep(state.clone());
            // They wake others that wait for the same result.
            self.flush(tx, now)?;
            for effect in &found {
                cache::carry_out(tx, &run.scope, effect, now)?;
            }
        }
        if let Some(parent) = parent {
            self.count_child(tx, run, &parent, if is { 1 } else { -1 })?;
        }
        Ok(pos)
    }

    /// Counts a child that begins or ends.
    fn count_child(
        &mut self,
        tx: &Transaction<'_>,
        run: &RunKey,
        parent: &ActionName,
        by: i64,
    ) -> Result<(), StoreError> {
        let Some(hot) = self.runs.get_mut(run) else { return Ok(()) };
        if !hot.actions.contains_key(parent) {
            let Some((row, state, open_children)) = save::load(tx, hot.id, parent)? else { return Ok(()) };
            // Of batch 0: what is above it is not read.
            let action = HotAction { row: Some(row), state, open_children, unwritten: Unwritten::Nothing, batch: 0 };
            self.size += 1;
            hot.actions.insert(parent.clone(), action);
        }
        let Some(action) = hot.actions.get_mut(parent) else { return Ok(()) };
        let share = Share::of(&action.state, action.open_children, hot.started);
        action.open_children += by;
        let after = Share::of(&action.state, action.open_children, hot.started);
        hot.in_flight += after.counted - share.counted;
        if let Some(queue) = action.state.queue().filter(|_| after != share) {
            add(&mut self.shares, run, queue, after, share);
        }
        if action.unwritten == Unwritten::Nothing {
            action.unwritten = Unwritten::Children;
            self.unwritten.push((run.clone(), parent.clone()));
        }
        Ok(())
    }

    /// Writes what is not written yet, so that statements find it.
    pub(crate) fn flush(&mut self, tx: &Transaction<'_>, now: Time) -> Result<(), StoreError> {
        for (run, name) in self.unwritten.drain(..) {
            let Some(hot) = self.runs.get_mut(&run) else { continue };
            let Some(action) = hot.actions.get_mut(&name) else { continue };
            save::action(tx, hot.id, action, now)?;
            action.unwritten = Unwritten::Nothing;
            if action.state.phase.is_terminal() && action.open_children == 0 {
                self.ended.push((run, name));
            }
        }
        for run in self.unwritten_runs.drain() {
            let Some(hot) = self.runs.get_mut(&run) else { continue };
            save::run(tx, hot)?;
            hot.in_flight = 0;
        }
        Ok(())
    }

    /// Writes everything that a batch leaves.
    pub(crate) fn finish(&mut self, tx: &Transaction<'_>, now: Time) -> Result<(), StoreError> {
        self.flush(tx, now)?;
        children::write(tx, &std::mem::take(&mut self.children))?;
        save::shares(tx, &std::mem::take(&mut self.shares))?;
        save::task_runs(tx, &std::mem::take(&mut self.task_runs))
    }

    /// Forgets everything, once all of it is written.
    pub(crate) fn forget(&mut self) {
        *self = Self { batch: self.batch + 1, ..Self::default() };
    }

    /// Forgets what will hardly be touched again.
    pub(crate) fn committed(&mut self) {
        for (run, name) in self.ended.drain(..) {
            let Some(hot) = self.runs.get_mut(&run) else { continue };
            if hot.actions.remove(&name).is_some() {
                self.size -= 1;
            }
            if hot.actions.is_empty() {
                self.runs.remove(&run);
            }
        }
        if self.size > MAX_KEPT {
            let batch = self.batch;
            self.runs.values_mut().for_each(|hot| hot.actions.retain(|_, a| a.batch == batch));
            self.runs.retain(|_, hot| !hot.actions.is_empty());
            self.size = self.runs.values().map(|hot| hot.actions.len()).sum();
        }
        if self.blobs.len() > MAX_BLOBS {
            self.blobs.clear();
        }
        self.batch += 1;
    }
}

fn add(shares: &mut BTreeMap<(Scope, String), Share>, run: &RunKey, queue: &str, after: Share, before: Share) {
    let share = shares.entry((run.scope.clone(), queue.to_owned())).or_default();
    share.add(after);
    share.take(before);
}

/// Until when an action has to wait for another's result: until that one gives its reservation back (`None`) or lets it
/// lapse.
fn waits_for(view: &Looking<'_>, name: &ActionName, now: Time) -> Option<Option<Time>> {
    let state = view.action(name).filter(|s| s.pending_lookup().is_some_and(|plan| plan.serialize))?;
    let found = view.cache(state);
    let holder = found.holder.filter(|h| h.owner != found.me && h.holds(now))?;
    Some(holder.expires_at)
}
