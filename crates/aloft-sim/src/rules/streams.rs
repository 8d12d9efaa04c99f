//! What streams may say (rules 1 and 5).
//!
//! That a stream says the newest is waited for, but less than the time between its signs of life: what is seen was pushed,
//! not polled (the sentence of rule 8 that holds without Kubernetes).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Check, broken, views::goes_back};
use crate::{
    book::Moment,
    client::Watched,
    door::{CallError, StreamEnd},
    ids::ActionId,
    seen::Details,
    watching::{Heard, Item},
};

/// How long a stream may take to say the newest. Below the heartbeat of 20 s, far above what a busy machine needs.
pub const PUSH: Duration = Duration::from_secs(15);

/// What an item says of an action: its phase, and its attempts if the stream shows them.
fn said(item: &Item) -> Option<(&ActionId, aloft_core::Phase, Option<u32>)> {
    match item {
        Item::Shown(shown) | Item::Counted(shown, _) => Some((&shown.id, shown.phase, Some(shown.attempts))),
        Item::Details(details) => Some((&details.shown.id, details.shown.phase, Some(details.shown.attempts))),
        Item::Update(update) => Some((&update.id, update.phase, None)),
        Item::Sentinel | Item::Unreadable(_) => None,
    }
}

fn is_elsewhere(item: &Item) -> bool {
    match item {
        Item::Shown(shown) | Item::Counted(shown, _) => shown.elsewhere,
        Item::Details(details) => details.shown.elsewhere,
        Item::Update(_) | Item::Sentinel | Item::Unreadable(_) => false,
    }
}

/// Every message of a stream can be read.
pub fn rule_1_every_message_can_be_read(watched: &Watched, heard: &Heard) -> Check {
    match heard.items.iter().find_map(|i| if let Item::Unreadable(what) = i { Some(what) } else { None }) {
        None => Ok(()),
        Some(what) => broken!(rule_1_every_message_can_be_read, "{watched:?}: {what}"),
    }
}

/// Phases never regress on a stream: within an attempt they advance, attempts increase, an end is the last word.
pub fn rule_5_phases_never_regress_on_a_stream(watched: &Watched, heard: &Heard) -> Check {
    let mut last: BTreeMap<&ActionId, (aloft_core::Phase, Option<u32>)> = BTreeMap::new();
    for item in &heard.items {
        let Some((id, phase, attempts)) = said(item) else { continue };
        if let Some((before, attempts_before)) = last.insert(id, (phase, attempts)) {
            let back = match (attempts_before, attempts) {
                (Some(a), Some(b)) => goes_back((before, a), (phase, b), is_elsewhere(item)),
                _ => false,
            };
            if back || (before.is_terminal() && before != phase) {
                return broken!(
                    rule_5_phases_never_regress_on_a_stream,
                    "{watched:?}: {id} was {} and is {}",
                    before.words(),
                    phase.words()
                );
            }
        }
    }
    Ok(())
}

/// What a stream says of an action are moments of the log, in the order of the log.
pub fn rule_1_a_stream_follows_the_log(
    watched: &Watched,
    heard: &Heard,
    moments: impl Fn(&ActionId) -> Option<Vec<Moment>>,
) -> Check {
    let mut at: BTreeMap<&ActionId, (Vec<Moment>, usize)> = BTreeMap::new();
    for item in &heard.items {
        let Some((id, phase, attempts)) = said(item) else { continue };
        if !at.contains_key(id) {
            let Some(story) = moments(id) else {
                return broken!(rule_1_a_stream_follows_the_log, "{watched:?} told of {id}, which is in no log");
            };
            at.insert(id, (story, 0));
        }
        let Some((story, place)) = at.get_mut(id) else { continue };
        let fits = |m: &Moment| m.0 == phase && attempts.is_none_or(|n| n == m.1);
        match story[*place..].iter().position(fits) {
            Some(further) => *place += further,
            None => {
                return broken!(
                    rule_1_a_stream_follows_the_log,
                    "{watched:?}: {id} is told as {} ({attempts:?} attempts) after moment {place} of {story:?}",
                    phase.words()
                );
            }
        }
    }
    Ok(())
}

