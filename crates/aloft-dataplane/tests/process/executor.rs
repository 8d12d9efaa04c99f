//! One attempt as a process: started cold and warm, stopped, found again.

use std::{fs, time::Duration};

use aloft_dataplane::{
    logs::Logs,
    process::{Exit, ExitRecord, ProcessExecutor, Recovery, Running, recover},
    target::{Target, target},
};
use aloft_flyteidl2::flyteidl2::{core::TaskTemplate, task::TaskSpec};
use aloft_plane::LeasedAttempt;
use buffa::Message;
use libtest_mimic::Trial;
use tokio::time::Instant;

use crate::{Bench, alive, lines, sdk, seconds, trial, until};

pub(crate) fn trials(out: &mut Vec<Trial>) {
    for warm in [false, true] {
        if warm && sdk().is_none() {
            continue;
        }
        let how = if warm { "warm" } else { "cold" };
        out.extend([
            trial(&format!("{how}_output_keeps_its_order_and_bytes"), move || output(warm)),
            trial(&format!("{how}_exit_codes_and_signals_are_kept"), move || exits(warm)),
            trial(&format!("{how}_a_task_has_its_own_surroundings"), move || surroundings(warm)),
            trial(&format!("{how}_a_task_is_stopped_gracefully_then_firmly"), move || stopping(warm)),
            trial(&format!("{how}_what_a_task_leaves_running_ends_with_it"), move || leftovers(warm)),
            trial(&format!("{how}_a_task_outlives_its_worker_and_is_found_again"), move || adoption(warm)),
            trial(&format!("{how}_a_task_does_not_outlive_its_shim"), move || dead_shim(warm)),
            trial(&format!("{how}_a_log_is_followed_live"), move || live_log(warm)),
        ]);
    }
    out.push(trial("a_program_that_cannot_run_is_not_started", not_started));
    if sdk().is_some() {
        out.extend([
            trial("odd_environments_start_cold", odd_environments),
            trial("warm_tasks_draw_random_numbers_of_their_own", randomness),
            trial("a_zygote_of_changed_packages_is_replaced", stale_zygote),
            trial("a_zygote_that_dies_is_replaced_and_its_tasks_go_on", dead_zygote),
            trial("a_zygote_ends_with_its_last_task", zygote_end),
            trial("a_zygote_that_hangs_is_replaced", hung_zygote),
            trial("a_broken_environment_starts_cold", broken_environment),
        ]);
    }
}

pub(crate) async fn launch(executor: &ProcessExecutor, bench: &Bench, attempt: &LeasedAttempt) -> Running {
    let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap();
    launch_target(executor, bench, attempt, target(&spec.task_template).unwrap()).await
}

pub(crate) async fn launch_target(
    executor: &ProcessExecutor,
    bench: &Bench,
    attempt: &LeasedAttempt,
    target: Target<'_>,
) -> Running {
    let notes = vec!["a note".to_owned()];
    let template = TaskTemplate::default();
    let prepared =
        executor.prepare(attempt, &template, &target, &bench.env, notes).await.unwrap_or_else(|e| panic!("{e:?}"));
    executor.launch(prepared).await.unwrap_or_else(|e| panic!("{e:?}"))
}

/// Runs `code` and says how it ended and what it wrote.
async fn run(executor: &ProcessExecutor, bench: &Bench, action: &str, code: &str) -> (ExitRecord, Vec<(bool, String)>) {
    let attempt = bench.attempt(action, &["a0", code]);
    let mut running = launch(executor, bench, &attempt).await;
    let warm = is_warm(bench, &attempt);
    let exit = running.ended().await;
    assert_eq!(warm, executor.is_warm(), "{action}");
    (exit, lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await)
}

fn is_warm(bench: &Bench, attempt: &LeasedAttempt) -> bool {
    bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap().warm
}

fn task_pid(bench: &Bench, attempt: &LeasedAttempt) -> i32 {
    bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap().task.unwrap().pid
}

