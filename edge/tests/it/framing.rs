//! Bodies from end to end: what tells where they end, what comes with the end, and when they break.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use crate::harness::{
    TestAgent, TestEdge, host,
    upstream::{RawUpstream, TestUpstream, channel, reset, text},
    wire::Answer,
    within,
};

/// An edge and the tunnel `demo` to `upstream`.
async fn tunnel(upstream: &str) -> (TestEdge, TestAgent) {
    let edge = TestEdge::start();
    let agent = TestAgent::start(&edge, "demo", upstream).await;
    (edge, agent)
}

fn post(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: {}\r\n{fields}\r\n\r\n", host("demo"))
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_and_chunks_are_kept_as_they_came() {
    let (sender, mut requests) = mpsc::channel::<Answer>(8);
    let upstream = RawUpstream::start(move |_, mut wire| {
        let sender = sender.clone();
        async move {
            while let Some(request) = wire.request().await {
                let chunked = request.head.target().contains("chunked");
                sender.send(request).await.unwrap();
                let answer = if chunked {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
                } else {
                    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde"
                };
                wire.send(answer).await;
            }
        }
    })
    .await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(post("content-length: 4") + "body").await;
    let answer = visitor.answer("POST").await;
    answer.assert_ok("abcde");
    assert_eq!(answer.head.get("content-length"), Some("5"));
    let seen = within("a request", requests.recv()).await.unwrap();
    assert_eq!((seen.text(), seen.head.get("content-length")), ("body", Some("4")));

    visitor
        .send(format!(
            "PUT /chunked HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            host("demo")
        ))
        .await;
    let answer = visitor.answer("PUT").await;
    answer.assert_ok("abcde");
    assert_eq!(answer.head.get("transfer-encoding"), Some("chunked"));
    let seen = within("a request", requests.recv()).await.unwrap();
    assert_eq!((seen.text(), seen.head.get("transfer-encoding")), ("body", Some("chunked")));

    // A body of no bytes is there all the same.
    visitor.send(post("content-length: 0")).await;
    visitor.answer("POST").await.assert_ok("abcde");
    let seen = within("a request", requests.recv()).await.unwrap();
    assert_eq!((seen.text(), seen.head.get("content-length")), ("", Some("0")));
}

/// An answer without a length, ended by its connection, has a real end at the visitor.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_the_connections_end() {
    let upstream = RawUpstream::saying("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc").await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    let mut visitor = edge.visitor().await;
    for _ in 0..3 {
        visitor.get("demo", "/").await.assert_ok("abc");
    }
    let upstream = RawUpstream::saying("HTTP/1.0 200 OK\r\n\r\nold").await;
    let _old = TestAgent::start(&edge, "old", &upstream.url()).await;
    visitor.get("old", "/").await.assert_ok("old");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_an_answer_arrive() {
    let upstream = RawUpstream::saying(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         4\r\nbody\r\n0\r\nx-sum: 1234\r\n\r\n",
    )
    .await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nte: trailers\r\nconnection: te\r\n\r\n",
            host("demo")
        ))
        .await;
    let answer = visitor.answer("GET").await;
    answer.assert_ok("body");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "1234".to_owned())]);
    // Whoever does not ask for them gets the body alone.
    let answer = edge.get("demo", "/").await;
    answer.assert_ok("body");
    assert_eq!(answer.trailers, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_arrive() {
    let upstream = TestUpstream::start(|request| async move {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        let sum = sum.map(|sum| sum.to_str().unwrap().to_owned());
        text(format!("{} {}", sum.unwrap_or_default(), body.to_bytes().len()))
    })
    .await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(
            post("transfer-encoding: chunked\r\ntrailer: x-sum")
                + "4\r\nbody\r\n0\r\nx-sum: 77\r\n\r\n",
        )
        .await;
    visitor.answer("POST").await.assert_ok("77 4");
}

/// The local server dies in the middle: the visitor never takes what came for the whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_seen_to_break_off() {
    for (what, start, piece) in [
        ("with a length", "content-length: 100", "half"),
        ("in chunks", "transfer-encoding: chunked", "4\r\nhalf\r\n"),
        ("inside a chunk", "transfer-encoding: chunked", "64\r\nhalf"),
        ("before the first byte", "content-length: 100", ""),
        ("before the first chunk", "transfer-encoding: chunked", ""),
    ] {
        for dies_hard in [false, true] {
            let upstream = RawUpstream::start(move |_, mut wire| async move {
                wire.request().await;
                wire.send(format!("HTTP/1.1 200 OK\r\n{start}\r\n\r\n{piece}")).await;
                if dies_hard {
                    // What is on its way may be lost: a process that was killed.
                    reset(&wire.socket);
                }
            })
            .await;
            let (edge, _agent) = tunnel(&upstream.url()).await;
            let mut visitor = edge.visitor().await;
            visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("demo"))).await;
            match visitor.try_answer("GET").await {
                // The head waits for the first bytes of the body.
                None => {}
                Some(answer) if answer.code().is_none() => {
                    assert!(!answer.whole, "{what}: {answer:?}");
                    assert!("half".starts_with(answer.text()), "{what}: {answer:?}");
                }
                Some(answer) => {
                    assert!(dies_hard, "{what}: {answer:?}");
                    answer.assert_failed(502, "UR-3004");
                }
            }
        }
    }
}

