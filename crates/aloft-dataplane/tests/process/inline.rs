//! Tasks that need no process, with a control plane in memory.

use std::{sync::Arc, time::Duration};

use aloft_core::{AttemptOutcome, Progress};
use aloft_flyteidl2::flyteidl2::{
    core::{
        Literal, Primitive, Scalar, TaskTemplate, TypedInterface, VariableEntry, VariableMap, literal, primitive,
        scalar,
    },
    task::{Inputs, NamedLiteral, Outputs, TaskSpec},
};
use aloft_plane::{ECHO_TASK, LeasedAttempt, SLEEP_TASK};
use buffa::Message;
use buffa_types::google::protobuf::Duration as WireDuration;
use libtest_mimic::Trial;
use tokio::time::Instant;

use crate::{Bench, plane::Plane, trial, until, worker};

pub(crate) fn trials(out: &mut Vec<Trial>) {
    out.extend([
        trial("inline_thousands_sleep_at_once_and_take_no_room", thousands),
        trial("inline_a_revoked_sleeper_is_gone_at_once", revoked),
        trial("inline_a_restart_sleeps_for_the_rest_of_the_time", resumed),
        trial("inline_a_sleeper_that_is_not_listed_any_more_is_dropped", unlisted),
        trial("inline_an_echo_gives_its_inputs_back", echo),
        trial("inline_what_is_no_sleep_fails_with_its_reason", refused),
        trial("inline_the_next_attempt_takes_the_place_of_the_one_before", next_attempt),
        trial("inline_reports_are_kept_while_the_control_plane_is_away", away),
    ]);
}

fn value(value: impl Into<primitive::Value>) -> Literal {
    let primitive = Primitive { value: Some(value.into()), ..Primitive::default() };
    let scalar = Scalar { value: Some(scalar::Value::Primitive(primitive.into())), ..Scalar::default() };
    Literal { value: Some(literal::Value::Scalar(scalar.into())), ..Literal::default() }
}

fn map(names: &[&str]) -> VariableMap {
    let entry = |name: &&str| VariableEntry { key: (*name).to_owned(), ..VariableEntry::default() };
    VariableMap { variables: names.iter().map(entry).collect(), ..VariableMap::default() }
}

/// An attempt at a task of `task_type`, with its inputs where they belong.
fn attempt(
    bench: &Bench,
    action: &str,
    task_type: &str,
    inputs: &[(&str, Literal)],
    outputs: &[&str],
) -> LeasedAttempt {
    let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
    let interface =
        TypedInterface { inputs: map(&names).into(), outputs: map(outputs).into(), ..TypedInterface::default() };
    let template =
        TaskTemplate { r#type: task_type.to_owned(), interface: interface.into(), ..TaskTemplate::default() };
    let mut attempt = bench.attempt(action, &[]);
    attempt.task_spec = TaskSpec { task_template: template.into(), ..TaskSpec::default() }.encode_to_vec().into();
    let literals = inputs
        .iter()
        .map(|(name, value)| NamedLiteral {
            name: (*name).to_owned(),
            value: value.clone().into(),
            ..NamedLiteral::default()
        })
        .collect();
    let path = std::path::Path::new(&attempt.input_uri);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, Inputs { literals, ..Inputs::default() }.encode_to_vec()).unwrap();
    attempt
}

fn sleeper(bench: &Bench, action: &str, length: Duration) -> LeasedAttempt {
    let length = WireDuration {
        seconds: length.as_secs().cast_signed(),
        nanos: length.subsec_nanos().cast_signed(),
        ..WireDuration::default()
    };
    attempt(bench, action, SLEEP_TASK, &[("duration", value(primitive::Value::Duration(length.into())))], &[])
}

fn runs(plane: &Plane, attempt: &LeasedAttempt) -> bool {
    plane.reports(&attempt.lease.id).contains(&Progress::Running)
}

async fn thousands() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let sleepers: Vec<_> = (0..3000).map(|n| sleeper(&bench, &format!("s{n}"), Duration::from_secs(3600))).collect();
    sleepers.iter().for_each(|attempt| plane.enqueue(attempt.clone()));
    // Behind all of them, and with as many waiting as the worker takes: neither must matter.
    let process = worker::succeeding(&bench, "process", "");
    plane.enqueue(process.clone());
    let worker = worker::worker(&bench, &plane);
    until("all sleep", || worker.status().borrow().inline == 3000).await;
    assert_eq!(worker::code_of(&worker::ended(&plane, &process).await), "ok");
    until("all are said to run", || sleepers.iter().all(|attempt| runs(&plane, attempt))).await;
    assert_eq!(worker.status().borrow().running, 0);
    assert!(bench.dirs().live().unwrap().is_empty(), "nothing on disk is held for them");
    for attempt in &sleepers {
        plane.revoke(&attempt.lease.id);
    }
    until("all are gone", || worker.status().borrow().inline == 0).await;
    worker.stop().await;
}

