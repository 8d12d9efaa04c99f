//! What credentials may touch.

use crate::uri::{self, InvalidUri, Uri};

/// A part of the bucket, by key: everything, everything below a directory (`runs/r1/`), or one object (`runs/r1/x`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    pub fn everything() -> Self {
        Self(String::new())
    }

    /// Every object below `uri`, by whole segments: below `runs/r1` does not include `runs/r10`.
    pub fn below(uri: &Uri) -> Self {
        if uri.key().is_empty() { Self::everything() } else { Self(format!("{}/", uri.key())) }
    }

    /// The object `uri` only.
    pub fn exactly(uri: &Uri) -> Self {
        Self(uri.key().to_owned())
    }

    /// A prefix from its text: empty, `dir/` or `dir/object`.
    pub fn parse(text: &str) -> Result<Self, InvalidUri> {
        let key = text.strip_suffix('/').unwrap_or(text);
        if !text.is_empty() {
            uri::check_key(key).map_err(|problem| InvalidUri::new(text, problem))?;
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn allows(&self, key: &str) -> bool {
        if self.0.is_empty() || self.0.ends_with('/') { key.starts_with(&self.0) } else { key == self.0 }
    }
}

/// What the bearer of credentials may do. Writing does not imply reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub read: Vec<Prefix>,
    pub write: Vec<Prefix>,
}

impl Scope {
    /// Aloft's own: read and write everything.
    pub fn everything() -> Self {
        Self { read: vec![Prefix::everything()], write: vec![Prefix::everything()] }
    }

    pub fn may_read(&self, key: &str) -> bool {
        self.read.iter().any(|prefix| prefix.allows(key))
    }

    pub fn may_write(&self, key: &str) -> bool {
        self.write.iter().any(|prefix| prefix.allows(key))
    }

    /// Whether every key that starts with the text `prefix` is readable, so that listing it discloses nothing else.
    pub fn may_list(&self, prefix: &str) -> bool {
        self.read
            .iter()
            .any(|allowed| (allowed.0.is_empty() || allowed.0.ends_with('/')) && prefix.starts_with(allowed.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(text).expect("a valid prefix")
    }

    #[test]
    fn directories_end_at_a_slash() {
        let scope = Scope { read: vec![prefix("p/d/")], write: vec![prefix("p/d/run1/"), prefix("p/d/one.txt")] };
        assert!(scope.may_read("p/d/run1/x"));
        assert!(!scope.may_read("p/dx/run1"));
        assert!(!scope.may_read("p/d"));
        assert!(scope.may_write("p/d/run1/x"));
        assert!(!scope.may_write("p/d/run10/x"));
        assert!(scope.may_write("p/d/one.txt"));
        assert!(!scope.may_write("p/d/one.txt/x"));
    }

    #[test]
    fn a_listing_stays_inside_a_readable_directory() {
        let scope = Scope { read: vec![prefix("p/d/"), prefix("q/one")], write: vec![] };
        assert!(scope.may_list("p/d/"));
        assert!(scope.may_list("p/d/ru"));
        assert!(!scope.may_list("p/d"));
        assert!(!scope.may_list(""));
        assert!(!scope.may_list("q/one"));
        assert!(Scope::everything().may_list(""));
    }

    #[test]
    fn odd_prefixes_are_refused() {
        for text in ["/", "//", "../", "a//", "a/../b/"] {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
    }
}
