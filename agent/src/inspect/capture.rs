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

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Visitor,
    Upstream,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
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
    /// The `StreamOpen` that it came with, as bytes.
    pub(crate) open: Bytes,
    /// The request that this one repeats.
    pub(crate) replay_of: Option<Box<str>>,
    state: Mutex<State>,
    /// Bytes that it is counted with.
    charged: AtomicUsize,
    /// Forgotten: nothing more is kept of it.
    gone: AtomicBool,
}

/// What changes of it.
#[derive(Debug)]
pub(crate) struct State {
    /// Counts changes that are shown.
    pub(crate) rev: u64,
    pub(crate) phase: Phase,
    /// 0: no answer yet.
    pub(crate) status: u16,
    /// The frame with the answer's head, as it went to the edge.
    pub(crate) answer: Bytes,
    pub(crate) informational: Vec<Bytes>,
    pub(crate) upstream: Option<Arc<str>>,
    /// The connection to the local server was used before.
    pub(crate) reused: bool,
    /// Microseconds since it began; 0: not yet.
    pub(crate) connected_us: u64,
    pub(crate) sent_us: u64,
    pub(crate) answered_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) request: Body,
    pub(crate) response: Body,
    pub(crate) request_trailers: Option<Box<Fields>>,
    pub(crate) response_trailers: Option<Box<Fields>>,
    pub(crate) error: Option<Box<str>>,
    pub(crate) frames: Option<Box<frames::Log>>,
}

/// A body, or what is kept of it.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// All bytes that passed.
    pub(crate) size: u64,
    /// Its beginning.
    pub(crate) kept: Vec<u8>,
    pub(crate) spooled: Option<Spooled>,
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
        (state.request.kept, state.response.kept) = (Vec::new(), Vec::new());
        (state.request.spooled, state.response.spooled) = (None, None);
        state.frames = None;
        self.forget()
    }

    /// Whether its id may be `id`, without decoding it.
    pub(super) fn may_be(&self, id: &[u8; 16]) -> bool {
        memchr::memmem::find(&self.open, id).is_some()
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
    /// Of a request that came as `open`.
    pub(crate) fn begin(
        inspector: &Arc<Inspector>,
        tunnel: &Arc<str>,
        open: &[u8],
        began: Instant,
        replay_of: Option<&str>,
    ) -> Option<Self> {
        if !inspector.is_recording() && replay_of.is_none() {
            return None;
        }
        let (record, slot) = inspector.begin(|seq| Record {
            seq,
            tunnel: Arc::clone(tunnel),
            began,
            open: Bytes::copy_from_slice(open),
            replay_of: replay_of.map(Into::into),
            state: Mutex::new(State::default()),
            charged: AtomicUsize::new(size_of::<Record>() + open.len() + OVERHEAD),
            gone: AtomicBool::new(false),
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
        let record = &self.tap.record;
        let ended = record.since(Instant::now());
        let mut state = record.state.lock();
        state.ended_us = ended;
        state.phase = if error.is_some() { Phase::Failed } else { Phase::Done };
        if let Some(error) = error {
            self.tap.charge(error.len());
            state.error = Some(error);
        }
        state.rev += 1;
        for body in [&state.request, &state.response] {
            if let Some(spooled) = &body.spooled {
                spooled.end();
            }
        }
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
    pub(crate) fn connected(&self, reused: bool, upstream: Arc<str>) {
        // Of one that was there already the time is none.
        let at = if reused { 0 } else { self.record.since(Instant::now()) };
        let mut state = self.record.state.lock();
        (state.reused, state.connected_us) = (reused, at);
        state.upstream = Some(upstream);
    }

    /// A head 1xx, as the frame for the edge.
    pub(crate) fn informed(&self, frame: &Bytes) {
        let mut state = self.record.state.lock();
        if state.informational.len() < MAX_INFORMATIONAL && self.charge(frame.len()) {
            state.informational.push(frame.clone());
        }
    }

    /// The answer's head, as the frame for the edge.
    pub(crate) fn answered(&self, status: u16, fields: &Fields, frame: &Bytes) {
        let at = self.record.since(Instant::now());
        let mut state = self.record.state.lock();
        (state.status, state.answered_us) = (status, at);
        state.rev += 1;
        self.charge(frame.len() + OVERHEAD / 2);
        state.answer = frame.clone();
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
                if !self.charge(length) {
                    return;
                }
                let mut state = self.record.state.lock();
                let trailers = match side {
                    Side::Visitor => &mut state.request_trailers,
                    Side::Upstream => &mut state.response_trailers,
                };
                *trailers = Some(Box::new(fields.clone()));
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
        let whole = body.kept.len() as u64 == before;
        let room = self.inspector.limits.max_body.saturating_sub(body.kept.len());
        if whole && data.len() <= room && self.append(body, data) {
            return;
        }
        if let Some(spool) = &self.inspector.spool {
            // From here on all of it goes to disk, what came before in front.
            if whole && body.spooled.is_none() {
                body.spooled = spool.begin(&body.kept);
            }
            if let Some(spooled) = &body.spooled {
                spooled.push(data.clone());
            }
        }
        if whole && room > 0 {
            self.append(body, &data[..room.min(data.len())]);
        }
    }

    fn append(&self, body: &mut Body, data: &[u8]) -> bool {
        let length = body.kept.len() + data.len();
        let capacity = body.kept.capacity();
        if length > capacity {
            // Exactly at first: most bodies come in one piece.
            let wanted = match capacity {
                0 => length,
                _ => (capacity * 2).max(length).min(self.inspector.limits.max_body.max(length)),
            };
            if !self.charge(wanted - capacity) {
                return false;
            }
            body.kept.reserve_exact(wanted - body.kept.len());
        }
        body.kept.extend_from_slice(data);
        true
    }

    /// A piece of the request's body on its way to the local server; `None` behind the last one.
    pub(crate) fn sending(&self, piece: Option<&Piece>) {
        if let Some(piece) = piece {
            self.piece(Side::Visitor, piece);
        }
        if !matches!(piece, Some(Piece::Data(_))) {
            let at = self.record.since(Instant::now());
            self.record.state.lock().sent_us = at;
        }
    }

    /// Counts bytes that are kept; whether there is room for them.
    fn charge(&self, bytes: usize) -> bool {
        if self.record.is_gone() || !self.inspector.take_room(bytes) {
            return false;
        }
        self.record.charged.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// The same for what may also become less.
    fn recharge(&self, change: isize) -> bool {
        let bytes = change.unsigned_abs();
        if change >= 0 {
            return self.charge(bytes);
        }
        self.record.charged.fetch_sub(bytes, Ordering::Relaxed);
        self.inspector.give_room(bytes);
        true
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            rev: 0,
            phase: Phase::Open,
            status: 0,
            answer: Bytes::new(),
            informational: Vec::new(),
            upstream: None,
            reused: false,
            connected_us: 0,
            sent_us: 0,
            answered_us: 0,
            ended_us: 0,
            request: Body::default(),
            response: Body::default(),
            request_trailers: None,
            response_trailers: None,
            error: None,
            frames: None,
        }
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
