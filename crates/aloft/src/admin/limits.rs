//! `aloft get|update limits`: what is limited per project and domain.

use aloft_proto::v1;
use clap::Args as ClapArgs;
use connectrpc::ErrorCode;

use super::{
    client::{Client, Target},
    flags::{self, Limit},
    output::{self, Format, Value},
};
use crate::exit::Exit;

/// Times that a change is made anew because another one came in between.
const MAX_TRIES: usize = 5;

/// What a table shows for limits of all domains of a project together.
const ALL_DOMAINS: &str = "(all)";

/// Arguments of `aloft get limits`.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  aloft get limits flytesnacks --domain production -o json")]
pub(crate) struct GetArgs {
    /// Only this project.
    project: Option<String>,

    /// Only this domain of the project.
    #[arg(long, requires = "project")]
    domain: Option<String>,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    target: Target,
}

/// Arguments of `aloft update limits`.
#[derive(ClapArgs)]
#[command(
    group = clap::ArgGroup::new("changes").multiple(true).required(true).args([
        "run_concurrency", "action_concurrency", "depth",
    ]),
    override_usage = "aloft update limits <PROJECT> <OPTIONS>...",
    after_help = "Example:\n  aloft update limits flytesnacks --domain production --action-concurrency 50 --depth none"
)]
pub(crate) struct UpdateArgs {
    /// The project.
    project: String,

    /// Limit this domain of the project, not all of them together.
    #[arg(long)]
    domain: Option<String>,

    /// Most runs whose root has started and not ended. `none` for no limit, 0 forbids.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    run_concurrency: Option<Limit>,

    /// Most actions that run at a time; one with unfinished children does not count. `none` for no limit, 0 forbids.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    action_concurrency: Option<Limit>,

    /// Most actions that wait or run: one more is refused. `none` for no limit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    depth: Option<Limit>,

    #[command(flatten)]
    target: Target,
}

fn place(client: &Client, project: &str, domain: Option<&str>) -> v1::LimitedPlace {
    v1::LimitedPlace {
        org: client.org.clone(),
        project: project.to_owned(),
        domain: domain.unwrap_or_default().to_owned(),
        ..Default::default()
    }
}

async fn fetch(client: &Client, project: &str, domain: Option<&str>) -> Result<v1::ProjectLimits, Exit> {
    let request = v1::GetProjectLimitsRequest { place: place(client, project, domain).into(), ..Default::default() };
    let answer: v1::GetProjectLimitsResponse = client.call("/aloft.v1.LimitsService/GetProjectLimits", request).await?;
    Ok(answer.limits.into_option().unwrap_or_default())
}

pub(crate) async fn get(args: GetArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    if let (Some(project), Some(domain)) = (&args.project, &args.domain) {
        let limits = fetch(&client, project, Some(domain)).await?;
        return output::print_one(args.output, &limits, HEADER, row, document);
    }
    let mut request = v1::ListProjectLimitsRequest {
        org: client.org.clone(),
        project: args.project.unwrap_or_default(),
        limit: 1000,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page: v1::ListProjectLimitsResponse =
            client.call("/aloft.v1.LimitsService/ListProjectLimits", request.clone()).await?;
        found.extend(page.limits);
        if page.token.is_empty() {
            break;
        }
        request.token = page.token;
    }
    output::print_list(args.output, &found, HEADER, row, document)
}

pub(crate) async fn update(args: UpdateArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let (project, domain) = (args.project.as_str(), args.domain.as_deref());
    let mut tries = 0;
    let (before, after) = loop {
        tries += 1;
        let there = fetch(&client, project, domain).await?;
        let mut spec = there.spec.into_option().unwrap_or_default();
        for (limit, named) in [
            (&mut spec.run_concurrency, args.run_concurrency),
            (&mut spec.action_concurrency, args.action_concurrency),
            (&mut spec.depth, args.depth),
        ] {
            if let Some(Limit(named)) = named {
                *limit = named;
            }
        }
        let request = v1::UpdateProjectLimitsRequest {
            place: place(&client, project, domain).into(),
            spec: spec.into(),
            expected_generation: Some(there.generation),
            ..Default::default()
        };
        let procedure = "/aloft.v1.LimitsService/UpdateProjectLimits";
        match client.call::<_, v1::UpdateProjectLimitsResponse>(procedure, request).await {
            Ok(answer) => break (there.generation, answer.limits.generation),
            Err(refused) if refused.code == ErrorCode::Aborted && tries < MAX_TRIES => {}
            Err(refused) => return Err(refused.into()),
        }
    };
    let what = match domain {
        Some(domain) => format!("domain {domain} of project {project}"),
        None => format!("project {project}"),
    };
    output::say(&match after == before {
        true => format!("The limits of {what} are so already."),
        false => format!("Updated the limits of {what}."),
    })
}

const HEADER: &[&str] = &["PROJECT", "DOMAIN", "MAX-RUNS", "MAX-ACTIONS", "DEPTH"];

fn domain(limits: &v1::ProjectLimits) -> Option<&str> {
    Some(limits.place.domain.as_str()).filter(|d| !d.is_empty())
}

fn row(limits: &v1::ProjectLimits) -> Vec<String> {
    let spec = &limits.spec;
    vec![
        limits.place.project.clone(),
        domain(limits).unwrap_or(ALL_DOMAINS).to_owned(),
        flags::shown_limit(spec.run_concurrency),
        flags::shown_limit(spec.action_concurrency),
        flags::shown_limit(spec.depth),
    ]
}

fn document(limits: &v1::ProjectLimits) -> Value {
    let spec = &limits.spec;
    let updated_by = Some(limits.updated_by.as_str()).filter(|by| !by.is_empty());
    Value::Object(vec![
        ("org", limits.place.org.as_str().into()),
        ("project", limits.place.project.as_str().into()),
        ("domain", domain(limits).into()),
        ("run_concurrency", spec.run_concurrency.into()),
        ("action_concurrency", spec.action_concurrency.into()),
        ("depth", spec.depth.into()),
        ("generation", limits.generation.into()),
        ("updated_at", output::instant(limits.updated_at.as_option())),
        ("updated_by", updated_by.into()),
    ])
}
