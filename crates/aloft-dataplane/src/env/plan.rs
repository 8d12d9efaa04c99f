//! What an image asks for, as a plan that can be carried out without a container, or a refusal.

use std::collections::BTreeMap;

use aloft_flyteidl2::flyteidl2::imagebuilder::{ImageSpec, Layer, PipOptions, layer};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// How the images we make are named.
pub(super) const SCHEME: &str = "aloft-env://";

/// The newest `flyte`, when an image does not say which.
const ANY_FLYTE: &str = "";

/// What the SDK itself puts under images that do not start from its own image (`from_uv_script`, `install_flyte=False`)
/// prepares a container, and means nothing to a process. These are the variables that say where Python is in there…
const CONTAINER_VARS: [(&str, &str); 3] =
    [("VIRTUAL_ENV", "/opt/venv"), ("PATH", "/opt/venv/bin:$PATH"), ("PYTHONPATH", "/root")];

/// …and the packages: a compiler, which few need and whose absence uv reports, and certificates, which uv brings.
const CONTAINER_PACKAGES: [&str; 2] = ["build-essential", "ca-certificates"];

/// Whether `command` is the one that makes the user `flyte` whom such a container runs as.
fn makes_container_user(command: &str) -> bool {
    command.contains("useradd") && command.contains("chown -R flyte:flyte /home/flyte")
}

/// What `container.image` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Image {
    /// An environment we made, by its digest.
    Built(String),
    /// The SDK's own image: a Python version and a `flyte` version.
    Sdk {
        /// Such as `3.11`.
        minor: String,
        /// Such as `2.12.1`.
        flyte: String,
    },
    /// An image of somebody else.
    Other(String),
}

impl Image {
    pub(super) fn parse(name: &str) -> Self {
        if let Some(digest) = name.strip_prefix(SCHEME) {
            // It becomes a path.
            let hex = digest.len() == 32 && digest.bytes().all(|b| b.is_ascii_hexdigit());
            return Self::Built(if hex { digest.to_owned() } else { "0".repeat(32) });
        }
        sdk(name).unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}

/// `…/flyte:py3.11-v2.12.1`, with a digest or a suffix after it or not.
fn sdk(name: &str) -> Option<Image> {
    let (repository, tag) = name.rsplit_once(':')?;
    if repository.rsplit('/').next()? != "flyte" {
        return None;
    }
    let (minor, flyte) = tag.strip_prefix("py")?.split_once("-v")?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (major, rest) = minor.split_once('.')?;
    if !number(major) || !number(rest) || !is_version(flyte) {
        return None;
    }
    Some(Image::Sdk { minor: minor.to_owned(), flyte: flyte.to_owned() })
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '!' | '-'))
}

/// A file name for an image name.
pub(super) fn file_name(image: &str) -> String {
    // With a registry or without: it is the same image here.
    let name = image.rsplit('/').next().unwrap_or(image);
    let mut text: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(60).collect();
    let digest = Sha256::digest(name.as_bytes());
    text.push_str(&format!("-{:02x}{:02x}{:02x}{:02x}.json", digest[0], digest[1], digest[2], digest[3]));
    text
}

/// One step of making an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Install packages by name.
    Packages { packages: Vec<String>, options: Vec<String> },
    /// Install what a requirements file of the context lists.
    Requirements { file: String, options: Vec<String> },
    /// Install the wheels of a directory of the context.
    Wheels { dir: String, options: Vec<String> },
    /// Install a uv project of the context.
    Project { dir: String, lock: Option<String>, extra: Vec<String> },
    /// Copy a file or directory of the context to where the code finds it.
    Copy { from: String, to: String },
}

/// How an environment is made. Its digest is its name, so everything that matters is in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Plan {
    /// The Python to use, such as `3.11`; any if it does not matter.
    pub(super) python: Option<String>,
    /// The `flyte` to install; the newest if empty.
    pub(super) flyte: String,
    pub(super) steps: Vec<Step>,
    /// Variables that tasks in it see.
    pub(super) vars: BTreeMap<String, String>,
    /// Digest of the context's files, if a step uses them.
    pub(super) context: Option<String>,
    /// The Debian packages that this machine must have. They are not in the environment, hence not in its name.
    #[serde(skip)]
    pub(super) machine: Vec<String>,
}

