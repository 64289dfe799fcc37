//! What a visitor gets instead of the local server's answer: a page for browsers, a JSON problem
//! (RFC 9457) for other programs, a status of its own for gRPC. Nothing outside is loaded and nothing
//! is left unescaped.

use std::{fmt::Write as _, time::SystemTime};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, DATE,
    LOCATION, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;
use uniroute_shared::code::{Code, Leg};
use uniroute_shared::id::RequestId;
use uniroute_shared::policy::basic::CHALLENGE;

use crate::policy::{Policy, passwords::TRIES_WINDOW};

/// Tells the code of an answer that we made ourselves.
const ERROR_HEADER: HeaderName = HeaderName::from_static("x-uniroute-error");
/// Tells which request it was, as in the logs.
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-uniroute-request-id");

/// Characters shown of a detail, which may come from an agent.
const MAX_DETAIL: usize = 500;

/// Where the codes are explained.
const DOCS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/errors.md");

/// The answer to a request that failed with `code`; `detail` says what is special about this case,
/// `policy` is the tunnel's, whose owner may have a page of his own.
///
/// It is HTML where `accept` prefers that, and JSON in every other case.
pub(crate) fn error_response(
    code: &'static Code,
    request_id: &RequestId,
    detail: Option<&str>,
    accept: Option<&[u8]>,
    policy: Option<&Policy>,
) -> Response<Bytes> {
    let html = prefers_html(accept);
    let own = policy.filter(|_| html).and_then(|policy| policy.error_page(code));
    let own = own.map(|page| page.render(code, request_id));
    let status = code
        .status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let detail = detail.map(shortened);
    let failure = Failure { code, status, request_id, detail: detail.as_deref() };
    // What an owner writes may load what it likes, as any page of the tunnel may.
    let confined = html && own.is_none();
    let body =
        own.unwrap_or_else(|| Bytes::from(if html { failure.html() } else { failure.json() }));

    let mut response = Response::new(body);
    *response.status_mut() = status;
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(DATE, date());
    headers.insert(ERROR_HEADER, text_value(code));
    headers.insert(REQUEST_ID_HEADER, text_value(request_id));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    add_type(headers, html, confined);
    add_required(headers, code, status);
    response
}

/// The same for a gRPC call: a client that asks for a status in trailers would not show a page. An
/// answer of a head alone (gRPC over HTTP2, "Trailers-Only").
pub(crate) fn grpc_response(
    code: &'static Code,
    request_id: &RequestId,
    detail: Option<&str>,
) -> Response<Bytes> {
    // As gRPC's own table has it (http-grpc-status-mapping).
    let status = match code.status {
        Some(401) => "16",
        Some(403) => "7",
        Some(404) => "12",
        Some(429 | 502..=504) => "14",
        Some(400 | 431) => "13",
        _ => "2",
    };
    let detail = shortened(detail.unwrap_or(code.cause));
    let message = format!("{code}: {}. {detail}", code.title);
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status));
    headers.insert("grpc-message", text_value(&percent_encoded(&message)));
    headers.insert(ERROR_HEADER, text_value(code));
    headers.insert(REQUEST_ID_HEADER, text_value(request_id));
    headers.insert(DATE, date());
    response
}

/// What gRPC lets stand in a message, and the rest as its bytes in hexadecimal.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            byte => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

/// RFC 9110, section 6.6.1: whoever answers says when.
pub(super) fn date() -> HeaderValue {
    text_value(&httpdate::fmt_http_date(SystemTime::now()))
}

/// The answer to a request for what is at `location`.
pub(crate) fn moved(location: &Bytes) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_maybe_shared(location.clone()) {
        headers.insert(LOCATION, location);
    }
    headers.insert(DATE, date());
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    // Browsers keep a 308 for ever otherwise, and the owner may change his mind.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn add_type(headers: &mut HeaderMap, html: bool, confined: bool) {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
    let content_type = if html { "text/html; charset=utf-8" } else { "application/problem+json" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if confined {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    }
}

/// The fields that HTTP asks for with some statuses.
fn add_required(headers: &mut HeaderMap, code: &Code, status: StatusCode) {
    const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    if let Some(seconds) = code.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from(TRIES_WINDOW.as_secs()));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static(METHODS));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn text_value(text: &impl ToString) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("codes and ids are made of visible ASCII")
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whether a page is wanted more than JSON: by its weight, then by being named more exactly. Who
/// accepts both alike (`*/*`) is a program.
fn prefers_html(accept: Option<&[u8]>) -> bool {
    let accept = accept.filter(|value| value.is_ascii());
    let Some(accept) = accept.and_then(|value| std::str::from_utf8(value).ok()) else {
        return false;
    };
    let html = wish(accept, &["*/*", "text/*", "text/html"]);
    let json = wish(accept, &["*/*", "application/*", "application/json"]);
    let problem = wish(accept, &["*/*", "application/*", "application/problem+json"]);
    html.0 > 0 && html > json.max(problem)
}

