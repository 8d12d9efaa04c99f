//! Credentials that carry what they allow.
//!
//! An access key id is the claims themselves, encoded compactly and sealed with a MAC; the secret is a MAC of the access
//! key id. Both MACs are keyed from one master secret, so every server that holds it can verify a request without a
//! table of issued keys. An access key id is not secret: it shows up in presigned URLs.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

use crate::{
    error::{Error, Result},
    scope::{Prefix, Scope},
};

/// Marks Aloft's access key ids for the reader of a log, and for secret scanners.
const ID_PREFIX: &str = "AL";
/// The first byte of the encoding. Issued ids outlive an upgrade, so a new encoding takes a new number.
const ENCODING_V1: u8 = 1;
/// Forging 128 bits online is out of reach, and half the HMAC keeps ids (and presigned URLs) shorter.
const SEAL_BYTES: usize = 16;
/// The id travels in an `Authorization` header or a URL, which servers and proxies commonly bound at 8 KiB.
const CLAIMS_BYTES_MAX: usize = 4096;

/// What credentials say about their bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub scope: Scope,
    /// Who acts: a run, action and attempt, or a part of Aloft. For logs and error messages; it grants nothing.
    pub subject: String,
    /// The Unix second from which the credentials are refused; `None` if they do not expire.
    pub expires: Option<u64>,
}

/// An S3 access key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// Issues and verifies credentials under one master secret.
#[derive(Clone)]
pub struct Keys {
    seal: Hmac<Sha256>,
    secret: Hmac<Sha256>,
}

/// Why an access key id is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the access key id is not one that this Aloft issued; use the credentials it handed out")]
    Unknown,
    #[error("the credentials of {subject} have expired; ask Aloft for new ones")]
    Expired { subject: String },
}

impl Claims {
    /// Aloft's own full access.
    pub fn full(subject: &str) -> Self {
        Self { scope: Scope::everything(), subject: subject.to_owned(), expires: None }
    }
}

impl Keys {
    pub fn new(master_secret: [u8; 32]) -> Self {
        // Separate keys for the two uses, so that the seal of one thing can never be the secret of another.
        let subkey = |label: &[u8]| mac_with(&mac_with(&master_secret).chain_update(label).finalize().into_bytes());
        Self { seal: subkey(b"aloft/objects/seal/1"), secret: subkey(b"aloft/objects/secret/1") }
    }

    /// The credentials of `claims`; the same claims give the same credentials.
    pub fn derive(&self, claims: &Claims) -> Result<Credentials> {
        let mut bytes = encode(claims);
        if bytes.len() > CLAIMS_BYTES_MAX {
            return Err(Error::ClaimsTooLarge { bytes: bytes.len(), max: CLAIMS_BYTES_MAX });
        }
        let seal = self.seal.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&seal[..SEAL_BYTES]);
        let access_key_id = format!("{ID_PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        Ok(Credentials { secret_access_key: self.secret_of(&access_key_id), access_key_id })
    }

    /// The claims and the secret of an access key id that arrived with a request at `now`.
    pub fn verify(&self, access_key_id: &str, now: Timestamp) -> Result<(Claims, Credentials), Refused> {
        let claims = self.unseal(access_key_id).ok_or(Refused::Unknown)?;
        let now_seconds = u64::try_from(now.as_second()).unwrap_or(0);
        if claims.expires.is_some_and(|expires| now_seconds >= expires) {
            return Err(Refused::Expired { subject: claims.subject });
        }
        let access_key_id = access_key_id.to_owned();
        Ok((claims, Credentials { secret_access_key: self.secret_of(&access_key_id), access_key_id }))
    }

