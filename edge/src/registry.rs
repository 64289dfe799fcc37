//! Which tunnel a name leads to, and which session serves it: the one place where the data path
//! and the control path meet. Reading is a lock held for a hash look-up; writing happens when
//! sessions come and go.
//!
//! A name belongs to an identity (owner and agent). A new session of the same identity takes its
//! names with a higher epoch; whoever holds an older epoch can change nothing any more. A name
//! whose agent has gone stays with its identity for a while ([`NAME_HOLD`]).
//!
//! A port is a part of the tunnel that has it ([`ports`]): it comes, stays and goes with its name.

pub(crate) mod ports;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use uniroute_proto::v1;
use uniroute_shared::{
    code::Code,
    id::{AgentId, SessionId, Subdomain, TunnelId},
    session::{Carrier, Session},
};

use self::ports::{Kind, Port, PortWish};
use crate::{
    limits::{Gate, accounts::Account, lower},
    policy::Policy,
    session::permit::Permit,
    traffic::Counts,
};

/// How long a name stays with its identity after its last session ended without closing it.
pub(crate) const NAME_HOLD: Duration = Duration::from_secs(600);
/// Names that the registry holds at most, live and held together.
pub(crate) const MAX_NAMES: usize = 100_000;
/// Names that nobody came back for are looked for no more often than this.
const SWEEP: Duration = Duration::from_secs(1);
/// In [`Tunnel::hold_ms`]: its agent has no wish.
const EDGES_HOLD: u32 = u32::MAX;
/// Recent times to the first byte that a tunnel's median is taken from.
const LATENCIES: usize = 32;

/// Who a name belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The account; one built-in owner while tokens are pre-shared.
    pub(crate) owner: Arc<str>,
    /// The agent, stable over its restarts.
    pub(crate) agent: AgentId,
}

/// A named route, as long as its name is held.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: TunnelId,
    pub(crate) name: Subdomain,
    pub(crate) kind: Kind,
    /// Where its visitors come in, if it has a port of its own.
    pub(crate) port: Option<Port>,
    pub(crate) created: Instant,
    /// Whose it is.
    pub(crate) account: Arc<Account>,
    pub(crate) counts: Counts,
    /// Its own limit of requests a second.
    pub(crate) gate: Gate,
    rate: AtomicU32,
    /// What the store and the plan allow, and what its agent wishes for; 0: any number. The lower one
    /// is its limit.
    granted_rate: AtomicU32,
    wished_rate: AtomicU32,
    /// Most requests, connections or flows at a time, as its agent wishes; 0: any number.
    most_in_flight: AtomicU32,
    /// Requests under way that count towards that.
    in_flight: AtomicU32,
    /// For how many milliseconds requests wait for its agent, as that one wishes; [`EDGES_HOLD`]: as
    /// long as the edge has it.
    hold_ms: AtomicU32,
    /// Its owner lets nobody in for now.
    paused: AtomicBool,
    /// Of the last claim in the store: whoever has a lower one writes nothing there.
    fence: AtomicU64,
    /// Somebody serves it again: for requests that are held.
    pub(crate) arrived: Notify,
    /// Connections that are open now, of kinds that have connections.
    pub(crate) connections: AtomicUsize,
    latencies: Mutex<Latencies>,
    local_url: Mutex<String>,
    /// Of the session that serves it, or served it last: also for requests that wait for one.
    policy: Mutex<Option<Arc<Policy>>>,
    /// As its agent last said.
    local: Mutex<Local>,
}

/// A request of a tunnel that has a limit of them, while it is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Tunnel>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How much an agent wants to be let in to its tunnel, and for how long it is waited for; beside what
/// the edge allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wished {
    pub(crate) requests_per_second: Option<u32>,
    /// Requests, connections or flows at a time.
    pub(crate) in_flight: Option<u32>,
    /// `None`: as long as the edge has it.
    pub(crate) hold: Option<Duration>,
}

fn limit_in(number: &AtomicU32) -> Option<u32> {
    Some(number.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
}

/// What an agent says of a tunnel's local servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Local {
    /// Why none of them answers.
    pub(crate) unhealthy: Option<String>,
    /// Mean time from the agent to the head of a recent answer, in milliseconds; 0: there was none.
    pub(crate) latency_ms: u32,
    /// Requests and connections that are under way there.
    pub(crate) open: u32,
}

#[derive(Debug, Default)]
struct Latencies {
    recent_ms: [u32; LATENCIES],
    count: usize,
}

impl Tunnel {
    fn new(
        name: Subdomain,
        kind: Kind,
        port: Option<Port>,
        local_url: String,
        policy: Option<Arc<Policy>>,
        grant: &Grant,
    ) -> Self {
        let tunnel = Self {
            id: grant.id,
            name,
            kind,
            port,
            created: Instant::now(),
            account: Arc::clone(&grant.account),
            counts: Counts::default(),
            gate: Gate::default(),
            rate: AtomicU32::new(0),
            granted_rate: AtomicU32::new(0),
            wished_rate: AtomicU32::new(0),
            most_in_flight: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            hold_ms: AtomicU32::new(EDGES_HOLD),
            paused: AtomicBool::new(grant.paused),
            fence: AtomicU64::new(grant.fence),
            arrived: Notify::new(),
            connections: AtomicUsize::new(0),
            latencies: Mutex::default(),
            local_url: Mutex::new(local_url),
            policy: Mutex::new(policy),
            local: Mutex::default(),
        };
        tunnel.limit(grant.rate);
        tunnel
    }

    /// Requests a second that the store and the plan allow from now on; `None`: any number.
    pub(crate) fn limit(&self, rate: Option<u32>) {
        self.granted_rate.store(rate.unwrap_or(0), Ordering::Relaxed);
        self.set_rate();
    }

