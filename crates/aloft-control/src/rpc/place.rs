//! Where things may be created: the domains of an organisation, and projects that exist and are not archived.

use std::sync::Arc;

use aloft_core::{Scope, Time};
use aloft_flyteidl2::flyteidl2::project::ProjectState;
use aloft_store::{Domain, Project, Site, StoreError};
use buffa::Enumeration as _;
use connectrpc::{ConnectError, ErrorCode};

use super::error::{Answer, not_found, shortened, wire};
use crate::Control;

/// Whether a project takes nothing new.
pub(super) fn is_archived(project: &Project) -> bool {
    matches!(
        ProjectState::from_i32(project.state),
        Some(ProjectState::PROJECT_STATE_ARCHIVED | ProjectState::PROJECT_STATE_SYSTEM_ARCHIVED)
    )
}

/// The refusal for a project that is not there.
pub(super) fn no_project(id: &str) -> ConnectError {
    let id = shortened(id);
    not_found(format!("project {id} does not exist; create it with `flyte create project --id {id} --name {id}`"))
}

/// The refusal for a domain that is not there.
pub(super) fn no_domain(id: &str, known: &[Domain]) -> ConnectError {
    let known: Vec<_> = known.iter().map(|d| d.id.as_str()).collect();
    not_found(format!("domain {} does not exist; the domains are {}", shortened(id), known.join(", ")))
}

impl Control {
    /// The domains that an organisation begins with.
    fn first_domains(&self, org: &str, created_at: Time) -> Vec<Domain> {
        let domain = |id: &String| Domain { org: org.to_owned(), id: id.clone(), name: id.clone(), created_at };
        self.settings().domains.iter().map(domain).collect()
    }

    /// The domains of an organisation. One that nobody has used yet has those that every one begins with: reading must
    /// not make records, or anybody could make any number of them.
    pub(super) async fn domains(&self, org: &str) -> Answer<Vec<Domain>> {
        Ok(self.or_first(org, self.store().domains(org).await.map_err(wire)?))
    }

    fn or_first(&self, org: &str, found: Vec<Domain>) -> Vec<Domain> {
        if found.is_empty() { self.first_domains(org, Time::default()) } else { found }
    }

    /// Records the domains that an organisation begins with, before the first thing of it is recorded; `false` if it has
    /// domains already.
    pub(crate) async fn ensure_domains_of(&self, org: &str) -> Result<bool, StoreError> {
        let first = self.first_domains(org, self.now());
        self.store().seed_domains(org, first).await
    }

    /// Refuses a domain that does not exist.
    pub(super) async fn check_domain(&self, org: &str, id: &str) -> Answer<()> {
        if self.store().domain(org, id).await.map_err(wire)?.is_some() {
            return Ok(());
        }
        let known = self.domains(org).await?;
        if known.iter().any(|d| d.id == id) { Ok(()) } else { Err(no_domain(id, &known)) }
    }

    /// A project that exists.
    pub(super) async fn existing_project(&self, org: &str, id: &str) -> Answer<Project> {
        self.store().project(org, id).await.map_err(wire)?.ok_or_else(|| no_project(id))
    }

    /// What is recorded of a place where something can be created. Refuses a domain or a project that does not exist, and one
    /// that is archived.
    pub(super) async fn site(&self, scope: &Scope) -> Answer<Arc<Site>> {
        let mut site = self.store().site(scope).await.map_err(wire)?;
        site.domains = self.or_first(&scope.org, site.domains);
        if !site.domains.iter().any(|d| d.id == scope.domain) {
            return Err(no_domain(&scope.domain, &site.domains));
        }
        let project = site.project.as_ref().ok_or_else(|| no_project(&scope.project))?;
        if is_archived(project) {
            return Err(ConnectError::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "project {0} is archived, so nothing new can be created in it; bring it back with `flyte update project \
                     {0} --unarchive`",
                    scope.project
                ),
            ));
        }
        Ok(self.remember_site(scope, site))
    }

    /// As [`Control::site`], as it was when it was read last. For what names its revision when it is committed.
    pub(super) async fn known_site(&self, scope: &Scope) -> Answer<Arc<Site>> {
        match self.remembered_site(scope) {
            Some(site) => Ok(site),
            None => self.site(scope).await,
        }
    }
}
