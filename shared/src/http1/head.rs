//! Heads of requests and answers: the bytes of one become its parts, which point into them, and the
//! parts become bytes again.

use bytes::{Bytes, BytesMut};
use uniroute_proto::v1::Header;

use crate::message::Fields;

/// Longest head, in bytes, with its last empty line.
pub const MAX_HEAD: usize = 64 * 1024;
/// Fields of a head at most.
pub const MAX_FIELDS: usize = 128;

/// Why the bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It has more than [`MAX_HEAD`] bytes.
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// It has more than [`MAX_FIELDS`] fields.
    #[error("the head has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A version other than HTTP/1.0 and HTTP/1.1.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// Anything else; what is wrong, in words.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A request's head as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLine {
    /// A token.
    pub method: Bytes,
    /// Visible ASCII and bytes above it; its form is not looked at.
    pub target: Bytes,
    /// The number behind `HTTP/1.`: 0 or 1.
    pub minor: u8,
    /// Names are tokens; values hold no control characters but tabs.
    pub fields: Fields,
}

/// An answer's head as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusLine {
    /// 100 to 999.
    pub status: u16,
    /// The number behind `HTTP/1.`: 0 or 1.
    pub minor: u8,
    /// The reason phrase, empty if it is the usual one for the status, or missing.
    pub reason: Bytes,
    /// As in [`RequestLine::fields`].
    pub fields: Fields,
}

/// Where the head that begins with `bytes` ends, if that has come. The first `seen` bytes were
/// looked at before. Lines end with CR LF and with nothing else (RFC 9112, section 2.2 would allow
/// a lone LF; not every server sees the same end then).
pub(crate) fn end(bytes: &[u8], seen: usize) -> Result<Option<usize>, HeadError> {
    // A line that ended before may be the one that the next one is empty behind.
    for at in memchr::memchr_iter(b'\n', &bytes[seen..]).map(|at| at + seen) {
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(HeadError::Malformed("a line ends with LF alone"));
        }
        if at >= 3 && bytes[at - 2] == b'\n' {
            return match at < MAX_HEAD {
                true => Ok(Some(at + 1)),
                false => Err(HeadError::TooLong),
            };
        }
    }
    if bytes.len() > MAX_HEAD { Err(HeadError::TooLong) } else { Ok(None) }
}

/// Reads a request's head.
///
/// # Errors
/// [`HeadError`].
pub fn request(block: &Bytes) -> Result<RequestLine, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    complete(parsed.parse(block)).map_err(|error| without_version(error, block))?;
    let part = |text: Option<&str>| text.map(|text| block.slice_ref(text.as_bytes()));
    let (method, target) = part(parsed.method).zip(part(parsed.path)).ok_or(INCOMPLETE)?;
    if memchr::memchr(b'#', &target).is_some() {
        return Err(HeadError::Malformed("the target has a fragment"));
    }
    let minor = parsed.version.ok_or(INCOMPLETE)?;
    Ok(RequestLine { method, target, minor, fields: fields_of(block, parsed.headers) })
}

/// Reads an answer's head.
///
/// # Errors
/// [`HeadError`].
pub fn answer(block: &Bytes) -> Result<StatusLine, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    complete(parsed.parse(block))?;
    let (status, minor) = parsed.code.zip(parsed.version).ok_or(INCOMPLETE)?;
    if status < 100 {
        return Err(HeadError::Malformed("the status is below 100"));
    }
    Ok(StatusLine {
        status,
        minor,
        reason: unusual_reason(block, status),
        fields: fields_of(block, parsed.headers),
    })
}

/// Reads a trailer section, which ends with an empty line.
///
/// # Errors
/// [`HeadError`].
pub(crate) fn trailers(block: &Bytes) -> Result<Fields, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(block, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(fields_of(block, fields)),
        Ok(httparse::Status::Partial) => Err(INCOMPLETE),
        Err(error) => Err(error.into()),
    }
}

/// A first line that does not end with a version is none of HTTP at all.
fn without_version(error: HeadError, block: &[u8]) -> HeadError {
    let line = block.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = words.nth(2).filter(|_| words.next().is_none());
    match version {
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            error
        }
        _ if error == HeadError::Version => {
            HeadError::Malformed("the first line is not one of HTTP")
        }
        _ => error,
    }
}

/// Whether what begins with `bytes` may be a message: a request begins with a token, an answer with
/// its version. What is neither would be waited for in vain.
pub(crate) fn may_begin(bytes: &[u8], answer: bool) -> bool {
    const VERSION: &[u8] = b"HTTP/1.";
    match answer {
        true => bytes.iter().zip(VERSION).all(|(byte, expected)| byte == expected),
        false => bytes.first().is_none_or(|byte| crate::stream::is_token(*byte)),
    }
}

const INCOMPLETE: HeadError = HeadError::Malformed("the head is not complete");

fn complete(result: httparse::Result<usize>) -> Result<(), HeadError> {
    match result {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(INCOMPLETE),
        Err(error) => Err(error.into()),
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        use httparse::Error;
        match error {
            Error::TooManyHeaders => Self::TooManyFields,
            Error::Version => Self::Version,
            Error::HeaderName => {
                Self::Malformed("a field's name is not a token, or a line is folded")
            }
            Error::HeaderValue => Self::Malformed("a field's value holds a forbidden byte"),
            Error::Status => Self::Malformed("the status is not a number of three digits"),
            Error::NewLine => Self::Malformed("a line ends with CR alone"),
            Error::Token => Self::Malformed("the first line is not one of HTTP"),
        }
    }
}

