//! A stream over QUIC: two handles, and what is left to do once they are gone.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{ReadError, RecvStream, SendStream, Side, VarInt, WriteError};
use uniroute_proto::{codec, v1::ControlFrame};

use super::{RESERVE, SEND_WINDOW, Shared};
use crate::mux::StreamError;

/// Bytes of a stream that go before those of older ones.
pub const YOUNG: usize = 64 * 1024;
/// A stream that had nothing to send for this long counts as young again.
const PAUSE: Duration = Duration::from_millis(250);
/// Queued bytes from which a sender has to wait. One chunk more may be queued on top of it.
const SEND_BUFFER: usize = 64 * 1024;
/// A body shorter than this is copied behind its prefix: one chunk costs quinn less than two.
const JOIN_BELOW: usize = 1024;
/// Received pieces, each a packet's at most, that one call hands on together.
const PIECES: usize = 32;

/// What quinn sends first, by kind of stream: higher goes before lower.
mod priority {
    pub(super) const CONTROL: i32 = 1;
    /// quinn's default: a young stream costs no call.
    pub(super) const YOUNG: i32 = 0;
    pub(super) const BULK: i32 = -1;
}

/// Of resets and stops. The protocol knows one kind of cancel.
const CANCELLED: VarInt = VarInt::from_u32(0);

pub(super) struct Stream {
    id: u64,
    shared: Arc<Shared>,
    state: Mutex<State>,
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
    Over,
}

/// Which of quinn's queues a stream is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Control,
    /// What is left until it counts as bulk, in bytes.
    Young(usize),
    Bulk,
}

type Watch = Pin<Box<dyn Future<Output = StreamError> + Send>>;

struct State {
    // What this side sends.
    send: SendStream,
    queue: VecDeque<Bytes>,
    queued: usize,
    sending: Sending,
    class: Class,
    written_at: Instant,
    /// Why nothing more can be sent.
    send_cut: Option<StreamError>,
    send_waker: Option<Waker>,
    reset_waker: Option<Waker>,
    /// Resolves when the peer stops the stream; there once somebody wants to know.
    watch: Option<Watch>,
    sender_gone: bool,
    /// The peer has all that was sent, or there is no more to deliver.
    delivered: bool,
    /// The driver goes on with it.
    handed: bool,
    tail: Option<Waker>,
    // What this side receives.
    recv: RecvStream,
    receiving: Receiving,
    fin: bool,
    recv_cut: Option<StreamError>,
    recv_waker: Option<Waker>,
}

/// Who is to be woken once the lock is gone.
#[derive(Default)]
struct Wake([Option<Waker>; 4]);

impl Wake {
    fn now(self) {
        self.0.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Both handles of a stream that quinn has opened or accepted.
pub(super) fn halves(
    shared: &Arc<Shared>,
    send: SendStream,
    recv: RecvStream,
) -> (Sender, Receiver) {
    let id = send.id().index() << 1 | u64::from(send.id().initiator() == Side::Server);
    let control = send.id().initiator() == Side::Client && send.id().index() == 0;
    if control {
        let _ = send.set_priority(priority::CONTROL);
    }
    let state = State {
        send,
        queue: VecDeque::new(),
        queued: 0,
        sending: Sending::Open,
        class: if control { Class::Control } else { Class::Young(YOUNG) },
        written_at: Instant::now(),
        send_cut: None,
        send_waker: None,
        reset_waker: None,
        watch: None,
        sender_gone: false,
        delivered: false,
        handed: false,
        tail: None,
        recv,
        receiving: Receiving::Open,
        fin: false,
        recv_cut: None,
        recv_waker: None,
    };
    let stream = Arc::new(Stream { id, shared: Arc::clone(shared), state: Mutex::new(state) });
    shared.streams.lock().insert(id, Arc::downgrade(&stream));
    let sender = Sender { stream: Arc::clone(&stream) };
    (sender, Receiver { stream, end: ReceiverEnd::Cancel })
}

impl Drop for Stream {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.shared.queued.fetch_sub(state.queued, Ordering::Relaxed);
        self.shared.streams.lock().remove(&self.id);
    }
}

impl Stream {
    /// The session has ended: whoever waits sees that.
    pub(super) fn wake_all(&self) {
        let mut state = self.state.lock();
        let wake = [state.send_waker.take(), state.reset_waker.take(), state.recv_waker.take()];
        drop(state);
        wake.into_iter().flatten().for_each(Waker::wake);
    }

