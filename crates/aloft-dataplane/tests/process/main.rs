//! The process executor and the worker with real processes.
//!
//! This binary is its own shim: run with `shim` as its first argument it is [`shim_main`], as `aloft shim` will be.
//! Tests that need Python with the SDK take it from `ALOFT_TEST_SDK` or `/root/aloft-cache/sdk`, and are skipped without.

mod ends;
mod executor;
mod inline;
mod plane;
mod sdk;
mod worker;

use std::{path::PathBuf, sync::Arc, time::Duration};

use aloft_core::{ActionName, LeaseToken, Phase, RunKey, Scope, Time};
use aloft_dataplane::{
    process::{AttemptDirs, Endpoints, HostEnv, ProcessConfig, ProcessExecutor, shim_main},
    seam::PyEnv,
};
use aloft_flyteidl2::flyteidl2::{
    core::{Container, TaskTemplate},
    task::TaskSpec,
};
use aloft_plane::{AttemptId, LeaseRef, LeasedAttempt, LogStream};
use buffa::Message;
use futures::StreamExt;
use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "shim") {
        std::process::exit(shim_main(args));
    }
    let mut trials = Vec::new();
    executor::trials(&mut trials);
    ends::trials(&mut trials);
    worker::trials(&mut trials);
    inline::trials(&mut trials);
    sdk::trials(&mut trials);
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test that runs in a runtime of its own.
fn trial<F>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = ()>,
{
    Trial::test(name.to_owned(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(300), test()).await })
        }));
        runtime.shutdown_timeout(Duration::from_millis(100));
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("took longer than five minutes".into()),
            Err(panic) => Err(panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "panicked".to_owned())
                .into()),
        }
    })
}

/// The Python environment with the SDK, if there is one.
fn sdk() -> Option<PyEnv> {
    let home = std::env::var_os("ALOFT_TEST_SDK").map_or_else(|| PathBuf::from("/root/aloft-cache/sdk"), PathBuf::from);
    let bin_dir = home.join("bin");
    let python = bin_dir.join("python");
    bin_dir.join("a0").is_file().then(|| PyEnv { bin_dir, python, id: "sdk".to_owned(), vars: Vec::new(), files: None })
}

/// A data directory, an executor on it, and an environment whose `a0` is a script of ours.
struct Bench {
    home: tempfile::TempDir,
    env: PyEnv,
}

impl Bench {
    /// A bench whose `a0` runs the Python code of its only argument; with the interpreter of the SDK if there is one, so
    /// that a zygote can be had.
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let python = sdk().map_or_else(|| PathBuf::from("/usr/bin/python3"), |env| env.python);
        let bin_dir = home.path().join("env/bin");
        std::fs::create_dir_all(&bin_dir).unwrap();
        let script = format!("#!{}\nimport sys\nexec(sys.argv[1])\n", python.display());
        let a0 = bin_dir.join("a0");
        std::fs::write(&a0, script).unwrap();
        std::fs::set_permissions(&a0, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { home, env: PyEnv { bin_dir, python, id: "bench".to_owned(), vars: Vec::new(), files: None } }
    }

    fn dirs(&self) -> AttemptDirs {
        AttemptDirs::new(self.home.path())
    }

    fn executor(&self, warm: bool) -> ProcessExecutor {
        let me = std::env::current_exe().unwrap().display().to_string();
        ProcessExecutor::new(ProcessConfig {
            dirs: self.dirs(),
            shim: vec![me, "shim".to_owned()],
            endpoints: Endpoints {
                api: "localhost:1".to_owned(),
                s3: "http://localhost:1".to_owned(),
                credentials: Arc::new(|_| ("key".to_owned(), "hush-hush".to_owned())),
                export_aws: false,
            },
            host: HostEnv::capture(),
            grace: Duration::from_secs(1),
            warm,
        })
        .unwrap()
    }

    /// An attempt with its outputs in a directory of this bench.
    fn attempt(&self, action: &str, args: &[&str]) -> LeasedAttempt {
        let run = RunKey::new(Scope::new("org", "proj", "dev").unwrap(), "r1").unwrap();
        let base = self.home.path().join("store/r1").display().to_string();
        LeasedAttempt {
            lease: LeaseRef {
                id: AttemptId { run, action: ActionName::new(action).unwrap(), attempt: 1 },
                token: LeaseToken(7),
            },
            phase: Phase::Queued,
            parent: None,
            depth: 0,
            task_spec: spec("python", args).encode_to_vec().into(),
            input_uri: format!("{base}/{action}/inputs.pb"),
            output_prefix: format!("{base}/{action}/1"),
            run_base: base,
            raw_data_prefix: String::new(),
            previous_prefix: String::new(),
            default_envs: Vec::new(),
            envs: Vec::new(),
            resource_defaults: Default::default(),
            run_start_time: Time::from_micros(0),
        }
    }
}

fn spec(task_type: &str, args: &[&str]) -> TaskSpec {
    let container = Container { args: args.iter().map(|a| (*a).to_owned()).collect(), ..Container::default() };
    let template = TaskTemplate { r#type: task_type.to_owned(), target: container.into(), ..TaskTemplate::default() };
    TaskSpec { task_template: template.into(), ..TaskSpec::default() }
}

/// All of a log, with who wrote each line.
async fn lines(stream: LogStream) -> Vec<(bool, String)> {
    let system = aloft_flyteidl2::flyteidl2::logs::dataplane::LogLineOriginator::SYSTEM;
    stream
        .map(|batch| batch.unwrap())
        .flat_map(futures::stream::iter)
        .map(|line| (line.originator == system, line.message))
        .collect()
        .await
}

/// Waits until `done` says so.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("waited a minute in vain: {what}");
}

/// Seconds since the epoch, as Python's `time.time()` says them.
#[expect(clippy::disallowed_methods, reason = "compared with what a task's own clock says")]
fn seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Whether process `pid` runs.
fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}
