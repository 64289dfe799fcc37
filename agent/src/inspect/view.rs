//! A record, read: what its bytes mean, and how it is shown.

use std::{borrow::Cow, io::Read as _, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use uniroute_proto::{
    Message as _,
    codec::HEADER_LEN,
    v1::{self, Header, HttpVersion, stream_open, stream_reply},
};
use uniroute_shared::{headers, message::Fields};

use super::{
    Inspector, Record,
    capture::{Body, Phase, Rare, Side},
    decode,
    frames::{Frame, Kind, MAX_TEXT},
};

/// Bytes of a body's text that are shown beside its request.
const MAX_PREVIEW: usize = 64 * 1024;

/// A request and its answer at one moment.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) record: Arc<Record>,
    /// Without what is in `http`.
    pub(crate) open: v1::StreamOpen,
    pub(crate) http: v1::HttpOpen,
    pub(crate) reply: Option<v1::ResponseHead>,
    pub(crate) phase: Phase,
    pub(crate) status: u16,
    rev: u64,
    kind: &'static str,
    error: Option<Box<str>>,
    upstream: Option<Arc<str>>,
    times: Times,
    pub(crate) request_size: u64,
    pub(crate) response_size: u64,
    frames: u64,
    began_ms: f64,
}

/// Microseconds since the request began; 0: not yet.
#[derive(Clone, Copy, Debug)]
struct Times {
    reused: bool,
    connected: u64,
    sent: u64,
    answered: u64,
    ended: u64,
    now: u64,
}

/// Microseconds of a request before it was here, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// It waited at the edge for this agent.
    pub(crate) held_us: Option<u32>,
    /// Else at the edge, since that had its whole head.
    pub(crate) edge_us: Option<u32>,
    /// From the edge to here: half of the round trip that was measured last. An answer takes as long.
    pub(crate) link_us: Option<u32>,
}

/// One of the two bodies, for who wants all that is kept of it.
#[derive(Debug)]
pub(crate) struct KeptBody {
    pub(crate) size: u64,
    pub(crate) head: Vec<u8>,
    pub(crate) file: Option<std::fs::File>,
    /// Why there is no file, where there might be one.
    pub(crate) spool: Option<&'static str>,
    pub(crate) encoding: String,
    /// The media type, in lower case, without parameters.
    pub(crate) kind: String,
}

impl KeptBody {
    /// All of it is in `head`.
    pub(crate) fn is_whole(&self) -> bool {
        self.size == self.head.len() as u64
    }

    /// What there is of it without its encoding, and whether that is cut; `None`: the encoding is not
    /// known.
    pub(crate) fn decoded(&mut self, inspector: &Inspector) -> Option<(Vec<u8>, bool)> {
        let max = decode::MAX_DECODED;
        let mut head = std::mem::take(&mut self.head);
        if let Some(file) = self.file.take() {
            head.clear();
            // As much packed as it may be unpacked: that is enough of any encoding.
            file.take(max as u64).read_to_end(&mut head).ok()?;
        }
        let _one = inspector.decoding.lock();
        let decoded = decode::decode(&self.encoding, &head, max)?;
        Some((decoded.bytes, decoded.cut || self.size > head.len() as u64))
    }

    /// Its text without its encoding and without secrets, and whether that is cut; `None`: it is
    /// no text.
    pub(crate) fn text(&self, inspector: &Inspector, max: usize) -> Option<(String, bool)> {
        let decoded = {
            let _one = inspector.decoding.lock();
            decode::decode(&self.encoding, &self.head, max)?
        };
        if !is_text(Some(self.kind.as_bytes()), &decoded.bytes) {
            return None;
        }
        let text = String::from_utf8_lossy(&decoded.bytes);
        Some((inspector.redactor.text(&self.kind, &text), decoded.cut || !self.is_whole()))
    }
}

impl View {
    pub(crate) fn new(record: &Arc<Record>, inspector: &Inspector) -> Self {
        let state = record.state();
        let (open, answer) = state.heads();
        let mut open = v1::StreamOpen::decode(open).unwrap_or_default();
        let http = match open.kind.take() {
            Some(stream_open::Kind::Http(http)) => http,
            _ => v1::HttpOpen::default(),
        };
        let now = record.began.elapsed().as_micros();
        let mut view = Self {
            record: Arc::clone(record),
            reply: reply(&answer),
            phase: state.phase,
            status: state.status,
            rev: state.rev,
            kind: "http",
            error: state.rare.as_ref().and_then(|rare| rare.error.clone()),
            upstream: state.upstream.clone(),
            times: Times {
                reused: state.reused,
                connected: record.us(state.connected),
                sent: record.us(state.sent),
                answered: record.us(state.answered),
                ended: record.us(state.ended),
                now: u64::try_from(now).unwrap_or(u64::MAX),
            },
            request_size: state.request.size,
            response_size: state.response.size,
            frames: state.frames.as_ref().map_or(0, |frames| frames.count),
            began_ms: inspector.wall_ms(record.began),
            open,
            http,
        };
        let frames = state.frames.as_ref().map(|frames| frames.kind);
        drop(state);
        view.kind = frames.unwrap_or_else(|| view.guess_kind());
        view
    }