fn fields_of(block: &Bytes, parsed: &[httparse::Header<'_>]) -> Fields {
    let field = |field: &httparse::Header<'_>| Header {
        name: block.slice_ref(field.name.as_bytes()),
        value: block.slice_ref(field.value),
    };
    Fields(parsed.iter().map(field).collect())
}

/// Writes the first line of a request for an HTTP/1.1 server.
pub fn put_request_line(method: &[u8], target: &[u8], out: &mut BytesMut) {
    for part in [method, b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The phrase of a status line that was read, if it says something of its own. Taken from the line
/// itself, since the parser has no words for bytes above ASCII.
fn unusual_reason(block: &Bytes, status: u16) -> Bytes {
    // Empty lines before it were taken away: it begins with the version and the status.
    let end = memchr::memchr(b'\r', block).unwrap_or(0);
    let reason = block.slice(b"HTTP/1.1 200 ".len().min(end)..end);
    if reason == usual_reason(status) { Bytes::new() } else { reason }
}

/// Writes the first line of an answer; with the usual phrase, where `reason` is empty.
pub fn put_status_line(status: u16, reason: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_decimal(status.into(), out);
    out.extend_from_slice(b" ");
    let reason = if reason.is_empty() { usual_reason(status).as_bytes() } else { reason };
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Writes a number.
fn put_decimal(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes a field.
pub fn put_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.reserve(name.len() + value.len() + 4);
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Ends a head or a trailer section.
pub fn put_end(out: &mut BytesMut) {
    out.extend_from_slice(b"\r\n");
}

/// The words for a status, which say nothing that it does not (RFC 9110, section 15.1).
fn usual_reason(status: u16) -> &'static str {
    let status = http::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_head_ends_with_an_empty_line_and_lines_with_cr_lf() {
        let head = b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest";
        let whole = head.len() - 4;
        for seen in 0..whole - 1 {
            assert_eq!(end(head, seen), Ok(Some(whole)), "{seen}");
        }
        assert_eq!(end(&head[..whole - 1], 0), Ok(None));
        for bad in [&b"GET / HTTP/1.1\n\n"[..], b"\n", b"GET / HTTP/1.1\r\nA: b\n\r\n"] {
            assert!(end(bad, 0).is_err());
        }
        let long = vec![b'a'; MAX_HEAD + 1];
        assert_eq!(end(&long, 0), Err(HeadError::TooLong));
    }

    #[test]
    fn requests_keep_what_they_say() {
        let read =
            request(&block("PoST //a%2Fb?? HTTP/1.0\r\nX-CuStOm:  a\tb \r\nx:\r\n\r\n")).unwrap();
        assert_eq!(
            (&read.method[..], &read.target[..], read.minor),
            (&b"PoST"[..], &b"//a%2Fb??"[..], 0)
        );
        let fields: Vec<_> = read.fields.iter().collect();
        assert_eq!(fields, [(&b"X-CuStOm"[..], &b"a\tb"[..]), (b"x", b"")]);
    }

    #[test]
    fn what_is_no_request() {
        for bad in [
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /a b HTTP/1.1\r\n\r\n",
            "GET /#f HTTP/1.1\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET /\r\n\r\n",
            "G(T / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\n: b\r\n\r\n",
        ] {
            assert!(
                matches!(request(&block(bad)), Err(HeadError::Malformed(_) | HeadError::Version)),
                "{bad:?}"
            );
        }
        assert_eq!(request(&block("GET / HTTP/2.0\r\n\r\n")), Err(HeadError::Version));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(request(&many.into()), Err(HeadError::TooManyFields));
    }

    #[test]
    fn answers() {
        let read = answer(&block("HTTP/1.1 299\r\nA: b\r\n\r\n")).unwrap();
        assert_eq!((read.status, read.minor, read.fields.len()), (299, 1, 1));
        assert!(may_begin(b"HT", true) && may_begin(b"", false) && may_begin(b"GET", false));
        assert!(!may_begin(b"SSH-2.0", true) && !may_begin(b"\x16\x03\x01", false));
        for bad in [
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        ] {
            assert!(answer(&block(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(trailers(&block("A: b\r\n\r\n")).unwrap().len(), 1);
    }

    #[test]
    fn heads_are_written() {
        let mut out = BytesMut::new();
        put_request_line(b"GET", b"/a", &mut out);
        put_field(b"A", b"b", &mut out);
        put_end(&mut out);
        put_status_line(404, b"", &mut out);
        put_status_line(799, b"", &mut out);
        for number in [0, 7, 10, u64::MAX] {
            put_decimal(number, &mut out);
            out.extend_from_slice(b",");
        }
        let expected = "GET /a HTTP/1.1\r\nA: b\r\n\r\nHTTP/1.1 404 Not Found\r\nHTTP/1.1 799 \r\n\
            0,7,10,18446744073709551615,";
        assert_eq!(out, expected);
    }
}
