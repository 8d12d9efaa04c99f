//! Deliberate defects between the server and the simulation, to prove that the rules notice them. Those of the store are
//! made in its file, beside the server; the others change what is asked and what is seen.

mod elsewhere;
mod lanes;
mod signals;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aloft_core::Phase;
use rusqlite::{Connection, params};

use crate::{
    ids::{ActionId, Lease, Name, Request, Reuse},
    model::{DISABLED, MISS},
    rules::{
        answers::{Answer, Granted, OVER, Reply},
        streams::PUSH,
    },
    seen::{Details, SeenAttempt, Shown},
    step::Progress,
    watching::{Heard, Item},
};

/// What is wrong with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The store drops an event of a log.
    DropsAnEvent,
    /// The store brings back the state that an attempt had before.
    ReplaysAStaleState,
    /// The store brings back what had ended.
    RevivesTheEnded,
    /// A list's column does not follow the state.
    ForgetsAColumn,
    /// The store answers before the commit, which a crash then undoes.
    AnswersBeforeCommit,
    /// The store answers and writes nothing.
    AnswersAndDoesNothing,
    /// A value is written where it must not be.
    LeaksAValue,
    /// A repeated request is not recognised.
    ForgetsRequests,
    /// A taken name is given to other work.
    GivesNamesTwice,
    /// Something is started below what has ended.
    StartsBelowTheEnded,
    /// An abort that came too late is answered as if it had won.
    AbortsTheEnded,
    /// What is below an aborted action is still shown as it was.
    ShowsDescendantsLate,
    /// A report with an old token is taken.
    TakesStaleReports,
    /// What one worker holds is given to another.
    LeasesTwice,
    /// What is ready is not handed out.
    Starves,
    /// A new attempt is given the prefix of the one before.
    ReusesPrefixes,
    /// A worker is not told that its attempt has ended.
    ForgetsRevocations,
    /// A restarted worker is not told what it holds.
    ForgetsHolders,
    /// A stream loses its newest message.
    LosesAMessage,
    /// A stream repeats an old message.
    RepeatsAMessage,
    /// A stream tells what never was.
    InventsAMoment,
    /// A stream's snapshot lacks a child.
    LacksAChild,
    /// Children are counted wrong.
    MiscountsChildren,
    /// A failure is shown without its error.
    SwallowsErrors,
    /// An error does not name what it is about.
    MumblesErrors,
    /// A page is larger than was asked for.
    OverfillsPages,
    /// An earlier attempt is not shown any more.
    ForgetsAttempts,
    /// One list shows another phase than the details.
    Disagrees,
    /// A condition takes any value, and other actions take one too.
    TakesAnySignal,
    /// A signal that came too late is answered as if it had won.
    SignalsTheEnded,
    /// A repeated signal is not recognised.
    RefusesRepeatedSignals,
    /// A condition that waits takes nothing.
    DoesNotHear,
    /// The value of a condition is not shown.
    HidesValues,
    /// Somebody else is named as who signalled.
    NamesAnother,
    /// A condition that nobody signalled is shown as succeeded.
    EndsPauses,
    /// The parent of a condition does not hear its value.
    KeepsValuesToItself,
    /// What a run declares as its limit is not kept.
    IgnoresLimits,
    /// Something that has room is not handed out.
    PassesBy,
    /// A full queue takes more.
    OverfillsQueues,
    /// A closed queue takes work.
    FillsClosedQueues,
    /// A queue that has room turns work away.
    TurnsWorkAway,
    /// A queue is deleted with its work.
    DeletesWork,
    /// A queue's name is given to another.
    RenamesQueues,
    /// A change of a queue is not recorded.
    ForgetsQueues,
    /// It is not said what limits hold back.
    KeepsSilent,
    /// It is not said which limit holds something back.
    MumblesWhatIsHeld,
    /// What has room is shown as held back.
    HoldsBackTheFree,
    /// A queue says that it holds more than it does.
    MiscountsQueues,
    /// A hit names an attempt that there never was.
    HitsNothing,
    /// Who waits for another's result computes it too.
    ComputesTwice,
    /// A result is not cached.
    ForgetsResults,
    /// The end of who computes does not let the others go on.
    KeepsReservations,
    /// A cached result is used although its data is gone.
    TrustsPointers,
    /// What was recovered names another source.
    RecoversFromNowhere,
    /// What had succeeded is computed again.
    RecoversNothing,
    /// What is to be computed again is not.
    ForgetsForced,
    /// A run does not know what was made from it.
    HidesRelations,
    /// A report that is repeated is not recognised.
    RefusesRepeatedReports,
    /// What is reported of what has ended is taken.
    HearsOfTheEnded,
    /// What is reported is not taken.
    HearsNothing,
    /// A report that is repeated is taken for one of the next attempt.
    MiscountsReports,
    /// Another execution is given the name of a first.
    MixesExecutions,
    /// Something is started here in a run that is carried out elsewhere.
    StartsElsewhere,
    /// What is carried out elsewhere waits for a worker.
    QueuesElsewhere,
}

