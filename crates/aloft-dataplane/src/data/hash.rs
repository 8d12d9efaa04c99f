//! Digests of inputs.
//!
//! What identical inputs share is the SDK's own hash, byte for byte: an action that a task starts is named and cached by
//! what the SDK computed for it, so the first action of a run finds the same results only if we compute the same.

use std::borrow::Cow;

use aloft_flyteidl2::flyteidl2::{
    core::{Binary, Literal, literal, scalar},
    task::Inputs,
};
use base64::Engine as _;
use buffa::Message as _;
use sha2::{Digest as _, Sha256};

use aloft_plane::canonical;

use super::packed;

/// What stored bytes are called.
pub(super) fn content(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(bytes))
}

/// What identical inputs share: their literals, as the SDK's `generate_filtered_inputs_hash` has it. `ignored` ones and
/// the context do not count. A literal that carries a hash of its own stands for its content by that.
pub(super) fn inputs(inputs: &Inputs, ignored: &[String]) -> String {
    let mut text = Vec::new();
    for named in inputs.literals.iter().filter(|named| !ignored.contains(&named.name)) {
        text.extend_from_slice(named.name.as_bytes());
        text.push(b':');
        append(&named.value, &mut text);
        text.push(b';');
    }
    // Every literal leaves `:;` at least, so no text is no literals, whose digest is [`aloft_plane::NO_INPUTS_HASH`].
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text))
}

/// Appends what stands for `literal`.
fn append(literal: &Literal, text: &mut Vec<u8>) {
    if !literal.hash.is_empty() {
        text.extend_from_slice(literal.hash.as_bytes());
        return;
    }
    match &literal.value {
        Some(literal::Value::Collection(items)) => items.literals.iter().for_each(|item| append(item, text)),
        Some(literal::Value::Map(map)) => {
            for (key, value) in &map.literals {
                text.extend_from_slice(key.as_bytes());
                append(value, text);
            }
        }
        _ => text.extend_from_slice(&canonical::literal(&with_sorted_keys(literal).encode_to_vec())),
    }
}

/// `literal`, with the keys of its msgpack maps in order. Dicts keep the order in which they were filled, which says
/// nothing about what is in them.
fn with_sorted_keys(literal: &Literal) -> Cow<'_, Literal> {
    let Some(literal::Value::Scalar(scalar)) = &literal.value else { return Cow::Borrowed(literal) };
    let Some(scalar::Value::Binary(binary)) = &scalar.value else { return Cow::Borrowed(literal) };
    if binary.tag != packed::TAG {
        return Cow::Borrowed(literal);
    }
    let Some(value) = packed::sorted(&binary.value) else { return Cow::Borrowed(literal) };
    let binary = Binary { value: value.into(), ..(**binary).clone() };
    let scalar = aloft_flyteidl2::flyteidl2::core::Scalar { value: Some(binary.into()), ..(**scalar).clone() };
    Cow::Owned(Literal { value: Some(scalar.into()), ..literal.clone() })
}

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::{core::KeyValuePair, task::NamedLiteral};
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn named(name: &str, hash: &str) -> NamedLiteral {
        let value = Literal { hash: hash.into(), ..Default::default() };
        NamedLiteral { name: name.into(), value: value.into(), ..Default::default() }
    }

    /// `golden/inputs_hash.py` made the cases with the SDK.
    #[test]
    fn it_is_the_hash_that_the_sdk_computes() {
        let mut cases = 0;
        for line in include_str!("golden/inputs_hash.tsv").lines() {
            let [name, bytes, ignored, expected] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let decoded = Inputs::decode_from_slice(&STANDARD.decode(bytes).unwrap()).unwrap();
            let ignored: Vec<_> = ignored.split(',').map(str::to_owned).collect();
            let expected = if expected.is_empty() { aloft_plane::NO_INPUTS_HASH } else { expected };
            assert_eq!(inputs(&decoded, &ignored), expected, "{name}");
            cases += 1;
        }
        assert!(cases > 20, "only {cases} cases");
    }

    #[test]
    fn context_and_ignored_inputs_do_not_matter() {
        let a = Inputs { literals: vec![named("x", "1"), named("y", "2")], ..Default::default() };
        let mut b = a.clone();
        b.context.push(KeyValuePair { key: "k".into(), value: "v".into(), ..Default::default() });
        assert_eq!(inputs(&a, &[]), inputs(&b, &[]));
        b.literals.push(named("z", "3"));
        assert_ne!(inputs(&a, &[]), inputs(&b, &[]));
        assert_eq!(inputs(&a, &[]), inputs(&b, &["z".to_owned()]));
    }
}
