//! What an upload request asks for, checked.

use std::time::Duration;

use aloft_flyteidl2::flyteidl2::dataproxy::CreateUploadLocationRequest;
use aloft_plane::PlaneError;

use super::{DEFAULT_EXPIRY, MAX_EXPIRY, MAX_UPLOAD};

/// An upload that may be granted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upload {
    /// Its path below the domain.
    pub(super) path: String,
    /// Its content, if the client says.
    pub(super) md5: Option<[u8; 16]>,
    /// Its length in bytes, if the client says.
    pub(super) length: Option<u64>,
    /// How long the link lives.
    pub(super) expires: Duration,
    /// Whether what is there must stay: the client chose the place, so that it may be something else.
    pub(super) keeps: bool,
}

/// Where the reporters of tracked runs upload, below the domain: they name the filename root after its last part.
pub(super) const TRACKED: &str = "uploads/tracked-runs";

/// Reports of tracked runs are uploaded anew whenever the task flushes them.
const REPORT: &str = "/report.html";

fn invalid(field: &str, reason: impl Into<String>) -> PlaneError {
    PlaneError::Invalid { field: field.to_owned(), reason: reason.into() }
}

pub(super) fn upload(request: &CreateUploadLocationRequest) -> Result<Upload, PlaneError> {
    let md5: Option<[u8; 16]> = match request.content_md5.len() {
        0 => None,
        16 => request.content_md5.as_ref().try_into().ok(),
        n => return Err(invalid("content_md5", format!("must be the 16 bytes of an MD5, not {n}"))),
    };
    let named = !request.filename_root.is_empty();
    let place = match (&md5, named) {
        (_, true) => relative("filename_root", &request.filename_root)?,
        (Some(md5), false) => hex(md5),
        (None, false) => return Err(invalid("content_md5", "is required without a filename_root")),
    };
    let path = if request.filename.is_empty() {
        format!("uploads/{place}")
    } else {
        format!("uploads/{place}/{}", relative("filename", &request.filename)?)
    };
    let length = u64::try_from(request.content_length).map_err(|_| invalid("content_length", "is negative"))?;
    if length > MAX_UPLOAD {
        return Err(invalid("content_length", format!("is {length}, more than the {MAX_UPLOAD} bytes allowed")));
    }
    let expires = match request.expires_in.as_option() {
        None => DEFAULT_EXPIRY,
        Some(d) => {
            let seconds = u64::try_from(d.seconds).map_err(|_| invalid("expires_in", "is negative"))?;
            Duration::from_secs(seconds.max(1))
        }
    };
    if expires > MAX_EXPIRY {
        return Err(invalid("expires_in", format!("is longer than {} seconds", MAX_EXPIRY.as_secs())));
    }
    let is_report = path.strip_prefix(TRACKED).is_some_and(|rest| rest.starts_with('/') && rest.ends_with(REPORT));
    let length = (length > 0).then_some(length);
    Ok(Upload { path, md5, length, expires, keeps: named && !is_report })
}

/// A path that stays below where it is put.
fn relative(field: &str, path: &str) -> Result<String, PlaneError> {
    if path.len() > 512 {
        return Err(invalid(field, "is longer than 512 bytes"));
    }
    if path.starts_with('/') {
        return Err(invalid(field, "must be relative: it starts with a slash"));
    }
    for segment in path.trim_end_matches('/').split('/') {
        if matches!(segment, "" | "." | "..") {
            return Err(invalid(field, format!("{path:?} has an empty, '.' or '..' segment, which is not allowed")));
        }
        if segment.chars().any(|c| c.is_control() || c == '\\') {
            return Err(invalid(field, format!("{path:?} holds a backslash or a control character")));
        }
    }
    Ok(path.trim_end_matches('/').to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(filename: &str, root: &str, md5: &'static [u8]) -> CreateUploadLocationRequest {
        CreateUploadLocationRequest {
            filename: filename.into(),
            filename_root: root.into(),
            content_md5: md5.into(),
            ..Default::default()
        }
    }

    #[test]
    fn uploads_go_where_the_sdk_expects_them() {
        let md5 = &[0xab; 16];
        assert_eq!(upload(&request("f.tgz", "", md5)).unwrap().path, format!("uploads/{}/f.tgz", "ab".repeat(16)));
        assert_eq!(upload(&request("a/b.txt", "root", md5)).unwrap().path, "uploads/root/a/b.txt");
    }

    #[test]
    fn only_reports_of_tracked_runs_are_written_anew() {
        let keeps = |filename, root| upload(&request(filename, root, &[1; 16])).unwrap().keeps;
        assert!(!keeps("report.html", "tracked-runs/local-1/a0/1"));
        assert!(keeps("outputs.pb", "tracked-runs/local-1/a0/1") && keeps("inputs.pb", "tracked-runs/local-1/a0"));
        assert!(keeps("report.html", "mine") && keeps("report.html", "tracked-runs2/x"));
        assert!(!keeps("report.html", ""), "named by its content");
        let path = upload(&request("inputs.pb", "tracked-runs/local-1/a0", &[1; 16])).unwrap().path;
        assert_eq!(path, format!("{TRACKED}/local-1/a0/inputs.pb"));
    }

    #[test]
    fn what_would_leave_its_place_is_refused() {
        for bad in ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "a\\b", "a\nb", &"x".repeat(600)] {
            let error = upload(&request(bad, "root", &[0; 16])).unwrap_err();
            assert!(matches!(&error, PlaneError::Invalid { field, .. } if field == "filename"), "{bad:?}: {error}");
            assert!(upload(&request("f", bad, &[0; 16])).is_err(), "{bad:?}");
        }
        assert!(upload(&request("f", "", &[])).is_err());
        assert!(upload(&request("f", "", &[0; 15])).is_err());
    }
}
