//! What all requests of one visitor's connection have in common.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::Shared;

/// See the module.
pub(crate) struct Visitor {
    pub(crate) edge: Arc<Shared>,
    /// The thread that the connection is on.
    pub(crate) worker: usize,
    pub(crate) peer: SocketAddr,
    /// The peer's address as heads have it, written once for all requests.
    pub(crate) address: String,
    /// The same as the first part of `Forwarded` has it (RFC 7239, section 6).
    pub(crate) node: String,
    /// How the peer reaches this listener: `http` or `https`.
    pub(crate) scheme: &'static str,
    /// It is a proxy that says truly where requests came from.
    pub(crate) trusted: bool,
}

impl Visitor {
    pub(crate) fn new(edge: Arc<Shared>, worker: usize, peer: SocketAddr) -> Arc<Self> {
        let ip = peer.ip().to_canonical();
        let node = match ip {
            IpAddr::V4(v4) => format!("for={v4};host=\""),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";host=\""),
        };
        let trusted = edge.trusted.contains(ip);
        let address = ip.to_string();
        Arc::new(Self { edge, worker, peer, address, node, scheme: "http", trusted })
    }
}
