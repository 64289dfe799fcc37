//! When the edge is asked for a sign of life, beside its heartbeats: once each time a session that was
//! busy has become quiet, and when the network may be another. Nothing of it is on a request's way: the
//! session is looked at once a second.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::network::{Clock, Network};

/// A busy session that has received nothing for this long is asked.
pub(super) const QUIET: Duration = Duration::from_secs(2);
/// An edge that is asked for a sign of life has this long; with [`QUIET`] and a look's second, a dead
/// link is known after 8 s.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// The same once the network is another: then the old way is most likely gone.
pub(super) const SHORT_SILENCE: Duration = Duration::from_secs(2);
/// Looks for which what moves counts as control frames' own.
const CONTROL_LOOKS: u8 = 2;
/// Bytes in one look that are more than control frames.
const CONTROL_BYTES: u64 = 16 * 1024;
/// The network is looked at in every so many looks.
const NETWORK_LOOKS: u8 = 3;

/// Why the edge is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing has come for a while, and something did before.
    Quiet,
    /// The machine slept for so long.
    Slept(Duration),
    /// The way to the edge begins at another address.
    OtherNetwork,
}

impl Why {
    /// How long the edge has to answer.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Quiet => SILENCE,
            Self::Slept(_) | Self::OtherNetwork => SHORT_SILENCE,
        }
    }
}

/// What was seen of a session.
pub(super) struct Life {
    /// Bytes that it had moved at the last look.
    moved: u64,
    /// Something else than control frames has moved since the edge was last asked.
    busy: bool,
    /// Looks for which that can't be told.
    control: u8,
    network: Network,
    until_network: u8,
    clock: Clock,
}

impl Life {
    /// Of a session whose socket's other end is `peer`.
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self {
            moved: 0,
            busy: false,
            control: CONTROL_LOOKS,
            network: Network::towards(Some(peer)),
            until_network: NETWORK_LOOKS,
            clock: Clock::new(),
        }
    }

    /// Control frames come or go: an idle session has nothing else.
    pub(super) fn control(&mut self) {
        self.control = CONTROL_LOOKS;
    }

    /// One look, each second: why the edge is to be asked now.
    pub(super) fn look(&mut self, moved: u64, last_received: Instant) -> Option<Why> {
        if let Some(slept) = self.clock.jumped() {
            return Some(Why::Slept(slept));
        }
        self.until_network -= 1;
        if self.until_network == 0 {
            self.until_network = NETWORK_LOOKS;
            if self.network.changed() {
                return Some(Why::OtherNetwork);
            }
        }
        self.is_quiet(moved, last_received.elapsed()).then_some(Why::Quiet)
    }

    fn is_quiet(&mut self, moved: u64, silent: Duration) -> bool {
        let moves = moved.abs_diff(std::mem::replace(&mut self.moved, moved));
        let control = if self.control > 0 { CONTROL_BYTES } else { 0 };
        self.control = self.control.saturating_sub(1);
        self.busy |= moves > control;
        let quiet = self.busy && silent >= QUIET;
        if quiet {
            self.busy = false;
            // The question and its answer.
            self.control();
        }
        quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn life() -> Life {
        let mut life = Life::new("127.0.0.1:1".parse().unwrap());
        for _ in 0..CONTROL_LOOKS {
            assert!(!life.is_quiet(0, Duration::ZERO), "the handshake");
        }
        life
    }

    #[test]
    fn an_idle_session_is_never_asked() {
        let mut life = life();
        let mut moved = 0;
        for second in 0..3600 {
            if second % 30 == 0 {
                // A heartbeat, and its answer.
                life.control();
                moved += 100;
            }
            assert!(!life.is_quiet(moved, SECOND * (second % 30)), "{second}");
        }
    }

    #[test]
    fn a_burst_beside_control_frames_is_no_control_frame() {
        let mut life = Life::new("127.0.0.1:1".parse().unwrap());
        assert!(!life.is_quiet(1_000_000, Duration::ZERO), "right after the handshake");
        assert!(!life.is_quiet(1_000_000, SECOND));
        assert!(life.is_quiet(1_000_000, QUIET));
    }

    #[test]
    fn a_busy_one_is_asked_once_when_it_becomes_quiet() {
        let mut life = life();
        for second in 1..10 {
            assert!(!life.is_quiet(second * 100, Duration::ZERO));
        }
        assert!(!life.is_quiet(900, SECOND));
        assert!(life.is_quiet(900, 2 * SECOND));
        // Its answer.
        assert!(!life.is_quiet(1000, Duration::ZERO));
        assert!((1..60).all(|second| !life.is_quiet(1000, SECOND * second)));
        // The next request, of which nothing comes back.
        assert!(!life.is_quiet(1200, Duration::ZERO));
        assert!(!life.is_quiet(1200, SECOND));
        assert!(life.is_quiet(1200, 2 * SECOND));
    }

    #[test]
    fn what_only_goes_out_counts_too() {
        let mut life = life();
        assert!(life.is_quiet(5000, 30 * SECOND), "nothing has come for long");
        assert!(!life.is_quiet(6000, 31 * SECOND), "it has just been asked");
    }

    #[test]
    fn a_heartbeat_among_requests_changes_nothing() {
        let mut life = life();
        life.is_quiet(100, Duration::ZERO);
        life.control();
        assert!(!life.is_quiet(200, SECOND));
        assert!(life.is_quiet(200, 2 * SECOND));
    }
}
