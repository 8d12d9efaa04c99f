//! Which server a command asks, and asking it: Connect over HTTP, in binary.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use buffa::{HasMessageView, Message};
use clap::Args as ClapArgs;
use connectrpc::{
    ConnectError, ErrorCode, Spec, StreamType,
    client::{CallOptions, ClientConfig, HttpClient, call_unary},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    config::DEV_PORT as DEFAULT_PORT,
    datadir,
    exit::{Exit, Kind},
};

/// How long one call may take. Every call here is a read or one small write.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which server to ask, as which organisation.
#[derive(ClapArgs)]
pub(crate) struct Target {
    /// The server to ask [default: $ALOFT_ENDPOINT, else the `aloft dev` of the data directory, else
    /// http://localhost:30080].
    #[arg(long, value_name = "URL", help_heading = "Server")]
    endpoint: Option<String>,

    /// The data directory of the `aloft dev` to ask [default: $ALOFT_DATA_DIR, else ~/.local/share/aloft/dev].
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    data_dir: Option<PathBuf>,

    /// The organisation [default: the server's own].
    #[arg(long, value_name = "ORG", help_heading = "Server")]
    org: Option<String>,
}

/// Where a server is looked for.
#[derive(Debug, PartialEq)]
enum Place {
    /// At this address.
    Endpoint(String),
    /// At the one that the `aloft dev` of this data directory has written.
    DataDir(PathBuf),
    /// At the one of the usual data directory, or else at the usual port.
    Usual,
}

/// Where to look: what the command names goes before what the environment names.
fn place(target: &Target, env: impl Fn(&str) -> Option<OsString>) -> Place {
    let env = |name| env(name).filter(|v| !v.is_empty());
    let named = target.endpoint.clone().map(Place::Endpoint).or_else(|| target.data_dir.clone().map(Place::DataDir));
    named
        .or_else(|| env("ALOFT_ENDPOINT").map(|v| Place::Endpoint(v.to_string_lossy().into_owned())))
        .or_else(|| env("ALOFT_DATA_DIR").map(|v| Place::DataDir(v.into())))
        .unwrap_or(Place::Usual)
}

/// A server, ready to be asked.
pub(crate) struct Client {
    /// The organisation to name in requests; empty for the server's own.
    pub(crate) org: String,
    http: HttpClient,
    config: ClientConfig,
    endpoint: String,
    /// How a person starts the server.
    start: String,
}

/// Runs a command to its end on this thread.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::other(format!("cannot start: {e}")))?;
    runtime.block_on(command)
}

impl Target {
    /// Finds the server.
    pub(crate) fn client(self) -> Result<Client, Exit> {
        let (endpoint, start) = match place(&self, |name| std::env::var_os(name)) {
            Place::Endpoint(endpoint) => {
                (endpoint, "start Aloft there with `aloft dev`, or name another server with --endpoint".to_owned())
            }
            Place::DataDir(dir) => {
                let start = format!("start it with `aloft dev --data-dir {}`", dir.display());
                let none = || {
                    let dir = dir.display();
                    Exit::new(Kind::Unreachable, format!("no Aloft runs on the data directory {dir}; {start}"))
                };
                (written_endpoint(&dir)?.ok_or_else(none)?, start)
            }
            Place::Usual => {
                let written = match datadir::default_data_dir() {
                    Ok(dir) => written_endpoint(&dir)?,
                    // Without a home there is still the usual port.
                    Err(_) => None,
                };
                let endpoint = written.unwrap_or_else(|| format!("http://localhost:{DEFAULT_PORT}"));
                let start = "start it with `aloft dev`, or name another server with --endpoint or --data-dir";
                (endpoint, start.to_owned())
            }
        };
        let endpoint = checked(&endpoint)?;
        let uri = endpoint.parse().map_err(|_| bad_endpoint(&endpoint, "is no address"))?;
        let config = ClientConfig::new(uri).with_default_timeout(CALL_TIMEOUT);
        Ok(Client { org: self.org.unwrap_or_default(), http: HttpClient::plaintext(), config, endpoint, start })
    }
}

/// The address that a running `aloft dev` has written.
fn written_endpoint(data_dir: &Path) -> Result<Option<String>, Exit> {
    let path = data_dir.join("endpoint");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => {
            let path = path.display();
            Err(Exit::new(Kind::DataDir, format!("cannot read {path}: {e}; name the server with --endpoint")))
        }
    }
}

fn bad_endpoint(endpoint: &str, reason: &str) -> Exit {
    Exit::other(format!("--endpoint {endpoint}: {reason}; write it as http://localhost:{DEFAULT_PORT}"))
}

