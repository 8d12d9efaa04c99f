//! What a batch decided, as rows. Many rows to a statement, and one statement of all of them ([`super::send`]): the cost is
//! statements, not rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aloft_core::{ActionName, ActionState, RunKey, Scope, Seed, Time};
use aloft_store::{Share, day, shared_blob};

use super::{
    Trouble,
    columns::{Columns, word},
    decide::{CacheChange, Changed, Decided},
    live,
    load::Known,
    send::{Statements, params},
};
use crate::{
    Tx, cache,
    rows::{amount, clean, encode, encode_packed},
};

/// Numbers of actions within a run: more than any run can have.
pub(crate) const ACTIONS: i64 = 1 << 24;

/// An action to write, with its row number and its run.
pub(super) struct Row<'r> {
    pub(super) id: i64,
    pub(super) run_id: i64,
    pub(super) key: &'r RunKey,
    pub(super) changed: &'r Changed,
    /// Its phase before, unless it is new, and how many open children it had.
    was: Option<(&'r ActionState, i64)>,
}

impl Row<'_> {
    /// Whether it had to be looked after before the batch.
    fn was_live(&self) -> bool {
        self.was.is_some_and(|(state, open)| !state.phase.is_terminal() || open > 0)
    }

    /// Whether it has to be looked after now.
    fn is_live(&self) -> bool {
        !self.changed.state.phase.is_terminal() || self.changed.open_children > 0
    }
}

/// The rows of a batch.
pub(super) struct Rows<'r> {
    known: &'r Known,
    decided: &'r Decided,
    /// The row numbers of the runs that it changes.
    pub(super) runs: HashMap<RunKey, i64>,
    /// By their numbers.
    actions: Vec<Row<'r>>,
}

impl<'r> Rows<'r> {
    /// Gives new runs their numbers.
    pub(super) fn of(known: &'r Known, decided: &'r Decided) -> Self {
        let mut fresh = known.fresh.iter().copied();
        let numbered = decided.runs.keys().filter_map(|key| {
            let id = known.runs.get(key).map(|run| run.id).or_else(|| fresh.next())?;
            Some((key.clone(), id))
        });
        let runs: HashMap<RunKey, i64> = numbered.collect();
        let mut actions = Vec::new();
        for (key, changed) in &decided.actions {
            let Some(run_id) = runs.get(key).copied().or_else(|| known.runs.get(key).map(|r| r.id)) else { continue };
            let stored = known.actions.get(key);
            for (name, changed) in changed {
                let stored = stored.and_then(|a| a.get(name));
                let Some(id) = changed.new.map(|n| run_id * ACTIONS + n).or_else(|| stored.map(|s| s.id)) else {
                    continue;
                };
                let was = stored.map(|s| (&s.state, s.open_children));
                actions.push(Row { id, run_id, key, changed, was });
            }
        }
        actions.sort_by_key(|row| row.id);
        Self { known, decided, runs, actions }
    }

    /// Everything but the place of the commit.
    pub(super) fn write(&self, all: &mut Statements<'r>) -> Result<(), Trouble> {
        self.insert_runs(all)?;
        self.blobs(all);
        let touched = self.actions.iter().filter(|row| row.changed.at.is_some());
        let (new, old): (Vec<&Row<'_>>, Vec<&Row<'_>>) = touched.partition(|row| row.changed.new.is_some());
        self.insert_actions(all, &new)?;
        self.update_actions(all, &old)?;
        self.live(all);
        self.events(all)?;
        self.child_counts(all);
        self.update_runs(all);
        self.roots(all)
    }

    /// What the batch adds to what queues hold.
    pub(super) fn loads(&self) -> BTreeMap<(&'r Scope, &'r str), Share> {
        let mut loads: BTreeMap<(&Scope, &str), Share> = BTreeMap::new();
        for row in &self.actions {
            let state = &row.changed.state;
            let Some(queue) = state.queue() else { continue };
            let started = self.decided.runs.get(row.key).is_some_and(|r| r.started);
            let load = loads.entry((&row.key.scope, queue)).or_default();
            load.add(Share::of(state, row.changed.open_children, started));
            if let Some((was, open)) = row.was {
                let was_started = self.known.runs.get(row.key).is_some_and(|r| r.started);
                load.take(Share::of(was, open, was_started));
            }
        }
        loads
    }

    /// Whether a run is known to use a blob already: then it is there.
    fn has_blob(&self, run: &RunKey, digest: &str) -> bool {
        self.known.noted.get(run).is_some_and(|noted| noted.has_blob(digest))
    }

