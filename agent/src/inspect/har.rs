//! Requests as HAR 1.2, which browsers' tools and others read.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Inspector, View,
    capture::Side,
    view::{self, Way},
};

/// Text of a body at most, in bytes.
const MAX_TEXT: usize = 1024 * 1024;

/// What is in front of the entries and behind them.
pub(crate) fn frame() -> (String, String) {
    let creator = json!({ "name": "uniroute", "version": env!("CARGO_PKG_VERSION") });
    (format!(r#"{{"log":{{"version":"1.2","creator":{creator},"entries":["#), "]}}".to_owned())
}

/// A request.
pub(crate) fn entry(view: &View, inspector: &Inspector) -> Value {
    let [connect, send, wait, receive] = view.parts_us().map(ms);
    let Way { held_us, edge_us, link_us } = view.way();
    let leg = |us: Option<u32>| us.map(|us| ms(us.into()));
    let mut entry = json!({
        "startedDateTime": date(view.began_ms()),
        "time": ms(view.elapsed_us()),
        "request": request(view, inspector),
        "response": response(view, inspector),
        "cache": {},
        "timings": {
            "blocked": -1, "dns": -1, "ssl": -1,
            "connect": if connect > 0.0 { connect } else { -1.0 },
            "send": send, "wait": wait, "receive": receive,
            // Before the request was here, and not in `time`.
            "_held": leg(held_us), "_edge": leg(edge_us), "_link": leg(link_us),
        },
        "_id": view.id(),
        "_tunnel": &*view.record.tunnel,
        "_kind": view.kind(),
    });
    if view.kind() == "websocket" {
        entry["_webSocketMessages"] = websocket_messages(view, inspector);
    }
    entry
}

/// As Chromium writes them.
fn websocket_messages(view: &View, inspector: &Inspector) -> Value {
    let frames = view.frames(0, inspector);
    let message = |frame: &Value| {
        let opcode = match frame["kind"].as_str() {
            Some("text") => 1,
            Some("binary") => 2,
            _ => return None,
        };
        let at = view.began_ms() / 1e3 + frame["at_us"].as_f64().unwrap_or_default() / 1e6;
        let data = frame["text"].as_str().or_else(|| frame["base64"].as_str());
        let from = if frame["from"] == "visitor" { "send" } else { "receive" };
        Some(
            json!({ "type": from, "time": at, "opcode": opcode, "data": data.unwrap_or_default() }),
        )
    };
    frames["frames"].as_array().into_iter().flatten().filter_map(message).collect()
}

fn request(view: &View, inspector: &Inspector) -> Value {
    let fields = view::shown(inspector, &view.request_fields().0);
    let body = view.body(Side::Visitor);
    let url = view.url(inspector);
    let query = url.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let mut request = json!({
        "method": view.method(),
        "url": url,
        "httpVersion": view.http_version(),
        "cookies": cookies(&fields, "cookie"),
        "headers": pairs(&fields),
        "queryString": parameters(query),
        "headersSize": -1,
        "bodySize": view.request_size,
    });
    if body.size > 0 {
        let kind = value(&fields, "content-type");
        let mut data = json!({ "mimeType": kind, "params": [] });
        match body.text(inspector, MAX_TEXT) {
            Some((text, cut)) => {
                data["text"] = text.into();
                note_cut(&mut data, cut);
            }
            None => {
                data["text"] = BASE64_STANDARD.encode(&body.head).into();
                data["encoding"] = "base64".into();
                note_cut(&mut data, !body.is_whole());
            }
        }
        request["postData"] = data;
    }
    request
}

fn response(view: &View, inspector: &Inspector) -> Value {
    let headers = view.reply.as_ref().map(|reply| &reply.headers[..]).unwrap_or_default();
    let fields = view::shown(inspector, headers);
    let body = view.body(Side::Upstream);
    let mut content = json!({ "size": body.size, "mimeType": value(&fields, "content-type") });
    match body.text(inspector, MAX_TEXT) {
        _ if body.size == 0 => content["text"] = "".into(),
        Some((text, cut)) => {
            if !body.encoding.is_empty() {
                content["size"] = text.len().into();
            }
            content["text"] = text.into();
            note_cut(&mut content, cut);
        }
        None => {
            content["text"] = BASE64_STANDARD.encode(&body.head).into();
            content["encoding"] = "base64".into();
            note_cut(&mut content, !body.is_whole());
        }
    }
    json!({
        "status": view.status,
        "statusText": view.reason(),
        "httpVersion": view.http_version(),
        "cookies": cookies(&fields, "set-cookie"),
        "headers": pairs(&fields),
        "content": content,
        "redirectURL": value(&fields, "location"),
        "headersSize": -1,
        "bodySize": view.response_size,
    })
}

fn note_cut(content: &mut Value, cut: bool) {
    if cut {
        content["comment"] = "only the beginning was kept".into();
    }
}

fn value<'a>(fields: &'a [[String; 2]], name: &str) -> &'a str {
    let field = fields.iter().find(|[other, _]| other.eq_ignore_ascii_case(name));
    field.map(|[_, value]| &value[..]).unwrap_or_default()
}

fn pairs(fields: &[[String; 2]]) -> Vec<Value> {
    fields.iter().map(|[name, value]| json!({ "name": name, "value": value })).collect()
}

fn parameters(query: &str) -> Vec<Value> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        json!({ "name": name, "value": value })
    };
    pairs.map(pair).collect()
}

fn cookies(fields: &[[String; 2]], name: &str) -> Vec<Value> {
    let values = fields.iter().filter(|[other, _]| other.eq_ignore_ascii_case(name));
    let crumbs = values.flat_map(|[_, value]| {
        // The attributes of one that is set are none of its own.
        let most = if name == "cookie" { usize::MAX } else { 1 };
        value.split(';').take(most)
    });
    let cookie = |crumb: &str| {
        let (name, value) = crumb.trim().split_once('=')?;
        Some(json!({ "name": name, "value": value }))
    };
    crumbs.filter_map(cookie).collect()
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a request fit")]
fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Of milliseconds since 1970.
pub(crate) fn date(ms: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "far from the ends")]
    let nanos = (ms * 1e3).round() as i128 * 1000;
    let date = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_default()
}
