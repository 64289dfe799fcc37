//! Heads read without asking prost for each field: one pass over the message, whose bytes the result
//! shares. Whatever is not as [`super`] writes it (an unknown field, a field twice where that means a
//! merge, a broken length) is left to prost, so that both always say the same.

use bytes::Bytes;

use crate::{
    codec::{self, CodecError},
    v1::{self, stream_open, stream_reply},
};

/// Reads a `StreamOpen`.
///
/// # Errors
/// [`CodecError::Malformed`] if it is none.
pub fn stream_open(payload: Bytes) -> Result<v1::StreamOpen, CodecError> {
    match open(&payload) {
        Some(open) => Ok(open),
        None => codec::parse("StreamOpen", payload),
    }
}

/// Reads a `StreamReply`.
///
/// # Errors
/// [`CodecError::Malformed`] if it is none.
pub fn stream_reply(payload: Bytes) -> Result<v1::StreamReply, CodecError> {
    match reply(&payload) {
        Some(reply) => Ok(reply),
        None => codec::parse("StreamReply", payload),
    }
}

fn open(payload: &Bytes) -> Option<v1::StreamOpen> {
    let mut open = v1::StreamOpen::default();
    let mut fields = Fields::of(payload, payload);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(id)) => open.tunnel_id = fields.share(id),
            (2, Value::Bytes(id)) => open.request_id = fields.share(id),
            (3, Value::Bytes(visitor)) => open.visitor = text(visitor)?,
            (4, Value::Bytes(trace)) => open.traceparent = text(trace)?,
            (5, Value::Bytes(http)) if open.kind.is_none() => {
                open.kind = Some(stream_open::Kind::Http(http_open(payload, http)?));
            }
            (9, Value::Number(edge)) => open.edge_us = u32::try_from(edge).ok()?,
            (10, Value::Number(held)) => open.held_us = u32::try_from(held).ok()?,
            _ => return None,
        }
    }
    Some(open)
}

fn http_open(payload: &Bytes, http: &[u8]) -> Option<v1::HttpOpen> {
    let mut open =
        v1::HttpOpen { headers: Vec::with_capacity(USUAL_HEADERS), ..Default::default() };
    let mut fields = Fields::of(payload, http);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(method)) => open.method = fields.share(method),
            (2, Value::Bytes(target)) => open.target = fields.share(target),
            (3, Value::Bytes(authority)) => open.authority = fields.share(authority),
            (4, Value::Bytes(scheme)) => open.scheme = text(scheme)?,
            (5, Value::Bytes(field)) => open.headers.push(header(payload, field)?),
            (6, Value::Number(version)) => open.version = i32::try_from(version).ok()?,
            (7, Value::Bytes(upgrade)) => open.upgrade = fields.share(upgrade),
            (8, Value::Number(route)) => open.route = u32::try_from(route).ok()?,
            _ => return None,
        }
    }
    Some(open)
}

fn reply(payload: &Bytes) -> Option<v1::StreamReply> {
    let mut fields = Fields::of(payload, payload);
    let reply = match fields.next()?? {
        (1, Value::Bytes(head)) => stream_reply::Reply::Head(response_head(payload, head)?),
        (2, Value::Bytes(head)) => {
            stream_reply::Reply::Informational(response_head(payload, head)?)
        }
        _ => return None,
    };
    fields.next()?.is_none().then_some(v1::StreamReply { reply: Some(reply) })
}

fn response_head(payload: &Bytes, head: &[u8]) -> Option<v1::ResponseHead> {
    let mut read =
        v1::ResponseHead { headers: Vec::with_capacity(USUAL_HEADERS), ..Default::default() };
    let mut fields = Fields::of(payload, head);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Number(status)) => read.status = u32::try_from(status).ok()?,
            (2, Value::Bytes(field)) => read.headers.push(header(payload, field)?),
            (3, Value::Bytes(reason)) => read.reason = fields.share(reason),
            _ => return None,
        }
    }
    Some(read)
}

#[inline]
fn header(payload: &Bytes, field: &[u8]) -> Option<v1::Header> {
    match short_header(field) {
        Some((name, value)) => {
            let (name, value) = (payload.slice_ref(name), payload.slice_ref(value));
            Some(v1::Header { name, value })
        }
        None => any_header(payload, field),
    }
}

/// Nearly each one: a name and a value, both with a length of one byte.
#[inline]
fn short_header(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x0a, length @ ..0x80, rest @ ..] = field else { return None };
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let [0x12, length @ ..0x80, value @ ..] = rest else { return None };
    (value.len() == usize::from(*length)).then_some((name, value))
}

