//! Agents and edges that keep to nothing, and an edge that stops.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;
use uniroute_agent::TunnelKind::{Http, Tcp, Udp};
use uniroute_proto::{
    codec::{self, Kind as FrameKind},
    v1::{
        self, UpstreamErrorKind, control_frame::Frame, stream_open::Kind as Open,
        stream_reply::Reply,
    },
};
use uniroute_shared::{
    session::{Receiver, Sender},
    stream::FrameReader,
};

use super::{Local, assert_cut, connect, counted, exchange, serve, tunnel};
use crate::harness::{
    TestEdge, eventually,
    hand::{Hand, HandEdge, data},
    within,
};

/// An agent by hand with one tunnel of `kind`, and where its visitors come in.
async fn hand(edge: &TestEdge, kind: v1::TunnelKind) -> (Hand, SocketAddr) {
    let mut hand = Hand::agent(edge.http()).await;
    let mut init = hand.init("hand").await;
    init.tunnels[0].kind = kind.into();
    hand.send(Frame::Init(init)).await;
    let Frame::TunnelCreated(created) = hand.next().await else { panic!("no tunnel") };
    hand.send(Frame::Ready(v1::Ready {})).await;
    let Frame::ReadyAck(_) = hand.next().await else { panic!("not ready") };
    let port = u16::try_from(created.port).unwrap();
    (hand, SocketAddr::new(edge.http().ip(), port))
}

fn reply(reply: Reply, end: bool) -> Bytes {
    codec::message(&v1::StreamReply { reply: Some(reply) }, end)
}

/// T06: an agent's first word on a connection that is none. The visitor sees a cut.
#[tokio::test(flavor = "multi_thread")]
async fn t06_answers_that_are_none_cut_the_connection() {
    let edge = TestEdge::start();
    let (mut hand, public) = hand(&edge, v1::TunnelKind::Tcp).await;
    let head = v1::ResponseHead { status: 200, headers: Vec::new(), ..Default::default() };
    for wrong in [
        reply(Reply::Head(head), false),
        reply(Reply::Connected(v1::Connected {}), true),
        codec::message(&v1::StreamReply { reply: None }, false),
        data(b"bytes at once", false),
        Bytes::from_static(&[0x7f, 0, 0, 0]),
        Bytes::from_static(&[0, 0xff, 0xff, 0xff]),
    ] {
        let mut visitor = connect(public).await;
        let mut request = hand.request().await;
        request.sender.send(wrong, false).unwrap();
        assert_cut(&mut visitor).await;
    }
    counted(&edge, "UR-2004").await;
    // A reset instead of a word.
    let mut visitor = connect(public).await;
    drop(hand.request().await);
    assert_cut(&mut visitor).await;
    // The session has gone through it all.
    let mut visitor = connect(public).await;
    let mut request = hand.request().await;
    request.sender.send(reply(Reply::Connected(v1::Connected {}), false), false).unwrap();
    request.sender.send(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(super::rest(&mut visitor).await.unwrap(), b"hello");
}

/// The same on a flow: it ends, and the next datagram begins another one.
#[tokio::test(flavor = "multi_thread")]
async fn t06_frames_that_are_no_datagrams_end_the_flow() {
    let edge = TestEdge::start();
    let (mut hand, public) = hand(&edge, v1::TunnelKind::Udp).await;
    let visitor = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    visitor.connect(public).await.unwrap();
    let header = codec::header(FrameKind::Datagram, false, codec::MAX_DATAGRAM + 1);
    for wrong in [data(b"no datagram", false), Bytes::copy_from_slice(&header)] {
        visitor.send(b"hello").await.unwrap();
        let mut request = hand.request().await;
        let connected = reply(Reply::Connected(v1::Connected {}), false);
        request.sender.send([connected, wrong].concat().into(), false).unwrap();
        eventually("the flow is over", async || {
            (edge.status().await["sessions"][0]["streams"] == 1).then_some(())
        })
        .await;
    }
    counted(&edge, "UR-2004").await;
}

/// T23: what an edge may ask an agent for.
#[tokio::test(flavor = "multi_thread")]
async fn t23_an_agent_serves_a_tunnel_as_what_it_is() {
    let local = Local::echo().await;
    let edge = HandEdge::bind().await;
    let tunnels =
        vec![tunnel(Http, local.address), tunnel(Tcp, local.address), tunnel(Udp, local.address)];
    let mut settings = edge.agent_settings(tunnels[0].clone());
    settings.tunnels = tunnels;
    let _agent = crate::harness::TestAgent::spawn(settings);
    let hand = edge.accept_ready().await;
    let tcp = || Open::Tcp(v1::TcpOpen { peer: "1.1.1.1:1".into(), local: "2.2.2.2:2".into() });
    let udp = || Open::Udp(v1::UdpOpen::default());
    let http = || Open::Http(v1::HttpOpen::default());
    // The ids are 0, 1, …, 16 bytes of each.
    for (tunnel, open, expected) in [
        (0, tcp(), UpstreamErrorKind::BadRequest),
        (0, udp(), UpstreamErrorKind::BadRequest),
        (1, udp(), UpstreamErrorKind::BadRequest),
        (1, http(), UpstreamErrorKind::BadRequest),
        (1, Open::Tls(v1::TlsOpen::default()), UpstreamErrorKind::BadRequest),
        (2, tcp(), UpstreamErrorKind::BadRequest),
        (9, tcp(), UpstreamErrorKind::UnknownTunnel),
    ] {
        let what = format!("{open:?} for {tunnel}");
        let (mut sender, receiver): (Sender, Receiver) = hand.mux.open().map(halves).unwrap();
        let open = v1::StreamOpen {
            tunnel_id: vec![tunnel; 16].into(),
            kind: Some(open),
            ..Default::default()
        };
        sender.send(codec::message(&open, false), false).unwrap();
        let mut reader = FrameReader::new(receiver);
        let reply = within(&what, reader.message::<v1::StreamReply>("StreamReply")).await;
        let Some(Reply::Error(error)) = reply.unwrap().0.reply else { panic!("{what}: served") };
        assert_eq!(error.kind(), expected, "{what}");
    }
}

fn halves<S: Into<Sender>, R: Into<Receiver>>((sender, receiver): (S, R)) -> (Sender, Receiver) {
    (sender.into(), receiver.into())
}

/// An edge that stops waits for no connection that may last for ever, and does not let one look
/// complete.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_cuts_what_is_open() {
    let (local, edge) = (Local::echo().await, TestEdge::start());
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    let mut visitor = connect(public).await;
    assert_eq!(exchange(&mut visitor, b"open").await, b"open");
    assert!(edge.shutdown().await, "nothing is left over");
    assert_cut(&mut visitor).await;
}
