//! TLS tunnels: the local server's own certificate, and routing by server name.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use uniroute_agent::{
    TunnelKind::{Tcp, Tls},
    TunnelSettings,
};
use uniroute_edge::config::Https;

use super::{Local, connect, counted, rest, tunnel};
use crate::harness::{DOMAIN, TestAgent, TestEdge, host, upstream::TestUpstream, within};

fn edge() -> TestEdge {
    TestEdge::with(|settings| {
        settings.sockets.https = Https::At(([127, 0, 0, 1], 0).into());
    })
}

/// A server that says who it is, and what it was sent, over TLS of its own.
struct Secret {
    local: Local,
    certificate: CertificateDer<'static>,
}

impl Secret {
    async fn start(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([host(name)]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"secret/1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let name = name.to_owned();
        let local = Local::start(move |socket| {
            let (acceptor, name) = (acceptor.clone(), name.clone());
            async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                socket.write_all(format!("this is {name}").as_bytes()).await.unwrap();
                let mut got = Vec::new();
                let _ = socket.read_to_end(&mut got).await;
                let _ = socket.write_all(format!(", {} bytes", got.len()).as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        })
        .await;
        Self { local, certificate }
    }

    fn tunnel(&self, name: &str) -> TunnelSettings {
        TunnelSettings {
            key: name.into(),
            name: Some(name.into()),
            ..tunnel(Tls, self.local.address)
        }
    }

    /// A connection that trusts this server only.
    async fn visit(
        &self,
        edge: SocketAddr,
        name: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        visit(roots, edge, ServerName::try_from(name).unwrap()).await
    }
}

async fn visit(
    roots: RootCertStore,
    edge: SocketAddr,
    name: ServerName<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"secret/1".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    within("the TLS handshake", connector.connect(name, connect(edge).await)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_visitor_sees_the_local_servers_own_certificate() {
    let (one, two, edge) = (Secret::start("one").await, Secret::start("two").await, edge());
    let tunnels = vec![one.tunnel("one"), two.tunnel("two")];
    let agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    let port = edge.https().port();
    assert_eq!(super::urls(&agent).await[0], format!("tls://one.{DOMAIN}:{port}"));
    for (server, name, says) in [
        (&one, "one.tunnels.test", "this is one"),
        (&two, "two.tunnels.test", "this is two"),
        (&two, "TWO.Tunnels.TEST", "this is two"),
    ] {
        let mut visitor = server.visit(edge.https(), name).await.unwrap();
        assert_eq!(visitor.get_ref().1.alpn_protocol(), Some(&b"secret/1"[..]));
        let sent = vec![b'x'; 200_000];
        within("bytes are taken", visitor.write_all(&sent)).await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut got = String::new();
        within("the answer", visitor.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, format!("{says}, 200000 bytes"));
    }
    // Each tunnel has its own certificate, and nobody else's is taken for it.
    assert!(one.visit(edge.https(), "two.tunnels.test").await.is_err());
}

/// Fatal alert `unrecognized_name` (RFC 6066).
fn is_unrecognized(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName)))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_tls_tunnels_get_an_alert() {
    let (secret, web, edge) =
        (Secret::start("one").await, TestUpstream::saying("web").await, edge());
    let mut database = tunnel(Tcp, secret.local.address);
    database.name = Some("database".into());
    let tunnels = vec![secret.tunnel("one"), TestAgent::tunnel("site", &web.url()), database];
    let _agent = TestAgent::launch(TestAgent::settings(edge.http(), tunnels)).await;
    for name in [
        "nobody.tunnels.test",
        "tunnels.test",
        "site.tunnels.test",
        "database.tunnels.test",
        "a.one.tunnels.test",
        "one.other.test",
    ] {
        let error = secret.visit(edge.https(), name).await.unwrap_err();
        assert!(is_unrecognized(&error), "{name}: {error}");
    }
    // No name at all.
    let mut roots = RootCertStore::empty();
    roots.add(secret.certificate.clone()).unwrap();
    let address = ServerName::try_from("127.0.0.1").unwrap();
    let error = visit(roots, edge.https(), address).await.unwrap_err();
    assert!(is_unrecognized(&error), "{error}");
    counted(&edge, "UR-1115").await;
    // A request by HTTP for a TLS tunnel's name is told where it is.
    let answer = edge.get("one", "/").await;
    answer.assert_failed(421, "UR-1110");
    assert!(answer.text().contains(&format!("tls://one.tunnels.test:{}", edge.https().port())));
    edge.get("site", "/").await.assert_ok("web");
}

/// What is no ClientHello, or none that ends, is closed; the edge goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_begin_as_tls_is_closed() {
    let (secret, edge) = (Secret::start("one").await, edge());
    let _agent = TestAgent::serve(&edge, secret.tunnel("one")).await;
    let endless = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 16 * 1024]].concat();
    for wrong in [&b"GET / HTTP/1.1\r\nhost: one.tunnels.test\r\n\r\n"[..], &[0; 100], &endless] {
        let mut visitor = connect(edge.https()).await;
        let _ = visitor.write_all(wrong).await;
        // Perhaps with an alert in front.
        if let Ok(said) = rest(&mut visitor).await {
            assert!(said.first().is_none_or(|kind| *kind == 21), "{said:?}");
        }
    }
    counted(&edge, "UR-1116").await;
    assert!(secret.visit(edge.https(), "one.tunnels.test").await.is_ok());
}

/// A ClientHello in many pieces, and a visitor that speaks no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_may_come_in_pieces() {
    let (secret, edge) = (Secret::start("one").await, edge());
    let _agent = TestAgent::serve(&edge, secret.tunnel("one")).await;
    let hello = client_hello("one.tunnels.test");
    let mut visitor = connect(edge.https()).await;
    for piece in hello.chunks(7) {
        visitor.write_all(piece).await.unwrap();
    }
    // The server's first record: a handshake.
    let mut first = [0; 1];
    within("the server's answer", visitor.read_exact(&mut first)).await.unwrap();
    assert_eq!(first, [22]);
}

fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// An edge without the listener takes no such tunnels.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_tls_says_so() {
    let secret = Secret::start("one").await;
    let edge = TestEdge::start();
    let settings = TestAgent::settings(edge.http(), vec![secret.tunnel("one")]);
    super::tcp::refused(settings, 1105).await;
}
