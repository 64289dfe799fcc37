//! Bodies of any length and any pace: bytes as they come, memory that stays bounded, and an end that
//! travels both ways.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use uniroute_shared::{carrier::quic::CONNECTION_WINDOW, lanes::DEFAULT_LANES};

use crate::harness::{
    TestAgent, TestEdge, host, over_quic,
    upstream::{RawUpstream, TestUpstream, channel, text},
    within,
};

/// What goes up and down in the large transfers, in bytes.
const BULK: usize = 64 * 1024 * 1024;
/// Bytes of one piece of it.
const PIECE: usize = 64 * 1024;
/// What the windows of one session may grow to together, in bytes.
const SESSION_WINDOW: u64 = 64 * 1024 * 1024;
/// What a body's own window may grow to, and the first windows beside it: of stream zero, of the stream that
/// the body began on, and of each lane's handshake.
const ONE_BODY: u64 = 16 * 1024 * 1024 + (2 + DEFAULT_LANES as u64) * 256 * 1024;
/// What one stream may queue to be sent, in bytes: 64 KiB and one chunk.
const SEND_QUEUE: u64 = 64 * 1024 + 1024 * 1024;

/// Bytes that repeat nowhere near, so that a piece in the wrong place is noticed.
fn piece(number: usize) -> Bytes {
    let mut state = number as u64 + 1;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..PIECE).map(next).collect()
}

