//! QUIC as a carrier: one connection is one session, and each stream is a native stream with the
//! frames of a mux stream on it. Nothing above [`crate::session`] knows which of the two runs.
//!
//! ```text
//! Sender::send ─▶ quinn ─▶ …            while quinn takes it
//!            └──▶ queue ─▶ Driver ─▶ quinn   once it does not: the driver goes on with it
//! ```
//!
//! What holds:
//! - The first stream that the agent opens is the control stream, and the only one it may open.
//! - A cancel ends both directions: RESET_STREAM for the one, STOP_SENDING for the other.
//! - A stream's first [`YOUNG`] bytes, and those after a pause, go before those of bulk transfers,
//!   and find room in quinn's send window when bulk has filled it. The control stream goes first.
//! - Memory is bounded: what a stream queues as in the mux; what a connection has sent and not seen
//!   acknowledged by [`SEND_WINDOW`]; what it has received and not read by [`STREAM_WINDOW`] for a
//!   stream and [`CONNECTION_WINDOW`] for all. quinn's windows do not grow by need, they are limits
//!   from the start, so the largest one is smaller than the mux's.

pub mod endpoint;
mod stream;

use std::{
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, VarInt};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

pub use self::stream::{Receiver, Sender};
use self::stream::{Stream, Tail};
use crate::mux::{MAX_STREAMS, OpenError, SessionError, Stats};

/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"uniroute/1";
/// What one stream may have received and not read, in bytes: 50 MB/s over 40 ms.
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// The same for all streams of a connection: as much as a mux session's windows can come to. 160
/// readers that stand still with full windows fill it.
pub const CONNECTION_WINDOW: u32 = 320 * 1024 * 1024;
/// What a connection may have written and not seen acknowledged, in bytes: 100 MB/s over 40 ms.
pub const SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// What young streams may write beyond that, in bytes: bulk never stands in their way.
const RESERVE: u64 = 2 * 1024 * 1024;
/// How long a session that closes waits for what it has sent to be acknowledged.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of a connection may take to be sent.
const FAREWELL: Duration = Duration::from_millis(100);
/// How long a peer may hold an acknowledgement back, and a little more.
const ACK_DELAY: Duration = Duration::from_millis(30);
/// Close code of a session that ended in order, as in WebSocket.
const NORMAL: u16 = 1000;

/// Bytes of a stream that go before those of older ones.
pub use self::stream::YOUNG;

/// How a session behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Streams at a time; [`crate::session::Session::open`] refuses the next one.
    pub max_streams: usize,
    /// Whether the peer's datagrams are sent back to it: that is how it measures the path.
    pub echo: bool,
}

impl Config {
    /// The edge's end.
    #[must_use]
    pub const fn edge() -> Self {
        Self { max_streams: MAX_STREAMS, echo: true }
    }

    /// The agent's end. It takes a few streams more than the edge opens: the edge may count one as
    /// over that the agent has not yet seen the end of.
    #[must_use]
    pub const fn agent() -> Self {
        Self { max_streams: MAX_STREAMS + MAX_STREAMS / 4, echo: false }
    }
}

/// What a session and its streams share.
struct Shared {
    connection: Connection,
    max_streams: usize,
    /// Streams that exist: with a handle, or with something left to deliver.
    streams: Mutex<HashMap<u64, Weak<Stream>, foldhash::fast::RandomState>>,
    /// Bytes in the queues of all streams.
    queued: AtomicUsize,
    handed: Mutex<Handed>,
    closing: AtomicBool,
    /// How it ended, or is about to.
    ended: OnceLock<SessionError>,
    /// This side has ended it.
    cut: CancellationToken,
    life: Mutex<Life>,
}

/// Streams on their way to the driver.
#[derive(Default)]
struct Handed {
    streams: Vec<Arc<Stream>>,
    driver: Option<Waker>,
    /// The driver has gone: nobody would take them.
    over: bool,
}

/// When datagrams last came, as far as somebody has looked.
struct Life {
    datagrams: u64,
    at: Instant,
}

