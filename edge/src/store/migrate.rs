//! The tables, brought up to date: numbered files of SQL under `migrations/`, forward only, each run
//! once. They work beside the release before, so a database may be ahead of the program.

use refinery::{Migration, Runner};

use super::{Backend, Store, StoreError, postgres::Postgres};

/// Every edge that migrates takes this lock first; the number means nothing.
const LOCK: i64 = 0x756e_6972_6f75_7465;
/// How long that lock is waited for; a migration may take longer itself.
const LOCK_WAIT: &str = "60s";

macro_rules! migration {
    ($backend:literal, $name:literal) => {
        ($name, include_str!(concat!("../../../migrations/", $backend, "/", $name, ".sql")))
    };
}

const POSTGRES: &[(&str, &str)] =
    &[migration!("postgres", "V1__first"), migration!("postgres", "V2__agent_runs")];
const SQLITE: &[(&str, &str)] =
    &[migration!("sqlite", "V1__first"), migration!("sqlite", "V2__agent_runs")];

/// Where refinery takes down what it has run.
const VERSION: &str = "SELECT max(version) FROM refinery_schema_history";

impl Store {
    /// Brings the tables up to date, and says what it ran. One at a time does so; a database that is
    /// ahead of the program stays as it is. SQLite has done it when it was opened.
    ///
    /// # Errors
    /// [`StoreError`]; the migration that failed has changed nothing, those before it stay.
    pub async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            Backend::Postgres(postgres) => run_postgres(postgres).await,
            Backend::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// Whether the tables are as the program needs them, or newer.
    ///
    /// # Errors
    /// [`StoreError::Other`], which says what to do, where they are not.
    pub async fn check_migrated(&self) -> Result<(), StoreError> {
        let (is, needed) = (self.version().await?, self.needed());
        if is >= needed {
            return Ok(());
        }
        Err(StoreError::Other(format!(
            "the database is at migration {is} and this program needs {needed}: run \
             `uniroute-edge migrate`"
        )))
    }

    async fn version(&self) -> Result<i64, StoreError> {
        let there = match &self.backend {
            Backend::Postgres(_) => {
                "SELECT 1 FROM pg_class WHERE oid = to_regclass('refinery_schema_history')"
            }
            Backend::Sqlite(_) => {
                "SELECT 1 FROM sqlite_master WHERE name = 'refinery_schema_history'"
            }
        };
        if self.row(there, Vec::new()).await?.is_none() {
            return Ok(0);
        }
        let row = self.row(VERSION, Vec::new()).await?;
        Ok(row.map(|mut row| row.take::<Option<i64>>()).transpose()?.flatten().unwrap_or(0))
    }

    fn needed(&self) -> i64 {
        let migrations = match &self.backend {
            Backend::Postgres(_) => POSTGRES,
            Backend::Sqlite(_) => SQLITE,
        };
        runner(migrations).map(|runner| newest(&runner)).unwrap_or(0)
    }
}

fn runner(migrations: &[(&str, &str)]) -> Result<Runner, StoreError> {
    let parsed = migrations.iter().map(|(name, sql)| Migration::unapplied(name, sql));
    let parsed = parsed.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    Ok(Runner::new(&parsed))
}

fn newest(runner: &Runner) -> i64 {
    let versions = runner.get_migrations().iter().map(|migration| i64::from(migration.version()));
    versions.max().unwrap_or(0)
}

fn names(report: &refinery::Report) -> Vec<String> {
    report.applied_migrations().iter().map(ToString::to_string).collect()
}

fn failed(error: &refinery::Error) -> StoreError {
    let source = std::error::Error::source(error);
    let said = source.map(|source| match std::error::Error::source(source) {
        Some(deeper) => format!(": {source}: {deeper}"),
        None => format!(": {source}"),
    });
    StoreError::Other(format!("migration: {error}{}", said.unwrap_or_default()))
}

async fn run_postgres(postgres: &Postgres) -> Result<Vec<String>, StoreError> {
    let mut client = postgres.alone().await?;
    let lock = format!("SET lock_timeout = '{LOCK_WAIT}'; SELECT pg_advisory_lock({LOCK});");
    let locked = client.batch_execute(&lock).await;
    locked.map_err(|error| {
        StoreError::Unavailable(format!("somebody else migrates this database: {error}"))
    })?;
    let runner = runner(POSTGRES)?;
    let there =
        client.query_opt("SELECT 1 WHERE to_regclass('refinery_schema_history') IS NOT NULL", &[]);
    let is_there = there.await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    if is_there.is_some() {
        let version = client.query_one(VERSION, &[]).await;
        let version = version.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let version: Option<i32> =
            version.try_get(0).map_err(|error| StoreError::Other(error.to_string()))?;
        if version.is_some_and(|version| i64::from(version) > newest(&runner)) {
            return Ok(Vec::new());
        }
    }
    // The lock goes with the connection.
    let report = runner.run_async(&mut client).await.map_err(|error| failed(&error))?;
    Ok(names(&report))
}

/// The same for SQLite, whose file has a lock of its own.
pub(super) fn sqlite(connection: &mut rusqlite::Connection) -> Result<(), StoreError> {
    let runner = runner(SQLITE)?;
    let version = connection.query_row(VERSION, [], |row| row.get::<_, Option<i64>>(0));
    if version.ok().flatten().is_some_and(|version| version >= newest(&runner)) {
        return Ok(());
    }
    runner.run(connection).map_err(|error| failed(&error))?;
    Ok(())
}