    fn guess_kind(&self) -> &'static str {
        let grpc = |kind: &[u8]| kind.starts_with(b"application/grpc");
        if self.http.upgrade.eq_ignore_ascii_case(b"websocket") {
            "websocket"
        } else if self
            .answer_field("content-type")
            .is_some_and(|kind| media(kind) == "text/event-stream")
        {
            "sse"
        } else if self.asked_field("content-type").is_some_and(grpc) {
            "grpc"
        } else {
            "http"
        }
    }

    /// 32 hexadecimal digits.
    pub(crate) fn id(&self) -> String {
        hex(&self.open.request_id)
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Of the request.
    pub(crate) fn asked_field(&self, name: &str) -> Option<&[u8]> {
        field(&self.http.headers, name)
    }

    /// Of the answer.
    pub(crate) fn answer_field(&self, name: &str) -> Option<&[u8]> {
        field(&self.reply.as_ref()?.headers, name)
    }

    /// To its end, or to now.
    pub(crate) fn elapsed_us(&self) -> u64 {
        if self.times.ended == 0 { self.times.now } else { self.times.ended }
    }

    pub(crate) fn began_ms(&self) -> f64 {
        self.began_ms
    }

    /// The fields that the local server got.
    pub(crate) fn request_fields(&self) -> Fields {
        let mut fields = Fields(self.http.headers.clone());
        headers::to_next_hop(&mut fields);
        fields.set("Host", self.http.authority.clone());
        if !self.http.upgrade.is_empty() {
            fields.push("Upgrade", self.http.upgrade.clone());
            fields.push("Connection", "Upgrade");
        }
        fields
    }

    pub(crate) fn method(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.http.method)
    }

    /// Path and query, without secrets.
    pub(crate) fn path(&self, inspector: &Inspector) -> String {
        text(&inspector.redactor.target(&self.http.target))
    }

    /// Where visitors see it, without secrets.
    pub(crate) fn url(&self, inspector: &Inspector) -> String {
        let host = text(&self.http.authority);
        format!("{}://{host}{}", self.http.scheme, self.path(inspector))
    }

    pub(crate) fn http_version(&self) -> &'static str {
        match self.http.version() {
            HttpVersion::HttpVersion10 => "HTTP/1.0",
            HttpVersion::HttpVersion2 => "HTTP/2.0",
            HttpVersion::HttpVersion11 | HttpVersion::Unspecified => "HTTP/1.1",
        }
    }

    pub(crate) fn reason(&self) -> String {
        let written = self.reply.as_ref().map(|reply| text(&reply.reason)).unwrap_or_default();
        if !written.is_empty() {
            return written;
        }
        let status = http::StatusCode::from_u16(self.status).ok();
        status.and_then(|status| status.canonical_reason()).unwrap_or_default().to_owned()
    }

    /// Microseconds for each part: connecting, sending, waiting, receiving.
    pub(crate) fn parts_us(&self) -> [u64; 4] {
        let Times { connected, sent, answered, ended, .. } = self.times;
        let sent = sent.max(connected).min(if answered > 0 { answered } else { u64::MAX });
        [
            connected,
            sent - connected,
            answered.saturating_sub(sent),
            if answered > 0 { ended.saturating_sub(answered) } else { 0 },
        ]
    }

    /// What the request did before it was here.
    pub(crate) fn way(&self) -> Way {
        let v1::StreamOpen { edge_us, held_us, .. } = self.open;
        let known = |us: u32| (us > 0).then_some(us);
        let held = known(edge_us).and(known(held_us));
        Way {
            held_us: held,
            edge_us: known(edge_us).map(|us| us.saturating_sub(held_us)),
            link_us: known(self.record.rtt_us).map(|us| us.div_ceil(2)),
        }
    }

    /// One of the bodies, as far as it is kept.
    pub(crate) fn body(&self, side: Side) -> KeptBody {
        let field = |name| match side {
            Side::Visitor => self.asked_field(name),
            Side::Upstream => self.answer_field(name),
        };
        let state = self.record.state();
        let body = match side {
            Side::Visitor => &state.request,
            Side::Upstream => &state.response,
        };
        let Body { size, spooled, .. } = body;
        let file = spooled.as_ref().and_then(|spooled| spooled.file.open(*size));
        let spool = spooled.as_ref().filter(|_| file.is_none());
        KeptBody {
            size: *size,
            head: body.beginning().to_vec(),
            spool: spool.map(|spooled| spooled.file.why_not()),
            file,
            encoding: field("content-encoding").map(text).unwrap_or_default(),
            kind: field("content-type").map(media).unwrap_or_default(),
        }
    }

    /// A row of the list.
    pub(crate) fn summary(&self, inspector: &Inspector) -> Value {
        json!({
            "seq": self.record.seq,
            "rev": self.rev,
            "id": self.id(),
            "tunnel": &*self.record.tunnel,
            "method": self.method(),
            "scheme": self.http.scheme,
            "host": text(&self.http.authority),
            "path": self.path(inspector),
            "visitor": self.open.visitor,
            "started_ms": self.began_ms,
            "state": match self.phase {
                Phase::Open => "open",
                Phase::Done => "done",
                Phase::Failed => "failed",
            },
            "status": (self.status != 0).then_some(self.status),
            "kind": self.kind,
            "type": self.answer_field("content-type").map(media).unwrap_or_default(),
            "request_size": self.request_size,
            "response_size": self.response_size,
            "wait_us": (self.times.answered > 0).then_some(self.times.answered),
            "duration_us": (self.times.ended > 0).then_some(self.times.ended),
            "error": self.error,
            "replay_of": self.record.replay_of,
            "upstream": self.upstream.as_deref(),
        })
    }

    /// All of it.
    pub(crate) fn detail(&self, inspector: &Inspector) -> Value {
        let mut detail = self.summary(inspector);
        let [connect, send, wait, receive] = self.parts_us();
        let Times { reused, connected, .. } = self.times;
        let mut timing = json!({
            "reused": reused, "send_us": send, "wait_us": wait, "receive_us": receive,
        });
        if !reused && connected > 0 {
            timing["connect_us"] = connect.into();
        }
        let Way { held_us, edge_us, link_us } = self.way();
        for (leg, us) in [("held_us", held_us), ("edge_us", edge_us), ("link_us", link_us)] {
            if let Some(us) = us {
                timing[leg] = us.into();
            }
        }
        let state = self.record.state();
        let none = Rare::default();
        let rare = state.rare.as_deref().unwrap_or(&none);
        let trailers = |fields: &Option<Fields>| {
            fields.as_ref().map(|fields| shown(inspector, &fields.0)).unwrap_or_default()
        };
        let request_trailers = trailers(&rare.request_trailers);
        let response_trailers = trailers(&rare.response_trailers);
        let grpc = self.grpc(rare.response_trailers.as_ref());
        let informational: Vec<_> = rare
            .informational
            .iter()
            .filter_map(reply)
            .map(
                |head| json!({ "status": head.status, "headers": shown(inspector, &head.headers) }),
            )
            .collect();
        drop(state);
        let response = self.reply.as_ref().map(|reply| {
            json!({
                "status": self.status,
                "reason": self.reason(),
                "headers": shown(inspector, &reply.headers),
                "trailers": response_trailers,
                "informational": informational,
                "body": body_json(&self.body(Side::Upstream), inspector),
            })
        });
        let further = json!({
            "http_version": self.http_version(),
            "route": self.http.route,
            "timing": timing,
            "request": {
                "headers": shown(inspector, &self.request_fields().0),
                "trailers": request_trailers,
                "body": body_json(&self.body(Side::Visitor), inspector),
            },
            "response": response,
            "frames": self.frames,
        });
        if let (Value::Object(detail), Value::Object(further)) = (&mut detail, further) {
            detail.extend(further);
            if let Some(grpc) = grpc {
                detail.insert("grpc".to_owned(), grpc);
            }
        }
        detail
    }

    fn grpc(&self, trailers: Option<&Fields>) -> Option<Value> {
        if self.kind != "grpc" {
            return None;
        }
        let of = |name: &str| {
            let trailer = trailers.and_then(|fields| fields.get(name)).map(|value| &value[..]);
            trailer.or_else(|| self.answer_field(name)).map(text)
        };
        let status = of("grpc-status")?;
        let message = of("grpc-message").unwrap_or_default();
        Some(json!({ "status": status.parse::<u32>().ok(), "message": message }))
    }

    /// Messages behind the `after`th, and how many of those are not kept any more.
    pub(crate) fn frames(&self, after: u64, inspector: &Inspector) -> Value {
        let state = self.record.state();
        let (frames, count): (Vec<Frame>, u64) = match &state.frames {
            Some(log) => (log.frames.iter().cloned().collect(), log.count),
            None => (Vec::new(), 0),
        };
        drop(state);
        let kept = frames.iter().filter(|frame| frame.n > after).count() as u64;
        let dropped = count.saturating_sub(after).saturating_sub(kept);
        let inflated = self.inflated(&frames);
        let shown: Vec<_> = frames
            .iter()
            .zip(inflated)
            .filter(|(frame, _)| frame.n > after)
            .map(|(frame, inflated)| frame_json(frame, inflated.as_deref(), inspector))
            .collect();
        json!({ "frames": shown, "dropped": dropped })
    }

    /// A gRPC message without the compression that its side has named.
    fn unpacked(&self, frame: &Frame) -> Option<Vec<u8>> {
        let encoding = match frame.from {
            Side::Visitor => self.asked_field("grpc-encoding"),
            Side::Upstream => self.answer_field("grpc-encoding"),
        };
        let encoding = encoding.filter(|_| frame.compressed && !frame.is_cut())?;
        let decoded = decode::decode(&text(encoding), &frame.data, MAX_TEXT + 1)?;
        Some(decoded.bytes)
    }

    /// Compressed messages, as far as they can be read. Those of WebSocket (RFC 7692): where each
    /// begins anew, or all since the first are kept.
    fn inflated(&self, frames: &[Frame]) -> Vec<Option<Vec<u8>>> {
        if self.kind == "grpc" {
            return frames.iter().map(|frame| self.unpacked(frame)).collect();
        }
        let extensions = self.answer_field("sec-websocket-extensions").map(text);
        let extensions = extensions.unwrap_or_default();
        let mut sides = [Side::Visitor, Side::Upstream].map(|side| {
            let parameter = match side {
                Side::Visitor => "client_no_context_takeover",
                Side::Upstream => "server_no_context_takeover",
            };
            let whole = frames.first().is_none_or(|frame| frame.n == 1);
            (extensions.contains(parameter), whole, flate2::Decompress::new(false))
        });
        let inflate = |frame: &Frame| {
            if !frame.compressed || !matches!(frame.kind, Kind::Text | Kind::Binary) {
                return None;
            }
            let (anew, whole, inflater) = &mut sides[usize::from(frame.from == Side::Upstream)];
            if *anew {
                inflater.reset(false);
            } else if !*whole {
                return None;
            }
            if frame.is_cut() {
                *whole = false;
                return None;
            }
            let inflated = inflate(inflater, &frame.data);
            *whole &= inflated.is_some();
            inflated
        };
        frames.iter().map(inflate).collect()
    }
}

