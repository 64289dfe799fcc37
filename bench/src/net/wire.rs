//! What happens to a packet on the link, as arithmetic on its times: nothing here waits.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// From the last byte leaving one end to its arrival at the other.
    pub(crate) delay: Duration,
    pub(crate) bytes_per_second: f64,
    /// Bytes that may wait for their turn; a packet that does not fit is dropped.
    pub(crate) queue: f64,
    /// Share of packets lost on the way, 0 to 1, each independent of the others.
    pub(crate) loss: f64,
}

/// One direction of a link.
pub(crate) struct Wire {
    settings: Settings,
    random: Random,
    /// When everything that waits has left.
    free_at: Instant,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives(Instant),
    /// The queue was full.
    Dropped,
    /// Lost on the way, after it took its turn.
    Lost,
}

impl Wire {
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        Self { settings, random: Random(seed), free_at: Instant::now() }
    }

    pub(crate) fn send(&mut self, now: Instant, len: usize) -> Fate {
        let Settings { delay, bytes_per_second, queue, loss } = self.settings;
        let waiting = self.free_at.saturating_duration_since(now).as_secs_f64() * bytes_per_second;
        if waiting + len as f64 > queue {
            return Fate::Dropped;
        }
        let takes = Duration::from_secs_f64(len as f64 / bytes_per_second);
        self.free_at = self.free_at.max(now) + takes;
        if self.random.next() < loss {
            return Fate::Lost;
        }
        Fate::Arrives(self.free_at + delay)
    }
}

/// SplitMix64: short, and the same seed gives the same losses everywhere.
struct Random(u64);

impl Random {
    /// From 0 up to, not including, 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A packet of 1,000 bytes takes a millisecond.
    fn wire(queue: f64, loss: f64, seed: u64) -> Wire {
        Wire::new(Settings { delay: 20 * MS, bytes_per_second: 1e6, queue, loss }, seed)
    }

    #[test]
    fn packets_follow_each_other_at_the_rate() {
        let mut wire = wire(1e6, 0.0, 1);
        let now = Instant::now() + MS;
        assert_eq!(wire.send(now, 1000), Fate::Arrives(now + 21 * MS));
        assert_eq!(wire.send(now, 1000), Fate::Arrives(now + 22 * MS));
        // An idle link owes nothing.
        assert_eq!(wire.send(now + 9 * MS, 1000), Fate::Arrives(now + 30 * MS));
    }

    #[test]
    fn a_full_queue_drops_until_it_has_drained() {
        let mut wire = wire(2000.0, 0.0, 1);
        let now = Instant::now() + MS;
        assert_eq!(wire.send(now, 1000), Fate::Arrives(now + 21 * MS));
        assert_eq!(wire.send(now, 1000), Fate::Arrives(now + 22 * MS));
        assert_eq!(wire.send(now, 1000), Fate::Dropped);
        assert_eq!(wire.send(now + MS, 1000), Fate::Arrives(now + 23 * MS));
    }

    #[test]
    fn losses_have_the_share_asked_for_and_repeat_with_the_seed() {
        let lost = |seed| -> Vec<usize> {
            let mut wire = wire(f64::INFINITY, 0.01, seed);
            let now = Instant::now();
            (0..100_000).filter(|_| wire.send(now, 1) == Fate::Lost).collect()
        };
        let first = lost(7);
        assert!((900..1100).contains(&first.len()), "{}", first.len());
        assert_eq!(first, lost(7));
        assert_ne!(first, lost(8));
    }
}