/// A defect and what it has seen so far; without one, everything passes as it is.
#[derive(Default)]
pub struct Fault {
    defect: Option<Defect>,
    database: PathBuf,
    /// Rows of the store as they were before the last request.
    rows: Vec<Row>,
    /// The database's files as they were before the last request.
    files: Vec<(PathBuf, Vec<u8>)>,
    seen: HashMap<ActionId, Details>,
    given: Vec<Granted>,
    signals: Vec<Request>,
    told: Vec<Request>,
    asked: u16,
    done: bool,
}

struct Row {
    id: i64,
    phase: i64,
    state: Vec<u8>,
}

impl Fault {
    /// A server with `defect`.
    pub fn of(defect: Defect) -> Self {
        Self { defect: Some(defect), ..Self::default() }
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// The server's database.
    pub fn beside(&mut self, database: &Path) {
        self.database = database.to_owned();
    }

    /// What is really asked.
    pub fn request(&mut self, request: &Request) -> Request {
        self.remember();
        let mut request = request.clone();
        match (self.defect, &mut request) {
            (Some(Defect::ForgetsRequests), Request::Create { name: Name::ForRequest(id), .. }) => {
                // Another identifier each time, of the same form.
                self.asked += 1;
                id.replace_range(9..13, &format!("{:04x}", self.asked));
            }
            (Some(Defect::RecoversNothing), Request::Create { reuse: Reuse { from: Some(from), .. }, .. }) => {
                if let Some(forced) = &mut from.recover {
                    forced.extend(["a0", "x1", "x2", "x3", "x4"].map(str::to_owned));
                }
            }
            (Some(Defect::ForgetsForced), Request::Create { reuse: Reuse { from: Some(from), .. }, .. }) => {
                if let Some(forced) = &mut from.recover {
                    forced.clear();
                }
            }
            (Some(Defect::MixesExecutions), Request::Track { start, .. }) => *start = None,
            (Some(Defect::MiscountsReports), tell @ Request::Tell { .. }) => self.miscount(tell),
            (Some(Defect::TakesStaleReports), Request::Report { lease, .. }) => {
                let newest = self.given.iter().rev().find(|g| g.lease.action == lease.action);
                if let Some(newest) = newest {
                    *lease = newest.lease.clone();
                }
            }
            _ => self.declared(&mut request),
        }
        request
    }

    /// Whether a request is answered without being asked.
    pub fn swallows(&mut self, request: &Request) -> Option<Answer> {
        let swallowed = self.is(Defect::AnswersAndDoesNothing) && matches!(request, Request::Report { .. });
        swallowed.then_some(Answer::Done(Reply::Nothing))
    }

    fn remember(&mut self) {
        match self.defect {
            Some(Defect::ReplaysAStaleState | Defect::RevivesTheEnded) => {
                let rows = self.with_database(|db| {
                    let mut statement = db.prepare("SELECT id, phase, state FROM actions")?;
                    let rows = statement
                        .query_map([], |row| Ok(Row { id: row.get(0)?, phase: row.get(1)?, state: row.get(2)? }))?;
                    rows.collect()
                });
                self.rows = rows.unwrap_or_default();
            }
            Some(Defect::AnswersBeforeCommit) => {
                let wal = self.database.with_extension("db-wal");
                let read = |path: PathBuf| Some((path.clone(), fs::read(path).ok()?));
                self.files = [self.database.clone(), wal].into_iter().filter_map(read).collect();
            }
            _ => {}
        }
    }

    fn with_database<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let db = Connection::open(&self.database).ok()?;
        db.pragma_update(None, "busy_timeout", "5000").ok()?;
        work(&db).ok()
    }

