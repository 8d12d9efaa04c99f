//! A literal as a JSON value. The literal says what it is, so its declared type is not needed.

use aloft_flyteidl2::flyteidl2::core::{Binary, Literal, Primitive, Scalar, literal, primitive, scalar};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    error::{Problem, TranslateError},
    path::Path,
    schema, time, wire,
};

pub(super) fn json_from_literal(value: &Literal, path: &Path<'_>) -> Result<Json, TranslateError> {
    path.step()?;
    match &value.value {
        Some(literal::Value::Scalar(scalar)) => json_from_scalar(scalar, path),
        Some(literal::Value::Collection(items)) => {
            let items = items.literals.iter().enumerate();
            Ok(Json::Array(
                items.map(|(index, item)| json_from_literal(item, &path.index(index))).collect::<Result<_, _>>()?,
            ))
        }
        Some(literal::Value::Map(entries)) => {
            let entries = entries.literals.iter();
            Ok(Json::Object(
                entries
                    .map(|(key, item)| Ok((key.clone(), json_from_literal(item, &path.key(key))?)))
                    .collect::<Result<Map<_, _>, TranslateError>>()?,
            ))
        }
        Some(literal::Value::OffloadedMetadata(_)) => Err(path.error(Problem::Unsupported {
            what: "a value kept in object storage",
            remedy: "download it with `flyte get io`",
        })),
        None => Err(path.error(Problem::Missing)),
    }
}

fn json_from_scalar(value: &Scalar, path: &Path<'_>) -> Result<Json, TranslateError> {
    match &value.value {
        Some(scalar::Value::Primitive(primitive)) => json_from_primitive(primitive, path),
        Some(scalar::Value::NoneType(_)) => Ok(schema::null_marker()),
        Some(scalar::Value::Generic(fields)) => Ok(Json::Object(wire::object_from_struct(fields, path)?)),
        Some(scalar::Value::Binary(binary)) => json_from_binary(binary, path),
        Some(scalar::Value::Union(union)) => match union.value.as_option() {
            Some(value) => json_from_literal(value, &path.here()),
            None => Err(path.error(Problem::Missing)),
        },
        Some(scalar::Value::Blob(blob)) => Ok(json!({
            "uri": blob.uri,
            "format": blob.metadata.r#type.format,
            "dimensionality": schema::dimensionality_name(&blob.metadata.r#type),
        })),
        Some(scalar::Value::StructuredDataset(dataset)) => {
            Ok(json!({"uri": dataset.uri, "format": dataset.metadata.structured_dataset_type.format}))
        }
        Some(scalar::Value::Error(error)) => Ok(Json::from(error.message.as_str())),
        Some(scalar::Value::Schema(_)) => Err(path.error(schema::unsupported_schema())),
        None => Err(path.error(Problem::Missing)),
    }
}

fn json_from_primitive(value: &Primitive, path: &Path<'_>) -> Result<Json, TranslateError> {
    match &value.value {
        Some(primitive::Value::Integer(number)) => Ok(wire::json_from_i64(*number)),
        Some(primitive::Value::FloatValue(number)) => Ok(wire::json_from_f64(*number)),
        Some(primitive::Value::StringValue(text)) => Ok(Json::from(text.as_str())),
        Some(primitive::Value::Boolean(flag)) => Ok(Json::Bool(*flag)),
        Some(primitive::Value::Datetime(instant)) => time::datetime_to_text(instant).map(Json::from).ok_or_else(|| {
            path.error(Problem::Content {
                reason: "the stored datetime is outside the years 1 to 9999".to_owned(),
                remedy: "store a valid datetime",
            })
        }),
        Some(primitive::Value::Duration(duration)) => {
            time::duration_to_text(duration).map(Json::from).ok_or_else(|| {
                path.error(Problem::Content {
                    reason: "the stored duration is longer than 10,000 years or malformed".to_owned(),
                    remedy: "store a valid duration",
                })
            })
        }
        None => Err(path.error(Problem::Missing)),
    }
}

/// Only bytes that say they are msgpack are read as msgpack. Guessing would be wrong for pickles, which carry no tag and
/// whose first byte is a valid msgpack map.
fn json_from_binary(binary: &Binary, path: &Path<'_>) -> Result<Json, TranslateError> {
    if binary.tag == wire::MSGPACK {
        return wire::json_from_msgpack(&binary.value, path);
    }
    Ok(Json::from(STANDARD.encode(&binary.value)))
}
