//! TLS as a client: towards the edge and towards local servers.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, OtherError, RootCertStore, WantsVerifier,
    client::{WantsClientCert, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::ParsedCertificate,
};
use sha2::{Digest as _, Sha256};
use uniroute_shared::verifier::{Shown, Verifier};

use crate::upstream::{TargetError, Trust};

/// Other users can read a file with one of these bits.
#[cfg(unix)]
const READABLE_BY_OTHERS: u32 = 0o044;

/// The SHA-256 of a public key as certificates hold it (SubjectPublicKeyInfo, RFC 7469 section 2.4).
/// It prints as `sha256/…` in base64, as `curl --pinnedpubkey` and HTTP's old pins have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin(pub(crate) [u8; 32]);

impl Pin {
    /// Of the key in a certificate.
    ///
    /// # Errors
    /// When the certificate can't be read.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        Ok(Self(Sha256::digest(parsed.subject_public_key_info().as_ref()).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", BASE64.encode(self.0))
    }
}

/// What was written is no pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no pin: {why}. Write sha256/ and the SHA-256 of the edge's public key in base64 (44 characters); `uniroute diagnose` prints the pin of the edge that it finds"
)]
pub struct PinError {
    text: String,
    why: &'static str,
}

impl FromStr for Pin {
    type Err = PinError;

    /// As it prints; curl's `sha256//` is the same.
    fn from_str(text: &str) -> Result<Self, PinError> {
        let wrong = |why| PinError { text: text.to_owned(), why };
        let hash = text.strip_prefix("sha256/").ok_or_else(|| wrong("sha256/ is missing"))?;
        // A base64 text of 32 bytes may begin with a slash of its own; then it has 44 characters.
        let hash = match hash.strip_prefix('/') {
            Some(rest) if hash.len() == 45 => rest,
            _ => hash,
        };
        let hash = BASE64.decode(hash).map_err(|_| wrong("what follows is no base64"))?;
        Ok(Self(hash.try_into().map_err(|_| wrong("the hash has not 32 bytes"))?))
    }
}

/// A certificate of the agent's own, with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM file with the certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Why TLS to the edge can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities.
    #[error(transparent)]
    Trust(#[from] TargetError),
    /// The client certificate's file.
    #[error("the client certificate {} can't be used: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// Its key's file.
    #[error("the client certificate's key {} can't be used: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The two are no pair.
    #[error(
        "the client certificate {} and the key {} do not belong together: {why}. Take the key that the certificate was requested with",
        certificate.display(),
        key.display()
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// In rustls' words.
        why: rustls::Error,
    },
}

/// The edge's key is none of those that were wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the edge's key is not the one that is pinned: it has {has}, wanted {}. If the edge's key was changed on purpose, set its new pin; if not, somebody sits between you and the edge: do not connect",
    join(wanted)
)]
pub struct WrongKey {
    /// What the edge has.
    pub has: Pin,
    /// What was wanted.
    pub wanted: Vec<Pin>,
}

fn join(pins: &[Pin]) -> String {
    pins.iter().map(Pin::to_string).collect::<Vec<_>>().join(" or ")
}

/// A client's settings with the certificate authorities that `trust` says.
///
/// # Errors
/// [`TargetError::CaFile`] when the file can't be read or holds no certificate.
pub(crate) fn config(trust: &Trust) -> Result<Arc<ClientConfig>, TargetError> {
    let verifier = verifier(roots(trust)?);
    Ok(Arc::new(builder(verifier).with_no_client_auth()))
}

/// The same for the edge: its key must be one of `pins`, if there are any, and the agent proves
/// itself with `identity`, if it has one.
///
/// # Errors
/// [`TlsError`]
pub(crate) fn edge_config(
    trust: &Trust,
    pins: &[Pin],
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut verifier = verifier(roots(trust)?);
    if !pins.is_empty() {
        verifier = pinned(verifier, pins.to_vec());
    }
    let builder = builder(verifier);
    let Some(Identity { certificate, key }) = identity else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let (chain, private) = (read_chain(certificate)?, read_key(key)?);
    let config = builder.with_client_auth_cert(chain, private).map_err(|why| TlsError::Pair {
        certificate: certificate.clone(),
        key: key.clone(),
        why,
    })?;
    Ok(Arc::new(config))
}

/// For a proxy that is spoken to over TLS: the system's authorities, and those of the edge.
///
/// # Errors
/// As [`config`].
pub(crate) fn proxy_config(trust: &Trust) -> Result<Arc<ClientConfig>, TargetError> {
    let mut all = system_roots();
    if let Some(roots) = roots(trust)? {
        all.extend(roots.roots);
    }
    Ok(Arc::new(builder(verifier(Some(all))).with_no_client_auth()))
}

