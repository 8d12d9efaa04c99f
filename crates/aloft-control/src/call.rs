//! The calls that conditions ask for, and the callbacks that answer them.
//!
//! A call is repeated until it is taken, under the same identifier, and recorded then: its receiver hears of a condition
//! once unless a crash comes between its answer and the record.

use std::{collections::HashMap, time::Duration};

use aloft_core::{
    ActionName, ActionState, Command, RunKey, Scope, SignalKind, SignalValue, Subject, Time, WebhookOutcome,
};
use aloft_flyteidl2::flyteidl2::workflow::ConditionAction;
use aloft_plane::{Call, PlaneError};
use aloft_store::{Submission, SubmitError};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use buffa::Message as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    Control,
    reconcile::{IDLE, PACE, TROUBLE},
    work::Reconciler,
};

/// Most calls looked at at a time.
const BATCH: usize = 100;

/// First and longest pause before a call is repeated, and how often it is: some twenty minutes in all.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
const TRIES: u32 = 12;

/// What stands for the callback in a payload.
const PLACEHOLDER: &str = "{callback_uri}";

/// A call that was not taken yet.
struct Tried {
    times: u32,
    again_at: Time,
}

impl Control {
    /// Makes the calls that are due. How often each was tried is not kept over a restart.
    pub(crate) async fn call_loop(&self) {
        let mut feed = self.store().feed();
        let mut tried: HashMap<(RunKey, ActionName), Tried> = HashMap::new();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            let due = match self.counted(Reconciler::Calls, self.store().calls_due(BATCH)).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "cannot look for calls to make");
                    self.pause(TROUBLE).await;
                    continue;
                }
            };
            tried.retain(|(run, action), _| due.iter().any(|(r, s)| r == run && s.name == *action));
            let now = self.now();
            let ready = due
                .into_iter()
                .filter(|(run, state)| tried.get(&(run.clone(), state.name.clone())).is_none_or(|t| t.again_at <= now));
            let calls = ready.map(|(run, state)| async move { (self.call(&run, &state).await, run, state.name) });
            for (answer, run, action) in futures::future::join_all(calls).await {
                self.note(&mut tried, answer, run, action).await;
            }
            let now = self.now();
            let next = tried.values().map(|t| t.again_at.since(now)).min().unwrap_or(IDLE).min(IDLE);
            self.pause(PACE.min(next)).await;
            tokio::select! {
                () = self.stopping().cancelled() => {}
                _ = feed.changed() => {}
                () = tokio::time::sleep(next.max(Duration::from_millis(10))) => {}
            }
        }
    }

    async fn note(
        &self,
        tried: &mut HashMap<(RunKey, ActionName), Tried>,
        answer: Result<(), PlaneError>,
        run: RunKey,
        action: ActionName,
    ) {
        let key = (run, action);
        let times = tried.get(&key).map_or(0, |t| t.times) + 1;
        let outcome = match answer {
            Ok(()) => WebhookOutcome::Delivered,
            Err(PlaneError::Unavailable(reason)) if times < TRIES => {
                tracing::info!(run = %key.0, action = %key.1, "the call of a condition was not taken ({reason}); it is repeated");
                let pause = FIRST.saturating_mul(1 << (times - 1).min(16)).min(LONGEST);
                tried.insert(key, Tried { times, again_at: self.now().plus(pause) });
                return;
            }
            Err(error) => {
                tracing::warn!(run = %key.0, action = %key.1, "the call of a condition is given up: {error}");
                WebhookOutcome::Failed { reason: error.to_string().chars().take(500).collect() }
            }
        };
        let command = Command::Called { action: key.1.clone(), outcome };
        match self.store().submit(Submission::new(key.0.clone(), command)).await {
            Ok(_) | Err(SubmitError::Refused(_)) => drop(tried.remove(&key)),
            Err(SubmitError::Store(error)) => {
                tracing::warn!(%error, "what became of a call cannot be recorded");
                self.pause(TROUBLE).await;
            }
        }
    }

    async fn call(&self, run: &RunKey, state: &ActionState) -> Result<(), PlaneError> {
        let unavailable = |error: aloft_store::StoreError| PlaneError::Unavailable(error.to_string());
        let digest = state.condition().map(|c| c.spec_digest.clone()).unwrap_or_default();
        let stored = self.store().blob(&digest).await.map_err(unavailable)?.unwrap_or_default();
        let condition = ConditionAction::decode_from_slice(&stored)
            .map_err(|e| PlaneError::Denied(format!("the condition cannot be read: {e}")))?;
        let webhook = condition.webhook.as_option().cloned().unwrap_or_default();
        let payload = webhook.payload.as_option().and_then(|p| serde_json::to_value(p).ok());
        let callback = self.callback_uri(run, &state.name);
        let body = match payload {
            Some(payload) => filled(payload, &callback),
            None => json!({
                "run": run.name, "project": run.scope.project, "domain": run.scope.domain, "action": state.name.as_str(),
                "condition": condition.name, "prompt": condition.prompt, "callback_uri": callback,
            }),
        };
        let id = format!("{run}/{}", state.name);
        self.data().call(&Call { url: webhook.url, body: body.to_string().into(), id }).await
    }

    /// Where a POST signals the condition `action` of `run`.
    fn callback_uri(&self, run: &RunKey, action: &ActionName) -> String {
        let Scope { org, project, domain } = &run.scope;
        let (base, token) = (&self.settings().public_url, self.callback_token(run, action));
        format!("{base}/callbacks/conditions/{org}/{project}/{domain}/{}/{action}?token={token}", run.name)
    }

    /// What proves that a callback was given to its caller by us.
    fn callback_token(&self, run: &RunKey, action: &ActionName) -> String {
        // The key has a fixed length and names hold no separator, so nothing can be extended into another callback.
        let mut outer = Sha256::new();
        let inner = Sha256::new().chain_update(self.0.callback_key).chain_update(format!("{run}/{action}")).finalize();
        outer.update(self.0.callback_key);
        outer.update(inner);
        outer.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
    }
}

