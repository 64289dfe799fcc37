//! What sessions leave behind in the store: when they came and went, names that were given up, tokens
//! that were used. Written one after the other by one task, in the order in which it happened, behind
//! a bounded queue: no session waits for it. While the store is away the queue does; what does not
//! fit is counted, and set right by the jobs that look for sessions nobody has.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    Shared,
    events::{Event, Kind},
    registry::{Claim, Grant, SessionHandle, Tunnel},
    state::{Presence, Route},
    store::{
        SessionRow, StoreError, Timestamp, TunnelRow,
        audit::{self, Actor},
    },
};

/// Entries that wait.
const QUEUE: usize = 20_000;
/// Between two tries while the store is away.
const PAUSE: Duration = Duration::from_millis(500);
/// A token's last use is written no more often than this.
const USED: Duration = Duration::from_secs(60);
/// Tokens whose last write is remembered.
const MAX_USED: usize = 20_000;
/// How long others believe that a session is there without hearing of it again.
pub(crate) const PRESENCE: Duration = Duration::from_secs(60);

enum Entry {
    Opened(Vec<SessionRow>, Vec<(Arc<Tunnel>, Presence)>),
    Offline(Uuid, Vec<Arc<Tunnel>>),
    Closed(Uuid, Timestamp),
    Released(Uuid, u64, Timestamp),
    Audited(Box<(Event, Actor)>),
    Used(Uuid, Timestamp),
}

/// See the module.
pub(crate) struct Books {
    queue: mpsc::Sender<Entry>,
    waiting: Mutex<Option<mpsc::Receiver<Entry>>>,
    used: Mutex<HashMap<Uuid, Instant>>,
    edge: String,
    quarantine: Duration,
    events: crate::events::Events,
    pub(crate) lost: AtomicU64,
}

