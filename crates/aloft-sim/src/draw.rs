//! How sequences are drawn.

mod elsewhere;
mod lanes;
mod signals;

pub use elsewhere::drawn;
use lanes::{held, lane, queue, queue_spec, queued};
use proptest::{collection::vec, option, prelude::*};
use signals::{condition, pause, signal};

use crate::{
    lanes::{Change, Lane, QueueSpec},
    signal::Says,
    step::{
        Backoff, Caching, Command, Forgery, Kind, NOBODY, Naming, Origin, Policy, Progress, Reuse, Step, Watch, Work,
    },
};

/// How many phrases most sequences have, and how many some. Most defects need fewer than ten steps; a run that is tried,
/// retried, aborted and found again after restarts takes more.
const SHORT: usize = 8;
const LONG: usize = 24;

/// Whose hands move the tasks of the server that is driven, which decides what steps make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hands {
    /// The simulation's: its workers, its time, its reconcilers.
    Ours,
    /// The server's own worker and real time.
    Theirs,
}

/// Sequences for a server whose tasks are moved by `hands`.
pub fn sequence(hands: Hands) -> BoxedStrategy<Vec<Step>> {
    match hands {
        Hands::Ours => begun(some(phrase)).boxed(),
        Hands::Theirs => begun(some(phrase_of_clients)).boxed(),
    }
}

fn some<S: Strategy<Value = Vec<Step>>>(phrase: fn() -> S) -> impl Strategy<Value = Vec<Step>> {
    let phrases = prop_oneof![8 => vec(phrase(), 1..=SHORT), 1 => vec(phrase(), SHORT..=LONG)];
    phrases.prop_map(|phrases| phrases.concat())
}

/// A run with a few actions, and then the rest: most steps need something to be about.
fn begun(rest: impl Strategy<Value = Vec<Step>>) -> impl Strategy<Value = Vec<Step>> {
    let first = || create().prop_map(|create| vec![Step::Do(create)]);
    let first = prop_oneof![8 => first(), 1 => (queued(), held()).prop_map(|(queued, held)| [queued, held].concat())];
    let children = vec(enqueue().prop_map(Step::Do), 0..=4);
    (first, children, rest).prop_map(|(first, children, rest)| [first, children, rest].concat())
}

/// One step, or a few that mean more together.
fn phrase() -> impl Strategy<Value = Vec<Step>> {
    let lease = || (worker(), 1u8..5).prop_map(|(worker, max)| Step::Do(Command::Lease { worker, max }));
    let report = |(lease, progress)| Step::Do(Command::Report { lease, progress });
    let running = || (lease_back(), Just(Progress::Running)).prop_map(report);
    let ended = || (lease_back(), progress()).prop_map(report);
    prop_oneof![
        24 => step().prop_map(|step| vec![step]),
        // Time passes, and what it ends ends.
        4 => wait().prop_map(|wait| vec![Step::Wait(wait), Step::CheckLimits]),
        // Work is taken, and some of it begins.
        4 => (lease(), running()).prop_map(|(lease, running)| vec![lease, running]),
        // It is taken, begins and ends, or takes too long.
        2 => (lease(), running(), wait(), ended())
            .prop_map(|(lease, running, wait, ended)| vec![lease, running, Step::Wait(wait), Step::CheckLimits, ended]),
        // A condition waits, and somebody signals: at once, as its time is up, or beside another who signals or aborts.
        1 => (pause(), signal()).prop_map(|(pause, signal)| vec![pause, Step::Do(signal)]),
        1 => (pause(), wait(), signal())
            .prop_map(|(pause, wait, signal)| vec![pause, Step::Wait(wait), Step::Race(vec![signal, Command::TimeOut])]),
        1 => (pause(), signal(), prop_oneof![signal(), abort()])
            .prop_map(|(pause, signal, other)| vec![pause, Step::Race(vec![signal, other])]),
        // An administrator acts, and it is said what limits hold back.
        1 => queue().prop_map(|change| vec![Step::Do(change)]),
        1 => held(),
        // It ends, and what follows is taken when its time has come.
        2 => (ended(), wait(), lease()).prop_map(|(ended, wait, lease)| vec![ended, Step::Wait(wait), lease]),
        1 => identical(),
        1 => recovered(),
    ]
}

