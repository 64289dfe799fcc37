//! A strict reader of HTTP/1.1 messages: what either side gets has to be valid, and where it ends has
//! to be beyond doubt (RFC 9112).

use std::ops::Range;

/// A request or an answer, as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// Where it lies among the bytes it was read from.
    pub(crate) range: Range<usize>,
    /// Request line or status line.
    pub(crate) first: Vec<u8>,
    /// As spelled.
    pub(crate) fields: Vec<Field>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<Field>,
    /// All that its framing promises is there.
    pub(crate) whole: bool,
}

pub(crate) type Field = (Vec<u8>, Vec<u8>);

impl Message {
    /// Of an answer.
    pub(crate) fn status(&self) -> u16 {
        let digits = self.first.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
    }

    /// Of a request.
    pub(crate) fn target(&self) -> &[u8] {
        self.first.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
    }

    /// Values of the fields called `name`, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        all(&self.fields, name)
    }

    fn is_answer(&self) -> bool {
        self.first.starts_with(b"HTTP/")
    }
}

/// Values of the fields called `name`, in order.
pub(crate) fn all<'a>(fields: &'a [Field], name: &str) -> Vec<&'a [u8]> {
    let called = |field: &&Field| field.0.eq_ignore_ascii_case(name.as_bytes());
    fields.iter().filter(called).map(|(_, value)| value.as_slice()).collect()
}

/// Where a body ends.
#[derive(Clone, Copy, Debug)]
enum Length {
    Exactly(usize),
    Chunked,
    ToTheEnd,
}

/// What the head of a message says beyond the bytes themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Answer,
    /// An answer to HEAD.
    AnswerToHead,
}

/// The message that begins at `at`; `None` while its head is not there. `over`: nothing more comes.
/// `Err`: no recipient may accept it.
pub(crate) fn read(
    bytes: &[u8],
    at: usize,
    over: bool,
    kind: Kind,
) -> Result<Option<Message>, String> {
    let Some(head) = find(&bytes[at..], b"\r\n\r\n") else { return Ok(None) };
    let mut message = read_head(&bytes[at..at + head], kind)?;
    let from = at + head + 4;
    let rest = &bytes[from..];
    let used = match length(&message, kind)? {
        Length::Exactly(length) => {
            let there = length.min(rest.len());
            message.body = rest[..there].to_vec();
            message.whole = there == length;
            there
        }
        Length::ToTheEnd => {
            message.body = rest.to_vec();
            message.whole = over;
            rest.len()
        }
        Length::Chunked => read_chunks(rest, &mut message)?,
    };
    message.range = at..from + used;
    Ok(Some(message))
}

/// Position of `needle`.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

fn read_head(head: &[u8], kind: Kind) -> Result<Message, String> {
    let mut lines = lines(head)?.into_iter();
    let first = lines.next().unwrap_or_default().to_vec();
    check_first(&first, kind)?;
    let fields = lines.map(read_field).collect::<Result<_, _>>()?;
    Ok(Message { first, fields, ..Message::default() })
}

/// Lines that end with CR LF and have neither of them inside.
fn lines(head: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut lines = Vec::new();
    let mut rest = head;
    loop {
        let end = find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(format!("CR, LF or NUL alone in {:?}", line.escape_ascii().to_string()));
        }
        lines.push(line);
        let Some(end) = end else { return Ok(lines) };
        rest = &rest[end + 2..];
    }
}

fn check_first(line: &[u8], kind: Kind) -> Result<(), String> {
    let wrong = || Err(format!("a bad first line {:?}", line.escape_ascii().to_string()));
    if kind == Kind::Request {
        let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        return match parts[..] {
            [method, target, b"HTTP/1.1"] if is_token(method) && !target.is_empty() => Ok(()),
            _ => wrong(),
        };
    }
    let version = line.starts_with(b"HTTP/1.1 ") || line.starts_with(b"HTTP/1.0 ");
    let digits = line.get(9..12).is_some_and(|code| code.iter().all(u8::is_ascii_digit));
    // The space behind the code stays even when there is no reason.
    let space = line.get(12).is_some_and(|byte| *byte == b' ');
    if version && digits && space { Ok(()) } else { wrong() }
}

