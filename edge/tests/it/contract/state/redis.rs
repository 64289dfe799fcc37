//! What only Redis can do: go away, come back, ask for a password. And its keys, which others may
//! look at.

use std::{path::PathBuf, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::broadcast, time::Instant};
use uniroute_edge::state::{Secret, State, StateOptions, Told, Totals};
use uuid::Uuid;

use super::{LONG, presence, route};
use crate::harness::{
    eventually,
    redis::{TestRedis, TestRedisCluster, TestSentinel, Wish, open},
    within,
};

/// How soon it has to be noticed that nobody answers.
const NOTICED: Duration = Duration::from_secs(2);
/// How soon everything works again.
const BACK: Duration = Duration::from_secs(10);
/// The same where a replica has to take over first, which takes the servers some three seconds here.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// How long a call may take that is not answered.
const FAILS: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn keys_are_the_documented_ones_and_all_expire() {
    let redis = TestRedis::start().await;
    let (state, tunnel) = (redis.state().await, Uuid::now_v7());
    state.put_route("demo", &route(tunnel, 1, "a"), LONG).await.unwrap();
    state.put_session(tunnel, &presence(1, "a"), LONG).await.unwrap();
    state.add_totals(tunnel, Totals { requests: 1, ..Totals::default() }).await.unwrap();
    state.share("user", "a", 1, LONG).await.unwrap();
    state.set_waiting(tunnel, "a", 1, LONG).await.unwrap();
    state.lock("job", "a", LONG).await.unwrap();
    state.unlock("job", "a").await.unwrap();
    state.mark("bans", "x", "y", LONG).await.unwrap();
    let mut expected = vec![
        "tunnel:health".to_owned(),
        "tunnel:lock:{job}".to_owned(),
        "tunnel:mark:{bans}".to_owned(),
        format!("tunnel:queue:{{{tunnel}}}"),
        "tunnel:ratelimit:{user}".to_owned(),
        format!("tunnel:session:{{{tunnel}}}"),
        format!("tunnel:stats:{{{tunnel}}}"),
        "tunnel:subdomain:{demo}".to_owned(),
    ];
    let mut keys: Vec<String> = redis.cli(&["keys", "*"]).lines().map(str::to_owned).collect();
    keys.sort_unstable();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    for key in &keys {
        let left: i64 = redis.cli(&["pttl", key]).parse().unwrap();
        assert!(left > 0, "{key} expires in {left}");
    }
    let left: u128 = redis.cli(&["pttl", "tunnel:subdomain:{demo}"]).parse().unwrap();
    assert!(left <= LONG.as_millis() && left > LONG.as_millis() / 2, "{left}");
}

/// A key lives as long as its longest field, however short the last one is.
#[tokio::test]
async fn a_short_field_does_not_shorten_its_key() {
    let redis = TestRedis::start().await;
    let (state, tunnel) = (redis.state().await, Uuid::now_v7());
    state.put_session(tunnel, &presence(1, "a"), LONG).await.unwrap();
    state.put_session(tunnel, &presence(2, "a"), Duration::from_secs(5)).await.unwrap();
    let left: u128 = redis.cli(&["pttl", &format!("tunnel:session:{{{tunnel}}}")]).parse().unwrap();
    assert!(left > LONG.as_millis() / 2, "{left}");
}

/// What other programs have left under our keys is not there for us, and does no harm.
#[tokio::test]
async fn what_can_t_be_read_is_not_there() {
    let redis = TestRedis::start().await;
    let (state, tunnel) = (redis.state().await, Uuid::now_v7());
    redis.cli(&["set", "tunnel:subdomain:{demo}", "rubbish"]);
    assert_eq!(state.route("demo").await.unwrap(), None);
    redis.cli(&["hset", "tunnel:mark:{bans}", "x", "rubbish"]);
    assert_eq!(state.marks("bans").await.unwrap(), []);
    redis.cli(&["set", &format!("tunnel:stats:{{{tunnel}}}"), "rubbish"]);
    assert!(state.totals(tunnel).await.is_err());
    assert!(state.is_well(), "it did answer");
}

/// Waits until the state is as told.
async fn until_well(state: &State, well: bool, bound: Duration) {
    let began = Instant::now();
    eventually("the state's health changes", async || (state.is_well() == well).then_some(()))
        .await;
    assert!(began.elapsed() < bound, "is_well() was {well} after {:?}", began.elapsed());
}

/// Calls fail, and soon.
async fn calls_fail(state: &State) {
    let (began, route) = (Instant::now(), route(Uuid::nil(), 1, "a"));
    let (a, b, c) = tokio::join!(
        state.route("demo"),
        state.put_route("demo", &route, LONG),
        state.publish("lost".into()),
    );
    assert!(began.elapsed() < FAILS, "after {:?}", began.elapsed());
    assert!(a.is_err() && b.is_err() && c.is_err(), "{a:?} {b:?} {c:?}");
}

