//! Turns, by advisory locks: of all control planes of a database one hands out work at a time, and one reconciles.
//!
//! Whoever is killed loses its connection, and with it its turn. Whoever stands still says nothing, and Postgres closes its
//! connection after [`SILENCE`]. Either way, what it hands out may still be on its way by another connection. So the turn to hand
//! out work has a number on the row of `feed`, which every commit takes in its turn, and what hands out work looks at it there
//! (`batch::tail`): what comes after another's turn began does nothing.

use std::{sync::Arc, time::Duration};

use aloft_core::{Time, WorkerId};
use aloft_store::{InTurn, OfferPlace, Offered, StoreError, Turn, WorkerRecord};
use deadpool_postgres::Object;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    Shared, Tx,
    connect::Connector,
    error::{from_pool, from_postgres},
    lanes,
    read::Reader,
    workers,
};

/// How long Postgres waits for a word of who has a turn, in milliseconds.
const SILENCE: u64 = 10_000;

/// How often who leads says a word.
const WORD: Duration = Duration::from_secs(3);

/// How often who would lead looks whether it can.
const LOOK: Duration = Duration::from_secs(1);

/// Which turn, as the second number of its lock. The first is a hash of the tables' schema.
const DISPATCH: i32 = 1;
const LEAD: i32 = 2;

/// The number of the turn to hand out work that this process had last, unless another has had one since or what was handed out
/// in it may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct Ours(Mutex<Option<u64>>);

impl Ours {
    pub(crate) fn number(&self) -> Option<u64> {
        *self.0.lock()
    }

    /// The next turn gets another number.
    pub(crate) fn end(&self) {
        *self.0.lock() = None;
    }
}

/// Of what waits, which part is asked for, as of [`aloft_store::Store::offer`]; and for which worker.
pub(crate) struct Part {
    pub(crate) to: WorkerId,
    pub(crate) now: Time,
    pub(crate) after: OfferPlace,
    pub(crate) groups: usize,
    pub(crate) each: usize,
}

impl Part {
    async fn read(part: Option<&Self>, db: &Reader) -> Result<(Offered, Option<WorkerRecord>), StoreError> {
        let Some(Self { to, now, after, groups, each }) = part else { return Ok(Default::default()) };
        let (offered, worker) =
            tokio::join!(biased; lanes::offer(db, *now, after, *groups, *each), workers::one(db, to));
        Ok((offered?, worker?))
    }
}

/// Waits for the turn to hand out work, and reads with it what there is.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub(crate) async fn dispatch(shared: Arc<Shared>, part: Option<Part>) -> Result<InTurn, StoreError> {
    let (taken, turn) = oneshot::channel();
    // In a task of its own, so that whoever no longer waits leaves no transaction open.
    tokio::spawn(async move {
        let (client, number, (offered, worker)) = match begun(&shared, part.as_ref()).await {
            Ok(begun) => begun,
            Err(error) => return drop(taken.send(Err(error))),
        };
        drop(shared);
        let (turn, ours) = Turn::numbered(number);
        let _ = taken.send(Ok(InTurn { turn, offered, worker }));
        ours.closed().await;
        if client.batch_execute("ROLLBACK; SELECT pg_advisory_unlock_all()").await.is_err() {
            drop(Object::take(client));
        }
    });
    turn.await.unwrap_or_else(|_| Err(closing()))
}

/// A connection that has the lock, in a transaction, so that Postgres closes it if nothing more is said; the number of the turn,
/// and what is read behind it in the same round trip. The lock outlasts transactions. Every statement sees what was committed before it: what whoever had the turn before has handed out, too.
async fn begun(
    shared: &Shared,
    part: Option<&Part>,
) -> Result<(Object, u64, (Offered, Option<WorkerRecord>)), StoreError> {
    let client = shared.pool.get().await.map_err(from_pool)?;
    let lock = client.prepare_cached("SELECT pg_advisory_lock(hashtext($1), $2)").await.map_err(from_postgres)?;
    let number = client.prepare_cached("SELECT turn FROM feed").await.map_err(from_postgres)?;
    let db = Reader::within(client);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&shared.channel, &DISPATCH];
    // The first look at each of these sends it, in this order.
    let (begun, locked, number, found) = tokio::join!(
        biased;
        db.batch_execute("BEGIN"),
        db.execute(&lock, &parameters),
        db.query_one(&number, &[]),
        Part::read(part, &db),
    );
    // Before what came behind it: that was not carried out then. The connection is closed in either case.
    begun.and(locked).map_err(from_postgres)?;
    let number = number.map_err(from_postgres)?.get::<_, i64>(0).cast_unsigned();
    let found = found?;
    if shared.turn.number() == Some(number) {
        return Ok((db.into_inner(), number, found));
    }
    // What is on its way in an earlier turn is committed before this, and read behind it, or never.
    let number = renumber(&db).await?;
    *shared.turn.0.lock() = Some(number);
    let found = Part::read(part, &db).await?;
    Ok((db.into_inner(), number, found))
}

/// Gives the turn a number that none has had, and begins again. Waits for the commits that are under way, but not for the disk:
/// what is handed out in this turn reaches the disk after it.
async fn renumber(db: &Tx) -> Result<u64, StoreError> {
    let sql = "ROLLBACK; BEGIN; SET LOCAL synchronous_commit = off;
               UPDATE feed SET turn = hashtextextended(gen_random_uuid()::text, 0) RETURNING turn; COMMIT; BEGIN";
    let answers = db.simple_query(sql).await.map_err(from_postgres)?;
    let number = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i64>().ok(),
        _ => None,
    });
    number.map(i64::cast_unsigned).ok_or_else(|| StoreError::Corrupt("the table feed is empty".to_owned()))
}

/// Waits for the turn to reconcile, which lasts until it is passed on or lost.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub(crate) async fn lead(connect: Connector, channel: String) -> Result<Turn, StoreError> {
    let (taken, turn) = oneshot::channel();
    tokio::spawn(async move {
        let mut taken = taken;
        let led = tokio::select! {
            led = leading(&connect, &channel) => led,
            () = taken.closed() => return,
        };
        let client = match led {
            Ok(client) => client,
            Err(error) => return drop(taken.send(Err(error))),
        };
        let (turn, ours) = Turn::taken();
        let _ = taken.send(Ok(turn));
        loop {
            tokio::select! {
                () = ours.closed() => return,
                () = tokio::time::sleep(WORD) => {}
            }
            match tokio::time::timeout(WORD, client.batch_execute("SELECT 1")).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::debug!(%error, "the turn to reconcile is lost"),
                Err(_) => return tracing::debug!("the turn to reconcile is given up: Postgres does not answer"),
            }
        }
    });
    turn.await.unwrap_or_else(|_| Err(closing()))
}

/// A connection that has the lock; closing it lets go of it.
async fn leading(connect: &Connector, channel: &str) -> Result<Client, StoreError> {
    let (client, connection) = connect.open().await.map_err(from_postgres)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection of who leads ended");
        }
    });
    client.batch_execute(&format!("SET idle_session_timeout = {SILENCE}")).await.map_err(from_postgres)?;
    let sql = "SELECT pg_try_advisory_lock(hashtext($1), $2)";
    loop {
        let row = client.query_one(sql, &[&channel, &LEAD]).await.map_err(from_postgres)?;
        if row.get(0) {
            return Ok(client);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn closing() -> StoreError {
    StoreError::Unavailable("the store is closing".to_owned())
}
