//! One visitor's connection, from its beginning to its end: find the session, open a stream, copy.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info};
use uniroute_proto::{
    codec,
    v1::{self, stream_open},
};
use uniroute_shared::{
    code::Code,
    copy::{self, CopyError},
    id::RequestId,
    session::{OpenError, Receiver, Sender},
    stream::FrameReader,
};

use super::{abort, refuse};
use crate::{
    Shared,
    ingress::error::upstream_code,
    ingress::hold,
    limits::bandwidth::Pacer,
    metrics::Traffic,
    registry::{Target, Tunnel},
};

/// How often it is looked at whether a visitor that has half closed its connection is still there.
const LOOK: Duration = Duration::from_secs(5);

/// A connection that is to go to a tunnel.
pub(super) struct Visit {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) socket: TcpStream,
    /// What was read of it already.
    pub(super) early: Bytes,
    pub(super) peer: SocketAddr,
    /// What the agent is told of it.
    pub(super) open: stream_open::Kind,
}

/// Serves a connection to its end. `worker` is the thread that this runs on; the connection goes on
/// on its session's.
pub(super) async fn serve(edge: Arc<Shared>, worker: usize, visit: Visit) {
    let Some(occupied) = Occupied::take(&edge, &visit.tunnel) else {
        return refuse(&edge, &visit.socket, visit.peer, &Code::TUNNEL_CONNECTION_LIMIT);
    };
    let target = tokio::select! {
        target = wait(&edge, &visit.tunnel) => target,
        () = edge.stop.cancelled() => Err(&Code::DRAINING),
    };
    let target = target.and_then(|target| match visit.tunnel.refuses() {
        Some(code) => Err(code),
        None => Ok(target),
    });
    let target = match target {
        Ok(target) => target,
        Err(code) => return refuse(&edge, &visit.socket, visit.peer, code),
    };
    let home = target.session.worker;
    if home == worker {
        return run(edge, target, visit, occupied).await;
    }
    let Visit { socket, tunnel, early, peer, open } = visit;
    match socket.into_std() {
        Ok(socket) => {
            let handle = edge.workers[home].clone();
            let moved = async move {
                match TcpStream::from_std(socket) {
                    Ok(socket) => {
                        let visit = Visit { socket, tunnel, early, peer, open };
                        run(edge, target, visit, occupied).await;
                    }
                    Err(error) => debug!(%peer, %error, "a connection was lost on its way"),
                }
            };
            // Waited for: what the caller holds for the connection is held to its end.
            if let Err(error) = handle.spawn(moved).await {
                debug!(%peer, %error, "a connection ended with its worker");
            }
        }
        Err(error) => debug!(%peer, %error, "a connection was lost on its way"),
    }
}

/// Who serves the tunnel: at once, or when its agent is back.
async fn wait(edge: &Arc<Shared>, tunnel: &Tunnel) -> Result<Arc<Target>, &'static Code> {
    if let Some(target) = live(edge, tunnel) {
        return Ok(target);
    }
    let _place = hold::Place::take(edge, tunnel, 0).map_err(|error| error.code())?;
    let back = async {
        loop {
            // Enrolled before the look, so that nobody who comes in between is missed.
            let mut arrived = std::pin::pin!(tunnel.arrived.notified());
            arrived.as_mut().enable();
            if let Some(target) = live(edge, tunnel) {
                return target;
            }
            arrived.await;
        }
    };
    timeout(edge.hold.of(tunnel), back).await.map_err(|_| &Code::NO_AGENT)
}

/// A session that has ended serves nothing, though it may stand in the registry for a moment.
fn live(edge: &Shared, tunnel: &Tunnel) -> Option<Arc<Target>> {
    edge.registry.target_of(tunnel).filter(|target| !target.session.carried.is_closed())
}

async fn run(edge: Arc<Shared>, target: Arc<Target>, visit: Visit, occupied: Occupied) {
    let Visit { mut socket, early, peer, open, .. } = visit;
    let _occupied = occupied;
    let _counted = Counted { edge: &edge, tunnel: &target.tunnel };
    let read = early.len();
    let (sender, reader) = match begin(&target, peer, open, early) {
        Ok(stream) => stream,
        Err(code) => return refuse(&edge, &socket, peer, code),
    };
    let watch = Watch::new(target.idle_timeout);
    let traffic = edge.metrics.sockets.open(target.tunnel.kind);
    let metered = Metered {
        socket: &mut socket,
        tunnel: &target.tunnel,
        traffic,
        watch: &watch,
        done: false,
        up: Pacer::default(),
        down: Pacer::default(),
    };
    metered.count(read, (&target.tunnel.counts.bytes_in, &metered.traffic.bytes_in));
    let ended = tokio::select! {
        copied = copy::splice_connecting(metered, sender, reader) => copied.map_err(Ended::Copy),
        () = watch.idle() => Err(Ended::Idle),
        never = watch.look() => match never {},
        () = edge.stop.cancelled() => Err(Ended::Stopped),
    };
    if let Err(ended) = ended {
        if let Some(code) = ended.code() {
            edge.metrics.failed(code);
            info!(%code, %peer, tunnel = %target.tunnel.name, reason = %ended, "a connection failed");
        } else {
            debug!(%peer, reason = %ended, "a connection was cut");
        }
        abort(&socket);
    }
}

