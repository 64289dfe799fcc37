//! Readers that stop: they hold a bounded piece of memory, and nobody else waits for them.

use std::time::Duration;

use tokio::time::Instant;
use uniroute_shared::{carrier::quic::STREAM_WINDOW, lanes::DEFAULT_LANES};

use crate::harness::{
    TestAgent, TestEdge, eventually, host, over_quic,
    upstream::{RawUpstream, TestUpstream, channel, text},
    wire::Wire,
};

/// Every stream's first window, in bytes: what one that is never read may hold at the edge.
const FIRST_WINDOW: u64 = 256 * 1024;
/// What the windows of a session and its lanes grow to together, in bytes.
const SESSION_WINDOW: u64 = 64 * 1024 * 1024;
/// What a stream may queue to be sent, in bytes: its queue and one piece on top.
const SEND_QUEUE: u64 = (64 + 64) * 1024;

/// `/endless` never ends, everything else is short; `/slow-eater` takes no byte of its request.
async fn server() -> TestUpstream {
    TestUpstream::start(|request| async move {
        match request.uri().path() {
            "/endless" => {
                let (mut sender, response) = channel();
                tokio::spawn(async move {
                    while sender.send_data(vec![b'x'; 64 * 1024].into()).await.is_ok() {}
                });
                response
            }
            "/slow-eater" => {
                // The body is dropped only with the request, which never is answered.
                let _request = request;
                std::future::pending().await
            }
            _ => text("small"),
        }
    })
    .await
}

async fn session_figure(edge: &TestEdge, name: &str) -> u64 {
    edge.status().await["sessions"][0][name].as_u64().unwrap()
}

/// `count` readers that have read the head and stop.
async fn stopped_readers(edge: &TestEdge, count: usize) -> Vec<Wire> {
    let mut readers = Vec::new();
    for _ in 0..count {
        let mut reader = edge.visitor().await;
        reader.send(format!("GET /endless HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        reader.head().await;
        readers.push(reader);
    }
    readers
}

/// Waits until no more bytes come in for the streams that nobody reads: each of their windows is full, or
/// the sockets on the way still take some.
async fn until_still(edge: &TestEdge) -> u64 {
    let mut before = u64::MAX;
    let mut same = 0;
    eventually("the flow stands still", async || {
        let now = session_figure(edge, "received_queued_bytes").await;
        same = if now == before { same + 1 } else { 0 };
        before = now;
        (same >= 20).then_some(now)
    })
    .await
}

/// The time that each of `count` small requests takes, sorted.
async fn small_requests(edge: &TestEdge, count: usize) -> Vec<Duration> {
    let mut visitor = edge.visitor().await;
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        visitor.get("demo", "/small").await.assert_ok("small");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_holds_one_window_and_nobody_up() {
    let upstream = server().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut reader = stopped_readers(&edge, 1).await.remove(0);
    let held = until_still(&edge).await;
    let window = session_figure(&edge, "window_bytes").await;
    assert!(held <= window && window <= 16 * 1024 * 1024, "{held} of {window}");
    small_requests(&edge, 50).await;
    // It reads on, and the flow goes on.
    let mut read = 0;
    while read < 32 * 1024 * 1024 {
        read += reader.bytes().await.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_stopped_readers_hold_their_windows_and_nobody_up() {
    let upstream = server().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let alone = small_requests(&edge, 100).await;
    let readers = stopped_readers(&edge, 64).await;
    let held = until_still(&edge).await;
    let window = session_figure(&edge, "window_bytes").await;
    assert!(held <= window, "{held} of {window}");
    // Each body has a stream on the first connection and one on a lane, and each connection one for
    // its handshake.
    let streams = 2 * 64 + 1 + DEFAULT_LANES as u64;
    let most = match over_quic() {
        true => 65 * u64::from(STREAM_WINDOW),
        false => SESSION_WINDOW + streams * FIRST_WINDOW,
    };
    assert!(window <= most, "{window}");
    // Unchanged but for what a busy machine adds: who waits for a reader waits in each round.
    let most = alone[90] * 5 + Duration::from_millis(50);
    eventually("small requests beside them", async || {
        (small_requests(&edge, 100).await[90] <= most).then_some(())
    })
    .await;
    drop(readers);
    eventually("the readers' streams are over", async || {
        (session_figure(&edge, "streams").await == 1).then_some(())
    })
    .await;
    assert_eq!(session_figure(&edge, "received_queued_bytes").await, 0);
}

/// Uploads that the local server does not take.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_reads_hold_a_bounded_queue_and_nobody_up() {
    let upstream = server().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut writers = Vec::new();
    for _ in 0..16 {
        let mut writer = edge.visitor().await;
        writer
            .send(format!(
                "POST /slow-eater HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000000\r\n\r\n",
                host("demo")
            ))
            .await;
        writers.push(tokio::spawn(async move {
            let piece = vec![b'x'; 64 * 1024];
            while writer.try_send(&piece).await.is_ok() {}
        }));
    }
    small_requests(&edge, 50).await;
    let queued = session_figure(&edge, "send_queued_bytes").await;
    // On the first connection what was queued before the body moved, and on a lane the rest.
    assert!(queued <= 16 * 2 * SEND_QUEUE, "{queued}");
    let done = writers.iter().filter(|writer| writer.is_finished()).count();
    assert_eq!(done, 0, "they wait, and are not cut");
    writers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A visitor who never reads holds a stream of his agent's session: not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_never_reads_is_let_go() {
    let edge = TestEdge::with(|settings| settings.stall = Duration::from_millis(300));
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
        let piece = vec![0; 1_000_000];
        while wire.try_send(&piece).await.is_ok() {}
    })
    .await;
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    eventually("the visitor is let go", async || {
        let metrics = edge.ask_admin("/metrics").await;
        metrics.text().contains("UR-5006").then_some(())
    })
    .await;
    drop(visitor);
}
