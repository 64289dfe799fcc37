//! Whether local servers answer: checks, their history, and who hears of a change.

use std::time::Duration;

/// How a local server's health is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is done; `None`: only what requests show counts.
    pub probe: Option<HealthProbe>,
    /// Time between two checks.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failures in a row that make a local server unhealthy.
    pub fall: u32,
    /// Successes in a row that make it healthy again.
    pub rise: u32,
}

/// One way to look at a local server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// It takes a connection.
    Tcp,
    /// It answers a GET for `path` with a status from 200 to 399, or with `status`.
    Http {
        /// Path and query.
        path: String,
        /// The only status that will do.
        status: Option<u16>,
    },
}
