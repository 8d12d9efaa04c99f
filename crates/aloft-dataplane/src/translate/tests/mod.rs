//! Through the public functions wherever the module's contract is what is tested; `forms` holds the table per type,
//! `refusals` what malformed and hostile requests get, `properties` what holds for arbitrary values.

mod forms;
mod properties;
mod refusals;
mod sdk;

use aloft_flyteidl2::flyteidl2::{
    core::{
        BlobType, EnumType, Literal, LiteralType, Scalar, SimpleType, StructuredDatasetType, TypeStructure, UnionType,
        Variable, VariableEntry, VariableMap, blob_type::BlobDimensionality, literal, literal_type::Type, scalar,
    },
    task::NamedLiteral,
    workflow::{JsonValuesToLiteralsRequest, LaunchFormJsonToLiteralsRequest},
};
use buffa_types::google::protobuf::Struct;
use serde_json::{Value as Json, json};

use super::{
    TranslateError, json_values_to_literals, launch_form_json_to_literals, literals_to_launch_form_json,
    path::{Budget, Path},
    wire,
};

// === types ===

fn typed(kind: impl Into<Type>) -> LiteralType {
    LiteralType { r#type: Some(kind.into()), ..Default::default() }
}

fn simple(simple: SimpleType) -> LiteralType {
    typed(Type::Simple(simple.into()))
}

fn collection(item: LiteralType) -> LiteralType {
    typed(Type::CollectionType(Box::new(item)))
}

fn map(value: LiteralType) -> LiteralType {
    typed(Type::MapValueType(Box::new(value)))
}

fn enumeration(values: &[&str]) -> LiteralType {
    typed(EnumType { values: values.iter().map(|&value| value.to_owned()).collect(), ..Default::default() })
}

fn blob(format: &str, dimensionality: BlobDimensionality) -> LiteralType {
    typed(BlobType { format: format.to_owned(), dimensionality: dimensionality.into(), ..Default::default() })
}

fn dataset(format: &str) -> LiteralType {
    typed(StructuredDatasetType { format: format.to_owned(), ..Default::default() })
}

fn class(schema: Json) -> LiteralType {
    LiteralType { metadata: fields(schema).into(), ..simple(SimpleType::STRUCT) }
}

fn union(variants: impl IntoIterator<Item = LiteralType>) -> LiteralType {
    typed(UnionType { variants: variants.into_iter().collect(), ..Default::default() })
}

fn tagged(ty: LiteralType, tag: &str) -> LiteralType {
    LiteralType { structure: TypeStructure { tag: tag.to_owned(), ..Default::default() }.into(), ..ty }
}

fn optional(ty: LiteralType) -> LiteralType {
    union([ty, tagged(simple(SimpleType::NONE), "none")])
}

fn variable(name: &str, ty: LiteralType) -> VariableEntry {
    let value = Variable { r#type: ty.into(), ..Default::default() };
    VariableEntry { key: name.to_owned(), value: value.into(), ..Default::default() }
}

fn variables(entries: impl IntoIterator<Item = VariableEntry>) -> VariableMap {
    VariableMap { variables: entries.into_iter().collect(), ..Default::default() }
}

// === values ===

fn fields(value: Json) -> Struct {
    let Json::Object(fields) = value else { panic!("not an object: {value}") };
    wire::struct_from_object(fields)
}

fn json_of(fields: &Struct) -> Json {
    let budget = Budget::new();
    Json::Object(wire::object_from_struct(fields, &Path::root("test", &budget)).expect("readable"))
}

fn scalar_of(value: &Literal) -> &scalar::Value {
    match &value.value {
        Some(literal::Value::Scalar(scalar)) => scalar.value.as_ref().expect("a set scalar"),
        other => panic!("not a scalar: {other:?}"),
    }
}

fn named(name: &str, value: impl Into<scalar::Value>) -> NamedLiteral {
    let scalar = Scalar { value: Some(value.into()), ..Default::default() };
    let value = Literal { value: Some(scalar.into()), ..Default::default() };
    NamedLiteral { name: name.to_owned(), value: value.into(), ..Default::default() }
}

// === the public functions, one variable named `x` ===

fn to_literals(ty: &LiteralType, value: Json) -> Result<Vec<NamedLiteral>, TranslateError> {
    let request = JsonValuesToLiteralsRequest {
        variables: variables([variable("x", ty.clone())]).into(),
        values: fields(json!({"x": value})).into(),
        ..Default::default()
    };
    Ok(json_values_to_literals(&request)?.literals)
}

fn to_literal(ty: &LiteralType, value: Json) -> Result<Literal, TranslateError> {
    let mut literals = to_literals(ty, value)?;
    assert_eq!(literals.len(), 1);
    Ok((*literals.remove(0).value).clone())
}

fn to_form(literals: &[NamedLiteral], ty: &LiteralType) -> Result<Struct, TranslateError> {
    let response = literals_to_launch_form_json(literals, &variables([variable("x", ty.clone())]))?;
    Ok((*response.json).clone())
}

fn from_form(form: Struct) -> Result<Vec<NamedLiteral>, TranslateError> {
    Ok(launch_form_json_to_literals(&LaunchFormJsonToLiteralsRequest { json: form.into(), ..Default::default() })?
        .literals)
}

/// The value a form shows for `x`, read the way its clients do.
fn shown(form: &Struct) -> Json {
    let field = &json_of(form)["properties"]["x"];
    if field["format"] != "blob" {
        return field["default"].clone();
    }
    let parts = ["uri", "format", "dimensionality"];
    Json::Object(parts.iter().map(|&part| (part.to_owned(), field["properties"][part]["default"].clone())).collect())
}
