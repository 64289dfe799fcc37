//! The way to the edge: DNS, TCP, TLS, the upgrade. Every step has its own deadline and says which
//! one it was when it fails.

pub mod proxy;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use uniroute_proto::handshake::HandshakeError;
use uniroute_shared::{
    carrier::{quic::endpoint::DialError, upgrade},
    code::Code,
};

/// Time for each step of a connection.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time after which the kernel looks whether the edge is there, and between its probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes that the kernel may hold unsent: what it holds can't be overtaken by a small answer.
const NOTSENT_LOWAT: u32 = 128 * 1024;
/// What of a refusal's body is read, for its error page, in bytes.
const MAX_REFUSAL: usize = 16 * 1024;

/// Where the edge is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    tls: bool,
    host: String,
    port: u16,
    /// As the `Host` header has it.
    authority: String,
}

/// What was written is no edge's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the URL of an edge: {why}. Write https://HOST[:PORT] or http://HOST[:PORT]"
)]
pub struct ServerUrlError {
    text: String,
    why: &'static str,
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        parse_server(text).map_err(|why| ServerUrlError { text: text.to_owned(), why })
    }
}

fn parse_server(text: &str) -> Result<ServerUrl, &'static str> {
    let (scheme, _) = text.split_once("://").ok_or("the scheme is missing")?;
    let tls = match scheme {
        "http" | "ws" => false,
        "https" | "wss" => true,
        _ => return Err("the scheme is none of http, https, ws and wss"),
    };
    let uri: Uri = text.parse().map_err(|_| "it can't be read")?;
    if uri.path() != "/" || uri.query().is_some() {
        return Err("it must not have a path");
    }
    let authority = uri.authority().ok_or("the host is missing")?;
    if authority.as_str().contains('@') {
        return Err("it must not have a user name");
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err("the host is missing");
    }
    let port = match authority.port() {
        None => {
            if tls {
                443
            } else {
                80
            }
        }
        Some(port) if port.as_u16() != 0 => port.as_u16(),
        Some(_) => return Err("the port is 0"),
    };
    Ok(ServerUrl { tls, host, port, authority: authority.to_string() })
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// Why there is no session with the edge.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("the edge's name {host} does not resolve: {source}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("no connection to {address}: {source}")]
    Tcp {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with the edge failed: {0}")]
    Tls(io::Error),
    /// What answers does not speak the tunnel's protocol.
    #[error("what answers at {0} is not an edge: {1}")]
    NotAnEdge(String, String),
    /// The edge turned the connection away.
    #[error("the edge turned the connection away: {message}")]
    Rejected {
        /// The error table's code, if the answer had one.
        code: Option<&'static Code>,
        /// In words.
        message: String,
        /// When to come back, if the edge said so.
        retry_after: Option<Duration>,
    },
    /// The edge that answers has a session of this agent already.
    #[error("{0} has a session of this agent already")]
    SameEdge(String),
    /// QUIC was asked for, and the edge does not offer it.
    #[error(
        "the edge offers no QUIC: it is switched off there (`--quic`), or the edge is too old. Leave out `--transport quic` to use WebSocket"
    )]
    NoQuic,
    /// No connection over QUIC.
    #[error(transparent)]
    Quic(#[from] DialError),
    /// A step took too long.
    #[error("no answer from the edge in time ({0})")]
    Timeout(&'static str),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The connection ended during the handshake.
    #[error("the connection ended during the handshake: {0}")]
    Lost(String),
}

/// A connection to the edge: a socket, bare or inside TLS.
pub(crate) trait EdgeIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<Io: AsyncRead + AsyncWrite + Send + Unpin> EdgeIo for Io {}

/// A connection to the edge that has switched to the carrier.
pub(crate) struct Dialled {
    pub(crate) io: Box<dyn EdgeIo>,
    /// What was read too far.
    pub(crate) early: Bytes,
    /// Where it leads to.
    pub(crate) address: SocketAddr,
    /// Bytes that it has carried so far, both ways.
    pub(crate) moved: Arc<AtomicU64>,
}

/// A connection whose bytes are counted.
struct Counted<Io> {
    io: Io,
    moved: Arc<AtomicU64>,
}

impl<Io> Counted<Io> {
    fn count(&self, bytes: usize) {
        self.moved.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    fn count_written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.count(*bytes);
        }
        written
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Counted<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.count(buffer.filled().len() - before);
        read
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Counted<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.count_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.count_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Connects and upgrades. Names are looked up afresh each time.
///
/// # Errors
/// [`ConnectError`], naming the step.
pub(crate) async fn dial(
    server: &ServerUrl,
    tls: &Arc<ClientConfig>,
) -> Result<Dialled, ConnectError> {
    dial_at(server, tls, None, Arc::default()).await
}

/// What a connection is to be a lane of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneOf<'a> {
    /// The session's name at the edge.
    pub(crate) session: &'a str,
    /// Where that edge is.
    pub(crate) address: SocketAddr,
}

/// The same, for a lane if `lane` is given. What the connection carries is added to `moved`.
///
/// # Errors
/// [`ConnectError`], naming the step.
pub(crate) async fn dial_at(
    server: &ServerUrl,
    tls: &Arc<ClientConfig>,
    lane: Option<LaneOf<'_>>,
    moved: Arc<AtomicU64>,
) -> Result<Dialled, ConnectError> {
    let (socket, address) = match lane {
        Some(lane) => connect_to(vec![lane.address], server).await?,
        None => connect(server).await?,
    };
    let lane_of = lane.map(|lane| lane.session);
    tune(&socket);
    let socket = Counted { io: socket, moved: Arc::clone(&moved) };
    if !server.tls {
        let (socket, early) = within("upgrade", upgrade(server, socket, lane_of)).await??;
        return Ok(Dialled { io: Box::new(socket), early, address, moved });
    }
    let name = ServerName::try_from(server.host.clone())
        .map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::clone(tls));
    let stream =
        within("TLS", connector.connect(name, socket)).await?.map_err(ConnectError::Tls)?;
    let (stream, early) = within("upgrade", upgrade(server, stream, lane_of)).await??;
    Ok(Dialled { io: Box::new(stream), early, address, moved })
}

