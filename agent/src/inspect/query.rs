//! What is searched for: words that must all match, `field:value` among them, `-` in front for those
//! that must not.

use super::{Inspector, Record, View, frames::Kind, view};
use crate::inspect::capture::Phase;

/// Words of a query at most; more are left out.
const MAX_WORDS: usize = 32;

/// A search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    words: Vec<(bool, Word)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Method(String),
    /// Inclusive.
    Status(u16, u16),
    Path(String),
    Tunnel(String),
    Type(String),
    /// Microseconds at least.
    Slow(u64),
    Is(Is),
    /// Anywhere; in lower case.
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    WebSocket,
    Sse,
    Grpc,
    Replay,
    Error,
}

impl Query {
    pub(crate) fn new(text: &str) -> Self {
        let words = text.split_whitespace().take(MAX_WORDS).filter_map(|word| {
            let (wanted, word) = match word.strip_prefix('-') {
                Some(rest) => (false, rest),
                None => (true, word),
            };
            (!word.is_empty()).then(|| (wanted, Word::new(word)))
        });
        Self { words: words.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub(crate) fn matches(&self, record: &std::sync::Arc<Record>, inspector: &Inspector) -> bool {
        if self.is_empty() {
            return true;
        }
        // Most that don't match are seen without decoding them.
        if self.words.iter().any(|(wanted, word)| *wanted && word.is_nowhere(record)) {
            return false;
        }
        let view = View::new(record, inspector);
        self.words.iter().all(|(wanted, word)| word.matches(&view, inspector) == *wanted)
    }
}

impl Word {
    fn new(word: &str) -> Self {
        let text = || Self::Text(word.to_lowercase());
        let Some((field, value)) = word.split_once(':') else { return text() };
        let known = match field {
            "method" => Some(Self::Method(value.to_owned())),
            "status" => status(value).map(|(from, to)| Self::Status(from, to)),
            "path" => Some(Self::Path(value.to_lowercase())),
            "tunnel" => Some(Self::Tunnel(value.to_owned())),
            "type" => Some(Self::Type(value.to_lowercase())),
            "slow" => value.parse::<u64>().ok().map(|ms| Self::Slow(ms.saturating_mul(1000))),
            "is" => match value {
                "websocket" => Some(Self::Is(Is::WebSocket)),
                "sse" => Some(Self::Is(Is::Sse)),
                "grpc" => Some(Self::Is(Is::Grpc)),
                "replay" => Some(Self::Is(Is::Replay)),
                "error" => Some(Self::Is(Is::Error)),
                _ => None,
            },
            _ => None,
        };
        known.unwrap_or_else(text)
    }

    /// Whether a text is in none of the bytes that are kept.
    fn is_nowhere(&self, record: &Record) -> bool {
        let Self::Text(text) = self else { return false };
        // An id or a status is not there as text.
        if text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return false;
        }
        if contains(record.tunnel.as_bytes(), text) {
            return false;
        }
        let state = record.state();
        let mut frames = state.frames.iter().flat_map(|log| &log.frames);
        let mut bytes = state.bytes().into_iter();
        !(bytes.any(|bytes| contains(bytes, text))
            || frames.any(|frame| contains(&frame.data, text)))
    }

    fn matches(&self, view: &View, inspector: &Inspector) -> bool {
        match self {
            Self::Method(method) => view.http.method.eq_ignore_ascii_case(method.as_bytes()),
            Self::Status(from, to) => (*from..=*to).contains(&view.status),
            Self::Path(path) => contains(&inspector.redactor.target(&view.http.target), path),
            Self::Tunnel(tunnel) => *view.record.tunnel == **tunnel,
            Self::Type(kind) => {
                let values = [view.answer_field("content-type"), view.asked_field("content-type")];
                values.into_iter().flatten().any(|value| contains(value, kind))
            }
            Self::Slow(us) => view.elapsed_us() >= *us,
            Self::Is(Is::WebSocket) => view.kind() == "websocket",
            Self::Is(Is::Sse) => view.kind() == "sse",
            Self::Is(Is::Grpc) => view.kind() == "grpc",
            Self::Is(Is::Replay) => view.record.replay_of.is_some(),
            Self::Is(Is::Error) => view.phase == Phase::Failed || view.status >= 500,
            Self::Text(text) => anywhere(view, inspector, text),
        }
    }
}

fn anywhere(view: &View, inspector: &Inspector, text: &str) -> bool {
    let redactor = &inspector.redactor;
    let http = &view.http;
    if contains(&http.method, text)
        || contains(&redactor.target(&http.target), text)
        || contains(&http.authority, text)
        || contains(view.open.visitor.as_bytes(), text)
        || contains(view.record.tunnel.as_bytes(), text)
        || (view.status != 0 && view.status.to_string() == text)
        || contains(view.id().as_bytes(), text)
    {
        return true;
    }
    let answer = view.reply.iter().flat_map(|reply| &reply.headers);
    let field = |field: &uniroute_proto::v1::Header| {
        contains(&field.name, text) || contains(&redactor.field(&field.name, &field.value), text)
    };
    if http.headers.iter().chain(answer).any(field) {
        return true;
    }
    let state = view.record.state();
    let texts = [
        (&state.request, view.asked_field("content-type")),
        (&state.response, view.answer_field("content-type")),
    ];
    if texts
        .into_iter()
        .map(|(body, kind)| (body.beginning(), kind))
        .any(|(bytes, kind)| view::is_text(kind, bytes) && contains(bytes, text))
    {
        return true;
    }
    let frames = state.frames.iter().flat_map(|log| &log.frames);
    let mut readable = frames.filter(|frame| !frame.compressed && frame.kind != Kind::Binary);
    readable.any(|frame| contains(&frame.data, text))
}

/// `404`, or `4xx`.
fn status(text: &str) -> Option<(u16, u16)> {
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=9).contains(class))?;
        return Some((class * 100, class * 100 + 99));
    }
    let status = text.parse().ok().filter(|status| (1..1000).contains(status))?;
    Some((status, status))
}

/// Whether `text`, which is in lower case, is in `bytes`; ASCII in any case.
fn contains(bytes: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    let Some(first) = text.first() else { return true };
    if bytes.len() < text.len() {
        return false;
    }
    let last = bytes.len() - text.len();
    let is = |at: usize| bytes[at..at + text.len()].eq_ignore_ascii_case(text);
    memchr::memchr2_iter(*first, first.to_ascii_uppercase(), &bytes[..=last]).any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_fields() {
        let query = Query::new("method:post status:5xx -status:404 is:sse Hello un:known slow:x -");
        assert_eq!(
            query.words,
            [
                (true, Word::Method("post".into())),
                (true, Word::Status(500, 599)),
                (false, Word::Status(404, 404)),
                (true, Word::Is(Is::Sse)),
                (true, Word::Text("hello".into())),
                (true, Word::Text("un:known".into())),
                (true, Word::Text("slow:x".into())),
            ]
        );
        assert!(Query::new("  ").is_empty());
    }

    #[test]
    fn text_is_found_in_any_case() {
        assert!(contains(b"Say Hello", "hello") && contains(b"a", "") && contains(b"ab", "b"));
        assert!(!contains(b"hell", "hello") && !contains(b"", "x"));
    }
}
