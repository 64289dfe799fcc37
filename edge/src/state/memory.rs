//! Shared state of one edge: this process's memory. One table for each kind of thing, each behind a
//! lock of its own that is held for a look-up; what has expired is as good as gone, and is swept out
//! as a table grows.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::broadcast, time::Instant};
use uuid::Uuid;

use super::{
    Counters, FENCES_KEPT, MESSAGES, MOST_EDGES, MOST_MARKS, MOST_SESSIONS, Presence, Route,
    TOTALS_KEPT, Told, Totals,
    share::{Lease, grant, part},
    ttl,
};

/// Entries of each kind.
const MOST: usize = 100_000;
/// Fewer are not worth a sweep.
const FEW: usize = 1_024;
/// A table is swept no more often than this.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    counters: Counters,
    routes: Mutex<Table<String, (), Route>>,
    sessions: Mutex<Table<Uuid, Uuid, Presence>>,
    totals: Mutex<Table<Uuid, (), Totals>>,
    leases: Mutex<Table<String, String, Lease>>,
    waiting: Mutex<Table<Uuid, String, u64>>,
    locks: Mutex<Table<String, (), Lock>>,
    marks: Mutex<Table<String, String, String>>,
    told: broadcast::Sender<Told>,
}

/// A lock, and the fence of its last holder when nobody has it.
#[derive(Debug)]
struct Lock {
    holder: String,
    fence: u64,
    until: Instant,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Tables {
            counters: Counters::default(),
            routes: Mutex::default(),
            sessions: Mutex::default(),
            totals: Mutex::default(),
            leases: Mutex::default(),
            waiting: Mutex::default(),
            locks: Mutex::default(),
            marks: Mutex::default(),
            told: broadcast::Sender::new(MESSAGES),
        }))
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// One call, on one table.
    fn on<'a, T>(&self, table: &'a Mutex<T>) -> MutexGuard<'a, T> {
        self.0.counters.called(Duration::ZERO, false);
        table.lock()
    }

    pub(super) fn put_route(&self, name: &str, route: &Route, ttl: Duration) -> bool {
        let mut routes = self.on(&self.0.routes);
        let name = name.to_owned();
        let free = match routes.get(&name, &()) {
            Some(old) if old.epoch == route.epoch => old.edge == route.edge,
            Some(old) => old.epoch < route.epoch,
            None => true,
        };
        let free = free && (routes.has(&name, &()) || routes.has_room());
        if free {
            routes.put(name, (), route.clone(), ttl);
        }
        free
    }

    pub(super) fn route(&self, name: &str) -> Option<Route> {
        self.on(&self.0.routes).get(&name.to_owned(), &()).cloned()
    }

    pub(super) fn drop_route(&self, name: &str, edge: &str, epoch: u64) {
        let mut routes = self.on(&self.0.routes);
        let name = name.to_owned();
        if routes.get(&name, &()).is_some_and(|old| old.edge == edge && old.epoch <= epoch) {
            routes.remove(name, ());
        }
    }

    pub(super) fn put_session(&self, tunnel: Uuid, presence: &Presence, ttl: Duration) {
        let mut sessions = self.on(&self.0.sessions);
        sessions.keep(tunnel, presence.session, presence.clone(), ttl);
        sessions.bound(&tunnel, &presence.session, MOST_SESSIONS);
    }

    pub(super) fn sessions(&self, tunnel: Uuid) -> Vec<Presence> {
        let sessions = self.on(&self.0.sessions);
        sessions.group(&tunnel).map(|(_, presence, _)| presence.clone()).collect()
    }

    pub(super) fn drop_session(&self, tunnel: Uuid, session: Uuid) {
        self.on(&self.0.sessions).remove(tunnel, session);
    }

    pub(super) fn add_totals(&self, tunnel: Uuid, more: Totals) {
        let mut totals = self.on(&self.0.totals);
        let old = totals.get(&tunnel, &()).copied().unwrap_or_default();
        totals.keep(tunnel, (), old.plus(more), TOTALS_KEPT);
    }

    pub(super) fn totals(&self, tunnel: Uuid) -> Totals {
        self.on(&self.0.totals).get(&tunnel, &()).copied().unwrap_or_default()
    }

    pub(super) fn share(&self, key: &str, edge: &str, demand: u64, ttl: Duration) -> f64 {
        let mut leases = self.on(&self.0.leases);
        let (key, edge) = (key.to_owned(), edge.to_owned());
        let others: Vec<Lease> = leases
            .group(&key)
            .filter(|(other, ..)| **other != edge)
            .map(|(_, lease, _)| *lease)
            .collect();
        if !leases.has(&key, &edge) && (others.len() >= MOST_EDGES || !leases.has_room()) {
            return 0.0;
        }
        let lease = grant(&others, demand);
        leases.put(key, edge, lease, ttl);
        part(lease.part)
    }

    pub(super) fn set_waiting(&self, tunnel: Uuid, edge: &str, waiting: u64, ttl: Duration) {
        let mut table = self.on(&self.0.waiting);
        let edge = edge.to_owned();
        if waiting == 0 {
            table.remove(tunnel, edge);
            return;
        }
        table.keep(tunnel, edge.clone(), waiting, ttl);
        table.bound(&tunnel, &edge, MOST_EDGES);
    }

    pub(super) fn waiting(&self, tunnel: Uuid) -> Vec<(String, u64)> {
        let table = self.on(&self.0.waiting);
        table.group(&tunnel).map(|(edge, waiting, _)| (edge.clone(), *waiting)).collect()
    }

    pub(super) fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Option<u64> {
        let mut locks = self.on(&self.0.locks);
        let (name, now) = (name.to_owned(), Instant::now());
        let next = |last: u64| (last + 1).max(micros());
        let fence = match locks.get(&name, &()) {
            Some(lock) if lock.until <= now => next(lock.fence),
            Some(lock) if lock.holder != holder => return None,
            Some(lock) => lock.fence,
            None => next(0),
        };
        if !locks.has(&name, &()) && !locks.has_room() {
            return None;
        }
        locks.put(name, (), Lock::new(holder, fence, now, ttl), FENCES_KEPT);
        Some(fence)
    }

    pub(super) fn unlock(&self, name: &str, holder: &str) {
        let mut locks = self.on(&self.0.locks);
        let now = Instant::now();
        if let Some(lock) = locks.get_mut(&name.to_owned(), &())
            && lock.holder == holder
        {
            lock.until = lock.until.min(now);
        }
    }

    pub(super) fn mark(&self, space: &str, key: &str, value: &str, ttl: Duration) {
        let mut marks = self.on(&self.0.marks);
        let (space, key) = (space.to_owned(), key.to_owned());
        marks.keep(space.clone(), key.clone(), value.to_owned(), ttl);
        marks.bound(&space, &key, MOST_MARKS);
    }

    pub(super) fn marks(&self, space: &str) -> Vec<(String, String, Duration)> {
        let (marks, space) = (self.on(&self.0.marks), space.to_owned());
        let all = marks.group(&space);
        all.map(|(key, value, left)| (key.clone(), value.clone(), left)).collect()
    }

    pub(super) fn unmark(&self, space: &str, key: &str) -> bool {
        self.on(&self.0.marks).remove(space.to_owned(), key.to_owned())
    }

    pub(super) fn publish(&self, message: String) {
        self.0.counters.called(Duration::ZERO, false);
        // Nobody listens: then nobody has missed anything.
        let _ = self.0.told.send(Told::Message(message));
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.0.told.subscribe()
    }
}

