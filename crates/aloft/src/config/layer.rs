//! Reading what sets values: files, the environment, the command line. Each becomes a layer of keys with values.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    alias,
    keys::{Key, keys},
    problem::{Problem, Source},
};

/// Largest configuration file.
const LARGEST_FILE: u64 = 1 << 20;

/// Most files of one configuration.
const MOST_FILES: usize = 1000;

/// Deepest nesting of a file: twice that of any key there is.
const DEEPEST: usize = 8;

/// What one source sets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layer {
    /// The source.
    pub(crate) source: Source,
    /// Paths with dots, as they were written, and their values.
    pub(crate) values: Vec<(String, Value)>,
}

/// The files that `patterns` name: those of each pattern by name, a file once, where it comes first.
pub(crate) fn files(patterns: &[String], problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    for pattern in patterns {
        let source = Source::Flag(format!("--config {pattern}"));
        let found = match glob::glob(pattern) {
            Ok(found) => found,
            Err(e) => {
                problems.push(Problem::new(
                    &source,
                    "",
                    format!("is no pattern: {}", e.msg),
                    "write it as '/etc/config/*.yaml'",
                ));
                continue;
            }
        };
        let before = files.len();
        for path in found {
            match path {
                Ok(path) if path.is_dir() => problems.push(Problem::new(
                    &source,
                    "",
                    "is a directory",
                    format!("name the files in it: '{}'", path.join("*.yaml").display()),
                )),
                Ok(path) => files.push(path),
                Err(e) => problems.push(Problem::new(
                    &source,
                    "",
                    format!("cannot be read: {}", e.error()),
                    "check its permissions",
                )),
            }
        }
        files[before..].sort();
        if files.len() == before && !problems.iter().any(|p| p.source == source) {
            problems.push(Problem::new(&source, "", "names no file", "check the path, and that the files are mounted"));
        }
    }
    files.retain(|path| seen.insert(path.clone()));
    if files.len() > MOST_FILES {
        let source = Source::Flag("--config".to_owned());
        let reason = format!("names {} files, and {MOST_FILES} are the most", files.len());
        problems.push(Problem::new(&source, "", reason, "name fewer files"));
        files.clear();
    }
    files
}

/// The layer of a YAML file.
pub(crate) fn read_file(path: &Path) -> Result<Layer, Problem> {
    let source = Source::File(path.to_owned());
    let trouble = |reason: String, remedy: &str| Problem::new(&source, "", reason, remedy);
    let read = || -> io::Result<String> {
        use std::io::Read as _;
        let mut text = String::new();
        fs::File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => trouble("is not UTF-8 text".to_owned(), "write it as YAML"),
        _ => trouble(format!("cannot be read: {e}"), "check that it is there and may be read"),
    })?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(trouble(format!("is larger than {} MiB", LARGEST_FILE >> 20), "name a configuration file"));
    }
    let values = parse(&text).map_err(|reason| trouble(reason, "write it as YAML, keys and values"))?;
    Ok(Layer { source, values })
}

/// The values of a file's text by their paths.
fn parse(text: &str) -> Result<Vec<(String, Value)>, String> {
    // A file of comments only is as good as none.
    let bare = |line: &str| matches!(line.trim(), "" | "---") || line.trim_start().starts_with('#');
    if text.lines().all(bare) {
        return Ok(Vec::new());
    }
    // Without a piece of the text: it could be that of a secret. Only `true` and `false` are truths: a list of names may hold
    // `no` and `y`.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let tree: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| format!("is not valid YAML: {e}"))?;
    let mut values = Vec::new();
    match tree {
        Value::Null => {}
        Value::Object(_) => flatten(String::new(), tree, DEEPEST, &mut values),
        _ => return Err("holds no keys".to_owned()),
    }
    Ok(values)
}

fn flatten(path: String, value: Value, depth: usize, values: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(members) if !members.is_empty() && depth > 0 => {
            for (name, value) in members {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(path, value, depth - 1, values);
            }
        }
        // Nothing below it: nothing is set.
        Value::Object(members) if members.is_empty() => values.push((path, Value::Null)),
        value => values.push((path, value)),
    }
}

