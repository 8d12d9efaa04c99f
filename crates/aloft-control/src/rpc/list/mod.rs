//! `ListRequest` as a query of the store, and the lists of runs and actions.

mod fields;
mod raw;
mod serve;

use aloft_flyteidl2::flyteidl2::common::{
    Filter as WireFilter, ListRequest, Sort, filter::Function, sort::Direction as WireDirection,
};
use aloft_store::{Cursor, Direction, Field, FieldType, Filter, ListQuery, ListScope, Listed, Op, SortBy};
use connectrpc::ConnectError;

pub(super) use self::{
    fields::of_action_tree,
    serve::{list_actions, list_runs},
};
use super::error::{Answer, invalid, shortened};

/// Rows of a page when the request does not say.
const DEFAULT_PAGE: usize = 100;
/// Most rows of a page; a request for more gets this many and a token.
const MAX_PAGE: usize = 1000;
/// Most filters of a request, and most values of all of them: more make a query that the database refuses.
const MAX_FILTERS: usize = 100;
const MAX_VALUES: usize = 10_000;
/// Most keys of an order. No list has that many fields worth sorting by.
const MAX_SORT: usize = 8;

fn op(function: Function) -> Op {
    match function {
        Function::EQUAL => Op::Equal,
        Function::NOT_EQUAL => Op::NotEqual,
        Function::GREATER_THAN => Op::Greater,
        Function::GREATER_THAN_OR_EQUAL => Op::GreaterOrEqual,
        Function::LESS_THAN => Op::Less,
        Function::LESS_THAN_OR_EQUAL => Op::LessOrEqual,
        Function::CONTAINS => Op::Contains,
        Function::VALUE_IN => Op::In,
        Function::VALUE_NOT_IN => Op::NotIn,
        Function::ENDS_WITH => Op::EndsWith,
        Function::NOT_ENDS_WITH => Op::NotEndsWith,
        Function::CONTAINS_CASE_INSENSITIVE => Op::ContainsNoCase,
        Function::EXISTS => Op::Exists,
        Function::NOT_EXISTS => Op::NotExists,
    }
}

/// A filter as it came, whichever way it was written.
struct Written<'w> {
    /// Which request field it is of, for what is refused.
    place: &'static str,
    field: &'w str,
    op: Op,
    values: Vec<&'w str>,
}

fn read(of: Listed, written: &Written<'_>) -> Answer<Filter> {
    let Written { place, field: name, op, values } = written;
    let field = fields::named(of, place, name)?;
    let refuse = |why: &str| Err(invalid(format!("{place}: {op:?} on {:?} {why}", shortened(name))));
    if op.is_textual() && fields::is_not_text(&field) {
        return refuse("looks into text, and this is not text; compare it, or list values with VALUE_IN");
    }
    let mut op = *op;
    let mut values: Vec<&str> = values.clone();
    let joined;
    match op {
        Op::Exists | Op::NotExists => {
            if values.iter().any(|v| !v.is_empty()) {
                return refuse("takes no value");
            }
            values.clear();
        }
        Op::In | Op::NotIn if values.is_empty() => return refuse("needs at least one value"),
        Op::In | Op::NotIn => {}
        // SDK 2.12.1 gives one phase as text where a list is wanted, so that "10" arrives as its two digits. There is no
        // phase 0 that "1" and "0" could mean.
        Op::Equal if field == Field::Phase && values == ["1", "0"] => {
            joined = values.concat();
            values = vec![&joined];
        }
        Op::Equal if values.len() > 1 => op = Op::In,
        _ if values.len() == 1 => {}
        _ => return refuse(&format!("takes one value, not {}", values.len())),
    }
    let values =
        values.into_iter().map(|v| fields::value(&field, place, name, v)).collect::<Result<_, ConnectError>>()?;
    Ok(Filter { field, op, values })
}

/// The filters of a request.
pub(super) fn filters(of: Listed, wire: &[WireFilter]) -> Answer<Vec<Filter>> {
    let values: usize = wire.iter().map(|f| f.values.len()).sum();
    check_number("filters", wire.len(), values)?;
    wire.iter()
        .map(|f| {
            let function = f.function.as_known().ok_or_else(|| {
                invalid(format!("filters: {} is not a function this server knows", f.function.to_i32()))
            })?;
            let values = f.values.iter().map(String::as_str).collect();
            read(of, &Written { place: "filters", field: &f.field, op: op(function), values })
        })
        .collect()
}

fn check_number(place: &str, filters: usize, values: usize) -> Answer<()> {
    for (what, found, max) in [("filters", filters, MAX_FILTERS), ("values", values, MAX_VALUES)] {
        if found > max {
            return Err(invalid(format!("{place}: there are {found} {what}, more than the {max} allowed")));
        }
    }
    Ok(())
}

fn sort(of: Listed, place: &'static str, wire: &Sort) -> Answer<SortBy> {
    let direction = match wire.direction.as_known() {
        Some(WireDirection::ASCENDING) => Direction::Ascending,
        Some(WireDirection::DESCENDING) => Direction::Descending,
        None => return Err(invalid(format!("{place}: {} is not a direction", wire.direction.to_i32()))),
    };
    Ok(SortBy { field: fields::named(of, place, &wire.key)?, direction })
}

