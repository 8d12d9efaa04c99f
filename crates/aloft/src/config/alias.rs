//! Other names and shapes of keys that are accepted: those of the specification, and those of earlier versions.
//!
//! Where the names are found: of the control plane's chart in `platform-features.md` 2.1, of Flyte 2 in
//! `flyte2-go-backend.md` 7, of the data plane's chart in `helm-values.tsv`, of monitoring on the specification's page 003.

use serde_json::Value;

/// Another name of a key.
pub(crate) struct Alias {
    /// The other name.
    pub(crate) name: &'static str,
    /// The key that it means.
    pub(crate) key: &'static str,
    /// How its value becomes that of the key.
    pub(crate) take: Take,
    /// Whose name it is.
    pub(crate) source: &'static str,
}

/// How a value of another name becomes the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// As it is.
    Same,
    /// As the only entry of a list.
    OnlyEntry,
    /// `dns:///host` as `https://host`.
    DnsAsUrl,
    /// As an address of the form `:10254`: its port.
    PortOfAddress,
}

macro_rules! aliases {
    ($($source:literal: { $($name:literal => $key:literal $(as $take:ident)?),* $(,)? })*) => {
        &[$($(Alias { name: $name, key: $key, take: aliases!(@take $($take)?), source: $source }),*),*]
    };
    (@take) => { Take::Same };
    (@take $take:ident) => { Take::$take };
}

/// Every other name in a file.
pub(crate) const ALIASES: &[Alias] = aliases! {
    "the control plane's chart": {
        "db.host" => "database.host",
        "db.port" => "database.port",
        "db.dbname" => "database.dbname",
        "db.username" => "database.username",
        "db.password" => "database.password",
        "db.passwordPath" => "database.passwordPath",
        "db.options" => "database.options",
        "db.connectionPool.maxOpenConnections" => "database.connectionPool.maxOpenConnections",
        "db.connectionPool.maxIdleConnections" => "database.connectionPool.maxIdleConnections",
        "db.connectionPool.maxConnectionLifetime" => "database.connectionPool.maxConnectionLifetime",
        "sharedService.security.singleTenantOrgID" => "organization",
        "connection.rootTenantURLPattern" => "listen.publicUrl" as DnsAsUrl,
    }
    "Flyte 2": {
        "runs.server.host" => "listen.addresses" as OnlyEntry,
        "runs.server.port" => "listen.port",
        "runs.domains" => "domains",
        "runs.seedProjects" => "projects",
        "runs.database.maxOpenConnections" => "database.connectionPool.maxOpenConnections",
        "runs.database.maxIdleConnections" => "database.connectionPool.maxIdleConnections",
        "runs.database.connMaxLifeTime" => "database.connectionPool.maxConnectionLifetime",
        "runs.database.postgres.host" => "database.host",
        "runs.database.postgres.port" => "database.port",
        "runs.database.postgres.dbname" => "database.dbname",
        "runs.database.postgres.username" => "database.username",
        "runs.database.postgres.password" => "database.password",
        "runs.database.postgres.passwordPath" => "database.passwordPath",
        "runs.database.postgres.options" => "database.options",
        "database.maxOpenConnections" => "database.connectionPool.maxOpenConnections",
        "database.maxIdleConnections" => "database.connectionPool.maxIdleConnections",
        "database.connMaxLifeTime" => "database.connectionPool.maxConnectionLifetime",
        "database.connectionPool.connMaxLifeTime" => "database.connectionPool.maxConnectionLifetime",
        "database.postgres.host" => "database.host",
        "database.postgres.port" => "database.port",
        "database.postgres.dbname" => "database.dbname",
        "database.postgres.username" => "database.username",
        "database.postgres.password" => "database.password",
        "database.postgres.passwordPath" => "database.passwordPath",
        "database.postgres.options" => "database.options",
        "server.host" => "listen.addresses" as OnlyEntry,
        "server.port" => "listen.port",
        "executor.cluster" => "clusterName",
        "executor.metricsBindAddress" => "debug.port" as PortOfAddress,
        "logger.formatter" => "logger.format",
        "logger.formatter.type" => "logger.format",
        "storage.type" => "storage.provider",
        "storage.container" => "storage.bucketName",
        "storage.metadataContainer" => "storage.bucketName",
        "prof-port" => "debug.port",
        "profiler.prof-port" => "debug.port",
    }
    "Flyte's monitoring": {
        "propeller.prof-port" => "debug.port",
        "flyteadmin.profilerPort" => "debug.port",
        "scheduler.profilerPort" => "debug.port",
    }
    "the data plane's chart": {
        "orgName" => "organization",
        "operator.clusterId.organization" => "organization",
        "operator.clusterId.name" => "clusterName",
        "sharedService.port" => "listen.port",
        "seedProjects" => "projects",
        "domain.domains" => "domains",
        "listen.host" => "listen.addresses" as OnlyEntry,
        "listen.address" => "listen.addresses" as OnlyEntry,
        "debug.address" => "debug.addresses" as OnlyEntry,
    }
};

