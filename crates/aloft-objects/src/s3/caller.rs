//! The one way from a request to an object's [`Uri`].

use s3s::{S3Request, S3Result, s3_error};

use super::error::s3_error_of;
use crate::{error::Error, keys::Claims, scope::Prefix, store::Objects, uri::Uri};

/// The sender of a request, and what it may do.
pub(super) struct Caller<'a> {
    objects: &'a Objects,
    claims: Claims,
}

impl<'a> Caller<'a> {
    /// Fails for requests that did not pass the gate.
    pub(super) fn of<T>(objects: &'a Objects, request: &S3Request<T>) -> S3Result<Self> {
        match request.extensions.get::<Claims>() {
            Some(claims) => Ok(Self { objects, claims: claims.clone() }),
            None => Err(s3_error!(AccessDenied)),
        }
    }

    pub(super) fn read(&self, bucket: &str, key: &str) -> S3Result<Uri> {
        self.bucket(bucket)?;
        if !self.claims.scope.may_read(key) {
            return Err(self.denied("read", key, &self.claims.scope.read));
        }
        // Nothing is stored under such a name, see `write_directory`.
        if key.ends_with('/') {
            return Err(s3_error!(NoSuchKey, "{key:?} names a directory, not an object"));
        }
        self.uri(key)
    }

    pub(super) fn write(&self, bucket: &str, key: &str) -> S3Result<Uri> {
        self.check_write(bucket, key)?;
        if key.ends_with('/') {
            return Err(s3_error!(InvalidArgument, "{key:?} names a directory; an object's name ends without a slash"));
        }
        self.uri(key)
    }

    /// Some clients mark directories by empty objects whose name ends in a slash. On a local disk directories come and
    /// go with their objects, so that is allowed and does nothing.
    pub(super) fn write_directory(&self, bucket: &str, key: &str) -> S3Result<bool> {
        if !key.ends_with('/') {
            return Ok(false);
        }
        self.check_write(bucket, key)?;
        self.uri(key)?;
        Ok(true)
    }

    pub(super) fn list(&self, bucket: &str, prefix: &str) -> S3Result<()> {
        self.bucket(bucket)?;
        if self.claims.scope.may_list(prefix) {
            return Ok(());
        }
        Err(self.denied("list", prefix, &self.claims.scope.read))
    }

    pub(super) fn bucket(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.objects.bucket() {
            return Ok(());
        }
        Err(s3_error!(
            NoSuchBucket,
            "there is no bucket {bucket:?} here; this endpoint serves {:?}",
            self.objects.bucket()
        ))
    }

    fn check_write(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.bucket(bucket)?;
        if self.claims.scope.may_write(key) {
            return Ok(());
        }
        Err(self.denied("write", key, &self.claims.scope.write))
    }

    fn uri(&self, key: &str) -> S3Result<Uri> {
        self.objects.uri(key).map_err(s3_error_of)
    }

    fn denied(&self, verb: &'static str, key: &str, allowed: &[Prefix]) -> s3s::S3Error {
        let allowed = match allowed {
            [] => "nothing".to_owned(),
            prefixes => prefixes.iter().map(Prefix::as_str).collect::<Vec<_>>().join(", "),
        };
        let subject = self.claims.subject.clone();
        s3_error_of(Error::Denied { subject, verb, what: format!("{key:?}"), allowed })
    }
}
