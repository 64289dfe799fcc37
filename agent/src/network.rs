//! Whether this machine's way out is still what it was: another network, or none for a while, or a
//! sleep. Looked at once a second where it matters; no packet is sent for it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, interval};

/// How often the clock and the network are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// A wall clock that ran this much further than the monotonic one: the machine slept.
const CLOCK_JUMP: Duration = Duration::from_secs(5);
/// Addresses of nobody (RFC 5737, RFC 3849): the way to them is the way out.
const OUT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// The address that this machine would speak from to each of some peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    peers: Vec<SocketAddr>,
    from: Vec<Option<IpAddr>>,
}

impl Network {
    /// As it is now, for the way to `peer`; `None`: for the way out of here.
    pub(crate) fn towards(peer: Option<SocketAddr>) -> Self {
        let peers = match peer {
            Some(peer) => vec![peer],
            None => OUT.map(|ip| SocketAddr::new(ip, 9)).to_vec(),
        };
        let from = peers.iter().map(|peer| from(*peer)).collect();
        Self { peers, from }
    }

    /// Whether there is another way than at the last look, or one again. That there is none now is
    /// not said: nothing can be done about it.
    pub(crate) fn changed(&mut self) -> bool {
        self.seen(self.peers.iter().map(|peer| from(*peer)).collect())
    }

    fn seen(&mut self, now: Vec<Option<IpAddr>>) -> bool {
        let changes =
            self.from.iter().zip(&now).any(|(before, now)| now.is_some() && before != now);
        self.from = now;
        changes
    }
}

/// Asks the routing table: connecting a UDP socket sends nothing.
fn from(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Notices that the machine slept: then the wall clock has gone on and the monotonic one has not,
/// or both have but nothing ran.
pub(crate) struct Clock {
    wall: SystemTime,
    monotonic: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }

    /// How long the machine slept since the last look, if it did.
    pub(crate) fn jumped(&mut self) -> Option<Duration> {
        let before = std::mem::replace(self, Self::new());
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        let slept =
            wall.saturating_sub(LOOK).max((self.monotonic - before.monotonic).saturating_sub(LOOK));
        (slept > CLOCK_JUMP).then_some(slept)
    }
}

/// Waits before the next try; no longer once the machine wakes up or is in another network, since
/// then the edge may be within reach at once.
pub(crate) async fn wait(time: Duration) {
    let waking = async {
        let (mut clock, mut network) = (Clock::new(), Network::towards(None));
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            if clock.jumped().is_some() || network.changed() {
                return;
            }
        }
    };
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = waking, if time > LOOK => tracing::info!("the network may be another: connecting at once"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_network_is_a_change_and_none_is_not() {
        let (home, office) = (IpAddr::from([192, 168, 0, 2]), IpAddr::from([10, 0, 0, 2]));
        let mut network = Network { peers: Vec::new(), from: vec![Some(home), None] };
        assert!(!network.seen(vec![Some(home), None]));
        assert!(!network.seen(vec![None, None]), "gone");
        assert!(network.seen(vec![Some(home), None]), "back");
        assert!(network.seen(vec![Some(office), None]));
        assert!(network.seen(vec![Some(office), Some(office)]), "one more family");
    }

    #[test]
    fn this_machine_is_reached_from_itself() {
        let mut network = Network::towards(Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(network.from, [Some(IpAddr::from([127, 0, 0, 1]))]);
        assert!(!network.changed());
    }
}
