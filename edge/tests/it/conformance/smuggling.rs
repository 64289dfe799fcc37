//! T01: no request hides behind another. The classics, each with a request in hiding that the local
//! server must never see.

use super::case::{Case, HOST, at_head, case, get, whole};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n";

/// A POST with these fields and what follows; refused with its connection, hidden or not.
fn refused(name: &'static str, fields: &str, rest: &str) -> Case {
    case(name, "T01; RFC 9112, 6.3 and 11.2")
        .send(format!("POST /visible HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n{rest}"))
        .refused(&[400, 501])
}

/// Served as what it is, and what hides in it is a body.
fn harmless(name: &'static str, fields: &str, rest: &str, body: &str) -> Case {
    case(name, "T01: a body is a body, whatever it looks like")
        .send(format!("POST /visible HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n{rest}"))
        .status(200)
        .origin_targets(&["/visible"])
        .origin_body(body)
        .open()
}

pub(super) fn cases() -> Vec<Case> {
    let chunks = format!("0\r\n\r\n{HIDDEN}");
    let length = HIDDEN.len();
    let in_chunk = format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let te = "Transfer-Encoding: chunked\r\n";
    let cl = format!("Content-Length: {}\r\n", chunks.len());
    let obfuscated = |name, line: &str| refused(name, &format!("{cl}{line}\r\n"), &chunks);
    let mut all = vec![
        refused("smuggling/cl-te", &format!("{cl}{te}"), &chunks),
        refused("smuggling/te-cl", &format!("{te}Content-Length: 4\r\n"), &in_chunk),
        refused("smuggling/cl-te-no-body", &format!("Content-Length: 0\r\n{te}"), &chunks),
        refused("smuggling/te-te", &format!("{te}{te}"), &chunks),
        refused(
            "smuggling/te-te-identity",
            &format!("{te}Transfer-Encoding: identity\r\n"),
            &chunks,
        ),
        refused("smuggling/te-te-cow", &format!("{te}Transfer-encoding: cow\r\n"), &chunks),
        refused(
            "smuggling/cl-cl",
            &format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
            HIDDEN,
        ),
        refused("smuggling/cl-list", &format!("Content-Length: 0, {length}\r\n"), HIDDEN),
        obfuscated("smuggling/te-space-before-colon", "Transfer-Encoding : chunked"),
        obfuscated("smuggling/te-tab-before-colon", "Transfer-Encoding\t: chunked"),
        obfuscated("smuggling/te-leading-space", " Transfer-Encoding: chunked"),
        obfuscated("smuggling/te-folded", "Transfer-Encoding:\r\n chunked"),
        obfuscated("smuggling/te-behind-lf", "X: y\nTransfer-Encoding: chunked"),
        obfuscated("smuggling/te-behind-cr", "X: y\rTransfer-Encoding: chunked"),
        obfuscated("smuggling/te-nul", "Transfer-Encoding\0: chunked"),
        obfuscated("smuggling/te-quote", "Transfer-Encoding: 'chunked"),
        obfuscated("smuggling/te-comma", "Transfer-Encoding: chunked,"),
        obfuscated("smuggling/te-bad-name", "Transfer Encoding: chunked"),
        obfuscated("smuggling/te-prefixed-colon", ":Transfer-Encoding: chunked"),
        refused(
            "smuggling/chunked-http-1.0",
            &format!("X: y\r\n{te}Connection: close\r\nContent-Length: 0\r\n"),
            &chunks,
        ),
        harmless(
            "smuggling/hidden-in-a-length",
            &format!("Content-Length: {length}\r\n"),
            HIDDEN,
            HIDDEN,
        ),
        harmless("smuggling/hidden-in-a-chunk", te, &in_chunk, HIDDEN),
        harmless("smuggling/hidden-in-trailers", te, "0\r\nX-A: GET /hidden HTTP/1.1\r\n\r\n", ""),
        harmless(
            "smuggling/underscore-te",
            &format!("Content-Length: {length}\r\nTransfer_Encoding: chunked\r\n"),
            HIDDEN,
            HIDDEN,
        ),
        harmless(
            "smuggling/te-named-by-connection",
            &format!("{te}Connection: Transfer-Encoding\r\n"),
            "4\r\nbody\r\n0\r\n\r\n",
            "body",
        ),
        harmless(
            "smuggling/cl-named-by-connection",
            &format!("Content-Length: {length}\r\nConnection: Content-Length\r\n"),
            HIDDEN,
            HIDDEN,
        ),
        harmless(
            "smuggling/hidden-in-a-put",
            &format!("Expect:\r\nContent-Length: {length}\r\n"),
            HIDDEN,
            HIDDEN,
        ),
    ];
    all.extend(without_a_body(length));
    all.extend(targets_and_switches());
    all
}

