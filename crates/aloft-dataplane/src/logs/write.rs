//! Writing a log.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{MAX_LINE, MAX_LOG};
use crate::clock;

/// Splits a stream of bytes into records and writes them. Does no clock reading: the caller says when bytes came.
pub struct LogWriter<W> {
    out: W,
    /// The unfinished line, and when its first byte came.
    partial: Vec<u8>,
    since: Timestamp,
    written: u64,
    limit: u64,
    dropped: u64,
    failed: bool,
}

impl LogWriter<File> {
    /// Appends to the log at `path`, creating it.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        let out = OpenOptions::new().append(true).create(true).open(path)?;
        let written = out.metadata()?.len();
        Ok(Self { written, ..Self::new(out, MAX_LOG) })
    }
}

impl<W: Write> LogWriter<W> {
    /// Writes records to `out`, `limit` bytes at most.
    pub fn new(out: W, limit: u64) -> Self {
        Self { out, partial: Vec::new(), since: Timestamp::UNIX_EPOCH, written: 0, limit, dropped: 0, failed: false }
    }

    /// Takes bytes of the task that came at `now`.
    pub fn push(&mut self, mut bytes: &[u8], now: Timestamp) {
        let mut records = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            if self.partial.is_empty() {
                self.since = now;
            }
            let room = MAX_LINE - self.partial.len();
            match bytes.iter().take(room + 1).position(|b| *b == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    record(&mut records, self.since, "stdout F ", &self.partial);
                    self.partial.clear();
                }
                None => {
                    let take = room.min(bytes.len());
                    self.partial.extend_from_slice(&bytes[..take]);
                    bytes = &bytes[take..];
                    if self.partial.len() == MAX_LINE {
                        let end = char_boundary(&self.partial);
                        record(&mut records, self.since, "stdout P ", &self.partial[..end]);
                        self.partial.drain(..end);
                        self.since = now;
                    }
                }
            }
        }
        self.write(&records, now);
    }

    /// Whether a line has begun and not ended.
    pub fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Writes what there is of an unfinished line, so that a follower sees it. Keeps a character that has not come whole.
    pub fn flush_partial(&mut self, now: Timestamp) {
        self.flush(char_boundary(&self.partial), now);
    }

    fn flush(&mut self, len: usize, now: Timestamp) {
        if len > 0 {
            let mut records = Vec::with_capacity(len + 64);
            record(&mut records, self.since, "stdout P ", &self.partial[..len]);
            self.partial.drain(..len);
            self.since = now;
            self.write(&records, now);
        }
    }

    /// Writes a line of Aloft's own.
    pub fn note(&mut self, text: &str, now: Timestamp) {
        let mut records = Vec::with_capacity(text.len() + 64);
        for line in text.lines() {
            record(&mut records, now, "aloft F ", line.as_bytes());
        }
        self.write(&records, now);
    }

    /// Writes what is left, and what had to be dropped. Returns what follows the log.
    pub fn finish(mut self, now: Timestamp) -> W {
        self.flush(self.partial.len(), now);
        if self.dropped > 0 {
            let text = format!(
                "Aloft dropped the last {} bytes of this log: one attempt may write {} MiB. Write large output to a file.",
                self.dropped,
                self.limit / 1024 / 1024
            );
            let mut records = Vec::new();
            record(&mut records, now, "aloft F ", text.as_bytes());
            self.out.write_all(&records).ok();
        }
        self.out
    }

    /// A log that cannot be written (a full disk) must not stop the task, so the bytes are counted and dropped.
    fn write(&mut self, records: &[u8], now: Timestamp) {
        let len = records.len() as u64;
        if self.dropped > 0 && !self.failed || self.written + len > self.limit {
            self.dropped += len;
            return;
        }
        match self.out.write_all(records) {
            Ok(()) => {
                self.written += len;
                if std::mem::take(&mut self.failed) {
                    let lost = std::mem::take(&mut self.dropped);
                    self.note(&format!("Aloft could not write {lost} bytes of this log; the disk may be full."), now);
                }
            }
            Err(_) => {
                self.failed = true;
                self.dropped += len;
            }
        }
    }
}

fn record(out: &mut Vec<u8>, at: Timestamp, stream_and_tag: &str, text: &[u8]) {
    // Unwrap safety: writing to a Vec does not fail.
    write!(out, "{at:.6} {stream_and_tag}").unwrap();
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Where to cut `bytes` so that no character of UTF-8 is torn apart.
fn char_boundary(bytes: &[u8]) -> usize {
    let is_start = |b: u8| b & 0xC0 != 0x80;
    (1..=bytes.len().min(3))
        .map(|back| bytes.len() - back)
        .find(|&at| is_start(bytes[at]))
        .filter(|&at| std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none()))
        .unwrap_or(bytes.len())
}

