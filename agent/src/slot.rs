//! Places for sessions. An agent has one or more; each keeps itself filled with a session, and no two
//! of them with one at the same edge.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uniroute_proto::{
    FEATURE_HTTP_POLICY, FEATURE_LANES, FEATURE_TUNNEL_LIMITS, handshake::HandshakeError, v1,
};
use uniroute_shared::{
    backoff::Backoff,
    carrier::quic::endpoint as quic,
    code::Code,
    id::{SessionId, Token},
    session::{Carrier, Session as Carried},
};

use crate::{
    AgentError, Event, Refusal, Settings, TunnelError, Tunnels,
    connect::{self, ConnectError, ServerUrl, Way},
    inspect::Inspector,
    network, probe, random,
    session::{self, Request, Session, SessionEnd, View, lane::Dialler},
    status::{SessionStatus, Status, now_ms},
    transport::{Chooser, QuicDoor, Transport},
};

/// First wait is at most this long: agents that lost an edge all at once try, each on the average,
/// no more than once in a second.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// Longest wait while nothing answers: each tries every other second then, and when an edge is there
/// again its agents are back within this time.
const UNREACHABLE_CAP: Duration = Duration::from_secs(4);
/// Longest wait while an edge answers and turns the agent away.
const TURNED_AWAY_CAP: Duration = Duration::from_secs(30);
/// After the search for another edge has led to the same one again, the next one is this far away at
/// least …
const SAME_EDGE: Duration = Duration::from_secs(30);
/// … and later at most this far.
const SAME_EDGE_CAP: Duration = Duration::from_secs(600);
/// A session that lasted this long was a success: the next failure starts from the first wait.
const STABLE: Duration = Duration::from_secs(10);
/// Answers to a token that no later try changes.
const TOKEN_IS_OVER: [Code; 4] =
    [Code::TOKEN_REFUSED, Code::TOKEN_REVOKED, Code::TOKEN_EXPIRED, Code::TOKEN_ADDRESS];
/// The optional features that an agent speaks.
const FEATURES: [&str; 3] = [FEATURE_LANES, FEATURE_HTTP_POLICY, FEATURE_TUNNEL_LIMITS];
/// How often the token file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which idle connections to local servers are looked at too.
const SWEEP: u32 = 5;
/// Time over which an edge's agents go elsewhere when it sends them away.
const LEAVE_SPREAD_MS: u64 = 1_000;
/// Time over which an agent's sessions change to a new token.
const TOKEN_SPREAD_MS: u64 = 1_000;

/// What all sessions of an agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    token: Mutex<Token>,
    /// The token file has another one.
    token_changed: watch::Sender<()>,
    way: Way,
    pub(crate) tunnels: Tunnels,
    pub(crate) inspector: Option<Arc<Inspector>>,
    /// Tells edges that the sessions belong together.
    run_id: SessionId,
    started_ms: u64,
    /// The sessions that stand, by the slot that they are in.
    standing: watch::Sender<BTreeMap<usize, Standing>>,
    past: Past,
    /// There may be more edges than one.
    several: AtomicBool,
    trouble: Mutex<String>,
    /// The kernel's small buffers for UDP are said once.
    small_buffers: Once,
}

/// A session that stands.
#[derive(Clone, Debug)]
struct Standing {
    edge: String,
    server: String,
    carrier: Carrier,
    since_ms: u64,
    rtt_us: Arc<AtomicU64>,
    carried: Carried,
    moved: Arc<AtomicU64>,
}

impl Standing {
    /// Bytes that it has moved, both ways.
    fn bytes(&self) -> u64 {
        let path = self.carried.path().map(|path| path.bytes);
        path.unwrap_or_else(|| self.moved.load(Ordering::Relaxed))
    }
}

/// What an agent's sessions do and did.
pub(crate) struct SessionFigures {
    pub(crate) standing: Vec<OneSession>,
    pub(crate) wanted: usize,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Of all of them, both ways.
    pub(crate) bytes: u64,
}

/// A session that stands.
pub(crate) struct OneSession {
    edge: String,
    carrier: &'static str,
    pub(crate) rtt_us: u64,
    pub(crate) streams: u64,
    pub(crate) lanes: u64,
    pub(crate) windows: u64,
    pub(crate) unread: u64,
    pub(crate) unsent: u64,
}

