//! What the control plane keeps count of anyway, read when it is asked for.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use aloft_control::{Control, Reconciler};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

/// The control plane, once there is one.
pub(super) type Late = Arc<OnceLock<Control>>;

/// Reads it.
pub(super) struct Kept(pub(super) Late);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl Collector for Kept {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(control) = self.0.get() else { return Ok(()) };
        reconcilers(control, &mut encoder)?;
        pruned(control, &mut encoder)
    }
}

fn reconcilers(control: &Control, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let done = |of| control.work().done(of);
    let mut family = |name, help, unit: Option<&Unit>, value: &dyn Fn(Reconciler) -> f64| {
        let mut encoder = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for of in Reconciler::ALL {
            let label = [("reconciler", of.name())];
            ConstCounter::new(value(of)).encode(encoder.encode_family(&label)?)?;
        }
        Ok::<_, fmt::Error>(())
    };
    family("aloft_reconciler_passes", "Looks of a reconciler", None, &|of| done(of).passes as f64)?;
    family("aloft_reconciler_failures", "Looks of a reconciler that failed", None, &|of| done(of).failed as f64)?;
    family("aloft_reconciler_busy", "Time that a reconciler took to look", Some(&Unit::Seconds), &|of| {
        done(of).busy.as_secs_f64()
    })
}

fn pruned(control: &Control, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let pruned = control.work().pruned();
    let mut encoder = encoder.encode_descriptor(
        "aloft_retention_removed",
        "Records that were removed because runs ended long ago",
        None,
        MetricType::Counter,
    )?;
    for (kind, count) in
        [("runs", pruned.runs), ("actions", pruned.actions), ("events", pruned.events), ("blobs", pruned.blobs)]
    {
        let label = [("kind", kind)];
        ConstCounter::new(count).encode(encoder.encode_family(&label)?)?;
    }
    Ok(())
}
