//! Tokens of agents.

use std::time::Duration;

use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{Caller, Failure, Fault, Services, event};
use crate::{
    auth::agent_tokens::{AgentToken, TokenScopes},
    events::{Event, Kind},
    store::{Store, StoreError, Timestamp, audit::Actor, tokens::TokenRow},
};

/// Tokens that are not revoked, of one user.
const MAX_TOKENS: u64 = 200;
/// How long a rotated token goes on, if nobody says.
pub(crate) const OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// What may be changed of a token; `None`: as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenChange {
    pub(crate) name: Option<String>,
    /// `Some(None)`: it has no end.
    pub(crate) expires_at: Option<Option<Timestamp>>,
    pub(crate) scopes: Option<TokenScopes>,
}

impl Services {
    /// Makes a token for `user`; the second one is the secret, which is nowhere else.
    pub(crate) async fn add_token(
        &self,
        user: Uuid,
        name: String,
        expires_at: Option<Timestamp>,
        scopes: TokenScopes,
        actor: &Actor,
    ) -> Result<(TokenRow, AgentToken), Failure> {
        check(expires_at, &scopes)?;
        if self.store.count_tokens(user).await? >= MAX_TOKENS {
            return Err(Failure::because(&Code::PLAN_LIMIT, "an account has at most 200 tokens"));
        }
        let (row, secret) = new_token(user, name, expires_at, scopes, None);
        let statements = vec![Store::add_token(&row, &secret.hash())];
        self.change(statements, told(Kind::TokenCreated, &row), actor).await?;
        Ok((row, secret))
    }

    /// A token that the caller sees.
    pub(crate) async fn token(&self, caller: &Caller, id: Uuid) -> Result<TokenRow, Failure> {
        self.store.token(id, caller.sees()).await?.ok_or_else(Failure::no_such_thing)
    }

    /// One that the caller may change, and that is not revoked.
    async fn own_token(&self, caller: &Caller, id: Uuid) -> Result<TokenRow, Failure> {
        let row = self.token(caller, id).await?;
        caller.may_change(row.user)?;
        if row.is_active { Ok(row) } else { Err(revoked()) }
    }

    pub(crate) async fn change_token(
        &self,
        caller: &Caller,
        id: Uuid,
        change: TokenChange,
    ) -> Result<TokenRow, Failure> {
        let mut row = self.own_token(caller, id).await?;
        check(change.expires_at.flatten(), change.scopes.as_ref().unwrap_or(&row.scopes))?;
        row.name = change.name.unwrap_or(row.name);
        row.expires_at = change.expires_at.unwrap_or(row.expires_at);
        row.scopes = change.scopes.unwrap_or(row.scopes);
        let statements = vec![Store::change_token(&row)];
        let updated = told(Kind::TokenUpdated, &row);
        let changed = self.change(statements, updated, &caller.actor()).await;
        changed.map_err(revoked_meanwhile)?;
        Ok(row)
    }

    /// Revokes a token: its sessions end on all edges. Doing so again is fine.
    pub(crate) async fn revoke_token(&self, caller: &Caller, id: Uuid) -> Result<(), Failure> {
        let row = self.token(caller, id).await?;
        caller.may_change(row.user)?;
        self.revoke(&row, &caller.actor()).await
    }

    pub(crate) async fn revoke(&self, row: &TokenRow, actor: &Actor) -> Result<(), Failure> {
        let statements = vec![Store::revoke_token(row.id)];
        match self.change(statements, told(Kind::TokenRevoked, row), actor).await {
            Ok(()) | Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A new token in the place of an old one, which goes on for a while.
    pub(crate) async fn rotate_token(
        &self,
        caller: &Caller,
        id: Uuid,
        overlap: Duration,
    ) -> Result<(TokenRow, AgentToken), Failure> {
        let old = self.own_token(caller, id).await?;
        let now = Timestamp::now();
        if !old.is_good(now) {
            return Err(Failure::because(&Code::ALREADY_THERE, "the token is over"));
        }
        let (name, scopes) = (old.name.clone(), old.scopes.clone());
        let (row, secret) = new_token(old.user, name, old.expires_at, scopes, Some(old.id));
        let until = now.plus(overlap);
        let statements =
            vec![Store::end_token(old.id, until), Store::add_token(&row, &secret.hash())];
        let mut rotated = told(Kind::TokenRotated, &old);
        rotated.data["by"] = serde_json::json!(row.id);
        rotated.data["until"] = serde_json::json!(until);
        self.change(statements, rotated, &caller.actor()).await.map_err(revoked_meanwhile)?;
        Ok((row, secret))
    }
}

fn new_token(
    user: Uuid,
    name: String,
    expires_at: Option<Timestamp>,
    scopes: TokenScopes,
    replaces: Option<Uuid>,
) -> (TokenRow, AgentToken) {
    let secret = AgentToken::random();
    let row = TokenRow {
        id: Uuid::now_v7(),
        user,
        hint: secret.hint(),
        name,
        expires_at,
        created_at: Timestamp::now(),
        last_used_at: None,
        is_active: true,
        scopes,
        replaces,
    };
    (row, secret)
}

fn told(kind: Kind, row: &TokenRow) -> Event {
    let mut event = event(kind, Some(row.user), Some(row.id));
    event.data = serde_json::json!({ "name": row.name, "hint": row.hint });
    event
}

fn check(expires_at: Option<Timestamp>, scopes: &TokenScopes) -> Result<(), Failure> {
    let scopes = scopes.faults().into_iter();
    let mut faults: Vec<_> =
        scopes.map(|(place, what)| Fault::new(format!("/scopes{place}"), what)).collect();
    if expires_at.is_some_and(|end| end <= Timestamp::now()) {
        faults.push(Fault::new("/expires_at", "is over already"));
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::faults(&Code::NOT_POSSIBLE, faults)) }
}

fn revoked() -> Failure {
    Failure::because(&Code::ALREADY_THERE, "the token is revoked")
}

fn revoked_meanwhile(error: StoreError) -> Failure {
    match error {
        StoreError::Stale => revoked(),
        error => error.into(),
    }
}
