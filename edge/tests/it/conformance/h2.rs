//! HTTP/2 from a visitor, HTTP/1.1 to the local server: what a stream asks for arrives as one plain
//! request, and what can't be one is refused (RFC 9113, section 8).

use super::{
    case::{Case, HOST, OK, at_head, h2_case, whole},
    frames::{
        CANCEL, CONTINUATION, DATA, ENABLE_CONNECT_PROTOCOL, END_HEADERS, END_STREAM, HEADERS,
        NO_ERROR, PADDED, PRIORITIZED, block, data, frame, get, headers, headers_of_bytes, post,
        request, rst,
    },
};

/// As a request it would be seen at the local server.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n";

/// A request with these fields behind its pseudo-header fields that no server may take.
fn refused(name: &'static str, more: &[(&str, &str)]) -> Case {
    h2_case(name, "RFC 9113, 8.1.1 and 8.2: a malformed request is a stream error")
        .send(get(1, "/a", more))
        .ends(1)
        .stream_refused(1)
}

/// The same with a block of fields of its own.
fn refused_block(name: &'static str, fields: &[(&str, &str)]) -> Case {
    h2_case(name, "RFC 9113, 8.3: pseudo-header fields are all there, once and first")
        .send(headers(1, fields, true))
        .ends(1)
        .stream_refused(1)
}

/// The same with a value that is no text.
fn refused_value(name: &'static str, field: (&[u8], &[u8])) -> Case {
    let mut fields: Vec<(&[u8], &[u8])> = vec![
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", HOST.as_bytes()),
        (b":path", b"/a"),
    ];
    match fields.iter_mut().find(|there| there.0 == field.0) {
        Some(there) => there.1 = field.1,
        None => fields.push(field),
    }
    h2_case(name, "T01, T10; RFC 9113, 8.2.1 and 10.3: no field can become two on HTTP/1.1")
        .send(headers_of_bytes(1, &fields, true))
        .ends(1)
        .stream_refused(1)
}

/// A GET that the local server answers.
fn served(name: &'static str, rule: &'static str, path: &str, more: &[(&str, &str)]) -> Case {
    h2_case(name, rule)
        .send(get(1, path, more))
        .ends(1)
        .stream(1, 200)
        .stream_body(1, "ok")
        .origin_requests(1)
        .open()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = exchanges();
    all.extend(requests());
    all.extend(malformed());
    all.extend(answers());
    all.extend(cancelled());
    all.extend(connect());
    all
}

