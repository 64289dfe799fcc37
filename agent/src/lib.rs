//! The agent: puts local servers on the internet through an edge. The binary `uniroute` is this
//! library with a command line; other programs can use it too.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tokio_util::sync::CancellationToken;
//! use uniroute_agent::{Agent, Event, Settings, TunnelSettings};
//!
//! let tunnel = TunnelSettings::http("web", "3000".parse()?);
//! let settings = Settings::new("http://127.0.0.1:8080".parse()?, "a-token-of-the-edge".parse()?, vec![tunnel]);
//! let (agent, mut events) = Agent::new(settings)?;
//! let stop = CancellationToken::new();
//! tokio::spawn(agent.run(stop.clone()));
//! while let Some(event) = events.recv().await {
//!     if let Event::Ready { url, .. } = event {
//!         assert!(url.starts_with("http://"));
//!         stop.cancel();
//!     }
//! }
//! # Ok(()) }
//! ```

pub mod connect;
mod files;
mod forward;
mod health;
mod login;
mod probe;
mod session;
mod sockets;
pub mod status;
mod tls;
mod transport;
mod tunnel;
pub mod upstream;

use std::{
    path::PathBuf,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uniroute_proto::{
    FEATURE_HTTP_POLICY, FEATURE_LANES, Message as _, codec::MAX_CONTROL,
    handshake::HandshakeError, v1,
};
use uniroute_shared::{
    backoff::Backoff,
    carrier::quic::endpoint as quic,
    code::Code,
    id::{AgentId, Token},
    lanes::DEFAULT_LANES,
    policy::PolicyError,
    proxy_protocol,
    session::Carrier,
};

pub use uniroute_shared::carrier::quic::endpoint::{Congestion, Options as QuicOptions};

pub(crate) use self::tunnel::Tunnels;
pub use self::{
    connect::proxy::{Proxy, ProxyError},
    files::FileSettings,
    health::{HealthCheck, HealthProbe},
    login::{LoginError, check_login},
    tls::{Identity, Pin, PinError},
    transport::{Policy, Transport, TransportError},
    tunnel::TunnelKind,
};
use self::{
    connect::{ConnectError, ServerUrl},
    files::Files,
    session::{Session, SessionEnd, View, lane::Dialler},
    transport::{Chooser, QuicDoor},
    tunnel::{Service, Tunnel},
    upstream::{Place, Protocol, Target, TargetError, Trust, Upstream},
};

/// First wait is at most this long.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Longest wait while nothing answers: that costs an edge nothing, and when one is there again its
/// agents are back within two seconds.
const UNREACHABLE_CAP: Duration = Duration::from_millis(1_500);
/// Longest wait while an edge answers and turns the agent away.
const TURNED_AWAY_CAP: Duration = Duration::from_secs(30);
/// A session that lasted this long was a success: the next failure starts from the first wait.
const STABLE: Duration = Duration::from_secs(10);
/// How long a connection to a local server may take by default.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a local server may take to begin its answer by default.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest settings of all tunnels in bytes: they travel in one control frame, with some more.
const MAX_INIT: usize = MAX_CONTROL - 16 * 1024;
/// Answers to a token that no later try changes.
const TOKEN_IS_OVER: [Code; 4] =
    [Code::TOKEN_REFUSED, Code::TOKEN_REVOKED, Code::TOKEN_EXPIRED, Code::TOKEN_ADDRESS];
/// Sessions of an agent at once, where there are several edges.
pub const DEFAULT_SESSIONS: usize = 2;
/// Events that wait for a slow listener; later ones are dropped.
const EVENTS: usize = 256;
/// How often idle connections to local servers are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// What an agent needs to know.
#[derive(Debug)]
pub struct Settings {
    /// The edge, or several of them: one that fails is followed by the next.
    pub servers: Vec<ServerUrl>,
    /// Proves who the agent's owner is.
    pub token: Token,
    /// Where the token came from: looked at again before each connection, so that a new token is
    /// used without a restart.
    pub token_file: Option<PathBuf>,
    /// Which agent this is. A new one with the same id takes over the names of an older one.
    pub agent_id: AgentId,
    /// For people: this agent's name.
    pub agent_name: String,
    /// Whose word the edge's certificate is taken on.
    pub trust: Trust,
    /// Keys of which the edge's certificate must have one, beside being trusted; none: any will do.
    pub pins: Vec<Pin>,
    /// What the agent proves itself with in the TLS handshake, where the edge's front asks for it.
    pub identity: Option<Identity>,
    /// The way out of this network.
    pub proxy: Proxy,
    /// Sessions at once, to different edges where there are several.
    pub sessions: usize,
    /// Longest time between two heartbeats; the edge may want them more often.
    pub heartbeat: Option<Duration>,
    /// What carries the sessions.
    pub transport: Transport,
    /// When [`Transport::Auto`] changes what carries the session.
    pub policy: Policy,
    /// How QUIC sends.
    pub quic_options: quic::Options,
    /// What to put on the internet.
    pub tunnels: Vec<TunnelSettings>,
    /// Connections that long bodies may use beside the session's own, over WebSocket; 0: none. The
    /// edge may allow fewer.
    pub lanes: usize,
    /// End when the first connection can't be made, instead of trying for ever.
    pub fail_fast: bool,
    /// Send [`Event::Request`] for each request; costs a little for each.
    pub request_events: bool,
}

impl Settings {
    /// An agent with an id of this run's own and everything else at its default.
    #[must_use]
    pub fn new(server: ServerUrl, token: Token, tunnels: Vec<TunnelSettings>) -> Self {
        Self {
            servers: vec![server],
            token,
            token_file: None,
            agent_id: AgentId::random(),
            agent_name: String::new(),
            trust: Trust::System,
            pins: Vec::new(),
            identity: None,
            proxy: Proxy::default(),
            sessions: DEFAULT_SESSIONS,
            heartbeat: None,
            transport: Transport::Auto,
            policy: Policy::default(),
            quic_options: quic::Options::default(),
            tunnels,
            lanes: DEFAULT_LANES,
            fail_fast: false,
            request_events: false,
        }
    }
}

/// One tunnel.
#[derive(Clone, Debug)]
pub struct TunnelSettings {
    /// The agent's own word for it, unique among its tunnels.
    pub key: String,
    /// What it carries.
    pub kind: TunnelKind,
    /// The public name wanted; `None`: the edge chooses, and the agent keeps what it chose.
    pub name: Option<String>,
    /// The public port wanted, of a TCP or UDP tunnel; `None`: as for the name.
    pub port: Option<u16>,
    /// The local server.
    pub target: Target,
    /// Further local servers that do the same as `target`: requests are shared out among those that
    /// are healthy.
    pub further: Vec<Target>,
    /// How the local servers' health is found out.
    pub health: HealthCheck,
    /// How long a request waits for a local server that takes no connection, such as one that is being
    /// restarted; 0: it fails at once.
    pub hold_local: Duration,
    /// Requests and answers are kept for the inspector, if there is one.
    pub inspect: bool,
    /// Whose word its certificate is taken on.
    pub trust: Trust,
    /// Which HTTP it is spoken to in.
    pub protocol: Protocol,
    /// How long a connection to it may take.
    pub connect_timeout: Duration,
    /// How long it may take to begin an answer; `None`: for ever.
    pub response_timeout: Option<Duration>,
    /// What the edge does with requests and answers. Local servers are not named in it: that is
    /// filled in.
    pub policy: v1::HttpPolicy,
    /// The local server of each of the policy's routes, in their order.
    pub routes: Vec<Target>,
    /// How files are shown, where one of the local servers is a folder.
    pub files: FileSettings,
    /// How long a connection of a TCP or TLS tunnel may be still; `None`: for ever. A flow of a UDP
    /// tunnel: `None` is the edge's own limit.
    pub idle_timeout: Option<Duration>,
    /// The local server of a TCP or TLS tunnel is told who the visitor is, in a PROXY header.
    pub proxy_protocol: Option<proxy_protocol::Version>,
}

/// Why a tunnel can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// A local server can't be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The policy can't be followed.
    #[error("tunnel {key:?}: {error}")]
    Policy {
        /// The agent's word for the tunnel.
        key: String,
        /// Which key of it is wrong.
        error: PolicyError,
    },
    /// What the edge has to be told at once does not fit into one message.
    #[error(
        "the settings of all tunnels together are longer than {MAX_INIT} bytes; use shorter error pages"
    )]
    TooLong,
}

