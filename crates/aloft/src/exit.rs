//! Why Aloft ended, as a sentence with its remedy and an exit code of its own. Scripts may rely on the codes: never
//! renumber.

use std::fmt;

/// A reason to end with a code other than 0.
#[derive(Debug)]
pub(crate) struct Exit {
    kind: Kind,
    message: String,
}

/// Exit codes. 2 is clap's, for wrong arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Anything else.
    Other = 1,
    /// Another instance uses the data directory.
    Locked = 10,
    /// The port is taken.
    PortInUse = 11,
    /// No room on the disk.
    DiskFull = 12,
    /// The database is damaged or not ours.
    Corrupt = 13,
    /// The database was written by a newer Aloft.
    Newer = 14,
    /// A program that tasks need is missing: `tar`.
    MissingTool = 15,
    /// There is no Python to run tasks with.
    MissingPython = 16,
    /// The data directory cannot be used.
    DataDir = 17,
    /// No server answers where a command looks for one.
    Unreachable = 18,
    /// The configuration cannot be used.
    Config = 19,
    /// The server does not take this worker.
    Refused = 20,
}

impl Exit {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Kind::Other, message)
    }

    /// What kind of end it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
