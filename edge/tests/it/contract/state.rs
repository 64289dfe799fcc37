//! The shared state: what every backend promises, and what only Redis can do wrong.

mod redis;
mod shares;

use std::{future::Future, time::Duration};

use tokio::{sync::broadcast, task::JoinSet};
use uniroute_edge::state::{Presence, Route, State, Told, Totals};
use uuid::Uuid;

use crate::harness::{
    eventually,
    redis::{TestRedis, TestRedisCluster},
    within,
};

/// A time to live that nobody lives to see the end of.
const LONG: Duration = Duration::from_secs(600);
/// One that is waited for; long enough to look at what is there before.
const SHORT: Duration = Duration::from_millis(1_500);

/// Where a test runs.
enum Place {
    Memory(State),
    Redis(TestRedis),
    Cluster(TestRedisCluster),
}

impl Place {
    fn memory() -> Self {
        Self::Memory(State::in_memory())
    }

    async fn redis() -> Self {
        Self::Redis(TestRedis::start().await)
    }

    async fn cluster() -> Self {
        Self::Cluster(TestRedisCluster::start().await)
    }

    /// As one more edge has it.
    async fn state(&self) -> State {
        match self {
            Self::Memory(state) => state.clone(),
            Self::Redis(redis) => redis.state().await,
            Self::Cluster(cluster) => cluster.state().await,
        }
    }
}

macro_rules! everywhere {
    ($($behaviour:ident,)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $behaviour() {
                super::$behaviour(&super::Place::memory()).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test]
            async fn $behaviour() {
                super::$behaviour(&super::Place::redis().await).await;
            })*
        }

        /// In one, because a cluster takes its time to start.
        #[tokio::test]
        async fn all_of_it_on_a_cluster() {
            let place = Place::cluster().await;
            $(named(stringify!($behaviour), $behaviour(&place)).await;)*
        }
    };
}

everywhere! {
    the_highest_epoch_has_the_name,
    epochs_are_exact,
    a_route_is_taken_back_by_who_said_it,
    routes_expire,
    sessions_come_and_go_one_by_one,
    totals_add_up,
    shares_follow_the_demand,
    a_share_ends_with_its_lease,
    one_of_many_gets_a_lock,
    a_lock_goes_over_with_a_higher_fence,
    marks_stay_for_their_time,
    marks_are_bounded,
    waiting_is_told_by_edge,
    odd_names_are_kept_apart,
    messages_reach_everybody,
    a_slow_receiver_is_told_so,
    calls_are_counted,
}

/// Says which one it was, if it fails.
async fn named(behaviour: &str, run: impl Future<Output = ()>) {
    #[expect(clippy::print_stderr, reason = "shown when the test fails")]
    {
        eprintln!("{behaviour}");
    }
    within(behaviour, run).await;
}

fn route(tunnel: Uuid, epoch: u64, edge: &str) -> Route {
    Route { tunnel, epoch, edge: edge.into() }
}

fn presence(epoch: u64, edge: &str) -> Presence {
    Presence { session: Uuid::now_v7(), edge: edge.into(), epoch, agent: "agent".into() }
}

async fn the_highest_epoch_has_the_name(place: &Place) {
    let (a, b, tunnel) = (place.state().await, place.state().await, Uuid::now_v7());
    assert_eq!(a.route("epochs").await.unwrap(), None);
    assert!(a.put_route("epochs", &route(tunnel, 7, "a"), LONG).await.unwrap());
    let refused = [route(tunnel, 6, "a"), route(tunnel, 6, "b"), route(tunnel, 7, "b")];
    for refused in refused {
        assert!(!b.put_route("epochs", &refused, LONG).await.unwrap(), "{refused:?}");
        assert_eq!(b.route("epochs").await.unwrap(), Some(route(tunnel, 7, "a")));
    }
    assert!(a.put_route("epochs", &route(tunnel, 7, "a"), LONG).await.unwrap(), "said again");
    let other = Uuid::now_v7();
    assert!(b.put_route("epochs", &route(other, 8, "b"), LONG).await.unwrap());
    assert_eq!(a.route("epochs").await.unwrap(), Some(route(other, 8, "b")));
    assert!(!a.put_route("epochs", &route(tunnel, 7, "a"), LONG).await.unwrap());
}

