//! Bytes a second of a user's tunnels, all together and both ways: what is over waits, nothing is
//! lost. Waiting is backpressure, up to whoever sends.

use std::{
    future::Future as _,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// How far a sender may be ahead: a piece is passed on whole, whatever the rate.
const AHEAD: Duration = Duration::from_millis(100);

/// What a user's bytes may take.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// When everything that was passed on so far would be through.
    through: Mutex<Instant>,
}

impl Bandwidth {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate: AtomicU64::new(rate.unwrap_or(0)), through: Mutex::new(Instant::now()) }
    }

    pub(crate) fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.rate.load(Ordering::Relaxed) > 0
    }

    /// Takes `bytes` into account; until when the next ones should wait.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return now;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        let mut through = self.through.lock();
        *through = (*through).max(now) + Duration::from_nanos(nanos);
        through.checked_sub(AHEAD).unwrap_or(now)
    }
}

/// One body's way through a [`Bandwidth`]: poll before a piece, [`Pacer::passed`] behind it.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    waits: Option<Pin<Box<Sleep>>>,
}

impl Pacer {
    /// Ready when the next piece may pass.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waits) = &mut self.waits {
            if waits.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.waits = None;
        }
        Poll::Ready(())
    }

    pub(crate) fn passed(&mut self, bandwidth: &Bandwidth, bytes: usize) {
        if bandwidth.is_limited() {
            let now = Instant::now();
            let until = bandwidth.take(bytes as u64, now);
            if until > now {
                self.waits = Some(Box::pin(sleep_until(until)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_bodies_share_what_there_is() {
        let bandwidth = Bandwidth::new(Some(1_000_000));
        let began = Instant::now();
        let send = async |pieces: usize| {
            let mut pacer = Pacer::default();
            for _ in 0..pieces {
                poll_fn(|cx| pacer.poll(cx)).await;
                pacer.passed(&bandwidth, 10_000);
            }
            poll_fn(|cx| pacer.poll(cx)).await;
        };
        tokio::join!(send(100), send(100));
        let took = began.elapsed().as_secs_f64();
        assert!((1.85..2.05).contains(&took), "2 MB at 1 MB/s took {took} s");
        bandwidth.set(None);
        send(1_000_000).await;
        assert!(began.elapsed().as_secs_f64() - took < 0.2);
    }
}
