//! UDP tunnels: flows of datagrams, their ends and their bounds.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use tokio::{net::UdpSocket, task::JoinHandle};
use uniroute_agent::TunnelKind::{Tcp, Udp};

use super::{Local, counted, serve, tunnel};
use crate::harness::{
    TestAgent, TestEdge, eventually,
    link::{Link, Nature},
    within,
};

/// A server that says each datagram back, and in front of it who it thinks has asked.
struct Echo {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Echo {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                // The longest one leaves no room for more.
                let answer = match length {
                    0..1000 => [&from.port().to_be_bytes()[..], &buffer[..length]].concat(),
                    _ => buffer[..length].to_vec(),
                };
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Self { address, task }
    }
}

/// A visitor, from a port of its own.
async fn visitor(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// One datagram there and back: the port that the server saw, and the payload. Asked again when it
/// got lost, as a program would.
async fn ask(socket: &UdpSocket, payload: &[u8]) -> (u16, Vec<u8>) {
    let mut buffer = vec![0; 65_536];
    let length = eventually("an answer", async || {
        socket.send(payload).await.ok()?;
        let answer = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer));
        answer.await.ok()?.ok()
    })
    .await;
    let (port, echo) = buffer[..length].split_at(2);
    (u16::from_be_bytes(port.try_into().unwrap()), echo.to_vec())
}

async fn flows(edge: &TestEdge) -> u64 {
    // Beside the control stream, and nothing else runs here.
    edge.status().await["sessions"][0]["streams"].as_u64().unwrap() - 1
}

/// 1,000 datagrams, some in flight at a time, all answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_datagrams_are_answered() {
    const WINDOW: usize = 16;
    let (echo, edge) = (Echo::start().await, TestEdge::start());
    let (agent, public) = serve(&edge, tunnel(Udp, echo.address)).await;
    assert_eq!(super::urls(&agent).await, [format!("udp://tunnels.test:{}", public.port())]);
    let socket = visitor(public).await;
    let mut open: HashSet<u32> = HashSet::new();
    let (mut next, mut buffer) = (0_u32, [0; 2000]);
    while next < 1_000 || !open.is_empty() {
        while next < 1_000 && open.len() < WINDOW {
            socket.send(&next.to_be_bytes()).await.unwrap();
            open.insert(next);
            next += 1;
        }
        let length = within("an answer", socket.recv(&mut buffer)).await.unwrap();
        let number = u32::from_be_bytes(buffer[2..length].try_into().unwrap());
        assert!(open.remove(&number), "{number} was not asked, or answered twice");
    }
    assert_eq!(flows(&edge).await, 1);
    assert_eq!(edge.metric("datagrams_in_total").await, 1_000);
    assert_eq!(edge.metric("datagrams_out_total").await, 1_000);
}

/// Borders stay, whatever the length.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_every_length() {
    let (echo, edge) = (Echo::start().await, TestEdge::start());
    let (_agent, public) = serve(&edge, tunnel(Udp, echo.address)).await;
    let socket = visitor(public).await;
    for length in [0, 1, 512, 999] {
        let sent = vec![b'd'; length];
        assert_eq!(ask(&socket, &sent).await.1, sent, "{length} bytes");
    }
    let mut buffer = vec![0; 65_536];
    for length in [1_000, 1_472, 9_000, 65_507] {
        let sent = vec![b'd'; length];
        socket.send(&sent).await.unwrap();
        let got = within("the echo", socket.recv(&mut buffer)).await.unwrap();
        assert!(buffer[..got] == sent, "{length} bytes");
    }
}

