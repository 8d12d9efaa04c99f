//! Rules across keys, and what no type says.

use std::{path::Path, time::Duration};

use super::{Loaded, Problem, Role, Source, database::Place, is_loopback, keep::Keep};

/// Shortest lease of workers: three signs of life fit into it, and a connection that is made anew.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Everything that is wrong with a configuration by itself. Pure.
pub(super) fn check(role: Role, loaded: &Loaded) -> Vec<Problem> {
    let config = &loaded.config;
    let mut found = Found { loaded, problems: Vec::new() };
    found.names("organization", std::slice::from_ref(&config.organization));
    found.names("clusterName", std::slice::from_ref(&config.cluster_name));
    found.names("domains", &config.domains);
    found.names("projects", &config.projects);
    if config.domains.is_empty() {
        found.add("domains", "names no domain", "name one, as development");
    }
    listen(role, &mut found);
    let debug = &config.debug;
    if debug.enabled && debug.port != 0 && debug.port == config.listen.port {
        found.add("debug.port", "is the port of listen.port as well", "choose another, or debug.enabled: false");
    }
    if debug.enabled && debug.addresses.is_empty() {
        found.add("debug.addresses", "names no address", "name one, as 127.0.0.1");
    }
    if let Some(reason) = bad_level(&config.logger.level) {
        found.add("logger.level", reason, "write a level as info, or a list as info,aloft_control=debug");
    }
    for (key, text) in [("dataDir", Some(&config.data_dir)), ("storage.path", config.storage.path.as_ref())] {
        if text.is_some_and(|t| t.trim().is_empty()) {
            found.add(key, "is empty", "name a directory");
        }
    }
    if let Err(e) = aloft_objects::Uri::new(&config.storage.bucket_name, "") {
        found.add("storage.bucketName", e.to_string(), "write it as aloft-data");
    }
    let pool = &config.database.connection_pool;
    if pool.max_open_connections == 0 {
        found.add("database.connectionPool.maxOpenConnections", "allows no connection", "allow at least one");
    } else if pool.max_idle_connections > pool.max_open_connections {
        let reason = format!("is more than the {} that may be open", pool.max_open_connections);
        found.add("database.connectionPool.maxIdleConnections", reason, "lower it, or raise maxOpenConnections");
    }
    if config.database.port == 0 {
        found.add("database.port", "is no port", "write the port of Postgres, usually 5432");
    }
    if let Err((key, reason, remedy)) = config.database.place(Path::new("unused")) {
        found.add(key, reason, remedy);
    }
    if let Some(endpoint) = &config.tracing.endpoint
        && let Err(reason) = collector(endpoint)
    {
        found.add("tracing.endpoint", reason, "write it as http://collector:4318");
    }
    if config.tracing.sampled > 100 {
        found.add("tracing.sampled", "is more than all", "choose a number from 0 to 100");
    }
    for (key, most) in [("metrics.places", config.metrics.places), ("metrics.tasks", config.metrics.tasks)] {
        if most > MOST_NAMES {
            let reason = format!("is more than the {MOST_NAMES} that whoever collects metrics can be asked to take");
            found.add(key, reason, "choose some hundreds");
        }
    }
    retention(&mut found);
    worker(role, &mut found);
    found.problems
}

/// Most names that a label may have. Each task has five series of twenty buckets.
const MOST_NAMES: u32 = 10_000;

/// Shortest time that runs are kept: a client that repeats a request which it heard no answer to must find the run that it made.
/// The SDK gives up after a few minutes.
const SHORTEST: Duration = Duration::from_secs(600);

fn retention(found: &mut Found<'_>) {
    let retention = &found.loaded.config.retention;
    let short = |keep: &Keep| keep.time().is_some_and(|time| time < SHORTEST);
    let reason = |what: &str, keep: &Keep| {
        format!("{what}{keep} is too short: a client that repeats a request must find the run that it made")
    };
    if short(&retention.runs) {
        found.add("retention.runs", reason("", &retention.runs), "keep runs for 10m or longer");
    }
    let projects: Vec<_> = retention.per_project.iter().map(|p| p.project.clone()).collect();
    found.names("retention.perProject", &projects);
    for own in retention.per_project.iter().filter(|p| short(&p.keep)) {
        let reason = reason(&format!("{}=", own.project), &own.keep);
        found.add("retention.perProject", reason, "keep runs for 10m or longer");
    }
    if retention.every.0 < Duration::from_secs(1) {
        found.add("retention.every", "is less than a second", "look once a minute");
    }
}

