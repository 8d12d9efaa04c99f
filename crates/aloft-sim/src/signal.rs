//! The values of conditions: what they wait for, what they are told, and how both travel.

use aloft_flyteidl2::flyteidl2::{
    core::{Literal, LiteralType, Primitive, Scalar, SimpleType, literal, literal_type, primitive, scalar},
    workflow::{ConditionAction, EventPayload, SignalInfo, event_payload},
};
use buffa_types::google::protobuf::Duration;
use serde::{Deserialize, Serialize};

use crate::seen::Person;

/// What kind of value a condition waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// Yes or no.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Text.
    Text,
}

/// A condition as its parent declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which of the names that authors give.
    pub name: u8,
    /// What it waits for.
    pub awaits: Type,
    /// How long, in milliseconds.
    #[serde(default)]
    pub timeout: Option<u16>,
}

/// What somebody says to a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Says {
    /// A value of the kind that it waits for.
    Fitting(u8),
    /// This value.
    Exactly(Value),
}

/// A value that a condition is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i16),
    /// A number, in halves.
    Float(i16),
    /// Which text.
    Text(u8),
}

impl Value {
    /// Value number `n` of its kind.
    pub fn fitting(awaits: Type, n: u8) -> Self {
        match awaits {
            Type::Bool => Self::Bool(n.is_multiple_of(2)),
            Type::Int => Self::Int(i16::from(n) - 1),
            Type::Float => Self::Float(i16::from(n) - 1),
            Type::Text => Self::Text(n),
        }
    }

    /// What a condition that waits for `awaits` takes this value for; `None` if it is of another kind. A whole number is a
    /// number too.
    pub fn taken_by(self, awaits: Type) -> Option<Self> {
        match (self, awaits) {
            (Self::Bool(_), Type::Bool)
            | (Self::Int(_), Type::Int)
            | (Self::Float(_), Type::Float)
            | (Self::Text(_), Type::Text) => Some(self),
            (Self::Int(n), Type::Float) => Some(Self::Float(n.saturating_mul(2))),
            _ => None,
        }
    }

    fn text(n: u8) -> String {
        // The empty text is a text, and so is one that is no ASCII.
        match n {
            0 => String::new(),
            n => format!("yes, „{n}“"),
        }
    }

    /// As the console and the CLI send it.
    pub fn payload(self) -> EventPayload {
        let value = match self {
            Self::Bool(b) => event_payload::Value::BoolValue(b),
            Self::Int(n) => event_payload::Value::IntValue(n.into()),
            Self::Float(halves) => event_payload::Value::FloatValue(f64::from(halves) / 2.0),
            Self::Text(n) => event_payload::Value::StringValue(Self::text(n)),
        };
        EventPayload { value: Some(value), ..Default::default() }
    }

    /// As actions send it to each other.
    pub fn literal(self) -> Literal {
        let value = match self {
            Self::Bool(b) => primitive::Value::Boolean(b),
            Self::Int(n) => primitive::Value::Integer(n.into()),
            Self::Float(halves) => primitive::Value::FloatValue(f64::from(halves) / 2.0),
            Self::Text(n) => primitive::Value::StringValue(Self::text(n)),
        };
        let primitive = Primitive { value: Some(value), ..Default::default() };
        let scalar = Scalar { value: Some(scalar::Value::from(primitive)), ..Default::default() };
        Literal { value: Some(literal::Value::from(scalar)), ..Default::default() }
    }

    /// Reads it where it is shown.
    ///
    /// # Errors
    /// What nobody ever said.
    pub fn read(shown: &Literal) -> Result<Self, String> {
        let unknown = || format!("nobody signals {shown:?}");
        let Some(literal::Value::Scalar(scalar)) = &shown.value else { return Err(unknown()) };
        let Some(scalar::Value::Primitive(primitive)) = &scalar.value else { return Err(unknown()) };
        match &primitive.value {
            Some(primitive::Value::Boolean(b)) => Ok(Self::Bool(*b)),
            Some(primitive::Value::Integer(n)) => i16::try_from(*n).map(Self::Int).map_err(|_| unknown()),
            Some(primitive::Value::FloatValue(x)) if (x * 2.0).fract() == 0.0 && x.abs() < 10_000.0 => {
                Ok(Self::Float((x * 2.0) as i16))
            }
            Some(primitive::Value::StringValue(text)) => {
                (0..=u8::MAX).find(|n| Self::text(*n) == *text).map(Self::Text).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }
}

impl Condition {
    fn simple(&self) -> SimpleType {
        match self.awaits {
            Type::Bool => SimpleType::BOOLEAN,
            Type::Int => SimpleType::INTEGER,
            Type::Float => SimpleType::FLOAT,
            Type::Text => SimpleType::STRING,
        }
    }

    /// The condition of an enqueue, and of the details.
    pub fn wire(&self) -> ConditionAction {
        let timeout = self.timeout.map(|ms| Duration {
            seconds: i64::from(ms / 1000),
            nanos: i32::from(ms % 1000) * 1_000_000,
            ..Default::default()
        });
        let r#type =
            LiteralType { r#type: Some(literal_type::Type::Simple(self.simple().into())), ..Default::default() };
        ConditionAction {
            name: self.title(),
            r#type: r#type.into(),
            prompt: format!("Is {} so?", self.title()),
            timeout: timeout.into(),
            ..Default::default()
        }
    }

    /// Reads it where it is shown.
    ///
    /// # Errors
    /// What nobody ever declared.
    pub fn read(shown: &ConditionAction) -> Result<Self, String> {
        let unknown = || format!("nobody declares {shown:?}");
        let timeout = shown.timeout.as_option().map(|d| d.seconds * 1000 + i64::from(d.nanos) / 1_000_000);
        let timeout = timeout.map(u16::try_from).transpose().map_err(|_| unknown())?;
        let name = shown.name.strip_prefix("condition").and_then(|n| n.parse().ok()).ok_or_else(unknown)?;
        let types = [Type::Bool, Type::Int, Type::Float, Type::Text];
        let read = types.map(|awaits| Self { name, awaits, timeout });
        read.into_iter().find(|condition| condition.wire() == *shown).ok_or_else(unknown)
    }

    /// The name its author gives it.
    pub fn title(&self) -> String {
        format!("condition{}", self.name)
    }
}

/// How a condition was signalled, as the details show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signalled {
    /// The value.
    pub value: Value,
    /// By whom.
    pub by: Person,
}

impl Signalled {
    /// Reads it.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn read(info: &SignalInfo) -> Result<Self, String> {
        Ok(Self { value: Value::read(&info.output)?, by: Person::read(&info.signalled_by)? })
    }
}
