//! One flow of datagrams: a socket of its own to the local server, so that its answers find the way
//! back. It ends with its stream, which the edge ends when nothing has moved for a while.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tracing::debug;
use uniroute_proto::{
    codec::{self, Kind as FrameKind, MAX_DATAGRAM},
    v1::UpstreamErrorKind,
};
use uniroute_shared::{session::Sender, stream::FrameReader};

use super::{SocketError, connected, unless_reset};
use crate::{
    tunnel::Tunnel,
    upstream::{Place, Upstream, UpstreamError},
};

/// Datagrams that are taken before others have their turn.
const IN_A_ROW: usize = 32;

thread_local! {
    /// Where datagrams are received. In use only while one call runs, so that a flow holds none.
    static RECEIVED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A socket that only the local server is heard on.
pub(super) async fn connect(
    tunnel: &Tunnel,
    sender: &mut Sender,
) -> Result<UdpSocket, SocketError> {
    let pool = tunnel.pool();
    let opened = unless_reset(sender, open(pool.first())).await?;
    let socket = opened.inspect_err(|error| tunnel.report(Some(error)))?;
    sender.send(connected(), false)?;
    Ok(socket)
}

async fn open(upstream: &Upstream) -> Result<UdpSocket, UpstreamError> {
    let target = upstream.target();
    let unreachable = |error: io::Error| {
        let message = format!("{target} can't be reached: {error}");
        UpstreamError::new(UpstreamErrorKind::Unreachable, message)
    };
    let Place::Tcp(host, port) = &target.place else {
        return Err(unreachable(io::ErrorKind::Unsupported.into()));
    };
    let address = resolve(host, *port).await?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(unreachable)?;
    socket.connect(address).await.map_err(unreachable)?;
    Ok(socket)
}

/// Whether anybody is there shows too late to try another address, so `localhost` is 127.0.0.1.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, UpstreamError> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let found = tokio::net::lookup_host((host, port)).await;
    found.and_then(|mut found| found.next().ok_or(io::ErrorKind::NotFound.into())).map_err(
        |error| {
            let message = format!("the name {host} does not resolve: {error}");
            UpstreamError::new(UpstreamErrorKind::Dns, message)
        },
    )
}

/// Passes datagrams on until the stream ends. What either side does not take at once is dropped.
pub(super) async fn pass_on(
    tunnel: &Tunnel,
    socket: &UdpSocket,
    mut sender: Sender,
    mut reader: FrameReader,
) -> Result<(), SocketError> {
    loop {
        tokio::select! {
            frame = std::future::poll_fn(|cx| reader.poll_frame(cx)) => {
                let Some(frame) = frame? else { return Ok(()) };
                if frame.kind != FrameKind::Datagram {
                    return Err(SocketError::NoDatagram);
                }
                // That nobody took the last one is said on the next one.
                if let Err(error) = socket.send(&frame.payload).await {
                    failed(tunnel, &error);
                }
            }
            readable = socket.readable() => match readable {
                Ok(()) => answer(tunnel, socket, &mut sender)?,
                Err(error) => failed(tunnel, &error),
            },
        }
    }
}

/// Sends on what the local server has said.
fn answer(tunnel: &Tunnel, socket: &UdpSocket, sender: &mut Sender) -> Result<(), SocketError> {
    let mut buffer = RECEIVED.take();
    buffer.resize(MAX_DATAGRAM, 0);
    let mut answered = Ok(());
    for _ in 0..IN_A_ROW {
        match socket.try_recv(&mut buffer) {
            Ok(length) => {
                tunnel.report(None);
                answered = send(sender, &buffer[..length]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => failed(tunnel, &error),
        }
        if answered.is_err() {
            break;
        }
    }
    RECEIVED.set(buffer);
    answered
}

fn send(sender: &mut Sender, payload: &[u8]) -> Result<(), SocketError> {
    match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => {
            debug!("an answer was dropped: the link takes no more");
            return Ok(());
        }
        Poll::Ready(ready) => ready?,
    }
    let header = codec::header(FrameKind::Datagram, false, payload.len());
    Ok(sender.send_framed(header, Bytes::copy_from_slice(payload), false)?)
}

fn failed(tunnel: &Tunnel, error: &io::Error) {
    let target = tunnel.pool().target().to_string();
    let message = format!("{target} takes no datagrams: {error}");
    tunnel.report(Some(&UpstreamError::new(UpstreamErrorKind::ConnectionRefused, message)));
}
