//! A TLS client's judgement of the server's certificate that is ours, with signatures checked as ever.

use std::{fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What a server shows in the handshake.
#[derive(Debug)]
pub struct Shown<'a> {
    /// Its own certificate.
    pub certificate: &'a CertificateDer<'a>,
    /// Those that lead to its authority.
    pub intermediates: &'a [CertificateDer<'a>],
    /// Who it was meant to be.
    pub name: &'a ServerName<'a>,
    /// What it says of the certificate's revocation.
    pub ocsp: &'a [u8],
    /// The time of the handshake.
    pub now: UnixTime,
}

/// Takes the certificates that `judge` takes. Whoever shows one must also have its key: that is checked
/// with the provider's algorithms, whatever `judge` says.
pub struct Verifier<J> {
    provider: Arc<CryptoProvider>,
    judge: J,
}

impl<J> Verifier<J>
where
    J: Fn(&Shown<'_>) -> Result<(), Error> + Send + Sync + 'static,
{
    /// A verifier that asks `judge`.
    pub fn new(provider: Arc<CryptoProvider>, judge: J) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Self { provider, judge })
    }
}

impl<J> fmt::Debug for Verifier<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl<J> ServerCertVerifier for Verifier<J>
where
    J: Fn(&Shown<'_>) -> Result<(), Error> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.judge)(&Shown { certificate, intermediates, name, ocsp, now })
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
