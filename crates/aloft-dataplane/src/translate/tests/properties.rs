use aloft_flyteidl2::flyteidl2::core::Binary;
use proptest::{collection as many, prelude::*};

use super::*;

/// A type together with a value of it, in the spelling this module writes.
fn typed_value() -> impl Strategy<Value = (LiteralType, Json)> {
    typed_values(1).prop_map(|(ty, mut values)| (ty, values.remove(0)))
}

/// A type and `count` values of it, so that collections hold elements of one type.
fn typed_values(count: usize) -> BoxedStrategy<(LiteralType, Vec<Json>)> {
    leaf(count).prop_union(nested(count)).boxed()
}

fn leaf(count: usize) -> BoxedStrategy<(LiteralType, Vec<Json>)> {
    let values = |ty: LiteralType, value: BoxedStrategy<Json>| {
        many::vec(value, count).prop_map(move |values| (ty.clone(), values)).boxed()
    };
    let integer = any::<i64>().prop_map(|n| if n.unsigned_abs() <= 1 << 53 { json!(n) } else { json!(n.to_string()) });
    let float = any::<f64>().prop_filter_map("finite", |n| {
        // Whole floats are written as integers.
        n.is_finite()
            .then(|| if n.fract() == 0.0 && n.abs() <= (1_i64 << 53) as f64 { json!(n as i64) } else { json!(n) })
    });
    let instant = (-62_135_596_800_i64..=253_402_300_799, prop_oneof![Just(0), 0..1_000_000_000])
        .prop_map(|(s, n)| json!(buffa::json_helpers::wkt::fmt_timestamp(s, n).unwrap()));
    let duration = prop_oneof![
        (0_i64..80_000_000, 0_i64..60, 1_i64..60).prop_map(|(h, m, s)| json!(format!("{}h{m}m{s}s", h + 1))),
        (1_i64..1_000).prop_map(|ms| json!(format!("-{ms}ms"))),
        (1_i64..60).prop_map(|s| json!(format!("{s}.000000001s"))),
    ];
    prop_oneof![
        values(simple(SimpleType::INTEGER), integer.boxed()),
        values(simple(SimpleType::FLOAT), float.boxed()),
        values(simple(SimpleType::STRING), any::<String>().prop_map(Json::from).boxed()),
        values(simple(SimpleType::BOOLEAN), any::<bool>().prop_map(Json::from).boxed()),
        values(simple(SimpleType::NONE), Just(json!({"type": "null"})).boxed()),
        values(simple(SimpleType::DATETIME), instant.boxed()),
        values(simple(SimpleType::DURATION), duration.boxed()),
        values(enumeration(&["A", "B"]), prop_oneof![Just(json!("A")), Just(json!("B"))].boxed()),
        values(simple(SimpleType::STRUCT), any_object().boxed()),
    ]
    .boxed()
}

fn nested(count: usize) -> BoxedStrategy<(LiteralType, Vec<Json>)> {
    let lists = many::vec(0_usize..4, count).prop_flat_map(|sizes| {
        let total = sizes.iter().sum::<usize>().max(1);
        let elements = prop_oneof![2 => leaf(total), 1 => leaf(total).prop_map(|(ty, values)| {
            (collection(ty), values.into_iter().map(|value| json!([value])).collect())
        })];
        elements.prop_map(move |(ty, values)| {
            let mut values = values.into_iter();
            let lists = sizes.iter().map(|&size| values.by_ref().take(size).collect::<Vec<_>>()).collect::<Vec<_>>();
            (ty, lists)
        })
    });
    (lists, any::<bool>(), ".{0,6}")
        .prop_map(|((ty, lists), as_map, prefix)| {
            if !as_map {
                return (collection(ty), lists.into_iter().map(Json::Array).collect());
            }
            let entry = |(index, value)| (format!("{prefix}{index}"), value);
            let maps = lists.into_iter().map(|list| Json::Object(list.into_iter().enumerate().map(entry).collect()));
            (map(ty), maps.collect())
        })
        .boxed()
}

/// What a `Struct` can hold: its numbers are doubles, so the integers among them are small.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        (-1e9..1e9).prop_map(|n: f64| json!(n.trunc() + 0.5)),
        any::<String>().prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            many::vec(inner.clone(), 0..5).prop_map(Json::Array),
            many::btree_map(".{0,4}", inner, 0..5).prop_map(|fields| Json::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Json> {
    many::btree_map(".{0,4}", any_json(), 0..4).prop_map(|fields| Json::Object(fields.into_iter().collect()))
}

/// JSON that is nearly a schema: the right words in any place.
fn any_schema() -> impl Strategy<Value = Json> {
    let word = prop::sample::select(vec![
        "object",
        "array",
        "string",
        "integer",
        "null",
        "blob",
        "union",
        "datetime",
        "duration",
        "structured-dataset",
        "1h",
        "SINGLE",
        "s3://b/k",
    ]);
    let leaf =
        prop_oneof![word.prop_map(Json::from), any::<i8>().prop_map(Json::from), Just(json!(true)), Just(Json::Null)];
    let key = prop::sample::select(vec![
        "type",
        "format",
        "properties",
        "items",
        "additionalProperties",
        "oneOf",
        "enum",
        "default",
        "uri",
        "structure",
        "dimensionality",
        "required",
        "dataclass",
        "x",
    ]);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            1 => many::vec(inner.clone(), 0..4).prop_map(Json::Array),
            4 => many::btree_map(key.clone(), inner, 0..6)
                .prop_map(|fields| Json::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn json_survives_literals_and_forms((ty, value) in typed_value()) {
        let literals = to_literals(&ty, value.clone()).unwrap();
        let form = to_form(&literals, &ty).unwrap();
        prop_assert_eq!(shown(&form), value);
        prop_assert_eq!(from_form(form).unwrap(), literals);
    }

    #[test]
    fn optional_json_survives_too((ty, value) in typed_value()) {
        let ty = optional(tagged(ty, "some"));
        let literals = to_literals(&ty, value.clone()).unwrap();
        let form = to_form(&literals, &ty).unwrap();
        prop_assert_eq!(shown(&form), value);
        prop_assert_eq!(from_form(form).unwrap(), literals);
    }

    #[test]
    fn any_form_is_read_or_refused(field in any_schema()) {
        let _ = from_form(fields(json!({"properties": {"x": field}})));
    }

    #[test]
    fn any_value_is_read_or_refused((ty, _) in typed_value(), value in any_json()) {
        let _ = to_literals(&ty, value);
    }

    #[test]
    fn any_bytes_are_shown_or_refused(bytes in many::vec(any::<u8>(), 0..64), tagged in any::<bool>()) {
        let tag = if tagged { "msgpack".to_owned() } else { String::new() };
        let literal = named("x", Binary { value: bytes.into(), tag, ..Default::default() });
        let _ = to_form(&[literal], &simple(SimpleType::STRUCT));
    }

    #[test]
    fn any_text_is_a_time_or_refused(text in "[-+.0-9PTWDHMSZ:nuµmsh ]{0,24}|\\PC{0,12}") {
        for ty in [SimpleType::DATETIME, SimpleType::DURATION, SimpleType::INTEGER] {
            let _ = to_literals(&simple(ty), json!(text));
        }
    }
}