    /// The rows of actions that looked into the cache before, and wait for it.
    fn looking_up(&self) -> impl Iterator<Item = i64> {
        let own = self.actions.iter().filter(|row| row.was.is_some_and(|(was, _)| was.pending_lookup().is_some()));
        own.map(|row| row.id)
    }

    /// Whether the batch changes something in the cache, or for those who look into it.
    pub(super) fn change_cache(&self) -> bool {
        !self.decided.cache.is_empty() || self.looking_up().next().is_some()
    }

    /// Stores the blobs that are new, and notes which ones that runs share are used by runs of which day. Who looks for
    /// a blob has the lock on the uses by then (`prune.rs` says why): one statement takes its locks before it begins.
    fn blobs(&self, all: &mut Statements<'r>) {
        let decided = self.decided;
        let mut uses: BTreeSet<(&Scope, i64, &str)> = BTreeSet::new();
        for (key, actions) in &decided.actions {
            let mut created_at = self.known.runs.get(key).map(|run| run.created_at);
            if created_at.is_none() {
                created_at = actions.get(&ActionName::root()).map(|root| root.state.created_at);
            }
            let Some(created_at) = created_at else { continue };
            let noted = self.known.noted.get(key);
            for changed in actions.values().filter(|c| c.new.is_some()) {
                let used = shared_blob(&changed.state).filter(|digest| noted.is_none_or(|n| !n.has_blob(digest)));
                uses.extend(used.map(|digest| (&key.scope, day(created_at), digest)));
            }
        }
        let blobs: Vec<_> = decided.blobs.iter().filter(|(digest, (run, _))| !self.has_blob(run, digest)).collect();
        let text = |f: fn(&Scope) -> &String| uses.iter().map(|(scope, ..)| f(scope).as_str()).collect::<Vec<_>>();
        let days: Vec<i64> = uses.iter().map(|(_, day, _)| *day).collect();
        let used: Vec<&str> = uses.iter().map(|(.., digest)| *digest).collect();
        let (digests, blobs): (Vec<&str>, Vec<_>) =
            blobs.into_iter().map(|(digest, blob)| (digest.as_str(), blob)).unzip();
        let bytes: Vec<&[u8]> = blobs.iter().map(|(_, blob)| blob.bytes.as_ref()).collect();
        let owner = |run: &RunKey| self.runs.get(run).copied().unwrap_or_default();
        let owners: Vec<Option<i64>> = blobs.iter().map(|(run, blob)| blob.own.then(|| owner(run))).collect();
        if !uses.is_empty() || !digests.is_empty() {
            let sql = "INSERT INTO blob_uses (org, project, domain, day, digest)
                       SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[]) k
                       ON CONFLICT DO NOTHING";
            let (orgs, projects, domains) = (text(|s| &s.org), text(|s| &s.project), text(|s| &s.domain));
            all.add(sql, params![orgs, projects, domains, days, used]);
        }
        if !digests.is_empty() {
            let sql =
                "INSERT INTO blobs (digest, bytes, run_id) SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[]) k
                       ON CONFLICT DO NOTHING";
            all.add(sql, params![digests, bytes, owners]);
        }
    }

    /// Inserts the runs that are new, in the order of their names, so that two batches never wait for each other. Of a run
    /// that another control plane made a moment ago Postgres says so, and the batch is decided again on what is there then.
    fn insert_runs(&self, all: &mut Statements<'r>) -> Result<(), Trouble> {
        let new: Vec<_> = self
            .decided
            .runs
            .iter()
            .filter(|(key, _)| !self.known.runs.contains_key(key))
            .filter_map(|(key, run)| Some((key, run, run.info.as_ref()?, *self.runs.get(key)?)))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let root = ActionName::root();
        let root = |key: &RunKey| self.decided.actions.get(key).and_then(|a| a.get(&root)).map(|c| &c.state);
        let text = |f: fn(&RunKey) -> &String| new.iter().map(|(key, ..)| f(key).as_str()).collect::<Vec<_>>();
        let (orgs, projects) = (text(|k| &k.scope.org), text(|k| &k.scope.project));
        let (domains, names) = (text(|k| &k.scope.domain), text(|k| &k.name));
        let created = new.iter().map(|(key, run, ..)| root(key).map_or(run.at, |state| state.created_at));
        let created: Vec<i64> = created.map(Time::as_micros).collect();
        let created_by: Vec<String> = new.iter().map(|(_, _, info, _)| clean(&info.created_by.id)).collect();
        let sources: Vec<i64> = new.iter().map(|(_, _, info, _)| i64::from(info.source)).collect();
        let queues = new.iter().map(|(key, ..)| match root(key).map(|state| &state.seed) {
            Some(Seed::Task(task)) => task.queue.as_str(),
            _ => aloft_core::DEFAULT_QUEUE,
        });
        let queues: Vec<&str> = queues.collect();
        let most = new.iter().map(|(_, _, info, _)| info.max_action_concurrency.map(i64::from));
        let most: Vec<Option<i64>> = most.collect();
        let related = new.iter().map(|(_, _, info, _)| info.relation.as_ref().map(|r| r.to.name.as_str()));
        let related: Vec<Option<&str>> = related.collect();
        let infos = new.iter().map(|(_, _, info, _)| encode(info)).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<i64> = new.iter().map(|(.., id)| *id).collect();
        let seqs: Vec<i64> = new.iter().map(|(_, run, ..)| amount(run.seq)).collect();
        let made: Vec<i64> = new.iter().map(|(_, run, ..)| run.made).collect();
        let times: Vec<i64> = new.iter().map(|(_, run, ..)| run.at.as_micros()).collect();
        let started: Vec<bool> = new.iter().map(|(_, run, ..)| run.started).collect();
        let ended: Vec<bool> = new.iter().map(|(key, ..)| root(key).is_some_and(|r| r.phase.is_terminal())).collect();
        let flights = self.flights();
        let flown: Vec<i64> = ids.iter().map(|id| flights.get(id).copied().unwrap_or(0)).collect();
        let sql = "INSERT INTO runs (id, org, project, domain, name, seq, made, at, created_at, created_by, source, queue,
                               max_actions, in_flight, started, ended, related_to, info) OVERRIDING SYSTEM VALUE
             SELECT k.id, k.org, k.project, k.domain, k.name, k.seq, k.made, k.at, k.created_at, k.created_by, k.source,
                    k.queue, k.max_actions, k.flown, k.started, k.ended, k.related_to, k.info
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[],
                         $8::text[], $9::bigint[], $10::text[], $11::bytea[], $12::bigint[], $13::bigint[], $14::bigint[],
                         $15::bigint[], $16::bool[], $17::bool[], $18::bigint[], $19::bigint[])
                  k (org, project, domain, name, created_at, created_by, source, queue, max_actions, related_to, info, id,
                     seq, made, at, started, ended, flown, n)
             ORDER BY k.n";
        let mut values = params![orgs, projects, domains, names, created, created_by, sources, queues, most, related];
        let order: Vec<i64> = (0..).take(new.len()).collect();
        values.extend(params![infos, ids, seqs, made, times, started, ended, flown, order]);
        all.add(sql, values);
        let (mut runs, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (_, _, info, id) in &new {
            for (label, value) in &info.labels {
                runs.push(*id);
                keys.push(clean(label));
                values.push(clean(value));
            }
        }
        if !runs.is_empty() {
            let sql = "INSERT INTO run_labels (run_id, key, value)
                       SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) k ON CONFLICT DO NOTHING";
            all.add_any(sql, params![runs, keys, values]);
        }
        Ok(())
    }

    fn insert_actions(&self, all: &mut Statements<'r>, rows: &[&Row<'_>]) -> Result<(), Trouble> {
        if rows.is_empty() {
            return Ok(());
        }
        let c = Columns::of(rows, self.known.packs)?;
        let sql = "INSERT INTO actions (id, run_id, name, parent, grp, kind, phase, created_at, updated_at, started_at,
                                        ended_at, duration_ms, ended_above, attempts, cache_status, task_project,
                                        task_domain, task_name, task_version, short_name, environment, state)
                   SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                       $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bool[],
                       $14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[],
                       $21::text[], $22::bytea[]) k";
        all.add(
            sql,
            params![
                c.ids,
                c.run_ids,
                c.names,
                c.parents,
                c.groups,
                c.kinds,
                c.phases,
                c.created,
                c.updated,
                c.started,
                c.ended,
                c.durations,
                c.above,
                c.attempts,
                c.cache,
                c.task_projects,
                c.task_domains,
                c.task_names,
                c.task_versions,
                c.short_names,
                c.environments,
                c.states,
            ],
        );
        task_runs(all, self.known, rows);
        Ok(())
    }

    fn update_actions(&self, all: &mut Statements<'r>, rows: &[&Row<'_>]) -> Result<(), Trouble> {
        if rows.is_empty() {
            return Ok(());
        }
        let c = Columns::of(rows, self.known.packs)?;
        let sql = "UPDATE actions a SET phase = k.phase, updated_at = k.updated_at, started_at = k.started_at,
                      ended_at = k.ended_at, duration_ms = k.duration_ms, ended_above = k.ended_above,
                      attempts = k.attempts, cache_status = k.cache_status, state = k.state
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bool[],
                           $8::bigint[], $9::text[], $10::bytea[])
                    k (id, phase, updated_at, started_at, ended_at, duration_ms, ended_above, attempts, cache_status, state)
               WHERE a.id = k.id";
        let above = c.above;
        all.add(
            sql,
            params![c.ids, c.phases, c.updated, c.started, c.ended, c.durations, above, c.attempts, c.cache, c.states],
        );
        Ok(())
    }

    fn live(&self, all: &mut Statements<'r>) {
        let gone = self.actions.iter().filter(|row| row.was_live() && !row.is_live());
        let gone: Vec<i64> = gone.map(|row| row.id).collect();
        if !gone.is_empty() {
            let sql = "DELETE FROM live l USING unnest($1::bigint[]) k (id) WHERE l.id = k.id";
            all.add(sql, params![gone]);
        }
        let live = self.actions.iter().filter(|row| row.is_live());
        let (old, new): (Vec<&Row<'_>>, Vec<&Row<'_>>) = live.partition(|row| row.was_live());
        if !new.is_empty() {
            live::insert(all, &new);
        }
        if !old.is_empty() {
            live::update(all, &old);
        }
    }

    fn events(&self, all: &mut Statements<'r>) -> Result<(), Trouble> {
        let events = &self.decided.events;
        if events.is_empty() {
            return Ok(());
        }
        let runs: Vec<i64> = events.iter().map(|e| self.runs.get(&e.run).copied().unwrap_or_default()).collect();
        let seqs: Vec<i64> = events.iter().map(|e| amount(e.logged.seq)).collect();
        let times: Vec<i64> = events.iter().map(|e| e.logged.at.as_micros()).collect();
        let bodies = events.iter().map(|e| encode_packed(&e.logged.event, self.known.packs));
        let bodies = bodies.collect::<Result<Vec<_>, _>>()?;
        let sql = "INSERT INTO events (run_id, seq, at, body)
                   SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[]) k";
        all.add(sql, params![runs, seqs, times, bodies]);
        Ok(())
    }

    /// Counts children of each group by phase.
    fn child_counts(&self, all: &mut Statements<'r>) {
        let mut counts: BTreeMap<(i64, &str, String), [i64; PHASES]> = BTreeMap::new();
        for row in self.actions.iter().filter(|row| row.changed.at.is_some()) {
            let state = &row.changed.state;
            let Some(parent) = state.parent() else { continue };
            let (is, was) = (phase_column(state), row.was.map(|(was, _)| phase_column(was)));
            if was == Some(is) {
                continue;
            }
            let counts = counts.entry((row.run_id, parent.as_str(), clean(&state.group))).or_default();
            counts[is] += 1;
            if let Some(was) = was {
                counts[was] -= 1;
            }
        }
        if counts.is_empty() {
            return;
        }
        let (runs, parents): (Vec<i64>, Vec<String>) =
            counts.keys().map(|(run, parent, _)| (*run, (*parent).to_owned())).unzip();
        let groups: Vec<String> = counts.keys().map(|(.., group)| group.clone()).collect();
        let mut values = params![runs, parents, groups];
        for column in 0..PHASES {
            values.extend(params![counts.values().map(|counts| counts[column]).collect::<Vec<i64>>()]);
        }
        let sql = "INSERT INTO child_counts AS c (run_id, parent, grp, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10)
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
                       $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[]) k
                   ON CONFLICT (run_id, parent, grp) DO UPDATE SET
                       p1 = c.p1 + excluded.p1, p2 = c.p2 + excluded.p2, p3 = c.p3 + excluded.p3, p4 = c.p4 + excluded.p4,
                       p5 = c.p5 + excluded.p5, p6 = c.p6 + excluded.p6, p7 = c.p7 + excluded.p7, p8 = c.p8 + excluded.p8,
                       p9 = c.p9 + excluded.p9, p10 = c.p10 + excluded.p10";
        all.add(sql, values);
    }

    /// By how much the actions change how many of their runs count against limits.
    fn flights(&self) -> HashMap<i64, i64> {
        let counts =
            |s: &ActionState, open: i64| i64::from(s.queue().is_some() && s.counts(open.max(0).unsigned_abs()));
        let mut flights = HashMap::new();
        for row in &self.actions {
            let was = row.was.map_or(0, |(state, open)| counts(state, open));
            *flights.entry(row.run_id).or_default() += counts(&row.changed.state, row.changed.open_children) - was;
        }
        flights
    }

    fn update_runs(&self, all: &mut Statements<'r>) {
        let old = self.decided.runs.iter().filter(|(key, _)| self.known.runs.contains_key(key));
        let runs: Vec<_> = old.filter_map(|(key, run)| Some((*self.runs.get(key)?, run))).collect();
        if runs.is_empty() {
            return;
        }
        let roots = self.actions.iter().filter(|row| row.changed.state.name.is_root());
        let ended: HashMap<i64, bool> = roots.map(|row| (row.run_id, row.changed.state.phase.is_terminal())).collect();
        let flights = self.flights();
        let numbers: Vec<i64> = runs.iter().map(|(id, _)| *id).collect();
        let seqs: Vec<i64> = runs.iter().map(|(_, run)| amount(run.seq)).collect();
        let made: Vec<i64> = runs.iter().map(|(_, run)| run.made).collect();
        let times: Vec<i64> = runs.iter().map(|(_, run)| run.at.as_micros()).collect();
        let started: Vec<bool> = runs.iter().map(|(_, run)| run.started).collect();
        let flown: Vec<i64> = numbers.iter().map(|id| flights.get(id).copied().unwrap_or(0)).collect();
        let over: Vec<Option<bool>> = numbers.iter().map(|id| ended.get(id).copied()).collect();
        let sql = "UPDATE runs r SET seq = k.seq, made = k.made, at = k.at, started = k.started,
                      in_flight = r.in_flight + k.flown, ended = coalesce(k.over, r.ended)
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bool[], $6::bigint[], $7::bool[])
                    k (id, seq, made, at, started, flown, over)
               WHERE r.id = k.id";
        all.add(sql, params![numbers, seqs, made, times, started, flown, over]);
    }

    /// Keeps the narrow rows of the runs whose root has changed.
    fn roots(&self, all: &mut Statements<'r>) -> Result<(), Trouble> {
        let roots = self.actions.iter().filter(|r| r.changed.state.name.is_root() && r.changed.at.is_some());
        let (new, old): (Vec<&Row<'_>>, Vec<&Row<'_>>) = roots.partition(|r| !self.known.runs.contains_key(r.key));
        let errors = |rows: &[&Row<'_>]| -> Vec<Option<String>> {
            rows.iter().map(|r| r.changed.state.error.as_ref().map(|e| word(&e.kind))).collect()
        };
        if !new.is_empty() {
            let c = Columns::of(&new, self.known.packs)?;
            let text = |f: fn(&RunKey) -> &String| new.iter().map(|r| f(r.key).clone()).collect::<Vec<_>>();
            let infos: Vec<_> =
                new.iter().map(|r| self.decided.runs.get(r.key).and_then(|run| run.info.as_ref())).collect();
            let by: Vec<String> =
                infos.iter().map(|i| i.map(|i| clean(&i.created_by.id)).unwrap_or_default()).collect();
            let sources: Vec<i64> = infos.iter().map(|i| i.map_or(0, |i| i64::from(i.source))).collect();
            let sql = "INSERT INTO run_index (id, org, project, domain, name, created_at, created_by, source, phase,
                               updated_at, started_at, ended_at, duration_ms, attempts, error_kind, cache_status, kind,
                               task_project, task_domain, task_name, task_version, short_name, environment)
                       SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                           $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
                           $13::bigint[], $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::text[], $19::text[],
                           $20::text[], $21::text[], $22::text[], $23::text[]) k";
            all.add(
                sql,
                params![
                    c.run_ids,
                    text(|k| &k.scope.org),
                    text(|k| &k.scope.project),
                    text(|k| &k.scope.domain),
                    text(|k| &k.name),
                    c.created,
                    by,
                    sources,
                    c.phases,
                    c.updated,
                    c.started,
                    c.ended,
                    c.durations,
                    c.attempts,
                    errors(&new),
                    c.cache,
                    c.kinds,
                    c.task_projects,
                    c.task_domains,
                    c.task_names,
                    c.task_versions,
                    c.short_names,
                    c.environments,
                ],
            );
        }
        if !old.is_empty() {
            let c = Columns::of(&old, self.known.packs)?;
            let sql = "UPDATE run_index r SET phase = k.phase, updated_at = k.updated_at, started_at = k.started_at,
                              ended_at = k.ended_at, duration_ms = k.duration_ms, attempts = k.attempts,
                              error_kind = k.error_kind, cache_status = k.cache_status
                       FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                                   $7::bigint[], $8::text[], $9::text[])
                            k (id, phase, updated_at, started_at, ended_at, duration_ms, attempts, error_kind, cache_status)
                       WHERE r.id = k.id";
            let errors = errors(&old);
            all.add(
                sql,
                params![c.run_ids, c.phases, c.updated, c.started, c.ended, c.durations, c.attempts, errors, c.cache],
            );
        }
        Ok(())
    }
}

