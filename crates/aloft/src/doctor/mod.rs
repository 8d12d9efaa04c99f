//! `aloft doctor`: looks at a deployment or a data directory and says what is wrong and how to mend it. Nothing is changed
//! but for files that are written and removed again to see that it is possible.
//!
//! To add a check: a function that answers a [`Finding`], in `machine.rs` or `services.rs`, and a line in [`examine`].

mod machine;
mod services;

use clap::Args as ClapArgs;

use crate::{
    admin::output::{self, Format, Value},
    config::{Config, Layer, Loaded, Place, Role, Whose, flag},
    datadir::variable,
    dev::path_text,
    exit::Exit,
};

/// Options of `aloft doctor`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    whose: Whose,

    /// The data directory to look at [default: that of the configuration].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,

    /// The server to look at [default: the port of the configuration, on this machine].
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,

    /// How it is printed.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// It works, and is better looked after.
    Warn,
    /// It does not work.
    Fail,
    /// It could not be looked at, for the reason that is given.
    Skip,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    /// Empty where there is nothing to mend.
    remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: State::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: State::Fail, found: found.into(), remedy: remedy.into() }
    }

    fn skip(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, state: State::Skip, found: why.into(), remedy: String::new() }
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// Looks at everything and prints what it found; an error if anything fails.
pub(crate) fn run(args: &Args) -> Result<(), Exit> {
    let findings = crate::admin::block_on(async { Ok(examine(args).await) })?;
    output::print_list(
        args.output,
        &findings,
        &["CHECK", "STATE", "FOUND", "REMEDY"],
        |f| vec![f.check.to_owned(), f.state.name().to_owned(), f.found.clone(), f.remedy.clone()],
        |f| {
            Value::Object(vec![
                ("check", f.check.into()),
                ("state", f.state.name().into()),
                ("found", f.found.as_str().into()),
                ("remedy", f.remedy.as_str().into()),
            ])
        },
    )?;
    let failed = findings.iter().filter(|f| f.state == State::Fail).count();
    match failed {
        0 => Ok(()),
        failed => Err(Exit::other(format!("{failed} of {} checks failed", findings.len()))),
    }
}

async fn examine(args: &Args) -> Vec<Finding> {
    let role = args.whose.role();
    let flags: Vec<Layer> = flag("--data-dir", "dataDir", path_text(args.data_dir.as_ref())).into_iter().collect();
    let mut findings = Vec::new();
    match args.whose.load(flags) {
        Ok(loaded) => {
            findings.push(configured(role, &loaded));
            findings.extend(deployment(role, &loaded.config, args.endpoint.as_deref()).await);
            findings.extend(machine::programs(loaded.config.executor.python.as_deref()).await);
        }
        // What it describes cannot be looked at.
        Err(wrong) => {
            let found = |p: crate::config::Problem| {
                let key = if p.key.is_empty() { String::new() } else { format!("{}: ", p.key) };
                Finding::fail("configuration", format!("{}: {key}{}", p.source, p.reason), p.remedy)
            };
            findings.extend(wrong.problems.into_iter().map(found));
            findings.extend(machine::programs(None).await);
        }
    }
    findings
}

fn configured(role: Role, loaded: &Loaded) -> Finding {
    let of = format!("good for `aloft {}`, files read: {}", role.name(), loaded.files);
    match loaded.notes.first() {
        None => Finding::ok("configuration", of),
        Some(note) => {
            let more =
                if loaded.notes.len() > 1 { format!(", and {} more", loaded.notes.len() - 1) } else { String::new() };
            Finding::warn("configuration", format!("{of}; {note}{more}"), "`aloft config check` says it all")
        }
    }
}

async fn deployment(role: Role, config: &Config, endpoint: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let dir = match config.data_path(role, variable) {
        Ok(dir) => dir,
        Err(why) => return vec![Finding::fail("data directory", why, "set HOME, or name a directory with --data-dir")],
    };
    findings.push(machine::directory(&dir));
    findings.push(machine::disk("free disk", &dir));
    if role == Role::Operator {
        // The database, the ports and the master key are its server's.
        if let Ok(objects) = config.storage_path(&dir, variable) {
            findings.push(services::object_store(&objects, &config.storage.bucket_name).await);
        }
        return findings;
    }
    match config.database.place(&dir.join("aloft.db")) {
        Ok(Place::Sqlite(path)) => {
            findings.push(services::sqlite(&path));
            if !path.starts_with(&dir) {
                findings.push(machine::disk("free disk of database", &path));
            }
        }
        Ok(Place::Postgres(postgres)) => findings.push(services::postgres(&postgres).await),
        Err((key, reason, remedy)) => findings.push(Finding::fail("database", format!("{key}: {reason}"), remedy)),
    }
    match config.storage_path(&dir, variable) {
        Ok(objects) => findings.push(services::object_store(&objects, &config.storage.bucket_name).await),
        Err(why) => findings.push(Finding::fail("object store", why, "name a directory as storage.path")),
    }
    findings.extend(services::server(config, &dir, endpoint).await);
    findings
}
