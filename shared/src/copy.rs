//! A connection spliced to a stream: raw bytes both ways, with half close.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use uniroute_proto::v1::{self, stream_reply::Reply};

use crate::{
    session::{Receiver, Sender, StreamError},
    stream::{FrameReader, ReadError},
};

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
    /// The peer's first word is none.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The peer has no connection for this one.
    #[error("{}", .0.message)]
    Refused(v1::UpstreamError),
    /// The peer's first word says neither that it is connected nor why not.
    #[error("the answer to a connection is no answer to it")]
    NoAnswer,
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
    let mut splice = Splice::new(io, sender, Source::Raw(receiver), from_stream);
    std::future::poll_fn(|cx| splice.poll(cx)).await
}

/// The same for a stream whose other end has yet to connect: what comes from `io` is sent on at
/// once, and what comes back begins with the peer's word that it is connected.
///
/// # Errors
/// [`CopyError`]; the stream is then reset and the connection dropped.
pub async fn splice_connecting<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    sender: Sender,
    reply: FrameReader,
) -> Result<(), CopyError> {
    let mut splice = Splice::new(io, sender, Source::Reply(Some(reply)), Bytes::new());
    std::future::poll_fn(|cx| splice.poll(cx)).await
}

/// Where bytes from the stream come from.
enum Source {
    /// The peer has yet to say that it is connected.
    Reply(Option<FrameReader>),
    Raw(Receiver),
}

impl Source {
    /// The next bytes, as they came; `None` after the last ones.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CopyError>> {
        loop {
            let reader = match self {
                Self::Raw(receiver) => return receiver.poll_recv(cx).map_err(Into::into),
                Self::Reply(reader) => reader,
            };
            let Some(waiting) = reader else { return Poll::Ready(Err(CopyError::NoAnswer)) };
            let reply = ready!(waiting.poll_message::<v1::StreamReply>("StreamReply", cx))?;
            match reply {
                (v1::StreamReply { reply: Some(Reply::Connected(_)) }, false) => {}
                (v1::StreamReply { reply: Some(Reply::Error(error)) }, _) => {
                    return Poll::Ready(Err(CopyError::Refused(error)));
                }
                _ => return Poll::Ready(Err(CopyError::NoAnswer)),
            }
            let Some(reader) = reader.take() else { continue };
            let (receiver, begun) = reader.into_raw();
            *self = Self::Raw(receiver);
            if !begun.is_empty() {
                return Poll::Ready(Ok(Some(begun)));
            }
        }
    }
}

struct Splice<Io> {
    io: Io,
    sender: Sender,
    from: Source,
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
    fn new(io: Io, sender: Sender, from: Source, pending: Bytes) -> Self {
        let buffer = BytesMut::new();
        Self { io, sender, from, buffer, pending, up: false, down: Down::Copying }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        // First what came: it may say why the stream has ended.
        let down = self.poll_down(cx)?;
        let up = self.poll_up(cx)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        if !self.up
            && let Poll::Ready(error) = self.sender.poll_reset(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
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
                let Poll::Ready(chunk) = self.from.poll_recv(cx)? else {
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
