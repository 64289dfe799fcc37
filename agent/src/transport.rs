//! What carries the agent's sessions, and when that changes: measurements and instants in, decisions
//! out.
//!
//! Every session of [`Transport::Auto`] begins over WebSocket, so that a network without UDP delays
//! nothing. WebSocket costs two fifths of QUIC's CPU for each byte, so on clean links it stays. Where
//! packets are lost, TCP stalls all streams for one of them, and QUIC is taken:
//!
//! ```text
//! WebSocket ── traffic ─▶ probe ── enough probes, they get lost, QUIC is no detour ─▶ QUIC
//!     ▲                     └─ nothing comes back: barred for a while                   │
//!     └───────────────── hardly a packet lost any more, or the session died ────────────┘
//! ```

use std::{
    net::SocketAddr,
    str::FromStr,
    time::{Duration, Instant},
};

use uniroute_proto::v1;
use uniroute_shared::carrier::quic::endpoint::Fingerprint;

/// What carries the agent's sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket at first, and QUIC where that was measured to be better.
    #[default]
    Auto,
    /// Always WebSocket, over TCP or TLS.
    WebSocket,
    /// Always QUIC, over UDP.
    Quic,
}

/// What was written names no transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a transport is one of auto, ws and quic")]
pub struct TransportError;

impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text {
            "auto" => Ok(Self::Auto),
            "ws" => Ok(Self::WebSocket),
            "quic" => Ok(Self::Quic),
            _ => Err(TransportError),
        }
    }
}

/// When [`Transport::Auto`] changes the carrier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// How often the session is looked at.
    pub look: Duration,
    /// Bytes that a session has to have moved since the last look to be worth a probe.
    pub min_moved: u64,
    /// Datagrams of one probe.
    pub probes: u32,
    /// Time between two of them.
    pub probe_gap: Duration,
    /// Datagrams that have to have been sent, over all probes, before they decide anything.
    pub min_probes: u32,
    /// Share of them that has to get lost for QUIC to be taken.
    pub take_loss: f64,
    /// QUIC's round trip may be this many times WebSocket's …
    pub rtt_factor: f64,
    /// … and this much more.
    pub rtt_slack: Duration,
    /// Packets over which QUIC's loss is looked at.
    pub return_packets: u64,
    /// Share of them that has to get lost for QUIC to be kept.
    pub return_loss: f64,
    /// How long QUIC is barred after it failed; doubled each time.
    pub bar: Duration,
    /// The longest bar.
    pub longest_bar: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(15),
            min_moved: 1024 * 1024,
            probes: 200,
            probe_gap: Duration::from_millis(10),
            min_probes: 400,
            take_loss: 0.003,
            rtt_factor: 1.25,
            rtt_slack: Duration::from_millis(5),
            return_packets: 20_000,
            return_loss: 0.0005,
            bar: Duration::from_secs(5 * 60),
            longest_bar: Duration::from_secs(60 * 60),
        }
    }
}

/// How many times the shortest round trip a typical one may take, with twice
/// [`Policy::rtt_slack`] on top. Beyond that the path is full, and what gets lost is our own doing.
const FULL: f64 = 2.0;
/// What of an old measurement counts beside a new one.
const REMEMBER: f64 = 0.875;

/// What one probe of the QUIC path brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Datagrams sent.
    pub(crate) sent: u32,
    /// How many of them came back.
    pub(crate) answered: u32,
    /// The shortest time that one took.
    pub(crate) rtt: Duration,
    /// The time that one of them took typically.
    pub(crate) typical_rtt: Duration,
}

/// Decides what carries the session, from what was measured.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    /// Bytes that the session had moved at the last look.
    moved: u64,
    /// Datagrams of all probes, old ones half forgotten.
    probes: f64,
    missing: f64,
    barred_until: Option<Instant>,
    next_bar: Duration,
    /// Packets that the QUIC session had sent and lost when its last stretch began.
    stretch: (u64, u64),
}

impl Chooser {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            moved: 0,
            probes: 0.0,
            missing: 0.0,
            barred_until: None,
            next_bar: policy.bar,
            stretch: (0, 0),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// A new session: its counters begin at 0.
    pub(crate) fn begin(&mut self) {
        (self.moved, self.stretch) = (0, (0, 0));
    }

