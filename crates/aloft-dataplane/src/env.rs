//! Python environments: what an image is when a task runs as a process.
//!
//! | image of the task | environment |
//! |---|---|
//! | the SDK's own (`…/flyte:py3.11-v2.12.1`) | the default one if it has that Python, else one that `uv` makes |
//! | `aloft-env://{digest}` | what a run of `build-image` made ([`build`]) |
//! | anything else | the default one: its packages are this machine's, and the log of Aloft says so |
//!
//! The default environment is the interpreter that `--python` names, else the first on PATH that has `flyte`, else one
//! that `uv` makes. Environments are named by the digest of what is in them and shared between runs; one without its
//! `.complete` marker was cut off while it was made, and is made again.

mod build;
mod machine;
mod plan;
mod task;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use aloft_core::{ErrorKind, TaskError};
use aloft_objects::Objects;
use aloft_plane::{BuiltImage, PlaneError};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::Mutex};

use self::plan::{Image, Plan};
use crate::{
    data::Images,
    logs::LogSink,
    seam::{Environments, PyEnv},
};

pub(crate) use build::lay_out;
pub use task::{BUILD_TASK_TYPE, build_task};

/// What an interpreter says about itself: its version, that of its `flyte`, its own path, where its scripts are.
const PROBE: &str = "\
import importlib.metadata, json, sys, sysconfig
try:
    flyte = importlib.metadata.version('flyte')
except importlib.metadata.PackageNotFoundError:
    flyte = None
print(json.dumps({'minor': '%d.%d' % sys.version_info[:2], 'flyte': flyte, 'python': sys.executable,
                  'scripts': sysconfig.get_path('scripts')}))";

/// An interpreter's answer to [`PROBE`].
#[derive(Clone, Debug, Deserialize)]
struct Probed {
    minor: String,
    flyte: Option<String>,
    python: PathBuf,
    scripts: PathBuf,
}

impl Probed {
    fn env(&self) -> PyEnv {
        PyEnv {
            bin_dir: self.scripts.clone(),
            python: self.python.clone(),
            id: format!("default-{}", self.python.display()),
            vars: Vec::new(),
            files: None,
        }
    }
}

