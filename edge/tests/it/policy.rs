//! What a tunnel's owner wants done with requests, over the whole path.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::BodyExt as _;
use hyper::{Request, Response, body::Incoming};
use uniroute_agent::{FileSettings, TunnelSettings};
use uniroute_proto::v1;
use uniroute_shared::policy::password;

use crate::harness::{
    TestAgent, TestEdge, host,
    upstream::{Body, TestUpstream, channel, text},
    wire::{Answer, Wire},
    within,
};

/// An edge and an agent whose tunnel `demo` has a policy.
struct Place {
    edge: TestEdge,
    _agent: TestAgent,
    _upstreams: Vec<TestUpstream>,
}

impl Place {
    async fn new(upstream: TestUpstream, policy: v1::HttpPolicy) -> Self {
        Self::with(upstream, policy, |_| {}).await
    }

    async fn with(
        upstream: TestUpstream,
        policy: v1::HttpPolicy,
        change: impl FnOnce(&mut TunnelSettings),
    ) -> Self {
        let edge = TestEdge::start();
        let mut tunnel = TestAgent::tunnel("demo", &upstream.url());
        tunnel.policy = policy;
        change(&mut tunnel);
        let agent = TestAgent::serve(&edge, tunnel).await;
        Self { edge, _agent: agent, _upstreams: vec![upstream] }
    }

    /// A request with these lines behind `Host`.
    async fn ask(&self, line: &str, fields: &str) -> Answer {
        let mut wire = self.edge.visitor().await;
        ask(&mut wire, line, fields, "").await
    }
}

async fn ask(wire: &mut Wire, line: &str, fields: &str, body: &str) -> Answer {
    let host = host("demo");
    wire.send(format!("{line} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n{body}")).await;
    wire.answer(line.split(' ').next().unwrap()).await
}

/// Answers with what it got: target, then fields, one a line.
async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let mut seen = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.push_str(std::str::from_utf8(&body).unwrap());
    text(seen)
}

fn has(answer: &Answer, line: &str) -> bool {
    answer.text().lines().any(|seen| seen == line)
}

