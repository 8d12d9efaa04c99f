//! `aloft config`: looking at a configuration without starting anything.

use clap::{Args as ClapArgs, Subcommand};
use serde_json::Value;

use super::{Loaded, Role, Sources, Wrong, keys, load, problem::explain};
use crate::{
    admin::output::{self, Format},
    exit::{Exit, Kind},
};

/// `aloft config <what>`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say whether a configuration is good, or everything that is wrong with it.
    Check(CheckArgs),
    /// Show every key with the value that holds and where that was set. Secrets are not shown.
    Show(ShowArgs),
    /// Print the JSON Schema of configuration files, for editors and checks.
    Schema,
}

/// Whose configuration.
#[derive(ClapArgs)]
pub(crate) struct Whose {
    /// The command that the configuration is for [default: server if --config is given, else dev].
    #[arg(long, value_enum)]
    role: Option<Role>,

    #[command(flatten)]
    sources: Sources,
}

/// Options of `aloft config check`.
#[derive(ClapArgs)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    whose: Whose,

    /// How the list of what is wrong is printed.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// Options of `aloft config show`.
#[derive(ClapArgs)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    whose: Whose,

    /// How it is printed.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

impl Whose {
    /// The role asked about. Who names files has a server; who does not tries things out.
    pub(crate) fn role(&self) -> Role {
        self.role.unwrap_or(if self.sources.files.is_empty() { Role::Dev } else { Role::Server })
    }

    /// Reads the configuration with the flags of a command.
    pub(crate) fn load(&self, flags: Vec<super::Layer>) -> Result<Loaded, Wrong> {
        load(self.role(), &self.sources, flags)
    }
}

impl Command {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Check(args) => check(&args),
            Self::Show(args) => show(&args),
            Self::Schema => {
                let text = serde_json::to_string_pretty(&keys::schema()).unwrap_or_default();
                output::say(&text)
            }
        }
    }
}

fn check(args: &CheckArgs) -> Result<(), Exit> {
    let role = args.whose.role().name();
    let problems = match args.whose.load(Vec::new()) {
        Ok(loaded) => {
            for note in &loaded.notes {
                eprintln_safe(&format!("note: {note}"));
            }
            if args.output != Format::Table {
                return output::print_list(args.output, &[], &[], |_: &()| Vec::new(), |()| output::Value::Null);
            }
            let set = loaded.values.values().filter(|(_, source)| *source != super::Source::Default).count();
            return output::say(&format!(
                "The configuration of `aloft {role}` is good: {} and {} set.",
                counted(loaded.files, "file"),
                counted(set, "key")
            ));
        }
        Err(wrong) => wrong.problems,
    };
    if args.output == Format::Table {
        return Err(Exit::new(Kind::Config, explain(&problems)));
    }
    output::print_list(
        args.output,
        &problems,
        &[],
        |_| Vec::new(),
        |p| {
            output::Value::Object(vec![
                ("file", p.source.to_string().into()),
                ("key", p.key.as_str().into()),
                ("reason", p.reason.as_str().into()),
                ("remedy", p.remedy.as_str().into()),
            ])
        },
    )?;
    Err(Exit::new(Kind::Config, format!("{} found", counted(problems.len(), "problem"))))
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A line for the person at the terminal; a closed terminal is no reason to fail.
fn eprintln_safe(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn show(args: &ShowArgs) -> Result<(), Exit> {
    let loaded = args.whose.load(Vec::new()).map_err(|w| Exit::new(Kind::Config, explain(&w.problems)))?;
    for note in &loaded.notes {
        eprintln_safe(&format!("note: {note}"));
    }
    let rows: Vec<_> = loaded
        .values
        .iter()
        .filter_map(|(path, (value, source))| {
            let key = keys::keys().get(path)?;
            Some((key, keys::shown(key, value), source.to_string()))
        })
        .collect();
    output::print_list(
        args.output,
        &rows,
        &["KEY", "VALUE", "SET BY"],
        |(key, value, source)| vec![key.path.clone(), text(value), source.clone()],
        |(key, value, source)| {
            output::Value::Object(vec![
                ("key", key.path.as_str().into()),
                ("value", value.into()),
                ("source", source.as_str().into()),
                ("variable", key.env.as_str().into()),
                ("about", key.about.as_str().into()),
            ])
        },
    )
}

/// A value as people read it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(entries) if entries.is_empty() => "-".to_owned(),
        Value::Array(entries) => entries.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, path::Path};

    use super::*;
    use crate::config::{
        alias::{ALIASES, VARIABLES},
        model::Config,
    };

    fn table_of_keys() -> String {
        let of = |role| serde_json::to_value(Config::of(role)).unwrap();
        let (dev, server, operator) = (of(Role::Dev), of(Role::Server), of(Role::Operator));
        let mut table = "| key | variable | default | what it is |\n|---|---|---|---|\n".to_owned();
        for key in keys::keys().values() {
            let shown = |tree: &Value| text(&crate::config::at(tree, &key.path));
            let usual = shown(&server);
            let mut default = format!("`{usual}`");
            for (role, other) in [("dev", shown(&dev)), ("operator", shown(&operator))] {
                if other != usual {
                    write!(default, "; {role}: `{other}`").unwrap();
                }
            }
            let default = default.replace("`-`", "none");
            let (path, env, about) = (&key.path, &key.env, &key.about);
            writeln!(table, "| `{path}` | `{env}` | {default} | {about} |").unwrap();
        }
        table
    }

    fn table_of_aliases() -> String {
        let mut table = "| other name | whose | key |\n|---|---|---|\n".to_owned();
        for alias in ALIASES {
            writeln!(table, "| `{}` | {} | `{}` |", alias.name, alias.source, alias.key).unwrap();
        }
        for (variable, key) in VARIABLES {
            writeln!(table, "| `${variable}` | earlier versions | `{key}` |").unwrap();
        }
        table
    }

    /// `UPDATE_DOCS=1 cargo test -p aloft the_documented_tables` writes them.
    #[test]
    fn the_documented_tables_are_those_of_the_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let mut text = fs::read_to_string(&path).unwrap();
        for (name, table) in [("keys", table_of_keys()), ("other names", table_of_aliases())] {
            let (begin, end) = (format!("<!-- {name}: made from the code -->\n"), format!("<!-- end of {name} -->"));
            let from = text.find(&begin).unwrap() + begin.len();
            let to = text.find(&end).unwrap();
            if std::env::var_os("UPDATE_DOCS").is_some() {
                text.replace_range(from..to, &table);
                fs::write(&path, &text).unwrap();
            } else {
                assert_eq!(text[from..to], table, "run this test with UPDATE_DOCS=1");
            }
        }
    }
}
