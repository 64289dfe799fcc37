//! The rows in PostgreSQL: a pool of connections, statements that are prepared once on each, values
//! in their binary form.

use std::{
    error::Error as _,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_postgres::{
    GenericClient, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};
use futures_util::TryStreamExt as _;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::timeout;
use tokio_postgres::{
    Config,
    config::SslMode,
    error::SqlState,
    types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::bytes::BytesMut;
use uuid::Uuid;

use super::{
    Row, Statement, StoreError, StoreOptions, Timestamp, Value, health::Counters, is_read,
    url::Server,
};

/// A connection that was idle for longer is asked for a sign of life before it is used: what lies
/// between may have forgotten it.
const STALE: Duration = Duration::from_secs(10);
/// How long that sign may take.
const SIGN: Duration = Duration::from_secs(1);
/// Bytes that are not acknowledged for so long are the end of a connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How often a call is made again: one that the server has undone by itself, to end a deadlock, or
/// a read whose connection was dead.
const AGAIN: u32 = 3;
/// Times that a transaction's bound is longer than a statement's.
const TRANSACTION: u32 = 3;
/// From 1970 to 2000, where PostgreSQL counts from; in microseconds.
const EPOCH: i64 = 946_684_800_000_000;

#[derive(Clone)]
pub(super) struct Postgres {
    pool: Pool,
    /// For lists.
    replica: Option<Pool>,
    /// Without the bound on statements, for what is done by hand.
    alone: Arc<(Config, MakeRustlsConnect)>,
    statement: Duration,
    counters: Arc<Counters>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("pool", &self.pool.status()).finish_non_exhaustive()
    }
}

/// What a statement gave: its rows, and how many it touched.
type Answer = (Vec<Row>, u64);

/// Why a statement failed, and what may be done about it.
struct Fault {
    error: StoreError,
    /// The server has taken everything back, and it may be tried again.
    undone: bool,
    /// The connection is of no use any more.
    lost: bool,
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self { error, undone: false, lost: false }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        fault(&error)
    }
}

