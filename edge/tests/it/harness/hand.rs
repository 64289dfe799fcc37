//! Agents and edges made by hand, to do what the real ones never would.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use uniroute_agent::{Settings, Transport, TunnelSettings};
use uniroute_proto::{
    VERSION, codec,
    v1::{self, ControlFrame, control_frame::Frame, stream_reply::Reply},
};
use uniroute_shared::{
    carrier::upgrade,
    mux::{self, Acceptor, Receiver, Sender, SessionError},
    stream::FrameReader,
};

use super::{TOKEN, TestAgent, wire::Wire, within};

/// Upgrades a connection to the edge; from then on it is a WebSocket.
pub(crate) async fn dial(edge: SocketAddr) -> Wire {
    let (request, key) = upgrade::request::<()>(&edge.to_string(), None).unwrap();
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let mut wire = Wire::connect(edge).await;
    wire.send(text + "\r\n").await;
    let head = wire.head().await;
    assert_eq!(head.status(), 101);
    let mut answer = http::Response::builder().status(101);
    for (name, value) in &head.fields {
        answer = answer.header(name, value);
    }
    upgrade::check_response(&answer.body(()).unwrap(), &key).unwrap();
    wire
}

/// One side of a session whose control stream is spoken by hand.
pub(crate) struct Hand {
    pub(crate) mux: mux::Session,
    pub(crate) acceptor: Acceptor,
    pub(crate) sender: Sender,
    reader: FrameReader,
    driver: JoinHandle<SessionError>,
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Hand {
    /// An agent that has said nothing yet.
    pub(crate) async fn agent(edge: SocketAddr) -> Self {
        let wire = dial(edge).await;
        let (mux, acceptor, mut driver) = mux::new(mux::Config::agent(), wire.socket, Bytes::new());
        let driver = tokio::spawn(async move { driver.run().await });
        let (mut sender, receiver) = mux.open().unwrap();
        sender.announce();
        Self { mux, acceptor, sender, reader: FrameReader::control(receiver), driver }
    }

    /// An agent that serves the tunnel `name`, and the tunnel's id.
    pub(crate) async fn ready_agent(edge: SocketAddr, name: &str) -> (Self, Bytes) {
        let (hand, tunnel_id, _) = Self::ready_agent_with(edge, name, &[]).await;
        (hand, tunnel_id)
    }

    /// The same, that speaks `features`, and what the edge said at last.
    pub(crate) async fn ready_agent_with(
        edge: SocketAddr,
        name: &str,
        features: &[&str],
    ) -> (Self, Bytes, v1::ReadyAck) {
        let mut hand = Self::agent(edge).await;
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        let init = v1::Init { features, ..hand.init(name).await };
        hand.send(Frame::Init(init)).await;
        let Frame::TunnelCreated(created) = hand.next().await else { panic!("no tunnel") };
        hand.send(Frame::Ready(v1::Ready {})).await;
        let Frame::ReadyAck(ack) = hand.next().await else { panic!("not ready") };
        (hand, created.tunnel_id, ack)
    }

    /// The right answer to the challenge that comes next.
    pub(crate) async fn init(&mut self, name: &str) -> v1::Init {
        let Frame::AuthChallenge(challenge) = self.next().await else { panic!("no challenge") };
        let tunnel = v1::TunnelSpec {
            key: name.into(),
            kind: v1::TunnelKind::Http.into(),
            name: name.into(),
            ..Default::default()
        };
        v1::Init {
            version: VERSION,
            nonce: challenge.nonce,
            token: TOKEN.into(),
            agent_id: format!("hand-{name}"),
            tunnels: vec![tunnel],
            ..Default::default()
        }
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        within("room for a control frame", self.sender.ready()).await.unwrap();
        self.sender.send(codec::message(&ControlFrame::from(frame), false), false).unwrap();
    }

    /// The next control frame.
    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Frame> {
        let frame = within("a control frame", self.reader.message::<ControlFrame>("ControlFrame"));
        async move { frame.await.unwrap().0.frame.unwrap() }
    }

    /// How the session ended.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> impl Future<Output = SessionError> {
        let ended = within("the session ends", &mut self.driver);
        async move { ended.await.unwrap() }
    }

    /// The next request that the edge sends.
    #[track_caller]
    pub(crate) fn request(&mut self) -> impl Future<Output = HandRequest> {
        let accepted = within("a stream", self.acceptor.accept());
        async move {
            let (sender, receiver) = accepted.await.expect("a stream, not the session's end");
            let mut reader = FrameReader::new(receiver);
            reader.message::<v1::StreamOpen>("StreamOpen").await.unwrap();
            HandRequest { sender, reader }
        }
    }
}

/// A request, seen by an agent made by hand.
pub(crate) struct HandRequest {
    pub(crate) sender: Sender,
    pub(crate) reader: FrameReader,
}

