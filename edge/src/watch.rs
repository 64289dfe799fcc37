//! Live updates: whoever watches a tunnel, or all of his, is told what happens as it happens, over a
//! WebSocket at `/ws`. What is told is in `docs/api.md`.
//!
//! [`door`] says who is let in, [`feed`] what he is told, [`pipe`] carries it. Between the last two is
//! a bounded queue: who does not keep up is dropped and told so, and nobody waits for him. He comes
//! back with the number of the last event that he has, and gets what he has missed.

mod door;
mod feed;
mod pipe;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use parking_lot::{Mutex, RwLock};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tracing::debug;
use uniroute_shared::code::Code;
use uuid::Uuid;

pub(crate) use self::door::Knock;
use self::{feed::Feed, pipe::Pipe};
use crate::{
    Shared,
    events::{Event, Events, Kind},
    limits::Gate,
    registry::{Registry, Tunnel},
    traffic::Finished,
};

/// Connections of an edge that are told of events.
pub(crate) const MAX_WATCHERS: usize = 1_000;
/// The same of one account.
pub(crate) const MAX_OF_USER: usize = 20;
/// Requests a second of one tunnel that are told of.
const TUNNEL_REQUESTS: u32 = 50;
/// The same of all tunnels together: what is kept for those who come back is to reach for a while.
const EDGE_REQUESTS: u32 = 500;
/// Requests are told of for this long after the last one who watched has gone: he may come back.
const LINGER: Duration = Duration::from_secs(30);
/// The kernel holds no more than this for a connection; with its default, a slow one would be noticed
/// megabytes too late.
const SEND_BUFFER: usize = 64 * 1024;
/// What everybody who watches looks at is gathered no more often than this.
const SURVEY: Duration = Duration::from_millis(900);

/// What somebody wants to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Tunnel(Uuid),
    User(Uuid),
    /// Everything, for operators.
    All,
}

impl Scope {
    fn has(self, event: &Event) -> bool {
        match self {
            Self::Tunnel(tunnel) => event.tunnel == Some(tunnel),
            Self::User(user) => event.user == Some(user),
            Self::All => true,
        }
    }

    /// Under which it is found; `None`: everything. Identifiers of tunnels and users never meet.
    fn key(self) -> Option<Uuid> {
        match self {
            Self::Tunnel(id) | Self::User(id) => Some(id),
            Self::All => None,
        }
    }
}

/// How many requests of a tunnel were told of.
#[derive(Debug)]
pub(crate) struct Watched {
    gate: Gate,
    /// Not told of since one was.
    left_out: AtomicU64,
}

impl Default for Watched {
    fn default() -> Self {
        Self { gate: Gate::new(Some(TUNNEL_REQUESTS)), left_out: AtomicU64::new(0) }
    }
}

/// Everybody who watches.
#[derive(Debug)]
pub(crate) struct Watchers {
    seats: Mutex<Seats>,
    /// Whether there are any interests.
    any: AtomicBool,
    interests: RwLock<Interests>,
    gate: Gate,
    survey: Mutex<Option<(Instant, Arc<Survey>)>>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: usize,
    of_users: HashMap<Uuid, usize>,
}

#[derive(Debug, Default)]
struct Interests {
    of: HashMap<Option<Uuid>, Interest>,
    /// No interest ends before.
    sweep: Option<Instant>,
}

#[derive(Debug, Default)]
struct Interest {
    watchers: usize,
    /// Of the last one who has gone.
    until: Option<Instant>,
}

impl Interest {
    fn is_there(&self, now: Instant) -> bool {
        self.watchers > 0 || self.until.is_some_and(|until| now < until)
    }
}

/// Tunnels of this edge that somebody watches, by what he watches them as, and whether they are served.
type Survey = HashMap<Uuid, Vec<(Arc<Tunnel>, bool)>>;

impl Default for Watchers {
    fn default() -> Self {
        Self {
            seats: Mutex::default(),
            any: AtomicBool::new(false),
            interests: RwLock::default(),
            gate: Gate::new(Some(EDGE_REQUESTS)),
            survey: Mutex::default(),
        }
    }
}

