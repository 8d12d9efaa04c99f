//! Types of single values: lengths of time, secrets, and secrets in files.

use std::{
    borrow::Cow,
    fmt, fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// What is shown in place of a secret.
pub(crate) const REDACTED: &str = "<redacted>";

/// Longest time that can be set: a typing error is more likely than a year.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Largest file of a secret.
const LARGEST_SECRET: u64 = 64 << 10;

/// A length of time, written as `30s`, `5m` or `1h30m`. A number alone is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let length = match text.trim().parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let signed: jiff::SignedDuration =
                    text.trim().parse().map_err(|_| "is no length of time".to_owned())?;
                Duration::try_from(signed).map_err(|_| "is less than nothing".to_owned())?
            }
        };
        if length > LONGEST { Err("is longer than a year".to_owned()) } else { Ok(Self(length)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = jiff::SignedDuration::try_from(self.0).map(|d| format!("{d:#}")).unwrap_or_default();
        f.write_str(&text.replace(' ', ""))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Seconds(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Seconds(seconds) => Self::parse(&seconds.to_string()),
            Written::Text(text) => Self::parse(&text),
        }
        .map_err(D::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "format": "span", "minimum": 0 })
    }
}

/// A text that is never shown: not in an error, a log, or when it is printed for debugging.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself, for whoever it is meant for.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "password", "writeOnly": true })
    }
}

/// A secret in a file, which may change: by being written again, or as Kubernetes does it, by a directory's symbolic link
/// that is swapped for another.
///
/// The file is read at every use, so there is nothing to notice a change by and no change that is not noticed: it is small,
/// and secrets are used when connections are opened, not in between.
#[derive(Debug)]
pub(crate) struct SecretFile {
    path: PathBuf,
    /// The last one that could be read.
    last: Mutex<Option<Secret>>,
}

impl SecretFile {
    /// The secret in the file at `path`. Nothing is read yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), last: Mutex::new(None) }
    }

    /// The secret as it is now, without the end of its last line. While the file cannot be read or is empty, as in the
    /// middle of being replaced by hand, the last one that could be read.
    ///
    /// # Errors
    /// A sentence that names the file, if there was none that could be read.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        let mut last = self.last.lock();
        match self.read_file() {
            Ok(secret) => {
                *last = Some(secret.clone());
                Ok(secret)
            }
            Err(why) => match &*last {
                Some(secret) => {
                    tracing::warn!("{why}; the secret it held before is used");
                    Ok(secret.clone())
                }
                None => Err(why),
            },
        }
    }

    fn read_file(&self) -> Result<Secret, String> {
        let path = self.path.display();
        let read = || -> io::Result<String> {
            let mut text = String::new();
            fs::File::open(&self.path)?.take(LARGEST_SECRET + 1).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = match read() {
            Ok(text) => text,
            // What the file holds must not be told, so neither is why it is no text.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(format!("{path} is not UTF-8 text")),
            Err(e) => return Err(format!("cannot read {path}: {e}")),
        };
        if text.len() as u64 > LARGEST_SECRET {
            return Err(format!("{path} is larger than {} KiB, so it is no secret", LARGEST_SECRET >> 10));
        }
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() { Err(format!("{path} is empty")) } else { Ok(Secret(secret.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in
            [("30", 30), ("30s", 30), ("1m", 60), ("1h30m", 5400), (" 5m ", 300), ("0", 0), ("0s", 0)]
        {
            assert_eq!(Span::parse(text).unwrap(), Span::seconds(seconds), "{text}");
        }
        assert_eq!(Span::parse("250ms").unwrap().0, Duration::from_millis(250));
        for text in ["", "soon", "-5s", "5 parsecs", "9000h", "99999999999999999999"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
        for text in ["0s", "30s", "1m", "1h30m", "250ms"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?} {secret:#?}"), format!("{REDACTED} {REDACTED}"));
        assert_eq!(serde_json::to_string(&secret).unwrap(), format!("\"{REDACTED}\""));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_file_that_is_written_again_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.txt");
        let file = SecretFile::new(&path);
        assert!(file.read().unwrap_err().contains("pass.txt"));
        for text in ["one\n", "two", "6ne\r\n", "with space \n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(file.read().unwrap().expose(), text.trim_end_matches(['\r', '\n']));
        }
    }

    #[test]
    fn the_swap_of_a_mounted_secret_is_noticed() {
        // As Kubernetes lays a mounted secret out: pass.txt -> ..data/pass.txt, ..data -> a directory by time.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let version = |name: &str, secret: &str| {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("pass.txt"), secret).unwrap();
        };
        version("..2026_01", "old");
        symlink("..2026_01", at("..data")).unwrap();
        symlink("..data/pass.txt", at("pass.txt")).unwrap();
        let file = SecretFile::new(&at("pass.txt"));
        assert_eq!(file.read().unwrap().expose(), "old");
        version("..2026_02", "new");
        symlink("..2026_02", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        fs::remove_dir_all(at("..2026_01")).unwrap();
        assert_eq!(file.read().unwrap().expose(), "new");
    }

    #[test]
    fn the_last_secret_outlives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.txt");
        fs::write(&path, "kept").unwrap();
        let file = SecretFile::new(&path);
        assert_eq!(file.read().unwrap().expose(), "kept");
        fs::write(&path, "").unwrap();
        assert_eq!(file.read().unwrap().expose(), "kept");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read().unwrap().expose(), "kept");
        assert!(SecretFile::new(&path).read().is_err());
    }

    #[test]
    fn what_is_no_secret_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for bytes in [&b""[..], b"\n", b"\xff\xfe", &[b'a'; (LARGEST_SECRET as usize) + 1]] {
            fs::write(&path, bytes).unwrap();
            let why = SecretFile::new(&path).read().unwrap_err();
            assert!(why.contains("/x") && !why.contains("aaa"), "{why}");
        }
        assert!(SecretFile::new(dir.path()).read().is_err());
    }
}
