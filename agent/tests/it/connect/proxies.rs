//! Proxies of others, each with right, wrong and no credentials, and ones that are no help.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use uniroute_agent::{Transport, upstream::Trust};

use super::{
    foreign::{free, microsocks, nginx, tinyproxy},
    fronts::Authority,
    run, serves, settings,
};
use crate::harness::{Edge, Upstream, eventually, process::Process};

#[tokio::test]
async fn through_connect_with_credentials() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let proxy = tinyproxy("BasicAuth ann s3cret").await;
    let through = |login: &str, address| {
        let mut settings = settings(&edge, &edge.url(), &upstream);
        settings.proxy = format!("http://{login}{address}").parse().unwrap();
        run(settings)
    };
    let _agent = through("ann:s3cret@", proxy.address).await.unwrap();
    serves(&edge).await;
    assert_eq!(proxy.logged(&format!("CONNECT {} ", edge.http)), 1);

    for (login, says) in [("", "it wants a user"), ("ann:wr0ng@", "it does not take this user")] {
        let error = through(login, proxy.address).await.err().unwrap();
        let begins = format!("the proxy http://{}: {says}", proxy.address);
        assert!(error.starts_with(&begins) && !error.contains("wr0ng"), "{error}");
    }
    let error = through("", free().await).await.err().unwrap();
    assert!(error.contains(": no connection to 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_does_not_go_there_is_named() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let proxy = tinyproxy("ConnectPort 443").await;
    let mut settings = settings(&edge, &edge.url(), &upstream);
    settings.proxy = format!("http://{}", proxy.address).parse().unwrap();
    let error = run(settings).await.err().unwrap();
    let says = format!("it does not allow connections to {} (it answered 403", edge.http);
    assert!(error.contains(&says), "{error}");
}

#[tokio::test]
async fn through_a_proxy_that_is_spoken_to_over_tls() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let proxy = tinyproxy("BasicAuth ann s3cret").await;
    let authority = Authority::new();
    let front = nginx(proxy.address, authority.certify("localhost").pair(), false, "").await;
    let through = |trust| {
        let mut settings = settings(&edge, &edge.url(), &upstream);
        let url = format!("https://ann:s3cret@localhost:{}", front.address.port());
        (settings.proxy, settings.trust) = (url.parse().unwrap(), trust);
        run(settings)
    };
    let error = through(Trust::System).await.err().unwrap();
    assert!(
        error.contains("the TLS handshake with it failed: invalid peer certificate"),
        "{error}"
    );
    let _agent = through(authority.trust()).await.unwrap();
    serves(&edge).await;
}

#[tokio::test]
async fn through_socks_with_credentials() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let through = |url: String, port| {
        let mut settings = settings(&edge, &format!("http://localhost:{port}"), &upstream);
        settings.proxy = url.parse().unwrap();
        run(settings)
    };
    let proxy = microsocks(Some(("ann", "s3cret"))).await;
    for scheme in ["socks5", "socks5h"] {
        let url = format!("{scheme}://ann:s3cret@{}", proxy.address);
        let _agent = through(url, edge.http.port()).await.unwrap();
        serves(&edge).await;
        proxy.process.err_line("connected to").await;
    }
    for (login, says) in [("", "it wants a user"), ("ann:wr0ng@", "it does not take this user")] {
        let url = format!("socks5://{login}{}", proxy.address);
        let error = through(url, edge.http.port()).await.err().unwrap();
        assert!(error.contains(says) && !error.contains("wr0ng"), "{error}");
    }
    let open = microsocks(None).await;
    let nobody = free().await.port();
    let error = through(format!("socks5h://{}", open.address), nobody).await.err().unwrap();
    assert!(error.contains(&format!("it does not connect to localhost:{nobody}: ")), "{error}");
    let error = through(format!("http://{}", open.address), nobody).await.err().unwrap();
    assert!(error.contains("the proxy http://"), "{error}");
}

#[tokio::test]
async fn long_bodies_take_lanes_through_the_proxy() {
    const SIZE: usize = 24 * 1024 * 1024;
    let edge = Edge::start().await;
    let body = vec![b'x'; SIZE];
    let app = axum::Router::new().fallback(move || async move { body });
    let upstream = Upstream::start(app).await;
    let proxy = tinyproxy("").await;
    let mut settings = settings(&edge, &edge.url(), &upstream);
    settings.proxy = format!("http://{}", proxy.address).parse().unwrap();
    let _agent = run(settings).await.unwrap();
    eventually("a lane", async || {
        let (_, answer) = edge.get("demo", "/").await;
        assert!(answer.len() > SIZE, "{}", answer.len());
        (proxy.logged("CONNECT ") > 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn quic_goes_through_no_proxy() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let proxy = tinyproxy("").await;
    let mut settings = settings(&edge, &edge.url(), &upstream);
    settings.proxy = format!("http://{}", proxy.address).parse().unwrap();
    settings.transport = Transport::Quic;
    let error = run(settings).await.err().unwrap();
    assert!(error.starts_with("QUIC can't go through the proxy http://127.0.0.1:"), "{error}");
}

/// Goes to `to`, whatever name it is asked for; and says what it was asked for.
async fn any_name(to: std::net::SocketAddr) -> (std::net::SocketAddr, impl Future) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let mut near = BufReader::new(near);
            let mut line = String::new();
            near.read_line(&mut line).await.unwrap();
            assert!(line.starts_with("CONNECT edge.invalid:80 HTTP/1.1"), "{line}");
            while line != "\r\n" {
                line.clear();
                near.read_line(&mut line).await.unwrap();
            }
            let mut far = TcpStream::connect(to).await.unwrap();
            near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = copy_bidirectional(&mut near, &mut far).await;
        }
    };
    (address, serving)
}

#[tokio::test]
async fn the_environment_names_the_proxy_and_who_needs_none() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let (proxy, serving) = any_name(edge.http).await;
    let task = tokio::spawn(async move {
        serving.await;
    });
    let agent = |variables: &[(&str, &str)]| {
        let arguments = ["http", &upstream.port(), "--name", "demo", "--fail-fast"];
        let mut command = edge.agent(&arguments);
        command.env("UNIROUTE_SERVER", "http://edge.invalid");
        command.env("http_proxy", format!("http://{proxy}"));
        command.envs(variables.iter().copied());
        Process::start(command.args(["--output", "json"]))
    };
    let through = agent(&[]);
    through.out_line("\"ready\"").await;
    serves(&edge).await;
    drop(through);
    let past = agent(&[("NO_PROXY", "other.test,.invalid")]).ended().await;
    assert_eq!(past.code, Some(5), "{}", past.err);
    task.abort();
}
