//! The edge: the public server of UniRoute Tunnel. Visitors' requests come in at one door and go
//! out over the sessions that agents hold open; see ARCHITECTURE.md for the map.
//!
//! [`Edge::start`] binds and serves, [`Edge::shutdown`] drains. The binary `uniroute-edge` adds a
//! command line and signals.

mod abuse;
mod admin;
mod api;
mod auth;
mod background;
mod changes;
pub mod config;
mod events;
mod histogram;
mod ingress;
mod jobs;
mod limits;
mod live;
mod metrics;
mod names;
mod policy;
mod presence;
mod registry;
mod services;
mod session;
mod sockets;
pub mod state;
pub mod store;
mod traffic;
mod watch;

pub use self::services::setup;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::{
    net::TcpListener,
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use uniroute_proto::v1;
use uniroute_shared::{
    carrier::quic::endpoint as quic,
    code::Code,
    id::{SessionId, Subdomain, TokenSet},
    mux::{Budget, PROCESS_WINDOW},
    network::Networks,
    session::Carrier,
};

use self::{
    abuse::Abuse,
    api::Api,
    background::Background,
    config::{Https, Quic, Settings, Sockets},
    events::Events,
    ingress::{
        Refused,
        hold::Hold,
        listener::{self, Handover},
        router::Hosts,
        seats::Seats,
    },
    jobs::Retention,
    limits::{
        Gate,
        accounts::Accounts,
        addresses::{Addresses, Counted},
    },
    metrics::Metrics,
    registry::{Registry, Tunnel, ports::Kind},
    session::{books::Books, permit::Permits},
    state::State,
    store::Store,
    traffic::Journal,
    watch::Watchers,
};

/// Idle time after which the kernel looks whether a visitor is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// What all parts of one edge share. No globals: a process may run several edges.
pub(crate) struct Shared {
    pub(crate) id: String,
    pub(crate) hosts: Hosts,
    /// Pre-shared tokens, where there are any.
    pub(crate) tokens: Option<TokenSet>,
    /// Tokens of users that were good a moment ago.
    pub(crate) permits: Permits,
    /// Users with a session here.
    pub(crate) accounts: Accounts,
    /// Visitors' addresses.
    pub(crate) addresses: Addresses,
    /// Requests a second of the whole edge, or of all edges.
    pub(crate) rate: Option<u32>,
    pub(crate) gate: Gate,
    pub(crate) abuse: Abuse,
    /// What goes through tunnels, until it is written down.
    pub(crate) journal: Journal,
    /// What sessions do, until it is written down.
    pub(crate) books: Books,
    pub(crate) store: Store,
    pub(crate) state: State,
    pub(crate) events: Events,
    /// Who wants to be told of them.
    pub(crate) watchers: Arc<Watchers>,
    /// How long nobody else gets a name that was given up.
    pub(crate) quarantine: Duration,
    pub(crate) retention: Retention,
    /// How often the audit log is read, and jobs are looked at.
    pub(crate) feed: Duration,
    pub(crate) jobs_every: Duration,
    /// The REST API.
    pub(crate) api: OnceLock<Api>,
    pub(crate) background: runtime::Handle,
    /// Everything that was under way has ended: what is left is to be written.
    pub(crate) drained: CancellationToken,
    /// It is.
    pub(crate) written: CancellationToken,
    pub(crate) heartbeat: Duration,
    pub(crate) registry: Registry,
    /// Requests whose agent is not there right now.
    pub(crate) hold: Hold,
    /// How long a visitor may take nothing of an answer that waits for him.
    pub(crate) stall: Duration,
    pub(crate) metrics: Metrics,
    /// What the policies of its tunnels share.
    pub(crate) policies: Arc<policy::Common>,
    /// Sessions of each worker.
    pub(crate) seats: Arc<Seats>,
    /// Receive windows of all sessions over WebSocket.
    pub(crate) windows: Budget,
    pub(crate) tasks: TaskTracker,
    /// Said once, when the edge is to stop: no new work, what is under way may finish.
    pub(crate) stop: CancellationToken,
    /// The same as a flag that costs nothing to read.
    pub(crate) stopping: AtomicBool,
    /// How what is not HTTP is served.
    pub(crate) sockets: Sockets,
    /// Where TLS connections come in.
    pub(crate) https: Option<SocketAddr>,
    /// Where tunnels' own ports are.
    pub(crate) ports_at: IpAddr,
    /// Proxies in front that are believed.
    pub(crate) trusted: Networks,
    public: Arc<PublicUrl>,
    /// Where agents may go instead of WebSocket.
    quic: Option<v1::QuicOffer>,
    connections: Arc<Semaphore>,
    max_connections: usize,
    sessions: Arc<Semaphore>,
    pub(crate) workers: Vec<runtime::Handle>,
    /// To each worker, for connections that belong to its sessions.
    pub(crate) handovers: Vec<mpsc::Sender<Handover>>,
}

impl Shared {
    /// Where visitors find a tunnel.
    pub(crate) fn public_url(&self, tunnel: &Tunnel) -> String {
        let port = tunnel.port.as_ref().map(|port| port.number);
        self.public.of(tunnel.name.as_str(), tunnel.kind, port)
    }

    /// The same for one that is not here yet.
    pub(crate) fn public_url_of(&self, name: &Subdomain, kind: Kind) -> String {
        self.public.of(name.as_str(), kind, None)
    }

    /// The port that visitors reach https on.
    pub(crate) fn https_port(&self) -> u16 {
        let PublicUrl { scheme, port, .. } = &*self.public;
        let port = port.strip_prefix(':').filter(|_| scheme == "https");
        port.and_then(|port| port.parse().ok()).unwrap_or(443)
    }

    /// Where an agent that has come over `carrier` could go instead.
    pub(crate) fn quic_offer(&self, carrier: Carrier) -> Option<v1::QuicOffer> {
        self.quic.clone().filter(|_| carrier != Carrier::Quic)
    }

    /// Whether the edge takes no new work.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Lets a connection in, if there is room for it and its address may have one more. A `proxied`
    /// one is its visitor's, who is not known yet.
    pub(crate) fn admit(
        &self,
        address: IpAddr,
        proxied: bool,
    ) -> Result<(OwnedSemaphorePermit, Option<Counted>), Refused> {
        let counted = if proxied { None } else { self.admit_address(address)? };
        let full = Refused { code: &Code::CONNECTION_LIMIT, wait: Duration::ZERO };
        Ok((self.connection_place().ok_or(full)?, counted))
    }

    /// The same, as far as the address is concerned.
    pub(crate) fn admit_address(&self, address: IpAddr) -> Result<Option<Counted>, Refused> {
        if let Some(ban) = self.abuse.banned(address) {
            return Err(Refused { code: &Code::ADDRESS_BANNED, wait: ban.left() });
        }
        if self.trusted.contains(address.to_canonical()) {
            return Ok(None);
        }
        let full = |_| Refused { code: &Code::ADDRESS_CONNECTIONS, wait: Duration::ZERO };
        self.addresses.connect(address).map_err(full)
    }

    /// Room for one more connection.
    pub(crate) fn connection_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Room for one more agent.
    pub(crate) fn session_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.sessions).try_acquire_owned().ok()
    }

    fn durable_now(&self) -> metrics::DurableNow {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        metrics::DurableNow {
            rows_waiting: self.journal.waiting() as u64,
            rows_written: count(&self.journal.written),
            rows_left_out: count(&self.journal.left_out),
            rows_lost: count(&self.journal.lost),
            books_lost: count(&self.books.lost),
            events_lost: self.events.dropped(),
            bans: self.abuse.all().len() as u64,
            addresses: self.addresses.len() as u64,
            store: self.store.figures(),
            store_is_well: self.store.health().is_well(),
            state: self.state.counts(),
            state_is_well: self.state.is_well(),
        }
    }

    pub(crate) fn now(&self) -> metrics::Now {
        let (sessions, over_quic, names) = self.registry.counts();
        metrics::Now {
            sessions,
            over_quic,
            names,
            tasks: self.workers.iter().map(|worker| worker.metrics().num_alive_tasks()).sum(),
            connections: self.max_connections - self.connections.available_permits(),
            waiting: self.hold.held(),
            window_bytes: self.windows.granted(),
            durable: self.durable_now(),
        }
    }
}