fn digest_of_bulk() -> String {
    let mut digest = Sha256::new();
    (0..BULK / PIECE).for_each(|number| digest.update(piece(number)));
    hex(digest)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `/down` gives the bulk, `/up` takes it and says its digest.
async fn bulk_server() -> TestUpstream {
    TestUpstream::start(|request| async move {
        if request.uri().path() == "/small" {
            return text("small");
        }
        if request.uri().path() == "/up" {
            let (mut digest, mut body) = (Sha256::new(), request.into_body());
            while let Some(frame) = body.frame().await {
                digest.update(frame.unwrap().into_data().unwrap());
            }
            return text(hex(digest));
        }
        let (mut sender, response) = channel();
        tokio::spawn(async move {
            for number in 0..BULK / PIECE {
                if sender.send_data(piece(number)).await.is_err() {
                    return;
                }
            }
        });
        response
    })
    .await
}

/// Looks at the edge's sessions again and again, and keeps the largest figures.
struct Watch {
    task: JoinHandle<()>,
    most: Arc<Mutex<Most>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Most {
    window: u64,
    received: u64,
    send: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn start(edge: Arc<TestEdge>) -> Self {
        let most = Arc::new(Mutex::new(Most::default()));
        let seen = Arc::clone(&most);
        let task = tokio::spawn(async move {
            loop {
                let status = edge.status().await;
                let figure = |name: &str| {
                    let sessions = status["sessions"].as_array().unwrap().iter();
                    sessions.map(|session| session[name].as_u64().unwrap()).max().unwrap_or(0)
                };
                {
                    let mut most = seen.lock();
                    most.window = most.window.max(figure("window_bytes"));
                    most.received = most.received.max(figure("received_queued_bytes"));
                    most.send = most.send.max(figure("send_queued_bytes"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { task, most }
    }

    fn most(&self) -> Most {
        *self.most.lock()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_arrives_whole_in_little_memory() {
    let upstream = bulk_server().await;
    let edge = Arc::new(TestEdge::start());
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let watch = Watch::start(Arc::clone(&edge));
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET /down HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let head = visitor.head().await;
    let (mut digest, mut body) = (Sha256::new(), visitor.body(&head));
    while let Some(bytes) = body.next().await.unwrap() {
        digest.update(bytes);
    }
    assert_eq!(hex(digest), digest_of_bulk());
    let most = watch.most();
    assert!(most.window <= ONE_BODY && most.received <= most.window, "{most:?}");
    let status = edge.status().await;
    assert_eq!(status["tunnels"][0]["bytes_out"].as_u64(), Some(BULK as u64));
    assert_eq!(status["sessions"][0]["received_queued_bytes"].as_u64(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_arrives_whole_in_little_memory() {
    let upstream = bulk_server().await;
    let edge = Arc::new(TestEdge::start());
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let watch = Watch::start(Arc::clone(&edge));
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "POST /up HTTP/1.1\r\nhost: {}\r\ncontent-length: {BULK}\r\n\r\n",
            host("demo")
        ))
        .await;
    for number in 0..BULK / PIECE {
        visitor.send(piece(number)).await;
    }
    visitor.answer("POST").await.assert_ok(&digest_of_bulk());
    let most = watch.most();
    assert!(most.send <= SEND_QUEUE, "{most:?}");
    assert_eq!(edge.status().await["tunnels"][0]["bytes_in"].as_u64(), Some(BULK as u64));
}

/// Each event is seen before the next one is sent.
#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one() {
    let (go, gate) = mpsc::channel::<()>(1);
    let gate = Arc::new(tokio::sync::Mutex::new(gate));
    let upstream = TestUpstream::start(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            let (mut sender, mut response) = channel();
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            tokio::spawn(async move {
                let mut gate = gate.lock().await;
                let mut number = 0;
                while gate.recv().await.is_some() {
                    sender.send_data(format!("data: {number}\n\n").into()).await.unwrap();
                    number += 1;
                }
            });
            response
        }
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let head = visitor.head().await;
    assert_eq!(head.get("content-type"), Some("text/event-stream"));
    let mut body = visitor.body(&head);
    for number in 0..200 {
        go.send(()).await.unwrap();
        let event = body.next().await.unwrap().unwrap();
        assert_eq!(event, format!("data: {number}\n\n"));
    }
    drop(go);
    assert!(body.next().await.unwrap().is_none());
}

/// A body may take longer than any answer may take to begin.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_no_time_limit() {
    let upstream = TestUpstream::start(|_| async {
        let (mut sender, response) = channel();
        tokio::spawn(async move {
            for _ in 0..15 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                sender.send_data("tick".into()).await.unwrap();
            }
        });
        response
    })
    .await;
    let edge = TestEdge::start();
    let mut tunnel = TestAgent::tunnel("demo", &upstream.url());
    tunnel.response_timeout = Some(Duration::from_millis(400));
    let _agent = TestAgent::serve(&edge, tunnel).await;
    edge.get("demo", "/").await.assert_ok(&"tick".repeat(15));
    // Nor has an upload, before the answer is due.
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!("POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: 10\r\n\r\n", host("demo")))
        .await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        visitor.send("x").await;
    }
    visitor.answer("POST").await.assert_ok(&"tick".repeat(15));
}

/// A server that sends or takes without end, and says when it has begun and when its peer has gone.
async fn endless() -> (RawUpstream, mpsc::Receiver<Instant>, mpsc::Receiver<Instant>) {
    let (begin, begun) = mpsc::channel(64);
    let (sender, gone) = mpsc::channel(64);
    let upstream = RawUpstream::start(move |_, mut wire| {
        let (begin, sender) = (begin.clone(), sender.clone());
        async move {
            let head = wire.head().await;
            begin.send(Instant::now()).await.unwrap();
            if head.first.starts_with("GET") {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
                while wire.try_send(&chunk).await.is_ok() {}
            } else {
                let mut body = wire.body(&head);
                while let Ok(Some(_)) = body.next().await {}
            }
            sender.send(Instant::now()).await.unwrap();
        }
    })
    .await;
    (upstream, begun, gone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_leaves_a_download_is_missed_at_once() {
    let (upstream, _begun, mut gone) = endless().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    for reads in [true, false] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        let head = visitor.head().await;
        let mut body = visitor.body(&head);
        // Either in full flow, or with every window on the way full.
        let mut read = 0;
        while reads && read < 8 * 1024 * 1024 {
            read += body.next().await.unwrap().unwrap().len();
        }
        let left = Instant::now();
        drop(visitor);
        let noticed = within("the server sees the end", gone.recv()).await.unwrap();
        let after = noticed.saturating_duration_since(left);
        assert!(after < Duration::from_secs(1), "noticed after {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_leaves_an_upload_is_missed_at_once() {
    let (upstream, mut begun, mut gone) = endless().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    for fields in ["content-length: 100000000", "transfer-encoding: chunked"] {
        let mut visitor = edge.visitor().await;
        visitor
            .send(format!("POST / HTTP/1.1\r\nhost: {}\r\n{fields}\r\n\r\n", host("demo")))
            .await;
        visitor.send(format!("10000\r\n{}\r\n", "x".repeat(0x10000))).await;
        within("the upload begins", begun.recv()).await.unwrap();
        let left = Instant::now();
        drop(visitor);
        let noticed = within("the server sees the end", gone.recv()).await.unwrap();
        let after = noticed.saturating_duration_since(left);
        assert!(after < Duration::from_secs(1), "noticed after {after:?}");
    }
}

/// A visitor who leaves while the local server still thinks.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_leaves_before_the_answer_is_missed_at_once() {
    let (sender, mut gone) = mpsc::channel(1);
    let (asked, mut arrived) = mpsc::channel(1);
    let upstream = RawUpstream::start(move |_, mut wire| {
        let (sender, asked) = (sender.clone(), asked.clone());
        async move {
            wire.request().await;
            asked.send(()).await.unwrap();
            wire.rest().await;
            sender.send(Instant::now()).await.unwrap();
        }
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    within("the request", arrived.recv()).await.unwrap();
    let left = Instant::now();
    drop(visitor);
    let noticed = within("the server sees the end", gone.recv()).await.unwrap();
    assert!(noticed.saturating_duration_since(left) < Duration::from_secs(1));
}

/// Requests with bodies in both directions at once, each with its own bytes.
#[tokio::test(flavor = "multi_thread")]
async fn many_streams_do_not_mix() {
    let upstream = TestUpstream::start(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        text(body)
    })
    .await;
    let edge = Arc::new(TestEdge::start());
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let watch = Watch::start(Arc::clone(&edge));
    let echo = |number: usize| {
        let edge = Arc::clone(&edge);
        async move {
            let body = piece(number).repeat(1 + number % 8);
            let mut visitor = edge.visitor().await;
            for _ in 0..4 {
                let head = format!(
                    "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
                    host("demo"),
                    body.len()
                );
                visitor.send([head.as_bytes(), &body].concat()).await;
                let answer = visitor.answer("POST").await;
                assert!(answer.whole && answer.body == body, "stream {number}");
            }
        }
    };
    let tasks: Vec<_> = (0..40).map(|number| tokio::spawn(echo(number))).collect();
    for task in tasks {
        within("an echo", task).await.unwrap();
    }
    let most = watch.most();
    let window = if over_quic() { u64::from(CONNECTION_WINDOW) } else { SESSION_WINDOW };
    assert!(most.window <= window, "{most:?}");
}
