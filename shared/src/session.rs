//! A session with its streams, whatever carries it: the pair that everything above the carriers
//! uses.
//!
//! Over WebSocket a session is a mux connection ([`crate::mux`]) and, beside it, its lanes
//! ([`crate::lanes`]): more connections that long bodies move to. Over QUIC it is one connection with
//! native streams ([`crate::carrier::quic`]).

use std::{
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

pub use crate::mux::{OpenError, SessionError, Stats, StreamError};
use crate::{
    carrier::quic,
    lanes::{self, Lanes},
    mux,
};

/// A handle to a session; clones are the same session.
#[derive(Clone, Debug)]
pub struct Session(Carried);

#[derive(Clone, Debug)]
enum Carried {
    Mux(mux::Session),
    Quic(quic::Session),
}

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// WebSocket over TCP or TLS, with the mux on it.
    WebSocket,
    /// A QUIC connection.
    Quic,
}

impl Carrier {
    /// Every carrier there is.
    pub const ALL: [Self; 2] = [Self::WebSocket, Self::Quic];

    /// The word for programs: `websocket` or `quic`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Quic => "quic",
        }
    }
}

impl std::fmt::Display for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Calls the same method of whatever carries it.
macro_rules! carried {
    ($self:expr, $kind:ident, $it:ident => $call:expr) => {
        match $self {
            $kind::Mux($it) => $call,
            $kind::Quic($it) => $call,
        }
    };
}

impl Session {
    /// Opens a stream. Nothing is sent until its [`Sender`] sends.
    ///
    /// # Errors
    /// [`OpenError`]; the caller turns the request away.
    pub fn open(&self) -> Result<(Sender, Receiver), OpenError> {
        match &self.0 {
            Carried::Mux(session) => session.open().map(halves),
            Carried::Quic(session) => {
                let (sender, receiver) = session.open()?;
                Ok((Sender(SenderKind::Quic(sender)), Receiver(ReceiverKind::Quic(receiver))))
            }
        }
    }

    /// Long bodies may move to lanes of this session, at most `max`; see [`crate::lanes`]. QUIC has no
    /// need of them.
    pub fn allow_lanes(&self, max: usize) {
        if let Carried::Mux(session) = &self.0
            && max > 0
        {
            session.allow_lanes(max);
        }
    }

    /// Lanes that are open now.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.all_lanes().map_or(0, Lanes::count)
    }

    /// Those of them that end soon: nothing moves to them any more.
    #[must_use]
    pub fn lanes_leaving(&self) -> usize {
        self.all_lanes().map_or(0, Lanes::leaving)
    }

    /// Whether one more lane may join.
    #[must_use]
    pub fn takes_lane(&self) -> bool {
        self.all_lanes().is_some_and(Lanes::has_room)
    }

    /// Resolves when long bodies would like more lanes: with how many there should be.
    pub async fn lanes_wanted(&self) -> usize {
        match self.all_lanes() {
            Some(lanes) => lanes.wanted().await,
            None => std::future::pending().await,
        }
    }

    fn all_lanes(&self) -> Option<&Lanes> {
        match &self.0 {
            Carried::Mux(session) => session.lanes(),
            Carried::Quic(_) => None,
        }
    }

    /// Makes `lane` a lane of this session, and runs it until either ends. `closes_idle`: this side
    /// opened it, and closes it when it has carried nothing for a minute.
    pub async fn run_lane(&self, lane: &Self, acceptor: &mut Acceptor, closes_idle: bool) {
        match (&self.0, &lane.0, &mut acceptor.0) {
            (Carried::Mux(first), Carried::Mux(lane), AcceptorKind::Mux(acceptor)) => {
                lanes::run(first, lane, acceptor, closes_idle).await;
            }
            _ => lane.close(),
        }
    }

    /// Ends the session once everything queued is written. Streams that are still open then are
    /// cut.
    pub fn close(&self) {
        carried!(&self.0, Carried, session => session.close());
    }

    /// Ends the session now. `code` and `reason` are told to the peer.
    pub fn abort(&self, code: u16, reason: impl Into<String>) {
        carried!(&self.0, Carried, session => session.abort(code, reason));
    }

    /// Resolves when the session has ended, with the reason.
    pub async fn closed(&self) -> SessionError {
        carried!(&self.0, Carried, session => session.closed().await)
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        carried!(&self.0, Carried, session => session.is_closed())
    }

    /// What carries it.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        match self.0 {
            Carried::Mux(_) => Carrier::WebSocket,
            Carried::Quic(_) => Carrier::Quic,
        }
    }

    /// What a QUIC session's path was like so far.
    #[must_use]
    pub fn path(&self) -> Option<quic::Path> {
        match &self.0 {
            Carried::Mux(_) => None,
            Carried::Quic(session) => Some(session.path()),
        }
    }

    /// Asks the peer for a sign of life, and measures the round trip with it. QUIC has no such
    /// question: there a heartbeat has to follow.
    pub fn ping(&self) {
        carried!(&self.0, Carried, session => session.ping());
    }

    /// When bytes last came from the peer; any byte is a sign of life.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        carried!(&self.0, Carried, session => session.last_received())
    }

    /// Whether nothing is left but the control stream: no other stream, and nothing of a body that
    /// is still to be sent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.0 {
            Carried::Mux(session) => session.is_drained(),
            Carried::Quic(session) => session.stats().streams <= 1,
        }
    }

    /// Figures of this moment. Walks over the streams: not for the request path.
    #[must_use]
    pub fn stats(&self) -> Stats {
        carried!(&self.0, Carried, session => session.stats())
    }
}

