//! What is wrong with a configuration, for the person who mends it.

use std::{fmt, path::PathBuf};

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: it is the default.
    Default,
    /// In a file.
    File(PathBuf),
    /// By an environment variable.
    Variable(String),
    /// On the command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where it was written.
    pub(crate) source: Source,
    /// The key, as it was written; empty if it is about the whole source.
    pub(crate) key: String,
    /// What is wrong, without the value of a secret.
    pub(crate) reason: String,
    /// How to mend it.
    pub(crate) remedy: String,
    /// Whether there is no such key.
    pub(crate) unknown: bool,
}

impl Problem {
    pub(crate) fn new(source: &Source, key: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (reason, remedy) = (reason.into(), remedy.into());
        Self { source: source.clone(), key: key.to_owned(), reason, remedy, unknown: false }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// All that is wrong, as one text. Keys that do not exist come first, named in one line.
pub(crate) fn explain(problems: &[Problem]) -> String {
    let mut unknown: Vec<&str> = problems.iter().filter(|p| p.unknown).map(|p| p.key.as_str()).collect();
    unknown.sort_unstable();
    unknown.dedup();
    let mut lines = Vec::new();
    if unknown.is_empty() {
        lines.push("the configuration cannot be used:".to_owned());
    } else {
        lines.push(format!("invalid keys: {}", unknown.join(", ")));
    }
    let (strange, other): (Vec<_>, Vec<_>) = problems.iter().partition(|p| p.unknown);
    lines.extend(strange.into_iter().chain(other).map(|p| format!("  {p}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named_in_one_line() {
        let file = Source::File("/etc/a.yaml".into());
        let unknown =
            |key: &str| Problem { unknown: true, ..Problem::new(&file, key, "there is no such key", "leave it out") };
        let other = Problem::new(&Source::Variable("ALOFT_X".to_owned()), "x", "is wrong", "mend it");
        assert_eq!(
            explain(&[other.clone(), unknown("b.c"), unknown("a")]),
            "invalid keys: a, b.c\n  /etc/a.yaml: b.c: there is no such key; leave it out\n  \
             /etc/a.yaml: a: there is no such key; leave it out\n  $ALOFT_X: x: is wrong; mend it"
        );
        assert_eq!(explain(&[other]), "the configuration cannot be used:\n  $ALOFT_X: x: is wrong; mend it");
    }
}
