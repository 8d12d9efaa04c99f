//! Defects of queues and limits.

use super::{Defect, Fault};
use crate::{
    door::Refused,
    ids::{Lease, Request},
    lanes::{Change, ShownQueue},
    rules::answers::{Answer, Granted, Reply},
};

impl Fault {
    /// What is really declared.
    pub(super) fn declared(&self, request: &mut Request) {
        if !self.is(Defect::IgnoresLimits) {
            return;
        }
        if let Request::Create { lane, .. } = request {
            lane.most = 0;
        }
    }

    /// What is seen of the answer to new work, and to a change of a queue.
    pub(super) fn admitted(&self, request: &Request, answer: Answer) -> Answer {
        let work = matches!(request, Request::Create { .. } | Request::Enqueue { .. });
        let fake = || Answer::Done(Reply::Nothing);
        match (self.defect, answer) {
            (Some(Defect::OverfillsQueues), Answer::Refused(r)) if r.code == "resource_exhausted" => fake(),
            (Some(Defect::FillsClosedQueues), Answer::Refused(r))
                if work && r.code == "invalid_argument" && r.message.contains("queue") =>
            {
                fake()
            }
            (Some(Defect::TurnsWorkAway), Answer::Done(_)) if matches!(request, Request::Enqueue { .. }) => {
                let message = "the queue is full".to_owned();
                Answer::Refused(Refused { code: "resource_exhausted".to_owned(), message })
            }
            (Some(Defect::DeletesWork), Answer::Refused(r)) if !work && r.code == "failed_precondition" => fake(),
            (Some(Defect::RenamesQueues), Answer::Refused(r)) if !work && r.code == "already_exists" => fake(),
            (Some(Defect::ForgetsQueues), Answer::Done(Reply::Queue(mut shown))) => {
                if matches!(request, Request::Queue { change: Change::Update(_), .. }) {
                    shown.generation = 1;
                }
                Answer::Done(Reply::Queue(shown))
            }
            (_, answer) => answer,
        }
    }

    /// What is handed out.
    pub(super) fn passed_by(&self, worker: &str, granted: &mut Vec<Granted>) {
        let by = |lease: &Lease| lease.worker == worker;
        if self.is(Defect::PassesBy) && granted.first().is_some_and(|g| by(&g.lease)) {
            granted.pop();
        }
    }

    /// Whether it is said what limits hold back.
    pub fn says_what_is_held(&self) -> bool {
        !self.is(Defect::KeepsSilent)
    }

    /// Whether something that waits is shown as held back.
    pub fn seems_held(&self, held: bool) -> bool {
        held || self.is(Defect::HoldsBackTheFree)
    }

    /// What is said to be waited for.
    pub fn words(&self, said: Vec<String>) -> Vec<String> {
        if self.is(Defect::MumblesWhatIsHeld) { vec!["please wait".to_owned()] } else { said }
    }

    /// What is seen of a queue.
    pub fn queue(&self, mut shown: ShownQueue) -> ShownQueue {
        if self.is(Defect::MiscountsQueues) {
            shown.load[0] += 1;
        }
        shown
    }
}
