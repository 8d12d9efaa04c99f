//! The one configuration of every role: files, then environment variables, then flags; what comes later wins, key by key.
//!
//! Reading ([`layer`]) is apart from deciding what holds ([`resolve`], pure) and from judging it ([`check`]).

mod alias;
mod check;
mod command;
mod database;
mod keep;
mod keys;
mod layer;
mod model;
mod problem;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal as _,
    net::IpAddr,
};

use clap::Args as ClapArgs;
use serde_json::Value;

pub(crate) use self::{
    command::{Command, Whose},
    database::{Place, Postgres},
    layer::Layer,
    model::{Config, DEV_PORT, Logger, Metrics, Role, Tracing},
    problem::{Problem, Source},
};
use self::{
    keys::{Key, keys},
    problem::explain,
};
use crate::{
    exit::{Exit, Kind},
    telemetry,
};

/// Where a configuration comes from, on the command line of every command that has one.
#[derive(ClapArgs)]
pub(crate) struct Sources {
    /// A configuration file, or a pattern of several ('/etc/config/*.yaml'), which are merged by name. Repeat it for more;
    /// what comes later wins.
    #[arg(
        long = "config",
        value_name = "PATTERN",
        env = "ALOFT_CONFIG",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Configuration"
    )]
    pub(crate) files: Vec<String>,

    /// Set one key, over files and environment variables; repeat it for more. `aloft config schema` names all keys.
    #[arg(long = "set", value_name = "KEY=VALUE", help_heading = "Configuration")]
    pub(crate) set: Vec<String>,
}

/// What holds, and why.
pub(crate) struct Loaded {
    /// What holds.
    pub(crate) config: Config,
    /// Every key with its value and where that was set, by path.
    pub(crate) values: BTreeMap<String, (Value, Source)>,
    /// What to say of how it was written.
    pub(crate) notes: Vec<String>,
    /// How many files were read.
    pub(crate) files: usize,
}

/// Why there is no configuration.
pub(crate) struct Wrong {
    /// All that is wrong.
    pub(crate) problems: Vec<Problem>,
    /// Whether log lines were asked to be JSON.
    pub(crate) json: bool,
}