/// The environments of this machine.
pub struct Envs {
    dir: PathBuf,
    named: Option<PathBuf>,
    objects: Objects,
    /// The default environment, once it was looked for. `None` inside: there is none, one has to be made.
    default: Mutex<Option<Option<Probed>>>,
    /// Images that were warned of, each once.
    warned: Mutex<HashSet<String>>,
    /// One maker per environment at a time; others wait for it.
    making: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Envs {
    /// Environments below `dir`; `python` is the interpreter that tasks run with, if one was named.
    pub fn new(dir: &Path, python: Option<PathBuf>, objects: Objects) -> Self {
        Self {
            dir: dir.to_owned(),
            named: python,
            objects,
            default: Mutex::default(),
            warned: Mutex::default(),
            making: Mutex::default(),
        }
    }

    /// The default environment, if there is one without making it.
    pub async fn default_if_present(&self) -> Option<PyEnv> {
        self.find_default().await.ok().flatten().map(|probed| probed.env())
    }

    /// Looks for the default interpreter, once.
    async fn find_default(&self) -> Result<Option<Probed>, TaskError> {
        let mut default = self.default.lock().await;
        if let Some(found) = default.as_ref() {
            return Ok(found.clone());
        }
        let found = match &self.named {
            Some(python) => Some(self.probe_named(python).await?),
            None => probe_path().await,
        };
        *default = Some(found.clone());
        Ok(found)
    }

    async fn probe_named(&self, python: &Path) -> Result<Probed, TaskError> {
        let probed = probe(python).await.ok_or_else(|| {
            missing(format!("{} (from --python) is not a Python interpreter that runs", python.display()))
        })?;
        if probed.flyte.is_none() {
            return Err(missing(format!(
                "{0} (from --python) has no `flyte`: install it with `uv pip install --python {0} flyte`, and run again",
                python.display()
            )));
        }
        Ok(probed)
    }

    /// The environment that `plan` describes, made unless it is there. `log` hears how it is made.
    async fn make(&self, plan: &Plan, context: Option<&Path>, log: &LogSink) -> Result<PyEnv, TaskError> {
        let digest = plan.digest();
        let maker = {
            let mut making = self.making.lock().await;
            making.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(making.entry(digest.clone()).or_default())
        };
        let _one = maker.lock().await;
        if let Some(env) = self.built(&digest) {
            log.note(&format!("Environment {digest} is there already."));
            return Ok(env);
        }
        tracing::info!(
            python = plan.python.as_deref().unwrap_or("any"),
            flyte = %plan.flyte,
            steps = plan.steps.len(),
            "making Python environment {digest} with uv"
        );
        build::build(&self.dir.join(&digest), plan, context, log).await?;
        self.built(&digest).ok_or_else(|| missing(format!("environment {digest} vanished while it was made")))
    }

    /// The finished environment of this digest.
    fn built(&self, digest: &str) -> Option<PyEnv> {
        let dir = self.dir.join(digest);
        let record = std::fs::read(dir.join(build::COMPLETE)).ok()?;
        let record: build::Record = serde_json::from_slice(&record).ok()?;
        let files = dir.join(build::FILES);
        Some(PyEnv {
            bin_dir: dir.join("venv/bin"),
            python: dir.join("venv/bin/python"),
            id: digest.to_owned(),
            vars: record.vars,
            files: files.is_dir().then_some(files),
        })
    }

    async fn resolve_image(&self, image: Image, flyte: &str) -> Result<PyEnv, TaskError> {
        let (minor, version) = match image {
            Image::Built(digest) => {
                return self.built(&digest).ok_or_else(|| {
                    TaskError::new(
                        "ImageNotFound",
                        format!(
                            "image {}{digest} is not on this machine any more. Run `flyte delete local-cache` so that the \
                             client builds it again, and run again.",
                            plan::SCHEME
                        ),
                        ErrorKind::User,
                        false,
                    )
                });
            }
            Image::Sdk { minor, flyte } => (Some(minor), flyte),
            Image::Other(name) => {
                if !name.is_empty() && self.warned.lock().await.insert(name.clone()) {
                    tracing::warn!(image = %name, "a process cannot run in this image: using the default Python environment");
                }
                (None, flyte.to_owned())
            }
        };
        if let Some(found) = self.find_default().await?
            && minor.as_ref().is_none_or(|m| *m == found.minor)
        {
            return Ok(found.env());
        }
        let plan = Plan::plain(minor, &version);
        let log = LogSink::to(Box::new(std::io::sink()));
        self.make(&plan, None, &log).await
    }

    /// The file that says what image `name` is.
    fn name_file(&self, name: &str) -> PathBuf {
        self.dir.join("names").join(plan::file_name(name))
    }

    fn remember(&self, name: &str, named: &Named) -> std::io::Result<()> {
        let file = self.name_file(name);
        std::fs::create_dir_all(self.dir.join("names"))?;
        let next = file.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(named)?)?;
        std::fs::rename(next, file)
    }
}

/// What is known of an image name.
#[derive(Debug, Serialize, Deserialize)]
struct Named {
    digest: String,
    /// The run that built it.
    run: Option<aloft_core::RunKey>,
}

fn missing(message: String) -> TaskError {
    TaskError::new("PythonEnvironmentMissing", message, ErrorKind::System, false)
}

/// Asks the interpreter at `python` about itself.
async fn probe(python: &Path) -> Option<Probed> {
    let output =
        Command::new(python).args(["-I", "-c", PROBE]).stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), output).await.ok()?.ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The first interpreter on PATH that has `flyte`.
async fn probe_path() -> Option<Probed> {
    let path = std::env::var_os("PATH")?;
    for dir in std::env::split_paths(&path) {
        for name in ["python3", "python"] {
            let candidate = dir.join(name);
            if candidate.is_file()
                && let Some(probed) = probe(&candidate).await
                && probed.flyte.is_some()
            {
                return Some(probed);
            }
        }
    }
    None
}

#[async_trait]
impl Environments for Envs {
    async fn resolve(&self, image: &str, flyte_version: &str) -> Result<PyEnv, TaskError> {
        self.resolve_image(Image::parse(image), flyte_version).await
    }
}

#[async_trait]
impl Images for Envs {
    async fn find(&self, name: &str) -> Result<Option<BuiltImage>, PlaneError> {
        let Ok(bytes) = tokio::fs::read(self.name_file(name)).await else { return Ok(None) };
        let Ok(named) = serde_json::from_slice::<Named>(&bytes) else { return Ok(None) };
        let fqin = format!("{}{}", plan::SCHEME, named.digest);
        Ok(self.built(&named.digest).map(|_| BuiltImage { fqin, build_run: named.run }))
    }

    async fn exists(&self, fqin: &str) -> bool {
        match Image::parse(fqin) {
            Image::Built(digest) => self.built(&digest).is_some(),
            Image::Sdk { .. } | Image::Other(_) => true,
        }
    }
}
