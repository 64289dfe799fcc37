//! What an agent's token allows. Pre-shared tokens allow everything, to one built-in owner; tokens of
//! users are asked for in the store, by their hash, and remembered for a moment, so that a thousand
//! agents that come back at once cost it little. While the store is away, those that were good within
//! the last hour still are.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};
use uniroute_shared::{code::Code, id::AgentId};
use uuid::Uuid;

use crate::{
    Shared,
    abuse::Rule,
    auth::agent_tokens::{AgentToken, TokenScopes, TunnelKind},
    limits::accounts::Account,
    registry::ports::Kind,
    store::{Timestamp, plans::PlanLimits, tokens::TokenHolder},
    traffic::writer::used_this_month,
};

/// The built-in owner of everything that comes with a pre-shared token.
pub(crate) const OWNER: Uuid = Uuid::from_u128(1);

/// For how long a token is not asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// For how long it is good while the store is away.
const STALE: Duration = Duration::from_secs(60 * 60);
/// Tokens that are remembered.
const MAX_KNOWN: usize = 20_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) account: Arc<Account>,
    /// `None`: a pre-shared one.
    pub(crate) token: Option<Uuid>,
    pub(crate) expires: Option<Timestamp>,
    scopes: TokenScopes,
}

impl Permit {
    /// Everything, to `account`.
    pub(crate) fn all(account: Arc<Account>) -> Self {
        Self { account, token: None, expires: None, scopes: TokenScopes::default() }
    }

    pub(crate) fn allows_name(&self, name: &str) -> bool {
        self.scopes.allows_name(name)
    }

    pub(crate) fn allows_port(&self, port: u16) -> bool {
        self.scopes.allows_port(port)
    }

    pub(crate) fn allows_kind(&self, kind: Kind) -> bool {
        TunnelKind::parse(kind.as_str()).is_some_and(|kind| self.scopes.allows_kind(kind))
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// Tokens that were good a moment ago, by their hash.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    known: Mutex<HashMap<String, (Instant, TokenHolder)>>,
}

impl Permits {
    /// Lets `agent` in, which comes with `token` from `address`.
    ///
    /// # Errors
    /// The code to refuse it with; guesses are counted against the address.
    pub(crate) async fn admit(
        &self,
        edge: &Arc<Shared>,
        agent: &AgentId,
        token: &str,
        address: IpAddr,
    ) -> Result<Arc<Permit>, &'static Code> {
        if edge.tokens.as_ref().is_some_and(|tokens| tokens.contains(token)) {
            let account = edge.accounts.enter(OWNER, &PlanLimits::default());
            return Ok(Arc::new(Permit::all(account)));
        }
        let refused = |code| {
            edge.abuse.strike(edge, Rule::TokenSpraying, address);
            Err(code)
        };
        // What was never a token costs no question.
        let Some(token) = AgentToken::parse(token) else { return refused(&Code::TOKEN_REFUSED) };
        let Some(known) = self.find(edge, token.hash()).await? else {
            return refused(&Code::TOKEN_REFUSED);
        };
        let now = Timestamp::now();
        let row = &known.token;
        if !row.is_active || !known.user_is_active {
            return refused(&Code::TOKEN_REVOKED);
        }
        if row.expires_at.is_some_and(|at| at <= now) {
            return Err(&Code::TOKEN_EXPIRED);
        }
        if !row.scopes.allows_address(address) {
            info!(token.id = %row.id, %address, "a token came from an address that it is not for");
            return Err(&Code::TOKEN_ADDRESS);
        }
        let account = edge.accounts.enter(row.user, &known.plan.limits);
        if let Some(most) = account.allowance().agents
            && edge.registry.agents_beside(&account, agent) >= most as usize
        {
            return Err(&Code::PLAN_AGENTS);
        }
        if account.wants_usage() {
            // Otherwise whoever has used everything up would begin anew with each session.
            match used_this_month(&edge.store, row.user).await {
                Ok(used) => account.set_transferred(used),
                Err(error) => warn!(%error, "the use of the month is not known yet"),
            }
        }
        edge.books.token_used(row.id);
        let (token, expires) = (Some(row.id), row.expires_at);
        Ok(Arc::new(Permit { account, token, expires, scopes: row.scopes.clone() }))
    }

    async fn find(
        &self,
        edge: &Shared,
        hash: String,
    ) -> Result<Option<TokenHolder>, &'static Code> {
        let known = self.known.lock().get(&hash).cloned();
        if let Some((at, known)) = &known
            && at.elapsed() < FRESH
        {
            return Ok(Some(known.clone()));
        }
        match edge.store.token_by_hash(&hash).await {
            Ok(Some(found)) => {
                let mut all = self.known.lock();
                if all.len() >= MAX_KNOWN {
                    all.retain(|_, (at, _)| at.elapsed() < FRESH);
                }
                if all.len() < MAX_KNOWN {
                    all.insert(hash, (Instant::now(), found.clone()));
                }
                Ok(Some(found))
            }
            Ok(None) => {
                self.known.lock().remove(&hash);
                Ok(None)
            }
            Err(error) => match known.filter(|(at, _)| at.elapsed() < STALE) {
                Some((_, known)) => {
                    warn!(%error, token.id = %known.token.id, "the store can't be asked; the token was good before");
                    Ok(Some(known))
                }
                None => {
                    warn!(%error, "a token can't be looked up");
                    Err(&Code::STORE_UNAVAILABLE)
                }
            },
        }
    }

    /// What is known of this token, or of any of this user's, is to be asked for anew.
    pub(crate) fn forget(&self, id: Uuid) {
        self.known.lock().retain(|_, (_, known)| known.token.id != id && known.token.user != id);
    }

    /// Everything is.
    pub(crate) fn forget_all(&self) {
        self.known.lock().clear();
    }
}
