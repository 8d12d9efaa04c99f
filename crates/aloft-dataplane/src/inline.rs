//! Tasks that Aloft does itself, without a process: what one of them has to do, decided from its specification and inputs.
//!
//! | type | what it does |
//! |---|---|
//! | `core-sleep` | sleeps as long as its one input says (the function it was declared with is never called) |
//! | `echo` | gives its inputs back as its outputs |

use std::time::Duration;

use aloft_core::{ErrorKind, TaskError};
use aloft_flyteidl2::flyteidl2::{
    core::{Literal, TaskTemplate, literal, primitive, scalar},
    task::{Inputs, NamedLiteral, Outputs},
};

/// Longest sleep. Ten years, as for every other duration of a task; beyond that a clock would overflow.
const MAX_SLEEP: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A kind of task that is done inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inline {
    /// `core-sleep`.
    Sleep,
    /// `echo`.
    Echo,
}

impl Inline {
    /// The kind that tasks of type `task_type` are; `None` if they need a process.
    pub fn of(task_type: &str) -> Option<Self> {
        match task_type {
            aloft_plane::SLEEP_TASK => Some(Self::Sleep),
            aloft_plane::ECHO_TASK => Some(Self::Echo),
            _ => None,
        }
    }
}

/// What an inline task has to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// How long it sleeps; nothing if zero.
    pub sleep: Duration,
    /// What it then gives back.
    pub outputs: Outputs,
}

/// What the task of `kind` in `template` has to do with `inputs`.
///
/// # Errors
/// If it was declared with an interface that such a task does not have.
pub fn work(kind: Inline, template: &TaskTemplate, inputs: &Inputs) -> Result<Work, TaskError> {
    let name = &template.id.name;
    match kind {
        Inline::Sleep => {
            let returned = template.interface.outputs.variables.len();
            if returned > 0 {
                return Err(refused(format!(
                    "Task {name} sleeps without being called, so it can return nothing, but it declares {returned} \
                     outputs. Declare it with `-> None`."
                )));
            }
            Ok(Work { sleep: duration(name, inputs)?, outputs: Outputs::default() })
        }
        Inline::Echo => Ok(Work { sleep: Duration::ZERO, outputs: echoed(name, template, inputs)? }),
    }
}