/// Everything works, after a break.
async fn works(state: &State) {
    let name = format!("back-{}", Uuid::now_v7());
    assert!(state.put_route(&name, &route(Uuid::nil(), 1, "a"), LONG).await.unwrap());
    assert!(state.route(&name).await.unwrap().is_some());
}

/// The first thing that is told after a break is the gap; then messages arrive.
async fn a_gap_then(state: &State, receiver: &mut broadcast::Receiver<Told>, message: &str) {
    let told = within("something is told after the break", receiver.recv()).await.unwrap();
    assert_eq!(told, Told::Gap);
    state.publish(message.to_owned()).await.unwrap();
    loop {
        match within("a message after the gap", receiver.recv()).await.unwrap() {
            Told::Gap => {}
            Told::Message(text) => return assert_eq!(text, message),
        }
    }
}

#[tokio::test]
async fn a_killed_redis_is_noticed_and_its_return_too() {
    let mut redis = TestRedis::start().await;
    let state = redis.state().await;
    let mut receiver = state.subscribe();
    state.publish("before".into()).await.unwrap();
    let told = within("a message", receiver.recv()).await.unwrap();
    assert_eq!(told, Told::Message("before".into()));
    redis.kill();
    calls_fail(&state).await;
    until_well(&state, false, NOTICED).await;
    calls_fail(&state).await;
    assert!(state.counts().failures >= 6);
    redis.restart().await;
    until_well(&state, true, BACK).await;
    works(&state).await;
    a_gap_then(&state, &mut receiver, "after").await;
}

