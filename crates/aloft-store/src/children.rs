//! The children of an action in windows: what is on a screen, however many there are.

use aloft_core::{ActionName, ActionState, Phase};

/// How many actions are in each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseCounts([u64; Phase::ALL.len()]);

impl PhaseCounts {
    /// Counts in the order of [`Phase::ALL`].
    pub fn new(counts: [u64; Phase::ALL.len()]) -> Self {
        Self(counts)
    }

    /// How many are in `phase`.
    pub fn of(&self, phase: Phase) -> u64 {
        self.0[index(phase)]
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The phases that any are in, with how many.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, u64)> {
        Phase::ALL.into_iter().zip(self.0).filter(|(_, n)| *n > 0)
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, n)| *sum += n);
    }

    /// As they must be shown below an action that has ended: what is live by its own record was aborted with that (design
    /// rule 5).
    #[must_use]
    pub fn shown_under_ended(mut self) -> Self {
        let live: u64 = Phase::ALL.into_iter().filter(|p| !p.is_terminal()).map(|p| self.of(p)).sum();
        for phase in Phase::ALL.into_iter().filter(|p| !p.is_terminal()) {
            self.0[index(phase)] = 0;
        }
        self.0[index(Phase::Aborted)] += live;
        self
    }
}

fn index(phase: Phase) -> usize {
    phase as usize - 1
}

/// The children of one action that were started in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildGroup {
    /// Its name; empty for those in none.
    pub name: String,
    /// Its members by phase.
    pub counts: PhaseCounts,
}

/// A window on the groups of an action's children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildGroups {
    /// The number of the last event of the run that it includes.
    pub seq: u64,
    /// All children by phase, those outside the window too.
    pub counts: PhaseCounts,
    /// The groups, by name.
    pub groups: Vec<ChildGroup>,
    /// Whether there are groups after these.
    pub more: bool,
}

/// A place among the children of an action: they are in the order of their groups' names, within a group in the order of
/// their creation. Row numbers are an engine's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildPlace {
    /// The group.
    pub group: String,
    /// The row.
    pub row: i64,
}

/// A child in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildRow {
    /// Where it is.
    pub place: ChildPlace,
    /// As it must be shown.
    pub state: ActionState,
    /// Its own children by phase.
    pub children: PhaseCounts,
}

/// A window on the children of an action.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildWindow {
    /// The number of the last event of the run that it includes.
    pub seq: u64,
    /// The children.
    pub rows: Vec<ChildRow>,
    /// Whether there are children after these.
    pub more: bool,
}

/// Which children a window shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildQuery {
    /// Whose.
    pub parent: ActionName,
    /// Only those of this group.
    pub group: Option<String>,
    /// Those after this place.
    pub after: Option<ChildPlace>,
    /// How many at most.
    pub limit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_below_an_end_is_shown_as_aborted() {
        let mut counts = [0; Phase::ALL.len()];
        counts[index(Phase::Running)] = 3;
        counts[index(Phase::Paused)] = 1;
        counts[index(Phase::Aborted)] = 1;
        counts[index(Phase::Succeeded)] = 2;
        let shown = PhaseCounts::new(counts).shown_under_ended();
        assert_eq!(shown.iter().collect::<Vec<_>>(), [(Phase::Succeeded, 2), (Phase::Aborted, 5)]);
        assert_eq!(shown.total(), 7);
    }
}
