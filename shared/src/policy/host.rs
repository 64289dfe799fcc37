//! What the local server believes its name to be, and how its links become public ones.

use bytes::Bytes;
use uniroute_proto::v1;

use super::{PolicyError, fields};
use crate::message::{Fields, RequestHead};

/// Fields of an answer that hold one URL.
const URLS: [&str; 3] = ["location", "content-location", "access-control-allow-origin"];

/// The rule for `Host`.
#[derive(Debug, Default)]
pub(super) enum HostRule {
    /// As the visitor sent it.
    #[default]
    Preserve,
    /// This.
    Literal(Bytes),
    /// The local server's own name; of routes without one of their own, this.
    Rewrite(Origin),
}

impl HostRule {
    pub(super) fn compile(policy: &v1::HttpPolicy) -> Result<Self, PolicyError> {
        let wrong = |what: String| PolicyError::new("host_header", what);
        match policy.host_mode() {
            v1::HostMode::Unspecified => Ok(Self::Preserve),
            v1::HostMode::Literal => {
                check_authority(&policy.host).map_err(wrong)?;
                Ok(Self::Literal(policy.host.clone().into()))
            }
            v1::HostMode::Rewrite => {
                Origin::parse(&policy.local_origin).map(Self::Rewrite).map_err(wrong)
            }
        }
    }

    /// `local`: the route's own, if it has one.
    pub(super) fn rewrite_request(
        &self,
        head: &mut RequestHead,
        local: Option<&Origin>,
        public: &Public,
    ) {
        match self {
            Self::Preserve => {}
            Self::Literal(host) => set_host(head, host.clone()),
            Self::Rewrite(default) => {
                let local = local.unwrap_or(default);
                for name in ["origin", "referer"] {
                    each(&mut head.fields, name, |url| public.to_local(local, url));
                }
                set_host(head, local.authority.clone());
            }
        }
    }

    pub(super) fn rewrite_response(
        &self,
        fields: &mut Fields,
        local: Option<&Origin>,
        public: &Public,
    ) {
        let Self::Rewrite(default) = self else { return };
        let local = local.unwrap_or(default);
        for name in URLS {
            each(fields, name, |url| public.of_local(local, url));
        }
        each(fields, "refresh", |value| refresh(value, |url| public.of_local(local, url)));
        each(fields, "set-cookie", |cookie| cookie_domain(cookie, local, public));
    }
}

fn set_host(head: &mut RequestHead, host: Bytes) {
    head.fields.set("host", host.clone());
    head.authority = host;
}

/// Changes the values of the fields called `name` for which `change` has something else.
fn each(fields: &mut Fields, name: &str, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    for field in &mut fields.0 {
        if crate::message::is(field, name)
            && let Some(value) = change(&field.value)
        {
            field.value = value.into();
        }
    }
}

/// A scheme with a host: what links of one server begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    https: bool,
    authority: Bytes,
}

impl Origin {
    /// Reads `http://HOST:PORT` or `https://HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (https, authority) = match text.split_once("://") {
            Some(("http", authority)) => (false, authority),
            Some(("https", authority)) => (true, authority),
            _ => return Err(format!("{text:?} is no origin such as http://localhost:3000")),
        };
        check_authority(authority)?;
        Ok(Self { https, authority: Bytes::copy_from_slice(authority.as_bytes()) })
    }

    pub(super) fn optional(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }
}

/// How the visitor names the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    origin: Origin,
}

impl Public {
    /// Of a request that came for `authority`.
    #[must_use]
    pub fn new(https: bool, authority: Bytes) -> Self {
        Self { origin: Origin { https, authority } }
    }

    /// A visitor's URL of this tunnel, as one of the local server.
    fn to_local(&self, local: &Origin, url: &[u8]) -> Option<Vec<u8>> {
        exchange(url, &self.origin, local)
    }

    /// A URL of the local server, as a visitor can use it.
    fn of_local(&self, local: &Origin, url: &[u8]) -> Option<Vec<u8>> {
        exchange(url, local, &self.origin)
    }
}

/// `url` with the origin `to`, if it is absolute and names the host of `from`. Its scheme does not
/// matter: a server behind proxies may believe in either.
fn exchange(url: &[u8], from: &Origin, to: &Origin) -> Option<Vec<u8>> {
    let scheme = |scheme: &[u8]| {
        let found = url.get(..scheme.len())?.eq_ignore_ascii_case(scheme);
        found.then(|| &url[scheme.len()..])
    };
    let rest = scheme(b"http://").or_else(|| scheme(b"https://")).or_else(|| scheme(b"//"))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'\\' | b'?' | b'#'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    if !same_place(authority, &from.authority) {
        return None;
    }
    let scheme: &[u8] = match (url.starts_with(b"//"), to.https) {
        (true, _) => b"//",
        (false, true) => b"https://",
        (false, false) => b"http://",
    };
    Some([scheme, &to.authority, path].concat())
}

