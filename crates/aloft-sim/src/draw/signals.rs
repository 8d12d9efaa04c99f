//! Conditions, and who signals them.

use proptest::{option, prelude::*};

use super::known;
use crate::{
    signal::{Condition, Says, Type, Value},
    step::{Command, Kind, NOBODY, Step},
};

fn types() -> impl Strategy<Value = Type> {
    prop_oneof![Just(Type::Bool), Just(Type::Int), Just(Type::Float), Just(Type::Text)]
}

pub(super) fn condition() -> impl Strategy<Value = Condition> {
    (0u8..2, types(), option::weighted(0.4, prop_oneof![Just(50u16), Just(100), Just(1000)]))
        .prop_map(|(name, awaits, timeout)| Condition { name, awaits, timeout })
}

/// Few values, so that the same one is said again often enough.
pub(super) fn signal() -> impl Strategy<Value = Command> {
    let value = (types(), 0u8..2).prop_map(|(kind, n)| Says::Exactly(Value::fitting(kind, n)));
    let says = prop_oneof![3 => (0u8..2).prop_map(Says::Fitting), 1 => value];
    let action = prop_oneof![12 => Just(0u8), 3 => 1u8..4, 1 => Just(NOBODY)];
    (known(0..2), action, says, 0u8..2).prop_map(|(run, action, says, via)| Command::Signal { run, action, says, via })
}

/// A condition is enqueued.
pub(super) fn pause() -> impl Strategy<Value = Step> {
    let conditions = (0u8..2, 1u8..5, 0u8..5, condition());
    conditions.prop_map(|(run, action, parent, condition)| {
        let kind = Kind::Condition(condition);
        Step::Do(Command::Enqueue { run, action, parent, kind, old: false, queue: None })
    })
}
