//! What must hold of a fleet, whatever went wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use aloft_core::{Attempt, AttemptOutcome, Event, Phase, RunKey, Seed};
use aloft_plane::WORKER_LOST;
use aloft_store::{FeedItem, Store as _};
use tokio_util::sync::CancellationToken;

use super::{
    Acknowledged, Fleet,
    task::{NARROW, REFUSED},
};
use crate::{
    book::{Book, Ledger},
    ids::{Place, RunId},
    rules::{Violation, log},
};

/// Reads the feed from its beginning by cursor, from whichever control plane there is, until `stop`.
pub(super) async fn follow(fleet: Arc<Fleet>, stop: CancellationToken) -> Vec<FeedItem> {
    let (mut heard, mut pos) = (Vec::new(), 0);
    while !stop.is_cancelled() {
        let pause = fleet.weather.up_to(1500);
        tokio::time::sleep(pause).await;
        let Some(replica) = fleet.any_replica() else { continue };
        let read = replica.reach.feed_after(pos, 50);
        let Some(Ok(items)) = replica.life.run_until_cancelled(read).await else { continue };
        pos = items.last().map_or(pos, |item| item.pos);
        heard.extend(items);
    }
    heard
}

/// All that must hold at the end.
pub(super) fn all(fleet: &Fleet, path: &Path, heard: &[FeedItem]) -> Result<(), String> {
    if let Some(what) = fleet.database.broken().into_iter().next() {
        return Err(what);
    }
    let mut book = Book::open(path)?;
    let mut ledgers: BTreeMap<RunKey, Ledger> = BTreeMap::new();
    let acknowledged = fleet.acknowledged.lock().clone();
    for run in acknowledged.iter().map(of_run) {
        if ledgers.contains_key(run) {
            continue;
        }
        let id = RunId {
            place: Place { project: run.scope.project.clone(), domain: run.scope.domain.clone() },
            name: run.name.clone(),
        };
        let Some(ledger) = book.ledger(&id)? else { return Err(format!("{run} was acknowledged and is not there")) };
        ledgers.insert(run.clone(), ledger);
    }
    for ledger in ledgers.values() {
        of_the_log(ledger).map_err(|violation| violation.to_string())?;
    }
    for one in &acknowledged {
        is_there(one, &ledgers[of_run(one)])?;
    }
    what_is_recorded_was_carried_out(fleet, &ledgers)?;
    the_feed_is_the_logs(heard, &ledgers)?;
    the_limit_was_kept(heard, fleet.weather.climate.limit)
}

fn of_run(acknowledged: &Acknowledged) -> &RunKey {
    match acknowledged {
        Acknowledged::Created(run) | Acknowledged::Enqueued(run, _) | Acknowledged::Aborted(run) => run,
        Acknowledged::Ended(lease, _) => &lease.id.run,
    }
}

fn of_the_log(ledger: &Ledger) -> Result<(), Violation> {
    log::rule_1_log_is_numbered_without_gaps(ledger)?;
    log::rule_1_the_feed_is_in_the_order_of_the_logs(ledger)?;
    let story = log::rule_1_states_are_the_fold_of_the_log(ledger)?;
    log::rule_1_columns_are_projections_of_the_states(ledger)?;
    log::rule_5_the_log_never_goes_back(ledger, &story)?;
    log::rule_6_the_log_has_one_holder_per_attempt(ledger)?;
    log::rule_5_nothing_lives_below_what_has_ended(ledger)?;
    log::rule_6_what_has_ended_is_nobodys(ledger)
}

