//! Literals to and from JSON-schema launch forms (`flyteidl2.workflow.TranslatorService`).
//!
//! Plain functions over messages: no IO, no clock, and the same answer for the same request (properties and literals come
//! in a fixed order). The caller looks up what a request only refers to ([`LiteralsSource`]) and passes it in.
//!
//! A form is a JSON schema with one property per variable, and the variable's value as that property's `default`. So one
//! message shows what to fill in and what is filled in, and comes back as inputs:
//!
//! ```text
//! {"type": "object", "title": "Launch Form", "required": ["n"],
//!  "properties": {"n": {"title": "n", "type": "integer", "default": 3, "description": "how many"}}}
//! ```
//!
//! | type | schema | value in JSON |
//! |---|---|---|
//! | integer | `integer` | number; past 2^53 a string of digits |
//! | float | `number`, format `float` | number, or `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | string, boolean, none | `string`, `boolean`, `null` | the same; None is written `{"type": "null"}`, read also as `null` |
//! | datetime | `string`, format `datetime` | RFC 3339 in UTC; `time` lists what else is read |
//! | duration | `string`, format `duration` | `1h30m0s`; `time` lists what else is read |
//! | binary | `string`, format `binary` | base64; msgpack-tagged bytes as what they hold |
//! | struct (dataclass, pydantic) | the class's own schema | object; written as msgpack |
//! | struct without a class (`dict`) | `object`, `additionalProperties: true` | object; written as msgpack |
//! | collection, map | `array` of, `object` of `additionalProperties` | array, object |
//! | enum | `string` with `enum` | string |
//! | blob (File, Dir) | `object`, format `blob` | `uri`, `format`, `dimensionality` (`SINGLE`, `MULTIPART`) |
//! | structured dataset | `object`, format `structured-dataset` | `uri`, `format` |
//! | union | `oneOf`, format `union` | the value of one variant |
//!
//! To add a type: an arm in `schema::schema_from_type` and its inverse, one in `to_json`, one in `to_literal`, and a row
//! in the table test.

mod error;
mod path;
mod schema;
mod time;
mod to_json;
mod to_literal;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use aloft_flyteidl2::flyteidl2::{
    common::{ActionIdentifier, TriggerIdentifier},
    core::{LiteralType, Variable, VariableEntry, VariableMap, parameter::Behavior},
    task::NamedLiteral,
    workflow::{
        JsonValuesToLiteralsRequest, JsonValuesToLiteralsResponse, LaunchFormJsonToLiteralsRequest,
        LaunchFormJsonToLiteralsResponse, LiteralsToLaunchFormJsonRequest, LiteralsToLaunchFormJsonResponse,
        TaskSpecToLaunchFormJsonRequest, TaskSpecToLaunchFormJsonResponse, literals_to_launch_form_json_request::Owner,
    },
};
use buffa_types::google::protobuf::Struct;
use serde_json::{Value as Json, json};

pub use self::error::{Problem, TranslateError};
use self::{
    path::{Budget, Path},
    schema::Fields,
};

/// Where the literals of a LiteralsToLaunchFormJson request are. All but the first are for the caller to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LiteralsSource<'r> {
    Inline(&'r [NamedLiteral]),
    /// A `task.Inputs` or `task.Outputs` message in object storage. The address comes from the client: read it only if it
    /// is one of the addresses recorded for that action, and the caller may see that action.
    Action {
        id: &'r ActionIdentifier,
        uri: &'r str,
    },
    /// The offloaded inputs of a trigger. The address recorded there may be that of the directory that holds `inputs.pb`.
    Trigger(&'r TriggerIdentifier),
}

/// A form under construction. Properties are kept by name; `required` in the order of the interface.
struct Form {
    properties: Fields,
    required: Vec<String>,
}

pub fn literals_source(request: &LiteralsToLaunchFormJsonRequest) -> Result<LiteralsSource<'_>, TranslateError> {
    match (&request.owner, request.literals_uri.as_str()) {
        (Some(Owner::TriggerId(id)), _) => Ok(LiteralsSource::Trigger(id)),
        (_, "") => Ok(LiteralsSource::Inline(&request.literals)),
        (Some(Owner::ActionId(id)), uri) => Ok(LiteralsSource::Action { id, uri }),
        (None, _) => Err(TranslateError::new(
            "action_id",
            Problem::Content {
                reason: "literals_uri is set without the action it belongs to".to_owned(),
                remedy: "set action_id to the action whose inputs or outputs these are",
            },
        )),
    }
}

