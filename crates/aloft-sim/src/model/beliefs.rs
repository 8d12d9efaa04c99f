//! All that may be the case: one model as a rule, several after an answer was lost or requests were asked at once.

use super::{Asked, Model};
use crate::{
    rules::{
        Check, Violation,
        answers::{Answer, rule_5_concurrent_requests_have_one_order},
    },
    seen::{Details, Shown},
};

/// Most models that are kept apart. Three requests at once have six orders, each with its doubts; views thin them out.
const MOST: usize = 64;

/// The models that fit all that was answered and seen.
#[derive(Clone, Debug)]
pub struct Beliefs(Vec<Model>);

impl Beliefs {
    /// Certainty.
    pub fn new(model: Model) -> Self {
        Self(vec![model])
    }

    /// One of the models. Which, makes no difference to what was seen.
    pub fn model(&self) -> &Model {
        // Never empty: every method that would leave nothing is a violation and leaves all.
        &self.0[0]
    }

    /// All of them.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.0.iter()
    }

    fn each(&mut self, next: impl Fn(&Model) -> Check<Vec<Model>>) -> Check {
        let mut possible: Vec<Model> = Vec::new();
        let mut wrong = None;
        for model in &self.0 {
            match next(model) {
                Ok(models) => {
                    for model in models {
                        if !possible.contains(&model) {
                            possible.push(model);
                        }
                    }
                }
                Err(violation) => wrong = wrong.or(Some(violation)),
            }
        }
        match wrong {
            Some(violation) if possible.is_empty() => Err(violation),
            _ => {
                possible.truncate(MOST);
                self.0 = possible;
                Ok(())
            }
        }
    }

    /// A request was answered.
    ///
    /// # Errors
    /// The rule that the answer breaks in every model.
    pub fn answered(&mut self, asked: Asked<'_>, answer: &Answer) -> Check {
        self.each(|model| model.next(asked, answer))
    }

    /// Requests were asked at once. Their answers must be those of one order of them.
    ///
    /// # Errors
    /// The rule that the first order breaks, when every order breaks one.
    pub fn raced(&mut self, asked: &[(Asked<'_>, Answer)]) -> Check {
        let orders = orders(asked.len());
        self.each(|model| {
            let mut possible: Vec<Model> = Vec::new();
            let mut wrong: Option<Violation> = None;
            for order in &orders {
                let mut models = vec![model.clone()];
                for &n in order {
                    let mut after = Vec::new();
                    for model in &models {
                        match model.next(asked[n].0, &asked[n].1) {
                            Ok(next) => after.extend(next),
                            Err(violation) => wrong = wrong.take().or(Some(violation)),
                        }
                    }
                    models = after;
                }
                possible.extend(models);
            }
            rule_5_concurrent_requests_have_one_order(!possible.is_empty(), &asked, wrong.as_ref())?;
            Ok(possible)
        })
    }

    /// Something happened in every case.
    pub fn happened(&mut self, change: impl Fn(&mut Model)) {
        self.0.iter_mut().for_each(change);
        self.0.dedup();
    }

    /// A view showed an action.
    ///
    /// # Errors
    /// What no model has.
    pub fn observe_shown(&mut self, shown: &Shown) -> Check {
        self.observed(|model| model.observe_shown(shown))
    }

    /// A view showed all of an action.
    ///
    /// # Errors
    /// What no model has.
    pub fn observe(&mut self, details: &Details) -> Check {
        self.observed(|model| model.observe(details))
    }

    /// Keeps the models that a view fits.
    ///
    /// # Errors
    /// What is wrong with the first, when it fits none.
    pub fn observed(&mut self, fits: impl Fn(&mut Model) -> Check) -> Check {
        if let [only] = self.0.as_mut_slice() {
            return fits(only);
        }
        self.each(|model| {
            let mut model = model.clone();
            fits(&mut model)?;
            Ok(vec![model])
        })
    }
}

/// Every order of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(n - 1);
    shorter
        .iter()
        .flat_map(|order| {
            (0..n).map(move |at| {
                let mut order = order.clone();
                order.insert(at, n - 1);
                order
            })
        })
        .collect()
}
