//! What the interop tests say on a stream, for our handles and for a peer's byte streams.
//!
//! ```text
//! request   want (8) │ length (8) │ body          length u64::MAX: the body goes on to the FIN
//! answer    length of the body (8) │ its checksum (8) │ `want` bytes of the pattern
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uniroute_shared::mux::{Acceptor, Receiver, Sender, Session, StreamError};

/// The body goes on to the FIN: the answer then shows that half close works.
pub(crate) const TO_THE_END: u64 = u64::MAX;
/// How much one call sends.
const PIECE: usize = 50_000;

/// A request for `want` bytes, with `body` bytes of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) body: usize,
    pub(crate) want: usize,
    pub(crate) half_close: bool,
}

impl Ask {
    pub(crate) const SMALL: Self = Self { body: 100, want: 1_000, half_close: true };

    fn head(self) -> Bytes {
        let mut head = BytesMut::new();
        head.put_u64(self.want as u64);
        head.put_u64(if self.half_close { TO_THE_END } else { self.body as u64 });
        head.freeze()
    }

    /// The whole answer that is due.
    fn answer(self) -> Bytes {
        answer(&pattern(self.body), self.want as u64)
    }
}

pub(crate) fn pattern(length: usize) -> Bytes {
    let byte = |n: usize| n.to_le_bytes()[0];
    (0..length).map(|n| byte(n.wrapping_mul(7)) ^ byte(n >> 8)).collect()
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

fn answer(body: &[u8], want: u64) -> Bytes {
    let mut answer = BytesMut::new();
    answer.put_u64(body.len() as u64);
    answer.put_u64(checksum(body));
    answer.put(pattern(usize::try_from(want).unwrap()));
    answer.freeze()
}

/// Want, and what there is of the body, once the request is whole.
fn request(bytes: &[u8], ended: bool) -> Option<(u64, &[u8])> {
    let (want, rest) = bytes.split_first_chunk()?;
    let (length, body) = rest.split_first_chunk()?;
    let whole = match u64::from_be_bytes(*length) {
        TO_THE_END => ended,
        length => body.len() as u64 >= length,
    };
    whole.then_some((u64::from_be_bytes(*want), body))
}

pub(crate) async fn send_all(
    sender: &mut Sender,
    mut bytes: Bytes,
    last: bool,
) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        sender.ready().await?;
        let piece = bytes.split_to(bytes.len().min(PIECE));
        sender.send(piece, last && bytes.is_empty())?;
    }
    Ok(())
}

pub(crate) async fn read_all(receiver: &mut Receiver) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = receiver.recv().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// Asks over a stream of our mux.
pub(crate) async fn ask(session: &Session, ask: Ask) {
    let (mut sender, mut receiver) = session.open().unwrap();
    let sending = async {
        sender.send(ask.head(), false)?;
        send_all(&mut sender, pattern(ask.body), ask.half_close).await
    };
    let (sent, got) = tokio::join!(sending, read_all(&mut receiver));
    sent.unwrap();
    assert!(got.unwrap() == ask.answer(), "a wrong answer to {ask:?}");
    if !ask.half_close {
        sender.send(Bytes::new(), true).unwrap();
    }
}

/// Answers on every stream that the peer opens, until the session ends.
pub(crate) async fn serve(mut acceptor: Acceptor) {
    let mut streams = tokio::task::JoinSet::new();
    while let Some((sender, receiver)) = acceptor.accept().await {
        streams.spawn(serve_one(sender, receiver));
    }
    streams.shutdown().await;
}

async fn serve_one(mut sender: Sender, mut receiver: Receiver) -> Result<(), StreamError> {
    let mut bytes = Vec::new();
    let mut ended = false;
    loop {
        if let Some((want, body)) = request(&bytes, ended) {
            send_all(&mut sender, answer(body, want), true).await?;
            // A receiver that is dropped before the FIN would reset the stream.
            return read_all(&mut receiver).await.map(drop);
        }
        match receiver.recv().await? {
            Some(chunk) => bytes.extend_from_slice(&chunk),
            None if ended => return Ok(()),
            None => ended = true,
        }
    }
}

/// [`ask`] over a peer's stream.
pub(crate) async fn ask_io<Io: AsyncRead + AsyncWrite>(io: Io, ask: Ask) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let sending = async {
        writer.write_all(&ask.head()).await?;
        writer.write_all(&pattern(ask.body)).await?;
        writer.flush().await?;
        if ask.half_close { writer.shutdown().await } else { Ok(()) }
    };
    let mut got = Vec::new();
    let (sent, read) = tokio::join!(sending, reader.read_to_end(&mut got));
    sent.unwrap();
    read.unwrap();
    assert!(got == ask.answer(), "a wrong answer to {ask:?}");
    if !ask.half_close {
        writer.shutdown().await.unwrap();
    }
}

/// Answers one request on a peer's stream.
pub(crate) async fn serve_io<Io: AsyncRead + AsyncWrite>(io: Io) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut bytes = Vec::new();
    let mut ended = false;
    loop {
        if let Some((want, body)) = request(&bytes, ended) {
            writer.write_all(&answer(body, want)).await.unwrap();
            writer.shutdown().await.unwrap();
            // A stream that is dropped before the peer's FIN would be reset.
            reader.read_to_end(&mut Vec::new()).await.unwrap();
            return;
        }
        match reader.read_buf(&mut bytes).await {
            Ok(0) if ended => return,
            Ok(read) => ended = read == 0,
            Err(_) => return,
        }
    }
}
