//! T11: what is revoked is over on every edge within two seconds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uniroute_agent::AgentError;
use uniroute_edge::setup::Role;

use crate::harness::{
    TestAgent, TestEdge,
    cluster::{Api, Cluster, account, agent, figure, id, user},
    eventually,
    upstream::{TestUpstream, channel},
    within,
};

/// The promise.
const SOON: Duration = Duration::from_secs(2);
/// Agents that come with one token.
const AGENTS: usize = 5;

async fn token(api: &Api, name: &str) -> (String, String) {
    let made = api.post("/tokens", json!({ "name": name })).await;
    (id(&made), made["token"].as_str().unwrap().to_owned())
}

/// Agents with this token, ready.
async fn agents(edge: &TestEdge, token: &str, prefix: &str, upstream: &str) -> Vec<TestAgent> {
    let mut agents = Vec::new();
    for number in 0..AGENTS {
        let name = format!("{prefix}-{number}");
        agents.push(TestAgent::launch(agent(edge, token, &name, &name, upstream)).await);
    }
    agents
}

/// Waits until all are told that their token is no good, and nobody is led to them; how long it took.
async fn gone(edge: &TestEdge, agents: Vec<TestAgent>, prefix: &str, since: Instant) -> Duration {
    eventually("no session is left", async || {
        let status = edge.status().await;
        let mut sessions = status["sessions"].as_array().unwrap().iter();
        let left = sessions.any(|s| s["agent_id"].as_str().unwrap().starts_with(prefix));
        (!left).then_some(())
    })
    .await;
    let took = since.elapsed();
    assert_ne!(edge.get(&format!("{prefix}-0"), "/").await.status(), 200);
    for agent in agents {
        match agent.ended().await {
            Err(AgentError::Token { code }) => assert_eq!(code.number, 4003),
            other => panic!("{other:?}"),
        }
    }
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_a_revoked_tokens_sessions_end_on_every_edge() {
    let mut cluster = Cluster::with(2, |settings| {
        settings.durable.feed = Duration::from_secs(1);
    })
    .await;
    let setup = cluster.setup().await;
    account(&setup, "ann@example.com", Role::User, None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let (other, good) = token(&ann, "stays").await;
    let edge = &cluster.edges[1];
    let stays = TestAgent::launch(agent(edge, &good, "stays", "stays", &upstream.url())).await;

    let (revoked, secret) = token(&ann, "first").await;
    let serving = agents(edge, &secret, "first", &upstream.url()).await;
    let since = Instant::now();
    ann.delete(&format!("/tokens/{revoked}")).await;
    let took = gone(edge, serving, "first", since).await;
    figure(format_args!("revoked through the API: {took:?}"));
    assert!(took < SOON, "{took:?}");

    // On the database, by whoever runs no edge.
    let (_, secret) = token(&ann, "second").await;
    let serving = agents(edge, &secret, "second", &upstream.url()).await;
    let listed = setup.tokens("ann@example.com").await.unwrap();
    let row = listed.iter().find(|token| token.name == "second").unwrap();
    let since = Instant::now();
    setup.revoke_token(row.id).await.unwrap();
    let took = gone(edge, serving, "second", since).await;
    figure(format_args!("revoked on the command line: {took:?}"));
    assert!(took < SOON, "{took:?}");

    // The audit log is enough.
    let (revoked, secret) = token(&ann, "third").await;
    let serving = agents(edge, &secret, "third", &upstream.url()).await;
    cluster.shared.redis().kill();
    let edge = &cluster.edges[1];
    let since = Instant::now();
    ann.delete(&format!("/tokens/{revoked}")).await;
    let took = gone(edge, serving, "third", since).await;
    figure(format_args!("revoked without Redis: {took:?}"));
    assert!(took < SOON, "{took:?}");

    assert!(!stays.is_over());
    edge.get("stays", "/").await.assert_ok("hello");
    assert_eq!(ann.get(&format!("/tokens/{other}")).await["is_good"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_goes_on_for_a_while() {
    let cluster = Cluster::start(2).await;
    account(&cluster.setup().await, "ann@example.com", Role::User, None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let (old_id, old) = token(&ann, "first").await;
    let edge = &cluster.edges[1];
    let first = TestAgent::launch(agent(edge, &old, "one", "one", &upstream.url())).await;
    let path = format!("/tokens/{old_id}/rotate");
    let made = ann.post(&path, json!({ "overlap_seconds": 4 })).await;
    let new = made["token"].as_str().unwrap().to_owned();
    let since = Instant::now();
    let second = TestAgent::launch(agent(edge, &old, "two", "two", &upstream.url())).await;
    let third = TestAgent::launch(agent(edge, &new, "three", "three", &upstream.url())).await;
    assert!(!first.is_over() && !second.is_over());
    for name in ["one", "two", "three"] {
        edge.get(name, "/").await.assert_ok("hello");
    }
    for agent in [first, second] {
        match agent.ended().await {
            Err(AgentError::Token { code }) => assert_eq!(code.number, 4004),
            other => panic!("{other:?}"),
        }
    }
    let took = since.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert!(!third.is_over());
    edge.get("three", "/").await.assert_ok("hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn t25_an_account_that_is_switched_off_is_cut_in_the_middle_of_an_answer() {
    let cluster = Cluster::start(2).await;
    let admin = cluster.admin().await;
    let token = user(&cluster.setup().await, "mallory@example.com", None).await;
    let (senders, mut ready) = tokio::sync::mpsc::channel(16);
    let upstream = TestUpstream::start(move |_| {
        let (sender, answer) = channel();
        senders.try_send(sender).unwrap();
        async move { answer }
    })
    .await;
    let mut agents = Vec::new();
    let mut visitors = Vec::new();
    let mut streams = Vec::new();
    for (number, edge) in cluster.edges.iter().enumerate() {
        let name = format!("bank-{number}");
        agents.push(TestAgent::launch(agent(edge, &token, &name, &name, &upstream.url())).await);
        let mut wire = edge.visitor().await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: {name}.tunnels.test\r\n\r\n")).await;
        let mut stream = within("the request arrives", ready.recv()).await.unwrap();
        stream.send_data("a".into()).await.unwrap();
        assert_eq!(wire.head().await.status(), 200);
        streams.push(stream);
        visitors.push(wire);
    }
    let users = admin.get("/users").await;
    let mut mallory = users["items"].as_array().unwrap().iter();
    let mallory = mallory.find(|user| user["email"] == "mallory@example.com").unwrap();
    let since = Instant::now();
    admin.patch(&format!("/users/{}", id(mallory)), json!({ "is_active": false })).await;
    for wire in &mut visitors {
        wire.rest().await;
    }
    let took = since.elapsed();
    figure(format_args!("an account switched off: {took:?}"));
    assert!(took < Duration::from_secs(5), "{took:?}");
    for agent in agents {
        match agent.ended().await {
            Err(AgentError::Token { code }) => assert_eq!(code.number, 4003),
            other => panic!("{other:?}"),
        }
    }
    for (number, edge) in cluster.edges.iter().enumerate() {
        assert_ne!(edge.get(&format!("bank-{number}"), "/").await.status(), 200);
    }
    let events: Value = admin.get("/events").await;
    let updated = |event: &&Value| event["kind"] == "user.updated";
    assert!(events["items"].as_array().unwrap().iter().any(|e| updated(&e)), "{events}");
}
