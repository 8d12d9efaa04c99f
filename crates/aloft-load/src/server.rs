//! Servers in processes of their own, started, looked at and killed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use aloft_flyteidl2::flyteidl2::project::{ListProjectsRequest, ListProjectsResponse};
use aloft_sim::door::Door;
use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{machine, scenarios::Setting, worker::Handed};

/// Longest start.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs. It is killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it is reached.
    pub(crate) url: String,
    /// What it says, and what the servers before it on the same data said.
    log: Option<(PathBuf, usize)>,
}

impl Server {
    /// Starts the load's own server on `store` with these flags.
    pub(crate) async fn load(store: &str, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--store", store]).args(flags).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn()?;
        let out = child.stdout.take().context("no output")?;
        let mut lines = BufReader::new(out).lines();
        let Some(line) = lines.next_line().await? else { bail!("the server did not start") };
        let port = line.strip_prefix("port ").context("the server said no port")?;
        Ok(Self { child, url: format!("http://127.0.0.1:{port}"), log: None })
    }

    /// Starts the real server on a data directory; returns how long it took until its first answer.
    pub(crate) async fn real(setting: &Setting, data: &Path, database: &str) -> Result<(Self, Duration)> {
        let aloft: &PathBuf = setting.aloft.as_ref().context("--aloft names the real server")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = data.with_extension("log");
        let said = std::fs::read(&path).map_or(0, |said| said.len());
        let log = std::fs::File::options().create(true).append(true).open(&path)?;
        let mut command = Command::new(aloft);
        command.arg("server").arg("--data-dir").arg(data).args(["--port", &port.to_string()]);
        command.args(["--database-url", database]);
        if let Some(python) = &setting.python {
            command.arg("--python").arg(python);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        let child = command.kill_on_drop(true).spawn()?;
        let mut server = Self { child, url: format!("http://127.0.0.1:{port}"), log: Some((path, said)) };
        server.answers(begun).await?;
        Ok((server, begun.elapsed()))
    }

    /// Waits for the first answer.
    async fn answers(&mut self, begun: Instant) -> Result<()> {
        let door = Door::port(&self.url);
        let request = ListProjectsRequest::default();
        loop {
            let answer: Result<ListProjectsResponse, _> =
                door.unary("project.ProjectService/ListProjects", &request, &[]).await;
            if answer.is_ok() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the server did not answer within {PATIENCE:?}: {answer:?}");
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    /// Waits until its worker says that it has found again what it held.
    pub(crate) async fn found_again(&self, patience: Duration) -> Result<()> {
        let (path, begins) = self.log.as_ref().context("only the real server says that")?;
        let begun = Instant::now();
        while begun.elapsed() < patience {
            let said = std::fs::read(path)?;
            if String::from_utf8_lossy(&said[*begins.min(&said.len())..]).contains("is found again") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bail!("the worker did not find again what it held within {patience:?}")
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Seconds of CPU that it has used.
    pub(crate) fn cpu(&self) -> f64 {
        machine::cpu(self.pid())
    }

    /// MB of memory: now, and at most.
    pub(crate) fn memory(&self) -> (f64, f64) {
        machine::memory(self.pid())
    }

    /// Kills it as a crash does.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Lets it end in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        self.child.wait().await?;
        Ok(())
    }

    /// When actions were handed out and ended, as its worker saw it, since the last call.
    pub(crate) async fn handed(&self) -> Result<Vec<Handed>> {
        let address = self.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = "GET /load/handed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await?;
        let at = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no answer")? + 4;
        let head = String::from_utf8_lossy(&answer[..at]).to_ascii_lowercase();
        if !head.contains("content-length") {
            bail!("an answer without a length: {head}");
        }
        Ok(serde_json::from_slice(&answer[at..])?)
    }
}
