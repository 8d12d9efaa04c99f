//! Wires what listens to commits: the metrics that count them and the traces that are made of them.

use std::sync::Arc;

use aloft_control::Control;
use tokio::sync::mpsc;

use crate::{
    config::Config,
    metrics::{Counting, Listener, Metrics, Told, WAITING},
    trace,
};

/// Starts to listen, if anything wants to know. Ends with the control plane.
pub(crate) fn start(control: &Control, metrics: Option<&Arc<Metrics>>, config: &Config) {
    let runs = trace::runs(&config.tracing).map(Arc::new);
    if metrics.is_none() && runs.is_none() {
        return;
    }
    // Bounded by the listener: not by how many commits wait, but by how much there is to tell of them.
    let (sender, mut told) = mpsc::unbounded_channel();
    let listener = Arc::new(Listener::new(metrics.cloned(), sender, WAITING, runs.clone()));
    control.observe(listener.clone());
    control.measure(listener);
    let mut counting = metrics.map(|m| Counting::new(Arc::clone(m), &config.metrics));
    tokio::spawn(async move {
        while let Some((told, _room)) = told.recv().await {
            if let Some(counting) = &mut counting {
                counting.count(&told);
            }
            if let (Some(runs), Told::Seen(all)) = (&runs, &told) {
                all.iter().flat_map(|seen| &seen.ends).for_each(|(run, state)| runs.trace(run, state));
            }
        }
    });
}