impl Plan {
    /// Only Python and `flyte`.
    pub(super) fn plain(python: Option<String>, flyte: &str) -> Self {
        let flyte = if is_version(flyte) { flyte.to_owned() } else { ANY_FLYTE.to_owned() };
        Self { python, flyte, steps: Vec::new(), vars: BTreeMap::new(), context: None, machine: Vec::new() }
    }

    /// The plan of an image specification. `flyte` is what the submitting SDK runs, when the base image does not say.
    ///
    /// # Errors
    /// A sentence that names the layer which needs a container, and what to do.
    pub(super) fn of(spec: &ImageSpec, flyte: &str, context: Option<String>) -> Result<Self, String> {
        let base = Image::parse(&spec.base_image);
        let flyte = match &base {
            Image::Sdk { flyte, .. } => flyte.clone(),
            Image::Built(_) | Image::Other(_) => flyte.to_owned(),
        };
        let minor = match (spec.python_version.as_str(), base) {
            ("", Image::Sdk { minor, .. }) => Some(minor),
            ("", _) => None,
            (version, _) if is_version(version) => Some(version.to_owned()),
            (version, _) => return Err(format!("python_version {version:?} is not a version such as 3.12")),
        };
        let mut plan = Self::plain(minor, &flyte);
        for layer in &spec.layers {
            plan.add(layer)?;
        }
        let uses_context = plan.steps.iter().any(|s| !matches!(s, Step::Packages { .. }));
        plan.context = context.filter(|_| uses_context);
        Ok(plan)
    }

    fn add(&mut self, layer: &Layer) -> Result<(), String> {
        match &layer.layer {
            Some(layer::Layer::PipPackages(pip)) => {
                let packages = pip.packages.iter().map(|p| requirement(p)).collect::<Result<Vec<_>, _>>()?;
                if !packages.is_empty() {
                    self.steps.push(Step::Packages { packages, options: options(pip.options.as_option())? });
                }
            }
            Some(layer::Layer::Requirements(r)) => {
                self.steps
                    .push(Step::Requirements { file: inside(&r.file)?, options: options(r.options.as_option())? });
            }
            Some(layer::Layer::PythonWheels(w)) => {
                self.steps.push(Step::Wheels { dir: inside(&w.dir)?, options: options(w.options.as_option())? });
            }
            Some(layer::Layer::UvProject(p)) => {
                let lock = if p.uvlock.is_empty() { None } else { Some(inside(&p.uvlock)?) };
                let extra = words(p.options.as_option().map_or("", |o| &o.extra_args));
                self.steps.push(Step::Project { dir: inside(&p.pyproject)?, lock, extra });
            }
            Some(layer::Layer::CopyConfig(c)) => {
                self.steps.push(Step::Copy { from: inside(&c.src)?, to: landing(&c.dst)? });
            }
            Some(layer::Layer::Env(env)) => {
                let of_container = |k: &str, v: &str| CONTAINER_VARS.contains(&(k, v));
                let vars = env.env_variables.iter().filter(|(k, v)| !of_container(k, v));
                self.vars.extend(vars.map(|(k, v)| (k.clone(), v.clone())));
            }
            // Every attempt has a fresh working directory of its own.
            Some(layer::Layer::Workdir(_)) | None => {}
            Some(layer::Layer::AptPackages(apt)) => {
                let packages = apt.packages.iter().filter(|p| !CONTAINER_PACKAGES.contains(&p.as_str()));
                self.machine.extend(packages.cloned());
            }
            Some(layer::Layer::Commands(commands)) => {
                if let Some(command) = commands.cmd.iter().find(|c| !makes_container_user(c)) {
                    return Err(format!(
                        "the layer with_commands({command:?}, …) needs a container. Aloft builds images without containers, \
                         as Python environments of this machine: use Python packages instead, or run on a cluster"
                    ));
                }
            }
            Some(layer::Layer::PoetryProject(p)) => {
                return Err(format!(
                    "the layer with_poetry_project({}) is not built yet; use with_uv_project or with_requirements",
                    p.pyproject
                ));
            }
        }
        Ok(())
    }

