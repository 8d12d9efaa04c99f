//! The environment variables of a task (contract, sections 5.2 and 5.6).

use std::{collections::BTreeMap, sync::Arc};

use aloft_flyteidl2::flyteidl2::core::{KeyValuePair, TaskTemplate};
use aloft_plane::LeasedAttempt;

use crate::seam::PyEnv;

/// The access key and secret key of one attempt for the object store.
pub type Credentials = Arc<dyn Fn(&LeasedAttempt) -> (String, String) + Send + Sync>;

/// How tasks reach Aloft.
#[derive(Clone)]
pub struct Endpoints {
    /// Host and port of the API.
    pub api: String,
    /// URL of the S3 endpoint.
    pub s3: String,
    /// What an attempt signs its requests to the object store with.
    pub credentials: Credentials,
    /// Whether the object store's address and keys are also set as `AWS_*`, for libraries that read only those. It hides
    /// the AWS settings of the person who runs Aloft from tasks.
    pub export_aws: bool,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { api, s3, export_aws, credentials: _ } = self;
        f.debug_struct("Endpoints").field("api", api).field("s3", s3).field("export_aws", export_aws).finish()
    }
}

/// What a task sees of the machine's own environment.
#[derive(Clone, Debug, Default)]
pub struct HostEnv(BTreeMap<String, String>);

impl HostEnv {
    /// What of Aloft's own environment a task sees. The rest (tokens, editor settings) is not the task's business, and
    /// would make it behave otherwise than on another machine.
    const SEEN: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"];

