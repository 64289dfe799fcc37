//! One write: frame headers and short pieces gathered in one buffer, long pieces by reference.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::carrier::ws::{self, MAX_HEADER_LEN, Side};
use crate::scratch::Scratch;

/// A batch takes no new frame from here on, in bytes. One frame more may lie on top of it.
pub(super) const FULL: usize = 256 * 1024;
/// Pieces from which it is full too: the kernel takes 1,024 slices, few writes need more than this.
const MAX_PARTS: usize = 240;
/// Shorter pieces are copied into the gathering buffer: a slice of its own costs more.
const COPY_BELOW: usize = 2 * 1024;
/// Room that the gathering buffer has at first: for the heads of a good number of requests.
const SCRATCH: usize = 16 * 1024;
/// The same for a client after a long batch: it has to copy all, and a buffer that grows copies it
/// again.
const LONG: usize = FULL + 64 * 1024;
/// A client masks what it has copied while it is still in the processor's cache, in bytes.
const MASK_STEP: usize = 8 * 1024;

/// What goes over the carrier in one WebSocket message.
#[derive(Debug)]
pub(super) struct Batch {
    side: Side,
    /// Where short pieces are gathered.
    scratch: BytesMut,
    /// The message's first bytes, with room for its header; empty while they are in `scratch`.
    front: BytesMut,
    parts: VecDeque<Bytes>,
    len: usize,
    keys: MaskKeys,
    /// The key of the message that is gathered, and how much of `scratch` is masked with it.
    mask: Option<[u8; 4]>,
    masked: usize,
    /// Length of the last message.
    last: usize,
}

impl Batch {
    pub(super) fn new(side: Side) -> Self {
        Self {
            side,
            scratch: BytesMut::new(),
            front: BytesMut::new(),
            parts: VecDeque::new(),
            len: 0,
            keys: MaskKeys::default(),
            mask: None,
            masked: 0,
            last: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= FULL || self.parts.len() >= MAX_PARTS
    }

    /// Adds bytes by copying them.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if self.len == 0 {
            self.begin();
        }
        self.scratch.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Adds bytes, by reference where that pays. A client has to mask, so it copies all.
    pub(super) fn put_bytes(&mut self, bytes: Bytes) {
        if self.side == Side::Client {
            for piece in bytes.chunks(MASK_STEP) {
                self.put(piece);
                self.apply_mask();
            }
            return;
        }
        if bytes.len() < COPY_BELOW {
            self.put(&bytes);
            return;
        }
        self.len += bytes.len();
        self.flush_scratch();
        self.parts.push_back(bytes);
    }

    fn begin(&mut self) {
        let long = self.side == Side::Client && self.last > FULL / 2;
        self.scratch = Scratch::Gather.take(if long { LONG } else { SCRATCH });
        // The message's header is known last.
        self.scratch.put_bytes(0, MAX_HEADER_LEN);
        self.masked = MAX_HEADER_LEN;
        self.mask = self.mask_key();
    }

    /// Masks what was not masked yet, in whole periods of the key.
    fn apply_mask(&mut self) {
        if let Some(key) = self.mask {
            let fresh = &mut self.scratch[self.masked..];
            let whole = fresh.len() / key.len() * key.len();
            ws::apply_mask(&mut fresh[..whole], key);
            self.masked += whole;
        }
    }

    fn flush_scratch(&mut self) {
        if self.front.is_empty() {
            self.front = self.scratch.split();
        } else if !self.scratch.is_empty() {
            self.parts.push_back(self.scratch.split().freeze());
        }
    }

    /// Closes the message: after this, the batch is written out with [`Batch::slices`] and
    /// [`Batch::advance`].
    pub(super) fn seal(&mut self) {
        let mask = self.mask;
        if let Some(key) = mask {
            // A client's message is all in one piece: it had to be copied.
            ws::apply_mask(&mut self.scratch[self.masked..], key);
        }
        self.flush_scratch();
        Scratch::Gather.give_back(std::mem::take(&mut self.scratch));
        self.last = self.len;
        let mut space = [0; MAX_HEADER_LEN];
        let start = ws::put_binary_header(&mut space, self.len, mask);
        self.front[..MAX_HEADER_LEN].copy_from_slice(&space);
        self.front.advance(start);
        self.len += MAX_HEADER_LEN - start;
        self.parts.push_front(std::mem::take(&mut self.front).freeze());
    }

    /// A frame made elsewhere (pong, close), to be written after what is in the batch.
    pub(super) fn push_sealed(&mut self, frame: Vec<u8>) {
        self.len += frame.len();
        self.parts.push_back(frame.into());
    }

    /// A fresh key for a frame made elsewhere.
    pub(super) fn mask_key(&mut self) -> Option<[u8; 4]> {
        (self.side == Side::Client).then(|| self.keys.next())
    }

    /// What is still to be written; as many slices as fit `slices`.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let count = slices.len().min(self.parts.len());
        for (slot, part) in slices.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
        }
        count
    }

    /// The first piece still to be written.
    pub(super) fn front(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    /// `written` bytes are out.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while written > 0
            && let Some(front) = self.parts.front_mut()
        {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.parts.pop_front();
        }
    }
}

/// Unpredictable mask keys (RFC 6455, section 10.3), fetched from the system many at a time.
#[derive(Debug, Default)]
struct MaskKeys {
    pool: Vec<[u8; 4]>,
}

impl MaskKeys {
    fn next(&mut self) -> [u8; 4] {
        if self.pool.is_empty() {
            let mut bytes = [0; 512];
            getrandom::fill(&mut bytes).expect("the system has a random source");
            self.pool.extend_from_slice(bytes.as_chunks().0);
        }
        self.pool.pop().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::carrier::ws::{Decoder, Event};

    fn written(mut batch: Batch, step: usize) -> BytesMut {
        let mut wire = BytesMut::new();
        while !batch.is_empty() {
            let take = batch.front().len().min(step);
            wire.extend_from_slice(&batch.front()[..take]);
            batch.advance(take);
        }
        wire
    }

    #[test]
    fn a_batch_is_one_message_with_everything_in_order() {
        for (side, peer) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
            for long in [0, 100, 5_000, 70_000] {
                let mut batch = Batch::new(side);
                batch.put(b"head");
                batch.put_bytes(Bytes::from(vec![7; long]));
                batch.put(b"tail");
                batch.seal();
                let mut wire = written(batch, 1_000);
                let mut decoder = Decoder::new(peer);
                let mut seen = Vec::new();
                while let Some(Event::Data(data)) = decoder.next(&mut wire).unwrap() {
                    seen.extend_from_slice(&data);
                }
                assert_eq!(seen, [b"head".as_slice(), &vec![7; long], b"tail"].concat());
            }
        }
    }
}
