//! An upgraded connection, spliced to a stream: raw bytes both ways, with half close.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::{Receiver, Sender, StreamError};

/// What one read from the connection asks for, in bytes.
const READ: usize = 16 * 1024;

/// Why a splice ended before both directions were over.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The stream was cut.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Copies until both directions have ended. What ends in one direction is passed on as a half
/// close; an error in one ends both. Each side comes with what was read from it already.
///
/// # Errors
/// [`CopyError`]; the stream is then reset and the connection dropped.
pub async fn splice<Io: AsyncRead + AsyncWrite + Unpin>(
    (io, from_io): (Io, Bytes),
    mut sender: Sender,
    (receiver, from_stream): (Receiver, Bytes),
) -> Result<(), CopyError> {
    sender.send(from_io, false)?;
    let mut splice = Splice {
        io,
        sender,
        receiver,
        buffer: BytesMut::new(),
        pending: from_stream,
        up: false,
        down: Down::Copying,
    };
    std::future::poll_fn(|cx| splice.poll(cx)).await
}

struct Splice<Io> {
    io: Io,
    sender: Sender,
    receiver: Receiver,
    buffer: BytesMut,
    /// From the stream, not yet written to the connection.
    pending: Bytes,
    /// Connection to stream is over.
    up: bool,
    down: Down,
}

#[derive(PartialEq, Eq)]
enum Down {
    Copying,
    Closing,
    Over,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Splice<Io> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        let up = self.poll_up(cx)?;
        let down = self.poll_down(cx)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        while !self.up {
            ready!(self.sender.poll_ready(cx))?;
            self.buffer.reserve(READ);
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer);
            self.up = ready!(read)? == 0;
            self.sender.send(self.buffer.split().freeze(), self.up)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        while self.down == Down::Copying {
            if self.pending.is_empty() {
                let Poll::Ready(chunk) = self.receiver.poll_recv(cx)? else {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    return Poll::Pending;
                };
                match chunk {
                    Some(chunk) => self.pending = chunk,
                    None => self.down = Down::Closing,
                }
                continue;
            }
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.pending.advance(written);
        }
        if self.down == Down::Closing {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.down = Down::Over;
        }
        Poll::Ready(Ok(()))
    }
}
