//! `aloft create|get|update|delete|undelete queue`.

use aloft_core::{DEFAULT_DEPTH, DEFAULT_QUEUE};
use aloft_proto::v1;
use clap::{Args as ClapArgs, ValueEnum};
use connectrpc::ErrorCode;

use super::{
    client::{Client, Target},
    flags::{self, Cap, Fairness, Limit, Priority},
    output::{self, Format, Value},
};
use crate::exit::Exit;

/// Times that a change is made anew because another one came in between.
const MAX_TRIES: usize = 5;

/// What a queue declares.
#[derive(ClapArgs)]
struct Declared {
    /// Most runs whose root has started and not ended. `none` for no limit, 0 forbids.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    run_concurrency: Option<Limit>,

    /// Most actions that run at a time; one with unfinished children does not count. `none` for no limit, 0 forbids.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    action_concurrency: Option<Limit>,

    /// Most actions that wait or run: one more is refused. `none` for 10000.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    depth: Option<Limit>,

    /// How much of memory, cpu or gpu the actions that run at a time may ask for together, as memory=8Gi; may be given
    /// several times. `none` for no limit.
    #[arg(long, value_name = "WHAT=AMOUNT", value_delimiter = ',')]
    max_resources: Vec<Cap>,

    /// Which queue goes first when there is room for one; medium if nobody says.
    #[arg(long, value_enum)]
    priority: Option<Priority>,

    /// Which of its runs goes first; round-robin if nobody says.
    #[arg(long, value_enum)]
    fairness: Option<Fairness>,
}

impl Declared {
    /// Writes what was named into `spec`.
    fn apply(&self, spec: &mut v1::QueueSpec) {
        for (limit, named) in [
            (&mut spec.run_concurrency, self.run_concurrency),
            (&mut spec.action_concurrency, self.action_concurrency),
            (&mut spec.depth, self.depth),
        ] {
            if let Some(Limit(named)) = named {
                *limit = named;
            }
        }
        if !self.max_resources.is_empty() {
            let mut caps = spec.max_resources.as_option().cloned().unwrap_or_default();
            self.max_resources.iter().for_each(|cap| cap.apply(&mut caps));
            spec.max_resources = Some(caps).into();
        }
        if let Some(priority) = self.priority {
            spec.priority = priority.to_wire().into();
        }
        if let Some(fairness) = self.fairness {
            spec.fairness = fairness.to_wire().into();
        }
    }

    fn names_something(&self) -> bool {
        let Self { run_concurrency, action_concurrency, depth, max_resources, priority, fairness } = self;
        run_concurrency.or(*action_concurrency).or(*depth).is_some()
            || !max_resources.is_empty()
            || priority.is_some()
            || fairness.is_some()
    }
}

/// Arguments of `aloft create queue`.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  aloft create queue bulk --action-concurrency 10 --max-resources memory=8Gi --priority low"
)]
pub(crate) struct CreateArgs {
    /// Its name: letters, digits, '-', '_' and '.'.
    name: String,

    #[command(flatten)]
    declared: Declared,

    #[command(flatten)]
    target: Target,
}

/// Arguments of `aloft get queue`.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  aloft get queue --state active -o json")]
pub(crate) struct GetArgs {
    /// Only this one, also if it is deleted.
    name: Option<String>,

    /// Only queues in this state; may be given several times.
    #[arg(long, value_enum, conflicts_with = "name")]
    state: Vec<State>,

    /// Deleted queues too.
    #[arg(long, conflicts_with = "name")]
    deleted: bool,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    target: Target,
}

/// Arguments of `aloft update queue`.
#[derive(ClapArgs)]
#[command(
    group = clap::ArgGroup::new("changes").multiple(true).required(true).args([
        "run_concurrency", "action_concurrency", "depth", "max_resources", "priority", "fairness", "state",
    ]),
    override_usage = "aloft update queue <NAME> <OPTIONS>...",
    after_help = "Example:\n  aloft update queue bulk --action-concurrency none --state draining"
)]
pub(crate) struct UpdateArgs {
    /// Its name.
    name: String,

    #[command(flatten)]
    declared: Declared,

    /// Whether it takes work. A draining queue hands out what it has, and is drained when nothing of it is left.
    #[arg(long, value_enum)]
    state: Option<WantedState>,

    #[command(flatten)]
    target: Target,
}

/// Arguments of `aloft delete queue`.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  aloft update queue bulk --state draining\n  aloft delete queue bulk")]
pub(crate) struct DeleteArgs {
    /// Its name.
    name: String,

    #[command(flatten)]
    target: Target,
}

/// Arguments of `aloft undelete queue`.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  aloft undelete queue bulk\n  aloft update queue bulk --state active")]
pub(crate) struct UndeleteArgs {
    /// Its name.
    name: String,

    #[command(flatten)]
    target: Target,
}

