//! The tunnels of one agent: what it wants, and what it has.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use uniroute_proto::{Message as _, v1};

use crate::{
    Event, MAX_INIT, TunnelError, TunnelSettings,
    files::Files,
    hints::Hint,
    status::{HealthChange, TunnelState, TunnelStatus, UpstreamStatus},
    upstream::{
        Place, Scheme, UpstreamError,
        pool::{Member, Pool},
    },
};

/// Edges' identifiers of one tunnel that are remembered: one for each session, and those of sessions
/// that are leaving.
const MAX_IDS: usize = 8;
/// Streams that were opened before a tunnel went come no later than this.
const LATE: Duration = Duration::from_secs(30);

/// Of [`Tunnel::told_hold`].
const NOT_TOLD: u64 = u64::MAX;

/// How much longer the edge waits for an answer than the agent.
const GRACE: Duration = Duration::from_secs(1);

/// Classes of statuses, and one more for none.
pub(crate) const CLASSES: usize = 6;

/// What answers requests.
#[derive(Clone, Debug)]
pub(crate) enum Service {
    /// A local server, or several that do the same.
    Server(Arc<Pool>),
    /// A folder.
    Files(Arc<Files>),
}

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// Requests, by host name.
    #[default]
    Http,
    /// TCP connections, by port.
    Tcp,
    /// TLS connections as they are, by the server name that they ask for.
    Tls,
    /// Datagrams, by port.
    Udp,
}

impl TunnelKind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Udp => "udp",
        }
    }

    /// What its local server speaks; nothing where it says so itself.
    #[must_use]
    pub const fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Http => None,
            Self::Tcp => Some(Scheme::Tcp),
            Self::Tls => Some(Scheme::Tls),
            Self::Udp => Some(Scheme::Udp),
        }
    }

    const fn wire(self) -> v1::TunnelKind {
        match self {
            Self::Http => v1::TunnelKind::Http,
            Self::Tcp => v1::TunnelKind::Tcp,
            Self::Tls => v1::TunnelKind::Tls,
            Self::Udp => v1::TunnelKind::Udp,
        }
    }
}

/// How much of a tunnel's visitors the edge lets in; `None`: as many as its own limits do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelLimits {
    /// Requests a second, of kinds without requests new connections or flows; a second's worth may
    /// come at once.
    pub requests_per_second: Option<u32>,
    /// Requests under way at a time, of other kinds open connections or flows.
    pub in_flight: Option<u32>,
}

impl TunnelLimits {
    fn wire(self) -> Option<v1::TunnelLimits> {
        let Self { requests_per_second, in_flight } = self;
        (self != Self::default()).then(|| v1::TunnelLimits {
            requests_per_second: requests_per_second.unwrap_or(0),
            in_flight: in_flight.unwrap_or(0),
        })
    }
}

/// A tunnel that this agent serves.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The agent's own word for it.
    pub(crate) key: String,
    pub(crate) kind: TunnelKind,
    served: RwLock<Arc<Served>>,
    live: Mutex<Live>,
    /// Its owner has deleted it: it is not asked for again.
    deleted: AtomicBool,
    /// Its owner lets nobody in for now.
    paused: AtomicBool,
    /// Its owner was told why its local server turns visitors away.
    hinted: AtomicBool,
    /// For how many milliseconds its edge lets requests wait, as its owner was told, because he wants
    /// more; [`NOT_TOLD`] if he does not.
    told_hold: AtomicU64,
    /// Requests and connections that are over, by the class of the answer's status; the first: there
    /// was no answer, or none with a status.
    over: [AtomicU64; CLASSES],
    failed: AtomicU64,
    open: AtomicU64,
}

/// What is done with a tunnel's requests, as its settings say now. It is replaced whole.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) settings: TunnelSettings,
    policy: Option<v1::HttpPolicy>,
    /// The local servers of the default route.
    pool: Arc<Pool>,
    default: Service,
    /// Of the policy's routes. A number that was once another route's is not used again: the edge
    /// goes on for a moment with the numbers that it knows.
    routes: Vec<(u32, Service)>,
    /// Those of the settings before.
    older: Vec<(u32, Service)>,
    /// Grows with each change.
    revision: u64,
    /// Its requests are kept for the inspector, under this key.
    pub(crate) inspect: Option<Arc<str>>,
}