impl Shared {
    /// The driver goes on with `stream`: quinn takes no more of it now, or its handles are gone.
    fn hand_over(&self, stream: Arc<Stream>) {
        let mut handed = self.handed.lock();
        if handed.over {
            return;
        }
        handed.streams.push(stream);
        let driver = handed.driver.take();
        drop(handed);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    fn wake_driver(&self) {
        let driver = self.handed.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// This side ends the session. The driver tells the peer; here everything is over at once.
    fn end(&self, code: u16, reason: String) {
        // Only the first reason counts.
        if self.ended.set(SessionError::Local { code, reason }).is_ok() {
            self.cut.cancel();
            self.wake_driver();
            self.all_streams().iter().for_each(|stream| stream.wake_all());
        }
    }

    /// The end as this side wished it, if it did.
    fn cut(&self) -> Option<&SessionError> {
        self.ended.get().filter(|error| matches!(error, SessionError::Local { .. }))
    }

    fn count(&self) -> usize {
        self.streams.lock().len()
    }

    /// The lock is gone when they are: dropping the last handle takes it.
    fn all_streams(&self) -> Vec<Arc<Stream>> {
        self.streams.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn error(&self, error: ConnectionError) -> SessionError {
        if let Some(ended) = self.ended.get() {
            return ended.clone();
        }
        match error {
            ConnectionError::ApplicationClosed(close) => {
                match u16::try_from(close.error_code.into_inner()).unwrap_or(u16::MAX) {
                    0 | NORMAL => SessionError::Ended,
                    code => {
                        let reason = String::from_utf8_lossy(&close.reason).into_owned();
                        SessionError::Closed { code, reason }
                    }
                }
            }
            ConnectionError::LocallyClosed => SessionError::Ended,
            error => SessionError::Io(error.to_string()),
        }
    }

    /// Looks whether anything came since the last look, and says when something last did.
    fn look(&self) -> Instant {
        let datagrams = self.connection.stats().udp_rx.datagrams;
        let mut life = self.life.lock();
        if datagrams > life.datagrams {
            *life = Life { datagrams, at: Instant::now() };
        }
        life.at
    }
}

/// A session and its driver over `connection`.
#[must_use]
pub fn new(config: Config, connection: Connection) -> (Session, Acceptor, Driver) {
    let shared = Arc::new(Shared {
        connection,
        max_streams: config.max_streams,
        streams: Mutex::default(),
        queued: AtomicUsize::new(0),
        handed: Mutex::default(),
        closing: AtomicBool::new(false),
        ended: OnceLock::new(),
        cut: CancellationToken::new(),
        life: Mutex::new(Life { datagrams: 0, at: Instant::now() }),
    });
    let driver = Driver {
        shared: Arc::clone(&shared),
        tails: FuturesUnordered::new(),
        echo: config.echo,
        endpoint: None,
    };
    (Session { shared: Arc::clone(&shared) }, Acceptor { shared }, driver)
}

/// A QUIC connection.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

/// What a path was like, from this side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Packets sent so far.
    pub sent: u64,
    /// How many of them were lost.
    pub lost: u64,
    /// Bytes that went over the wire, both ways.
    pub bytes: u64,
    /// The shortest round trip seen.
    pub min_rtt: Duration,
}

impl Session {
    pub(crate) fn open(&self) -> Result<(Sender, Receiver), OpenError> {
        let shared = &self.shared;
        if let Some(error) = shared.ended.get() {
            return Err(OpenError::Closed(error.clone()));
        }
        if shared.closing.load(Ordering::Relaxed) {
            return Err(OpenError::GoAway);
        }
        if shared.count() >= shared.max_streams {
            return Err(OpenError::TooManyStreams);
        }
        // Once: whether there is room is known at once.
        let opening = pin!(shared.connection.open_bi());
        match opening.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(OpenError::TooManyStreams),
            Poll::Ready(Err(error)) => Err(OpenError::Closed(shared.error(error))),
            Poll::Ready(Ok((send, recv))) => Ok(stream::halves(shared, send, recv)),
        }
    }

    pub(crate) fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.wake_driver();
    }

    pub(crate) fn abort(&self, code: u16, reason: impl Into<String>) {
        self.shared.end(code, reason.into());
    }

