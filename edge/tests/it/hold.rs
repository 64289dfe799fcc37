//! Requests that meet a gap between two sessions of their agent: they wait, and go on; and what was
//! under way when a session died is sent again where that is safe, and never otherwise.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use uniroute_edge::config::Settings;

use crate::harness::{
    TestAgent, TestEdge, eventually, host, over_quic,
    upstream::{RawUpstream, TestUpstream},
    wire::Wire,
};

/// Long enough for every agent here to come back.
fn patient(settings: &mut Settings) {
    settings.hold = Duration::from_secs(25);
}

async fn waiting(edge: &TestEdge, count: u64) {
    eventually("requests wait", async || (edge.metric("waiting").await == count).then_some(()))
        .await;
}

async fn ask(edge: &TestEdge, method: &str, body: &str) -> Wire {
    let mut visitor = edge.visitor().await;
    let head =
        format!("{method} / HTTP/1.1\r\nhost: {}\r\ncontent-length: {}", host("demo"), body.len());
    visitor.send(format!("{head}\r\n\r\n{body}")).await;
    visitor
}

fn settings(edge: &TestEdge, upstream: &str) -> uniroute_agent::Settings {
    let mut settings = TestAgent::settings(edge.http(), vec![TestAgent::tunnel("demo", upstream)]);
    settings.agent_id = crate::harness::agent_id("the-same");
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_a_gap_waits_for_the_agent_and_gets_its_answer() {
    let edge = TestEdge::with(patient);
    let upstream = TestUpstream::saying("back").await;
    let first = TestAgent::launch(settings(&edge, &upstream.address.to_string())).await;
    // A drained one gives its name up, a killed one does not: neither loses a request.
    first.stop().await.unwrap();
    let mut get = ask(&edge, "GET", "").await;
    let mut post = ask(&edge, "POST", "form").await;
    waiting(&edge, 2).await;
    let second = TestAgent::launch(settings(&edge, &upstream.address.to_string())).await;
    get.answer("GET").await.assert_ok("back");
    post.answer("POST").await.assert_ok("back");
    drop(second);
    eventually("the session is gone", async || (edge.metric("sessions").await == 0).then_some(()))
        .await;
    let mut get = ask(&edge, "GET", "").await;
    waiting(&edge, 1).await;
    let _third = TestAgent::launch(settings(&edge, &upstream.address.to_string())).await;
    get.answer("GET").await.assert_ok("back");
    waiting(&edge, 0).await;
    assert!(edge.metric("held_total").await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_has_an_end_and_a_visitor_may_leave_it() {
    let edge = TestEdge::with(|settings| {
        settings.hold = Duration::from_millis(300);
        settings.max_held = 2;
    });
    let upstream = TestUpstream::saying("never").await;
    let agent = TestAgent::launch(settings(&edge, &upstream.address.to_string())).await;
    drop(agent);
    eventually("the session is gone", async || (edge.metric("sessions").await == 0).then_some(()))
        .await;
    let answer = ask(&edge, "GET", "").await.answer("GET").await;
    answer.assert_failed(503, "UR-2001");
    assert_eq!(answer.head.get("retry-after"), Some("5"));
    // It has been away for longer than anybody waits.
    edge.get("demo", "/").await.assert_failed(503, "UR-2001");
    edge.get("nobody", "/").await.assert_failed(404, "UR-1001");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_wait_and_who_leaves_makes_room() {
    let edge = TestEdge::with(|settings| {
        patient(settings);
        settings.max_held = 2;
    });
    let upstream = TestUpstream::saying("back").await;
    TestAgent::launch(settings(&edge, &upstream.address.to_string())).await.stop().await.unwrap();
    let (one, mut other) = (ask(&edge, "GET", "").await, ask(&edge, "GET", "").await);
    waiting(&edge, 2).await;
    ask(&edge, "GET", "").await.answer("GET").await.assert_failed(503, "UR-5004");
    drop(one);
    waiting(&edge, 1).await;
    let mut third = ask(&edge, "GET", "").await;
    waiting(&edge, 2).await;
    let _agent = TestAgent::launch(settings(&edge, &upstream.address.to_string())).await;
    other.answer("GET").await.assert_ok("back");
    third.answer("GET").await.assert_ok("back");
}

/// A local server that answers nobody before it was asked `silent` times more, and counts.
async fn counting(silent: usize) -> (RawUpstream, Arc<AtomicUsize>, Arc<Notify>) {
    let (asked, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counter, teller) = (Arc::clone(&asked), Arc::clone(&told));
    let upstream = RawUpstream::start(move |_, mut wire| {
        let (counter, teller) = (Arc::clone(&counter), Arc::clone(&teller));
        async move {
            while let Some(request) = wire.request().await {
                let before = counter.fetch_add(1, Ordering::SeqCst);
                teller.notify_one();
                if before < silent {
                    std::future::pending::<()>().await;
                }
                let body = request.text();
                let length = body.len();
                wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"))
                    .await;
            }
        }
    })
    .await;
    (upstream, asked, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_asked_twice_is_asked_again_when_its_session_dies() {
    let edge = TestEdge::with(patient);
    let (upstream, asked, told) = counting(1).await;
    let first = TestAgent::launch(settings(&edge, &upstream.url())).await;
    let mut put = ask(&edge, "PUT", "whole").await;
    told.notified().await;
    // Dropped without a word, it is as if killed; over QUIC only silence tells of that.
    drop(first);
    let _second = TestAgent::launch(settings(&edge, &upstream.url())).await;
    put.answer("PUT").await.assert_ok("whole");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_sent_twice() {
    let edge = TestEdge::with(patient);
    let (upstream, asked, told) = counting(1).await;
    let first = TestAgent::launch(settings(&edge, &upstream.url())).await;
    let mut post = ask(&edge, "POST", "money").await;
    told.notified().await;
    drop(first);
    let _second = TestAgent::launch(settings(&edge, &upstream.url())).await;
    post.answer("POST").await.assert_failed(502, "UR-2002");
    let mut other = ask(&edge, "POST", "other").await;
    other.answer("POST").await.assert_ok("other");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the first one once, and the other");
}

/// An agent that is restarted over and over while requests come: none fails and no POST is doubled.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_lose_nothing() {
    if over_quic() {
        return;
    }
    let edge = Arc::new(TestEdge::with(patient));
    let (upstream, asked, _) = counting(0).await;
    let mut agent = TestAgent::launch(settings(&edge, &upstream.url())).await;
    let stop = Arc::new(Notify::new());
    let visitors: Vec<_> = (0..4)
        .map(|_| {
            let (edge, stop) = (Arc::clone(&edge), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut done = 0_usize;
                let mut stopped = std::pin::pin!(stop.notified());
                loop {
                    let mut visitor = ask(&edge, "POST", "once").await;
                    tokio::select! {
                        answer = visitor.answer("POST") => answer.assert_ok("once"),
                        () = &mut stopped => return done,
                    };
                    done += 1;
                }
            })
        })
        .collect();
    for _ in 0..10 {
        agent.stop().await.unwrap();
        agent = TestAgent::launch(settings(&edge, &upstream.url())).await;
        let before = asked.load(Ordering::SeqCst);
        eventually("requests come", async || {
            (asked.load(Ordering::SeqCst) > before + 20).then_some(())
        })
        .await;
    }
    stop.notify_waiters();
    let mut done = 0;
    for visitor in visitors {
        done += visitor.await.unwrap();
    }
    // Those that were broken off at the end may have been counted or not.
    let asked = asked.load(Ordering::SeqCst);
    assert!((done..=done + 4).contains(&asked), "{done} answered, {asked} asked");
}
