//! Sessions of agents: one row for each tunnel that one serves or served.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, Value, query::Query, values};

/// Rows of one statement, in what is done to many.
const BATCH: usize = 1_000;
/// Sessions that were left behind are closed in slices.
const ORPHANS: i64 = 1_000;

macro_rules! columns {
    () => {
        "s.id, s.session_id, s.tunnel_id, s.client_id, s.server_id, s.token_id, s.peer, \
         s.agent_version, s.connected_at, s.disconnected_at, s.last_heartbeat, s.status"
    };
}

/// A session's part in a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    pub id: Uuid,
    /// Of the agent's connection, the same for all its tunnels.
    pub session_id: Uuid,
    pub tunnel_id: Uuid,
    /// The agent.
    pub client_id: String,
    /// The edge.
    pub server_id: String,
    pub token_id: Option<Uuid>,
    /// Where it came from.
    pub peer: String,
    pub agent_version: String,
    pub connected_at: Timestamp,
    pub disconnected_at: Option<Timestamp>,
    pub last_heartbeat: Option<Timestamp>,
    /// `connected` or `disconnected`.
    pub status: String,
}

impl SessionRow {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.take()?,
            session_id: row.take()?,
            tunnel_id: row.take()?,
            client_id: row.take()?,
            server_id: row.take()?,
            token_id: row.take()?,
            peer: row.take()?,
            agent_version: row.take()?,
            connected_at: row.take()?,
            disconnected_at: row.take()?,
            last_heartbeat: row.take()?,
            status: row.take()?,
        })
    }
}

/// Which sessions a list shows.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Of this user's tunnels.
    pub user: Option<Uuid>,
    pub tunnel: Option<Uuid>,
    /// The agent's connection.
    pub session: Option<Uuid>,
    /// Only those that are connected.
    pub live: bool,
    /// The last row of the page before.
    pub after: Option<Uuid>,
    pub limit: u32,
}

impl Store {
    /// Writes down a session with all its tunnels, as connected since `connected_at`; a tunnel that
    /// has vanished meanwhile is left out. `also` is done in the same transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_session(
        &self,
        rows: &[SessionRow],
        also: Vec<Statement>,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO tunnel_sessions (id, session_id, tunnel_id, client_id, server_id, \
                   token_id, peer, agent_version, connected_at, last_heartbeat, status) \
                   SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 'connected' \
                   FROM tunnels WHERE id = $3";
        let mut statements: Vec<_> = rows
            .iter()
            .map(|row| {
                let params = values![
                    row.id,
                    row.session_id,
                    row.tunnel_id,
                    &row.client_id,
                    &row.server_id,
                    row.token_id,
                    &row.peer,
                    &row.agent_version,
                    row.connected_at,
                ];
                Statement::new(sql, params)
            })
            .collect();
        statements.extend(also);
        self.transaction(statements).await.map(drop)
    }

    /// Says that these sessions are still there.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been written.
    pub async fn heartbeat(&self, sessions: &[Uuid], at: Timestamp) -> Result<u64, StoreError> {
        let mut touched = 0;
        for batch in sessions.chunks(BATCH) {
            if self.is_postgres() {
                let sql = "UPDATE tunnel_sessions SET last_heartbeat = $2 \
                           WHERE session_id = ANY($1) AND status = 'connected'";
                let sessions = Value::list(batch.iter().copied());
                touched += self.execute(sql, vec![sessions, at.into()]).await?;
                continue;
            }
            let sql = "UPDATE tunnel_sessions SET last_heartbeat = $2 \
                       WHERE session_id = $1 AND status = 'connected' RETURNING id";
            let each = batch.iter().map(|session| Statement::new(sql, values![*session, at]));
            let rows = self.transaction(each.collect()).await?;
            touched += rows.iter().map(|rows| rows.len() as u64).sum::<u64>();
        }
        Ok(touched)
    }

    /// The session has ended; how many tunnels it served. Closed again, it stays as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_session(&self, session: Uuid, at: Timestamp) -> Result<u64, StoreError> {
        let sql = "UPDATE tunnel_sessions SET status = 'disconnected', disconnected_at = $2 \
                   WHERE session_id = $1 AND status = 'connected'";
        self.execute(sql, values![session, at]).await
    }

    /// Closes what edges have left behind that are gone: sessions without a sign of life since
    /// `silent_since` on servers that are not among `alive`. They ended with their last sign. In
    /// slices: where there are any, there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_orphans(
        &self,
        alive: &[String],
        silent_since: Timestamp,
    ) -> Result<Vec<SessionRow>, StoreError> {
        macro_rules! close {
            ($alive:literal) => {
                concat!(
                    "UPDATE tunnel_sessions AS s SET status = 'disconnected', \
                     disconnected_at = s.last_heartbeat WHERE s.status = 'connected' AND s.id IN \
                     (SELECT id FROM tunnel_sessions WHERE status = 'connected' \
                     AND last_heartbeat < $1 AND server_id ",
                    $alive,
                    " LIMIT $3) RETURNING ",
                    "id, session_id, tunnel_id, client_id, server_id, token_id, peer, \
                     agent_version, connected_at, disconnected_at, last_heartbeat, status"
                )
            };
        }
        let sql = self.dialect(
            close!("<> ALL(CAST($2 AS TEXT[]))"),
            close!("NOT IN (SELECT value FROM json_each($2))"),
        );
        let alive = if self.is_postgres() {
            Value::list(alive)
        } else {
            serde_json::Value::from(alive.to_vec()).into()
        };
        let rows = self.rows(sql, vec![silent_since.into(), alive, ORPHANS.into()]).await?;
        rows.into_iter().map(SessionRow::read).collect()
    }

    /// A page of sessions, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let mut query = Query::new(concat!("SELECT ", columns!(), " FROM tunnel_sessions AS s"));
        if let Some(user) = filter.user {
            query.sql.push_str(" JOIN tunnels AS t ON t.id = s.tunnel_id");
            query.and_some("t.user_id =", Some(user));
        }
        query.and_some("s.tunnel_id =", filter.tunnel);
        query.and_some("s.session_id =", filter.session);
        if filter.live {
            query.and("s.status = 'connected'");
        }
        let query = query.page("s.id", filter.after, filter.limit);
        let rows = self.listed(&query.sql, query.params).await?;
        rows.into_iter().map(SessionRow::read).collect()
    }
}