fn exchanges() -> Vec<Case> {
    let rule = "RFC 9113, 8.1";
    let body = "RFC 9112, 6: a body without a length has chunks on HTTP/1.1";
    let parallel: Vec<u8> = (0..100).flat_map(|n| get(2 * n + 1, &format!("/{n}"), &[])).collect();
    let mut in_parallel =
        h2_case("h2/100-in-parallel", "RFC 9113, 5.1.2: streams don't wait for each other")
            .send(parallel)
            .origin_requests(100)
            .open();
    for n in 0..100 {
        in_parallel = in_parallel.ends(2 * n + 1).stream(2 * n + 1, 200);
    }
    vec![
        served("h2/get", rule, "/a?b", &[("x-a", "1")])
            .origin_line("GET /a?b HTTP/1.1")
            .origin_field("host", &[HOST])
            .origin_field("x-a", &["1"])
            .origin_field("transfer-encoding", &[])
            .origin_lacks(":authority"),
        h2_case("h2/post-with-length", rule)
            .send([post(1, &[("content-length", "4")]), data(1, "body", true)].concat())
            .ends(1)
            .stream(1, 200)
            .origin_field("content-length", &["4"])
            .origin_field("transfer-encoding", &[])
            .origin_body("body")
            .open(),
        h2_case("h2/post-without-length", body)
            .send([post(1, &[]), data(1, "bo", false), data(1, "dy", true)].concat())
            .ends(1)
            .stream(1, 200)
            .origin_field("transfer-encoding", &["chunked"])
            .origin_field("content-length", &[])
            .origin_body("body")
            .open(),
        h2_case("h2/post-without-a-body", "RFC 9112, 6.3: no chunks for nothing")
            .send(headers(1, &request("POST", "/visible", &[]), true))
            .ends(1)
            .stream(1, 200)
            .origin_body("")
            .open(),
        h2_case("h2/post-with-an-empty-end", rule)
            .send([post(1, &[]), data(1, "body", false), data(1, "", true)].concat())
            .ends(1)
            .stream(1, 200)
            .origin_body("body")
            .open(),
        h2_case("h2/body-in-time", "a piece of a body goes on when it is there")
            .send([post(1, &[("content-length", "4")]), data(1, "bo", false)].concat())
            .origin_gets("bo")
            .send(data(1, "dy", true))
            .ends(1)
            .stream(1, 200)
            .origin_body("body"),
        h2_case("h2/padded", "RFC 9113, 6.1 and 6.2: padding is no content")
            .send(frame(
                HEADERS,
                END_HEADERS | PADDED | PRIORITIZED,
                1,
                &[&[3, 0, 0, 0, 0, 15], &block(&request("POST", "/visible", &[]))[..], &[0; 3]].concat(),
            ))
            .send(frame(DATA, PADDED | END_STREAM, 1, b"\x05body\0\0\0\0\0"))
            .ends(1)
            .stream(1, 200)
            .origin_body("body")
            .open(),
        h2_case("h2/continuation", "RFC 9113, 6.10: a block may go on in further frames")
            .send({
                let fields = block(&request("GET", "/a", &[("x-a", "1")]));
                let (one, two) = fields.split_at(20);
                [frame(HEADERS, END_STREAM, 1, one), frame(CONTINUATION, END_HEADERS, 1, two)].concat()
            })
            .ends(1)
            .stream(1, 200)
            .origin_field("x-a", &["1"])
            .open(),
        in_parallel,
        h2_case("h2/request-trailers", "RFC 9113, 8.1: trailers end a request")
            .send(
                [
                    post(1, &[("trailer", "x-sum")]),
                    data(1, "body", false),
                    headers(1, &[("x-sum", "77")], true),
                ]
                .concat(),
            )
            .ends(1)
            .stream(1, 200)
            .origin_body("body")
            .origin_trailer("x-sum", &["77"])
            .open()
            .nginx_differs("drops trailers of a request"),
        h2_case("h2/answer-trailers", "RFC 9113, 8.1")
            .send(get(1, "/a", &[("te", "trailers")]))
            .reply(whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 77\r\n\r\n"))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "body")
            .stream_trailer(1, "x-sum", &["77"])
            .open()
            .nginx_differs("drops trailers of an answer"),
        h2_case("h2/early-hints", "RFC 9113, 8.1: any number of 1xx before the answer")
            .send(get(1, "/a", &[]))
            .reply(whole("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").say(OK))
            .ends(1)
            .stream(1, 200)
            .stream_interim(1, &[103])
            .open()
            .nginx_differs("takes 1xx for the answer"),
        h2_case("h2/expect", "RFC 9110, 10.1.1")
            .send(post(1, &[("expect", "100-continue"), ("content-length", "4")]))
            .reply(at_head().say("HTTP/1.1 100 Continue\r\n\r\n").until("body").say(OK))
            .until_said("100 comes", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.interim() == [100])
            })
            .send(data(1, "body", true))
            .ends(1)
            .stream(1, 200)
            .origin_body("body")
            .nginx_differs("does not know Expect over HTTP/2"),
    ]
}