/// Whether two authorities are one: without regard to case, and to a port that both schemes imply.
fn same_place(one: &[u8], other: &[u8]) -> bool {
    let parts = |authority| {
        let (host, port) = split_port(authority);
        (host, port.filter(|port| !matches!(*port, b"" | b"80" | b"443")))
    };
    let ((host, port), (other_host, other_port)) = (parts(one), parts(other));
    host.eq_ignore_ascii_case(other_host) && port == other_port
}

/// Host and port of an authority. An IPv6 address keeps its brackets.
pub(super) fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let after_v6 = authority.iter().position(|byte| *byte == b']').unwrap_or(0);
    match authority[after_v6..].iter().position(|byte| *byte == b':') {
        Some(at) => (&authority[..after_v6 + at], Some(&authority[after_v6 + at + 1..])),
        None => (authority, None),
    }
}

/// `Refresh: 5; url=http://…`
fn refresh(value: &[u8], change: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let at = value.windows(4).position(|four| four.eq_ignore_ascii_case(b"url="))? + 4;
    let quote = usize::from(matches!(value.get(at), Some(b'"' | b'\'')));
    let (front, url) = value.split_at(at + quote);
    Some([front, &change(url)?].concat())
}

/// A cookie for the local host is one for the public host: that is what `Domain` left out means. One
/// for a domain above it becomes one for all below the public host.
fn cookie_domain(cookie: &[u8], local: &Origin, public: &Public) -> Option<Vec<u8>> {
    let host = split_port(&local.authority).0;
    let mut changed = false;
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for (index, part) in cookie.split(|byte| *byte == b';').enumerate() {
        match domain(part).filter(|_| index > 0) {
            Some(domain) if domain.eq_ignore_ascii_case(host) => changed = true,
            Some(domain) if is_above(domain, host) => {
                let public = split_port(&public.origin.authority).0;
                kept.push([b" Domain=", public].concat());
                changed = true;
            }
            _ => kept.push(part.to_vec()),
        }
    }
    changed.then(|| kept.join(&b';'))
}

/// The domain that a cookie's attribute `Domain` names.
fn domain(attribute: &[u8]) -> Option<&[u8]> {
    let equals = attribute.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (attribute[..equals].trim_ascii(), attribute[equals + 1..].trim_ascii());
    let value = value.strip_prefix(b".").unwrap_or(value);
    (name.eq_ignore_ascii_case(b"domain") && !value.is_empty()).then_some(value)
}

fn is_above(domain: &[u8], host: &[u8]) -> bool {
    let at = host.len().checked_sub(domain.len() + 1);
    at.is_some_and(|at| host[at] == b'.' && host[at + 1..].eq_ignore_ascii_case(domain))
}

