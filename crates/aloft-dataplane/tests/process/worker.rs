//! The worker loop with a control plane in memory and real processes.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aloft_core::{AttemptOutcome, OutputRefs, Progress};
use aloft_dataplane::{
    logs::{LogSink, Logs},
    needs::Machine,
    seam::NativeTask,
    worker::{Parts, Worker},
};
use aloft_flyteidl2::flyteidl2::{
    core::{
        Container, Resources, TaskTemplate,
        resources::{ResourceEntry, ResourceName},
    },
    task::TaskSpec,
};
use aloft_plane::{ControlPlane, LeasedAttempt};
use async_trait::async_trait;
use buffa::Message;
use libtest_mimic::Trial;
use tokio_util::sync::CancellationToken;

use crate::{
    Bench, alive, lines,
    plane::{Always, Files, Plane},
    sdk, spec, trial, until,
};

pub(crate) fn trials(out: &mut Vec<Trial>) {
    out.extend([
        trial("worker_an_attempt_is_run_and_reported_in_order", in_order),
        trial("worker_what_cannot_run_is_refused_with_its_reason", refusals),
        trial("worker_reports_are_kept_while_the_control_plane_is_away", unavailable),
        trial("worker_a_revoked_attempt_is_killed_and_not_reported", revoked),
        trial("worker_a_stopped_worker_leaves_tasks_running_for_the_next", handover),
        trial("worker_what_happened_meanwhile_is_judged_by_files", judged),
        trial("worker_what_is_not_listed_is_killed", unlisted),
        trial("worker_the_next_attempt_waits_for_the_death_of_the_one_before", next_attempt),
        trial("worker_a_native_task_is_run_again_after_a_restart", native),
        trial("worker_never_more_run_than_the_machine_holds", admission),
        trial("worker_crashes_at_random_moments_lose_nothing", crashes),
    ]);
}

/// A native task that counts how many run at once.
#[derive(Default)]
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
    runs: AtomicUsize,
    /// How long each takes.
    pause: Duration,
}

#[async_trait]
impl NativeTask for Counting {
    async fn run(&self, attempt: &LeasedAttempt, log: LogSink, cancelled: CancellationToken) -> AttemptOutcome {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::SeqCst);
        log.line("building");
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {}
            () = cancelled.cancelled() => {}
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        let refs = OutputRefs { output_uri: attempt.output_prefix.clone(), report_uri: String::new() };
        AttemptOutcome::Succeeded(refs)
    }
}

fn worker_with(bench: &Bench, plane: &Arc<Plane>, native: Arc<Counting>, warm: bool) -> Worker {
    Worker::start(Parts {
        control: plane.clone(),
        executor: Arc::new(bench.executor(warm && sdk().is_some())),
        environments: Arc::new(Always(bench.env.clone())),
        results: Arc::new(Files),
        native: HashMap::from([("build".to_owned(), native as Arc<dyn NativeTask>)]),
        machine: Machine { memory: 2 << 30, cpu: 4000, cores: 2000 },
        max_waiting: 64,
        linger: Duration::from_secs(1),
    })
}

pub(crate) fn worker(bench: &Bench, plane: &Arc<Plane>) -> Worker {
    worker_with(bench, plane, Arc::default(), false)
}

/// Code that ends as the SDK does: with its outputs written.
fn writes_outputs(attempt: &LeasedAttempt, before: &str) -> Vec<u8> {
    let code = format!(
        "import os\n{before}\nos.makedirs({out:?}, exist_ok=True)\nopen({out:?} + '/outputs.pb', 'w').close()",
        out = attempt.output_prefix
    );
    spec("python", &["a0", &code]).encode_to_vec()
}

pub(crate) fn succeeding(bench: &Bench, action: &str, before: &str) -> LeasedAttempt {
    let mut attempt = bench.attempt(action, &[]);
    attempt.task_spec = writes_outputs(&attempt, before).into();
    attempt
}

pub(crate) fn code_of(outcome: &AttemptOutcome) -> &str {
    match outcome {
        AttemptOutcome::Succeeded(_) => "ok",
        AttemptOutcome::Failed(e, _) | AttemptOutcome::Lost(e) => &e.code,
    }
}

