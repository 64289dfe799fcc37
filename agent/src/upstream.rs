//! The local server: where it is, and the connections to it.
//!
//! A pooled connection has no task of its own: whoever has a request on it polls it too. That saves
//! two wake-ups a request, and an idle connection costs nothing but its socket.

mod io;
mod target;

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use uniroute_proto::v1::UpstreamErrorKind;
use uniroute_shared::{deadline::Deadline, stream::StreamBody};

pub(crate) use self::io::UpstreamIo;
pub use self::target::{Place, Scheme, Target, TargetError, Trust};

/// Idle connections that are kept for one local server.
const MAX_IDLE: usize = 128;
/// How long one is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// What hyper may buffer of a connection in each direction, in bytes.
const MAX_BUFFER: usize = 256 * 1024;

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
}

/// A local server and its idle connections.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    connector: io::Connector,
    connect_timeout: Duration,
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
    ) -> Result<Self, TargetError> {
        let connector = io::Connector::new(&target, trust)?;
        Ok(Self { target, connector, connect_timeout, idle: Mutex::default() })
    }

    /// Where it is.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A connection that is ready for a request, and whether it was used before.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn connection(&self) -> Result<(Box<Connection>, bool), UpstreamError> {
        while let Some(mut idle) = self.take_idle() {
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
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake::<_, RequestBody>(TokioIo::new(socket))
            .await;
        let (sender, driver) = handshake.map_err(|e| self.failed(&e))?;
        Ok(Box::new(Connection { sender, driver, over: false, timer: None }))
    }

    /// A new connection that nothing was said on.
    ///
    /// # Errors
    /// [`UpstreamError`] when none can be made within the connect timeout.
    pub(crate) async fn dial(&self) -> Result<UpstreamIo, UpstreamError> {
        let connecting = tokio::time::timeout(self.connect_timeout, self.connector.connect());
        connecting.await.unwrap_or_else(|_| {
            let timeout = self.connect_timeout;
            let message = format!("no connection to {} within {timeout:?}", self.target);
            Err(UpstreamError::new(UpstreamErrorKind::ConnectTimeout, message))
        })
    }

    fn take_idle(&self) -> Option<Idle> {
        // The one used last is the one that is most likely still open.
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
    pub(crate) fn failed(&self, error: &hyper::Error) -> UpstreamError {
        let target = &self.target;
        let (kind, what) = if error.is_parse() || error.is_user() {
            (UpstreamErrorKind::BadResponse, "answered what is not valid HTTP")
        } else {
            (
                UpstreamErrorKind::ConnectionReset,
                "closed the connection before its answer was complete",
            )
        };
        UpstreamError::new(kind, format!("{target} {what} ({})", root_cause(error)))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Why a request that was sent has no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer<C> {
    /// Nobody waits for it any more.
    Cancelled(C),
    /// Its head did not come in time.
    TimedOut,
    /// The connection or the answer is at fault.
    Failed(hyper::Error),
}

/// A connection to the local server; whoever has it polls it.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: http1::SendRequest<RequestBody>,
    driver: http1::Connection<TokioIo<UpstreamIo>, RequestBody>,
    over: bool,
    /// Kept from request to request.
    timer: Option<Deadline>,
}

impl Connection {
    /// Moves bytes. A connection's end shows in its requests, so its own result says nothing more.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over && self.driver.poll_without_shutdown(cx).is_ready() {
            self.over = true;
        }
    }

    fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx);
        !self.over && self.sender.is_ready()
    }

    /// Sends `request` and waits for the answer's head, until `deadline` if there is one.
    /// `cancelled` ends the wait too.
    pub(crate) async fn send<C>(
        &mut self,
        request: Request<RequestBody>,
        deadline: Option<tokio::time::Instant>,
        mut cancelled: impl FnMut(&mut Context<'_>) -> Poll<C>,
    ) -> Result<Response<Incoming>, NoAnswer<C>> {
        let Self { sender, driver, over, timer } = self;
        match (deadline, &mut *timer) {
            (Some(deadline), Some(timer)) => timer.set(deadline),
            (Some(deadline), None) => *timer = Some(Deadline::at(deadline)),
            (None, Some(timer)) => timer.clear(),
            (None, None) => {}
        }
        let mut answer = std::pin::pin!(sender.send_request(request));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(why) = cancelled(cx) {
                return Poll::Ready(Err(NoAnswer::Cancelled(why)));
            }
            if !*over && driver.poll_without_shutdown(cx).is_ready() {
                *over = true;
            }
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(NoAnswer::Failed));
            }
            match timer {
                Some(timer) => timer.poll(cx).map(|()| Err(NoAnswer::TimedOut)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The socket, after an answer 101, and what was read from it too far.
    pub(crate) async fn into_raw(mut self: Box<Self>) -> (UpstreamIo, Bytes) {
        // The driver is done once the answer 101 is out of it.
        std::future::poll_fn(|cx| {
            self.drive(cx);
            if self.over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.driver.into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }
}

/// The body of a request to the local server.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// As it comes from the visitor.
    Stream(StreamBody),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = uniroute_shared::stream::ReadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// The body of the local server's answer, which polls its connection.
#[derive(Debug)]
pub(crate) struct AnswerBody<'a> {
    pub(crate) connection: &'a mut Connection,
    pub(crate) body: Incoming,
}

impl Body for AnswerBody<'_> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        this.connection.drive(cx);
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
