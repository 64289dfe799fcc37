//! What is counted is what was asked: to the request, and to the byte.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use hyper::{Request, Response, body::Incoming};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uniroute_edge::store::Store;

use crate::harness::{
    TestAgent, TestEdge,
    cluster::{Alone, Api, Cluster, agent, figure, id, user},
    eventually, get, host,
    upstream::{Body, RawUpstream, TestUpstream, text},
    wire::Wire,
};

/// Connections of visitors.
const VISITORS: usize = 8;

/// What visitors have asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    requests: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, more: Self) {
        self.requests += more.requests;
        self.errors += more.errors;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
    }
}

impl Sum {
    fn of(value: &Value) -> Self {
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{value}"));
        Self {
            requests: number("requests"),
            errors: number("errors"),
            bytes_in: number("bytes_in"),
            bytes_out: number("bytes_out"),
        }
    }

    fn of_points(metrics: &Value) -> Self {
        let mut sum = Self::default();
        for point in metrics["points"].as_array().unwrap() {
            sum += Self::of(point);
        }
        sum
    }
}

async fn local(request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/missing" => {
            let mut answer = text("no such page");
            *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
            answer
        }
        "/broken" => {
            let mut answer = text("broken");
            *answer.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            answer
        }
        "/echo" => text(request.into_body().collect().await.unwrap().to_bytes()),
        "/never" => std::future::pending().await,
        _ => text("hello"),
    }
}

/// One visitor's requests of many kinds.
async fn visit(edge: SocketAddr, requests: usize) -> Sum {
    let mut wire = Wire::connect(edge).await;
    let mut sum = Sum { requests: requests as u64, ..Sum::default() };
    for number in 0..requests {
        let (path, wanted) = match number % 10 {
            0 => ("/missing", 404),
            1 => ("/broken", 500),
            2 | 3 => ("/echo", 200),
            _ => ("/", 200),
        };
        let body = if path == "/echo" { "x".repeat(number % 300) } else { String::new() };
        let (method, length) = if path == "/echo" {
            ("POST", format!("content-length: {}\r\n", body.len()))
        } else {
            ("GET", String::new())
        };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{length}\r\n", host("a"));
        wire.send(head + &body).await;
        let answer = wire.answer(method).await;
        assert_eq!(answer.status(), wanted);
        sum.errors += u64::from(wanted == 500);
        sum.bytes_in += body.len() as u64;
        sum.bytes_out += answer.body.len() as u64;
    }
    sum
}

async fn visits(edge: &TestEdge, requests: usize) -> Sum {
    let mut visitors = JoinSet::new();
    for _ in 0..VISITORS {
        visitors.spawn(visit(edge.http(), requests / VISITORS));
    }
    let mut all = Sum::default();
    for sum in visitors.join_all().await {
        all += sum;
    }
    all
}

/// Requests whose visitors go before an answer comes.
async fn aborted(edge: &TestEdge, requests: u64) -> Sum {
    for _ in 0..requests {
        let mut wire = edge.visitor().await;
        wire.send(format!("GET /never HTTP/1.1\r\nhost: {}\r\n\r\n", host("a"))).await;
    }
    Sum { requests, errors: requests, ..Sum::default() }
}

/// What the edge has counted of a tunnel since it has it.
async fn live(edge: &TestEdge, name: &str) -> u64 {
    let status = edge.status().await;
    let mut tunnels = status["tunnels"].as_array().unwrap().iter();
    tunnels.find(|tunnel| tunnel["name"] == name).unwrap()["requests"].as_u64().unwrap()
}

/// Runs the job that makes hours of minutes now.
async fn roll_up(store: &Store) {
    let before = "SELECT fence FROM jobs WHERE name = 'roll-up'";
    let fence = async || store.row(before, Vec::new()).await.unwrap()?.take::<u64>().ok();
    let before = eventually("the job has run before", fence).await;
    store
        .execute("UPDATE jobs SET ran_at = NULL WHERE name = 'roll-up'", Vec::new())
        .await
        .unwrap();
    eventually("the job runs again", async || (fence().await? > before).then_some(())).await;
}

