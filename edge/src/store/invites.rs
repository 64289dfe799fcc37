//! Invitations to make an account.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, query::Query, users::role, values};
use crate::auth::Role;

/// An invitation; the secret itself is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InviteRow {
    pub(crate) id: Uuid,
    /// The only address that may use it, if there is one.
    pub(crate) email: Option<String>,
    pub(crate) role: Role,
    pub(crate) created_by: Option<Uuid>,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) used_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, email, role, created_by, created_at, expires_at, used_at";

fn invite(mut row: Row) -> Result<InviteRow, StoreError> {
    Ok(InviteRow {
        id: row.take()?,
        email: row.take()?,
        role: role(&row.take::<String>()?)?,
        created_by: row.take()?,
        created_at: row.take()?,
        expires_at: row.take()?,
        used_at: row.take()?,
    })
}

impl Store {
    /// A statement that adds an invitation under the hash of its secret.
    pub(crate) fn add_invite(invite: &InviteRow, hash: &str) -> Statement {
        let values = values![
            invite.id,
            hash,
            invite.email.as_deref(),
            invite.role.as_str(),
            invite.created_by,
            invite.created_at,
            invite.expires_at,
        ];
        let sql = "INSERT INTO invites (id, token_hash, email, role, created_by, created_at, \
            expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        Statement::new(sql, values).expect(1)
    }

    /// The invitation with this hash, used, over or not.
    pub(crate) async fn invite_by_hash(&self, hash: &str) -> Result<Option<InviteRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM invites WHERE token_hash = $1");
        self.row(&sql, values![hash]).await?.map(invite).transpose()
    }

    /// Newest first; `after`: those behind this one; `open_at`: only those that can be used then.
    pub(crate) async fn list_invites(
        &self,
        open_at: Option<Timestamp>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<InviteRow>, StoreError> {
        let mut query = Query::new(&format!("SELECT {COLUMNS} FROM invites"));
        if let Some(now) = open_at {
            query.and("used_at IS NULL");
            query.and_some("expires_at >", Some(now));
        }
        let query = query.page("id", after, limit);
        self.listed(&query.sql, query.params).await?.into_iter().map(invite).collect()
    }

    /// A statement that uses an invitation up, once.
    pub(crate) fn use_invite(id: Uuid, now: Timestamp) -> Statement {
        let sql = "UPDATE invites SET used_at = $2 \
            WHERE id = $1 AND used_at IS NULL AND expires_at > $2";
        Statement::new(sql, values![id, now]).expect(1)
    }

    /// A statement that takes an invitation back.
    pub(crate) fn remove_invite(id: Uuid) -> Statement {
        Statement::new("DELETE FROM invites WHERE id = $1", values![id]).expect(1)
    }
}
