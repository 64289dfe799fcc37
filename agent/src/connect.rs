//! The way to the edge: DNS, TCP, a proxy, TLS, the upgrade. Every step has its own deadline and says
//! which one it was when it fails.

pub mod proxy;
pub(crate) mod race;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Response, StatusCode, Uri,
    header::{LOCATION, SERVER, VIA},
};
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
use tokio_rustls::{TlsConnector, client::TlsStream};
use uniroute_proto::handshake::HandshakeError;
use uniroute_shared::{
    carrier::{quic::endpoint::DialError, upgrade},
    code::Code,
};

use self::proxy::{Proxy, ProxyError, ProxyFault, Reached};
use crate::{
    tls::{self, Identity, TlsError, WrongKey},
    upstream::{TargetError, Trust},
};

/// Time for each step of a connection.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time after which the kernel looks whether the edge is there, and between its probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes that the kernel may hold unsent: what it holds can't be overtaken by a small answer.
#[cfg(any(target_os = "android", target_os = "linux"))]
const NOTSENT_LOWAT: u32 = 128 * 1024;
/// What of a refusal's body is read, for its error page, in bytes.
const MAX_REFUSAL: usize = 16 * 1024;
/// What is shown of others' words, in characters.
const SHOWN: usize = 80;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

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

impl ServerUrl {
    /// Its host: a name or an address, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is spoken to over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// As the `Host` header has it.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether it is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.host.trim_end_matches('.');
        host.eq_ignore_ascii_case("localhost")
            || host.to_ascii_lowercase().ends_with(".localhost")
            || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
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
    #[error("the TLS handshake with the edge failed: {0}{hint}", hint = tls_hint(.0))]
    Tls(io::Error),
    /// The edge has another key than those that are pinned.
    #[error(transparent)]
    Key(WrongKey),
    /// What is in front of the edge wants a certificate, or another one.
    #[error(
        "the edge's front does not let this agent in: {0}. Give the certificate that it wants, and its key, as `client_certificate` and `client_key`"
    )]
    ClientCertificate(String),
    /// The proxy did not make the connection.
    #[error("the proxy {proxy}: {fault}")]
    Proxy {
        /// The proxy, without user and password.
        proxy: String,
        /// What went wrong there.
        fault: ProxyFault,
    },
    /// The proxy's URL can't be read.
    #[error(transparent)]
    ProxyUrl(#[from] ProxyError),
    /// QUIC was asked for, and there is a proxy on the way.
    #[error(
        "QUIC can't go through the proxy {0}: it is UDP. Leave out `--transport quic` to use WebSocket, or go without the proxy (`--proxy none`, NO_PROXY)"
    )]
    QuicProxy(String),
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

impl ConnectError {
    /// Nothing was there to turn the agent away: asking again soon costs nobody anything.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Dns { .. } | Self::Tcp { .. } | Self::Lost(_) | Self::Quic(_) => true,
            Self::Timeout(step) => matches!(*step, "DNS" | "TCP"),
            Self::Proxy { fault, .. } => fault.is_unreachable(),
            _ => false,
        }
    }

    fn of_tls(error: io::Error) -> Self {
        match tls::wrong_key(&error) {
            Some(wrong) => Self::Key(wrong),
            None => Self::Tls(error),
        }
    }
}

fn tls_hint(error: &io::Error) -> &'static str {
    match tls::inner(error) {
        Some(error) => tls::hint(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            ". Is it https:// there? Perhaps something on the way cuts TLS"
        }
        None => "",
    }
}

/// How connections to edges are made: whose certificates are taken, what the agent proves itself
/// with, and through which proxy.
#[derive(Clone, Debug)]
pub(crate) struct Way(Arc<WayParts>);

#[derive(Debug)]
struct WayParts {
    tls: Arc<ClientConfig>,
    proxy: Proxy,
    trust: Trust,
    /// Of a proxy that is spoken to over TLS; made when there is one.
    proxy_tls: OnceLock<Arc<ClientConfig>>,
}

impl Way {
    /// # Errors
    /// [`TlsError`]
    pub(crate) fn new(
        trust: &Trust,
        pins: &[tls::Pin],
        identity: Option<&Identity>,
        proxy: &Proxy,
    ) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(WayParts {
            tls: tls::edge_config(trust, pins, identity)?,
            proxy: proxy.clone(),
            trust: trust.clone(),
            proxy_tls: OnceLock::new(),
        })))
    }

    /// The proxy on the way to `server`.
    ///
    /// # Errors
    /// [`ConnectError::ProxyUrl`]
    pub(crate) fn proxy(
        &self,
        server: &ServerUrl,
    ) -> Result<Option<proxy::ProxyUrl>, ConnectError> {
        Ok(self.0.proxy.to(server)?)
    }

    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        &self.0.tls
    }

    fn proxy_tls(&self) -> Result<Arc<ClientConfig>, TargetError> {
        if let Some(config) = self.0.proxy_tls.get() {
            return Ok(Arc::clone(config));
        }
        let config = tls::proxy_config(&self.0.trust)?;
        Ok(Arc::clone(self.0.proxy_tls.get_or_init(|| config)))
    }
}

