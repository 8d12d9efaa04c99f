//! The server that is driven, wherever it runs.

use std::path::{Path, PathBuf};

use aloft_core::Time;

use crate::{
    door::Door,
    draw::Hands,
    process::Process,
    rules::{Check, durable::rule_3_a_restart_finds_its_database},
    server::Server,
};

/// A server that can be restarted.
pub enum Host {
    /// In this process, with our time, our workers and our reconcilers.
    Inside(Box<Server>),
    /// A process of its own, with a worker and a clock of its own.
    Port(Process),
}

impl Host {
    /// Who moves its tasks.
    pub fn hands(&self) -> Hands {
        match self {
            Self::Inside(_) => Hands::Ours,
            Self::Port(_) => Hands::Theirs,
        }
    }

    /// The way in.
    pub fn door(&self) -> Door {
        match self {
            Self::Inside(server) => server.door().clone(),
            Self::Port(process) => Door::port(process.url()),
        }
    }

    /// The server's time, where it is ours to know.
    pub fn now(&self) -> Time {
        match self {
            Self::Inside(server) => server.clock().now(),
            Self::Port(_) => Time::default(),
        }
    }

    /// Lets time pass.
    pub async fn wait(&self, millis: u16) {
        match self {
            Self::Inside(server) => server.clock().advance(u64::from(millis)),
            Self::Port(_) => tokio::time::sleep(std::time::Duration::from_millis(u64::from(millis))).await,
        }
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        match self {
            Self::Inside(server) => server.path().to_owned(),
            Self::Port(process) => process.database(),
        }
    }

    /// Every file in which no value of a user may be.
    pub fn files_without_values(&self) -> Vec<PathBuf> {
        match self {
            Self::Inside(server) => vec![server.path().with_extension("db-wal"), server.path().to_owned()],
            Self::Port(process) => process.files_without_values(),
        }
    }

    /// The server in this process, if it is.
    pub fn inside(&self) -> Option<&Server> {
        match self {
            Self::Inside(server) => Some(server),
            Self::Port(_) => None,
        }
    }

    /// Kills it at once, if it is a process of its own.
    pub fn kill(&mut self) {
        match self {
            Self::Inside(_) => {}
            Self::Port(process) => process.kill(),
        }
    }

    /// Stops it and starts it again; `between` can look at the database of a server in this process.
    ///
    /// # Errors
    /// If it does not come back.
    pub async fn restart(&mut self, between: impl FnOnce(&Path)) -> Check {
        let restarted = match self {
            Self::Inside(server) => server.restart(between).await.map_err(|e| e.to_string()),
            Self::Port(process) => process.restart().await,
        };
        rule_3_a_restart_finds_its_database(restarted)
    }

    /// Ends it for good.
    ///
    /// # Errors
    /// If it does not end in order.
    pub async fn stop(&mut self) -> Check {
        let stopped = match self {
            Self::Inside(_) => Ok(()),
            Self::Port(process) => process.stop().await,
        };
        rule_3_a_restart_finds_its_database(stopped)
    }
}
