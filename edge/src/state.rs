//! What is fast, expires by itself and belongs to all edges: which edge serves a name, sessions,
//! running totals, shares of limits, locks, bans, and messages from edge to edge. Redis for many
//! edges, this process's memory for one; both pass the same tests.
//!
//! Nothing in here is the last word: names belong to whom the [`crate::store`] says. What is lost
//! here is written again within seconds by those who know it (T08). Keys live below this module only.
//!
//! | key | holds |
//! | --- | --- |
//! | `tunnel:subdomain:{NAME}` | which tunnel has the name, since which epoch, and the edge that serves it |
//! | `tunnel:session:{TUNNEL}` | the sessions that serve a tunnel, one field each |
//! | `tunnel:stats:{TUNNEL}` | running totals, only ever added to |
//! | `tunnel:ratelimit:{KEY}` | what each edge wants of a limit, one field each |
//! | `tunnel:queue:{TUNNEL}` | how many requests wait at each edge for the tunnel's agent |
//! | `tunnel:lock:{NAME}` | who does what only one edge may do, with a fence that only grows |
//! | `tunnel:mark:{SPACE}` | what expires by itself, such as bans |
//! | `tunnel:health` | nothing; it is written to see whether writing works |
//!
//! Every key expires. Messages go over the channel `tunnel:events`. Times are the server's, so the
//! clocks of edges don't matter.
//!
//! The braces are a part of the keys: in Redis Cluster they say which part chooses the slot, so all
//! keys of a tunnel are on one server, and no script touches two slots.

mod memory;
mod redis;
mod share;
mod url;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::broadcast;
use uuid::Uuid;

use self::url::Place;
pub use self::url::{Secret, StateUrl};

/// Messages that wait for a receiver; what is more is a gap for it.
const MESSAGES: usize = 1_024;
/// Marks of a space; those that expire first make room.
const MOST_MARKS: usize = 10_000;
/// Sessions of a tunnel; those that expire first make room.
const MOST_SESSIONS: usize = 1_000;
/// Edges that share a limit, or have requests that wait for a tunnel.
const MOST_EDGES: usize = 1_000;
/// How long running totals stay after the last addition.
const TOTALS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long the fence of a lock stays that nobody takes.
const FENCES_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// No time to live is longer.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// What is shared between edges. Cloning is cheap; clones share everything, and the connections end
/// with the last one.
#[derive(Clone, Debug)]
pub struct State {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Memory(memory::Memory),
    Redis(redis::Redis),
}

/// What [`State::open`] wants to know beside the URL.
#[derive(Clone, Debug, Default)]
pub struct StateOptions {
    /// Certificates (PEM) that are trusted over TLS instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Who sentinels want to hear, where that is not the default user.
    pub sentinel_user: Option<String>,
    /// What sentinels want to hear; the URL's password is for the servers alone.
    pub sentinel_password: Option<Secret>,
}

/// The settings are wrong; nothing was tried.
#[derive(Debug, thiserror::Error)]
#[error("the shared state can't be used: {0}")]
pub struct SetupError(String);

/// Calls since the start, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    pub failures: u64,
    /// All calls together; 0 in memory.
    pub time: Duration,
}

/// Why a call has failed: the other side does not answer. It may have been done.
#[derive(Debug, thiserror::Error)]
#[error("the shared state does not answer: {0}")]
pub struct StateError(pub String);

/// Who serves a name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Route {
    pub tunnel: Uuid,
    /// Of the claim; the highest one counts.
    pub epoch: u64,
    /// The edge that has a session of it.
    pub edge: String,
}

/// A session that serves a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Presence {
    pub session: Uuid,
    pub edge: String,
    pub epoch: u64,
    pub agent: String,
}

/// Running totals of a tunnel, or what is to be added to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub requests: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What comes from other edges, and from this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Message(String),
    /// Messages may have been missed: the connection was lost, or this receiver was too slow.
    Gap,
}

