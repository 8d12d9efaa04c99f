//! Conditions: actions that wait for somebody's word.

use serde::{Deserialize, Serialize};

use crate::Subject;

/// What kind of value a condition waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// Yes or no.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Text.
    Text,
}

impl SignalKind {
    /// The kind in words, with its article.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Bool => "a boolean",
            Self::Int => "an integer",
            Self::Float => "a float",
            Self::Text => "a string",
        }
    }
}

/// The value a condition was signalled with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalValue {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// Text.
    Text(String),
}

impl SignalValue {
    /// What kind of value it is.
    pub const fn kind(&self) -> SignalKind {
        match self {
            Self::Bool(_) => SignalKind::Bool,
            Self::Int(_) => SignalKind::Int,
            Self::Float(_) => SignalKind::Float,
            Self::Text(_) => SignalKind::Text,
        }
    }

    /// This value as `kind` wants it; a whole number stands for a float. `None` if it is of another kind, or a float that
    /// is not a number, which the log could not hold.
    pub fn as_kind(&self, kind: SignalKind) -> Option<Self> {
        match (self, kind) {
            (Self::Int(n), SignalKind::Float) => Some(Self::Float(*n as f64)),
            (Self::Float(x), _) if !x.is_finite() => None,
            (value, kind) if value.kind() == kind => Some(value.clone()),
            _ => None,
        }
    }
}

/// Everything that names a condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConditionSeed {
    /// The name its author gave it.
    pub name: String,
    /// What it waits for.
    pub kind: SignalKind,
    /// How long it waits, in milliseconds; for ever if not declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether somebody is to be called when it begins to wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub webhook: bool,
    /// Hex digest of its stored specification: prompt, description, webhook.
    pub spec_digest: String,
}

/// How a condition was signalled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// The value.
    pub value: SignalValue,
    /// By whom.
    pub by: Subject,
}

/// What became of the call that a condition asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookOutcome {
    /// The other side took it.
    Delivered,
    /// It was given up.
    Failed {
        /// Why.
        reason: String,
    },
}
