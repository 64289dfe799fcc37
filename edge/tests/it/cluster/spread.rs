//! One agent with sessions at several edges: each of them serves its visitors.

use std::time::Duration;

use uniroute_agent::Event;

use crate::harness::{
    TestAgent,
    cluster::{Cluster, agent, user},
    eventually,
    upstream::TestUpstream,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_at_two_edges_and_either_may_go() {
    let mut cluster = Cluster::start(2).await;
    let setup = cluster.setup().await;
    let token = user(&setup, "ada@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let mut settings = agent(&cluster.edges[0], &token, "one", "both", &upstream.url());
    let url = |edge: &crate::harness::TestEdge| format!("http://{}", edge.http()).parse().unwrap();
    settings.servers = cluster.edges.iter().map(url).collect();
    let agent = TestAgent::spawn(settings);
    let served = async |edge: usize| cluster.edges[edge].get("both", "/").await.status() == 200;
    eventually("both edges serve it", async || (served(0).await && served(1).await).then_some(()))
        .await;
    // Neither has taken the name from the other, and so it stays.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(served(0).await && served(1).await);
    let edges: Vec<_> = agent
        .seen(|event| match event {
            Event::Connected { edge, .. } => Some(edge.clone()),
            _ => None,
        })
        .await;
    assert_eq!(edges.len(), 2, "{edges:?}");
    assert_ne!(edges[0], edges[1]);

    let gone = cluster.edges.remove(0);
    drop(gone);
    for _ in 0..20 {
        assert_eq!(cluster.edges[0].get("both", "/").await.status(), 200);
    }
    let disconnected = |event: &Event| matches!(event, Event::Disconnected { .. }).then_some(());
    assert!(agent.seen(disconnected).await.is_empty(), "it has a session all the while");
    agent.stop().await.unwrap();
}
