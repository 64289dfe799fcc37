//! The multiplexer: many streams over one carrier connection, in yamux's wire format.
//!
//! One [`Session`] is one carrier connection. It is driven by [`Driver::run`], which owns the
//! connection and ends when it does; everything else is a handle. A stream is a [`Sender`] and a
//! [`Receiver`], which may live in different tasks.
//!
//! ```text
//! Sender::send ─▶ core: queue, credit ─▶ fair batches ─▶ driver: one message, one write
//! Receiver::recv ◀─ core: received, credit back ◀─────── driver: one read, frames in place
//! ```
//!
//! What holds:
//! - A stream's memory is bounded: its send queue by 64 KiB and one chunk, its receive queue by its
//!   window, a session's windows together by [`Config::session_window`].
//! - Streams share the connection by turns of 16 KiB; control frames and the control stream go
//!   first.
//! - A peer that breaks the protocol, or never reads, ends its own session and nothing else.
//! - `Bytes` go in and come out; a byte is copied at most once (to be masked, or since a short slice
//!   would keep a large buffer alive).

mod batch;
mod budget;
mod core;
mod driver;
pub mod frame;

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use self::core::{Core, ReceiverEnd, Rest};
pub use self::{budget::Budget, core::Stats, driver::Driver};
pub use crate::carrier::ws::Side;
use crate::lanes::{Lanes, Wait};

/// Largest receive window of one stream, in bytes: 16 MiB carry 400 MB/s over 40 ms.
pub const MAX_WINDOW: u32 = 16 * 1024 * 1024;
/// What the windows of one session may grow to together, in bytes.
pub const SESSION_WINDOW: u64 = 64 * 1024 * 1024;
/// What the windows of all sessions of a process may grow to together, in bytes.
pub const PROCESS_WINDOW: u64 = 1024 * 1024 * 1024;
/// Streams that one session may have at a time.
pub const MAX_STREAMS: usize = 1024;

/// How a session behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which end this is: the client's streams have odd ids, and it masks what it sends.
    pub side: Side,
    /// Streams at a time, both ways together; [`Session::open`] refuses the next one.
    pub max_streams: usize,
    /// Streams that the peer may open in the whole life of the session.
    pub inbound_total: u32,
    /// Largest receive window of one stream, in bytes.
    pub max_window: u32,
    /// What the windows may grow to together, in bytes; windows that are there are never cut.
    pub session_window: u64,
    /// The same for all sessions that are given this budget.
    pub process: Budget,
    /// A peer that takes no byte for this long, while there are some, has gone.
    pub write_stall: Duration,
}

impl Config {
    /// The edge's end: it opens the streams; the agent may open the control stream only.
    #[must_use]
    pub fn edge() -> Self {
        Self {
            side: Side::Server,
            max_streams: MAX_STREAMS,
            inbound_total: 1,
            max_window: MAX_WINDOW,
            session_window: SESSION_WINDOW,
            process: Budget::new(PROCESS_WINDOW),
            write_stall: Duration::from_secs(30),
        }
    }