fn requests() -> Vec<Case> {
    let kept = "RFC 9113, 8.3.1: a target is not changed on the way to HTTP/1.1";
    let mine = "RFC 9110, 7.6.1; T03";
    vec![
        served("h2/target-kept", kept, "//a%2Fb/../;c?", &[])
            .origin_line("GET //a%2Fb/../;c? HTTP/1.1"),
        h2_case("h2/options-asterisk", "RFC 9113, 8.3.1")
            .send(headers(1, &request("OPTIONS", "*", &[]), true))
            .ends(1)
            .stream(1, 200)
            .origin_line("OPTIONS * HTTP/1.1")
            .nginx_differs("answers 400 itself"),
        h2_case("h2/method-kept", "RFC 9110, 9.1: methods are tokens and have case")
            .send(headers(1, &request("PROPFIND", "/a", &[]), true))
            .ends(1)
            .stream(1, 200)
            .origin_line("PROPFIND /a HTTP/1.1"),
        served(
            "h2/cookies-are-joined",
            "RFC 9113, 8.2.3",
            "/a",
            &[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")],
        )
        .origin_field("cookie", &["a=1; b=2; c=3"]),
        served(
            "h2/repeated-fields",
            "RFC 9110, 5.3: their order stays",
            "/a",
            &[("x-a", "1"), ("x-b", "2"), ("x-a", "3")],
        )
        .origin_field("x-a", &["1", "3"]),
        served(
            "h2/te-trailers",
            "RFC 9113, 8.2.2: the one TE there is",
            "/a",
            &[("te", "trailers")],
        )
        .origin_te_is_trailers_or_none(),
        served("h2/host-that-agrees", "RFC 9113, 8.3.1", "/a", &[("host", HOST)])
            .origin_field("host", &[HOST])
            .nginx("takes two names for one too many", super::case::expect().stream(1, 400)),
        h2_case("h2/host-alone", "RFC 9113, 8.3.1: Host where there is no :authority")
            .send(headers(
                1,
                &[(":method", "GET"), (":scheme", "http"), (":path", "/a"), ("host", HOST)],
                true,
            ))
            .ends(1)
            .stream(1, 200)
            .origin_field("host", &[HOST]),
        h2_case("h2/unknown-host", "RFC 9110, 15.5.5")
            .send(headers(
                1,
                &[
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", "/a"),
                    (":authority", "nobody.tunnels.test"),
                ],
                true,
            ))
            .ends(1)
            .stream(1, 404)
            .origin_untouched()
            .open(),
        h2_case("h2/two-hosts-on-one-connection", "RFC 9113, 8.3.1: each request has its own")
            .send(headers(
                1,
                &[
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", "/a"),
                    (":authority", "nobody.tunnels.test"),
                ],
                true,
            ))
            .send(get(3, "/b", &[]))
            .ends(1)
            .ends(3)
            .stream(1, 404)
            .stream(3, 200)
            .origin_targets(&["/b"]),
        served(
            "h2/forged-identity",
            mine,
            "/a",
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("forwarded", "for=6.6.6.6"),
                ("x_forwarded_for", "6.6.6.6"),
                ("x-real-ip", "6.6.6.6"),
            ],
        )
        .origin_lacks("6.6.6.6"),
        served(
            "h2/fields-of-ours",
            mine,
            "/a",
            &[("x-uniroute-request-id", "forged"), ("x_uniroute_hop", "forged")],
        )
        .origin_lacks("forged"),
        served("h2/proxy-authorization", mine, "/a", &[("proxy-authorization", "Basic eDp5")])
            .origin_field("proxy-authorization", &[]),
        served("h2/obs-text", "RFC 9110, 5.5: opaque bytes go on", "/a", &[("x-a", "caf\u{e9}")])
            .origin_has("caf\u{e9}\r\n"),
        served("h2/empty-value", "RFC 9110, 5.5", "/a", &[("x-a", "")]).origin_field("x-a", &[""]),
        h2_case("h2/trace", "T23")
            .send(headers(1, &request("TRACE", "/a", &[]), true))
            .ends(1)
            .stream(1, 405)
            .origin_untouched(),
        h2_case("h2/hidden-in-data", "T01: a body is a body, whatever it looks like")
            .send(
                [post(1, &[("content-length", &HIDDEN.len().to_string())]), data(1, HIDDEN, true)]
                    .concat(),
            )
            .ends(1)
            .stream(1, 200)
            .origin_targets(&["/visible"])
            .origin_body(HIDDEN),
        h2_case(
            "h2/hidden-in-data-without-length",
            "T01: a body is a body, whatever it looks like",
        )
        .send([post(1, &[]), data(1, format!("0\r\n\r\n{HIDDEN}"), true)].concat())
        .ends(1)
        .stream(1, 200)
        .origin_targets(&["/visible"])
        .origin_body(format!("0\r\n\r\n{HIDDEN}")),
    ]
}

