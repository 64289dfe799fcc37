//! TCP tunnels: bytes both ways, ends, ports.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use uniroute_agent::{AgentError, TunnelKind::Tcp, TunnelLimits, TunnelSettings};

use super::{
    Local, assert_cut, assert_refused, connect, counted, exchange, free_ports, port, rest, serve,
    tunnel,
};
use crate::harness::{
    TestAgent, TestEdge, agent_id, eventually,
    link::{Link, Nature},
    upstream::TestUpstream,
    within,
};

/// An edge whose one TCP port is the returned one.
fn edge_with_one_port() -> (TestEdge, u16) {
    let range = free_ports();
    let port = *range.start();
    (TestEdge::with(|settings| settings.sockets.tcp_ports = Some(range)), port)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let (agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    assert_eq!(super::urls(&agent).await, [format!("tcp://tunnels.test:{}", public.port())]);
    let mut visitor = connect(public).await;
    for length in [1, 100, 16 * 1024, 300_000] {
        let sent = vec![b'x'; length];
        assert!(exchange(&mut visitor, &sent).await == sent, "{length} bytes");
    }
    visitor.shutdown().await.unwrap();
    assert_eq!(rest(&mut visitor).await.unwrap(), b"");
    eventually("the stream is over", async || {
        (edge.status().await["sessions"][0]["streams"] == 1).then_some(())
    })
    .await;
    let tunnel = edge.status().await["tunnels"][0].clone();
    assert_eq!((&tunnel["kind"], &tunnel["connections"]), (&"tcp".into(), &0.into()));
    assert_eq!(tunnel["bytes_in"], 316_485);
    assert_eq!(tunnel["bytes_out"], 316_485);
}

/// A server that speaks first, as many do.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_speak_first() {
    let local = Local::start(|mut socket| async move {
        socket.write_all(b"220 hello\r\n").await.unwrap();
    })
    .await;
    let edge = TestEdge::start();
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    assert_eq!(rest(&mut connect(public).await).await.unwrap(), b"220 hello\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_may_be_done_before_the_other() {
    // The visitor first: the server answers once it has all.
    let counting = Local::start(|mut socket| async move {
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        socket.write_all(format!("{} bytes", got.len()).as_bytes()).await.unwrap();
    })
    .await;
    // The server first: it still reads.
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let saying = Local::start(move |mut socket| {
        let heard = heard.clone();
        async move {
            socket.write_all(b"that was all").await.unwrap();
            socket.shutdown().await.unwrap();
            let mut got = Vec::new();
            socket.read_to_end(&mut got).await.unwrap();
            heard.send(got).await.unwrap();
        }
    })
    .await;
    let edge = TestEdge::start();
    let (_one, public) = serve(&edge, tunnel(Tcp, counting.address)).await;
    let mut visitor = connect(public).await;
    within("bytes are taken", visitor.write_all(&vec![b'x'; 1_000_000])).await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(rest(&mut visitor).await.unwrap(), b"1000000 bytes");

    let (_other, public) = serve(&edge, tunnel(Tcp, saying.address)).await;
    let mut visitor = connect(public).await;
    assert_eq!(rest(&mut visitor).await.unwrap(), b"that was all");
    visitor.write_all(b"thank you").await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(within("the server hears it", hears.recv()).await.unwrap(), b"thank you");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_travels_both_ways() {
    let reset = |socket: &TcpStream| SockRef::from(socket).set_linger(Some(Duration::ZERO));
    let dying = Local::start(move |mut socket| async move {
        socket.write_all(b"some").await.unwrap();
        let mut got = [0; 4];
        socket.read_exact(&mut got).await.unwrap();
        reset(&socket).unwrap();
    })
    .await;
    let (seen, mut sees) = tokio::sync::mpsc::channel(1);
    let watching = Local::start(move |mut socket| {
        let seen = seen.clone();
        async move {
            socket.write_all(b"hello").await.unwrap();
            let ended = socket.read_to_end(&mut Vec::new()).await;
            seen.send(ended.unwrap_err().kind()).await.unwrap();
        }
    })
    .await;
    let edge = TestEdge::start();
    let (_one, public) = serve(&edge, tunnel(Tcp, dying.address)).await;
    let mut visitor = connect(public).await;
    let mut got = [0; 4];
    within("what it said", visitor.read_exact(&mut got)).await.unwrap();
    visitor.write_all(b"kill").await.unwrap();
    assert_cut(&mut visitor).await;
    // Also where the visitor is done already.
    let mut visitor = connect(public).await;
    within("what it said", visitor.read_exact(&mut got)).await.unwrap();
    visitor.write_all(b"kill").await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_cut(&mut visitor).await;

    let (_other, public) = serve(&edge, tunnel(Tcp, watching.address)).await;
    let mut visitor = connect(public).await;
    within("its first bytes", visitor.read_exact(&mut [0; 5])).await.unwrap();
    reset(&visitor).unwrap();
    drop(visitor);
    assert_eq!(
        within("the server sees it", sees.recv()).await.unwrap(),
        ErrorKind::ConnectionReset
    );
}

/// A visitor that has half closed its connection and then vanishes is noticed, though nobody reads
/// or writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_visitor_that_vanishes_is_noticed() {
    let silent = Local::start(|mut socket| async move {
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        // It would answer some day.
        std::future::pending::<()>().await;
    })
    .await;
    let edge = TestEdge::start();
    let (_agent, public) = serve(&edge, tunnel(Tcp, silent.address)).await;
    let mut visitor = connect(public).await;
    visitor.write_all(b"hello").await.unwrap();
    visitor.shutdown().await.unwrap();
    eventually("it is served", async || {
        (edge.status().await["tunnels"][0]["bytes_in"] == 5).then_some(())
    })
    .await;
    SockRef::from(&visitor).set_linger(Some(Duration::ZERO)).unwrap();
    drop(visitor);
    eventually("the connection is over", async || {
        (edge.status().await["tunnels"][0]["connections"] == 0).then_some(())
    })
    .await;
}

/// A server that is not there: the connection is cut, and the code counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_server_that_is_not_there() {
    let edge = TestEdge::start();
    let nobody = *free_ports().start();
    let (_agent, public) = serve(&edge, tunnel(Tcp, format!("127.0.0.1:{nobody}"))).await;
    assert_refused(public).await;
    counted(&edge, "UR-3001").await;
    eventually("the agent has said so", async || {
        edge.status().await["tunnels"][0]["unhealthy"].is_string().then_some(())
    })
    .await;
}

