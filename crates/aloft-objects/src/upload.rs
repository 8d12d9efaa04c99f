//! Uploads in parts.
//!
//! An upload is a directory in the staging area: `upload.json` says what it will become, and each part is a file named
//! by its number and MD5. Parts are not synced to disk; instead completing the upload reads them all and compares their
//! MD5, so what a power failure damaged is refused, not published. A completed upload leaves `completed.json` behind
//! until it is swept, so that a client which never heard of the completion can ask for it again.

use std::{fs, io, path::Path as FilePath, time::SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use jiff::Timestamp;
use md5::{Digest, Md5};
use object_store::{ObjectStoreExt, PutPayload, path::Path};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result, from_backend, from_backend_absent},
    layout,
    presign::hex,
    store::{Chunks, Declared, Objects, WriteMode, Written},
    uri::Uri,
};

/// S3's own bounds.
pub(crate) const PART_NUMBER_MAX: u32 = 10_000;
const PART_BYTES_MAX: u64 = 5 << 30;

/// A part that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 1 to 10,000.
    pub number: u32,
    /// Its MD5 in hexadecimal.
    pub etag: String,
    /// In bytes.
    pub size: u64,
    pub last_modified: Timestamp,
}

/// A part as a client names it when completing an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartRef {
    pub number: u32,
    pub etag: String,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub uploads: u64,
    /// Files that an interrupted write left next to the objects.
    pub unfinished_files: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    key: String,
    #[serde(flatten)]
    declared: Declared,
}

#[derive(Serialize, Deserialize)]
struct Completed {
    key: String,
    etag: String,
    size: u64,
}

impl Objects {
    pub(crate) async fn upload_create(&self, uri: &Uri, declared: Declared) -> Result<String> {
        self.path(uri)?;
        let upload = format!("{:032x}", rand::random::<u128>());
        let manifest = Manifest { key: uri.key().to_owned(), declared };
        self.save(uri, &file(&upload, MANIFEST), &manifest).await?;
        Ok(upload)
    }

