//! What a connection of HTTP/2 bears and what ends it: frames that make no sense, streams used the
//! wrong way, windows, and floods (T04; RFC 9113, sections 4 to 6 and 10.5).

use super::{
    case::{Case, OK, at_head, h2_case, whole},
    frames::{
        ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM,
        ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY, HEADER_TABLE_SIZE,
        HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, NO_ERROR, PADDED,
        PING, PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, REFUSED_STREAM, RST_STREAM,
        SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, block, data, frame, get, headers, post, request,
        rst, settings, window,
    },
};

/// Bytes behind the opening that end the connection.
fn ends(
    name: &'static str,
    rule: &'static str,
    bytes: impl AsRef<[u8]>,
    codes: &'static [u32],
) -> Case {
    h2_case(name, rule).send(bytes).goaway(codes)
}

/// Something odd that harms nobody.
fn harmless(name: &'static str, rule: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    h2_case(name, rule).send(bytes).open()
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = openings();
    all.extend(frames());
    all.extend(streams());
    all.extend(windows());
    all.extend(floods());
    all
}

fn openings() -> Vec<Case> {
    let rule = "RFC 9113, 3.4";
    vec![
        h2_case("h2/opened-in-pieces", rule)
            .by_hand()
            .send(&PREFACE[..5])
            .fence_elsewhere()
            .send(&PREFACE[5..20])
            .fence_elsewhere()
            .send(&PREFACE[20..])
            .send(settings(&[]))
            .send(get(1, "/a", &[]))
            .ends(1)
            .stream(1, 200)
            .open(),
        h2_case(
            "h2/request-with-the-preface",
            "RFC 9113, 3.4: a client need not wait for settings",
        )
        .by_hand()
        .send([PREFACE, &settings(&[]), &get(1, "/a", &[])].concat())
        .ends(1)
        .stream(1, 200)
        .open(),
        h2_case("h2/settings-are-acknowledged", "RFC 9113, 6.5.3")
            .by_hand()
            .send([PREFACE, &settings(&[(MAX_CONCURRENT_STREAMS, 5)])].concat())
            .until_said("the settings are acknowledged", |view| view.acknowledged == 1)
            .open(),
        h2_case("h2/bad-preface", rule)
            .by_hand()
            .send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
            .unfenced()
            .ended()
            .origin_untouched(),
        h2_case("h2/http-1-behind-the-preface", rule)
            .by_hand()
            .send([PREFACE, super::case::get("/a", "").as_bytes()].concat())
            .unfenced()
            .ended()
            .origin_untouched()
            .nginx_differs("takes it for the start of a large frame"),
    ]
}

