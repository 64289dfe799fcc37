//! The request log: rows come in batches, are listed by tunnel and go by the day.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, Value, query::Query, values};

/// Rows of one statement.
const BATCH: usize = 1_000;
/// Characters of a path.
pub const PATH_MAX: usize = 500;
/// What stands for the rest of a text that was cut.
const CUT: char = '…';

macro_rules! columns {
    () => {
        "r.id, r.tunnel_id, r.request_id, r.method, r.path, r.status_code, r.latency_ms, \
         r.request_size, r.response_size, r.created_at, r.visitor, r.error_code"
    };
}

/// One request that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Of the request itself; it holds its time (UUID v7).
    pub id: Uuid,
    pub tunnel_id: Uuid,
    /// As visitors and local servers see it.
    pub request_id: String,
    pub method: String,
    /// Cut to [`PATH_MAX`] characters, with a mark.
    pub path: String,
    pub status_code: Option<u16>,
    pub latency_ms: Option<u32>,
    pub request_size: Option<u64>,
    pub response_size: Option<u64>,
    pub created_at: Timestamp,
    pub visitor: String,
    /// The UR- number of an error of ours; 0: none.
    pub error_code: u32,
}

impl RequestRow {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.take()?,
            tunnel_id: row.take()?,
            request_id: row.take()?,
            method: row.take()?,
            path: row.take()?,
            status_code: row.take()?,
            latency_ms: row.take()?,
            request_size: row.take()?,
            response_size: row.take()?,
            created_at: row.take()?,
            visitor: row.take()?,
            error_code: row.take()?,
        })
    }

    /// As its columns take it: one row that does not fit would cost the whole batch.
    fn values(&self) -> Vec<Value> {
        values![
            self.id,
            self.tunnel_id,
            cut(&self.request_id, 255),
            cut(&self.method, 32),
            cut(&self.path, PATH_MAX),
            self.status_code,
            self.latency_ms.map(|latency| latency.min(i32::MAX as u32)),
            self.request_size,
            self.response_size,
            self.created_at,
            cut(&self.visitor, 64),
            self.error_code.min(i32::MAX as u32),
        ]
    }
}

/// Which requests of a tunnel a list shows.
#[derive(Clone, Debug, Default)]
pub struct RequestFilter {
    pub status_from: Option<u16>,
    /// This one is among them.
    pub status_to: Option<u16>,
    pub method: Option<String>,
    pub path_contains: Option<String>,
    pub from: Option<Timestamp>,
    /// This one is not among them.
    pub to: Option<Timestamp>,
    /// Only those that failed: by an error of ours, or a status of 500 or more.
    pub errors_only: bool,
    /// The last row of the page before.
    pub after: Option<Uuid>,
    pub limit: u32,
}

impl Store {
    /// Writes requests down, and says how many are new: those of tunnels that have vanished are left
    /// out, and those that are there already stay, so that a batch may be written again when nobody
    /// knows what became of it.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been written.
    pub async fn insert_requests(&self, rows: &[RequestRow]) -> Result<u64, StoreError> {
        let mut written = 0;
        for batch in rows.chunks(BATCH) {
            written += self.insert_batch(batch).await?;
        }
        Ok(written)
    }

    async fn insert_batch(&self, rows: &[RequestRow]) -> Result<u64, StoreError> {
        if self.is_postgres() {
            let mut columns = vec![Vec::new(); 12];
            for row in rows {
                for (column, value) in columns.iter_mut().zip(row.values()) {
                    column.push(value);
                }
            }
            let sql = "INSERT INTO tunnel_requests (id, tunnel_id, request_id, method, path, \
                       status_code, latency_ms, request_size, response_size, created_at, visitor, \
                       error_code) SELECT r.* FROM unnest($1::uuid[], $2::uuid[], $3::text[], \
                       $4::text[], $5::text[], $6::integer[], $7::integer[], $8::bigint[], \
                       $9::bigint[], $10::timestamptz[], $11::text[], $12::integer[]) \
                       AS r (id, tunnel_id) JOIN tunnels AS t ON t.id = r.tunnel_id \
                       FOR KEY SHARE OF t ON CONFLICT DO NOTHING";
            return self.execute(sql, columns.into_iter().map(Value::List).collect()).await;
        }
        let sql = "INSERT INTO tunnel_requests (id, tunnel_id, request_id, method, path, \
                   status_code, latency_ms, request_size, response_size, created_at, visitor, \
                   error_code) SELECT $1, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 \
                   FROM tunnels WHERE id = $2 ON CONFLICT DO NOTHING RETURNING 1";
        let each = rows.iter().map(|row| Statement::new(sql, row.values()));
        let written = self.transaction(each.collect()).await?;
        Ok(written.iter().map(|rows| rows.len() as u64).sum())
    }

    /// A page of a tunnel's requests, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_requests(
        &self,
        tunnel: Uuid,
        filter: &RequestFilter,
    ) -> Result<Vec<RequestRow>, StoreError> {
        let mut query = Query::new(concat!("SELECT ", columns!(), " FROM tunnel_requests AS r"));
        query.and_some("r.tunnel_id =", Some(tunnel));
        query.and_some("r.status_code >=", filter.status_from);
        query.and_some("r.status_code <=", filter.status_to);
        query.and_some("r.method =", filter.method.as_ref());
        if let Some(part) = &filter.path_contains {
            let part = query.bind(part);
            let position = self.dialect("strpos", "instr");
            query.and(&format!("{position}(r.path, {part}) > 0"));
        }
        query.and_some("r.created_at >=", filter.from);
        query.and_some("r.created_at <", filter.to);
        if filter.errors_only {
            query.and("(r.error_code <> 0 OR r.status_code >= 500)");
        }
        let query = query.page("r.id", filter.after, filter.limit);
        let rows = self.listed(&query.sql, query.params).await?;
        rows.into_iter().map(RequestRow::read).collect()
    }

    /// One request, of `user`'s tunnels where that is said.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn request(
        &self,
        user: Option<Uuid>,
        id: Uuid,
    ) -> Result<Option<RequestRow>, StoreError> {
        let mut query = Query::new(concat!(
            "SELECT ",
            columns!(),
            " FROM tunnel_requests AS r JOIN tunnels AS t ON t.id = r.tunnel_id"
        ));
        query.and_some("r.id =", Some(id));
        query.and_some("t.user_id =", user);
        self.row(&query.sql, query.params).await?.map(RequestRow::read).transpose()
    }
}

/// At most `max` characters, the last one a mark where it was more; without zeros, which PostgreSQL
/// does not take.
fn cut(text: &str, max: usize) -> String {
    let mut cut: String = text.chars().take(max + 1).collect();
    if let Some((at, _)) = cut.char_indices().nth(max) {
        cut.truncate(at);
        cut.pop();
        cut.push(CUT);
    }
    if cut.contains('\0') { cut.replace('\0', "\u{fffd}") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn texts_are_cut_by_characters() {
        assert_eq!(cut("/ä/b", 4), "/ä/b");
        assert_eq!(cut("/ä/bc", 4), "/ä/…");
        assert_eq!(cut("a\0b", 4), "a\u{fffd}b");
        assert_eq!(cut("", 4), "");
    }
}