    /// The agent's end. It takes a few streams more than the edge opens: the edge may count one as
    /// over that the agent has not yet seen the end of.
    #[must_use]
    pub fn agent() -> Self {
        Self {
            side: Side::Client,
            max_streams: MAX_STREAMS + MAX_STREAMS / 4,
            inbound_total: u32::MAX,
            ..Self::edge()
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The connection ended, or the peer closed the WebSocket without a complaint.
    #[error("the connection ended")]
    Ended,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(String),
    /// The peer broke the mux protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The peer sent what is no frame.
    #[error(transparent)]
    Frame(#[from] frame::HeaderError),
    /// The peer broke the WebSocket protocol.
    #[error(transparent)]
    WebSocket(#[from] crate::carrier::ws::WsError),
    /// The peer closed the WebSocket with a complaint.
    #[error("the peer closed the connection: {reason} (code {code})")]
    Closed {
        /// RFC 6455, section 7.4.
        code: u16,
        /// In the peer's words.
        reason: String,
    },
    /// The peer ended the session with a yamux go-away that names an error.
    #[error("the peer ended the session with error {0}")]
    GoAway(u32),
    /// The peer took nothing for too long.
    #[error("the peer reads nothing")]
    WriteStalled,
    /// This side ended the session; the reason is for the peer too.
    #[error("{reason}")]
    Local {
        /// WebSocket close code.
        code: u16,
        /// In words.
        reason: String,
    },
}

/// Why a stream can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer ended it.
    #[error("the peer ended the stream")]
    Reset,
    /// This side already sent its last byte.
    #[error("the stream's sending direction is finished")]
    Finished,
    /// The session ended.
    #[error(transparent)]
    Session(SessionError),
}

/// Why no stream could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`Config::max_streams`] are open.
    #[error("the session has as many streams as it may")]
    TooManyStreams,
    /// The peer, or this side, takes no new streams.
    #[error("the session takes no new streams")]
    GoAway,
    /// All stream ids were used; a new session is needed.
    #[error("the session has used all stream ids")]
    Exhausted,
    /// The session ended.
    #[error(transparent)]
    Closed(SessionError),
}

struct Shared {
    core: Mutex<Core>,
    lanes: OnceLock<Box<Lanes>>,
}

impl Shared {
    /// One step of the core; whoever it has to wake is woken outside the lock.
    fn step<T>(&self, step: impl FnOnce(&mut Core) -> (T, Option<Waker>)) -> T {
        let (result, waker) = step(&mut self.core.lock());
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    fn step_all(&self, step: impl FnOnce(&mut Core) -> Vec<Waker>) {
        let wakers = step(&mut self.core.lock());
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A session and its driver over `io`; `early` are bytes of the connection that were read already.
pub fn new<Io>(config: Config, io: Io, early: Bytes) -> (Session, Acceptor, Driver<Io>) {
    let core = Mutex::new(Core::new(config.clone()));
    let shared = Arc::new(Shared { core, lanes: OnceLock::new() });
    let driver = Driver::new(config, Arc::clone(&shared), io, early);
    let session = Session { shared: Arc::clone(&shared) };
    (session, Acceptor { shared }, driver)
}

/// A handle to a session; clones are the same session.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Opens a stream. Nothing is sent until its [`Sender`] sends.
    ///
    /// # Errors
    /// [`OpenError`]; the caller turns the request away.
    pub fn open(&self) -> Result<(Sender, Receiver), OpenError> {
        let id = self.shared.core.lock().open()?;
        Ok(halves(&self.shared, id))
    }

    /// Long bodies may move to lanes of this session, at most `max`. Said once.
    pub(crate) fn allow_lanes(&self, max: usize) {
        self.shared.lanes.get_or_init(|| Box::new(Lanes::new(max)));
    }

    pub(crate) fn lanes(&self) -> Option<&Lanes> {
        self.shared.lanes.get().map(Box::as_ref)
    }

    /// It is a lane of `first` from here on: the peer may open streams, and the windows of both are
    /// of one budget.
    pub(crate) fn become_lane_of(&self, first: &Self) {
        let budget = first.shared.core.lock().budget();
        self.shared.core.lock().become_lane(budget);
    }

    /// Whether streams may be opened: neither side has said that it is to end.
    pub(crate) fn takes_streams(&self) -> bool {
        self.shared.core.lock().takes_streams()
    }

    /// How much this connection has to do, in bytes; a stream counts as much as it may queue.
    pub(crate) fn backlog(&self) -> usize {
        self.shared.core.lock().backlog()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The rest of what the stream `id` receives comes from `receiver`, after `read`.
    pub(crate) fn go_on_with(&self, id: u32, receiver: Receiver, read: Bytes) {
        let rest = Box::new(Rest { receiver, read });
        let (useless, waker) = self.shared.core.lock().go_on_with(id, rest, Instant::now());
        drop(useless);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Drops rests of bodies whose streams did not come.
    pub(crate) fn forget_early(&self) {
        let late = self.shared.core.lock().forget_early(Instant::now());
        drop(late);
    }

    /// Whether no more than one stream is left, and nothing of a body is on a lane any more.
    pub(crate) fn is_drained(&self) -> bool {
        let quiet = |session: &Self| session.shared.core.lock().streams() <= 1;
        quiet(self) && self.lanes().is_none_or(|lanes| lanes.open_now().iter().all(quiet))
    }

    /// Tells the peer to open no more streams.
    pub fn go_away(&self) {
        self.shared.step(|core| ((), core.go_away(0)));
    }

    /// Ends the session once everything queued is written, with a normal close. Streams that are
    /// still open then are cut.
    pub fn close(&self) {
        self.shared.step(|core| ((), core.close_when_written()));
    }

    /// Ends the session now. `code` and `reason` go into the WebSocket close frame.
    pub fn abort(&self, code: u16, reason: impl Into<String>) {
        let reason = reason.into();
        self.shared.step_all(|core| core.close(SessionError::Local { code, reason }));
    }

    /// Resolves when the session has ended, with the reason.
    pub async fn closed(&self) -> SessionError {
        poll_fn(|cx| self.shared.core.lock().poll_closed(cx)).await
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.core.lock().closed_with().is_some()
    }

    /// Measures the round trip once more; see [`Stats::min_rtt`].
    pub fn ping(&self) {
        self.shared.step(|core| ((), core.ping(Instant::now())));
    }

    /// When bytes last came from the peer; any byte is a sign of life.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.shared.core.lock().last_received
    }

    /// Figures of this moment. Walks over the streams: not for the request path.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.core.lock().stats();
        if let Some(lanes) = self.lanes() {
            for lane in lanes.open_now() {
                let lane = lane.shared.core.lock().stats();
                stats.lanes += 1;
                stats.granted += lane.granted;
                stats.received_queued += lane.received_queued;
                stats.send_queued += lane.send_queued;
            }
        }
        stats
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
    /// The next stream, or `None` when the session has ended.
    pub async fn accept(&mut self) -> Option<(Sender, Receiver)> {
        let id = poll_fn(|cx| self.shared.core.lock().poll_accept(cx)).await?;
        Some(halves(&self.shared, id))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

fn halves(shared: &Arc<Shared>, id: u32) -> (Sender, Receiver) {
    let sender = Sender { shared: Arc::clone(shared), id, lane: None, wait: None };
    let shared = Arc::clone(shared);
    (sender, Receiver { shared, id, end: ReceiverEnd::Cancel, lane: None })
}

/// The sending direction of a stream. Dropped before its last byte was sent, it ends the stream in
/// both directions.
pub struct Sender {
    shared: Arc<Shared>,
    id: u32,
    /// Where it goes on, once it has moved.
    lane: Option<Box<Self>>,
    /// Its wait for that.
    wait: Option<Box<Wait>>,
}

impl Sender {
    /// Ready when the stream's queue has room.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub fn poll_ready(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.lane {
            Some(lane) => lane.poll_ready(cx),
            None => self.shared.core.lock().poll_send_ready(self.id, cx),
        }
    }

    /// Waits for room in the stream's queue.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub async fn ready(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Queues `bytes`, whatever room there is: call it after [`Sender::ready`], or for something
    /// short that ends the stream. `last`: nothing follows.
    ///
    /// # Errors
    /// [`StreamError`] once nothing can be sent any more.
    pub fn send(&mut self, bytes: Bytes, last: bool) -> Result<(), StreamError> {
        self.queue(None, bytes, last)
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
        self.queue(Some(prefix), bytes, last)
    }

    fn queue(
        &mut self,
        prefix: Option<[u8; 4]>,
        bytes: Bytes,
        last: bool,
    ) -> Result<(), StreamError> {
        let Some(lane) = &mut self.lane else { return self.queue_here(prefix, bytes, last) };
        lane.queue(prefix, bytes, last)?;
        if last {
            self.queue_here(None, Bytes::new(), true)?;
        }
        Ok(())
    }

    fn queue_here(
        &self,
        prefix: Option<[u8; 4]>,
        bytes: Bytes,
        last: bool,
    ) -> Result<(), StreamError> {
        let waker = self.shared.core.lock().send(self.id, prefix, bytes, last)?;
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Lets the peer know of the stream before there is anything to send.
    pub fn announce(&mut self) {
        self.shared.step(|core| ((), core.announce(self.id)));
    }

    /// Ready when the peer has ended the stream, or the session has ended.
    pub fn poll_reset(&mut self, cx: &Context<'_>) -> Poll<StreamError> {
        if let Some(lane) = &mut self.lane
            && let Poll::Ready(error) = lane.poll_reset(cx)
        {
            return Poll::Ready(error);
        }
        self.shared.core.lock().poll_reset(self.id, cx)
    }

    /// Whether it was ended, and the peer has seen before that it was there.
    fn is_lost_to_both(&self) -> bool {
        self.shared.core.lock().is_lost_to_both(self.id)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The lanes that it may move to, and its wait for one; none once it has.
    pub(crate) fn lanes(&mut self) -> Option<(&Lanes, &mut Wait)> {
        let lanes = self.shared.lanes.get().filter(|_| self.lane.is_none())?;
        Some((lanes, self.wait.get_or_insert_default()))
    }

    /// What is still to be sent goes over `lane`; this stream ends after it.
    pub(crate) fn go_on_with(&mut self, lane: Self) {
        self.lane = Some(Box::new(lane));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let (Some(wait), Some(lanes)) = (self.wait.take(), self.shared.lanes.get()) {
            wait.finish(lanes);
        }
        if self.lane.as_ref().is_some_and(|lane| lane.is_lost_to_both()) {
            // The peer wants no more of it, or the lane is lost, which the peer has seen too. What
            // comes from the other side is not at an end with that. A peer to which the rest did
            // not come would wait for it: there the whole stream has to end.
            let _ = self.queue_here(None, Bytes::new(), true);
        }
        self.shared.step_all(|core| core.drop_sender(self.id));
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The receiving direction of a stream. Dropped before its end, it ends the stream in both
/// directions, unless [`Receiver::complete`] or [`Receiver::stop`] says otherwise.
pub struct Receiver {
    shared: Arc<Shared>,
    id: u32,
    end: ReceiverEnd,
    /// Where it goes on, once the peer has moved.
    lane: Option<Box<Self>>,
}

impl Receiver {
    /// The next bytes, as they came; `None` after the last ones.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match &mut self.lane {
            Some(lane) => lane.poll_recv(cx),
            None => self.shared.step(|core| core.poll_recv(self.id, cx, Instant::now)),
        }
    }

    /// The peer said that the rest comes on a lane: waits for its beginning, and returns what was
    /// read of it.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub(crate) fn poll_follow(&mut self, cx: &Context<'_>) -> Poll<Result<Bytes, StreamError>> {
        let rest = ready!(self.shared.core.lock().poll_rest(self.id, cx))?;
        let Rest { receiver, read } = *rest;
        self.lane = Some(Box::new(receiver));
        Poll::Ready(Ok(read))
    }

    /// The next bytes, as they came; `None` after the last ones.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was cut.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// All that matters was read, though the peer's FIN may not be here yet: dropping the handle is
    /// no cancel.
    pub fn complete(&mut self) {
        self.end = ReceiverEnd::Complete;
        if let Some(lane) = &mut self.lane {
            lane.complete();
        }
    }

    /// No more is wanted, but the sending direction goes on: what comes is thrown away, and the
    /// peer is told after our last byte.
    pub fn stop(mut self) {
        self.end = ReceiverEnd::Stop;
        // Ended with this stream, not before: the peer would take it for a cancel.
        if let Some(receiver) = self.lane.take() {
            let rest = Box::new(Rest { receiver: *receiver, read: Bytes::new() });
            drop(self.shared.core.lock().go_on_with(self.id, rest, Instant::now()));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.step_all(|core| core.drop_receiver(self.id, self.end));
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(capacity: usize) -> (Session, Acceptor, Session, Acceptor) {
        let (a, b) = tokio::io::duplex(capacity);
        let (client, client_accept, mut driver) = new(Config::agent(), a, Bytes::new());
        tokio::spawn(async move { driver.run().await });
        let (server, server_accept, mut driver) = new(Config::edge(), b, Bytes::new());
        tokio::spawn(async move { driver.run().await });
        (client, client_accept, server, server_accept)
    }

    async fn read_all(receiver: &mut Receiver) -> Result<Vec<u8>, StreamError> {
        let mut all = Vec::new();
        while let Some(chunk) = receiver.recv().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    async fn send_all(sender: &mut Sender, mut bytes: Bytes) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            sender.ready().await?;
            let piece = bytes.split_to(bytes.len().min(30_000));
            sender.send(piece, bytes.is_empty())?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn bytes_come_through_both_ways() {
        let (_client, mut inbound, server, _) = pair(7_000);
        let echo = tokio::spawn(async move {
            while let Some((mut sender, mut receiver)) = inbound.accept().await {
                tokio::spawn(async move {
                    while let Some(chunk) = receiver.recv().await.unwrap() {
                        sender.ready().await.unwrap();
                        sender.send_framed([1, 2, 3, 4], chunk, false).unwrap();
                    }
                    sender.send(Bytes::new(), true).unwrap();
                });
            }
        });
        let body = Bytes::from_iter((0..3_000_000_u32).map(|i| i.to_le_bytes()[1]));
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (mut sender, mut receiver) = server.open().unwrap();
            let body = body.clone();
            tasks.push(tokio::spawn(async move {
                let sending = send_all(&mut sender, body.clone());
                let (sent, got) = tokio::join!(sending, read_all(&mut receiver));
                sent.unwrap();
                assert!(got.unwrap().len() > body.len());
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(server.stats().streams, 0);
        assert_eq!(server.stats().granted, 0);
        server.close();
        assert_eq!(
            server.closed().await,
            SessionError::Local { code: 1000, reason: "done".into() }
        );
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_half_cancels_the_stream() {
        let (_client, mut inbound, server, _) = pair(7_000);
        let (mut sender, receiver) = server.open().unwrap();
        sender.send(Bytes::from_static(b"x"), false).unwrap();
        let (mut far_sender, mut far) = inbound.accept().await.unwrap();
        assert_eq!(far.recv().await.unwrap().unwrap(), "x");
        drop(receiver);
        assert_eq!(far.recv().await, Err(StreamError::Reset));
        assert_eq!(poll_fn(|cx| far_sender.poll_reset(cx)).await, StreamError::Reset);
        assert_eq!(sender.ready().await, Err(StreamError::Reset));
    }

    #[tokio::test]
    async fn an_aborted_session_says_why() {
        let (client, _i, server, _a) = pair(7_000);
        server.abort(4001, "no");
        let closed = SessionError::Closed { code: 4001, reason: "no".into() };
        assert_eq!(client.closed().await, closed);
    }
}
