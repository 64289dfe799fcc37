//! Everything from one store into another, from SQLite to PostgreSQL for instance, and the proof that
//! it is the same there.

use sha2::{Digest as _, Sha256};

use super::{Statement, Store, StoreError, Value, query::Query};

/// Rows that are read at a time.
const BATCH: usize = 500;
/// Parameters of one statement: SQLite takes 32,766 of them.
const PARAMS: usize = 10_000;

/// A table: its name, its key, and the columns whose text is JSON.
struct Table {
    name: &'static str,
    key: &'static [&'static str],
    json: &'static [&'static str],
}

const fn table(name: &'static str, key: &'static [&'static str]) -> Table {
    Table { name, key, json: &[] }
}

/// What is pointed to comes before what points to it.
const TABLES: &[Table] = &[
    table("plans", &["name"]),
    table("users", &["id"]),
    table("logins", &["id"]),
    table("signing_keys", &["kid"]),
    table("invites", &["id"]),
    Table { name: "tunnels", key: &["id"], json: &["metadata"] },
    table("tunnel_sessions", &["id"]),
    table("tunnel_requests", &["id"]),
    Table { name: "tunnel_tokens", key: &["id"], json: &["scopes"] },
    table("domains", &["id"]),
    table("acme_accounts", &["id"]),
    table("certificates", &["id"]),
    table("captures", &["id"]),
    Table { name: "audit_log", key: &["id"], json: &["details"] },
    table("idempotency_keys", &["user_id", "key"]),
    table("request_minutes", &["tunnel_id", "minute", "server_id"]),
    table("request_hours", &["tunnel_id", "hour"]),
    table("usage_months", &["user_id", "month"]),
    table("jobs", &["name"]),
];

/// What an edge writes by itself before anybody uses it: it is replaced.
const REPLACED: &[&str] = &["plans", "signing_keys", "jobs"];

/// A table that has been copied and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub table: &'static str,
    pub rows: u64,
    /// Over all values in the order of the key, the same in both; hexadecimal.
    pub sha256: String,
}