impl OneSession {
    fn new(standing: &Standing) -> Self {
        let stats = standing.carried.stats();
        let figure = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        Self {
            edge: standing.edge.clone(),
            carrier: standing.carrier.as_str(),
            rtt_us: standing.rtt_us.load(Ordering::Relaxed),
            streams: figure(stats.streams),
            lanes: figure(stats.lanes),
            windows: stats.granted,
            unread: figure(stats.received_queued),
            unsent: figure(stats.send_queued),
        }
    }

    pub(crate) fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("edge", self.edge.clone()), ("carrier", self.carrier.to_owned())]
    }
}

/// Sessions that are no more.
#[derive(Debug, Default)]
struct Past {
    begun: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        mut settings: Settings,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, TunnelError> {
        let wanted = std::mem::take(&mut settings.tunnels);
        let Settings { trust, pins, identity, proxy, .. } = &settings;
        let way = Way::new(trust, pins, identity.as_ref(), proxy)?;
        let inspector = settings.inspector.take().map(Inspector::new).transpose();
        let inspector = inspector.map_err(TunnelError::Spool)?.map(Arc::new);
        let inspects = inspector.is_some();
        Ok(Self {
            inspector,
            tunnels: Tunnels::new(wanted, events, settings.request_events, inspects)?,
            way,
            token: Mutex::new(settings.token.clone()),
            token_changed: watch::Sender::new(()),
            run_id: SessionId::new(),
            started_ms: now_ms(),
            standing: watch::Sender::default(),
            past: Past::default(),
            several: AtomicBool::new(settings.servers.len() > 1),
            trouble: Mutex::default(),
            small_buffers: Once::new(),
            settings,
        })
    }

    pub(crate) fn status(&self) -> Status {
        let session = |standing: &Standing| SessionStatus {
            edge: standing.edge.clone(),
            server: standing.server.clone(),
            carrier: standing.carrier.as_str(),
            since_ms: standing.since_ms,
            rtt_us: standing.rtt_us.load(Ordering::Relaxed),
        };
        let sessions: Vec<_> = self.standing.borrow().values().map(session).collect();
        let connected = !sessions.is_empty();
        Status {
            agent_id: self.settings.agent_id.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            started_ms: self.started_ms,
            sessions,
            trouble: if connected { String::new() } else { self.trouble.lock().clone() },
            tunnels: self.tunnels.statuses(connected),
        }
    }

    pub(crate) fn session_figures(&self) -> SessionFigures {
        let standing = self.standing.borrow();
        let now: u64 = standing.values().map(Standing::bytes).sum();
        SessionFigures {
            wanted: self.settings.sessions,
            begun: self.past.begun.load(Ordering::Relaxed),
            ended: self.past.ended.load(Ordering::Relaxed),
            bytes: now + self.past.bytes.load(Ordering::Relaxed),
            standing: standing.values().map(OneSession::new).collect(),
        }
    }

    /// What is to be done while the agent runs, whatever its sessions do.
    pub(crate) async fn look_after(&self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looks, mut changed_at) = (0_u32, self.token_file_time());
        loop {
            look.tick().await;
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(SWEEP) {
                self.tunnels.sweep();
            }
            let now = self.token_file_time();
            if now != changed_at {
                changed_at = now;
                self.look_for_new_token();
            }
        }
    }

    fn token_file_time(&self) -> Option<SystemTime> {
        std::fs::metadata(self.settings.token_file.as_ref()?).and_then(|m| m.modified()).ok()
    }

    /// Whether the token's file has another one by now; it is used from then on.
    fn look_for_new_token(&self) -> bool {
        let Some(path) = &self.settings.token_file else { return false };
        let text = std::fs::read_to_string(path);
        let token = text.ok().and_then(|text| Token::first(&text).ok());
        let mut known = self.token.lock();
        match token {
            Some(token) if token != *known => {
                info!(path = %path.display(), "the token file has a new token");
                *known = token;
                drop(known);
                self.token_changed.send_replace(());
                true
            }
            // Gone, or half written: the one that is known may still be good.
            _ => false,
        }
    }

    /// Whether no slot but `slot` has a session.
    fn is_alone(&self, slot: usize) -> bool {
        self.standing.borrow().keys().all(|other| *other == slot)
    }

    fn event(&self, event: impl FnOnce() -> Event) {
        self.tunnels.event(event);
    }
}

