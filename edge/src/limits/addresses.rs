//! Visitors' addresses: how many connections each has, and how many requests a second it may send.
//! An IPv6 visitor has a whole /64, so that is what counts as one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Gate;

/// Addresses that are remembered at a time. What is beyond is served and not counted.
const MAX_ADDRESSES: usize = 65_536;
/// Locks of the table.
const SHARDS: usize = 16;

/// What counts as one visitor's address.
pub(crate) fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

/// One address.
#[derive(Debug)]
pub(crate) struct Address {
    connections: AtomicU32,
    pub(crate) gate: Gate,
}

/// All addresses that are here now or were a moment ago.
#[derive(Debug)]
pub(crate) struct Addresses {
    shards: [Mutex<HashMap<IpAddr, Arc<Address>>>; SHARDS],
    /// Connections of one address; 0: no limit.
    most: u32,
    rate: Option<u32>,
}

/// An address has as many connections as it may.
#[derive(Debug)]
pub(crate) struct TooMany;

/// A connection in its address's count.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Address>);

impl Counted {
    /// Its address.
    pub(crate) fn address(&self) -> &Arc<Address> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Addresses {
    /// At most `most` connections (0: any number) and `rate` requests a second of each address.
    pub(crate) fn new(most: u32, rate: Option<u32>) -> Self {
        Self { shards: Default::default(), most, rate }
    }

    /// Counts one more connection of `address`.
    ///
    /// # Errors
    /// When it has as many as it may.
    pub(crate) fn connect(&self, address: IpAddr) -> Result<Option<Counted>, TooMany> {
        if self.most == 0 && self.rate.is_none() {
            return Ok(None);
        }
        let Some(address) = self.address(address) else { return Ok(None) };
        let before = address.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(address);
        if self.most > 0 && before >= self.most { Err(TooMany) } else { Ok(Some(counted)) }
    }

    /// What is known of `address`; `None`: too many others are.
    pub(crate) fn address(&self, address: IpAddr) -> Option<Arc<Address>> {
        let key = key(address);
        let mut shard = self.shards[shard_of(&key)].lock();
        if let Some(known) = shard.get(&key) {
            return Some(Arc::clone(known));
        }
        if shard.len() >= MAX_ADDRESSES / SHARDS {
            forget_resting(&mut shard);
        }
        if shard.len() >= MAX_ADDRESSES / SHARDS {
            return None;
        }
        let address =
            Arc::new(Address { connections: AtomicU32::new(0), gate: Gate::new(self.rate) });
        shard.insert(key, Arc::clone(&address));
        Some(address)
    }

    /// Requests a second of one address.
    pub(crate) fn rate(&self) -> Option<u32> {
        self.rate
    }

    /// Those from which requests come faster than a quarter of what they may, now: only they matter
    /// to other edges.
    pub(crate) fn busy(&self) -> Vec<(IpAddr, Arc<Address>, u64)> {
        let Some(rate) = self.rate else { return Vec::new() };
        let mut busy = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let wanted =
                shard.iter().map(|(key, address)| (key, address, address.gate.take_wanted()));
            let wanted = wanted.filter(|(_, _, wanted)| *wanted * 4 > u64::from(rate));
            busy.extend(wanted.map(|(key, address, wanted)| (*key, Arc::clone(address), wanted)));
        }
        busy
    }

    /// Forgets addresses without a connection whose gates are full again.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            forget_resting(&mut shard.lock());
        }
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// One without a connection whose gate is full is like one that was never seen.
fn forget_resting(shard: &mut HashMap<IpAddr, Arc<Address>>) {
    let now = Instant::now();
    shard.retain(|_, address| {
        // Somebody may be about to ask it.
        Arc::strong_count(address) > 1
            || address.connections.load(Ordering::Relaxed) > 0
            || !address.gate.is_full(now)
    });
}

fn shard_of(key: &IpAddr) -> usize {
    let bytes = match key {
        IpAddr::V4(v4) => u32::from(*v4),
        IpAddr::V6(v6) => {
            let network = u128::from(*v6) >> 64;
            u32::try_from((network ^ (network >> 32)) & 0xFFFF_FFFF).unwrap_or(0)
        }
    };
    // Neighbours get different locks.
    (bytes.wrapping_mul(0x9E37_79B9) >> 28) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_an_address_have_a_bound_and_come_back() {
        let addresses = Addresses::new(2, None);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = addresses.connect(a).unwrap();
        let _second = addresses.connect(a).unwrap();
        assert!(addresses.connect(a).is_err());
        assert!(addresses.connect(b).is_ok());
        drop(first);
        assert!(addresses.connect(a).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let addresses = Addresses::new(1, None);
        let _held = addresses.connect("2001:db8::1".parse().unwrap()).unwrap();
        assert!(addresses.connect("2001:db8::ffff:2".parse().unwrap()).is_err());
        assert!(addresses.connect("2001:db8:0:1::1".parse().unwrap()).is_ok());
        assert_eq!(
            key("::ffff:192.0.2.1".parse().unwrap()),
            "192.0.2.1".parse::<IpAddr>().unwrap()
        );
    }

    #[test]
    fn a_new_connection_has_no_new_requests_to_spend() {
        let addresses = Addresses::new(0, Some(3));
        let (address, now) = ("192.0.2.1".parse().unwrap(), Instant::now());
        let mut passed = 0;
        for _ in 0..10 {
            let connection = addresses.connect(address).unwrap().unwrap();
            passed += usize::from(connection.address().gate.pass(now).is_ok());
            drop(connection);
            addresses.sweep();
        }
        assert_eq!(passed, 3);
    }

    #[test]
    fn the_table_has_a_bound() {
        let addresses = Addresses::new(1, None);
        let all: Vec<_> = (0..u32::try_from(MAX_ADDRESSES).unwrap() * 2)
            .map(|number| addresses.connect(IpAddr::V4(number.into())))
            .collect();
        assert!(addresses.len() <= MAX_ADDRESSES);
        assert!(all.iter().all(Result::is_ok), "nobody is turned away for it");
    }
}
