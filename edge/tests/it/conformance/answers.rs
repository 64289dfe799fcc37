//! T09: what a local server answers comes whole, or is seen to be broken, or is a 502.

use super::case::{Case, HOST, OK, at_head, case, get, whole};

const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// An answer that makes no sense.
fn bad(name: &'static str, answer: impl AsRef<[u8]>) -> Case {
    case(name, "T09; RFC 9112, 5 and 6.3: an invalid answer is 502")
        .send(get("/a", ""))
        .reply(whole(answer).close())
        .status(502)
        .client_lacks("poison")
        .open()
}

/// A 200 with these fields and this body, if nobody minds.
fn bad_fields(name: &'static str, fields: &str) -> Case {
    bad(name, format!("HTTP/1.1 200 OK\r\n{fields}\r\npoison"))
}

/// An answer that comes as it is.
fn good(
    name: &'static str,
    rule: &'static str,
    answer: impl AsRef<[u8]>,
    status: u16,
    body: &str,
) -> Case {
    case(name, rule).send(get("/a", "")).reply(whole(answer)).status(status).body(body).open()
}

/// An answer of which a part is missing.
fn cut(name: &'static str, answer: &str) -> Case {
    case(name, "RFC 9112, 8: what is not whole never looks whole")
        .send(get("/a", ""))
        .reply(whole(answer).close())
        .broken()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = framing();
    all.extend(without_body());
    all.extend(status_lines());
    all.extend(invalid());
    all.extend(incomplete());
    all.extend(too_much());
    all
}

