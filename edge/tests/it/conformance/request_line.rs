//! The first line of a request: kept byte for byte, or refused (RFC 9112, section 3).

use super::case::{Case, HOST, case, expect, get};

/// A request with this line and nothing but the host.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: {HOST}\r\n\r\n")
}

/// A target that goes on as it is.
fn kept(name: &'static str, target: &'static str) -> Case {
    case(name, "RFC 9112, 3.2.1: the target is not changed")
        .send(get(target, ""))
        .status(200)
        .origin_line(format!("GET {target} HTTP/1.1"))
        .open()
}

/// A line that two programs could read in two ways.
fn refused(name: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    case(name, "RFC 9112, 3: an invalid request line is answered 400").send(bytes).refused(&[400])
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = targets();
    all.extend(methods());
    all.extend(versions());
    all.extend(malformed());
    all
}

fn targets() -> Vec<Case> {
    vec![
        kept("request-line/double-slash", "//a//b//"),
        kept("request-line/encoded-slash", "/a%2Fb%2f"),
        kept("request-line/semicolon", "/a;p=1;q/b;"),
        kept("request-line/empty-query", "/a?"),
        kept("request-line/dot-segments", "/a/../b/./c/.."),
        kept("request-line/second-question-mark", "/a?b?c=/d&&=&"),
        kept("request-line/percent-nul", "/a%00b?%0d%0a")
            .nginx("refuses NUL in a path", expect().refused(&[400])),
        kept("request-line/sub-delimiters", "/~!$&'()*+,;=:@-._"),
        kept("request-line/brackets-in-query", "/a?x[]=1&y={z}|\"'<>^`\\"),
        kept("request-line/long-target", {
            // Well below what a head may have.
            Box::leak(format!("/{}", "a".repeat(16_000)).into_boxed_str())
        }),
        case("request-line/bad-percent", "RFC 3986, 2.1; RFC 9110, 4.2.3")
            .send(get("/a%zz%", ""))
            .refused_or_line("GET /a%zz% HTTP/1.1"),
        case("request-line/raw-utf-8", "RFC 3986, 2: kept or refused, and nothing in between")
            .send(get("/caf\u{e9}?\u{20ac}", ""))
            .refused_or_line("GET /caf\u{e9}?\u{20ac} HTTP/1.1"),
        case("request-line/options-asterisk", "RFC 9112, 3.2.4")
            .send(line("OPTIONS * HTTP/1.1"))
            .status(200)
            .origin_line("OPTIONS * HTTP/1.1")
            .nginx_differs("answers 400 itself: it has no location for *"),
        case("request-line/get-asterisk", "RFC 9112, 3.2.4: * is for OPTIONS only")
            .send(line("GET * HTTP/1.1"))
            .status(400)
            .origin_untouched(),
        case("request-line/absolute-form", "RFC 9112, 3.2.2")
            .send(line("GET http://demo.tunnels.test/a?b HTTP/1.1"))
            .status(200)
            .origin_line("GET /a?b HTTP/1.1")
            .origin_field("host", &[HOST])
            .open(),
        case("request-line/absolute-form-without-path", "RFC 9112, 3.2.1: an empty path is /")
            .send(line("GET http://demo.tunnels.test HTTP/1.1"))
            .status(200)
            .origin_line("GET / HTTP/1.1"),
        case(
            "request-line/absolute-form-upper-case",
            "RFC 9110, 4.2.3: scheme and host have no case",
        )
        .send("GET HTTP://DEMO.tunnels.test/a HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n")
        .status(200)
        .origin_line("GET /a HTTP/1.1"),
        case("request-line/absolute-form-query-only", "RFC 9112, 3.2.1: an empty path is /")
            .send(line("GET http://demo.tunnels.test?a HTTP/1.1"))
            .status(200)
            .origin_line("GET /?a HTTP/1.1"),
        case("request-line/absolute-form-of-another", "T02: target and Host have to agree")
            .send(line("GET http://other.tunnels.test/a HTTP/1.1"))
            .status(400)
            .origin_untouched()
            .nginx(
                "goes by the target and keeps Host, as RFC 9112, 3.2.2 lets it",
                expect().status(404).origin_untouched(),
            ),
        case("request-line/absolute-form-with-user", "RFC 9110, 4.2.4: userinfo is an error")
            .send(line("GET http://user@demo.tunnels.test/a HTTP/1.1"))
            .status(400)
            .origin_untouched(),
        case("request-line/other-scheme", "RFC 9110, 7.1: not a scheme that is served here")
            .send(line("GET ftp://demo.tunnels.test/a HTTP/1.1"))
            .status_in(&[400, 421])
            .origin_untouched()
            .nginx("takes any scheme", expect().status(200).origin_line("GET /a HTTP/1.1")),
        refused("request-line/fragment", line("GET /a#b HTTP/1.1"))
            .nginx("cuts the fragment off", expect().status(200)),
        refused("request-line/relative-path", line("GET a/b HTTP/1.1")),
    ]
}

