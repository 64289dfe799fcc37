//! Where a body ends (RFC 9112, sections 6 and 7), and what of it has come.

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::{self, HeadError};
use crate::message::Piece;

/// Longest line with a chunk's size, in bytes.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Bytes that the chunk extensions of one body may have together: they are dropped, so they are
/// work for nothing.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Longest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;

/// How a message's head says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// This many bytes; 0 for no body.
    Exact(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection; answers only.
    ToTheEnd,
}

/// Why a body's framing can't be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk's size, or what is around it.
    #[error("the chunks can't be read: {0}")]
    Chunk(&'static str),
    /// The trailer section.
    #[error("the trailer section: {0}")]
    Trailers(HeadError),
}

/// Follows a body to its end.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    /// Bytes of extensions so far.
    extensions: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Exact(u64),
    ToTheEnd,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Over,
}

impl BodyReader {
    /// A body that ends as `length` says.
    #[must_use]
    pub fn new(length: Length) -> Self {
        let state = match length {
            Length::Exact(0) => State::Over,
            Length::Exact(length) => State::Exact(length),
            Length::Chunked => State::ChunkSize,
            Length::ToTheEnd => State::ToTheEnd,
        };
        Self { state, extensions: 0 }
    }

    /// Whether the last byte was taken.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether the end of the connection is the end of the body.
    #[must_use]
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::ToTheEnd
    }

    /// The connection has ended where [`BodyReader::ends_with_connection`] says that it may.
    pub(crate) fn end(&mut self) {
        self.state = State::Over;
    }

    /// Bytes that are sure to follow, for the size of the next read.
    pub(crate) fn expects(&self) -> usize {
        match self.state {
            State::Exact(left) | State::ChunkData(left) => {
                usize::try_from(left).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }

    /// Takes the next piece from the front of `input`. `None`: more has to come, or it is over.
    ///
    /// # Errors
    /// [`BodyError`]; the connection is of no use any more.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, BodyError> {
        loop {
            match self.state {
                State::Over => return Ok(None),
                State::Exact(left) => return Ok(self.take(left, input, State::Exact, State::Over)),
                State::ChunkData(left) => {
                    return Ok(self.take(left, input, State::ChunkData, State::ChunkEnd));
                }
                State::ToTheEnd => {
                    return Ok((!input.is_empty()).then(|| Piece::Data(input.split().freeze())));
                }
                State::ChunkSize => {
                    let Some(size) = self.chunk_size(input)? else { return Ok(None) };
                    self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                }
                State::ChunkEnd => match input.get(..2) {
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.state = State::ChunkSize;
                    }
                    Some(_) => return Err(BodyError::Chunk("a chunk does not end where it says")),
                    None if input.first().is_some_and(|byte| *byte != b'\r') => {
                        return Err(BodyError::Chunk("a chunk does not end where it says"));
                    }
                    None => return Ok(None),
                },
                State::Trailers => return self.trailers(input),
            }
        }
    }

    fn take(
        &mut self,
        left: u64,
        input: &mut BytesMut,
        more: fn(u64) -> State,
        last: State,
    ) -> Option<Piece> {
        if input.is_empty() {
            return None;
        }
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let left = left - taken as u64;
        self.state = if left == 0 { last } else { more(left) };
        Some(Piece::Data(input.split_to(taken).freeze()))
    }

    fn chunk_size(&mut self, input: &mut BytesMut) -> Result<Option<u64>, BodyError> {
        let Some(line) = line(input, MAX_SIZE_LINE).map_err(BodyError::Chunk)? else {
            return Ok(None);
        };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        if !is_extension(extension) {
            return Err(BodyError::Chunk("a chunk's size is no hexadecimal number"));
        }
        self.extensions += extension.len();
        if self.extensions > MAX_EXTENSIONS {
            return Err(BodyError::Chunk("too many extensions"));
        }
        let size = std::str::from_utf8(&line[..digits]).ok();
        let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        size.map(Some).ok_or(BodyError::Chunk("a chunk's size is too large or missing"))
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, BodyError> {
        if input.get(..2) == Some(b"\r\n") {
            input.advance(2);
            self.state = State::Over;
            return Ok(None);
        }
        let end = head::end(input, 0).map_err(BodyError::Trailers)?;
        match end {
            Some(end) if end <= MAX_TRAILERS => {
                let block = input.split_to(end).freeze();
                self.state = State::Over;
                head::trailers(&block)
                    .map(|fields| Some(Piece::Trailers(fields)))
                    .map_err(BodyError::Trailers)
            }
            None if input.len() <= MAX_TRAILERS => Ok(None),
            _ => Err(BodyError::Trailers(HeadError::TooLong)),
        }
    }
}

