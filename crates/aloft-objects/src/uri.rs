//! Object names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// S3's own bound on a key; what Aloft accepts must also be acceptable to the store it may later move to.
pub(crate) const KEY_BYTES_MAX: usize = 1024;

/// The name of an object, or of a "directory" of objects: `s3://bucket/key`.
///
/// A `Uri` is valid by construction: its key has no empty, `.` or `..` segment, no control character and no
/// backslash, and is at most 1024 bytes. A trailing slash is dropped when parsing, so that `s3://b/runs/` and
/// `s3://b/runs` are the same name. An empty key names the whole bucket and cannot be written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uri {
    bucket: String,
    key: String,
}

/// Why a text is not an object's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid object name: {problem}")]
pub struct InvalidUri {
    /// The offending text, shortened.
    pub text: String,
    pub problem: UriProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriProblem {
    #[error("it must start with s3://")]
    Scheme,
    #[error("a bucket name has 3 to 63 lower-case letters, digits, dots or hyphens")]
    Bucket,
    #[error("it has an empty segment (two slashes in a row, or a leading slash)")]
    EmptySegment,
    #[error("it has a `.` or `..` segment")]
    DotSegment,
    #[error("it contains a control character")]
    ControlCharacter,
    #[error("it contains a backslash; use forward slashes")]
    Backslash,
    #[error("its key is longer than 1024 bytes; use a shorter name")]
    KeyTooLong,
    #[error("one of its segments is longer than the local file system can store; use shorter names between slashes")]
    SegmentTooLong,
    #[error("it names the whole bucket, not an object")]
    NoKey,
}

impl Uri {
    /// The object `key` in `bucket`; an empty `key` is the bucket itself.
    pub fn new(bucket: &str, key: &str) -> Result<Self, InvalidUri> {
        let invalid = |problem| InvalidUri::new(&format!("s3://{bucket}/{key}"), problem);
        check_bucket(bucket).map_err(invalid)?;
        let key = key.strip_suffix('/').unwrap_or(key);
        if !key.is_empty() {
            check_key(key).map_err(invalid)?;
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key, without a leading or trailing slash; empty for the bucket itself.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The last segment of the key; `None` for the bucket itself.
    pub fn name(&self) -> Option<&str> {
        self.key.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The name one segment up; `None` for the bucket itself.
    pub fn parent(&self) -> Option<Self> {
        if self.key.is_empty() {
            return None;
        }
        let key = self.key.rsplit_once('/').map_or("", |(parent, _)| parent);
        Some(Self { bucket: self.bucket.clone(), key: key.to_owned() })
    }

    /// This name followed by `relative`, which may have several segments but can never lead outside of this name:
    /// whatever an uploader or a task proposes as a file name may be passed here.
    pub fn join(&self, relative: &str) -> Result<Self, InvalidUri> {
        let key = match self.key.as_str() {
            "" => relative.to_owned(),
            key => format!("{key}/{relative}"),
        };
        let invalid = |problem| InvalidUri::new(relative, problem);
        check_key(relative).map_err(invalid)?;
        check_key(&key).map_err(invalid)?;
        Ok(Self { bucket: self.bucket.clone(), key })
    }

    /// Whether this name is `base` or lies below it, segment by segment: `s3://b/run10` does not start with
    /// `s3://b/run1`.
    pub fn starts_with(&self, base: &Uri) -> bool {
        self.relative_to(base).is_some()
    }

    /// The part of this name after `base` (empty if they are equal); `None` if it does not lie below `base`.
    pub fn relative_to(&self, base: &Uri) -> Option<&str> {
        if self.bucket != base.bucket {
            return None;
        }
        let rest = self.key.strip_prefix(&base.key)?;
        if base.key.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

impl FromStr for Uri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| InvalidUri::new(text, UriProblem::Scheme))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        Self::new(bucket, key)
    }
}

impl TryFrom<String> for Uri {
    type Error = InvalidUri;

    fn try_from(text: String) -> Result<Self, InvalidUri> {
        text.parse()
    }
}

impl From<Uri> for String {
    fn from(uri: Uri) -> Self {
        uri.to_string()
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "/{}", self.key) }
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl InvalidUri {
    pub(crate) fn new(text: &str, problem: UriProblem) -> Self {
        // Long enough to recognise the name, short enough for a log line.
        const SHOWN_CHARS: usize = 120;
        let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        Self { text: shown, problem }
    }
}

pub(crate) fn check_bucket(bucket: &str) -> Result<(), UriProblem> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = bucket.as_bytes();
    let valid = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && edge(bytes.first())
        && edge(bytes.last())
        && !bucket.contains("..");
    if valid { Ok(()) } else { Err(UriProblem::Bucket) }
}

pub(crate) fn check_key(key: &str) -> Result<(), UriProblem> {
    if key.len() > KEY_BYTES_MAX {
        return Err(UriProblem::KeyTooLong);
    }
    if key.contains('\\') {
        return Err(UriProblem::Backslash);
    }
    if key.chars().any(char::is_control) {
        return Err(UriProblem::ControlCharacter);
    }
    for segment in key.split('/') {
        match segment {
            "" => return Err(UriProblem::EmptySegment),
            "." | ".." => return Err(UriProblem::DotSegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("a valid URI")
    }

    #[test]
    fn parse_and_display() {
        assert_eq!(uri("s3://aloft-data/a/b c=d+é").to_string(), "s3://aloft-data/a/b c=d+é");
        assert_eq!(uri("s3://aloft-data/a/"), uri("s3://aloft-data/a"));
        assert_eq!(uri("s3://aloft-data/").to_string(), "s3://aloft-data");
        assert_eq!(uri("s3://aloft-data").key(), "");
    }

    #[test]
    fn refusals_name_their_reason() {
        for (text, problem) in [
            ("gs://bucket/a", UriProblem::Scheme),
            ("s3://B/a", UriProblem::Bucket),
            ("s3://../a", UriProblem::Bucket),
            ("s3://bucket//a", UriProblem::EmptySegment),
            ("s3://bucket/a//b", UriProblem::EmptySegment),
            ("s3://bucket/a//", UriProblem::EmptySegment),
            ("s3://bucket/a/../b", UriProblem::DotSegment),
            ("s3://bucket/.", UriProblem::DotSegment),
            ("s3://bucket/a\nb", UriProblem::ControlCharacter),
            ("s3://bucket/a\u{85}b", UriProblem::ControlCharacter),
            ("s3://bucket/a\\b", UriProblem::Backslash),
        ] {
            let error = text.parse::<Uri>().expect_err(text);
            assert_eq!(error.problem, problem, "{text}");
        }
        let long = format!("s3://bucket/{}", "a".repeat(1025));
        assert_eq!(long.parse::<Uri>().expect_err("too long").problem, UriProblem::KeyTooLong);
    }

    #[test]
    fn join_refuses_to_leave() {
        let base = uri("s3://bucket/up");
        assert_eq!(base.join("a/b.txt").expect("joined").to_string(), "s3://bucket/up/a/b.txt");
        assert_eq!(uri("s3://bucket").join("a").expect("joined").key(), "a");
        for relative in ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a\\..\\b", "a\0", "a/"] {
            assert!(base.join(relative).is_err(), "{relative:?}");
        }
    }

    #[test]
    fn prefixes_are_whole_segments() {
        assert!(uri("s3://bucket/run1/a").starts_with(&uri("s3://bucket/run1")));
        assert!(uri("s3://bucket/run1").starts_with(&uri("s3://bucket/run1")));
        assert!(uri("s3://bucket/run1").starts_with(&uri("s3://bucket")));
        assert!(!uri("s3://bucket/run10").starts_with(&uri("s3://bucket/run1")));
        assert!(!uri("s3://other/run1").starts_with(&uri("s3://bucket/run1")));
    }

    #[test]
    fn parents_lead_to_the_bucket() {
        let leaf = uri("s3://bucket/a/b");
        assert_eq!(leaf.name(), Some("b"));
        let parent = leaf.parent().expect("a");
        assert_eq!(parent.key(), "a");
        assert_eq!(parent.parent().expect("the bucket").parent(), None);
    }

    proptest! {
        #[test]
        fn any_text_parses_to_itself_or_is_refused(text in "s3://bucket/\\PC{0,40}") {
            if let Ok(parsed) = text.parse::<Uri>() {
                prop_assert_eq!(parsed.to_string().parse::<Uri>().expect("its own display"), parsed);
            }
        }

        #[test]
        fn a_join_stays_below_its_base(relative in "[a./\\\\ ]{0,12}") {
            let base = uri("s3://bucket/base/dir");
            if let Ok(joined) = base.join(&relative) {
                prop_assert!(joined.starts_with(&base) && joined != base);
                prop_assert_eq!(joined.relative_to(&base), Some(relative.as_str()));
            }
        }
    }
}
