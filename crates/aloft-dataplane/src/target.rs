//! What of a task's specification runs as a process: its container, or the primary container of its pod.

use std::{borrow::Cow, time::Duration};

use aloft_flyteidl2::flyteidl2::core::{
    Container, K8sPod, KeyValuePair, Resources, TaskTemplate,
    resources::{ResourceEntry, ResourceName},
    task_template,
};
use buffa_types::google::protobuf::{Struct, Value, value};

/// The key of a template's configuration that names the primary container.
const PRIMARY: &str = "primary_container_name";

/// Longest grace period that a pod can ask for. A task that needs a day to stop does not mean to be stopped.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);

/// What is started for a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Target<'t> {
    /// The container that stands for it.
    pub container: Cow<'t, Container>,
    /// How long it has after SIGTERM, if the pod says (`terminationGracePeriodSeconds`).
    pub grace: Option<Duration>,
    /// What the person who reads the log should know about what is left out.
    pub notes: Vec<String>,
}

/// What is started for the task in `template`.
///
/// # Errors
/// Why there is nothing, as the end of a sentence about the specification.
pub fn target(template: &TaskTemplate) -> Result<Target<'_>, String> {
    match &template.target {
        Some(task_template::Target::Container(container)) => {
            Ok(Target { container: Cow::Borrowed(container), grace: None, notes: Vec::new() })
        }
        Some(task_template::Target::K8sPod(pod)) => from_pod(pod, template.config.get(PRIMARY).map(String::as_str)),
        Some(task_template::Target::Sql(_)) => {
            Err("describes a query, and there is nothing here that runs queries".to_owned())
        }
        None => Err("describes neither a container nor a pod".to_owned()),
    }
}

fn from_pod<'t>(pod: &K8sPod, configured: Option<&str>) -> Result<Target<'t>, String> {
    let spec: &Struct = &pod.pod_spec;
    let containers: Vec<&Struct> = structs(spec, "containers").collect();
    let wanted =
        [pod.primary_container_name.as_str(), configured.unwrap_or_default()].into_iter().find(|n| !n.is_empty());
    let primary = match (wanted, containers.as_slice()) {
        (None, [only]) => *only,
        (None, _) => {
            return Err(format!(
                "describes a pod of {} containers and does not say which is the primary one",
                containers.len()
            ));
        }
        (Some(name), _) => *containers
            .iter()
            .find(|c| text(c, "name") == Some(name))
            .ok_or_else(|| format!("describes a pod without its primary container {name:?}"))?,
    };
    let container = Container {
        image: text(primary, "image").unwrap_or_default().to_owned(),
        command: texts(primary, "command"),
        args: texts(primary, "args"),
        env: structs(primary, "env").filter_map(variable).collect(),
        resources: resources(primary).into(),
        ..Container::default()
    };
    let grace = number(spec, "terminationGracePeriodSeconds")
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
        .map(|seconds| Duration::from_secs_f64(seconds.min(MAX_GRACE.as_secs_f64())));
    Ok(Target { container: Cow::Owned(container), grace, notes: notes(spec, primary, &containers) })
}

/// Says what of the pod a process does not have.
fn notes(spec: &Struct, primary: &Struct, containers: &[&Struct]) -> Vec<String> {
    let names = |list: &mut dyn Iterator<Item = &Struct>| -> Vec<String> {
        list.map(|c| text(c, "name").unwrap_or("?").to_owned()).collect()
    };
    let others = names(&mut containers.iter().copied().filter(|c| !std::ptr::eq(*c, primary)));
    let parts = [
        ("containers", others),
        ("init containers", names(&mut structs(spec, "initContainers"))),
        ("volumes", names(&mut structs(spec, "volumes"))),
        (
            "variables that come from elsewhere",
            names(&mut structs(primary, "env").filter(|v| get(v, "valueFrom").is_some())),
        ),
    ];
    let left_out: Vec<String> = parts
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} ({})", names.join(", ")))
        .collect();
    match left_out.as_slice() {
        [] => Vec::new(),
        some => vec![format!(
            "The task describes a pod. As a process of this machine only its primary container runs, without its {}.",
            some.join(", ")
        )],
    }
}

fn variable(variable: &Struct) -> Option<KeyValuePair> {
    let name = text(variable, "name")?;
    if get(variable, "valueFrom").is_some() {
        return None;
    }
    let value = text(variable, "value").unwrap_or_default();
    Some(KeyValuePair { key: name.to_owned(), value: value.to_owned(), ..KeyValuePair::default() })
}

fn resources(container: &Struct) -> Resources {
    let declared = match get(container, "resources") {
        Some(value::Kind::StructValue(declared)) => declared,
        _ => return Resources::default(),
    };
    let entries = |key: &str| -> Vec<ResourceEntry> {
        let Some(value::Kind::StructValue(amounts)) = get(declared, key) else { return Vec::new() };
        amounts.fields.iter().filter_map(|(name, amount)| entry(name, amount)).collect()
    };
    Resources { requests: entries("requests"), limits: entries("limits"), ..Resources::default() }
}

