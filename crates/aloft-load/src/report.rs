//! Rows of figures: printed as they come, and kept with every single measurement.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::machine;

/// Figures with what was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    store: String,
    begun: i64,
    rows: Vec<Row>,
}

/// One figure.
#[derive(Serialize)]
struct Row {
    name: String,
    value: String,
    /// What was asked for, as `must; aim`.
    goal: String,
    /// Numbers behind the figure.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    numbers: BTreeMap<String, f64>,
    /// Every measurement of a distribution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    raw: Vec<f64>,
    /// The load average when it was printed.
    load: f64,
}

/// Milliseconds.
pub(crate) fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// The value below which a share `q` of `sorted` lies.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = ((last as f64) * q).round() as usize;
    sorted.get(at.min(last)).copied().unwrap_or(f64::NAN)
}

/// `values` in their order.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

impl Report {
    /// Nothing yet, of a server on `store`.
    pub(crate) fn new(store: &str) -> Self {
        let store = if store.starts_with("postgres") { "postgres" } else { store };
        Self { store: store.to_owned(), begun: machine::micros(), rows: Vec::new() }
    }

    fn push(&mut self, name: &str, value: String, goal: &str, numbers: BTreeMap<String, f64>, raw: Vec<f64>) {
        let load = machine::load();
        let shown = if goal.is_empty() { String::new() } else { format!("  [{goal}]") };
        crate::report::say(&format!("{:<8} {name}: {value}{shown}  (load {load:.1})", self.store));
        self.rows.push(Row { name: name.to_owned(), value, goal: goal.to_owned(), numbers, raw, load });
    }

    /// A figure with the numbers behind it.
    pub(crate) fn figure(&mut self, name: &str, value: String, goal: &str, numbers: &[(&str, f64)]) {
        let numbers = numbers.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        self.push(name, value, goal, numbers, Vec::new());
    }

    /// A distribution of milliseconds.
    ///
    /// # Errors
    /// If there is none: nothing was seen of what was measured.
    pub(crate) fn spread(&mut self, name: &str, goal: &str, values: Vec<f64>) -> Result<()> {
        anyhow::ensure!(!values.is_empty(), "{name}: none was seen");
        let values = sorted(values);
        let at = |q| quantile(&values, q);
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        let value = format!("p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms, n {}", values.len());
        let numbers = [("p50", p50), ("p99", p99), ("max", max)].map(|(name, n)| (name.to_owned(), n)).into();
        self.push(name, value, goal, numbers, values);
        Ok(())
    }

    /// Writes everything so far.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// Prints a line.
#[expect(clippy::print_stdout, reason = "figures are printed")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
