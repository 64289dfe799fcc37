//! The agent's local API and the inspector's page, at `127.0.0.1:4040` unless it is told otherwise.
//!
//! It is for the people and programs of this machine: a request has to name this machine in `Host`, so
//! that no web page can reach it by a name of its own (DNS rebinding), and what changes something has
//! to come from no other page (T15). Work that takes a while is done on threads apart.

pub mod client;
mod events;
mod inspector;
mod metrics;
mod ngrok;
mod page;
mod problem;
pub mod running;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use uniroute_shared::code::Code;

use self::problem::Problem;
use crate::{
    Applied, Handle,
    inspect::{self, Inspector},
    status::TunnelState,
};

/// Where it is by default, if nothing else is there.
pub const DEFAULT_PORT: u16 = 4040;
/// How many ports behind it are tried.
const FURTHER_PORTS: u16 = 20;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's body: a replay may have one of its own.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// Pieces of work that run at a time.
const MAX_WORK: usize = 4;

/// Where the local API is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// At `127.0.0.1:4040`, or the next port that is free.
    #[default]
    Default,
    /// There and nowhere else; port 0: any that is free.
    At(SocketAddr),
    /// There is none.
    Off,
}

/// What was written is no place for it.
#[derive(Debug, thiserror::Error)]
#[error("write ADDRESS:PORT, such as 127.0.0.1:4040, a port, or off")]
pub struct ListenError;

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::At((Ipv4Addr::LOCALHOST, port).into()));
        }
        let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let address = local.as_deref().unwrap_or(text).parse();
        address.map(Self::At).map_err(|_| ListenError)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "127.0.0.1:{DEFAULT_PORT}"),
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

/// It can't be where it is to be.
#[derive(Debug, thiserror::Error)]
#[error(
    "the inspector can't listen at {address}: {error}. `{}` shows who does; choose another place with `--inspector ADDRESS:PORT` (port 0: any that is free), or `--inspector off`",
    who_listens(address.port())
)]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
}

/// The command that shows which program listens on a port.
fn who_listens(port: u16) -> String {
    if cfg!(windows) {
        format!("netstat -ano | findstr :{port}")
    } else if cfg!(target_os = "linux") {
        format!("ss -ltnp 'sport = :{port}'")
    } else {
        format!("lsof -nP -iTCP:{port} -sTCP:LISTEN")
    }
}

/// Its place is taken.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    /// The default port was not free.
    moved: bool,
}

impl Bound {
    /// What to open in a browser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether another port than the default one had to be taken.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.moved
    }
}

/// Takes the place that is wished for; `None`: none is.
///
/// # Errors
/// [`BindError`]
pub async fn bind(listen: Listen) -> Result<Option<Bound>, BindError> {
    let wished = match listen {
        Listen::Off => return Ok(None),
        Listen::At(address) => address,
        Listen::Default => (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
    };
    let last = match listen {
        Listen::Default => DEFAULT_PORT + FURTHER_PORTS,
        _ => wished.port(),
    };
    let mut port = wished.port();
    loop {
        match TcpListener::bind((wished.ip(), port)).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(wished);
                let moved = listen == Listen::Default && port != DEFAULT_PORT;
                return Ok(Some(Bound { listener, address, moved }));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port < last => port += 1,
            Err(error) => return Err(BindError { address: wished, error }),
        }
    }
}

/// Reads the config file again and applies it; why not, in words.
pub type Reload = Arc<dyn Fn() -> Result<Applied, String> + Send + Sync>;

/// What the API is of.
pub struct Local {
    handle: Handle,
    reload: Option<Reload>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    /// Of an agent.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle, reload: None }
    }

    /// With something to reload.
    #[must_use]
    pub fn with_reload(self, reload: Reload) -> Self {
        Self { reload: Some(reload), ..self }
    }
}

/// What the handlers share.
struct App {
    handle: Handle,
    reload: Option<Reload>,
    address: SocketAddr,
    events: events::Hub,
    work: Semaphore,
    connections: Arc<Semaphore>,
    stop: CancellationToken,
}

type Shared = State<Arc<App>>;

