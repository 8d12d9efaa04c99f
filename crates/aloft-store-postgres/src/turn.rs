//! Turns, by advisory locks: of all control planes of a database one hands out work at a time, and one reconciles.
//!
//! Whoever is killed loses its connection, and with it its turn. Whoever stands still says nothing, and Postgres closes its
//! connection after [`SILENCE`].

use std::time::Duration;

use aloft_core::Time;
use aloft_store::{OfferPlace, Offered, StoreError, Turn};
use deadpool_postgres::{Object, Pool};
use tokio::sync::oneshot;
use tokio_postgres::Client;

use crate::{
    connect::Connector,
    error::{from_pool, from_postgres},
    lanes,
    read::Reader,
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

/// Of what waits, which part is asked for. As [`aloft_store::Store::offer`].
pub(crate) struct Part {
    pub(crate) now: Time,
    pub(crate) after: OfferPlace,
    pub(crate) groups: usize,
    pub(crate) each: usize,
}

/// Waits for the turn to hand out work, and reads with it what there is. It lasts for one transaction, which changes nothing.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub(crate) async fn dispatch(pool: Pool, channel: String, part: Part) -> Result<(Turn, Offered), StoreError> {
    let (taken, turn) = oneshot::channel();
    // In a task of its own, so that whoever no longer waits leaves no transaction open.
    tokio::spawn(async move {
        let (client, offered) = match begun(&pool, &channel, &part).await {
            Ok(begun) => begun,
            Err(error) => return drop(taken.send(Err(error))),
        };
        let (turn, ours) = Turn::taken();
        let _ = taken.send(Ok((turn, offered)));
        ours.closed().await;
        if client.batch_execute("ROLLBACK").await.is_err() {
            drop(Object::take(client));
        }
    });
    turn.await.unwrap_or_else(|_| Err(closing()))
}

/// A connection in a transaction that has the lock, and what is read behind it in the same round trip. Every statement sees
/// what was committed before it: what whoever had the turn before has handed out, too.
async fn begun(pool: &Pool, channel: &str, part: &Part) -> Result<(Object, Offered), StoreError> {
    let client = pool.get().await.map_err(from_pool)?;
    let lock = client.prepare_cached("SELECT pg_advisory_xact_lock(hashtext($1), $2)").await.map_err(from_postgres)?;
    let db = Reader::within(client);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&channel, &DISPATCH];
    // The first look at each of these sends it, in this order.
    let (begun, locked, offered) = tokio::join!(
        biased;
        db.batch_execute("BEGIN"),
        db.execute(&lock, &parameters),
        lanes::offer(&db, part.now, &part.after, part.groups, part.each),
    );
    // Before what came behind it: that was not carried out then. The connection is closed in either case.
    begun.and(locked).map_err(from_postgres)?;
    let offered = offered?;
    Ok((db.into_inner(), offered))
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
