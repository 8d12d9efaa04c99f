//! The names by which clients know the fields of lists, and how their values are written.

use aloft_core::Phase;
use aloft_store::{Cursor, Field, FieldType, Filter, Listed, Op};

use super::super::error::{Answer, invalid, shortened};

/// One field as clients name it: the name that is told to people first, then others that are understood.
struct Known {
    names: &'static [&'static str],
    field: Field,
}

const fn known(names: &'static [&'static str], field: Field) -> Known {
    Known { names, field }
}

/// What runs and actions have in common. The misspelt name is the contract's own.
const OF_BOTH: &[Known] = &[
    known(&["phase"], Field::Phase),
    known(&["created_at", "start_time"], Field::CreatedAt),
    known(&["updated_at"], Field::UpdatedAt),
    known(&["started_at"], Field::StartedAt),
    known(&["ended_at", "end_time"], Field::EndedAt),
    known(&["duration_ms", "duration"], Field::Duration),
    known(&["attempts"], Field::Attempts),
    known(&["cache_status"], Field::CacheStatus),
    known(&["task_name"], Field::TaskName),
    known(&["task_version"], Field::TaskVersion),
    known(&["task_project"], Field::TaskProject),
    known(&["task_domain"], Field::TaskDomain),
    known(&["function_name", "funtion_name", "short_name", "task_short_name"], Field::ShortName),
    known(&["environment", "environment_name"], Field::Environment),
    known(&["created_by", "created_by_subject", "executed_by"], Field::CreatedBy),
    known(&["run_source", "source"], Field::Source),
    known(&["action_type"], Field::Kind),
    known(&["trigger_name"], Field::TriggerName),
    known(&["trigger_task_name"], Field::TriggerTask),
    known(&["trigger_revision"], Field::TriggerRevision),
    known(&["trigger_type"], Field::TriggerType),
    known(&["project"], Field::Project),
    known(&["domain"], Field::Domain),
    known(&["org", "organization"], Field::Org),
];

const OF_RUNS: &[Known] =
    &[known(&["name", "run_name"], Field::Name), known(&["related_to", "relation.related_to"], Field::RelatedTo)];

const OF_ACTIONS: &[Known] = &[
    known(&["name", "action_name"], Field::Name),
    known(&["run_name"], Field::RunName),
    known(&["parent_name", "parent", "parent_action_name"], Field::Parent),
    known(&["group", "action_group", "group_name"], Field::Group),
];

const OF_TASKS: &[Known] = &[
    known(&["name", "task_name"], Field::Name),
    known(&["version", "task_version"], Field::TaskVersion),
    known(&["deployed_at", "created_at", "updated_at"], Field::CreatedAt),
    known(&["deployed_by", "created_by", "created_by_subject"], Field::CreatedBy),
    known(&["short_name", "function_name", "funtion_name", "task_short_name"], Field::ShortName),
    known(&["environment", "environment_name"], Field::Environment),
    known(&["is_entrypoint", "entrypoint"], Field::Entrypoint),
    known(&["project", "task_project"], Field::Project),
    known(&["domain", "task_domain"], Field::Domain),
    known(&["org", "organization"], Field::Org),
];

fn all(of: Listed) -> impl Iterator<Item = &'static Known> {
    let (own, common) = match of {
        Listed::Runs => (OF_RUNS, OF_BOTH),
        Listed::Actions => (OF_ACTIONS, OF_BOTH),
        Listed::Tasks | Listed::Versions => (OF_TASKS, &[][..]),
    };
    own.iter().chain(common)
}

/// The field that a client calls `name` in `place`. The case of names does not matter, that of label keys does.
pub(super) fn named(of: Listed, place: &str, name: &str) -> Answer<Field> {
    let lower = name.to_ascii_lowercase();
    if of == Listed::Runs && lower.starts_with("labels.") && name.len() > "labels.".len() {
        return Ok(Field::Label(name["labels.".len()..].to_owned()));
    }
    let found = all(of).find(|k| k.names.contains(&lower.as_str()));
    found.map(|k| k.field.clone()).ok_or_else(|| {
        let mut names: Vec<_> = all(of).filter_map(|k| k.names.first().copied()).collect();
        names.extend((of == Listed::Runs).then_some("labels.<key>"));
        invalid(format!("{place}: there is no field {:?}; the fields are {}", shortened(name), names.join(", ")))
    })
}

/// Whether looking for a part of its value makes no sense: its values are numbers, times or one of a few words.
pub(super) fn is_not_text(field: &Field) -> bool {
    field.value_type() != FieldType::Text || *field == Field::CacheStatus
}