    /// The name of the environment.
    pub(super) fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(json);
        digest.iter().take(16).map(|b| format!("{b:02x}")).collect()
    }
}

/// A requirement is an argument of uv's, and must not become an option.
fn requirement(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('-') || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is not a package; put options of pip into extra_args"));
    }
    Ok(text.to_owned())
}

fn options(options: Option<&PipOptions>) -> Result<Vec<String>, String> {
    let Some(o) = options else { return Ok(Vec::new()) };
    let mut args = Vec::new();
    let mut url = |flag: &str, url: &str| {
        if url.starts_with('-') {
            return Err(format!("{url:?} is not an index URL"));
        }
        args.extend([flag.to_owned(), url.to_owned()]);
        Ok(())
    };
    if !o.index_url.is_empty() {
        url("--index-url", &o.index_url)?;
    }
    for extra in &o.extra_index_urls {
        url("--extra-index-url", extra)?;
    }
    // uv takes it once, and people write both.
    if o.pre && !words(&o.extra_args).iter().any(|w| w.starts_with("--prerelease") || w == "--pre") {
        args.extend(["--prerelease".to_owned(), "allow".to_owned()]);
    }
    args.extend(words(&o.extra_args));
    Ok(args)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A path of the context, which stays inside it.
fn inside(path: &str) -> Result<String, String> {
    let ok = !path.starts_with('/') && path.split('/').all(|s| s != "..") && !path.chars().any(char::is_control);
    if ok { Ok(path.trim_end_matches('/').to_owned()) } else { Err(format!("{path:?} leaves the build context")) }
}

/// Where a copied file lands, below the directory that tasks see as their working directory. The SDK's images work in
/// `/root`, so that prefix means "here".
fn landing(path: &str) -> Result<String, String> {
    let relative = path.strip_prefix("/root").unwrap_or(path).trim_start_matches('/');
    if path.starts_with('/') && !path.starts_with("/root") {
        return Err(format!(
            "the file copied to {path} would land outside the working directory, and a process has no file system of its \
             own: copy it to a relative path or below /root"
        ));
    }
    inside(relative.trim_start_matches("./"))
}

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::imagebuilder::{AptPackages, Commands, CopyConfig, Env, PipPackages};

    use super::*;

    fn layer(layer: impl Into<layer::Layer>) -> Layer {
        Layer { layer: Some(layer.into()), ..Default::default() }
    }

    fn pip(packages: &[&str]) -> Layer {
        layer(PipPackages { packages: packages.iter().map(|p| (*p).to_owned()).collect(), ..Default::default() })
    }

    fn spec(layers: Vec<Layer>) -> ImageSpec {
        ImageSpec { base_image: "ghcr.io/flyteorg/flyte:py3.12-v2.12.1".into(), layers, ..Default::default() }
    }

    #[test]
    fn images_are_told_apart() {
        let sdk = Image::parse("ghcr.io/flyteorg/flyte:py3.11-v2.12.1");
        assert_eq!(sdk, Image::Sdk { minor: "3.11".into(), flyte: "2.12.1".into() });
        assert_eq!(Image::parse("localhost:30000/flyte:py3.11-v2.12.1"), sdk);
        let digest = "0123456789abcdef0123456789abcdef";
        assert_eq!(Image::parse(&format!("{SCHEME}{digest}")), Image::Built(digest.into()));
        assert_eq!(Image::parse("aloft-env://../../etc"), Image::Built("0".repeat(32)));
        for other in ["", "ubuntu:22.04", "flyte", "flyte:latest", "x/flyte:py3.11-v; rm -rf"] {
            assert_eq!(Image::parse(other), Image::Other(other.into()), "{other}");
        }
    }

    #[test]
    fn the_same_layers_are_the_same_environment() {
        let plan = |packages: &[&str]| Plan::of(&spec(vec![pip(packages)]), "1", None).unwrap();
        assert_eq!(plan(&["a", "b"]).digest(), plan(&["a", "b"]).digest());
        assert_ne!(plan(&["a", "b"]).digest(), plan(&["b", "a"]).digest(), "uv resolves them in order");
        let p = plan(&["a"]);
        assert_eq!((p.python.as_deref(), p.flyte.as_str()), (Some("3.12"), "2.12.1"), "the base image says which");
    }

    #[test]
    fn pre_releases_are_allowed_once() {
        let of = |pre, extra: &str| {
            options(Some(&PipOptions { pre, extra_args: extra.into(), ..Default::default() })).unwrap()
        };
        assert_eq!(of(true, "--no-deps"), ["--prerelease", "allow", "--no-deps"]);
        assert_eq!(of(true, "--prerelease=allow"), ["--prerelease=allow"]);
        assert!(of(false, "").is_empty());
    }

    #[test]
    fn what_needs_a_container_is_refused_by_name() {
        let commands = Commands { cmd: vec!["make".into()], ..Default::default() };
        let error = Plan::of(&spec(vec![layer(commands)]), "1", None).unwrap_err();
        assert!(error.contains("with_commands(\"make\"") && error.contains("instead"), "{error}");
    }

    #[test]
    fn system_packages_are_asked_of_the_machine() {
        let apt = AptPackages { packages: vec!["curl".into()], ..Default::default() };
        let plan = Plan::of(&spec(vec![pip(&["a"]), layer(apt)]), "1", None).unwrap();
        assert_eq!(plan.machine, ["curl"]);
        assert_eq!(plan.digest(), Plan::of(&spec(vec![pip(&["a"])]), "1", None).unwrap().digest());
    }

    #[test]
    fn what_the_sdk_prepares_a_container_with_is_left_out() {
        let create = "if ! id -u flyte >/dev/null 2>&1; then useradd --create-home --shell /bin/bash flyte; fi && mkdir -p \
                      /home/flyte && chown -R flyte:flyte /home/flyte && chown -R flyte:flyte /root";
        let vars =
            [("PATH", "/opt/venv/bin:$PATH"), ("PYTHONPATH", "/root"), ("VIRTUAL_ENV", "/opt/venv"), ("MINE", "1")];
        let vars = vars.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let base = ImageSpec {
            base_image: "python:3.11-slim-bookworm".into(),
            python_version: "3.11".into(),
            layers: vec![
                layer(Commands { cmd: vec![create.into()], ..Default::default() }),
                layer(Env { env_variables: vars, ..Default::default() }),
                layer(AptPackages {
                    packages: vec!["build-essential".into(), "ca-certificates".into()],
                    ..Default::default()
                }),
                pip(&["a"]),
            ],
            ..Default::default()
        };
        let plan = Plan::of(&base, "2.12.1", None).unwrap();
        assert_eq!(plan.vars.into_iter().collect::<Vec<_>>(), [("MINE".to_owned(), "1".to_owned())]);
        assert_eq!((plan.machine.len(), plan.steps.len(), plan.flyte.as_str()), (0, 1, "2.12.1"));
    }

    #[test]
    fn nothing_of_the_request_becomes_an_option_or_leaves_its_place() {
        assert!(Plan::of(&spec(vec![pip(&["--index-url=http://evil"])]), "1", None).is_err());
        let copy = |src: &str, dst: &str| {
            let c = CopyConfig { src: src.into(), dst: dst.into(), ..Default::default() };
            Plan::of(&spec(vec![layer(c)]), "1", Some("c".into()))
        };
        assert!(copy("../x", ".").is_err() && copy("x", "../y").is_err() && copy("x", "/etc/passwd").is_err());
        assert_eq!(copy("x", "/root/y").unwrap().steps, [Step::Copy { from: "x".into(), to: "y".into() }]);
        let env = Env { env_variables: [("A".to_owned(), "1".to_owned())].into(), ..Default::default() };
        assert_eq!(Plan::of(&spec(vec![layer(env)]), "1", None).unwrap().vars["A"], "1");
    }

    #[test]
    fn image_names_become_file_names() {
        assert_eq!(file_name("r.io/a/farm:12"), file_name("farm:12"));
        assert_ne!(file_name("farm:12"), file_name("farm_12"));
        assert!(!file_name("../../x").contains('/'));
    }
}