impl State {
    /// Connects, and stays connected as long as a clone lives, on the runtime that this is called on.
    /// When nobody answers within two seconds, it goes on without: then calls fail at once until
    /// somebody does ([`State::is_well`]).
    ///
    /// # Errors
    /// The options can't be used, such as a file that is not there.
    pub async fn open(url: &StateUrl, options: StateOptions) -> Result<Self, SetupError> {
        let backend = match &url.0 {
            Place::Memory => Backend::Memory(memory::Memory::new()),
            Place::Redis(servers) => Backend::Redis(redis::Redis::open(servers, options).await?),
        };
        Ok(Self { backend })
    }

    /// A state of this process alone, as behind `memory:`.
    pub fn in_memory() -> Self {
        Self { backend: Backend::Memory(memory::Memory::new()) }
    }

    /// Says that `route.edge` serves `name` for `ttl`; to be said again before that is over. `false`:
    /// a claim with a higher epoch is there, or an equal one of another edge, and nothing was changed.
    /// Atomic.
    pub async fn put_route(
        &self,
        name: &str,
        route: &Route,
        ttl: Duration,
    ) -> Result<bool, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.put_route(name, route, ttl)),
            Backend::Redis(redis) => redis.put_route(name, route, ttl).await,
        }
    }

    /// Who serves `name`, if anybody says so.
    pub async fn route(&self, name: &str) -> Result<Option<Route>, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.route(name)),
            Backend::Redis(redis) => redis.route(name).await,
        }
    }

    /// Takes back what `edge` has said with `epoch` or a lower one. Atomic.
    pub async fn drop_route(&self, name: &str, edge: &str, epoch: u64) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.drop_route(name, edge, epoch);
                Ok(())
            }
            Backend::Redis(redis) => redis.drop_route(name, edge, epoch).await,
        }
    }

    /// Says that a session serves `tunnel`, for `ttl`. Each session expires by itself.
    pub async fn put_session(
        &self,
        tunnel: Uuid,
        presence: &Presence,
        ttl: Duration,
    ) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.put_session(tunnel, presence, ttl);
                Ok(())
            }
            Backend::Redis(redis) => redis.put_session(tunnel, presence, ttl).await,
        }
    }

    /// The sessions that serve `tunnel`, on all edges; highest epoch first.
    pub async fn sessions(&self, tunnel: Uuid) -> Result<Vec<Presence>, StateError> {
        let mut sessions = match &self.backend {
            Backend::Memory(memory) => memory.sessions(tunnel),
            Backend::Redis(redis) => redis.sessions(tunnel).await?,
        };
        sessions.sort_unstable_by_key(|one| (std::cmp::Reverse(one.epoch), one.session));
        Ok(sessions)
    }

    /// The session has ended.
    pub async fn drop_session(&self, tunnel: Uuid, session: Uuid) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.drop_session(tunnel, session);
                Ok(())
            }
            Backend::Redis(redis) => redis.drop_session(tunnel, session).await,
        }
    }

    /// Adds to a tunnel's running totals, which are kept for a day after the last addition.
    pub async fn add_totals(&self, tunnel: Uuid, more: Totals) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.add_totals(tunnel, more);
                Ok(())
            }
            Backend::Redis(redis) => redis.add_totals(tunnel, more).await,
        }
    }

    /// A tunnel's running totals.
    pub async fn totals(&self, tunnel: Uuid) -> Result<Totals, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.totals(tunnel)),
            Backend::Redis(redis) => redis.totals(tunnel).await,
        }
    }

    /// Takes a lease on a part of the limit `key`: `edge` saw `demand` requests in the last
    /// interval. The answer is the part, from 0 to 1, that it may let through for `ttl`, such that
    /// the parts of all edges with a living lease add up to 1 at most. Parts follow the demand; an
    /// edge with little has at least a tenth of an even part, so that a sudden first request finds
    /// something. Atomic.
    pub async fn share(
        &self,
        key: &str,
        edge: &str,
        demand: u64,
        ttl: Duration,
    ) -> Result<f64, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.share(key, edge, demand, ttl)),
            Backend::Redis(redis) => redis.share(key, edge, demand, ttl).await,
        }
    }

    /// Says how many requests wait at `edge` for the agent of `tunnel`; 0 takes it back.
    pub async fn set_waiting(
        &self,
        tunnel: Uuid,
        edge: &str,
        waiting: u64,
        ttl: Duration,
    ) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.set_waiting(tunnel, edge, waiting, ttl);
                Ok(())
            }
            Backend::Redis(redis) => redis.set_waiting(tunnel, edge, waiting, ttl).await,
        }
    }

    /// How many requests wait for the agent of `tunnel`, by edge.
    pub async fn waiting(&self, tunnel: Uuid) -> Result<Vec<(String, u64)>, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.waiting(tunnel)),
            Backend::Redis(redis) => redis.waiting(tunnel).await,
        }
    }

    /// Takes the lock `name` for `ttl`, or takes it again if `holder` has it. The fence is higher
    /// than that of every holder before, and stays while the holder does. `None`: another one has it.
    /// Atomic.
    pub async fn lock(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.lock(name, holder, ttl)),
            Backend::Redis(redis) => redis.lock(name, holder, ttl).await,
        }
    }

    /// Gives the lock back, if `holder` still has it.
    pub async fn unlock(&self, name: &str, holder: &str) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.unlock(name, holder);
                Ok(())
            }
            Backend::Redis(redis) => redis.unlock(name, holder).await,
        }
    }

    /// Leaves `value` under `key` of `space` for `ttl`, over what was there.
    pub async fn mark(
        &self,
        space: &str,
        key: &str,
        value: &str,
        ttl: Duration,
    ) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.mark(space, key, value, ttl);
                Ok(())
            }
            Backend::Redis(redis) => redis.mark(space, key, value, ttl).await,
        }
    }

    /// Everything in `space` that has not expired: key, value, and how long it will stay.
    pub async fn marks(&self, space: &str) -> Result<Vec<(String, String, Duration)>, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.marks(space)),
            Backend::Redis(redis) => redis.marks(space).await,
        }
    }

    /// Takes a mark away; whether it was there.
    pub async fn unmark(&self, space: &str, key: &str) -> Result<bool, StateError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.unmark(space, key)),
            Backend::Redis(redis) => redis.unmark(space, key).await,
        }
    }

    /// Tells every edge, this one too. At most once: who is not connected misses it, and is told of
    /// the gap.
    pub async fn publish(&self, message: String) -> Result<(), StateError> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.publish(message);
                Ok(())
            }
            Backend::Redis(redis) => redis.publish(message).await,
        }
    }

    /// What is published from now on. A receiver that lags behind by 1,024 is told so.
    pub fn subscribe(&self) -> broadcast::Receiver<Told> {
        match &self.backend {
            Backend::Memory(memory) => memory.subscribe(),
            Backend::Redis(redis) => redis.subscribe(),
        }
    }

    /// Whether the other side answers now; always, in memory.
    pub fn is_well(&self) -> bool {
        match &self.backend {
            Backend::Memory(_) => true,
            Backend::Redis(redis) => redis.is_well(),
        }
    }

    /// How many calls there were, and how they went.
    pub fn counts(&self) -> Counts {
        match &self.backend {
            Backend::Memory(memory) => memory.counters().counts(),
            Backend::Redis(redis) => redis.counters().counts(),
        }
    }

    /// Whether other edges may be there.
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Redis(_))
    }
}

impl Totals {
    /// Numbers end where a 64-bit integer with a sign does.
    fn plus(self, more: Self) -> Self {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(i64::MAX as u64);
        Self {
            requests: sum(self.requests, more.requests),
            errors: sum(self.errors, more.errors),
            bytes_in: sum(self.bytes_in, more.bytes_in),
            bytes_out: sum(self.bytes_out, more.bytes_out),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
}

impl Counters {
    fn called(&self, took: Duration, failed: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(failed.into(), Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        Counts {
            calls: self.calls.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            time: Duration::from_micros(self.micros.load(Ordering::Relaxed)),
        }
    }
}

/// A time to live that every backend can take.
fn ttl(wanted: Duration) -> Duration {
    wanted.clamp(Duration::from_millis(1), LONGEST)
}