async fn within<F: Future>(step: &'static str, future: F) -> Result<F::Output, ConnectError> {
    timeout(STEP_TIMEOUT, future).await.map_err(|_| ConnectError::Timeout(step))
}

async fn connect(server: &ServerUrl) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let dns = |source| ConnectError::Dns { host: server.host.clone(), source };
    let lookup = tokio::net::lookup_host((server.host.as_str(), server.port));
    let addresses = within("DNS", lookup).await?.map_err(dns)?.collect();
    connect_to(addresses, server).await
}

async fn connect_to(
    addresses: Vec<SocketAddr>,
    server: &ServerUrl,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let nowhere = io::Error::from(io::ErrorKind::NotFound);
    let mut failed = ConnectError::Dns { host: server.host.clone(), source: nowhere };
    for address in addresses {
        match within("TCP", TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok((socket, address)),
            Ok(Err(source)) => failed = ConnectError::Tcp { address, source },
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn tune(socket: &TcpStream) {
    let options = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tuned = options
        .set_tcp_nodelay(true)
        .and_then(|()| options.set_tcp_keepalive(&keepalive))
        .and_then(|()| options.set_tcp_notsent_lowat(NOTSENT_LOWAT));
    if let Err(error) = tuned {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

async fn upgrade<Io>(
    server: &ServerUrl,
    io: Io,
    lane_of: Option<&str>,
) -> Result<(Io, Bytes), ConnectError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let not_an_edge = |why: String| ConnectError::NotAnEdge(server.to_string(), why);
    let (mut sender, mut driver) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(io))
        .await
        .map_err(|error| not_an_edge(error.to_string()))?;
    let (request, key) = upgrade::request(&server.authority, lane_of)
        .map_err(|error| not_an_edge(error.to_string()))?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut over = false;
    let answer = std::future::poll_fn(|cx| {
        if !over && driver.poll_without_shutdown(cx).is_ready() {
            over = true;
        }
        answer.as_mut().poll(cx)
    });
    let answer = answer.await.map_err(|error| not_an_edge(error.to_string()))?;
    match upgrade::check_response(&answer, &key) {
        Ok(()) => {}
        Err(upgrade::UpgradeError::Status(_)) => {
            let reading = rejection(server, answer);
            return Err(tokio::select! {
                rejected = reading => rejected,
                _ = std::future::poll_fn(|cx| driver.poll_without_shutdown(cx)), if !over => {
                    ConnectError::Lost("it closed the connection".into())
                }
            });
        }
        Err(error) => return Err(not_an_edge(error.to_string())),
    }
    if !over {
        let ended = std::future::poll_fn(|cx| driver.poll_without_shutdown(cx)).await;
        ended.map_err(|error| ConnectError::Lost(error.to_string()))?;
    }
    let parts = driver.into_parts();
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// What an answer that is no upgrade says.
async fn rejection(server: &ServerUrl, answer: Response<Incoming>) -> ConnectError {
    let status = answer.status();
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let code = header("x-uniroute-error")
        .and_then(|code| code.strip_prefix("UR-")?.parse().ok())
        .and_then(Code::from_number);
    let retry_after =
        header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let Some(code) = code else {
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            let message = format!("status {status}");
            return ConnectError::Rejected { code: None, message, retry_after };
        }
        let why = format!("it answered {status} to the upgrade");
        return ConnectError::NotAnEdge(server.to_string(), why);
    };
    // Read for politeness: the connection then ends in order.
    let _ = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
    let message = format!("{code}: {}. {}", code.title, code.fix);
    ConnectError::Rejected { code: Some(code), message, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_edges() {
        let url = |text: &str| text.parse::<ServerUrl>();
        assert_eq!(url("wss://edge.test").unwrap().to_string(), "https://edge.test");
        let plain = url("ws://127.0.0.1:8080/").unwrap();
        assert_eq!((plain.to_string().as_str(), plain.port), ("http://127.0.0.1:8080", 8080));
        assert_eq!(url("http://[::1]:80").unwrap().host, "::1");
        for (bad, why) in [
            ("edge.test", "scheme is missing"),
            ("ftp://edge.test", "none of http"),
            ("http://edge.test/x", "path"),
            ("http://u@edge.test", "user name"),
            ("http://edge.test:0", "port"),
        ] {
            assert!(url(bad).unwrap_err().to_string().contains(why), "{bad}");
        }
    }
}
