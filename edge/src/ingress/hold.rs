//! Requests whose agent is not there right now: they wait for it, within bounds, and go on when it
//! comes back. What waits is a head; its body is still with the visitor.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use uniroute_shared::{
    id::TunnelId,
    session::{OpenError, Receiver, Sender},
};

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
    /// Of each tunnel that anybody waits for, or has waited for until it was told last.
    by_tunnel: Mutex<HashMap<TunnelId, u64>>,
}

/// A place among those that wait.
#[derive(Debug)]
pub(crate) struct Place {
    edge: Arc<Shared>,
    tunnel: TunnelId,
    bytes: usize,
}

impl Hold {
    /// Requests wait for `time` at most; zero: not at all. There are `most` of them at a time.
    pub(crate) fn new(time: Duration, most: usize) -> Self {
        let (held, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { time, most, held, bytes, by_tunnel: Mutex::default() }
    }

    /// For how long a request for any tunnel waits at most.
    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// The same for this one.
    pub(crate) fn of(&self, tunnel: &Tunnel) -> Duration {
        tunnel.hold(self.time)
    }

    /// How many wait for which tunnel; once with 0 when nobody does any more.
    pub(crate) fn counts(&self) -> Vec<(TunnelId, u64)> {
        let mut by_tunnel = self.by_tunnel.lock();
        let counts = by_tunnel.iter().map(|(tunnel, count)| (*tunnel, *count)).collect();
        by_tunnel.retain(|_, count| *count > 0);
        counts
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
    pub(crate) fn take(
        edge: &Arc<Shared>,
        tunnel: &Tunnel,
        bytes: usize,
    ) -> Result<Self, ProxyError> {
        let hold = &edge.hold;
        if hold.of(tunnel).is_zero() {
            return Err(ProxyError::Offline);
        }
        let held = hold.held.fetch_add(1, Ordering::Relaxed);
        let total = hold.bytes.fetch_add(bytes, Ordering::Relaxed);
        *hold.by_tunnel.lock().entry(tunnel.id).or_default() += 1;
        let place = Self { edge: Arc::clone(edge), tunnel: tunnel.id, bytes };
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
        if let Some(count) = hold.by_tunnel.lock().get_mut(&self.tunnel) {
            *count = count.saturating_sub(1);
        }
    }
}

/// A stream of `target`; `None`: it may be waited for, since its session has just ended or all its
/// streams are taken.
///
/// # Errors
/// [`ProxyError`] when they are and nothing waits here.
pub(crate) fn open(edge: &Shared, target: Arc<Target>) -> Result<Option<Found>, ProxyError> {
    match target.session.carried.open() {
        Ok((sender, receiver)) => Ok(Some((target, sender, receiver))),
        Err(error @ OpenError::TooManyStreams) if edge.hold.of(&target.tunnel).is_zero() => {
            Err(error.into())
        }
        Err(_) => Ok(None),
    }
}

fn stream(target: Arc<Target>) -> Result<Found, OpenError> {
    let (sender, receiver) = target.session.carried.open()?;
    Ok((target, sender, receiver))
}

/// Waits for an agent that serves `tunnel`, and has a stream for it.
///
/// # Errors
/// [`ProxyError::Offline`] when none came in time, [`ProxyError::Open`] when all streams stay taken,
/// [`ProxyError::Draining`] when the edge stops.
pub(crate) async fn wait(
    edge: Arc<Shared>,
    tunnel: Arc<Tunnel>,
    _place: Place,
) -> Result<Found, ProxyError> {
    let began = Instant::now();
    let deadline = began + edge.hold.of(&tunnel);
    edge.metrics.held.inc();
    loop {
        // Enrolled before the look, so that nobody who comes in between is missed.
        let mut arrived = std::pin::pin!(tunnel.arrived.notified());
        arrived.as_mut().enable();
        let found = match edge.registry.lookup(tunnel.name.as_str()) {
            // Whoever has the name by now may be somebody else.
            Lookup::Live(target) if Arc::ptr_eq(&target.tunnel, &tunnel) => Some(stream(target)),
            Lookup::Offline(..) => None,
            Lookup::Live(_) | Lookup::Unknown => return Err(ProxyError::Offline),
        };
        let busy = match found {
            Some(Ok(found)) => return Ok(found),
            Some(Err(error @ OpenError::TooManyStreams)) => {
                if began.elapsed() >= BUSY {
                    return Err(error.into());
                }
                true
            }
            Some(Err(_)) | None => false,
        };
        tokio::select! {
            () = &mut arrived => {}
            () = tokio::time::sleep(BUSY_LOOK), if busy => {}
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
