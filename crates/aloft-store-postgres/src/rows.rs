//! Rows as values.

use aloft_core::{ActionName, Phase, RunKey, Scope, Time};
use aloft_store::{StoreError, pack, unpack};
use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::Row;

use crate::error;

/// A value as it is stored.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| error::corrupt("a record", e))
}

/// As [`encode`], packed if `packs` holds, for what there is much of.
pub(crate) fn encode_packed(value: &impl Serialize, packs: bool) -> Result<Vec<u8>, StoreError> {
    let json = encode(value)?;
    Ok(if packs { pack(json) } else { json })
}

/// What [`encode`] or [`encode_packed`] stored.
pub(crate) fn decode<T: DeserializeOwned>(row: &Row, column: usize, what: &str) -> Result<T, StoreError> {
    let json = unpack(row.get::<_, &[u8]>(column)).map_err(|e| error::corrupt(what, e))?;
    serde_json::from_slice(&json).map_err(|e| error::corrupt(what, e))
}

/// A text as Postgres can hold it: it knows no zero bytes.
pub(crate) fn clean(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() }
}

pub(crate) fn run_key(row: &Row, first: usize) -> RunKey {
    let scope = Scope { org: row.get(first), project: row.get(first + 1), domain: row.get(first + 2) };
    RunKey { scope, name: row.get(first + 3) }
}

pub(crate) fn action_name(row: &Row, column: usize) -> Result<ActionName, StoreError> {
    ActionName::new(row.get(column)).map_err(|e| error::corrupt("the name of an action", e))
}

pub(crate) fn time(row: &Row, column: usize) -> Time {
    Time::from_micros(row.get(column))
}

pub(crate) fn maybe_time(row: &Row, column: usize) -> Option<Time> {
    row.get::<_, Option<i64>>(column).map(Time::from_micros)
}

pub(crate) fn number(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, Option<i64>>(column).unwrap_or(0)).unwrap_or(0)
}

pub(crate) fn phase(row: &Row, column: usize) -> Result<Phase, StoreError> {
    let number: i64 = row.get(column);
    i32::try_from(number)
        .ok()
        .and_then(Phase::from_number)
        .ok_or_else(|| error::corrupt("a phase", format!("there is no phase {number}")))
}

/// A count as a column.
pub(crate) fn amount(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
