//! Metrics of live updates.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WatchMetrics {
    /// Connections that began.
    pub(crate) opened: Counter,
    /// The same, ended.
    pub(crate) closed: Counter,
    /// Those of them that were dropped since they did not keep up.
    pub(crate) lagged: Counter,
}

impl WatchMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let counters = [
            ("watchers_opened", "Connections for live updates begun", &self.opened),
            ("watchers_closed", "Connections for live updates ended", &self.closed),
            ("watchers_lagged", "Those that were dropped as too slow", &self.lagged),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
    }
}
