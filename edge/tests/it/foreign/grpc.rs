//! gRPC with Google's implementation at both ends: `tests/foreign/grpc_calls.py`.

use super::{Peer, Serving};

/// The cases `words`, to a local server spoken to in `protocol`.
async fn passes(words: &str, protocol: &str, count: usize) {
    let edge = Serving::start().await;
    let peer = Peer::start(&edge, "grpc_calls.py", &[words]).await;
    let upstream = peer.port.to_string();
    let _agent =
        edge.tunnel(&["http", &upstream, "--name", "calls", "--upstream-protocol", protocol]).await;
    peer.passes(&format!("{} calls.localhost", edge.http), count).await;
}

/// The agent finds out that the local server speaks HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_server_that_is_asked() {
    passes("calls", "auto", 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_server_that_is_known() {
    passes("calls", "h2", 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_in_the_middle() {
    passes("away", "auto", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_no_http2() {
    passes("refused", "auto", 1).await;
    passes("refused", "h2", 1).await;
}
