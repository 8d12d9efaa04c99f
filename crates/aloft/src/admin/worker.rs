//! `aloft get workers`: who runs tasks.

use aloft_proto::v1;
use clap::Args as ClapArgs;

use super::{
    client::Target,
    output::{self, Format, Value},
};
use crate::exit::Exit;

/// Arguments of `aloft get workers`.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  aloft get workers -o json")]
pub(crate) struct GetArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(flatten)]
    target: Target,
}

pub(crate) async fn get(args: GetArgs) -> Result<(), Exit> {
    let client = args.target.client()?;
    let answer: v1::ListWorkersResponse =
        client.call("/aloft.v1.WorkerService/ListWorkers", v1::ListWorkersRequest::default()).await?;
    output::print_list(args.output, &answer.workers, HEADER, row, document)
}

const HEADER: &[&str] = &["NAME", "STATE", "HOLDS", "HOST", "VERSION", "HEARD-AT"];

fn state(worker: &v1::Worker) -> &'static str {
    match worker.state.as_known() {
        Some(v1::WorkerState::Active) => "active",
        Some(v1::WorkerState::Draining) => "draining",
        Some(v1::WorkerState::Lost) => "lost",
        _ => "unknown",
    }
}

fn row(worker: &v1::Worker) -> Vec<String> {
    let heard = worker.heard_at.as_option().and_then(|at| jiff::Timestamp::new(at.seconds, 0).ok());
    vec![
        worker.name.clone(),
        state(worker).to_owned(),
        worker.held.to_string(),
        worker.host.clone(),
        worker.version.clone(),
        heard.map(|at| at.to_string()).unwrap_or_default(),
    ]
}

fn document(worker: &v1::Worker) -> Value {
    Value::Object(vec![
        ("name", worker.name.as_str().into()),
        ("state", state(worker).into()),
        ("holds", worker.held.into()),
        ("host", worker.host.as_str().into()),
        ("version", worker.version.as_str().into()),
        ("since", output::instant(worker.since.as_option())),
        ("heard_at", output::instant(worker.heard_at.as_option())),
    ])
}
