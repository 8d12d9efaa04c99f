//! The children of an action in windows.

use std::collections::HashMap;

use aloft_core::{ActionName, RunKey};
use aloft_store::{ChildGroup, ChildGroups, ChildPlace, ChildQuery, ChildRow, ChildWindow, PhaseCounts};
use tokio_postgres::Row;

use crate::{
    read::{self, Reader, Result, state},
    rows::{action_name, clean, number},
};

/// Ten columns from `first` on.
fn counts(row: &Row, first: usize) -> PhaseCounts {
    PhaseCounts::new(std::array::from_fn(|i| number(row, first + i)))
}

const SUMS: &str =
    "sum(p1)::bigint, sum(p2)::bigint, sum(p3)::bigint, sum(p4)::bigint, sum(p5)::bigint, sum(p6)::bigint,
                    sum(p7)::bigint, sum(p8)::bigint, sum(p9)::bigint, sum(p10)::bigint";

/// Whether an action is shown as ended; `None` if it does not exist.
async fn has_ended(db: &Reader, run_id: i64, name: &ActionName) -> Result<Option<bool>> {
    let sql = "SELECT state FROM actions WHERE run_id = $1 AND name = $2";
    let found = db.rows(sql, &[&run_id, &name.as_str()], |row| state(row, 0)).await?;
    let shown = read::as_shown(db, run_id, found).await?;
    Ok(shown.first().map(|state| state.phase.is_terminal()))
}

pub(crate) async fn groups(
    db: &Reader,
    run: &RunKey,
    parent: &ActionName,
    after: Option<&str>,
    limit: usize,
) -> Result<Option<ChildGroups>> {
    let Some((run_id, seq, _)) = read::find_run(db, run).await? else { return Ok(None) };
    let Some(ended) = has_ended(db, run_id, parent).await? else { return Ok(None) };
    let shown = |counts: PhaseCounts| if ended { counts.shown_under_ended() } else { counts };
    let sql = "SELECT grp, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10 FROM child_counts
               WHERE run_id = $1 AND parent = $2 AND ($3::text IS NULL OR grp > $3) ORDER BY grp LIMIT $4";
    let most = limit as i64 + 1;
    let mut groups = db
        .rows(sql, &[&run_id, &parent.as_str(), &after.map(clean), &most], |row| {
            Ok(ChildGroup { name: row.get(0), counts: shown(counts(row, 1)) })
        })
        .await?;
    let more = groups.len() > limit;
    groups.truncate(limit);
    let sql = format!("SELECT {SUMS} FROM child_counts WHERE run_id = $1 AND parent = $2");
    let all = db.rows(&sql, &[&run_id, &parent.as_str()], |row| Ok(counts(row, 0))).await?;
    let all = all.first().copied().unwrap_or_default();
    Ok(Some(ChildGroups { seq, counts: shown(all), groups, more }))
}

pub(crate) async fn window(db: &Reader, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>> {
    let Some((run_id, seq, _)) = read::find_run(db, run).await? else { return Ok(None) };
    if has_ended(db, run_id, &query.parent).await?.is_none() {
        return Ok(None);
    }
    let (group, row) = query.after.as_ref().map_or(("", i64::MIN), |at| (at.group.as_str(), at.row));
    let (group, only) = (clean(group), query.group.as_deref().map(clean));
    let sql = "SELECT id, grp, state FROM actions
               WHERE run_id + 0 = $1 AND parent = $2 AND ($6::text IS NULL OR grp = $6) AND (grp, id) > ($3, $4)
               ORDER BY grp, id LIMIT $5";
    // A constant is seen by the planner, so that one group is one range of the index.
    let sql = if only.is_some() { sql.replace("($6::text IS NULL OR grp = $6)", "grp = $6") } else { sql.to_owned() };
    let most = query.limit as i64 + 1;
    let mut found = db
        .rows(&sql, &[&run_id, &query.parent.as_str(), &group, &row, &most, &only], |row| {
            Ok((ChildPlace { row: row.get(0), group: row.get(1) }, state(row, 2)?))
        })
        .await?;
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let (places, states): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let states = read::as_shown(db, run_id, states).await?;
    let names: Vec<_> = states.iter().map(|state| state.name.as_str()).collect();
    let sql = format!("SELECT parent, {SUMS} FROM child_counts WHERE run_id = $1 AND parent = ANY($2) GROUP BY parent");
    let below = db.rows(&sql, &[&run_id, &names], |row| Ok((action_name(row, 0)?, counts(row, 1)))).await?;
    let mut below: HashMap<ActionName, PhaseCounts> = below.into_iter().collect();
    let rows = places.into_iter().zip(states).map(|(place, state)| {
        let children = below.remove(&state.name).unwrap_or_default();
        let children = if state.phase.is_terminal() { children.shown_under_ended() } else { children };
        ChildRow { place, state, children }
    });
    Ok(Some(ChildWindow { seq, rows: rows.collect(), more }))
}
