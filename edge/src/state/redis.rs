//! Shared state of many edges: Redis, one server, a cluster, or what sentinels point to.
//!
//! Two connections (in a cluster, to each server): one for calls, one that listens. A call takes a
//! second at most, and none goes out while the probe, which asks twice a second, got no answer: so
//! nothing piles up, whatever Redis does.
//!
//! It has to be Redis 6.2 or newer. A user of its access list needs `~tunnel:* &tunnel:* +@read +@write
//! +@connection +@scripting +@pubsub +time +info +cluster`.

mod health;
mod setup;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use fred::{
    clients::{Client, WithOptions},
    error::Error,
    interfaces::{
        HashesInterface as _, KeysInterface as _, LuaInterface as _, PubsubInterface as _,
    },
    types::{FromValue, scripts::Script},
};
use tokio::{
    sync::{Semaphore, broadcast},
    task::JoinSet,
    time::{Instant, timeout},
};
use uuid::Uuid;

use self::{health::Health, setup::CHANNEL};
use super::{
    Counters, FENCES_KEPT, MESSAGES, MOST_EDGES, MOST_MARKS, MOST_SESSIONS, Presence, Route,
    SetupError, StateError, StateOptions, TOTALS_KEPT, Told, Totals, share, ttl, url::Servers,
};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(1);
/// Calls at a time; one more fails at once.
const CALLS: usize = 4_096;
/// How long opening waits for a first answer.
const FIRST: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Redis(Arc<Inner>);

struct Inner {
    client: WithOptions<Client>,
    told: broadcast::Sender<Told>,
    health: Arc<Health>,
    calls: Semaphore,
    counters: Counters,
    /// They keep the connections, and end with this value.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("health", &self.0.health).finish_non_exhaustive()
    }
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)*) => {
        $(static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::from_lua(concat!(
                include_str!("scripts/now.lua"),
                include_str!(concat!("scripts/", $file, ".lua")),
            ))
        });)*
    };
}

scripts! {
    PUT_ROUTE = "put_route",
    DROP_ROUTE = "drop_route",
    PUT_FIELD = "put_field",
    FIELDS = "fields",
    DROP_FIELD = "drop_field",
    ADD_TOTALS = "add_totals",
    SHARE = "share",
    LOCK = "lock",
    UNLOCK = "unlock",
}

impl Redis {
    pub(super) async fn open(servers: &Servers, options: StateOptions) -> Result<Self, SetupError> {
        let clients = setup::clients(servers, options)?;
        let (told, health) = (broadcast::Sender::new(MESSAGES), Arc::new(Health::default()));
        let mut tasks = JoinSet::new();
        let listening = health::start(&mut tasks, &clients, &told, &health);
        let client = setup::bounded(&clients.calls);
        // Whether somebody answered is known by the health, then and later.
        let _ = timeout(FIRST, listening).await;
        Ok(Self(Arc::new(Inner {
            client,
            told,
            health,
            calls: Semaphore::new(CALLS),
            counters: Counters::default(),
            _tasks: tasks,
        })))
    }

    pub(super) fn is_well(&self) -> bool {
        self.0.health.is_well()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// One call, within its bounds, counted.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, StateError> {
        let began = Instant::now();
        let result = self.try_call(call).await;
        self.0.counters.called(began.elapsed(), result.is_err());
        result
    }

    async fn try_call<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StateError> {
        if self.0.health.is_away() {
            return Err(StateError("it is away".into()));
        }
        let Ok(_permit) = self.0.calls.try_acquire() else {
            return Err(StateError("too many calls at a time".into()));
        };
        let result = timeout(CALL, call).await;
        let result = result.unwrap_or_else(|_| Err(health::timed_out()));
        self.0.health.called(result.as_ref().err());
        result.map_err(|error| StateError(error.to_string()))
    }