/// The frame of an answer's head.
pub(crate) fn reply(status: u32, fields: &[(&[u8], &[u8])], end: bool) -> Bytes {
    let header = |(name, value): &(&[u8], &[u8])| v1::Header {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    };
    let head = v1::ResponseHead {
        status,
        headers: fields.iter().map(header).collect(),
        ..Default::default()
    };
    codec::message(&v1::StreamReply { reply: Some(Reply::Head(head)) }, end)
}

/// A frame of body.
pub(crate) fn data(bytes: &[u8], end: bool) -> Bytes {
    [&codec::header(codec::Kind::Data, end, bytes.len())[..], bytes].concat().into()
}

/// A place where agents connect, with an edge made by hand behind it.
pub(crate) struct HandEdge {
    listener: TcpListener,
}

impl HandEdge {
    pub(crate) async fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Settings of an agent that connects here; this edge speaks WebSocket only.
    pub(crate) fn agent_settings(&self, tunnel: TunnelSettings) -> Settings {
        let mut settings = TestAgent::settings(self.address(), vec![tunnel]);
        settings.transport = Transport::WebSocket;
        settings
    }

    /// The next agent, with its control stream open.
    pub(crate) async fn accept(&self) -> Hand {
        let (socket, _) = within("an agent", self.listener.accept()).await.unwrap();
        let socket = switch(socket).await;
        let (mux, mut acceptor, mut driver) = mux::new(mux::Config::edge(), socket, Bytes::new());
        let driver = tokio::spawn(async move { driver.run().await });
        let (sender, receiver) = within("the control stream", acceptor.accept()).await.unwrap();
        Hand { mux, acceptor, sender, reader: FrameReader::control(receiver), driver }
    }

    /// The next agent, with the challenge sent.
    pub(crate) async fn accept_offering(&self, quic: Option<v1::QuicOffer>) -> Hand {
        let mut hand = self.accept().await;
        let Frame::AuthChallenge(challenge) = challenge(VERSION) else { unreachable!() };
        hand.send(Frame::AuthChallenge(v1::AuthChallenge { quic, ..challenge })).await;
        hand
    }

    /// The next agent, with its tunnels made; they have the ids 0, 1, …, 16 bytes of each.
    pub(crate) async fn accept_ready(&self) -> Hand {
        self.accept_ready_offering(None).await
    }

    /// The same, told of QUIC.
    pub(crate) async fn accept_ready_offering(&self, quic: Option<v1::QuicOffer>) -> Hand {
        let mut hand = self.accept_offering(quic).await;
        let Frame::Init(init) = hand.next().await else { panic!("no init") };
        for (number, tunnel) in (0_u8..).zip(&init.tunnels) {
            let created = v1::TunnelCreated {
                key: tunnel.key.clone(),
                tunnel_id: vec![number; 16].into(),
                name: tunnel.name.clone(),
                public_url: "http://a.test".into(),
                state: v1::TunnelState::Active.into(),
                epoch: 1,
                port: tunnel.port,
                hold_ms: None,
            };
            hand.send(Frame::TunnelCreated(created)).await;
        }
        let Frame::Ready(_) = hand.next().await else { panic!("not ready") };
        let interval = Duration::from_secs(30).as_millis();
        let ack = v1::ReadyAck {
            heartbeat_interval_ms: interval.try_into().unwrap(),
            ..Default::default()
        };
        hand.send(Frame::ReadyAck(ack)).await;
        hand
    }
}

/// An edge's first frame, if it speaks one version only.
pub(crate) fn challenge(version: u32) -> Frame {
    Frame::AuthChallenge(v1::AuthChallenge {
        nonce: vec![7; 16].into(),
        version_min: version,
        version_max: version,
        ..Default::default()
    })
}

/// Answers an agent's upgrade.
async fn switch(socket: TcpStream) -> TcpStream {
    let mut wire = Wire::new(socket);
    let head = wire.head().await;
    let mut request = Request::builder().uri(head.target());
    for (name, value) in &head.fields {
        let value = HeaderValue::from_str(value).unwrap();
        request = request.header(HeaderName::try_from(name).unwrap(), value);
    }
    let answer = upgrade::response::<_, ()>(&request.body(()).unwrap()).unwrap();
    let mut text = String::from("HTTP/1.1 101 Switching Protocols\r\n");
    for (name, value) in answer.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    wire.send(text + "\r\n").await;
    wire.socket
}

/// A request to a tunnel, as an edge made by hand sends it; whatever the fields hold.
pub(crate) async fn ask(hand: &Hand, tunnel_id: &[u8], http: v1::HttpOpen) -> v1::StreamReply {
    let (mut sender, receiver): (Sender, Receiver) = hand.mux.open().unwrap();
    // Bytes follow a switch of protocols, and nothing else.
    let end = http.upgrade.is_empty();
    let open = v1::StreamOpen {
        tunnel_id: Bytes::copy_from_slice(tunnel_id),
        request_id: vec![9; 16].into(),
        kind: Some(v1::stream_open::Kind::Http(http)),
        ..Default::default()
    };
    sender.send(codec::message(&open, end), end).unwrap();
    let mut reader = FrameReader::new(receiver);
    within("a reply", reader.message::<v1::StreamReply>("StreamReply")).await.unwrap().0
}
