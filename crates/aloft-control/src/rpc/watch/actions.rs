//! `WatchActions`: the tree of a run, each action with the phases of its children.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use aloft_core::Event;
use aloft_flyteidl2::flyteidl2::workflow::{EnrichedAction, WatchActionsRequest, WatchActionsResponse};
use aloft_store::{Filter, Listed, RunRecord};

use super::{Look, Pace, Shown, Step, Watched, Woken, stream, tree::Tree};
use crate::{
    Control,
    rpc::{
        actions::Messages,
        error::{Answer, not_found, wire},
        list, run,
    },
};

/// Actions in one message.
const MESSAGE: usize = 500;

struct Actions {
    control: Control,
    record: Arc<RunRecord>,
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
                self.tree.add(&item.name, item.parent.as_ref(), Some(item.phase), outline.seq);
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
                Event::Created { action, ancestors, .. } => {
                    self.tree.add(action, ancestors.last(), None, logged.seq);
                }
                other => self.tree.touch(other.action(), logged.seq),
            }
        }
        Ok(true)
    }

    /// What is to be sent of the next actions that have changed, as they are now, parents before children.
    async fn message(&mut self) -> Answer<Vec<EnrichedAction>> {
        let upto = self.seq.unwrap_or_default();
        let batch = self.tree.take(MESSAGE, upto);
        let mut message = Vec::new();
        // In the order of the changes.
        for shown in self.look(&batch).await? {
            if shown.meets {
                let above = self.tree.need_above(&shown.state.name, upto);
                if !above.is_empty() {
                    for shown in self.look(&above).await? {
                        self.push(&mut message, &shown);
                    }
                }
            }
            self.push(&mut message, &shown);
        }
        Ok(message)
    }

    /// Reads some actions and records their phases.
    async fn look(&mut self, looks: &[Look]) -> Answer<Vec<Arc<Shown>>> {
        let found = self.watched.look(&self.filters, looks, self.seq.unwrap_or_default()).await?;
        if found.len() < looks.len() {
            // What was there can only have gone with its run.
            run::find_record(&self.control, &self.record.key).await?;
        }
        for shown in &found {
            self.tree.set(&shown.state.name, shown.state.phase);
        }
        Ok(found)
    }

    fn push(&mut self, message: &mut Vec<EnrichedAction>, shown: &Shown) {
        let name = &shown.state.name;
        let (action, digest) = shown.wire(&self.record);
        let counts = self.tree.counts(name);
        let mut both = DefaultHasher::new();
        (digest, &counts).hash(&mut both);
        if self.tree.sends(name, shown.meets, both.finish()) {
            message.push(EnrichedAction {
                action: action.clone().into(),
                meets_filter: shown.meets,
                children_phase_counts: counts.into_iter().collect(),
                ..Default::default()
            });
        }
    }
}
