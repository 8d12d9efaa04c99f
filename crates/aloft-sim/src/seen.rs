//! What views show, as plain data: read from the wire's messages, refusing what no view may show.

use aloft_core::{Phase, Time};
use aloft_flyteidl2::flyteidl2::{
    common::{ActionIdentifier, EnrichedIdentity, RunIdentifier, enriched_identity},
    workflow::{Action, ActionAttempt, ActionDetails, ActionUpdate, ErrorInfo, RunSource, action_details},
};
use buffa_types::google::protobuf::Timestamp;

use crate::{
    ids::{ActionId, Place, RunId},
    signal::{Condition, Signalled, Value},
};

/// What every view of an action that shows its status has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which action.
    pub id: ActionId,
    /// Where it is.
    pub phase: Phase,
    /// How many attempts it has had.
    pub attempts: u32,
    /// When it was created.
    pub start: Time,
    /// When it ended.
    pub end: Option<Time>,
    /// How long it took, in milliseconds.
    pub duration: Option<u64>,
    /// The action above it; empty for the root.
    pub parent: String,
    /// Its group.
    pub group: String,
    /// `ActionType` number.
    pub kind: i32,
    /// The function it runs.
    pub function: String,
    /// What caching did for it: `CatalogCacheStatus` number.
    pub cache: i32,
    /// Whose result it took over, if it was recovered.
    pub recovered: Option<ActionId>,
    /// The run that its run was made from, and how: `RelationType` number. Only on the root.
    pub relation: Option<(RunId, i32)>,
    /// Whether its run is carried out elsewhere.
    pub elsewhere: bool,
}

/// An error as a view shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenError {
    /// Its code.
    pub code: String,
    /// Its message.
    pub message: String,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAttempt {
    /// Its number.
    pub number: u32,
    /// Where it is.
    pub phase: Phase,
    /// What it went through.
    pub phases: Vec<(Phase, Time)>,
    /// When it ended.
    pub end: Option<Time>,
    /// Why it failed.
    pub error: Option<SeenError>,
    /// Where its outputs lie.
    pub output: String,
    /// What it was said to wait for.
    pub waits_for: Vec<String>,
    /// What caching did: `CatalogCacheStatus` number.
    pub cache: i32,
    /// Whose result stands in: the action and the number of its attempt.
    pub source: Option<(ActionId, u32)>,
}

/// Everything about an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// What lists show too.
    pub shown: Shown,
    /// Its attempts.
    pub attempts: Vec<SeenAttempt>,
    /// Why it failed.
    pub error: Option<SeenError>,
    /// Why it was aborted.
    pub aborted: Option<String>,
    /// How it was signalled.
    pub signal: Option<Signalled>,
    /// What it waits or waited for, if it is a condition.
    pub condition: Option<Condition>,
    /// Who started its run.
    pub by: Person,
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// What identifies them.
    pub subject: String,
    /// What they are called.
    pub name: String,
}

/// What a parent hears of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Which child.
    pub id: ActionId,
    /// Where it is.
    pub phase: Phase,
    /// Why it failed.
    pub error: Option<SeenError>,
    /// Where its outputs are or will be.
    pub output: String,
    /// What it was signalled with.
    pub value: Option<Value>,
}

type Read<T> = Result<T, String>;

fn phase(number: i32, of: &str) -> Read<Phase> {
    Phase::from_number(number).ok_or_else(|| format!("{of}: there is no phase {number}"))
}

fn time(at: &Timestamp) -> Time {
    Time::from_micros(at.seconds * 1_000_000 + i64::from(at.nanos) / 1000)
}

fn set(at: Option<&Timestamp>, of: &str) -> Read<Time> {
    at.map(time).ok_or_else(|| format!("{of}: the time is missing"))
}

fn error(info: &ErrorInfo) -> SeenError {
    SeenError { code: info.code.clone(), message: info.message.clone() }
}

/// A run by its identifier.
pub fn run_id(id: &RunIdentifier) -> RunId {
    let place = Place { project: id.project.clone(), domain: id.domain.clone() };
    RunId { place, name: id.name.clone() }
}

fn action_id(id: &ActionIdentifier) -> ActionId {
    ActionId { run: run_id(&id.run), name: id.name.clone() }
}

