//! What people and operators can do with an edge: one function for each thing. The REST API and the
//! command line only translate.
//!
//! A change is one transaction of the store, which holds the audit row too; then everybody is told
//! ([`Events`]). Whose things somebody sees is decided in here, in which role he may call at all by
//! the API's description of the operation.

pub(crate) mod accounts;
pub(crate) mod domains;
pub(crate) mod invites;
pub(crate) mod logins;
pub(crate) mod operators;
pub mod setup;
pub(crate) mod statistics;
pub(crate) mod tokens;
pub(crate) mod tunnels;

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tracing::{error, warn};
use uniroute_shared::code::Code;
use uuid::Uuid;

use crate::{
    auth::{Role, agent_tokens::TunnelKind, passwords::Passwords, secret::Secret},
    events::{Event, Events, Kind},
    store::{
        Statement, Store, StoreError, Timestamp,
        audit::{self, Actor},
    },
};

/// Everything that the use cases need. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) store: Store,
    pub(crate) events: Events,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) auth: Arc<logins::Auth>,
}

/// What an operator has decided.
pub(crate) struct Settings {
    pub(crate) signup: Signup,
    /// The edges' public address: access tokens of another deployment are not good here.
    pub(crate) issuer: String,
    /// Below which tunnels have their names.
    pub(crate) domain: String,
    /// How long nobody else gets the name of a deleted tunnel.
    pub(crate) quarantine: Duration,
    /// Where visitors reach a tunnel.
    pub(crate) url_of: UrlOf,
}

/// The public address of a tunnel, by its kind, name and port.
pub(crate) type UrlOf = Box<dyn Fn(TunnelKind, &str, Option<u16>) -> String + Send + Sync>;

/// Who may make an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Signup {
    /// Administrators only.
    #[default]
    Closed,
    /// Whoever has an invitation.
    Invite,
    /// Everybody.
    Open,
}

/// What is known here and now, and not by the store.
pub(crate) trait Live: Send + Sync {
    /// Whether a session serves the tunnel, on any edge.
    fn is_online(&self, tunnel: Uuid) -> BoxFuture<'_, bool>;
    /// The running totals of a tunnel, if they are known.
    fn totals(&self, tunnel: Uuid) -> BoxFuture<'_, Option<Totals>>;
    /// Ends the session, if it is on this edge; others learn of it by the event.
    fn cut_session(&self, session: Uuid);
    /// Addresses that are kept out, on all edges.
    fn bans(&self) -> BoxFuture<'_, Vec<Ban>>;
    /// Lets an address in again; whether it was kept out. Other edges learn of it by the event.
    fn lift(&self, address: IpAddr) -> BoxFuture<'_, bool>;
    /// Whether the shared state answers; always, if it is in memory.
    fn state_is_well(&self) -> bool;
}

/// What went through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// An address that is kept out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ban {
    pub(crate) address: IpAddr,
    /// Which rule it has broken.
    pub(crate) rule: String,
    pub(crate) until: Timestamp,
}

/// Told of every failed login; ban rules count them.
pub(crate) type Suspicion = Arc<dyn Fn(IpAddr, &'static str) + Send + Sync>;

/// Why a use case did not happen.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: &'static Code,
    pub(crate) detail: Option<String>,
    /// Faults of the input, one by one.
    pub(crate) faults: Vec<Fault>,
    /// How long to wait before trying again.
    pub(crate) wait: Option<Duration>,
}

/// One fault of an input.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Fault {
    /// Where: a JSON pointer into the body, or `query/NAME`, `header/NAME`.
    #[schema(example = "/name")]
    pub(crate) pointer: String,
    /// What is wrong there.
    #[schema(example = "has more than 63 characters")]
    pub(crate) detail: String,
}

impl Fault {
    pub(crate) fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

impl Failure {
    pub(crate) fn new(code: &'static Code) -> Self {
        Self { code, detail: None, faults: Vec::new(), wait: None }
    }

    pub(crate) fn because(code: &'static Code, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::new(code) }
    }

    pub(crate) fn faults(code: &'static Code, faults: Vec<Fault>) -> Self {
        Self { faults, ..Self::new(code) }
    }

    /// What the input asks for makes no sense, at one place of it.
    pub(crate) fn at(pointer: &str, detail: impl Into<String>) -> Self {
        Self::faults(&Code::NOT_POSSIBLE, vec![Fault::new(pointer, detail)])
    }

    pub(crate) fn after(code: &'static Code, wait: Duration) -> Self {
        Self { wait: Some(wait), ..Self::new(code) }
    }

