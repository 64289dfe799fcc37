//! The wire contract between agent and edge: generated messages, length-delimited control frames,
//! the framing of request streams and the handshake. No I/O, no clock.
//!
//! `PROTOCOL.md` beside this crate describes the same in words, for agents in other languages.
#![warn(missing_docs)]

pub mod codec;
pub mod handshake;
pub mod head;
mod redacted;

/// Messages generated from `agent.proto`.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    reason = "generated; documented in agent.proto"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/uniroute.v1.rs"));
}

pub use prost::Message;

/// The only protocol version so far.
pub const VERSION: u32 = 1;

/// The WebSocket subprotocol that names this protocol.
pub const SUBPROTOCOL: &str = "uniroute.v1";

/// The feature of sessions over several connections: both sides follow a body that has moved to a
/// lane.
pub const FEATURE_LANES: &str = "lanes";

/// The feature of tunnels with an `HttpPolicy`: an edge without it would let everybody through.
pub const FEATURE_HTTP_POLICY: &str = "http-policy";

/// The feature of tunnels with `TunnelLimits`: an edge without it would let in any number.
pub const FEATURE_TUNNEL_LIMITS: &str = "tunnel-limits";

/// Where agents connect, on the edge's own host.
pub const TUNNEL_PATH: &str = "/tunnel";
