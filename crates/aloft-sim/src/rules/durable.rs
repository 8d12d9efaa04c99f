//! What was acknowledged is there (rule 3).

use std::fmt::{Debug, Display};

use super::{Check, Violation, broken};

/// A server that is started again finds its database and serves; one that is asked to stop does.
pub fn rule_3_a_restart_finds_its_database<T>(restarted: Result<T, impl Display>) -> Check<T> {
    match restarted {
        Ok(value) => Ok(value),
        Err(what) => broken!(rule_3_a_restart_finds_its_database, "{what}"),
    }
}

/// What was acknowledged before a restart is seen after it, and what was not is there as a whole or not at all.
pub fn rule_3_acknowledged_survives_restart(seen: Check) -> Check {
    seen.map_err(|v| Violation { rule: "rule_3_acknowledged_survives_restart", what: v.to_string() })
}

/// What a view shows was made by somebody.
pub fn rule_3_what_is_shown_was_made<T>(of: &dyn Display, found: Option<T>) -> Check<T> {
    match found {
        Some(found) => Ok(found),
        None => broken!(rule_3_what_is_shown_was_made, "{of} is shown and nobody made it"),
    }
}

/// A view shows what was done, and nothing else.
pub fn rule_3_views_show_what_was_done<T: PartialEq + Debug>(of: &dyn Display, shown: &T, done: &T) -> Check {
    if shown == done {
        return Ok(());
    }
    broken!(rule_3_views_show_what_was_done, "{of}: {shown:?} instead of {done:?}")
}
