//! One routing key for each request, or none (T02; RFC 9112, section 3.2).

use super::case::{Case, HOST, case, expect, get};

/// The request's line and these fields.
fn with(fields: &str) -> String {
    format!("GET /a HTTP/1.1\r\n{fields}\r\n")
}

/// Asks for the tunnel, and the local server sees the field as it was written.
fn served(name: &'static str, host: &'static str, seen: &'static [&'static str]) -> Case {
    case(name, "RFC 9110, 4.2.3 and 7.2")
        .send(with(&format!("Host: {host}\r\n")))
        .status(200)
        .origin_field("host", seen)
        .open()
}

fn refused(name: &'static str, fields: &str) -> Case {
    case(name, "RFC 9112, 3.2: no Host, several or an invalid one is answered 400")
        .send(with(fields))
        .status(400)
        .origin_untouched()
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        served("hosts/plain", HOST, &[HOST]),
        served("hosts/port", "demo.tunnels.test:8080", &["demo.tunnels.test:8080"]),
        served("hosts/empty-port", "demo.tunnels.test:", &["demo.tunnels.test:"]),
        served("hosts/upper-case", "DEMO.Tunnels.TEST", &["DEMO.Tunnels.TEST"]),
        served("hosts/trailing-dot", "demo.tunnels.test.", &["demo.tunnels.test."]),
        served("hosts/spaces-around", "  demo.tunnels.test \t", &[HOST])
            .nginx("takes a tab for a part of the name", expect().status(400).origin_untouched()),
        refused("hosts/none", ""),
        refused("hosts/two", "Host: demo.tunnels.test\r\nHost: other.tunnels.test\r\n"),
        refused("hosts/twice-the-same", "Host: demo.tunnels.test\r\nHost: demo.tunnels.test\r\n"),
        refused(
            "hosts/twice-in-other-cases",
            "Host: demo.tunnels.test\r\nhOST: demo.tunnels.test\r\n",
        ),
        refused("hosts/empty", "Host:\r\n"),
        refused("hosts/list", "Host: demo.tunnels.test, other.tunnels.test\r\n"),
        refused("hosts/user", "Host: user@demo.tunnels.test\r\n")
            .nginx("takes it for an unknown name", expect().status(404)),
        refused("hosts/path", "Host: demo.tunnels.test/other\r\n"),
        refused("hosts/bad-port", "Host: demo.tunnels.test:x\r\n")
            .nginx_differs("does not look at the port"),
        refused("hosts/two-ports", "Host: demo.tunnels.test:80:80\r\n")
            .nginx_differs("does not look at the port"),
        refused("hosts/port-too-high", "Host: demo.tunnels.test:65536\r\n")
            .nginx_differs("does not look at the port"),
        refused("hosts/space-inside", "Host: demo.tunnels.test other\r\n"),
        refused("hosts/obs-text", "Host: d\u{e9}mo.tunnels.test\r\n")
            .nginx("takes it for an unknown name", expect().status(404)),
        case("hosts/unknown", "RFC 9110, 15.5.5")
            .send("GET /a HTTP/1.1\r\nHost: nobody.tunnels.test\r\n\r\n")
            .status(404)
            .origin_untouched()
            .open(),
        case("hosts/deeper", "tunnels are one label below the domain")
            .send("GET /a HTTP/1.1\r\nHost: a.demo.tunnels.test\r\n\r\n")
            .status(404)
            .origin_untouched(),
        case("hosts/underscore-host", "T02: no second spelling of Host")
            .send(with("Host: demo.tunnels.test\r\nHost_: other.tunnels.test\r\n"))
            .status(200)
            .origin_field("host", &[HOST]),
        case("hosts/space-before-colon", "RFC 9112, 5.1")
            .send(with("Host : demo.tunnels.test\r\n"))
            .refused(&[400]),
        case("hosts/x-host", "T02: fields that only resemble Host route nothing")
            .send(get(
                "/a",
                "X-Host: other.tunnels.test\r\nX-Forwarded-Host: other.tunnels.test\r\n",
            ))
            .status(200)
            .origin_field("host", &[HOST])
            .origin_field("x-forwarded-host", &[HOST]),
        case("hosts/http-1.0-without", "RFC 9112, 3.2: nothing to go by")
            .send("GET /a HTTP/1.0\r\n\r\n")
            .status(400)
            .closed()
            .origin_untouched()
            .nginx("goes to its default", expect().status(404).closed()),
        case(
            "hosts/host-comes-last",
            "RFC 9110, 5.3: the order of different fields has no meaning",
        )
        .send("GET /a HTTP/1.1\r\nX-A: 1\r\nAccept: */*\r\nHost: demo.tunnels.test\r\n\r\n")
        .status(200)
        .origin_field("x-a", &["1"]),
    ]
}
