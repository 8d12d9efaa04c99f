//! What goes wrong, and when: everything is drawn from one seed, and time passes only when nobody has anything to do.

use std::{sync::Arc, time::Duration};

use aloft_core::Time;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

/// When simulated time begins.
const BEGINNING: i64 = 1_700_000_000_000_000;

/// A defect that is planted on purpose, to know that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Defect {
    /// A report is taken for the attempt that is current, whoever makes it.
    NoFencing,
    /// A reader of the feed sees the newest commit before the one before it.
    CommitsOutOfOrder,
    /// Of two commits that were acknowledged, the second is made first.
    CommitsSwapped,
    /// A commit is acknowledged and not made.
    AcknowledgedTooSoon,
    /// Every control plane hands out work whenever it likes.
    NoTurns,
    /// What a worker held that is given up stays its own.
    NobodyRequeues,
    /// A worker that connects is told what it holds while more is being leased to it.
    ReclaimsTooSoon,
    /// What is handed out comes to be, however many others have had a turn since.
    LeasesTooLate,
}

/// What one fleet is like, and no other: a rare meeting of events is common in some of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climate {
    /// Control planes.
    pub(super) control_planes: u64,
    /// Workers.
    pub(super) workers: u64,
    /// Runs.
    pub(super) runs: u64,
    /// Most children of a run.
    pub(super) children: u64,
    /// Longest that a child takes, in milliseconds.
    pub(super) length: u64,
    /// Of how many attempts, out of [`OUT_OF`], one fails.
    pub(super) failing: u64,
    /// How often an action is tried again.
    pub(super) retries: u32,
    /// How many actions of the narrow queue run at a time.
    pub(super) limit: u32,
    /// Longest that a statement waits for a slow disk, in milliseconds. Two of these are less than the dispatcher grants
    /// itself between its plan and the end of its turn.
    pub(super) slow: u64,
    /// Longest pause between two troubles, in milliseconds.
    pub(super) pause: u64,
    /// Of how many answers to a worker one is lost, whereupon it connects anew, to any control plane.
    pub(super) line: u64,
}

/// See [`Climate::failing`].
pub(super) const OUT_OF: u64 = 12;

impl Climate {
    fn draw(rng: &mut StdRng) -> Self {
        let mut one_of = |of: &[u64]| of[rng.random_range(0..of.len())];
        Self {
            control_planes: one_of(&[1, 2, 3, 4]),
            workers: one_of(&[1, 2, 3]),
            runs: one_of(&[1, 2, 3, 4, 5]),
            children: one_of(&[2, 6, 12]),
            length: one_of(&[100, 500, 2000, 8000]),
            failing: one_of(&[0, 4, 8]),
            retries: one_of(&[0, 2, 5]) as u32,
            limit: one_of(&[1, 2, 3]) as u32,
            slow: one_of(&[50, 800, 2000]),
            pause: one_of(&[2000, 8000]),
            line: one_of(&[200, 200, 15]),
        }
    }
}

/// How much of a play is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What happens to processes, runs and attempts.
    Events,
    /// Every statement and every message, too.
    Everything,
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
    /// What this fleet is like.
    pub(super) climate: Climate,
    state: Mutex<State>,
    reached: Mutex<Reached>,
    trace: Mutex<Vec<String>>,
    detail: Detail,
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
    pub(super) fn new(seed: u64, defect: Option<Defect>, detail: Detail) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            climate: Climate::draw(&mut rng),
            rng: Mutex::new(rng),
            begun: Instant::now(),
            state: Mutex::default(),
            reached: Mutex::default(),
            trace: Mutex::default(),
            detail,
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
        Time::from_micros(BEGINNING.saturating_add(passed))
    }

    /// The clock of the database.
    pub(super) fn store_clock(self: &Arc<Self>) -> Arc<dyn Fn() -> Time + Send + Sync> {
        let weather = Arc::clone(self);
        Arc::new(move || weather.now())
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

    /// What a statement waits for the disk, or for a way to the database that is `slow` by itself.
    pub(super) fn disk(&self, slow: bool) -> Duration {
        let slow = slow || self.state.lock().slow_until.is_some_and(|until| Instant::now() < until);
        if slow { self.up_to(self.climate.slow) } else { self.up_to(3) }
    }

    /// What a message takes over the network.
    pub(super) fn network(&self) -> Duration {
        if self.wrong_once_in(40) {
            self.up_to(3000)
        } else if self.wrong_once_in(150) {
            self.reach("message very late");
            self.up_to(30_000)
        } else {
            self.up_to(4)
        }
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

    /// Whether everything is noted.
    pub(super) fn is_detailed(&self) -> bool {
        self.detail == Detail::Everything
    }

    /// As [`Self::note`], where everything is noted.
    pub(super) fn detail(&self, what: impl FnOnce() -> String) {
        if self.is_detailed() {
            self.note(what);
        }
    }

    /// What was noted.
    pub(super) fn trace(&self) -> Vec<String> {
        self.trace.lock().clone()
    }
}
