//! Who is at the door: signatures in, [`Claims`] out.

use http::HeaderMap;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use s3s::{
    S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    s3_error,
};

use crate::keys::{Claims, Keys, Refused};

/// Every operation that `ops` implements, and so authorizes. What is not here is refused before it starts.
const OPERATIONS: [&str; 16] = [
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CopyObject",
    "CreateMultipartUpload",
    "DeleteObject",
    "DeleteObjects",
    "GetBucketLocation",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListBuckets",
    "ListObjects",
    "ListObjectsV2",
    "ListParts",
    "PutObject",
    "UploadPart",
];

pub(super) struct Gate {
    keys: Keys,
}

impl Gate {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys }
    }

    fn verify(&self, access_key_id: &str) -> S3Result<(Claims, SecretKey)> {
        // `s3s` reads the same clock for the expiry of the signature itself.
        match self.keys.verify(access_key_id, Timestamp::now()) {
            Ok((claims, credentials)) => Ok((claims, credentials.secret_access_key.into())),
            Err(refused @ Refused::Unknown) => Err(s3_error!(InvalidAccessKeyId, "{refused}")),
            Err(refused @ Refused::Expired { .. }) => Err(s3_error!(ExpiredToken, "{refused}")),
        }
    }
}

#[async_trait::async_trait]
impl S3Auth for Gate {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.verify(access_key).map(|(_, secret)| secret)
    }
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = cx.s3_op().name();
        let Some(credentials) = cx.credentials() else {
            return Err(s3_error!(AccessDenied, "requests must be signed (AWS Signature Version 4)"));
        };
        if !OPERATIONS.contains(&operation) {
            return Err(s3_error!(NotImplemented, "this endpoint does not offer {operation}"));
        }
        let Some(signed) = signed_headers(cx.uri().query().unwrap_or_default(), cx.headers()) else {
            return Err(s3_error!(InvalidRequest, "only AWS Signature Version 4 is accepted"));
        };
        if let Some(name) = unsigned_header(&signed, cx.headers()) {
            return Err(s3_error!(AccessDenied, "the header {name} is present but was not signed"));
        }
        let (claims, _) = self.verify(&credentials.access_key)?;
        cx.extensions_mut().insert(claims);
        Ok(())
    }
}

/// The headers that a version 4 signature covers, in lower case, separated by `;`; `None` for any other signature.
fn signed_headers(query: &str, headers: &HeaderMap) -> Option<String> {
    // Names are decoded too, as `s3s` does: both must see the same parameters.
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let parameter = |wanted: &str| {
        query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name) == wanted).then(|| decoded(value))
        })
    };
    // The order in which `s3s` looks, and likewise never a version 2 signature.
    if parameter("Signature").is_some() {
        return None;
    }
    if parameter("X-Amz-Signature").is_some() {
        return parameter("X-Amz-SignedHeaders");
    }
    let authorization = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256")?;
    let signed = fields.split(',').find_map(|field| field.trim().strip_prefix("SignedHeaders="))?;
    Some(signed.to_owned())
}

/// An `x-amz-` header changes what a request does (`x-amz-copy-source` turns a write into a copy), so one that the
/// signer did not see must not count as his.
fn unsigned_header<'a>(signed: &str, headers: &'a HeaderMap) -> Option<&'a str> {
    // It only announces the hash of the content, and the content is held to it.
    const HARMLESS: [&str; 1] = ["x-amz-content-sha256"];
    headers
        .keys()
        .map(|name| name.as_str())
        .find(|name| name.starts_with("x-amz-") && !HARMLESS.contains(name) && !signed.split(';').any(|s| s == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_headers_are_found_in_either_place() {
        let mut headers = HeaderMap::new();
        let query = "X-Amz-SignedHeaders=content-md5%3Bhost&X-Amz-Signature=ab";
        assert_eq!(signed_headers(query, &headers).as_deref(), Some("content-md5;host"));
        assert_eq!(signed_headers("", &headers), None);
        let value = "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;x-amz-date, Signature=ab";
        headers.insert("authorization", value.parse().expect("a header"));
        assert_eq!(signed_headers("", &headers).as_deref(), Some("host;x-amz-date"));
        headers.insert("authorization", "AWS a:b".parse().expect("a header"));
        assert_eq!(signed_headers("", &headers), None);
        assert_eq!(signed_headers("AWSAccessKeyId=a&Signature=b", &headers), None);
        headers.insert("authorization", value.parse().expect("a header"));
        assert_eq!(signed_headers("%53ignature=b", &headers), None);
        assert_eq!(signed_headers("%58-Amz-Signature=b&X-Amz-SignedHeaders=host", &headers).as_deref(), Some("host"));
    }

    #[test]
    fn unsigned_amazon_headers_are_found() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-copy-source", "a/b".parse().expect("a header"));
        headers.insert("x-amz-content-sha256", "UNSIGNED-PAYLOAD".parse().expect("a header"));
        headers.insert("range", "bytes=0-1".parse().expect("a header"));
        assert_eq!(unsigned_header("host", &headers), Some("x-amz-copy-source"));
        assert_eq!(unsigned_header("host;x-amz-copy-source", &headers), None);
    }
}
