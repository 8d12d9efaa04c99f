//! Programs of the machine that tasks need.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::exit::{Exit, Kind};

/// Tasks unpack their code with the system's `tar`.
pub(crate) fn check_tools() -> Result<(), Exit> {
    match on_path("tar") {
        Some(_) => Ok(()),
        None => Err(Exit::new(
            Kind::MissingTool,
            "`tar` is not on PATH, and tasks unpack their code with it; install it (Debian: apt-get install tar)",
        )),
    }
}

/// Only that there is something to start with: whether it has `flyte` is found out in the background.
pub(crate) fn check_python(named: Option<&Path>) -> Result<(), Exit> {
    if let Some(path) = named {
        return match program(path) {
            Some(_) => Ok(()),
            None => Err(Exit::new(
                Kind::MissingPython,
                format!(
                    "--python {} is not a program; name a Python interpreter that has `flyte` installed",
                    path.display()
                ),
            )),
        };
    }
    if ["python3", "python", "uv"].iter().any(|name| on_path(name).is_some()) {
        return Ok(());
    }
    Err(Exit::new(
        Kind::MissingPython,
        "there is neither Python nor uv on PATH to run tasks with; install uv (pip install uv), or name an interpreter with \
         --python",
    ))
}

/// A program by its path, or by its name if it is on PATH.
pub(crate) fn program(named: &Path) -> Option<PathBuf> {
    if is_program(named) { Some(named.to_owned()) } else { on_path(&named.to_string_lossy()) }
}

/// The first program of this name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return None;
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
