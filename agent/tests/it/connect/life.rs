//! Links that die without a word.

// The same file as the edge's tests have.
#[path = "../../../../edge/tests/it/harness/link.rs"]
#[allow(dead_code, reason = "not all of it is for the agent's tests")]
mod link;

use std::time::{Duration, Instant};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use self::link::{Link, Nature};
use super::{run, serves, settings};
use crate::harness::{self, Edge, Upstream, eventually, process, process::Process, within};

/// From the first packet that is lost to an answer over a new session, at default settings.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_black_hole_under_traffic_is_noticed_and_the_session_replaced() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let link = Link::start(edge.http, Nature::PLAIN).await;
    let _agent =
        run(settings(&edge, &format!("http://{}", link.address), &upstream)).await.unwrap();
    for _ in 0..20 {
        serves(&edge).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let began = Instant::now();
    link.black_hole();
    // It is sent into the hole, and again over the next session.
    within("an answer", serves(&edge)).await;
    let took = began.elapsed();
    assert!(took < REPLACED_WITHIN, "{took:?}");
    assert!(took > Duration::from_secs(2), "nothing was lost: {took:?}");
}

#[tokio::test]
async fn so_is_one_that_a_long_answer_has_filled() {
    let edge = Edge::start().await;
    let piece = || Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 64 * 1024])), ()));
    let endless = move || async move {
        Body::from_stream(futures_util::stream::unfold((), move |()| async move { piece() }))
    };
    let app = Router::new().route("/endless", get(endless)).fallback(async || "served");
    let upstream = Upstream::start(app).await;
    let link = Link::start(edge.http, Nature::PLAIN).await;
    let mut settings = settings(&edge, &format!("http://{}", link.address), &upstream);
    // All on one connection, which can't even take a last word.
    settings.lanes = 0;
    let _agent = run(settings).await.unwrap();
    let mut visitor = TcpStream::connect(edge.http).await.unwrap();
    visitor.write_all(b"GET /endless HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 1024 * 1024];
    for _ in 0..50 {
        assert!(within("a piece", visitor.read(&mut buffer)).await.unwrap() > 0);
    }
    let began = Instant::now();
    link.black_hole();
    within("an answer", serves(&edge)).await;
    assert!(began.elapsed() < REPLACED_WITHIN, "{:?}", began.elapsed());
}

const OLD: &str = "the-old-token-0123456789";
const NEW: &str = "the-new-token-0123456789";

#[tokio::test]
async fn k3_a_new_token_is_taken_while_the_old_one_still_serves() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    // For a while the edge takes both.
    write("tokens", &format!("{OLD}\n{NEW}\n"));
    write("mine", OLD);
    let mut edge = process::edge(home.path());
    edge.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", "data"]);
    edge.args(["--token-file", "tokens", "--log-format", "json"]);
    let edge = Process::start(&mut edge);
    let line: serde_json::Value =
        serde_json::from_str(&edge.err_line("\"listening\"").await).unwrap();
    let http = line["http"].as_str().or_else(|| line["fields"]["http"].as_str());
    let http: std::net::SocketAddr = http.unwrap().parse().unwrap();
    let upstream = Upstream::saying("served").await;
    let mut agent = process::agent(home.path());
    agent.args(["http", &upstream.port(), "--name", "demo", "--server", &format!("http://{http}")]);
    agent.args(["--token-file", "mine", "--output", "json", "--log-level", "info"]);
    let agent = Process::start(&mut agent);
    agent.out_line("\"ready\"").await;
    let host = format!("demo.localhost:{}", http.port());
    write("mine", NEW);
    let sessions = async || {
        let (status, answer) = harness::get(http, &host, "/").await;
        assert!(status == 200 && answer.ends_with("served"), "no request is lost: {answer}");
        let lines = agent.err_lines();
        (lines.iter().filter(|line| line.contains("connected")).count() > 1).then_some(())
    };
    eventually("a session with the new token", sessions).await;
    assert!(agent.err_lines().iter().any(|line| line.contains("has a new token")));
    harness::get(http, &host, "/").await;
}
