//! One agent connection, from its upgrade to its end: a task that owns the connection and the mux, and one
//! of its own for the control stream. What they hold in the registry goes with them.

pub(crate) mod books;
pub(crate) mod claims;
mod control;
pub(crate) mod permit;
pub(crate) mod quic;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tracing::{Instrument, debug, info_span};
use uniroute_shared::{
    id::SessionId,
    mux,
    session::{Acceptor, Session, SessionError},
    task::Owned,
};

use crate::{Shared, registry::Origin};

/// Idle time after which the kernel looks whether the peer is there, and between its probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes that the kernel may hold unsent: what it holds can't be overtaken by a small answer.
const NOTSENT_LOWAT: u32 = 128 * 1024;

/// Takes over an agent's upgraded connection, of which some may have been read, and runs its session
/// to the end.
pub(crate) async fn accept(
    edge: Arc<Shared>,
    origin: Origin,
    (socket, early): (TcpStream, Bytes),
    place: OwnedSemaphorePermit,
) {
    let id = SessionId::new();
    let span = info_span!("session", session.id = %id, peer = %origin.peer, carrier = "websocket");
    tune(&socket);
    run(edge, id, origin, (socket, early), place).instrument(span).await;
}

async fn run<Io>(
    edge: Arc<Shared>,
    id: SessionId,
    origin: Origin,
    (io, early): (Io, Bytes),
    place: OwnedSemaphorePermit,
) where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (session, acceptor, mut driver) =
        mux::new(mux::Config { process: edge.windows.clone(), ..mux::Config::edge() }, io, early);
    serve(edge, id, origin, (session.into(), acceptor.into()), driver.run(), place).await;
}

/// A session over any carrier; `driving` moves its bytes and ends with it.
async fn serve(
    edge: Arc<Shared>,
    id: SessionId,
    origin: Origin,
    (session, acceptor): (Session, Acceptor),
    driving: impl Future<Output = SessionError>,
    place: OwnedSemaphorePermit,
) {
    edge.metrics.sessions_opened.inc();
    // A task of its own: what moves a request's bytes does not ask control's timers each time.
    let own = Arc::clone(&edge);
    let control = Owned::spawn(async move {
        control::run(&own, id, origin, (session, acceptor), place).await;
    });
    // Both end when either does: control watches the session, and closes it when it is done.
    let (ended, ()) = tokio::join!(driving, control);
    edge.registry.release(id);
    edge.metrics.sessions_closed.inc();
    debug!(reason = %ended, "session ended");
}

fn tune(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tuned = socket
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| socket.set_tcp_notsent_lowat(NOTSENT_LOWAT));
    if let Err(error) = tuned {
        debug!(%error, "a socket option could not be set");
    }
}
