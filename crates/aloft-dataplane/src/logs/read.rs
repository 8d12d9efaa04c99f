//! Reading a log, and following it while it grows.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use aloft_flyteidl2::flyteidl2::logs::dataplane::{LogLine, LogLineOriginator};
use aloft_plane::{AttemptId, LogStream, PlaneError};
use buffa_types::google::protobuf::Timestamp as WireTime;
use jiff::Timestamp;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};

use super::MAX_LINE;
use crate::process::AttemptDirs;

/// Most lines handed over at once: small enough that a slow reader holds little, large enough to be quick.
const BATCH: usize = 250;

/// How often a log that is being written is looked at. A person does not notice 60 ms, and a look that finds nothing
/// costs one system call.
const LOOK: Duration = Duration::from_millis(60);

/// How much is read at once.
const CHUNK: usize = 256 * 1024;

/// The logs of the attempts below one data directory.
#[derive(Clone, Debug)]
pub struct Logs {
    dirs: AttemptDirs,
}

impl Logs {
    /// The logs of the attempts in `dirs`.
    pub fn new(dirs: AttemptDirs) -> Self {
        Self { dirs }
    }

    /// The log of one attempt: what there is, and while it runs what comes. Ends when the attempt has ended.
    ///
    /// # Errors
    /// [`PlaneError::NotFound`] if the attempt was not started on this machine.
    pub async fn tail(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError> {
        let dir = self.dirs.dir(attempt);
        match tail_file(dir.log(), dir.exit()).await {
            Ok(stream) => Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PlaneError::NotFound(format!(
                "attempt {} of action {} has no log yet: it was not started; try again when it runs",
                attempt.attempt, attempt.action
            ))),
            Err(e) => Err(PlaneError::Unavailable(format!("the log of attempt {attempt} cannot be read: {e}"))),
        }
    }
}

/// The lines of the log at `log`, followed until `ended` exists and all is read.
///
/// # Errors
/// If the log cannot be opened.
pub async fn tail_file(log: PathBuf, ended: PathBuf) -> io::Result<LogStream> {
    let follower = Follower { file: File::open(&log).await?, ended, offset: 0, parser: Parser::default(), over: false };
    Ok(Box::pin(futures::stream::unfold(follower, |mut follower| async move {
        match follower.next().await {
            Ok(Some(lines)) => Some((Ok(lines), follower)),
            Ok(None) => None,
            Err(e) => {
                follower.over = true;
                Some((Err(PlaneError::Unavailable(format!("the log cannot be read any further: {e}"))), follower))
            }
        }
    })))
}

struct Follower {
    file: File,
    ended: PathBuf,
    offset: u64,
    parser: Parser,
    over: bool,
}

