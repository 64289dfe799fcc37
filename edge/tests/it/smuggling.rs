//! T01: no request hides behind another, however the first one says where it ends.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::harness::{TestAgent, TestEdge, upstream::RawUpstream, wire::Wire};

/// What hides: as a request it would be seen at the local server.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: demo.tunnels.test\r\n\r\n";

/// A way to a local server that takes down every byte it gets, and answers whatever looks like the
/// end of a head.
struct Naive {
    edge: TestEdge,
    seen: Arc<Mutex<Vec<u8>>>,
    _agent: TestAgent,
    _upstream: RawUpstream,
}

impl Naive {
    async fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let upstream = RawUpstream::start(move |_, mut wire| {
            let log = Arc::clone(&log);
            async move { take_down(&mut wire, &log).await }
        })
        .await;
        let edge = TestEdge::start();
        let agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
        Self { edge, seen, _agent: agent, _upstream: upstream }
    }

    /// Sends `bytes` and nothing more; everything that comes back.
    async fn throw(&self, bytes: &[u8]) -> String {
        let mut visitor = self.edge.visitor().await;
        // What is refused early is not read to its end.
        let _ = visitor.try_send(bytes).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut visitor.socket).await;
        String::from_utf8_lossy(&visitor.rest().await).into_owned()
    }

    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.seen.lock())).into_owned()
    }
}

async fn take_down(wire: &mut Wire, log: &Mutex<Vec<u8>>) {
    loop {
        let bytes = wire.bytes().await;
        if bytes.is_empty() {
            return;
        }
        log.lock().extend_from_slice(&bytes);
        for _ in bytes.windows(4).filter(|w| w == b"\r\n\r\n") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    }
}

