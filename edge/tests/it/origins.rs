//! T09 and T10: local servers and agents that lie. Whoever asked gets an honest 502 or an answer that
//! visibly breaks, never something short that looks whole and never a header that was smuggled in.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use uniroute_proto::{
    codec::{self, Kind},
    head,
    v1::{self, UpstreamErrorKind, stream_reply::Reply},
};

use crate::harness::{
    TestAgent, TestEdge,
    hand::{Hand, HandRequest, data, reply},
    host,
    upstream::{RawUpstream, TestUpstream},
    wire::Answer,
};

/// One GET through a tunnel to a server that says `bytes`; `None`: the connection ended instead.
async fn answer_to(bytes: impl AsRef<[u8]>) -> Option<Answer> {
    let upstream = RawUpstream::saying(bytes).await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    visitor.try_answer("GET").await
}

#[tokio::test(flavor = "multi_thread")]
async fn t09_answers_that_make_no_sense_are_502() {
    for (what, bytes) in [
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
        ("a list of lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nabc"),
        ("a signed length", "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab"),
        ("no number", "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nab"),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nab"),
        ("CR in a value", "HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 2\r\n\r\nab"),
        ("a space in a name", "HTTP/1.1 200 OK\r\nx y: a\r\ncontent-length: 2\r\n\r\nab"),
        ("a line without a colon", "HTTP/1.1 200 OK\r\nnothing\r\ncontent-length: 2\r\n\r\nab"),
        ("a status of two digits", "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nab"),
        ("HTTP/2", "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nab"),
        ("another protocol", "220 mail.test ESMTP\r\n"),
        (
            "a switch nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\nraw",
        ),
    ] {
        let answer = answer_to(bytes).await.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(answer.status(), 502, "{what}: {answer:?}");
        assert_eq!(answer.code(), Some("UR-3005"), "{what}");
        assert!(answer.whole, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t09_a_head_without_end_is_not_gathered() {
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(200_000));
    answer_to(endless).await.unwrap().assert_failed(502, "UR-3005");
    let long =
        format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(1_000_000));
    answer_to(long).await.unwrap().assert_failed(502, "UR-3005");
}

#[tokio::test(flavor = "multi_thread")]
async fn t09_bodies_that_are_short_break_visibly() {
    for (what, bytes) in [
        ("less than its length", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"),
        ("no last chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("half a chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\nhalf"),
        (
            "a bad chunk size",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n",
        ),
        (
            "a chunk size too large",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nfffffffffffffffff\r\n",
        ),
        (
            "half the trailers",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nx: y\r\n",
        ),
    ] {
        let answer = answer_to(bytes).await;
        assert!(answer.as_ref().is_none_or(|answer| !answer.whole), "{what}: {answer:?}");
    }
}

/// What a server says beyond its answer belongs to no other request.
#[tokio::test(flavor = "multi_thread")]
async fn t09_bytes_after_an_answer_go_nowhere() {
    const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    for first in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let upstream = RawUpstream::start(move |_, mut wire| async move {
            // Both on each connection, for as long as it is kept.
            while wire.request().await.is_some() {
                if wire.try_send(format!("{first}{POISON}")).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let edge = TestEdge::start();
        let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
        let mut visitor = edge.visitor().await;
        for _ in 0..50 {
            visitor.get("demo", "/").await.assert_ok("ok");
        }
    }
}

/// A HEAD, a 204 and a 304 have no body, whatever a server adds.
#[tokio::test(flavor = "multi_thread")]
async fn t09_bodies_where_none_may_be() {
    for status in ["204 No Content", "304 Not Modified"] {
        let answer =
            answer_to(format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nbody")).await.unwrap();
        assert_eq!((answer.body.len(), answer.whole, answer.code()), (0, true, None), "{status}");
    }
    let upstream = RawUpstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody").await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    for _ in 0..20 {
        visitor.send(format!("HEAD / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        let answer = visitor.answer("HEAD").await;
        assert_eq!((answer.status(), answer.head.get("content-length")), (200, Some("4")));
    }
}

/// Answers 1xx are passed on, in order, and do not end a request.
#[tokio::test(flavor = "multi_thread")]
async fn t09_informational_answers_do_not_end_a_request() {
    let bytes = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let upstream = RawUpstream::saying(bytes).await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    assert_eq!(visitor.head().await.status(), 100);
    let hints = visitor.head().await;
    assert_eq!((hints.status(), hints.get("link")), (103, Some("</a>")));
    visitor.answer("GET").await.assert_ok("ok");
    // HTTP/1.0 knows none.
    visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.0\r\nhost: {}\r\n\r\n", host("demo"))).await;
    visitor.answer("GET").await.assert_ok("ok");
}

/// What a lying agent sends, and what its visitor must see.
struct Lie {
    what: &'static str,
    frames: Vec<Bytes>,
    /// `None`: whatever comes must not look whole.
    code: Option<&'static str>,
}

fn lie(what: &'static str, frames: Vec<Bytes>, code: Option<&'static str>) -> Lie {
    Lie { what, frames, code }
}

fn frame(kind: Kind, end: bool, payload: &[u8]) -> Bytes {
    [&codec::header(kind, end, payload.len())[..], payload].concat().into()
}

fn error(kind: i32) -> Bytes {
    let error = v1::UpstreamError { kind, message: "<b>told</b>\r\nx: y".into() };
    codec::message(&v1::StreamReply { reply: Some(Reply::Error(error)) }, true)
}

fn trailers(fields: &[(&[u8], &[u8])]) -> Bytes {
    head::trailers(fields.iter().copied())
}

fn lies() -> Vec<Lie> {
    const PROTOCOL: Option<&str> = Some("UR-2004");
    let many = vec![(&b"x"[..], &b"y"[..]); 300];
    let ok = |fields: &[(&[u8], &[u8])], end| reply(200, fields, end);
    vec![
        lie("CR LF in a value", vec![ok(&[(b"a", b"a\r\nb: c")], true)], PROTOCOL),
        lie("LF in a value", vec![ok(&[(b"a", b"a\nb: c")], true)], PROTOCOL),
        lie("NUL in a value", vec![ok(&[(b"a", b"a\0")], true)], PROTOCOL),
        lie("CR LF in a name", vec![ok(&[(b"a: b\r\nc", b"d")], true)], PROTOCOL),
        lie("a space in a name", vec![ok(&[(b"a b", b"c")], true)], PROTOCOL),
        lie("an empty name", vec![ok(&[(b"", b"c")], true)], PROTOCOL),
        lie("too many fields", vec![ok(&many, true)], PROTOCOL),
        lie(
            "two lengths",
            vec![
                ok(&[(b"content-length", b"1"), (b"content-length", b"2")], false),
                data(b"a", true),
            ],
            PROTOCOL,
        ),
        lie(
            "a signed length",
            vec![ok(&[(b"content-length", b"+1")], false), data(b"a", true)],
            PROTOCOL,
        ),
        lie("a length and no body", vec![ok(&[(b"content-length", b"5")], true)], PROTOCOL),
        lie("status 0", vec![reply(0, &[], true)], PROTOCOL),
        lie("status 99", vec![reply(99, &[], true)], PROTOCOL),
        lie("status 100 as the last word", vec![reply(100, &[], true)], PROTOCOL),
        lie("status 1000", vec![reply(1000, &[], true)], PROTOCOL),
        lie("status 66 thousand", vec![reply(65_736, &[], true)], PROTOCOL),
        lie(
            "a switch nobody asked for",
            vec![reply(101, &[(b"upgrade", b"raw")], false), "raw".into()],
            PROTOCOL,
        ),
        lie(
            "an empty reply",
            vec![codec::message(&v1::StreamReply { reply: None }, true)],
            Some("UR-2002"),
        ),
        lie("no protobuf", vec![frame(Kind::Message, true, &[0xff; 40])], PROTOCOL),
        lie("data before the head", vec![data(b"body", true)], PROTOCOL),
        lie("trailers before the head", vec![trailers(&[])], PROTOCOL),
        lie("an abort before the head", vec![head::abort("no")], PROTOCOL),
        lie("an unknown kind of frame", vec![vec![0x07, 0, 0, 0].into()], PROTOCOL),
        lie(
            "a message too long",
            vec![codec::header(Kind::Message, false, 200_000).to_vec().into()],
            PROTOCOL,
        ),
        lie("an unknown error", vec![error(99)], PROTOCOL),
        lie("an error of ours", vec![error(UpstreamErrorKind::Tls.into())], Some("UR-3006")),
        // From here on the head is out, so the answer can only break.
        lie(
            "less than its length",
            vec![ok(&[(b"content-length", b"10")], false), data(b"half", true)],
            None,
        ),
        lie(
            "more than its length",
            vec![ok(&[(b"content-length", b"2")], false), data(b"too much", true)],
            None,
        ),
        lie("an abort", vec![ok(&[], false), data(b"half", false), head::abort("gone")], None),
        lie(
            "an abort at once",
            vec![ok(&[(b"content-length", b"4")], false), head::abort("gone")],
            None,
        ),
        lie("a second head", vec![ok(&[], false), data(b"half", false), ok(&[], true)], None),
        lie(
            "bad trailers",
            vec![ok(&[], false), data(b"half", false), trailers(&[(b"x", b"a\r\nb: c")])],
            None,
        ),
        lie(
            "trailers that are no protobuf",
            vec![ok(&[], false), data(b"half", false), frame(Kind::Trailers, true, &[0xff; 9])],
            None,
        ),
        lie(
            "data too long",
            vec![
                ok(&[], false),
                data(b"half", false),
                codec::header(Kind::Data, true, 0xff_ffff).to_vec().into(),
            ],
            None,
        ),
        lie("an end without the last frame", vec![ok(&[], false), data(b"half", false)], None),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn t10_an_agent_that_lies_is_seen_through() {
    let edge = TestEdge::start();
    let honest = TestUpstream::saying("honest").await;
    let _agent = TestAgent::start(&edge, "honest", &honest.url()).await;
    let (mut hand, _) = Hand::ready_agent(edge.http(), "liar").await;
    for Lie { what, frames, code } in lies() {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("liar"))).await;
        let HandRequest { mut sender, reader, .. } = hand.request().await;
        let last = frames.len() - 1;
        for (number, frame) in frames.into_iter().enumerate() {
            // The edge may have given up already.
            let _ = sender.send(frame, number == last);
        }
        let answer = visitor.try_answer("GET").await;
        drop(reader);
        match (code, answer) {
            (Some(code), Some(answer)) => {
                assert_eq!((answer.status(), answer.code()), (502, Some(code)), "{what}");
                assert!(
                    answer.whole
                        && answer.head.get("b").is_none()
                        && answer.head.get("x").is_none(),
                    "{what}"
                );
            }
            (None, answer) => {
                let answer = answer.filter(|answer| answer.whole);
                assert!(answer.is_none(), "{what}: {answer:?}");
            }
            (Some(_), None) => panic!("{what}: no answer"),
        }
        // Whatever it was, it is the visitor's connection that ended, and no other.
        edge.get("honest", "/").await.assert_ok("honest");
        assert!(!hand.mux.is_closed(), "{what}");
    }
}

/// A switch that was asked for, to something else than was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn t10_a_switch_says_what_was_asked_for() {
    let edge = TestEdge::start();
    let (mut hand, _) = Hand::ready_agent(edge.http(), "liar").await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            host("liar")
        ))
        .await;
    let mut request = hand.request().await;
    request
        .sender
        .send(
            reply(
                101,
                &[(b"upgrade", b"h2c"), (b"connection", b"close"), (b"content-length", b"5")],
                false,
            ),
            false,
        )
        .unwrap();
    let head = visitor.head().await;
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("websocket")));
    assert!(head.get("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(head.get("content-length"), None);
    drop(request.reader);
}

/// What comes on an idle connection, without being asked for, is no answer to the next request.
#[tokio::test(flavor = "multi_thread")]
async fn t09_an_idle_connection_that_speaks_is_not_used_again() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let (said, wait) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (saying, waiting) = (Arc::clone(&said), Arc::clone(&wait));
    let upstream = RawUpstream::start(move |_, mut wire| {
        let (said, wait) = (Arc::clone(&saying), Arc::clone(&waiting));
        async move {
            wire.request().await;
            wire.send(ANSWER).await;
            wait.notified().await;
            wire.send(POISON).await;
            said.notify_one();
            // Closed by the agent, or asked again.
            wire.request().await;
        }
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    edge.get("demo", "/").await.assert_ok("ok");
    wait.notify_one();
    said.notified().await;
    wait.notify_one();
    edge.get("demo", "/").await.assert_ok("ok");
}
