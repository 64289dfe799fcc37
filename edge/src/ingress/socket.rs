//! A visitor's socket, with the bytes that were read of it before it was known who serves it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct VisitorSocket {
    socket: TcpStream,
    early: Bytes,
}

impl VisitorSocket {
    pub(crate) fn new(socket: TcpStream, early: Bytes) -> Self {
        Self { socket, early }
    }

    /// The socket, and what was read of it and is still to be used: `read` by whoever had it last.
    pub(crate) fn into_parts(self, read: Bytes) -> (TcpStream, Bytes) {
        if self.early.is_empty() {
            return (self.socket, read);
        }
        let mut all = BytesMut::from(read);
        all.extend_from_slice(&self.early);
        (self.socket, all.freeze())
    }
}

impl AsyncRead for VisitorSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let take = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..take]);
        self.early.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for VisitorSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// hyper asks for it right before it drops the socket, and that says the same to the peer: one
    /// system call less for each connection.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