impl From<mux::Session> for Session {
    fn from(session: mux::Session) -> Self {
        Self(Carried::Mux(session))
    }
}

impl From<quic::Session> for Session {
    fn from(session: quic::Session) -> Self {
        Self(Carried::Quic(session))
    }
}

/// Takes the streams that the peer opens.
#[derive(Debug)]
pub struct Acceptor(AcceptorKind);

#[derive(Debug)]
enum AcceptorKind {
    Mux(mux::Acceptor),
    Quic(quic::Acceptor),
}

impl Acceptor {
    /// The next stream, or `None` when the session has ended.
    pub async fn accept(&mut self) -> Option<(Sender, Receiver)> {
        match &mut self.0 {
            AcceptorKind::Mux(acceptor) => acceptor.accept().await.map(halves),
            AcceptorKind::Quic(acceptor) => {
                let (sender, receiver) = acceptor.accept().await?;
                Some((Sender(SenderKind::Quic(sender)), Receiver(ReceiverKind::Quic(receiver))))
            }
        }
    }
}

impl From<mux::Acceptor> for Acceptor {
    fn from(acceptor: mux::Acceptor) -> Self {
        Self(AcceptorKind::Mux(acceptor))
    }
}

impl From<quic::Acceptor> for Acceptor {
    fn from(acceptor: quic::Acceptor) -> Self {
        Self(AcceptorKind::Quic(acceptor))
    }
}

impl From<mux::Sender> for Sender {
    fn from(sender: mux::Sender) -> Self {
        Self(SenderKind::Mux(sender))
    }
}

impl From<mux::Receiver> for Receiver {
    fn from(receiver: mux::Receiver) -> Self {
        Self(ReceiverKind::Mux(receiver))
    }
}

fn halves((sender, receiver): (mux::Sender, mux::Receiver)) -> (Sender, Receiver) {
    (sender.into(), receiver.into())
}

/// The sending direction of a stream. Dropped before its last byte was sent, it ends the stream in
/// both directions.
#[derive(Debug)]
pub struct Sender(SenderKind);

#[derive(Debug)]
enum SenderKind {
    Mux(mux::Sender),
    Quic(quic::Sender),
}

impl Sender {
    /// Ready when the stream's queue has room.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        carried!(&mut self.0, SenderKind, sender => sender.poll_ready(cx))
    }

    /// Waits for room in the stream's queue.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub async fn ready(&mut self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Queues `bytes`, whatever room there is: call it after [`Sender::ready`], or for something
    /// short that ends the stream. `last`: nothing follows.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub fn send(&mut self, bytes: Bytes, last: bool) -> Result<(), StreamError> {
        carried!(&mut self.0, SenderKind, sender => sender.send(bytes, last))
    }

    /// Queues `prefix` and `bytes` behind each other, as [`Sender::send`] does.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub fn send_framed(
        &mut self,
        prefix: [u8; 4],
        bytes: Bytes,
        last: bool,
    ) -> Result<(), StreamError> {
        carried!(&mut self.0, SenderKind, sender => sender.send_framed(prefix, bytes, last))
    }

    /// Moves what is still to be sent to a lane, if there is one that this stream may move to; to be
    /// called between two frames. Returns whether it moved.
    pub fn move_to_lane(&mut self) -> bool {
        match &mut self.0 {
            SenderKind::Mux(sender) => lanes::move_to_lane(sender),
            SenderKind::Quic(_) => false,
        }
    }

    /// Lets the peer know of the stream before there is anything to send.
    pub fn announce(&mut self) {
        carried!(&mut self.0, SenderKind, sender => sender.announce());
    }

    /// Ready when the peer has ended the stream, or the session has ended.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        carried!(&mut self.0, SenderKind, sender => sender.poll_reset(cx))
    }
}

/// The receiving direction of a stream. Dropped before its end, it ends the stream in both
/// directions, unless [`Receiver::complete`] or [`Receiver::stop`] says otherwise.
#[derive(Debug)]
pub struct Receiver(ReceiverKind);

#[derive(Debug)]
enum ReceiverKind {
    Mux(mux::Receiver),
    Quic(quic::Receiver),
}

impl Receiver {
    /// The next bytes, as they came; `None` after the last ones.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        carried!(&mut self.0, ReceiverKind, receiver => receiver.poll_recv(cx))
    }

    /// The next bytes, as they came; `None` after the last ones.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The peer said that the rest comes on a lane: waits for its beginning, and returns what was
    /// read of it.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub(crate) fn poll_follow(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, StreamError>> {
        match &mut self.0 {
            ReceiverKind::Mux(receiver) => receiver.poll_follow(cx),
            // Nothing moves there.
            ReceiverKind::Quic(_) => Poll::Ready(Err(StreamError::Reset)),
        }
    }

    /// All that matters was read, though the peer's end may not be here yet: dropping the handle is
    /// no cancel.
    pub fn complete(&mut self) {
        carried!(&mut self.0, ReceiverKind, receiver => receiver.complete());
    }

    /// No more is wanted, but the sending direction goes on: what comes is thrown away, and the
    /// peer is told after our last byte.
    pub fn stop(self) {
        carried!(self.0, ReceiverKind, receiver => receiver.stop());
    }
}
