//! Who the visitor is: PROXY headers of load balancers, and for local servers.

use std::net::SocketAddr;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use uniroute_agent::{
    TunnelKind::{Tcp, Tls},
    TunnelSettings,
};
use uniroute_edge::config::Https;
use uniroute_shared::proxy_protocol::{self, Addresses, Parsed, Version};

use super::{Local, connect, counted, rest, serve, tunnel};
use crate::harness::{
    TestAgent, TestEdge, host, over_quic,
    upstream::{TestUpstream, text},
    wire::Wire,
    within,
};

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 50000 443\r\n";

fn v2() -> Bytes {
    proxy_protocol::header(
        Version::V2,
        &Addresses {
            source: "[2001:db8::9]:50000".parse().unwrap(),
            destination: "[2001:db8::1]:443".parse().unwrap(),
        },
    )
}

/// An edge to which this machine is a load balancer, or not.
fn edge_behind(balancers: &str) -> TestEdge {
    TestEdge::with(|settings| {
        settings.sockets.proxy_protocol = balancers.parse().unwrap();
        settings.sockets.https = Https::At(([127, 0, 0, 1], 0).into());
    })
}

/// An agent has to say who it is too, where all connections do; so it comes by a load balancer.
async fn balancer(to: SocketAddr) -> SocketAddr {
    let balancing = Local::start(move |mut near| async move {
        let mut far = TcpStream::connect(to).await.unwrap();
        far.write_all(V1).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    })
    .await;
    let address = balancing.address;
    // For as long as the test runs.
    std::mem::forget(balancing);
    address
}

/// A server that hands on what its connections begin with.
async fn listening() -> (Local, mpsc::Receiver<Vec<u8>>) {
    let (said, says) = mpsc::channel(8);
    let local = Local::start(move |mut socket| {
        let said = said.clone();
        async move {
            let mut got = Vec::new();
            let _ = socket.read_to_end(&mut got).await;
            let _ = said.send(got).await;
        }
    })
    .await;
    (local, says)
}