impl Watchers {
    /// A place for one more.
    ///
    /// # Errors
    /// The code that says why there is none.
    fn enter(self: &Arc<Self>, user: Uuid, scope: Scope) -> Result<Place, &'static Code> {
        let mut seats = self.seats.lock();
        if seats.taken >= MAX_WATCHERS {
            return Err(&Code::WATCH_LIMIT);
        }
        let of_user = seats.of_users.entry(user).or_default();
        if *of_user >= MAX_OF_USER {
            return Err(&Code::USER_WATCH_LIMIT);
        }
        *of_user += 1;
        seats.taken += 1;
        drop(seats);
        let mut interests = self.interests.write();
        interests.of.entry(scope.key()).or_default().watchers += 1;
        self.any.store(true, Ordering::Relaxed);
        Ok(Place { watchers: Arc::clone(self), user, scope })
    }

    fn leave(&self, user: Uuid, scope: Scope) {
        let mut seats = self.seats.lock();
        seats.taken -= 1;
        if let Some(of_user) = seats.of_users.get_mut(&user) {
            *of_user -= 1;
            if *of_user == 0 {
                seats.of_users.remove(&user);
            }
        }
        drop(seats);
        let until = Instant::now() + LINGER;
        let mut interests = self.interests.write();
        if let Some(interest) = interests.of.get_mut(&scope.key()) {
            interest.watchers -= 1;
            interest.until = Some(until);
        }
        interests.sweep.get_or_insert(until);
    }

    /// Whether somebody watches the tunnel, or did a moment ago.
    fn watches(&self, tunnel: Uuid, user: Uuid, now: Instant) -> bool {
        let interests = self.interests.read();
        let there = |key| interests.of.get(&key).is_some_and(|one| one.is_there(now));
        let there = there(Some(tunnel)) || there(Some(user)) || there(None);
        let is_due = interests.sweep.is_some_and(|sweep| sweep <= now);
        drop(interests);
        if is_due {
            self.sweep(now);
        }
        there
    }

    /// Forgets interests that are over.
    fn sweep(&self, now: Instant) {
        let mut interests = self.interests.write();
        interests.of.retain(|_, interest| interest.is_there(now));
        let ends = interests.of.values().filter_map(|interest| interest.until);
        interests.sweep = ends.filter(|until| now < *until).min();
        self.any.store(!interests.of.is_empty(), Ordering::Relaxed);
    }

    /// A request is over: whoever watches its tunnel is told, unless there are too many.
    pub(crate) fn finished(&self, events: &Events, tunnel: &Tunnel, request: &Finished<'_>) {
        // All that requests pay while nobody watches.
        if self.any.load(Ordering::Relaxed) {
            self.tell(events, tunnel, request);
        }
    }

    fn tell(&self, events: &Events, tunnel: &Tunnel, request: &Finished<'_>) {
        let (id, user, now) = (Uuid::from(tunnel.id), tunnel.account.user, request.ended);
        if !self.watches(id, user, now) {
            return;
        }
        let watched = tunnel.counts.watched();
        if watched.gate.pass(now).is_err() || self.gate.pass(now).is_err() {
            watched.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut data = request.told(tunnel);
        let left_out = watched.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            data["left_out"] = left_out.into();
        }
        let object = Uuid::from_bytes(*request.id.as_bytes());
        events
            .publish_here(Event::new(Kind::Request).of(user).tunnel(id).object(object).data(data));
    }

    /// What of `registry` is watched; the same for everybody for a moment, since it takes a look at
    /// every name.
    fn survey(&self, registry: &Registry) -> Arc<Survey> {
        let now = Instant::now();
        let mut kept = self.survey.lock();
        if let Some((at, survey)) = &*kept
            && now.saturating_duration_since(*at) < SURVEY
        {
            return Arc::clone(survey);
        }
        let tunnels = registry.tunnels();
        let mut survey = Survey::new();
        let interests = self.interests.read();
        for (tunnel, _, session) in tunnels {
            for key in [Uuid::from(tunnel.id), tunnel.account.user] {
                if interests.of.contains_key(&Some(key)) {
                    let seen = (Arc::clone(&tunnel), session.is_some());
                    survey.entry(key).or_default().push(seen);
                }
            }
        }
        drop(interests);
        let survey = Arc::new(survey);
        *kept = Some((now, Arc::clone(&survey)));
        survey
    }
}