/// A session stands while there is one of these.
struct Seat<'a>(&'a Shared, usize);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let Self(shared, slot) = self;
        let mut gone = None;
        shared.standing.send_modify(|standing| gone = standing.remove(slot));
        let bytes = gone.map_or(0, |gone| gone.bytes());
        shared.past.bytes.fetch_add(bytes, Ordering::Relaxed);
        shared.past.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// How a session attempt ended that the agent goes on after.
enum Next {
    /// Nothing is there.
    Unreachable(String),
    /// An edge is there, but gives no session.
    TurnedAway { reason: String, at_least: Duration },
    /// The edge has another session of this agent already.
    SameEdge,
    /// At once.
    Now,
    /// Soon: the edge sends this agent elsewhere, and the session that it had goes on for a while.
    Elsewhere,
    /// With a session over another carrier or with another token, which stands already.
    Switched(Box<Session>),
}

/// A place for a session.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    number: usize,
    /// The server that is tried next.
    server: usize,
    /// Servers in a row whose edge has a session of this agent.
    same: usize,
    resume_token: bytes::Bytes,
    connected_before: bool,
    chooser: Mutex<Chooser>,
}

impl Slot {
    /// The first slot has the number 0; further ones wait until it has a session, and until there
    /// may be another edge.
    pub(crate) fn new(shared: Arc<Shared>, number: usize) -> Self {
        let chooser = Mutex::new(Chooser::new(shared.settings.policy));
        Self {
            server: number % shared.settings.servers.len().max(1),
            shared,
            number,
            same: 0,
            resume_token: bytes::Bytes::new(),
            connected_before: false,
            chooser,
        }
    }

