//! The local server: where it is, and the connections to it.
//!
//! A connection has no task of its own: whoever has a request on it polls it. That saves two wake-ups
//! a request, and an idle connection costs nothing but its socket.

mod connector;
mod http2;
pub(crate) mod pool;
mod target;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use uniroute_proto::v1::UpstreamErrorKind;
use uniroute_shared::{
    code::Code,
    deadline::Deadline,
    http1::{Conn, ReadFault, StatusLine, head},
    message::{Fields, Piece, Source as _},
    stream::{ReadError, StreamBody},
};

use crate::inspect::Tap;

pub(crate) use self::connector::UpstreamIo;
pub use self::{
    http2::{Protocol, ProtocolError},
    target::{Place, Scheme, Target, TargetError, Trust},
};

/// Idle connections that are kept for one local server.
const MAX_IDLE: usize = 128;
/// How long one is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may have idled for a request that can't be sent twice: local servers close theirs
/// after 5 seconds and more, and what is sent as they do so is lost.
const FRESH: Duration = Duration::from_secs(2);
/// A local server that speaks no HTTP/2 is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Why the local server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UpstreamError {
    /// Which of the ways to fail it was.
    pub kind: UpstreamErrorKind,
    /// In words, with the address.
    pub message: String,
}

impl UpstreamError {
    pub(crate) fn new(kind: UpstreamErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// With the code that the visitor sees.
    pub(crate) fn with_code(&self) -> String {
        let code = match self.kind {
            UpstreamErrorKind::ConnectionRefused => &Code::UPSTREAM_REFUSED,
            UpstreamErrorKind::ConnectTimeout => &Code::UPSTREAM_CONNECT_TIMEOUT,
            UpstreamErrorKind::ResponseTimeout => &Code::UPSTREAM_TIMEOUT,
            UpstreamErrorKind::ConnectionReset => &Code::UPSTREAM_RESET,
            UpstreamErrorKind::BadResponse => &Code::UPSTREAM_BAD_RESPONSE,
            UpstreamErrorKind::Tls => &Code::UPSTREAM_TLS,
            UpstreamErrorKind::Dns => &Code::UPSTREAM_DNS,
            UpstreamErrorKind::Unreachable => &Code::UPSTREAM_UNREACHABLE,
            _ => &Code::AGENT_PROTOCOL,
        };
        format!("{code} {}", self.message)
    }
}

/// A local server and its idle connections.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    label: Arc<str>,
    connector: connector::Connector,
    connect_timeout: Duration,
    protocol: Protocol,
    http2: http2::Http2,
    /// When a gRPC request found that it speaks no HTTP/2.
    refused_http2: Mutex<Option<Instant>>,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Upstream {
    /// A local server at `target`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`TargetError`] when the CA file can't be used.
    pub fn new(
        target: Target,
        trust: &Trust,
        connect_timeout: Duration,
        protocol: Protocol,
    ) -> Result<Self, TargetError> {
        let connector = connector::Connector::new(&target, trust)?;
        Ok(Self {
            label: target.to_string().into(),
            target,
            connector,
            connect_timeout,
            protocol,
            http2: http2::Http2::default(),
            refused_http2: Mutex::default(),
            idle: Mutex::default(),
        })
    }

    /// Whether a request is to go out with HTTP/2, if that can be. `grpc`: it would rather.
    pub(crate) fn wants_http2(&self, grpc: bool) -> bool {
        let refused = || self.refused_http2.lock().is_some_and(|at| at.elapsed() < ASK_AGAIN);
        match self.protocol {
            Protocol::Http2 => true,
            Protocol::Auto => grpc && !refused(),
            Protocol::Http1 => false,
        }
    }

    /// A place for a request on the connection with HTTP/2, and whether that was used before; `None`: it
    /// goes out with HTTP/1.1.
    ///
    /// # Errors
    /// [`UpstreamError`] when there can be no connection.
    pub(crate) async fn http2(
        &self,
    ) -> Result<Option<(h2::client::SendRequest<Bytes>, bool)>, UpstreamError> {
        let connect = self.within_timeout(self.connector.connect_http2());
        match self.http2.request(&self.target, self.connect_timeout, connect).await {
            Ok(requests) => Ok(Some(requests)),
            Err(error)
                if self.protocol == Protocol::Auto
                    && matches!(
                        error.kind,
                        UpstreamErrorKind::BadResponse | UpstreamErrorKind::Tls
                    ) =>
            {
                tracing::debug!(%error, "a gRPC request goes out with HTTP/1.1");
                *self.refused_http2.lock() = Some(Instant::now());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The version of HTTP that it is spoken to in.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// A connection of its own for HTTP/2 that nothing was said on.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn dial_http2(&self) -> Result<UpstreamIo, UpstreamError> {
        self.within_timeout(self.connector.connect_http2()).await
    }

    /// Where it is.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same as people write it.
    pub(crate) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// A connection that is ready for a request, and whether it was used before. `repeatable`: the
    /// request may be sent again if the connection turns out to be closed.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn connection(
        &self,
        repeatable: bool,
    ) -> Result<(Box<Connection>, bool), UpstreamError> {
        // The one used last is the one that is most likely still open.
        while let Some(mut idle) = self.take_idle() {
            if !repeatable && idle.since.elapsed() >= FRESH {
                self.idle.lock().push(idle);
                break;
            }
            if idle.connection.is_alive() {
                return Ok((idle.connection, true));
            }
        }
        Ok((self.connect().await?, false))
    }

    /// A new connection.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn connect(&self) -> Result<Box<Connection>, UpstreamError> {
        let socket = self.dial().await?;
        Ok(Box::new(Connection { conn: Conn::client(socket), limit: None, timer: None }))
    }

    async fn within_timeout(
        &self,
        connecting: impl Future<Output = Result<UpstreamIo, UpstreamError>>,
    ) -> Result<UpstreamIo, UpstreamError> {
        let timeout = self.connect_timeout;
        tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| {
            let message = format!("no connection to {} within {timeout:?}", self.target);
            Err(UpstreamError::new(UpstreamErrorKind::ConnectTimeout, message))
        })
    }

