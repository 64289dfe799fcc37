//! What somebody is told: how things are when he comes, or what he has missed; then each event, and
//! every second what has changed of the figures. His login is looked at again and again.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc::error::TrySendError},
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};
use tracing::debug;
use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{
    Scope,
    pipe::{Ending, Outlet, PATIENCE},
};
use crate::{
    Shared, api,
    auth::Role,
    events::{Event, Kind, Numbered, Since},
    registry::Tunnel,
    services::{Caller, Failure, Services},
    store::{SessionFilter, Timestamp, TunnelFilter, TunnelRow},
};

/// Tunnels that are told of at first; sessions too.
const FIRST: u32 = 100;
/// Tunnels whose figures are told of in one message; the others have their turn a second later.
const FIGURES: usize = 100;
/// Questions to the shared state at a time.
const ASKED: usize = 16;
/// How often figures are looked at.
const SECOND: Duration = Duration::from_secs(1);
/// How often the login is, if no event makes it necessary.
const RECHECK: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Feed {
    edge: Arc<Shared>,
    services: Services,
    caller: Caller,
    scope: Scope,
    /// The last event that the client has.
    resume: Option<u64>,
    outlet: Outlet,
    /// The last event that was looked at.
    seen: u64,
    told: HashMap<Uuid, Told>,
    round: u64,
}

/// What was last told of a tunnel, and when.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    figures: Figures,
    round: u64,
}

/// What of a tunnel changes from second to second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Figures {
    is_online: bool,
    requests: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    connections: usize,
}

impl Figures {
    fn of(tunnel: &Tunnel, is_online: bool) -> Self {
        let counts = &tunnel.counts;
        Self {
            is_online,
            requests: counts.requests.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            bytes_in: counts.bytes_in.load(Ordering::Relaxed),
            bytes_out: counts.bytes_out.load(Ordering::Relaxed),
            connections: tunnel.connections.load(Ordering::Relaxed),
        }
    }

    /// With the minute that is going on.
    fn told(self, tunnel: &Tunnel) -> Value {
        let minute = tunnel.counts.this_minute();
        let quantile = |part| minute.took.quantile(part);
        let mut told = json!(self);
        told["tunnel"] = json!(Uuid::from(tunnel.id));
        told["minute"] = json!({
            "requests": minute.requests,
            "errors": minute.errors,
            "bytes_in": minute.bytes_in,
            "bytes_out": minute.bytes_out,
            "latency_ms": { "p50": quantile(0.5), "p95": quantile(0.95), "p99": quantile(0.99) },
        });
        told
    }
}

impl Feed {
    pub(super) fn new(
        edge: Arc<Shared>,
        services: Services,
        caller: Caller,
        scope: Scope,
        resume: Option<u64>,
        outlet: Outlet,
    ) -> Self {
        let told = HashMap::new();
        Self { edge, services, caller, scope, resume, outlet, seen: 0, told, round: 0 }
    }

    /// Tells until something ends it.
    pub(super) async fn run(mut self) {
        let Err(ending) = self.tell().await;
        if ending == Ending::Lagged {
            self.edge.metrics.watch.lagged.inc();
        }
        self.outlet.end(ending);
    }