/// Phases that children are counted by.
const PHASES: usize = 10;

/// The column of `child_counts` that an action is counted in, from 0.
fn phase_column(state: &ActionState) -> usize {
    usize::try_from(state.phase.number()).unwrap_or(1).clamp(1, PHASES) - 1
}

/// Remembers the run that each task was last part of, each task once and in one order.
fn task_runs(all: &mut Statements<'_>, known: &Known, rows: &[&Row<'_>]) {
    let mut newest: BTreeMap<[String; 5], i64> = BTreeMap::new();
    for row in rows {
        let Some(task) = row.changed.state.task().map(|t| &t.task) else { continue };
        if known.noted.get(row.key).is_some_and(|noted| noted.has_task(task)) {
            continue;
        }
        for version in ["", task.version.as_str()] {
            let key = [&row.key.scope.org, &task.project, &task.domain, &task.name].map(|t| clean(t));
            let [org, project, domain, name] = key;
            let run = newest.entry([org, project, domain, name, clean(version)]).or_insert(row.run_id);
            *run = row.run_id.max(*run);
        }
    }
    if newest.is_empty() {
        return;
    }
    let column = |i: usize| newest.keys().map(|k| k[i].clone()).collect::<Vec<_>>();
    let runs: Vec<i64> = newest.values().copied().collect();
    // Most of the time the newest run is the one that is recorded already.
    let sql = "INSERT INTO task_runs (org, project, domain, name, version, run_id)
               SELECT k.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
                    k (org, project, domain, name, version, run_id)
               LEFT JOIN task_runs t ON t.org = k.org AND t.project = k.project AND t.domain = k.domain
                                    AND t.name = k.name AND t.version = k.version
               WHERE t.run_id IS NULL OR t.run_id < k.run_id
               ORDER BY k.org, k.project, k.domain, k.name, k.version
               ON CONFLICT (org, project, domain, name, version) DO UPDATE SET run_id = excluded.run_id
               WHERE task_runs.run_id < excluded.run_id";
    all.add_any(sql, params![column(0), column(1), column(2), column(3), column(4), runs]);
}