/// What the edge last said of it.
#[derive(Clone, Debug, Default)]
struct Live {
    /// The edges' identifiers, the latest last.
    ids: VecDeque<Bytes>,
    name: Option<String>,
    port: Option<u16>,
    url: String,
    /// Why the edge does not give it.
    refused: Option<String>,
}

/// A request or connection while it is open.
pub(crate) struct Open<'a> {
    tunnel: &'a Tunnel,
    /// Of its answer's status; 0: there is none.
    class: AtomicU8,
}

impl Open<'_> {
    /// Its local server has answered.
    pub(crate) fn answered(&self, status: u16) {
        let class = u8::try_from(status / 100).unwrap_or(0);
        self.class.store(class, Ordering::Relaxed);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let class = usize::from(*self.class.get_mut());
        let over = self.tunnel.over.get(class).unwrap_or(&self.tunnel.over[0]);
        over.fetch_add(1, Ordering::Relaxed);
        self.tunnel.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Served {
    /// `before`: what it takes the place of.
    fn new(settings: TunnelSettings, before: Option<&Self>) -> Result<Self, TunnelError> {
        let mut policy = settings.policy()?;
        // What is known of local servers that stay, and the connections to them, stay too.
        let same = before.filter(|before| before.settings.has_the_same_servers(&settings));
        let pool = match same {
            Some(before) => Arc::clone(&before.pool),
            None => Arc::new(settings.default_pool()?),
        };
        let default = match &settings.target.place {
            Place::Files(_) => settings.service(&settings.target)?,
            _ => Service::Server(Arc::clone(&pool)),
        };
        let first = before.map_or(0, |before| {
            before.routes.iter().chain(&before.older).map(|(number, _)| *number).max().unwrap_or(0)
        });
        if let Some(policy) = &mut policy {
            policy.first_route = first;
        }
        let numbered = |(number, target)| Ok((number, settings.service(target)?));
        let routes = (first + 1..).zip(&settings.routes).map(numbered);
        let routes = routes.collect::<Result<_, TunnelError>>()?;
        let older = before.map(|before| before.routes.clone()).unwrap_or_default();
        let revision = before.map_or(0, |before| before.revision + 1);
        let inspect = settings.inspect.then(|| settings.key.as_str().into());
        Ok(Self { settings, policy, pool, default, routes, older, revision, inspect })
    }

    /// The number of the route to a local server; 0 is the default.
    pub(crate) fn route_to(&self, target: &crate::upstream::Target) -> Option<u32> {
        if self.settings.kind != TunnelKind::Http {
            return None;
        }
        if self.settings.target == *target {
            return Some(0);
        }
        let mut routes = self.routes.iter().zip(&self.settings.routes);
        routes.find(|(_, other)| *other == target).map(|((number, _), _)| *number)
    }

    /// What answers requests on a route, as the edge numbers them: 0 is the default. The edge names
    /// a number and never a target (T23), and one that there is not leads nowhere.
    pub(crate) fn service(&self, route: u32) -> Option<&Service> {
        if route == 0 {
            return Some(&self.default);
        }
        let routes = self.routes.iter().chain(&self.older);
        routes.into_iter().find(|(number, _)| *number == route).map(|(_, service)| service)
    }

    /// How long the edge waits for an answer: it counts from when it has sent the request, which may
    /// wait here first, and of the two it is the agent that knows whose fault it is.
    fn edges_patience(&self) -> Option<Duration> {
        let TunnelSettings { response_timeout, hold_local, .. } = &self.settings;
        response_timeout.map(|limit| limit.saturating_add(*hold_local).saturating_add(GRACE))
    }

    /// All local servers, those of the default route first.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let routes = self.routes.iter().filter_map(|(_, service)| match service {
            Service::Server(pool) => Some(pool),
            Service::Files(_) => None,
        });
        std::iter::once(&self.pool).chain(routes)
    }
}

impl Tunnel {
    /// # Errors
    /// [`TunnelError`] for settings that can't be used.
    pub(crate) fn new(settings: TunnelSettings) -> Result<Self, TunnelError> {
        Ok(Self {
            key: settings.key.clone(),
            kind: settings.kind,
            served: RwLock::new(Arc::new(Served::new(settings, None)?)),
            live: Mutex::default(),
            deleted: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            hinted: AtomicBool::new(false),
            told_hold: AtomicU64::new(NOT_TOLD),
            over: Default::default(),
            failed: AtomicU64::new(0),
            open: AtomicU64::new(0),
        })
    }