struct PublicUrl {
    scheme: String,
    domain: String,
    /// With its colon; empty where the scheme's own port is meant.
    port: String,
    /// Where TLS comes in.
    https: u16,
}

impl PublicUrl {
    fn of(&self, name: &str, kind: Kind, number: Option<u16>) -> String {
        let Self { scheme, domain, port, https } = self;
        match (kind, number) {
            (Kind::Tls, _) => format!("tls://{name}.{domain}:{https}"),
            (kind @ (Kind::Tcp | Kind::Udp), Some(number)) => {
                format!("{}://{domain}:{number}", kind.as_str())
            }
            // Its port is not chosen yet.
            (kind @ (Kind::Tcp | Kind::Udp), None) => format!("{}://{domain}", kind.as_str()),
            (Kind::Http, _) => format!("{scheme}://{name}.{domain}{port}"),
        }
    }
}

/// Why an edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error("cannot listen on {address} ({what}): {source}")]
    Bind {
        /// The address as it was configured.
        address: SocketAddr,
        /// What was to be served there.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// QUIC can't be served there.
    #[error("QUIC can't be served: {0}")]
    Quic(io::Error),
    /// The store can't be used.
    #[error("{0}")]
    Store(store::StoreError),
    /// The shared state can't be used.
    #[error("{0}")]
    State(state::SetupError),
    /// The secret can't be read or made.
    #[error("{0}")]
    Secret(String),
    /// A runtime thread can't be made.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
}

