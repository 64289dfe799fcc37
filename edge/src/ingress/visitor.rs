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
    /// The visitor's address as heads have it, written once for all requests.
    pub(crate) address: String,
    /// How visitors reach this listener: `http` or `https`.
    pub(crate) scheme: &'static str,
}

impl Visitor {
    pub(crate) fn new(edge: Arc<Shared>, worker: usize, peer: SocketAddr) -> Arc<Self> {
        let address: IpAddr = peer.ip().to_canonical();
        Arc::new(Self { edge, worker, peer, address: address.to_string(), scheme: "http" })
    }
}