/// What a failed handshake means, and what to do; empty where the error says it all.
pub(crate) fn hint(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            ". This machine does not know the authority that signed the edge's certificate: give its certificate with --server-ca FILE. If a firewall looks into TLS here, it is the firewall's authority that is needed"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => ". Renew the edge's certificate, or set this machine's clock",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => ". Is this machine's clock right?",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ". Use a name in the server's URL that the certificate holds",
        rustls::Error::InvalidMessage(_) => ". What answers speaks no TLS: is it http:// there?",
        rustls::Error::AlertReceived(
            rustls::AlertDescription::CertificateRequired
            | rustls::AlertDescription::BadCertificate
            | rustls::AlertDescription::UnknownCA,
        ) => ". The edge's front wants a client certificate of an authority that it knows",
        _ => "",
    }
}

/// The rustls error inside what a TLS stream gave.
pub(crate) fn inner(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The pins' verdict inside it.
pub(crate) fn wrong_key(error: &std::io::Error) -> Option<WrongKey> {
    match inner(error)? {
        rustls::Error::Other(OtherError(error)) => error.downcast_ref().cloned(),
        _ => None,
    }
}

fn builder(verifier: Arc<dyn ServerCertVerifier>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let builder: ConfigBuilder<ClientConfig, WantsVerifier> =
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS 1.2 and 1.3");
    builder.dangerous().with_custom_certificate_verifier(verifier)
}

/// `None`: anybody is taken, as for `--insecure-upstream`.
fn verifier(roots: Option<RootCertStore>) -> Arc<dyn ServerCertVerifier> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    match roots {
        None => Verifier::new(provider, |_| Ok(())),
        // A machine without authorities trusts nobody.
        Some(roots) if roots.is_empty() => {
            Verifier::new(provider, |_| Err(CertificateError::UnknownIssuer.into()))
        }
        Some(roots) => WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("there are roots, and no revocation lists"),
    }
}

/// Asks another verifier, and then wants one of some keys.
fn pinned(inner: Arc<dyn ServerCertVerifier>, pins: Vec<Pin>) -> Arc<dyn ServerCertVerifier> {
    Verifier::new(Arc::new(aws_lc_rs::default_provider()), move |shown| {
        let Shown { certificate, intermediates, name, ocsp, now } = *shown;
        inner.verify_server_cert(certificate, intermediates, name, ocsp, now)?;
        let has = Pin::of(certificate)?;
        match pins.contains(&has) {
            true => Ok(()),
            false => {
                let wrong = WrongKey { has, wanted: pins.clone() };
                Err(rustls::Error::Other(OtherError(Arc::new(wrong))))
            }
        }
    })
}

fn roots(trust: &Trust) -> Result<Option<RootCertStore>, TargetError> {
    match trust {
        Trust::System => Ok(Some(system_roots())),
        Trust::CaFile(path) => file_roots(path).map(Some),
        Trust::Insecure => Ok(None),
    }
}

fn file_roots(path: &Path) -> Result<RootCertStore, TargetError> {
    let wrong = |why: String| TargetError::CaFile(path.to_owned(), why);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
        roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate".into()));
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // What can't be read is left out: a certificate that needs it is refused, and that is said.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::Certificate { path: path.to_owned(), why };
    let chain = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let chain: Vec<_> =
        chain.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    match chain.is_empty() {
        true => Err(wrong("it holds no certificate".into())),
        false => Ok(chain),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = PrivateKeyDer::from_pem_file(path)
        .map_err(|error| TlsError::Key { path: path.to_owned(), why: error.to_string() })?;
    warn_if_readable(path);
    Ok(key)
}

#[cfg(unix)]
fn warn_if_readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
    if mode & READABLE_BY_OTHERS != 0 {
        tracing::warn!(
            path = %path.display(),
            "other users of this machine can read the client certificate's key: chmod 600 it"
        );
    }
}

#[cfg(not(unix))]
fn warn_if_readable(_path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_read_as_they_print() {
        let pin = Pin([0xff; 32]);
        // Its base64 begins with a slash.
        assert!(pin.to_string().starts_with("sha256//"));
        for pin in [pin, Pin([7; 32])] {
            assert_eq!(pin.to_string().parse(), Ok(pin));
            let curl = pin.to_string().replacen("sha256/", "sha256//", 1);
            assert_eq!(curl.parse(), Ok(pin), "{curl}");
        }
        for (bad, why) in [
            ("md5/aaaa", "sha256/ is missing"),
            ("sha256/!", "no base64"),
            ("sha256/AAAA", "not 32 bytes"),
        ] {
            assert!(bad.parse::<Pin>().unwrap_err().to_string().contains(why), "{bad}");
        }
    }
}
