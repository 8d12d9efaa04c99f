//! A variable's type as the JSON schema of a form field, and back.
//!
//! The forms are read by react-jsonschema-form in the Flyte console and by the SDKs of other languages, which take
//! `properties.<name>.default` as the value; the key names below are what they look for. Beyond plain JSON schema there
//! are three: `structure` (the tag by which the Python SDK picks a union's variant), `dataclass` (the class's name, moved
//! out of the way of the field's `title`), and the formats `datetime`, `duration`, `binary`, `error`, `blob`,
//! `structured-dataset` and `union`. It is `datetime` and not JSON schema's `date-time` because the console's widget is
//! registered under that name; reading accepts both.

use aloft_flyteidl2::flyteidl2::core::{
    BlobType, EnumType, LiteralType, SimpleType, StructuredDatasetType, TypeStructure, UnionType,
    blob_type::BlobDimensionality, literal_type::Type,
};
use serde_json::{Map, Value as Json, json};

use super::{
    error::{Problem, TranslateError},
    path::Path,
    wire,
};

pub(super) type Fields = Map<String, Json>;

/// In the metadata of a protobuf message passed as a struct: which message.
pub(super) const PB_TYPE: &str = "pb_type";

/// Keys of a struct's schema that belong to the form field or the union's variant rather than to the class.
const FIELD_KEYS: [&str; 7] =
    ["default", "dataclass", "structure", "title", "type", "additionalProperties", "description"];

/// A value in a form that means None. A bare null would do as well for the console, but this is what it was taught.
pub(super) fn null_marker() -> Json {
    json!({"type": "null"})
}

pub(super) fn is_null_marker(value: &Json) -> bool {
    value.as_object().is_some_and(|fields| fields.len() == 1 && fields.get("type").is_some_and(|kind| kind == "null"))
}

// === type to schema ===

pub(super) fn schema_from_type(ty: &LiteralType, path: &Path<'_>) -> Result<Fields, TranslateError> {
    path.step()?;
    let schema = match known_type(ty, path)? {
        Type::Simple(simple) => match simple_type(*simple, path)? {
            SimpleType::NONE => json!({"type": "null"}),
            SimpleType::INTEGER => json!({"type": "integer"}),
            SimpleType::FLOAT => json!({"type": "number", "format": "float"}),
            SimpleType::STRING => json!({"type": "string"}),
            SimpleType::BOOLEAN => json!({"type": "boolean"}),
            SimpleType::DATETIME => json!({"type": "string", "format": "datetime"}),
            SimpleType::DURATION => json!({"type": "string", "format": "duration"}),
            SimpleType::BINARY => json!({"type": "string", "format": "binary"}),
            SimpleType::ERROR => json!({"type": "string", "format": "error"}),
            SimpleType::STRUCT => Json::Object(struct_schema(ty, path)?),
        },
        Type::CollectionType(item) => json!({"type": "array", "items": schema_from_type(item, &path.key("items"))?}),
        Type::MapValueType(value) => {
            json!({"type": "object", "additionalProperties": schema_from_type(value, &path.key("additionalProperties"))?})
        }
        Type::EnumType(allowed) => json!({"type": "string", "enum": allowed.values}),
        Type::Blob(blob) => json!({
            "type": "object",
            "format": "blob",
            "properties": {
                "uri": {"type": "string", "default": ""},
                "format": {"type": "string", "default": blob.format},
                "dimensionality": {
                    "type": "string",
                    "enum": ["SINGLE", "MULTIPART"],
                    "default": dimensionality_name(blob),
                },
            },
        }),
        Type::StructuredDatasetType(dataset) => {
            let mut format = json!({"type": "string"});
            if !dataset.format.is_empty() {
                format["default"] = json!(dataset.format);
            }
            json!({
                "type": "object",
                "format": "structured-dataset",
                "properties": {"uri": {"type": "string"}, "format": format},
            })
        }
        Type::UnionType(union) => {
            let variants = union.variants.iter().map(|variant| variant_schema(variant, &path.here()));
            json!({"format": "union", "oneOf": variants.collect::<Result<Vec<_>, _>>()?})
        }
        Type::Schema(_) => return Err(path.error(unsupported_schema())),
    };
    // Every arm above is an object, so there is no other case to lose.
    Ok(if let Json::Object(fields) = schema { fields } else { Fields::new() })
}

