//! Users' data over the object store: the [`DataPlane`] of `aloft dev`.
//!
//! ```text
//! s3://{bucket}/{org}/{project}/{domain}/uploads/{md5 | filename root}/{file}     bundles, files, build contexts
//!                                       /uploads/tracked-runs/{run}/{action}/…      what is reported of tracked runs
//!                                       /inputs/{digest}/inputs.pb                inputs of runs, by content
//!                                       /runs/{run}/{action}/inputs.pb            inputs that a parent uploads
//!                                       /runs/{run}/{action}/{attempt}/…          outputs.pb, error.pb, report.html
//! ```
//!
//! **Invariant:** a URI that comes from a client is read or written only after [`Data::owned`] found it in the project's
//! own part of the bucket.

mod call;
mod hash;
mod names;
mod packed;

use std::{sync::Arc, time::Duration};

use aloft_core::{RunKey, Scope, TaskError, Time};
use aloft_flyteidl2::flyteidl2::{
    common::OffloadedInputData,
    dataproxy::{CreateUploadLocationRequest, CreateUploadLocationResponse},
    task::{Inputs, Outputs},
    workflow::{
        JsonValuesToLiteralsRequest, JsonValuesToLiteralsResponse, LaunchFormJsonToLiteralsRequest,
        LaunchFormJsonToLiteralsResponse, LiteralsToLaunchFormJsonRequest, LiteralsToLaunchFormJsonResponse,
        TaskSpecToLaunchFormJsonRequest, TaskSpecToLaunchFormJsonResponse,
    },
};
use aloft_objects::{Claims, Credentials, Error, Objects, Prefix, PresignPut, Rejection, Uri};
use aloft_plane::{AttemptId, BuiltImage, Call, DataPlane, LeasedAttempt, Link, LogStream, PlaneError};
use async_trait::async_trait;
use buffa::Message as _;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::{
    process::{self, Results},
    translate::{self, LiteralsSource, TranslateError},
};

/// Largest inputs or outputs that are read into memory, in bytes.
const MAX_LITERALS: u64 = 20 << 20;

/// From this size on few are read at a time, in bytes. Nearly all inputs and outputs are smaller.
const LARGE_LITERALS: u64 = 1 << 20;

/// How many large ones are in memory at once: 160 MiB of the largest, and what they become when they are decoded.
const LARGE_AT_ONCE: usize = 8;

/// Longest life of a link. The SDK asks for 15 minutes, its own cap is an hour.
const MAX_EXPIRY: Duration = Duration::from_secs(3600);

/// Life of a link when the request does not say.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(900);

/// Largest file that is uploaded through a link, in bytes.
const MAX_UPLOAD: u64 = 5 << 30;

/// The images of this data plane, by the names the SDK asks for.
#[async_trait]
pub trait Images: Send + Sync {
    /// The image called `name`, if it was built and is still there.
    async fn find(&self, name: &str) -> Result<Option<BuiltImage>, PlaneError>;

    /// Whether the image that tasks name as `fqin` can be used. True for images that are not of our making.
    async fn exists(&self, fqin: &str) -> bool;
}