    /// Whether its owner knows why its local server turns visitors away.
    pub(crate) fn is_hinted(&self) -> bool {
        self.hinted.load(Ordering::Relaxed)
    }

    /// What is done with requests now.
    pub(crate) fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read())
    }

    /// The local servers of the default route.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.served.read().pool)
    }

    /// Where the first of them is, for people.
    fn target(&self) -> String {
        self.served.read().pool.target().to_string()
    }

    /// A request or connection has come; it is open until the answer is dropped.
    pub(crate) fn begin(&self) -> Open<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open { tunnel: self, class: AtomicU8::new(0) }
    }

    /// Requests and connections that are over, by the class of the answer's status, 0: without one.
    pub(crate) fn over(&self) -> [u64; CLASSES] {
        self.over.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Those that are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Those that the local server gave no answer to.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// All there were.
    fn requests(&self) -> u64 {
        self.over().iter().sum::<u64>() + self.open()
    }

    /// What to ask the edge for: the name and the port that were chosen before, where none was wished
    /// for.
    pub(crate) fn spec(&self) -> v1::TunnelSpec {
        let served = self.served();
        let wanted = &served.settings;
        let Live { name: earlier, port: earlier_port, .. } = self.live.lock().clone();
        v1::TunnelSpec {
            key: self.key.clone(),
            kind: self.kind.wire().into(),
            name_is_hint: wanted.name.is_none() && earlier.is_some(),
            name: wanted.name.clone().or(earlier).unwrap_or_default(),
            local_url: served.pool.target().to_string(),
            response_timeout_ms: millis(served.edges_patience()),
            port_is_hint: wanted.port.is_none() && earlier_port.is_some(),
            port: wanted.port.or(earlier_port).unwrap_or_default().into(),
            idle_timeout_ms: millis(wanted.idle_timeout),
            wants_times: served.inspect.is_some(),
            http: served.policy.clone(),
            limits: wanted.limits.wire(),
            hold_ms: wanted.hold_reconnect.map(whole_millis),
        }
    }

    /// Grows with each change of its settings.
    pub(crate) fn revision(&self) -> u64 {
        self.served.read().revision
    }

    /// Its public name, as far as it is known.
    pub(crate) fn name(&self) -> String {
        let known = self.live.lock().name.clone();
        known.or_else(|| self.served.read().settings.name.clone()).unwrap_or_default()
    }

    /// A request got no answer from a local server.
    pub(crate) fn unanswered(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What the last request showed of the first local server, where a request has no turn.
    pub(crate) fn report(&self, error: Option<&UpstreamError>) {
        self.pool().report(0, error);
    }

    /// What the edge that calls the tunnel `id` is to hear of the local servers; nothing if it knows
    /// already. `figures`: of what came since, too.
    pub(crate) fn news(
        &self,
        id: &Bytes,
        said: &mut Said,
        figures: bool,
    ) -> Option<v1::UpstreamHealth> {
        let pool = self.pool();
        let health = pool.health()?;
        let (requests, open) = (self.requests(), self.open());
        let moved = figures && (requests, open) != (said.requests, said.open);
        if said.health.as_ref() == Some(&health) && !moved {
            return None;
        }
        *said = Said { health: Some(health.clone()), requests, open };
        Some(v1::UpstreamHealth {
            tunnel_id: id.clone(),
            healthy: health.is_ok(),
            reason: health.err().unwrap_or_default(),
            latency_ms: u32::try_from(pool.answer_us().div_ceil(1_000)).unwrap_or(u32::MAX),
            open: u32::try_from(open).unwrap_or(u32::MAX),
        })
    }

    /// The edge does not give it.
    pub(crate) fn refused(&self, why: &str) {
        self.live.lock().refused = Some(why.to_owned());
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    fn state(&self, live: &Live, connected: bool) -> TunnelState {
        if self.is_deleted() {
            TunnelState::Deleted
        } else if live.refused.is_some() {
            TunnelState::Refused
        } else if !connected || live.ids.is_empty() {
            TunnelState::Waiting
        } else if self.paused.load(Ordering::Relaxed) {
            TunnelState::Paused
        } else {
            TunnelState::Ready
        }
    }

    fn status(&self, connected: bool) -> TunnelStatus {
        let live = self.live.lock().clone();
        let state = self.state(&live, connected);
        let reason = match state {
            TunnelState::Refused => live.refused.unwrap_or_default(),
            TunnelState::Deleted => "its owner has deleted it".to_owned(),
            TunnelState::Paused => "its owner lets nobody in for now".to_owned(),
            TunnelState::Waiting if connected => "the edge has not answered yet".to_owned(),
            TunnelState::Waiting => "there is no session with an edge".to_owned(),
            TunnelState::Ready => String::new(),
        };
        TunnelStatus {
            key: self.key.clone(),
            kind: self.kind.as_str(),
            name: self.name(),
            url: live.url,
            state,
            reason,
            upstreams: self.upstreams(),
            requests: self.requests(),
            failed: self.failed(),
            open: self.open(),
        }
    }

    /// What is known of its local servers, those of the default route first.
    fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.served().pools().flat_map(|pool| pool.status()).collect()
    }
}

/// What one session's edge was told of a tunnel's local servers.
#[derive(Debug, Default)]
pub(crate) struct Said {
    health: Option<Result<(), String>>,
    requests: u64,
    open: u64,
}

/// Nothing is 0, and nothing else is.
fn millis(limit: Option<Duration>) -> u32 {
    limit.map_or(0, |limit| whole_millis(limit).max(1))
}

fn whole_millis(length: Duration) -> u32 {
    u32::try_from(length.as_millis()).unwrap_or(u32::MAX)
}

/// What a change of settings has done, by the tunnels' keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are done otherwise now; what is open goes on as it was.
    pub changed: Vec<String>,
    /// Those that are no more; what is open goes on to its end.
    pub removed: Vec<String>,
    /// How many stayed as they were.
    pub unchanged: usize,
}

