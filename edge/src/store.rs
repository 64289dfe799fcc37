//! Durable rows: accounts, tunnels and their names, sessions, the request log, roll-ups, the audit
//! log. PostgreSQL for many edges, SQLite for one; both hold the same tables (`migrations/`) and pass
//! the same tests.
//!
//! SQL is written once, in what both databases understand, and lives below this module only: one
//! file for each kind of row, on the few calls of [`Store`]. Parameters are `$1`, `$2` and so on,
//! which is PostgreSQL's way; times come from the caller, never from the database's clock. The data
//! path does not get here.

pub(crate) mod audit;
mod copy;
pub(crate) mod domains;
mod health;
pub(crate) mod idempotency;
pub(crate) mod invites;
mod jobs;
pub(crate) mod keys;
mod migrate;
pub(crate) mod plans;
mod postgres;
mod query;
mod requests;
mod rollups;
mod sessions;
mod sqlite;
pub(crate) mod tokens;
pub(crate) mod totals;
mod tunnels;
mod url;
pub(crate) mod users;
mod value;

use std::sync::Arc;

pub(crate) use self::value::values;
pub use self::{
    copy::{Copied, CopyError},
    health::{StoreFigures, StoreHealth},
    jobs::{Aged, JobRow},
    requests::{PATH_MAX, RequestFilter, RequestRow},
    rollups::{Hour, Minute, Usage},
    sessions::{SessionFilter, SessionRow},
    tunnels::{Claim, ClaimError, Claimed, NewTunnel, TunnelChanges, TunnelFilter, TunnelRow},
    url::{StoreOptions, StoreUrl, StoreUrlError},
    value::{FromValue, Row, Timestamp, Value},
};
use self::{health::Counters, url::Place};

/// Durable rows. Cloning is cheap; all clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
    counters: Arc<Counters>,
}

#[derive(Clone, Debug)]
enum Backend {
    Postgres(postgres::Postgres),
    Sqlite(sqlite::Sqlite),
}

/// One statement of a transaction.
#[derive(Clone, Debug)]
pub struct Statement {
    pub sql: std::borrow::Cow<'static, str>,
    pub params: Vec<Value>,
    /// The transaction is rolled back with [`StoreError::Stale`] unless this many rows are changed
    /// or returned.
    pub expect: Option<u64>,
}

/// Why a call has failed. Nothing of it was done then, except where the connection was lost while
/// the database was at it ([`StoreError::Unavailable`]).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A unique index refuses the row; its name, such as `idx_users_email`.
    #[error("there is such a row already ({0})")]
    Duplicate(String),
    /// The row that is pointed to is not there, or a check refuses the value.
    #[error("the database refuses the row: {0}")]
    Refused(String),
    /// A statement of a transaction did not find what it expected.
    #[error("the rows have changed meanwhile")]
    Stale,
    /// The database does not answer, or its connections are all busy.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The disk is full, or may not be written to.
    #[error("the store can't write: {0}")]
    ReadOnly(String),
    /// A fault of ours, or a database that is not migrated.
    #[error("the store failed: {0}")]
    Other(String),
}

impl Statement {
    /// A statement that may change any number of rows.
    pub fn new(sql: impl Into<std::borrow::Cow<'static, str>>, params: Vec<Value>) -> Self {
        Self { sql: sql.into(), params, expect: None }
    }

    /// A statement that has to change or return exactly `rows` rows.
    pub fn expect(mut self, rows: u64) -> Self {
        self.expect = Some(rows);
        self
    }
}

impl Store {
    /// Opens the file of SQLite, which is made and migrated as needed, or makes ready to talk to
    /// PostgreSQL, which need not be there yet: see [`Store::ping`] and [`Store::check_migrated`].
    ///
    /// # Errors
    /// [`StoreError`]: the file can't be used, or what the address names for TLS can't.
    pub async fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, StoreError> {
        let counters = Arc::<Counters>::default();
        let (shared, replica) = (Arc::clone(&counters), options.replica.as_ref());
        let backend = match (&url.0, replica.map(|replica| &replica.0)) {
            (Place::Postgres(server), None) => {
                Backend::Postgres(postgres::Postgres::open(server, None, options, shared)?)
            }
            (Place::Postgres(server), Some(Place::Postgres(replica))) => {
                Backend::Postgres(postgres::Postgres::open(server, Some(replica), options, shared)?)
            }
            (_, Some(_)) => {
                return Err(StoreError::Other("only PostgreSQL has read replicas".into()));
            }
            (Place::Memory, None) => {
                Backend::Sqlite(sqlite::Sqlite::open(None, options, shared).await?)
            }
            (Place::File(path), None) => {
                Backend::Sqlite(sqlite::Sqlite::open(Some(path), options, shared).await?)
            }
        };
        Ok(Self { backend, counters })
    }

    /// Whether several edges can share it.
    #[must_use]
    pub fn is_postgres(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.rows("SELECT 1", Vec::new()).await.map(drop)
    }

    /// When it was last seen to work, and not to.
    #[must_use]
    pub fn health(&self) -> StoreHealth {
        self.counters.health()
    }

    /// What has been counted of its calls.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        self.counters.figures()
    }

    /// What is written differently for the two databases.
    fn dialect<T>(&self, postgres: T, sqlite: T) -> T {
        match &self.backend {
            Backend::Postgres(_) => postgres,
            Backend::Sqlite(_) => sqlite,
        }
    }

    /// The rows that a query returns, as things stand now. Changes are fine too (`RETURNING`).
    ///
    /// # Errors
    /// [`StoreError`]; see there.
    pub async fn rows(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let outcome = match &self.backend {
            Backend::Postgres(postgres) => postgres.rows(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.rows(sql, params).await,
        };
        self.counters.ended(&outcome, !is_read(sql));
        outcome
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub async fn row(&self, sql: &str, params: Vec<Value>) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// For lists and analytics: from a read replica where there is one, and so perhaps a little old.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub async fn listed(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let outcome = match &self.backend {
            Backend::Postgres(postgres) => postgres.listed(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.listed(sql, params).await,
        };
        self.counters.ended(&outcome, false);
        outcome
    }

    /// Runs a change and says how many rows it touched.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub async fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, StoreError> {
        let outcome = match &self.backend {
            Backend::Postgres(postgres) => postgres.execute(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.execute(sql, params).await,
        };
        self.counters.ended(&outcome, true);
        outcome
    }

    /// Runs all of `statements` or none; the rows that each returned.
    ///
    /// # Errors
    /// As [`Store::rows`], and [`StoreError::Stale`] where [`Statement::expect`] is not met.
    pub async fn transaction(
        &self,
        statements: Vec<Statement>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let outcome = match &self.backend {
            Backend::Postgres(postgres) => postgres.transaction(statements).await,
            Backend::Sqlite(sqlite) => sqlite.transaction(statements).await,
        };
        self.counters.ended(&outcome, true);
        outcome
    }
}

/// Whether a statement changes nothing: it may be asked twice, and beside a writer.
fn is_read(sql: &str) -> bool {
    sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("SELECT"))
}
