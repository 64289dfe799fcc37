//! What carries a session's bytes: a WebSocket over TCP or TLS.

pub mod upgrade;
pub mod ws;