    /// The session has ended: what fills the path to the peer is given up.
    pub(super) fn cut_bulk(&self) {
        let mut state = self.state.lock();
        if state.queued > 0 || state.class == Class::Bulk {
            let wake = state.cancel(&self.shared);
            drop(state);
            wake.now();
        }
    }
}

impl State {
    fn usable(&self, shared: &Shared) -> Result<(), StreamError> {
        if let Some(ended) = shared.ended.get() {
            return Err(StreamError::Session(ended.clone()));
        }
        self.send_cut.clone().map_or(Ok(()), Err)
    }

    fn push(&mut self, shared: &Shared, chunk: Bytes) {
        if !chunk.is_empty() {
            self.queued += chunk.len();
            shared.queued.fetch_add(chunk.len(), Ordering::Relaxed);
            self.queue.push_back(chunk);
        }
    }

    fn forget_queue(&mut self, shared: &Shared) {
        shared.queued.fetch_sub(self.queued, Ordering::Relaxed);
        self.queue.clear();
        self.queued = 0;
    }

    /// Gives quinn what is queued. Ready when it has all of it, and the FIN if there is one.
    fn poll_flush(
        &mut self,
        shared: &Shared,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        while self.queued > 0 {
            self.rejuvenate();
            let chunks = self.next_chunks();
            let written = match write(&mut self.send, &mut self.queue, chunks, cx) {
                Poll::Pending if self.class != Class::Bulk => {
                    // Bulk may have filled the window; if something else is in the way, this
                    // changes nothing.
                    shared.connection.set_send_window(SEND_WINDOW + RESERVE);
                    let again = write(&mut self.send, &mut self.queue, chunks, cx);
                    shared.connection.set_send_window(SEND_WINDOW);
                    ready!(again)?
                }
                written => ready!(written)?,
            };
            self.queued -= written;
            shared.queued.fetch_sub(written, Ordering::Relaxed);
            self.grow_old(written);
        }
        if self.sending == Sending::Finishing {
            // Fails only for a stream that the peer has stopped, and that is seen elsewhere.
            let _ = self.send.finish();
            self.sending = Sending::Finished;
            if self.receiving == Receiving::Stopped {
                self.stop_receiving();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How many chunks of the queue may be written together: a young stream's next bytes only, so
    /// that a long chunk does not go first as a whole.
    fn next_chunks(&mut self) -> usize {
        let Class::Young(left) = self.class else { return usize::MAX };
        if let Some(first) = self.queue.front_mut()
            && first.len() > left
        {
            let rest = first.split_off(left);
            self.queue.insert(1, rest);
        }
        1
    }

    fn rejuvenate(&mut self) {
        let old = match self.class {
            Class::Control => return,
            Class::Young(left) => left < YOUNG,
            Class::Bulk => true,
        };
        if old && self.written_at.elapsed() >= PAUSE {
            if self.class == Class::Bulk {
                let _ = self.send.set_priority(priority::YOUNG);
            }
            self.class = Class::Young(YOUNG);
        }
    }

    fn grow_old(&mut self, written: usize) {
        self.written_at = Instant::now();
        if let Class::Young(left) = self.class {
            self.class = match left.checked_sub(written) {
                Some(left @ 1..) => Class::Young(left),
                _ => {
                    let _ = self.send.set_priority(priority::BULK);
                    Class::Bulk
                }
            };
        }
    }

    /// The peer, or the connection, takes nothing more.
    fn cut_sending(&mut self, shared: &Shared, error: StreamError) -> Wake {
        let _ = self.send.reset(CANCELLED);
        self.forget_queue(shared);
        self.send_cut.get_or_insert(error);
        Wake([self.send_waker.take(), self.reset_waker.take(), self.tail.take(), None])
    }

    fn stop_receiving(&mut self) {
        self.receiving = Receiving::Over;
        let _ = self.recv.stop(CANCELLED);
    }

    /// This side ends the stream, both ways.
    fn cancel(&mut self, shared: &Shared) -> Wake {
        let mut wake = self.cut_sending(shared, StreamError::Reset);
        if !self.fin {
            let _ = self.recv.stop(CANCELLED);
        }
        if self.receiving != Receiving::Open {
            self.receiving = Receiving::Over;
        }
        self.recv_cut.get_or_insert(StreamError::Reset);
        wake.0[3] = self.recv_waker.take();
        wake
    }

    fn write_failed(&mut self, shared: &Shared, error: WriteError) -> Wake {
        let error = match error {
            WriteError::ConnectionLost(error) => StreamError::Session(shared.error(error)),
            _ => StreamError::Reset,
        };
        self.cut_sending(shared, error)
    }

    fn poll_read(
        &mut self,
        shared: &Shared,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        if self.fin {
            return Poll::Ready(Ok(None));
        }
        if let Some(ended) = shared.cut() {
            return Poll::Ready(Err(StreamError::Session(ended.clone())));
        }
        if let Some(cut) = &self.recv_cut {
            return Poll::Ready(Err(cut.clone()));
        }
        let mut pieces = [const { Bytes::new() }; PIECES];
        let read = {
            let reading = pin!(self.recv.read_chunks(&mut pieces));
            ready!(reading.poll(cx))
        };
        match read {
            Ok(Some(count)) => Poll::Ready(Ok(Some(join(&mut pieces[..count])))),
            Ok(None) => {
                self.fin = true;
                Poll::Ready(Ok(None))
            }
            Err(error) => {
                let error = match error {
                    ReadError::ConnectionLost(error) => StreamError::Session(shared.error(error)),
                    _ => StreamError::Reset,
                };
                self.recv_cut = Some(error.clone());
                Poll::Ready(Err(error))
            }
        }
    }

    fn handles_gone(&self) -> bool {
        self.sender_gone && self.receiving != Receiving::Open
    }

    /// Whether the peer has everything that was sent; without waiting.
    fn is_delivered(&self) -> bool {
        if self.send_cut.is_some() {
            return true;
        }
        let stopped = pin!(self.send.stopped());
        self.sending == Sending::Finished
            && stopped.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Whether there is something left to do after the handles have gone.
    fn has_tail(&self) -> bool {
        self.handles_gone()
            && !self.handed
            && (self.receiving == Receiving::Complete || !self.is_delivered())
    }
}

/// Writes up to `chunks` of the queue; says how many bytes went.
fn write(
    send: &mut SendStream,
    queue: &mut VecDeque<Bytes>,
    chunks: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, WriteError>> {
    let written = {
        let (first, _) = queue.as_mut_slices();
        let chunks = chunks.min(first.len());
        let writing = pin!(send.write_chunks(&mut first[..chunks]));
        ready!(writing.poll(cx))?
    };
    queue.drain(..written.chunks);
    Poll::Ready(Ok(written.bytes))
}

/// One chunk of several pieces. A piece is a slice of the datagram it came in, which a copy lets go.
fn join(pieces: &mut [Bytes]) -> Bytes {
    if let [piece] = pieces {
        return std::mem::take(piece);
    }
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| joined.put_slice(piece));
    joined.freeze()
}

/// The sending direction.
pub struct Sender {
    stream: Arc<Stream>,
}

impl Sender {
    pub(crate) fn poll_ready(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut state = self.stream.state.lock();
        state.usable(&self.stream.shared)?;
        if state.queued < SEND_BUFFER {
            return Poll::Ready(Ok(()));
        }
        register(&mut state.send_waker, cx);
        Poll::Pending
    }

    pub(crate) fn send(&mut self, bytes: Bytes, last: bool) -> Result<(), StreamError> {
        self.queue(None, bytes, last)
    }

    pub(crate) fn send_framed(
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
        let Stream { shared, state, .. } = &*self.stream;
        let mut state = state.lock();
        state.usable(shared)?;
        if state.sending != Sending::Open {
            return Err(StreamError::Finished);
        }
        match prefix {
            Some(prefix) if bytes.len() < JOIN_BELOW => {
                state.push(shared, [&prefix[..], &bytes].concat().into());
            }
            Some(prefix) => {
                state.push(shared, Bytes::copy_from_slice(&prefix));
                state.push(shared, bytes);
            }
            None => state.push(shared, bytes),
        }
        if last {
            state.sending = Sending::Finishing;
        }
        if state.handed {
            return Ok(());
        }
        match state.poll_flush(shared, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(error)) => {
                let wake = state.write_failed(shared, error);
                let result = state.usable(shared);
                drop(state);
                wake.now();
                result
            }
            Poll::Pending => {
                state.handed = true;
                drop(state);
                shared.hand_over(Arc::clone(&self.stream));
                Ok(())
            }
        }
    }

    /// QUIC has no frame that only names a stream, so an empty control frame does it; whoever gets
    /// it skips it.
    pub(crate) fn announce(&mut self) {
        // A session that has ended is noticed by whoever waits for the answer.
        let _ = self.send(codec::message(&ControlFrame::default(), false), false);
    }

    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Stream { shared, state, .. } = &*self.stream;
        let mut state = state.lock();
        if let Err(error) = state.usable(shared) {
            return Poll::Ready(error);
        }
        let mut watch = match state.watch.take() {
            Some(watch) => watch,
            None => Box::pin(watch(Arc::clone(shared), state.send.stopped())),
        };
        let Poll::Ready(error) = watch.as_mut().poll(cx) else {
            state.watch = Some(watch);
            register(&mut state.reset_waker, cx);
            return Poll::Pending;
        };
        let wake = state.cut_sending(shared, error.clone());
        drop(state);
        wake.now();
        Poll::Ready(error)
    }
}

/// The peer's stop; or, for a stream that it has received whole, the session's end.
async fn watch(
    shared: Arc<Shared>,
    stopped: impl Future<Output = Result<Option<VarInt>, quinn::StoppedError>> + Send,
) -> StreamError {
    match stopped.await {
        Ok(Some(_)) => StreamError::Reset,
        Ok(None) | Err(_) => {
            let error = shared.connection.closed().await;
            StreamError::Session(shared.error(error))
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let Stream { shared, state, .. } = &*self.stream;
        let mut state = state.lock();
        state.sender_gone = true;
        state.watch = None;
        if state.sending == Sending::Open && state.send_cut.is_none() {
            let wake = state.cancel(shared);
            drop(state);
            return wake.now();
        }
        finish(&self.stream, state);
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// How a receiving handle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiverEnd {
    /// All that matters was read.
    Complete,
    /// No more is wanted, the sending direction goes on.
    Stop,
    /// The whole stream is given up.
    Cancel,
}

/// The receiving direction.
pub struct Receiver {
    stream: Arc<Stream>,
    end: ReceiverEnd,
}

impl Receiver {
    pub(crate) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let Stream { shared, state, .. } = &*self.stream;
        let mut state = state.lock();
        match state.poll_read(shared, cx) {
            Poll::Pending => {
                register(&mut state.recv_waker, cx);
                Poll::Pending
            }
            // What the peer has reset is over for the other direction too.
            Poll::Ready(Err(StreamError::Reset)) if state.send_cut.is_none() => {
                let wake = state.cut_sending(shared, StreamError::Reset);
                drop(state);
                wake.now();
                Poll::Ready(Err(StreamError::Reset))
            }
            read => read,
        }
    }

    pub(crate) fn complete(&mut self) {
        self.end = ReceiverEnd::Complete;
    }

    pub(crate) fn stop(mut self) {
        self.end = ReceiverEnd::Stop;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Stream { shared, state, .. } = &*self.stream;
        let mut state = state.lock();
        state.recv_waker = None;
        // The FIN may be here, and only not read yet.
        let rest = state.poll_read(shared, &mut Context::from_waker(Waker::noop()));
        state.receiving = match (rest, self.end) {
            (Poll::Ready(Ok(None) | Err(_)), _) => Receiving::Over,
            (_, ReceiverEnd::Stop) if state.sending == Sending::Finished => {
                state.stop_receiving();
                Receiving::Over
            }
            (_, ReceiverEnd::Stop) => Receiving::Stopped,
            (Poll::Pending, ReceiverEnd::Complete) => Receiving::Complete,
            (_, ReceiverEnd::Complete | ReceiverEnd::Cancel) => {
                let wake = state.cancel(shared);
                state.receiving = Receiving::Over;
                drop(state);
                return wake.now();
            }
        };
        finish(&self.stream, state);
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// A handle has gone: if it was the last one, the driver does what is left.
fn finish(stream: &Arc<Stream>, mut state: parking_lot::MutexGuard<'_, State>) {
    let tail = state.tail.take();
    let hand = state.has_tail();
    state.handed |= hand;
    drop(state);
    if hand {
        stream.shared.hand_over(Arc::clone(stream));
    }
    if let Some(tail) = tail {
        tail.wake();
    }
}

/// What the driver does for a stream: it gives quinn what that did not take at once, and, when the
/// handles have gone, waits until the peer has all of it and the peer's FIN is here.
pub(super) struct Tail {
    stream: Arc<Stream>,
    delivered: Option<Watch>,
    /// The session closes: what was sent is to arrive, whoever still has the handles.
    closing: bool,
    done: bool,
}

impl Tail {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, delivered: None, closing: false, done: false }
    }

    /// For a stream that has sent its last byte, and may not have delivered it.
    pub(super) fn to_deliver(stream: Arc<Stream>) -> Option<Self> {
        let mut state = stream.state.lock();
        if state.sending == Sending::Open || state.handed {
            return None;
        }
        state.handed = true;
        drop(state);
        let mut tail = Self::new(stream);
        tail.closing = true;
        Some(tail)
    }
}

impl Future for Tail {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, delivered, closing, done } = &mut *self;
        let shared = &stream.shared;
        let mut state = stream.state.lock();
        let flushed = state.poll_flush(shared, cx);
        let all_flushed = flushed.is_ready();
        let mut wake = Wake::default();
        if let Poll::Ready(Err(error)) = flushed {
            wake = state.write_failed(shared, error);
        } else if state.queued < SEND_BUFFER {
            wake.0[0] = state.send_waker.take();
        }
        let waits = *closing || state.handles_gone();
        *done = all_flushed && (!waits || state.poll_tail(shared, delivered, cx, &mut wake));
        if *done {
            state.handed = false;
        } else {
            register(&mut state.tail, cx);
        }
        drop(state);
        wake.now();
        if *done { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl State {
    /// Everything is flushed: whether there is nothing left to wait for.
    fn poll_tail(
        &mut self,
        shared: &Arc<Shared>,
        delivered: &mut Option<Watch>,
        cx: &mut Context<'_>,
        wake: &mut Wake,
    ) -> bool {
        if self.receiving == Receiving::Complete {
            match self.poll_read(shared, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(None) | Err(_)) => self.receiving = Receiving::Over,
                // The reader had it all, and the peer goes on.
                Poll::Ready(Ok(Some(_))) => *wake = self.cancel(shared),
            }
        }
        self.delivered = self.delivered || self.send_cut.is_some() || {
            let watch = delivered.get_or_insert_with(|| {
                let stopped = self.send.stopped();
                Box::pin(async move {
                    let _ = stopped.await;
                    StreamError::Finished
                })
            });
            watch.as_mut().poll(cx).is_ready()
        };
        self.delivered && self.receiving != Receiving::Complete
    }
}

impl Drop for Tail {
    /// The driver has gone before the stream was done.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.stream.state.lock().handed = false;
        self.stream.wake_all();
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