/// A place among those who watch; given back when it is dropped.
#[derive(Debug)]
struct Place {
    watchers: Arc<Watchers>,
    user: Uuid,
    scope: Scope,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watchers.leave(self.user, self.scope);
    }
}

/// Somebody who was let in.
pub(crate) struct Watcher {
    edge: Arc<Shared>,
    answer: Response<Bytes>,
    feed: Feed,
    pipe: Pipe,
    place: Place,
}

impl Watcher {
    /// The answer to his request.
    pub(crate) fn answer(&self) -> &Response<Bytes> {
        &self.answer
    }

    /// Serves a connection that the answer went out on, to its end; apart from the workers.
    pub(crate) async fn serve(self: Box<Self>, socket: TcpStream, early: Bytes) {
        let edge = Arc::clone(&self.edge);
        // Without it, more waits for a slow one than should.
        let _ = socket2::SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => return debug!(%error, "a watcher was lost on his way"),
        };
        let serving = async move {
            match TcpStream::from_std(socket) {
                Ok(socket) => self.run(socket, early).await,
                Err(error) => debug!(%error, "a watcher was lost on his way"),
            }
        };
        let serving = edge.tasks.spawn_on(serving, &edge.background);
        // A fault in there has been told by then.
        let _ = serving.await;
    }

    /// Serves a stream, to its end. What it is told comes from the background thread.
    pub(crate) async fn run<Io>(self, io: Io, early: Bytes)
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { edge, feed, pipe, place, .. } = self;
        edge.metrics.watch.opened.inc();
        // It ends with the pipe.
        edge.tasks.spawn_on(feed.run(), &edge.background);
        pipe.run(io, early).await;
        edge.metrics.watch.closed.inc();
        drop(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_places_and_so_many_of_one_account() {
        let (watchers, me) = (Arc::<Watchers>::default(), Uuid::now_v7());
        let mine: Vec<_> =
            (0..MAX_OF_USER).map(|_| watchers.enter(me, Scope::User(me)).unwrap()).collect();
        assert_eq!(watchers.enter(me, Scope::All).unwrap_err(), &Code::USER_WATCH_LIMIT);
        let enter = |_| {
            let user = Uuid::now_v7();
            watchers.enter(user, Scope::User(user)).unwrap()
        };
        let others: Vec<_> = (MAX_OF_USER..MAX_WATCHERS).map(enter).collect();
        let user = Uuid::now_v7();
        let full = watchers.enter(user, Scope::User(user));
        assert_eq!(full.unwrap_err(), &Code::WATCH_LIMIT);
        drop((mine, others));
        let seats = watchers.seats.lock();
        assert_eq!((seats.taken, seats.of_users.len()), (0, 0));
    }

    #[test]
    fn an_interest_outlives_its_watcher_for_a_while() {
        let (watchers, me) = (Arc::<Watchers>::default(), Uuid::now_v7());
        let (tunnel, other) = (Uuid::now_v7(), Uuid::now_v7());
        let begin = Instant::now();
        assert!(!watchers.any.load(Ordering::Relaxed));
        let place = watchers.enter(me, Scope::Tunnel(tunnel)).unwrap();
        assert!(watchers.watches(tunnel, me, begin) && !watchers.watches(other, me, begin));
        drop(place);
        assert!(watchers.watches(tunnel, me, begin));
        let later = Instant::now() + LINGER;
        assert!(!watchers.watches(tunnel, me, later));
        assert!(!watchers.any.load(Ordering::Relaxed), "requests pay nothing any more");
    }

    #[test]
    fn one_who_came_back_keeps_the_interest() {
        let (watchers, me) = (Arc::<Watchers>::default(), Uuid::now_v7());
        drop(watchers.enter(me, Scope::All).unwrap());
        let place = watchers.enter(me, Scope::All).unwrap();
        let later = Instant::now() + LINGER * 2;
        assert!(watchers.watches(Uuid::now_v7(), me, later));
        assert!(watchers.any.load(Ordering::Relaxed));
        drop(place);
    }
}
