//! A connection that carries one message after the other in each direction: what was read and not
//! yet used, and what is to be written. Whoever has it polls it; it has no task and no timer.
//!
//! An idle connection holds no buffers. Heads are read through a buffer that the connections of a
//! thread share; bodies are read into memory of their own and handed on without a copy.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::{
    body::{BodyError, BodyReader},
    head::{self, HeadError},
};
use crate::{
    message::{Piece, Source},
    scratch::Scratch,
};

/// What one read takes while a head is waited for, in bytes. Longer reads would copy more of the
/// body behind it.
const HEAD_READ: usize = 16 * 1024;
/// What reads of a body ask for at first and at most, in bytes.
const BODY_READ: std::ops::RangeInclusive<usize> = 8 * 1024..=128 * 1024;
/// Bytes that are kept of what comes before it is wanted: requests behind the one under way.
const READ_AHEAD: usize = 64 * 1024;
/// Bytes that may wait to be written before more are taken.
const WRITE_AHEAD: usize = 64 * 1024;
/// Pieces shorter than this are copied together.
const SHORT: usize = 4 * 1024;
/// Pieces for one write.
const SLICES: usize = 32;
/// What the buffer for heads may keep from one message to the next, in bytes.
const KEPT: usize = 1024;

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer has ended it in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Cut,
    /// A head that is none.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A body whose end can't be trusted.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// See the module.
#[derive(Debug)]
pub struct Conn<Io> {
    io: Io,
    input: BytesMut,
    /// Bytes of `input` in which no head ends.
    seen: usize,
    /// The peer sends nothing more.
    ended: bool,
    read_size: usize,
    /// Heads that come in are answers.
    answers: bool,
    out: Out,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Conn<Io> {
    /// A connection on which requests come in, and of which `early` was read already.
    #[must_use]
    pub fn server(io: Io, early: Bytes) -> Self {
        Self {
            io,
            input: BytesMut::from(early),
            seen: 0,
            ended: false,
            read_size: *BODY_READ.start(),
            answers: false,
            out: Out::default(),
        }
    }

    /// A connection on which answers come in.
    #[must_use]
    pub fn client(io: Io) -> Self {
        Self { answers: true, ..Self::server(io, Bytes::new()) }
    }

    /// The bytes of the next head; `None`: the peer ended the connection instead.
    ///
    /// # Errors
    /// [`ReadFault`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadFault>> {
        loop {
            // RFC 9112, section 2.2: an empty line before a message is no part of it.
            while self.seen == 0 && self.input.starts_with(b"\r\n") {
                self.input.advance(2);
            }
            if self.seen == 0
                && !self.input.starts_with(b"\r")
                && !head::may_begin(&self.input, self.answers)
            {
                return Poll::Ready(Err(HeadError::Malformed("this is not HTTP").into()));
            }
            if let Some(end) = head::end(&self.input, self.seen)? {
                self.seen = 0;
                return Poll::Ready(Ok(Some(self.input.split_to(end).freeze())));
            }
            // Without its last byte, which may be the CR of an empty line before the message.
            self.seen = self.input.len().saturating_sub(1);
            if self.ended {
                return Poll::Ready(match self.input.is_empty() {
                    true => Ok(None),
                    false => Err(ReadFault::Cut),
                });
            }
            ready!(self.poll_fill(cx, HEAD_READ))?;
        }
    }