/// Identical work twice, and what comes of looking it up before and after it was computed. Sometimes in a queue that is
/// soon full.
fn identical() -> impl Strategy<Value = Vec<Step>> {
    let one = (0u8..4, 1u8..3, any::<bool>());
    let again = (0u8..4, 3u8..5, any::<bool>());
    let between = prop_oneof![
        4 => Just(Vec::new()),
        2 => wait().prop_map(|wait| vec![Step::Wait(wait)]),
        1 => (0u8..2).prop_map(|back| vec![Step::Vanish(back)]),
    ];
    let queued = (prop::bool::weighted(0.25), queue_spec());
    (one, again, any::<bool>(), cached_work(), worker(), ending(), between, looked_up(), queued).prop_map(
        |(one, mut again, together, work, worker, progress, between, last, (queued, spec))| {
            if together {
                again.0 = one.0;
            }
            let enqueue = |(run, action, old)| {
                let (kind, queue) = (Kind::Task(work.clone()), queued.then_some(0));
                Step::Do(Command::Enqueue { run, action, parent: 0, kind, old, queue })
            };
            let mut steps = vec![
                // What waits already is not in the way.
                Step::Do(Command::Lease { worker, max: 9 }),
                enqueue(one),
                Step::LookUp { reachable: true },
                Step::Do(Command::Lease { worker, max: 1 }),
                Step::Do(Command::Report { lease: 0, progress }),
            ];
            if queued {
                steps.insert(0, Step::Do(Command::Queue { queue: 0, change: Change::Create(spec) }));
            }
            let after = if queued { vec![Step::Wait(400), Step::Hold] } else { Vec::new() };
            [steps, between, vec![enqueue(again), last], after].concat()
        },
    )
}

/// Something ends well, its run is recovered, and there it is asked for again. Sometimes its queue takes nothing then.
fn recovered() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        6 => work().prop_map(Kind::Task),
        2 => Just(Kind::Trace { name: 0, failed: false }),
        1 => condition().prop_map(Kind::Condition),
    ];
    let name = (0u8..2, any::<bool>(), worker());
    let full = QueueSpec { depth: Some(0), ..QueueSpec::default() };
    let shut = prop_oneof![1 => Just(Change::Update(full)), 1 => Just(Change::Drain)];
    (0u8..2, 1u8..5, kind, place(), name, work(), forced(), option::weighted(0.5, shut)).prop_map(
        |(run, action, kind, place, (name, forces, worker), work, mut forced, shut)| {
            if forces {
                forced.push(action);
            }
            let queue = shut.map(|_| 0);
            let enqueue =
                |run| Step::Do(Command::Enqueue { run, action, parent: 0, kind: kind.clone(), old: false, queue });
            let administer = |change| Step::Do(Command::Queue { queue: 0, change });
            let reuse = Reuse { from: Some(Origin { run, recover: Some(forced) }), ..Reuse::default() };
            let ends = match kind {
                Kind::Condition(_) => Command::Signal { run, action: 0, says: Says::Fitting(1), via: 0 },
                Kind::Task(_) | Kind::Trace { .. } => Command::Report { lease: 0, progress: Progress::Succeeded },
            };
            let mut steps = Vec::new();
            steps.extend(shut.map(|_| administer(Change::Create(QueueSpec::default()))));
            steps.extend([
                Step::Do(Command::Lease { worker, max: 9 }),
                enqueue(run),
                Step::LookUp { reachable: true },
                Step::Do(Command::Lease { worker, max: 1 }),
                Step::Do(ends),
                Step::Do(Command::Create { place, name: Naming::Request(name), work, lane: Lane::default(), reuse }),
            ]);
            steps.extend(shut.map(administer));
            // Mostly one of these is the new run.
            steps.extend([enqueue(1), enqueue(2), Step::LookUp { reachable: true }]);
            steps
        },
    )
}

fn looked_up() -> impl Strategy<Value = Step> {
    prop::bool::weighted(0.85).prop_map(|reachable| Step::LookUp { reachable })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => looked_up(),
        1 => (0u8..4).prop_map(Step::Vanish),
        40 => command().prop_map(Step::Do),
        3 => vec(prop_oneof![12 => command(), 1 => Just(Command::TimeOut)], 2..=3).prop_map(Step::Race),
        4 => (0u8..6).prop_map(Step::Again),
        1 => lossy().prop_map(Step::Cut),
        1 => Just(Step::Restart),
        6 => wait().prop_map(Step::Wait),
        4 => Just(Step::Settle),
        4 => Just(Step::CheckLimits),
        4 => watch().prop_map(Step::Watch),
        2 => worker().prop_map(Step::Reclaim),
    ]
}

/// As [`phrase`], for clients alone.
fn phrase_of_clients() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        14 => step_of_clients().prop_map(|step| vec![step]),
        1 => (pause(), signal()).prop_map(|(pause, signal)| vec![pause, Step::Do(signal)]),
        3 => made_again(),
        1 => crowded(),
    ]
}

