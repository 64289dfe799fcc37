//! Connections that load balancers make for visitors: who the visitor is stands in front.

use std::{io, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tracing::warn;
use uniroute_shared::{
    code::Code,
    proxy_protocol::{self, MAX_V2, Malformed, Parsed},
};

use crate::Shared;

/// The header has to be whole after this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The two ends of a connection, as the visitor sees them, and what came behind the header.
#[derive(Debug)]
pub(crate) struct Proxied {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) early: Bytes,
}

/// Why a connection is of no use.
#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the header was not whole in time")]
    Timeout,
}

impl Proxied {
    /// Reads the header of a connection, if it comes from where all have one. `None`: it has none,
    /// which is counted and said; the connection is of no use.
    pub(crate) async fn accept(
        edge: &Shared,
        socket: &mut TcpStream,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Option<Self> {
        if !edge.sockets.proxy_protocol.contains(peer.ip()) {
            return Some(Self { peer, local, early: Bytes::new() });
        }
        let read = timeout(HEADER_TIMEOUT, Self::read(socket, peer, local)).await;
        match read.unwrap_or(Err(HeaderError::Timeout)) {
            Ok(proxied) => Some(proxied),
            Err(error) => {
                let code = &Code::BAD_PROXY_HEADER;
                edge.metrics.failed(code);
                warn!(%code, %peer, %error, "a load balancer's connection was closed");
                None
            }
        }
    }

    async fn read(
        socket: &mut TcpStream,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Self, HeaderError> {
        let mut early = BytesMut::with_capacity(MAX_V2);
        loop {
            if socket.read_buf(&mut early).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let Parsed::Header { length, addresses } = proxy_protocol::parse(&early)? else {
                continue;
            };
            let early = early.split_off(length).freeze();
            return Ok(match addresses {
                Some(ends) => Self { peer: ends.source, local: ends.destination, early },
                None => Self { peer, local, early },
            });
        }
    }
}