    /// What is seen of an answer.
    pub fn answer(&mut self, request: &Request, answer: Answer) -> Answer {
        let fake = |reply| Answer::Done(reply);
        match (self.defect, request, answer) {
            (Some(Defect::GivesNamesTwice), _, Answer::Refused(r)) if r.code == "already_exists" => {
                fake(Reply::Nothing)
            }
            (Some(Defect::StartsBelowTheEnded), Request::Enqueue { .. }, Answer::Refused(r)) if r.code == "aborted" => {
                fake(Reply::Nothing)
            }
            (Some(Defect::StartsElsewhere), Request::Enqueue { .. }, Answer::Refused(r))
                if r.code == "failed_precondition" =>
            {
                fake(Reply::Nothing)
            }
            (Some(Defect::AbortsTheEnded), Request::Abort { .. }, Answer::Refused(r))
                if r.code == "failed_precondition" =>
            {
                fake(Reply::Nothing)
            }
            (Some(Defect::MumblesErrors), _, Answer::Refused(mut r)) if r.code != OVER => {
                r.message = "something went wrong".to_owned();
                Answer::Refused(r)
            }
            (_, Request::Lease { worker, .. }, Answer::Done(Reply::Leased(granted))) => {
                Answer::Done(Reply::Leased(self.leased(worker, granted)))
            }
            (_, Request::Signal { .. }, answer) => self.signalled(request, answer),
            (_, Request::Tell { .. }, answer) => self.reported(request, answer),
            (_, Request::Create { .. } | Request::Enqueue { .. } | Request::Queue { .. }, answer) => {
                self.admitted(request, answer)
            }
            (_, _, answer) => answer,
        }
    }

    fn leased(&mut self, worker: &str, mut granted: Vec<Granted>) -> Vec<Granted> {
        match self.defect {
            Some(Defect::Starves) => granted.clear(),
            Some(Defect::LeasesTwice) => {
                let taken = self.given.iter().find(|g| g.lease.worker != worker).cloned();
                if let Some(mut again) = taken.filter(|_| granted.is_empty()) {
                    again.lease.worker = worker.to_owned();
                    again.lease.token = again.lease.token.wrapping_add(7);
                    again.output_prefix.push_str("-again");
                    granted.push(again);
                }
            }
            Some(Defect::ReusesPrefixes) => {
                for one in granted.iter_mut().filter(|g| g.lease.attempt > 1) {
                    one.output_prefix = one.previous_prefix.clone();
                }
            }
            _ => {}
        }
        self.passed_by(worker, &mut granted);
        self.given.extend(granted.iter().cloned());
        granted
    }

    /// After an answer was looked at: what the store does to itself.
    pub fn afterwards(&mut self, request: &Request, answer: &Answer) {
        if !matches!(answer, Answer::Done(_)) || self.done {
            return;
        }
        match (self.defect, request) {
            (Some(Defect::DropsAnEvent), Request::Report { .. } | Request::Lease { .. }) => {
                self.write("DELETE FROM events WHERE pos = (SELECT max(pos) FROM events WHERE seq > 1)", &[]);
            }
            (Some(Defect::ForgetsResults), Request::Report { progress: Progress::Succeeded, .. }) => {
                self.with_database(|db| db.execute("DELETE FROM cache_entries", []));
            }
            (Some(Defect::ForgetsAColumn), Request::Enqueue { .. } | Request::Create { .. }) => {
                self.write("UPDATE actions SET ready_at = 1 WHERE ready_at IS NOT NULL", &[]);
            }
            (Some(Defect::QueuesElsewhere), Request::Tell { .. }) => {
                let tracked = "UPDATE actions SET ready_at = 1 WHERE kind = 1 AND queue IS NULL";
                self.write(tracked, &[]);
            }
            (Some(Defect::LeaksAValue), Request::Create { .. }) => {
                let leak = format!("UPDATE actions SET grp = '{}-0'", crate::spec::CANARY);
                self.write(&leak, &[]);
            }
            (
                Some(Defect::ReplaysAStaleState),
                Request::Report { progress: Progress::Running | Progress::Initializing | Progress::Waiting, .. },
            ) => self.restore(),
            (Some(Defect::RevivesTheEnded), Request::Report { progress: Progress::Succeeded, .. }) => self.restore(),
            _ => {}
        }
    }

    fn write(&mut self, sql: &str, params: &[i64]) {
        let changed = self.with_database(|db| db.execute(sql, rusqlite::params_from_iter(params)));
        self.done = changed.is_some_and(|rows| rows > 0) && !self.is(Defect::LeaksAValue);
    }

    fn restore(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let changed = self.with_database(|db| {
            let mut changed = 0;
            for row in &rows {
                let sql = "UPDATE actions SET phase = ?2, state = ?3 WHERE id = ?1 AND phase <> ?2";
                changed += db.execute(sql, params![row.id, row.phase, row.state])?;
            }
            Ok(changed)
        });
        self.done = changed.is_some_and(|rows| rows > 0);
    }

    /// Between the death of a server and its next life.
    pub fn between(&mut self) -> impl FnOnce(&Path) + use<> {
        let files = std::mem::take(&mut self.files);
        move |database: &Path| {
            if !files.is_empty() {
                for extension in ["db-wal", "db-shm"] {
                    fs::remove_file(database.with_extension(extension)).ok();
                }
                fs::remove_file(database).ok();
            }
            for (path, bytes) in files {
                fs::write(path, bytes).ok();
            }
        }
    }

