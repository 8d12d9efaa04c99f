//! `ListRequest` as a query of the store.

use aloft_core::Phase;
use aloft_flyteidl2::flyteidl2::common::{
    Filter as WireFilter, ListRequest, filter::Function, sort::Direction as WireDirection,
};
use aloft_store::{Cursor, Direction, Field, Filter, ListQuery, Op, SortBy};
use connectrpc::ConnectError;

use super::error::{Answer, invalid, shortened};

/// Rows of a page when the request does not say.
const DEFAULT_PAGE: usize = 100;
/// Most rows of a page; a request for more gets this many and a token.
const MAX_PAGE: usize = 1000;
/// Most filters of a request, and most values of all of them: more make a query that the database refuses.
const MAX_FILTERS: usize = 100;
const MAX_VALUES: usize = 10_000;

/// What a list is of: it decides what plain names mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Runs,
    Actions,
    Tasks,
}

fn field(of: Of, name: &str) -> Answer<Field> {
    if let Some(key) = name.strip_prefix("labels.").filter(|_| of == Of::Runs) {
        return Ok(Field::Label(key.to_owned()));
    }
    Ok(match name {
        "name" | "run_name" | "action_name" => Field::Name,
        "phase" => Field::Phase,
        "created_at" | "deployed_at" | "start_time" => Field::CreatedAt,
        "updated_at" => Field::UpdatedAt,
        "ended_at" | "end_time" => Field::EndedAt,
        "duration_ms" | "duration" => Field::Duration,
        "task_name" => Field::TaskName,
        "task_version" => Field::TaskVersion,
        "short_name" | "function_name" | "funtion_name" => Field::ShortName,
        "environment" | "environment_name" => Field::Environment,
        "created_by" | "created_by_subject" | "deployed_by" => Field::CreatedBy,
        "run_source" | "source" => Field::Source,
        "parent" | "parent_name" | "parent_action_name" => Field::Parent,
        "group" | "action_group" => Field::Group,
        "action_type" => Field::Kind,
        "version" => Field::Version,
        "is_entrypoint" => Field::Entrypoint,
        other => {
            return Err(invalid(format!(
                "filters or sort: there is no field {:?}; the fields are name, phase, created_at, updated_at, \
                 ended_at, duration_ms, task_name, task_version, short_name, environment, created_by, run_source, \
                 parent_name, group, action_type, version, is_entrypoint, labels.<key>",
                shortened(other)
            )));
        }
    })
}

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

fn value(field: &Field, text: &str) -> Answer<Cursor> {
    let number = || text.parse::<i64>().ok().map(Cursor::Int);
    let read = match field {
        Field::Phase => number().or_else(|| phase(text).map(|p| Cursor::Int(i64::from(p.number())))),
        Field::CreatedAt | Field::UpdatedAt | Field::EndedAt => instant(text).map(Cursor::Int),
        Field::Duration => number(),
        Field::Source => number().or_else(|| run_source(text).map(Cursor::Int)),
        Field::Kind => number().or_else(|| action_type(text).map(Cursor::Int)),
        Field::Entrypoint => match text {
            "true" | "1" => Some(Cursor::Int(1)),
            "false" | "0" => Some(Cursor::Int(0)),
            _ => None,
        },
        _ => Some(Cursor::Text(text.to_owned())),
    };
    read.ok_or_else(|| invalid(format!("filters: {:?} is not a value of {field:?}", shortened(text))))
}

/// A phase by its name, with or without its prefix, in any case.
fn phase(text: &str) -> Option<Phase> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("ACTION_PHASE_").unwrap_or(&upper);
    let names = [
        "QUEUED",
        "WAITING_FOR_RESOURCES",
        "INITIALIZING",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "ABORTED",
        "TIMED_OUT",
        "PAUSED",
        "RECOVERED",
    ];
    names.iter().position(|n| *n == name).map(|i| Phase::ALL[i])
}

fn run_source(text: &str) -> Option<i64> {
    let names = ["UNSPECIFIED", "WEB", "CLI", "SCHEDULE_TRIGGER", "TRACKED", "ARTIFACT_TRIGGER"];
    let name = text.strip_prefix("RUN_SOURCE_").unwrap_or(text);
    names.iter().position(|n| *n == name).map(|i| i as i64)
}

