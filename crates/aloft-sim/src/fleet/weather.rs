//! What goes wrong, and when: everything is drawn from one seed, and time passes only when nobody has anything to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aloft_core::Time;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

/// When simulated time begins.
const BEGINNING: i64 = 1_700_000_000_000_000;

/// A defect that is planted on purpose, to know that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A report is taken for the attempt that is current, whoever makes it.
    NoFencing,
    /// A reader of the feed sees the newest commit before the one before it.
    CommitsOutOfOrder,
    /// A commit is acknowledged and not made.
    AcknowledgedTooSoon,
    /// Every control plane hands out work whenever it likes.
    NoTurns,
    /// What a worker held that is given up stays its own.
    NobodyRequeues,
}

/// What was reached by a simulation.
#[derive(Clone, Debug, Default)]
pub struct Reached(std::collections::BTreeMap<&'static str, u64>);

impl Reached {
    /// Counts `what` once more.
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// How often `what` was reached.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Adds what another has reached.
    pub fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(what, times)| writeln!(f, "{times:>10} {what}"))
    }
}

/// The conditions that a fleet works under.
pub(super) struct Weather {
    rng: Mutex<StdRng>,
    begun: Instant,
    /// Time as the database has it: in microseconds, and never back.
    now: AtomicI64,
    state: Mutex<State>,
    reached: Mutex<Reached>,
    trace: Mutex<Vec<String>>,
    /// What is wrong on purpose.
    pub(super) defect: Option<Defect>,
}

#[derive(Default)]
struct State {
    calm: bool,
    slow_until: Option<Instant>,
    away_until: Option<Instant>,
}

impl Weather {
    /// The weather of `seed`.
    pub(super) fn new(seed: u64, defect: Option<Defect>) -> Self {
        Self {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            begun: Instant::now(),
            now: AtomicI64::new(BEGINNING),
            state: Mutex::default(),
            reached: Mutex::default(),
            trace: Mutex::default(),
            defect,
        }
    }

    /// Whether `defect` is planted.
    pub(super) fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// The time now, by a clock that is right.
    pub(super) fn now(&self) -> Time {
        let passed = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        let now = BEGINNING.saturating_add(passed);
        self.now.fetch_max(now, Ordering::SeqCst);
        Time::from_micros(now)
    }

    /// The clock of the database, which other threads read.
    pub(super) fn store_clock(self: &Arc<Self>) -> Arc<dyn Fn() -> Time + Send + Sync> {
        let weather = Arc::clone(self);
        Arc::new(move || Time::from_micros(weather.now.load(Ordering::SeqCst)))
    }

    /// A number below `end`.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.rng.lock().random_range(0..end.max(1))
    }

    /// Whether something happens that does so once in `times`.
    pub(super) fn once_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Whether something goes wrong that does so once in `times`: never once it is calm.
    pub(super) fn wrong_once_in(&self, times: u64) -> bool {
        !self.state.lock().calm && self.once_in(times)
    }

    /// A duration up to `millis` milliseconds.
    pub(super) fn up_to(&self, millis: u64) -> Duration {
        Duration::from_micros(self.below(millis.saturating_mul(1000)))
    }

    /// What a statement waits for the disk.
    pub(super) fn disk(&self) -> Duration {
        let slow = self.state.lock().slow_until.is_some_and(|until| Instant::now() < until);
        if slow { self.up_to(800) } else { self.up_to(3) }
    }

    /// What a message takes over the network.
    pub(super) fn network(&self) -> Duration {
        if self.wrong_once_in(40) { self.up_to(3000) } else { self.up_to(4) }
    }

    /// Whether the database answers nobody.
    pub(super) fn database_is_away(&self) -> bool {
        self.state.lock().away_until.is_some_and(|until| Instant::now() < until)
    }

    /// Makes the disk slow for a while.
    pub(super) fn slow_disk(&self, length: Duration) {
        self.state.lock().slow_until = Some(Instant::now() + length);
    }

    /// Takes the database away for a while.
    pub(super) fn take_database_away(&self, length: Duration) {
        self.state.lock().away_until = Some(Instant::now() + length);
    }

    /// Nothing goes wrong from now on.
    pub(super) fn calm(&self) {
        *self.state.lock() = State { calm: true, ..State::default() };
    }

    /// Counts that `what` was reached.
    pub(super) fn reach(&self, what: &'static str) {
        self.reached.lock().count(what);
    }

    /// What was reached.
    pub(super) fn reached(&self) -> Reached {
        self.reached.lock().clone()
    }

    /// Notes what happened, so that two plays of one seed can be compared, and a failure read.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        let millis = self.begun.elapsed().as_micros();
        self.trace.lock().push(format!("{:>12.6} {}", millis as f64 / 1e6, what()));
    }

    /// What was noted.
    pub(super) fn trace(&self) -> Vec<String> {
        self.trace.lock().clone()
    }
}
