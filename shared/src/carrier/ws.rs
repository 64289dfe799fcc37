//! WebSocket as a carrier of bytes: binary messages whose borders mean nothing.
//!
//! Only what a carrier needs of RFC 6455, written so that a payload is never copied for the
//! framing's sake: the decoder unmasks in place and hands out what has arrived, and one message
//! holds one whole write batch. Extensions are not offered, text is refused.

use bytes::{Buf, Bytes, BytesMut};

/// Longest header: two bytes, eight of length, four of mask.
pub const MAX_HEADER_LEN: usize = 14;
/// Longest payload of a control frame (RFC 6455, section 5.5), in bytes.
const MAX_CONTROL: usize = 125;

const OP_CONTINUE: u8 = 0;
const OP_TEXT: u8 = 1;
const OP_BINARY: u8 = 2;
const OP_CLOSE: u8 = 8;
const OP_PING: u8 = 9;
const OP_PONG: u8 = 10;

/// Which end of the connection this is: the client masks, the server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Dialled (the agent).
    Client,
    /// Was dialled (the edge).
    Server,
}

/// The peer broke RFC 6455, or sent what this carrier does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// A reserved bit or operation code; most often bytes that are no WebSocket at all.
    #[error("not a WebSocket frame this carrier knows (first byte {0:#04x})")]
    Reserved(u8),
    /// A client's frame without a mask, or a server's with one.
    #[error("a frame is masked where it must not be, or the other way round")]
    Mask,
    /// A text message.
    #[error("a text message; the carrier takes binary ones")]
    Text,
    /// Continuation without a beginning, or a new message inside another.
    #[error("fragments out of order")]
    Fragment,
    /// A control frame that is fragmented or longer than 125 bytes.
    #[error("a control frame is fragmented or too long")]
    Control,
    /// A length with its highest bit set.
    #[error("a frame's length is out of range")]
    Length,
}

impl WsError {
    /// The close code that RFC 6455, section 7.4.1 has for it.
    #[must_use]
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::Text => 1003,
            _ => 1002,
        }
    }
}

/// What came out of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the carrier.
    Data(Bytes),
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// An answer that needs none.
    Pong,
    /// The peer ends the connection; code (1005 when it gave none) and reason.
    Close(u16, String),
}

/// Takes WebSocket frames apart.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    /// Payload of the current data frame that is still to come.
    left: u64,
    mask: [u8; 4],
    /// Inside a fragmented message.
    open: bool,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    first: u8,
    mask: [u8; 4],
    header_len: usize,
    length: u64,
}

