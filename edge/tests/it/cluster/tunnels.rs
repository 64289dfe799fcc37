//! Pausing, changing and deleting at one edge what another one serves.

use std::time::{Duration, Instant};

use serde_json::json;
use uniroute_agent::{AgentError, Event};

use crate::harness::{
    TestAgent,
    cluster::{Api, Cluster, agent, figure, id, user},
    eventually,
    upstream::TestUpstream,
};

/// The promise for what a change does at other edges.
const AT_ONCE: Duration = Duration::from_secs(1);

fn pauses(event: &Event) -> Option<bool> {
    match event {
        Event::Paused { paused, .. } => Some(*paused),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_felt_at_every_edge_within_a_second() {
    let cluster = Cluster::start(2).await;
    let setup = cluster.setup().await;
    let token = user(&setup, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let edge = &cluster.edges[1];
    let agent = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;
    let path = format!("/tunnels/{}", id(&ann.tunnel("shop").await));
    for round in 1..=3 {
        let since = Instant::now();
        assert_eq!(ann.post(&format!("{path}/pause"), json!({})).await["status"], "paused");
        let answer = eventually("visitors are kept out", async || {
            let answer = edge.get("shop", "/").await;
            (answer.status() != 200).then_some(answer)
        })
        .await;
        let took = since.elapsed();
        figure(format_args!("paused at the other edge: {took:?}"));
        assert!(took < AT_ONCE, "{took:?}");
        answer.assert_failed(503, "UR-1010");
        assert!(answer.head.get("retry-after").is_some());
        let shown = async |paused: bool, times: usize| {
            eventually("the agent shows it", async || {
                let seen = agent.seen(pauses).await;
                (seen.iter().filter(|p| **p == paused).count() == times).then_some(())
            })
            .await;
        };
        shown(true, round).await;
        assert_eq!(edge.metric("sessions").await, 1, "the agent stays");
        let since = Instant::now();
        ann.post(&format!("{path}/resume"), json!({})).await;
        eventually("visitors are let in", async || {
            (edge.get("shop", "/").await.status() == 200).then_some(())
        })
        .await;
        let took = since.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
        shown(false, round).await;
    }
    // Who comes while it is paused finds it so.
    ann.post(&format!("{path}/pause"), json!({})).await;
    drop(agent);
    let settings = crate::harness::cluster::agent(edge, &token, "one", "shop", &upstream.url());
    let again = TestAgent::launch(settings).await;
    edge.get("shop", "/").await.assert_failed(503, "UR-1010");
    assert_eq!(again.seen(pauses).await, [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn t18_a_deleted_tunnels_name_is_its_owners_for_a_while() {
    let cluster = Cluster::start(2).await;
    let setup = cluster.setup().await;
    let token = user(&setup, "ann@example.com", None).await;
    let stranger = user(&setup, "bob@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let edge = &cluster.edges[1];
    let mut settings = agent(edge, &token, "one", "shop", &upstream.url());
    settings.tunnels.push(TestAgent::tunnel("blog", &upstream.url()));
    let serving = TestAgent::launch(settings).await;
    let since = Instant::now();
    ann.delete(&format!("/tunnels/{}", id(&ann.tunnel("shop").await))).await;
    let refused = |event: &Event| match event {
        Event::Refused { code, .. } => Some(*code),
        _ => None,
    };
    eventually("the agent is told", async || (serving.seen(refused).await == [2112]).then_some(()))
        .await;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    edge.get("shop", "/").await.assert_failed(404, "UR-1001");
    edge.get("blog", "/").await.assert_ok("hello");
    // With its last tunnel, its work is over; it does not bring back what was deleted.
    ann.delete(&format!("/tunnels/{}", id(&ann.tunnel("blog").await))).await;
    match serving.ended().await {
        Err(AgentError::Refused(list)) => {
            assert!(list.iter().all(|refusal| refusal.code == 2112), "{list:?}");
        }
        other => panic!("{other:?}"),
    }
    for edge in &cluster.edges {
        let settings = agent(edge, &stranger, "other", "shop", &upstream.url());
        match TestAgent::spawn(settings).ended().await {
            Err(AgentError::Refused(list)) => assert_eq!(list[0].code, 1101),
            other => panic!("{other:?}"),
        }
    }
    let back = &cluster.edges[0];
    let _agent = TestAgent::launch(agent(back, &token, "new", "shop", &upstream.url())).await;
    back.get("shop", "/").await.assert_ok("hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_set_at_one_edge_holds_at_the_other() {
    let cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let edge = &cluster.edges[1];
    let _agent = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;
    let path = format!("/tunnels/{}", id(&ann.tunnel("shop").await));
    ann.patch(&path, json!({ "requests_per_second": 5 })).await;
    let mut wire = edge.visitor().await;
    let refused = eventually("the limit holds", async || {
        let answer = wire.get("shop", "/").await;
        (answer.status() != 200).then_some(answer)
    })
    .await;
    refused.assert_failed(429, "UR-5031");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_ended_by_hand_and_comes_back() {
    let cluster = Cluster::start(2).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let ann = Api::login(&cluster.edges[0], "ann@example.com").await;
    let edge = &cluster.edges[1];
    let agent = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;
    let session = eventually("the session is listed", async || {
        let list = ann.get("/sessions").await;
        list["items"].as_array().unwrap().first().cloned()
    })
    .await;
    let session = session["session_id"].as_str().or(session["id"].as_str()).unwrap().to_owned();
    let before = edge.status().await["sessions"][0]["id"].clone();
    ann.delete(&format!("/sessions/{session}")).await;
    eventually("another session is there", async || {
        let now = edge.status().await["sessions"][0]["id"].clone();
        (now.is_string() && now != before).then_some(())
    })
    .await;
    agent.readies(2).await;
    edge.get("shop", "/").await.assert_ok("hello");
}