/// All tunnels of one agent, and who is told what happens on them.
#[derive(Debug)]
pub(crate) struct Tunnels {
    all: RwLock<Vec<Arc<Tunnel>>>,
    by_id: RwLock<HashMap<Bytes, Arc<Tunnel>>>,
    /// Those that are no more, and since when.
    gone: Mutex<Vec<(Instant, Arc<Tunnel>)>>,
    events: mpsc::Sender<Event>,
    missed_events: AtomicU64,
    request_events: bool,
    /// There is an inspector.
    inspects: bool,
    /// Tunnels were added, changed or removed: each session tells its edge.
    changed: watch::Sender<()>,
}

impl Tunnels {
    /// # Errors
    /// [`TunnelError`] for settings that can't be used.
    pub(crate) fn new(
        settings: Vec<TunnelSettings>,
        events: mpsc::Sender<Event>,
        request_events: bool,
        inspects: bool,
    ) -> Result<Self, TunnelError> {
        let tunnels = Self {
            all: RwLock::default(),
            by_id: RwLock::default(),
            gone: Mutex::default(),
            events,
            missed_events: AtomicU64::new(0),
            request_events,
            inspects,
            changed: watch::Sender::new(()),
        };
        tunnels.apply(settings)?;
        Ok(tunnels)
    }

    /// Makes `settings` those that hold: all of them, or none where one can't be used. A tunnel whose
    /// kind, name and port stay is changed while it runs.
    ///
    /// # Errors
    /// [`TunnelError`]
    pub(crate) fn apply(&self, settings: Vec<TunnelSettings>) -> Result<Applied, TunnelError> {
        let mut all = self.all.write();
        let mut applied = Applied::default();
        let (mut next, mut changes) = (Vec::with_capacity(settings.len()), Vec::new());
        for mut settings in settings {
            settings.inspect &= self.inspects;
            let before = all.iter().find(|tunnel| tunnel.key == settings.key);
            let before = before.filter(|tunnel| !tunnel.is_deleted());
            let served = before.map(|tunnel| tunnel.served());
            match (before, served) {
                (Some(tunnel), Some(served)) if served.settings == settings => {
                    applied.unchanged += 1;
                    next.push(Arc::clone(tunnel));
                }
                (Some(tunnel), Some(served)) if served.settings.is_the_same_tunnel(&settings) => {
                    applied.changed.push(settings.key.clone());
                    changes.push((Arc::clone(tunnel), Served::new(settings, Some(&served))?));
                    next.push(Arc::clone(tunnel));
                }
                (Some(_), _) => {
                    applied.changed.push(settings.key.clone());
                    next.push(Arc::new(Tunnel::new(settings)?));
                }
                (None, _) => {
                    applied.added.push(settings.key.clone());
                    next.push(Arc::new(Tunnel::new(settings)?));
                }
            }
        }
        let specs = next.iter().map(|tunnel| tunnel.spec().encoded_len());
        if specs.sum::<usize>() > MAX_INIT {
            return Err(TunnelError::TooLong);
        }
        for (tunnel, served) in changes {
            tunnel.live.lock().refused = None;
            *tunnel.served.write() = Arc::new(served);
        }
        let mut gone = self.gone.lock();
        for tunnel in all.iter().filter(|old| !next.iter().any(|new| Arc::ptr_eq(old, new))) {
            if !next.iter().any(|new| new.key == tunnel.key) {
                applied.removed.push(tunnel.key.clone());
            }
            gone.push((Instant::now(), Arc::clone(tunnel)));
        }
        *all = next;
        drop((gone, all));
        self.changed.send_replace(());
        Ok(applied)
    }