pub(crate) async fn ended(plane: &Plane, attempt: &LeasedAttempt) -> AttemptOutcome {
    until(&format!("{} ends", attempt.lease.id), || plane.outcome(&attempt.lease.id).is_some()).await;
    plane.outcome(&attempt.lease.id).unwrap()
}

async fn in_order() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker(&bench, &plane);
    let attempt = succeeding(&bench, "a0", "print('hello')");
    plane.enqueue(attempt.clone());
    let outcome = ended(&plane, &attempt).await;
    let refs = OutputRefs { output_uri: attempt.output_prefix.clone(), report_uri: String::new() };
    assert_eq!(outcome, AttemptOutcome::Succeeded(refs));
    let reports = plane.reports(&attempt.lease.id);
    let running = reports.iter().position(|p| *p == Progress::Running).unwrap();
    assert_eq!(running, reports.len() - 2, "{reports:?}");
    let dir = bench.dirs().dir(&attempt.lease.id);
    until("it is settled", || !dir.work().exists() && bench.dirs().live().unwrap().is_empty()).await;
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    assert_eq!(log, [(false, "hello\n".to_owned())]);
    until("nothing is left", || worker.status().borrow().running == 0).await;
    worker.stop().await;
}

async fn refusals() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker(&bench, &plane);
    let with = |action: &str, container: Container| {
        let template = TaskTemplate { target: container.into(), ..TaskTemplate::default() };
        let spec = TaskSpec { task_template: template.into(), ..TaskSpec::default() };
        let mut attempt = bench.attempt(action, &[]);
        attempt.task_spec = spec.encode_to_vec().into();
        attempt
    };
    let gpu = ResourceEntry { name: ResourceName::GPU.into(), value: "1".to_owned(), ..ResourceEntry::default() };
    let resources = Resources { requests: vec![gpu], ..Resources::default() };
    let mut garbage = bench.attempt("garbage", &[]);
    garbage.task_spec = b"\xff\xff".as_slice().into();
    let mut empty = bench.attempt("empty", &[]);
    empty.task_spec = Vec::new().into();
    let table = [
        (with("gpu", Container { resources: resources.into(), ..Container::default() }), "UnsatisfiableResources"),
        (with("none", Container::default()), "UnsupportedTask"),
        (
            with("shell", Container { command: vec!["/bin/nothing".to_owned()], ..Container::default() }),
            "UnsupportedTask",
        ),
        (with("image", Container { image: "missing".to_owned(), ..Container::default() }), "ImageNotFound"),
        (garbage, "UnsupportedTask"),
        (empty, "UnsupportedTask"),
    ];
    for (attempt, code) in table {
        plane.enqueue(attempt.clone());
        let AttemptOutcome::Failed(error, _) = ended(&plane, &attempt).await else { panic!("{code}") };
        assert_eq!((error.code.as_str(), error.recoverable), (code, false));
        let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
        assert!(log.iter().any(|(system, line)| *system && line.contains(&error.message)), "{log:?}");
    }
    worker.stop().await;
}

async fn unavailable() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker(&bench, &plane);
    let attempt = succeeding(&bench, "a0", "import time; time.sleep(.5)");
    plane.enqueue(attempt.clone());
    until("it runs", || plane.reports(&attempt.lease.id).contains(&Progress::Running)).await;
    plane.set_down(true);
    until("its end was refused", || plane.refused() > 3).await;
    plane.set_down(false);
    assert_eq!(code_of(&ended(&plane, &attempt).await), "ok");
    // The worker is in touch again.
    let next = succeeding(&bench, "a1", "");
    plane.enqueue(next.clone());
    assert_eq!(code_of(&ended(&plane, &next).await), "ok");
    worker.stop().await;
}