fn frames() -> Vec<Case> {
    let size = "RFC 9113, 4.2: a frame of the wrong size";
    let odd = "RFC 9113, 5.5: what is unknown is ignored";
    vec![
        ends("h2/ping-too-short", size, frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
        ends("h2/ping-on-a-stream", "RFC 9113, 6.7", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ends(
            "h2/settings-of-five-bytes",
            size,
            frame(SETTINGS, 0, 0, &[0; 5]),
            &[FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/settings-on-a-stream",
            "RFC 9113, 6.5",
            frame(SETTINGS, 0, 1, &[]),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/settings-ack-with-values",
            size,
            frame(SETTINGS, ACK, 0, &[0; 6]),
            &[FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/settings-push",
            "RFC 9113, 6.5.2",
            settings(&[(ENABLE_PUSH, 2)]),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/settings-window",
            "RFC 9113, 6.5.2",
            settings(&[(INITIAL_WINDOW_SIZE, 0x8000_0000)]),
            &[FLOW_CONTROL_ERROR],
        ),
        ends(
            "h2/settings-frame-size",
            "RFC 9113, 6.5.2",
            settings(&[(MAX_FRAME_SIZE, 16_383)]),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/settings-frame-size-too-large",
            "RFC 9113, 6.5.2",
            settings(&[(MAX_FRAME_SIZE, 0x0100_0000)]),
            &[PROTOCOL_ERROR],
        ),
        harmless(
            "h2/settings-unknown",
            "RFC 9113, 6.5.2: unknown settings are ignored",
            settings(&[(0xfafa, 7)]),
        ),
        harmless("h2/settings-table-size", "RFC 7541, 4.2", settings(&[(HEADER_TABLE_SIZE, 0)])),
        ends(
            "h2/window-update-too-short",
            size,
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            &[FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/reset-too-short",
            size,
            [get(1, "/a", &[]), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            &[FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/goaway-on-a-stream",
            "RFC 9113, 6.8",
            frame(GOAWAY, 0, 1, &[0; 8]),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/headers-on-stream-0",
            "RFC 9113, 6.2",
            headers(0, &request("GET", "/a", &[]), true),
            &[PROTOCOL_ERROR],
        ),
        ends("h2/data-on-stream-0", "RFC 9113, 6.1", data(0, "body", true), &[PROTOCOL_ERROR]),
        ends(
            "h2/push-promise",
            "RFC 9113, 8.4: a client can't push",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            &[PROTOCOL_ERROR],
        ),
        h2_case("h2/frame-too-large", size)
            .send([post(1, &[]), frame(DATA, 0, 1, &vec![b'x'; 1 << 20])].concat())
            .ends(1)
            .unfenced()
            .reset_or_goaway(1, &[FRAME_SIZE_ERROR, FLOW_CONTROL_ERROR]),
        ends(
            "h2/padding-too-long",
            "RFC 9113, 6.1",
            [post(1, &[]), frame(DATA, PADDED, 1, &[9, 0, 0])].concat(),
            &[PROTOCOL_ERROR, FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/headers-padding-too-long",
            "RFC 9113, 6.2",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0, 0]),
            &[PROTOCOL_ERROR, FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/data-inside-a-block",
            "RFC 9113, 6.10",
            [frame(HEADERS, 0, 1, &block(&request("GET", "/a", &[]))), data(1, "x", true)].concat(),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/ping-inside-a-block",
            "RFC 9113, 6.10",
            [
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", "/a", &[]))),
                frame(PING, 0, 0, &[0; 8]),
            ]
            .concat(),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/continuation-of-another",
            "RFC 9113, 6.10",
            [
                frame(HEADERS, END_STREAM, 1, &block(&request("GET", "/a", &[]))),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/continuation-alone",
            "RFC 9113, 6.10",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            &[PROTOCOL_ERROR],
        ),
        ends(
            "h2/continuation-behind-the-end",
            "RFC 9113, 6.10",
            [get(1, "/a", &[]), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        ),
        ends(
            "h2/bad-index",
            "RFC 7541, 2.3.3",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x80, 0x01]),
            &[COMPRESSION_ERROR],
        ),
        ends(
            "h2/index-0",
            "RFC 7541, 6.1",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]),
            &[COMPRESSION_ERROR],
        ),
        ends(
            "h2/cut-block",
            "RFC 7541, 5.2",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0, 10, b'x']),
            &[COMPRESSION_ERROR, FRAME_SIZE_ERROR],
        ),
        ends(
            "h2/bad-huffman",
            "RFC 7541, 5.2",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x'],
            ),
            &[COMPRESSION_ERROR],
        ),
        ends(
            "h2/table-size-too-large",
            "RFC 7541, 6.3",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe1, 0xff, 0x03]),
            &[COMPRESSION_ERROR],
        ),
        ends(
            "h2/endless-integer",
            "RFC 7541, 5.1",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 40]),
            &[COMPRESSION_ERROR],
        ),
        harmless("h2/unknown-frame", odd, frame(0xfa, 0xff, 0, b"whatever")),
        harmless("h2/unknown-flags", odd, frame(PING, 0xf0, 0, &[7; 8])),
        harmless(
            "h2/priority",
            "RFC 9113, 5.3.2: a hint of old",
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]),
        ),
        harmless("h2/reserved-bit", "RFC 9113, 4.1: ignored", frame(PING, 0, 0x8000_0000, &[7; 8])),
        h2_case("h2/ping", "RFC 9113, 6.7")
            .send(frame(PING, 0, 0, b"12345678"))
            .until_said("the ping is answered", |view| view.pongs == [b"12345678".to_vec()])
            .open(),
        harmless("h2/pong-nobody-asked-for", "RFC 9113, 6.7", frame(PING, ACK, 0, b"12345678")),
    ]
}

