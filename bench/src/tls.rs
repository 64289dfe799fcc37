//! A certificate for this machine, made anew for each run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub(crate) struct Certificate {
    /// Signed by itself, so that it is also the authority to trust.
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    pub(crate) fn make(dir: &Path) -> anyhow::Result<Self> {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).context("a certificate")?;
        let (chain, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        fs::write(&chain, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { chain, key })
    }
}
