//! What may be set.

use std::collections::BTreeMap;

use aloft_core::check_queue_name;
use aloft_flyteidl2::flyteidl2::core::{AcceleratorModel, GPUAccelerator, gpu_accelerator::DeviceClass};
use aloft_plane::quantity;
use buffa::Enumeration as _;

use super::{Choice, Choices, Key, Level, Value, Wrong, resolve::Resolved};

/// Most labels, and most annotations, of a level.
const MAX_LABELS: usize = 100;

/// Most environment variables of a level: they are handed to every task.
const MAX_VARIABLES: usize = 200;

/// Longest key of a map, in bytes.
const MAX_KEY: usize = 255;

/// Longest value in a map, and longest prefix, in bytes.
const MAX_TEXT: usize = 1024;

/// Longest value of an environment variable, in bytes; the settings as a whole are bounded too.
const MAX_VARIABLE: usize = 32 << 10;

/// Longest name of a Kubernetes object, in bytes.
const MAX_OBJECT_NAME: usize = 253;

/// Refuses what no level can have, whatever exists.
pub(crate) fn check(level: Level, choices: &Choices) -> Result<(), Wrong> {
    for (key, choice) in choices {
        if let Choice::Value(value) = choice {
            check_value(level, *key, value).map_err(|reason| Wrong::new(*key, reason))?;
        }
    }
    Ok(())
}

fn check_value(level: Level, key: Key, value: &Value) -> Result<(), String> {
    match value {
        Value::Text(text) if text.is_empty() => {
            Err("is empty; leave the setting out to inherit it, or unset it to have none".to_owned())
        }
        Value::Text(text) => check_text(level, key, text),
        // Bounded as the run's own number, which it becomes.
        Value::Number(number) => match u32::try_from(*number) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{number} is not a number from 0 to {}; 0 is without limit", u32::MAX)),
        },
        Value::Flag(_) => Ok(()),
        Value::Map(map) => check_map(key, map),
        Value::Accelerator(accelerator) => check_accelerator(accelerator),
    }
}

fn check_text(level: Level, key: Key, text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("has {} bytes, more than the {MAX_TEXT} allowed", text.len()));
    }
    match key {
        Key::DefaultQueue => check_queue_name(text).map_err(|e| e.to_string()),
        Key::ServiceAccount | Key::PodTemplate => check_object_name(text),
        Key::RunBaseDir | Key::RawDataPath if level != Level::Project => {
            Err("can be set for a project in a domain only: every prefix lies in the storage of one project".to_owned())
        }
        Key::MinGpu | Key::MaxGpu => match quantity::parse(text) {
            Some(milli) if milli % 1000 == 0 => Ok(()),
            _ => Err(format!("{text:?} is not a whole number")),
        },
        Key::AppDns if !matches!(text, "shared" | "dataplane_specific") => {
            Err(format!("{text:?} is not one of shared, dataplane_specific"))
        }
        _ if is_amount(key) && quantity::parse(text).is_none() => {
            Err(format!("{text:?} is no amount; write it as 2, 500m, 1.5 or 512Mi"))
        }
        _ => Ok(()),
    }
}

fn is_amount(key: Key) -> bool {
    LIMITS.iter().any(|(min, max)| key == *min || key == *max)
}

/// Least and most of each resource.
const LIMITS: [(Key, Key); 4] = [
    (Key::MinCpu, Key::MaxCpu),
    (Key::MinGpu, Key::MaxGpu),
    (Key::MinMemory, Key::MaxMemory),
    (Key::MinStorage, Key::MaxStorage),
];

/// Refuses a default of a resource that is more than the most of it, at the place where both count.
pub(crate) fn check_limits(resolved: &Resolved) -> Result<(), Wrong> {
    for (min, max) in LIMITS {
        let (Some(least), Some(most)) = (resolved.text(min), resolved.text(max)) else { continue };
        if quantity::parse(least) > quantity::parse(most) {
            return Err(Wrong::new(min, format!("{least} is more than the {most} that {max} allows here")));
        }
    }
    Ok(())
}

/// A name as Kubernetes takes it for service accounts and pod templates.
fn check_object_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fine = text.chars().all(allowed) && ends(text.chars().next()) && ends(text.chars().last());
    if fine && text.len() <= MAX_OBJECT_NAME {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a name in Kubernetes: at most {MAX_OBJECT_NAME} lower-case letters, digits, '-' and '.', with a letter \
         or digit at both ends",
        text.chars().take(80).collect::<String>()
    ))
}

fn check_map(key: Key, map: &BTreeMap<String, String>) -> Result<(), String> {
    let (most, longest) = match key {
        Key::Environment => (MAX_VARIABLES, MAX_VARIABLE),
        _ => (MAX_LABELS, MAX_TEXT),
    };
    if map.len() > most {
        return Err(format!("has {} entries, more than the {most} allowed", map.len()));
    }
    for (name, value) in map {
        let shown: String = name.chars().take(80).collect();
        if name.is_empty() || name.len() > MAX_KEY {
            return Err(format!("the key {shown:?} must have 1 to {MAX_KEY} bytes"));
        }
        if key == Key::Environment && (name.contains(['=', '\0']) || value.contains('\0')) {
            return Err(format!("{shown:?} cannot be an environment variable: there is a '=' or a zero byte in it"));
        }
        if value.len() > longest {
            return Err(format!("the value of {shown:?} has {} bytes, more than the {longest} allowed", value.len()));
        }
    }
    Ok(())
}

