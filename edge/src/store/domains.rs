//! Domains of users, and the proof that they are theirs.

use uuid::Uuid;

use super::{Row, Statement, Store, StoreError, Timestamp, query::Query, values};

/// A domain that somebody says to own; two may say so of one until it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainRow {
    pub(crate) id: Uuid,
    pub(crate) user: Uuid,
    /// In lower case.
    pub(crate) name: String,
    pub(crate) tunnel: Option<Uuid>,
    /// What the TXT record holds.
    pub(crate) proof: String,
    pub(crate) verified_at: Option<Timestamp>,
    pub(crate) checked_at: Option<Timestamp>,
    pub(crate) created_at: Timestamp,
}

const COLUMNS: &str = "id, user_id, name, tunnel_id, proof, verified_at, checked_at, created_at";

fn domain(mut row: Row) -> Result<DomainRow, StoreError> {
    Ok(DomainRow {
        id: row.take()?,
        user: row.take()?,
        name: row.take()?,
        tunnel: row.take()?,
        proof: row.take()?,
        verified_at: row.take()?,
        checked_at: row.take()?,
        created_at: row.take()?,
    })
}

impl Store {
    /// A statement that adds a domain. Duplicate of `idx_domains_user_name`: the user has it.
    pub(crate) fn add_domain(domain: &DomainRow) -> Statement {
        let values = values![
            domain.id,
            domain.user,
            &domain.name,
            domain.tunnel,
            &domain.proof,
            domain.created_at,
        ];
        let sql = "INSERT INTO domains (id, user_id, name, tunnel_id, proof, created_at) \
            VALUES ($1, $2, $3, $4, $5, $6)";
        Statement::new(sql, values).expect(1)
    }

    /// A domain by its id; `user`: only if it is this one's.
    pub(crate) async fn domain(
        &self,
        id: Uuid,
        user: Option<Uuid>,
    ) -> Result<Option<DomainRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM domains WHERE id = $1");
        let row = self.row(&sql, values![id]).await?.map(domain).transpose()?;
        Ok(row.filter(|row| user.is_none_or(|user| user == row.user)))
    }

    /// Newest first; `after`: those behind this one.
    pub(crate) async fn list_domains(
        &self,
        user: Option<Uuid>,
        tunnel: Option<Uuid>,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<DomainRow>, StoreError> {
        let mut query = Query::new(&format!("SELECT {COLUMNS} FROM domains"));
        query.and_some("user_id =", user);
        query.and_some("tunnel_id =", tunnel);
        let query = query.page("id", after, limit);
        self.listed(&query.sql, query.params).await?.into_iter().map(domain).collect()
    }

    /// How many domains a user has.
    pub(crate) async fn count_domains(&self, user: Uuid) -> Result<u64, StoreError> {
        let row =
            self.row("SELECT count(*) FROM domains WHERE user_id = $1", values![user]).await?;
        row.map_or(Ok(0), |mut row| row.take())
    }

    /// A statement that gives a domain to a tunnel, or to none.
    pub(crate) fn point_domain(id: Uuid, tunnel: Option<Uuid>) -> Statement {
        let sql = "UPDATE domains SET tunnel_id = $2 WHERE id = $1";
        Statement::new(sql, values![id, tunnel]).expect(1)
    }

    /// A statement that removes a domain.
    pub(crate) fn remove_domain(id: Uuid) -> Statement {
        Statement::new("DELETE FROM domains WHERE id = $1", values![id]).expect(1)
    }
}
