//! Connections between our mux and a peer that speaks WebSocket through tokio-tungstenite.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use http::{HeaderValue, Request, Response, header::SEC_WEBSOCKET_PROTOCOL};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use uniroute_proto::{SUBPROTOCOL, TUNNEL_PATH};
use uniroute_shared::{
    carrier::upgrade,
    mux::{self, Acceptor, Config, Session, SessionError, Side},
};

/// Far more than anything here takes; a hang fails instead of blocking the run.
const BOUND: Duration = Duration::from_secs(120);

/// `future`, which must not hang.
pub(crate) async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(BOUND, future).await.expect("it hangs")
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..5_000 {
        if condition() {
            return;
        }
        tick.tick().await;
    }
    panic!("still not so: {what}");
}

/// Counts the runtime's tasks, to see that none is left behind.
pub(crate) struct Tasks(usize);

impl Tasks {
    pub(crate) fn count() -> Self {
        Self(tokio::runtime::Handle::current().metrics().num_alive_tasks())
    }

    pub(crate) async fn none_left(self) {
        eventually("all tasks have ended", || Self::count().0 <= self.0).await;
    }
}

/// Our end of a connection, with its driver running.
pub(crate) struct Ours {
    pub(crate) session: Session,
    pub(crate) acceptor: Acceptor,
    pub(crate) driver: JoinHandle<SessionError>,
}

impl Ours {
    pub(crate) fn over(config: Config, io: TcpStream, early: Bytes) -> Self {
        let (session, acceptor, mut driver) = mux::new(config, io, early);
        let driver = tokio::spawn(async move { driver.run().await });
        Self { session, acceptor, driver }
    }
}

/// A configuration with which the peer may open streams too.
pub(crate) fn both_open(side: Side) -> Config {
    let config = if side == Side::Server { Config::edge() } else { Config::agent() };
    Config { inbound_total: u32::MAX, ..config }
}

/// Two connected sockets: the one that dialled, and the one that was dialled.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// Our mux joined with a peer's WebSocket, after a real handshake.
pub(crate) async fn joined(config: Config) -> (Ours, WsIo) {
    let (dialled, accepted) = sockets().await;
    match config.side {
        Side::Server => {
            let (early, peer) = tokio::join!(accept_upgrade(accepted), peer_dials(dialled));
            (Ours::over(config, early.0, early.1), peer)
        }
        Side::Client => {
            let (early, peer) = tokio::join!(dial_upgrade(dialled), peer_accepts(accepted));
            (Ours::over(config, early.0, early.1), peer)
        }
    }
}

async fn peer_dials(io: TcpStream) -> WsIo {
    let mut request = format!("ws://edge.test{TUNNEL_PATH}").into_client_request().unwrap();
    let protocol = HeaderValue::from_static(SUBPROTOCOL);
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    WsIo::new(client_async(request, io).await.unwrap().0)
}

async fn peer_accepts(io: TcpStream) -> WsIo {
    use tungstenite::handshake::server::{ErrorResponse, Request, Response};
    fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        Ok(response)
    }
    WsIo::new(accept_hdr_async(io, agree).await.unwrap())
}

async fn accept_upgrade(mut io: TcpStream) -> (TcpStream, Bytes) {
    let (head, early) = read_head(&mut io).await;
    let mut lines = head.lines();
    let target = lines.next().unwrap().split(' ').nth(1).unwrap();
    let mut request = Request::builder().uri(target);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let answer: Response<()> = upgrade::response(&request.body(()).unwrap()).unwrap();
    let head = head_text("HTTP/1.1 101 Switching Protocols", answer.headers());
    io.write_all(head.as_bytes()).await.unwrap();
    (io, early)
}

async fn dial_upgrade(mut io: TcpStream) -> (TcpStream, Bytes) {
    let (request, key) = upgrade::request::<()>("edge.test", None).unwrap();
    let head = head_text(&format!("GET {} HTTP/1.1", request.uri()), request.headers());
    io.write_all(head.as_bytes()).await.unwrap();
    let (head, early) = read_head(&mut io).await;
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let mut response = Response::builder().status(status);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        response = response.header(name, value);
    }
    upgrade::check_response(&response.body(()).unwrap(), &key).unwrap();
    (io, early)
}

fn head_text(first: &str, headers: &http::HeaderMap) -> String {
    let field = |(name, value): (&http::HeaderName, &HeaderValue)| {
        format!("{name}: {}\r\n", value.to_str().unwrap())
    };
    format!("{first}\r\n{}\r\n", headers.iter().map(field).collect::<String>())
}

/// An HTTP head, and what came behind it.
async fn read_head(io: &mut TcpStream) -> (String, Bytes) {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let early = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).unwrap(), early.into());
        }
        assert!(io.read_buf(&mut bytes).await.unwrap() > 0, "no whole head");
    }
}

/// A peer's WebSocket as a byte stream.
pub(crate) struct WsIo {
    socket: WebSocketStream<TcpStream>,
    unread: Bytes,
}

impl WsIo {
    fn new(socket: WebSocketStream<TcpStream>) -> Self {
        Self { socket, unread: Bytes::new() }
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl AsyncRead for WsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(message)) if message.is_binary() => self.unread = message.into_data(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let take = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..take]);
        self.unread.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}
