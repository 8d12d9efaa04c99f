//! Names that the server makes up.

use rand::Rng as _;
use sha2::{Digest as _, Sha256};

/// Letters and digits that cannot be misread, and no vowels, so that no words appear.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of a made-up run name, its `r` included; 27^19 of them.
const RUN_NAME: usize = 20;

/// Letters that tell runs of one name apart; 27^8 of them, and few runs ever have the same name.
const APART: usize = 8;

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

/// What tells the output prefixes of a run from those of any other of its name. Names of actions do not begin with a dot.
pub(crate) fn apart() -> String {
    let mut rng = rand::rng();
    std::iter::once('.').chain((0..APART).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))).collect()
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

/// A new number of a session of a worker. Never 0.
pub(crate) fn session() -> u64 {
    rand::rng().random_range(1..=u64::MAX)
}

/// Longest identifier of a domain, in bytes.
const MAX_LABEL: usize = 63;

/// Checks a name that is a part of the names of machines and namespaces elsewhere.
///
/// # Errors
/// A sentence that names `field`.
pub fn check_label(field: &str, text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fine {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(format!(
        "{field}: {shown:?} must have 1 to {MAX_LABEL} lower-case letters, digits and '-', without a '-' at either end"
    ))
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

    #[test]
    fn labels_are_those_of_the_contract() {
        for good in ["a", "production", "team-1", "0", &"x".repeat(63)] {
            assert_eq!(check_label("id", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ü", "a b", &"x".repeat(64)] {
            assert!(check_label("id", bad).unwrap_err().starts_with("id: "), "{bad}");
        }
    }
}
