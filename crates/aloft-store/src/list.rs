//! What lists can be asked: fields, filters, orders.

use aloft_core::Time;
use serde::{Deserialize, Serialize};

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Runs.
    Runs,
    /// Actions of one run.
    Actions,
    /// Deployed tasks, each name once with its newest version.
    Tasks,
    /// Deployed tasks, every version.
    Versions,
}

/// A field that lists can filter and sort by. A list that does not have the field sees it as not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Run, action or task name.
    Name,
    /// Name of the run.
    RunName,
    /// Organisation.
    Org,
    /// Project.
    Project,
    /// Domain.
    Domain,
    /// Phase number, as shown.
    Phase,
    /// Creation or deployment time.
    CreatedAt,
    /// Time of the last change.
    UpdatedAt,
    /// When it first ran.
    StartedAt,
    /// Time of the end.
    EndedAt,
    /// Length in milliseconds.
    Duration,
    /// Number of attempts.
    Attempts,
    /// What caching did, as [`aloft_core::CacheStatus`] is written.
    CacheStatus,
    /// All that an action is called by, a line each: its name, its task's short name, its task's full name.
    Title,
    /// Full task name.
    TaskName,
    /// Task version.
    TaskVersion,
    /// Project of the task's identifier.
    TaskProject,
    /// Domain of the task's identifier.
    TaskDomain,
    /// Name shown to people.
    ShortName,
    /// Task environment.
    Environment,
    /// Subject that started or deployed it.
    CreatedBy,
    /// `RunSource` number.
    Source,
    /// Name of the run it was made from: rerun, recovered, spawned.
    RelatedTo,
    /// Parent action.
    Parent,
    /// Group.
    Group,
    /// `ActionType` number.
    Kind,
    /// Whether a deployed task is an entry point (0 or 1).
    Entrypoint,
    /// Trigger that started the run.
    TriggerName,
    /// Task of that trigger.
    TriggerTask,
    /// Revision of that trigger.
    TriggerRevision,
    /// Kind of that trigger.
    TriggerType,
    /// Set if an action of the run waits for somebody.
    PausedActions,
    /// A label of a run.
    Label(String),
}

/// What the values of a field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text, compared by its bytes. Empty means not set, but for labels.
    Text,
    /// A number.
    Number,
    /// Microseconds since the epoch.
    Time,
    /// 0 or 1.
    Flag,
}

impl Field {
    /// What its values are.
    pub fn value_type(&self) -> FieldType {
        match self {
            Self::Phase | Self::Duration | Self::Attempts | Self::Source | Self::Kind | Self::TriggerRevision => {
                FieldType::Number
            }
            Self::CreatedAt | Self::UpdatedAt | Self::StartedAt | Self::EndedAt => FieldType::Time,
            Self::Entrypoint | Self::PausedActions => FieldType::Flag,
            Self::Name
            | Self::RunName
            | Self::Org
            | Self::Project
            | Self::Domain
            | Self::CacheStatus
            | Self::Title
            | Self::TaskName
            | Self::TaskVersion
            | Self::TaskProject
            | Self::TaskDomain
            | Self::ShortName
            | Self::Environment
            | Self::CreatedBy
            | Self::RelatedTo
            | Self::Parent
            | Self::Group
            | Self::TriggerName
            | Self::TriggerTask
            | Self::TriggerType
            | Self::Label(_) => FieldType::Text,
        }
    }

    /// Whether the field of a row never changes while the row exists. A list in the order of such fields can go on from
    /// the last row seen; any other list must keep its order from page to page.
    pub fn is_fixed(&self, of: Listed) -> bool {
        let place = matches!(self, Self::Name | Self::TaskName | Self::Org | Self::Project | Self::Domain);
        match of {
            Listed::Versions => true,
            // A new version of a name changes everything else about it.
            Listed::Tasks => place,
            Listed::Runs | Listed::Actions => !matches!(
                self,
                Self::Phase
                    | Self::UpdatedAt
                    | Self::StartedAt
                    | Self::EndedAt
                    | Self::Duration
                    | Self::Attempts
                    | Self::CacheStatus
                    | Self::PausedActions
            ),
        }
    }
}

/// How a field is compared (`flyteidl2.common.Filter.Function`). The negative ones hold for a field that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Equal to the value.
    Equal,
    /// Different from the value.
    NotEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Holds the value as a part.
    Contains,
    /// Holds the value as a part, whatever its case.
    ContainsNoCase,
    /// One of the values.
    In,
    /// None of the values.
    NotIn,
    /// Ends with the value.
    EndsWith,
    /// Does not end with the value.
    NotEndsWith,
    /// Is set.
    Exists,
    /// Is not set.
    NotExists,
}

impl Op {
    /// Every function.
    pub const ALL: [Self; 14] = [
        Self::Equal,
        Self::NotEqual,
        Self::Greater,
        Self::GreaterOrEqual,
        Self::Less,
        Self::LessOrEqual,
        Self::Contains,
        Self::ContainsNoCase,
        Self::In,
        Self::NotIn,
        Self::EndsWith,
        Self::NotEndsWith,
        Self::Exists,
        Self::NotExists,
    ];

    /// Whether it looks into text.
    pub const fn is_textual(self) -> bool {
        matches!(self, Self::Contains | Self::ContainsNoCase | Self::EndsWith | Self::NotEndsWith)
    }
}

/// A value that a field is compared with, or that a row was sorted by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cursor {
    /// Nothing.
    Null,
    /// A number, a time in microseconds, a phase.
    Int(i64),
    /// Text.
    Text(String),
}

impl From<Time> for Cursor {
    fn from(at: Time) -> Self {
        Self::Int(at.as_micros())
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// On what.
    pub field: Field,
    /// How.
    pub op: Op,
    /// Against what: one value, several for [`Op::In`] and [`Op::NotIn`], none for [`Op::Exists`].
    pub values: Vec<Cursor>,
}

impl Filter {
    /// The field has this text.
    pub fn equal(field: Field, value: &str) -> Self {
        Self { field, op: Op::Equal, values: vec![Cursor::Text(value.to_owned())] }
    }
}

/// Up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first; what is not set comes first.
    Ascending,
    /// Largest first.
    Descending,
}

/// One key of the order of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortBy {
    /// By what.
    pub field: Field,
    /// Up or down.
    pub direction: Direction,
}

impl SortBy {
    /// The newest first.
    pub fn newest() -> Self {
        Self { field: Field::CreatedAt, direction: Direction::Descending }
    }
}
