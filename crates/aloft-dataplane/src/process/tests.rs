use std::sync::Arc;

use aloft_core::{ActionName, LeaseToken, Phase, RunKey, Scope, Time};
use aloft_plane::{AttemptId, LeaseRef, LeasedAttempt};
use bytes::Bytes;

use super::*;

/// An attempt of action `action` in run `run`, with everything below `s3://b/p`.
pub(crate) fn attempt(run: &str, action: &str, number: u32) -> LeasedAttempt {
    let key = RunKey::new(Scope::new("org", "proj", "dev").unwrap(), run).unwrap();
    let id = AttemptId { run: key, action: ActionName::new(action).unwrap(), attempt: number };
    LeasedAttempt {
        lease: LeaseRef { id, token: LeaseToken(7) },
        phase: Phase::Queued,
        parent: None,
        depth: 0,
        task_spec: Bytes::new(),
        input_uri: format!("s3://b/p/{run}/{action}/inputs.pb"),
        output_prefix: format!("s3://b/p/{run}/{action}/{number}"),
        run_base: format!("s3://b/p/{run}"),
        raw_data_prefix: String::new(),
        previous_prefix: String::new(),
        default_envs: Vec::new(),
        envs: Vec::new(),
        resource_defaults: Default::default(),
        // 2026-01-31T09:30:00.25Z
        run_start_time: Time::from_micros(1_769_851_800_250_000),
    }
}

pub(crate) fn endpoints() -> Endpoints {
    Endpoints {
        api: "localhost:30080".to_owned(),
        s3: "http://localhost:30080".to_owned(),
        credentials: Arc::new(|attempt| {
            let id = &attempt.lease.id;
            (format!("key-{}-{}-{}", id.run.name, id.action, id.attempt), "hush".to_owned())
        }),
        export_aws: true,
    }
}

fn dirs() -> (tempfile::TempDir, AttemptDirs) {
    let data = tempfile::tempdir().unwrap();
    let dirs = AttemptDirs::new(data.path());
    dirs.prepare().unwrap();
    (data, dirs)
}

#[test]
fn a_begun_attempt_is_found_until_it_is_settled() {
    let (_data, dirs) = dirs();
    let a = attempt("r1", "a0", 1);
    let dir = dirs.dir(&a.lease.id);
    assert_eq!(dir.state().unwrap(), DirState::default());
    let launch = LaunchRecord::new(&a.lease.id, a.lease.token);
    dir.begin(&launch).unwrap();
    let live = dirs.live().unwrap();
    assert_eq!((live.len(), live[0].id()), (1, a.lease.id));
    let state = dir.state().unwrap();
    assert!(state.same_boot && !state.held && state.shim.is_none() && state.exit.is_none());
    std::fs::write(dir.log(), "x").unwrap();
    std::fs::write(dir.work().join("file"), "x").unwrap();
    dir.settle().unwrap();
    dir.settle().unwrap();
    assert!(dirs.live().unwrap().is_empty());
    assert!(dir.log().exists() && !dir.work().exists() && !dir.scratch().exists());
    dir.begin(&launch).unwrap();
    assert!(!dir.log().exists(), "that of an earlier run of the same name is not gone on with");
}

#[test]
fn a_lock_that_is_held_means_that_a_shim_lives() {
    let (_data, dirs) = dirs();
    let a = attempt("r1", "a0", 1);
    let dir = dirs.dir(&a.lease.id);
    dir.begin(&LaunchRecord::new(&a.lease.id, a.lease.token)).unwrap();
    let lock = dir.try_lock().unwrap().unwrap();
    assert!(dir.state().unwrap().held);
    drop(lock);
    assert!(!dir.state().unwrap().held);
}

#[test]
fn a_torn_record_counts_as_absent() {
    let (_data, dirs) = dirs();
    let a = attempt("r1", "a0", 1);
    let dir = dirs.dir(&a.lease.id);
    dir.begin(&LaunchRecord::new(&a.lease.id, a.lease.token)).unwrap();
    std::fs::write(dir.exit(), b"{\"how\":").unwrap();
    assert_eq!(dir.state().unwrap().exit, None);
}

#[test]
fn what_is_done_after_a_crash_follows_from_the_files() {
    let a = attempt("r1", "a0", 1);
    let token = a.lease.token;
    let launch = Some(LaunchRecord::new(&a.lease.id, token));
    let me = ProcessId { pid: 2, started: 1 };
    let shim = Some(ShimRecord { shim: me, task: Some(me), warm: true });
    let exit = Some(ExitRecord { how: Exit::Code(0), started_us: 0, ended_us: 0, oom: false });
    let begun = DirState { launch: launch.clone(), same_boot: true, ..DirState::default() };
    let none = DirState::default();
    let table = [
        ("nothing happened yet", none.clone(), Phase::Queued, Recovery::Launch),
        ("it was about to be launched", none.clone(), Phase::Initializing, Recovery::Launch),
        ("its directory was removed", none, Phase::Running, Recovery::Judge),
        ("Aloft died before it started the shim", begun.clone(), Phase::Initializing, Recovery::Launch),
        ("the shim starts", DirState { held: true, ..begun.clone() }, Phase::Initializing, Recovery::Adopt),
        ("it runs", DirState { held: true, shim: shim.clone(), ..begun.clone() }, Phase::Running, Recovery::Adopt),
        ("the shim was killed", DirState { shim: shim.clone(), ..begun.clone() }, Phase::Running, Recovery::Judge),
        (
            "it ended",
            DirState { shim: shim.clone(), exit: exit.clone(), ..begun.clone() },
            Phase::Running,
            Recovery::Judge,
        ),
        ("it was settled", DirState { exit, ..DirState::default() }, Phase::Running, Recovery::Judge),
        ("the machine went down", DirState { same_boot: false, ..begun.clone() }, Phase::Initializing, Recovery::Judge),
        ("its record was lost", begun.clone(), Phase::Running, Recovery::Judge),
    ];
    for (what, state, phase, want) in table {
        assert_eq!(recover(&state, phase, token), want, "{what}");
    }
    let held = DirState { held: true, shim, ..begun };
    assert_eq!(recover(&held, Phase::Running, LeaseToken(8)), Recovery::Stop);
}
