//! Defects of conditions.

use aloft_core::Phase;

use super::{Defect, Fault};
use crate::{
    door::Refused,
    ids::Request,
    rules::answers::{Answer, Reply},
    seen::{Details, Shown},
    watching::{Heard, Item},
};

impl Fault {
    /// What is seen of the answer to a signal.
    pub(super) fn signalled(&mut self, request: &Request, answer: Answer) -> Answer {
        let refusal = |message: &str| {
            Answer::Refused(Refused { code: "failed_precondition".to_owned(), message: message.to_owned() })
        };
        let Request::Signal { action, .. } = request else { return answer };
        match (self.defect, &answer) {
            (Some(Defect::TakesAnySignal), Answer::Refused(r)) if r.code == "invalid_argument" => {
                Answer::Done(Reply::Nothing)
            }
            (Some(Defect::SignalsTheEnded), Answer::Refused(r)) if r.code == "failed_precondition" => {
                Answer::Done(Reply::Nothing)
            }
            (Some(Defect::RefusesRepeatedSignals), Answer::Done(_)) => {
                if self.signals.contains(request) {
                    return refusal(&format!("condition {} was signalled already", action.name));
                }
                self.signals.push(request.clone());
                answer
            }
            (Some(Defect::DoesNotHear), Answer::Done(_)) => refusal(&format!("action {} has ended", action.name)),
            _ => answer,
        }
    }

    /// What is seen of a condition.
    pub(super) fn condition(&self, mut details: Details) -> Details {
        match self.defect {
            Some(Defect::HidesValues) => details.signal = None,
            Some(Defect::NamesAnother) => {
                details.signal.iter_mut().for_each(|s| s.by.subject = "somebody".to_owned());
            }
            _ => {}
        }
        self.unpause(&mut details.shown);
        details
    }

    /// What is seen of a condition in a list.
    pub(super) fn unpause(&self, shown: &mut Shown) {
        if self.is(Defect::EndsPauses) && shown.phase == Phase::Paused {
            shown.phase = Phase::Succeeded;
        }
    }

    /// What a parent hears of a condition.
    pub(super) fn told(&self, heard: &mut Heard) {
        if !self.is(Defect::KeepsValuesToItself) {
            return;
        }
        for item in &mut heard.items {
            if let Item::Update(update) = item {
                update.value = None;
            }
        }
    }
}
