//! The task `build-image`: an ordinary run whose work Aloft does itself.

use std::path::{Path, PathBuf};

use aloft_core::{AttemptOutcome, ErrorKind, OutputRefs, TaskError};
use aloft_flyteidl2::flyteidl2::{
    core::{
        Container, Identifier, Literal, LiteralType, Primitive, ResourceType, RuntimeMetadata, Scalar, SimpleType,
        TaskMetadata, TaskTemplate, TypedInterface, Variable, VariableEntry, VariableMap, literal, literal_type,
        primitive, scalar, task_template,
    },
    imagebuilder::ImageSpec,
    task::{Environment, Inputs, NamedLiteral, Outputs, TaskIdentifier, TaskSpec},
};
use aloft_objects::Uri;
use aloft_plane::LeasedAttempt;
use async_trait::async_trait;
use buffa::Message as _;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::{
    Envs, Named, machine,
    plan::{Plan, SCHEME},
};
use crate::{logs::LogSink, seam::NativeTask};

/// The type of the task that builds images.
pub const BUILD_TASK_TYPE: &str = "aloft-build-image";

/// Its version: raised when its interface changes.
const VERSION: &str = "1";

/// Largest specification and largest build context, in bytes.
const MAX_SPEC: u64 = 4 << 20;
const MAX_CONTEXT: u64 = 2 << 30;

/// The task `build-image`, as it is deployed in `project` and `domain`. Its interface is what the SDK's remote image
/// builder calls (contract, 8.2).
pub fn build_task(project: &str, domain: &str) -> (TaskIdentifier, TaskSpec) {
    let name = "build-image";
    let id = TaskIdentifier {
        project: project.to_owned(),
        domain: domain.to_owned(),
        name: name.to_owned(),
        version: VERSION.to_owned(),
        ..Default::default()
    };
    let template = TaskTemplate {
        id: Identifier {
            resource_type: ResourceType::TASK.into(),
            project: project.to_owned(),
            domain: domain.to_owned(),
            name: name.to_owned(),
            version: VERSION.to_owned(),
            ..Default::default()
        }
        .into(),
        r#type: BUILD_TASK_TYPE.to_owned(),
        metadata: TaskMetadata {
            runtime: RuntimeMetadata { flavor: "aloft".to_owned(), ..Default::default() }.into(),
            ..Default::default()
        }
        .into(),
        interface: TypedInterface {
            inputs: strings(&[
                ("spec", "URI of the serialized image specification"),
                ("context", "URI of the build context, or empty"),
                ("target_image", "what the image is called"),
            ])
            .into(),
            outputs: strings(&[("o0", "the image's name for tasks")]).into(),
            ..Default::default()
        }
        .into(),
        target: Some(task_template::Target::from(Container {
            image: "aloft".to_owned(),
            args: vec![name.to_owned()],
            ..Default::default()
        })),
        ..Default::default()
    };
    let spec = TaskSpec {
        task_template: template.into(),
        short_name: name.to_owned(),
        environment: Environment { name: "system".to_owned(), ..Default::default() }.into(),
        ..Default::default()
    };
    (id, spec)
}

fn strings(variables: &[(&str, &str)]) -> VariableMap {
    let variable = |(name, description): &(&str, &str)| VariableEntry {
        key: (*name).to_owned(),
        value: Variable {
            r#type: LiteralType {
                r#type: Some(literal_type::Type::Simple(SimpleType::STRING.into())),
                ..Default::default()
            }
            .into(),
            description: (*description).to_owned(),
            ..Default::default()
        }
        .into(),
        ..Default::default()
    };
    VariableMap { variables: variables.iter().map(variable).collect(), ..Default::default() }
}

fn string_of(inputs: &Inputs, name: &str) -> String {
    let literal = inputs.literals.iter().find(|l| l.name == name).and_then(|l| l.value.as_option());
    match literal.and_then(|l| l.value.as_ref()) {
        Some(literal::Value::Scalar(s)) => match &s.value {
            Some(scalar::Value::Primitive(p)) => match &p.value {
                Some(primitive::Value::StringValue(text)) => text.clone(),
                _ => String::new(),
            },
            _ => String::new(),
        },
        _ => String::new(),
    }
}

fn string_literal(text: &str) -> Literal {
    let primitive = Primitive { value: Some(primitive::Value::StringValue(text.to_owned())), ..Default::default() };
    let scalar = Scalar { value: Some(scalar::Value::from(primitive)), ..Default::default() };
    Literal { value: Some(literal::Value::from(scalar)), ..Default::default() }
}

fn trouble(code: &str, message: String) -> TaskError {
    TaskError::new(code, message, ErrorKind::User, false)
}

#[async_trait]
impl NativeTask for Envs {
    async fn run(&self, attempt: &LeasedAttempt, log: LogSink, cancelled: CancellationToken) -> AttemptOutcome {
        let outcome = tokio::select! {
            () = cancelled.cancelled() => {
                return AttemptOutcome::Lost(TaskError::new("Cancelled", "the build was stopped", ErrorKind::System, true));
            }
            outcome = self.build_image(attempt, &log) => outcome,
        };
        match outcome {
            Ok(()) => AttemptOutcome::Succeeded(OutputRefs {
                output_uri: attempt.output_prefix.clone(),
                report_uri: String::new(),
            }),
            Err(error) => {
                log.note(&format!("{}: {}", error.code, error.message));
                match error.kind {
                    ErrorKind::System if error.recoverable => AttemptOutcome::Lost(error),
                    _ => AttemptOutcome::Failed(error, OutputRefs::default()),
                }
            }
        }
    }
}

