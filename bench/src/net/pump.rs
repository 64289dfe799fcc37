//! Carries packets from one device to the other, each at its time: a thread for each direction.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tun_rs::SyncDevice;

use super::wire::{Fate, Wire};

/// Between two looks while packets flow: what a packet may come late, and what bounds the cost at a high rate.
const NAP: Duration = Duration::from_micros(80);
const PACKET: usize = 64 * 1024;

pub(crate) struct Pump {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
    blocked: AtomicU64,
}

impl Pump {
    /// The thread ends with the process, or with an error that it reports.
    pub(crate) fn start(
        from: &Arc<SyncDevice>,
        to: &Arc<SyncDevice>,
        wire: Wire,
        no_udp: bool,
        failed: &mpsc::Sender<anyhow::Error>,
    ) -> anyhow::Result<Self> {
        let counts = Arc::new(Counts::default());
        let direction = Direction {
            from: Arc::clone(from),
            to: Arc::clone(to),
            wire,
            no_udp,
            on_their_way: VecDeque::new(),
            counts: Arc::clone(&counts),
        };
        let failed = failed.clone();
        thread::Builder::new().name("link".to_owned()).spawn(move || {
            if let Err(error) = direction.run() {
                let _ = failed.blocking_send(error);
            }
        })?;
        Ok(Self { counts })
    }

    pub(crate) fn counts(&self) -> String {
        let Counts { passed, lost, dropped, blocked } = &*self.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} packets arrived, {} lost, {} dropped by the full queue, {} UDP packets blocked",
            of(passed),
            of(lost),
            of(dropped),
            of(blocked)
        )
    }
}

struct Direction {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    wire: Wire,
    no_udp: bool,
    /// In the order of their arrival, as all have the same delay.
    on_their_way: VecDeque<(Instant, Box<[u8]>)>,
    counts: Arc<Counts>,
}

impl Direction {
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, on which no task runs")]
    fn run(mut self) -> anyhow::Result<()> {
        // A sleep ends up to 50 us late otherwise.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000))?;
        let mut buffer = vec![0; PACKET];
        loop {
            self.wait().context("waiting for packets")?;
            self.take(&mut buffer).context("taking a packet")?;
            self.give().context("giving a packet")?;
            thread::sleep(NAP);
        }
    }

    /// Until a packet is there to be taken, or one has arrived.
    fn wait(&self) -> rustix::io::Result<()> {
        let due = self.on_their_way.front().map(|(due, _)| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut [PollFd::new(&*self.from, PollFlags::IN)], due.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        loop {
            let packet = match self.from.recv(buffer) {
                Ok(len) => &buffer[..len],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.no_udp && is_udp(packet) {
                self.counts.blocked.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match self.wire.send(Instant::now(), packet.len()) {
                Fate::Arrives(at) => self.on_their_way.push_back((at, packet.into())),
                Fate::Lost => {
                    self.counts.lost.fetch_add(1, Ordering::Relaxed);
                }
                Fate::Dropped => {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn give(&mut self) -> std::io::Result<()> {
        let now = Instant::now();
        while let Some((_, packet)) = self.on_their_way.pop_front_if(|(due, _)| *due <= now) {
            self.to.send(&packet)?;
            self.counts.passed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Of an IPv4 packet, which is all that the ends have addresses for.
fn is_udp(packet: &[u8]) -> bool {
    const UDP: u8 = 17;
    packet.get(9) == Some(&UDP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_told_by_the_protocol_field() {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        assert!(is_udp(&packet));
        packet[9] = 6;
        assert!(!is_udp(&packet));
        assert!(!is_udp(&packet[..9]));
    }
}