    /// A new connection that nothing was said on.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn dial(&self) -> Result<UpstreamIo, UpstreamError> {
        // Rare, and large: kept out of every request's future.
        Box::pin(self.within_timeout(self.connector.connect())).await
    }

    /// Connections that wait for a request.
    pub(crate) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    fn take_idle(&self) -> Option<Idle> {
        self.idle.lock().pop()
    }

    /// Keeps a connection for the next request, if it can take one.
    pub(crate) fn put_back(&self, mut connection: Box<Connection>) {
        if !connection.is_alive() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes connections that idled too long or that the local server has closed.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.idle
            .lock()
            .retain_mut(|idle| now - idle.since < IDLE_TIMEOUT && idle.connection.is_alive());
    }

    /// What a failed exchange means.
    pub(crate) fn failed(&self, fault: &ReadFault) -> UpstreamError {
        let target = &self.target;
        let (kind, what) = match fault {
            ReadFault::Head(_) | ReadFault::Body(_) => {
                (UpstreamErrorKind::BadResponse, "answered what is not valid HTTP")
            }
            ReadFault::Io(_) | ReadFault::Cut => (
                UpstreamErrorKind::ConnectionReset,
                "closed the connection before its answer was complete",
            ),
        };
        UpstreamError::new(kind, format!("{target} {what} ({fault})"))
    }

    /// What a failed exchange over HTTP/2 means.
    pub(crate) fn failed_http2(&self, error: &h2::Error) -> UpstreamError {
        let kind = match error.reason() {
            Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::HTTP_1_1_REQUIRED) => {
                UpstreamErrorKind::BadResponse
            }
            _ => UpstreamErrorKind::ConnectionReset,
        };
        UpstreamError::new(kind, format!("{} gave no answer over HTTP/2 ({error})", self.target))
    }

    /// The answer is no answer to what was asked.
    pub(crate) fn bad_answer(&self, why: &str) -> UpstreamError {
        let message = format!("{} answered what is not valid HTTP ({why})", self.target);
        UpstreamError::new(UpstreamErrorKind::BadResponse, message)
    }
}

/// A request's head as the local server gets it.
pub(crate) struct Head<'a> {
    pub(crate) method: &'a [u8],
    pub(crate) target: &'a [u8],
    /// End to end ones; `Host` among them.
    pub(crate) fields: &'a Fields,
    /// The token of a request to switch protocols, empty otherwise.
    pub(crate) upgrade: &'a [u8],
    /// The body is framed in chunks.
    pub(crate) chunked: bool,
}

impl Head<'_> {
    fn write(&self, out: &mut BytesMut) {
        head::put_request_line(self.method, self.target, out);
        self.fields.iter().for_each(|(name, value)| head::put_field(name, value, out));
        if self.chunked {
            head::put_field(b"Transfer-Encoding", b"chunked", out);
        }
        if !self.upgrade.is_empty() {
            head::put_field(b"Upgrade", self.upgrade, out);
            head::put_field(b"Connection", b"Upgrade", out);
        } else if self.fields.contains("te") {
            head::put_field(b"Connection", b"TE", out);
        }
        head::put_end(out);
    }
}

/// A request's body on its way to the local server.
pub(crate) struct Upload {
    body: Option<StreamBody>,
    chunked: bool,
    /// All of it is written, or the local server takes no more.
    written: bool,
    tap: Option<Tap>,
}