    /// Keeps it filled until `stop` is cancelled, which drains.
    ///
    /// # Errors
    /// [`AgentError`] for what trying again would not mend.
    pub(crate) async fn keep(mut self, stop: &CancellationToken) -> Result<(), AgentError> {
        let mut unreachable = Backoff::new(BACKOFF_BASE, UNREACHABLE_CAP);
        let mut turned_away = Backoff::new(BACKOFF_BASE, TURNED_AWAY_CAP);
        let mut same_edge = Backoff::new(SAME_EDGE, SAME_EDGE_CAP);
        // Sessions that are leaving finish their streams beside the current one.
        let mut leaving = JoinSet::new();
        let mut switched: Option<Box<Session>> = None;
        loop {
            self.all_deleted()?;
            let attempt = match switched.take() {
                Some(session) => Ok(*session),
                None => {
                    tokio::select! {
                        attempt = self.attempt() => attempt,
                        () = stop.cancelled() => break,
                    }
                }
            };
            let next = match attempt {
                Ok(session) => {
                    let began = Instant::now();
                    let next = self.serve(session, &mut leaving, stop).await?;
                    if began.elapsed() >= STABLE {
                        [&mut unreachable, &mut turned_away, &mut same_edge]
                            .into_iter()
                            .for_each(Backoff::reset);
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
                Next::Elsewhere => {
                    tokio::select! {
                        () = sleep(Duration::from_millis(random() % LEAVE_SPREAD_MS)) => continue,
                        () = stop.cancelled() => break,
                    }
                }
                Next::Switched(session) => {
                    switched = Some(session);
                    continue;
                }
                Next::SameEdge => {
                    let wait = same_edge.next(random()).max(SAME_EDGE);
                    ("no other edge was found".to_owned(), wait)
                }
                Next::Unreachable(reason) => (reason, unreachable.next(random())),
                Next::TurnedAway { reason, at_least } => {
                    (reason, turned_away.next(random()).max(at_least))
                }
            };
            self.lost(reason, retry_in);
            tokio::select! {
                () = network::wait(retry_in) => {}
                () = stop.cancelled() => break,
            }
        }
        while leaving.join_next().await.is_some() {}
        Ok(())
    }

    /// Makes one session and gives it up again. The name of its edge.
    ///
    /// # Errors
    /// [`AgentError`], with [`Settings::fail_fast`] for whatever came in the way.
    pub(crate) async fn try_once(mut self) -> Result<String, AgentError> {
        match self.connect(self.resuming()).await {
            Ok(session) => Ok(session.established.edge_id),
            Err(error) => match self.on_failure(error) {
                Err(error) => Err(error),
                Ok(_) => Err(AgentError::Unreachable(ConnectError::Lost("no answer".to_owned()))),
            },
        }
    }

    fn all_deleted(&self) -> Result<(), AgentError> {
        let all = self.shared.tunnels.all();
        if !all.is_empty() && all.iter().all(|tunnel| tunnel.is_deleted()) {
            let deleted = all.iter().map(|tunnel| Refusal::deleted(tunnel));
            return Err(AgentError::Refused(deleted.collect()));
        }
        Ok(())
    }

    /// There is no session for a while.
    fn lost(&self, reason: String, retry_in: Duration) {
        if !self.shared.is_alone(self.number) {
            let retry_in_ms = retry_in.as_millis();
            return debug!(reason, retry_in_ms, slot = self.number, "one session less");
        }
        warn!(reason, retry_in_ms = retry_in.as_millis(), "not connected");
        self.shared.trouble.lock().clone_from(&reason);
        self.shared.event(|| Event::Disconnected { reason, retry_in });
    }

    /// Waits until there is a point in a session, and then makes one, up to the point from which it
    /// takes requests.
    async fn attempt(&self) -> Result<Session, ConnectError> {
        if self.number > 0 {
            let mut standing = self.shared.standing.subscribe();
            let another = |standing: &BTreeMap<usize, Standing>| {
                !standing.is_empty() && self.shared.several.load(Ordering::Relaxed)
            };
            // It can't end: the sender is in `shared`.
            let _ = standing.wait_for(another).await;
        }
        self.shared.look_for_new_token();
        if self.shared.is_alone(self.number) {
            self.shared.event(|| Event::Connecting);
        }
        self.connect(self.resuming()).await
    }

    fn url(&self) -> &ServerUrl {
        &self.shared.settings.servers[self.server]
    }

    async fn connect(&self, request: Request) -> Result<Session, ConnectError> {
        if self.shared.settings.transport != Transport::Quic {
            return self.connect_websocket(request).await;
        }
        if let Some(proxy) = self.shared.way.proxy(self.url())? {
            return Err(ConnectError::QuicProxy(proxy.to_string()));
        }
        let dialled = connect::dial(self.url(), &self.shared.way).await?;
        let edge = dialled.route.direct();
        let offer = session::ask_for_quic(dialled).await?;
        let door = offer.zip(edge).and_then(|(offer, edge)| QuicDoor::new(edge, &offer));
        self.connect_quic(door.ok_or(ConnectError::NoQuic)?, request).await
    }

    async fn connect_websocket(&self, request: Request) -> Result<Session, ConnectError> {
        let dialled = connect::dial(self.url(), &self.shared.way).await?;
        session::establish(dialled, request).await
    }

    async fn connect_quic(
        &self,
        door: QuicDoor,
        request: Request,
    ) -> Result<Session, ConnectError> {
        session::establish_quic(self.dial_quic(door).await?, request).await
    }

    async fn dial_quic(&self, door: QuicDoor) -> Result<quic::Dialled, quic::DialError> {
        let options = self.shared.settings.quic_options;
        let mut dialled = quic::dial(door.address, door.certificate, options).await?;
        if let Some(small) = dialled.small_buffers.take() {
            self.shared.small_buffers.call_once(|| warn!("{small}"));
        }
        Ok(dialled)
    }

    /// To take the place of the last session, which is gone or of no more use.
    fn resuming(&self) -> Request {
        let mut request = self.request();
        request.init.resume_token = self.resume_token.clone();
        request
    }

    /// To take over from the last session, which serves until this one does, and then finishes
    /// what it has.
    fn switching(&self) -> Request {
        let mut request = self.request();
        request.init.switches_carrier = true;
        request
    }

    fn request(&self) -> Request {
        let shared = &self.shared;
        let wanted = shared.tunnels.wanted();
        let revised = |tunnel| {
            let tunnel: Arc<crate::tunnel::Tunnel> = tunnel;
            let revision = tunnel.revision();
            (tunnel, revision)
        };
        let tunnels: Vec<_> = wanted.into_iter().map(revised).collect();
        let init = v1::Init {
            token: shared.token.lock().expose().to_owned(),
            agent_id: shared.settings.agent_id.to_string(),
            tunnels: tunnels.iter().map(|(tunnel, _)| tunnel.spec()).collect(),
            features: FEATURES.map(str::to_owned).to_vec(),
            metadata: Some(v1::AgentMetadata {
                name: shared.settings.agent_name.clone(),
                region: String::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            }),
            run_id: shared.run_id.as_bytes().to_vec().into(),
            ..v1::Init::default()
        };
        let standing = shared.standing.borrow();
        let others = standing.iter().filter(|(slot, _)| **slot != self.number);
        let elsewhere = others.map(|(_, standing)| standing.edge.clone()).collect();
        Request { init, tunnels, elsewhere }
    }

    /// Runs a session until it ends or leaves.
    async fn serve(
        &mut self,
        mut session: Session,
        leaving: &mut JoinSet<SessionEnd>,
        stop: &CancellationToken,
    ) -> Result<Next, AgentError> {
        if let Some(wait) = self.take_in(&mut session)? {
            return Ok(wait);
        }
        self.chooser.lock().begin();
        let view = session.view();
        let shared = Arc::clone(&self.shared);
        let _seat = self.stand(&shared, &session, &view);
        let goes = CancellationToken::new();
        let running =
            session.run(Arc::clone(&shared), self.lane_dialler(), goes.clone(), stop.clone());
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
                    return Ok(Next::Elsewhere);
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
        if view.carried.carrier() == Carrier::Quic {
            self.chooser.lock().quic_failed(Instant::now());
        }
        let reason = match ended {
            // One that is to end has given its id up: the next agent may be there already.
            Some(Ok(SessionEnd::Replaced)) if !stop.is_cancelled() => {
                return Err(AgentError::Replaced);
            }
            // It has waited for long enough already. Agents that lost one edge look at times of their
            // own, and so come back spread out.
            Some(Ok(end @ SessionEnd::Silent)) => {
                self.lost(end.to_string(), Duration::ZERO);
                return Ok(Next::Now);
            }
            Some(Ok(end)) => end.to_string(),
            Some(Err(error)) => format!("the session's task failed: {error}"),
            None => "the session's task is gone".to_owned(),
        };
        debug!(reason, "session ended");
        Ok(Next::Unreachable(reason))
    }

    fn stand<'a>(&self, shared: &'a Shared, session: &Session, view: &View) -> Seat<'a> {
        let standing = Standing {
            edge: session.established.edge_id.clone(),
            server: self.url().to_string(),
            carrier: view.carried.carrier(),
            since_ms: now_ms(),
            rtt_us: Arc::clone(&view.rtt_us),
            carried: view.carried.clone(),
            moved: view.moved_counter(),
        };
        shared.past.begun.fetch_add(1, Ordering::Relaxed);
        shared.standing.send_modify(|all| _ = all.insert(self.number, standing));
        Seat(shared, self.number)
    }

