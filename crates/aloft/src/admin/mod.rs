//! `aloft <verb> <noun>`: the administrator's commands. Each asks a running server over its port, as any client would.
//!
//! To add a noun: a file with its arguments and one function per verb, and an arm in the enums of the verbs it has.

mod client;
mod flags;
mod limits;
pub(crate) mod output;
mod queue;
mod worker;

use clap::Subcommand;

pub(crate) use self::client::block_on;

use crate::exit::Exit;

/// `aloft create <noun>`.
#[derive(Subcommand)]
pub(crate) enum Create {
    /// Create a queue. The same one again is no error.
    Queue(queue::CreateArgs),
}

/// `aloft get <noun>`.
#[derive(Subcommand)]
pub(crate) enum Get {
    /// Show one queue or all of them, with what they hold now.
    #[command(alias = "queues")]
    Queue(queue::GetArgs),
    /// Show what is limited per project and domain.
    #[command(alias = "limit")]
    Limits(limits::GetArgs),
    /// Show the workers: who runs tasks, what they hold, and whether they are heard of.
    #[command(alias = "workers")]
    Worker(worker::GetArgs),
}

/// `aloft update <noun>`.
#[derive(Subcommand)]
pub(crate) enum Update {
    /// Change what a queue declares, or whether it takes work. What is not named stays as it is.
    Queue(queue::UpdateArgs),
    /// Change the limits of a project, or of a domain of it. What is not named stays as it is.
    #[command(alias = "limit")]
    Limits(limits::UpdateArgs),
}

/// `aloft delete <noun>`.
#[derive(Subcommand)]
pub(crate) enum Delete {
    /// Delete a queue that holds nothing. `aloft undelete queue` brings it back.
    Queue(queue::DeleteArgs),
}

/// `aloft undelete <noun>`.
#[derive(Subcommand)]
pub(crate) enum Undelete {
    /// Bring a deleted queue back. It takes work once it is made active.
    Queue(queue::UndeleteArgs),
}

impl Create {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Queue(args) => client::block_on(queue::create(args)),
        }
    }
}

impl Get {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Queue(args) => client::block_on(queue::get(args)),
            Self::Limits(args) => client::block_on(limits::get(args)),
            Self::Worker(args) => client::block_on(worker::get(args)),
        }
    }
}

impl Update {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Queue(args) => client::block_on(queue::update(args)),
            Self::Limits(args) => client::block_on(limits::update(args)),
        }
    }
}

impl Delete {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Queue(args) => client::block_on(queue::delete(args)),
        }
    }
}

impl Undelete {
    pub(crate) fn run(self) -> Result<(), Exit> {
        match self {
            Self::Queue(args) => client::block_on(queue::undelete(args)),
        }
    }
}
