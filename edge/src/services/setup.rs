//! Accounts, tokens and invitations without an edge: what the command line does on the store
//! directly. Edges that run learn of it within seconds, from the audit log.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use uuid::Uuid;

use super::{
    Ban, Failure, Live, Services, Settings, Signup, Totals,
    accounts::{DEFAULT_PLAN, NewUser},
};
pub use crate::auth::Role;
use crate::{
    auth::{
        agent_tokens::{TokenScopes, TunnelKind},
        passwords::{self, Passwords},
        random_secret,
        secret::Secret,
    },
    events::Events,
    store::{
        Store, StoreError, StoreOptions, StoreUrl, Timestamp,
        audit::Actor,
        users::{UserChange, UserRow},
    },
};

const DAY: u64 = 24 * 3600;
/// Rows that are listed; who has more of them uses the API.
const MAX_LISTED: u32 = 1_000;

/// Accounts, on the store directly.
pub struct Setup {
    services: Services,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(String);

impl From<Failure> for SetupError {
    fn from(failure: Failure) -> Self {
        let said = failure.detail.iter().cloned();
        let faults = failure.faults.iter().map(|fault| fault.detail.clone());
        let said: Vec<_> = said.chain(faults).collect();
        match said.is_empty() {
            true => Self(format!("{} ({})", failure.code.title, failure.code)),
            false => Self(format!("{} ({})", said.join("; "), failure.code)),
        }
    }
}

impl From<StoreError> for SetupError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

/// An account, as the command line shows it.
#[derive(Debug)]
pub struct AccountLine {
    pub id: Uuid,
    pub email: String,
    pub role: &'static str,
    pub plan: String,
    pub is_active: bool,
}

/// A token, as the command line shows it.
#[derive(Debug)]
pub struct TokenLine {
    pub id: Uuid,
    pub hint: String,
    pub name: String,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub is_good: bool,
}

/// An invitation, as the command line shows it.
#[derive(Debug)]
pub struct InviteLine {
    pub id: Uuid,
    pub email: Option<String>,
    pub role: &'static str,
    pub expires_at: Timestamp,
}

impl From<UserRow> for AccountLine {
    fn from(row: UserRow) -> Self {
        let role = row.role.as_str();
        Self { id: row.id, email: row.email, role, plan: row.plan, is_active: row.is_active }
    }
}

impl Setup {
    /// Opens the store.
    ///
    /// # Errors
    /// When it cannot be opened, or is not migrated.
    pub async fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, SetupError> {
        let store = Store::open(url, options).await?;
        store.check_migrated().await?;
        let settings = Settings {
            signup: Signup::Closed,
            issuer: String::new(),
            domain: String::new(),
            quarantine: Duration::ZERO,
            url_of: Box::new(|_: TunnelKind, _, _| String::new()),
        };
        let services = Services::new(
            store,
            Events::default(),
            Arc::new(Nowhere),
            settings,
            // No access token is signed here.
            Secret::random(),
            Passwords::new(),
            Arc::new(|_, _| {}),
        );
        Ok(Self { services })
    }

    /// Makes an account. Without a password it gets a random one, which is returned.
    ///
    /// # Errors
    /// When the address is taken or none, the password won't do, or there is no such plan.
    pub async fn add_user(
        &self,
        email: &str,
        password: Option<String>,
        role: Role,
        plan: Option<String>,
    ) -> Result<(AccountLine, Option<String>), SetupError> {
        if !email.contains('@') || email.len() > 254 || email.chars().any(is_odd) {
            return Err(SetupError(format!("{email:?} is no e-mail address")));
        }
        let made = password.is_none().then(random_secret);
        let new = NewUser {
            email: email.to_owned(),
            password: password.or_else(|| made.clone()),
            role,
            plan: plan.unwrap_or_else(|| DEFAULT_PLAN.to_owned()),
        };
        let user = self.services.add_user(new, &Actor::command_line()).await?;
        Ok((user.into(), made))
    }

    /// Accounts, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users(&self) -> Result<Vec<AccountLine>, SetupError> {
        let rows = self.services.store.list_users(None, None, None, None, MAX_LISTED).await?;
        Ok(rows.into_iter().map(AccountLine::from).collect())
    }

    async fn user(&self, email: &str) -> Result<UserRow, SetupError> {
        let user = self.services.store.user_by_email(email).await?;
        user.ok_or_else(|| SetupError(format!("there is no account {email}")))
    }

    /// Changes role, plan, or whether an account is active.
    ///
    /// # Errors
    /// When there is no such account or plan, or it is the last active administrator.
    pub async fn change_user(
        &self,
        email: &str,
        role: Option<Role>,
        plan: Option<String>,
        is_active: Option<bool>,
    ) -> Result<AccountLine, SetupError> {
        let user = self.user(email).await?;
        let change = UserChange { role, plan, is_active };
        let actor = Actor::command_line();
        Ok(self.services.change_user(user.id, change, None, &actor).await?.into())
    }

