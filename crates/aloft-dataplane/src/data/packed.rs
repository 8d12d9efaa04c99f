//! One msgpack encoding for one value, as the SDK makes it before it hashes: the keys of every map sorted by their
//! encoding, numbers and texts as short as they go.
//!
//! It follows Python where that shows: what `msgpack.unpackb` refuses is hashed as it is, a float of four bytes becomes
//! one of eight, an extension becomes a list. Only keys that Python holds for equal although they are written differently
//! (`1`, `1.0`, `True` in one map) are told apart here; no Python dict has such keys.

use rmpv::Value;

/// The tag that the SDK puts on binary literals that hold msgpack.
pub(super) const TAG: &str = "msgpack";

/// Deepest nesting that the SDK can pack again.
const MAX_DEPTH: usize = 511;

/// The extension type of timestamps.
const TIMESTAMP: i8 = -1;

/// The msgpack value `bytes` with its keys sorted; `None` if it is to be hashed as it is.
pub(super) fn sorted(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH).ok()?;
    if rest.is_empty() { encoded(&canonical(value)?) } else { None }
}

fn encoded(value: &Value) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).ok()?;
    Some(bytes)
}

fn canonical(value: Value) -> Option<Value> {
    Some(match value {
        Value::F32(number) => Value::F64(f64::from(number)),
        Value::String(text) if text.as_str().is_none() => return None,
        Value::Array(items) => Value::Array(items.into_iter().map(canonical).collect::<Option<_>>()?),
        Value::Ext(TIMESTAMP, data) => timestamp(&data)?,
        // To Python an extension is a tuple of its type and its data.
        Value::Ext(code @ 0.., data) => Value::Array(vec![Value::from(code), Value::Binary(data)]),
        Value::Ext(..) => return None,
        Value::Map(entries) => map(entries)?,
        Value::Nil | Value::Boolean(_) | Value::Integer(_) | Value::F64(_) | Value::String(_) | Value::Binary(_) => {
            value
        }
    })
}

fn map(entries: Vec<(Value, Value)>) -> Option<Value> {
    let mut sorted = std::collections::BTreeMap::new();
    for (key, value) in entries {
        let key = match key {
            // Not hashable.
            Value::Array(_) | Value::Map(_) => return None,
            // A tuple is: it is packed as the extension that it was.
            Value::Ext(0.., _) => key,
            other => canonical(other)?,
        };
        // Of two equal keys the last one counts.
        sorted.insert(encoded(&key)?, (key, canonical(value)?));
    }
    Some(Value::Map(sorted.into_values().collect()))
}

/// A timestamp in as few bytes as it takes.
fn timestamp(data: &[u8]) -> Option<Value> {
    const SECONDS: u64 = (1 << 34) - 1;
    let (seconds, nanos) = match data.len() {
        4 => (i64::from(u32::from_be_bytes(data.try_into().ok()?)), 0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            (i64::try_from(both & SECONDS).ok()?, u32::try_from(both >> 34).ok()?)
        }
        12 => {
            let (nanos, seconds) = data.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(nanos.try_into().ok()?))
        }
        _ => return None,
    };
    if nanos >= 1_000_000_000 {
        return None;
    }
    let data = match u64::try_from(seconds) {
        Ok(seconds) if seconds <= SECONDS => {
            let both = u64::from(nanos) << 34 | seconds;
            match u32::try_from(both) {
                Ok(short) => short.to_be_bytes().to_vec(),
                Err(_) => both.to_be_bytes().to_vec(),
            }
        }
        _ => [&nanos.to_be_bytes()[..], &seconds.to_be_bytes()].concat(),
    };
    Some(Value::Ext(TIMESTAMP, data))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_sorted_once_or_left(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
            if let Some(once) = sorted(&bytes) {
                prop_assert_eq!(sorted(&once), Some(once.clone()));
            }
        }
    }
}
