//! An honest data plane in memory: values by their content, links that say where they point, no logs.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

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
use aloft_plane::{AttemptId, BuiltImage, Call, DataPlane, Link, LogStream, PlaneError, async_trait};
use buffa::Message as _;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Where everything lies: the bucket of `aloft dev`, so that URIs mean the same in process and over the port.
pub const BUCKET: &str = "s3://aloft-data";

/// Objects by their URI. Outlives restarts of the server, as an object store does.
#[derive(Default)]
pub struct MemoryPlane {
    objects: Mutex<HashMap<String, Bytes>>,
    /// What vanished. Nothing is written there again: an output prefix belongs to one attempt.
    vanished: Mutex<HashSet<String>>,
    unreachable: AtomicBool,
}

/// The file of the outputs below `prefix`.
fn outputs_file(prefix: &str) -> String {
    format!("{prefix}/outputs.pb")
}

/// The prefix below which everything of a run lies.
pub fn run_base(org: &str, project: &str, domain: &str, run: &str) -> String {
    format!("{BUCKET}/{org}/{project}/{domain}/runs/{run}")
}

/// Where the data of a run lies that is carried out elsewhere.
pub fn tracked_base(org: &str, project: &str, domain: &str, run: &str) -> String {
    format!("{BUCKET}/{org}/{project}/{domain}/tracked-runs/{run}")
}

impl MemoryPlane {
    /// A task or a traced function writes its outputs below `prefix`.
    pub fn write_outputs(&self, prefix: &str) {
        let file = outputs_file(prefix);
        if !self.vanished.lock().contains(&file) {
            self.objects.lock().insert(file, Bytes::new());
        }
    }

    /// The outputs below `prefix` vanish.
    pub fn vanish(&self, prefix: &str) {
        let file = outputs_file(prefix);
        self.objects.lock().remove(&file);
        self.vanished.lock().insert(file);
    }

    /// From now on the object store can be reached, or not.
    pub fn set_reachable(&self, reachable: bool) {
        self.unreachable.store(!reachable, Ordering::SeqCst);
    }

    /// The message at `uri`: an empty one for no URI, none for an object that does not exist.
    fn read<T: buffa::Message>(&self, uri: &str) -> Result<Option<T>, PlaneError> {
        if uri.is_empty() {
            return Ok(Some(T::default()));
        }
        let Some(bytes) = self.objects.lock().get(uri).cloned() else { return Ok(None) };
        let read = T::decode_from_slice(&bytes);
        read.map(Some).map_err(|e| PlaneError::Unavailable(e.to_string()))
    }
}

fn unsupported(what: &str) -> PlaneError {
    PlaneError::Unsupported(format!("{what} is not part of the simulation"))
}

#[async_trait]
impl DataPlane for MemoryPlane {
    fn run_base(&self, run: &RunKey) -> String {
        run_base(&run.scope.org, &run.scope.project, &run.scope.domain, &run.name)
    }

    fn tracked_base(&self, run: &RunKey) -> String {
        tracked_base(&run.scope.org, &run.scope.project, &run.scope.domain, &run.name)
    }

    fn owns(&self, scope: &Scope, uri: &str) -> bool {
        uri.starts_with(&format!("{BUCKET}/{}/{}/", scope.org, scope.project))
    }

    async fn create_upload_location(
        &self,
        _scope: &Scope,
        _request: CreateUploadLocationRequest,
    ) -> Result<CreateUploadLocationResponse, PlaneError> {
        Err(unsupported("an upload"))
    }

    async fn upload_inputs(
        &self,
        scope: &Scope,
        base: &str,
        inputs: Inputs,
        ignored: &[String],
    ) -> Result<OffloadedInputData, PlaneError> {
        let bytes = inputs.encode_to_bytes();
        let mut counted = inputs;
        counted.literals.retain(|l| !ignored.contains(&l.name));
        let hash = |bytes: &[u8]| {
            let digest = Sha256::digest(bytes);
            digest.iter().take(12).map(|b| format!("{b:02x}")).collect::<String>()
        };
        let base = match base.trim_end_matches('/') {
            "" => format!("{BUCKET}/{}/{}/{}", scope.org, scope.project, scope.domain),
            base => base.to_owned(),
        };
        let uri = format!("{base}/inputs/{}", hash(&bytes));
        self.objects.lock().insert(format!("{uri}/inputs.pb"), bytes);
        Ok(OffloadedInputData { uri, inputs_hash: hash(&counted.encode_to_bytes()), ..Default::default() })
    }

    async fn read_data(
        &self,
        _scope: &Scope,
        inputs_uri: &str,
        outputs_uri: &str,
    ) -> Result<(Option<Inputs>, Option<Outputs>), PlaneError> {
        Ok((self.read(inputs_uri)?, self.read(outputs_uri)?))
    }

    async fn missing(&self, _scope: &Scope, uris: &[String]) -> Result<Vec<String>, PlaneError> {
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(PlaneError::Unavailable("the object store cannot be reached".to_owned()));
        }
        // The simulation's tasks name no bundle, and the empty image is the default one.
        let objects = self.objects.lock();
        Ok(uris.iter().filter(|uri| !uri.is_empty() && !objects.contains_key(*uri)).cloned().collect())
    }

    async fn read_error(&self, _: &Scope, _: &str) -> Result<Option<TaskError>, PlaneError> {
        Ok(None)
    }

    async fn call(&self, _: &Call) -> Result<(), PlaneError> {
        Err(unsupported("a call"))
    }

    async fn download_link(&self, _: &Scope, uri: &str, _: Option<Duration>) -> Result<Link, PlaneError> {
        if !self.objects.lock().contains_key(uri) {
            return Err(PlaneError::NotFound(format!("there is nothing at {uri}")));
        }
        Ok(Link { url: uri.to_owned(), expires_at: Time::from_micros(i64::MAX) })
    }

    async fn tail_logs(&self, _attempt: &AttemptId) -> Result<LogStream, PlaneError> {
        Err(unsupported("a log"))
    }

    async fn get_image(&self, _scope: &Scope, _name: &str) -> Result<Option<BuiltImage>, PlaneError> {
        Ok(None)
    }

    async fn literals_to_form(
        &self,
        _scope: &Scope,
        _request: LiteralsToLaunchFormJsonRequest,
    ) -> Result<LiteralsToLaunchFormJsonResponse, PlaneError> {
        Err(unsupported("a launch form"))
    }

    async fn form_to_literals(
        &self,
        _request: LaunchFormJsonToLiteralsRequest,
    ) -> Result<LaunchFormJsonToLiteralsResponse, PlaneError> {
        Err(unsupported("a launch form"))
    }

    async fn task_spec_to_form(
        &self,
        _request: TaskSpecToLaunchFormJsonRequest,
    ) -> Result<TaskSpecToLaunchFormJsonResponse, PlaneError> {
        Err(unsupported("a launch form"))
    }

    async fn values_to_literals(
        &self,
        _request: JsonValuesToLiteralsRequest,
    ) -> Result<JsonValuesToLiteralsResponse, PlaneError> {
        Err(unsupported("a launch form"))
    }
}
