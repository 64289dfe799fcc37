//! How long to wait after wrong passwords: nothing for the first few, then more and more.
//!
//! Accounts have their count in the store. Here is the rule, and counts for addresses and for
//! accounts that do not exist, which must not look any different from those that do (T24).

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Wrong passwords that cost no time.
const FREE: u32 = 5;
/// The first wait; each more failure doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait. After as long without a failure all is forgotten.
pub(crate) const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Keys that are counted. The one that failed longest ago makes room.
const MAX_KEYS: usize = 8_192;

/// How long nobody may try after so many failures in a row; none after the first few.
pub(crate) fn wait_after(failures: u32) -> Option<Duration> {
    let more = failures.checked_sub(FREE)?;
    Some(FIRST.saturating_mul(1_u32.checked_shl(more.min(31)).unwrap_or(u32::MAX)).min(LONGEST))
}

/// Failures by key, in this process.
#[derive(Debug)]
pub(crate) struct Guesses<K>(Mutex<HashMap<K, Failures>>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
    until: Option<Instant>,
}

impl<K> Default for Guesses<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Guesses<K> {
    /// Begins a try: counted as a failure until [`Guesses::forgive`] says that it was none, so that
    /// many at once are not all let try. Or how long to wait.
    pub(crate) fn begin(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut all = self.0.lock();
        let old = all.get(key).copied().filter(|old| now.duration_since(old.last) < LONGEST);
        if let Some(until) = old.and_then(|old| old.until).filter(|until| *until > now) {
            return Err(until - now);
        }
        if !all.contains_key(key) && all.len() >= MAX_KEYS {
            make_room(&mut all, now);
        }
        let count = old.map_or(0, |old| old.count).saturating_add(1);
        let until = wait_after(count).map(|wait| now + wait);
        all.insert(key.clone(), Failures { count, last: now, until });
        Ok(())
    }

    /// The try was right, or was not looked at: it does not count. Those before it do, or somebody
    /// with an account of his own could guess at others in between.
    pub(crate) fn forgive(&self, key: &K) {
        let mut all = self.0.lock();
        if let Some(failures) = all.get_mut(key) {
            failures.count = failures.count.saturating_sub(1);
            failures.until = None;
            if failures.count == 0 {
                all.remove(key);
            }
        }
    }
}

/// Takes away what is forgotten; if that is nothing, the one that failed longest ago.
fn make_room<K: Clone + Eq + Hash>(all: &mut HashMap<K, Failures>, now: Instant) {
    all.retain(|_, failures| now.duration_since(failures.last) < LONGEST);
    if all.len() >= MAX_KEYS {
        let oldest = all.iter().min_by_key(|(_, failures)| failures.last);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            all.remove(&key);
        }
    }
}

/// What stands for an address: of IPv6 the network, which one customer has whole.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_quarter_of_an_hour() {
        let seconds = |failures| wait_after(failures).map(|wait| wait.as_secs());
        let waits = [0, 4, 5, 6, 7, 14, 15, 16, 40, u32::MAX].map(seconds);
        let expected = [
            None,
            None,
            Some(1),
            Some(2),
            Some(4),
            Some(512),
            Some(900),
            Some(900),
            Some(900),
            Some(900),
        ];
        assert_eq!(waits, expected);
    }

    #[test]
    fn who_fails_waits_and_a_right_one_does_not_count() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for _ in 0..4 {
            assert_eq!(guesses.begin(&1, now), Ok(()));
        }
        assert_eq!(guesses.begin(&1, now), Ok(()));
        guesses.forgive(&1);
        assert_eq!(guesses.begin(&1, now), Ok(()), "the fifth failure");
        assert_eq!(guesses.begin(&1, now), Err(Duration::from_secs(1)));
        assert_eq!(guesses.begin(&2, now), Ok(()), "another key");
        let later = now + Duration::from_secs(1);
        assert_eq!(guesses.begin(&1, later), Ok(()));
        assert_eq!(guesses.begin(&1, later), Err(Duration::from_secs(2)));
        assert_eq!(guesses.begin(&1, later + LONGEST), Ok(()));
        assert_eq!(guesses.begin(&1, later + LONGEST), Ok(()), "all is forgotten");
    }

    #[test]
    fn keys_have_a_bound() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for key in 0..3 * MAX_KEYS {
            let at = now + Duration::from_millis(key as u64);
            assert_eq!(guesses.begin(&key, at), Ok(()));
            assert!(guesses.0.lock().len() <= MAX_KEYS);
        }
        assert!(guesses.0.lock().contains_key(&(3 * MAX_KEYS - 1)));
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
