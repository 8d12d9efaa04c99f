//! Pages of lists, and how the next one is found.
//!
//! **Invariant:** a row that meets a list's filters from its first page to its last is on exactly one of its pages, whatever
//! is written in between. A list in the order of fields that never change goes on after the last row seen (a keyset). For
//! any other order the rows' identifiers are kept, in that order, when the first page is made, and the token names what is
//! kept; rows that no longer meet the filters are left out of later pages.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{Cursor, Direction, Filter, ListScope, Listed, SortBy, StoreError};

/// How long a kept order lasts. Long enough for a person who reads page after page.
pub const KEPT_FOR: Duration = Duration::from_secs(3600);

/// Most rows of one kept order: 8 MB of identifiers.
pub const MAX_KEPT: usize = 1_000_000;

/// Most rows of all kept orders together; the oldest give way. A client that pages slowly while others ask for many such
/// lists is told that its token has expired.
pub const MAX_KEPT_TOGETHER: usize = 4 * MAX_KEPT;

/// What a list is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// All must hold.
    pub filters: Vec<Filter>,
    /// Its order, most important key first; ties are broken by order of creation. Empty is the newest first.
    pub sort: Vec<SortBy>,
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

impl<T> Page<T> {
    /// A page of nothing.
    pub fn empty() -> Self {
        Self { rows: Vec::new(), next: String::new() }
    }
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// At the start.
    #[serde(skip)]
    Start,
    /// After the row with these sort values and this row number.
    #[serde(rename = "a")]
    After(Vec<Cursor>, i64),
    /// At this place of a kept order.
    #[serde(rename = "k")]
    Kept {
        /// Which.
        #[serde(rename = "i")]
        order: i64,
        /// Place of the next row.
        #[serde(rename = "n")]
        at: usize,
    },
}

/// A token as it travels: a position, and what list it belongs to.
#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(rename = "q")]
    list: u64,
    #[serde(rename = "p")]
    position: Position,
}

impl ListQuery {
    /// The newest rows that meet `filters`.
    pub fn newest(filters: Vec<Filter>, limit: usize) -> Self {
        Self { filters, sort: vec![SortBy::newest()], limit, token: String::new() }
    }

    /// The order, never empty.
    pub fn order(&self) -> Vec<SortBy> {
        if self.sort.is_empty() { vec![SortBy::newest()] } else { self.sort.clone() }
    }

    /// The direction in which ties are broken.
    pub fn tie(&self) -> Direction {
        self.sort.last().map_or(Direction::Descending, |s| s.direction)
    }

    /// Whether the order of rows can change between two pages.
    pub fn is_fixed(&self, of: Listed) -> bool {
        self.order().iter().all(|s| s.field.is_fixed(of))
    }

    /// What tells this list from others, whatever the page: a token is good for one list only.
    pub fn fingerprint(&self, of: Listed, scope: &impl std::fmt::Debug) -> u64 {
        let text = format!("{of:?} {scope:?} {:?} {:?}", self.filters, self.order());
        // FNV-1a. It tells mistakes apart; nothing secret hangs on it.
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Where this page begins.
    ///
    /// # Errors
    /// [`StoreError::BadToken`].
    pub fn position(&self, list: u64) -> Result<Position, StoreError> {
        if self.token.is_empty() {
            return Ok(Position::Start);
        }
        let bytes = URL_SAFE_NO_PAD.decode(&self.token).map_err(|_| StoreError::BadToken)?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| StoreError::BadToken)?;
        if token.list != list {
            return Err(StoreError::BadToken);
        }
        if let Position::After(values, _) = &token.position
            && values.len() != self.order().len()
        {
            return Err(StoreError::BadToken);
        }
        Ok(token.position)
    }

    /// The token of the page that begins at `position`.
    pub fn token(list: u64, position: Position) -> String {
        let json = serde_json::to_vec(&Token { list, position }).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(json)
    }
}

impl ListScope {
    /// Whether it covers a place.
    pub fn covers(&self, scope: &aloft_core::Scope) -> bool {
        let fits = |wanted: &str, actual: &str| wanted.is_empty() || wanted == actual;
        fits(&self.org, &scope.org) && fits(&self.project, &scope.project) && fits(&self.domain, &scope.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Field;

    #[test]
    fn tokens_travel_and_belong_to_one_list() {
        let mut query = ListQuery::newest(vec![Filter::equal(Field::Name, "x")], 10);
        let list = query.fingerprint(Listed::Runs, &"here");
        assert_eq!(query.position(list), Ok(Position::Start));
        for position in [
            Position::After(vec![Cursor::Int(7)], 3),
            Position::After(vec![Cursor::Text("ä".into())], 3),
            Position::Kept { order: 5, at: 200 },
        ] {
            query.token = ListQuery::token(list, position.clone());
            assert_eq!(query.position(list), Ok(position));
            let other = ListQuery { filters: Vec::new(), ..query.clone() };
            assert_eq!(other.position(other.fingerprint(Listed::Runs, &"here")), Err(StoreError::BadToken));
            assert_ne!(list, query.fingerprint(Listed::Runs, &"there"));
        }
        query.token = ListQuery::token(list, Position::After(Vec::new(), 3));
        assert_eq!(query.position(list), Err(StoreError::BadToken), "as many values as keys");
        query.token = "nonsense".into();
        assert_eq!(query.position(list), Err(StoreError::BadToken));
    }

    #[test]
    fn what_may_change_is_known() {
        let by = |field| ListQuery {
            sort: vec![SortBy { field, direction: Direction::Ascending }],
            ..ListQuery::newest(Vec::new(), 1)
        };
        assert!(by(Field::CreatedAt).is_fixed(Listed::Runs) && by(Field::Label("x".into())).is_fixed(Listed::Runs));
        assert!(!by(Field::Phase).is_fixed(Listed::Runs) && !by(Field::UpdatedAt).is_fixed(Listed::Actions));
        assert!(by(Field::CreatedAt).is_fixed(Listed::Versions) && !by(Field::CreatedAt).is_fixed(Listed::Tasks));
    }
}
