//! A connection's bytes in portions, so that the others of its thread have their turn: a flood of
//! short frames would otherwise be read for as long as there is more of it. Frames that ask for
//! nothing but an acknowledgement are read at a bounded rate (CVE-2019-9512, CVE-2019-9515).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes and frames that are read in one turn, give or take a read.
const BYTES: usize = 32 * 1024;
const FRAMES: usize = 64;
/// After so many frames that belong to no request, nothing is read for a while. Far more than
/// clients send that measure their connection with pings.
const CHATTER: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(100);
/// Length, type, flags and stream (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns<Io> {
    io: Io,
    /// Of this turn.
    bytes: usize,
    frames: usize,
    /// Since the last pause.
    chatter: usize,
    pause: Option<Pin<Box<Sleep>>>,
    /// What was read of a frame's head, and bytes that come before the next one.
    head: [u8; FRAME_HEAD],
    have: usize,
    skip: usize,
}

impl<Io> Turns<Io> {
    /// `io` begins with the client's preface.
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            bytes: 0,
            frames: 0,
            chatter: 0,
            pause: None,
            head: [0; FRAME_HEAD],
            have: 0,
            skip: super::PREFACE.len(),
        }
    }

    /// Counts the frames that begin in `bytes`.
    fn count(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(FRAME_HEAD - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == FRAME_HEAD {
                let [a, b, c, kind, ..] = self.head;
                self.have = 0;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.frames += 1;
                self.chatter += usize::from(is_chatter(kind));
            }
        }
    }
}

/// All but DATA, HEADERS, RST_STREAM, WINDOW_UPDATE and CONTINUATION, which belong to requests and
/// have their own bounds.
fn is_chatter(kind: u8) -> bool {
    !matches!(kind, 0 | 1 | 3 | 8 | 9)
}

impl<Io: AsyncRead + Unpin> AsyncRead for Turns<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.chatter >= CHATTER {
            let pause = this.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
            (this.chatter, this.pause) = (0, None);
        }
        if this.bytes >= BYTES || this.frames >= FRAMES {
            (this.bytes, this.frames) = (0, 0);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buffer);
        if polled.is_pending() {
            (this.bytes, this.frames) = (0, 0);
        }
        let read = &buffer.filled()[before..];
        this.bytes += read.len();
        this.count(read);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::{io::AsyncReadExt as _, time::Instant};

    use super::{super::PREFACE, *};

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [.., a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
        [vec![a, b, c, kind, 0, 0, 0, 0, 1], vec![kind; length]].concat()
    }

    fn reads(io: &mut Turns<&[u8]>, length: usize) -> Poll<usize> {
        let mut space = vec![0; length];
        let mut buffer = ReadBuf::new(&mut space);
        let polled = Pin::new(io).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        polled.map(|_| buffer.filled().len())
    }

    #[tokio::test]
    async fn others_have_their_turn_and_nothing_is_lost() {
        for length in [0, 16_384] {
            let sent = [PREFACE, &frame(0, length).repeat(200)].concat();
            let mut io = Turns::new(&sent[..]);
            let (mut read, mut turns) = (0, 0);
            while read < sent.len() {
                match reads(&mut io, 1000) {
                    Poll::Ready(more) => read += more,
                    Poll::Pending => turns += 1,
                }
            }
            assert_eq!(io.have + io.skip, 0);
            assert!(turns >= if length == 0 { 1 } else { 99 }, "{turns}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_belong_to_no_request_come_at_a_bounded_rate() {
        for (piece, pauses) in [(PING.to_vec(), 10), (frame(0, 100), 0), (frame(1, 100), 0)] {
            let sent = [PREFACE, &piece.repeat(10 * CHATTER + CHATTER / 2)].concat();
            let (began, mut got) = (Instant::now(), Vec::new());
            let mut io = Turns::new(&sent[..]);
            // In reads of a few frames.
            let mut space = [0; 100];
            while let read @ 1.. = io.read(&mut space).await.unwrap() {
                got.extend_from_slice(&space[..read]);
            }
            assert!(got == sent);
            let passed = began.elapsed();
            assert!(passed >= PAUSE * pauses && passed < PAUSE * (pauses + 2), "{passed:?}");
        }
    }
}
