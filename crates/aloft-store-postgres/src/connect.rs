//! New connections, each with the password and the certificates as they are then.

use std::{pin::Pin, sync::Arc};

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

use crate::{Password, tls::Terms};

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
    /// [`StoreError::Unavailable`] if the files that the address names cannot be used.
    pub(crate) fn new(mut config: Config, terms: Terms, password: Option<Password>) -> Result<Self, StoreError> {
        // Nobody listens in on a socket of the same machine, and Postgres has no TLS there.
        let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        config.ssl_mode(if local { SslMode::Disable } else { terms.mode });
        let first = terms
            .config()
            .map_err(|e| StoreError::Unavailable(format!("the database's address cannot be used: {e}")))?;
        Ok(Self { config, password, terms, tls: Arc::new(Mutex::new(MakeRustlsConnect::new(first))) })
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
