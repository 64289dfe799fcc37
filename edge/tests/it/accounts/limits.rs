//! How much anybody may ask for.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use uniroute_agent::Event;
use uniroute_edge::config::Settings;

use crate::harness::{
    TestAgent, TestEdge,
    cluster::{Alone, agent, connect, figure, id, user},
    eventually, host,
    upstream::{TestUpstream, text},
    within,
};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Requests a second, wherever a test sets a limit.
const RATE: u32 = 10;

/// An edge with a limit somewhere, and Ann's agent with the tunnels `a` and `b`.
struct Limited {
    alone: Alone,
    admin: crate::harness::cluster::Api,
    _agent: TestAgent,
    _upstream: TestUpstream,
}

impl Limited {
    async fn new(plan: Option<Value>, change: impl FnOnce(&mut Settings)) -> Self {
        let alone = Alone::with(change).await;
        let admin = alone.admin().await;
        let name = plan.is_some().then_some("small");
        if let Some(plan) = plan {
            admin.put("/plans/small", plan).await;
        }
        let token = user(&alone.setup().await, "ann@example.com", name).await;
        let upstream = TestUpstream::start(|_| async { text("hello") }).await;
        let mut settings = agent(&alone.edge, &token, "one", "a", &upstream.url());
        settings.tunnels.push(TestAgent::tunnel("b", &upstream.url()));
        let agent = TestAgent::launch(settings).await;
        Self { alone, admin, _agent: agent, _upstream: upstream }
    }
}

