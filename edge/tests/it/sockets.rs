//! Tunnels that carry bytes: TCP, TLS as it is, datagrams, and who the visitor is said to be.

mod hostile;
mod programs;
mod proxy;
mod tcp;
mod tls;
mod udp;

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use uniroute_agent::{Event, TunnelKind, TunnelSettings};

use crate::harness::{TestAgent, TestEdge, eventually, within};

/// A local server that does with each connection what a test says; gone with its value.
struct Local {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Local {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Local {
    async fn start<F, S>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::spawn(serve(socket));
            }
        });
        Self { address, task }
    }

    /// Says everything back, and is done when the visitor is.
    async fn echo() -> Self {
        Self::start(|mut socket| async move {
            let (mut from, mut to) = socket.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        })
        .await
    }
}

/// A tunnel of `kind` to `upstream`; its key is the kind.
fn tunnel(kind: TunnelKind, upstream: impl std::fmt::Display) -> TunnelSettings {
    TunnelSettings::of_kind(kind, kind.as_str(), &upstream.to_string()).unwrap()
}

/// An agent with one tunnel, ready, and where its visitors come in.
async fn serve(edge: &TestEdge, tunnel: TunnelSettings) -> (TestAgent, SocketAddr) {
    let agent = TestAgent::serve(edge, tunnel).await;
    let port = port(&agent).await;
    (agent, SocketAddr::new(edge.http().ip(), port))
}

/// The public port that an agent got last.
async fn port(agent: &TestAgent) -> u16 {
    let urls = urls(agent).await;
    let url = urls.last().unwrap();
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

async fn urls(agent: &TestAgent) -> Vec<String> {
    let url = |event: &Event| match event {
        Event::Ready { url, .. } => Some(url.clone()),
        _ => None,
    };
    agent.seen(url).await
}

async fn connect(to: SocketAddr) -> TcpStream {
    let socket = within("a connection", TcpStream::connect(to)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// Sends `bytes` and reads as many back.
async fn exchange(socket: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    within("bytes are taken", socket.write_all(bytes)).await.unwrap();
    let mut got = vec![0; bytes.len()];
    within("the echo", socket.read_exact(&mut got)).await.unwrap();
    got
}

/// How a connection ends: with what came before it, or with an error.
async fn rest(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    within("the connection's end", socket.read_to_end(&mut got)).await.map(|_| got)
}

/// A connection that is cut, and not closed.
async fn assert_cut(socket: &mut TcpStream) {
    let ended = rest(socket).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A connection that nobody serves. The cut may be there before the connection is seen.
async fn assert_refused(to: SocketAddr) {
    match within("a connection", TcpStream::connect(to)).await {
        Ok(mut socket) => {
            let _ = socket.write_all(b"hello").await;
            assert_cut(&mut socket).await;
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

/// A failure was counted under `code`.
async fn counted(edge: &TestEdge, code: &str) {
    eventually(code, async || {
        let metrics = edge.ask_admin("/metrics").await;
        let label = format!("code=\"{code}\"");
        let line = metrics.text().lines().find(|line| line.contains(&label))?;
        line.starts_with("uniroute_edge_failures_total{").then_some(())
    })
    .await;
}

/// Ports that nobody listens on now, as a range.
fn free_ports() -> std::ops::RangeInclusive<u16> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    port..=port
}
