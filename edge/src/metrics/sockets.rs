//! Metrics of TCP, TLS and UDP tunnels.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::registry::ports::Kind;

/// Of a connection or flow: what its tunnel carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// The same, and which way bytes went: `in` is from the visitor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    kind: &'static str,
    direction: &'static str,
}

/// Of a datagram that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SocketMetrics {
    opened: Family<KindLabels, Counter>,
    closed: Family<KindLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    /// Datagrams from visitors that were passed on.
    pub(crate) datagrams_in: Counter,
    /// The same to visitors.
    pub(crate) datagrams_out: Counter,
    dropped: Family<DropLabels, Counter>,
}

impl SocketMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let opened = "Connections and flows of TCP, TLS and UDP tunnels begun";
        r.register("socket_connections_opened", opened, self.opened.clone());
        let closed = "Connections and flows of TCP, TLS and UDP tunnels ended";
        r.register("socket_connections_closed", closed, self.closed.clone());
        let bytes = "Bytes of TCP, TLS and UDP tunnels; in is from visitors";
        r.register("socket_bytes", bytes, self.bytes.clone());
        r.register("datagrams_in", "Datagrams from visitors passed on", self.datagrams_in.clone());
        r.register("datagrams_out", "Datagrams to visitors passed on", self.datagrams_out.clone());
        let dropped = "Datagrams of UDP tunnels that were dropped";
        r.register("datagrams_dropped", dropped, self.dropped.clone());
    }

    /// The counters of one connection or flow, which begins with it and ends when it is dropped.
    pub(crate) fn open(&self, kind: Kind) -> Traffic {
        let kind = kind.as_str();
        let bytes = |direction| counter(&self.bytes, &DirectionLabels { kind, direction });
        counter(&self.opened, &KindLabels { kind }).inc();
        Traffic {
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            closed: counter(&self.closed, &KindLabels { kind }),
        }
    }

    /// A datagram was dropped.
    pub(crate) fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }
}

/// The counter itself: what a family gives is a lock, and two of them in one expression never end.
fn counter<L>(family: &Family<L, Counter>, labels: &L) -> Counter
where
    L: Clone + Eq + std::hash::Hash,
{
    family.get_or_create(labels).clone()
}

/// See [`SocketMetrics::open`].
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    closed: Counter,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.closed.inc();
    }
}
