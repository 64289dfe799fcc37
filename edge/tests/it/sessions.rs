//! Sessions that go wrong: each has its code or its reason, and ends alone.

use std::time::Duration;

use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, time::Instant};
use uniroute_agent::{AgentError, Event};
use uniroute_proto::v1::{self, control_frame::Frame};
use uniroute_shared::mux::SessionError;

use crate::harness::{
    TestAgent, TestEdge, agent_id, eventually,
    hand::{Hand, HandEdge, data, dial, reply},
    host,
    link::{Link, Nature},
    upstream::TestUpstream,
    within,
};

/// An edge with an honest agent on it, who must notice nothing.
struct Neighbour {
    edge: TestEdge,
    agent: TestAgent,
    _upstream: TestUpstream,
}

impl Neighbour {
    async fn start(edge: TestEdge) -> Self {
        let upstream = TestUpstream::saying("honest").await;
        let agent = TestAgent::start(&edge, "honest", &upstream.url()).await;
        Self { edge, agent, _upstream: upstream }
    }

    /// The honest agent serves, on the session that it began with.
    async fn assert_untouched(&self) {
        self.edge.get("honest", "/").await.assert_ok("honest");
        let connects = |event: &Event| matches!(event, Event::Connecting).then_some(());
        assert_eq!(self.agent.seen(connects).await.len(), 1);
    }
}

/// Whether a closing frame with `code` is the last thing in `bytes`, and its reason.
fn close_reason(bytes: &[u8], code: u16) -> Option<String> {
    let at = bytes.windows(4).rposition(|w| w[0] == 0x88 && w[2..4] == code.to_be_bytes())?;
    let length = usize::from(bytes[at + 1]);
    Some(String::from_utf8_lossy(bytes.get(at + 4..at + 2 + length)?).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused_for_good() {
    let way = Neighbour::start(TestEdge::start()).await;
    let tunnel = TestAgent::tunnel("stranger", "3000");
    let mut settings = TestAgent::settings(way.edge.http(), vec![tunnel]);
    settings.token = "another_token_of_some_length".parse().unwrap();
    let ended = TestAgent::spawn(settings).ended().await;
    assert!(matches!(&ended, Err(AgentError::Token { code }) if code.number == 4001), "{ended:?}");
    way.edge.get("stranger", "/").await.assert_failed(404, "UR-1001");
    way.assert_untouched().await;
}

/// A refusal that comes in one piece with the connection's end is a refusal all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_lost_with_its_connection() {
    let edge = HandEdge::bind().await;
    for _ in 0..20 {
        let settings = TestAgent::settings(edge.address(), vec![TestAgent::tunnel("demo", "3000")]);
        let agent = TestAgent::spawn(settings);
        let mut hand = edge.accept().await;
        let refusal = v1::InitError { code: 4001, message: "no".into(), retry_after_ms: 0 };
        hand.send(Frame::InitError(refusal)).await;
        hand.mux.close();
        let ended = agent.ended().await;
        assert!(matches!(&ended, Err(AgentError::Token { .. })), "{ended:?}");
    }
}

/// The refusals of the handshake, as an agent sees them.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_wrong_is_refused_with_its_code() {
    let way = Neighbour::start(TestEdge::start()).await;
    type Change = fn(v1::Init) -> Frame;
    let cases: [(&str, u32, Change); 9] = [
        ("an unknown version", 2102, |init| Frame::Init(v1::Init { version: 9, ..init })),
        ("version 0", 2102, |init| Frame::Init(v1::Init { version: 0, ..init })),
        ("another nonce", 4002, |init| Frame::Init(v1::Init { nonce: vec![1; 16].into(), ..init })),
        ("no nonce", 4002, |init| Frame::Init(v1::Init { nonce: Bytes::new(), ..init })),
        ("no token", 4001, |init| Frame::Init(v1::Init { token: String::new(), ..init })),
        ("half a token", 4001, |init| {
            Frame::Init(v1::Init { token: init.token[..10].into(), ..init })
        }),
        ("a bad agent id", 2103, |init| Frame::Init(v1::Init { agent_id: "a b".into(), ..init })),
        ("two tunnels with one key", 2103, |init| {
            let tunnels = [init.tunnels.clone(), init.tunnels.clone()].concat();
            Frame::Init(v1::Init { tunnels, ..init })
        }),
        ("something else", 2103, |_| Frame::Ready(v1::Ready {})),
    ];
    for (what, code, change) in cases {
        let mut hand = Hand::agent(way.edge.http()).await;
        let init = hand.init("stranger").await;
        hand.send(change(init)).await;
        let Frame::InitError(error) = hand.next().await else { panic!("{what}: no refusal") };
        assert_eq!(error.code, code, "{what}: {}", error.message);
        hand.ended().await;
        way.assert_untouched().await;
    }
    way.edge.get("stranger", "/").await.assert_failed(404, "UR-1001");
}