/// The payload with the callback wherever a text asks for it.
fn filled(payload: Value, callback: &str) -> Value {
    match payload {
        Value::String(text) => Value::String(text.replace(PLACEHOLDER, callback)),
        Value::Array(items) => Value::Array(items.into_iter().map(|v| filled(v, callback)).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(k, v)| (k, filled(v, callback))).collect()),
        other => other,
    }
}

// === Callbacks ===

/// The routes that answer callbacks: `POST` with `{"value": …}`, or with the value itself.
pub fn callbacks(control: &Control) -> Router {
    let path = "/callbacks/conditions/{org}/{project}/{domain}/{run}/{action}";
    Router::new().route(path, post(answer).get(explain)).with_state(control.clone())
}

fn refused(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "message": message.into() }))).into_response()
}

async fn explain() -> Response {
    refused(StatusCode::METHOD_NOT_ALLOWED, "this is where a condition is answered: POST {\"value\": …} here")
}

async fn answer(
    State(control): State<Control>,
    Path((org, project, domain, run, action)): Path<(String, String, String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
    body: axum::body::Bytes,
) -> Response {
    let named = Scope::new(&org, &project, &domain).and_then(|scope| RunKey::new(scope, &run));
    let (run, action) = match (named, ActionName::new(&action)) {
        (Ok(run), Ok(action)) => (run, action),
        (Err(error), _) | (_, Err(error)) => return refused(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let expected = control.callback_token(&run, &action);
    if !query.get("token").is_some_and(|token| same(token, &expected)) {
        return refused(
            StatusCode::FORBIDDEN,
            "the token of this callback is missing or wrong: use the URI as it was given",
        );
    }
    let state = match control.store().snapshot(&run, aloft_store::Which::One(action.clone())).await {
        Ok(found) => found.and_then(|s| s.actions.into_iter().next()),
        Err(error) => return refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    };
    let Some(kind) = state.as_ref().and_then(|s| s.condition()).map(|c| c.kind) else {
        return refused(StatusCode::NOT_FOUND, format!("condition {action} does not exist in run {}", run.name));
    };
    let Some(value) = value_of(&body, kind) else {
        let wanted = kind.words();
        return refused(StatusCode::BAD_REQUEST, format!("the condition waits for {wanted}: send {{\"value\": …}}"));
    };
    let by = Subject { id: "webhook".to_owned(), name: "Webhook".to_owned(), email: String::new() };
    match control.store().submit(Submission::new(run, Command::Signal { action, value, by })).await {
        Ok(_) => Json(json!({ "message": "signalled" })).into_response(),
        Err(SubmitError::Refused(refusal)) => refused(StatusCode::CONFLICT, refusal.to_string()),
        Err(SubmitError::Store(error)) => refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// Whether two texts are equal, in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// The value that a callback carries.
fn value_of(body: &[u8], kind: SignalKind) -> Option<SignalValue> {
    let sent: Value = serde_json::from_slice(body).ok()?;
    let value = match &sent {
        Value::Object(fields) => ["value", "payload", "approved"].iter().find_map(|name| fields.get(*name))?,
        other => other,
    };
    let read = match value {
        Value::Bool(b) => SignalValue::Bool(*b),
        Value::Number(n) => n.as_i64().map(SignalValue::Int).or_else(|| n.as_f64().map(SignalValue::Float))?,
        Value::String(text) => SignalValue::Text(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    read.as_kind(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_filled_wherever_they_ask() {
        let payload = json!({ "a": "go to {callback_uri}", "b": [{ "c": "{callback_uri}" }], "n": 1 });
        let expected = json!({ "a": "go to X", "b": [{ "c": "X" }], "n": 1 });
        assert_eq!(filled(payload, "X"), expected);
    }

    #[test]
    fn callbacks_carry_typed_values() {
        let read = |body: &str, kind| value_of(body.as_bytes(), kind);
        assert_eq!(read("{\"value\": true}", SignalKind::Bool), Some(SignalValue::Bool(true)));
        assert_eq!(read("true", SignalKind::Bool), Some(SignalValue::Bool(true)));
        assert_eq!(read("{\"value\": 3}", SignalKind::Float), Some(SignalValue::Float(3.0)));
        assert_eq!(read("\"yes\"", SignalKind::Text), Some(SignalValue::Text("yes".into())));
        for wrong in ["", "{}", "{\"value\": \"true\"}", "[1]", "null"] {
            assert_eq!(read(wrong, SignalKind::Bool), None, "{wrong}");
        }
    }
}