    /// What its agent wishes for from now on.
    fn wish(&self, wished: &Wished) {
        let any = |limit: Option<u32>| limit.unwrap_or(0);
        self.wished_rate.store(any(wished.requests_per_second), Ordering::Relaxed);
        self.set_rate();
        self.most_in_flight.store(any(wished.in_flight), Ordering::Relaxed);
        let ms = |hold: Duration| u32::try_from(hold.as_millis()).unwrap_or(EDGES_HOLD);
        self.hold_ms.store(wished.hold.map_or(EDGES_HOLD, ms), Ordering::Relaxed);
    }

    fn set_rate(&self) {
        let rate = lower(self.granted_rate(), limit_in(&self.wished_rate));
        if self.rate.swap(rate.unwrap_or(0), Ordering::Relaxed) != rate.unwrap_or(0) {
            self.gate.set(rate, 1.0);
        }
    }

    /// Requests a second that are let through; `None`: any number.
    pub(crate) fn rate(&self) -> Option<u32> {
        limit_in(&self.rate)
    }

    /// See [`Tunnel::limit`].
    fn granted_rate(&self) -> Option<u32> {
        limit_in(&self.granted_rate)
    }

    /// Connections or flows that it may have at a time, of `edges` that the edge allows.
    pub(crate) fn most_connections(&self, edges: usize) -> usize {
        limit_in(&self.most_in_flight).map_or(edges, |most| edges.min(most as usize))
    }

    /// A place among the requests that are under way; `None`: they are not counted.
    ///
    /// # Errors
    /// There are as many as its owner allows.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Option<UnderWay>, &'static Code> {
        let Some(most) = limit_in(&self.most_in_flight) else { return Ok(None) };
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = UnderWay(Arc::clone(self));
        if before < most { Ok(Some(place)) } else { Err(&Code::IN_FLIGHT_LIMIT) }
    }

    /// For how long requests wait for its agent, where the edge lets them wait for `edges`.
    pub(crate) fn hold(&self, edges: Duration) -> Duration {
        match self.hold_ms.load(Ordering::Relaxed) {
            EDGES_HOLD => edges,
            ms => edges.min(Duration::from_millis(ms.into())),
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Why a connection of another kind than HTTP is not let in now.
    pub(crate) fn refuses(&self) -> Option<&'static Code> {
        let now = tokio::time::Instant::now();
        match () {
            () if self.is_paused() => Some(&Code::PAUSED),
            () if self.gate.pass(now).is_err() => Some(&Code::TUNNEL_RATE),
            () if self.account.gate.pass(now).is_err() => Some(&Code::USER_RATE),
            () if !self.account.may_transfer() => Some(&Code::TRANSFER_USED),
            () => None,
        }
    }

    /// Whether that is new.
    pub(crate) fn pause(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::Relaxed) != paused
    }

    /// Of the last claim in the store.
    pub(crate) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    /// Takes down how long an answer's head took.
    pub(crate) fn answered(&self, after: Duration) {
        let mut latencies = self.latencies.lock();
        let place = latencies.count % LATENCIES;
        latencies.recent_ms[place] = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        latencies.count += 1;
    }

    /// Median time to the first byte of recent answers, in milliseconds; 0 before the first.
    pub(crate) fn latency_ms(&self) -> u32 {
        let latencies = self.latencies.lock();
        let mut recent = latencies.recent_ms;
        let seen = &mut recent[..latencies.count.min(LATENCIES)];
        seen.sort_unstable();
        seen.get(seen.len() / 2).copied().unwrap_or(0)
    }

    pub(crate) fn policy(&self) -> Option<Arc<Policy>> {
        self.policy.lock().clone()
    }

    pub(crate) fn local_url(&self) -> String {
        self.local_url.lock().clone()
    }

    pub(crate) fn set_local_url(&self, url: String) {
        *self.local_url.lock() = url;
    }

    pub(crate) fn local(&self) -> Local {
        self.local.lock().clone()
    }

    pub(crate) fn set_local(&self, local: Local) {
        *self.local.lock() = local;
    }
}

/// Where a session came from, and where it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The thread that it, and so its requests, run on.
    pub(crate) worker: usize,
    pub(crate) peer: std::net::SocketAddr,
}

/// A session as the rest of the edge sees it.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    pub(crate) id: SessionId,
    pub(crate) identity: Identity,
    /// Which run of the agent it belongs to, if it says so.
    pub(crate) run_id: Option<uuid::Uuid>,
    /// What its token allows.
    pub(crate) permit: Arc<Permit>,
    pub(crate) peer: std::net::SocketAddr,
    /// The thread that it runs on.
    pub(crate) worker: usize,
    pub(crate) agent_name: String,
    pub(crate) agent_version: String,
    pub(crate) region: String,
    pub(crate) since: Instant,
    pub(crate) carried: Session,
    /// The last measured round trip, in microseconds; 0 before the first.
    pub(crate) rtt_us: AtomicU32,
    pub(crate) resume_token: [u8; 16],
    /// The agent goes over to this session from one over another carrier.
    pub(crate) switches: bool,
    /// A newer session has taken all its names.
    pub(crate) replaced: CancellationToken,
    /// That one is of the same agent, which goes on with what it has here.
    pub(crate) patient: AtomicBool,
    /// A request waits suspiciously long: see whether the agent is still there.
    pub(crate) probe: Notify,
    /// Tunnels of it have changed, and its agent is to be told.
    pub(crate) changed: Notify,
    /// Those that it serves no more, to be told of too.
    pub(crate) closed: Mutex<Vec<v1::CloseTunnel>>,
    /// It is to end at once, for this reason.
    pub(crate) cut: Cut,
}