/// It is a session like any other, and may open tunnels later.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_begin_without_a_tunnel() {
    let edge = TestEdge::start();
    let mut hand = Hand::agent(edge.http()).await;
    let init = hand.init("demo").await;
    let tunnel = init.tunnels.first().cloned();
    hand.send(Frame::Init(v1::Init { tunnels: Vec::new(), ..init })).await;
    hand.send(Frame::Ready(v1::Ready {})).await;
    assert!(matches!(hand.next().await, Frame::ReadyAck(_)));
    hand.send(Frame::Heartbeat(v1::Heartbeat { timestamp_us: 7, rtt_us: 0 })).await;
    assert!(matches!(hand.next().await, Frame::HeartbeatAck(ack) if ack.timestamp_us == 7));
    edge.get("demo", "/").await.assert_failed(404, "UR-1001");
    hand.send(Frame::OpenTunnel(v1::OpenTunnel { tunnel })).await;
    let Frame::TunnelCreated(created) = hand.next().await else { panic!("no tunnel") };
    assert_eq!((created.name.as_str(), created.hold_ms.is_some()), ("demo", true));
    let close = v1::CloseTunnel { tunnel_id: created.tunnel_id, ..Default::default() };
    hand.send(Frame::CloseTunnel(close)).await;
    hand.send(Frame::Heartbeat(v1::Heartbeat { timestamp_us: 8, rtt_us: 0 })).await;
    assert!(matches!(hand.next().await, Frame::HeartbeatAck(ack) if ack.timestamp_us == 8));
}

/// An `Init` that was good on another connection is not good on this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_handshake_cannot_be_played_again() {
    let edge = TestEdge::start();
    let mut first = Hand::agent(edge.http()).await;
    let recorded = first.init("demo").await;
    first.send(Frame::Init(recorded.clone())).await;
    assert!(matches!(first.next().await, Frame::TunnelCreated(_)));
    let mut second = Hand::agent(edge.http()).await;
    let Frame::AuthChallenge(challenge) = second.next().await else { panic!("no challenge") };
    assert_ne!(challenge.nonce, recorded.nonce);
    second.send(Frame::Init(recorded)).await;
    assert!(matches!(second.next().await, Frame::InitError(error) if error.code == 4002));
}

