//! What a request leaves behind on its way: bytes that are there anyway, counts and times.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uniroute_shared::{
    headers,
    message::{Fields, Piece, Source},
};

use super::{Inspector, frames, spool::Spooled};

/// What the allocator and the lists need for a record beside its own bytes, about.
const OVERHEAD: usize = 160;
/// Informational answers that are kept.
const MAX_INFORMATIONAL: usize = 8;
/// Room that is made for an answer before it comes, at most, in bytes.
const MAX_EXPECTED: usize = 4096;

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Visitor,
    Upstream,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Open,
    Done,
    Failed,
}

/// A request that is kept.
#[derive(Debug)]
pub(crate) struct Record {
    /// Counts up.
    pub(crate) seq: u64,
    /// The agent's word for the tunnel.
    pub(crate) tunnel: Arc<str>,
    pub(crate) began: Instant,
    /// The round trip to the edge as it was measured last, in microseconds; 0: not yet.
    pub(crate) rtt_us: u32,
    /// The request that this one repeats.
    pub(crate) replay_of: Option<Box<str>>,
    state: Mutex<State>,
    /// Bytes that it is counted with. Changed under the state's lock only, until it has ended.
    charged: AtomicUsize,
    /// Forgotten: nothing more is kept of it.
    gone: AtomicBool,
}

/// What changes of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Counts changes that are shown.
    pub(crate) rev: u64,
    pub(crate) phase: Phase,
    /// 0: no answer yet.
    pub(crate) status: u16,
    /// The connection to the local server was used before.
    pub(crate) reused: bool,
    pub(crate) upstream: Option<Arc<str>>,
    /// When it had a connection of its own, was sent whole, was answered and ended.
    pub(crate) connected: Option<Instant>,
    pub(crate) sent: Option<Instant>,
    pub(crate) answered: Option<Instant>,
    pub(crate) ended: Option<Instant>,
    /// Bytes of `response.kept` that are the request's `StreamOpen`.
    open: usize,
    pub(crate) request: Body,
    /// One allocation has what every request has: its `StreamOpen`, the frame with the answer's head
    /// as it went to the edge, and the beginning of the answer's body.
    pub(crate) response: Body,
    pub(crate) frames: Option<Box<frames::Log>>,
    pub(crate) rare: Option<Box<Rare>>,
}

/// What few requests have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    pub(crate) informational: Vec<Bytes>,
    pub(crate) request_trailers: Option<Fields>,
    pub(crate) response_trailers: Option<Fields>,
    pub(crate) error: Option<Box<str>>,
}

/// A body, or what is kept of it.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// All bytes that passed.
    pub(crate) size: u64,
    /// Heads, and behind them its beginning.
    kept: Vec<u8>,
    heads: usize,
    pub(crate) spooled: Option<Box<Spooled>>,
}

impl Body {
    /// Its beginning.
    pub(crate) fn beginning(&self) -> &[u8] {
        &self.kept[self.heads..]
    }
}

impl State {
    /// The `StreamOpen` that it came with, as bytes.
    pub(crate) fn open(&self) -> &[u8] {
        &self.response.kept[..self.open]
    }

    /// The same, and the frame with the answer's head; empty: there is none yet.
    pub(crate) fn heads(&self) -> (Bytes, Bytes) {
        let mut open = Bytes::copy_from_slice(&self.response.kept[..self.response.heads]);
        let answer = open.split_off(self.open);
        (open, answer)
    }

    /// All bytes that are kept in memory, but messages.
    pub(crate) fn bytes(&self) -> [&[u8]; 2] {
        [&self.request.kept, &self.response.kept]
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl Record {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn charged(&self) -> usize {
        self.charged.load(Ordering::Relaxed)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Nothing more is kept of it; how much it was counted with.
    pub(super) fn forget(&self) -> usize {
        self.gone.store(true, Ordering::Relaxed);
        self.charged.swap(0, Ordering::Relaxed)
    }

    /// The same for one that is under way.
    pub(super) fn forget_open(&self) -> usize {
        let mut state = self.state.lock();
        let (request, response) = (state.request.size, state.response.size);
        state.open = 0;
        state.request = Body { size: request, ..Body::default() };
        state.response = Body { size: response, ..Body::default() };
        (state.frames, state.rare) = (None, None);
        self.forget()
    }

    /// Whether its id may be `id`, without decoding it.
    pub(super) fn may_be(&self, id: &[u8; 16]) -> bool {
        memchr::memmem::find(self.state().open(), id).is_some()
    }

    /// Microseconds from its beginning; 0: not yet.
    pub(crate) fn us(&self, at: Option<Instant>) -> u64 {
        at.map_or(0, |at| self.since(at))
    }

    fn since(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX).max(1)
    }
}

/// A request under way; when it is dropped before its end it has failed.
#[derive(Debug)]
pub(crate) struct Capture {
    tap: Tap,
    slot: usize,
    ended: bool,
}

/// Where its bytes are noted.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    inspector: Arc<Inspector>,
    record: Arc<Record>,
}

impl Capture {
    /// Of a request that came as `open`, over a session with this round trip.
    pub(crate) fn begin(
        inspector: &Arc<Inspector>,
        tunnel: &Arc<str>,
        open: &[u8],
        (began, rtt_us): (Instant, u32),
        replay_of: Option<&str>,
    ) -> Option<Self> {
        if !inspector.is_recording() && replay_of.is_none() {
            return None;
        }
        let (record, slot) = inspector.begin(|seq| {
            let mut kept = Vec::with_capacity(open.len() + inspector.expected());
            kept.extend_from_slice(open);
            Arc::new(Record {
                seq,
                tunnel: Arc::clone(tunnel),
                began,
                rtt_us,
                replay_of: replay_of.map(Into::into),
                charged: AtomicUsize::new(size_of::<Record>() + kept.capacity() + OVERHEAD),
                state: Mutex::new(State {
                    open: open.len(),
                    response: Body { kept, heads: open.len(), ..Body::default() },
                    ..State::default()
                }),
                gone: AtomicBool::new(false),
            })
        })?;
        Some(Self { tap: Tap { inspector: Arc::clone(inspector), record }, slot, ended: false })
    }

    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// All of it has passed, or why not.
    pub(crate) fn end(mut self, error: Option<String>) {
        self.finish(error.map(Into::into));
    }

