//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`, sections 2.1 and 2.2): what
//! stands in front of a connection's bytes and says who the visitor is.
//!
//! A header is taken strictly or not at all: whoever believes one believes an address in it.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};

/// Longest header of version 1, in bytes, its CR LF included (section 2.1).
pub const MAX_V1: usize = 107;
/// Longest header of version 2 that is taken, in bytes: what any sender's addresses, and the usual
/// additions to them, need (the specification suggests 536).
pub const MAX_V2: usize = 536;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_START: usize = 16;
const V4_LEN: usize = 12;
const V6_LEN: usize = 36;
const UNIX_LEN: usize = 216;

/// Which way a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl std::str::FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(UnknownVersion(text.to_owned())),
        }
    }
}

/// Text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of the PROXY protocol: write v1 or v2")]
pub struct UnknownVersion(String);

/// The two ends of a visitor's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The visitor.
    pub source: SocketAddr,
    /// Where the visitor has connected to.
    pub destination: SocketAddr,
}

/// What the beginning of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header: more is needed.
    Incomplete,
    /// A whole header.
    Header {
        /// Its length in bytes; what is behind it is the visitor's.
        length: usize,
        /// What it says. `None`: it speaks of no other connection than this one, as a load
        /// balancer's own health checks do.
        addresses: Option<Addresses>,
    },
}

/// The bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They begin in another way.
    #[error("no PROXY header")]
    Absent,
    /// A header of version 1 that isn't one.
    #[error("a PROXY header of version 1 is malformed: {0}")]
    V1(&'static str),
    /// The same of version 2.
    #[error("a PROXY header of version 2 is malformed: {0}")]
    V2(&'static str),
}

/// Looks for a header at the beginning of `bytes`. No more than [`MAX_V2`] bytes are ever asked for.
///
/// # Errors
/// [`Malformed`], as soon as it is certain.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(Malformed::Absent)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let seen = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return match seen.len() {
            MAX_V1 => Err(Malformed::V1("it is too long")),
            _ => Ok(Parsed::Incomplete),
        };
    };
    let line = std::str::from_utf8(&seen[..end]).map_err(|_| Malformed::V1("it is no text"))?;
    let length = end + 2;
    let mut words = line.split(' ').skip(1);
    let v4 = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Ok(Parsed::Header { length, addresses: None }),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(Malformed::V1("neither TCP4, TCP6 nor UNKNOWN")),
    };
    let mut address = || {
        let address: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
        address
            .filter(|address| address.is_ipv4() == v4)
            .ok_or(Malformed::V1("an address can't be read"))
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || words.next().and_then(decimal).ok_or(Malformed::V1("a port can't be read"));
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return Err(Malformed::V1("it has too many words"));
    }
    let addresses = Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    };
    Ok(Parsed::Header { length, addresses: Some(addresses) })
}

/// Digits without a sign and without a zero in front.
fn decimal(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let padded = word.len() > 1 && word.starts_with('0');
    word.parse().ok().filter(|_| plain && !padded)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(start) = bytes.get(..V2_START) else { return Ok(Parsed::Incomplete) };
    let (command, family) = (start[12], start[13]);
    let rest = usize::from(u16::from_be_bytes([start[14], start[15]]));
    if command >> 4 != 2 {
        return Err(Malformed::V2("another version"));
    }
    let length = V2_START + rest;
    if length > MAX_V2 {
        return Err(Malformed::V2("it is too long"));
    }
    if family & 0xf > 2 {
        return Err(Malformed::V2("an unknown transport"));
    }
    let needed = match family >> 4 {
        0 => 0,
        1 => V4_LEN,
        2 => V6_LEN,
        3 => UNIX_LEN,
        _ => return Err(Malformed::V2("an unknown family of addresses")),
    };
    let local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(Malformed::V2("an unknown command")),
    };
    if !local && rest < needed {
        return Err(Malformed::V2("its addresses are cut off"));
    }
    let Some(block) = bytes.get(V2_START..length) else { return Ok(Parsed::Incomplete) };
    // Behind the addresses may be additions (TLVs) that nothing here needs.
    let addresses = match family >> 4 {
        _ if local || family & 0xf == 0 => None,
        1 => Some(v4_addresses(block)),
        2 => Some(v6_addresses(block)),
        _ => None,
    };
    Ok(Parsed::Header { length, addresses: addresses.flatten() })
}

fn v4_addresses(block: &[u8]) -> Option<Addresses> {
    let ip = |at: usize| Some(<[u8; 4]>::try_from(block.get(at..at + 4)?).ok()?.into());
    ends((ip(0)?, ip(4)?), block.get(8..V4_LEN)?)
}

fn v6_addresses(block: &[u8]) -> Option<Addresses> {
    let ip = |at: usize| Some(<[u8; 16]>::try_from(block.get(at..at + 16)?).ok()?.into());
    ends((ip(0)?, ip(16)?), block.get(32..V6_LEN)?)
}

fn ends((source, destination): (IpAddr, IpAddr), ports: &[u8]) -> Option<Addresses> {
    let [a, b, c, d] = *ports else { return None };
    Some(Addresses {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    })
}

/// The header that says `addresses`. Where one end is IPv4 and the other IPv6, both are written as
/// IPv6.
#[must_use]
pub fn header(version: Version, addresses: &Addresses) -> Bytes {
    let Addresses { source, destination } = *addresses;
    let (from, to) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V6(to)) => (from.to_ipv6_mapped().into(), to.into()),
        (IpAddr::V6(from), IpAddr::V4(to)) => (from.into(), to.to_ipv6_mapped().into()),
        same => same,
    };
    let (source, destination) =
        (SocketAddr::new(from, source.port()), SocketAddr::new(to, destination.port()));
    match version {
        Version::V1 => header_v1(source, destination),
        Version::V2 => header_v2(source, destination),
    }
}

