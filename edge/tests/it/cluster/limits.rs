//! Limits that edges share: together they let through what one would.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::harness::{
    TestAgent,
    cluster::{Cluster, Shared, agent, figure, user},
    redis::TestRedisCluster,
    upstream::TestUpstream,
    wire::Wire,
};

/// Requests a second of the user.
const RATE: u32 = 200;
/// The first second is not promised: parts are settled in it.
const FIRST: Duration = Duration::from_millis(1_500);
const MEASURED: Duration = Duration::from_secs(5);

/// Asks again and again; how many were served while it was measured.
async fn ask(edge: SocketAddr, name: &'static str, begin: Instant, served: Arc<AtomicU64>) {
    let mut wire = Wire::connect(edge).await;
    let mut pause = tokio::time::interval(Duration::from_millis(4));
    while begin.elapsed() < FIRST + MEASURED {
        pause.tick().await;
        let status = wire.get(name, "/").await.status();
        assert!(status == 200 || status == 429, "{status}");
        let measured = (FIRST..FIRST + MEASURED).contains(&begin.elapsed());
        served.fetch_add(u64::from(status == 200 && measured), Ordering::Relaxed);
    }
}

async fn a_users_total_is_his_rate(cluster: &Cluster) {
    let admin = cluster.admin().await;
    admin.put("/plans/small", json!({ "requests_per_second": RATE })).await;
    let token = user(&cluster.setup().await, "ann@example.com", Some("small")).await;
    let upstream = TestUpstream::saying("hello").await;
    let mut agents = Vec::new();
    for (edge, name) in cluster.edges.iter().zip(["a", "b"]) {
        agents.push(TestAgent::launch(agent(edge, &token, name, name, &upstream.url())).await);
    }
    let (begin, mut asking) = (Instant::now(), JoinSet::new());
    let served: [Arc<AtomicU64>; 2] = Default::default();
    // One edge has three times the load of the other.
    for (edge, name, visitors) in [(0, "a", 3), (1, "b", 1)] {
        for _ in 0..visitors {
            let (http, served) = (cluster.edges[edge].http(), Arc::clone(&served[edge]));
            asking.spawn(ask(http, name, begin, served));
        }
    }
    asking.join_all().await;
    let [a, b] = served.map(|served| served.load(Ordering::Relaxed));
    let part = (a + b) as f64 / MEASURED.as_secs_f64() / f64::from(RATE);
    figure(format_args!("two edges: {a} + {b} requests, {part:.3} of the rate"));
    assert!((0.9..=1.1).contains(&part), "{a} + {b}: {part:.3} of the rate");
    assert!(a > b, "{a} and {b}: parts follow the load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_total_over_two_edges_is_his_rate() {
    a_users_total_is_his_rate(&Cluster::start(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_total_over_two_edges_is_his_rate_in_a_redis_cluster() {
    let shared = Shared::Cluster(TestRedisCluster::start().await);
    a_users_total_is_his_rate(&Cluster::on(shared, 2, |_| {}).await).await;
}