/// A queue that takes little is asked for more than that.
fn crowded() -> impl Strategy<Value = Vec<Step>> {
    (0u8..2, 1u8..3, 0u8..2).prop_map(|(run, action, depth)| {
        let spec = QueueSpec { depth: Some(depth), ..QueueSpec::default() };
        let kind = || Kind::Task(Work { task: 0, input: 2, policy: Policy::default() });
        let enqueue = |action| Command::Enqueue { run, action, parent: 0, kind: kind(), old: false, queue: Some(0) };
        let change = Change::Create(spec);
        [Command::Queue { queue: 0, change }, enqueue(action), enqueue(action + 1), enqueue(action + 2)]
            .map(Step::Do)
            .to_vec()
    })
}

/// A run that ends at once, and the same once more: found in the cache or recovered. Sometimes somebody was asked in the
/// first, and is not asked in the second.
fn made_again() -> impl Strategy<Value = Vec<Step>> {
    let policy = prop_oneof![1 => Just(Policy::default()), 2 => cached()];
    let asked = option::weighted(0.3, condition());
    (0u8..4, policy, option::of(0u8..3), asked).prop_map(|(place, policy, run, asked)| {
        // What asks somebody does not end before.
        let work = Work { task: 0, input: if asked.is_some() { 2 } else { 0 }, policy };
        let create = |name, from| {
            let reuse = Reuse { from, ..Reuse::default() };
            let (name, lane) = (Naming::Request(name), Lane::default());
            Step::Do(Command::Create { place, name, work: work.clone(), lane, reuse })
        };
        let from = run.map(|run| Origin { run, recover: Some(Vec::new()) });
        let Some(condition) = asked else { return vec![create(3, None), Step::Wait(30), create(4, from)] };
        let kind = Kind::Condition(condition);
        let ask =
            |run| Step::Do(Command::Enqueue { run, action: 4, parent: 0, kind: kind.clone(), old: false, queue: None });
        let tell = |run| Step::Do(Command::Signal { run, action: 0, says: Says::Fitting(1), via: 0 });
        vec![create(3, None), ask(0), tell(0), create(4, from), ask(1), ask(2)]
    })
}

fn step_of_clients() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => request().prop_map(Step::Do),
        2 => queue().prop_map(Step::Do),
        5 => vec(request(), 2..=3).prop_map(Step::Race),
        4 => (0u8..6).prop_map(Step::Again),
        2 => lossy_request().prop_map(Step::Cut),
        2 => Just(Step::Restart),
        3 => (1u16..60).prop_map(Step::Wait),
        8 => watch().prop_map(Step::Watch),
    ]
}

/// What clients and workers ask.
fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        14 => request(),
        8 => (worker(), 1u8..5).prop_map(|(worker, max)| Command::Lease { worker, max }),
        16 => (lease_back(), progress()).prop_map(|(lease, progress)| Command::Report { lease, progress }),
        1 => (lease_back(), forgery()).prop_map(|(lease, how)| Command::Forge { lease, how }),
    ]
}

/// What clients ask.
fn request() -> impl Strategy<Value = Command> {
    prop_oneof![5 => create(), 8 => enqueue(), 2 => abort(), 1 => signal()]
}

/// What can be asked again by a client that lost the answer.
fn lossy() -> impl Strategy<Value = Command> {
    let report = (lease_back(), progress()).prop_map(|(lease, progress)| Command::Report { lease, progress });
    prop_oneof![3 => lossy_request(), 2 => report]
}

fn lossy_request() -> impl Strategy<Value = Command> {
    request().prop_filter("a run that nobody can ask for again", |command| {
        !matches!(command, Command::Create { name: Naming::Nameless, .. })
    })
}

fn create() -> impl Strategy<Value = Command> {
    (place(), naming(), work(), lane(), reuse()).prop_map(|(place, name, work, lane, reuse)| Command::Create {
        place,
        name,
        work,
        lane,
        reuse,
    })
}

fn naming() -> impl Strategy<Value = Naming> {
    prop_oneof![
        5 => (0u8..2).prop_map(Naming::Named),
        2 => (0u8..3).prop_map(Naming::Request),
        1 => Just(Naming::Nameless),
    ]
}

/// Most runs say nothing.
fn reuse() -> impl Strategy<Value = Reuse> {
    let from = (known(0..4), option::weighted(0.7, forced())).prop_map(|(run, recover)| Origin { run, recover });
    let said = (prop::bool::weighted(0.3), prop::bool::weighted(0.3), option::weighted(0.5, from))
        .prop_map(|(overwrite, own_domain, from)| Reuse { overwrite, own_domain, from });
    prop_oneof![4 => Just(Reuse::default()), 1 => said]
}

/// The names of actions that are computed again.
fn forced() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => Just(Vec::new()), 1 => vec(0u8..5, 1..=2)]
}

