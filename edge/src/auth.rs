//! Who somebody is, and what for: passwords, access and refresh tokens of people, tokens of agents.
//!
//! Nothing in here asks the store, except for the list of signing keys; `services` does, and decides.

pub(crate) mod agent_tokens;
pub(crate) mod guesses;
pub(crate) mod jwt;
pub(crate) mod passwords;
pub(crate) mod secret;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// What an account may do; each may do what those before it may.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has tunnels, tokens and domains of its own.
    User,
    /// Sees everybody's, pauses tunnels, cuts sessions, lifts bans.
    Operator,
    /// Makes accounts, invites and plans, too.
    Admin,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::User, Self::Operator, Self::Admin];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// SHA-256 in hexadecimal: how secrets with enough randomness of their own are kept.
pub(crate) fn sha256_hex(text: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// 256 random bits in 43 characters of base64url.
pub(crate) fn random_secret() -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut random = [0; 32];
    getrandom::fill(&mut random).expect("the operating system has a source of randomness");
    URL_SAFE_NO_PAD.encode(random)
}

/// What renews an access token, once: `ur_refresh_LOGIN_SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RefreshToken {
    pub(crate) login: Uuid,
    secret: String,
}

impl std::fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RefreshToken").field("login", &self.login).finish_non_exhaustive()
    }
}

impl RefreshToken {
    const PREFIX: &str = "ur_refresh_";
    const SECRET_LEN: usize = 43;

    pub(crate) fn random(login: Uuid) -> Self {
        Self { login, secret: random_secret() }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (login, secret) = text.strip_prefix(Self::PREFIX)?.split_once('_')?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let whole = login.len() == 32 && secret.len() == Self::SECRET_LEN;
        let login = Uuid::try_parse(login).ok()?;
        (whole && secret.bytes().all(plain)).then(|| Self { login, secret: secret.to_owned() })
    }

    pub(crate) fn hash(&self) -> String {
        sha256_hex(self.secret.as_bytes())
    }

    /// The token itself, for the one answer that hands it out.
    pub(crate) fn expose(&self) -> String {
        format!("{}{}_{}", Self::PREFIX, self.login.simple(), self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_survives_its_text_and_never_prints() {
        let token = RefreshToken::random(Uuid::now_v7());
        let text = token.expose();
        assert_eq!(RefreshToken::parse(&text), Some(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        assert_eq!(token.hash().len(), 64);
        for bad in ["", "ur_refresh_", &text[..text.len() - 1], &format!("{text}x"), &text[1..]] {
            assert_eq!(RefreshToken::parse(bad), None, "{bad}");
        }
        assert_ne!(RefreshToken::random(token.login).hash(), token.hash());
    }

    #[test]
    fn roles_rise() {
        assert!(Role::User < Role::Operator && Role::Operator < Role::Admin);
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        assert_eq!(Role::parse("root"), None);
    }
}
