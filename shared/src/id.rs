//! Parsed newtypes for every identifier: text and bytes are checked once, at the border, and a
//! value of these types is valid from then on.

use std::borrow::Borrow;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use uuid::{Builder, Uuid};

/// Bytes or text that are not a 128-bit identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an identifier is 16 bytes, or a UUID as text")]
pub struct IdError;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identifier: UUID v7, so later ones sort after earlier ones (to the millisecond
            /// between processes).
            #[expect(clippy::new_without_default, reason = "no two are equal: none is the default")]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 16 bytes that travel on the wire.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the wire form. Any 16 bytes will do, whatever UUID version they claim.
            ///
            /// # Errors
            /// When there are not exactly 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| IdError)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError)
            }
        }
    };
}

uuid_id! {
    /// Names one tunnel for its whole life, across sessions and edges. Shown as a hyphenated UUID.
    TunnelId
}

uuid_id! {
    /// Names one agent connection. Shown as a hyphenated UUID.
    SessionId
}

/// Names one public request or connection; the same value stands in logs, error pages and the
/// agent's output.
///
/// A UUID v7 from a clock, a counter and a number drawn once per process: cheap enough for every
/// request, unique across processes, and **not** a secret. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// A new identifier, without a system call for randomness.
    #[expect(clippy::new_without_default, reason = "no two are equal, so none is the default")]
    #[must_use]
    pub fn new() -> Self {
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self::from_parts(unix_millis(), COUNT.fetch_add(1, Ordering::Relaxed), *PROCESS)
    }

    /// Lays the parts out as UUID v7: time, the whole counter (12 + 20 bits), then 42 bits of the
    /// process.
    fn from_parts(millis: u64, count: u32, process: u64) -> Self {
        let count = u64::from(count);
        let tail = ((count & 0xF_FFFF) << 42) | (process >> 22);
        let [.., high, low] = (count >> 20).to_be_bytes();
        let mut fill = [0; 10];
        fill[..2].copy_from_slice(&[high, low]);
        fill[2..].copy_from_slice(&tail.to_be_bytes());
        Self(Builder::from_unix_timestamp_millis(millis, &fill).into_uuid().into_bytes())
    }

    /// The 16 bytes that travel on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads the wire form; any 16 bytes will do.
    ///
    /// # Errors
    /// When there are not exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.try_into().map(Self).map_err(|_| IdError)
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).simple().fmt(f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::try_parse(text).map(|id| Self(id.into_bytes())).map_err(|_| IdError)
    }
}

/// Names one agent installation: it keeps its value over reconnects, and two agents must not share
/// one.
///
/// 1 to 64 characters of `A-Z a-z 0-9 _ -`. A clone is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(Arc<str>);

impl AgentId {
    const MAX_LEN: usize = 64;

    /// Checks `text` and keeps it as it is.
    ///
    /// # Errors
    /// When the length or a character is not allowed.
    pub fn parse(text: &str) -> Result<Self, AgentIdError> {
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return Err(AgentIdError::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Err(AgentIdError::Character);
        }
        Ok(Self(text.into()))
    }

    /// A new one of 32 hexadecimal digits, 122 bits of them random.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string().into())
    }

    /// The text as it was parsed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        Self::parse(text)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no [`AgentId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AgentIdError {
    /// Empty, or longer than 64 characters.
    #[error("an agent id has 1 to 64 characters")]
    Length,
    /// A character outside the allowed set.
    #[error("an agent id is made of letters, digits, `_` and `-`")]
    Character,
}

/// The name of a tunnel: one lower-case DNS label of 1 to 63 characters, `a-z 0-9 -`.
///
/// It compares and hashes like its `str`, so a map of them is searched with a `&str`. A clone is
/// cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subdomain(Arc<str>);

impl Subdomain {
    const MAX_LEN: usize = 63;

    /// Lower-cases `text` and checks it. Punycode (`xn--…`) and every other label with hyphens
    /// third and fourth is refused: such labels stand for other text, and look-alikes of a name
    /// must not exist.
    ///
    /// # Errors
    /// The rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, SubdomainError> {
        let bytes = text.as_bytes();
        match bytes {
            [] => Err(SubdomainError::Empty),
            _ if bytes.len() > Self::MAX_LEN => Err(SubdomainError::TooLong),
            _ if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') => {
                Err(SubdomainError::Character)
            }
            [b'-', ..] | [.., b'-'] => Err(SubdomainError::OuterHyphen),
            [_, _, b'-', b'-', ..] => Err(SubdomainError::Encoded),
            _ => Ok(Self(text.to_ascii_lowercase().into())),
        }
    }

    /// The label in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Subdomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subdomain {
    type Err = SubdomainError;

    fn from_str(text: &str) -> Result<Self, SubdomainError> {
        Self::parse(text)
    }
}