/// 64 MiB that are checked, through both windows of it.
#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_arrive_whole() {
    const PIECES: u32 = 1024;
    let piece = |number: u32| -> Vec<u8> {
        (0..16 * 1024_u32).flat_map(|at| (number * 16 * 1024 + at).to_le_bytes()).collect()
    };
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    let (mut from, mut to) = connect(public).await.into_split();
    let sending = async move {
        for number in 0..PIECES {
            to.write_all(&piece(number)).await.unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let reading = async move {
        let mut got = vec![0; 64 * 1024];
        for number in 0..PIECES {
            from.read_exact(&mut got).await.unwrap();
            assert!(got == piece(number), "piece {number}");
        }
        assert_eq!(from.read(&mut got).await.unwrap(), 0);
    };
    within("all of it", async { tokio::join!(sending, reading) }).await;
}

/// A visitor that does not read stops the server, and costs no more than the windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_visitor_slows_the_server() {
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&sent);
    let flooding = Local::start(move |mut socket| {
        let counter = std::sync::Arc::clone(&counter);
        async move {
            let piece = vec![b'x'; 64 * 1024];
            while socket.write_all(&piece).await.is_ok() {
                counter.fetch_add(piece.len() as u64, std::sync::atomic::Ordering::Relaxed);
            }
        }
    })
    .await;
    let edge = TestEdge::start();
    let (_agent, public) = serve(&edge, tunnel(Tcp, flooding.address)).await;
    let visitor = connect(public).await;
    let now = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let mut before = now();
    // What it has sent no longer grows: for a while, which is the one thing to be waited for here.
    eventually("the server is stopped", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stopped = before > 0 && now() == before;
        before = now();
        stopped.then_some(())
    })
    .await;
    assert!(now() < 64 * 1024 * 1024, "{} bytes are under way", now());
    drop(visitor);
    eventually("the connection is over", async || {
        (edge.status().await["tunnels"][0]["connections"] == 0).then_some(())
    })
    .await;
}