fn worker(role: Role, found: &mut Found<'_>) {
    let worker = &found.loaded.config.worker;
    if worker.lease.0 < SHORTEST_LEASE {
        found.add("worker.lease", "is shorter than a second", "write a time in which workers can connect anew, as 30s");
    }
    if !(1..=20_000).contains(&worker.max_waiting) {
        found.add("worker.maxWaiting", "is not from 1 to 20000", "write such a number, as 16");
    }
    if let Err((key, reason, remedy)) = worker.token() {
        found.add(key, reason, remedy);
    }
    if worker.token.as_ref().is_some_and(|t| t.expose().is_empty() || !t.expose().is_ascii()) {
        found.add("worker.token", "is empty or not ASCII", "write letters and digits");
    }
    if let Err((key, reason, remedy)) = worker.servers() {
        found.add(key, reason, remedy);
    }
    if role == Role::Operator {
        if worker.control_plane_urls.is_empty() {
            found.add(
                "worker.controlPlaneUrls",
                "names no server",
                "name one with --control-plane-url http://localhost:8080",
            );
        }
        if worker.token.is_none() && worker.token_path.is_none() {
            found.add(
                "worker.token",
                "is not set, and servers ask for it",
                "name the file that holds it with --token-path",
            );
        }
    }
}

fn listen(role: Role, found: &mut Found<'_>) {
    let listen = &found.loaded.config.listen;
    let open: Vec<_> = listen.addresses.iter().filter(|a| !is_loopback(a)).map(ToString::to_string).collect();
    if listen.addresses.is_empty() {
        found.add("listen.addresses", "names no address", "name one, as 127.0.0.1");
    }
    if open.iter().any(|a| a == "::") && open.iter().any(|a| a == "0.0.0.0") {
        found.add("listen.addresses", ":: takes IPv4 as well, so there is no room for 0.0.0.0", "keep :: alone");
    }
    if !open.is_empty() {
        let open = open.join(", ");
        match role {
            Role::Dev => {
                let reason = format!("`aloft dev` is for one person on one machine, and {open} can be reached from others");
                found.add("listen.addresses", reason, "use `aloft server`");
            }
            Role::Server if !found.loaded.config.auth.insecure_no_auth => found.add(
                "listen.addresses",
                format!("{open} can be reached from other machines, and nobody has to sign in: whoever reaches it can run code here"),
                "listen on 127.0.0.1, or accept that with --insecure-no-auth (auth.insecureNoAuth: true)",
            ),
            Role::Server | Role::Operator => {}
        }
    }
    for name in &listen.names {
        let host = name.parse::<http::uri::Authority>();
        if name != "*" && !host.is_ok_and(|a| a.host() == name && !name.contains('*')) {
            found.add(
                "listen.names",
                format!("{name:?} is no host name"),
                "write it as aloft.example.com, without a port",
            );
        }
    }
    if let Some(url) = &listen.public_url
        && let Err(reason) = public_url(url)
    {
        found.add("listen.publicUrl", reason, "write it as https://aloft.example.com");
    }
}

/// Whether a URL can be that of a collector of traces.
fn collector(url: &str) -> Result<(), String> {
    let parsed: http::Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err("does not begin with http:// or https://".to_owned());
    }
    if parsed.authority().is_none_or(|a| a.host().is_empty()) {
        return Err("names no host".to_owned());
    }
    if parsed.path().trim_end_matches('/').ends_with("/v1/traces") {
        return Err("is the address of one signal, and /v1/traces is added to it".to_owned());
    }
    Ok(())
}

/// Whether a URL can be that of a server: a scheme, a host, perhaps a port, and nothing else.
fn public_url(url: &str) -> Result<(), String> {
    let parsed: http::Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err("does not begin with http:// or https://".to_owned());
    }
    if parsed.authority().is_none_or(|a| a.host().is_empty() || a.as_str().contains('@')) {
        return Err("names no host".to_owned());
    }
    if parsed.query().is_some() || parsed.path() != "/" || url.ends_with('/') {
        return Err("has something after the host and port".to_owned());
    }
    Ok(())
}

/// Why a level is none. The library takes every word for the name of a part, so a misspelt level would log everything.
fn bad_level(text: &str) -> Option<String> {
    let level =
        |l: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&l.trim().to_ascii_lowercase().as_str());
    let bad = |part: &&str| match part.rsplit_once('=') {
        Some((target, l)) => target.trim().is_empty() || !level(l),
        None => !level(part),
    };
    let part = text.split(',').find(bad)?;
    Some(format!("{:?} is no level", part.chars().take(80).collect::<String>()))
}

/// Everything that is wrong with the files that a configuration names.
pub(super) fn check_files(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found { loaded, problems: Vec::new() };
    if let Ok(Place::Postgres(postgres)) = loaded.config.database.place(Path::new("unused"))
        && let Some(password) = &postgres.password
        && let Err(reason) = password.read()
    {
        found.add("database.passwordPath", reason, "write the password into it, or check that the secret is mounted");
    }
    if let Ok(Some(token)) = loaded.config.worker.token()
        && let Err(reason) = token.read()
    {
        found.add("worker.tokenPath", reason, "write the token into it, or check that the secret is mounted");
    }
    found.problems
}