fn entry(name: &str, amount: &Value) -> Option<ResourceEntry> {
    let name = match name {
        "cpu" => ResourceName::CPU,
        "memory" => ResourceName::MEMORY,
        "gpu" => ResourceName::GPU,
        // Device plugins name theirs `nvidia.com/gpu`.
        other if other.ends_with("/gpu") => ResourceName::GPU,
        _ => return None,
    };
    let value = match amount.kind.as_ref()? {
        value::Kind::StringValue(text) => text.clone(),
        value::Kind::NumberValue(number) => number.to_string(),
        _ => return None,
    };
    Some(ResourceEntry { name: name.into(), value, ..ResourceEntry::default() })
}

fn get<'s>(fields: &'s Struct, key: &str) -> Option<&'s value::Kind> {
    fields.fields.get(key)?.kind.as_ref()
}

fn text<'s>(fields: &'s Struct, key: &str) -> Option<&'s str> {
    match get(fields, key)? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

fn number(fields: &Struct, key: &str) -> Option<f64> {
    match get(fields, key)? {
        value::Kind::NumberValue(number) => Some(*number),
        _ => None,
    }
}

fn list<'s>(fields: &'s Struct, key: &str) -> &'s [Value] {
    match get(fields, key) {
        Some(value::Kind::ListValue(list)) => &list.values,
        _ => &[],
    }
}

fn structs<'s>(fields: &'s Struct, key: &str) -> impl Iterator<Item = &'s Struct> {
    list(fields, key).iter().filter_map(|value| match value.kind.as_ref()? {
        value::Kind::StructValue(fields) => Some(&**fields),
        _ => None,
    })
}

fn texts(fields: &Struct, key: &str) -> Vec<String> {
    list(fields, key)
        .iter()
        .filter_map(|value| match value.kind.as_ref()? {
            value::Kind::StringValue(text) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn wire(json: &Json) -> Value {
        let kind = match json {
            Json::String(text) => value::Kind::StringValue(text.clone()),
            Json::Number(number) => value::Kind::NumberValue(number.as_f64().unwrap()),
            Json::Array(items) => value::Kind::from(buffa_types::google::protobuf::ListValue {
                values: items.iter().map(wire).collect(),
                ..Default::default()
            }),
            Json::Object(_) => value::Kind::from(object(json)),
            other => panic!("{other}"),
        };
        Value { kind: Some(kind), ..Value::default() }
    }

    fn object(json: &Json) -> Struct {
        let fields = json.as_object().unwrap().iter().map(|(key, value)| (key.clone(), wire(value))).collect();
        Struct { fields, ..Struct::default() }
    }

    fn of(pod_spec: &Json, primary: &str) -> Result<Target<'static>, String> {
        let pod = K8sPod {
            pod_spec: object(pod_spec).into(),
            primary_container_name: primary.to_owned(),
            ..K8sPod::default()
        };
        from_pod(&pod, None)
    }

    #[test]
    fn the_primary_container_stands_for_a_pod() {
        let pod = json!({
            "containers": [
                {"name": "log-shipper", "image": "shipper"},
                {
                    "name": "primary",
                    "image": "img",
                    "args": ["a0", "--inputs", "{{.input}}"],
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "B"},
                        {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
                    ],
                    "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": 2, "nvidia.com/gpu": "1", "x/y": "1"}}
                }
            ],
            "volumes": [{"name": "scratch"}],
            "terminationGracePeriodSeconds": 600
        });
        let target = of(&pod, "primary").unwrap();
        assert_eq!(target.grace, Some(Duration::from_secs(600)));
        assert_eq!((target.container.image.as_str(), target.container.args.len()), ("img", 3));
        let env: Vec<_> = target.container.env.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
        assert_eq!(env, [("A", "1"), ("B", "")]);
        let amounts = |entries: &[ResourceEntry]| -> Vec<String> {
            let mut all: Vec<_> =
                entries.iter().map(|e| format!("{:?} {}", e.name.as_known().unwrap(), e.value)).collect();
            all.sort();
            all
        };
        assert_eq!(amounts(&target.container.resources.requests), ["CPU 2", "GPU 1"]);
        assert_eq!(amounts(&target.container.resources.limits), ["MEMORY 1Gi"]);
        let [note] = target.notes.as_slice() else { panic!("{:?}", target.notes) };
        for words in ["containers (log-shipper)", "volumes (scratch)", "from elsewhere (C)"] {
            assert!(note.contains(words), "{note}");
        }
    }

    #[test]
    fn a_pod_that_only_sets_labels_has_nothing_to_say() {
        let target = of(&json!({"containers": [{"name": "primary", "args": ["a0"]}]}), "").unwrap();
        assert_eq!((target.grace, target.notes.len(), target.container.args.len()), (None, 0, 1));
    }

    #[test]
    fn a_pod_without_its_primary_container_is_refused() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert!(of(&two, "c").unwrap_err().contains("\"c\""));
        assert!(of(&two, "").unwrap_err().contains("2 containers"));
        assert!(of(&json!({}), "").is_err());
    }

    #[test]
    fn a_grace_period_has_bounds() {
        let grace = |seconds: f64| {
            of(&json!({"containers": [{"name": "p"}], "terminationGracePeriodSeconds": seconds}), "").unwrap().grace
        };
        assert_eq!(grace(0.0), Some(Duration::ZERO));
        assert_eq!(grace(-1.0), None);
        assert_eq!(grace(1e300), Some(MAX_GRACE));
    }
}