/// The port stays over a reconnect, and visitors that come meanwhile wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_keeps_the_port_and_holds_visitors() {
    let edge = TestEdge::with(|settings| settings.hold = uniroute_edge::config::HOLD);
    let local = Local::echo().await;
    let link = Link::start(edge.http(), Nature::PLAIN).await;
    let settings = TestAgent::settings(link.address, vec![tunnel(Tcp, local.address)]);
    let settings =
        uniroute_agent::Settings { transport: uniroute_agent::Transport::WebSocket, ..settings };
    let agent = TestAgent::launch(settings).await;
    let first = port(&agent).await;
    let public = SocketAddr::new(edge.http().ip(), first);
    let mut open = connect(public).await;
    assert_eq!(exchange(&mut open, b"before").await, b"before");
    link.cut();
    // What was open is cut, what comes now is held until the agent is back.
    assert_cut(&mut open).await;
    let mut held = connect(public).await;
    assert_eq!(exchange(&mut held, b"meanwhile").await, b"meanwhile");
    agent.readies(2).await;
    assert_eq!(port(&agent).await, first);
}

/// Nobody comes back: the visitor is not kept for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_waits_for_some_seconds_only() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let (agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    drop(agent);
    eventually("the agent is gone", async || (edge.metric("sessions").await == 0).then_some(()))
        .await;
    assert_refused(public).await;
    counted(&edge, "UR-2001").await;
}

/// The edge would let it wait for longer than any test.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_where_the_tunnel_has_no_hold() {
    let local = Local::echo().await;
    let edge = TestEdge::with(|settings| settings.hold = Duration::from_secs(300));
    let hold_reconnect = Some(Duration::ZERO);
    let impatient = TunnelSettings { hold_reconnect, ..tunnel(Tcp, local.address) };
    let (agent, public) = serve(&edge, impatient).await;
    drop(agent);
    eventually("the agent is gone", async || (edge.metric("sessions").await == 0).then_some(()))
        .await;
    assert_refused(public).await;
    counted(&edge, "UR-2001").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_has_a_bound_of_its_own() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let limits = TunnelLimits { in_flight: Some(1), ..TunnelLimits::default() };
    let limited = TunnelSettings { limits, ..tunnel(Tcp, local.address) };
    let (_agent, public) = serve(&edge, limited).await;
    let mut first = connect(public).await;
    assert_eq!(exchange(&mut first, b"in").await, b"in");
    assert_refused(public).await;
    counted(&edge, "UR-5010").await;
    assert_eq!(exchange(&mut first, b"still").await, b"still");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_belongs_to_its_identity() {
    let local = Local::echo().await;
    let (edge, number) = edge_with_one_port();
    let wanting = |id: &str, name: Option<&str>| {
        let tunnel = TunnelSettings {
            port: Some(number),
            name: name.map(Into::into),
            ..tunnel(Tcp, local.address)
        };
        let mut settings = TestAgent::settings(edge.http(), vec![tunnel]);
        settings.agent_id = agent_id(id);
        settings
    };
    let first = TestAgent::launch(wanting("a", None)).await;
    let name = first.names().await;
    refused(wanting("b", None), 1111).await;
    // Killed: it is still the first one's, which gets its tunnel back by its port.
    drop(first);
    refused(wanting("b", None), 1111).await;
    let second = TestAgent::launch(wanting("a", None)).await;
    assert_eq!(second.names().await, name);
    let public = SocketAddr::new(edge.http().ip(), number);
    assert_eq!(exchange(&mut connect(public).await, b"mine").await, b"mine");
    // Under another name it takes the port with it, from its own older session.
    let third = TestAgent::launch(wanting("a", Some("other"))).await;
    assert!(matches!(second.ended().await, Err(AgentError::Replaced)));
    assert_eq!(exchange(&mut connect(public).await, b"still").await, b"still");
    // Given up in order, it is free at once.
    third.stop().await.unwrap();
    let fourth = TestAgent::launch(wanting("b", None)).await;
    assert_eq!(exchange(&mut connect(public).await, b"yours").await, b"yours");
    drop(fourth);
}