    /// The next piece of a body; `None` when it is over.
    ///
    /// # Errors
    /// [`ReadFault`]; [`ReadFault::Cut`] where the connection ends before the body does.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut BodyReader,
    ) -> Poll<Result<Option<Piece>, ReadFault>> {
        loop {
            if let Some(piece) = body.decode(&mut self.input)? {
                return Poll::Ready(Ok(Some(piece)));
            }
            if body.is_over() {
                return Poll::Ready(Ok(None));
            }
            if self.ended {
                if body.ends_with_connection() {
                    body.end();
                    return Poll::Ready(Ok(None));
                }
                return Poll::Ready(Err(ReadFault::Cut));
            }
            ready!(self.poll_body_read(cx, body.expects()))?;
        }
    }

    /// Reads into memory that is handed on.
    fn poll_body_read(&mut self, cx: &mut Context<'_>, expects: usize) -> Poll<io::Result<()>> {
        let size = match expects {
            0 => self.read_size,
            expects => self.read_size.min(expects.max(*BODY_READ.start())),
        };
        self.input.reserve(size);
        let room = self.input.capacity() - self.input.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input))?;
        self.ended = read == 0;
        if read == room {
            self.read_size = (self.read_size * 2).min(*BODY_READ.end());
        }
        Poll::Ready(Ok(()))
    }

    /// Reads through the thread's buffer.
    fn poll_fill(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<()>> {
        let mut buffer = Scratch::Read.take(most);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut (&mut buffer).limit(most));
        if let Poll::Ready(Ok(read)) = &read {
            self.ended = *read == 0;
            self.input.extend_from_slice(&buffer);
        }
        Scratch::Read.give_back(buffer);
        read.map_ok(|_| ())
    }

    /// Ready when the peer has gone, while nothing is wanted of it. What it sends meanwhile is kept,
    /// up to a bound; then its leaving is not seen.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ended {
            if self.input.len() >= READ_AHEAD {
                return Poll::Pending;
            }
            ready!(self.poll_fill(cx, HEAD_READ))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether something was read that no message has used.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Whether the peer has ended its direction, as far as was read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Throws away what comes, until the peer has ended the connection.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ended {
            self.input.clear();
            ready!(self.poll_fill(cx, HEAD_READ))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Where a head is written to.
    pub fn head(&mut self) -> &mut BytesMut {
        &mut self.out.flat
    }

    /// Queues bytes as they are.
    pub fn write(&mut self, bytes: Bytes) {
        self.out.push(bytes);
    }

    /// Queues bytes as a chunk.
    pub fn write_chunk(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            put_hexadecimal(bytes.len(), &mut self.out.flat);
            self.out.push(bytes);
            self.out.flat.extend_from_slice(b"\r\n");
        }
    }

    /// Queues the last chunk, with `trailers` behind it.
    pub fn write_last_chunk<'f>(&mut self, trailers: impl Iterator<Item = (&'f [u8], &'f [u8])>) {
        self.out.flat.extend_from_slice(b"0\r\n");
        trailers.for_each(|(name, value)| head::put_field(name, value, &mut self.out.flat));
        head::put_end(&mut self.out.flat);
    }

    /// Ready when more may be queued.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() >= WRITE_AHEAD {
            ready!(self.out.poll_write(Pin::new(&mut self.io), cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when everything that was queued is written.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.out.len() > 0 {
            ready!(self.out.poll_write(Pin::new(&mut self.io), cx))?;
        }
        self.out.rest();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends this side's direction.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The connection and what was read of it and not used.
    #[must_use]
    pub fn into_parts(self) -> (Io, Bytes) {
        (self.io, self.input.freeze())
    }
}

/// The body that a connection reads at this time.
#[derive(Debug)]
pub struct Incoming<'a, Io> {
    /// The connection.
    pub conn: &'a mut Conn<Io>,
    /// How far the body was read.
    pub body: &'a mut BodyReader,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Source for Incoming<'_, Io> {
    type Error = ReadFault;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, ReadFault>> {
        self.conn.poll_body(cx, self.body)
    }

    fn is_over(&self) -> bool {
        self.body.is_over()
    }
}

/// What is to be written: long pieces as they came, short ones copied together behind them.
#[derive(Debug, Default)]
struct Out {
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Behind everything in `queue`.
    flat: BytesMut,
}

impl Out {
    fn len(&self) -> usize {
        self.queued + self.flat.len()
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SHORT {
            return self.flat.extend_from_slice(&bytes);
        }
        if !self.flat.is_empty() {
            let flat = self.flat.split().freeze();
            self.queued += flat.len();
            self.queue.push_back(flat);
        }
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    fn poll_write(
        &mut self,
        io: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let written = if self.queue.is_empty() {
            ready!(io.poll_write(cx, &self.flat))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let pieces = self.queue.iter().map(|piece| &piece[..]);
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(pieces.chain([&self.flat[..]])) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            ready!(io.poll_write_vectored(cx, &slices[..used]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.queue.front_mut() {
            let taken = piece.len().min(written);
            written -= taken;
            self.queued -= taken;
            if taken < piece.len() {
                return piece.advance(taken);
            }
            self.queue.pop_front();
        }
        self.flat.advance(written);
    }

    /// Nothing waits: what is held is of use to the next head, or goes.
    fn rest(&mut self) {
        self.flat.clear();
        if self.flat.capacity() > KEPT {
            self.flat = BytesMut::new();
        }
        if self.queue.capacity() > SLICES {
            self.queue = VecDeque::new();
        }
    }
}

fn put_hexadecimal(number: usize, out: &mut BytesMut) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[number >> (place * 4) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::{super::body::Length, *};

    #[tokio::test]
    async fn messages_come_one_after_the_other() {
        let (mut peer, io) = duplex(16);
        let mut conn = Conn::server(io, Bytes::from_static(b"\r\nGET /a HT"));
        let writing = tokio::spawn(async move {
            peer.write_all(b"TP/1.1\r\n\r\n\r\nPOST / HTTP/1.1\r\nA: b\r\n\r\nhello")
                .await
                .unwrap();
        });
        let first = poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        assert_eq!(first, "GET /a HTTP/1.1\r\n\r\n");
        let second = poll_fn(|cx| conn.poll_head(cx)).await.unwrap().unwrap();
        assert_eq!(second, "POST / HTTP/1.1\r\nA: b\r\n\r\n");
        let mut body = BodyReader::new(Length::Exact(5));
        let mut data = Vec::new();
        while let Some(Piece::Data(bytes)) =
            poll_fn(|cx| conn.poll_body(cx, &mut body)).await.unwrap()
        {
            data.extend_from_slice(&bytes);
        }
        assert_eq!(data, b"hello");
        writing.await.unwrap();
        assert!(poll_fn(|cx| conn.poll_head(cx)).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_cut_message_is_never_whole() {
        let cases = [
            ("GET / HTTP/1.1\r\n", None),
            ("", Some(Length::Exact(1))),
            ("5\r\nhello\r\n", Some(Length::Chunked)),
        ];
        for (text, body) in cases {
            let (peer, io) = duplex(16);
            drop(peer);
            let mut conn = Conn::server(io, Bytes::from(text));
            let fault = match body {
                None => poll_fn(|cx| conn.poll_head(cx)).await.unwrap_err(),
                Some(length) => {
                    let mut body = BodyReader::new(length);
                    loop {
                        match poll_fn(|cx| conn.poll_body(cx, &mut body)).await {
                            Ok(piece) => assert!(piece.is_some()),
                            Err(fault) => break fault,
                        }
                    }
                }
            };
            assert!(matches!(fault, ReadFault::Cut), "{text:?}");
        }
        let (peer, io) = duplex(16);
        drop(peer);
        let mut conn = Conn::server(io, Bytes::from_static(b"all"));
        let mut body = BodyReader::new(Length::ToTheEnd);
        assert!(poll_fn(|cx| conn.poll_body(cx, &mut body)).await.unwrap().is_some());
        assert!(poll_fn(|cx| conn.poll_body(cx, &mut body)).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_queued_goes_out_in_order() {
        let (mut peer, io) = duplex(1000);
        let mut conn = Conn::server(io, Bytes::new());
        let long = Bytes::from(vec![b'x'; SHORT * 3]);
        conn.head().extend_from_slice(b"head");
        conn.write_chunk(Bytes::from_static(b"short"));
        conn.write_chunk(Bytes::new());
        conn.write_chunk(long.clone());
        conn.write(long.clone());
        conn.write_last_chunk([(&b"A"[..], &b"b"[..])].into_iter());
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            all
        });
        poll_fn(|cx| conn.poll_flush(cx)).await.unwrap();
        assert_eq!(conn.out.len(), 0);
        drop(conn);
        let long = "x".repeat(SHORT * 3);
        let expected = format!("head5\r\nshort\r\n3000\r\n{long}\r\n{long}0\r\nA: b\r\n\r\n");
        assert_eq!(String::from_utf8(reading.await.unwrap()).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_peer_that_leaves_is_seen_while_nothing_is_wanted() {
        let (mut peer, io) = duplex(2 * READ_AHEAD);
        let mut conn = Conn::server(io, Bytes::new());
        peer.write_all(b"GET").await.unwrap();
        let pending = poll_fn(|cx| Poll::Ready(conn.poll_left(cx).is_pending())).await;
        assert!(pending && conn.has_input());
        drop(peer);
        poll_fn(|cx| conn.poll_left(cx)).await.unwrap();
    }
}