fn streams() -> Vec<Case> {
    vec![
        ends("h2/even-stream", "RFC 9113, 5.1.1", get(2, "/a", &[]), &[PROTOCOL_ERROR]),
        ends(
            "h2/stream-going-back",
            "RFC 9113, 5.1.1",
            [get(5, "/a", &[]), get(3, "/b", &[])].concat(),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        ),
        ends(
            "h2/data-on-idle",
            "RFC 9113, 5.1",
            data(1, "body", true),
            &[PROTOCOL_ERROR, STREAM_CLOSED],
        )
        .nginx_differs("ignores it"),
        ends("h2/reset-on-idle", "RFC 9113, 5.1", rst(1, CANCEL), &[PROTOCOL_ERROR])
            .nginx_differs("ignores it"),
        ends("h2/window-on-idle", "RFC 9113, 5.1", window(1, 1), &[PROTOCOL_ERROR])
            .nginx_differs("ignores it"),
        h2_case("h2/data-behind-the-end", "RFC 9113, 5.1: half-closed (remote)")
            .send([get(1, "/a", &[]), data(1, "body", true)].concat())
            .reply(at_head().gate().say(OK))
            .unfenced()
            .ends(1)
            .reset_or_goaway(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
        h2_case("h2/headers-behind-the-end", "RFC 9113, 5.1: half-closed (remote)")
            .send([get(1, "/a", &[]), get(1, "/b", &[])].concat())
            .reply(at_head().gate().say(OK))
            .unfenced()
            .ends(1)
            .reset_or_goaway(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
        harmless(
            "h2/window-behind-the-end",
            "RFC 9113, 5.1: may come late",
            [get(1, "/a", &[]), window(1, 5)].concat(),
        )
        .ends(1),
        harmless("h2/reset-behind-the-end", "RFC 9113, 5.1: may come late", get(1, "/a", &[]))
            .ends(1)
            .send(rst(1, CANCEL)),
        harmless(
            "h2/data-behind-a-reset",
            "RFC 9113, 5.1: of a stream that was reset, frames are ignored",
            post(1, &[]),
        )
        .send([rst(1, CANCEL), data(1, "late", true)].concat())
        .may_break(),
        h2_case(
            "h2/more-streams-than-allowed",
            "RFC 9113, 5.1.2: refused, and the others are served",
        )
        .send((0..2_000).flat_map(|n| post(2 * n + 1, &[])).collect::<Vec<u8>>())
        .unfenced()
        .until_said("streams are refused, or the connection ends", |view| {
            view.goaway.is_some()
                || view.streams.values().any(|stream| stream.reset == Some(REFUSED_STREAM))
        })
        .origin_sees_at_most(1_024),
        h2_case("h2/limit-of-streams-is-said", "RFC 9113, 6.5.2")
            .send(get(1, "/a", &[]))
            .ends(1)
            .stream(1, 200)
            .said("the server limits streams", |view| {
                view.setting(MAX_CONCURRENT_STREAMS)
                    .is_some_and(|limit| (100..=1_024).contains(&limit))
            }),
        h2_case("h2/goaway-of-the-client", "RFC 9113, 6.8: what is open is finished")
            .send([get(1, "/a", &[]), frame(GOAWAY, 0, 0, &[0; 8])].concat())
            .unfenced()
            .ends(1)
            .stream(1, 200),
        h2_case(
            "h2/self-dependency",
            "RFC 9113, 5.3.2: a hint of old; ignored, or an error as it was",
        )
        .send(frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 15]))
        .alive_or_goaway(&[PROTOCOL_ERROR]),
    ]
}