/// Refuses what can't be in `Host`.
fn check_authority(authority: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~[]:".contains(c);
    let (host, port) = split_port(authority.as_bytes());
    let number = |port: &[u8]| std::str::from_utf8(port).ok()?.parse::<u16>().ok();
    let port_is_sound = port.is_none_or(|port| number(port).is_some());
    let sound = !host.is_empty() && port_is_sound && authority.chars().all(allowed);
    if !sound || fields::check_value(authority.as_bytes()).is_err() {
        return Err(format!(
            "{authority:?} is no host; write \"rewrite\", \"preserve\", HOST or HOST:PORT"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uniroute_proto::v1::HttpVersion;

    use super::*;

    fn rule(mode: v1::HostMode, host: &str, local: &str) -> Result<HostRule, PolicyError> {
        let mut policy =
            v1::HttpPolicy { host: host.into(), local_origin: local.into(), ..Default::default() };
        policy.set_host_mode(mode);
        HostRule::compile(&policy)
    }

    fn rewrite() -> HostRule {
        rule(v1::HostMode::Rewrite, "", "http://localhost:3000").unwrap()
    }

    fn public() -> Public {
        Public::new(true, "demo.example.com".into())
    }

    fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut all = Fields::default();
        fields.iter().for_each(|(name, value)| all.push(*name, *value));
        RequestHead {
            method: "GET".into(),
            target: "/".into(),
            authority: "demo.example.com".into(),
            version: HttpVersion::HttpVersion11,
            fields: all,
        }
    }

    #[test]
    fn the_local_server_sees_its_own_name() {
        let mut head = head(&[
            ("Host", "demo.example.com"),
            ("Origin", "https://demo.example.com"),
            ("Referer", "https://DEMO.example.com:443/a?b"),
        ]);
        rewrite().rewrite_request(&mut head, None, &public());
        assert_eq!(head.authority, "localhost:3000");
        assert_eq!(head.fields.get("host").unwrap(), "localhost:3000");
        assert_eq!(head.fields.get("origin").unwrap(), "http://localhost:3000");
        assert_eq!(head.fields.get("referer").unwrap(), "http://localhost:3000/a?b");
        let route = Origin::parse("https://[::1]:4000").unwrap();
        rewrite().rewrite_request(&mut head, Some(&route), &public());
        assert_eq!(head.authority, "[::1]:4000");
    }

    #[test]
    fn what_names_another_host_stays() {
        let mut head = head(&[
            ("Origin", "null"),
            ("Referer", "https://demo.example.com.evil.example/"),
            ("Referer", "https://a@demo.example.com/"),
        ]);
        let before = head.fields.clone();
        rewrite().rewrite_request(&mut head, None, &public());
        head.fields.remove("host");
        assert_eq!(head.fields, before);
    }

    #[test]
    fn a_literal_host_changes_nothing_else() {
        let mut head =
            head(&[("Host", "demo.example.com"), ("Origin", "https://demo.example.com")]);
        let literal = rule(v1::HostMode::Literal, "app.test", "").unwrap();
        literal.rewrite_request(&mut head, None, &public());
        assert_eq!(head.authority, "app.test");
        assert_eq!(head.fields.get("origin").unwrap(), "https://demo.example.com");
    }

    fn answered(name: &'static str, value: &'static str) -> String {
        let mut fields = Fields::default();
        fields.push(name, value);
        rewrite().rewrite_response(&mut fields, None, &public());
        String::from_utf8(fields.get(name).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn links_of_the_local_server_become_public() {
        for (name, value, expected) in [
            ("Location", "http://localhost:3000/a?b#c", "https://demo.example.com/a?b#c"),
            ("location", "HTTPS://LocalHost:3000", "https://demo.example.com"),
            ("Location", "//localhost:3000/a", "//demo.example.com/a"),
            ("Location", "/a", "/a"),
            ("Location", "http://localhost:3001/a", "http://localhost:3001/a"),
            ("Location", "http://localhost/a", "http://localhost/a"),
            ("Location", "http://localhost:3000@evil/", "http://localhost:3000@evil/"),
            ("Content-Location", "http://localhost:3000/a", "https://demo.example.com/a"),
            ("Access-Control-Allow-Origin", "http://localhost:3000", "https://demo.example.com"),
            ("Access-Control-Allow-Origin", "*", "*"),
            ("Refresh", "5; URL='http://localhost:3000/a'", "5; URL='https://demo.example.com/a'"),
            ("Refresh", "5", "5"),
        ] {
            assert_eq!(answered(name, value), expected, "{name}: {value}");
        }
    }

    #[test]
    fn cookies_for_the_local_host_are_for_the_public_one() {
        for (value, expected) in [
            ("a=b; Domain=localhost; Path=/", "a=b; Path=/"),
            ("a=b;domain=.LocalHost", "a=b"),
            ("a=b; Path=/", "a=b; Path=/"),
            ("a=b; Domain=other.test", "a=b; Domain=other.test"),
            ("Domain=localhost", "Domain=localhost"),
        ] {
            assert_eq!(answered("Set-Cookie", value), expected);
        }
        let above = rule(v1::HostMode::Rewrite, "", "http://app.dev.test").unwrap();
        let mut fields = Fields::default();
        fields.push("Set-Cookie", "a=b; Domain=dev.test; Secure");
        above.rewrite_response(&mut fields, None, &public());
        assert_eq!(fields.get("set-cookie").unwrap(), "a=b; Domain=demo.example.com; Secure");
    }

    #[test]
    fn hosts_that_cannot_be_are_refused() {
        for bad in ["", "a b", "a/b", "a:b", "a\r\nb", "u@a", ":80", "a:99999"] {
            let error = rule(v1::HostMode::Literal, bad, "").unwrap_err();
            assert_eq!(error.key, "host_header", "{bad}");
        }
        for bad in ["", "localhost:3000", "ftp://a", "http://", "http://a/b"] {
            assert!(rule(v1::HostMode::Rewrite, "", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// T10: what comes out holds no line break that did not come in.
        #[test]
        fn t10_no_line_break_is_made(name in "(?i)location|refresh|set-cookie", value in "[ -~]{0,60}") {
            let mut fields = Fields::default();
            fields.push(name.clone(), value);
            rewrite().rewrite_response(&mut fields, None, &public());
            let value = fields.get(&name).unwrap();
            prop_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
}
