//! `aloft.v1.QueueService`.

use aloft_core::{
    DEFAULT_QUEUE, Fairness, Priority, QueueLimits, QueueSpec, QueueState, ResourceCaps, Scope, check_queue_name,
};
use aloft_proto::v1;
use aloft_store::{Queue, QueueLoad};

use super::{
    convert,
    error::{Answer, invalid, wire},
};
use crate::{
    Control,
    queues::{self, Change, QueueRefusal},
};

/// Queues of a page when the request does not say, and most of one.
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// Times that a change is decided anew because another one came first. Administrators are few.
const MAX_TRIES: usize = 16;

/// The number of entries of a page that a request asks for.
pub(super) fn page_size(limit: u32) -> usize {
    if limit == 0 { DEFAULT_PAGE } else { (limit as usize).min(MAX_PAGE) }
}

/// A checked organisation.
pub(super) fn org(control: &Control, org: &str) -> Answer<String> {
    let org = control.org(org);
    // The names beside it are only to have a scope.
    Scope::new(&org, DEFAULT_QUEUE, DEFAULT_QUEUE).map_err(wire)?;
    Ok(org)
}

fn id(control: &Control, id: Option<&v1::QueueId>) -> Answer<(String, String)> {
    let id = id.ok_or_else(|| invalid("id: is required"))?;
    check_queue_name(&id.name).map_err(|e| invalid(format!("id.name: {e}")))?;
    Ok((org(control, &id.org)?, id.name.clone()))
}

fn spec_from_wire(spec: Option<&v1::QueueSpec>) -> Answer<QueueSpec> {
    let Some(spec) = spec else { return Ok(QueueSpec::default()) };
    let unknown =
        |field: &str, number: i32, known: &str| invalid(format!("spec.{field}: {number} is not a number of {known}"));
    let priority = match spec.priority.as_known() {
        Some(v1::QueuePriority::Low) => Priority::Low,
        Some(v1::QueuePriority::Unspecified | v1::QueuePriority::Medium) => Priority::Medium,
        Some(v1::QueuePriority::High) => Priority::High,
        None => return Err(unknown("priority", spec.priority.to_i32(), "low, medium, high")),
    };
    let fairness = match spec.fairness.as_known() {
        Some(v1::QueueFairness::FirstInFirstOut) => Fairness::FirstInFirstOut,
        Some(v1::QueueFairness::Unspecified | v1::QueueFairness::RoundRobin) => Fairness::RoundRobin,
        None => return Err(unknown("fairness", spec.fairness.to_i32(), "first in first out, round robin")),
    };
    let caps = spec.max_resources.as_option();
    let resources = ResourceCaps {
        memory: caps.and_then(|c| c.memory_bytes),
        cpu: caps.and_then(|c| c.milli_cpu),
        gpu: caps.and_then(|c| c.gpu),
    };
    let limits = QueueLimits {
        run_concurrency: spec.run_concurrency,
        action_concurrency: spec.action_concurrency,
        depth: spec.depth,
        resources,
    };
    Ok(QueueSpec { limits, priority, fairness })
}

fn spec_to_wire(spec: &QueueSpec) -> v1::QueueSpec {
    let QueueSpec { limits, priority, fairness } = spec;
    let ResourceCaps { memory, cpu, gpu } = limits.resources;
    let caps = v1::ResourceCaps { memory_bytes: memory, milli_cpu: cpu, gpu, ..Default::default() };
    v1::QueueSpec {
        run_concurrency: limits.run_concurrency,
        action_concurrency: limits.action_concurrency,
        depth: limits.depth,
        max_resources: Some(caps).filter(|c| *c != v1::ResourceCaps::default()).into(),
        priority: match priority {
            Priority::Low => v1::QueuePriority::Low,
            Priority::Medium => v1::QueuePriority::Medium,
            Priority::High => v1::QueuePriority::High,
        }
        .into(),
        fairness: match fairness {
            Fairness::FirstInFirstOut => v1::QueueFairness::FirstInFirstOut,
            Fairness::RoundRobin => v1::QueueFairness::RoundRobin,
        }
        .into(),
        ..Default::default()
    }
}

fn state_to_wire(state: QueueState) -> v1::QueueState {
    match state {
        QueueState::Active => v1::QueueState::Active,
        QueueState::Draining => v1::QueueState::Draining,
        QueueState::Drained => v1::QueueState::Drained,
    }
}