fn read_field(line: &[u8]) -> Result<Field, String> {
    let colon = line.iter().position(|byte| *byte == b':');
    let field = colon.map(|colon| (&line[..colon], line[colon + 1..].trim_ascii()));
    match field {
        Some((name, value)) if is_token(name) => Ok((name.to_vec(), value.to_vec())),
        _ => Err(format!("a bad field line {:?}", line.escape_ascii().to_string())),
    }
}

fn is_token(name: &[u8]) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(token)
}

fn length(head: &Message, kind: Kind) -> Result<Length, String> {
    let lengths = head.all("content-length");
    let encodings = head.all("transfer-encoding");
    if lengths.len() + encodings.len() > 1 {
        return Err("more than one field says how long the body is".to_owned());
    }
    let bodyless = head.is_answer()
        && (kind == Kind::AnswerToHead
            || matches!(head.status(), 204 | 304)
            || head.status() < 200);
    if bodyless {
        if head.status() != 304 && kind != Kind::AnswerToHead && !lengths.is_empty() {
            return Err(format!("Content-Length in an answer {}", head.status()));
        }
        return Ok(Length::Exactly(0));
    }
    if let [encoding] = encodings[..] {
        if !encoding.eq_ignore_ascii_case(b"chunked") {
            return Err("a transfer coding other than chunked".to_owned());
        }
        if head.first.ends_with(b"HTTP/1.0") || head.first.starts_with(b"HTTP/1.0") {
            return Err("chunks in HTTP/1.0".to_owned());
        }
        return Ok(Length::Chunked);
    }
    if let [length] = lengths[..] {
        let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
        return match number {
            Some(number) if digits => Ok(Length::Exactly(number)),
            _ => Err("a Content-Length that is no number".to_owned()),
        };
    }
    if kind == Kind::Request {
        return Ok(Length::Exactly(0));
    }
    // Whoever reads on after an answer without a length has to be told that the connection ends.
    let closes = head.all("connection").iter().any(|value| value.eq_ignore_ascii_case(b"close"));
    if !closes && !head.first.starts_with(b"HTTP/1.0") {
        return Err("an answer to the connection's end without Connection: close".to_owned());
    }
    Ok(Length::ToTheEnd)
}

/// How many bytes of `rest` were used.
fn read_chunks(rest: &[u8], message: &mut Message) -> Result<usize, String> {
    let mut at = 0;
    loop {
        let Some(end) = find(&rest[at..], b"\r\n") else { return Ok(rest.len()) };
        let line = &rest[at..at + end];
        let wrong = || format!("a bad chunk size {:?}", line.escape_ascii().to_string());
        if line.is_empty() || line.len() > 16 || !line.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let text = std::str::from_utf8(line).map_err(|_| wrong())?;
        let size = usize::from_str_radix(text, 16).map_err(|_| wrong())?;
        at += end + 2;
        if size == 0 {
            return read_trailers(rest, at, message);
        }
        let there = size.min(rest.len() - at);
        message.body.extend_from_slice(&rest[at..at + there]);
        at += there;
        match &rest[at..] {
            [] | [b'\r'] => return Ok(rest.len()),
            [b'\r', b'\n', ..] => at += 2,
            _ => return Err("no CR LF behind a chunk".to_owned()),
        }
    }
}

fn read_trailers(rest: &[u8], mut at: usize, message: &mut Message) -> Result<usize, String> {
    loop {
        let Some(end) = find(&rest[at..], b"\r\n") else { return Ok(rest.len()) };
        let line = &rest[at..at + end];
        at += end + 2;
        if line.is_empty() {
            message.whole = true;
            return Ok(at);
        }
        message.trailers.push(read_field(line)?);
    }
}
