//! The mux without I/O: frames in, frames out, credit and fairness. The driver feeds it; stream
//! handles call it. Everything here runs under the session's one lock, briefly, and never blocks.

use std::{
    collections::{HashMap, VecDeque},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Config, OpenError, Receiver, SessionError, Side, StreamError,
    batch::Batch,
    budget::Budget,
    frame::{HEADER_LEN, Header, Type, flag},
};

/// Credit that each side has when a stream begins; fixed by the yamux specification, in bytes.
pub(super) const INITIAL_WINDOW: u32 = 256 * 1024;
/// A stream's first window update brings its window up to this at once: whoever reads half of the
/// first window is reading in earnest.
const SECOND_WINDOW: u32 = 1024 * 1024;
/// Queued bytes from which a sender has to wait. One chunk more may be queued on top of it.
const SEND_BUFFER: usize = 64 * 1024;
/// What one stream may put into a batch before the next one has its turn.
const QUANTUM: usize = 16 * 1024;
/// The same while no other stream has anything to send.
const LONE_QUANTUM: usize = 64 * 1024;
/// Received slices shorter than this are copied, since a slice keeps its whole read buffer alive.
const COPY_BELOW: usize = 2 * 1024;
/// Once a reader lags, slices shorter than this are copied too: at worst a slice then holds a
/// buffer of four times its length.
const LAGGING_COPY_BELOW: usize = 32 * 1024;
/// Queued bytes from which a reader counts as slow, and everything for it is copied to fit.
const SLOW_READER: usize = 64 * 1024;
/// Answers (pongs, resets) that may wait for a peer that does not read, before the session ends.
const MAX_ANSWERS: usize = 1024;
/// Control frames of any kind that may wait before a peer that opens streams counts as one that
/// does not read. This side's own resets are among them: all its streams may end at once.
const MAX_URGENT: usize = 8 * 1024;
/// Streams that a peer may open beyond what it is allowed, each reset, before the session ends.
const MAX_REFUSED: u32 = 64;
/// A window over [`SECOND_WINDOW`] half of which was read in no less time than this is halved.
const SLOW_HALF: Duration = Duration::from_secs(10);
/// How old the last measurement of the round trip may get while windows grow by it.
const RTT_AGE: Duration = Duration::from_secs(10);

/// Rests of bodies that may wait for their streams' beginning.
const MAX_EARLY: usize = 128;
/// How long one waits.
const EARLY: Duration = Duration::from_secs(10);

const READS_NO_ANSWERS: SessionError =
    SessionError::Protocol("the peer asks for answers and reads none");

/// A piece to send: a short prefix (the header of a frame above the mux) and the bytes it stands
/// for, so that a prefix costs no allocation.
#[derive(Debug, Default)]
struct Chunk {
    prefix: [u8; 4],
    prefix_from: u8,
    body: Bytes,
}

impl Chunk {
    fn prefix(&self) -> &[u8] {
        &self.prefix[usize::from(self.prefix_from)..]
    }

    fn len(&self) -> usize {
        self.prefix().len() + self.body.len()
    }
}

/// Where the sending direction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    /// FIN goes with the last queued byte.
    Finishing,
    Finished,
}

/// What the owner of the receiving direction still wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    /// The handle lives.
    Open,
    /// The handle is gone and had all it wanted; the FIN may follow.
    Complete,
    /// The handle is gone and wants no more; the peer is told once our direction has finished.
    Stopped,
}

#[derive(Debug)]
struct Stream {
    // What this side sends.
    queue: VecDeque<Chunk>,
    queued: usize,
    credit: u32,
    sending: Sending,
    sender_gone: bool,
    /// SYN or ACK, for the next frame.
    first: u16,
    ready: bool,
    send_waker: Option<Waker>,
    reset_waker: Option<Waker>,
    // What this side receives.
    received: Received,
    /// The most that the peer may have on its way or queued here.
    window: u32,
    /// What the peer may still send.
    allowance: u32,
    /// Read since the last window update.
    consumed: u32,
    /// Credit for the next window update.
    owed: u32,
    updating: bool,
    updated_at: Instant,
    receiving: Receiving,
    fin_received: bool,
    recv_waker: Option<Waker>,
    /// The peer ended the stream.
    reset: bool,
    /// Where the rest of what this side receives comes from; see [`crate::lanes`].
    rest: Option<Box<Rest>>,
}