fn any_header(payload: &Bytes, field: &[u8]) -> Option<v1::Header> {
    let mut header = v1::Header::default();
    let mut fields = Fields::of(payload, field);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(name)) => header.name = fields.share(name),
            (2, Value::Bytes(value)) => header.value = fields.share(value),
            _ => return None,
        }
    }
    Some(header)
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// Header fields that there is room for from the start.
const USUAL_HEADERS: usize = 16;

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message that is `rest`, a piece of `whole`.
struct Fields<'a> {
    whole: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    const fn of(whole: &'a Bytes, rest: &'a [u8]) -> Self {
        Self { whole, rest }
    }

    /// The next field's number and value, or `Some(None)` after the last. `None`: ask prost.
    #[inline]
    #[expect(clippy::option_option, reason = "two ways to have nothing, with `?` for the rare one")]
    fn next(&mut self) -> Option<Option<(u32, Value<'a>)>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        // Keys of fields below 16 are one byte; ours are.
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok()?;
        match key & 7 {
            0 => Some(Some((number, Value::Number(self.varint()?)))),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (value, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest;
                Some(Some((number, Value::Bytes(value))))
            }
            _ => None,
        }
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first()?;
        if *first < 0x80 {
            self.rest = rest;
            return Some(u64::from(*first));
        }
        prost::encoding::decode_varint(&mut self.rest).ok()
    }

    fn share(&self, piece: &[u8]) -> Bytes {
        self.whole.slice_ref(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn same(payload: &[u8]) {
        let payload = Bytes::copy_from_slice(payload);
        if let Some(open) = open(&payload) {
            assert_eq!(v1::StreamOpen::decode(payload.clone()).as_ref(), Ok(&open));
        }
        if let Some(reply) = reply(&payload) {
            assert_eq!(v1::StreamReply::decode(payload).as_ref(), Ok(&reply));
        }
    }

    fn an_open() -> v1::StreamOpen {
        let header = |name: &'static [u8], value: &'static [u8]| v1::Header {
            name: Bytes::from_static(name),
            value: Bytes::from_static(value),
        };
        v1::StreamOpen {
            tunnel_id: vec![1; 16].into(),
            request_id: vec![2; 16].into(),
            visitor: "203.0.113.9".into(),
            edge_us: 1_300,
            held_us: 7,
            kind: Some(stream_open::Kind::Http(v1::HttpOpen {
                method: "GET".into(),
                target: "/".into(),
                headers: vec![
                    header(b"accept", b"*/*"),
                    header(b"x", b""),
                    header(b"y", &[7; 300]),
                ],
                version: 2,
                route: 300,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_usual_is_not_left_to_prost() {
        let message = an_open();
        assert_eq!(open(&message.encode_to_vec().into()), Some(message));
        let head = v1::ResponseHead { status: 404, reason: "No".into(), ..Default::default() };
        let message = v1::StreamReply { reply: Some(stream_reply::Reply::Head(head)) };
        assert_eq!(reply(&message.encode_to_vec().into()), Some(message));
    }

    #[test]
    fn what_is_unusual_is() {
        let mut twice = an_open().encode_to_vec();
        twice.extend(an_open().encode_to_vec());
        assert_eq!(open(&twice.clone().into()), None);
        assert_eq!(stream_open(twice.clone().into()), codec::parse("StreamOpen", twice.into()));
        let tcp = v1::StreamOpen {
            kind: Some(stream_open::Kind::Tcp(v1::TcpOpen::default())),
            ..Default::default()
        };
        assert_eq!(stream_open(tcp.encode_to_vec().into()), Ok(tcp));
        assert!(stream_open(Bytes::from_static(&[0x0a, 5, 1])).is_err());
    }

    proptest! {
        #[test]
        fn both_say_the_same_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            same(&bytes);
        }

        #[test]
        fn both_say_the_same_of_broken_heads(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>(),
        ) {
            let reply = |head| v1::StreamReply { reply: Some(stream_reply::Reply::Head(head)) };
            let Some(stream_open::Kind::Http(http)) = an_open().kind else { unreachable!() };
            let answer = reply(v1::ResponseHead { status: 200, headers: http.headers, reason: "OK".into() });
            for mut bytes in [an_open().encode_to_vec(), answer.encode_to_vec()] {
                for (index, byte) in &changes {
                    let at = index.index(bytes.len());
                    bytes[at] = *byte;
                }
                same(&bytes);
                bytes.truncate(cut.index(bytes.len()));
                same(&bytes);
            }
        }
    }
}
