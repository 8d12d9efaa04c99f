//! The invariants of `design.md`, one function each, named after the rule it asserts. A broken one is a [`Violation`] that
//! carries that name.
//!
//! Rule 2 (a pure core) has functions for caching and recovering alone ([`reuse`]): that every answer and every view is the
//! one which the model derives from requests and times alone, whatever restarts, watches and reconcilers came between, is what
//! it asks for otherwise. Rule 8 is
//! about Kubernetes; its one sentence that holds here, that no poll sits between a change and who watches it, is asserted
//! in [`streams`].

pub mod answers;
pub mod bounds;
pub mod durable;
pub mod elsewhere;
pub mod lanes;
pub mod leases;
pub mod log;
pub mod reuse;
pub mod signals;
pub mod streams;
pub mod views;

use std::fmt;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The function that asserts it.
    pub rule: &'static str,
    /// What was seen instead.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What a check returns.
pub type Check<T = ()> = Result<T, Violation>;

/// Fails a check: the rule's function and what was seen.
macro_rules! broken {
    ($rule:ident, $($what:tt)*) => {
        Err($crate::rules::Violation { rule: stringify!($rule), what: format!($($what)*) })
    };
}
use broken;