/// The rest of a body, on a lane.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) receiver: Receiver,
    /// What was read of it already.
    pub(super) read: Bytes,
}

impl Stream {
    fn new(first: u16, now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            queued: 0,
            credit: INITIAL_WINDOW,
            sending: Sending::Open,
            sender_gone: false,
            first,
            ready: false,
            send_waker: None,
            reset_waker: None,
            received: Received::default(),
            window: INITIAL_WINDOW,
            allowance: INITIAL_WINDOW,
            consumed: 0,
            owed: 0,
            updating: false,
            updated_at: now,
            receiving: Receiving::Open,
            fin_received: false,
            recv_waker: None,
            reset: false,
            rest: None,
        }
    }

    fn can_send(&self) -> bool {
        match self.sending {
            _ if self.queued > 0 => self.credit > 0,
            Sending::Finishing => true,
            Sending::Open | Sending::Finished => false,
        }
    }

    fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.send_waker.take());
        wakers.extend(self.recv_waker.take());
        wakers.extend(self.reset_waker.take());
    }

    /// What the peer sends ended before its end. A reset after the FIN is about what this side
    /// sends.
    fn is_cut(&self) -> bool {
        self.reset && !self.fin_received
    }

    fn handles_gone(&self) -> bool {
        self.sender_gone && self.receiving != Receiving::Open
    }

    /// Nothing more can come of it: both handles are gone and both directions are over.
    fn is_over(&self) -> bool {
        let both_finished = self.sending == Sending::Finished && self.fin_received;
        self.handles_gone() && (self.reset || both_finished)
    }
}