impl Postgres {
    /// Opens no connection yet.
    pub(super) fn open(
        server: &Server,
        replica: Option<&Server>,
        options: &StoreOptions,
        counters: Arc<Counters>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            pool: pool(server, options)?,
            replica: replica.map(|replica| pool(replica, options)).transpose()?,
            alone: Arc::new((unbounded(server, options), connector(server)?)),
            statement: options.statement,
            counters,
        })
    }

    pub(super) async fn rows(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        Ok(self.ask(&self.pool, sql, &params).await?.0)
    }

    /// From the replica; from the primary where there is none, or none that answers.
    pub(super) async fn listed(
        &self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        if let Some(replica) = &self.replica {
            match self.ask(replica, sql, &params).await {
                Err(StoreError::Unavailable(reason)) => {
                    tracing::debug!(reason, "the read replica does not answer");
                }
                answer => return Ok(answer?.0),
            }
        }
        self.rows(sql, params).await
    }

    pub(super) async fn execute(&self, sql: &str, params: Vec<Value>) -> Result<u64, StoreError> {
        Ok(self.ask(&self.pool, sql, &params).await?.1)
    }

    pub(super) async fn transaction(
        &self,
        statements: Vec<Statement>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let mut tries = 0;
        loop {
            match self.all_or_none(&statements).await {
                Ok(rows) => return Ok(rows),
                Err(fault) if fault.undone && tries < AGAIN => tries += 1,
                Err(fault) => return Err(fault.error),
            }
        }
    }

    /// Statements without parameters that are not worth being prepared, all or none.
    pub(super) async fn batch(&self, sql: &str) -> Result<(), StoreError> {
        let mut client = self.connection(&self.pool).await.map_err(|fault| fault.error)?;
        let work = async {
            let transaction = client.transaction().await?;
            transaction.batch_execute(sql).await?;
            Ok(transaction.commit().await?)
        };
        let done = self.bounded(self.statement, work).await;
        self.give_back(client, &done);
        done.map_err(|fault| fault.error)
    }

    /// A connection that is not of the pool and whose statements may take as long as they like.
    pub(super) async fn alone(&self) -> Result<tokio_postgres::Client, StoreError> {
        let (config, tls) = &*self.alone;
        let (client, connection) =
            config.connect(tls.clone()).await.map_err(|error| fault(&error).error)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL has ended");
            }
        });
        Ok(client)
    }

    async fn ask(&self, pool: &Pool, sql: &str, params: &[Value]) -> Result<Answer, StoreError> {
        let mut tries = 0;
        loop {
            let fault = match self.once(pool, sql, params).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let again =
                (fault.undone && tries < AGAIN) || (fault.lost && is_read(sql) && tries < 1);
            if !again {
                return Err(fault.error);
            }
            tries += 1;
        }
    }

    async fn once(&self, pool: &Pool, sql: &str, params: &[Value]) -> Result<Answer, Fault> {
        let client = self.connection(pool).await?;
        let _in_use = self.counters.in_use();
        let answer = self.bounded(self.statement, query(&client, sql, params)).await;
        self.give_back(client, &answer);
        answer
    }

    async fn all_or_none(&self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, Fault> {
        let mut client = self.connection(&self.pool).await?;
        let _in_use = self.counters.in_use();
        let work = async {
            let transaction = client.transaction().await?;
            let mut all = Vec::with_capacity(statements.len());
            for statement in statements {
                let (rows, touched) =
                    query(&transaction, &statement.sql, &statement.params).await?;
                if statement.expect.is_some_and(|expected| expected != touched) {
                    transaction.rollback().await?;
                    return Err(StoreError::Stale.into());
                }
                all.push(rows);
            }
            transaction.commit().await?;
            Ok(all)
        };
        let done = self.bounded(self.statement * TRANSACTION, work).await;
        self.give_back(client, &done);
        done
    }

    async fn connection(&self, pool: &Pool) -> Result<Object, Fault> {
        let began = Instant::now();
        let got = pool.get().await;
        self.counters.waited(began.elapsed());
        got.map_err(|error| {
            let reason = match error {
                PoolError::Timeout(kind) => format!("no connection in time ({kind:?})"),
                PoolError::Backend(error) => said(&error),
                PoolError::Closed | PoolError::NoRuntimeSpecified => "the pool is closed".into(),
                PoolError::PostCreateHook(_) => "a new connection is of no use".into(),
            };
            StoreError::Unavailable(reason).into()
        })
    }

    async fn bounded<T>(
        &self,
        bound: Duration,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        timeout(bound, work).await.unwrap_or_else(|_| {
            let error = StoreError::Unavailable(format!("no answer within {bound:?}"));
            Err(Fault { error, undone: false, lost: true })
        })
    }

    /// Back into the pool, or out of it: an answer that nobody waits for any more would be in the way
    /// of the next one's. Those that are idle are most likely dead as well then.
    fn give_back<T>(&self, client: Object, outcome: &Result<T, Fault>) {
        if outcome.as_ref().is_err_and(|fault| fault.lost) {
            drop(Object::take(client));
            for pool in [Some(&self.pool), self.replica.as_ref()].into_iter().flatten() {
                pool.retain(|_, _| false);
            }
        }
    }
}

async fn query(client: &impl GenericClient, sql: &str, params: &[Value]) -> Result<Answer, Fault> {
    let statement = client.prepare_cached(sql).await?;
    let stream = client.query_raw(&statement, params.iter().map(Param)).await?;
    let mut stream = std::pin::pin!(stream);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        let cells = (0..row.len()).map(|column| row.try_get::<_, Cell>(column).map(|cell| cell.0));
        rows.push(Row::new(cells.collect::<Result<_, _>>()?));
    }
    Ok((rows, stream.rows_affected().unwrap_or(0)))
}

fn pool(server: &Server, options: &StoreOptions) -> Result<Pool, StoreError> {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(config(server, options), connector(server)?, recycling);
    let awake = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, metrics| {
        Box::pin(async move {
            if metrics.last_used() < STALE {
                return Ok(());
            }
            match timeout(SIGN, client.simple_query("")).await {
                Ok(Ok(_)) => Ok(()),
                _ => Err(HookError::message("no sign of life")),
            }
        })
    });
    Pool::builder(manager)
        .max_size(options.connections.max(1))
        .wait_timeout(Some(options.wait))
        .create_timeout(Some(options.connect))
        .recycle_timeout(Some(options.connect))
        .pre_recycle(awake)
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| StoreError::Other(error.to_string()))
}

