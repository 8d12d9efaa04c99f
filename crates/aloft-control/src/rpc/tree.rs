//! `aloft.v1.TreeService`: the tree of a run in windows.

use aloft_core::{ActionName, Phase, RunKey, Scope};
use aloft_proto::v1;
use aloft_store::{ChildPlace, ChildQuery, ChildRow, PhaseCounts};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    convert,
    error::{Answer, invalid, not_found, wire},
    queue::page_size,
};
use crate::Control;

/// The action that a request's field `parent` names.
fn parent(control: &Control, place: Option<&v1::TreePlace>) -> Answer<(RunKey, ActionName)> {
    let place = place.ok_or_else(|| invalid("parent: is required"))?;
    let scope = Scope::new(&control.org(&place.org), &place.project, &place.domain);
    let run = scope.and_then(|scope| RunKey::new(scope, &place.run));
    let run = run.map_err(|e| {
        let field = e.field.rsplit(' ').next().unwrap_or(e.field);
        let field = if field == "name" { "run" } else { field };
        invalid(format!("parent.{field}: {:?} {}", e.value, e.reason))
    })?;
    let action = match place.action.as_str() {
        "" => Ok(ActionName::root()),
        name => ActionName::new(name),
    };
    let action = action.map_err(|e| invalid(format!("parent.action: {:?} {}", e.value, e.reason)))?;
    Ok((run, action))
}

fn bad_token() -> connectrpc::ConnectError {
    invalid("token: is not one that this list gave out; start again without a token")
}

/// Where the window before ended. What it says is checked by nobody else: any place is one that a list may begin at.
fn read_token(token: &str) -> Answer<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad_token())?;
    String::from_utf8(bytes).map(Some).map_err(|_| bad_token())
}

fn write_token(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn phase(phase: Phase) -> v1::TreePhase {
    match phase {
        Phase::Queued => v1::TreePhase::Queued,
        Phase::WaitingForResources => v1::TreePhase::WaitingForResources,
        Phase::Initializing => v1::TreePhase::Initializing,
        Phase::Running => v1::TreePhase::Running,
        Phase::Succeeded => v1::TreePhase::Succeeded,
        Phase::Failed => v1::TreePhase::Failed,
        Phase::Aborted => v1::TreePhase::Aborted,
        Phase::TimedOut => v1::TreePhase::TimedOut,
        Phase::Paused => v1::TreePhase::Paused,
        Phase::Recovered => v1::TreePhase::Recovered,
    }
}

fn counts(counts: &PhaseCounts) -> Vec<v1::TreeCount> {
    let count = |(of, actions)| v1::TreeCount { phase: phase(of).into(), actions, ..Default::default() };
    counts.iter().map(count).collect()
}

fn no_parent(run: &RunKey, action: &ActionName) -> connectrpc::ConnectError {
    not_found(format!("there is no action {action} in a run {} of {}", run.name, run.scope))
}

pub(super) async fn groups(control: &Control, request: v1::ListGroupsRequest) -> Answer<v1::ListGroupsResponse> {
    let (run, action) = parent(control, request.parent.as_option())?;
    let after = read_token(&request.token)?;
    let limit = page_size(request.limit);
    let found = control.store().child_groups(&run, &action, after.as_deref(), limit).await.map_err(wire)?;
    let found = found.ok_or_else(|| no_parent(&run, &action))?;
    let token = found.groups.last().filter(|_| found.more).map(|g| write_token(&g.name)).unwrap_or_default();
    let group =
        |g: aloft_store::ChildGroup| v1::TreeGroup { counts: counts(&g.counts), name: g.name, ..Default::default() };
    Ok(v1::ListGroupsResponse {
        counts: counts(&found.counts),
        groups: found.groups.into_iter().map(group).collect(),
        token,
        ..Default::default()
    })
}

fn action(row: &ChildRow) -> v1::TreeAction {
    let state = &row.state;
    let at = |at: Option<_>| at.map(convert::timestamp).into();
    v1::TreeAction {
        name: state.name.as_str().to_owned(),
        group: state.group.clone(),
        title: state.title().to_owned(),
        phase: phase(state.phase).into(),
        attempts: u32::try_from(state.attempts.len()).unwrap_or(u32::MAX),
        created_at: at(Some(state.created_at)),
        started_at: at(state.started_at),
        ended_at: at(state.ended_at),
        children: counts(&row.children),
        ..Default::default()
    }
}

pub(super) async fn children(control: &Control, request: v1::ListChildrenRequest) -> Answer<v1::ListChildrenResponse> {
    let (run, action) = parent(control, request.parent.as_option())?;
    let after = match read_token(&request.token)? {
        None => None,
        Some(text) => {
            let (row, group) = text.split_once(' ').ok_or_else(bad_token)?;
            let row = row.parse().map_err(|_| bad_token())?;
            Some(ChildPlace { group: group.to_owned(), row })
        }
    };
    let query = ChildQuery { parent: action.clone(), group: request.group, after, limit: page_size(request.limit) };
    let found = control.store().child_window(&run, &query).await.map_err(wire)?;
    let found = found.ok_or_else(|| no_parent(&run, &action))?;
    let last = found.rows.last().filter(|_| found.more).map(|row| &row.place);
    let token = last.map(|at| write_token(&format!("{} {}", at.row, at.group))).unwrap_or_default();
    Ok(v1::ListChildrenResponse { actions: found.rows.iter().map(self::action).collect(), token, ..Default::default() })
}