fn action_type(text: &str) -> Option<i64> {
    let names = ["UNSPECIFIED", "TASK", "TRACE", "CONDITION"];
    let name = text.strip_prefix("ACTION_TYPE_").unwrap_or(text);
    names.iter().position(|n| *n == name).map(|i| i as i64)
}

/// Microseconds of an ISO 8601 time; one without an offset is UTC.
fn instant(text: &str) -> Option<i64> {
    let text = text.trim();
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
    })?;
    Some(at.as_microsecond())
}

/// One filter of the wire.
pub(super) fn filter(of: Of, wire: &WireFilter) -> Answer<Filter> {
    let function =
        wire.function.as_known().ok_or_else(|| invalid("filters: the function is not one this server knows"))?;
    let field = field(of, &wire.field)?;
    let op = op(function);
    let values: Vec<Cursor> = wire.values.iter().map(|v| value(&field, v)).collect::<Result<_, ConnectError>>()?;
    match (op, values.len()) {
        (Op::Exists | Op::NotExists | Op::In | Op::NotIn, _) => {}
        // The CLI sends several phases with EQUAL as well.
        (Op::Equal, n) if n > 1 => return Ok(Filter { field, op: Op::In, values }),
        (_, 1) => {}
        (_, n) => return Err(invalid(format!("filters: {} takes one value, not {n}", wire.field))),
    }
    Ok(Filter { field, op, values })
}

/// The filters of a request.
pub(super) fn filters(of: Of, wire: &[WireFilter]) -> Answer<Vec<Filter>> {
    let values: usize = wire.iter().map(|f| f.values.len()).sum();
    for (what, found, max) in [("filters", wire.len(), MAX_FILTERS), ("values", values, MAX_VALUES)] {
        if found > max {
            return Err(invalid(format!("filters: there are {found} {what}, more than the {max} allowed")));
        }
    }
    wire.iter().map(|f| filter(of, f)).collect()
}

/// The query a request stands for. `None` is a request for everything.
pub(super) fn query(of: Of, request: Option<&ListRequest>) -> Answer<ListQuery> {
    let newest = SortBy { field: Field::CreatedAt, direction: Direction::Descending };
    let Some(request) = request else {
        return Ok(ListQuery { filters: Vec::new(), sort: newest, limit: DEFAULT_PAGE, token: String::new() });
    };
    let filters = filters(of, &request.filters)?;
    let sort = match request.sort_by_fields.first().or_else(|| request.sort_by.as_option()) {
        Some(sort) if !sort.key.is_empty() => SortBy {
            field: field(of, &sort.key)?,
            direction: match sort.direction.as_known() {
                Some(WireDirection::ASCENDING) => Direction::Ascending,
                _ => Direction::Descending,
            },
        },
        _ => newest,
    };
    let limit = if request.limit == 0 { DEFAULT_PAGE } else { (request.limit as usize).min(MAX_PAGE) };
    Ok(ListQuery { filters, sort, limit, token: request.token.clone() })
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

    #[test]
    fn phases_are_read_as_numbers_and_names() {
        for text in ["6", "FAILED", "ACTION_PHASE_FAILED", "failed"] {
            let f = filter(Of::Runs, &wire(Function::EQUAL, "phase", &[text])).unwrap();
            assert_eq!(f.values, [Cursor::Int(6)], "{text}");
        }
        let f = filter(Of::Runs, &wire(Function::EQUAL, "phase", &["5", "6"])).unwrap();
        assert_eq!(f.op, Op::In);
    }

    #[test]
    fn times_are_read_with_and_without_offset() {
        for text in ["1970-01-01T00:00:01Z", "1970-01-01T00:00:01", "1970-01-01T01:00:01+01:00"] {
            assert_eq!(instant(text), Some(1_000_000), "{text}");
        }
        assert!(filter(Of::Runs, &wire(Function::LESS_THAN, "created_at", &["yesterday"])).is_err());
    }

    #[test]
    fn unknown_fields_are_named() {
        let error = filter(Of::Tasks, &wire(Function::EQUAL, "colour", &["red"])).unwrap_err();
        assert!(format!("{error}").contains("colour"));
    }
}
