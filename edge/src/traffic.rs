//! What went through tunnels: counts and times of every request, and a row for most of them.
//!
//! Counting is a few atomics on the tunnel. A row goes into a bounded queue, which a task of the edge
//! empties into the store in batches; so does it with the counts, as minutes. While the store is
//! away, both wait, within bounds. Above [`Log::rows_per_second`] rows are left out evenly; counts
//! never are. Everything left out or lost is counted.

mod row;
pub(crate) mod writer;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use uniroute_shared::{code::Code, id::RequestId};

use self::row::{MAX_ROW, Row};
use crate::{
    histogram::{Histogram, Live, Snapshot},
    limits::Gate,
    registry::Tunnel,
    state::Totals,
    watch::Watched,
};

/// Rows that wait for the store.
const MAX_ROWS: usize = 200_000;
/// Bytes of them.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a tunnel's requests came to. Only ever grows.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    busy: OnceLock<Box<Busy>>,
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Something came since the writer looked.
    dirty: AtomicBool,
}

/// What only a tunnel with requests has.
#[derive(Debug, Default)]
struct Busy {
    took: Live,
    /// As it was when the minute began that is being written.
    minute: Mutex<Option<Minute>>,
    /// What the shared state was told of.
    told: Mutex<Totals>,
    /// What those were told who watch.
    watched: Watched,
}

/// Everything counted up to one moment.
#[derive(Clone, Debug)]
struct Minute {
    requests: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    took: Snapshot,
}

/// What came between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) took: Histogram,
}

impl Counts {
    fn busy(&self) -> &Busy {
        self.busy.get_or_init(Box::default)
    }

    /// What those were told who watch the tunnel.
    pub(crate) fn watched(&self) -> &Watched {
        &self.busy().watched
    }

    fn now(&self) -> Minute {
        // Bytes of a request that is under way may come before the request itself.
        Minute {
            took: self.busy().took.snapshot(),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// What has come in the minute that is being written.
    pub(crate) fn this_minute(&self) -> Traffic {
        if self.busy.get().is_none() {
            return Traffic::default();
        }
        let now = self.now();
        let minute = self.busy().minute.lock();
        now.since(minute.as_ref())
    }

    /// What the shared state is not told of; it is, from now on.
    fn take_untold(&self) -> Totals {
        let mut told = self.busy().told.lock();
        let now = Totals {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        };
        let before = std::mem::replace(&mut *told, now);
        Totals {
            requests: now.requests - before.requests,
            errors: now.errors - before.errors,
            bytes_in: now.bytes_in - before.bytes_in,
            bytes_out: now.bytes_out - before.bytes_out,
        }
    }

    /// It was not told after all.
    fn give_untold(&self, more: Totals) {
        let mut told = self.busy().told.lock();
        told.requests -= more.requests;
        told.errors -= more.errors;
        told.bytes_in -= more.bytes_in;
        told.bytes_out -= more.bytes_out;
    }

    /// Ends the minute: what comes from now on is the next one's.
    fn end_minute(&self) -> Traffic {
        let now = self.now();
        let mut minute = self.busy().minute.lock();
        let traffic = now.since(minute.as_ref());
        *minute = Some(now);
        traffic
    }
}

impl Minute {
    fn since(&self, earlier: Option<&Self>) -> Traffic {
        let Some(earlier) = earlier else {
            return Traffic {
                requests: self.requests,
                errors: self.errors,
                bytes_in: self.bytes_in,
                bytes_out: self.bytes_out,
                took: self.took.since(&Snapshot::empty()),
            };
        };
        Traffic {
            requests: self.requests - earlier.requests,
            errors: self.errors - earlier.errors,
            bytes_in: self.bytes_in - earlier.bytes_in,
            bytes_out: self.bytes_out - earlier.bytes_out,
            took: self.took.since(&earlier.took),
        }
    }
}

impl Traffic {
    fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.errors += more.errors;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.took.merge(&more.took);
    }
}

/// How requests are written down.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Rows of requests a second, of the whole edge; what is above is left out. `None`: no limit;
    /// 0: none are written.
    pub rows_per_second: Option<u32>,
    /// How often what was counted is written.
    pub flush: Duration,
}

impl Default for Log {
    fn default() -> Self {
        Self { rows_per_second: Some(1_000), flush: Duration::from_secs(2) }
    }
}

