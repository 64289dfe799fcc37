//! Answers compressed on the way to the visitor, piece by piece as they come.
//!
//! Only what gains by it and can't be hurt by it: text of some length, answered whole (200) and not
//! compressed already. Never event streams and never gRPC, whose readers wait for each piece. gzip
//! is what every client has; better ratios cost several times the CPU, and that is the edge's.

use std::{io::Write as _, sync::Arc};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uniroute_shared::message::{Fields, RequestHead};

/// Answers compressed at a time; each takes about 300 KiB.
pub(super) const MAX_COMPRESSORS: usize = 1_024;
/// Shorter bodies gain nothing.
const MIN_LENGTH: u64 = 1_024;
/// Of 9: most of the gain for a third of the CPU.
const LEVEL: u32 = 4;

/// Beside `text/*`, `*+json` and `*+xml`.
const TYPES: [&str; 12] = [
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/ecmascript",
    "application/xml",
    "application/wasm",
    "application/graphql",
    "application/x-ndjson",
    "application/rtf",
    "application/vnd.ms-fontobject",
    "font/ttf",
    "font/otf",
];
/// Text whose readers wait for each piece.
const LIVE: [&str; 2] = ["text/event-stream", "text/x-grpc"];

/// Whether a visitor would take a compressed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish(bool);

impl Wish {
    /// Of a request as the visitor sent it.
    pub(crate) fn of(head: &RequestHead) -> Self {
        let fields = &head.fields;
        Self(head.method != "HEAD" && !fields.contains("range") && takes_gzip(fields))
    }
}

/// Whether `Accept-Encoding` allows gzip (RFC 9110, section 12.5.3).
fn takes_gzip(fields: &Fields) -> bool {
    let (mut named, mut any) = (None, None);
    for value in fields.all("accept-encoding") {
        for item in value.split(|byte| *byte == b',') {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let allowed = parts.all(|parameter| !is_zero_weight(parameter));
            if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
                named = Some(allowed);
            } else if coding == b"*" {
                any = Some(allowed);
            }
        }
    }
    named.or(any).unwrap_or(false)
}

/// `q=0`, `q=0.0`, …
fn is_zero_weight(parameter: &[u8]) -> bool {
    let [b'q' | b'Q', rest @ ..] = parameter else { return false };
    let weight = rest.trim_ascii_start().strip_prefix(b"=").map(<[u8]>::trim_ascii);
    weight.is_some_and(|weight| weight.iter().all(|byte| matches!(byte, b'0' | b'.')))
}

/// Makes `fields` those of a compressed answer and begins it, if it is to be compressed.
pub(super) fn compressor(
    wish: Wish,
    status: u16,
    fields: &mut Fields,
    places: &Arc<Semaphore>,
) -> Option<Compressor> {
    if status != 200 || !gains(fields) {
        return None;
    }
    // Caches must know that another visitor gets another answer, whatever this one gets.
    if !fields.has_token("vary", "accept-encoding") && !fields.has_token("vary", "*") {
        fields.push("vary", "Accept-Encoding");
    }
    let place = Arc::clone(places).try_acquire_owned().ok().filter(|_| wish.0)?;
    fields.push("content-encoding", "gzip");
    for name in ["content-length", "accept-ranges"] {
        fields.remove(name);
    }
    // Byte for byte it is another answer now.
    for field in &mut fields.0 {
        if uniroute_shared::message::is(field, "etag") && field.value.starts_with(b"\"") {
            field.value = [b"W/", &field.value[..]].concat().into();
        }
    }
    let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
    Some(Compressor { encoder, _place: place })
}

/// Whether an answer with these fields would be shorter and just as good.
fn gains(fields: &Fields) -> bool {
    let length = fields.get("content-length").map(|value| std::str::from_utf8(value));
    let long = match length {
        Some(text) => {
            text.ok().and_then(|text| text.parse().ok()).is_some_and(|n: u64| n >= MIN_LENGTH)
        }
        None => true,
    };
    let as_it_is = ["content-encoding", "content-range", "content-digest", "digest", "content-md5"];
    long && !as_it_is.iter().any(|name| fields.contains(name))
        && !fields.has_token("cache-control", "no-transform")
        && fields.get("content-type").is_some_and(|kind| is_text(kind))
}

fn is_text(kind: &[u8]) -> bool {
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let Ok(kind) = std::str::from_utf8(kind) else { return false };
    let kind = kind.to_ascii_lowercase();
    !LIVE.contains(&kind.as_str())
        && (kind.starts_with("text/")
            || kind.ends_with("+json")
            || kind.ends_with("+xml")
            || TYPES.contains(&kind.as_str()))
}

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Compressor {
    encoder: GzEncoder<Vec<u8>>,
    _place: OwnedSemaphorePermit,
}