fn methods() -> Vec<Case> {
    let kept = |name, method: &'static str| {
        case(name, "RFC 9110, 9.1: methods are tokens and have case")
            .send(line(&format!("{method} /a HTTP/1.1")))
            .status(200)
            .origin_line(format!("{method} /a HTTP/1.1"))
    };
    let allowed = "nginx knows methods of upper case letters only";
    vec![
        kept("request-line/method-propfind", "PROPFIND"),
        kept("request-line/method-custom", "BREW"),
        kept("request-line/method-with-hyphen", "VERSION-CONTROL"),
        kept("request-line/method-lower-case", "get").nginx_differs(allowed),
        kept("request-line/method-odd-token", "x-Own.1!").nginx_differs(allowed),
        case("request-line/method-connect", "T23; RFC 9110, 9.3.6")
            .send("CONNECT demo.tunnels.test:80 HTTP/1.1\r\nHost: demo.tunnels.test:80\r\n\r\n")
            .status(405)
            .client_field("x-uniroute-error", &["UR-1004"])
            .origin_untouched()
            .nginx("400 instead", expect().refused(&[400])),
        case("request-line/method-connect-origin-form", "T23")
            .send(line("CONNECT / HTTP/1.1"))
            .status_in(&[400, 405])
            .origin_untouched(),
        case("request-line/method-trace", "T23; RFC 9110, 9.3.8")
            .send(line("TRACE /a HTTP/1.1"))
            .status(405)
            .origin_untouched(),
        refused("request-line/method-no-token", line("G@T /a HTTP/1.1")),
        refused("request-line/method-empty", line(" /a HTTP/1.1")),
        refused("request-line/method-with-colon", line("GET: /a HTTP/1.1")),
    ]
}

fn versions() -> Vec<Case> {
    let refused = |name, version: &str| {
        case(name, "RFC 9112, 2.3; RFC 9110, 15.6.6")
            .send(line(&format!("GET /a {version}")))
            .refused(&[400, 505])
    };
    vec![
        case("request-line/http-1.0", "RFC 9112, 6.1: no chunks for HTTP/1.0")
            .send(line("GET /a HTTP/1.0"))
            .reply(super::case::whole(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ))
            .status(200)
            .body("ok")
            .client_field("transfer-encoding", &[])
            .closed(),
        case("request-line/http-1.0-with-length", "RFC 9112, 9.3: HTTP/1.0 closes by default")
            .send(line("GET /a HTTP/1.0"))
            .status(200)
            .body("ok")
            .origin_line("GET /a HTTP/1.1")
            .closed(),
        case("request-line/http-1.0-keep-alive", "RFC 9112, C.2.2")
            .send("GET /a HTTP/1.0\r\nHost: demo.tunnels.test\r\nConnection: keep-alive\r\n\r\n")
            .status(200)
            .body("ok")
            .client_field("connection", &["keep-alive"])
            .open(),
        refused("request-line/http-1.2", "HTTP/1.2").nginx_differs("serves it as 1.1"),
        refused("request-line/http-2.0", "HTTP/2.0"),
        refused("request-line/http-0.9-version", "HTTP/0.9"),
        refused("request-line/version-lower-case", "http/1.1"),
        refused("request-line/version-without-minor", "HTTP/1"),
        refused("request-line/version-two-digits", "HTTP/1.10")
            .nginx_differs("serves any 1.x as 1.1"),
        refused("request-line/version-leading-zero", "HTTP/01.1"),
        refused("request-line/version-of-another", "RTSP/1.0"),
        case("request-line/http-0.9", "RFC 9112, 3: a line of two words is none")
            .send("GET /a\r\n")
            .shut()
            .unfenced()
            .not_served()
            .closed()
            .origin_untouched()
            .nginx_differs("serves HTTP/0.9"),
    ]
}