impl SessionHandle {
    /// A tunnel of it is no more: its agent is told why.
    pub(crate) fn close(&self, tunnel: &Tunnel, code: &'static Code) {
        let close = v1::CloseTunnel {
            tunnel_id: tunnel.id.as_bytes().to_vec().into(),
            code: code.number.into(),
            message: format!("{}. {}", code.title, code.fix),
        };
        self.closed.lock().push(close);
        self.changed.notify_one();
    }

    /// What [`SessionHandle::close`] has said since.
    pub(crate) fn take_closed(&self) -> Vec<v1::CloseTunnel> {
        std::mem::take(&mut *self.closed.lock())
    }
}

impl SessionHandle {
    /// It serves nothing any more: it may finish what it has, unless its owner wanted it gone.
    pub(crate) fn cut_or_replace(&self, code: &'static Code) {
        match *code {
            Code::TUNNEL_DELETED => self.cut.now(code),
            _ => self.replaced.cancel(),
        }
    }
}

/// Says once that a session is to end, and why.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    code: OnceLock<&'static Code>,
    token: CancellationToken,
}

impl Cut {
    pub(crate) fn now(&self, code: &'static Code) {
        let _ = self.code.set(code);
        self.token.cancel();
    }

    /// Until it is said.
    pub(crate) async fn wanted(&self) -> &'static Code {
        self.token.cancelled().await;
        self.code.get().copied().unwrap_or(&Code::SESSION_CUT)
    }
}

/// What the store says of a name that was claimed.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) id: TunnelId,
    /// The claim's epoch in the store.
    pub(crate) fence: u64,
    pub(crate) account: Arc<Account>,
    /// Requests a second.
    pub(crate) rate: Option<u32>,
    pub(crate) paused: bool,
}

/// Where a request goes: a tunnel and the session that serves it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) session: Arc<SessionHandle>,
    /// The request is given up when no answer has begun after this long.
    pub(crate) response_timeout: Option<Duration>,
    /// What the owner wants done with requests; the everyday tunnel has none.
    pub(crate) policy: Option<Arc<Policy>>,
    /// A connection or flow on which nothing moves for this long is ended.
    pub(crate) idle_timeout: Option<Duration>,
    /// The agent is told how long each request was here.
    pub(crate) wants_times: bool,
}

/// What a name leads to.
#[derive(Debug)]
pub(crate) enum Lookup {
    Unknown,
    /// Known, but no session serves it now, and if one did, since when not.
    Offline(Arc<Tunnel>, Option<Instant>),
    Live(Arc<Target>),
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    tunnel: Arc<Tunnel>,
    epoch: u64,
    /// The session with that epoch; it may not be ready yet.
    claimant: SessionId,
    target: Option<Arc<Target>>,
    offline_since: Option<Instant>,
    /// Its owner gave it up: anybody may have it, and requests are held for the owner a little
    /// longer, who may only be restarting.
    closed: bool,
    /// Ends whoever listens on the tunnel's port.
    _listening: Option<DropGuard>,
}

impl Entry {
    /// Nobody came back for it.
    fn is_expired(&self, hold: Duration) -> bool {
        let held = if self.closed { self.tunnel.hold(hold) } else { NAME_HOLD };
        self.offline_since.is_some_and(|at| at.elapsed() >= held)
    }
}

/// A name that a session has got, before requests are let in.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) epoch: u64,
    pub(crate) response_timeout: Option<Duration>,
    pub(crate) policy: Option<Arc<Policy>>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) wished: Wished,
    pub(crate) wants_times: bool,
}

/// What a session wishes for.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) kind: Kind,
    /// For kinds that have one.
    pub(crate) port: Option<PortWish<'a>>,
    pub(crate) local_url: &'a str,
    pub(crate) response_timeout: Option<Duration>,
    pub(crate) policy: Option<Arc<Policy>>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) wished: Wished,
    pub(crate) wants_times: bool,
}

#[derive(Debug, Default)]
struct Table {
    names: HashMap<Subdomain, Entry>,
    /// Which name a tunnel had last; it is its own if it still has it.
    ids: HashMap<TunnelId, Subdomain>,
    /// Who got a port last; it is theirs if they still have it.
    ports: HashMap<(Kind, u16), Subdomain>,
    sessions: HashMap<SessionId, Arc<SessionHandle>>,
    /// Names that each session has claimed, and may have lost to a newer one since.
    claimed: HashMap<SessionId, Vec<Subdomain>>,
    epoch: u64,
    /// When names that nobody came back for were looked for last.
    swept: Option<Instant>,
    /// For how long requests wait for a tunnel whose agent has gone.
    hold: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    table: RwLock<Table>,
}

impl Registry {
    /// `hold`: for how long requests wait for a tunnel whose agent has gone.
    pub(crate) fn new(hold: Duration) -> Self {
        Self { table: RwLock::new(Table { hold, ..Table::default() }) }
    }

    /// What `name` leads to now.
    pub(crate) fn lookup(&self, name: &str) -> Lookup {
        let table = self.table.read();
        match table.names.get(name) {
            Some(Entry { target: Some(target), .. }) => Lookup::Live(Arc::clone(target)),
            Some(entry) if !(entry.closed && entry.is_expired(table.hold)) => {
                Lookup::Offline(Arc::clone(&entry.tunnel), entry.offline_since)
            }
            _ => Lookup::Unknown,
        }
    }

    /// The tunnel that has `name`, served or not.
    pub(crate) fn tunnel(&self, name: &str) -> Option<Arc<Tunnel>> {
        self.table.read().names.get(name).map(|entry| Arc::clone(&entry.tunnel))
    }

