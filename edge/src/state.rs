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
//!
//! The braces are a part of the keys: in Redis Cluster they say which part chooses the slot, so all
//! keys of a tunnel are on one server, and no script touches two slots.

mod memory;
mod redis;

use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;

/// What is shared between edges. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct State {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Memory(memory::Memory),
    Redis(redis::Redis),
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
    /// Says that `route.edge` serves `name` for `ttl`; to be said again before that is over. `false`:
    /// a claim with a higher epoch is there, and nothing was changed. Atomic.
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
    pub async fn drop_route(
        &self,
        name: &str,
        edge: &str,
        epoch: u64,
    ) -> Result<(), StateError> {
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
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.sessions(tunnel)),
            Backend::Redis(redis) => redis.sessions(tunnel).await,
        }
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
    pub async fn marks(
        &self,
        space: &str,
    ) -> Result<Vec<(String, String, Duration)>, StateError> {
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

    /// Whether other edges may be there.
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Redis(_))
    }
}
