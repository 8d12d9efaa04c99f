//! The model of the contract drives this program over its port, with restarts and kills.

use std::path::Path;

use aloft_sim::search;

/// How many sequences every test run plays; `make simulate` plays others.
const SEQUENCES: u64 = 300;

/// What they reach: without it they would prove little.
const REACHED: &[&str] = &[
    "create: done",
    "enqueue: done",
    "abort: done",
    "abort: failed_precondition",
    "ended: succeeded",
    "ended: failed",
    "ended: aborted",
    "ended: timed out",
    "ended: cache hit",
    "ended: recovered",
    "ended: signalled",
    "enqueue: resource_exhausted",
    "queue: done",
    "signal: done",
    "signal: failed_precondition",
    "signal: invalid_argument",
    "track: done",
    "tell: done",
    "tell: failed_precondition",
    "ended elsewhere: succeeded",
    "cut: lost",
    "raced",
    "restarted",
    "watched",
];

#[test]
fn three_hundred_sequences_over_the_port_break_no_rule() {
    let count = std::env::var("ALOFT_PORT_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(SEQUENCES);
    let binary = Path::new(env!("CARGO_BIN_EXE_aloft"));
    match search::many(Some(binary), 0, count, search::cores(), |_| ()) {
        // A few do not reach everything.
        Ok(_) if count < SEQUENCES => {}
        Ok(reached) => REACHED.iter().for_each(|what| assert!(reached.of(what) > 3, "hardly a {what}:\n{reached}")),
        Err(failure) => panic!("{failure}"),
    }
}