    /// Who serves `tunnel` now.
    pub(crate) fn target_of(&self, tunnel: &Tunnel) -> Option<Arc<Target>> {
        let table = self.table.read();
        let target = table.names.get(&tunnel.name)?.target.as_ref()?;
        // The same row of the store may have become another kind, at another port.
        std::ptr::eq(&*target.tunnel, tunnel).then(|| Arc::clone(target))
    }

    /// Forgets names that nobody came back for.
    pub(crate) fn sweep(&self) {
        self.table.write().forget_expired();
    }

    /// The name that `identity` has a port by: an agent that asks for its port gets its tunnel.
    pub(crate) fn name_of_port(
        &self,
        identity: &Identity,
        kind: Kind,
        number: u16,
    ) -> Option<Subdomain> {
        self.table.read().name_of_port(identity, kind, number)
    }

    /// What `identity` has `name` by; for when the store can't be asked.
    pub(crate) fn known(&self, identity: &Identity, name: &Subdomain) -> Option<Grant> {
        let table = self.table.read();
        let entry = table.names.get(name).filter(|entry| entry.identity == *identity)?;
        let tunnel = &entry.tunnel;
        Some(Grant {
            id: tunnel.id,
            fence: tunnel.fence(),
            account: Arc::clone(&tunnel.account),
            rate: tunnel.granted_rate(),
            paused: tunnel.is_paused(),
        })
    }

    /// Whether `owner` had `name` here and has given it up, or nobody came back for it: any agent of
    /// his may have it.
    pub(crate) fn is_given_up(&self, owner: &str, name: &Subdomain) -> bool {
        let table = self.table.read();
        let entry = table.names.get(name).filter(|entry| *entry.identity.owner == *owner);
        entry.is_some_and(|entry| entry.closed || entry.is_expired(table.hold))
    }

