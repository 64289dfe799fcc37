//! Messages inside of a request: WebSocket messages, events of an event stream, gRPC messages. They
//! are told apart as their bytes pass; nothing is changed and nothing held up, and what can't be read
//! is let be.

use std::collections::VecDeque;

use uniroute_proto::v1::Header;
use uniroute_shared::message::{self, Fields};

use super::capture::Side;

/// Messages that are kept of a request: the last ones.
pub(crate) const MAX_FRAMES: usize = 1000;
/// Bytes that are kept of each.
pub(crate) const MAX_TEXT: usize = 4096;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
    /// Of an event stream.
    Event,
    /// Of gRPC.
    Message,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Counts up from 1.
    pub(crate) n: u64,
    /// Since the request began.
    pub(crate) at_us: u64,
    pub(crate) from: Side,
    pub(crate) kind: Kind,
    /// All of its bytes.
    pub(crate) size: u64,
    /// Its beginning.
    pub(crate) data: Box<[u8]>,
    pub(crate) compressed: bool,
}

impl Frame {
    /// Whether more passed than is kept.
    pub(crate) fn is_cut(&self) -> bool {
        self.size > self.data.len() as u64
    }

    fn cost(&self) -> usize {
        size_of::<Self>() + self.data.len()
    }
}

/// The messages of a request, both ways.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) kind: &'static str,
    pub(crate) frames: VecDeque<Frame>,
    /// All that there were.
    pub(crate) count: u64,
    visitor: Decoder,
    upstream: Decoder,
}

impl Log {
    /// Of an answer that holds messages.
    pub(super) fn of_answer(status: u16, fields: &Fields) -> Option<Box<Self>> {
        if status == 101 {
            let websocket = fields.contains("sec-websocket-accept");
            let decoder = || Decoder::WebSocket(WebSocket::default());
            return websocket.then(|| Self::new("websocket", decoder(), decoder()));
        }
        let is = |field: &Header| is_events(&field.value) && message::is(field, "content-type");
        let readable = fields.0.iter().any(is) && !fields.contains("content-encoding");
        readable.then(|| Self::new("sse", Decoder::None, Decoder::Events(Events::default())))
    }

    pub(super) fn grpc() -> Box<Self> {
        let decoder = || Decoder::Grpc(Grpc::default());
        Self::new("grpc", decoder(), decoder())
    }

    fn new(kind: &'static str, visitor: Decoder, upstream: Decoder) -> Box<Self> {
        Box::new(Self { kind, frames: VecDeque::new(), count: 0, visitor, upstream })
    }

    /// Takes bytes that passed. `charge` counts bytes that are kept, or freed, and says whether there
    /// is room. Returns whether there are new messages.
    pub(super) fn feed(
        &mut self,
        from: Side,
        bytes: &[u8],
        at: impl Fn() -> u64,
        mut charge: impl FnMut(isize) -> bool,
    ) -> bool {
        let Self { frames, count, visitor, upstream, .. } = self;
        let before = *count;
        let decoder = match from {
            Side::Visitor => visitor,
            Side::Upstream => upstream,
        };
        decoder.feed(bytes, &mut |Found { kind, size, mut data, compressed }| {
            *count += 1;
            if frames.len() >= MAX_FRAMES
                && let Some(oldest) = frames.pop_front()
            {
                charge(-signed(oldest.cost()));
            }
            data.shrink_to_fit();
            let data = data.into_boxed_slice();
            let frame = Frame { n: *count, at_us: at(), from, kind, size, data, compressed };
            if charge(signed(frame.cost())) {
                frames.push_back(frame);
            }
        });
        *count > before
    }
}

/// Whether a content type is that of an event stream. Every answer's fields are looked at: one byte tells
/// most of them apart.
fn is_events(kind: &[u8]) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    kind.get(5).is_some_and(|byte| byte | 0x20 == EVENTS[5])
        && kind.get(..EVENTS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(EVENTS))
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// A message that has ended.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    kind: Kind,
    size: u64,
    data: Vec<u8>,
    compressed: bool,
}

#[derive(Debug)]
enum Decoder {
    /// Nothing to tell apart, or it could not be read.
    None,
    WebSocket(WebSocket),
    Events(Events),
    Grpc(Grpc),
}

