//! The model of the contract drives this program over its port, with restarts and kills.

use std::path::Path;

use aloft_sim::search;

/// How many sequences every test run plays; `make simulate` plays others.
const SEQUENCES: u64 = 300;

#[test]
fn three_hundred_sequences_over_the_port_break_no_rule() {
    let count = std::env::var("ALOFT_PORT_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(SEQUENCES);
    let binary = Path::new(env!("CARGO_BIN_EXE_aloft"));
    if let Err(failure) = search::many(Some(binary), 0, count, search::cores(), |_| ()) {
        panic!("{failure}");
    }
}
