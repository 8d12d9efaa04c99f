//! What the seam says, as messages of `aloft.v1`, and back. What cannot be understood is a sentence that names the field:
//! it comes from another machine.

use std::collections::HashMap;

use aloft_core::{
    ActionName, AttemptOutcome, ErrorKind, LeaseToken, OutputRefs, Phase, Progress, RunKey, Scope, TaskError, Time,
};
use aloft_flyteidl2::flyteidl2::task::TaskResourceDefaults;
use aloft_proto::v1;
use buffa::Message as _;
use buffa_types::google::protobuf::Timestamp;
use bytes::Bytes;

use crate::{AttemptId, LeaseRef, LeasedAttempt};

/// The versions of the protocol of workers that this program speaks.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 1..=1;

/// Most attempts of one message: a task specification is some 10 KiB.
pub const MAX_HANDED: usize = 128;

/// Most bytes of task specifications of one message, unless a single one has more.
const MAX_SPECS: usize = 4 << 20;

/// Most reports of one request.
pub const MAX_REPORTS: usize = 1000;

/// The version that both sides speak: the newest of `ours` that the other speaks too.
pub fn agree(ours: &std::ops::RangeInclusive<u32>, min: u32, max: u32) -> Option<u32> {
    let newest = max.min(*ours.end());
    (newest >= min && newest >= *ours.start()).then_some(newest)
}

/// A lease on the wire.
pub fn lease_to_wire(lease: &LeaseRef) -> v1::LeaseRef {
    let AttemptId { run, action, attempt } = &lease.id;
    let Scope { org, project, domain } = &run.scope;
    v1::LeaseRef {
        org: org.clone(),
        project: project.clone(),
        domain: domain.clone(),
        run: run.name.clone(),
        action: action.to_string(),
        attempt: *attempt,
        token: lease.token.0,
        ..Default::default()
    }
}

/// A lease from the wire.
///
/// # Errors
/// Which name is wrong.
pub fn lease_from_wire(lease: Option<&v1::LeaseRef>) -> Result<LeaseRef, String> {
    let lease = lease.ok_or("lease: is required")?;
    let bad = |e: aloft_core::BadName| format!("lease: {e}");
    let scope = Scope::new(&lease.org, &lease.project, &lease.domain).map_err(bad)?;
    let run = RunKey::new(scope, &lease.run).map_err(bad)?;
    let action = ActionName::new(&lease.action).map_err(bad)?;
    let id = AttemptId { run, action, attempt: lease.attempt };
    Ok(LeaseRef { id, token: LeaseToken(lease.token) })
}

fn timestamp(at: Time) -> Timestamp {
    let micros = at.as_micros();
    // The remainder is below a million.
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos, ..Default::default() }
}

fn time(at: Option<&Timestamp>) -> Time {
    let micros = |t: &Timestamp| t.seconds.saturating_mul(1_000_000).saturating_add(i64::from(t.nanos / 1000));
    at.map_or_else(Time::default, |t| Time::from_micros(micros(t)))
}

fn envs_to_wire(envs: &[(String, String)]) -> Vec<v1::EnvVar> {
    let one = |(name, value): &(String, String)| v1::EnvVar {
        name: name.clone(),
        value: value.clone(),
        ..Default::default()
    };
    envs.iter().map(one).collect()
}

fn envs_from_wire(envs: Vec<v1::EnvVar>) -> Vec<(String, String)> {
    envs.into_iter().map(|env| (env.name, env.value)).collect()
}

/// Attempts as messages of bounded size, in order. Each task specification is in a message once.
pub fn handed_to_wire(attempts: &[LeasedAttempt]) -> Vec<v1::HandOut> {
    let mut messages = Vec::new();
    let mut message = v1::HandOut::default();
    let (mut places, mut size) = (HashMap::<&Bytes, u32>::new(), 0);
    for attempt in attempts {
        let more = if places.contains_key(&attempt.task_spec) { 0 } else { attempt.task_spec.len() };
        let full = message.attempts.len() >= MAX_HANDED || (size > 0 && size + more > MAX_SPECS);
        if full {
            messages.push(std::mem::take(&mut message));
            places.clear();
            size = 0;
        }
        let place = *places.entry(&attempt.task_spec).or_insert_with(|| {
            message.task_specs.push(attempt.task_spec.clone().into());
            size += attempt.task_spec.len();
            u32::try_from(message.task_specs.len() - 1).unwrap_or(u32::MAX)
        });
        message.attempts.push(attempt_to_wire(attempt, place));
    }
    if !message.attempts.is_empty() {
        messages.push(message);
    }
    messages
}

