//! Accepts visitors' and agents' connections and serves HTTP/1.1 on them, within limits.
//!
//! A visitor's connection is served by the worker that has the session it asks for: a request then
//! wakes no other thread, which is worth a third of its cost. Whoever accepts a connection looks at
//! the `Host` of its first bytes, or at what a lane says that it belongs to, and hands both over.
//! That decides where work is done and nothing else: what does not fit is served where it is.

use std::{
    future::poll_fn,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, Interest, unix::AsyncFd},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};
use uniroute_shared::carrier::upgrade::LANE_HEADER;

use super::{
    http1, http2,
    router::{self, Route},
    visitor::Visitor,
};
use crate::{
    Shared,
    ingress::{self, Refused},
    limits::addresses::Counted,
    registry::Lookup,
    sockets::Proxied,
};

/// The first bytes of a connection have to be there after this long.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// Wait after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a connection's beginning that are read before it is known who serves it.
const FIRST_READ: usize = 2048;
/// Connections that are accepted before others have their turn.
const IN_A_ROW: usize = 4;
/// Connections that may wait to be taken over by a worker; further ones stay where they are.
pub(crate) const HANDOVERS: usize = 1024;

/// A connection of which something was read, and nothing was served.
pub(crate) struct Handover {
    socket: std::net::TcpStream,
    early: Bytes,
    admitted: Admitted,
}

/// What goes with a connection, whoever has it.
struct Admitted {
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    /// Its place among the connections of its address.
    counted: Option<Counted>,
    /// When it was accepted: its first head is due some time after.
    since: Instant,
}

/// Accepts until the edge stops; `worker` is this thread's number, and there is a listener for each
/// worker.
pub(crate) async fn serve(
    edge: Arc<Shared>,
    listeners: Arc<[std::net::TcpListener]>,
    worker: usize,
    mut handed: mpsc::Receiver<Handover>,
) {
    let door = Door { edge: Arc::clone(&edge), worker };
    let mut stop = pin!(edge.stop.cancelled());
    let mut seats = edge.seats.watch();
    let mut mine = door.listen(&listeners, Vec::new());
    loop {
        tokio::select! {
            () = door.accept(&mine) => {}
            Some(handover) = handed.recv() => door.serve(handover),
            Ok(()) = seats.changed() => mine = door.listen(&listeners, mine),
            () = &mut stop => return,
        }
    }
}

/// One of the workers' listeners, by its number. No descriptor of its own: an edge that has run out
/// of them still takes its listeners over.
struct Listener {
    all: Arc<[std::net::TcpListener]>,
    number: usize,
}

impl Listener {
    fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        self.all[self.number].accept()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.all[self.number].as_raw_fd()
    }
}

/// Where connections come in, on one worker.
#[derive(Clone)]
struct Door {
    edge: Arc<Shared>,
    worker: usize,
}

impl Door {
    /// The listeners that are this worker's now; those that it had and still has stay as they are.
    fn listen(
        &self,
        all: &Arc<[std::net::TcpListener]>,
        mut had: Vec<AsyncFd<Listener>>,
    ) -> Vec<AsyncFd<Listener>> {
        let mine = self.edge.seats.listeners_of(self.worker);
        had.retain(|listener| mine.contains(&listener.get_ref().number));
        for number in mine {
            if had.iter().any(|listener| listener.get_ref().number == number) {
                continue;
            }
            match register(Listener { all: Arc::clone(all), number }) {
                Ok(listener) => had.push(listener),
                Err(error) => tracing::error!(%error, "a worker can't accept connections"),
            }
        }
        had
    }

