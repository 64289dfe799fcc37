//! Tokens of agents, and what each may be used for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uniroute_shared::network::Network;

use super::sha256_hex;

const PREFIX: &str = "ur_";
/// Random characters: more than 190 bits.
const RANDOM_LEN: usize = 32;
/// Characters of the checksum; 62^6 is more than 2^32.
const CHECK_LEN: usize = 6;
/// Characters by which its owner knows it: of the random ones, 30 bits.
const HINT_LEN: usize = 8;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A token of an agent: `ur_`, 32 random characters, and 6 that check them, so that one that was
/// mistyped or cut off is known without asking anybody.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AgentToken(String);

impl std::fmt::Debug for AgentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentToken(***)")
    }
}

impl AgentToken {
    pub(crate) fn random() -> Self {
        let random = random_text();
        let check = checksum(&random);
        Self(format!("{PREFIX}{random}{check}"))
    }

    /// `None`: this was never a token of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let whole = rest.len() == RANDOM_LEN + CHECK_LEN;
        if !whole || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (random, check) = rest.split_at(RANDOM_LEN);
        (checksum(random) == check).then(|| Self(text.to_owned()))
    }

    /// How the store knows it.
    pub(crate) fn hash(&self) -> String {
        sha256_hex(self.0.as_bytes())
    }

    /// Its first characters, by which its owner tells it from others.
    pub(crate) fn hint(&self) -> String {
        self.0.chars().take(HINT_LEN).collect()
    }

    /// The token itself, for the one answer that hands it out.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// Each of 62 characters with the same chance: bytes that would make some likelier are left out.
fn random_text() -> String {
    const EVEN: u8 = 248;
    let mut text = String::with_capacity(RANDOM_LEN);
    while text.len() < RANDOM_LEN {
        let mut random = [0; 2 * RANDOM_LEN];
        getrandom::fill(&mut random).expect("the operating system has a source of randomness");
        let even = random.into_iter().filter(|byte| *byte < EVEN);
        let chars = even.map(|byte| char::from(BASE62[usize::from(byte) % 62]));
        text.extend(chars.take(RANDOM_LEN - text.len()));
    }
    text
}

/// CRC-32 of the text, in base 62.
fn checksum(text: &str) -> String {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let mut rest = crc.sum();
    let mut digits = [0; CHECK_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// What a token may be used for. A list that is empty allows everything of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TokenScopes {
    /// Names of tunnels; `*` stands for any characters: `shop`, `staging-*`.
    #[schema(schema_with = names_schema)]
    pub(crate) names: Vec<String>,
    /// Public ports of TCP and UDP tunnels.
    #[schema(max_items = 20)]
    pub(crate) ports: Vec<PortRange>,
    /// Kinds of tunnels.
    #[schema(max_items = 4)]
    pub(crate) kinds: Vec<TunnelKind>,
    /// Networks that agents may connect from: `203.0.113.0/24`, `2001:db8::/32`.
    #[schema(schema_with = cidrs_schema)]
    pub(crate) cidrs: Vec<String>,
}

/// Ports from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortRange {
    #[schema(minimum = 1, maximum = 65535)]
    pub(crate) first: u16,
    /// Not below `first`.
    #[schema(minimum = 1, maximum = 65535)]
    pub(crate) last: u16,
}

/// What a tunnel carries.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TunnelKind {
    #[default]
    Http,
    Tls,
    Tcp,
    Udp,
}

impl TunnelKind {
    pub(crate) const ALL: [Self; 4] = [Self::Http, Self::Tls, Self::Tcp, Self::Udp];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

fn texts(pattern: &str, longest: usize, most: usize) -> utoipa::openapi::schema::Array {
    use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .min_length(Some(1))
        .max_length(Some(longest));
    ArrayBuilder::new().items(text).max_items(Some(most)).build()
}

fn names_schema() -> utoipa::openapi::schema::Array {
    texts("^[a-z0-9*-]{1,63}$", 63, 50)
}

/// An address of IPv4, as a regular expression.
pub(crate) const V4: &str = "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}\
    (25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// One of IPv6, in the ways it is usually written.
pub(crate) const V6: &str = "([0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}|\
    ([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,5})?::|\
    ([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,3})?::[0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})";

fn cidrs_schema() -> utoipa::openapi::schema::Array {
    texts(
        &format!("^({V4}(/(3[0-2]|[12]?[0-9]))?|{V6}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"),
        43,
        50,
    )
}

impl TokenScopes {
    pub(crate) fn allows_name(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|pattern| glob(pattern, name))
    }

    pub(crate) fn allows_port(&self, port: u16) -> bool {
        let has = |range: &PortRange| (range.first..=range.last).contains(&port);
        self.ports.is_empty() || self.ports.iter().any(has)
    }