/// A dataclass or pydantic model carries its own JSON schema. `$defs` stay where they are: the console hoists them, and
/// hoisting here would merge the definitions of two models that happen to share a name.
fn struct_schema(ty: &LiteralType, path: &Path<'_>) -> Result<Fields, TranslateError> {
    let Some(metadata) = ty.metadata.as_option() else {
        // A bare `dict`: a form with free keys. (`true`, not a schema, is what tells it from a typed map.)
        return Ok(Fields::from_iter([
            ("type".to_owned(), json!("object")),
            ("additionalProperties".to_owned(), json!(true)),
        ]));
    };
    let mut schema = wire::object_from_struct(metadata, path)?;
    if let Some(class) = schema.remove("title") {
        schema.insert("dataclass".to_owned(), class);
    }
    // With it the field would read as a typed map.
    schema.remove("additionalProperties");
    if !schema.contains_key("$ref") {
        schema.entry("type").or_insert_with(|| json!("object"));
    }
    Ok(schema)
}

fn variant_schema(variant: &LiteralType, path: &Path<'_>) -> Result<Fields, TranslateError> {
    let mut schema = schema_from_type(variant, path)?;
    schema.insert("title".to_owned(), Json::String(type_title(variant)));
    schema.insert("structure".to_owned(), Json::String(variant.structure.tag.clone()));
    Ok(schema)
}

/// What a person picking a variant reads.
pub(super) fn type_title(ty: &LiteralType) -> String {
    let title = match &ty.r#type {
        Some(Type::Simple(simple)) => match simple.as_known() {
            Some(SimpleType::NONE) => "none",
            Some(SimpleType::INTEGER) => "integer",
            Some(SimpleType::FLOAT) => "number",
            Some(SimpleType::STRING) => "string",
            Some(SimpleType::BOOLEAN) => "boolean",
            Some(SimpleType::DATETIME) => "datetime",
            Some(SimpleType::DURATION) => "duration",
            Some(SimpleType::BINARY) => "binary",
            Some(SimpleType::ERROR) => "error",
            Some(SimpleType::STRUCT) => {
                ty.metadata.as_option().and_then(|class| class.get("title")?.as_str()).unwrap_or("object")
            }
            None => "unknown",
        },
        Some(Type::CollectionType(_)) => "array",
        Some(Type::MapValueType(_)) => "object",
        Some(Type::Blob(_)) => "blob",
        Some(Type::EnumType(_)) => "enum",
        Some(Type::StructuredDatasetType(_)) => "structured_dataset",
        Some(Type::UnionType(_)) => "union",
        Some(Type::Schema(_)) | None => "unknown",
    };
    title.to_owned()
}

// === schema to type ===

