//! Agents that come back: the newest session of an identity has its names at once.

use std::time::Duration;

use tokio::time::Instant;
use uniroute_agent::{AgentError, Event};
use uniroute_shared::id::AgentId;

use crate::harness::{
    TestAgent, TestEdge, agent_id, eventually, get,
    link::{Link, Nature},
    upstream::{TestUpstream, channel, text},
    within,
};

fn refusals(event: &Event) -> Option<u16> {
    match event {
        Event::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

/// The agent `one`, with the tunnel `demo` to `upstream`.
async fn agent_one(edge: &TestEdge, upstream: &TestUpstream) -> TestAgent {
    let mut settings =
        TestAgent::settings(edge.http(), vec![TestAgent::tunnel("demo", &upstream.url())]);
    settings.agent_id = agent_id("one");
    TestAgent::launch(settings).await
}

/// A hundred times, killed or still there: its name is its own, and nothing piles up.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_has_its_name_at_once_a_hundred_times() {
    let edge = TestEdge::start();
    let upstreams = [TestUpstream::saying("even").await, TestUpstream::saying("odd").await];
    let mut agent = agent_one(&edge, &upstreams[0]).await;
    edge.get("demo", "/").await.assert_ok("even");
    let before = edge.metric("tasks").await;
    for number in 1..=100 {
        let old = agent;
        if number % 3 == 0 {
            drop(old);
            agent = agent_one(&edge, &upstreams[number % 2]).await;
        } else {
            // The old one has not even noticed that it is gone.
            agent = agent_one(&edge, &upstreams[number % 2]).await;
            let ended = old.ended().await;
            assert!(matches!(ended, Err(AgentError::Replaced)), "{ended:?}");
        }
        edge.get("demo", "/").await.assert_ok(["even", "odd"][number % 2]);
        assert!(agent.seen(refusals).await.is_empty());
    }
    eventually("one session is left", async || (edge.metric("sessions").await == 1).then_some(()))
        .await;
    assert_eq!(edge.metric("names").await, 1);
    eventually("no more tasks than before", async || {
        (edge.metric("tasks").await <= before + 2).then_some(())
    })
    .await;
    let epoch = edge.status().await["tunnels"][0]["epoch"].as_u64().unwrap();
    assert_eq!(epoch, 101);
}

/// A request that the old session has begun ends on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_session_finishes_what_it_has() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let slow = TestUpstream::start(move |_| {
        let mut gate = gate.clone();
        async move {
            let (mut sender, response) = channel();
            tokio::spawn(async move {
                sender.send_data("begun ".into()).await.unwrap();
                gate.wait_for(|open| *open).await.unwrap();
                sender.send_data("and ended".into()).await.unwrap();
            });
            response
        }
    })
    .await;
    let quick = TestUpstream::saying("new").await;
    let edge = TestEdge::start();
    let old = agent_one(&edge, &slow).await;
    let mut visitor = edge.visitor().await;
    visitor.send("GET / HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n").await;
    let head = visitor.head().await;
    let mut body = visitor.body(&head);
    assert_eq!(body.next().await.unwrap().unwrap(), "begun ");
    let _new = agent_one(&edge, &quick).await;
    edge.get("demo", "/").await.assert_ok("new");
    go.send(true).unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "and ended");
    assert!(body.next().await.unwrap().is_none());
    assert!(matches!(old.ended().await, Err(AgentError::Replaced)));
}

/// The name that the edge chose stays with its agent over reconnects.
#[tokio::test(flavor = "multi_thread")]
async fn a_random_name_is_kept() {
    let edge = TestEdge::start();
    let link = Link::start(edge.http(), Nature::PLAIN).await;
    let upstream = TestUpstream::saying("mine").await;
    let mut tunnel = TestAgent::tunnel("key", &upstream.url());
    tunnel.name = None;
    let agent = TestAgent::launch(TestAgent::settings(link.address, vec![tunnel])).await;
    for sessions in 2..=4 {
        link.cut();
        agent.readies(sessions).await;
        let names = agent.names().await;
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        edge.get(&names[0], "/").await.assert_ok("mine");
    }
    assert!(agent.names().await[0].matches('-').count() == 2);
}

