//! Settings as messages, which is also how the store keeps them.

use std::collections::BTreeMap;

use aloft_flyteidl2::flyteidl2::{
    core::GPUAccelerator,
    settings::{
        AcceleratorSetting, BoolSetting, Int64Setting, QuantitySetting, ScopeLevel, SettingState,
        Settings as WireSettings, StringMap, StringMapSetting, StringSetting,
    },
};
use buffa::EnumValue;

use super::{Choice, Choices, Key, Level, Value, Wrong};

/// Calls a macro with the place of every setting in the message.
macro_rules! leaves {
    ($each:ident) => {
        $each! {
            DefaultQueue run.default_queue,
            MaxActionConcurrency run.max_action_concurrency,
            RunBaseDir run.run_base_dir,
            ServiceAccount security.service_account,
            RawDataPath storage.raw_data_path,
            MinCpu task_resource.min.cpu,
            MinGpu task_resource.min.gpu,
            MinMemory task_resource.min.memory,
            MinStorage task_resource.min.storage,
            MaxCpu task_resource.max.cpu,
            MaxGpu task_resource.max.gpu,
            MaxMemory task_resource.max.memory,
            MaxStorage task_resource.max.storage,
            MirrorLimits task_resource.mirror_limits_request,
            DefaultAccelerator task_resource.default_accelerator,
            Labels labels,
            Annotations annotations,
            Environment environment_variables,
            DisallowAnonymous app.disallow_anonymous,
            AppDns app.app_dns_strategy,
            PodTemplate pod_template_name,
        }
    };
}

/// What a message says.
///
/// # Errors
/// [`Wrong`] for a state that does not exist, and for a value beside a state that has none.
pub(crate) fn from_wire(settings: &WireSettings) -> Result<Choices, Wrong> {
    let mut choices = Choices::new();
    macro_rules! read {
        ($($key:ident $first:ident $(.$rest:ident)*),* $(,)?) => {
            $(if let Some(leaf) = settings.$first$(.$rest)*.as_option() {
                if let Some(choice) = choice(Key::$key, leaf)? {
                    choices.insert(Key::$key, choice);
                }
            })*
        };
    }
    leaves!(read);
    Ok(choices)
}

fn choice<L: Leaf>(key: Key, leaf: &L) -> Result<Option<Choice>, Wrong> {
    let state = leaf.state();
    let choice = match state.as_known() {
        Some(SettingState::SETTING_STATE_VALUE) => return Ok(Some(Choice::Value(leaf.value()))),
        Some(SettingState::SETTING_STATE_UNSET) => Some(Choice::Unset),
        Some(SettingState::SETTING_STATE_INHERIT) => None,
        None => return Err(Wrong::new(key, format!("state {} is not one of INHERIT, UNSET, VALUE", state.to_i32()))),
    };
    if leaf.has_value() {
        let state = if choice.is_some() { "UNSET" } else { "INHERIT" };
        return Err(Wrong::new(
            key,
            format!(
                "has a value, and its state {state} says that it has none; send it with state VALUE, or without it"
            ),
        ));
    }
    Ok(choice)
}

/// The message that says this, each setting with the level it comes from.
pub(crate) fn to_wire<'c>(settings: impl IntoIterator<Item = (Key, &'c Choice, Level)>) -> WireSettings {
    let mut message = WireSettings::default();
    for (key, choice, level) in settings {
        macro_rules! write {
            ($($key:ident $first:ident $(.$rest:ident)*),* $(,)?) => {
                match key {
                    $(Key::$key => message.$first$(.get_or_insert_default().$rest)* = Some(leaf(choice, level)).into(),)*
                }
            };
        }
        leaves!(write);
    }
    message
}

