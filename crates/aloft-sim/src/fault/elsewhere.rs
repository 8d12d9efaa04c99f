//! Defects of runs that are carried out elsewhere.

use super::{Defect, Fault};
use crate::{
    door::Refused,
    ids::Request,
    rules::answers::{Answer, Reply},
};

impl Fault {
    /// What is really reported.
    pub(super) fn miscount(&mut self, request: &mut Request) {
        let asked = request.clone();
        if let (Request::Tell { told, .. }, true) = (request, self.told.contains(&asked)) {
            told.attempt += 1;
        }
        self.told.push(asked);
    }

    /// What is seen of the answer to a report.
    pub(super) fn reported(&mut self, request: &Request, answer: Answer) -> Answer {
        let Request::Tell { action, .. } = request else { return answer };
        let refusal = || {
            let message = format!("action {} has ended", action.name);
            Answer::Refused(Refused { code: "failed_precondition".to_owned(), message })
        };
        match (self.defect, &answer) {
            (Some(Defect::RefusesRepeatedReports), Answer::Done(_)) => {
                if self.told.contains(request) {
                    return refusal();
                }
                self.told.push(request.clone());
                answer
            }
            (Some(Defect::HearsNothing), Answer::Done(_)) => refusal(),
            (Some(Defect::HearsOfTheEnded), Answer::Refused(r)) if r.code == "failed_precondition" => {
                Answer::Done(Reply::Nothing)
            }
            _ => answer,
        }
    }
}
