//! Limits: what counts against them, what they let go and what they hold back.

use aloft_core::{Phase, ROOT_ACTION, Time};

use super::{Action, Model, Run};
use crate::{
    ids::{ActionId, RunId},
    lanes::Waiting,
    rules::{
        Check,
        answers::Granted,
        lanes::{self, Count},
    },
};

/// How long a limit may hold an action before it is shown, in microseconds.
const PATIENCE: i64 = 250_000;

/// Whose eyes a limit is seen with.
#[derive(Clone, Copy)]
enum Look<'g> {
    /// Who knows for certain what counts.
    Surely,
    /// Who has just handed this out, and goes by records that may not have followed yet.
    After(&'g [Granted]),
    /// Who plans for everything else that waits too.
    Beside,
}

impl Action {
    /// Whether a worker has it, as far as its record says.
    fn is_out(&self) -> bool {
        self.attempts.last().is_some_and(|a| a.holder.is_some())
    }

    /// Whether its record may say that it has not ended.
    fn may_be_open(&self) -> bool {
        self.end.is_none() || !self.settled
    }
}

impl Run {
    fn has_children(&self, name: &str, open: impl Fn(&Action) -> bool) -> bool {
        self.actions.values().any(|a| a.parent.as_deref() == Some(name) && open(a))
    }

    /// Whether an action counts against limits: a worker has it, and it does not only wait for what it started.
    fn counts(&self, name: &str, action: &Action) -> bool {
        action.end.is_none() && action.is_out() && !self.has_children(name, Action::may_be_open)
    }

    /// Whether it may count, for who goes by records that have not followed or plans what comes next.
    fn may_count(&self, name: &str, action: &Action, at: Time) -> bool {
        let out = action.may_be_open() && action.is_out() && !self.has_children(name, |child| child.end.is_none());
        out || action.looks_ready(at)
    }

    /// Whether its first action was ever handed out, and has not ended.
    fn is_under_way(&self) -> bool {
        let started = |a: &Action| a.end.is_none() && a.attempts.iter().any(|a| a.holder.is_some());
        self.actions.get(ROOT_ACTION).is_some_and(started)
    }

    fn waits_to_start(&self, at: Time) -> bool {
        let root = self.actions.get(ROOT_ACTION);
        root.is_some_and(|a| a.attempts.len() == 1 && a.waits(at))
    }
}

impl Model {
    pub(super) fn queue_of(&self, run: &RunId, action: &str) -> Option<&str> {
        self.runs.get(run)?.actions.get(action)?.queue.as_deref()
    }

    /// What queue `name` holds: actions that wait, actions that are out, runs that have started.
    pub(super) fn holds(&self, name: &str) -> [Count; 3] {
        let mut counts = [Count::default(); 3];
        for (id, action, state) in self.all().filter(|(.., a)| a.queue.as_deref() == Some(name)) {
            if !state.may_be_open() {
                continue;
            }
            let started = action == ROOT_ACTION && self.runs.get(id).is_some_and(Run::is_under_way);
            let shares = match self.theirs() {
                true => [(false, true), (false, true), (false, action == ROOT_ACTION)],
                false => {
                    let (live, out) = (state.end.is_none(), state.is_out());
                    // What ended from above as it was handed out was leased, and given to nobody.
                    let leased = out || (!live && !state.looks());
                    [(live && !out, !out), (live && out, leased), (started, started)]
                }
            };
            for (count, (surely, maybe)) in counts.iter_mut().zip(shares) {
                count.least += u64::from(surely);
                count.most += u64::from(maybe);
            }
        }
        counts
    }

    /// What counts against the depth of queue `name`: what waits, and what runs.
    pub(super) fn deep(&self, name: &str) -> Count {
        let [waiting, ..] = self.holds(name);
        let running = self.running(|_, state| state.queue.as_deref() == Some(name), Time::from_micros(i64::MIN));
        if self.theirs() {
            waiting
        } else {
            Count { least: waiting.least + running.least, most: waiting.most + running.most }
        }
    }

