use aloft_flyteidl2::flyteidl2::core::{
    Binary, LiteralCollection, LiteralOffloadedMetadata, Primitive, Schema, SchemaType, primitive,
};
use buffa_types::google::protobuf::Timestamp;

use super::*;

#[test]
fn a_refused_value_is_named_with_the_reason_and_the_remedy() {
    let integer = || simple(SimpleType::INTEGER);
    for (ty, value, message) in [
        (integer(), json!("twelve"), "`x`: \"twelve\" is not a 64-bit whole number; give a whole number"),
        (integer(), json!(1.5), "`x`: 1.5 is not a whole number; give a whole number"),
        (integer(), json!(1e18), "past 2^53, where JSON numbers lose digits; write it as a string of digits"),
        (integer(), json!([]), "`x`: expected a whole number, got an array; provide a whole number"),
        (integer(), json!(null), "`x`: null is not allowed because the type is not optional"),
        (integer(), json!({"type": "null"}), "null is not allowed"),
        (simple(SimpleType::FLOAT), json!("1.5"), "expected a number, got a string"),
        (simple(SimpleType::BOOLEAN), json!("true"), "expected true or false, got a string"),
        (simple(SimpleType::NONE), json!(1), "expected null, got a number"),
        (simple(SimpleType::DATETIME), json!("soon"), "\"soon\" is not a datetime; write it like 2026-01-31T12:00:00Z"),
        (simple(SimpleType::DATETIME), json!("2026-02-30T00:00:00Z"), "is not a datetime"),
        (simple(SimpleType::DATETIME), json!("2026-01-01Tÿ0:00Z"), "is not a datetime"),
        (simple(SimpleType::DURATION), json!("1 fortnight"), "is not a duration; write it like 1h30m"),
        (simple(SimpleType::DURATION), json!("P1Y"), "is not a duration"),
        (simple(SimpleType::DURATION), json!("P"), "is not a duration"),
        (simple(SimpleType::DURATION), json!("99999999999999999999999999h"), "is not a duration"),
        (simple(SimpleType::DURATION), json!(1e300), "is not a duration"),
        (simple(SimpleType::BINARY), json!("no base64!"), "not base64"),
        (simple(SimpleType::STRUCT), json!([]), "expected an object, got an array"),
        (simple(SimpleType::ERROR), json!("boom"), "leave it out"),
        (enumeration(&["A", "B"]), json!("C"), "\"C\" is not one of the allowed values; use one of A, B"),
        (blob("", BlobDimensionality::SINGLE), json!({"uri": ""}), "`x.uri`: the address is empty; upload"),
        (blob("", BlobDimensionality::SINGLE), json!({"uri": 1}), "`x.uri`: expected a string, got a number"),
        (
            blob("", BlobDimensionality::SINGLE),
            json!({"uri": "s3://b", "dimensionality": "CUBE"}),
            "`x.dimensionality`: not a dimensionality; use \"SINGLE\"",
        ),
        (dataset(""), json!("s3://b"), "expected an object with `uri` and `format`, got a string"),
        (collection(map(integer())), json!([{}, {"a": 1, "b": "c"}]), "`x[1].b`: \"c\" is not"),
        (optional(collection(integer())), json!([1, true]), "`x[1]`: expected a whole number, got true or false"),
        (
            union([integer(), simple(SimpleType::BOOLEAN)]),
            json!("no"),
            "fits no variant of the union (integer: \"no\" is not a 64-bit whole number; give a whole number; boolean: ",
        ),
        (union([integer()]), json!(null), "null is not allowed"),
        (typed(SchemaType::default()), json!({}), "deprecated schema type"),
        (LiteralType::default(), json!(1), "the type is not set"),
        (typed(Type::Simple(77.into())), json!(1), "unknown simple type 77"),
    ] {
        let error = to_literals(&ty, value.clone()).expect_err(&value.to_string()).to_string();
        assert!(error.contains(message), "{value}: {error}");
    }
}

#[test]
fn a_missing_value_is_named() {
    let request = JsonValuesToLiteralsRequest {
        variables: variables([variable("x", simple(SimpleType::STRING))]).into(),
        ..Default::default()
    };
    let error = json_values_to_literals(&request).unwrap_err();
    assert_eq!(error.to_string(), "`x`: no value was given and it has no default; provide one");
}

#[test]
fn a_literal_without_a_json_form_is_unsupported_and_a_broken_one_is_not() {
    let offloaded = Literal { value: Some(LiteralOffloadedMetadata::default().into()), ..Default::default() };
    let offloaded = LiteralCollection { literals: vec![offloaded], ..Default::default() };
    let offloaded = Literal { value: Some(offloaded.into()), ..Default::default() };
    let offloaded = NamedLiteral { name: "x".to_owned(), value: offloaded.into(), ..Default::default() };
    let datetime = Timestamp { nanos: -1, ..Default::default() };
    let datetime = Primitive { value: Some(primitive::Value::from(datetime)), ..Default::default() };
    let msgpack =
        |bytes: &'static [u8]| Binary { value: bytes.into(), tag: "msgpack".to_owned(), ..Default::default() };
    for (literal, unsupported, message) in [
        (offloaded, true, "`x[0]`: a value kept in object storage cannot be shown as JSON"),
        (named("x", Schema::default()), true, "deprecated schema type"),
        (NamedLiteral { name: "x".to_owned(), ..Default::default() }, false, "no value was given"),
        (named("x", datetime), false, "outside the years 1 to 9999"),
        (named("x", msgpack(b"")), false, "invalid msgpack"),
        (named("x", msgpack(b"\x80\x05")), false, "1 bytes follow the msgpack value"),
        (named("x", msgpack(b"\xa1\xff")), false, "text that is not UTF-8"),
        (named("x", msgpack(b"\x82\x01\xc0\xa11\xc0")), false, "two keys read \"1\" as text"),
        (named("x", msgpack(b"\xd4\x01\x00")), false, "msgpack extension type 1"),
        (named("x", msgpack(b"\xdd\xff\xff\xff\xff")), false, "invalid msgpack"),
    ] {
        let error = to_form(&[literal], &simple(SimpleType::STRING)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.is_unsupported(), unsupported, "{error}");
    }
}