/// The weight of a type in thousandths and how exactly it is named. `ranges` match the type, the
/// most exact last, and the most exact one that is present counts.
fn wish(accept: &str, ranges: &[&str]) -> (u16, usize) {
    let weight = |range: &str| {
        let mut items = accept.split(',').map(|item| item.split(';').map(str::trim));
        let mut parameters = items.find_map(|mut item| {
            item.next().is_some_and(|name| name.eq_ignore_ascii_case(range)).then_some(item)
        })?;
        let quality = parameters.find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q=")));
        Some(quality.map_or(1000, thousandths))
    };
    let found = ranges
        .iter()
        .enumerate()
        .rev()
        .find_map(|(exactness, range)| weight(range).map(|weight| (weight, exactness + 1)));
    found.unwrap_or((0, 0))
}

/// Reads a weight such as `0.8`; what is none weighs nothing.
fn thousandths(quality: &str) -> u16 {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    match whole {
        "1" => 1000,
        "0" if fraction.len() <= 3 => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

/// What both shapes are made of.
struct Failure<'a> {
    code: &'static Code,
    status: StatusCode,
    request_id: &'a RequestId,
    detail: Option<&'a str>,
}

impl Failure<'_> {
    fn json(&self) -> String {
        let code = self.code;
        json!({
            "type": format!("{DOCS}#{}", code.to_string().to_lowercase()),
            "title": code.title,
            "status": self.status.as_u16(),
            "detail": self.detail.unwrap_or(code.cause),
            "code": code.to_string(),
            "request_id": self.request_id.to_string(),
            "leg": code.leg.as_str(),
            "fix": code.fix,
        })
        .to_string()
    }

    fn html(&self) -> String {
        let Self { code, status, request_id, .. } = self;
        let (title, cause, fix) = (escaped(code.title), prose(code.cause), prose(code.fix));
        let way = way(code.leg);
        let whose = whose_turn(code.leg);
        let detail = self.detail.map_or(String::new(), |detail| {
            format!("<p class=\"detail\">{}</p>\n", escaped(detail))
        });
        let status = status.as_u16();
        format!(
            "<!doctype html>\n\
             <html lang=\"en\">\n\
             <head>\n\
             <meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"robots\" content=\"noindex\">\n\
             <title>{title} · {code}</title>\n\
             <style>{STYLE}</style>\n\
             </head>\n\
             <body>\n\
             <main>\n\
             <h1>{title}</h1>\n\
             {way}\
             <p>{cause}</p>\n\
             {detail}\
             <h2>{whose}</h2>\n\
             <p>{fix}</p>\n\
             <dl>\n\
             <dt>Code</dt><dd>{code}</dd>\n\
             <dt>Status</dt><dd>{status}</dd>\n\
             <dt>Request</dt><dd>{request_id}</dd>\n\
             </dl>\n\
             </main>\n\
             </body>\n\
             </html>\n"
        )
    }
}

/// The way of a request as a list, with the part that failed marked.
fn way(failed: Leg) -> String {
    const PARTS: [(Leg, &str); 5] = [
        (Leg::Visitor, "Visitor"),
        (Leg::Edge, "Edge"),
        (Leg::Link, "Link"),
        (Leg::Agent, "Agent"),
        (Leg::Upstream, "Local server"),
    ];
    // Access is decided in the edge.
    let failed = if failed == Leg::Access { Leg::Edge } else { failed };
    let item = |(leg, name): (Leg, &str)| {
        if leg == failed {
            format!("<li class=\"failed\"><b>{name}</b> <span>failed here</span></li>\n")
        } else {
            format!("<li>{name}</li>\n")
        }
    };
    let items: String = PARTS.into_iter().map(item).collect();
    format!("<ol aria-label=\"The way of the request\">\n{items}</ol>\n")
}

/// Who can do something about it.
fn whose_turn(leg: Leg) -> &'static str {
    match leg {
        Leg::Link | Leg::Agent | Leg::Upstream => "If this is your tunnel",
        Leg::Visitor | Leg::Edge | Leg::Access => "What to do",
    }
}

