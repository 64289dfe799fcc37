//! Whether visitors' passwords are right, without paying for argon2 at every request.
//!
//! A password that was right is remembered for a while, as an HMAC under a key of this process.
//! Others are checked on threads apart, few at a time. Whoever guesses gets a few tries a minute.
//! Every store here has a bound: one remembered password for each user, [`MAX_ADDRESSES`] addresses,
//! [`MAX_WAITING`] checks.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::hmac;
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::{sync::Semaphore, time::Instant};
use uniroute_shared::{
    code::Code,
    policy::{
        basic::{Basic, Credentials},
        password,
    },
};

/// How long a password that was right is right.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Checks at a time; each takes a core and up to 64 MiB.
const MAX_CHECKS: usize = 2;
/// Checks that are under way or wait, of all tunnels.
const MAX_WAITING: usize = 64;
/// The same of one tunnel, so that guesses at one do not shut the others.
const MAX_WAITING_OF_ONE: usize = 16;
/// Passwords that an address may try in [`TRIES_WINDOW`] without one being right.
const TRIES: u32 = 10;
/// See [`TRIES`].
pub(crate) const TRIES_WINDOW: Duration = Duration::from_secs(60);
/// Addresses whose tries are counted.
const MAX_ADDRESSES: usize = 8_192;

/// What the checks of all tunnels share.
pub(super) struct Checks {
    key: hmac::Key,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    tries: Mutex<Tries>,
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checks").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Default for Checks {
    fn default() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the system has a random source");
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            running: Arc::new(Semaphore::new(MAX_CHECKS)),
            waiting: Semaphore::new(MAX_WAITING),
            tries: Mutex::default(),
        }
    }
}

impl Checks {
    /// What stands for `password` in memory. A user's hash is in it, with its salt.
    fn mark(&self, hash: &str, password: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(hash.len() as u64).to_be_bytes());
        context.update(hash.as_bytes());
        context.update(password);
        context.sign()
    }
}

/// Who may come in through one tunnel.
#[derive(Debug)]
pub(super) struct Passwords {
    users: Vec<User>,
    waiting: Semaphore,
}

#[derive(Debug)]
struct User {
    name: String,
    hash: String,
    right: Mutex<Option<Right>>,
}

/// A password that was right.
#[derive(Debug)]
struct Right {
    mark: hmac::Tag,
    until: Instant,
}

impl User {
    fn remembers(&self, mark: &hmac::Tag) -> bool {
        let right = self.right.lock();
        let fresh = right.as_ref().filter(|right| Instant::now() < right.until);
        fresh.is_some_and(|right| right.mark.as_ref().ct_eq(mark.as_ref()).into())
    }

    fn remember(&self, mark: hmac::Tag) {
        *self.right.lock() = Some(Right { mark, until: Instant::now() + REMEMBERED });
    }
}

impl Passwords {
    pub(super) fn new(basic: &Basic) -> Self {
        let users = basic.users().iter().map(|user| User {
            name: user.name.clone(),
            hash: user.hash.clone(),
            right: Mutex::default(),
        });
        Self { users: users.collect(), waiting: Semaphore::new(MAX_WAITING_OF_ONE) }
    }

    pub(super) async fn check(
        &self,
        checks: &Checks,
        given: Credentials,
        visitor: IpAddr,
    ) -> Result<(), &'static Code> {
        let named = self.users.iter().find(|user| user.name.as_bytes() == given.name);
        // A name that nobody has costs as much as a wrong password (T24).
        let user = named.or(self.users.first()).ok_or(&Code::PASSWORD_NEEDED)?;
        let mark = checks.mark(&user.hash, &given.password);
        if named.is_some_and(|user| user.remembers(&mark)) {
            return Ok(());
        }
        // Counted before it is known to be wrong, or many at once would all be let try.
        if !checks.tries.lock().begin(visitor, Instant::now()) {
            return Err(&Code::TOO_MANY_FAILURES);
        }
        let busy = |_| {
            checks.tries.lock().forget(visitor);
            &Code::PASSWORD_CHECKS_BUSY
        };
        let _mine = self.waiting.try_acquire().map_err(busy)?;
        let _place = checks.waiting.try_acquire().map_err(busy)?;
        if self.is_right(checks, user, named.is_some(), mark, given.password).await {
            checks.tries.lock().forget(visitor);
            return Ok(());
        }
        Err(&Code::PASSWORD_NEEDED)
    }

    async fn is_right(
        &self,
        checks: &Checks,
        user: &User,
        known: bool,
        mark: hmac::Tag,
        password: Vec<u8>,
    ) -> bool {
        let Ok(turn) = Arc::clone(&checks.running).acquire_owned().await else { return false };
        // A browser asks for much at once: the first of its requests has answered for the others.
        if known && user.remembers(&mark) {
            return true;
        }
        let hash = user.hash.clone();
        let checking = tokio::task::spawn_blocking(move || {
            // Kept until it is done, whether or not the visitor still waits.
            let _turn = turn;
            password::verify(&hash, &password)
        });
        let right = checking.await.unwrap_or(false) && known;
        if right {
            user.remember(mark);
        }
        right
    }
}