/// What is no protocol at all, on each layer of it.
#[tokio::test(flavor = "multi_thread")]
async fn t06_garbage_ends_its_own_session_only() {
    let way = Neighbour::start(TestEdge::start()).await;
    // A masked binary WebSocket frame with an empty mask around `payload`.
    let message = |payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0x82, 0xfe, length[0], length[1], 0, 0, 0, 0], payload].concat()
    };
    let yamux = |kind: u8, flags: u16, stream: u32, length: u32| {
        let header =
            [&[0, kind][..], &flags.to_be_bytes(), &stream.to_be_bytes(), &length.to_be_bytes()];
        message(&header.concat())
    };
    let control = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap();
        [yamux(0, 1, 1, length), message(bytes)].concat()
    };
    for (what, bytes, code) in [
        ("not a WebSocket frame", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 1002),
        ("no mask", vec![0x82, 0x01, 0x00], 1002),
        ("text", vec![0x81, 0x81, 0, 0, 0, 0, b'x'], 1003),
        ("a long ping", vec![0x89, 0xfe, 0x10, 0, 0, 0, 0, 0], 1002),
        ("a frame of 2^63 bytes", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("another mux version", message(&[9; 12]), 1002),
        ("an unknown mux frame", yamux(7, 0, 1, 0), 1002),
        ("a stream of the edge's own", yamux(0, 1, 2, 0), 1002),
        ("data beyond the window", yamux(0, 1, 1, 0x00ff_ffff), 1002),
        ("an unknown control frame kind", control(&[0x7f, 0, 0, 0]), 0),
        ("a control frame too long", control(&[0, 0xff, 0xff, 0xff]), 0),
        ("a control frame of body", control(&[1, 0, 0, 1, b'x']), 0),
        ("a control frame that is no protobuf", control(&[0, 0, 0, 3, 0xff, 0xff, 0xff]), 0),
    ] {
        let mut wire = dial(way.edge.http()).await;
        wire.send(&bytes).await;
        let got = wire.rest().await;
        if code != 0 {
            assert!(close_reason(&got, code).is_some(), "{what}: {got:?}");
        }
        way.assert_untouched().await;
    }
    eventually("they are gone", async || {
        (way.edge.status().await["sessions"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}

/// A control stream that grows too long, after the handshake.
#[tokio::test(flavor = "multi_thread")]
async fn t06_an_oversized_control_frame_ends_a_session() {
    let way = Neighbour::start(TestEdge::start()).await;
    let (mut hand, _) = Hand::ready_agent(way.edge.http(), "demo").await;
    hand.sender.send(Bytes::from_static(&[0, 0xff, 0xff, 0xff]), false).unwrap();
    let ended = hand.ended().await;
    assert!(
        matches!(&ended, SessionError::Closed { reason, .. } if reason.contains("UR-2103")),
        "{ended:?}"
    );
    way.edge.get("demo", "/").await.assert_failed(503, "UR-2001");
    way.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_an_agent_opens_no_stream_but_the_control_stream() {
    let way = Neighbour::start(TestEdge::start()).await;
    let (mut hand, _) = Hand::ready_agent(way.edge.http(), "demo").await;
    // One is refused, and the session goes on; whoever insists is thrown out.
    let (mut sender, mut receiver) = hand.mux.open().unwrap();
    sender.send("GET / HTTP/1.1\r\n\r\n".into(), false).unwrap();
    let refused = within("the refusal", receiver.recv()).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(!hand.mux.is_closed());
    let mut kept = Vec::new();
    for _ in 0..1000 {
        let Ok((mut sender, receiver)) = hand.mux.open() else { break };
        let _ = sender.send("x".into(), false);
        kept.push((sender, receiver));
    }
    hand.ended().await;
    way.assert_untouched().await;
}

/// A session's agent that takes nothing: what waits for it is bounded, and it is given up.
#[tokio::test(flavor = "multi_thread")]
async fn t06_an_agent_that_never_reads_is_given_up() {
    let way = Neighbour::start(TestEdge::with_short_heartbeat()).await;
    let link = Link::start(way.edge.http(), Nature::PLAIN).await;
    let (_hand, _) = Hand::ready_agent(link.address, "demo").await;
    // From here on it is as if it read nothing: its connection takes what fits, and no more.
    link.black_hole();
    let mut visitors = Vec::new();
    for _ in 0..20 {
        let mut visitor = way.edge.visitor().await;
        visitor
            .send(format!(
                "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: 100000000\r\n\r\n",
                host("demo")
            ))
            .await;
        visitors.push(tokio::spawn(async move {
            let piece = vec![b'x'; 64 * 1024];
            while visitor.try_send(&piece).await.is_ok() {}
        }));
    }
    let mut most = 0;
    eventually("the session is given up", async || {
        let status = way.edge.status().await;
        let sessions = status["sessions"].as_array().unwrap();
        let queued =
            sessions.iter().map(|s| s["send_queued_bytes"].as_u64().unwrap()).max().unwrap_or(0);
        most = most.max(queued);
        (sessions.len() == 1).then_some(())
    })
    .await;
    assert!(most <= 20 * 128 * 1024, "{most}");
    for visitor in visitors {
        within("the visitor is let go", visitor).await.unwrap();
    }
    way.assert_untouched().await;
}

/// Control frames that an agent may not send, or sends for what is not its own.
#[tokio::test(flavor = "multi_thread")]
async fn t07_an_agent_changes_no_tunnel_but_its_own() {
    let way = Neighbour::start(TestEdge::start()).await;
    let (mut hand, mine) = Hand::ready_agent(way.edge.http(), "demo").await;
    let tunnels = way.edge.status().await["tunnels"].clone();
    let other = tunnels.as_array().unwrap().iter().find(|t| t["name"] == "honest").unwrap().clone();
    let other: uniroute_shared::id::TunnelId = other["id"].as_str().unwrap().parse().unwrap();
    let other = Bytes::copy_from_slice(other.as_bytes());
    for frame in [
        Frame::UpdateTunnel(v1::UpdateTunnel {
            tunnel_id: other.clone(),
            local_url: "http://evil".into(),
        }),
        Frame::UpstreamHealth(v1::UpstreamHealth {
            tunnel_id: other.clone(),
            healthy: false,
            reason: "evil".into(),
            ..v1::UpstreamHealth::default()
        }),
        Frame::AuthChallenge(v1::AuthChallenge::default()),
        Frame::Ready(v1::Ready {}),
    ] {
        hand.send(frame).await;
        assert!(matches!(hand.next().await, Frame::ControlError(error) if error.code == 2103));
    }
    hand.send(Frame::CloseTunnel(v1::CloseTunnel { tunnel_id: other, ..Default::default() })).await;
    // It may close its own.
    hand.send(Frame::CloseTunnel(v1::CloseTunnel { tunnel_id: mine, ..Default::default() })).await;
    eventually("its own tunnel is closed", async || {
        let tunnels = way.edge.status().await["tunnels"].clone();
        (tunnels.as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    way.edge.get("demo", "/").await.assert_failed(404, "UR-1001");
    assert!(!way.edge.status().await.to_string().contains("evil"));
    way.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_agent_is_told_so() {
    let edge = TestEdge::start();
    let mut visitor = edge.visitor().await;
    visitor.send("GET /tunnel HTTP/1.1\r\nhost: edge\r\n\r\n").await;
    let answer = visitor.answer("GET").await;
    answer.assert_failed(426, "UR-2105");
    assert_eq!(answer.head.get("upgrade"), Some("websocket"));
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (what, fields) in [
        ("no subprotocol", format!("connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n{key}")),
        ("another subprotocol", format!("connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: uniroute.v9\r\n{key}")),
        ("another version", format!("connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 8\r\nsec-websocket-protocol: uniroute.v1\r\n{key}")),
        ("no key", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-protocol: uniroute.v1\r\n".to_owned()),
        ("no upgrade", format!("sec-websocket-version: 13\r\nsec-websocket-protocol: uniroute.v1\r\n{key}")),
    ] {
        let mut visitor = edge.visitor().await;
        visitor.send(format!("GET /tunnel HTTP/1.1\r\nhost: edge\r\n{fields}\r\n")).await;
        let answer = visitor.answer("GET").await;
        assert_eq!((answer.status(), answer.code()), (426, Some("UR-2105")), "{what}");
    }
}

/// Each step of the handshake, left unfinished.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_given_up() {
    let way = Neighbour::start(TestEdge::start()).await;
    let began = Instant::now();
    let mut upgraded_only = dial(way.edge.http()).await;
    let mut silent = Hand::agent(way.edge.http()).await;
    let mut no_ready = Hand::agent(way.edge.http()).await;
    let init = no_ready.init("demo").await;
    no_ready.send(Frame::Init(init)).await;
    assert!(matches!(no_ready.next().await, Frame::TunnelCreated(_)));
    // The name is there, and takes no requests.
    way.edge.get("demo", "/").await.assert_failed(503, "UR-2001");
    assert!(matches!(silent.next().await, Frame::AuthChallenge(_)));
    for hand in [&mut silent, &mut no_ready] {
        assert!(matches!(hand.next().await, Frame::InitError(error) if error.code == 2101));
        hand.ended().await;
    }
    upgraded_only.rest().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(14), "{took:?}");
    way.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_had() {
    let way = Neighbour::start(TestEdge::start()).await;
    for (name, code) in [
        ("honest", 1101),
        ("www", 1102),
        ("api", 1102),
        ("WWW2", 1102),
        ("-a", 1103),
        ("a.b", 1103),
        ("xn--a", 1103),
    ] {
        let settings = TestAgent::settings(way.edge.http(), vec![TestAgent::tunnel(name, "3000")]);
        let ended = TestAgent::spawn(settings).ended().await;
        let Err(AgentError::Refused(refusals)) = ended else { panic!("{name}: {ended:?}") };
        assert_eq!((refusals[0].code, refusals[0].name.as_str()), (code, name));
    }
    // One that is refused does not keep the others from being served.
    let upstream = TestUpstream::saying("other").await;
    let tunnels = vec![
        TestAgent::tunnel("honest", &upstream.url()),
        TestAgent::tunnel("other", &upstream.url()),
    ];
    let agent = TestAgent::spawn(TestAgent::settings(way.edge.http(), tunnels));
    agent.readies(1).await;
    way.edge.get("other", "/").await.assert_ok("other");
    let refused = |event: &Event| match event {
        Event::Refused { code, .. } => Some(*code),
        _ => None,
    };
    assert_eq!(agent.seen(refused).await, [1101]);
    way.assert_untouched().await;
}

/// A link that carries nothing any more, without an end: both sides notice, and the agent is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_falls_silent_is_noticed_by_both_sides() {
    let way = Neighbour::start(TestEdge::with_short_heartbeat()).await;
    let link = Link::start(way.edge.http(), Nature::PLAIN).await;
    let upstream = TestUpstream::saying("back").await;
    let mut settings =
        TestAgent::settings(link.address, vec![TestAgent::tunnel("demo", &upstream.url())]);
    settings.agent_id = agent_id("silent");
    let agent = TestAgent::launch(settings).await;
    let first = way.edge.status().await["sessions"].as_array().unwrap().len();
    assert_eq!(first, 2);
    let began = Instant::now();
    link.black_hole();
    agent.readies(2).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    way.edge.get("demo", "/").await.assert_ok("back");
    eventually("the old session is gone at the edge", async || {
        (way.edge.metric("sessions").await == 2).then_some(())
    })
    .await;
    let told = |event: &Event| match event {
        Event::Disconnected { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reasons = agent.seen(told).await;
    assert!(reasons[0].contains("no sign of life"), "{reasons:?}");
    way.assert_untouched().await;
}

/// A request that waits makes the edge look after the agent, long before the next heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_finds_a_dead_link() {
    let edge = TestEdge::start();
    let link = Link::start(edge.http(), Nature::PLAIN).await;
    let upstream = TestUpstream::saying("never").await;
    let settings =
        TestAgent::settings(link.address, vec![TestAgent::tunnel("demo", &upstream.url())]);
    let _agent = TestAgent::launch(settings).await;
    link.black_hole();
    let began = Instant::now();
    let answer = edge.get("demo", "/").await;
    answer.assert_failed(502, "UR-2002");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

/// The link breaks in the middle of an answer: it breaks at the visitor too.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_breaks_the_answers_on_it() {
    let edge = TestEdge::start();
    let (mut hand, _) = Hand::ready_agent(edge.http(), "demo").await;
    let mut visitor = edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let mut request = hand.request().await;
    request.sender.send(reply(200, &[], false), false).unwrap();
    request.sender.send(data(b"half", false), false).unwrap();
    let head = visitor.head().await;
    let mut body = visitor.body(&head);
    assert_eq!(body.next().await.unwrap().unwrap(), "half");
    drop(hand);
    assert!(body.next().await.is_err());
}

/// Requests under way when an agent dies without a word.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_dead_agent_are_answered() {
    let way = Neighbour::start(TestEdge::start()).await;
    let (mut hand, _) = Hand::ready_agent(way.edge.http(), "demo").await;
    let mut visitor = way.edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
    let request = hand.request().await;
    drop(hand);
    visitor.answer("GET").await.assert_failed(502, "UR-2002");
    drop(request);
    way.assert_untouched().await;
}

/// A carrier that ends in the middle of everything, again and again, leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_early_leave_nothing_behind() {
    let way = Neighbour::start(TestEdge::start()).await;
    // Idle connections to the local server and to the admin pages are part of the count.
    way.assert_untouched().await;
    let before = way.edge.metric("tasks").await;
    for number in 0..50 {
        let mut wire = dial(way.edge.http()).await;
        if number % 2 == 0 {
            wire.socket.shutdown().await.unwrap();
        }
        drop(wire);
    }
    eventually("as many tasks as before", async || {
        (way.edge.metric("tasks").await <= before + 2).then_some(())
    })
    .await;
    assert_eq!(way.edge.metric("sessions").await, 1);
    way.assert_untouched().await;
}