/// A WebSocket message without its compression, cut where it is long; `None`: it can't be read, or what
/// comes after it can't.
fn inflate(inflater: &mut flate2::Decompress, data: &[u8]) -> Option<Vec<u8>> {
    const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
    let mut out = Vec::with_capacity(16 * MAX_TEXT);
    for part in [data, &TAIL] {
        let before = inflater.total_in();
        inflater.decompress_vec(part, &mut out, flate2::FlushDecompress::Sync).ok()?;
        if inflater.total_in() - before < part.len() as u64 {
            return None;
        }
    }
    Some(out)
}

fn frame_json(frame: &Frame, inflated: Option<&[u8]>, inspector: &Inspector) -> Value {
    let mut cut = frame.is_cut();
    let readable = !frame.compressed || inflated.is_some();
    let mut data = Cow::from(inflated.unwrap_or(&frame.data));
    if data.len() > MAX_TEXT {
        (data, cut) = (Cow::from(data[..MAX_TEXT].to_vec()), true);
    }
    let kind = match frame.kind {
        Kind::Text => "text",
        Kind::Binary => "binary",
        Kind::Ping => "ping",
        Kind::Pong => "pong",
        Kind::Close => "close",
        Kind::Event => "event",
        Kind::Message => "message",
    };
    let mut shown = json!({
        "n": frame.n,
        "at_us": frame.at_us,
        "from": match frame.from { Side::Visitor => "visitor", Side::Upstream => "upstream" },
        "kind": kind,
        "size": frame.size,
        "compressed": frame.compressed,
        "cut": cut,
    });
    let redacted = |text: &str| inspector.redactor.text("", text);
    match frame.kind {
        Kind::Event => {
            let event = Event::new(&String::from_utf8_lossy(&data));
            shown["text"] = redacted(&event.data).into();
            for (name, value) in [("event", event.event), ("id", event.id)] {
                if !value.is_empty() {
                    shown[name] = value.into();
                }
            }
        }
        Kind::Close if data.len() >= 2 => {
            let code = u16::from_be_bytes([data[0], data[1]]);
            shown["code"] = code.into();
            shown["text"] = format!("{code} {}", String::from_utf8_lossy(&data[2..])).trim().into();
        }
        _ => match as_text(&data, cut).filter(|_| readable) {
            Some(text) => shown["text"] = redacted(text).into(),
            None => shown["base64"] = BASE64_STANDARD.encode(&data).into(),
        },
    }
    shown
}

