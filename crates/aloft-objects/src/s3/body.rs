//! The content of a request, held to everything that was announced about it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::HeaderMap;
use md5::{Digest, Md5};
use s3s::{
    S3Request, S3Result, TrailingHeaders,
    checksum::ChecksumHasher,
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    dto::{self, StreamingBlob},
    s3_error,
};

use super::error::s3_error_of;
use crate::{
    error::{Error, Rejection, Result},
    uri::Uri,
};

/// The hash of the whole content is verified by `s3s`; the rest is on us.
pub(super) struct Announced {
    length: Option<u64>,
    md5: Option<[u8; 16]>,
    /// Header names and values; the value may come after the content.
    checksums: Vec<(&'static str, Option<String>)>,
    trailers: Option<TrailingHeaders>,
}

const CHECKSUMS: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
];

impl Announced {
    /// What the headers of a request announce about its content; refuses at once what would be too large.
    pub(super) fn of<T>(
        request: &S3Request<T>,
        uri: &Uri,
        length: Option<i64>,
        md5: Option<&str>,
        max: u64,
    ) -> S3Result<Self> {
        let length = length.and_then(|length| u64::try_from(length).ok());
        if let Some(size) = length.filter(|length| *length > max) {
            return Err(s3_error_of(Error::TooLarge { uri: uri.clone(), size, max }));
        }
        let md5 = match md5 {
            None => None,
            Some(text) => match STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()) {
                Some(md5) => Some(md5),
                None => return Err(s3_error!(InvalidDigest, "Content-MD5 is not the base64 of 16 bytes")),
            },
        };
        let header = |headers: &HeaderMap, name: &str| Some(headers.get(name)?.to_str().ok()?.trim().to_owned());
        let trailing = header(&request.headers, "x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
        let checksums = CHECKSUMS
            .into_iter()
            .map(|name| (name, header(&request.headers, name)))
            .filter(|(name, value)| value.is_some() || trailing.split(',').any(|trailer| trailer.trim() == *name))
            .collect();
        Ok(Self { length, md5, checksums, trailers: request.trailing_headers.clone() })
    }
}

struct Verifying {
    uri: Uri,
    body: StreamingBlob,
    announced: Announced,
    received: u64,
    md5: Md5,
    checksums: ChecksumHasher,
}

/// The content as a stream that ends in an error if it is not what was announced.
pub(super) fn verified(
    uri: &Uri,
    body: Option<StreamingBlob>,
    announced: Announced,
) -> impl Stream<Item = Result<Bytes>> + Send + Unpin + 'static {
    let named = |name| announced.checksums.iter().any(|(announced, _)| *announced == name);
    let checksums = ChecksumHasher {
        crc32: named("x-amz-checksum-crc32").then(Crc32::new),
        crc32c: named("x-amz-checksum-crc32c").then(Crc32c::new),
        crc64nvme: named("x-amz-checksum-crc64nvme").then(Crc64Nvme::new),
        sha1: named("x-amz-checksum-sha1").then(Sha1::new),
        sha256: named("x-amz-checksum-sha256").then(Sha256::new),
    };
    let body = body.unwrap_or_else(|| StreamingBlob::from(s3s::Body::empty()));
    let state = Verifying { uri: uri.clone(), body, announced, received: 0, md5: Md5::new(), checksums };
    Box::pin(futures::stream::try_unfold(Some(state), |state| async move {
        let Some(mut state) = state else { return Ok(None) };
        match state.body.try_next().await {
            Ok(Some(chunk)) => {
                state.received += chunk.len() as u64;
                if state.announced.md5.is_some() {
                    state.md5.update(&chunk);
                }
                state.checksums.update(&chunk);
                Ok(Some((chunk, Some(state))))
            }
            Ok(None) => {
                let uri = state.uri.clone();
                state.finish().map_err(|rejection| Error::Rejected { uri, rejection })?;
                Ok(None)
            }
            Err(error) => Err(Error::Rejected { uri: state.uri, rejection: rejection_of(error) }),
        }
    }))
}

impl Verifying {
    fn finish(self) -> Result<(), Rejection> {
        let Self { announced, received, md5, checksums, .. } = self;
        if let Some(announced) = announced.length.filter(|length| *length != received) {
            return Err(Rejection::Length { received, announced });
        }
        if announced.md5.is_some_and(|announced| announced != <[u8; 16]>::from(md5.finalize())) {
            return Err(Rejection::Md5);
        }
        let trailers = announced.trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
        let actual = checksums.finalize();
        for (name, value) in announced.checksums {
            let trailing = || trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            if value.or_else(trailing) != checksum(&actual, name) {
                return Err(Rejection::Checksum(name));
            }
        }
        Ok(())
    }
}

fn checksum(actual: &dto::Checksum, name: &str) -> Option<String> {
    match name {
        "x-amz-checksum-crc32" => actual.checksum_crc32.clone(),
        "x-amz-checksum-crc32c" => actual.checksum_crc32c.clone(),
        "x-amz-checksum-crc64nvme" => actual.checksum_crc64nvme.clone(),
        "x-amz-checksum-sha1" => actual.checksum_sha1.clone(),
        _ => actual.checksum_sha256.clone(),
    }
}

/// `s3s` keeps the types of these errors to itself, so they are known by their texts. The tests would notice a change.
fn rejection_of(error: s3s::StdError) -> Rejection {
    let text = error.to_string();
    if text.ends_with("Sha256Mismatch") {
        Rejection::Sha256
    } else if text.ends_with("SignatureMismatch") {
        Rejection::Signature
    } else {
        Rejection::Broken(error)
    }
}
