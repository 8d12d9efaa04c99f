//! The real SDK's `a0`, cold and warm. No server is needed: the task is a leaf, and its data lies in plain paths.

use std::{borrow::Cow, fs, path::Path, process::Command};

use aloft_core::{AttemptOutcome, ErrorKind};
use aloft_dataplane::{
    logs::Logs,
    process::{Exit, ExitRecord, Results, judge},
    target::Target,
};
use aloft_flyteidl2::flyteidl2::core::Container;
use aloft_plane::LeasedAttempt;
use libtest_mimic::Trial;

use crate::{Bench, lines, plane::Files, sdk, seconds, trial};

pub(crate) fn trials(out: &mut Vec<Trial>) {
    if sdk().is_none() {
        return;
    }
    for warm in [false, true] {
        let how = if warm { "warm" } else { "cold" };
        out.extend([
            trial(&format!("{how}_a_task_of_the_sdk_runs"), move || succeeds(warm)),
            trial(&format!("{how}_a_task_of_the_sdk_that_raises_leaves_its_error"), move || raises(warm)),
            trial(&format!("{how}_a_task_of_the_sdk_that_cannot_be_loaded_leaves_its_error"), move || unloadable(warm)),
        ]);
    }
    out.push(trial("cold_and_warm_tasks_of_the_sdk_write_the_same", same));
    out.push(trial("figures_of_starting_a_task_of_the_sdk", figures));
}

const MODULE: &str = "
import time
import flyte

print('loaded', time.time())
env = flyte.TaskEnvironment(name='e')

@env.task
async def fine() -> int:
    flyte.logger.info('told')
    return 3

@env.task
def plain() -> str:
    import random, tempfile, threading
    print(tempfile.mkdtemp().startswith('/'), random.random() != random.random())
    threading.Thread(target=lambda: (time.sleep(.3), print('from a thread')), daemon=False).start()
    return 'x'

@env.task
async def broken():
    raise ValueError('not today')
";

fn bundle(bench: &Bench) -> String {
    let dir = bench.home.path().join("code");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("tasks.py"), MODULE).unwrap();
    let bundle = dir.join("bundle.tgz");
    let status = Command::new("tar").arg("-czf").arg(&bundle).arg("-C").arg(&dir).arg("tasks.py").status().unwrap();
    assert!(status.success());
    bundle.display().to_string()
}

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.env = sdk().unwrap();
    bench
}

fn prepare(bench: &Bench, action: &str, function: &str) -> (LeasedAttempt, Container) {
    let mut attempt = bench.attempt(action, &[]);
    attempt.envs.push(("FSSPEC_FILE_AUTO_MKDIR".to_owned(), "true".to_owned()));
    fs::create_dir_all(Path::new(&attempt.input_uri).parent().unwrap()).unwrap();
    fs::write(&attempt.input_uri, b"").unwrap();
    let bundle = bundle(bench);
    let args = [
        "a0",
        "--inputs",
        "{{.input}}",
        "--outputs-path",
        "{{.outputPrefix}}",
        "--version",
        "v1",
        "--raw-data-path",
        "{{.rawOutputDataPrefix}}",
        "--checkpoint-path",
        "{{.checkpointOutputPrefix}}",
        "--prev-checkpoint",
        "{{.prevCheckpointPrefix}}",
        "--run-name",
        "{{.runName}}",
        "--name",
        "{{.actionName}}",
        "--run-start-time",
        "{{.runStartTime}}",
        "--tgz",
        &bundle,
        "--dest",
        ".",
        "--resolver",
        "flyte._internal.resolvers.default.DefaultTaskResolver",
        "mod",
        "tasks",
        "instance",
        function,
    ];
    (attempt, Container { args: args.map(str::to_owned).to_vec(), ..Container::default() })
}

fn target(container: Container) -> Target<'static> {
    Target { container: Cow::Owned(container), grace: None, notes: Vec::new() }
}