impl Decoder {
    fn feed(&mut self, bytes: &[u8], found: &mut impl FnMut(Found)) {
        let fine = match self {
            Self::None => return,
            Self::WebSocket(decoder) => decoder.feed(bytes, found),
            Self::Events(decoder) => {
                decoder.feed(bytes, found);
                true
            }
            Self::Grpc(decoder) => decoder.feed(bytes, found),
        };
        if !fine {
            *self = Self::None;
        }
    }
}

/// A message that is under way.
#[derive(Debug, Default)]
struct Partial {
    size: u64,
    data: Vec<u8>,
}

impl Partial {
    /// `mask`: its key, and how many bytes of the frame were unmasked before.
    fn push(&mut self, bytes: &[u8], mask: Option<([u8; 4], u64)>) {
        self.size += bytes.len() as u64;
        let room = MAX_TEXT.saturating_sub(self.data.len()).min(bytes.len());
        let begin = self.data.len();
        self.data.extend_from_slice(&bytes[..room]);
        if let Some((key, before)) = mask {
            let shift = usize::try_from(before % 4).unwrap_or(0);
            for (i, byte) in self.data[begin..].iter_mut().enumerate() {
                *byte ^= key[(shift + i) % 4];
            }
        }
    }

    fn take(&mut self, kind: Kind, compressed: bool) -> Found {
        let Self { size, data } = std::mem::take(self);
        Found { kind, size, data, compressed }
    }
}

/// Frames of RFC 6455, in one direction.
#[derive(Debug, Default)]
struct WebSocket {
    header: [u8; 14],
    have: usize,
    payload: Option<Payload>,
    /// The message that its frames belong to, with its kind and whether it is compressed.
    message: Partial,
    begun: Option<(Kind, bool)>,
    control: Partial,
}

#[derive(Debug)]
struct Payload {
    left: u64,
    passed: u64,
    mask: Option<[u8; 4]>,
    fin: bool,
    control: Option<Kind>,
}

impl WebSocket {
    /// `false`: this is no WebSocket.
    fn feed(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Found)) -> bool {
        loop {
            let Some(payload) = &mut self.payload else {
                if bytes.is_empty() {
                    return true;
                }
                match self.read_header(&mut bytes) {
                    Ok(true) => continue,
                    Ok(false) => return true,
                    Err(NoFrame) => return false,
                }
            };
            let taken = usize::try_from(payload.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(taken);
            bytes = rest;
            let mask = payload.mask.map(|key| (key, payload.passed));
            let partial = match payload.control {
                Some(_) => &mut self.control,
                None => &mut self.message,
            };
            partial.push(now, mask);
            payload.left -= taken as u64;
            payload.passed += taken as u64;
            if payload.left > 0 {
                return true;
            }
            match (payload.control, payload.fin) {
                (Some(kind), _) => found(self.control.take(kind, false)),
                (None, true) => {
                    let (kind, compressed) = self.begun.take().unwrap_or((Kind::Binary, false));
                    found(self.message.take(kind, compressed));
                }
                (None, false) => {}
            }
            self.payload = None;
        }
    }

    /// Whether all of a header was there.
    fn read_header(&mut self, bytes: &mut &[u8]) -> Result<bool, NoFrame> {
        loop {
            let needs = match self.have {
                0 | 1 => 2,
                _ => {
                    let extended = match self.header[1] & 0x7f {
                        126 => 2,
                        127 => 8,
                        _ => 0,
                    };
                    let masked = self.header[1] & 0x80 != 0;
                    2 + extended + if masked { 4 } else { 0 }
                }
            };
            if self.have >= needs && self.have >= 2 {
                break;
            }
            let taken = (needs - self.have).min(bytes.len());
            if taken == 0 {
                return Ok(false);
            }
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            *bytes = &bytes[taken..];
        }
        let header = self.header;
        let (first, length) = (header[0], header[1] & 0x7f);
        let (left, after) = match length {
            126 => (u64::from(u16::from_be_bytes([header[2], header[3]])), 4),
            127 => {
                let mut eight = [0; 8];
                eight.copy_from_slice(&header[2..10]);
                (u64::from_be_bytes(eight), 10)
            }
            short => (u64::from(short), 2),
        };
        let mask = (header[1] & 0x80 != 0).then(|| {
            let mut key = [0; 4];
            key.copy_from_slice(&header[after..after + 4]);
            key
        });
        let compressed = first & 0x40 != 0;
        let control = match first & 0x0f {
            0 => None,
            1 | 2 => {
                let kind = if first & 0x0f == 1 { Kind::Text } else { Kind::Binary };
                self.begun = Some((kind, compressed));
                None
            }
            8 => Some(Kind::Close),
            9 => Some(Kind::Ping),
            10 => Some(Kind::Pong),
            _ => return Err(NoFrame),
        };
        self.have = 0;
        self.payload = Some(Payload { left, passed: 0, mask, fin: first & 0x80 != 0, control });
        Ok(true)
    }
}

