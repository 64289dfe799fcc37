//! What one run of the load generator says, as JSON between its process and `e2e`.

use serde::{Deserialize, Serialize};

/// Small requests in a closed loop.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RequestsReport {
    /// All answered requests, those that ended after the time was up included.
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Requests answered within the time, by second.
    pub(crate) rps: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) errors: u64,
    /// Connections that the other side had ended between two requests.
    pub(crate) reconnects: u64,
    pub(crate) first_error: Option<String>,
}

/// Long bodies, one way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BulkReport {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Millions of bytes by second, all streams together, once they had settled.
    pub(crate) mb_per_s: f64,
    /// The same while they settled, if any time was given for it.
    pub(crate) settling_mb_per_s: Option<f64>,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}