fn unbounded(server: &Server, options: &StoreOptions) -> Config {
    let mut config = server.config.clone();
    config.connect_timeout(options.connect);
    config.keepalives_idle(KEEPALIVE).tcp_user_timeout(UNACKNOWLEDGED);
    if config.get_application_name().is_none() {
        config.application_name("uniroute-edge");
    }
    config
}

fn config(server: &Server, options: &StoreOptions) -> Config {
    let mut config = unbounded(server, options);
    // The server gives up as well: a statement that nobody waits for holds locks.
    let bound = format!("-c statement_timeout={}", options.statement.as_millis());
    let own = config.get_options().map(|own| format!("{bound} {own}"));
    config.options(own.unwrap_or(bound));
    config
}

/// TLS towards the server. Whoever it says it is has to be proven, by an authority that the system
/// trusts or by the one that the address names.
fn connector(server: &Server) -> Result<MakeRustlsConnect, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = &server.root_certificate {
        let fault = |error: &dyn fmt::Display| {
            StoreError::Other(format!("sslrootcert {}: {error}", path.display()))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fault(&error))? {
            let certificate = certificate.map_err(|error| fault(&error))?;
            roots.add(certificate).map_err(|error| fault(&error))?;
        }
        if roots.is_empty() {
            return Err(fault(&"there is no certificate in it"));
        }
    } else if server.config.get_ssl_mode() != SslMode::Disable {
        let (added, _) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 && server.config.get_ssl_mode() == SslMode::Require {
            let reason = "this system trusts no authority: name one with sslrootcert=FILE";
            return Err(StoreError::Other(reason.into()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Other(error.to_string()))?;
    Ok(MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Which of our errors one of the server's or the connection's is.
fn fault(error: &tokio_postgres::Error) -> Fault {
    let Some(db) = error.as_db_error() else {
        return match error.source().and_then(|source| source.downcast_ref::<Unfit>()) {
            Some(unfit) => StoreError::Refused(unfit.to_string()).into(),
            None => unanswered(error),
        };
    };
    let code = db.code();
    let class = &code.code()[..2];
    let message = || format!("{} ({})", db.message(), code.code());
    if *code == SqlState::UNIQUE_VIOLATION {
        return StoreError::Duplicate(db.constraint().unwrap_or_default().into()).into();
    }
    let error = match class {
        "23" => StoreError::Refused(db.constraint().unwrap_or(db.message()).into()),
        // These would quote the value.
        "22" if code.code().starts_with("22P") => StoreError::Refused(code.code().into()),
        "22" => StoreError::Refused(message()),
        _ if [SqlState::DISK_FULL, SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::IO_ERROR]
            .contains(code) =>
        {
            StoreError::ReadOnly(message())
        }
        "08" | "40" | "53" | "55" | "57" | "28" | "3D" => StoreError::Unavailable(message()),
        _ if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(code) => {
            StoreError::Other(format!("{}; run `uniroute-edge migrate`", message()))
        }
        _ => StoreError::Other(message()),
    };
    // What was prepared is of no use after a migration; nothing was done then.
    let outdated = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];
    let outdated = outdated.contains(code);
    let lost = outdated || class == "08" || code.code().starts_with("57P");
    // A read-only server is what a primary becomes that was replaced: look for the new one.
    let lost = lost || *code == SqlState::READ_ONLY_SQL_TRANSACTION;
    Fault { error, undone: class == "40" || outdated, lost }
}

/// The connection failed, or the answer makes no sense.
fn unanswered(error: &tokio_postgres::Error) -> Fault {
    let text = said(error);
    // The library does not say which it was; a column that does not fit is the only other one.
    let ours = text.starts_with("error deserializing")
        || text.starts_with("error serializing")
        || text.starts_with("expected ");
    let error = if ours { StoreError::Other(text) } else { StoreError::Unavailable(text) };
    Fault { error, undone: false, lost: !ours }
}

/// An error with its causes.
fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// A value that its column does not take.
#[derive(Debug, thiserror::Error)]
#[error("a value of another kind or size than its column's, which is {0}")]
struct Unfit(String);

/// A value on its way into a statement, in the form that the server wants there. Numbers and bytes
/// stand for times, booleans and identifiers too, as SQLite has them.
#[derive(Debug)]
struct Param<'a>(&'a Value);

impl ToSql for Param<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let unfit = || Unfit(kind.name().to_owned());
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::Bool(value) if *kind == Type::BOOL => out.extend_from_slice(&[(*value).into()]),
            Value::Int(value) => int(*value, kind, out).ok_or_else(unfit)?,
            Value::Time(Timestamp(at)) if *kind == Type::TIMESTAMPTZ => {
                out.extend_from_slice(&at.saturating_sub(EPOCH).to_be_bytes());
            }
            Value::Text(text) => match *kind {
                Type::JSONB => {
                    out.extend_from_slice(&[1]);
                    out.extend_from_slice(text.as_bytes());
                }
                Type::TEXT
                | Type::VARCHAR
                | Type::BPCHAR
                | Type::NAME
                | Type::JSON
                | Type::UNKNOWN => out.extend_from_slice(text.as_bytes()),
                _ => return Err(unfit().into()),
            },
            Value::Bytes(bytes)
                if *kind == Type::BYTEA || (*kind == Type::UUID && bytes.len() == 16) =>
            {
                out.extend_from_slice(bytes);
            }
            Value::Uuid(id) if *kind == Type::UUID => out.extend_from_slice(id.as_bytes()),
            Value::List(values) if matches!(kind.kind(), Kind::Array(_)) => {
                return values.iter().map(Param).collect::<Vec<_>>().to_sql(kind, out);
            }
            _ => return Err(unfit().into()),
        }
        Ok(IsNull::No)
    }

    /// Said by [`ToSql::to_sql`], which knows the value.
    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn int(value: i64, kind: &Type, out: &mut BytesMut) -> Option<()> {
    match *kind {
        Type::INT2 => out.extend_from_slice(&i16::try_from(value).ok()?.to_be_bytes()),
        Type::INT4 => out.extend_from_slice(&i32::try_from(value).ok()?.to_be_bytes()),
        Type::INT8 => out.extend_from_slice(&value.to_be_bytes()),
        Type::TIMESTAMPTZ => out.extend_from_slice(&value.saturating_sub(EPOCH).to_be_bytes()),
        Type::BOOL => {
            let bit = u8::try_from(value).ok().filter(|bit| *bit <= 1)?;
            out.extend_from_slice(&[bit]);
        }
        _ => return None,
    }
    Some(())
}

