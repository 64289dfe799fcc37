//! The tunnels of one agent: what it wants, and what it has.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};
use tracing::{info, warn};
use uniroute_proto::v1;

use serde::Deserialize;
use uniroute_shared::proxy_protocol;

use crate::{
    Event, TunnelSettings,
    files::Files,
    status::{HealthChange, UpstreamStatus},
    upstream::{
        Scheme, Target, UpstreamError,
        pool::{Figures, Member, Pool},
    },
};

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

/// A tunnel that this agent serves.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The agent's own word for it.
    pub(crate) key: String,
    pub(crate) kind: TunnelKind,
    /// The name that was asked for, if any.
    wanted: Option<String>,
    /// The public port that was asked for, if any.
    wanted_port: Option<u16>,
    pub(crate) response_timeout: Option<Duration>,
    /// How long a request may wait for a local server before it is sent.
    hold_local: Duration,
    /// Where it is, and what answers there.
    default: RwLock<(Arc<Pool>, Service)>,
    /// Of the policy's routes, in their order.
    routes: Vec<Service>,
    policy: Option<v1::HttpPolicy>,
    idle_timeout: Option<Duration>,
    /// What the local server is told of visitors, and how.
    pub(crate) proxy_protocol: Option<proxy_protocol::Version>,
    live: Mutex<Live>,
    /// Its owner has deleted it: it is not asked for again.
    deleted: AtomicBool,
    /// Its owner lets nobody in for now.
    paused: AtomicBool,
}

/// What the edge last said of it.
#[derive(Clone, Debug, Default)]
struct Live {
    id: Bytes,
    name: Option<String>,
    port: Option<u16>,
}

impl Tunnel {
    pub(crate) fn new(
        settings: &TunnelSettings,
        policy: Option<v1::HttpPolicy>,
        default: (Arc<Pool>, Service),
        routes: Vec<Service>,
    ) -> Self {
        Self {
            key: settings.key.clone(),
            kind: settings.kind,
            wanted: settings.name.clone(),
            wanted_port: settings.port,
            idle_timeout: settings.idle_timeout,
            proxy_protocol: settings.proxy_protocol,
            response_timeout: settings.response_timeout,
            hold_local: settings.hold_local,
            default: RwLock::new(default),
            routes,
            policy,
            live: Mutex::default(),
            deleted: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        }
    }

