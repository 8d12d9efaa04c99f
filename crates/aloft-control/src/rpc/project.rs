//! `flyteidl2.project.ProjectService`.

use aloft_core::Scope;
use aloft_flyteidl2::flyteidl2::{
    common::{Sort, sort::Direction},
    project::{
        CreateProjectRequest, CreateProjectResponse, Domain as WireDomain, GetProjectRequest, GetProjectResponse,
        ListProjectsRequest, ListProjectsResponse, Project as WireProject, ProjectState, Projects,
        UpdateProjectRequest, UpdateProjectResponse,
    },
    task::Labels,
};
use aloft_store::{Cursor, Domain, ListQuery, Position, Project, StoreError};
use buffa::Enumeration as _;
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert,
    error::{Answer, bounded, invalid, shortened, wire},
    place::{is_archived, no_project},
};
use crate::Control;

/// Longest display name, in bytes.
const MAX_NAME: usize = 255;

/// Most projects of a page, and how many there are if a request does not say.
const MAX_PAGE: usize = 1000;

fn to_wire(project: Project, domains: &[Domain]) -> WireProject {
    let domain = |d: &Domain| WireDomain { id: d.id.clone(), name: d.name.clone(), ..Default::default() };
    WireProject {
        domains: domains.iter().map(domain).collect(),
        labels: Labels { values: project.labels, ..Labels::default() }.into(),
        state: project.state.into(),
        id: project.id,
        name: project.name,
        description: project.description,
        org: project.org,
        ..Default::default()
    }
}

/// What a request says of a project, checked; what it cannot say is as `known` has it.
fn from_wire(wire_project: WireProject, known: Project) -> Answer<Project> {
    if !wire_project.domains.is_empty() {
        return Err(invalid(
            "project.domains: must be empty: domains belong to the organisation, and DomainService changes them",
        ));
    }
    if wire_project.description.chars().count() > 300 {
        return Err(invalid("project.description: is longer than 300 characters"));
    }
    bounded("project.name", &wire_project.name, MAX_NAME)?;
    if let Some(labels) = wire_project.labels.as_option() {
        convert::check_labels("project.labels", &labels.values)?;
    }
    // A project always has a name, and labels that were not sent are not labels that were removed.
    let name = if wire_project.name.is_empty() { known.name } else { wire_project.name };
    let labels = wire_project.labels.into_option().map_or(known.labels, |l| l.values);
    let state = wire_project.state.to_i32();
    check_state(known.state, state)?;
    Ok(Project { name, description: wire_project.description, labels, state, ..known })
}

/// People's projects are archived and brought back; those of the platform stay as they are.
fn check_state(known: i32, wanted: i32) -> Answer<()> {
    let active = ProjectState::PROJECT_STATE_ACTIVE.to_i32();
    let archived = ProjectState::PROJECT_STATE_ARCHIVED.to_i32();
    if wanted == known || [active, archived].contains(&known) && [active, archived].contains(&wanted) {
        return Ok(());
    }
    Err(match ProjectState::from_i32(wanted) {
        Some(ProjectState::PROJECT_STATE_ACTIVE | ProjectState::PROJECT_STATE_ARCHIVED) => {
            invalid("project.state: this project is the platform's own and stays as it is")
        }
        Some(_) => invalid("project.state: only the platform's own projects have this state"),
        None => invalid(format!("project.state: {wanted} is not a state; use ACTIVE or ARCHIVED")),
    })
}

pub(super) async fn create(control: &Control, request: CreateProjectRequest) -> Answer<CreateProjectResponse> {
    let sent = request.project.ok_or_else(|| invalid("project: is required"))?;
    let org = control.org(&sent.org);
    Scope::new(&org, &sent.id, "domain").map_err(wire)?;
    let blank = Project {
        org: org.clone(),
        id: sent.id.clone(),
        name: sent.id.clone(),
        created_at: control.now(),
        ..Project::default()
    };
    let project = from_wire(sent, blank)?;
    let id = project.id.clone();
    control.ensure_domains_of(&org).await.map_err(wire)?;
    if control.store().create_project(project).await.map_err(wire)? {
        Ok(CreateProjectResponse::default())
    } else {
        Err(ConnectError::new(ErrorCode::AlreadyExists, format!("project {id} exists already")))
    }
}

