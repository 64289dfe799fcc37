//! The rows in SQLite: one connection that writes, some that read beside it, each on a thread of its
//! own. In memory there is one connection for both.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rusqlite::{
    ErrorCode, OpenFlags, TransactionBehavior,
    types::{ToSql, ToSqlOutput, ValueRef},
};
use tokio::sync::Semaphore;
use tokio_rusqlite::Connection;

use super::{Row, Statement, StoreError, StoreOptions, Value, health::Counters, is_read, migrate};

/// Calls that may wait at a time; the next one is refused.
pub(super) const MAX_WAITING: usize = 1_024;
/// Connections that read.
const READERS: usize = 4;
/// Statements that a connection keeps prepared.
const PREPARED: usize = 256;
/// How long another process's lock on the file is waited for.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    writer: Lane,
    /// None in memory.
    readers: Arc<[Lane]>,
    /// Room for calls that wait.
    waiting: Arc<Semaphore>,
    statement: Duration,
    counters: Arc<Counters>,
}

/// A connection, and how many calls it has.
#[derive(Clone, Debug)]
struct Lane {
    connection: Connection,
    calls: Arc<AtomicUsize>,
}

impl Lane {
    fn new(connection: Connection) -> Self {
        Self { connection, calls: Arc::default() }
    }
}

/// What a statement gave: its rows, and how many it touched.
type Answer = (Vec<Row>, u64);

impl Sqlite {
    /// In memory where there is no path. It brings its tables up to date.
    pub(super) async fn open(
        path: Option<&Path>,
        options: &StoreOptions,
        counters: Arc<Counters>,
    ) -> Result<Self, StoreError> {
        let writer = match path {
            None => Connection::open_in_memory().await,
            Some(path) => {
                make_private(path)?;
                Connection::open(path).await
            }
        };
        let writer = Lane::new(writer.map_err(|error| fault(&error))?);
        let mut sqlite = Self {
            writer,
            readers: Arc::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            statement: options.statement,
            counters,
        };
        let prepared = |connection: &mut rusqlite::Connection| {
            prepare(connection).map_err(|error| fault(&error))?;
            migrate::sqlite(connection)
        };
        sqlite.on(&sqlite.writer, prepared).await?;
        if let Some(path) = path {
            let mut readers = Vec::new();
            for _ in 0..READERS {
                readers.push(Lane::new(reader(path).await.map_err(|error| fault(&error))?));
            }
            sqlite.readers = readers.into();
        }
        Ok(sqlite)
    }

    pub(super) async fn rows(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        Ok(self.ask(sql, params).await?.0)
    }

    pub(super) async fn listed(
        &self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        self.rows(sql, params).await
    }

    pub(super) async fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, StoreError> {
        Ok(self.ask(sql, params).await?.1)
    }

    pub(super) async fn transaction(
        &self,
        statements: Vec<Statement>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        self.on(&self.writer, move |connection| all_or_none(connection, &statements)).await
    }

    async fn ask(&self, sql: &str, params: Vec<Value>) -> Result<Answer, StoreError> {
        let lane = if is_read(sql) { self.reader() } else { &self.writer };
        let sql = numbered(sql);
        self.on(lane, move |connection| query(connection, &sql, &params)).await
    }

    /// The reader with the fewest calls.
    fn reader(&self) -> &Lane {
        let quietest = self.readers.iter().min_by_key(|lane| lane.calls.load(Relaxed));
        quietest.unwrap_or(&self.writer)
    }

    /// Runs `work` on the connection's thread, after what waits there. Work whose caller has given
    /// up before its turn is not begun.
    async fn on<T: Send + 'static>(
        &self,
        lane: &Lane,
        work: impl FnOnce(&mut rusqlite::Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return Err(StoreError::Unavailable(format!("{MAX_WAITING} calls wait already")));
        };
        let queued = Queued::new(lane);
        let (counters, bound) = (Arc::clone(&self.counters), self.statement);
        let call = lane.connection.call_raw(move |connection| {
            let _place = place;
            counters.waited(queued.since.elapsed());
            if queued.since.elapsed() >= bound {
                return Err(StoreError::Unavailable(format!("no turn within {bound:?}")));
            }
            let _in_use = counters.in_use();
            work(connection)
        });
        match tokio::time::timeout(bound, call).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StoreError::Unavailable("the connection is closed".into())),
            Err(_) => Err(StoreError::Unavailable(format!("no answer within {bound:?}"))),
        }
    }
}

/// A call that a connection has, from when it was made to its end.
struct Queued {
    since: Instant,
    calls: Arc<AtomicUsize>,
}

impl Queued {
    fn new(lane: &Lane) -> Self {
        lane.calls.fetch_add(1, Relaxed);
        Self { since: Instant::now(), calls: Arc::clone(&lane.calls) }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Relaxed);
    }
}

/// The file and, where it has to be made, its folder are for this user only.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let unwritable =
        |error: std::io::Error| StoreError::ReadOnly(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(unwritable)?;
    }
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(unwritable)?;
    let mut permissions = file.metadata().map_err(unwritable)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        file.set_permissions(permissions).map_err(unwritable)?;
    }
    Ok(())
}

fn prepare(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; \
         PRAGMA temp_store = MEMORY;",
    )
}

async fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).await?;
    let set = connection.call_raw(|connection| {
        connection.set_prepared_statement_cache_capacity(PREPARED);
        connection.busy_timeout(BUSY)
    });
    match set.await {
        Ok(set) => set.map(|()| connection),
        Err(_) => Err(rusqlite::Error::InvalidQuery),
    }
}