    /// Sets a password, or a random one, which is returned. All logins of the account end.
    ///
    /// # Errors
    /// When there is no such account, or the password won't do.
    pub async fn set_password(
        &self,
        email: &str,
        password: Option<String>,
    ) -> Result<Option<String>, SetupError> {
        let user = self.user(email).await?;
        let made = password.is_none().then(random_secret);
        let password = password.or_else(|| made.clone());
        let (change, actor) = (UserChange::default(), Actor::command_line());
        self.services.change_user(user.id, change, password.as_deref(), &actor).await?;
        Ok(made)
    }

    /// Removes an account with all that it has.
    ///
    /// # Errors
    /// When there is no such account, it has names, or it is the last active administrator.
    pub async fn remove_user(&self, email: &str) -> Result<(), SetupError> {
        let user = self.user(email).await?;
        Ok(self.services.remove_user(user.id, &Actor::command_line()).await?)
    }

    /// Makes a token for agents of an account; the token itself, which is nowhere else.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn add_token(
        &self,
        email: &str,
        name: &str,
        days: Option<u32>,
        names: Vec<String>,
    ) -> Result<String, SetupError> {
        let user = self.user(email).await?;
        let end = |days: u32| Timestamp::now().plus(Duration::from_secs(u64::from(days) * DAY));
        let scopes = TokenScopes { names, ..Default::default() };
        let (name, actor) = (name.to_owned(), Actor::command_line());
        let made = self.services.add_token(user.id, name, days.map(end), scopes, &actor).await?;
        Ok(made.1.expose().to_owned())
    }

    /// Tokens of an account, newest first.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn tokens(&self, email: &str) -> Result<Vec<TokenLine>, SetupError> {
        let user = self.user(email).await?;
        let rows = self.services.store.list_tokens(Some(user.id), None, None, MAX_LISTED).await?;
        let now = Timestamp::now();
        let line = |row: crate::store::tokens::TokenRow| TokenLine {
            is_good: row.is_good(now),
            id: row.id,
            hint: row.hint,
            name: row.name,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// Revokes a token: its sessions end.
    ///
    /// # Errors
    /// When there is no such token.
    pub async fn revoke_token(&self, id: Uuid) -> Result<(), SetupError> {
        let row = self.services.store.token(id, None).await?;
        let row = row.ok_or_else(|| SetupError("there is no such token".into()))?;
        Ok(self.services.revoke(&row, &Actor::command_line()).await?)
    }

    /// Invites somebody to make an account; the secret to do so with.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn add_invite(
        &self,
        email: Option<String>,
        role: Role,
        days: u32,
    ) -> Result<String, SetupError> {
        let actor = Actor::command_line();
        Ok(self.services.add_invite(email, role, days, &actor).await?.1)
    }

    /// Invitations that can be used now.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn invites(&self) -> Result<Vec<InviteLine>, SetupError> {
        let now = Some(Timestamp::now());
        let rows = self.services.store.list_invites(now, None, MAX_LISTED).await?;
        let line = |row: crate::store::invites::InviteRow| InviteLine {
            id: row.id,
            email: row.email,
            role: row.role.as_str(),
            expires_at: row.expires_at,
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// Takes an invitation back.
    ///
    /// # Errors
    /// When there is no such invitation.
    pub async fn remove_invite(&self, id: Uuid) -> Result<(), SetupError> {
        Ok(self.services.remove_invite(id, &Actor::command_line()).await?)
    }
}

/// What an e-mail address surely has not.
fn is_odd(character: char) -> bool {
    character.is_control() || character.is_whitespace()
}

/// The rule of passwords, in words.
#[must_use]
pub fn password_rule() -> String {
    let (least, most) = (passwords::MIN_CHARS, passwords::MAX_CHARS);
    format!("{least} to {most} characters, and not the e-mail address")
}

/// No edge runs here.
struct Nowhere;

impl Live for Nowhere {
    fn is_online(&self, _: Uuid) -> BoxFuture<'_, bool> {
        async { false }.boxed()
    }

    fn totals(&self, _: Uuid) -> BoxFuture<'_, Option<Totals>> {
        async { None }.boxed()
    }

    fn cut_session(&self, _: Uuid) {}

    fn bans(&self) -> BoxFuture<'_, Vec<Ban>> {
        async { Vec::new() }.boxed()
    }

    fn lift(&self, _: IpAddr) -> BoxFuture<'_, bool> {
        async { false }.boxed()
    }

    fn state_is_well(&self) -> bool {
        true
    }
}
