//! Where an object lies in the backend, and back.
//!
//! `<bucket>/<key>` holds the objects, so that a person can find them with a file manager; `.staging/` holds uploads in
//! progress. No bucket can be called `.staging`, so no key reaches it.

use object_store::path::Path;
use percent_encoding::percent_decode_str;

use crate::uri::{InvalidUri, Uri, UriProblem};

/// File names have at most 255 bytes, and the backend writes `name#1` before it renames.
const SEGMENT_BYTES_MAX: usize = 250;

pub(crate) const STAGING: &str = ".staging";

/// The path of an object; `uri` is known to be in this store's bucket.
pub(crate) fn object(uri: &Uri) -> Result<Path, InvalidUri> {
    let invalid = |problem| InvalidUri::new(&uri.to_string(), problem);
    if uri.key().is_empty() {
        return Err(invalid(UriProblem::NoKey));
    }
    path(uri.bucket(), uri.key()).ok_or_else(|| invalid(UriProblem::SegmentTooLong))
}

/// The path of a directory of keys (empty: of the whole bucket); `None` if no object can lie below it.
pub(crate) fn directory(bucket: &str, directory: &str) -> Option<Path> {
    if directory.is_empty() {
        return Path::parse(bucket).ok();
    }
    crate::uri::check_key(directory).ok()?;
    path(bucket, directory)
}

/// The key of the object at `path`; `None` for what is not an object of `bucket`.
pub(crate) fn key(bucket: &str, path: &Path) -> Option<String> {
    let rest = path.as_ref().strip_prefix(bucket)?.strip_prefix('/')?;
    Some(percent_decode_str(rest).decode_utf8().ok()?.into_owned())
}

/// Whether a file name is one of the backend's unfinished files.
pub(crate) fn is_unfinished(file_name: &str) -> bool {
    file_name
        .rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn path(bucket: &str, key: &str) -> Option<Path> {
    let mut text = bucket.to_owned();
    for segment in key.split('/') {
        text.push('/');
        let start = text.len();
        // `#` marks the backend's own unfinished files, and `%` is the escape itself. Every other character that a key
        // may have is one that a file name may have.
        text.push_str(&segment.replace('%', "%25").replace('#', "%23"));
        if text.len() - start > SEGMENT_BYTES_MAX {
            return None;
        }
    }
    Path::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_names_keep_their_looks_on_disk() {
        let uri: Uri = "s3://bucket/a b/ü=1+2/50%#1".parse().expect("valid");
        assert_eq!(object(&uri).expect("a path").as_ref(), "bucket/a b/ü=1+2/50%25%231");
    }

    #[test]
    fn a_segment_must_fit_a_file_name() {
        let uri: Uri = format!("s3://bucket/{}", "é".repeat(126)).parse().expect("valid");
        assert_eq!(object(&uri).expect_err("252 bytes").problem, UriProblem::SegmentTooLong);
    }

    proptest! {
        #[test]
        fn paths_lead_back_to_their_key(key in "\\PC{1,30}") {
            if let Ok(uri) = Uri::new("bucket", &key) && !uri.key().is_empty() {
                let path = object(&uri).expect("short enough");
                prop_assert_eq!(super::key("bucket", &path), Some(uri.key().to_owned()));
                prop_assert!(!is_unfinished(path.filename().expect("a name")));
            }
        }
    }
}