/// The layers of the environment variables that set keys, and what to say of those that look as if they did.
pub(crate) fn environment(variables: impl Iterator<Item = (String, String)>) -> (Vec<Layer>, Vec<String>) {
    let (mut layers, mut notes) = (Vec::new(), Vec::new());
    let mut variables: Vec<_> =
        variables.filter(|(name, value)| name.starts_with("ALOFT_") && !value.is_empty()).collect();
    // Other names first, so that a key's own goes before them.
    variables.sort_by_key(|(name, _)| (keys().values().any(|k| k.env == *name), name.clone()));
    for (name, value) in variables {
        let source = Source::Variable(name.clone());
        if let Some(key) = keys().values().find(|k| k.env == name) {
            layers.push(Layer { source, values: vec![(key.path.clone(), from_text(key, &value))] });
        } else if let Some((_, path)) = alias::VARIABLES.iter().find(|(n, _)| *n == name) {
            // Kubernetes tells containers of a service that is called `aloft` in this variable.
            if value.contains("://") {
                continue;
            }
            let key = &keys()[*path];
            notes.push(format!("${name} is the older name of ${}", key.env));
            layers.push(Layer { source, values: vec![(key.path.clone(), from_text(key, &value))] });
        } else if !is_of_a_service(&name)
            && let Some(like) = closest(&name, 0.8, keys().values().map(|k| k.env.as_str()))
        {
            // Others are for other programs: nothing says that all variables with our prefix are ours.
            notes.push(format!("${name} sets nothing: there is no such key; did you mean ${like}?"));
        }
    }
    (layers, notes)
}

/// Whether Kubernetes makes a variable of this name for a service whose name begins like ours.
fn is_of_a_service(name: &str) -> bool {
    name.contains("_SERVICE_") || name.contains("_PORT_") || name.ends_with("_PORT")
}

/// A value as it is written in a variable or a flag: a list with commas between its entries, a text as it is, all else as
/// in YAML.
pub(crate) fn from_text(key: &Key, text: &str) -> Value {
    if key.list {
        return text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Value::from).collect();
    }
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) if !key.text => value,
        _ => text.into(),
    }
}

/// The layer of one `--set KEY=VALUE`.
pub(crate) fn assignment(text: &str) -> Result<Layer, Problem> {
    let source = Source::Flag(format!("--set {}", text.split('=').next().unwrap_or_default()));
    let Some((path, value)) = text.split_once('=') else {
        return Err(Problem::new(&source, "", "has no value", "write it as --set KEY=VALUE"));
    };
    // The key's type decides how the text is read; what is no key is refused later, by its name.
    let value = match keys().get(path).or_else(|| alias::find(path).and_then(|a| keys().get(a.key))) {
        Some(key) => from_text(key, value),
        None => value.into(),
    };
    Ok(Layer { source, values: vec![(path.to_owned(), value)] })
}

