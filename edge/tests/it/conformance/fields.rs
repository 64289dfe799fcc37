//! Field lines: order, spelling and values stay; what is no field is refused (RFC 9112, section 5).

use super::case::{Case, HOST, case, get, whole};

fn refused(name: &'static str, fields: &str) -> Case {
    case(name, "RFC 9112, 5: an invalid field line is answered 400")
        .send(get("/a", fields))
        .refused(&[400])
}

/// A value that goes on as it is.
fn kept(name: &'static str, fields: &'static str, seen: &'static str) -> Case {
    case(name, "RFC 9110, 5.5: a value goes on as it is")
        .send(get("/a", fields))
        .status(200)
        .origin_has(seen)
        .open()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = malformed();
    all.extend(requests());
    all.extend(answers());
    all.extend(limits());
    all
}

fn malformed() -> Vec<Case> {
    let ignored = "leaves the line out: ignore_invalid_headers";
    vec![
        refused("fields/space-before-colon", "X-A : 1\r\n"),
        refused("fields/tab-before-colon", "X-A\t: 1\r\n"),
        refused("fields/space-in-name", "X A: 1\r\n"),
        refused("fields/leading-space-on-first", " X-A: 1\r\n"),
        refused("fields/obs-fold", "X-A: 1\r\n 2\r\n"),
        refused("fields/obs-fold-tab", "X-A: 1\r\n\t2\r\n"),
        refused("fields/obs-fold-empty", "X-A: 1\r\n \r\nX-B: 2\r\n"),
        refused("fields/no-colon", "nothing\r\n")
            .nginx_differs("takes it for a field without a value"),
        refused("fields/empty-name", ": 1\r\n"),
        refused("fields/nul-in-value", "X-A: 1\x002\r\n"),
        refused("fields/nul-in-name", "X\0A: 1\r\n"),
        refused("fields/control-in-value", "X-A: 1\x012\r\n")
            .nginx_differs("lets control characters pass"),
        refused("fields/vertical-tab-in-value", "X-A: \x0b1\r\n")
            .nginx_differs("lets control characters pass"),
        refused("fields/delete-in-value", "X-A: 1\x7f2\r\n")
            .nginx_differs("lets control characters pass"),
        refused("fields/control-in-name", "X\x01A: 1\r\n"),
        refused("fields/cr-in-value", "X-A: 1\r2\r\n"),
        refused("fields/lf-between-fields", "X-A: 1\nX-B: 2\r\n")
            .nginx_differs("takes LF for CR LF"),
        refused("fields/separator-in-name", "X(A): 1\r\n").nginx_differs(ignored),
        refused("fields/slash-in-name", "X/A: 1\r\n").nginx_differs(ignored),
        refused("fields/quote-in-name", "\"X-A\": 1\r\n").nginx_differs(ignored),
        case("fields/obs-text-in-name", "RFC 9110, 5.1: names are tokens")
            .send(
                [b"GET /a HTTP/1.1\r\nHost: demo.tunnels.test\r\nX-\xe9: 1\r\n\r\n".as_slice()]
                    .concat(),
            )
            .refused(&[400])
            .nginx_differs(ignored),
    ]
}

fn requests() -> Vec<Case> {
    vec![
        case("fields/order-and-spelling", "spelling and order of fields stay")
            .send(get("/a", "X-CuStOm: a\r\naccept: */*\r\nX-Z: 1\r\nX-A: 2\r\nUSER-AGENT: u\r\n"))
            .status(200)
            .origin_order(&["X-CuStOm: a", "accept: */*", "X-Z: 1", "X-A: 2", "USER-AGENT: u"]),
        case("fields/repeated", "RFC 9110, 5.3: the order of fields with one name stays")
            .send(get("/a", "X-A: 1\r\nX-B: 2\r\nx-a: 3\r\nX-A: 4\r\n"))
            .status(200)
            .origin_order(&["X-A: 1", "X-B: 2", "x-a: 3", "X-A: 4"]),
        case("fields/cookies-are-not-joined", "RFC 9110, 5.3: fields are not merged on HTTP/1")
            .send(get("/a", "Cookie: a=1\r\nCookie: b=2\r\n"))
            .status(200)
            .origin_field("cookie", &["a=1", "b=2"]),
        kept("fields/empty-value", "X-A:\r\nX-B: 1\r\n", ": 1\r\n"),
        case("fields/empty-value-is-there", "RFC 9110, 5.5: a value may be empty")
            .send(get("/a", "X-A: \r\n"))
            .status(200)
            .origin_field("x-a", &[""]),
        case("fields/spaces-around-a-value", "RFC 9112, 5.1: they are no part of it")
            .send(get("/a", "X-A: \t  1  2 \t \r\nX-B:3\r\n"))
            .status(200)
            .origin_field("x-a", &["1  2"])
            .origin_field("x-b", &["3"]),
        kept("fields/tab-in-value", "X-A: 1\t2\r\n", "1\t2\r\n"),
        kept("fields/colons-in-value", "X-A: a:b:c\r\n", "a:b:c\r\n"),
        kept("fields/quotes-in-value", "X-A: \"a, \\\"b\", c\r\n", "\"a, \\\"b\", c\r\n"),
        case("fields/obs-text-in-value", "RFC 9110, 5.5: opaque bytes go on")
            .send(b"GET /a HTTP/1.1\r\nHost: demo.tunnels.test\r\nX-A: \xe9\xff\x80z\r\n\r\n")
            .status(200)
            .origin_has(b": \xe9\xff\x80z\r\n"),
        kept("fields/odd-token-name", "!#$%&'*+-.^`|~9z: 1\r\n", "!#$%&'*+-.^`|~9z: 1\r\n")
            .nginx_differs("leaves the line out: ignore_invalid_headers"),
        kept("fields/underscore-name", "x_mine: 1\r\n", "x_mine: 1\r\n")
            .nginx_differs("leaves it out: underscores_in_headers is off"),
        case("fields/host-comes-once", "RFC 9112, 3.2")
            .send(format!("GET /a HTTP/1.1\r\nX-A: 1\r\nHOST: {HOST}\r\nX-B: 2\r\n\r\n"))
            .status(200)
            .origin_field("host", &[HOST])
            .origin_order(&["X-A: 1", "X-B: 2"]),
        kept(
            "fields/accept-encoding-untouched",
            "Accept-Encoding: br;q=0, zstd\r\n",
            "br;q=0, zstd",
        ),
        kept(
            "fields/range-and-conditions",
            "If-None-Match: \"a\", W/\"b\"\r\nRange: bytes=0-1\r\n",
            "W/\"b\"",
        ),
    ]
}