    fn lane_dialler(&self) -> Dialler {
        Dialler {
            server: self.url().clone(),
            way: self.shared.way.clone(),
            max: self.shared.settings.lanes,
        }
    }

    /// Looks after the session until another one is better, and then gives that one, or why there is
    /// none. Sets `switching` once the edge may know of it.
    async fn switch(&self, view: &View, switching: &AtomicBool) -> Result<Session, ConnectError> {
        tokio::select! {
            session = self.switch_carrier(view, switching) => session,
            session = self.switch_token(switching) => Ok(session),
        }
    }

    /// A session with the new token, once there is one that is good for the same tunnels.
    async fn switch_token(&self, switching: &AtomicBool) -> Session {
        let mut changes = self.shared.token_changed.subscribe();
        loop {
            // It can't end: the sender is in `shared`.
            let _ = changes.changed().await;
            sleep(Duration::from_millis(random() % TOKEN_SPREAD_MS)).await;
            switching.store(true, Ordering::Relaxed);
            match self.connect(self.switching()).await {
                Ok(session) if session.established.refused.is_empty() => return session,
                Ok(_) => warn!("the new token is not good for all tunnels; the session stays"),
                Err(error) => warn!(%error, "the new token gives no session; the old one stays"),
            }
            switching.store(false, Ordering::Relaxed);
        }
    }

