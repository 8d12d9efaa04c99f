//! What the machine has: directories, room, programs.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::process::Command;

use super::Finding;
use crate::tools;

/// With less room than this, runs fail soon: logs and environments of tasks take some.
const TIGHT: u64 = 2 << 30;

/// With less room than this, the database may not start.
const FULL: u64 = 200 << 20;

/// The wait for a program to say its version: an interpreter on a busy machine takes a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the data directory can be used.
pub(super) fn directory(dir: &Path) -> Finding {
    const CHECK: &str = "data directory";
    let there = nearest(dir);
    let shown = dir.display();
    if there != dir {
        if !there.is_dir() {
            let found = format!("{} is not a directory, so {shown} cannot be made", there.display());
            return Finding::fail(CHECK, found, "name another directory with --data-dir");
        }
        // Making it is left to the first start.
        return match writable(&there) {
            Ok(()) => Finding::ok(CHECK, format!("{shown} is made at the first start")),
            Err(e) => Finding::fail(
                CHECK,
                format!("{shown} cannot be made: {e}"),
                "name a directory of your own with --data-dir",
            ),
        };
    }
    if !dir.is_dir() {
        return Finding::fail(CHECK, format!("{shown} is not a directory"), "name a directory with --data-dir");
    }
    match writable(dir) {
        Ok(()) => Finding::ok(CHECK, format!("{shown} can be written")),
        Err(e) => Finding::fail(
            CHECK,
            format!("{shown} cannot be written: {e}"),
            format!("give the user who runs Aloft {shown}, or free some space"),
        ),
    }
}

/// The path itself if it exists, else the nearest above it that does.
fn nearest(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|p| p.symlink_metadata().is_ok());
    found.filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Writes a file and removes it.
fn writable(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".aloft-doctor-{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().create_new(true).write(true).open(&path)?;
    let written = file.write_all(b"aloft doctor\n").and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

/// Whether the disk of `path` has room.
pub(super) fn disk(check: &'static str, path: &Path) -> Finding {
    let there = nearest(path);
    match nix::sys::statvfs::statvfs(&there) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            // Some file systems make files as they need them and count none.
            let files = (stat.files() > 0).then(|| stat.files_available());
            room(check, &there, free, files)
        }
        Err(e) => Finding::warn(check, format!("cannot be looked at on {}: {e}", there.display()), "look with `df`"),
    }
}

fn room(check: &'static str, path: &Path, free: u64, files: Option<u64>) -> Finding {
    let amount = match free >> 20 {
        mib @ 0..=1023 => format!("{mib} MiB"),
        mib => format!("{:.1} GiB", mib as f64 / 1024.0),
    };
    let found = format!("{amount} on the disk of {}", path.display());
    let remedy = "free some space, or choose another disk";
    if files.is_some_and(|f| f < 1000) {
        return Finding::fail(
            check,
            format!("{found}, and no room for more files"),
            "remove files, or choose another disk",
        );
    }
    match free {
        0..FULL => Finding::fail(check, found, remedy),
        FULL..TIGHT => Finding::warn(check, found, remedy),
        _ => Finding::ok(check, found),
    }
}

/// Whether there is what tasks run with: `tar`, Python, uv.
pub(super) async fn programs(python: Option<&str>) -> Vec<Finding> {
    let tar = match tools::on_path("tar") {
        Some(path) => Finding::ok("tar", path.display().to_string()),
        None => Finding::fail(
            "tar",
            "is not on PATH, and tasks unpack their code with it",
            "install it (Debian: apt-get install tar)",
        ),
    };
    let uv = match tools::on_path("uv") {
        Some(path) => version("uv", &path).await,
        None => {
            Finding::warn("uv", "is not on PATH, and images become environments with it", "install it: pip install uv")
        }
    };
    let interpreter = match python {
        Some(named) => tools::program(Path::new(named)).ok_or_else(|| format!("{named} is not a program")),
        None => {
            tools::on_path("python3").or_else(|| tools::on_path("python")).ok_or_else(|| "is not on PATH".to_owned())
        }
    };
    let interpreter = match interpreter {
        Ok(path) => version("python", &path).await,
        // uv fetches one.
        Err(why) if python.is_none() && uv.state == super::State::Ok => {
            Finding::ok("python", format!("{why}; uv makes one"))
        }
        Err(why) => Finding::fail("python", why, "install Python or uv, or name an interpreter with executor.python"),
    };
    vec![tar, interpreter, uv]
}

async fn version(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    let remedy = format!("run `{shown} --version` by hand, and install it anew");
    let asked = Command::new(path).arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let line: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
            Finding::ok(check, format!("{shown}: {line}"))
        }
        Ok(Ok(output)) => Finding::fail(check, format!("{shown} does not run: {}", output.status), remedy),
        Ok(Err(e)) => Finding::fail(check, format!("{shown} does not run: {e}"), remedy),
        Err(_) => {
            Finding::fail(check, format!("{shown} has not said its version within {} s", PATIENCE.as_secs()), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn room_is_judged() {
        let of = |free, files| room("disk", Path::new("/d"), free, files).state;
        assert_eq!(of(10 << 30, Some(100_000)), State::Ok);
        assert_eq!(of(10 << 30, None), State::Ok);
        assert_eq!(of(1 << 30, None), State::Warn);
        assert_eq!(of(0, None), State::Fail);
        assert_eq!(of(10 << 30, Some(3)), State::Fail);
        assert_eq!(room("disk", Path::new("/d"), 5 << 29, None).found, "2.5 GiB on the disk of /d");
        assert_eq!(room("disk", Path::new("/d"), 5 << 20, None).found, "5 MiB on the disk of /d");
    }

    #[test]
    fn a_directory_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(dir.path()).state, State::Ok);
        let later = directory(&dir.path().join("a/b"));
        assert!(later.state == State::Ok && later.found.contains("first start"), "{later:?}");
        fs::write(dir.path().join("file"), "").unwrap();
        for wrong in ["file", "file/below"] {
            let finding = directory(&dir.path().join(wrong));
            assert!(finding.state == State::Fail && finding.remedy.contains("--data-dir"), "{finding:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
