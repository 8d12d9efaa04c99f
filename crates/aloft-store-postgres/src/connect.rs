//! New connections, each with the password and the certificates as they are then.

use std::{pin::Pin, sync::Arc, time::Duration};

use aloft_store::StoreError;
use deadpool_postgres::Connect;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, Connection, Error, Socket,
    config::{Host, SslMode},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    Options, Password,
    error::describe,
    tls::{Terms, split_address},
};

/// What an address says, and what it says of TLS.
fn address(url: &str) -> Result<(Config, Terms), String> {
    let (rest, terms) = Terms::take(url)?;
    let config = rest.parse().map_err(|e: tokio_postgres::Error| {
        // It may hold a password, so it is not repeated; nor are parameters that may be the rest of a password.
        let form = "it is not written as postgres://user:password@host:5432/name?parameters";
        if split_address(url).1.contains('@') {
            format!("{form}; write an @ in a password or a parameter as %40")
        } else {
            format!("{form} ({})", describe(&e))
        }
    })?;
    Ok((config, terms))
}

/// Whether `url` can be the address of a database: its form, its parameters and what it says of TLS.
///
/// # Errors
/// What is wrong and what to write instead, without a password.
pub fn check_address(url: &str) -> Result<(), String> {
    address(url).map(drop)
}

/// A connection, encrypted or not.
type Opening = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Opens connections to one database.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Config,
    password: Option<Password>,
    terms: Terms,
    /// By the certificates that were read last.
    tls: Arc<Mutex<MakeRustlsConnect>>,
}

impl Connector {
    /// # Errors
    /// [`StoreError::Unavailable`] if `url` is no address of a database, or the files that it names cannot be used.
    pub(crate) fn to(url: &str, options: &Options) -> Result<Self, StoreError> {
        let unusable = |e| StoreError::Unavailable(format!("the database's address cannot be used: {e}"));
        let (mut config, terms) = address(url).map_err(unusable)?;
        // A transaction that its client has forgotten must not keep others waiting; nor may one that hangs.
        // Statements look up rows by their keys: one plan for each, whatever its values and however old the statistics. Lists are
        // planned by theirs (`Reader::listing`). And who counts children (`0006_cheaper.sql`).
        let settings = format!(
            "-c statement_timeout={} -c idle_in_transaction_session_timeout=10000 -c client_min_messages=warning \
             -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off \
             -c aloft.child_counts=kept",
            options.statement_timeout.as_millis()
        );
        let own = config.get_options().map(|o| format!("{o} ")).unwrap_or_default();
        config.options(format!("{own}{settings}"));
        config.application_name("aloft");
        config.connect_timeout(options.wait);
        config.keepalives_idle(Duration::from_secs(15));
        config.tcp_user_timeout(Duration::from_secs(15));
        // Nobody listens in on a socket of the same machine, and Postgres has no TLS there.
        let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        config.ssl_mode(if local { SslMode::Disable } else { terms.mode });
        let first = MakeRustlsConnect::new(terms.config().map_err(unusable)?);
        Ok(Self { config, password: options.password.clone(), terms, tls: Arc::new(Mutex::new(first)) })
    }

    /// A connection that its caller drives.
    pub(crate) async fn open(&self) -> Result<(Client, Opening), Error> {
        let mut config = self.config.clone();
        if let Some(password) = &self.password {
            match password() {
                Ok(password) => drop(config.password(password)),
                // Without one the server says that it wants one.
                Err(error) => tracing::error!(%error, "the password of the database cannot be read"),
            }
        }
        if self.terms.has_files() {
            match self.terms.config() {
                Ok(now) => *self.tls.lock() = MakeRustlsConnect::new(now),
                Err(error) => {
                    tracing::error!(%error, "the certificates for the database stay those that were read before")
                }
            }
        }
        let tls = self.tls.lock().clone();
        config.connect(tls).await
    }
}

/// A connection and what drives it.
type Opened = Result<(Client, JoinHandle<()>), Error>;

impl Connect for Connector {
    fn connect(&self, _config: &Config) -> Pin<Box<dyn Future<Output = Opened> + Send + '_>> {
        Box::pin(async move {
            let (client, connection) = self.open().await?;
            let driven = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to Postgres ended");
                }
            });
            Ok((client, driven))
        })
    }
}