async fn output(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let code = r"
import os
for n in range(200):
    os.write(1, b'out %d\n' % n)
    os.write(2, b'\x1b[31merr %d\x1b[0m\n' % n)
sys.stdout.write('10%\r20%\r')
sys.stdout.write('no end')
";
    let (exit, log) = run(&executor, &bench, "a0", code).await;
    assert_eq!(exit.how, Exit::Code(0));
    assert!(exit.started_us > 0 && exit.ended_us >= exit.started_us);
    assert_eq!(log[0], (true, "a note\n".to_owned()));
    let mut want: Vec<String> =
        (0..200).flat_map(|n| [format!("out {n}\n"), format!("\x1b[31merr {n}\x1b[0m\n")]).collect();
    want.push("10%\r20%\rno end".to_owned());
    let text: Vec<String> = log[1..]
        .iter()
        .map(|(system, line)| {
            assert!(!system);
            line.clone()
        })
        .collect();
    assert_eq!(text, want);
}

async fn exits(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let table = [
        ("pass", Exit::Code(0)),
        ("sys.exit(3)", Exit::Code(3)),
        ("sys.exit('why')", Exit::Code(1)),
        ("sys.exit()", Exit::Code(0)),
        ("raise ValueError('no')", Exit::Code(1)),
        ("import os; os._exit(5)", Exit::Code(5)),
        ("import os; os.kill(os.getpid(), 9)", Exit::Signal(9)),
        ("import os; os.kill(os.getpid(), 15)", Exit::Signal(15)),
        ("raise KeyboardInterrupt", Exit::Signal(2)),
        ("import atexit; atexit.register(lambda: print('bye')); raise SystemExit(257)", Exit::Code(1)),
        (
            "import threading,time; threading.Thread(target=lambda: (time.sleep(.2), print('bye'))).start()",
            Exit::Code(0),
        ),
    ];
    for (n, (code, want)) in table.into_iter().enumerate() {
        let (exit, log) = run(&executor, &bench, &format!("a{n}"), code).await;
        let text: String = log.into_iter().map(|(_, line)| line).collect();
        assert_eq!(exit.how, want, "{code}: {text}");
        assert_eq!(text.contains("ValueError: no"), code.contains("ValueError"), "{text}");
        assert_eq!(text.contains("why\n"), code.contains("'why'"), "{text}");
        assert_eq!(text.contains("bye\n"), code.contains("bye"), "{code}: {text}");
    }
}

/// Everything a task can ask about itself is the same however it was started.
async fn surroundings(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let code = r"
import os, tempfile, threading, signal, json, __main__, logging
print(json.dumps({
    'cwd_empty': os.listdir('.') == [],
    'cwd': os.getcwd().endswith('/org/proj/dev/r1/a0/1/work'),
    'tmp': tempfile.gettempdir() == os.environ['TMPDIR'] and os.listdir(tempfile.gettempdir()) == [],
    'argv0': sys.argv[0].endswith('/bin/a0') and len(sys.argv) == 2,
    'path0': sys.path[0] == os.path.dirname(sys.argv[0]),
    'main': __main__.__name__ == '__main__' and __main__.__file__ == sys.argv[0],
    'stdin': sys.stdin.read() == '',
    'leader': os.getpgrp() == os.getpid() == os.getsid(0),
    'threads': threading.main_thread() is threading.current_thread(),
    'sigint': signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    'sigchld': signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    'sigterm': signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    'sigpipe': signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
    'fds': {n: os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)},
    'tty': not sys.stdout.isatty(),
    'unbuffered': sys.stdout.write_through,
    'name': os.environ['ACTION_NAME'],
    'secret': os.environ['FLYTE_AWS_SECRET_ACCESS_KEY'] == 'hush-hush',
    'level': os.environ['LOG_LEVEL'],
    'flyte': 'flyte' not in sys.modules or logging.getLogger('flyte').level,
    'oom': open('/proc/self/oom_score_adj').read().strip() == '500',
    'nice': os.nice(0) == 10,
    'group': not os.path.exists('/proc/self/autogroup') or open('/proc/self/autogroup').read().split()[-1] in ('10', ''),
}))";
    let mut attempt = bench.attempt("a0", &["a0", code]);
    attempt.envs.push(("LOG_LEVEL".to_owned(), "20".to_owned()));
    let mut running = launch(&executor, &bench, &attempt).await;
    assert_eq!(is_warm(&bench, &attempt), warm);
    running.ended().await;
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    let said: serde_json::Value = serde_json::from_str(&log[1].1).unwrap_or_else(|e| panic!("{e}: {log:?}"));
    for (name, value) in said.as_object().unwrap() {
        match name.as_str() {
            "name" => assert_eq!(value, "a0"),
            "level" => assert_eq!(value, "20"),
            // The SDK, which is imported in a warm task, has an event loop of three.
            "fds" => assert_eq!(value.as_object().unwrap().len(), if warm { 6 } else { 3 }, "{value}"),
            "flyte" => assert!(value == true || value == 20, "{value}"),
            _ => assert_eq!(value, true, "{name}"),
        }
    }
    // Credentials are on disk only while the task is being started.
    let dir = bench.dirs().dir(&attempt.lease.id);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path != dir.log() {
            assert!(!fs::read_to_string(&path).unwrap().contains("hush-hush"), "{}", path.display());
        }
    }
}

