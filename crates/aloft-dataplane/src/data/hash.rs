//! Digests of inputs.

use aloft_flyteidl2::flyteidl2::task::Inputs;
use base64::Engine as _;
use buffa::Message as _;
use sha2::{Digest as _, Sha256};

/// What stored bytes are called.
pub(super) fn content(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(bytes))
}

/// What identical inputs share: their literals by name, without `ignored` ones and without context. A literal that
/// carries a hash of its own stands for its content by that.
pub(super) fn inputs(inputs: &Inputs, ignored: &[String]) -> String {
    let mut named: Vec<_> = inputs.literals.iter().filter(|l| !ignored.contains(&l.name)).collect();
    if named.is_empty() {
        return String::new();
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for literal in named {
        let value = match literal.value.as_option() {
            Some(value) if !value.hash.is_empty() => value.hash.clone().into_bytes(),
            Some(value) => value.encode_to_vec(),
            None => Vec::new(),
        };
        for part in [literal.name.as_bytes(), &value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    base64::engine::general_purpose::STANDARD.encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::{
        core::{Literal, KeyValuePair},
        task::NamedLiteral,
    };

    use super::*;

    fn named(name: &str, hash: &str) -> NamedLiteral {
        let value = Literal { hash: hash.into(), ..Default::default() };
        NamedLiteral { name: name.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn order_context_and_ignored_inputs_do_not_matter() {
        let a = Inputs { literals: vec![named("x", "1"), named("y", "2")], ..Default::default() };
        let mut b = Inputs { literals: vec![named("y", "2"), named("x", "1")], ..Default::default() };
        b.context.push(KeyValuePair { key: "k".into(), value: "v".into(), ..Default::default() });
        assert_eq!(inputs(&a, &[]), inputs(&b, &[]));
        b.literals.push(named("z", "3"));
        assert_ne!(inputs(&a, &[]), inputs(&b, &[]));
        assert_eq!(inputs(&a, &[]), inputs(&b, &["z".to_owned()]));
        assert_eq!(inputs(&Inputs::default(), &[]), "");
    }
}
