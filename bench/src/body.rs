//! A body of any length made of one static chunk.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Big enough that the two ends of a measurement cost little beside what stands between them.
const CHUNK: &[u8] = &[b'u'; 256 * 1024];

/// Exactly `left` bytes, known in advance, so that hyper announces a `content-length`.
pub(crate) struct Repeat {
    left: u64,
}

impl Repeat {
    pub(crate) fn empty() -> Self {
        Self { left: 0 }
    }

    pub(crate) fn bytes(len: u64) -> Self {
        Self { left: len }
    }
}

impl Body for Repeat {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let len = usize::try_from(self.left).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
        self.left -= len as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..len])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