impl Books {
    pub(crate) fn new(edge: &str, quarantine: Duration, events: crate::events::Events) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (waiting, edge) = (Mutex::new(Some(waiting)), edge.to_owned());
        let (used, lost) = (Mutex::default(), AtomicU64::new(0));
        Self { queue, waiting, used, edge, quarantine, events, lost }
    }

    /// A session serves these tunnels from now on.
    pub(crate) fn opened(&self, session: &SessionHandle, claims: &[Claim]) {
        let now = Timestamp::now();
        let row = |claim: &Claim| SessionRow {
            id: Uuid::now_v7(),
            session_id: session.id.into(),
            tunnel_id: claim.tunnel.id.into(),
            client_id: session.identity.agent.as_str().to_owned(),
            server_id: self.edge.clone(),
            token_id: session.permit.token,
            peer: session.peer.ip().to_canonical().to_string(),
            agent_version: session.agent_version.chars().take(64).collect(),
            connected_at: now,
            disconnected_at: None,
            last_heartbeat: Some(now),
            status: "connected".into(),
        };
        let presence = |claim: &Claim| {
            let tunnel = Arc::clone(&claim.tunnel);
            let presence = self.presence(session, &tunnel);
            (tunnel, presence)
        };
        let rows = claims.iter().map(row).collect();
        self.put(Entry::Opened(rows, claims.iter().map(presence).collect()));
        for claim in claims {
            self.tell(Kind::TunnelOnline, session, &claim.tunnel);
        }
        self.tell_session(Kind::SessionOpened, session);
    }

    /// An agent has made a tunnel by asking for it.
    pub(crate) fn created(&self, session: &SessionHandle, row: &TunnelRow) {
        let data = serde_json::json!({ "name": row.subdomain, "kind": row.kind });
        let event = Event::new(Kind::TunnelCreated).of(row.user_id).tunnel(row.id).data(data);
        let actor = Actor {
            id: None,
            name: format!("agent {}", session.identity.agent),
            peer: Some(session.peer.ip().to_canonical()),
        };
        self.events.publish(event.clone());
        self.put(Entry::Audited(Box::new((event, actor))));
    }

    /// How others see that `session` serves `tunnel`.
    pub(crate) fn presence(&self, session: &SessionHandle, tunnel: &Tunnel) -> Presence {
        Presence {
            session: session.id.into(),
            edge: self.edge.clone(),
            epoch: tunnel.fence(),
            agent: session.identity.agent.as_str().to_owned(),
        }
    }

    /// Nobody serves these tunnels now, which `session` did.
    pub(crate) fn offline(&self, session: &SessionHandle, unserved: Vec<Arc<Tunnel>>) {
        for tunnel in &unserved {
            self.tell(Kind::TunnelOffline, session, tunnel);
        }
        if !unserved.is_empty() {
            self.put(Entry::Offline(session.id.into(), unserved));
        }
    }

    /// A session that was ready has ended.
    pub(crate) fn closed(&self, session: &SessionHandle) {
        self.tell_session(Kind::SessionClosed, session);
        self.put(Entry::Closed(session.id.into(), Timestamp::now()));
    }

    /// Its agent has given the tunnel up.
    pub(crate) fn released(&self, tunnel: &Tunnel) {
        let until = Timestamp::now().plus(self.quarantine);
        self.put(Entry::Released(tunnel.id.into(), tunnel.fence(), until));
    }

    /// What the store has granted was of no use.
    pub(crate) fn given_back(&self, grant: &Grant) {
        let until = Timestamp::now().plus(self.quarantine);
        self.put(Entry::Released(grant.id.into(), grant.fence, until));
    }

    /// An agent came with this token.
    pub(crate) fn token_used(&self, token: Uuid) {
        let mut used = self.used.lock();
        let now = Instant::now();
        if used.get(&token).is_some_and(|at| now - *at < USED) {
            return;
        }
        if used.len() >= MAX_USED {
            used.retain(|_, at| now - *at < USED);
        }
        if used.len() < MAX_USED {
            used.insert(token, now);
        }
        drop(used);
        self.put(Entry::Used(token, Timestamp::now()));
    }

    fn put(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell(&self, kind: Kind, session: &SessionHandle, tunnel: &Tunnel) {
        let data = serde_json::json!({
            "edge": self.edge,
            "session": session.id.to_string(),
            "epoch": tunnel.fence(),
            "name": tunnel.name.as_str(),
        });
        let user = session.permit.account.user;
        self.events.publish(Event::new(kind).of(user).tunnel(Uuid::from(tunnel.id)).data(data));
    }

    fn tell_session(&self, kind: Kind, session: &SessionHandle) {
        let data = serde_json::json!({
            "edge": self.edge,
            "agent": session.identity.agent.as_str(),
            "version": session.agent_version,
            "address": session.peer.ip().to_canonical().to_string(),
        });
        let user = session.permit.account.user;
        self.events.publish(Event::new(kind).of(user).object(Uuid::from(session.id)).data(data));
    }

    /// Writes until the edge has drained, and then what is left, if the store takes it.
    pub(crate) async fn keep(&self, edge: Arc<Shared>) {
        let Some(mut entries) = self.waiting.lock().take() else { return };
        loop {
            let entry = tokio::select! {
                biased;
                entry = entries.recv() => entry,
                () = edge.drained.cancelled() => None,
            };
            let Some(entry) = entry else { return };
            while let Err(error) = write(&edge, &entry).await {
                if edge.drained.is_cancelled() {
                    return warn!(%error, "what the last sessions did is not written down");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Writes one entry.
///
/// # Errors
/// When it is worth another try.
async fn write(edge: &Shared, entry: &Entry) -> Result<(), StoreError> {
    let written = match entry {
        Entry::Opened(rows, present) => {
            for (tunnel, presence) in present {
                announce(edge, tunnel, presence).await;
            }
            edge.store.open_session(rows, Vec::new()).await
        }
        Entry::Offline(session, unserved) => {
            for tunnel in unserved {
                withdraw(edge, *session, tunnel).await;
            }
            Ok(())
        }
        Entry::Closed(session, at) => edge.store.close_session(*session, *at).await.map(drop),
        Entry::Released(tunnel, fence, until) => {
            let now = Timestamp::now();
            edge.store.release_tunnel(*tunnel, *fence, *until, now).await.map(drop)
        }
        Entry::Audited(audited) => {
            let (event, actor) = &**audited;
            edge.store.transaction(vec![audit::entry(event, actor)]).await.map(drop)
        }
        Entry::Used(token, at) => edge.store.touch_tokens(&[(*token, *at)]).await,
    };
    match written {
        Err(error @ (StoreError::Unavailable(_) | StoreError::ReadOnly(_))) => Err(error),
        Err(error) => {
            warn!(%error, "something about a session is not written down");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Says in the shared state who serves a tunnel. What fails is said again with the next renewal.
pub(crate) async fn announce(edge: &Shared, tunnel: &Tunnel, presence: &Presence) {
    let route = Route { tunnel: tunnel.id.into(), epoch: presence.epoch, edge: edge.id.clone() };
    let said = async {
        edge.state.put_route(tunnel.name.as_str(), &route, PRESENCE).await?;
        edge.state.put_session(tunnel.id.into(), presence, PRESENCE).await
    };
    if let Err(error) = said.await {
        debug!(%error, name = tunnel.name.as_str(), "others are not told of a tunnel");
    }
}

async fn withdraw(edge: &Shared, session: Uuid, tunnel: &Tunnel) {
    let said = async {
        edge.state.drop_session(tunnel.id.into(), session).await?;
        if edge.registry.serving(tunnel.id).is_none() {
            edge.state.drop_route(tunnel.name.as_str(), &edge.id, tunnel.fence()).await?;
        }
        Ok::<_, crate::state::StateError>(())
    };
    if let Err(error) = said.await {
        debug!(%error, name = tunnel.name.as_str(), "others still believe in a tunnel for a while");
    }
}