/// The name of an accelerator, such as `nvidia-l4`: those of the contract's list, in lower case, Amazon's as `aws`.
fn accelerator_name(model: AcceleratorModel) -> String {
    model.proto_name().replace("AMAZON_", "AWS_").to_ascii_lowercase().replace('_', "-")
}

fn check_accelerator(accelerator: &GPUAccelerator) -> Result<(), String> {
    let known = AcceleratorModel::values().iter().copied().filter(|m| m.to_i32() != 0);
    let device = accelerator.device.as_str();
    let Some(model) = known.clone().find(|m| accelerator_name(*m) == device) else {
        let names: Vec<_> = known.map(accelerator_name).collect();
        let device: String = device.chars().take(80).collect();
        return Err(format!("{device:?} is not an accelerator; the names are {}", names.join(", ")));
    };
    if accelerator.accelerator_model.to_i32() != 0 && accelerator.accelerator_model != model {
        return Err(format!("accelerator_model is another one than device, {device}"));
    }
    // Models are numbered in blocks of a hundred, one for each class of devices, in the order of the classes.
    let class = DeviceClass::values().iter().find(|c| c.to_i32() == model.to_i32() / 100);
    match accelerator.device_class.to_i32() {
        0 => Ok(()),
        given if class.is_some_and(|c| c.to_i32() == given) => Ok(()),
        _ => Err(format!("device_class is not that of device {device}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(level: Level, key: Key, value: Value) -> Option<String> {
        check(level, &Choices::from([(key, Choice::Value(value))])).err().map(|w| w.to_string())
    }

    fn text(key: Key, value: &str) -> Option<String> {
        refused(Level::Project, key, Value::Text(value.to_owned()))
    }

    #[test]
    fn what_is_refused_names_its_field() {
        let table = [
            (Key::DefaultQueue, "a/b"),
            (Key::ServiceAccount, "Nobody"),
            (Key::PodTemplate, "-x"),
            (Key::MinMemory, "lots"),
            (Key::MinGpu, "500m"),
            (Key::MaxCpu, "-1"),
            (Key::AppDns, "mine"),
            (Key::MaxStorage, ""),
        ];
        for (key, value) in table {
            let said = text(key, value).unwrap_or_default();
            assert!(said.starts_with(&format!("settings.{key}: ")), "{key} {value:?}: {said}");
        }
        let table = [
            (Key::DefaultQueue, "gpu-1"),
            (Key::ServiceAccount, "ml-sa"),
            (Key::PodTemplate, "base.v1"),
            (Key::MinMemory, "512Mi"),
            (Key::MinGpu, "1"),
            (Key::MaxCpu, "1500m"),
            (Key::AppDns, "shared"),
            (Key::RawDataPath, "s3://b/p"),
        ];
        for (key, value) in table {
            assert_eq!(text(key, value), None, "{key} {value:?}");
        }
        for number in [-1, i64::from(u32::MAX) + 1] {
            assert!(refused(Level::Org, Key::MaxActionConcurrency, Value::Number(number)).is_some());
        }
        assert!(refused(Level::Domain, Key::RawDataPath, Value::Text("s3://b/p".into())).is_some());
    }

    #[test]
    fn maps_are_bounded() {
        let map = |name: &str, value: &str| Value::Map([(name.to_owned(), value.to_owned())].into());
        let many = Value::Map((0..=MAX_LABELS).map(|n| (n.to_string(), String::new())).collect());
        assert!(refused(Level::Org, Key::Labels, many).unwrap().contains("100 allowed"));
        for bad in [map("", "x"), map("A=B", "x"), map("A", "x\0y"), map("A", &"x".repeat(MAX_VARIABLE + 1))] {
            assert!(refused(Level::Org, Key::Environment, bad).is_some());
        }
        assert_eq!(refused(Level::Org, Key::Environment, map("A", "")), None, "a variable may be empty");
        assert_eq!(refused(Level::Org, Key::Labels, map("a/b", "=")), None);
    }

    #[test]
    fn accelerators_have_the_names_of_the_contract() {
        let named = |device: &str, model: i32, class: i32| {
            let accelerator = GPUAccelerator {
                device: device.to_owned(),
                accelerator_model: model.into(),
                device_class: class.into(),
                ..GPUAccelerator::default()
            };
            refused(Level::Org, Key::DefaultAccelerator, Value::Accelerator(accelerator))
        };
        assert_eq!(named("nvidia-a100-80gb", 10, 0), None);
        assert_eq!(named("aws-trn1", 202, 2), None);
        assert_eq!(named("google-tpu-v5e", 0, 0), None);
        assert!(named("nvidia-l4", 3, 0).unwrap().contains("accelerator_model"));
        assert!(named("aws-trn1", 0, 1).unwrap().contains("device_class"));
        assert!(named("abacus", 0, 0).unwrap().contains("nvidia-l4, "));
    }

    #[test]
    fn a_default_is_not_more_than_the_most() {
        let amount = |key, text: &str| (key, Choice::Value(Value::Text(text.to_owned())));
        let org = Choices::from([amount(Key::MaxMemory, "1Gi"), amount(Key::MaxCpu, "2")]);
        let with = |key, text| {
            Resolved::layers([(Level::Org, org.clone()), (Level::Domain, Choices::from([amount(key, text)]))])
        };
        assert_eq!(check_limits(&with(Key::MinMemory, "1024Mi")), Ok(()));
        let wrong = check_limits(&with(Key::MinCpu, "2001m")).unwrap_err().to_string();
        assert_eq!(
            wrong,
            "settings.task_resource.min.cpu: 2001m is more than the 2 that task_resource.max.cpu allows here"
        );
    }
}
