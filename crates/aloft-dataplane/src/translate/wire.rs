//! Between `google.protobuf.Struct` and `serde_json`, and between msgpack and `serde_json`.
//!
//! A `Struct` number is a double. Whole numbers up to 2^53 come out of it as JSON integers, so that msgpack written from
//! them holds integers; larger ones are written as decimal strings wherever this module writes JSON, as proto3 JSON does
//! for `int64`, because rounding somebody's identifier is worse than showing it in quotes.

use base64::{Engine, engine::general_purpose::STANDARD};
use buffa_types::google::protobuf::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Number, Value as Json};

use super::{
    error::{Problem, TranslateError},
    path::{MAX_DEPTH, Path},
};

/// The tag the SDK puts on binary literals that hold msgpack.
pub(super) const MSGPACK: &str = "msgpack";
/// Every integer up to here has its own double.
pub(super) const MAX_SAFE_INTEGER: i64 = 1 << 53;

// === Struct ===

pub(super) fn object_from_struct(fields: &Struct, path: &Path<'_>) -> Result<Map<String, Json>, TranslateError> {
    path.step()?;
    fields.fields.iter().map(|(key, value)| Ok((key.clone(), json_from_value(value, &path.key(key))?))).collect()
}

pub(super) fn json_from_value(value: &Value, path: &Path<'_>) -> Result<Json, TranslateError> {
    path.step()?;
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(flag)) => Json::Bool(*flag),
        Some(Kind::StringValue(text)) => Json::String(text.clone()),
        Some(Kind::NumberValue(number)) => json_from_f64(*number),
        Some(Kind::StructValue(fields)) => Json::Object(object_from_struct(fields, path)?),
        Some(Kind::ListValue(list)) => Json::Array(
            list.values
                .iter()
                .enumerate()
                .map(|(index, item)| json_from_value(item, &path.index(index)))
                .collect::<Result<_, _>>()?,
        ),
    })
}

/// What this module builds is bounded by the steps taken to build it, so this cannot fail and needs no path.
pub(super) fn struct_from_object(fields: Map<String, Json>) -> Struct {
    fields.into_iter().map(|(key, value)| (key, value_from_json(value))).collect()
}

fn value_from_json(json: Json) -> Value {
    match json {
        Json::Null => Value::null(),
        Json::Bool(flag) => Value::from(flag),
        Json::Number(number) => Value::from(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(value_from_json).collect::<ListValue>()),
        Json::Object(fields) => Value::from(struct_from_object(fields)),
    }
}

// === numbers ===

pub(super) fn json_from_f64(number: f64) -> Json {
    let safe = -MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER;
    // The cast saturates; comparing back rejects what did not fit, and NaN.
    let whole = number as i64;
    if whole as f64 == number && safe.contains(&whole) && !(whole == 0 && number.is_sign_negative()) {
        return Json::from(whole);
    }
    match Number::from_f64(number) {
        Some(number) => Json::Number(number),
        None if number.is_nan() => Json::from("NaN"),
        None if number > 0.0 => Json::from("Infinity"),
        None => Json::from("-Infinity"),
    }
}

pub(super) fn json_from_i64(number: i64) -> Json {
    if (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(&number) {
        Json::from(number)
    } else {
        Json::from(number.to_string())
    }
}

// === msgpack ===

pub(super) fn json_from_msgpack(bytes: &[u8], path: &Path<'_>) -> Result<Json, TranslateError> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH)
        .map_err(|error| undecodable(path, format!("invalid msgpack, {error}")))?;
    if !rest.is_empty() {
        return Err(undecodable(path, format!("{} bytes follow the msgpack value", rest.len())));
    }
    json_from_packed(value, path)
}

fn json_from_packed(value: rmpv::Value, path: &Path<'_>) -> Result<Json, TranslateError> {
    path.step()?;
    Ok(match value {
        rmpv::Value::Nil => Json::Null,
        rmpv::Value::Boolean(flag) => Json::Bool(flag),
        rmpv::Value::Integer(number) => number.as_i64().map_or_else(|| Json::from(number.to_string()), json_from_i64),
        rmpv::Value::F32(number) => json_from_f64(f64::from(number)),
        rmpv::Value::F64(number) => json_from_f64(number),
        rmpv::Value::String(text) => Json::from(utf8(text, path)?),
        rmpv::Value::Binary(bytes) => Json::from(STANDARD.encode(bytes)),
        rmpv::Value::Array(items) => Json::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| json_from_packed(item, &path.index(index)))
                .collect::<Result<_, _>>()?,
        ),
        rmpv::Value::Map(entries) => {
            let mut fields = Map::new();
            for (key, value) in entries {
                let key = key_text(key, path)?;
                let value = json_from_packed(value, &path.key(&key))?;
                if fields.contains_key(&key) {
                    return Err(undecodable(path, format!("two keys read {key:?} as text")));
                }
                fields.insert(key, value);
            }
            Json::Object(fields)
        }
        rmpv::Value::Ext(kind, _) => return Err(undecodable(path, format!("msgpack extension type {kind}"))),
    })
}

/// JSON keys are strings. A `dict[int, …]` shows its keys as decimal text, which the SDK's decoder turns back.
fn key_text(key: rmpv::Value, path: &Path<'_>) -> Result<String, TranslateError> {
    match key {
        rmpv::Value::String(text) => utf8(text, path),
        rmpv::Value::Integer(number) => Ok(number.to_string()),
        rmpv::Value::Boolean(flag) => Ok(flag.to_string()),
        rmpv::Value::F64(number) => Ok(number.to_string()),
        rmpv::Value::F32(number) => Ok(number.to_string()),
        _ => Err(undecodable(path, "a map key that is neither text nor a number".to_owned())),
    }
}

fn utf8(text: rmpv::Utf8String, path: &Path<'_>) -> Result<String, TranslateError> {
    text.into_str().ok_or_else(|| undecodable(path, "text that is not UTF-8".to_owned()))
}

fn undecodable(path: &Path<'_>, reason: String) -> TranslateError {
    path.error(Problem::Undecodable { reason })
}

pub(super) fn msgpack_from_json(json: &Json) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Unwrap safety: writing into a Vec does not fail.
    rmpv::encode::write_value(&mut bytes, &packed_from_json(json)).expect("a Vec takes every write");
    bytes
}

/// `json` came out of a `Struct` through [`object_from_struct`], which bounded its depth.
fn packed_from_json(json: &Json) -> rmpv::Value {
    match json {
        Json::Null => rmpv::Value::Nil,
        Json::Bool(flag) => rmpv::Value::from(*flag),
        Json::String(text) => rmpv::Value::from(text.as_str()),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => rmpv::Value::from(whole),
            (None, Some(whole)) => rmpv::Value::from(whole),
            (None, None) => rmpv::Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::Array(items) => rmpv::Value::Array(items.iter().map(packed_from_json).collect()),
        Json::Object(fields) => rmpv::Value::Map(
            fields.iter().map(|(key, value)| (rmpv::Value::from(key.as_str()), packed_from_json(value))).collect(),
        ),
    }
}