pub(super) fn type_from_schema(schema: &Fields, path: &Path<'_>) -> Result<LiteralType, TranslateError> {
    path.step()?;
    let kind = if let Some(variants) = schema.get("oneOf") {
        union_from_schema(variants, path)?
    } else if schema.contains_key("dataclass") || schema.contains_key("$ref") {
        // A class can have any schema, a pydantic RootModel that of an array; it is a struct on the wire all the same.
        Type::Simple(SimpleType::STRUCT.into())
    } else {
        plain_type_from_schema(schema, path)?
    };
    let mut ty = LiteralType { r#type: Some(kind), ..Default::default() };
    if matches!(&ty.r#type, Some(Type::Simple(simple)) if *simple == SimpleType::STRUCT) {
        ty.metadata = struct_metadata(schema).into();
    }
    if let Some(tag) = schema.get("structure").and_then(Json::as_str).filter(|tag| !tag.is_empty()) {
        ty.structure = TypeStructure { tag: tag.to_owned(), ..Default::default() }.into();
    }
    Ok(ty)
}

fn plain_type_from_schema(schema: &Fields, path: &Path<'_>) -> Result<Type, TranslateError> {
    let name = match schema.get("type") {
        Some(Json::String(name)) => name.as_str(),
        Some(_) => return Err(bad_schema(path, "`type` is not a string".to_owned())),
        None => return Err(bad_schema(path, "the schema has neither `type` nor `oneOf`".to_owned())),
    };
    let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
    let simple = match (name, format) {
        ("null", _) => SimpleType::NONE,
        ("boolean", _) => SimpleType::BOOLEAN,
        ("number", _) => SimpleType::FLOAT,
        ("integer" | "string", "datetime" | "date-time") => SimpleType::DATETIME,
        ("integer" | "string", "duration") => SimpleType::DURATION,
        ("integer", _) => SimpleType::INTEGER,
        ("string", _) if schema.contains_key("enum") => return enum_from_schema(schema, path),
        ("string", "binary") => SimpleType::BINARY,
        ("string", "error") => SimpleType::ERROR,
        ("string", _) => SimpleType::STRING,
        ("array", _) => {
            let items = path.key("items");
            let schema = schema
                .get("items")
                .and_then(Json::as_object)
                .ok_or_else(|| bad_schema(&items, "an array needs `items`, the schema of its elements".to_owned()))?;
            return Ok(Type::CollectionType(Box::new(type_from_schema(schema, &items)?)));
        }
        ("object", "blob") => return Ok(Type::Blob(Box::new(blob_from_schema(schema, path)?))),
        ("object", "structured-dataset") => {
            let format = property_default(schema, "format").and_then(Json::as_str).unwrap_or_default().to_owned();
            return Ok(Type::StructuredDatasetType(Box::new(StructuredDatasetType { format, ..Default::default() })));
        }
        ("object", _) => match schema.get("additionalProperties") {
            Some(Json::Object(value)) => {
                let value = type_from_schema(value, &path.key("additionalProperties"))?;
                return Ok(Type::MapValueType(Box::new(value)));
            }
            _ => SimpleType::STRUCT,
        },
        (other, _) => return Err(bad_schema(path, format!("unknown type {}", super::error::quote(other)))),
    };
    Ok(Type::Simple(simple.into()))
}

fn union_from_schema(variants: &Json, path: &Path<'_>) -> Result<Type, TranslateError> {
    let variants = variants.as_array().ok_or_else(|| bad_schema(path, "`oneOf` is not an array".to_owned()))?;
    let variants = variants
        .iter()
        .map(|variant| {
            let variant = variant
                .as_object()
                .ok_or_else(|| bad_schema(path, "a variant in `oneOf` is not an object".to_owned()))?;
            type_from_schema(variant, &path.here())
        })
        .collect::<Result<_, _>>()?;
    Ok(Type::UnionType(Box::new(UnionType { variants, ..Default::default() })))
}

fn enum_from_schema(schema: &Fields, path: &Path<'_>) -> Result<Type, TranslateError> {
    let path = path.key("enum");
    let values = schema.get("enum").and_then(Json::as_array).into_iter().flatten();
    let values = values
        .map(|value| value.as_str().map(str::to_owned))
        .collect::<Option<Vec<_>>>()
        .filter(|values| !values.is_empty())
        .ok_or_else(|| bad_schema(&path, "`enum` is not a list of one or more strings".to_owned()))?;
    Ok(Type::EnumType(Box::new(EnumType { values, ..Default::default() })))
}

fn blob_from_schema(schema: &Fields, path: &Path<'_>) -> Result<BlobType, TranslateError> {
    let format = property_default(schema, "format").and_then(Json::as_str).unwrap_or_default().to_owned();
    let dimensionality = match property_default(schema, "dimensionality") {
        Some(name) => dimensionality_from_json(name, &path.key("dimensionality"))?,
        None => BlobDimensionality::SINGLE,
    };
    Ok(BlobType { format, dimensionality: dimensionality.into(), ..Default::default() })
}

/// The class's own schema, as it was before [`struct_schema`]; unset for a bare `dict`.
fn struct_metadata(schema: &Fields) -> Option<buffa_types::google::protobuf::Struct> {
    schema.keys().any(|key| !FIELD_KEYS.contains(&key.as_str()) || key == "dataclass").then(|| {
        let mut class = schema.clone();
        class.retain(|key, _| !matches!(key.as_str(), "default" | "dataclass" | "structure" | "title"));
        if let Some(name) = schema.get("dataclass") {
            class.insert("title".to_owned(), name.clone());
        }
        wire::struct_from_object(class)
    })
}

// === values inside a schema ===

/// The value a form field holds: its `default`, or for what is edited as several fields the defaults of its parts.
///
/// None when the field is not filled in, and also when it is filled in halfway: a file without an address or a class
/// without a required attribute would only fail later, inside the task.
pub(super) fn value_from_schema(schema: &Fields, path: &Path<'_>) -> Result<Option<Json>, TranslateError> {
    path.step()?;
    if let Some(default) = schema.get("default") {
        return Ok(Some(default.clone()));
    }
    let format = schema.get("format").and_then(Json::as_str);
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return Ok(None) };
    match format {
        Some("blob" | "structured-dataset") => {
            let filled = property_default(schema, "uri").and_then(Json::as_str).is_some_and(|uri| !uri.is_empty());
            if !filled {
                return Ok(None);
            }
        }
        Some(_) => return Ok(None),
        None => {}
    }
    let mut value = Fields::new();
    for (name, property) in properties {
        if let Some(property) = property.as_object()
            && let Some(part) = value_from_schema(property, &path.key(name))?
        {
            value.insert(name.clone(), part);
        }
    }
    let required = schema.get("required").and_then(Json::as_array).into_iter().flatten();
    let complete = required.filter_map(Json::as_str).all(|name| value.contains_key(name));
    Ok((complete && !value.is_empty()).then_some(Json::Object(value)))
}