fn leaf<L: Leaf>(choice: &Choice, level: Level) -> L {
    let level = match level {
        Level::Org => ScopeLevel::SCOPE_LEVEL_ORG,
        Level::Domain => ScopeLevel::SCOPE_LEVEL_DOMAIN,
        Level::Project => ScopeLevel::SCOPE_LEVEL_PROJECT,
    };
    match choice {
        Choice::Unset => L::new(SettingState::SETTING_STATE_UNSET, None, level),
        Choice::Value(value) => L::new(SettingState::SETTING_STATE_VALUE, Some(value), level),
    }
}

/// A message of one setting.
trait Leaf {
    fn state(&self) -> EnumValue<SettingState>;
    fn value(&self) -> Value;
    /// Whether it carries a value that can be told from none.
    fn has_value(&self) -> bool;
    /// A message of this value; a value of another kind than the message's is none, which the table of leaves rules out.
    fn new(state: SettingState, value: Option<&Value>, level: ScopeLevel) -> Self;
}

macro_rules! leaf {
    ($message:ident, $field:ident, $kind:ident, $read:expr, $write:expr) => {
        impl Leaf for $message {
            fn state(&self) -> EnumValue<SettingState> {
                self.state
            }

            fn value(&self) -> Value {
                Value::$kind($read(&self.$field))
            }

            fn has_value(&self) -> bool {
                self.$field != Self::default().$field
            }

            fn new(state: SettingState, value: Option<&Value>, level: ScopeLevel) -> Self {
                let mut message = Self { state: state.into(), scope_level: level.into(), ..Self::default() };
                if let Some(Value::$kind(value)) = value {
                    message.$field = $write(value.clone());
                }
                message
            }
        }
    };
}

leaf!(StringSetting, string_value, Text, String::clone, String::from);
leaf!(QuantitySetting, quantity_value, Text, String::clone, String::from);
leaf!(Int64Setting, int_value, Number, i64::clone, i64::from);
leaf!(BoolSetting, bool_value, Flag, bool::clone, bool::from);
leaf!(
    StringMapSetting,
    map_value,
    Map,
    |map: &buffa::MessageField<StringMap, buffa::Inline<StringMap>>| map.entries.clone(),
    |entries: BTreeMap<String, String>| StringMap { entries, ..StringMap::default() }.into()
);
leaf!(
    AcceleratorSetting,
    accelerator_value,
    Accelerator,
    |accelerator: &buffa::MessageField<GPUAccelerator, buffa::Inline<GPUAccelerator>>| (**accelerator).clone(),
    |accelerator: GPUAccelerator| accelerator.into()
);

#[cfg(test)]
mod tests {
    use buffa::Message as _;
    use proptest::prelude::*;

    use super::*;
    use crate::settings::resolve::tests::choices;

    #[test]
    fn a_value_that_does_not_count_is_refused() {
        for (state, word) in [(0, "INHERIT"), (1, "UNSET"), (7, "state 7")] {
            let queue = StringSetting { state: state.into(), string_value: "gpu".into(), ..StringSetting::default() };
            let mut message = WireSettings::default();
            message.run.get_or_insert_default().default_queue = queue.into();
            let said = from_wire(&message).unwrap_err().to_string();
            assert!(said.starts_with("settings.run.default_queue: ") && said.contains(word), "{said}");
        }
    }

    #[test]
    fn names_are_the_paths_of_the_message() {
        let mut paths = Vec::new();
        macro_rules! path {
            ($($key:ident $first:ident $(.$rest:ident)*),* $(,)?) => {
                $(paths.push((Key::$key, concat!(stringify!($first) $(, ".", stringify!($rest))*)));)*
            };
        }
        leaves!(path);
        assert_eq!(paths.len(), Key::ALL.len());
        for (key, path) in paths {
            assert_eq!(key.name(), path);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(choices in choices()) {
            let message = to_wire(choices.iter().map(|(key, choice)| (*key, choice, Level::Domain)));
            let read = WireSettings::decode_from_slice(&message.encode_to_vec()).expect("a message");
            prop_assert_eq!(from_wire(&read), Ok(choices));
        }
    }
}
