//! The simulated workers, and the reconcilers' steps.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use aloft_core::{
    ActionName, AttemptOutcome, ErrorKind, LeaseToken, OutputRefs, Phase, Progress as CoreProgress, RunKey, Scope,
    TaskError,
};
use aloft_plane::{AttemptId, ControlPlane as _, LeaseRef, LeasedAttempt, ReportError};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle};

use super::Player;
use crate::{
    door::Refused,
    ids::{ActionId, LOST, Lease, Place, RAISED, RunId, output_prefix},
    model::Attempts,
    rules::{
        Check,
        answers::{self, Answer, Granted, OVER, Reply},
        leases,
    },
    step::Progress,
};

/// The simulated workers' names.
pub(super) fn workers() -> impl Iterator<Item = String> {
    (0..2).map(worker)
}

/// The name of worker number `n`.
pub(super) fn worker(n: u8) -> String {
    format!("worker{}", n % 2)
}

/// What workers have heard of leases that ended by another hand.
#[derive(Default)]
pub(super) struct Hearing {
    heard: Arc<Mutex<BTreeSet<(ActionId, u32, u64)>>>,
    more: Arc<Notify>,
    ears: HashMap<String, JoinHandle<()>>,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.ears.values().for_each(JoinHandle::abort);
    }
}

fn id(attempt: &AttemptId) -> ActionId {
    let scope = &attempt.run.scope;
    let place = Place { project: scope.project.clone(), domain: scope.domain.clone() };
    ActionId { run: RunId { place, name: attempt.run.name.clone() }, name: attempt.action.to_string() }
}

fn granted(worker: &str, leased: &LeasedAttempt) -> Granted {
    let lease = &leased.lease;
    Granted {
        lease: Lease {
            worker: worker.to_owned(),
            action: id(&lease.id),
            attempt: lease.id.attempt,
            token: lease.token.0,
        },
        output_prefix: leased.output_prefix.clone(),
        previous_prefix: leased.previous_prefix.clone(),
        parent: leased.parent.as_ref().map(ToString::to_string),
    }
}

fn lease_ref(lease: &Lease) -> Option<LeaseRef> {
    let place = &lease.action.run.place;
    let scope = Scope::new("local", &place.project, &place.domain).ok()?;
    Some(LeaseRef {
        id: AttemptId {
            run: RunKey::new(scope, &lease.action.run.name).ok()?,
            action: ActionName::new(&lease.action.name).ok()?,
            attempt: lease.attempt,
        },
        token: LeaseToken(lease.token),
    })
}

fn progress(lease: &Lease, progress: &Progress) -> CoreProgress {
    let raised =
        |(code, message): (&str, &str), kind, recoverable: &bool| TaskError::new(code, message, kind, *recoverable);
    let wrote = OutputRefs { output_uri: output_prefix(&lease.action, lease.attempt), report_uri: String::new() };
    match progress {
        Progress::Waiting => CoreProgress::Waiting { reason: "memory".to_owned() },
        Progress::Initializing => CoreProgress::Initializing,
        Progress::Running => CoreProgress::Running,
        Progress::Succeeded => CoreProgress::Ended(AttemptOutcome::Succeeded(wrote)),
        Progress::Failed { recoverable } => {
            let error = raised(RAISED, ErrorKind::User, recoverable);
            CoreProgress::Ended(AttemptOutcome::Failed(error, OutputRefs::default()))
        }
        Progress::Lost { recoverable } => {
            CoreProgress::Ended(AttemptOutcome::Lost(raised(LOST, ErrorKind::System, recoverable)))
        }
    }
}