/// CL.0 and 0.CL: one side takes a request to have no body.
fn without_a_body(length: usize) -> Vec<Case> {
    vec![
        case("smuggling/cl-0", "T01: the local server answers without reading, and the body is dropped")
            .send(format!(
                "POST /visible HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}{}",
                get("/next", "")
            ))
            .reply(at_head().say("HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n"))
            .may_break()
            .first_status(302)
            .origin_no_request("/hidden"),
        case("smuggling/cl-0-with-get", "T01: GET may have a body")
            .send(format!(
                "GET /visible HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}{}",
                get("/next", "")
            ))
            .statuses(&[200, 200])
            .origin_targets(&["/visible", "/next"])
            .origin_body(HIDDEN),
        case("smuggling/cl-0-with-head", "T01: HEAD may have a body")
            .send(format!(
                "HEAD /visible HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}{}",
                get("/next", "")
            ))
            .methods(&["HEAD", "GET"])
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"))
            .statuses(&[200, 200])
            .origin_targets(&["/visible", "/next"])
            .origin_body(HIDDEN),
        case("smuggling/0-cl", "T01: a refused request's body is no request")
            .send(format!(
                "POST /visible HTTP/1.1\r\nHost: nobody.tunnels.test\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ))
            .status(404)
            .origin_untouched(),
        case("smuggling/0-cl-chunked", "T01: a refused request's body is no request")
            .send(format!(
                "POST /visible HTTP/1.1\r\nHost: nobody.tunnels.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {length:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ))
            .status(404)
            .origin_untouched(),
        case("smuggling/0-cl-method", "T01: a refused request's body is no request")
            .send(format!(
                "TRACE /visible HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ))
            .status_in(&[400, 405])
            .origin_untouched(),
        case("smuggling/behind-a-close", "RFC 9112, 9.6: nothing behind Connection: close is read")
            .send(get("/visible", "Connection: close\r\n") + HIDDEN)
            .status(200)
            .closed()
            .origin_targets(&["/visible"]),
        case("smuggling/behind-http-1.0", "RFC 9112, 9.3: nothing behind a request of HTTP/1.0 is read")
            .send(format!("GET /visible HTTP/1.0\r\nHost: {HOST}\r\n\r\n{HIDDEN}"))
            .status(200)
            .closed()
            .origin_targets(&["/visible"]),
        case("smuggling/behind-an-error", "T01: where a bad request ends is in doubt")
            .send(format!("GET /visible HTTP/1.1\r\nHost: {HOST}\r\nnothing\r\n\r\n{HIDDEN}"))
            .refused(&[400]).nginx_differs("takes it for a field without a value"),
        case("smuggling/pipelined-is-not-hidden", "RFC 9112, 9.3.2: what is plainly a second request is one")
            .send(get("/visible", "") + HIDDEN)
            .statuses(&[200, 200])
            .origin_targets(&["/visible", "/hidden"])
            .open(),
    ]
}

fn targets_and_switches() -> Vec<Case> {
    vec![
        case("smuggling/crlf-in-target", "T10: a target can't end its line")
            .send(get("/a%0d%0aX-Injected:%201", ""))
            .status(200)
            .origin_line("GET /a%0d%0aX-Injected:%201 HTTP/1.1")
            .origin_field("x-injected", &[]),
        case("smuggling/request-in-a-value", "T10: a value can't end its line")
            .send(get("/a", "X-A: 1\r\n\tGET /hidden HTTP/1.1\r\n"))
            .refused(&[400]),
        case("smuggling/h2c", "T01: HTTP/2 in clear text would carry what nobody looks at")
            .send(get(
                "/visible",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
            ))
            .status(200)
            .origin_lacks("h2c")
            .origin_lacks("upgrade:")
            .origin_lacks("http2-settings"),
        case("smuggling/h2c-in-a-list", "T01")
            .send(get(
                "/visible",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            ))
            .status_in(&[200, 400])
            .origin_lacks("h2c")
            .origin_lacks("http2-settings")
            .nginx_differs("passes the list on"),
        case("smuggling/h2c-upper-case", "T01")
            .send(get("/visible", "Connection: Upgrade\r\nUpgrade: H2C\r\n"))
            .status(200)
            .origin_lacks("h2c"),
        case("smuggling/upgrade-without-connection", "RFC 9110, 7.8: Upgrade goes with its Connection option")
            .send(get("/visible", "Upgrade: websocket\r\n"))
            .status(200)
            .origin_lacks("upgrade:")
            .nginx_differs("goes by the Upgrade field alone, as it is told to"),
        case("smuggling/upgrade-of-http-1.0", "RFC 9110, 7.8: ignored in HTTP/1.0")
            .send(format!(
                "GET /visible HTTP/1.0\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            ))
            .status(200)
            .closed()
            .origin_lacks("websocket")
            .nginx_differs("goes by the Upgrade field alone, as it is told to"),
        case("smuggling/upgrade-with-a-body", "T01: the body ends before anything is switched")
            .send(format!(
                "POST /visible HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Content-Length: {}\r\n\r\n{HIDDEN}",
                HIDDEN.len()
            ))
            .status_in(&[200, 400])
            .origin_no_request("/hidden"),
    ]
}
