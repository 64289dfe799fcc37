//! The way to the edge through a proxy: HTTP CONNECT and SOCKS5.

use std::str::FromStr;

/// The way out of this network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say.
    #[default]
    Environment,
    /// None, whatever the environment says.
    None,
    /// This one, for everything.
    Url(String),
}

/// What was written names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProxyError(pub(crate) String);

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        Ok(match text {
            "env" => Self::Environment,
            "none" => Self::None,
            url => Self::Url(url.to_owned()),
        })
    }
}
