//! Conditional requests, as RFC 9110 section 13.2.2 orders them.

use std::time::SystemTime;

use jiff::Timestamp;
use s3s::dto::{self, ETagCondition};

use crate::store::Meta;

#[derive(Debug, Default)]
pub(super) struct Conditions {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
    pub if_modified_since: Option<dto::Timestamp>,
    pub if_unmodified_since: Option<dto::Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    NotModified,
    Failed,
}

impl Conditions {
    pub(super) fn judge(&self, meta: &Meta) -> Verdict {
        let Self { if_match, if_none_match, if_modified_since, if_unmodified_since } = self;
        // HTTP dates have whole seconds.
        let modified = http_date(Timestamp::from_second(meta.last_modified.as_second()).unwrap_or(meta.last_modified));
        match (if_match, if_unmodified_since) {
            (Some(condition), _) if !matches(condition, meta) => return Verdict::Failed,
            (None, Some(since)) if modified > *since => return Verdict::Failed,
            _ => {}
        }
        match (if_none_match, if_modified_since) {
            (Some(condition), _) if matches(condition, meta) => Verdict::NotModified,
            (None, Some(since)) if modified <= *since => Verdict::NotModified,
            _ => Verdict::Proceed,
        }
    }
}

pub(super) fn http_date(time: Timestamp) -> dto::Timestamp {
    SystemTime::from(time).into()
}

fn matches(condition: &ETagCondition, meta: &Meta) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == meta.etag,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let meta = Meta {
            size: 1,
            etag: "a".to_owned(),
            last_modified: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
            md5: None,
        };
        let etag = |text: &str| Some(ETagCondition::ETag(dto::ETag::Strong(text.to_owned())));
        let time = |text: &str| Some(http_date(text.parse().expect("a time")));
        let (same, earlier) = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:04Z");
        let cases = [
            (etag("a"), None, None, None, Verdict::Proceed),
            (etag("b"), None, None, None, Verdict::Failed),
            (Some(ETagCondition::Any), None, None, None, Verdict::Proceed),
            (None, etag("a"), None, None, Verdict::NotModified),
            (None, etag("b"), None, None, Verdict::Proceed),
            (None, None, time(same), None, Verdict::NotModified),
            (None, None, time(earlier), None, Verdict::Proceed),
            (None, None, None, time(same), Verdict::Proceed),
            (None, None, None, time(earlier), Verdict::Failed),
            (etag("a"), None, None, time(earlier), Verdict::Proceed),
            (None, etag("b"), time(same), None, Verdict::Proceed),
        ];
        for (number, (if_match, if_none_match, if_modified_since, if_unmodified_since, verdict)) in
            cases.into_iter().enumerate()
        {
            let conditions = Conditions { if_match, if_none_match, if_modified_since, if_unmodified_since };
            assert_eq!(conditions.judge(&meta), verdict, "case {number}");
        }
    }
}
