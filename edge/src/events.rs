//! What happens, told once to everybody who wants to know: dashboards, the other edges, the parts of
//! this edge that act on a change. An event that changes something is in the audit log too, under the
//! same word.
//!
//! An event of any edge reaches every edge over the shared state, and its own edge at once. Events of
//! an edge are numbered from 1 as they arrive there; the last [`KEPT`] are kept, for those that come
//! back after a break. A subscriber that does not keep up is told so ([`Lagged`]) and dropped.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Timestamp;

/// Events that an edge keeps for those that come back.
pub(crate) const KEPT: usize = 4_096;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What has happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub(crate) enum Kind {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl Kind {
            /// The word for it, in the audit log and for programs.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// The kind that has this word.
            pub(crate) fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The words of all kinds.
            pub(crate) const WORDS: &'static [&'static str] = &[$($word,)*];
        }
    };
}

kinds! {
    TunnelCreated = "tunnel.created",
    TunnelUpdated = "tunnel.updated",
    TunnelPaused = "tunnel.paused",
    TunnelResumed = "tunnel.resumed",
    TunnelDeleted = "tunnel.deleted",
    /// A session serves it.
    TunnelOnline = "tunnel.online",
    /// None does any more.
    TunnelOffline = "tunnel.offline",
    /// A request is over; not in the audit log, and left out under load.
    Request = "request",
    SessionOpened = "session.opened",
    SessionClosed = "session.closed",
    /// Somebody ended it: `object` is the session.
    SessionCut = "session.cut",
    TokenCreated = "token.created",
    TokenUpdated = "token.updated",
    TokenRotated = "token.rotated",
    /// Its sessions end: `object` is the token.
    TokenRevoked = "token.revoked",
    UserCreated = "user.created",
    /// Role, plan, or whether it is active: `object` is the user.
    UserUpdated = "user.updated",
    UserDeleted = "user.deleted",
    UserLoggedIn = "user.logged-in",
    UserLoggedOut = "user.logged-out",
    UserLocked = "user.locked",
    PasswordChanged = "user.password-changed",
    /// An old refresh token was used again: its login is over.
    LoginReused = "user.refresh-token-reused",
    InviteCreated = "invite.created",
    InviteUsed = "invite.used",
    DomainCreated = "domain.created",
    DomainUpdated = "domain.updated",
    DomainDeleted = "domain.deleted",
    /// `data.plan` is its name.
    PlanUpdated = "plan.updated",
    PlanDeleted = "plan.deleted",
    KeysRotated = "keys.rotated",
    /// `data.address`, `data.rule`, `data.until`.
    AddressBanned = "address.banned",
    BanLifted = "address.ban-lifted",
    /// Something looks like an attack: `data.rule`.
    Suspicious = "suspicious",
}

/// One thing that has happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    pub(crate) at: Timestamp,
    /// Whose it is; `None`: operators' only.
    pub(crate) user: Option<Uuid>,
    /// The tunnel that it is about.
    pub(crate) tunnel: Option<Uuid>,
    /// What else it is about; see [`Kind`].
    pub(crate) object: Option<Uuid>,
    /// More of it, for people and programs; never a secret.
    #[serde(default)]
    pub(crate) data: serde_json::Value,
}

/// Tells everybody on this edge what happens.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    told: tokio::sync::broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { told: tokio::sync::broadcast::Sender::new(1_024) }
    }
}

impl Events {
    pub(crate) fn publish(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.told.send(event);
    }

    pub(crate) fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.told.subscribe()
    }
}
