//! Frames of HTTP/2, by hand (RFC 9113): written exactly as a case says, and read into what each
//! stream was told.

use std::{collections::BTreeMap, fmt};

use super::{
    case::HOST,
    hpack::{self, Decoder},
    message::Field,
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const PRIORITIZED: u8 = 0x20;

pub(crate) const NO_ERROR: u32 = 0x0;
pub(crate) const PROTOCOL_ERROR: u32 = 0x1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 0x3;
pub(crate) const STREAM_CLOSED: u32 = 0x5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 0x6;
pub(crate) const REFUSED_STREAM: u32 = 0x7;
pub(crate) const CANCEL: u32 = 0x8;
pub(crate) const COMPRESSION_ERROR: u32 = 0x9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;

pub(crate) const HEADER_TABLE_SIZE: u16 = 0x1;
pub(crate) const ENABLE_PUSH: u16 = 0x2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;
pub(crate) const MAX_FRAME_SIZE: u16 = 0x5;
pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;

/// The stream of the request that shows what became of the connection.
pub(crate) const FENCE_STREAM: u32 = 0x7fff_0001;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A whole block of fields.
pub(crate) fn headers(stream: u32, fields: &[(&str, &str)], ends: bool) -> Vec<u8> {
    let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &block(fields))
}

/// The same with values that are no text.
pub(crate) fn headers_of_bytes(stream: u32, fields: &[(&[u8], &[u8])], ends: bool) -> Vec<u8> {
    let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &hpack::encode(fields))
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    hpack::encode(&fields)
}

/// The pseudo-header fields of a request, and `more`.
pub(crate) fn request<'a>(
    method: &'a str,
    path: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", path)];
    [&pseudo, more].concat()
}

/// A GET without a body.
pub(crate) fn get(stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, &request("GET", path, more), true)
}

/// A POST whose body follows.
pub(crate) fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, &request("POST", "/visible", more), false)
}

pub(crate) fn data(stream: u32, bytes: impl AsRef<[u8]>, ends: bool) -> Vec<u8> {
    frame(DATA, if ends { END_STREAM } else { 0 }, stream, bytes.as_ref())
}

pub(crate) fn rst(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(crate) fn window(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// What a client begins with: it takes as much as it can get.
pub(crate) fn opening() -> Vec<u8> {
    let wide = settings(&[(ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, 0x7fff_ffff)]);
    [PREFACE, &wide, &window(0, 0x7000_0000)].concat()
}

/// All that a server said on a connection.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) settings: Vec<(u16, u32)>,
    /// It has sent its own settings.
    pub(crate) opened: bool,
    /// Settings of ours that it acknowledged.
    pub(crate) acknowledged: usize,
    /// Pings of ours that it answered.
    pub(crate) pongs: Vec<Vec<u8>>,
    pub(crate) goaway: Option<u32>,
    /// What no server may say.
    pub(crate) fault: Option<String>,
}

/// What one stream was told.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Blocks of fields: 1xx, the answer's, trailers.
    pub(crate) heads: Vec<Vec<Field>>,
    pub(crate) data: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: Option<u32>,
}

impl Stream {
    /// Of the final answer; 0 if there is none.
    pub(crate) fn status(&self) -> u16 {
        self.answer().map_or(0, |head| status(head))
    }

    pub(crate) fn answer(&self) -> Option<&Vec<Field>> {
        self.heads.iter().find(|head| status(head) >= 200)
    }

    pub(crate) fn interim(&self) -> Vec<u16> {
        self.heads.iter().map(|head| status(head)).filter(|s| (100..200).contains(s)).collect()
    }