    fn finish(&mut self, error: Option<Box<str>>) {
        self.ended = true;
        let ended = Instant::now();
        let mut state = self.tap.record.state.lock();
        state.ended = Some(ended);
        state.phase = if error.is_some() { Phase::Failed } else { Phase::Done };
        if let Some(error) = error {
            self.tap.charge(error.len());
            state.rare().error = Some(error);
        }
        state.rev += 1;
        for body in [&state.request, &state.response] {
            if let Some(spooled) = &body.spooled {
                spooled.end();
            }
        }
        self.tap.trim(&mut state);
        drop(state);
        self.tap.inspector.end(self.slot);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Some("the session to the edge ended".into()));
        }
    }
}

impl Tap {
    /// Its head was read.
    pub(crate) fn asked(&self, method: &[u8], fields: &Fields, upstream: Arc<str>) {
        let grpc = method == b"POST" && headers::is_grpc(fields);
        let mut state = self.record.state.lock();
        state.upstream = Some(upstream);
        if grpc {
            state.frames = Some(frames::Log::grpc());
        }
    }

    /// There is a connection for it, to this local server.
    pub(crate) fn connected(&self, reused: bool, upstream: &Arc<str>) {
        // Of one that was there already the time is none.
        let at = (!reused).then(Instant::now);
        let mut state = self.record.state.lock();
        (state.reused, state.connected) = (reused, at);
        if !state.upstream.as_ref().is_some_and(|known| Arc::ptr_eq(known, upstream)) {
            state.upstream = Some(Arc::clone(upstream));
        }
    }

    /// A head 1xx, as the frame for the edge.
    pub(crate) fn informed(&self, frame: &Bytes) {
        let mut state = self.record.state.lock();
        let known = state.rare.as_ref().map_or(0, |rare| rare.informational.len());
        if known < MAX_INFORMATIONAL && self.charge(frame.len()) {
            state.rare().informational.push(frame.clone());
        }
    }

    /// The answer's head, as the frame for the edge. `at`: when it came.
    pub(crate) fn answered(&self, status: u16, fields: &Fields, frame: &[u8], at: Instant) {
        let mut state = self.record.state.lock();
        (state.status, state.answered) = (status, Some(at));
        state.rev += 1;
        if self.append(&mut state.response, frame) {
            state.response.heads += frame.len();
        }
        if state.frames.is_none() {
            state.frames = frames::Log::of_answer(status, fields);
        }
        drop(state);
        self.inspector.note(&self.record);
    }

    /// A piece of a body.
    pub(crate) fn piece(&self, side: Side, piece: &Piece) {
        match piece {
            Piece::Data(data) => self.data(side, data),
            Piece::Trailers(fields) => {
                let length = fields.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
                let mut state = self.record.state.lock();
                if !self.charge(length) {
                    return;
                }
                let trailers = match side {
                    Side::Visitor => &mut state.rare().request_trailers,
                    Side::Upstream => &mut state.rare().response_trailers,
                };
                *trailers = Some(fields.clone());
            }
        }
    }

    fn data(&self, side: Side, data: &Bytes) {
        let mut state = self.record.state.lock();
        let body = match side {
            Side::Visitor => &mut state.request,
            Side::Upstream => &mut state.response,
        };
        let before = body.size;
        body.size += data.len() as u64;
        if self.record.is_gone() {
            return;
        }
        self.keep(body, before, data);
        if let Some(frames) = &mut state.frames {
            let at = || self.record.since(Instant::now());
            if frames.feed(side, data, at, |bytes| self.recharge(bytes)) {
                drop(state);
                self.inspector.note(&self.record);
            }
        }
    }

