//! Whole fleets, by seed: nothing goes wrong that should not, the same seed plays the same again, and what is wrong on purpose
//! is found.

use aloft_sim::{
    fleet::{self, Defect, Detail},
    search,
};
use parking_lot::Mutex;

/// Seeds played on every change; `make simulate FLEET=1` plays as many as one likes.
const SEEDS: u64 = 2000;

/// What these must reach, each more than a few times.
const REACHED: [&str; 12] = [
    "aborted",
    "another attempt",
    "answer of the database lost",
    "answer to a worker lost",
    "commit of a killed control plane",
    "control plane killed",
    "database away",
    "lease after the turn",
    "message came twice",
    "message very late",
    "worker killed",
    "worker silent",
];

#[test]
fn thousands_of_fleets_break_no_rule() {
    let count = std::env::var("ALOFT_FLEETS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    match fleet::many(0, count, search::cores(), None, |_| ()) {
        Ok(_) if count < SEEDS => {}
        Ok(reached) => REACHED.iter().for_each(|what| assert!(reached.of(what) > 20, "hardly a {what}:\n{reached}")),
        Err(what) => panic!("{what}"),
    }
}

/// Seeds that once broke a rule.
const KEPT: [u64; 1] = [7_004_533];

#[test]
fn what_once_went_wrong_does_not_again() {
    for seed in KEPT {
        search::with_room(|| fleet::play(seed, None, Detail::Events)).unwrap_or_else(|what| panic!("{what}"));
    }
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..50 {
        let play = || search::with_room(|| fleet::play(seed, None, Detail::Everything)).map(|played| played.trace);
        let (one, other) = (play().expect("it breaks no rule"), play().expect("it breaks no rule"));
        let differs = one.iter().zip(&other).position(|(a, b)| a != b);
        assert!(
            one == other,
            "seed {seed} differs at {differs:?}:\n{:?}\n{:?}",
            one.get(differs.unwrap_or(0)),
            other.get(differs.unwrap_or(0))
        );
    }
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    let unfound: Mutex<Vec<Defect>> = Mutex::default();
    for defect in [
        Defect::NoFencing,
        Defect::CommitsOutOfOrder,
        Defect::CommitsSwapped,
        Defect::AcknowledgedTooSoon,
        Defect::NoTurns,
        Defect::NobodyRequeues,
    ] {
        if fleet::many(0, 400, search::cores(), Some(defect), |_| ()).is_ok() {
            unfound.lock().push(defect);
        }
    }
    assert!(unfound.lock().is_empty(), "not found: {:?}", unfound.lock());
}
