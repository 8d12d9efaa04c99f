//! The model of the contract drives a control plane in this process.

use std::{fs, path::Path};

use aloft_sim::search;

/// How many sequences every test run plays. Always the same, so that a failure is a failure again; `make simulate` plays
/// others.
const SEQUENCES: u64 = 10_000;

/// What they reach: without it they would prove little.
const REACHED: &[&str] = &[
    "create: already_exists",
    "create: done",
    "create: not_found",
    "create: resource_exhausted",
    "enqueue: aborted",
    "enqueue: already_exists",
    "enqueue: done",
    "enqueue: invalid_argument",
    "enqueue: resource_exhausted",
    "held back",
    "abort: done",
    "abort: failed_precondition",
    "lease: done",
    "queue: already_exists",
    "queue: done",
    "queue: failed_precondition",
    "queue: not_found",
    "report: done",
    "report: over",
    "signal: done",
    "signal: failed_precondition",
    "signal: invalid_argument",
    "signal: not_found",
    "track: already_exists",
    "track: done",
    "track: invalid_argument",
    "track: not_found",
    "tell: already_exists",
    "tell: done",
    "tell: failed_precondition",
    "tell: not_found",
    "given up elsewhere",
    "ended elsewhere: succeeded",
    "ended elsewhere: failed",
    "ended elsewhere: timed out",
    "ended elsewhere: aborted",
    "ended elsewhere: attempt not reported",
    "time out: done",
    "ended: succeeded",
    "ended: failed",
    "ended: aborted",
    "ended: timed out",
    "ended: after a retry",
    "ended: signalled",
    "ended: cache hit",
    "ended: recovered",
    "ended: recovered condition",
    "recovered past a queue",
    "hit in a queue",
    "error: WorkerLost",
    "error: CONDITION_TIMED_OUT",
    "error: DEADLINE_EXCEEDED",
    "error: MAX_RUNTIME_EXCEEDED",
    "error: QUEUED_TIMEOUT_EXCEEDED",
    "looked up: miss",
    "looked up: hit",
    "looked up: waits",
    "looked up: skipped or failed",
    "vanished",
    "cut: answered",
    "cut: lost",
    "raced",
    "restarted",
    "revoked",
    "watched",
];

#[test]
fn ten_thousand_sequences_break_no_rule() {
    let count = std::env::var("ALOFT_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(SEQUENCES);
    match search::many(None, 0, count, search::cores(), |_| ()) {
        // A few do not reach everything.
        Ok(_) if count < SEQUENCES => {}
        Ok(reached) => REACHED.iter().for_each(|what| assert!(reached.of(what) > 10, "hardly a {what}:\n{reached}")),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn sequences_that_once_broke_a_rule_break_none() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("kept");
    let mut played = 0;
    for entry in fs::read_dir(dir).expect("the kept sequences") {
        let path = entry.expect("a kept sequence").path();
        let kept = search::kept(&path).expect("a sequence");
        if let Err(what) = search::with_room(|| kept.play(None)) {
            panic!("{}: {what}", path.display());
        }
        played += 1;
    }
    assert!(played > 0, "there are no kept sequences");
}