/// A value on its way out of a row.
struct Cell(Value);

impl<'a> FromSql<'a> for Cell {
    fn from_sql(
        kind: &Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *kind {
            Type::BOOL => Value::Bool(raw != [0]),
            Type::INT2 => Value::Int(i16::from_be_bytes(raw.try_into()?).into()),
            Type::INT4 => Value::Int(i32::from_be_bytes(raw.try_into()?).into()),
            Type::INT8 => Value::Int(i64::from_be_bytes(raw.try_into()?)),
            Type::OID => Value::Int(u32::from_be_bytes(raw.try_into()?).into()),
            Type::NUMERIC => Value::Int(whole(raw).ok_or_else(|| Unfit(kind.name().to_owned()))?),
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::UNKNOWN => {
                Value::Text(std::str::from_utf8(raw)?.to_owned())
            }
            Type::JSONB => {
                let text = raw.strip_prefix(&[1]).ok_or_else(|| Unfit("jsonb".into()))?;
                Value::Text(std::str::from_utf8(text)?.to_owned())
            }
            Type::BYTEA => Value::Bytes(raw.to_vec()),
            Type::UUID => Value::Uuid(Uuid::from_slice(raw)?),
            Type::TIMESTAMPTZ => {
                let since = i64::from_be_bytes(raw.try_into()?);
                Value::Time(Timestamp(since.saturating_add(EPOCH)))
            }
            Type::VOID => Value::Null,
            _ => return Err(Unfit(kind.name().to_owned()).into()),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Value::Null))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A whole number of the kind that sums have: digits to the base of 10,000, after four short words.
fn whole(raw: &[u8]) -> Option<i64> {
    let word = |at: usize| Some(i16::from_be_bytes(raw.get(at * 2..at * 2 + 2)?.try_into().ok()?));
    let (digits, weight, sign) = (word(0)?, word(1)?, word(2)?);
    if digits > weight + 1 || !matches!(sign, 0 | 0x4000) {
        return None;
    }
    let mut value = 0_i64;
    for place in 0..=weight {
        let digit = if place < digits { word(4 + usize::try_from(place).ok()?)? } else { 0 };
        value = value.checked_mul(10_000)?.checked_add(digit.into())?;
    }
    Some(if sign == 0 { value } else { -value })
}