/// The order that a request asks for: `sort_by_fields`, or the older `sort_by` where that is empty.
fn order(of: Listed, request: &ListRequest) -> Answer<Vec<SortBy>> {
    let fields: Vec<_> = request.sort_by_fields.iter().filter(|s| !s.key.is_empty()).collect();
    if fields.len() > MAX_SORT {
        return Err(invalid(format!("sort_by_fields: there are {}, more than the {MAX_SORT} allowed", fields.len())));
    }
    if fields.is_empty() {
        let older = request.sort_by.as_option().filter(|s| !s.key.is_empty());
        return older.into_iter().map(|s| sort(of, "sort_by", s)).collect();
    }
    fields.into_iter().map(|s| sort(of, "sort_by_fields", s)).collect()
}

/// The query a request stands for. `None` is a request for everything.
pub(super) fn query(of: Listed, request: Option<&ListRequest>) -> Answer<ListQuery> {
    let Some(request) = request else { return Ok(ListQuery::newest(Vec::new(), DEFAULT_PAGE)) };
    let mut filters = filters(of, &request.filters)?;
    filters.extend(raw::filters(of, &request.raw_filters)?);
    let limit = if request.limit == 0 { DEFAULT_PAGE } else { (request.limit as usize).min(MAX_PAGE) };
    Ok(ListQuery { filters, sort: order(of, request)?, limit, token: request.token.clone() })
}

/// All of an organisation, or of a project of it, or of a domain of that.
pub(super) fn scope(org: String, project: &str, domain: &str) -> ListScope {
    ListScope { org, project: project.to_owned(), domain: domain.to_owned() }
}

/// A filter that holds for a number.
pub(super) fn number(field: Field, op: Op, numbers: impl IntoIterator<Item = i64>) -> Filter {
    debug_assert_ne!(field.value_type(), FieldType::Text);
    Filter { field, op, values: numbers.into_iter().map(Cursor::Int).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(function: Function, field: &str, values: &[&str]) -> WireFilter {
        WireFilter {
            function: function.into(),
            field: field.into(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn one(of: Listed, function: Function, field: &str, values: &[&str]) -> Answer<Filter> {
        filters(of, &[wire(function, field, values)]).map(|mut all| all.remove(0))
    }

    #[test]
    fn phases_are_read_as_numbers_and_names() {
        for text in ["6", "FAILED", "ACTION_PHASE_FAILED", "failed"] {
            let f = one(Listed::Runs, Function::EQUAL, "phase", &[text]).unwrap();
            assert_eq!((f.op, f.values), (Op::Equal, vec![Cursor::Int(6)]), "{text}");
        }
        let f = one(Listed::Runs, Function::EQUAL, "phase", &["5", "6"]).unwrap();
        assert_eq!(f.op, Op::In);
        let f = one(Listed::Runs, Function::EQUAL, "phase", &["1", "0"]).unwrap();
        assert_eq!((f.op, f.values), (Op::Equal, vec![Cursor::Int(10)]), "as SDK 2.12.1 sends RECOVERED");
        assert!(one(Listed::Runs, Function::EQUAL, "phase", &["11"]).is_err());
        assert!(one(Listed::Runs, Function::EQUAL, "phase", &["sleeping"]).is_err());
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_name() {
        let refused = [
            (Function::EQUAL, "colour", vec!["red"], "colour"),
            (Function::CONTAINS, "phase", vec!["5"], "not text"),
            (Function::ENDS_WITH, "created_at", vec!["Z"], "not text"),
            (Function::CONTAINS, "cache_status", vec!["HIT"], "not text"),
            (Function::LESS_THAN, "created_at", vec!["yesterday"], "yesterday"),
            (Function::LESS_THAN, "created_at", vec![], "one value, not 0"),
            (Function::LESS_THAN, "duration_ms", vec!["1", "2"], "one value, not 2"),
            (Function::VALUE_IN, "phase", vec![], "at least one"),
            (Function::EXISTS, "labels.team", vec!["red"], "no value"),
            (Function::EXISTS, "labels.", vec![], "labels.<key>"),
            (Function::EQUAL, "attempts", vec!["many"], "many"),
        ];
        for (function, field, values, part) in refused {
            let error = one(Listed::Runs, function, field, &values).unwrap_err();
            assert!(format!("{error}").contains(part), "{field}: {error}");
        }
        let error = one(Listed::Tasks, Function::EQUAL, "phase", &["5"]).unwrap_err();
        assert!(format!("{error}").contains("is_entrypoint"), "the known ones are listed: {error}");
        assert!(one(Listed::Actions, Function::EXISTS, "labels.team", &[]).is_err(), "labels are of runs");
    }

    #[test]
    fn several_keys_sort_and_the_older_field_still_does() {
        let by = |key: &str, direction: WireDirection| Sort {
            key: key.into(),
            direction: direction.into(),
            ..Default::default()
        };
        let keys = |request: ListRequest| {
            let query = query(Listed::Runs, Some(&request))?;
            Ok::<_, ConnectError>(query.sort.into_iter().map(|s| (s.field, s.direction)).collect::<Vec<_>>())
        };
        let older = by("phase", WireDirection::ASCENDING);
        let request = ListRequest { sort_by: older.clone().into(), ..Default::default() };
        assert_eq!(keys(request.clone()).unwrap(), [(Field::Phase, Direction::Ascending)]);
        let newer = vec![by("Created_At", WireDirection::DESCENDING), by("labels.team", WireDirection::ASCENDING)];
        let request = ListRequest { sort_by_fields: newer, ..request };
        let expected = [(Field::CreatedAt, Direction::Descending), (Field::Label("team".into()), Direction::Ascending)];
        assert_eq!(keys(request.clone()).unwrap(), expected);
        let many = vec![older; MAX_SORT + 1];
        assert!(keys(ListRequest { sort_by_fields: many, ..request }).is_err());
        assert!(keys(ListRequest::default()).unwrap().is_empty());
    }
}