    /// Accepts what is there, once something is.
    async fn accept(&self, listeners: &[AsyncFd<Listener>]) {
        let ready = poll_fn(|cx| {
            let ready = listeners.iter().find_map(|listener| match listener.poll_read_ready(cx) {
                Poll::Ready(Ok(guard)) => Some(guard),
                Poll::Ready(Err(_)) | Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        let mut ready = ready.await;
        for _ in 0..IN_A_ROW {
            match ready.try_io(|listener| listener.get_ref().accept()) {
                Ok(Ok((socket, peer))) => self.admit(socket, peer),
                Ok(Err(error)) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection failed");
                }
                Ok(Err(error)) => {
                    warn!(%error, "no connection can be accepted");
                    return sleep(ACCEPT_PAUSE).await;
                }
                Err(_) => return,
            }
        }
        // There are more: without this, it would be the others' turn after thousands of them.
        tokio::task::yield_now().await;
    }

    /// Gives a connection to its worker: at once if its first bytes came with it, as they mostly do.
    fn admit(&self, socket: std::net::TcpStream, peer: SocketAddr) {
        if let Err(error) = socket.set_nonblocking(true) {
            return debug!(%error, "a connection ended before it was served");
        }
        let proxied = self.edge.sockets.proxy_protocol.contains(peer.ip());
        let admitted = self.edge.admit(peer.ip(), proxied);
        let (place, counted) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => return self.refuse(&socket, &refused),
        };
        let admitted = Admitted { peer, place, counted, since: Instant::now() };
        if proxied {
            let door = self.clone();
            self.edge.tasks.spawn(async move { door.unwrap_proxied(socket, admitted).await });
            return;
        }
        let mut first = [0; FIRST_READ];
        match (&socket).read(&mut first) {
            Ok(0) => {}
            Ok(read) => {
                let early = Bytes::copy_from_slice(&first[..read]);
                self.send_home(Handover { socket, early, admitted });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let door = self.clone();
                self.edge.tasks.spawn(async move { door.wait(socket, admitted).await });
            }
            Err(error) => debug!(%peer, %error, "a connection ended before it was served"),
        }
    }

    fn refuse(&self, mut socket: &std::net::TcpStream, refused: &Refused) {
        self.edge.metrics.failed(refused.code);
        let _ = socket.write(&ingress::connection_refusal(refused));
    }

    /// A load balancer's connection: who the visitor is stands in front of the first bytes.
    async fn unwrap_proxied(&self, socket: std::net::TcpStream, admitted: Admitted) {
        let peer = admitted.peer;
        let proxied = async {
            let mut socket = TcpStream::from_std(socket)?;
            let local = socket.local_addr()?;
            let proxied = Proxied::accept(&self.edge, &mut socket, peer, local).await;
            Ok::<_, io::Error>((socket.into_std()?, proxied))
        };
        match proxied.await {
            Ok((_, None)) => {}
            Ok((socket, Some(Proxied { peer, early, .. }))) => {
                // Only now it is known whose it is.
                let counted = match self.edge.admit_address(peer.ip()) {
                    Ok(counted) => counted,
                    Err(refused) => return self.refuse(&socket, &refused),
                };
                let admitted = Admitted { peer, counted, ..admitted };
                match early.is_empty() {
                    true => self.wait(socket, admitted).await,
                    false => self.send_home(Handover { socket, early, admitted }),
                }
            }
            Err(error) => debug!(%peer, %error, "a connection ended before it was served"),
        }
    }

    /// For the first bytes.
    async fn wait(&self, socket: std::net::TcpStream, admitted: Admitted) {
        let peer = admitted.peer;
        let reading = async {
            let mut socket = TcpStream::from_std(socket)?;
            let mut first = [0; FIRST_READ];
            let read = socket.read(&mut first).await?;
            Ok::<_, io::Error>((socket, Bytes::copy_from_slice(&first[..read])))
        };
        match timeout(FIRST_BYTES, reading).await {
            Ok(Ok((_, early))) if early.is_empty() => {}
            Ok(Ok((socket, early))) if self.home(&early).is_none_or(|home| home == self.worker) => {
                self.serve_here(socket, early, admitted).await;
            }
            Ok(Ok((socket, early))) => match socket.into_std() {
                Ok(socket) => self.send_home(Handover { socket, early, admitted }),
                Err(error) => debug!(%peer, %error, "a connection was lost"),
            },
            Ok(Err(error)) => debug!(%peer, %error, "a connection ended before it was served"),
            Err(_) => debug!(%peer, "a connection said nothing"),
        }
    }

    fn send_home(&self, connection: Handover) {
        let home = self.home(&connection.early).filter(|home| *home != self.worker);
        let home = home.and_then(|home| self.edge.handovers.get(home)?.try_reserve().ok());
        match home {
            Some(home) => home.send(connection),
            None => self.serve(connection),
        }
    }

    fn serve(&self, connection: Handover) {
        let Handover { socket, early, admitted } = connection;
        let peer = admitted.peer;
        match TcpStream::from_std(socket) {
            Ok(socket) => {
                let door = self.clone();
                let serving = async move { door.serve_here(socket, early, admitted).await };
                self.edge.tasks.spawn(serving);
            }
            Err(error) => debug!(%peer, %error, "a connection was lost on its way to its worker"),
        }
    }

    async fn serve_here(&self, socket: TcpStream, early: Bytes, admitted: Admitted) {
        let Admitted { peer, place: _place, counted, since } = admitted;
        let visitor = Visitor::new(Arc::clone(&self.edge), self.worker, peer, counted);
        match http2::begins(&early) {
            // Large, and alive for as long as the connection: apart from what most connections need.
            true => Box::pin(http2::serve(visitor, socket, early)).await,
            false => http1::serve(visitor, socket, early, since).await,
        }
    }

    /// The worker that has the session which a connection's first request asks for, or is to be a
    /// lane of.
    fn home(&self, head: &[u8]) -> Option<usize> {
        let edge = &self.edge;
        if edge.handovers.len() < 2 {
            return None;
        }
        let host = router::host(peeked(head, "host")?)?;
        match edge.hosts.route(&host) {
            Route::Tunnel(name) => match edge.registry.lookup(name) {
                Lookup::Live(target) => Some(target.session.worker),
                Lookup::Offline(..) | Lookup::Unknown => None,
            },
            Route::Edge => edge.registry.worker_of(peeked(head, LANE_HEADER)?),
            Route::Unknown => None,
        }
    }
}

/// Lets this thread's poller watch a listener. tokio's own listener would do the same for each socket
/// that it accepts, in vain for those that go to another thread.
#[expect(deprecated, reason = "a std listener keeps its descriptor for as long as it lives")]
fn register(listener: Listener) -> io::Result<AsyncFd<Listener>> {
    AsyncFd::with_interest(listener, Interest::READABLE)
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
