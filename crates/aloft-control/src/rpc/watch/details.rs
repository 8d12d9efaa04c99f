//! Watches of one action: its details, and those of a run, which are its root's.

use std::sync::Arc;

use aloft_core::{ActionName, ActionState, RunKey};
use aloft_flyteidl2::flyteidl2::workflow::{
    WatchActionDetailsRequest, WatchActionDetailsResponse, WatchRunDetailsRequest, WatchRunDetailsResponse,
};
use aloft_store::RunRecord;

use super::{Pace, Step, Watched, stream};
use crate::{
    Control,
    rpc::{actions::Messages, error::Answer, run},
};

/// One action, followed to its end. Keeps no more than its state last sent.
pub(super) struct OneAction {
    pub(super) control: Control,
    pub(super) record: Arc<RunRecord>,
    action: ActionName,
    watched: Watched,
    pace: Pace,
    sent: Option<ActionState>,
}

impl OneAction {
    /// Follows an action that must exist.
    pub(super) async fn new(control: Control, run: RunKey, action: ActionName) -> Answer<Self> {
        let watched = Watched::new(&control, run.clone());
        let record = run::find_record(&control, &run).await?;
        run::find_action(&control, &run, &action).await?;
        Ok(Self { control, record, action, watched, pace: Pace::default(), sent: None })
    }

    /// The next state that differs from the one before; `None` once it has ended.
    pub(super) async fn next(&mut self) -> Answer<Option<ActionState>> {
        if self.sent.as_ref().is_some_and(|s| s.phase.is_terminal()) {
            return Ok(None);
        }
        loop {
            self.pace.keep().await;
            self.watched.hint.mark_unchanged();
            let state = run::find_action(&self.control, &self.record.key, &self.action).await?;
            if self.sent.as_ref() != Some(&state) {
                self.sent = Some(state.clone());
                return Ok(Some(state));
            }
            // No sign of life: a client would take an empty message for an action without a phase.
            self.watched.changed().await?;
        }
    }
}

pub(in super::super) async fn action_details(
    control: Control,
    request: WatchActionDetailsRequest,
) -> Answer<Messages<WatchActionDetailsResponse>> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let start = OneAction::new(control, run, action).await?;
    Ok(stream(start, |watch| {
        Box::pin(async move {
            let Some(state) = watch.next().await? else { return Ok(Step::End) };
            let details = run::details(&watch.control, &watch.record, &state).await?;
            let message = WatchActionDetailsResponse { details: details.into(), ..Default::default() };
            Ok(if state.phase.is_terminal() { Step::Last(message) } else { Step::Send(message) })
        })
    }))
}

pub(in super::super) async fn run_details(
    control: Control,
    request: WatchRunDetailsRequest,
) -> Answer<Messages<WatchRunDetailsResponse>> {
    let run = control.run_id(request.run_id.as_option())?;
    let start = OneAction::new(control, run, ActionName::root()).await?;
    Ok(stream(start, |watch| {
        Box::pin(async move {
            let Some(state) = watch.next().await? else { return Ok(Step::End) };
            let details = run::run_details(&watch.control, &watch.record, &state).await?;
            let message = WatchRunDetailsResponse { details: details.into(), ..Default::default() };
            Ok(if state.phase.is_terminal() { Step::Last(message) } else { Step::Send(message) })
        })
    }))
}
