//! Latencies in buckets that grow with the value.

use std::time::Duration;

/// Buckets for each doubling: a recorded value is off by less than 1 %.
const STEPS_LOG2: u32 = 7;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Values up to 2^41 ns (36 minutes) have buckets of their own; longer ones share the last.
const BUCKETS: usize = ((41 - STEPS_LOG2 + 1) as usize) << STEPS_LOG2;

pub(crate) struct Histogram {
    counts: Box<[u32]>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.max.as_secs_f64() * 1e3
    }

    /// The value that `share` of all values (0 to 1) do not exceed, in milliseconds; 0 if there are none.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).max(1.0);
        let mut seen = 0_u64;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen as f64 >= wanted {
                return (middle(index) / 1e6).min(self.max_ms());
            }
        }
        0.0
    }
}

fn bucket(nanos: u64) -> usize {
    // How many low bits are dropped to leave a number below 2 * STEPS.
    let dropped = (u64::BITS - nanos.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    let index = u64::from(dropped) * STEPS + (nanos >> dropped);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The value in the middle of a bucket, in nanoseconds.
fn middle(index: usize) -> f64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index as f64;
    }
    let dropped = index / STEPS - 1;
    let step = (1_u64 << dropped) as f64;
    (index - dropped * STEPS) as f64 * step + step / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_stands_for_its_values() {
        for nanos in (0..40).flat_map(|bit| [1_u64 << bit, (1 << bit) + (1 << bit) / 3]) {
            let read = middle(bucket(nanos));
            assert!((read - nanos as f64).abs() <= nanos as f64 * 0.01, "{nanos} read as {read}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut all = Histogram::default();
        let mut half = Histogram::default();
        for ms in 1..=500 {
            all.record(Duration::from_millis(ms));
            half.record(Duration::from_millis(ms + 500));
        }
        all.merge(&half);
        assert_eq!(all.total(), 1000);
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let read = all.quantile_ms(share);
            assert!((read - ms).abs() <= ms * 0.01, "{share}: {read}");
        }
        assert_eq!(Histogram::default().quantile_ms(0.5), 0.0);
    }
}
