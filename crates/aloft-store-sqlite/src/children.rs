//! The children of an action in windows.

use std::collections::HashMap;

use aloft_core::{ActionName, ActionState, Phase, RunKey};
use aloft_store::{
    ChildGroup, ChildGroups, ChildPlace, ChildQuery, ChildRow, ChildWindow, PhaseCounts, StoreError, sql::Sql,
};
use rusqlite::{Connection, Row, Transaction, params};

use crate::{
    error::from_sqlite,
    list::{self, DIALECT},
    read::{self, Result, action_name, get, load_action, rows},
    stored,
};

/// Changes of what groups of children hold, by run, parent and group.
pub(crate) type Deltas = HashMap<(i64, ActionName, String), [i64; 10]>;

/// Counts a child of `run_id` out of the phase that it was in, and into the one that it is in.
pub(crate) fn count(deltas: &mut Deltas, run_id: i64, before: Option<Phase>, after: &ActionState) {
    let Some(parent) = after.parent().filter(|_| before != Some(after.phase)) else { return };
    let delta = deltas.entry((run_id, parent.clone(), after.group.clone())).or_default();
    if let Some(before) = before {
        delta[before as usize - 1] -= 1;
    }
    delta[after.phase as usize - 1] += 1;
}

/// Writes what a batch changed.
pub(crate) fn write(tx: &Transaction<'_>, deltas: &Deltas) -> std::result::Result<(), StoreError> {
    let sql = "INSERT INTO child_counts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
               ON CONFLICT DO UPDATE SET p1 = p1 + ?4, p2 = p2 + ?5, p3 = p3 + ?6, p4 = p4 + ?7, p5 = p5 + ?8,
                   p6 = p6 + ?9, p7 = p7 + ?10, p8 = p8 + ?11, p9 = p9 + ?12, p10 = p10 + ?13";
    let mut statement = tx.prepare_cached(sql).map_err(from_sqlite)?;
    for ((run_id, parent, group), d) in deltas {
        let changed =
            params![run_id, parent.as_str(), group, d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9]];
        statement.execute(changed).map_err(from_sqlite)?;
    }
    Ok(())
}

/// Ten columns from `first` on.
fn counts(row: &Row<'_>, first: usize) -> Result<PhaseCounts> {
    let mut counts = [0; 10];
    for (i, count) in counts.iter_mut().enumerate() {
        *count = u64::try_from(get::<Option<i64>>(row, first + i)?.unwrap_or(0)).unwrap_or(0);
    }
    Ok(PhaseCounts::new(counts))
}

const SUMS: &str = "sum(p1), sum(p2), sum(p3), sum(p4), sum(p5), sum(p6), sum(p7), sum(p8), sum(p9), sum(p10)";

/// Whether an action is shown as ended; `None` if it does not exist.
fn has_ended(db: &Connection, run_id: i64, name: &ActionName) -> Result<Option<bool>> {
    let Some(state) = load_action(db, run_id, name)? else { return Ok(None) };
    let shown = read::as_shown(db, run_id, vec![state])?;
    Ok(shown.first().map(|state| state.phase.is_terminal()))
}

pub(crate) fn groups(
    db: &Connection,
    run: &RunKey,
    parent: &ActionName,
    after: Option<&str>,
    limit: usize,
) -> Result<Option<ChildGroups>> {
    let Some((run_id, seq, _)) = read::find_run(db, run)? else { return Ok(None) };
    let Some(ended) = has_ended(db, run_id, parent)? else { return Ok(None) };
    let shown = |counts: PhaseCounts| if ended { counts.shown_under_ended() } else { counts };
    let sql = "SELECT grp, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10 FROM child_counts
               WHERE run_id = ?1 AND parent = ?2 AND (?3 IS NULL OR grp > ?3) ORDER BY grp LIMIT ?4";
    let mut groups = rows(db, sql, &[&run_id, &parent.as_str(), &after, &(limit as i64 + 1)], |row| {
        Ok(ChildGroup { name: get(row, 0)?, counts: shown(counts(row, 1)?) })
    })?;
    let more = groups.len() > limit;
    groups.truncate(limit);
    let sql = format!("SELECT {SUMS} FROM child_counts WHERE run_id = ?1 AND parent = ?2");
    let all = rows(db, &sql, &[&run_id, &parent.as_str()], |row| counts(row, 0))?.pop().unwrap_or_default();
    Ok(Some(ChildGroups { seq, counts: shown(all), groups, more }))
}

pub(crate) fn window(db: &Connection, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>> {
    let Some((run_id, seq, _)) = read::find_run(db, run)? else { return Ok(None) };
    if load_action(db, run_id, &query.parent)?.is_none() {
        return Ok(None);
    }
    let (group, row) = query.after.as_ref().map_or(("", i64::MIN), |at| (at.group.as_str(), at.row));
    let sql = |which| {
        format!(
            "SELECT id, grp, state FROM actions INDEXED BY actions_by_group
             WHERE run_id = ?1 AND parent = ?2 AND {which} AND (grp, id) > (?3, ?4) ORDER BY grp, id LIMIT ?5"
        )
    };
    let decode = |row: &Row<'_>| {
        let place = ChildPlace { row: get(row, 0)?, group: get(row, 1)? };
        Ok((place, stored::state(&get::<Vec<u8>>(row, 2)?)?))
    };
    let limit = query.limit as i64 + 1;
    let mut found = match &query.group {
        Some(only) => {
            rows(db, &sql("grp = ?6"), &[&run_id, &query.parent.as_str(), &group, &row, &limit, only], decode)?
        }
        None => rows(db, &sql("true"), &[&run_id, &query.parent.as_str(), &group, &row, &limit], decode)?,
    };
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let (places, states): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let states = read::as_shown(db, run_id, states)?;
    let names: Vec<_> = states.iter().map(|state| state.name.as_str()).collect();
    let mut below = below(db, run_id, &names)?;
    let rows = places.into_iter().zip(states).map(|(place, state)| {
        let children = below.remove(&state.name).unwrap_or_default();
        let children = if state.phase.is_terminal() { children.shown_under_ended() } else { children };
        ChildRow { place, state, children }
    });
    Ok(Some(ChildWindow { seq, rows: rows.collect(), more }))
}

/// What the children of some actions are, by their parents.
fn below(db: &Connection, run_id: i64, names: &[&str]) -> Result<HashMap<ActionName, PhaseCounts>> {
    let mut sql = Sql::new(format!("SELECT parent, {SUMS} FROM child_counts WHERE run_id = "));
    sql.bind(aloft_store::Cursor::Int(run_id));
    sql.push(" AND parent IN (SELECT value FROM ");
    DIALECT.push_texts(&mut sql, names);
    sql.push(") GROUP BY parent");
    let found = list::rows(db, &sql, |row| Ok((action_name(row, 0)?, counts(row, 1)?)))?;
    Ok(found.into_iter().collect())
}
