//! What a recovering run takes over from the run it recovers.

use aloft_core::{
    ActionKind, ActionName, ActionRef, ActionState, Phase, Recovered, RecoveredTrace, Relation, RunKey, Seed,
};
use aloft_store::{StoreError, Which};

use crate::Control;

/// What the new action of a recovering run takes over.
#[derive(Default)]
pub(crate) struct Taken {
    /// Its result. It does not run then.
    pub(crate) recovered: Option<Box<Recovered>>,
    /// The traces below it, if it runs.
    pub(crate) traces: Vec<RecoveredTrace>,
}

fn ended_well(state: &ActionState) -> bool {
    matches!(state.phase, Phase::Succeeded | Phase::Recovered)
}

/// Whether both are the same work as far as their name does not say it already.
fn same_work(old: &Seed, new: &Seed) -> bool {
    match (old, new) {
        (Seed::Task(a), Seed::Task(b)) => a.task.name == b.task.name,
        (Seed::Trace(a), Seed::Trace(b)) => a.name == b.name,
        (Seed::Condition(a), Seed::Condition(b)) => a.name == b.name && a.kind == b.kind,
        _ => false,
    }
}

impl Control {
    /// What the action `name` of `run`, which is related to another as `relation` says, takes over.
    ///
    /// Actions of both runs correspond by their names, which the SDK derives from task, inputs and position. The root's
    /// name says nothing of its inputs, so it is taken over only if those are the same. A result whose data is gone is not
    /// taken over, and so computed again.
    pub(crate) async fn taken_over(
        &self,
        run: &RunKey,
        relation: Option<&Relation>,
        name: &ActionName,
        seed: &Seed,
    ) -> Result<Taken, StoreError> {
        let Some((source, forced)) = relation.and_then(|r| Some((&r.to, r.recover.as_ref()?))) else {
            return Ok(Taken::default());
        };
        // A trace is recorded with what its parent did, and goes on with: another result is not what the next attempt must
        // find. Those of the source that the parent could use it found when it was created.
        if matches!(seed, Seed::Trace(_)) {
            return Ok(Taken::default());
        }
        let found = self.store().snapshot(source, Which::One(name.clone())).await?;
        let Some(old) = found.and_then(|s| s.actions.into_iter().next()) else { return Ok(Taken::default()) };
        let same_inputs = match (&old.seed, seed) {
            (Seed::Task(a), Seed::Task(b)) if name.is_root() => a.input_uri == b.input_uri,
            _ => true,
        };
        let wanted = ended_well(&old) && !forced.contains(name) && same_work(&old.seed, seed) && same_inputs;
        if wanted && self.is_there(run, &old).await {
            let from = ActionRef { run: source.clone(), action: name.clone() };
            let recovered = Recovered { from, outputs: old.outputs, signal: old.signal };
            return Ok(Taken { recovered: Some(Box::new(recovered)), traces: Vec::new() });
        }
        Ok(Taken { recovered: None, traces: self.traces_below(run, source, forced, name).await? })
    }

    async fn traces_below(
        &self,
        run: &RunKey,
        source: &RunKey,
        forced: &[ActionName],
        parent: &ActionName,
    ) -> Result<Vec<RecoveredTrace>, StoreError> {
        let below = self.store().snapshot(source, Which::ChildrenOf(parent.clone())).await?;
        let mut traces = Vec::new();
        for state in below.into_iter().flat_map(|s| s.actions) {
            if state.kind() != ActionKind::Trace
                || state.is_tracked()
                || !ended_well(&state)
                || forced.contains(&state.name)
            {
                continue;
            }
            if !self.is_there(run, &state).await {
                continue;
            }
            if let Seed::Trace(seed) = state.seed {
                let from = ActionRef { run: source.clone(), action: state.name.clone() };
                traces.push(RecoveredTrace { action: state.name, group: state.group, seed, from });
            }
        }
        Ok(traces)
    }

    /// Whether the result of `state` can be read by `run`.
    async fn is_there(&self, run: &RunKey, state: &ActionState) -> bool {
        let uri = state.outputs.output_uri.as_str();
        if uri.is_empty() {
            // A condition, or a trace that returned nothing.
            return state.kind() != ActionKind::Task;
        }
        match self.has_outputs(run, uri).await {
            Ok(there) => there,
            Err(error) => {
                tracing::warn!(%error, run = %run, action = %state.name, "a result cannot be looked at, it is computed again");
                false
            }
        }
    }
}
