//! Where a request came from, as far as that can be believed: only a proxy that the operator trusts
//! is asked, and only what such proxies have added is passed on (T03).
//!
//! Both `X-Forwarded-*` and `Forwarded` (RFC 7239) are read from the right, since each proxy adds its
//! word there: past the addresses of trusted proxies, up to the first one that is not trusted. That is
//! the visitor, and what stands to its left is the visitor's own claim. Where there are both, the
//! older fields count, which more proxies write.

use std::net::{IpAddr, SocketAddr};

use super::visitor::Visitor;
use bytes::{BufMut as _, Bytes, BytesMut};
use uniroute_shared::{
    headers,
    message::{Fields, is},
    network::Networks,
};

/// Proxies that are looked past at most.
const MAX_HOPS: usize = 32;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";
const PORT: &str = "x-forwarded-port";
const FORWARDED: &str = "forwarded";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarded {
    pub(crate) visitor: IpAddr,
    /// `http` or `https`: how the visitor reached the first proxy.
    pub(crate) proto: &'static str,
    /// What the visitor asked the first proxy for, if one has said so. No routing key: that is `Host`
    /// alone (T02).
    pub(crate) host: Option<Bytes>,
    /// The visitor and the proxies that it came by, in the order of the way.
    pub(crate) chain: Vec<IpAddr>,
    /// Whether there is a trusted proxy in front.
    by_proxy: bool,
}

/// Where a request came from that `peer` has sent over `scheme` (`http` or `https`).
pub(crate) fn of(
    peer: IpAddr,
    trusted: &Networks,
    fields: &Fields,
    scheme: &'static str,
) -> Forwarded {
    let peer = peer.to_canonical();
    let mut forwarded = Forwarded {
        visitor: peer,
        proto: scheme,
        host: None,
        chain: vec![peer],
        by_proxy: trusted.contains(peer),
    };
    if forwarded.by_proxy {
        let elements = if fields.contains(FOR) { older(fields) } else { standard(fields) };
        forwarded.walk(trusted, elements);
        forwarded.chain.reverse();
    }
    forwarded
}

/// Frees `fields` of what belongs to the visitor's connection and of what claims to say where the
/// request came from; where a trusted proxy has said it, what can be believed of it is written
/// instead, and returned.
pub(crate) fn settle(
    visitor: &Visitor,
    fields: &mut Fields,
    authority: &Bytes,
) -> Option<Box<Forwarded>> {
    if !visitor.trusted {
        headers::of_visitor(fields);
        return None;
    }
    let came = of(visitor.peer.ip(), &visitor.edge.trusted, fields, visitor.scheme);
    headers::to_next_hop(fields);
    came.write(fields, authority);
    Some(Box::new(came))
}

/// The port that an authority names, or its scheme's own.
pub(crate) fn port<'a>(authority: &'a [u8], scheme: &str) -> &'a [u8] {
    let default: &[u8] = if scheme == "https" { b"443" } else { b"80" };
    let digits = authority.rsplit(|byte| *byte == b':').next();
    let digits = digits.filter(|digits| digits.len() < authority.len());
    digits.filter(|d| !d.is_empty() && d.iter().all(u8::is_ascii_digit)).unwrap_or(default)
}

/// What one proxy has said of its own peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Element {
    node: Option<IpAddr>,
    proto: Option<&'static str>,
    host: Option<Bytes>,
}

impl Forwarded {
    /// `elements` come from the right.
    fn walk(&mut self, trusted: &Networks, elements: Vec<Element>) {
        for Element { node, proto, host } in elements.into_iter().take(MAX_HOPS) {
            // Hidden or unreadable: whoever has said so is the last that is known.
            let Some(node) = node else { return };
            self.visitor = node;
            self.chain.push(node);
            self.proto = proto.unwrap_or(self.proto);
            self.host = host.or(self.host.take());
            if !trusted.contains(node) {
                return;
            }
        }
    }

    /// Replaces what `fields` say of the way by what is known of it. `authority` is what the request
    /// itself asks for.
    pub(crate) fn write(&self, fields: &mut Fields, authority: &Bytes) {
        fields.0.retain(|field| !claims(&field.name, self.by_proxy));
        let host = self.host.as_ref().unwrap_or(authority);
        let words: Vec<String> = self.chain.iter().map(ToString::to_string).collect();
        fields.push(FOR, words.join(", "));
        fields.push(PROTO, self.proto);
        fields.push(HOST, host.clone());
        fields.push(PORT, Bytes::copy_from_slice(port(host, self.proto)));
        fields.push(FORWARDED, self.standard(host));
    }