pub(super) async fn refused(settings: uniroute_agent::Settings, code: u16) {
    match TestAgent::spawn(settings).ended().await {
        Err(AgentError::Refused(refused)) => assert_eq!(refused[0].code, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_cannot_be_had() {
    let local = Local::echo().await;
    let (edge, number) = edge_with_one_port();
    let wanting = |edge: &TestEdge, port: Option<u16>| {
        let tunnel = TunnelSettings { port, ..tunnel(Tcp, local.address) };
        TestAgent::settings(edge.http(), vec![tunnel])
    };
    refused(wanting(&edge, Some(number.wrapping_add(1).max(1))), 1112).await;
    let agent = TestAgent::launch(wanting(&edge, None)).await;
    assert_eq!(port(&agent).await, number);
    refused(wanting(&edge, None), 1114).await;
    // Somebody else on the machine has it.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    let edge = TestEdge::with(|settings| settings.sockets.tcp_ports = Some(taken..=taken));
    refused(wanting(&edge, Some(taken)), 1113).await;
    refused(wanting(&edge, None), 1114).await;
    let edge = TestEdge::with(|settings| settings.sockets.tcp_ports = None);
    refused(wanting(&edge, None), 1105).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded() {
    let local = Local::echo().await;
    let edge = TestEdge::with(|settings| settings.sockets.max_tunnel_connections = 2);
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut visitor = connect(public).await;
        assert_eq!(exchange(&mut visitor, b"in").await, b"in");
        open.push(visitor);
    }
    assert_refused(public).await;
    counted(&edge, "UR-5010").await;
    open.pop();
    eventually("there is room again", async || {
        let mut visitor = TcpStream::connect(public).await.ok()?;
        visitor.write_all(b"x").await.ok()?;
        (visitor.read(&mut [0]).await.ok()? == 1).then_some(())
    })
    .await;

    let edge = TestEdge::with(|settings| settings.max_connections = 3);
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut visitor = connect(public).await;
        assert_eq!(exchange(&mut visitor, b"in").await, b"in");
        open.push(visitor);
    }
    assert_refused(public).await;
    counted(&edge, "UR-5001").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_still_connection_is_ended_where_that_is_wished() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let mut short = tunnel(Tcp, local.address);
    short.idle_timeout = Some(Duration::from_millis(300));
    let (_agent, public) = serve(&edge, short).await;
    let mut visitor = connect(public).await;
    // It lives for as long as something moves.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(900) {
        assert_eq!(exchange(&mut visitor, b"on").await, b"on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_cut(&mut visitor).await;
    counted(&edge, "UR-2110").await;
}

/// What a browser or a health check sees that takes it for a web address.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_the_name_of_a_tcp_tunnel_is_told_where_it_is() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let mut named = tunnel(Tcp, local.address);
    named.name = Some("database".into());
    let (_agent, public) = serve(&edge, named).await;
    let answer = edge.get("database", "/").await;
    answer.assert_failed(421, "UR-1110");
    assert!(answer.text().contains(&format!("tcp://tunnels.test:{}", public.port())));
}

/// An HTTP tunnel beside it is not touched, and many connections at once are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once() {
    let (local, web, edge) =
        (Local::echo().await, TestUpstream::saying("web").await, TestEdge::start());
    let tunnels = vec![TestAgent::tunnel("site", &web.url()), tunnel(Tcp, local.address)];
    let agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    let public = SocketAddr::new(edge.http().ip(), port(&agent).await);
    let mut visitors = Vec::new();
    for number in 0..100 {
        let mut visitor = connect(public).await;
        let text = format!("visitor {number}");
        assert_eq!(exchange(&mut visitor, text.as_bytes()).await, text.as_bytes());
        visitors.push(visitor);
    }
    for (number, visitor) in visitors.iter_mut().enumerate() {
        let text = format!("again {number}");
        assert_eq!(exchange(visitor, text.as_bytes()).await, text.as_bytes());
    }
    edge.get("site", "/").await.assert_ok("web");
}