    fn unseal(&self, access_key_id: &str) -> Option<Claims> {
        let bytes = URL_SAFE_NO_PAD.decode(access_key_id.strip_prefix(ID_PREFIX)?).ok()?;
        let (bytes, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
        self.seal.clone().chain_update(bytes).verify_truncated_left(seal).ok()?;
        decode(bytes)
    }

    fn secret_of(&self, access_key_id: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.secret.clone().chain_update(access_key_id).finalize().into_bytes())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

fn mac_with(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// `version, expires, reads, writes, subject, read prefixes, write prefixes`: numbers as LEB128, each text as the
/// length it shares with the text before, the length of the rest, and the rest. Prefixes of one run repeat their
/// project and run, so sharing about halves the id.
fn encode(claims: &Claims) -> Vec<u8> {
    let Claims { scope: Scope { read, write }, subject, expires } = claims;
    let mut out = vec![ENCODING_V1];
    put_number(&mut out, expires.map_or(0, |seconds| seconds.saturating_add(1)));
    put_number(&mut out, read.len() as u64);
    put_number(&mut out, write.len() as u64);
    let mut previous: &[u8] = b"";
    for text in std::iter::once(subject.as_str()).chain(read.iter().chain(write).map(Prefix::as_str)) {
        let text = text.as_bytes();
        let shared = text.iter().zip(previous).take_while(|(a, b)| a == b).count();
        put_number(&mut out, shared as u64);
        put_number(&mut out, (text.len() - shared) as u64);
        out.extend_from_slice(&text[shared..]);
        previous = text;
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Claims> {
    let input = &mut bytes;
    if take(input, 1)? != [ENCODING_V1] {
        return None;
    }
    let expires = take_number(input)?.checked_sub(1);
    let reads = usize::try_from(take_number(input)?).ok()?;
    let writes = usize::try_from(take_number(input)?).ok()?;
    let mut previous = Vec::new();
    let subject = take_text(input, &mut previous)?;
    let mut prefixes = |count: usize| -> Option<Vec<Prefix>> {
        (0..count).map(|_| Prefix::parse(&take_text(input, &mut previous)?).ok()).collect()
    };
    let scope = Scope { read: prefixes(reads)?, write: prefixes(writes)? };
    if !bytes.is_empty() {
        return None;
    }
    Some(Claims { scope, subject, expires })
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(count)?;
    *input = rest;
    Some(taken)
}

fn take_number(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_text(input: &mut &[u8], previous: &mut Vec<u8>) -> Option<String> {
    let shared = usize::try_from(take_number(input)?).ok()?;
    let rest = usize::try_from(take_number(input)?).ok()?;
    if shared > previous.len() {
        return None;
    }
    previous.truncate(shared);
    previous.extend_from_slice(take(input, rest)?);
    String::from_utf8(previous.clone()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn keys() -> Keys {
        Keys::new([7; 32])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a time")
    }

    fn attempt() -> Claims {
        let prefix = |text| Prefix::parse(text).expect("a prefix");
        Claims {
            scope: Scope {
                read: vec![prefix("aloft/flytesnacks/development/")],
                write: vec![
                    prefix("aloft/flytesnacks/development/runs/r1a2b3c4d5e6/a0/1/"),
                    prefix("aloft/flytesnacks/development/raw/r1a2b3c4d5e6/"),
                ],
            },
            subject: "flytesnacks/development/r1a2b3c4d5e6/a0/1".to_owned(),
            expires: Some(1_800_000_000),
        }
    }

    #[test]
    fn credentials_carry_their_claims_compactly() {
        let issued = keys().derive(&attempt()).expect("credentials");
        assert!(issued.access_key_id.len() < 260, "{} bytes", issued.access_key_id.len());
        assert!(issued.access_key_id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')));
        let (claims, credentials) = keys().verify(&issued.access_key_id, at(1_799_999_999)).expect("verified");
        assert_eq!(claims, attempt());
        assert_eq!(credentials, issued);
        assert!(!format!("{issued:?} {:?}", keys()).contains(&issued.secret_access_key));
    }

    #[test]
    fn expired_foreign_and_altered_ids_are_refused() {
        let id = keys().derive(&attempt()).expect("credentials").access_key_id;
        let expired = Refused::Expired { subject: attempt().subject };
        assert_eq!(keys().verify(&id, at(1_800_000_000)).expect_err("expired"), expired);
        assert_eq!(Keys::new([8; 32]).verify(&id, at(0)).expect_err("foreign"), Refused::Unknown);
        for id in ["", "AL", "AKIAIOSFODNN7EXAMPLE", &id[..id.len() - 1], &format!("{id}A"), &id.replacen('A', "B", 2)]
        {
            assert_eq!(keys().verify(id, at(0)).expect_err(id), Refused::Unknown);
        }
    }

    #[test]
    fn claims_that_cannot_travel_are_refused() {
        let claims = Claims { subject: "x".repeat(5000), ..attempt() };
        assert!(matches!(keys().derive(&claims), Err(Error::ClaimsTooLarge { .. })));
    }

    proptest! {
        #[test]
        fn encoding_round_trips(
            read in vec("([a-z]{1,4}/){0,3}([a-zé ]{1,4})?", 0..4),
            write in vec("([a-z]{1,4}/){0,3}", 0..4),
            subject in "\\PC{0,20}",
            expires in option::of(0..u64::MAX - 1),
        ) {
            let parse = |texts: &[String]| texts.iter().map(|t| Prefix::parse(t).expect("valid")).collect();
            let claims = Claims { scope: Scope { read: parse(&read), write: parse(&write) }, subject, expires };
            prop_assert_eq!(decode(&encode(&claims)), Some(claims));
        }

        #[test]
        fn decoding_noise_never_panics(bytes in vec(any::<u8>(), 0..64)) {
            let mut versioned = vec![ENCODING_V1];
            versioned.extend(bytes);
            let _ = decode(&versioned);
        }
    }
}