    /// Whether to probe the QUIC path now, for a WebSocket session that has moved `moved` bytes.
    pub(crate) fn wants_probe(&mut self, now: Instant, moved: u64) -> bool {
        let since = moved.saturating_sub(self.moved);
        let barred = self.barred_until.is_some_and(|until| now < until);
        if since < self.policy.min_moved || barred {
            return false;
        }
        self.moved = moved;
        true
    }

    /// Takes a probe down; whether QUIC is to be taken. `websocket_rtt`: the session's own.
    pub(crate) fn probed(
        &mut self,
        now: Instant,
        probe: Probe,
        websocket_rtt: Option<Duration>,
    ) -> bool {
        if probe.answered == 0 {
            self.quic_failed(now);
            return false;
        }
        let Some(websocket_rtt) = websocket_rtt else { return false };
        let slack = self.policy.rtt_slack;
        if probe.typical_rtt > websocket_rtt.min(probe.rtt).mul_f64(FULL) + slack * 2 {
            return false;
        }
        self.probes = self.probes * REMEMBER + f64::from(probe.sent);
        self.missing =
            self.missing * REMEMBER + f64::from(probe.sent.saturating_sub(probe.answered));
        let most = websocket_rtt.mul_f64(self.policy.rtt_factor) + slack;
        self.probes >= f64::from(self.policy.min_probes)
            && self.missing >= self.policy.take_loss * self.probes
            && probe.rtt <= most
    }

    /// Whether to go back to WebSocket, for a QUIC session that has sent and lost so many packets.
    pub(crate) fn wants_websocket(&mut self, sent: u64, lost: u64) -> bool {
        let (sent_before, lost_before) = self.stretch;
        let stretch = sent.saturating_sub(sent_before);
        if stretch < self.policy.return_packets {
            return false;
        }
        self.stretch = (sent, lost);
        let loss = lost.saturating_sub(lost_before) as f64 / stretch as f64;
        if loss >= self.policy.return_loss {
            return false;
        }
        // QUIC has not failed: only the reason for it has gone.
        (self.probes, self.missing, self.next_bar) = (0.0, 0.0, self.policy.bar);
        true
    }

    /// QUIC could not be had, or its session died: none of it for a while.
    pub(crate) fn quic_failed(&mut self, now: Instant) {
        self.barred_until = Some(now + self.next_bar);
        self.next_bar = (self.next_bar * 2).min(self.policy.longest_bar);
        (self.probes, self.missing) = (0.0, 0.0);
    }
}

/// Where an edge takes sessions over QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuicDoor {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: Fingerprint,
}

