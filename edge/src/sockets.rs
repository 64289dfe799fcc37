//! Tunnels that carry bytes instead of requests: TCP by port, TLS by server name, datagrams by port.
//!
//! Each port that a tunnel has is listened on by a task of its own, on the worker of the session that
//! claimed it, for as long as the tunnel's name is held. A visitor's connection runs on the worker of
//! the session that serves it. What is read of it goes on as it is; see `proto/PROTOCOL.md` for what
//! is on a stream.

mod connection;
mod proxied;
mod tcp;
pub(crate) mod tls;
mod udp;

use std::{io, net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::sleep};
use tracing::{debug, warn};
use uniroute_shared::{code::Code, id::Subdomain};

pub(crate) use self::proxied::Proxied;
use crate::{
    Shared,
    registry::{
        Claim, Grant, SessionHandle, Tunnel, Wish,
        ports::{Kind, Port, PortWish},
    },
};

/// Ports that are tried when the edge may choose one and the system refuses some.
const TRIES: usize = 16;
/// A port whose tunnel has just gone is free after its listener has heard of it.
const RELEASE: Duration = Duration::from_millis(20);
/// How often that is waited for.
const RELEASES: usize = 25;
/// Idle time after which the kernel looks whether a visitor is there, and between its probes: a
/// visitor that vanished must not hold a connection for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Wait after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that an agent asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedPort {
    /// 0: the edge chooses.
    pub(crate) number: u16,
    /// Another one will do.
    pub(crate) is_hint: bool,
}

/// The ports that tunnels of a kind may have; `None`: they have none.
///
/// # Errors
/// When this edge serves no such tunnels.
pub(crate) fn ports(
    edge: &Shared,
    kind: Kind,
) -> Result<Option<&RangeInclusive<u16>>, &'static Code> {
    let range = match kind {
        Kind::Http => return Ok(None),
        Kind::Tls if edge.https.is_none() => return Err(&Code::TUNNEL_KIND_UNSUPPORTED),
        Kind::Tls => return Ok(None),
        Kind::Tcp => &edge.sockets.tcp_ports,
        Kind::Udp => &edge.sockets.udp_ports,
    };
    range.as_ref().map(Some).ok_or(&Code::TUNNEL_KIND_UNSUPPORTED)
}

/// Gives a session a name that the store has granted, and a port where the kind has one; the port is
/// then listened on.
pub(crate) async fn claim(
    edge: &Arc<Shared>,
    session: &SessionHandle,
    (name, grant): (&Subdomain, &Grant),
    wish: Wish<'_>,
    WantedPort { number, is_hint }: WantedPort,
) -> Result<Claim, &'static Code> {
    let registry = &edge.registry;
    let Some(range) = ports(edge, wish.kind)? else {
        return registry.claim(&session.identity, session.id, name.clone(), &wish, grant);
    };
    let mut unusable = Vec::new();
    while unusable.len() < TRIES {
        let port = Some(PortWish { number, is_hint, range, unusable: &unusable });
        let wish = Wish { port, ..wish.clone() };
        let claim = registry.claim(&session.identity, session.id, name.clone(), &wish, grant)?;
        let Some(got) = &claim.tunnel.port else { return Ok(claim) };
        let firm = got.number == number && !is_hint;
        match listen(edge, session.worker, (&claim.tunnel, got), firm).await {
            Ok(()) => return Ok(claim),
            Err(error) => {
                let got = got.number;
                warn!(port = got, kind = wish.kind.as_str(), %error, "a tunnel's port can't be listened on");
                registry.close(session.id, claim.tunnel.id);
                unusable.push(got);
            }
        }
    }
    Err(&Code::PORTS_EXHAUSTED)
}

/// Sees to it that somebody listens on a tunnel's port. `firm`: it has to be this one, so it is worth
/// a wait.
async fn listen(
    edge: &Arc<Shared>,
    worker: usize,
    (tunnel, port): (&Arc<Tunnel>, &Port),
    firm: bool,
) -> io::Result<()> {
    let mut left = if firm { RELEASES } else { 0 };
    // An earlier session of the agent may have seen to it, or does so just now.
    while !port.is_listened_on() {
        let listening = match tunnel.kind {
            Kind::Udp => udp::listen(edge, worker, tunnel),
            Kind::Http | Kind::Tls | Kind::Tcp => tcp::listen(edge, worker, tunnel),
        };
        match listening {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && left > 0 => {
                left -= 1;
                sleep(RELEASE).await;
            }
            Err(error) => return Err(error),
            Ok(()) => port.listened_on(),
        }
    }
    Ok(())
}

/// An end of a connection, as agents are told of it.
fn end(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// A connection that can't be served: counted, said, and cut so that it never looks like one that
/// has come to its end.
fn refuse(edge: &Shared, socket: &TcpStream, peer: SocketAddr, code: &'static Code) {
    edge.metrics.failed(code);
    debug!(%code, %peer, reason = code.title, "a connection was refused");
    abort(socket);
}

/// Makes dropping the socket a reset.
fn abort(socket: &TcpStream) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        debug!(%error, "a connection ends without a reset");
    }
}

fn tune(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let socket = SockRef::from(socket);
    let tuned = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        debug!(%error, "a socket option could not be set");
    }
}

/// After an error of `accept`: those that are of one connection say nothing of the listener.
async fn after_accept_error(error: &io::Error) {
    let of_one = matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    );
    if !of_one {
        warn!(%error, "no connection can be accepted");
        sleep(ACCEPT_PAUSE).await;
    }
}