fn attempt_to_wire(attempt: &LeasedAttempt, task_spec: u32) -> v1::LeasedAttempt {
    v1::LeasedAttempt {
        lease: lease_to_wire(&attempt.lease).into(),
        phase: attempt.phase.number(),
        parent: attempt.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        depth: attempt.depth,
        task_spec,
        input_uri: attempt.input_uri.clone(),
        output_prefix: attempt.output_prefix.clone(),
        run_base: attempt.run_base.clone(),
        raw_data_prefix: attempt.raw_data_prefix.clone(),
        previous_prefix: attempt.previous_prefix.clone(),
        default_envs: envs_to_wire(&attempt.default_envs),
        envs: envs_to_wire(&attempt.envs),
        resource_defaults: attempt.resource_defaults.encode_to_vec(),
        run_start_time: timestamp(attempt.run_start_time).into(),
        ..Default::default()
    }
}

/// The attempts of a message.
///
/// # Errors
/// Which field of which attempt cannot be understood.
pub fn handed_from_wire(message: v1::HandOut) -> Result<Vec<LeasedAttempt>, String> {
    let specs: Vec<Bytes> = message.task_specs.into_iter().map(Into::into).collect();
    message.attempts.into_iter().map(|attempt| attempt_from_wire(attempt, &specs)).collect()
}

fn attempt_from_wire(attempt: v1::LeasedAttempt, specs: &[Bytes]) -> Result<LeasedAttempt, String> {
    let lease = lease_from_wire(attempt.lease.as_option())?;
    let bad = |field: &str, why: &str| format!("{}: {field}: {why}", lease.id);
    let parent = match attempt.parent.as_str() {
        "" => None,
        name => Some(ActionName::new(name).map_err(|e| bad("parent", &e.to_string()))?),
    };
    let spec = usize::try_from(attempt.task_spec).ok().and_then(|place| specs.get(place));
    Ok(LeasedAttempt {
        phase: Phase::from_number(attempt.phase).ok_or_else(|| bad("phase", "is not known"))?,
        parent,
        depth: attempt.depth,
        task_spec: spec.cloned().ok_or_else(|| bad("task_spec", "is missing"))?,
        input_uri: attempt.input_uri,
        output_prefix: attempt.output_prefix,
        run_base: attempt.run_base,
        raw_data_prefix: attempt.raw_data_prefix,
        previous_prefix: attempt.previous_prefix,
        default_envs: envs_from_wire(attempt.default_envs),
        envs: envs_from_wire(attempt.envs),
        resource_defaults: TaskResourceDefaults::decode_from_slice(&attempt.resource_defaults)
            .map_err(|_| bad("resource_defaults", "cannot be read"))?,
        run_start_time: time(attempt.run_start_time.as_option()),
        lease,
    })
}

fn failed(error: &TaskError, outputs: OutputRefs) -> v1::Failed {
    let kind = match error.kind {
        ErrorKind::Unknown => 0,
        ErrorKind::User => 1,
        ErrorKind::System => 2,
    };
    v1::Failed {
        code: error.code.clone(),
        message: error.message.clone(),
        kind,
        recoverable: error.recoverable,
        output_uri: outputs.output_uri,
        report_uri: outputs.report_uri,
        ..Default::default()
    }
}

fn error(failed: v1::Failed) -> (TaskError, OutputRefs) {
    let kind = match failed.kind {
        1 => ErrorKind::User,
        2 => ErrorKind::System,
        _ => ErrorKind::Unknown,
    };
    let outputs = OutputRefs { output_uri: failed.output_uri, report_uri: failed.report_uri };
    (TaskError::new(failed.code, failed.message, kind, failed.recoverable), outputs)
}

/// A report on the wire.
pub fn report_to_wire(lease: &LeaseRef, progress: &Progress) -> v1::AttemptReport {
    use v1::attempt_report::Progress as Wire;
    let progress = match progress {
        Progress::Waiting { reason } => Wire::Waiting(reason.clone()),
        Progress::Initializing => Wire::Initializing(Box::default()),
        Progress::Running => Wire::Running(Box::default()),
        Progress::Ended(AttemptOutcome::Succeeded(OutputRefs { output_uri, report_uri })) => {
            let (output_uri, report_uri) = (output_uri.clone(), report_uri.clone());
            Wire::Succeeded(Box::new(v1::Succeeded { output_uri, report_uri, ..Default::default() }))
        }
        Progress::Ended(AttemptOutcome::Failed(error, outputs)) => {
            Wire::Failed(Box::new(failed(error, outputs.clone())))
        }
        Progress::Ended(AttemptOutcome::Lost(error)) => Wire::Lost(Box::new(failed(error, OutputRefs::default()))),
    };
    v1::AttemptReport { lease: lease_to_wire(lease).into(), progress: Some(progress), ..Default::default() }
}