/// A state that lists can be asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Takes work.
    Active,
    /// Takes none, and still has some.
    Draining,
    /// Takes none and has none.
    Drained,
}

/// A state that a queue can be put in.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WantedState {
    /// Take work.
    Active,
    /// Take no more work.
    Draining,
}

fn id(client: &Client, name: &str) -> v1::QueueId {
    v1::QueueId { org: client.org.clone(), name: name.to_owned(), ..Default::default() }
}

pub(crate) async fn create(args: CreateArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let mut spec = v1::QueueSpec::default();
    args.declared.apply(&mut spec);
    let request =
        v1::CreateQueueRequest { id: id(&client, &args.name).into(), spec: spec.into(), ..Default::default() };
    let answer: v1::CreateQueueResponse = client.call("/aloft.v1.QueueService/CreateQueue", request).await?;
    let name = &args.name;
    output::say(&match (answer.created, shown_state(&answer.queue)) {
        (true, _) => format!("Created queue {name}."),
        (false, "active") => format!("Queue {name} exists already, exactly so."),
        (false, state) => format!("Queue {name} exists already, exactly so, and is {state}."),
    })
}

async fn fetch(client: &Client, name: &str) -> Result<v1::Queue, Exit> {
    let request = v1::GetQueueRequest { id: id(client, name).into(), ..Default::default() };
    let answer: v1::GetQueueResponse = client.call("/aloft.v1.QueueService/GetQueue", request).await?;
    Ok(answer.queue.into_option().unwrap_or_default())
}

pub(crate) async fn get(args: GetArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    if let Some(name) = &args.name {
        return output::print_one(args.output, &fetch(&client, name).await?, HEADER, row, document);
    }
    let states = args.state.iter().map(|state| match state {
        State::Active => v1::QueueState::Active,
        State::Draining => v1::QueueState::Draining,
        State::Drained => v1::QueueState::Drained,
    });
    let mut request = v1::ListQueuesRequest {
        org: client.org.clone(),
        states: states.map(Into::into).collect(),
        include_deleted: args.deleted,
        limit: 1000,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page: v1::ListQueuesResponse = client.call("/aloft.v1.QueueService/ListQueues", request.clone()).await?;
        found.extend(page.queues);
        if page.token.is_empty() {
            break;
        }
        request.token = page.token;
    }
    output::print_list(args.output, &found, HEADER, row, document)
}

pub(crate) async fn update(args: UpdateArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let before = fetch(&client, &args.name).await?.generation;
    let mut after = before;
    if args.declared.names_something() {
        after = declare(&client, &args.name, &args.declared).await?.generation;
    }
    if let Some(wanted) = args.state {
        let state = match wanted {
            WantedState::Active => v1::QueueState::Active,
            WantedState::Draining => v1::QueueState::Draining,
        };
        let request = v1::UpdateQueueStateRequest {
            id: id(&client, &args.name).into(),
            state: state.into(),
            ..Default::default()
        };
        let answer: v1::UpdateQueueStateResponse =
            client.call("/aloft.v1.QueueService/UpdateQueueState", request).await?;
        after = answer.queue.into_option().unwrap_or_default().generation;
    }
    let name = &args.name;
    output::say(&match after == before {
        true => format!("Queue {name} is so already."),
        false => format!("Updated queue {name}."),
    })
}

