//! Frames inside a stream, with a limit on every length before anything is allocated.
//!
//! Both the control stream and request streams consist of frames with one 4-byte header, a
//! big-endian word: bit 31 is END, bits 24 to 30 are the kind, the low 24 bits are the length.
//!
//! ```text
//! control stream   MESSAGE(ControlFrame) MESSAGE(ControlFrame) …
//! request, down    MESSAGE(StreamOpen)  DATA* TRAILERS?          the last one carries END
//! answer, up       MESSAGE(StreamReply)+ DATA* (TRAILERS | ABORT)?
//! a flow           MESSAGE  DATAGRAM*                        the same both ways, no END
//! a long body      … DATA* MOVED    and on a lane:  MOVED(stream) DATA* (TRAILERS | ABORT)?
//! ```
//!
//! A stream that finishes without END was cut: whoever reads it must not take it for complete.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest MESSAGE, TRAILERS or ABORT frame of a request stream, in bytes: room for a 64 KiB HTTP
/// head and what is added to it.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Longest frame of the control stream, in bytes: room for an `Init` with some hundred tunnels.
pub const MAX_CONTROL: usize = 256 * 1024;
/// Longest DATA frame, in bytes. Its payload is handed on as it arrives, so this bounds no memory;
/// it keeps a broken length from swallowing the rest of a stream.
pub const MAX_DATA: usize = 1024 * 1024;
/// Longest DATAGRAM frame, in bytes: what UDP over IPv4 can carry.
pub const MAX_DATAGRAM: usize = 65_507;
/// Longest MOVED frame, in bytes: a stream's id.
pub const MOVED_LEN: usize = 4;
/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 4;

const END: u8 = 0x80;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A protobuf message; its place in the stream tells which.
    Message,
    /// Bytes of the body.
    Data,
    /// [`crate::v1::Trailers`]; always the last frame.
    Trailers,
    /// [`crate::v1::Abort`]: the body ended before its end.
    Abort,
    /// The rest of this direction comes on a lane. There, the first frame is one of these too, and
    /// names the stream: four bytes.
    Moved,
    /// One datagram of a flow.
    Datagram,
}

impl Kind {
    const fn wire(self) -> u8 {
        match self {
            Self::Message => 0,
            Self::Data => 1,
            Self::Trailers => 2,
            Self::Abort => 3,
            Self::Moved => 4,
            Self::Datagram => 5,
        }
    }

    const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Message),
            1 => Some(Self::Data),
            2 => Some(Self::Trailers),
            3 => Some(Self::Abort),
            4 => Some(Self::Moved),
            5 => Some(Self::Datagram),
            _ => None,
        }
    }
}

/// What the other side sent is not a frame of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame is longer than its kind may be.
    #[error("a {kind:?} frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Its announced length.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// No such kind of frame.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A frame after the one that carried END.
    #[error("a frame follows the last one")]
    AfterEnd,
    /// The frame's protobuf can't be decoded.
    #[error("{what} can't be decoded: {reason}")]
    Malformed {
        /// The message expected.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A frame of another kind was due.
    #[error("a {got:?} frame where {expected} was due")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: Kind,
    },
}

/// The 4 bytes in front of a frame of `length` payload bytes. `end`: nothing follows it.
///
/// # Panics
/// If `length` needs more than 24 bits; the limits of this module lie far below.
#[must_use]
pub fn header(kind: Kind, end: bool, length: usize) -> [u8; HEADER_LEN] {
    let length = u32::try_from(length).ok().filter(|l| *l < 1 << 24).expect("a frame fits 24 bits");
    let top = kind.wire() | if end { END } else { 0 };
    ((u32::from(top) << 24) | length).to_be_bytes()
}

/// The first frame of a body's rest on a lane: which stream it belongs to.
#[must_use]
pub fn moved_from(stream: u32) -> Bytes {
    let mut frame = header(Kind::Moved, false, MOVED_LEN).to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.into()
}

/// The stream that a [`moved_from`] frame names.
#[must_use]
pub fn moved_stream(frame: &Frame) -> Option<u32> {
    let id = frame.payload.as_ref().try_into().ok()?;
    (frame.kind == Kind::Moved && !frame.end).then(|| u32::from_be_bytes(id))
}

/// A whole MESSAGE frame, header included.
#[must_use]
pub fn message(message: &impl Message, end: bool) -> Bytes {
    frame(Kind::Message, end, message)
}

