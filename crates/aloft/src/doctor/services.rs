//! What Aloft works with: the database, the object store, a server that runs.

use std::{
    fs,
    net::{IpAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use aloft_objects::{Keys, Objects};
use aloft_store::StoreError;
use aloft_store_sqlite::inspect;
use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, Uri, header},
};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jiff::Timestamp;

use super::Finding;
use crate::{
    clock::clock,
    config::{Config, Postgres},
    store::postgres_options,
};

/// The wait for a server on a port.
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that differs by more than this makes times of runs look odd.
const ODD_SECONDS: i64 = 5;

/// A clock that differs by more than this makes signatures invalid: object stores allow a quarter of an hour.
const BROKEN_SECONDS: i64 = 300;

/// Whether a SQLite file can be used.
pub(super) fn sqlite(path: &Path) -> Finding {
    const CHECK: &str = "database";
    let shown = path.display();
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Finding::ok(CHECK, format!("{shown} is made at the first start"));
        }
        Err(e) => return Finding::fail(CHECK, format!("{shown} cannot be read: {e}"), "check its permissions"),
        Ok(_) => {}
    }
    match inspect(path) {
        Ok((found, known)) if found == known => Finding::ok(CHECK, format!("{shown} has schema {found}")),
        Ok((found, known)) => Finding::warn(
            CHECK,
            format!("{shown} has schema {found}, this Aloft has {known}"),
            "it is brought up at the next start; older Alofts cannot use it then, so keep a backup",
        ),
        Err(error @ StoreError::Newer { .. }) => {
            Finding::fail(CHECK, format!("{shown}: {error}"), "use the newer Aloft")
        }
        Err(error @ StoreError::Corrupt(_)) => Finding::fail(CHECK, format!("{shown}: {error}"), "restore a backup"),
        Err(error) => Finding::fail(CHECK, format!("{shown}: {error}"), "check the disk and the permissions"),
    }
}

/// Whether a Postgres answers and has a schema that can be used.
pub(super) async fn postgres(place: &Postgres) -> Finding {
    const CHECK: &str = "database";
    let shown = place.shown();
    let begun = Instant::now();
    let found = match aloft_store_postgres::inspect(place.url.expose(), &postgres_options(place)).await {
        Ok(found) => found,
        Err(error) => {
            let remedy = "check that Postgres runs there, the role, its password, pg_hba.conf, and what sslmode asks of its \
                          certificate (docs/configuration.md, \"TLS to Postgres\")";
            return Finding::fail(CHECK, format!("{shown}: {error}"), remedy);
        }
    };
    let server = format!("{shown}: Postgres {} in {} ms", found.server, begun.elapsed().as_millis());
    match found.schema {
        None => Finding::ok(CHECK, format!("{server}; its tables are made at the first start")),
        Some(schema) if schema == found.known => Finding::ok(CHECK, format!("{server}, schema {schema}")),
        Some(schema) if schema < found.known => Finding::warn(
            CHECK,
            format!("{server}, schema {schema}, this Aloft has {}", found.known),
            "it is brought up at the next start; the version before can go on beside it, older ones cannot",
        ),
        Some(schema) => Finding::warn(
            CHECK,
            format!("{server}, schema {schema}, this Aloft knows {}", found.known),
            "upgrade this Aloft: a newer one has been here",
        ),
    }
}

/// Whether the object store can be written, read and deleted in.
pub(super) async fn object_store(directory: &Path, bucket: &str) -> Finding {
    const CHECK: &str = "object store";
    let shown = directory.display();
    if !directory.exists() {
        return Finding::ok(CHECK, format!("{shown} is made at the first start"));
    }
    let name = format!("aloft-doctor/{:016x}", rand::random::<u64>());
    let tried = async {
        // Nothing is signed here, so any key does.
        let objects = Objects::local(directory, bucket, "http://localhost", Keys::new([0; 32]))?;
        let (uri, content) = (objects.uri(&name)?, bytes::Bytes::from(name.clone().into_bytes()));
        objects.put(&uri, content.clone()).await?;
        let read = objects.get(&uri, 1024).await;
        objects.delete(&uri).await?;
        read.map(|read| read == content)
    };
    match tried.await {
        Ok(true) => Finding::ok(CHECK, format!("s3://{bucket} in {shown}: written, read and deleted")),
        Ok(false) => {
            Finding::fail(CHECK, format!("{shown} gives back other bytes than were written"), "check the disk")
        }
        Err(error) => {
            Finding::fail(CHECK, format!("{shown}: {error}"), "check its permissions and the room on its disk")
        }
    }
}