fn to_wire(queue: &Queue, load: QueueLoad) -> v1::Queue {
    // Nobody has created the default queue.
    let at = |at| (queue.generation > 0).then(|| convert::timestamp(at)).into();
    v1::Queue {
        id: v1::QueueId { org: queue.org.clone(), name: queue.name.clone(), ..Default::default() }.into(),
        spec: spec_to_wire(&queue.spec).into(),
        state: state_to_wire(queue.state_under(load)).into(),
        load: v1::QueueLoad {
            waiting_actions: load.waiting,
            running_actions: load.running,
            running_runs: load.runs,
            ..Default::default()
        }
        .into(),
        generation: queue.generation,
        created_at: at(queue.created_at),
        created_by: queue.created_by.id.clone(),
        updated_at: at(queue.updated_at),
        deleted_at: queue.deleted_at.map(convert::timestamp).into(),
        ..Default::default()
    }
}

/// A queue, deleted or not.
async fn find(control: &Control, org: &str, name: &str) -> Answer<Option<Queue>> {
    if name == DEFAULT_QUEUE {
        return Ok(Some(queues::default_queue(org)));
    }
    control.store().queue(org, name).await.map_err(wire)
}

async fn existing(control: &Control, org: &str, name: &str) -> Answer<Queue> {
    find(control, org, name).await?.ok_or_else(|| wire(QueueRefusal::Missing(name.to_owned())))
}

async fn load(control: &Control, queue: &Queue) -> Answer<QueueLoad> {
    control.store().queue_load(&queue.org, &queue.name).await.map_err(wire)
}

async fn shown(control: &Control, queue: &Queue) -> Answer<v1::Queue> {
    Ok(to_wire(queue, load(control, queue).await?))
}

pub(super) async fn create(control: &Control, request: v1::CreateQueueRequest) -> Answer<v1::CreateQueueResponse> {
    let (org, name) = id(control, request.id.as_option())?;
    let spec = spec_from_wire(request.spec.as_option())?;
    for _ in 0..MAX_TRIES {
        if let Some(there) = find(control, &org, &name).await? {
            queues::create_again(&there, &spec).map_err(wire)?;
            let queue = shown(control, &there).await?.into();
            return Ok(v1::CreateQueueResponse { queue, created: false, ..Default::default() });
        }
        queues::check_room(&control.store().queues(&org).await.map_err(wire)?).map_err(wire)?;
        let now = control.now();
        let queue = Queue {
            org: org.clone(),
            name: name.clone(),
            spec: spec.clone(),
            state: QueueState::Active,
            generation: 1,
            created_at: now,
            created_by: Control::anonymous(),
            updated_at: now,
            deleted_at: None,
        };
        if control.store().create_queue(queue.clone()).await.map_err(wire)? {
            let queue = shown(control, &queue).await?.into();
            return Ok(v1::CreateQueueResponse { queue, created: true, ..Default::default() });
        }
    }
    Err(wire(QueueRefusal::Busy(name)))
}

/// Carries out a change, on whatever the queue has become if others change it too.
async fn change(
    control: &Control,
    queue_id: Option<&v1::QueueId>,
    expected: Option<u64>,
    wanted: Change,
) -> Answer<v1::Queue> {
    let (org, name) = id(control, queue_id)?;
    for _ in 0..MAX_TRIES {
        let queue = existing(control, &org, &name).await?;
        let load = load(control, &queue).await?;
        let Some(next) = queues::change(&queue, load, expected, &wanted, control.now()).map_err(wire)? else {
            return Ok(to_wire(&queue, load));
        };
        if control.store().replace_queue(next.clone(), queue.generation).await.map_err(wire)? {
            return Ok(to_wire(&next, load));
        }
    }
    Err(wire(QueueRefusal::Busy(name)))
}

pub(super) async fn update(control: &Control, request: v1::UpdateQueueRequest) -> Answer<v1::UpdateQueueResponse> {
    // Not a default: an empty request must not lift every limit.
    let spec = request.spec.as_option().ok_or_else(|| invalid("spec: is required"))?;
    let wanted = Change::Spec(spec_from_wire(Some(spec))?);
    let queue = change(control, request.id.as_option(), request.expected_generation, wanted).await?;
    Ok(v1::UpdateQueueResponse { queue: queue.into(), ..Default::default() })
}