/// Each visitor has a flow: its answers come to it alone, and the server tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn visitors_are_told_apart() {
    let (echo, edge) = (Echo::start().await, TestEdge::start());
    let (_agent, public) = serve(&edge, tunnel(Udp, echo.address)).await;
    let mut ports = HashSet::new();
    let mut sockets = Vec::new();
    for number in 0..20 {
        let socket = visitor(public).await;
        let sent = format!("visitor {number}");
        let (port, echo) = ask(&socket, sent.as_bytes()).await;
        assert_eq!(echo, sent.as_bytes());
        ports.insert(port);
        sockets.push((socket, port));
    }
    assert_eq!((ports.len(), flows(&edge).await), (20, 20));
    for (socket, port) in &sockets {
        assert_eq!(ask(socket, b"again").await.0, *port, "it is the same flow");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_still_flow_ends_and_the_next_datagram_begins_one() {
    let (echo, edge) = (Echo::start().await, TestEdge::start());
    let mut short = tunnel(Udp, echo.address);
    short.idle_timeout = Some(Duration::from_millis(300));
    let (_agent, public) = serve(&edge, short).await;
    let socket = visitor(public).await;
    let (first, _) = ask(&socket, b"one").await;
    eventually("the flow is over", async || (flows(&edge).await == 0).then_some(())).await;
    let (second, _) = ask(&socket, b"two").await;
    assert_ne!(first, second, "a new flow has a new socket");
}

/// More visitors than flows: those that are quiet make room.
#[tokio::test(flavor = "multi_thread")]
async fn flows_are_bounded() {
    let echo = Echo::start().await;
    let edge = TestEdge::with(|settings| settings.sockets.max_tunnel_flows = 8);
    let (_agent, public) = serve(&edge, tunnel(Udp, echo.address)).await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        let socket = visitor(public).await;
        socket.send(b"x").await.unwrap();
        sockets.push(socket);
    }
    counted(&edge, "UR-5012").await;
    assert!(flows(&edge).await <= 8);
    // A new one is served all the same, once somebody is quiet.
    assert_eq!(ask(&visitor(public).await, b"late").await.1, b"late");
}

/// Nobody is there: nothing waits, and what comes later passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_keeps_the_port() {
    let (echo, edge) = (Echo::start().await, TestEdge::start());
    let link = Link::start(edge.http(), Nature::PLAIN).await;
    let settings = TestAgent::settings(link.address, vec![tunnel(Udp, echo.address)]);
    let settings =
        uniroute_agent::Settings { transport: uniroute_agent::Transport::WebSocket, ..settings };
    let agent = TestAgent::launch(settings).await;
    let public = SocketAddr::new(edge.http().ip(), super::port(&agent).await);
    let socket = visitor(public).await;
    assert_eq!(ask(&socket, b"before").await.1, b"before");
    link.cut();
    assert_eq!(ask(&socket, b"after").await.1, b"after");
    drop(agent);
    eventually("datagrams are dropped", async || {
        socket.send(b"x").await.ok()?;
        let metrics = edge.ask_admin("/metrics").await;
        metrics.text().contains("datagrams_dropped_total{reason=\"no-agent\"}").then_some(())
    })
    .await;
}

/// A server that takes no datagrams does not end the flow: it may come.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_later() {
    let edge = TestEdge::start();
    // Where no other test looks for a free port.
    let place = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let (_agent, public) = serve(&edge, tunnel(Udp, address)).await;
    let socket = visitor(public).await;
    eventually("the agent has said so", async || {
        socket.send(b"anybody?").await.ok()?;
        edge.status().await["tunnels"][0]["unhealthy"].is_string().then_some(())
    })
    .await;
    let here = UdpSocket::bind(address).await.unwrap();
    let mut got = [0; 10];
    eventually("it hears", async || {
        socket.send(b"now?").await.ok()?;
        let heard = tokio::time::timeout(Duration::from_millis(200), here.recv(&mut got));
        heard.await.ok()?.ok()
    })
    .await;
}

/// A port of UDP is not one of TCP: both may have the same number.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_number_for_both() {
    let (echo, local) = (Echo::start().await, Local::echo().await);
    let range = super::free_ports();
    let edge = TestEdge::with(|settings| {
        settings.sockets.tcp_ports = Some(range.clone());
        settings.sockets.udp_ports = Some(range);
    });
    let tunnels = vec![tunnel(Tcp, local.address), tunnel(Udp, echo.address)];
    let agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    let public = SocketAddr::new(edge.http().ip(), super::port(&agent).await);
    assert_eq!(ask(&visitor(public).await, b"udp").await.1, b"udp");
    let mut socket = super::connect(public).await;
    assert_eq!(super::exchange(&mut socket, b"tcp").await, b"tcp");
}
