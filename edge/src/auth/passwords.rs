//! Passwords of accounts: argon2id, on threads apart, few at a time.

use std::sync::Arc;

use argon2::{
    Argon2, Params, PasswordHasher as _, PasswordVerifier as _, password_hash::phc::PasswordHash,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

/// Characters that a password has at least.
pub(crate) const MIN_CHARS: usize = 10;
/// And at most: argon2 reads all of them.
pub(crate) const MAX_CHARS: usize = 128;
/// Checks at a time; each takes a core and 19 MiB.
const MAX_CHECKS: usize = 2;
/// Checks that wait for their turn.
const MAX_WAITING: usize = 32;
/// Stands for the hash of an account that nobody can log in to by password.
pub(crate) const NONE: &str = "!";

/// As many checks wait as may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Busy;

/// Makes and checks hashes.
#[derive(Debug)]
pub(crate) struct Passwords {
    params: Params,
    /// What the password of somebody who does not exist is compared with.
    nobody: String,
    running: Arc<Semaphore>,
    /// Running and waiting ones together.
    places: Arc<Semaphore>,
}

impl Passwords {
    /// As OWASP has it: 19 MiB, two passes, one lane.
    pub(crate) fn new() -> Self {
        Self::with(Params::DEFAULT)
    }

    /// Costs next to nothing, for tests of other things.
    #[cfg(test)]
    pub(crate) fn cheap() -> Self {
        Self::with(Params::new(8, 1, 1, None).unwrap())
    }

    fn with(params: Params) -> Self {
        let nobody = hash(&params, "nobody has this password");
        Self {
            nobody: nobody.unwrap_or_default(),
            params,
            running: Arc::new(Semaphore::new(MAX_CHECKS)),
            places: Arc::new(Semaphore::new(MAX_CHECKS + MAX_WAITING)),
        }
    }

    /// The hash of a password, with a salt of its own.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, Busy> {
        let turn = self.turn().await?;
        let (params, password) = (self.params.clone(), password.to_owned());
        let hashed = spawn_blocking(move || {
            let _turn = turn;
            hash(&params, &password)
        });
        hashed.await.ok().flatten().ok_or(Busy)
    }

    /// Whether this is the password. `None`, and a hash that is none, cost as much as a wrong one:
    /// the time does not tell whether there is such an account (T24).
    pub(crate) async fn verify(&self, hash: Option<&str>, password: &str) -> Result<bool, Busy> {
        let turn = self.turn().await?;
        let known = hash.filter(|hash| *hash != NONE);
        let hash = known.unwrap_or(&self.nobody).to_owned();
        let password = password.to_owned();
        let checked = spawn_blocking(move || {
            let _turn = turn;
            let hash = PasswordHash::new(&hash).ok()?;
            Argon2::default().verify_password(password.as_bytes(), &hash).ok()
        });
        Ok(checked.await.ok().flatten().is_some() && known.is_some())
    }

    async fn turn(&self) -> Result<[OwnedSemaphorePermit; 2], Busy> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Busy)?;
        let turn = self.running.clone().acquire_owned().await.map_err(|_| Busy)?;
        Ok([place, turn])
    }
}

fn hash(params: &Params, password: &str) -> Option<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).ok()?;
    let argon = Argon2::from(params.clone());
    let hash = argon.hash_password_with_salt(password.as_bytes(), &salt).ok()?;
    Some(hash.to_string())
}

/// Why a password won't do, if so.
pub(crate) fn fault(password: &str, email: &str) -> Option<&'static str> {
    let chars = password.chars().count();
    let (lower, email) = (password.to_lowercase(), email.to_lowercase());
    let name = email.split('@').next().unwrap_or_default();
    if !(MIN_CHARS..=MAX_CHARS).contains(&chars) {
        Some("a password has 10 to 128 characters")
    } else if lower == email || lower == name {
        Some("the password is the e-mail address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_is_right() {
        let passwords = Passwords::cheap();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$"), "{hash}");
        assert_eq!(passwords.verify(Some(&hash), "correct horse").await, Ok(true));
        assert_eq!(passwords.verify(Some(&hash), "correct horsf").await, Ok(false));
        assert_eq!(passwords.verify(None, "nobody has this password").await, Ok(false));
        assert_eq!(passwords.verify(Some(NONE), "nobody has this password").await, Ok(false));
        assert_eq!(passwords.verify(Some("garbage"), "x").await, Ok(false));
        assert_ne!(hash, passwords.hash("correct horse").await.unwrap(), "a salt of its own");
    }

    #[test]
    fn the_cost_is_the_one_that_is_promised() {
        let hash = hash(&Params::DEFAULT, "x").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    }

    #[tokio::test]
    async fn t24_nobody_costs_as_much_as_a_wrong_password() {
        let passwords = Passwords::with(Params::new(4096, 2, 1, None).unwrap());
        let hash = passwords.hash("correct horse").await.unwrap();
        let mut spent = [std::time::Duration::MAX; 2];
        // The best of several: what is left is the work, not who else was at it.
        for _ in 0..9 {
            for (spent, hash) in spent.iter_mut().zip([Some(&*hash), None]) {
                let began = std::time::Instant::now();
                passwords.verify(hash, "wrong password").await.unwrap();
                *spent = began.elapsed().min(*spent);
            }
        }
        // Wide, for a busy machine: without the work it would be less than a hundredth.
        let [known, unknown] = spent.map(|spent| spent.as_secs_f64());
        assert!((0.4..2.5).contains(&(unknown / known)), "{known} {unknown}");
        let params = |hash: &str| Params::try_from(&PasswordHash::new(hash).unwrap()).unwrap();
        assert_eq!(params(&passwords.nobody), params(&hash));
    }

    #[tokio::test]
    async fn more_checks_than_may_wait_are_turned_away() {
        let passwords = Passwords::cheap();
        let _all = passwords.running.acquire_many(2).await.unwrap();
        let _running: Vec<_> =
            (0..2).map(|_| passwords.places.clone().try_acquire_owned().unwrap()).collect();
        let waiting = (0..MAX_WAITING).map(|_| Box::pin(passwords.verify(None, "x")));
        let mut waiting = futures_util::future::join_all(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(passwords.verify(None, "x").await, Err(Busy));
        drop(waiting);
        assert_eq!(passwords.places.available_permits(), MAX_WAITING);
    }

    #[test]
    fn passwords_have_rules() {
        assert_eq!(fault("long enough", "ann@example.com"), None);
        assert!(fault("too short", "ann@example.com").is_some());
        assert!(fault(&"x".repeat(129), "ann@example.com").is_some());
        assert_eq!(fault(&"ü".repeat(128), "ann@example.com"), None, "characters, not bytes");
        assert!(fault("Ann@Example.com", "ann@example.com").is_some());
        assert!(fault("annabella1", "Annabella1@example.com").is_some());
    }
}
