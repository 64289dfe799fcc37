//! A long way between edge and agent: one download fills it as well as plain TCP does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::harness::{
    DOMAIN, TestAgent, TestEdge, host,
    link::{Link, Nature},
    upstream::{TestUpstream, channel, text},
    wire::Wire,
};

/// What one transfer moves, in bytes.
const LENGTH: usize = 96 * 1024 * 1024;
/// Bytes a second that the link carries.
const RATE: f64 = 50e6;
/// A round trip of 40 ms, and room for two of them.
const LONG: Nature =
    Nature { delay: Duration::from_millis(20), rate: Some(RATE), queue: 4 * 1024 * 1024 };
/// What a tunnel has to reach of plain TCP's pace through the same link.
const SHARE: f64 = 0.9;
/// The best of as many counts: a busy machine slows either.
const TRIES: usize = 3;

async fn server() -> TestUpstream {
    TestUpstream::start(|request| async move {
        if request.uri().path() == "/small" {
            return text("small");
        }
        let (mut sender, mut response) = channel();
        response.headers_mut().insert("content-length", LENGTH.into());
        tokio::spawn(async move {
            let piece = bytes::Bytes::from(vec![b'x'; 256 * 1024]);
            for _ in 0..LENGTH / piece.len() {
                if sender.send_data(piece.clone()).await.is_err() {
                    return;
                }
            }
        });
        response
    })
    .await
}

/// Bytes a second of one download.
async fn download(from: SocketAddr, host: &str) -> f64 {
    let mut wire = Wire::connect(from).await;
    let began = Instant::now();
    wire.send(format!("GET /bulk HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let head = wire.head().await;
    let (mut body, mut length) = (wire.body(&head), 0);
    while let Some(piece) = body.next().await.unwrap() {
        length += piece.len();
    }
    assert_eq!(length, LENGTH);
    length as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_over_a_long_way_is_nearly_as_fast_as_plain_tcp() {
    let upstream = server().await;
    let edge = Arc::new(TestEdge::start());
    let to_edge = Link::start(edge.http(), LONG).await;
    let to_upstream = Link::start(upstream.address, LONG).await;
    let tunnel = TestAgent::tunnel("demo", &upstream.url());
    let _agent = TestAgent::launch(TestAgent::settings(to_edge.address, vec![tunnel])).await;

    let mut best = 0.0_f64;
    for _ in 0..TRIES {
        let plain = download(to_upstream.address, DOMAIN).await;
        let pinging = tokio::spawn(small_requests(Arc::clone(&edge)));
        let tunnelled = download(edge.http(), &host("demo")).await;
        pinging.abort();
        if let Ok(slowest) = pinging.await {
            panic!("small requests ended: {slowest:?}");
        }
        best = best.max(tunnelled / plain);
        if best >= SHARE {
            return;
        }
    }
    panic!("{:.0} % of plain TCP's pace", best * 100.0);
}

/// Small requests beside the download, for as long as it lasts: each comes through, in a few round
/// trips and not behind all that is queued.
async fn small_requests(edge: Arc<TestEdge>) {
    let mut visitor = edge.visitor().await;
    loop {
        let began = Instant::now();
        visitor.get("demo", "/small").await.assert_ok("small");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "a small request took {took:?}");
    }
}
