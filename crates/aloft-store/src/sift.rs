//! A look through the feed for a few events among many: the others are told apart by their first words, and not read.

use serde::Deserialize;

use crate::FeedItem;

/// Which events are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sift {
    /// Those by which an attempt may end by another hand than its worker's.
    Revocations,
    /// Those of root actions.
    Roots,
}

/// A part of the feed, sifted.
#[derive(Clone, Debug, PartialEq)]
pub struct Sifted {
    /// What was looked for, in commit order.
    pub items: Vec<FeedItem>,
    /// The place up to which was looked.
    pub upto: u64,
    /// Whether there may be more after it.
    pub more: bool,
}

/// The fields that all events begin with.
#[derive(Deserialize)]
struct Head<'j> {
    event: &'j str,
    action: &'j str,
    /// Of a failure: whether it is the platform's.
    #[serde(default)]
    system: bool,
}

impl Sift {
    /// Whether the event of this JSON is looked for. What cannot be told is, so that whoever reads it says why.
    pub fn takes(self, json: &[u8]) -> bool {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(json) else { return true };
        match self {
            Self::Revocations => {
                matches!(head.event, "aborted" | "timed_out") || (head.event == "failed" && head.system)
            }
            Self::Roots => head.action == aloft_core::ROOT_ACTION,
        }
    }
}

#[cfg(test)]
mod tests {
    use aloft_core::{ActionName, EndedBelow, EndedBy, Event, OutputRefs};

    use super::*;

    #[test]
    fn events_are_told_apart_by_their_first_words() {
        let name = |n: &str| ActionName::new(n).unwrap();
        let aborted = |n| Event::Aborted {
            action: name(n),
            by: EndedBy::asked("me", "enough"),
            below: EndedBelow::default(),
            since: None,
        };
        let succeeded = |n| Event::Succeeded {
            action: name(n),
            attempt: 1,
            outputs: OutputRefs::default(),
            below: EndedBelow::default(),
        };
        let takes = |event: Event| {
            let json = serde_json::to_vec(&event).unwrap();
            [Sift::Revocations, Sift::Roots].map(|sift| sift.takes(&json))
        };
        assert_eq!(takes(aborted("x")), [true, false]);
        assert_eq!(takes(aborted("a0")), [true, true]);
        assert_eq!(takes(succeeded("x")), [false, false]);
        assert_eq!(takes(succeeded("a0")), [false, true]);
        assert!(Sift::Roots.takes(b"{"), "damage is not passed over");
    }
}