/// The name most like `name`, if any is as like it as `least`; 1 is the same.
pub(crate) fn closest<'a>(name: &str, least: f64, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let like = |other: &str| strsim::normalized_damerau_levenshtein(&name, &other.to_ascii_lowercase());
    names.map(|n| (like(n), n)).filter(|(l, _)| *l >= least).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_read_by_path() {
        let text = "# ours\nlisten:\n  port: 80\n  names: [no, y]\nlogger.level: debug\ndatabase: {}\nauth:\n";
        let mut values = parse(text).unwrap();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        let wanted = [
            ("auth", Value::Null),
            ("database", Value::Null),
            ("listen.names", json!(["no", "y"])),
            ("listen.port", json!(80)),
            ("logger.level", json!("debug")),
        ];
        assert_eq!(values, wanted.map(|(k, v)| (k.to_owned(), v)));
        for text in ["", "# nothing\n", "---\n", "null\n"] {
            assert_eq!(parse(text).unwrap(), [], "{text:?}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["[1]", "words", "a: [", "a: 1\na: 2", "a: &x [*x]"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let error = parse("password: \"hunter2\nx: [").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        // Aliases that would grow without end are refused, nesting beyond any key ends up as one unknown key.
        let bomb = "a: &a [x, x, x, x, x, x, x, x]\n".to_owned()
            + &(1..12)
                .map(|i| format!("{}: &{} [{}]\n", c(i), c(i), format!("*{}, ", c(i - 1)).repeat(9)))
                .collect::<String>();
        assert!(parse(&bomb).is_err());
        assert!(parse(&("a: {".repeat(60) + &"}".repeat(60))).map_or(true, |v| v.len() == 1));
    }

    fn c(i: usize) -> char {
        char::from(b'a' + u8::try_from(i).unwrap())
    }

    #[test]
    fn files_are_taken_by_name_within_each_pattern() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yaml", "10.yaml", "x.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("sub")).unwrap();
        let pattern = |p: &str| dir.path().join(p).display().to_string();
        let mut problems = Vec::new();
        let found = files(&[pattern("x.txt"), pattern("*.yaml"), pattern("b.yaml")], &mut problems);
        let names: Vec<_> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["x.txt", "10.yaml", "a.yaml", "b.yaml"]);
        assert_eq!(problems, []);
        for (wrong, reason) in [("none*.yaml", "names no file"), ("sub", "is a directory"), ("[", "is no pattern")] {
            assert_eq!(files(&[pattern(wrong)], &mut problems), Vec::<PathBuf>::new());
            let problem = problems.pop().unwrap();
            assert!(problem.reason.starts_with(reason) && problems.is_empty(), "{problem}");
        }
        assert!(read_file(&dir.path().join("gone")).unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn variables_are_read_by_the_type_of_their_key() {
        let set = [
            ("ALOFT_LISTEN_PORT", "81"),
            ("ALOFT_PORT", "80"),
            ("ALOFT_LISTEN_NAMES", "a, b"),
            ("ALOFT_DATABASE_PASSWORD", "123"),
            ("ALOFT_AUTH_INSECURE_NO_AUTH", "true"),
            ("ALOFT_DOMAINS", ""),
            ("ALOFT_DOMIANS", "x"),
            ("ALOFT_ENDPOINT", "http://x"),
            ("ALOFT_CACHE", "/x"),
            ("ALOFT_SERVICE_HOST", "10.0.0.1"),
            ("ALOFT_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("HOME", "/root"),
        ];
        let (layers, notes) = environment(set.map(|(n, v)| (n.to_owned(), v.to_owned())).into_iter());
        let values: Vec<_> = layers.iter().map(|l| (l.source.to_string(), l.values[0].1.clone())).collect();
        let wanted = [
            ("$ALOFT_PORT", json!(80)),
            ("$ALOFT_AUTH_INSECURE_NO_AUTH", json!(true)),
            ("$ALOFT_DATABASE_PASSWORD", json!("123")),
            ("$ALOFT_LISTEN_NAMES", json!(["a", "b"])),
            ("$ALOFT_LISTEN_PORT", json!(81)),
        ];
        assert_eq!(values, wanted.map(|(n, v)| (n.to_owned(), v)));
        assert_eq!(
            notes,
            [
                "$ALOFT_DOMIANS sets nothing: there is no such key; did you mean $ALOFT_DOMAINS?",
                "$ALOFT_PORT is the older name of $ALOFT_LISTEN_PORT",
            ]
        );
        let link = ("ALOFT_PORT".to_owned(), "tcp://10.0.0.1:80".to_owned());
        assert_eq!(environment([link].into_iter()), (vec![], vec![]));
    }

    #[test]
    fn assignments_name_their_key() {
        let one = assignment("listen.names=a,b=c").unwrap();
        assert_eq!(one.values, [("listen.names".to_owned(), json!(["a", "b=c"]))]);
        // The value is left out: it may be a secret.
        assert_eq!(assignment("database.password=x").unwrap().source.to_string(), "--set database.password");
        assert!(assignment("listen.names").is_err());
    }
}
