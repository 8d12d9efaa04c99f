//! Runs that are carried out elsewhere, and what is reported of them.

use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::{Hands, abort, enqueue, known, lane, sequence, work};
use crate::{
    elsewhere::{Said, Stage},
    step::{Command, Kind, NOBODY, Naming, Policy, Step, Work},
};

/// The sequence of `seed`, as drawn. One of four has a run in it that is carried out elsewhere, beside what it would have
/// been without.
pub fn drawn(hands: Hands, seed: u64) -> BoxedStrategy<Vec<Step>> {
    if seed % 4 != 3 {
        return sequence(hands);
    }
    let phrases = vec((any::<Index>(), phrase(hands)), 2..=8);
    let first = begin(Just(0u8), Naming::Named(0)).prop_map(Step::Do);
    (sequence(hands), first, phrases)
        .prop_map(|(mut steps, first, phrases)| {
            steps.insert(steps.len().min(1), first);
            for (at, phrase) in phrases {
                let at = 2 + at.index(steps.len());
                let rest = steps.split_off(at.min(steps.len()));
                steps.extend(phrase);
                steps.extend(rest);
            }
            steps
        })
        .boxed()
}

fn begin(place: impl Strategy<Value = u8>, name: Naming) -> impl Strategy<Value = Command> {
    (place, retried(), option::of(0u8..2), lane()).prop_map(move |(place, work, start, lane)| Command::Track {
        place,
        name: name.clone(),
        work,
        start,
        lane,
    })
}

/// Mostly work that its reporter tries again.
fn retried() -> impl Strategy<Value = Work> {
    let again = (0u8..2, 1u8..3).prop_map(|(task, retries)| Work {
        task,
        input: 0,
        policy: Policy { retries, ..Policy::default() },
    });
    prop_oneof![3 => again, 1 => work()]
}

fn begins() -> impl Strategy<Value = Command> {
    let name = prop_oneof![
        8 => (0u8..2).prop_map(Naming::Named),
        2 => (0u8..3).prop_map(Naming::Request),
        1 => Just(Naming::Nameless),
        2 => Just(Naming::Named(NOBODY)),
    ];
    name.prop_flat_map(|name| begin(known(0..2), name))
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        1 => Just(Stage::Queued),
        1 => Just(Stage::Waiting),
        1 => Just(Stage::Initializing),
        5 => Just(Stage::Running),
        3 => Just(Stage::Succeeded),
        4 => prop::bool::weighted(0.8).prop_map(|again| Stage::Failed { again }),
        1 => prop::bool::weighted(0.8).prop_map(|again| Stage::TimedOut { again }),
        1 => Just(Stage::Aborted),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    let attempt = prop_oneof![6 => Just(1u8), 3 => Just(2), 1 => Just(3)];
    let ago = option::weighted(0.5, prop_oneof![Just(-10i16), Just(0), Just(1), Just(60), Just(2000)]);
    (attempt, 0u8..4, stage(), ago, any::<bool>()).prop_map(|(attempt, version, stage, ago, wrote)| Said {
        attempt,
        version,
        stage,
        ago,
        wrote: wrote && stage == Stage::Succeeded,
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => retried().prop_map(Kind::Task), 1 => (0u8..2).prop_map(|name| Kind::Trace { name, failed: false })]
}

fn tell() -> impl Strategy<Value = Command> {
    let run = prop_oneof![12 => Just(0u8), 2 => Just(1), 1 => Just(2), 1 => Just(NOBODY)];
    let action = prop_oneof![1 => Just(0u8), 4 => 1u8..5];
    (run, action, known(0..3), option::weighted(0.8, kind()), said())
        .prop_map(|(run, action, parent, kind, said)| Command::Tell { run, action, parent, kind, said })
}

/// An attempt as it goes on, in any order, with something said twice.
fn story() -> impl Strategy<Value = Vec<Step>> {
    let stages = (1u8..5, kind(), stage(), stage(), 1u8..3);
    let steps = stages.prop_map(|(action, kind, second, third, attempt)| {
        let tell = |version: u8, attempt: u8, stage: Stage| {
            let said = Said { attempt, version, stage, ago: None, wrote: stage == Stage::Succeeded };
            Step::Do(Command::Tell { run: 0, action, parent: 0, kind: Some(kind.clone()), said })
        };
        vec![tell(0, 1, Stage::Running), tell(1, 1, second), Step::Again(0), tell(2, attempt, third)]
    });
    (steps, any::<bool>(), any::<Index>(), any::<Index>()).prop_map(|(mut steps, late, one, other)| {
        if late {
            let len = steps.len();
            steps.swap(one.index(len), other.index(len));
        }
        steps
    })
}

/// An attempt fails and another is to come, which nobody reports for longer than anybody waits.
fn given_up() -> impl Strategy<Value = Vec<Step>> {
    (0u8..5, retried(), said()).prop_map(|(action, work, last)| {
        let tell =
            |said| Step::Do(Command::Tell { run: 0, action, parent: 0, kind: Some(Kind::Task(work.clone())), said });
        let failed = Said { attempt: 1, version: 3, stage: Stage::Failed { again: true }, ago: None, wrote: false };
        vec![tell(failed), Step::Wait(61_500), Step::CheckLimits, tell(last)]
    })
}

fn phrase(hands: Hands) -> BoxedStrategy<Vec<Step>> {
    let one = |command: Command| vec![Step::Do(command)];
    let ours = prop_oneof![
        10 => tell().prop_map(one),
        4 => story(),
        2 => begins().prop_map(one),
        2 => vec(tell(), 2..=3).prop_map(|commands| vec![Step::Race(commands)]),
        1 => (tell(), prop_oneof![abort(), enqueue()]).prop_map(|(one, other)| vec![Step::Race(vec![one, other])]),
        1 => (0u8..4).prop_map(|back| vec![Step::Again(back)]),
        1 => tell().prop_map(|tell| vec![Step::Cut(tell)]),
        1 => prop_oneof![(Just(1u8), 0u8..3), (0u8..2, Just(2))]
            .prop_map(move |(run, via)| one(Command::Abort { run, action: None, via })),
    ];
    match hands {
        Hands::Ours => prop_oneof![12 => ours, 1 => given_up()].boxed(),
        Hands::Theirs => ours.boxed(),
    }
}