/// An endpoint as people write it, also as in the configuration of the `flyte` CLI, as the base of URLs.
fn checked(endpoint: &str) -> Result<String, Exit> {
    if endpoint.starts_with("https://") {
        return Err(bad_endpoint(endpoint, "this Aloft speaks plain HTTP only"));
    }
    let authority = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("dns:///")).unwrap_or(endpoint);
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let parsed = authority.parse::<http::uri::Authority>();
    if parsed.is_err() || authority.contains('@') || authority.ends_with(':') {
        return Err(bad_endpoint(endpoint, "is no address"));
    }
    Ok(format!("http://{authority}"))
}

impl Client {
    /// Calls `procedure`, written as `/package.Service/Method`.
    pub(crate) async fn call<Q, A>(&self, procedure: &'static str, request: Q) -> Result<A, Refused>
    where
        Q: Message + Serialize,
        A: HasMessageView + Serialize + DeserializeOwned,
    {
        let spec = Spec::client(procedure, StreamType::Unary);
        let answer =
            call_unary::<_, Q, A::View<'static>>(&self.http, &self.config, spec, request, CallOptions::default());
        match answer.await {
            Ok(answer) => Ok(answer.into_owned()),
            Err(error) => Err(self.refused(error)),
        }
    }

    fn refused(&self, error: ConnectError) -> Refused {
        let code = error.code;
        // What came over the wire has no source: this never got there.
        let lost = std::error::Error::source(&error).is_some() && code == ErrorCode::Unavailable;
        let exit = if lost {
            let refused = caused_by(&error, io::ErrorKind::ConnectionRefused);
            let why = if refused { "nothing listens there".to_owned() } else { deepest(&error) };
            Exit::new(Kind::Unreachable, format!("cannot reach Aloft at {}: {why}; {}", self.endpoint, self.start))
        } else if code == ErrorCode::DeadlineExceeded {
            let seconds = CALL_TIMEOUT.as_secs();
            Exit::new(Kind::Unreachable, format!("{} has not answered within {seconds} s; try again", self.endpoint))
        } else {
            match error.message.as_deref().filter(|m| !m.is_empty()) {
                Some(message) if code != ErrorCode::Unimplemented => Exit::other(message),
                // An older Aloft, or another program altogether.
                _ => {
                    let what = error.message.as_deref().unwrap_or(code.as_str());
                    Exit::other(format!(
                        "{} does not understand this command ({what}): is it an Aloft of this version?",
                        self.endpoint
                    ))
                }
            }
        };
        Refused { code, exit }
    }
}

/// What a server refused, or why it could not be asked.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its code on the wire.
    pub(crate) code: ErrorCode,
    exit: Exit,
}

impl From<Refused> for Exit {
    fn from(refused: Refused) -> Self {
        refused.exit
    }
}

/// The error and what caused it, outermost first.
fn causes(error: &ConnectError) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |e| e.source())
}

fn caused_by(error: &ConnectError, kind: io::ErrorKind) -> bool {
    causes(error).any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind))
}

fn deepest(error: &ConnectError) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_names_goes_before_the_environment() {
        let at = |endpoint: Option<&str>, data_dir: Option<&str>, set: &[(&str, &str)]| {
            let target = Target { endpoint: endpoint.map(Into::into), data_dir: data_dir.map(Into::into), org: None };
            place(&target, |name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
        };
        let both = [("ALOFT_ENDPOINT", "e"), ("ALOFT_DATA_DIR", "d")];
        assert_eq!(at(Some("x"), Some("y"), &both), Place::Endpoint("x".into()));
        assert_eq!(at(None, Some("y"), &both), Place::DataDir("y".into()));
        assert_eq!(at(None, None, &both), Place::Endpoint("e".into()));
        assert_eq!(at(None, None, &both[1..]), Place::DataDir("d".into()));
        assert_eq!(at(None, None, &[("ALOFT_ENDPOINT", "")]), Place::Usual);
    }

    #[test]
    fn an_endpoint_is_read_as_people_write_it() {
        for (written, read) in [
            ("http://localhost:1", "http://localhost:1"),
            ("http://localhost:1/", "http://localhost:1"),
            ("localhost:1", "http://localhost:1"),
            ("dns:///localhost:1", "http://localhost:1"),
            ("[::1]:1", "http://[::1]:1"),
        ] {
            assert_eq!(checked(written).unwrap(), read, "{written}");
        }
        for wrong in
            ["https://localhost", "ftp://localhost", "http://", "localhost:1/path", "a b", "me@localhost", "x:"]
        {
            let error = checked(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("http://localhost:30080"), "{error}");
        }
    }
}