struct NoFrame;

/// Any bytes, cut anywhere, into one of the decoders: it must not panic, and finds the same.
#[cfg(any(test, fuzzing))]
pub(super) fn try_out(which: u8, bytes: &[u8], step: usize) {
    let decoder = || match which % 3 {
        0 => Decoder::WebSocket(WebSocket::default()),
        1 => Decoder::Events(Events::default()),
        _ => Decoder::Grpc(Grpc::default()),
    };
    let all = |step: usize| {
        let (mut decoder, mut out) = (decoder(), Vec::new());
        for chunk in bytes.chunks(step.max(1)) {
            decoder.feed(chunk, &mut |found| {
                assert!(found.data.len() <= MAX_TEXT && found.size >= found.data.len() as u64);
                out.push(found);
            });
        }
        out
    };
    assert_eq!(all(step), all(bytes.len()));
}

/// Events of an event stream, which end with an empty line. Each is kept as it was written.
#[derive(Debug, Default)]
struct Events {
    event: Partial,
    /// Bytes of the line that is under way.
    line: u64,
    /// The last byte was a CR: a LF behind it belongs to it.
    cr: bool,
}

impl Events {
    fn feed(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Found)) {
        if std::mem::take(&mut self.cr) && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            self.line += at as u64;
            self.event.push(&bytes[..at], None);
            let cr = bytes[at] == b'\r';
            bytes = &bytes[at + 1..];
            match (cr, bytes.first()) {
                (true, Some(b'\n')) => bytes = &bytes[1..],
                (true, None) => self.cr = true,
                _ => {}
            }
            if self.line > 0 {
                self.event.push(b"\n", None);
            } else if self.event.size > 0 {
                found(self.event.take(Kind::Event, false));
            }
            self.line = 0;
        }
        if !bytes.is_empty() {
            self.line += bytes.len() as u64;
            self.event.push(bytes, None);
        }
    }
}

/// Messages of gRPC, each behind its length.
#[derive(Debug, Default)]
struct Grpc {
    prefix: [u8; 5],
    have: usize,
    left: u64,
    message: Partial,
}

