//! `flyteidl2.project.ProjectService`.

use aloft_core::Scope;
use aloft_flyteidl2::flyteidl2::{
    project::{
        CreateProjectRequest, CreateProjectResponse, Domain, GetProjectRequest, GetProjectResponse,
        ListProjectsRequest, ListProjectsResponse, Project as WireProject, Projects, UpdateProjectRequest,
        UpdateProjectResponse,
    },
    task::Labels,
};
use aloft_store::Project;
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert,
    error::{Answer, bounded, invalid, not_found, shortened, wire},
};
use crate::Control;

/// Longest display name, in bytes.
const MAX_NAME: usize = 255;

/// Most projects of a page.
const MAX_PAGE: usize = 1000;

fn to_wire(control: &Control, project: Project) -> WireProject {
    let domains = control.settings().domains.iter();
    WireProject {
        domains: domains
            .map(|(id, name)| Domain { id: id.clone(), name: name.clone(), ..Default::default() })
            .collect(),
        labels: Labels { values: project.labels, ..Default::default() }.into(),
        state: project.state.into(),
        id: project.id,
        name: project.name,
        description: project.description,
        org: project.org,
        ..Default::default()
    }
}

fn from_wire(control: &Control, wire_project: WireProject) -> Answer<Project> {
    let org = control.org(&wire_project.org);
    Scope::new(&org, &wire_project.id, "domain").map_err(wire)?;
    if wire_project.description.chars().count() > 300 {
        return Err(invalid("description: is longer than 300 characters"));
    }
    bounded("project.name", &wire_project.name, MAX_NAME)?;
    if let Some(labels) = wire_project.labels.as_option() {
        convert::check_labels("project.labels", &labels.values)?;
    }
    let name = if wire_project.name.is_empty() { wire_project.id.clone() } else { wire_project.name };
    Ok(Project {
        org,
        id: wire_project.id,
        name,
        description: wire_project.description,
        labels: wire_project.labels.into_option().map(|l| l.values).unwrap_or_default(),
        state: wire_project.state.to_i32(),
    })
}

pub(super) async fn create(control: &Control, request: CreateProjectRequest) -> Answer<CreateProjectResponse> {
    let project = from_wire(control, request.project.ok_or_else(|| invalid("project: is required"))?)?;
    let id = project.id.clone();
    if control.store().create_project(project).await.map_err(wire)? {
        Ok(CreateProjectResponse::default())
    } else {
        Err(ConnectError::new(ErrorCode::AlreadyExists, format!("project {id} exists already")))
    }
}

pub(super) async fn update(control: &Control, request: UpdateProjectRequest) -> Answer<UpdateProjectResponse> {
    let project = from_wire(control, request.project.ok_or_else(|| invalid("project: is required"))?)?;
    let id = project.id.clone();
    if control.store().update_project(project).await.map_err(wire)? {
        Ok(UpdateProjectResponse::default())
    } else {
        Err(missing(&id))
    }
}

/// There is no such project.
pub(super) fn missing(id: &str) -> ConnectError {
    let id = shortened(id);
    not_found(format!("project {id} does not exist; create it with `flyte create project {id} --name {id}`"))
}

pub(super) async fn get(control: &Control, request: GetProjectRequest) -> Answer<GetProjectResponse> {
    if request.id.is_empty() {
        return Err(invalid("id: is required"));
    }
    let org = control.org(&request.org);
    let found = control.store().project(&org, &request.id).await.map_err(wire)?;
    let project = found.ok_or_else(|| missing(&request.id))?;
    Ok(GetProjectResponse { project: to_wire(control, project).into(), ..Default::default() })
}

pub(super) async fn list(control: &Control, request: ListProjectsRequest) -> Answer<ListProjectsResponse> {
    let keep = parse_filters(&request.filters)?;
    let mut projects = control.store().projects(&control.org(&request.org)).await.map_err(wire)?;
    projects.retain(|p| keep.iter().all(|f| f.holds(p)));
    if let Some(sort) = request.sort_by.as_option() {
        match sort.key.as_str() {
            "" | "id" | "identifier" | "created_at" => {}
            "name" => projects.sort_by(|a, b| a.name.cmp(&b.name)),
            other => return Err(invalid(format!("sort_by.key: {other:?} is not one of id, name, created_at"))),
        }
    }
    let start: usize = match request.token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| invalid("token: is not one that this list gave out"))?,
    };
    let limit = match request.limit {
        0 => MAX_PAGE,
        n => (n as usize).min(MAX_PAGE),
    };
    let more = projects.len() > start.saturating_add(limit);
    let page = projects.into_iter().skip(start).take(limit).map(|p| to_wire(control, p)).collect();
    let token = if more { (start + limit).to_string() } else { String::new() };
    Ok(ListProjectsResponse {
        projects: Projects { projects: page, token, ..Default::default() }.into(),
        ..Default::default()
    })
}

/// One term of the filter text, such as `eq(state, 0)`.
struct Term {
    negate: bool,
    part: bool,
    field: String,
    values: Vec<String>,
}

impl Term {
    fn holds(&self, project: &Project) -> bool {
        let actual = match self.field.as_str() {
            "state" => project.state.to_string(),
            "name" => project.name.clone(),
            "description" => project.description.clone(),
            _ => project.id.clone(),
        };
        let found = self.values.iter().any(|v| if self.part { actual.contains(v) } else { &actual == v });
        found != self.negate
    }
}

/// Parses `eq(state, 0)+contains(name, x)`: what the CLI sends. Without a filter on the state, archived projects are
/// hidden, as the contract's backend does.
fn parse_filters(text: &str) -> Answer<Vec<Term>> {
    let mut terms = Vec::new();
    for term in text.split('+').map(str::trim).filter(|t| !t.is_empty()) {
        let bad = || {
            let term = shortened(term);
            invalid(format!("filters: cannot read {term:?}; write function(field, value), joined by '+'"))
        };
        let (function, rest) = term.split_once('(').ok_or_else(bad)?;
        let (field, values) = rest.strip_suffix(')').ok_or_else(bad)?.split_once(',').ok_or_else(bad)?;
        let (negate, part) = match function.trim() {
            "eq" | "value_in" => (false, false),
            "ne" => (true, false),
            "contains" => (false, true),
            other => {
                let other = shortened(other);
                return Err(invalid(format!("filters: {other:?} is not one of eq, ne, contains, value_in")));
            }
        };
        let field = field.trim().to_owned();
        if !matches!(field.as_str(), "state" | "name" | "description" | "id" | "identifier") {
            return Err(invalid(format!(
                "filters: {:?} is not one of state, name, description, id",
                shortened(&field)
            )));
        }
        terms.push(Term { negate, part, field, values: values.split(';').map(|v| v.trim().to_owned()).collect() });
    }
    if terms.is_empty() {
        terms.push(Term { negate: true, part: false, field: "state".to_owned(), values: vec!["1".to_owned()] });
    }
    Ok(terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_read_what_the_cli_sends() {
        let active = Project { id: "a".into(), ..Project::default() };
        let archived = Project { id: "b".into(), state: 1, ..Project::default() };
        let keeps = |text: &str| {
            let terms = parse_filters(text).unwrap();
            [&active, &archived].map(|p| terms.iter().all(|t| t.holds(p)))
        };
        assert_eq!(keeps(""), [true, false]);
        assert_eq!(keeps("eq(state, 0)"), [true, false]);
        assert_eq!(keeps("eq(state, 1)+contains(id, b)"), [false, true]);
        assert!(parse_filters("eq(state").is_err() && parse_filters("eq(secret, 1)").is_err());
    }
}
