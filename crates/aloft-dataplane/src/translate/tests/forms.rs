use aloft_flyteidl2::flyteidl2::{
    common::{ActionIdentifier, TriggerIdentifier},
    core::{
        Binary, Error, Parameter, Primitive, TaskTemplate, TypedInterface, Union, Void, parameter::Behavior, primitive,
    },
    task::{NamedParameter, TaskSpec},
    workflow::{
        LiteralsToLaunchFormJsonRequest, TaskSpecToLaunchFormJsonRequest, literals_to_launch_form_json_request::Owner,
    },
};

use super::*;
use crate::translate::{LiteralsSource, literals_source, task_spec_to_launch_form_json};

/// A type, the field it becomes, and values in the form they are shown in.
struct Row {
    name: &'static str,
    ty: LiteralType,
    /// Without `title`, which is always the variable's name, and without the value.
    schema: Json,
    values: Vec<Json>,
    /// Whether the schema says everything the type does. (A dataset's columns and a tag-less type's details are lost.)
    invertible: bool,
}

fn row(name: &'static str, ty: LiteralType, schema: Json, values: impl IntoIterator<Item = Json>) -> Row {
    Row { name, ty, schema, values: values.into_iter().collect(), invertible: true }
}

fn point_schema() -> Json {
    json!({
        "type": "object",
        "title": "Point",
        "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
        "required": ["x"],
    })
}

