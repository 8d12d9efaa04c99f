//! A JSON value as a literal of a declared type. JSON does not say what a string or an object is meant to be, so the type
//! decides, and for a union the first variant that the value looks like.

use aloft_flyteidl2::flyteidl2::core::{
    Binary, Blob, BlobMetadata, BlobType, EnumType, Literal, LiteralCollection, LiteralMap, LiteralType, Primitive,
    Scalar, SimpleType, StructuredDataset, StructuredDatasetMetadata, StructuredDatasetType, Union, UnionType, Void,
    literal, literal_type::Type, primitive, scalar,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use buffa_types::google::protobuf::{Struct, Value};
use serde_json::Value as Json;

use super::{
    error::{Problem, TranslateError, quote},
    path::Path,
    schema::{self, Fields},
    time, wire,
};

pub(super) fn literal_from_json(value: &Json, ty: &LiteralType, path: &Path<'_>) -> Result<Literal, TranslateError> {
    path.step()?;
    match schema::known_type(ty, path)? {
        Type::UnionType(union) => union_from_json(value, union, path),
        Type::Simple(simple) => simple_from_json(value, schema::simple_type(*simple, path)?, ty, path),
        Type::CollectionType(item) => {
            let items = value.as_array().ok_or_else(|| shape(value, "an array", path))?.iter().enumerate();
            let literals = items
                .map(|(index, value)| literal_from_json(value, item, &path.index(index)))
                .collect::<Result<_, _>>()?;
            Ok(literal(LiteralCollection { literals, ..Default::default() }))
        }
        Type::MapValueType(item) => {
            let entries = object(value, "an object", path)?.iter();
            let literals = entries
                .map(|(key, value)| Ok((key.clone(), literal_from_json(value, item, &path.key(key))?)))
                .collect::<Result<_, TranslateError>>()?;
            Ok(literal(LiteralMap { literals, ..Default::default() }))
        }
        Type::EnumType(allowed) => enum_from_json(value, allowed, path),
        Type::Blob(blob) => blob_from_json(value, blob, path),
        Type::StructuredDatasetType(dataset) => dataset_from_json(value, dataset, path),
        Type::Schema(_) => Err(path.error(schema::unsupported_schema())),
    }
}

/// What an optional input holds when nothing is given for it; None when the type is not optional.
pub(super) fn none_literal(ty: &LiteralType, path: &Path<'_>) -> Result<Option<Literal>, TranslateError> {
    schema::none_variant(ty).map(|variant| union_literal(variant, none(), path)).transpose()
}

// === simple types ===

fn simple_from_json(
    value: &Json,
    simple: SimpleType,
    ty: &LiteralType,
    path: &Path<'_>,
) -> Result<Literal, TranslateError> {
    match simple {
        SimpleType::NONE if is_null(value) => Ok(none()),
        SimpleType::NONE => Err(shape(value, "null", path)),
        SimpleType::INTEGER => Ok(primitive(primitive::Value::Integer(integer(value, path)?))),
        SimpleType::FLOAT => Ok(primitive(primitive::Value::FloatValue(float(value, path)?))),
        SimpleType::STRING => Ok(string_literal(text(value, "a string", path)?)),
        SimpleType::BOOLEAN => {
            let flag = value.as_bool().ok_or_else(|| shape(value, "true or false", path))?;
            Ok(primitive(primitive::Value::Boolean(flag)))
        }
        SimpleType::DATETIME => {
            let text = text(value, "a datetime string", path)?;
            let instant = time::datetime_from_text(text).ok_or_else(|| {
                content(path, format!("{} is not a datetime", quote(text)), "write it like 2026-01-31T12:00:00Z")
            })?;
            Ok(primitive(instant.into()))
        }
        SimpleType::DURATION => {
            let duration = match value {
                Json::Number(seconds) => seconds.as_f64().and_then(time::duration_from_seconds),
                _ => time::duration_from_text(text(value, "a duration string", path)?),
            };
            let duration = duration.ok_or_else(|| {
                let value = value.as_str().map_or_else(|| value.to_string(), quote);
                content(path, format!("{value} is not a duration"), "write it like 1h30m, PT1H30M or as seconds")
            })?;
            Ok(primitive(duration.into()))
        }
        SimpleType::BINARY => binary_from_json(value, path),
        SimpleType::STRUCT => struct_from_json(value, ty, path),
        SimpleType::ERROR => Err(path.error(Problem::Unsupported {
            what: "an error passed as input",
            remedy: "leave it out; the platform fills it in",
        })),
    }
}

fn integer(value: &Json, path: &Path<'_>) -> Result<i64, TranslateError> {
    const EXPECTED: &str = "a whole number";
    match value {
        // As text integers are exact at any size; see `wire`.
        Json::String(digits) => digits.parse().map_err(|_| {
            content(path, format!("{} is not a 64-bit whole number", quote(digits)), "give a whole number")
        }),
        Json::Number(number) => match number.as_i64() {
            Some(whole) if whole.unsigned_abs() <= wire::MAX_SAFE_INTEGER.unsigned_abs() => Ok(whole),
            None if number.as_f64().is_some_and(|number| number.fract() != 0.0) => {
                Err(content(path, format!("{number} is not a whole number"), "give a whole number"))
            }
            _ => Err(content(
                path,
                format!("{number} is past 2^53, where JSON numbers lose digits"),
                "write it as a string of digits",
            )),
        },
        _ => Err(shape(value, EXPECTED, path)),
    }
}

fn float(value: &Json, path: &Path<'_>) -> Result<f64, TranslateError> {
    // proto3 JSON's names for what a JSON number cannot be.
    match value.as_str() {
        Some("NaN") => return Ok(f64::NAN),
        Some("Infinity") => return Ok(f64::INFINITY),
        Some("-Infinity") => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    value.as_f64().ok_or_else(|| shape(value, "a number", path))
}

/// Text is base64 of raw bytes; anything else is msgpack, as the SDK encodes untyped values.
fn binary_from_json(value: &Json, path: &Path<'_>) -> Result<Literal, TranslateError> {
    if is_null(value) {
        return Err(path.error(Problem::Null));
    }
    let Some(text) = value.as_str() else { return Ok(msgpack(value)) };
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| content(path, format!("not base64: {error}"), "encode the bytes as standard padded base64"))?;
    Ok(scalar(Binary { value: bytes.into(), ..Default::default() }))
}

/// Classes travel as msgpack, except protobuf messages, which the SDK reads from a `Struct` alone.
fn struct_from_json(value: &Json, ty: &LiteralType, path: &Path<'_>) -> Result<Literal, TranslateError> {
    if value.is_null() {
        return Err(path.error(Problem::Null));
    }
    let class = ty.metadata.as_option();
    let is_message = class.is_some_and(|class| class.get(schema::PB_TYPE).is_some());
    // A class may declare another shape than an object (a pydantic RootModel); only the SDK can check that.
    let declared = class.and_then(|class| class.get("type")?.as_str());
    if is_message || declared.is_none_or(|shape| shape == "object") {
        let fields = object(value, "an object", path)?;
        if is_message {
            return Ok(scalar(wire::struct_from_object(fields.clone())));
        }
    }
    Ok(msgpack(value))
}

// === enums, blobs, datasets ===

fn enum_from_json(value: &Json, allowed: &EnumType, path: &Path<'_>) -> Result<Literal, TranslateError> {
    let text = text(value, "one of the allowed strings", path)?;
    if !allowed.values.iter().any(|allowed| allowed == text) {
        return Err(path.error(Problem::NotInEnum { value: quote(text), allowed: allowed.values.clone() }));
    }
    Ok(string_literal(text))
}

fn blob_from_json(value: &Json, declared: &BlobType, path: &Path<'_>) -> Result<Literal, TranslateError> {
    let fields = object(value, "an object with `uri`, `format` and `dimensionality`", path)?;
    let dimensionality = match fields.get("dimensionality") {
        Some(name) => schema::dimensionality_from_json(name, &path.key("dimensionality"))?.into(),
        None => declared.dimensionality,
    };
    let format = optional_text(fields, "format", path)?.unwrap_or(&declared.format).to_owned();
    let kind = BlobType { format, dimensionality, ..Default::default() };
    let metadata = BlobMetadata { r#type: kind.into(), ..Default::default() };
    Ok(scalar(Blob { uri: uri(fields, path)?, metadata: metadata.into(), ..Default::default() }))
}

fn dataset_from_json(
    value: &Json,
    declared: &StructuredDatasetType,
    path: &Path<'_>,
) -> Result<Literal, TranslateError> {
    let fields = object(value, "an object with `uri` and `format`", path)?;
    let format = optional_text(fields, "format", path)?.unwrap_or(&declared.format).to_owned();
    let kind = StructuredDatasetType { format, ..declared.clone() };
    let metadata = StructuredDatasetMetadata { structured_dataset_type: kind.into(), ..Default::default() };
    Ok(scalar(StructuredDataset { uri: uri(fields, path)?, metadata: metadata.into(), ..Default::default() }))
}

fn uri(fields: &Fields, path: &Path<'_>) -> Result<String, TranslateError> {
    match optional_text(fields, "uri", path)? {
        Some(uri) if !uri.is_empty() => Ok(uri.to_owned()),
        _ => Err(path.key("uri").error(Problem::Content {
            reason: "the address is empty".to_owned(),
            remedy: "upload the data first and give the address it was stored under",
        })),
    }
}

fn optional_text<'v>(fields: &'v Fields, name: &str, path: &Path<'_>) -> Result<Option<&'v str>, TranslateError> {
    fields.get(name).map(|value| text(value, "a string", &path.key(name))).transpose()
}

// === unions ===

/// Variants are tried in the order they are declared, those the value looks like first: `Union[A, B]` of two dataclasses
/// is told apart by their attributes, and a string goes to `str` before it is tried as base64.
///
/// What JSON itself cannot tell apart stays ambiguous: 1 and 1.0, or a datetime and text that reads like one. There the
/// declaration's order decides.
fn union_from_json(value: &Json, union: &UnionType, path: &Path<'_>) -> Result<Literal, TranslateError> {
    if is_null(value) {
        let variant = union.variants.iter().find(|variant| schema::is_none(variant));
        let variant = variant.ok_or_else(|| path.error(Problem::Null))?;
        return union_literal(variant, none(), path);
    }
    let candidates = union.variants.iter().filter(|variant| !schema::is_none(variant));
    let (likely, unlikely) = candidates.partition::<Vec<_>, _>(|variant| looks_like(value, variant, path.here()));
    let mut refusals = Vec::new();
    for variant in likely.into_iter().chain(unlikely) {
        match literal_from_json(value, variant, &path.here()) {
            Ok(literal) => return union_literal(variant, literal, path),
            // Not this variant's fault, and no other variant would fare better.
            Err(error) if matches!(error.problem, Problem::TooLarge { .. }) => return Err(error),
            Err(error) => refusals.push((variant, error)),
        }
    }
    if let [(_, only)] = &mut refusals[..] {
        // `Optional[T]`: say what is wrong with it as a T, and where.
        return Err(only.clone());
    }
    let tried = refusals.iter().map(|(variant, error)| format!("{}: {}", schema::type_title(variant), error.problem));
    Err(path.error(Problem::NoVariant { tried: tried.collect() }))
}

/// The literal repeats its variant's type, as the SDK writes it: the tag in there is how the SDK finds the Python type.
/// A class's schema makes that copy large, so it is paid for.
fn union_literal(variant: &LiteralType, value: Literal, path: &Path<'_>) -> Result<Literal, TranslateError> {
    path.charge(type_weight(variant, path)?)?;
    Ok(scalar(Union { value: value.into(), r#type: variant.clone().into(), ..Default::default() }))
}

fn type_weight(ty: &LiteralType, path: &Path<'_>) -> Result<u32, TranslateError> {
    path.step()?;
    let inner = match &ty.r#type {
        Some(Type::CollectionType(inner) | Type::MapValueType(inner)) => type_weight(inner, &path.here())?,
        Some(Type::UnionType(union)) => {
            let path = path.here();
            union
                .variants
                .iter()
                .try_fold(0, |sum: u32, variant| Ok(sum.saturating_add(type_weight(variant, &path)?)))?
        }
        Some(Type::EnumType(allowed)) => u32::try_from(allowed.values.len()).unwrap_or(u32::MAX),
        Some(Type::StructuredDatasetType(dataset)) => u32::try_from(dataset.columns.len()).unwrap_or(u32::MAX),
        _ => 0,
    };
    Ok(inner.saturating_add(ty.metadata.as_option().map_or(0, struct_weight)).saturating_add(1))
}

/// Bounded in depth by the decoder that produced it.
fn struct_weight(fields: &Struct) -> u32 {
    fields.fields.values().map(value_weight).fold(1, u32::saturating_add)
}

fn value_weight(value: &Value) -> u32 {
    match (value.as_struct(), value.as_list()) {
        (Some(fields), _) => struct_weight(fields),
        (_, Some(list)) => list.iter().map(value_weight).fold(1, u32::saturating_add),
        _ => 1,
    }
}

/// Whether the value has the type's natural JSON shape, judged by its outermost level.
fn looks_like(value: &Json, ty: &LiteralType, path: Path<'_>) -> bool {
    if path.step().is_err() {
        return false;
    }
    match (&ty.r#type, value) {
        (Some(Type::Simple(simple)), value) => match (simple.as_known(), value) {
            (Some(SimpleType::BOOLEAN), Json::Bool(_)) | (Some(SimpleType::FLOAT), Json::Number(_)) => true,
            (Some(SimpleType::INTEGER), Json::Number(number)) => number.as_i64().is_some(),
            (Some(SimpleType::STRING | SimpleType::DATETIME | SimpleType::DURATION), Json::String(_)) => true,
            (Some(SimpleType::STRUCT), Json::Object(fields)) => {
                ty.metadata.as_option().is_none_or(|class| has_attributes_of(fields, class))
            }
            _ => false,
        },
        (Some(Type::EnumType(allowed)), Json::String(text)) => allowed.values.contains(text),
        (Some(Type::CollectionType(_)), Json::Array(_)) | (Some(Type::MapValueType(_)), Json::Object(_)) => true,
        (Some(Type::Blob(_)), Json::Object(fields)) => {
            fields.contains_key("uri")
                && fields.keys().all(|key| matches!(key.as_str(), "uri" | "format" | "dimensionality"))
        }
        (Some(Type::StructuredDatasetType(_)), Json::Object(fields)) => {
            fields.contains_key("uri") && fields.keys().all(|key| matches!(key.as_str(), "uri" | "format"))
        }
        (Some(Type::UnionType(union)), value) => {
            union.variants.iter().any(|variant| looks_like(value, variant, path.here()))
        }
        _ => false,
    }
}

/// All required attributes, no unknown ones, and the constants (`kind: Literal["a"]`) that tell sibling classes apart.
fn has_attributes_of(fields: &Fields, class: &Struct) -> bool {
    let required = class.get("required").and_then(Value::as_list);
    if !required.into_iter().flatten().filter_map(Value::as_str).all(|name| fields.contains_key(name)) {
        return false;
    }
    let Some(attributes) = class.get("properties").and_then(Value::as_struct) else { return true };
    fields.iter().all(|(name, value)| {
        let Some(attribute) = attributes.get(name) else { return false };
        let attribute = attribute.as_struct();
        let constant = attribute.and_then(|attribute| attribute.get("const")?.as_str());
        let allowed = attribute.and_then(|attribute| attribute.get("enum")?.as_list());
        match value.as_str() {
            Some(text) => {
                constant.is_none_or(|constant| constant == text)
                    && allowed.is_none_or(|allowed| allowed.iter().any(|allowed| allowed.as_str() == Some(text)))
            }
            None => constant.is_none(),
        }
    })
}

// === building literals ===

fn literal(value: impl Into<literal::Value>) -> Literal {
    Literal { value: Some(value.into()), ..Default::default() }
}

fn scalar(value: impl Into<scalar::Value>) -> Literal {
    literal(Scalar { value: Some(value.into()), ..Default::default() })
}

fn primitive(value: primitive::Value) -> Literal {
    scalar(Primitive { value: Some(value), ..Default::default() })
}

fn string_literal(text: &str) -> Literal {
    primitive(primitive::Value::StringValue(text.to_owned()))
}

fn none() -> Literal {
    scalar(Void::default())
}

fn msgpack(value: &Json) -> Literal {
    let value = wire::msgpack_from_json(value).into();
    scalar(Binary { value, tag: wire::MSGPACK.to_owned(), ..Default::default() })
}

// === reading JSON ===

fn is_null(value: &Json) -> bool {
    value.is_null() || schema::is_null_marker(value)
}

fn object<'v>(value: &'v Json, expected: &'static str, path: &Path<'_>) -> Result<&'v Fields, TranslateError> {
    value.as_object().ok_or_else(|| shape(value, expected, path))
}

fn text<'v>(value: &'v Json, expected: &'static str, path: &Path<'_>) -> Result<&'v str, TranslateError> {
    value.as_str().ok_or_else(|| shape(value, expected, path))
}

fn shape(value: &Json, expected: &'static str, path: &Path<'_>) -> TranslateError {
    let found = match value {
        value if is_null(value) => return path.error(Problem::Null),
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    };
    path.error(Problem::Shape { expected, found })
}

fn content(path: &Path<'_>, reason: String, remedy: &'static str) -> TranslateError {
    path.error(Problem::Content { reason, remedy })
}