/// An event of an event stream.
#[derive(Default)]
struct Event {
    event: String,
    id: String,
    data: String,
}

impl Event {
    fn new(block: &str) -> Self {
        let (mut event, mut data) = (Self::default(), Vec::new());
        for line in block.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => value.clone_into(&mut event.event),
                "id" => value.clone_into(&mut event.id),
                "data" => data.push(value),
                // Comments and the rest are shown as they are.
                _ => data.push(line),
            }
        }
        event.data = data.join("\n");
        event
    }
}

/// UTF-8 without control characters that no text has. What is cut may end within a character.
fn as_text(bytes: &[u8], cut: bool) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let strange = |c: char| c.is_control() && !c.is_ascii_whitespace() && c != '\x1b';
    (!text.contains(strange)).then_some(text)
}

fn body_json(body: &KeptBody, inspector: &Inspector) -> Value {
    let text = body.text(inspector, MAX_PREVIEW);
    let place = match () {
        () if body.file.is_some() => "spool",
        () if body.head.is_empty() => "none",
        () => "memory",
    };
    let mut shown = json!({
        "size": body.size,
        "kept": if body.file.is_some() { body.size } else { body.head.len() as u64 },
        "where": place,
        "encoding": body.encoding,
        "text": text.is_some(),
        "cut": body.file.is_none() && !body.is_whole(),
    });
    if let Some((text, cut)) = text {
        shown["text_preview"] = text.into();
        shown["preview_cut"] = cut.into();
    }
    shown
}