/// Reads and judges the configuration of `role`. `flags` are those of the command, in the order in which they count.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn load(role: Role, sources: &Sources, flags: Vec<Layer>) -> Result<Loaded, Wrong> {
    let mut problems = Vec::new();
    let mut layers = Vec::new();
    let files = layer::files(&sources.files, &mut problems);
    for path in &files {
        match layer::read_file(path) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    let named = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    let (variables, mut notes) = layer::environment(named);
    layers.extend(variables);
    for text in &sources.set {
        match layer::assignment(text) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    layers.extend(flags);
    let json = wants_json(role, &layers);
    match resolve(role, layers) {
        Ok(mut loaded) if problems.is_empty() => {
            problems.extend(check::check(role, &loaded));
            problems.extend(check::check_files(&loaded));
            if !problems.is_empty() {
                return Err(Wrong { problems, json });
            }
            notes.append(&mut loaded.notes);
            Ok(Loaded { notes, files: files.len(), ..loaded })
        }
        Ok(_) => Err(Wrong { problems, json }),
        Err(more) => {
            problems.extend(more);
            Err(Wrong { problems, json })
        }
    }
}

/// As [`load`], and starts logging as the configuration says; what there is to say of it is logged.
pub(crate) fn load_and_log(role: Role, sources: &Sources, flags: Vec<Layer>) -> Result<Loaded, Exit> {
    let loaded = load(role, sources, flags).map_err(|wrong| {
        if wrong.json {
            telemetry::json_only();
        }
        Exit::new(Kind::Config, explain(&wrong.problems))
    })?;
    telemetry::init(&loaded.config.logger, &loaded.config.tracing, role).map_err(|why| {
        Exit::new(Kind::Config, format!("tracing.endpoint: {why}; write it as http://collector:4318"))
    })?;
    for note in &loaded.notes {
        tracing::warn!("configuration: {note}");
    }
    Ok(loaded)
}

/// How log lines would look, even if nothing else can be made of the layers.
fn wants_json(role: Role, layers: &[Layer]) -> bool {
    let said = layers.iter().flat_map(|l| &l.values).filter(|(name, _)| name == "logger.format");
    let last = said.filter_map(|(_, value)| value.as_str()).next_back();
    // Who tries it out at a terminal would rather read than parse.
    let usual = Config::of(role).logger.format == telemetry::LogFormat::Json && !std::io::stderr().is_terminal();
    last.map_or(usual, |format| format == "json")
}

/// Decides what holds.
fn resolve(role: Role, layers: Vec<Layer>) -> Result<Loaded, Vec<Problem>> {
    let (mut problems, mut notes) = (Vec::new(), BTreeSet::new());
    let base = serde_json::to_value(Config::of(role)).unwrap_or_default();
    let mut values: BTreeMap<String, (Value, Source)> =
        keys().keys().map(|path| (path.clone(), (at(&base, path), Source::Default))).collect();
    for layer in layers {
        let mut written: BTreeMap<&'static str, (String, Value)> = BTreeMap::new();
        for (name, value) in layer.values {
            let Some((key, value)) = understood(&layer.source, &name, value, &mut problems, &mut notes) else {
                continue;
            };
            if let Some(problem) = unfit(&base, &layer.source, &name, key, &value) {
                problems.push(problem);
                continue;
            }
            if let Some((other, before)) = written.get(key.path.as_str())
                && *before != value
            {
                let reason = format!("{other} in the same place says otherwise, and both are {}", key.path);
                problems.push(Problem::new(&layer.source, &name, reason, "keep one of them"));
            }
            written.insert(&key.path, (name, value));
        }
        for (path, (_, value)) in written {
            let held = match value {
                Value::Null => (at(&base, path), Source::Default),
                value => (value, layer.source.clone()),
            };
            values.insert(path.to_owned(), held);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut tree = base;
    for (path, (value, _)) in &values {
        put(&mut tree, path, value.clone());
    }
    match serde_json::from_value(tree) {
        Ok(config) => Ok(Loaded { config, values, notes: notes.into_iter().collect(), files: 0 }),
        // Every value fits by itself, and the types know no rules across keys.
        Err(_) => {
            Err(vec![Problem::new(&Source::Default, "", "does not fit together", "report this as a bug of Aloft")])
        }
    }
}

/// The key that `name` means and its value in our shape; `None` if there is nothing to set.
fn understood(
    source: &Source,
    name: &str,
    value: Value,
    problems: &mut Vec<Problem>,
    notes: &mut BTreeSet<String>,
) -> Option<(&'static Key, Value)> {
    let mut renamed = |key: &Key, why: &str| {
        notes.insert(format!("{source}: {name} is {why} {}; write it so", key.path));
    };
    let (key, value) = if let Some(key) = keys().get(name) {
        (key, value)
    } else if let Some(key) = keys().values().find(|k| alias::same_spelling(&k.path, name)) {
        renamed(key, "another spelling of");
        (key, value)
    } else if let Some(alias) = alias::find(name) {
        let key = keys().get(alias.key)?;
        renamed(key, &format!("the name that {} has for", alias.source));
        (key, alias::take(alias.take, value))
    } else if let Some((above, key)) = below_secret(name) {
        // What stands below a secret is a part of it, of which YAML has made a key.
        problems.push(Problem::new(source, above, format!("must be {}", key.expected), "put it in quotes"));
        return None;
    } else if keys().keys().any(|path| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))) {
        if !value.is_null() {
            let below: Vec<_> = keys().keys().filter(|p| p.starts_with(&format!("{name}."))).take(3).cloned().collect();
            let remedy = format!("set one of them, as {}", below.join(" or "));
            problems.push(Problem::new(source, name, "holds keys of its own, not a value", remedy));
        }
        return None;
    } else {
        let names = keys().keys().map(String::as_str).chain(alias::ALIASES.iter().map(|a| a.name));
        let remedy = match layer::closest(name, 0.6, names) {
            Some(like) => format!("did you mean {like}?"),
            None => "remove it, or find the right one with `aloft config show`".to_owned(),
        };
        problems.push(Problem { unknown: true, ..Problem::new(source, name, "there is no such key", remedy) });
        return None;
    };
    match alias::reshape(&key.path, &value) {
        Some((value, why)) => {
            notes.insert(format!("{source}: {name}: {why}"));
            Some((key, value))
        }
        None => Some((key, value)),
    }
}

/// The name of a secret that `name` is below of, and its key.
fn below_secret(name: &str) -> Option<(&str, &'static Key)> {
    let above = name.match_indices('.').map(|(at, _)| &name[..at]);
    let key = |path: &str| keys().get(path).or_else(|| keys().get(alias::find(path)?.key));
    above.filter_map(|path| Some((path, key(path)?))).find(|(_, key)| key.secret)
}

/// Why `value` is none for `key`: asked of the types themselves, with all else at its default.
fn unfit(base: &Value, source: &Source, name: &str, key: &Key, value: &Value) -> Option<Problem> {
    if value.is_null() {
        return None;
    }
    let mut tree = base.clone();
    put(&mut tree, &key.path, value.clone());
    if serde_json::from_value::<Config>(tree).is_ok() {
        return None;
    }
    let reason = if key.secret {
        // Said without the value; a number is what people forget to quote.
        format!("must be {}", key.expected)
    } else {
        let text: String = value.to_string().chars().take(80).collect();
        format!("must be {}, not {text}", key.expected)
    };
    let remedy = if key.text && !value.is_string() { "put it in quotes" } else { "write such a value" };
    Some(Problem::new(source, name, reason, remedy))
}

fn at(tree: &Value, path: &str) -> Value {
    path.split('.').try_fold(tree, |tree, name| tree.get(name)).cloned().unwrap_or_default()
}

fn put(tree: &mut Value, path: &str, value: Value) {
    let place = path.split('.').try_fold(tree, |tree, name| tree.get_mut(name));
    if let Some(place) = place {
        *place = value;
    }
}

/// The layer of a flag that was given.
pub(crate) fn flag(name: &str, path: &str, value: Option<impl Into<Value>>) -> Option<Layer> {
    let value = value?.into();
    Some(Layer { source: Source::Flag(name.to_owned()), values: vec![(path.to_owned(), value)] })
}

/// Whether only this machine reaches an address.
pub(crate) fn is_loopback(address: &IpAddr) -> bool {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(v6.is_loopback(), |v4| v4.is_loopback()),
        IpAddr::V4(v4) => v4.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn file(name: &str, values: Value) -> Layer {
        let values = values.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Layer { source: Source::File(PathBuf::from(name)), values }
    }

    fn wrong(layers: Vec<Layer>) -> Vec<String> {
        let problems = resolve(Role::Server, layers).err().expect("something is wrong");
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_comes_later_wins_key_by_key() {
        let loaded = resolve(
            Role::Server,
            vec![
                file("a", json!({"listen.port": 1, "listen.names": ["x", "y"], "organization": "a"})),
                file("b", json!({"listen.port": 2, "listen.names": ["z"]})),
                flag("--port", "listen.port", Some(3)).unwrap(),
            ],
        )
        .ok()
        .unwrap();
        assert_eq!(loaded.config.listen.port, 3);
        assert_eq!(loaded.config.listen.names, ["z"]);
        assert_eq!(loaded.config.organization, "a");
        assert_eq!(loaded.values["listen.port"], (json!(3), Source::Flag("--port".to_owned())));
        assert_eq!(loaded.values["listen.names"].1, Source::File("b".into()));
        assert_eq!(loaded.values["debug.port"], (json!(10254), Source::Default));
        assert_eq!(loaded.notes, Vec::<String>::new());
        assert_eq!(flag("--port", "listen.port", None::<u16>), None);
    }

    #[test]
    fn null_is_the_default_again() {
        let loaded =
            resolve(Role::Server, vec![file("a", json!({"listen.port": 1})), file("b", json!({"listen.port": null}))]);
        let loaded = loaded.ok().unwrap();
        assert_eq!((loaded.config.listen.port, &loaded.values["listen.port"].1), (8080, &Source::Default));
    }

    #[test]
    fn every_unknown_key_is_named_with_the_one_most_like_it() {
        let said = wrong(vec![
            file("a", json!({"lisen.port": 1, "db.hots": "x", "qqqqq": 1})),
            file("b", json!({"listen.prot": 1})),
        ]);
        assert_eq!(
            said,
            [
                "a: db.hots: there is no such key; did you mean db.host?",
                "a: lisen.port: there is no such key; did you mean listen.port?",
                "a: qqqqq: there is no such key; remove it, or find the right one with `aloft config show`",
                "b: listen.prot: there is no such key; did you mean listen.port?",
            ]
        );
    }

    #[test]
    fn values_of_the_wrong_type_are_named() {
        let said = wrong(vec![file(
            "a",
            json!({"listen.port": 70000, "logger.format": "xml", "database.password": 123, "listen": "here",
                   "drain.timeout": "soon", "listen.addresses": ["localhost"], "organization": 7}),
        )]);
        assert_eq!(
            said,
            [
                "a: database.password: must be a text; put it in quotes",
                "a: drain.timeout: must be a length of time like 30s, 5m or 1h30m, not \"soon\"; write such a value",
                "a: listen: holds keys of its own, not a value; set one of them, as listen.addresses or listen.names or \
                 listen.port",
                "a: listen.addresses: must be a list, each entry an IP address, not [\"localhost\"]; write such a value",
                "a: listen.port: must be a whole number from 0 to 65535, not 70000; write such a value",
                "a: logger.format: must be json or text, not \"xml\"; write such a value",
                "a: organization: must be a text, not 7; put it in quotes",
            ]
        );
    }

    #[test]
    fn a_secret_that_became_a_key_is_not_shown() {
        for name in ["database.password", "db.password", "db.pass-word"] {
            let said = wrong(vec![file("a", json!({format!("{name}.hunter2.x"): 1}))]);
            assert_eq!(said, [format!("a: {name}: must be a text; put it in quotes")]);
        }
    }

    #[test]
    fn other_names_are_accepted_and_said() {
        let loaded = resolve(
            Role::Server,
            vec![file(
                "a",
                json!({"db.passwordPath": "/etc/db/pass.txt", "logger.level": 5, "Logger.show-source": true,
                       "runs.server.host": "0.0.0.0"}),
            )],
        );
        let loaded = loaded.ok().unwrap();
        assert_eq!(loaded.config.database.password_path, Some(PathBuf::from("/etc/db/pass.txt")));
        assert_eq!(loaded.config.logger.level, "debug");
        assert!(loaded.config.logger.show_source);
        assert_eq!(loaded.config.listen.addresses, ["0.0.0.0".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            loaded.notes,
            [
                "a: Logger.show-source is another spelling of logger.showSource; write it so",
                "a: db.passwordPath is the name that the control plane's chart has for database.passwordPath; write it so",
                "a: logger.level: a number is the specification's way to write a level; write its name",
                "a: runs.server.host is the name that Flyte 2 has for listen.addresses; write it so",
            ]
        );
    }

    #[test]
    fn two_names_of_one_key_must_agree() {
        let said = wrong(vec![file("a", json!({"database.host": "x", "db.host": "y"}))]);
        assert_eq!(
            said,
            [
                "a: db.host: database.host in the same place says otherwise, and both are database.host; keep one of them"
            ]
        );
        assert!(resolve(Role::Dev, vec![file("a", json!({"database.host": "x", "db.host": "x"}))]).is_ok());
        // In different places, the later one wins.
        assert!(
            resolve(Role::Dev, vec![file("a", json!({"database.host": "x"})), file("b", json!({"db.host": "y"}))])
                .is_ok()
        );
    }

    #[test]
    fn every_default_fits_its_own_type() {
        for role in [Role::Dev, Role::Server, Role::Operator] {
            let loaded = resolve(role, Vec::new()).ok().unwrap();
            assert!(loaded.values.values().all(|(_, source)| *source == Source::Default));
        }
    }
}
