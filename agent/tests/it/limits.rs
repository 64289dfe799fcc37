//! What an agent's settings say of how much comes in, and for how long it is waited for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::harness::{
    Edge, Upstream, eventually,
    process::{Process, run},
};

/// A held request waits longer than this.
const AT_ONCE: Duration = Duration::from_secs(6);

/// A local server whose answers begin when they are let go on.
struct Slow {
    upstream: Upstream,
    reached: Arc<Semaphore>,
    on: Arc<Semaphore>,
}

impl Slow {
    async fn start() -> Self {
        let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (here, go) = (Arc::clone(&reached), Arc::clone(&on));
        let answer = get(async move || {
            here.add_permits(1);
            go.acquire().await.unwrap().forget();
            "slow"
        });
        let upstream = Upstream::start(Router::new().fallback(answer)).await;
        Self { upstream, reached, on }
    }
}

fn config(edge: &Edge, upstream: &Upstream, more: &str) {
    let text = format!(
        "version = 1\n[tunnels.demo]\nupstream = {:?}\nname = \"demo\"\n{more}\n",
        upstream.port()
    );
    std::fs::write(edge.home.path().join("uniroute.toml"), text).unwrap();
}

/// `uniroute start demo`, ready.
async fn started(edge: &Edge) -> Process {
    let mut command = edge.agent(&["start", "demo", "--config", "uniroute.toml"]);
    let agent = Process::start(&mut command);
    agent.out_line("ready demo").await;
    agent
}

/// So many requests at once: the statuses, and the last answer that was none of the local server's.
async fn ask(edge: &Arc<Edge>, count: usize) -> (Vec<u16>, String) {
    let mut asked = JoinSet::new();
    for _ in 0..count {
        let edge = Arc::clone(edge);
        asked.spawn(async move { edge.get("demo", "/").await });
    }
    let all = asked.join_all().await;
    let refused = all.iter().find(|(status, _)| *status != 200);
    let refused = refused.map(|(_, answer)| answer.to_lowercase()).unwrap_or_default();
    (all.into_iter().map(|(status, _)| status).collect(), refused)
}

/// One more than may be under way is refused until one is over; a limit comes and goes with the config
/// file.
#[tokio::test]
async fn so_many_requests_are_under_way_and_no_more() {
    let edge = Arc::new(Edge::start().await);
    let slow = Slow::start().await;
    config(&edge, &slow.upstream, "limits.in_flight = 2");
    let agent = started(&edge).await;
    let mut held = JoinSet::new();
    let hold = |held: &mut JoinSet<(u16, String)>| {
        let edge = Arc::clone(&edge);
        held.spawn(async move { edge.get("demo", "/").await });
    };
    for _ in 0..2 {
        hold(&mut held);
        slow.reached.acquire().await.unwrap().forget();
    }
    let (statuses, refused) = ask(&edge, 3).await;
    assert_eq!(statuses, [503; 3]);
    for part in ["x-uniroute-error: ur-5014", "retry-after: 1"] {
        assert!(refused.contains(part), "{refused}");
    }
    // One more place, without a pause for those that are under way.
    config(&edge, &slow.upstream, "limits.in_flight = 3");
    agent.signal("HUP").await;
    agent.out_line("reloaded: changed demo;").await;
    eventually("the new limit holds", async || {
        let (status, _) = tokio::select! {
            answer = edge.get("demo", "/") => answer,
            reached = slow.reached.acquire() => { reached.unwrap().forget(); (200, String::new()) }
        };
        (status == 200).then_some(())
    })
    .await;
    slow.on.add_permits(1_000);
    for (status, answer) in held.join_all().await {
        assert_eq!(status, 200, "{answer}");
    }
    // Also of one whose visitor has left.
    eventually("all places are free", async || (ask(&edge, 3).await.0 == [200; 3]).then_some(()))
        .await;
}

#[tokio::test]
async fn so_many_requests_a_second_and_no_more() {
    let edge = Arc::new(Edge::start().await);
    let upstream = Upstream::saying("served").await;
    config(&edge, &upstream, "limits.requests_per_second = 1");
    let agent = started(&edge).await;
    let (statuses, refused) = ask(&edge, 24).await;
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    for part in ["x-uniroute-error: ur-5031", "retry-after: "] {
        assert!(refused.contains(part), "{refused}");
    }
    config(&edge, &upstream, "");
    agent.signal("HUP").await;
    eventually("there is no limit", async || (ask(&edge, 24).await.0 == [200; 24]).then_some(()))
        .await;
}

/// While its agent is away, a tunnel that is not to be waited for says so at once.
#[tokio::test]
async fn nothing_waits_where_the_hold_is_off() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    config(&edge, &upstream, "hold.reconnect = \"off\"");
    let mut agent = started(&edge).await;
    agent.kill().await;
    let began = Instant::now();
    eventually("its visitors are told", async || {
        let (status, answer) = edge.get("demo", "/").await;
        (status == 503 && answer.contains("UR-2001")).then_some(())
    })
    .await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    // Another one is waited for as ever.
    config(&edge, &upstream, "");
    let mut agent = started(&edge).await;
    agent.kill().await;
    let began = Instant::now();
    let asked = edge.get("demo", "/");
    let ((status, answer), _agent) = tokio::join!(asked, started(&edge));
    assert_eq!(status, 200, "{answer} after {:?}", began.elapsed());
}

/// More than the edge has is no fault, and is told.
#[tokio::test]
async fn a_longer_hold_than_the_edges_is_told() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let port = upstream.port();
    let mut command = edge.agent(&["http", &port, "--name", "demo", "--output", "json"]);
    let agent = Process::start(command.args(["--hold-reconnect", "60s"]));
    let line = agent.out_line("\"hint\"").await;
    assert!(line.contains("wait for 10s at most") && line.contains("asks for 60s"), "{line}");
    assert_eq!(edge.get("demo", "/").await.0, 200);
    for (flag, value, words) in [
        ("--hold-reconnect", "10m", "--hold-reconnect: no edge lets a request wait longer"),
        ("--in-flight", "0", "--in-flight: 0 would let nobody in"),
        ("--requests-per-second", "0", "--requests-per-second: 0 would let nobody in"),
    ] {
        let ended = run(&mut edge.agent(&["http", &port, flag, value])).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains(words), "{}", ended.err);
    }
}