/// Checks that this machine has the system packages that the image asks for.
async fn check_machine(target: &str, plan: &Plan, log: &LogSink) -> Result<(), TaskError> {
    let missing = machine::missing_packages(&plan.machine).await;
    if !missing.is_empty() {
        return Err(trouble(
            "SystemPackagesMissing",
            format!(
                "Image {target} asks for system packages (with_apt_packages) that this machine has not: {}. Aloft builds \
                 images without containers and installs nothing on this machine: install them (sudo apt-get install {}) \
                 and run again, or run on a cluster.",
                missing.join(", "),
                missing.join(" ")
            ),
        ));
    }
    if !plan.machine.is_empty() {
        log.note(&format!("This machine has the system packages: {}.", plan.machine.join(", ")));
    }
    Ok(())
}

impl Envs {
    async fn build_image(&self, attempt: &LeasedAttempt, log: &LogSink) -> Result<(), TaskError> {
        let inputs = Inputs::decode_from_slice(&self.fetch(&attempt.input_uri, MAX_SPEC).await?)
            .map_err(|e| trouble("BadInputs", format!("the inputs of build-image cannot be read: {e}")))?;
        let (spec_uri, context_uri, target) =
            (string_of(&inputs, "spec"), string_of(&inputs, "context"), string_of(&inputs, "target_image"));
        let spec = ImageSpec::decode_from_slice(&self.fetch(&spec_uri, MAX_SPEC).await?)
            .map_err(|e| trouble("BadImageSpec", format!("{spec_uri} is not an image specification: {e}")))?;
        log.note(&format!("Building {target} for Python {} without a container.", spec.python_version));

        let context = match context_uri.as_str() {
            "" => None,
            uri => Some(self.fetch(uri, MAX_CONTEXT).await?),
        };
        let digest = context.as_ref().map(|bytes| hex(&Sha256::digest(bytes)));
        let plan = Plan::of(&spec, &self.default_flyte().await, digest)
            .map_err(|reason| trouble("UnsupportedLayer", format!("Image {target} cannot be built here: {reason}.")))?;
        check_machine(&target, &plan, log).await?;
        let unpacked = match context {
            Some(bytes) => Some(self.unpack(&bytes).await?),
            None => None,
        };
        let made = self.make(&plan, unpacked.as_deref(), log).await;
        if let Some(dir) = unpacked {
            let _ = std::fs::remove_dir_all(dir);
        }
        let env = made?;

        let fqin = format!("{SCHEME}{}", env.id);
        let named = Named { digest: env.id, run: Some(attempt.lease.id.run.clone()) };
        self.remember(&target, &named).map_err(|e| {
            TaskError::new("ImageBuildFailed", format!("cannot name {target}: {e}"), ErrorKind::System, true)
        })?;
        let literal = NamedLiteral { name: "o0".to_owned(), value: string_literal(&fqin).into(), ..Default::default() };
        let outputs = Outputs { literals: vec![literal], ..Default::default() };
        self.store(&format!("{}/outputs.pb", attempt.output_prefix), outputs.encode_to_bytes()).await?;
        log.note(&format!("Built {target} as {fqin}."));
        Ok(())
    }

    /// The `flyte` of the default environment, for images whose base does not say.
    async fn default_flyte(&self) -> String {
        self.find_default().await.ok().flatten().and_then(|p| p.flyte).unwrap_or_default()
    }

    async fn fetch(&self, uri: &str, max: u64) -> Result<Bytes, TaskError> {
        let parsed: Uri = uri.parse().map_err(|e| trouble("BadInputs", format!("{uri:?}: {e}")))?;
        self.objects.get(&parsed, max).await.map_err(|e| trouble("BadInputs", e.to_string()))
    }

    async fn store(&self, uri: &str, bytes: Bytes) -> Result<(), TaskError> {
        let system = |message: String| TaskError::new("ImageBuildFailed", message, ErrorKind::System, true);
        let parsed: Uri = uri.parse().map_err(|e| system(format!("{uri:?}: {e}")))?;
        self.objects.put(&parsed, bytes).await.map(drop).map_err(|e| system(e.to_string()))
    }

    /// Unpacks a build context with the system's `tar`, which refuses to leave the directory.
    async fn unpack(&self, tarball: &[u8]) -> Result<PathBuf, TaskError> {
        let dir = self.dir.join("contexts").join(format!("{:016x}", rand::random::<u64>()));
        let disk = |e: std::io::Error| {
            TaskError::new("ImageBuildFailed", format!("cannot unpack the build context: {e}"), ErrorKind::System, true)
        };
        tokio::fs::create_dir_all(&dir).await.map_err(disk)?;
        let file = dir.with_extension("tar.gz");
        tokio::fs::write(&file, tarball).await.map_err(disk)?;
        let status = tar(&file, &dir).await.map_err(disk);
        let _ = tokio::fs::remove_file(&file).await;
        if status? {
            Ok(dir)
        } else {
            Err(trouble("BadImageSpec", "the build context is not a tar archive that can be unpacked".to_owned()))
        }
    }
}

async fn tar(file: &Path, dir: &Path) -> std::io::Result<bool> {
    let mut command = Command::new("tar");
    command.arg("-xzf").arg(file).arg("-C").arg(dir).args(["--no-same-owner", "--no-same-permissions"]);
    command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true);
    Ok(command.status().await?.success())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
