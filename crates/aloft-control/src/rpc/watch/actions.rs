//! `WatchActions`: the tree of a run, each action with the phases of its children.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use aloft_core::{ActionName, ActionState, Event};
use aloft_flyteidl2::flyteidl2::workflow::{EnrichedAction, WatchActionsRequest, WatchActionsResponse};
use aloft_store::{Filter, Listed, RunRecord};
use buffa::Message as _;

use super::{Pace, Step, Watched, Woken, stream, tree::Tree};
use crate::{
    Control,
    rpc::{
        actions::Messages,
        convert,
        error::{Answer, not_found, wire},
        list, run,
    },
};

/// Actions in one message.
const MESSAGE: usize = 500;

struct Actions {
    control: Control,
    record: RunRecord,
    watched: Watched,
    pace: Pace,
    filters: Vec<Filter>,
    tree: Tree,
    /// The number up to which the log has been read; `None` before the snapshot.
    seq: Option<u64>,
}

pub(in super::super) async fn actions(
    control: Control,
    request: WatchActionsRequest,
) -> Answer<Messages<WatchActionsResponse>> {
    let run = control.run_id(request.run_id.as_option())?;
    let filters = list::of_action_tree(list::filters(Listed::Actions, &request.filter)?);
    let watched = Watched::new(&control, run.clone());
    let record = run::find_record(&control, &run).await?;
    let tree = Tree::default();
    let start = Actions { control, record, watched, pace: Pace::default(), filters, tree, seq: None };
    Ok(stream(start, |actions| Box::pin(actions.next())))
}

impl Actions {
    async fn next(&mut self) -> Answer<Step<WatchActionsResponse>> {
        loop {
            while !self.tree.has_pending() {
                if self.tree.is_over() {
                    // The root was looked at after the log was read, so there may have been others before it ended.
                    if self.follow().await? {
                        continue;
                    }
                    return Ok(Step::End);
                }
                if let Woken::Heartbeat = self.read().await? {
                    // A run can be given up while somebody looks at it.
                    run::find_record(&self.control, &self.record.key).await?;
                    return Ok(Step::Send(WatchActionsResponse::default()));
                }
            }
            let enriched_actions = self.message().await?;
            if !enriched_actions.is_empty() {
                return Ok(Step::Send(WatchActionsResponse { enriched_actions, ..Default::default() }));
            }
        }
    }

    /// Reads which actions have changed, or waits until some have.
    async fn read(&mut self) -> Answer<Woken> {
        if self.seq.is_none() {
            let key = &self.record.key;
            let outline = self.control.store().outline(key).await.map_err(wire)?;
            let outline = outline.ok_or_else(|| not_found(format!("run {} does not exist", key.name)))?;
            self.seq = Some(outline.seq);
            for item in outline.actions {
                self.tree.add(&item.name, item.parent.as_ref(), Some(item.phase));
            }
            return Ok(Woken::Changed);
        }
        self.pace.keep().await;
        if self.follow().await? { Ok(Woken::Changed) } else { self.watched.changed().await }
    }

    /// Reads on in the log; `false` if it has not grown.
    async fn follow(&mut self) -> Answer<bool> {
        let events = self.watched.events_after(self.seq.unwrap_or_default()).await?;
        let Some(last) = events.last() else { return Ok(false) };
        self.seq = Some(last.seq);
        for logged in &events {
            match &logged.event {
                Event::Created { action, ancestors, .. } => self.tree.add(action, ancestors.last(), None),
                other => self.tree.touch(other.action()),
            }
        }
        Ok(true)
    }

    /// What is to be sent of the next actions that have changed, as they are now, parents before children.
    async fn message(&mut self) -> Answer<Vec<EnrichedAction>> {
        let batch = self.tree.take(MESSAGE);
        let mut found = self.look(&batch).await?;
        // In the order of the changes, which is the one in which they were asked for.
        let place: std::collections::HashMap<_, _> = batch.iter().enumerate().map(|(i, name)| (name, i)).collect();
        found.sort_by_key(|(state, _)| place.get(&state.name).copied());
        let mut message = Vec::new();
        for (state, meets) in found {
            if meets {
                let above = self.tree.need_above(&state.name);
                if !above.is_empty() {
                    for (state, meets) in self.look(&above).await? {
                        self.push(&mut message, &state, meets);
                    }
                }
            }
            self.push(&mut message, &state, meets);
        }
        Ok(message)
    }

    /// Reads some actions, in the order of their creation, and records their phases.
    async fn look(&mut self, names: &[ActionName]) -> Answer<Vec<(ActionState, bool)>> {
        let store = self.control.store();
        let found = store.matched(&self.record.key, names, &self.filters).await.map_err(wire)?;
        if found.len() < names.len() {
            // What was there can only have gone with its run.
            run::find_record(&self.control, &self.record.key).await?;
        }
        for (state, _) in &found {
            self.tree.set(&state.name, state.phase);
        }
        Ok(found)
    }

    fn push(&mut self, message: &mut Vec<EnrichedAction>, state: &ActionState, meets: bool) {
        let action = convert::action(&self.record, state);
        let counts = self.tree.counts(&state.name);
        let mut digest = DefaultHasher::new();
        (action.encode_to_vec(), &counts, meets).hash(&mut digest);
        if self.tree.sends(&state.name, meets, digest.finish()) {
            message.push(EnrichedAction {
                action: action.into(),
                meets_filter: meets,
                children_phase_counts: counts.into_iter().collect(),
                ..Default::default()
            });
        }
    }
}
