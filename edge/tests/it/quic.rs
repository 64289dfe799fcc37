//! Sessions over QUIC, and what carries the session of an agent that chooses by itself.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use uniroute_agent::{
    AgentError, Event, Policy, Settings as AgentSettings, Transport, TunnelSettings,
};
use uniroute_edge::{Edge, StartError, config::Quic};
use uniroute_proto::{codec, v1};
use uniroute_shared::{carrier::quic::endpoint, session::Carrier};

use crate::harness::{
    DOMAIN, TOKEN, TestAgent, TestEdge, agent_id, eventually, get,
    hand::HandEdge,
    host,
    link::{Link, Nature},
    process::{self, Process},
    relay::Relay,
    upstream::{RawUpstream, TestUpstream, channel, text},
    within,
};

/// Bytes of the large download.
const BULK: usize = 100 * 1024 * 1024;

fn over_quic(edge: SocketAddr, tunnels: Vec<TunnelSettings>) -> AgentSettings {
    let mut settings = TestAgent::settings(edge, tunnels);
    settings.transport = Transport::Quic;
    settings
}

async fn quic_agent(edge: &TestEdge, upstream: &str) -> TestAgent {
    let tunnel = TestAgent::tunnel("demo", upstream);
    TestAgent::launch(over_quic(edge.http(), vec![tunnel])).await
}

/// What carried the sessions so far.
async fn carriers(agent: &TestAgent) -> Vec<Carrier> {
    let carrier = |event: &Event| match event {
        Event::Connected { carrier, .. } => Some(*carrier),
        _ => None,
    };
    agent.seen(carrier).await
}

/// Says back what it is sent; `/bulk` is long, `/gate` waits.
async fn server() -> TestUpstream {
    TestUpstream::start(|request| async move {
        if request.uri().path() == "/bulk" {
            let (mut sender, response) = channel();
            tokio::spawn(async move {
                for number in 0..BULK / PIECE {
                    if sender.send_data(piece(number)).await.is_err() {
                        return;
                    }
                }
            });
            return response;
        }
        text(request.into_body().collect().await.unwrap().to_bytes())
    })
    .await
}

const PIECE: usize = 64 * 1024;