/// Carries out what the batch changes in the cache. Rows that wait for a key are locked in one order first.
pub(super) async fn cache_changes(tx: &Tx, rows: &Rows<'_>) -> Result<(), Trouble> {
    let Rows { known, decided, actions, .. } = rows;
    let unlocked = decided.cache.iter().map(|(place, ..)| place).filter(|place| !known.cached.contains_key(place));
    let unlocked: BTreeSet<_> = unlocked.collect();
    cache::lock(tx, unlocked).await?;
    let mut freed: Vec<String> = Vec::new();
    for (place, scope, change) in &decided.cache {
        match change {
            CacheChange::Put(entry) => {
                cache::put(tx, place, &scope.domain, entry, true).await?;
                freed.push(clean(&place.key));
            }
            CacheChange::Hold(reservation) => cache::hold(tx, place, reservation).await?,
            CacheChange::Release(owner) => {
                if cache::give_back(tx, place, owner).await? {
                    freed.push(clean(&place.key));
                }
            }
        }
    }
    let own: Vec<i64> = rows.looking_up().collect();
    let at = actions.iter().filter_map(|r| r.changed.at).max();
    match at {
        Some(at) if !own.is_empty() || !freed.is_empty() => Ok(cache::wake(tx, &own, &freed, at).await?),
        _ => Ok(()),
    }
}