fn windows() -> Vec<Case> {
    let narrow = [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 3)])].concat();
    vec![
        h2_case("h2/window-of-a-stream", "RFC 9113, 5.2: not a byte more than is allowed")
            .by_hand()
            .send([&narrow[..], &get(1, "/a", &[])].concat())
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"))
            .until_said("as much comes as may", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"abc")
            })
            .fence_elsewhere()
            .client_lacks_yet("def")
            .send(window(1, 100))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "abcdef")
            .send(settings(&[(INITIAL_WINDOW_SIZE, 100)]))
            .open(),
        h2_case("h2/window-grows-by-settings", "RFC 9113, 6.9.2")
            .by_hand()
            .send([&narrow[..], &get(1, "/a", &[])].concat())
            .reply(whole("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"))
            .until_said("as much comes as may", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data == b"abc")
            })
            .send(settings(&[(INITIAL_WINDOW_SIZE, 100)]))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "abcdef")
            .open(),
        h2_case("h2/window-of-a-connection", "RFC 9113, 5.2.1: 65,535 bytes to begin with")
            .by_hand()
            .send(
                [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]), &get(1, "/a", &[])]
                    .concat(),
            )
            .reply(whole(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{}",
                "x".repeat(100_000)
            )))
            .until_said("as much comes as may", |view| {
                view.streams.get(&1).is_some_and(|stream| stream.data.len() == 65_535)
            })
            .send(window(0, 1_000_000))
            .ends(1)
            .stream(1, 200)
            .stream_body(1, "x".repeat(100_000))
            .open(),
        h2_case("h2/windows-for-a-body", "RFC 9113, 5.2: a body that is read is not held up")
            .send(post(1, &[("content-length", "60000")]))
            .send((0..60).flat_map(|n| data(1, "x".repeat(1_000), n == 59)).collect::<Vec<u8>>())
            .ends(1)
            .stream(1, 200)
            .origin_body("x".repeat(60_000))
            .open(),
        ends(
            "h2/window-overflow",
            "RFC 9113, 6.9.1",
            window(0, 0x7fff_ffff),
            &[FLOW_CONTROL_ERROR],
        ),
        h2_case("h2/window-overflow-of-a-stream", "RFC 9113, 6.9.1")
            .send([post(1, &[]), window(1, 0x7fff_ffff)].concat())
            .ends(1)
            .reset_or_goaway(1, &[FLOW_CONTROL_ERROR]),
        ends("h2/window-of-nothing", "RFC 9113, 6.9", window(0, 0), &[PROTOCOL_ERROR]),
        h2_case("h2/window-of-nothing-of-a-stream", "RFC 9113, 6.9")
            .send([post(1, &[]), window(1, 0)].concat())
            .ends(1)
            .reset_or_goaway(1, &[PROTOCOL_ERROR]),
        h2_case("h2/more-than-the-window", "RFC 9113, 6.9.1: a body that waits for no window")
            .send(post(1, &[]))
            .reply(at_head().wait())
            .send((0..200).flat_map(|_| data(1, "x".repeat(16_000), false)).collect::<Vec<u8>>())
            .alive_or_goaway(&[FLOW_CONTROL_ERROR]),
    ]
}