/// Other names of environment variables: those from before there was one configuration.
pub(crate) const VARIABLES: &[(&str, &str)] =
    &[("ALOFT_PORT", "listen.port"), ("ALOFT_GRACE", "executor.grace"), ("ALOFT_LOG", "logger.level")];

/// The key that another name means, exactly or in another spelling.
pub(crate) fn find(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|a| a.name == name).or_else(|| ALIASES.iter().find(|a| same_spelling(a.name, name)))
}

/// Whether two names differ at most in upper case and in what stands between words: the specification writes `show-source`,
/// `max_size_mbs` and `maxDownloadMBs`, and its own programs do not tell upper from lower case.
pub(crate) fn same_spelling(one: &str, other: &str) -> bool {
    fn bare(text: &str) -> impl Iterator<Item = char> {
        text.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase())
    }
    bare(one).eq(bare(other))
}

/// The value of another name as the key's own. What has another shape than expected stays as it is, to be refused by name.
pub(crate) fn take(how: Take, value: Value) -> Value {
    match (how, value) {
        (Take::OnlyEntry, Value::String(text)) => Value::Array(vec![text.into()]),
        (Take::DnsAsUrl, Value::String(text)) => match text.strip_prefix("dns:///") {
            Some(host) => format!("https://{host}").into(),
            None => text.into(),
        },
        (Take::PortOfAddress, Value::String(text)) => text
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok())
            .map_or_else(|| text.into(), Value::from),
        (_, value) => value,
    }
}

/// A value in a shape that the specification gives it and we do not, with what to say of it.
pub(crate) fn reshape(key: &str, value: &Value) -> Option<(Value, &'static str)> {
    match key {
        // The data plane's chart: config.logger.level 4, as logrus counts.
        "logger.level" => {
            let names = ["error", "error", "error", "warn", "info", "debug", "trace"];
            let name = names.get(usize::try_from(value.as_u64()?).ok()?)?;
            Some(((*name).into(), "a number is the specification's way to write a level; write its name"))
        }
        // The data plane's chart: config.domain, entries with an id and a name.
        "domains" => {
            let entries = value.as_array()?;
            let ids: Vec<Value> = entries.iter().filter_map(|e| e.get("id").cloned()).collect();
            let all = !ids.is_empty() && ids.len() == entries.len();
            all.then_some((
                Value::Array(ids),
                "of entries with id and name only the id is taken; write a list of the ids",
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::keys::keys;

    #[test]
    fn every_alias_means_a_key_and_hides_none() {
        for alias in ALIASES {
            assert!(keys().contains_key(alias.key), "{} means no key: {}", alias.name, alias.key);
            assert!(!keys().keys().any(|k| same_spelling(k, alias.name)), "{} is a key", alias.name);
            assert!(!alias.source.is_empty());
            let twins = ALIASES.iter().filter(|a| same_spelling(a.name, alias.name)).count();
            assert_eq!(twins, 1, "{} is there twice", alias.name);
        }
        for (variable, key) in VARIABLES {
            assert!(keys().contains_key(*key), "{variable} means no key");
            assert!(!keys().values().any(|k| k.env == *variable), "{variable} is a key's own");
        }
    }

    #[test]
    fn names_are_found_in_any_spelling() {
        assert_eq!(find("db.passwordPath").unwrap().key, "database.passwordPath");
        assert_eq!(find("db.password_path").unwrap().key, "database.passwordPath");
        assert_eq!(find("sharedservice.security.singletenantorgid").unwrap().key, "organization");
        assert!(find("db.passwordPaths").is_none());
    }

    #[test]
    fn values_are_taken_in_their_new_shape() {
        assert_eq!(take(Take::OnlyEntry, json!("0.0.0.0")), json!(["0.0.0.0"]));
        assert_eq!(take(Take::OnlyEntry, json!(["::"])), json!(["::"]));
        assert_eq!(take(Take::DnsAsUrl, json!("dns:///aloft.example")), json!("https://aloft.example"));
        assert_eq!(take(Take::PortOfAddress, json!(":10254")), json!(10254));
        assert_eq!(take(Take::PortOfAddress, json!("nothing")), json!("nothing"));
        assert_eq!(reshape("logger.level", &json!(4)).unwrap().0, json!("info"));
        assert_eq!(reshape("logger.level", &json!(7)), None);
        assert_eq!(reshape("logger.level", &json!("info")), None);
        let domains = json!([{"id": "a", "name": "A"}, {"id": "b"}]);
        assert_eq!(reshape("domains", &domains).unwrap().0, json!(["a", "b"]));
        assert_eq!(reshape("domains", &json!(["a"])), None);
        assert_eq!(reshape("domains", &json!([])), None);
    }
}
