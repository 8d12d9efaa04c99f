//! TLS to Postgres, by the parameters that libpq has for it: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
//!
//! Where libpq would go on with less than was probably meant, an address is refused here: a file of roots that nothing is
//! verified by, roots of the system without the server's name. `sslmode` is `prefer` if nothing is said, as there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use percent_encoding::percent_decode_str;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use tokio_postgres::config::SslMode;

/// What an address says of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) mode: SslMode,
    trust: Trust,
    identity: Option<Identity>,
}

/// Which servers are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// Any: what is sent is encrypted, and nobody knows for whom.
    Any,
    /// Those with a certificate by these roots.
    Chain(PathBuf),
    /// Those with a certificate by these roots, or by the system's, for the name that they are called by.
    Name(Option<PathBuf>),
}

/// Files of the certificate by which a server knows its client, and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

/// The address of a database without its parameters, and these. A `?` in front of the first `@` belongs to the password.
pub fn split_address(url: &str) -> (&str, &str) {
    let host = url.find('@').map_or(0, |at| at + 1);
    match url[host..].find('?') {
        Some(at) => (&url[..host + at], &url[host + at + 1..]),
        None => (url, ""),
    }
}

impl Terms {
    /// Takes what is said of TLS out of an address. Returns what is left of it.
    ///
    /// # Errors
    /// What contradicts itself or is not known, with the remedy.
    pub(crate) fn take(url: &str) -> Result<(String, Self), String> {
        let (place, query) = split_address(url);
        let mut said = BTreeMap::new();
        let mut rest = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if ["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&key) {
                let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{key} is not UTF-8"))?;
                said.insert(key, value.into_owned());
            } else {
                rest.push(part);
            }
        }
        let url = if rest.is_empty() { place.to_owned() } else { format!("{place}?{}", rest.join("&")) };
        Ok((url, Self::of(&said)?))
    }

    fn of(said: &BTreeMap<&str, String>) -> Result<Self, String> {
        let given = |key| said.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let roots = given("sslrootcert");
        let of_system = roots == Some("system");
        let file = roots.filter(|_| !of_system).map(PathBuf::from);
        let (mode, trust) = match (given("sslmode"), file) {
            (None | Some("verify-full"), None) if of_system => (SslMode::Require, Trust::Name(None)),
            (Some(weak), None) if of_system => {
                return Err(format!(
                    "with sslrootcert=system every server of the world is trusted that has a certificate, so sslmode={weak} \
                     says nothing; write sslmode=verify-full"
                ));
            }
            (Some("disable"), None) => (SslMode::Disable, Trust::Any),
            (None | Some("allow" | "prefer"), None) => (SslMode::Prefer, Trust::Any),
            (None | Some("disable" | "allow" | "prefer"), Some(_)) => {
                return Err(
                    "nothing is verified by sslrootcert unless sslmode is verify-full, verify-ca or require; write \
                            sslmode=verify-full"
                        .to_owned(),
                );
            }
            (Some("require"), None) => (SslMode::Require, Trust::Any),
            (Some("require" | "verify-ca"), Some(file)) => (SslMode::Require, Trust::Chain(file)),
            (Some("verify-ca"), None) => {
                return Err(
                    "sslmode=verify-ca needs sslrootcert, a file with the certificates to trust; for those that the \
                            system trusts write sslmode=verify-full"
                        .to_owned(),
                );
            }
            (Some("verify-full"), file) => (SslMode::Require, Trust::Name(file)),
            (Some(other), _) => {
                return Err(format!(
                    "sslmode={} is not known; write disable, prefer, require, verify-ca or verify-full",
                    other.escape_default().take(40).collect::<String>()
                ));
            }
        };
        let identity = match (given("sslcert"), given("sslkey")) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.into(), key: key.into() }),
            (None, None) => None,
            (Some(_), None) => return Err("sslcert needs sslkey, the file with its key".to_owned()),
            (None, Some(_)) => return Err("sslkey needs sslcert, the file with its certificate".to_owned()),
        };
        Ok(Self { mode, trust, identity })
    }

    /// Whether there are files that may change.
    pub(crate) fn has_files(&self) -> bool {
        self.identity.is_some() || matches!(self.trust, Trust::Chain(_) | Trust::Name(Some(_)))
    }

    /// How to connect, by what the files hold now.
    ///
    /// # Errors
    /// Which file cannot be read, or does not hold what it should.
    pub(crate) fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = match &self.trust {
            Trust::Any => None,
            Trust::Chain(file) | Trust::Name(Some(file)) => {
                Some(Chain::by(certificates("sslrootcert", file)?, &provider)?)
            }
            Trust::Name(None) => Some(Chain::by(system_roots()?, &provider)?),
        };
        let verifier =
            Verifier { chain, by_name: matches!(self.trust, Trust::Name(_)), provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|e| format!("sslkey: {} cannot be used: {e}", key.display()))?;
                config
                    .with_client_auth_cert(certificates("sslcert", certificate)?, private)
                    .map_err(|e| format!("sslcert: {} cannot be used: {e}", certificate.display()))?
            }
        };
        // A server of several protocols on one port asks for it.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(config)
    }
}