impl TunnelSettings {
    /// A tunnel to `target` with a name of the edge's choice.
    #[must_use]
    pub fn http(key: impl Into<String>, target: Target) -> Self {
        Self {
            key: key.into(),
            kind: TunnelKind::Http,
            name: None,
            port: None,
            target,
            further: Vec::new(),
            health: HealthCheck::default(),
            hold_local: Duration::ZERO,
            inspect: true,
            trust: Trust::System,
            protocol: Protocol::Auto,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: Some(RESPONSE_TIMEOUT),
            policy: v1::HttpPolicy::default(),
            routes: Vec::new(),
            files: FileSettings::default(),
            idle_timeout: None,
            proxy_protocol: None,
        }
    }

    /// The policy as the edge gets it, checked as the edge will check it; `None`: there is none.
    ///
    /// # Errors
    /// [`TunnelError::Policy`]
    pub fn policy(&self) -> Result<Option<v1::HttpPolicy>, TunnelError> {
        if self.policy == v1::HttpPolicy::default() {
            return Ok(None);
        }
        let mut policy = self.policy.clone();
        let wrong = |error| TunnelError::Policy { key: self.key.clone(), error };
        if policy.routes.len() != self.routes.len() {
            let what = "each route needs an upstream".to_owned();
            return Err(wrong(PolicyError { key: "routes".to_owned(), what }));
        }
        policy.local_origin = self.target.origin();
        for (route, target) in policy.routes.iter_mut().zip(&self.routes) {
            route.local_origin = target.origin();
        }
        uniroute_shared::policy::Policy::compile(&policy).map_err(wrong)?;
        Ok(Some(policy))
    }

