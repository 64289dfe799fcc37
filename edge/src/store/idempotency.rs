//! Answers to requests that may come twice.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError, Timestamp, values};

/// How long an answer is kept.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);
/// A request takes no longer than this: after it, an edge has died over it.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// What there is under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing, and the key is the caller's now.
    New,
    /// Another request came under this key.
    Other,
    /// The same, and it is not answered yet.
    UnderWay,
    Answer {
        status: u16,
        body: Vec<u8>,
    },
}

impl Store {
    /// Takes the key for a request, or says what is there. Of two at once, one gets it.
    pub(crate) async fn begin_request(
        &self,
        user: Uuid,
        key: &str,
        request_hash: &str,
        now: Timestamp,
    ) -> Result<Kept, StoreError> {
        let sql = "INSERT INTO idempotency_keys (user_id, key, request_hash, created_at) \
            VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, key) DO UPDATE SET \
            request_hash = excluded.request_hash, status = NULL, body = NULL, \
            created_at = excluded.created_at \
            WHERE idempotency_keys.created_at < $5 \
            OR (idempotency_keys.status IS NULL AND idempotency_keys.created_at < $6)";
        let values = values![user, key, request_hash, now, now.minus(KEPT), now.minus(UNDER_WAY)];
        if self.execute(sql, values).await? == 1 {
            return Ok(Kept::New);
        }
        let sql = "SELECT request_hash, status, body FROM idempotency_keys \
            WHERE user_id = $1 AND key = $2";
        let Some(mut row) = self.row(sql, values![user, key]).await? else {
            // It was given back in between: whoever asks again finds it free.
            return Ok(Kept::UnderWay);
        };
        let (hash, status): (String, Option<u16>) = (row.take()?, row.take()?);
        Ok(match status {
            _ if hash != request_hash => Kept::Other,
            None => Kept::UnderWay,
            Some(status) => Kept::Answer { status, body: row.take()? },
        })
    }

    /// Keeps the answer.
    pub(crate) async fn finish_request(
        &self,
        user: Uuid,
        key: &str,
        status: u16,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let sql = "UPDATE idempotency_keys SET status = $3, body = $4 \
            WHERE user_id = $1 AND key = $2 AND status IS NULL";
        self.execute(sql, values![user, key, status, body]).await.map(drop)
    }

    /// Gives the key back: nothing was done.
    pub(crate) async fn drop_request(&self, user: Uuid, key: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM idempotency_keys WHERE user_id = $1 AND key = $2 AND status IS NULL";
        self.execute(sql, values![user, key]).await.map(drop)
    }
}
