//! What this machine already has: interpreters that `uv` does not look for, and system packages that an image asks for.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

/// The interpreter to make an environment of Python `wanted` with, such as `3.12`: a path if a version manager keeps one
/// that `uv` would not see, else `wanted` itself, which lets `uv` fetch it.
pub(super) async fn interpreter(wanted: &str) -> String {
    if uv_sees(wanted).await {
        return wanted.to_owned();
    }
    let found = installs().into_iter().filter_map(|(dir, below)| {
        let names = std::fs::read_dir(&dir).ok()?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let python = dir.join(newest(names, wanted)?).join(below);
        python.is_file().then(|| python.display().to_string())
    });
    found.into_iter().next().unwrap_or_else(|| wanted.to_owned())
}

async fn uv_sees(wanted: &str) -> bool {
    let mut command = Command::new("uv");
    command.args(["python", "find", "--no-project", "--no-python-downloads", wanted]).kill_on_drop(true);
    command.env_remove("VIRTUAL_ENV").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|s| s.success())
}

/// Where version managers keep interpreters, one directory per version, and where the interpreter is below that. Their
/// shims on PATH only know the versions that are switched on, which is why `uv` does not find the others.
fn installs() -> Vec<(PathBuf, &'static str)> {
    let home = env::home_dir().unwrap_or_default();
    let root = |variable: &str, default: &str| env::var_os(variable).map_or_else(|| home.join(default), PathBuf::from);
    [
        root("PYENV_ROOT", ".pyenv").join("versions"),
        root("MISE_DATA_DIR", ".local/share/mise").join("installs/python"),
        root("ASDF_DATA_DIR", ".asdf").join("installs/python"),
    ]
    .map(|dir| (dir, "bin/python3"))
    .into()
}

/// The newest release among `names` that is a `wanted`. Names that are not plain releases (`3.14-dev`, `my-venv`) are left
/// alone.
fn newest(names: impl Iterator<Item = String>, wanted: &str) -> Option<String> {
    let numbers = |text: &str| text.split('.').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>();
    let wanted = numbers(wanted)?;
    names
        .filter_map(|name| Some((numbers(&name)?, name)))
        .filter(|(n, _)| n.starts_with(&wanted))
        .max()
        .map(|(_, name)| name)
}

/// Those of the Debian packages `wanted` that this machine has not.
pub(super) async fn missing_packages(wanted: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for package in wanted {
        // `vim=2:9.0`, `libc6:amd64`
        let name = package.split(['=', ':']).next().unwrap_or(package);
        if !on_path(name) && !installed(name).await {
            missing.push(package.clone());
        }
    }
    missing
}

async fn installed(package: &str) -> bool {
    let mut command = Command::new("dpkg-query");
    command.args(["--show", "--showformat=${db:Status-Status}", "--", package]).kill_on_drop(true);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    // Not on a machine without Debian packages: nothing is known to be there.
    command.output().await.is_ok_and(|o| o.stdout.starts_with(b"installed"))
}

/// Whether there is a program called `name`.
fn on_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    !name.is_empty()
        && Path::new(name).components().count() == 1
        && env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_of_a_version_is_taken() {
        let newest = |wanted: &str| {
            let names = ["3.9.18", "3.12.1", "3.12.10", "3.12.9", "3.13-dev", "3.12-venv", "3.1.0", "system"];
            newest(names.into_iter().map(str::to_owned), wanted)
        };
        assert_eq!(newest("3.12").as_deref(), Some("3.12.10"));
        assert_eq!(newest("3.12.1").as_deref(), Some("3.12.1"));
        assert_eq!(newest("3.1").as_deref(), Some("3.1.0"), "3.12 is not a 3.1");
        assert_eq!(newest("3.13"), None);
        assert_eq!(newest("pypy"), None);
    }

    #[tokio::test]
    async fn what_is_missing_is_named_as_it_was_asked_for() {
        let wanted = ["sh".to_owned(), "no-such-package-anywhere=1:2".to_owned(), "../bin/sh".to_owned()];
        assert_eq!(missing_packages(&wanted).await, wanted[1..]);
    }
}
