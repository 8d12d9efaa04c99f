//! Values that many attempts have in common, each in memory once: the run that they belong to, the prefix that they write
//! below.

use std::{borrow::Borrow, collections::HashSet, hash::Hash, sync::Arc};

/// How many values may be there before those that nobody has any more are looked for.
const FEW: usize = 64;

/// Values that are shared by all who asked for the same.
pub(super) struct Shared<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// With how many values it is next looked for those that nobody has.
    full: usize,
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    pub(super) fn new() -> Self {
        Self { all: HashSet::new(), full: FEW }
    }

    /// The one value that is equal to `value`, made by `make` if there is none.
    pub(super) fn of(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T>
    where
        Arc<T>: Borrow<T>,
    {
        if let Some(known) = self.all.get(value) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.full {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.full = FEW.max(2 * self.all.len());
        }
        let made = make();
        self.all.insert(Arc::clone(&made));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_what_nobody_has_is_let_go() {
        let mut shared = Shared::<str>::new();
        let mut of = |text: &str| (shared.of(text, || Arc::from(text)), shared.all.len());
        let (kept, _) = of("a");
        assert!(Arc::ptr_eq(&kept, &of("a").0));
        for n in 0..10_000 {
            let (_, all) = of(&n.to_string());
            assert!(all <= FEW, "{all}");
        }
        assert!(Arc::ptr_eq(&kept, &of("a").0));
        let many: Vec<_> = (0..1000).map(|n| of(&n.to_string()).0).collect();
        assert!(many.iter().enumerate().all(|(n, one)| Arc::ptr_eq(one, &of(&n.to_string()).0)));
    }
}