/// The way that a connection has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The other end of the socket: the edge, or the proxy.
    pub(crate) peer: SocketAddr,
    /// The edge's address; none where a proxy looked it up.
    pub(crate) edge: Option<SocketAddr>,
}

impl Route {
    pub(crate) fn straight(edge: SocketAddr) -> Self {
        Self { peer: edge, edge: Some(edge) }
    }

    /// The edge's address, if there is no proxy on the way.
    pub(crate) fn direct(self) -> Option<SocketAddr> {
        self.edge.filter(|edge| *edge == self.peer)
    }
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
    pub(crate) route: Route,
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
pub(crate) async fn dial(server: &ServerUrl, way: &Way) -> Result<Dialled, ConnectError> {
    dial_at(server, way, None, Arc::default()).await
}

/// What a connection is to be a lane of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneOf<'a> {
    /// The session's name at the edge.
    pub(crate) session: &'a str,
    /// Where that edge is, if that is known. A proxy that looks names up may lead to another one,
    /// which refuses the lane.
    pub(crate) edge: Option<SocketAddr>,
}

/// The same, for a lane if `lane` is given. What the connection carries is added to `moved`.
///
/// # Errors
/// [`ConnectError`], naming the step.
pub(crate) async fn dial_at(
    server: &ServerUrl,
    way: &Way,
    lane: Option<LaneOf<'_>>,
    moved: Arc<AtomicU64>,
) -> Result<Dialled, ConnectError> {
    let edge = lane.and_then(|lane| lane.edge);
    let lane_of = lane.map(|lane| lane.session);
    let (socket, route) = reach(server, way, edge).await?;
    let counted = Arc::clone(&moved);
    let (io, early) = match socket {
        Reached::Bare(socket) => {
            secure(server, way, Counted { io: socket, moved: counted }, lane_of).await?
        }
        Reached::Tls(socket) => {
            secure(server, way, Counted { io: socket, moved: counted }, lane_of).await?
        }
    };
    Ok(Dialled { io, early, route, moved })
}

/// A connection on which the edge hears what is said: straight to it, or made by a proxy. `edge` is
/// its address, if that is known.
///
/// # Errors
/// [`ConnectError`], naming the step.
pub(crate) async fn reach(
    server: &ServerUrl,
    way: &Way,
    edge: Option<SocketAddr>,
) -> Result<(Reached, Route), ConnectError> {
    if let Some(proxy) = way.proxy(server)? {
        return proxy::through(&proxy, server, way, edge).await;
    }
    let addresses = match edge {
        Some(edge) => vec![edge],
        None => look_up(server).await?,
    };
    let connected = race::connect(addresses).await;
    let (socket, address) =
        connected.map_err(|(address, source)| ConnectError::Tcp { address, source })?;
    tune(&socket);
    Ok((Reached::Bare(socket), Route::straight(address)))
}

/// The edge's addresses, in the order in which they are tried; never none.
///
/// # Errors
/// [`ConnectError::Dns`] or [`ConnectError::Timeout`]
pub(crate) async fn look_up(server: &ServerUrl) -> Result<Vec<SocketAddr>, ConnectError> {
    let dns = |source| ConnectError::Dns { host: server.host.clone(), source };
    addresses(&server.host, server.port).await.ok_or(ConnectError::Timeout("DNS"))?.map_err(dns)
}

/// The same for any name; `None`: the resolver says nothing.
pub(crate) async fn addresses(host: &str, port: u16) -> Option<io::Result<Vec<SocketAddr>>> {
    let looked_up = timeout(STEP_TIMEOUT, tokio::net::lookup_host((host, port))).await.ok()?;
    Some(looked_up.and_then(|found| {
        let mut addresses = race::interleaved(found.collect());
        addresses.truncate(MAX_ADDRESSES);
        match addresses.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(addresses),
        }
    }))
}

/// TLS, if the edge is spoken to over it, and the upgrade.
async fn secure<Io: EdgeIo + 'static>(
    server: &ServerUrl,
    way: &Way,
    socket: Io,
    lane_of: Option<&str>,
) -> Result<(Box<dyn EdgeIo>, Bytes), ConnectError> {
    if !server.tls {
        let (socket, early) = within("upgrade", upgrade(server, socket, lane_of)).await??;
        return Ok((Box::new(socket), early));
    }
    let stream = shake(server, way, socket).await?;
    let (stream, early) = within("upgrade", upgrade(server, stream, lane_of)).await??;
    Ok((Box::new(stream), early))
}

