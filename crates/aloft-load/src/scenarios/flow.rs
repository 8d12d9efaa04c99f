//! Actions enqueued by many clients, no more at a time than the SDK's controller allows itself, and heard of by their parents.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aloft_sim::ids::RunId;
use anyhow::{Result, bail};
use tokio::{sync::Semaphore, task::JoinSet};

use super::Setting;
use crate::{
    client::{self, Client},
    machine,
    server::Server,
};

/// Clients that enqueue at the same time.
const CLIENTS: usize = 64;

/// Longest wait for the last actions.
const PATIENCE: Duration = Duration::from_secs(120);

/// A name as the SDK makes it: 25 letters and digits in no order. `first` tells what it is.
pub(super) fn name(first: char, number: u64) -> String {
    let mut name = String::with_capacity(25);
    name.push(first);
    for half in 0..2 {
        // The finaliser of SplitMix64: neighbours get names far apart.
        let mut x = (2 * number + half).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        for _ in 0..12 {
            name.push(char::from_digit((x % 36) as u32, 36).unwrap_or('0'));
            x /= 36;
        }
    }
    name
}

/// What the machine has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// Actions of which the end was heard.
    pub(super) ended: f64,
    /// Seconds since the start.
    pub(super) at: f64,
    /// Seconds of CPU of the server, of Postgres and of the clients.
    pub(super) cpu: [f64; 3],
}

impl Mark {
    /// What was done between `self` and `later`.
    pub(super) fn until(self, later: Self) -> Self {
        let cpu = [0, 1, 2].map(|i| later.cpu[i] - self.cpu[i]);
        Self { ended: later.ended - self.ended, at: later.at - self.at, cpu }
    }

    /// Seconds of CPU of the server and Postgres for a thousand actions.
    pub(super) fn cpu_per_thousand(self) -> f64 {
        (self.cpu[0] + self.cpu[1]) / self.ended * 1000.0
    }

    /// How many times the CPU and the time of `other` an action took.
    pub(super) fn costs_beside(self, other: Self) -> (f64, f64) {
        (self.cpu_per_thousand() / other.cpu_per_thousand(), (self.at / self.ended) / (other.at / other.ended))
    }

    /// Adds what was done at another time.
    pub(super) fn add(&mut self, other: Self) {
        self.ended += other.ended;
        self.at += other.at;
        for (mine, theirs) in self.cpu.iter_mut().zip(other.cpu) {
            *mine += theirs;
        }
    }
}

/// A load under way.
pub(super) struct Flow {
    begun: tokio::time::Instant,
    ended: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    allowed: Arc<Semaphore>,
    clients: JoinSet<Result<()>>,
    _watchers: JoinSet<Result<()>>,
}

impl Flow {
    /// Begins: as many actions as [`Flow::allow`] says in the runs called `runs`, of each no more than `at_once` that have not
    /// ended.
    pub(super) async fn begin(client: &Client, runs: &[RunId], at_once: usize) -> Result<Self> {
        let (ended, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let allowed = Arc::new(Semaphore::new(0));
        let mut watchers = JoinSet::new();
        let mut rooms = Vec::new();
        for run in runs {
            client.create(&run.name).await?;
            let room = Arc::new(Semaphore::new(at_once));
            let mut watch = client.watch_children(run).await?;
            let (of_watch, ended) = (Arc::clone(&room), Arc::clone(&ended));
            watchers.spawn(async move {
                loop {
                    if watch.next().await?.is_some_and(|told| told.succeeded) {
                        ended.fetch_add(1, Ordering::Relaxed);
                        of_watch.add_permits(1);
                    }
                }
            });
            rooms.push((run.clone(), room));
        }
        let (rooms, mut clients) = (Arc::new(rooms), JoinSet::new());
        for _ in 0..CLIENTS {
            let (client, rooms, sent, allowed) =
                (client.clone(), Arc::clone(&rooms), Arc::clone(&sent), Arc::clone(&allowed));
            clients.spawn(enqueue(client, rooms, sent, allowed));
        }
        Ok(Self { begun: tokio::time::Instant::now(), ended, sent, allowed, clients, _watchers: watchers })
    }

    /// Lets it send so many more.
    pub(super) fn allow(&self, more: usize) {
        self.allowed.add_permits(more);
    }

    /// Lets it send without end.
    pub(super) fn allow_all(&self) {
        self.allow(Semaphore::MAX_PERMITS - self.allowed.available_permits());
    }

    /// How far it has come.
    pub(super) fn mark(&self, setting: &Setting, server: &Server) -> Mark {
        Mark {
            ended: self.ended.load(Ordering::Relaxed) as f64,
            at: self.begun.elapsed().as_secs_f64(),
            cpu: [server.cpu(), setting.database_cpu(), machine::cpu(std::process::id())],
        }
    }

    /// Waits until so many have ended.
    pub(super) async fn reach(&self, count: u64) -> Result<()> {
        let (mut known, mut since) = (0, tokio::time::Instant::now());
        loop {
            let ended = self.ended.load(Ordering::Relaxed);
            if ended >= count {
                return Ok(());
            }
            if ended > known {
                (known, since) = (ended, tokio::time::Instant::now());
            }
            if since.elapsed() > PATIENCE {
                bail!("{ended} actions ended, {count} were waited for, and none within {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends no more, and waits for the end of what was sent; says how many that were.
    pub(super) async fn finish(mut self) -> Result<u64> {
        self.allowed.close();
        while let Some(done) = self.clients.join_next().await {
            done??;
        }
        let sent = self.sent.load(Ordering::Relaxed);
        self.reach(sent).await?;
        Ok(sent)
    }
}

async fn enqueue(
    client: Client,
    rooms: Arc<Vec<(RunId, Arc<Semaphore>)>>,
    sent: Arc<AtomicU64>,
    allowed: Arc<Semaphore>,
) -> Result<()> {
    let mut turn = 0;
    while let Ok(one) = allowed.acquire().await {
        one.forget();
        let run = loop {
            let (run, room) = &rooms[turn % rooms.len()];
            turn += 1;
            // A run that is full must not hold up the others.
            if let Ok(place) = tokio::time::timeout(Duration::from_millis(100), room.acquire()).await {
                place?.forget();
                break run;
            }
        };
        let number = sent.fetch_add(1, Ordering::Relaxed);
        let group = format!("group-{}", number % 10);
        client.enqueue(run, &name('1', number), &group).await?;
    }
    Ok(())
}

/// Runs whose root goes on for ever.
pub(super) fn parents(count: usize) -> Vec<RunId> {
    (0..count).map(|i| client::run(&format!("p{i:05}"))).collect()
}
