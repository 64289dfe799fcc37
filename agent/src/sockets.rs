//! Streams of TCP, TLS and UDP tunnels: bytes or datagrams to the local server and back, as they are.
//!
//! The edge sends on what the visitor sends without waiting; the agent's first word is whether it has
//! a connection for it.

mod udp;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tracing::debug;
use uniroute_proto::{
    codec,
    v1::{self, UpstreamErrorKind, stream_open::Kind, stream_reply::Reply},
};
use uniroute_shared::{
    copy::{self, CopyError},
    proxy_protocol::{self, Addresses},
    session::{Sender, StreamError},
    stream::{FrameReader, ReadError},
};

use crate::{
    TunnelKind,
    tunnel::Tunnel,
    upstream::{UpstreamError, UpstreamIo, pool::Turn},
};

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
enum SocketError {
    /// No connection, and the edge is told.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the local server took no header: {0}")]
    Header(io::Error),
    #[error("a frame that is no datagram")]
    NoDatagram,
}

/// Serves one stream to its end.
pub(crate) async fn serve(
    tunnel: Arc<Tunnel>,
    kind: Kind,
    mut sender: Sender,
    reader: FrameReader,
) {
    let _open = tunnel.begin();
    let served = match (tunnel.kind, kind) {
        (TunnelKind::Tcp, Kind::Tcp(v1::TcpOpen { peer, local }))
        | (TunnelKind::Tls, Kind::Tls(v1::TlsOpen { peer, local, .. })) => {
            debug!(tunnel = tunnel.key, peer, "a connection");
            match connect(&tunnel, &peer, &local, &mut sender).await {
                // It is under way at its local server until it is over.
                Ok((io, _turn)) => copy(io, sender, reader).await,
                Err(error) => return end(error, sender, reader),
            }
        }
        (TunnelKind::Udp, Kind::Udp(v1::UdpOpen { peer, .. })) => {
            debug!(tunnel = tunnel.key, peer, "a flow");
            match udp::connect(&tunnel, &mut sender).await {
                Ok(socket) => udp::pass_on(&tunnel, &socket, sender, reader).await,
                Err(error) => return end(error, sender, reader),
            }
        }
        _ => return end(wrong("the tunnel is of another kind"), sender, reader),
    };
    if let Err(error) = served {
        debug!(tunnel = tunnel.key, %error, "a connection was cut");
    }
}

fn wrong(why: &str) -> SocketError {
    UpstreamError::new(UpstreamErrorKind::BadRequest, why).into()
}

/// There is no connection: the edge hears why.
fn end(error: SocketError, mut sender: Sender, reader: FrameReader) {
    let SocketError::Upstream(error) = error else {
        return debug!(%error, "a connection ended before it was one");
    };
    reader.stop();
    let reply = v1::UpstreamError { kind: error.kind.into(), message: error.message };
    let reply = v1::StreamReply { reply: Some(Reply::Error(reply)) };
    if let Err(error) = sender.send(codec::message(&reply, true), true) {
        debug!(%error, "nobody waits for the error");
    }
}

/// The first word on a stream that has a local server.
fn connected() -> Bytes {
    let reply = v1::StreamReply { reply: Some(Reply::Connected(v1::Connected {})) };
    codec::message(&reply, false)
}

/// Connects to the local server, unless the visitor leaves first.
async fn connect(
    tunnel: &Tunnel,
    peer: &str,
    local: &str,
    sender: &mut Sender,
) -> Result<(UpstreamIo, Turn), SocketError> {
    let header = match tunnel.served().settings.proxy_protocol {
        Some(version) => proxy_protocol::header(version, &addresses(peer, local)?),
        None => Bytes::new(),
    };
    let mut turn = tunnel.pool().turn();
    let mut began = Instant::now();
    let mut io = loop {
        match unless_reset(sender, turn.upstream().dial()).await? {
            Ok(io) => break io,
            Err(error) => {
                let failed = unless_reset(sender, turn.failed(error)).await?;
                failed.inspect_err(|error| {
                    turn.unanswered(error);
                    tunnel.unanswered();
                })?;
                began = Instant::now();
            }
        }
    };
    turn.connected();
    turn.answered(Some(began.elapsed()));
    if !header.is_empty() {
        let written = unless_reset(sender, io.write_all(&header)).await?;
        written.map_err(SocketError::Header)?;
    }
    sender.send(connected(), false)?;
    Ok((io, turn))
}

fn addresses(peer: &str, local: &str) -> Result<Addresses, SocketError> {
    let read = |text: &str| text.parse().map_err(|_| wrong("an address can't be read"));
    Ok(Addresses { source: read(peer)?, destination: read(local)? })
}

/// `future`, unless the visitor leaves first.
async fn unless_reset<F: Future>(sender: &mut Sender, future: F) -> Result<F::Output, StreamError> {
    tokio::select! {
        output = future => Ok(output),
        error = std::future::poll_fn(|cx| sender.poll_reset(cx)) => Err(error),
    }
}

async fn copy(mut io: UpstreamIo, sender: Sender, reader: FrameReader) -> Result<(), SocketError> {
    let copied = copy::splice((&mut io, Bytes::new()), sender, reader.into_raw()).await;
    if copied.is_err() {
        abort(&io);
    }
    Ok(copied?)
}

/// What was cut on one side must not look complete on the other: dropping the socket is a reset.
fn abort(io: &UpstreamIo) {
    if let UpstreamIo::Tcp(socket) = io
        && let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO))
    {
        debug!(%error, "a connection ends without a reset");
    }
}