async fn stopping(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let graceful = bench.attempt(
        "soft",
        &[
            "a0",
            "
import signal, time
def end(*_):
    print('cleaned up')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('up')
time.sleep(60)
",
        ],
    );
    let stubborn = bench.attempt(
        "hard",
        &[
            "a0",
            "
import signal, time, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '60'], process_group=0)
print('up', child.pid)
time.sleep(60)
",
        ],
    );
    for (attempt, want, slow) in [(graceful, Exit::Code(0), false), (stubborn, Exit::Signal(9), true)] {
        let mut running = launch(&executor, &bench, &attempt).await;
        let log = running.dir().log();
        // A whole line of the task's own: what Aloft notes before may hold the same two letters.
        let up = |text: String| text.lines().any(|line| line.contains(" stdout F up"));
        until("it is up", || fs::read_to_string(&log).is_ok_and(up)).await;
        let began = Instant::now();
        assert_eq!(running.stop().await.how, want);
        assert_eq!(began.elapsed() >= Duration::from_secs(1), slow, "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(text.contains("cleaned up"), !slow);
        if let Some(child) = text.split("up ").nth(1) {
            let child = child.trim().parse().unwrap();
            until("a process of another group in its session is dead", || !alive(child)).await;
        }
    }
}

async fn leftovers(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let code = "import subprocess; print('child', subprocess.Popen(['sleep', '60']).pid)";
    let began = Instant::now();
    let (exit, log) = run(&executor, &bench, "a0", code).await;
    assert_eq!(exit.how, Exit::Code(0));
    assert!(began.elapsed() < Duration::from_secs(50));
    let child: i32 = log[1].1.trim().strip_prefix("child ").unwrap().parse().unwrap();
    until("the child is dead", || !alive(child)).await;
}

/// The worker that started a task is gone (its executor is dropped, as after kill -9): another finds the task again, with
/// its output and its exit code.
async fn adoption(warm: bool) {
    let bench = Bench::new();
    let attempt = bench.attempt(
        "a0",
        &[
            "a0",
            "
import time
print('before', flush=True)
time.sleep(1.5)
print('after')
sys.exit(4)
",
        ],
    );
    let executor = bench.executor(warm);
    let running = launch(&executor, &bench, &attempt).await;
    let pid = task_pid(&bench, &attempt);
    drop((running, executor));

    let executor = bench.executor(false);
    let state = bench.dirs().dir(&attempt.lease.id).state().unwrap();
    assert_eq!(recover(&state, attempt.phase, attempt.lease.token), Recovery::Adopt);
    assert!(alive(pid));
    let exit = executor.adopt(&attempt.lease.id).ended().await;
    assert_eq!(exit.how, Exit::Code(4));
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    assert_eq!(log[1..], [(false, "before\n".to_owned()), (false, "after\n".to_owned())]);
    let state = bench.dirs().dir(&attempt.lease.id).state().unwrap();
    assert_eq!(recover(&state, attempt.phase, attempt.lease.token), Recovery::Judge);
}

