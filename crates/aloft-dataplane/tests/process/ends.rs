//! How attempts end when they are stopped, run out of memory, are killed, and what the next attempt gets of it.

use std::{borrow::Cow, fs, io, path::PathBuf, time::Duration};

use aloft_core::{AttemptOutcome, Progress};
use aloft_dataplane::{
    process::{Exit, Results, Running, judge},
    target::Target,
};
use aloft_flyteidl2::flyteidl2::{
    core::{
        Container, Resources, TaskMetadata, TaskTemplate, TimeoutStrategy,
        resources::{ResourceEntry, ResourceName},
    },
    task::TaskSpec,
};
use aloft_plane::LeasedAttempt;
use buffa::Message;
use buffa_types::google::protobuf::Duration as WireDuration;
use libtest_mimic::Trial;
use tokio::time::Instant;

use crate::{
    Bench,
    executor::{launch, launch_target},
    plane::{Files, Plane},
    sdk, spec, trial, until, worker,
};

pub(crate) fn trials(out: &mut Vec<Trial>) {
    for warm in [false, true] {
        if warm && sdk().is_none() {
            continue;
        }
        let how = if warm { "warm" } else { "cold" };
        out.extend([
            trial(&format!("{how}_a_task_that_is_stopped_has_the_time_its_pod_says"), move || grace(warm)),
            trial(&format!("{how}_a_kill_is_told_from_want_of_memory"), move || kills(warm)),
        ]);
    }
    out.push(trial("an_attempt_goes_on_from_the_newest_checkpoint", checkpoints));
    out.push(trial("what_can_never_run_waits_if_it_says_how_long", waits));
}

/// Finishes its work and its helper's after SIGTERM, longer than the executor's own second of grace.
const WRITES_LATE: &str = "
import os, signal, subprocess, time
helper = subprocess.Popen(['sleep', '60'])
def end(*_):
    time.sleep(1.5)
    print('helper', 'lives' if helper.poll() is None else 'died')
    print('checkpoint written')
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print('up')
while True:
    time.sleep(1)
";

async fn grace(warm: bool) {
    let bench = Bench::new();
    for (action, adopted) in [("kept", false), ("adopted", true)] {
        let executor = bench.executor(warm);
        let attempt = bench.attempt(action, &[]);
        let args = ["a0", WRITES_LATE].map(str::to_owned).to_vec();
        let target = Target {
            container: Cow::Owned(Container { args, ..Container::default() }),
            grace: Some(Duration::from_secs(20)),
            notes: Vec::new(),
        };
        let mut running = launch_target(&executor, &bench, &attempt, target).await;
        until_up(&running).await;
        if adopted {
            running = bench.executor(warm).adopt(&attempt.lease.id);
        }
        let began = Instant::now();
        assert_eq!(running.stop().await.how, Exit::Code(0));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let text = fs::read_to_string(running.dir().log()).unwrap();
        assert!(text.contains("checkpoint written"), "{text}");
        // As in a pod, only the first process is told.
        assert!(text.contains("helper lives"), "{text}");
    }
}

async fn until_up(running: &Running) {
    let log = running.dir().log();
    let up = |text: String| text.lines().any(|line| line.contains(" stdout F up"));
    until("it is up", || fs::read_to_string(&log).is_ok_and(up)).await;
}

/// A control group with a limit of memory, if this machine lets us make one.
struct Limited(PathBuf);

