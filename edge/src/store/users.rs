//! Accounts and their logins.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, query::Query, values};
use crate::auth::Role;

/// An account.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) password_hash: String,
    pub(crate) role: Role,
    pub(crate) plan: String,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) is_active: bool,
    pub(crate) failed_logins: u32,
    pub(crate) locked_until: Option<Timestamp>,
}

impl std::fmt::Debug for UserRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRow").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A login whose access tokens are good, with its user.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) user: Uuid,
    pub(crate) email: String,
    pub(crate) role: Role,
}

/// What the store knows of a login, whether it is good or not.
#[derive(Clone)]
pub(crate) struct LoginRow {
    pub(crate) user: Uuid,
    pub(crate) expires_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
}

/// What an administrator may change of an account; `None`: as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserChange {
    pub(crate) role: Option<Role>,
    pub(crate) plan: Option<String>,
    pub(crate) is_active: Option<bool>,
}

const COLUMNS: &str = "id, email, password_hash, role, plan, created_at, updated_at, is_active, \
    failed_logins, locked_until";

fn user(mut row: Row) -> Result<UserRow, StoreError> {
    Ok(UserRow {
        id: row.take()?,
        email: row.take()?,
        password_hash: row.take()?,
        role: role(&row.take::<String>()?)?,
        plan: row.take()?,
        created_at: row.take()?,
        updated_at: row.take()?,
        is_active: row.take()?,
        failed_logins: row.take()?,
        locked_until: row.take()?,
    })
}

pub(super) fn role(word: &str) -> Result<Role, StoreError> {
    Role::parse(word).ok_or_else(|| StoreError::Other(format!("there is no role {word}")))
}

impl Store {
    /// A statement that adds an account. Duplicate of `idx_users_email`: the address has one.
    pub(crate) fn add_user(user: &UserRow) -> Statement {
        let values = values![
            user.id,
            &user.email,
            &user.password_hash,
            user.role.as_str(),
            &user.plan,
            user.created_at,
            user.updated_at,
            user.is_active,
        ];
        let sql = "INSERT INTO users (id, email, password_hash, role, plan, created_at, updated_at, \
            is_active) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        Statement::new(sql, values).expect(1)
    }

