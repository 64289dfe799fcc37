//! Domains of users. That one is verified is found out elsewhere.

use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{Caller, Failure, Services, event};
use crate::{
    auth::random_secret,
    events::{Event, Kind},
    store::{Store, StoreError, Timestamp, domains::DomainRow},
};

/// Domains of one user.
const MAX_DOMAINS: u64 = 200;

impl Services {
    /// Notes a domain, with what its owner has to put into the DNS.
    pub(crate) async fn add_domain(
        &self,
        caller: &Caller,
        name: &str,
        tunnel: Option<Uuid>,
    ) -> Result<DomainRow, Failure> {
        let name = name.to_lowercase();
        let ours = &self.settings.domain;
        if name == *ours || name.ends_with(&format!(".{ours}")) {
            return Err(Failure::at("/name", "belongs to the edge itself"));
        }
        self.own_tunnel_or_none(caller, caller.user, tunnel).await?;
        if self.store.count_domains(caller.user).await? >= MAX_DOMAINS {
            return Err(Failure::because(&Code::PLAN_LIMIT, "an account has at most 200 domains"));
        }
        let row = DomainRow {
            id: Uuid::now_v7(),
            user: caller.user,
            name,
            tunnel,
            proof: format!("uniroute-verify={}", random_secret()),
            verified_at: None,
            checked_at: None,
            created_at: Timestamp::now(),
        };
        let statements = vec![Store::add_domain(&row)];
        let created = told(Kind::DomainCreated, &row);
        let added = self.change(statements, created, &caller.actor()).await;
        added.map_err(|error| match error {
            StoreError::Duplicate(_) => {
                Failure::because(&Code::ALREADY_THERE, "the account has this domain already")
            }
            error => error.into(),
        })?;
        Ok(row)
    }

    /// A domain that the caller sees.
    pub(crate) async fn domain(&self, caller: &Caller, id: Uuid) -> Result<DomainRow, Failure> {
        self.store.domain(id, caller.sees()).await?.ok_or_else(Failure::no_such_thing)
    }

    /// Gives a domain to another tunnel of its owner's, or to none.
    pub(crate) async fn point_domain(
        &self,
        caller: &Caller,
        id: Uuid,
        tunnel: Option<Uuid>,
    ) -> Result<DomainRow, Failure> {
        let mut row = self.domain(caller, id).await?;
        caller.may_change(row.user)?;
        let checked = self.own_tunnel_or_none(caller, row.user, tunnel).await;
        checked.map_err(|failure| match *failure.code == *Failure::no_such_thing().code {
            // The domain is there: 404 would say that it is not.
            true => Failure::at("/tunnel_id", "is no tunnel of this account"),
            false => failure,
        })?;
        row.tunnel = tunnel;
        let statements = vec![Store::point_domain(id, tunnel)];
        self.change(statements, told(Kind::DomainUpdated, &row), &caller.actor()).await?;
        Ok(row)
    }

    pub(crate) async fn remove_domain(&self, caller: &Caller, id: Uuid) -> Result<(), Failure> {
        let row = self.domain(caller, id).await?;
        caller.may_change(row.user)?;
        let statements = vec![Store::remove_domain(id)];
        let deleted = told(Kind::DomainDeleted, &row);
        Ok(self.change(statements, deleted, &caller.actor()).await?)
    }

    /// Refuses a tunnel that is not the owner's, as one that does not exist.
    async fn own_tunnel_or_none(
        &self,
        caller: &Caller,
        owner: Uuid,
        tunnel: Option<Uuid>,
    ) -> Result<(), Failure> {
        let Some(tunnel) = tunnel else { return Ok(()) };
        let row = self.tunnel(caller, tunnel).await?;
        if row.user_id == owner { Ok(()) } else { Err(Failure::no_such_thing()) }
    }
}

fn told(kind: Kind, row: &DomainRow) -> Event {
    let mut event = event(kind, Some(row.user), Some(row.id));
    event.tunnel = row.tunnel;
    event.data = serde_json::json!({ "name": row.name });
    event
}