/// Refused with 400, the connection closed, and nothing of it at the local server.
#[tokio::test(flavor = "multi_thread")]
async fn t01_what_can_be_read_in_two_ways_is_refused() {
    let way = Naive::start().await;
    let hidden = HIDDEN.len();
    let chunked_then_hidden = format!("0\r\n\r\n{HIDDEN}");
    let cases: Vec<(&str, String)> = vec![
        (
            "TE twice",
            format!(
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n{chunked_then_hidden}"
            ),
        ),
        (
            "TE twice, once another",
            format!(
                "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n{chunked_then_hidden}"
            ),
        ),
        ("a TE list", format!("transfer-encoding: chunked, chunked\r\n\r\n{chunked_then_hidden}")),
        ("gzip, chunked", format!("transfer-encoding: gzip, chunked\r\n\r\n{chunked_then_hidden}")),
        (
            "chunked, identity",
            format!("transfer-encoding: chunked, identity\r\n\r\n{chunked_then_hidden}"),
        ),
        (
            "identity",
            format!("transfer-encoding: identity\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"),
        ),
        ("an unknown TE", format!("transfer-encoding: xchunked\r\n\r\n{chunked_then_hidden}")),
        ("TE in quotes", format!("transfer-encoding: \"chunked\"\r\n\r\n{chunked_then_hidden}")),
        (
            "TE with a parameter",
            format!("transfer-encoding: chunked;a=b\r\n\r\n{chunked_then_hidden}"),
        ),
        (
            "TE with a vertical tab",
            format!("transfer-encoding: \x0bchunked\r\n\r\n{chunked_then_hidden}"),
        ),
        (
            "space before the colon",
            format!("transfer-encoding : chunked\r\n\r\n{chunked_then_hidden}"),
        ),
        ("two lengths", format!("content-length: 0\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("a list of lengths", format!("content-length: {hidden}, {hidden}\r\n\r\n{HIDDEN}")),
        ("a signed length", format!("content-length: +{hidden}\r\n\r\n{HIDDEN}")),
        ("a negative length", format!("content-length: -1\r\n\r\n{HIDDEN}")),
        ("a hexadecimal length", format!("content-length: 0x10\r\n\r\n{HIDDEN}")),
        ("an empty length", format!("content-length:\r\n\r\n{HIDDEN}")),
        ("a length of words", format!("content-length: {hidden} 0\r\n\r\n{HIDDEN}")),
        (
            "a length beyond 64 bits",
            format!("content-length: 18446744073709551616\r\n\r\n{HIDDEN}"),
        ),
        (
            "a folded line",
            format!(
                "x-folded: a\r\n content-length: 0\r\ntransfer-encoding:\r\n chunked\r\n\r\n{chunked_then_hidden}"
            ),
        ),
        ("a fold at the start", format!(" content-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("NUL in a value", format!("x-nul: a\0b\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("NUL in a name", format!("x\0y: a\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("CR in a value", format!("x-cr: a\rcontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("a line without a colon", format!("nothing\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        ("an empty name", format!(": a\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
    ];
    for (what, rest) in cases {
        let got = way
            .throw(
                format!("POST /visible HTTP/1.1\r\nhost: demo.tunnels.test\r\n{rest}").as_bytes(),
            )
            .await;
        assert!(
            got.starts_with("HTTP/1.1 400 ") || got.starts_with("HTTP/1.1 501 "),
            "{what}: {got}"
        );
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{what}: {got}");
        assert_eq!(way.take(), "", "{what}");
    }
}

/// RFC 9112, section 6.3: the chunks win, the length is dropped, and nothing more is read from the
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn t01_a_length_beside_chunks_is_dropped() {
    let way = Naive::start().await;
    let chunks = format!("4\r\nbody\r\n0\r\n\r\n{HIDDEN}");
    let all = chunks.len();
    for fields in [
        format!("content-length: {all}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {all}"),
        "content-length: 4\r\ntransfer-encoding: chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nContent-Length: 0".to_owned(),
    ] {
        let head = format!("POST /visible HTTP/1.1\r\nhost: demo.tunnels.test\r\n{fields}\r\n\r\n");
        let got = way.throw(format!("{head}{chunks}").as_bytes()).await;
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{fields}: {got}");
        assert!(
            got.contains("connection: close") || got.starts_with("HTTP/1.1 400 "),
            "{fields}: {got}"
        );
        let seen = way.take();
        assert!(!seen.contains("/hidden") && !seen.contains("content-length"), "{fields}: {seen}");
    }
}

/// Request lines that other programs might cut elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn t01_request_lines_are_read_strictly() {
    let way = Naive::start().await;
    for line in [
        "GET  /visible HTTP/1.1",
        "GET /visible  HTTP/1.1",
        "GET\t/visible HTTP/1.1",
        "GET /vis ible HTTP/1.1",
        "GET /visible HTTP/1.2",
        "GET /visible HTTP/2.0",
        "GET /visible HTTP/1.1 ",
        "GET /visible",
        "GET /vis\0ible HTTP/1.1",
        "GET /vis\ribleHTTP/1.1",
        "G@T /visible HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let got = way
            .throw(format!("{line}\r\nhost: demo.tunnels.test\r\n\r\n{HIDDEN}").as_bytes())
            .await;
        assert!(
            got.is_empty() || got.starts_with("HTTP/1.1 4") || got.starts_with("HTTP/1.1 505"),
            "{line:?}: {got}"
        );
        assert!(got.matches("HTTP/1.1 ").count() <= 1, "{line:?}: {got}");
        assert_eq!(way.take(), "", "{line:?}");
    }
}

/// Chunked bodies that are cut wrongly break the request; their bytes are never a request.
#[tokio::test(flavor = "multi_thread")]
async fn t01_chunks_are_read_strictly() {
    let way = Naive::start().await;
    let hidden = HIDDEN.len();
    for (what, body) in [
        ("a negative size", format!("-1\r\n\r\n0\r\n\r\n{HIDDEN}")),
        ("no size", format!("\r\n0\r\n\r\n{HIDDEN}")),
        ("a size with a prefix", format!("0x0\r\n\r\n{HIDDEN}")),
        ("a size beyond 64 bits", format!("10000000000000000\r\n{HIDDEN}")),
        ("data beyond its size", format!("1\r\nab\r\n0\r\n\r\n{HIDDEN}")),
        ("a size ended by LF", format!("0\n\n{HIDDEN}")),
        ("data ended by LF", format!("1\r\na\n0\r\n\r\n{HIDDEN}")),
        ("LF in an extension", format!("2;\nxx\r\n{hidden:x}\r\n0\r\n\r\n{HIDDEN}")),
        ("CR in an extension", format!("2;\rxx\r\n{hidden:x}\r\n0\r\n\r\n{HIDDEN}")),
        (
            "an extension without end",
            format!("1;{}\r\na\r\n0\r\n\r\n{HIDDEN}", "x".repeat(100_000)),
        ),
        ("trailers without end", format!("0\r\n{}\r\n{HIDDEN}", "x: y\r\n".repeat(20_000))),
    ] {
        let head = "POST /visible HTTP/1.1\r\nhost: demo.tunnels.test\r\ntransfer-encoding: chunked\r\n\r\n";
        let got = way.throw(format!("{head}{body}").as_bytes()).await;
        assert!(got.matches("HTTP/1.1 200").count() <= 1, "{what}: {got}");
        let seen = way.take();
        assert!(!seen.contains("/hidden"), "{what}: {seen}");
        assert!(seen.matches("HTTP/1.1\r\n").count() <= 1, "{what}: {seen}");
    }
}

/// What is allowed and odd goes on as something plain, framed anew.
#[tokio::test(flavor = "multi_thread")]
async fn t01_framing_is_made_anew() {
    let way = Naive::start().await;
    let mut visitor = way.edge.visitor().await;
    visitor
        .send(
            "POST /one HTTP/1.1\r\nhost: demo.tunnels.test\r\nTransfer-Encoding: CHUNKED\r\n\r\n\
             00004;ext=\"value\";more\r\nbody\r\n000;last\r\nx-trailer: 1\r\n\r\n\
             GET /two HTTP/1.1\r\nhost: demo.tunnels.test\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    // The naive server takes the end of the chunks for the end of a head; its first answer counts.
    visitor.answer("POST").await.assert_ok("ok");
    visitor.answer("GET").await.assert_ok("ok");
    let seen = way.take();
    assert!(!seen.contains("ext=") && !seen.contains("CHUNKED"), "{seen}");
    assert_eq!((seen.matches("POST /one ").count(), seen.matches("GET /two ").count()), (1, 1));
}

/// HTTP/2 in clear text would carry requests that nobody looks at.
#[tokio::test(flavor = "multi_thread")]
async fn t01_no_upgrade_to_http_2_passes() {
    let way = Naive::start().await;
    let mut visitor = way.edge.visitor().await;
    visitor
        .send(
            "GET /visible HTTP/1.1\r\nhost: demo.tunnels.test\r\nconnection: Upgrade, HTTP2-Settings\r\n\
             upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        )
        .await;
    visitor.answer("GET").await.assert_ok("ok");
    let seen = way.take().to_ascii_lowercase();
    assert!(
        !seen.contains("h2c") && !seen.contains("upgrade:") && !seen.contains("http2-settings"),
        "{seen}"
    );
}

/// Bytes behind a request to switch protocols wait until the local server has agreed or declined.
#[tokio::test(flavor = "multi_thread")]
async fn t01_nothing_passes_before_the_switch_is_declined() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        let first = wire.head().await;
        let early = tokio::time::timeout(Duration::from_millis(200), wire.bytes()).await;
        assert!(early.is_err(), "{early:?}");
        wire.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
            first.first.len(),
            first.first
        ))
        .await;
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::start(&edge, "demo", &upstream.url()).await;
    let mut visitor = edge.visitor().await;
    visitor
        .send(format!(
            "GET /visible HTTP/1.1\r\nhost: demo.tunnels.test\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n\r\n{HIDDEN}"
        ))
        .await;
    visitor.answer("GET").await.assert_ok("GET /visible HTTP/1.1");
    // Declined: what follows is the visitor's next request, as HTTP says.
    visitor.answer("GET").await.assert_ok("GET /hidden HTTP/1.1");
}
