//! Names and identifiers. A value of these types is always valid.

use std::{fmt, num::NonZeroU8};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest organisation, project or domain name, in bytes (contract, section 1.6).
const MAX_SCOPE: usize = 63;
/// Longest run or action name, in bytes (contract, section 1.6).
const MAX_NAME: usize = 30;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} {reason}")]
pub struct BadName {
    /// Which field.
    pub field: &'static str,
    /// What it held, shortened.
    pub value: String,
    /// What is wrong with it and what is allowed.
    pub reason: &'static str,
}

fn bad(field: &'static str, value: &str, reason: &'static str) -> BadName {
    BadName { field, value: value.chars().take(80).collect(), reason }
}

/// Checks a name that becomes a path segment and part of a key: lower-case letters, digits, `-`, `_` and `.`.
fn check(field: &'static str, value: &str, max: usize) -> Result<(), BadName> {
    if value.is_empty() {
        return Err(bad(field, value, "is empty: it is required"));
    }
    if value.len() > max {
        return Err(bad(
            field,
            value,
            if max == MAX_NAME { "is longer than 30 characters" } else { "is longer than 63 characters" },
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !value.chars().all(allowed) || value.starts_with('.') {
        return Err(bad(
            field,
            value,
            "may hold only letters, digits, '-', '_' and '.', and must not start with a dot",
        ));
    }
    Ok(())
}

/// Checks a name of the length of a project's.
pub(crate) fn check_scoped(field: &'static str, value: &str) -> Result<(), BadName> {
    check(field, value, MAX_SCOPE)
}

/// Where a run lives: organisation, project, domain. Part of every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// Organisation.
    pub org: String,
    /// Project.
    pub project: String,
    /// Domain.
    pub domain: String,
}

impl Scope {
    /// A scope of three checked names.
    ///
    /// # Errors
    /// [`BadName`] naming the first field that is empty, too long or holds a character that is not allowed.
    pub fn new(org: &str, project: &str, domain: &str) -> Result<Self, BadName> {
        check("org", org, MAX_SCOPE)?;
        check("project", project, MAX_SCOPE)?;
        check("domain", domain, MAX_SCOPE)?;
        Ok(Self { org: org.to_owned(), project: project.to_owned(), domain: domain.to_owned() })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.org, self.project, self.domain)
    }
}

/// What identifies a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunKey {
    /// Where it lives.
    pub scope: Scope,
    /// Its name, unique in its scope.
    pub name: String,
}

impl RunKey {
    /// The key of the run called `name`.
    ///
    /// # Errors
    /// [`BadName`] if the name is empty, longer than 30 characters or holds a character that is not allowed.
    pub fn new(scope: Scope, name: &str) -> Result<Self, BadName> {
        check("run name", name, MAX_NAME)?;
        Ok(Self { scope, name: name.to_owned() })
    }
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.scope, self.name)
    }
}

/// The name of an action, unique in its run. It lies in place and takes nothing from the heap: whoever holds a hundred
/// thousand actions holds several names of each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionName {
    /// Zeros after its end: less than every character that is allowed, so that names are ordered as their texts are.
    bytes: [u8; MAX_NAME],
    length: NonZeroU8,
}

impl ActionName {
    /// A checked action name.
    ///
    /// # Errors
    /// [`BadName`] as for run names.
    pub fn new(name: &str) -> Result<Self, BadName> {
        const FIELD: &str = "action name";
        check(FIELD, name, MAX_NAME)?;
        Self::of(name).ok_or_else(|| bad(FIELD, name, "is not a name"))
    }

    /// `None` if there is no room for it, or nothing.
    const fn of(name: &str) -> Option<Self> {
        let (text, mut bytes) = (name.as_bytes(), [0; MAX_NAME]);
        if text.len() > MAX_NAME {
            return None;
        }
        let mut at = 0;
        while at < text.len() {
            bytes[at] = text[at];
            at += 1;
        }
        match NonZeroU8::new(at as u8) {
            Some(length) => Some(Self { bytes, length }),
            None => None,
        }
    }

    /// The action every run starts with.
    pub fn root() -> Self {
        const { Self::of(crate::ROOT_ACTION).expect("it is a name") }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // What it was made of was text.
        self.bytes.get(..usize::from(self.length.get())).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }

    /// Whether this is the run's first action.
    pub fn is_root(&self) -> bool {
        self.as_str() == crate::ROOT_ACTION
    }
}

impl fmt::Debug for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActionName").field(&self.as_str()).finish()
    }
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ActionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ActionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = ActionName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an action")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ActionName, E> {
                ActionName::new(name).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A data plane's worker that attempts are leased to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

/// The fencing token of one lease. Random, so that a worker cannot guess another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseToken(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for ok in ["a0", "r123", "A-b_c.d", &"x".repeat(30)] {
            assert!(ActionName::new(ok).is_ok(), "{ok}");
        }
        for no in ["", "..", ".x", "a/b", "a b", "ü", &"x".repeat(31), "a\0"] {
            assert!(ActionName::new(no).is_err(), "{no:?}");
        }
        assert_eq!(Scope::new("o", "p/..", "d").unwrap_err().field, "project");
    }

    #[test]
    fn names_of_actions_are_their_texts() {
        let name = |text: &str| ActionName::new(text).unwrap();
        let texts = ["-", "0", "A", "a", "a-", "a.", "a0", "a00", "b", &"x".repeat(30)];
        for text in texts {
            assert_eq!(name(text).as_str(), text);
            assert_eq!(name(text).to_string(), text);
            let json = serde_json::to_string(&name(text)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<ActionName>(&json).unwrap(), name(text));
        }
        assert!(texts.is_sorted() && texts.map(name).is_sorted());
        assert!(name("a0").is_root() && name("a0") == ActionName::root() && !name("a").is_root());
        assert_eq!(format!("{:?}", name("a0")), "ActionName(\"a0\")");
        for no in ["\"\"", "\"a/b\"", &format!("\"{}\"", "x".repeat(31)), "7"] {
            assert!(serde_json::from_str::<ActionName>(no).is_err(), "{no}");
        }
        assert_eq!(size_of::<Option<ActionName>>(), 31);
    }
}
