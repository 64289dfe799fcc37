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
pub mod diagnose;
pub mod embed;
mod files;
mod forward;
mod health;
mod hints;
mod inspect;
pub mod local;
mod login;
mod network;
mod probe;
mod session;
mod slot;
mod sockets;
pub mod status;
mod tls;
mod transport;
mod tunnel;
pub mod upstream;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uniroute_proto::{codec::MAX_CONTROL, v1};
use uniroute_shared::{
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
    connect::proxy::{Proxy, ProxyError, ProxyUrl},
    embed::{Listener, Tunnel},
    files::FileSettings,
    health::{HEALTH_INTERVAL, HEALTH_TIMEOUT, HealthCheck, HealthProbe},
    inspect::Limits,
    login::{LoginError, check_login},
    status::Status,
    tls::{Identity, Pin, PinError, TlsError, WrongKey},
    transport::{Policy, Transport, TransportError},
    tunnel::{Applied, TunnelKind, TunnelLimits},
};
use self::{
    connect::{ConnectError, ServerUrl},
    files::Files,
    slot::{Shared, Slot},
    tunnel::Service,
    upstream::{
        Place, Protocol, Target, TargetError, Trust, Upstream,
        pool::{Pool, PoolSettings},
    },
};

/// How long a connection to a local server may take by default.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a local server may take to begin its answer by default.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest settings of all tunnels in bytes: they travel in one control frame, with some more.
pub(crate) const MAX_INIT: usize = MAX_CONTROL - 16 * 1024;
/// Sessions of an agent at once, where there are several edges.
pub const DEFAULT_SESSIONS: usize = 2;
/// Events that wait for a slow listener; later ones are dropped.
const EVENTS: usize = 256;
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
    /// What is kept of requests for [`local`] to show; `None`: nothing.
    pub inspector: Option<Limits>,
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
            inspector: None,
        }
    }
}

