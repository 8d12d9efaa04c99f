//! Conditions on the wire: their seeds, their values, and who signals them.

use aloft_core::{ConditionSeed, Seed, SignalKind, SignalValue, Subject};
use aloft_flyteidl2::flyteidl2::{
    actions::{SignalRequest, SignalResponse},
    core::{Literal, LiteralType, Primitive, Scalar, SimpleType, literal, literal_type, primitive, scalar},
    workflow::{ConditionAction, EventPayload, SignalEventRequest, SignalEventResponse, event_payload},
};
use aloft_store::{Blob, Submission};

use super::{
    convert,
    error::{Answer, bounded, invalid},
    run,
};
use crate::Control;

/// Longest text a condition is signalled with, in bytes: it is kept in the run's log (design rule 7).
const MAX_VALUE: usize = 4096;

/// Longest prompt or description, in bytes.
const MAX_PROMPT: usize = 64 << 10;

/// The seed of a condition, and what is stored of it.
pub(super) fn seed(condition: &ConditionAction) -> Answer<(Seed, Blob)> {
    bounded("condition.name", &condition.name, convert::MAX_TEXT)?;
    bounded("condition.prompt", &condition.prompt, MAX_PROMPT)?;
    bounded("condition.description", &condition.description, MAX_PROMPT)?;
    let url = condition.webhook.as_option().map_or("", |w| w.url.as_str());
    bounded("condition.webhook.url", url, MAX_PROMPT)?;
    if !(url.is_empty() || url.starts_with("http://") || url.starts_with("https://")) {
        return Err(invalid("condition.webhook.url: must begin with http:// or https://"));
    }
    let timeout = condition.timeout.as_option();
    let timeout_ms = timeout.map(|d| convert::checked_millis("condition.timeout", d)).transpose()?;
    let blob = convert::blob(convert::encoded("condition", condition)?);
    let seed = ConditionSeed {
        name: condition.name.clone(),
        kind: kind(condition.r#type.as_option())?,
        timeout_ms: timeout_ms.filter(|ms| *ms > 0),
        webhook: !url.is_empty(),
        spec_digest: blob.digest.clone(),
    };
    Ok((Seed::Condition(seed), blob))
}

fn kind(declared: Option<&LiteralType>) -> Answer<SignalKind> {
    let simple = match declared.and_then(|t| t.r#type.as_ref()) {
        Some(literal_type::Type::Simple(simple)) => simple.as_known(),
        _ => None,
    };
    match simple {
        Some(SimpleType::BOOLEAN) => Ok(SignalKind::Bool),
        Some(SimpleType::INTEGER) => Ok(SignalKind::Int),
        Some(SimpleType::FLOAT) => Ok(SignalKind::Float),
        Some(SimpleType::STRING) => Ok(SignalKind::Text),
        _ => Err(invalid("condition.type: must be a simple boolean, integer, float or string")),
    }
}

/// The declared type of a condition's value.
pub(super) fn literal_type(kind: SignalKind) -> LiteralType {
    let simple = match kind {
        SignalKind::Bool => SimpleType::BOOLEAN,
        SignalKind::Int => SimpleType::INTEGER,
        SignalKind::Float => SimpleType::FLOAT,
        SignalKind::Text => SimpleType::STRING,
    };
    LiteralType { r#type: Some(literal_type::Type::Simple(simple.into())), ..Default::default() }
}

/// A condition's value as its parent reads it.
pub(super) fn to_literal(value: &SignalValue) -> Literal {
    let value = match value {
        SignalValue::Bool(b) => primitive::Value::Boolean(*b),
        SignalValue::Int(n) => primitive::Value::Integer(*n),
        SignalValue::Float(x) => primitive::Value::FloatValue(*x),
        SignalValue::Text(text) => primitive::Value::StringValue(text.clone()),
    };
    let primitive = Primitive { value: Some(value), ..Default::default() };
    let scalar = Scalar { value: Some(scalar::Value::from(primitive)), ..Default::default() };
    Literal { value: Some(literal::Value::from(scalar)), ..Default::default() }
}

fn from_literal(literal: &Literal) -> Option<SignalValue> {
    let Some(literal::Value::Scalar(scalar)) = &literal.value else { return None };
    let Some(scalar::Value::Primitive(primitive)) = &scalar.value else { return None };
    Some(match primitive.value.as_ref()? {
        primitive::Value::Boolean(b) => SignalValue::Bool(*b),
        primitive::Value::Integer(n) => SignalValue::Int(*n),
        primitive::Value::FloatValue(x) => SignalValue::Float(*x),
        primitive::Value::StringValue(text) => SignalValue::Text(text.clone()),
        primitive::Value::Datetime(_) | primitive::Value::Duration(_) => return None,
    })
}

fn from_payload(payload: &EventPayload) -> Option<SignalValue> {
    Some(match payload.value.as_ref()? {
        event_payload::Value::BoolValue(b) => SignalValue::Bool(*b),
        event_payload::Value::IntValue(n) => SignalValue::Int(*n),
        event_payload::Value::FloatValue(x) => SignalValue::Float(*x),
        event_payload::Value::StringValue(text) => SignalValue::Text(text.clone()),
    })
}

async fn submit(
    control: &Control,
    id: Option<&aloft_flyteidl2::flyteidl2::common::ActionIdentifier>,
    value: SignalValue,
    by: Subject,
) -> Answer<()> {
    let (run, action) = control.action_id(id)?;
    if let SignalValue::Text(text) = &value {
        bounded("payload.string_value", text, MAX_VALUE)?;
    }
    let command = aloft_core::Command::Signal { action, value, by };
    run::submit(control, Submission::new(run, command)).await.map(drop)
}

pub(super) async fn signal_event(control: &Control, request: SignalEventRequest) -> Answer<SignalEventResponse> {
    let payload = request.payload.as_option().and_then(from_payload);
    let value = payload.ok_or_else(|| invalid("payload: a bool, int, float or string value is required"))?;
    submit(control, request.action_id.as_option(), value, Control::anonymous()).await?;
    Ok(SignalEventResponse::default())
}

pub(super) async fn signal(control: &Control, request: SignalRequest) -> Answer<SignalResponse> {
    let value = request.value.as_option().and_then(from_literal);
    let value = value.ok_or_else(|| invalid("value: must be a literal of a boolean, integer, float or string"))?;
    submit(control, request.action_id.as_option(), value, Control::anonymous()).await?;
    Ok(SignalResponse::default())
}
