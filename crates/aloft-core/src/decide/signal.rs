//! Conditions: their value, and the call they ask for.

use super::{Decision, View, check_live, find};
use crate::{ActionName, Event, Phase, Refusal, Signal, SignalValue, Subject, WebhookOutcome};

pub(super) fn signal(
    view: &dyn View,
    name: &ActionName,
    value: &SignalValue,
    by: &Subject,
) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let condition = state.condition().ok_or_else(|| Refusal::NotACondition(name.clone()))?;
    let wrong =
        || Refusal::WrongSignal { name: name.clone(), expected: condition.kind.words(), found: value.kind().words() };
    let value = value.as_kind(condition.kind).ok_or_else(wrong)?;
    if let (Phase::Succeeded, Some(signal)) = (state.phase, &state.signal) {
        return if signal.value == value {
            Ok(Decision::unchanged())
        } else {
            Err(Refusal::SignalledAlready(name.clone()))
        };
    }
    check_live(view, state)?;
    Ok(Decision::one(Event::Signalled { action: name.clone(), signal: Signal { value, by: by.clone() } }))
}

pub(super) fn called(view: &dyn View, name: &ActionName, outcome: &WebhookOutcome) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    if !state.webhook_is_due() {
        return Ok(Decision::unchanged());
    }
    Ok(Decision::one(Event::Called { action: name.clone(), outcome: outcome.clone() }))
}