async fn revoked() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let long = sleeper(&bench, "long", Duration::from_secs(3600));
    let soon = sleeper(&bench, "soon", Duration::from_millis(300));
    plane.enqueue(long.clone());
    plane.enqueue(soon.clone());
    until("both run", || runs(&plane, &long) && runs(&plane, &soon)).await;
    plane.revoke(&long.lease.id);
    assert_eq!(worker::code_of(&worker::ended(&plane, &soon).await), "ok");
    until("none is left", || worker.status().borrow().inline == 0).await;
    assert_eq!(plane.outcome(&long.lease.id), None);
    worker.stop().await;
}

async fn resumed() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let first = worker::worker(&bench, &plane);
    let attempt = sleeper(&bench, "a", Duration::from_secs(4));
    let begun = Instant::now();
    plane.enqueue(attempt.clone());
    until("it runs", || runs(&plane, &attempt)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    first.stop().await;
    let second = worker::worker(&bench, &plane);
    assert_eq!(worker::code_of(&worker::ended(&plane, &attempt).await), "ok");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(3990), "it woke too early: {took:?}");
    let from_the_start = Duration::from_millis(1500) + Duration::from_secs(4);
    assert!(took < from_the_start, "it began anew: {took:?}");
    let running = plane.reports(&attempt.lease.id).iter().filter(|p| **p == Progress::Running).count();
    assert_eq!(running, 1);
    second.stop().await;
}

async fn unlisted() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let first = worker::worker(&bench, &plane);
    let attempts: Vec<_> = (0..3).map(|n| sleeper(&bench, &format!("a{n}"), Duration::from_secs(3600))).collect();
    attempts.iter().for_each(|attempt| plane.enqueue(attempt.clone()));
    until("they run", || attempts.iter().all(|attempt| runs(&plane, attempt))).await;
    first.stop().await;
    plane.forget(&attempts[0].lease.id);
    let second = worker::worker(&bench, &plane);
    until("the others are found again", || second.status().borrow().ready).await;
    until("only they", || second.status().borrow().inline == 2).await;
    second.stop().await;
}

async fn echo() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let (one, two) = (value(primitive::Value::Integer(1)), value(primitive::Value::StringValue("zwei".to_owned())));
    let echo = attempt(&bench, "e", ECHO_TASK, &[("a", one.clone()), ("b", two.clone())], &["o0", "o1"]);
    plane.enqueue(echo.clone());
    let AttemptOutcome::Succeeded(refs) = worker::ended(&plane, &echo).await else { panic!("it failed") };
    assert_eq!(refs.output_uri, echo.output_prefix);
    let bytes = std::fs::read(format!("{}/outputs.pb", refs.output_uri)).unwrap();
    let outputs = Outputs::decode_from_slice(&bytes).unwrap();
    let found: Vec<_> = outputs.literals.iter().map(|l| (l.name.as_str(), (*l.value).clone())).collect();
    assert_eq!(found, [("o0", one), ("o1", two)]);
    worker.stop().await;
}

async fn refused() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let none = attempt(&bench, "none", SLEEP_TASK, &[], &[]);
    let damaged = sleeper(&bench, "damaged", Duration::from_secs(1));
    std::fs::write(&damaged.input_uri, b"\xff\xff").unwrap();
    let large = sleeper(&bench, "large", Duration::from_secs(1));
    std::fs::File::create(&large.input_uri).unwrap().set_len(11 << 20).unwrap();
    for (attempt, code, words) in [
        (none, "UnsupportedTask", "duration: timedelta"),
        (damaged, "InputsUnreadable", "is damaged"),
        (large, "InputsTooLarge", "10 MiB"),
    ] {
        plane.enqueue(attempt.clone());
        let AttemptOutcome::Failed(error, _) = worker::ended(&plane, &attempt).await else { panic!("{code}") };
        assert_eq!(error.code, code);
        assert!(error.message.contains(words), "{}", error.message);
    }
    worker.stop().await;
}

async fn next_attempt() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let first = sleeper(&bench, "a", Duration::from_secs(3600));
    plane.enqueue(first.clone());
    until("it runs", || runs(&plane, &first)).await;
    // A time limit ended it, and the next one comes before we are told.
    plane.forget(&first.lease.id);
    let mut second = sleeper(&bench, "a", Duration::from_millis(50));
    second.lease.id.attempt = 2;
    plane.enqueue(second.clone());
    assert_eq!(worker::code_of(&worker::ended(&plane, &second).await), "ok");
    until("none is left", || worker.status().borrow().inline == 0).await;
    worker.stop().await;
}

async fn away() {
    let (bench, plane) = (Bench::new(), Arc::<Plane>::default());
    let worker = worker::worker(&bench, &plane);
    let attempt = sleeper(&bench, "a", Duration::from_millis(500));
    plane.enqueue(attempt.clone());
    until("it runs", || runs(&plane, &attempt)).await;
    plane.set_down(true);
    until("its end was refused", || plane.refused() > 3).await;
    plane.set_down(false);
    assert_eq!(worker::code_of(&worker::ended(&plane, &attempt).await), "ok");
    worker.stop().await;
}