    /// What is seen of an action.
    pub fn details(&mut self, mut details: Details) -> Details {
        let id = details.shown.id.clone();
        match self.defect {
            Some(Defect::ShowsDescendantsLate) => {
                let before = self.seen.entry(id).or_insert_with(|| details.clone()).clone();
                let taken_along = details.aborted.as_ref().is_some_and(|why| why.contains("above it"));
                if taken_along && !before.shown.phase.is_terminal() { before } else { details }
            }
            Some(Defect::HitsNothing) => {
                details.attempts.iter_mut().flat_map(|a| &mut a.source).for_each(|(_, attempt)| *attempt += 1);
                details
            }
            Some(Defect::ComputesTwice) => {
                let waits = |a: &SeenAttempt| a.phases.iter().any(|(p, _)| *p == Phase::WaitingForResources);
                if details.shown.cache == DISABLED && details.attempts.iter().any(waits) {
                    details.shown.cache = MISS;
                }
                details
            }
            Some(Defect::RecoversFromNowhere) => {
                details.shown.recovered.iter_mut().for_each(|from| from.name.push('x'));
                details
            }
            Some(Defect::SwallowsErrors) => {
                details.error = None;
                details
            }
            Some(Defect::ForgetsAttempts) if details.attempts.len() > 1 => {
                details.attempts.remove(0);
                details
            }
            _ => self.condition(details),
        }
    }

    /// What is seen of a list.
    pub fn rows(&mut self, mut rows: Vec<Shown>) -> Vec<Shown> {
        if self.is(Defect::Disagrees) {
            rows.iter_mut().filter(|r| r.phase == Phase::Running).for_each(|r| r.phase = Phase::Initializing);
        }
        rows.iter_mut().for_each(|row| self.unpause(row));
        rows
    }

    /// What is seen of the runs that were made from one.
    pub fn related(&self, rows: Vec<Shown>) -> Vec<Shown> {
        if self.is(Defect::HidesRelations) { Vec::new() } else { rows }
    }

    /// After lookups: what the store does to itself.
    pub fn looked_up(&self) {
        if self.is(Defect::KeepsReservations) {
            let sql = "UPDATE cache_reservations SET body = CAST(json_set(body, '$.owner', 'nobody') AS BLOB)";
            self.with_database(|db| db.execute(sql, []));
        }
    }

    /// Whether what vanishes is gone for the server too.
    pub fn vanishes(&self) -> bool {
        !self.is(Defect::TrustsPointers)
    }

    /// What is seen of a list in pages.
    pub fn pages(&self, pages: Vec<Vec<Shown>>) -> Vec<Vec<Shown>> {
        if self.is(Defect::OverfillsPages) { vec![pages.concat()] } else { pages }
    }

    /// What is heard of a stream.
    pub fn heard(&self, mut heard: Heard) -> Heard {
        let update = |i: &Item| matches!(i, Item::Update(_) | Item::Counted(..) | Item::Details(_));
        match self.defect {
            Some(Defect::LosesAMessage) => {
                if let Some(last) = heard.items.iter().rposition(update) {
                    heard.items.remove(last);
                }
            }
            Some(Defect::RepeatsAMessage) => {
                if let Some(first) = heard.items.iter().find(|i| update(i)).cloned() {
                    heard.items.push(first);
                }
            }
            Some(Defect::InventsAMoment) => {
                for item in &mut heard.items {
                    if let Item::Counted(shown, _) = item
                        && shown.phase == Phase::Queued
                    {
                        shown.phase = Phase::WaitingForResources;
                    }
                }
            }
            Some(Defect::LacksAChild) => {
                if let Some(first) = heard.items.iter().position(|i| matches!(i, Item::Update(_))) {
                    heard.items.remove(first);
                }
            }
            Some(Defect::MiscountsChildren) => {
                for item in &mut heard.items {
                    if let Item::Counted(_, counts) = item {
                        counts.values_mut().for_each(|n| *n += 1);
                    }
                }
            }
            _ => self.told(&mut heard),
        }
        heard
    }

    /// How long what must come is waited for: what a defect holds back never comes.
    pub fn patience(&self) -> Duration {
        if self.defect.is_some() { Duration::from_millis(100) } else { PUSH }
    }

    /// Whether a worker hears of what is taken from it.
    pub fn hears(&self) -> bool {
        !self.is(Defect::ForgetsRevocations)
    }

    /// What a restarted worker is told.
    pub fn reclaimed(&self, mut told: Vec<Lease>) -> Vec<Lease> {
        if self.is(Defect::ForgetsHolders) {
            told.clear();
        }
        told
    }
}
