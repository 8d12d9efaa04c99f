//! Which checkpoint an attempt goes on from.
//!
//! Every attempt writes its own, below its own output prefix, and is told where the one before may have left one. The
//! contract names the attempt just before; but an attempt that died before it wrote any must not cost the progress of those
//! before it. So the newest attempt that wrote one is named.

use aloft_plane::PlaneError;

use crate::seam::ResultStore;

/// How many attempts are looked back over. One whose last checkpoint is older has not got anywhere in all of them.
const LOOK_BACK: u32 = 100;

/// The checkpoint of the attempt with outputs below `output_prefix`.
pub fn uri(output_prefix: &str) -> String {
    format!("{}/_flytecheckpoints", output_prefix.trim_end_matches('/'))
}

/// The output prefix of the newest attempt that wrote a checkpoint, looking back from the one with `previous_prefix`; that
/// one itself if none did.
///
/// # Errors
/// If the object store does not answer.
pub async fn newest(store: &dyn ResultStore, previous_prefix: &str) -> Result<String, PlaneError> {
    for prefix in candidates(previous_prefix) {
        if store.exists(&uri(&prefix)).await? {
            return Ok(prefix);
        }
    }
    Ok(previous_prefix.to_owned())
}

/// The prefixes of the attempts up to the one with `previous_prefix`, newest first. None if there is only that one.
fn candidates(previous_prefix: &str) -> Vec<String> {
    let Some((base, number)) = previous_prefix.trim_end_matches('/').rsplit_once('/') else { return Vec::new() };
    match number.parse::<u32>() {
        Ok(number) if number > 1 => {
            (number.saturating_sub(LOOK_BACK).max(1)..=number).rev().map(|n| format!("{base}/{n}")).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_attempts_before_are_looked_at_newest_first() {
        assert_eq!(candidates("s3://b/r/a0/3"), ["s3://b/r/a0/3", "s3://b/r/a0/2", "s3://b/r/a0/1"]);
        assert_eq!(candidates("s3://b/r/a0/1"), [""; 0], "nothing to choose from");
        assert_eq!(candidates(""), [""; 0]);
        assert_eq!(candidates("s3://b/r/a0/x"), [""; 0]);
        assert_eq!(candidates("s3://b/r/a0/1000").len(), 101);
    }
}
