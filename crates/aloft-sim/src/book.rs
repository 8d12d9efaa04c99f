//! The database as it lies on disk, read beside the server: the logs and their projections.

use std::{collections::BTreeMap, path::Path};

use aloft_core::{ActionName, ActionState, Event, Phase, Time, apply};
use aloft_store::unpack;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use crate::ids::RunId;

/// A connection that only reads.
pub struct Book(Connection);

/// One entry of a run's log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number in the run.
    pub seq: u64,
    /// Its place over all runs.
    pub pos: u64,
    /// When it was committed.
    pub at: Time,
    /// What happened.
    pub event: Event,
}

/// A stored action with the columns that lists, dispatch and timers go by.
#[derive(Clone, Debug)]
pub struct Record {
    /// The stored state.
    pub state: ActionState,
    /// `phase`.
    pub phase: i32,
    /// `parent`.
    pub parent: Option<String>,
    /// `depth`.
    pub depth: i64,
    /// `ended_at`.
    pub ended_at: Option<i64>,
    /// `ready_at`.
    pub ready_at: Option<i64>,
    /// `due_at`.
    pub due_at: Option<i64>,
    /// `worker`.
    pub worker: Option<String>,
}

/// All that is stored of a run.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The run.
    pub run: RunId,
    /// The number of the last event that the run's row names.
    pub seq: u64,
    /// Its log.
    pub entries: Vec<Entry>,
    /// Its actions, by name.
    pub records: BTreeMap<String, Record>,
}

/// What a view can have shown of an action at some moment.
pub type Moment = (Phase, u32);

fn words(error: rusqlite::Error) -> String {
    format!("the database cannot be read: {error}")
}

fn state(bytes: &[u8]) -> Result<ActionState, String> {
    let json = unpack(bytes).map_err(|e| format!("a stored state cannot be unpacked: {e}"))?;
    serde_json::from_slice(&json).map_err(|e| format!("a stored state cannot be read: {e}"))
}

fn event(bytes: &[u8]) -> Result<Event, String> {
    let json = unpack(bytes).map_err(|e| format!("an event cannot be unpacked: {e}"))?;
    serde_json::from_slice(&json).map_err(|e| format!("an event cannot be read: {e}"))
}

impl Book {
    /// Opens the database at `path`.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(path, flags).map_err(words)?;
        db.pragma_update(None, "busy_timeout", "5000").map_err(words)?;
        Ok(Self(db))
    }

    /// All of a run as of one moment; `None` if it is not there.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn ledger(&mut self, run: &RunId) -> Result<Option<Ledger>, String> {
        let tx = self.0.transaction().map_err(words)?;
        let key = params!["local", run.place.project, run.place.domain, run.name];
        let found: Option<(i64, i64)> = tx
            .prepare_cached("SELECT id, seq FROM runs WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4")
            .and_then(|mut s| s.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(words)?;
        let Some((id, seq)) = found else { return Ok(None) };
        let mut entries = Vec::new();
        each(&tx, "SELECT seq, pos, at, body FROM events WHERE run_id = ?1 ORDER BY seq", id, |row| {
            let event = event(&row.get::<_, Vec<u8>>(3).map_err(words)?)?;
            let number = |column| row.get::<_, i64>(column).map_err(words);
            entries.push(Entry {
                seq: number(0)? as u64,
                pos: number(1)? as u64,
                at: Time::from_micros(number(2)?),
                event,
            });
            Ok(())
        })?;
        let mut records = BTreeMap::new();
        let sql = "SELECT name, state, phase, parent, depth, ended_at, ready_at, due_at, worker FROM actions
                   WHERE run_id = ?1";
        each(&tx, sql, id, |row| {
            let record = Record {
                state: state(&row.get::<_, Vec<u8>>(1).map_err(words)?)?,
                phase: row.get(2).map_err(words)?,
                parent: row.get(3).map_err(words)?,
                depth: row.get(4).map_err(words)?,
                ended_at: row.get(5).map_err(words)?,
                ready_at: row.get(6).map_err(words)?,
                due_at: row.get(7).map_err(words)?,
                worker: row.get(8).map_err(words)?,
            };
            records.insert(row.get(0).map_err(words)?, record);
            Ok(())
        })?;
        Ok(Some(Ledger { run: run.clone(), seq: seq as u64, entries, records }))
    }
}

fn each(
    db: &Connection,
    sql: &str,
    id: i64,
    mut take: impl FnMut(&Row<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut statement = db.prepare_cached(sql).map_err(words)?;
    let mut rows = statement.query([id]).map_err(words)?;
    while let Some(row) = rows.next().map_err(words)? {
        take(row)?;
    }
    Ok(())
}

/// What a log says, folded.
pub struct Story {
    /// The last state of each action.
    pub states: BTreeMap<ActionName, ActionState>,
    /// What could be seen of each action, moment by moment, without repetitions.
    pub moments: BTreeMap<String, Vec<Moment>>,
    /// Most actions without children that workers had at a time.
    pub most_at_a_time: usize,
}

impl Story {
    /// Folds a log; the number of the first event that does not fit is the error.
    ///
    /// # Errors
    /// The event's number.
    pub fn of(entries: &[Entry]) -> Result<Self, u64> {
        let mut story = Self { states: BTreeMap::new(), moments: BTreeMap::new(), most_at_a_time: 0 };
        for entry in entries {
            let name = entry.event.action().clone();
            let state = apply(story.states.remove(&name), &entry.event, entry.at).ok_or(entry.seq)?;
            let ended = state.phase.is_terminal();
            story.states.insert(name.clone(), state);
            story.look(&name);
            if matches!(entry.event, Event::Leased { .. }) {
                story.most_at_a_time = story.most_at_a_time.max(story.out_and_childless());
            }
            if ended {
                // With it, all below it are seen as ended.
                let below = story.states.values().filter(|s| s.ancestors.contains(&name));
                let below: Vec<ActionName> = below.map(|s| s.name.clone()).collect();
                below.iter().for_each(|name| story.look(name));
            }
        }
        Ok(story)
    }

    fn out_and_childless(&self) -> usize {
        let childless = |name: &ActionName| !self.states.values().any(|state| state.parent() == Some(name));
        self.states.values().filter(|state| state.live_lease().is_some() && childless(&state.name)).count()
    }

    /// Remembers how `name` looks now.
    fn look(&mut self, name: &ActionName) {
        let Some(state) = self.states.get(name) else { return };
        let over = |above: &ActionName| self.states.get(above).is_some_and(|a| a.phase.is_terminal());
        let phase = match state.phase {
            phase if phase.is_terminal() => phase,
            _ if state.ancestors.iter().any(over) => Phase::Aborted,
            phase => phase,
        };
        let moment = (phase, u32::try_from(state.attempts.len()).unwrap_or(u32::MAX));
        let moments = self.moments.entry(name.to_string()).or_default();
        if moments.last() != Some(&moment) {
            moments.push(moment);
        }
    }
}
