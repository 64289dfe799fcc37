//! Switching protocols: nothing passes before the local server agreed, and everything after
//! (RFC 9110, section 7.8; T01).

use super::case::{Case, OK, at_head, case, get, whole};

const ASKED: &str = "Connection: Upgrade\r\nUpgrade: raw\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\nX-Said: yes\r\n\r\n";
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: demo.tunnels.test\r\n\r\n";

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("upgrades/bytes-flow", "RFC 9110, 7.8")
            .send(get("/up", ASKED))
            .reply(at_head().say(SWITCHED).until("ping").say("pong").wait())
            .gets(": yes\r\n")
            .send("ping")
            .gets("pong")
            .switched()
            .origin_has("ping")
            .origin_field("upgrade", &["raw"]),
        case("upgrades/early-bytes-wait", "T01: not a byte goes on before the switch, and all do after it")
            .send(get("/up", ASKED) + "early")
            .reply(at_head().gate().say(SWITCHED).until("early").say("late").wait())
            .origin_gets("/up")
            .origin_lacks_yet("early")
            .open_gate()
            .gets("late")
            .switched()
            .origin_has("early"),
        case("upgrades/bytes-between-wait", "T01: not a byte goes on before the switch")
            .send(get("/up", ASKED))
            .reply(at_head().gate().say(SWITCHED).until("early").say("late").wait())
            .origin_gets("/up")
            .send(HIDDEN)
            .send("early")
            .origin_lacks_yet("hidden")
            .open_gate()
            .gets("late")
            .switched()
            .origin_has(format!("{HIDDEN}early")),
        case("upgrades/early-bytes-of-the-origin", "RFC 9110, 7.8: the new protocol begins at once")
            .send(get("/up", ASKED))
            .reply(at_head().say(format!("{SWITCHED}first words")).wait())
            .gets("first words")
            .switched(),
        case("upgrades/origin-closes", "an end at one side is an end at the other")
            .send(get("/up", ASKED))
            .reply(at_head().say(SWITCHED).say("bye").close())
            .gets("bye")
            .switched()
            .unfenced()
            .closed(),
        case("upgrades/client-leaves", "an end at one side is an end at the other")
            .send(get("/up", ASKED))
            .reply(at_head().say(SWITCHED).until("bye").wait())
            .gets(": yes\r\n")
            .send("bye")
            .origin_gets("bye")
            .leave()
            .origin_loses("bye")
            .no_answer(),
        case("upgrades/half-close", "one side may be done before the other")
            .send(get("/up", ASKED))
            .reply(at_head().say(SWITCHED).until("all").say("got all").close())
            .gets(": yes\r\n")
            .send("all")
            .shut()
            .gets("got all")
            .switched()
            .unfenced()
            .closed().nginx_differs("takes a half-closed connection for a closed one"),
        case("upgrades/declined-with-200", "RFC 9110, 7.8: a server may ignore it")
            .send(get("/up", ASKED))
            .status(200)
            .body("ok")
            .client_field("upgrade", &[])
            .open(),
        case("upgrades/declined-and-more", "RFC 9110, 7.8: what follows is the next request")
            .send(get("/up", ASKED) + HIDDEN)
            .statuses(&[200, 200])
            .origin_targets(&["/up", "/hidden"]),
        case("upgrades/declined-with-426", "RFC 9110, 15.5.22")
            .send(get("/up", ASKED))
            .reply(whole("HTTP/1.1 426 Upgrade Required\r\nUpgrade: raw/2\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno"))
            .status(426)
            .body("no"),
        case("upgrades/declined-late", "RFC 9110, 7.8")
            .send(get("/up", ASKED))
            .reply(at_head().gate().say(OK))
            .origin_gets("/up")
            .fence_elsewhere()
            .open_gate()
            .status(200)
            .body("ok"),
        case("upgrades/websocket", "RFC 6455, 4: the fields of the handshake pass")
            .send(get(
                "/chat",
                "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat\r\n",
            ))
            .reply(
                at_head()
                    .say(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                    )
                    .until(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
                    .say(b"\x81\x05Hello")
                    .wait(),
            )
            .gets("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
            .send(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
            .gets(b"\x81\x05Hello")
            .switched()
            .origin_field("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ=="])
            .origin_field("sec-websocket-version", &["13"])
            .origin_field("sec-websocket-protocol", &["chat"])
            .origin_field("upgrade", &["websocket"]),
        case("upgrades/to-something-else", "RFC 9110, 7.8: a server switches to what was asked for")
            .send(get("/up", ASKED))
            .reply(at_head().say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\npoison").close())
            .unfenced()
            .not_switched_to("other").nginx_differs("goes by the status alone"),
        case("upgrades/two-tokens", "RFC 9110, 7.8: a list is passed on, or nothing is switched")
            .send(get("/up", "Connection: Upgrade\r\nUpgrade: raw, other\r\n"))
            .status_in(&[200, 400])
            .origin_requests_at_most(1),
        case("upgrades/connection-only", "RFC 9110, 7.8: without Upgrade there is nothing to switch to")
            .send(get("/up", "Connection: Upgrade\r\n"))
            .status(200)
            .body("ok")
            .origin_lacks("upgrade")
            .open(),
        case("upgrades/hints-before", "RFC 9110, 15.2: 1xx and then the switch")
            .send(get("/up", ASKED))
            .reply(at_head().say(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{SWITCHED}on")).wait())
            .gets("\r\n\r\non")
            .switched(),
    ]
}