    pub(crate) async fn closed(&self) -> SessionError {
        tokio::select! {
            error = self.shared.connection.closed() => self.shared.error(error),
            () = self.shared.cut.cancelled() => self.shared.error(ConnectionError::LocallyClosed),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.ended.get().is_some() || self.shared.connection.close_reason().is_some()
    }

    /// quinn has no ping of its own. Whoever wants a sign of life sends a heartbeat; what is taken
    /// down here is from when on datagrams count as one.
    pub(crate) fn ping(&self) {
        self.shared.look();
    }

    pub(crate) fn last_received(&self) -> Instant {
        self.shared.look()
    }

    pub(crate) fn stats(&self) -> Stats {
        let streams = self.shared.count();
        let windows = streams as u64 * u64::from(STREAM_WINDOW);
        Stats {
            lanes: 0,
            streams,
            granted: windows.min(CONNECTION_WINDOW.into()),
            // quinn does not tell.
            received_queued: 0,
            send_queued: self.shared.queued.load(Ordering::Relaxed),
            min_rtt: Some(self.shared.connection.stats().path.min_rtt),
        }
    }

    /// What its path was like so far.
    pub(crate) fn path(&self) -> Path {
        let stats = self.shared.connection.stats();
        Path {
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            bytes: stats.udp_tx.bytes + stats.udp_rx.bytes,
            min_rtt: stats.path.min_rtt,
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Takes the streams that the peer opens.
pub struct Acceptor {
    shared: Arc<Shared>,
}

impl Acceptor {
    pub(crate) async fn accept(&mut self) -> Option<(Sender, Receiver)> {
        let (send, recv) = self.shared.connection.accept_bi().await.ok()?;
        Some(stream::halves(&self.shared, send, recv))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// A session's life. It moves what quinn did not take at once; the connection itself is driven by a
/// task of quinn's.
pub struct Driver {
    shared: Arc<Shared>,
    tails: FuturesUnordered<Tail>,
    echo: bool,
    endpoint: Option<quinn::Endpoint>,
}

impl Driver {
    /// The connection has `endpoint` for itself: the session's end then waits until the peer can
    /// have heard of it, since the program may end next.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: quinn::Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Runs the session to its end and says why it ended. May be dropped and called again: what
    /// quinn has not taken stands still meanwhile. Dropping the driver cuts the connection.
    pub async fn run(&mut self) -> SessionError {
        let connection = self.shared.connection.clone();
        let echoing = async {
            if self.echo {
                echo(&connection).await;
            }
            std::future::pending::<()>().await;
        };
        let (shared, tails) = (Arc::clone(&self.shared), &mut self.tails);
        let mut closed = pin!(connection.closed());
        let mut patience: Option<Pin<Box<Sleep>>> = None;
        let driving = poll_fn(|cx| {
            take_in(&shared, tails, cx);
            while tails.poll_next_unpin(cx) == Poll::Ready(Some(())) {}
            if let Poll::Ready(error) = closed.as_mut().poll(cx) {
                return Poll::Ready(shared.error(error));
            }
            if shared.closing.load(Ordering::Relaxed) {
                let patience = patience.get_or_insert_with(|| {
                    tails.extend(shared.all_streams().into_iter().filter_map(Tail::to_deliver));
                    Box::pin(sleep(CLOSE_TIMEOUT))
                });
                while tails.poll_next_unpin(cx) == Poll::Ready(Some(())) {}
                if tails.is_empty() || patience.as_mut().poll(cx).is_ready() {
                    shared.end(NORMAL, "done".into());
                }
            }
            shared.cut().cloned().map_or(Poll::Pending, Poll::Ready)
        });
        let error = tokio::select! {
            error = driving => error,
            () = echoing => SessionError::Ended,
        };
        let error = self.shared.ended.get_or_init(|| error).clone();
        self.stop();
        if let SessionError::Local { code, reason } = &error {
            self.say_goodbye(*code, reason).await;
        }
        error
    }

    /// Tells the peer why the session ends. quinn sends nothing of it while the path is full, and
    /// takes no more acknowledgements that could free it: so first there must be nothing to send.
    async fn say_goodbye(&mut self, code: u16, reason: &str) {
        let connection = &self.shared.connection;
        let streams = self.shared.all_streams();
        if streams.len() > 1 {
            streams.iter().for_each(|stream| stream.cut_bulk());
            let settled = connection.rtt() * 2 + ACK_DELAY;
            sleep(settled.min(CLOSE_TIMEOUT)).await;
        }
        drop(streams);
        connection.close(VarInt::from_u32(code.into()), reason.as_bytes());
        if let Some(endpoint) = &self.endpoint {
            let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
        }
    }

    /// Nothing is delivered any more; whoever waits for it is told.
    fn stop(&mut self) {
        let streams = {
            let mut handed = self.shared.handed.lock();
            handed.over = true;
            std::mem::take(&mut handed.streams)
        };
        drop(streams.into_iter().map(Tail::new).collect::<Vec<_>>());
        self.tails.clear();
    }
}

fn take_in(shared: &Shared, tails: &FuturesUnordered<Tail>, cx: &Context<'_>) {
    let mut handed = shared.handed.lock();
    match &mut handed.driver {
        Some(waker) => waker.clone_from(cx.waker()),
        None => handed.driver = Some(cx.waker().clone()),
    }
    handed.streams.drain(..).for_each(|stream| tails.push(Tail::new(stream)));
}

/// Sends datagrams back until the connection ends. What can't be sent is lost, as datagrams are.
async fn echo(connection: &Connection) {
    while let Ok(datagram) = connection.read_datagram().await {
        let _ = connection.send_datagram(datagram);
    }
}

impl Drop for Driver {
    /// Without its driver a session is over.
    fn drop(&mut self) {
        self.shared.ended.get_or_init(|| SessionError::Ended);
        self.shared.connection.close(VarInt::from_u32(0), b"");
        self.shared.all_streams().iter().for_each(|stream| stream.wake_all());
        self.stop();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}