fn malformed() -> Vec<Case> {
    let lax = "does not mind it";
    let ignored = "leaves the field out";
    let base = request("GET", "/a", &[]);
    let without = |name: &str| -> Vec<(&str, &str)> {
        base.iter().copied().filter(|(there, _)| *there != name).collect()
    };
    let with = |field: (&'static str, &'static str)| [&base[..], &[field]].concat();
    let length = |name, value: &'static str, body: &[u8]| {
        h2_case(name, "T01; RFC 9113, 8.1.1: the length is that of the data")
            .send([post(1, &[("content-length", value)]), data(1, body, true)].concat())
            .ends(1)
            .reset_or_refused(1)
            .origin_broken()
            .origin_no_request("/hidden")
    };
    vec![
        refused_block("h2/no-path", &without(":path")),
        refused_block("h2/no-method", &without(":method")),
        refused_block("h2/no-scheme", &without(":scheme")),
        refused_block("h2/no-authority-no-host", &without(":authority")),
        refused_block("h2/two-paths", &with((":path", "/b"))),
        refused_block("h2/two-methods", &with((":method", "POST"))),
        refused_block("h2/two-schemes", &with((":scheme", "https"))),
        refused_block("h2/two-authorities", &with((":authority", "other.tunnels.test"))),
        refused_block("h2/unknown-pseudo", &with((":unknown", "1"))),
        refused_block("h2/status-in-a-request", &with((":status", "200"))),
        refused_block("h2/protocol-without-connect", &with((":protocol", "websocket"))),
        refused_block(
            "h2/pseudo-behind-fields",
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", HOST),
                ("x-a", "1"),
                (":path", "/a"),
            ],
        )
        .nginx_differs(lax),
        refused_block("h2/empty-path", &[&without(":path")[..], &[(":path", "")]].concat()),
        refused_block(
            "h2/path-without-slash",
            &[&without(":path")[..], &[(":path", "a")]].concat(),
        ),
        refused_block("h2/empty-method", &[&without(":method")[..], &[(":method", "")]].concat()),
        refused_block(
            "h2/empty-authority",
            &[&without(":authority")[..], &[(":authority", "")]].concat(),
        ),
        refused_block(
            "h2/authority-with-user",
            &[&without(":authority")[..], &[(":authority", "user@demo.tunnels.test")]].concat(),
        ),
        refused_block(
            "h2/authority-with-path",
            &[&without(":authority")[..], &[(":authority", "demo.tunnels.test/x")]].concat(),
        ),
        refused("h2/host-that-disagrees", &[("host", "other.tunnels.test")]),
        refused("h2/two-host-fields", &[("host", HOST), ("host", HOST)]),
        refused("h2/upper-case-name", &[("X-A", "1")]),
        refused("h2/connection", &[("connection", "keep-alive")]).nginx_differs(lax),
        refused("h2/connection-close", &[("connection", "close, x-forwarded-for")])
            .nginx_differs(lax),
        refused("h2/keep-alive", &[("keep-alive", "timeout=5")]).nginx_differs(lax),
        refused("h2/proxy-connection", &[("proxy-connection", "keep-alive")]).nginx_differs(lax),
        refused("h2/upgrade", &[("upgrade", "websocket")]).nginx_differs(lax),
        refused("h2/te-gzip", &[("te", "gzip")]).nginx_differs(lax),
        refused("h2/te-trailers-and-more", &[("te", "trailers, gzip")]).nginx_differs(lax),
        h2_case("h2/transfer-encoding", "T01; RFC 9113, 8.2.2")
            .send(
                [
                    post(1, &[("transfer-encoding", "chunked")]),
                    data(1, format!("0\r\n\r\n{HIDDEN}"), true),
                ]
                .concat(),
            )
            .ends(1)
            .stream_refused(1)
            .nginx_differs(lax),
        h2_case("h2/transfer-encoding-and-length", "T01; RFC 9113, 8.2.2")
            .send(
                [
                    post(1, &[("transfer-encoding", "chunked"), ("content-length", "4")]),
                    data(1, "body", true),
                ]
                .concat(),
            )
            .ends(1)
            .stream_refused(1),
        length("h2/more-than-its-length", "2", HIDDEN.as_bytes()),
        length("h2/less-than-its-length", "100", b"body"),
        length("h2/length-of-letters", "four", b"body"),
        length("h2/length-with-plus", "+4", b"body"),
        length("h2/length-list", "4, 4", b"body"),
        h2_case("h2/two-lengths", "T01; RFC 9113, 8.1.1")
            .send(
                [
                    post(1, &[("content-length", "4"), ("content-length", "5")]),
                    data(1, "body", true),
                ]
                .concat(),
            )
            .ends(1)
            .stream_refused(1),
        h2_case("h2/length-without-data", "RFC 9113, 8.1.1")
            .send(get(1, "/a", &[("content-length", "4")]))
            .ends(1)
            .reset_or_refused(1)
            .origin_broken(),
        refused_value("h2/crlf-in-value", (b"x-a", b"1\r\nx-b: 2")),
        refused_value("h2/lf-in-value", (b"x-a", b"1\nx-b: 2")),
        refused_value("h2/cr-in-value", (b"x-a", b"1\rx-b: 2")),
        refused_value("h2/nul-in-value", (b"x-a", b"1\x002")),
        refused_value("h2/control-in-value", (b"x-a", b"1\x012")).nginx_differs(lax),
        refused_value("h2/space-before-value", (b"x-a", b" 1")).nginx_differs(lax),
        refused_value("h2/space-behind-value", (b"x-a", b"1 ")).nginx_differs(lax),
        refused_value("h2/crlf-in-name", (b"x-a: 1\r\nx-b", b"2")),
        refused_value("h2/colon-in-name", (b"x-a:b", b"2")),
        refused_value("h2/space-in-name", (b"x a", b"2")),
        refused_value("h2/nul-in-name", (b"x\0a", b"2")),
        refused_value("h2/empty-name", (b"", b"2")),
        refused_value("h2/obs-text-in-name", (b"x-\xe9", b"2")).nginx_differs(ignored),
        refused_value(
            "h2/crlf-in-path",
            (b":path", b"/a HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\nGET /hidden"),
        ),
        refused_value("h2/space-in-path", (b":path", b"/a b")),
        refused_value("h2/nul-in-path", (b":path", b"/a\0b")),
        refused_value("h2/control-in-path", (b":path", b"/a\x01b")),
        refused_value("h2/crlf-in-method", (b":method", b"GET / HTTP/1.1\r\nx-a: 1\r\n\r\nGET")),
        refused_value("h2/space-in-method", (b":method", b"GET /hidden")),
        refused_value("h2/crlf-in-authority", (b":authority", b"demo.tunnels.test\r\nx-a: 1")),
        refused_value("h2/space-in-authority", (b":authority", b"demo.tunnels.test x")),
        refused_value("h2/crlf-in-scheme", (b":scheme", b"http\r\nx-a: 1")),
        refused_value("h2/crlf-in-cookie", (b"cookie", b"a=1\r\nx-a: 1")),
        h2_case("h2/pseudo-in-trailers", "RFC 9113, 8.1: none in trailers")
            .send(
                [post(1, &[]), data(1, "body", false), headers(1, &[(":path", "/hidden")], true)]
                    .concat(),
            )
            .ends(1)
            .origin_lacks("hidden"),
        h2_case("h2/trailers-without-end", "RFC 9113, 8.1: trailers end the stream")
            .send(
                [post(1, &[]), data(1, "body", false), headers(1, &[("x-sum", "1")], false)]
                    .concat(),
            )
            .ends(1)
            .reset_or_refused(1)
            .origin_broken(),
        h2_case("h2/crlf-in-trailers", "T01, T10")
            .send(
                [
                    post(1, &[]),
                    data(1, "body", false),
                    headers(1, &[("x-sum", "1\r\nx-a: 1")], true),
                ]
                .concat(),
            )
            .ends(1)
            .reset_or_refused(1)
            .origin_broken(),
    ]
}