/// What a local server gets for a visitor that says `hello` and is done.
async fn heard(public: SocketAddr, header: &[u8], says: &mut mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut visitor = connect(public).await;
    visitor.write_all(header).await.unwrap();
    visitor.write_all(b"hello").await.unwrap();
    visitor.shutdown().await.unwrap();
    within("the server hears it", says.recv()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_server_is_told_who_the_visitor_is() {
    let edge = TestEdge::start();
    for version in [Version::V1, Version::V2] {
        let (local, mut says) = listening().await;
        let told = TunnelSettings { proxy_protocol: Some(version), ..tunnel(Tcp, local.address) };
        let (_agent, public) = serve(&edge, told).await;
        let mut visitor = connect(public).await;
        let from = visitor.local_addr().unwrap();
        visitor.write_all(b"hello").await.unwrap();
        visitor.shutdown().await.unwrap();
        let got = within("the server hears it", says.recv()).await.unwrap();
        let seen = Addresses { source: from, destination: public };
        assert_eq!(got, [&proxy_protocol::header(version, &seen)[..], b"hello"].concat());
    }
}

/// Both ends of the header's way: the load balancer's word reaches the local server.
#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_load_balancer_is_taken() {
    if over_quic() {
        return;
    }
    let edge = edge_behind("127.0.0.0/8");
    let (local, mut says) = listening().await;
    let told = TunnelSettings { proxy_protocol: Some(Version::V2), ..tunnel(Tcp, local.address) };
    let web = TestUpstream::start(|request| async move {
        text(request.headers()["x-forwarded-for"].to_str().unwrap().to_owned())
    })
    .await;
    let through = balancer(edge.http()).await;
    let tunnels = vec![TestAgent::tunnel("site", &web.url()), told];
    let agent = TestAgent::launch(TestAgent::settings(through, tunnels)).await;
    let public = SocketAddr::new(edge.http().ip(), super::port(&agent).await);

    let v2 = v2();
    let source = |got: &[u8]| match proxy_protocol::parse(got).unwrap() {
        Parsed::Header { length, addresses } => {
            assert_eq!(&got[length..], b"hello");
            addresses.unwrap().source.to_string()
        }
        Parsed::Incomplete => panic!("{got:?}"),
    };
    assert_eq!(source(&heard(public, V1, &mut says).await), "203.0.113.9:50000");
    assert_eq!(source(&heard(public, &v2, &mut says).await), "[2001:db8::9]:50000");
    // A health check speaks of its own connection.
    let local_command = [&v2[..12], &[0x20, 0, 0, 0]].concat();
    assert!(source(&heard(public, &local_command, &mut says).await).starts_with("127.0.0.1:"));

    // On the port for HTTP too: in one piece with the request, or in front of it.
    for (header, seen) in [(V1, "203.0.113.9"), (&v2[..], "2001:db8::9")] {
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("site"));
        let mut visitor = Wire::connect(edge.http()).await;
        visitor.send([header, request.as_bytes()].concat()).await;
        visitor.answer("GET").await.assert_ok(seen);
        visitor.send(&request).await;
        visitor.answer("GET").await.assert_ok(seen);
        let mut visitor = Wire::connect(edge.http()).await;
        for piece in header.chunks(5) {
            visitor.send(piece).await;
        }
        visitor.send(&request).await;
        visitor.answer("GET").await.assert_ok(seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_without_its_word_is_closed() {
    if over_quic() {
        return;
    }
    let edge = edge_behind("127.0.0.1");
    let (local, _says) = listening().await;
    let through = balancer(edge.http()).await;
    let settings = TestAgent::settings(through, vec![tunnel(Tcp, local.address)]);
    let agent = TestAgent::launch(settings).await;
    let public = SocketAddr::new(edge.http().ip(), super::port(&agent).await);
    for to in [public, edge.http(), edge.https()] {
        for wrong in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 1 2 3 4\r\n",
            &[b'P'; 200],
            b"\r\n\r\n\0\r\nquit\n",
        ] {
            let mut visitor = connect(to).await;
            let _ = visitor.write_all(wrong).await;
            assert_eq!(rest(&mut visitor).await.unwrap_or_default(), b"");
        }
    }
    counted(&edge, "UR-6010").await;
}

/// T03: a header from anybody else is only bytes.
#[tokio::test(flavor = "multi_thread")]
async fn t03_the_word_of_others_is_not() {
    let edge = edge_behind("10.0.0.0/8,::1");
    let (local, mut says) = listening().await;
    let (_agent, public) = serve(&edge, tunnel(Tcp, local.address)).await;
    assert_eq!(heard(public, V1, &mut says).await, [V1, b"hello"].concat());
    let mut visitor = Wire::connect(edge.http()).await;
    visitor.send([V1, b"GET / HTTP/1.1\r\nhost: tunnels.test\r\n\r\n"].concat()).await;
    assert!(visitor.rest().await.starts_with(b"HTTP/1.1 400"));
    let mut visitor = connect(edge.https()).await;
    let _ = visitor.write_all(V1).await;
    let _ = rest(&mut visitor).await;
    counted(&edge, "UR-1116").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_tunnels_have_both() {
    if over_quic() {
        return;
    }
    let edge = edge_behind("127.0.0.1");
    let (local, mut says) = listening().await;
    let told = TunnelSettings {
        name: Some("one".into()),
        proxy_protocol: Some(Version::V1),
        ..tunnel(Tls, local.address)
    };
    let through = balancer(edge.http()).await;
    let _agent = TestAgent::launch(TestAgent::settings(through, vec![told])).await;
    let name = ServerName::try_from("one.tunnels.test").unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut visitor = connect(edge.https()).await;
    visitor.write_all(&[V1, &hello].concat()).await.unwrap();
    visitor.shutdown().await.unwrap();
    let got = within("the server hears it", says.recv()).await.unwrap();
    assert_eq!(got, [V1, &hello].concat());
}