impl fmt::Display for Subdomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no [`Subdomain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SubdomainError {
    /// No character at all.
    #[error("a name cannot be empty")]
    Empty,
    /// More than 63 characters.
    #[error("a name has at most 63 characters")]
    TooLong,
    /// A character outside the allowed set; a dot is one, for a name is a single label.
    #[error("a name is made of the letters a to z, digits and hyphens")]
    Character,
    /// A hyphen at the start or at the end.
    #[error("a name neither starts nor ends with a hyphen")]
    OuterHyphen,
    /// Hyphens as third and fourth character, as in `xn--…`.
    #[error("a name cannot have hyphens as its third and fourth character")]
    Encoded,
}

/// A secret that an agent shows to an edge: 16 to 512 visible ASCII characters.
///
/// `Debug` and `Display` print `***`; two tokens are compared in a time that does not depend on
/// what they hold.
#[derive(Clone)]
pub struct Token(Box<str>);

impl Token {
    const MIN_LEN: usize = 16;
    const MAX_LEN: usize = 512;

    /// Checks `text` and keeps it as it is.
    ///
    /// # Errors
    /// When the length or a character is not allowed; the error never holds the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&text.len()) {
            return Err(TokenError::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::Character);
        }
        Ok(Self(text.into()))
    }

    /// The first one of a file that may hold several, and comments.
    ///
    /// # Errors
    /// As [`Token::parse`], also when there is none.
    pub fn first(text: &str) -> Result<Self, TokenError> {
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        Self::parse(line.unwrap_or_default())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Filled up to one length, so that a comparison does not tell the length; no token holds a
    /// zero byte.
    fn padded(&self) -> [u8; Self::MAX_LEN] {
        let mut buffer = [0; Self::MAX_LEN];
        buffer[..self.0.len()].copy_from_slice(self.0.as_bytes());
        buffer
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.padded().ct_eq(&other.padded()).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

/// Why a text is no [`Token`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Shorter than 16 or longer than 512 bytes.
    #[error("a token has 16 to 512 characters")]
    Length,
    /// A space, a control character or anything outside ASCII.
    #[error("a token is made of visible ASCII characters, without spaces")]
    Character,
}

/// The tokens that a lone edge accepts, read from a file.
#[derive(Debug, Clone)]
pub struct TokenSet(Vec<Token>);

impl TokenSet {
    /// Reads one token a line. Blank lines and lines that start with `#` are skipped, as is space
    /// around a token.
    ///
    /// # Errors
    /// The first bad line by its number, never by its content; or that there is no token at all.
    pub fn parse(text: &str) -> Result<Self, TokenSetError> {
        let tokens = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(line, text)| {
                Token::parse(text).map_err(|source| TokenSetError::Line { line, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if tokens.is_empty() { Err(TokenSetError::Empty) } else { Ok(Self(tokens)) }
    }

    /// Whether `candidate` is one of the tokens. For anything of a token's shape, every entry is
    /// compared in full, so the time tells neither which entry matched nor how much of one.
    #[must_use]
    pub fn contains(&self, candidate: &str) -> bool {
        let Ok(candidate) = Token::parse(candidate) else { return false };
        let candidate = candidate.padded();
        let found = self
            .0
            .iter()
            .fold(Choice::from(0), |found, token| found | token.padded().ct_eq(&candidate));
        found.into()
    }

    /// A key that is the same wherever these tokens are, in this order, and says nothing of them.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = Sha256::new_with_prefix(purpose);
        let mix = |key: Sha256, token: &Token| key.chain_update([0]).chain_update(token.expose());
        self.0.iter().fold(key, mix).finalize().into()
    }
}

/// Why a text is no [`TokenSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenSetError {
    /// A line that is no token.
    #[error("line {line}: {source}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        source: TokenError,
    },
    /// Only blank lines and comments.
    #[error("there is no token in it; write one a line")]
    Empty,
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn uuid_ids_survive_text_and_bytes() {
        let id = TunnelId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(TunnelId::from_slice(id.as_bytes()), Ok(id));
        assert_eq!(TunnelId::from_slice(&[0; 15]), Err(IdError));
        assert_eq!("nonsense".parse::<SessionId>(), Err(IdError));
        assert_ne!(SessionId::new(), SessionId::new());
    }

    #[test]
    fn request_ids_are_uuid_v7_in_32_digits() {
        let id = RequestId::new();
        let text = id.to_string();
        assert_eq!(text.len(), 32);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(RequestId::from_slice(id.as_bytes()), Ok(id));
        let uuid = Uuid::from_bytes(*id.as_bytes());
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
    }

    #[test]
    fn request_ids_differ_and_ascend() {
        let ids: Vec<_> = (0..100_000).map(|_| RequestId::new()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        let at = |count| RequestId::from_parts(1, count, u64::MAX);
        assert!(at(0xF_FFFF) < at(0x10_0000) && at(0x10_0000) < at(u32::MAX));
        assert!(at(u32::MAX) < RequestId::from_parts(2, 0, 0));
        assert_ne!(at(7), RequestId::from_parts(1, 7, 0));
    }

    #[test]
    fn agent_ids_keep_to_their_alphabet() {
        assert_eq!(
            AgentId::parse("Office_Mac-2").map(|id| id.to_string()),
            Ok("Office_Mac-2".into())
        );
        assert_eq!(AgentId::parse(""), Err(AgentIdError::Length));
        assert!(AgentId::parse(&"a".repeat(64)).is_ok());
        assert_eq!(AgentId::parse(&"a".repeat(65)), Err(AgentIdError::Length));
        assert_eq!(AgentId::parse("a b"), Err(AgentIdError::Character));
        let random = AgentId::random();
        assert_eq!(AgentId::parse(random.as_str()), Ok(random));
    }

    #[test]
    fn subdomains_are_one_label_in_lower_case() {
        assert_eq!(Subdomain::parse("My-App2").unwrap().as_str(), "my-app2");
        assert!(Subdomain::parse(&"a".repeat(63)).is_ok());
        for (text, error) in [
            ("", SubdomainError::Empty),
            (&*"a".repeat(64), SubdomainError::TooLong),
            ("a.b", SubdomainError::Character),
            ("a_b", SubdomainError::Character),
            ("a\r\nb", SubdomainError::Character),
            ("bücher", SubdomainError::Character),
            ("-a", SubdomainError::OuterHyphen),
            ("a-", SubdomainError::OuterHyphen),
            ("-", SubdomainError::OuterHyphen),
            ("xn--bcher-kva", SubdomainError::Encoded),
            ("XN--bcher-kva", SubdomainError::Encoded),
            ("ab--cd", SubdomainError::Encoded),
        ] {
            assert_eq!(Subdomain::parse(text), Err(error), "{text}");
        }
        assert!(Subdomain::parse("a--b").is_ok());
    }

    #[test]
    fn a_map_of_subdomains_is_searched_by_text() {
        let map = HashMap::from([(Subdomain::parse("shop").unwrap(), 1)]);
        assert_eq!(map.get("shop"), Some(&1));
    }

    proptest! {
        #[test]
        fn a_parsed_subdomain_parses_to_itself(text in "[ -~]{0,70}") {
            if let Ok(name) = Subdomain::parse(&text) {
                prop_assert_eq!(Subdomain::parse(name.as_str()), Ok(name));
            }
        }
    }

    const SECRET: &str = "a-very-secret-token";

    #[test]
    fn a_token_never_prints() {
        let token = Token::parse(SECRET).unwrap();
        assert_eq!(format!("{token} {token:?}"), "*** ***");
        assert_eq!(format!("{:?}", TokenSet(vec![token])), "TokenSet([***])");
    }

    #[test]
    fn tokens_have_bounds_and_compare_by_content() {
        assert_eq!(Token::parse("short"), Err(TokenError::Length));
        assert_eq!(Token::parse(&"x".repeat(513)), Err(TokenError::Length));
        assert_eq!(Token::parse("sixteen chars ok?"), Err(TokenError::Character));
        assert_eq!(Token::parse("sixteen-chärs-ok"), Err(TokenError::Character));
        assert_eq!(Token::parse(SECRET).unwrap().expose(), SECRET);
        assert_eq!(Token::parse(SECRET), Token::parse(SECRET));
        assert_ne!(Token::parse(&"x".repeat(16)), Token::parse(&"x".repeat(17)));
    }

    #[test]
    fn a_token_file_has_one_a_line() {
        let set =
            TokenSet::parse("# agents\r\n\n  first-secret-token \r\nsecond-secret-token").unwrap();
        assert!(set.contains("first-secret-token") && set.contains("second-secret-token"));
        assert!(!set.contains("first-secret-toke") && !set.contains("first-secret-token\0"));
        assert!(!set.contains("# agents") && !set.contains(""));
    }

    #[test]
    fn a_bad_token_file_names_the_line_and_no_content() {
        let error = TokenSet::parse("# x\nfirst-secret-token\nhunter2\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3: a token has 16 to 512 characters");
        assert_eq!(TokenSet::parse("\n# only a comment\n").unwrap_err(), TokenSetError::Empty);
    }
}
