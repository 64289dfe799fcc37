//! Tunnels, as their owners and operators see them.

use uniroute_shared::{code::Code, id::Subdomain};
use uuid::Uuid;

use super::{Caller, Failure, Fault, Services, event};
use crate::{
    auth::agent_tokens::TunnelKind,
    events::{Event, Kind},
    names,
    store::{
        ClaimError, NewTunnel, SessionFilter, SessionRow, Statement, StoreError, Timestamp,
        TunnelChanges, TunnelFilter, TunnelRow, audit,
    },
};

/// Names that are made up before the edge gives up; with 64 random bits the first one is free.
const NAME_TRIES: usize = 3;

/// A tunnel to be made.
#[derive(Clone, Debug)]
pub(crate) struct TunnelWish {
    /// `None`: a readable random one.
    pub(crate) name: Option<String>,
    pub(crate) kind: TunnelKind,
    pub(crate) local_url: String,
    pub(crate) region: String,
    pub(crate) metadata: serde_json::Value,
    pub(crate) requests_per_second: Option<u32>,
}

impl Services {
    /// Makes a tunnel whose name is its owner's until it is deleted.
    pub(crate) async fn add_tunnel(
        &self,
        caller: &Caller,
        wish: &TunnelWish,
    ) -> Result<TunnelRow, Failure> {
        self.has_room(caller.user).await?;
        let wanted = wish.name.as_deref().map(wanted_name).transpose()?;
        for _ in 0..NAME_TRIES {
            let name = wanted.clone().unwrap_or_else(names::random_name);
            match self.try_add_tunnel(caller, wish, &name).await {
                Ok(row) => return Ok(row),
                Err(ClaimError::Taken) if wanted.is_none() => {}
                Err(ClaimError::Taken) => {
                    return Err(Failure::because(&Code::ALREADY_THERE, "the name is taken"));
                }
                Err(ClaimError::Store(error)) => return Err(error.into()),
            }
        }
        Err(Failure::new(&Code::INTERNAL))
    }

    /// Refuses what is more than the user's plan allows. Of several at once one may be too many.
    async fn has_room(&self, user: Uuid) -> Result<(), Failure> {
        let plan = self.store.user(user).await?.ok_or_else(Failure::no_such_thing)?.plan;
        let most = self.store.plan(&plan).await?.and_then(|plan| plan.limits.tunnels);
        let Some(most) = most else { return Ok(()) };
        if self.store.count_tunnels(user).await? < u64::from(most) {
            return Ok(());
        }
        let detail = format!("the plan `{plan}` allows {most} tunnels");
        Err(Failure::because(&Code::PLAN_LIMIT, detail))
    }

    async fn try_add_tunnel(
        &self,
        caller: &Caller,
        wish: &TunnelWish,
        name: &Subdomain,
    ) -> Result<TunnelRow, ClaimError> {
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        let new = NewTunnel {
            id,
            user: caller.user,
            subdomain: name.to_string(),
            kind: wish.kind.as_str().to_owned(),
            port: None,
            custom_domain: None,
            local_url: wish.local_url.clone(),
            public_url: self.url_of(wish.kind, name.as_str(), None),
            region: wish.region.clone(),
            metadata: wish.metadata.clone(),
            requests_per_second: wish.requests_per_second,
            now,
        };
        let created = told(Kind::TunnelCreated, caller.user, id, name.as_str(), now);
        let row = self.store.create_reserved(&new, self.noted(&created, caller)).await?;
        self.events.publish(created);
        Ok(row)
    }

    fn noted(&self, event: &Event, caller: &Caller) -> Vec<Statement> {
        vec![audit::entry(event, &caller.actor())]
    }

    /// A tunnel that the caller sees, and that is not deleted.
    pub(crate) async fn tunnel(&self, caller: &Caller, id: Uuid) -> Result<TunnelRow, Failure> {
        let row = match caller.sees() {
            Some(user) => self.store.tunnel_of(user, id).await?,
            None => self.store.tunnel(id).await?.filter(|row| row.status != "deleted"),
        };
        row.ok_or_else(Failure::no_such_thing)
    }

