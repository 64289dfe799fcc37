//! Passwords as argon2id hashes: made by the agent, so that no password travels, and checked by the
//! edge. Both take tens of milliseconds and 19 MiB, on purpose.

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
    password_hash::phc::PasswordHash,
};

/// Longest hash as text.
const MAX_TEXT: usize = 256;
/// Most memory that checking a hash may take, in KiB: an owner chooses it, the edge pays.
const MAX_MEMORY: u32 = 64 * 1024;
/// Most passes over it.
const MAX_PASSES: u32 = 8;
/// Most lanes in it.
const MAX_LANES: u32 = 4;

/// Why a hash can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text is none.
    #[error("this is no argon2id hash ($argon2id$v=19$m=…,t=…,p=…$SALT$HASH)")]
    Unreadable,
    /// Checking it would cost the edge too much.
    #[error("the hash costs too much to check: at most m=65536, t=8 and p=4")]
    TooCostly,
}

/// Whether a user's secret is a hash already.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.starts_with("$argon2")
}

/// Refuses what [`verify`] can't or should not check.
///
/// # Errors
/// [`HashError`].
pub fn check_hash(text: &str) -> Result<(), HashError> {
    parse(text).map(|_| ())
}

fn parse(text: &str) -> Result<(PasswordHash, Params), HashError> {
    if text.len() > MAX_TEXT {
        return Err(HashError::Unreadable);
    }
    let hash = PasswordHash::new(text).map_err(|_| HashError::Unreadable)?;
    let complete = hash.salt.is_some() && hash.hash.is_some();
    let version = hash.version == Some(Version::V0x13.into());
    if !complete || !version || hash.algorithm.as_str() != Algorithm::Argon2id.as_str() {
        return Err(HashError::Unreadable);
    }
    let params = Params::try_from(&hash).map_err(|_| HashError::Unreadable)?;
    let cheap = params.m_cost() <= MAX_MEMORY
        && params.t_cost() <= MAX_PASSES
        && params.p_cost() <= MAX_LANES;
    if cheap { Ok((hash, params)) } else { Err(HashError::TooCostly) }
}

/// The hash of a password, with a salt of its own.
///
/// # Panics
/// When the system has no random source.
#[must_use]
pub fn hash(password: &[u8]) -> String {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).expect("the system has a random source");
    let hash = Argon2::default().hash_password_with_salt(password, &salt);
    hash.expect("the default parameters and a salt of 16 bytes are sound").to_string()
}

/// Whether `password` is the one that `hash` was made of.
#[must_use]
pub fn verify(hash: &str, password: &[u8]) -> bool {
    let Ok((hash, params)) = parse(hash) else { return false };
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.verify_password(password, &hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_fits_its_own_hash_only() {
        let mine = hash("pässword".as_bytes());
        assert!(is_hash(&mine) && check_hash(&mine).is_ok());
        assert!(verify(&mine, "pässword".as_bytes()));
        assert!(!verify(&mine, b"password") && !verify(&mine, b""));
        assert_ne!(mine, hash("pässword".as_bytes()), "each has a salt of its own");
    }

    #[test]
    fn hashes_that_cost_too_much_or_say_nothing_are_refused() {
        let with = |params: &str| {
            let rest = "c29tZXNhbHQxMjM0NTY$mCbIFKx4QnDBBBTJbOa8rRRQLCO+RXq0e1NmbKDzjXs";
            check_hash(&format!("$argon2id$v=19${params}${rest}"))
        };
        assert_eq!(with("m=19456,t=2,p=1"), Ok(()));
        assert_eq!(with("m=65537,t=2,p=1"), Err(HashError::TooCostly));
        assert_eq!(with("m=4294967295,t=2,p=1"), Err(HashError::TooCostly));
        assert_eq!(with("m=19456,t=9,p=1"), Err(HashError::TooCostly));
        assert_eq!(with("m=19456,t=2,p=5"), Err(HashError::TooCostly));
        let none = ["", "plain", "$argon2id$v=19$m=19456,t=2,p=1", "$2b$10$abc", "$argon2id$"];
        for bad in none {
            assert_eq!(check_hash(bad), Err(HashError::Unreadable), "{bad}");
        }
        let other = "$argon2i$v=19$m=19456,t=2,p=1$c29tZXNhbHQxMjM0NTY$\
                     mCbIFKx4QnDBBBTJbOa8rRRQLCO+RXq0e1NmbKDzjXs";
        assert_eq!(check_hash(other), Err(HashError::Unreadable));
    }
}