/// Where a native task writes its log. Cheap to clone.
#[derive(Clone)]
pub struct LogSink(Arc<Mutex<LogWriter<Box<dyn Write + Send>>>>);

impl LogSink {
    /// A sink that appends to the log at `path`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self::to(Box::new(file)))
    }

    /// A sink that writes records to `out`.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(LogWriter::new(out, MAX_LOG))))
    }

    /// Writes `text` as one or more whole lines.
    pub fn line(&self, text: &str) {
        let mut writer = self.0.lock();
        let now = clock::now();
        writer.push(text.as_bytes(), now);
        if !text.ends_with('\n') {
            writer.push(b"\n", now);
        }
    }

    /// Writes a line of Aloft's own.
    pub fn note(&self, text: &str) {
        self.0.lock().note(text, clock::now());
    }

    /// Writes bytes as they come, such as the output of a program.
    pub fn write(&self, bytes: &[u8]) {
        self.0.lock().push(bytes, clock::now());
    }

    /// Writes an unfinished line.
    pub fn flush(&self) {
        self.0.lock().flush_partial(clock::now());
    }
}

impl std::fmt::Debug for LogSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogSink")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    fn text(writer: LogWriter<Vec<u8>>, now: i64) -> String {
        String::from_utf8(writer.finish(at(now))).unwrap()
    }

    #[test]
    fn lines_keep_their_bytes_and_the_time_of_their_first_byte() {
        let mut w = LogWriter::new(Vec::new(), MAX_LOG);
        w.push(b"\x1b[31mred\x1b[0m\r 10%\r 20%\nhal", at(1));
        w.push(b"f\n\nrest", at(2_000_001));
        assert_eq!(
            text(w, 3),
            "1970-01-01T00:00:00.000001Z stdout F \x1b[31mred\x1b[0m\r 10%\r 20%\n\
             1970-01-01T00:00:00.000001Z stdout F half\n\
             1970-01-01T00:00:02.000001Z stdout F \n\
             1970-01-01T00:00:02.000001Z stdout P rest\n"
        );
    }

    #[test]
    fn long_lines_are_split_between_characters() {
        let mut w = LogWriter::new(Vec::new(), MAX_LOG);
        // An odd offset puts the cut inside a two-byte character.
        let line = format!("x{}\n", "é".repeat(MAX_LINE));
        w.push(line.as_bytes(), at(0));
        let out = text(w, 0);
        assert!(out.lines().count() > 1);
        assert!(out.lines().all(|l| l.len() <= MAX_LINE + 64));
        let joined: String = out.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap()).collect();
        assert_eq!(joined, line.trim_end());
    }

    #[test]
    fn an_unfinished_line_is_shown_without_half_a_character() {
        let mut w = LogWriter::new(Vec::new(), MAX_LOG);
        w.push(b"10%\r\xC3", at(0));
        w.flush_partial(at(1));
        w.flush_partial(at(2));
        w.push(b"\xA9\n", at(3));
        let out = text(w, 4);
        let texts: Vec<_> = out.split_terminator('\n').map(|l| l.split_once(" stdout ").unwrap().1).collect();
        assert_eq!(texts, ["P 10%\r", "F é"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let mut w = LogWriter::new(Vec::new(), MAX_LOG);
        w.push(&[0xFF; MAX_LINE + 3], at(0));
        let out = w.finish(at(0));
        assert_eq!(out.iter().filter(|b| **b == 0xFF).count(), MAX_LINE + 3);
    }

    #[test]
    fn a_log_is_bounded_and_says_so() {
        let mut w = LogWriter::new(Vec::new(), 100);
        for _ in 0..10 {
            w.push(b"0123456789\n", at(0));
        }
        let out = text(w, 0);
        assert!(out.matches("0123456789").count() == 2, "{out}");
        assert!(out.contains("aloft F Aloft dropped the last"), "{out}");
    }

    #[test]
    fn a_full_disk_is_reported_when_it_has_room_again() {
        struct Disk(Vec<u8>, bool);
        impl Write for Disk {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                if self.1 { Err(io::ErrorKind::StorageFull.into()) } else { self.0.write(buf) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut w = LogWriter::new(Disk(Vec::new(), false), MAX_LOG);
        w.push(b"one\n", at(0));
        w.out.1 = true;
        w.push(b"two\n", at(0));
        w.out.1 = false;
        w.push(b"three\n", at(0));
        let out = String::from_utf8(w.finish(at(0)).0).unwrap();
        assert!(out.contains("one") && !out.contains("two") && out.contains("three"));
        assert!(out.contains("could not write"), "{out}");
    }
}