impl Lock {
    fn new(holder: &str, fence: u64, now: Instant, time: Duration) -> Self {
        Self { holder: holder.to_owned(), fence, until: now + ttl(time) }
    }
}

/// Of the wall clock: fences grow over restarts, too.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX - 1)
}

/// Entries in groups, each with its time; [`MOST`] in all.
#[derive(Debug)]
struct Table<G, F, V> {
    entries: BTreeMap<(G, F), Entry<V>>,
    /// It is swept when it has so many entries, and not before then.
    sweep_at: usize,
    next_sweep: Option<Instant>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    expires: Instant,
}

impl<G, F, V> Default for Table<G, F, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), sweep_at: FEW, next_sweep: None }
    }
}

impl<G: Ord + Clone, F: Ord + Clone + Default, V> Table<G, F, V> {
    fn get(&self, group: &G, field: &F) -> Option<&V> {
        let entry = self.entries.get(&(group.clone(), field.clone()))?;
        (entry.expires > Instant::now()).then_some(&entry.value)
    }

    fn has(&self, group: &G, field: &F) -> bool {
        self.get(group, field).is_some()
    }

    fn get_mut(&mut self, group: &G, field: &F) -> Option<&mut V> {
        let entry = self.entries.get_mut(&(group.clone(), field.clone()))?;
        (entry.expires > Instant::now()).then_some(&mut entry.value)
    }