/// Changes what the queue declares where `declared` names something, whoever else changes it at the same time.
async fn declare(client: &Client, name: &str, declared: &Declared) -> Result<v1::Queue, Exit> {
    let mut tries = 0;
    loop {
        tries += 1;
        let there = fetch(client, name).await?;
        let mut spec = there.spec.into_option().unwrap_or_default();
        declared.apply(&mut spec);
        let request = v1::UpdateQueueRequest {
            id: id(client, name).into(),
            spec: spec.into(),
            expected_generation: Some(there.generation),
            ..Default::default()
        };
        match client.call::<_, v1::UpdateQueueResponse>("/aloft.v1.QueueService/UpdateQueue", request).await {
            Ok(answer) => return Ok(answer.queue.into_option().unwrap_or_default()),
            Err(refused) if refused.code == ErrorCode::Aborted && tries < MAX_TRIES => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

pub(crate) async fn delete(args: DeleteArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let request = v1::DeleteQueueRequest { id: id(&client, &args.name).into(), ..Default::default() };
    let _: v1::DeleteQueueResponse = client.call("/aloft.v1.QueueService/DeleteQueue", request).await?;
    let name = &args.name;
    output::say(&format!("Queue {name} is deleted. Bring it back with `aloft undelete queue {name}`."))
}

pub(crate) async fn undelete(args: UndeleteArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let request = v1::UndeleteQueueRequest { id: id(&client, &args.name).into(), ..Default::default() };
    let answer: v1::UndeleteQueueResponse = client.call("/aloft.v1.QueueService/UndeleteQueue", request).await?;
    let name = &args.name;
    output::say(&match shown_state(&answer.queue) {
        "active" => format!("Queue {name} is there, and active."),
        state => {
            format!(
                "Queue {name} is there, and {state}. Let it take work with `aloft update queue {name} --state active`."
            )
        }
    })
}

const HEADER: &[&str] = &[
    "NAME",
    "STATE",
    "PRIORITY",
    "FAIRNESS",
    "WAITING",
    "RUNNING",
    "RUNS",
    "MAX-RUNS",
    "MAX-ACTIONS",
    "DEPTH",
    "MAX-RESOURCES",
];

fn shown_state(queue: &v1::Queue) -> &'static str {
    if queue.deleted_at.is_set() {
        return "deleted";
    }
    match queue.state.as_known() {
        Some(v1::QueueState::Active) => "active",
        Some(v1::QueueState::Draining) => "draining",
        Some(v1::QueueState::Drained) => "drained",
        Some(v1::QueueState::Unspecified) | None => "unknown",
    }
}

/// The depth in force: the default queue has no limits at all.
fn depth(queue: &v1::Queue) -> Option<u32> {
    let unset = (queue.id.name != DEFAULT_QUEUE).then_some(DEFAULT_DEPTH);
    queue.spec.depth.or(unset)
}

fn row(queue: &v1::Queue) -> Vec<String> {
    let (spec, load) = (&queue.spec, &queue.load);
    let caps: Vec<_> =
        flags::shown_caps(&spec.max_resources).into_iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    vec![
        queue.id.name.clone(),
        shown_state(queue).to_owned(),
        flags::shown_priority(spec.priority).to_owned(),
        flags::shown_fairness(spec.fairness).to_owned(),
        load.waiting_actions.to_string(),
        load.running_actions.to_string(),
        load.running_runs.to_string(),
        flags::shown_limit(spec.run_concurrency),
        flags::shown_limit(spec.action_concurrency),
        flags::shown_limit(depth(queue)),
        if caps.is_empty() { "-".to_owned() } else { caps.join(",") },
    ]
}

fn document(queue: &v1::Queue) -> Value {
    let (spec, load) = (&queue.spec, &queue.load);
    let caps = flags::shown_caps(&spec.max_resources);
    let created_by = Some(queue.created_by.as_str()).filter(|by| !by.is_empty());
    Value::Object(vec![
        ("org", queue.id.org.as_str().into()),
        ("name", queue.id.name.as_str().into()),
        ("state", shown_state(queue).into()),
        ("priority", flags::shown_priority(spec.priority).into()),
        ("fairness", flags::shown_fairness(spec.fairness).into()),
        ("run_concurrency", spec.run_concurrency.into()),
        ("action_concurrency", spec.action_concurrency.into()),
        ("depth", depth(queue).into()),
        ("max_resources", Value::Object(caps.into_iter().map(|(name, amount)| (name, amount.into())).collect())),
        ("waiting_actions", load.waiting_actions.into()),
        ("running_actions", load.running_actions.into()),
        ("running_runs", load.running_runs.into()),
        ("generation", queue.generation.into()),
        ("created_at", output::instant(queue.created_at.as_option())),
        ("created_by", created_by.into()),
        ("updated_at", output::instant(queue.updated_at.as_option())),
        ("deleted_at", output::instant(queue.deleted_at.as_option())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Declared {
        Declared {
            run_concurrency: None,
            action_concurrency: None,
            depth: None,
            max_resources: Vec::new(),
            priority: None,
            fairness: None,
        }
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let caps = v1::ResourceCaps { memory_bytes: Some(1), gpu: Some(2), ..Default::default() };
        let spec = v1::QueueSpec {
            run_concurrency: Some(1),
            depth: Some(3),
            max_resources: caps.into(),
            priority: v1::QueuePriority::High.into(),
            ..Default::default()
        };
        let mut same = spec.clone();
        none().apply(&mut same);
        assert_eq!(same, spec);
        assert!(!none().names_something());
        let named = Declared { depth: Some(Limit(None)), max_resources: vec![Cap::Memory(None)], ..none() };
        assert!(named.names_something());
        let mut changed = spec.clone();
        named.apply(&mut changed);
        assert_eq!((changed.run_concurrency, changed.depth), (Some(1), None));
        assert_eq!((changed.max_resources.memory_bytes, changed.max_resources.gpu), (None, Some(2)));
        assert_eq!(changed.priority, spec.priority);
    }

    #[test]
    fn the_default_queue_shows_no_limits() {
        let named = |name: &str| v1::Queue {
            id: v1::QueueId { name: name.to_owned(), ..Default::default() }.into(),
            ..Default::default()
        };
        assert_eq!((depth(&named("default")), depth(&named("bulk"))), (None, Some(10_000)));
    }
}
