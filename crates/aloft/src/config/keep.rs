//! How long something is kept: for a time, or for ever.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::values::Span;

/// The word for no end.
const FOREVER: &str = "forever";

/// How a project is told from its time.
const IS: char = '=';

/// How long, written as `forever`, or as `30d`, `12h` or `1d12h`. A number alone is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Forever,
    For(Duration),
}

impl Keep {
    /// The time, if there is an end.
    pub(crate) fn time(self) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::For(time) => Some(time),
        }
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == FOREVER {
            return Ok(Self::Forever);
        }
        let (days, rest) = match text.split_once('d') {
            Some((days, rest)) => (days.parse::<u32>().map_err(|_| "is no length of time".to_owned())?, rest),
            None => (0, text),
        };
        let rest = if days > 0 && rest.is_empty() { Span::seconds(0) } else { Span::parse(rest)? };
        Ok(Self::For(Duration::from_secs(86_400) * days + rest.0))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::For(time) = self else { return f.write_str(FOREVER) };
        let (days, rest) = (time.as_secs() / 86_400, Duration::from_secs(time.as_secs() % 86_400));
        if days > 0 {
            write!(f, "{days}d")?;
        }
        if days == 0 || !rest.is_zero() {
            write!(f, "{}", Span(rest))?;
        }
        Ok(())
    }
}

impl Serialize for Keep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Seconds(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Seconds(seconds) => Ok(Self::For(Duration::from_secs(seconds))),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Keep {
    fn schema_name() -> Cow<'static, str> {
        "Keep".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "format": "keep", "minimum": 0 })
    }
}

/// How long something of one project is kept, written as `PROJECT=30d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProjectKeep {
    /// The project's identifier.
    pub(crate) project: String,
    /// How long.
    pub(crate) keep: Keep,
}

impl fmt::Display for ProjectKeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{IS}{}", self.project, self.keep)
    }
}

impl Serialize for ProjectKeep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ProjectKeep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (project, keep) = text.split_once(IS).ok_or_else(|| D::Error::custom("has no time"))?;
        Ok(Self { project: project.trim().to_owned(), keep: keep.parse().map_err(D::Error::custom)? })
    }
}

impl JsonSchema for ProjectKeep {
    fn schema_name() -> Cow<'static, str> {
        "ProjectKeep".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "project-keep" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them_and_shown_the_same() {
        for (text, seconds, shown) in [
            ("30d", 30 * 86_400, "30d"),
            ("1d12h", 129_600, "1d12h"),
            (" 36h ", 129_600, "1d12h"),
            ("90", 90, "1m30s"),
            ("0s", 0, "0s"),
            ("3650d", 3650 * 86_400, "3650d"),
        ] {
            let keep: Keep = text.parse().unwrap();
            assert_eq!((keep.time(), keep.to_string().as_str()), (Some(Duration::from_secs(seconds)), shown), "{text}");
            assert_eq!(keep.to_string().parse(), Ok(keep));
        }
        assert_eq!("forever".parse(), Ok(Keep::Forever));
        for text in ["", "d", "ever", "30 days of rain", "-1d", "1d2d", "1x"] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_project_is_told_from_its_time() {
        let read = |text: &str| serde_json::from_value::<ProjectKeep>(text.into());
        assert_eq!(read("a=7d").unwrap().to_string(), "a=7d");
        assert_eq!(read("a = forever").unwrap(), ProjectKeep { project: "a".into(), keep: Keep::Forever });
        for text in ["a", "a=", "a:7d"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
