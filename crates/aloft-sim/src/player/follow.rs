//! Streams of a sequence: opened at some step, judged at the end.

use std::collections::{BTreeMap, BTreeSet};

use super::Player;
use crate::{
    book::Moment,
    client::Watched,
    ids::{ActionId, RunId},
    rules::{Check, streams},
    seen::Details,
    watching::{Heard, Watching},
};

/// Most streams of a sequence.
const MOST: usize = 8;

impl Player<'_> {
    /// Opens a stream about something that exists.
    pub(super) async fn follow(&mut self, watched: Watched) -> Check {
        let known = |id: &ActionId| self.model().run(&id.run).is_some_and(|run| run.actions.contains_key(&id.name));
        let exists = match &watched {
            Watched::Children(id) | Watched::ChildrenOld(id) | Watched::Action(id) => known(id),
            Watched::Actions(run) | Watched::Run(run) => self.model().run(run).is_some(),
            Watched::Runs(_) => true,
        };
        if exists && self.watchings.len() < MOST {
            let watching = Watching::open(&self.client, watched).await?;
            self.watchings.push(watching);
            self.tally.count("watched");
        }
        Ok(())
    }

    /// What a stream must have told of, by now.
    pub(super) fn about(&self, watched: &Watched) -> BTreeSet<ActionId> {
        let model = self.model();
        let actions = |run: &RunId| model.listed(run).into_iter();
        match watched {
            Watched::Children(parent) | Watched::ChildrenOld(parent) => {
                let Some(run) = model.run(&parent.run) else { return BTreeSet::new() };
                let is_child =
                    |id: &ActionId| run.actions.get(&id.name).is_some_and(|a| a.parent.as_ref() == Some(&parent.name));
                actions(&parent.run).filter(is_child).collect()
            }
            Watched::Actions(run) => actions(run).collect(),
            Watched::Action(id) => [id.clone()].into(),
            Watched::Run(run) => [run.action(aloft_core::ROOT_ACTION)].into(),
            Watched::Runs(place) => {
                model.runs_of(place).into_iter().map(|run| run.action(aloft_core::ROOT_ACTION)).collect()
            }
        }
    }

    /// Judges every stream against what the details show now and what the logs say.
    pub(super) async fn judge_streams(
        &self,
        now: &BTreeMap<ActionId, Details>,
        moments: &BTreeMap<ActionId, Vec<Moment>>,
        counts: &BTreeMap<ActionId, BTreeMap<i32, i32>>,
    ) -> Check {
        for watching in &self.watchings {
            let watched = &watching.watched;
            let over = self.is_over(watched, now);
            let said = |heard: &Heard| {
                streams::rule_1_every_message_can_be_read(watched, heard)?;
                streams::rule_5_phases_never_regress_on_a_stream(watched, heard)?;
                streams::rule_1_a_stream_follows_the_log(watched, heard, |id| moments.get(id).cloned())
            };
            said(&self.fault.heard(watching.heard()))?;
            let heard = self.caught_up(watching, now, counts, over).await?;
            said(&heard)?;
        }
        Ok(())
    }

    /// What a stream has said once it says the newest, and has ended if what it watches is over.
    async fn caught_up(
        &self,
        watching: &Watching,
        now: &BTreeMap<ActionId, Details>,
        counts: &BTreeMap<ActionId, BTreeMap<i32, i32>>,
        over: bool,
    ) -> Check<Heard> {
        let watched = &watching.watched;
        let about = self.about(watched);
        let judge = |heard: &Heard| {
            // A stream that was cut has nothing more to say.
            if heard.end.as_ref().is_some_and(|end| *end != crate::door::StreamEnd::Clean) {
                return Ok(());
            }
            streams::rule_1_a_watch_loses_nothing(watched, streams::behind(heard, now, &about))?;
            streams::rule_1_children_are_counted(watched, heard, counts)?;
            streams::rule_1_a_stream_ends_with_what_it_watches(watched, heard.end.as_ref(), over)
        };
        let wait = async {
            loop {
                let heard = self.fault.heard(watching.heard());
                if judge(&heard).is_ok() {
                    return heard;
                }
                watching.more().await;
            }
        };
        match tokio::time::timeout(self.fault.patience(), wait).await {
            Ok(heard) => Ok(heard),
            Err(_) => {
                let heard = self.fault.heard(watching.heard());
                judge(&heard).map(|()| heard)
            }
        }
    }

    /// Whether a stream must have ended by itself.
    fn is_over(&self, watched: &Watched, now: &BTreeMap<ActionId, Details>) -> bool {
        let ended = |id: &ActionId| now.get(id).is_some_and(|d| d.shown.phase.is_terminal());
        match watched {
            Watched::Action(id) => ended(id),
            Watched::Run(run) => ended(&run.action(aloft_core::ROOT_ACTION)),
            Watched::Actions(_) => self.about(watched).iter().all(ended),
            // Below what has ended nothing begins.
            Watched::Children(parent) | Watched::ChildrenOld(parent) => ended(parent),
            // There can always be another run.
            Watched::Runs(_) => false,
        }
    }
}
