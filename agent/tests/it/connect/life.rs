//! Links that die without a word.

// The same file as the edge's tests have.
#[path = "../../../../edge/tests/it/harness/link.rs"]
#[allow(dead_code, reason = "not all of it is for the agent's tests")]
mod link;

use std::time::{Duration, Instant};

use self::link::{Link, Nature};
use super::{run, serves, settings};
use crate::harness::{Edge, Upstream, within};

/// From the first packet that is lost to an answer over a new session, at default settings.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_black_hole_under_traffic_is_noticed_and_the_session_replaced() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let link = Link::start(edge.http, Nature::PLAIN).await;
    let _agent =
        run(settings(&edge, &format!("http://{}", link.address), &upstream)).await.unwrap();
    for _ in 0..20 {
        serves(&edge).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let began = Instant::now();
    link.black_hole();
    // It is sent into the hole, and again over the next session.
    within("an answer", serves(&edge)).await;
    let took = began.elapsed();
    assert!(took < REPLACED_WITHIN, "{took:?}");
    assert!(took > Duration::from_secs(2), "nothing was lost: {took:?}");
}