    /// Stores a part and gives its etag; a part of the same number replaces it.
    pub(crate) async fn upload_part(
        &self,
        uri: &Uri,
        upload: &str,
        number: u32,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<String> {
        self.upload_manifest(uri, upload).await?;
        let backend = |error| from_backend(uri, error);
        let aside = file(upload, &format!("incoming-{:032x}", rand::random::<u128>()));
        let mut writer = self.scratch().put_multipart(&aside).await.map_err(backend)?;
        let mut chunks = Chunks::new(uri, content, PART_BYTES_MAX.min(self.max_object_bytes()));
        let mut md5 = Md5::new();
        let failed = loop {
            match chunks.next().await {
                Ok(chunk) if chunk.is_empty() => break None,
                Ok(chunk) => {
                    md5.update(&chunk);
                    if let Err(error) = writer.put_part(PutPayload::from(chunk)).await {
                        break Some(backend(error));
                    }
                }
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = failed {
            if let Err(abort) = writer.abort().await {
                tracing::warn!(%uri, error = %abort, "could not remove an unfinished part; the sweep will");
            }
            return Err(error);
        }
        writer.complete().await.map_err(backend)?;
        let etag = hex(&md5.finalize());
        self.scratch().rename(&aside, &part_file(upload, number, &etag)).await.map_err(backend)?;
        Ok(etag)
    }

    /// The parts after number `after`, at most `max` of them, and whether there are more.
    pub(crate) async fn upload_parts(
        &self,
        uri: &Uri,
        upload: &str,
        after: u32,
        max: usize,
    ) -> Result<(Vec<Part>, bool)> {
        self.upload_manifest(uri, upload).await?;
        let mut parts = self.parts(uri, upload).await?;
        // Of a part that was sent twice, the later one counts.
        parts.sort_by_key(|part| (part.number, std::cmp::Reverse(part.last_modified)));
        parts.dedup_by_key(|part| part.number);
        parts.retain(|part| part.number > after);
        let more = parts.len() > max;
        parts.truncate(max);
        Ok((parts, more))
    }

    pub(crate) async fn upload_complete(
        &self,
        uri: &Uri,
        upload: &str,
        chosen: &[PartRef],
        mode: WriteMode,
    ) -> Result<Written> {
        if let Some(done) = self.load::<Completed>(uri, upload, COMPLETED).await?
            && done.key == uri.key()
        {
            return Ok(Written { size: done.size, etag: done.etag });
        }
        let manifest = self.upload_manifest(uri, upload).await?;
        if chosen.is_empty() || !chosen.is_sorted_by(|a, b| a.number < b.number) {
            return Err(Error::InvalidPartOrder { uri: uri.clone() });
        }
        let stored = self.parts(uri, upload).await?;
        let mut size = 0;
        for part in chosen {
            let found = stored.iter().find(|stored| stored.number == part.number && stored.etag == part.etag);
            let Some(found) = found else { return Err(invalid_part(uri, part)) };
            size += found.size;
        }
        let max = self.max_object_bytes();
        if size > max {
            return Err(Error::TooLarge { uri: uri.clone(), size, max });
        }
        let parts = chosen.iter().map(|part| (self.clone(), uri.clone(), upload.to_owned(), part.clone()));
        let content = futures::stream::iter(parts.collect::<Vec<_>>())
            .then(|(objects, uri, upload, part)| async move { objects.checked_part(uri, &upload, part).await })
            .try_flatten()
            .boxed();
        let written = self.write(uri, content, &manifest.declared, mode).await?;

        let done = Completed { key: manifest.key, etag: written.etag.clone(), size: written.size };
        if let Err(error) = self.upload_retire(uri, upload, &done).await {
            tracing::warn!(%uri, %error, "could not remove the parts of a completed upload; the sweep will");
        }
        Ok(written)
    }

    pub(crate) async fn upload_abort(&self, uri: &Uri, upload: &str) -> Result<()> {
        self.upload_manifest(uri, upload).await?;
        self.delete_directory(uri, &directory(upload)).await?;
        Ok(())
    }

    /// Removes uploads in which nothing happened since `older_than`, and the files that writes interrupted before then
    /// left behind.
    pub async fn sweep_multipart(&self, older_than: Timestamp) -> Result<Swept> {
        let root = self.root()?;
        let found = self.scratch().list_with_delimiter(Some(&Path::from(layout::STAGING))).await;
        let found = found.map_err(|error| from_backend(&root, error))?;
        let cutoff = SystemTime::from(older_than);
        let mut swept = Swept::default();
        for staged in found.objects {
            if SystemTime::from(staged.last_modified) < cutoff {
                self.scratch().delete(&staged.location).await.map_err(|error| from_backend_absent(&root, error))?;
                swept.unfinished_files += 1;
            }
        }
        for upload in found.common_prefixes {
            let files: Vec<_> =
                self.scratch().list(Some(&upload)).try_collect().await.map_err(|e| from_backend(&root, e))?;
            if files.iter().all(|file| SystemTime::from(file.last_modified) < cutoff) {
                self.delete_directory(&root, &upload).await?;
                swept.uploads += 1;
            }
        }
        if let Some(directory) = self.local_directory() {
            let directory = directory.to_owned();
            let removed = tokio::task::spawn_blocking(move || remove_unfinished(&directory, cutoff)).await;
            let unavailable = |source| Error::Unavailable { uri: root.clone(), source };
            swept.unfinished_files +=
                removed.map_err(|error| unavailable(Box::new(error)))?.map_err(|error| unavailable(Box::new(error)))?;
        }
        Ok(swept)
    }

    async fn checked_part(&self, uri: Uri, upload: &str, part: PartRef) -> Result<BoxStream<'static, Result<Bytes>>> {
        let path = part_file(upload, part.number, &part.etag);
        let reading = self.open_path(&uri, path).await.map_err(|error| match error {
            Error::NotFound { uri } => invalid_part(&uri, &part),
            other => other,
        })?;
        let size = reading.meta.size;
        let content = reading.into_stream(0..size).await?;
        let checked = futures::stream::try_unfold((content, Md5::new()), move |(mut content, mut md5)| {
            let (uri, part) = (uri.clone(), part.clone());
            async move {
                match content.try_next().await? {
                    Some(chunk) => {
                        md5.update(&chunk);
                        Ok(Some((chunk, (content, md5))))
                    }
                    None if hex(&md5.finalize()) == part.etag => Ok(None),
                    None => Err(invalid_part(&uri, &part)),
                }
            }
        });
        Ok(checked.boxed())
    }

    async fn upload_retire(&self, uri: &Uri, upload: &str, done: &Completed) -> Result<()> {
        self.save(uri, &file(upload, COMPLETED), done).await?;
        let kept = file(upload, COMPLETED);
        let parts = self.scratch().list(Some(&directory(upload))).map_ok(|object| object.location);
        let parts = parts.try_filter(move |path| std::future::ready(*path != kept)).boxed();
        let mut deleted = self.scratch().delete_stream(parts);
        while let Some(result) = deleted.next().await {
            result.map_err(|error| from_backend_absent(uri, error))?;
        }
        Ok(())
    }

    async fn upload_manifest(&self, uri: &Uri, upload: &str) -> Result<Manifest> {
        self.path(uri)?;
        let manifest = self.load::<Manifest>(uri, upload, MANIFEST).await?;
        // An upload is found by its object only, so that its number grants nothing on other objects.
        manifest
            .filter(|manifest| manifest.key == uri.key())
            .ok_or_else(|| Error::NoSuchUpload { uri: uri.clone(), upload: upload.to_owned() })
    }

    async fn parts(&self, uri: &Uri, upload: &str) -> Result<Vec<Part>> {
        let directory = directory(upload);
        let mut files = self.scratch().list(Some(&directory));
        let mut parts = Vec::new();
        while let Some(file) = files.try_next().await.map_err(|error| from_backend(uri, error))? {
            let named = file.location.filename().and_then(|name| name.split_once('-'));
            let number = named.and_then(|(number, _)| number.parse().ok());
            if let (Some(number), Some((_, etag))) = (number, named) {
                let nanoseconds = file.last_modified.timestamp_nanos_opt().unwrap_or(0);
                let last_modified =
                    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH);
                parts.push(Part { number, etag: etag.to_owned(), size: file.size, last_modified });
            }
        }
        Ok(parts)
    }

    async fn save(&self, uri: &Uri, path: &Path, value: &impl Serialize) -> Result<()> {
        let unavailable = |error: serde_json::Error| Error::Unavailable { uri: uri.clone(), source: Box::new(error) };
        let content = serde_json::to_vec(value).map_err(unavailable)?;
        self.scratch().put(path, content.into()).await.map_err(|error| from_backend(uri, error))?;
        Ok(())
    }

    /// A record of an upload; `None` if there is none, be it that the client made the upload's number up.
    async fn load<T: for<'de> Deserialize<'de>>(&self, uri: &Uri, upload: &str, name: &str) -> Result<Option<T>> {
        if upload.len() != 32 || !upload.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let reading = match self.open_path(uri, file(upload, name)).await {
            Ok(reading) => reading,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = reading.meta.size;
        let content = reading.bytes(0..size).await?;
        // A power failure may have left it empty; then the upload is as good as lost.
        Ok(serde_json::from_slice(&content).ok())
    }
}

const MANIFEST: &str = "upload.json";
const COMPLETED: &str = "completed.json";

fn directory(upload: &str) -> Path {
    Path::from_iter([layout::STAGING, upload])
}

fn file(upload: &str, name: &str) -> Path {
    Path::from_iter([layout::STAGING, upload, name])
}

fn part_file(upload: &str, number: u32, etag: &str) -> Path {
    file(upload, &format!("{number:05}-{etag}"))
}

fn invalid_part(uri: &Uri, part: &PartRef) -> Error {
    Error::InvalidPart { uri: uri.clone(), part: part.number }
}

fn remove_unfinished(directory: &FilePath, cutoff: SystemTime) -> io::Result<u64> {
    let old = |metadata: &fs::Metadata| metadata.modified().is_ok_and(|modified| modified < cutoff);
    let mut removed = 0;
    let mut pending = vec![directory.to_owned()];
    let mut visited = Vec::new();
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Directories vanish with their last object.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
                if old(&metadata) {
                    visited.push(entry.path());
                }
            } else if layout::is_unfinished(&entry.file_name().to_string_lossy())
                && old(&metadata)
                && fs::remove_file(entry.path()).is_ok()
            {
                removed += 1;
            }
        }
    }
    // Parents were visited before what is in them. A directory that is not empty stays, and a writer that finds its
    // directory gone makes it again.
    for directory in visited.into_iter().rev() {
        let _ = fs::remove_dir(directory);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::keys::Keys;

    fn store(directory: &FilePath) -> Objects {
        Objects::local(directory, "bucket", "http://localhost", Keys::new([1; 32])).expect("a store")
    }

    fn content(text: &'static str) -> impl Stream<Item = Result<Bytes>> + Send + Unpin {
        futures::stream::iter([Ok(Bytes::from_static(text.as_bytes()))])
    }

    fn later() -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(1)
    }

    #[tokio::test]
    async fn an_upload_belongs_to_its_object_and_completes_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let objects = store(directory.path());
        let uri = objects.uri("a/b").expect("a name");
        let other = objects.uri("a/c").expect("a name");
        let upload = objects.upload_create(&uri, Declared::default()).await.expect("an upload");

        let refused = objects.upload_part(&other, &upload, 1, content("x")).await.expect_err("not its object");
        assert!(matches!(refused, Error::NoSuchUpload { .. }));
        let refused = objects.upload_part(&uri, "../../etc", 1, content("x")).await.expect_err("no such upload");
        assert!(matches!(refused, Error::NoSuchUpload { .. }));

        objects.upload_part(&uri, &upload, 2, content("old")).await.expect("a part");
        let two = objects.upload_part(&uri, &upload, 2, content("two")).await.expect("a part");
        let one = objects.upload_part(&uri, &upload, 1, content("one ")).await.expect("a part");
        let (parts, more) = objects.upload_parts(&uri, &upload, 0, 1).await.expect("parts");
        assert_eq!((parts[0].number, parts[0].size, more), (1, 4, true));

        let chosen = |one: &str, two: &str| {
            [PartRef { number: 1, etag: one.to_owned() }, PartRef { number: 2, etag: two.to_owned() }]
        };
        let missing = objects.upload_complete(&uri, &upload, &chosen(&two, &two), WriteMode::Overwrite).await;
        assert!(matches!(missing, Err(Error::InvalidPart { part: 1, .. })));
        let mut reversed = chosen(&one, &two);
        reversed.reverse();
        let disordered = objects.upload_complete(&uri, &upload, &reversed, WriteMode::Overwrite).await;
        assert!(matches!(disordered, Err(Error::InvalidPartOrder { .. })));

        let complete = || objects.upload_complete(&uri, &upload, &[], WriteMode::Overwrite);
        let chosen = chosen(&one, &two);
        let written = objects.upload_complete(&uri, &upload, &chosen, WriteMode::Overwrite).await.expect("written");
        assert_eq!(complete().await.expect("asked again"), written);
        assert_eq!(objects.get(&uri, 100).await.expect("the object"), "one two");

        assert_eq!(objects.sweep_multipart(later()).await.expect("swept").uploads, 1);
        assert!(matches!(complete().await, Err(Error::NoSuchUpload { .. })));
        assert_eq!(objects.get(&uri, 100).await.expect("the object"), "one two");
    }

    #[tokio::test]
    async fn a_damaged_part_is_not_published() {
        let directory = tempfile::tempdir().expect("a directory");
        let objects = store(directory.path());
        let uri = objects.uri("a/b").expect("a name");
        let upload = objects.upload_create(&uri, Declared::default()).await.expect("an upload");
        let etag = objects.upload_part(&uri, &upload, 1, content("content")).await.expect("a part");
        let file = directory.path().join(part_file(&upload, 1, &etag).as_ref());
        fs::write(file, [0; 7]).expect("damage");
        let refused =
            objects.upload_complete(&uri, &upload, &[PartRef { number: 1, etag }], WriteMode::Overwrite).await;
        assert!(matches!(refused, Err(Error::InvalidPart { part: 1, .. })));
        assert_eq!(objects.head(&uri).await.expect("looked"), None);
        // Nothing is left in the way of an object at the parent's name.
        objects.put(&objects.uri("a").expect("a name"), Bytes::new()).await.expect("written");
    }

    #[tokio::test]
    async fn a_sweep_takes_the_old_and_leaves_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let objects = store(directory.path());
        let uri = objects.uri("d/kept#1").expect("a name");
        objects.put(&uri, Bytes::from_static(b"kept")).await.expect("written");
        let upload = objects.upload_create(&uri, Declared::default()).await.expect("an upload");
        fs::write(directory.path().join("bucket/d/gone#1"), "half").expect("an unfinished file");
        fs::create_dir_all(directory.path().join("bucket/empty/empty")).expect("directories");

        assert_eq!(objects.sweep_multipart(Timestamp::UNIX_EPOCH).await.expect("swept"), Swept::default());
        let swept = objects.sweep_multipart(later()).await.expect("swept");
        assert_eq!(swept, Swept { uploads: 1, unfinished_files: 1 });
        assert!(objects.upload_abort(&uri, &upload).await.is_err());
        assert_eq!(objects.get(&uri, 10).await.expect("the object"), "kept");
        assert!(!directory.path().join("bucket/empty").exists());
    }
}
