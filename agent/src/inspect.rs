//! The inspector: the last requests and their answers, kept in bounded memory for somebody to look at.
//!
//! On the way of a request nothing is formatted, searched, redacted or hashed: its head is kept as the
//! bytes that came, and of its bodies a bounded beginning. All else happens when somebody looks, on a
//! thread apart. Nothing of it leaves this machine.
//!
//! [`capture`] is what requests touch, [`view`] reads it, and the other modules are ways to show it.

mod capture;
mod curl;
mod decode;
mod diff;
mod frames;
mod har;
mod query;
mod redact;
mod replay;
mod spool;
mod view;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::{
    capture::{Capture, Record, Side, Tap, Tapped},
    curl::command as curl,
    diff::diff,
    har::{date, entry as har_entry, frame as har_frame},
    query::Query,
    replay::{Changes as Replayed, MAX_REPLAYS, Replay, ReplayError, start as replay},
    spool::Figures as SpoolFigures,
    view::{View, sha256, shown},
};
use self::{redact::Redactor, spool::Spool};

/// Changes that wait for those who watch; who lags further begins anew.
const MAX_CHANGES: usize = 4096;

/// Digits of an id that may stand for it.
const MIN_ID: usize = 4;

/// What the inspector keeps at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub max_requests: usize,
    /// Bytes in memory, of all requests together.
    pub max_bytes: usize,
    /// Bytes of each body that are kept in memory: its beginning.
    pub max_body: usize,
    /// Bodies that are longer go to disk, whole.
    pub spool: bool,
    /// The folder for them; `None`: the system's folder for temporary files.
    pub spool_dir: Option<PathBuf>,
    /// Bytes on disk, of all bodies together.
    pub max_spool: u64,
    /// Fields and parameters whose values are not shown, beside those that look like secrets.
    pub redact: Vec<String>,
    /// Secrets are shown as they are.
    pub show_secrets: bool,
    /// Requests may be replayed to any host, and not only to this machine and to the local servers of
    /// the agent's tunnels.
    pub remote_replay: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_requests: 10_000,
            max_bytes: 64 * 1024 * 1024,
            max_body: 64 * 1024,
            spool: false,
            spool_dir: None,
            max_spool: 4 * 1024 * 1024 * 1024,
            redact: Vec::new(),
            show_secrets: false,
            remote_replay: false,
        }
    }
}

/// The requests that are kept.
#[derive(Debug)]
pub(crate) struct Inspector {
    pub(crate) limits: Limits,
    pub(crate) redactor: Redactor,
    /// The same moment on both clocks; the second in milliseconds since 1970.
    began: (Instant, f64),
    recording: AtomicBool,
    bytes: AtomicUsize,
    /// What the last answer needed: the next one will need as much.
    expected: AtomicUsize,
    kept: Mutex<Kept>,
    /// Somebody wants to hear of changes.
    watchers: AtomicUsize,
    pub(crate) changed: Notify,
    spool: Option<Spool>,
    /// Replays under way.
    pub(crate) replays: Arc<tokio::sync::Semaphore>,
    /// Bodies that are decompressed at a time.
    pub(crate) decoding: Mutex<()>,
    missed: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    /// The number of the last one.
    last: u64,
    /// Those that are under way, by the place that their capture knows.
    open: Vec<Option<Arc<Record>>>,
    free: Vec<usize>,
    /// In the order in which they ended.
    finished: VecDeque<Arc<Record>>,
    evicted: u64,
    /// While somebody watches: what has changed, and whether some of it was dropped.
    changes: Vec<Arc<Record>>,
    lagged: bool,
}

/// What has changed since the last look.
pub(crate) struct Changes {
    pub(crate) records: Vec<Arc<Record>>,
    /// Some are missing, or all were forgotten: begin anew.
    pub(crate) reset: bool,
}

