//! A server to put load on: the real control plane on a real store behind a port, with a worker that does nothing.

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use aloft_control::{Control, Limits, Settings};
use aloft_core::Time;
use aloft_sim::plane::MemoryPlane;
use aloft_store::Store;
use aloft_store_postgres::PostgresStore;
use aloft_store_sqlite::SqliteStore;
use anyhow::Result;
use axum::{Json, Router, extract::State, routing::get, serve::ListenerExt as _};
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    client::PROJECT,
    machine, report,
    worker::{self, Handed, Seen},
};

/// What is served.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// The path of a SQLite file, or the address of a Postgres.
    #[arg(long)]
    store: String,
    /// Without a worker.
    #[arg(long)]
    idle: bool,
    /// Whether attempts are reported as running before they are reported as ended.
    #[arg(long)]
    running: bool,
    /// Whether to remember when each action was handed out and ended.
    #[arg(long)]
    record: bool,
}

/// Opens the store at `url`.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Store>> {
    let clock = Arc::new(|| Time::from_micros(machine::micros()));
    if url.starts_with("postgres") {
        return Ok(Arc::new(PostgresStore::open(url, &aloft_store_postgres::Options::default(), clock).await?));
    }
    Ok(Arc::new(SqliteStore::open(Path::new(url), clock)?))
}

/// Serves until it is killed. The first line says the port.
pub(crate) async fn serve(options: Options) -> Result<()> {
    let store = open(&options.store).await?;
    let clock = Arc::new(|| Time::from_micros(machine::micros()));
    let settings = Settings::local("http://localhost:0".to_owned());
    let plane = Arc::new(MemoryPlane::default());
    let control = Control::new(store, plane, clock, settings, CancellationToken::new(), [7; 32]);
    control.ensure_domains().await?;
    control.ensure_project(PROJECT).await?;
    let seen = Arc::new(Seen::new(options.record));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let service = aloft_control::service(aloft_control::router(&control), Limits::default());
    let app = Router::new().route("/load/handed", get(handed)).with_state(Arc::clone(&seen)).fallback_service(service);
    if !options.idle {
        tokio::spawn(worker::work(control.clone(), seen, options.running));
    }
    tokio::spawn(async move { control.run().await });
    report::say(&format!("port {port}"));
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), app).await?;
    Ok(())
}

async fn handed(State(seen): State<Arc<Seen>>) -> Json<Vec<Handed>> {
    Json(seen.take())
}
