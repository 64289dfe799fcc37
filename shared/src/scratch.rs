//! Buffers that the sessions of a thread share. Each is in use only while one call runs, so that an
//! idle session holds none.

use std::cell::Cell;

use bytes::BytesMut;

/// What a new buffer holds, in bytes: one long read, or the short pieces of several batches.
const SIZE: usize = 128 * 1024;

thread_local! {
    static READ: Cell<BytesMut> = Cell::default();
    static GATHER: Cell<BytesMut> = Cell::default();
}

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scratch {
    /// Where reads go.
    Read,
    /// Where short pieces of a batch are gathered.
    Gather,
}

impl Scratch {
    /// The buffer, empty, with room for `room` bytes.
    pub(crate) fn take(self, room: usize) -> BytesMut {
        let mut buffer = self.with(Cell::take);
        if buffer.capacity() < room {
            buffer.reserve(room.max(SIZE));
        }
        buffer
    }

    /// For the next one to use. What is in it is thrown away.
    pub(crate) fn give_back(self, mut buffer: BytesMut) {
        buffer.clear();
        self.with(|cell| cell.set(buffer));
    }

    fn with<T>(self, f: impl FnOnce(&Cell<BytesMut>) -> T) -> T {
        match self {
            Self::Read => READ.with(f),
            Self::Gather => GATHER.with(f),
        }
    }
}
