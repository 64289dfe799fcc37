//! A body of any length made of one static chunk.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Big enough that the two ends of a measurement cost little beside what stands between them.
const CHUNK: &[u8] = &[b'u'; 256 * 1024];

type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Exactly `left` bytes, known in advance, so that hyper announces a `content-length`.
///
/// Between two chunks other tasks and the sockets get their turn. Otherwise one connection with a fast reader holds
/// the thread for megabytes, and what is measured is the origin's own queue.
pub(crate) struct Repeat {
    left: u64,
    turn: Option<Turn>,
}

impl Repeat {
    pub(crate) fn empty() -> Self {
        Self::bytes(0)
    }

    pub(crate) fn bytes(len: u64) -> Self {
        Self { left: len, turn: None }
    }
}

impl Body for Repeat {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(cx));
            self.turn = None;
        }
        let len = usize::try_from(self.left).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
        self.left -= len as u64;
        if self.left > 0 {
            self.turn = Some(Box::pin(tokio::task::yield_now()));
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..len])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