/// Bytes that have come and were not read yet. Holds at most about four times their number in
/// memory, whatever the peer does: short pieces are gathered, long ones are kept as they came.
#[derive(Debug, Default)]
struct Received {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Received {
    fn push(&mut self, piece: Bytes) {
        let waiting = self.len;
        self.len += piece.len();
        if waiting == 0 && piece.len() >= COPY_BELOW {
            self.chunks.push_back(piece);
        } else if waiting == 0 {
            self.chunks.push_back(Bytes::copy_from_slice(&piece));
        } else if piece.len() < LAGGING_COPY_BELOW {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= LAGGING_COPY_BELOW {
                self.flush_tail();
            }
        } else {
            self.flush_tail();
            let fits = waiting < SLOW_READER;
            self.chunks.push_back(if fits { piece } else { Bytes::copy_from_slice(&piece) });
        }
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.flush_tail();
        }
        let chunk = self.chunks.pop_front()?;
        self.len -= chunk.len();
        Some(chunk)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Where the incoming bytes stand between frames.
#[derive(Debug)]
enum Input {
    Header {
        bytes: [u8; HEADER_LEN],
        filled: usize,
    },
    /// Payload of a data frame, for a stream that may be gone by now.
    Payload {
        stream: u32,
        left: u32,
        fin: bool,
    },
}

const EMPTY_HEADER: Input = Input::Header { bytes: [0; HEADER_LEN], filled: 0 };

/// Round trips, measured by pings.
#[derive(Debug, Default)]
struct RoundTrip {
    pending: Option<(u32, Instant)>,
    next: u32,
    measured: Option<Instant>,
    min: Option<Duration>,
}

/// Figures of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Streams that exist now; a body on a lane is part of the stream that it moved from.
    pub streams: usize,
    /// Lanes that are open beside the first connection; the figures below count them in.
    pub lanes: usize,
    /// Receive windows granted, in bytes.
    pub granted: u64,
    /// Bytes that were received and are not read yet.
    pub received_queued: usize,
    /// Bytes that are queued to be sent.
    pub send_queued: usize,
    /// The shortest round trip seen.
    pub min_rtt: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Core {
    config: Config,
    /// Boxed: an idle session has one stream, and the table room for several.
    streams: HashMap<u32, Box<Stream>, foldhash::fast::RandomState>,
    next_id: u32,
    input: Input,
    inbound: VecDeque<u32>,
    inbound_total: u32,
    refused: u32,
    ready: VecDeque<u32>,
    updates: VecDeque<u32>,
    urgent: VecDeque<[u8; HEADER_LEN]>,
    /// How many of those the peer asked for.
    answers: usize,
    writer: Option<Waker>,
    acceptor: Option<Waker>,
    watchers: Vec<Waker>,
    /// Windows of this connection's streams.
    granted: u64,
    /// What they may grow to, with those of the session's other connections.
    budget: Budget,
    round_trip: RoundTrip,
    go_away_received: bool,
    go_away_sent: bool,
    pub(super) last_received: Instant,
    /// Rests of streams that are not here yet.
    early: VecDeque<(Instant, u32, Box<Rest>)>,
    closed: Option<SessionError>,
    /// Everything queued before the close is to be written first.
    closing: bool,
}

impl Core {
    pub(super) fn new(config: Config) -> Self {
        let next_id = if config.side == Side::Client { 1 } else { 2 };
        let budget = config.process.part(config.session_window);
        Self {
            config,
            budget,
            streams: HashMap::default(),
            next_id,
            input: EMPTY_HEADER,
            inbound: VecDeque::new(),
            inbound_total: 0,
            refused: 0,
            ready: VecDeque::new(),
            updates: VecDeque::new(),
            urgent: VecDeque::new(),
            answers: 0,
            writer: None,
            acceptor: None,
            watchers: Vec::new(),
            granted: 0,
            round_trip: RoundTrip::default(),
            go_away_received: false,
            go_away_sent: false,
            last_received: Instant::now(),
            early: VecDeque::new(),
            closed: None,
            closing: false,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            streams: self.streams.len(),
            lanes: 0,
            granted: self.granted,
            received_queued: self.streams.values().map(|s| s.received.len).sum(),
            send_queued: self.streams.values().map(|s| s.queued).sum(),
            min_rtt: self.round_trip.min,
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    // ------------------------------------------------------------ the session

    pub(super) fn open(&mut self) -> Result<u32, OpenError> {
        if let Some(error) = &self.closed {
            return Err(OpenError::Closed(error.clone()));
        }
        if self.go_away_received || self.closing {
            return Err(OpenError::GoAway);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(OpenError::TooManyStreams);
        }
        let id = self.next_id;
        self.next_id = id.checked_add(2).ok_or(OpenError::Exhausted)?;
        // Nothing is read of it before something comes, so the clock need not be asked.
        self.streams.insert(id, Box::new(Stream::new(flag::SYN, self.last_received)));
        self.grant(INITIAL_WINDOW);
        Ok(id)
    }

    pub(super) fn poll_accept(&mut self, cx: &Context<'_>) -> Poll<Option<u32>> {
        if let Some(id) = self.inbound.pop_front() {
            return Poll::Ready(Some(id));
        }
        if self.closed.is_some() {
            return Poll::Ready(None);
        }
        register(&mut self.acceptor, cx);
        Poll::Pending
    }

    pub(super) fn poll_closed(&mut self, cx: &Context<'_>) -> Poll<SessionError> {
        if let Some(error) = &self.closed {
            return Poll::Ready(error.clone());
        }
        if !self.watchers.iter().any(|w| w.will_wake(cx.waker())) {
            self.watchers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(super) fn closed_with(&self) -> Option<SessionError> {
        self.closed.clone()
    }

    pub(super) fn wake_writer(&mut self) -> Option<Waker> {
        self.writer.take()
    }

    /// No new streams from the peer; open ones go on.
    pub(super) fn go_away(&mut self, code: u32) -> Option<Waker> {
        let header = Header { kind: Type::GoAway, flags: 0, stream: 0, length: code };
        self.urgent.push_back(header.encode());
        self.go_away_sent = true;
        self.writer.take()
    }

    pub(super) fn takes_streams(&self) -> bool {
        let leaving = self.go_away_received || self.go_away_sent || self.closing;
        self.closed.is_none() && !leaving
    }

    /// Lets the writer end the session once all that is queued is written.
    pub(super) fn close_when_written(&mut self) -> Option<Waker> {
        self.closing = true;
        self.writer.take()
    }

    /// Ends the session: every stream fails, every waiter wakes.
    pub(super) fn close(&mut self, error: SessionError) -> Vec<Waker> {
        let mut wakers = std::mem::take(&mut self.watchers);
        if self.closed.is_none() {
            self.closed = Some(error);
        }
        // Streams without a handle have nobody left to remove them.
        self.inbound.drain(..).for_each(|id| drop(self.streams.remove(&id)));
        self.streams.retain(|_, stream| !stream.handles_gone());
        let left = self.streams.values().map(|s| u64::from(s.window)).sum();
        self.budget.give_back(self.granted - left);
        self.granted = left;
        for stream in self.streams.values_mut() {
            stream.queue.clear();
            stream.queued = 0;
            stream.wake_all(&mut wakers);
        }
        self.early.clear();
        self.ready.clear();
        self.updates.clear();
        self.urgent.clear();
        wakers.extend(self.acceptor.take());
        wakers.extend(self.writer.take());
        wakers
    }

    /// Measures the round trip; the answer moves [`Stats::min_rtt`].
    pub(super) fn ping(&mut self, now: Instant) -> Option<Waker> {
        self.queue_ping(now);
        self.writer.take()
    }

    fn queue_ping(&mut self, now: Instant) {
        let value = self.round_trip.next;
        self.round_trip.next = value.wrapping_add(1);
        self.round_trip.pending = Some((value, now));
        let header = Header { kind: Type::Ping, flags: flag::SYN, stream: 0, length: value };
        self.urgent.push_back(header.encode());
    }

    // ------------------------------------------------------------ sending

    pub(super) fn poll_send_ready(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let stream = match self.usable(id) {
            Ok(stream) => stream,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if stream.queued < SEND_BUFFER {
            return Poll::Ready(Ok(()));
        }
        register(&mut stream.send_waker, cx);
        Poll::Pending
    }

    pub(super) fn send(
        &mut self,
        id: u32,
        prefix: Option<[u8; 4]>,
        body: Bytes,
        last: bool,
    ) -> Result<Option<Waker>, StreamError> {
        let stream = self.usable(id)?;
        if stream.sending != Sending::Open {
            return Err(StreamError::Finished);
        }
        let chunk = Chunk {
            prefix: prefix.unwrap_or_default(),
            prefix_from: if prefix.is_some() { 0 } else { 4 },
            body,
        };
        if chunk.len() > 0 {
            stream.queued += chunk.len();
            stream.queue.push_back(chunk);
        }
        if last {
            stream.sending = Sending::Finishing;
        }
        self.list_ready(id);
        Ok(self.writer.take())
    }

    /// A window update without credit carries the SYN alone.
    pub(super) fn announce(&mut self, id: u32) -> Option<Waker> {
        let stream = self.streams.get_mut(&id)?;
        if !stream.updating {
            stream.updating = true;
            self.updates.push_back(id);
        }
        self.writer.take()
    }

    pub(super) fn poll_reset(&mut self, id: u32, cx: &Context<'_>) -> Poll<StreamError> {
        match self.usable(id) {
            Err(error) => Poll::Ready(error),
            Ok(stream) => {
                register(&mut stream.reset_waker, cx);
                Poll::Pending
            }
        }
    }

    /// The sending handle is gone. Unfinished, it takes the stream with it.
    pub(super) fn drop_sender(&mut self, id: u32) -> Vec<Waker> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        stream.sender_gone = true;
        if stream.sending == Sending::Open && !stream.reset {
            return self.reset(id);
        }
        self.remove_if_over(id);
        Vec::new()
    }

    // ------------------------------------------------------------ receiving

    pub(super) fn poll_recv(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        now: impl FnOnce() -> Instant,
    ) -> (Poll<Result<Option<Bytes>, StreamError>>, Option<Waker>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return (Poll::Ready(Err(self.gone())), None);
        };
        if let Some(chunk) = stream.received.pop() {
            let waker = self.consumed(id, chunk.len(), now);
            return (Poll::Ready(Ok(Some(chunk))), waker);
        }
        if stream.fin_received {
            return (Poll::Ready(Ok(None)), None);
        }
        if stream.reset || self.closed.is_some() {
            return (Poll::Ready(Err(self.gone())), None);
        }
        register(&mut stream.recv_waker, cx);
        (Poll::Pending, None)
    }

    /// The rest of stream `id` comes with `rest`. Given back when there is no use for it.
    pub(super) fn go_on_with(
        &mut self,
        id: u32,
        rest: Box<Rest>,
        now: Instant,
    ) -> (Option<Box<Rest>>, Option<Waker>) {
        let over = self.closed.is_some();
        let of_peer = self.is_of_peer(id);
        match self.streams.get_mut(&id) {
            // The stream's own beginning may still be on its way, on another connection. Or it is
            // over, which can't be told apart here.
            None if !over && of_peer && self.early.len() < MAX_EARLY => {
                self.early.push_back((now, id, rest));
                (None, None)
            }
            Some(stream)
                if !over
                    && !stream.is_cut()
                    && stream.rest.is_none()
                    && stream.receiving != Receiving::Complete =>
            {
                stream.rest = Some(rest);
                (None, stream.recv_waker.take())
            }
            _ => (Some(rest), None),
        }
    }

    /// Gives back what came too early, and whose stream did not come.
    pub(super) fn forget_early(&mut self, now: Instant) -> Vec<Rest> {
        let late = |at: Instant| now.saturating_duration_since(at) > EARLY;
        let late = self.early.iter().take_while(|(at, ..)| late(*at)).count();
        self.early.drain(..late).map(|(.., rest)| *rest).collect()
    }

    fn is_of_peer(&self, id: u32) -> bool {
        (id % 2 == 1) != (self.config.side == Side::Client)
    }

    /// What [`Core::go_on_with`] brought for stream `id`.
    pub(super) fn poll_rest(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<Box<Rest>, StreamError>> {
        let gone = self.gone();
        match self.streams.get_mut(&id) {
            // What comes here is to come there.
            Some(stream) if stream.received.len > 0 => Poll::Ready(Err(StreamError::Reset)),
            Some(stream) if self.closed.is_none() && !stream.is_cut() => match stream.rest.take() {
                Some(rest) => Poll::Ready(Ok(rest)),
                None => {
                    register(&mut stream.recv_waker, cx);
                    Poll::Pending
                }
            },
            _ => Poll::Ready(Err(gone)),
        }
    }

    /// Whether stream `id` has ended in both directions, and not before the peer said a word on
    /// it.
    pub(super) fn is_lost_to_both(&self, id: u32) -> bool {
        let over = |stream: &Stream| self.closed.is_some() || stream.reset;
        self.streams.get(&id).is_none_or(|stream| over(stream) && stream.fin_received)
    }

    /// Streams there are, and bytes that wait to be sent.
    pub(super) fn backlog(&self) -> usize {
        let queued = self.streams.values().map(|stream| stream.queued).sum::<usize>();
        self.streams.len() * SEND_BUFFER + queued
    }

    /// The receiving handle is gone: `how` it wants what may still come to be treated.
    pub(super) fn drop_receiver(&mut self, id: u32, how: ReceiverEnd) -> Vec<Waker> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        let unread = stream.received.len;
        stream.received.clear();
        stream.receiving = match how {
            _ if stream.fin_received || stream.reset => Receiving::Complete,
            ReceiverEnd::Complete if unread == 0 => Receiving::Complete,
            ReceiverEnd::Stop => Receiving::Stopped,
            ReceiverEnd::Complete | ReceiverEnd::Cancel => return self.reset(id),
        };
        if stream.receiving == Receiving::Stopped && stream.sending == Sending::Finished {
            return self.reset(id);
        }
        self.remove_if_over(id);
        Vec::new()
    }

    /// `length` bytes were read: credit goes back in halves of the window, and the window grows
    /// while the reader empties half of it within two round trips (the shortest ever seen: under
    /// load the current one grows with the window).
    fn consumed(&mut self, id: u32, length: usize, now: impl FnOnce() -> Instant) -> Option<Waker> {
        let min_rtt = self.round_trip.min;
        let stream = self.streams.get_mut(&id)?;
        stream.consumed = stream.consumed.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        if stream.consumed < stream.window / 2 || stream.fin_received {
            return None;
        }
        let now = now();
        let first = stream.window == INITIAL_WINDOW;
        let quick = min_rtt.is_some_and(|rtt| now - stream.updated_at <= rtt * 2);
        let wish = if first { SECOND_WINDOW } else { stream.window.saturating_mul(2) };
        let wish = if first || quick { wish.min(self.config.max_window) } else { stream.window };
        let growth = self.budget.grow(wish.saturating_sub(stream.window).into());
        let growth = u32::try_from(growth).unwrap_or(0);
        // Half of a window took this long: a smaller one will do. What is not given back shrinks it.
        let slow = now - stream.updated_at >= SLOW_HALF && stream.window > SECOND_WINDOW;
        let shrink = if slow { stream.window / 2 } else { 0 };
        self.budget.give_back(shrink.into());
        stream.window = stream.window + growth - shrink;
        stream.owed = stream.owed.saturating_add(stream.consumed + growth - shrink);
        stream.consumed = 0;
        stream.updated_at = now;
        self.granted = self.granted + u64::from(growth) - u64::from(shrink);
        if !stream.updating {
            stream.updating = true;
            self.updates.push_back(id);
        }
        if self.round_trip.measured.is_none_or(|at| now - at > RTT_AGE)
            && self.round_trip.pending.is_none()
        {
            self.queue_ping(now);
        }
        self.writer.take()
    }

    /// What this session's windows may grow to.
    pub(super) fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// The peer may open as many streams as there may be, and `budget` counts for the windows.
    pub(super) fn become_lane(&mut self, budget: Budget) {
        self.config.inbound_total = u32::MAX;
        self.budget.give_back(self.granted);
        budget.take(self.granted);
        self.budget = budget;
    }

    /// A stream's first window.
    fn grant(&mut self, window: u32) {
        self.granted += u64::from(window);
        self.budget.take(window.into());
    }

    // ------------------------------------------------------------ frames out

    /// Fills `batch` with what is to be written now; pending if that is nothing. `Ready(false)`:
    /// the session is over and nothing will follow.
    pub(super) fn poll_gather(
        &mut self,
        cx: &Context<'_>,
        batch: &mut Batch,
        wakers: &mut Vec<Waker>,
    ) -> Poll<bool> {
        if self.closed.is_some() {
            return Poll::Ready(false);
        }
        self.answers = 0;
        while let Some(header) = self.urgent.pop_front() {
            batch.put(&header);
        }
        while let Some(id) = self.updates.pop_front() {
            self.put_update(id, batch);
        }
        while !batch.is_full() {
            let Some(id) = self.ready.pop_front() else { break };
            self.put_data(id, batch, wakers);
        }
        if !batch.is_empty() {
            return Poll::Ready(true);
        }
        if self.closing {
            return Poll::Ready(false);
        }
        register(&mut self.writer, cx);
        Poll::Pending
    }

    fn put_update(&mut self, id: u32, batch: &mut Batch) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.updating = false;
        let length = std::mem::take(&mut stream.owed);
        stream.allowance = stream.allowance.saturating_add(length);
        let flags = std::mem::take(&mut stream.first);
        batch.put(&Header { kind: Type::WindowUpdate, flags, stream: id, length }.encode());
    }

    fn put_data(&mut self, id: u32, batch: &mut Batch, wakers: &mut Vec<Waker>) {
        let quantum = if self.ready.is_empty() { LONE_QUANTUM } else { QUANTUM };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ready = false;
        if !stream.can_send() {
            return;
        }
        let credit = usize::try_from(stream.credit).unwrap_or(usize::MAX);
        let take = stream.queued.min(credit).min(quantum);
        let fin = stream.sending == Sending::Finishing && take == stream.queued;
        let flags = std::mem::take(&mut stream.first);
        let length = u32::try_from(take).unwrap_or(u32::MAX);
        let header =
            |flags, length| Header { kind: Type::Data, flags, stream: id, length }.encode();
        if take > 0 {
            batch.put(&header(flags, length));
            stream.credit -= length;
            stream.queued -= take;
            move_bytes(&mut stream.queue, take, batch);
        }
        if fin {
            // A frame of its own, in the same batch: hashicorp's library acts on a FIN before it
            // reads the payload of its frame, and a reader in between sees an early end.
            batch.put(&header(if take > 0 { flag::FIN } else { flags | flag::FIN }, 0));
        }
        if stream.queued < SEND_BUFFER {
            wakers.extend(stream.send_waker.take());
        }
        if fin {
            stream.sending = Sending::Finished;
            if stream.receiving == Receiving::Stopped && !stream.fin_received {
                batch.put(&reset_header(id));
                self.remove(id);
            } else {
                self.remove_if_over(id);
            }
        } else if stream.can_send() {
            stream.ready = true;
            self.ready.push_back(id);
        }
    }

    // ------------------------------------------------------------ frames in

    /// Takes what has arrived. Whoever is to wake because of it is added to `wakers`.
    pub(super) fn on_bytes(
        &mut self,
        mut bytes: Bytes,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        self.last_received = now;
        loop {
            match &mut self.input {
                Input::Header { bytes: header, filled } => {
                    let take = bytes.len().min(HEADER_LEN - *filled);
                    bytes.copy_to_slice(&mut header[*filled..*filled + take]);
                    *filled += take;
                    if *filled < HEADER_LEN {
                        return Ok(());
                    }
                    let header = Header::decode(*header)?;
                    self.input = EMPTY_HEADER;
                    self.on_header(header, now, wakers)?;
                }
                Input::Payload { stream, left, fin } => {
                    let take = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    if take == 0 && *left > 0 {
                        return Ok(());
                    }
                    let (id, fin) = (*stream, *fin);
                    *left -= u32::try_from(take).unwrap_or(0);
                    let done = *left == 0;
                    let payload = bytes.split_to(take);
                    if done {
                        self.input = EMPTY_HEADER;
                    }
                    self.on_payload(id, payload, fin && done, wakers);
                }
            }
        }
    }

    fn on_header(
        &mut self,
        header: Header,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        match header.kind {
            Type::Data | Type::WindowUpdate if header.stream == 0 => {
                Err(SessionError::Protocol("a frame for stream 0"))
            }
            Type::Data => self.on_data(header, now, wakers),
            Type::WindowUpdate => self.on_update(header, now, wakers),
            Type::Ping if header.has(flag::ACK) => {
                self.on_pong(header.length, now);
                Ok(())
            }
            Type::Ping => {
                let pong = Header { flags: flag::ACK, ..header };
                self.answer(pong.encode(), wakers)
            }
            Type::GoAway if header.length == 0 => {
                self.go_away_received = true;
                Ok(())
            }
            Type::GoAway => Err(SessionError::GoAway(header.length)),
        }
    }

    fn on_data(
        &mut self,
        header: Header,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        self.on_flags(header, now, wakers)?;
        match self.streams.get_mut(&header.stream) {
            // Reset a moment ago: what was on its way is of no use.
            None if header.length > self.config.max_window => {
                return Err(SessionError::Protocol("a frame over the largest window"));
            }
            None => {}
            Some(stream) => {
                if header.length > stream.allowance {
                    return Err(SessionError::Protocol("more data than the window allows"));
                }
                if stream.fin_received && header.length > 0 {
                    return Err(SessionError::Protocol("data after the end of a stream"));
                }
                stream.allowance -= header.length;
            }
        }
        let fin = header.has(flag::FIN);
        if header.length > 0 {
            self.input = Input::Payload { stream: header.stream, left: header.length, fin };
        } else if fin {
            self.on_payload(header.stream, Bytes::new(), true, wakers);
        }
        Ok(())
    }

    fn on_update(
        &mut self,
        header: Header,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        self.on_flags(header, now, wakers)?;
        let id = header.stream;
        if let Some(stream) = self.streams.get_mut(&id) {
            let credit = stream.credit.checked_add(header.length);
            stream.credit = credit.ok_or(SessionError::Protocol("a window update overflows"))?;
            self.list_ready(id);
            wakers.extend(self.writer.take());
        }
        if header.has(flag::FIN) {
            self.on_payload(id, Bytes::new(), true, wakers);
        }
        Ok(())
    }

    fn on_flags(
        &mut self,
        header: Header,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        if header.has(flag::SYN) {
            self.on_syn(header.stream, now, wakers)?;
        }
        if header.has(flag::RST)
            && let Some(stream) = self.streams.get_mut(&header.stream)
        {
            stream.reset = true;
            stream.queue.clear();
            stream.queued = 0;
            stream.wake_all(wakers);
            self.remove_if_over(header.stream);
        }
        Ok(())
    }

    fn on_syn(
        &mut self,
        id: u32,
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        if !self.is_of_peer(id) {
            return Err(SessionError::Protocol("a new stream with an id of the other side"));
        }
        if self.streams.contains_key(&id) {
            return Err(SessionError::Protocol("a new stream with an id in use"));
        }
        if self.inbound_total >= self.config.inbound_total
            || self.streams.len() >= self.config.max_streams
        {
            self.refused += 1;
            if self.config.inbound_total != u32::MAX && self.refused > MAX_REFUSED {
                return Err(SessionError::Protocol("too many streams opened"));
            }
            return self.answer(reset_header(id), wakers);
        }
        if self.urgent.len() >= MAX_URGENT {
            return Err(READS_NO_ANSWERS);
        }
        self.inbound_total = self.inbound_total.saturating_add(1);
        let early = self.early.iter().position(|(_, early, _)| *early == id);
        let mut stream = Box::new(Stream::new(flag::ACK, now));
        stream.rest = early.and_then(|early| self.early.remove(early)).map(|(.., rest)| rest);
        self.streams.insert(id, stream);
        self.grant(INITIAL_WINDOW);
        self.inbound.push_back(id);
        wakers.extend(self.acceptor.take());
        Ok(())
    }

    fn on_payload(&mut self, id: u32, payload: Bytes, fin: bool, wakers: &mut Vec<Waker>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.receiving {
            _ if payload.is_empty() => {}
            Receiving::Open => stream.received.push(payload),
            // The reader had it all, and the peer goes on: it would wait for credit for ever.
            Receiving::Complete => {
                wakers.extend(self.reset(id));
                return;
            }
            Receiving::Stopped => {}
        }
        if fin {
            stream.fin_received = true;
        }
        wakers.extend(stream.recv_waker.take());
        if fin {
            self.remove_if_over(id);
        }
    }

    fn on_pong(&mut self, value: u32, now: Instant) {
        if let Some((_, sent)) = self.round_trip.pending.take_if(|(v, _)| *v == value) {
            let rtt = now - sent;
            self.round_trip.measured = Some(now);
            self.round_trip.min = Some(self.round_trip.min.map_or(rtt, |min| min.min(rtt)));
        }
    }

    fn answer(
        &mut self,
        frame: [u8; HEADER_LEN],
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        if self.answers >= MAX_ANSWERS {
            return Err(READS_NO_ANSWERS);
        }
        self.answers += 1;
        self.urgent.push_back(frame);
        wakers.extend(self.writer.take());
        Ok(())
    }

    // ------------------------------------------------------------ bookkeeping

    fn usable(&mut self, id: u32) -> Result<&mut Stream, StreamError> {
        let gone = self.gone();
        match self.streams.get_mut(&id) {
            Some(stream) if self.closed.is_none() && !stream.reset => Ok(stream),
            _ => Err(gone),
        }
    }

    fn gone(&self) -> StreamError {
        self.closed.clone().map_or(StreamError::Reset, StreamError::Session)
    }

    fn list_ready(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ready || !stream.can_send() {
            return;
        }
        stream.ready = true;
        // The control stream, the first of the session, has its own priority.
        if id == 1 { self.ready.push_front(id) } else { self.ready.push_back(id) }
    }

    /// Ends a stream from this side, now.
    fn reset(&mut self, id: u32) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Some(stream) = self.streams.get_mut(&id) else { return wakers };
        stream.wake_all(&mut wakers);
        // A peer that never heard of the stream need not hear of its end.
        let known = stream.first & flag::SYN == 0;
        self.remove(id);
        if known && self.closed.is_none() {
            self.urgent.push_back(reset_header(id));
            wakers.extend(self.writer.take());
        }
        wakers
    }

    fn remove_if_over(&mut self, id: u32) {
        let closed = self.closed.is_some();
        if self.streams.get(&id).is_some_and(|s| s.is_over() || (closed && s.handles_gone())) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(stream) = self.streams.remove(&id) {
            self.granted -= u64::from(stream.window);
            self.budget.give_back(stream.window.into());
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.budget.give_back(self.granted);
    }
}

/// How a receiving handle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiverEnd {
    /// All that matters was read.
    Complete,
    /// No more is wanted, the sending direction goes on.
    Stop,
    /// The whole stream is given up.
    Cancel,
}

fn move_bytes(queue: &mut VecDeque<Chunk>, mut take: usize, batch: &mut Batch) {
    while take > 0
        && let Some(chunk) = queue.front_mut()
    {
        let prefix = chunk.prefix().len().min(take);
        batch.put(&chunk.prefix()[..prefix]);
        chunk.prefix_from += u8::try_from(prefix).unwrap_or(0);
        take -= prefix;
        let body = chunk.body.len().min(take);
        batch.put_bytes(chunk.body.split_to(body));
        take -= body;
        if chunk.len() == 0 {
            queue.pop_front();
        }
    }
}

fn reset_header(id: u32) -> [u8; HEADER_LEN] {
    Header { kind: Type::WindowUpdate, flags: flag::RST, stream: id, length: 0 }.encode()
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