pub(super) async fn update(control: &Control, request: UpdateProjectRequest) -> Answer<UpdateProjectResponse> {
    let sent = request.project.ok_or_else(|| invalid("project: is required"))?;
    let org = control.org(&sent.org);
    Scope::new(&org, &sent.id, "domain").map_err(wire)?;
    let known = control.existing_project(&org, &sent.id).await?;
    let project = from_wire(sent, known)?;
    let id = project.id.clone();
    if control.store().update_project(project).await.map_err(wire)? {
        Ok(UpdateProjectResponse::default())
    } else {
        Err(no_project(&id))
    }
}

pub(super) async fn get(control: &Control, request: GetProjectRequest) -> Answer<GetProjectResponse> {
    if request.id.is_empty() {
        return Err(invalid("id: is required"));
    }
    let org = control.org(&request.org);
    let project = control.existing_project(&org, &request.id).await?;
    let domains = control.domains(&org).await?;
    Ok(GetProjectResponse { project: to_wire(project, &domains).into(), ..Default::default() })
}

pub(super) async fn list(control: &Control, request: ListProjectsRequest) -> Answer<ListProjectsResponse> {
    let keep = parse_filters(&request.filters)?;
    let order = Order::of(request.sort_by.as_option())?;
    let after = read_token(&request.token)?;
    let org = control.org(&request.org);
    let mut projects = control.store().projects(&org).await.map_err(wire)?;
    projects.retain(|p| keep.iter().all(|f| f.holds(p)));
    let limit = if request.limit == 0 { MAX_PAGE } else { (request.limit as usize).min(MAX_PAGE) };
    let (page, token) = page(projects, order, after, limit);
    let domains = control.domains(&org).await?;
    let page = page.into_iter().map(|p| to_wire(p, &domains)).collect();
    Ok(ListProjectsResponse {
        projects: Projects { projects: page, token, ..Default::default() }.into(),
        ..Default::default()
    })
}

/// A project's place in a list: what the list is sorted by, and its identifier, which no two have in common.
type Place = (i64, String, String);

#[derive(Clone, Copy)]
enum By {
    Id,
    Name,
    CreatedAt,
}

#[derive(Clone, Copy)]
struct Order {
    by: By,
    descending: bool,
}

impl Order {
    fn of(sort: Option<&Sort>) -> Answer<Self> {
        let Some(sort) = sort.filter(|s| !s.key.is_empty()) else { return Ok(Self { by: By::Id, descending: false }) };
        let by = match sort.key.as_str() {
            "id" | "identifier" => By::Id,
            "name" => By::Name,
            "created_at" => By::CreatedAt,
            other => {
                return Err(invalid(format!("sort_by.key: {:?} is not one of id, name, created_at", shortened(other))));
            }
        };
        Ok(Self { by, descending: sort.direction.as_known() == Some(Direction::DESCENDING) })
    }

    fn place(self, project: &Project) -> Place {
        match self.by {
            By::Id => (0, String::new(), project.id.clone()),
            By::Name => (0, project.name.clone(), project.id.clone()),
            By::CreatedAt => (project.created_at.as_micros(), String::new(), project.id.clone()),
        }
    }
}

/// The projects after a place, and the token of the next page. Neither skips nor repeats what was there all the time.
fn page(mut projects: Vec<Project>, order: Order, after: Option<Place>, limit: usize) -> (Vec<Project>, String) {
    projects.sort_by_cached_key(|p| order.place(p));
    if order.descending {
        projects.reverse();
    }
    if let Some(after) = after {
        projects.retain(|p| if order.descending { order.place(p) < after } else { order.place(p) > after });
    }
    let more = projects.len() > limit;
    projects.truncate(limit);
    let last = projects.last().filter(|_| more).and_then(|p| serde_json::to_string(&order.place(p)).ok());
    let token = last.map(|place| ListQuery::token(PROJECTS, Position::After(vec![Cursor::Text(place)], 0)));
    (projects, token.unwrap_or_default())
}

