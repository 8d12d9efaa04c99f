//! `make simulate`: any number of sequences, in process or over the port; or, with `FLEET=1`, any number of whole fleets.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use aloft_sim::{
    fleet::{self, Defect, Detail},
    search,
};
use clap::Parser;
use parking_lot::Mutex;

/// How often progress is said.
const SAY: Duration = Duration::from_secs(5);

/// Plays random sequences of requests on a server, or whole fleets, and checks every rule of the design.
#[derive(Parser)]
struct Args {
    /// Whole fleets instead: control planes, workers and their database, with all that goes wrong among them.
    #[arg(long)]
    fleet: bool,

    /// The first seed; the others follow. By default another one each time.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,

    /// How many sequences or fleets.
    #[arg(long, env = "N", default_value_t = 10_000)]
    count: u64,

    /// Of a fleet: says everything that happens, of the first seed alone.
    #[arg(long, requires = "fleet")]
    trace: bool,

    /// Of a fleet: what is wrong on purpose.
    #[arg(long, requires = "fleet", value_enum)]
    defect: Option<Defect>,

    /// How many at a time, each on its own. By default one per core.
    #[arg(long, env = "JOBS")]
    jobs: Option<usize>,

    /// The `aloft` to start and drive over its port, with restarts and kills. Without it the server is in this process.
    #[arg(long, env = "BINARY")]
    binary: Option<PathBuf>,

    /// A kept sequence to play instead.
    #[arg(long)]
    replay: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let played = match &args.replay {
        Some(path) => search::kept(path).and_then(|kept| search::with_room(|| kept.play(args.binary.as_deref()))),
        None if args.trace => trace(&args),
        None => simulate(&args),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            // Nobody is left to tell if the terminal is gone.
            let _ = writeln!(io::stderr(), "{what}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(args: &Args) -> Result<(), String> {
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()) << 32 | u64::from(entropy()));
    let jobs = args.jobs.unwrap_or_else(search::cores);
    let say = |text: String| drop(writeln!(io::stderr(), "{text}"));
    let (what, named) = if args.fleet { ("fleets", "FROM") } else { ("sequences", "SEED") };
    say(format!("{} {what} from {named}={seed}, {jobs} at a time", args.count));
    let (start, last) = (Instant::now(), Mutex::new(Instant::now()));
    let done = |done: u64| {
        let mut last = last.lock();
        if last.elapsed() >= SAY || done == args.count {
            *last = Instant::now();
            let rate = done as f64 / start.elapsed().as_secs_f64();
            say(format!("{done} of {} played, {rate:.0} a second", args.count));
        }
    };
    if args.fleet {
        return fleet::many(seed, args.count, jobs, args.defect, done).map(|reached| say(reached.to_string()));
    }
    let reached = search::many(args.binary.as_deref(), seed, args.count, jobs, done);
    reached.map(|tally| say(tally.to_string())).map_err(|failure| failure.to_string())
}

/// Plays one fleet and says everything that happened.
fn trace(args: &Args) -> Result<(), String> {
    let seed = args.seed.unwrap_or_default();
    let played = search::with_room(|| fleet::play(seed, args.defect, Detail::Everything))?;
    let mut out = io::stdout().lock();
    // Who reads may have seen enough.
    played.trace.iter().try_for_each(|line| writeln!(out, "{line}")).ok();
    Ok(())
}

/// A number that is another one each time.
fn entropy() -> u32 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) as u32
}
