//! The audit log: one row for each change, written with it. Edges read it, too: a row has all that
//! its event had.

use std::net::IpAddr;

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, query::Query, values};
use crate::events::{Event, Kind};

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    /// A user; `None`: an agent, an edge or the command line, as `name` says.
    pub(crate) id: Option<Uuid>,
    pub(crate) name: String,
    pub(crate) peer: Option<IpAddr>,
}

impl Actor {
    /// The command line of the edge's machine.
    pub(crate) fn command_line() -> Self {
        Self { id: None, name: "command line".into(), peer: None }
    }

    /// Somebody who is not logged in.
    pub(crate) fn stranger(peer: IpAddr) -> Self {
        Self { id: None, name: "visitor".into(), peer: Some(peer) }
    }

    /// An edge by itself.
    pub(crate) fn edge(id: &str) -> Self {
        Self { id: None, name: format!("edge {id}"), peer: None }
    }
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AuditRow {
    pub(crate) id: Uuid,
    pub(crate) event: Event,
    pub(crate) actor: Option<Uuid>,
    pub(crate) actor_name: String,
    pub(crate) peer: String,
}

/// Which rows to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) user: Option<Uuid>,
    pub(crate) tunnel: Option<Uuid>,
    pub(crate) kind: Option<Kind>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) after: Option<Uuid>,
}

const COLUMNS: &str = "id, at, user_id, tunnel_id, actor_id, actor, peer, action, object, details";
const MAX_ACTOR: usize = 255;

/// The row for an event, to stand in the transaction that makes the change.
pub(crate) fn entry(event: &Event, actor: &Actor) -> Statement {
    let sql = "INSERT INTO audit_log (id, at, user_id, tunnel_id, actor_id, actor, peer, action, \
        object, details) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let name: String = actor.name.chars().take(MAX_ACTOR).collect();
    let details = if event.data.is_null() { "{}".to_owned() } else { event.data.to_string() };
    let values = values![
        event.id,
        event.at,
        event.user,
        event.tunnel,
        actor.id,
        name,
        actor.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        event.kind.as_str(),
        event.object.map(|object| object.to_string()).unwrap_or_default(),
        details,
    ];
    Statement::new(sql, values).expect(1)
}

/// `None`: a kind that this program does not know; a newer one has written it.
fn row(mut row: Row) -> Result<Option<AuditRow>, StoreError> {
    let (id, at) = (row.take()?, row.take()?);
    let (user, tunnel) = (row.take()?, row.take()?);
    let (actor, actor_name, peer) = (row.take()?, row.take()?, row.take()?);
    let Some(kind) = Kind::parse(&row.take::<String>()?) else { return Ok(None) };
    let object = Uuid::try_parse(&row.take::<String>()?).ok();
    let data = match row.take::<serde_json::Value>()? {
        serde_json::Value::Object(map) if map.is_empty() => serde_json::Value::Null,
        data => data,
    };
    let event = Event { id, kind, at, user, tunnel, object, data };
    Ok(Some(AuditRow { id, event, actor, actor_name, peer }))
}

impl Store {
    /// Rows from `at` on (itself too), oldest first. A row may turn up a little later than newer
    /// ones, as its transaction took longer: who follows the log looks back a few seconds each time,
    /// and knows rows that it has seen by their id.
    pub(crate) async fn audit_after(
        &self,
        at: Timestamp,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM audit_log WHERE at >= $1 ORDER BY at, id LIMIT $2");
        let rows = self.rows(&sql, values![at, limit]).await?;
        rows.into_iter().filter_map(|one| row(one).transpose()).collect()
    }

    /// Newest first.
    pub(crate) async fn list_audit(
        &self,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let mut query = Query::new(&format!("SELECT {COLUMNS} FROM audit_log"));
        query.and_some("user_id =", filter.user);
        query.and_some("tunnel_id =", filter.tunnel);
        query.and_some("action =", filter.kind.map(Kind::as_str));
        query.and_some("at >=", filter.from);
        query.and_some("at <", filter.to);
        let query = query.page("id", filter.after, limit);
        let rows = self.listed(&query.sql, query.params).await?;
        rows.into_iter().filter_map(|one| row(one).transpose()).collect()
    }
}
