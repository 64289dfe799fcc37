//! What the inspector keeps, shows and sends again: with an agent as a program and an edge beside it.

use std::{io::Write as _, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{any, get, post},
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Edge, Upstream, eventually, process::Process, within};

/// An agent with one tunnel `demo`, and its local API.
struct World {
    edge: Edge,
    agent: Process,
    api: String,
    _upstream: Upstream,
}

impl World {
    async fn start(app: Router) -> Self {
        Self::start_with(app, "", &[]).await
    }

    /// `inspector`: lines of `[agent.inspector]`.
    async fn start_with(app: Router, inspector: &str, tunnel: &[&str]) -> Self {
        let edge = Edge::start().await;
        let upstream = Upstream::start(app).await;
        let config = format!(
            "version = 1\n[agent.inspector]\naddress = \"127.0.0.1:0\"\n{inspector}\n[tunnels.demo]\nname = \"demo\"\nupstream = \"{}\"\n{}\n",
            upstream.port(),
            tunnel.join("\n"),
        );
        std::fs::write(edge.home.path().join("uniroute.toml"), config).unwrap();
        let arguments = ["start", "demo", "--config", "uniroute.toml", "--output", "json"];
        let mut command = edge.agent(&arguments);
        let agent = Process::start(command.env("UNIROUTE_STATE_DIR", "state"));
        let ready = agent.out_line("\"ready\"").await;
        let ready: Value = serde_json::from_str(&ready).unwrap();
        let url = ready["inspector"].as_str().unwrap_or_else(|| panic!("{ready}"));
        let api = url.strip_prefix("http://").unwrap().to_owned();
        Self { edge, agent, api, _upstream: upstream }
    }

