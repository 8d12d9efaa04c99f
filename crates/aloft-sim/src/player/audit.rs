//! What must hold at the end of a sequence: every view of every action agrees, with the model and with the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Player;
use crate::{
    book::Moment,
    client::Watched,
    ids::{ActionId, Place, RunId},
    model::{Model, Run},
    rules::{Check, bounds, elsewhere, lanes, log, streams, views},
    seen::{Details, Shown},
    tally::Tally,
    watching::{Heard, Item, message},
};

/// The keys that pages are sorted by.
const KEYS: [&str; 3] = ["name", "created_at", "phase"];

/// How long records may take to follow an end, and the pause between two looks at them.
const REST: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);

/// All that is known at the end.
#[derive(Default)]
struct Audit {
    details: BTreeMap<ActionId, Details>,
    moments: BTreeMap<ActionId, Vec<Moment>>,
    counts: BTreeMap<ActionId, BTreeMap<i32, i32>>,
}

impl Player<'_> {
    /// Compares everything as it stands, then ends what still lives and compares again.
    pub(super) async fn finish(mut self) -> Check<Tally> {
        // What the server's own worker moves, agrees only when it has come to rest. Of the rest every other sequence is
        // audited as it stands, with records that have not followed yet, and every other one after its end.
        let as_it_stands = self.ours() && self.asked.len().is_multiple_of(2);
        let before = if as_it_stands { Some(self.audit(None).await?) } else { None };
        self.end_all().await?;
        let audit = self.audit(before.as_ref()).await?;
        self.all_is_over(&audit)?;
        self.all_revocations_are_heard().await?;
        audit.details.values().for_each(|details| self.tally.ended(details));
        (0..self.model().hits_in_queues()).for_each(|_| self.tally.count("hit in a queue"));
        Ok(self.tally)
    }

    /// Compares every view of every action. What had ended at the audit `before` and is listed as it was then, is not
    /// looked at again.
    async fn audit(&mut self, before: Option<&Audit>) -> Check<Audit> {
        let mut audit = Audit::default();
        for run in self.runs() {
            self.audit_run(&run, before, &mut audit).await?;
        }
        for place in self.busy_places() {
            let roots = self.client.runs(&place).await?;
            let listed: Vec<&RunId> = roots.iter().map(|shown| &shown.id.run).collect();
            self.beliefs
                .observed(|model| views::rule_1_lists_are_complete("ListRuns", &model.runs_of(&place), &listed))?;
            for root in &roots {
                if let Some(details) = audit.details.get(&root.id) {
                    views::rule_1_views_agree(&details.shown, "ListRuns", root)?;
                }
            }
        }
        for name in self.model().queue_names() {
            self.look_at_queue(&name).await?;
        }
        self.audit_reuse(&audit.details)?;
        if before.is_none() {
            self.audit_relations().await?;
        }
        self.judge_streams(&audit.details, &audit.moments, &audit.counts).await?;
        Ok(audit)
    }

    async fn audit_run(&mut self, run: &RunId, before: Option<&Audit>, audit: &mut Audit) -> Check {
        let rows = self.fault.rows(self.client.actions(run).await?);
        for row in &rows {
            let ended = before.and_then(|b| b.details.get(&row.id)).filter(|d| d.shown.phase.is_terminal());
            let details = match ended {
                Some(details) => details.clone(),
                None => self.fault.details(self.client.details(&row.id).await?),
            };
            self.memory.details(&details)?;
            views::rule_1_views_agree(&details.shown, "ListActions", row)?;
            self.beliefs.observe(&details)?;
            let parent = (!row.parent.is_empty()).then(|| run.action(&row.parent));
            if let Some(parent) = parent {
                *audit.counts.entry(parent).or_default().entry(row.phase.number()).or_default() += 1;
            }
            audit.details.insert(row.id.clone(), details);
        }
        self.list_holds("ListActions", run, &rows)?;
        if before.is_none() {
            let root = self.client.run(run).await?;
            if let Some(details) = audit.details.get(&root.shown.id) {
                views::rule_1_views_agree(details, "GetRunDetails", &root)?;
            }
            self.audit_elsewhere(run, &root).await?;
            self.audit_pages(run).await?;
            self.audit_filters(run, &rows).await?;
            self.audit_snapshots(run, audit).await?;
        }
        self.audit_log(run, audit)
    }

    /// The places where runs may be, and one more.
    pub(super) fn busy_places(&self) -> Vec<Place> {
        let runs = self.beliefs.models().flat_map(Model::runs);
        let mut places: Vec<Place> = runs.map(|(run, _)| run.place.clone()).collect();
        places.push(self.scene.place(0));
        places.sort();
        places.dedup();
        places
    }

    /// A list has the actions that there are, in order, as they are.
    pub(super) fn list_holds(&mut self, view: &str, run: &RunId, rows: &[Shown]) -> Check {
        let ours = self.ours();
        self.beliefs.observed(|model| {
            let (mut expected, mut found) = (model.listed(run), rows.iter().map(|r| r.id.clone()).collect::<Vec<_>>());
            if !ours {
                // Times of creation are somebody else's clock's.
                expected.sort();
                found.sort();
            }
            views::rule_1_lists_are_complete(view, &expected, &found)?;
            rows.iter().try_for_each(|row| model.observe_shown(row))
        })?;
        rows.iter().try_for_each(|row| self.memory.shown(row))
    }

    /// A list of one phase holds what the whole list shows in that phase.
    async fn audit_filters(&self, run: &RunId, rows: &[Shown]) -> Check {
        let Some(row) = rows.get(self.asked.len() % rows.len().max(1)) else { return Ok(()) };
        let expected: Vec<&Shown> = rows.iter().filter(|r| r.phase == row.phase).collect();
        let found = self.client.actions_in(run, row.phase).await?;
        let found: Vec<&Shown> = found.iter().collect();
        views::rule_1_lists_are_complete(&format!("ListActions of {}", row.phase.words()), &expected, &found)
    }

    /// Pages hold what the whole list holds.
    async fn audit_pages(&self, run: &RunId) -> Check {
        let key = KEYS[self.asked.len() % KEYS.len()];
        let limit = 1 + u32::try_from(self.asked.len() % 3).unwrap_or(0);
        if self.model().listed(run).len() <= limit as usize {
            return Ok(());
        }
        let whole: Vec<Shown> = self.client.action_pages(run, 1000, key).await?.concat();
        let pages = self.fault.pages(self.client.action_pages(run, limit, key).await?);
        bounds::rule_10_pages_are_bounded_and_complete(limit as usize, &pages, &whole)
    }

    /// Streams that are opened now say at once what the details show.
    async fn audit_snapshots(&self, run: &RunId, audit: &Audit) -> Check {
        let mut watched = vec![Watched::Actions(run.clone())];
        for parent in audit.counts.keys().filter(|id| id.run == *run) {
            let old = (self.asked.len() + parent.name.len()).is_multiple_of(2);
            watched.push(if old { Watched::ChildrenOld(parent.clone()) } else { Watched::Children(parent.clone()) });
        }
        for watched in watched {
            let heard = self.snapshot(&watched).await?;
            streams::rule_1_every_message_can_be_read(&watched, &heard)?;
            let about = self.about(&watched);
            streams::rule_1_a_snapshot_is_complete(&watched, &heard, &about)?;
            let behind = streams::behind(&heard, &audit.details, &about);
            streams::rule_1_a_watch_loses_nothing(&watched, behind)?;
            streams::rule_1_children_are_counted(&watched, &heard, &audit.counts)?;
        }
        Ok(())
    }

    /// What a stream says at first: to its first sentinel, or all of the actions in one message.
    async fn snapshot(&self, watched: &Watched) -> Check<Heard> {
        let mut stream = self.client.watch(watched).await?;
        let mut heard = Heard::default();
        while heard.end.is_none() && !heard.items.contains(&Item::Sentinel) {
            let next = tokio::time::timeout(self.fault.patience(), message(&mut stream, watched)).await;
            match next {
                Ok(Ok(items)) => heard.items.extend(items),
                Ok(Err(end)) => heard.end = Some(end),
                Err(_) => return streams::rule_1_a_snapshot_comes(watched, &heard).map(|()| heard),
            }
            if matches!(watched, Watched::Actions(_)) {
                break;
            }
        }
        streams::rule_1_a_snapshot_comes(watched, &heard)?;
        Ok(self.fault.heard(heard))
    }

    fn audit_log(&mut self, run: &RunId, audit: &mut Audit) -> Check {
        let ledger = views::rule_1_every_view_can_be_read(self.book.ledger(run))?;
        let ledger = log::rule_1_a_run_has_a_log(run, ledger)?;
        log::rule_1_log_is_numbered_without_gaps(&ledger)?;
        log::rule_1_the_feed_is_in_the_order_of_the_logs(&ledger)?;
        let story = log::rule_1_states_are_the_fold_of_the_log(&ledger)?;
        let is_elsewhere = self.model().run(run).is_some_and(Run::is_elsewhere);
        elsewhere::rule_6_no_worker_has_what_runs_elsewhere(&ledger, is_elsewhere)?;
        log::rule_1_columns_are_projections_of_the_states(&ledger)?;
        log::rule_5_the_log_never_goes_back(&ledger, &story)?;
        log::rule_6_the_log_has_one_holder_per_attempt(&ledger)?;
        let limit = self.model().run(run).and_then(|run| run.most);
        lanes::rule_6_the_log_keeps_the_limit_of_a_run(run, story.most_at_a_time, limit)?;
        for (name, moments) in story.moments {
            let id = run.action(&name);
            let shown = audit.details.get(&id).map(|d| (d.shown.phase, d.shown.attempts));
            views::rule_1_views_agree(&shown, "the log", &moments.last().copied())?;
            audit.moments.insert(id, moments);
        }
        Ok(())
    }

    /// Aborts every run that lives, and lets the records follow.
    async fn end_all(&mut self) -> Check {
        for run in self.runs() {
            let request = crate::ids::Request::Abort {
                run: run.clone(),
                action: None,
                reason: "the end of the sequence".to_owned(),
                via: 0,
            };
            if !self.model().is_over(&run) {
                self.ask(request).await?;
            }
        }
        while self.settle().await? {}
        self.at_rest().await
    }

    /// Waits until the server's own reconcilers have let every record follow.
    async fn at_rest(&mut self) -> Check {
        let deadline = tokio::time::Instant::now() + REST;
        for run in self.runs() {
            while let Some(ledger) = views::rule_1_every_view_can_be_read(self.book.ledger(&run))? {
                if ledger.records.values().all(|r| r.state.phase.is_terminal()) {
                    break;
                }
                if tokio::time::Instant::now() > deadline {
                    return log::rule_5_nothing_lives_below_what_has_ended(&ledger);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Nothing is left that could ever move again.
    fn all_is_over(&mut self, audit: &Audit) -> Check {
        audit.details.values().try_for_each(|details| views::rule_5_an_end_stays(&details.shown, None))?;
        let runs: BTreeSet<RunId> = audit.details.keys().map(|id| id.run.clone()).collect();
        for run in runs {
            let Some(ledger) = views::rule_1_every_view_can_be_read(self.book.ledger(&run))? else { continue };
            log::rule_5_nothing_lives_below_what_has_ended(&ledger)?;
            log::rule_6_what_has_ended_is_nobodys(&ledger)?;
        }
        Ok(())
    }
}