fn begin(
    target: &Target,
    peer: SocketAddr,
    open: stream_open::Kind,
    early: Bytes,
) -> Result<(Sender, FrameReader), &'static Code> {
    let (mut sender, receiver): (Sender, Receiver) =
        target.session.carried.open().map_err(|error| match error {
            OpenError::TooManyStreams => &Code::STREAM_LIMIT,
            _ => &Code::NO_AGENT,
        })?;
    let open = v1::StreamOpen {
        tunnel_id: Bytes::copy_from_slice(target.tunnel.id.as_bytes()),
        request_id: Bytes::copy_from_slice(RequestId::new().as_bytes()),
        visitor: peer.ip().to_canonical().to_string(),
        kind: Some(open),
        ..v1::StreamOpen::default()
    };
    let lost = |_| &Code::NO_AGENT;
    sender.send(codec::message(&open, false), false).map_err(lost)?;
    if !early.is_empty() {
        sender.send(early, false).map_err(lost)?;
    }
    Ok((sender, FrameReader::new(receiver)))
}

/// Why a connection ended before both directions had.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Copy(CopyError),
    #[error("nothing moved for too long")]
    Idle,
    #[error("the edge stops")]
    Stopped,
}

impl Ended {
    /// What is counted; a side that cuts its connection is no failure of ours.
    fn code(&self) -> Option<&'static Code> {
        match self {
            Self::Copy(CopyError::Refused(error)) => Some(upstream_code(error.kind())),
            Self::Copy(CopyError::Read(_) | CopyError::NoAnswer) => Some(&Code::AGENT_PROTOCOL),
            Self::Copy(CopyError::Io(_) | CopyError::Stream(_)) | Self::Stopped => None,
            Self::Idle => Some(&Code::CONNECTION_IDLE),
        }
    }
}

/// One of the connections that a tunnel may have.
struct Occupied(Arc<Tunnel>);

impl Occupied {
    fn take(edge: &Shared, tunnel: &Arc<Tunnel>) -> Option<Self> {
        let before = tunnel.connections.fetch_add(1, Ordering::Relaxed);
        let occupied = Self(Arc::clone(tunnel));
        let most = tunnel.most_connections(edge.sockets.max_tunnel_connections);
        (before < most).then_some(occupied)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is to be seen of a connection beside its bytes.
struct Watch {
    /// For how long nothing may move.
    limit: Option<Duration>,
    began: Instant,
    /// When something moved last, in milliseconds after the beginning.
    moved: AtomicU64,
    /// The visitor has sent its last byte.
    done: Notify,
}

impl Watch {
    fn new(limit: Option<Duration>) -> Self {
        Self { limit, began: Instant::now(), moved: AtomicU64::new(0), done: Notify::new() }
    }

    /// Wakes the connection's task now and then once the visitor has half closed it: nothing is read
    /// any more then, which would tell that the visitor is gone, and there may be nothing to write.
    async fn look(&self) -> std::convert::Infallible {
        self.done.notified().await;
        loop {
            sleep(LOOK).await;
        }
    }

    fn moves(&self) {
        if self.limit.is_some() {
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved.store(now, Ordering::Relaxed);
        }
    }

    /// Resolves when nothing has moved for as long as may be.
    async fn idle(&self) {
        let Some(limit) = self.limit else { return std::future::pending().await };
        sleep(limit).await;
        loop {
            let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let due = self.began + moved + limit;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// A visitor's socket whose bytes are counted.
struct Metered<'a> {
    socket: &'a mut TcpStream,
    tunnel: &'a Tunnel,
    traffic: Traffic,
    watch: &'a Watch,
    /// The visitor has half closed it.
    done: bool,
    /// Its way through the user's bandwidth.
    up: Pacer,
    down: Pacer,
}

/// A connection, taken down when it is over.
struct Counted<'a> {
    edge: &'a Shared,
    tunnel: &'a Arc<Tunnel>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.edge.journal.connected(self.tunnel);
    }
}

impl Metered<'_> {
    fn count(&self, bytes: usize, (of_tunnel, of_all): (&AtomicU64, &Counter)) {
        let bytes = bytes as u64;
        of_tunnel.fetch_add(bytes, Ordering::Relaxed);
        of_all.inc_by(bytes);
        self.tunnel.account.transferred(bytes);
        self.watch.moves();
    }
}

impl AsyncRead for Metered<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.up.poll(cx));
        let before = buffer.filled().len();
        let wants = buffer.remaining() > 0;
        ready!(Pin::new(&mut *self.socket).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        if read == 0 && wants {
            self.done = true;
            self.watch.done.notify_one();
        }
        self.count(read, (&self.tunnel.counts.bytes_in, &self.traffic.bytes_in));
        let bandwidth = &self.tunnel.account.bandwidth;
        self.up.passed(bandwidth, read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.down.poll(cx));
        let written = ready!(Pin::new(&mut *self.socket).poll_write(cx, bytes))?;
        self.count(written, (&self.tunnel.counts.bytes_out, &self.traffic.bytes_out));
        let bandwidth = &self.tunnel.account.bandwidth;
        self.down.passed(bandwidth, written);
        Poll::Ready(Ok(written))
    }

    /// Asked for whenever there is nothing to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.done
            && let Some(error) = self.socket.take_error()?
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut *self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket).poll_shutdown(cx)
    }
}