    /// Gives a session the name that the store has granted: nobody is routed to it before
    /// [`Registry::activate`]. Whoever else had it here has lost it.
    ///
    /// # Errors
    /// When there is no port, or no room.
    pub(crate) fn claim(
        &self,
        identity: &Identity,
        session: SessionId,
        name: Subdomain,
        wish: &Wish<'_>,
        grant: &Grant,
    ) -> Result<Claim, &'static Code> {
        let mut table = self.table.write();
        table.forget_expired();
        table.claim(identity, session, name, wish, grant)
    }

    /// Lets requests in for `claims`. Sessions that lost their last name to this one are told.
    pub(crate) fn activate(&self, session: &Arc<SessionHandle>, claims: &[Claim]) {
        let mut table = self.table.write();
        table.sessions.insert(session.id, Arc::clone(session));
        for claim in claims {
            let Some(entry) = table.names.get_mut(&claim.tunnel.name) else { continue };
            if entry.epoch != claim.epoch {
                continue;
            }
            entry.offline_since = None;
            claim.tunnel.policy.lock().clone_from(&claim.policy);
            claim.tunnel.wish(&claim.wished);
            let old = entry.target.replace(Arc::new(Target {
                tunnel: Arc::clone(&claim.tunnel),
                session: Arc::clone(session),
                response_timeout: claim.response_timeout,
                policy: claim.policy.clone(),
                idle_timeout: claim.idle_timeout,
                wants_times: claim.wants_times,
            }));
            claim.tunnel.arrived.notify_waiters();
            if old.as_ref().is_none_or(|old| old.session.id != session.id) {
                // What another session said may be of another machine.
                claim.tunnel.set_local(Local::default());
            }
            if let Some(old) = old {
                old.session.patient.store(session.switches, Ordering::Relaxed);
                table.tell_replaced(old.session.id);
            }
        }
    }

    /// The session that gave out `token` to `identity` is replaced whole. Returns whether it was
    /// known.
    pub(crate) fn resume(&self, identity: &Identity, token: &[u8]) -> bool {
        let table = self.table.read();
        let old = table.sessions.values().find(|session| {
            session.identity == *identity
                && bool::from(subtle::ConstantTimeEq::ct_eq(&session.resume_token[..], token))
        });
        old.inspect(|session| session.replaced.cancel()).is_some()
    }

    /// The session that is named so and gave out `token`.
    pub(crate) fn session(&self, id: &str, token: &[u8]) -> Option<Arc<SessionHandle>> {
        let table = self.table.read();
        let session = table.sessions.get(&id.parse::<SessionId>().ok()?)?;
        let known = subtle::ConstantTimeEq::ct_eq(&session.resume_token[..], token);
        bool::from(known).then(|| Arc::clone(session))
    }

    /// The thread that the session `id` runs on.
    pub(crate) fn worker_of(&self, id: &str) -> Option<usize> {
        let id = id.parse::<SessionId>().ok()?;
        self.table.read().sessions.get(&id).map(|session| session.worker)
    }

    /// The owner gave the name up: it is free at once, and nobody is routed to it.
    pub(crate) fn close(&self, session: SessionId, tunnel: TunnelId) -> bool {
        let mut table = self.table.write();
        let hold = table.hold;
        // Seldom, and perhaps after the session was released: so all names are looked at.
        let mut mine = table.names.values_mut();
        let entry = mine.find(|entry| entry.tunnel.id == tunnel && entry.claimant == session);
        let Some(entry) = entry else { return false };
        let name = entry.tunnel.name.clone();
        (entry.closed, entry.target) = (true, None);
        entry.offline_since.get_or_insert_with(Instant::now);
        if entry.tunnel.hold(hold).is_zero() {
            table.names.remove(&name);
        }
        true
    }

    /// The session has ended: its names have no target, and stay with their identity for a while.
    /// Returns the tunnels that nobody serves now.
    pub(crate) fn release(&self, session: SessionId) -> Vec<Arc<Tunnel>> {
        let mut unserved = Vec::new();
        let mut table = self.table.write();
        table.sessions.remove(&session);
        let now = Instant::now();
        for name in table.claimed.remove(&session).unwrap_or_default() {
            let Some(entry) = table.names.get_mut(&name) else { continue };
            if entry.target.as_ref().is_some_and(|target| target.session.id == session) {
                entry.target = None;
                unserved.push(Arc::clone(&entry.tunnel));
            }
            if entry.claimant == session {
                match &entry.target {
                    None => {
                        entry.offline_since.get_or_insert(now);
                    }
                    // It never got ready: the name is again the one's who still serves it.
                    Some(target) => entry.claimant = target.session.id,
                }
            }
        }
        unserved
    }

    /// The tunnel, if `session` is the one that serves it.
    pub(crate) fn owned(&self, session: &SessionId, tunnel: &[u8]) -> Option<Arc<Tunnel>> {
        let table = self.table.read();
        let owned =
            |entry: &&Entry| entry.claimant == *session && entry.tunnel.id.as_bytes() == tunnel;
        table.claims_of(session).find(owned).map(|entry| Arc::clone(&entry.tunnel))
    }

    /// The tunnels that `session` serves.
    pub(crate) fn tunnels_of(&self, session: &SessionId) -> Vec<Arc<Tunnel>> {
        let table = self.table.read();
        let mine = table.claims_of(session).filter(|entry| entry.claimant == *session);
        mine.map(|entry| Arc::clone(&entry.tunnel)).collect()
    }

    /// Sessions for which something holds.
    pub(crate) fn sessions_that(
        &self,
        holds: impl Fn(&SessionHandle) -> bool,
    ) -> Vec<Arc<SessionHandle>> {
        let table = self.table.read();
        table.sessions.values().filter(|session| holds(session)).cloned().collect()
    }

    /// Every session, for people to look at.
    pub(crate) fn sessions(&self) -> Vec<Arc<SessionHandle>> {
        self.table.read().sessions.values().cloned().collect()
    }

    /// Every name with its epoch and whether it is served, for people to look at.
    pub(crate) fn tunnels(&self) -> Vec<(Arc<Tunnel>, u64, Option<SessionId>)> {
        let table = self.table.read();
        let hold = table.hold;
        let there = |e: &&Entry| !(e.closed && e.is_expired(hold));
        let row =
            |e: &Entry| (Arc::clone(&e.tunnel), e.epoch, e.target.as_ref().map(|t| t.session.id));
        table.names.values().filter(there).map(row).collect()
    }

    /// The tunnel with this identifier, if it is known here.
    pub(crate) fn by_id(&self, id: TunnelId) -> Option<Arc<Tunnel>> {
        self.table.read().entry_of(id).map(|entry| Arc::clone(&entry.tunnel))
    }

    /// Who serves the tunnel with this identifier now.
    pub(crate) fn serving(&self, id: TunnelId) -> Option<Arc<SessionHandle>> {
        let table = self.table.read();
        let target = table.entry_of(id)?.target.as_ref()?;
        Some(Arc::clone(&target.session))
    }

    /// Tunnels with a limit of their own.
    pub(crate) fn limited(&self) -> Vec<Arc<Tunnel>> {
        let table = self.table.read();
        let limited = table.names.values().filter(|entry| entry.tunnel.rate().is_some());
        limited.map(|entry| Arc::clone(&entry.tunnel)).collect()
    }

    /// The tunnel is no more, or another edge has it with a higher fence: nobody is routed to it here.
    /// Returns the session that served it.
    pub(crate) fn lose(&self, id: TunnelId, fence: u64) -> Option<Arc<SessionHandle>> {
        let mut table = self.table.write();
        let lost = |entry: &&Entry| entry.tunnel.fence() < fence;
        let name = table.entry_of(id).filter(lost)?.tunnel.name.clone();
        let target = table.names.remove(&name).and_then(|entry| entry.target)?;
        Some(Arc::clone(&target.session))
    }

    /// How many other agents of `account` than this one are ready now. A session that this one has
    /// lost, and that is still here, is not one more.
    pub(crate) fn agents_beside(&self, account: &Arc<Account>, agent: &AgentId) -> usize {
        let table = self.table.read();
        let mine = |session: &&Arc<SessionHandle>| Arc::ptr_eq(&session.permit.account, account);
        let agents = table.sessions.values().filter(mine).map(|session| &session.identity.agent);
        agents.filter(|other| *other != agent).collect::<HashSet<_>>().len()
    }

    /// Everything that is served now.
    pub(crate) fn targets(&self) -> Vec<Arc<Target>> {
        let table = self.table.read();
        table.names.values().filter_map(|entry| entry.target.clone()).collect()
    }

    /// Whether `session` still serves something.
    pub(crate) fn serves(&self, session: &SessionId) -> bool {
        let table = self.table.read();
        let serves =
            |entry: &Entry| entry.target.as_ref().is_some_and(|t| t.session.id == *session);
        table.claims_of(session).any(serves)
    }

    /// Sessions that are there now, those of them over QUIC, and names.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let table = self.table.read();
        let over_quic = |session: &&Arc<SessionHandle>| session.carried.carrier() == Carrier::Quic;
        let over_quic = table.sessions.values().filter(over_quic).count();
        (table.sessions.len(), over_quic, table.names.len())
    }
}

impl Table {
    fn entry_of(&self, id: TunnelId) -> Option<&Entry> {
        self.names.get(self.ids.get(&id)?).filter(|entry| entry.tunnel.id == id)
    }

