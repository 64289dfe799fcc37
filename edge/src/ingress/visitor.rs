//! One visitor's connection, as its requests see it: what they have in common, and its one timer.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;
use uniroute_shared::deadline::Deadline;

use crate::Shared;

/// A connection's first head has to be complete after this long (T04).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A later one after this long, idle time included: a slow head then costs no more than an idle
/// connection. Longer than load balancers keep theirs (60 s is usual), so that they close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// See the module.
pub(crate) struct Visitor {
    pub(crate) edge: Arc<Shared>,
    /// The thread that the connection is on.
    pub(crate) worker: usize,
    pub(crate) peer: SocketAddr,
    /// The visitor's address as heads have it, written once for all requests.
    pub(crate) address: String,
    state: Mutex<State>,
}

struct State {
    timer: Deadline,
    /// Requests whose answer is not over; one at a time over HTTP/1.
    under_way: usize,
    /// The timer fired while a request was under way, and the request has not seen it yet.
    fired: bool,
}

impl Visitor {
    pub(crate) fn new(edge: Arc<Shared>, worker: usize, peer: SocketAddr) -> Arc<Self> {
        let address: IpAddr = peer.ip().to_canonical();
        let timer = Deadline::at(Instant::now() + HEAD_TIMEOUT);
        let state = Mutex::new(State { timer, under_way: 0, fired: false });
        Arc::new(Self { edge, worker, peer, address: address.to_string(), state })
    }

    /// A request begins. It is over when what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state.lock();
        state.under_way += 1;
        state.fired = false;
        state.timer.clear();
        UnderWay(Arc::clone(self))
    }

    /// The request under way is to be looked at when `due` has come, or no more.
    pub(crate) fn look_at(&self, due: Option<Instant>) {
        let mut state = self.state.lock();
        match due {
            Some(due) => state.timer.set(due),
            None => state.timer.clear(),
        }
    }

    /// Whether the time that was set with [`Visitor::look_at`] has come; said once.
    pub(crate) fn is_due(&self) -> bool {
        std::mem::take(&mut self.state.lock().fired)
    }

    /// What the connection's timer says.
    pub(crate) fn poll_timer(&self, cx: &mut Context<'_>) -> Poll<Due> {
        let mut state = self.state.lock();
        ready!(state.timer.poll(cx));
        if state.under_way == 0 {
            return Poll::Ready(Due::Silent);
        }
        state.fired = true;
        Poll::Ready(Due::Request)
    }
}

/// What is due on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// It said nothing, or too slowly, for too long.
    Silent,
    /// Its request wants to be looked at.
    Request,
}

/// A request that is not over.
pub(crate) struct UnderWay(Arc<Visitor>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.timer.set(Instant::now() + IDLE_TIMEOUT);
        }
    }
}

/// An answer's body, whose end is its request's.
pub(crate) struct Answer<B> {
    pub(crate) body: B,
    pub(crate) _request: UnderWay,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
