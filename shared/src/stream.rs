//! What runs on a mux stream: framed messages and bodies (`proto::codec`), as both ends use it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Sleep;
use uniroute_proto::{
    codec::{self, CodecError, Decoder, Frame, Kind, MAX_DATA},
    head, v1,
};

use crate::{
    headers,
    message::{Fields, Piece, Source},
    session::{Receiver, Sender, StreamError},
};

/// Bytes that a body hands on before other tasks have their turn, so that a bulk transfer never
/// holds a runtime thread.
const YIELD_AFTER: usize = 128 * 1024;

/// A body this long, in bytes, moves to a lane where there is one: at once if its length is known,
/// or as soon as this much was sent.
const LONG_BODY: u64 = 64 * 1024;

/// A body that has moved goes on within this time, or it never will: its lane was lost on the way.
/// Longer than what a slow line may hold back on a lane that lives.
const REST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why nothing more can be read from a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The stream was cut.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What came is no frame of the protocol.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The peer said that the body ended before its end.
    #[error("the other side gave up: {0}")]
    Aborted(String),
    /// The stream finished without its last frame.
    #[error("the stream finished before its last frame")]
    Truncated,
    /// The peer said that the body goes on on a lane, and it did not.
    #[error("the body was to go on on a lane, and did not")]
    RestMissing,
}

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    receiver: Receiver,
    decoder: Decoder,
    chunk: Bytes,
    moved: Moved,
}

/// Whether the peer has said that the rest comes on a lane.
#[derive(Debug)]
enum Moved {
    /// It may. Never on a control stream.
    No { may: bool },
    /// It has, and the rest has to be here by then.
    Due(Pin<Box<Sleep>>),
    /// The rest is here; it moves once.
    Here,
}

impl FrameReader {
    /// Frames of a request stream.
    #[must_use]
    pub fn new(receiver: impl Into<Receiver>) -> Self {
        Self::with(receiver.into(), Decoder::new(), true)
    }

    /// Frames of the control stream.
    #[must_use]
    pub fn control(receiver: impl Into<Receiver>) -> Self {
        Self::with(receiver.into(), Decoder::control(), false)
    }

    const fn with(receiver: Receiver, decoder: Decoder, may: bool) -> Self {
        Self { receiver, decoder, chunk: Bytes::new(), moved: Moved::No { may } }
    }

    /// The next frame, or `None` after the last one.
    ///
    /// # Errors
    /// [`ReadError`]; a stream that finishes without END is [`ReadError::Truncated`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, ReadError>> {
        loop {
            if let Moved::Due(due) = &mut self.moved {
                match self.receiver.poll_follow(cx) {
                    Poll::Ready(rest) => self.chunk = rest?,
                    Poll::Pending => {
                        ready!(due.as_mut().poll(cx));
                        return Poll::Ready(Err(ReadError::RestMissing));
                    }
                }
                self.moved = Moved::Here;
            }
            if let Some(frame) = self.decoder.decode(&mut self.chunk)? {
                if frame.kind == Kind::Moved {
                    self.on_moved(&frame)?;
                    continue;
                }
                if frame.end {
                    self.receiver.complete();
                }
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.decoder.ended() {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.receiver.poll_recv(cx))? {
                Some(chunk) => self.chunk = chunk,
                None => return Poll::Ready(Err(ReadError::Truncated)),
            }
        }
    }

    /// Nothing follows it here, and it names no stream.
    fn on_moved(&mut self, frame: &Frame) -> Result<(), CodecError> {
        if !matches!(self.moved, Moved::No { may: true }) {
            return Err(CodecError::Unexpected {
                expected: "a frame of this stream",
                got: frame.kind,
            });
        }
        if frame.end || !frame.payload.is_empty() || !self.chunk.is_empty() {
            return Err(CodecError::AfterEnd);
        }
        self.moved = Moved::Due(Box::pin(tokio::time::sleep(REST_TIMEOUT)));
        Ok(())
    }

    /// The next message, which must be an `M`, and whether nothing follows it.
    ///
    /// # Errors
    /// [`ReadError`]; `what` names the message in it.
    pub fn poll_message<M: uniroute_proto::Message + Default>(
        &mut self,
        what: &'static str,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(M, bool), ReadError>> {
        let (payload, end) = ready!(self.poll_payload(what, cx))?;
        Poll::Ready(Ok((codec::parse(what, payload)?, end)))
    }