fn answers() -> Vec<Case> {
    let cut = |name, answer: &'static str| {
        h2_case(name, "RFC 9113, 8.1.1: what is not whole never looks whole")
            .send(get(1, "/a", &[]))
            .reply(whole(answer).close())
            .ends(1)
            .stream_broken(1)
    };
    let bodyless = |name, method: &'static str, answer: &'static str, status| {
        h2_case(name, "RFC 9110, 6.4.1: no body where none may be")
            .send(headers(1, &request(method, "/a", &[]), true))
            .reply(whole(answer))
            .ends(1)
            .stream(1, status)
            .stream_body(1, "")
            .open()
    };
    vec![
        h2_case("h2/answer-fields", "RFC 9113, 8.2: names in lower case, nothing of one connection")
            .send(get(1, "/a", &[]))
            .reply(whole(
                "HTTP/1.1 200 Fine\r\nX-CuStOm: a\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: timeout=5\r\n\
                 Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            ))
            .ends(1)
            .stream(1, 200)
            .stream_field(1, "x-custom", &["a"])
            .stream_field(1, "set-cookie", &["a=1", "b=2"])
            .stream_field(1, "content-length", &["2"])
            .open(),
        h2_case("h2/answer-in-chunks", "RFC 9113, 8.2.2: chunks are for HTTP/1.1")
            .send(get(1, "/a", &[]))
            .reply(whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "body")
            .stream_field(1, "transfer-encoding", &[])
            .open(),
        h2_case("h2/answer-to-the-end", "RFC 9112, 6.3")
            .send(get(1, "/a", &[]))
            .reply(whole("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody").close())
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "body")
            .open(),
        h2_case("h2/answer-streamed", "a piece of a body goes on when it is there")
            .send(get(1, "/a", &[]))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none").gate().say("two"))
            .until_said("the first piece comes", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"one")
            })
            .open_gate()
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "onetwo"),
        bodyless("h2/answer-to-head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", 200)
            .stream_field(1, "content-length", &["4000"]),
        bodyless("h2/answer-204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        bodyless("h2/answer-304", "GET", "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n", 304),
        cut("h2/answer-cut-in-a-length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        cut("h2/answer-cut-in-chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        h2_case("h2/bad-answer", "T09: an invalid answer is 502, and the connection goes on")
            .send(get(1, "/a", &[]))
            .reply(whole("HTTP/1.1 200 OK\r\nX-A: 1\x002\r\nContent-Length: 2\r\n\r\nok").close())
            .ends(1)
            .stream(1, 502)
            .open(),
        h2_case("h2/refused-by-the-origin", "RFC 9110, 15.6.3")
            .send(get(1, "/a", &[]))
            .dark()
            .ends(1)
            .stream(1, 502),
        h2_case("h2/early-answer", "RFC 9113, 8.1: an answer may come before the request is whole")
            .send([post(1, &[]), data(1, "some", false)].concat())
            .reply(at_head().until("some").say("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntoo").close())
            .until_said("the answer comes", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"too")
            })
            .send(rst(1, NO_ERROR))
            .origin_broken()
            .stream_body(1, "too")
            .open(),
        h2_case("h2/large-answer", "windows are no limit")
            .send(get(1, "/a", &[]))
            .reply(whole(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000))))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "x".repeat(1_000_000))
            .open(),
    ]
}