#[tokio::test]
async fn a_redis_that_stands_still_is_noticed_and_its_return_too() {
    let redis = TestRedis::start().await;
    let state = redis.state().await;
    let mut receiver = state.subscribe();
    let began = Instant::now();
    redis.stop();
    // More than may wait at a time.
    let many = join_all((0..5_000).map(|_| state.route("demo"))).await;
    assert!(began.elapsed() < FAILS, "after {:?}", began.elapsed());
    let said = |text: &str| {
        many.iter().filter(|one| one.as_ref().unwrap_err().to_string().contains(text)).count()
    };
    assert!(said("too many calls") >= 5_000 - 4_096, "{:?}", many.first());
    until_well(&state, false, NOTICED).await;
    eventually("nobody tries any more", async || {
        let began = Instant::now();
        calls_fail(&state).await;
        (began.elapsed() < Duration::from_millis(100)).then_some(())
    })
    .await;
    // Both connections are given up, which is what makes the gap.
    eventually("some seconds have gone by", async || {
        (began.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await;
    redis.resume();
    until_well(&state, true, BACK).await;
    works(&state).await;
    a_gap_then(&state, &mut receiver, "after").await;
}

/// The connection that only listens has a gap of its own.
#[tokio::test]
async fn a_cut_ear_is_told_of_the_gap() {
    let redis = TestRedis::start().await;
    let state = redis.state().await;
    let mut receiver = state.subscribe();
    redis.cli(&["client", "kill", "type", "pubsub"]);
    a_gap_then(&state, &mut receiver, "after").await;
    assert!(state.is_well());
}

#[tokio::test]
async fn it_opens_while_redis_is_away_and_connects_when_it_comes() {
    let mut redis = TestRedis::start().await;
    redis.kill();
    let began = Instant::now();
    let state = open(&redis.url(), StateOptions::default()).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(!state.is_well());
    let mut receiver = state.subscribe();
    calls_fail(&state).await;
    redis.restart().await;
    until_well(&state, true, BACK).await;
    works(&state).await;
    a_gap_then(&state, &mut receiver, "first").await;
}

#[tokio::test]
async fn what_is_on_disk_is_there_after_a_restart() {
    let mut redis = TestRedis::with(Wish { durable: true, ..Wish::default() }).await;
    let (state, tunnel) = (redis.state().await, Uuid::now_v7());
    state.add_totals(tunnel, Totals { requests: 7, ..Totals::default() }).await.unwrap();
    let fence = state.lock("job", "a", LONG).await.unwrap().unwrap();
    redis.kill();
    until_well(&state, false, NOTICED).await;
    redis.restart().await;
    until_well(&state, true, BACK).await;
    assert_eq!(state.totals(tunnel).await.unwrap().requests, 7);
    assert_eq!(state.lock("job", "b", LONG).await.unwrap(), None);
    assert_eq!(state.lock("job", "a", LONG).await.unwrap(), Some(fence));
}

#[tokio::test]
async fn scripts_and_fences_outlive_a_redis_that_has_lost_everything() {
    let redis = TestRedis::start().await;
    let state = redis.state().await;
    let fence = state.lock("job", "a", LONG).await.unwrap().unwrap();
    redis.cli(&["flushall"]);
    redis.cli(&["script", "flush"]);
    let next = state.lock("job", "b", LONG).await.unwrap().unwrap();
    assert!(next > fence, "{next} after {fence}");
    works(&state).await;
}

#[tokio::test]
async fn a_user_of_the_access_list_gets_in_and_nobody_else() {
    let wish = Wish { user: Some(("edge", "hunter2")), ..Wish::default() };
    let redis = TestRedis::with(wish).await;
    let state = redis.state().await;
    works(&state).await;
    let mut receiver = state.subscribe();
    state.publish("hello".into()).await.unwrap();
    let told = within("a message", receiver.recv()).await.unwrap();
    assert_eq!(told, Told::Message("hello".into()));
    let wrong = redis.url().replace("hunter2", "hunter3");
    let refused = open(&wrong, StateOptions::default()).await;
    assert!(!refused.is_well());
    let error = refused.route("demo").await.unwrap_err();
    assert!(!format!("{error} {error:?} {refused:?}").contains("hunter"), "{error:?}");
    assert!(!format!("{state:?}").contains("hunter"));
}

#[tokio::test]
async fn tls_trusts_the_given_certificates_alone() {
    let redis = TestRedis::with(Wish { tls: true, ..Wish::default() }).await;
    works(&redis.state().await).await;
    let strange = open(&redis.url(), StateOptions::default()).await;
    assert!(!strange.is_well(), "nobody has signed its certificate");
    let missing =
        StateOptions { ca_file: Some(PathBuf::from("/nowhere.pem")), ..Default::default() };
    let refused = State::open(&redis.url().parse().unwrap(), missing).await;
    assert!(refused.unwrap_err().to_string().contains("/nowhere.pem"));
}

#[tokio::test]
async fn sentinels_say_where_it_is() {
    let redis = TestRedis::start().await;
    let sentinel = TestSentinel::start(&redis).await;
    let state = open(&sentinel.url(), StateOptions::default()).await;
    until_well(&state, true, BACK).await;
    works(&state).await;
    assert!(redis.cli(&["keys", "tunnel:subdomain:*"]).contains("back-"));
    // What sentinels are told is a secret, too.
    let password = Some(Secret::new("hunter2"));
    let secret = StateOptions { sentinel_password: password, ..Default::default() };
    assert!(!format!("{secret:?}").contains("hunter2"));
}

/// The URL of a cluster, but there is none: an error that the library does not try again after.
#[tokio::test]
async fn a_server_that_is_no_cluster_is_asked_again_until_it_is_one() {
    let redis = TestRedis::start().await;
    let url = redis.url().replace("redis://", "redis-cluster://");
    let state = open(&url, StateOptions::default()).await;
    assert!(!state.is_well());
    calls_fail(&state).await;
    let connections = || -> u64 {
        let stats = redis.cli(&["info", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    // Those of this test itself are counted, too.
    let (began, mut asked) = (connections(), 0);
    eventually("it tries again", async || {
        asked += 1;
        (connections() > began + asked + 3).then_some(())
    })
    .await;
    assert!(!state.is_well());
}

#[tokio::test]
async fn connections_end_with_the_last_clone() {
    let redis = TestRedis::start().await;
    let state = redis.state().await;
    let clone = state.clone();
    drop(state);
    works(&clone).await;
    drop(clone);
    eventually("only the one who asks is connected", async || {
        (redis.cli(&["client", "list"]).lines().count() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cluster_without_one_of_its_servers_is_not_well_and_comes_back() {
    let mut cluster = TestRedisCluster::start().await;
    let state = cluster.state().await;
    let mut receiver = state.subscribe();
    cluster.nodes[1].kill();
    until_well(&state, false, NOTICED).await;
    calls_fail(&state).await;
    cluster.nodes[1].restart().await;
    cluster.ready().await;
    until_well(&state, true, BACK).await;
    works(&state).await;
    a_gap_then(&state, &mut receiver, "after").await;
    // Each message once, whatever the subscriptions went through.
    for n in 0..20 {
        state.publish(n.to_string()).await.unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < 20 {
        match within("the messages", receiver.recv()).await.unwrap() {
            Told::Message(text) => heard.push(text),
            Told::Gap => {}
        }
    }
    assert_eq!(heard, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_replica_takes_over_in_a_cluster() {
    let mut cluster = TestRedisCluster::with_replicas().await;
    let state = cluster.state().await;
    let mut receiver = state.subscribe();
    for n in 0..30 {
        assert!(state.put_route(&n.to_string(), &route(Uuid::nil(), 1, "a"), LONG).await.unwrap());
    }
    cluster.nodes[0].kill();
    until_well(&state, false, NOTICED).await;
    until_well(&state, true, TAKEN_OVER).await;
    for n in 0..30 {
        assert!(state.route(&n.to_string()).await.unwrap().is_some(), "{n}");
        works(&state).await;
    }
    a_gap_then(&state, &mut receiver, "after").await;
}
