//! What data planes ask: leases, reports, revocations.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aloft_core::{
    ActionName, ActionState, Command, Event, Lease, LeaseToken, Never, Progress, Refusal, Reply, RunKey, WorkerId, plan,
};
use aloft_flyteidl2::flyteidl2::task::RunSpec;
use aloft_plane::{AttemptId, LeaseRef, LeasedAttempt, ReportError, WORKER_LOST};
use aloft_store::{InTurn, OfferPlace, RunRecord, Sift, StoreError, Submission, SubmitError, Turn, Which};
use buffa::Message as _;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::watch;

use crate::{Control, names};

/// Groups of one run and queue that one plan looks at. Their heads fit in one read of a few milliseconds; what lies beyond
/// is looked at next.
pub(crate) const GROUPS: usize = 512;

/// Events of the feed read at a time while looking for revocations.
const FEED_BATCH: usize = 1000;

/// Attempts that a worker is told at a time that it holds: some 5 MB of states.
const HELD_PART: usize = 2048;

/// How old a plan may be when it is carried out. Less than what a store takes a turn away after, so that its work is hardly
/// ever in vain.
const MOMENT: Duration = Duration::from_secs(5);

/// Names and values of environment variables.
type Envs = Vec<(String, String)>;

/// A session of a worker at this control plane.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) worker: WorkerId,
    pub(crate) number: u64,
    /// The session that its seat has, if it has one.
    pub(crate) seat: watch::Sender<Option<u64>>,
}

impl Session {
    /// Says that it is over.
    pub(crate) fn end(&self) {
        self.seat.send_if_modified(|now| now.take_if(|s| *s == self.number).is_some());
    }
}

pub(crate) fn unavailable(error: StoreError) -> ReportError {
    ReportError::Unavailable(error.to_string())
}

impl Control {
    /// Up to `max` attempts that are ready, leased to the worker of a session. Waits up to `wait` for the first, or until
    /// `draining`. May be given up: what is under way then is finished, and is the worker's by the record.
    pub(crate) async fn lease_to(
        &self,
        session: &Session,
        max: usize,
        wait: Duration,
        draining: &mut watch::Receiver<bool>,
    ) -> Result<Vec<LeasedAttempt>, ReportError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut feed = self.store().feed();
        loop {
            feed.mark_unchanged();
            let (control, to) = (self.clone(), session.clone());
            let granting = tokio::spawn(async move { control.grant_described(&to, max).await });
            let failed = |e| ReportError::Unavailable(format!("the dispatcher failed, which is a defect: {e}"));
            let (taken, next) = granting.await.map_err(failed)??;
            if !taken.is_empty() {
                return Ok(taken);
            }
            let until = match next {
                Some(length) => deadline.min(tokio::time::Instant::now() + length + Duration::from_millis(1)),
                None => deadline,
            };
            tokio::select! {
                () = self.stopping().cancelled() => return Ok(Vec::new()),
                _ = draining.wait_for(|draining| *draining) => return Ok(Vec::new()),
                _ = feed.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(Vec::new());
            }
        }
    }

    /// Some of the attempts that `worker` holds, after the place `after`, and where to go on unless these were the last.
    pub(crate) async fn held_part(
        &self,
        worker: &WorkerId,
        after: Option<i64>,
    ) -> Result<(Vec<LeasedAttempt>, Option<i64>), ReportError> {
        let (held, next) = self.store().held_part(worker, after, HELD_PART).await.map_err(unavailable)?;
        Ok((self.describe(held).await?, next))
    }

    /// What the holder of a lease saw.
    pub(crate) async fn take_report(&self, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError> {
        let command = Command::Report {
            action: lease.id.action.clone(),
            attempt: lease.id.attempt,
            token: lease.token,
            progress,
        };
        match self.store().submit(Submission::new(lease.id.run.clone(), command)).await {
            Ok(_) => Ok(()),
            Err(SubmitError::Store(error)) => Err(unavailable(error)),
            Err(SubmitError::Refused(refusal)) => {
                tracing::debug!(attempt = %lease.id, %refusal, "a report was refused");
                Err(ReportError::Over)
            }
        }
    }

    /// The leases of `worker` that were ended by another hand after place `pos` of the feed, and its last place.
    pub(crate) async fn revoked_after(&self, worker: &WorkerId, pos: u64) -> Result<(Vec<LeaseRef>, u64), ReportError> {
        let (ended, last) = self.ended_after(pos).await?;
        let mut revoked = Vec::new();
        for (run, action) in ended {
            let which = Which::One(action);
            let snapshot = self.store().snapshot(&run, which).await.map_err(unavailable)?;
            let Some(state) = snapshot.and_then(|s| s.actions.into_iter().next()) else { continue };
            revoked.extend(ended_leases(&run, &state, worker));
        }
        Ok((revoked, last))
    }
}

