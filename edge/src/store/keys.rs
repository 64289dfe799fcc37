//! Names of the keys that sign access tokens; the keys are derived from the edges' secret.

use super::{Statement, Store, StoreError, Timestamp, values};

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) kid: String,
    pub(crate) created_at: Timestamp,
    /// From then on nothing that it has signed is good; until then it signs nothing new.
    pub(crate) retired_at: Option<Timestamp>,
}

impl Store {
    /// Keys that verify at `now`; first the one that signs.
    pub(crate) async fn signing_keys(&self, now: Timestamp) -> Result<Vec<KeyRow>, StoreError> {
        let sql = "SELECT kid, created_at, retired_at FROM signing_keys \
            WHERE retired_at IS NULL OR retired_at > $1 \
            ORDER BY CASE WHEN retired_at IS NULL THEN 0 ELSE 1 END, created_at DESC, kid DESC \
            LIMIT 100";
        let rows = self.rows(sql, values![now]).await?;
        let key = |mut row: super::Row| {
            Ok(KeyRow { kid: row.take()?, created_at: row.take()?, retired_at: row.take()? })
        };
        rows.into_iter().map(key).collect()
    }

    /// A statement that adds a key.
    pub(crate) fn add_key(kid: &str, now: Timestamp) -> Statement {
        let sql = "INSERT INTO signing_keys (kid, created_at) VALUES ($1, $2)";
        Statement::new(sql, values![kid, now]).expect(1)
    }

    /// A statement that retires all keys but one.
    pub(crate) fn retire_keys(but: &str, from: Timestamp) -> Statement {
        let sql = "UPDATE signing_keys SET retired_at = $2 WHERE kid <> $1 AND retired_at IS NULL";
        Statement::new(sql, values![but, from])
    }
}
