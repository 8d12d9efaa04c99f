//! What views of an action must show, and what is learnt from them.

use aloft_core::{Phase, Time};

use super::{Action, Cached, DISABLED, Looked, Model, Run, Why, client::trace_times, elsewhere};
use crate::{
    ids::{ActionId, RAISED, output_prefix},
    rules::{Check, durable, reuse, signals, views},
    seen::{Details, SeenAttempt, Shown},
    step::Kind,
};

/// `ActionType` numbers.
const TASK: i32 = 1;
const TRACE: i32 = 2;
const CONDITION: i32 = 3;

/// The name of a simulated function.
pub fn function(kind: &Kind) -> String {
    match kind {
        Kind::Task(work) => format!("task{}", work.task),
        Kind::Trace { name, .. } => format!("traced{name}"),
        Kind::Condition(condition) => condition.title(),
    }
}

fn number(kind: &Kind) -> i32 {
    match kind {
        Kind::Task(_) => TASK,
        Kind::Trace { .. } => TRACE,
        Kind::Condition(_) => CONDITION,
    }
}

fn millis(from: Time, to: Time) -> u64 {
    u64::try_from(to.as_micros().saturating_sub(from.as_micros()).max(0) / 1000).unwrap_or(0)
}

impl Model {
    fn action(&self, id: &ActionId) -> Check<(&Run, &Action)> {
        let found = self.runs.get(&id.run).and_then(|run| Some((run, run.actions.get(&id.name)?)));
        durable::rule_3_what_is_shown_was_made(id, found)
    }

    /// Compares what lists and streams show of an action.
    ///
    /// # Errors
    /// What is shown and not believed.
    pub fn observe_shown(&mut self, shown: &Shown) -> Check {
        let (run, action) = self.action(&shown.id)?;
        if action.is_condition() {
            let signalled = action.end.as_ref().is_some_and(|end| matches!(end.why, Why::Signalled(_)));
            signals::rule_5_nothing_but_a_signal_succeeds_a_condition(shown, signalled, action.recovered.is_some())?;
        }
        let root = action.parent.is_none();
        let relation = run.reuse.from.as_ref().filter(|_| root).map(|from| (from.run.clone(), from.kind()));
        durable::rule_3_views_show_what_was_done(&shown.id, &shown.relation, &relation)?;
        reuse::rule_2_forced_actions_run_again(shown, run.forces(&shown.id.name))?;
        durable::rule_3_views_show_what_was_done(&shown.id, &shown.elsewhere, &run.is_elsewhere())?;
        let certain = (
            action.parent.clone().unwrap_or_default(),
            action.group.clone(),
            number(&action.kind),
            function(&action.kind),
        );
        let told = (shown.parent.clone(), shown.group.clone(), shown.kind, shown.function.clone());
        durable::rule_3_views_show_what_was_done(&shown.id, &told, &certain)?;
        if self.moves_by_itself(run, action) {
            return self.learn(shown);
        }
        let source = run.reuse.from.as_ref().filter(|from| from.recover.is_some()).map(|from| &from.run);
        reuse::rule_2_what_is_recovered_had_succeeded(shown, source, |id| self.achieved(id))?;
        let recovered = action.recovered.as_ref().map(|r| &r.from);
        reuse::rule_2_what_succeeded_is_recovered(shown, recovered)?;
        durable::rule_3_views_show_what_was_done(&shown.id, &shown.recovered.as_ref(), &recovered)?;
        let cache = action.cache.as_ref().map_or(DISABLED, Cached::status);
        durable::rule_3_views_show_what_was_done(&shown.id, &shown.cache, &cache)?;
        if self.theirs() && run.is_elsewhere() {
            // The times are somebody else's clock's.
            let (done, told) = (action.phase(), Some(shown.phase));
            durable::rule_3_views_show_what_was_done(&shown.id, &told, &done)?;
            return durable::rule_3_views_show_what_was_done(
                &shown.id,
                &(shown.attempts as usize),
                &action.attempts.len(),
            );
        }
        let end = action.end.as_ref().and_then(|e| e.at);
        let done =
            (action.phase(), action.created, end, action.attempts.len(), end.map(|at| millis(action.created, at)));
        let told = (Some(shown.phase), shown.start, shown.end, shown.attempts as usize, shown.duration);
        durable::rule_3_views_show_what_was_done(&shown.id, &told, &done)
    }

    /// Whether somebody else's hands or clock may have moved it since we looked.
    fn moves_by_itself(&self, run: &Run, action: &Action) -> bool {
        self.theirs() && !run.is_elsewhere() && !matches!(action.kind, Kind::Trace { .. })
    }

