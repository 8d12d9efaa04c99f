//! One page of a listing, as S3 defines it, from objects in any order.

use std::collections::BTreeMap;

use crate::store::Meta;

/// What to list. All texts are compared as bytes, as S3 does.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageRequest {
    /// Only keys that start with this text.
    pub prefix: String,
    /// Keys that have this text after the prefix are rolled up into one common prefix.
    pub delimiter: Option<String>,
    /// Only keys after this one.
    pub start_after: Option<String>,
    /// Only items (keys or common prefixes) after this one: where the page before ended.
    pub resume_after: Option<String>,
    pub max: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Object(Meta),
    CommonPrefix,
}

#[derive(Debug)]
pub(crate) struct Page {
    /// In order of their names.
    pub items: Vec<(String, Item)>,
    /// Whether there are more; then the last name here is where to resume.
    pub truncated: bool,
}

/// Gathers the page while objects stream by, holding no more than one page of them.
pub(crate) struct Pager<'a> {
    request: &'a PageRequest,
    items: BTreeMap<String, Item>,
}

impl<'a> Pager<'a> {
    pub(crate) fn new(request: &'a PageRequest) -> Self {
        Self { request, items: BTreeMap::new() }
    }

    pub(crate) fn object(&mut self, key: String, meta: Meta) {
        let PageRequest { prefix, delimiter, start_after, .. } = self.request;
        let Some(rest) = key.strip_prefix(prefix.as_str()) else { return };
        if start_after.as_ref().is_some_and(|after| key <= *after) {
            return;
        }
        let rolled_up = delimiter
            .as_deref()
            .filter(|delimiter| !delimiter.is_empty())
            .and_then(|delimiter| rest.find(delimiter).map(|at| prefix.len() + at + delimiter.len()));
        match rolled_up {
            Some(end) => self.insert(key[..end].to_owned(), Item::CommonPrefix),
            None => self.insert(key, Item::Object(meta)),
        }
    }

    /// A whole directory at once, where the backend can tell without listing what is in it.
    pub(crate) fn directory(&mut self, name: String) {
        let PageRequest { prefix, start_after, .. } = self.request;
        // Keys inside of the directory may lie after a key that sorts after the directory's own name.
        let passed = start_after.as_ref().is_some_and(|after| name <= *after && !after.starts_with(&name));
        if name.starts_with(prefix.as_str()) && !passed {
            self.insert(name, Item::CommonPrefix);
        }
    }

    pub(crate) fn finish(mut self) -> Page {
        let truncated = self.items.len() > self.request.max && self.request.max > 0;
        while self.items.len() > self.request.max {
            self.items.pop_last();
        }
        Page { items: self.items.into_iter().collect(), truncated }
    }

    fn insert(&mut self, name: String, item: Item) {
        if self.request.resume_after.as_ref().is_some_and(|after| name <= *after) {
            return;
        }
        self.items.insert(name, item);
        // One more than the page tells that there are more.
        if self.items.len() > self.request.max + 1 {
            self.items.pop_last();
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn meta() -> Meta {
        Meta { size: 1, etag: "e".to_owned(), last_modified: Timestamp::UNIX_EPOCH, md5: None }
    }

    fn names(request: &PageRequest, keys: &[&str]) -> (Vec<String>, bool) {
        let mut pager = Pager::new(request);
        for key in keys {
            pager.object((*key).to_owned(), meta());
        }
        let page = pager.finish();
        (page.items.into_iter().map(|(name, _)| name).collect(), page.truncated)
    }

    #[test]
    fn delimiter_and_prefix() {
        let request =
            PageRequest { prefix: "a/".to_owned(), delimiter: Some("/".to_owned()), max: 10, ..Default::default() };
        let (found, truncated) = names(&request, &["a/y/2", "b", "a/x", "a/y/1", "a/z/1/2", "ab"]);
        assert_eq!(found, ["a/x", "a/y/", "a/z/"]);
        assert!(!truncated);
    }

    #[test]
    fn start_after_inside_a_directory_still_shows_the_directory() {
        let request = PageRequest {
            delimiter: Some("/".to_owned()),
            start_after: Some("d/5".to_owned()),
            max: 10,
            ..Default::default()
        };
        assert_eq!(names(&request, &["c", "d/4", "d/6", "e"]).0, ["d/", "e"]);
        assert_eq!(names(&request, &["c", "d/4"]).0, Vec::<String>::new());
    }

    #[test]
    fn zero_keys_are_never_more_to_come() {
        assert_eq!(names(&PageRequest::default(), &["a"]), (vec![], false));
    }

    proptest! {
        /// Following the pages yields every item once, in order, whatever the order of arrival.
        #[test]
        fn pages_add_up(keys in btree_set("[ab/]{1,5}", 0..30), max in 1usize..5, delimited: bool) {
            let keys: Vec<&str> = keys.iter().rev().map(String::as_str).collect();
            let delimiter = delimited.then(|| "/".to_owned());
            let all = PageRequest { delimiter: delimiter.clone(), max: 1000, ..Default::default() };
            let mut followed = Vec::new();
            loop {
                let resume_after = followed.last().cloned();
                let request = PageRequest { delimiter: delimiter.clone(), resume_after, max, ..Default::default() };
                let (names, truncated) = names(&request, &keys);
                followed.extend(names);
                if !truncated {
                    break;
                }
            }
            prop_assert_eq!(followed, names(&all, &keys).0);
        }
    }
}