async fn dead_shim(warm: bool) {
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let attempt = bench.attempt(
        "a0",
        &[
            "a0",
            "
import time, subprocess
print('child', subprocess.Popen(['sleep', '60']).pid)
time.sleep(60)
",
        ],
    );
    let mut running = launch(&executor, &bench, &attempt).await;
    let log = running.dir().log();
    until("it is up", || fs::read_to_string(&log).is_ok_and(|text| text.contains("child"))).await;
    let text = fs::read_to_string(&log).unwrap();
    let child: i32 = text.split("child ").nth(1).unwrap().trim().parse().unwrap();
    let shim = bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap();
    let task = shim.task.unwrap().pid;
    assert!(alive(task) && alive(child));
    kill(shim.shim.pid);
    assert_eq!(running.ended().await.how, Exit::Unknown);
    until("the task is dead", || !alive(task) && !alive(child)).await;
    assert!(running.dir().exit().exists(), "those who follow the log must hear of the end");
}

async fn live_log(warm: bool) {
    use futures::StreamExt;
    let bench = Bench::new();
    let executor = bench.executor(warm);
    let attempt = bench.attempt(
        "a0",
        &[
            "a0",
            "
import time
for n in range(5):
    print('at', time.time())
    time.sleep(.3)
",
        ],
    );
    let logs = Logs::new(bench.dirs());
    assert!(logs.tail(&attempt.lease.id).await.is_err_and(|e| e.to_string().contains("has no log yet")));
    let mut running = launch(&executor, &bench, &attempt).await;
    let mut stream = logs.tail(&attempt.lease.id).await.unwrap();
    let mut lags = Vec::new();
    while let Some(batch) = stream.next().await {
        let now = seconds();
        for line in batch.unwrap() {
            if let Some(at) = line.message.strip_prefix("at ") {
                lags.push(now - at.trim().parse::<f64>().unwrap());
            }
        }
    }
    assert_eq!(lags.len(), 5);
    // The quickest, since the machine may be busy.
    let least = lags.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 0.2, "every line came late: {lags:?}");
    assert!(running.ended().await.how == Exit::Code(0));
}

async fn not_started() {
    let bench = Bench::new();
    let executor = bench.executor(false);
    let a0 = bench.env.bin_dir.join("a0");
    fs::write(&a0, "#!/nonexistent/python\n").unwrap();
    let attempt = bench.attempt("a0", &["a0", "pass"]);
    let exit = launch(&executor, &bench, &attempt).await.ended().await;
    let Exit::NotStarted(why) = exit.how else { panic!("{exit:?}") };
    assert!(why.contains("/bin/a0 cannot be started"), "{why}");
    assert!(why.contains("interpreter that its first line names"), "{why}");

    fs::remove_file(a0).unwrap();
    let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap();
    let target = target(&spec.task_template).unwrap();
    let refused = executor.prepare(&attempt, &spec.task_template, &target, &bench.env, Vec::new()).await;
    assert!(matches!(refused, Err(aloft_core::AttemptOutcome::Failed(e, _)) if e.code == "UnsupportedTask"));
}

async fn odd_environments() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let table = [
        ("MY_OWN", "x", true),
        ("LOG_LEVEL", "40", true),
        ("USER_LOG_LEVEL", "info", true),
        ("TZ", "Asia/Tokyo", true),
        ("FSSPEC_FILE_AUTO_MKDIR", "true", true),
        ("LOG_LEVEL", "debug", false),
        ("LOG_LEVEL", "10", false),
        ("PYTHONHASHSEED", "1", false),
        ("PYTHONPATH", "/tmp", false),
        ("LC_ALL", "POSIX", false),
        ("_F_TE_MAX_COROS", "3", false),
        ("FLYTE_IO_BATCH_SIZE", "3", false),
    ];
    for (n, (name, value, warm)) in table.into_iter().enumerate() {
        let code = format!("import os, time; time.tzset(); print(os.environ[{name:?}], time.tzname[0])");
        let mut attempt = bench.attempt(&format!("a{n}"), &["a0", &code]);
        attempt.envs.push((name.to_owned(), value.to_owned()));
        let mut running = launch(&executor, &bench, &attempt).await;
        assert_eq!(is_warm(&bench, &attempt), warm, "{name}={value}");
        assert_eq!(running.ended().await.how, Exit::Code(0));
        let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
        assert!(log[1].1.starts_with(value), "{log:?}");
        assert_eq!(log[1].1.contains("JST"), name == "TZ");
    }
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(1).unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    send("-KILL", pid);
}