/// Serves until `stop` is cancelled; then nothing is kept any more, and nothing is left on disk.
pub async fn serve(bound: Bound, local: Local, stop: CancellationToken) {
    let Bound { listener, address, .. } = bound;
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let app = Arc::new(App {
        handle: local.handle,
        reload: local.reload,
        address,
        events: events::Hub::new(),
        work: Semaphore::new(MAX_WORK),
        connections: Arc::clone(&connections),
        stop: stop.clone(),
    });
    let listener = limited::Listener { listener, connections };
    let ended = stop.clone();
    let serving = axum::serve(listener, router(Arc::clone(&app)))
        .with_graceful_shutdown(async move { ended.cancelled().await });
    tokio::select! {
        _ = serving => {}
        () = events::publish(&app) => {}
        () = stop.cancelled() => {}
    }
    if let Some(inspector) = app.inspector() {
        inspector.close();
    }
}

fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/status", get(status))
        .route("/ready", get(ready))
        .route("/reload", post(reload))
        .route("/events", get(events::events))
        .merge(inspector::routes());
    Router::new()
        .nest("/api/v1", v1)
        .nest("/api", ngrok::routes())
        .route("/", get(page))
        .route("/assets/{file}", get(page))
        .route("/metrics", get(metrics::metrics))
        .fallback(async || Problem::of(&Code::LOCAL_NO_SUCH_PATH))
        .method_not_allowed_fallback(async || Problem::of(&Code::LOCAL_METHOD))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// T15: nobody but this machine's own programs and the page itself.
async fn guard(State(app): Shared, request: Request, next: Next) -> Response {
    let mut response = match refusal(&app, &request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    let mut set = |name, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, page::POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    set(header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    response
}

/// Why a request is turned away.
fn refusal(app: &App, request: &Request) -> Option<Problem> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let named = request.uri().authority().map(Authority::as_str);
    let one = hosts.next().is_none();
    let host = host.filter(|host| one && named.is_none_or(|named| named == *host));
    let Some(host) = host.filter(|host| is_ours(app.address, host)) else {
        return Some(Problem::of(&Code::LOCAL_HOST_REFUSED));
    };
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let foreign = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
    if foreign && (!reads || request.uri().path().starts_with("/api")) {
        return Some(Problem::of(&Code::LOCAL_ORIGIN_REFUSED));
    }
    if reads {
        return None;
    }
    let origin = text("origin");
    if origin.is_some_and(|origin| origin != format!("http://{host}")) {
        return Some(Problem::of(&Code::LOCAL_ORIGIN_REFUSED));
    }
    let kind = text("content-type").unwrap_or_default();
    let json = kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json");
    // A plain form can send none of these.
    let marked = json || text("x-uniroute") == Some("1") || request.method() == Method::DELETE;
    if !marked {
        return Some(Problem::of(&Code::LOCAL_UNMARKED));
    }
    None
}

/// Whether `Host` names this machine: a web page that leads its own name to this address can't.
fn is_ours(address: SocketAddr, host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let Ok(ip) = name.parse::<IpAddr>() else { return false };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), std::net::Ipv6Addr::LOCALHOST.into()];
    loopback.contains(&ip) || address.ip() == ip || address.ip().is_unspecified()
}

impl App {
    fn inspector(&self) -> Option<&Arc<Inspector>> {
        self.handle.shared.inspector.as_ref()
    }

    /// Does what takes a while on a thread apart; requests go on meanwhile.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Inspector>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let failed = || Problem::of(&Code::LOCAL_FAILED);
        let _place = self.work.acquire().await.map_err(|_| failed())?;
        let inspector = self.inspector().cloned();
        let inspector = inspector.ok_or_else(|| Problem::of(&Code::INSPECTOR_OFF))?;
        let done = tokio::task::spawn_blocking(move || work(&inspector)).await;
        done.map_err(|_| failed())?
    }

    fn status(&self) -> Value {
        let mut status = serde_json::to_value(self.handle.status()).unwrap_or_default();
        if let Some(inspector) = self.inspector() {
            status["inspector"] = inspector.summary();
        }
        status
    }
}

/// A file of the page.
async fn page(uri: Uri, headers: HeaderMap) -> Response {
    let Some(page::Asset { kind, data }) = page::asset(uri.path()) else {
        return Problem::of(&Code::LOCAL_NO_SUCH_PATH).into_response();
    };
    let tag = format!("\"{}\"", &inspect::sha256(data)[..16]);
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == *tag);
    let tag = [(header::ETAG, tag)];
    if known {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, [(header::CONTENT_TYPE, kind)], data).into_response()
}

async fn status(State(app): Shared) -> Json<Value> {
    Json(app.status())
}