/// A whole frame of `kind` around `message`, header included.
#[must_use]
pub fn frame(kind: Kind, end: bool, message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(HEADER_LEN + length);
    buffer.put_slice(&header(kind, end, length));
    message.encode(&mut buffer).expect("the buffer has the encoded length");
    buffer.freeze()
}

/// Decodes `payload` as `M`; `what` names it in the error.
///
/// # Errors
/// [`CodecError::Malformed`] if it is no `M`.
pub fn parse<M: Message + Default>(what: &'static str, payload: Bytes) -> Result<M, CodecError> {
    M::decode(payload).map_err(|error| CodecError::Malformed { what, reason: error.to_string() })
}

/// A frame, or a piece of a DATA frame, as it came out of a [`Decoder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: Kind,
    /// The payload: whole for every kind but DATA, of which it is what has arrived.
    pub payload: Bytes,
    /// Nothing follows in this direction.
    pub end: bool,
}

/// Cuts a stream's chunks into frames. DATA comes out as it arrives, without a copy; other kinds
/// come out whole, without a copy if they arrived in one chunk.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    max_message: usize,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_LEN], filled: usize },
    Data { left: usize, end: bool },
    Whole { kind: Kind, length: usize, end: bool, gathered: BytesMut },
    Ended,
}

const EMPTY_HEADER: State = State::Header { bytes: [0; HEADER_LEN], filled: 0 };

impl Decoder {
    /// For a request stream: messages up to [`MAX_MESSAGE`].
    #[must_use]
    pub const fn new() -> Self {
        Self { state: EMPTY_HEADER, max_message: MAX_MESSAGE }
    }

    /// For the control stream: messages up to [`MAX_CONTROL`].
    #[must_use]
    pub const fn control() -> Self {
        Self { state: EMPTY_HEADER, max_message: MAX_CONTROL }
    }

    /// Whether the frame with END has come out.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether no frame has begun that is not yet out: the stream may turn raw here.
    #[must_use]
    pub const fn at_border(&self) -> bool {
        matches!(self.state, State::Header { filled: 0, .. } | State::Ended)
    }

