//! How long to wait before the next try: exponential with full jitter, without a clock or a source
//! of randomness.

use std::time::Duration;

/// A row of waits. The n-th since the last success (from 0) is uniform between zero and
/// `base * 2^n`, never above `cap`.
///
/// The first may thus be near zero, and many clients that lost one server come back spread out.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Starts the row: the first wait is below `base`, and none is above `cap` (or above 584
    /// years).
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next wait, picked by `random`, which must be uniform over all of `u64`.
    pub fn next(&mut self, random: u64) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        scale(ceiling, random)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    fn ceiling(&self) -> Duration {
        let factor = 2_u32.saturating_pow(self.attempt);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

/// Maps all of `u64` evenly onto zero up to `ceiling`.
fn scale(ceiling: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    let scaled = (u128::from(nanos) * u128::from(random)) >> u64::BITS;
    Duration::from_nanos(u64::try_from(scaled).unwrap_or(nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(BASE, CAP);
        let longest = |backoff: &mut Backoff| (backoff.next(u64::MAX).as_secs_f64() * 1e3).round();
        let row: Vec<_> = (0..8).map(|_| longest(&mut backoff)).collect();
        assert_eq!(row, [500.0, 1e3, 2e3, 4e3, 8e3, 16e3, 30e3, 30e3]);
        backoff.reset();
        assert_eq!([longest(&mut backoff)], [500.0]);
    }

    #[test]
    fn the_middle_of_the_randomness_is_half_the_ceiling() {
        assert_eq!(Backoff::new(BASE, CAP).next(1 << 63), BASE / 2);
    }

    proptest! {
        #[test]
        fn every_wait_keeps_its_bounds(
            base in 0_u64..=u64::MAX,
            cap in 0_u64..=u64::MAX,
            randoms in prop::collection::vec(any::<u64>(), 1..80),
        ) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_nanos(cap));
            let mut backoff = Backoff::new(base, cap);
            for (attempt, random) in randoms.into_iter().enumerate() {
                let ceiling = base.as_nanos().saturating_mul(1 << attempt).min(cap.as_nanos());
                prop_assert!(backoff.next(random).as_nanos() <= ceiling);
            }
        }

        #[test]
        fn more_randomness_is_never_a_shorter_wait(a: u64, b: u64) {
            let wait = |random| Backoff::new(BASE, CAP).next(random);
            prop_assert!(wait(a.min(b)) <= wait(a.max(b)));
        }
    }
}
