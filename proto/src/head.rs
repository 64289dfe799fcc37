//! Request and answer heads: written straight from their parts, without a message in between, and
//! checked when they come in.
//!
//! A head is written once for every request, so it costs one allocation. What comes in was decoded
//! from protobuf and may hold any bytes; [`header_count`] and the `http` crate's own parsing decide
//! what becomes a header (T10: no CR, LF or NUL can pass).

pub mod read;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::encoded_len_varint;

use crate::{
    codec::{self, CodecError, HEADER_LEN, Kind, MAX_MESSAGE},
    v1,
};

/// Most header fields that a head or trailer may have.
pub const MAX_HEADERS: usize = 256;

/// What an edge says when it opens a stream for an HTTP request; borrowed, since it is only
/// written.
#[derive(Clone, Copy, Debug)]
pub struct HttpOpen<'a> {
    /// The tunnel asked for.
    pub tunnel_id: &'a [u8],
    /// 16 bytes, unique.
    pub request_id: &'a [u8],
    /// The visitor's address, without port.
    pub visitor: &'a str,
    /// W3C trace context, may be empty.
    pub traceparent: &'a [u8],
    /// The request's method.
    pub method: &'a [u8],
    /// Path and query as the visitor sent them.
    pub target: &'a [u8],
    /// What the visitor asked for in `Host`.
    pub authority: &'a [u8],
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The version that the visitor speaks.
    pub version: v1::HttpVersion,
    /// The token of an upgrade request, may be empty.
    pub upgrade: &'a [u8],
    /// The number of the tunnel's route, 0 for its default local server.
    pub route: u32,
}

impl HttpOpen<'_> {
    /// The MESSAGE frame with this `StreamOpen`. `headers` is asked twice: for the length, then for
    /// the fields. `end`: the request has no body.
    pub fn frame<'h, H>(&self, headers: impl Fn() -> H, end: bool) -> Bytes
    where
        H: Iterator<Item = (&'h [u8], &'h [u8])>,
    {
        // Field numbers of `HttpOpen` and `StreamOpen` in agent.proto.
        let fields: [(u32, &[u8]); 5] = [
            (1, self.method),
            (2, self.target),
            (3, self.authority),
            (4, self.scheme.as_bytes()),
            (7, self.upgrade),
        ];
        let version = self.version as u64;
        let http_len = fields.iter().map(|(_, v)| bytes_len(v)).sum::<usize>()
            + headers_len(headers())
            + number_len(version)
            + number_len(self.route.into());
        let outer: [(u32, &[u8]); 4] = [
            (1, self.tunnel_id),
            (2, self.request_id),
            (3, self.visitor.as_bytes()),
            (4, self.traceparent),
        ];
        let length = outer.iter().map(|(_, v)| bytes_len(v)).sum::<usize>() + nested_len(http_len);
        let mut out = begin(length, end);
        for (tag, value) in outer {
            put_bytes(tag, value, &mut out);
        }
        put_key(5, &mut out);
        put_varint(http_len as u64, &mut out);
        for (tag, value) in &fields[..4] {
            put_bytes(*tag, value, &mut out);
        }
        put_headers(5, headers(), &mut out);
        put_number(6, version, &mut out);
        put_bytes(7, self.upgrade, &mut out);
        put_number(8, self.route.into(), &mut out);
        out.freeze()
    }
}

/// The frame of a `StreamOpen`, and in it how long the edge has had the request, and held it, in
/// microseconds. A frame that has no room for it stays as it is. `end`: as it was made with.
#[must_use]
pub fn with_times(frame: &Bytes, edge_us: u32, held_us: u32, end: bool) -> Bytes {
    let (edge, held) = (edge_us.into(), held_us.into());
    let message = frame.get(HEADER_LEN..).unwrap_or_default();
    let length = message.len() + number_len(edge) + number_len(held);
    if length > MAX_MESSAGE {
        return frame.clone();
    }
    let mut out = begin(length, end);
    out.put_slice(message);
    put_number(9, edge, &mut out);
    put_number(10, held, &mut out);
    out.freeze()
}

/// The MESSAGE frame with a `StreamReply`: the final head, or an informational (1xx) one. `headers`
/// is asked twice: for the length, then for the fields. `reason` is HTTP/1's phrase, where it is not
/// the usual one. `end`: the answer has no body.
pub fn response<'h, H>(status: u16, reason: &[u8], headers: impl Fn() -> H, end: bool) -> Bytes
where
    H: Iterator<Item = (&'h [u8], &'h [u8])>,
{
    // 101 is final: the stream turns raw after it.
    let field = if (100..200).contains(&status) && status != 101 { 2 } else { 1 };
    let status = u64::from(status);
    let head_len = 1 + encoded_len_varint(status) + headers_len(headers()) + bytes_len(reason);
    let mut out = begin(nested_len(head_len), end);
    put_key(field, &mut out);
    put_varint(head_len as u64, &mut out);
    out.put_u8(1 << 3);
    put_varint(status, &mut out);
    put_headers(2, headers(), &mut out);
    put_bytes(3, reason, &mut out);
    out.freeze()
}

/// The last frame of a body with trailers.
pub fn trailers<'h, H>(headers: H) -> Bytes
where
    H: Iterator<Item = (&'h [u8], &'h [u8])>,
{
    let header = |(name, value): (&[u8], &[u8])| v1::Header {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    };
    codec::frame(Kind::Trailers, true, &v1::Trailers { headers: headers.map(header).collect() })
}

