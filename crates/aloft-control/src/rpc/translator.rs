//! `flyteidl2.workflow.TranslatorService`: values are users' data, so the data plane translates; here only the owner of
//! a stored value is checked.

use aloft_flyteidl2::flyteidl2::workflow::{
    JsonValuesToLiteralsRequest, JsonValuesToLiteralsResponse, LaunchFormJsonToLiteralsRequest,
    LaunchFormJsonToLiteralsResponse, LiteralsToLaunchFormJsonRequest, LiteralsToLaunchFormJsonResponse,
    TaskSpecToLaunchFormJsonRequest, TaskSpecToLaunchFormJsonResponse, literals_to_launch_form_json_request::Owner,
};

use super::{
    error::{Answer, invalid, shortened, unimplemented, wire},
    run,
};
use crate::Control;

pub(super) async fn literals_to_form(
    control: &Control,
    request: LiteralsToLaunchFormJsonRequest,
) -> Answer<LiteralsToLaunchFormJsonResponse> {
    let scope = match &request.owner {
        _ if request.literals_uri.is_empty() => control.scope("", "any", "any")?,
        Some(Owner::ActionId(id)) => {
            let (run, action) = control.action_id(Some(id))?;
            let state = run::find_action(control, &run, &action).await?;
            let recorded = [state.task().map_or("", |t| t.input_uri.as_str()), state.outputs.output_uri.as_str()];
            let asked = request.literals_uri.trim_end_matches('/');
            if !recorded.iter().any(|r| !r.is_empty() && (asked == r.trim_end_matches('/') || within(asked, r))) {
                return Err(invalid(format!(
                    "literals_uri: {} is not the inputs or outputs of action {action}",
                    shortened(asked)
                )));
            }
            run.scope
        }
        Some(Owner::TriggerId(_)) => return Err(unimplemented("trigger_id: triggers are not built yet")),
        None => return Err(invalid("owner: an action_id is required with literals_uri")),
    };
    control.data().literals_to_form(&scope, request).await.map_err(wire)
}

/// Whether `uri` is a file directly in the directory `prefix`.
fn within(uri: &str, prefix: &str) -> bool {
    let rest = uri.strip_prefix(prefix.trim_end_matches('/')).and_then(|r| r.strip_prefix('/'));
    rest.is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

pub(super) async fn form_to_literals(
    control: &Control,
    request: LaunchFormJsonToLiteralsRequest,
) -> Answer<LaunchFormJsonToLiteralsResponse> {
    control.data().form_to_literals(request).await.map_err(wire)
}

pub(super) async fn task_spec_to_form(
    control: &Control,
    request: TaskSpecToLaunchFormJsonRequest,
) -> Answer<TaskSpecToLaunchFormJsonResponse> {
    control.data().task_spec_to_form(request).await.map_err(wire)
}

pub(super) async fn values_to_literals(
    control: &Control,
    request: JsonValuesToLiteralsRequest,
) -> Answer<JsonValuesToLiteralsResponse> {
    control.data().values_to_literals(request).await.map_err(wire)
}
