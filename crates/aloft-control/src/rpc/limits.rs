//! `aloft.v1.LimitsService`.

use aloft_core::{Scope, Time};
use aloft_proto::v1;
use aloft_store::ProjectLimits;
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert,
    error::{Answer, invalid, wire},
    queue,
};
use crate::Control;

/// Times that a change is tried anew because another one came first.
const MAX_TRIES: usize = 16;

/// What stands between the parts of a page token: no name holds it.
const TOKEN_SEPARATOR: char = '/';

/// The place of a request: a project that exists, and all of it or one of its domains.
async fn place(control: &Control, place: Option<&v1::LimitedPlace>) -> Answer<ProjectLimits> {
    let place = place.ok_or_else(|| invalid("place: is required"))?;
    let org = control.org(&place.org);
    // An empty domain means all of them.
    let domain = if place.domain.is_empty() { "all" } else { &place.domain };
    Scope::new(&org, &place.project, domain).map_err(|e| invalid(format!("place: {e}")))?;
    control.existing_project(&org, &place.project).await?;
    if !place.domain.is_empty() {
        control.check_domain(&org, &place.domain).await?;
    }
    Ok(ProjectLimits { org, project: place.project.clone(), domain: place.domain.clone(), ..ProjectLimits::default() })
}

/// The record of a place, or the empty one.
async fn find(control: &Control, empty: ProjectLimits) -> Answer<ProjectLimits> {
    let all = control.store().project_limits(&empty.org).await.map_err(wire)?;
    let found = all.into_iter().find(|l| l.project == empty.project && l.domain == empty.domain);
    Ok(found.unwrap_or(empty))
}

fn to_wire(limits: &ProjectLimits) -> v1::ProjectLimits {
    v1::ProjectLimits {
        place: v1::LimitedPlace {
            org: limits.org.clone(),
            project: limits.project.clone(),
            domain: limits.domain.clone(),
            ..Default::default()
        }
        .into(),
        spec: v1::ProjectLimitsSpec {
            run_concurrency: limits.run_concurrency,
            action_concurrency: limits.action_concurrency,
            depth: limits.depth,
            ..Default::default()
        }
        .into(),
        generation: limits.generation,
        updated_at: (limits.generation > 0).then(|| convert::timestamp(limits.updated_at)).into(),
        updated_by: limits.updated_by.id.clone(),
        ..Default::default()
    }
}

/// The limits as they become; `None` if they are so already.
fn change(there: &ProjectLimits, spec: &v1::ProjectLimitsSpec, now: Time) -> Option<ProjectLimits> {
    let next = ProjectLimits {
        run_concurrency: spec.run_concurrency,
        action_concurrency: spec.action_concurrency,
        depth: spec.depth,
        ..there.clone()
    };
    (next != *there).then(|| ProjectLimits {
        generation: there.generation + 1,
        updated_at: now,
        updated_by: Control::anonymous(),
        ..next
    })
}

pub(super) async fn get(
    control: &Control,
    request: v1::GetProjectLimitsRequest,
) -> Answer<v1::GetProjectLimitsResponse> {
    let limits = find(control, place(control, request.place.as_option()).await?).await?;
    Ok(v1::GetProjectLimitsResponse { limits: to_wire(&limits).into(), ..Default::default() })
}

pub(super) async fn update(
    control: &Control,
    request: v1::UpdateProjectLimitsRequest,
) -> Answer<v1::UpdateProjectLimitsResponse> {
    let empty = place(control, request.place.as_option()).await?;
    // Not a default: an empty request must not lift every limit.
    let spec = request.spec.as_option().ok_or_else(|| invalid("spec: is required"))?;
    let named = format!("the limits of project {}", empty.project);
    for _ in 0..MAX_TRIES {
        let there = find(control, empty.clone()).await?;
        if let Some(expected) = request.expected_generation.filter(|e| *e != there.generation) {
            let message = format!(
                "expected_generation: {named} have generation {}, not {expected}: they were changed since; read them again",
                there.generation
            );
            return Err(ConnectError::new(ErrorCode::Aborted, message));
        }
        let answer = |limits: &ProjectLimits| v1::UpdateProjectLimitsResponse {
            limits: to_wire(limits).into(),
            ..Default::default()
        };
        let Some(next) = change(&there, spec, control.now()) else { return Ok(answer(&there)) };
        if control.store().replace_project_limits(next.clone(), there.generation).await.map_err(wire)? {
            return Ok(answer(&next));
        }
    }
    Err(ConnectError::new(ErrorCode::Aborted, format!("{named} are being changed by others; try again")))
}

pub(super) async fn list(
    control: &Control,
    request: v1::ListProjectLimitsRequest,
) -> Answer<v1::ListProjectLimitsResponse> {
    let org = queue::org(control, &request.org)?;
    if !request.project.is_empty() {
        control.existing_project(&org, &request.project).await?;
    }
    let after = match request.token.as_str() {
        "" => None,
        token => {
            let bad = || invalid("token: is not one that this list gave out");
            Some(token.split_once(TOKEN_SEPARATOR).ok_or_else(bad)?)
        }
    };
    let mut all = control.store().project_limits(&org).await.map_err(wire)?;
    all.retain(|l| {
        let limits_something = l.run_concurrency.is_some() || l.action_concurrency.is_some() || l.depth.is_some();
        limits_something
            && (request.project.is_empty() || l.project == request.project)
            && after.is_none_or(|after| (l.project.as_str(), l.domain.as_str()) > after)
    });
    let size = queue::page_size(request.limit);
    let token = match all.get(size.saturating_sub(1)) {
        Some(last) if all.len() > size => format!("{}{TOKEN_SEPARATOR}{}", last.project, last.domain),
        _ => String::new(),
    };
    let limits = all.iter().take(size).map(to_wire).collect();
    Ok(v1::ListProjectLimitsResponse { limits, token, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_generation_and_the_same_again_is_none() {
        let now = Time::from_micros(5);
        let spec = v1::ProjectLimitsSpec { depth: Some(0), ..Default::default() };
        let first = change(&ProjectLimits::default(), &spec, now).unwrap();
        assert_eq!((first.depth, first.generation, first.updated_at), (Some(0), 1, now));
        assert_eq!(change(&first, &spec, now), None);
        let lifted = change(&first, &v1::ProjectLimitsSpec::default(), now).unwrap();
        assert_eq!((lifted.depth, lifted.generation), (None, 2));
        assert_eq!(change(&ProjectLimits::default(), &v1::ProjectLimitsSpec::default(), now), None);
    }
}