#[test]
fn a_malformed_form_is_refused_where_it_is_malformed() {
    for (form, message) in [
        (json!({}), "the form has no object `properties`"),
        (json!({"properties": []}), "the form has no object `properties`"),
        (json!({"properties": {"x": 1}}), "`x`: the field's schema is not an object"),
        (json!({"properties": {"x": {}}}), "`x`: the schema has neither `type` nor `oneOf`"),
        (json!({"properties": {"x": {"type": ["string", "null"]}}}), "`x`: `type` is not a string"),
        (json!({"properties": {"x": {"type": "tensor"}}}), "unknown type \"tensor\""),
        (json!({"properties": {"x": {"type": "array"}}}), "`x.items`: an array needs `items`"),
        (json!({"properties": {"x": {"oneOf": {}}}}), "`oneOf` is not an array"),
        (json!({"properties": {"x": {"oneOf": [1]}}}), "a variant in `oneOf` is not an object"),
        (json!({"properties": {"x": {"type": "string", "enum": []}}}), "`x.enum`: `enum` is not a list"),
        (json!({"properties": {"x": {"type": "string", "enum": [1]}}}), "`x.enum`: `enum` is not a list"),
        (json!({"properties": {"x": {"type": "integer", "default": "y"}}}), "`x`: \"y\" is not"),
    ] {
        let error = from_form(fields(form.clone())).expect_err(&form.to_string()).to_string();
        assert!(error.contains(message), "{form}: {error}");
    }
}

#[test]
fn messages_quote_little_of_a_value_and_few_alternatives() {
    let secret = "s".repeat(10_000);
    let many: Vec<String> = (0..1_000).map(|n| format!("V{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = to_literals(&enumeration(&many), json!(secret)).unwrap_err().to_string();
    assert!(error.len() < 300 && error.ends_with("V9, and 990 more"), "{error}");
}

#[test]
fn depth_is_bounded_in_types_schemas_and_values() {
    // Deeper than any protobuf decoder lets through, and shallow enough for this test to build and drop.
    const DEPTH: usize = 300;
    let nest = |inner: Json, depth: usize, wrap: fn(Json) -> Json| (0..depth).fold(inner, |value, _| wrap(value));
    let deep_list = || nest(json!(1), DEPTH, |value| json!([value]));
    let deep_type = (0..DEPTH).fold(simple(SimpleType::INTEGER), |ty, _| collection(ty));
    let deep_union = (0..DEPTH).fold(simple(SimpleType::INTEGER), |ty, _| union([ty]));
    let deep_schema = nest(json!({"type": "integer"}), DEPTH, |items| json!({"type": "array", "items": items}));
    let deep_literal = (0..DEPTH).fold((*named("x", fields(json!({}))).value).clone(), |item, _| Literal {
        value: Some(LiteralCollection { literals: vec![item], ..Default::default() }.into()),
        ..Default::default()
    });
    let deep_literal = NamedLiteral { name: "x".to_owned(), value: deep_literal.into(), ..Default::default() };
    let mut deep_msgpack = vec![0x91; DEPTH];
    deep_msgpack.push(0x01);
    let deep_msgpack =
        named("x", Binary { value: deep_msgpack.into(), tag: "msgpack".to_owned(), ..Default::default() });

    for error in [
        to_literals(&simple(SimpleType::STRUCT), json!({"a": deep_list()})).unwrap_err(),
        to_literals(&deep_union, json!(1)).unwrap_err(),
        from_form(fields(json!({"properties": {"x": deep_schema}}))).unwrap_err(),
        to_form(std::slice::from_ref(&deep_literal), &simple(SimpleType::STRING)).unwrap_err(),
        to_form(&to_literals(&simple(SimpleType::INTEGER), json!(1)).unwrap(), &deep_type).unwrap_err(),
    ] {
        assert!(error.to_string().contains("nested more than 64 levels deep"), "{error}");
    }
    let error = to_form(&[deep_msgpack], &simple(SimpleType::STRUCT)).unwrap_err();
    assert!(error.to_string().contains("depth limit exceeded"), "{error}");
}

#[test]
fn work_is_bounded_where_types_multiply_it() {
    // Every literal of a union repeats its variant's type: 5,000 values times 2,000 attributes from a small request.
    let attributes: serde_json::Map<_, _> = (0..2_000).map(|n| (format!("a{n}"), json!({}))).collect();
    let ty = collection(optional(class(json!({"properties": attributes}))));
    let error = to_literals(&ty, Json::Array(vec![json!({}); 5_000])).unwrap_err();
    assert!(matches!(error.problem, crate::translate::Problem::TooLarge { .. }), "{error}");
}
