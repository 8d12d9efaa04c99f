//! What an action adds to what its queue holds. Engines keep the sums, so that a look at them costs nothing.

use aloft_core::{ActionState, Asks, Load};

/// What one action adds, or many together; in the columns of an engine's table of sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Actions that wait for a worker.
    pub waiting: i64,
    /// Actions that a worker holds.
    pub held: i64,
    /// Those of them that count against limits.
    pub counted: i64,
    /// Memory that these ask for, in bytes.
    pub memory: i64,
    /// Processors, in thousandths.
    pub cpu: i64,
    /// Accelerators.
    pub gpu: i64,
    /// Runs whose root has been handed out and has not ended.
    pub runs: i64,
}

impl Share {
    /// What `state` adds, which has `open_children` that have not ended. `started` says whether the root of its run has been
    /// handed out.
    pub fn of(state: &ActionState, open_children: i64, started: bool) -> Self {
        if state.phase.is_terminal() || state.queue().is_none() {
            return Self::default();
        }
        let held = state.live_lease().is_some();
        let counted = state.counts(open_children.max(0).unsigned_abs());
        let asks = state.task().filter(|_| counted).map(|t| t.asks).unwrap_or_default();
        let amount = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            waiting: i64::from(!held),
            held: i64::from(held),
            counted: i64::from(counted),
            memory: amount(asks.memory),
            cpu: amount(asks.cpu),
            gpu: amount(asks.gpu),
            runs: i64::from(state.name.is_root() && started),
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.held += other.held;
        self.counted += other.counted;
        self.memory += other.memory;
        self.cpu += other.cpu;
        self.gpu += other.gpu;
        self.runs += other.runs;
    }

    /// Takes `other` away.
    pub fn take(&mut self, other: Self) {
        self.waiting -= other.waiting;
        self.held -= other.held;
        self.counted -= other.counted;
        self.memory -= other.memory;
        self.cpu -= other.cpu;
        self.gpu -= other.gpu;
        self.runs -= other.runs;
    }

    /// What of it limits concern.
    pub fn load(&self) -> Load {
        let amount = |n: i64| u64::try_from(n).unwrap_or(0);
        let asks = Asks { memory: amount(self.memory), cpu: amount(self.cpu), gpu: amount(self.gpu) };
        Load { runs: amount(self.runs), actions: amount(self.counted), asks }
    }
}