/// TLS with the edge.
///
/// # Errors
/// [`ConnectError`], naming what is wrong with its certificate.
pub(crate) async fn shake<Io: EdgeIo>(
    server: &ServerUrl,
    way: &Way,
    socket: Io,
) -> Result<TlsStream<Io>, ConnectError> {
    let name = ServerName::try_from(server.host.clone())
        .map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::clone(way.tls()));
    within("TLS", connector.connect(name, socket)).await?.map_err(ConnectError::of_tls)
}

async fn within<F: Future>(step: &'static str, future: F) -> Result<F::Output, ConnectError> {
    timeout(STEP_TIMEOUT, future).await.map_err(|_| ConnectError::Timeout(step))
}

fn tune(socket: &TcpStream) {
    let options = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let tuned = options.set_tcp_nodelay(true).and_then(|()| options.set_tcp_keepalive(&keepalive));
    #[cfg(any(target_os = "android", target_os = "linux"))]
    let tuned = tuned.and_then(|()| options.set_tcp_notsent_lowat(NOTSENT_LOWAT));
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
    let answer = answer.await.map_err(|error| not_upgraded(server, &error))?;
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
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let code = header("x-uniroute-error")
        .and_then(|code| code.strip_prefix("UR-")?.parse().ok())
        .and_then(Code::from_number);
    let retry_after =
        header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let Some(code) = code else { return strange(server, answer, retry_after).await };
    // Read for politeness: the connection then ends in order.
    let _ = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
    let message = format!("{code}: {}. {}", code.title, code.fix);
    ConnectError::Rejected { code: Some(code), message, retry_after }
}

/// What an answer means that no edge gave.
async fn strange(
    server: &ServerUrl,
    answer: Response<Incoming>,
    retry_after: Option<Duration>,
) -> ConnectError {
    let status = answer.status();
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let page = String::from_utf8_lossy(&body);
    if let Some(wanted) = certificate_wanted(status, &page) {
        return ConnectError::ClientCertificate(wanted);
    }
    let who = signature(&head.headers, &page);
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        let message = format!("status {status}{who}");
        return ConnectError::Rejected { code: None, message, retry_after };
    }
    let location = head.headers.get(LOCATION).and_then(|location| location.to_str().ok());
    let means = match (status.as_u16(), location) {
        (300..=399, Some(to)) => format!(". It sends on to {}: is that the server?", shown(to)),
        (200, _) => {
            ". That is a web page: is the URL the edge's own, and does everything on the way pass WebSocket upgrades?".into()
        }
        (400 | 426, _) => ". Something on the way may not pass WebSocket upgrades".into(),
        (401 | 403, _) => ". Something in front of the edge lets nobody in".into(),
        _ => String::new(),
    };
    let why = format!("it answered {status} to the upgrade{who}{means}");
    ConnectError::NotAnEdge(server.to_string(), why)
}

/// nginx says in words that it wants a client certificate, with the status 400.
fn certificate_wanted(status: StatusCode, page: &str) -> Option<String> {
    let says = |what| status == StatusCode::BAD_REQUEST && page.contains(what);
    if says("No required SSL certificate was sent") {
        return Some("it wants a client certificate".into());
    }
    says("The SSL certificate error").then(|| "it does not accept the client certificate".into())
}

/// Who an answer seems to be from.
fn signature(headers: &HeaderMap, page: &str) -> String {
    let header = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let title = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let said = [
        header(&SERVER).map(|server| format!("server: {}", shown(server))),
        header(&VIA).map(|via| format!("via: {}", shown(via))),
        title.map(|(title, _)| format!("page: {:?}", shown(title))),
    ];
    let said: Vec<_> = said.into_iter().flatten().collect();
    match said.is_empty() {
        true => String::new(),
        false => format!(" ({})", said.join(", ")),
    }
}

fn shown(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    text.trim().to_owned()
}

/// What there is instead of an answer.
fn not_upgraded(server: &ServerUrl, error: &hyper::Error) -> ConnectError {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    if let Some(refused) = source.filter(|error| tls::inner(error).is_some()) {
        // In TLS 1.3 a client hears of its certificate only after its handshake.
        return ConnectError::ClientCertificate(refused.to_string());
    }
    let why = match error.is_parse() {
        true if !server.tls => format!("{error}. Perhaps it speaks TLS: try https://"),
        _ => error.to_string(),
    };
    ConnectError::NotAnEdge(server.to_string(), why)
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
