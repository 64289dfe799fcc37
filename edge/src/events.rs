//! What happens, told once to everybody who wants to know: dashboards, the other edges, the parts of
//! this edge that act on a change. An event that changes something is in the audit log too, under the
//! same word.
//!
//! An event of any edge reaches every edge over the shared state, and its own edge at once. Events of
//! an edge are numbered from 1 as they arrive there; the last [`KEPT`] are kept, for those that come
//! back after a break. A subscriber that does not keep up is told so.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::{
    state::{State, Told},
    store::Timestamp,
};

/// Events that an edge keeps for those that come back.
pub(crate) const KEPT: usize = 4_096;
/// Events that a subscriber may lag behind.
pub(crate) const QUEUE: usize = 1_024;
/// Events that wait to be told to the other edges.
const OUTBOX: usize = 4_096;
/// Identifiers by which events are recognised that come twice.
const RECENT: usize = 8_192;

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
    /// UUID v7; also the row's in the audit log, if it is in there.
    pub(crate) id: Uuid,
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

impl Event {
    /// It happens now.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            id: Uuid::now_v7(),
            kind,
            at: Timestamp::now(),
            user: None,
            tunnel: None,
            object: None,
            data: serde_json::Value::Null,
        }
    }

    pub(crate) fn of(mut self, user: impl Into<Option<Uuid>>) -> Self {
        self.user = user.into();
        self
    }

    pub(crate) fn tunnel(mut self, tunnel: impl Into<Option<Uuid>>) -> Self {
        self.tunnel = tunnel.into();
        self
    }

    pub(crate) fn object(mut self, object: impl Into<Option<Uuid>>) -> Self {
        self.object = object.into();
        self
    }

    pub(crate) fn data(mut self, data: serde_json::Value) -> Self {
        self.data = data;
        self
    }
}

/// An event with its number on this edge.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) event: Arc<Event>,
}

/// What a subscriber that comes back finds.
#[derive(Debug)]
pub(crate) enum Since {
    /// Everything that it has missed.
    All(Vec<Numbered>),
    /// Too much: it has to look at the whole again. The last number given out so far.
    TooOld(u64),
}

/// See the module. Cloning is cheap; all clones are one bus.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    bus: Arc<Bus>,
}

#[derive(Debug)]
struct Bus {
    tell: broadcast::Sender<Numbered>,
    kept: Mutex<Kept>,
    /// To the other edges.
    outbox: mpsc::Sender<Arc<Event>>,
    waiting: Mutex<Option<mpsc::Receiver<Arc<Event>>>>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    number: u64,
    events: VecDeque<Numbered>,
    /// Identifiers of recent events, which come by several ways.
    recent: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Default for Events {
    fn default() -> Self {
        let (outbox, waiting) = mpsc::channel(OUTBOX);
        let bus = Bus {
            tell: broadcast::channel(QUEUE).0,
            kept: Mutex::default(),
            outbox,
            waiting: Mutex::new(Some(waiting)),
            dropped: AtomicU64::new(0),
        };
        Self { bus: Arc::new(bus) }
    }
}

impl Events {
    /// Tells everybody, on this edge at once.
    pub(crate) fn publish(&self, event: Event) {
        let event = Arc::new(event);
        if self.tell(&event) && self.bus.outbox.try_send(event).is_err() {
            self.bus.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells this edge only, of something that no other way leads to.
    pub(crate) fn publish_here(&self, event: Event) {
        self.bus.number(&mut self.bus.kept.lock(), Arc::new(event));
    }

    /// Tells this edge what it has heard from elsewhere; `false`: it knew already.
    pub(crate) fn heard(&self, event: Event) -> bool {
        self.tell(&Arc::new(event))
    }

    fn tell(&self, event: &Arc<Event>) -> bool {
        let mut kept = self.bus.kept.lock();
        if !kept.recent.insert(event.id) {
            return false;
        }
        kept.order.push_back(event.id);
        if kept.order.len() > RECENT
            && let Some(old) = kept.order.pop_front()
        {
            kept.recent.remove(&old);
        }
        self.bus.number(&mut kept, Arc::clone(event));
        true
    }

    /// Everything from now on; who lags behind by [`QUEUE`] events is told so by the receiver.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Numbered> {
        self.bus.tell.subscribe()
    }

    /// The number of the last one.
    pub(crate) fn last(&self) -> u64 {
        self.bus.kept.lock().number
    }

    /// What has come after the event `number`. Subscribe first: nothing is missed then.
    pub(crate) fn since(&self, number: u64) -> Since {
        let kept = self.bus.kept.lock();
        let first = kept.events.front().map_or(kept.number + 1, |first| first.number);
        if number > kept.number || number + 1 < first {
            return Since::TooOld(kept.number);
        }
        Since::All(kept.events.iter().filter(|event| event.number > number).cloned().collect())
    }

    /// Events that other edges were not told of, because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        self.bus.dropped.load(Ordering::Relaxed)
    }