    pub(crate) fn no_such_thing() -> Self {
        Self::new(&Code::NO_SUCH_THING)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.code.title)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        self.faults.iter().try_for_each(|fault| write!(f, "; {}: {}", fault.pointer, fault.detail))
    }
}

impl std::error::Error for Failure {}

impl From<StoreError> for Failure {
    /// Where a caller does not know better. What the database says is for the log only.
    fn from(failure: StoreError) -> Self {
        match failure {
            StoreError::Duplicate(_) => Self::new(&Code::ALREADY_THERE),
            StoreError::Stale => Self::no_such_thing(),
            StoreError::Refused(why) => {
                warn!(why, "the store refuses a row");
                Self::new(&Code::NOT_POSSIBLE)
            }
            StoreError::Unavailable(why) | StoreError::ReadOnly(why) => {
                warn!(why, "the store is away");
                Self::new(&Code::STORE_AWAY)
            }
            StoreError::Other(why) => {
                error!(why, "the store failed");
                Self::new(&Code::INTERNAL)
            }
        }
    }
}

/// Who calls, with a login that is good.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) user: Uuid,
    pub(crate) email: String,
    pub(crate) role: Role,
    pub(crate) login: Uuid,
    pub(crate) peer: IpAddr,
}

impl Caller {
    pub(crate) fn actor(&self) -> Actor {
        Actor { id: Some(self.user), name: self.email.clone(), peer: Some(self.peer) }
    }

    /// Whose things the caller sees: everybody's (`None`) as an operator, else the own ones. What is
    /// somebody else's looks as if it was not there (T21).
    pub(crate) fn sees(&self) -> Option<Uuid> {
        (self.role < Role::Operator).then_some(self.user)
    }

    /// Of whom to list: as [`Caller::sees`], and of those only `wanted`.
    pub(crate) fn lists(&self, wanted: Option<Uuid>) -> Option<Uuid> {
        self.sees().or(wanted)
    }

    /// Refuses to change what the caller sees and is somebody else's.
    pub(crate) fn may_change(&self, owner: Uuid) -> Result<(), Failure> {
        let may = owner == self.user || self.role >= Role::Admin;
        may.then_some(()).ok_or_else(|| Failure::new(&Code::ROLE_NEEDED))
    }
}

impl Services {
    pub(crate) fn new(
        store: Store,
        events: Events,
        live: Arc<dyn Live>,
        settings: Settings,
        secret: Secret,
        passwords: Passwords,
        suspicion: Suspicion,
    ) -> Self {
        let auth = logins::Auth::new(secret, settings.issuer.clone(), passwords, suspicion);
        Self { store, events, live, settings: Arc::new(settings), auth: Arc::new(auth) }
    }

    /// Makes a change, writes it down and tells everybody.
    pub(crate) async fn change(
        &self,
        mut statements: Vec<Statement>,
        event: Event,
        actor: &Actor,
    ) -> Result<(), StoreError> {
        statements.push(audit::entry(&event, actor));
        self.store.transaction(statements).await?;
        self.events.publish(event);
        Ok(())
    }
}

/// An event that happens now.
pub(crate) fn event(kind: Kind, user: Option<Uuid>, object: Option<Uuid>) -> Event {
    Event::new(kind).of(user).object(object)
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_util::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;

    /// Nothing is online; bans and cuts are what the test says.
    #[derive(Default)]
    pub(crate) struct NothingLive {
        pub(crate) cut: Mutex<Vec<Uuid>>,
        pub(crate) bans: Mutex<Vec<Ban>>,
    }

    impl Live for NothingLive {
        fn is_online(&self, _: Uuid) -> BoxFuture<'_, bool> {
            async { false }.boxed()
        }

        fn totals(&self, _: Uuid) -> BoxFuture<'_, Option<Totals>> {
            async { None }.boxed()
        }

        fn cut_session(&self, session: Uuid) {
            self.cut.lock().push(session);
        }

        fn bans(&self) -> BoxFuture<'_, Vec<Ban>> {
            async { self.bans.lock().clone() }.boxed()
        }

        fn lift(&self, address: IpAddr) -> BoxFuture<'_, bool> {
            let mut bans = self.bans.lock();
            let before = bans.len();
            bans.retain(|ban| ban.address != address);
            let lifted = bans.len() < before;
            async move { lifted }.boxed()
        }

        fn state_is_well(&self) -> bool {
            true
        }
    }
}
