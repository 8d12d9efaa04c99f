//! Makes an environment with `uv`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use aloft_core::{ErrorKind, TaskError};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, process::Command};

use super::{
    machine,
    plan::{Plan, Step},
};
use crate::logs::LogSink;

/// Says that an environment is whole, and what tasks in it see.
pub(super) const COMPLETE: &str = ".complete";

/// The files that the image copied in.
pub(super) const FILES: &str = "files";

/// The content of the marker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) vars: Vec<(String, String)>,
}

fn failed(message: String) -> TaskError {
    TaskError::new("ImageBuildFailed", message, ErrorKind::User, false)
}

fn on_disk(what: &str, path: &Path, error: &io::Error) -> TaskError {
    let remedy = if error.kind() == io::ErrorKind::StorageFull { "; free some space and run again" } else { "" };
    TaskError::new(
        "ImageBuildFailed",
        format!("cannot {what} {}: {error}{remedy}", path.display()),
        ErrorKind::System,
        error.kind() != io::ErrorKind::StorageFull,
    )
}

/// Makes the environment of `plan` in `dir`. `context` is the unpacked build context.
pub(super) async fn build(dir: &Path, plan: &Plan, context: Option<&Path>, log: &LogSink) -> Result<(), TaskError> {
    // What a maker that was cut off left behind.
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| on_disk("remove", dir, &e))?;
    }
    fs::create_dir_all(dir).map_err(|e| on_disk("make", dir, &e))?;
    let venv = dir.join("venv");
    let mut args = vec!["venv".to_owned(), "--no-project".to_owned()];
    if let Some(python) = &plan.python {
        args.extend(["--python".to_owned(), machine::interpreter(python).await]);
    }
    args.push(venv.display().to_string());
    uv(&args, &[], log).await.map_err(|error| match &plan.python {
        Some(python) => failed(format!(
            "there is no Python {python} on this machine and uv could not fetch one: install python{python}, or choose a \
             Python that is here in the image. {}",
            error.message
        )),
        None => error,
    })?;

    let python = venv.join("bin/python").display().to_string();
    let install = |rest: Vec<String>| {
        let head = ["pip", "install", "--python"].map(str::to_owned);
        head.into_iter().chain([python.clone()]).chain(rest).collect::<Vec<_>>()
    };
    // Together with the first packages, so that one resolution finds versions that fit one another.
    let mut flyte = Some(if plan.flyte.is_empty() { "flyte".to_owned() } else { format!("flyte=={}", plan.flyte) });
    for step in &plan.steps {
        match step {
            Step::Packages { packages, options } => {
                uv(&install(options.iter().chain(packages).cloned().chain(flyte.take()).collect()), &[], log).await?;
            }
            Step::Requirements { file, options } => {
                let file = in_context(context, file)?.display().to_string();
                let args = options.iter().cloned().chain(["-r".to_owned(), file]).chain(flyte.take()).collect();
                uv(&install(args), &[], log).await?;
            }
            Step::Wheels { dir, options } => {
                let wheels = wheels(&in_context(context, dir)?)?;
                uv(&install(options.iter().cloned().chain(wheels).chain(flyte.take()).collect()), &[], log).await?;
            }
            Step::Project { dir: project, lock, extra } => {
                sync_project(&venv, context, project, lock.as_deref(), extra, log).await?;
            }
            Step::Copy { from, to } => {
                let from = in_context(context, from)?;
                copy(&from, &dir.join(FILES).join(to)).map_err(|e| on_disk("copy", &from, &e))?;
                log.note(&format!("Copied to {}.", if to.is_empty() { "." } else { to }));
            }
        }
    }
    if let Some(flyte) = flyte {
        uv(&install(vec![flyte]), &[], log).await?;
    }
    make_importable(dir, &venv)?;
    let record = Record { vars: plan.vars.clone().into_iter().collect() };
    finish(dir, &record).map_err(|e| on_disk("finish", dir, &e))
}

/// Code that was copied in is importable wherever the task starts.
fn make_importable(dir: &Path, venv: &Path) -> Result<(), TaskError> {
    let files = dir.join(FILES);
    if !files.is_dir() {
        return Ok(());
    }
    let lib = venv.join("lib");
    let mut versions = fs::read_dir(&lib).map_err(|e| on_disk("read", &lib, &e))?.flatten();
    let Some(version) = versions.find(|e| e.file_name().to_string_lossy().starts_with("python")) else { return Ok(()) };
    let pth = version.path().join("site-packages/aloft_image_files.pth");
    fs::write(&pth, format!("{}\n", files.display())).map_err(|e| on_disk("write", &pth, &e))
}

