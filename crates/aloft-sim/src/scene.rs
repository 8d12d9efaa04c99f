//! The names of one sequence, so that sequences share a server without seeing each other.

use crate::{
    ids::{Place, RunId},
    model::{Action, Model, Run},
    step::NOBODY,
};

/// The domains that sequences use.
const DOMAINS: [&str; 2] = ["development", "production"];

/// The names that the numbers of a sequence's steps stand for.
#[derive(Clone, Debug)]
pub struct Scene {
    number: u64,
}

impl Scene {
    /// The names of sequence `number` of a server.
    pub fn new(number: u64) -> Self {
        Self { number }
    }

    /// Its projects.
    pub fn projects(&self) -> [String; 2] {
        [format!("p{}-one", self.number), format!("p{}-two", self.number)]
    }

    /// Every place where its runs can live.
    pub fn places(&self) -> Vec<Place> {
        (0..4).map(|n| self.place(n)).collect()
    }

    /// Place number `n`.
    pub fn place(&self, n: u8) -> Place {
        let project = match n {
            NOBODY => "nobody".to_owned(),
            n => self.projects()[usize::from(n / 2) % 2].clone(),
        };
        Place { project, domain: DOMAINS[usize::from(n) % 2].to_owned() }
    }

    /// The run name that clients give by number. The same in every place.
    pub fn run_name(&self, n: u8) -> String {
        format!("run{n}")
    }

    /// The name that clients give by number to a run that is carried out elsewhere; nobody's is one that is not theirs.
    pub fn name_elsewhere(&self, n: u8) -> String {
        match n {
            NOBODY => self.run_name(0),
            n => format!("elsewhere{n}"),
        }
    }

    /// Run number `n` of those that exist, those that are carried out elsewhere before the others.
    pub fn run_elsewhere(&self, n: u8, model: &Model) -> RunId {
        let (mut runs, others): (Vec<_>, Vec<_>) = model.runs().into_iter().partition(|(_, run)| run.is_elsewhere());
        runs.extend(others);
        match runs.get(usize::from(n) % runs.len().max(1)) {
            Some((id, _)) if n != NOBODY => (*id).clone(),
            _ => self.run(NOBODY, model),
        }
    }

    /// The name of queue number `n`; nobody's is the one that always is.
    pub fn queue(&self, n: u8) -> String {
        match n {
            NOBODY => "default".to_owned(),
            n => format!("q{}-{n}", self.number),
        }
    }

    /// The identifier of request number `n`.
    pub fn request(&self, n: u8) -> String {
        format!("{:08x}-0000-4000-8000-{n:012x}", self.number)
    }

    /// Run number `n` of those that exist.
    pub fn run(&self, n: u8, model: &Model) -> RunId {
        let runs = model.runs();
        match runs.get(usize::from(n) % runs.len().max(1)) {
            Some((id, _)) if n != NOBODY => (*id).clone(),
            _ => RunId { place: self.place(0), name: "nobody".to_owned() },
        }
    }

    /// The action name that parents give by number; 0 is the root's, which is not theirs to give.
    pub fn action_name(&self, n: u8) -> String {
        match n {
            0 => aloft_core::ROOT_ACTION.to_owned(),
            n => format!("x{n}"),
        }
    }

    /// Action number `n` of those of `run` that exist, the conditions before the others.
    pub fn condition(&self, n: u8, run: &RunId, model: &Model) -> String {
        let Some(found) = model.run(run).filter(|_| n != NOBODY) else { return "nobody".to_owned() };
        let is_condition = |name: &&String| found.actions.get(*name).is_some_and(Action::is_condition);
        let (mut names, others): (Vec<_>, Vec<_>) = found.names().into_iter().partition(is_condition);
        names.extend(others);
        names.get(usize::from(n) % names.len().max(1)).map_or_else(String::new, |name| (*name).clone())
    }

    /// Action number `n` of those of `run` that exist; the root is the first.
    pub fn action(&self, n: u8, run: &RunId, model: &Model) -> String {
        let names = model.run(run).map(Run::names).unwrap_or_default();
        match names.get(usize::from(n) % names.len().max(1)) {
            Some(name) if n != NOBODY => (*name).clone(),
            _ => "nobody".to_owned(),
        }
    }
}
