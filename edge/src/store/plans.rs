//! What accounts may use at most.

use super::{Row, Statement, Store, StoreError, Timestamp, query::Query, values};

/// A plan; `None` anywhere: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) limits: PlanLimits,
    pub(crate) updated_at: Timestamp,
}

/// The limits of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlanLimits {
    /// Of all tunnels of a user together.
    pub(crate) requests_per_second: Option<u32>,
    /// Of each tunnel.
    pub(crate) tunnel_requests_per_second: Option<u32>,
    pub(crate) tunnels: Option<u32>,
    pub(crate) agents: Option<u32>,
    pub(crate) bandwidth_bytes_per_second: Option<u64>,
    pub(crate) transfer_bytes_per_month: Option<u64>,
}

impl Plan {
    /// In the order of [`Plan::read`], of the table as `p`.
    pub(super) const COLUMNS: &str = "p.name, p.requests_per_second, \
        p.tunnel_requests_per_second, p.tunnels, p.agents, p.bandwidth_bytes_per_second, \
        p.transfer_bytes_per_month, p.updated_at";

    pub(super) fn read(row: &mut Row) -> Result<Self, StoreError> {
        let name = row.take()?;
        let limits = PlanLimits {
            requests_per_second: row.take()?,
            tunnel_requests_per_second: row.take()?,
            tunnels: row.take()?,
            agents: row.take()?,
            bandwidth_bytes_per_second: row.take()?,
            transfer_bytes_per_month: row.take()?,
        };
        Ok(Self { name, limits, updated_at: row.take()? })
    }
}

impl Store {
    pub(crate) async fn plan(&self, name: &str) -> Result<Option<Plan>, StoreError> {
        let sql = format!("SELECT {} FROM plans p WHERE p.name = $1", Plan::COLUMNS);
        let row = self.row(&sql, values![name]).await?;
        row.map(|mut row| Plan::read(&mut row)).transpose()
    }

    /// By name; `after`: those behind this one.
    pub(crate) async fn list_plans(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Plan>, StoreError> {
        let mut query = Query::new(&format!("SELECT {} FROM plans p", Plan::COLUMNS));
        query.and_some("p.name >", after);
        let limit = query.bind(limit);
        query.sql.push_str(&format!(" ORDER BY p.name LIMIT {limit}"));
        let rows = self.listed(&query.sql, query.params).await?;
        rows.into_iter().map(|mut row| Plan::read(&mut row)).collect()
    }

    /// A statement that writes a plan, new or not.
    pub(crate) fn put_plan(plan: &Plan) -> Statement {
        let sql = "INSERT INTO plans (name, requests_per_second, tunnel_requests_per_second, \
            tunnels, agents, bandwidth_bytes_per_second, transfer_bytes_per_month, updated_at) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO UPDATE SET \
            requests_per_second = excluded.requests_per_second, \
            tunnel_requests_per_second = excluded.tunnel_requests_per_second, \
            tunnels = excluded.tunnels, agents = excluded.agents, \
            bandwidth_bytes_per_second = excluded.bandwidth_bytes_per_second, \
            transfer_bytes_per_month = excluded.transfer_bytes_per_month, \
            updated_at = excluded.updated_at";
        let limits = plan.limits;
        let values = values![
            &plan.name,
            limits.requests_per_second,
            limits.tunnel_requests_per_second,
            limits.tunnels,
            limits.agents,
            limits.bandwidth_bytes_per_second,
            limits.transfer_bytes_per_month,
            plan.updated_at,
        ];
        Statement::new(sql, values).expect(1)
    }

    /// A statement that removes a plan. Refused by the database while somebody has it.
    pub(crate) fn remove_plan(name: &str) -> Statement {
        Statement::new("DELETE FROM plans WHERE name = $1", values![name]).expect(1)
    }
}
