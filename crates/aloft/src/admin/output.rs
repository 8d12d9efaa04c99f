//! What commands print: a table for people, JSON and YAML for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use buffa_types::google::protobuf::Timestamp;
use clap::ValueEnum;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::exit::Exit;

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: one document.
    Json,
    /// For programs and people: one document.
    Yaml,
}

/// What documents are made of. Members keep their order, which `serde_json`'s own value does not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(&'static str, Value)>),
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Members of objects are lost: their names are not known beforehand, and no document has any.
impl From<&serde_json::Value> for Value {
    fn from(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::Bool(truth) => Self::Bool(*truth),
            serde_json::Value::Number(number) => number.as_u64().into(),
            serde_json::Value::String(text) => text.as_str().into(),
            serde_json::Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            serde_json::Value::Null | serde_json::Value::Object(_) => Self::Null,
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

/// An instant of the wire as text, in UTC.
pub(crate) fn instant(at: Option<&Timestamp>) -> Value {
    at.and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok()).map(|at| at.to_string()).into()
}

/// The document as JSON for reading, or as YAML.
fn document(value: &Value, format: Format) -> String {
    let mut text = String::new();
    if format == Format::Yaml {
        match value {
            Value::List(items) if !items.is_empty() => yaml_items(&mut text, items, 0),
            Value::Object(members) if !members.is_empty() => yaml_members(&mut text, members, 0),
            scalar => {
                let _ = writeln!(text, "{}", yaml_scalar(scalar));
            }
        }
        return text;
    }
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn yaml_items(text: &mut String, items: &[Value], indent: usize) {
    for item in items {
        let mut inner = String::new();
        yaml_value(&mut inner, item, indent + 2);
        // The first line of what is inside stands behind the dash.
        let _ = write!(text, "{:indent$}- {}", "", inner.trim_start());
    }
}

fn yaml_members(text: &mut String, members: &[(&'static str, Value)], indent: usize) {
    for (name, value) in members {
        match value {
            Value::List(items) if !items.is_empty() => {
                let _ = writeln!(text, "{:indent$}{name}:", "");
                yaml_items(text, items, indent);
            }
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(text, "{:indent$}{name}:", "");
                yaml_members(text, inner, indent + 2);
            }
            scalar => {
                let _ = writeln!(text, "{:indent$}{name}: {}", "", yaml_scalar(scalar));
            }
        }
    }
}

fn yaml_value(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::List(items) if !items.is_empty() => yaml_items(text, items, indent),
        Value::Object(members) if !members.is_empty() => yaml_members(text, members, indent),
        scalar => {
            let _ = writeln!(text, "{:indent$}{}", "", yaml_scalar(scalar));
        }
    }
}

/// A scalar, or something empty. Text that could be read as anything else is quoted, as JSON does and YAML understands.
fn yaml_scalar(value: &Value) -> String {
    if let Value::Text(text) = value {
        let letters = text.starts_with(|c: char| c.is_ascii_alphabetic());
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
        if letters && plain && !word.contains(&text.to_ascii_lowercase().as_str()) {
            return text.clone();
        }
    }
    serde_json::to_string(value).unwrap_or_default()
}

/// Lines of columns as wide as they need to be, two spaces apart.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header: Vec<_> = header.iter().map(|h| (*h).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints `documents` in the format asked for; `row` says how a table shows one of them.
pub(crate) fn print_list<T>(
    format: Format,
    items: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
    to_document: impl Fn(&T) -> Value,
) -> Result<(), Exit> {
    match format {
        Format::Table => print(&table(header, &items.iter().map(row).collect::<Vec<_>>())),
        format => print(&document(&Value::List(items.iter().map(to_document).collect()), format)),
    }
}

/// As [`print_list`], of the one thing that was asked for.
pub(crate) fn print_one<T>(
    format: Format,
    item: &T,
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
    to_document: impl Fn(&T) -> Value,
) -> Result<(), Exit> {
    match format {
        Format::Table => print(&table(header, &[row(item)])),
        format => print(&document(&to_document(item), format)),
    }
}

/// Prints a line about what was done.
pub(crate) fn say(line: &str) -> Result<(), Exit> {
    print(&format!("{line}\n"))
}

fn print(text: &str) -> Result<(), Exit> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // `aloft get queue | head -1` has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Exit::other(format!("cannot write the answer: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        let inner = Value::Object(vec![("memory", "600Mi".into()), ("cpu", "2".into())]);
        Value::List(vec![
            Value::Object(vec![
                ("name", "bulk".into()),
                ("depth", 10_000u32.into()),
                ("action_concurrency", Value::Null),
                ("max_resources", inner),
                ("tags", Value::List(vec!["no".into(), "a b".into()])),
            ]),
            Value::Object(vec![("name", "1e3".into()), ("max_resources", Value::Object(vec![]))]),
        ])
    }

    #[test]
    fn yaml_is_plain_where_it_can_be() {
        let wanted = "- name: bulk\n  depth: 10000\n  action_concurrency: null\n  max_resources:\n    memory: \"600Mi\"\n    \
                      cpu: \"2\"\n  tags:\n  - \"no\"\n  - \"a b\"\n- name: \"1e3\"\n  max_resources: {}\n";
        assert_eq!(document(&sample(), Format::Yaml), wanted);
        assert_eq!(document(&Value::List(vec![]), Format::Yaml), "[]\n");
    }

    #[test]
    fn members_keep_their_order_in_json() {
        let text = document(&sample(), Format::Json);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read[0]["max_resources"]["memory"], "600Mi");
        assert!(text.find("\"name\"") < text.find("\"depth\"") && text.ends_with("]\n"), "{text}");
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
    }
}