/// A running edge. Dropped without [`Edge::shutdown`], it stops at once.
pub struct Edge {
    shared: Arc<Shared>,
    http: SocketAddr,
    https: Option<SocketAddr>,
    quic: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    /// Ends the workers, whatever they still do.
    halt: CancellationToken,
    threads: Vec<thread::JoinHandle<()>>,
    /// What the background thread has to write is written.
    written: CancellationToken,
}

impl Edge {
    /// Binds every address and serves. What is returned is ready: connections are accepted.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let http = bind_for_each(settings.http, "http", settings.workers.get())?;
        let https = bind_https(settings.sockets.https, settings.workers.get())?;
        let admin = settings.admin.map(|address| bind(address, "admin")).transpose()?;
        let bound =
            |listener: &std::net::TcpListener| listener.local_addr().map_err(StartError::Worker);
        let http: Arc<[_]> = http.into();
        let http_address = bound(&http[0])?;
        let https_address = https.first().map(bound).transpose()?;
        let admin_address = admin.as_ref().map(bound).transpose()?;
        let door = QuicDoor::open(settings.quic, http_address, settings.quic_options)?;
        let quic = door.as_ref().map(|door| door.address);
        let halt = CancellationToken::new();
        let (background, store, state) = Background::open(settings.places(), halt.clone())?;
        let (secret, signup) = (settings.secret()?, settings.durable.signup);
        let runtimes: Vec<_> =
            (0..settings.workers.get()).map(|_| worker_runtime()).collect::<Result<_, _>>()?;
        let handles = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
        let (handovers, handed): (_, Vec<_>) =
            runtimes.iter().map(|_| mpsc::channel(listener::HANDOVERS)).unzip();
        let shared = Arc::new(shared(
            settings,
            (http_address, https_address),
            door.as_ref(),
            handles,
            handovers,
            (store, state, background.handle().clone()),
        ));
        let reset_key = match &shared.tokens {
            Some(tokens) => tokens.derive("uniroute quic stateless reset"),
            None => secret.derive("quic stateless reset", ""),
        };
        live::serve_api(&shared, signup, secret);