impl Follower {
    /// The next lines; `None` when all is read and nothing more comes.
    async fn next(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        loop {
            if self.over {
                return Ok(None);
            }
            let lines = self.parser.take(BATCH, false);
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
            // Asked before reading: what was written before the end is then read in this round or an earlier one.
            let ended = exists(&self.ended).await;
            if self.fill().await? {
                continue;
            }
            let rest = self.parser.take(BATCH, true);
            self.over = ended;
            if !rest.is_empty() {
                return Ok(Some(rest));
            }
            if !ended {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Reads what has been added; whether there was anything.
    async fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = Vec::with_capacity(CHUNK);
        self.file.seek(io::SeekFrom::Start(self.offset)).await?;
        let read = (&mut self.file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
        self.offset += read as u64;
        self.parser.feed(&chunk);
        Ok(read > 0)
    }
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}

/// Turns records into lines. Parts of one line are joined when they lie next to each other.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
    joined: Option<Record>,
}

struct Record {
    at: Timestamp,
    system: bool,
    whole: bool,
    text: Vec<u8>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Up to `max` lines that are complete; with `flush` also the part of a line that is not.
    fn take(&mut self, max: usize, flush: bool) -> Vec<LogLine> {
        let mut lines = Vec::new();
        let mut used = 0;
        while lines.len() < max {
            let Some(end) = self.buffer[used..].iter().position(|b| *b == b'\n') else { break };
            let Some(record) = parse(&self.buffer[used..used + end]) else {
                used += end + 1;
                continue;
            };
            used += end + 1;
            match &mut self.joined {
                Some(open) if open.system == record.system && open.text.len() + record.text.len() <= MAX_LINE => {
                    open.text.extend_from_slice(&record.text);
                    open.whole = record.whole;
                }
                Some(_) => lines.extend(self.joined.replace(record).map(line)),
                None => self.joined = Some(record),
            }
            if self.joined.as_ref().is_some_and(|r| r.whole) {
                lines.extend(self.joined.take().map(line));
            }
        }
        self.buffer.drain(..used);
        if flush && lines.is_empty() {
            lines.extend(self.joined.take().map(line));
        }
        lines
    }
}

/// A record that a crash tore apart is skipped: `None`.
fn parse(record: &[u8]) -> Option<Record> {
    let mut fields = record.splitn(4, |b| *b == b' ');
    let at = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let system = match fields.next()? {
        b"aloft" => true,
        b"stdout" | b"stderr" => false,
        _ => return None,
    };
    let whole = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { at, system, whole, text: fields.next()?.to_vec() })
}

fn line(record: Record) -> LogLine {
    let mut message = String::from_utf8_lossy(&record.text).into_owned();
    if record.whole {
        message.push('\n');
    }
    let originator = if record.system { LogLineOriginator::SYSTEM } else { LogLineOriginator::USER };
    LogLine {
        timestamp: WireTime {
            seconds: record.at.as_second(),
            nanos: record.at.subsec_nanosecond(),
            ..WireTime::default()
        }
        .into(),
        message,
        originator: originator.into(),
        ..LogLine::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::logs::LogWriter;

    fn messages(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|l| l.message.as_str()).collect()
    }

    #[test]
    fn parts_are_joined_and_torn_records_skipped() {
        let mut p = Parser::default();
        p.feed(b"1970-01-01T00:00:01Z stdout P one \n1970-01-01T00:00:02Z stdout F two\n1970-01-01T0");
        assert_eq!(messages(&p.take(10, false)), ["one two\n"]);
        p.feed(b"garbage\n1970-01-01T00:00:03Z aloft F note\n1970-01-01T00:00:04Z stdout P open\n");
        let lines = p.take(10, false);
        assert_eq!(messages(&lines), ["note\n"]);
        assert_eq!(lines[0].originator, LogLineOriginator::SYSTEM);
        assert_eq!(messages(&p.take(10, true)), ["open"]);
    }

    #[tokio::test]
    async fn a_log_is_followed_until_its_attempt_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (log, ended) = (dir.path().join("log"), dir.path().join("exit.json"));
        let mut writer = LogWriter::append(&log).unwrap();
        writer.push(b"first\n", Timestamp::UNIX_EPOCH);
        let mut stream = tail_file(log, ended.clone()).await.unwrap();
        assert_eq!(messages(&stream.next().await.unwrap().unwrap()), ["first\n"]);

        let began = std::time::Instant::now();
        let writing = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            writer.push(b"second \xF0\x9F\x98\x80\nthird", Timestamp::UNIX_EPOCH);
            writer
        });
        assert_eq!(messages(&stream.next().await.unwrap().unwrap()), ["second 😀\n"]);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        writing.await.unwrap().finish(Timestamp::UNIX_EPOCH);
        std::fs::write(ended, "{}").unwrap();
        assert_eq!(messages(&stream.next().await.unwrap().unwrap()), ["third"]);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_large_finished_log_comes_in_bounded_batches() {
        let dir = tempfile::tempdir().unwrap();
        let (log, ended) = (dir.path().join("log"), dir.path().join("exit.json"));
        let mut writer = LogWriter::append(&log).unwrap();
        for n in 0..30_000 {
            writer.push(format!("line {n}\n").as_bytes(), Timestamp::UNIX_EPOCH);
        }
        std::fs::write(&ended, "{}").unwrap();
        let batches: Vec<_> = tail_file(log, ended).await.unwrap().map(Result::unwrap).collect().await;
        assert!(batches.iter().all(|b| b.len() <= BATCH));
        let all: Vec<_> = batches.iter().flatten().map(|l| l.message.clone()).collect();
        assert_eq!(all.len(), 30_000);
        assert!(all.iter().enumerate().all(|(n, m)| *m == format!("line {n}\n")));
    }
}
