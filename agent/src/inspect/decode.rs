//! `Content-Encoding` undone, within bounds (T05).

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// What comes out of a body at most, in bytes.
pub(crate) const MAX_DECODED: usize = 1024 * 1024;
/// Encodings one over the other.
const MAX_LAYERS: usize = 3;
/// For reading Brotli.
const BUFFER: usize = 4096;

/// A body without its encoding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) bytes: Vec<u8>,
    /// There is more, or what there was could not be read to its end.
    pub(crate) cut: bool,
}

/// Undoes `encoding` (the field's value), up to `max` bytes. `None`: it is not known here.
pub(crate) fn decode(encoding: &str, bytes: &[u8], max: usize) -> Option<Decoded> {
    let layers: Vec<_> = encoding
        .split(',')
        .map(|layer| layer.trim().to_ascii_lowercase())
        .filter(|layer| !layer.is_empty() && layer != "identity")
        .collect();
    if layers.len() > MAX_LAYERS {
        return None;
    }
    let mut reader: Box<dyn Read + '_> = Box::new(bytes);
    for layer in layers.iter().rev() {
        reader = match &layer[..] {
            "gzip" | "x-gzip" => Box::new(MultiGzDecoder::new(reader)),
            // Some send it without zlib's header, which RFC 9110 wants.
            "deflate" => {
                let mut first = [0; 2];
                let have = read_some(&mut reader, &mut first);
                let rest = std::io::Cursor::new(first[..have].to_vec()).chain(reader);
                let zlib = have == 2 && first[0] & 0x0f == 8 && u16::from_be_bytes(first) % 31 == 0;
                match zlib {
                    true => Box::new(ZlibDecoder::new(rest)),
                    false => Box::new(DeflateDecoder::new(rest)),
                }
            }
            "br" => {
                let mut first = [0];
                let have = read_some(&mut reader, &mut first);
                // A window of up to 1 GiB, which `br` has not (RFC 7932, section 9.1).
                if first[0] & 0x7f == 0x11 {
                    return None;
                }
                let rest = std::io::Cursor::new(first[..have].to_vec()).chain(reader);
                Box::new(brotli_decompressor::Decompressor::new(rest, BUFFER))
            }
            _ => return None,
        };
    }
    let mut out = Vec::new();
    let read = reader.by_ref().take(max as u64).read_to_end(&mut out);
    let mut more = || reader.read(&mut [0]).is_ok_and(|read| read > 0);
    let cut = read.is_err() || (out.len() == max && more());
    Some(Decoded { bytes: out, cut })
}

/// Any bytes, as if they were encoded: within the bound, and no panic.
#[cfg(any(test, fuzzing))]
pub(super) fn try_out(which: u8, bytes: &[u8]) {
    const ENCODINGS: [&str; 6] =
        ["gzip", "deflate", "br", "gzip, br", "br, deflate", "gzip, gzip, gzip"];
    const MAX: usize = 64 * 1024;
    let encoding = ENCODINGS[usize::from(which) % ENCODINGS.len()];
    if let Some(decoded) = decode(encoding, bytes, MAX) {
        assert!(decoded.bytes.len() <= MAX && decoded.bytes.capacity() <= 2 * MAX);
    }
}

fn read_some(reader: &mut impl Read, into: &mut [u8]) -> usize {
    let mut have = 0;
    while have < into.len() {
        match reader.read(&mut into[have..]) {
            Ok(read) if read > 0 => have += read,
            _ => break,
        }
    }
    have
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn encodings_are_undone() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(b"hello").unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(b"hello").unwrap();
        // Of the `brotli` program.
        let brotli = [0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03];
        let whole = |bytes: &[u8]| Some(Decoded { bytes: bytes.to_vec(), cut: false });
        assert_eq!(decode("", b"hello", 100), whole(b"hello"));
        assert_eq!(decode("identity", b"hello", 100), whole(b"hello"));
        assert_eq!(decode("GZip", &gzip(b"hello"), 100), whole(b"hello"));
        assert_eq!(decode("gzip, gzip", &gzip(&gzip(b"hello")), 100), whole(b"hello"));
        assert_eq!(decode("deflate", &zlib.finish().unwrap(), 100), whole(b"hello"));
        assert_eq!(decode("deflate", &raw.finish().unwrap(), 100), whole(b"hello"));
        assert_eq!(decode("br", &brotli, 100), whole(b"hello"));
        assert_eq!(decode("zstd", b"", 100), None);
        assert_eq!(decode("br", b"\x11\x1e", 100), None, "a window that is too large");
        assert_eq!(decode("gzip,gzip,gzip,gzip", b"", 100), None);
    }

    #[test]
    fn what_is_cut_is_shown_as_far_as_it_goes() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = gzip(&text);
        let half = decode("gzip", &packed[..packed.len() / 2], MAX_DECODED).unwrap();
        assert!(half.cut && !half.bytes.is_empty() && text.starts_with(&half.bytes));
        assert!(decode("gzip", b"no gzip", 100).unwrap().cut);
        assert!(decode("br", b"\xff\xff\xff\xff", 100).unwrap().cut);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(which: u8, bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            try_out(which, &bytes);
            // Behind a beginning that is fine.
            try_out(0, &[&gzip(b"hello")[..9], &bytes].concat());
        }
    }

    /// T05: what expands without end.
    #[test]
    fn t05_a_bomb_gives_no_more_than_the_bound() {
        let zeros = vec![0; 64 * 1024 * 1024];
        let bomb = gzip(&gzip(&zeros));
        let decoded = decode("gzip, gzip", &bomb, MAX_DECODED).unwrap();
        assert!(decoded.cut && decoded.bytes.len() == MAX_DECODED);
        assert!(decoded.bytes.capacity() <= 2 * MAX_DECODED);
    }
}