pub(super) async fn update_state(
    control: &Control,
    request: v1::UpdateQueueStateRequest,
) -> Answer<v1::UpdateQueueStateResponse> {
    let wanted = match request.state.as_known() {
        Some(v1::QueueState::Active) => Change::Activate,
        Some(v1::QueueState::Draining) => Change::Drain,
        _ => return Err(invalid("state: is active or draining; a draining queue becomes drained by itself")),
    };
    let queue = change(control, request.id.as_option(), request.expected_generation, wanted).await?;
    Ok(v1::UpdateQueueStateResponse { queue: queue.into(), ..Default::default() })
}

pub(super) async fn delete(control: &Control, request: v1::DeleteQueueRequest) -> Answer<v1::DeleteQueueResponse> {
    let queue = change(control, request.id.as_option(), request.expected_generation, Change::Delete).await?;
    Ok(v1::DeleteQueueResponse { queue: queue.into(), ..Default::default() })
}

pub(super) async fn undelete(
    control: &Control,
    request: v1::UndeleteQueueRequest,
) -> Answer<v1::UndeleteQueueResponse> {
    let queue = change(control, request.id.as_option(), request.expected_generation, Change::Undelete).await?;
    Ok(v1::UndeleteQueueResponse { queue: queue.into(), ..Default::default() })
}

pub(super) async fn get(control: &Control, request: v1::GetQueueRequest) -> Answer<v1::GetQueueResponse> {
    let (org, name) = id(control, request.id.as_option())?;
    let queue = shown(control, &existing(control, &org, &name).await?).await?;
    Ok(v1::GetQueueResponse { queue: queue.into(), ..Default::default() })
}

pub(super) async fn list(control: &Control, request: v1::ListQueuesRequest) -> Answer<v1::ListQueuesResponse> {
    let org = org(control, &request.org)?;
    let mut states = Vec::with_capacity(3);
    for state in &request.states {
        match state.as_known() {
            None | Some(v1::QueueState::Unspecified) => {
                return Err(invalid("states: each is active, draining or drained"));
            }
            Some(state) if states.contains(&state) => {}
            Some(state) => states.push(state),
        }
    }
    if !request.token.is_empty() && check_queue_name(&request.token).is_err() {
        return Err(invalid("token: is not one that this list gave out"));
    }
    let mut loads = control.store().queue_loads(&org).await.map_err(wire)?;
    let mut all = control.store().queues(&org).await.map_err(wire)?;
    all.push(queues::default_queue(&org));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let wanted = all.iter().filter(|q| q.name > request.token && (request.include_deleted || q.deleted_at.is_none()));
    let mut wanted = wanted
        .map(|q| to_wire(q, loads.remove(&q.name).unwrap_or_default()))
        .filter(|q| states.is_empty() || q.state.as_known().is_some_and(|s| states.contains(&s)));
    let page: Vec<_> = wanted.by_ref().take(page_size(request.limit)).collect();
    let token = match (page.last().and_then(|q| q.id.as_option()), wanted.next()) {
        (Some(last), Some(_)) => last.name.clone(),
        _ => String::new(),
    };
    Ok(v1::ListQueuesResponse { queues: page, token, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_survives_the_wire() {
        let resources = ResourceCaps { memory: Some(600 << 20), cpu: Some(0), gpu: None };
        let limits =
            QueueLimits { run_concurrency: Some(0), action_concurrency: Some(3), depth: Some(u32::MAX), resources };
        for spec in [
            QueueSpec::default(),
            QueueSpec { limits, priority: Priority::Low, fairness: Fairness::FirstInFirstOut },
            QueueSpec { priority: Priority::High, ..QueueSpec::default() },
        ] {
            assert_eq!(spec_from_wire(Some(&spec_to_wire(&spec))).unwrap(), spec);
        }
    }

    #[test]
    fn unknown_numbers_are_named() {
        let spec = v1::QueueSpec { priority: 9.into(), ..Default::default() };
        assert!(spec_from_wire(Some(&spec)).unwrap_err().to_string().contains("spec.priority: 9"));
        let spec = v1::QueueSpec { fairness: (-1).into(), ..Default::default() };
        assert!(spec_from_wire(Some(&spec)).unwrap_err().to_string().contains("spec.fairness: -1"));
    }
}