impl Grpc {
    /// `false`: this is no gRPC.
    fn feed(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Found)) -> bool {
        loop {
            if self.have < self.prefix.len() {
                let taken = (self.prefix.len() - self.have).min(bytes.len());
                self.prefix[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken;
                bytes = &bytes[taken..];
                if self.have < self.prefix.len() {
                    return true;
                }
                let [flag, length @ ..] = self.prefix;
                if flag > 1 {
                    return false;
                }
                self.left = u32::from_be_bytes(length).into();
            }
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.message.push(&bytes[..taken], None);
            self.left -= taken as u64;
            bytes = &bytes[taken..];
            if self.left > 0 {
                return true;
            }
            found(self.message.take(Kind::Message, self.prefix[0] == 1));
            self.have = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut decoder: Decoder, bytes: &[u8], step: usize) -> Vec<Found> {
        let mut out = Vec::new();
        for chunk in bytes.chunks(step.max(1)) {
            decoder.feed(chunk, &mut |found| out.push(found));
        }
        out
    }

    fn websocket() -> Decoder {
        Decoder::WebSocket(WebSocket::default())
    }

    fn events() -> Decoder {
        Decoder::Events(Events::default())
    }

    fn grpc() -> Decoder {
        Decoder::Grpc(Grpc::default())
    }

    fn found(kind: Kind, data: &[u8]) -> Found {
        Found { kind, size: data.len() as u64, data: data.to_vec(), compressed: false }
    }

    /// A frame of RFC 6455.
    fn frame(first: u8, mask: Option<[u8; 4]>, data: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        let masked = if mask.is_some() { 0x80 } else { 0 };
        match data.len() {
            length @ 0..=125 => out.push(masked | u8::try_from(length).unwrap()),
            length @ 126..=65535 => {
                out.push(masked | 126);
                out.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                out.push(masked | 127);
                out.extend((length as u64).to_be_bytes());
            }
        }
        let key = mask.unwrap_or_default();
        out.extend(mask.iter().flatten());
        out.extend(data.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    #[test]
    fn websocket_messages() {
        let key = Some([1, 2, 3, 4]);
        let long = vec![b'x'; 70_000];
        let bytes = [
            frame(0x81, key, b"hello"),
            frame(0x01, key, b"in "),
            frame(0x89, None, b"ping"),
            frame(0x80, key, b"two"),
            frame(0x82, key, &long),
            frame(0xc1, None, b"\x01\x02"),
            frame(0x88, None, b"\x03\xe8bye"),
        ]
        .concat();
        for step in [1, 2, 3, 7, 100_000] {
            let all = all(websocket(), &bytes, step);
            assert_eq!(all[0], found(Kind::Text, b"hello"));
            assert_eq!(all[1], found(Kind::Ping, b"ping"));
            assert_eq!(all[2], found(Kind::Text, b"in two"));
            assert_eq!((all[3].size, all[3].data.len()), (70_000, MAX_TEXT));
            assert!(all[3].data.iter().all(|byte| *byte == b'x') && all[4].compressed);
            assert_eq!(all[5], found(Kind::Close, b"\x03\xe8bye"));
            assert_eq!(all.len(), 6);
        }
        assert!(all(websocket(), b"\x87\x00\x81\x01a", 9).is_empty());
    }

    #[test]
    fn events_end_with_an_empty_line() {
        let text = b"data: a\n\n\n:c\nevent: x\r\ndata: b\r\n\r\ndata: c\r\r\ndata: open\n";
        for step in [1, 2, 3, 100] {
            let all = all(events(), text, step);
            let texts: Vec<_> = all.iter().map(|f| String::from_utf8_lossy(&f.data)).collect();
            assert_eq!(texts, ["data: a\n", ":c\nevent: x\ndata: b\n", "data: c\n"], "{step}");
        }
    }

    #[test]
    fn grpc_messages() {
        let bytes = b"\0\0\0\0\x02ab\x01\0\0\0\x01c\0\0\0\0\0\0\0\0\0\x05open";
        for step in [1, 2, 5, 100] {
            let all = all(grpc(), bytes, step);
            let seen: Vec<_> = all.iter().map(|f| (&f.data[..], f.compressed)).collect();
            assert_eq!(seen, [(&b"ab"[..], false), (b"c", true), (b"", false)], "{step}");
        }
        assert!(all(grpc(), b"<html>", 9).is_empty());
    }

    #[test]
    fn the_last_ones_are_kept() {
        let fields = Fields(vec![Header {
            name: "Content-Type".into(),
            value: "Text/Event-Stream; charset=utf-8".into(),
        }]);
        let mut log = Log::of_answer(200, &fields).unwrap();
        let mut charged = 0;
        for _ in 0..MAX_FRAMES * 2 {
            let more = log.feed(
                Side::Upstream,
                b"data: x\n\n",
                || 1,
                |bytes| {
                    charged += bytes;
                    true
                },
            );
            assert!(more);
        }
        assert_eq!((log.frames.len(), log.count), (MAX_FRAMES, 2000));
        assert_eq!(log.frames[0].n, 1001);
        assert_eq!(charged, signed(log.frames.iter().map(Frame::cost).sum()));
    }

    proptest! {
        /// Whatever comes in whatever pieces: no panic, and the same messages.
        #[test]
        fn the_size_of_reads_makes_no_difference(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(0), Just(0x81)], 0..300),
            step in 1_usize..20,
        ) {
            for which in 0..3 {
                try_out(which, &bytes, step);
            }
        }
    }
}
