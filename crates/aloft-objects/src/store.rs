//! Reading and writing objects.
//!
//! A write is complete or absent: bytes go to an unfinished file first, which is synced, renamed into place, and its
//! directory synced, before the call returns. (`object_store` does this itself when asked to.) A delete is not synced:
//! an object that comes back after a power failure is deleted again by whoever wanted it gone.
//!
//! On a local disk, names are files: an object cannot have other objects below its own name. Such a write fails with
//! [`Error::Occupied`] and changes nothing.

use std::{
    collections::BTreeMap,
    io::SeekFrom,
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use jiff::Timestamp;
use md5::{Digest, Md5};
use object_store::{
    Attribute, AttributeValue, Attributes as BackendAttributes, CopyMode, CopyOptions, GetOptions, GetRange,
    GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    RenameOptions, RenameTargetMode, local::LocalFileSystem, memory::InMemory, path::Path,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::{
    error::{Error, Result, from_backend, from_backend_absent},
    keys::{Claims, Credentials, Keys},
    layout,
    listing::{Item, Page, PageRequest, Pager},
    presign::{self, Endpoint, PresignPut, Presigned},
    scope::{Prefix, Scope},
    uri::Uri,
};

/// Up to here an object is written by one call from memory; beyond, in chunks of this size. It is also what one write
/// in progress holds in memory (twice, while a chunk is being handed over).
const CHUNK_BYTES: usize = 1 << 20;

/// What one read in progress holds in memory. Each chunk is one hop to a blocking thread, which small ones would make
/// dominate.
const READ_BYTES: usize = 256 << 10;

/// What S3 allows for a single object is 5 TiB; a disk of one machine is the tighter bound, and this catches runaways.
const MAX_OBJECT_BYTES: u64 = 1 << 40;

/// The user metadata in which the SDK's uploads carry their MD5.
const MD5_METADATA: &str = "flytecontentmd5";

/// The object store. Cheap to clone; all clones are the same store.
#[derive(Clone, Debug)]
pub struct Objects {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    /// Writes are on disk when they return.
    durable: Arc<dyn ObjectStore>,
    /// The same place, without waiting for the disk: for what a crash may lose.
    scratch: Arc<dyn ObjectStore>,
    /// Where the files are, if the backend is a local directory.
    directory: Option<PathBuf>,
    bucket: String,
    endpoint: Endpoint,
    keys: Keys,
    max_object_bytes: u64,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// In bytes.
    pub size: u64,
    /// Changes with every write; without quotes.
    pub etag: String,
    pub last_modified: Timestamp,
    /// The MD5 its uploader declared, if the backend keeps metadata. A local directory does not: see
    /// [`Objects::content_md5`].
    pub md5: Option<[u8; 16]>,
}

/// One object of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub uri: Uri,
    pub meta: Meta,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In order of their keys.
    pub entries: Vec<Entry>,
    /// Whether there are more than were asked for.
    pub truncated: bool,
}

/// What to do if the object exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    Overwrite,
    /// Fail with [`Error::AlreadyExists`]; of several writers at once, one wins.
    Create,
}

/// A completed write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// In bytes.
    pub size: u64,
    pub etag: String,
}

/// What an uploader says about an object. Kept where the backend can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Declared {
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// An object that was found, and stays readable as it is even if it is overwritten meanwhile.
pub(crate) struct Reading {
    pub meta: Meta,
    pub declared: Declared,
    uri: Uri,
    path: Path,
    /// As the backend writes it.
    backend_etag: Option<String>,
    payload: GetResultPayload,
    store: Arc<dyn ObjectStore>,
}

impl Objects {
    /// A store in the local directory `directory` (created if missing), whose S3 endpoint clients reach at
    /// `endpoint_url` (`http://localhost:30080`).
    pub fn local(directory: &FilePath, bucket: &str, endpoint_url: &str, keys: Keys) -> Result<Self> {
        let uri = Uri::new(bucket, "")?;
        let unavailable = |source| Error::Unavailable { uri: uri.clone(), source };
        std::fs::create_dir_all(directory).map_err(|error| unavailable(Box::new(error)))?;
        let scratch = LocalFileSystem::new_with_prefix(directory)
            .map_err(|error| unavailable(Box::new(error)))?
            // Without it, the empty directories of deleted objects would keep their names from being used by objects.
            .with_automatic_cleanup(true);
        let directory = directory.canonicalize().map_err(|error| unavailable(Box::new(error)))?;
        let durable = scratch.clone().with_fsync(true);
        Self::on(Arc::new(durable), Arc::new(scratch), Some(directory), bucket, endpoint_url, keys)
    }

