//! What people want to know of a certificate.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::tls::Pin;

/// Names that are shown.
const SHOWN: usize = 5;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Seen {
    pub(super) names: String,
    pub(super) issuer: String,
    /// Full days until it ends; none left: it is over.
    pub(super) days: u64,
    pub(super) pin: String,
}

/// `None` where it can't be read.
pub(super) fn look(certificate: &CertificateDer<'_>) -> Option<Seen> {
    let read = Certificate::from_der(certificate).ok()?.tbs_certificate;
    let ends = read.validity.not_after.to_system_time();
    let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
    let names = match read.get::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0.iter().filter_map(name).collect(),
        _ => Vec::new(),
    };
    let mut shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        shown.push_str(", …");
    }
    Some(Seen {
        names: if shown.is_empty() { "no name".to_owned() } else { shown },
        issuer: read.issuer.to_string(),
        days: left.as_secs() / DAY.as_secs(),
        pin: Pin::of(certificate).ok()?.to_string(),
    })
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => match bytes.as_bytes() {
            &[a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            bytes => {
                let bytes: [u8; 16] = bytes.try_into().ok()?;
                Some(std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        _ => None,
    }
}
