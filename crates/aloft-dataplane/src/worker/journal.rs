//! Which inline attempts sleep, and until when: one file that lines are added to, so that a worker after this one lets them
//! sleep for the rest of their time.
//!
//! It is a help, not a record of anything that must not be lost: an attempt that is not in it sleeps from the start again.
//! So nothing is synced, and a line that a crash tore is skipped.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::PathBuf,
    time::Duration,
};

use aloft_core::{ActionName, LeaseToken, Scope};
use aloft_plane::{AttemptId, LeaseRef};
use serde::{Deserialize, Serialize};

/// How many lines there may be beyond twice those that still mean something. Rewriting this many takes a few milliseconds.
const SLACK: usize = 4096;

/// Most lines that are read: ten times the sleepers that one worker was ever measured with.
const MAX_LINES: usize = 1_000_000;

/// One attempt that sleeps.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    scope: Scope,
    run: String,
    action: ActionName,
    attempt: u32,
    token: LeaseToken,
    #[serde(flatten)]
    sleep: Sleep,
}

/// How long an attempt had to sleep, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sleep {
    /// When this was written, in microseconds since the epoch.
    from_us: i64,
    /// How long it had to sleep then.
    length_us: u64,
}

/// What is read of an entry.
#[derive(Deserialize)]
struct Line {
    token: LeaseToken,
    from_us: i64,
    length_us: u64,
}

impl Entry {
    pub(super) fn new(lease: &LeaseRef, from_us: i64, length: Duration) -> Self {
        let LeaseRef { id: AttemptId { run, action, attempt }, token } = lease;
        Self {
            scope: run.scope.clone(),
            run: run.name.clone(),
            action: action.clone(),
            attempt: *attempt,
            token: *token,
            sleep: Sleep { from_us, length_us: u64::try_from(length.as_micros()).unwrap_or(u64::MAX) },
        }
    }
}

impl Sleep {
    /// How long it has still to sleep at `now_us`. Never longer than it had to, whatever became of the clock.
    pub(super) fn remaining(self, now_us: i64) -> Duration {
        let passed = u64::try_from(now_us.saturating_sub(self.from_us)).unwrap_or(0);
        Duration::from_micros(self.length_us.saturating_sub(passed))
    }
}

/// The file, and what was in it when it was opened.
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
    /// By the tokens of the leases: they are random, so that no two leases have the same.
    found: HashMap<LeaseToken, Sleep>,
}

impl Journal {
    /// Opens the journal at `path`, creating it with its first line.
    pub(super) fn open(path: PathBuf) -> Self {
        let found = read(&path).unwrap_or_else(|e| {
            tracing::warn!(path = %path.display(), "sleeping attempts begin anew, since their journal cannot be read: {e}");
            HashMap::new()
        });
        Self { path, file: None, lines: found.len(), found }
    }

    /// What was written, before it was opened, of the attempt whose lease has this token.
    pub(super) fn recall(&self, token: LeaseToken) -> Option<Sleep> {
        self.found.get(&token).copied()
    }

    /// Lets go of what was there when it was opened.
    pub(super) fn forget(&mut self) {
        self.found = HashMap::new();
    }

    /// Whether it should be rewritten, when `live` entries still mean something: not while what was there may still be asked
    /// for.
    pub(super) fn is_long(&self, live: usize) -> bool {
        self.found.is_empty() && self.lines > 2 * live + SLACK
    }

    /// Adds lines. A journal that cannot be written costs sleepers their progress at a restart, nothing else.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        self.lines += entries.len();
        if let Err(e) = self.try_append(entries) {
            tracing::warn!(path = %self.path.display(), "the journal of sleeping attempts cannot be written: {e}");
        }
    }

    fn try_append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(entries.len() * 256);
        entries.iter().try_for_each(|entry| line(&mut bytes, entry))?;
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().append(true).create(true).open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(&bytes))
    }

    /// Replaces everything in it.
    pub(super) fn rewrite(&mut self, entries: impl Iterator<Item = Entry>) {
        self.file = None;
        self.lines = 0;
        let fresh = self.path.with_extension("new");
        let write = || {
            let mut file = BufWriter::new(File::create(&fresh)?);
            for entry in entries {
                line(&mut file, &entry)?;
                self.lines += 1;
            }
            file.flush()?;
            fs::rename(&fresh, &self.path)
        };
        if let Err(e) = write() {
            tracing::warn!(path = %self.path.display(), "the journal of sleeping attempts cannot be written: {e}");
        }
    }
}

fn line(mut to: impl io::Write, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut to, entry)?;
    to.write_all(b"\n")
}

fn read(path: &PathBuf) -> io::Result<HashMap<LeaseToken, Sleep>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(e) => return Err(e),
    };
    let mut found = HashMap::new();
    for line in BufReader::new(file).split(b'\n').take(MAX_LINES) {
        if let Ok(Line { token, from_us, length_us }) = serde_json::from_slice(&line?) {
            found.insert(token, Sleep { from_us, length_us });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use aloft_core::RunKey;

    use super::*;

    fn lease(action: &str, token: u64) -> LeaseRef {
        let run = RunKey::new(Scope::new("o", "p", "d").unwrap(), "r").unwrap();
        let id = AttemptId { run, action: ActionName::new(action).unwrap(), attempt: 1 };
        LeaseRef { id, token: LeaseToken(token) }
    }

    fn entry(action: &str, token: u64) -> Entry {
        Entry::new(&lease(action, token), 1_000_000, Duration::from_secs(10))
    }

    #[test]
    fn what_is_left_of_a_sleep_does_not_depend_on_a_clock_that_jumps() {
        let entry = entry("a", 1).sleep;
        assert_eq!(entry.remaining(4_000_000), Duration::from_secs(7));
        assert_eq!(entry.remaining(99_000_000), Duration::ZERO);
        assert_eq!(entry.remaining(0), Duration::from_secs(10));
        assert_eq!(entry.remaining(i64::MIN), Duration::from_secs(10));
    }

    #[test]
    fn a_later_worker_finds_what_was_written_under_the_same_lease() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".inline");
        let mut journal = Journal::open(path.clone());
        journal.append(&[entry("a", u64::MAX), entry("b", 2)]);
        journal.append(&[entry("c", 3)]);
        // The power fails in the middle of a line.
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 5);
        fs::write(&path, &bytes).unwrap();

        let mut journal = Journal::open(path.clone());
        assert_eq!(journal.recall(LeaseToken(u64::MAX)), Some(entry("a", u64::MAX).sleep));
        assert_eq!(journal.recall(LeaseToken(9)), None, "another lease");
        assert_eq!(journal.recall(LeaseToken(3)), None, "torn");
        journal.rewrite([entry("b", 2)].into_iter());
        journal.append(&[entry("d", 4)]);
        let journal = Journal::open(path);
        assert!(journal.recall(LeaseToken(u64::MAX)).is_none());
        assert!(journal.recall(LeaseToken(2)).is_some() && journal.recall(LeaseToken(4)).is_some());
    }

    #[test]
    fn it_stays_in_proportion_to_what_sleeps() {
        let home = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(home.path().join(".inline"));
        journal.append(&vec![entry("a", 1); SLACK]);
        assert!(!journal.is_long(0));
        journal.append(&[entry("a", 1)]);
        assert!(journal.is_long(0) && !journal.is_long(1));
        let mut journal = Journal::open(home.path().join(".inline"));
        assert!(!journal.is_long(0), "it may still be asked for");
        journal.forget();
        journal.append(&vec![entry("b", 2); SLACK]);
        assert!(journal.is_long(0));
    }
}