    fn upstream(&self, target: &Target) -> Result<Upstream, TargetError> {
        Upstream::new(target.clone(), &self.trust, self.connect_timeout, self.protocol)
    }

    fn service(&self, target: &Target) -> Result<Service, TargetError> {
        Ok(match &target.place {
            Place::Files(root) => {
                Service::Files(Arc::new(Files::new(root.clone(), self.files.clone())))
            }
            _ => Service::Server(Arc::new(self.upstream(target)?)),
        })
    }

    fn tunnel(&self) -> Result<Tunnel, TunnelError> {
        let routes = self.routes.iter().map(|target| self.service(target));
        let routes = routes.collect::<Result<_, _>>()?;
        Ok(Tunnel::new(self, self.policy()?, self.default_service()?, routes))
    }

    fn default_service(&self) -> Result<(Arc<Upstream>, Service), TargetError> {
        let service = self.service(&self.target)?;
        let upstream = match &service {
            Service::Server(upstream) => Arc::clone(upstream),
            Service::Files(_) => Arc::new(self.upstream(&self.target)?),
        };
        Ok((upstream, service))
    }

    /// A tunnel of `kind` to the local server that is written `upstream`, with a name and a port of
    /// the edge's choice.
    ///
    /// # Errors
    /// [`TargetError`] when that is none.
    pub fn of_kind(
        kind: TunnelKind,
        key: impl Into<String>,
        upstream: &str,
    ) -> Result<Self, TargetError> {
        let target = match kind.scheme() {
            None => upstream.parse()?,
            Some(scheme) => Target::socket(scheme, upstream)?,
        };
        Ok(Self { kind, ..Self::http(key, target) })
    }
}