    pub(crate) async fn user(&self, id: Uuid) -> Result<Option<UserRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM users WHERE id = $1");
        self.row(&sql, values![id]).await?.map(user).transpose()
    }

    /// By e-mail address, whatever the case of its letters.
    pub(crate) async fn user_by_email(&self, email: &str) -> Result<Option<UserRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM users WHERE lower(email) = $1");
        self.row(&sql, values![email.to_lowercase()]).await?.map(user).transpose()
    }

    /// Newest first; `after`: those behind this one.
    pub(crate) async fn list_users(
        &self,
        email: Option<&str>,
        role: Option<Role>,
        active: Option<bool>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<UserRow>, StoreError> {
        let mut query = Query::new(&format!("SELECT {COLUMNS} FROM users"));
        query.and_some("lower(email) =", email.map(str::to_lowercase));
        query.and_some("role =", role.map(Role::as_str));
        query.and_some("is_active =", active);
        let query = query.page("id", after, limit);
        self.listed(&query.sql, query.params).await?.into_iter().map(user).collect()
    }

    /// A statement that changes an account, if it is there.
    pub(crate) fn change_user(id: Uuid, change: &UserChange, at: Timestamp) -> Statement {
        let values = values![
            id,
            change.role.map(Role::as_str),
            change.plan.as_deref(),
            change.is_active,
            at
        ];
        let sql = "UPDATE users SET role = COALESCE($2, role), plan = COALESCE($3, plan), \
            is_active = COALESCE($4, is_active), updated_at = $5 WHERE id = $1";
        Statement::new(sql, values).expect(1)
    }

    /// A statement that lets an administrator lose the role, be made inactive or go only while there
    /// is another active one. It changes nothing itself.
    pub(crate) fn another_admin_than(id: Uuid) -> Statement {
        let sql = "SELECT 1 FROM users WHERE role = 'admin' AND is_active AND id <> $1 LIMIT 1";
        Statement::new(sql, values![id]).expect(1)
    }

    /// A statement that removes an account and all that is its own.
    pub(crate) fn remove_user(id: Uuid) -> Statement {
        Statement::new("DELETE FROM users WHERE id = $1", values![id]).expect(1)
    }

    /// Whether a user has tunnels, or names of deleted ones that nobody else may get at `now`.
    pub(crate) async fn has_names(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM tunnels WHERE user_id = $1 \
            AND (status <> 'deleted' OR held_until > $2) LIMIT 1";
        Ok(self.row(sql, values![id, now]).await?.is_some())
    }

    /// A statement that sets a new password; failures are forgotten.
    pub(crate) fn set_password(id: Uuid, hash: &str, at: Timestamp) -> Statement {
        let sql = "UPDATE users SET password_hash = $2, updated_at = $3, failed_logins = 0, \
            locked_until = NULL WHERE id = $1";
        Statement::new(sql, values![id, hash, at]).expect(1)
    }

    /// Counts a try as a failure before anybody knows whether it is one. `false`: another try came
    /// between, and the row is to be read anew.
    pub(crate) async fn begin_login(
        &self,
        id: Uuid,
        failures_read: u32,
        failures: u32,
        locked_until: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE users SET failed_logins = $3, locked_until = $4 \
            WHERE id = $1 AND failed_logins = $2";
        let values = values![id, failures_read, failures, locked_until];
        Ok(self.execute(sql, values).await? == 1)
    }

    /// The try was none that counts: takes it back.
    pub(crate) async fn forgive_login(&self, id: Uuid) -> Result<(), StoreError> {
        let sql = "UPDATE users SET failed_logins = failed_logins - 1, locked_until = NULL \
            WHERE id = $1 AND failed_logins > 0";
        self.execute(sql, values![id]).await.map(drop)
    }

    /// A statement that forgets the failures: the password was right.
    pub(crate) fn forget_failures(id: Uuid) -> Statement {
        let sql = "UPDATE users SET failed_logins = 0, locked_until = NULL WHERE id = $1";
        Statement::new(sql, values![id])
    }

    /// A statement that adds a login.
    #[allow(clippy::too_many_arguments, reason = "the columns of a row")]
    pub(crate) fn add_login(
        id: Uuid,
        user: Uuid,
        token_hash: &str,
        at: Timestamp,
        expires_at: Timestamp,
        peer: &str,
        user_agent: &str,
    ) -> Statement {
        let sql = "INSERT INTO logins (id, user_id, token_hash, created_at, refreshed_at, \
            expires_at, peer, user_agent) VALUES ($1, $2, $3, $4, $4, $5, $6, $7)";
        let values = values![id, user, token_hash, at, expires_at, peer, user_agent];
        Statement::new(sql, values).expect(1)
    }

    /// A login and its user, if both are good at `now`: one look for each request of the API.
    pub(crate) async fn login(
        &self,
        id: Uuid,
        now: Timestamp,
    ) -> Result<Option<Login>, StoreError> {
        let sql = "SELECT u.id, u.email, u.role FROM logins l JOIN users u ON u.id = l.user_id \
            WHERE l.id = $1 AND l.revoked_at IS NULL AND l.expires_at > $2 AND u.is_active";
        let Some(mut row) = self.row(sql, values![id, now]).await? else { return Ok(None) };
        let (user, email) = (row.take()?, row.take()?);
        Ok(Some(Login { user, email, role: role(&row.take::<String>()?)? }))
    }

    /// A login, good or not.
    pub(crate) async fn login_row(&self, id: Uuid) -> Result<Option<LoginRow>, StoreError> {
        let sql = "SELECT user_id, expires_at, revoked_at FROM logins WHERE id = $1";
        let Some(mut row) = self.row(sql, values![id]).await? else { return Ok(None) };
        Ok(Some(LoginRow { user: row.take()?, expires_at: row.take()?, revoked_at: row.take()? }))
    }

    /// Puts the next refresh token in the place of `old_hash`. `false`: that was not the last one, or
    /// the login or its user is no longer good. Of two at once, one gets through.
    pub(crate) async fn rotate_login(
        &self,
        id: Uuid,
        old_hash: &str,
        new_hash: &str,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE logins SET token_hash = $3, refreshed_at = $4, expires_at = $5 \
            WHERE id = $1 AND token_hash = $2 AND revoked_at IS NULL AND expires_at > $4 \
            AND EXISTS (SELECT 1 FROM users u WHERE u.id = user_id AND u.is_active)";
        let values = values![id, old_hash, new_hash, now, expires_at];
        Ok(self.execute(sql, values).await? == 1)
    }

    /// A statement that ends a login, if it has not ended.
    pub(crate) fn revoke_login(id: Uuid, now: Timestamp) -> Statement {
        let sql = "UPDATE logins SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
        Statement::new(sql, values![id, now]).expect(1)
    }

    /// A statement that ends all logins of a user, but one.
    pub(crate) fn revoke_logins(user: Uuid, but: Option<Uuid>, now: Timestamp) -> Statement {
        let sql = "UPDATE logins SET revoked_at = $3 \
            WHERE user_id = $1 AND id <> $2 AND revoked_at IS NULL";
        Statement::new(sql, values![user, but.unwrap_or_default(), now])
    }
}
