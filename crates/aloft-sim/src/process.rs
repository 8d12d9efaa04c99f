//! A server that runs as a process of its own, reached over its port and killed at will.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a start or an orderly end may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at a process that starts or ends.
const LOOK: Duration = Duration::from_millis(3);

/// `aloft dev` on a data directory of its own.
pub struct Process {
    binary: PathBuf,
    dir: PathBuf,
    child: Option<Child>,
    url: String,
    /// How often it was restarted.
    lives: u32,
}

impl Process {
    /// Starts `binary` with its data below `dir`.
    ///
    /// # Errors
    /// Why it does not serve.
    pub async fn start(binary: &Path, dir: &Path) -> Result<Self, String> {
        let mut process =
            Self { binary: binary.to_owned(), dir: dir.to_owned(), child: None, url: String::new(), lives: 0 };
        process.begin().await?;
        Ok(process)
    }

    async fn begin(&mut self) -> Result<(), String> {
        let words = |e: std::io::Error| format!("{} cannot be started: {e}", self.binary.display());
        // A server that was killed left it behind.
        let endpoint = self.data().join("endpoint");
        fs::remove_file(&endpoint).ok();
        let log = File::options().create(true).append(true).open(self.log()).map_err(words)?;
        let errors = log.try_clone().map_err(words)?;
        let child = Command::new(&self.binary)
            .args(["dev", "--port", "0", "--python", "python3", "--data-dir"])
            .arg(self.data())
            .env("HOME", &self.dir)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(words)?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("the server ended with {status}\n{}", tail(&self.dir)));
            }
            // Written when it listens.
            if let Ok(url) = fs::read_to_string(&endpoint)
                && !url.trim().is_empty()
            {
                self.url = url.trim().replace("localhost", "127.0.0.1");
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the server does not serve after {PATIENCE:?}\n{}", tail(&self.dir)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        self.data().join("aloft.db")
    }

    /// Every file in which no value of a user may be.
    pub fn files_without_values(&self) -> Vec<PathBuf> {
        let database = self.database();
        vec![database.with_extension("db-wal"), database, self.log()]
    }

    /// Kills it as a crash or the kernel would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// If it does not, or says that something went wrong.
    pub async fn stop(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("the server ended with {status}\n{}", tail(&self.dir))),
                Ok(None) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Ok(None) | Err(_) => {
                    child.kill().ok();
                    child.wait().ok();
                    return Err(format!("the server does not stop after {PATIENCE:?}\n{}", tail(&self.dir)));
                }
            }
        }
    }

    /// Ends it, every second time by killing it, and starts it again.
    ///
    /// # Errors
    /// If it does not end in order or does not come back.
    pub async fn restart(&mut self) -> Result<(), String> {
        self.lives += 1;
        if self.lives.is_multiple_of(2) {
            self.stop().await?;
        } else {
            self.kill();
        }
        self.begin().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a server's log.
fn tail(dir: &Path) -> String {
    let text = fs::read_to_string(dir.join("server.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