/// What happens to an agent. New kinds may be added.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is tried.
    Connecting,
    /// A session stands.
    Connected {
        /// The edge's name for itself.
        edge: String,
        /// What carries it.
        carrier: Carrier,
    },
    /// A tunnel takes requests.
    Ready {
        /// The agent's word for it.
        key: String,
        /// Its public name.
        name: String,
        /// Where visitors find it.
        url: String,
        /// The local server.
        upstream: String,
    },
    /// A tunnel can't be had.
    Refused {
        /// The agent's word for it.
        key: String,
        /// The error table's code.
        code: u16,
        /// In the edge's words.
        message: String,
    },
    /// The session ended or could not be made; the agent tries again.
    Disconnected {
        /// Why.
        reason: String,
        /// When it tries again.
        retry_in: Duration,
    },
    /// The time to the edge and back.
    RoundTrip(Duration),
    /// The tunnel's owner lets nobody in, or does again.
    Paused {
        /// The agent's word for it.
        key: String,
        /// Whether visitors are kept out now.
        paused: bool,
    },
    /// What the edge counts of a tunnel.
    Status {
        /// The agent's word for it.
        key: String,
        /// Requests since it was created.
        requests: u64,
        /// Median time to the first byte.
        latency_ms: u32,
        /// How long it has existed.
        uptime_seconds: u64,
        /// Its owner lets no visitors in for now.
        paused: bool,
    },
    /// A request was answered; only with [`Settings::request_events`].
    Request {
        /// The agent's word for the tunnel.
        tunnel: String,
        /// The request's method.
        method: String,
        /// Its path and query.
        path: String,
        /// The answer's status.
        status: u16,
        /// To the answer's head.
        duration: Duration,
    },
}

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The edge does not accept the token.
    #[error("the edge does not accept the token ({code}): {}", code.fix)]
    Token {
        /// The code in the table.
        code: &'static Code,
    },
    /// No common protocol version.
    #[error("agent and edge speak different versions: {0}")]
    Version(String),
    /// None of the wanted names can be had.
    #[error("{}", refusals(.0))]
    Refused(Vec<Refusal>),
    /// The first connection could not be made, and the agent was told not to try again.
    #[error("{0}")]
    Unreachable(ConnectError),
    /// Another agent with the same id has taken all names.
    #[error("another agent with this agent's id has taken over its names; this one ends")]
    Replaced,
}

/// A tunnel that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The agent's word for the tunnel.
    pub key: String,
    /// The name that was wanted; empty if any would do.
    pub name: String,
    /// The public port that was wanted; 0 if any would do, or the tunnel has none.
    pub port: u16,
    /// The error table's code.
    pub code: u16,
    /// In the edge's words.
    pub message: String,
}

impl Refusal {
    /// What to do about one that is for now only.
    fn later(&self) -> Option<Next> {
        let at_least = refused_until(self.code.into())?;
        Some(Next::TurnedAway { reason: self.message.clone(), at_least })
    }

    fn deleted(tunnel: &Tunnel) -> Self {
        Self {
            key: tunnel.key.clone(),
            name: tunnel.name(),
            port: 0,
            code: Code::TUNNEL_DELETED.number,
            message: Code::TUNNEL_DELETED.title.to_owned(),
        }
    }
}

/// After how long a tunnel that was refused may be asked for again; `None`: it is refused for good.
pub(crate) fn refused_until(code: u32) -> Option<Duration> {
    let code = Code::from_number(u16::try_from(code).ok()?)?;
    code.retry_after.map(|seconds| Duration::from_secs(seconds.into()))
}

fn refusals(refusals: &[Refusal]) -> String {
    let line = |refusal: &Refusal| {
        let Refusal { key, name, port, code, message } = refusal;
        let fix = Code::from_number(*code).map_or("", |code| code.fix);
        let port = if *port == 0 { String::new() } else { format!(", port {port}") };
        format!("tunnel {key:?}, name {name:?}{port}: {message} (UR-{code:04}). {fix}")
    };
    refusals.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Changes a running agent.
#[derive(Clone, Debug)]
pub struct Handle {
    tunnels: Arc<Tunnels>,
}

impl Handle {
    /// Sends the requests of a tunnel to another local server from now on; open ones go on where
    /// they are. Returns whether there is such a tunnel.
    ///
    /// # Errors
    /// [`TargetError`] when the CA file can't be used.
    pub fn retarget(&self, settings: &TunnelSettings) -> Result<bool, TargetError> {
        Ok(self.tunnels.retarget(&settings.key, settings.default_service()?))
    }
}

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    tls: Arc<ClientConfig>,
    tunnels: Arc<Tunnels>,
    resume_token: bytes::Bytes,
    connected_before: bool,
    chooser: Mutex<Chooser>,
    /// The kernel's small buffers for UDP are said once.
    small_buffers: Once,
}

