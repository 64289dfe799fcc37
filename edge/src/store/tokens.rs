//! Tokens of agents.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, plans::Plan, query::Query, values};
use crate::auth::agent_tokens::TokenScopes;

/// A token; the secret itself is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) id: Uuid,
    pub(crate) user: Uuid,
    pub(crate) hint: String,
    pub(crate) name: String,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) created_at: Timestamp,
    pub(crate) last_used_at: Option<Timestamp>,
    pub(crate) is_active: bool,
    pub(crate) scopes: TokenScopes,
    pub(crate) replaces: Option<Uuid>,
}

impl TokenRow {
    pub(crate) fn is_good(&self, now: Timestamp) -> bool {
        self.is_active && self.expires_at.is_none_or(|end| end > now)
    }
}

/// A token with all that an edge has to know of its user.
#[derive(Clone, Debug)]
pub(crate) struct TokenHolder {
    pub(crate) token: TokenRow,
    pub(crate) user_is_active: bool,
    pub(crate) plan: Plan,
}

const COLUMNS: &str = "t.id, t.user_id, t.hint, t.name, t.expires_at, t.created_at, \
    t.last_used_at, t.is_active, t.scopes, t.replaces";

/// Tokens whose last use is written in one statement.
const BATCH: usize = 200;

fn token(row: &mut Row) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        id: row.take()?,
        user: row.take()?,
        hint: row.take()?,
        name: row.take()?,
        expires_at: row.take()?,
        created_at: row.take()?,
        last_used_at: row.take()?,
        is_active: row.take()?,
        scopes: scopes(row.take()?)?,
        replaces: row.take()?,
    })
}

/// Scopes that cannot be read must not read as none, which allows everything.
fn scopes(value: serde_json::Value) -> Result<TokenScopes, StoreError> {
    serde_json::from_value(value)
        .map_err(|error| StoreError::Other(format!("the scopes of a token: {error}")))
}

impl Store {
    /// A statement that adds a token under the hash of its secret.
    pub(crate) fn add_token(token: &TokenRow, hash: &str) -> Statement {
        let scopes = serde_json::to_string(&token.scopes).unwrap_or_default();
        let values = values![
            token.id,
            token.user,
            hash,
            &token.hint,
            &token.name,
            token.expires_at,
            token.created_at,
            scopes,
            token.replaces,
        ];
        let sql = "INSERT INTO tunnel_tokens (id, user_id, token_hash, hint, name, expires_at, \
            created_at, scopes, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        Statement::new(sql, values).expect(1)
    }

    /// The token with this hash and its user with plan: one question for each agent that connects.
    /// It may be over, revoked, or its user inactive: the caller looks.
    pub(crate) async fn token_by_hash(
        &self,
        hash: &str,
    ) -> Result<Option<TokenHolder>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, u.is_active, {} FROM tunnel_tokens t \
             JOIN users u ON u.id = t.user_id JOIN plans p ON p.name = u.plan \
             WHERE t.token_hash = $1",
            Plan::COLUMNS,
        );
        let Some(mut row) = self.row(&sql, values![hash]).await? else { return Ok(None) };
        Ok(Some(TokenHolder {
            token: token(&mut row)?,
            user_is_active: row.take()?,
            plan: Plan::read(&mut row)?,
        }))
    }

    /// A token by its id; `user`: only if it is this one's.
    pub(crate) async fn token(
        &self,
        id: Uuid,
        user: Option<Uuid>,
    ) -> Result<Option<TokenRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM tunnel_tokens t WHERE t.id = $1");
        let row = self.row(&sql, values![id]).await?;
        let row = row.map(|mut row| token(&mut row)).transpose()?;
        Ok(row.filter(|row| user.is_none_or(|user| user == row.user)))
    }

    /// Newest first; `after`: those behind this one; `good_at`: only those that are good then.
    pub(crate) async fn list_tokens(
        &self,
        user: Option<Uuid>,
        good_at: Option<Timestamp>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<TokenRow>, StoreError> {
        let mut query = Query::new(&format!("SELECT {COLUMNS} FROM tunnel_tokens t"));
        query.and_some("t.user_id =", user);
        if let Some(now) = good_at {
            let now = query.bind(now);
            query.and(&format!("t.is_active AND (t.expires_at IS NULL OR t.expires_at > {now})"));
        }
        let query = query.page("t.id", after, limit);
        let rows = self.listed(&query.sql, query.params).await?;
        rows.into_iter().map(|mut row| token(&mut row)).collect()
    }

    /// How many tokens a user has that are not revoked.
    pub(crate) async fn count_tokens(&self, user: Uuid) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM tunnel_tokens WHERE user_id = $1 AND is_active";
        let row = self.row(sql, values![user]).await?;
        row.map_or(Ok(0), |mut row| row.take())
    }

    /// A statement that writes name, end and scopes of a token that is not revoked.
    pub(crate) fn change_token(token: &TokenRow) -> Statement {
        let scopes = serde_json::to_string(&token.scopes).unwrap_or_default();
        let sql = "UPDATE tunnel_tokens SET name = $2, expires_at = $3, scopes = $4 \
            WHERE id = $1 AND is_active";
        let values = values![token.id, &token.name, token.expires_at, scopes];
        Statement::new(sql, values).expect(1)
    }

    /// A statement that lets a good token end at `until`, unless it ends sooner.
    pub(crate) fn end_token(id: Uuid, until: Timestamp) -> Statement {
        let sql = "UPDATE tunnel_tokens SET expires_at = CASE WHEN expires_at < $2 \
            THEN expires_at ELSE $2 END WHERE id = $1 AND is_active";
        Statement::new(sql, values![id, until]).expect(1)
    }

    /// A statement that revokes a token, if it is not revoked.
    pub(crate) fn revoke_token(id: Uuid) -> Statement {
        let sql = "UPDATE tunnel_tokens SET is_active = $2 WHERE id = $1 AND is_active";
        Statement::new(sql, values![id, false]).expect(1)
    }

    /// Writes when tokens were last used; to be called once in a while with what has come together.
    pub(crate) async fn touch_tokens(&self, used: &[(Uuid, Timestamp)]) -> Result<(), StoreError> {
        for batch in used.chunks(BATCH) {
            let sql = "UPDATE tunnel_tokens SET last_used_at = $2 \
                WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
            let touch = |(id, at): &(Uuid, Timestamp)| Statement::new(sql, values![*id, *at]);
            self.transaction(batch.iter().map(touch).collect()).await?;
        }
        Ok(())
    }
}