    /// Runs a script on its one key.
    async fn run<T: FromValue + Send>(
        &self,
        script: &Script,
        key: String,
        args: Vec<String>,
    ) -> Result<T, StateError> {
        let client = &self.0.client;
        self.call(async {
            let sha = script.sha1().clone();
            let known = client.evalsha(sha, vec![key.clone()], args.clone()).await;
            match (known, script.lua()) {
                // A server that was restarted, or has not seen it yet.
                (Err(error), Some(lua)) if error.details().starts_with("NOSCRIPT") => {
                    client.eval(lua.clone(), vec![key], args).await
                }
                (known, _) => known,
            }
        })
        .await
    }

    pub(super) async fn put_route(
        &self,
        name: &str,
        route: &Route,
        ttl: Duration,
    ) -> Result<bool, StateError> {
        let Route { tunnel, epoch, edge } = route;
        let args = vec![digits(*epoch), tunnel.to_string(), edge.clone(), millis(ttl)];
        self.run(&PUT_ROUTE, route_key(name), args).await
    }

    pub(super) async fn route(&self, name: &str) -> Result<Option<Route>, StateError> {
        let text: Option<String> = self.call(self.0.client.get(route_key(name))).await?;
        Ok(text.as_deref().and_then(read_route))
    }

    pub(super) async fn drop_route(
        &self,
        name: &str,
        edge: &str,
        epoch: u64,
    ) -> Result<(), StateError> {
        self.run(&DROP_ROUTE, route_key(name), vec![digits(epoch), edge.to_owned()]).await
    }

    pub(super) async fn put_session(
        &self,
        tunnel: Uuid,
        presence: &Presence,
        ttl: Duration,
    ) -> Result<(), StateError> {
        let text = serde_json::to_string(presence).map_err(|e| StateError(e.to_string()))?;
        let field = presence.session.to_string();
        self.put_field(session_key(tunnel), field, text, ttl, MOST_SESSIONS).await
    }

    pub(super) async fn sessions(&self, tunnel: Uuid) -> Result<Vec<Presence>, StateError> {
        let fields = self.fields(session_key(tunnel)).await?;
        Ok(fields.iter().filter_map(|(_, text, _)| serde_json::from_str(text).ok()).collect())
    }

    pub(super) async fn drop_session(&self, tunnel: Uuid, session: Uuid) -> Result<(), StateError> {
        self.drop_field(session_key(tunnel), session.to_string()).await.map(drop)
    }

    pub(super) async fn add_totals(&self, tunnel: Uuid, more: Totals) -> Result<(), StateError> {
        // Numbers of Redis have a sign.
        let text = |number: u64| number.min(i64::MAX as u64).to_string();
        let numbers = [more.requests, more.errors, more.bytes_in, more.bytes_out];
        let mut args = vec![millis(TOTALS_KEPT)];
        for (field, number) in TOTALS.into_iter().zip(numbers) {
            args.extend([field.to_owned(), text(number)]);
        }
        self.run(&ADD_TOTALS, totals_key(tunnel), args).await
    }

    pub(super) async fn totals(&self, tunnel: Uuid) -> Result<Totals, StateError> {
        let read = self.0.client.hmget(totals_key(tunnel), TOTALS.to_vec());
        let numbers: Vec<Option<u64>> = self.call(read).await?;
        let number = |place: usize| numbers.get(place).copied().flatten().unwrap_or(0);
        Ok(Totals {
            requests: number(0),
            errors: number(1),
            bytes_in: number(2),
            bytes_out: number(3),
        })
    }

    pub(super) async fn share(
        &self,
        key: &str,
        edge: &str,
        demand: u64,
        ttl: Duration,
    ) -> Result<f64, StateError> {
        let demand = share::clamp(demand).to_string();
        let args = vec![edge.to_owned(), demand, millis(ttl), MOST_EDGES.to_string()];
        let part = self.run(&SHARE, format!("tunnel:ratelimit:{{{key}}}"), args).await?;
        Ok(share::part(part))
    }

    pub(super) async fn set_waiting(
        &self,
        tunnel: Uuid,
        edge: &str,
        waiting: u64,
        ttl: Duration,
    ) -> Result<(), StateError> {
        let (key, edge) = (waiting_key(tunnel), edge.to_owned());
        if waiting == 0 {
            return self.drop_field(key, edge).await.map(drop);
        }
        self.put_field(key, edge, waiting.to_string(), ttl, MOST_EDGES).await
    }

