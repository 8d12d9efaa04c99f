//! Names that the server makes up.

use rand::Rng as _;
use sha2::{Digest as _, Sha256};

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

/// The run name that belongs to a request: the same for its repetitions, another for every other request.
pub(crate) fn run_name_for(scope: &str, request: &str) -> String {
    let digest = Sha256::digest(format!("{scope}\n{request}").as_bytes());
    let letters = digest.iter().take(RUN_NAME - 1).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]));
    std::iter::once('r').chain(letters).collect()
}

/// A new fencing token.
pub(crate) fn lease_token() -> u64 {
    rand::rng().random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_request_gets_the_same_name() {
        let id = "7f3c1d9e-0000-4000-8000-000000000001";
        assert_eq!(run_name_for("o/p/d", id), run_name_for("o/p/d", id));
        assert_ne!(run_name_for("o/p/d", id), run_name_for("o/q/d", id));
        assert_ne!(run_name(), run_name());
        assert!(run_name_for("o/p/d", id).len() == RUN_NAME && run_name().starts_with('r'));
    }
}