async fn revoked() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker(&bench, &plane);
    let attempt = bench.attempt("a0", &["a0", "import os, time; print('pid', os.getpid()); time.sleep(60)"]);
    plane.enqueue(attempt.clone());
    let log = bench.dirs().dir(&attempt.lease.id).log();
    until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("pid "))).await;
    let pid = fs::read_to_string(&log).unwrap().split("pid ").nth(1).unwrap().trim().parse().unwrap();
    plane.revoke(&attempt.lease.id);
    until("it is dead", || !alive(pid)).await;
    until("it is settled", || bench.dirs().live().unwrap().is_empty()).await;
    assert!(!plane.reports(&attempt.lease.id).iter().any(|p| matches!(p, Progress::Ended(_))));
    worker.stop().await;
}

async fn handover() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let first = worker_with(&bench, &plane, Arc::default(), true);
    let attempt = succeeding(&bench, "a0", "import time; print('ran'); time.sleep(1.5)");
    plane.enqueue(attempt.clone());
    until("it runs", || plane.reports(&attempt.lease.id).contains(&Progress::Running)).await;
    first.stop().await;
    assert_eq!(bench.dirs().live().unwrap().len(), 1);
    let second = worker(&bench, &plane);
    assert_eq!(code_of(&ended(&plane, &attempt).await), "ok");
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    assert_eq!(log, [(false, "ran\n".to_owned())]);
    second.stop().await;
}

/// While no worker is there, tasks end well, end badly, and are killed with their shims before and after their result.
async fn judged() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let first = worker(&bench, &plane);
    let well = succeeding(&bench, "well", "import time; time.sleep(.7)");
    let badly = bench.attempt("badly", &["a0", "import time; time.sleep(.7); sys.exit(3)"]);
    let lost = bench.attempt("lost", &["a0", "import time; time.sleep(60)"]);
    let mut durable = succeeding(&bench, "durable", "");
    let code = String::from_utf8_lossy(&durable.task_spec).into_owned();
    assert!(code.contains("outputs.pb"));
    let out = &durable.output_prefix;
    let code =
        format!("import os, time; os.makedirs({out:?}); open({out:?} + '/outputs.pb', 'w').close(); time.sleep(60)");
    durable.task_spec = spec("python", &["a0", &code]).encode_to_vec().into();
    let all = [(&well, "ok"), (&badly, "NonZeroExit"), (&lost, "ProcessLost"), (&durable, "ok")];
    for (attempt, _) in &all {
        plane.enqueue((*attempt).clone());
    }
    for (attempt, _) in &all {
        until("it runs", || plane.reports(&attempt.lease.id).contains(&Progress::Running)).await;
    }
    until("its result is written", || Path::new(out).join("outputs.pb").exists()).await;
    first.stop().await;
    for attempt in [&lost, &durable] {
        let shim = bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap();
        std::process::Command::new("kill").args(["-9", &shim.shim.pid.to_string()]).status().unwrap();
        until("it dies with its shim", || !alive(shim.task.unwrap().pid)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = worker(&bench, &plane);
    for (attempt, want) in all {
        assert_eq!(code_of(&ended(&plane, attempt).await), want);
    }
    second.stop().await;
}

async fn unlisted() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let first = worker(&bench, &plane);
    let attempt = bench.attempt("a0", &["a0", "import time; print('up'); time.sleep(60)"]);
    plane.enqueue(attempt.clone());
    until("it runs", || plane.reports(&attempt.lease.id).contains(&Progress::Running)).await;
    let pid = bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap().task.unwrap().pid;
    first.stop().await;
    assert!(alive(pid));
    plane.forget(&attempt.lease.id);
    let second = worker(&bench, &plane);
    until("it is dead", || !alive(pid)).await;
    until("it is settled", || bench.dirs().live().unwrap().is_empty()).await;
    assert!(bench.dirs().dir(&attempt.lease.id).log().exists());
    second.stop().await;
}

