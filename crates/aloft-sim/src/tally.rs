//! What sequences have reached, to see that they reach what they should.

use std::{collections::BTreeMap, fmt};

use aloft_core::Phase;

use crate::{
    ids::Request,
    model::{DISABLED, HIT, MISS},
    rules::answers::{Answer, Reply},
    seen::{Details, SeenAttempt},
};

/// How often what was reached.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// Counts a request by its answer.
    pub fn answered(&mut self, request: &Request, answer: &Answer) {
        let kind = match request {
            Request::Create { .. } => "create",
            Request::Enqueue { .. } => "enqueue",
            Request::Abort { .. } => "abort",
            Request::Lease { .. } => "lease",
            Request::Report { .. } => "report",
            Request::Signal { .. } => "signal",
            Request::Track { .. } => "track",
            Request::Tell { .. } => "tell",
            Request::TimeOut => "time out",
            Request::Queue { .. } => "queue",
        };
        let how = match answer {
            Answer::Done(Reply::Leased(granted)) if granted.is_empty() => "nothing",
            Answer::Done(_) => "done",
            Answer::Refused(refused) => refused.code.as_str(),
            Answer::Lost => "lost",
        };
        self.count(format!("{kind}: {how}"));
    }

    /// Counts an action that was looked up in the cache by what came of it.
    pub fn looked_up(&mut self, details: &Details) {
        let what = match details.shown.cache {
            DISABLED => "waits",
            MISS => "miss",
            HIT => "hit",
            _ => "skipped or failed",
        };
        self.count(format!("looked up: {what}"));
    }

    /// Counts an action by its end.
    pub fn ended(&mut self, details: &Details) {
        self.count(format!("ended: {}", details.shown.phase.words()));
        if details.shown.elsewhere {
            let unreported = |a: &SeenAttempt| a.error.as_ref().is_some_and(|e| e.code == "EndNotReported");
            self.count(format!("ended elsewhere: {}", details.shown.phase.words()));
            if details.attempts.iter().any(unreported) {
                self.count("ended elsewhere: attempt not reported");
            }
        }
        if details.attempts.len() > 1 {
            self.count("ended: after a retry");
        }
        if details.signal.is_some() {
            self.count("ended: signalled");
        }
        if details.shown.phase == Phase::Recovered && details.condition.is_some() {
            self.count("ended: recovered condition");
        }
        if details.shown.cache == HIT {
            self.count("ended: cache hit");
        }
        if let Some(error) = &details.error {
            self.count(format!("error: {}", error.code));
        }
    }

    /// Adds what others have reached.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// How often `what` was reached.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| writeln!(f, "{count:>10} {what}"))
    }
}
