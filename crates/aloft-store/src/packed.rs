//! Events and states as they are stored: JSON, and what is longer than a few words compressed with a dictionary of how such
//! JSON usually reads. A record takes a third of the bytes then, in tables, in logs and in backups.
//!
//! Compressed with `zstd`, because it is made for many small messages that are alike: a prepared dictionary costs nothing
//! for each of them.

use std::{borrow::Cow, cell::RefCell, sync::LazyLock};

use parking_lot::Mutex;
use zstd::{
    bulk::{Compressor, Decompressor},
    dict::{DecoderDictionary, EncoderDictionary},
};

/// How usual records read. Persisted records are read with it for ever: it is never edited, a better one becomes the next.
const DICTIONARY: &[u8] = include_bytes!("packed/1.txt");

/// What a record begins with that is compressed with the dictionary. No JSON begins so.
const COMPRESSED: u8 = 1;

/// Records below this many bytes stay as they are.
const SHORT: usize = 96;

/// Largest record that is read, in bytes: far beyond what requests may hold.
const LARGEST: usize = 256 << 20;

/// The fastest of those that find what the dictionary holds.
const LEVEL: i32 = 1;

static TO_WRITE: LazyLock<EncoderDictionary<'static>> = LazyLock::new(|| EncoderDictionary::copy(DICTIONARY, LEVEL));
static TO_READ: LazyLock<DecoderDictionary<'static>> = LazyLock::new(|| DecoderDictionary::copy(DICTIONARY));

thread_local! {
    static WRITES: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// What reads, while nobody uses it: as many as ever read at once. Not one for each thread, since there may be hundreds that
/// have read once, and each would keep some 150 KB.
static READS: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());

/// A record of JSON as it is stored.
pub fn pack(json: Vec<u8>) -> Vec<u8> {
    if json.len() < SHORT {
        return json;
    }
    let packed = WRITES.with_borrow_mut(|writes| {
        if writes.is_none() {
            *writes = Compressor::with_prepared_dictionary(&TO_WRITE).ok();
        }
        writes.as_mut().and_then(|c| c.compress(&json).ok())
    });
    match packed {
        Some(packed) if packed.len() + 1 < json.len() => {
            let mut stored = Vec::with_capacity(packed.len() + 1);
            stored.push(COMPRESSED);
            stored.extend_from_slice(&packed);
            stored
        }
        // What cannot be compressed is stored as it is: it reads the same.
        _ => json,
    }
}

/// The JSON of a stored record, of whichever version stored it.
///
/// # Errors
/// A word for a person, if the record is damaged.
pub fn unpack(stored: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let Some((&COMPRESSED, packed)) = stored.split_first() else { return Ok(Cow::Borrowed(stored)) };
    let length = match zstd::zstd_safe::get_frame_content_size(packed) {
        Ok(Some(length)) => usize::try_from(length).unwrap_or(usize::MAX),
        Ok(None) | Err(_) => return Err("it does not say how long it is".to_owned()),
    };
    if length > LARGEST {
        return Err(format!("it says that it has {length} bytes"));
    }
    let idle = READS.lock().pop();
    let mut reads = match idle {
        Some(reads) => reads,
        None => Decompressor::with_prepared_dictionary(&TO_READ).map_err(|e| e.to_string())?,
    };
    let json = reads.decompress(packed, length).map(Cow::Owned).map_err(|e| e.to_string());
    READS.lock().push(reads);
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state as it is stored for an action that has ended.
    const STATE: &str = r#"{"name":"1k2v9x0s7d6f5g4h3j2k1l0mn","ancestors":["a0"],"group":"group-3","seed":{"task":{"task":{"digest":"b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9","project":"flytesnacks","domain":"development","name":"load.noop","version":"f3a1c29e5b7d4860","task_type":"python","short_name":"noop","environment":"load"},"policy":{"retries":0},"input_uri":"s3://aloft-data/local/flytesnacks/development/inputs/2c26b46b68ffc68ff99b453c/inputs.pb","run_output_base":"s3://aloft-data/local/flytesnacks/development/runs/p00003","queue":"default","asks":{"memory":0,"cpu":0,"gpu":0}}},"phase":"succeeded","created_at":1795262400123456,"started_at":1795262400223456,"ended_at":1795262400323456,"attempts":[{"number":1,"phase":"succeeded","ready_at":1795262400123456,"transitions":[{"phase":"queued","at":1795262400123456},{"phase":"running","at":1795262400223456},{"phase":"succeeded","at":1795262400323456}],"lease":{"worker":"dev","token":1234567890123456789},"ended_at":1795262400323456,"outputs":{"output_uri":"s3://aloft-data/local/flytesnacks/development/runs/p00003/1k2v9x0s7d6f5g4h3j2k1l0mn/1"}}],"user_failures":0,"system_failures":0,"outputs":{"output_uri":"s3://aloft-data/local/flytesnacks/development/runs/p00003/1k2v9x0s7d6f5g4h3j2k1l0mn/1"},"cache":{"status":"disabled"}}"#;

    #[test]
    fn records_come_back() {
        for json in [STATE, "{}", "", &"x".repeat(100_000), &format!("{{\"a\":\"{}\"}}", "ä\u{1}".repeat(300))] {
            let stored = pack(json.as_bytes().to_vec());
            assert_eq!(unpack(&stored).unwrap(), json.as_bytes());
        }
    }

    #[test]
    fn what_was_stored_before_is_read() {
        assert_eq!(unpack(STATE.as_bytes()).unwrap(), STATE.as_bytes());
    }

    #[test]
    fn a_usual_state_takes_a_third() {
        let stored = pack(STATE.as_bytes().to_vec());
        assert!(stored.len() * 3 < STATE.len(), "{} of {}", stored.len(), STATE.len());
    }

    #[test]
    fn damage_is_told_and_not_believed() {
        let stored = pack(STATE.as_bytes().to_vec());
        for at in 1..stored.len() {
            let mut damaged = stored.clone();
            damaged[at] ^= 0x55;
            // Whatever it reads as: no panic, and no memory without bound.
            let _ = unpack(&damaged);
            assert!(unpack(&stored[..at]).is_err() || at == 0);
        }
    }

    /// What is stored is read by every later version: the dictionary must not change.
    #[test]
    fn the_dictionary_is_the_one_that_records_were_stored_with() {
        let sum = DICTIONARY
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(sum, 0x2571a85f37874e07, "make a second dictionary instead of changing this one");
    }
}
