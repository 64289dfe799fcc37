//! What receive windows may grow to, together. A limit is kept by not growing, never by holding a
//! stream's first window back: stalled streams then stop nobody else.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Windows of one session and its lanes, or of all sessions of a process. Clones are the same
/// budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    granted: AtomicU64,
    /// The wider budget that this one is part of.
    whole: Option<Budget>,
}

impl Budget {
    /// A budget of `limit` bytes of its own.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner { limit, granted: AtomicU64::new(0), whole: None }))
    }

    /// A budget of `limit` bytes that is also part of this one.
    #[must_use]
    pub fn part(&self, limit: u64) -> Self {
        Self(Arc::new(Inner { limit, granted: AtomicU64::new(0), whole: Some(self.clone()) }))
    }

    /// Bytes granted now.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.0.granted.load(Ordering::Relaxed)
    }

    /// A window that nobody may refuse.
    pub(super) fn take(&self, bytes: u64) {
        self.0.granted.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.take(bytes);
        }
    }

    /// What of `wish` a window may grow by; it is taken with that.
    pub(super) fn grow(&self, wish: u64) -> u64 {
        // Threads that ask at the same time may go over it by one step each.
        let mut growth = wish.min(self.0.limit.saturating_sub(self.granted()));
        if let Some(whole) = &self.0.whole {
            growth = whole.grow(growth);
        }
        self.0.granted.fetch_add(growth, Ordering::Relaxed);
        growth
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&self, bytes: u64) {
        self.0.granted.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_grows_no_further_than_the_whole() {
        let whole = Budget::new(100);
        let (a, b) = (whole.part(80), whole.part(80));
        a.take(90);
        assert_eq!(a.grow(50), 0, "over its own limit already");
        assert_eq!(b.grow(50), 10, "the whole has ten left");
        a.give_back(90);
        assert_eq!(b.grow(100), 70, "up to its own limit");
        assert_eq!((a.granted(), b.granted(), whole.granted()), (0, 80, 80));
    }
}