/// Whether every tunnel that is wanted takes requests, as far as the agent can do something about it.
async fn ready(State(app): Shared) -> Response {
    let tunnels = app.handle.status().tunnels;
    let waits = |state| matches!(state, TunnelState::Waiting | TunnelState::Refused);
    let waiting = tunnels.iter().filter(|tunnel| waits(tunnel.state));
    let waiting: Vec<_> = waiting.map(|tunnel| &tunnel.key).collect();
    if waiting.is_empty() {
        return Json(json!({ "ready": true })).into_response();
    }
    let code = &Code::TUNNELS_WAIT;
    let body = json!({
        "ready": false, "waiting": waiting,
        "code": code.to_string(), "title": code.title, "fix": code.fix,
    });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn reload(State(app): Shared) -> Result<Json<Applied>, Problem> {
    let reload = app.reload.clone().ok_or_else(|| Problem::of(&Code::NO_CONFIG_FILE))?;
    match tokio::task::spawn_blocking(move || reload()).await {
        Ok(Ok(applied)) => Ok(Json(applied)),
        Ok(Err(why)) => Err(Problem::new(&Code::RELOAD_REFUSED, why)),
        Err(_) => Err(Problem::of(&Code::LOCAL_FAILED)),
    }
}

/// A header's value for a body that is saved and never shown (T14).
fn download(headers: &mut HeaderMap, kind: &'static str, name: &str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let value = format!("attachment; filename=\"{name}\"");
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    let sandbox = HeaderValue::from_static("default-src 'none'; sandbox");
    headers.insert(header::CONTENT_SECURITY_POLICY, sandbox);
}

/// A listener that takes so many connections at a time and no more.
mod limited {
    use std::{
        io,
        net::SocketAddr,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
    };

    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        net::{TcpListener, TcpStream},
        sync::{OwnedSemaphorePermit, Semaphore},
    };

    pub(super) struct Listener {
        pub(super) listener: TcpListener,
        pub(super) connections: Arc<Semaphore>,
    }

    pub(super) struct Connection {
        io: TcpStream,
        _place: OwnedSemaphorePermit,
    }

    impl axum::serve::Listener for Listener {
        type Io = Connection;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (Connection, SocketAddr) {
            loop {
                let (io, peer) = axum::serve::Listener::accept(&mut self.listener).await;
                // One more is taken in, and waits: what has a place is what is counted.
                let Ok(place) = Arc::clone(&self.connections).acquire_owned().await else {
                    std::future::pending().await
                };
                if io.set_nodelay(true).is_ok() {
                    return (Connection { io, _place: place }, peer);
                }
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.listener.local_addr()
        }
    }

    impl AsyncRead for Connection {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.io).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let listen = |text: &str| text.parse::<Listen>().ok().map(|listen| listen.to_string());
        assert_eq!(listen("off").unwrap(), "off");
        assert_eq!(listen("0").unwrap(), "127.0.0.1:0");
        assert_eq!(listen("localhost:4041").unwrap(), "127.0.0.1:4041");
        assert_eq!(listen("[::1]:4041").unwrap(), "[::1]:4041");
        assert_eq!(Listen::default().to_string(), "127.0.0.1:4040");
        assert!(listen("on").is_none() && listen("a:80").is_none());
    }

    /// T15: names that a stranger's page can have.
    #[test]
    fn t15_hosts_of_this_machine() {
        let at = "127.0.0.1:4040".parse().unwrap();
        for host in ["127.0.0.1:4040", "localhost", "LOCALHOST:1", "[::1]:4040"] {
            assert!(is_ours(at, host), "{host}");
        }
        for host in [
            "evil.test",
            "evil.test:4040",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "localhost@evil.test",
            "evil@localhost",
            "192.168.0.5:4040",
            "127.0.0.1:4040/x",
            "",
            "127.1",
        ] {
            assert!(!is_ours(at, host), "{host}");
        }
        assert!(is_ours("192.168.0.5:4040".parse().unwrap(), "192.168.0.5:4040"));
        let any = "0.0.0.0:4040".parse().unwrap();
        assert!(is_ours(any, "10.0.0.1:4040") && !is_ours(any, "evil.test:4040"));
    }

    #[tokio::test]
    async fn a_place_that_is_taken_is_said() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(Listen::At(address)).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
        assert!(error.contains("--inspector off"), "{error}");
        let free = bind(Listen::At("127.0.0.1:0".parse().unwrap())).await.unwrap().unwrap();
        assert!(!free.url().ends_with(":0") && !free.has_moved());
        assert!(bind(Listen::Off).await.unwrap().is_none());
    }
}