fn piece(number: usize) -> Bytes {
    number.to_be_bytes().repeat(PIECE / size_of::<usize>()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_bodies_pass_over_quic() {
    let upstream = server().await;
    let edge = TestEdge::start();
    assert_eq!(edge.quic(), Some(edge.http()), "the port number of http");
    let agent = quic_agent(&edge, &upstream.url()).await;
    assert_eq!(carriers(&agent).await, [Carrier::Quic]);
    for length in [0, 1, 1_000, 3_000_000] {
        let body = vec![b'x'; length];
        let mut visitor = edge.visitor().await;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n",
            host("demo")
        );
        visitor.send([head.as_bytes(), &body].concat()).await;
        let answer = visitor.answer("POST").await;
        assert!(answer.whole && answer.body == body, "{length}");
    }
    let status = edge.status().await;
    assert_eq!(status["sessions"][0]["carrier"], "quic");
    assert_eq!(edge.metric("sessions_by_carrier{carrier=\"quic\"}").await, 1);
    assert_eq!(edge.metric("sessions_by_carrier{carrier=\"websocket\"}").await, 0);
    eventually("only the control stream is left", async || {
        (edge.status().await["sessions"][0]["streams"] == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_over_quic_arrives_whole() {
    let upstream = server().await;
    let edge = TestEdge::start();
    let _agent = quic_agent(&edge, &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET /bulk HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let head = visitor.head().await;
    let (mut digest, mut body) = (Sha256::new(), visitor.body(&head));
    while let Some(bytes) = body.next().await.unwrap() {
        digest.update(bytes);
    }
    let mut expected = Sha256::new();
    (0..BULK / PIECE).for_each(|number| expected.update(piece(number)));
    assert_eq!(digest.finalize(), expected.finalize());
}

/// A visitor who leaves, in full flow or while nothing flows.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_travels_over_quic() {
    let (sender, mut gone) = mpsc::channel(8);
    let (begin, mut begun) = mpsc::channel(8);
    let upstream = RawUpstream::start(move |_, mut wire| {
        let (begin, sender) = (begin.clone(), sender.clone());
        async move {
            let head = wire.head().await;
            begin.send(()).await.unwrap();
            if head.target() == "/flood" {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
                while wire.try_send(&chunk).await.is_ok() {}
            } else {
                wire.rest().await;
            }
            sender.send(Instant::now()).await.unwrap();
        }
    })
    .await;
    let edge = TestEdge::start();
    let _agent = quic_agent(&edge, &upstream.url()).await;
    for (path, read) in [("/flood", 8 * 1024 * 1024), ("/flood", 0), ("/silent", 0)] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        within("the request", begun.recv()).await.unwrap();
        if path == "/flood" {
            let head = visitor.head().await;
            let (mut body, mut had) = (visitor.body(&head), 0);
            while had < read {
                had += body.next().await.unwrap().unwrap().len();
            }
        }
        let left = Instant::now();
        drop(visitor);
        let noticed = within("the server sees the end", gone.recv()).await.unwrap();
        let after = noticed.saturating_duration_since(left);
        assert!(after < Duration::from_secs(1), "{path}: noticed after {after:?}");
    }
}

async fn upstream_streams(edge: &TestEdge) -> u64 {
    edge.status().await["sessions"][0]["streams"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_never_looks_whole_over_quic() {
    for length in [10, 3_000_000] {
        let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", length + 1);
        let bytes = [start.into_bytes(), vec![b'x'; length]].concat();
        let upstream = RawUpstream::saying(bytes).await;
        let edge = TestEdge::start();
        let _agent = quic_agent(&edge, &upstream.url()).await;
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        let answer = visitor.try_answer("GET").await;
        assert!(answer.is_none_or(|answer| !answer.whole), "{length}");
    }
}

/// An edge that was killed and is back, at the same addresses: it tells its agents so as soon as
/// they say anything, at the latest by the next keep-alive.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_over_quic_is_back_soon_after_its_edge_was_killed() {
    let upstream = TestUpstream::saying("back").await;
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("tokens"), TOKEN).unwrap();
    let start = |http: &str| {
        let mut command = process::edge(home.path());
        command.args(["serve", "--token-file", "tokens", "--admin", "off", "--log-format", "json"]);
        command.args(["--domain", DOMAIN, "--http", http]);
        Process::start(&mut command)
    };
    let mut edge = start("127.0.0.1:0");
    let line: Value = serde_json::from_str(&edge.err_line("\"listening\"").await).unwrap();
    let line = line.get("fields").unwrap_or(&line);
    let (http, quic) = (line["http"].as_str().unwrap(), line["quic"].as_str().unwrap());
    assert_eq!(http, quic);
    let address = http.parse().unwrap();
    let tunnel = TestAgent::tunnel("demo", &upstream.url());
    let agent = TestAgent::launch(over_quic(address, vec![tunnel])).await;
    get(address, "demo", "/").await.assert_ok("back");
    edge.kill().await;
    edge = start(http);
    edge.err_line("\"listening\"").await;
    let began = Instant::now();
    agent.readies(2).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    get(address, "demo", "/").await.assert_ok("back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_over_quic_is_back_soon_after_its_edge() {
    let upstream = TestUpstream::saying("back").await;
    let edge = TestEdge::start();
    let address = edge.http();
    let agent = quic_agent(&edge, &upstream.url()).await;
    edge.get("demo", "/").await.assert_ok("back");
    drop(edge);
    let edge = TestEdge::with(|settings| settings.http = address);
    let began = Instant::now();
    agent.readies(2).await;
    let took = began.elapsed();
    // Mostly at once. An agent that was already shaking hands with the old edge again, as it died,
    // hears nothing of that: its attempt takes the ten seconds that one may.
    assert!(took < Duration::from_secs(14), "{took:?}");
    edge.get("demo", "/").await.assert_ok("back");
    assert_eq!(carriers(&agent).await, [Carrier::Quic, Carrier::Quic]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_session_wins_over_quic() {
    let edge = TestEdge::start();
    let upstreams = [TestUpstream::saying("even").await, TestUpstream::saying("odd").await];
    let start = async |number: usize| {
        let tunnel = TestAgent::tunnel("demo", &upstreams[number % 2].url());
        let mut settings = over_quic(edge.http(), vec![tunnel]);
        settings.agent_id = agent_id("one");
        TestAgent::launch(settings).await
    };
    let mut agent = start(0).await;
    for number in 1..10 {
        let old = std::mem::replace(&mut agent, start(number).await);
        edge.get("demo", "/").await.assert_ok(["even", "odd"][number % 2]);
        let ended = old.ended().await;
        assert!(matches!(ended, Err(AgentError::Replaced)), "{ended:?}");
    }
    eventually("one session is left", async || (edge.metric("sessions").await == 1).then_some(()))
        .await;
}

/// Edge and agent drain over QUIC as they do over WebSocket.
#[tokio::test(flavor = "multi_thread")]
async fn what_drains_over_quic_finishes_what_it_has() {
    for edge_drains in [true, false] {
        let (go, gate) = tokio::sync::watch::channel(false);
        let upstream = TestUpstream::start(move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.unwrap();
                text(vec![b'x'; 1_000_000])
            }
        })
        .await;
        let edge = TestEdge::start();
        let agent = quic_agent(&edge, &upstream.url()).await;
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
        eventually("it is under way", async || (upstream_streams(&edge).await == 2).then_some(()))
            .await;
        if edge_drains {
            let stopping = tokio::spawn(edge.shutdown());
            tokio::time::sleep(Duration::from_millis(200)).await;
            go.send(true).unwrap();
            assert_eq!(visitor.answer("GET").await.body.len(), 1_000_000);
            assert!(within("the edge is drained", stopping).await.unwrap());
        } else {
            let stopping = tokio::spawn(agent.stop());
            // Not by a request: one that comes too early would wait for the gate, and this for it.
            eventually("the name is given up", async || {
                edge.status().await["tunnels"][0]["session"].is_null().then_some(())
            })
            .await;
            assert_eq!(edge.get("demo", "/").await.code(), Some("UR-1001"));
            go.send(true).unwrap();
            assert_eq!(visitor.answer("GET").await.body.len(), 1_000_000);
            within("the agent ends", stopping).await.unwrap().unwrap();
            eventually("the edge knows", async || {
                (edge.metric("sessions").await == 0).then_some(())
            })
            .await;
        }
    }
}

// ------------------------------------------------------------ where QUIC can't be had

/// A UDP port where nothing ever answers.
fn silent_port() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn offer(port: u16, fingerprint: [u8; 32]) -> Option<v1::QuicOffer> {
    Some(v1::QuicOffer { port: port.into(), certificate_sha256: fingerprint.to_vec().into() })
}

/// How an agent that wants QUIC ends at an edge with this offer.
async fn refused_by(offer: Option<v1::QuicOffer>) -> String {
    let edge = HandEdge::bind().await;
    let mut settings = over_quic(edge.address(), vec![TestAgent::tunnel("demo", "3000")]);
    settings.fail_fast = true;
    let agent = TestAgent::spawn(settings);
    let _hand = edge.accept_offering(offer).await;
    match agent.ended().await {
        Err(AgentError::Unreachable(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_quic_is_told_why_it_cannot_be_had() {
    let (_socket, port) = silent_port();
    let error = refused_by(offer(port, [0; 32])).await;
    assert!(error.contains(&format!("UDP port {port}")) && error.contains("firewall"), "{error}");
    let error = refused_by(None).await;
    assert!(error.contains("offers no QUIC") && error.contains("--transport quic"), "{error}");
    // Somebody else answers there.
    let other = TestEdge::start();
    let error = refused_by(offer(other.quic().unwrap().port(), [7; 32])).await;
    assert!(error.contains("not the certificate"), "{error}");
    assert_eq!(other.metric("sessions").await, 0);
}

/// The same by the two programs: exit codes, words, and what JSON says of the carrier.
#[tokio::test(flavor = "multi_thread")]
async fn transports_on_the_command_line() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("tokens"), TOKEN).unwrap();
    let agent = |edge: SocketAddr, transport: &str| {
        let mut command = process::agent(home.path());
        command.args(["http", "3000", "--server", &format!("http://{edge}")]);
        command.args(["--token-file", "tokens", "--output", "json", "--fail-fast"]);
        command.args(["--transport", transport]);
        command
    };
    let edge = TestEdge::start();
    for (transport, carrier) in [("quic", "quic"), ("ws", "websocket"), ("auto", "websocket")] {
        let running = Process::start(&mut agent(edge.http(), transport));
        let line = running.out_line("\"connected\"").await;
        assert!(line.contains(&format!("\"carrier\":\"{carrier}\"")), "{line}");
        running.signal("TERM").await;
        assert_eq!(running.ended().await.code, Some(0));
    }
    let without = TestEdge::with(|settings| settings.quic = Quic::Off);
    let ended = process::run(&mut agent(without.http(), "quic")).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.err.contains("offers no QUIC"), "{ended:?}");
    let ended = process::run(&mut agent(edge.http(), "tcp")).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("one of auto, ws and quic"), "{ended:?}");
}

/// Where UDP is blocked, an agent that chooses by itself is there at once, and stays.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_udp_delays_nothing_and_changes_nothing() {
    let (_socket, port) = silent_port();
    let edge = HandEdge::bind().await;
    let upstream = TestUpstream::saying("here").await;
    let mut settings =
        TestAgent::settings(edge.address(), vec![TestAgent::tunnel("demo", &upstream.url())]);
    settings.transport = Transport::Auto;
    settings.policy = Policy { min_moved: 0, look: Duration::from_millis(100), ..settings.policy };
    let began = Instant::now();
    let agent = TestAgent::spawn(settings);
    let hand = edge.accept_ready_offering(offer(port, [0; 32])).await;
    agent.readies(1).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Longer than a dial takes to be given up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!hand.mux.is_closed());
    assert_eq!(carriers(&agent).await, [Carrier::WebSocket]);
}

/// An edge whose port number of `http` is taken by somebody else over UDP.
fn without_udp() -> TestEdge {
    for _ in 0..100 {
        let (_taken, port) = silent_port();
        let mut settings = TestEdge::settings();
        settings.http.set_port(port);
        // Over TCP the number may be in use, too.
        if let Ok(edge) = TestEdge::try_start(settings) {
            return edge;
        }
    }
    panic!("no port is free over TCP");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_quic() {
    let edge = TestEdge::with(|settings| settings.quic = Quic::Off);
    assert_eq!(edge.quic(), None);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut settings = TestEdge::settings();
    settings.quic = Quic::At(address);
    let error = Edge::start(settings).unwrap_err();
    assert!(matches!(&error, StartError::Bind { what: "quic", .. }), "{error}");
    // A default that can't be had is no reason not to start.
    let edge = without_udp();
    assert_eq!(edge.quic(), None);
    let upstream = TestUpstream::saying("here").await;
    let mut settings =
        TestAgent::settings(edge.http(), vec![TestAgent::tunnel("demo", &upstream.url())]);
    settings.transport = Transport::Auto;
    let _agent = TestAgent::launch(settings).await;
    edge.get("demo", "/").await.assert_ok("here");
}

// ------------------------------------------------------------ an agent that chooses

/// An edge behind a network of two ways, TCP and UDP, and an agent on the other side that looks
/// after its session often.
struct Ways {
    edge: Arc<TestEdge>,
    agent: TestAgent,
    relay: Relay,
    _link: Link,
    _upstream: TestUpstream,
}

impl Ways {
    async fn start(edge: TestEdge, upstream: TestUpstream, policy: Policy, every: u32) -> Self {
        let quic = edge.quic().unwrap();
        // The offer names a port at the address that the agent knows the edge by.
        let link = Link::start_at("127.0.0.2:0", edge.http(), Nature::PLAIN).await;
        let relay = Relay::start(([127, 0, 0, 2], quic.port()).into(), quic).await;
        relay.lose(every);
        let mut settings =
            TestAgent::settings(link.address, vec![TestAgent::tunnel("demo", &upstream.url())]);
        settings.transport = Transport::Auto;
        settings.policy = policy;
        let agent = TestAgent::launch(settings).await;
        Self { edge: Arc::new(edge), agent, relay, _link: link, _upstream: upstream }
    }

    async fn until(&self, expected: &[Carrier]) {
        let what = format!("sessions over {expected:?}");
        eventually(&what, async || (carriers(&self.agent).await == expected).then_some(())).await;
    }

    fn requests(&self) -> Requests {
        Requests::start(Arc::clone(&self.edge))
    }
}

/// Decides at once, on little.
fn hasty() -> Policy {
    Policy {
        look: Duration::from_millis(100),
        min_moved: 1,
        probes: 60,
        probe_gap: Duration::from_millis(2),
        min_probes: 60,
        rtt_slack: Duration::from_millis(500),
        return_packets: 500,
        ..Policy::default()
    }
}

/// Requests one after the other, each of which has to succeed.
struct Requests {
    task: JoinHandle<()>,
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Requests {
    fn start(edge: Arc<TestEdge>) -> Self {
        let (done, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let mut visitor = edge.visitor().await;
                let body = vec![b'x'; 20_000];
                let head = format!(
                    "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
                    host("demo"),
                    body.len()
                );
                visitor.send([head.as_bytes(), &body].concat()).await;
                let answer = visitor.answer("POST").await;
                assert!(answer.status() == 200 && answer.whole && answer.body == body);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { task, done, stop }
    }

    /// How many there were; all of them well.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        within("the last request", self.task).await.unwrap();
        self.done.load(Ordering::Relaxed)
    }
}

/// Loss makes the agent go over to QUIC, its end brings it back, and no request fails for it: not
/// even one that lasts over both.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_over_to_quic_and_back_without_a_failed_request() {
    let (step, steps) = mpsc::channel::<&'static str>(1);
    let steps = Arc::new(tokio::sync::Mutex::new(steps));
    let upstream = TestUpstream::start(move |request| {
        let steps = Arc::clone(&steps);
        async move {
            if request.uri().path() != "/long" {
                return text(request.into_body().collect().await.unwrap().to_bytes());
            }
            let (mut sender, response) = channel();
            tokio::spawn(async move {
                while let Some(step) = steps.lock().await.recv().await {
                    sender.send_data(step.into()).await.unwrap();
                }
            });
            response
        }
    })
    .await;
    let ways = Ways::start(TestEdge::start(), upstream, hasty(), 0).await;
    let requests = ways.requests();
    let mut long = ways.edge.visitor().await;
    long.send(format!("GET /long HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let head = long.head().await;
    let mut long = long.body(&head);
    step.send("begun").await.unwrap();
    assert_eq!(long.next().await.unwrap().unwrap(), "begun");
    // A clean path is no reason.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(carriers(&ways.agent).await, [Carrier::WebSocket]);

    ways.relay.lose(20);
    ways.until(&[Carrier::WebSocket, Carrier::Quic]).await;
    step.send("over").await.unwrap();
    assert_eq!(long.next().await.unwrap().unwrap(), "over");
    ways.relay.lose(0);
    ways.until(&[Carrier::WebSocket, Carrier::Quic, Carrier::WebSocket]).await;
    step.send("back").await.unwrap();
    assert_eq!(long.next().await.unwrap().unwrap(), "back");
    drop(step);
    assert!(long.next().await.unwrap().is_none());
    assert!(requests.end().await > 10);
    assert!(!ways.agent.is_over());
    eventually("the sessions that were left are over", async || {
        (ways.edge.metric("sessions").await == 1).then_some(())
    })
    .await;
}

/// A path over UDP that dies: the agent is back over WebSocket, and does not try again soon.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_leaves_quic_when_it_dies() {
    let edge = TestEdge::with_short_heartbeat();
    let ways = Ways::start(edge, server().await, hasty(), 20).await;
    let requests = ways.requests();
    ways.until(&[Carrier::WebSocket, Carrier::Quic]).await;
    requests.end().await;
    let began = Instant::now();
    ways.relay.black_hole();
    ways.until(&[Carrier::WebSocket, Carrier::Quic, Carrier::WebSocket]).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    ways.relay.lose(20);
    let requests = ways.requests();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(requests.end().await > 10);
    assert_eq!(carriers(&ways.agent).await.len(), 3, "QUIC is barred");
}

/// A request that waits finds out that the link is dead, long before QUIC itself does.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_finds_a_dead_quic_link() {
    let upstream = TestUpstream::saying("never").await;
    let ways = Ways::start(TestEdge::start(), upstream, hasty(), 20).await;
    let requests = ways.edge.get("demo", "/").await;
    requests.assert_ok("never");
    ways.until(&[Carrier::WebSocket, Carrier::Quic]).await;
    ways.relay.black_hole();
    let began = Instant::now();
    let answer = ways.edge.get("demo", "/").await;
    assert!(
        matches!((answer.status(), answer.code()), (502, Some("UR-2002")))
            || answer.status() == 200,
        "{answer:?}"
    );
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

// ------------------------------------------------------------ hostile peers

/// What is no session, at each step towards one: it ends alone.
#[tokio::test(flavor = "multi_thread")]
async fn t06_what_is_no_session_over_quic_harms_nobody() {
    let edge = TestEdge::start();
    let upstream = TestUpstream::saying("honest").await;
    let agent = quic_agent(&edge, &upstream.url()).await;
    let quic = edge.quic().unwrap();
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..2_000_u32 {
        let word = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        let datagram = word.repeat(usize::try_from(number % 350).unwrap());
        // The kernel may have no room for all of it.
        let _ = noise.send_to(&datagram, quic);
    }
    let fingerprint = fingerprint_of(&edge).await;
    let options = endpoint::Options::default();
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0x7f, 0, 0, 0],
        vec![0, 0xff, 0xff, 0xff],
        [vec![0, 0, 0, 3], vec![0xff; 3]].concat(),
        vec![1, 0, 0, 1, b'x'],
    ] {
        let peer = endpoint::dial(quic, fingerprint, options).await.unwrap().connection;
        let (mut sender, _receiver) = peer.open_bi().await.unwrap();
        sender.write_all(&bytes).await.unwrap();
        within("it is thrown out", peer.closed()).await;
    }
    // A control stream is all that an agent may open, of either kind.
    let peer = endpoint::dial(quic, fingerprint, options).await.unwrap().connection;
    let (mut sender, _receiver) = peer.open_bi().await.unwrap();
    sender.write_all(&codec::message(&v1::ControlFrame::default(), false)).await.unwrap();
    let wait = Duration::from_millis(200);
    assert!(tokio::time::timeout(wait, peer.open_bi()).await.is_err());
    assert!(tokio::time::timeout(wait, peer.open_uni()).await.is_err());
    drop((sender, peer));
    edge.get("demo", "/").await.assert_ok("honest");
    assert_eq!(carriers(&agent).await.len(), 1, "the honest one noticed nothing");
    eventually("they are gone", async || (edge.metric("sessions").await == 1).then_some(())).await;
}

/// The certificate that an edge tells over WebSocket.
async fn fingerprint_of(edge: &TestEdge) -> [u8; 32] {
    let mut hand = crate::harness::hand::Hand::agent(edge.http()).await;
    let v1::control_frame::Frame::AuthChallenge(challenge) = hand.next().await else {
        panic!("no challenge")
    };
    let offer = challenge.quic.unwrap();
    assert_eq!(offer.port, u32::from(edge.quic().unwrap().port()));
    offer.certificate_sha256.as_ref().try_into().unwrap()
}

/// The tasks and places of connections that come and go are given back.
#[tokio::test(flavor = "multi_thread")]
async fn connections_over_quic_leave_nothing_behind() {
    let edge = TestEdge::start();
    let upstream = TestUpstream::saying("here").await;
    let _agent = quic_agent(&edge, &upstream.url()).await;
    get(edge.http(), "demo", "/").await.assert_ok("here");
    let fingerprint = fingerprint_of(&edge).await;
    let before = edge.metric("tasks").await;
    for _ in 0..50 {
        let quic = edge.quic().unwrap();
        let dialled = endpoint::dial(quic, fingerprint, endpoint::Options::default()).await;
        drop(dialled.unwrap());
    }
    eventually("as many tasks as before", async || {
        (edge.metric("tasks").await <= before + 2).then_some(())
    })
    .await;
    edge.get("demo", "/").await.assert_ok("here");
}