fn enqueue() -> impl Strategy<Value = Command> {
    let kind = prop_oneof![
        3 => work().prop_map(Kind::Task),
        1 => (0u8..2, any::<bool>()).prop_map(|(name, failed)| Kind::Trace { name, failed }),
        1 => condition().prop_map(Kind::Condition),
    ];
    let action = prop_oneof![40 => 1u8..5, 1 => Just(0)];
    (known(0..4), action, known(0..5), kind, any::<bool>(), option::weighted(0.05, 0u8..2))
        .prop_map(|(run, action, parent, kind, old, queue)| Command::Enqueue { run, action, parent, kind, old, queue })
}

fn abort() -> impl Strategy<Value = Command> {
    (known(0..4), option::of(known(0..5)), 0u8..3).prop_map(|(run, action, via)| Command::Abort { run, action, via })
}

/// A small number, or once in a while one that names nothing.
fn known(range: std::ops::Range<u8>) -> impl Strategy<Value = u8> {
    prop_oneof![24 => range, 1 => Just(NOBODY)]
}

fn place() -> impl Strategy<Value = u8> {
    known(0..4)
}

fn worker() -> impl Strategy<Value = u8> {
    0u8..2
}

/// Mostly the newest leases.
fn lease_back() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0u8..2, 2 => 0u8..8]
}

fn work() -> impl Strategy<Value = Work> {
    (0u8..2, 0u8..3, policy()).prop_map(|(task, input, policy)| Work { task, input, policy })
}

/// Half the tasks declare nothing, so that the same work is drawn again often enough.
fn policy() -> impl Strategy<Value = Policy> {
    let limit = || option::weighted(0.4, prop_oneof![Just(50u16), Just(100), Just(1000)]);
    let backoff = (prop_oneof![Just(0u16), Just(50), Just(400)], 1u8..3, option::of(Just(500u16)))
        .prop_map(|(base, factor, cap)| Backoff { base, factor, cap });
    let declared = (0u8..3, option::of(backoff), limit(), limit(), limit()).prop_map(
        |(retries, backoff, max_runtime, queued_timeout, deadline)| Policy {
            retries,
            backoff,
            max_runtime,
            queued_timeout,
            deadline,
            cache: None,
        },
    );
    prop_oneof![5 => Just(Policy::default()), 4 => declared, 3 => cached()]
}

/// Tasks that are cached: mostly nothing else is declared.
fn cached() -> impl Strategy<Value = Policy> {
    let max_age = option::weighted(0.3, prop_oneof![Just(50u16), Just(1000)]);
    let retries = prop_oneof![3 => Just(0u8), 1 => Just(1)];
    let deadline = option::weighted(0.15, prop_oneof![Just(100u16), Just(1000)]);
    (prop_oneof![5 => Just(0u8), 1 => Just(1)], any::<bool>(), max_age, retries, deadline).prop_map(
        |(version, serialize, max_age, retries, deadline)| Policy {
            retries,
            deadline,
            cache: Some(Caching { version, serialize, max_age }),
            ..Policy::default()
        },
    )
}

fn cached_work() -> impl Strategy<Value = Work> {
    (0u8..2, 0u8..3, cached()).prop_map(|(task, input, policy)| Work { task, input, policy })
}

/// How most attempts end.
fn ending() -> impl Strategy<Value = Progress> {
    prop_oneof![
        5 => Just(Progress::Succeeded),
        1 => Just(Progress::Failed { recoverable: false }),
        1 => Just(Progress::Lost { recoverable: true }),
        1 => Just(Progress::Running),
    ]
}

fn progress() -> impl Strategy<Value = Progress> {
    prop_oneof![
        1 => Just(Progress::Waiting),
        2 => Just(Progress::Initializing),
        5 => Just(Progress::Running),
        3 => Just(Progress::Succeeded),
        4 => prop::bool::weighted(0.8).prop_map(|recoverable| Progress::Failed { recoverable }),
        3 => prop::bool::weighted(0.9).prop_map(|recoverable| Progress::Lost { recoverable }),
    ]
}

fn forgery() -> impl Strategy<Value = Forgery> {
    prop_oneof![Just(Forgery::Token), Just(Forgery::Attempt)]
}

/// Steps of the declared limits, a little less and a little more.
fn wait() -> impl Strategy<Value = u16> {
    prop_oneof![3 => Just(1u16), 2 => Just(49), 2 => Just(50), 1 => Just(100), 1 => Just(400), 2 => Just(1000), 1 => Just(5000)]
}

fn watch() -> impl Strategy<Value = Watch> {
    let run = || known(0..4);
    let action = || known(0..5);
    prop_oneof![
        3 => (run(), action(), any::<bool>()).prop_map(|(run, parent, old)| Watch::Children { run, parent, old }),
        3 => run().prop_map(|run| Watch::Actions { run }),
        2 => (run(), action()).prop_map(|(run, action)| Watch::Action { run, action }),
        1 => run().prop_map(|run| Watch::Run { run }),
        1 => (0u8..4).prop_map(|place| Watch::Runs { place }),
    ]
}
