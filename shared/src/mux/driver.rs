//! Moves bytes between a connection and the core: one task for each session, which reads and writes
//! by turns and owns the connection.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};

use super::{Config, SessionError, Shared, batch::Batch};
use crate::carrier::ws::{self, Decoder, Event};
use crate::scratch::Scratch;

/// Room that a read has at least, in bytes.
const READ_MIN: usize = 8 * 1024;
/// Room that a read has while much comes, in bytes.
const READ_MAX: usize = 128 * 1024;
/// Reads in a row before the other side of the connection, and other tasks, have their turn.
const READS_IN_A_ROW: usize = 1;
/// Slices for one vectored write.
const SLICES: usize = 64;
/// How long the close frame may take.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// A session's connection. [`Driver::run`] is the session's life.
pub struct Driver<Io> {
    config: Config,
    shared: Arc<Shared>,
    io: Io,
    reader: Reader,
    writer: Writer,
    pong: Arc<Mutex<Option<Bytes>>>,
    begun: bool,
}

impl<Io> Drop for Driver<Io> {
    /// Without its driver a session is over.
    fn drop(&mut self) {
        self.shared.step_all(|core| core.close(SessionError::Ended));
    }
}

impl<Io> Driver<Io> {
    pub(super) fn new(config: Config, shared: Arc<Shared>, io: Io, early: Bytes) -> Self {
        let side = config.side;
        Self {
            config,
            shared,
            io,
            reader: Reader {
                decoder: Decoder::new(side),
                rest: BytesMut::from(early),
                size: READ_MIN,
                wakers: Vec::new(),
            },
            writer: Writer {
                batch: Batch::new(side),
                wakers: Vec::new(),
                stall: None,
                writing: false,
            },
            pong: Arc::default(),
            begun: false,
        }
    }
}

impl<Io> std::fmt::Debug for Driver<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

struct Reader {
    decoder: Decoder,
    /// An incomplete header or control frame; at the beginning, what was read too far before.
    rest: BytesMut,
    /// Room that the next read shall have.
    size: usize,
    wakers: Vec<Waker>,
}

struct Writer {
    batch: Batch,
    wakers: Vec<Waker>,
    stall: Option<Pin<Box<Sleep>>>,
    writing: bool,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    /// Runs the session to its end and says why it ended. May be dropped and called again: the
    /// session stands still meanwhile. Dropping the driver cuts the connection.
    pub async fn run(&mut self) -> SessionError {
        let error = match self.begin() {
            Err(error) => error,
            Ok(()) => poll_fn(|cx| self.poll(cx)).await,
        };
        self.shared.step_all(|core| core.close(error.clone()));
        self.say_goodbye(&error).await;
        error
    }