fn framing() -> Vec<Case> {
    let rule = "RFC 9112, 6.3";
    let to_the_end = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody";
    vec![
        good("answers/length", rule, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body")
            .client_field("content-length", &["4"])
            .client_field("transfer-encoding", &[]),
        good("answers/length-zero", rule, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "")
            .client_field("content-length", &["0"]),
        good(
            "answers/chunks",
            "RFC 9112, 7.1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n2;x=y\r\n!?\r\n0\r\n\r\n",
            200,
            "body!?",
        )
        .client_field("content-length", &[])
        .client_lacks("x=y"),
        good(
            "answers/chunks-upper-case",
            "RFC 9112, 7: codings have no case",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
            200,
            "0123456789",
        ),
        case("answers/to-the-end", "RFC 9112, 6.3: the client can tell where it ends")
            .send(get("/a", ""))
            .reply(whole(to_the_end).close())
            .status(200)
            .body("body"),
        case("answers/to-the-end-of-http-1.0", "RFC 9112, 6.3")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.0 200 OK\r\n\r\nbody").close())
            .status(200)
            .body("body"),
        case("answers/to-the-end-for-http-1.0", "RFC 9112, 6.3")
            .send(format!("GET /a HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))
            .reply(whole(to_the_end).close())
            .status(200)
            .body("body")
            .closed(),
        case("answers/empty-to-the-end", "RFC 9112, 6.3")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").close())
            .status(200)
            .body(""),
        case("answers/streamed", "a piece of a body goes on when it is there")
            .send(get("/a", ""))
            .reply(
                whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
                    .gate()
                    .say("3\r\ntwo\r\n0\r\n\r\n"),
            )
            .gets("one")
            .open_gate()
            .status(200)
            .body("onetwo")
            .open(),
        case("answers/head-before-the-body", "a head goes on when it is there")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: 1\r\n\r\n").gate().say("one"))
            .gets(": 1\r\n")
            .open_gate()
            .status(200)
            .body("one"),
        case("answers/in-pieces", "RFC 9112, 2.2: a parser does not depend on how bytes arrive")
            .send(get("/1", ""))
            .reply(whole("HTTP/1.1 20").gate().say("0 OK\r\nContent-Le").gate().say("ngth: 2\r\n\r").gate().say("\nok"))
            .origin_gets("/1")
            .fence_elsewhere()
            .open_gate()
            .fence_elsewhere()
            .open_gate()
            .fence_elsewhere()
            .open_gate()
            .status(200)
            .body("ok")
            .open(),
        case("answers/large", "windows and buffers are no limit")
            .send(get("/a", ""))
            .reply(whole(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000))))
            .status(200)
            .body("x".repeat(1_000_000))
            .open(),
    ]
}

fn without_body() -> Vec<Case> {
    let head = |name, answer: &'static str| {
        case(name, "RFC 9110, 9.3.2: HEAD has no body")
            .send(format!("HEAD /a HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .methods(&["HEAD"])
            .reply(whole(answer))
            .status(200)
            .origin_line("HEAD /a HTTP/1.1")
            .open()
    };
    vec![
        head("answers/head", "HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
            .client_field("content-length", &["4000"]),
        head("answers/head-chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        head("answers/head-without-length", "HTTP/1.1 200 OK\r\n\r\n")
            .client_field("content-length", &[]),
        head("answers/head-with-a-body", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            .client_lacks("poison"),
        good(
            "answers/204",
            "RFC 9110, 15.3.5",
            "HTTP/1.1 204 No Content\r\nETag: \"1\"\r\n\r\n",
            204,
            "",
        )
        .client_field("etag", &["\"1\""])
        .client_field("transfer-encoding", &[]),
        good(
            "answers/204-with-length",
            "RFC 9110, 8.6: no Content-Length in a 204",
            "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison",
            204,
            "",
        )
        .client_field("content-length", &[])
        .client_lacks("poison")
        .nginx_differs("keeps the length"),
        good(
            "answers/304",
            "RFC 9110, 15.4.5",
            "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
            304,
            "",
        )
        .client_field("etag", &["\"1\""]),
        good(
            "answers/304-with-length",
            "RFC 9110, 8.6: the length that a 200 would have",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 4000\r\n\r\n",
            304,
            "",
        )
        .client_field("content-length", &["4000"]),
        good(
            "answers/205",
            "RFC 9110, 15.3.6",
            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
            205,
            "",
        ),
        case("answers/204-and-the-next", "RFC 9112, 9.3: the connection goes on")
            .send(get("/1", "") + &get("/2", ""))
            .reply(whole("HTTP/1.1 204 No Content\r\n\r\n"))
            .statuses(&[204, 200])
            .origin_targets(&["/1", "/2"]),
    ]
}

fn status_lines() -> Vec<Case> {
    let passes = |name, line: &'static str, status| {
        case(name, "RFC 9112, 4; RFC 9110, 15")
            .send(get("/a", ""))
            .reply(whole(format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\nok")))
            .status(status)
            .body("ok")
            .open()
    };
    vec![
        passes("answers/status-201", "201 Created", 201).client_has("HTTP/1.1 201 "),
        passes("answers/status-299", "299 Odd", 299),
        passes("answers/status-418", "418 I'm a teapot", 418),
        passes("answers/status-500", "500 Mine", 500),
        passes("answers/status-502-of-the-origin", "502 Mine", 502)
            .client_lacks("x-uniroute-error"),
        passes("answers/status-599", "599 Odd", 599),
        passes("answers/no-reason", "200 ", 200),
        passes("answers/reason-kept", "200 Very well", 200)
            .client_has("HTTP/1.1 200 Very well\r\n"),
        passes("answers/status-999", "999 Odd", 999),
        case("answers/reason-obs-text", "RFC 9112, 4")
            .send(get("/a", ""))
            .reply(whole(b"HTTP/1.1 200 \xe9\xff\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .body("ok"),
        case("answers/no-space-behind-the-code", "RFC 9112, 4: many servers leave it out")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .body("ok")
            .nginx_differs("passes the line on without its space"),
        bad("answers/status-of-letters", "HTTP/1.1 abc OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/status-of-two-digits", "HTTP/1.1 99 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/status-of-four-digits", "HTTP/1.1 2000 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/status-099", "HTTP/1.1 099 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("passes any three digits on"),
        bad("answers/status-negative", "HTTP/1.1 -20 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/version-2.0", "HTTP/2.0 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes any version"),
        bad("answers/version-lower-case", "http/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/version-missing", "200 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/leading-space", " HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/reason-with-nul", "HTTP/1.1 200 O\0K\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("passes the reason on as it is"),
        bad("answers/reason-with-cr", "HTTP/1.1 200 O\rK\r\nContent-Length: 6\r\n\r\npoison")
            .nginx_differs("takes it for HTTP/0.9"),
        bad("answers/another-protocol", "220 mail.test ESMTP\r\n")
            .nginx_differs("takes it for HTTP/0.9"),
        bad(
            "answers/switch-not-asked-for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\npoison",
        )
        .nginx_differs("goes by the status alone"),
        case("answers/nothing", "RFC 9110, 15.6.3")
            .send(get("/a", ""))
            .reply(at_head().close())
            .reply(at_head().close())
            .status(502)
            .open(),
        case("answers/reset", "RFC 9110, 15.6.3")
            .send(get("/a", ""))
            .reply(at_head().reset())
            .reply(at_head().reset())
            .status(502)
            .open(),
    ]
}

fn invalid() -> Vec<Case> {
    let length = "Content-Length: 6\r\n";
    vec![
        bad_fields("answers/two-lengths", "Content-Length: 6\r\nContent-Length: 3\r\n").nginx_differs("goes by the last of them"),
        bad_fields("answers/two-lengths-reversed", "Content-Length: 3\r\nContent-Length: 6\r\n").nginx_differs("goes by the last of them"),
        case("answers/two-equal-lengths", "RFC 9112, 6.3: 502, or one of them")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok").close())
            .first_status_in(&[200, 502]),
        bad_fields("answers/length-list", "Content-Length: 6, 3\r\n").nginx_differs("takes a bad length for none"),
        bad_fields("answers/length-with-plus", "Content-Length: +6\r\n").nginx_differs("takes a bad length for none"),
        bad_fields("answers/length-of-letters", "Content-Length: six\r\n").nginx_differs("takes a bad length for none"),
        bad_fields("answers/length-beyond-64-bits", "Content-Length: 18446744073709551622\r\n").nginx_differs("takes a bad length for none"),
        bad("answers/chunked-and-length", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("drops the length"),
        bad("answers/chunked-twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("goes by the last of them"),
        bad("answers/chunked-list", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("takes an unknown coding for none"),
        bad("answers/gzip-chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("takes an unknown coding for none"),
        bad("answers/unknown-coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("takes an unknown coding for none"),
        bad("answers/chunked-in-http-1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n").nginx_differs("takes chunks for a body"),
        bad("answers/lone-lf", "HTTP/1.1 200 OK\nContent-Length: 6\n\npoison").nginx_differs("takes LF for CR LF"),
        bad_fields("answers/lone-lf-in-fields", "X-A: 1\nX-B: 2\r\nContent-Length: 6\r\n").nginx_differs("takes LF for CR LF"),
        bad_fields("answers/cr-in-value", &format!("X-A: 1\r2\r\n{length}")),
        bad_fields("answers/obs-fold", &format!("X-A: 1\r\n 2\r\n{length}")),
        bad_fields("answers/nul-in-value", &format!("X-A: 1\x002\r\n{length}")),
        bad_fields("answers/control-in-value", &format!("X-A: 1\x012\r\n{length}")).nginx_differs("lets control characters pass"),
        bad_fields("answers/space-before-colon", &format!("X-A : 1\r\n{length}")),
        bad_fields("answers/space-in-name", &format!("X A: 1\r\n{length}")),
        bad_fields("answers/no-colon", &format!("nothing\r\n{length}")).nginx_differs("takes it for a field without a value"),
        bad_fields("answers/empty-name", &format!(": 1\r\n{length}")),
        bad_fields("answers/leading-space-on-first", &format!(" X-A: 1\r\n{length}")),
        bad_fields("answers/too-long", &format!("X-Long: {}\r\n{length}", "v".repeat(300_000))),
        bad_fields("answers/too-many", &format!("{}{length}", (0..1_000).map(|n| format!("X-{n}: 1\r\n")).collect::<String>())).nginx_differs("does not count them"),
        bad("answers/without-end", format!("HTTP/1.1 200 OK\r\n{}", "X-A: 1\r\n".repeat(100_000))),
        case("answers/split-by-obs-text", "T09: no byte of a value is a line's end")
            .send(get("/a", ""))
            .reply(whole(b"HTTP/1.1 200 OK\r\nX-A: 1\xc4\x8d\xc4\x8aSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .client_field("set-cookie", &[])
            .client_has(b"1\xc4\x8d\xc4\x8aSet-Cookie: a=1\r\n"),
    ]
}

fn incomplete() -> Vec<Case> {
    let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    vec![
        cut("answers/less-than-its-length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        cut("answers/no-byte-of-its-length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        cut("answers/no-last-chunk", &format!("{start}4\r\nhalf\r\n")),
        cut("answers/half-a-chunk", &format!("{start}10\r\nhalf")),
        cut("answers/no-chunk", start),
        cut("answers/bad-chunk-size", &format!("{start}4\r\nhalf\r\nxyz\r\n")),
        cut("answers/chunk-size-too-large", &format!("{start}4\r\nhalf\r\nfffffffffffffffff\r\n")),
        cut("answers/half-the-trailers", &format!("{start}4\r\nhalf\r\n0\r\nX: y\r\n")),
        cut("answers/no-crlf-behind-a-chunk", &format!("{start}4\r\nhalf0\r\n\r\n")),
        cut("answers/half-a-head", "HTTP/1.1 200 OK\r\nContent-Le"),
        cut("answers/cut-for-http-1.1-only", &format!("{start}4\r\nhalf\r\n0\r\n")),
        case("answers/reset-in-a-body", "RFC 9112, 8")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").gate().reset())
            .gets("half")
            .open_gate()
            .broken(),
        case("answers/cut-is-not-for-the-next", "T09: the next request has an answer of its own")
            .send(get("/1", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").close())
            .broken()
            .client_lacks("fence"),
    ]
}

fn too_much() -> Vec<Case> {
    let rule = "T09: what comes beyond an answer belongs to nobody";
    let poisoned = |name, answer: &str| {
        case(name, rule)
            .send(get("/1", ""))
            .reply(whole(format!("{answer}{POISON}")))
            .gets("ok")
            .fence_elsewhere()
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .client_lacks("poison")
            .origin_connections(2)
            .open()
    };
    vec![
        poisoned("answers/more-than-its-length", OK),
        poisoned(
            "answers/more-than-its-chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        case("answers/excess-bytes-of-a-body", rule)
            .send(get("/1", "") + &get("/2", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokexcess"))
            .statuses(&[200, 200])
            .client_lacks("excess"),
        case("answers/two-for-head", "T09: a body for HEAD is not the next answer")
            .send(format!("HEAD /1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .methods(&["HEAD", "GET"])
            .reply(whole(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{POISON}",
                POISON.len()
            )))
            .gets("\r\n\r\n")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .client_lacks("poison"),
        case("answers/304-with-a-body", "T09")
            .send(get("/1", ""))
            .reply(whole(format!(
                "HTTP/1.1 304 Not Modified\r\nContent-Length: {}\r\n\r\n{POISON}",
                POISON.len()
            )))
            .gets("\r\n\r\n")
            .send(get("/2", ""))
            .statuses(&[304, 200])
            .client_lacks("poison"),
        case("answers/early-hints-then-poison", "T09")
            .send(get("/1", "") + &get("/2", ""))
            .reply(whole(format!("HTTP/1.1 103 Early Hints\r\n\r\n{OK}{POISON}")))
            .statuses(&[200, 200])
            .client_lacks("poison")
            .nginx_differs("takes 1xx for the answer"),
    ]
}
