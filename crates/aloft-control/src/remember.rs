//! What is asked for with every run or action and seldom or never changes: places, records of runs and stored blobs. Bounded,
//! and never more than a shortcut: what is not remembered is read.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aloft_core::{RunKey, Scope};
use aloft_store::{RunRecord, Site, StoreError};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::Control;

/// How long a run is believed to be what it was. Its record does not change, but retention may remove it, and another be
/// created under its name.
const BELIEVED: Duration = Duration::from_secs(1);

/// Most runs that are remembered: some 2 MB.
const MAX_RUNS: usize = 2048;

/// Most places that are remembered: some kilobytes each, with their settings.
const MAX_SITES: usize = 256;

/// Most bytes of blobs that are remembered, and the largest of them: a usual specification has some 10 KB.
const MAX_BYTES: usize = 8 << 20;
const MAX_BLOB: usize = 256 << 10;

#[derive(Default)]
pub(crate) struct Remembered {
    runs: Mutex<HashMap<RunKey, (Instant, Arc<RunRecord>)>>,
    sites: Mutex<HashMap<Scope, Arc<Site>>>,
    blobs: Mutex<Blobs>,
}

#[derive(Default)]
struct Blobs {
    by_digest: HashMap<String, Bytes>,
    bytes: usize,
}

impl Control {
    /// A run, if it exists, as it was within the last second.
    pub(crate) async fn record(&self, run: &RunKey) -> Result<Option<Arc<RunRecord>>, StoreError> {
        let known = self.remembered().runs.lock().get(run).cloned();
        if let Some((at, record)) = known
            && at.elapsed() < BELIEVED
        {
            return Ok(Some(record));
        }
        let at = Instant::now();
        match self.store().run(run).await? {
            Some(record) => Ok(Some(self.remember_at(at, record))),
            None => {
                self.remembered().runs.lock().remove(run);
                Ok(None)
            }
        }
    }

    /// Remembers a run that was made now.
    pub(crate) fn remember_run(&self, record: RunRecord) -> Arc<RunRecord> {
        self.remember_at(Instant::now(), record)
    }

    fn remember_at(&self, at: Instant, record: RunRecord) -> Arc<RunRecord> {
        let record = Arc::new(record);
        let mut runs = self.remembered().runs.lock();
        if runs.len() >= MAX_RUNS {
            runs.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if runs.len() < MAX_RUNS {
            runs.insert(record.key.clone(), (at, Arc::clone(&record)));
        }
        record
    }

    /// A place where runs can be created, as it was when it was read last.
    pub(crate) fn remembered_site(&self, scope: &Scope) -> Option<Arc<Site>> {
        self.remembered().sites.lock().get(scope).cloned()
    }

    /// Remembers a place where runs can be created.
    pub(crate) fn remember_site(&self, scope: &Scope, site: Site) -> Arc<Site> {
        let site = Arc::new(site);
        let mut sites = self.remembered().sites.lock();
        if sites.len() >= MAX_SITES && !sites.contains_key(scope) {
            sites.clear();
        }
        sites.insert(scope.clone(), Arc::clone(&site));
        site
    }

    /// Forgets a place, unless another has read it anew.
    pub(crate) fn forget_site(&self, scope: &Scope, outdated: &Arc<Site>) {
        let mut sites = self.remembered().sites.lock();
        if sites.get(scope).is_some_and(|site| Arc::ptr_eq(site, outdated)) {
            sites.remove(scope);
        }
    }

    /// A stored blob. It is named by what it holds, so it is the same for ever.
    pub(crate) async fn stored(&self, digest: &str) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.remembered().blobs.lock().by_digest.get(digest) {
            return Ok(Some(bytes.clone()));
        }
        let found = self.store().blob(digest).await?;
        if let Some(bytes) = &found {
            self.remember(digest, bytes);
        }
        Ok(found)
    }

    /// Remembers a stored blob.
    pub(crate) fn remember(&self, digest: &str, bytes: &Bytes) {
        if bytes.len() > MAX_BLOB {
            return;
        }
        let mut blobs = self.remembered().blobs.lock();
        if blobs.bytes + bytes.len() > MAX_BYTES {
            *blobs = Blobs::default();
        }
        if blobs.by_digest.insert(digest.to_owned(), bytes.clone()).is_none() {
            blobs.bytes += bytes.len();
        }
    }
}