/// The marker comes last and at once, so that a crash leaves an environment without it.
fn finish(dir: &Path, record: &Record) -> io::Result<()> {
    let next = dir.join("complete.next");
    let file = fs::File::create(&next)?;
    serde_json::to_writer(&file, record)?;
    file.sync_all()?;
    fs::rename(next, dir.join(COMPLETE))?;
    fs::File::open(dir)?.sync_all()
}

fn in_context(context: Option<&Path>, path: &str) -> Result<PathBuf, TaskError> {
    let context =
        context.ok_or_else(|| failed("the image needs files, but no build context was uploaded".to_owned()))?;
    let full = context.join(path);
    if full.exists() {
        Ok(full)
    } else {
        Err(failed(format!("{path} is not in the build context; run `flyte delete local-cache` and try again")))
    }
}

fn wheels(dir: &Path) -> Result<Vec<String>, TaskError> {
    let entries = fs::read_dir(dir).map_err(|e| on_disk("read", dir, &e))?.flatten().map(|e| e.path());
    let mut wheels: Vec<_> =
        entries.filter(|p| p.extension().is_some_and(|e| e == "whl")).map(|p| p.display().to_string()).collect();
    wheels.sort();
    if wheels.is_empty() {
        return Err(failed(
            "the layer with_wheels has no .whl files; build the package first (uv build --wheel)".to_owned(),
        ));
    }
    Ok(wheels)
}

async fn sync_project(
    venv: &Path,
    context: Option<&Path>,
    project: &str,
    lock: Option<&str>,
    extra: &[String],
    log: &LogSink,
) -> Result<(), TaskError> {
    let named = in_context(context, project)?;
    let dir = if named.is_file() { named.parent().unwrap_or(&named).to_owned() } else { named };
    let mut args = vec!["sync".to_owned(), "--inexact".to_owned(), "--no-dev".to_owned()];
    if let Some(lock) = lock {
        let from = in_context(context, lock)?;
        let to = dir.join("uv.lock");
        if from != to {
            fs::copy(&from, &to).map_err(|e| on_disk("copy", &from, &e))?;
        }
        args.push("--frozen".to_owned());
    }
    // What is installed must not point into the context, which goes away.
    args.push("--no-editable".to_owned());
    args.extend(extra.iter().cloned());
    args.extend(["--project".to_owned(), dir.display().to_string()]);
    uv(&args, &[("UV_PROJECT_ENVIRONMENT", venv.display().to_string())], log).await
}

/// Copies a file, or what is in a directory.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let to = if to.is_dir() { to.join(from.file_name().unwrap_or_default()) } else { to.to_owned() };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).map(drop)
}

/// Lays the image's copied files out in a task's fresh working directory.
///
/// # Errors
/// If they cannot be copied.
pub(crate) fn lay_out(files: &Path, work: &Path) -> io::Result<()> {
    copy(files, work)
}

/// Runs `uv`; what it says goes into the log as it comes.
async fn uv(args: &[String], env: &[(&str, String)], log: &LogSink) -> Result<(), TaskError> {
    log.note(&format!("$ uv {}", args.join(" ")));
    let mut command = Command::new("uv");
    command.args(args).envs(env.iter().map(|(k, v)| (k, v.as_str())));
    command.env_remove("VIRTUAL_ENV").env_remove("PYTHONPATH").env("FORCE_COLOR", "1").env("UV_LINK_MODE", "copy");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| {
        TaskError::new(
            "UvMissing",
            format!("`uv` cannot be started ({e}): install it (pip install uv) so that it is on PATH, and run again"),
            ErrorKind::System,
            false,
        )
    })?;
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut chunk = [0; 4096];
        while let Ok(n) = stderr.read(&mut chunk).await {
            if n == 0 {
                break;
            }
            log.write(&chunk[..n]);
            said.extend_from_slice(&chunk[..n]);
            // Only the end is quoted in the error.
            let excess = said.len().saturating_sub(3000);
            said.drain(..excess);
        }
    }
    log.flush();
    let status = child.wait().await.map_err(|e| failed(format!("uv did not finish: {e}")))?;
    if status.success() {
        return Ok(());
    }
    let end = plain(&String::from_utf8_lossy(&said));
    Err(failed(format!("`uv {}` failed:\n{}", args.first().map_or("", String::as_str), end.trim())))
}

/// Text without its ANSI colours.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // `ESC [ … letter`
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_taken_out_of_errors() {
        assert_eq!(plain("\u{1b}[1;31merror\u{1b}[0m: no"), "error: no");
    }
}
