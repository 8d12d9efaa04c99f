//! Which database the configuration names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    model::{ConnectionPool, Database},
    values::{Secret, SecretFile},
};

/// What must be written otherwise in a part of a URL; letters of host names stay.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What must be written otherwise in the parameters of a URL.
const PARAMETERS: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'"').add(b'<').add(b'>');

/// Where a database is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A Postgres.
    Postgres(Postgres),
}

/// A Postgres and how to reach it.
#[derive(Clone, Debug)]
pub(crate) struct Postgres {
    /// `postgres://user@host:port/name?parameters`. May hold a password.
    pub(crate) url: Secret,
    /// The password, in place of one in the URL.
    pub(crate) password: Option<Password>,
    /// How many connections.
    pub(crate) pool: ConnectionPool,
}

/// Where a password is.
#[derive(Clone, Debug)]
pub(crate) enum Password {
    /// In the configuration.
    Plain(Secret),
    /// In a file that may change.
    File(Arc<SecretFile>),
}

impl Password {
    /// The password as it is now.
    ///
    /// # Errors
    /// A sentence that names the file, if it cannot be read.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Plain(secret) => Ok(secret.clone()),
            Self::File(file) => file.read(),
        }
    }
}

impl Postgres {
    /// The address without the password, to show.
    pub(crate) fn shown(&self) -> String {
        let url = self.url.expose();
        let (head, parameters) = aloft_store_postgres::split_address(url);
        let (scheme, rest) = head.split_once("://").unwrap_or(("postgres", head));
        let (who, place) = rest.rsplit_once('@').map_or(("", rest), |(w, p)| (w, p));
        let user = who.split(':').next().unwrap_or_default();
        let at = if user.is_empty() { "" } else { "@" };
        // Parameters can hold a password as well, so only that there are some is told.
        let more = if parameters.is_empty() { "" } else { "?..." };
        format!("{scheme}://{user}{at}{place}{more}")
    }
}

impl Database {
    /// Where the database is: `default` if no key says it.
    ///
    /// # Errors
    /// Which key is wrong, why, and the remedy.
    pub(crate) fn place(&self, default: &Path) -> Result<Place, (&'static str, String, &'static str)> {
        match (&self.url, &self.host) {
            (Some(_), Some(_)) => {
                Err(("database.host", "database.url says already where the database is".to_owned(), "keep one of them"))
            }
            (None, None) => Ok(Place::Sqlite(default.to_owned())),
            (Some(url), None) => self.by_url(url),
            (None, Some(host)) => self.postgres(self.assembled(host)),
        }
    }

    fn by_url(&self, url: &Secret) -> Result<Place, (&'static str, String, &'static str)> {
        const REMEDY: &str = "write it as sqlite:///path/to/file or postgres://user@host:5432/name";
        let (scheme, rest) = url.expose().split_once(':').unwrap_or_default();
        match scheme {
            "sqlite" => {
                let path = match rest.strip_prefix("//") {
                    // Two slashes begin a host, and a file has none.
                    Some(path) if path.starts_with('/') => path,
                    Some(_) => return Err(("database.url", "has no path after sqlite://".to_owned(), REMEDY)),
                    None => rest,
                };
                if path.is_empty() || path.ends_with('/') || path.contains(['?', '#']) || path == ":memory:" {
                    return Err(("database.url", "names no file".to_owned(), REMEDY));
                }
                Ok(Place::Sqlite(PathBuf::from(path)))
            }
            "postgres" | "postgresql" if rest.len() > 2 && rest.starts_with("//") => self.postgres(url.clone()),
            _ => Err(("database.url", "is no address of a database".to_owned(), REMEDY)),
        }
    }

    fn postgres(&self, url: Secret) -> Result<Place, (&'static str, String, &'static str)> {
        let password = match (&self.password, &self.password_path) {
            (Some(_), Some(_)) => {
                let reason = "database.password says already what it is".to_owned();
                return Err(("database.passwordPath", reason, "keep one of them"));
            }
            (Some(secret), None) => Some(Password::Plain(secret.clone())),
            (None, Some(path)) => Some(Password::File(Arc::new(SecretFile::new(path)))),
            (None, None) => None,
        };
        let key = if self.url.is_some() { "database.url" } else { "database.options" };
        aloft_store_postgres::check_address(url.expose()).map_err(|reason| {
            (key, reason, "see \"TLS to Postgres\" in docs/configuration.md, and the manual of Postgres")
        })?;
        Ok(Place::Postgres(Postgres { url, password, pool: self.connection_pool.clone() }))
    }

