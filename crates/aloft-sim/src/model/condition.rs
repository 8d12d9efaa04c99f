//! Conditions: what somebody's word does to them, and what time does.

use aloft_core::{Phase, Time};

use super::{Life, Model, Why};
use crate::{
    ids::ActionId,
    rules::{
        Check,
        answers::{self, Answer},
        signals,
    },
    signal::{Type, Value},
    step::Kind,
};

impl Model {
    /// What `action` waits for; of what waits for nothing it makes no difference.
    pub fn awaits(&self, action: &ActionId) -> Type {
        let found = self.runs.get(&action.run).and_then(|run| run.actions.get(&action.name));
        match found.map(|a| &a.kind) {
            Some(Kind::Condition(condition)) => condition.awaits,
            _ => Type::Bool,
        }
    }

    pub(super) fn signal(&self, target: &ActionId, value: Value, answer: &Answer, at: Time) -> Check<Vec<Model>> {
        let Some(run) = self.runs.get(&target.run) else {
            answers::rule_9_what_is_missing_is_named(answer, &target.run.name)?;
            return self.unchanged();
        };
        let Some(action) = run.actions.get(&target.name) else {
            answers::rule_9_what_is_missing_is_named(answer, &target.name)?;
            return self.unchanged();
        };
        let Kind::Condition(condition) = &action.kind else {
            signals::rule_9_only_conditions_are_signalled(answer, &target.name)?;
            return self.unchanged();
        };
        let Some(value) = value.taken_by(condition.awaits) else {
            signals::rule_9_a_value_of_another_kind_is_refused(answer, &target.name)?;
            return self.unchanged();
        };
        match action.end.as_ref().map(|end| &end.why) {
            Some(Why::Signalled(before)) if *before == value => {
                signals::rule_4_the_same_signal_changes_nothing(answer)?;
                return self.unchanged();
            }
            Some(Why::Signalled(_)) => {
                signals::rule_5_a_second_value_is_refused(answer, &target.name)?;
                return self.unchanged();
            }
            _ => {}
        }
        match (run.life(&target.name, self.theirs()), answer) {
            (Life::Ended(_), _) => {
                signals::rule_5_a_signal_loses_against_an_end(answer)?;
                self.unchanged()
            }
            (Life::Unknown, Answer::Refused(_)) => {
                signals::rule_5_a_signal_loses_against_an_end(answer)?;
                Ok(self.changed(true, |m| m.end(target, None, None, Why::Itself(None))))
            }
            (Life::Live | Life::Unknown, _) => {
                let done = signals::rule_3_a_waiting_condition_takes_its_value(answer)?;
                let when = (!self.theirs()).then_some(at);
                Ok(self.changed(done, |m| m.signalled(target, when, value)))
            }
        }
    }

    fn signalled(&mut self, target: &ActionId, at: Option<Time>, value: Value) {
        let theirs = self.theirs();
        let Some(run) = self.runs.get_mut(&target.run) else { return };
        let Some(action) = run.actions.get_mut(&target.name) else { return };
        action.end = Some(super::End { phase: Some(Phase::Succeeded), at, why: Why::Signalled(value) });
        run.cascade(&target.name, theirs);
    }

    /// A reconciler looked for time limits, of which one at most was due.
    pub(super) fn time_out(&self, answer: &Answer, at: Time) -> Check<Vec<Model>> {
        let mut after = self.clone();
        after.check_limits(at);
        Ok(if *answer == Answer::Lost { vec![self.clone(), after] } else { vec![after] })
    }

    /// Whether one limit is due at `at`, and none once it has ended what it limits.
    pub fn has_one_limit_due(&self, at: Time) -> bool {
        let due = self.limits_due(at);
        let [(.., only)] = due.as_slice() else { return false };
        let mut after = self.clone();
        after.check_limit(only, at);
        after.limits_due(at).is_empty()
    }
}