/// The leases of `worker` on attempts of `state` that have ended.
fn ended_leases(run: &RunKey, state: &ActionState, worker: &WorkerId) -> Vec<LeaseRef> {
    let over = state.attempts.iter().filter(|a| a.phase.is_terminal());
    over.filter_map(|a| a.lease.as_ref().filter(|l| &l.worker == worker).map(|l| (a.number, l.token)))
        .map(|(attempt, token)| LeaseRef {
            id: AttemptId { run: run.clone(), action: state.name.clone(), attempt },
            token,
        })
        .collect()
}

impl Control {
    /// The actions that were ended by another hand than their worker's after place `pos` of the feed, and its last place.
    async fn ended_after(&self, mut pos: u64) -> Result<(Vec<(RunKey, ActionName)>, u64), ReportError> {
        let mut ended = Vec::new();
        loop {
            let found = self.store().sift_feed(pos, FEED_BATCH, Sift::Revocations).await.map_err(unavailable)?;
            pos = found.upto;
            ended.extend(found.items.into_iter().filter_map(|item| match item.logged.event {
                Event::Aborted { action, .. } | Event::TimedOut { action, .. } => Some((item.run, action)),
                // Its worker was given up: if it lives, it must hear of it.
                Event::Failed { action, error, .. } if error.code == WORKER_LOST => Some((item.run, action)),
                _ => None,
            }));
            if !found.more {
                return Ok((ended, pos));
            }
        }
    }

    /// As [`Control::grant`], with what the worker needs to run it.
    async fn grant_described(
        &self,
        session: &Session,
        max: usize,
    ) -> Result<(Vec<LeasedAttempt>, Option<Duration>), ReportError> {
        let (taken, next) = self.grant(session, max).await?;
        Ok((self.describe(taken).await?, next))
    }

    /// Leases up to `max` waiting actions to the worker of `session`, within all limits; and says how long until the next
    /// becomes ready. Nothing if the session is over: what a worker is leased before it begins another session is among what it
    /// is told then that it holds ([`Self::granted`]), and afterwards nothing more comes to it by this one.
    async fn grant(
        &self,
        session: &Session,
        max: usize,
    ) -> Result<(Vec<(RunKey, ActionState)>, Option<Duration>), ReportError> {
        // One grant at a time in this process, and by its turn in all that share the store.
        let mut place = self.0.dispatch.lock().await;
        let from = place.clone();
        let mut wrapped = from == OfferPlace::default();
        loop {
            let now = self.now();
            let found = self.store().offer_in_turn(&session.worker, now, &place, GROUPS, max).await;
            let InTurn { turn, offered: part, worker } = found.map_err(unavailable)?;
            if !worker.is_some_and(|r| r.session == session.number && !r.expired) {
                session.end();
                return Ok((Vec::new(), None));
            }
            let next = part.next_ready.map(|at| at.since(now));
            let planned = plan(part.offer, max);
            for never in planned.never {
                self.reject(never).await;
            }
            if turn.age() > MOMENT {
                // Another may have its turn by now, and then nothing of this is taken.
                tracing::warn!(
                    "a plan took {:?} and is dropped; is this machine or the database overloaded?",
                    turn.age()
                );
                continue;
            }
            // All at once, so that they share one commit.
            let grants =
                planned.grants.into_iter().map(|grant| self.take(&session.worker, &turn, grant.run, grant.action));
            let answers = join_all(grants).await;
            drop(turn);
            let (mut taken, mut turn_over) = (Vec::new(), false);
            for answer in answers {
                match answer {
                    Ok(leased) => taken.extend(leased),
                    Err(StoreError::TurnOver) => turn_over = true,
                    Err(error) => return Err(unavailable(error)),
                }
            }
            if turn_over && taken.is_empty() {
                continue;
            }
            *place = part.next.unwrap_or_default();
            let start = *place == OfferPlace::default();
            wrapped |= start;
            if !taken.is_empty() || (wrapped && (start || place.run >= from.run)) {
                return Ok((taken, next));
            }
        }
    }

    /// Waits until all that is being leased is leased, by every control plane, or never will be: who looks afterwards what a
    /// worker holds sees all that came to it by a session which was over before.
    pub(crate) async fn granted(&self) -> Result<(), StoreError> {
        let _ours = self.0.dispatch.lock().await;
        self.store().take_turn().await.map(drop)
    }

    async fn reject(&self, never: Never) {
        let command = Command::Reject { action: never.action.clone(), error: never.error };
        if let Err(error) = self.store().submit(Submission::new(never.run.clone(), command)).await {
            tracing::warn!(%error, run = %never.run, action = %never.action, "cannot fail an action that can never run");
        }
    }