    async fn tell(&mut self) -> Result<Infallible, Ending> {
        // Before anything is looked at: nothing is missed in between.
        let mut events = self.edge.events.subscribe();
        let mut figures = interval(SECOND);
        let mut recheck = interval_at(Instant::now() + RECHECK, RECHECK);
        for ticks in [&mut figures, &mut recheck] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        self.begin().await?;
        let stop = self.edge.stop.clone();
        let queue = self.outlet.queue.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Err(Ending::Stopping),
                () = queue.closed() => return Err(Ending::Gone),
                event = events.recv() => match event {
                    Ok(numbered) => self.on_event(&numbered, false).await?,
                    Err(RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(RecvError::Closed) => return Err(Ending::Stopping),
                },
                _ = figures.tick() => self.tell_figures()?,
                _ = recheck.tick() => self.check().await?,
            }
        }
    }

    async fn begin(&mut self) -> Result<(), Ending> {
        if let Some(after) = self.resume
            && let Since::All(missed) = self.edge.events.since(after)
        {
            self.seen = after;
            return self.tell_all(&missed).await;
        }
        let snapshot = self.snapshot().await.map_err(|failure| {
            debug!(%failure, "somebody who watches can't be told how things are");
            match failure.code {
                code if code == &Code::NO_SUCH_THING => Ending::Deleted,
                code if code == &Code::INTERNAL => Ending::Failed,
                _ => Ending::Unavailable,
            }
        })?;
        self.put(&snapshot, true).await
    }

    /// How things are; what happens behind it is told as events.
    async fn snapshot(&mut self) -> Result<Value, Failure> {
        self.seen = self.edge.events.last();
        let mut snapshot = json!({ "type": "snapshot", "number": self.seen, "edge": self.edge.id });
        if let Scope::Tunnel(id) = self.scope {
            let stats = self.services.stats(&self.caller, id).await?;
            let mut tunnel = api::tunnel_told(stats.row.clone());
            tunnel["is_online"] = stats.is_online.into();
            snapshot["tunnels"] = json!([tunnel]);
            snapshot["sessions"] = self.sessions(id).await?;
            snapshot["stats"] = api::stats_told(stats);
            return Ok(snapshot);
        }
        let user = match self.scope {
            Scope::User(user) => Some(user),
            Scope::Tunnel(_) | Scope::All => None,
        };
        let filter = TunnelFilter { user, limit: FIRST + 1, ..TunnelFilter::default() };
        let mut rows = self.services.list_tunnels(&filter).await?;
        let more = rows.len() > FIRST as usize;
        rows.truncate(FIRST as usize);
        snapshot["tunnels"] = self.with_presence(rows).await;
        snapshot["more"] = more.into();
        Ok(snapshot)
    }

    async fn sessions(&self, tunnel: Uuid) -> Result<Value, Failure> {
        let filter = SessionFilter {
            tunnel: Some(tunnel),
            live: true,
            limit: FIRST,
            ..SessionFilter::default()
        };
        let rows = self.services.list_sessions(&filter).await?;
        Ok(rows.into_iter().map(api::session_told).collect())
    }

    async fn with_presence(&self, rows: Vec<TunnelRow>) -> Value {
        let here = self.edge.registry.targets();
        let here: HashSet<Uuid> = here.iter().map(|target| Uuid::from(target.tunnel.id)).collect();
        let told = |row: TunnelRow| {
            let (id, is_here) = (row.id, here.contains(&row.id));
            let mut tunnel = api::tunnel_told(row);
            async move {
                let sessions = self.edge.state.sessions(id);
                let online = is_here || sessions.await.is_ok_and(|sessions| !sessions.is_empty());
                tunnel["is_online"] = online.into();
                tunnel
            }
        };
        let tunnels: Vec<_> = stream::iter(rows).map(told).buffered(ASKED).collect().await;
        Value::Array(tunnels)
    }

    /// Others have made more events than this one could hear; the bus has kept some.
    async fn catch_up(&mut self) -> Result<(), Ending> {
        match self.edge.events.since(self.seen) {
            Since::All(missed) => self.tell_all(&missed).await,
            Since::TooOld(last) => {
                debug!(self.seen, last, "somebody who watches has missed too much");
                Err(Ending::Lagged)
            }
        }
    }

    async fn tell_all(&mut self, events: &[Numbered]) -> Result<(), Ending> {
        for numbered in events {
            self.on_event(numbered, true).await?;
        }
        Ok(())
    }

    /// `waits`: these are many, and the client gets the time to take them.
    async fn on_event(&mut self, numbered: &Numbered, waits: bool) -> Result<(), Ending> {
        let event = &*numbered.event;
        if numbered.number <= self.seen {
            return Ok(());
        }
        self.seen = numbered.number;
        if self.scope.has(event) {
            let message = json!({ "type": "event", "number": numbered.number, "event": event });
            self.put(&message, waits).await?;
        }
        if event.kind == Kind::TunnelDeleted
            && let (Scope::Tunnel(tunnel), true) = (self.scope, self.scope.has(event))
        {
            debug!(tunnel.id = %tunnel, "a tunnel that was watched is no more");
            return Err(Ending::Deleted);
        }
        if touches(event, &self.caller) { self.check().await } else { Ok(()) }
    }

    /// `waits`: for room, for a while.
    async fn put(&self, message: &Value, waits: bool) -> Result<(), Ending> {
        if !waits {
            return self.try_put(message);
        }
        let putting = timeout(PATIENCE, self.outlet.queue.send(message.to_string().into())).await;
        putting.map_err(|_| Ending::Lagged)?.map_err(|_| Ending::Gone)
    }

    fn try_put(&self, message: &Value) -> Result<(), Ending> {
        let put = self.outlet.queue.try_send(message.to_string().into());
        put.map_err(|error| match error {
            TrySendError::Full(_) => Ending::Lagged,
            TrySendError::Closed(_) => Ending::Gone,
        })
    }

    /// Figures that are not as they were told. They have no number: each is told anew when it changes.
    fn tell_figures(&mut self) -> Result<(), Ending> {
        let Some(key) = self.scope.key() else { return Ok(()) };
        self.round += 1;
        let survey = self.edge.watchers.survey(&self.edge.registry);
        let Some(tunnels) = survey.get(&key) else {
            self.told.clear();
            return Ok(());
        };
        let mut changed: Vec<_> = tunnels
            .iter()
            .map(|(tunnel, is_online)| (tunnel, Figures::of(tunnel, *is_online)))
            .map(|(tunnel, now)| (self.told.get(&tunnel.id.into()).copied(), tunnel, now))
            .filter(|(told, _, now)| told.unwrap_or_default().figures != *now)
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        changed.sort_by_key(|(told, ..)| told.map(|told| told.round));
        changed.truncate(FIGURES);
        let mut figures = Vec::new();
        for (_, tunnel, now) in changed {
            figures.push(now.told(tunnel));
            self.told.insert(tunnel.id.into(), Told { figures: now, round: self.round });
        }
        if self.told.len() > tunnels.len() {
            let there: HashSet<Uuid> = tunnels.iter().map(|(tunnel, _)| tunnel.id.into()).collect();
            self.told.retain(|id, _| there.contains(id));
        }
        self.try_put(&json!({ "type": "stats", "at": Timestamp::now(), "tunnels": figures }))
    }

    /// Whether the caller may still be told this. While the store is away, nothing changes.
    async fn check(&mut self) -> Result<(), Ending> {
        match self.services.look_again(&self.caller).await {
            Ok(Some(caller)) => self.caller = caller,
            Ok(None) => return Err(Ending::LoginOver),
            Err(error) => {
                debug!(%error, "a login can't be looked at again");
                return Ok(());
            }
        }
        match self.scope {
            Scope::User(_) => Ok(()),
            Scope::All if self.caller.role >= Role::Operator => Ok(()),
            Scope::All => Err(Ending::Forbidden),
            Scope::Tunnel(id) => match self.services.tunnel(&self.caller, id).await {
                Err(failure) if failure.code == &Code::NO_SUCH_THING => Err(Ending::Deleted),
                _ => Ok(()),
            },
        }
    }
}

/// Whether an event may have ended the caller's login, or changed what he may see.
fn touches(event: &Event, caller: &Caller) -> bool {
    let is_such = matches!(
        event.kind,
        Kind::UserLoggedOut
            | Kind::UserUpdated
            | Kind::UserDeleted
            | Kind::PasswordChanged
            | Kind::LoginReused
    );
    is_such && [event.user, event.object].contains(&Some(caller.user))
}