fn answers() -> Vec<Case> {
    vec![
        case("fields/answer-order-and-spelling", "spelling and order of fields stay")
            .send(get("/a", ""))
            .reply(whole(
                "HTTP/1.1 200 OK\r\nX-CuStOm: a\r\neTag: \"1\"\r\nX-B: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nok",
            ))
            .status(200)
            .client_order(&["X-CuStOm: a", "eTag: \"1\"", "X-B: 1", "X-A: 2"]),
        case("fields/answer-cookies", "RFC 9110, 5.3: several Set-Cookie stay several")
            .send(get("/a", ""))
            .reply(whole(
                "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-Between: 1\r\nSet-Cookie: b=2; Path=/\r\n\
                 set-cookie: c=3\r\nContent-Length: 2\r\n\r\nok",
            ))
            .status(200)
            .client_order(&["Set-Cookie: a=1", "X-Between: 1", "Set-Cookie: b=2; Path=/", "set-cookie: c=3"]),
        case("fields/answer-obs-text", "RFC 9110, 5.5: opaque bytes go on")
            .send(get("/a", ""))
            .reply(whole(b"HTTP/1.1 200 OK\r\nX-A: \xe9\xff\x80z\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .client_has(b": \xe9\xff\x80z\r\n"),
        case("fields/answer-empty-value", "RFC 9110, 5.5")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nX-A:\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .client_field("x-a", &[""]),
        case("fields/answer-date-and-server", "a gateway keeps what the origin says of itself")
            .send(get("/a", ""))
            .reply(whole(
                "HTTP/1.1 200 OK\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nServer: mine/1\r\nContent-Length: 2\r\n\r\nok",
            ))
            .status(200)
            .client_field("date", &["Tue, 15 Nov 1994 08:12:31 GMT"])
            .client_field("server", &["mine/1"]),
        case("fields/answer-content-encoding", "what is encoded goes on as it is")
            .send(get("/a", "Accept-Encoding: identity\r\n"))
            .reply(whole(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\xff",
            ))
            .status(200)
            .client_field("content-encoding", &["gzip"])
            .body(b"\x1f\x8b\x00\xff"),
        case("fields/answer-location-untouched", "a redirect is the origin's own")
            .send(get("/a", ""))
            .reply(whole(
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x?y\r\nContent-Length: 0\r\n\r\n",
            ))
            .status(302)
            .client_field("location", &["http://127.0.0.1:1/x?y"]),
    ]
}

fn limits() -> Vec<Case> {
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let status = "answers 400 where RFC 6585 has 431";
    vec![
        case("fields/large-but-fine", "64 KiB for a head")
            .send(get("/a", &format!("X-Long: {}\r\n", "v".repeat(30_000))))
            .status(200)
            .origin_has("v".repeat(30_000)),
        case("fields/100-of-them", "128 fields for a head")
            .send(get("/a", &many(100)))
            .status(200)
            .origin_has("x-0: 1\r\n")
            .origin_has("x-99: 1\r\n"),
        case("fields/too-long", "T04; RFC 6585, 5")
            .send(get("/a", &format!("X-Long: {}\r\n", "v".repeat(100_000))))
            .refused(&[431])
            .nginx_differs(status),
        case("fields/too-long-together", "T04; RFC 6585, 5")
            .send(get("/a", &format!("X-Long: {}\r\n", "v".repeat(1_000)).repeat(100)))
            .refused(&[431])
            .nginx_differs("allows four buffers of 64 KiB"),
        case("fields/too-many", "T04; RFC 6585, 5")
            .send(get("/a", &many(200)))
            .refused(&[431])
            .nginx_differs("does not count them"),
        case("fields/without-end", "T04: what has no end is not gathered")
            .send(format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\n{}", many(100_000)))
            .refused(&[431])
            .nginx_differs(status),
        case("fields/name-without-end", "T04: what has no end is not gathered")
            .send(format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\n{}", "n".repeat(1_000_000)))
            .refused(&[431])
            .nginx_differs(status),
    ]
}
