//! What counts at a place: the narrowest level that says something of a setting wins; maps are merged key by key.

use std::collections::BTreeMap;

use aloft_flyteidl2::flyteidl2::core::GPUAccelerator;

use super::{Choice, Choices, Key, Level, Value};

/// What counts of one setting.
#[derive(Clone, Debug, PartialEq)]
struct Effective {
    choice: Choice,
    /// The narrowest level that had a part in it.
    level: Level,
    /// Whether what wider levels say does not count any more. Without this, putting levels together would depend on where
    /// one begins: a map that was unset and then given keys still hides the keys from above.
    closed: bool,
}

/// What counts at a place, with the level that each value comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resolved(BTreeMap<Key, Effective>);

impl Resolved {
    /// What `level` alone says. A map without keys says nothing.
    pub(crate) fn of(level: Level, choices: Choices) -> Self {
        let says_nothing = |choice: &Choice| matches!(choice, Choice::Value(Value::Map(map)) if map.is_empty());
        let kept = choices.into_iter().filter(|(_, choice)| !says_nothing(choice)).map(|(key, choice)| {
            let closed = !matches!(choice, Choice::Value(Value::Map(_)));
            (key, Effective { choice, level, closed })
        });
        Self(kept.collect())
    }

    /// These levels, widest first, as one.
    pub(crate) fn layers(levels: impl IntoIterator<Item = (Level, Choices)>) -> Self {
        levels.into_iter().fold(Self::default(), |wider, (level, choices)| Self::of(level, choices).over(wider))
    }

    /// This, and where it leaves something open what `wider` says. Associative, with nothing as its neutral element.
    pub(crate) fn over(self, wider: Self) -> Self {
        let mut result = wider.0;
        for (key, narrow) in self.0 {
            let merged = match result.remove(&key) {
                Some(wide) if !narrow.closed => narrow.added_to(wide),
                _ => narrow,
            };
            result.insert(key, merged);
        }
        Self(result)
    }

    /// Whether any setting has a value here.
    pub(crate) fn has_values(&self) -> bool {
        self.0.values().any(|e| matches!(e.choice, Choice::Value(_)))
    }

    /// Each setting that some level says something of, and the narrowest level that did.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Choice, Level)> {
        self.0.iter().map(|(key, e)| (*key, &e.choice, e.level))
    }

    fn value(&self, key: Key) -> Option<&Value> {
        match &self.0.get(&key)?.choice {
            Choice::Value(value) => Some(value),
            Choice::Unset => None,
        }
    }

    /// The text that `key` is set to.
    pub(crate) fn text(&self, key: Key) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number that `key` is set to.
    pub(crate) fn number(&self, key: Key) -> Option<i64> {
        match self.value(key)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The keys and values that `key` is set to.
    pub(crate) fn map(&self, key: Key) -> impl Iterator<Item = (&String, &String)> {
        let map = match self.value(key) {
            Some(Value::Map(map)) => Some(map),
            _ => None,
        };
        map.into_iter().flatten()
    }

    /// The accelerator that `key` is set to.
    pub(crate) fn accelerator(&self, key: Key) -> Option<&GPUAccelerator> {
        match self.value(key)? {
            Value::Accelerator(accelerator) => Some(accelerator),
            _ => None,
        }
    }
}