fn users(name: &str, secret: &str) -> Option<v1::BasicAuth> {
    let users = vec![v1::BasicUser { name: name.into(), hash: password::hash(secret.as_bytes()) }];
    Some(v1::BasicAuth { users, forward: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_let_in_get_no_further() {
    let upstream = TestUpstream::saying("hello").await;
    let connections = std::sync::Arc::clone(&upstream.connections);
    let policy = v1::HttpPolicy { deny: vec!["127.0.0.0/8".into()], ..Default::default() };
    let place = Place::new(upstream, policy).await;
    place.ask("GET /", "").await.assert_failed(403, "UR-4010");
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 0);

    let policy = v1::HttpPolicy { allow: vec!["127.0.0.1".into()], ..Default::default() };
    let place = Place::new(TestUpstream::saying("hello").await, policy).await;
    place.ask("GET /", "").await.assert_ok("hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_sent_to_https() {
    let policy = v1::HttpPolicy { redirect_https: true, ..Default::default() };
    let place = Place::new(TestUpstream::saying("hello").await, policy).await;
    let mut wire = place.edge.visitor().await;
    let answer = ask(&mut wire, "POST /a?b", "content-length: 3\r\n", "abc").await;
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.head.get("location"), Some(&*format!("https://{}/a?b", host("demo"))));
    // The connection is still good.
    let answer = ask(&mut wire, "GET /.well-known/acme-challenge/x", "", "").await;
    answer.assert_ok("hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_stays_at_the_edge() {
    let policy = v1::HttpPolicy { basic_auth: users("ann", "secret"), ..Default::default() };
    let place = Place::new(TestUpstream::start(mirror).await, policy).await;
    let answer = place.ask("GET /", "").await;
    answer.assert_failed(401, "UR-4011");
    assert!(answer.head.get("www-authenticate").unwrap().starts_with("Basic realm="));
    let wrong = place.ask("GET /", "authorization: Basic YW5uOndyb25n\r\n").await;
    wrong.assert_failed(401, "UR-4011");
    for _ in 0..20 {
        let right = place.ask("GET /", "authorization: Basic YW5uOnNlY3JldA==\r\n").await;
        assert_eq!(right.status(), 200);
        assert!(!right.text().contains("authorization"), "{}", right.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_go_to_their_own_local_servers_and_no_others() {
    let api = TestUpstream::start(mirror).await;
    let api_url = api.url();
    let route = v1::HttpRoute {
        path: "/api".into(),
        strip: true,
        prefix: "/v1".into(),
        ..Default::default()
    };
    let mut policy = v1::HttpPolicy { routes: vec![route], ..Default::default() };
    policy.set_host_mode(v1::HostMode::Rewrite);
    let place = Place::with(TestUpstream::saying("default").await, policy, |tunnel| {
        tunnel.routes = vec![api_url.parse().unwrap()];
    })
    .await;
    place.ask("GET /apix", "").await.assert_ok("default");
    let answer = place.ask("GET /api/users?x=1", "origin: http://demo.tunnels.test\r\n").await;
    let address = api.address;
    for line in [
        "GET /v1/users?x=1",
        &format!("host: {address}"),
        &format!("origin: http://{address}"),
        "x-forwarded-prefix: /api",
        &format!("x-forwarded-host: {}", host("demo")),
    ] {
        assert!(has(&answer, line), "{line} in {}", answer.text());
    }
    for path in ["/api/../x", "/api/%2e%2e/x", "/%61pi", "//api"] {
        place.ask(&format!("GET {path}"), "").await.assert_failed(400, "UR-1120");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_changed_both_ways_and_visitors_cannot_undo_it() {
    let header = |name: &'static str, value: &'static str| v1::Header {
        name: name.into(),
        value: value.into(),
    };
    let policy = v1::HttpPolicy {
        request_headers: Some(v1::HeaderChanges {
            remove: vec!["cookie".into()],
            set: vec![header("X-Env", "dev"), header("X-Forwarded-Proto", "https")],
            add: vec![],
        }),
        response_headers: Some(v1::HeaderChanges {
            remove: vec!["server".into()],
            set: vec![header("X-Frame-Options", "DENY")],
            add: vec![],
        }),
        ..Default::default()
    };
    let upstream = TestUpstream::start(|request| async {
        let mut answer = mirror(request).await;
        answer.headers_mut().insert("server", "secret".parse().unwrap());
        answer
    });
    let place = Place::new(upstream.await, policy).await;
    let forged = "cookie: a=b\r\nx-env: prod\r\nx_env: prod\r\nconnection: x-env\r\n";
    let answer = place.ask("GET /", forged).await;
    assert!(has(&answer, "x-env: dev") && has(&answer, "x-forwarded-proto: https"));
    assert!(!answer.text().contains("prod") && !answer.text().contains("cookie"));
    assert_eq!(
        (answer.head.get("server"), answer.head.get("x-frame-options")),
        (None, Some("DENY"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_the_local_server_lead_back_to_the_tunnel() {
    let upstream = TestUpstream::start(|request: Request<Incoming>| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let mut answer = text("");
        let headers = answer.headers_mut();
        headers.insert("location", format!("http://{host}/next").parse().unwrap());
        headers.insert("set-cookie", "a=b; Domain=127.0.0.1; Path=/".parse().unwrap());
        answer
    });
    let mut policy = v1::HttpPolicy::default();
    policy.set_host_mode(v1::HostMode::Rewrite);
    let place = Place::new(upstream.await, policy).await;
    let answer = place.ask("GET /", "").await;
    assert_eq!(answer.head.get("location"), Some(&*format!("http://{}/next", host("demo"))));
    assert_eq!(answer.head.get("set-cookie"), Some("a=b; Path=/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_long_are_refused_or_cut() {
    let policy = v1::HttpPolicy { max_body: 10, ..Default::default() };
    let place = Place::new(TestUpstream::start(mirror).await, policy).await;
    place.ask("POST /", "content-length: 11\r\n").await.assert_failed(413, "UR-5020");
    let chunked = "transfer-encoding: chunked\r\n";
    let mut wire = place.edge.visitor().await;
    let long =
        ask(&mut wire, "POST /", chunked, "8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n").await;
    long.assert_failed(413, "UR-5020");
    let mut wire = place.edge.visitor().await;
    let short = ask(&mut wire, "POST /", chunked, "8\r\n12345678\r\n0\r\n\r\n").await;
    assert_eq!(short.status(), 200);
    assert!(has(&short, "12345678"));
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_come_in_signed_only() {
    let webhook = v1::Webhook {
        kind: v1::WebhookKind::Github.into(),
        secrets: vec!["It's a Secret to Everybody".into()],
        max_body: 100,
        ..Default::default()
    };
    let policy = v1::HttpPolicy { webhook: Some(webhook), ..Default::default() };
    let place = Place::new(TestUpstream::start(mirror).await, policy).await;
    let signature = "x-hub-signature-256: \
        sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17\r\n";
    let mut wire = place.edge.visitor().await;
    let fields = format!("{signature}content-length: 13\r\n");
    let good = ask(&mut wire, "POST /", &fields, "Hello, World!").await;
    assert!(good.status() == 200 && has(&good, "Hello, World!"), "{}", good.text());
    let chunked = format!("{signature}transfer-encoding: chunked\r\n");
    let good = ask(&mut wire, "POST /", &chunked, "5\r\nHello\r\n8\r\n, World!\r\n0\r\n\r\n").await;
    assert!(good.status() == 200 && has(&good, "Hello, World!"), "{}", good.text());
    let bad = ask(&mut wire, "POST /", &fields, "Hello, world!").await;
    bad.assert_failed(403, "UR-4013");
    place.ask("GET /", "").await.assert_failed(403, "UR-4013");
    let long = format!("{signature}content-length: 101\r\n");
    place.ask("POST /", &long).await.assert_failed(413, "UR-5020");
    // Who waits to be told to send is told.
    let mut wire = place.edge.visitor().await;
    let expects = format!("POST / HTTP/1.1\r\nhost: {}\r\nexpect: 100-continue\r\n", host("demo"));
    wire.send(format!("{expects}{fields}\r\n")).await;
    assert_eq!(wire.head().await.status(), 100);
    wire.send("Hello, World!").await;
    let good = wire.answer("POST").await;
    assert!(good.status() == 200 && !good.text().contains("expect"), "{}", good.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_piece_by_piece() {
    let (sender, answer) = channel();
    let answer = std::sync::Arc::new(parking_lot::Mutex::new(Some(answer)));
    let upstream = TestUpstream::start(move |_| {
        let mut answer = answer.lock().take().unwrap_or_else(|| text("again"));
        answer.headers_mut().insert("content-type", "text/html".parse().unwrap());
        async move { answer }
    });
    let policy = v1::HttpPolicy { compression: true, ..Default::default() };
    let place = Place::new(upstream.await, policy).await;
    let mut wire = place.edge.visitor().await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {}\r\naccept-encoding: gzip\r\n\r\n", host("demo")))
        .await;
    let mut sender = sender;
    sender.send_data(Bytes::from_static(b"first ")).await.unwrap();
    let head = wire.head().await;
    assert_eq!(head.get("content-encoding"), Some("gzip"));
    assert_eq!((head.get("vary"), head.get("content-length")), (Some("Accept-Encoding"), None));
    let mut body = wire.body(&head);
    let first = within("the first piece", body.next()).await.unwrap().unwrap();
    let mut out = [0; 6];
    GzDecoder::new(&first[..]).read_exact(&mut out).unwrap();
    assert_eq!(&out, b"first ");
    sender.send_data(Bytes::from_static(b"second")).await.unwrap();
    drop(sender);
    let mut whole = first.to_vec();
    while let Some(piece) = body.next().await.unwrap() {
        whole.extend_from_slice(&piece);
    }
    let mut out = String::new();
    GzDecoder::new(&whole[..]).read_to_string(&mut out).unwrap();
    assert_eq!(out, "first second");
    place.ask("GET /", "").await.assert_ok("again");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_end_when_they_take_too_long() {
    let policy = v1::HttpPolicy { total_timeout_ms: 300, ..Default::default() };
    let upstream = TestUpstream::start(|request: Request<Incoming>| async move {
        if request.uri() == "/never" {
            std::future::pending::<()>().await;
        }
        let (sender, mut answer) = channel();
        let kind = if request.uri() == "/events" { "text/event-stream" } else { "text/plain" };
        answer.headers_mut().insert("content-type", kind.parse().unwrap());
        tokio::spawn(async move {
            let mut sender = sender;
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(60)).await;
                if sender.send_data(Bytes::from_static(b"x")).await.is_err() {
                    return;
                }
            }
        });
        answer
    });
    let place = Place::new(upstream.await, policy).await;
    place.ask("GET /never", "").await.assert_failed(504, "UR-5022");
    let cut = place.ask("GET /slow", "").await;
    assert!(!cut.whole && cut.status() == 200);
    place.ask("GET /events", "").await.assert_ok("xxxxxxxxxx");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_falls_silent_ends() {
    let policy = v1::HttpPolicy { idle_timeout_ms: 200, ..Default::default() };
    let upstream = TestUpstream::start(|_| async {
        let (sender, answer) = channel();
        tokio::spawn(async move {
            let mut sender = sender;
            let _ = sender.send_data(Bytes::from_static(b"x")).await;
            std::future::pending::<()>().await;
        });
        answer
    });
    let place = Place::new(upstream.await, policy).await;
    let cut = place.ask("GET /", "").await;
    assert!(!cut.whole && cut.text() == "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_page_says_that_the_tunnel_does_not_work() {
    let policy =
        v1::HttpPolicy { error_page: "<h1>Back soon ({{code}})".into(), ..Default::default() };
    let edge = TestEdge::start();
    let mut tunnel = TestAgent::tunnel("demo", "127.0.0.1:1");
    tunnel.policy = policy;
    let agent = TestAgent::serve(&edge, tunnel).await;
    let mut wire = edge.visitor().await;
    let answer = ask(&mut wire, "GET /", "accept: text/html\r\n", "").await;
    assert_eq!((answer.status(), answer.text()), (502, "<h1>Back soon (UR-3001)"));
    assert_eq!(answer.code(), Some("UR-3001"));
    ask(&mut wire, "GET /", "", "").await.assert_failed(502, "UR-3001");
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_local_server() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "<p>home").unwrap();
    let long: String = (0..100_000).map(|n| format!("{n},")).collect();
    std::fs::write(folder.path().join("long.txt"), &long).unwrap();
    let edge = TestEdge::start();
    let mut tunnel = TestAgent::tunnel("demo", &format!("file:{}", folder.path().display()));
    tunnel.files = FileSettings { fallback: Some("index.html".into()), dotfiles: false };
    let _agent = TestAgent::serve(&edge, tunnel).await;
    edge.get("demo", "/").await.assert_ok("<p>home");
    edge.get("demo", "/app/route").await.assert_ok("<p>home");
    let whole = edge.get("demo", "/long.txt").await;
    assert_eq!((whole.status(), whole.whole, whole.body.len()), (200, true, long.len()));
    assert!(whole.text() == long);
    let mut wire = edge.visitor().await;
    let part = ask(&mut wire, "GET /long.txt", "range: bytes=0-3\r\n", "").await;
    assert_eq!((part.status(), part.text()), (206, "0,1,"));
    let head = ask(&mut wire, "HEAD /long.txt", "", "").await;
    assert_eq!(head.head.get("content-length"), Some(&*long.len().to_string()));
    let etag = head.head.get("etag").unwrap();
    let known = ask(&mut wire, "GET /long.txt", &format!("if-none-match: {etag}\r\n"), "").await;
    assert_eq!((known.status(), known.text()), (304, ""));
    let post = ask(&mut wire, "POST /", "content-length: 3\r\n", "abc").await;
    assert_eq!(post.status(), 405);
    let outside = edge.get("demo", "/%2e%2e/etc/passwd").await;
    assert_eq!(outside.status(), 404);
}

/// A request that waits for an agent was judged before, by what the agent that left wanted.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_agent_was_let_in() {
    let edge = TestEdge::with(|settings| settings.hold = Duration::from_secs(20));
    let upstream = TestUpstream::saying("hello").await;
    let tunnel = || {
        let mut tunnel = TestAgent::tunnel("demo", &upstream.url());
        tunnel.policy = v1::HttpPolicy { max_body: 10, ..Default::default() };
        tunnel
    };
    let mut settings = TestAgent::settings(edge.http(), vec![tunnel()]);
    settings.agent_id = crate::harness::agent_id("holder");
    TestAgent::launch(settings).await.stop().await.unwrap();
    let mut wire = edge.visitor().await;
    ask(&mut wire, "POST /", "content-length: 11\r\n", "").await.assert_failed(413, "UR-5020");
    let mut wire = edge.visitor().await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    crate::harness::eventually("it waits", async || {
        (edge.metric("held_total").await > 0).then_some(())
    })
    .await;
    let mut settings = TestAgent::settings(edge.http(), vec![tunnel()]);
    settings.agent_id = crate::harness::agent_id("holder");
    let _agent = TestAgent::launch(settings).await;
    wire.answer("GET").await.assert_ok("hello");
}

/// A policy that the edge can't follow refuses the tunnel, with the key that is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_followed_is_no_tunnel() {
    use crate::harness::hand::Hand;
    use uniroute_proto::v1::control_frame::Frame;
    let edge = TestEdge::start();
    let mut hand = Hand::agent(edge.http()).await;
    let mut init = hand.init("demo").await;
    init.tunnels[0].http =
        Some(v1::HttpPolicy { deny: vec!["nowhere".into()], ..Default::default() });
    hand.send(Frame::Init(init)).await;
    let Frame::TunnelRefused(refused) = hand.next().await else { panic!("not refused") };
    assert_eq!(refused.code, 1121);
    assert!(refused.message.contains("deny[0]"), "{}", refused.message);
}