async fn next_attempt() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker(&bench, &plane);
    let stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('pid', os.getpid()); time.sleep(60)";
    let first = bench.attempt("a0", &["a0", stubborn]);
    plane.enqueue(first.clone());
    let log = bench.dirs().dir(&first.lease.id).log();
    until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("pid "))).await;
    let pid: i32 = fs::read_to_string(&log).unwrap().split("pid ").nth(1).unwrap().trim().parse().unwrap();

    let mut second = bench.attempt("a0", &[]);
    second.lease.id.attempt = 2;
    second.output_prefix = second.output_prefix.replace("/1", "/2");
    second.task_spec = writes_outputs(&second, &format!("print('alive', os.path.exists('/proc/{pid}'))")).into();
    // The control plane ends the first and hands out the second at once.
    plane.enqueue(second.clone());
    plane.revoke(&first.lease.id);
    assert_eq!(code_of(&ended(&plane, &second).await), "ok");
    let log = lines(Logs::new(bench.dirs()).tail(&second.lease.id).await.unwrap()).await;
    assert_eq!(log, [(false, "alive False\n".to_owned())]);
    worker.stop().await;
}

async fn native() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let counting = Arc::new(Counting { pause: Duration::from_millis(600), ..Counting::default() });
    let first = worker_with(&bench, &plane, counting.clone(), false);
    let mut attempt = bench.attempt("a0", &[]);
    attempt.task_spec = spec("build", &[]).encode_to_vec().into();
    plane.enqueue(attempt.clone());
    until("it runs", || plane.reports(&attempt.lease.id).contains(&Progress::Running)).await;
    first.stop().await;
    let second = worker_with(&bench, &plane, counting.clone(), false);
    assert_eq!(code_of(&ended(&plane, &attempt).await), "ok");
    assert_eq!(counting.runs.load(Ordering::SeqCst), 2);
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    assert_eq!(log.len(), 2, "{log:?}");
    second.stop().await;
}

async fn admission() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let counting = Arc::new(Counting { pause: Duration::from_millis(80), ..Counting::default() });
    let worker = worker_with(&bench, &plane, counting.clone(), false);
    let all: Vec<_> = (0..150)
        .map(|n| {
            let mut attempt = bench.attempt(&format!("a{n}"), &[]);
            attempt.task_spec = spec("build", &[]).encode_to_vec().into();
            attempt
        })
        .collect();
    all.iter().for_each(|attempt| plane.enqueue(attempt.clone()));
    for attempt in &all {
        assert_eq!(code_of(&ended(&plane, attempt).await), "ok");
    }
    // Eight by CPU: 500 m each of 4000 m.
    assert_eq!(counting.most.load(Ordering::SeqCst), 8);
    assert!(
        plane
            .reports(&all[149].lease.id)
            .iter()
            .any(|p| matches!(p, Progress::Waiting { reason } if reason.contains("CPU")))
    );
    worker.stop().await;
}

/// A worker is torn away at random moments, as by kill -9, while thirty tasks run. Each attempt ends exactly once, and
/// none that wrote its outputs ran twice.
async fn crashes() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let ran = bench.home.path().join("ran");
    let all: Vec<_> = (0..30)
        .map(|n| {
            let before =
                format!("open({:?}, 'a').write('{n}\\n'); import time; time.sleep({})", ran, f64::from(n % 7) / 20.0);
            succeeding(&bench, &format!("a{n}"), &before)
        })
        .collect();
    all.iter().for_each(|attempt| plane.enqueue(attempt.clone()));
    let mut random = 12345u64;
    let mut rounds = 0;
    while !plane.is_idle() && rounds < 100 {
        rounds += 1;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let worker = worker_with(&bench, &plane, Arc::default(), rounds % 2 == 0);
        drop(guard);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(20 + (random >> 33) % 1500)).await;
        // What waits for the disk is finished, as a system call of a killed process would be.
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        drop(worker);
    }
    assert!(plane.is_idle(), "not done after {rounds} rounds");
    let ran = fs::read_to_string(ran).unwrap();
    for (n, attempt) in all.iter().enumerate() {
        let ends = plane.reports(&attempt.lease.id).iter().filter(|p| matches!(p, Progress::Ended(_))).count();
        assert_eq!(ends, 1);
        let runs = ran.lines().filter(|line| *line == n.to_string()).count();
        assert!(runs <= 1, "action {n} ran {runs} times");
        assert_eq!(code_of(&plane.outcome(&attempt.lease.id).unwrap()), "ok");
    }
    let _: &dyn ControlPlane = &*plane;
}