    /// The next message's bytes, as [`FrameReader::poll_message`] has them.
    ///
    /// # Errors
    /// [`ReadError`]; `what` names the message in it.
    pub fn poll_payload(
        &mut self,
        what: &'static str,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, bool), ReadError>> {
        let frame = ready!(self.poll_frame(cx))?.ok_or(ReadError::Truncated)?;
        match frame.kind {
            Kind::Message => Poll::Ready(Ok((frame.payload, frame.end))),
            got => Poll::Ready(Err(CodecError::Unexpected { expected: what, got }.into())),
        }
    }

    /// [`FrameReader::poll_message`], awaited.
    ///
    /// # Errors
    /// [`ReadError`]; `what` names the message in it.
    pub async fn message<M: uniroute_proto::Message + Default>(
        &mut self,
        what: &'static str,
    ) -> Result<(M, bool), ReadError> {
        std::future::poll_fn(|cx| self.poll_message(what, cx)).await
    }

    /// Whether the last frame has come out.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.decoder.ended()
    }

    /// The stream turns raw here: the rest of it, and what was read already.
    #[must_use]
    pub fn into_raw(self) -> (Receiver, Bytes) {
        (self.receiver, self.chunk)
    }

    /// No more is wanted, but the other direction goes on; see [`Receiver::stop`].
    pub fn stop(self) {
        self.receiver.stop();
    }
}

/// A body that comes in over a stream: an answer's at the edge, a request's at the agent. Dropped
/// early, it ends as its [`OnDrop`] says.
#[derive(Debug)]
pub struct StreamBody {
    reader: Option<FrameReader>,
    since_yield: usize,
    on_drop: OnDrop,
}

/// What dropping an unread body means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrop {
    /// Nobody wants the stream any more (the edge: the visitor has left).
    Cancel,
    /// The body is not wanted, the answer is (the agent: the local server answered early).
    Stop,
}

impl StreamBody {
    /// The body that follows on `reader`.
    #[must_use]
    pub const fn new(reader: FrameReader, on_drop: OnDrop) -> Self {
        Self { reader: Some(reader), since_yield: 0, on_drop }
    }

    /// No body; the stream is over in this direction.
    #[must_use]
    pub const fn empty() -> Self {
        Self { reader: None, since_yield: 0, on_drop: OnDrop::Cancel }
    }

    fn take_frame(&mut self, frame: Frame) -> Result<Option<Piece>, ReadError> {
        if frame.end {
            self.reader = None;
        }
        match frame.kind {
            Kind::Data if frame.payload.is_empty() => Ok(None),
            Kind::Data => {
                self.since_yield += frame.payload.len();
                Ok(Some(Piece::Data(frame.payload)))
            }
            Kind::Trailers => {
                let trailers: v1::Trailers = codec::parse("Trailers", frame.payload)?;
                let mut fields = checked("Trailers", trailers.headers)?;
                headers::of_trailers(&mut fields);
                Ok(Some(Piece::Trailers(fields)))
            }
            Kind::Abort => {
                let abort: v1::Abort = codec::parse("Abort", frame.payload)?;
                Err(ReadError::Aborted(abort.message))
            }
            Kind::Message | Kind::Moved | Kind::Datagram => {
                Err(CodecError::Unexpected { expected: "a body", got: frame.kind }.into())
            }
        }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take()
            && self.on_drop == OnDrop::Stop
        {
            reader.stop();
        }
    }
}