    /// What somebody else's hands and clock have done to an action since we looked.
    fn learn(&mut self, shown: &Shown) -> Check {
        let theirs = self.theirs();
        let (_, action) = self.action(&shown.id)?;
        if let Some(end) = &action.end {
            views::rule_5_an_end_stays(shown, end.phase)?;
        }
        let Some(run) = self.runs.get_mut(&shown.id.run).filter(|_| shown.phase.is_terminal()) else { return Ok(()) };
        if let Some(action) = run.actions.get_mut(&shown.id.name) {
            let why = action.end.take().map_or(Why::Itself(None), |end| end.why);
            action.end = Some(super::End { phase: Some(shown.phase), at: shown.end, why });
        }
        run.cascade(&shown.id.name, theirs);
        Ok(())
    }

    /// Compares everything that is shown of an action.
    ///
    /// # Errors
    /// What is shown and not believed.
    pub fn observe(&mut self, details: &Details) -> Check {
        self.observe_shown(&details.shown)?;
        reuse::rule_1_the_cache_status_agrees(details)?;
        if !self.theirs() {
            reuse::rule_2_a_hit_is_of_what_succeeded_before(details, |id, attempt| self.computed(id, attempt))?;
        }
        let (run, action) = self.action(&details.shown.id)?;
        observe_condition(action, details)?;
        if self.moves_by_itself(run, action) {
            // Of what somebody else's hands did, only our own words are known.
            // What is above it may have ended a moment before; aborting it was no more than success then.
            let above = action.parent.is_some() && details.aborted.as_ref().is_some_and(|why| why.contains("above it"));
            let ours = action.end.as_ref().is_some_and(|end| match end.why {
                Why::Asked(_) => !above,
                Why::Signalled(_) => true,
                Why::Itself(_) | Why::Above(_) => false,
            });
            return if ours { observe_end(action, details) } else { Ok(()) };
        }
        observe_end(action, details)?;
        if self.theirs() && run.is_elsewhere() {
            return elsewhere::observe_attempts(action, details);
        }
        observe_attempts(action, details)
    }
}

fn observe_end(action: &Action, details: &Details) -> Check {
    let code = details.error.as_ref().map(|e| e.code.clone());
    let aborted = details.aborted.as_deref();
    let right = match action.end.as_ref().map(|e| &e.why) {
        None => code.is_none() && aborted.is_none(),
        Some(Why::Itself(expected)) => code == *expected && aborted.is_none(),
        Some(Why::Signalled(_)) => code.is_none() && aborted.is_none(),
        Some(Why::Asked(words)) => aborted == Some(words.as_str()),
        // It says which action took it along.
        Some(Why::Above(above)) => aborted.is_some_and(|reason| reason.contains(above.as_str())),
    };
    views::rule_9_an_end_says_why(details, right, &action.end)
}

/// What it waits for, and what it was told by whom.
fn observe_condition(action: &Action, details: &Details) -> Check {
    let declared = match &action.kind {
        Kind::Condition(condition) => Some(condition.clone()),
        Kind::Task(_) | Kind::Trace { .. } => None,
    };
    durable::rule_3_views_show_what_was_done(&details.shown.id, &details.condition, &declared)?;
    signals::rule_3_a_signal_is_shown_with_its_value(details, action.value())?;
    signals::rule_9_a_signal_says_who_gave_it(details)
}

fn observe_attempts(action: &Action, details: &Details) -> Check {
    let id = &details.shown.id;
    if let (Kind::Trace { failed, .. }, None) = (&action.kind, action.reported) {
        // A trace ran once, in its parent's process.
        let phase = match &action.recovered {
            Some(_) => Phase::Recovered,
            None if *failed => Phase::Failed,
            None => Phase::Succeeded,
        };
        let told: Vec<_> = details.attempts.iter().map(|a| (a.number, a.phase, a.end)).collect();
        return durable::rule_3_views_show_what_was_done(id, &told, &vec![(1, phase, Some(trace_times().1))]);
    }
    let code = |a: &SeenAttempt| a.error.as_ref().map(|e| e.code.clone());
    let told: Vec<_> =
        details.attempts.iter().map(|a| (a.number, a.phase, &a.phases, a.output.as_str(), code(a), a.cache)).collect();
    let last = action.attempts.len();
    let cache = |number: u32| {
        let cached = action.cache.as_ref();
        cached.map_or(DISABLED, |c| if number as usize == last { c.status() } else { c.status_before() })
    };
    let done = action.attempts.iter();
    let done: Vec<_> =
        done.map(|a| (a.number, a.phase(), &a.phases, a.output.as_str(), a.error.clone(), cache(a.number))).collect();
    durable::rule_3_views_show_what_was_done(id, &told, &done)?;
    if let Some(Cached { looked: Looked::Hit(source, number), .. }) = &action.cache {
        let told = details.attempts.last().and_then(|a| a.source.as_ref());
        durable::rule_3_views_show_what_was_done(id, &told, &Some(&(source.clone(), *number)))?;
    }
    details.attempts.iter().try_for_each(|a| views::rule_9_an_error_keeps_its_words(a.error.as_ref(), RAISED))
}

/// Where the outputs of an action's newest attempt are or will be, as its parent hears it.
pub fn output(id: &ActionId, action: &Action) -> String {
    action.attempts.last().map_or_else(String::new, |a| output_prefix(id, a.number))
}