    /// The local servers of the default route.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.default.read().0)
    }

    /// All of its local servers, those of the default route first.
    fn pools(&self) -> Vec<Arc<Pool>> {
        let routes = self.routes.iter().filter_map(|service| match service {
            Service::Server(pool) => Some(Arc::clone(pool)),
            Service::Files(_) => None,
        });
        std::iter::once(self.pool()).chain(routes).collect()
    }

    /// What is known of its local servers, those of the default route first.
    pub(crate) fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.pools().iter().flat_map(|pool| pool.status().collect::<Vec<_>>()).collect()
    }

    /// What came to all of its local servers. The time to an answer is the default route's.
    pub(crate) fn figures(&self) -> Figures {
        let mut all = Figures { answer_us: self.pool().figures().answer_us, ..Figures::default() };
        for figures in self.pools().iter().map(|pool| pool.figures()) {
            all.requests += figures.requests;
            all.unanswered += figures.unanswered;
            all.open += figures.open;
        }
        all
    }

    /// What answers requests on a route, as the edge numbers them: 0 is the default. The edge names
    /// a number and never a target (T23), and one that there is not leads nowhere.
    pub(crate) fn service(&self, route: u32) -> Option<Service> {
        match usize::try_from(route).ok()? {
            0 => Some(self.default.read().1.clone()),
            number => self.routes.get(number - 1).cloned(),
        }
    }

    fn sweep(&self) {
        self.pools().iter().for_each(|pool| pool.sweep());
    }

    /// What to ask the edge for: the name and the port that were chosen before, where none was wished
    /// for.
    pub(crate) fn spec(&self) -> v1::TunnelSpec {
        let Live { name: earlier, port: earlier_port, .. } = self.live.lock().clone();
        v1::TunnelSpec {
            key: self.key.clone(),
            kind: self.kind.wire().into(),
            name_is_hint: self.wanted.is_none() && earlier.is_some(),
            name: self.wanted.clone().or(earlier).unwrap_or_default(),
            local_url: self.pool().target().to_string(),
            // The edge counts from when it has sent the request.
            response_timeout_ms: millis(self.response_timeout.map(|limit| limit + self.hold_local)),
            port_is_hint: self.wanted_port.is_none() && earlier_port.is_some(),
            port: self.wanted_port.or(earlier_port).unwrap_or_default().into(),
            idle_timeout_ms: millis(self.idle_timeout),
            http: self.policy.clone(),
        }
    }

    /// Its public name, as far as it is known.
    pub(crate) fn name(&self) -> String {
        let live = self.live.lock();
        live.name.clone().or_else(|| self.wanted.clone()).unwrap_or_default()
    }

    /// What the last request showed of the first local server, where a request has no turn.
    pub(crate) fn report(&self, error: Option<&UpstreamError>) {
        self.pool().report(0, error);
    }

    /// What an edge is to hear of the local servers; nothing if it knows already. `figures`: of what
    /// came since, too.
    fn news(&self, said: &mut Said, figures: bool) -> Option<v1::UpstreamHealth> {
        let tunnel_id = self.live.lock().id.clone();
        let health = self.pool().health()?;
        let now = self.figures();
        let said = said.0.entry(tunnel_id.clone()).or_default();
        let moved = figures && (now.requests != said.requests || now.open != said.open);
        if said.health.as_ref() == Some(&health) && !moved {
            return None;
        }
        *said = SaidOfOne { health: Some(health.clone()), requests: now.requests, open: now.open };
        Some(v1::UpstreamHealth {
            tunnel_id,
            healthy: health.is_ok(),
            reason: health.err().unwrap_or_default(),
            latency_ms: u32::try_from(now.answer_us.div_ceil(1_000)).unwrap_or(u32::MAX),
            open: u32::try_from(now.open).unwrap_or(u32::MAX),
        })
    }
}

/// What one session's edge was told of local servers, by tunnel.
#[derive(Debug, Default)]
pub(crate) struct Said(HashMap<Bytes, SaidOfOne>);

#[derive(Debug, Default)]
struct SaidOfOne {
    health: Option<Result<(), String>>,
    requests: u64,
    open: u64,
}

/// Nothing is 0, and nothing else is.
fn millis(limit: Option<Duration>) -> u32 {
    limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1))
}

/// All tunnels of one agent, and who is told what happens on them.
#[derive(Debug)]
pub(crate) struct Tunnels {
    all: Vec<Arc<Tunnel>>,
    by_id: RwLock<HashMap<Bytes, Arc<Tunnel>>>,
    events: mpsc::Sender<Event>,
    request_events: bool,
    /// A tunnel's local server was changed: the edge is to be told.
    pub(crate) changed: Notify,
}

impl Tunnels {
    pub(crate) fn new(all: Vec<Tunnel>, events: mpsc::Sender<Event>, request_events: bool) -> Self {
        let all = all.into_iter().map(Arc::new).collect();
        Self { all, by_id: RwLock::default(), events, request_events, changed: Notify::new() }
    }

    pub(crate) fn all(&self) -> &[Arc<Tunnel>] {
        &self.all
    }

    pub(crate) fn by_id(&self, id: &[u8]) -> Option<Arc<Tunnel>> {
        self.by_id.read().get(id).cloned()
    }

    pub(crate) fn by_key(&self, key: &str) -> Option<&Arc<Tunnel>> {
        self.all.iter().find(|tunnel| tunnel.key == key)
    }

    /// The edge has made a tunnel. Its id stays valid while the tunnel's name does, so an older
    /// session's streams still find it.
    pub(crate) fn created(&self, created: &v1::TunnelCreated) {
        let Some(tunnel) = self.by_key(&created.key) else { return };
        let mut by_id = self.by_id.write();
        let mut live = tunnel.live.lock();
        by_id.remove(&live.id);
        live.id = created.tunnel_id.clone();
        live.name = Some(created.name.clone());
        live.port = u16::try_from(created.port).ok().filter(|port| *port != 0);
        by_id.insert(created.tunnel_id.clone(), Arc::clone(tunnel));
        drop((by_id, live));
        self.event(|| Event::Ready {
            key: created.key.clone(),
            name: created.name.clone(),
            url: created.public_url.clone(),
            upstream: tunnel.pool().target().to_string(),
        });
        self.paused(tunnel, created.state());
    }