/// A report from the wire.
///
/// # Errors
/// Which field cannot be understood.
pub fn report_from_wire(report: v1::AttemptReport) -> Result<(LeaseRef, Progress), String> {
    use v1::attempt_report::Progress as Wire;
    let lease = lease_from_wire(report.lease.as_option())?;
    let progress = match report.progress {
        Some(Wire::Waiting(reason)) => Progress::Waiting { reason },
        Some(Wire::Initializing(_)) => Progress::Initializing,
        Some(Wire::Running(_)) => Progress::Running,
        Some(Wire::Succeeded(done)) => {
            let outputs = OutputRefs { output_uri: done.output_uri, report_uri: done.report_uri };
            Progress::Ended(AttemptOutcome::Succeeded(outputs))
        }
        Some(Wire::Failed(failed)) => {
            let (error, outputs) = error(*failed);
            Progress::Ended(AttemptOutcome::Failed(error, outputs))
        }
        Some(Wire::Lost(failed)) => Progress::Ended(AttemptOutcome::Lost(error(*failed).0)),
        None => return Err(format!("{}: progress: is not known to this version", lease.id)),
    };
    Ok((lease, progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: usize, spec: &[u8]) -> LeasedAttempt {
        let run = RunKey::new(Scope::new("o", "p", "d").unwrap(), "r").unwrap();
        let id = AttemptId { run, action: ActionName::new(&format!("x{n}")).unwrap(), attempt: 2 };
        LeasedAttempt {
            lease: LeaseRef { id, token: LeaseToken(u64::MAX - n as u64) },
            phase: Phase::Running,
            parent: (n > 0).then(ActionName::root),
            depth: 1,
            task_spec: Bytes::copy_from_slice(spec),
            input_uri: "s3://b/i".into(),
            output_prefix: "s3://b/o".into(),
            run_base: "s3://b/r".into(),
            raw_data_prefix: "s3://b/x".into(),
            previous_prefix: "s3://b/o1".into(),
            default_envs: vec![("A".into(), "1".into())],
            envs: vec![("B".into(), String::new())],
            resource_defaults: TaskResourceDefaults::default(),
            run_start_time: Time::from_micros(-1_500_001),
        }
    }

    #[test]
    fn attempts_arrive_as_they_were_and_specifications_go_once() {
        let specs = [&b"one"[..], b"two"];
        let sent: Vec<_> = (0..300).map(|n| attempt(n, specs[n % 2])).collect();
        let messages = handed_to_wire(&sent);
        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|m| m.task_specs.len() == 2 && m.attempts.len() <= MAX_HANDED));
        let got: Vec<_> = messages.into_iter().flat_map(|m| handed_from_wire(m).unwrap()).collect();
        assert_eq!(got, sent);
        assert!(handed_to_wire(&[]).is_empty());
    }

    #[test]
    fn large_specifications_have_messages_of_their_own() {
        let sent: Vec<_> = (0..3_u8).map(|n| attempt(usize::from(n), &vec![n; MAX_SPECS])).collect();
        assert_eq!(handed_to_wire(&sent).len(), 3);
    }

    #[test]
    fn reports_arrive_as_they_were() {
        let lease = attempt(1, b"").lease;
        let error = TaskError::new("E", "m", ErrorKind::System, true);
        let outputs = OutputRefs { output_uri: "a".into(), report_uri: "b".into() };
        for progress in [
            Progress::Waiting { reason: "memory".into() },
            Progress::Initializing,
            Progress::Running,
            Progress::Ended(AttemptOutcome::Succeeded(outputs.clone())),
            Progress::Ended(AttemptOutcome::Failed(error.clone(), outputs)),
            Progress::Ended(AttemptOutcome::Lost(error)),
        ] {
            assert_eq!(report_from_wire(report_to_wire(&lease, &progress)), Ok((lease.clone(), progress)));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let lease = attempt(1, b"").lease;
        let nothing = v1::AttemptReport { lease: lease_to_wire(&lease).into(), ..Default::default() };
        assert!(report_from_wire(nothing).unwrap_err().contains("x1/2: progress"));
        assert!(report_from_wire(v1::AttemptReport::default()).unwrap_err().contains("lease: is required"));
        let mut message = handed_to_wire(&[attempt(1, b"")]).remove(0);
        message.task_specs.clear();
        assert!(handed_from_wire(message.clone()).unwrap_err().contains("task_spec"));
        message.attempts[0].phase = 99;
        assert!(handed_from_wire(message).unwrap_err().contains("phase"));
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(agree(&(1..=3), 2, 9), Some(3));
        assert_eq!(agree(&(1..=3), 0, 2), Some(2));
        assert_eq!(agree(&(2..=3), 0, 1), None);
        assert_eq!(agree(&(1..=3), 4, 9), None);
        assert_eq!(agree(&(1..=3), 3, 1), None, "nonsense is nothing");
    }
}