    /// Takes it from Aloft's own environment.
    pub fn capture() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    fn from(var: impl Fn(&str) -> Option<String>) -> Self {
        let mut vars: BTreeMap<_, _> =
            Self::SEEN.iter().filter_map(|name| Some(((*name).to_owned(), var(name)?))).collect();
        vars.entry("PATH".to_owned()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
        // Without a locale Python would refuse to print what is not ASCII.
        vars.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
        Self(vars)
    }

    /// The environment of every process in Python environment `env`, before a task's own variables.
    pub(super) fn for_python(&self, env: &PyEnv) -> BTreeMap<String, String> {
        let mut vars = self.0.clone();
        let path = vars.get("PATH").cloned().unwrap_or_default();
        vars.insert("PATH".to_owned(), format!("{}:{path}", env.bin_dir.display()));
        vars.insert("PYTHONUNBUFFERED".to_owned(), "1".to_owned());
        // Code comes from the bundle, never from the source tree of whoever runs Aloft.
        vars.insert("PYTHONPATH".to_owned(), String::new());
        vars.insert("DO_NOT_TRACK".to_owned(), "1".to_owned());
        for (name, value) in &env.vars {
            // As in a Dockerfile: `PATH=/more:$PATH` adds to what is there.
            let old = vars.get(name).cloned().unwrap_or_default();
            let value = value.replace(&format!("${{{name}}}"), &old).replace(&format!("${name}"), &old);
            vars.insert(name.clone(), value);
        }
        vars
    }
}

/// The whole environment of `attempt`. Later sources win, but nobody can change what identifies the attempt: the SDK
/// derives the names of the actions below from it.
pub(super) fn environment(
    host: &HostEnv,
    env: &PyEnv,
    endpoints: &Endpoints,
    attempt: &LeasedAttempt,
    template: &TaskTemplate,
    declared: &[KeyValuePair],
    tmp_dir: &str,
) -> Vec<(String, String)> {
    let mut vars = host.for_python(env);
    let mut set = |name: &str, value: &str| vars.insert(name.to_owned(), value.to_owned());
    set("TMPDIR", tmp_dir);
    set("_U_EP_OVERRIDE", &endpoints.api);
    set("_U_INSECURE", "true");
    set("_U_USE_ACTIONS", "1");
    let (access_key, secret_key) = (endpoints.credentials)(attempt);
    set("FLYTE_AWS_ENDPOINT", &endpoints.s3);
    set("FLYTE_AWS_ACCESS_KEY_ID", &access_key);
    set("FLYTE_AWS_SECRET_ACCESS_KEY", &secret_key);
    if endpoints.export_aws {
        set("AWS_ENDPOINT_URL", &endpoints.s3);
        set("AWS_ENDPOINT_URL_S3", &endpoints.s3);
        set("AWS_ACCESS_KEY_ID", &access_key);
        set("AWS_SECRET_ACCESS_KEY", &secret_key);
        set("AWS_REGION", "us-east-1");
        set("AWS_DEFAULT_REGION", "us-east-1");
        set("AWS_ALLOW_HTTP", "true");
        // There is no instance to ask; asking costs a task seconds.
        set("AWS_EC2_METADATA_DISABLED", "true");
    }
    vars.extend(attempt.default_envs.iter().cloned());
    vars.extend(declared.iter().map(|pair| (pair.key.clone(), pair.value.clone())));
    vars.extend(attempt.envs.iter().cloned());
    vars.extend(identity(attempt, template));
    // A name that no process can have would make the start fail.
    vars.retain(|name, value| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    vars.into_iter().collect()
}

/// What tells the attempt who it is.
fn identity(attempt: &LeasedAttempt, template: &TaskTemplate) -> Vec<(String, String)> {
    let id = &attempt.lease.id;
    let scope = &id.run.scope;
    let task = &template.id;
    [
        ("ACTION_NAME", id.action.as_str()),
        ("RUN_NAME", &id.run.name),
        ("FLYTE_INTERNAL_EXECUTION_ID", &id.run.name),
        ("FLYTE_INTERNAL_EXECUTION_PROJECT", &scope.project),
        ("FLYTE_INTERNAL_EXECUTION_DOMAIN", &scope.domain),
        ("_U_ORG_NAME", &scope.org),
        ("_U_RUN_BASE", &attempt.run_base),
        ("FLYTE_ATTEMPT_NUMBER", &id.attempt.saturating_sub(1).to_string()),
        ("FLYTE_INTERNAL_TASK_PROJECT", &task.project),
        ("FLYTE_INTERNAL_TASK_DOMAIN", &task.domain),
        ("FLYTE_INTERNAL_TASK_NAME", &task.name),
        ("FLYTE_INTERNAL_TASK_VERSION", &task.version),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::process::tests::{attempt, endpoints};

    fn py() -> PyEnv {
        PyEnv {
            bin_dir: PathBuf::from("/env/bin"),
            python: PathBuf::from("/env/bin/python"),
            id: "e".to_owned(),
            vars: Vec::new(),
            files: None,
        }
    }

    fn pair(key: &str, value: &str) -> KeyValuePair {
        KeyValuePair { key: key.to_owned(), value: value.to_owned(), ..KeyValuePair::default() }
    }

    #[test]
    fn later_sources_win_but_not_over_the_identity() {
        let host = HostEnv::from(|name| match name {
            "PATH" => Some("/usr/bin".to_owned()),
            "HOME" => Some("/home/me".to_owned()),
            "GITHUB_TOKEN" => Some("secret".to_owned()),
            _ => None,
        });
        let mut a = attempt("r1", "abc", 3);
        let default = |name: &str| (name.to_owned(), "settings".to_owned());
        a.default_envs = vec![default("A"), default("B"), default("C"), default("ACTION_NAME")];
        a.envs = vec![("B".to_owned(), "run".to_owned()), ("RUN_NAME".to_owned(), "forged".to_owned())];
        let declared = [pair("A", "task"), pair("B", "task"), pair("_U_EP_OVERRIDE", "elsewhere:1"), pair("X=Y", "no")];
        let vars: BTreeMap<_, _> =
            environment(&host, &py(), &endpoints(), &a, &TaskTemplate::default(), &declared, "/tmp/x")
                .into_iter()
                .collect();
        let get = |name: &str| vars.get(name).map(String::as_str);
        for (name, want) in [
            ("A", Some("task")),
            ("B", Some("run")),
            ("C", Some("settings")),
            ("RUN_NAME", Some("r1")),
            ("ACTION_NAME", Some("abc")),
            ("FLYTE_ATTEMPT_NUMBER", Some("2")),
            ("_U_ORG_NAME", Some("org")),
            ("_U_RUN_BASE", Some("s3://b/p/r1")),
            ("_U_EP_OVERRIDE", Some("elsewhere:1")),
            ("_U_USE_ACTIONS", Some("1")),
            ("PATH", Some("/env/bin:/usr/bin")),
            ("HOME", Some("/home/me")),
            ("LANG", Some("C.UTF-8")),
            ("TMPDIR", Some("/tmp/x")),
            ("PYTHONPATH", Some("")),
            ("FLYTE_AWS_ACCESS_KEY_ID", Some("key-r1-abc-3")),
            ("AWS_SECRET_ACCESS_KEY", Some("hush")),
            ("GITHUB_TOKEN", None),
            ("X=Y", None),
        ] {
            assert_eq!(get(name), want, "{name}");
        }
    }

    #[test]
    fn an_image_can_add_to_a_variable() {
        let host = HostEnv::from(|name| (name == "PATH").then(|| "/usr/bin".to_owned()));
        let var = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = PyEnv { vars: vec![var("PATH", "/more:$PATH"), var("NEW", "x${NEW}$OTHER")], ..py() };
        let vars = host.for_python(&env);
        assert_eq!(vars["PATH"], "/more:/env/bin:/usr/bin");
        assert_eq!(vars["NEW"], "x$OTHER", "only what it adds to is filled in");
    }

    #[test]
    fn aws_settings_of_the_machine_can_be_left_alone() {
        let quiet = Endpoints { export_aws: false, ..endpoints() };
        let vars = environment(
            &HostEnv::default(),
            &py(),
            &quiet,
            &attempt("r", "a0", 1),
            &TaskTemplate::default(),
            &[],
            "/t",
        );
        assert!(!vars.iter().any(|(name, _)| name.starts_with("AWS_")));
        assert!(vars.iter().any(|(name, _)| name == "FLYTE_AWS_ENDPOINT"));
    }

    #[test]
    fn secrets_do_not_show() {
        assert!(!format!("{:?}", endpoints()).contains("hush"));
    }
}
