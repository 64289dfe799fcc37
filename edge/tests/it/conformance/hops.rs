//! What belongs to one connection ends there, and who came by which way is written by the edge alone
//! (RFC 9110, section 7.6; T03).

use super::case::{Case, case, expect, get, post, whole};

/// The local server gets no such field.
fn gone(name: &'static str, fields: &str, field: &'static str) -> Case {
    case(name, "RFC 9110, 7.6.1: fields of one connection are not forwarded")
        .send(get("/a", fields))
        .status(200)
        .origin_field(field, &[])
        .open()
}

/// The local server gets the field all the same.
fn stays(
    name: &'static str,
    fields: &str,
    field: &'static str,
    values: &'static [&'static str],
) -> Case {
    case(name, "T03: Connection can't take away what a message needs")
        .send(get("/a", fields))
        .status(200)
        .origin_field(field, values)
}

/// The client gets no such field.
fn gone_from_answers(name: &'static str, fields: &str, field: &'static str) -> Case {
    case(name, "RFC 9110, 7.6.1: fields of one connection are not forwarded")
        .send(get("/a", ""))
        .reply(whole(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok")))
        .status(200)
        .body("ok")
        .client_field(field, &[])
        .open()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = requests();
    all.extend(answers());
    all.extend(via());
    all.extend(identity());
    all
}

fn requests() -> Vec<Case> {
    let named = "does not look at what Connection names";
    vec![
        gone("hops/named-by-connection", "Connection: X-Mine\r\nX-Mine: 1\r\n", "x-mine")
            .nginx_differs(named),
        gone(
            "hops/named-in-a-list",
            "Connection: close-not, x-MINE ,X-B\r\nX-Mine: 1\r\n",
            "x-mine",
        )
        .nginx_differs(named),
        gone(
            "hops/named-in-a-second-connection",
            "Connection: keep-alive\r\nConnection: X-Mine\r\nX-Mine: 1\r\n",
            "x-mine",
        )
        .nginx_differs(named),
        gone("hops/connection-itself", "Connection: keep-alive, X-None\r\n", "x-none"),
        gone("hops/keep-alive", "Keep-Alive: timeout=5\r\n", "keep-alive"),
        gone(
            "hops/keep-alive-named",
            "Connection: Keep-Alive\r\nKeep-Alive: 300\r\n",
            "keep-alive",
        ),
        gone("hops/proxy-connection", "Proxy-Connection: keep-alive\r\n", "proxy-connection"),
        gone(
            "hops/proxy-authorization",
            "Proxy-Authorization: Basic eDp5\r\n",
            "proxy-authorization",
        ),
        gone("hops/te", "TE: gzip\r\nConnection: TE\r\n", "te"),
        gone("hops/te-not-named", "TE: deflate;q=0.5\r\n", "te"),
        case(
            "hops/te-trailers",
            "RFC 9110, 10.1.4: trailers are what we can take, and nothing else",
        )
        .send(get("/a", "TE: trailers, deflate;q=0.5\r\nConnection: TE\r\n"))
        .status(200)
        .origin_lacks("deflate")
        .origin_te_is_trailers_or_none(),
        case("hops/trailer-passes", "RFC 9110, 6.6.2: Trailer goes from end to end")
            .send(post(
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n",
                "1\r\nb\r\n0\r\nX-Sum: 1\r\n\r\n",
            ))
            .status(200)
            .origin_field("trailer", &["X-Sum"]),
        gone("hops/upgrade-not-asked-for", "Upgrade: raw\r\n", "upgrade")
            .nginx_differs("goes by the Upgrade field alone, as it is told to"),
        stays(
            "hops/content-length-stays",
            "Connection: Content-Length\r\nContent-Length: 0\r\n",
            "content-length",
            &["0"],
        ),
        stays("hops/host-stays", "Connection: Host\r\n", "host", &["demo.tunnels.test"]),
        stays("hops/cookie-stays", "Connection: Cookie\r\nCookie: a=1\r\n", "cookie", &["a=1"]),
        stays(
            "hops/authorization-stays",
            "Connection: authorization\r\nAuthorization: Basic eDp5\r\n",
            "authorization",
            &["Basic eDp5"],
        ),
        stays(
            "hops/forwarded-host-stays",
            "Connection: X-Forwarded-Host, X-Forwarded-For, X-Forwarded-Proto\r\n",
            "x-forwarded-host",
            &["demo.tunnels.test"],
        ),
        stays(
            "hops/forwarded-proto-stays",
            "Connection: x-forwarded-proto\r\nX-Forwarded-Proto: https\r\n",
            "x-forwarded-proto",
            &["http"],
        ),
        case("hops/close-is-not-forwarded", "RFC 9112, 9.6: close is about one connection")
            .send(get("/a", "Connection: close\r\n"))
            .status(200)
            .closed()
            .origin_lacks("close"),
    ]
}

fn answers() -> Vec<Case> {
    vec![
        gone_from_answers("hops/answer-keep-alive", "Keep-Alive: timeout=5\r\n", "keep-alive"),
        gone_from_answers(
            "hops/answer-proxy-connection",
            "Proxy-Connection: close\r\n",
            "proxy-connection",
        ),
        gone_from_answers(
            "hops/answer-proxy-authenticate",
            "Proxy-Authenticate: Basic\r\n",
            "proxy-authenticate",
        ),
        gone_from_answers("hops/answer-named", "Connection: X-Mine\r\nX-Mine: 1\r\n", "x-mine")
            .nginx_differs("does not look at what Connection names"),
        gone_from_answers("hops/answer-upgrade", "Upgrade: h2c\r\n", "upgrade")
            .nginx_differs("leaves Upgrade where it is"),
        case("hops/answer-close", "RFC 9112, 9.6: the local server's close is not the visitor's")
            .send(get("/a", ""))
            .reply(
                whole("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                    .close(),
            )
            .status(200)
            .body("ok")
            .open(),
        case(
            "hops/answer-content-length-stays",
            "T09: Connection can't take away what an answer needs",
        )
        .send(get("/a", ""))
        .reply(whole(
            "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok",
        ))
        .status(200)
        .body("ok")
        .open(),
        gone_from_answers(
            "hops/answer-error-of-ours",
            "X-Uniroute-Error: UR-6666\r\n",
            "x-uniroute-error",
        ),
        gone_from_answers(
            "hops/answer-id-of-ours",
            "X-Uniroute-Request-Id: forged\r\n",
            "x-uniroute-request-id",
        ),
        gone_from_answers(
            "hops/answer-other-of-ours",
            "X-Uniroute-Other: 1\r\n",
            "x-uniroute-other",
        )
        .nginx_differs("it has no wildcard for fields"),
    ]
}

fn via() -> Vec<Case> {
    let rule = "RFC 9110, 7.6.3: a gateway adds itself behind those before it";
    vec![
        case("hops/via-request", rule)
            .send(get("/a", ""))
            .status(200)
            .origin_list("via", &["1.1 uniroute"]),
        case("hops/via-appended", rule)
            .send(get("/a", "Via: 1.0 fred, 1.1 p.example\r\n"))
            .status(200)
            .origin_list("via", &["1.0 fred", "1.1 p.example", "1.1 uniroute"]),
        case("hops/via-appended-to-two", rule)
            .send(get("/a", "Via: 1.0 fred\r\nVia: 1.1 p.example\r\n"))
            .status(200)
            .origin_list("via", &["1.0 fred", "1.1 p.example", "1.1 uniroute"])
            .nginx_differs("its variable has the first line only"),
        case("hops/via-of-http-1.0", "RFC 9110, 7.6.3: the version that was received")
            .send("GET /a HTTP/1.0\r\nHost: demo.tunnels.test\r\n\r\n")
            .status(200)
            .origin_list("via", &["1.0 uniroute"])
            .nginx_differs("is told to say 1.1"),
        case("hops/via-answer", rule)
            .send(get("/a", ""))
            .status(200)
            .client_list("via", &["1.1 uniroute"]),
        case("hops/via-answer-appended", rule)
            .send(get("/a", ""))
            .reply(whole("HTTP/1.1 200 OK\r\nVia: 1.1 inner\r\nContent-Length: 2\r\n\r\nok"))
            .status(200)
            .client_list("via", &["1.1 inner", "1.1 uniroute"]),
        case("hops/via-named-by-connection", "T03: Connection can't take Via away")
            .send(get("/a", "Connection: Via\r\nVia: 1.1 fred\r\n"))
            .status(200)
            .origin_list("via", &["1.1 fred", "1.1 uniroute"]),
    ]
}

fn identity() -> Vec<Case> {
    let rule = "T03: nobody can forge who they are";
    let wildcard = "it has no wildcard for fields";
    vec![
        case("hops/forwarded-for", rule)
            .send(get("/a", "X-Forwarded-For: 6.6.6.6\r\n"))
            .status(200)
            .origin_field_is_ours("x-forwarded-for", "6.6.6.6"),
        case("hops/forwarded-for-twice", rule)
            .send(get("/a", "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-FOR: 7.7.7.7\r\n"))
            .status(200)
            .origin_field_is_ours("x-forwarded-for", "6.6.6.6")
            .origin_lacks("7.7.7.7"),
        case("hops/forwarded-for-underscores", rule)
            .send(get("/a", "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\n"))
            .status(200)
            .origin_lacks("6.6.6.6"),
        case("hops/forwarded-proto", rule)
            .send(get("/a", "X-Forwarded-Proto: https\r\nX_Forwarded_Proto: https\r\n"))
            .status(200)
            .origin_field("x-forwarded-proto", &["http"])
            .origin_lacks("https"),
        case("hops/forwarded-host", rule)
            .send(get("/a", "X-Forwarded-Host: evil.test\r\nX_Forwarded_Host: evil.test\r\n"))
            .status(200)
            .origin_field("x-forwarded-host", &["demo.tunnels.test"])
            .origin_lacks("evil"),
        case("hops/forwarded", rule)
            .send(get("/a", "Forwarded: for=6.6.6.6;host=evil.test\r\nforwarded: for=7.7.7.7\r\n"))
            .status(200)
            .origin_lacks("6.6.6.6")
            .origin_lacks("7.7.7.7")
            .origin_lacks("evil"),
        case("hops/real-ip", rule)
            .send(get("/a", "X-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\n"))
            .status(200)
            .origin_lacks("6.6.6.6"),
        case("hops/request-id-of-ours", rule)
            .send(get("/a", "X-Uniroute-Request-Id: forged\r\nX_Uniroute_Request_Id: forged\r\n"))
            .status(200)
            .origin_lacks("forged"),
        case("hops/other-of-ours", rule)
            .send(get("/a", "X-Uniroute-Hop: forged\r\nX-UNIROUTE-anything: forged\r\n"))
            .status(200)
            .origin_lacks("forged")
            .nginx_differs(wildcard),
        case("hops/of-ours-with-underscores", rule)
            .send(get("/a", "X_Uniroute_Hop: forged\r\nX-Uniroute_Hop: forged\r\n"))
            .status(200)
            .origin_lacks("forged"),
        case("hops/forwarded-for-named-by-connection", rule)
            .send(get("/a", "Connection: close, X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n"))
            .status(200)
            .closed()
            .origin_field_is_ours("x-forwarded-for", "6.6.6.6"),
        case("hops/own-errors-tell-their-code", "a failure of ours has a code and an id")
            .send("GET /a HTTP/1.1\r\nHost: nobody.tunnels.test\r\n\r\n")
            .status(404)
            .client_field("x-uniroute-error", &["UR-1001"])
            .nginx("has no codes", expect().status(404)),
    ]
}