/// The certificates in a file, one at least.
fn certificates(parameter: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: String| format!("{parameter}: {} cannot be used: {why}", file.display());
    let found = CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("there is no certificate in it".to_owned())) } else { Ok(found) }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    match (found.certs.is_empty(), found.errors.first()) {
        (false, _) => Ok(found.certs),
        (true, Some(error)) => Err(format!("the certificates that this system trusts cannot be read: {error}")),
        (true, None) => Err("this system trusts no certificates; install them (ca-certificates), or name a file by \
                             sslrootcert"
            .to_owned()),
    }
}

/// Who is trusted.
#[derive(Debug)]
struct Chain {
    roots: Arc<WebPkiServerVerifier>,
    /// As they are: a server may have one of them itself, as with the certificate that Postgres' manual makes.
    themselves: Vec<CertificateDer<'static>>,
}

impl Chain {
    fn by(certificates: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|e| format!("sslrootcert: {e}"))?;
        Ok(Self { roots, themselves: certificates })
    }
}

/// Looks at a server's certificate.
#[derive(Debug)]
struct Verifier {
    chain: Option<Chain>,
    by_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if chain.themselves.contains(end_entity) {
            if self.by_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        // The chain is looked at before the name.
        match chain.roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.by_name => Ok(ServerCertVerified::assertion()),
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(query: &str) -> Result<Terms, String> {
        Terms::take(&format!("postgres://me@db/aloft?{query}")).map(|(_, terms)| terms)
    }

    #[test]
    fn parameters_of_tls_are_taken_out_of_an_address() {
        let all = "postgres://me:a%3Fb@db:5432/aloft?connect_timeout=5&sslmode=verify-full&sslrootcert=%2Fa%20b.crt&options=-c%20x%3D1";
        let (rest, found) = Terms::take(all).unwrap();
        assert_eq!(rest, "postgres://me:a%3Fb@db:5432/aloft?connect_timeout=5&options=-c%20x%3D1");
        assert_eq!(found.trust, Trust::Name(Some("/a b.crt".into())));
        assert_eq!(Terms::take("postgres://db/x?sslmode=require").unwrap().0, "postgres://db/x");
        assert_eq!(Terms::take("postgres://db/x").unwrap().0, "postgres://db/x");
        let (rest, found) = Terms::take("postgres://me:a?sslmode=b@db/x?sslmode=require").unwrap();
        assert_eq!((rest.as_str(), found.mode), ("postgres://me:a?sslmode=b@db/x", SslMode::Require));
    }

    #[test]
    fn modes_say_who_is_trusted() {
        let file = || PathBuf::from("/r");
        for (query, mode, trust) in [
            ("", SslMode::Prefer, Trust::Any),
            ("sslmode=prefer", SslMode::Prefer, Trust::Any),
            ("sslmode=disable", SslMode::Disable, Trust::Any),
            ("sslmode=require", SslMode::Require, Trust::Any),
            ("sslmode=require&sslrootcert=/r", SslMode::Require, Trust::Chain(file())),
            ("sslmode=verify-ca&sslrootcert=/r", SslMode::Require, Trust::Chain(file())),
            ("sslmode=verify-full&sslrootcert=/r", SslMode::Require, Trust::Name(Some(file()))),
            ("sslmode=verify-full", SslMode::Require, Trust::Name(None)),
            ("sslmode=verify-full&sslrootcert=system", SslMode::Require, Trust::Name(None)),
            ("sslrootcert=system", SslMode::Require, Trust::Name(None)),
        ] {
            assert_eq!(terms(query), Ok(Terms { mode, trust, identity: None }), "{query}");
        }
        let with = terms("sslmode=require&sslcert=/c&sslkey=/k").unwrap();
        assert_eq!(with.identity, Some(Identity { certificate: "/c".into(), key: "/k".into() }));
        assert!(with.has_files() && !terms("sslmode=require").unwrap().has_files());
    }

    #[test]
    fn what_would_verify_less_than_was_meant_is_refused() {
        for (query, word) in [
            ("sslmode=verify-ful", "is not known"),
            ("sslrootcert=/r", "verify-full"),
            ("sslmode=prefer&sslrootcert=/r", "verify-full"),
            ("sslmode=require&sslrootcert=system", "verify-full"),
            ("sslmode=verify-ca", "sslrootcert"),
            ("sslcert=/c", "sslkey"),
            ("sslkey=/k", "sslcert"),
            ("sslmode=%ff", "UTF-8"),
        ] {
            let refused = terms(query).unwrap_err();
            assert!(refused.contains(word), "{query}: {refused}");
        }
        let refused = terms("sslmode=verify-full&sslrootcert=/not/there").unwrap().config().unwrap_err();
        assert!(refused.starts_with("sslrootcert: /not/there cannot be used"), "{refused}");
    }
}
