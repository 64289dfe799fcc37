//! What carries a session's bytes: a WebSocket over TCP or TLS, or QUIC.

pub mod quic;
pub mod upgrade;
pub mod ws;
