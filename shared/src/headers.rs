//! What both ends of a tunnel let through: hop-by-hop fields, our own fields and what would blur
//! where a message ends never pass (RFC 9110, section 7.6.1; RFC 9112, section 6).

use bytes::Bytes;
use uniroute_proto::v1::Header;

use crate::{
    http1::Length,
    message::{Fields, is},
    stream::is_token,
};

/// Fields that say where a request came from; whatever a visitor sends in them is dropped, and the
/// edge writes its own.
pub const FORWARDED: [&str; 7] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-real-ip",
];

/// Takes away what does not go on to the next hop: fields of one connection, those that `Connection`
/// names, and those that only we write. `TE: trailers` stays, for trailers pass.
pub fn to_next_hop(fields: &mut Fields) {
    strip(fields, |_| false);
}

/// The same for a visitor's request: what claims to say where it came from does not pass (T03).
pub fn of_visitor(fields: &mut Fields) {
    strip(fields, |field| is_forwarded(&field.name));
}

fn strip(fields: &mut Fields, also: impl Fn(&Header) -> bool) {
    let nominated = nominated(fields);
    let trailers = fields.has_token("te", "trailers");
    fields.0.retain(|field| {
        !(is_hop_by_hop(&field.name)
            || is_ours(&field.name)
            || also(field)
            || nominated.as_ref().is_some_and(|names| is_nominated(names, &field.name)))
    });
    if trailers {
        fields.push("te", "trailers");
    }
}

/// Whether the field belongs to one connection only. `Trailer` passes, since trailers do.
#[must_use]
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    let known: &[&[u8]] = match name.len() {
        2 => &[b"te"],
        7 => &[b"upgrade"],
        10 => &[b"connection", b"keep-alive"],
        14 => &[b"http2-settings"],
        16 => &[b"proxy-connection"],
        17 => &[b"transfer-encoding"],
        18 => &[b"proxy-authenticate"],
        19 => &[b"proxy-authorization"],
        _ => return false,
    };
    known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether the field is one that only we write.
#[must_use]
pub fn is_ours(name: &[u8]) -> bool {
    name.len() > 11 && same_to_a_script(&name[..11], b"x-uniroute-")
}

/// Whether the field says where a request came from.
fn is_forwarded(name: &[u8]) -> bool {
    matches!(name.first(), Some(b'x' | b'X' | b'f' | b'F'))
        && FORWARDED.iter().any(|known| same_to_a_script(name, known.as_bytes()))
}

/// Whether a local server may take the two names for one: many read underscores as hyphens. `known`
/// is in lower case and has hyphens.
#[must_use]
pub fn same_to_a_script(name: &[u8], known: &[u8]) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == known.len() && name.iter().zip(known).all(|(n, k)| plain(*n) == *k)
}

/// The values of `Connection`, where they name more than how the connection goes on.
fn nominated(fields: &Fields) -> Option<Vec<Bytes>> {
    let ordinary = |value: &Bytes| {
        [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|t| value.eq_ignore_ascii_case(t))
    };
    let unusual = fields.all("connection").any(|value| !ordinary(value));
    unusual.then(|| fields.all("connection").cloned().collect())
}

/// Whether one of the values of `Connection` names the field. They can't take away what a message
/// needs.
fn is_nominated(values: &[Bytes], name: &[u8]) -> bool {
    const NEEDED: [&[u8]; 6] =
        [b"content-length", b"trailer", b"host", b"authorization", b"cookie", b"via"];
    let mut elements =
        values.iter().flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    elements.any(|element| element.eq_ignore_ascii_case(name))
        && !NEEDED.iter().any(|needed| name.eq_ignore_ascii_case(needed))
}

/// Takes away what has no place in a trailer section: what frames or routes a message, says who
/// sends it or how its body is to be read, and what a head does not pass on either (RFC 9110,
/// section 6.5.1).
pub fn of_trailers(fields: &mut Fields) {
    fields.0.retain(|field| {
        let head_only = [
            "content-length",
            "content-encoding",
            "content-type",
            "content-range",
            "host",
            "trailer",
            "via",
            "expect",
            "range",
            "max-forwards",
            "authorization",
            "www-authenticate",
            "cookie",
            "set-cookie",
            "cache-control",
        ];
        !(is_hop_by_hop(&field.name)
            || is_ours(&field.name)
            || is_forwarded(&field.name)
            || head_only.iter().any(|name| is(field, name)))
    });
}

/// The token of a request that asks for another protocol on this connection, such as `websocket`.
/// `h2c` is none: it would let a second request hide behind the first one (T01).
#[must_use]
pub fn upgrade_token(fields: &Fields) -> Option<&Bytes> {
    let mut tokens = fields.all("upgrade");
    let token = tokens.next().filter(|_| tokens.next().is_none())?;
    let asked = fields.has_token("connection", "upgrade");
    (asked && is_protocol(token)).then_some(token)
}

/// Whether the token names one protocol, with a version or without, and one that is not `h2c`.
#[must_use]
pub fn is_protocol(token: &[u8]) -> bool {
    let plain = |byte: &u8| is_token(*byte) || *byte == b'/';
    !token.is_empty() && token.iter().all(plain) && !token.eq_ignore_ascii_case(b"h2c")
}