/// What tells tokens of this list from those of others.
const PROJECTS: u64 = 1;

fn read_token(token: &str) -> Answer<Option<Place>> {
    let query = ListQuery { token: token.to_owned(), ..ListQuery::newest(Vec::new(), 0) };
    match query.position(PROJECTS).map_err(wire)? {
        Position::Start => Ok(None),
        Position::After(values, _) => match values.as_slice() {
            [Cursor::Text(place)] => serde_json::from_str(place).map(Some).map_err(|_| wire(StoreError::BadToken)),
            _ => Err(wire(StoreError::BadToken)),
        },
        Position::Kept { .. } => Err(wire(StoreError::BadToken)),
    }
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
            "archived" => is_archived(project).to_string(),
            "state" => project.state.to_string(),
            "name" => project.name.clone(),
            "description" => project.description.clone(),
            _ => project.id.clone(),
        };
        let found = self.values.iter().any(|v| if self.part { actual.contains(v) } else { &actual == v });
        found != self.negate
    }
}

/// Parses `eq(state, 0)+contains(name, x)`: what the CLI sends. Unless a filter is about the state, archived projects are
/// left out.
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
        let values: Vec<_> = values.split(';').map(|v| v.trim().to_owned()).collect();
        if field == "state"
            && let Some(bad) = values.iter().find(|v| v.parse::<i32>().is_err())
        {
            return Err(invalid(format!("filters: {:?} is not the number of a state", shortened(bad))));
        }
        terms.push(Term { negate, part, field, values });
    }
    if terms.iter().all(|t| t.field != "state") {
        let values = vec![true.to_string()];
        terms.push(Term { negate: true, part: false, field: "archived".to_owned(), values });
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
        assert_eq!(keeps("value_in(id, a;b)"), [true, false], "archived ones are shown when asked for only");
        assert_eq!(keeps("value_in(id, a;b)+value_in(state, 0;1)"), [true, true]);
        assert_eq!(keeps("ne(state, 0)+ne(id, a)"), [false, true]);
        assert_eq!(keeps("contains(name, x)"), [false, false]);
        for bad in ["eq(state", "eq(secret, 1)", "eq(archived, true)", "eq(state, archived)", "like(id, a)"] {
            assert!(parse_filters(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_neither_skip_nor_repeat() {
        let project = |id: &str, at: i64| Project {
            id: id.into(),
            name: id.to_uppercase(),
            created_at: aloft_core::Time::from_micros(at),
            ..Project::default()
        };
        let mut there: Vec<_> = (0..10i64).map(|n| project(&format!("p{n}"), n / 3)).collect();
        for by in [By::Id, By::Name, By::CreatedAt] {
            for descending in [false, true] {
                let order = Order { by, descending };
                let (mut seen, mut token, mut late) = (Vec::new(), String::new(), 0);
                loop {
                    let (rows, next) = page(there.clone(), order, read_token(&token).unwrap(), 3);
                    seen.extend(rows.into_iter().map(|p| p.id).filter(|id| id.starts_with('p')));
                    // One more at the front and one at the end, between two pages.
                    there.extend([project(&format!("a{late}"), -1), project(&format!("z{late}"), 99)]);
                    late += 1;
                    if next.is_empty() {
                        break;
                    }
                    token = next;
                }
                let mut want: Vec<_> = (0..10).map(|n| format!("p{n}")).collect();
                if descending {
                    want.reverse();
                }
                assert_eq!(seen, want);
                there.retain(|p| p.id.starts_with('p'));
            }
        }
        assert!(read_token("W10").is_err());
    }

    #[test]
    fn only_people_s_projects_change_their_state() {
        assert!(check_state(0, 1).is_ok() && check_state(1, 0).is_ok() && check_state(2, 2).is_ok());
        assert!(check_state(0, 2).is_err() && check_state(2, 1).is_err() && check_state(0, 9).is_err());
    }
}