impl Compressor {
    /// What the visitor gets for the next piece: all of it, so that nothing waits for more to come.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Bytes {
        if piece.is_empty() {
            return Bytes::new();
        }
        // Writing to a vector can't fail.
        let _ = self.encoder.write_all(piece).and_then(|()| self.encoder.flush());
        std::mem::take(self.encoder.get_mut()).into()
    }

    /// The end, after the last piece. Without it the visitor sees that the body broke off.
    pub(crate) fn finish(self) -> Bytes {
        self.encoder.finish().unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Fields {
        let mut fields = Fields::default();
        pairs.iter().for_each(|(name, value)| fields.push(*name, *value));
        fields
    }

    fn begin(wish: bool, status: u16, fields: &mut Fields) -> Option<Compressor> {
        compressor(Wish(wish), status, fields, &Arc::new(Semaphore::new(1)))
    }

    fn wants(accept: &'static str) -> bool {
        takes_gzip(&fields(&[("Accept-Encoding", accept)]))
    }

    #[test]
    fn visitors_say_whether_they_take_gzip() {
        for yes in ["gzip", "br, GZIP;q=0.1", "*", "x-gzip", "gzip ; q=1", "*;q=0, gzip"] {
            assert!(wants(yes), "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "gzip; Q = 0.000", "*, gzip;q=0", "identity", "gzipp"] {
            assert!(!wants(no), "{no}");
        }
        assert!(!takes_gzip(&Fields::default()));
        assert!(takes_gzip(&fields(&[("accept-encoding", "br"), ("accept-encoding", "gzip")])));
    }

    #[test]
    fn only_what_gains_is_compressed() {
        let html = ("Content-Type", "Text/HTML; charset=utf-8");
        let compresses = |pairs: &[_]| begin(true, 200, &mut fields(pairs)).is_some();
        assert!(compresses(&[html]) && compresses(&[html, ("content-length", "1024")]));
        assert!(compresses(&[("content-type", "application/problem+json")]));
        assert!(compresses(&[("content-type", "image/svg+xml")]));
        for other in [
            ("content-length", "1023"),
            ("content-length", "x"),
            ("Content-Encoding", "br"),
            ("Cache-Control", "public, no-transform"),
            ("Content-Range", "bytes 0-1/2"),
            ("content-digest", "sha-256=:x:"),
        ] {
            assert!(!compresses(&[html, other]), "{other:?}");
        }
        for kind in [
            "text/event-stream",
            "Text/Event-Stream; charset=utf-8",
            "application/grpc",
            "application/grpc+proto",
            "application/grpc-web-text",
            "image/png",
            "application/octet-stream",
            "",
        ] {
            assert!(!compresses(&[("content-type", kind)]), "{kind}");
        }
        assert!(!compresses(&[]));
        for status in [204, 206, 304, 404, 101] {
            assert!(begin(true, status, &mut fields(&[html])).is_none(), "{status}");
        }
    }

    #[test]
    fn the_fields_tell_of_it() {
        let answer = || {
            fields(&[
                ("Content-Type", "text/css"),
                ("Content-Length", "5000"),
                ("ETag", "\"a\""),
                ("Accept-Ranges", "bytes"),
                ("Vary", "Origin"),
            ])
        };
        let mut compressed = answer();
        assert!(begin(true, 200, &mut compressed).is_some());
        let expected = fields(&[
            ("Content-Type", "text/css"),
            ("ETag", "W/\"a\""),
            ("Vary", "Origin"),
            ("vary", "Accept-Encoding"),
            ("content-encoding", "gzip"),
        ]);
        assert_eq!(compressed, expected);
        let mut plain = answer();
        assert!(begin(false, 200, &mut plain).is_none());
        assert!(plain.has_token("vary", "accept-encoding") && plain.contains("content-length"));
        let mut weak = fields(&[("content-type", "text/css"), ("etag", "W/\"a\"")]);
        begin(true, 200, &mut weak).unwrap();
        assert_eq!(weak.get("etag").unwrap(), "W/\"a\"");
    }

    #[test]
    fn every_piece_comes_out_whole_and_the_end_is_an_end() {
        let mut compressor =
            begin(true, 200, &mut fields(&[("content-type", "a/b+json")])).unwrap();
        let mut wire = Vec::new();
        let mut seen = Vec::new();
        for piece in ["first ", "second ", "", "third"] {
            wire.extend_from_slice(&compressor.push(piece.as_bytes()));
            let mut decoder = flate2::write::GzDecoder::new(Vec::new());
            decoder.write_all(&wire).unwrap();
            decoder.flush().unwrap();
            seen.extend_from_slice(piece.as_bytes());
            assert_eq!(decoder.get_ref(), &seen);
        }
        wire.extend_from_slice(&compressor.finish());
        let mut text = String::new();
        flate2::read::GzDecoder::new(&wire[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "first second third");
    }

    #[test]
    fn compressors_are_few() {
        let places = Arc::new(Semaphore::new(1));
        let mut answers =
            [fields(&[("content-type", "text/css")]), fields(&[("content-type", "text/css")])];
        let first = compressor(Wish(true), 200, &mut answers[0], &places);
        assert!(first.is_some());
        assert!(compressor(Wish(true), 200, &mut answers[1], &places).is_none());
        assert!(!answers[1].contains("content-encoding"));
        drop(first);
        assert!(compressor(Wish(true), 200, &mut answers[1], &places).is_some());
    }
}