        let mut edge = Self {
            shared: Arc::clone(&shared),
            http: http_address,
            https: https_address,
            quic,
            admin: admin_address,
            halt: halt.clone(),
            threads: Vec::new(),
            written: shared.written.clone(),
        };
        edge.threads.push(background.start(Arc::clone(&shared)));
        let (mut https, mut admin, mut door) = (https.into_iter(), admin, door);
        for (number, (runtime, handed)) in runtimes.into_iter().zip(handed).enumerate() {
            let worker = Worker {
                number,
                edge: Arc::clone(&shared),
                handed,
                http: Arc::clone(&http),
                https: https.next(),
                admin: admin.take(),
                quic: door.take(),
                reset_key,
                halt: halt.clone(),
            };
            let thread = thread::Builder::new().name(format!("edge-{number}"));
            let thread = thread.spawn(move || worker.run(&runtime)).map_err(StartError::Worker)?;
            edge.threads.push(thread);
        }
        Ok(edge)
    }

    /// Where visitors and agents connect.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where visitors reach TLS tunnels, if anywhere.
    #[must_use]
    pub fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Where agents may connect over QUIC, if anywhere.
    #[must_use]
    pub fn quic(&self) -> Option<SocketAddr> {
        self.quic
    }

    /// Where operators look, if anywhere.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Drains, then stops: readiness off, agents told to go elsewhere, requests under way finished;
    /// all of it within `deadline`. Returns whether everything finished by itself.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        info!("draining");
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let drained = tokio::time::timeout(deadline, self.shared.tasks.wait()).await.is_ok();
        self.shared.drained.cancel();
        background::last_words(&self.written).await;
        debug!(drained, "stopping");
        drained
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.stop.cancel();
        self.halt.cancel();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("http", &self.http).finish_non_exhaustive()
    }
}

fn shared(
    settings: Settings,
    (http, https): (SocketAddr, Option<SocketAddr>),
    door: Option<&QuicDoor>,
    workers: Vec<runtime::Handle>,
    handovers: Vec<mpsc::Sender<Handover>>,
    (store, state, background): (Store, State, runtime::Handle),
) -> Shared {
    let public = settings.public_url.unwrap_or_else(|| config::PublicBase {
        scheme: "http".into(),
        port: (http.port() != 80).then_some(http.port()),
    });
    let id = format!("edge-{}", SessionId::new());
    let events = Events::default();
    let durable = settings.durable;
    Shared {
        books: Books::new(&id, durable.quarantine, events.clone()),
        id,
        public: Arc::new(PublicUrl {
            scheme: public.scheme,
            domain: settings.domain.clone(),
            port: public.port.map(|port| format!(":{port}")).unwrap_or_default(),
            https: https.map_or(443, |address| address.port()),
        }),
        permits: Permits::default(),
        accounts: Accounts::default(),
        addresses: Addresses::new(durable.address_connections, durable.address_requests_per_second),
        rate: durable.requests_per_second,
        gate: Gate::new(durable.requests_per_second),
        abuse: Abuse::new(durable.bans),
        journal: Journal::new(&durable.log),
        store,
        state,
        events,
        watchers: Arc::default(),
        quarantine: durable.quarantine,
        retention: durable.retention,
        feed: durable.feed,
        jobs_every: durable.jobs,
        api: OnceLock::new(),
        background,
        drained: CancellationToken::new(),
        written: CancellationToken::new(),
        quic: door.map(QuicDoor::offer),
        hosts: Hosts { domain: settings.domain, any_is_own: settings.any_host_is_own },
        tokens: settings.tokens,
        heartbeat: settings.heartbeat,
        registry: Registry::new(settings.hold),
        stall: settings.stall,
        hold: Hold::new(settings.hold, settings.max_held),
        metrics: Metrics::new(),
        policies: Arc::default(),
        seats: Seats::new(workers.len()),
        windows: Budget::new(PROCESS_WINDOW),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        stopping: AtomicBool::new(false),
        sockets: settings.sockets,
        https,
        ports_at: http.ip(),
        trusted: settings.trusted_proxies,
        connections: Arc::new(Semaphore::new(settings.max_connections)),
        max_connections: settings.max_connections,
        sessions: Arc::new(Semaphore::new(settings.max_sessions)),
        workers,
        handovers,
    }
}

/// One thread with its own runtime: a session, and most of the requests on it, stay on one core.
struct Worker {
    number: usize,
    edge: Arc<Shared>,
    handed: mpsc::Receiver<Handover>,
    http: Arc<[std::net::TcpListener]>,
    https: Option<std::net::TcpListener>,
    admin: Option<std::net::TcpListener>,
    /// One worker reads for all connections over QUIC.
    quic: Option<QuicDoor>,
    /// The same after a restart, so that agents learn at once that their session is over.
    reset_key: [u8; 32],
    halt: CancellationToken,
}

