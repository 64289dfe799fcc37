//! What an agent is doing, as its local API and `uniroute status` tell it.

use std::time::SystemTime;

use serde::Serialize;

/// An agent at one moment. Times are milliseconds since 1970.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Which agent this is.
    pub agent_id: String,
    /// Its software's version.
    pub version: &'static str,
    /// When it began.
    pub started_ms: u64,
    /// Its sessions; none while it is not connected.
    pub sessions: Vec<SessionStatus>,
    /// Why there is no session, in words; empty while there is one.
    pub trouble: String,
    /// Its tunnels, by their keys.
    pub tunnels: Vec<TunnelStatus>,
}

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionStatus {
    /// The edge's name for itself.
    pub edge: String,
    /// Its URL as it was configured.
    pub server: String,
    /// What carries it: `websocket` or `quic`.
    pub carrier: &'static str,
    /// When it began.
    pub since_ms: u64,
    /// The time to the edge and back in microseconds; 0: not measured yet.
    pub rtt_us: u64,
}

/// A tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct TunnelStatus {
    /// The agent's word for it.
    pub key: String,
    /// What it carries.
    pub kind: &'static str,
    /// Its public name; empty while it has none.
    pub name: String,
    /// Where visitors find it; empty while it is not known.
    pub url: String,
    /// Whether it takes requests.
    pub state: TunnelState,
    /// Why it does not, in words.
    pub reason: String,
    /// Its local servers, the default route's first.
    pub upstreams: Vec<UpstreamStatus>,
    /// Requests and connections since the agent began.
    pub requests: u64,
    /// Of those, the ones that the local server gave no answer to.
    pub failed: u64,
    /// Those that are open now.
    pub open: u64,
}

/// Whether a tunnel takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelState {
    /// It has no session yet, or none now.
    Waiting,
    /// It takes requests.
    Ready,
    /// Its owner lets nobody in.
    Paused,
    /// The edge does not give it.
    Refused,
    /// Its owner has deleted it.
    Deleted,
}

/// A local server.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamStatus {
    /// Where it is.
    pub url: String,
    /// What is known of it: whether it answers, or nothing yet.
    pub healthy: Option<bool>,
    /// Why it does not, in words.
    pub reason: String,
    /// Since when that is so.
    pub since_ms: u64,
    /// The last changes, the latest last.
    pub history: Vec<HealthChange>,
}

/// A change of a local server's health.
#[derive(Clone, Debug, Serialize)]
pub struct HealthChange {
    /// When.
    pub at_ms: u64,
    /// To what.
    pub healthy: bool,
    /// Why, in words.
    pub reason: String,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
