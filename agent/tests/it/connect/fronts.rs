//! TLS in front of the edge: authorities, pins, client certificates.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tempfile::TempDir;
use uniroute_agent::{Identity, upstream::Trust};

use super::{foreign::nginx, run, serves, settings};
use crate::harness::{Edge, Upstream};

/// A certificate authority of a test's own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    home: TempDir,
}

/// What it certifies.
pub(crate) struct Certified {
    certificate: String,
    key: String,
}

impl Certified {
    pub(crate) fn pair(&self) -> (&str, &str) {
        (&self.certificate, &self.key)
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // Two authorities of one name would be taken for one.
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, home.path().to_str().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(home.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, home }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::CaFile(self.file())
    }

    pub(crate) fn certify(&self, name: &str) -> Certified {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certified { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate for an agent, in files.
    fn identity(&self, name: &str) -> Identity {
        let made = self.certify(name);
        let file = |kind: &str, text: &str| {
            let path = self.home.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Identity { certificate: file("pem", &made.certificate), key: file("key", &made.key) }
    }
}

#[tokio::test]
async fn the_authority_is_trusted_and_the_key_is_pinned() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let front = nginx(edge.http, ours.certify("localhost").pair(), true, "").await;
    let url = format!("https://localhost:{}", front.address.port());
    let trusting = |trust: Trust, pins: &[&str]| {
        let mut settings = settings(&edge, &url, &upstream);
        settings.trust = trust;
        settings.pins = pins.iter().map(|pin| pin.parse().unwrap()).collect();
        run(settings)
    };
    for trust in [Trust::System, theirs.trust()] {
        let error = trusting(trust, &[]).await.err().unwrap();
        assert!(error.contains("UnknownIssuer") && error.contains("--server-ca FILE"), "{error}");
    }
    let other = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let error = trusting(ours.trust(), &[other]).await.err().unwrap();
    assert!(error.contains(&format!("wanted {other}. If the edge's key was changed")), "{error}");
    // What it says that the edge has is what it takes.
    let has = error.split_once("it has ").and_then(|(_, rest)| rest.split_once(',')).unwrap().0;
    let agent = trusting(ours.trust(), &[other, has]).await.unwrap();
    serves(&edge).await;
    drop(agent);
    // A pin is no trust of its own.
    let error = trusting(theirs.trust(), &[has]).await.err().unwrap();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_its_own_is_trusted_as_it_is() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let front = nginx(edge.http, (&certificate, &key), true, "").await;
    let file = front.home.path().join("certificate.pem");
    let mut settings =
        settings(&edge, &format!("https://localhost:{}", front.address.port()), &upstream);
    settings.trust = Trust::CaFile(file);
    let _agent = run(settings).await.unwrap();
    serves(&edge).await;
}

#[tokio::test]
async fn the_front_wants_a_certificate_of_the_agent() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let lines = format!("ssl_verify_client on;\nssl_client_certificate {};", ours.file().display());
    let front = nginx(edge.http, ours.certify("localhost").pair(), true, &lines).await;
    let url = format!("https://localhost:{}", front.address.port());
    let with = |identity: Option<Identity>| {
        let mut settings = settings(&edge, &url, &upstream);
        settings.trust = ours.trust();
        settings.identity = identity;
        run(settings)
    };
    let error = with(None).await.err().unwrap();
    assert!(error.contains("it wants a client certificate"), "{error}");
    let error = with(Some(theirs.identity("agent"))).await.err().unwrap();
    assert!(error.contains("it does not accept the client certificate"), "{error}");
    let agent = with(Some(ours.identity("agent"))).await.unwrap();
    serves(&edge).await;
    drop(agent);

    let mixed = Identity { key: ours.identity("other").key, ..ours.identity("agent") };
    let error = with(Some(mixed)).await.err().unwrap();
    assert!(error.contains("do not belong together"), "{error}");
    let missing = Identity { key: "/nowhere/key.pem".into(), ..ours.identity("agent") };
    let error = with(Some(missing)).await.err().unwrap();
    assert!(error.contains("key /nowhere/key.pem can't be used"), "{error}");
}