/// The head of an answer in its frame.
fn reply(frame: &bytes::Bytes) -> Option<v1::ResponseHead> {
    let message = (frame.len() >= HEADER_LEN).then(|| frame.slice(HEADER_LEN..))?;
    match v1::StreamReply::decode(message).ok()?.reply? {
        stream_reply::Reply::Head(head) | stream_reply::Reply::Informational(head) => Some(head),
        _ => None,
    }
}

/// Fields without secrets, for JSON.
pub(crate) fn shown(inspector: &Inspector, fields: &[Header]) -> Vec<[String; 2]> {
    let pair = |field: &Header| {
        [text(&field.name), text(&inspector.redactor.field(&field.name, &field.value))]
    };
    fields.iter().map(pair).collect()
}

fn field<'a>(fields: &'a [Header], name: &str) -> Option<&'a [u8]> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()));
    field.map(|field| &field.value[..])
}

/// Without parameters, in lower case.
pub(crate) fn media(value: &[u8]) -> String {
    let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
    text(kind.trim_ascii()).to_ascii_lowercase()
}

/// Whether a body of this type is to be shown as text.
pub(crate) fn is_text(kind: Option<&[u8]>, bytes: &[u8]) -> bool {
    let kind = kind.map(media).unwrap_or_default();
    let named = kind.starts_with("text/")
        || ["json", "xml", "javascript", "ecmascript", "yaml", "x-www-form-urlencoded", "graphql"]
            .iter()
            .any(|part| kind.ends_with(part));
    if named {
        return !bytes.contains(&0);
    }
    let binary = ["image/", "audio/", "video/", "font/", "application/grpc"];
    if binary.iter().any(|part| kind.starts_with(part)) {
        return false;
    }
    as_text(bytes, true).is_some()
}

/// For people and JSON: what is no UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The other way, of a request's id.
pub(crate) fn id_bytes(id: &str) -> Option<[u8; 16]> {
    if id.len() != 32 || !id.is_ascii() {
        return None;
    }
    let mut out = [0; 16];
    for (byte, digits) in out.iter_mut().zip(id.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Digits of a hash, for comparing what is no text.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}
