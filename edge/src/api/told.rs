//! Rows as the API tells them, for those that are told without asking.

use serde_json::Value;

use super::{operators::Session, statistics::StatsAnswer, tunnels::Tunnel};
use crate::{
    services::statistics::Stats,
    store::{SessionRow, TunnelRow},
};

/// A tunnel.
pub(crate) fn tunnel_told(row: TunnelRow) -> Value {
    serde_json::to_value(Tunnel::from(row)).unwrap_or_default()
}

/// A session, and one tunnel that it serves.
pub(crate) fn session_told(row: SessionRow) -> Value {
    serde_json::to_value(Session::from(row)).unwrap_or_default()
}

/// How a tunnel does.
pub(crate) fn stats_told(stats: Stats) -> Value {
    serde_json::to_value(StatsAnswer::from(stats)).unwrap_or_default()
}
