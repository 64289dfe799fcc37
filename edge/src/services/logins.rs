//! Logging in and staying so: access and refresh tokens, and what slows down who guesses.

use std::{net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{Caller, Failure, Services, Suspicion, event};
use crate::{
    auth::{
        RefreshToken,
        guesses::{Guesses, LONGEST, network_of, wait_after},
        jwt,
        passwords::{self, Busy, Passwords},
        secret::Secret,
    },
    events::Kind,
    store::{Store, StoreError, Timestamp, audit::Actor, keys::KeyRow, users::UserRow},
};

/// How long a refresh token is good, if it is not used.
const REFRESH_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// After this the list of keys is read again.
const KEYS_FRESH: Duration = Duration::from_secs(30);
/// And no sooner than this, for tokens whose key is not in it.
const KEYS_PAUSE: Duration = Duration::from_secs(1);
/// Times that a login is counted anew since others came between.
const MAX_RACES: usize = 40;
/// Longest name of a client that is kept.
const MAX_USER_AGENT: usize = 255;

/// What logging in needs, of one edge.
pub(crate) struct Auth {
    tokens: jwt::Tokens,
    passwords: Passwords,
    by_address: Guesses<IpAddr>,
    /// Accounts that do not exist: they lock as others do, or one could tell (T24).
    strangers: Guesses<String>,
    keys: Mutex<Option<Keys>>,
    suspicion: Suspicion,
}

#[derive(Clone)]
struct Keys {
    rows: Vec<KeyRow>,
    read: Instant,
}

/// From where somebody logs in.
#[derive(Clone, Debug)]
pub(crate) struct From {
    pub(crate) peer: IpAddr,
    pub(crate) user_agent: String,
}

/// What a login hands out. Both are secrets.
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: RefreshToken,
}

impl Auth {
    pub(crate) fn new(
        secret: Secret,
        issuer: String,
        passwords: Passwords,
        suspicion: Suspicion,
    ) -> Self {
        Self {
            tokens: jwt::Tokens::new(secret, issuer),
            passwords,
            by_address: Guesses::default(),
            strangers: Guesses::default(),
            keys: Mutex::default(),
            suspicion,
        }
    }

    /// The keys that verify now, from memory where that is good enough; first the one that signs.
    async fn keys(&self, store: &Store, wanted: Option<&str>) -> Result<Vec<KeyRow>, StoreError> {
        let known = self.keys.lock().clone();
        if let Some(keys) = known {
            let age = keys.read.elapsed();
            let has = wanted.is_none_or(|kid| keys.rows.iter().any(|row| row.kid == kid));
            if age < KEYS_FRESH && (has || age < KEYS_PAUSE) {
                return Ok(keys.rows);
            }
        }
        let mut rows = store.signing_keys(Timestamp::now()).await?;
        if rows.first().is_none_or(|row| row.retired_at.is_some()) {
            store.transaction(vec![Store::add_key(&new_kid(), Timestamp::now())]).await?;
            rows = store.signing_keys(Timestamp::now()).await?;
        }
        *self.keys.lock() = Some(Keys { rows: rows.clone(), read: Instant::now() });
        Ok(rows)
    }

    /// The next use reads the keys again.
    pub(crate) fn forget_keys(&self) {
        *self.keys.lock() = None;
    }

    pub(super) async fn hash(&self, password: &str) -> Result<String, Failure> {
        self.passwords.hash(password).await.map_err(|Busy| Failure::new(&Code::LOGINS_BUSY))
    }
}

fn new_kid() -> String {
    Uuid::now_v7().simple().to_string()
}

fn locked(wait: Duration) -> Failure {
    Failure::after(&Code::LOGIN_LOCKED, wait)
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.0 / 1_000_000).unwrap_or(0)
}

impl Services {
    /// Who sends this access token. Login and user are looked up each time: what has ended is over at
    /// once.
    pub(crate) async fn authenticate(&self, token: &str, peer: IpAddr) -> Result<Caller, Failure> {
        let refused = || Failure::new(&Code::LOGIN_NEEDED);
        let kid = jwt::Tokens::kid(token).ok_or_else(refused)?;
        let now = Timestamp::now();
        let keys = self.auth.keys(&self.store, Some(&kid)).await?;
        let known = keys
            .iter()
            .any(|row| row.kid == kid && row.retired_at.is_none_or(|retired| retired > now));
        let claims = self.auth.tokens.check(&kid, token).filter(|_| known).ok_or_else(refused)?;
        let login = self.store.login(claims.sid, now).await?;
        let login = login.filter(|login| login.user == claims.sub).ok_or_else(refused)?;
        let (user, email, role) = (login.user, login.email, login.role);
        Ok(Caller { user, email, role, login: claims.sid, peer })
    }