async fn epochs_are_exact(place: &Place) {
    let (state, tunnel) = (place.state().await, Uuid::now_v7());
    for (name, epoch) in [("double", 1 << 53), ("signed", i64::MAX as u64), ("most", u64::MAX - 1)]
    {
        assert!(state.put_route(name, &route(tunnel, epoch, "a"), LONG).await.unwrap());
        assert!(!state.put_route(name, &route(tunnel, epoch - 1, "b"), LONG).await.unwrap());
        assert!(state.put_route(name, &route(tunnel, epoch + 1, "b"), LONG).await.unwrap());
        let now = state.route(name).await.unwrap();
        assert_eq!(now, Some(route(tunnel, epoch + 1, "b")));
    }
}

async fn a_route_is_taken_back_by_who_said_it(place: &Place) {
    let (state, tunnel) = (place.state().await, Uuid::now_v7());
    state.drop_route("back", "a", 9).await.unwrap();
    assert!(state.put_route("back", &route(tunnel, 9, "a"), LONG).await.unwrap());
    for (edge, epoch) in [("a", 8), ("b", 9), ("b", 10)] {
        state.drop_route("back", edge, epoch).await.unwrap();
        assert!(state.route("back").await.unwrap().is_some(), "{edge} {epoch}");
    }
    state.drop_route("back", "a", 9).await.unwrap();
    assert_eq!(state.route("back").await.unwrap(), None);
    assert!(state.put_route("back", &route(tunnel, 9, "a"), LONG).await.unwrap());
    state.drop_route("back", "a", 10).await.unwrap();
    assert_eq!(state.route("back").await.unwrap(), None);
}

