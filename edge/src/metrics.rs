//! Every metric of the edge. Counters come in pairs (opened, closed); labels are of closed sets.

mod durable;
mod sockets;
mod watch;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use uniroute_shared::{code::Code, session::Carrier};

use self::{durable::DurableMetrics, watch::WatchMetrics};
pub(crate) use self::{
    durable::DurableNow,
    sockets::{SocketMetrics, Traffic},
};

/// Of a failure: the table's number and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: String,
    reason: &'static str,
}

/// Of a session: what carries it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CarrierLabels {
    carrier: &'static str,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Requests that came in, whatever became of them.
    pub(crate) requests: Counter,
    failures: Family<CodeLabels, Counter>,
    /// Agent connections that were upgraded.
    pub(crate) sessions_opened: Counter,
    /// The same, ended.
    pub(crate) sessions_closed: Counter,
    /// Connections that became lanes of a session.
    pub(crate) lanes_opened: Counter,
    /// The same, ended.
    pub(crate) lanes_closed: Counter,
    /// Requests that waited for their agent.
    pub(crate) held: Counter,
    /// Control frames of a kind that this edge does not know.
    pub(crate) unknown_frames: Counter,
    /// Of what is not HTTP.
    pub(crate) sockets: SocketMetrics,
    /// Minutes of tunnels that the store never got.
    pub(crate) minutes_lost: Counter,
    /// Of live updates.
    pub(crate) watch: WatchMetrics,
    durable: DurableMetrics,
    sessions: Gauge,
    sessions_by_carrier: Family<CarrierLabels, Gauge>,
    names: Gauge,
    tasks: Gauge,
    connections: Gauge,
    waiting: Gauge,
    windows: Gauge,
}

/// What is only looked at when somebody asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) sessions: usize,
    /// Those of them over QUIC.
    pub(crate) over_quic: usize,
    pub(crate) names: usize,
    pub(crate) tasks: usize,
    pub(crate) connections: usize,
    /// Requests that wait for their agent.
    pub(crate) waiting: usize,
    pub(crate) window_bytes: u64,
    pub(crate) durable: DurableNow,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("uniroute_edge"),
            requests: Counter::default(),
            failures: Family::default(),
            sessions_opened: Counter::default(),
            sessions_closed: Counter::default(),
            lanes_opened: Counter::default(),
            lanes_closed: Counter::default(),
            held: Counter::default(),
            unknown_frames: Counter::default(),
            sockets: SocketMetrics::default(),
            minutes_lost: Counter::default(),
            watch: WatchMetrics::default(),
            durable: DurableMetrics::default(),
            sessions: Gauge::default(),
            sessions_by_carrier: Family::default(),
            names: Gauge::default(),
            tasks: Gauge::default(),
            connections: Gauge::default(),
            waiting: Gauge::default(),
            windows: Gauge::default(),
        };
        let r = &mut metrics.registry;
        r.register("requests", "Requests that came in", metrics.requests.clone());
        r.register("failures", "Failures by their code", metrics.failures.clone());
        r.register(
            "sessions_opened",
            "Agent connections upgraded",
            metrics.sessions_opened.clone(),
        );
        r.register("sessions_closed", "Agent connections ended", metrics.sessions_closed.clone());
        r.register("lanes_opened", "Connections that became lanes", metrics.lanes_opened.clone());
        r.register("lanes_closed", "Lanes ended", metrics.lanes_closed.clone());
        r.register(
            "unknown_control_frames",
            "Control frames skipped",
            metrics.unknown_frames.clone(),
        );
        metrics.sockets.register(r);
        metrics.durable.register(r);
        metrics.watch.register(r);
        let lost = "Minutes of tunnels that were lost while the store was away";
        r.register("request_minutes_lost", lost, metrics.minutes_lost.clone());
        r.register("sessions", "Sessions that are ready now", metrics.sessions.clone());
        r.register(
            "sessions_by_carrier",
            "Sessions that are ready now, by what carries them",
            metrics.sessions_by_carrier.clone(),
        );
        r.register("names", "Names held now, served or not", metrics.names.clone());
        r.register("tasks", "Tasks alive now", metrics.tasks.clone());
        r.register("held", "Requests that waited for their agent", metrics.held.clone());
        r.register("waiting", "Requests that wait for their agent now", metrics.waiting.clone());
        r.register("connections", "Connections open now", metrics.connections.clone());
        r.register(
            "window_bytes",
            "Receive windows granted now over WebSocket; they stop growing at 1 GiB",
            metrics.windows.clone(),
        );
        metrics
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, code: &'static Code) {
        let labels = CodeLabels { code: code.to_string(), reason: code.name };
        self.failures.get_or_create(&labels).inc();
    }

    /// All of it, in Prometheus' (OpenMetrics) text form.
    pub(crate) fn render(&self, now: Now) -> String {
        let set = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.sessions, now.sessions);
        for (carrier, count) in
            [(Carrier::Quic, now.over_quic), (Carrier::WebSocket, now.sessions - now.over_quic)]
        {
            let labels = CarrierLabels { carrier: carrier.as_str() };
            set(&self.sessions_by_carrier.get_or_create(&labels), count);
        }
        self.durable.set(&now.durable);
        set(&self.names, now.names);
        set(&self.tasks, now.tasks);
        set(&self.connections, now.connections);
        set(&self.waiting, now.waiting);
        self.windows.set(i64::try_from(now.window_bytes).unwrap_or(i64::MAX));
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a String takes everything");
        out
    }
}
