//! What is known of one request, taken down when it is over, however it ended.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use uniroute_shared::{code::Code, id::RequestId, message::Fields};

use super::{proxy::Asked, visitor::Visitor};
use crate::{
    limits::bandwidth::Pacer,
    registry::{Tunnel, UnderWay},
    traffic::Finished,
};

/// See the module. Dropping it is the end of the request.
pub(crate) struct Record {
    pub(crate) visitor: Arc<Visitor>,
    pub(crate) tunnel: Arc<Tunnel>,
    id: RequestId,
    method: Bytes,
    target: Bytes,
    /// The visitor's address by the word of a proxy.
    told: Option<IpAddr>,
    began: Instant,
    /// When it counts as answered: an answer without an end would tell nothing by its own.
    answered: Option<Instant>,
    status: Option<u16>,
    error: Option<&'static Code>,
    bytes_in: u64,
    bytes_out: u64,
    /// Its place among the tunnel's requests, where they are counted.
    pub(crate) under_way: Option<UnderWay>,
}

impl Record {
    pub(crate) fn new(
        visitor: Arc<Visitor>,
        tunnel: Arc<Tunnel>,
        asked: &Asked,
        began: Instant,
    ) -> Self {
        Self {
            visitor,
            tunnel,
            id: asked.id,
            method: asked.head.method.clone(),
            target: asked.head.target.clone(),
            told: asked.came.as_ref().map(|came| came.visitor),
            began,
            answered: None,
            status: None,
            error: None,
            bytes_in: 0,
            bytes_out: 0,
            under_way: None,
        }
    }

    /// The visitor gets a page of ours.
    pub(crate) fn failed(&mut self, code: &'static Code) {
        self.error = Some(code);
        self.status = code.status;
    }

    /// The local server's answer has begun.
    pub(crate) fn answered(&mut self, status: u16, fields: &Fields) {
        self.status = Some(status);
        let endless = || {
            let kind = fields.get("content-type");
            kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"text/event-stream"))
        };
        if status == 101 || endless() {
            self.answered = Some(Instant::now());
        }
    }

    /// Bytes of the visitor's.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
        self.tunnel.counts.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tunnel.account.transferred(bytes as u64);
    }

    /// Bytes for him.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
        self.tunnel.counts.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tunnel.account.transferred(bytes as u64);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let told = self.told.map(|address| address.to_string());
        let finished = Finished {
            id: self.id,
            method: &self.method,
            target: &self.target,
            visitor: told.as_deref().unwrap_or(&self.visitor.address),
            status: self.status,
            error: self.error,
            began: self.began,
            ended: self.answered.unwrap_or_else(Instant::now),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
        };
        let edge = &self.visitor.edge;
        edge.journal.finished(&self.tunnel, &finished);
        edge.watchers.finished(&edge.events, &self.tunnel, &finished);
    }
}

/// A connection of another protocol, behind a 101: its bytes are counted, and wait where the user's
/// bandwidth has an end.
pub(crate) struct Counted<Io> {
    io: Io,
    record: Record,
    up: Pacer,
    down: Pacer,
}

impl<Io> Counted<Io> {
    pub(crate) fn new(io: Io, record: Record) -> Self {
        Self { io, record, up: Pacer::default(), down: Pacer::default() }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Counted<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        ready!(this.up.poll(cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        this.record.received(read);
        this.up.passed(&this.record.tunnel.account.bandwidth, read);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Counted<Io> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.down.poll(cx));
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.record.sent(written);
        this.down.passed(&this.record.tunnel.account.bandwidth, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
