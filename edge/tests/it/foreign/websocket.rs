//! WebSockets in the manner of the Autobahn test suite: `tests/foreign/websocket_cases.py`.

use super::{Peer, Serving};

/// Cases, the same for each way in.
const CASES: usize = 100;

async fn passes(visitors: &str) {
    let edge = Serving::start().await;
    let peer = Peer::start(&edge, "websocket_cases.py", &[visitors]).await;
    let _agent = edge.tunnel(&["http", &peer.port.to_string(), "--name", "chat"]).await;
    peer.passes(&format!("{} chat.localhost", edge.http), CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_over_http1() {
    passes("http1").await;
}

/// Extended CONNECT (RFC 8441).
#[tokio::test(flavor = "multi_thread")]
async fn visitors_over_http2() {
    passes("http2").await;
}
