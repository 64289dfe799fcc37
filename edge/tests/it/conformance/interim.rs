//! Answers before the answer, and who asks for a body (RFC 9110, sections 10.1.1 and 15.2).

use super::case::{Case, HOST, OK, at_head, case, get, post, whole};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

pub(super) fn cases() -> Vec<Case> {
    let mut all = expectations();
    all.extend(informational());
    all
}

fn expectations() -> Vec<Case> {
    let own = "asks for the body itself and keeps Expect to itself";
    vec![
        case("interim/expect-goes-to-the-origin", "RFC 9110, 10.1.1: a gateway forwards it")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().say(CONTINUE).until("body").say(OK))
            .gets(CONTINUE.trim_end())
            .send("body")
            .status(200)
            .interim(&[100])
            .origin_field("expect", &["100-continue"])
            .origin_body("body")
            .open().nginx_differs(own),
        case("interim/no-continue-of-our-own", "RFC 9110, 10.1.1: it is the origin that wants a body")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().gate().say(CONTINUE).until("body").say(OK))
            .origin_gets("/visible")
            .client_lacks_yet("100")
            .open_gate()
            .gets("100 Continue")
            .send("body")
            .status(200)
            .interim(&[100])
            .nginx_differs(own),
        case("interim/refused-without-a-body", "RFC 9110, 10.1.1: a final answer at once, and no body is asked for")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().say("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno"))
            .gets("\r\n\r\nno")
            .unfenced()
            .status(401)
            .body("no")
            .interim(&[])
            .may_break()
            .nginx_differs(own),
        case("interim/expectation-failed", "RFC 9110, 15.5.18")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().say("HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").close())
            .gets("417")
            .unfenced()
            .status(417)
            .interim(&[])
            .may_break()
            .nginx_differs(own),
        case("interim/body-without-waiting", "RFC 9110, 10.1.1: a client may send its body all the same")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", "body"))
            .status(200)
            .origin_body("body")
            .open(),
        case("interim/expect-with-chunks", "RFC 9110, 10.1.1")
            .send(post("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", ""))
            .reply(at_head().say(CONTINUE).until("body").say(OK))
            .gets("100 Continue")
            .send("4\r\nbody\r\n0\r\n\r\n")
            .status(200)
            .origin_body("body")
            .open().nginx_differs(own),
        case("interim/expect-has-no-case", "RFC 9110, 10.1.1")
            .send(post("Expect: 100-Continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().say(CONTINUE).until("body").say(OK))
            .gets("100 Continue")
            .send("body")
            .status(200)
            .origin_body("body").nginx_differs(own),
        case("interim/expect-without-a-body", "RFC 9110, 10.1.1: nothing to wait for")
            .send(get("/a", "Expect: 100-continue\r\n"))
            .status(200)
            .open(),
        case("interim/expect-of-http-1.0", "RFC 9110, 10.1.1: ignored in HTTP/1.0")
            .send(format!(
                "POST /a HTTP/1.0\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody"
            ))
            .status(200)
            .interim(&[])
            .origin_body("body")
            .closed(),
        case("interim/other-expectation", "RFC 9110, 10.1.1: passed on or 417")
            .send(post("Expect: the-unexpected\r\nContent-Length: 0\r\n", ""))
            .status_in(&[200, 417]),
        case("interim/refused-and-then-another", "RFC 9112, 9.3: what follows is the next request or nothing")
            .send(post("Expect: 100-continue\r\nContent-Length: 4\r\n", ""))
            .reply(at_head().say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"))
            .gets("\r\n\r\nno")
            .send("body")
            .status(401)
            .may_break()
            .origin_no_request("body"),
    ]
}

fn informational() -> Vec<Case> {
    let takes = "takes 1xx for the answer, and what follows for its body";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    vec![
        case("interim/early-hints", "RFC 8297; RFC 9110, 15.2: 1xx are forwarded")
            .send(get("/a", ""))
            .reply(whole(hints).say(OK))
            .status(200)
            .interim(&[103])
            .client_has("Link: </a.css>; rel=preload\r\n")
            .body("ok")
            .open().nginx_differs(takes),
        case("interim/early-hints-are-early", "RFC 8297: they don't wait for the answer")
            .send(get("/a", ""))
            .reply(whole(hints).gate().say(OK))
            .gets("103 Early Hints")
            .open_gate()
            .status(200)
            .interim(&[103]).nginx_differs(takes),
        case("interim/several", "RFC 9110, 15.2: any number of them")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 102 Processing\r\n\r\n").say(hints).say(hints).say(OK))
            .status(200)
            .interim(&[102, 103, 103])
            .body("ok").nginx_differs(takes),
        case("interim/unknown", "RFC 9110, 15: 1xx by its class")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 199 Whatever\r\nX-A: 1\r\n\r\n").say(OK))
            .status(200)
            .body("ok").nginx_differs(takes),
        case("interim/not-to-http-1.0", "RFC 9110, 15.2: 1xx are not sent to HTTP/1.0")
            .send(format!("GET /a HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))
            .reply(whole(hints).say(OK))
            .status(200)
            .interim(&[])
            .body("ok")
            .closed().nginx_differs(takes),
        case("interim/unasked-continue", "RFC 9110, 15.2.1: left out or passed on, and the answer comes")
            .send(get("/a", ""))
            .reply(whole(CONTINUE).say(OK))
            .status(200)
            .body("ok")
            .open().nginx_differs(takes),
        case("interim/without-an-answer", "T09: 1xx is no answer")
            .send(get("/a", ""))
            .reply(whole(hints).close())
            .broken_or_5xx().nginx_differs(takes),
        case("interim/fields-of-one-connection", "RFC 9110, 7.6.1: in 1xx as well")
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nKeep-Alive: 5\r\nX-Uniroute-Error: UR-6666\r\n\r\n").say(OK))
            .status(200)
            .interim(&[103])
            .client_lacks("keep-alive: 5")
            .client_lacks("UR-6666").nginx_differs(takes),
        case("interim/without-end", "T09: no number of 1xx is gathered for ever")
            .send(get("/a", ""))
            .reply(whole(hints.repeat(2_000)).say(OK))
            .first_status_in(&[200, 502]).nginx_differs(takes),
    ]
}
