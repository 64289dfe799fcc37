//! From the command line to an answer.

use crate::harness::{Edge, Upstream, process::Process};

#[tokio::test]
async fn one_command_gives_a_url_that_answers() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let mut command = edge.agent(&["http", &upstream.port(), "--name", "demo", "--output", "json"]);
    let agent = Process::start(&mut command);
    agent.out_line("\"ready\"").await;
    let (status, answer) = edge.get("demo", "/").await;
    assert!(status == 200 && answer.ends_with("served"), "{answer}");
    agent.signal("INT").await;
    assert_eq!(agent.ended().await.code, Some(0));
}