    pub(crate) fn allows_kind(&self, kind: TunnelKind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether an agent may connect from there. A network that cannot be read has nobody in it.
    pub(crate) fn allows_address(&self, address: IpAddr) -> bool {
        let has = |text: &String| {
            text.parse::<Network>().is_ok_and(|network| network.contains(address.to_canonical()))
        };
        self.cidrs.is_empty() || self.cidrs.iter().any(has)
    }

    /// What the schema cannot say about them: where, and what is wrong.
    pub(crate) fn faults(&self) -> Vec<(String, &'static str)> {
        let ranges = self.ports.iter().enumerate();
        let upside_down = ranges.filter(|(_, range)| range.first > range.last);
        let ranges = upside_down.map(|(n, _)| (format!("/ports/{n}/last"), "is below `first`"));
        let cidrs = self.cidrs.iter().enumerate();
        let unreadable = cidrs.filter(|(_, text)| text.parse::<Network>().is_err());
        let cidrs = unreadable.map(|(n, _)| (format!("/cidrs/{n}"), "is no network"));
        ranges.chain(cidrs).collect()
    }
}

/// Whether `text` fits a pattern in which `*` stands for any characters. Linear in both.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut text) = text.strip_suffix(end) else { return false };
    for part in middle.split('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_never_prints() {
        let token = AgentToken::random();
        let text = token.expose().to_owned();
        assert_eq!(text.len(), 41);
        assert_eq!(AgentToken::parse(&text), Some(token.clone()));
        assert_eq!(format!("{token:?}"), "AgentToken(***)");
        assert!(text.starts_with(&token.hint()) && token.hint().len() == 8);
        assert_ne!(AgentToken::random(), token);
        assert_eq!(token.hash().len(), 64);
    }

    #[test]
    fn it_has_at_least_190_random_bits() {
        assert!(62_f64.log2() * f64::from(u32::try_from(RANDOM_LEN).unwrap()) >= 190.0);
        let seen: std::collections::HashSet<char> =
            (0..100).flat_map(|_| random_text().chars().collect::<Vec<_>>()).collect();
        assert_eq!(seen.len(), 62);
    }

    #[test]
    fn every_single_typo_is_noticed() {
        let text = AgentToken::random().expose().to_owned();
        for at in 0..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(AgentToken::parse(std::str::from_utf8(&typo).unwrap()), None, "{at}");
        }
        for bad in ["", "ur_", &text[..40], &format!("{text}0"), &text.replace("ur_", "UR_")] {
            assert_eq!(AgentToken::parse(bad), None);
        }
        assert_eq!(AgentToken::parse(&format!("ur_{}", "ü".repeat(19))), None);
    }

    #[test]
    fn an_empty_scope_allows_everything() {
        let all = TokenScopes::default();
        assert!(all.allows_name("shop") && all.allows_port(1) && all.allows_kind(TunnelKind::Udp));
        assert!(all.allows_address("2001:db8::1".parse().unwrap()));
        assert_eq!(serde_json::from_str::<TokenScopes>("{}").unwrap(), all);
    }

    #[test]
    fn names_have_wildcards() {
        let scopes = |names: &[&str]| TokenScopes {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        for (patterns, name, allowed) in [
            (&["shop"][..], "shop", true),
            (&["shop"], "shops", false),
            (&["shop"], "myshop", false),
            (&["a", "b"], "b", true),
            (&["staging-*"], "staging-7", true),
            (&["staging-*"], "staging-", true),
            (&["staging-*"], "staging", false),
            (&["*-dev"], "ann-dev", true),
            (&["*-dev"], "ann-dev2", false),
            (&["a*b*c"], "abc", true),
            (&["a*b*c"], "axxbyyc", true),
            (&["a*b*c"], "acb", false),
            (&["a*a"], "a", false),
            (&["*"], "anything", true),
            (&["**"], "anything", true),
        ] {
            assert_eq!(scopes(patterns).allows_name(name), allowed, "{patterns:?} {name}");
        }
    }

    #[test]
    fn ports_kinds_and_addresses_are_lists() {
        let scopes = TokenScopes {
            ports: vec![PortRange { first: 20000, last: 20010 }, PortRange { first: 5, last: 5 }],
            kinds: vec![TunnelKind::Tcp],
            cidrs: vec!["192.0.2.0/24".into(), "2001:db8::/32".into()],
            ..Default::default()
        };
        for (port, allowed) in [(5, true), (6, false), (20000, true), (20010, true), (20011, false)]
        {
            assert_eq!(scopes.allows_port(port), allowed, "{port}");
        }
        assert!(scopes.allows_kind(TunnelKind::Tcp) && !scopes.allows_kind(TunnelKind::Http));
        for (address, allowed) in [
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("::ffff:192.0.2.1", true),
            ("2001:db8::9", true),
            ("2001:db9::9", false),
        ] {
            assert_eq!(scopes.allows_address(address.parse().unwrap()), allowed, "{address}");
        }
        let broken = TokenScopes { cidrs: vec!["nonsense".into()], ..Default::default() };
        assert!(!broken.allows_address("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn faults_say_where() {
        let scopes = TokenScopes {
            ports: vec![PortRange { first: 2, last: 1 }],
            cidrs: vec!["10.0.0.0/8".into(), "10.0.0.0/33".into()],
            ..Default::default()
        };
        let faults = scopes.faults();
        let places: Vec<_> = faults.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["/ports/0/last", "/cidrs/1"]);
    }
}