fn cancelled() -> Vec<Case> {
    let rule = "RFC 9113, 5.4.2: a stream that is cancelled is not waited for";
    vec![
        h2_case("h2/cancelled-while-waiting", rule)
            .send(get(1, "/a", &[]))
            .reply(at_head().wait())
            .origin_gets("GET /a")
            .send(rst(1, CANCEL))
            .origin_loses("GET /a")
            .open(),
        h2_case("h2/cancelled-while-reading", rule)
            .send(get(1, "/a", &[]))
            .reply(at_head().say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").wait())
            .gets("half")
            .send(rst(1, CANCEL))
            .origin_loses("GET /a")
            .open(),
        h2_case(
            "h2/cancelled-while-sending",
            "RFC 9113, 8.1: a request that broke off is never complete",
        )
        .send([post(1, &[]), data(1, "half", false)].concat())
        .origin_gets("half")
        .send(rst(1, CANCEL))
        .origin_loses("half")
        .origin_broken()
        .open(),
        h2_case("h2/cancelled-beside-others", rule)
            .send([get(1, "/1", &[]), get(3, "/3", &[])].concat())
            .reply(at_head().gate().say(OK))
            .reply(at_head().gate().say(OK))
            .origin_gets("GET /1")
            .origin_gets("GET /3")
            .send(rst(1, CANCEL))
            .origin_loses("GET /1")
            .open_gate()
            .open_gate()
            .ends(3)
            .stream(3, 200)
            .open(),
        h2_case(
            "h2/left-while-sending",
            "RFC 9113, 8.1: a request that broke off is never complete",
        )
        .send([post(1, &[]), data(1, "half", false)].concat())
        .origin_gets("half")
        .leave()
        .origin_loses("half")
        .origin_broken(),
        h2_case("h2/reset-by-the-origin", "RFC 9110, 15.6.3")
            .send([get(1, "/1", &[]), get(3, "/3", &[])].concat())
            .reply(at_head().reset())
            .ends(1)
            .ends(3)
            .one_of_two_is_502(),
    ]
}

/// RFC 8441: WebSocket over HTTP/2.
fn connect() -> Vec<Case> {
    let unknown = "does not know RFC 8441";
    let extended = |path: &'static str| {
        headers(
            1,
            &[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", HOST),
                (":path", path),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", "chat"),
            ],
            false,
        )
    };
    let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
    vec![
        h2_case("h2/connect", "T23; RFC 9113, 8.5")
            .send(headers(
                1,
                &[(":method", "CONNECT"), (":authority", "demo.tunnels.test:80")],
                false,
            ))
            .ends(1)
            .stream_refused(1),
        h2_case("h2/connect-with-a-path", "RFC 9113, 8.5: CONNECT has neither scheme nor path")
            .send(headers(1, &request("CONNECT", "/a", &[]), true))
            .ends(1)
            .stream_refused(1),
        h2_case("h2/extended-connect-is-offered", "RFC 8441, 3")
            .send(get(1, "/a", &[]))
            .ends(1)
            .stream(1, 200)
            .said("the server enables the extended CONNECT", |view| {
                view.setting(ENABLE_CONNECT_PROTOCOL) == Some(1)
            })
            .nginx_differs(unknown),
        h2_case("h2/websocket", "RFC 8441, 5: on HTTP/1.1 it is an upgrade")
            .send(extended("/chat"))
            .reply(at_head().say_accepting(switched).until("ping").say("pong").wait())
            .until_said("it is accepted", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.status() == 200)
            })
            .send(data(1, "ping", false))
            .until_said("the answer comes", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"pong")
            })
            .origin_line("GET /chat HTTP/1.1")
            .origin_field("upgrade", &["websocket"])
            .origin_field("sec-websocket-version", &["13"])
            .origin_field("sec-websocket-protocol", &["chat"])
            .origin_has_field("sec-websocket-key")
            .stream_field(1, "sec-websocket-protocol", &["chat"])
            .stream_field(1, "sec-websocket-accept", &[])
            .open()
            .nginx_differs(unknown),
        h2_case("h2/websocket-early-bytes", "T01: not a byte goes on before the switch")
            .send([extended("/chat"), data(1, "early", false)].concat())
            .reply(at_head().gate().say_accepting(switched).until("early").say("late").wait())
            .origin_gets("/chat")
            .origin_lacks_yet("early")
            .open_gate()
            .until_said("the answer comes", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"late")
            })
            .origin_has("early")
            .nginx_differs(unknown),
        h2_case("h2/websocket-ends", "RFC 8441, 5: an end at one side is an end at the other")
            .send(extended("/chat"))
            .reply(at_head().say_accepting(switched).until("bye").close())
            .until_said("it is accepted", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.status() == 200)
            })
            .send(data(1, "bye", true))
            .ends(1)
            .origin_has("bye")
            .open()
            .nginx_differs(unknown),
        h2_case("h2/websocket-cancelled", "RFC 8441, 5: RST_STREAM is a lost connection")
            .send(extended("/chat"))
            .reply(at_head().say_accepting(switched).wait())
            .until_said("it is accepted", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.status() == 200)
            })
            .send(rst(1, CANCEL))
            .origin_loses("/chat")
            .open()
            .nginx_differs(unknown),
        h2_case("h2/websocket-declined", "RFC 8441, 5: an answer like any other")
            .send(extended("/chat"))
            .reply(at_head().say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"))
            .ends(1)
            .stream(1, 403)
            .stream_body(1, "no")
            .open()
            .nginx_differs(unknown),
        h2_case("h2/extended-connect-to-something-else", "T01: h2c is refused here too")
            .send(headers(
                1,
                &[
                    (":method", "CONNECT"),
                    (":protocol", "h2c"),
                    (":scheme", "http"),
                    (":authority", HOST),
                    (":path", "/a"),
                ],
                false,
            ))
            .ends(1)
            .stream_refused(1),
    ]
}
