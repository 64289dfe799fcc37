//! TLS as a client: towards the edge and towards local servers.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::upstream::{TargetError, Trust};

/// The SHA-256 of a public key as certificates hold it (SubjectPublicKeyInfo, RFC 7469 section 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin(pub(crate) [u8; 32]);

/// What was written is no pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pin: write sha256/ and the hash of the public key in base64 (44 characters)")]
pub struct PinError(String);

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let wrong = || PinError(text.to_owned());
        let hash = text.strip_prefix("sha256/").ok_or_else(wrong)?;
        let hash = BASE64.decode(hash).map_err(|_| wrong())?;
        Ok(Self(hash.try_into().map_err(|_| wrong())?))
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

/// A client's settings with the certificate authorities that `trust` says.
///
/// # Errors
/// [`TargetError::CaFile`] when the file can't be read or holds no certificate.
pub(crate) fn config(trust: &Trust) -> Result<Arc<ClientConfig>, TargetError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3");
    let builder = match trust {
        Trust::System => builder.with_root_certificates(system_roots()),
        Trust::CaFile(path) => {
            let wrong = |why: String| TargetError::CaFile(path.clone(), why);
            let mut roots = RootCertStore::empty();
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?
            {
                let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
                roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate".into()));
            }
            builder.with_root_certificates(roots)
        }
        Trust::Insecure => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        }
    };
    Ok(Arc::new(builder.with_no_client_auth()))
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // What can't be read is left out: a certificate that needs it is refused, and that is said.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Takes any certificate, for `--insecure-upstream`; signatures are still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