/// Why a copy has failed. The target may hold a part of it then: begin again with an empty one.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the target is not empty: it has rows in {0}")]
    NotEmpty(&'static str),
    #[error("{0} has other columns there: migrate both stores with the same release first")]
    Columns(&'static str),
    #[error("{table} is not the same there: {from} rows became {to}, or their values differ")]
    Differs { table: &'static str, from: u64, to: u64 },
    #[error("{table}: {error}")]
    Store { table: &'static str, error: StoreError },
}

impl Store {
    /// Copies all rows of `from` into `to`, which has the same tables and no rows of users, and
    /// compares them. Nobody else may write to either of them meanwhile. `progress` is told of each
    /// batch: the table, and its rows up to then.
    ///
    /// # Errors
    /// [`CopyError`].
    pub async fn copy(
        from: &Self,
        to: &Self,
        mut progress: impl FnMut(&'static str, u64),
    ) -> Result<Vec<Copied>, CopyError> {
        for table in TABLES.iter().filter(|table| !REPLACED.contains(&table.name)) {
            let sql = format!("SELECT 1 FROM {} LIMIT 1", table.name);
            if to.row(&sql, Vec::new()).await.map_err(table.fault())?.is_some() {
                return Err(CopyError::NotEmpty(table.name));
            }
        }
        for table in REPLACED {
            let deleted = to.execute(&format!("DELETE FROM {table}"), Vec::new()).await;
            deleted.map_err(|error| CopyError::Store { table, error })?;
        }
        let mut done = Vec::with_capacity(TABLES.len());
        for table in TABLES {
            done.push(table.copy(from, to, &mut progress).await?);
        }
        Ok(done)
    }
}

impl Table {
    async fn copy(
        &self,
        from: &Store,
        to: &Store,
        progress: &mut impl FnMut(&'static str, u64),
    ) -> Result<Copied, CopyError> {
        let columns = columns_of(from, self.name).await.map_err(self.fault())?;
        let there = columns_of(to, self.name).await.map_err(self.fault())?;
        if columns != there {
            return Err(CopyError::Columns(self.name));
        }
        let mut source = Reading::new(self, from, &columns);
        while let Some(rows) = source.next().await.map_err(self.fault())? {
            let statements = inserts(self.name, &columns, rows);
            to.transaction(statements).await.map_err(self.fault())?;
            progress(self.name, source.rows);
        }
        let mut target = Reading::new(self, to, &columns);
        while target.next().await.map_err(self.fault())?.is_some() {}
        let (rows, there) = (source.rows, target.rows);
        let sha256 = source.hash();
        if rows != there || sha256 != target.hash() {
            return Err(CopyError::Differs { table: self.name, from: rows, to: there });
        }
        Ok(Copied { table: self.name, rows, sha256 })
    }

    fn fault(&self) -> impl Fn(StoreError) -> CopyError + use<> {
        let table = self.name;
        move |error| CopyError::Store { table, error }
    }
}

/// A table from its first row to its last, in the order of its key.
struct Reading<'a> {
    table: &'a Table,
    store: &'a Store,
    columns: &'a [String],
    /// The key of the last row that was read.
    after: Option<Vec<Value>>,
    rows: u64,
    hash: Sha256,
}

impl<'a> Reading<'a> {
    fn new(table: &'a Table, store: &'a Store, columns: &'a [String]) -> Self {
        Self { table, store, columns, after: None, rows: 0, hash: Sha256::new() }
    }

    async fn next(&mut self) -> Result<Option<Vec<Vec<Value>>>, StoreError> {
        let key = self.table.key.join(", ");
        let mut query =
            Query::new(&format!("SELECT {} FROM {}", self.columns.join(", "), self.table.name));
        if let Some(after) = self.after.take() {
            let names: Vec<_> = after.into_iter().map(|value| query.bind(value)).collect();
            query.and(&format!("({key}) > ({})", names.join(", ")));
        }
        query.sql.push_str(&format!(" ORDER BY {key} LIMIT {BATCH}"));
        let rows = self.store.rows(&query.sql, query.params).await?;
        let rows: Vec<_> = rows.into_iter().map(super::Row::into_values).collect();
        let Some(last) = rows.last() else { return Ok(None) };
        let of_key = |name: &&str| self.columns.iter().position(|column| column == name);
        self.after =
            Some(self.table.key.iter().filter_map(of_key).map(|at| last[at].clone()).collect());
        self.rows += rows.len() as u64;
        for row in &rows {
            for (column, value) in self.columns.iter().zip(row) {
                let is_json = self.table.json.contains(&column.as_str());
                add(&mut self.hash, value, is_json);
            }
        }
        Ok(Some(rows))
    }

    fn hash(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A value in the one form that both databases can be brought to: booleans and times are numbers,
/// identifiers are bytes, and JSON has its keys in order.
fn add(hash: &mut Sha256, value: &Value, is_json: bool) {
    let mut put = |kind: u8, bytes: &[u8]| {
        hash.update([kind]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    match value {
        Value::Null | Value::List(_) => put(0, &[]),
        Value::Bool(value) => put(1, &i64::from(*value).to_be_bytes()),
        Value::Int(value) => put(1, &value.to_be_bytes()),
        Value::Time(at) => put(1, &at.0.to_be_bytes()),
        Value::Text(text) if is_json => match serde_json::from_str(text) {
            Ok(json) => put(2, in_order(json).to_string().as_bytes()),
            Err(_) => put(2, text.as_bytes()),
        },
        Value::Text(text) => put(2, text.as_bytes()),
        Value::Bytes(bytes) => put(3, bytes),
        Value::Uuid(id) => put(3, id.as_bytes()),
    }
}

/// PostgreSQL keeps what JSON means and not how it was written.
fn in_order(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match json {
        Json::Object(fields) => {
            let mut fields: Vec<_> =
                fields.into_iter().map(|(name, value)| (name, in_order(value))).collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            Json::Object(fields.into_iter().collect())
        }
        Json::Array(values) => Json::Array(values.into_iter().map(in_order).collect()),
        // 1.0 and 1e0 are 1 there.
        Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(value) if value.fract() == 0.0 => Json::String(format!("{value:.0}")),
            Some(value) => Json::String(value.to_string()),
            None => Json::String(number.to_string()),
        },
        other => other,
    }
}

/// As many rows in a statement as its parameters allow.
fn inserts(table: &str, columns: &[String], rows: Vec<Vec<Value>>) -> Vec<Statement> {
    let at_once = (PARAMS / columns.len().max(1)).max(1);
    let mut rows = rows.into_iter().peekable();
    let mut statements = Vec::new();
    while rows.peek().is_some() {
        let mut query =
            Query::new(&format!("INSERT INTO {table} ({}) VALUES ", columns.join(", ")));
        for (number, row) in rows.by_ref().take(at_once).enumerate() {
            let names: Vec<_> = row.into_iter().map(|value| query.bind(value)).collect();
            let comma = if number == 0 { "" } else { ", " };
            query.sql.push_str(&format!("{comma}({})", names.join(", ")));
        }
        statements.push(Statement::new(query.sql, query.params));
    }
    statements
}

/// In the order of the alphabet.
async fn columns_of(store: &Store, table: &str) -> Result<Vec<String>, StoreError> {
    let sql = store.dialect(
        "SELECT column_name FROM information_schema.columns \
         WHERE table_schema = current_schema() AND table_name = $1 ORDER BY column_name COLLATE \"C\"",
        "SELECT name FROM pragma_table_info($1) ORDER BY name",
    );
    let rows = store.rows(sql, vec![table.into()]).await?;
    rows.into_iter().map(|mut row| row.take()).collect()
}
