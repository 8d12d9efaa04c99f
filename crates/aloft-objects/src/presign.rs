//! Presigned URLs: AWS Signature Version 4 in the query string.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    keys::Credentials,
    uri::Uri,
};

/// The one region; the endpoint accepts any, and this is what S3 clients assume when told nothing.
pub(crate) const REGION: &str = "us-east-1";

/// The longest validity that the signature scheme allows.
const EXPIRES_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// RFC 3986 "unreserved": what canonical requests leave as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// What a presigned upload promises about its content; each given promise is signed, so the server holds the uploader
/// to it.
#[derive(Clone, Debug, Default)]
pub struct PresignPut {
    /// How long the URL may be used, from 1 second to 7 days.
    pub expires: Duration,
    pub content_md5: Option<[u8; 16]>,
    /// In bytes.
    pub content_length: Option<u64>,
    pub content_type: Option<String>,
    /// User metadata, without the `x-amz-meta-` in front.
    pub metadata: BTreeMap<String, String>,
}

/// A URL that carries its own permission.
#[derive(Clone, PartialEq, Eq)]
pub struct Presigned {
    pub url: String,
    /// Headers that the request must send exactly so, in their customary case (`Content-MD5`): a client that sets one
    /// of them itself then overwrites the same entry instead of sending it twice.
    pub headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for Presigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The query is the permission.
        let path = self.url.split('?').next().unwrap_or_default();
        f.debug_struct("Presigned").field("path", &path).field("headers", &self.headers).finish_non_exhaustive()
    }
}

/// Where clients reach the S3 endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    scheme: String,
    /// As clients put it into their `Host` header: without a default port.
    host: String,
}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidEndpoint { value: url.to_owned(), reason };
        let parsed: http::Uri = url.parse().map_err(|_| invalid("it is not a URL"))?;
        let default_port = match parsed.scheme_str() {
            Some("http") => ":80",
            Some("https") => ":443",
            _ => return Err(invalid("it must start with http:// or https://")),
        };
        if !parsed.path().trim_matches('/').is_empty() || parsed.query().is_some() {
            return Err(invalid("it must not have a path or a query"));
        }
        let authority = parsed.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(invalid("it must name a host, and no user"));
        }
        let host = authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
        Ok(Self { scheme: parsed.scheme_str().unwrap_or_default().to_owned(), host })
    }
}

/// Everything that a signature depends on.
pub(crate) struct Request<'a> {
    pub method: &'static str,
    pub endpoint: &'a Endpoint,
    pub uri: &'a Uri,
    pub expires: Duration,
    pub now: Timestamp,
    /// In customary case.
    pub headers: BTreeMap<String, String>,
    /// Besides the signature's own parameters.
    pub query: Vec<(&'static str, String)>,
}

impl PresignPut {
    pub(crate) fn headers(&self) -> BTreeMap<String, String> {
        let Self { expires: _, content_md5, content_length, content_type, metadata } = self;
        let mut headers = BTreeMap::new();
        if let Some(md5) = content_md5 {
            headers.insert("Content-MD5".to_owned(), STANDARD.encode(md5));
        }
        if let Some(length) = content_length {
            headers.insert("Content-Length".to_owned(), length.to_string());
        }
        if let Some(content_type) = content_type {
            headers.insert("Content-Type".to_owned(), content_type.clone());
        }
        for (name, value) in metadata {
            headers.insert(format!("x-amz-meta-{}", name.to_ascii_lowercase()), value.trim().to_owned());
        }
        headers
    }
}

pub(crate) fn presign(request: Request<'_>, credentials: &Credentials) -> Result<Presigned> {
    let Request { method, endpoint, uri, expires, now, headers, query } = request;
    if expires.as_secs() == 0 || expires > EXPIRES_MAX {
        return Err(Error::InvalidExpiry { seconds: expires.as_secs() });
    }
    for (name, value) in &headers {
        let sendable = http::HeaderName::try_from(name.as_str()).is_ok()
            && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if !sendable {
            return Err(Error::InvalidMetadata { name: name.clone() });
        }
    }
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let scope = format!("{}/{REGION}/s3/aws4_request", &time[..8]);

    let mut signed: BTreeMap<String, &str> =
        headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    signed.insert("host".to_owned(), &endpoint.host);
    let signed_names = signed.keys().map(String::as_str).collect::<Vec<_>>().join(";");
    let canonical_headers: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();

    let mut parameters: Vec<(String, String)> = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("X-Amz-Credential", format!("{}/{scope}", credentials.access_key_id)),
        ("X-Amz-Date", time.clone()),
        ("X-Amz-Expires", expires.as_secs().to_string()),
        ("X-Amz-SignedHeaders", signed_names.clone()),
    ]
    .into_iter()
    .chain(query)
    .map(|(name, value)| (encode(name), encode(&value)))
    .collect();
    parameters.sort_unstable();
    let canonical_query =
        parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");

    let path = format!("/{}/{}", uri.bucket(), utf8_percent_encode(uri.key(), ENCODED_PATH));
    let canonical =
        format!("{method}\n{path}\n{canonical_query}\n{canonical_headers}\n{signed_names}\nUNSIGNED-PAYLOAD");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));

    let initial = format!("AWS4{}", credentials.secret_access_key).into_bytes();
    let key = [&time[..8], REGION, "s3", "aws4_request"]
        .into_iter()
        .fold(initial, |key, message| hmac(&key, message.as_bytes()));
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    let url = format!("{}://{}{path}?{canonical_query}&X-Amz-Signature={signature}", endpoint.scheme, endpoint.host);
    Ok(Presigned { url, headers })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mac: Hmac<Sha256> = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(message).finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the shape: that the signature is right is what the S3 endpoint checks in the integration tests.
    #[test]
    fn urls_are_canonical() {
        let endpoint = Endpoint::parse("https://s3.amazonaws.com").expect("an endpoint");
        let credentials = Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        };
        let uri = "s3://examplebucket/test.txt".parse().expect("a URI");
        let request = Request {
            method: "GET",
            endpoint: &endpoint,
            uri: &uri,
            expires: Duration::from_secs(86400),
            now: "2013-05-24T00:00:00Z".parse().expect("a time"),
            headers: BTreeMap::new(),
            query: Vec::new(),
        };
        let url = presign(request, &credentials).expect("presigned").url;
        assert!(url.starts_with(
            "https://s3.amazonaws.com/examplebucket/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=\
             AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&\
             X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
        ));
    }

    #[test]
    fn endpoints() {
        assert_eq!(Endpoint::parse("http://Localhost:80/").expect("ok").host, "localhost");
        assert_eq!(Endpoint::parse("http://127.0.0.1:30080").expect("ok").host, "127.0.0.1:30080");
        for url in ["", "localhost:30080", "ftp://x", "http://x/base", "http://u@x", "http://x/?a"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn validity_is_bounded() {
        let endpoint = Endpoint::parse("http://localhost").expect("an endpoint");
        let uri = "s3://bucket/key".parse().expect("a URI");
        let credentials = Credentials { access_key_id: "a".to_owned(), secret_access_key: "s".to_owned() };
        for seconds in [0, 7 * 24 * 3600 + 1] {
            let request = Request {
                method: "GET",
                endpoint: &endpoint,
                uri: &uri,
                expires: Duration::from_secs(seconds),
                now: Timestamp::UNIX_EPOCH,
                headers: BTreeMap::new(),
                query: Vec::new(),
            };
            assert!(matches!(presign(request, &credentials), Err(Error::InvalidExpiry { .. })));
        }
    }
}