    pub(super) async fn waiting(&self, tunnel: Uuid) -> Result<Vec<(String, u64)>, StateError> {
        let fields = self.fields(waiting_key(tunnel)).await?;
        let number = |(edge, text, _): (String, String, Duration)| Some((edge, text.parse().ok()?));
        Ok(fields.into_iter().filter_map(number).collect())
    }

    pub(super) async fn lock(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, StateError> {
        let args = vec![holder.to_owned(), millis(ttl), millis(FENCES_KEPT)];
        self.run(&LOCK, lock_key(name), args).await
    }

    pub(super) async fn unlock(&self, name: &str, holder: &str) -> Result<(), StateError> {
        self.run(&UNLOCK, lock_key(name), vec![holder.to_owned()]).await
    }

    pub(super) async fn mark(
        &self,
        space: &str,
        key: &str,
        value: &str,
        ttl: Duration,
    ) -> Result<(), StateError> {
        self.put_field(mark_key(space), key.to_owned(), value.to_owned(), ttl, MOST_MARKS).await
    }

    pub(super) async fn marks(
        &self,
        space: &str,
    ) -> Result<Vec<(String, String, Duration)>, StateError> {
        self.fields(mark_key(space)).await
    }

    pub(super) async fn unmark(&self, space: &str, key: &str) -> Result<bool, StateError> {
        self.drop_field(mark_key(space), key.to_owned()).await
    }

    pub(super) async fn publish(&self, message: String) -> Result<(), StateError> {
        self.call(self.0.client.publish(CHANNEL, message)).await
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.0.told.subscribe()
    }

    /// `most`: fields that the key may have.
    async fn put_field(
        &self,
        key: String,
        field: String,
        value: String,
        ttl: Duration,
        most: usize,
    ) -> Result<(), StateError> {
        self.run(&PUT_FIELD, key, vec![field, value, millis(ttl), most.to_string()]).await
    }

    /// What has not expired, in the order of the fields.
    async fn fields(&self, key: String) -> Result<Vec<(String, String, Duration)>, StateError> {
        let flat: Vec<String> = self.run(&FIELDS, key, Vec::new()).await?;
        let mut fields: Vec<_> = flat.chunks_exact(3).filter_map(read_field).collect();
        fields.sort_unstable();
        Ok(fields)
    }

    async fn drop_field(&self, key: String, field: String) -> Result<bool, StateError> {
        self.run(&DROP_FIELD, key, vec![field]).await
    }
}

/// Fields of a tunnel's totals.
const TOTALS: [&str; 4] = ["requests", "errors", "bytes_in", "bytes_out"];

fn route_key(name: &str) -> String {
    format!("tunnel:subdomain:{{{name}}}")
}

fn session_key(tunnel: Uuid) -> String {
    format!("tunnel:session:{{{tunnel}}}")
}

fn totals_key(tunnel: Uuid) -> String {
    format!("tunnel:stats:{{{tunnel}}}")
}

fn waiting_key(tunnel: Uuid) -> String {
    format!("tunnel:queue:{{{tunnel}}}")
}

fn lock_key(name: &str) -> String {
    format!("tunnel:lock:{{{name}}}")
}

fn mark_key(space: &str) -> String {
    format!("tunnel:mark:{{{space}}}")
}

/// As text that sorts like the number: numbers of scripts are not exact beyond 2^53.
fn digits(epoch: u64) -> String {
    format!("{epoch:020}")
}

fn millis(time: Duration) -> String {
    ttl(time).as_millis().to_string()
}

/// What can't be read is as good as not there.
fn read_route(text: &str) -> Option<Route> {
    let mut parts = text.splitn(3, ' ');
    let epoch = parts.next()?.parse().ok()?;
    let tunnel = parts.next()?.parse().ok()?;
    Some(Route { tunnel, epoch, edge: parts.next()?.to_owned() })
}

fn read_field(flat: &[String]) -> Option<(String, String, Duration)> {
    let [field, value, left] = flat else { return None };
    Some((field.clone(), value.clone(), Duration::from_millis(left.parse().ok()?)))
}
