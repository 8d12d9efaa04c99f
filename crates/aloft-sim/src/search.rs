//! Draws sequences, plays them, and shrinks the first that fails.

use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use aloft_core::Time;
use parking_lot::Mutex;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use serde::{Deserialize, Serialize};

use crate::{
    draw::{self, Hands},
    fault::Fault,
    host::Host,
    player,
    process::Process,
    rules::{Check, Violation, bounds},
    server::{Server, VirtualClock},
    spec,
    step::Step,
    tally::Tally,
};

/// Sequences that share one database file. Keeps the file small, so that the lists of a sequence stay quick.
const PER_FILE: u64 = 200;

/// Most attempts to make a failing sequence smaller.
const SHRINKS: u32 = 2000;

/// Longest time that is spent on that, in milliseconds.
const SHRINK_TIME: u32 = 60_000;

/// When virtual time begins: a moment in 2023, so that times look like times.
const BEGINNING: Time = Time::from_micros(1_700_000_000_000_000);

/// A sequence that broke a rule.
pub struct Failure {
    /// The seed that draws the sequence it was shrunk from.
    pub seed: u64,
    /// The smallest sequence found.
    pub steps: Vec<Step>,
    /// The rule and what was seen.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "after these steps:")?;
        for step in &self.steps {
            writeln!(f, "  {step:?}")?;
        }
        let kept = Kept { why: self.what.clone(), steps: self.steps.clone() };
        let json = serde_json::to_string(&kept).unwrap_or_default();
        write!(f, "again with SEED={} N=1; to keep it, write to crates/aloft-sim/kept/NAME.json:\n{json}", self.seed)
    }
}

/// A sequence that once broke a rule, kept so that it never does again. Kept are the steps and not the seed, which draws
/// another sequence whenever something is added to `draw.rs`.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    /// What it found.
    pub why: String,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// Reads a kept sequence.
///
/// # Errors
/// Why it cannot be read.
pub fn kept(path: &Path) -> Result<Kept, String> {
    let words = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| words(&e))?;
    serde_json::from_str(&text).map_err(|e| words(&e))
}

impl Kept {
    /// Plays it once.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn play(&self, binary: Option<&Path>) -> Result<(), String> {
        let bench = Bench::new(binary)?;
        bench.play(&self.steps, Fault::default()).and_then(|()| bench.close()).map_err(|v| v.to_string())
    }
}

/// How many sequences make sense at a time.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Plays sequences on one server, one after the other.
pub struct Bench {
    runtime: tokio::runtime::Runtime,
    /// The program to start; none drives a server in this process.
    binary: Option<PathBuf>,
    stage: RefCell<Option<Stage>>,
    tally: RefCell<Tally>,
}

/// A server with the file it lives on.
struct Stage {
    host: Host,
    number: u64,
    _dir: tempfile::TempDir,
}

impl Stage {
    async fn new(binary: Option<&Path>) -> Result<Self, String> {
        let words = |e: &dyn fmt::Display| format!("cannot start a server: {e}");
        let dir = tempfile::tempdir_in(scratch()).map_err(|e| words(&e))?;
        let host = match binary {
            Some(binary) => Host::Port(Process::start(binary, dir.path()).await?),
            None => {
                let clock = VirtualClock::new(BEGINNING);
                let server = Server::start(&dir.path().join("sim.db"), clock).await.map_err(|e| words(&e))?;
                Host::Inside(Box::new(server))
            }
        };
        Ok(Self { host, number: 0, _dir: dir })
    }
}

/// Where databases of a moment lie: in memory if that can be.
pub(crate) fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

