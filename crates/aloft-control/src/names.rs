//! Names that the server makes up.

use rand::Rng as _;

/// Letters and digits that cannot be misread, and no vowels, so that no words appear.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of a made-up run name, its `r` included; 27^19 of them.
const RUN_NAME: usize = 20;

/// A new run name. Server-made names begin with `r`, which is how people tell them from their own.
pub(crate) fn run_name() -> String {
    let mut rng = rand::rng();
    let mut name = String::with_capacity(RUN_NAME);
    name.push('r');
    for _ in 1..RUN_NAME {
        name.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    name
}

/// A new fencing token.
pub(crate) fn lease_token() -> u64 {
    rand::rng().random()
}
