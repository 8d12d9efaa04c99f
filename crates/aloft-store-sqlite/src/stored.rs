//! Events and states as they are stored.

use aloft_core::{ActionState, Event};
use aloft_store::{StoreError, pack, unpack};

use crate::error;

/// A state as it is stored.
pub(crate) fn of_state(state: &ActionState) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(state).map(pack).map_err(|e| error::corrupt("action", e))
}

/// What [`of_state`] stored.
pub(crate) fn state(bytes: &[u8]) -> Result<ActionState, StoreError> {
    let what = "the state of an action";
    let json = unpack(bytes).map_err(|e| error::corrupt(what, e))?;
    serde_json::from_slice(&json).map_err(|e| error::corrupt(what, e))
}

/// An event as it is stored.
pub(crate) fn of_event(event: &Event) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(event).map(pack).map_err(|e| error::corrupt("event", e))
}

/// What [`of_event`] stored.
pub(crate) fn event(bytes: &[u8]) -> Result<Event, StoreError> {
    let json = unpack(bytes).map_err(|e| error::corrupt("an event", e))?;
    serde_json::from_slice(&json).map_err(|e| error::corrupt("an event", e))
}