/// What answers on a port.
#[derive(Clone, Debug)]
enum Port {
    Nobody,
    /// An Aloft of this version, with its answer.
    Aloft {
        version: String,
        status: StatusCode,
        text: String,
        headers: HeaderMap,
    },
    Another,
}

/// Whether the ports are free or Aloft's, and how the server is that runs.
pub(super) async fn server(config: &Config, dir: &Path, endpoint: Option<&str>) -> Vec<Finding> {
    let written = || fs::read_to_string(dir.join("endpoint")).ok().map(|t| t.trim().to_owned());
    let port = config.listen.port;
    let url = match (endpoint, port) {
        (Some(url), _) => url.trim_end_matches('/').to_owned(),
        (None, 0) => written().unwrap_or_default(),
        (None, port) => at(&config.listen.addresses, port),
    };
    if url.is_empty() {
        return vec![
            Finding::ok("port", "any that is free is chosen at the first start"),
            Finding::skip("clock", "no server runs to compare with"),
        ];
    }
    let found = ask(&url).await;
    let mut findings = vec![match (&found, endpoint) {
        (Port::Nobody, Some(_)) => Finding::fail(
            "port",
            format!("nothing answers at {url}"),
            "start the server, or check the address and the network",
        ),
        (Port::Nobody, None) if port == 0 => Finding::ok("port", "no server runs"),
        (Port::Nobody, None) => free("port", &config.listen.addresses, port, "listen.port"),
        (Port::Another, _) => taken("port", &url, "listen.port"),
        (Port::Aloft { version, .. }, _) => served("port", &url, version),
    }];
    if let Port::Aloft { status, text, headers, .. } = &found {
        findings.push(match status.is_success() {
            true => Finding::ok("readiness", "ready"),
            false => Finding::fail("readiness", text.trim(), "the server's log says more"),
        });
        findings.push(match headers.get(header::DATE).and_then(|d| d.to_str().ok()) {
            Some(date) => skew(date, clock().as_micros() / 1_000_000),
            None => Finding::skip("clock", "the server does not say its time"),
        });
    } else {
        findings.push(Finding::skip("clock", "no server runs to compare with"));
    }
    let port = config.debug.port;
    if config.debug.enabled && port != 0 && endpoint.is_none() {
        let url = at(&config.debug.addresses, port);
        findings.push(match ask(&url).await {
            Port::Nobody => free("debug port", &config.debug.addresses, port, "debug.port"),
            Port::Another => taken("debug port", &url, "debug.port"),
            Port::Aloft { version, .. } => served("debug port", &url, &version),
        });
    }
    findings
}

/// How this machine reaches a port that listens on `addresses`.
fn at(addresses: &[IpAddr], port: u16) -> String {
    let authority = crate::node::local_authority(addresses, port);
    format!("http://{authority}")
}

fn served(check: &'static str, url: &str, version: &str) -> Finding {
    let found = format!("{url} is served by Aloft {version}");
    match version == env!("CARGO_PKG_VERSION") {
        true => Finding::ok(check, found),
        false => {
            Finding::warn(check, format!("{found}, and this is {}", env!("CARGO_PKG_VERSION")), "use the same version")
        }
    }
}

fn taken(check: &'static str, url: &str, key: &str) -> Finding {
    Finding::fail(check, format!("another program answers at {url}"), format!("stop that one, or choose another {key}"))
}

