//! The operations. Each begins with what the caller may do, and the [`Caller`] hands out the object's name only then.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::TryStreamExt;
use http_body_util::StreamBody;
use s3s::{
    S3, S3Error, S3Request, S3Response, S3Result,
    dto::{self, CopySource, ETag, ETagCondition, StreamingBlob},
    s3_error,
};

use super::{
    body::{Announced, verified},
    caller::Caller,
    condition::{Conditions, Verdict, http_date},
    error::s3_error_of,
};
use crate::{
    error::Error,
    listing::{Item, Page, PageRequest},
    store::{Declared, Meta, Objects, WriteMode},
    upload::{PART_NUMBER_MAX, PartRef},
    uri::Uri,
};

/// S3's own bound on a page and on a deletion.
const KEYS_MAX: usize = 1000;
/// What S3 answers when an uploader did not say.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// The MD5 of nothing, as the etag of what is not stored.
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

pub(super) struct Operations {
    objects: Objects,
}

impl Operations {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    fn caller<T>(&self, request: &S3Request<T>) -> S3Result<Caller<'_>> {
        Caller::of(&self.objects, request)
    }

    async fn page(&self, request: &PageRequest) -> S3Result<Page> {
        self.objects.page(request).await.map_err(s3_error_of)
    }
}

#[async_trait::async_trait]
impl S3 for Operations {
    async fn get_object(&self, request: S3Request<dto::GetObjectInput>) -> S3Result<S3Response<dto::GetObjectOutput>> {
        let uri = self.caller(&request)?.read(&request.input.bucket, &request.input.key)?;
        let input = request.input;
        let reading = self.objects.open(&uri).await.map_err(s3_error_of)?;
        let conditions = Conditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        check(&conditions, &reading.meta)?;

        let (meta, declared) = (reading.meta.clone(), reading.declared.clone());
        let range = match input.range {
            None => 0..meta.size,
            Some(range) => range
                .check(meta.size)
                .map_err(|_| s3_error_of(Error::BadRange { uri: uri.clone(), size: meta.size }))?,
        };
        let content_range =
            input.range.is_some().then(|| format!("bytes {}-{}/{}", range.start, range.end - 1, meta.size));
        let length = range.end - range.start;
        let content = reading.into_stream(range).await.map_err(s3_error_of)?;
        let frames = content.map_ok(http_body::Frame::data);
        Ok(S3Response::new(dto::GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            body: Some(StreamingBlob::from(s3s::Body::http_body_unsync(StreamBody::new(frames)))),
            content_length: i64::try_from(length).ok(),
            content_range,
            content_type: content_type(&declared),
            e_tag: Some(ETag::Strong(meta.etag)),
            last_modified: Some(http_date(meta.last_modified)),
            metadata: metadata(declared),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        let uri = self.caller(&request)?.read(&request.input.bucket, &request.input.key)?;
        let input = request.input;
        let reading = self.objects.open(&uri).await.map_err(s3_error_of)?;
        let conditions = Conditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        check(&conditions, &reading.meta)?;
        Ok(S3Response::new(dto::HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: i64::try_from(reading.meta.size).ok(),
            content_type: content_type(&reading.declared),
            e_tag: Some(ETag::Strong(reading.meta.etag)),
            last_modified: Some(http_date(reading.meta.last_modified)),
            metadata: metadata(reading.declared),
            ..Default::default()
        }))
    }

    async fn put_object(
        &self,
        mut request: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let caller = self.caller(&request)?;
        let (bucket, key) = (&request.input.bucket, &request.input.key);
        let length = request.input.content_length;
        if length == Some(0) && caller.write_directory(bucket, key)? {
            let e_tag = Some(ETag::Strong(EMPTY_MD5.to_owned()));
            return Ok(S3Response::new(dto::PutObjectOutput { e_tag, ..Default::default() }));
        }
        let uri = caller.write(bucket, key)?;
        let mode = write_mode(request.input.if_match.as_ref(), request.input.if_none_match.as_ref())?;
        let md5 = request.input.content_md5.as_deref();
        let announced = Announced::of(&request, &uri, length, md5, self.objects.max_object_bytes())?;
        let declared = declared(request.input.content_type.take(), request.input.metadata.take());
        let content = verified(&uri, request.input.body.take(), announced);
        let written = self.objects.write(&uri, content, &declared, mode).await.map_err(s3_error_of)?;
        let e_tag = Some(ETag::Strong(written.etag));
        Ok(S3Response::new(dto::PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let caller = self.caller(&request)?;
        let dto::DeleteObjectInput { bucket, key, if_match, if_match_last_modified_time, if_match_size, .. } =
            &request.input;
        if if_match.is_some() || if_match_last_modified_time.is_some() || if_match_size.is_some() {
            return Err(s3_error!(NotImplemented, "this endpoint does not offer conditional deletes"));
        }
        if !caller.write_directory(bucket, key)? {
            let uri = caller.write(bucket, key)?;
            self.objects.delete(&uri).await.map_err(s3_error_of)?;
        }
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<dto::DeleteObjectsInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
        let caller = self.caller(&request)?;
        let dto::DeleteObjectsInput { bucket, delete, .. } = &request.input;
        caller.bucket(bucket)?;
        if delete.objects.len() > KEYS_MAX {
            return Err(s3_error!(MalformedXML, "at most {KEYS_MAX} objects can be deleted at once"));
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for dto::ObjectIdentifier { key, .. } in &delete.objects {
            let result = match caller.write_directory(bucket, key) {
                Ok(true) => Ok(()),
                Ok(false) => match caller.write(bucket, key) {
                    Ok(uri) => self.objects.delete(&uri).await.map_err(s3_error_of),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => deleted.push(dto::DeletedObject { key: Some(key.clone()), ..Default::default() }),
                Err(error) => errors.push(dto::Error {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(key.clone()),
                    message: error.message().map(str::to_owned),
                    version_id: None,
                }),
            }
        }
        let deleted = (delete.quiet != Some(true)).then_some(deleted);
        Ok(S3Response::new(dto::DeleteObjectsOutput { deleted, errors: Some(errors), ..Default::default() }))
    }

    async fn copy_object(
        &self,
        request: S3Request<dto::CopyObjectInput>,
    ) -> S3Result<S3Response<dto::CopyObjectOutput>> {
        let caller = self.caller(&request)?;
        let CopySource::Bucket { bucket, key, version_id: None } = &request.input.copy_source else {
            return Err(s3_error!(NotImplemented, "only objects of this endpoint, without versions, can be copied"));
        };
        let from = caller.read(bucket, key)?;
        let to = caller.write(&request.input.bucket, &request.input.key)?;
        let mode = match request.headers.get(http::header::IF_NONE_MATCH) {
            None => WriteMode::Overwrite,
            Some(value) if value.as_bytes() == b"*" => WriteMode::Create,
            Some(_) => return Err(unsupported_condition()),
        };
        let input = request.input;
        let conditions = Conditions {
            if_match: input.copy_source_if_match,
            if_none_match: input.copy_source_if_none_match,
            if_modified_since: input.copy_source_if_modified_since,
            if_unmodified_since: input.copy_source_if_unmodified_since,
        };
        let source = self.objects.open(&from).await.map_err(s3_error_of)?.meta;
        if conditions.judge(&source) != Verdict::Proceed {
            return Err(s3_error!(PreconditionFailed));
        }
        let meta = self.objects.copy(&from, &to, mode).await.map_err(s3_error_of)?;
        let result = dto::CopyObjectResult {
            e_tag: Some(ETag::Strong(meta.etag)),
            last_modified: Some(http_date(meta.last_modified)),
            ..Default::default()
        };
        Ok(S3Response::new(dto::CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let prefix = request.input.prefix.clone().unwrap_or_default();
        self.caller(&request)?.list(&request.input.bucket, &prefix)?;
        let input = request.input;
        let max = max_keys(input.max_keys)?;
        let resume_after =
            match &input.continuation_token {
                None => None,
                Some(token) => Some(
                    URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(
                        || s3_error!(InvalidArgument, "the continuation token is not one of this endpoint"),
                    )?,
                ),
            };
        let page = self
            .page(&PageRequest {
                prefix,
                delimiter: input.delimiter.clone(),
                start_after: input.start_after.clone(),
                resume_after,
                max,
            })
            .await?;
        let next = page.truncated.then(|| page.items.last().map(|(name, _)| URL_SAFE_NO_PAD.encode(name))).flatten();
        let key_count = i32::try_from(page.items.len()).ok();
        let is_truncated = Some(page.truncated);
        let (contents, common_prefixes) = contents(page);
        Ok(S3Response::new(dto::ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: i32::try_from(max).ok(),
            key_count,
            is_truncated,
            next_continuation_token: next,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            ..Default::default()
        }))
    }

    async fn list_objects(
        &self,
        request: S3Request<dto::ListObjectsInput>,
    ) -> S3Result<S3Response<dto::ListObjectsOutput>> {
        let prefix = request.input.prefix.clone().unwrap_or_default();
        self.caller(&request)?.list(&request.input.bucket, &prefix)?;
        let input = request.input;
        let max = max_keys(input.max_keys)?;
        let page = self
            .page(&PageRequest {
                prefix,
                delimiter: input.delimiter.clone(),
                start_after: None,
                resume_after: input.marker.clone(),
                max,
            })
            .await?;
        let next_marker = page.truncated.then(|| page.items.last().map(|(name, _)| name.clone())).flatten();
        let is_truncated = Some(page.truncated);
        let (contents, common_prefixes) = contents(page);
        Ok(S3Response::new(dto::ListObjectsOutput {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            marker: input.marker,
            next_marker,
            max_keys: i32::try_from(max).ok(),
            is_truncated,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            ..Default::default()
        }))
    }

    async fn list_buckets(
        &self,
        request: S3Request<dto::ListBucketsInput>,
    ) -> S3Result<S3Response<dto::ListBucketsOutput>> {
        self.caller(&request)?;
        let bucket = dto::Bucket { name: Some(self.objects.bucket().to_owned()), ..Default::default() };
        Ok(S3Response::new(dto::ListBucketsOutput { buckets: Some(vec![bucket]), ..Default::default() }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        self.caller(&request)?.bucket(&request.input.bucket)?;
        Ok(S3Response::new(dto::HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<dto::GetBucketLocationInput>,
    ) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
        self.caller(&request)?.bucket(&request.input.bucket)?;
        Ok(S3Response::new(dto::GetBucketLocationOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        mut request: S3Request<dto::CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
        let uri = self.caller(&request)?.write(&request.input.bucket, &request.input.key)?;
        let declared = declared(request.input.content_type.take(), request.input.metadata.take());
        let upload = self.objects.upload_create(&uri, declared).await.map_err(s3_error_of)?;
        Ok(S3Response::new(dto::CreateMultipartUploadOutput {
            bucket: Some(request.input.bucket),
            key: Some(request.input.key),
            upload_id: Some(upload),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        mut request: S3Request<dto::UploadPartInput>,
    ) -> S3Result<S3Response<dto::UploadPartOutput>> {
        let uri = self.caller(&request)?.write(&request.input.bucket, &request.input.key)?;
        let number = part_number(request.input.part_number)?;
        let (length, md5) = (request.input.content_length, request.input.content_md5.as_deref());
        let announced = Announced::of(&request, &uri, length, md5, self.objects.max_object_bytes())?;
        let content = verified(&uri, request.input.body.take(), announced);
        let upload = &request.input.upload_id;
        let etag = self.objects.upload_part(&uri, upload, number, content).await.map_err(s3_error_of)?;
        let e_tag = Some(ETag::Strong(etag));
        Ok(S3Response::new(dto::UploadPartOutput { e_tag, ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<dto::CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
        let uri = self.caller(&request)?.write(&request.input.bucket, &request.input.key)?;
        let input = request.input;
        let mode = write_mode(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let mut parts = Vec::new();
        for part in input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default() {
            let number = part_number(part.part_number.unwrap_or_default())?;
            let etag = part.e_tag.map(ETag::into_value).unwrap_or_default();
            parts.push(PartRef { number, etag });
        }
        let completing = self.objects.upload_complete(&uri, &input.upload_id, &parts, mode);
        let written = completing.await.map_err(s3_error_of)?;
        Ok(S3Response::new(dto::CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(written.etag)),
            location: Some(location(&uri)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<dto::AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
        let uri = self.caller(&request)?.write(&request.input.bucket, &request.input.key)?;
        self.objects.upload_abort(&uri, &request.input.upload_id).await.map_err(s3_error_of)?;
        Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<dto::ListPartsInput>) -> S3Result<S3Response<dto::ListPartsOutput>> {
        let uri = self.caller(&request)?.write(&request.input.bucket, &request.input.key)?;
        let input = request.input;
        let max = max_keys(input.max_parts)?;
        let after = u32::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
        let listing = self.objects.upload_parts(&uri, &input.upload_id, after, max);
        let (parts, more) = listing.await.map_err(s3_error_of)?;
        let next = parts.last().filter(|_| more).and_then(|part| i32::try_from(part.number).ok());
        let parts = parts
            .into_iter()
            .map(|part| dto::Part {
                e_tag: Some(ETag::Strong(part.etag)),
                last_modified: Some(http_date(part.last_modified)),
                part_number: i32::try_from(part.number).ok(),
                size: i64::try_from(part.size).ok(),
                ..Default::default()
            })
            .collect();
        Ok(S3Response::new(dto::ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: i32::try_from(max).ok(),
            part_number_marker: input.part_number_marker,
            next_part_number_marker: next,
            is_truncated: Some(more),
            parts: Some(parts),
            ..Default::default()
        }))
    }
}

fn check(conditions: &Conditions, meta: &Meta) -> S3Result<()> {
    match conditions.judge(meta) {
        Verdict::Proceed => Ok(()),
        Verdict::NotModified => Err(s3_error!(NotModified)),
        Verdict::Failed => Err(s3_error!(PreconditionFailed, "the object is not the one that the condition asks for")),
    }
}

fn write_mode(if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> S3Result<WriteMode> {
    match (if_match, if_none_match) {
        (None, None) => Ok(WriteMode::Overwrite),
        (None, Some(ETagCondition::Any)) => Ok(WriteMode::Create),
        _ => Err(unsupported_condition()),
    }
}

fn unsupported_condition() -> S3Error {
    s3_error!(NotImplemented, "the only condition that this endpoint offers for writes is If-None-Match: *")
}

fn max_keys(asked: Option<i32>) -> S3Result<usize> {
    let asked = asked.unwrap_or(i32::MAX);
    match usize::try_from(asked) {
        Ok(asked) => Ok(asked.min(KEYS_MAX)),
        Err(_) => Err(s3_error!(InvalidArgument, "a page cannot have {asked} items")),
    }
}

fn part_number(number: i32) -> S3Result<u32> {
    match u32::try_from(number) {
        Ok(number @ 1..=PART_NUMBER_MAX) => Ok(number),
        _ => Err(s3_error!(InvalidArgument, "part numbers are 1 to {PART_NUMBER_MAX}, not {number}")),
    }
}

fn declared(content_type: Option<String>, metadata: Option<dto::Metadata>) -> Declared {
    Declared { content_type, metadata: metadata.unwrap_or_default().into_iter().collect() }
}

fn content_type(declared: &Declared) -> Option<String> {
    Some(declared.content_type.clone().unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned()))
}

fn metadata(declared: Declared) -> Option<dto::Metadata> {
    (!declared.metadata.is_empty()).then(|| declared.metadata.into_iter().collect())
}

fn contents(page: Page) -> (Vec<dto::Object>, Vec<dto::CommonPrefix>) {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    for (name, item) in page.items {
        match item {
            Item::CommonPrefix => prefixes.push(dto::CommonPrefix { prefix: Some(name) }),
            Item::Object(meta) => objects.push(dto::Object {
                key: Some(name),
                e_tag: Some(ETag::Strong(meta.etag)),
                last_modified: Some(http_date(meta.last_modified)),
                size: i64::try_from(meta.size).ok(),
                ..Default::default()
            }),
        }
    }
    (objects, prefixes)
}

fn location(uri: &Uri) -> String {
    format!("/{}/{}", uri.bucket(), uri.key())
}
