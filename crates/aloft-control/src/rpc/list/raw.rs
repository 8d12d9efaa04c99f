//! `raw_filters`: filters as text, the way REST clients write them: `eq(phase, 4)+contains(name, x)`.

use aloft_store::{Filter, Listed, Op};

use super::{
    super::error::{Answer, invalid, shortened},
    Written, check_number, read,
};

const PLACE: &str = "raw_filters";

/// The functions by the names they have in text.
const FUNCTIONS: &[(&str, Op)] = &[
    ("eq", Op::Equal),
    ("ne", Op::NotEqual),
    ("gt", Op::Greater),
    ("gte", Op::GreaterOrEqual),
    ("lt", Op::Less),
    ("lte", Op::LessOrEqual),
    ("contains", Op::Contains),
    ("contains_case_insensitive", Op::ContainsNoCase),
    ("value_in", Op::In),
    ("value_not_in", Op::NotIn),
    ("ends_with", Op::EndsWith),
    ("not_ends_with", Op::NotEndsWith),
    ("exists", Op::Exists),
    ("not_exists", Op::NotExists),
];

/// One term such as `value_in(phase, 4;5)`; `exists` and `not_exists` take a field only.
fn term(text: &str) -> Answer<Written<'_>> {
    let bad = || {
        let text = shortened(text);
        invalid(format!("{PLACE}: cannot read {text:?}; write function(field, value), joined by '+'"))
    };
    let (function, rest) = text.trim().split_once('(').ok_or_else(bad)?;
    let rest = rest.strip_suffix(')').ok_or_else(bad)?;
    let function = function.trim();
    let Some((_, op)) = FUNCTIONS.iter().find(|(name, _)| *name == function) else {
        let names: Vec<_> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
        return Err(invalid(format!("{PLACE}: {:?} is not one of {}", shortened(function), names.join(", "))));
    };
    let (field, values) = match (op, rest.split_once(',')) {
        (Op::Exists | Op::NotExists, None) => (rest, Vec::new()),
        (Op::In | Op::NotIn, Some((field, values))) => (field, values.split(';').map(str::trim).collect()),
        (_, Some((field, value))) => (field, vec![value.trim()]),
        (_, None) => return Err(bad()),
    };
    Ok(Written { place: PLACE, field: field.trim(), op: *op, values })
}

/// The filters that `texts` hold; all of them must hold.
pub(super) fn filters(of: Listed, texts: &[String]) -> Answer<Vec<Filter>> {
    let mut written = Vec::new();
    for text in texts.iter().filter(|t| !t.trim().is_empty()) {
        // Values may have a '+' in them, and end before the parenthesis does.
        let mut rest = text.as_str();
        while let Some((one, more)) = rest.split_once(")+") {
            written.push(format!("{one})"));
            rest = more;
        }
        written.push(rest.to_owned());
    }
    let terms = written.iter().map(|t| term(t)).collect::<Answer<Vec<_>>>()?;
    check_number(PLACE, terms.len(), terms.iter().map(|t| t.values.len()).sum())?;
    terms.iter().map(|t| read(of, t)).collect()
}

#[cfg(test)]
mod tests {
    use aloft_store::{Cursor, Field};

    use super::*;

    #[test]
    fn text_is_read_as_filters() {
        let texts =
            ["eq(phase, RUNNING)+contains(name,a+b)".to_owned(), "value_in(phase,4;5)+exists(labels.team)".into()];
        let filters = filters(Listed::Runs, &texts).unwrap();
        let expected = [
            Filter { field: Field::Phase, op: Op::Equal, values: vec![Cursor::Int(4)] },
            Filter { field: Field::Name, op: Op::Contains, values: vec![Cursor::Text("a+b".into())] },
            Filter { field: Field::Phase, op: Op::In, values: vec![Cursor::Int(4), Cursor::Int(5)] },
            Filter { field: Field::Label("team".into()), op: Op::Exists, values: vec![] },
        ];
        assert_eq!(filters, expected);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (text, part) in [
            ("phase=4", "cannot read"),
            ("eq(phase)", "cannot read"),
            ("like(name, x)", "not one of"),
            ("eq(colour, red)", "colour"),
            ("eq(phase, 4", "cannot read"),
        ] {
            let error = filters(Listed::Runs, &[text.to_owned()]).unwrap_err();
            assert!(format!("{error}").contains(part), "{text}: {error}");
        }
    }
}