/// A request that is over.
pub(crate) struct Finished<'a> {
    pub(crate) id: RequestId,
    pub(crate) method: &'a Bytes,
    pub(crate) target: &'a Bytes,
    pub(crate) visitor: &'a str,
    /// Of the answer that the visitor got; `None`: he got none, or not to its end.
    pub(crate) status: Option<u16>,
    /// An error of ours that he got instead.
    pub(crate) error: Option<&'static Code>,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl Finished<'_> {
    /// The request as the API tells it, and as it is written down.
    pub(crate) fn told(&self, tunnel: &Tunnel) -> serde_json::Value {
        let took = self.ended.saturating_duration_since(self.began);
        let row = Row::new(tunnel.id, self, took);
        serde_json::json!({
            "request_id": row.id.to_string(),
            "method": row.method,
            "path": row.path,
            "status": row.status,
            "error": self.error.map(ToString::to_string),
            "duration_ms": u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            "request_bytes": row.bytes_in,
            "response_bytes": row.bytes_out,
            "visitor": row.visitor,
        })
    }
}

/// What waits to be written.
#[derive(Debug)]
pub(crate) struct Journal {
    gate: Gate,
    writes: bool,
    queue: Mutex<Queue>,
    /// Tunnels with something to write.
    dirty: Mutex<Vec<Arc<Tunnel>>>,
    pub(crate) left_out: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) written: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    rows: Vec<Row>,
    bytes: usize,
}

impl Journal {
    pub(crate) fn new(log: &Log) -> Self {
        Self {
            gate: Gate::new(log.rows_per_second.filter(|rate| *rate > 0)),
            writes: log.rows_per_second != Some(0),
            queue: Mutex::default(),
            dirty: Mutex::default(),
            left_out: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Takes a request down that has just ended.
    pub(crate) fn finished(&self, tunnel: &Arc<Tunnel>, request: &Finished<'_>) {
        let now = request.ended;
        let took = now.saturating_duration_since(request.began);
        let counts = &tunnel.counts;
        counts.busy().took.add(took.as_micros());
        counts.requests.fetch_add(1, Ordering::Relaxed);
        if request.error.is_some() || request.status.is_none_or(|status| status >= 500) {
            counts.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.touch(tunnel);
        if !self.writes || self.gate.pass(now).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let row = Row::new(tunnel.id, request, took);
        let mut queue = self.queue.lock();
        if queue.rows.len() >= MAX_ROWS || queue.bytes + MAX_ROW > MAX_BYTES {
            drop(queue);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes += row.size();
        queue.rows.push(row);
    }

    /// Takes a connection down that has just ended, of a kind without requests.
    pub(crate) fn connected(&self, tunnel: &Arc<Tunnel>) {
        tunnel.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.touch(tunnel);
    }

    /// Something was counted for `tunnel`.
    pub(crate) fn touch(&self, tunnel: &Arc<Tunnel>) {
        let dirty = &tunnel.counts.dirty;
        if !dirty.load(Ordering::Relaxed) && !dirty.swap(true, Ordering::Relaxed) {
            self.dirty.lock().push(Arc::clone(tunnel));
        }
    }

    /// Rows that wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.lock().rows.len()
    }

    fn take_rows(&self) -> Vec<Row> {
        let mut queue = self.queue.lock();
        queue.bytes = 0;
        std::mem::take(&mut queue.rows)
    }

    /// Puts rows back that could not be written, in front; what has no room is lost.
    fn give_back(&self, mut rows: Vec<Row>) {
        let mut queue = self.queue.lock();
        let newer = std::mem::take(&mut queue.rows);
        rows.extend(newer);
        let mut bytes = 0;
        let fits = |row: &Row| {
            bytes += row.size();
            bytes <= MAX_BYTES
        };
        let room = rows.iter().map(fits).take(MAX_ROWS).take_while(|fits| *fits).count();
        let lost = rows.len() - room;
        rows.truncate(room);
        queue.bytes = rows.iter().map(Row::size).sum();
        queue.rows = rows;
        drop(queue);
        self.lost.fetch_add(lost as u64, Ordering::Relaxed);
    }

    fn take_dirty(&self) -> Vec<Arc<Tunnel>> {
        std::mem::take(&mut *self.dirty.lock())
    }
}
