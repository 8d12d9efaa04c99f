//! Literals written by the real Python SDK (2.12.1; `sdk_literals.py` makes the fixture), shown and read back.
//!
//! To see that the SDK also reads what we write: `ALOFT_SDK_LITERALS_OUT=ours.json cargo test sdk`, then
//! `python sdk_literals.py read < ours.json`.

use base64::{Engine, engine::general_purpose::STANDARD};
use buffa::Message;

use super::*;

fn decode<M: Message>(text: &Json) -> M {
    M::decode_from_slice(&STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn what_the_sdk_writes_is_shown_and_survives() {
    let cases: serde_json::Map<String, Json> = serde_json::from_str(include_str!("sdk_literals.json")).unwrap();
    let point = || json!({"x": 1, "y": 2, "tags": ["a"], "by_number": {"3": 4}});
    let model = || json!({"layers": [{"size": 3, "activation": null}], "rate": 0.1});
    let mut expected = Json::Object(Default::default());
    for (name, value) in [
        ("int", json!("1152921504606846976")),
        ("float", json!(1.5)),
        ("str", json!("héllo")),
        ("bool", json!(true)),
        ("datetime", json!("2026-01-31T12:00:00Z")),
        ("date", json!("2026-01-31T00:00:00Z")),
        ("timedelta", json!("1h30m0s")),
        ("list", json!([1, 2])),
        ("dict_str", json!({"a": [1.5]})),
        ("dict_int", json!({"1": "one"})),
        ("dict", json!({"a": {"b": [1, null]}})),
        ("enum", json!("GREEN")),
        ("dataclass", point()),
        ("nested_dataclass", json!({"center": point(), "radius": 2.5})),
        ("pydantic", model()),
        ("optional_none", json!({"type": "null"})),
        ("optional_some", point()),
        ("union", point()),
        ("union_of_models", model()),
        ("list_of_optional", json!(["a", {"type": "null"}])),
        ("file", json!({"uri": "s3://b/k.csv", "format": "", "dimensionality": "SINGLE"})),
        ("dir", json!({"uri": "s3://b/d", "format": "", "dimensionality": "MULTIPART"})),
    ] {
        expected[name] = value;
    }

    let mut seen = Json::Object(Default::default());
    let mut ours = Json::Object(Default::default());
    for (name, case) in &cases {
        let ty: LiteralType = decode(&case["type"]);
        let literal: Literal = decode(&case["literal"]);
        let literal = NamedLiteral { name: "x".to_owned(), value: literal.into(), ..Default::default() };
        let form = to_form(&[literal], &ty).unwrap_or_else(|error| panic!("{name}: {error}"));
        seen[name] = shown(&form);
        // Once by the declared type and once by the form's schema: the value is the same, and so is the union's tag.
        let by_type = to_literals(&ty, shown(&form)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let by_form = from_form(form).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(shown(&to_form(&by_type, &ty).unwrap()), seen[name], "{name}");
        assert_eq!(shown(&to_form(&by_form, &ty).unwrap()), seen[name], "{name}");
        ours[name] = json!(STANDARD.encode(by_form[0].value.encode_to_vec()));
    }
    assert_eq!(seen, expected);
    if let Some(path) = std::env::var_os("ALOFT_SDK_LITERALS_OUT") {
        std::fs::write(path, ours.to_string()).unwrap();
    }
}
