//! A Postgres for tests.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A server of its own for this program; it ends with it.
pub(crate) struct Server {
    process: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/postgres.sh");
        // Durability costs the tests time and proves nothing here.
        let process = Command::new(script)
            .arg(dir.path())
            .args(["fsync=off", "max_connections=200", "shared_buffers=64MB"])
            .args(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, dir };
        for _ in 0..600 {
            if server.is_ready() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("Postgres did not start: see tools/postgres.sh");
    }

    /// Postgres says so in its lock file.
    fn is_ready(&self) -> bool {
        let lock = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).unwrap_or_default();
        lock.lines().last().is_some_and(|line| line.trim() == "ready")
    }

    pub(crate) fn url(&self) -> String {
        let host = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://aloft@{host}/aloft")
    }

    /// The address of a schema of its own, empty.
    pub(crate) async fn empty(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (client, connection) = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        format!("{}?options=-c%20search_path%3D{name}", self.url())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
