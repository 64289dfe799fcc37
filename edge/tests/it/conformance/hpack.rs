//! Header compression of HTTP/2 (RFC 7541), as far as a client needs it: fields are written as
//! literals, and read in every form.

use super::message::Field;

/// Each field as a literal with its name spelled out, never indexed.
pub(crate) fn encode(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    integer(block, bytes.len(), 7);
    block.extend_from_slice(bytes);
}

/// An integer behind the bits that stand before its prefix, which are zero.
fn integer(block: &mut Vec<u8>, mut number: usize, prefix: u32) {
    let most = (1 << prefix) - 1;
    if let Some(short) = u8::try_from(number).ok().filter(|short| *short < most) {
        return block.push(short);
    }
    block.push(most);
    number -= usize::from(most);
    while number >= 128 {
        block.push(u8::try_from(number % 128).unwrap_or_default() | 0x80);
        number /= 128;
    }
    block.push(u8::try_from(number).unwrap_or_default());
}

/// What one direction of a connection remembers.
#[derive(Default)]
pub(crate) struct Decoder {
    /// The newest field first.
    table: Vec<Field>,
    limit: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: Vec::new(), limit: 4_096 }
    }

    /// The fields of one block; `Err`: it makes no sense.
    pub(crate) fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Field>, String> {
        let mut fields = Vec::new();
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = take_integer(&mut block, 7)?;
                fields.push(self.entry(index)?);
            } else if first & 0xe0 == 0x20 {
                self.limit = take_integer(&mut block, 5)?;
                self.evict();
            } else {
                let is_indexed = first & 0x40 != 0;
                let index = take_integer(&mut block, if is_indexed { 6 } else { 4 })?;
                let name = match index {
                    0 => take_string(&mut block)?,
                    index => self.entry(index)?.0,
                };
                let field = (name, take_string(&mut block)?);
                if is_indexed {
                    self.table.insert(0, field.clone());
                    self.evict();
                }
                fields.push(field);
            }
        }
        Ok(fields)
    }

    fn entry(&self, index: usize) -> Result<Field, String> {
        let known = index.checked_sub(1).and_then(|index| STATIC.get(index));
        if let Some((name, value)) = known {
            return Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        let dynamic = index.checked_sub(STATIC.len() + 1).and_then(|index| self.table.get(index));
        dynamic.cloned().ok_or_else(|| format!("no entry {index} in the tables"))
    }

    fn evict(&mut self) {
        let size = |table: &[Field]| -> usize {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while size(&self.table) > self.limit {
            self.table.pop();
        }
    }
}

fn take(block: &mut &[u8]) -> Result<u8, String> {
    let (first, rest) = block.split_first().ok_or("a block ends too early")?;
    *block = rest;
    Ok(*first)
}

fn take_integer(block: &mut &[u8], prefix: u32) -> Result<usize, String> {
    let most = (1 << prefix) - 1;
    let mut number = usize::from(take(block)?) & most;
    if number < most {
        return Ok(number);
    }
    for shift in (0..28).step_by(7) {
        let byte = take(block)?;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("an integer without end".to_owned())
}

fn take_string(block: &mut &[u8]) -> Result<Vec<u8>, String> {
    let is_packed = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = take_integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or("a string ends too early")?;
    *block = rest;
    if is_packed { unpack(bytes) } else { Ok(bytes.to_vec()) }
}

/// Huffman's code of RFC 7541, appendix B. It is canonical, so that the lengths say all of it.
fn unpack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u32);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        code = code << 1 | bit;
        length += 1;
        if let Some(symbol) = symbol(code, length) {
            text.push(symbol);
            (code, length) = (0, 0);
        }
    }
    let is_padding = length < 8 && code == (1 << length) - 1;
    if is_padding { Ok(text) } else { Err("a packed string ends too early".to_owned()) }
}

fn symbol(code: u32, length: u32) -> Option<u8> {
    let mut next = 0_u32;
    for of in 1..=length {
        next <<= 1;
        let mut symbols = (0..=u8::MAX).filter(|s| u32::from(LENGTHS[usize::from(*s)]) == of);
        if of == length {
            let number = code.checked_sub(next)?;
            return symbols.nth(usize::try_from(number).ok()?);
        }
        next += u32::try_from(symbols.count()).ok()?;
    }
    None
}

/// Bits of each byte's code.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11,
    10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8,
    15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5,
    6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23,
    23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21,
    23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25,
    26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26,
    28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
