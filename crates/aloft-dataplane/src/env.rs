//! stand-in until the branch lands
use std::{path::{Path, PathBuf}, sync::Arc};
use aloft_core::{AttemptOutcome, TaskError, ErrorKind};
use aloft_flyteidl2::flyteidl2::{core::{Identifier, TaskTemplate}, task::{TaskIdentifier, TaskSpec}};
use aloft_objects::Objects;
use aloft_plane::{BuiltImage, LeasedAttempt, PlaneError};
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use crate::{data::Images, logs::LogSink, seam::{Environments, NativeTask, PyEnv}};
pub const BUILD_TASK_TYPE: &str = "aloft-build-image";
pub struct Envs { python: Option<PathBuf> }
impl Envs {
    pub fn new(_dir: &Path, python: Option<PathBuf>, _objects: Objects) -> Self { Self { python } }
    pub async fn default_if_present(&self) -> Option<PyEnv> {
        let python = self.python.clone()?;
        Some(PyEnv { bin_dir: python.parent()?.to_owned(), python, id: "default".into() })
    }
}
#[async_trait]
impl Environments for Envs {
    async fn resolve(&self, _image: &str, _v: &str) -> Result<PyEnv, TaskError> {
        self.default_if_present().await.ok_or_else(|| TaskError::new("x", "no python", ErrorKind::System, false))
    }
}
#[async_trait]
impl Images for Envs {
    async fn find(&self, _: &str) -> Result<Option<BuiltImage>, PlaneError> { Ok(None) }
    async fn exists(&self, _: &str) -> bool { true }
}
#[async_trait]
impl NativeTask for Envs {
    async fn run(&self, _: &LeasedAttempt, _: LogSink, _: CancellationToken) -> AttemptOutcome {
        AttemptOutcome::Lost(TaskError::new("x", "no", ErrorKind::System, false))
    }
}
pub fn build_task(project: &str, domain: &str) -> (TaskIdentifier, TaskSpec) {
    let id = TaskIdentifier { project: project.into(), domain: domain.into(), name: "build-image".into(), version: "1".into(), ..Default::default() };
    let t = Identifier { project: project.into(), domain: domain.into(), name: "build-image".into(), version: "1".into(), ..Default::default() };
    (id, TaskSpec { task_template: TaskTemplate { id: t.into(), r#type: BUILD_TASK_TYPE.into(), ..Default::default() }.into(), ..Default::default() })
}