impl Upload {
    pub(crate) fn none() -> Self {
        Self { body: None, chunked: false, written: true, tap: None }
    }

    pub(crate) fn new(body: StreamBody, chunked: bool, tap: Option<Tap>) -> Self {
        Self { body: Some(body), chunked, written: false, tap }
    }

    /// Writes what there is. Ready when all is, or the local server takes no more; its answer may
    /// be here all the same.
    ///
    /// # Errors
    /// The body broke off: nobody waits for the answer.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<(), ReadError>> {
        let conn = &mut connection.conn;
        while let Some(body) = &mut self.body {
            if ready!(conn.poll_room(cx)).is_err() {
                self.body = None;
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(piece) = body.poll_piece(cx) else { break };
            let piece = piece?;
            if let Some(tap) = &self.tap {
                tap.sending(piece.as_ref());
            }
            if write(conn, piece, self.chunked) {
                (self.body, self.written) = (None, true);
            }
        }
        match ready!(conn.poll_flush(cx)) {
            Ok(()) if self.body.is_some() => Poll::Pending,
            Ok(()) => Poll::Ready(Ok(())),
            Err(_) => {
                (self.body, self.written) = (None, false);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Whether the request went out whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.written
    }
}

/// Queues a piece of a body; whether it was the last one.
fn write(conn: &mut Conn<UpstreamIo>, piece: Option<Piece>, chunked: bool) -> bool {
    let last = !matches!(piece, Some(Piece::Data(_)));
    match piece {
        Some(Piece::Data(data)) if chunked => conn.write_chunk(data),
        Some(Piece::Data(data)) => conn.write(data),
        Some(Piece::Trailers(fields)) if chunked => conn.write_last_chunk(fields.iter()),
        None if chunked => conn.write_last_chunk(std::iter::empty()),
        Some(Piece::Trailers(_)) | None => {}
    }
    last
}

/// Why a request that was sent has no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer<C> {
    /// Nobody waits for it any more.
    Cancelled(C),
    /// The request's body broke off.
    Aborted(ReadError),
    /// Its head did not come in time.
    TimedOut,
    /// The connection or the answer is at fault.
    Failed(ReadFault),
}

/// A connection to the local server; whoever has it polls it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) conn: Conn<UpstreamIo>,
    /// Of the request under way, until the time runs.
    limit: Option<Duration>,
    /// Kept from request to request.
    timer: Option<Deadline>,
}

impl Connection {
    /// What a local server sends without being asked is no answer to the next request (T09).
    fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.conn.poll_left(&mut cx).is_pending() && !self.conn.has_input()
    }

    /// Queues a request's head. The answer's head is due within `limit` of the request's end.
    pub(crate) fn begin(&mut self, head: &Head<'_>, limit: Option<Duration>) {
        self.limit = limit;
        if let (None, Some(timer)) = (limit, &mut self.timer) {
            timer.clear();
        }
        head.write(self.conn.head());
    }

    /// All of the request is sent: from now on its answer is waited for.
    fn expect_answer(&mut self, limit: Duration) {
        let due = tokio::time::Instant::now() + limit;
        match &mut self.timer {
            Some(timer) => timer.set(due),
            None => self.timer = Some(Deadline::at(due)),
        }
    }

    /// Sends what is to be sent and waits for the next head that comes back. `cancelled` ends the
    /// wait too.
    pub(crate) async fn answer<C>(
        &mut self,
        upload: &mut Upload,
        mut cancelled: impl FnMut(&mut Context<'_>) -> Poll<C>,
    ) -> Result<StatusLine, NoAnswer<C>> {
        poll_fn(|cx| {
            if let Poll::Ready(why) = cancelled(cx) {
                return Poll::Ready(Err(NoAnswer::Cancelled(why)));
            }
            match upload.poll(cx, self) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(NoAnswer::Aborted(error))),
                Poll::Ready(Ok(())) => {
                    if let Some(limit) = self.limit.take() {
                        self.expect_answer(limit);
                    }
                }
                Poll::Pending => {}
            }
            if let Poll::Ready(block) = self.conn.poll_head(cx) {
                let block = block.and_then(|block| block.ok_or(ReadFault::Cut));
                let line = block.and_then(|block| Ok(head::answer(&block)?));
                return Poll::Ready(line.map_err(NoAnswer::Failed));
            }
            match &mut self.timer {
                // Not the one of an earlier request.
                Some(timer) if self.limit.is_none() => {
                    timer.poll(cx).map(|()| Err(NoAnswer::TimedOut))
                }
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// The socket, after an answer 101, and what was read from it too far.
    pub(crate) fn into_raw(self) -> (UpstreamIo, Bytes) {
        self.conn.into_parts()
    }
}