    /// The URL that the single keys make.
    fn assembled(&self, host: &str) -> Secret {
        let part = |text: &str| utf8_percent_encode(text, PART).to_string();
        let host = if host.contains(':') { format!("[{}]", host.trim_matches(['[', ']'])) } else { part(host) };
        let (user, name, port) = (part(&self.username), part(&self.dbname), self.port);
        let mut url = format!("postgres://{user}@{host}:{port}/{name}");
        if !self.options.is_empty() {
            url.push('?');
            url.extend(utf8_percent_encode(self.options.trim_start_matches('?'), PARAMETERS));
        }
        Secret::from(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Role};

    fn database(change: impl FnOnce(&mut Database)) -> Result<Place, String> {
        let mut database = Config::of(Role::Server).database;
        change(&mut database);
        database.place(Path::new("/default.db")).map_err(|(key, reason, remedy)| format!("{key}: {reason}; {remedy}"))
    }

    fn url(text: &str) -> Result<Place, String> {
        database(|d| d.url = Some(Secret::from(text.to_owned())))
    }

    #[test]
    fn a_file_is_named_by_its_path() {
        for (text, path) in [("sqlite:///a/b.db", "/a/b.db"), ("sqlite:b.db", "b.db"), ("sqlite:/a/b", "/a/b")] {
            assert!(matches!(url(text).unwrap(), Place::Sqlite(p) if p == Path::new(path)), "{text}");
        }
        assert!(matches!(database(|_| {}).unwrap(), Place::Sqlite(p) if p == Path::new("/default.db")));
        for text in [
            "",
            "/a/b.db",
            "sqlite://a/b",
            "sqlite:",
            "sqlite:///",
            "sqlite::memory:",
            "sqlite:///a?x=1",
            "mysql://a",
            "postgres:x",
            "postgres://",
        ] {
            let error = url(text).unwrap_err();
            assert!(error.starts_with("database.url") && error.contains("sqlite:///path"), "{text}: {error}");
        }
    }

    #[test]
    fn single_keys_make_a_url() {
        let place = database(|d| {
            d.host = Some("db.internal".to_owned());
            d.username = "me@corp".to_owned();
            d.options = "sslmode=require".to_owned();
            d.password_path = Some("/etc/db/pass.txt".into());
        });
        let Place::Postgres(postgres) = place.unwrap() else { panic!("is a postgres") };
        assert_eq!(postgres.url.expose(), "postgres://me%40corp@db.internal:5432/aloft?sslmode=require");
        assert!(matches!(postgres.password, Some(Password::File(_))));
        assert_eq!(postgres.shown(), "postgres://me%40corp@db.internal:5432/aloft?...");
        let Place::Postgres(postgres) = database(|d| d.host = Some("::1".to_owned())).unwrap() else { panic!() };
        assert_eq!(postgres.url.expose(), "postgres://aloft@[::1]:5432/aloft");
    }

    #[test]
    fn an_address_says_what_is_wrong_with_it() {
        for (text, word) in [
            ("postgres://me@h/n?sslmode=verify-ful", "sslmode=verify-ful is not known"),
            ("postgres://me@h/n?sslrootcert=/r", "write sslmode=verify-full"),
            ("postgres://me@h/n?colour=red", "colour"),
            ("postgres://me@h:port/n", "postgres://user:password@host:5432/name"),
        ] {
            let error = url(text).unwrap_err();
            assert!(error.starts_with("database.url: ") && error.contains(word), "{text}: {error}");
        }
        let of_keys = database(|d| (d.host, d.options) = (Some("h".to_owned()), "sslmode=yes".to_owned())).unwrap_err();
        assert!(of_keys.starts_with("database.options: sslmode=yes is not known"), "{of_keys}");
        // What is no parameter may be a part of a password.
        let error = url("postgres://me:xq@zq?wq@h/n").unwrap_err();
        assert!(error.contains("%40") && !error.contains('q'), "{error}");
        let Place::Postgres(postgres) = url("postgres://me:hun?ter2@h/n").unwrap() else { panic!() };
        assert_eq!(postgres.shown(), "postgres://me@h/n");
    }

    #[test]
    fn passwords_are_not_shown() {
        let Place::Postgres(postgres) = url("postgres://me:hunter2@h:1/n?password=hunter3").unwrap() else { panic!() };
        assert_eq!(postgres.shown(), "postgres://me@h:1/n?...");
        assert!(!format!("{postgres:?}").contains("hunter"));
    }

    #[test]
    fn what_says_the_same_twice_is_refused() {
        let secret = || Some(Secret::from("x".to_owned()));
        assert!(
            database(|d| (d.url, d.host) = (secret(), Some("h".to_owned()))).unwrap_err().starts_with("database.host")
        );
        let twice = database(|d| {
            (d.host, d.password, d.password_path) = (Some("h".to_owned()), secret(), Some("/p".into()));
        });
        assert!(twice.unwrap_err().starts_with("database.passwordPath"));
    }
}
