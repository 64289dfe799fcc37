//! Which tunnel, or the edge itself, a request's host name asks for. One routing key for each
//! request, or none: what could be read in two ways is refused (T02).

use std::{borrow::Cow, net::IpAddr};

use bytes::Bytes;
use uniroute_shared::message::Fields;

/// The edge's own names.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// Tunnels are one label below this.
    pub(crate) domain: String,
    /// Any host that is no tunnel's is the edge's own (`dev`), not only the bare domain and
    /// addresses.
    pub(crate) any_is_own: bool,
}

/// What a host name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// The edge's own pages.
    Edge,
    /// The tunnel with this name.
    Tunnel(&'a str),
    /// A name that no tunnel can have.
    Unknown,
}

impl Hosts {
    /// Where a request for `host` (lower case, without port) goes.
    pub(crate) fn route<'a>(&self, host: &'a str) -> Route<'a> {
        if host == self.domain {
            return Route::Edge;
        }
        match host.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) {
            Some(name) if !name.contains('.') => Route::Tunnel(name),
            Some(_) => Route::Unknown,
            // No tunnel's name is an address, and an agent may know the edge by nothing else.
            None if self.any_is_own || host.parse::<IpAddr>().is_ok() => Route::Edge,
            None => Route::Unknown,
        }
    }
}

/// The one host that a request names: its authority as it was written, for the `Host` field and for
/// `Forwarded`. `target` is the authority of its absolute form, or HTTP/2's `:authority`.
pub(crate) fn authority(target: Option<&Bytes>, fields: &Fields) -> Option<Bytes> {
    let mut hosts = fields.all("host");
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    let authority = match (target, host) {
        // RFC 9112, section 3.2.2 lets the absolute form win; we want both to agree.
        (Some(target), Some(host)) if !host.eq_ignore_ascii_case(target) => return None,
        (_, Some(host)) => host,
        (Some(target), None) => target,
        (None, None) => return None,
    };
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"@/\\#?,\"".contains(byte);
    (!authority.is_empty() && authority.iter().all(plain)).then(|| authority.clone())
}

/// The host of an authority: without port and trailing dot, in lower case.
pub(crate) fn host(authority: &str) -> Option<Cow<'_, str>> {
    let host = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']')?;
            if !rest.is_empty() {
                valid_port(rest.strip_prefix(':')?)?;
            }
            host
        }
        None => match authority.split_once(':') {
            Some((host, port)) => {
                valid_port(port)?;
                host
            }
            None => authority,
        },
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() {
        return None;
    }
    Some(match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    })
}

fn valid_port(port: &str) -> Option<()> {
    (port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()))
        .then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_one_label_below_the_domain() {
        let mut hosts = Hosts { domain: "t.example".into(), any_is_own: false };
        assert_eq!(hosts.route("t.example"), Route::Edge);
        assert_eq!(hosts.route("demo.t.example"), Route::Tunnel("demo"));
        assert_eq!(hosts.route("a.demo.t.example"), Route::Unknown);
        assert_eq!(hosts.route("demot.example"), Route::Unknown);
        assert_eq!(hosts.route("127.0.0.1"), Route::Edge);
        assert_eq!(hosts.route("other.example"), Route::Unknown);
        hosts.any_is_own = true;
        assert_eq!(hosts.route("other.example"), Route::Edge);
    }

    #[test]
    fn a_host_without_its_port() {
        let cases = [
            ("Demo.Example:8080", Some("demo.example")),
            ("demo.example.", Some("demo.example")),
            ("[::1]:80", Some("::1")),
            ("[::1]", Some("::1")),
            ("demo:port", None),
            ("demo:80:80", None),
            ("demo:70000", None),
            (":80", None),
            ("[::1]x", None),
        ];
        for (authority, expected) in cases {
            assert_eq!(host(authority).as_deref(), expected, "{authority}");
        }
    }

    /// T02: host confusion.
    #[test]
    fn t02_two_hosts_or_two_opinions_are_no_host() {
        let target = Bytes::from_static(b"a.example");
        let hosts = |hosts: &[&'static str]| {
            let mut fields = Fields::default();
            hosts.iter().for_each(|host| fields.push("Host", *host));
            fields
        };
        let named = |target: Option<&Bytes>, fields: &Fields| {
            authority(target, fields).map(|host| String::from_utf8(host.to_vec()).unwrap())
        };
        assert_eq!(named(None, &hosts(&[])), None);
        assert_eq!(named(Some(&target), &hosts(&[])).as_deref(), Some("a.example"));
        assert_eq!(named(Some(&target), &hosts(&["A.example"])).as_deref(), Some("A.example"));
        for bad in [&["b.example"][..], &["a.example", "a.example"], &["user@a.example"], &["a,b"]]
        {
            assert_eq!(named(Some(&target), &hosts(bad)), None, "{bad:?}");
        }
        assert_eq!(named(None, &hosts(&["user@b.example"])), None);
    }
}
