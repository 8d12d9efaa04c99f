//! Workers: who holds leases, and whether anything was heard of them. Beside the log, since signs of life are not state.

use aloft_core::{Time, WorkerId};
use serde::{Deserialize, Serialize};

/// Most workers that are kept. A worker that holds nothing and was not heard of for long is forgotten; what counts here
/// is processes, of which a fleet has thousands.
pub const MAX_WORKERS: usize = 10_000;

/// One worker, as it is known to all control planes of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Its name; the same after a restart.
    pub id: WorkerId,
    /// Number of its session, drawn anew each time that it connects. Only its current one counts. 0 if it has never said
    /// who it is: then it only holds leases, from before there were sessions.
    pub session: u64,
    /// Grows with every change of the record, so from sign of life to sign of life. 0 is no record.
    pub beat: u64,
    /// Whether it was given up: what it holds goes to others, and it must begin anew.
    pub expired: bool,
    /// What it says of itself.
    pub about: AboutWorker,
}

/// What a worker says of itself, and when. For people; nothing is decided by the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AboutWorker {
    /// Number of its process, drawn at its start: two processes of one name are told apart by it.
    pub process: u64,
    /// Version of its program.
    pub version: String,
    /// Name of its machine.
    pub host: String,
    /// Its data directory on its machine, in which its attempts are; empty if it does not say.
    pub attempts: String,
    /// Whether it takes no more work.
    pub draining: bool,
    /// How many attempts it has room for beyond those that it has.
    pub room: u64,
    /// When its session began.
    pub since: Time,
    /// When it was heard of last.
    pub heard_at: Time,
}
