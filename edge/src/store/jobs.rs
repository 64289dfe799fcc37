//! What runs once for all edges: how far each job has come, and what retention takes away.

use time::OffsetDateTime;

use super::{Backend, Statement, Store, StoreError, Timestamp, postgres::Postgres, values};

/// Rows that one statement deletes at most, so that others get their turn.
const SLICE: i64 = 5_000;
/// Slices of one call; what is left then is for the next one.
const SLICES: usize = 200;
const DAY_US: i64 = 86_400 * 1_000_000;
/// How long the making or dropping of a partition waits for those who use the table, who wait for
/// it meanwhile.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'; ";
const PARTITION: &str = "tunnel_requests_";

/// How far a job has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    pub name: String,
    /// Of the lock under which it ran last.
    pub fence: u64,
    pub done_until: Option<Timestamp>,
    pub ran_at: Option<Timestamp>,
    pub outcome: String,
}

/// What gets old, apart from requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aged {
    Minutes,
    Hours,
    Audit,
    IdempotencyKeys,
    /// Those that are over.
    Sessions,
}

impl Aged {
    fn sql(self) -> &'static str {
        macro_rules! delete {
            ($table:literal, $key:literal, $old:literal) => {
                concat!(
                    "DELETE FROM ",
                    $table,
                    " WHERE (",
                    $key,
                    ") IN (SELECT ",
                    $key,
                    " FROM ",
                    $table,
                    " WHERE ",
                    $old,
                    " LIMIT $2)"
                )
            };
        }
        match self {
            Self::Minutes => {
                delete!("request_minutes", "tunnel_id, minute, server_id", "minute < $1")
            }
            Self::Hours => delete!("request_hours", "tunnel_id, hour", "hour < $1"),
            Self::Audit => delete!("audit_log", "id", "at < $1"),
            Self::IdempotencyKeys => {
                delete!("idempotency_keys", "user_id, key", "created_at < $1")
            }
            // The index is on the last sign of life, which is not later than the end.
            Self::Sessions => delete!(
                "tunnel_sessions",
                "id",
                "status = 'disconnected' AND last_heartbeat < $1 AND disconnected_at < $1"
            ),
        }
    }
}

