//! What both ends need of a stream of HTTP/2, beside what the `h2` crate does.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::message::{Fields, Piece, Source};

/// The body that comes in on a stream. Its window opens as it is read.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// Data is over, trailers may follow.
    trailers: bool,
    over: bool,
}

impl Incoming {
    /// The body of `stream`.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, trailers: false, over: false }
    }
}

impl Source for Incoming {
    type Error = h2::Error;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, h2::Error>> {
        loop {
            if self.over {
                return Poll::Ready(Ok(None));
            }
            if self.trailers {
                let trailers = ready!(self.stream.poll_trailers(cx))?;
                self.over = true;
                let piece = trailers.map(|map| Piece::Trailers(Fields::from_map(&map)));
                return Poll::Ready(Ok(piece));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    self.stream.flow_control().release_capacity(data.len())?;
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(Piece::Data(data))));
                    }
                }
                None => self.trailers = true,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.over || self.stream.is_end_stream()
    }
}

/// How many bytes may be sent now; at least one.
///
/// # Errors
/// When the stream is over.
pub fn poll_capacity(
    cx: &mut Context<'_>,
    stream: &mut SendStream<Bytes>,
    wanted: usize,
) -> Poll<Result<usize, h2::Error>> {
    stream.reserve_capacity(wanted);
    loop {
        if stream.capacity() > 0 {
            return Poll::Ready(Ok(stream.capacity()));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(granted) => _ = granted?,
            None => return Poll::Ready(Err(Reason::CANCEL.into())),
        }
    }
}

/// A body on its way out on a stream, within the peer's window.
#[derive(Debug)]
pub struct Outgoing {
    stream: SendStream<Bytes>,
    /// Waits for the window.
    pending: Bytes,
    over: bool,
}

impl Outgoing {
    /// `over`: the head said that there is no body.
    #[must_use]
    pub fn new(stream: SendStream<Bytes>, over: bool) -> Self {
        Self { stream, pending: Bytes::new(), over }
    }

    /// Ready when the next piece may be given.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is over.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.pending.is_empty() {
            let wanted = self.pending.len();
            let capacity = ready!(poll_capacity(cx, &mut self.stream, wanted))?;
            let data = self.pending.split_to(capacity.min(wanted));
            self.stream.send_data(data, false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes a piece; `None` ends the stream.
    ///
    /// # Errors
    /// When the stream is over.
    pub fn send(&mut self, piece: Option<Piece>) -> Result<(), h2::Error> {
        match piece {
            Some(Piece::Data(data)) => self.pending = data,
            Some(Piece::Trailers(fields)) => {
                self.over = true;
                self.stream.send_trailers(fields.to_map())?;
            }
            None => {
                self.over = true;
                self.stream.send_data(Bytes::new(), true)?;
            }
        }
        Ok(())
    }

    /// Whether the end was sent.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Ready when the peer wants no more.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(|_| ())
    }
}