fn send(signal: &str, pid: i32) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// The task waits for the answer once, starts cold and runs once; those after it do not wait.
async fn hung_zygote() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let runs = bench.home.path().join("runs");
    let code = format!("open({runs:?}, 'a').write('x'); import time; time.sleep(.3)");
    let mut zygote = 0;
    for (action, warm) in [("a1", true), ("a2", false), ("a3", true)] {
        let attempt = bench.attempt(action, &["a0", &code]);
        let mut running = launch(&executor, &bench, &attempt).await;
        assert_eq!(is_warm(&bench, &attempt), warm, "{action}");
        if action == "a1" {
            zygote = parent(task_pid(&bench, &attempt));
        }
        assert_eq!(running.ended().await.how, Exit::Code(0));
        if action == "a1" {
            send("-STOP", zygote);
        }
    }
    send("-CONT", zygote);
    until("the zygote has ended", || !alive(zygote)).await;
    assert_eq!(fs::read_to_string(runs).unwrap(), "xxx");
}

async fn dead_zygote() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let first = bench.attempt("first", &["a0", "import time; print('up'); time.sleep(1); print('done')"]);
    let mut running = launch(&executor, &bench, &first).await;
    let log = running.dir().log();
    until("it is up", || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().any(|line| line.contains(" stdout F up")))
    })
    .await;
    let zygote = parent(task_pid(&bench, &first));
    kill(zygote);
    // Nobody saw its exit code, but it ran to its end.
    assert_eq!(running.ended().await.how, Exit::Unknown);
    let log = lines(Logs::new(bench.dirs()).tail(&first.lease.id).await.unwrap()).await;
    assert_eq!(log.last().unwrap().1, "done\n");

    let second = bench.attempt("second", &["a0", "pass"]);
    let mut running = launch(&executor, &bench, &second).await;
    assert!(is_warm(&bench, &second));
    assert_eq!(running.ended().await.how, Exit::Code(0));
}

async fn randomness() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let code =
        "import random, uuid, os, tempfile; print(random.random(), uuid.uuid4(), os.urandom(8), tempfile.mkdtemp())";
    let (_, first) = run(&executor, &bench, "a1", code).await;
    let (_, second) = run(&executor, &bench, "a2", code).await;
    let words = |log: &[(bool, String)]| log[1].1.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for (a, b) in words(&first).into_iter().zip(words(&second)) {
        assert_ne!(a, b);
    }
}

/// The packages of an environment can change under a zygote (`pip install` by the person who runs Aloft).
async fn stale_zygote() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let start = async |action: &str| {
        let attempt = bench.attempt(
            action,
            &["a0", "import sysconfig, time; print(sysconfig.get_paths()['purelib']); time.sleep(.3)"],
        );
        let mut running = launch(&executor, &bench, &attempt).await;
        assert!(is_warm(&bench, &attempt));
        let zygote = parent(task_pid(&bench, &attempt));
        running.ended().await;
        let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
        (zygote, log[1].1.trim().to_owned())
    };
    let (first, packages) = start("a1").await;
    assert_eq!(start("a2").await.0, first);
    let new = std::path::Path::new(&packages).join(format!("aloft-test-{}", std::process::id()));
    fs::write(&new, "").unwrap();
    fs::remove_file(&new).unwrap();
    assert_ne!(start("a3").await.0, first);
}

async fn zygote_end() {
    let bench = Bench::new();
    let executor = bench.executor(true);
    let attempt = bench.attempt("a0", &["a0", "import time; time.sleep(1.5); sys.exit(9)"]);
    let mut running = launch(&executor, &bench, &attempt).await;
    let zygote = parent(task_pid(&bench, &attempt));
    drop(executor);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(alive(zygote), "it has a task");
    assert_eq!(running.ended().await.how, Exit::Code(9));
    until("the zygote has ended", || !alive(zygote)).await;
}

async fn broken_environment() {
    let mut bench = Bench::new();
    // An interpreter without the SDK.
    bench.env.python = "/usr/bin/python3".into();
    let executor = bench.executor(true);
    let attempt = bench.attempt("a0", &["a0", "print('ran')"]);
    let mut running = launch(&executor, &bench, &attempt).await;
    assert!(!is_warm(&bench, &attempt));
    assert_eq!(running.ended().await.how, Exit::Code(0));
}