impl Worker {
    fn run(self, runtime: &runtime::Runtime) {
        runtime.block_on(async move {
            let edge = Arc::clone(&self.edge);
            let serving = listener::serve(edge, self.http, self.number, self.handed);
            self.edge.tasks.spawn(serving);
            if let Some(listener) = self.https {
                let edge = Arc::clone(&self.edge);
                self.edge.tasks.spawn(sockets::tls::serve(edge, self.number, listener));
            }
            if let Some(door) = self.quic {
                match door.listen(&self.reset_key) {
                    Ok(endpoint) => {
                        let serving = session::quic::serve(Arc::clone(&self.edge), endpoint);
                        self.edge.tasks.spawn(serving);
                    }
                    Err(error) => tracing::error!(%error, "QUIC can't be served"),
                }
            }
            if let Some(Ok(listener)) = self.admin.map(TcpListener::from_std) {
                tokio::spawn(admin::serve(Arc::clone(&self.edge), listener));
            }
            self.halt.cancelled().await;
        });
    }
}

/// Where QUIC is served: the socket, and the certificate that agents are told of.
struct QuicDoor {
    socket: std::net::UdpSocket,
    address: SocketAddr,
    identity: quic::Identity,
    options: quic::Options,
}

impl QuicDoor {
    /// `None`: it is switched off, or the default address can't be had.
    fn open(
        wish: Quic,
        http: SocketAddr,
        options: quic::Options,
    ) -> Result<Option<Self>, StartError> {
        let address = match wish {
            Quic::Off => return Ok(None),
            Quic::BesideHttp => http,
            Quic::At(address) => address,
        };
        let bound = match quic::bind(address) {
            Ok(bound) => bound,
            Err(error) if wish == Quic::BesideHttp => {
                warn!(%address, %error, "no QUIC: this UDP port can't be had; choose another one with --quic");
                return Ok(None);
            }
            Err(source) => return Err(StartError::Bind { address, what: "quic", source }),
        };
        if let Some(small) = bound.small_buffers {
            warn!("{small}");
        }
        Ok(Some(Self {
            address: bound.socket.local_addr().map_err(StartError::Quic)?,
            socket: bound.socket,
            identity: quic::Identity::generate().map_err(StartError::Quic)?,
            options,
        }))
    }

    fn offer(&self) -> v1::QuicOffer {
        v1::QuicOffer {
            port: self.address.port().into(),
            certificate_sha256: self.identity.fingerprint().to_vec().into(),
        }
    }

    fn listen(self, reset_key: &[u8; 32]) -> io::Result<quic::Endpoint> {
        quic::listen(self.socket, &self.identity, reset_key, self.options)
    }
}

fn worker_runtime() -> Result<runtime::Runtime, StartError> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(4)
        .build()
        .map_err(StartError::Worker)
}

fn bind(address: SocketAddr, what: &'static str) -> Result<std::net::TcpListener, StartError> {
    listen(address, false).map_err(|source| StartError::Bind { address, what, source })
}

/// A listener for each worker, where TLS is to be taken and can be.
fn bind_https(wish: Https, workers: usize) -> Result<Vec<std::net::TcpListener>, StartError> {
    match wish {
        Https::Off => Ok(Vec::new()),
        Https::At(address) => bind_for_each(address, "https", workers),
        Https::IfFree(address) => bind_for_each(address, "https", workers).or_else(|error| {
            warn!(%error, "no TLS tunnels: choose another address with --https");
            Ok(Vec::new())
        }),
    }
}

/// A listener for each worker. The kernel gives each new connection to one of them; with one that
/// they share it would wake them all.
fn bind_for_each(
    address: SocketAddr,
    what: &'static str,
    workers: usize,
) -> Result<Vec<std::net::TcpListener>, StartError> {
    let fault = |source| StartError::Bind { address, what, source };
    // Bound alone first: a shared port would not say that another edge has it already.
    let alone = listen(address, false).map_err(fault)?;
    if workers == 1 {
        return Ok(vec![alone]);
    }
    let address = alone.local_addr().map_err(fault)?;
    drop(alone);
    (0..workers).map(|_| listen(address, true).map_err(fault)).collect()
}

pub(crate) fn listen(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets have both from the listener. A visitor that vanished without a word, while
    // nothing is to be sent to him, is noticed by keepalive alone.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