    fn claim(
        &mut self,
        identity: &Identity,
        session: SessionId,
        name: Subdomain,
        wish: &Wish<'_>,
        grant: &Grant,
    ) -> Result<Claim, &'static Code> {
        let others = |held: &Entry| held.identity != *identity || held.tunnel.id != grant.id;
        if self.names.get(&name).is_some_and(others) {
            self.forget(&name);
        }
        if !self.names.contains_key(&name) && self.names.len() >= MAX_NAMES {
            return Err(&Code::TOO_MANY_TUNNELS);
        }
        let port = self.choose_port(identity, session, &name, wish)?;
        if self.names.get(&name).is_some_and(|held| !held.tunnel.is(wish.kind, port)) {
            self.forget(&name);
        }
        self.epoch += 1;
        let epoch = self.epoch;
        if let Some(port) = port {
            self.ports.insert((wish.kind, port), name.clone());
        }
        self.ids.insert(grant.id, name.clone());
        let entry = self.names.entry(name.clone()).or_insert_with(|| {
            let port = port.map(Port::new);
            let listening = port.as_ref().map(|port| port.closed.clone().drop_guard());
            let local_url = wish.local_url.to_owned();
            let tunnel = Tunnel::new(name, wish.kind, port, local_url, wish.policy.clone(), grant);
            Entry {
                identity: identity.clone(),
                tunnel: Arc::new(tunnel),
                epoch,
                claimant: session,
                target: None,
                offline_since: None,
                closed: false,
                _listening: listening,
            }
        });
        (entry.epoch, entry.claimant, entry.closed) = (epoch, session, false);
        entry.offline_since = entry.offline_since.map(|_| Instant::now());
        let claimed = self.claimed.entry(session).or_default();
        if !claimed.contains(&entry.tunnel.name) {
            claimed.push(entry.tunnel.name.clone());
        }
        let tunnel = Arc::clone(&entry.tunnel);
        tunnel.set_local_url(wish.local_url.to_owned());
        tunnel.fence.fetch_max(grant.fence, Ordering::Relaxed);
        tunnel.limit(grant.rate);
        tunnel.pause(grant.paused);
        let Wish { response_timeout, idle_timeout, wished, wants_times, .. } = *wish;
        let policy = wish.policy.clone();
        Ok(Claim { tunnel, epoch, response_timeout, idle_timeout, policy, wished, wants_times })
    }

    /// Takes a name from the session that serves it: it is another tunnel's now.
    fn forget(&mut self, name: &Subdomain) {
        let target = self.names.remove(name).and_then(|entry| entry.target);
        if let Some(target) = target {
            self.tell_replaced(target.session.id);
        }
    }

    /// Sends the session away if it serves no name any more.
    fn tell_replaced(&self, old: SessionId) {
        let serves = |entry: &Entry| entry.target.as_ref().is_some_and(|t| t.session.id == old);
        if !self.claims_of(&old).any(serves)
            && let Some(session) = self.sessions.get(&old)
        {
            session.replaced.cancel();
        }
    }

    /// What `session` has claimed and nobody has given up since.
    fn claims_of<'a>(&'a self, session: &SessionId) -> impl Iterator<Item = &'a Entry> {
        let names = self.claimed.get(session).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter_map(|name| self.names.get(name))
    }

    fn forget_expired(&mut self) {
        let now = Instant::now();
        if self.swept.is_some_and(|at| now - at < SWEEP) && self.names.len() < MAX_NAMES {
            return;
        }
        self.swept = Some(now);
        let hold = self.hold;
        self.names.retain(|_, entry| !entry.is_expired(hold));
        let names = &self.names;
        self.ids.retain(|id, name| names.get(name).is_some_and(|entry| entry.tunnel.id == *id));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use bytes::Bytes;

    use super::*;
    use crate::limits::accounts::Accounts;

    fn identity(agent: &str) -> Identity {
        Identity { owner: "owner".into(), agent: AgentId::parse(agent).unwrap() }
    }

    fn session(agent: &str) -> Arc<SessionHandle> {
        let (io, _) = tokio::io::duplex(1);
        let (mux, _, _) =
            uniroute_shared::mux::new(uniroute_shared::mux::Config::edge(), io, Bytes::new());
        Arc::new(SessionHandle {
            id: SessionId::new(),
            identity: identity(agent),
            run_id: None,
            permit: Arc::new(Permit::all(account())),
            peer: ([127, 0, 0, 1], 1).into(),
            worker: 0,
            agent_name: String::new(),
            agent_version: String::new(),
            region: String::new(),
            since: Instant::now(),
            carried: mux.into(),
            rtt_us: AtomicU32::new(0),
            resume_token: *SessionId::new().as_bytes(),
            switches: false,
            replaced: CancellationToken::new(),
            patient: AtomicBool::new(false),
            probe: Notify::new(),
            changed: Notify::new(),
            closed: Mutex::default(),
            cut: Cut::default(),
        })
    }

    /// As the store would: the same tunnel for the same name.
    fn grant(name: &str) -> Grant {
        let bytes = name.bytes().fold(7_u128, |id, byte| id * 257 + u128::from(byte));
        Grant {
            id: TunnelId::from(uuid::Uuid::from_u128(bytes)),
            fence: 1,
            account: account(),
            rate: None,
            paused: false,
        }
    }

    fn account() -> Arc<Account> {
        Accounts::default().enter(uuid::Uuid::nil(), &Default::default())
    }

    fn claim(
        registry: &Registry,
        session: &SessionHandle,
        name: &str,
        wish: &Wish<'_>,
    ) -> Result<Claim, &'static Code> {
        let name = Subdomain::parse(name).unwrap();
        let grant = grant(name.as_str());
        registry.claim(&session.identity, session.id, name, wish, &grant)
    }

    fn wish() -> Wish<'static> {
        Wish {
            kind: Kind::Http,
            port: None,
            local_url: "http://localhost:3000",
            response_timeout: None,
            policy: None,
            idle_timeout: None,
            wished: Wished::default(),
            wants_times: false,
        }
    }

    /// A session that claims and never gets ready leaves the name to the one that serves it.
    #[test]
    fn a_session_that_never_got_ready_takes_nothing_with_it() {
        let registry = Registry::default();
        let (old, new) = (session("a"), session("a"));
        let got = claim(&registry, &old, "demo", &wish()).unwrap();
        registry.activate(&old, &[got]);
        claim(&registry, &new, "demo", &wish()).unwrap();
        registry.release(new.id);
        assert_eq!(serving(&registry, "demo"), Some(old.id));
        assert_eq!(registry.tunnels_of(&old.id).len(), 1, "it is the old one's again");
        registry.release(old.id);
        assert!(
            registry.table.read().names["demo"].offline_since.is_some(),
            "it is held for a while"
        );
    }

    #[test]
    fn the_lower_one_of_two_rates_holds() {
        let registry = Registry::default();
        let session = session("a");
        let wished = Wished { requests_per_second: Some(5), ..Wished::default() };
        let got = claim(&registry, &session, "demo", &Wish { wished, ..wish() }).unwrap();
        let tunnel = Arc::clone(&got.tunnel);
        assert_eq!(tunnel.rate(), None, "not before it is ready");
        registry.activate(&session, &[got]);
        assert_eq!(tunnel.rate(), Some(5));
        tunnel.limit(Some(3));
        assert_eq!(tunnel.rate(), Some(3));
        tunnel.limit(Some(9));
        assert_eq!((tunnel.rate(), tunnel.granted_rate()), (Some(5), Some(9)));
        let again = claim(&registry, &session, "demo", &wish()).unwrap();
        registry.activate(&session, &[again]);
        assert_eq!(tunnel.rate(), None, "neither of them has a limit now");
    }

    #[test]
    fn so_many_requests_are_under_way_and_no_more() {
        let registry = Registry::default();
        let session = session("a");
        let got = claim(&registry, &session, "demo", &wish()).unwrap();
        let tunnel = Arc::clone(&got.tunnel);
        registry.activate(&session, &[got]);
        let uncounted = tunnel.enter().unwrap();
        assert!(uncounted.is_none());
        tunnel.wish(&Wished { in_flight: Some(2), ..Wished::default() });
        let first = tunnel.enter().unwrap();
        let second = tunnel.enter().unwrap();
        assert_eq!(tunnel.enter().unwrap_err(), &Code::IN_FLIGHT_LIMIT);
        drop(first);
        let third = tunnel.enter().unwrap();
        tunnel.wish(&Wished { in_flight: Some(1), ..Wished::default() });
        drop(second);
        assert!(tunnel.enter().is_err(), "one is still there");
        drop(third);
        drop(uncounted);
        assert!(tunnel.enter().unwrap().is_some());
        assert_eq!(tunnel.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!((tunnel.most_connections(5), tunnel.most_connections(0)), (1, 0));
    }

    #[test]
    fn a_tunnel_waits_no_longer_than_the_edge() {
        let registry = Registry::default();
        let session = session("a");
        let tunnel = claim(&registry, &session, "demo", &wish()).unwrap().tunnel;
        let (edges, seconds) = (Duration::from_secs(10), Duration::from_secs);
        assert_eq!(tunnel.hold(edges), edges);
        for (wished, held) in [(0, 0), (4, 4), (60, 10)] {
            tunnel.wish(&Wished { hold: Some(seconds(wished)), ..Wished::default() });
            assert_eq!(tunnel.hold(edges), seconds(held));
        }
        tunnel.wish(&Wished { hold: Some(Duration::MAX), ..Wished::default() });
        assert_eq!(tunnel.hold(edges), edges);
    }

    fn serving(registry: &Registry, name: &str) -> Option<SessionId> {
        match registry.lookup(name) {
            Lookup::Live(target) => Some(target.session.id),
            _ => None,
        }
    }

    #[test]
    fn the_newest_session_of_an_identity_takes_its_name_at_once() {
        let registry = Registry::default();
        let (old, new) = (session("a"), session("a"));
        let first = claim(&registry, &old, "demo", &wish()).unwrap();
        assert!(matches!(registry.lookup("demo"), Lookup::Offline(..)), "no request before Ready");
        registry.activate(&old, std::slice::from_ref(&first));
        let second = claim(&registry, &new, "demo", &wish()).unwrap();
        assert!(second.epoch > first.epoch);
        assert_eq!(
            serving(&registry, "demo"),
            Some(old.id),
            "the old one serves until the new one is ready"
        );
        registry.activate(&new, &[second]);
        assert_eq!(serving(&registry, "demo"), Some(new.id));
        assert!(old.replaced.is_cancelled());
        // Late words of the old session change nothing.
        registry.activate(&old, &[first]);
        registry.release(old.id);
        assert!(!registry.close(old.id, TunnelId::new()));
        assert_eq!(serving(&registry, "demo"), Some(new.id));
    }

    /// The store has said so; see its tests for when it does.
    #[test]
    fn whoever_the_store_gives_a_name_to_has_it() {
        let registry = Registry::default();
        let (mine, other) = (session("a"), session("b"));
        let first = claim(&registry, &mine, "demo", &wish()).unwrap();
        registry.activate(&mine, std::slice::from_ref(&first));
        let name = Subdomain::parse("demo").unwrap();
        assert!(registry.known(&mine.identity, &name).is_some());
        assert!(registry.known(&other.identity, &name).is_none());
        assert!(!registry.is_given_up("owner", &name));
        let second = claim(&registry, &other, "demo", &wish()).unwrap();
        assert!(mine.replaced.is_cancelled());
        registry.activate(&other, &[second]);
        assert_eq!(serving(&registry, "demo"), Some(other.id));
        registry.release(other.id);
        assert!(!registry.is_given_up("owner", &name), "its agent may come back");
        assert!(registry.close(other.id, grant("demo").id));
        assert!(!registry.is_given_up("somebody", &name));
    }

    #[test]
    fn a_tunnel_that_went_elsewhere_is_served_here_no_more() {
        let (registry, mine) = (Registry::default(), session("a"));
        let first = claim(&registry, &mine, "demo", &wish()).unwrap();
        registry.activate(&mine, std::slice::from_ref(&first));
        assert!(registry.lose(first.tunnel.id, first.tunnel.fence()).is_none(), "it is our own");
        assert!(registry.lose(first.tunnel.id, first.tunnel.fence() + 1).is_some());
        assert!(matches!(registry.lookup("demo"), Lookup::Unknown));
        assert!(!registry.serves(&mine.id));
    }

    fn tcp(number: u16, range: &RangeInclusive<u16>) -> Wish<'_> {
        let port = PortWish { number, is_hint: false, range, unusable: &[] };
        Wish { kind: Kind::Tcp, port: Some(port), ..wish() }
    }

    fn port_of(claim: &Claim) -> u16 {
        claim.tunnel.port.as_ref().unwrap().number
    }

    #[test]
    fn a_port_comes_stays_and_goes_with_its_name() {
        let (registry, range) = (Registry::default(), 7000..=7001);
        let (mine, again, other) = (session("a"), session("a"), session("b"));
        let tcp_claim = |session: &SessionHandle, name: &str, number| {
            claim(&registry, session, name, &tcp(number, &range))
        };
        let refused = |r: Result<Claim, &'static Code>| r.unwrap_err().number;
        let first = tcp_claim(&mine, "db", 7000).unwrap();
        registry.activate(&mine, std::slice::from_ref(&first));
        assert_eq!(port_of(&first), 7000);
        assert_eq!(refused(tcp_claim(&other, "x", 7000)), 1111);
        assert_eq!(refused(tcp_claim(&mine, "x", 7000)), 1111, "it has it already");
        assert_eq!(refused(tcp_claim(&mine, "x", 6999)), 1112);
        // The next session of the same agent gets the very tunnel: by its name, or by its port.
        let name = registry.name_of_port(&again.identity, Kind::Tcp, 7000).unwrap();
        assert_eq!(name.as_str(), "db");
        assert!(registry.name_of_port(&other.identity, Kind::Tcp, 7000).is_none());
        for number in [0, 7000] {
            let second = tcp_claim(&again, "db", number).unwrap();
            assert!(Arc::ptr_eq(&second.tunnel, &first.tunnel));
        }
        assert!(!first.tunnel.port.as_ref().unwrap().closed.is_cancelled());
        // Under another port it is another one, and nobody listens on the old one any more.
        let moved = tcp_claim(&again, "db", 7001).unwrap();
        assert!(!Arc::ptr_eq(&moved.tunnel, &first.tunnel));
        assert!(first.tunnel.port.as_ref().unwrap().closed.is_cancelled());
        assert!(mine.replaced.is_cancelled());
        // The one that is left, then none.
        assert_eq!(port_of(&tcp_claim(&other, "y", 0).unwrap()), 7000);
        assert_eq!(refused(tcp_claim(&other, "z", 0)), 1114);
        assert!(registry.close(again.id, moved.tunnel.id));
        assert!(moved.tunnel.port.as_ref().unwrap().closed.is_cancelled());
        assert_eq!(port_of(&tcp_claim(&other, "z", 0).unwrap()), 7001);
    }

    #[test]
    fn a_port_that_was_only_a_hint_may_be_another() {
        let (registry, range) = (Registry::default(), 7000..=7001);
        let (mine, other) = (session("a"), session("b"));
        claim(&registry, &mine, "db", &tcp(7000, &range)).unwrap();
        let unusable = [7000];
        for (number, unusable) in [(7000, &[][..]), (8000, &[]), (7000, &unusable)] {
            let port = PortWish { number, is_hint: true, range: &range, unusable };
            let hint = Wish { port: Some(port), ..tcp(0, &range) };
            assert_eq!(port_of(&claim(&registry, &other, "x", &hint).unwrap()), 7001);
        }
    }

    #[test]
    fn a_name_that_becomes_another_kind_is_another_tunnel() {
        let (registry, s) = (Registry::default(), session("a"));
        let web = claim(&registry, &s, "demo", &wish()).unwrap();
        registry.activate(&s, std::slice::from_ref(&web));
        assert!(registry.target_of(&web.tunnel).is_some());
        let tls = claim(&registry, &s, "demo", &Wish { kind: Kind::Tls, ..wish() }).unwrap();
        assert!(registry.target_of(&web.tunnel).is_none(), "nobody is led to the old one");
        registry.activate(&s, std::slice::from_ref(&tls));
        assert!(registry.target_of(&tls.tunnel).is_some());
        assert!(registry.target_of(&web.tunnel).is_none());
    }

    #[test]
    fn a_resume_token_replaces_its_whole_session_and_only_for_its_identity() {
        let (registry, s) = (Registry::default(), session("a"));
        let got = claim(&registry, &s, "demo", &wish()).unwrap();
        registry.activate(&s, &[got]);
        assert!(!registry.resume(&identity("b"), &s.resume_token));
        assert!(!registry.resume(&s.identity, b""));
        assert!(!s.replaced.is_cancelled());
        assert!(registry.resume(&s.identity, &s.resume_token));
        assert!(s.replaced.is_cancelled());
    }
}
