//! Durable rows: accounts, tunnels and their names, sessions, the request log, roll-ups, the audit
//! log. PostgreSQL for many edges, SQLite for one; both hold the same tables (`migrations/`) and pass
//! the same tests.
//!
//! SQL is written once, in what both databases understand, and lives below this module only: one
//! file for each kind of row, on the four calls of [`Store`]. Parameters are `$1`, `$2` and so on,
//! which is PostgreSQL's way; times come from the caller, never from the database's clock. The data
//! path does not get here.

pub(crate) mod audit;
pub(crate) mod domains;
pub(crate) mod idempotency;
pub(crate) mod invites;
pub(crate) mod keys;
pub(crate) mod plans;
mod postgres;
mod select;
mod sqlite;
pub(crate) mod tokens;
pub(crate) mod users;
mod value;

pub(crate) use self::{select::Select, value::values};
pub use self::value::{FromValue, Row, Timestamp, Value};

/// Durable rows. Cloning is cheap; all clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Postgres(postgres::Postgres),
    Sqlite(sqlite::Sqlite),
}

/// One statement of a transaction.
#[derive(Debug)]
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
    /// The rows that a query returns, as things stand now. Changes are fine too (`RETURNING`).
    ///
    /// # Errors
    /// [`StoreError`]; see there.
    pub async fn rows(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        match &self.backend {
            Backend::Postgres(postgres) => postgres.rows(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.rows(sql, params).await,
        }
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
        match &self.backend {
            Backend::Postgres(postgres) => postgres.listed(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.listed(sql, params).await,
        }
    }

    /// Runs a change and says how many rows it touched.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub async fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, StoreError> {
        match &self.backend {
            Backend::Postgres(postgres) => postgres.execute(sql, params).await,
            Backend::Sqlite(sqlite) => sqlite.execute(sql, params).await,
        }
    }

    /// Runs all of `statements` or none; the rows that each returned.
    ///
    /// # Errors
    /// As [`Store::rows`], and [`StoreError::Stale`] where [`Statement::expect`] is not met.
    pub async fn transaction(
        &self,
        statements: Vec<Statement>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        match &self.backend {
            Backend::Postgres(postgres) => postgres.transaction(statements).await,
            Backend::Sqlite(sqlite) => sqlite.transaction(statements).await,
        }
    }
}
