//! The life of connections: pipelining, keep-alive, and what becomes of both sides behind an error
//! (RFC 9112, section 9).

use super::case::{Case, HOST, OK, at_head, case, get, post, whole};

pub(super) fn cases() -> Vec<Case> {
    let mut all = pipelines();
    all.extend(kept_alive());
    all.extend(to_the_origin());
    all
}

/// An answer that says which request it is for.
fn saying(body: &str) -> super::case::Reply {
    whole(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn pipelines() -> Vec<Case> {
    let rule = "RFC 9112, 9.3.2: answers come in the order of their requests";
    vec![
        case("lives/three-in-a-row", rule)
            .send(get("/1", "") + &get("/2", "") + &get("/3", ""))
            .reply(saying("one"))
            .reply(saying("two"))
            .reply(saying("three"))
            .statuses(&[200, 200, 200])
            .bodies(&["one", "two", "three"])
            .origin_targets(&["/1", "/2", "/3"])
            .open(),
        case("lives/with-bodies", rule)
            .send(
                post("Content-Length: 4\r\n", "body")
                    + &post("Transfer-Encoding: chunked\r\n", "4\r\nmore\r\n0\r\n\r\n")
                    + &get("/3", ""),
            )
            .statuses(&[200, 200, 200])
            .origin_targets(&["/visible", "/visible", "/3"])
            .origin_body("body")
            .open(),
        case("lives/behind-an-error", "RFC 9112, 9.3.2: an error whose end is clear ends nothing")
            .send(
                "GET /1 HTTP/1.1\r\nHost: nobody.tunnels.test\r\n\r\n".to_owned() + &get("/2", ""),
            )
            .statuses(&[404, 200])
            .origin_targets(&["/2"])
            .open(),
        case(
            "lives/behind-an-error-with-a-body",
            "RFC 9112, 9.3: the body is dropped, or the connection ends",
        )
        .send(
            "POST /1 HTTP/1.1\r\nHost: nobody.tunnels.test\r\nContent-Length: 4\r\n\r\nbody"
                .to_owned()
                + &get("/2", ""),
        )
        .first_status(404)
        .origin_no_request("body"),
        case("lives/methods-in-a-row", rule)
            .send(
                format!("HEAD /1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
                    + &get("/2", "")
                    + &post("Content-Length: 0\r\n", ""),
            )
            .methods(&["HEAD", "GET", "POST"])
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"))
            .statuses(&[200, 200, 200])
            .origin_targets(&["/1", "/2", "/visible"])
            .open(),
        case("lives/second-while-first-is-answered", rule)
            .send(get("/1", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfir").gate().say("st!"))
            .reply(saying("second"))
            .gets("fir")
            .send(get("/2", ""))
            .fence_elsewhere()
            .open_gate()
            .statuses(&[200, 200])
            .bodies(&["first!", "second"]),
        case("lives/twenty-in-a-row", rule)
            .send(get("/a", "").repeat(20))
            .statuses(&[200; 20])
            .origin_requests(20)
            .open(),
        case("lives/half-a-second-one", "RFC 9112, 9.3.2: the first does not wait for the second")
            .send(get("/1", "") + "GET /2 HTTP/1.1\r\nHo")
            .gets("ok")
            .send(format!("st: {HOST}\r\n\r\n"))
            .statuses(&[200, 200])
            .origin_targets(&["/1", "/2"]),
        case("lives/bad-second", "RFC 9112, 9.3.2: the first is answered, the second refused")
            .send(get("/1", "") + "BAD\r\n\r\n")
            .statuses(&[200, 400])
            .closed()
            .origin_targets(&["/1"]),
    ]
}

fn kept_alive() -> Vec<Case> {
    vec![
        case("lives/one-after-the-other", "RFC 9112, 9.3: connections are kept by default")
            .send(get("/1", ""))
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .origin_connections(1)
            .open(),
        case("lives/close-is-kept-to", "RFC 9112, 9.6")
            .send(get("/1", "Connection: close\r\n"))
            .status(200)
            .client_field("connection", &["close"])
            .closed(),
        case("lives/close-in-a-list", "RFC 9112, 9.6")
            .send(get("/1", "Connection: X-None, Close\r\n"))
            .status(200)
            .closed(),
        case("lives/close-in-a-second-field", "RFC 9112, 9.6")
            .send(get("/1", "Connection: X-None\r\nConnection: close\r\n"))
            .status(200)
            .closed(),
        case("lives/behind-404", "RFC 9112, 9.3")
            .send("GET /1 HTTP/1.1\r\nHost: nobody.tunnels.test\r\n\r\n")
            .status(404)
            .origin_untouched()
            .open(),
        case("lives/behind-502", "RFC 9112, 9.3: an error of the local server ends nothing")
            .send(get("/1", "") + &get("/2", ""))
            .dark()
            .statuses(&[502, 502]),
        case(
            "lives/behind-502-with-a-body",
            "T01: an unread body is dropped, or the connection ends",
        )
        .send(post("Content-Length: 37\r\n", "GET /hidden HTTP/1.1\r\nHost: x.y\r\n\r\n\r\n"))
        .dark()
        .status(502),
        case("lives/http-1.0-closes", "RFC 9112, 9.3")
            .send(format!("GET /1 HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))
            .status(200)
            .closed(),
        case(
            "lives/http-1.0-chunks-with-keep-alive",
            "RFC 9112, C.2.2: without a length it closes",
        )
        .send(format!("GET /1 HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n"))
        .reply(whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
        .status(200)
        .body("ok")
        .closed(),
        case(
            "lives/half-closed-behind-a-request",
            "a visitor that ends its direction is gone, or gets its answer; nobody else minds",
        )
        .send(get("/1", ""))
        .shut()
        .unfenced()
        .closed()
        .answers_at_most(1),
        case(
            "lives/long-head-behind-a-short-one",
            "buffers of one request are not those of the next",
        )
        .send(get("/1", ""))
        .gets("ok")
        .send(get("/2", &format!("X-Long: {}\r\n", "v".repeat(20_000))))
        .statuses(&[200, 200])
        .origin_has("v".repeat(20_000))
        .open(),
    ]
}

fn to_the_origin() -> Vec<Case> {
    let retried =
        "RFC 9112, 9.3.1: an idempotent request is sent again when an idle connection ends";
    vec![
        case("lives/origin-connection-is-reused", "RFC 9112, 9.3")
            .send(get("/1", "") + &get("/2", ""))
            .statuses(&[200, 200])
            .origin_connections(1),
        case("lives/origin-closed-in-between", retried)
            .send(get("/1", ""))
            .reply(whole(OK).close())
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .origin_targets(&["/1", "/2"]),
        case("lives/origin-closes-as-it-comes", retried)
            .send(get("/1", ""))
            .gets("ok")
            .reply(whole(OK))
            .reply(at_head().close())
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .origin_targets(&["/1", "/2", "/2"])
            .open(),
        case("lives/origin-resets-as-it-comes", retried)
            .send(get("/1", ""))
            .reply(whole(OK))
            .reply(at_head().reset())
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .origin_targets(&["/1", "/2", "/2"])
            .open(),
        case(
            "lives/post-is-not-sent-twice",
            "RFC 9110, 9.2.2: what is not idempotent is not repeated",
        )
        .send(get("/1", ""))
        .reply(whole(OK))
        .reply(whole("").close())
        .gets("ok")
        .send(post("Content-Length: 4\r\n", "body"))
        .statuses(&[200, 502])
        .origin_targets(&["/1", "/visible"]),
        case(
            "lives/new-connection-is-not-tried-twice",
            "RFC 9112, 9.3.1: only an idle connection may have ended by chance",
        )
        .send(get("/1", ""))
        .reply(at_head().close())
        .status(502)
        .origin_requests(1)
        .open(),
        case("lives/origin-says-close", "RFC 9112, 9.6: nothing more is sent on that connection")
            .send(get("/1", ""))
            .reply(
                whole("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                    .until("GET /never")
                    .say(OK),
            )
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .origin_connections(2),
        case("lives/origin-of-http-1.0", "RFC 9112, 9.3: HTTP/1.0 closes by default")
            .send(get("/1", ""))
            .reply(whole("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").close())
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .bodies(&["ok", "ok"])
            .origin_connections(2),
        case("lives/origin-of-http-1.0-keeps-alive", "RFC 9112, C.2.2")
            .send(get("/1", ""))
            .reply(whole(
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            ))
            .gets("ok")
            .send(get("/2", ""))
            .statuses(&[200, 200])
            .open(),
        case("lives/put-with-a-body-is-not-lost", "RFC 9112, 9.3.1: sent again whole, or 502")
            .send(get("/1", ""))
            .reply(whole(OK))
            .reply(whole("").close())
            .gets("ok")
            .send(format!("PUT /2 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody"))
            .last_status_in(&[200, 502]),
    ]
}