/// Acknowledged means durable (rule 3).
fn is_there(acknowledged: &Acknowledged, ledger: &Ledger) -> Result<(), String> {
    let missing = || Err(format!("{acknowledged:?} was acknowledged and is not there"));
    match acknowledged {
        Acknowledged::Created(_) => Ok(()),
        Acknowledged::Enqueued(_, action) => {
            if ledger.records.contains_key(action.as_str()) {
                Ok(())
            } else {
                missing()
            }
        }
        Acknowledged::Aborted(_) => match ledger.records.get("a0") {
            Some(root) if root.state.phase.is_terminal() => Ok(()),
            _ => missing(),
        },
        Acknowledged::Ended(lease, outcome) => {
            let state = ledger.records.get(lease.id.action.as_str()).map(|r| &r.state);
            let attempt = state.and_then(|s| s.attempts.iter().find(|a| a.number == lease.id.attempt));
            let phase = match outcome {
                AttemptOutcome::Succeeded(_) => Phase::Succeeded,
                AttemptOutcome::Failed(..) | AttemptOutcome::Lost(_) => Phase::Failed,
            };
            // It hears the same where it had ended by another hand: aborted, or given up with its worker.
            let otherwise = |a: &Attempt| {
                matches!(a.phase, Phase::Aborted | Phase::TimedOut)
                    || a.error.as_ref().is_some_and(|e| e.code == WORKER_LOST)
            };
            match attempt {
                // A worker that was started again judges an end whose report is still on its way: what came first holds.
                Some(a) if matches!(outcome, AttemptOutcome::Lost(_)) && a.ended_at.is_some() => Ok(()),
                Some(a) if a.phase == phase || otherwise(a) => Ok(()),
                other => Err(format!("{acknowledged:?} was acknowledged, and recorded is {other:?}")),
            }
        }
    }
}

/// What is recorded as succeeded, or failed by its task, was carried out to that end under that very lease (rule 6).
fn what_is_recorded_was_carried_out(fleet: &Fleet, ledgers: &BTreeMap<RunKey, Ledger>) -> Result<(), String> {
    let finished = fleet.finished.lock();
    for (run, ledger) in ledgers {
        for (name, record) in &ledger.records {
            for attempt in &record.state.attempts {
                let by_its_task = attempt.error.as_ref().is_some_and(|e| e.code == REFUSED);
                let well = attempt.phase == Phase::Succeeded;
                if !well && !by_its_task {
                    continue;
                }
                let lease = attempt.lease.as_ref();
                let done = finished.iter().any(|(token, outcome)| {
                    let same = lease.is_some_and(|l| l.token == *token);
                    same && well == matches!(outcome, AttemptOutcome::Succeeded(_))
                });
                if !done {
                    let (number, ended) = (attempt.number, if well { "succeeded" } else { "failed" });
                    return Err(format!("{run}/{name}/{number} {ended}, and its holder did not carry that out"));
                }
            }
        }
    }
    Ok(())
}

/// Who follows the feed by cursor has heard every event of every run, each log in its order (rule 1).
fn the_feed_is_the_logs(heard: &[FeedItem], ledgers: &BTreeMap<RunKey, Ledger>) -> Result<(), String> {
    if let Some(w) = heard.windows(2).find(|w| w[0].pos >= w[1].pos) {
        return Err(format!("the feed goes back from {} to {}", w[0].pos, w[1].pos));
    }
    for (run, ledger) in ledgers {
        let told: Vec<u64> = heard.iter().filter(|item| item.run == *run).map(|item| item.logged.seq).collect();
        let log: Vec<u64> = ledger.entries.iter().map(|entry| entry.seq).collect();
        if told != log {
            let missing = log.iter().find(|seq| !told.contains(seq));
            return Err(format!(
                "who follows the feed was not told of {run} as its log is; first missing: {missing:?}"
            ));
        }
    }
    Ok(())
}

/// Of the actions in the narrow queue no more were handed out at a time than it allows, over all control planes.
fn the_limit_was_kept(heard: &[FeedItem], limit: u32) -> Result<(), String> {
    let mut narrow: BTreeSet<(RunKey, String)> = BTreeSet::new();
    let mut out: BTreeSet<(RunKey, String)> = BTreeSet::new();
    for item in heard {
        let key = (item.run.clone(), item.logged.event.action().to_string());
        match &item.logged.event {
            Event::Created { seed, .. } => {
                if matches!(&**seed, Seed::Task(task) if task.queue == NARROW) {
                    narrow.insert(key);
                }
            }
            Event::Leased { .. } if narrow.contains(&key) => {
                out.insert(key);
                if out.len() > limit as usize {
                    return Err(format!("{} actions of queue {NARROW} were out at a time: {out:?}", out.len()));
                }
            }
            Event::Failed { .. } | Event::Succeeded { .. } | Event::TimedOut { .. } | Event::Aborted { .. } => {
                out.remove(&key);
            }
            _ => {}
        }
    }
    Ok(())
}