    /// The caller as he is now; `None`: his login is over.
    pub(crate) async fn look_again(&self, caller: &Caller) -> Result<Option<Caller>, Failure> {
        let login = self.store.login(caller.login, Timestamp::now()).await?;
        let login = login.filter(|login| login.user == caller.user);
        Ok(login.map(|login| Caller { email: login.email, role: login.role, ..caller.clone() }))
    }

    /// Begins a login by password.
    pub(crate) async fn log_in(
        &self,
        email: &str,
        password: &str,
        from: &From,
    ) -> Result<(UserRow, Tokens), Failure> {
        let network = network_of(from.peer);
        let suspect = || (self.auth.suspicion)(from.peer, "login");
        if let Err(wait) = self.auth.by_address.begin(&network, Instant::now()) {
            // Who goes on all the same guesses: tries that count are too few to tell.
            suspect();
            return Err(locked(wait));
        }
        let checked = self.check_login(email, password).await;
        match &checked {
            // It stays counted.
            Err(failure) if failure.code == &Code::LOGIN_REFUSED => suspect(),
            _ => self.auth.by_address.forgive(&network),
        }
        let user = checked?;
        let tokens = self.open_login(&user, from).await?;
        Ok((user, tokens))
    }

    async fn check_login(&self, email: &str, password: &str) -> Result<UserRow, Failure> {
        let Some(user) = self.store.user_by_email(email).await? else {
            let key = email.to_lowercase();
            self.auth.strangers.begin(&key, Instant::now()).map_err(locked)?;
            if self.auth.passwords.verify(None, password).await.is_err() {
                self.auth.strangers.forgive(&key);
                return Err(Failure::new(&Code::LOGINS_BUSY));
            }
            return Err(Failure::new(&Code::LOGIN_REFUSED));
        };
        self.check_password(user, password, &Code::LOGIN_REFUSED).await
    }

    /// Whether this is the user's password, each wrong one counted. `refused` says no.
    pub(super) async fn check_password(
        &self,
        user: UserRow,
        password: &str,
        refused: &'static Code,
    ) -> Result<UserRow, Failure> {
        let (user, lock) = self.begin_try(user).await?;
        let right = self.auth.passwords.verify(Some(&user.password_hash), password).await;
        let Ok(right) = right else {
            self.store.forgive_login(user.id).await?;
            return Err(Failure::new(&Code::LOGINS_BUSY));
        };
        if right && user.is_active {
            self.store.transaction(vec![Store::forget_failures(user.id)]).await?;
            return Ok(user);
        }
        if let Some(until) = lock {
            let mut locked = event(Kind::UserLocked, Some(user.id), Some(user.id));
            locked.data = serde_json::json!({ "until": until });
            self.change(vec![], locked, &Actor::edge("itself")).await?;
        }
        Err(Failure::new(refused))
    }

    /// Counts a try as failed before it is known to be: many at once are not all let try. Also until
    /// when the account is locked if it is.
    async fn begin_try(&self, mut user: UserRow) -> Result<(UserRow, Option<Timestamp>), Failure> {
        for _ in 0..MAX_RACES {
            let now = Timestamp::now();
            if let Some(until) = user.locked_until.filter(|until| *until > now) {
                let micros = u64::try_from(until.0 - now.0).unwrap_or(0);
                return Err(locked(Duration::from_micros(micros)));
            }
            let long_ago = user.locked_until.is_some_and(|until| until.plus(LONGEST) <= now);
            let failures = if long_ago { 1 } else { user.failed_logins.saturating_add(1) };
            let lock = wait_after(failures).map(|wait| now.plus(wait));
            if self.store.begin_login(user.id, user.failed_logins, failures, lock).await? {
                return Ok((user, lock));
            }
            // Another try came between. Who is gone meanwhile looks as if never there.
            let again = self.store.user(user.id).await?;
            user = again.ok_or_else(|| Failure::new(&Code::LOGIN_REFUSED))?;
        }
        Err(Failure::new(&Code::LOGINS_BUSY))
    }

    /// A new login of somebody who has shown that he may.
    pub(super) async fn open_login(&self, user: &UserRow, from: &From) -> Result<Tokens, Failure> {
        let (login, now) = (Uuid::now_v7(), Timestamp::now());
        let refresh = RefreshToken::random(login);
        let access = self.access_token(user.id, login, now).await?;
        let agent: String = from.user_agent.chars().take(MAX_USER_AGENT).collect();
        let peer = from.peer.to_string();
        let until = now.plus(REFRESH_LIFETIME);
        let row = Store::add_login(login, user.id, &refresh.hash(), now, until, &peer, &agent);
        let actor = Actor { id: Some(user.id), name: user.email.clone(), peer: Some(from.peer) };
        let opened = event(Kind::UserLoggedIn, Some(user.id), Some(login));
        self.change(vec![row], opened, &actor).await?;
        Ok(Tokens { access, refresh })
    }