    /// A store in memory, for tests.
    pub fn memory(bucket: &str, endpoint_url: &str, keys: Keys) -> Result<Self> {
        let store = Arc::new(InMemory::new());
        Self::on(store.clone(), store, None, bucket, endpoint_url, keys)
    }

    fn on(
        durable: Arc<dyn ObjectStore>,
        scratch: Arc<dyn ObjectStore>,
        directory: Option<PathBuf>,
        bucket: &str,
        endpoint_url: &str,
        keys: Keys,
    ) -> Result<Self> {
        let bucket = Uri::new(bucket, "")?.bucket().to_owned();
        let endpoint = Endpoint::parse(endpoint_url)?;
        let max_object_bytes = MAX_OBJECT_BYTES;
        Ok(Self { inner: Arc::new(Inner { durable, scratch, directory, bucket, endpoint, keys, max_object_bytes }) })
    }

    /// The same store, presigning URLs for another address of its endpoint.
    pub fn with_endpoint_url(&self, endpoint_url: &str) -> Result<Self> {
        let endpoint = Endpoint::parse(endpoint_url)?;
        Ok(Self { inner: Arc::new(Inner { endpoint, ..Inner::clone(&self.inner) }) })
    }

    /// The same store, refusing objects of more than `bytes` (1 TiB if not set).
    pub fn with_max_object_bytes(&self, bytes: u64) -> Self {
        Self { inner: Arc::new(Inner { max_object_bytes: bytes, ..Inner::clone(&self.inner) }) }
    }

    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }

    /// The name that all objects of this store lie below.
    pub fn root(&self) -> Result<Uri> {
        self.uri("")
    }

    /// The object `key` of this store's bucket.
    pub fn uri(&self, key: &str) -> Result<Uri> {
        Ok(Uri::new(self.bucket(), key)?)
    }

    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// Writes a whole object, durably, replacing what was there.
    pub async fn put(&self, uri: &Uri, content: Bytes) -> Result<Written> {
        let content = futures::stream::iter([Ok(content)]);
        self.write(uri, content, &Declared::default(), WriteMode::Overwrite).await
    }

    /// Writes a whole object, durably, unless there is one already ([`Error::AlreadyExists`]).
    pub async fn put_new(&self, uri: &Uri, content: Bytes) -> Result<Written> {
        let content = futures::stream::iter([Ok(content)]);
        self.write(uri, content, &Declared::default(), WriteMode::Create).await
    }

    /// Writes an object of any size, durably, replacing what was there. Holds about 2 MiB of it at a time; an error in
    /// the stream leaves everything as it was.
    pub async fn put_stream(
        &self,
        uri: &Uri,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<Written> {
        self.write(uri, content, &Declared::default(), WriteMode::Overwrite).await
    }

    /// Reads an object of any size, in chunks of at most 256 KiB.
    pub async fn get_stream(&self, uri: &Uri) -> Result<(Meta, BoxStream<'static, Result<Bytes>>)> {
        let reading = self.open(uri).await?;
        let meta = reading.meta.clone();
        Ok((meta.clone(), reading.into_stream(0..meta.size).await?))
    }

    /// Reads a whole object of at most `max_bytes`; a larger one is refused before it is read.
    pub async fn get(&self, uri: &Uri, max_bytes: u64) -> Result<Bytes> {
        let reading = self.open(uri).await?;
        let size = reading.meta.size;
        if size > max_bytes {
            return Err(Error::TooLarge { uri: uri.clone(), size, max: max_bytes });
        }
        reading.bytes(0..size).await
    }

    /// Reads the bytes `range` of an object, less what lies after its end; [`Error::BadRange`] if all of it does.
    pub async fn get_range(&self, uri: &Uri, range: Range<u64>) -> Result<Bytes> {
        let reading = self.open(uri).await?;
        let size = reading.meta.size;
        if range.start >= size || range.is_empty() {
            return Err(Error::BadRange { uri: uri.clone(), size });
        }
        reading.bytes(range.start..range.end.min(size)).await
    }

    /// What is known of an object; `None` if it does not exist.
    pub async fn head(&self, uri: &Uri) -> Result<Option<Meta>> {
        match self.open(uri).await {
            Ok(reading) => Ok(Some(reading.meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The MD5 of an object's content, computed by reading it unless its uploader declared it.
    pub async fn content_md5(&self, uri: &Uri) -> Result<[u8; 16]> {
        let reading = self.open(uri).await?;
        if let Some(md5) = reading.meta.md5 {
            return Ok(md5);
        }
        let size = reading.meta.size;
        let mut content = reading.into_stream(0..size).await?;
        let mut md5 = Md5::new();
        while let Some(chunk) = content.try_next().await? {
            md5.update(&chunk);
        }
        Ok(md5.finalize().into())
    }

    /// The first `max` objects below `prefix`, in order of their keys. Costs a walk over all of them.
    pub async fn list(&self, prefix: &Uri, max: usize) -> Result<Listing> {
        self.check_bucket(prefix)?;
        let page = self.page(&PageRequest { prefix: directory_text(prefix), max, ..PageRequest::default() }).await?;
        let mut entries = Vec::with_capacity(page.items.len());
        for (key, item) in page.items {
            if let Item::Object(meta) = item {
                entries.push(Entry { uri: self.uri(&key)?, meta });
            }
        }
        Ok(Listing { entries, truncated: page.truncated })
    }

    /// Deletes an object; that it does not exist is success.
    pub async fn delete(&self, uri: &Uri) -> Result<()> {
        let path = self.path(uri)?;
        match self.inner.durable.delete(&path).await.map_err(|error| from_backend_absent(uri, error)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes every object below `prefix` (not one at that very name) and says how many there were.
    pub async fn delete_prefix(&self, prefix: &Uri) -> Result<u64> {
        self.check_bucket(prefix)?;
        match layout::directory(self.bucket(), prefix.key()) {
            Some(directory) => self.delete_directory(prefix, &directory).await,
            None => Ok(0),
        }
    }

    /// A URL with which anyone can read this object until `expires` from `now`.
    pub fn presign_get(&self, uri: &Uri, expires: Duration, now: Timestamp) -> Result<Presigned> {
        self.presign_read(uri, expires, now, Vec::new())
    }

    /// The same, answered with this content type: for what a browser shall show instead of download.
    pub fn presign_view(&self, uri: &Uri, content_type: &str, expires: Duration, now: Timestamp) -> Result<Presigned> {
        self.presign_read(uri, expires, now, vec![("response-content-type", content_type.to_owned())])
    }

    /// A URL with which anyone can write this object, as `put` promises it, until it expires.
    pub fn presign_put(&self, uri: &Uri, put: &PresignPut, now: Timestamp) -> Result<Presigned> {
        self.path(uri)?;
        let scope = Scope { read: Vec::new(), write: vec![Prefix::exactly(uri)] };
        let request = presign::Request {
            method: "PUT",
            endpoint: &self.inner.endpoint,
            uri,
            expires: put.expires,
            now,
            headers: put.headers(),
            query: Vec::new(),
        };
        presign::presign(request, &self.presigner(scope)?)
    }

    fn presign_read(
        &self,
        uri: &Uri,
        expires: Duration,
        now: Timestamp,
        query: Vec<(&'static str, String)>,
    ) -> Result<Presigned> {
        self.path(uri)?;
        let scope = Scope { read: vec![Prefix::exactly(uri)], write: Vec::new() };
        let endpoint = &self.inner.endpoint;
        let request = presign::Request { method: "GET", endpoint, uri, expires, now, headers: BTreeMap::new(), query };
        presign::presign(request, &self.presigner(scope)?)
    }

    /// A presigned URL is signed by credentials for its one object, so that whatever is found to bend such a URL bends
    /// it nowhere else.
    fn presigner(&self, scope: Scope) -> Result<Credentials> {
        self.inner.keys.derive(&Claims { scope, subject: "presigned".to_owned(), expires: None })
    }

    pub(crate) async fn open(&self, uri: &Uri) -> Result<Reading> {
        let path = self.path(uri)?;
        self.open_path(uri, path).await
    }

    pub(crate) async fn open_path(&self, uri: &Uri, path: Path) -> Result<Reading> {
        let store = self.inner.durable.clone();
        let found =
            store.get_opts(&path, GetOptions::default()).await.map_err(|error| from_backend_absent(uri, error))?;
        let declared = Declared::from(&found.attributes);
        let meta = Meta { md5: declared.md5(), ..meta_of(&found.meta) };
        Ok(Reading {
            meta,
            declared,
            uri: uri.clone(),
            path,
            backend_etag: found.meta.e_tag,
            payload: found.payload,
            store,
        })
    }

    pub(crate) async fn write(
        &self,
        uri: &Uri,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
        declared: &Declared,
        mode: WriteMode,
    ) -> Result<Written> {
        let path = self.path(uri)?;
        let mut chunks = Chunks::new(uri, content, self.inner.max_object_bytes);
        let first = chunks.next().await?;
        let attributes = self.attributes(declared);
        let result = if first.len() < CHUNK_BYTES {
            let mode = match mode {
                WriteMode::Overwrite => PutMode::Overwrite,
                WriteMode::Create => PutMode::Create,
            };
            let options = PutOptions { mode, attributes, ..PutOptions::default() };
            let put = self.inner.durable.put_opts(&path, PutPayload::from(first), options).await;
            put.map(|done| done.e_tag).map_err(|error| from_backend(uri, error))
        } else {
            match mode {
                WriteMode::Overwrite => self.write_large(uri, &path, first, &mut chunks, attributes).await,
                WriteMode::Create => self.create_large(uri, &path, first, &mut chunks, attributes).await,
            }
        };
        let error = match result {
            Ok(etag) => return Ok(Written { size: chunks.size, etag: unquoted(etag) }),
            Err(error) => error,
        };
        self.remove_empty_parents(&path).await;
        match error {
            // The backend cannot tell a directory in the way from an object.
            Error::AlreadyExists { uri } if self.head(&uri).await?.is_none() => {
                Err(Error::Occupied { other: format!("an object below {uri}/"), uri })
            }
            error => Err(error),
        }
    }

    /// The backend makes directories before it writes, and those of a failed write would stand in the way of an object
    /// of their name.
    async fn remove_empty_parents(&self, path: &Path) {
        let Some(root) = self.inner.directory.clone() else { return };
        let file = root.join(path.as_ref());
        let removal = tokio::task::spawn_blocking(move || {
            let parents = file.ancestors().skip(1).take_while(|parent| *parent != root);
            // The first one that is not empty ends it.
            for parent in parents {
                if std::fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = removal.await {
            tracing::warn!(%error, "could not remove empty directories");
        }
    }

    async fn write_large<S>(
        &self,
        uri: &Uri,
        path: &Path,
        first: Bytes,
        chunks: &mut Chunks<'_, S>,
        attributes: BackendAttributes,
    ) -> Result<Option<String>>
    where
        S: Stream<Item = Result<Bytes>> + Send + Unpin,
    {
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let backend = |error| from_backend(uri, error);
        let mut upload = self.inner.durable.put_multipart_opts(path, options).await.map_err(backend)?;
        let mut next = Ok(first);
        let failed = loop {
            match next {
                Ok(chunk) if chunk.is_empty() => break None,
                Ok(chunk) => {
                    if let Err(error) = upload.put_part(PutPayload::from(chunk)).await.map_err(backend) {
                        break Some(error);
                    }
                }
                Err(error) => break Some(error),
            }
            next = chunks.next().await;
        };
        match failed {
            None => Ok(upload.complete().await.map_err(backend)?.e_tag),
            Some(error) => {
                if let Err(abort) = upload.abort().await {
                    tracing::warn!(%uri, error = %abort, "could not remove an unfinished file; the sweep will");
                }
                Err(error)
            }
        }
    }

    /// Backends finish a chunked write by replacing what is there, so a conditional one is written aside and then moved
    /// under the condition.
    async fn create_large<S>(
        &self,
        uri: &Uri,
        path: &Path,
        first: Bytes,
        chunks: &mut Chunks<'_, S>,
        attributes: BackendAttributes,
    ) -> Result<Option<String>>
    where
        S: Stream<Item = Result<Bytes>> + Send + Unpin,
    {
        let aside = Path::from_iter([layout::STAGING.to_owned(), format!("put-{:032x}", rand::random::<u128>())]);
        let etag = self.write_large(uri, &aside, first, chunks, attributes).await?;
        let options = RenameOptions { target_mode: RenameTargetMode::Create, ..RenameOptions::default() };
        let moved = self.inner.durable.rename_opts(&aside, path, options).await;
        if moved.is_err()
            && let Err(error) = self.inner.scratch.delete(&aside).await
        {
            tracing::warn!(%uri, %error, "could not remove an unfinished file; the sweep will");
        }
        moved.map_err(|error| from_backend(uri, error))?;
        Ok(etag)
    }

    /// Copies an object without moving its bytes, where the backend can.
    pub(crate) async fn copy(&self, from: &Uri, to: &Uri, mode: WriteMode) -> Result<Meta> {
        let (source, target) = (self.path(from)?, self.path(to)?);
        let meta = self.open(from).await?.meta;
        let existing = self.head(to).await?;
        // A local copy is a second name of the same file, and naming a file as it is already named would leave the
        // backend's intermediate name behind.
        if mode == WriteMode::Overwrite && existing.is_some_and(|existing| existing.etag == meta.etag) {
            return Ok(meta);
        }
        let mode = match mode {
            WriteMode::Overwrite => CopyMode::Overwrite,
            WriteMode::Create => CopyMode::Create,
        };
        let options = CopyOptions { mode, ..CopyOptions::default() };
        self.inner.durable.copy_opts(&source, &target, options).await.map_err(|error| from_backend(to, error))?;
        self.head(to).await?.ok_or_else(|| Error::NotFound { uri: to.clone() })
    }

    pub(crate) async fn page(&self, request: &PageRequest) -> Result<Page> {
        let mut pager = Pager::new(request);
        let directory = request.prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        let Some(path) = layout::directory(self.bucket(), directory) else { return Ok(pager.finish()) };
        let uri = self.uri(directory)?;
        // An object is not a directory, so nothing is below it.
        let absent = |error| match from_backend_absent(&uri, error) {
            Error::NotFound { .. } => Ok(()),
            other => Err(other),
        };
        let store = &self.inner.scratch;
        if request.delimiter.as_deref() == Some("/") {
            match store.list_with_delimiter(Some(&path)).await {
                Ok(found) => {
                    for object in found.objects {
                        self.offer(&mut pager, &object);
                    }
                    for directory in found.common_prefixes {
                        if let Some(key) = layout::key(self.bucket(), &directory) {
                            pager.directory(format!("{key}/"));
                        }
                    }
                }
                Err(error) => absent(error)?,
            }
        } else {
            let mut objects = store.list(Some(&path));
            while let Some(object) = objects.next().await {
                match object {
                    Ok(object) => self.offer(&mut pager, &object),
                    Err(error) => absent(error)?,
                }
            }
        }
        Ok(pager.finish())
    }

    fn offer(&self, pager: &mut Pager<'_>, object: &ObjectMeta) {
        if let Some(key) = layout::key(self.bucket(), &object.location) {
            pager.object(key, meta_of(object));
        }
    }

    pub(crate) async fn delete_directory(&self, uri: &Uri, directory: &Path) -> Result<u64> {
        let paths = self.inner.scratch.list(Some(directory)).map_ok(|object| object.location).boxed();
        let mut deleted = self.inner.scratch.delete_stream(paths);
        let mut count = 0;
        while let Some(result) = deleted.next().await {
            match result.map_err(|error| from_backend_absent(uri, error)) {
                Ok(_) => count += 1,
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    pub(crate) fn scratch(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.scratch
    }

    pub(crate) fn local_directory(&self) -> Option<&FilePath> {
        self.inner.directory.as_deref()
    }

    pub(crate) fn max_object_bytes(&self) -> u64 {
        self.inner.max_object_bytes
    }

    pub(crate) fn path(&self, uri: &Uri) -> Result<Path> {
        self.check_bucket(uri)?;
        Ok(layout::object(uri)?)
    }

    fn check_bucket(&self, uri: &Uri) -> Result<()> {
        if uri.bucket() == self.bucket() {
            return Ok(());
        }
        Err(Error::OtherBucket { uri: uri.clone(), bucket: self.bucket().to_owned() })
    }

    fn attributes(&self, declared: &Declared) -> BackendAttributes {
        // Files have nowhere to keep them, and the backend refuses rather than drops them.
        if self.inner.directory.is_some() {
            return BackendAttributes::new();
        }
        let content_type = declared.content_type.iter().map(|value| (Attribute::ContentType, value.clone()));
        let metadata =
            declared.metadata.iter().map(|(name, value)| (Attribute::Metadata(name.clone().into()), value.clone()));
        content_type.chain(metadata).map(|(name, value)| (name, AttributeValue::from(value))).collect()
    }
}

impl Reading {
    /// The bytes `range`, which lies within the object, as a stream of bounded chunks.
    pub(crate) async fn into_stream(self, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
        let Self { meta, uri, path, backend_etag, payload, store, declared: _ } = self;
        match payload {
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                let failed = |uri: &Uri, error| Error::Unavailable { uri: uri.clone(), source: Box::new(error) };
                if range.start > 0 {
                    file.seek(SeekFrom::Start(range.start)).await.map_err(|error| failed(&uri, error))?;
                }
                let part = file.take(range.end - range.start);
                let stream = ReaderStream::with_capacity(part, READ_BYTES);
                Ok(stream.map_err(move |error| failed(&uri, error)).boxed())
            }
            GetResultPayload::Stream(whole) => {
                let stream = if range == (0..meta.size) {
                    whole
                } else if range.is_empty() {
                    futures::stream::empty().boxed()
                } else {
                    // The same object or none: the one that was looked at may have been overwritten.
                    let options = GetOptions {
                        range: Some(GetRange::Bounded(range)),
                        if_match: backend_etag,
                        ..GetOptions::default()
                    };
                    let found = store.get_opts(&path, options).await;
                    found.map_err(|error| from_backend_absent(&uri, error))?.into_stream()
                };
                Ok(stream.map_err(move |error| from_backend(&uri, error)).boxed())
            }
        }
    }

    /// The bytes `range`, which lies within the object and fits into memory.
    pub(crate) async fn bytes(self, range: Range<u64>) -> Result<Bytes> {
        let uri = self.uri.clone();
        let expected = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut content = BytesMut::new();
        let mut stream = self.into_stream(range).await?;
        while let Some(chunk) = stream.try_next().await? {
            content.extend_from_slice(&chunk);
        }
        if content.len() != expected {
            let source = format!("read {} bytes of {expected}", content.len()).into();
            return Err(Error::Unavailable { uri, source });
        }
        Ok(content.freeze())
    }
}

impl Declared {
    fn md5(&self) -> Option<[u8; 16]> {
        STANDARD.decode(self.metadata.get(MD5_METADATA)?).ok()?.try_into().ok()
    }
}

impl From<&BackendAttributes> for Declared {
    fn from(attributes: &BackendAttributes) -> Self {
        let mut declared = Self::default();
        for (name, value) in attributes {
            match name {
                Attribute::ContentType => declared.content_type = Some(value.to_string()),
                Attribute::Metadata(name) => {
                    declared.metadata.insert(name.to_string(), value.to_string());
                }
                _ => {}
            }
        }
        declared
    }
}

/// Cuts a stream into chunks of [`CHUNK_BYTES`], the last one shorter, and then empty ones.
pub(crate) struct Chunks<'a, S> {
    uri: &'a Uri,
    content: S,
    pending: BytesMut,
    max: u64,
    size: u64,
}

impl<'a, S> Chunks<'a, S> {
    pub(crate) fn new(uri: &'a Uri, content: S, max: u64) -> Self {
        Self { uri, content, pending: BytesMut::new(), max, size: 0 }
    }
}

impl<S: Stream<Item = Result<Bytes>> + Send + Unpin> Chunks<'_, S> {
    pub(crate) async fn next(&mut self) -> Result<Bytes> {
        while self.pending.len() < CHUNK_BYTES {
            let Some(bytes) = self.content.try_next().await? else { break };
            self.size += bytes.len() as u64;
            if self.size > self.max {
                return Err(Error::TooLarge { uri: self.uri.clone(), size: self.size, max: self.max });
            }
            self.pending.extend_from_slice(&bytes);
        }
        let length = self.pending.len().min(CHUNK_BYTES);
        Ok(self.pending.split_to(length).freeze())
    }
}

fn directory_text(uri: &Uri) -> String {
    if uri.key().is_empty() { String::new() } else { format!("{}/", uri.key()) }
}

fn meta_of(meta: &ObjectMeta) -> Meta {
    let nanoseconds = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    Meta {
        size: meta.size,
        etag: unquoted(meta.e_tag.clone()),
        last_modified: Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH),
        md5: None,
    }
}

fn unquoted(etag: Option<String>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}
