//! Which request goes where, and what of it arrives.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Incoming};
use tokio::sync::mpsc;

use crate::harness::{
    DOMAIN, TestAgent, TestEdge, eventually,
    hand::{HandEdge, ask},
    host,
    upstream::{Body, RawUpstream, TestUpstream, text},
    wire::{Answer, Wire},
    within,
};
use uniroute_proto::v1::{self, UpstreamErrorKind, stream_reply::Reply};

/// An edge, an agent and a local server that tells what requests it gets, for the tunnel `demo`.
struct Recorded {
    edge: TestEdge,
    requests: mpsc::Receiver<Answer>,
    _agent: TestAgent,
    _upstream: RawUpstream,
}

impl Recorded {
    async fn start() -> Self {
        Self::over(TestEdge::start()).await
    }

    async fn over(edge: TestEdge) -> Self {
        let (sender, requests) = mpsc::channel(64);
        let upstream = RawUpstream::start(move |_, mut wire| {
            let sender = sender.clone();
            async move {
                while let Some(request) = wire.request().await {
                    sender.send(request).await.unwrap();
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        })
        .await;
        let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
        Self { edge, requests, _agent: agent, _upstream: upstream }
    }

    /// Sends `request` and returns the answer, and what the local server saw.
    async fn pass(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let mut visitor = self.edge.visitor().await;
        visitor.send(request).await;
        visitor.answer("GET").await.assert_ok("ok");
        within("the request", self.requests.recv()).await.unwrap()
    }
}

/// The edge and the tunnel `demo` to a server that answers by `answer`.
async fn serving<F, A>(answer: F) -> (TestEdge, TestAgent, TestUpstream)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let upstream = TestUpstream::start(answer).await;
    let edge = TestEdge::start();
    let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    (edge, agent, upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_leads_to_its_own_server() {
    let (one, two) = (TestUpstream::saying("one").await, TestUpstream::saying("two").await);
    let edge = TestEdge::start();
    let tunnels =
        vec![TestAgent::tunnel("first", &one.url()), TestAgent::tunnel("second", &two.url())];
    let _agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    edge.get("first", "/").await.assert_ok("one");
    edge.get("second", "/").await.assert_ok("two");
    // Case, a port and a final dot do not matter.
    let mut visitor = edge.visitor().await;
    for name in ["FIRST.Tunnels.TEST", "first.tunnels.test:8080", "first.tunnels.test."] {
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n")).await;
        visitor.answer("GET").await.assert_ok("one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_is_404_as_the_visitor_likes_to_read_it() {
    let edge = TestEdge::start();
    let answer = edge.get("nobody", "/").await;
    answer.assert_failed(404, "UR-1001");
    assert_eq!(answer.head.get("content-type"), Some("application/problem+json"));
    let mut visitor = edge.visitor().await;
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for name in ["nobody", "a.b", "no_name", "xn--a"] {
        let host = host(name);
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\naccept: {browser}\r\n\r\n")).await;
        let answer = visitor.answer("GET").await;
        answer.assert_failed(404, "UR-1001");
        assert_eq!(answer.head.get("content-type"), Some("text/html; charset=utf-8"));
        assert!(answer.text().starts_with("<!doctype html>") && answer.text().contains("UR-1001"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edges_own_host_has_its_own_pages_only() {
    let edge = TestEdge::with(|settings| settings.any_host_is_own = false);
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
    visitor.answer("GET").await.assert_failed(404, "UR-1003");
    visitor.send("GET / HTTP/1.1\r\nhost: another.test\r\n\r\n").await;
    visitor.answer("GET").await.assert_failed(404, "UR-1001");
    // An agent may know the edge by its address only.
    visitor.send("GET / HTTP/1.1\r\nhost: 127.0.0.1:80\r\n\r\n").await;
    visitor.answer("GET").await.assert_failed(404, "UR-1003");
    // A tunnel's host has no pages of the edge.
    visitor.get("nobody", "/tunnel").await.assert_failed(404, "UR-1001");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_without_its_agent_is_503_and_says_when_to_come_back() {
    let (edge, agent, _upstream) = serving(|_| async { text("here") }).await;
    edge.get("demo", "/").await.assert_ok("here");
    drop(agent);
    let answer = eventually("the agent's end is noticed", async || {
        let answer = edge.get("demo", "/").await;
        (answer.code() == Some("UR-2001")).then_some(answer)
    })
    .await;
    answer.assert_failed(503, "UR-2001");
    assert_eq!(answer.head.get("retry-after"), Some("5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_its_agent_closed_is_unknown() {
    let (edge, agent, _upstream) = serving(|_| async { text("here") }).await;
    agent.stop().await.unwrap();
    edge.get("demo", "/").await.assert_failed(404, "UR-1001");
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_form_is_routed_and_passed_on_as_a_path() {
    let mut way = Recorded::start().await;
    let request = "GET http://demo.tunnels.test/a?b HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n";
    let seen = way.pass(request).await;
    assert_eq!(seen.head.first, "GET /a?b HTTP/1.1");
    assert_eq!(seen.head.get("host"), Some("demo.tunnels.test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served() {
    let (edge, _agent, _upstream) = serving(|_| async {
        let (sender, response) = crate::harness::upstream::channel();
        tokio::spawn(async move {
            let mut sender = sender;
            sender.send_data("streamed".into()).await.unwrap();
        });
        response
    })
    .await;
    let mut visitor = edge.visitor().await;
    visitor.send("GET / HTTP/1.0\r\nhost: demo.tunnels.test\r\n\r\n").await;
    let answer = visitor.answer("GET").await;
    answer.assert_ok("streamed");
    // A client of that age knows no chunks: the body goes to the connection's end.
    assert_eq!(
        (answer.head.get("transfer-encoding"), answer.head.get("content-length")),
        (None, None)
    );
    let mut visitor = edge.visitor().await;
    visitor.send("GET / HTTP/1.0\r\n\r\n").await;
    visitor.answer("GET").await.assert_failed(400, "UR-1002");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_have_none_and_keep_the_connection() {
    let (edge, _agent, _upstream) = serving(|request| async move {
        let mut response = Response::new(Empty::new().boxed());
        let status = request.uri().path()[1..].parse::<u16>().unwrap();
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("etag", HeaderValue::from_static("\"v1\""));
        if request.method() == "HEAD" {
            response.headers_mut().insert("content-length", HeaderValue::from_static("12345"));
        }
        response
    })
    .await;
    let mut visitor = edge.visitor().await;
    for (method, status, length) in [
        ("HEAD", 200, Some("12345")),
        ("GET", 204, None),
        ("GET", 304, None),
        ("HEAD", 404, Some("12345")),
        ("GET", 200, Some("0")),
        ("POST", 204, None),
    ] {
        visitor
            .send(format!(
                "{method} /{status} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\r\n",
                host("demo")
            ))
            .await;
        let answer = visitor.answer(method).await;
        assert_eq!((answer.status(), answer.code()), (status, None));
        assert_eq!(answer.head.get("content-length"), length, "{method} {status}");
        assert_eq!(answer.head.get("transfer-encoding"), None, "{method} {status}");
        assert_eq!(answer.head.get("etag"), Some("\"v1\""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lives_on_after_errors() {
    let (edge, _agent, upstream) = serving(|_| async { text("fine") }).await;
    let mut visitor = edge.visitor().await;
    visitor.get("nobody", "/").await.assert_failed(404, "UR-1001");
    visitor.get("demo", "/").await.assert_ok("fine");
    visitor.send(format!("TRACE / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    visitor.answer("TRACE").await.assert_failed(405, "UR-1004");
    drop(upstream);
    visitor.get("demo", "/").await.assert_failed(502, "UR-3001");
    // What the edge refuses with its body unread does not poison the next request either.
    let body = "GET /hidden HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n";
    let length = body.len();
    visitor
        .send(format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n{body}",
            host("nobody")
        ))
        .await;
    visitor.answer("POST").await.assert_failed(404, "UR-1001");
    visitor.get("nobody", "/").await.assert_failed(404, "UR-1001");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_fields_keep_their_order_both_ways() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        let request = wire.request().await.unwrap();
        assert_eq!(request.head.all("x-many"), ["1", "2", "3"]);
        assert_eq!(request.head.all("cookie"), ["a=1", "b=2"]);
        wire.send(
            "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nx-between: 1\r\nset-cookie: b=2\r\n\
             Set-Cookie: c=3; Path=/\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(
            "GET / HTTP/1.1\r\nx-many: 1\r\ncookie: a=1\r\nhost: demo.tunnels.test\r\nX-Many: 2\r\n\
             x-many: 3\r\ncookie: b=2\r\n\r\n",
        )
        .await;
    let answer = visitor.answer("GET").await;
    assert_eq!(answer.head.all("set-cookie"), ["a=1", "b=2", "c=3; Path=/"]);
    assert_eq!(answer.head.get("x-between"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn path_and_query_arrive_byte_for_byte() {
    let mut way = Recorded::start().await;
    for target in [
        "/a%2Fb/../c//d;p=1/.?q=%20&x=a+b&&=&y",
        "/%E2%82%AC%00%zz?%",
        "/?",
        "//double//",
        "/a?b?c=/d",
        "/~!$&'()*+,;=:@",
        "/caf\u{e9}?\u{20ac}",
    ] {
        let seen =
            way.pass(format!("GET {target} HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        assert_eq!(seen.head.first, format!("GET {target} HTTP/1.1"));
    }
    // OPTIONS asks about the server as a whole.
    let seen = way.pass(format!("OPTIONS * HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    assert_eq!(seen.head.first, "OPTIONS * HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_arrive_as_they_are_but_for_connect_and_trace() {
    let mut way = Recorded::start().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "x-Own.1"] {
        let seen = way.pass(format!("{method} / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        assert_eq!(seen.head.first, format!("{method} / HTTP/1.1"));
    }
    for request in [
        "TRACE / HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n",
        "CONNECT demo.tunnels.test:80 HTTP/1.1\r\nhost: demo.tunnels.test:80\r\n\r\n",
    ] {
        let mut visitor = way.edge.visitor().await;
        visitor.send(request).await;
        let answer = visitor.answer("GET").await;
        answer.assert_failed(405, "UR-1004");
        assert!(answer.head.get("allow").unwrap().contains("PATCH"));
    }
    assert!(way.requests.try_recv().is_err());
}

/// A browser's `Expect: 100-continue` is answered by the edge.
#[tokio::test(flavor = "multi_thread")]
async fn expect_continue_is_for_the_local_server_to_decide() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        let head = wire.head().await;
        assert_eq!(head.get("expect"), Some("100-continue"));
        wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = wire.body(&head).collect(head).await;
        assert_eq!(body.text(), "body");
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "POST / HTTP/1.1\r\nhost: {}\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
            host("demo")
        ))
        .await;
    assert_eq!(visitor.head().await.status(), 100);
    visitor.send("body").await;
    visitor.answer("POST").await.assert_ok("ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn t02_a_request_names_one_host_or_gets_nowhere() {
    let (edge, _agent, _upstream) = serving(|_| async { text("demo") }).await;
    for (what, head) in [
        ("none", "GET / HTTP/1.1\r\n"),
        ("empty", "GET / HTTP/1.1\r\nhost:\r\n"),
        ("two", "GET / HTTP/1.1\r\nhost: demo.tunnels.test\r\nhost: other.tunnels.test\r\n"),
        (
            "twice the same",
            "GET / HTTP/1.1\r\nhost: demo.tunnels.test\r\nhost: demo.tunnels.test\r\n",
        ),
        ("a list", "GET / HTTP/1.1\r\nhost: demo.tunnels.test, other.tunnels.test\r\n"),
        ("a user", "GET / HTTP/1.1\r\nhost: demo@demo.tunnels.test\r\n"),
        ("a path", "GET / HTTP/1.1\r\nhost: demo.tunnels.test/other\r\n"),
        ("a bad port", "GET / HTTP/1.1\r\nhost: demo.tunnels.test:x\r\n"),
        (
            "another than the URL",
            "GET http://other.tunnels.test/ HTTP/1.1\r\nhost: demo.tunnels.test\r\n",
        ),
        (
            "a user in the URL",
            "GET http://u@demo.tunnels.test/ HTTP/1.1\r\nhost: demo.tunnels.test\r\n",
        ),
    ] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("{head}\r\n")).await;
        let answer = visitor.answer("GET").await;
        assert_eq!((answer.status(), answer.code()), (400, Some("UR-1002")), "{what}");
    }
}

/// Every field that says who a visitor is, or that only we write.
const FORGED: &str = "forwarded: for=6.6.6.6\r\nx-forwarded-for: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n\
    x_forwarded_for: 6.6.6.6\r\nx-forwarded_for: 6.6.6.6\r\nx-forwarded-proto: https\r\n\
    x_forwarded_proto: https\r\nx-forwarded-host: evil.test\r\nx_forwarded_host: evil.test\r\n\
    x-real-ip: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\nx-uniroute-request-id: 66666666\r\n\
    x-uniroute-error: UR-6666\r\nx-uniroute-hop: 1\r\nx_uniroute_hop: 1\r\n\
    proxy-authorization: Basic 666\r\nte: trailers\r\nkeep-alive: 666\r\nproxy-connection: close\r\n\
    connection: x-forwarded-for, x-forwarded-host, host, cookie, authorization\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn t03_no_visitor_can_forge_who_they_are() {
    let mut way = Recorded::start().await;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\ncookie: mine=1\r\nauthorization: Basic mine\r\n{FORGED}\r\n",
        host("demo")
    );
    let seen = way.pass(request).await.head;
    assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.get("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.get("x-forwarded-host"), Some("demo.tunnels.test"));
    assert_eq!(seen.get("cookie"), Some("mine=1"));
    assert_eq!(seen.get("authorization"), Some("Basic mine"));
    let forged = |(name, value): &&(String, String)| {
        value.contains('6')
            || value.contains("evil")
            || name.contains('_')
            || name.contains("uniroute")
    };
    let left: Vec<_> = seen.fields.iter().filter(forged).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t03_no_local_server_can_forge_our_errors() {
    let (edge, _agent, _upstream) = serving(|_| async {
        let mut response = text("mine");
        for name in
            ["x-uniroute-error", "x-uniroute-request-id", "keep-alive", "proxy-authenticate"]
        {
            response.headers_mut().insert(name, HeaderValue::from_static("forged"));
        }
        response
    })
    .await;
    let answer = edge.get("demo", "/").await;
    answer.assert_ok("mine");
    assert!(!answer.head.fields.iter().any(|(_, value)| value == "forged"), "{:?}", answer.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn t04_heads_have_a_limit() {
    let (edge, _agent, _upstream) = serving(|_| async { text("fine") }).await;
    let long = format!("x-long: {}\r\n", "a".repeat(100_000));
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    for fields in [long, many] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n", host("demo"))).await;
        // It may be refused before it is out.
        let _ = visitor.try_send(format!("{fields}\r\n")).await;
        // By hyper while it comes in, or by the edge once it is whole.
        let answer = visitor.answer("GET").await;
        assert_eq!(answer.status(), 431);
        assert!(matches!(answer.code(), None | Some("UR-5002")), "{answer:?}");
    }
    // What is just below passes.
    let mut visitor = edge.visitor().await;
    let fields: String = (0..90).map(|n| format!("x-{n}: {}\r\n", "b".repeat(500))).collect();
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n{fields}\r\n", host("demo"))).await;
    visitor.answer("GET").await.assert_ok("fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn t04_a_head_that_does_not_end_is_given_up() {
    let (edge, _agent, _upstream) = serving(|_| async { text("fine") }).await;
    let began = tokio::time::Instant::now();
    let mut slow = edge.visitor().await;
    slow.send("GET / HTTP/1.1\r\nhost: demo.tunnels.test\r\nx-slow: ").await;
    edge.get("demo", "/").await.assert_ok("fine");
    slow.rest().await;
    assert!(began.elapsed().as_secs() < 15, "closed after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn t22_operators_pages_are_not_on_the_public_door() {
    let (edge, _agent, _upstream) =
        serving(|request| async move { text(request.uri().path().to_owned()) }).await;
    for path in ["/metrics", "/healthz", "/readyz", "/debug/status", "/debug/pprof", "/admin"] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
        visitor.answer("GET").await.assert_failed(404, "UR-1003");
        edge.get("demo", path).await.assert_ok(path);
    }
    for path in ["/healthz", "/readyz", "/metrics", "/debug/status"] {
        assert_eq!(edge.ask_admin(path).await.status(), 200, "{path}");
    }
    // And no way from the operators' door to the tunnels.
    let mut operator = Wire::connect(edge.admin()).await;
    assert_eq!(operator.get("demo", "/").await.status(), 404);
}

/// What an edge may say of a request's target.
fn open(target: &'static str, authority: &'static str) -> v1::HttpOpen {
    v1::HttpOpen {
        method: "GET".into(),
        target: target.into(),
        authority: authority.into(),
        scheme: "http".into(),
        version: v1::HttpVersion::HttpVersion11.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t23_an_edge_names_a_tunnel_and_never_a_target() {
    let (mine, other) = (TestUpstream::saying("mine").await, TestUpstream::saying("other").await);
    let other = Arc::new(other);
    let edge = HandEdge::bind().await;
    let tunnel = TestAgent::tunnel("demo", &mine.url());
    let _agent = TestAgent::spawn(edge.agent_settings(tunnel));
    let hand = edge.accept_ready().await;
    let failed = |reply: v1::StreamReply| match reply.reply {
        Some(Reply::Error(error)) => error.kind(),
        other => panic!("{other:?}"),
    };

    let forged = ask(&hand, &[66; 16], open("/", "demo.test")).await;
    assert_eq!(failed(forged), UpstreamErrorKind::UnknownTunnel);
    let forged = ask(&hand, b"", open("/", "demo.test")).await;
    assert_eq!(failed(forged), UpstreamErrorKind::UnknownTunnel);

    let url: &'static str = format!("{}/", other.url()).leak();
    let authority: &'static str = other.address.to_string().leak();
    for target in [url, authority, "", "path", "/a b", "/\r\nhost: x", "/\0"] {
        let forged = ask(&hand, &[0; 16], open(target, "demo.test")).await;
        assert_eq!(failed(forged), UpstreamErrorKind::BadRequest, "{target:?}");
    }
    // The authority is a header field, not a place to go.
    let answered = ask(&hand, &[0; 16], open("/", authority)).await;
    assert!(matches!(answered.reply, Some(Reply::Head(head)) if head.status == 200));
    assert_eq!(other.connections(), 0);
    assert_eq!(mine.connections(), 1);
}

/// T10 at the agent: what an edge sends is checked again before it becomes HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn t10_an_agent_lets_no_forged_head_through() {
    let mine = TestUpstream::saying("mine").await;
    let edge = HandEdge::bind().await;
    let tunnel = TestAgent::tunnel("demo", &mine.url());
    let _agent = TestAgent::spawn(edge.agent_settings(tunnel));
    let hand = edge.accept_ready().await;
    let field = |name: &'static [u8], value: &'static [u8]| v1::Header {
        name: name.into(),
        value: value.into(),
    };
    let plain = || open("/", "demo.test");
    let forged = [
        v1::HttpOpen { headers: vec![field(b"x", b"a\r\nhost: b")], ..plain() },
        v1::HttpOpen { headers: vec![field(b"x\r\ny", b"a")], ..plain() },
        v1::HttpOpen { headers: vec![field(b"x", b"a\0b")], ..plain() },
        v1::HttpOpen { headers: vec![field(b"", b"a")], ..plain() },
        v1::HttpOpen {
            headers: vec![field(b"content-length", b"1"), field(b"content-length", b"2")],
            ..plain()
        },
        v1::HttpOpen { headers: vec![field(b"content-length", b"+1")], ..plain() },
        v1::HttpOpen { method: "GET / HTTP/1.1\r\n".into(), ..plain() },
        v1::HttpOpen { method: "".into(), ..plain() },
        v1::HttpOpen { authority: "a\r\nb: c".into(), ..plain() },
        v1::HttpOpen { upgrade: "websocket\r\nx: y".into(), ..plain() },
        v1::HttpOpen { headers: vec![field(b"x", b"y"); 300], ..plain() },
    ];
    for http in forged {
        let what = format!("{http:?}");
        let reply = ask(&hand, &[0; 16], http).await;
        let Some(Reply::Error(error)) = reply.reply else { panic!("{what}: {reply:?}") };
        assert_eq!(error.kind(), UpstreamErrorKind::BadRequest, "{what}");
    }
    assert_eq!(mine.connections(), 0);
}

/// T03: only a trusted proxy's word counts, and only what it has added.
#[tokio::test(flavor = "multi_thread")]
async fn t03_a_trusted_proxy_says_where_a_request_came_from() {
    let edge = TestEdge::with(|settings| {
        settings.trusted_proxies = "127.0.0.0/8, 10.0.0.0/8".parse().unwrap();
    });
    let mut way = Recorded::over(edge).await;
    let mut visitor = way.edge.visitor().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nx-forwarded-for: 6.6.6.6, 203.0.113.7, 10.0.0.1\r\n\
             x-forwarded-proto: https\r\nx-forwarded-host: shop.example\r\n\r\n",
            host("demo")
        ))
        .await;
    visitor.answer("GET").await.assert_ok("ok");
    let seen = within("the request", way.requests.recv()).await.unwrap().head;
    assert_eq!(seen.get("x-forwarded-for"), Some("203.0.113.7, 10.0.0.1, 127.0.0.1"));
    assert_eq!(seen.get("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.get("x-forwarded-host"), Some("shop.example"));
    assert!(
        seen.get("forwarded").unwrap().starts_with("for=203.0.113.7;host=shop.example;proto=https")
    );
}