/// Sends requests for `name` from `from` until ten in a row are refused; how many were served, and
/// checks what those that were not are told.
async fn served(edge: &TestEdge, from: Ipv4Addr, name: &str, code: &str) -> u32 {
    let mut wire = connect(edge.http(), from).await;
    let (mut served, mut refused) = (0, 0);
    while refused < 10 {
        let answer = wire.get(name, "/").await;
        if answer.status() == 200 {
            (served, refused) = (served + 1, 0);
            continue;
        }
        refused += 1;
        answer.assert_failed(429, code);
        let wait: u32 = answer.head.get("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert!(served < 1_000, "there is no limit");
    }
    served
}

/// What comes in addition, at most.
fn since(began: Instant) -> u32 {
    let tenths = u32::try_from(began.elapsed().as_millis() / 100).unwrap();
    (tenths + 1) * RATE / 10 + 1
}

/// A second's worth at once, and what came since.
fn assert_a_seconds_worth(served: u32, began: Instant) {
    let more = since(began);
    assert!((RATE..=RATE + more).contains(&served), "{served} of {RATE} and {more}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_address() {
    let limit = |settings: &mut Settings| {
        settings.durable.address_requests_per_second = Some(RATE);
    };
    let limited = Limited::new(None, limit).await;
    let edge = &limited.alone.edge;
    for from in [TWO, Ipv4Addr::new(127, 0, 0, 3)] {
        let began = Instant::now();
        assert_a_seconds_worth(served(edge, from, "a", "UR-5030").await, began);
    }
    let mut wire = connect(edge.http(), TWO).await;
    eventually("it is let in again", async || {
        (wire.get("b", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_tunnel_as_its_owner_says_at_once() {
    let limited = Limited::new(None, |_| {}).await;
    let edge = &limited.alone.edge;
    let path = format!("/tunnels/{}", id(&limited.admin.tunnel("a").await));
    let mut wire = edge.visitor().await;
    wire.get("a", "/").await.assert_ok("hello");
    let since = Instant::now();
    limited.admin.patch(&path, json!({ "requests_per_second": RATE })).await;
    eventually("the limit holds", async || {
        (wire.get("a", "/").await.status() == 429).then_some(())
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    let (began, mut passed) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(2) {
        let answer = wire.get("a", "/").await;
        passed += u32::from(answer.status() == 200);
        assert!([None, Some("UR-5031")].contains(&answer.code()));
    }
    assert!((2 * RATE - 3..=2 * RATE + 3).contains(&passed), "{passed} in two seconds");
    assert_eq!(edge.get("b", "/").await.status(), 200, "another tunnel");
    limited.admin.patch(&path, json!({ "requests_per_second": null })).await;
    goes_on(edge).await;
}

/// Waits until there is no limit any more.
async fn goes_on(edge: &TestEdge) {
    let mut wire = edge.visitor().await;
    eventually("there is no limit", async || {
        for _ in 0..5 * RATE {
            if wire.get("a", "/").await.status() != 200 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_user_over_all_his_tunnels_and_versions_of_http() {
    let limited = Limited::new(Some(json!({ "requests_per_second": RATE })), |_| {}).await;
    let edge = &limited.alone.edge;
    let began = Instant::now();
    let first = over_http2(edge, "a").await;
    let second = served(edge, TWO, "b", "UR-5032").await;
    assert_a_seconds_worth(first + second, began);
    // The plan grows, and with it what he may: at once.
    limited.admin.put("/plans/small", json!({ "requests_per_second": null })).await;
    goes_on(edge).await;
}

/// Thirty requests on thirty streams; how many are served.
async fn over_http2(edge: &TestEdge, name: &str) -> u32 {
    let socket = tokio::net::TcpStream::connect(edge.http()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut asked = Vec::new();
    for _ in 0..3 * RATE {
        let request = http::Request::get(format!("http://{}/", host(name))).body(()).unwrap();
        sender = within("a stream", sender.ready()).await.unwrap();
        asked.push(sender.send_request(request, true).unwrap().0);
    }
    let mut served = 0;
    for answer in asked {
        let answer = within("an answer", answer).await.unwrap();
        match answer.status().as_u16() {
            200 => served += 1,
            429 => {
                assert_eq!(answer.headers()["x-uniroute-error"], "UR-5032");
                assert!(answer.headers().contains_key("retry-after"));
            }
            other => panic!("{other}"),
        }
    }
    driving.abort();
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_whole_edge() {
    let limit = |settings: &mut Settings| settings.durable.requests_per_second = Some(RATE);
    let limited = Limited::new(None, limit).await;
    let edge = &limited.alone.edge;
    eventually("the API's own requests are forgotten", async || {
        (edge.get("a", "/").await.status() == 200).then_some(())
    })
    .await;
    let began = Instant::now();
    let (first, second) =
        (served(edge, ONE, "a", "UR-5033").await, served(edge, TWO, "b", "UR-5033").await);
    let most = RATE + since(began);
    assert!(first + second <= most, "{first} + {second} > {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_an_address() {
    let limited = Limited::new(None, |settings| settings.durable.address_connections = 4).await;
    let edge = &limited.alone.edge;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut wire = connect(edge.http(), TWO).await;
        wire.get("a", "/").await.assert_ok("hello");
        open.push(wire);
    }
    let mut fifth = connect(edge.http(), TWO).await;
    let _ = fifth.try_send("GET / HTTP/1.1\r\nhost: a.tunnels.test\r\n\r\n").await;
    let refused = fifth.answer("GET").await;
    assert_eq!((refused.status(), refused.code()), (429, Some("UR-5035")));
    connect(edge.http(), Ipv4Addr::new(127, 0, 0, 3)).await.get("a", "/").await.assert_ok("hello");
    open.pop();
    eventually("there is room again", async || {
        let mut wire = connect(edge.http(), TWO).await;
        let _ = wire.try_send("GET / HTTP/1.1\r\nhost: a.tunnels.test\r\n\r\n").await;
        let answer = wire.try_answer("GET").await?;
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_and_agents_of_a_plan() {
    let alone = Alone::start().await;
    let admin = alone.admin().await;
    admin.put("/plans/small", json!({ "tunnels": 2, "agents": 1 })).await;
    let token = user(&alone.setup().await, "ann@example.com", Some("small")).await;
    let upstream = TestUpstream::saying("hello").await;
    let mut settings = agent(&alone.edge, &token, "one", "a", &upstream.url());
    for name in ["b", "c"] {
        settings.tunnels.push(TestAgent::tunnel(name, &upstream.url()));
    }
    let first = TestAgent::spawn(settings);
    first.readies(2).await;
    let refused = first
        .seen(|event| match event {
            Event::Refused { key, code, .. } => Some((key.clone(), *code)),
            _ => None,
        })
        .await;
    assert_eq!(refused, [("c".to_owned(), 5036)]);

    let second = TestAgent::spawn(agent(&alone.edge, &token, "two", "a", &upstream.url()));
    eventually("the second agent is told", async || {
        let told = |event: &Event| match event {
            Event::Disconnected { reason, .. } => Some(reason.contains("UR-5037")),
            _ => None,
        };
        second.seen(told).await.first().copied().filter(|told| *told)
    })
    .await;
    drop(second);
    // The same agent again is no second one, whatever of the first is still there.
    let again = TestAgent::launch(agent(&alone.edge, &token, "one", "a", &upstream.url())).await;
    alone.edge.get("a", "/").await.assert_ok("hello");
    drop((first, again));
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_of_a_month() {
    const PAGE: usize = 60_000;
    let alone = Alone::start().await;
    let admin = alone.admin().await;
    admin.put("/plans/small", json!({ "transfer_bytes_per_month": 100_000 })).await;
    let token = user(&alone.setup().await, "ann@example.com", Some("small")).await;
    let page = Bytes::from(vec![b'x'; PAGE]);
    let upstream = TestUpstream::start(move |_| {
        let page = page.clone();
        async move { text(page) }
    })
    .await;
    let settings = || agent(&alone.edge, &token, "one", "a", &upstream.url());
    let first = TestAgent::launch(settings()).await;
    for _ in 0..2 {
        let answer = alone.edge.get("a", "/").await;
        assert_eq!((answer.status(), answer.body.len(), answer.whole), (200, PAGE, true));
    }
    let refused = alone.edge.get("a", "/").await;
    refused.assert_failed(429, "UR-5034");
    let wait: u64 = refused.head.get("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * 24 * 3600).contains(&wait), "{wait}");
    // A new session is no new month.
    eventually("what was moved is written down", async || {
        let used = admin.get("/tunnels").await["items"][0]["request_count"].clone();
        (used == 2).then_some(())
    })
    .await;
    first.stop().await.unwrap();
    let _second = TestAgent::launch(settings()).await;
    alone.edge.get("a", "/").await.assert_failed(429, "UR-5034");
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_of_a_user() {
    const RATE: usize = 1_000_000;
    const PAGE: usize = 2_500_000;
    let alone = Alone::start().await;
    let admin = alone.admin().await;
    admin.put("/plans/small", json!({ "bandwidth_bytes_per_second": RATE })).await;
    let token = user(&alone.setup().await, "ann@example.com", Some("small")).await;
    let page = Bytes::from(vec![b'x'; PAGE / 2]);
    let upstream = TestUpstream::start(move |_| {
        let page = page.clone();
        async move { text(page) }
    })
    .await;
    let _agent = TestAgent::launch(agent(&alone.edge, &token, "one", "a", &upstream.url())).await;
    let began = Instant::now();
    let (one, two) = tokio::join!(alone.edge.get("a", "/"), alone.edge.get("a", "/"));
    let took = began.elapsed().as_secs_f64();
    assert!(one.whole && two.whole && one.body.len() + two.body.len() == PAGE);
    let measured = PAGE as f64 / took / RATE as f64;
    figure(format_args!("bandwidth: {measured:.3} of the rate"));
    assert!((0.85..=1.15).contains(&measured), "{measured:.3} of the rate");
}