    async fn switch_carrier(
        &self,
        view: &View,
        switching: &AtomicBool,
    ) -> Result<Session, ConnectError> {
        if self.shared.settings.transport != Transport::Auto {
            return std::future::pending().await;
        }
        let policy = self.chooser.lock().policy();
        loop {
            sleep(policy.look).await;
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
        let probe = probe::probe(&dialled.connection, self.shared.settings.policy).await;
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
    fn take_in(&mut self, session: &mut Session) -> Result<Option<Next>, AgentError> {
        let shared = Arc::clone(&self.shared);
        let carrier = session.view().carried.carrier();
        let established = &session.established;
        info!(edge = established.edge_id, session.id = established.ack.session_id, %carrier, "connected");
        self.same = 0;
        self.resume_token = established.ack.resume_token.clone();
        if established.ack.several_edges {
            shared.several.store(true, Ordering::Relaxed);
        }
        shared.event(|| Event::Connected { edge: established.edge_id.clone(), carrier });
        session.take_in(&shared.tunnels);
        let established = &session.established;
        let refused: Vec<_> = established.refused.iter().map(|r| self.refusal(r)).collect();
        for refusal in &refused {
            let Refusal { key, code, message, .. } = refusal.clone();
            warn!(tunnel = key, code, message, "a tunnel was refused");
            shared.event(|| Event::Refused { key, code, message });
        }
        if established.created.is_empty() && !refused.is_empty() {
            let wait = refused.iter().find_map(|r| r.later().map(|wait| (r.message.clone(), wait)));
            match wait.filter(|_| !shared.settings.fail_fast || self.connected_before) {
                Some((reason, at_least)) => {
                    return Ok(Some(Next::TurnedAway { reason, at_least }));
                }
                None if !self.connected_before => return Err(AgentError::Refused(refused)),
                None => {}
            }
        }
        self.connected_before = true;
        Ok(None)
    }

    fn refusal(&self, refused: &v1::TunnelRefused) -> Refusal {
        let tunnels = self.shared.tunnels.all();
        let tunnel = tunnels.iter().find(|tunnel| tunnel.key == refused.key);
        let wanted = tunnel.map(|tunnel| tunnel.served());
        let wanted = wanted.as_ref().map(|served| &served.settings);
        Refusal {
            key: refused.key.clone(),
            name: wanted.and_then(|wanted| wanted.name.clone()).unwrap_or_default(),
            port: wanted.and_then(|wanted| wanted.port).unwrap_or_default(),
            code: u16::try_from(refused.code).unwrap_or_default(),
            message: refused.message.clone(),
        }
    }

    /// Whether there is any use in trying again. Another server is tried next, where there is one.
    fn on_failure(&mut self, error: ConnectError) -> Result<Next, AgentError> {
        let mut reason = error.to_string();
        let at_least = match &error {
            ConnectError::Handshake(HandshakeError::Refused { code, retry_after_ms, message }) => {
                match u16::try_from(*code).ok().and_then(Code::from_number) {
                    Some(code)
                        if TOKEN_IS_OVER.contains(code) && !self.shared.look_for_new_token() =>
                    {
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
        if self.shared.settings.fail_fast && !self.connected_before && self.number == 0 {
            return Err(AgentError::Unreachable(error));
        }
        let servers = self.shared.settings.servers.len();
        self.server = (self.server + 1) % servers;
        Ok(match error {
            ConnectError::SameEdge(_) => {
                self.same += 1;
                if self.same < servers { Next::Now } else { Next::SameEdge }
            }
            error if error.is_unreachable() => Next::Unreachable(reason),
            _ => Next::TurnedAway { reason, at_least },
        })
    }
}