/// The form of `literals`, already resolved from their [`LiteralsSource`].
///
/// Literals that `variables` does not declare are left out: a run's inputs are shown against another version of its task
/// this way, and what the versions share has to survive that.
pub fn literals_to_launch_form_json(
    literals: &[NamedLiteral],
    variables: &VariableMap,
) -> Result<LiteralsToLaunchFormJsonResponse, TranslateError> {
    let budget = Budget::new();
    let declared: HashMap<&str, &VariableEntry> =
        variables.variables.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let mut form = Form::new();
    for literal in literals {
        let Some(entry) = declared.get(literal.name.as_str()) else { continue };
        let path = Path::root(&literal.name, &budget);
        let value = to_json::json_from_literal(&literal.value, &path)?;
        let required = value != schema::null_marker() && schema::none_variant(&entry.value.r#type).is_none();
        form.add(&literal.name, &entry.value, Some(value), required, &path)?;
    }
    Ok(LiteralsToLaunchFormJsonResponse { json: form.finish().into(), ..Default::default() })
}

/// The form of a task's inputs, filled in with their defaults. Required are those that have none and are not optional.
pub fn task_spec_to_launch_form_json(
    request: &TaskSpecToLaunchFormJsonRequest,
) -> Result<TaskSpecToLaunchFormJsonResponse, TranslateError> {
    let budget = Budget::new();
    let spec = &request.task_spec;
    let behaviors: HashMap<&str, &Behavior> = spec
        .default_inputs
        .iter()
        .filter_map(|input| Some((input.name.as_str(), input.parameter.behavior.as_ref()?)))
        .collect();
    let mut form = Form::new();
    for entry in &spec.task_template.interface.inputs.variables {
        let path = Path::root(&entry.key, &budget);
        let optional = schema::none_variant(&entry.value.r#type).is_some();
        let (default, required) = match behaviors.get(entry.key.as_str()) {
            Some(Behavior::Default(literal)) => (Some(to_json::json_from_literal(literal, &path)?), false),
            Some(Behavior::Required(required)) => (None, *required),
            // Bound to an artifact when the run starts.
            Some(Behavior::ArtifactQuery(_) | Behavior::ArtifactId(_)) => (None, false),
            None => (None, !optional),
        };
        form.add(&entry.key, &entry.value, default, required, &path)?;
    }
    Ok(TaskSpecToLaunchFormJsonResponse { json: form.finish().into(), ..Default::default() })
}

/// The values in a form, with types read from its schemas. Fields that are not filled in are left out, or None if their
/// type allows it; which inputs a task insists on is checked where the run is created.
pub fn launch_form_json_to_literals(
    request: &LaunchFormJsonToLiteralsRequest,
) -> Result<LaunchFormJsonToLiteralsResponse, TranslateError> {
    let budget = Budget::new();
    let form_path = Path::root("properties", &budget);
    let form = wire::object_from_struct(&request.json, &Path::root("json", &budget))?;
    let properties = form.get("properties").and_then(Json::as_object).ok_or_else(|| {
        form_path.error(Problem::Type {
            reason: "the form has no object `properties`".to_owned(),
            remedy: "use a form as returned by TaskSpecToLaunchFormJson",
        })
    })?;
    let mut literals = Vec::new();
    for (name, property) in properties {
        let path = Path::root(name, &budget);
        let property = property.as_object().ok_or_else(|| {
            path.error(Problem::Type {
                reason: "the field's schema is not an object".to_owned(),
                remedy: "use a form as returned by TaskSpecToLaunchFormJson",
            })
        })?;
        let ty = schema::type_from_schema(property, &path)?;
        let literal = match schema::value_from_schema(property, &path)? {
            Some(value) => Some(to_literal::literal_from_json(&value, &ty, &path)?),
            None => to_literal::none_literal(&ty, &path)?,
        };
        literals.extend(literal.map(|value| NamedLiteral {
            name: name.clone(),
            value: value.into(),
            ..Default::default()
        }));
    }
    Ok(LaunchFormJsonToLiteralsResponse { literals, ..Default::default() })
}

/// A JSON object as literals of the declared variables, in their order. Every variable needs a value unless its type is
/// optional. Values without a variable are ignored, for the same reason as in [`literals_to_launch_form_json`].
pub fn json_values_to_literals(
    request: &JsonValuesToLiteralsRequest,
) -> Result<JsonValuesToLiteralsResponse, TranslateError> {
    let budget = Budget::new();
    // Unset values are an empty object: whichever variable then lacks one is named below.
    let values = &request.values;
    let mut literals = Vec::new();
    for entry in &request.variables.variables {
        let path = Path::root(&entry.key, &budget);
        let ty: &LiteralType = &entry.value.r#type;
        let value = match values.get(&entry.key) {
            Some(value) => to_literal::literal_from_json(&wire::json_from_value(value, &path)?, ty, &path)?,
            None => to_literal::none_literal(ty, &path)?.ok_or_else(|| path.error(Problem::Missing))?,
        };
        literals.push(NamedLiteral { name: entry.key.clone(), value: value.into(), ..Default::default() });
    }
    Ok(JsonValuesToLiteralsResponse { literals, ..Default::default() })
}

// === impl Form ===

impl Form {
    fn new() -> Self {
        Self { properties: Fields::new(), required: Vec::new() }
    }

    fn add(
        &mut self,
        name: &str,
        variable: &Variable,
        value: Option<Json>,
        required: bool,
        path: &Path<'_>,
    ) -> Result<(), TranslateError> {
        let mut field = schema::schema_from_type(&variable.r#type, path)?;
        field.insert("title".to_owned(), json!(name));
        if !variable.description.is_empty() && variable.description != name {
            field.insert("description".to_owned(), json!(variable.description));
        }
        if let Some(value) = value {
            set_value(&mut field, value);
        }
        self.properties.insert(name.to_owned(), Json::Object(field));
        if required {
            self.required.push(name.to_owned());
        }
        Ok(())
    }

    fn finish(self) -> Struct {
        wire::struct_from_object(Fields::from_iter([
            ("type".to_owned(), json!("object")),
            ("title".to_owned(), json!("Launch Form")),
            ("properties".to_owned(), Json::Object(self.properties)),
            ("required".to_owned(), json!(self.required)),
        ]))
    }
}

/// A blob is edited as three fields, and the console takes the value of each from the field's own `default`; every other
/// type has one `default` for the whole.
fn set_value(field: &mut Fields, value: Json) {
    let is_blob = field.get("format").is_some_and(|format| format == "blob");
    let parts = field.get_mut("properties").and_then(Json::as_object_mut).filter(|_| is_blob);
    let (Some(parts), Json::Object(value)) = (parts, &value) else {
        field.insert("default".to_owned(), value);
        return;
    };
    for (name, part) in parts {
        if let (Some(part), Some(value)) = (part.as_object_mut(), value.get(name)) {
            part.insert("default".to_owned(), value.clone());
        }
    }
}