impl Inspector {
    /// # Errors
    /// When the folder for long bodies can't be made.
    pub(crate) fn new(limits: Limits) -> std::io::Result<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let spool = limits.spool.then(|| Spool::new(&limits)).transpose()?;
        Ok(Self {
            redactor: Redactor::new(&limits),
            began: (Instant::now(), since.as_secs_f64() * 1e3),
            recording: AtomicBool::new(true),
            bytes: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            kept: Mutex::default(),
            watchers: AtomicUsize::new(0),
            changed: Notify::new(),
            spool,
            replays: Arc::new(tokio::sync::Semaphore::new(MAX_REPLAYS)),
            decoding: Mutex::new(()),
            missed: AtomicU64::new(0),
            limits,
        })
    }

    /// Whether requests are kept now.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    /// Keeps requests from now on, or no more.
    pub(crate) fn record(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    /// Bytes that an answer's head and the beginning of its body will need, by what the last one did.
    fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    fn expect(&self, bytes: usize) {
        self.expected.store(bytes, Ordering::Relaxed);
    }

    /// Milliseconds since 1970.
    pub(crate) fn wall_ms(&self, at: Instant) -> f64 {
        let (instant, wall) = self.began;
        // To the microsecond; a f64 holds no more.
        let since = at.saturating_duration_since(instant).as_micros();
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a process fit")]
        let ms = wall + since as f64 / 1e3;
        (ms * 1e3).round() / 1e3
    }

    /// Takes in a request that begins; `None`: too many are under way.
    fn begin(&self, record: impl FnOnce(u64) -> Arc<Record>) -> Option<(Arc<Record>, usize)> {
        let mut kept = self.kept.lock();
        let open = kept.open.len() - kept.free.len();
        if open >= self.limits.max_requests {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        kept.last += 1;
        let record = record(kept.last);
        let slot = match kept.free.pop() {
            Some(slot) => {
                kept.open[slot] = Some(Arc::clone(&record));
                slot
            }
            None => {
                kept.open.push(Some(Arc::clone(&record)));
                kept.open.len() - 1
            }
        };
        let bytes = self.bytes.fetch_add(record.charged(), Ordering::Relaxed) + record.charged();
        if bytes > self.limits.max_bytes || open + kept.finished.len() >= self.limits.max_requests {
            self.evict(&mut kept);
        }
        self.note_locked(&mut kept, &record);
        Some((record, slot))
    }

    fn end(&self, slot: usize) {
        let mut kept = self.kept.lock();
        if let Some(record) = kept.open.get_mut(slot).and_then(Option::take) {
            kept.free.push(slot);
            self.note_locked(&mut kept, &record);
            // Forgotten meanwhile.
            if !record.is_gone() {
                kept.finished.push_back(record);
            }
        }
    }

    /// Forgets the oldest that have ended, until the limits hold.
    fn evict(&self, kept: &mut Kept) {
        let open = kept.open.len() - kept.free.len();
        while self.bytes.load(Ordering::Relaxed) > self.limits.max_bytes
            || open + kept.finished.len() > self.limits.max_requests
        {
            let Some(record) = kept.finished.pop_front() else { return };
            self.give_room(record.forget());
            kept.evicted += 1;
        }
    }

    /// Takes room for bytes more, from those that ended first if need be; whether there is room.
    fn take_room(&self, bytes: usize) -> bool {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limits.max_bytes {
            return true;
        }
        self.evict(&mut self.kept.lock());
        let fits = self.bytes.load(Ordering::Relaxed) <= self.limits.max_bytes;
        if !fits {
            self.give_room(bytes);
        }
        fits
    }

    fn give_room(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Tells those who watch.
    fn note(&self, record: &Arc<Record>) {
        if self.watchers.load(Ordering::Relaxed) > 0 {
            self.note_locked(&mut self.kept.lock(), record);
        }
    }

    fn note_locked(&self, kept: &mut Kept, record: &Arc<Record>) {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        if kept.changes.len() < MAX_CHANGES {
            kept.changes.push(Arc::clone(record));
        } else {
            kept.lagged = true;
        }
        self.changed.notify_one();
    }

    /// Changes are noted while the value lives; one at a time takes them.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watch(Arc::clone(self))
    }

    fn take_changes(&self) -> Changes {
        let mut kept = self.kept.lock();
        let reset = std::mem::take(&mut kept.lagged);
        Changes { records: std::mem::take(&mut kept.changes), reset }
    }

    /// All that are kept, the newest first.
    pub(crate) fn all(&self) -> Vec<Arc<Record>> {
        let kept = self.kept.lock();
        let mut all = Vec::with_capacity(kept.open.len() + kept.finished.len());
        all.extend(kept.open.iter().flatten().filter(|record| !record.is_gone()).cloned());
        all.extend(kept.finished.iter().cloned());
        drop(kept);
        all.sort_unstable_by_key(|record| std::cmp::Reverse(record.seq));
        all
    }

    /// The newest request with this id, or whose id begins so.
    pub(crate) fn find(&self, id: &str) -> Option<View> {
        let Some(id) = view::id_bytes(id) else {
            if id.len() < MIN_ID || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            let id = id.to_ascii_lowercase();
            let mut views = self.all().into_iter().map(|record| View::new(&record, self));
            return views.find(|view| view.id().starts_with(&id));
        };
        self.all().iter().filter(|record| record.may_be(&id)).find_map(|record| {
            let view = View::new(record, self);
            (view.open.request_id == id[..]).then_some(view)
        })
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        let (finished, open) = {
            let mut kept = self.kept.lock();
            let open: Vec<_> = kept.open.iter().flatten().cloned().collect();
            if self.watchers.load(Ordering::Relaxed) > 0 {
                kept.changes.clear();
                kept.lagged = true;
                self.changed.notify_one();
            }
            (std::mem::take(&mut kept.finished), open)
        };
        for record in finished {
            self.give_room(record.forget());
        }
        for record in open {
            self.give_room(record.forget_open());
        }
    }

    /// Keeps nothing more, and leaves nothing on disk.
    pub(crate) fn close(&self) {
        self.record(false);
        if let Some(spool) = &self.spool {
            spool.close();
        }
    }

    /// The number of the newest request.
    pub(crate) fn latest(&self) -> u64 {
        self.kept.lock().last
    }

    /// How much is kept.
    pub(crate) fn figures(&self) -> Figures {
        let kept = self.kept.lock();
        let open = kept.open.iter().flatten().filter(|record| !record.is_gone()).count();
        let (captured, evicted, begun) = (open + kept.finished.len(), kept.evicted, kept.last);
        drop(kept);
        Figures {
            captured,
            begun,
            bytes: self.bytes.load(Ordering::Relaxed),
            evicted,
            missed: self.missed.load(Ordering::Relaxed),
            replays: MAX_REPLAYS - self.replays.available_permits(),
            spool: self.spool.as_ref().map(Spool::figures),
            recording: self.is_recording(),
        }
    }

    /// The same for the status.
    pub(crate) fn summary(&self) -> serde_json::Value {
        let now = self.figures();
        serde_json::json!({
            "captured": now.captured,
            "bytes": now.bytes,
            "max_requests": self.limits.max_requests,
            "max_bytes": self.limits.max_bytes,
            "evicted": now.evicted,
            "missed": now.missed,
            "spool": now.spool.is_some(),
            "spool_bytes": now.spool.map_or(0, |spool| spool.on_disk),
            "recording": now.recording,
        })
    }
}

/// How much is kept, and what was not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) captured: usize,
    /// All that were ever kept.
    pub(crate) begun: u64,
    pub(crate) bytes: usize,
    pub(crate) evicted: u64,
    pub(crate) missed: u64,
    pub(crate) replays: usize,
    /// Where long bodies go to disk.
    pub(crate) spool: Option<SpoolFigures>,
    pub(crate) recording: bool,
}

/// Any bytes into any of the decoders of what is captured; the first two choose.
#[cfg(fuzzing)]
pub(crate) fn try_out(data: &[u8]) {
    let [which, step, bytes @ ..] = data else { return };
    match which % 4 {
        0 => decode::try_out(*step, bytes),
        which => frames::try_out(which, bytes, usize::from(*step)),
    }
}

/// Changes are noted while it lives.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Inspector>);

impl Watch {
    /// What has changed since the last call.
    pub(crate) fn take(&self) -> Changes {
        self.0.take_changes()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.0.watchers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.kept.lock().changes = Vec::new();
        }
    }
}