/// The logs of this data plane.
#[async_trait]
pub trait AttemptLogs: Send + Sync {
    /// As [`DataPlane::tail_logs`].
    async fn tail(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError>;
}

/// Users' data over an object store.
pub struct Data {
    objects: Objects,
    images: Arc<dyn Images>,
    logs: Arc<dyn AttemptLogs>,
    clock: Arc<dyn Fn() -> Time + Send + Sync>,
    large: Semaphore,
}

impl Data {
    /// The data plane over `objects`.
    pub fn new(
        objects: Objects,
        images: Arc<dyn Images>,
        logs: Arc<dyn AttemptLogs>,
        clock: Arc<dyn Fn() -> Time + Send + Sync>,
    ) -> Self {
        Self { objects, images, logs, clock, large: Semaphore::new(LARGE_AT_ONCE) }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond((self.clock)().as_micros()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The project's own part of the bucket.
    fn project_root(&self, scope: &Scope) -> Result<Uri, PlaneError> {
        self.objects.uri(&format!("{}/{}", scope.org, scope.project)).map_err(plane)
    }

    fn root(&self, scope: &Scope) -> Result<Uri, PlaneError> {
        self.objects.uri(&format!("{}/{}/{}", scope.org, scope.project, scope.domain)).map_err(plane)
    }

    /// `uri`, once it is known to lie in the storage of `scope`'s project.
    fn owned(&self, scope: &Scope, uri: &str) -> Result<Uri, PlaneError> {
        let parsed: Uri = uri
            .trim_end_matches('/')
            .parse()
            .map_err(|e| PlaneError::Invalid { field: "uri".to_owned(), reason: format!("{e}") })?;
        if parsed.starts_with(&self.project_root(scope)?) {
            Ok(parsed)
        } else {
            Err(PlaneError::Denied(format!("{uri} is not in the storage of project {}", scope.project)))
        }
    }

    /// The message at `uri`; empty if there is no URI, `None` if there is no such object.
    async fn read<M: buffa::Message>(&self, scope: &Scope, uri: &str) -> Result<Option<M>, PlaneError> {
        if uri.is_empty() {
            return Ok(Some(M::default()));
        }
        let parsed = self.owned(scope, uri)?;
        let Some(meta) = self.objects.head(&parsed).await.map_err(plane)? else { return Ok(None) };
        let _room = match meta.size {
            size if size > MAX_LITERALS => {
                return Err(PlaneError::Exhausted(format!(
                    "{uri} has {size} bytes, more than the {MAX_LITERALS} that are shown; read it from the object store \
                     itself, or return large values as files"
                )));
            }
            // The semaphore is never closed.
            size if size > LARGE_LITERALS => self.large.acquire().await.ok(),
            _ => None,
        };
        match self.objects.get(&parsed, MAX_LITERALS).await {
            Ok(bytes) => M::decode_from_slice(&bytes)
                .map(Some)
                .map_err(|e| PlaneError::Unavailable(format!("{uri} is damaged and cannot be read: {e}"))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(plane(error)),
        }
    }
}

/// The credentials of an attempt: it reads in its project and writes under its run, and where the run says that its data
/// go.
///
/// # Errors
/// If the names are too long to be carried, which checked names never are.
pub fn attempt_credentials(objects: &Objects, attempt: &LeasedAttempt) -> Result<Credentials, PlaneError> {
    let run = &attempt.lease.id.run;
    let project = objects.uri(&format!("{}/{}", run.scope.org, run.scope.project)).map_err(plane)?;
    let own = objects.uri(&run_key(run)).map_err(plane)?;
    let mut write = vec![Prefix::below(&own)];
    // What the run or the settings name instead. It was checked when the run was created, and is never beyond the project.
    for named in [attempt.run_base.clone(), attempt.raw_prefix()] {
        match named.parse::<Uri>() {
            Ok(uri) if uri.starts_with(&project) && !uri.starts_with(&own) => write.push(Prefix::below(&uri)),
            _ => {}
        }
    }
    let scope = aloft_objects::Scope { read: vec![Prefix::below(&project)], write };
    let claims = Claims { scope, subject: attempt.lease.id.to_string(), expires: None };
    objects.keys().derive(&claims).map_err(plane)
}

fn run_key(run: &RunKey) -> String {
    format!("{}/{}/{}/runs/{}", run.scope.org, run.scope.project, run.scope.domain, run.name)
}

/// The object store's errors as the seam's.
pub(crate) fn plane(error: Error) -> PlaneError {
    let text = error.to_string();
    match error {
        Error::NotFound { .. } | Error::NoSuchUpload { .. } => PlaneError::NotFound(text),
        Error::AlreadyExists { .. } | Error::Occupied { .. } => PlaneError::Exists(text),
        Error::Denied { .. } | Error::OtherBucket { .. } => PlaneError::Denied(text),
        Error::TooLarge { .. } | Error::Full { .. } => PlaneError::Exhausted(text),
        Error::Rejected { rejection: Rejection::Md5, .. } => {
            PlaneError::Invalid { field: "content_md5".to_owned(), reason: text }
        }
        Error::Unavailable { source, .. } => {
            tracing::error!(%source, "{text}");
            PlaneError::Unavailable(text)
        }
        _ => PlaneError::Invalid { field: "uri".to_owned(), reason: text },
    }
}

fn translated(error: TranslateError) -> PlaneError {
    if error.is_unsupported() {
        PlaneError::Unsupported(error.to_string())
    } else {
        PlaneError::Invalid { field: error.path.clone(), reason: error.problem.to_string() }
    }
}

fn wire_time(at: Timestamp) -> buffa_types::google::protobuf::Timestamp {
    buffa_types::google::protobuf::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
        ..Default::default()
    }
}

#[async_trait]
impl DataPlane for Data {
    fn run_base(&self, run: &RunKey) -> String {
        format!("s3://{}/{}", self.objects.bucket(), run_key(run))
    }

    fn tracked_base(&self, run: &RunKey) -> String {
        let Scope { org, project, domain } = &run.scope;
        format!("s3://{}/{org}/{project}/{domain}/{}/{}", self.objects.bucket(), names::TRACKED, run.name)
    }

    fn owns(&self, scope: &Scope, uri: &str) -> bool {
        self.owned(scope, uri).is_ok()
    }

    async fn create_upload_location(
        &self,
        scope: &Scope,
        request: CreateUploadLocationRequest,
    ) -> Result<CreateUploadLocationResponse, PlaneError> {
        let asked = names::upload(&request)?;
        let uri = self
            .root(scope)?
            .join(&asked.path)
            .map_err(|e| PlaneError::Invalid { field: "filename".to_owned(), reason: e.to_string() })?;
        if let (Some(md5), true) = (asked.md5, asked.keeps)
            && self.objects.head(&uri).await.map_err(plane)?.is_some()
            && self.objects.content_md5(&uri).await.map_err(plane)? != md5
        {
            return Err(PlaneError::Exists(format!(
                "{uri} exists with other content; choose another filename or filename_root"
            )));
        }
        let now = self.now();
        let put = PresignPut {
            expires: asked.expires,
            content_md5: asked.md5,
            content_length: asked.length,
            ..PresignPut::default()
        };
        let presigned = self.objects.presign_put(&uri, &put, now).map_err(plane)?;
        Ok(CreateUploadLocationResponse {
            signed_url: presigned.url,
            native_url: uri.to_string(),
            expires_at: wire_time(now + asked.expires).into(),
            headers: presigned.headers.into_iter().collect(),
            ..Default::default()
        })
    }

    async fn upload_inputs(
        &self,
        scope: &Scope,
        base: &str,
        inputs: Inputs,
        ignored: &[String],
    ) -> Result<OffloadedInputData, PlaneError> {
        let root = if base.is_empty() { self.root(scope)? } else { self.owned(scope, base)? };
        let bytes = inputs.encode_to_bytes();
        if bytes.len() as u64 > MAX_LITERALS {
            return Err(PlaneError::Exhausted(format!(
                "the inputs have {} bytes, more than the {MAX_LITERALS} allowed; pass large values as files",
                bytes.len()
            )));
        }
        // Named by all of their bytes: inputs that differ only in what the hash ignores never overwrite one another.
        let uri = root.join(&format!("inputs/{}/inputs.pb", hash::content(&bytes)));
        let uri = uri.map_err(|e| PlaneError::Unavailable(e.to_string()))?;
        match self.objects.put_new(&uri, bytes).await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(plane(error)),
        }
        let inputs_hash = hash::inputs(&inputs, ignored);
        Ok(OffloadedInputData { uri: uri.to_string(), inputs_hash, ..Default::default() })
    }

    async fn read_data(
        &self,
        scope: &Scope,
        inputs_uri: &str,
        outputs_uri: &str,
    ) -> Result<(Option<Inputs>, Option<Outputs>), PlaneError> {
        tokio::try_join!(self.read::<Inputs>(scope, inputs_uri), self.read::<Outputs>(scope, outputs_uri))
    }

    async fn missing(&self, scope: &Scope, uris: &[String]) -> Result<Vec<String>, PlaneError> {
        let mut missing = Vec::new();
        for uri in uris {
            let there = match uri.split_once("://") {
                Some(("s3", _)) => match self.owned(scope, uri) {
                    Ok(parsed) => self.objects.head(&parsed).await.map_err(plane)?.is_some(),
                    // Elsewhere: not ours to know. A task that may not read it will say so.
                    Err(PlaneError::Denied(_)) => !uri.starts_with(&format!("s3://{}/", self.objects.bucket())),
                    Err(error) => return Err(error),
                },
                _ => self.images.exists(uri).await,
            };
            if !there {
                missing.push(uri.clone());
            }
        }
        Ok(missing)
    }

    async fn read_error(&self, scope: &Scope, prefix: &str) -> Result<Option<TaskError>, PlaneError> {
        self.owned(scope, prefix)?;
        let results = Results::read(&self.objects, prefix).await?;
        Ok(results.error.and_then(Result::ok).map(process::task_error))
    }

    async fn call(&self, call: &Call) -> Result<(), PlaneError> {
        call::post(call).await
    }

    async fn download_link(&self, scope: &Scope, uri: &str, expires: Option<Duration>) -> Result<Link, PlaneError> {
        let parsed = self.owned(scope, uri)?;
        if self.objects.head(&parsed).await.map_err(plane)?.is_none() {
            return Err(PlaneError::NotFound(format!("{uri} does not exist")));
        }
        let expires = expires.filter(|e| !e.is_zero()).unwrap_or(DEFAULT_EXPIRY).min(MAX_EXPIRY);
        let now = self.now();
        let presigned = if uri.ends_with(".html") {
            self.objects.presign_view(&parsed, "text/html; charset=utf-8", expires, now)
        } else {
            self.objects.presign_get(&parsed, expires, now)
        };
        let expires_at = Time::from_micros((now + expires).as_microsecond());
        Ok(Link { url: presigned.map_err(plane)?.url, expires_at })
    }

    async fn tail_logs(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError> {
        self.logs.tail(attempt).await
    }

    async fn get_image(&self, _: &Scope, name: &str) -> Result<Option<BuiltImage>, PlaneError> {
        self.images.find(name).await
    }

    async fn literals_to_form(
        &self,
        scope: &Scope,
        request: LiteralsToLaunchFormJsonRequest,
    ) -> Result<LiteralsToLaunchFormJsonResponse, PlaneError> {
        let variables = request.variables.as_option().cloned().unwrap_or_default();
        let literals = match translate::literals_source(&request).map_err(translated)? {
            LiteralsSource::Inline(literals) => literals.to_vec(),
            LiteralsSource::Action { uri, .. } => {
                let file = if uri.ends_with(".pb") { uri.to_owned() } else { format!("{uri}/inputs.pb") };
                // Field 1 of inputs and of outputs is the same on the wire.
                self.read::<Inputs>(scope, &file).await?.unwrap_or_default().literals
            }
            LiteralsSource::Trigger(_) => {
                return Err(PlaneError::Unsupported("triggers are not built yet".to_owned()));
            }
        };
        translate::literals_to_launch_form_json(&literals, &variables).map_err(translated)
    }

    async fn form_to_literals(
        &self,
        request: LaunchFormJsonToLiteralsRequest,
    ) -> Result<LaunchFormJsonToLiteralsResponse, PlaneError> {
        translate::launch_form_json_to_literals(&request).map_err(translated)
    }

    async fn task_spec_to_form(
        &self,
        request: TaskSpecToLaunchFormJsonRequest,
    ) -> Result<TaskSpecToLaunchFormJsonResponse, PlaneError> {
        translate::task_spec_to_launch_form_json(&request).map_err(translated)
    }

    async fn values_to_literals(
        &self,
        request: JsonValuesToLiteralsRequest,
    ) -> Result<JsonValuesToLiteralsResponse, PlaneError> {
        translate::json_values_to_literals(&request).map_err(translated)
    }
}

/// What the executor reads of an attempt's results, and writes for those that have no process.
#[async_trait]
impl crate::seam::ResultStore for Objects {
    async fn get(&self, uri: &str, max: usize) -> Result<Option<Bytes>, PlaneError> {
        let parsed: Uri = uri.parse().map_err(|e| PlaneError::Unavailable(format!("{uri}: {e}")))?;
        match Objects::get(self, &parsed, max as u64).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(Error::TooLarge { .. }) => {
                Objects::get_range(self, &parsed, 0..max as u64).await.map(Some).map_err(plane)
            }
            Err(error) => Err(plane(error)),
        }
    }

    async fn exists(&self, uri: &str) -> Result<bool, PlaneError> {
        let parsed: Uri = uri.parse().map_err(|e| PlaneError::Unavailable(format!("{uri}: {e}")))?;
        Ok(self.head(&parsed).await.map_err(plane)?.is_some())
    }
    async fn put(&self, uri: &str, content: Bytes) -> Result<(), PlaneError> {
        let parsed: Uri = uri.parse().map_err(|e| PlaneError::Unavailable(format!("{uri}: {e}")))?;
        Objects::put(self, &parsed, content).await.map(drop).map_err(plane)
    }
}
