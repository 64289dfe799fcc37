//! A stream of HTTP/2 as a connection's bytes, for what is neither request nor answer any more.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::SendStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use uniroute_shared::{
    http2::{Incoming, poll_capacity},
    message::{Piece, Source as _},
};

/// Both directions; each ends as the stream's does.
pub(super) struct RawStream<'a> {
    send: SendStream<Bytes>,
    body: &'a mut Incoming,
    /// Came in and was not read.
    rest: Bytes,
    ended: bool,
}

impl<'a> RawStream<'a> {
    pub(super) fn new(send: SendStream<Bytes>, body: &'a mut Incoming) -> Self {
        Self { send, body, rest: Bytes::new(), ended: false }
    }
}

impl AsyncRead for RawStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.body.poll_piece(cx)).map_err(into_io)? {
                Some(Piece::Data(data)) => self.rest = data,
                Some(Piece::Trailers(_)) | None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..taken]);
        self.rest.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RawStream<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let capacity = ready!(poll_capacity(cx, &mut self.send, bytes.len())).map_err(into_io)?;
        let taken = capacity.min(bytes.len());
        let sent = self.send.send_data(Bytes::copy_from_slice(&bytes[..taken]), false);
        Poll::Ready(sent.map(|()| taken).map_err(into_io))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            self.send.send_data(Bytes::new(), true).map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::other(error)
    }
}
