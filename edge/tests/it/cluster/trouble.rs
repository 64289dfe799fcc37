//! Days on which the database or Redis is away: what is served goes on, and what was missed is made
//! up for.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uniroute_agent::Event;

use crate::harness::{
    TestAgent, TestEdge,
    cluster::{Api, Cluster, agent, figure, id, user},
    eventually,
    upstream::TestUpstream,
    wire::Wire,
};

/// How long something is away.
const AWAY: Duration = Duration::from_secs(6);

/// Two hundred requests a second, none of which may fail.
struct Load {
    stop: CancellationToken,
    visitors: JoinSet<u64>,
}

impl Load {
    fn on(edge: &TestEdge, name: &'static str) -> Self {
        let (stop, mut visitors) = (CancellationToken::new(), JoinSet::new());
        for _ in 0..4 {
            visitors.spawn(visit(edge.http(), name, stop.clone()));
        }
        Self { stop, visitors }
    }

    /// Ends it; how many requests there were.
    async fn end(self) -> u64 {
        self.stop.cancel();
        self.visitors.join_all().await.into_iter().sum()
    }
}

async fn visit(edge: SocketAddr, name: &'static str, stop: CancellationToken) -> u64 {
    let mut wire = Wire::connect(edge).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut asked = 0;
    while !stop.is_cancelled() {
        ticks.tick().await;
        wire.get(name, "/").await.assert_ok("hello");
        asked += 1;
    }
    asked
}

async fn readiness(edge: &TestEdge) -> String {
    let answer = edge.ask_admin("/readyz").await;
    assert_eq!(answer.status(), 200, "what is served is served");
    answer.text().to_owned()
}

async fn reads(edge: &TestEdge, what: &str) {
    eventually(what, async || readiness(edge).await.contains(what).then_some(())).await;
}

fn refused(event: &Event) -> Option<u16> {
    match event {
        Event::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_costs_no_request_and_no_row() {
    let mut cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[1], "ann@example.com").await;
    let edge = &cluster.edges[0];
    let settings = |id: &str| agent(edge, &token, id, id, &upstream.url());
    let _shop = TestAgent::launch(settings("shop")).await;
    let blog = TestAgent::launch(settings("blog")).await;
    let path = format!("/tunnels/{}", id(&ann.tunnel("shop").await));
    let load = Load::on(edge, "shop");
    cluster.postgres.stop().await;
    let since = Instant::now();
    let edge = &cluster.edges[0];
    let settings = |id: &str| agent(edge, &token, id, id, &upstream.url());
    reads(edge, "the store does not answer").await;
    assert_eq!(edge.metric("store_up").await, 0);
    let health = ann.send("GET", "/health", None).await;
    assert!(health.text().contains("false"), "{}", health.text());

    // Who was here before gets what it had, if not more.
    drop(blog);
    let mut more = settings("blog");
    more.tunnels.push(TestAgent::tunnel("extra", &upstream.url()));
    let back = TestAgent::spawn(more);
    back.readies(1).await;
    edge.get("blog", "/").await.assert_ok("hello");
    assert_eq!(back.seen(refused).await, [6020]);
    // Who was not is told why, and comes as soon as it is possible.
    let new = TestAgent::spawn(settings("new"));
    eventually("a new name can't be had", async || {
        (new.seen(refused).await.first() == Some(&6020)).then_some(())
    })
    .await;
    assert!(!new.is_over());
    tokio::time::sleep(AWAY.saturating_sub(since.elapsed())).await;
    figure(format_args!("the database was away for {:?}", since.elapsed()));
    cluster.postgres.start_again().await;
    new.readies(1).await;
    back.readies(2).await;
    let requests = load.end().await;
    let edge = &cluster.edges[0];
    for name in ["new", "extra"] {
        edge.get(name, "/").await.assert_ok("hello");
    }
    eventually("it is well again", async || (readiness(edge).await == "ready\n").then_some(()))
        .await;
    let lost = edge.metric("request_rows_lost_total").await;
    let left_out = edge.metric("request_rows_left_out_total").await;
    figure(format_args!("{requests} requests, rows: {left_out} left out, {lost} lost"));
    assert_eq!((lost, left_out), (0, 0));
    eventually("counts are complete", async || {
        let stats = ann.send("GET", &format!("{path}/stats"), None).await;
        let stats: serde_json::Value = serde_json::from_slice(&stats.body).ok()?;
        (stats["total"]["requests"] == requests).then_some(())
    })
    .await;
    let sql = "SELECT count(*) FROM tunnel_requests r JOIN tunnels t ON t.id = r.tunnel_id \
               WHERE t.subdomain = 'shop'";
    eventually("rows are complete", async || {
        let rows = cluster.store.row(sql, Vec::new()).await.ok()??.take::<u64>().ok()?;
        assert!(rows <= requests, "{rows} rows of {requests} requests");
        (rows == requests).then_some(())
    })
    .await;
    drop(back);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_is_away_costs_no_request_and_what_it_forgot_is_told_again() {
    let mut cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[1], "ann@example.com").await;
    let edge = &cluster.edges[0];
    let shop = TestAgent::launch(agent(edge, &token, "shop", "shop", &upstream.url())).await;
    let tunnel = id(&ann.tunnel("shop").await);
    let load = Load::on(edge, "shop");
    cluster.shared.redis().kill();
    let since = Instant::now();
    let edge = &cluster.edges[0];
    reads(edge, "the shared state does not answer").await;
    assert_eq!(edge.metric("state_up").await, 0);
    // Everything but speed is as it was: new agents, the API at the other edge.
    let blog = TestAgent::launch(agent(edge, &token, "blog", "blog", &upstream.url())).await;
    edge.get("blog", "/").await.assert_ok("hello");
    let (pause, resume) = (format!("/tunnels/{tunnel}/pause"), format!("/tunnels/{tunnel}/resume"));
    let other = id(&ann.tunnel("blog").await);
    ann.post(&format!("/tunnels/{other}/pause"), serde_json::json!({})).await;
    eventually("a pause arrives by the audit log", async || {
        (edge.get("blog", "/").await.status() == 503).then_some(())
    })
    .await;
    tokio::time::sleep(AWAY.saturating_sub(since.elapsed())).await;
    cluster.shared.redis().restart().await;
    let back = Instant::now();
    // It has forgotten everything.
    for name in ["shop", "blog"] {
        eventually("routes are there again", async || {
            let key = format!("tunnel:subdomain:{{{name}}}");
            (cluster.shared.redis().cli(&["exists", &key]) == "1").then_some(())
        })
        .await;
    }
    let key = format!("tunnel:session:{{{tunnel}}}");
    eventually("sessions are there again", async || {
        (cluster.shared.redis().cli(&["exists", &key]) == "1").then_some(())
    })
    .await;
    let took = back.elapsed();
    figure(format_args!("the state was right after {took:?}"));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let edge = &cluster.edges[0];
    eventually("it is well again", async || (readiness(edge).await == "ready\n").then_some(()))
        .await;
    let requests = load.end().await;
    assert!(requests > 400, "{requests}");
    // Events are as quick as before.
    let since = Instant::now();
    ann.post(&pause, serde_json::json!({})).await;
    eventually("a pause arrives", async || {
        (edge.get("shop", "/").await.status() == 503).then_some(())
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    ann.post(&resume, serde_json::json!({})).await;
    eventually("counts are complete", async || {
        let stats = ann.get(&format!("/tunnels/{tunnel}/stats")).await;
        (stats["total"]["requests"].as_u64()? >= requests).then_some(())
    })
    .await;
    drop((shop, blog));
}