    pub(crate) async fn list_tunnels(
        &self,
        filter: &TunnelFilter,
    ) -> Result<Vec<TunnelRow>, Failure> {
        Ok(self.store.list_tunnels(filter).await?)
    }

    /// Changes a tunnel; `expected`: only if this is its version.
    pub(crate) async fn change_tunnel(
        &self,
        caller: &Caller,
        id: Uuid,
        expected: Option<u64>,
        changes: &TunnelChanges,
    ) -> Result<TunnelRow, Failure> {
        let row = self.tunnel(caller, id).await?;
        caller.may_change(row.user_id)?;
        let now = Timestamp::now();
        let updated = told(Kind::TunnelUpdated, row.user_id, id, &row.subdomain, now);
        let also = self.noted(&updated, caller);
        let changed =
            self.store.update_tunnel(id, Some(row.user_id), expected, changes, now, also).await?;
        match changed {
            Some(row) => {
                self.events.publish(updated);
                Ok(row)
            }
            None if expected.is_some() => Err(Failure::new(&Code::CHANGED_MEANWHILE)),
            None => Err(Failure::no_such_thing()),
        }
    }

    /// Pauses a tunnel, or lets it go on: its visitors see it at once, its agent stays connected.
    /// Operators may, too. What is so already stays so.
    pub(crate) async fn pause_tunnel(
        &self,
        caller: &Caller,
        id: Uuid,
        pause: bool,
    ) -> Result<TunnelRow, Failure> {
        let row = self.tunnel(caller, id).await?;
        let (status, kind) =
            if pause { ("paused", Kind::TunnelPaused) } else { ("active", Kind::TunnelResumed) };
        if row.status == status {
            return Ok(row);
        }
        let now = Timestamp::now();
        let event = told(kind, row.user_id, id, &row.subdomain, now);
        let also = self.noted(&event, caller);
        let changed = self.store.set_status(id, Some(row.user_id), status, now, also).await?;
        let changed = changed.ok_or_else(Failure::no_such_thing)?;
        self.events.publish(event);
        Ok(changed)
    }

    /// Deletes a tunnel. Its name stays its owner's for a while, so that nobody else gets its
    /// visitors (T18).
    pub(crate) async fn remove_tunnel(&self, caller: &Caller, id: Uuid) -> Result<(), Failure> {
        let row = self.tunnel(caller, id).await?;
        caller.may_change(row.user_id)?;
        let now = Timestamp::now();
        let until = now.plus(self.settings.quarantine);
        let deleted = told(Kind::TunnelDeleted, row.user_id, id, &row.subdomain, now);
        let also = self.noted(&deleted, caller);
        let removed = self.store.delete_tunnel(id, Some(row.user_id), until, now, also).await?;
        removed.ok_or_else(Failure::no_such_thing)?;
        self.events.publish(deleted);
        Ok(())
    }

    /// Sessions of agents.
    pub(crate) async fn list_sessions(
        &self,
        filter: &SessionFilter,
    ) -> Result<Vec<SessionRow>, Failure> {
        Ok(self.store.list_sessions(filter).await?)
    }

    /// Whose tunnels a session serves; an agent has one owner.
    pub(super) async fn session_owner(&self, session: Uuid) -> Result<Option<Uuid>, StoreError> {
        let filter = SessionFilter { session: Some(session), limit: 1, ..Default::default() };
        let Some(row) = self.store.list_sessions(&filter).await?.pop() else { return Ok(None) };
        Ok(self.store.tunnel(row.tunnel_id).await?.map(|tunnel| tunnel.user_id))
    }
}

fn told(kind: Kind, user: Uuid, tunnel: Uuid, name: &str, at: Timestamp) -> Event {
    let data = serde_json::json!({ "name": name });
    Event { at, tunnel: Some(tunnel), data, ..event(kind, Some(user), None) }
}

fn wanted_name(text: &str) -> Result<Subdomain, Failure> {
    let name = Subdomain::parse(text).map_err(|error| {
        let fault = Fault::new("/name", error.to_string());
        Failure::faults(&Code::INPUT_INVALID, vec![fault])
    })?;
    if names::is_reserved(name.as_str()) {
        return Err(Failure::because(&Code::ALREADY_THERE, "the name is reserved"));
    }
    Ok(name)
}