/// Nothing, or what begins with a semicolon behind optional blanks (RFC 9112, section 7.1.1).
fn is_extension(bytes: &[u8]) -> bool {
    let begins = bytes.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    let fits = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    bytes.is_empty() || (begins == Some(&b';') && bytes.iter().all(fits))
}

/// Takes a line, without its end.
fn line(input: &mut BytesMut, longest: usize) -> Result<Option<Bytes>, &'static str> {
    match memchr::memchr(b'\n', input) {
        Some(at) if at <= longest => {
            let mut line = input.split_to(at + 1).freeze();
            if !line.ends_with(b"\r\n") {
                return Err("a line ends with LF alone");
            }
            line.truncate(line.len() - 2);
            Ok(Some(line))
        }
        None if input.len() <= longest => Ok(None),
        _ => Err("a line is too long"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Fields;

    /// All pieces of `bytes`, given whole or byte by byte; `Ok` with what is left over.
    fn read(
        length: Length,
        bytes: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, Option<Fields>, bool, usize), BodyError> {
        let mut reader = BodyReader::new(length);
        let mut input = BytesMut::new();
        let (mut data, mut trailers) = (Vec::new(), None);
        for chunk in bytes.chunks(step) {
            input.extend_from_slice(chunk);
            while let Some(piece) = reader.decode(&mut input)? {
                match piece {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::Trailers(fields) => trailers = Some(fields),
                }
            }
        }
        Ok((data, trailers, reader.is_over(), input.len()))
    }

    #[test]
    fn bodies_end_where_they_say() {
        for step in [1, 2, 3, 1000] {
            let (data, trailers, over, left) = read(Length::Exact(5), b"helloGET", step).unwrap();
            assert_eq!((&data[..], trailers, over, left), (&b"hello"[..], None, true, 3));
            let chunked = b"005;a=\"b\"\r\nhello\r\nA \t;x\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET";
            let (data, trailers, over, left) = read(Length::Chunked, chunked, step).unwrap();
            assert_eq!((&data[..], over, left), (&b"hello0123456789"[..], true, 3));
            assert_eq!(trailers.unwrap().get("x").unwrap(), "y");
            let (_, trailers, over, left) = read(Length::Chunked, b"0\r\n\r\n", step).unwrap();
            assert_eq!((trailers, over, left), (None, true, 0));
            assert!(!read(Length::ToTheEnd, b"abc", step).unwrap().2);
        }
    }

    /// T01: what could end in two places is refused.
    #[test]
    fn t01_chunks_that_could_end_elsewhere() {
        for bad in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5 5\r\nhello\r\n",
            b"\r\n",
            b";a\r\n",
            b"5;a\rb\r\nhello\r\n",
            b"10000000000000000\r\n",
            b"g\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\nX: y\n\r\n",
            b"0\r\n X: y\r\n\r\n",
        ] {
            for step in [1, 1000] {
                assert!(
                    read(Length::Chunked, bad, step).is_err(),
                    "{:?}",
                    String::from_utf8_lossy(bad)
                );
            }
        }
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        let line = format!("1;{}\r\na\r\n", "x".repeat(4000));
        assert!(read(Length::Chunked, line.as_bytes(), 1000).is_ok());
        assert!(read(Length::Chunked, line.repeat(5).as_bytes(), 1000).is_err());
        let trailers = format!("0\r\nx: {}", "x".repeat(MAX_TRAILERS));
        assert!(read(Length::Chunked, trailers.as_bytes(), 1000).is_err());
    }

    proptest! {
        #[test]
        fn the_size_of_reads_makes_no_difference(bytes in "[0-9a-f;\r\n x:]{0,64}", step in 1_usize..8) {
            let whole = read(Length::Chunked, bytes.as_bytes(), 1000);
            let pieces = read(Length::Chunked, bytes.as_bytes(), step);
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
            if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
