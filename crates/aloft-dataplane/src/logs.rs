//! The log of an attempt: how it is written, and how it is read while it grows.
//!
//! A record is one line in the format that container runtimes use (CRI), so that other programs can read it too:
//!
//! ```text
//! 2026-01-31T09:30:00.123456Z stdout F text of the line
//! ```
//!
//! The stream is `stdout` for what the task wrote (stdout and stderr go through one pipe, which keeps their order) and
//! `aloft` for what Aloft has to say about it. `F` ends a line of the task; `P` is a part of one, with more to follow. The
//! text is the task's bytes, untouched.

mod read;
mod write;

pub use read::{Logs, tail_file};
pub use write::{LogSink, LogWriter};

/// Longest text of one record. A longer line is split.
///
/// 64 KiB as in other log collectors: room for a traceback printed as one JSON line, and a bound on what a reader holds.
pub const MAX_LINE: usize = 64 * 1024;

/// Longest log of one attempt. What comes after is counted and dropped.
pub const MAX_LOG: u64 = 256 * 1024 * 1024;