/// Whether asking twice is as good as once (RFC 9110, section 9.2.2).
#[must_use]
pub fn is_idempotent(method: &[u8]) -> bool {
    const METHODS: [&[u8]; 6] = [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"];
    METHODS.contains(&method)
}

/// Whether the message is one of gRPC over HTTP/2; gRPC-Web is HTTP like other.
#[must_use]
pub fn is_grpc(fields: &Fields) -> bool {
    let name = b"application/grpc";
    fields.get("content-type").is_some_and(|kind| {
        let (begin, rest) = kind.split_at(kind.len().min(name.len()));
        begin.eq_ignore_ascii_case(name) && matches!(rest.first(), None | Some(b'+' | b';'))
    })
}

/// Where a request's body ends. `minor` is the number behind `HTTP/1.`.
///
/// # Errors
/// Why that can't be told for sure, in words.
pub fn request_length(fields: &Fields, minor: u8) -> Result<Length, &'static str> {
    let framing = Framing::of(fields)?;
    if framing.chunked && minor == 0 {
        return Err("Transfer-Encoding is not known to HTTP/1.0");
    }
    Ok(match framing.chunked {
        true => Length::Chunked,
        false => Length::Exact(framing.length.unwrap_or(0)),
    })
}

/// Where the body of an answer ends; `to_head`: it answers a HEAD request.
///
/// # Errors
/// Why that can't be told for sure, in words.
pub fn answer_length(
    status: u16,
    fields: &Fields,
    minor: u8,
    to_head: bool,
) -> Result<Length, &'static str> {
    let framing = Framing::of(fields)?;
    if framing.chunked && minor == 0 {
        return Err("Transfer-Encoding is not known to HTTP/1.0");
    }
    Ok(match framing {
        _ if to_head || matches!(status, 100..=199 | 204 | 304) => Length::Exact(0),
        Framing { chunked: true, .. } => Length::Chunked,
        Framing { length: Some(length), .. } => Length::Exact(length),
        _ => Length::ToTheEnd,
    })
}

/// What a head says of the body's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// `Content-Length`.
    pub length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
}

impl Framing {
    /// Of a head.
    ///
    /// # Errors
    /// What contradicts itself or can't be read, in words (T01).
    pub fn of(fields: &Fields) -> Result<Self, &'static str> {
        let mut framing = Self { length: None, chunked: false };
        for field in &fields.0 {
            if is(field, "content-length") {
                let length = number(&field.value).ok_or("Content-Length is no number")?;
                if framing.length.replace(length).is_some() {
                    return Err("Content-Length is there twice");
                }
            } else if is(field, "transfer-encoding") {
                let twice = std::mem::replace(&mut framing.chunked, true);
                if twice || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err("Transfer-Encoding must be chunked, once");
                }
            }
        }
        match framing {
            Self { length: Some(_), chunked: true } => {
                Err("both Transfer-Encoding and Content-Length")
            }
            framing => Ok(framing),
        }
    }
}

/// Digits and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Fields {
        let mut fields = Fields::default();
        pairs.iter().for_each(|(name, value)| fields.push(*name, *value));
        fields
    }

    fn names(fields: &Fields) -> Vec<&str> {
        fields.iter().map(|(name, _)| std::str::from_utf8(name).unwrap()).collect()
    }

    /// T03: forged identity.
    #[test]
    fn t03_visitors_can_forge_nothing_and_take_nothing_away() {
        let mut all = fields(&[
            ("Host", "a"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("Forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("X-UniRoute-Request-Id", "1"),
            ("x_uniroute_request_id", "1"),
            ("Connection", "close, x-forwarded-for, x-mine, content-length, host"),
            ("X-Mine", "1"),
            ("Content-Length", "3"),
            ("Expect", "100-continue"),
            ("TE", "gzip"),
            ("X-Other", "1"),
        ]);
        of_visitor(&mut all);
        assert_eq!(names(&all), ["Host", "Content-Length", "Expect", "X-Other"]);
        let mut inside = fields(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "deflate, trailers"),
        ]);
        to_next_hop(&mut inside);
        assert_eq!(names(&inside), ["x-forwarded-for", "te"]);
    }

    #[test]
    fn trailers_frame_and_route_nothing() {
        let mut all = fields(&[("Content-Length", "1"), ("Host", "a"), ("X-A", "1"), ("TE", "x")]);
        of_trailers(&mut all);
        assert_eq!(names(&all), ["X-A"]);
    }

    #[test]
    fn upgrades_are_asked_for_in_full() {
        let upgrade =
            |pairs: &[(&'static str, &'static str)]| upgrade_token(&fields(pairs)).is_some();
        assert!(upgrade(&[("Connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "websocket, h2c")]));
        assert!(!upgrade(&[("upgrade", "websocket")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")]));
    }

    /// T01: what could end in two places is refused.
    #[test]
    fn t01_a_body_has_one_end() {
        let request = |pairs: &[(&'static str, &'static str)]| request_length(&fields(pairs), 1);
        assert_eq!(request(&[]), Ok(Length::Exact(0)));
        assert_eq!(request(&[("Content-Length", "12")]), Ok(Length::Exact(12)));
        assert_eq!(request(&[("Transfer-Encoding", "Chunked")]), Ok(Length::Chunked));
        for bad in [
            &[("content-length", "1"), ("Content-Length", "1")][..],
            &[("content-length", "+1")],
            &[("content-length", "")],
            &[("content-length", "1, 1")],
            &[("content-length", "18446744073709551616")],
            &[("content-length", "1"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "")],
        ] {
            assert!(request(bad).is_err(), "{bad:?}");
        }
        let chunked = fields(&[("transfer-encoding", "chunked")]);
        assert!(
            request_length(&chunked, 0).is_err() && answer_length(200, &chunked, 0, false).is_err()
        );
        let long = fields(&[("content-length", "5")]);
        assert_eq!(answer_length(200, &long, 1, false), Ok(Length::Exact(5)));
        assert_eq!(answer_length(200, &long, 1, true), Ok(Length::Exact(0)));
        assert_eq!(answer_length(304, &long, 1, false), Ok(Length::Exact(0)));
        assert_eq!(answer_length(200, &Fields::default(), 1, false), Ok(Length::ToTheEnd));
    }
}
