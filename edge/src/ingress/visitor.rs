//! What all requests of one visitor's connection have in common.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tracing::info;
use uniroute_shared::{code::Code, deadline::Deadline};

use super::{error::ProxyError, proxy::Asked};
use crate::{
    Shared,
    limits::{self, addresses::Counted},
};

/// See the module.
pub(crate) struct Visitor {
    pub(crate) edge: Arc<Shared>,
    /// The thread that the connection is on.
    pub(crate) worker: usize,
    pub(crate) peer: SocketAddr,
    /// The peer's address as heads have it, written once for all requests.
    pub(crate) address: String,
    /// The same as the first part of `Forwarded` has it (RFC 7239, section 6).
    pub(crate) node: String,
    /// How the peer reaches this listener: `http` or `https`.
    pub(crate) scheme: &'static str,
    /// It is a proxy that says truly where requests came from.
    pub(crate) trusted: bool,
    /// Its place among the connections of its address.
    pub(crate) counted: Option<Counted>,
}

impl Visitor {
    pub(crate) fn new(
        edge: Arc<Shared>,
        worker: usize,
        peer: SocketAddr,
        counted: Option<Counted>,
    ) -> Arc<Self> {
        let ip = peer.ip().to_canonical();
        let node = match ip {
            IpAddr::V4(v4) => format!("for={v4};host=\""),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";host=\""),
        };
        let trusted = edge.trusted.contains(ip);
        let address = ip.to_string();
        Arc::new(Self { edge, worker, peer, address, node, scheme: "http", trusted, counted })
    }
}

impl Visitor {
    /// Whether a request may be asked now, as far as it is for the edge and the visitor's address to
    /// say.
    ///
    /// # Errors
    /// [`ProxyError::Limited`].
    pub(crate) fn check_rate(&self, asked: &Asked) -> Result<(), ProxyError> {
        // A connection may be older than the ban, or a proxy's.
        if let Some(ban) = self.edge.abuse.banned(asked.address(self)) {
            return Err(ProxyError::Limited(&Code::ADDRESS_BANNED, ban.left()));
        }
        if self.edge.addresses.rate().is_some() {
            match &asked.came {
                Some(came) => {
                    if let Some(address) = self.edge.addresses.address(came.visitor) {
                        limits::check(&address.gate, &Code::ADDRESS_RATE)?;
                    }
                }
                None => {
                    if let Some(counted) = &self.counted {
                        limits::check(&counted.address().gate, &Code::ADDRESS_RATE)?;
                    }
                }
            }
        }
        limits::check(&self.edge.gate, &Code::EDGE_RATE)
    }
}

/// With a visitor who takes nothing of an answer that waits for him: it has an end, for his request
/// holds one of the session's streams.
pub(crate) struct Patience<'a> {
    visitor: &'a Visitor,
    timer: &'a mut Deadline,
    /// Zero: for ever.
    limit: Duration,
    waits: bool,
}

impl<'a> Patience<'a> {
    /// With the connection's or the request's timer.
    pub(crate) fn new(visitor: &'a Visitor, timer: &'a mut Deadline) -> Self {
        timer.clear();
        Self { visitor, timer, limit: visitor.edge.stall, waits: false }
    }

    /// Ready when he has taken nothing for too long. `has_room`: he has just taken something.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, has_room: bool) -> Poll<()> {
        if has_room {
            if std::mem::take(&mut self.waits) {
                self.timer.clear();
            }
            return Poll::Pending;
        }
        if !std::mem::replace(&mut self.waits, true) && !self.limit.is_zero() {
            self.timer.set(Instant::now() + self.limit);
        }
        if self.timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let code = &Code::VISITOR_STALLED;
        self.visitor.edge.metrics.failed(code);
        info!(%code, peer = %self.visitor.peer, "a visitor takes nothing of his answer");
        Poll::Ready(())
    }
}