    /// RFC 7239, section 4.
    fn standard(&self, host: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        for (number, node) in self.chain.iter().enumerate() {
            let text = match node {
                IpAddr::V4(v4) => format!("for={v4}"),
                IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
            };
            if number > 0 {
                out.put_slice(b", ");
            }
            out.put_slice(text.as_bytes());
            if number == 0 {
                out.put_slice(b";host=");
                put_value(host, &mut out);
                out.put_slice(b";proto=");
                out.put_slice(self.proto.as_bytes());
            }
        }
        out.freeze()
    }
}

/// A token as it is, anything else in quotes (RFC 7239, section 4).
fn put_value(value: &[u8], out: &mut BytesMut) {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if !value.is_empty() && value.iter().all(token) {
        return out.put_slice(value);
    }
    out.put_u8(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

/// Whether a field says where a request came from, and is not to go on: those that are written anew
/// in any case, and all of that family unless a trusted proxy has sent them. Underscores are read as
/// hyphens, as many local servers do.
fn claims(name: &[u8], by_proxy: bool) -> bool {
    let written = [FOR, PROTO, HOST, PORT, FORWARDED, "x-real-ip"];
    let family = b"x-forwarded-";
    written.iter().any(|known| known.len() == name.len() && begins(name, known.as_bytes()))
        || (!by_proxy && begins(name, family))
}

fn begins(name: &[u8], with: &[u8]) -> bool {
    let same = |(byte, known): (&u8, &u8)| {
        byte.eq_ignore_ascii_case(known) || (*byte == b'_' && *known == b'-')
    };
    name.len() >= with.len() && name.iter().zip(with).all(same)
}

/// The elements of `X-Forwarded-For`, from the right, each with the protocol and the host that stand
/// at the same place from the right; where there are fewer of these, the leftmost one holds for all.
fn older(fields: &Fields) -> Vec<Element> {
    let (protos, hosts) = (list(fields, PROTO), list(fields, HOST));
    let at = |list: &[Bytes], number: usize| list.get(number).or(list.last()).cloned();
    let element = |(number, node): (usize, Bytes)| Element {
        node: address(&node),
        proto: at(&protos, number).and_then(|proto| scheme(&proto)),
        host: at(&hosts, number).and_then(authority),
    };
    list(fields, FOR).into_iter().enumerate().map(element).collect()
}

/// The members of a list field, from the right.
fn list(fields: &Fields, name: &str) -> Vec<Bytes> {
    let lines = fields.0.iter().rev().filter(|field| is(field, name));
    let members = lines.flat_map(|field| {
        let members = field.value.rsplit(|byte| *byte == b',');
        members.map(|member| field.value.slice_ref(member.trim_ascii()))
    });
    members.filter(|member| !member.is_empty()).take(MAX_HOPS).collect()
}

/// The elements of `Forwarded`, from the right. A malformed line says nothing, nor do those in front
/// of it.
fn standard(fields: &Fields) -> Vec<Element> {
    let mut elements = Vec::new();
    for field in fields.0.iter().rev().filter(|field| is(field, FORWARDED)) {
        let Some(line) = parse_line(&field.value) else {
            elements.push(Element::default());
            break;
        };
        elements.extend(line.into_iter().rev());
    }
    elements
}

/// `for=…;proto=…;host=…, for=…`, with quoted strings.
fn parse_line(line: &[u8]) -> Option<Vec<Element>> {
    let mut elements = vec![Element::default()];
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (name, behind) = (&rest[..equals], &rest[equals + 1..]);
        let (value, behind) = parse_value(behind)?;
        let element = elements.last_mut()?;
        if name.eq_ignore_ascii_case(b"for") {
            element.node = address(&value);
        } else if name.eq_ignore_ascii_case(b"proto") {
            element.proto = scheme(&value);
        } else if name.eq_ignore_ascii_case(b"host") {
            element.host = authority(value);
        }
        rest = behind.trim_ascii_start();
        match rest.split_first() {
            None => return Some(elements),
            Some((b';', behind)) => rest = behind,
            Some((b',', behind)) => {
                rest = behind;
                elements.push(Element::default());
            }
            Some(_) => return None,
        }
    }
}

/// A token or a quoted string, and what is behind it.
fn parse_value(text: &[u8]) -> Option<(Bytes, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| b",; \t".contains(byte)).unwrap_or(text.len());
        let (value, behind) = text.split_at(end);
        return (!value.is_empty()).then(|| (Bytes::copy_from_slice(value), behind));
    };
    let mut value = BytesMut::new();
    let mut bytes = quoted.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((value.freeze(), &quoted[at + 1..])),
            b'\\' => value.put_u8(*bytes.next()?.1),
            byte => value.put_u8(*byte),
        }
    }
    None
}

