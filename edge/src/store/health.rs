//! How the store is doing, for health and metrics.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

use super::{StoreError, Timestamp};

/// What is counted of a store's calls; read without waiting for anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Calls that have ended.
    pub calls: u64,
    /// Those that failed by the database's fault or ours; a row that was refused is none.
    pub failures: u64,
    /// Waited for a connection, all calls together.
    pub waited: Duration,
    /// Connections that are at work now.
    pub in_use: u64,
}

/// When the store was last seen to work, and not to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    pub last_success: Option<Timestamp>,
    pub last_failure: Option<Timestamp>,
    /// Of the last failure.
    pub reason: Option<String>,
    /// The last write found no room, or was not allowed; that reads work says nothing of writes.
    pub unwritable: bool,
}

impl StoreHealth {
    /// Whether what happened last was a success, or nothing, and it can be written to.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.unwritable && (self.last_failure.is_none() || self.last_success > self.last_failure)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    waited_us: AtomicU64,
    in_use: AtomicU64,
    /// 0: never.
    last_success: AtomicI64,
    last_failure: AtomicI64,
    reason: Mutex<Option<String>>,
    unwritable: AtomicBool,
}

/// A connection that is at work.
pub(super) struct InUse<'a>(&'a Counters);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Relaxed);
    }
}

impl Counters {
    pub(super) fn in_use(&self) -> InUse<'_> {
        self.in_use.fetch_add(1, Relaxed);
        InUse(self)
    }

    pub(super) fn waited(&self, time: Duration) {
        self.waited_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Takes down how a call ended that only reads, or also `writes`.
    pub(super) fn ended<T>(&self, outcome: &Result<T, StoreError>, writes: bool) {
        match outcome {
            Err(StoreError::ReadOnly(_)) => self.unwritable.store(true, Relaxed),
            Ok(_) if writes => self.unwritable.store(false, Relaxed),
            _ => {}
        }
        self.calls.fetch_add(1, Relaxed);
        let now = Timestamp::now().0;
        match outcome {
            Err(
                error @ (StoreError::Unavailable(_)
                | StoreError::ReadOnly(_)
                | StoreError::Other(_)),
            ) => {
                self.failures.fetch_add(1, Relaxed);
                // Never at the same moment as a success, so that one of them is the later one.
                let after = self.last_success.load(Relaxed) + 1;
                self.last_failure.store(now.max(after), Relaxed);
                *self.reason.lock() = Some(error.to_string());
            }
            _ => {
                let after = self.last_failure.load(Relaxed) + 1;
                self.last_success.store(now.max(after), Relaxed);
            }
        }
    }

    pub(super) fn figures(&self) -> StoreFigures {
        StoreFigures {
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            waited: Duration::from_micros(self.waited_us.load(Relaxed)),
            in_use: self.in_use.load(Relaxed),
        }
    }

    pub(super) fn health(&self) -> StoreHealth {
        let at = |at: &AtomicI64| Some(Timestamp(at.load(Relaxed))).filter(|at| at.0 > 0);
        StoreHealth {
            last_success: at(&self.last_success),
            last_failure: at(&self.last_failure),
            reason: self.reason.lock().clone(),
            unwritable: self.unwritable.load(Relaxed),
        }
    }
}
