//! Accepts visitors' and agents' connections and serves HTTP/1.1 on them, within limits.
//!
//! A visitor's connection is served by the worker that has the session it asks for: a request then
//! wakes no other thread, which is worth a third of its cost. Whoever accepts a connection looks at
//! the `Host` of its first bytes, or at what a lane says that it belongs to, without taking them, and hands the socket over. That decides
//! where work is done and nothing else: what does not fit is served where it is.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Poll, ready},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, mpsc},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    router::{self, Route},
    visitor::{Due, Visitor},
};
use crate::{Shared, ingress, registry::Lookup};
use uniroute_shared::carrier::upgrade::LANE_HEADER;

/// The first bytes of a connection have to be there after this long.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// What hyper may buffer of a connection in each direction, in bytes: what one read of a long body
/// takes at most.
const MAX_BUFFER: usize = 128 * 1024;
/// Header fields of a request.
const MAX_HEADERS: usize = 128;
/// Wait after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a connection's beginning in which its `Host` is looked for.
const PEEK: usize = 2048;
/// Connections that may wait to be taken over by a worker; further ones stay where they are.
pub(crate) const HANDOVERS: usize = 1024;

/// A connection on its way to another worker.
pub(crate) struct Handover {
    socket: std::net::TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
}

/// Accepts until the edge stops; `worker` is this thread's number.
pub(crate) async fn serve(
    edge: Arc<Shared>,
    listener: TcpListener,
    worker: usize,
    mut handed: mpsc::Receiver<Handover>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(handover) = handed.recv() => {
                take_over(&edge, worker, handover);
                continue;
            }
            () = edge.stop.cancelled() => return,
        };
        match accepted {
            Ok((socket, peer)) => accept(&edge, worker, socket, peer),
            Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection failed"),
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn accept(edge: &Arc<Shared>, worker: usize, socket: TcpStream, peer: SocketAddr) {
    let Some(place) = edge.connection_place() else {
        edge.metrics.failed(&uniroute_shared::code::Code::CONNECTION_LIMIT);
        let _ = socket.try_write(&ingress::connection_refusal());
        return;
    };
    if let Err(error) = socket.set_nodelay(true) {
        return debug!(%error, "a connection ended before it was served");
    }
    let edge = Arc::clone(edge);
    edge.clone().tasks.spawn(async move {
        let Ok(home) = timeout(FIRST_BYTES, home(&edge, &socket)).await else {
            return debug!(%peer, "a connection said nothing");
        };
        match home {
            Some(home) if home != worker => {
                hand_over(edge, worker, home, socket, peer, place).await;
            }
            _ => serve_connection(edge, worker, socket, peer, place).await,
        }
    });
}

/// The worker that has the session which the connection's first request asks for, or is to be a
/// lane of.
async fn home(edge: &Shared, socket: &TcpStream) -> Option<usize> {
    if edge.handovers.len() < 2 {
        return None;
    }
    let mut head = [0; PEEK];
    let length = socket.peek(&mut head).await.ok()?;
    let head = &head[..length];
    let host = router::host(peeked(head, "host")?)?;
    match edge.hosts.route(&host) {
        Route::Tunnel(name) => match edge.registry.lookup(name) {
            Lookup::Live(target) => Some(target.session.worker),
            Lookup::Offline | Lookup::Unknown => None,
        },
        Route::Edge => edge.registry.worker_of(peeked(head, LANE_HEADER)?),
        Route::Unknown => None,
    }
}

/// The value of the first field `name` in the beginning of a request.
fn peeked<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    let value = lines.find_map(|line| {
        let (field, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        field.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })?;
    // Only a whole line: the rest of a cut one may still come.
    std::str::from_utf8(value.strip_suffix(b"\r")?).ok().map(str::trim)
}

async fn hand_over(
    edge: Arc<Shared>,
    worker: usize,
    home: usize,
    socket: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    let Some(room) = edge.handovers.get(home).and_then(|worker| worker.try_reserve().ok()) else {
        return serve_connection(edge, worker, socket, peer, place).await;
    };
    match socket.into_std() {
        Ok(socket) => room.send(Handover { socket, peer, place }),
        Err(error) => debug!(%peer, %error, "a connection was lost on its way to its worker"),
    }
}

fn take_over(edge: &Arc<Shared>, worker: usize, handover: Handover) {
    let Handover { socket, peer, place } = handover;
    match TcpStream::from_std(socket) {
        Ok(socket) => {
            let serving = serve_connection(Arc::clone(edge), worker, socket, peer, place);
            edge.tasks.spawn(serving);
        }
        Err(error) => debug!(%peer, %error, "a connection was lost on its way to its worker"),
    }
}

async fn serve_connection(
    edge: Arc<Shared>,
    worker: usize,
    socket: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    let _place = place;
    if let Err(error) = serve_http(edge, worker, socket, peer).await {
        debug!(%peer, %error, "a visitor's connection broke off");
    }
}

async fn serve_http(
    edge: Arc<Shared>,
    worker: usize,
    socket: TcpStream,
    peer: SocketAddr,
) -> Result<(), hyper::Error> {
    let visitor = Visitor::new(Arc::clone(&edge), worker, peer);
    let requests_of = Arc::clone(&visitor);
    let service = service_fn(move |request| {
        let visitor = Arc::clone(&requests_of);
        async move { Ok::<_, std::convert::Infallible>(ingress::handle(visitor, request).await) }
    });
    // Without hyper's own timer: it is made and dropped again for every request.
    let connection = http1::Builder::new()
        .max_buf_size(MAX_BUFFER)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut stop = pin!(edge.stop.clone().cancelled_owned());
    let mut listening = false;
    let mut stopping = false;
    // The stop signal is polled once, to be woken by it; after that a flag is enough, since asking
    // it again on every wake-up costs a lock that all connections share.
    poll_fn(move |cx| {
        if !listening {
            listening = true;
            stopping = stop.as_mut().poll(cx).is_ready();
            if stopping {
                connection.as_mut().graceful_shutdown();
            }
        } else if !stopping && edge.stopping.load(Ordering::Relaxed) {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            match ready!(visitor.poll_timer(cx)) {
                // Whoever says nothing, or too slowly, is cut without a word.
                Due::Silent => return Poll::Ready(Ok(())),
                Due::Request => {}
            }
        }
    })
    .await
}

/// Errors of `accept` that say nothing about the listener (see accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::peeked;

    #[test]
    fn the_host_is_found_in_a_whole_line_only() {
        let cases: [(&[u8], Option<&str>); 5] = [
            (b"GET / HTTP/1.1\r\nHost: a.example:80\r\nX: y\r\n", Some("a.example:80")),
            (b"GET / HTTP/1.1\r\nx: y\r\nhOST:b\r\n\r\n", Some("b")),
            (b"GET / HTTP/1.1\r\nHost: a.exam", None),
            (b"Host: a\r\n", None),
            (b"", None),
        ];
        for (head, host) in cases {
            assert_eq!(peeked(head, "host"), host);
        }
    }
}
