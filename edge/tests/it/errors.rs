//! What is wrong with the local server, told apart: each way to fail has its code.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use uniroute_agent::upstream::Trust;

use crate::harness::{
    TestAgent, TestEdge, eventually,
    upstream::{RawUpstream, TestUpstream, on_unix_socket, reset, text},
    wire::Answer,
};

/// One GET through a tunnel to `upstream`.
async fn answer_of(upstream: &str) -> Answer {
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", upstream).await;
    edge.get("demo", "/").await
}

/// A port of 127.0.0.1 where nothing listens: it is bound, and never listened on.
fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_and_comes_up() {
    let (socket, address) = closed_port();
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &address.to_string()).await;
    let answer = edge.get("demo", "/").await;
    answer.assert_failed(502, "UR-3001");
    assert!(answer.text().contains(&address.to_string()), "{}", answer.text());
    // Whatever the request brings with it.
    let mut visitor = edge.visitor().await;
    for rest in [
        "content-length: 4\r\n\r\nbody",
        "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ] {
        visitor.send(format!("GET / HTTP/1.1\r\nhost: demo.tunnels.test\r\n{rest}")).await;
        visitor.answer("GET").await.assert_failed(502, "UR-3001");
    }
    // The edge is told what is wrong, and that it is over.
    let health = async || edge.status().await["tunnels"][0]["unhealthy"].clone();
    eventually("the fault is known", async || health().await.is_string().then_some(())).await;
    drop(socket);
    let _upstream = TestUpstream::on(address, None, |_| async { text("up") }).await;
    edge.get("demo", "/").await.assert_ok("up");
    eventually("the fault is over", async || health().await.is_null().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_in_time() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        wire.rest().await;
    })
    .await;
    let edge = TestEdge::start();
    let mut tunnel = TestAgent::tunnel("demo", &upstream.url());
    tunnel.response_timeout = Some(Duration::from_millis(300));
    let _agent = TestAgent::serve(&edge, tunnel).await;
    let answer = edge.get("demo", "/").await;
    // The agent and the edge both count; whoever is first says it.
    assert_eq!(answer.status(), 504);
    assert!(matches!(answer.code(), Some("UR-3003" | "UR-2005")), "{answer:?}");
    // With a body only the edge can count, from the end of the request.
    let mut visitor = edge.visitor().await;
    visitor
        .send("POST / HTTP/1.1\r\nhost: demo.tunnels.test\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    let answer = visitor.answer("POST").await;
    assert_eq!(answer.status(), 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_up() {
    let closing = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
    })
    .await;
    answer_of(&closing.url()).await.assert_failed(502, "UR-3004");
    let resetting = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        reset(&wire.socket);
    })
    .await;
    answer_of(&resetting.url()).await.assert_failed(502, "UR-3004");
    let halfway = RawUpstream::saying("HTTP/1.1 200 OK\r\ncontent-le").await;
    answer_of(&halfway.url()).await.assert_failed(502, "UR-3004");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_no_http() {
    for bytes in ["SSH-2.0-OpenSSH_9.9\r\n", "HTTP/1.1 abc\r\n\r\n", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0"]
    {
        let upstream = RawUpstream::saying(bytes).await;
        answer_of(&upstream.url()).await.assert_failed(502, "UR-3005");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_name_is_unknown() {
    answer_of("http://no-such-host.invalid:80").await.assert_failed(502, "UR-3007");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_connections() {
    // A listener whose queue is full: the kernel drops what comes next.
    let (socket, address) = closed_port();
    socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(tokio::spawn(tokio::net::TcpStream::connect(address)));
    }
    let edge = TestEdge::start();
    let mut tunnel = TestAgent::tunnel("demo", &address.to_string());
    tunnel.connect_timeout = Duration::from_millis(300);
    let _agent = TestAgent::serve(&edge, tunnel).await;
    eventually("the queue is full", async || {
        let answer = edge.get("demo", "/").await;
        (answer.code() == Some("UR-3002")).then_some(())
    })
    .await;
}

/// A certificate of its own authority for `localhost`, and that authority as PEM.
fn certificate() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_servers_are_trusted_by_their_authority_only() {
    let (tls, pem) = certificate();
    let any = ([127, 0, 0, 1], 0).into();
    let upstream = TestUpstream::on(any, Some(tls), |_| async { text("secret") }).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let url = format!("https://localhost:{}", upstream.address.port());
    let edge = TestEdge::start();
    let tunnel = |name: &str, trust| {
        let mut tunnel = TestAgent::tunnel(name, &url);
        tunnel.trust = trust;
        tunnel
    };
    let by_address = TestAgent::tunnel("address", &format!("https://{}", upstream.address));
    let tunnels = vec![
        tunnel("known", Trust::CaFile(ca.clone())),
        tunnel("anybody", Trust::Insecure),
        tunnel("stranger", Trust::System),
        uniroute_agent::TunnelSettings { trust: Trust::CaFile(ca), ..by_address },
    ];
    let _agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    edge.get("known", "/").await.assert_ok("secret");
    edge.get("anybody", "/").await.assert_ok("secret");
    edge.get("stranger", "/").await.assert_failed(502, "UR-3006");
    // The authority is right, the name is not.
    edge.get("address", "/").await.assert_failed(502, "UR-3006");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_where_there_is_none_and_none_where_there_is() {
    let plain = TestUpstream::saying("plain").await;
    answer_of(&format!("https://{}", plain.address)).await.assert_failed(502, "UR-3006");
    let (tls, _) = certificate();
    let any = ([127, 0, 0, 1], 0).into();
    let secret = TestUpstream::on(any, Some(tls), |_| async { text("secret") }).await;
    let answer = answer_of(&secret.url()).await;
    assert_eq!(answer.status(), 502);
    assert!(matches!(answer.code(), Some("UR-3004" | "UR-3005")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn localhost_is_found_at_either_address() {
    let v4 = TestUpstream::saying("v4").await;
    answer_of(&v4.address.port().to_string()).await.assert_ok("v4");
    // ::1 only, with nobody at 127.0.0.1.
    let v6 = TestUpstream::on("[::1]:0".parse().unwrap(), None, |_| async { text("v6") }).await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &v6.address.port().to_string()).await;
    for _ in 0..3 {
        edge.get("demo", "/").await.assert_ok("v6");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let server = on_unix_socket(&path, "unix");
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &format!("unix:{}", path.display())).await;
    edge.get("demo", "/").await.assert_ok("unix");
    server.abort();
    let _ = server.await;
    // A connection that was kept may still be there; a new one is refused.
    eventually("the server is gone", async || {
        (edge.get("demo", "/").await.code() == Some("UR-3001")).then_some(())
    })
    .await;
    let missing = dir.path().join("missing.sock");
    answer_of(&format!("unix:{}", missing.display())).await.assert_failed(502, "UR-3001");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_server_are_kept() {
    let upstream = TestUpstream::saying("kept").await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    for n in 0..200 {
        if n % 10 == 0 {
            edge.get("demo", "/").await.assert_ok("kept");
        }
        visitor.get("demo", "/").await.assert_ok("kept");
    }
    assert!(upstream.connections() <= 2, "{} connections", upstream.connections());
}

/// A server that closes each connection after one answer, without saying so.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_is_gone_costs_nothing_but_a_new_one() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        // The next request arrives at a connection that closes under it.
        wire.head().await;
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    for _ in 0..50 {
        visitor.get("demo", "/").await.assert_ok("ok");
    }
}

/// What is not idempotent is never sent twice when it may have arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_on_a_connection_that_closes_under_it_is_not_repeated() {
    let posts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&posts);
    let upstream = RawUpstream::start(move |_, mut wire| {
        let count = Arc::clone(&count);
        let note = move |request: Option<Answer>| {
            let is_post = request.is_some_and(|request| request.head.first.starts_with("POST"));
            count.fetch_add(usize::from(is_post), Ordering::Relaxed);
        };
        async move {
            note(wire.request().await);
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            note(wire.request().await);
        }
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    for body in ["", "body"] {
        let length = body.len();
        // A visitor may have an answer before the agent has put its connection back: a POST that was faster
        // came first on a new one, and proves nothing.
        let answer = loop {
            edge.get("demo", "/").await.assert_ok("ok");
            posts.store(0, Ordering::Relaxed);
            let mut visitor = edge.visitor().await;
            visitor
                .send(format!("POST / HTTP/1.1\r\nhost: demo.tunnels.test\r\ncontent-length: {length}\r\n\r\n{body}"))
                .await;
            let answer = visitor.answer("POST").await;
            assert_eq!(posts.load(Ordering::Relaxed), 1, "{body:?}");
            if answer.status() != 200 {
                break answer;
            }
        };
        answer.assert_failed(502, "UR-3004");
    }
}

/// One tunnel's trouble is no other's.
#[tokio::test(flavor = "multi_thread")]
async fn other_tunnels_of_the_agent_go_on() {
    let good = TestUpstream::saying("good").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let edge = TestEdge::start();
    let tunnels = vec![
        TestAgent::tunnel("good", &good.url()),
        TestAgent::tunnel("silent", &silent.to_string()),
    ];
    let _agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut visitor = edge.visitor().await;
        visitor.send("GET / HTTP/1.1\r\nhost: silent.tunnels.test\r\n\r\n").await;
        stuck.push(visitor);
    }
    for _ in 0..20 {
        edge.get("good", "/").await.assert_ok("good");
    }
}
