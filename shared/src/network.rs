//! Networks of IP addresses, as operators write them (`10.0.0.0/8`, `fd00::/8`, `192.0.2.7`), and
//! whether an address is in one. Names are not resolved here.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};

/// Bits that IPv4 addresses have in front where they are written as IPv6 (`::ffff:0:0/96`).
const MAPPED: u8 = 96;

/// Text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The part before the `/` is no address.
    #[error("{0:?} is not an address such as 192.0.2.7 or a network such as 10.0.0.0/8")]
    Address(String),
    /// The part behind it is no length of a prefix.
    #[error("{text:?}: the number behind the / is from 0 to {most} here")]
    Length {
        /// What was written.
        text: String,
        /// Bits of such an address.
        most: u8,
    },
    /// Bits are set that the network does not have: it may be a slip of the pen.
    #[error("{text:?} has more bits set than its length says; the network is {meant}")]
    HostBits {
        /// What was written.
        text: String,
        /// The network that the address is in.
        meant: Network,
    },
}

/// All addresses with one prefix. IPv4 addresses that are written as IPv6 are IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// With no bit set behind the prefix.
    address: IpAddr,
    length: u8,
}

impl Network {
    /// The network of the first `length` bits of `address`.
    fn around(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Self { address: IpAddr::V4((v4.to_bits() & mask).into()), length }
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let kept = Ipv6Addr::from(v6.to_bits() & mask);
                match kept.to_ipv4_mapped() {
                    Some(v4) if length >= MAPPED => {
                        Self { address: IpAddr::V4(v4), length: length - MAPPED }
                    }
                    _ => Self { address: IpAddr::V6(kept), length },
                }
            }
        }
    }

    /// Whether `address` is in it. No IPv4 address is in an IPv6 network, `::/0` included.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && Self::around(address, self.length).address == self.address
    }
}

impl From<IpAddr> for Network {
    /// One address.
    fn from(address: IpAddr) -> Self {
        Self::around(address, bits(address))
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let text = text.trim();
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| NetworkError::Address(text.to_owned()))?;
        let Some(length) = length else { return Ok(address.into()) };
        let most = bits(address);
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse().ok().filter(|length| digits && *length <= most);
        let length = length.ok_or_else(|| NetworkError::Length { text: text.to_owned(), most })?;
        let network = Self::around(address, length);
        if network.contains(address) && network.address == address.to_canonical() {
            return Ok(network);
        }
        Err(NetworkError::HostBits { text: text.to_owned(), meant: network })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A list of networks. As text they stand one after another, with commas; in a config file they are
/// an array of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Whether `address` is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

impl FromStr for Networks {
    type Err = NetworkError;

    /// No text is an empty list.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(str::parse).collect()
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, network) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn within(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_in_the_networks_that_it_begins_like() {
        for (network, address) in [
            ("10.0.0.0/8", "10.255.1.2"),
            ("192.0.2.7", "192.0.2.7"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("fd00::/8", "fdff::1"),
            ("::/0", "2001:db8::1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3"),
            ("::1", "::1"),
        ] {
            assert!(within(network, address), "{address} in {network}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.6"),
            ("192.0.2.128/25", "192.0.2.127"),
            ("0.0.0.0/0", "::1"),
            ("::/0", "127.0.0.1"),
            ("::/0", "::ffff:127.0.0.1"),
            ("fd00::/8", "fe00::"),
        ] {
            assert!(!within(network, address), "{address} in {network}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        let error = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        for bad in ["", "localhost", "10.0.0", "10.0.0.0.0/8", "010.0.0.1", "[::1]", "10.0.0.0:80"]
        {
            assert!(error(bad).contains(&format!("{bad:?}")), "{bad}");
        }
        for bad in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "::/129", "::/8/8"] {
            assert!(error(bad).contains("from 0 to"), "{bad}");
        }
        assert!(error("10.1.2.3/8").contains("the network is 10.0.0.0/8"));
        assert!(
            "10.0.0.0/8,nowhere".parse::<Networks>().unwrap_err().to_string().contains("nowhere")
        );
    }

    #[test]
    fn lists_are_text_and_toml() {
        let networks: Networks = "10.0.0.0/8, ::1".parse().unwrap();
        assert_eq!(networks.to_string(), "10.0.0.0/8,::1/128");
        assert!(networks.contains([10, 0, 0, 1].into()) && !networks.contains([9, 0, 0, 1].into()));
        assert!("".parse::<Networks>().unwrap().is_empty());
        #[derive(Deserialize)]
        struct File {
            networks: Networks,
        }
        let file: File = toml::from_str(r#"networks = ["10.0.0.0/8", "::1"]"#).unwrap();
        assert_eq!(file.networks, networks);
        let wrong = toml::from_str::<File>(r#"networks = ["10.0.0.0/99"]"#).err().unwrap();
        assert!(wrong.to_string().contains("10.0.0.0/99"), "{wrong}");
    }

    proptest! {
        /// What is printed is read as the same, and an address is in every network around it.
        #[test]
        fn round_trip(bits: u128, v4: bool, length in 0_u8..=128) {
            let address = match v4 {
                true => IpAddr::V4(u32::try_from(bits >> 96).unwrap().into()),
                false => IpAddr::V6(bits.into()),
            };
            let network = Network::around(address, length.min(super::bits(address)));
            prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
            prop_assert!(network.contains(address) || address.to_canonical() != address);
        }
    }
}
