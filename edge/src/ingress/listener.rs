//! Accepts visitors' and agents' connections and serves HTTP/1.1 on them, within limits.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::{Shared, ingress};

/// A request's head has to be complete after this long (T04).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What hyper may buffer of a connection in each direction, and so the longest head, in bytes.
const MAX_BUFFER: usize = 64 * 1024;
/// Header fields of a request.
const MAX_HEADERS: usize = 128;
/// Wait after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the edge stops.
pub(crate) async fn serve(edge: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = edge.stop.cancelled() => return,
        };
        match accepted {
            Ok((socket, peer)) => accept(&edge, socket, peer),
            Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection failed"),
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn accept(edge: &Arc<Shared>, socket: TcpStream, peer: SocketAddr) {
    let Some(place) = edge.connection_place() else {
        edge.metrics.failed(&uniroute_shared::code::Code::CONNECTION_LIMIT);
        let _ = socket.try_write(&ingress::connection_refusal());
        return;
    };
    if let Err(error) = socket.set_nodelay(true) {
        return debug!(%error, "a connection ended before it was served");
    }
    let edge_of_task = Arc::clone(edge);
    edge.tasks.spawn(async move {
        let _place = place;
        if let Err(error) = serve_connection(edge_of_task, socket, peer).await {
            debug!(%peer, %error, "a visitor's connection broke off");
        }
    });
}

async fn serve_connection(
    edge: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
) -> Result<(), hyper::Error> {
    let service_edge = Arc::clone(&edge);
    let service = service_fn(move |request| {
        let edge = Arc::clone(&service_edge);
        async move { Ok::<_, std::convert::Infallible>(ingress::handle(edge, peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
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
        match connection.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
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