fn property_default<'s>(schema: &'s Fields, property: &str) -> Option<&'s Json> {
    schema.get("properties")?.get(property)?.get("default")
}

// === shared with the value conversions ===

pub(super) fn known_type<'t>(ty: &'t LiteralType, path: &Path<'_>) -> Result<&'t Type, TranslateError> {
    ty.r#type.as_ref().ok_or_else(|| {
        path.error(Problem::Type {
            reason: "the type is not set".to_owned(),
            remedy: "register the task again with a current SDK",
        })
    })
}

pub(super) fn simple_type(simple: buffa::EnumValue<SimpleType>, path: &Path<'_>) -> Result<SimpleType, TranslateError> {
    simple.as_known().ok_or_else(|| {
        path.error(Problem::Type {
            reason: format!("unknown simple type {}", simple.to_i32()),
            remedy: "upgrade the data plane, or register the task with an older SDK",
        })
    })
}

pub(super) fn unsupported_schema() -> Problem {
    Problem::Unsupported { what: "the deprecated schema type", remedy: "declare a DataFrame instead" }
}

/// The None variant of a union, which makes what it types optional.
pub(super) fn none_variant(ty: &LiteralType) -> Option<&LiteralType> {
    let Some(Type::UnionType(union)) = &ty.r#type else { return None };
    union.variants.iter().find(|variant| is_none(variant))
}

pub(super) fn is_none(ty: &LiteralType) -> bool {
    matches!(&ty.r#type, Some(Type::Simple(simple)) if *simple == SimpleType::NONE)
}

pub(super) fn dimensionality_name(blob: &BlobType) -> &'static str {
    if blob.dimensionality == BlobDimensionality::MULTIPART { "MULTIPART" } else { "SINGLE" }
}

/// By name, or by number as older forms wrote it.
pub(super) fn dimensionality_from_json(value: &Json, path: &Path<'_>) -> Result<BlobDimensionality, TranslateError> {
    match (value.as_str(), value.as_f64()) {
        (Some("SINGLE" | "0"), _) | (None, Some(0.0)) => Ok(BlobDimensionality::SINGLE),
        (Some("MULTIPART" | "1"), _) | (None, Some(1.0)) => Ok(BlobDimensionality::MULTIPART),
        _ => Err(path.error(Problem::Content {
            reason: "not a dimensionality".to_owned(),
            remedy: "use \"SINGLE\" for a file or \"MULTIPART\" for a directory",
        })),
    }
}

fn bad_schema(path: &Path<'_>, reason: String) -> TranslateError {
    path.error(Problem::Type { reason, remedy: "use a form as returned by TaskSpecToLaunchFormJson" })
}
