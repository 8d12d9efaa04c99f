//! Actions as columns.

use aloft_core::{ActionState, Time};
use aloft_store::StoreError;

use super::write::Row;
use crate::rows::{amount, clean, encode_packed};

/// The error and cache words as they are stored in columns.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Columns of actions, one array each.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) ids: Vec<i64>,
    pub(super) run_ids: Vec<i64>,
    pub(super) names: Vec<String>,
    pub(super) parents: Vec<Option<String>>,
    pub(super) groups: Vec<String>,
    pub(super) kinds: Vec<i64>,
    pub(super) phases: Vec<i64>,
    pub(super) created: Vec<i64>,
    pub(super) updated: Vec<i64>,
    pub(super) started: Vec<Option<i64>>,
    pub(super) ended: Vec<Option<i64>>,
    pub(super) durations: Vec<Option<i64>>,
    pub(super) above: Vec<bool>,
    pub(super) attempts: Vec<i64>,
    pub(super) cache: Vec<String>,
    pub(super) task_projects: Vec<Option<String>>,
    pub(super) task_domains: Vec<Option<String>>,
    pub(super) task_names: Vec<String>,
    pub(super) task_versions: Vec<String>,
    pub(super) short_names: Vec<String>,
    pub(super) environments: Vec<String>,
    pub(super) states: Vec<Vec<u8>>,
}

/// How long an action took, once it has ended.
fn duration(state: &ActionState) -> Option<i64> {
    state.ended_at.map(|end| i64::try_from(end.since(state.created_at).as_millis()).unwrap_or(i64::MAX))
}

impl Columns {
    pub(super) fn of(rows: &[&Row<'_>], packs: bool) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for Row { id, run_id, changed, .. } in rows {
            let state = &changed.state;
            let task = state.task().map(|t| &t.task);
            columns.ids.push(*id);
            columns.run_ids.push(*run_id);
            columns.names.push(state.name.as_str().to_owned());
            columns.parents.push(state.parent().map(|p| p.as_str().to_owned()));
            columns.groups.push(clean(&state.group));
            columns.kinds.push(i64::from(state.kind().number()));
            columns.phases.push(i64::from(state.phase.number()));
            columns.created.push(state.created_at.as_micros());
            columns.updated.push(changed.at.unwrap_or(state.created_at).as_micros());
            columns.started.push(state.started_at.map(Time::as_micros));
            columns.ended.push(state.ended_at.map(Time::as_micros));
            columns.durations.push(duration(state));
            columns.above.push(state.aborted.as_ref().is_some_and(|by| by.above.is_some()));
            columns.attempts.push(amount(state.attempts.len() as u64));
            columns.cache.push(word(&state.cache.status));
            columns.task_projects.push(task.map(|t| clean(&t.project)));
            columns.task_domains.push(task.map(|t| clean(&t.domain)));
            columns.task_names.push(clean(state.title()));
            columns.task_versions.push(clean(task.map_or("", |t| &t.version)));
            columns.short_names.push(clean(task.map_or("", |t| &t.short_name)));
            columns.environments.push(clean(task.map_or("", |t| &t.environment)));
            columns.states.push(encode_packed(state, packs)?);
        }
        Ok(columns)
    }
}