impl QuicDoor {
    /// The door that an edge offers which was reached at `address`; none if the offer can't be.
    pub(crate) fn new(mut address: SocketAddr, offer: &v1::QuicOffer) -> Option<Self> {
        address.set_port(u16::try_from(offer.port).ok().filter(|port| *port != 0)?);
        let certificate = offer.certificate_sha256.as_ref().try_into().ok()?;
        Some(Self { address, certificate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: u64 = 1024 * 1024;
    const RTT: Duration = Duration::from_millis(40);

    fn chooser() -> (Chooser, Instant) {
        (Chooser::new(Policy::default()), Instant::now())
    }

    fn probe(answered: u32) -> Probe {
        Probe { sent: 200, answered, rtt: RTT, typical_rtt: RTT }
    }

    #[test]
    fn only_traffic_is_worth_a_probe() {
        let (mut chooser, now) = chooser();
        assert!(!chooser.wants_probe(now, 0));
        assert!(!chooser.wants_probe(now, MEGABYTE - 1));
        assert!(chooser.wants_probe(now, MEGABYTE));
        assert!(!chooser.wants_probe(now, MEGABYTE + 1000), "nothing much since");
        assert!(chooser.wants_probe(now, 2 * MEGABYTE));
        chooser.begin();
        assert!(chooser.wants_probe(now, MEGABYTE));
    }

    #[test]
    fn quic_is_taken_on_a_lossy_path_once_enough_was_measured() {
        let (mut chooser, now) = chooser();
        assert!(!chooser.probed(now, probe(198), Some(RTT)));
        assert!(!chooser.probed(now, probe(198), Some(RTT)));
        assert!(chooser.probed(now, probe(198), Some(RTT)));
    }

    #[test]
    fn a_clean_path_keeps_websocket() {
        let (mut chooser, now) = chooser();
        assert!((0..100).all(|_| !chooser.probed(now, probe(200), Some(RTT))));
        // One datagram of thousands.
        assert!(!chooser.probed(now, probe(199), Some(RTT)));
        assert!((0..20).all(|_| !chooser.probed(now, probe(200), Some(RTT))));
    }

    #[test]
    fn what_was_measured_long_ago_is_forgotten() {
        let (mut chooser, now) = chooser();
        for _ in 0..3 {
            chooser.probed(now, probe(190), Some(RTT));
        }
        for _ in 0..30 {
            chooser.probed(now, probe(200), Some(RTT));
        }
        assert!(!chooser.probed(now, probe(200), Some(RTT)));
    }

    #[test]
    fn a_detour_is_not_taken() {
        let (mut chooser, now) = chooser();
        let rtt = RTT.mul_f64(1.25) + Duration::from_millis(6);
        let slow = Probe { rtt, typical_rtt: rtt, ..probe(150) };
        assert!((0..10).all(|_| !chooser.probed(now, slow, Some(RTT))));
        assert!((0..10).all(|_| !chooser.probed(now, probe(150), None)), "nothing to compare with");
        let quick = Probe { rtt: RTT.mul_f64(1.25) + Duration::from_millis(4), ..slow };
        assert!(chooser.probed(now, quick, Some(RTT)));
    }

    #[test]
    fn what_gets_lost_on_a_full_path_does_not_count() {
        let (mut chooser, now) = chooser();
        let full = Probe { typical_rtt: RTT * 2 + Duration::from_millis(11), ..probe(150) };
        assert!((0..10).all(|_| !chooser.probed(now, full, Some(RTT))));
        assert!(!chooser.probed(now, probe(150), Some(RTT)), "nothing was counted before");
    }

    #[test]
    fn a_path_that_carries_nothing_is_barred_longer_each_time() {
        let (mut chooser, mut now) = chooser();
        let mut moved = MEGABYTE;
        for minutes in [5, 10, 20, 40, 60, 60] {
            assert!(chooser.wants_probe(now, moved));
            assert!(!chooser.probed(now, probe(0), Some(RTT)));
            moved += MEGABYTE;
            now += Duration::from_secs(minutes * 60 - 1);
            assert!(!chooser.wants_probe(now, moved), "{minutes}");
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn websocket_is_taken_back_when_hardly_a_packet_is_lost() {
        let (mut chooser, _) = chooser();
        assert!(!chooser.wants_websocket(19_999, 0), "too few to tell");
        assert!(!chooser.wants_websocket(20_000, 10), "0.05 %");
        assert!(!chooser.wants_websocket(39_999, 10));
        assert!(chooser.wants_websocket(40_000, 19), "9 of the last 20,000");
    }

    #[test]
    fn after_the_way_back_everything_is_measured_anew() {
        let (mut chooser, now) = chooser();
        for _ in 0..3 {
            chooser.probed(now, probe(150), Some(RTT));
        }
        assert!(chooser.wants_websocket(20_000, 0));
        chooser.begin();
        assert!(chooser.wants_probe(now, MEGABYTE), "it is not barred");
        assert!(!chooser.probed(now, probe(150), Some(RTT)));
    }

    #[test]
    fn transports_by_name() {
        assert_eq!("auto".parse(), Ok(Transport::Auto));
        assert_eq!("ws".parse(), Ok(Transport::WebSocket));
        assert_eq!("quic".parse(), Ok(Transport::Quic));
        assert_eq!("tcp".parse::<Transport>(), Err(TransportError));
    }

    #[test]
    fn offers_that_cannot_be_are_none() {
        let address: SocketAddr = "[::1]:443".parse().unwrap();
        let offer =
            |port, length| v1::QuicOffer { port, certificate_sha256: vec![7; length].into() };
        let door = QuicDoor::new(address, &offer(8080, 32)).unwrap();
        assert_eq!((door.address.to_string().as_str(), door.certificate), ("[::1]:8080", [7; 32]));
        for (port, length) in [(0, 32), (65_536, 32), (1, 31), (1, 33), (1, 0)] {
            assert_eq!(QuicDoor::new(address, &offer(port, length)), None);
        }
    }
}