    pub(crate) fn trailers(&self) -> &[Field] {
        let has_status = |head: &Vec<Field>| head.iter().any(|(name, _)| name == b":status");
        self.heads.last().filter(|head| !has_status(head)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }
}

fn status(head: &[Field]) -> u16 {
    let value = head.iter().find(|(name, _)| name == b":status").map(|(_, value)| value);
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

impl View {
    /// Reads all frames that are there whole.
    pub(crate) fn read(mut bytes: &[u8]) -> Self {
        let (mut view, mut decoder) = (Self::default(), Decoder::new());
        let mut open_block: Option<(u32, u8, Vec<u8>)> = None;
        while let Some((header, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            bytes = rest;
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            let (kind, flags) = (header[3], header[4]);
            match (kind, &mut open_block) {
                (CONTINUATION, Some((of, _, block))) if *of == stream => block.extend(payload),
                (CONTINUATION, _) | (_, Some(_)) => {
                    view.fault = Some(format!("a frame {kind} inside a block of fields"));
                }
                (HEADERS, None) => open_block = Some((stream, flags, payload.to_vec())),
                _ => view.take(kind, flags, stream, payload),
            }
            let ends_block = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
            if ends_block && let Some((stream, flags, block)) = open_block.take() {
                match decoder.decode(&block) {
                    Ok(fields) => view.head(stream, fields, flags & END_STREAM != 0),
                    Err(fault) => view.fault = Some(fault),
                }
            }
            if view.fault.is_some() {
                break;
            }
        }
        view
    }

    fn head(&mut self, stream: u32, fields: Vec<Field>, ends: bool) {
        let bad = fields.iter().any(|(name, value)| {
            name.iter().any(|b| b.is_ascii_uppercase() || *b <= b' ')
                || value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
        });
        let of_hop =
            ["connection", "transfer-encoding", "keep-alive", "upgrade", "proxy-connection"];
        if bad || fields.iter().any(|(name, _)| of_hop.iter().any(|hop| name == hop.as_bytes())) {
            self.fault = Some("a field that HTTP/2 has no place for".to_owned());
        }
        let stream = self.streams.entry(stream).or_default();
        if stream.is_over() {
            self.fault = Some("fields on a stream that was over".to_owned());
        }
        stream.heads.push(fields);
        stream.ended |= ends;
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let code = payload.last_chunk::<4>().map(|code| u32::from_be_bytes(*code));
        match kind {
            DATA => {
                let stream = self.streams.entry(stream).or_default();
                if stream.is_over() || stream.answer().is_none() {
                    self.fault = Some("data before an answer or behind its end".to_owned());
                }
                stream.data.extend_from_slice(payload);
                stream.ended |= flags & END_STREAM != 0;
            }
            RST_STREAM => self.streams.entry(stream).or_default().reset = code,
            SETTINGS if flags & ACK != 0 => self.acknowledged += 1,
            SETTINGS => {
                self.opened = true;
                let values = payload.chunks_exact(6);
                self.settings.extend(values.map(|value| {
                    let id = u16::from_be_bytes([value[0], value[1]]);
                    (id, u32::from_be_bytes([value[2], value[3], value[4], value[5]]))
                }));
            }
            PING if flags & ACK != 0 => self.pongs.push(payload.to_vec()),
            GOAWAY => {
                self.goaway =
                    payload.get(4..8).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
            }
            PUSH_PROMISE => self.fault = Some("a push that nobody wants".to_owned()),
            _ => {}
        }
    }

    /// The server's own value of a setting.
    pub(crate) fn setting(&self, id: u16) -> Option<u32> {
        self.settings.iter().rev().find(|(there, _)| *there == id).map(|(_, value)| *value)
    }
}

/// What a failing case shows.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, stream) in &self.streams {
            write!(f, "stream {id}: ")?;
            for (name, value) in stream.heads.iter().flatten() {
                write!(f, "{}: {}; ", name.escape_ascii(), value.escape_ascii())?;
            }
            let data = &stream.data[..stream.data.len().min(200)];
            write!(f, "\"{}\" ended: {}, ", data.escape_ascii(), stream.ended)?;
            writeln!(f, "reset: {:?}", stream.reset)?;
        }
        write!(f, "goaway: {:?}, settings: {:?}", self.goaway, self.settings)
    }
}