/// `$1` as SQLite has it, `?1`: there, what begins with a dollar is a name.
fn numbered(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    for (index, part) in sql.split('$').enumerate() {
        let parameter = part.as_bytes().first().is_some_and(u8::is_ascii_digit);
        match index {
            0 => {}
            _ if parameter => text.push('?'),
            _ => text.push('$'),
        }
        text.push_str(part);
    }
    text
}

fn all_or_none(
    connection: &mut rusqlite::Connection,
    statements: &[Statement],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|error| fault(&error))?;
    let mut all = Vec::with_capacity(statements.len());
    // Many of the same follow each other, mostly.
    let (mut last, mut sql) = ("", String::new());
    for statement in statements {
        if *statement.sql != *last {
            (last, sql) = (&statement.sql, numbered(&statement.sql));
        }
        // Dropped, it is rolled back.
        let (rows, touched) = query(&transaction, &sql, &statement.params)?;
        if statement.expect.is_some_and(|expected| expected != touched) {
            return Err(StoreError::Stale);
        }
        all.push(rows);
    }
    transaction.commit().map_err(|error| fault(&error))?;
    Ok(all)
}

fn query(
    connection: &rusqlite::Connection,
    sql: &str,
    params: &[Value],
) -> Result<Answer, StoreError> {
    ask(connection, sql, params).map_err(|error| match duplicate(connection, &error) {
        Some(index) => StoreError::Duplicate(index),
        None => fault(&error),
    })
}

fn ask(connection: &rusqlite::Connection, sql: &str, params: &[Value]) -> rusqlite::Result<Answer> {
    let mut statement = connection.prepare_cached(sql)?;
    for (number, value) in params.iter().enumerate() {
        statement.raw_bind_parameter(number + 1, Bound(value))?;
    }
    let columns = statement.column_count();
    if columns == 0 {
        let touched = statement.raw_execute()?;
        return Ok((Vec::new(), touched as u64));
    }
    let (mut answer, mut rows) = (Vec::new(), statement.raw_query());
    while let Some(row) = rows.next()? {
        let values =
            (0..columns).map(|column| row.get_ref(column).and_then(|cell| read(column, cell)));
        answer.push(Row::new(values.collect::<rusqlite::Result<_>>()?));
    }
    let touched = answer.len() as u64;
    Ok((answer, touched))
}

/// A value on its way into a statement, where it is copied.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Bool(value) => ValueRef::Integer((*value).into()),
            Value::Int(value) => ValueRef::Integer(*value),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
            Value::Uuid(id) => ValueRef::Blob(id.as_bytes()),
            Value::Time(at) => ValueRef::Integer(at.0),
            Value::List(_) => return Err(rusqlite::Error::InvalidQuery),
        }))
    }
}

fn read(column: usize, cell: ValueRef<'_>) -> rusqlite::Result<Value> {
    Ok(match cell {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Int(value),
        ValueRef::Text(text) => {
            let text =
                str::from_utf8(text).map_err(|error| rusqlite::Error::Utf8Error(column, error))?;
            Value::Text(text.to_owned())
        }
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => {
            let kind = rusqlite::types::Type::Real;
            return Err(rusqlite::Error::InvalidColumnType(column, "a sum".into(), kind));
        }
    })
}

/// The name of the unique index that refused a row, as PostgreSQL would say it.
fn duplicate(connection: &rusqlite::Connection, error: &rusqlite::Error) -> Option<String> {
    let rusqlite::Error::SqliteFailure(code, Some(message)) = error else { return None };
    let unique =
        [rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE, rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY];
    if !unique.contains(&code.extended_code) {
        return None;
    }
    let what = message.strip_prefix("UNIQUE constraint failed: ")?;
    if let Some(index) = what.strip_prefix("index '") {
        return Some(index.trim_end_matches('\'').to_owned());
    }
    // It says which columns they are: `domains.user_id, domains.name`.
    let columns: Vec<_> = what.split(", ").filter_map(|column| column.split_once('.')).collect();
    let table = columns.first()?.0;
    let columns = columns.iter().map(|column| column.1).collect::<Vec<_>>().join(",");
    if code.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY {
        return Some(format!("{table}_pkey"));
    }
    let found = connection.query_row(
        "SELECT l.name FROM pragma_index_list(?1) AS l WHERE l.\"unique\" AND l.origin = 'c' AND \
         (SELECT group_concat(i.name, ',') FROM pragma_index_info(l.name) AS i) = ?2",
        [table, &columns],
        |row| row.get(0),
    );
    Some(found.unwrap_or_else(|_| format!("{table}_{}_key", columns.replace(',', "_"))))
}

/// Which of our errors one of SQLite's is.
pub(super) fn fault(error: &rusqlite::Error) -> StoreError {
    let rusqlite::Error::SqliteFailure(code, message) = error else {
        return StoreError::Other(error.to_string());
    };
    let message = message.clone().unwrap_or_else(|| code.to_string());
    match code.code {
        ErrorCode::ConstraintViolation => StoreError::Refused(message),
        ErrorCode::TooBig | ErrorCode::TypeMismatch => StoreError::Refused(message),
        ErrorCode::DiskFull
        | ErrorCode::ReadOnly
        | ErrorCode::SystemIoFailure
        | ErrorCode::CannotOpen
        | ErrorCode::PermissionDenied => StoreError::ReadOnly(message),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OperationInterrupted => {
            StoreError::Unavailable(message)
        }
        _ => StoreError::Other(message),
    }
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn parameters_are_numbered_and_other_dollars_stay() {
        let sql = "SELECT $1, $12 FROM t WHERE a ->> '$.b' = $2 AND c = '$'";
        assert_eq!(numbered(sql), "SELECT ?1, ?12 FROM t WHERE a ->> '$.b' = ?2 AND c = '$'");
    }
}
