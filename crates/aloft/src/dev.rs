//! `aloft dev`: everything in one process, for one person.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args as ClapArgs;

use crate::{
    config::{self, Layer, Role, Sources, flag},
    exit::Exit,
    node::{self, Serving},
    telemetry::{LogFormat, say},
};

/// Where the `flyte` CLI looks for its configuration.
const USUAL_CONFIG: &str = ".flyte/config.yaml";

/// Options of `aloft dev`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Where everything is kept [default: ~/.local/share/aloft/dev; env: ALOFT_DATA_DIR].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The port to listen on, on loopback only. 0 chooses one and keeps it with the data directory, so that running tasks
    /// find Aloft again [default: 30080; env: ALOFT_LISTEN_PORT].
    #[arg(long)]
    port: Option<u16>,

    /// A domain that every project has; repeat it for more. Only for a new data directory: later, domains are created and
    /// deleted while Aloft runs [default: development, staging, production].
    #[arg(long = "domain", value_name = "NAME", value_parser = domain_name)]
    domains: Vec<String>,

    /// The Python interpreter that tasks run with. It must have `flyte` installed. By default the first on PATH that has,
    /// else one that `uv` makes.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,

    /// Write a configuration of the `flyte` CLI for this server.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = USUAL_CONFIG)]
    write_config: Option<PathBuf>,

    /// How log lines look [default: text].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,

    /// How many seconds a task has after SIGTERM, when it is aborted or a time limit passes, before it is killed. A pod
    /// template can say otherwise (termination_grace_period_seconds). A task that does not handle SIGTERM ends at once
    /// [default: 30; env: ALOFT_EXECUTOR_GRACE].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    grace: Option<u64>,

    /// Start every task with an interpreter of its own, to compare with the warm start.
    #[arg(long, hide = true)]
    cold: bool,

    #[command(flatten)]
    sources: Sources,
}

/// A name of a domain, as an argument.
pub(crate) fn domain_name(text: &str) -> Result<String, String> {
    aloft_control::check_label("the name", text).map(|()| text.to_owned())
}

/// A path as an argument, for a configuration.
pub(crate) fn path_text(path: Option<&PathBuf>) -> Option<String> {
    path.map(|p| p.to_string_lossy().into_owned())
}

impl Args {
    fn layers(&self) -> Vec<Layer> {
        let domains = (!self.domains.is_empty()).then(|| self.domains.clone());
        [
            flag("--data-dir", "dataDir", path_text(self.data_dir.as_ref())),
            flag("--port", "listen.port", self.port),
            flag("--domain", "domains", domains),
            flag("--python", "executor.python", path_text(self.python.as_ref())),
            flag("--log-format", "logger.format", self.log_format.map(LogFormat::name)),
            flag("--grace", "executor.grace", self.grace),
            flag("--cold", "executor.warmStart", self.cold.then_some(false)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(args: &Args) -> Result<(), Exit> {
    let loaded = config::load_and_log(Role::Dev, &args.sources, args.layers())?;
    // The first project is the one that the SDK's own configuration names, unless it was chosen otherwise.
    let project = loaded.config.projects.first().map_or("PROJECT", String::as_str);
    node::run(Role::Dev, &loaded, |serving| {
        if let Some(path) = &args.write_config {
            write_config(path, port(serving), project, serving.domain)?;
        }
        banner(serving, args.write_config.as_deref(), project);
        Ok(())
    })
}

fn port<'a>(serving: &Serving<'a>) -> &'a str {
    serving.local_url.rsplit(':').next().unwrap_or_default()
}

fn config_yaml(port: &str, project: &str, domain: &str) -> String {
    format!(
        "# Points the flyte CLI and SDK at `aloft dev`.\n\
         admin:\n  endpoint: dns:///localhost:{port}\n  insecure: true\n\
         task:\n  project: {project}\n  domain: {domain}\n\
         image:\n  builder: remote\n"
    )
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> Exit {
    Exit::other(format!("cannot {verb} {}: {error}; name another file with --write-config PATH", path.display()))
}

/// Writes the configuration, unless a different one is there.
fn write_config(path: &Path, port: &str, project: &str, domain: &str) -> Result<(), Exit> {
    let text = config_yaml(port, project, domain);
    match fs::read_to_string(path) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) => {
            return Err(Exit::other(format!(
                "{} exists and is another configuration; remove it, or name another file with --write-config PATH",
                path.display()
            )));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(cannot("read", path, &e)),
    }
    let write = || {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        // New, so that nothing is overwritten that was not there a moment ago.
        fs::File::create_new(path)?.write_all(text.as_bytes())
    };
    write().map_err(|e| cannot("write", path, &e))?;
    say(&format!("Wrote {}.", path.display()));
    Ok(())
}

fn banner(serving: &Serving<'_>, written: Option<&Path>, project: &str) {
    let (url, port, domain) = (serving.public_url, port(serving), serving.domain);
    say(&format!("Aloft {} listens on {url} (this machine only, no sign-in)", env!("CARGO_PKG_VERSION")));
    say(&format!("  pages     {url}/v2"));
    say(&format!("  data      {}", serving.data_dir.display()));
    let mut flyte = "flyte".to_owned();
    if let Some(path) = written {
        // The CLI finds the usual file by itself.
        if path != Path::new(USUAL_CONFIG) {
            flyte = format!("flyte -c {}", path.display());
        }
    } else {
        say(&format!(
            "  flyte     flyte create config --endpoint localhost:{port} --insecure --project {project} \
             --domain {domain} --builder remote"
        ));
        say("            (or start with --write-config)");
    }
    say(&format!("  try       {flyte} run --follow examples/hello.py main"));
    say("Stop with Ctrl-C.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_written_once_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/config.yaml");
        write_config(&path, "1", "p", "d").unwrap();
        write_config(&path, "1", "p", "d").unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains("localhost:1\n") && before.contains("project: p\n  domain: d\n"), "{before}");
        assert!(write_config(&path, "2", "p", "d").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