impl Store {
    /// How far a job has come; `None`: it never ran.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn job(&self, name: &str) -> Result<Option<JobRow>, StoreError> {
        let sql = "SELECT name, fence, done_until, ran_at, outcome FROM jobs WHERE name = $1";
        let read = |mut row: super::Row| {
            Ok(JobRow {
                name: row.take()?,
                fence: row.take()?,
                done_until: row.take()?,
                ran_at: row.take()?,
                outcome: row.take()?,
            })
        };
        self.row(sql, values![name]).await?.map(read).transpose()
    }

    /// Writes down how far a job has come, under the fence of its lock.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when somebody with a newer fence has written already.
    pub async fn finish_job(
        &self,
        name: &str,
        fence: u64,
        done_until: Option<Timestamp>,
        outcome: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO jobs (name, fence, done_until, ran_at, outcome) \
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO UPDATE SET \
                   fence = excluded.fence, done_until = excluded.done_until, \
                   ran_at = excluded.ran_at, outcome = excluded.outcome \
                   WHERE jobs.fence <= excluded.fence";
        let outcome: String = outcome.chars().take(255).collect();
        let params = values![name, fence, done_until, now, outcome];
        self.transaction(vec![Statement::new(sql, params).expect(1)]).await.map(drop)
    }

    /// Deletes what is older than `before`, in slices; how many rows. At most a million of them: then
    /// there may be more.
    ///
    /// # Errors
    /// [`StoreError`]; some may be gone.
    pub async fn delete_aged(&self, aged: Aged, before: Timestamp) -> Result<u64, StoreError> {
        self.in_slices(aged.sql(), before).await
    }

    /// Deletes requests that are older than `before`; how many rows, without those in partitions
    /// (PostgreSQL), which go as a whole when their day is over by then.
    ///
    /// # Errors
    /// [`StoreError`]; some may be gone.
    pub async fn delete_requests(&self, before: Timestamp) -> Result<u64, StoreError> {
        if let Backend::Postgres(postgres) = &self.backend {
            for partition in self.partitions().await? {
                if day_of(&partition).is_some_and(|day| day.0 + DAY_US <= before.0) {
                    postgres.batch(&format!("{LOCK_WAIT}DROP TABLE {partition};")).await?;
                }
            }
        }
        // Only what has no partition is left to be looked through.
        let sql = self.dialect(
            "DELETE FROM tunnel_requests_default WHERE (id, created_at) IN (SELECT id, created_at \
             FROM tunnel_requests_default WHERE created_at < $1 LIMIT $2)",
            "DELETE FROM tunnel_requests WHERE id IN (SELECT id FROM tunnel_requests \
             WHERE created_at < $1 LIMIT $2)",
        );
        self.in_slices(sql, before).await
    }

    /// Makes partitions of the request log for the day of `from` and those after it; how many are
    /// new. A day that has requests already stays in the default one. SQLite has none.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been made.
    pub async fn make_partitions(&self, from: Timestamp, days: u32) -> Result<u32, StoreError> {
        let Backend::Postgres(postgres) = &self.backend else { return Ok(0) };
        let there = self.partitions().await?;
        let (first, mut made) = (from.0.div_euclid(DAY_US), 0);
        for day in first..first.saturating_add(days.into()) {
            let name = partition_of(Timestamp(day * DAY_US));
            if !there.contains(&name) {
                made += u32::from(make_partition(postgres, &name, day).await?);
            }
        }
        Ok(made)
    }

    /// The names of all partitions, without the default one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn partitions(&self) -> Result<Vec<String>, StoreError> {
        if !self.is_postgres() {
            return Ok(Vec::new());
        }
        let sql = "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid \
                   WHERE i.inhparent = 'tunnel_requests'::regclass ORDER BY c.relname";
        let mut names = Vec::new();
        for mut row in self.rows(sql, Vec::new()).await? {
            let name: String = row.take()?;
            if day_of(&name).is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    async fn in_slices(&self, sql: &str, before: Timestamp) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for _ in 0..SLICES {
            let slice = self.execute(sql, values![before, SLICE]).await?;
            deleted += slice;
            if slice < SLICE as u64 {
                break;
            }
        }
        Ok(deleted)
    }
}

async fn make_partition(postgres: &Postgres, name: &str, day: i64) -> Result<bool, StoreError> {
    let (from, to) = (Timestamp(day * DAY_US), Timestamp((day + 1) * DAY_US));
    let made = postgres
        .batch(&format!(
            "{LOCK_WAIT}CREATE TABLE IF NOT EXISTS {name} PARTITION OF tunnel_requests \
             FOR VALUES FROM ('{from}') TO ('{to}');"
        ))
        .await;
    match made {
        Ok(()) => Ok(true),
        // The default one has requests of that day.
        Err(StoreError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn partition_of(day: Timestamp) -> String {
    let at = OffsetDateTime::from_unix_timestamp(day.0.div_euclid(1_000_000));
    let date = at.unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
    format!("{PARTITION}{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
}

/// The first instant of a partition's day.
fn day_of(partition: &str) -> Option<Timestamp> {
    let digits = partition.strip_prefix(PARTITION).filter(|digits| digits.len() == 8)?;
    let (year, month, day) = (digits.get(..4)?, digits.get(4..6)?, digits.get(6..)?);
    format!("{year}-{month}-{day}T00:00:00Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_after_their_day() {
        let day: Timestamp = "2026-02-28T00:00:00Z".parse().unwrap();
        assert_eq!(partition_of(day), "tunnel_requests_20260228");
        assert_eq!(day_of("tunnel_requests_20260228"), Some(day));
        for other in ["tunnel_requests_default", "tunnel_requests_20261301", "tunnel_requests_1"] {
            assert_eq!(day_of(other), None);
        }
    }
}