    /// Leases one action's waiting attempt; `None` if another was faster or it has ended. After an error other than
    /// [`StoreError::TurnOver`] it may be leased all the same: only the worker's next `reclaim` tells.
    async fn take(
        &self,
        worker: &WorkerId,
        turn: &Turn,
        run: RunKey,
        action: ActionName,
    ) -> Result<Option<(RunKey, ActionState)>, StoreError> {
        let lease = Lease { worker: worker.clone(), token: LeaseToken(names::lease_token()) };
        let command = Command::Lease { action: action.clone(), lease };
        let submission = Submission { turn: turn.number(), ..Submission::new(run.clone(), command) };
        match self.store().submit(submission).await {
            Ok(Reply::Leased(state)) => Ok(Some((run, *state))),
            Ok(Reply::Done | Reply::Created(_) | Reply::Unchanged)
            | Err(SubmitError::Refused(Refusal::NotReady(_))) => Ok(None),
            Err(SubmitError::Refused(refusal)) => {
                tracing::warn!(%refusal, run = %run, action = %action, "cannot lease an action");
                Ok(None)
            }
            Err(SubmitError::Store(error)) => Err(error),
        }
    }

    /// Adds to leased actions what a worker needs to run them.
    async fn describe(&self, held: Vec<(RunKey, ActionState)>) -> Result<Vec<LeasedAttempt>, ReportError> {
        let mut runs: HashMap<RunKey, (Arc<RunRecord>, RunSpec, Envs)> = HashMap::new();
        let mut specs: HashMap<String, Bytes> = HashMap::new();
        let mut described = Vec::with_capacity(held.len());
        for (run, state) in held {
            if !runs.contains_key(&run) {
                match self.run_with_spec(&run).await? {
                    Ok(found) => drop(runs.insert(run.clone(), found)),
                    // One run that is damaged must not stop the others.
                    Err(reason) => {
                        tracing::error!(run = %run, "an action of this run cannot be handed out: {reason}");
                        continue;
                    }
                }
            }
            let (Some((record, spec, envs)), Some(task)) = (runs.get(&run), state.task()) else { continue };
            let digest = &task.task.digest;
            if !specs.contains_key(digest) {
                let bytes = self.stored(digest).await.map_err(unavailable)?;
                specs.insert(digest.clone(), bytes.unwrap_or_default());
            }
            let task_spec = specs.get(digest).cloned().unwrap_or_default();
            if let Some(attempt) = self.describe_one(record, spec, envs, &state, task_spec) {
                described.push(attempt);
            }
        }
        Ok(described)
    }

    /// A run, its specification, and the environment variables it has from the settings; or why it will never have them.
    async fn run_with_spec(
        &self,
        run: &RunKey,
    ) -> Result<Result<(Arc<RunRecord>, RunSpec, Envs), String>, ReportError> {
        let Some(record) = self.record(run).await.map_err(unavailable)? else {
            return Ok(Err("the run is gone".to_owned()));
        };
        let bytes = self.stored(&record.info.spec_digest).await.map_err(unavailable)?;
        let spec = match RunSpec::decode_from_slice(&bytes.unwrap_or_default()) {
            Ok(spec) => spec,
            Err(error) => return Ok(Err(format!("its specification is damaged: {error}"))),
        };
        let envs = self.default_envs(run, &spec).await.map_err(unavailable)?;
        Ok(Ok((record, spec, envs)))
    }

    fn describe_one(
        &self,
        record: &RunRecord,
        spec: &RunSpec,
        default_envs: &[(String, String)],
        state: &ActionState,
        task_spec: Bytes,
    ) -> Option<LeasedAttempt> {
        let (task, attempt, lease) = (state.task()?, state.current()?, state.live_lease()?);
        let base = task.run_output_base.trim_end_matches('/');
        let prefix = |number: u32| format!("{base}/{}/{number}", state.name);
        let previous = attempt.number - 1;
        let raw = spec.raw_data_storage.as_option().map(|r| r.raw_data_prefix.clone()).unwrap_or_default();
        let envs = spec.envs.as_option().map(|e| e.values.clone()).unwrap_or_default();
        Some(LeasedAttempt {
            lease: LeaseRef {
                id: AttemptId { run: record.key.clone(), action: state.name.clone(), attempt: attempt.number },
                token: lease.token,
            },
            phase: attempt.phase,
            parent: state.parent().cloned(),
            depth: u32::try_from(state.ancestors.len()).unwrap_or(u32::MAX),
            task_spec,
            input_uri: task.input_uri.clone(),
            output_prefix: prefix(attempt.number),
            run_base: self.run_base(&record.key, &record.info, spec),
            raw_data_prefix: raw,
            previous_prefix: if previous == 0 { String::new() } else { prefix(previous) },
            default_envs: default_envs.to_vec(),
            resource_defaults: (*spec.default_settings.task_resource_defaults).clone(),
            envs: envs.into_iter().map(|kv| (kv.key, kv.value)).collect(),
            run_start_time: record.info.start_time,
        })
    }
}
