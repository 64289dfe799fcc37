//! Metrics of what lasts: the store, the shared state, and what waits to be written there.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::{state::Counts, store::StoreFigures};

/// As it is when somebody asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DurableNow {
    pub(crate) rows_waiting: u64,
    pub(crate) rows_written: u64,
    /// Of requests above the log's rate.
    pub(crate) rows_left_out: u64,
    /// Because too many waited.
    pub(crate) rows_lost: u64,
    /// What sessions did, for the same reason.
    pub(crate) books_lost: u64,
    /// That other edges were not told of; they find them in the audit log.
    pub(crate) events_lost: u64,
    pub(crate) bans: u64,
    pub(crate) addresses: u64,
    pub(crate) store: StoreFigures,
    pub(crate) store_is_well: bool,
    pub(crate) state: Counts,
    pub(crate) state_is_well: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct DurableMetrics {
    rows_waiting: Gauge,
    rows_written: Counter,
    rows_left_out: Counter,
    rows_lost: Counter,
    books_lost: Counter,
    events_lost: Counter,
    bans: Gauge,
    addresses: Gauge,
    store_up: Gauge,
    store_calls: Counter,
    store_failures: Counter,
    store_connections: Gauge,
    store_wait_ms: Counter,
    state_up: Gauge,
    state_calls: Counter,
    state_failures: Counter,
    state_time_ms: Counter,
}

impl DurableMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let gauges = [
            (
                "request_rows_waiting",
                "Rows of requests that wait for the store",
                &self.rows_waiting,
            ),
            ("bans", "Addresses that are locked out now", &self.bans),
            ("addresses", "Visitors' addresses that are remembered now", &self.addresses),
            ("store_up", "Whether the last call of the store was answered", &self.store_up),
            ("store_connections", "Connections to the store in use now", &self.store_connections),
            ("state_up", "Whether the shared state answers", &self.state_up),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        let counters = [
            ("request_rows_written", "Rows of requests in the store", &self.rows_written),
            ("request_rows_left_out", "Rows above the log's rate", &self.rows_left_out),
            ("request_rows_lost", "Rows for which there was no room", &self.rows_lost),
            ("books_lost", "Notes on sessions for which there was no room", &self.books_lost),
            ("events_lost", "Events that other edges were not told of", &self.events_lost),
            ("store_calls", "Calls of the store", &self.store_calls),
            ("store_failures", "Calls of the store that failed", &self.store_failures),
            ("store_wait_milliseconds", "Waits for a connection to the store", &self.store_wait_ms),
            ("state_calls", "Calls of the shared state", &self.state_calls),
            ("state_failures", "Calls of the shared state that failed", &self.state_failures),
            ("state_milliseconds", "Time that calls of the shared state took", &self.state_time_ms),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
    }

    pub(super) fn set(&self, now: &DurableNow) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        // Counted elsewhere, and only ever more.
        let to = |counter: &Counter, value: u64| {
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        let millis =
            |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        set(&self.rows_waiting, now.rows_waiting);
        set(&self.bans, now.bans);
        set(&self.addresses, now.addresses);
        set(&self.store_up, now.store_is_well.into());
        set(&self.store_connections, now.store.in_use);
        set(&self.state_up, now.state_is_well.into());
        to(&self.rows_written, now.rows_written);
        to(&self.rows_left_out, now.rows_left_out);
        to(&self.rows_lost, now.rows_lost);
        to(&self.books_lost, now.books_lost);
        to(&self.events_lost, now.events_lost);
        to(&self.store_calls, now.store.calls);
        to(&self.store_failures, now.store.failures);
        to(&self.store_wait_ms, millis(now.store.waited));
        to(&self.state_calls, now.state.calls);
        to(&self.state_failures, now.state.failures);
        to(&self.state_time_ms, millis(now.state.time));
    }
}
