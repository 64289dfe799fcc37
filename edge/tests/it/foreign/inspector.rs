//! What the agent's inspector makes of real programs at both ends: gRPC, WebSockets, event streams,
//! HTTP/2 and a folder, as its API tells it.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, task::JoinHandle};

use super::{Peer, Serving, Tunnel, program};
use crate::harness::{
    eventually,
    process::{self, Ended, run},
    wire::{Answer, Wire},
};

/// The inspector is on, wherever there is a free port.
const INSPECTED: [&str; 2] = ["--inspector", "127.0.0.1:0"];

impl Tunnel {
    async fn ask_any(&self, path: &str) -> Answer {
        let mut api = Wire::connect(self.inspector.unwrap()).await;
        api.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
            .await;
        api.answer("GET").await
    }

    async fn ask(&self, path: &str) -> Value {
        let answer = self.ask_any(path).await;
        assert_eq!(answer.status(), 200, "{path}: {answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// All of each of the `count` requests that there were, the first one first, once all are over.
    async fn kept(&self, count: usize) -> Vec<Value> {
        let rows = eventually("the requests are over", async || {
            let list = self.ask("/api/v1/requests").await;
            let rows = list["requests"].as_array().unwrap().clone();
            assert!(rows.len() <= count, "{list}");
            let over = rows.iter().all(|row| row["state"] != "open");
            (over && rows.len() == count).then_some(rows)
        })
        .await;
        let mut kept = Vec::new();
        for row in rows.iter().rev() {
            kept.push(self.detail(row).await);
        }
        kept
    }

    async fn detail(&self, row: &Value) -> Value {
        self.ask(&format!("/api/v1/requests/{}", row["id"].as_str().unwrap())).await
    }

    /// The request's messages, each as who said it, what it is, and its text or bytes.
    async fn messages(&self, row: &Value) -> Vec<(String, String, String)> {
        let path = format!("/api/v1/requests/{}/frames", row["id"].as_str().unwrap());
        let frames = self.ask(&path).await;
        assert_eq!(frames["dropped"], 0, "{frames}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let shown = |frame: &Value| {
            let said = frame["text"].as_str().or(frame["base64"].as_str()).unwrap();
            (text(&frame["from"]), text(&frame["kind"]), said.to_owned())
        };
        frames["frames"].as_array().unwrap().iter().map(shown).collect()
    }
}

fn said(from: &str, kind: &str, text: &str) -> (String, String, String) {
    (from.to_owned(), kind.to_owned(), text.to_owned())
}

fn field<'a>(fields: &'a Value, name: &str) -> Option<&'a str> {
    let fields = fields.as_array().unwrap();
    fields.iter().find(|field| field[0] == name).and_then(|field| field[1].as_str())
}

/// curl through the tunnel, with HTTP/2.
async fn curl(home: &Path, flags: &[&str], url: &str) -> Ended {
    let mut command: Command = process::command(&program("curl"), home);
    command.args(["-q", "-sS", "--max-time", "20", "--noproxy", "*", "--http2-prior-knowledge"]);
    run(command.args(flags).arg(url)).await
}