/// Another agent gets a name only after its agent has given it up.
#[tokio::test(flavor = "multi_thread")]
async fn t07_a_name_stays_with_its_agent_while_that_is_away() {
    let edge = TestEdge::start();
    let upstream = TestUpstream::saying("one").await;
    let agent = agent_one(&edge, &upstream).await;
    drop(agent);
    eventually("it is gone", async || {
        (edge.get("demo", "/").await.code() == Some("UR-2001")).then_some(())
    })
    .await;
    let stranger =
        || TestAgent::settings(edge.http(), vec![TestAgent::tunnel("demo", &upstream.url())]);
    let refused = TestAgent::spawn(stranger()).ended().await;
    assert!(matches!(&refused, Err(AgentError::Refused(r)) if r[0].code == 1101), "{refused:?}");
    let agent = agent_one(&edge, &upstream).await;
    agent.stop().await.unwrap();
    let _stranger = TestAgent::launch(stranger()).await;
    edge.get("demo", "/").await.assert_ok("one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_back_soon_after_its_edge() {
    let edge = TestEdge::start();
    let address = edge.http();
    let upstream = TestUpstream::saying("back").await;
    let mut tunnel = TestAgent::tunnel("key", &upstream.url());
    tunnel.name = None;
    let agent = TestAgent::launch(TestAgent::settings(address, vec![tunnel])).await;
    let name = agent.names().await.remove(0);
    // Killed, not drained.
    drop(edge);
    eventually("the agent notices", async || {
        let lost = |event: &Event| matches!(event, Event::Disconnected { .. }).then_some(());
        (!agent.seen(lost).await.is_empty()).then_some(())
    })
    .await;
    let _edge = TestEdge::with(|settings| settings.http = address);
    let began = Instant::now();
    eventually("the tunnel is back", async || {
        let answer = get(address, &name, "/").await;
        (answer.code().is_none() && answer.text() == "back").then_some(())
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// The edge drains: requests under way end well, new ones are sent elsewhere, agents are told.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_drains_finishes_what_it_has() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let upstream = TestUpstream::start(move |request| {
        let mut gate = gate.clone();
        async move {
            if request.uri().path() == "/slow" {
                gate.wait_for(|open| *open).await.unwrap();
            }
            text("done")
        }
    })
    .await;
    let edge = TestEdge::start();
    let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut slow = edge.visitor().await;
    slow.send("GET /slow HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n").await;
    eventually("it is under way", async || {
        (edge.status().await["sessions"][0]["streams"] == 2).then_some(())
    })
    .await;
    let mut idle = edge.visitor().await;
    idle.get("demo", "/").await.assert_ok("done");
    let (admin, stopping) = (edge.admin(), tokio::spawn(edge.shutdown()));
    idle.rest().await;
    eventually("readiness is off", async || {
        let mut operator = crate::harness::wire::Wire::connect(admin).await;
        (operator.get("edge", "/readyz").await.status() == 503).then_some(())
    })
    .await;
    go.send(true).unwrap();
    slow.answer("GET").await.assert_ok("done");
    assert!(within("the edge is drained", stopping).await.unwrap());
    assert!(!agent.is_over(), "it looks for the edge to come back");
}

/// An agent that is told to stop lets its requests end.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_finishes_what_it_has() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let upstream = TestUpstream::start(move |request| {
        let mut gate = gate.clone();
        async move {
            if request.uri().path() == "/slow" {
                gate.wait_for(|open| *open).await.unwrap();
            }
            text("done")
        }
    })
    .await;
    let edge = TestEdge::start();
    let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut slow = edge.visitor().await;
    slow.send("GET /slow HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n").await;
    eventually("it is under way", async || {
        (edge.status().await["sessions"][0]["streams"] == 2).then_some(())
    })
    .await;
    let stopping = tokio::spawn(agent.stop());
    // Its name is free already.
    eventually("no new requests", async || {
        (edge.get("demo", "/").await.code() == Some("UR-1001")).then_some(())
    })
    .await;
    go.send(true).unwrap();
    slow.answer("GET").await.assert_ok("done");
    within("the agent ends", stopping).await.unwrap().unwrap();
}

/// Agents without a name of their own do not get in each other's way.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_agents_at_once() {
    let edge = TestEdge::start();
    let upstream = TestUpstream::saying("served").await;
    let mut agents = Vec::new();
    for _ in 0..50 {
        let mut tunnel = TestAgent::tunnel("key", &upstream.url());
        tunnel.name = None;
        let mut settings = TestAgent::settings(edge.http(), vec![tunnel]);
        settings.agent_id = AgentId::random();
        agents.push(TestAgent::spawn(settings));
    }
    for agent in &agents {
        agent.readies(1).await;
        edge.get(&agent.names().await[0], "/").await.assert_ok("served");
    }
    assert_eq!((edge.metric("sessions").await, edge.metric("names").await), (50, 50));
    drop(agents);
    eventually("all are gone", async || (edge.metric("sessions").await == 0).then_some(())).await;
}