    fn keep(&self, body: &mut Body, before: u64, data: &Bytes) {
        let kept = body.kept.len() - body.heads;
        let whole = kept as u64 == before;
        let room = self.inspector.limits.max_body.saturating_sub(kept);
        if whole && data.len() <= room && self.append(body, data) {
            return;
        }
        if let Some(spool) = &self.inspector.spool {
            // From here on all of it goes to disk, what came before in front.
            if whole && body.spooled.is_none() {
                body.spooled = Some(Box::new(spool.begin(body.beginning())));
            }
            if let Some(spooled) = &body.spooled {
                spooled.push(data.clone());
            }
        }
        if whole && room > 0 {
            self.append(body, &data[..room.min(data.len())]);
        }
    }

    /// Whether there was room for it.
    fn append(&self, body: &mut Body, data: &[u8]) -> bool {
        let fits = data.len() <= body.kept.capacity() - body.kept.len();
        if (!fits && !self.grow(body, data.len())) || self.record.is_gone() {
            return false;
        }
        body.kept.extend_from_slice(data);
        true
    }

    /// Makes room for so many bytes more.
    #[cold]
    fn grow(&self, body: &mut Body, bytes: usize) -> bool {
        let (length, capacity) = (body.kept.len() + bytes, body.kept.capacity());
        // Exactly at first: most bodies come in one piece.
        let wanted = match body.beginning() {
            [] => length,
            _ => {
                let most = body.heads + self.inspector.limits.max_body;
                (capacity * 2).max(length).min(most.max(length))
            }
        };
        if !self.charge(wanted - capacity) {
            return false;
        }
        body.kept.reserve_exact(wanted - body.kept.len());
        true
    }

    /// Gives back room that was made for more than came, and learns from it.
    fn trim(&self, state: &mut State) {
        let kept = &mut state.response.kept;
        self.inspector.expect((kept.len() - state.open).min(MAX_EXPECTED));
        let (before, length) = (kept.capacity(), kept.len());
        if before - length <= length / 4 || self.record.is_gone() {
            return;
        }
        kept.shrink_to_fit();
        let less = before - kept.capacity();
        let charged = self.record.charged();
        self.record.charged.store(charged.saturating_sub(less), Ordering::Relaxed);
        self.inspector.give_room(less);
    }

    /// A piece of the request's body on its way to the local server; `None` behind the last one.
    pub(crate) fn sending(&self, piece: Option<&Piece>) {
        if let Some(piece) = piece {
            self.piece(Side::Visitor, piece);
        }
        if !matches!(piece, Some(Piece::Data(_))) {
            let at = Instant::now();
            self.record.state.lock().sent = Some(at);
        }
    }

    /// Counts bytes that are kept; whether there is room for them. Call it under the state's lock.
    fn charge(&self, bytes: usize) -> bool {
        if self.record.is_gone() || !self.inspector.take_room(bytes) {
            return false;
        }
        self.record.charged.store(self.record.charged() + bytes, Ordering::Relaxed);
        true
    }

    /// The same for what may also become less.
    fn recharge(&self, change: isize) -> bool {
        let bytes = change.unsigned_abs();
        if change >= 0 {
            return self.charge(bytes);
        }
        self.record.charged.store(self.record.charged() - bytes, Ordering::Relaxed);
        self.inspector.give_room(bytes);
        true
    }
}

/// Something that passes bytes on, looked at if it is captured.
pub(crate) struct Tapped<'a, T> {
    pub(crate) inner: T,
    pub(crate) tap: Option<&'a Tap>,
}

/// The answer's body.
impl<S: Source> Source for Tapped<'_, &mut S> {
    type Error = S::Error;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, S::Error>> {
        let polled = self.inner.poll_piece(cx);
        if let (Some(tap), Poll::Ready(Ok(Some(piece)))) = (self.tap, &polled) {
            tap.piece(Side::Upstream, piece);
        }
        polled
    }

    fn is_over(&self) -> bool {
        self.inner.is_over()
    }
}

/// A connection to the local server that has switched protocols.
impl<Io: AsyncRead + Unpin> AsyncRead for Tapped<'_, Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if let Some(tap) = self.tap {
            tap.passed(Side::Upstream, &buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Tapped<'_, Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        if let Some(tap) = self.tap {
            tap.passed(Side::Visitor, &bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Tap {
    /// Bytes of a connection that has switched protocols: nothing is kept of them but messages.
    pub(crate) fn passed(&self, side: Side, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.record.state.lock();
        match side {
            Side::Visitor => state.request.size += bytes.len() as u64,
            Side::Upstream => state.response.size += bytes.len() as u64,
        }
        if self.record.is_gone() {
            return;
        }
        let at = || self.record.since(Instant::now());
        if let Some(frames) = &mut state.frames
            && frames.feed(side, bytes, at, |bytes| self.recharge(bytes))
        {
            drop(state);
            self.inspector.note(&self.record);
        }
    }
}