/// `192.0.2.7`, `192.0.2.7:80`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:80`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    address.or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

fn scheme(text: &[u8]) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|known| text.eq_ignore_ascii_case(known.as_bytes()))
}

/// What can stand in `Host`.
fn authority(text: Bytes) -> Option<Bytes> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(byte);
    (!text.is_empty() && text.iter().all(plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.push(name.to_string(), value.to_string());
        }
        fields
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn seen(peer: &str, pairs: &[(&str, &str)]) -> Forwarded {
        of(ip(peer), &"10.0.0.0/8,fd00::/8".parse().unwrap(), &fields(pairs), "http")
    }

    /// T03: forged identity. Nothing that a visitor says of itself is believed or passed on.
    #[test]
    fn t03_a_visitor_can_forge_nothing() {
        let forged = [
            ("X-Forwarded-For", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "bank.example"),
            ("X-FORWARDED-PORT", "1"),
            ("x-forwarded-client-cert", "Subject=root"),
            ("Forwarded", "for=6.6.6.6;proto=https"),
            ("X-Real-IP", "6.6.6.6"),
            ("x-other", "stays"),
        ];
        let seen = seen("203.0.113.9", &forged);
        assert_eq!((seen.visitor, seen.proto, &seen.host), (ip("203.0.113.9"), "http", &None));
        let mut out = fields(&forged);
        seen.write(&mut out, &"demo.example:8080".into());
        let expected = [
            ("x-other", "stays"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "demo.example:8080"),
            ("x-forwarded-port", "8080"),
            ("forwarded", "for=203.0.113.9;host=\"demo.example:8080\";proto=http"),
        ];
        assert_eq!(out, fields(&expected));
    }

    #[test]
    fn trusted_proxies_are_looked_past_from_the_right() {
        for (lines, visitor) in [
            (&[("x-forwarded-for", "203.0.113.9")][..], "203.0.113.9"),
            // The visitor has put something in front.
            (&[("x-forwarded-for", "6.6.6.6, 203.0.113.9")], "203.0.113.9"),
            (&[("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.1.1.1")], "203.0.113.9"),
            (&[("x-forwarded-for", "203.0.113.9"), ("X-Forwarded-For", "10.1.1.1")], "203.0.113.9"),
            (&[("x-forwarded-for", "203.0.113.9:4711")], "203.0.113.9"),
            (&[("x-forwarded-for", "[2001:db8::9]:4711")], "2001:db8::9"),
            (&[("x-forwarded-for", "2001:db8::9")], "2001:db8::9"),
            (&[("x-forwarded-for", "::ffff:203.0.113.9")], "203.0.113.9"),
            (&[("x-forwarded-for", " , 203.0.113.9 ,")], "203.0.113.9"),
            // Everybody is trusted: the one furthest away is.
            (&[("x-forwarded-for", "10.2.2.2, 10.1.1.1")], "10.2.2.2"),
            // What can't be read ends the way there.
            (&[("x-forwarded-for", "203.0.113.9, unknown, 10.1.1.1")], "10.1.1.1"),
            (&[("x-forwarded-for", "unknown")], "10.0.0.1"),
            (&[("x-forwarded-for", "")], "10.0.0.1"),
            (&[], "10.0.0.1"),
            (&[("forwarded", "for=203.0.113.9")], "203.0.113.9"),
            (&[("forwarded", "for=6.6.6.6, For=\"[2001:db8::9]:4711\" ; by=_x")], "2001:db8::9"),
            (&[("forwarded", "for=203.0.113.9"), ("forwarded", "for=10.1.1.1")], "203.0.113.9"),
            (&[("forwarded", "for=203.0.113.9, for=_hidden")], "10.0.0.1"),
            (&[("forwarded", "for=203.0.113.9, for=\"10.1")], "10.0.0.1"),
            (&[("forwarded", "for=203.0.113.9;for")], "10.0.0.1"),
            // The older fields count where there are both.
            (&[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "203.0.113.9")], "203.0.113.9"),
        ] {
            assert_eq!(seen("10.0.0.1", lines).visitor, ip(visitor), "{lines:?}");
        }
    }

    #[test]
    fn protocol_and_host_are_those_of_the_first_proxy() {
        let of = |pairs: &[(&str, &str)]| {
            let seen = seen("10.0.0.1", pairs);
            let host = seen.host.map(|host| String::from_utf8(host.to_vec()).unwrap());
            (seen.proto, host.unwrap_or_default())
        };
        let address = ("x-forwarded-for", "203.0.113.9, 10.1.1.1");
        let one = [address, ("x-forwarded-proto", "HTTPS"), ("x-forwarded-host", "a.example")];
        assert_eq!(of(&one), ("https", "a.example".into()));
        let each = [
            address,
            ("x-forwarded-proto", "http, https, http"),
            ("x-forwarded-host", "forged.example, a.example, inner:80"),
        ];
        assert_eq!(of(&each), ("https", "a.example".into()));
        let wrong = [address, ("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a b")];
        assert_eq!(of(&wrong), ("http", String::new()));
        let standard =
            "for=203.0.113.9;proto=https;host=\"a.example:8443\", for=10.1.1.1;proto=http";
        assert_eq!(of(&[("forwarded", standard)]), ("https", "a.example:8443".into()));
    }

    #[test]
    fn what_trusted_proxies_have_added_goes_on() {
        let came = [
            ("x-forwarded-for", "6.6.6.6, 2001:db8::9, 10.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-prefix", "/app"),
        ];
        let mut out = fields(&came);
        seen("fd00::1", &came).write(&mut out, &"demo.example".into());
        let standard =
            "for=\"[2001:db8::9]\";host=demo.example;proto=https, for=10.1.1.1, for=\"[fd00::1]\"";
        let expected = [
            ("x-forwarded-prefix", "/app"),
            ("x-forwarded-for", "2001:db8::9, 10.1.1.1, fd00::1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "demo.example"),
            ("x-forwarded-port", "443"),
            ("forwarded", standard),
        ];
        assert_eq!(out, fields(&expected));
        // And what is written here is read by the next one.
        let again = of(
            ip("10.9.9.9"),
            &"10.0.0.0/8,fd00::/8".parse().unwrap(),
            &fields(&[("forwarded", standard)]),
            "http",
        );
        assert_eq!((again.visitor, again.proto), (ip("2001:db8::9"), "https"));
    }

    #[test]
    fn a_long_list_is_read_to_a_bound() {
        let many = vec!["10.1.1.1"; 10_000].join(",");
        assert_eq!(seen("10.0.0.1", &[("x-forwarded-for", &many)]).chain.len(), MAX_HOPS + 1);
    }

    proptest! {
        /// Whatever comes, the last one that is known is either trusted or the visitor, and what is
        /// written holds no byte that could end its line.
        #[test]
        fn any_bytes(
            older in prop::collection::vec(any::<u8>(), 0..60),
            standard in "[a-z=;,\" \\\\0-9.\\[\\]:]{0,60}",
            peer in any::<[u8; 4]>(),
        ) {
            let trusted: Networks = "0.0.0.0/1".parse().unwrap();
            for (name, value) in [(FOR, older.clone()), (FORWARDED, standard.into_bytes())] {
                let mut came = Fields::default();
                came.push(name, value.clone());
                came.push(PROTO, older.clone());
                came.push(HOST, older.clone());
                let seen = of(peer.into(), &trusted, &came, "http");
                prop_assert!(seen.chain.contains(&seen.visitor) && seen.chain.len() <= MAX_HOPS + 1);
                prop_assert!(trusted.contains(peer.into()) || seen.visitor == IpAddr::from(peer));
                seen.write(&mut came, &"a.example".into());
                for (_, value) in came.iter() {
                    prop_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
                }
            }
        }
    }
}