    /// Takes from the front of `chunk` and returns the next frame, or `None` once `chunk` is used
    /// up. Never keeps more than one message's bytes.
    ///
    /// # Errors
    /// [`CodecError`]; the stream is of no use afterwards.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<Frame>, CodecError> {
        loop {
            match &mut self.state {
                State::Header { bytes, filled } => {
                    let take = chunk.len().min(HEADER_LEN - *filled);
                    chunk.copy_to_slice(&mut bytes[*filled..*filled + take]);
                    *filled += take;
                    if *filled < HEADER_LEN {
                        return Ok(None);
                    }
                    self.state = Self::begin(*bytes, self.max_message)?;
                }
                State::Data { left, end } => {
                    if chunk.is_empty() && *left > 0 {
                        return Ok(None);
                    }
                    let payload = chunk.split_to(chunk.len().min(*left));
                    *left -= payload.len();
                    let done = *left == 0;
                    let end = *end && done;
                    if done {
                        self.state = if end { State::Ended } else { EMPTY_HEADER };
                    }
                    return Ok(Some(Frame { kind: Kind::Data, payload, end }));
                }
                State::Whole { kind, length, end, gathered } => {
                    let Some(payload) = gather(gathered, *length, chunk) else { return Ok(None) };
                    let (kind, end) = (*kind, *end);
                    self.state = if end { State::Ended } else { EMPTY_HEADER };
                    return Ok(Some(Frame { kind, payload, end }));
                }
                State::Ended if chunk.is_empty() => return Ok(None),
                State::Ended => return Err(CodecError::AfterEnd),
            }
        }
    }

    fn begin(bytes: [u8; HEADER_LEN], max_message: usize) -> Result<State, CodecError> {
        let end = bytes[0] & END != 0;
        let kind =
            Kind::from_wire(bytes[0] & !END).ok_or(CodecError::UnknownKind(bytes[0] & !END))?;
        let length =
            usize::from(bytes[1]) << 16 | usize::from(bytes[2]) << 8 | usize::from(bytes[3]);
        let limit = match kind {
            Kind::Data => MAX_DATA,
            Kind::Moved => MOVED_LEN,
            Kind::Datagram => MAX_DATAGRAM,
            Kind::Message | Kind::Trailers | Kind::Abort => max_message,
        };
        if length > limit {
            return Err(CodecError::TooLong { kind, length, limit });
        }
        Ok(match kind {
            Kind::Data => State::Data { left: length, end },
            // Trailers and aborts are the last word of their direction, END or not.
            Kind::Trailers | Kind::Abort => {
                State::Whole { kind, length, end: true, gathered: BytesMut::new() }
            }
            Kind::Message | Kind::Moved | Kind::Datagram => {
                State::Whole { kind, length, end, gathered: BytesMut::new() }
            }
        })
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// `length` bytes from what was gathered and `chunk`, once they are there.
fn gather(gathered: &mut BytesMut, length: usize, chunk: &mut Bytes) -> Option<Bytes> {
    if gathered.is_empty() && chunk.len() >= length {
        return Some(chunk.split_to(length));
    }
    let take = chunk.len().min(length - gathered.len());
    gathered.extend_from_slice(&chunk.split_to(take));
    (gathered.len() == length).then(|| gathered.split().freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(decoder: &mut Decoder, mut chunk: Bytes) -> Result<Vec<Frame>, CodecError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut chunk)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn an_empty_last_data_frame_ends_the_stream() {
        let mut decoder = Decoder::new();
        let bytes = Bytes::copy_from_slice(&header(Kind::Data, true, 0));
        let frames = decode_all(&mut decoder, bytes).unwrap();
        assert_eq!(frames, [Frame { kind: Kind::Data, payload: Bytes::new(), end: true }]);
        assert!(decoder.ended());
    }

    #[test]
    fn a_length_over_the_limit_is_refused_from_the_header_alone() {
        for (kind, limit) in [(Kind::Data, MAX_DATA), (Kind::Message, MAX_MESSAGE)] {
            let bytes = Bytes::copy_from_slice(&header(kind, false, limit + 1));
            let error = decode_all(&mut Decoder::new(), bytes).unwrap_err();
            assert_eq!(error, CodecError::TooLong { kind, length: limit + 1, limit });
        }
    }

    #[test]
    fn nothing_may_follow_the_end() {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&header(Kind::Data, true, 1));
        bytes.put_slice(b"xy");
        let error = decode_all(&mut Decoder::new(), bytes.freeze()).unwrap_err();
        assert_eq!(error, CodecError::AfterEnd);
    }

    #[test]
    fn unknown_kinds_are_refused() {
        let error =
            decode_all(&mut Decoder::new(), Bytes::from_static(&[0x7f, 0, 0, 0])).unwrap_err();
        assert_eq!(error, CodecError::UnknownKind(0x7f));
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Message), Just(Kind::Data)]
    }

    proptest! {
        /// However the bytes are cut into chunks, the same frames come out.
        #[test]
        fn chunk_borders_mean_nothing(
            frames in prop::collection::vec((kinds(), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
            cuts in prop::collection::vec(1_usize..64, 1..40),
        ) {
            let mut wire = BytesMut::new();
            for (kind, payload) in &frames {
                wire.put_slice(&header(*kind, false, payload.len()));
                wire.put_slice(payload);
            }
            let mut wire = wire.freeze();
            let mut decoder = Decoder::new();
            let mut seen: Vec<(Kind, Vec<u8>)> = Vec::new();
            let mut cuts = cuts.iter().cycle();
            let mut data = Vec::new();
            while !wire.is_empty() {
                let cut = (*cuts.next().unwrap()).min(wire.len());
                for frame in decode_all(&mut decoder, wire.split_to(cut)).unwrap() {
                    match frame.kind {
                        Kind::Data => data.extend_from_slice(&frame.payload),
                        kind => seen.push((kind, frame.payload.to_vec())),
                    }
                }
            }
            let expected: Vec<_> = frames.iter().filter(|f| f.0 != Kind::Data).cloned().collect();
            let all: Vec<u8> = frames.iter().filter(|f| f.0 == Kind::Data).flat_map(|f| f.1.clone()).collect();
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(data, all);
            prop_assert!(decoder.at_border());
        }

        /// Whatever comes, there is an answer and no panic.
        #[test]
        fn garbage_never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut decoder = Decoder::new();
            for chunk in chunks {
                if decode_all(&mut decoder, chunk.into()).is_err() {
                    break;
                }
            }
        }
    }
}