/// How long to sleep: the input called `duration`, else the only one there is.
fn duration(name: &str, inputs: &Inputs) -> Result<Duration, TaskError> {
    let literals = &inputs.literals;
    let named = literals.iter().find(|l| l.name == "duration").or(match literals.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    let wrong = |what: &str| {
        refused(format!(
            "Task {name} sleeps as long as its input says, {what}. Declare it with one input, `duration: timedelta`."
        ))
    };
    let literal =
        named.ok_or_else(|| wrong(&format!("but it has {} inputs and none is called duration", literals.len())))?;
    let value = primitive(&literal.value).ok_or_else(|| wrong(&format!("but {} is no duration", literal.name)))?;
    let seconds = match value {
        primitive::Value::Duration(d) => d.seconds as f64 + f64::from(d.nanos) / 1e9,
        primitive::Value::Integer(seconds) => *seconds as f64,
        primitive::Value::FloatValue(seconds) => *seconds,
        _ => return Err(wrong(&format!("but {} is no duration", literal.name))),
    };
    if !seconds.is_finite() {
        return Err(wrong(&format!("but {} is {seconds}", literal.name)));
    }
    // A negative one has passed already, as for `asyncio.sleep`.
    Ok(Duration::from_secs_f64(seconds.clamp(0.0, MAX_SLEEP.as_secs_f64())))
}

fn primitive(literal: &Literal) -> Option<&primitive::Value> {
    let Some(literal::Value::Scalar(scalar)) = &literal.value else { return None };
    match &scalar.value {
        Some(scalar::Value::Primitive(primitive)) => primitive.value.as_ref(),
        // An optional input holds its value in a union.
        Some(scalar::Value::Union(union)) => self::primitive(&union.value),
        _ => None,
    }
}

/// Each declared output with the input of its name, or else the one in its place. The SDK calls outputs `o0`, `o1`, and
/// writes inputs in the order of the function's parameters; the interface has both sorted by name.
fn echoed(name: &str, template: &TaskTemplate, inputs: &Inputs) -> Result<Outputs, TaskError> {
    let given = &inputs.literals;
    let declared = &template.interface.outputs.variables;
    let literals = declared.iter().enumerate().map(|(at, output)| {
        let place = output.key.strip_prefix('o').and_then(|number| number.parse().ok()).unwrap_or(at);
        let source = given.iter().find(|input| input.name == output.key).or_else(|| given.get(place)).ok_or_else(|| {
            refused(format!(
                "Task {name} gives its inputs back, but none stands for its output {}: it declares {} outputs and was \
                 given {} inputs. Declare as many outputs as inputs, in the same order.",
                output.key,
                declared.len(),
                given.len()
            ))
        })?;
        Ok(NamedLiteral { name: output.key.clone(), value: source.value.clone(), ..NamedLiteral::default() })
    });
    Ok(Outputs { literals: literals.collect::<Result<_, TaskError>>()?, ..Outputs::default() })
}

fn refused(message: String) -> TaskError {
    TaskError::new("UnsupportedTask", message, ErrorKind::User, false)
}

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::core::{Primitive, Scalar, TypedInterface, VariableEntry, VariableMap};
    use buffa_types::google::protobuf::Duration as WireDuration;

    use super::*;

    fn literal(name: &str, value: impl Into<primitive::Value>) -> NamedLiteral {
        let primitive = Primitive { value: Some(value.into()), ..Primitive::default() };
        let scalar = Scalar { value: Some(scalar::Value::Primitive(primitive.into())), ..Scalar::default() };
        let value = Literal { value: Some(literal::Value::Scalar(scalar.into())), ..Literal::default() };
        NamedLiteral { name: name.to_owned(), value: value.into(), ..NamedLiteral::default() }
    }

    fn seconds(name: &str, seconds: i64, nanos: i32) -> NamedLiteral {
        let length = WireDuration { seconds, nanos, ..WireDuration::default() };
        literal(name, primitive::Value::Duration(length.into()))
    }

    fn inputs(literals: &[NamedLiteral]) -> Inputs {
        Inputs { literals: literals.to_vec(), ..Inputs::default() }
    }

    fn template(inputs: &[&str], outputs: &[&str]) -> TaskTemplate {
        let map = |names: &[&str]| VariableMap {
            variables: names
                .iter()
                .map(|name| VariableEntry { key: (*name).to_owned(), ..VariableEntry::default() })
                .collect(),
            ..VariableMap::default()
        };
        TaskTemplate {
            interface: TypedInterface {
                inputs: map(inputs).into(),
                outputs: map(outputs).into(),
                ..TypedInterface::default()
            }
            .into(),
            ..TaskTemplate::default()
        }
    }

    fn slept(literals: &[NamedLiteral]) -> Result<Duration, String> {
        work(Inline::Sleep, &template(&["duration"], &[]), &inputs(literals))
            .map(|work| work.sleep)
            .map_err(|error| error.message)
    }

    #[test]
    fn a_sleep_takes_its_length_from_its_input() {
        assert_eq!(slept(&[seconds("duration", 1, 500_000_000)]), Ok(Duration::from_millis(1500)));
        assert_eq!(slept(&[seconds("d", 2, 0)]), Ok(Duration::from_secs(2)), "the only input, whatever its name");
        let two = [literal("x", primitive::Value::Integer(9)), literal("duration", primitive::Value::FloatValue(0.25))];
        assert_eq!(slept(&two), Ok(Duration::from_millis(250)));
        assert_eq!(slept(&[literal("d", primitive::Value::Integer(3))]), Ok(Duration::from_secs(3)));
        assert_eq!(slept(&[seconds("duration", -5, 0)]), Ok(Duration::ZERO));
        assert_eq!(slept(&[seconds("duration", i64::MAX, 0)]), Ok(MAX_SLEEP));
    }

    #[test]
    fn what_is_no_sleep_is_refused_with_its_remedy() {
        for literals in [
            vec![],
            vec![seconds("a", 1, 0), seconds("b", 1, 0)],
            vec![literal("d", primitive::Value::Boolean(true))],
            vec![literal("d", primitive::Value::FloatValue(f64::NAN))],
            vec![NamedLiteral { name: "d".to_owned(), ..NamedLiteral::default() }],
        ] {
            let message = slept(&literals).unwrap_err();
            assert!(message.contains("duration: timedelta"), "{message}");
        }
        let error = work(Inline::Sleep, &template(&["d"], &["o0"]), &inputs(&[seconds("d", 1, 0)])).unwrap_err();
        assert!(error.message.contains("-> None") && !error.recoverable, "{error:?}");
    }

    #[test]
    fn an_echo_gives_its_inputs_back() {
        let given = inputs(&[literal("b", primitive::Value::Integer(2)), literal("a", primitive::Value::Integer(1))]);
        let echo = |outputs: &[&str]| work(Inline::Echo, &template(&["a", "b"], outputs), &given);
        let value = |output: &NamedLiteral| match primitive(&output.value) {
            Some(primitive::Value::Integer(i)) => (output.name.clone(), *i),
            other => panic!("{other:?}"),
        };
        let values =
            |outputs: &[&str]| -> Vec<_> { echo(outputs).unwrap().outputs.literals.iter().map(value).collect() };
        // `b` is the first parameter.
        assert_eq!(values(&["o0", "o1"]), [("o0".to_owned(), 2), ("o1".to_owned(), 1)]);
        assert_eq!(values(&["o1"]), [("o1".to_owned(), 1)]);
        assert_eq!(values(&["b", "a"]), [("b".to_owned(), 2), ("a".to_owned(), 1)]);
        assert_eq!(values(&[]), []);
        let error = echo(&["o0", "o1", "o2"]).unwrap_err();
        assert!(error.message.contains("output o2"), "{}", error.message);
    }
}