impl Limited {
    fn new(bytes: u64) -> io::Result<Self> {
        let name = format!("aloft-test-{}", std::process::id());
        let (base, limit) = match fs::exists("/sys/fs/cgroup/memory")? {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let dir = PathBuf::from(base).join(name);
        fs::create_dir(&dir)?;
        let limited = Self(dir);
        fs::write(limited.0.join(limit), bytes.to_string())?;
        Ok(limited)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

async fn kills(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let ends = async |action: &str, code: &str| {
        let attempt = bench.attempt(action, &["a0", code]);
        let exit = launch(&executor, &bench, &attempt).await.ended().await;
        let results = Results::read(&Files, &attempt.output_prefix).await.unwrap();
        match judge(results, &exit, &attempt.output_prefix) {
            AttemptOutcome::Failed(error, _) => (error.code, error.message),
            other => panic!("{other:?}"),
        }
    };
    let (code, message) = ends("killed", "import os; os.kill(os.getpid(), 9)").await;
    assert_eq!(code, "Killed", "{message}");
    let (code, message) = ends("crashed", "import os; os.kill(os.getpid(), 11)").await;
    assert!(code == "Crashed" && message.contains("SIGSEGV"), "{code}: {message}");

    let Ok(group) = Limited::new(64 << 20) else {
        eprintln!("no control group can be made here, so nothing runs out of memory");
        return;
    };
    let procs = group.0.join("cgroup.procs");
    let hungry =
        format!("import os; open({procs:?}, 'w').write(str(os.getpid())); x = bytearray(256 << 20); print(len(x))");
    let (code, message) = ends("hungry", &hungry).await;
    assert_eq!(code, "OOMKilled", "{message}");
    // The SDK raises OOMError for every code with these letters.
    assert!(code.to_uppercase().contains("OOM") && message.contains("more memory"), "{message}");
}

/// Attempt 1 wrote a checkpoint, attempt 2 died before it could: attempt 3 goes on from that of attempt 1.
async fn checkpoints() {
    let (bench, plane) = (Bench::new(), std::sync::Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let previous = async |action: &str, number: u32| {
        let mut attempt: LeasedAttempt = bench.attempt(action, &[]);
        let base = attempt.output_prefix.trim_end_matches("/1").to_owned();
        attempt.lease.id.attempt = number;
        attempt.output_prefix = format!("{base}/{number}");
        if number > 1 {
            attempt.previous_prefix = format!("{base}/{}", number - 1);
        }
        let code = format!(
            "import os; os.makedirs({out:?}); open({out:?} + '/outputs.pb', 'w').write('{{{{.prevCheckpointPrefix}}}}')",
            out = attempt.output_prefix
        );
        attempt.task_spec = spec("python", &["a0", &code]).encode_to_vec().into();
        plane.enqueue(attempt.clone());
        assert_eq!(worker::code_of(&worker::ended(&plane, &attempt).await), "ok");
        let said = fs::read_to_string(format!("{}/outputs.pb", attempt.output_prefix)).unwrap();
        said.strip_prefix(&format!("{base}/")).unwrap_or(&said).to_owned()
    };
    let wrote = |action: &str, number: u32| {
        let dir = bench.home.path().join(format!("store/r1/{action}/{number}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("_flytecheckpoints"), "step 7").unwrap();
    };
    assert_eq!(previous("first", 1).await, "", "there is none before the first");
    assert_eq!(previous("none", 4).await, "3/_flytecheckpoints", "the contract's, if nobody wrote one");
    wrote("old", 1);
    assert_eq!(previous("old", 3).await, "1/_flytecheckpoints");
    wrote("both", 1);
    wrote("both", 2);
    assert_eq!(previous("both", 3).await, "2/_flytecheckpoints");
    worker.stop().await;
}

/// A task that asks for a GPU and says how long it may wait is left waiting: its time limit ends it.
async fn waits() {
    let (bench, plane) = (Bench::new(), std::sync::Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let gpu = ResourceEntry { name: ResourceName::GPU.into(), value: "1".to_owned(), ..ResourceEntry::default() };
    let resources = Resources { requests: vec![gpu], ..Resources::default() };
    let container = Container { resources: resources.into(), ..Container::default() };
    let minute = WireDuration { seconds: 60, ..WireDuration::default() };
    let timeouts = TimeoutStrategy { queued_timeout: minute.into(), ..TimeoutStrategy::default() };
    let metadata = TaskMetadata { timeouts: timeouts.into(), ..TaskMetadata::default() };
    let template = TaskTemplate { metadata: metadata.into(), target: container.into(), ..TaskTemplate::default() };
    let mut attempt = bench.attempt("gpu", &[]);
    attempt.task_spec = TaskSpec { task_template: template.into(), ..TaskSpec::default() }.encode_to_vec().into();
    plane.enqueue(attempt.clone());
    let waits = |p: &Progress| matches!(p, Progress::Waiting { reason } if reason.contains("GPU"));
    until("it is said to wait", || plane.reports(&attempt.lease.id).iter().any(waits)).await;
    plane.revoke(&attempt.lease.id);
    until("it is gone", || worker.status().borrow().running == 0).await;
    assert_eq!(plane.outcome(&attempt.lease.id), None);
    worker.stop().await;
}