/// A visitor who vanishes in the middle of an upload: the local server does not take it for whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_off_is_seen_to_break_off() {
    for (fields, piece) in
        [("content-length: 100", "half"), ("transfer-encoding: chunked", "4\r\nhalf\r\n")]
    {
        let (sender, mut requests) = mpsc::channel(8);
        let (began, mut begun) = mpsc::channel(8);
        let upstream = RawUpstream::start(move |_, mut wire| {
            let (sender, began) = (sender.clone(), began.clone());
            async move {
                let head = wire.head().await;
                began.send(()).await.unwrap();
                let mut body = wire.body(&head);
                let mut all = Vec::new();
                let ended = loop {
                    match body.next().await {
                        Ok(Some(piece)) => all.extend_from_slice(&piece),
                        Ok(None) => break true,
                        Err(_) => break false,
                    }
                };
                sender.send((all, ended)).await.unwrap();
            }
        })
        .await;
        let (edge, _agent) = tunnel(&upstream.url()).await;
        let mut visitor = edge.visitor().await;
        visitor.send(post(fields) + piece).await;
        within("the request begins", begun.recv()).await.unwrap();
        drop(visitor);
        let (body, whole) = within("a request", requests.recv()).await.unwrap();
        assert!(!whole && b"half".starts_with(&body), "{fields}: {body:?}");
    }
}

/// The answer comes before the request was read, and the connection is of use afterwards or closed:
/// what is left of the body is never taken for a request.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_upload_is_read() {
    // It reads on, as a careful server does, or takes not a byte more and waits.
    let upstream = RawUpstream::start(|number, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\ntoo").await;
        if number == 0 {
            wire.rest().await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    for _ in 0..2 {
        let mut visitor = edge.visitor().await;
        visitor.send(post("content-length: 1000000000")).await;
        let mut writer = visitor.socket.into_split();
        let uploading = tokio::spawn(async move {
            let piece = vec![b'x'; 64 * 1024];
            while tokio::io::AsyncWriteExt::write_all(&mut writer.1, &piece).await.is_ok() {}
        });
        let mut answer = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut writer.0, &mut answer);
        // The connection ends: nobody reads the rest of the upload.
        let _ = within("the answer and the end", reading).await;
        uploading.abort();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\ntoo"), "{answer}");
    }
}

/// Each side hears the other while it still speaks.
#[tokio::test(flavor = "multi_thread")]
async fn an_echo_that_answers_while_it_listens() {
    let upstream = TestUpstream::start(|request| async move {
        let (mut sender, response) = channel();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    sender.send_data(data).await.unwrap();
                }
            }
        });
        response
    })
    .await;
    let (edge, _agent) = tunnel(&upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor.send(post("transfer-encoding: chunked")).await;
    // The head comes before the first byte of the body was sent.
    let head = visitor.head().await;
    assert_eq!(head.status(), 200);
    for n in 0..50 {
        let word = format!("word {n:03}");
        visitor.send(format!("8\r\n{word}\r\n")).await;
        assert_eq!(visitor.exactly(13).await, Bytes::from(format!("8\r\n{word}\r\n")));
    }
    visitor.send("0\r\n\r\n").await;
    assert_eq!(visitor.exactly(5).await, Bytes::from("0\r\n\r\n"));
    edge.get("demo", "/").await.assert_ok("");
}