/// How a session attempt ended that the agent goes on after.
enum Next {
    /// Nothing is there.
    Unreachable(String),
    /// An edge is there, but gives no session.
    TurnedAway { reason: String, at_least: Duration },
    /// At once: the edge sends this agent elsewhere.
    Now,
    /// With a session over another carrier, which stands already.
    Switched(Box<Session>),
}

impl Agent {
    /// An agent, and what will happen to it. Nothing is connected yet.
    ///
    /// # Errors
    /// [`TunnelError`] when a CA file or a policy can't be used.
    pub fn new(settings: Settings) -> Result<(Self, mpsc::Receiver<Event>), TunnelError> {
        let (events, listener) = mpsc::channel(EVENTS);
        let tunnels = settings.tunnels.iter().map(TunnelSettings::tunnel);
        let tunnels = Arc::new(Tunnels::new(
            tunnels.collect::<Result<_, _>>()?,
            events,
            settings.request_events,
        ));
        let specs = tunnels.all().iter().map(|tunnel| tunnel.spec().encoded_len());
        if specs.sum::<usize>() > MAX_INIT {
            return Err(TunnelError::TooLong);
        }
        let tls = tls::config(&settings.trust)?;
        let agent = Self {
            chooser: Mutex::new(Chooser::new(settings.policy)),
            settings,
            tls,
            tunnels,
            resume_token: bytes::Bytes::new(),
            connected_before: false,
            small_buffers: Once::new(),
        };
        Ok((agent, listener))
    }

