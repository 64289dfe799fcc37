//! The yamux frame header: 12 bytes, big endian.
//!
//! ```text
//! version (1) = 0 │ type (1) │ flags (2) │ stream id (4) │ length (4)
//! ```
//!
//! `length` is the payload's length in a data frame, the credit in a window update, an opaque value
//! in a ping and the reason in a go-away.
//! Source: <https://github.com/hashicorp/yamux/blob/master/spec.md>.

/// Length of a frame header, in bytes.
pub const HEADER_LEN: usize = 12;

/// Flags of a frame.
pub mod flag {
    /// The stream begins.
    pub const SYN: u16 = 1;
    /// The stream is accepted.
    pub const ACK: u16 = 2;
    /// No more data in this direction.
    pub const FIN: u16 = 4;
    /// The stream is over, in both directions.
    pub const RST: u16 = 8;
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Bytes of a stream.
    Data,
    /// Credit for a stream.
    WindowUpdate,
    /// A round trip, and its answer.
    Ping,
    /// No new streams.
    GoAway,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Type,
    /// See [`flag`].
    pub flags: u16,
    /// The stream, 0 for the session itself.
    pub stream: u32,
    /// Depends on the type, see above.
    pub length: u32,
}

/// These bytes are no yamux frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another version than 0.
    #[error("yamux version {0}, this side speaks 0")]
    Version(u8),
    /// A type above 3.
    #[error("unknown yamux frame type {0}")]
    Type(u8),
}

impl Header {
    /// A header as it goes over the wire.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[1] = match self.kind {
            Type::Data => 0,
            Type::WindowUpdate => 1,
            Type::Ping => 2,
            Type::GoAway => 3,
        };
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// A header as it came.
    ///
    /// # Errors
    /// [`HeaderError`] for another version or an unknown type.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        if version != 0 {
            return Err(HeaderError::Version(version));
        }
        let kind = match kind {
            0 => Type::Data,
            1 => Type::WindowUpdate,
            2 => Type::Ping,
            3 => Type::GoAway,
            other => return Err(HeaderError::Type(other)),
        };
        Ok(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_decodes_encodes_the_same(bytes in any::<[u8; HEADER_LEN]>()) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            } else {
                prop_assert!(bytes[0] != 0 || bytes[1] > 3);
            }
        }
    }
}
