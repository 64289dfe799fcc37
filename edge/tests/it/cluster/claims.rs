//! T07: one name has one owner, on all edges together, whatever comes at once or dies.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use uniroute_agent::{AgentError, Event};

use crate::harness::{
    TestAgent,
    cluster::{Cluster, agent, figure, user},
    eventually,
    upstream::TestUpstream,
};

/// How an agent that wants a name ended up.
enum Got {
    Ready(TestAgent),
    Taken,
}

async fn wants(settings: uniroute_agent::Settings) -> Got {
    let agent = TestAgent::spawn(settings);
    let ready = eventually("the agent knows", async || {
        let ready = |event: &Event| matches!(event, Event::Ready { .. }).then_some(());
        if !agent.seen(ready).await.is_empty() {
            return Some(true);
        }
        agent.is_over().then_some(false)
    })
    .await;
    if ready {
        return Got::Ready(agent);
    }
    match agent.ended().await {
        Err(AgentError::Refused(list)) => {
            assert_eq!(list[0].code, 1101, "{list:?}");
            Got::Taken
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_of_many_claims_of_one_name_on_three_edges_one_wins() {
    const ROUNDS: usize = 20;
    const CLAIMS: usize = 50;
    const USERS: usize = 5;
    let cluster = Cluster::start(3).await;
    let setup = cluster.setup().await;
    let mut tokens = Vec::new();
    for number in 0..USERS {
        tokens.push(user(&setup, &format!("user{number}@example.com"), None).await);
    }
    let upstream = TestUpstream::saying("hello").await;
    for round in 0..ROUNDS {
        let name = format!("wanted-{round}");
        let mut claims = Vec::new();
        for number in 0..CLAIMS {
            let (edge, token) = (&cluster.edges[number % 3], &tokens[number % USERS]);
            let id = format!("agent-{number}");
            claims.push(wants(agent(edge, token, &id, &name, &upstream.url())));
        }
        let mut winners = Vec::new();
        for got in join_all(claims).await {
            if let Got::Ready(agent) = got {
                winners.push(agent);
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let mut served = 0;
        for edge in &cluster.edges {
            served += usize::from(edge.get(&name, "/").await.status() == 200);
        }
        assert_eq!(served, 1, "one edge serves it, round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_the_newest_session_of_an_agent_has_its_names() {
    let cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let [old, new] = [&cluster.edges[0], &cluster.edges[1]];
    let mut settings = agent(old, &token, "one", "shop", &upstream.url());
    settings.tunnels.push(TestAgent::tunnel("blog", &upstream.url()));
    let first = TestAgent::launch(settings).await;
    // One of its names goes elsewhere, and then the other one.
    let second = TestAgent::launch(agent(new, &token, "one", "shop", &upstream.url())).await;
    new.get("shop", "/").await.assert_ok("hello");
    eventually("the older edge has it no more", async || {
        (old.get("shop", "/").await.status() != 200).then_some(())
    })
    .await;
    old.get("blog", "/").await.assert_ok("hello");
    assert!(!first.is_over());
    drop(second);
    let mut settings = agent(new, &token, "one", "shop", &upstream.url());
    settings.tunnels.push(TestAgent::tunnel("blog", &upstream.url()));
    let _second = TestAgent::launch(settings).await;
    match first.ended().await {
        Err(AgentError::Replaced) => {}
        other => panic!("{other:?}"),
    }
    for name in ["shop", "blog"] {
        new.get(name, "/").await.assert_ok("hello");
        assert_ne!(old.get(name, "/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_what_a_killed_edge_had_is_its_owners_at_another_one_at_once() {
    let mut cluster = Cluster::start(2).await;
    let setup = cluster.setup().await;
    let token = user(&setup, "ann@example.com", None).await;
    let stranger = user(&setup, "bob@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let killed = cluster.edges.remove(0);
    let first = TestAgent::launch(agent(&killed, &token, "one", "shop", &upstream.url())).await;
    killed.get("shop", "/").await.assert_ok("hello");
    tokio::task::spawn_blocking(|| drop(killed)).await.unwrap();
    drop(first);
    let edge = &cluster.edges[0];
    let got = wants(agent(edge, &stranger, "other", "shop", &upstream.url())).await;
    assert!(matches!(got, Got::Taken), "a stranger");
    let got = wants(agent(edge, &token, "two", "shop", &upstream.url())).await;
    assert!(matches!(got, Got::Taken), "another agent of the owner's");
    let since = Instant::now();
    let _agent = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;
    edge.get("shop", "/").await.assert_ok("hello");
    let took = since.elapsed();
    figure(format_args!("served again after {took:?}"));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_owner_do_not_fight() {
    let cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let settings =
        |edge: usize, id: &str| agent(&cluster.edges[edge], &token, id, "shop", &upstream.url());
    let first = TestAgent::launch(settings(0, "one")).await;
    assert!(matches!(wants(settings(1, "two")).await, Got::Taken));
    cluster.edges[0].get("shop", "/").await.assert_ok("hello");
    // Given up in order, it is the other one's at once, at any edge.
    first.stop().await.unwrap();
    eventually("the other agent gets it", async || match wants(settings(1, "two")).await {
        Got::Ready(agent) => Some(agent),
        Got::Taken => None,
    })
    .await;
}