/// Our own texts: what is between backticks is code.
fn prose(text: &str) -> String {
    let part = |(index, part): (usize, &str)| match index % 2 {
        0 => escaped(part),
        _ => format!("<code>{}</code>", escaped(part)),
    };
    text.split('`').enumerate().map(part).collect()
}

/// Makes `text` harmless in HTML, in an element and in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2330; --dim: #5d6678; --line: #d5dae3; --bad: #b3261e; \
--ground: #fbfcfe; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf1; --dim: #9aa4b6; --line: #363d4a; \
--bad: #ff8a80; --ground: #14171d; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--ground); \
font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 44rem; margin: 10vh auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1rem; margin: 1.75rem 0 0; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
ol { list-style: none; display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; margin: 0 0 1.5rem; }
li { flex: 1 1 6rem; padding: .5rem .6rem; text-align: center; color: var(--dim); \
border: 1px solid var(--line); border-radius: .5rem; }
li.failed { color: var(--bad); border: 2px solid var(--bad); }
li span { display: block; font-size: .8rem; }
.detail, code, dd { font-family: ui-monospace, monospace; font-size: .9em; }
.detail { padding: .5rem .75rem; border-left: 3px solid var(--line); color: var(--dim); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 2rem 0 0; \
padding-top: 1rem; border-top: 1px solid var(--line); font-size: .9rem; color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
";

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use uniroute_shared::code::ALL;

    use super::*;

    const BROWSER: &str =
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";
    const EVIL: &str = "</p><script>alert(\"1\")</script>&'\r\n\0\\\",\"status\":200";

    fn answer(code: &'static Code, detail: Option<&str>, accept: Option<&str>) -> Response<Bytes> {
        error_response(code, &RequestId::new(), detail, accept.map(str::as_bytes), None)
    }

    fn text(response: &Response<Bytes>) -> &str {
        std::str::from_utf8(response.body()).unwrap()
    }

    #[test]
    fn a_program_gets_a_problem() {
        let id = RequestId::new();
        let response = error_response(&Code::NO_AGENT, &id, None, None, None);
        assert_eq!(response.status(), 503);
        let headers = response.headers();
        assert_eq!(headers["x-uniroute-error"], "UR-2001");
        assert_eq!(headers["x-uniroute-request-id"], id.to_string());
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["retry-after"], "5");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["content-length"], response.body().len().to_string());
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["type"].as_str().unwrap(), format!("{DOCS}#ur-2001"));
        assert_eq!((&body["status"], &body["code"]), (&json!(503), &json!("UR-2001")));
        assert_eq!((&body["leg"], &body["request_id"]), (&json!("agent"), &json!(id.to_string())));
        assert_eq!(body["title"], Code::NO_AGENT.title);
        assert_eq!(
            (&body["detail"], &body["fix"]),
            (&json!(Code::NO_AGENT.cause), &json!(Code::NO_AGENT.fix))
        );
        assert_eq!(body.as_object().unwrap().len(), 8);
    }

    #[test]
    fn an_owners_page_takes_the_place_of_ours_for_browsers() {
        let policy = uniroute_proto::v1::HttpPolicy {
            error_page: "<p>{{code}} {{request_id}}".into(),
            ..Default::default()
        };
        let policy = Policy::compile(Some(&policy), &std::sync::Arc::default()).unwrap().unwrap();
        let id = RequestId::new();
        let answer = |code, accept: Option<&str>| {
            error_response(code, &id, None, accept.map(str::as_bytes), Some(&policy))
        };
        let response = answer(&Code::UPSTREAM_REFUSED, Some(BROWSER));
        assert_eq!(text(&response), format!("<p>UR-3001 {id}"));
        assert_eq!(response.status(), 502);
        let headers = response.headers();
        assert_eq!(headers["x-uniroute-error"], "UR-3001");
        assert_eq!(headers["content-length"], response.body().len().to_string());
        assert!(!headers.contains_key("content-security-policy"));
        assert!(text(&answer(&Code::UPSTREAM_REFUSED, None)).starts_with('{'));
        let ours = answer(&Code::ADDRESS_REFUSED, Some(BROWSER));
        assert!(ours.headers().contains_key("content-security-policy"));
    }

    #[test]
    fn who_may_come_in_is_told_how() {
        let response = answer(&Code::PASSWORD_NEEDED, None, None);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Basic realm=\"restricted\", charset=\"UTF-8\""
        );
        assert_eq!(answer(&Code::TOO_MANY_FAILURES, None, None).headers()["retry-after"], "60");
    }

    #[test]
    fn a_browser_gets_a_page_with_the_failed_part_marked() {
        let response = answer(&Code::UPSTREAM_REFUSED, Some("127.0.0.1:3000"), Some(BROWSER));
        let headers = response.headers();
        assert_eq!(
            (response.status().as_u16(), &headers["content-type"]),
            (502, &HeaderValue::from_static("text/html; charset=utf-8"))
        );
        assert_eq!(
            headers["content-security-policy"],
            "default-src 'none'; style-src 'unsafe-inline'"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["content-length"], response.body().len().to_string());
        assert!(!headers.contains_key("retry-after"));
        let page = text(&response);
        assert_eq!(page.matches("class=\"failed\"").count(), 1);
        assert!(page.contains("<li class=\"failed\"><b>Local server</b>"));
        assert!(page.contains("If this is your tunnel") && page.contains("127.0.0.1:3000"));
        let id = headers["x-uniroute-request-id"].to_str().unwrap();
        assert!(page.contains("UR-3001") && page.contains(id));
    }

    #[test]
    fn every_code_makes_both_shapes_from_nothing_outside() {
        for &code in ALL {
            let page = answer(code, None, Some(BROWSER));
            let expected = code.status.unwrap_or(500);
            assert_eq!(page.status().as_u16(), expected);
            let page = text(&page);
            assert_eq!(page.matches("class=\"failed\"").count(), 1, "{code}");
            for outside in ["src=", "href=", "=\"http", "url(", "@import", "<script", "<link"] {
                assert!(!page.contains(outside), "{code}: {outside}");
            }
            assert!(!page.contains('`'), "{code}");
            let problem: Value = serde_json::from_slice(answer(code, None, None).body()).unwrap();
            assert_eq!(problem["status"], expected);
        }
    }

    #[test]
    fn a_grpc_call_gets_a_status() {
        let response = grpc_response(&Code::NO_AGENT, &RequestId::new(), Some("50 % \u{fc}"));
        let headers = response.headers();
        assert_eq!(
            (response.status().as_u16(), headers["grpc-status"].to_str().unwrap()),
            (200, "14")
        );
        assert_eq!(headers["grpc-message"], "UR-2001: The tunnel is not connected. 50 %25 %C3%BC");
        for &code in ALL {
            assert!(grpc_response(code, &RequestId::new(), None).body().is_empty());
        }
    }

    #[test]
    fn statuses_have_the_fields_they_need() {
        assert!(answer(&Code::METHOD_REFUSED, None, None).headers().contains_key("allow"));
        assert_eq!(answer(&Code::BAD_UPGRADE, None, None).headers()["upgrade"], "websocket");
    }

    #[test]
    fn a_detail_cannot_break_out() {
        let response = answer(&Code::AGENT_PROTOCOL, Some(EVIL), Some(BROWSER));
        let page = text(&response);
        assert!(!page.contains("<script") && !page.contains('\0') && !page.contains('\r'));
        assert!(
            page.contains("&lt;/p&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;")
        );
        let response = answer(&Code::AGENT_PROTOCOL, Some(EVIL), None);
        let problem: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&problem["detail"], &problem["status"]), (&json!(EVIL), &json!(502)));
    }

    #[test]
    fn a_long_detail_is_cut_with_a_mark() {
        let long = "ü".repeat(MAX_DETAIL + 1);
        let response = answer(&Code::AGENT_PROTOCOL, Some(&long), None);
        let problem: Value = serde_json::from_slice(response.body()).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.chars().count() == MAX_DETAIL + 1 && detail.ends_with('…'));
    }

    #[test]
    fn accept_decides_the_shape() {
        let html = |accept: &str| prefers_html(Some(accept.as_bytes()));
        for accept in [
            BROWSER,
            "text/html",
            "TEXT/HTML ; charset=utf-8; Q=0.5",
            "text/html, */*",
            "text/html, */*; q=0.01",
            "text/*;q=0.2, application/json;q=0.1",
            "application/json;q=0.8, text/html;q=0.9",
        ] {
            assert!(html(accept), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "application/json",
            "application/problem+json, text/html;q=0.9",
            "application/json, text/html",
            "text/html;q=0, */*",
            "text/html;q=0.000",
            "text/html;q=high",
            "text/html;q=-1",
            "text/html;q=0.1234",
            "text/*;q=1, text/html;q=0.1, application/*;q=0.5",
            "text/plain",
        ] {
            assert!(!html(accept), "{accept}");
        }
        assert!(!prefers_html(None));
        assert!(!prefers_html(Some(b"text/html\xff")));
    }
}
