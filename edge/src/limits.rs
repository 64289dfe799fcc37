//! How much anybody may ask for: requests a second of a visitor's address, a tunnel, a user and the
//! whole edge, connections of an address, and what a plan allows its users.
//!
//! A limit of requests is a [`Gate`]: one number that says when the next request is due (the generic
//! cell rate algorithm, ITU-T I.371), changed without a lock. It lets a second's worth through at once
//! and no more than its rate from then on. Where several edges share a limit, each has a part of the
//! rate that follows what comes in there, leased from the shared state every [`LEASE`]: together they
//! let through no more than the rate, except within the first second in which requests come to an
//! edge that had none of them before: it has the whole rate until the parts are settled.

pub(crate) mod accounts;
pub(crate) mod addresses;
pub(crate) mod bandwidth;
pub(crate) mod leases;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;
use uniroute_shared::code::Code;

use crate::ingress::error::ProxyError;

/// How often parts of shared limits are settled anew.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
/// A lease that is not taken again ends after this long: an edge that has died leaves its part to
/// the others.
pub(crate) const LEASE_ENDS: Duration = Duration::from_secs(3);

/// Lets through so many a second. Open until a rate is set.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Nanoseconds between two requests; 0: no limit.
    interval: AtomicU64,
    /// When the next request is due, in nanoseconds since the process began.
    due: AtomicU64,
    /// Requests that came, let through or not, for those who share the limit out.
    wanted: AtomicU64,
}

impl Gate {
    /// A gate for `rate` a second.
    pub(crate) fn new(rate: Option<u32>) -> Self {
        let gate = Self::default();
        gate.set(rate, 1.0);
        gate
    }

    /// Lets through `part` of `rate` a second from now on; `None`: everything.
    pub(crate) fn set(&self, rate: Option<u32>, part: f64) {
        let rate = rate.map(|rate| (f64::from(rate) * part).max(0.001));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        let interval = rate.map_or(0, |rate| (1e9 / rate).max(1.0) as u64);
        self.interval.store(interval, Ordering::Relaxed);
        // What was let through at a far lower rate must not count at this one.
        let most = clock(Instant::now()) + burst(interval);
        self.due.fetch_min(most, Ordering::Relaxed);
    }

    /// Whether there is a limit.
    pub(crate) fn is_open(&self) -> bool {
        self.interval.load(Ordering::Relaxed) == 0
    }

    /// Asks for one request to be let through at `now`.
    ///
    /// # Errors
    /// After how long it would be.
    pub(crate) fn pass(&self, now: Instant) -> Result<(), Duration> {
        let interval = self.interval.load(Ordering::Relaxed);
        if interval == 0 {
            return Ok(());
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.take(now, interval)
    }

    fn take(&self, now: Instant, interval: u64) -> Result<(), Duration> {
        let now = clock(now);
        let burst = burst(interval);
        let mut due = self.due.load(Ordering::Relaxed);
        loop {
            let next = due.max(now) + interval;
            if next > now + burst {
                return Err(Duration::from_nanos(next - now - burst));
            }
            let taken =
                self.due.compare_exchange_weak(due, next, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                Ok(_) => return Ok(()),
                Err(changed) => due = changed,
            }
        }
    }

    /// Whether it has let nothing through for long enough to be as good as new.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.due.load(Ordering::Relaxed) <= clock(now)
    }

    /// Requests that came since this was asked last.
    pub(crate) fn take_wanted(&self) -> u64 {
        self.wanted.swap(0, Ordering::Relaxed)
    }
}

/// A second's worth at once, and one in any case; in nanoseconds.
fn burst(interval: u64) -> u64 {
    interval.max(1_000_000_000)
}

/// Asks a gate for a request that is made now.
///
/// # Errors
/// [`ProxyError::Limited`] with `code`.
pub(crate) fn check(gate: &Gate, code: &'static Code) -> Result<(), ProxyError> {
    // The everyday gate is open, and nobody looks at the clock for it.
    if gate.is_open() {
        return Ok(());
    }
    gate.pass(Instant::now()).map_err(|wait| ProxyError::Limited(code, wait))
}

/// The lower one of two limits.
pub(crate) fn lower(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How long the month goes on (UTC).
pub(crate) fn to_next_month() -> Duration {
    let now = time::OffsetDateTime::now_utc();
    let days = u64::from(now.month().length(now.year()) - now.day());
    let day = Duration::from_secs(24 * 60 * 60);
    let (hours, minutes, seconds) = now.to_hms();
    let today = u64::from(hours) * 3600 + u64::from(minutes) * 60 + u64::from(seconds);
    day * u32::try_from(days + 1).unwrap_or(1) - Duration::from_secs(today)
}

/// Nanoseconds since the first time that anybody asked; a second more, so that a gate begins full.
fn clock(now: Instant) -> u64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let began = *BEGAN.get_or_init(|| now);
    let since = now.saturating_duration_since(began) + Duration::from_secs(1);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `asked` are let through at `now`.
    fn passed(gate: &Gate, now: Instant, asked: usize) -> usize {
        (0..asked).filter(|_| gate.pass(now).is_ok()).count()
    }

    #[test]
    fn a_gate_that_was_nearly_shut_is_as_good_as_another_when_it_opens() {
        let (gate, begin) = (Gate::new(Some(100)), Instant::now());
        gate.set(Some(100), 0.0);
        assert!(passed(&gate, begin, 10) <= 1);
        gate.set(Some(100), 0.5);
        let later = begin + Duration::from_secs(1);
        assert!((40..=60).contains(&passed(&gate, later, 200)));
    }

    #[test]
    fn a_second_at_once_and_then_the_rate() {
        let (gate, begin) = (Gate::new(Some(100)), Instant::now());
        assert_eq!(passed(&gate, begin, 1000), 100);
        let later = |millis| begin + Duration::from_millis(millis);
        assert_eq!(passed(&gate, later(100), 1000), 10);
        assert_eq!(passed(&gate, later(5_000), 1000), 100, "no more is saved up");
        let wait = gate.pass(later(5_000)).unwrap_err();
        assert!(wait <= Duration::from_millis(10), "{wait:?}");
        assert_eq!(gate.take_wanted(), 3001);
        assert_eq!(gate.take_wanted(), 0);
    }

    #[test]
    fn less_than_one_a_second_lets_one_through() {
        let (gate, begin) = (Gate::new(Some(1)), Instant::now());
        gate.set(Some(1), 0.1);
        assert_eq!(passed(&gate, begin, 10), 1);
        assert_eq!(passed(&gate, begin + Duration::from_secs(9), 10), 0);
        assert_eq!(passed(&gate, begin + Duration::from_secs(10), 10), 1);
    }

    #[test]
    fn no_limit_is_no_limit() {
        let gate = Gate::default();
        assert_eq!(passed(&gate, Instant::now(), 100_000), 100_000);
        gate.set(Some(5), 1.0);
        assert_eq!(passed(&gate, Instant::now(), 100), 5);
        gate.set(None, 1.0);
        assert_eq!(passed(&gate, Instant::now(), 100), 100);
    }

    #[test]
    fn threads_together_get_no_more() {
        let (gate, now) = (Gate::new(Some(10_000)), Instant::now());
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| passed(&gate, now, 9_000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 10_000);
    }
}
