//! Connections that switch protocols: WebSocket from end to end, and what is no switch.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, accept_async, client_async,
    tungstenite::{Error, Message, protocol::CloseFrame},
};

use crate::harness::{
    TestAgent, TestEdge, eventually, host,
    upstream::{RawUpstream, TestUpstream},
    within,
};

/// A WebSocket server that says everything back, and closes when the visitor does.
async fn echo() -> RawUpstream {
    RawUpstream::start(|_, wire| async move {
        let mut socket = accept_async(wire.socket).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn open(edge: &TestEdge, name: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let socket = TcpStream::connect(edge.http()).await.unwrap();
    let opening = client_async(format!("ws://{}/chat", host(name)), socket);
    within("the WebSocket opens", opening).await.map(|(socket, _)| socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_carries_messages_both_ways() {
    let upstream = echo().await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut socket = open(&edge, "demo").await.unwrap();
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let sent = Message::Binary(Bytes::from(vec![b'm'; length]));
        socket.send(sent.clone()).await.unwrap();
        let got = within("the echo", socket.next()).await.unwrap().unwrap();
        assert!(got == sent, "{length} bytes");
    }
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(
        within("a pong", socket.next()).await.unwrap().unwrap(),
        Message::Pong("are you there".into())
    );
    // A clean close is a clean close at the other end.
    let frame = CloseFrame { code: 4321.into(), reason: "bye".into() };
    socket.close(Some(frame.clone())).await.unwrap();
    let closed = within("the close", socket.next()).await.unwrap().unwrap();
    assert_eq!(closed, Message::Close(Some(frame)));
    assert!(within("the end", socket.next()).await.is_none());
    drop(socket);
    eventually("the stream is over", async || {
        (edge.status().await["sessions"][0]["streams"] == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_websockets_beside_requests() {
    let upstream = echo().await;
    let plain = TestUpstream::saying("plain").await;
    let edge = TestEdge::start();
    let tunnels =
        vec![TestAgent::tunnel("chat", &upstream.url()), TestAgent::tunnel("plain", &plain.url())];
    let _agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    let mut sockets = Vec::new();
    for _ in 0..30 {
        sockets.push(open(&edge, "chat").await.unwrap());
    }
    for (number, socket) in sockets.iter_mut().enumerate() {
        let sent = Message::text(format!("from {number}"));
        socket.send(sent.clone()).await.unwrap();
        edge.get("plain", "/").await.assert_ok("plain");
        assert_eq!(within("the echo", socket.next()).await.unwrap().unwrap(), sent);
    }
}

/// Bytes that come with the heads, before the switch is known on the other side.
#[tokio::test(flavor = "multi_thread")]
async fn t01_early_bytes_of_both_sides_arrive() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        let head = wire.head().await;
        assert_eq!(head.get("upgrade"), Some("raw"));
        assert!(head.get("connection").unwrap().eq_ignore_ascii_case("upgrade"));
        // T01: nothing of the visitor's comes before the switch.
        let early = tokio::time::timeout(Duration::from_millis(200), wire.bytes()).await;
        assert!(early.is_err(), "{early:?}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\nx-said: yes\r\n\r\nfrom the server").await;
        assert_eq!(wire.exactly(16).await, "from the visitor");
        wire.send("and on").await;
        assert_eq!(wire.rest().await, "");
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: raw\r\n\r\nfrom the visitor",
            host("demo")
        ))
        .await;
    let head = visitor.head().await;
    assert_eq!(
        (head.status(), head.get("upgrade"), head.get("x-said")),
        (101, Some("raw"), Some("yes"))
    );
    assert_eq!(visitor.exactly(15).await, "from the server");
    assert_eq!(visitor.exactly(6).await, "and on");
}

/// One side may be done before the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_switched_connection_can_be_half_closed() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.head().await;
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n",
        )
        .await;
        let all = wire.rest().await;
        wire.send(format!("{} bytes", all.len())).await;
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n",
            host("demo")
        ))
        .await;
    assert_eq!(visitor.head().await.status(), 101);
    visitor.send(vec![b'x'; 1_000_000]).await;
    tokio::io::AsyncWriteExt::shutdown(&mut visitor.socket).await.unwrap();
    assert_eq!(visitor.rest().await, "1000000 bytes");
}

/// The local server says no; that is an answer like any other, however fast it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_declined_upgrade_is_an_ordinary_answer() {
    let upstream = TestUpstream::saying("no").await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    for _ in 0..100 {
        visitor
            .send(format!(
                "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                host("demo")
            ))
            .await;
        visitor.answer("GET").await.assert_ok("no");
    }
    assert!(
        matches!(open(&edge, "demo").await, Err(Error::Http(answer)) if answer.status() == 200)
    );
    drop(upstream);
    assert!(
        matches!(open(&edge, "demo").await, Err(Error::Http(answer)) if answer.status() == 502)
    );
}

/// What ends one side ends the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_websocket_is_broken_at_both_ends() {
    let upstream = echo().await;
    let edge = TestEdge::start();
    let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut socket = open(&edge, "demo").await.unwrap();
    drop(agent);
    let ended = within("the visitor sees it", socket.next()).await;
    assert!(ended.is_none_or(|message| message.is_err()));
}
