//! `flyteidl2.org.DomainService`.

use aloft_core::{Scope, Time};
use aloft_flyteidl2::flyteidl2::org::{
    CreateDomainRequest, CreateDomainResponse, DeleteDomainRequest, DeleteDomainResponse, Domain as WireDomain,
    GetDomainRequest, GetDomainResponse, ListDomainsRequest, ListDomainsResponse, UpdateDomainRequest,
    UpdateDomainResponse,
};
use aloft_store::{Domain, DomainUse};
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert::{self, MAX_TEXT},
    error::{Answer, bounded, invalid, wire},
    place::no_domain,
};
use crate::{Control, names};

/// Most domains of an organisation: every project shows all of them, and lists of them have no pages.
const MAX_DOMAINS: usize = 100;

fn to_wire(domain: Domain) -> WireDomain {
    let created_at = Some(domain.created_at).filter(|at| *at != Time::default());
    WireDomain {
        id: domain.id,
        org: domain.org,
        friendly_name: domain.name,
        created_at: created_at.map(convert::timestamp).into(),
        ..Default::default()
    }
}

/// A checked name to show people; without one, the identifier.
fn friendly(name: String, id: &str) -> Answer<String> {
    bounded("friendly_name", &name, MAX_TEXT)?;
    Ok(if name.is_empty() { id.to_owned() } else { name })
}

fn organisation(control: &Control, org: &str) -> Answer<String> {
    let org = control.org(org);
    Scope::new(&org, "project", "domain").map_err(wire)?;
    Ok(org)
}

async fn find(control: &Control, org: &str, id: &str) -> Answer<Domain> {
    if id.is_empty() {
        return Err(invalid("id: is required"));
    }
    let known = control.domains(org).await?;
    match known.iter().find(|d| d.id == id) {
        Some(domain) => Ok(domain.clone()),
        None => Err(no_domain(id, &known)),
    }
}

pub(super) async fn list(control: &Control, request: ListDomainsRequest) -> Answer<ListDomainsResponse> {
    let domains = control.domains(&organisation(control, &request.org)?).await?;
    Ok(ListDomainsResponse { domains: domains.into_iter().map(to_wire).collect(), ..Default::default() })
}

pub(super) async fn get(control: &Control, request: GetDomainRequest) -> Answer<GetDomainResponse> {
    let domain = find(control, &organisation(control, &request.org)?, &request.id).await?;
    Ok(GetDomainResponse { domain: to_wire(domain).into(), ..Default::default() })
}

pub(super) async fn create(control: &Control, request: CreateDomainRequest) -> Answer<CreateDomainResponse> {
    let org = organisation(control, &request.org)?;
    names::check_label("id", &request.id).map_err(invalid)?;
    let name = friendly(request.friendly_name, &request.id)?;
    control.ensure_domains_of(&org).await.map_err(wire)?;
    if control.domains(&org).await?.len() >= MAX_DOMAINS {
        return Err(ConnectError::new(
            ErrorCode::ResourceExhausted,
            format!("organisation {org} has {MAX_DOMAINS} domains, and more are not allowed; delete one first"),
        ));
    }
    let domain = Domain { org, id: request.id, name, created_at: control.now() };
    if !control.store().create_domain(domain.clone()).await.map_err(wire)? {
        return Err(ConnectError::new(ErrorCode::AlreadyExists, format!("domain {} exists already", domain.id)));
    }
    Ok(CreateDomainResponse { domain: to_wire(domain).into(), ..Default::default() })
}

pub(super) async fn update(control: &Control, request: UpdateDomainRequest) -> Answer<UpdateDomainResponse> {
    let org = organisation(control, &request.org)?;
    let domain = find(control, &org, &request.id).await?;
    let name = friendly(request.friendly_name, &request.id)?;
    control.ensure_domains_of(&org).await.map_err(wire)?;
    if !control.store().rename_domain(&org, &request.id, &name).await.map_err(wire)? {
        return Err(no_domain(&request.id, &control.domains(&org).await?));
    }
    Ok(UpdateDomainResponse { domain: to_wire(Domain { name, ..domain }).into(), ..Default::default() })
}

/// Deletes a domain in which there is nothing. Its settings are kept, and count again if it is created again.
pub(super) async fn delete(control: &Control, request: DeleteDomainRequest) -> Answer<DeleteDomainResponse> {
    let org = organisation(control, &request.org)?;
    find(control, &org, &request.id).await?;
    control.ensure_domains_of(&org).await.map_err(wire)?;
    // A run whose creation has passed its checks but is not committed is not seen. It keeps its place, which lists of
    // domains then do not show: harmless, and creating the domain again shows it.
    if control.store().delete_domain(&org, &request.id).await.map_err(wire)? {
        return Ok(DeleteDomainResponse::default());
    }
    let DomainUse { runs, tasks } = control.store().domain_use(&org, &request.id).await.map_err(wire)?;
    let why = match (runs, tasks) {
        (0, 0) => format!("is the last one of organisation {org}, and there must be one; create another first"),
        _ => format!("has {} and {} in it, and they would be lost", count(runs, "run"), count(tasks, "deployed task")),
    };
    Err(ConnectError::new(ErrorCode::FailedPrecondition, format!("domain {} {why}", request.id)))
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