impl Person {
    /// Reads who it was.
    ///
    /// # Errors
    /// If it says nobody.
    pub fn read(identity: &EnrichedIdentity) -> Read<Self> {
        match &identity.principal {
            Some(enriched_identity::Principal::User(user)) if !user.id.subject.is_empty() => {
                Ok(Self { subject: user.id.subject.clone(), name: user.spec.first_name.clone() })
            }
            other => Err(format!("nobody is named: {other:?}")),
        }
    }
}

impl Shown {
    /// Reads the message that lists and streams carry.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn read(action: &Action) -> Read<Self> {
        let of = action_id(&action.id).to_string();
        let (status, metadata) = (&action.status, &action.metadata);
        Ok(Self {
            id: action_id(&action.id),
            phase: phase(status.phase.to_i32(), &of)?,
            attempts: status.attempts,
            start: set(status.start_time.as_option(), &of)?,
            end: status.end_time.as_option().map(time),
            duration: status.duration_ms,
            parent: metadata.parent.clone(),
            group: metadata.group.clone(),
            kind: metadata.action_type.to_i32(),
            function: metadata.funtion_name.clone(),
            cache: status.cache_status.to_i32(),
            recovered: metadata.recovered_from.as_option().map(action_id),
            relation: metadata.relation.as_option().map(|r| (run_id(&r.related_to), r.relation_type.to_i32())),
            elsewhere: metadata.source == RunSource::RUN_SOURCE_TRACKED,
        })
    }
}

impl SeenAttempt {
    fn read(attempt: &ActionAttempt, of: &str) -> Read<Self> {
        let phases = attempt.phase_transitions.iter();
        let phases = phases.map(|t| Ok((phase(t.phase.to_i32(), of)?, set(t.start_time.as_option(), of)?)));
        let waits_for = attempt.cluster_events.iter().filter(|event| event.reason == "WaitingForResources");
        Ok(Self {
            number: attempt.attempt,
            phase: phase(attempt.phase.to_i32(), of)?,
            phases: phases.collect::<Read<_>>()?,
            end: attempt.end_time.as_option().map(time),
            error: attempt.error_info.as_option().map(error),
            output: attempt.outputs.output_uri.clone(),
            waits_for: waits_for.map(|event| event.message.clone()).collect(),
            cache: attempt.cache_status.to_i32(),
            source: attempt
                .cache_metadata
                .as_option()
                .map(|m| (action_id(&m.source_action_attempt.action_id), m.source_action_attempt.attempt)),
        })
    }
}

impl Details {
    /// Reads the message of one action.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn read(details: &ActionDetails) -> Read<Self> {
        let action = Action {
            id: details.id.clone(),
            metadata: details.metadata.clone(),
            status: details.status.clone(),
            ..Default::default()
        };
        let shown = Shown::read(&action)?;
        let of = shown.id.to_string();
        let attempts = details.attempts.iter().map(|a| SeenAttempt::read(a, &of)).collect::<Read<_>>()?;
        let (mut failed, mut aborted, mut signal) = (None, None, None);
        match &details.result {
            Some(action_details::Result::ErrorInfo(info)) => failed = Some(error(info)),
            Some(action_details::Result::AbortInfo(info)) => aborted = Some(info.reason.clone()),
            Some(action_details::Result::SignalInfo(info)) => signal = Some(Signalled::read(info)?),
            None => {}
        }
        let condition = match &details.spec {
            Some(action_details::Spec::Condition(condition)) => Some(Condition::read(condition)?),
            Some(action_details::Spec::Task(_) | action_details::Spec::Trace(_)) => None,
            None => return Err(format!("{of}: the details do not say what it runs")),
        };
        let by = Person::read(&details.metadata.executed_by)?;
        Ok(Self { shown, attempts, error: failed, aborted, signal, condition, by })
    }
}

impl Update {
    /// Reads the message of a parent's stream.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn read(update: &ActionUpdate) -> Read<Self> {
        let id = action_id(&update.action_id);
        let error = update.error.as_option();
        Ok(Self {
            phase: phase(update.phase.to_i32(), &id.to_string())?,
            error: error.map(|e| SeenError { code: e.code.clone(), message: e.message.clone() }),
            output: update.output_uri.clone(),
            value: update.value.as_option().map(Value::read).transpose()?,
            id,
        })
    }
}