/// A stream that is opened says how things stand, and does not break off before.
pub fn rule_1_a_snapshot_comes(watched: &Watched, heard: &Heard) -> Check {
    let complete = heard.items.contains(&Item::Sentinel) || matches!(watched, Watched::Actions(_));
    match &heard.end {
        None if complete => Ok(()),
        Some(StreamEnd::Clean) => Ok(()),
        end => broken!(rule_1_a_snapshot_comes, "{watched:?}: {end:?} after {:?}", heard.items),
    }
}

/// What a children's stream says before its first sentinel is every child there was.
pub fn rule_1_a_snapshot_is_complete(watched: &Watched, heard: &Heard, children: &BTreeSet<ActionId>) -> Check {
    let snapshot = heard.items.iter().take_while(|i| **i != Item::Sentinel);
    let told: BTreeSet<ActionId> = snapshot.filter_map(|i| said(i).map(|(id, ..)| id.clone())).collect();
    let complete = heard.items.contains(&Item::Sentinel);
    match children.difference(&told).next() {
        Some(missing) if complete => {
            broken!(rule_1_a_snapshot_is_complete, "{watched:?}: the snapshot does not have {missing}")
        }
        _ => Ok(()),
    }
}

/// What is wrong with the last that a stream said of each action, beside its details; `None` if it is up to date.
pub fn behind(heard: &Heard, now: &BTreeMap<ActionId, Details>, about: &BTreeSet<ActionId>) -> Option<String> {
    for id in about {
        let last = heard.items.iter().rev().find(|item| said(item).is_some_and(|(said, ..)| said == id));
        let Some(details) = now.get(id) else { continue };
        let current = match last {
            Some(Item::Shown(shown) | Item::Counted(shown, _)) => *shown == details.shown,
            Some(Item::Details(told)) => told == details,
            Some(Item::Update(update)) => {
                super::views::rule_1_a_parent_hears_what_the_details_show(details, update).is_ok()
            }
            _ => false,
        };
        if !current {
            return Some(format!("the last it said of {id} is {last:?}, the details are {details:?}"));
        }
    }
    None
}

/// A stream ends up saying what the details show.
pub fn rule_1_a_watch_loses_nothing(watched: &Watched, behind: Option<String>) -> Check {
    match behind {
        None => Ok(()),
        Some(what) => broken!(rule_1_a_watch_loses_nothing, "{watched:?}: {what}"),
    }
}

/// The number of an action's children in each phase, as the last message about it says.
pub fn rule_1_children_are_counted(
    watched: &Watched,
    heard: &Heard,
    counts: &BTreeMap<ActionId, BTreeMap<i32, i32>>,
) -> Check {
    let mut last: BTreeMap<&ActionId, &BTreeMap<i32, i32>> = BTreeMap::new();
    for item in &heard.items {
        if let Item::Counted(shown, counts) = item {
            last.insert(&shown.id, counts);
        }
    }
    for (id, told) in last {
        let none = BTreeMap::new();
        let is = counts.get(id).unwrap_or(&none);
        if told != is {
            return broken!(rule_1_children_are_counted, "{watched:?}: {id} has {is:?}, told were {told:?}");
        }
    }
    Ok(())
}

/// A stream ends by itself when what it watches is over, and not before; one that the server cuts says `unavailable`.
pub fn rule_1_a_stream_ends_with_what_it_watches(watched: &Watched, end: Option<&StreamEnd>, over: bool) -> Check {
    let right = match end {
        None => !over,
        Some(StreamEnd::Clean) => over,
        Some(StreamEnd::Failed(CallError::Refused(r))) => r.code == "unavailable",
        Some(StreamEnd::Failed(CallError::Lost(_))) => true,
        Some(StreamEnd::Failed(CallError::Garbled(_))) => false,
    };
    if right {
        return Ok(());
    }
    broken!(rule_1_a_stream_ends_with_what_it_watches, "{watched:?}: {end:?}, although over is {over}")
}