impl Source for StreamBody {
    type Error = ReadError;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, ReadError>> {
        if self.since_yield >= YIELD_AFTER {
            self.since_yield = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let Some(reader) = &mut self.reader else { return Poll::Ready(Ok(None)) };
            let result = match reader.poll_frame(cx) {
                Poll::Pending => {
                    self.since_yield = 0;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(Some(frame))) => self.take_frame(frame),
                Poll::Ready(Ok(None)) => {
                    self.reader = None;
                    Ok(None)
                }
                Poll::Ready(Err(error)) => Err(error),
            };
            match result {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {}
                Err(error) => {
                    // Whatever follows is of no use; dropping the reader tells the peer.
                    self.reader = None;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.reader.is_none()
    }
}

/// Fields as they came over the wire, checked: no CR, LF or NUL passes, names are tokens (T10).
///
/// # Errors
/// [`CodecError::Malformed`], naming the field's name but never its value.
pub fn checked(what: &'static str, headers: Vec<v1::Header>) -> Result<Fields, CodecError> {
    let malformed = |reason: String| CodecError::Malformed { what, reason };
    head::header_count(what, &headers)?;
    for header in &headers {
        if !is_name(&header.name) {
            return Err(malformed("a header's name is not a token".into()));
        }
        if !is_value(&header.value) {
            let name = String::from_utf8_lossy(&header.name);
            return Err(malformed(format!("the header {name} holds a forbidden byte")));
        }
    }
    Ok(Fields(headers))
}

/// Whether a byte may be in a method or a field's name (RFC 9110, section 5.6.2).
#[must_use]
pub const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether the bytes may be a field's name. All are looked at, without a branch for each.
#[must_use]
pub fn is_name(bytes: &[u8]) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = is_token(byte as u8);
            byte += 1;
        }
        table
    };
    !bytes.is_empty() && bytes.iter().fold(true, |fits, byte| fits & TOKEN[usize::from(*byte)])
}

/// Whether the bytes may be a field's value: no control characters but tabs (RFC 9110, section 5.5).
/// All are looked at, without a branch for each.
#[must_use]
pub fn is_value(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(true, |fits, byte| fits & ((*byte >= b' ' && *byte != 0x7f) | (*byte == b'\t')))
}

/// Why a body was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum SendError<E> {
    /// The stream takes no more.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The body broke off; the peer was told.
    #[error("the body broke off: {0}")]
    Body(E),
}

/// Sends a body as frames, to its end, and watches for the peer's cancel while it waits. The last
/// frame carries END, and the stream's FIN goes out in the same batch.
#[derive(Debug)]
pub struct BodySender {
    sent: u64,
    moved: bool,
}

impl BodySender {
    /// For a body of `length` bytes, where that is known.
    #[must_use]
    pub fn new(length: Option<u64>) -> Self {
        Self { sent: length.unwrap_or(0), moved: false }
    }

    /// Sends what there is. Ready when the body is over, and never asked again then.
    ///
    /// # Errors
    /// [`SendError`]. A body that breaks off becomes an ABORT frame: never a short body that looks
    /// whole.
    pub fn poll_send<S: Source>(
        &mut self,
        cx: &mut Context<'_>,
        sender: &mut Sender,
        body: &mut S,
    ) -> Poll<Result<(), SendError<S::Error>>> {
        loop {
            if self.sent >= LONG_BODY && !self.moved {
                self.moved = sender.move_to_lane();
            }
            if let Poll::Ready(error) = sender.poll_reset(cx) {
                return Poll::Ready(Err(error.into()));
            }
            ready!(sender.poll_ready(cx))?;
            match ready!(body.poll_piece(cx)) {
                Ok(Some(Piece::Data(data))) => {
                    let last = body.is_over();
                    self.sent += data.len() as u64;
                    send_data(sender, data, last)?;
                    if last {
                        return Poll::Ready(Ok(()));
                    }
                }
                Ok(Some(Piece::Trailers(mut trailers))) => {
                    headers::of_trailers(&mut trailers);
                    return Poll::Ready(Ok(sender.send(head::trailers(trailers.iter()), true)?));
                }
                Ok(None) => {
                    let last = codec::header(Kind::Data, true, 0);
                    return Poll::Ready(Ok(sender.send_framed(last, Bytes::new(), true)?));
                }
                Err(error) => {
                    sender.send(head::abort(&error.to_string()), true)?;
                    return Poll::Ready(Err(SendError::Body(error)));
                }
            }
        }
    }
}

fn send_data(sender: &mut Sender, mut data: Bytes, last: bool) -> Result<(), StreamError> {
    loop {
        let piece = data.split_to(data.len().min(MAX_DATA));
        let last = last && data.is_empty();
        let prefix = codec::header(Kind::Data, last, piece.len());
        if last || !piece.is_empty() {
            sender.send_framed(prefix, piece, last)?;
        }
        if data.is_empty() {
            return Ok(());
        }
    }
}