    /// How many of the actions that `of` selects count as running.
    fn running(&self, of: impl Fn(&RunId, &Action) -> bool, at: Time) -> Count {
        let mut count = Count::default();
        for (id, run) in &self.runs {
            for (name, action) in run.actions.iter().filter(|(_, a)| of(id, a)) {
                count.least += u64::from(run.counts(name, action));
                count.most += u64::from(run.may_count(name, action, at));
            }
        }
        count
    }

    fn runs_under_way(&self, queue: &str) -> u64 {
        let here = |id: &RunId| self.queue_of(id, ROOT_ACTION) == Some(queue);
        self.runs.iter().filter(|(id, run)| here(id) && run.is_under_way()).count() as u64
    }

    /// After `given` was handed out, every limit that it counts against is kept.
    pub(super) fn check_limits_of(&self, given: &ActionId) -> Check {
        let Some(run) = self.runs.get(&given.run) else { return Ok(()) };
        let Some(state) = run.actions.get(&given.name).filter(|a| run.counts(&given.name, a)) else { return Ok(()) };
        let never = Time::from_micros(i64::MIN);
        if let Some(limit) = run.most {
            let count = self.running(|id, _| *id == given.run, never).least;
            lanes::rule_6_limits_are_kept(&given.run, given, count, limit.into())?;
        }
        let Some((name, queue)) = state.queue.as_ref().and_then(|name| self.queues.get_key_value(name)) else {
            return Ok(());
        };
        if let Some(limit) = queue.spec.actions {
            let count = self.running(|_, a| a.queue.as_ref() == Some(name), never).least;
            lanes::rule_6_limits_are_kept(name, given, count, limit.into())?;
        }
        match queue.spec.runs {
            Some(limit) if given.name == ROOT_ACTION && state.attempts.len() == 1 => {
                let runs = format!("the runs of {name}");
                lanes::rule_6_limits_are_kept(&runs, given, self.runs_under_way(name), limit.into())
            }
            _ => Ok(()),
        }
    }

    /// How many of the actions that `of` selects run, in the eyes of who looks.
    fn count(&self, look: Look<'_>, of: impl Fn(&RunId, &Action) -> bool, at: Time) -> u64 {
        let running = self.running(&of, at);
        let more = match look {
            Look::Surely => return running.least,
            Look::After(granted) => {
                let ids = granted.iter().map(|g| &g.lease.action);
                let found = ids.filter_map(|id| Some((id, self.runs.get(&id.run)?)));
                found
                    .filter_map(|(id, run)| Some((id, run, run.actions.get(&id.name)?)))
                    .filter(|(id, run, a)| of(&id.run, a) && !run.may_count(&id.name, a, at))
                    .count()
            }
            Look::Beside => self.all().filter(|(run, _, a)| a.waits(at) && of(run, a)).count().saturating_sub(1),
        };
        running.most + more as u64
    }

    /// The limits that hold back a waiting action.
    fn obstacles(&self, id: &ActionId, look: Look<'_>, at: Time) -> Vec<String> {
        let mut found = Vec::new();
        let Some(run) = self.runs.get(&id.run) else { return found };
        let Some(queue) = self.queue_of(&id.run, &id.name) else { return found };
        let here = |a: &Action| a.queue.as_deref() == Some(queue);
        let starting = id.name == ROOT_ACTION && run.waits_to_start(at);
        let open = match look {
            Look::Surely => Action::may_be_open,
            _ => |child: &Action| child.end.is_none(),
        };
        // It counts against no limit, so it stands in no line either.
        if !starting && run.has_children(&id.name, open) {
            return found;
        }
        if run.most.is_some_and(|limit| self.count(look, |other, _| *other == id.run, at) >= u64::from(limit)) {
            found.push("max_action_concurrency".to_owned());
        }
        let Some(spec) = self.queues.get(queue).map(|q| q.spec) else { return found };
        if spec.actions.is_some_and(|limit| self.count(look, |_, a| here(a), at) >= u64::from(limit)) {
            found.push(format!("queue {queue}"));
        }
        // A run that may not start holds back what is below its first action too, which nothing has begun.
        let starts = id.name == ROOT_ACTION || !matches!(look, Look::Surely);
        if let Some(limit) = spec.runs.filter(|_| starts && run.waits_to_start(at)) {
            let other = |(other, r): &(&RunId, &Run)| {
                **other != id.run && r.waits_to_start(at) && self.queue_of(other, ROOT_ACTION) == Some(queue)
            };
            let beside = if matches!(look, Look::Beside) { self.runs.iter().filter(other).count() } else { 0 };
            if self.runs_under_way(queue) + beside as u64 >= u64::from(limit) {
                found.push(format!("queue {queue}"));
            }
        }
        found
    }