    /// Those that the edge is asked for.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.all.iter().filter(|tunnel| !tunnel.deleted.load(Ordering::Relaxed))
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

    /// The edge's ids of the tunnels that it has made.
    pub(crate) fn ids(&self) -> Vec<Bytes> {
        self.by_id.read().keys().cloned().collect()
    }

    /// Changes a tunnel's local server; requests from now on go to the new one.
    pub(crate) fn retarget(&self, key: &str, default: (Arc<Pool>, Service)) -> bool {
        let Some(tunnel) = self.by_key(key) else { return false };
        *tunnel.default.write() = default;
        self.changed.notify_one();
        true
    }

    /// Where each tunnel goes, for the edge to know.
    pub(crate) fn updates(&self) -> Vec<v1::UpdateTunnel> {
        let update = |(id, tunnel): (&Bytes, &Arc<Tunnel>)| v1::UpdateTunnel {
            tunnel_id: id.clone(),
            local_url: tunnel.pool().target().to_string(),
        };
        self.by_id.read().iter().map(update).collect()
    }

    /// What an edge does not know yet of local servers; `figures`: with what came since the last time.
    pub(crate) fn news(&self, said: &mut Said, figures: bool) -> Vec<v1::UpstreamHealth> {
        let known = self.by_id.read();
        said.0.retain(|id, _| known.contains_key(id));
        known.values().filter_map(|tunnel| tunnel.news(said, figures)).collect()
    }

    /// All local servers that there are now.
    pub(crate) fn checked(&self) -> Vec<Arc<Member>> {
        let members = |tunnel: &Arc<Tunnel>| {
            let of = |pool: &Arc<Pool>| pool.members().to_vec();
            tunnel.pools().iter().flat_map(of).collect::<Vec<_>>()
        };
        self.all.iter().flat_map(members).collect()
    }

    /// Tells of changes of local servers' health that nobody was told of.
    pub(crate) fn tell_health(&self) {
        self.all.iter().for_each(|tunnel| self.tell_health_of(tunnel));
    }

    /// The same of one tunnel's.
    pub(crate) fn tell_health_of(&self, tunnel: &Tunnel) {
        for (upstream, HealthChange { healthy, reason, .. }) in
            tunnel.pools().iter().flat_map(|pool| pool.untold())
        {
            match healthy {
                true => info!(tunnel = tunnel.key, upstream, "a local server answers again"),
                false => {
                    warn!(tunnel = tunnel.key, upstream, reason, "a local server does not answer")
                }
            }
            self.event(|| Event::Upstream { key: tunnel.key.clone(), upstream, healthy, reason });
        }
    }

    pub(crate) fn targets(&self) -> Vec<(String, Target)> {
        let target = |tunnel: &Arc<Tunnel>| (tunnel.key.clone(), tunnel.pool().target().clone());
        self.all.iter().map(target).collect()
    }

    pub(crate) fn sweep(&self) {
        self.all.iter().for_each(|tunnel| tunnel.sweep());
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
        if let Ok(place) = self.events.try_reserve() {
            place.send(event());
        }
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
        let tunnel = settings().tunnel().unwrap();
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
        let spec = settings().tunnel().unwrap().spec();
        let policy = spec.http.unwrap();
        assert_eq!(policy.local_origin, "http://localhost:3000");
        let routes: Vec<_> = policy.routes.iter().map(|route| &route.local_origin[..]).collect();
        assert_eq!(routes, ["http://localhost:4000", "http://localhost"]);
        let plain = TunnelSettings::http("web", "3000".parse().unwrap());
        assert_eq!(plain.tunnel().unwrap().spec().http, None);
    }

    #[test]
    fn a_route_without_a_local_server_is_refused() {
        let mut settings = settings();
        settings.routes.pop();
        let error = settings.tunnel().unwrap_err().to_string();
        assert!(error.contains("\"web\": routes: each route needs an upstream"), "{error}");
    }
}
