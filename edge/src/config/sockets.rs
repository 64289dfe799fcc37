//! Settings of what is not HTTP: ports of TCP and UDP tunnels, the listener for TLS, load balancers
//! that say who the visitor is.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use uniroute_shared::network::Networks;

use super::SettingsError;

/// Ports that tunnels get where nobody says otherwise, for each of TCP and UDP.
const PORTS: RangeInclusive<u16> = 20_000..=20_999;
/// Where `dev` takes TLS.
const DEV_HTTPS: u16 = 8443;
/// Connections to one tunnel at a time. Fewer than the streams that a session may have: one tunnel
/// leaves some to the others of its agent.
const MAX_TUNNEL_CONNECTIONS: usize = 1_000;
/// Flows of one UDP tunnel at a time. Fewer still: each new visitor has one.
const MAX_TUNNEL_FLOWS: usize = 768;

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// Visitors' TLS connections.
    pub https: Https,
    /// Public ports of TCP tunnels, at the address of `http`; `None`: there are none.
    pub tcp_ports: Option<RangeInclusive<u16>>,
    /// The same of UDP tunnels.
    pub udp_ports: Option<RangeInclusive<u16>>,
    /// Load balancers, whose connections begin with a PROXY header that says who the visitor is.
    pub proxy_protocol: Networks,
    /// Connections to one TCP or TLS tunnel at a time; the next one is closed.
    pub max_tunnel_connections: usize,
    /// Flows of one UDP tunnel at a time; the quietest one makes room for the next.
    pub max_tunnel_flows: usize,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            https: Https::Off,
            tcp_ports: Some(PORTS),
            udp_ports: Some(PORTS),
            proxy_protocol: Networks::default(),
            max_tunnel_connections: MAX_TUNNEL_CONNECTIONS,
            max_tunnel_flows: MAX_TUNNEL_FLOWS,
        }
    }
}

/// Where visitors' TLS connections come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Https {
    /// Nowhere.
    Off,
    /// There; if that can't be had, nowhere, with a warning.
    IfFree(SocketAddr),
    /// There, or the edge does not start.
    At(SocketAddr),
}

impl Https {
    /// What `dev` does where nobody says otherwise; `beside` is where HTTP is.
    #[must_use]
    pub fn in_dev(beside: IpAddr) -> Self {
        Self::IfFree(SocketAddr::new(beside, DEV_HTTPS))
    }
}

/// An address, `off`, or nothing said.
pub(super) fn https(text: Option<&str>) -> Result<Https, SettingsError> {
    match text {
        None | Some("off") => Ok(Https::Off),
        Some(text) => {
            let address = text.parse().map_err(|_| SettingsError::Https(text.to_owned()))?;
            Ok(Https::At(address))
        }
    }
}

/// `FIRST-LAST`, one port, `off`, or nothing said.
pub(super) fn ports(
    key: &'static str,
    text: Option<&str>,
) -> Result<Option<RangeInclusive<u16>>, SettingsError> {
    let text = match text {
        None => return Ok(Some(PORTS)),
        Some("off") => return Ok(None),
        Some(text) => text,
    };
    let port = |digits: &str| digits.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let range = match text.split_once('-') {
        Some((first, last)) => port(first).zip(port(last)),
        None => port(text).map(|port| (port, port)),
    };
    let range = range.filter(|(first, last)| first <= last);
    let (first, last) = range.ok_or_else(|| SettingsError::Ports(key, text.to_owned()))?;
    Ok(Some(first..=last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports() {
        assert_eq!(ports("tcp_ports", None).unwrap(), Some(PORTS));
        assert_eq!(ports("tcp_ports", Some("off")).unwrap(), None);
        assert_eq!(ports("tcp_ports", Some("7000-7009")).unwrap(), Some(7000..=7009));
        assert_eq!(ports("tcp_ports", Some("7000")).unwrap(), Some(7000..=7000));
        for bad in ["", "0-10", "9-8", "a-b", "1-65536", "1-2-3", "-5"] {
            let error = ports("udp_ports", Some(bad)).unwrap_err().to_string();
            assert!(error.contains("udp_ports") && error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn addresses_for_tls() {
        assert_eq!(https(None).unwrap(), Https::Off);
        assert_eq!(https(Some("off")).unwrap(), Https::Off);
        assert_eq!(https(Some("[::]:443")).unwrap(), Https::At("[::]:443".parse().unwrap()));
        assert!(https(Some("443")).unwrap_err().to_string().contains("0.0.0.0:443"));
    }
}