async fn run(bench: &Bench, warm: bool, action: &str, function: &str) -> (AttemptOutcome, ExitRecord, String) {
    let executor = bench.executor(warm);
    let (attempt, container) = prepare(bench, action, function);
    let prepared =
        executor.prepare(&attempt, &Default::default(), &target(container), &bench.env, Vec::new()).await.unwrap();
    let mut running = executor.launch(prepared).await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(bench.dirs().dir(&attempt.lease.id).state().unwrap().shim.unwrap().warm, warm);
    let exit = running.ended().await;
    let results = Results::read(&Files, &attempt.output_prefix).await.unwrap();
    let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
    let text = log.into_iter().map(|(_, line)| line).collect();
    (judge(results, &exit, &attempt.output_prefix), exit, text)
}

async fn succeeds(warm: bool) {
    for function in ["fine", "plain"] {
        let (outcome, exit, text) = run(&bench(), warm, "a0", function).await;
        assert!(matches!(&outcome, AttemptOutcome::Succeeded(refs) if refs.output_uri.ends_with("/r1/a0/1")), "{text}");
        assert_eq!(exit.how, Exit::Code(0), "{text}");
        assert!(text.contains(if function == "fine" { "told" } else { "from a thread" }), "{text}");
    }
}

async fn raises(warm: bool) {
    let (outcome, exit, text) = run(&bench(), warm, "a0", "broken").await;
    assert_eq!(exit.how, Exit::Code(0));
    let AttemptOutcome::Failed(error, _) = outcome else { panic!("{outcome:?} {text}") };
    assert_eq!((error.code.as_str(), error.recoverable), ("ValueError", true));
    assert!(error.message.contains("not today") && text.contains("not today"), "{error:?}");
}

async fn unloadable(warm: bool) {
    let (outcome, exit, text) = run(&bench(), warm, "a0", "missing").await;
    assert_eq!(exit.how, Exit::Code(1), "{text}");
    let AttemptOutcome::Failed(error, _) = outcome else { panic!("{outcome:?} {text}") };
    assert_ne!(error.kind, ErrorKind::System);
    assert!(error.message.contains("missing"), "{error:?}");
    assert!(text.contains("AttributeError"), "{text}");
}

/// What tells runs apart (paths, times, addresses) is removed; everything else must be equal, tracebacks included.
fn normal(text: &str) -> Vec<String> {
    let digits = |line: &str| {
        let mut out: Vec<char> = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        out.dedup_by(|a, b| *a == '0' && *b == '0');
        out.into_iter().collect::<String>()
    };
    let tmp = |line: String| match line.find("/tmp/.tmp") {
        Some(at) => format!("{}{}", &line[..at], &line[at + 15..]),
        None => line,
    };
    text.lines().map(|line| digits(&tmp(line.to_owned()))).collect()
}

async fn same() {
    for function in ["fine", "plain", "broken", "missing"] {
        let (_, _, cold) = run(&bench(), false, "a0", function).await;
        let (_, _, warm) = run(&bench(), true, "a0", function).await;
        assert_eq!(normal(&cold), normal(&warm), "{function}");
    }
}

/// Prints how long it takes from the worker's decision to the user's code. Asserts only that warm is quicker.
async fn figures() {
    let bench = bench();
    let mut medians = Vec::new();
    for warm in [false, true] {
        let executor = bench.executor(warm);
        executor.prewarm(&bench.env);
        let mut times = Vec::new();
        for n in 0..12 {
            let (attempt, container) = prepare(&bench, &format!("{}{n}", if warm { "w" } else { "c" }), "fine");
            let began = seconds();
            let prepared = executor
                .prepare(&attempt, &Default::default(), &target(container), &bench.env, Vec::new())
                .await
                .unwrap();
            let mut running = executor.launch(prepared).await.unwrap_or_else(|e| panic!("{e:?}"));
            running.ended().await;
            let ended = seconds();
            let log = lines(Logs::new(bench.dirs()).tail(&attempt.lease.id).await.unwrap()).await;
            let loaded = log.iter().find_map(|(_, line)| line.strip_prefix("loaded ")).unwrap();
            times.push(((loaded.trim().parse::<f64>().unwrap() - began) * 1e3, (ended - began) * 1e3));
        }
        // The first waits for the zygote.
        times.remove(0);
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (user, end) = times[times.len() / 2];
        eprintln!(
            "{}: user code after {user:.0} ms (from {:.0} to {:.0}), ended after {end:.0} ms",
            if warm { "warm" } else { "cold" },
            times[0].0,
            times[times.len() - 1].0
        );
        medians.push(user);
    }
    assert!(medians[1] < medians[0], "{medians:?}");
}