/// The last frame of a body that ended before its end.
#[must_use]
pub fn abort(message: &str) -> Bytes {
    codec::frame(Kind::Abort, true, &v1::Abort { message: message.to_owned() })
}

/// Refuses a head or trailer with more fields than [`MAX_HEADERS`].
///
/// # Errors
/// [`CodecError::Malformed`], naming the count.
pub fn header_count(what: &'static str, headers: &[v1::Header]) -> Result<(), CodecError> {
    if headers.len() > MAX_HEADERS {
        let reason = format!("{} header fields, the limit is {MAX_HEADERS}", headers.len());
        return Err(CodecError::Malformed { what, reason });
    }
    Ok(())
}

fn begin(length: usize, end: bool) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_LEN + length);
    out.put_slice(&codec::header(Kind::Message, end, length));
    out
}

/// Nearly all lengths in a head are below 128: one byte.
#[expect(clippy::cast_possible_truncation, reason = "guarded by its range")]
fn put_varint(value: u64, out: &mut BytesMut) {
    if value < 0x80 {
        out.put_u8(value as u8);
    } else {
        prost::encoding::encode_varint(value, out);
    }
}

/// Key of a length-delimited field below 16: one byte.
fn put_key(tag: u32, out: &mut BytesMut) {
    put_varint(u64::from(tag << 3 | 2), out);
}

/// Proto3 leaves zeros out.
fn put_number(tag: u32, value: u64, out: &mut BytesMut) {
    if value != 0 {
        put_varint(u64::from(tag << 3), out);
        put_varint(value, out);
    }
}

fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// Proto3 leaves empty fields out.
fn put_bytes(tag: u32, value: &[u8], out: &mut BytesMut) {
    if !value.is_empty() {
        put_key(tag, out);
        put_varint(value.len() as u64, out);
        out.put_slice(value);
    }
}

fn put_headers<'h>(
    tag: u32,
    headers: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    out: &mut BytesMut,
) {
    for (name, value) in headers {
        put_key(tag, out);
        put_varint((bytes_len(name) + bytes_len(value)) as u64, out);
        put_bytes(1, name, out);
        put_bytes(2, value, out);
    }
}

fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { nested_len(value.len()) }
}

fn nested_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn headers_len<'h>(headers: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> usize {
    headers.map(|(name, value)| nested_len(bytes_len(name) + bytes_len(value))).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn borrowed(pairs: &Pairs) -> impl Iterator<Item = (&[u8], &[u8])> {
        pairs.iter().map(|(n, v)| (n.as_slice(), v.as_slice()))
    }

    fn owned(pairs: &Pairs) -> Vec<v1::Header> {
        pairs
            .iter()
            .map(|(n, v)| v1::Header { name: n.clone().into(), value: v.clone().into() })
            .collect()
    }

    fn pairs() -> impl Strategy<Value = Pairs> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..200);
        prop::collection::vec((bytes(), bytes()), 0..20)
    }

    proptest! {
        /// The short way writes what prost would write.
        #[test]
        fn heads_equal_their_messages(
            method in "[A-Z]{1,8}", target in "/[a-z?=]{0,200}", upgrade in prop::collection::vec(any::<u8>(), 0..12),
            version in 0_i32..4, route in prop_oneof![0_u32..3, any::<u32>()], status in 100_u16..600, headers in pairs(), end in any::<bool>(),
        ) {
            let open = HttpOpen {
                tunnel_id: &[1; 16], request_id: &[2; 16], visitor: "203.0.113.9", traceparent: b"",
                method: method.as_bytes(), target: target.as_bytes(), authority: b"demo.localhost", scheme: "https",
                version: v1::HttpVersion::try_from(version).unwrap(), upgrade: &upgrade, route,
            };
            let message = v1::StreamOpen {
                tunnel_id: vec![1; 16].into(), request_id: vec![2; 16].into(),
                visitor: "203.0.113.9".into(), traceparent: String::new(), edge_us: 0, held_us: 0,
                kind: Some(v1::stream_open::Kind::Http(v1::HttpOpen {
                    method: method.clone().into(), target: target.clone().into(),
                    authority: Bytes::from_static(b"demo.localhost"), scheme: "https".into(),
                    headers: owned(&headers), version, upgrade: upgrade.clone().into(), route,
                })),
            };
            let frame = open.frame(|| borrowed(&headers), end);
            prop_assert_eq!(&frame, &codec::message(&message, end));
            let held_us = version.unsigned_abs();
            let message = v1::StreamOpen { edge_us: route, held_us, ..message };
            let timed = with_times(&frame, route, held_us, end);
            let parsed: v1::StreamOpen = codec::parse("StreamOpen", timed.slice(HEADER_LEN..)).unwrap();
            prop_assert_eq!(&parsed, &message);
            prop_assert_eq!(timed.len(), codec::message(&message, end).len());

            let reason: &[u8] = if end { b"Very well" } else { b"" };
            let head = v1::ResponseHead {
                status: status.into(), headers: owned(&headers), reason: reason.into(),
            };
            let reply = if (100..200).contains(&status) && status != 101 {
                v1::stream_reply::Reply::Informational(head)
            } else {
                v1::stream_reply::Reply::Head(head)
            };
            let message = v1::StreamReply { reply: Some(reply) };
            prop_assert_eq!(response(status, reason, || borrowed(&headers), end), codec::message(&message, end));
            let trailer = v1::Trailers { headers: owned(&headers) };
            prop_assert_eq!(trailers(borrowed(&headers)).slice(HEADER_LEN..), trailer.encode_to_vec());
        }
    }
}
