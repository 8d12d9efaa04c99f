//! Hears of what other control planes commit. A notification is only a wake-up: what was committed is read by cursor, and
//! looked for anyway from time to time, so that a lost one delays and never loses.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aloft_core::RunKey;
use aloft_store::StoreError;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_postgres::AsyncMessage;

use crate::{
    Shared,
    batch::PLACES,
    connect::Connector,
    error::{from_pool, from_postgres},
    rows::{amount, number, run_key},
};

/// How often to look without having been told.
const LOOK: Duration = Duration::from_secs(1);

/// How long to wait before listening again after a lost connection.
const AGAIN: Duration = Duration::from_millis(250);

/// Most commits that are read at once.
const COMMITS: u64 = 1000;

/// What a notification says beside that something was committed: a queue or a limit has changed.
pub(crate) const CHANGED: &str = "changed";

/// Listens until the store is gone. Notifications of the payload `own` are of this process itself.
pub(crate) async fn listen(connect: Connector, channel: String, own: String, heard: mpsc::Sender<bool>) {
    while !heard.is_closed() {
        if let Err(error) = listen_once(&connect, &channel, &own, &heard).await {
            tracing::warn!(%error, "not listening to Postgres; looking every second instead");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen_once(
    connect: &Connector,
    channel: &str,
    own: &str,
    heard: &mpsc::Sender<bool>,
) -> Result<(), StoreError> {
    let (client, mut connection) = connect.open().await.map_err(from_postgres)?;
    let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
    let listen = format!("LISTEN \"{channel}\"");
    let listening = client.batch_execute(&listen);
    tokio::pin!(listening);
    let mut asked = false;
    loop {
        tokio::select! {
            done = &mut listening, if !asked => {
                done.map_err(from_postgres)?;
                asked = true;
                // What was committed before is looked for once.
                let _ = heard.try_send(true);
            }
            message = messages.next() => match message {
                // Of its own commits this process knows.
                Some(Ok(AsyncMessage::Notification(n))) if n.payload() == own => {}
                Some(Ok(AsyncMessage::Notification(n))) => {
                    // A full channel has been told already.
                    let _ = heard.try_send(n.payload() == CHANGED);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(from_postgres(error)),
                None => return Ok(()),
            },
            () = heard.closed() => return Ok(()),
        }
    }
}

/// Tells watchers of what is committed, until the store is gone.
pub(crate) async fn follow(shared: std::sync::Weak<Shared>, mut heard: mpsc::Receiver<bool>, mut pos: u64) {
    loop {
        let changed = match tokio::time::timeout(LOOK, heard.recv()).await {
            Ok(Some(changed)) => changed,
            Ok(None) => return,
            Err(_) => false,
        };
        let Some(shared) = shared.upgrade() else { return };
        match catch_up(&shared, pos).await {
            Ok(found) => pos = found,
            Err(error) => tracing::debug!(%error, "cannot look for what others committed"),
        }
        if changed {
            shared.hub.wake();
        }
    }
}

async fn catch_up(shared: &Arc<Shared>, mut pos: u64) -> Result<u64, StoreError> {
    loop {
        let client = shared.pool.get().await.map_err(from_pool)?;
        // A commit of which no run is left still counts: those after it come next.
        let sql = "SELECT r.org, r.project, r.domain, r.name, k.last, c.pos
                   FROM (SELECT * FROM commits WHERE pos > $1 ORDER BY pos LIMIT $2) c
                   CROSS JOIN LATERAL unnest(c.runs, c.lasts) k (run_id, last) LEFT JOIN runs r ON r.id = k.run_id
                   ORDER BY c.pos";
        let statement = client.prepare_cached(sql).await.map_err(from_postgres)?;
        let rows = client.query(&statement, &[&amount(pos), &amount(COMMITS)]).await.map_err(from_postgres)?;
        let Some(newest) = rows.last().map(|row| number(row, 5)) else { return Ok(pos) };
        // Of its own commits this process has told already.
        let own = shared.told.lock().clone();
        let left = rows.iter().filter(|row| row.get::<_, Option<&str>>(0).is_some());
        let others = left.filter(|row| !own.contains(&number(row, 5)));
        let runs: HashMap<RunKey, u64> = others.map(|row| (run_key(row, 0), number(row, 4))).collect();
        shared.told.lock().retain(|told| *told > newest);
        if !runs.is_empty() {
            shared.recent.forget(runs.keys());
            shared.hub.publish(runs, Some(newest * PLACES + (PLACES - 1)));
        }
        let whole = newest - pos >= COMMITS;
        pos = newest;
        if !whole {
            return Ok(pos);
        }
    }
}