impl Player<'_> {
    pub(super) async fn take(&self, worker: &str, max: usize) -> Check<Answer> {
        let Some(server) = self.host.inside() else { return Ok(Answer::Done(Reply::Leased(Vec::new()))) };
        let asked = server.seat(worker).await.lease(max, Duration::ZERO).await;
        let leased = leases::rule_6_a_worker_reaches_the_control_plane(worker, asked)?;
        Ok(Answer::Done(Reply::Leased(leased.iter().map(|l| granted(worker, l)).collect())))
    }

    pub(super) async fn report(&self, lease: &Lease, seen: &Progress) -> Check<Answer> {
        let (Some(server), Some(reference)) = (self.host.inside(), lease_ref(lease)) else { return Ok(Answer::Lost) };
        match server.seat(&lease.worker).await.report(&reference, progress(lease, seen)).await {
            Ok(()) => Ok(Answer::Done(Reply::Nothing)),
            Err(ReportError::Over | ReportError::Displaced(_)) => {
                Ok(Answer::Refused(Refused { code: OVER.to_owned(), message: "the attempt is over".to_owned() }))
            }
            Err(ReportError::Unavailable(_)) => Ok(Answer::Lost),
        }
    }

    /// Keeps the leases of an answer.
    pub(super) fn keep(&mut self, answer: &Answer) -> Check {
        let Answer::Done(Reply::Leased(granted)) = answer else { return Ok(()) };
        for one in granted {
            leases::rule_6_output_prefix_is_never_reused(&mut self.prefixes, one)?;
            self.leases.push(one.lease.clone());
        }
        Ok(())
    }

    /// A worker starts anew: it has forgotten everything and asks what it holds. What it is not told, it stops.
    pub(super) async fn reclaim(&mut self, worker: &str) -> Check {
        let Some(server) = self.host.inside() else { return Ok(()) };
        let asked = server.seat(worker).await.reclaim().await;
        let told = leases::rule_6_a_worker_reaches_the_control_plane(worker, asked)?;
        let told = self.fault.reclaimed(told.iter().map(|l| granted(worker, l).lease).collect());
        let named: Attempts = told.iter().map(|l| (l.action.clone(), l.attempt)).collect();
        self.beliefs.observed(|model| {
            let (held, unsettled) = model.attempts_of(worker);
            leases::rule_6_reclaim_names_what_is_held(&named, &held, &unsettled)
        })?;
        let mut heard = self.hearing.heard.lock();
        for lease in self.leases.iter().filter(|l| l.worker == worker && !told.contains(l)) {
            heard.insert((lease.action.clone(), lease.attempt, lease.token));
        }
        Ok(())
    }

    /// Every worker listens for what is taken from it.
    pub(super) async fn hear(&mut self) {
        let Some(server) = self.host.inside().filter(|_| self.fault.hears()) else { return };
        for worker in workers() {
            let (seat, heard, more) =
                (server.seat(&worker).await, self.hearing.heard.clone(), self.hearing.more.clone());
            let ear = tokio::spawn(async move {
                while let Ok(revoked) = seat.revoked().await {
                    if revoked.is_empty() {
                        return; // the server stops
                    }
                    heard.lock().extend(revoked.iter().map(|l| (id(&l.id), l.id.attempt, l.token.0)));
                    more.notify_one();
                }
            });
            if let Some(old) = self.hearing.ears.insert(worker, ear) {
                old.abort();
            }
        }
        tokio::task::yield_now().await;
    }

    /// Every holder of an attempt that ended by another hand hears of it.
    pub(super) async fn all_revocations_are_heard(&mut self) -> Check {
        let mut revoked = 0;
        for lease in &self.leases {
            let action = self.model().run(&lease.action.run).and_then(|run| run.actions.get(&lease.action.name));
            let attempt = action.and_then(|a| a.attempts.iter().find(|a| a.number == lease.attempt));
            let by_another_hand = attempt.is_some_and(|a| matches!(a.phase(), Phase::Aborted | Phase::TimedOut));
            if !by_another_hand {
                continue;
            }
            let key = (lease.action.clone(), lease.attempt, lease.token);
            let wait = async {
                while !self.hearing.heard.lock().contains(&key) {
                    self.hearing.more.notified().await;
                }
            };
            let heard = tokio::time::timeout(self.fault.patience(), wait).await.is_ok();
            leases::rule_6_revocations_reach_the_holder(lease, heard)?;
            revoked += 1;
        }
        (0..revoked).for_each(|_| self.tally.count("revoked"));
        Ok(())
    }

    /// The reconciler looks once; whether it found something.
    pub(super) async fn settle(&mut self) -> Check<bool> {
        let Some(server) = self.host.inside() else { return Ok(false) };
        let found = answers::rule_5_reconcilers_go_on(server.control().settle_once().await)?;
        self.beliefs.happened(crate::model::Model::settle);
        Ok(found > 0)
    }

    /// The one limit that is due ends what it limits.
    pub(super) async fn time_out(&self) -> Check<Answer> {
        let Some(server) = self.host.inside() else { return Ok(Answer::Lost) };
        answers::rule_5_reconcilers_go_on(server.control().check_limits_once(self.host.now()).await)?;
        Ok(Answer::Done(Reply::Nothing))
    }

    pub(super) async fn check_limits(&mut self) -> Check {
        let Some(server) = self.host.inside() else { return Ok(()) };
        let at = self.host.now();
        (0..self.model().given_up(at)).for_each(|_| self.tally.count("given up elsewhere"));
        // What is due below an ended action stays due until its record has followed.
        while answers::rule_5_reconcilers_go_on(server.control().check_limits_once(at).await)?.0.contains(&true) {}
        self.beliefs.happened(|model| model.check_limits(at));
        Ok(())
    }
}
