//! Connections to a real Postgres that wants TLS.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aloft_core::Time;
use aloft_store::Store as _;
use aloft_store_postgres::{Options, PostgresStore, inspect};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::server::Server;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, in PEM.
fn certified(by: &Authority, names: &[&str], common: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common);
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
}

/// A Postgres on a port that takes connections with TLS only, and from `known` only those with a certificate of it.
struct Encrypted {
    server: Server,
    port: u16,
    ca: Authority,
}

impl Encrypted {
    async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_is = format!("port={port}");
        let server = Server::start(&["listen_addresses=127.0.0.1", &port_is]);
        let ca = authority("a test's own");
        let this = Self { server, port, ca };
        this.certify(&["localhost"]).await;
        this
    }

    fn data(&self) -> PathBuf {
        self.server.dir.path().join("data")
    }

    /// A file of Postgres, which must be its own.
    fn put(&self, name: &str, text: &str) {
        let (path, data) = (self.data().join(name), self.data().metadata().unwrap());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(data.uid()), Some(data.gid())).unwrap();
    }

    /// Gives the server a certificate for these names, and lets it read everything anew.
    async fn certify(&self, names: &[&str]) {
        let (certificate, key) = certified(&self.ca, names, "postgres", ExtendedKeyUsagePurpose::ServerAuth);
        self.put("server.crt", &certificate);
        self.put("server.key", &key);
        self.put("root.crt", &self.ca.pem());
        self.put("pg_hba.conf", "local all all trust\nhostssl all known all cert\nhostssl all aloft all trust\n");
        let url = self.local();
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        for set in ["ssl_ca_file = 'root.crt'", "ssl = on"] {
            client.execute(&format!("ALTER SYSTEM SET {set}"), &[]).await.unwrap();
        }
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        drop(client.batch_execute("CREATE ROLE known LOGIN SUPERUSER").await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// Its address on its socket. The port is in the socket's name.
    fn local(&self) -> String {
        let url = self.server.url();
        format!("{}:{}/aloft", url.strip_suffix("/aloft").unwrap(), self.port)
    }

    fn url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}@{host}:{}/aloft?{parameters}", self.port)
    }
}

fn options() -> Options {
    Options { connections: 4, wait: Duration::from_secs(5), ..Options::default() }
}

async fn refused(url: &str) -> String {
    inspect(url, &options()).await.expect_err(url).to_string()
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_trusted_as_the_address_says() {
    let postgres = Encrypted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ours = file(dir.path(), "ours.crt", &postgres.ca.pem());
    let others = file(dir.path(), "others.crt", &authority("another").pem());
    let url = |host, parameters: &str| postgres.url("aloft", host, parameters);

    // Encrypted, for whoever it is; and the server takes nothing else.
    for parameters in ["", "sslmode=prefer", "sslmode=require"] {
        let found = inspect(&url("127.0.0.1", parameters), &options()).await;
        assert!(found.is_ok(), "{parameters}: {found:?}");
    }
    let plain = refused(&url("127.0.0.1", "sslmode=disable")).await;
    assert!(plain.contains("no encryption"), "{plain}");

    // By its authority, and by its name.
    for (host, parameters) in [("127.0.0.1", "verify-ca"), ("localhost", "verify-ca"), ("localhost", "verify-full")] {
        let url = url(host, &format!("sslmode={parameters}&sslrootcert={ours}"));
        let found = inspect(&url, &options()).await;
        assert!(found.is_ok(), "{host} {parameters}: {found:?}");
    }
    let misnamed = refused(&url("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ours}"))).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
    for mode in ["require", "verify-ca", "verify-full"] {
        let unknown = refused(&url("localhost", &format!("sslmode={mode}&sslrootcert={others}"))).await;
        assert!(unknown.contains("UnknownIssuer"), "{mode}: {unknown}");
    }
    // What a system trusts is not what a test made.
    let unknown = refused(&url("localhost", "sslmode=verify-full")).await;
    assert!(unknown.contains("UnknownIssuer") || unknown.contains("this system trusts no certificates"), "{unknown}");
    // The server's own certificate is as good as its authority's.
    let itself = file(dir.path(), "itself.crt", &fs::read_to_string(postgres.data().join("server.crt")).unwrap());
    let pinned = |host, mode| url(host, &format!("sslmode={mode}&sslrootcert={itself}"));
    assert!(inspect(&pinned("localhost", "verify-full"), &options()).await.is_ok());
    assert!(inspect(&pinned("127.0.0.1", "verify-ca"), &options()).await.is_ok());
    let misnamed = refused(&pinned("127.0.0.1", "verify-full")).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");

    // On a socket there is no TLS, whatever is said.
    let local = format!("{}?sslmode=verify-full&sslrootcert={ours}", postgres.local());
    assert!(inspect(&local, &options()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_shows_its_certificate_and_takes_new_ones() {
    let postgres = Encrypted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let roots = file(dir.path(), "roots.crt", &postgres.ca.pem());
    let (certificate, key) = certified(&postgres.ca, &[], "known", ExtendedKeyUsagePurpose::ClientAuth);
    let (cert, key) = (file(dir.path(), "known.crt", &certificate), file(dir.path(), "known.key", &key));
    let full = format!("sslmode=verify-full&sslrootcert={roots}");

    let nobody = refused(&postgres.url("known", "localhost", &full)).await;
    assert!(nobody.contains("certificate"), "{nobody}");
    let url = postgres.url("known", "localhost", &format!("{full}&sslcert={cert}&sslkey={key}"));
    // Old enough at once: every use of a connection opens another.
    let options = Options { lifetime: Duration::ZERO, ..options() };
    let clock = Arc::new(|| Time::from_micros(1_700_000_000_000_000));
    let store = PostgresStore::open(&url, &options, clock.clone()).await.unwrap();
    assert!(store.projects("local").await.unwrap().is_empty());

    // Files that cannot be read leave what was read; such that can be read are taken, without a new start.
    fs::write(dir.path().join("known.crt"), "half a certif").unwrap();
    assert!(store.projects("local").await.is_ok());
    let damaged = refused(&url).await;
    assert!(damaged.contains("sslcert") && damaged.contains("known.crt"), "{damaged}");
    let (stranger, its_key) = certified(&postgres.ca, &[], "somebody", ExtendedKeyUsagePurpose::ClientAuth);
    fs::write(dir.path().join("known.key"), its_key).unwrap();
    fs::write(dir.path().join("known.crt"), stranger).unwrap();
    let now = store.projects("local").await.unwrap_err().to_string();
    assert!(now.contains("certificate authentication failed"), "{now}");
}