impl Decoder {
    /// `side` is this end: a server's decoder demands masks.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self { side, left: 0, mask: [0; 4], open: false }
    }

    /// The next event, or `None` when more bytes are needed. `buffer` keeps at most one incomplete
    /// header and control frame, so 139 bytes.
    ///
    /// # Errors
    /// [`WsError`]; the connection is to be closed with its code.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, WsError> {
        loop {
            if self.left > 0 {
                return Ok(self.payload(buffer));
            }
            let Some(header) = self.header(buffer)? else { return Ok(None) };
            let opcode = header.first & 0x0f;
            if opcode & 0x8 == 0 {
                self.begin(header)?;
                buffer.advance(header.header_len);
                continue;
            }
            let Ok(length) = usize::try_from(header.length) else { return Err(WsError::Control) };
            if header.first & 0x80 == 0 || length > MAX_CONTROL {
                return Err(WsError::Control);
            }
            if buffer.len() < header.header_len + length {
                return Ok(None);
            }
            buffer.advance(header.header_len);
            let mut payload = buffer.split_to(length);
            apply_mask(&mut payload, header.mask);
            return control_event(header.first, payload.freeze()).map(Some);
        }
    }

    fn payload(&mut self, buffer: &mut BytesMut) -> Option<Event> {
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if take == 0 {
            return None;
        }
        let mut payload = buffer.split_to(take);
        if self.side == Side::Server {
            apply_mask(&mut payload, self.mask);
            self.mask.rotate_left(take % 4);
        }
        self.left -= take as u64;
        Some(Event::Data(payload.freeze()))
    }

    fn begin(&mut self, header: Header) -> Result<(), WsError> {
        let fin = header.first & 0x80 != 0;
        match header.first & 0x0f {
            OP_BINARY if self.open => return Err(WsError::Fragment),
            OP_CONTINUE if !self.open => return Err(WsError::Fragment),
            OP_BINARY | OP_CONTINUE => self.open = !fin,
            OP_TEXT => return Err(WsError::Text),
            _ => return Err(WsError::Reserved(header.first)),
        }
        self.left = header.length;
        self.mask = header.mask;
        Ok(())
    }

    fn header(&self, buffer: &BytesMut) -> Result<Option<Header>, WsError> {
        let Some(&first) = buffer.first() else { return Ok(None) };
        // Refused at the first byte: whoever speaks another protocol is told at once.
        if first & 0x70 != 0
            || !matches!(first & 0x0f, OP_CONTINUE..=OP_BINARY | OP_CLOSE..=OP_PONG)
        {
            return Err(WsError::Reserved(first));
        }
        let Some(&second) = buffer.get(1) else { return Ok(None) };
        let masked = second & 0x80 != 0;
        if masked != (self.side == Side::Server) {
            return Err(WsError::Mask);
        }
        let (length_len, mask_len) = match second & 0x7f {
            126 => (2, if masked { 4 } else { 0 }),
            127 => (8, if masked { 4 } else { 0 }),
            _ => (0, if masked { 4 } else { 0 }),
        };
        let header_len = 2 + length_len + mask_len;
        if buffer.len() < header_len {
            return Ok(None);
        }
        let length = match length_len {
            0 => u64::from(second & 0x7f),
            n => buffer[2..2 + n].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        if length >> 63 != 0 {
            return Err(WsError::Length);
        }
        let mut mask = [0; 4];
        mask[..mask_len].copy_from_slice(&buffer[header_len - mask_len..header_len]);
        Ok(Some(Header { first, mask, header_len, length }))
    }
}

fn control_event(first: u8, payload: Bytes) -> Result<Event, WsError> {
    match first & 0x0f {
        OP_PING => Ok(Event::Ping(payload)),
        OP_PONG => Ok(Event::Pong),
        OP_CLOSE if payload.len() == 1 => Err(WsError::Control),
        OP_CLOSE if payload.is_empty() => Ok(Event::Close(1005, String::new())),
        OP_CLOSE => {
            let code = u16::from_be_bytes([payload[0], payload[1]]);
            Ok(Event::Close(code, String::from_utf8_lossy(&payload[2..]).into_owned()))
        }
        _ => Err(WsError::Reserved(first)),
    }
}

/// Writes the header of a binary message of `length` bytes so that it ends where `space` ends, and
/// returns where in `space` it begins. `mask` is the client's key.
pub fn put_binary_header(
    space: &mut [u8; MAX_HEADER_LEN],
    length: usize,
    mask: Option<[u8; 4]>,
) -> usize {
    put_header(space, OP_BINARY, length, mask)
}

/// A whole pong frame.
#[must_use]
pub fn pong(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    control_frame(OP_PONG, payload, mask)
}

/// A whole close frame. The reason is cut to what a control frame holds.
#[must_use]
pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    let mut end = reason.len().min(MAX_CONTROL - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    control_frame(OP_CLOSE, &payload, mask)
}

fn control_frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut space = [0; MAX_HEADER_LEN];
    let start = put_header(&mut space, opcode, payload.len(), mask);
    let mut frame = space[start..].to_vec();
    let body = frame.len();
    frame.extend_from_slice(payload);
    apply_mask(&mut frame[body..], mask.unwrap_or_default());
    frame
}

