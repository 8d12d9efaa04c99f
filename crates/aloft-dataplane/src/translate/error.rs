use std::fmt;

/// Why a translation was refused: where, what, and what to do about it. Translation has no side effects, so a refusal
/// changes nothing.
///
/// Messages quote at most [`QUOTE_CHARS`] characters of a value. They go back to whoever sent that value; they are not
/// for logs, because a fragment of user data is still user data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslateError {
    /// The variable and the way into its value, as in `config.layers[3].size`.
    pub path: String,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A value is required and none was given.
    Missing,
    /// `null` for something that is not optional.
    Null,
    /// The JSON value has the wrong shape, an array where an integer belongs.
    Shape {
        expected: &'static str,
        found: &'static str,
    },
    /// The shape is right and the content is not: a string that is no date, a number out of range.
    Content {
        reason: String,
        remedy: &'static str,
    },
    NotInEnum {
        value: String,
        allowed: Vec<String>,
    },
    /// No variant of a union accepts the value; one `variant: reason` line each.
    NoVariant {
        tried: Vec<String>,
    },
    /// The declared type, or the schema that stands for it in a form, makes no sense.
    Type {
        reason: String,
        remedy: &'static str,
    },
    /// The bytes of a binary literal are not what its tag says.
    Undecodable {
        reason: String,
    },
    /// A kind of literal that has no JSON form.
    Unsupported {
        what: &'static str,
        remedy: &'static str,
    },
    TooDeep {
        limit: usize,
    },
    TooLarge {
        limit: u32,
    },
}

pub(super) const QUOTE_CHARS: usize = 40;
/// An error names this many alternatives and counts the others; a generated enum can have thousands.
const LISTED: usize = 10;

// === impl TranslateError ===

impl TranslateError {
    pub fn new(path: impl Into<String>, problem: Problem) -> Self {
        Self { path: path.into(), problem }
    }

    /// Whether the request is fine and this module cannot do it (`UNIMPLEMENTED`), rather than the request being wrong
    /// (`INVALID_ARGUMENT`).
    pub fn is_unsupported(&self) -> bool {
        matches!(self.problem, Problem::Unsupported { .. })
    }
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path, self.problem)
    }
}

impl std::error::Error for TranslateError {}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no value was given and it has no default; provide one"),
            Self::Null => f.write_str("null is not allowed because the type is not optional; provide a value"),
            Self::Shape { expected, found } => write!(f, "expected {expected}, got {found}; provide {expected}"),
            Self::Content { reason, remedy } | Self::Type { reason, remedy } => write!(f, "{reason}; {remedy}"),
            Self::NotInEnum { value, allowed } => {
                write!(f, "{value} is not one of the allowed values; use one of {}", list(allowed, ", "))
            }
            Self::NoVariant { tried } => write!(
                f,
                "the value fits no variant of the union ({}); provide a value of one of these types",
                list(tried, "; ")
            ),
            Self::Undecodable { reason } => {
                write!(f, "the stored bytes cannot be read: {reason}; write the value again with a current SDK")
            }
            Self::Unsupported { what, remedy } => write!(f, "{what} cannot be shown as JSON; {remedy}"),
            Self::TooDeep { limit } => {
                write!(f, "nested more than {limit} levels deep; flatten the value or pass it as a file")
            }
            Self::TooLarge { limit } => {
                write!(f, "the request takes more than {limit} steps to translate; pass large values as files")
            }
        }
    }
}

fn list(items: &[String], separator: &str) -> String {
    let mut text = items.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(separator);
    if items.len() > LISTED {
        text.push_str(&format!("{separator}and {} more", items.len() - LISTED));
    }
    text
}

/// A piece of a value for an error message.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