impl Bench {
    /// A bench whose server is `binary` behind its port, or else is in this process.
    ///
    /// # Errors
    /// If there can be no runtime.
    pub fn new(binary: Option<&Path>) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        Ok(Self { runtime, binary: binary.map(Path::to_owned), stage: RefCell::default(), tally: RefCell::default() })
    }

    /// Who moves the tasks of its server.
    pub fn hands(&self) -> Hands {
        if self.binary.is_some() { Hands::Theirs } else { Hands::Ours }
    }

    /// Plays one sequence.
    ///
    /// # Errors
    /// The first rule that did not hold.
    pub fn play(&self, steps: &[Step], fault: Fault) -> Check {
        if self.stage.borrow().as_ref().is_some_and(|stage| stage.number >= PER_FILE) {
            self.close()?;
        }
        let stage = self.stage.borrow_mut().take();
        let new = || self.runtime.block_on(Stage::new(self.binary.as_deref()));
        let mut stage = match stage.map_or_else(new, Ok) {
            Ok(stage) => stage,
            Err(what) => return Err(Violation { rule: "rule_3_a_restart_finds_its_database", what }),
        };
        stage.number += 1;
        let number = stage.number;
        let played = self.runtime.block_on(player::play(&mut stage.host, number, steps, fault));
        // What a failure leaves behind must not be in the way of the next sequence.
        let reached = played?;
        *self.stage.borrow_mut() = Some(stage);
        self.tally.borrow_mut().add(&reached);
        Ok(())
    }

    /// Ends the server, and looks into its files for what must not be there.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn close(&self) -> Check {
        let Some(mut stage) = self.stage.borrow_mut().take() else { return Ok(()) };
        self.runtime.block_on(stage.host.stop())?;
        for file in stage.host.files_without_values() {
            // What is not there holds nothing.
            let bytes = std::fs::read(&file).unwrap_or_default();
            let name = file.to_string_lossy();
            bounds::rule_7_values_stay_out_of_the_control_plane(spec::CANARY.as_bytes(), &name, &bytes)?;
        }
        Ok(())
    }
}

/// Plays the sequences of the `count` seeds from `first` on `jobs` threads, and says after each how many are done. Returns
/// what they have reached.
///
/// # Errors
/// The first failure, as small as it could be made.
pub fn many(
    binary: Option<&Path>,
    first: u64,
    count: u64,
    jobs: usize,
    done: impl Fn(u64) + Sync,
) -> Result<Tally, Box<Failure>> {
    let reached = Mutex::new(Tally::default());
    let (next, played) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None);
    let work = || {
        let bench = match Bench::new(binary) {
            Ok(bench) => bench,
            Err(what) => return failed.lock().insert(Box::new(Failure { seed: first, steps: Vec::new(), what })).seed,
        };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || failed.lock().is_some() {
                break;
            }
            let seed = first.wrapping_add(number);
            if let Err(failure) = one(&bench, seed, Fault::default) {
                failed.lock().get_or_insert(failure);
            }
            done(played.fetch_add(1, Ordering::Relaxed) + 1);
        }
        reached.lock().add(&bench.tally.borrow());
        if let Err(violation) = bench.close() {
            let what = violation.to_string();
            failed.lock().get_or_insert_with(|| Box::new(Failure { seed: first, steps: Vec::new(), what }));
        }
        first
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| with_room(work));
        }
    });
    failed.into_inner().map_or_else(|| Ok(reached.into_inner()), Err)
}

/// Runs `work` with room for the deep calls of an unoptimised build.
pub fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, work);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => panic!("no thread can be started: {error}"),
        }
    })
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config {
        max_shrink_iters: SHRINKS,
        max_shrink_time: SHRINK_TIME,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, rng)
}

/// The sequence of `seed`.
pub fn sequence(hands: Hands, seed: u64) -> Vec<Step> {
    draw::drawn(hands, seed).new_tree(&mut runner(seed)).map(|tree| tree.current()).unwrap_or_default()
}

/// Plays the sequence of `seed`; a failure comes back as small as it could be made.
///
/// # Errors
/// The failure.
pub fn one(bench: &Bench, seed: u64, fault: impl Fn() -> Fault) -> Result<(), Box<Failure>> {
    let (hands, play) = (bench.hands(), |steps: &[Step]| bench.play(steps, fault()));
    let mut runner = runner(seed);
    let failure = |steps: Vec<Step>, what: String| Box::new(Failure { seed, steps, what });
    let tree = match draw::drawn(hands, seed).new_tree(&mut runner) {
        Ok(tree) => tree,
        Err(reason) => return Err(failure(Vec::new(), format!("no sequence can be drawn: {reason}"))),
    };
    let drawn = tree.current();
    let test = |steps: Vec<Step>| play(&steps).map_err(|v| TestCaseError::fail(v.to_string()));
    match runner.run_one(tree, test) {
        Ok(_) => Ok(()),
        Err(TestError::Fail(reason, steps)) => Err(failure(steps, reason.to_string())),
        Err(TestError::Abort(reason)) => Err(failure(drawn, reason.to_string())),
    }
}
