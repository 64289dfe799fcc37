//! Requests whose agent is not there right now: they wait for it, within bounds, and go on when it
//! comes back. What waits is a head; its body is still with the visitor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use uniroute_shared::session::{OpenError, Receiver, Sender};

use super::error::ProxyError;
use crate::{
    Shared,
    registry::{Lookup, Target, Tunnel},
};

/// Bytes of heads that wait at a time.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// For how long a request waits for one of its session's streams, if all are taken: a burst is no
/// reason to turn anybody away.
const BUSY: Duration = Duration::from_secs(1);
/// How often it looks whether one is free.
const BUSY_LOOK: Duration = Duration::from_millis(20);

/// A stream to the agent that serves a tunnel.
pub(crate) type Found = (Arc<Target>, Sender, Receiver);

/// How much waits now, and for how long it may.
#[derive(Debug)]
pub(crate) struct Hold {
    time: Duration,
    most: usize,
    held: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among those that wait.
#[derive(Debug)]
pub(crate) struct Place {
    edge: Arc<Shared>,
    bytes: usize,
}

impl Hold {
    /// Requests wait for `time` at most; zero: not at all. There are `most` of them at a time.
    pub(crate) fn new(time: Duration, most: usize) -> Self {
        Self { time, most, held: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// For how long a request waits at most.
    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// Requests that wait now.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Room for a request with a head of `bytes`.
    ///
    /// # Errors
    /// [`ProxyError::Offline`] when nothing is held, [`ProxyError::HoldFull`] when too much is.
    pub(crate) fn take(edge: &Arc<Shared>, bytes: usize) -> Result<Self, ProxyError> {
        let hold = &edge.hold;
        if hold.time.is_zero() {
            return Err(ProxyError::Offline);
        }
        let held = hold.held.fetch_add(1, Ordering::Relaxed);
        let total = hold.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Self { edge: Arc::clone(edge), bytes };
        match held < hold.most && total < MAX_BYTES {
            true => Ok(place),
            false => Err(ProxyError::HoldFull),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let hold = &self.edge.hold;
        hold.held.fetch_sub(1, Ordering::Relaxed);
        hold.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A stream of whoever serves `tunnel` now; `None`: nobody does, and it may be waited for.
///
/// # Errors
/// [`ProxyError`] when there is nothing to wait for.
pub(crate) fn find(edge: &Shared, tunnel: &Tunnel) -> Result<Option<Found>, ProxyError> {
    match edge.registry.lookup(tunnel.name.as_str()) {
        Lookup::Live(target) => open(target),
        Lookup::Offline(..) => Ok(None),
        Lookup::Unknown => Err(ProxyError::Offline),
    }
}

/// A stream of `target`; `None`: its session takes no more, so that another one is to be waited for.
///
/// # Errors
/// [`ProxyError`] when the session has as many as it may.
pub(crate) fn open(target: Arc<Target>) -> Result<Option<Found>, ProxyError> {
    match target.session.carried.open() {
        Ok((sender, receiver)) => Ok(Some((target, sender, receiver))),
        Err(error @ OpenError::TooManyStreams) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Waits for an agent that serves `tunnel`.
///
/// # Errors
/// [`ProxyError::Offline`] when none came in time, [`ProxyError::Draining`] when the edge stops.
pub(crate) async fn wait(
    edge: Arc<Shared>,
    tunnel: Arc<Tunnel>,
    _place: Place,
) -> Result<Found, ProxyError> {
    let began = Instant::now();
    let deadline = began + edge.hold.time;
    edge.metrics.held.inc();
    loop {
        // Enrolled before the look, so that nobody who comes in between is missed.
        let mut arrived = std::pin::pin!(tunnel.arrived.notified());
        arrived.as_mut().enable();
        let look = match find(&edge, &tunnel) {
            Ok(Some(found)) => {
                return match found.0.tunnel.id == tunnel.id {
                    true => Ok(found),
                    false => Err(ProxyError::Offline),
                };
            }
            Ok(None) => edge.hold.time,
            Err(ProxyError::Open(OpenError::TooManyStreams)) if began.elapsed() < BUSY => BUSY_LOOK,
            Err(error) => return Err(error),
        };
        tokio::select! {
            () = &mut arrived => {}
            () = tokio::time::sleep(look), if look == BUSY_LOOK => {}
            () = tokio::time::sleep_until(deadline) => return Err(ProxyError::Offline),
            () = edge.stop.cancelled() => return Err(ProxyError::Draining),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("id", &self.id).finish_non_exhaustive()
    }
}