async fn routes_expire(place: &Place) {
    let (state, tunnel) = (place.state().await, Uuid::now_v7());
    assert!(state.put_route("short", &route(tunnel, 2, "a"), SHORT).await.unwrap());
    assert!(state.put_route("renewed", &route(tunnel, 2, "a"), SHORT).await.unwrap());
    assert!(state.put_route("renewed", &route(tunnel, 2, "a"), LONG).await.unwrap());
    assert!(state.route("short").await.unwrap().is_some());
    eventually("the route expires", async || {
        state.route("short").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(state.route("renewed").await.unwrap().is_some());
    // Whoever comes then need not know the last epoch.
    assert!(state.put_route("short", &route(tunnel, 1, "b"), LONG).await.unwrap());
}

async fn sessions_come_and_go_one_by_one(place: &Place) {
    let (a, b, tunnel) = (place.state().await, place.state().await, Uuid::now_v7());
    assert_eq!(a.sessions(tunnel).await.unwrap(), []);
    let (short, old, new) = (presence(3, "a"), presence(1, "a"), presence(2, "b"));
    a.put_session(tunnel, &short, SHORT).await.unwrap();
    a.put_session(tunnel, &old, LONG).await.unwrap();
    b.put_session(tunnel, &new, SHORT).await.unwrap();
    let all = vec![short.clone(), new.clone(), old.clone()];
    assert_eq!(b.sessions(tunnel).await.unwrap(), all, "highest epoch first");
    assert_eq!(b.sessions(Uuid::now_v7()).await.unwrap(), [], "of no other tunnel");
    b.put_session(tunnel, &new, LONG).await.unwrap();
    eventually("one session expires", async || {
        let left = a.sessions(tunnel).await.unwrap();
        (left == [new.clone(), old.clone()]).then_some(())
    })
    .await;
    a.drop_session(tunnel, short.session).await.unwrap();
    a.drop_session(tunnel, new.session).await.unwrap();
    assert_eq!(b.sessions(tunnel).await.unwrap(), std::slice::from_ref(&old));
    // The key lives as long as its longest field.
    a.put_session(tunnel, &new, Duration::from_millis(1)).await.unwrap();
    eventually("a very short session expires", async || {
        (a.sessions(tunnel).await.unwrap() == [old.clone()]).then_some(())
    })
    .await;
}

async fn totals_add_up(place: &Place) {
    let tunnel = Uuid::now_v7();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let state = place.state().await;
        writers.spawn(async move {
            for n in 0..50 {
                let more =
                    Totals { requests: 1, errors: n % 2, bytes_in: writer, bytes_out: 1 << 40 };
                state.add_totals(tunnel, more).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let state = place.state().await;
    let sums = Totals { requests: 400, errors: 200, bytes_in: 28 * 50, bytes_out: 400 << 40 };
    assert_eq!(state.totals(tunnel).await.unwrap(), sums);
    assert_eq!(state.totals(Uuid::now_v7()).await.unwrap(), Totals::default());
    // They end at the end of the numbers, and don't fail there.
    let most = Totals { requests: u64::MAX, ..Totals::default() };
    state.add_totals(tunnel, most).await.unwrap();
    let full = state.totals(tunnel).await.unwrap();
    assert_eq!((full.requests, full.errors), (i64::MAX as u64, 200));
}

async fn shares_follow_the_demand(place: &Place) {
    let (a, b) = (place.state().await, place.state().await);
    assert_eq!(a.share("user-1", "a", 300, LONG).await.unwrap(), 1.0, "alone");
    assert_eq!(b.share("user-1", "b", 100, LONG).await.unwrap(), 0.0, "a has it all");
    assert_eq!(a.share("user-1", "a", 300, LONG).await.unwrap(), 0.75);
    assert_eq!(b.share("user-1", "b", 100, LONG).await.unwrap(), 0.25);
    assert_eq!(a.share("user-1", "a", 300, LONG).await.unwrap(), 0.75);
    assert_eq!(b.share("user-1", "b", 0, LONG).await.unwrap(), 0.05, "a tenth of a half");
    assert_eq!(a.share("user-1", "a", 300, LONG).await.unwrap(), 0.95);
    assert_eq!(a.share("user-2", "a", 0, LONG).await.unwrap(), 1.0, "another limit");
}

async fn a_share_ends_with_its_lease(place: &Place) {
    let state = place.state().await;
    assert_eq!(state.share("lease", "a", 10, SHORT).await.unwrap(), 1.0);
    assert_eq!(state.share("lease", "b", 10, LONG).await.unwrap(), 0.0);
    eventually("the other edge's part is free", async || {
        (state.share("lease", "b", 10, LONG).await.unwrap() == 1.0).then_some(())
    })
    .await;
}

async fn one_of_many_gets_a_lock(place: &Place) {
    let states = [place.state().await, place.state().await];
    let mut takers = JoinSet::new();
    for taker in 0..50 {
        let state = states[taker % 2].clone();
        takers
            .spawn(async move { state.lock("job", &format!("edge-{taker}"), LONG).await.unwrap() });
    }
    let fences: Vec<u64> = takers.join_all().await.into_iter().flatten().collect();
    assert_eq!(fences.len(), 1, "{fences:?}");
}

async fn a_lock_goes_over_with_a_higher_fence(place: &Place) {
    let (a, b) = (place.state().await, place.state().await);
    let first = a.lock("over", "a", LONG).await.unwrap().unwrap();
    assert_eq!(a.lock("over", "a", LONG).await.unwrap(), Some(first), "still the same");
    assert_eq!(b.lock("over", "b", LONG).await.unwrap(), None);
    b.unlock("over", "b").await.unwrap();
    assert_eq!(b.lock("over", "b", LONG).await.unwrap(), None, "who has it not can't give it back");
    a.unlock("over", "a").await.unwrap();
    let second = b.lock("over", "b", SHORT).await.unwrap().unwrap();
    assert!(second > first);
    let third = eventually("the lock is free when its time is over", async || {
        a.lock("over", "a", LONG).await.unwrap()
    })
    .await;
    assert!(third > second);
    b.unlock("over", "b").await.unwrap();
    assert_eq!(b.lock("over", "b", LONG).await.unwrap(), None, "a late word changes nothing");
}

async fn marks_stay_for_their_time(place: &Place) {
    let (a, b) = (place.state().await, place.state().await);
    assert_eq!(a.marks("bans").await.unwrap(), []);
    a.mark("bans", "198.51.100.7", "scan", SHORT).await.unwrap();
    a.mark("bans", "198.51.100.8", "spray", LONG).await.unwrap();
    b.mark("bans", "198.51.100.8", "login", LONG).await.unwrap();
    let there = |marks: &[(String, String, Duration)]| -> Vec<(String, String)> {
        marks.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect()
    };
    let marks = b.marks("bans").await.unwrap();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let both = [pair("198.51.100.7", "scan"), pair("198.51.100.8", "login")];
    assert_eq!(there(&marks), both);
    assert!(marks[0].2 <= SHORT && marks[1].2 > LONG / 2 && marks[1].2 <= LONG, "{marks:?}");
    assert_eq!(a.marks("other").await.unwrap(), []);
    eventually("the short one is gone", async || {
        let left = a.marks("bans").await.unwrap();
        (there(&left) == both[1..]).then_some(())
    })
    .await;
    assert!(!a.unmark("bans", "198.51.100.7").await.unwrap(), "it has expired");
    assert!(a.unmark("bans", "198.51.100.8").await.unwrap());
    assert!(!b.unmark("bans", "198.51.100.8").await.unwrap());
    assert_eq!(b.marks("bans").await.unwrap(), []);
}

async fn marks_are_bounded(place: &Place) {
    const MOST: usize = 10_000;
    let state = place.state().await;
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let state = state.clone();
        writers.spawn(async move {
            for n in (writer..MOST).step_by(16) {
                let time = LONG + Duration::from_secs(n as u64);
                state.mark("many", &n.to_string(), "", time).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    assert_eq!(state.marks("many").await.unwrap().len(), MOST);
    // It would be the first to expire, and still takes the place of others.
    state.mark("many", "new", "", Duration::from_secs(60)).await.unwrap();
    let left = state.marks("many").await.unwrap();
    assert!(left.len() <= MOST && left.len() > MOST * 9 / 10, "{}", left.len());
    let has = |key: &str| left.iter().any(|(one, ..)| one == key);
    assert!(has("new") && has("9999") && !has("0"));
}

async fn waiting_is_told_by_edge(place: &Place) {
    let (a, b, tunnel) = (place.state().await, place.state().await, Uuid::now_v7());
    a.set_waiting(tunnel, "a", 0, LONG).await.unwrap();
    assert_eq!(a.waiting(tunnel).await.unwrap(), []);
    a.set_waiting(tunnel, "a", 3, LONG).await.unwrap();
    b.set_waiting(tunnel, "b", 5, SHORT).await.unwrap();
    a.set_waiting(tunnel, "a", 4, LONG).await.unwrap();
    assert_eq!(b.waiting(tunnel).await.unwrap(), [("a".into(), 4), ("b".into(), 5)]);
    eventually("what an edge said expires", async || {
        (a.waiting(tunnel).await.unwrap() == [("a".into(), 4)]).then_some(())
    })
    .await;
    a.set_waiting(tunnel, "a", 0, LONG).await.unwrap();
    assert_eq!(b.waiting(tunnel).await.unwrap(), []);
}

async fn odd_names_are_kept_apart(place: &Place) {
    let state = place.state().await;
    let odd = ["", " ", "}", "{a}", "a}b", "%s", "\0", "a\nb", "ü", "5 x", "'"];
    for (number, name) in odd.iter().enumerate() {
        let edge = format!("edge {name}");
        let route = route(Uuid::now_v7(), 1, &edge);
        assert!(state.put_route(name, &route, LONG).await.unwrap());
        assert_eq!(state.route(name).await.unwrap(), Some(route));
        state.mark(name, name, name, LONG).await.unwrap();
        let marks = state.marks(name).await.unwrap();
        assert_eq!(marks.len(), 1, "{name:?}");
        assert_eq!((marks[0].0.as_str(), marks[0].1.as_str()), (*name, *name));
        assert_eq!(state.share(name, name, 1, LONG).await.unwrap(), 1.0);
        assert!(state.lock(name, name, LONG).await.unwrap().is_some());
        state.mark("odd", name, name, LONG).await.unwrap();
        assert_eq!(state.marks("odd").await.unwrap().len(), number + 1);
    }
}

async fn messages_reach_everybody(place: &Place) {
    let (a, b) = (place.state().await, place.state().await);
    let (mut at_a, mut at_b) = (a.subscribe(), b.subscribe());
    for n in 0..100 {
        a.publish(format!("message {n}")).await.unwrap();
    }
    for (n, receiver) in (0..100).flat_map(|n| [(n, 0), (n, 1)]) {
        let receiver = if receiver == 0 { &mut at_a } else { &mut at_b };
        // In memory there is one for both, and each receiver has them all once anyway.
        let told = within("a message arrives", receiver.recv()).await.unwrap();
        assert_eq!(told, Told::Message(format!("message {n}")));
    }
    assert!(at_a.is_empty() && at_b.is_empty());
}

async fn a_slow_receiver_is_told_so(place: &Place) {
    let state = place.state().await;
    let (mut slow, witness) = (state.subscribe(), state.subscribe());
    for n in 0..1_100 {
        state.publish(n.to_string()).await.unwrap();
    }
    eventually("all has arrived", async || (witness.len() >= 1_100).then_some(())).await;
    let lagged = slow.recv().await.unwrap_err();
    assert_eq!(lagged, broadcast::error::RecvError::Lagged(1_100 - 1_024));
    assert_eq!(slow.recv().await.unwrap(), Told::Message("76".into()), "the rest is there");
}

async fn calls_are_counted(place: &Place) {
    let state = place.state().await;
    let before = state.counts();
    state.route("counted").await.unwrap();
    state.publish("counted".into()).await.unwrap();
    let after = state.counts();
    assert_eq!(after.calls - before.calls, 2);
    assert_eq!(after.failures, before.failures);
    assert!(state.is_well());
    assert_eq!(state.is_shared(), !matches!(place, Place::Memory(_)));
    assert_eq!(after.time > before.time, state.is_shared());
}
