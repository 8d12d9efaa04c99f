//! What is bounded (rule 10), and what must not be there at all (rule 7).

use super::{Check, broken};

/// A page holds no more than was asked for, and the pages together hold every row once, in the order of the whole list.
pub fn rule_10_pages_are_bounded_and_complete<T: PartialEq + std::fmt::Debug>(
    limit: usize,
    pages: &[Vec<T>],
    whole: &[T],
) -> Check {
    if let Some(page) = pages.iter().find(|p| p.len() > limit) {
        return broken!(rule_10_pages_are_bounded_and_complete, "a page of at most {limit} has {} rows", page.len());
    }
    let together: Vec<&T> = pages.iter().flatten().collect();
    if together.len() != whole.len() || together.iter().zip(whole).any(|(a, b)| **a != *b) {
        return broken!(rule_10_pages_are_bounded_and_complete, "the pages hold {pages:?}, the whole list {whole:?}");
    }
    Ok(())
}

/// The bytes of a user's value are in no file of the control plane.
pub fn rule_7_values_stay_out_of_the_control_plane(canary: &[u8], file: &str, bytes: &[u8]) -> Check {
    if bytes.windows(canary.len()).any(|w| w == canary) {
        return broken!(rule_7_values_stay_out_of_the_control_plane, "a value that a client sent is in {file}");
    }
    Ok(())
}
