//! How long requests took, for percentiles: counts in buckets that are about 3 % wide, so that a
//! percentile is right within 2 % of itself. Histograms of minutes and edges add up to those of hours
//! and clusters, which no percentile does.
//!
//! A bucket's number is made of the position of a value's highest bit and the five bits behind it
//! (as HdrHistogram does it). Values are microseconds, up to 71 minutes.

use std::sync::atomic::{AtomicU32, Ordering};

/// Buckets to a doubling, as a power of two.
const FINE: u32 = 5;
/// Values from here on are counted in the last bucket.
const TOP: u32 = u32::MAX;
/// Buckets in all.
const BUCKETS: usize = ((32 - FINE + 1) << FINE) as usize;
/// What an encoded histogram begins with; another layout would get another number.
const LAYOUT: u8 = 1;

/// The bucket of `micros`.
fn bucket(micros: u32) -> usize {
    if micros < 1 << FINE {
        return micros as usize;
    }
    let shift = 31 - micros.leading_zeros() - FINE;
    ((shift << FINE) + (micros >> shift)) as usize
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> f64 {
    let bucket = u32::try_from(bucket).unwrap_or(0);
    if bucket < 1 << (FINE + 1) {
        return f64::from(bucket);
    }
    let shift = (bucket >> FINE) - 1;
    let low = ((1 << FINE) + (bucket & ((1 << FINE) - 1))) << shift;
    f64::from(low) + (f64::from(1_u32 << shift) - 1.0) / 2.0
}

/// Counts that many threads add to. They only ever grow, and wrap around: what came in between is
/// the difference.
pub(crate) struct Live(Box<[AtomicU32; BUCKETS]>);

impl Default for Live {
    fn default() -> Self {
        Self(Box::new([const { AtomicU32::new(0) }; BUCKETS]))
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl Live {
    /// Takes one value down.
    pub(crate) fn add(&self, micros: u128) {
        let micros = u32::try_from(micros).unwrap_or(TOP);
        self.0[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// The counts of a [`Live`] at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(Box<[u32]>);

impl Snapshot {
    /// Of a histogram that nothing was added to.
    pub(crate) fn empty() -> Self {
        Self(vec![0; BUCKETS].into())
    }

    /// What has come since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Histogram {
        let counts = self.0.iter().zip(&earlier.0);
        let counts = counts.map(|(now, then)| u64::from(now.wrapping_sub(*then)));
        Histogram { counts: counts.collect() }
    }
}

/// Counts of a closed time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into() }
    }
}

impl Histogram {
    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, more) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*more);
        }
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The value, in milliseconds, that `part` (0 to 1) of all are not above; `None` without values.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let count = self.count();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "ranks are small and positive"
        )]
        let rank = ((count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen: u64 = 0;
        let found = self.counts.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        found.filter(|_| count > 0).map(|bucket| middle(bucket) / 1000.0)
    }

    /// The compact form: the number of empty buckets before each full one and its count, as LEB128.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![LAYOUT];
        let mut empty = 0;
        for count in &self.counts {
            if *count == 0 {
                empty += 1;
                continue;
            }
            put(&mut out, std::mem::take(&mut empty));
            put(&mut out, *count);
        }
        out
    }

    /// Reads the compact form; `None`: it is none.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        if bytes.is_empty() {
            return Some(read);
        }
        bytes = bytes.strip_prefix(&[LAYOUT])?;
        let mut next = 0_usize;
        while !bytes.is_empty() {
            next = next.checked_add(usize::try_from(take(&mut bytes)?).ok()?)?;
            *read.counts.get_mut(next)? = take(&mut bytes)?;
            next += 1;
        }
        Some(read)
    }

    /// Adds encoded histograms up; what can't be read counts as nothing.
    pub(crate) fn merge_encoded(all: &[Vec<u8>]) -> Vec<u8> {
        let mut sum = Self::default();
        all.iter().filter_map(|one| Self::decode(one)).for_each(|one| sum.merge(&one));
        sum.encode()
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7F) as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7F) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u32]) -> Histogram {
        let live = Live::default();
        values.iter().for_each(|value| live.add(u128::from(*value)));
        live.snapshot().since(&Snapshot::empty())
    }

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for micros in
            (0..4096).chain((12..32).flat_map(|bit| [1 << bit, (1 << bit) + 1])).chain([TOP])
        {
            let bucket = bucket(micros);
            assert!(bucket >= last && bucket < BUCKETS, "{micros}");
            last = bucket;
            let off = (middle(bucket) - f64::from(micros)).abs();
            assert!(off <= f64::from(micros) * 0.02 + 0.01, "{micros} is {}", middle(bucket));
        }
        assert_eq!(last, BUCKETS - 1);
    }

    #[test]
    fn what_is_added_up_while_counts_wrap_is_right() {
        let live = Live::default();
        live.0[bucket(1000)].store(u32::MAX, Ordering::Relaxed);
        let before = live.snapshot();
        live.add(1000);
        live.add(1000);
        assert_eq!(live.snapshot().since(&before).count(), 2);
    }

    #[test]
    fn nothing_has_no_percentile_and_garbage_is_no_histogram() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(Histogram::decode(&[]), Some(Histogram::default()));
        for bad in [&[2, 0, 1][..], &[1, 0x80], &[1, 0xFF, 0x7F, 1], &[1, 5], &[1; 4000]] {
            assert_eq!(Histogram::decode(bad), None, "{:?}", &bad[..2]);
        }
    }

    proptest! {
        #[test]
        fn percentiles_are_right_within_two_percent(
            mut values in proptest::collection::vec(1_u32..100_000_000, 1..400),
            part in 0.01_f64..1.0,
        ) {
            let histogram = of(&values);
            values.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "small")]
            let rank = ((values.len() as f64 * part).ceil() as usize).max(1);
            let exact = f64::from(values[rank - 1]) / 1000.0;
            let read = histogram.quantile(part).unwrap();
            prop_assert!((read - exact).abs() <= exact * 0.02 + 0.001, "{} for {}", read, exact);
        }

        #[test]
        fn parts_add_up_to_the_whole_and_survive_their_compact_form(
            a in proptest::collection::vec(any::<u32>(), 0..100),
            b in proptest::collection::vec(any::<u32>(), 0..100),
        ) {
            let whole = of(&[a.clone(), b.clone()].concat());
            prop_assert_eq!(Histogram::decode(&whole.encode()), Some(whole.clone()));
            let merged = Histogram::merge_encoded(&[of(&a).encode(), of(&b).encode(), vec![9]]);
            prop_assert_eq!(merged, whole.encode());
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Histogram::decode(&bytes);
        }
    }
}