    /// To change the agent while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { tunnels: Arc::clone(&self.tunnels) }
    }

    /// The local servers, by tunnel.
    #[must_use]
    pub fn targets(&self) -> Vec<(String, Target)> {
        self.tunnels.targets()
    }

    /// Connects, serves and connects again, for ever; until `stop` is cancelled, which drains.
    ///
    /// # Errors
    /// [`AgentError`] for what trying again would not mend.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AgentError> {
        let tunnels = Arc::clone(&self.tunnels);
        let sweeping = async {
            let mut tick = tokio::time::interval(SWEEP);
            loop {
                tick.tick().await;
                tunnels.sweep();
            }
        };
        tokio::select! {
            result = self.keep_connected(&stop) => result,
            () = sweeping => Ok(()),
        }
    }

    async fn keep_connected(&mut self, stop: &CancellationToken) -> Result<(), AgentError> {
        let mut unreachable = Backoff::new(BACKOFF_BASE, UNREACHABLE_CAP);
        let mut turned_away = Backoff::new(BACKOFF_BASE, TURNED_AWAY_CAP);
        // Sessions that are leaving finish their streams beside the current one.
        let mut leaving = JoinSet::new();
        let mut switched: Option<Box<Session>> = None;
        loop {
            if !self.tunnels.all().is_empty() && self.tunnels.wanted().next().is_none() {
                let deleted = self.tunnels.all().iter().map(|tunnel| Refusal::deleted(tunnel));
                return Err(AgentError::Refused(deleted.collect()));
            }
            let attempt = match switched.take() {
                Some(session) => Ok(*session),
                None => {
                    self.look_for_new_token();
                    self.event(|| Event::Connecting);
                    tokio::select! {
                        attempt = self.connect() => attempt,
                        () = stop.cancelled() => break,
                    }
                }
            };
            let next = match attempt {
                Ok(session) => {
                    let began = Instant::now();
                    let next = self.serve(session, &mut leaving, stop).await?;
                    if began.elapsed() >= STABLE {
                        unreachable.reset();
                        turned_away.reset();
                    }
                    next
                }
                Err(error) => self.on_failure(error)?,
            };
            if stop.is_cancelled() {
                break;
            }
            let (reason, retry_in) = match next {
                Next::Now => continue,
                Next::Switched(session) => {
                    switched = Some(session);
                    continue;
                }
                Next::Unreachable(reason) => (reason, unreachable.next(random())),
                Next::TurnedAway { reason, at_least } => {
                    (reason, turned_away.next(random()).max(at_least))
                }
            };
            warn!(reason, retry_in_ms = retry_in.as_millis(), "not connected");
            self.event(|| Event::Disconnected { reason, retry_in });
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                () = stop.cancelled() => break,
            }
        }
        while leaving.join_next().await.is_some() {}
        Ok(())
    }

    /// One attempt, up to a session that takes requests.
    async fn connect(&self) -> Result<Session, ConnectError> {
        if self.settings.transport != Transport::Quic {
            return self.connect_websocket(self.resuming()).await;
        }
        let dialled = connect::dial(&self.settings.servers[0], &self.tls).await?;
        let address = dialled.address;
        let offer = session::ask_for_quic(dialled).await?;
        let door = offer.and_then(|offer| QuicDoor::new(address, &offer));
        self.connect_quic(door.ok_or(ConnectError::NoQuic)?, self.resuming()).await
    }

    async fn connect_websocket(&self, init: v1::Init) -> Result<Session, ConnectError> {
        let dialled = connect::dial(&self.settings.servers[0], &self.tls).await?;
        session::establish(dialled, init).await
    }

    async fn connect_quic(&self, door: QuicDoor, init: v1::Init) -> Result<Session, ConnectError> {
        session::establish_quic(self.dial_quic(door).await?, init).await
    }

    async fn dial_quic(&self, door: QuicDoor) -> Result<quic::Dialled, quic::DialError> {
        let options = self.settings.quic_options;
        let mut dialled = quic::dial(door.address, door.certificate, options).await?;
        if let Some(small) = dialled.small_buffers.take() {
            self.small_buffers.call_once(|| warn!("{small}"));
        }
        Ok(dialled)
    }

    /// To take the place of the last session, which is gone or of no more use.
    fn resuming(&self) -> v1::Init {
        v1::Init { resume_token: self.resume_token.clone(), ..self.init() }
    }

    /// To take over from the last session, which serves until this one does, and then finishes
    /// what it has.
    fn switching(&self) -> v1::Init {
        v1::Init { switches_carrier: true, ..self.init() }
    }

    fn init(&self) -> v1::Init {
        v1::Init {
            token: self.settings.token.expose().to_owned(),
            agent_id: self.settings.agent_id.to_string(),
            tunnels: self.tunnels.wanted().map(|tunnel| tunnel.spec()).collect(),
            features: vec![FEATURE_LANES.to_owned(), FEATURE_HTTP_POLICY.to_owned()],
            metadata: Some(v1::AgentMetadata {
                name: self.settings.agent_name.clone(),
                region: String::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            }),
            ..v1::Init::default()
        }
    }

    /// Runs a session until it ends or leaves.
    async fn serve(
        &mut self,
        session: Session,
        leaving: &mut JoinSet<SessionEnd>,
        stop: &CancellationToken,
    ) -> Result<Next, AgentError> {
        if let Some(wait) = self.take_in(&session)? {
            return Ok(wait);
        }
        self.chooser.lock().begin();
        let view = session.view();
        let goes = CancellationToken::new();
        let running =
            session.run(Arc::clone(&self.tunnels), self.lane_dialler(), goes.clone(), stop.clone());
        let mut sessions = JoinSet::new();
        sessions.spawn(running);
        // It goes on to the end of its streams, while another one takes its place.
        let mut leave = |mut sessions: JoinSet<SessionEnd>| {
            while leaving.try_join_next().is_some() {}
            leaving.spawn(async move {
                sessions.join_next().await.and_then(Result::ok).unwrap_or(SessionEnd::Drained)
            });
        };
        let ended = loop {
            let switching = AtomicBool::new(false);
            let mut switch = std::pin::pin!(self.switch(&view, &switching));
            let ended = tokio::select! {
                ended = sessions.join_next() => ended,
                () = goes.cancelled() => {
                    leave(sessions);
                    return Ok(Next::Now);
                }
                switched = &mut switch => match switched {
                    Ok(session) => {
                        leave(sessions);
                        return Ok(Next::Switched(Box::new(session)));
                    }
                    Err(error) => {
                        self.not_switched(&view, &error);
                        continue;
                    }
                },
            };
            // The newer session that has replaced it may be our own.
            if matches!(ended, Some(Ok(SessionEnd::Replaced))) && switching.load(Ordering::Relaxed)
            {
                return Ok(match switch.await {
                    Ok(session) => Next::Switched(Box::new(session)),
                    Err(error) => Next::Unreachable(error.to_string()),
                });
            }
            break ended;
        };
        let reason = match ended {
            Some(Ok(SessionEnd::Replaced)) => return Err(AgentError::Replaced),
            Some(Ok(end)) => end.to_string(),
            Some(Err(error)) => format!("the session's task failed: {error}"),
            None => "the session's task is gone".to_owned(),
        };
        debug!(reason, "session ended");
        if view.carried.carrier() == Carrier::Quic {
            self.chooser.lock().quic_failed(Instant::now());
        }
        Ok(Next::Unreachable(reason))
    }

    fn lane_dialler(&self) -> Dialler {
        Dialler {
            server: self.settings.servers[0].clone(),
            tls: Arc::clone(&self.tls),
            max: self.settings.lanes,
        }
    }

    /// Looks after the session until another carrier is better, and then gives a session over that
    /// one, or why there is none. Sets `switching` once the edge may know of it.
    async fn switch(&self, view: &View, switching: &AtomicBool) -> Result<Session, ConnectError> {
        if self.settings.transport != Transport::Auto {
            return std::future::pending().await;
        }
        let policy = self.chooser.lock().policy();
        loop {
            tokio::time::sleep(policy.look).await;
            if let Some(path) = view.carried.path() {
                if self.chooser.lock().wants_websocket(path.sent, path.lost) {
                    info!("hardly a packet is lost: back to WebSocket");
                    switching.store(true, Ordering::Relaxed);
                    return self.connect_websocket(self.switching()).await;
                }
                continue;
            }
            let Some(door) = view.door else { continue };
            if !self.chooser.lock().wants_probe(Instant::now(), view.moved()) {
                continue;
            }
            if self.probe(view, door).await? {
                info!("packets are lost on the way to the edge: QUIC is taken");
                switching.store(true, Ordering::Relaxed);
                return self.connect_quic(door, self.switching()).await;
            }
        }
    }

    /// Measures the QUIC path; whether it is to be taken.
    async fn probe(&self, view: &View, door: QuicDoor) -> Result<bool, quic::DialError> {
        view.carried.ping();
        let dialled = self.dial_quic(door).await?;
        let probe = probe::probe(&dialled.connection, self.settings.policy).await;
        dialled.connection.close(0_u32.into(), b"probed");
        let websocket_rtt = view.carried.stats().min_rtt;
        debug!(?probe, ?websocket_rtt, "the QUIC path was probed");
        Ok(self.chooser.lock().probed(Instant::now(), probe, websocket_rtt))
    }

    fn not_switched(&self, view: &View, error: &ConnectError) {
        info!(%error, "the carrier stays");
        if view.carried.carrier() == Carrier::WebSocket {
            self.chooser.lock().quic_failed(Instant::now());
        }
    }

    /// What the handshake brought. A session with nothing to serve is of no use, where the edge can
    /// only not say now what the agent may have.
    fn take_in(&mut self, session: &Session) -> Result<Option<Next>, AgentError> {
        let established = &session.established;
        let carrier = session.view().carried.carrier();
        info!(edge = established.edge_id, session.id = established.ack.session_id, %carrier, "connected");
        self.resume_token = established.ack.resume_token.clone();
        self.event(|| Event::Connected { edge: established.edge_id.clone(), carrier });
        for created in &established.created {
            self.tunnels.created(created);
        }
        let refused: Vec<_> = established.refused.iter().map(|r| self.refusal(r)).collect();
        for refusal in &refused {
            let Refusal { key, code, message, .. } = refusal.clone();
            warn!(tunnel = key, code, message, "a tunnel was refused");
            self.event(|| Event::Refused { key, code, message });
        }
        if established.created.is_empty() {
            let later = refused.iter().find_map(|refusal| refusal.later());
            match later.filter(|_| !self.settings.fail_fast || self.connected_before) {
                Some(wait) => return Ok(Some(wait)),
                None if !self.connected_before => return Err(AgentError::Refused(refused)),
                None => {}
            }
        }
        self.connected_before = true;
        Ok(None)
    }

    fn refusal(&self, refused: &v1::TunnelRefused) -> Refusal {
        let tunnel = self.settings.tunnels.iter().find(|tunnel| tunnel.key == refused.key);
        Refusal {
            key: refused.key.clone(),
            name: tunnel.and_then(|tunnel| tunnel.name.clone()).unwrap_or_default(),
            port: tunnel.and_then(|tunnel| tunnel.port).unwrap_or_default(),
            code: u16::try_from(refused.code).unwrap_or_default(),
            message: refused.message.clone(),
        }
    }

    /// Whether the token's file has another one by now; it is used from then on.
    fn look_for_new_token(&mut self) -> bool {
        let Some(path) = &self.settings.token_file else { return false };
        let token = std::fs::read_to_string(path).ok().and_then(|text| Token::first(&text).ok());
        match token {
            Some(token) if token != self.settings.token => {
                info!(path = %path.display(), "the token file has a new token");
                self.settings.token = token;
                true
            }
            // Gone, or half written: the one that is known may still be good.
            _ => false,
        }
    }

    /// Whether there is any use in trying again.
    fn on_failure(&mut self, error: ConnectError) -> Result<Next, AgentError> {
        let mut reason = error.to_string();
        let at_least = match &error {
            ConnectError::Handshake(HandshakeError::Refused { code, retry_after_ms, message }) => {
                match u16::try_from(*code).ok().and_then(Code::from_number) {
                    Some(code) if TOKEN_IS_OVER.contains(code) && !self.look_for_new_token() => {
                        return Err(AgentError::Token { code });
                    }
                    Some(code) if *code == Code::VERSION_MISMATCH => {
                        return Err(AgentError::Version(message.clone()));
                    }
                    Some(code) => reason = format!("{error} ({code}). {}", code.fix),
                    None => {}
                }
                retry_after_ms.map_or(Duration::ZERO, |ms| Duration::from_millis(ms.into()))
            }
            ConnectError::Handshake(HandshakeError::Version { .. }) => {
                return Err(AgentError::Version(error.to_string()));
            }
            ConnectError::Rejected { retry_after, .. } => {
                retry_after.unwrap_or_default().min(TURNED_AWAY_CAP)
            }
            _ => Duration::ZERO,
        };
        if self.settings.fail_fast && !self.connected_before {
            return Err(AgentError::Unreachable(error));
        }
        Ok(match error {
            ConnectError::Dns { .. }
            | ConnectError::Tcp { .. }
            | ConnectError::Lost(_)
            | ConnectError::Quic(_) => Next::Unreachable(reason),
            _ => Next::TurnedAway { reason, at_least },
        })
    }

    fn event(&self, event: impl FnOnce() -> Event) {
        self.tunnels.event(event);
    }
}

/// Looks whether a local server takes connections. Of one that takes datagrams there is nothing to
/// see.
///
/// # Errors
/// [`upstream::UpstreamError`], in words for its owner.
pub async fn check_local(settings: &TunnelSettings) -> Result<(), CheckError> {
    if settings.kind == TunnelKind::Udp {
        return Ok(settings.upstream(&settings.target).map(drop)?);
    }
    for target in std::iter::once(&settings.target).chain(&settings.routes) {
        match settings.service(target)? {
            Service::Server(upstream) => drop(upstream.dial().await?),
            Service::Files(files) => files.check()?,
        }
    }
    Ok(())
}

/// Why a local server can't be served.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Its settings.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It takes no connection.
    #[error(transparent)]
    Upstream(#[from] upstream::UpstreamError),
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness agents would only come back closer together.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}
