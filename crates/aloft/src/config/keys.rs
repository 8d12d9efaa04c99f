//! Every key that there is, read off the schema.

use std::{collections::BTreeMap, sync::LazyLock};

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{
    model::{Config, Role},
    values::REDACTED,
};

/// Prefix of the environment variables that set keys.
const ENV_PREFIX: &str = "ALOFT_";

/// One key that holds a value.
pub(crate) struct Key {
    /// Its path, with dots between the names.
    pub(crate) path: String,
    /// What it is for.
    pub(crate) about: String,
    /// What its value must be, to complete "must be".
    pub(crate) expected: String,
    /// Whether its value is never shown.
    pub(crate) secret: bool,
    /// Whether its value is a list.
    pub(crate) list: bool,
    /// Whether its value is a text, whatever it looks like.
    pub(crate) text: bool,
    /// The environment variable that sets it.
    pub(crate) env: String,
}

/// The schema of a configuration file, as JSON Schema. Defaults are those of `aloft server`.
pub(crate) fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    loosen(&mut schema, &serde_json::to_value(Config::of(Role::Server)).unwrap_or_default());
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "Configuration of Aloft".into());
    }
    schema
}

/// A file need not say everything: nothing is required, and what is left out is the default.
fn loosen(schema: &mut Value, default: &Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("required");
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            loosen(property, default.get(name).unwrap_or(&Value::Null));
        }
    } else {
        object.insert("default".to_owned(), default.clone());
    }
}

/// Every key by its path.
pub(crate) fn keys() -> &'static BTreeMap<String, Key> {
    static KEYS: LazyLock<BTreeMap<String, Key>> = LazyLock::new(|| {
        let mut keys = BTreeMap::new();
        collect(&schema(), "", &mut keys);
        keys
    });
    &KEYS
}

fn collect(schema: &Value, path: &str, keys: &mut BTreeMap<String, Key>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            collect(property, &path, keys);
        }
        return;
    }
    let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let key = Key {
        path: path.to_owned(),
        // Doc comments are wrapped for the source, not for readers.
        about: about.split_whitespace().collect::<Vec<_>>().join(" "),
        expected: expected(schema),
        secret: schema.get("writeOnly") == Some(&Value::Bool(true)),
        list: has_type(schema, "array"),
        text: has_type(schema, "string") && !has_type(schema, "integer"),
        env: env_name(path),
    };
    keys.insert(path.to_owned(), key);
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type(schema: &Value, wanted: &str) -> bool {
    types(schema).contains(&wanted)
}

/// What a value must be, in words.
fn expected(schema: &Value) -> String {
    let number = |name: &str| schema.get(name).and_then(Value::as_i64);
    let choices: Vec<&str> = match (schema.get("enum"), schema.get("oneOf")) {
        (Some(Value::Array(values)), _) => values.iter().filter_map(Value::as_str).collect(),
        (_, Some(Value::Array(values))) => values.iter().filter_map(|v| v.get("const")?.as_str()).collect(),
        _ => Vec::new(),
    };
    if !choices.is_empty() {
        return choices.join(" or ");
    }
    if schema.get("format").and_then(Value::as_str) == Some("span") {
        return "a length of time like 30s, 5m or 1h30m".to_owned();
    }
    match schema.get("format").and_then(Value::as_str) {
        Some("keep") => return "forever, or a length of time like 30d or 12h".to_owned(),
        Some("project-keep") => return "PROJECT=forever or PROJECT=30d".to_owned(),
        _ => {}
    }
    let kind = types(schema).into_iter().find(|t| *t != "null").unwrap_or("object");
    match (kind, number("minimum"), number("maximum")) {
        ("array", ..) => {
            let items = schema.get("items").map(expected).unwrap_or_default();
            format!("a list, each entry {items}")
        }
        ("boolean", ..) => "true or false".to_owned(),
        ("integer", Some(from), Some(to)) => format!("a whole number from {from} to {to}"),
        ("integer", Some(from), None) => format!("a whole number from {from}"),
        ("integer", ..) => "a whole number".to_owned(),
        _ if schema.get("format").and_then(Value::as_str) == Some("ip") => "an IP address".to_owned(),
        _ => "a text".to_owned(),
    }
}

/// `ALOFT_` and the names in upper case, with `_` between words and names: `listen.publicUrl` is `ALOFT_LISTEN_PUBLIC_URL`.
fn env_name(path: &str) -> String {
    let mut name = ENV_PREFIX.to_owned();
    for c in path.chars() {
        match c {
            '.' => name.push('_'),
            c if c.is_ascii_uppercase() => name.extend(['_', c]),
            c => name.push(c.to_ascii_uppercase()),
        }
    }
    name
}

/// A value as it may be shown: not if it is a secret.
pub(crate) fn shown(key: &Key, value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        // A file's path is no secret; other addresses may hold a password.
        Value::String(url) if key.path == "database.url" && url.starts_with("sqlite:") => url.as_str().into(),
        _ if key.secret => REDACTED.into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented_and_has_a_variable_of_its_own() {
        let mut variables = std::collections::BTreeSet::new();
        for key in keys().values() {
            assert!(key.about.ends_with('.'), "{}: {:?}", key.path, key.about);
            assert!(variables.insert(&key.env), "{} is not the only key of {}", key.path, key.env);
            assert!(!key.expected.contains("object"), "{}: {}", key.path, key.expected);
        }
        assert_eq!(
            keys()["database.connectionPool.maxOpenConnections"].env,
            "ALOFT_DATABASE_CONNECTION_POOL_MAX_OPEN_CONNECTIONS"
        );
    }

    #[test]
    fn what_is_expected_is_said_in_words() {
        for (path, words) in [
            ("listen.port", "a whole number from 0 to 65535"),
            ("debug.port", "a whole number from 0 to 65535"),
            ("listen.addresses", "a list, each entry an IP address"),
            ("logger.format", "json or text"),
            ("storage.provider", "local"),
            ("drain.timeout", "a length of time like 30s, 5m or 1h30m"),
            ("auth.insecureNoAuth", "true or false"),
            ("database.connectionPool.maxOpenConnections", "a whole number from 1"),
            ("database.passwordPath", "a text"),
        ] {
            assert_eq!(keys()[path].expected, words, "{path}");
        }
    }

    #[test]
    fn secrets_are_marked_in_the_schema() {
        let secrets: Vec<_> = keys().values().filter(|k| k.secret).map(|k| k.path.as_str()).collect();
        assert_eq!(secrets, ["database.password", "database.url", "worker.token"]);
        assert_eq!(shown(&keys()["database.password"], &"x".into()), REDACTED);
        assert_eq!(shown(&keys()["database.password"], &Value::Null), Value::Null);
    }

    #[test]
    fn the_schema_asks_for_nothing_and_refuses_what_is_unknown() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["listen"]["additionalProperties"], false);
        assert!(schema.get("required").is_none() && schema["properties"]["listen"].get("required").is_none());
        assert_eq!(schema["properties"]["listen"]["properties"]["port"]["default"], 8080);
    }
}