    /// What a visitor sends, as it is; all of the answer.
    async fn visit(&self, request: &str) -> String {
        let host = format!("demo.localhost:{}", self.edge.http.port());
        let request = request.replace("HOST", &host);
        let answer = exchange(&self.edge.http.to_string(), request.as_bytes()).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn visit_path(&self, path: &str) -> String {
        self.visit(&format!("GET {path} HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n")).await
    }

    async fn api(&self, method: &str, path: &str, body: &str) -> Answer {
        self.api_with(method, path, "X-Uniroute: 1\r\nContent-Type: application/json\r\n", body)
            .await
    }

    async fn api_with(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let host = if headers.contains("Host: ") { "" } else { "Host: localhost\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        Answer::new(&exchange(&self.api, request.as_bytes()).await)
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.api("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// The newest request, once it is over.
    async fn last(&self) -> Value {
        let list = eventually("the request is over", async || {
            let list = self.get("/api/v1/requests?limit=1").await;
            let over = list["requests"][0]["state"].as_str().is_some_and(|state| state != "open");
            over.then_some(list)
        });
        let list = list.await;
        self.detail(list["requests"][0]["id"].as_str().unwrap()).await
    }

    async fn detail(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/requests/{id}")).await
    }

    /// Replays, and waits for the end.
    async fn replay(&self, id: &str, changes: &Value) -> Value {
        let path = format!("/api/v1/requests/{id}/replay");
        let answer = self.api("POST", &path, &changes.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let new = answer.json()["id"].as_str().unwrap().to_owned();
        eventually("the replay is over", async || {
            let answer = self.api("GET", &format!("/api/v1/requests/{new}"), "").await;
            (answer.status == 200).then(|| answer.json()).filter(|detail| detail["state"] != "open")
        })
        .await
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(bytes: &[u8]) -> Self {
        let at = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_ascii_lowercase();
        let mut body = bytes[at + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

async fn exchange(address: &str, request: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    within("an answer", async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(request).await.unwrap();
        socket.read_to_end(&mut answer).await.unwrap();
    })
    .await;
    answer
}

fn header<'a>(message: &'a Value, name: &str) -> Option<&'a str> {
    let fields = message["headers"].as_array().unwrap();
    let field = fields.iter().find(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name));
    field.and_then(|field| field[1].as_str())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Says what it got.
fn app() -> Router {
    let echo = async |headers: HeaderMap, body: Bytes| {
        let seen = headers.get("x-seen").cloned().unwrap_or_else(|| "no".parse().unwrap());
        let kind =
            headers.get("content-type").cloned().unwrap_or_else(|| "text/plain".parse().unwrap());
        ([("content-type", kind), ("x-saw", seen)], body)
    };
    let packed = async || {
        ([("content-encoding", "gzip"), ("content-type", "text/plain")], gzip(b"packed hello"))
    };
    let not_modified = async || (StatusCode::NOT_MODIFIED, [("etag", "\"1\"")]);
    let chunked = async || {
        let pieces = ["one ", "two"].map(Ok::<_, std::io::Error>);
        Body::from_stream(futures_util::stream::iter(pieces))
    };
    let events = async || {
        let text = "event: tick\nid: 7\ndata: {\"token\":\"canary\",\"n\":1}\n\ndata: two\n\n";
        ([("content-type", "text/event-stream")], text)
    };
    let auth = async |headers: HeaderMap| {
        headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let secrets = async || {
        let headers = [
            ("set-cookie", "id=canary; Path=/"),
            ("x-auth-token", "canary"),
            ("content-type", "application/json"),
        ];
        (headers, r#"{"password":"canary","shown":"yes"}"#)
    };
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/echo", any(echo))
        .route("/packed", get(packed))
        .route("/304", get(not_modified))
        .route("/chunked", get(chunked))
        .route("/events", get(events))
        .route("/auth", get(auth))
        .route("/secrets", post(secrets))
        .route("/500", get(async || StatusCode::INTERNAL_SERVER_ERROR.into_response()))
}

#[tokio::test]
async fn requests_are_kept_as_they_were() {
    let world = World::start(app()).await;
    world.visit_path("/hello?a=1").await;
    let hello = world.last().await;
    for (name, value) in [
        ("tunnel", json!("demo")),
        ("method", json!("GET")),
        ("scheme", json!("http")),
        ("path", json!("/hello?a=1")),
        ("visitor", json!("127.0.0.1")),
        ("state", json!("done")),
        ("status", json!(200)),
        ("kind", json!("http")),
        ("type", json!("text/plain")),
        ("request_size", json!(0)),
        ("response_size", json!(5)),
        ("error", Value::Null),
        ("replay_of", Value::Null),
        ("route", json!(0)),
        ("http_version", json!("HTTP/1.1")),
    ] {
        assert_eq!(hello[name], value, "{name}: {hello}");
    }
    assert!(hello["host"].as_str().unwrap().starts_with("demo.localhost:"));
    assert_eq!(hello["id"].as_str().unwrap().len(), 32);
    assert_eq!(header(&hello["response"], "content-length"), Some("5"));
    assert_eq!(hello["response"]["body"]["text_preview"], "hello");
    assert_eq!(hello["response"]["reason"], "OK");
    let (wait, all) = (hello["wait_us"].as_u64().unwrap(), hello["duration_us"].as_u64().unwrap());
    assert!(wait > 0 && wait <= all && hello["timing"]["connect_us"].as_u64().unwrap() <= wait);

    world
        .visit("POST /echo HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
        .await;
    let echo = world.last().await;
    assert_eq!(echo["request"]["body"]["text_preview"], "abcde");
    assert_eq!(echo["request"]["trailers"], json!([["X-Sum", "5"]]), "{echo}");
    assert_eq!(echo["response"]["body"]["text_preview"], "abcde");

    world.visit("HEAD /hello HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n").await;
    let head = world.last().await;
    assert_eq!((&head["method"], &head["response_size"]), (&json!("HEAD"), &json!(0)));

    world.visit_path("/304").await;
    let not_modified = world.last().await;
    assert_eq!(not_modified["status"], 304);
    assert_eq!(header(&not_modified["response"], "etag"), Some("\"1\""));

    world.visit_path("/chunked").await;
    assert_eq!(world.last().await["response"]["body"]["text_preview"], "one two");

    world.visit_path("/packed").await;
    let packed = world.last().await;
    let body = &packed["response"]["body"];
    assert_eq!(
        (&body["encoding"], &body["text_preview"]),
        (&json!("gzip"), &json!("packed hello"))
    );
    let id = packed["id"].as_str().unwrap();
    let path = format!("/api/v1/requests/{id}/response/body");
    let raw = world.api("GET", &path, "").await;
    assert_eq!(raw.body, gzip(b"packed hello"));
    // T14: never shown, only saved.
    for line in [
        "content-type: application/octet-stream",
        "content-disposition: attachment",
        "x-content-type-options: nosniff",
        "content-security-policy: default-src 'none'; sandbox",
        "x-uniroute-body: whole",
    ] {
        assert!(raw.head.contains(line), "{line}: {}", raw.head);
    }
    let decoded = world.api("GET", &format!("{path}?decoded=1"), "").await;
    assert_eq!(decoded.text(), "packed hello");
    assert_eq!(world.detail(&id[..8]).await["id"], *id, "the beginning of an id will do");

    world.visit_path("/events").await;
    let events = world.last().await;
    assert_eq!((&events["kind"], &events["frames"]), (&json!("sse"), &json!(2)));
    let frames =
        world.get(&format!("/api/v1/requests/{}/frames", events["id"].as_str().unwrap())).await;
    let first = &frames["frames"][0];
    assert_eq!((&first["event"], &first["id"]), (&json!("tick"), &json!("7")));
    assert_eq!(first["text"], "{\"token\":\"***\",\"n\":1}");
    assert_eq!((&frames["frames"][1]["text"], &frames["dropped"]), (&json!("two"), &json!(0)));

    world.agent.signal("TERM").await;
    world.agent.ended().await;
}

#[tokio::test]
async fn searching_and_pages() {
    let world = World::start(app()).await;
    for path in ["/hello?n=1", "/500", "/hello?n=2", "/packed", "/hello?n=3"] {
        world.visit_path(path).await;
    }
    world.visit("POST /echo HTTP/1.1\r\nHost: HOST\r\nX-Seen: Needle\r\nContent-Length: 8\r\nConnection: close\r\n\r\nHaystack").await;
    world.last().await;
    let found = async |query: &str| {
        let list = world.get(&format!("/api/v1/requests?{query}")).await;
        let paths = list["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["path"].as_str().unwrap().to_owned());
        (paths.collect::<Vec<_>>(), list)
    };
    for (query, paths) in [
        ("q=status:5xx", vec!["/500"]),
        ("q=method:post", vec!["/echo"]),
        ("q=needle", vec!["/echo"]),
        ("q=HAYSTACK", vec!["/echo"]),
        ("q=path:/hello+-n%3D2", vec!["/hello?n=3", "/hello?n=1"]),
        ("q=is:error", vec!["/500"]),
        ("q=tunnel:other", vec![]),
        ("tunnel=other", vec![]),
        ("q=nothing-of-this", vec![]),
    ] {
        assert_eq!(found(query).await.0, paths, "{query}");
    }
    let (first, list) = found("limit=2").await;
    assert_eq!(
        (first, &list["total"]),
        (vec!["/echo".to_owned(), "/hello?n=3".to_owned()], &json!(6))
    );
    let next = list["next"].as_u64().unwrap();
    let (second, list) = found(&format!("limit=10&before={next}")).await;
    assert_eq!((second.len(), &list["next"]), (4, &Value::Null));

    let har = world.get("/api/v1/har?q=needle").await;
    let entry = &har["log"]["entries"][0];
    assert_eq!(
        (&har["log"]["version"], entry["request"]["postData"]["text"].as_str()),
        (&json!("1.2"), Some("Haystack"))
    );
    assert_eq!(entry["response"]["content"]["text"], "Haystack");
    assert!(entry["startedDateTime"].as_str().unwrap().ends_with('Z'));

    // Of an answer two versions.
    let ids: Vec<_> = found("q=path:/hello").await.1["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect();
    let diff = world.get(&format!("/api/v1/diff?a={}&b={}", ids[0], ids[1])).await;
    assert_eq!((&diff["status"], &diff["body"]["same"]), (&json!([200, 200]), &json!(true)));

    let recording = world.api("POST", "/api/v1/recording", "{\"on\":false}").await;
    assert_eq!(recording.json(), json!({ "recording": false }));
    world.visit_path("/hello?unseen").await;
    assert_eq!(found("").await.1["total"], 6);
    assert_eq!(world.api("DELETE", "/api/v1/requests", "").await.status, 204);
    let status = world.get("/api/v1/status").await;
    assert_eq!(status["inspector"]["captured"], 0);
    assert_eq!(status["inspector"]["bytes"], 0, "{status}");
    assert_eq!(status["inspector"]["recording"], false);
}

/// T20: a secret is in no answer but that of the body itself.
#[tokio::test]
async fn t20_secrets_stay_in_the_agent() {
    let world = World::start_with(app(), "redact = [\"X-Mine\"]", &[]).await;
    let body = "user=me&password=canary";
    world
        .visit(&format!(
            "POST /secrets?a=b&api_key=canary HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer canary\r\n\
             Cookie: session=canary\r\nX-Mine: canary\r\nReferer: http://a/?token=canary\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    let last = world.last().await;
    let id = last["id"].as_str().unwrap();
    let mut watching = TcpStream::connect(&world.api).await.unwrap();
    watching
        .write_all(b"GET /api/v1/events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut events = vec![0; 64 * 1024];
    let read = within("events", async {
        let mut have = 0;
        while !String::from_utf8_lossy(&events[..have]).contains("event: request") {
            have += watching.read(&mut events[have..]).await.unwrap();
        }
        have
    })
    .await;
    assert!(!String::from_utf8_lossy(&events[..read]).contains("canary"));
    for path in [
        "/api/v1/requests".to_owned(),
        format!("/api/v1/requests/{id}"),
        format!("/api/v1/requests/{id}/curl"),
        format!("/api/v1/requests/{id}/frames"),
        format!("/api/v1/diff?a={id}&b={id}"),
        "/api/v1/har".to_owned(),
        "/api/v1/status".to_owned(),
        "/api/requests/http".to_owned(),
        format!("/api/requests/http/{id}"),
        "/api/tunnels".to_owned(),
    ] {
        let answer = world.api("GET", &path, "").await;
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        assert!(!text.contains("canary"), "{path}: {text}");
        // Not in ngrok's base64 either.
        for raw in text.split('"').filter(|word| word.len() > 100) {
            use base64::Engine as _;
            let plain = base64::prelude::BASE64_STANDARD.decode(raw).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&plain).contains("canary"), "{path}");
        }
    }
    let curl = world.api("GET", &format!("/api/v1/requests/{id}/curl"), "").await.text();
    assert!(
        curl.starts_with("# Secrets are not shown") && curl.contains("user=me&password=***"),
        "{curl}"
    );
    let found = world.get("/api/v1/requests?q=Bearer").await;
    assert_eq!(found["total"], 0, "what is hidden is not found");
    let list = world
        .edge
        .agent(&["inspect", "list", "--output", "json"])
        .env("UNIROUTE_STATE_DIR", "state")
        .output();
    let list = list.await.unwrap();
    let text = String::from_utf8(list.stdout).unwrap();
    assert!(text.contains(id) && !text.contains("canary"), "{text}");
    let raw = world.api("GET", &format!("/api/v1/requests/{id}/request/body"), "").await;
    assert_eq!(raw.text(), body);
}

#[tokio::test]
async fn replays_go_to_the_local_server_as_requests_of_their_own() {
    let world = World::start(app()).await;
    world.visit("GET /auth HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer real\r\nConnection: close\r\n\r\n").await;
    let auth = world.last().await;
    let id = auth["id"].as_str().unwrap();
    let again = world.replay(id, &json!({})).await;
    assert_eq!((&again["replay_of"], &again["status"]), (&auth["id"], &json!(200)));
    assert_eq!(again["response"]["body"]["text_preview"], "Bearer real", "the real value was sent");
    assert_ne!(again["id"], auth["id"]);
    // As the page sends it back: what was shown stands for what there was.
    let headers = auth["request"]["headers"].clone();
    let again = world.replay(id, &json!({ "headers": headers })).await;
    assert_eq!(again["response"]["body"]["text_preview"], "Bearer real");

    world.visit("POST /echo?a=1 HTTP/1.1\r\nHost: HOST\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfirst").await;
    let first = world.last().await;
    let id = first["id"].as_str().unwrap();
    assert_eq!(world.replay(id, &json!({})).await["response"]["body"]["text_preview"], "first");
    let changes = json!({
        "method": "PUT", "path": "/echo?a=2", "body": "second one",
        "headers": [["Host", "other.test"], ["X-Seen", "me"], ["Content-Type", "text/html"]],
    });
    let second = world.replay(id, &changes).await;
    assert_eq!((&second["method"], &second["path"]), (&json!("PUT"), &json!("/echo?a=2")));
    assert_eq!(second["host"], "other.test");
    assert_eq!(header(&second["request"], "content-length"), Some("10"));
    assert_eq!(header(&second["response"], "x-saw"), Some("me"));
    assert_eq!(second["response"]["body"]["text_preview"], "second one");
    let diff =
        world.get(&format!("/api/v1/diff?a={id}&b={}", second["id"].as_str().unwrap())).await;
    assert_eq!(
        diff["body"]["hunks"],
        json!([
            { "tag": "delete", "lines": ["first"] }, { "tag": "insert", "lines": ["second one"] },
        ])
    );
    assert!(
        diff["headers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["name"] == "x-saw" && row["b"] == "me")
    );

    let other = Upstream::saying("the other one").await;
    let elsewhere = world.replay(id, &json!({ "upstream": other.port() })).await;
    assert_eq!(elsewhere["response"]["body"]["text_preview"], "the other one");
    assert_eq!(elsewhere["upstream"], format!("http://localhost:{}", other.port()));
    let path = format!("/api/v1/requests/{id}/replay");
    // T17
    for (changes, status, why) in [
        (
            json!({ "upstream": "http://169.254.169.254" }),
            403,
            "neither an HTTP server on this machine",
        ),
        (json!({ "upstream": "unix:/var/run/docker.sock" }), 403, "remote_replay"),
        (json!({ "upstream": "nonsense" }), 422, "upstream"),
        (json!({ "method": "A B" }), 422, "method"),
        (json!({ "path": "no slash" }), 422, "path"),
        (json!({ "headers": [["a", "b\r\nc: d"]] }), 422, "header"),
        (json!({ "unknown": 1 }), 422, "unknown"),
    ] {
        let answer = world.api("POST", &path, &changes.to_string()).await;
        assert_eq!(answer.status, status, "{changes}");
        assert!(answer.text().contains(why), "{}", answer.text());
    }
    let gone =
        world.api("POST", &format!("/api/v1/requests/{}/replay", "0".repeat(32)), "{}").await;
    assert_eq!(gone.status, 404);

    // From the terminal.
    let mut command = world.edge.agent(&[
        "inspect",
        "replay",
        &id[..10],
        "--data",
        "third",
        "--set-header",
        "X-Seen: cli",
    ]);
    let said = command.env("UNIROUTE_STATE_DIR", "state").output().await.unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.status.success() && text.contains("x-saw: cli") && text.contains("third"),
        "{text}{:?}",
        String::from_utf8(said.stderr)
    );
}

/// T15: no other page, by whatever name or method.
#[tokio::test]
async fn t15_strangers_get_nothing() {
    let world = World::start(app()).await;
    world.visit_path("/hello").await;
    let id = world.last().await["id"].as_str().unwrap().to_owned();
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in [
            "/",
            "/assets/app.js",
            "/api/v1/requests",
            "/api/tunnels",
            "/api/v1/events",
            "/nothing",
        ] {
            for host in ["evil.test", "localhost.evil.test", "evil.test@localhost"] {
                let headers = format!("Host: {host}\r\nX-Uniroute: 1\r\n");
                let answer = world.api_with(method, path, &headers, "").await;
                assert_eq!(answer.status, 403, "{method} {path} {host}");
            }
        }
    }
    let replay = format!("/api/v1/requests/{id}/replay");
    for (method, path) in [
        ("POST", &replay[..]),
        ("POST", "/api/v1/recording"),
        ("POST", "/api/v1/reload"),
        ("DELETE", "/api/v1/requests"),
        ("POST", "/api/requests/http"),
        ("DELETE", "/api/requests/http"),
    ] {
        for headers in [
            "Origin: http://evil.test\r\nX-Uniroute: 1\r\n",
            "Origin: null\r\nX-Uniroute: 1\r\n",
            "Origin: https://localhost\r\nX-Uniroute: 1\r\n",
            "Sec-Fetch-Site: cross-site\r\nX-Uniroute: 1\r\n",
        ] {
            let answer = world.api_with(method, path, headers, "{}").await;
            assert_eq!(answer.status, 403, "{method} {path} {headers}");
        }
        if method == "POST" {
            for headers in
                ["", "Content-Type: text/plain\r\n", "Content-Type: multipart/form-data\r\n"]
            {
                let answer = world.api_with(method, path, headers, "{}").await;
                assert_eq!(answer.status, 403, "{method} {path} {headers}");
            }
        }
    }
    let list = world.get("/api/v1/requests").await;
    assert_eq!(list["total"], 1, "nothing was changed");
    let same = "Origin: http://localhost\r\nContent-Type: application/json; charset=utf-8\r\n";
    assert_eq!(
        world.api_with("POST", "/api/v1/recording", same, "{\"on\":true}").await.status,
        200
    );
    let page = world.api("GET", "/", "").await;
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    assert!(
        page.head.contains("referrer-policy: no-referrer")
            && page.head.contains("x-content-type-options: nosniff")
    );
}

#[tokio::test]
async fn scripts_for_ngroks_agent_find_what_they_read() {
    let world = World::start(app()).await;
    world.visit("POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody").await;
    let id = world.last().await["id"].as_str().unwrap().to_owned();
    let tunnels = world.get("/api/tunnels").await;
    let tunnel = &tunnels["tunnels"][0];
    let url = tunnel["public_url"].as_str().unwrap();
    assert!(url.starts_with("http://demo.localhost"), "{tunnels}");
    assert_eq!(
        (&tunnel["name"], &tunnel["proto"], &tunnel["uri"]),
        (&json!("demo"), &json!("http"), &json!("/api/tunnels/demo"))
    );
    assert_eq!(tunnel["config"]["inspect"], true);
    assert!(tunnel["config"]["addr"].as_str().unwrap().starts_with("http://localhost:"));
    for kind in ["conns", "http"] {
        let metrics = tunnel["metrics"][kind].as_object().unwrap();
        for name in ["count", "gauge", "rate1", "rate5", "rate15", "p50", "p90", "p95", "p99"] {
            assert!(metrics[name].is_number(), "{kind} {name}");
        }
        assert_eq!(metrics["count"], 1);
        assert!(metrics["p50"].as_u64().unwrap() > 0);
    }
    assert_eq!(world.get("/api/tunnels/demo").await["name"], "demo");
    assert_eq!(world.api("GET", "/api/tunnels/other", "").await.status, 404);
    let requests = world.get("/api/requests/http?limit=5&tunnel_name=demo").await;
    let request = &requests["requests"][0];
    assert_eq!(request["uri"], format!("/api/requests/http/{id}"));
    assert_eq!(
        (&request["tunnel_name"], &request["remote_addr"]),
        (&json!("demo"), &json!("127.0.0.1"))
    );
    assert_eq!(request["request"]["headers"]["Content-Type"], json!(["text/plain"]));
    assert_eq!(
        (&request["request"]["method"], &request["request"]["uri"]),
        (&json!("POST"), &json!("/echo"))
    );
    assert_eq!(
        (&request["response"]["status"], &request["response"]["status_code"]),
        (&json!("200 OK"), &json!(200))
    );
    use base64::Engine as _;
    let raw = base64::prelude::BASE64_STANDARD
        .decode(request["request"]["raw"].as_str().unwrap())
        .unwrap();
    let raw = String::from_utf8(raw).unwrap();
    assert!(raw.starts_with("POST /echo HTTP/1.1\r\n") && raw.ends_with("\r\n\r\nbody"), "{raw}");
    let again = world
        .api("POST", "/api/requests/http", &json!({ "id": id, "tunnel_name": "demo" }).to_string())
        .await;
    assert_eq!((again.status, again.body.len()), (204, 0));
    eventually("the replay is there", async || {
        let list = world.get("/api/requests/http").await;
        (list["requests"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    // As curl does it.
    assert_eq!(world.api_with("DELETE", "/api/requests/http", "", "").await.status, 204);
    assert_eq!(world.get("/api/requests/http").await["requests"], json!([]));
}

/// T05: what expands without end is shown within bounds, and costs no memory.
#[tokio::test]
async fn t05_a_bomb_is_harmless() {
    let bomb = {
        let zeros = vec![0; 1 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        (0..256).for_each(|_| encoder.write_all(&zeros).unwrap());
        encoder.finish().unwrap()
    };
    assert!((200_000..2 << 20).contains(&bomb.len()), "{}", bomb.len());
    let bomb = Bytes::from(bomb);
    let app = Router::new().route(
        "/bomb",
        get(async move || ([("content-encoding", "gzip"), ("content-type", "text/plain")], bomb)),
    );
    let world = World::start_with(app, "max_body = \"2MiB\"", &[]).await;
    world.visit_path("/bomb").await;
    let last = world.last().await;
    let before = memory(world.agent.id());
    let id = last["id"].as_str().unwrap();
    for _ in 0..8 {
        let decoded =
            world.api("GET", &format!("/api/v1/requests/{id}/response/body?decoded=1"), "").await;
        assert_eq!(decoded.body.len(), 1 << 20);
        assert!(decoded.head.contains("x-uniroute-cut: 1"));
        world.detail(id).await;
    }
    let grown = memory(world.agent.id()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown}");
}

/// Resident bytes.
fn memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn memory_has_a_bound_and_the_oldest_go() {
    let app = Router::new().route("/big", get(async || "x".repeat(30_000)));
    let world = World::start_with(app, "max_bytes = \"200KiB\"\nmax_requests = 50", &[]).await;
    for i in 0..20 {
        world.visit_path(&format!("/big?{i}")).await;
    }
    world.last().await;
    let status = world.get("/api/v1/status").await;
    let inspector = &status["inspector"];
    assert!(inspector["bytes"].as_u64().unwrap() <= 200 * 1024, "{inspector}");
    let captured = inspector["captured"].as_u64().unwrap();
    assert!((4..=6).contains(&captured) && inspector["evicted"] == 20 - captured, "{inspector}");
    let list = world.get("/api/v1/requests").await;
    assert_eq!(list["requests"][0]["path"], "/big?19");
    assert_eq!(list["requests"][0]["response_size"], 30_000);
}

#[tokio::test]
async fn long_bodies_are_spooled_and_replayed_whole() {
    use sha2::{Digest as _, Sha256};
    const LENGTH: usize = 64 << 20;
    let digest = async |body: Body| {
        let mut stream = body.into_data_stream();
        let (mut hash, mut length) = (Sha256::new(), 0);
        while let Some(piece) = futures_util::StreamExt::next(&mut stream).await {
            let piece = piece.unwrap();
            length += piece.len();
            hash.update(&piece);
        }
        format!("{length} {}", hex(&hash.finalize()))
    };
    let app = Router::new().route("/digest", post(digest));
    let world = World::start_with(app, "spool = true", &[]).await;
    let mut body = vec![0; LENGTH];
    body.chunks_mut(8)
        .enumerate()
        .for_each(|(i, chunk)| chunk.copy_from_slice(&(i as u64).to_le_bytes()));
    let expected = format!("{LENGTH} {}", hex(&Sha256::digest(&body)));
    let head = format!(
        "POST /digest HTTP/1.1\r\nHost: demo.localhost:{}\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n",
        world.edge.http.port()
    );
    let request = [head.as_bytes(), &body].concat();
    let answer = exchange(&world.edge.http.to_string(), &request).await;
    assert!(String::from_utf8_lossy(&answer).ends_with(&expected));
    let id = world.last().await["id"].as_str().unwrap().to_owned();
    let spooled = eventually("it is on disk", async || {
        let detail = world.detail(&id).await;
        (detail["request"]["body"]["where"] == "spool").then_some(detail)
    })
    .await;
    assert_eq!(spooled["request"]["body"]["size"], LENGTH);
    let again = world.replay(&id, &json!({})).await;
    assert_eq!(again["response"]["body"]["text_preview"], expected);
    let raw = world.api("GET", &format!("/api/v1/requests/{id}/request/body"), "").await;
    assert!(raw.head.contains("x-uniroute-body: spool") && raw.body == body);
    world.agent.signal("TERM").await;
    world.agent.ended().await;
    let spool = world.edge.home.path().join("state/spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0, "nothing stays behind");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_body_that_is_not_kept_whole_is_not_replayed() {
    let world = World::start_with(app(), "max_body = \"1KiB\"", &[]).await;
    let body = "x".repeat(5000);
    world.visit(&format!("POST /echo HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5000\r\nConnection: close\r\n\r\n{body}")).await;
    let last = world.last().await;
    let kept = &last["request"]["body"];
    assert_eq!(
        (&kept["size"], &kept["kept"], &kept["cut"]),
        (&json!(5000), &json!(1024), &json!(true))
    );
    let path = format!("/api/v1/requests/{}/replay", last["id"].as_str().unwrap());
    let answer = world.api("POST", &path, "{}").await;
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains("spool = true"), "{}", answer.text());
}

/// A frame of RFC 6455, short.
fn frame(first: u8, masked: bool, data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).unwrap();
    if !masked {
        return [&[first, length][..], data].concat();
    }
    let key = [1, 2, 3, 4];
    let data = data.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
    [&[first, 0x80 | length][..], &key].concat().into_iter().chain(data).collect()
}

#[tokio::test]
async fn websocket_messages_are_kept_as_frames() {
    // Answers to a handshake, says hello, and echoes one message.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        // The agent looks at the start whether somebody is here, and says nothing.
        let mut socket = loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while let Ok(byte) = socket.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    break;
                }
            }
            if !head.is_empty() {
                break socket;
            }
        };
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
        // The first message comes in one piece with the head.
        socket.write_all(&[&answer[..], &frame(0x81, false, b"hello")].concat()).await.unwrap();
        let mut message = vec![0; 2 + 4 + 4];
        socket.read_exact(&mut message).await.unwrap();
        socket.write_all(&frame(0x82, false, &[0, 1, 2])).await.unwrap();
        let _ = socket.read_to_end(&mut message).await;
    });
    let world = World::start_with(
        app(),
        "",
        &[&format!("routes = [{{ path = \"/ws\", upstream = \"127.0.0.1:{port}\" }}]")],
    )
    .await;
    let host = format!("demo.localhost:{}", world.edge.http.port());
    let mut visitor = TcpStream::connect(world.edge.http).await.unwrap();
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    visitor.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    within("hello", async {
        while !seen.ends_with(b"hello") {
            seen.push(visitor.read_u8().await.unwrap());
        }
    })
    .await;
    visitor.write_all(&frame(0x81, true, b"ping")).await.unwrap();
    within("an echo", async {
        while !seen.ends_with(&[0, 1, 2]) {
            seen.push(visitor.read_u8().await.unwrap());
        }
    })
    .await;
    // It is seen while it is open.
    let list = world.get("/api/v1/requests?q=is:websocket").await;
    let row = &list["requests"][0];
    assert_eq!((&row["state"], &row["status"]), (&json!("open"), &json!(101)), "{list}");
    let id = row["id"].as_str().unwrap();
    let frames = world.get(&format!("/api/v1/requests/{id}/frames")).await;
    let shown: Vec<_> = frames["frames"]
        .as_array()
        .unwrap()
        .iter()
        .map(|frame| {
            (
                frame["from"].as_str().unwrap(),
                frame["kind"].as_str().unwrap(),
                frame["text"].as_str().or(frame["base64"].as_str()).unwrap(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("upstream", "text", "hello"),
            ("visitor", "text", "ping"),
            ("upstream", "binary", "AAEC")
        ]
    );
    let after = world.get(&format!("/api/v1/requests/{id}/frames?after=2")).await;
    assert_eq!(after["frames"].as_array().unwrap().len(), 1);
    drop(visitor);
    let last = world.last().await;
    assert_eq!((&last["kind"], &last["frames"]), (&json!("websocket"), &json!(3)));
    let replay = world.api("POST", &format!("/api/v1/requests/{id}/replay"), "{}").await;
    assert_eq!(replay.status, 409);
    server.await.unwrap();
}

/// A reader that takes nothing neither stops requests nor grows the agent; afterwards it is told to
/// begin anew.
#[tokio::test]
async fn a_slow_reader_of_events_is_left_behind() {
    let world = World::start(app()).await;
    let mut slow = TcpStream::connect(&world.api).await.unwrap();
    slow.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let long = "x".repeat(4000);
    let host = format!("demo.localhost:{}", world.edge.http.port());
    let mut visitor = TcpStream::connect(world.edge.http).await.unwrap();
    let request = format!("GET /hello?{long} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut answer = vec![0; 4096];
    within("requests", async {
        for _ in 0..3000 {
            visitor.write_all(request.as_bytes()).await.unwrap();
            let mut have = 0;
            while !answer[..have].ends_with(b"hello") {
                have += visitor.read(&mut answer[have..]).await.unwrap();
            }
        }
    })
    .await;
    let status = world.get("/api/v1/status").await;
    assert_eq!(status["inspector"]["captured"], 3000);
    let mut others = Vec::new();
    let refused = within("the last place", async {
        loop {
            let mut other = TcpStream::connect(&world.api).await.unwrap();
            other
                .write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await
                .unwrap();
            let mut first = [0; 12];
            other.read_exact(&mut first).await.unwrap();
            if first.ends_with(b"429") {
                return others.len();
            }
            others.push(other);
        }
    })
    .await;
    assert_eq!(refused, 15, "sixteen readers at a time");
}

#[tokio::test]
async fn what_fails_is_kept_with_its_reason() {
    let edge = Edge::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut command = edge.agent(&[
        "http",
        &free.to_string(),
        "--name",
        "demo",
        "--output",
        "json",
        "--inspector",
        "127.0.0.1:0",
    ]);
    let agent = Process::start(command.env("UNIROUTE_STATE_DIR", "state"));
    let ready: Value = serde_json::from_str(&agent.out_line("\"ready\"").await).unwrap();
    let api = ready["inspector"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    assert_eq!(edge.get("demo", "/").await.0, 502);
    let request = b"GET /api/v1/requests HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let list = Answer::new(&exchange(&api, request).await).json();
    let row = &list["requests"][0];
    assert_eq!((&row["state"], &row["status"]), (&json!("failed"), &Value::Null));
    assert!(row["error"].as_str().unwrap().starts_with("UR-3001 "), "{row}");
    // A second agent there is told.
    let mut second = edge.agent(&["http", "1", "--inspector", &api]);
    let ended = Process::start(second.env("UNIROUTE_STATE_DIR", "state")).ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains("ss -ltnp") && ended.err.contains("--inspector off"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn nothing_is_kept_where_nobody_wants_it() {
    let world = World::start_with(app(), "", &["inspect = false"]).await;
    world.visit_path("/hello").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.get("/api/v1/requests").await["total"], 0);
    assert_eq!(world.get("/api/tunnels").await["tunnels"][0]["config"]["inspect"], false);
    assert_eq!(world.get("/api/v1/ready").await, json!({ "ready": true }));
}