fn table() -> Vec<Row> {
    let text = || simple(SimpleType::STRING);
    let integer = || simple(SimpleType::INTEGER);
    vec![
        row(
            "integer",
            integer(),
            json!({"type": "integer"}),
            [json!(0), json!(-42), json!(1_i64 << 53), json!("9007199254740993"), json!("-9223372036854775808")],
        ),
        row(
            "float",
            simple(SimpleType::FLOAT),
            json!({"type": "number", "format": "float"}),
            [json!(3.25), json!(-1e300), json!(7), json!("-Infinity")],
        ),
        row("string", text(), json!({"type": "string"}), [json!(""), json!("héllo\n")]),
        row("boolean", simple(SimpleType::BOOLEAN), json!({"type": "boolean"}), [json!(true), json!(false)]),
        row("none", simple(SimpleType::NONE), json!({"type": "null"}), [json!({"type": "null"})]),
        row(
            "datetime",
            simple(SimpleType::DATETIME),
            json!({"type": "string", "format": "datetime"}),
            [json!("2026-01-31T12:00:00Z"), json!("0001-01-01T00:00:00Z"), json!("2026-01-31T12:00:00.000001Z")],
        ),
        row(
            "duration",
            simple(SimpleType::DURATION),
            json!({"type": "string", "format": "duration"}),
            [json!("1h30m0s"), json!("-2.5s"), json!("0s")],
        ),
        row(
            "binary",
            simple(SimpleType::BINARY),
            json!({"type": "string", "format": "binary"}),
            [json!("aGVsbG8="), json!({"k": [1, null, 2.5]})],
        ),
        row(
            "dict",
            simple(SimpleType::STRUCT),
            json!({"type": "object", "additionalProperties": true}),
            [json!({}), json!({"type": "null"}), json!({"a": {"b": [1, "two", null, true]}})],
        ),
        row(
            "dataclass",
            class(point_schema()),
            json!({
                "type": "object",
                "dataclass": "Point",
                "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
                "required": ["x"],
            }),
            [json!({"x": 1, "y": 2.5}), json!({"x": 1})],
        ),
        row(
            "recursive pydantic model",
            class(json!({"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "properties": {}}}})),
            json!({"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "properties": {}}}}),
            [json!({"next": null})],
        ),
        row(
            "pydantic root model",
            class(json!({"title": "Numbers", "type": "array", "items": {"type": "integer"}})),
            json!({"dataclass": "Numbers", "type": "array", "items": {"type": "integer"}}),
            [json!([1, 2])],
        ),
        row(
            "protobuf message",
            class(json!({"pb_type": "m.M"})),
            json!({"type": "object", "pb_type": "m.M"}),
            [json!({"field": 1.5})],
        )
        .lossy(),
        row(
            "collection",
            collection(integer()),
            json!({"type": "array", "items": {"type": "integer"}}),
            [json!([]), json!([1, 2])],
        ),
        row(
            "map",
            map(text()),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            [json!({}), json!({"a": "b", "type": "null"})],
        ),
        row(
            "map of lists of optionals",
            map(collection(optional(tagged(integer(), "int")))),
            json!({
                "type": "object",
                "additionalProperties": {
                    "type": "array",
                    "items": {
                        "format": "union",
                        "oneOf": [
                            {"type": "integer", "title": "integer", "structure": "int"},
                            {"type": "null", "title": "none", "structure": "none"},
                        ],
                    },
                },
            }),
            [json!({"a": [1, {"type": "null"}]})],
        ),
        row(
            "enum",
            enumeration(&["RED", "GREEN"]),
            json!({"type": "string", "enum": ["RED", "GREEN"]}),
            [json!("GREEN")],
        ),
        row(
            "file",
            blob("csv", BlobDimensionality::SINGLE),
            json!({
                "type": "object",
                "format": "blob",
                "properties": {
                    "uri": {"type": "string"},
                    "format": {"type": "string"},
                    "dimensionality": {"type": "string", "enum": ["SINGLE", "MULTIPART"]},
                },
            }),
            [json!({"uri": "s3://b/k", "format": "csv", "dimensionality": "SINGLE"})],
        ),
        row(
            "directory",
            blob("", BlobDimensionality::MULTIPART),
            json!({
                "type": "object",
                "format": "blob",
                "properties": {
                    "uri": {"type": "string"},
                    "format": {"type": "string"},
                    "dimensionality": {"type": "string", "enum": ["SINGLE", "MULTIPART"]},
                },
            }),
            [json!({"uri": "s3://b/d", "format": "", "dimensionality": "MULTIPART"})],
        ),
        row(
            "structured dataset",
            dataset("parquet"),
            json!({
                "type": "object",
                "format": "structured-dataset",
                "properties": {"uri": {"type": "string"}, "format": {"type": "string", "default": "parquet"}},
            }),
            [json!({"uri": "s3://b/k", "format": "parquet"})],
        ),
        row(
            "union",
            union([
                tagged(integer(), "int"),
                tagged(text(), "str"),
                tagged(blob("", BlobDimensionality::SINGLE), "File"),
                tagged(class(point_schema()), "Object-Dataclass-Transformer"),
                tagged(collection(integer()), "Typed List"),
            ]),
            json!({
                "format": "union",
                "oneOf": [
                    {"title": "integer", "structure": "int", "type": "integer"},
                    {"title": "string", "structure": "str", "type": "string"},
                    {
                        "title": "blob",
                        "structure": "File",
                        "type": "object",
                        "format": "blob",
                        "properties": {
                            "uri": {"type": "string", "default": ""},
                            "format": {"type": "string", "default": ""},
                            "dimensionality": {
                                "type": "string",
                                "enum": ["SINGLE", "MULTIPART"],
                                "default": "SINGLE",
                            },
                        },
                    },
                    {
                        "title": "Point",
                        "structure": "Object-Dataclass-Transformer",
                        "dataclass": "Point",
                        "type": "object",
                        "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
                        "required": ["x"],
                    },
                    {"title": "array", "structure": "Typed List", "type": "array", "items": {"type": "integer"}},
                ],
            }),
            [
                json!(5),
                json!("5"),
                json!({"uri": "s3://b/k", "format": "", "dimensionality": "SINGLE"}),
                json!({"x": 3}),
                json!([1]),
            ],
        ),
    ]
}

impl Row {
    fn lossy(mut self) -> Self {
        self.invertible = false;
        self
    }
}

#[test]
fn every_type_becomes_its_schema() {
    for Row { name, ty, mut schema, values, .. } in table() {
        let literals = to_literals(&ty, values[0].clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let form = to_form(&literals, &ty).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut field = json_of(&form)["properties"]["x"].take();
        assert_eq!(shown(&form), values[0], "{name}");
        schema["title"] = json!("x");
        field.as_object_mut().unwrap().remove("default");
        if field["format"] == "blob" {
            for part in field["properties"].as_object_mut().unwrap().values_mut() {
                part.as_object_mut().unwrap().remove("default");
            }
        }
        assert_eq!(field, schema, "{name}");
    }
}

#[test]
fn every_value_survives_json_and_a_form() {
    for Row { name, ty, values, invertible, .. } in table() {
        for value in values {
            let at = format!("{name} {value}");
            let literals = to_literals(&ty, value.clone()).unwrap_or_else(|error| panic!("{at}: {error}"));
            let form = to_form(&literals, &ty).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(shown(&form), value, "{at}");
            let again = from_form(form).unwrap_or_else(|error| panic!("{at}: {error}"));
            if invertible {
                assert_eq!(again, literals, "{at}");
            } else {
                assert_eq!(shown(&to_form(&again, &ty).unwrap()), value, "{at}");
            }
        }
    }
}

#[test]
fn datetimes_are_read_as_people_and_widgets_write_them() {
    let noon = "2026-01-31T12:00:00Z";
    for text in [
        noon,
        "2026-01-31T12:00:00.000Z",
        "2026-01-31T14:00:00+02:00",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00:00",
        "2026-01-31T12:00",
        " 2026-01-31 07:00-05:00 ",
    ] {
        let ty = simple(SimpleType::DATETIME);
        let form = to_form(&to_literals(&ty, json!(text)).expect(text), &ty).unwrap();
        assert_eq!(shown(&form), json!(noon), "{text}");
    }
    let ty = simple(SimpleType::DATETIME);
    let form = to_form(&to_literals(&ty, json!("2026-01-31")).unwrap(), &ty).unwrap();
    assert_eq!(shown(&form), json!("2026-01-31T00:00:00Z"));
}

#[test]
fn durations_are_read_in_go_iso_and_plain_spelling() {
    for (value, shown_as) in [
        (json!("90m"), "1h30m0s"),
        (json!("PT1H30M"), "1h30m0s"),
        (json!("5400"), "1h30m0s"),
        (json!(5400), "1h30m0s"),
        (json!("5400s"), "1h30m0s"),
        (json!("1.5h"), "1h30m0s"),
        (json!("P1DT1S"), "24h0m1s"),
        (json!("P2W"), "336h0m0s"),
        (json!("-PT0.5S"), "-500ms"),
        (json!("+61s"), "1m1s"),
        (json!(".5s"), "500ms"),
        (json!(1.5), "1.5s"),
        (json!("1500us"), "1.5ms"),
        (json!("2µs"), "2µs"),
        (json!("3ns"), "3ns"),
        (json!("0"), "0s"),
        (json!("1ns999999h"), "999999h0m0.000000001s"),
    ] {
        let ty = simple(SimpleType::DURATION);
        let literals = to_literals(&ty, value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
        assert_eq!(shown(&to_form(&literals, &ty).unwrap()), json!(shown_as), "{value}");
    }
}

#[test]
fn classes_travel_as_msgpack_with_whole_numbers_as_integers() {
    let value = to_literal(&class(point_schema()), json!({"x": 1, "y": 2.5})).unwrap();
    let scalar::Value::Binary(binary) = scalar_of(&value) else { panic!("{value:?}") };
    assert_eq!(binary.tag, "msgpack");
    let mut bytes = &binary.value[..];
    let map = rmpv::decode::read_value(&mut bytes).unwrap();
    assert_eq!(map["x"], rmpv::Value::from(1));
    assert_eq!(map["y"], rmpv::Value::from(2.5));
}

#[test]
fn not_a_number_is_shown_by_name() {
    let ty = simple(SimpleType::FLOAT);
    let form = to_form(&to_literals(&ty, json!("NaN")).unwrap(), &ty).unwrap();
    assert_eq!(shown(&form), json!("NaN"));
}

#[test]
fn protobuf_messages_travel_as_structs() {
    let value = to_literal(&class(json!({"pb_type": "m.M"})), json!({"a": 1})).unwrap();
    assert!(matches!(scalar_of(&value), scalar::Value::Generic(_)), "{value:?}");
}

#[test]
fn msgpack_that_json_has_no_words_for_is_shown_as_text() {
    let packed = rmpv::Value::Map(vec![
        (rmpv::Value::from(7), rmpv::Value::from(u64::MAX)),
        (rmpv::Value::from("nan"), rmpv::Value::from(f64::NAN)),
        (rmpv::Value::from("bytes"), rmpv::Value::Binary(b"hello".to_vec())),
    ]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &packed).unwrap();
    let literal = named("x", Binary { value: bytes.into(), tag: "msgpack".to_owned(), ..Default::default() });
    let form = to_form(&[literal], &simple(SimpleType::STRUCT)).unwrap();
    assert_eq!(shown(&form), json!({"7": "18446744073709551615", "nan": "NaN", "bytes": "aGVsbG8="}));
}

#[test]
fn untagged_bytes_are_never_read_as_msgpack() {
    // The first bytes of every pickle, and a valid msgpack map with trailing bytes.
    let pickle = named("x", Binary { value: vec![0x80, 0x05].into(), ..Default::default() });
    assert_eq!(shown(&to_form(&[pickle], &simple(SimpleType::BINARY)).unwrap()), json!("gAU="));
}

#[test]
fn struct_literals_and_errors_are_shown() {
    let generic = named("x", fields(json!({"a": [1, null]})));
    assert_eq!(shown(&to_form(&[generic], &simple(SimpleType::STRUCT)).unwrap()), json!({"a": [1, null]}));
    let error = named("x", Error { message: "boom".to_owned(), ..Default::default() });
    assert_eq!(shown(&to_form(&[error], &simple(SimpleType::ERROR)).unwrap()), json!("boom"));
}

#[test]
fn unions_pick_the_variant_the_value_looks_like() {
    let sibling = |kind: &str, attribute: &str| {
        class(json!({
            "title": kind,
            "properties": {"kind": {"const": kind}, attribute: {"type": "integer"}},
            "required": ["kind"],
        }))
    };
    let integer = || simple(SimpleType::INTEGER);
    let text = || simple(SimpleType::STRING);
    for (variants, value, picked) in [
        (vec![sibling("a", "n"), sibling("b", "n")], json!({"kind": "b", "n": 1}), 1),
        (vec![sibling("a", "n"), sibling("a", "m")], json!({"kind": "a", "m": 1}), 1),
        (vec![class(point_schema()), blob("", BlobDimensionality::SINGLE)], json!({"uri": "s3://b/k"}), 1),
        (vec![simple(SimpleType::BINARY), text()], json!("aGVsbG8="), 1),
        (vec![integer(), text()], json!("12"), 1),
        (vec![integer(), simple(SimpleType::FLOAT)], json!(1.5), 1),
        (vec![simple(SimpleType::FLOAT), integer()], json!(1), 0),
        (vec![text(), enumeration(&["A"])], json!("A"), 0),
        (vec![simple(SimpleType::DATETIME), text()], json!("tomorrow"), 1),
        (vec![collection(integer()), collection(text())], json!(["a"]), 1),
        (vec![map(integer()), map(text())], json!({"a": "b"}), 1),
        (vec![integer(), simple(SimpleType::DURATION)], json!("5m"), 1),
    ] {
        let value = to_literal(&union(variants.clone()), value).unwrap();
        let scalar::Value::Union(chosen) = scalar_of(&value) else { panic!("{value:?}") };
        assert_eq!(*chosen.r#type, variants[picked]);
    }
}

#[test]
fn optional_inputs_may_be_null_or_left_out() {
    let ty = optional(tagged(simple(SimpleType::INTEGER), "int"));
    let none = Union {
        value: (*named("x", Void::default()).value).clone().into(),
        r#type: tagged(simple(SimpleType::NONE), "none").into(),
        ..Default::default()
    };
    let none = [named("x", none)];
    assert_eq!(to_literals(&ty, json!(null)).unwrap(), none);
    assert_eq!(to_literals(&ty, json!({"type": "null"})).unwrap(), none);
    let request =
        JsonValuesToLiteralsRequest { variables: variables([variable("x", ty.clone())]).into(), ..Default::default() };
    assert_eq!(json_values_to_literals(&request).unwrap().literals, none);

    let form = to_form(&none, &ty).unwrap();
    assert_eq!(json_of(&form)["required"], json!([]));
    assert_eq!(from_form(form).unwrap(), none);
}

#[test]
fn json_values_come_in_the_order_of_the_interface_and_extra_ones_are_ignored() {
    let request = JsonValuesToLiteralsRequest {
        variables: variables([variable("b", simple(SimpleType::INTEGER)), variable("a", simple(SimpleType::STRING))])
            .into(),
        values: fields(json!({"a": "x", "b": 1, "dropped": true})).into(),
        ..Default::default()
    };
    let names: Vec<_> = json_values_to_literals(&request).unwrap().literals.into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn a_form_leaves_out_undeclared_literals_and_describes_the_others() {
    let integer = Primitive { value: Some(primitive::Value::Integer(5)), ..Default::default() };
    let mut entry = variable("x", simple(SimpleType::INTEGER));
    entry.value.get_or_insert_default().description = "how many".to_owned();
    let declared = variables([entry, variable("unset", simple(SimpleType::STRING))]);
    let response =
        literals_to_launch_form_json(&[named("x", integer.clone()), named("dropped", integer)], &declared).unwrap();
    assert_eq!(
        json_of(&response.json),
        json!({
            "type": "object",
            "title": "Launch Form",
            "required": ["x"],
            "properties": {"x": {"title": "x", "description": "how many", "type": "integer", "default": 5}},
        })
    );
}

#[test]
fn a_task_form_requires_what_has_no_default() {
    let default = |name: &str, behavior: Behavior| NamedParameter {
        name: name.to_owned(),
        parameter: Parameter { behavior: Some(behavior), ..Default::default() }.into(),
        ..Default::default()
    };
    let inputs = variables([
        variable("needed", simple(SimpleType::STRING)),
        variable("maybe", optional(simple(SimpleType::STRING))),
        variable("count", simple(SimpleType::INTEGER)),
        variable("insisted", simple(SimpleType::INTEGER)),
        variable("file", blob("csv", BlobDimensionality::SINGLE)),
    ]);
    let count = to_literal(&simple(SimpleType::INTEGER), json!(3)).unwrap();
    let file = to_literal(&blob("csv", BlobDimensionality::SINGLE), json!({"uri": "s3://b/k"})).unwrap();
    let interface = TypedInterface { inputs: inputs.into(), ..Default::default() };
    let spec = TaskSpec {
        task_template: TaskTemplate { interface: interface.into(), ..Default::default() }.into(),
        default_inputs: vec![
            default("count", count.into()),
            default("insisted", Behavior::Required(true)),
            default("file", file.into()),
        ],
        ..Default::default()
    };
    let request = TaskSpecToLaunchFormJsonRequest { task_spec: spec.into(), ..Default::default() };
    let form = (*task_spec_to_launch_form_json(&request).unwrap().json).clone();
    let json = json_of(&form);
    assert_eq!(json["required"], json!(["needed", "insisted"]));
    assert_eq!(json["properties"]["count"], json!({"title": "count", "type": "integer", "default": 3}));
    assert_eq!(json["properties"]["file"]["properties"]["uri"]["default"], json!("s3://b/k"));

    // As filled in by nobody: the defaults, None for the optional one, nothing for the two that are required.
    let names: Vec<_> = from_form(form).unwrap().into_iter().map(|literal| literal.name).collect();
    assert_eq!(names, ["count", "file", "maybe"]);
}

#[test]
fn a_form_without_inputs_is_empty() {
    let form = task_spec_to_launch_form_json(&TaskSpecToLaunchFormJsonRequest::default()).unwrap().json;
    assert_eq!(json_of(&form), json!({"type": "object", "title": "Launch Form", "required": [], "properties": {}}));
    assert_eq!(from_form((*form).clone()).unwrap(), []);
}

#[test]
fn a_half_filled_form_field_is_not_a_value() {
    for (field, value) in [
        (json!({"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}), Some(json!({"a": 1}))),
        (json!({"type": "object", "properties": {"a": {"default": 1}, "b": {}}, "required": ["a", "b"]}), None),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"default": [1]}}}}}),
            Some(json!({"a": {"b": [1]}})),
        ),
        (json!({"type": "object", "format": "blob", "properties": {"uri": {"default": ""}}}), None),
        (
            json!({"type": "object", "format": "blob", "properties": {"uri": {"default": "s3://b/k"}, "dimensionality": {"default": 1}}}),
            Some(json!({"uri": "s3://b/k", "format": "", "dimensionality": "MULTIPART"})),
        ),
        (json!({"type": "integer"}), None),
    ] {
        let literals = from_form(fields(json!({"properties": {"x": field.clone()}}))).unwrap();
        let shown = literals.first().map(|literal| {
            let budget = Budget::new();
            crate::translate::to_json::json_from_literal(&literal.value, &Path::root("x", &budget)).unwrap()
        });
        assert_eq!(shown, value, "{field}");
    }
}

#[test]
fn a_request_says_where_its_literals_are() {
    let request = |uri: &str, owner| LiteralsToLaunchFormJsonRequest {
        literals_uri: uri.to_owned(),
        owner,
        ..Default::default()
    };
    let action = || Some(Owner::ActionId(Box::default()));
    let trigger = Some(Owner::TriggerId(Box::default()));

    assert_eq!(literals_source(&request("", None)), Ok(LiteralsSource::Inline(&[])));
    assert_eq!(literals_source(&request("", action())), Ok(LiteralsSource::Inline(&[])));
    let of_action = request("s3://b/inputs.pb", action());
    assert_eq!(
        literals_source(&of_action),
        Ok(LiteralsSource::Action { id: &ActionIdentifier::default(), uri: "s3://b/inputs.pb" })
    );
    assert_eq!(literals_source(&request("", trigger)), Ok(LiteralsSource::Trigger(&TriggerIdentifier::default())));
    let error = literals_source(&request("s3://b/inputs.pb", None)).unwrap_err();
    assert!(error.to_string().contains("set action_id"), "{error}");
}