    /// Whether anything but a worker can hold back what a run has waiting.
    pub(super) fn is_limited(&self, run: &RunId) -> bool {
        self.runs.get(run).is_some_and(|run| {
            let queued = run.actions.values().filter_map(|a| a.queue.as_ref());
            run.most.is_some() || queued.into_iter().any(|name| self.queues.contains_key(name))
        })
    }

    /// A waiting action that no limit holds back, after `granted` were handed out. They have taken their room in the plan,
    /// also those that will not count because of their children.
    pub(super) fn has_room(&self, granted: &[Granted], at: Time) -> Option<ActionId> {
        let waiting = self.all().filter(|(.., a)| a.waits(at)).map(|(run, name, _)| run.action(name));
        waiting.into_iter().find(|id| self.obstacles(id, Look::After(granted), at).is_empty())
    }

    /// The actions that wait for a worker.
    pub fn waiting(&self, at: Time) -> Vec<ActionId> {
        self.all().filter(|(.., a)| a.waits(at)).map(|(run, name, _)| run.action(name)).collect()
    }

    /// Whether nothing was said yet of why an action waits.
    pub fn is_silent(&self, id: &ActionId) -> bool {
        let action = self.runs.get(&id.run).and_then(|run| run.actions.get(&id.name));
        action.and_then(|a| a.attempts.last()).is_some_and(|a| a.phase() == Phase::Queued)
    }

    /// The reconciler looked for what limits hold back, and `told` are those shown so now.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn held_back(&mut self, at: Time, told: &[Waiting]) -> Check {
        let mut moved = Vec::new();
        for id in self.waiting(at) {
            let Some(action) = self.runs.get(&id.run).and_then(|run| run.actions.get(&id.name)) else { continue };
            let Some(attempt) = action.attempts.last() else { continue };
            let long = at.as_micros() - attempt.ready.as_micros() >= PATIENCE;
            let said = told.iter().find(|(told, _)| *told == id).map(|(_, said)| said);
            let surely = long && !self.obstacles(&id, Look::Surely, at).is_empty();
            let may = if long { self.obstacles(&id, Look::Beside, at) } else { Vec::new() };
            lanes::rule_9_what_is_held_back_is_shown(&id, said.is_some(), surely)?;
            if attempt.phase() != Phase::Queued {
                // It may have waited for a result before.
                if let Some(said) = said.filter(|_| surely) {
                    lanes::rule_9_what_is_held_back_says_by_what(&id, said, &may)?;
                }
                continue;
            }
            lanes::rule_9_nothing_else_is_shown_as_held_back(&id, said.is_some(), !may.is_empty())?;
            if let Some(said) = said {
                lanes::rule_9_what_is_held_back_says_by_what(&id, said, &may)?;
                moved.push(id);
            }
        }
        for id in moved {
            if let Some(action) = self.runs.get_mut(&id.run).and_then(|run| run.actions.get_mut(&id.name)) {
                action.advance(Phase::WaitingForResources, at);
            }
        }
        Ok(())
    }
}