    fn begin(&mut self) -> Result<(), SessionError> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        self.shared.step(|core| ((), core.ping(Instant::now())));
        let early = std::mem::take(&mut self.reader.rest);
        self.reader.take_apart(early, &self.shared, &self.pong)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionError> {
        // Reading first: what it wakes may have something to say in the same turn.
        if let Poll::Ready(error) = self.poll_read(cx) {
            return Poll::Ready(error);
        }
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(self.local_end()),
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The writer has nothing more to write: this side ended the session.
    fn local_end(&self) -> SessionError {
        let core = self.shared.core.lock();
        core.closed_with().unwrap_or(SessionError::Local { code: 1000, reason: "done".into() })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<SessionError> {
        for _ in 0..READS_IN_A_ROW {
            let bytes = match self.reader.poll_fill(&mut self.io, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(None)) => return Poll::Ready(SessionError::Ended),
                Poll::Ready(Err(error)) => return Poll::Ready(broken(&error)),
                Poll::Ready(Ok(Some(bytes))) => bytes,
            };
            if let Err(error) = self.reader.take_apart(bytes, &self.shared, &self.pong) {
                return Poll::Ready(error);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// `Ready(Ok)`: the session was closed from this side and all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        let writer = &mut self.writer;
        loop {
            if !writer.writing {
                match writer.poll_gather(&self.shared, &self.pong, cx) {
                    Poll::Pending => return self.poll_flush(cx),
                    Poll::Ready(false) => return Poll::Ready(Ok(())),
                    Poll::Ready(true) => {}
                }
            }
            match writer.poll_out(&mut self.io, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(&error))),
                Poll::Pending if self.shared.core.lock().poll_closed(cx).is_ready() => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    return writer.poll_stalled(self.config.write_stall, cx).map(Err);
                }
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(&error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// A close frame that says why, if the connection still takes one.
    async fn say_goodbye(&mut self, error: &SessionError) {
        use tokio::io::AsyncWriteExt as _;
        let (code, reason) = match error {
            SessionError::Io(_) | SessionError::WriteStalled => return,
            SessionError::Ended | SessionError::Closed { .. } => (1000, String::new()),
            SessionError::Local { code, reason } => (*code, reason.clone()),
            SessionError::WebSocket(error) => (error.close_code(), error.to_string()),
            error => (1002, error.to_string()),
        };
        // Within a half-written message no other frame may come.
        if self.writer.writing && !self.writer.batch.is_empty() {
            return;
        }
        let frame = ws::close(code, &reason, self.writer.batch.mask_key());
        let farewell = async {
            self.io.write_all(&frame).await?;
            self.io.shutdown().await
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, farewell).await;
    }
}

impl Reader {
    /// What has come, behind what was left over before; `None` at the connection's end.
    fn poll_fill<Io: AsyncRead + Unpin>(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<BytesMut>>> {
        let mut buffer = Scratch::Read.take(self.rest.len() + self.size);
        buffer.extend_from_slice(&self.rest);
        let room = buffer.capacity() - buffer.len();
        let read = tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut buffer);
        let Poll::Ready(Ok(read @ 1..)) = read else {
            Scratch::Read.give_back(buffer);
            return read.map_ok(|_| None);
        };
        // Much comes: have room for a long read. Little comes: use up what room there is.
        self.size = if read == room { READ_MAX } else { READ_MIN };
        self.rest.clear();
        let bytes = buffer.split();
        Scratch::Read.give_back(buffer);
        Poll::Ready(Ok(Some(bytes)))
    }

    fn take_apart(
        &mut self,
        mut bytes: BytesMut,
        shared: &Shared,
        pong: &Mutex<Option<Bytes>>,
    ) -> Result<(), SessionError> {
        let now = Instant::now();
        let mut core = shared.core.lock();
        let result = loop {
            match self.decoder.next(&mut bytes) {
                Err(error) => break Err(error.into()),
                Ok(None) => break Ok(()),
                Ok(Some(Event::Data(bytes))) => {
                    if let Err(error) = core.on_bytes(bytes, now, &mut self.wakers) {
                        break Err(error);
                    }
                }
                // Only the last ping needs its answer (RFC 6455, section 5.5.3).
                Ok(Some(Event::Ping(payload))) => {
                    *pong.lock() = Some(payload);
                    self.wakers.extend(core.wake_writer());
                }
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(1000 | 1001 | 1005, _))) => break Err(SessionError::Ended),
                Ok(Some(Event::Close(code, reason))) => {
                    break Err(SessionError::Closed { code, reason });
                }
            }
        };
        drop(core);
        if !bytes.is_empty() {
            self.rest = BytesMut::from(&bytes[..]);
        }
        self.wakers.drain(..).for_each(Waker::wake);
        result
    }
}

impl Writer {
    fn poll_gather(
        &mut self,
        shared: &Shared,
        pong: &Mutex<Option<Bytes>>,
        cx: &Context<'_>,
    ) -> Poll<bool> {
        let gathered = shared.core.lock().poll_gather(cx, &mut self.batch, &mut self.wakers);
        self.wakers.drain(..).for_each(Waker::wake);
        if gathered == Poll::Ready(true) {
            self.batch.seal();
        }
        let pong = pong.lock().take();
        if let Some(payload) = &pong {
            let key = self.batch.mask_key();
            self.batch.push_sealed(ws::pong(payload, key));
        }
        self.writing = !self.batch.is_empty();
        if pong.is_some() && gathered.is_pending() { Poll::Ready(true) } else { gathered }
    }

    fn poll_out<Io: AsyncWrite + Unpin>(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            let written = if io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.batch.slices(&mut slices);
                Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count])
            } else {
                Pin::new(&mut *io).poll_write(cx, self.batch.front())
            };
            match written {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.batch.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
            self.stall = None;
        }
        self.writing = false;
        Poll::Ready(Ok(()))
    }

    /// Ready once the peer has taken nothing for `limit`.
    fn poll_stalled(
        &mut self,
        limit: std::time::Duration,
        cx: &mut Context<'_>,
    ) -> Poll<SessionError> {
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(limit)));
        stall.as_mut().poll(cx).map(|()| SessionError::WriteStalled)
    }
}

fn broken(error: &io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => SessionError::Ended,
        _ => SessionError::Io(error.to_string()),
    }
}
