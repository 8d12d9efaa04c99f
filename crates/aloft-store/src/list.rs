//! What lists can be asked: filters, orders, pages.

use aloft_core::Time;
use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// A field that lists can filter and sort by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Run, action or task name.
    Name,
    /// Phase number.
    Phase,
    /// Creation or deployment time.
    CreatedAt,
    /// Time of the last change.
    UpdatedAt,
    /// Time of the end.
    EndedAt,
    /// Length in milliseconds.
    Duration,
    /// Full task name.
    TaskName,
    /// Task version.
    TaskVersion,
    /// Name shown to people.
    ShortName,
    /// Task environment.
    Environment,
    /// Subject that started or deployed it.
    CreatedBy,
    /// `RunSource` number.
    Source,
    /// Parent action.
    Parent,
    /// Group.
    Group,
    /// `ActionType` number.
    Kind,
    /// Task version of a deployed task.
    Version,
    /// Whether a deployed task is an entry point (0 or 1).
    Entrypoint,
    /// A label of a run.
    Label(String),
}

/// How a field is compared (`flyteidl2.common.Filter.Function`).
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

/// A value that a field is compared with.
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

/// Up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// The order of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortBy {
    /// By what.
    pub field: Field,
    /// Up or down.
    pub direction: Direction,
}

/// What a list is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// All must hold.
    pub filters: Vec<Filter>,
    /// Its order; ties are broken by order of creation.
    pub sort: SortBy,
    /// Most rows of a page.
    pub limit: usize,
    /// Where to go on: the token of the page before, empty for the first.
    pub token: String,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Token of the next page; empty if this is the last.
    pub next: String,
}

impl ListQuery {
    /// The place to go on after: the sort value and row number of the last row seen.
    ///
    /// # Errors
    /// [`StoreError::BadToken`].
    pub fn after(&self) -> Result<Option<(Cursor, i64)>, StoreError> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let bytes =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&self.token).map_err(|_| StoreError::BadToken)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|_| StoreError::BadToken)
    }

    /// The token of the place after a row.
    pub fn token_after(value: &Cursor, row: i64) -> String {
        let json = serde_json::to_vec(&(value, row)).unwrap_or_default();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }
}
