//! The Postgres engine on a real Postgres: the common suite, and what is its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use aloft_core::Time;
use aloft_store::Store;
use aloft_store_postgres::{Clock, Options, PostgresStore};

fn clock() -> Clock {
    let now = AtomicI64::new(1_700_000_000_000_000);
    Arc::new(move || Time::from_micros(now.fetch_add(1000, Ordering::Relaxed)))
}

/// A server of its own for this program; it ends with it.
struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/postgres.sh");
        // Durability costs the tests time and proves nothing here.
        let process = Command::new(script)
            .arg(dir.path())
            .args(["fsync=off", "max_connections=200", "shared_buffers=64MB"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, dir };
        for _ in 0..600 {
            if server.socket().exists() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("Postgres did not start: see tools/postgres.sh");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    fn url(&self) -> String {
        let host = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://aloft@{host}/aloft")
    }

    /// The address of a schema of its own, empty.
    async fn empty(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (client, connection) = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        format!("{}?options=-c%20search_path%3D{name}", self.url())
    }
}

/// The server that the tests of this program share while any of them runs.
fn shared() -> Arc<Server> {
    static SHARED: parking_lot::Mutex<Weak<Server>> = parking_lot::Mutex::new(Weak::new());
    let mut shared = SHARED.lock();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start());
        *shared = Arc::downgrade(&server);
        server
    })
}

/// Few connections, because many stores are open at once.
fn options() -> Options {
    Options { connections: 5, ..Options::default() }
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(url, &options(), clock()).await.unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let server = shared();
    aloft_store::conformance::run_all(|| async { Arc::new(open(&server.empty().await).await) as Arc<dyn Store> }).await;
}
