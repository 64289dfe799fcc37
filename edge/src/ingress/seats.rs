//! Which workers take new connections: those that have sessions, since nearly every connection is for
//! one of these. A worker without any would wake up only to hand connections over.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// How many sessions each worker has.
#[derive(Debug)]
pub(crate) struct Seats {
    taken: Mutex<Vec<usize>>,
    /// Says that a worker got its first session or lost its last one.
    changed: watch::Sender<()>,
}

impl Seats {
    pub(crate) fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::new(vec![0; workers]), changed: watch::Sender::new(()) })
    }

    /// `worker` has one session more, until what is returned is dropped.
    pub(crate) fn take(self: &Arc<Self>, worker: usize) -> Seat {
        self.change(worker, |taken| taken + 1);
        Seat { seats: Arc::clone(self), worker }
    }

    /// Resolves, after the first call, when [`Seats::listeners_of`] may say something else.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The listeners, of one for each worker, that `worker` accepts on.
    pub(crate) fn listeners_of(&self, worker: usize) -> Vec<usize> {
        let taken = self.taken.lock();
        let busy: Vec<usize> = (0..taken.len()).filter(|worker| taken[*worker] > 0).collect();
        let home = |listener: usize| match busy.len() {
            0 => listener,
            _ if taken[listener] > 0 => listener,
            some => busy[listener % some],
        };
        (0..taken.len()).filter(|listener| home(*listener) == worker).collect()
    }

    fn change(&self, worker: usize, change: impl FnOnce(usize) -> usize) {
        let mut taken = self.taken.lock();
        let before = taken[worker];
        taken[worker] = change(before);
        if (before == 0) != (taken[worker] == 0) {
            self.changed.send_replace(());
        }
    }
}

/// See [`Seats::take`].
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    worker: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.change(self.worker, |taken| taken - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_one_worker_and_the_busy_ones_have_them_all() {
        let seats = Seats::new(4);
        let all =
            |seats: &Seats| (0..4).map(|worker| seats.listeners_of(worker)).collect::<Vec<_>>();
        assert_eq!(all(&seats), [vec![0], vec![1], vec![2], vec![3]], "nobody is busy");
        let first = seats.take(2);
        assert_eq!(all(&seats), [vec![], vec![], vec![0, 1, 2, 3], vec![]]);
        let mut changes = seats.watch();
        let again = seats.take(2);
        assert!(!changes.has_changed().unwrap(), "nothing changes with a second session");
        let other = seats.take(0);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(all(&seats), [vec![0], vec![], vec![1, 2, 3], vec![]]);
        drop((first, again, other));
        assert!(changes.has_changed().unwrap());
        assert_eq!(all(&seats), [vec![0], vec![1], vec![2], vec![3]]);
    }
}