    /// Carries events to the other edges and from them, until `stop`; `edge` is this one. To be
    /// started once. `on_gap` is called when some may have been missed.
    pub(crate) async fn exchange(
        &self,
        edge: &str,
        state: &State,
        on_gap: impl Fn(),
        stop: &CancellationToken,
    ) {
        let mut told = state.subscribe();
        let Some(mut outbox) = self.bus.waiting.lock().take() else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = outbox.recv() => {
                    let Some(event) = event else { return };
                    self.send(edge, state, &event).await;
                }
                told = told.recv() => match told {
                    Ok(Told::Message(message)) => self.receive(edge, &message),
                    Ok(Told::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => on_gap(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }

    async fn send(&self, edge: &str, state: &State, event: &Event) {
        if !state.is_shared() {
            return;
        }
        let letter = serde_json::to_string(&Letter { from: edge.into(), event: event.clone() });
        let Ok(letter) = letter else { return };
        if let Err(error) = state.publish(letter).await {
            // Those that matter are in the audit log, where the others find them.
            self.bus.dropped.fetch_add(1, Ordering::Relaxed);
            debug!(%error, kind = event.kind.as_str(), "an event was not passed on");
        }
    }

    fn receive(&self, edge: &str, message: &str) {
        match serde_json::from_str::<Letter>(message) {
            Ok(letter) if letter.from != edge => _ = self.heard(letter.event),
            Ok(_) => {}
            // Of a newer edge, perhaps.
            Err(error) => debug!(%error, "an event can't be read"),
        }
    }
}

impl Bus {
    /// Gives an event its number, and tells it.
    fn number(&self, kept: &mut Kept, event: Arc<Event>) {
        kept.number += 1;
        let numbered = Numbered { number: kept.number, event };
        kept.events.push_back(numbered.clone());
        if kept.events.len() > KEPT {
            kept.events.pop_front();
        }
        // Under the lock: numbers arrive in order. Nobody may be listening.
        let _ = self.tell.send(numbered);
    }
}

/// An event on its way between edges.
#[derive(Serialize, Deserialize)]
struct Letter {
    from: String,
    event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_gets_what_it_missed_or_hears_that_it_is_too_much() {
        let events = Events::default();
        let mut listener = events.subscribe();
        for _ in 0..3 {
            events.publish(Event::new(Kind::TunnelCreated));
        }
        assert_eq!(listener.try_recv().unwrap().number, 1);
        let missed = |number| match events.since(number) {
            Since::All(events) => events.iter().map(|event| event.number).collect(),
            Since::TooOld(last) => vec![0, last],
        };
        assert_eq!(missed(1), [2, 3]);
        assert_eq!(missed(3), [0; 0]);
        assert_eq!(missed(9), [0, 3], "of another edge, or from before a restart");
        for _ in 0..KEPT {
            events.publish(Event::new(Kind::TunnelDeleted));
        }
        assert_eq!(missed(2), [0, KEPT as u64 + 3]);
        assert_eq!(missed(3).len(), KEPT);
    }

    #[test]
    fn an_event_that_comes_twice_is_told_once() {
        let (events, event) = (Events::default(), Event::new(Kind::TokenRevoked));
        assert!(events.heard(event.clone()));
        assert!(!events.heard(event.clone()));
        events.publish(event);
        assert_eq!(events.last(), 1);
    }

    #[test]
    fn an_event_survives_its_way() {
        let event =
            Event::new(Kind::LoginReused).of(Uuid::now_v7()).data(serde_json::json!({"a": 1}));
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains("user.refresh-token-reused"), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