    async fn access_token(
        &self,
        user: Uuid,
        login: Uuid,
        now: Timestamp,
    ) -> Result<String, Failure> {
        let keys = self.auth.keys(&self.store, None).await?;
        let kid = keys.first().map(|row| row.kid.as_str());
        let signed = kid.and_then(|kid| self.auth.tokens.sign(kid, user, login, seconds(now)));
        signed.ok_or_else(|| Failure::new(&Code::INTERNAL))
    }

    /// New tokens for a refresh token, which is used up. One that was used before ends its login:
    /// somebody has a copy of it, and nobody knows who is who.
    pub(crate) async fn refresh(&self, token: &str, peer: IpAddr) -> Result<Tokens, Failure> {
        let refused = || Failure::new(&Code::REFRESH_REFUSED);
        let token = RefreshToken::parse(token).ok_or_else(refused)?;
        let row = self.store.login_row(token.login).await?.ok_or_else(refused)?;
        let now = Timestamp::now();
        if row.revoked_at.is_some() || row.expires_at <= now {
            return Err(refused());
        }
        let next = RefreshToken::random(token.login);
        let until = now.plus(REFRESH_LIFETIME);
        let access = self.access_token(row.user, token.login, now).await?;
        let (old, new) = (token.hash(), next.hash());
        if self.store.rotate_login(token.login, &old, &new, now, until).await? {
            return Ok(Tokens { access, refresh: next });
        }
        let reused = event(Kind::LoginReused, Some(row.user), Some(token.login));
        let revoke = vec![Store::revoke_login(token.login, now)];
        match self.change(revoke, reused, &Actor::stranger(peer)).await {
            // It has ended meanwhile.
            Ok(()) | Err(StoreError::Stale) => Err(refused()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the caller's login, or all of them.
    pub(crate) async fn log_out(&self, caller: &Caller, everywhere: bool) -> Result<(), Failure> {
        let now = Timestamp::now();
        let mut statements = vec![Store::revoke_login(caller.login, now)];
        if everywhere {
            statements.push(Store::revoke_logins(caller.user, None, now));
        }
        let mut out = event(Kind::UserLoggedOut, Some(caller.user), Some(caller.login));
        out.data = serde_json::json!({ "everywhere": everywhere });
        match self.change(statements, out, &caller.actor()).await {
            Ok(()) | Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The caller's own new password. All other logins end.
    pub(crate) async fn change_password(
        &self,
        caller: &Caller,
        old: &str,
        new: &str,
    ) -> Result<(), Failure> {
        let user = self.store.user(caller.user).await?.ok_or_else(Failure::no_such_thing)?;
        if let Some(fault) = passwords::fault(new, &user.email) {
            return Err(Failure::at("/new_password", fault));
        }
        let checked = self.check_password(user, old, &Code::ROLE_NEEDED).await;
        let user = checked.map_err(|failure| match failure.code {
            code if code == &Code::ROLE_NEEDED => {
                (self.auth.suspicion)(caller.peer, "password");
                Failure::because(&Code::ROLE_NEEDED, "the old password is wrong")
            }
            _ => failure,
        })?;
        let hash = self.auth.hash(new).await?;
        let now = Timestamp::now();
        let statements = vec![
            Store::set_password(user.id, &hash, now),
            Store::revoke_logins(user.id, Some(caller.login), now),
        ];
        let changed = event(Kind::PasswordChanged, Some(user.id), Some(user.id));
        Ok(self.change(statements, changed, &caller.actor()).await?)
    }

    /// A new key signs from now on; what older ones have signed stays good until it is over.
    pub(crate) async fn rotate_keys(&self, actor: &Actor) -> Result<KeyRow, Failure> {
        let (kid, now) = (new_kid(), Timestamp::now());
        let over = Duration::from_secs(jwt::LIFETIME_SECONDS + jwt::LEEWAY_SECONDS) + KEYS_FRESH;
        let statements = vec![Store::add_key(&kid, now), Store::retire_keys(&kid, now.plus(over))];
        let mut rotated = event(Kind::KeysRotated, None, None);
        rotated.data = serde_json::json!({ "kid": kid });
        self.change(statements, rotated, actor).await?;
        self.auth.forget_keys();
        Ok(KeyRow { kid, created_at: now, retired_at: None })
    }
}