#[expect(clippy::cast_possible_truncation, reason = "each cast is guarded by its range")]
fn put_header(
    space: &mut [u8; MAX_HEADER_LEN],
    opcode: u8,
    length: usize,
    mask: Option<[u8; 4]>,
) -> usize {
    let mut end = MAX_HEADER_LEN;
    if let Some(key) = mask {
        end -= 4;
        space[end..].copy_from_slice(&key);
    }
    // The shortest form is demanded (RFC 6455, section 5.2).
    let short = match length {
        0..=125 => length as u8,
        126..=0xffff => {
            space[end - 2..end].copy_from_slice(&(length as u16).to_be_bytes());
            end -= 2;
            126
        }
        _ => {
            space[end - 8..end].copy_from_slice(&(length as u64).to_be_bytes());
            end -= 8;
            127
        }
    };
    space[end - 1] = short | if mask.is_some() { 0x80 } else { 0 };
    space[end - 2] = 0x80 | opcode;
    end - 2
}

/// XORs `bytes` with the repeated `key`. Its own inverse.
pub fn apply_mask(bytes: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (blocks, rest) = bytes.as_chunks_mut::<8>();
    for block in blocks {
        *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for (byte, k) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= k;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        control_frame(OP_BINARY, payload, mask)
    }

    fn events(side: Side, wire: &[u8]) -> Result<Vec<Event>, WsError> {
        let (mut decoder, mut buffer) = (Decoder::new(side), BytesMut::from(wire));
        std::iter::from_fn(|| decoder.next(&mut buffer).transpose()).collect()
    }

    #[test]
    fn what_is_no_websocket_is_refused_at_the_first_byte() {
        assert_eq!(events(Side::Server, b"GET / HTTP/1.1"), Err(WsError::Reserved(b'G')));
        assert_eq!(events(Side::Server, &[0x83]), Err(WsError::Reserved(0x83)));
    }

    #[test]
    fn masks_are_demanded_of_clients_and_refused_from_servers() {
        assert_eq!(events(Side::Server, &binary(b"x", None)), Err(WsError::Mask));
        assert_eq!(events(Side::Client, &binary(b"x", Some([1; 4]))), Err(WsError::Mask));
    }

    #[test]
    fn fragments_carry_on_and_control_frames_come_between() {
        let mut wire = vec![0x02, 2, b'a', b'b'];
        wire.extend(control_frame(OP_PING, b"p", None));
        wire.extend([0x80, 1, b'c']);
        let data = |d: &'static str| Event::Data(Bytes::from_static(d.as_bytes()));
        let ping = Event::Ping(Bytes::from_static(b"p"));
        assert_eq!(events(Side::Client, &wire).unwrap(), [data("ab"), ping, data("c")]);
        assert_eq!(events(Side::Client, &[0x80, 1, b'c']), Err(WsError::Fragment));
        assert_eq!(events(Side::Client, &[0x81, 1, b'c']), Err(WsError::Text));
        assert_eq!(events(Side::Client, &[0x09, 0]), Err(WsError::Control));
        assert_eq!(events(Side::Client, &[0x89, 126, 0, 126]), Err(WsError::Control));
        assert_eq!(
            events(Side::Client, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            Err(WsError::Length)
        );
    }

    #[test]
    fn a_close_says_why_and_is_cut_at_a_character() {
        let frame = close(1002, &"ü".repeat(100), Some([9, 8, 7, 6]));
        assert!(frame.len() <= 6 + MAX_CONTROL);
        match &events(Side::Server, &frame).unwrap()[..] {
            [Event::Close(1002, reason)] => assert_eq!(reason, &"ü".repeat(61)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// Messages of any length, cut anywhere, masked or not, come out whole.
        #[test]
        fn chunk_borders_mean_nothing(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70_000), 1..4),
            key in any::<[u8; 4]>(), server in any::<bool>(), cut in 1_usize..5_000,
        ) {
            let (side, mask) = if server { (Side::Server, Some(key)) } else { (Side::Client, None) };
            let wire: Vec<u8> = payloads.iter().flat_map(|p| binary(p, mask)).collect();
            let mut decoder = Decoder::new(side);
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(event) = decoder.next(&mut buffer).unwrap() {
                    match event {
                        Event::Data(data) => seen.extend_from_slice(&data),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
            prop_assert_eq!(seen, payloads.concat());
        }

        #[test]
        fn garbage_never_panics(wire in prop::collection::vec(any::<u8>(), 0..400), server in any::<bool>()) {
            let _ = events(if server { Side::Server } else { Side::Client }, &wire);
        }
    }
}