/// Whether a port that nobody answers on can be listened on.
fn free(check: &'static str, addresses: &[IpAddr], port: u16, key: &str) -> Finding {
    let Some(first) = addresses.first() else { return Finding::skip(check, "there is no address") };
    match TcpListener::bind((*first, port)) {
        Ok(_) => Finding::ok(check, format!("port {port} is free; no server runs")),
        Err(e) => Finding::fail(
            check,
            format!("port {port} of {first} cannot be listened on: {e}"),
            format!("choose another {key}"),
        ),
    }
}

async fn ask(url: &str) -> Port {
    let Ok(uri) = format!("{url}/readyz").parse::<Uri>() else { return Port::Nobody };
    let Ok(request) = Request::get(uri).body(Body::empty()) else { return Port::Nobody };
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = match tokio::time::timeout(PATIENCE, client.request(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.is_connect() => return Port::Nobody,
        // It took the connection and does not speak HTTP, or not in time.
        Ok(Err(_)) | Err(_) => return Port::Another,
    };
    let (parts, body) = answer.into_parts();
    let server = parts.headers.get(header::SERVER).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let Some(version) = server.strip_prefix("aloft/").map(str::to_owned) else { return Port::Another };
    let read = axum::body::to_bytes(Body::new(body), 4096);
    let text = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    Port::Aloft { version, status: parts.status, text, headers: parts.headers }
}

/// How far this clock (`now`, in seconds) is from a server's.
fn skew(date: &str, now: i64) -> Finding {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date);
    let Ok(theirs) = parsed.map(Timestamp::as_second) else {
        return Finding::skip("clock", "the server's time cannot be read");
    };
    let (seconds, direction) = ((now - theirs).abs(), if now > theirs { "ahead of" } else { "behind" });
    let found = format!("this clock is {seconds} s {direction} the server's");
    match seconds {
        0..=1 => Finding::ok("clock", "as the server's"),
        2..=ODD_SECONDS => Finding::ok("clock", found),
        s if s <= BROKEN_SECONDS => Finding::warn("clock", found, "set both clocks by NTP"),
        _ => Finding::fail("clock", found, "set both clocks by NTP: links and credentials are refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn clocks_are_compared() {
        // 784111777 s after the epoch.
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (now, state, says) in [
            (784_111_777, State::Ok, "as the server's"),
            (784_111_774, State::Ok, "3 s behind"),
            (784_111_837, State::Warn, "60 s ahead of"),
            (784_115_377, State::Fail, "3600 s ahead of"),
        ] {
            let finding = skew(date, now);
            assert!(finding.state == state && finding.found.contains(says), "{finding:?}");
        }
        assert_eq!(skew("noon", 0).state, State::Skip);
    }

    #[tokio::test]
    async fn an_object_store_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        assert!(object_store(&dir.path().join("later"), "data").await.found.contains("first start"));
        let objects = dir.path().join("objects");
        fs::create_dir(&objects).unwrap();
        let finding = object_store(&objects, "data").await;
        assert_eq!(finding.state, State::Ok, "{finding:?}");
        fs::write(dir.path().join("file"), "").unwrap();
        let finding = object_store(&dir.path().join("file"), "data").await;
        assert_eq!(finding.state, State::Fail, "{finding:?}");
    }

    #[test]
    fn a_database_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aloft.db");
        assert!(sqlite(&path).found.contains("first start"));
        assert!(!path.exists(), "nothing is made");
        drop(aloft_store_sqlite::SqliteStore::open(&path, std::sync::Arc::new(clock)).unwrap());
        assert_eq!(sqlite(&path).state, State::Ok);
        let other = dir.path().join("other.db");
        fs::write(&other, "this is no database, whatever its name says").unwrap();
        assert_eq!(sqlite(&other).state, State::Fail);
    }

    #[tokio::test]
    async fn a_port_is_free_or_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.0.1".parse().unwrap()];
        assert_eq!(free("port", &addresses, port, "listen.port").state, State::Fail);
        drop(listener);
        assert_eq!(free("port", &addresses, port, "listen.port").state, State::Ok);
        assert!(matches!(ask(&format!("http://127.0.0.1:{port}")).await, Port::Nobody));
    }
}