/// One tunnel.
#[derive(Clone, Debug, PartialEq)]
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
    /// are healthy. A UDP tunnel and a folder have none.
    pub further: Vec<Target>,
    /// How the local servers' health is found out.
    pub health: HealthCheck,
    /// How long a request waits for a local server that takes no connection, such as one that is being
    /// restarted; 0: it fails at once.
    pub hold_local: Duration,
    /// How long the edge lets a request wait for this agent while it is away; 0: it fails at once,
    /// `None`: as long as the edge has it. It is never longer than that.
    pub hold_reconnect: Option<Duration>,
    /// How much the edge lets in.
    pub limits: TunnelLimits,
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
    /// TLS to the edge can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The policy can't be followed.
    #[error("tunnel {key:?}: {error}")]
    Policy {
        /// The agent's word for the tunnel.
        key: String,
        /// Which key of it is wrong.
        error: PolicyError,
    },
    /// The folder for long bodies, for the inspector.
    #[error("the inspector's folder for long bodies can't be made: {0}")]
    Spool(std::io::Error),
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
            hold_reconnect: None,
            limits: TunnelLimits::default(),
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
        let mut policy = self.policy.clone();
        let wrong = |error| TunnelError::Policy { key: self.key.clone(), error };
        if policy.routes.len() != self.routes.len() {
            let what = "each route needs an upstream".to_owned();
            return Err(wrong(PolicyError { key: "routes".to_owned(), what }));
        }
        if policy == v1::HttpPolicy::default() {
            return Ok(None);
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
            _ => {
                let check = self.health.of_connections();
                Service::Server(Arc::new(self.pool(target, &[], check)?))
            }
        })
    }

    /// Whether the edge would call it the same: then it can be changed while it runs.
    fn is_the_same_tunnel(&self, other: &Self) -> bool {
        let identity = |settings: &Self| (settings.kind, settings.name.clone(), settings.port);
        identity(self) == identity(other)
    }

    /// Local servers that do the same.
    fn pool(
        &self,
        first: &Target,
        further: &[Target],
        check: HealthCheck,
    ) -> Result<Pool, TargetError> {
        let further = further.iter().map(|target| self.upstream(target));
        let further = further.collect::<Result<Vec<_>, _>>()?;
        let settings = PoolSettings { check, hold: self.hold_local };
        Ok(Pool::new(self.upstream(first)?, further, settings, random()))
    }

    /// Whether what is known of its local servers holds for those of `other` too.
    fn has_the_same_servers(&self, other: &Self) -> bool {
        let of = |settings: &Self| {
            let Self { trust, protocol, connect_timeout, hold_local, health, .. } =
                settings.clone();
            (trust, protocol, connect_timeout, hold_local, health)
        };
        self.target == other.target && self.further == other.further && of(self) == of(other)
    }

    /// The local servers of the default route. A folder is one of them, which takes no connections:
    /// what is known of it is known there.
    fn default_pool(&self) -> Result<Pool, TargetError> {
        let further = match (self.kind, &self.target.place) {
            (TunnelKind::Udp, _) | (_, Place::Files(_)) => &[],
            _ => &self.further[..],
        };
        self.pool(&self.target, further, self.health.clone())
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
    /// [`Handle::apply`] has changed what the agent serves.
    Applied(Applied),
    /// A local server answers no more, or does again.
    Upstream {
        /// The agent's word for the tunnel.
        key: String,
        /// The local server.
        upstream: String,
        /// Whether it answers.
        healthy: bool,
        /// Why it does not, in words.
        reason: String,
    },
    /// A local server turns visitors away, as many do with names that they don't know.
    Hint {
        /// The agent's word for the tunnel.
        key: String,
        /// What is wrong.
        title: String,
        /// What to do.
        fix: String,
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
    #[error(
        "another agent with this agent's id has taken over its names; this one ends. Two machines must not have the same id: where one has a copy of the other's state folder, delete the files agent-id* in it"
    )]
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
    pub(crate) fn later(&self) -> Option<Duration> {
        refused_until(self.code.into())
    }

    pub(crate) fn deleted(tunnel: &tunnel::Tunnel) -> Self {
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

/// Changes a running agent, and looks at it.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Makes `tunnels` those that the agent serves. Only the difference is done: tunnels that are the
    /// same stay as they are, those that differ in more than their name, kind and port change while
    /// they run, and what is open goes on as it began. Nothing is changed when one of them can't be
    /// used.
    ///
    /// # Errors
    /// [`TunnelError`]
    pub fn apply(&self, tunnels: Vec<TunnelSettings>) -> Result<Applied, TunnelError> {
        let applied = self.shared.tunnels.apply(tunnels)?;
        self.shared.tunnels.event(|| Event::Applied(applied.clone()));
        Ok(applied)
    }

    /// What the agent is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    /// An agent, and what will happen to it. Nothing is connected yet.
    ///
    /// # Errors
    /// [`TunnelError`] when a CA file or a policy can't be used.
    pub fn new(settings: Settings) -> Result<(Self, mpsc::Receiver<Event>), TunnelError> {
        let (events, listener) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared::new(settings, events)?);
        Ok((Self { shared }, listener))
    }

    /// To change the agent while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// Connects, serves and connects again, for ever; until `stop` is cancelled, which drains.
    ///
    /// # Errors
    /// [`AgentError`] for what trying again would not mend.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AgentError> {
        let shared = self.shared;
        let first = Slot::new(Arc::clone(&shared), 0).keep(&stop);
        let further = async {
            further_slots(&shared, &stop).await;
            Ok(())
        };
        let tunnels = &shared.tunnels;
        let checking = health::run(|| tunnels.checked(), random, || tunnels.tell_health());
        tokio::select! {
            // An error of the first one ends them all at once.
            result = async { tokio::try_join!(first, further) } => result.map(drop),
            () = shared.look_after() => Ok(()),
            never = checking => match never {},
        }
    }
}

/// Keeps the sessions beside the first one. What is wrong with the agent as a whole ends the first
/// one, and is not said twice.
async fn further_slots(shared: &Arc<Shared>, stop: &CancellationToken) {
    let mut slots = JoinSet::new();
    for number in 1..shared.settings.sessions {
        let (shared, stop) = (Arc::clone(shared), stop.clone());
        slots.spawn(async move {
            let kept = Slot::new(Arc::clone(&shared), number).keep(&stop).await;
            if let Err(error) = kept {
                debug!(%error, number, "no further session");
            }
        });
    }
    while slots.join_next().await.is_some() {}
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
    let all = std::iter::once(&settings.target).chain(&settings.further).chain(&settings.routes);
    for target in all {
        match settings.service(target)? {
            Service::Server(pool) => drop(pool.first().dial().await?),
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

/// For `fuzz/`: what reads captured bytes.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn try_captured(data: &[u8]) {
    inspect::try_out(data);
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness agents would only come back closer together.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}