/// Tries of each address. When there are more addresses than may be, all are forgotten: what then
/// slows a guesser down is [`MAX_CHECKS`].
#[derive(Debug, Default)]
struct Tries {
    of: HashMap<IpAddr, (u32, Instant)>,
}

impl Tries {
    /// Counts a try; whether it may be made.
    fn begin(&mut self, visitor: IpAddr, now: Instant) -> bool {
        if self.of.len() >= MAX_ADDRESSES {
            self.of.retain(|_, (_, since)| now - *since < TRIES_WINDOW);
        }
        if self.of.len() >= MAX_ADDRESSES {
            self.of.clear();
        }
        let (count, since) = self.of.entry(neighbourhood(visitor)).or_insert((0, now));
        if now - *since >= TRIES_WINDOW {
            (*count, *since) = (0, now);
        }
        if *count >= TRIES {
            return false;
        }
        *count += 1;
        true
    }

    /// The last try was no wrong password.
    fn forget(&mut self, visitor: IpAddr) {
        if let Some((count, _)) = self.of.get_mut(&neighbourhood(visitor)) {
            *count = count.saturating_sub(1);
        }
    }
}

/// What one visitor can have many of counts as one address.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use uniroute_proto::v1;
    use uniroute_shared::policy::Policy as Rules;

    use super::*;

    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

    fn passwords() -> Passwords {
        let user = |name: &str, password: &str| v1::BasicUser {
            name: name.into(),
            hash: password::hash(password.as_bytes()),
        };
        let users = vec![user("ann", "secret"), user("bob", "other")];
        let policy = v1::HttpPolicy {
            basic_auth: Some(v1::BasicAuth { users, forward: false }),
            ..Default::default()
        };
        Passwords::new(Rules::compile(&policy).unwrap().basic().unwrap())
    }

    fn given(name: &str, password: &str) -> Credentials {
        Credentials { name: name.into(), password: password.into() }
    }

    async fn check(
        passwords: &Passwords,
        checks: &Checks,
        name: &str,
        password: &str,
    ) -> Result<(), u16> {
        let checked = passwords.check(checks, given(name, password), ME).await;
        checked.map_err(|code| code.number)
    }

    #[tokio::test]
    async fn only_the_users_own_password_is_right() {
        let (passwords, checks) = (passwords(), Checks::default());
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Ok(()));
        assert_eq!(check(&passwords, &checks, "ann", "other").await, Err(4011));
        assert_eq!(check(&passwords, &checks, "bob", "secret").await, Err(4011));
        assert_eq!(check(&passwords, &checks, "eve", "secret").await, Err(4011));
        assert_eq!(check(&passwords, &checks, "bob", "other").await, Ok(()));
    }

    #[tokio::test]
    async fn guesses_are_limited_and_who_is_known_still_comes_in() {
        let (passwords, checks) = (passwords(), Checks::default());
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Ok(()));
        for _ in 0..TRIES {
            assert_eq!(check(&passwords, &checks, "eve", "guess").await, Err(4011));
        }
        assert_eq!(check(&passwords, &checks, "eve", "guess").await, Err(4012));
        assert_eq!(check(&passwords, &checks, "bob", "other").await, Err(4012), "not known yet");
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Ok(()), "remembered");
    }

    #[tokio::test]
    async fn what_was_right_is_remembered_for_a_while() {
        let (passwords, checks) = (passwords(), Checks::default());
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Ok(()));
        // Nothing may be checked any more, so only memory can answer.
        checks.running.close();
        for _ in 0..2 * TRIES {
            assert_eq!(check(&passwords, &checks, "ann", "secret").await, Ok(()));
        }
        passwords.users[0].right.lock().as_mut().unwrap().until = Instant::now();
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Err(4011));
    }

    #[tokio::test]
    async fn more_checks_than_may_wait_are_turned_away() {
        let (passwords, checks) = (passwords(), Checks::default());
        let _all = checks.running.acquire_many(2).await.unwrap();
        let waiting: Vec<_> = (0..MAX_WAITING_OF_ONE)
            .map(|n| {
                let visitor = IpAddr::from([198, 51, 100, u8::try_from(n).unwrap()]);
                Box::pin(passwords.check(&checks, given("ann", "secret"), visitor))
            })
            .collect();
        let mut waiting = futures_util::future::join_all(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(check(&passwords, &checks, "ann", "secret").await, Err(5021));
        drop(waiting);
        assert_eq!(checks.waiting.available_permits(), MAX_WAITING);
    }

    #[test]
    fn tries_are_counted_for_a_minute_and_for_few_addresses() {
        let (mut tries, now) = (Tries::default(), Instant::now());
        for _ in 0..TRIES {
            assert!(tries.begin(ME, now));
        }
        assert!(!tries.begin(ME, now));
        tries.forget(ME);
        assert!(tries.begin(ME, now) && !tries.begin(ME, now));
        assert!(tries.begin(ME, now + TRIES_WINDOW));
        let (one, other) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:2".parse().unwrap());
        for _ in 0..TRIES {
            assert!(tries.begin(one, now));
        }
        assert!(!tries.begin(other, now), "the same network");
        for n in 0..20_000_u32 {
            tries.begin(IpAddr::V4(n.into()), now);
            assert!(tries.of.len() <= MAX_ADDRESSES);
        }
    }
}