    /// What lives in a group, in the order of its fields, and for how long it will.
    fn group<'a>(&'a self, group: &'a G) -> impl Iterator<Item = (&'a F, &'a V, Duration)> {
        let now = Instant::now();
        // The default of a field is its least value.
        let all = self.entries.range((group.clone(), F::default())..);
        all.take_while(move |((of, _), _)| of == group).filter_map(move |((_, field), entry)| {
            let left = entry.expires.saturating_duration_since(now);
            (!left.is_zero()).then_some((field, &entry.value, left))
        })
    }

    fn put(&mut self, group: G, field: F, value: V, time: Duration) {
        let expires = Instant::now() + ttl(time);
        self.entries.insert((group, field), Entry { value, expires });
    }

    /// Puts it, and lets the oldest entries go if there is no room otherwise.
    fn keep(&mut self, group: G, field: F, value: V, time: Duration) {
        if !self.has(&group, &field) && !self.has_room() {
            let all = self.entries.iter().map(|(key, entry)| (entry.expires, key.clone()));
            let oldest = earliest(all.collect(), MOST / 100);
            self.forget(oldest);
        }
        self.put(group, field, value, time);
    }

    /// Whether it was there.
    fn remove(&mut self, group: G, field: F) -> bool {
        let gone = self.entries.remove(&(group, field));
        gone.is_some_and(|entry| entry.expires > Instant::now())
    }

    /// Whether one more may come, when those that have expired are gone.
    fn has_room(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next_sweep.is_none_or(|next| next <= now);
        if due && self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| entry.expires > now);
            self.sweep_at = (self.entries.len() * 2).clamp(FEW, MOST);
            self.next_sweep = Some(now + SWEEP);
        }
        self.entries.len() < MOST
    }

    /// Lets a group have `most` entries: those go that expire first, some more than needed, so that
    /// this is rare; `latest` stays.
    fn bound(&mut self, group: &G, latest: &F, most: usize) {
        let from = (group.clone(), F::default());
        let of_group = self.entries.range(from..).take_while(|((of, _), _)| of == group);
        if of_group.clone().count() <= most {
            return;
        }
        let now = Instant::now();
        let (living, expired): (Vec<_>, Vec<_>) = of_group
            .filter(|((_, field), _)| field != latest)
            .map(|(key, entry)| (entry.expires, key.clone()))
            .partition(|(expires, _)| *expires > now);
        let over = (living.len() + 1 > most).then(|| living.len() + 1 - (most - most / 100));
        self.forget(expired.into_iter().map(|(_, key)| key).collect());
        self.forget(earliest(living, over.unwrap_or(0)));
    }

    fn forget(&mut self, keys: Vec<(G, F)>) {
        for key in keys {
            self.entries.remove(&key);
        }
    }
}

/// The `count` keys that come first.
fn earliest<K: Ord>(mut all: Vec<(Instant, K)>, count: usize) -> Vec<K> {
    all.sort_unstable();
    all.truncate(count);
    all.into_iter().map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn route(epoch: u64) -> Route {
        Route { tunnel: Uuid::nil(), epoch, edge: "a".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_refuses_what_is_new_until_something_expires() {
        let memory = Memory::new();
        assert!(memory.put_route("short", &route(1), Duration::from_secs(10)));
        for n in 1..MOST {
            assert!(memory.put_route(&n.to_string(), &route(1), LONG));
        }
        assert!(!memory.put_route("new", &route(1), LONG));
        assert!(memory.put_route("5", &route(2), LONG), "what is there may change");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(memory.put_route("new", &route(1), LONG));
        assert!(!memory.put_route("newer", &route(1), LONG));
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_t_be_refused_takes_the_place_of_the_oldest() {
        let memory = Memory::new();
        let id = |n: usize| Uuid::from_u128(n as u128);
        for n in 0..=MOST {
            memory.add_totals(id(n), Totals { requests: 1, ..Totals::default() });
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(memory.totals(id(0)), Totals::default());
        assert_eq!(memory.totals(id(MOST)).requests, 1);
        assert!(memory.0.totals.lock().entries.len() <= MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_does_not_keep_what_has_expired() {
        let memory = Memory::new();
        for n in 0..20_000 {
            memory.put_route(&n.to_string(), &route(1), Duration::from_millis(100));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(memory.0.routes.lock().entries.len() < 4 * FEW);
    }
}