async fn rows(store: &Store) -> u64 {
    let sql = "SELECT count(*) FROM tunnel_requests";
    store.row(sql, Vec::new()).await.unwrap().unwrap().take().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_and_byte_is_counted_once_over_a_restart() {
    const HALF: usize = 10_000;
    const ABORTED: u64 = 50;
    let alone = Alone::start().await;
    let token = user(&alone.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::start(local).await;
    let (mut sum, mut left_out) = (Sum::default(), 0);

    let settings = |edge: &TestEdge| agent(edge, &token, "one", "a", &upstream.url());
    let first = TestAgent::launch(settings(&alone.edge)).await;
    sum += visits(&alone.edge, HALF / 2).await;
    // An agent that leaves and comes back is the same tunnel, and goes on counting.
    first.stop().await.unwrap();
    let first = TestAgent::launch(settings(&alone.edge)).await;
    sum += visits(&alone.edge, HALF / 2).await;
    left_out += alone.edge.metric("request_rows_left_out_total").await;
    assert_eq!(alone.edge.metric("request_rows_lost_total").await, 0);

    let alone = alone.restart(|_| {}).await;
    drop(first);
    let _second = TestAgent::launch(settings(&alone.edge)).await;
    sum += visits(&alone.edge, HALF).await;
    sum += aborted(&alone.edge, ABORTED).await;
    eventually("the edge has seen the last of them go", async || {
        (live(&alone.edge, "a").await == HALF as u64 + ABORTED).then_some(())
    })
    .await;
    left_out += alone.edge.metric("request_rows_left_out_total").await;

    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let path = format!("/tunnels/{}", id(&ann.tunnel("a").await));
    eventually("it is written down", async || {
        let stats = ann.get(&format!("{path}/stats")).await;
        // Totals come over the shared state, and may be there before the minutes are.
        let minutes = Sum::of_points(&ann.get(&format!("{path}/metrics")).await);
        (stats["total"]["requests"] == sum.requests && minutes.requests == sum.requests)
            .then_some(())
    })
    .await;
    assert_eq!(Sum::of(&ann.get(&format!("{path}/stats")).await["total"]), sum);
    assert_eq!(ann.get(&path).await["request_count"], sum.requests);
    assert_eq!(Sum::of_points(&ann.get(&format!("{path}/metrics")).await), sum);
    let store = alone.store().await;
    roll_up(&store).await;
    assert_eq!(Sum::of_points(&ann.get(&format!("{path}/metrics?step=hour")).await), sum);
    let month = ann.get("/usage").await["months"][0].clone();
    let used = ["requests", "bytes_in", "bytes_out"].map(|name| month[name].as_u64().unwrap());
    assert_eq!(used, [sum.requests, sum.bytes_in, sum.bytes_out]);
    eventually("all rows are there", async || {
        (rows(&store).await + left_out == sum.requests).then_some(())
    })
    .await;
    figure(format_args!("counting: {sum:?}, rows left out: {left_out}"));
    assert!(left_out > 0, "faster than the log's rate");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_way_and_upgraded_connections_count_too() {
    let alone = Alone::start().await;
    let token = user(&alone.setup().await, "ann@example.com", None).await;
    let echo = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        )
        .await;
        loop {
            let bytes = wire.bytes().await;
            if bytes.is_empty() {
                return;
            }
            wire.send(bytes).await;
        }
    })
    .await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = agent(&alone.edge, &token, "one", "down", &format!("http://{closed}"));
    settings.tunnels.push(TestAgent::tunnel("echo", &echo.url()));
    let _agent = TestAgent::launch(settings).await;
    for _ in 0..20 {
        get(alone.edge.http(), "down", "/").await.assert_failed(502, "UR-3001");
    }
    for _ in 0..20 {
        let mut wire = alone.edge.visitor().await;
        wire.send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
            host("echo")
        ))
        .await;
        assert_eq!(wire.head().await.status(), 101);
        wire.send([b'x'; 1000]).await;
        wire.exactly(1000).await;
    }
    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let total = async |name: &str| {
        let path = format!("/tunnels/{}/stats", id(&ann.tunnel(name).await));
        ann.get(&path).await["total"].clone()
    };
    let wanted = json!({ "requests": 20, "errors": 0, "bytes_in": 20_000, "bytes_out": 20_000 });
    eventually("upgraded ones are counted when they end", async || {
        (total("echo").await == wanted).then_some(())
    })
    .await;
    let down = total("down").await;
    assert_eq!((&down["requests"], &down["errors"]), (&json!(20), &json!(20)));
    let path = format!("/tunnels/{}/requests?limit=100", id(&ann.tunnel("down").await));
    let rows = eventually("their rows are there", async || {
        let rows = ann.get(&path).await["items"].as_array().unwrap().clone();
        (rows.len() == 20).then_some(rows)
    })
    .await;
    for row in rows {
        assert_eq!((&row["error"], &row["status"]), (&json!("UR-3001"), &json!(502)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn percentiles_are_those_that_visitors_see() {
    const AT_ONCE: usize = 24;
    const EACH: usize = 100;
    let alone = Alone::start().await;
    let token = user(&alone.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::start(|request: Request<Incoming>| async move {
        let delay = request.uri().path()[1..].parse().unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        text("hello")
    })
    .await;
    let _agent = TestAgent::launch(agent(&alone.edge, &token, "one", "a", &upstream.url())).await;
    let mut visitors = JoinSet::new();
    for visitor in 0..AT_ONCE {
        let edge = alone.edge.http();
        visitors.spawn(async move {
            let mut wire = Wire::connect(edge).await;
            let mut took = Vec::new();
            for number in 0..EACH {
                // Every delay from 5 to 80 ms as often as any other, in no order.
                let delay = 5 + (visitor * EACH + number) * 31 % 76;
                let began = Instant::now();
                assert_eq!(wire.get("a", &format!("/{delay}")).await.status(), 200);
                took.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            took
        });
    }
    let mut took = visitors.join_all().await.concat();
    took.sort_unstable_by(f64::total_cmp);
    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let path = format!("/tunnels/{}", id(&ann.tunnel("a").await));
    eventually("it is written down", async || {
        let tunnel = ann.get(&path).await;
        (tunnel["request_count"] == AT_ONCE * EACH).then_some(())
    })
    .await;
    roll_up(&alone.store().await).await;
    let metrics = ann.get(&format!("{path}/metrics?step=hour")).await;
    let told = &metrics["points"][0]["latency_ms"];
    for (name, part) in [("p50", 50), ("p95", 95), ("p99", 99)] {
        let seen = took[took.len() * part / 100];
        let told = told[name].as_f64().unwrap();
        figure(format_args!("{name}: visitors {seen:.1} ms, edge {told:.1} ms"));
        assert!((told / seen - 1.0).abs() < 0.05, "{name}: {told} and {seen}: {metrics}");
    }
}

/// Requests on a warm path, and the calls of store and state that they cost.
async fn calls_for(edge: &TestEdge, requests: usize) -> (u64, u64) {
    let mut wire = edge.visitor().await;
    let calls = async || {
        let store = edge.metric("store_calls_total").await;
        (store, edge.metric("state_calls_total").await)
    };
    for _ in 0..50 {
        wire.get("a", "/").await.assert_ok("hello");
    }
    let before = calls().await;
    for _ in 0..requests {
        wire.get("a", "/").await.assert_ok("hello");
    }
    let after = calls().await;
    (after.0 - before.0, after.1 - before.1)
}

/// Nothing that is due every now and then is due within a test.
fn rarely(settings: &mut uniroute_edge::config::Settings) {
    let hour = Duration::from_secs(3600);
    let durable = &mut settings.durable;
    (durable.log.flush, durable.feed, durable.jobs) = (hour, hour, hour);
}

/// Waits until what the agent's coming has brought about is written.
async fn settled(edge: &TestEdge) {
    let mut last = (u64::MAX, u64::MAX);
    let mut same = 0;
    eventually("nothing is written any more", async || {
        let store = edge.metric("store_calls_total").await;
        let now = (store, edge.metric("state_calls_total").await);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same >= 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_request_asks_neither_store_nor_state() {
    let alone = Alone::with(rarely).await;
    let token = user(&alone.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let _agent = TestAgent::launch(agent(&alone.edge, &token, "one", "a", &upstream.url())).await;
    settled(&alone.edge).await;
    assert_eq!(calls_for(&alone.edge, 2_000).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_request_asks_neither_postgres_nor_redis() {
    let cluster = Cluster::with(1, rarely).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let edge = &cluster.edges[0];
    let _agent = TestAgent::launch(agent(edge, &token, "one", "a", &upstream.url())).await;
    settled(edge).await;
    assert_eq!(calls_for(edge, 2_000).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_edges_count_adds_up() {
    const EACH: usize = 400;
    let cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::start(local).await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let mut sum = Sum::default();
    // The agent moves from one edge to the other and back.
    for round in 0..3 {
        let edge = &cluster.edges[round % 2];
        let agent = TestAgent::launch(agent(edge, &token, "one", "a", &upstream.url())).await;
        sum += visits(edge, EACH).await;
        agent.stop().await.unwrap();
    }
    let path = format!("/tunnels/{}", id(&ann.tunnel("a").await));
    for (number, edge) in cluster.edges.iter().enumerate() {
        let ann = ann.at(edge);
        eventually("both edges' counts are there", async || {
            let stats = ann.get(&format!("{path}/stats")).await;
            (Sum::of(&stats["total"]) == sum).then_some(())
        })
        .await;
        // Totals come over the shared state, and may be there before the minutes are.
        let what = format!("the minutes are there, at edge {number}");
        eventually(&what, async || {
            let metrics = ann.get(&format!("{path}/metrics")).await;
            (Sum::of_points(&metrics) == sum).then_some(())
        })
        .await;
    }
}
