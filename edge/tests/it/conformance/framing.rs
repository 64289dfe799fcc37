//! Where a request's body ends: said once, in one way, and said anew to the local server (RFC 9112,
//! sections 6 and 7).

use super::case::{Case, HOST, OK, at_head, case, expect, get, post, whole};

/// A length or coding that nobody can be sure of.
fn refused(name: &'static str, fields: &str, body: &str) -> Case {
    case(name, "RFC 9112, 6.3: an invalid length is answered 400 and ends the connection")
        .send(post(fields, body))
        .refused(&[400])
}

/// The same for a transfer coding: 501 is as good (RFC 9112, section 6.1).
fn uncoded(name: &'static str, fields: &str) -> Case {
    case(name, "RFC 9112, 6.1 and 7: chunked is the only coding, once and last")
        .send(post(fields, "4\r\nbody\r\n0\r\n\r\n"))
        .refused(&[400, 501])
}

/// Chunks that arrive as `body`.
fn chunks(name: &'static str, bytes: &str, body: &str) -> Case {
    case(name, "RFC 9112, 7.1: a chunked body is decoded")
        .send(post("Transfer-Encoding: chunked\r\n", bytes))
        .status(200)
        .origin_requests(1)
        .origin_body(body)
        .open()
}

/// Chunks of which nobody can be sure: the request never looks whole to the local server, and what
/// follows is never a request.
fn no_chunks(name: &'static str, bytes: &str) -> Case {
    case(name, "RFC 9112, 7.1: what is no chunk breaks the request")
        .send(post("Transfer-Encoding: chunked\r\n", bytes))
        .not_served()
        .closed()
        .origin_broken()
        .origin_lacks("GET /hidden")
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = lengths();
    all.extend(codings());
    all.extend(chunked());
    all.extend(trailers());
    all.extend(broken_off());
    all
}

fn lengths() -> Vec<Case> {
    vec![
        case("framing/length", "RFC 9112, 6.2")
            .send(post("Content-Length: 4\r\n", "body"))
            .status(200)
            .origin_field("content-length", &["4"])
            .origin_field("transfer-encoding", &[])
            .origin_body("body")
            .open(),
        case("framing/length-zero", "RFC 9110, 8.6: a length of 0 is a length")
            .send(post("Content-Length: 0\r\n", ""))
            .status(200)
            .origin_field("content-length", &["0"])
            .open(),
        case("framing/post-without-either", "RFC 9112, 6.3: then there is no body")
            .send(post("", ""))
            .status(200)
            .origin_field("transfer-encoding", &[])
            .origin_body("")
            .open(),
        case("framing/body-with-get", "RFC 9110, 9.3.1: a body is a body")
            .send(get("/a", "Content-Length: 4\r\n") + "body")
            .status(200)
            .origin_line("GET /a HTTP/1.1")
            .origin_body("body")
            .open(),
        case("framing/body-with-delete", "RFC 9110, 9.3.5")
            .send(format!("DELETE /a HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n"))
            .status(200)
            .origin_line("DELETE /a HTTP/1.1")
            .origin_body("b")
            .open(),
        case("framing/length-with-spaces", "RFC 9112, 5.1: spaces around a value are no part of it")
            .send(post("Content-Length:   4 \t\r\n", "body"))
            .status(200)
            .origin_field("content-length", &["4"])
            .origin_body("body").nginx("takes a tab for a part of the value", expect().refused(&[400])),
        case("framing/length-with-leading-zeros", "RFC 9110, 8.6: digits")
            .send(post("Content-Length: 0004\r\n", "body"))
            .status(200)
            .origin_body("body"),
        case("framing/body-in-pieces", "a body may come as it likes")
            .send(post("Content-Length: 6\r\n", "ab"))
            .origin_gets("ab")
            .send("cd")
            .origin_gets("abcd")
            .send("ef")
            .status(200)
            .origin_body("abcdef")
            .open(),
        refused("framing/two-equal-lengths", "Content-Length: 4\r\nContent-Length: 4\r\n", "body"),
        refused("framing/two-lengths", "Content-Length: 4\r\nContent-Length: 5\r\n", "body"),
        refused("framing/length-list", "Content-Length: 4, 4\r\n", "body"),
        refused("framing/length-with-plus", "Content-Length: +4\r\n", "body"),
        refused("framing/length-negative", "Content-Length: -4\r\n", "body"),
        refused("framing/length-hexadecimal", "Content-Length: 0x4\r\n", "body"),
        refused("framing/length-empty", "Content-Length:\r\n", ""),
        refused("framing/length-of-words", "Content-Length: 4 4\r\n", "body"),
        refused("framing/length-fraction", "Content-Length: 4.0\r\n", "body"),
        refused("framing/length-quoted", "Content-Length: \"4\"\r\n", "body"),
        refused("framing/length-beyond-64-bits", "Content-Length: 18446744073709551616\r\n", ""),
        refused("framing/length-of-many-digits", &format!("Content-Length: {}\r\n", "9".repeat(100)), ""),
        refused("framing/length-with-control", "Content-Length: \x0b4\r\n", "body"),
        case("framing/length-underscore", "T01: no second spelling of Content-Length")
            .send(post("Content_Length: 40\r\nContent-Length: 4\r\n", "body"))
            .status(200)
            .origin_body("body"),
    ]
}