async fn calls(protocol: &str) {
    let edge = Serving::start().await;
    let peer = Peer::start(&edge, "grpc_calls.py", &["inspected"]).await;
    let port = peer.port.to_string();
    let words = ["http", &port, "--name", "calls", "--upstream-protocol", protocol];
    let agent = edge.tunnel(&[&words[..], &INSPECTED].concat()).await;
    peer.passes(&format!("{} calls.localhost", edge.http), 5).await;
    let kept = agent.kept(5).await;
    let grpc = |row: &Value| (row["grpc"]["status"].clone(), row["grpc"]["message"].clone());
    for (row, path) in kept.iter().zip(["Echo", "Echo", "Count", "FailLate", "Fail"]) {
        assert_eq!(row["path"], format!("/uniroute.Test/{path}"));
        assert_eq!(
            (&row["kind"], &row["state"], &row["status"]),
            (&json!("grpc"), &json!("done"), &json!(200))
        );
        assert_eq!(row["http_version"], "HTTP/2.0");
    }
    let [echo, packed, count, late, fail] = &kept[..] else { panic!("{kept:?}") };

    // Unary, as it is and compressed.
    let hello = [said("visitor", "message", "hello"), said("upstream", "message", "hello")];
    assert_eq!(agent.messages(echo).await, hello);
    assert_eq!(grpc(echo), (json!(0), json!("")));
    assert_eq!(field(&echo["response"]["trailers"], "grpc-status"), Some("0"), "{echo}");
    assert!(echo["timing"]["connect_us"].is_u64() || echo["timing"]["reused"] == true, "{echo}");
    let zeds = "z".repeat(1000);
    let messages = agent.messages(packed).await;
    assert_eq!(messages[0], said("visitor", "message", &zeds));
    assert_eq!(messages[1].2, zeds);
    assert!(packed["request_size"].as_u64().unwrap() < 200, "it was compressed: {packed}");
    assert_eq!(packed["timing"]["reused"], true);

    // A server stream.
    let numbers = ["0", "1", "2"].map(|number| said("upstream", "message", number));
    assert_eq!(
        agent.messages(count).await,
        [&[said("visitor", "message", "3")], &numbers[..]].concat()
    );
    assert_eq!(grpc(count), (json!(0), json!("")));

    // A failure behind a message, and one without any.
    assert_eq!(agent.messages(late).await[1..], [said("upstream", "message", "one")]);
    assert_eq!(grpc(late), (json!(15), json!("after one")));
    assert_eq!(agent.messages(fail).await, [said("visitor", "message", "no")]);
    assert_eq!(grpc(fail), (json!(9), json!("no")));
    assert_eq!(agent.ask("/api/v1/requests?q=is:grpc").await["total"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_server_that_is_asked() {
    calls("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_server_that_is_known() {
    calls("h2").await;
}

async fn websocket(visitors: &str) {
    let edge = Serving::start().await;
    let peer = Peer::start(&edge, "websocket_cases.py", &[visitors, "inspected"]).await;
    let port = peer.port.to_string();
    let words = ["http", &port, "--name", "chat"];
    let agent = edge.tunnel(&[&words[..], &INSPECTED].concat()).await;
    peer.passes(&format!("{} chat.localhost", edge.http), 1).await;
    let kept = agent.kept(1).await;
    let row = &kept[0];
    assert_eq!(
        (&row["kind"], &row["status"], &row["state"]),
        (&json!("websocket"), &json!(101), &json!("done")),
        "{row}"
    );
    let both = |kind: &str, text: &str| ["visitor", "upstream"].map(|from| said(from, kind, text));
    let expected = [
        both("text", "hello"),
        both("binary", "AAEC"),
        both("text", "in pieces"),
        [said("visitor", "ping", "are you there"), said("upstream", "pong", "are you there")],
        both("close", "4001 seen enough"),
    ];
    assert_eq!(agent.messages(row).await, expected.concat());
    let path = format!("/api/v1/requests/{}/frames", row["id"].as_str().unwrap());
    let frames = agent.ask(&path).await;
    // The library over HTTP/1.1 compresses, the other one does not.
    assert_eq!(frames["frames"][0]["compressed"], visitors == "http1", "{frames}");
    let har = agent.ask("/api/v1/har").await;
    let messages = har["log"]["entries"][0]["_webSocketMessages"].as_array().unwrap().clone();
    assert_eq!(
        (messages.len(), &messages[0]["data"], &messages[1]["type"]),
        (6, &json!("hello"), &json!("receive"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_messages_over_http1() {
    websocket("http1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_messages_over_http2() {
    websocket("http2").await;
}

/// Events are seen while their stream is open.
#[tokio::test(flavor = "multi_thread")]
async fn events_as_they_come() {
    let edge = Serving::start().await;
    let server = Peer::start(&edge, "http_server.py", &[]).await;
    let port = server.port.to_string();
    let agent = edge.tunnel(&[&["http", &port, "--name", "news"][..], &INSPECTED].concat()).await;
    let host = format!("news.localhost:{}", agent.port());
    let mut reader = Wire::connect(edge.http).await;
    reader.send(format!("GET /events HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let head = reader.head().await;
    assert_eq!((head.status(), head.get("content-type")), (200, Some("text/event-stream")));
    let mut events = reader.body(&head);
    assert_eq!(events.next().await.unwrap().unwrap(), "data: ready\n\n");
    for word in ["one", "two"] {
        let mut speaker = Wire::connect(edge.http).await;
        speaker
            .send(format!("POST /say/{word} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n"))
            .await;
        assert_eq!(speaker.answer("POST").await.status(), 200);
        assert_eq!(events.next().await.unwrap().unwrap(), format!("data: {word}\n\n"));
    }
    let list = agent.ask("/api/v1/requests?q=is:sse").await;
    let row = &list["requests"][0];
    assert_eq!(
        (&row["state"], &row["status"], &list["total"]),
        (&json!("open"), &json!(200), &json!(1))
    );
    let expected = ["ready", "one", "two"].map(|text| said("upstream", "event", text));
    assert_eq!(agent.messages(row).await, expected);
    drop(reader);
    let kept = agent.kept(3).await;
    assert_eq!(
        (&kept[0]["kind"], &kept[0]["state"], &kept[0]["frames"]),
        (&json!("sse"), &json!("failed"), &json!(3))
    );
    assert_eq!(agent.messages(&kept[0]).await, expected);
}

/// A server that speaks HTTP/2 only: says how long the body was, and its sum behind its own body.
async fn http2_server() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // Others only look whether somebody is here.
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    };
    (port, tokio::spawn(serving))
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (mut length, mut body) = (0, request.into_body());
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        length += piece.len();
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    let head = http::Response::builder().header("x-speaks", "h2").body(()).unwrap();
    let mut sending = respond.send_response(head, false).unwrap();
    sending.send_data(format!("{length} bytes").into(), false).unwrap();
    let trailers = [("x-sum", length)].map(|(name, value)| (name.parse().unwrap(), value.into()));
    sending.send_trailers(trailers.into_iter().collect()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_http2() {
    let edge = Serving::start().await;
    let (port, server) = http2_server().await;
    let port = port.to_string();
    let words = ["http", &port, "--name", "two", "--upstream-protocol", "h2"];
    let agent = edge.tunnel(&[&words[..], &INSPECTED].concat()).await;
    let home = edge.home.path();
    let long = "x".repeat(100_000);
    std::fs::write(home.join("long"), &long).unwrap();
    for (flags, said) in [
        (&[][..], "0 bytes"),
        (&["--data-binary", "some words"], "10 bytes"),
        (&["--data-binary", "@long"], "100000 bytes"),
    ] {
        assert_eq!(curl(home, flags, &format!("{}/a?b=c", agent.url)).await.out, said);
    }
    let kept = agent.kept(3).await;
    for (row, length) in kept.iter().zip([0_usize, 10, 100_000]) {
        assert_eq!(
            (&row["status"], &row["state"], &row["kind"]),
            (&json!(200), &json!("done"), &json!("http")),
            "{row}"
        );
        assert_eq!((&row["path"], &row["request_size"]), (&json!("/a?b=c"), &json!(length)));
        let response = &row["response"];
        assert_eq!(field(&response["headers"], "x-speaks"), Some("h2"));
        assert_eq!(field(&response["trailers"], "x-sum"), Some(&length.to_string()[..]));
        assert_eq!(response["body"]["text_preview"], format!("{length} bytes"));
    }
    assert_eq!(kept[1]["request"]["body"]["text_preview"], "some words");
    let body = &kept[2]["request"]["body"];
    assert_eq!((&body["kept"], &body["cut"]), (&json!(65_536), &json!(true)));
    // The first one made the connection.
    let reused: Vec<_> =
        kept.iter().map(|row| row["timing"]["reused"].as_bool().unwrap()).collect();
    assert_eq!(reused, [false, true, true]);
    assert!(kept[0]["timing"]["connect_us"].as_u64().unwrap() > 0);
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder() {
    let edge = Serving::start().await;
    let home = edge.home.path();
    std::fs::create_dir(home.join("site")).unwrap();
    std::fs::write(home.join("site/index.html"), "<h1>hello</h1>").unwrap();
    std::fs::write(home.join("site/long.txt"), "0123456789".repeat(20_000)).unwrap();
    let agent =
        edge.tunnel(&[&["http", "file:./site", "--name", "folder"][..], &INSPECTED].concat()).await;
    for (flags, path, status) in [
        (&[][..], "/", "200"),
        (&["-r", "5-9"], "/long.txt", "206"),
        (&[], "/long.txt", "200"),
        (&["-I"], "/long.txt", "200"),
        (&[], "/nothing", "404"),
    ] {
        let all = [&["-o", "out", "-w", "%{http_code}"], flags].concat();
        assert_eq!(curl(home, &all, &format!("{}{path}", agent.url)).await.out, status, "{path}");
    }
    let kept = agent.kept(5).await;
    let shown: Vec<_> = kept
        .iter()
        .map(|row| (row["status"].as_u64().unwrap(), row["response_size"].as_u64().unwrap()))
        .collect();
    assert_eq!(shown[..4], [(200, 14), (206, 5), (200, 200_000), (200, 0)]);
    assert_eq!(shown[4].0, 404);
    assert_eq!(kept[0]["response"]["body"]["text_preview"], "<h1>hello</h1>");
    assert_eq!(kept[1]["response"]["body"]["text_preview"], "56789");
    assert_eq!(kept[2]["response"]["body"]["kept"], 65_536);
    for row in &kept {
        assert!(row["upstream"].as_str().unwrap().ends_with("site"), "{row}");
        assert_eq!((&row["state"], &row["error"]), (&json!("done"), &Value::Null));
    }
}

/// The legs before the agent: at the edge, held there, and over the link.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_did_before_it_was_here() {
    let edge = Serving::start().await;
    let home = edge.home.path();
    std::fs::create_dir(home.join("site")).unwrap();
    std::fs::write(home.join("site/index.html"), "hello").unwrap();
    let words = ["http", "file:./site", "--name", "legs"];
    let words = [&words[..], &INSPECTED].concat();
    let state = home.join("state");
    let mut first = edge.tunnel_of(&state, &words).await;
    let url = first.url.clone();
    let get = async || assert_eq!(curl(home, &[], &url).await.out, "hello");
    get().await;
    let row = &first.kept(1).await[0];
    assert!(row["timing"]["edge_us"].as_u64().is_some_and(|us| us > 0), "{row}");
    assert_eq!(row["timing"]["held_us"], Value::Null);
    // The first round trip is measured at once, and not after the first heartbeat's time.
    eventually("the link is measured", async || {
        get().await;
        let list = first.ask("/api/v1/requests?limit=1").await;
        let row = first.detail(&list["requests"][0]).await;
        row["timing"]["link_us"].as_u64().filter(|us| *us > 0)
    })
    .await;

    first.process.kill().await;
    let (waited, second) = tokio::join!(get(), async {
        // Held for at least so long: the agent is not even started.
        tokio::time::sleep(Duration::from_millis(100)).await;
        edge.tunnel_of(&state, &words).await
    });
    let () = waited;
    let row = &second.kept(1).await[0];
    let timing = &row["timing"];
    let held = timing["held_us"].as_u64().unwrap_or_else(|| panic!("{row}"));
    assert!(held > 50_000 && timing["edge_us"].is_u64(), "{row}");
    let har = second.ask("/api/v1/har").await;
    assert!(har["log"]["entries"][0]["timings"]["_held"].as_f64().unwrap() > 50.0, "{har}");
    let id = row["id"].as_str().unwrap();
    let api = second.inspector.unwrap().to_string();
    let shown = run(process::agent(home).args(["inspect", "show", id, "--address", &api])).await;
    assert!(shown.out.contains("held by the edge ") && shown.out.contains(" · edge "), "{shown:?}");
}

/// Every bound has a figure.
#[tokio::test(flavor = "multi_thread")]
async fn metrics() {
    let edge = Serving::start().await;
    let server = Peer::start(&edge, "http_server.py", &[]).await;
    let port = server.port.to_string();
    let agent = edge.tunnel(&[&["http", &port, "--name", "site"][..], &INSPECTED].concat()).await;
    for (path, status) in [("/hello", "200"), ("/hello", "200"), ("/moved", "302"), ("/no", "404")]
    {
        let flags = ["-o", "out", "-w", "%{http_code}"];
        let url = format!("{}{path}", agent.url);
        assert_eq!(curl(edge.home.path(), &flags, &url).await.out, status);
    }
    agent.kept(4).await;
    let figure = async |line: &str| {
        let answer = agent.ask_any("/metrics").await;
        assert_eq!(answer.status(), 200);
        let kind = answer.head.get("content-type").unwrap();
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        let text = answer.text().to_owned();
        assert!(text.ends_with("# EOF\n"));
        let value = text.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse::<f64>().unwrap()
    };
    let requests = async |status: &str| {
        let labels = format!(r#"{{tunnel="http",kind="http",status="{status}"}}"#);
        figure(&format!("uniroute_agent_requests_total{labels}")).await
    };
    assert_eq!(
        (requests("2xx").await, requests("3xx").await, requests("4xx").await),
        (2.0, 1.0, 1.0)
    );
    assert_eq!((requests("none").await, requests("5xx").await), (0.0, 0.0));
    for (line, value) in [
        ("sessions", 1.0),
        ("sessions_begun_total", 1.0),
        ("sessions_ended_total", 0.0),
        ("requests_open{tunnel=\"http\",kind=\"http\"}", 0.0),
        ("tunnel_state{tunnel=\"http\",state=\"ready\"}", 1.0),
        ("captures", 4.0),
        ("captures_limit", 10_000.0),
        ("captures_evicted_total", 0.0),
        ("captures_missed_total", 0.0),
        ("capture_recording", 1.0),
        ("replays", 0.0),
        ("api_connections_limit", 64.0),
        ("api_event_readers", 0.0),
        ("api_event_readers_limit", 16.0),
        ("events_missed_total", 0.0),
        ("upstream_waiting_limit", 1000.0),
    ] {
        assert_eq!(figure(&format!("uniroute_agent_{line}")).await, value, "{line}");
    }
    assert!(figure("uniroute_agent_bytes_total").await > 1000.0);
    assert!(figure("uniroute_agent_capture_bytes").await > 1000.0);
    assert!(figure("uniroute_agent_start_time_seconds").await > 1.7e9);
}

/// Refusals say which they are and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_codes() {
    let edge = Serving::start().await;
    std::fs::create_dir(edge.home.path().join("site")).unwrap();
    let agent =
        edge.tunnel(&[&["http", "file:./site", "--name", "folder"][..], &INSPECTED].concat()).await;
    let api: SocketAddr = agent.inspector.unwrap();
    let id = "0".repeat(32);
    for (method, path, fields, status, code) in [
        ("GET", "/api/v1/status", "host: evil.test", 403, "UR-2201"),
        ("GET", "/metrics", "host: evil.test", 403, "UR-2201"),
        ("GET", "/api/v1/status", "host: localhost\r\nsec-fetch-site: cross-site", 403, "UR-2202"),
        ("POST", "/api/v1/reload", "host: localhost", 403, "UR-2203"),
        ("GET", "/api/v2/status", "host: localhost", 404, "UR-2204"),
        ("GET", "/assets/none.js", "host: localhost", 404, "UR-2204"),
        ("GET", "/api/v1/reload", "host: localhost", 405, "UR-2205"),
        ("GET", "/api/v1/requests?limit=many", "host: localhost", 422, "UR-2206"),
        ("GET", "/api/v1/diff?a=1", "host: localhost", 422, "UR-2206"),
        ("POST", "/api/v1/recording", "host: localhost\r\nx-uniroute: 1", 422, "UR-2206"),
        ("GET", &format!("/api/v1/requests/{id}"), "host: localhost", 404, "UR-2211"),
        ("GET", &format!("/api/requests/http/{id}"), "host: localhost", 404, "UR-2211"),
        ("GET", "/api/tunnels/other", "host: localhost", 404, "UR-2212"),
        ("POST", "/api/v1/reload", "host: localhost\r\nx-uniroute: 1", 409, "UR-2221"),
    ] {
        let mut wire = Wire::connect(api).await;
        wire.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\ncontent-length: 0\r\n\r\n"))
            .await;
        let answer = wire.answer(method).await;
        assert_eq!((answer.status(), answer.code()), (status, Some(code)), "{method} {path}");
        assert_eq!(answer.head.get("content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)));
        for name in ["title", "detail", "fix", "type"] {
            assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
    }
    let shown = run(process::agent(edge.home.path()).args([
        "inspect",
        "show",
        "0000",
        "--address",
        &api.to_string(),
    ]))
    .await;
    assert_eq!(shown.code, Some(1));
    assert!(shown.err.contains("(UR-2211). Look for it in `uniroute inspect list`"), "{shown:?}");
}