fn malformed() -> Vec<Case> {
    let crlf = "CR LF ends a line, and nothing else does (RFC 9112, 2.2)";
    let ends = |name, bytes: &str| case(name, crlf).send(bytes).refused(&[400]);
    vec![
        refused("request-line/space-in-target", line("GET /a b HTTP/1.1")),
        refused("request-line/two-spaces", line("GET  /a HTTP/1.1")).nginx_differs("skips spaces"),
        refused("request-line/space-before-version", line("GET /a  HTTP/1.1"))
            .nginx_differs("skips spaces"),
        refused("request-line/trailing-space", line("GET /a HTTP/1.1 "))
            .nginx_differs("skips spaces"),
        refused("request-line/tab", line("GET\t/a HTTP/1.1")),
        refused("request-line/nul-in-target", line("GET /a\0b HTTP/1.1")),
        refused("request-line/control-in-target", line("GET /a\x01b HTTP/1.1")),
        refused("request-line/delete-in-target", line("GET /a\x7fb HTTP/1.1")),
        refused("request-line/no-target", line("GET HTTP/1.1")),
        refused("request-line/empty", line("")),
        case("request-line/leading-crlf", "RFC 9112, 2.2: one empty line is ignored")
            .send(format!("\r\n{}", get("/a", "")))
            .status(200)
            .origin_line("GET /a HTTP/1.1")
            .open(),
        case("request-line/crlf-behind-a-body", "RFC 9112, 2.2: old clients add it")
            .send(format!(
                "{}\r\n{}",
                super::case::post("Content-Length: 4\r\n", "body"),
                get("/b", "")
            ))
            .statuses(&[200, 200])
            .origin_targets(&["/visible", "/b"]),
        ends("request-line/lone-lf", "GET /a HTTP/1.1\nHost: demo.tunnels.test\r\n\r\n")
            .nginx_differs("takes LF for CR LF"),
        ends("request-line/lone-lf-everywhere", "GET /a HTTP/1.1\nHost: demo.tunnels.test\n\n")
            .nginx_differs("takes LF for CR LF"),
        ends(
            "request-line/lone-lf-ends-the-head",
            "GET /a HTTP/1.1\r\nHost: demo.tunnels.test\r\n\n",
        )
        .nginx_differs("takes LF for CR LF"),
        ends("request-line/bare-cr", "GET /a HTTP/1.1\rHost: demo.tunnels.test\r\n\r\n"),
        ends("request-line/cr-in-target", "GET /a\rb HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n"),
        ends("request-line/cr-cr-lf", "GET /a HTTP/1.1\r\r\nHost: demo.tunnels.test\r\n\r\n"),
        case("request-line/too-long", "RFC 9110, 15.5.15; RFC 6585, 5")
            .send(get(&format!("/{}", "a".repeat(70_000)), ""))
            .refused(&[414, 431]),
        case("request-line/endless", "T04: what has no end is not gathered")
            .send(format!("GET /{}", "a".repeat(1_000_000)))
            .refused(&[414, 431]),
        case(
            "request-line/in-pieces",
            "RFC 9112, 2.2: a parser does not depend on how bytes arrive",
        )
        .send("G")
        .fence_elsewhere()
        .send("ET /a HTT")
        .fence_elsewhere()
        .send("P/1.1\r")
        .fence_elsewhere()
        .send("\nHost: demo.tunnels.test\r\n\r")
        .fence_elsewhere()
        .send("\n")
        .status(200)
        .origin_line("GET /a HTTP/1.1")
        .open(),
    ]
}