    /// Sees when tunnels are added, changed or removed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Tunnel>> {
        self.all.read().clone()
    }

    pub(crate) fn by_id(&self, id: &[u8]) -> Option<Arc<Tunnel>> {
        self.by_id.read().get(id).cloned()
    }

    /// The edge has made a tunnel. Its id stays valid, so an older session's streams still find it.
    pub(crate) fn created(&self, tunnel: &Arc<Tunnel>, created: &v1::TunnelCreated) {
        let mut by_id = self.by_id.write();
        let mut live = tunnel.live.lock();
        live.ids.retain(|id| *id != created.tunnel_id);
        live.ids.push_back(created.tunnel_id.clone());
        if live.ids.len() > MAX_IDS
            && let Some(oldest) = live.ids.pop_front()
        {
            by_id.remove(&oldest);
        }
        live.name = Some(created.name.clone());
        live.port = u16::try_from(created.port).ok().filter(|port| *port != 0);
        (live.url, live.refused) = (created.public_url.clone(), None);
        by_id.insert(created.tunnel_id.clone(), Arc::clone(tunnel));
        drop((by_id, live));
        self.event(|| Event::Ready {
            key: created.key.clone(),
            name: created.name.clone(),
            url: created.public_url.clone(),
            upstream: tunnel.target(),
        });
        self.paused(tunnel, created.state());
        self.tell_hold(tunnel, created.hold_ms);
    }

    /// Tells, once, that requests wait for a shorter time than the tunnel's owner wants.
    fn tell_hold(&self, tunnel: &Tunnel, granted: Option<u32>) {
        let wanted = tunnel.served().settings.hold_reconnect.map(whole_millis);
        let short = wanted.filter(|wanted| granted.is_none_or(|granted| granted < *wanted));
        let told = short.map_or(NOT_TOLD, |_| granted.unwrap_or(0).into());
        let before = tunnel.told_hold.swap(told, Ordering::Relaxed);
        let Some(wanted) = short.filter(|_| before != told) else { return };
        let time = |ms: u32| Duration::from_millis(ms.into());
        let (title, raise) = match granted {
            Some(0) => ("this edge lets no request wait for its agent".to_owned(), true),
            Some(ms) => (format!("this edge lets requests wait for {:?} at most", time(ms)), true),
            None => ("this edge is too old for hold.reconnect".to_owned(), false),
        };
        let ask = if raise { "raise `limits.hold_seconds`" } else { "update it" };
        let fix = format!(
            "hold.reconnect asks for {:?}: lower it, or ask the edge's operator to {ask}",
            time(wanted)
        );
        warn!(tunnel = tunnel.key, fix, "{title}");
        self.event(|| Event::Hint { key: tunnel.key.clone(), title, fix });
    }

    /// Those that the edge is asked for.
    pub(crate) fn wanted(&self) -> Vec<Arc<Tunnel>> {
        self.all.read().iter().filter(|tunnel| !tunnel.is_deleted()).cloned().collect()
    }

    /// Its owner has deleted a tunnel.
    pub(crate) fn deleted(&self, id: &[u8], close: &v1::CloseTunnel) {
        let Some(tunnel) = self.by_id.write().remove(id) else { return };
        tunnel.deleted.store(true, Ordering::Relaxed);
        let code = u16::try_from(close.code).unwrap_or_default();
        let message = close.message.clone();
        self.event(|| Event::Refused { key: tunnel.key.clone(), code, message });
    }

    /// The edge says whether visitors are let in.
    pub(crate) fn paused(&self, tunnel: &Tunnel, state: v1::TunnelState) {
        let paused = state == v1::TunnelState::Paused;
        if tunnel.paused.swap(paused, Ordering::Relaxed) != paused {
            self.event(|| Event::Paused { key: tunnel.key.clone(), paused });
        }
    }

    /// All of them, for people to look at.
    pub(crate) fn statuses(&self, connected: bool) -> Vec<TunnelStatus> {
        self.all.read().iter().map(|tunnel| tunnel.status(connected)).collect()
    }

    /// All local servers that there are now.
    pub(crate) fn checked(&self) -> Vec<Arc<Member>> {
        let served = self.all().into_iter().map(|tunnel| tunnel.served());
        served
            .flat_map(|served| {
                served.pools().flat_map(|pool| pool.members().to_vec()).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Tells of changes of local servers' health that nobody was told of.
    pub(crate) fn tell_health(&self) {
        self.all().iter().for_each(|tunnel| self.tell_health_of(tunnel));
    }

    /// The same of one tunnel's.
    pub(crate) fn tell_health_of(&self, tunnel: &Tunnel) {
        let served = tunnel.served();
        for (upstream, HealthChange { healthy, reason, .. }) in
            served.pools().flat_map(|pool| pool.untold())
        {
            if healthy {
                info!(tunnel = tunnel.key, upstream, "a local server answers again");
            } else {
                warn!(tunnel = tunnel.key, upstream, reason, "a local server does not answer");
            }
            self.event(|| Event::Upstream { key: tunnel.key.clone(), upstream, healthy, reason });
        }
    }

    /// Tells, once, why a tunnel's local server turns visitors away.
    pub(crate) fn hint(&self, tunnel: &Tunnel, Hint { title, fix }: Hint) {
        if tunnel.hinted.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(tunnel = tunnel.key, fix, "{title}");
        self.event(|| Event::Hint { key: tunnel.key.clone(), title: title.to_owned(), fix });
    }

    pub(crate) fn sweep(&self) {
        for tunnel in self.all() {
            tunnel.served().pools().for_each(|pool| pool.sweep());
        }
        let mut gone = self.gone.lock();
        for (_, tunnel) in gone.extract_if(.., |(since, _)| since.elapsed() >= LATE) {
            let ids = std::mem::take(&mut tunnel.live.lock().ids);
            let mut by_id = self.by_id.write();
            for id in ids {
                // A tunnel that came after it may have the edge's row now.
                if by_id.get(&id).is_some_and(|owner| Arc::ptr_eq(owner, &tunnel)) {
                    by_id.remove(&id);
                }
            }
        }
    }

    /// Tells whoever listens of a request.
    pub(crate) fn request_event(&self, event: impl FnOnce() -> Event) {
        if self.request_events {
            self.event(event);
        }
    }

    /// Tells whoever listens. A listener that lags misses events rather than slow a request; one
    /// that is gone costs nothing.
    pub(crate) fn event(&self, event: impl FnOnce() -> Event) {
        match self.events.try_reserve() {
            Ok(place) => place.send(event()),
            Err(mpsc::error::TrySendError::Full(())) => {
                self.missed_events.fetch_add(1, Ordering::Relaxed);
            }
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }

    /// Events that a listener was too slow for.
    pub(crate) fn missed_events(&self) -> u64 {
        self.missed_events.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> TunnelSettings {
        let mut settings = TunnelSettings::http("web", "3000".parse().unwrap());
        let route = |path: &str| v1::HttpRoute { path: path.into(), ..Default::default() };
        settings.policy.routes = vec![route("/api"), route("/docs")];
        settings.routes = vec!["4000".parse().unwrap(), "file:dist".parse().unwrap()];
        settings
    }

    /// T23: an edge names a number, and each number has one target of this agent's own.
    #[test]
    fn t23_routes_lead_to_the_agents_own_targets() {
        let tunnel = Tunnel::new(settings()).unwrap().served();
        let server = |route| match tunnel.service(route) {
            Some(Service::Server(pool)) => pool.target().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(server(0), "http://localhost:3000");
        assert_eq!(server(1), "http://localhost:4000");
        assert!(matches!(tunnel.service(2), Some(Service::Files(_))));
        assert!(tunnel.service(3).is_none() && tunnel.service(u32::MAX).is_none());
    }

    #[test]
    fn the_edge_is_told_how_local_servers_call_themselves() {
        let spec = Tunnel::new(settings()).unwrap().spec();
        let policy = spec.http.unwrap();
        assert_eq!(policy.local_origin, "http://localhost:3000");
        let routes: Vec<_> = policy.routes.iter().map(|route| &route.local_origin[..]).collect();
        assert_eq!(routes, ["http://localhost:4000", "http://localhost"]);
        let plain = TunnelSettings::http("web", "3000".parse().unwrap());
        assert_eq!(Tunnel::new(plain).unwrap().spec().http, None);
    }

    #[test]
    fn a_route_without_a_local_server_is_refused() {
        let mut settings = settings();
        settings.routes.pop();
        let error = Tunnel::new(settings).unwrap_err().to_string();
        assert!(error.contains("\"web\": routes: each route needs an upstream"), "{error}");
    }

    fn tunnels(settings: Vec<TunnelSettings>) -> Tunnels {
        Tunnels::new(settings, mpsc::channel(8).0, false, false).unwrap()
    }

    fn named(key: &str, port: &str) -> TunnelSettings {
        TunnelSettings::http(key, port.parse().unwrap())
    }

    #[test]
    fn only_what_differs_is_changed() {
        let tunnels = tunnels(vec![named("a", "1"), named("b", "2"), named("c", "3")]);
        let before = tunnels.all();
        let c = TunnelSettings { name: Some("sea".into()), ..named("c", "3") };
        let settings = vec![named("a", "1"), named("b", "4"), c, named("d", "5")];
        let applied = tunnels.apply(settings).unwrap();
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        assert_eq!((applied.added, applied.changed), (keys(&["d"]), keys(&["b", "c"])));
        assert_eq!((applied.removed, applied.unchanged), (keys(&[]), 1));
        let after = tunnels.all();
        assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
        assert!(!Arc::ptr_eq(&before[2], &after[2]), "another name is another tunnel");
        assert_eq!((after[0].revision(), after[1].revision()), (0, 1));
        let applied = tunnels.apply(vec![named("a", "1")]).unwrap();
        assert_eq!((applied.removed, applied.unchanged), (keys(&["b", "c", "d"]), 1));
    }

    #[test]
    fn an_edge_hears_of_local_servers_what_it_does_not_know() {
        let further = vec!["2".parse().unwrap()];
        let tunnel = Tunnel::new(TunnelSettings { further, ..named("a", "1") }).unwrap();
        let id = Bytes::from_static(b"id");
        let mut said = Said::default();
        assert_eq!(tunnel.news(&id, &mut said, true), None, "nothing is known");
        let (pool, error) = (tunnel.pool(), |message: &str| {
            UpstreamError::new(v1::UpstreamErrorKind::ConnectionRefused, message)
        });
        pool.report(0, Some(&error("no one")));
        assert_eq!(tunnel.news(&id, &mut said, false), None, "the other one may be well");
        pool.report(1, Some(&error("nor two")));
        let health = tunnel.news(&id, &mut said, false).unwrap();
        assert_eq!((health.healthy, &health.reason[..]), (false, "no one; nor two"));
        assert_eq!(tunnel.news(&id, &mut said, true), None);
        // Another session's edge knows nothing.
        assert!(tunnel.news(&id, &mut Said::default(), false).is_some());
        pool.report(1, None);
        let health = tunnel.news(&id, &mut said, false).unwrap();
        assert!(health.healthy && health.reason.is_empty());
        // What came is told with a heartbeat, and once.
        let open = tunnel.begin();
        assert_eq!(tunnel.news(&id, &mut said, false), None);
        assert_eq!(tunnel.news(&id, &mut said, true).unwrap().open, 1);
        assert_eq!(tunnel.news(&id, &mut said, true), None);
        drop(open);
        assert_eq!(tunnel.news(&id, &mut said, true).unwrap().open, 0);
    }

    /// Those that a change of settings leaves as they are.
    #[test]
    fn what_is_known_of_local_servers_stays_with_them() {
        let tunnels = tunnels(vec![named("a", "1")]);
        let pool = || tunnels.all()[0].pool();
        let before = pool();
        let inspect = TunnelSettings { inspect: false, ..named("a", "1") };
        tunnels.apply(vec![inspect.clone()]).unwrap();
        assert!(Arc::ptr_eq(&before, &pool()));
        let health = crate::HealthCheck::tcp();
        tunnels.apply(vec![TunnelSettings { health, ..inspect }]).unwrap();
        assert!(!Arc::ptr_eq(&before, &pool()));
    }

    #[test]
    fn the_edge_waits_longer_than_the_agent() {
        let hold_local = Duration::from_secs(10);
        let spec = |response_timeout| {
            let settings = TunnelSettings { response_timeout, hold_local, ..named("a", "1") };
            Tunnel::new(settings).unwrap().spec().response_timeout_ms
        };
        assert_eq!((spec(Some(Duration::from_secs(2))), spec(None)), (13_000, 0));
    }

    #[test]
    fn limits_and_the_hold_are_told_to_the_edge() {
        let plain = Tunnel::new(named("a", "1")).unwrap().spec();
        assert_eq!((plain.limits, plain.hold_ms), (None, None));
        let limits = TunnelLimits { in_flight: Some(8), ..TunnelLimits::default() };
        let hold_reconnect = Some(Duration::ZERO);
        let settings = TunnelSettings { limits, hold_reconnect, ..named("a", "1") };
        let spec = Tunnel::new(settings).unwrap().spec();
        let limits = v1::TunnelLimits { requests_per_second: 0, in_flight: 8 };
        assert_eq!((spec.limits, spec.hold_ms), (Some(limits), Some(0)));
    }

    #[test]
    fn a_shorter_hold_than_wanted_is_told_once() {
        let hold_reconnect = Some(Duration::from_secs(60));
        let settings = TunnelSettings { hold_reconnect, ..named("a", "1") };
        let (sender, mut events) = mpsc::channel(64);
        let tunnels = Tunnels::new(vec![settings], sender, false, false).unwrap();
        let mut told = |hold_ms| {
            let tunnel = &tunnels.all()[0];
            tunnels.created(tunnel, &v1::TunnelCreated { hold_ms, ..Default::default() });
            let mut titles = Vec::new();
            while let Ok(event) = events.try_recv() {
                if let Event::Hint { title, .. } = event {
                    titles.push(title);
                }
            }
            titles.concat()
        };
        assert_eq!(told(Some(60_000)), "");
        assert_eq!(told(Some(10_000)), "this edge lets requests wait for 10s at most");
        assert_eq!(told(Some(10_000)), "", "it is known");
        assert!(told(None).contains("too old"));
        assert_eq!(told(Some(90_000)), "");
        assert!(told(Some(0)).contains("no request wait"));
    }

    #[test]
    fn a_fault_changes_nothing() {
        let tunnels = tunnels(vec![named("a", "1")]);
        let wrong = TunnelSettings { routes: vec!["4".parse().unwrap()], ..named("b", "2") };
        assert!(tunnels.apply(vec![named("a", "3"), wrong]).is_err());
        assert_eq!(tunnels.all()[0].target(), "http://localhost:1");
        assert_eq!(tunnels.all().len(), 1);
    }

    /// T23: numbers that the edge still uses lead where they led.
    #[test]
    fn t23_the_number_of_a_route_is_not_used_again() {
        let tunnels = tunnels(vec![settings()]);
        let mut next = settings();
        next.routes[0] = "5000".parse().unwrap();
        tunnels.apply(vec![next]).unwrap();
        let served = tunnels.all()[0].served();
        let leads_to = |route| match served.service(route) {
            Some(Service::Server(pool)) => pool.target().to_string(),
            Some(Service::Files(_)) => "files".to_owned(),
            None => "nowhere".to_owned(),
        };
        assert_eq!(
            (&*leads_to(1), &*leads_to(3)),
            ("http://localhost:4000", "http://localhost:5000")
        );
        assert_eq!((&*leads_to(2), &*leads_to(4), &*leads_to(5)), ("files", "files", "nowhere"));
        assert_eq!(tunnels.all()[0].spec().http.unwrap().first_route, 2);
    }
}