/// A value of `field`, which the client calls `name`.
pub(super) fn value(field: &Field, place: &str, name: &str, text: &str) -> Answer<Cursor> {
    let number = || text.parse::<i64>().ok();
    let (read, wanted) = match field {
        Field::Phase => (phase(text).map(|p| Cursor::Int(i64::from(p.number()))), "a phase, such as 4 or RUNNING"),
        Field::Source => (one_of(text, "RUN_SOURCE_", SOURCES).map(Cursor::Int), "a source, such as 2 or CLI"),
        Field::Kind => (one_of(text, "ACTION_TYPE_", KINDS).map(Cursor::Int), "a type, such as 1 or TASK"),
        Field::CacheStatus => (cache_status(text).map(|w| Cursor::Text(w.to_owned())), "a status, such as 2 or HIT"),
        field => match field.value_type() {
            FieldType::Text => (Some(Cursor::Text(text.to_owned())), "text"),
            FieldType::Number => (number().map(Cursor::Int), "a whole number"),
            FieldType::Time => (instant(text).map(Cursor::Int), "a time, such as 2026-01-31T12:00:00Z"),
            FieldType::Flag => (flag(text).map(Cursor::Int), "true or false"),
        },
    };
    read.ok_or_else(|| invalid(format!("{place}: {:?} is not a value of {name}: give {wanted}", shortened(text))))
}

/// A phase by its number or its name, with or without its prefix, in any case.
fn phase(text: &str) -> Option<Phase> {
    if let Ok(number) = text.parse::<i32>() {
        return Phase::from_number(number);
    }
    let words = text.to_ascii_lowercase().replace('_', " ");
    let words = words.strip_prefix("action phase ").unwrap_or(&words);
    Phase::ALL.into_iter().find(|p| p.words() == words)
}

/// `RunSource` in the order of its numbers.
const SOURCES: &[&str] = &["UNSPECIFIED", "WEB", "CLI", "SCHEDULE_TRIGGER", "TRACKED", "ARTIFACT_TRIGGER"];

/// `ActionType` in the order of its numbers.
const KINDS: &[&str] = &["UNSPECIFIED", "TASK", "TRACE", "CONDITION"];

/// `CatalogCacheStatus` in the order of its numbers, and how the core words it; what the core does not know, no action has.
const CACHE: &[(&str, &str)] = &[
    ("DISABLED", "disabled"),
    ("MISS", "miss"),
    ("HIT", "hit"),
    ("POPULATED", "populated"),
    ("LOOKUP_FAILURE", "lookup_failed"),
    ("PUT_FAILURE", "put_failed"),
    ("SKIPPED", "skipped"),
    ("EVICTED", "evicted"),
];

/// The number of an enumeration's value, by its number or its name.
fn one_of(text: &str, prefix: &str, names: &[&str]) -> Option<i64> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix(prefix).unwrap_or(&upper);
    let at = names.iter().position(|n| *n == name).or_else(|| text.parse().ok().filter(|n| *n < names.len()))?;
    i64::try_from(at).ok()
}

fn cache_status(text: &str) -> Option<&'static str> {
    let names: Vec<_> = CACHE.iter().map(|(name, _)| *name).collect();
    let at = usize::try_from(one_of(text, "CACHE_", &names)?).ok()?;
    CACHE.get(at).map(|(_, words)| *words)
}

fn flag(text: &str) -> Option<i64> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(1),
        "false" | "0" => Some(0),
        _ => None,
    }
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

/// Lets filters on parts of names find actions by what people call them: in the tree of a run they show their tasks'
/// names, and their own are digests.
pub(in super::super) fn of_action_tree(mut filters: Vec<Filter>) -> Vec<Filter> {
    for filter in &mut filters {
        if filter.field == Field::Name && matches!(filter.op, Op::Contains | Op::ContainsNoCase) {
            filter.field = Field::Title;
        }
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_read_by_number_and_name() {
        for p in Phase::ALL {
            let name = p.words().replace(' ', "_");
            let texts = [p.number().to_string(), name.clone(), name.to_uppercase()];
            for text in texts.into_iter().chain([format!("ACTION_PHASE_{}", name.to_uppercase())]) {
                assert_eq!(phase(&text), Some(p), "{text}");
            }
        }
        assert_eq!((phase("0"), phase("11"), phase("done")), (None, None, None));
    }

    #[test]
    fn times_are_read_with_and_without_offset() {
        let texts = ["1970-01-01T00:00:01Z", "1970-01-01T00:00:01", "1970-01-01T01:00:01+01:00", "1970-01-01 00:00:01"];
        for text in texts {
            assert_eq!(instant(text), Some(1_000_000), "{text}");
        }
        assert_eq!(instant("1970-01-02"), Some(86_400_000_000));
    }

    #[test]
    fn enumerations_are_read_by_number_and_name() {
        assert_eq!(one_of("RUN_SOURCE_CLI", "RUN_SOURCE_", SOURCES), Some(2));
        assert_eq!(one_of("web", "RUN_SOURCE_", SOURCES), Some(1));
        assert_eq!(one_of("3", "ACTION_TYPE_", KINDS), Some(3));
        assert_eq!(one_of("4", "ACTION_TYPE_", KINDS), None);
        assert_eq!((cache_status("CACHE_HIT"), cache_status("2"), cache_status("8")), (Some("hit"), Some("hit"), None));
    }

    #[test]
    fn names_are_read_in_any_case_and_label_keys_as_they_are() {
        assert_eq!(named(Listed::Actions, "filters", "PHASE").ok(), Some(Field::Phase));
        assert_eq!(named(Listed::Runs, "filters", "Labels.Team").ok(), Some(Field::Label("Team".into())));
        assert_eq!(named(Listed::Actions, "filters", "run_name").ok(), Some(Field::RunName));
        assert_eq!(named(Listed::Tasks, "filters", "task_name").ok(), Some(Field::Name));
    }
}