fn floods() -> Vec<Case> {
    let rule = "T04; RFC 9113, 10.5";
    let start = frame(HEADERS, END_STREAM, 1, &block(&request("GET", "/a", &[])));
    let calm: &[u32] = &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR, NO_ERROR];
    let long = |bytes: usize| {
        let value = "v".repeat(8_000);
        let mut frames = start.clone();
        for n in 0..bytes / 8_000 {
            let name = format!("x-{n}");
            frames.extend(frame(CONTINUATION, 0, 1, &block(&[(&name, &value)])));
        }
        frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        frames
    };
    vec![
        h2_case("h2/rapid-reset", "T04: CVE-2023-44487")
            .send(
                (0..5_000)
                    .flat_map(|n| [get(2 * n + 1, "/a", &[]), rst(2 * n + 1, CANCEL)].concat())
                    .collect::<Vec<u8>>(),
            )
            .unfenced()
            .until_said("the server has enough", |view| view.goaway.is_some())
            .goaway(&[ENHANCE_YOUR_CALM])
            .origin_sees_at_most(1_200)
            .nginx_differs("ends it by its number of requests, without this code"),
        h2_case(
            "h2/requests-taken-back-at-once",
            "RFC 9113, 5.1: what a client may do who gives up, as gRPC ones do with many calls",
        )
        .send(
            (0..80)
                .flat_map(|n| [get(2 * n + 1, "/a", &[]), rst(2 * n + 1, CANCEL)].concat())
                .chain(get(161, "/b", &[]))
                .collect::<Vec<u8>>(),
        )
        .stream(161, 200),
        h2_case(
            "h2/reset-by-a-fault",
            "T04: CVE-2025-8671, streams that the server itself has to reset",
        )
        .send(
            (0..5_000)
                .flat_map(|n| [post(2 * n + 1, &[]), window(2 * n + 1, 0)].concat())
                .collect::<Vec<u8>>(),
        )
        .unfenced()
        .until_said("the server has enough", |view| view.goaway.is_some())
        .goaway(&[ENHANCE_YOUR_CALM, PROTOCOL_ERROR])
        .origin_sees_at_most(1_200),
        h2_case("h2/continuation-flood", "T04: CVE-2024-27316")
            .send(
                [start.clone(), frame(CONTINUATION, 0, 1, &block(&[("x-a", "1")])).repeat(100_000)]
                    .concat(),
            )
            .ends(1)
            .unfenced()
            .stream_refused_or_goaway(1)
            .origin_untouched(),
        h2_case("h2/empty-continuation-flood", "T04: CVE-2024-27316")
            .send([start.clone(), frame(CONTINUATION, 0, 1, &[]).repeat(100_000)].concat())
            .unfenced()
            .goaway(calm)
            .origin_untouched()
            .nginx_differs("takes any number of empty ones"),
        h2_case("h2/long-list-of-fields", "RFC 9113, 10.5.1: 431, or an error")
            .send(long(200_000))
            .ends(1)
            .stream_refused_or_goaway(1)
            .origin_untouched()
            .nginx_differs("allows four buffers of 64 KiB"),
        h2_case("h2/table-bomb", "T04; RFC 9113, 10.5.1: small references to a large field")
            .send({
                // One field of 4,000 bytes goes to the table, and is then named a thousand times.
                let mut fields = block(&request("GET", "/a", &[]));
                fields.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
                fields.extend([b'v'; 4_000]);
                fields.extend([0xbe; 1_000]);
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields)
            })
            .ends(1)
            .stream_refused_or_goaway(1)
            .origin_untouched(),
        h2_case("h2/settings-flood", "T04: CVE-2019-9515")
            .send(settings(&[(0xfafa, 1)]).repeat(20_000))
            .alive_or_goaway(&[ENHANCE_YOUR_CALM]),
        h2_case("h2/ping-flood", "T04: CVE-2019-9512")
            .send(frame(PING, 0, 0, &[7; 8]).repeat(20_000))
            .alive_or_goaway(&[ENHANCE_YOUR_CALM]),
        h2_case("h2/empty-data-flood", "T04: CVE-2019-9518")
            .send([post(1, &[]), data(1, "", false).repeat(50_000), data(1, "", true)].concat())
            .alive_or_goaway(&[ENHANCE_YOUR_CALM, PROTOCOL_ERROR]),
        h2_case("h2/priority-flood", rule)
            .send(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]).repeat(50_000))
            .alive_or_goaway(&[ENHANCE_YOUR_CALM]),
        h2_case("h2/window-flood", rule)
            .send([post(1, &[]), window(1, 1).repeat(50_000)].concat())
            .alive_or_goaway(&[ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR]),
        h2_case("h2/unknown-frame-flood", rule)
            .send(frame(0xfa, 0, 0, b"x").repeat(50_000))
            .alive_or_goaway(&[ENHANCE_YOUR_CALM]),
        h2_case(
            "h2/unread-answers",
            "T04: CVE-2019-9517, answers that nobody's window lets through",
        )
        .by_hand()
        .send([PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0)])].concat())
        .send((0..100).flat_map(|n| get(2 * n + 1, "/a", &[])).collect::<Vec<u8>>())
        .until_said("all heads come", |view| {
            view.streams.values().filter(|stream| stream.status() == 200).count() == 100
        })
        .fence_elsewhere()
        .unfenced()
        .origin_requests(100),
        many_in_turn(),
    ]
}

fn many_in_turn() -> Case {
    let mut case =
        h2_case("h2/many-one-after-the-other", "RFC 9113, 5.1.1: a connection bears many requests");
    for n in 0..200 {
        case = case.send(get(2 * n + 1, "/a", &[])).ends(2 * n + 1).stream(2 * n + 1, 200);
    }
    case.origin_requests(200).open()
}
