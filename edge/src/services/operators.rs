//! What operators look after: sessions, plans, bans, health.

use std::{net::IpAddr, time::Duration};

use uniroute_shared::code::Code;
use uuid::Uuid;

use super::{Ban, Caller, Failure, Services, event};
use crate::{
    auth::agent_tokens::TunnelKind,
    events::Kind,
    store::{
        Store, StoreError, Timestamp,
        audit::Actor,
        plans::{Plan, PlanLimits},
    },
};

/// How long the store may take to say that it is there.
const PING: Duration = Duration::from_secs(2);
/// The plan that is always there.
const DEFAULT_PLAN: &str = super::accounts::DEFAULT_PLAN;

/// What answers, and what does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) store: bool,
    pub(crate) state: bool,
}

impl Services {
    /// Whether store and shared state answer.
    pub(crate) async fn health(&self) -> Health {
        let ping = tokio::time::timeout(PING, self.store.row("SELECT 1", vec![])).await;
        Health { store: matches!(ping, Ok(Ok(_))), state: self.live.state_is_well() }
    }

    pub(crate) async fn plan(&self, name: &str) -> Result<Plan, Failure> {
        self.store.plan(name).await?.ok_or_else(Failure::no_such_thing)
    }

    /// Writes a plan, new or not. Whoever has it has the new limits at once.
    pub(crate) async fn put_plan(
        &self,
        name: &str,
        limits: PlanLimits,
        actor: &Actor,
    ) -> Result<Plan, Failure> {
        let plan = Plan { name: name.to_owned(), limits, updated_at: Timestamp::now() };
        let mut updated = event(Kind::PlanUpdated, None, None);
        updated.data = serde_json::json!({ "plan": name });
        self.change(vec![Store::put_plan(&plan)], updated, actor).await?;
        Ok(plan)
    }

    /// Removes a plan that no account has; the default one stays.
    pub(crate) async fn remove_plan(&self, name: &str, actor: &Actor) -> Result<(), Failure> {
        if name == DEFAULT_PLAN {
            return Err(Failure::because(&Code::ALREADY_THERE, "the default plan stays"));
        }
        let mut deleted = event(Kind::PlanDeleted, None, None);
        deleted.data = serde_json::json!({ "plan": name });
        let removed = self.change(vec![Store::remove_plan(name)], deleted, actor).await;
        removed.map_err(|error| match error {
            StoreError::Refused(_) => {
                Failure::because(&Code::ALREADY_THERE, "accounts have this plan")
            }
            error => error.into(),
        })
    }

    /// Addresses that are kept out, in order.
    pub(crate) async fn bans(&self) -> Vec<Ban> {
        let mut bans = self.live.bans().await;
        bans.sort_by_key(|ban| ban.address);
        bans
    }

    /// Lets an address in again.
    pub(crate) async fn lift_ban(&self, address: IpAddr, actor: &Actor) -> Result<(), Failure> {
        if !self.live.lift(address).await {
            return Err(Failure::no_such_thing());
        }
        let mut lifted = event(Kind::BanLifted, None, None);
        lifted.data = serde_json::json!({ "address": address });
        Ok(self.change(vec![], lifted, actor).await?)
    }

    /// Ends a session, whichever edge has it. Its agent may come back at once; to keep it out, revoke
    /// its token.
    pub(crate) async fn cut_session(&self, caller: &Caller, session: Uuid) -> Result<(), Failure> {
        let owner = self.session_owner(session).await?;
        let owner = owner.filter(|owner| caller.sees().is_none_or(|me| me == *owner));
        let owner = owner.ok_or_else(Failure::no_such_thing)?;
        let cut = event(Kind::SessionCut, Some(owner), Some(session));
        self.change(vec![], cut, &caller.actor()).await?;
        self.live.cut_session(session);
        Ok(())
    }

    /// Where visitors reach a tunnel.
    pub(crate) fn url_of(&self, kind: TunnelKind, name: &str, port: Option<u16>) -> String {
        (self.settings.url_of)(kind, name, port)
    }
}
