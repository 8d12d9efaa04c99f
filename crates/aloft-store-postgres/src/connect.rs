//! New connections, each with the password as it is then.

use std::pin::Pin;

use deadpool_postgres::Connect;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Connection, Error, NoTls, Socket, tls::NoTlsStream};

use crate::Password;

/// Opens connections to one database.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Config,
    password: Option<Password>,
}

impl Connector {
    pub(crate) fn new(config: Config, password: Option<Password>) -> Self {
        Self { config, password }
    }

    /// A connection that its caller drives.
    pub(crate) async fn open(&self) -> Result<(Client, Connection<Socket, NoTlsStream>), Error> {
        let mut config = self.config.clone();
        if let Some(password) = &self.password {
            match password() {
                Ok(password) => drop(config.password(password)),
                // Without one the server says that it wants one.
                Err(error) => tracing::error!(%error, "the password of the database cannot be read"),
            }
        }
        config.connect(NoTls).await
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