fn header_v1(source: SocketAddr, destination: SocketAddr) -> Bytes {
    let family = if source.is_ipv4() { 4 } else { 6 };
    let (from, to) = (source.ip(), destination.ip());
    let (from_port, to_port) = (source.port(), destination.port());
    format!("PROXY TCP{family} {from} {to} {from_port} {to_port}\r\n").into()
}

fn header_v2(source: SocketAddr, destination: SocketAddr) -> Bytes {
    let mut out = BytesMut::with_capacity(V2_START + V6_LEN);
    let (family, length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    out.put_slice(SIGNATURE);
    out.put_slice(&[0x21, family]);
    out.put_u16(length);
    for end in [source, destination] {
        match end.ip() {
            IpAddr::V4(ip) => out.put_slice(&ip.octets()),
            IpAddr::V6(ip) => out.put_slice(&ip.octets()),
        }
    }
    out.put_u16(source.port());
    out.put_u16(destination.port());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> Option<Addresses> {
        match parse(bytes) {
            Ok(Parsed::Header { length, addresses }) => {
                assert_eq!(length, bytes.len());
                addresses
            }
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
        }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    #[test]
    fn version_1() {
        let seen = whole(b"PROXY TCP4 203.0.113.9 192.0.2.1 50000 443\r\n").unwrap();
        assert_eq!(seen.source, "203.0.113.9:50000".parse().unwrap());
        assert_eq!(seen.destination, "192.0.2.1:443".parse().unwrap());
        let seen = whole(b"PROXY TCP6 2001:db8::9 ::1 0 65535\r\n").unwrap();
        assert_eq!(seen.source, "[2001:db8::9]:0".parse().unwrap());
        assert_eq!(whole(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(whole(b"PROXY UNKNOWN ffff:f...f:ffff whatever\r\n"), None);
        for bad in [
            "PROXY\r\n",
            "PROXY  TCP4 203.0.113.9 192.0.2.1 1 2\r\n",
            "PROXY tcp4 203.0.113.9 192.0.2.1 1 2\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 2 3\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 2 \r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 01 2\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 +1 2\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 65536\r\n",
            "PROXY TCP4 203.0.113.009 192.0.2.1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n",
            "PROXY TCP6 [::1] ::1 1 2\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 2\n\r\n",
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 203.0.113.9 192.0.2.1 1 2\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; MAX_V1]].concat();
        assert_eq!(parse(&long), Err(Malformed::V1("it is too long")));
        assert_eq!(parse(&long[..MAX_V1 - 1]), Ok(Parsed::Incomplete));
    }

    #[test]
    fn version_2() {
        let block = [203, 0, 113, 9, 192, 0, 2, 1, 0xc3, 0x50, 1, 0xbb];
        let seen = whole(&v2(0x21, 0x11, &block)).unwrap();
        assert_eq!(seen.source, "203.0.113.9:50000".parse().unwrap());
        assert_eq!(seen.destination, "192.0.2.1:443".parse().unwrap());
        let more = [&block[..], &[4, 0, 2, 0, 0]].concat();
        assert_eq!(whole(&v2(0x21, 0x11, &more)), Some(seen), "additions are skipped");
        assert_eq!(whole(&v2(0x20, 0x00, &[])), None, "a health check");
        assert_eq!(whole(&v2(0x20, 0x11, &block)), None, "a health check with addresses");
        assert_eq!(whole(&v2(0x21, 0x00, &[])), None, "unspecified");
        assert_eq!(whole(&v2(0x21, 0x31, &[0; UNIX_LEN])), None, "Unix sockets");
        for bad in [
            v2(0x11, 0x11, &block),
            v2(0x22, 0x11, &block),
            v2(0x21, 0x41, &block),
            v2(0x21, 0x13, &block),
            v2(0x21, 0x11, &block[..11]),
            v2(0x21, 0x21, &block),
            v2(0x21, 0x11, &[0; MAX_V2]),
        ] {
            assert!(matches!(parse(&bad), Err(Malformed::V2(_))), "{bad:?}");
        }
    }

    fn addresses() -> impl Strategy<Value = Addresses> {
        let v4 = (any::<[u8; 4]>(), any::<u16>());
        let v6 = (any::<[u8; 16]>(), any::<u16>());
        let end = prop_oneof![v4.prop_map(SocketAddr::from), v6.prop_map(SocketAddr::from)];
        (end.clone(), end).prop_map(|(source, destination)| Addresses { source, destination })
    }

    proptest! {
        /// What is written is read, whatever follows it, and not before it is whole.
        #[test]
        fn round_trip(addresses in addresses(), v1: bool, behind in prop::collection::vec(any::<u8>(), 0..9)) {
            let version = if v1 { Version::V1 } else { Version::V2 };
            let header = header(version, &addresses);
            let most = if v1 { MAX_V1 } else { MAX_V2 };
            prop_assert!(header.len() <= most);
            let got = parse(&[&header[..], &behind].concat());
            let Ok(Parsed::Header { length, addresses: Some(got) }) = got else {
                panic!("{got:?}");
            };
            prop_assert_eq!(length, header.len());
            let canonical = |end: SocketAddr| (end.ip().to_canonical(), end.port());
            prop_assert_eq!(canonical(got.source), canonical(addresses.source));
            prop_assert_eq!(canonical(got.destination), canonical(addresses.destination));
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Ok(Parsed::Incomplete));
            }
        }
    }
}