fn codings() -> Vec<Case> {
    vec![
        refused("framing/chunked-and-length", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "4\r\nbody\r\n0\r\n\r\n"),
        refused("framing/length-and-chunked", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
        uncoded("framing/chunked-twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        uncoded("framing/chunked-and-identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        uncoded("framing/chunked-list", "Transfer-Encoding: chunked, chunked\r\n"),
        uncoded("framing/gzip-chunked", "Transfer-Encoding: gzip, chunked\r\n"),
        uncoded("framing/chunked-gzip", "Transfer-Encoding: chunked, gzip\r\n"),
        uncoded("framing/identity", "Transfer-Encoding: identity\r\n"),
        uncoded("framing/xchunked", "Transfer-Encoding: xchunked\r\n"),
        uncoded("framing/coding-empty", "Transfer-Encoding:\r\n"),
        uncoded("framing/coding-list-with-empty", "Transfer-Encoding: , chunked\r\n"),
        uncoded("framing/coding-quoted", "Transfer-Encoding: \"chunked\"\r\n"),
        uncoded("framing/coding-with-parameter", "Transfer-Encoding: chunked;a=b\r\n"),
        uncoded("framing/coding-vertical-tab", "Transfer-Encoding: \x0bchunked\r\n"),
        uncoded("framing/coding-trailing-control", "Transfer-Encoding: chunked\x0b\r\n"),
        uncoded("framing/coding-with-nul", "Transfer-Encoding: chunked\0\r\n"),
        case("framing/coding-obs-text", "RFC 9112, 6.1")
            .send(
                [post("Transfer-Encoding: chunked", "").trim_end().as_bytes(), b"\xa0\r\n\r\n4\r\nbody\r\n0\r\n\r\n"].concat(),
            )
            .refused(&[400, 501]),
        case("framing/chunked-upper-case", "RFC 9112, 7: codings have no case")
            .send(post("Transfer-Encoding: CHUNKED\r\n", "4\r\nbody\r\n0\r\n\r\n"))
            .status(200)
            .origin_body("body")
            .open(),
        case("framing/chunked-in-http-1.0", "RFC 9112, 6.1: chunks are unknown there")
            .send(format!(
                "POST /a HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
            ))
            .refused(&[400, 501]),
        case("framing/length-in-http-1.0", "RFC 9112, 6.2")
            .send(format!("POST /a HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody"))
            .status(200)
            .origin_body("body")
            .closed(),
    ]
}

fn chunked() -> Vec<Case> {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n";
    let lenient = "reads chunk lines leniently";
    vec![
        chunks("framing/chunks", "4\r\nbody\r\n2\r\n!?\r\n0\r\n\r\n", "body!?"),
        chunks("framing/no-chunk", "0\r\n\r\n", ""),
        chunks("framing/size-lower-case", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        chunks("framing/size-upper-case", "A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        chunks("framing/size-leading-zeros", "0004\r\nbody\r\n0000\r\n\r\n", "body"),
        chunks("framing/chunk-extension", "4;a=b;c=\"d\"\r\nbody\r\n0;last\r\n\r\n", "body")
            .origin_lacks("a=b"),
        chunks("framing/chunk-extension-spaced", "4 ; a = b\r\nbody\r\n0\r\n\r\n", "body"),
        chunks("framing/data-like-a-chunk", "7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n\r\n"),
        case("framing/chunks-in-pieces", "RFC 9112, 7.1")
            .send(post("Transfer-Encoding: chunked\r\n", "4"))
            .fence_elsewhere()
            .send("\r")
            .fence_elsewhere()
            .send("\nbo")
            .origin_gets("bo")
            .send("dy")
            .origin_gets("dy")
            .send("\r\n0\r\n\r")
            .fence_elsewhere()
            .send("\n")
            .status(200)
            .origin_body("body")
            .open(),
        case(
            "framing/chunks-are-not-joined-by-waiting",
            "a piece of a body goes on when it is there",
        )
        .send(post("Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n"))
        .origin_gets("body")
        .send("3\r\nand\r\n")
        .origin_gets("and")
        .send("0\r\n\r\n")
        .status(200)
        .origin_body("bodyand"),
        no_chunks("framing/size-not-hex", &format!("g\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-with-0x", &format!("0x4\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-negative", &format!("-4\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-with-plus", &format!("+4\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-empty", &format!("\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-too-large", "10000000000000000\r\nbody\r\n0\r\n\r\n"),
        no_chunks(
            "framing/size-of-many-digits",
            &format!("{}\r\nbody\r\n0\r\n\r\n", "f".repeat(64)),
        ),
        no_chunks("framing/size-with-leading-space", &format!(" 4\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/size-with-underscore", &format!("1_0\r\nbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/no-crlf-behind-data", &format!("4\r\nbody0\r\n\r\n{hidden}")),
        no_chunks("framing/more-data-than-size", &format!("4\r\nbody!!\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/lf-behind-size", &format!("4\nbody\r\n0\r\n\r\n{hidden}"))
            .nginx_differs(lenient),
        no_chunks("framing/lf-behind-data", &format!("4\r\nbody\n0\r\n\r\n{hidden}"))
            .nginx_differs(lenient),
        no_chunks("framing/cr-behind-size", &format!("4\rbody\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/lf-in-extension", &format!("2;\nxx\r\n30\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/cr-in-extension", &format!("2;\rxx\r\n30\r\n0\r\n\r\n{hidden}")),
        no_chunks("framing/nul-in-extension", &format!("4;\0\r\nbody\r\n0\r\n\r\n{hidden}"))
            .nginx_differs(lenient),
        no_chunks("framing/lf-behind-last-chunk", &format!("4\r\nbody\r\n0\n\n{hidden}"))
            .nginx_differs(lenient),
        no_chunks("framing/size-trailing-space", &format!("4 \r\nbody\r\n0\r\n\r\n{hidden}"))
            .nginx_differs(lenient),
        no_chunks(
            "framing/extension-without-end",
            &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(200_000)),
        )
        .nginx_differs("has no bound for extensions"),
        no_chunks(
            "framing/trailers-without-end",
            &format!("0\r\n{}\r\n", "X: y\r\n".repeat(50_000)),
        )
        .nginx_differs("has no bound for trailers"),
    ]
}

fn trailers() -> Vec<Case> {
    let dropped = "drops trailers of a request";
    let forbidden = |name, field: &'static str| {
        case(name, "RFC 9110, 6.5.1: some fields are never trailers")
            .send(post(
                "Transfer-Encoding: chunked\r\n",
                &format!("4\r\nbody\r\n0\r\n{field}: 1\r\nX-Sum: 77\r\n\r\n"),
            ))
            .status(200)
            .origin_body("body")
            .origin_trailer(field, &[])
            .origin_trailer("x-sum", &["77"])
            .nginx(dropped, expect().status(200).origin_body("body").origin_trailer("x-sum", &[]))
    };
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                  4\r\nbody\r\n0\r\nX-Sum: 77\r\nContent-Length: 9\r\n\r\n";
    vec![
        case("framing/request-trailers", "RFC 9112, 7.1.2")
            .send(post(
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n",
                "4\r\nbody\r\n0\r\nX-Sum: 77\r\nX-Sum: 78\r\n\r\n",
            ))
            .status(200)
            .origin_field("trailer", &["X-Sum"])
            .origin_body("body")
            .origin_trailer("x-sum", &["77", "78"])
            .open()
            .nginx(dropped, expect().status(200).origin_body("body").open()),
        forbidden("framing/trailer-content-length", "Content-Length"),
        forbidden("framing/trailer-transfer-encoding", "Transfer-Encoding"),
        forbidden("framing/trailer-host", "Host"),
        forbidden("framing/trailer-connection", "Connection"),
        forbidden("framing/trailer-authorization", "Authorization"),
        forbidden("framing/trailer-forwarded-for", "X-Forwarded-For"),
        forbidden("framing/trailer-of-ours", "X-Uniroute-Request-Id"),
        no_chunks("framing/trailer-without-colon", "4\r\nbody\r\n0\r\nnothing\r\n\r\n")
            .nginx_differs("does not look at trailers"),
        no_chunks("framing/trailer-with-nul", "4\r\nbody\r\n0\r\nX-A: \0\r\n\r\n")
            .nginx_differs("does not look at trailers"),
        no_chunks("framing/trailer-folded", "4\r\nbody\r\n0\r\nX-A: 1\r\n 2\r\n\r\n")
            .nginx_differs("does not look at trailers"),
        case("framing/answer-trailers", "RFC 9110, 6.5.1: for a client that said TE: trailers")
            .send(get("/a", "TE: trailers\r\nConnection: TE\r\n"))
            .reply(whole(answer))
            .status(200)
            .body("body")
            .client_field("trailer", &["X-Sum"])
            .client_trailer("x-sum", &["77"])
            .client_trailer("content-length", &[])
            .open()
            .nginx("drops trailers of an answer", expect().status(200).body("body").open()),
        case("framing/answer-trailers-not-asked-for", "RFC 9110, 6.5.1 and 10.1.4")
            .send(get("/a", ""))
            .reply(whole(answer))
            .status(200)
            .body("body")
            .client_trailer("x-sum", &[])
            .open(),
        case("framing/answer-trailers-to-http-1.0", "RFC 9112, 7.1.2: there is no place for them")
            .send(format!("GET /a HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))
            .reply(whole(answer))
            .status(200)
            .body("body")
            .client_lacks("77")
            .closed(),
    ]
}

fn broken_off() -> Vec<Case> {
    let rule = "RFC 9112, 8: a request that broke off is never complete";
    let left = |name, fields: &str, piece: &str, seen: &'static str| {
        case(name, rule)
            .send(post(fields, piece))
            .origin_gets(seen)
            .leave()
            .origin_loses(seen)
            .no_answer()
            .origin_broken()
    };
    vec![
        left("framing/left-in-a-length", "Content-Length: 100\r\n", "half", "half"),
        left("framing/left-in-a-chunk", "Transfer-Encoding: chunked\r\n", "64\r\nhalf", "half"),
        left("framing/left-between-chunks", "Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n", "half"),
        left("framing/left-before-the-last-crlf", "Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n0\r\n", "half"),
        left("framing/left-before-the-body", "Content-Length: 100\r\n", "", "/visible"),
        case("framing/half-closed-in-a-body", "a visitor that ends its direction is gone")
            .send(post("Content-Length: 100\r\n", "half"))
            .origin_gets("half")
            .shut()
            .origin_loses("half")
            .unfenced()
            .not_served()
            .origin_broken(),
        case("framing/left-while-waiting", "a visitor that leaves is not waited for")
            .send(get("/a", ""))
            .reply(at_head().wait())
            .origin_gets("GET /a")
            .leave()
            .origin_loses("GET /a")
            .no_answer(),
        case("framing/left-while-reading", "a visitor that leaves is not waited for")
            .send(get("/a", ""))
            .reply(at_head().say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").wait())
            .gets("half")
            .leave()
            .origin_loses("GET /a")
            .never_whole(),
        case("framing/early-answer", "RFC 9112, 9.6: an answer may come before the request is whole")
            .send(post("Content-Length: 1000000\r\n", "some"))
            .reply(
                at_head()
                    .until("some")
                    .say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntoo")
                    .close(),
            )
            .gets("too")
            .unfenced()
            .status(413)
            .body("too")
            .origin_broken(),
        case("framing/early-answer-and-the-body-goes-on", "RFC 9112, 9.3: both directions are independent")
            .send(post("Content-Length: 8\r\n", "some"))
            .reply(at_head().until("some").say(OK).until("more"))
            .gets("\r\n\r\nok")
            .send("more")
            .status(200)
            .body("ok")
            .may_break(),
    ]
}