struct Found<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn add(&mut self, key: &str, reason: impl Into<String>, remedy: &str) {
        let source = self.loaded.values.get(key).map_or(&Source::Default, |(_, source)| source);
        self.problems.push(Problem::new(source, key, reason, remedy));
    }

    fn names(&mut self, key: &str, names: &[String]) {
        let bad: Vec<_> = names.iter().filter_map(|n| aloft_control::check_label("the name", n).err()).collect();
        for reason in bad {
            self.add(key, reason, "choose such a name");
        }
        let mut sorted = names.to_vec();
        sorted.sort();
        if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
            self.add(key, format!("names {:?} twice", twice[0]), "name it once");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{Layer, resolve};

    fn problems(role: Role, values: &Value) -> Vec<String> {
        let values = values.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let layer = Layer { source: Source::File("a".into()), values };
        let loaded = resolve(role, vec![layer]).expect("every value fits by itself");
        check(role, &loaded).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_good() {
        for role in [Role::Dev, Role::Server] {
            assert_eq!(problems(role, &json!({})), Vec::<String>::new());
        }
    }

    #[test]
    fn nobody_listens_beyond_this_machine_unawares() {
        for open in ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1"] {
            let said = problems(Role::Server, &json!({"listen.addresses": ["127.0.0.1", open]}));
            assert!(said.len() == 1 && said[0].contains(open) && said[0].contains("--insecure-no-auth"), "{said:?}");
            let said = problems(Role::Dev, &json!({"listen.addresses": [open], "auth.insecureNoAuth": true}));
            assert!(said.len() == 1 && said[0].contains("`aloft server`"), "{said:?}");
            let accepted = json!({"listen.addresses": [open], "auth.insecureNoAuth": true});
            assert_eq!(problems(Role::Server, &accepted), Vec::<String>::new());
        }
        let loopback = json!({"listen.addresses": ["127.0.0.1", "::1", "127.8.8.8", "::ffff:127.0.0.1"]});
        assert_eq!(problems(Role::Server, &loopback), Vec::<String>::new());
    }

    #[test]
    fn an_operator_needs_a_server_and_a_token() {
        let said = problems(Role::Operator, &json!({}));
        assert!(
            said.len() == 2 && said[0].contains("--control-plane-url") && said[1].contains("--token-path"),
            "{said:?}"
        );
        let good = json!({"worker.controlPlaneUrls": ["http://localhost:8080", "http://b:1/"], "worker.token": "x"});
        assert_eq!(problems(Role::Operator, &good), Vec::<String>::new());
        let both = problems(Role::Server, &json!({"worker.token": "x", "worker.tokenPath": "/t"}));
        assert!(both.len() == 1 && both[0].contains("worker.tokenPath"), "{both:?}");
    }

    #[test]
    fn each_rule_names_its_key() {
        for (key, value) in [
            ("organization", json!("No Such")),
            ("clusterName", json!("")),
            ("domains", json!([])),
            ("domains", json!(["a", "a"])),
            ("projects", json!(["A"])),
            ("listen.addresses", json!([])),
            ("listen.names", json!(["a:80"])),
            ("listen.names", json!(["*.example.com"])),
            ("listen.publicUrl", json!("aloft.example.com")),
            ("listen.publicUrl", json!("https://aloft.example.com/")),
            ("listen.publicUrl", json!("https://aloft.example.com/x")),
            ("listen.publicUrl", json!("ftp://aloft.example.com")),
            ("debug.port", json!(8080)),
            ("debug.addresses", json!([])),
            ("logger.level", json!("inf")),
            ("logger.level", json!("info,")),
            ("logger.level", json!("=info")),
            ("dataDir", json!("")),
            ("storage.path", json!(" ")),
            ("storage.bucketName", json!("a/b")),
            ("worker.lease", json!("10ms")),
            ("worker.maxWaiting", json!(20001)),
            ("worker.token", json!("")),
            ("worker.controlPlaneUrls", json!(["https://aloft.example.com"])),
            ("worker.controlPlaneUrls", json!(["localhost:8080"])),
            ("worker.controlPlaneUrls", json!(["http://localhost:8080/x"])),
            ("database.port", json!(0)),
            ("database.url", json!("mysql://x")),
            ("database.connectionPool.maxOpenConnections", json!(0)),
            ("database.connectionPool.maxIdleConnections", json!(21)),
            ("metrics.tasks", json!(10_001)),
            ("tracing.endpoint", json!("collector:4318")),
            ("tracing.endpoint", json!("http://collector:4318/v1/traces")),
            ("tracing.sampled", json!(101)),
            ("retention.runs", json!("9m59s")),
            ("retention.perProject", json!(["a=1m"])),
            ("retention.perProject", json!(["a=1d", "a=2d"])),
            ("retention.perProject", json!(["A=1d"])),
            ("retention.every", json!("10ms")),
        ] {
            let said = problems(Role::Server, &json!({key: value}));
            assert!(said.len() == 1 && said[0].starts_with(&format!("a: {key}: ")), "{key} {value}: {said:?}");
        }
        for (key, value) in [
            ("projects", json!([])),
            ("listen.names", json!(["*", "aloft.example.com", "aloft"])),
            ("listen.publicUrl", json!("https://aloft.example.com:8443")),
            ("debug.port", json!(0)),
            ("logger.level", json!("info,aloft_control=debug")),
            ("logger.level", json!("OFF")),
            ("retention.runs", json!("10m")),
            ("retention.perProject", json!(["a=forever", "b=3650d"])),
        ] {
            assert_eq!(problems(Role::Server, &json!({key: value})), Vec::<String>::new(), "{key} {value}");
        }
    }
}
