//! What lives now: read from the store when it is asked for, but not more often than every few seconds, however many ask.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use aloft_control::Control;
use aloft_store::{Census, QueueLoad};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

/// How long a count is good.
const FRESH: Duration = Duration::from_secs(5);

/// Longest wait for the store; without an answer these gauges are left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most queues that are told apart. There are no more than an administrator makes.
const MOST_QUEUES: usize = 200;

/// Reads one number of a queue.
type Read = fn(&QueueLoad) -> u64;

/// A count: when it was made, and what it was; `None` if it failed.
type Count = (Instant, Option<Census>);

/// The last count.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    last: Arc<Mutex<Option<Count>>>,
    /// One counts at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Live {
    /// Counts again, if the last count is no longer good.
    pub(super) async fn refresh(&self, control: &Control) {
        let _turn = self.turn.lock().await;
        if self.last.lock().as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH) {
            return;
        }
        let census = match tokio::time::timeout(PATIENCE, control.census()).await {
            Ok(Ok(census)) => Some(census),
            Ok(Err(error)) => {
                tracing::debug!(%error, "what lives cannot be counted");
                None
            }
            Err(_) => None,
        };
        *self.last.lock() = Some((Instant::now(), census));
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some((_, Some(census))) = self.last.lock().clone() else { return Ok(()) };
        let single = [
            ("aloft_runs_live", "Runs that have not ended", census.runs),
            ("aloft_actions_live", "Actions that have not ended", census.actions),
            ("aloft_workers", "Workers that hold attempts", census.workers),
        ];
        for (name, help, value) in single {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let by_queue: [(_, _, Read); 3] = [
            ("aloft_queue_waiting", "Actions that wait for a worker", |q| q.waiting),
            ("aloft_queue_running", "Actions that a worker holds", |q| q.running),
            ("aloft_queue_runs", "Runs of which the root has been handed out and has not ended", |q| q.runs),
        ];
        for (name, help, value) in by_queue {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((org, queue), load) in census.queues.iter().take(MOST_QUEUES) {
                let labels = [("org", org.as_str()), ("queue", queue.as_str())];
                ConstGauge::new(value(load)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