impl Effective {
    /// The keys of this map and those of `wide`; its own win.
    fn added_to(self, wide: Self) -> Self {
        let Choice::Value(Value::Map(own)) = self.choice else { return self };
        let mut map = match wide.choice {
            Choice::Value(Value::Map(map)) => map,
            _ => BTreeMap::new(),
        };
        map.extend(own);
        Self { choice: Choice::Value(Value::Map(map)), level: self.level, closed: wide.closed }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Choice {
        Choice::Value(Value::Map(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()))
    }

    fn text(text: &str) -> Choice {
        Choice::Value(Value::Text(text.to_owned()))
    }

    fn entries(resolved: &Resolved, key: Key) -> Vec<(&str, &str)> {
        resolved.map(key).map(|(k, v)| (k.as_str(), v.as_str())).collect()
    }

    #[test]
    fn the_narrowest_level_wins_and_is_named() {
        let levels = [
            (Level::Org, [(Key::DefaultQueue, text("a")), (Key::RawDataPath, text("s3://b"))].into()),
            (Level::Domain, [(Key::DefaultQueue, text("b"))].into()),
            (Level::Project, [(Key::RawDataPath, Choice::Unset)].into()),
        ];
        let all = Resolved::layers(levels.clone());
        assert_eq!(all.text(Key::DefaultQueue), Some("b"));
        assert_eq!(all.text(Key::RawDataPath), None, "unset hides what is above");
        let shown: Vec<_> = all.iter().map(|(key, _, level)| (key, level)).collect();
        assert_eq!(shown, [(Key::DefaultQueue, Level::Domain), (Key::RawDataPath, Level::Project)]);
        let domain = Resolved::layers(levels.into_iter().take(2));
        assert_eq!(domain.text(Key::RawDataPath), Some("s3://b"));
    }

    #[test]
    fn maps_are_merged_until_a_level_unsets_them() {
        let level = |l, choice| (l, Choices::from([(Key::Environment, choice)]));
        let org = level(Level::Org, map(&[("A", "org"), ("B", "org")]));
        let project = level(Level::Project, map(&[("B", "project"), ("C", "project")]));
        let all = Resolved::layers([org.clone(), project.clone()]);
        assert_eq!(entries(&all, Key::Environment), [("A", "org"), ("B", "project"), ("C", "project")]);
        let cut = Resolved::layers([org.clone(), level(Level::Domain, Choice::Unset), project]);
        assert_eq!(entries(&cut, Key::Environment), [("B", "project"), ("C", "project")]);
        let empty = Resolved::layers([org, level(Level::Project, map(&[]))]);
        assert_eq!(empty.iter().map(|(_, _, level)| level).collect::<Vec<_>>(), [Level::Org]);
    }

    /// Any choice that a setting of the kind of `key` can have.
    pub(in crate::settings) fn choice(key: Key) -> BoxedStrategy<Choice> {
        let value = match key {
            Key::MaxActionConcurrency => (0..5i64).prop_map(Value::Number).boxed(),
            Key::MirrorLimits | Key::DisallowAnonymous => any::<bool>().prop_map(Value::Flag).boxed(),
            Key::Labels | Key::Annotations | Key::Environment => {
                proptest::collection::btree_map("[a-d]", "[v-z]", 0..4).prop_map(Value::Map).boxed()
            }
            Key::DefaultAccelerator => "[a-c]"
                .prop_map(|device| Value::Accelerator(GPUAccelerator { device, ..GPUAccelerator::default() }))
                .boxed(),
            _ => "[1-9]".prop_map(Value::Text).boxed(),
        };
        prop_oneof![1 => Just(Choice::Unset), 3 => value.prop_map(Choice::Value)].boxed()
    }

    /// Anything that a level can say.
    pub(in crate::settings) fn choices() -> impl Strategy<Value = Choices> {
        let some = proptest::sample::subsequence(Key::ALL, 0..=Key::ALL.len());
        some.prop_flat_map(|keys| {
            let all: Vec<_> = keys.into_iter().map(|key| choice(key).prop_map(move |c| (key, c))).collect();
            all.prop_map(|pairs| pairs.into_iter().collect())
        })
    }

    proptest! {
        #[test]
        fn putting_levels_together_is_associative(org in choices(), domain in choices(), project in choices()) {
            let org = Resolved::of(Level::Org, org);
            let domain = Resolved::of(Level::Domain, domain);
            let project = Resolved::of(Level::Project, project);
            let from_above = project.clone().over(domain.clone().over(org.clone()));
            let from_below = project.clone().over(domain).over(org);
            prop_assert_eq!(&from_above, &from_below);
            prop_assert_eq!(project.clone().over(Resolved::default()), project.clone());
            prop_assert_eq!(Resolved::default().over(project.clone()), project);
        }

        #[test]
        fn what_the_narrowest_level_says_counts(wide in choices(), narrow in choices()) {
            let both = Resolved::layers([(Level::Org, wide.clone()), (Level::Project, narrow.clone())]);
            for key in Key::ALL {
                match (narrow.get(key), wide.get(key)) {
                    (Some(Choice::Value(Value::Map(own))), _) => {
                        let merged: BTreeMap<_, _> = both.map(*key).collect();
                        prop_assert!(own.iter().all(|(k, v)| merged[k] == v));
                    }
                    (Some(choice), _) | (None, Some(choice)) => {
                        let says_nothing = matches!(choice, Choice::Value(Value::Map(map)) if map.is_empty());
                        let found = both.iter().find(|(k, _, _)| k == key).map(|(_, c, _)| c.clone());
                        prop_assert_eq!(found, (!says_nothing).then(|| choice.clone()));
                    }
                    (None, None) => prop_assert!(both.iter().all(|(k, _, _)| k != *key)),
                }
            }
        }
    }
}
