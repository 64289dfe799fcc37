//! Live updates, as a dashboard gets them: WebSocket clients of a real edge.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        handshake::client::Request,
        http::{HeaderName, HeaderValue},
    },
};
use tokio_util::sync::CancellationToken;
use uniroute_edge::{
    config::Settings,
    setup::{Role, Setup},
    store::{StoreOptions, StoreUrl},
};

use crate::harness::{
    TestAgent, TestEdge, eventually,
    upstream::TestUpstream,
    wire::{Answer, Wire},
    within,
};

const PASSWORD: &str = "correct horse battery";
/// What the set-up of a test does beside the edge, which hears of it from the audit log some time.
const SET_UP: [&str; 3] = ["user.created", "token.created", "user.logged-in"];

/// An edge with accounts.
struct World {
    edge: TestEdge,
    setup: Setup,
    _home: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let url = StoreUrl::file(home.path().join("edge.db"));
        let setup = Setup::open(&url, &StoreOptions::default()).await.unwrap();
        let edge = TestEdge::with(|settings| {
            settings.durable.store = url;
            change(settings);
        });
        Self { edge, setup, _home: home }
    }

    /// A new account, logged in: its access token.
    async fn account(&self, name: &str, role: Role) -> String {
        let email = format!("{name}@example.com");
        self.setup.add_user(&email, Some(PASSWORD.into()), role, None).await.unwrap();
        self.log_in(name).await
    }

    async fn log_in(&self, name: &str) -> String {
        let body = json!({ "email": format!("{name}@example.com"), "password": PASSWORD });
        let answer = self.call("POST", "/auth/login", "", &body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        json_of(&answer)["access_token"].as_str().unwrap().to_owned()
    }

    async fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> Answer {
        let mut wire = self.edge.visitor().await;
        call(&mut wire, method, path, token, body).await
    }

    /// A new tunnel; its id.
    async fn tunnel(&self, token: &str, name: &str) -> String {
        let answer = self.call("POST", "/tunnels", token, &json!({ "name": name })).await;
        assert_eq!(answer.status(), 201, "{}", answer.text());
        json_of(&answer)["id"].as_str().unwrap().to_owned()
    }

    /// An agent of the account that serves `names`.
    async fn agent(&self, account: &str, names: &[&str], upstream: &TestUpstream) -> TestAgent {
        let email = format!("{account}@example.com");
        let token = self.setup.add_token(&email, "test", None, Vec::new()).await.unwrap();
        let tunnels = names.iter().map(|name| TestAgent::tunnel(name, &upstream.url())).collect();
        let mut settings = TestAgent::settings(self.edge.http(), tunnels);
        settings.token = token.parse().unwrap();
        TestAgent::launch(settings).await
    }

    fn request(&self, path: &str, fields: &[(&'static str, &str)]) -> Request {
        let url = format!("ws://{}{path}", self.edge.http());
        let mut request = url.into_client_request().unwrap();
        for (name, value) in fields {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        request
    }

    async fn try_watch(&self, path: &str, fields: &[(&'static str, &str)]) -> Result<Watch, Error> {
        let socket = TcpStream::connect(self.edge.http()).await.unwrap();
        let opening = client_async(self.request(path, fields), socket);
        within("the WebSocket opens", opening).await.map(|(socket, _)| Watch { socket })
    }

    async fn watch(&self, path: &str, token: &str) -> Watch {
        let bearer = format!("Bearer {token}");
        self.try_watch(path, &[("authorization", &bearer)]).await.unwrap()
    }

    /// Asserts that nobody is let in, and that it is told as the API does.
    async fn refuses(&self, path: &str, fields: &[(&'static str, &str)], status: u16, code: &str) {
        let Err(Error::Http(answer)) = self.try_watch(path, fields).await else {
            panic!("{path} {fields:?}: let in")
        };
        assert_eq!(answer.status().as_u16(), status, "{path} {fields:?}");
        assert_eq!(answer.headers()["x-uniroute-error"], code);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_slice(answer.body().as_deref().unwrap()).unwrap();
        assert_eq!(problem["code"], code);
    }
}

async fn call(wire: &mut Wire, method: &str, path: &str, token: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let login =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let length = body.len();
    wire.send(format!(
        "{method} /api/v1{path} HTTP/1.1\r\nhost: edge\r\n{login}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    ))
    .await;
    wire.answer(method).await
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

/// Somebody who watches.
struct Watch {
    socket: WebSocketStream<TcpStream>,
}

impl Watch {
    /// The next message, or the code that it was closed with.
    async fn try_next(&mut self) -> Result<Value, Option<u16>> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    #[track_caller]
    fn next(&mut self) -> impl Future<Output = Value> {
        let next = within("a message", self.try_next());
        async move { next.await.expect("a message, not the end") }
    }

    async fn snapshot(&mut self) -> Value {
        let message = self.next().await;
        assert_eq!(message["type"], "snapshot", "{message}");
        message
    }

    /// The next event, figures and the set-up left aside.
    async fn event(&mut self) -> Value {
        loop {
            let message = self.next().await;
            match message["type"].as_str() {
                Some("event") if SET_UP.iter().any(|kind| message["event"]["kind"] == *kind) => {}
                Some("event") => return message,
                Some("stats") => {}
                _ => panic!("no event: {message}"),
            }
        }
    }

    /// The next event of this kind.
    async fn event_of(&mut self, kind: &str) -> Value {
        loop {
            let message = self.event().await;
            if message["event"]["kind"] == kind {
                return message;
            }
        }
    }

    /// The close code, whatever comes before.
    #[track_caller]
    fn closed(mut self) -> impl Future<Output = Option<u16>> {
        within("the close", async move {
            loop {
                if let Err(code) = self.try_next().await {
                    return code;
                }
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let mallory = world.account("mallory", Role::User).await;
    let tunnel = format!("/ws/tunnels/{}", world.tunnel(&alice, "demo").await);
    let (alice, mallory) = (format!("Bearer {alice}"), format!("Bearer {mallory}"));
    let (alice, mallory) = (("authorization", &alice[..]), ("authorization", &mallory[..]));

    for path in ["/ws/user", &tunnel] {
        world.refuses(path, &[], 401, "UR-4020").await;
        world.refuses(path, &[("authorization", "Bearer x.y.z")], 401, "UR-4020").await;
        world.refuses(path, &[("sec-websocket-protocol", "bearer.x.y.z")], 401, "UR-4020").await;
    }
    // What is somebody else's is not there.
    world.refuses(&tunnel, &[mallory], 404, "UR-4030").await;
    let none = format!("/ws/tunnels/{}", uuid::Uuid::now_v7());
    for path in [&none[..], "/ws/tunnels/demo", "/ws/", "/ws/users"] {
        world.refuses(path, &[alice], 404, "UR-4030").await;
    }
    world.refuses("/ws/user?all=true", &[alice], 403, "UR-4023").await;
    // Never in the URL, where logs would have it.
    let in_url = format!("/ws/user?token={}", &alice.1[7..]);
    world.refuses(&in_url, &[], 401, "UR-4020").await;
    world.refuses(&in_url, &[alice], 400, "UR-4032").await;

    let mut let_in = world.try_watch(&tunnel, &[alice]).await.unwrap();
    assert_eq!(let_in.snapshot().await["tunnels"][0]["name"], "demo");
    let protocols = format!("uniroute.events.v1, bearer.{}", &alice.1[7..]);
    let mut browser =
        world.try_watch(&tunnel, &[("sec-websocket-protocol", &protocols)]).await.unwrap();
    browser.snapshot().await;
    let answer = world.edge.visitor().await.get("edge", "/ws/user").await;
    answer.assert_failed(404, "UR-1001");
    // What asks for no WebSocket is told so, behind the login.
    let mut wire = world.edge.visitor().await;
    wire.send(format!("GET /ws/user HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n", alice.1))
        .await;
    assert_eq!(wire.answer("GET").await.status(), 426);
    // The connection goes on behind a refusal.
    wire.send("GET /ws/user HTTP/1.1\r\nhost: x\r\n\r\n").await;
    wire.answer("GET").await.assert_failed(401, "UR-4020");
}

#[tokio::test(flavor = "multi_thread")]
async fn t15_pages_of_other_sites_are_not_let_in() {
    let world = World::new().await;
    let bearer = format!("Bearer {}", world.account("alice", Role::User).await);
    let login = ("authorization", &bearer[..]);
    let own = format!("http://{}", world.edge.http());
    for bad in ["http://evil.test", "null", "https://127.0.0.1", "http://demo.tunnels.test"] {
        world.refuses("/ws/user", &[login, ("origin", bad)], 403, "UR-4029").await;
    }
    world.refuses("/ws/user", &[("origin", "http://evil.test")], 403, "UR-4029").await;
    world.try_watch("/ws/user", &[login, ("origin", &own)]).await.unwrap().snapshot().await;
}

/// Events flow while a client loses its connection again and again: in the end it has each once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_or_doubled_across_breaks() {
    const CHANGES: usize = 150;
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let id = world.tunnel(&alice, "demo").await;
    let upstream = TestUpstream::saying("hello").await;
    let _agent = world.agent("alice", &["demo"], &upstream).await;
    let mut watch = world.watch(&format!("/ws/tunnels/{id}"), &alice).await;
    let snapshot = watch.snapshot().await;
    let edge = snapshot["edge"].as_str().unwrap().to_owned();
    let mut last = snapshot["number"].as_u64().unwrap();

    let mut wire = world.edge.visitor().await;
    let mut visitor = world.edge.visitor().await;
    let (path, login) = (format!("/tunnels/{id}"), alice.clone());
    let enough = CancellationToken::new();
    let until = enough.clone();
    let changing = tokio::spawn(async move {
        for number in 0..CHANGES {
            let change = json!({ "local_url": format!("http://localhost:{number}") });
            assert_eq!(call(&mut wire, "PATCH", &path, &login, &change).await.status(), 200);
            visitor.get("demo", &format!("/{number}")).await.assert_ok("hello");
        }
        // Requests that were left out are told of with the next one.
        let mut more = 0;
        while !until.is_cancelled() {
            visitor.get("demo", "/more").await.assert_ok("hello");
            more += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        CHANGES as u64 + more
    });
    let (mut changes, mut requests, mut breaks) = (0, 0, 0);
    let mut ids = BTreeSet::new();
    while changes < CHANGES || requests < CHANGES as u64 {
        let message = watch.event().await;
        let number = message["number"].as_u64().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
        let event = &message["event"];
        assert!(ids.insert(event["id"].to_string()), "twice: {message}");
        assert_eq!(event["tunnel"], *id);
        match event["kind"].as_str().unwrap() {
            "tunnel.updated" => changes += 1,
            "request" => requests += 1 + event["data"]["left_out"].as_u64().unwrap_or(0),
            "tunnel.online" => {}
            kind => panic!("{kind}"),
        }
        if ids.len() % 20 == 0 {
            // Not a word: as if the network had gone.
            drop(watch);
            breaks += 1;
            let back = format!("/ws/tunnels/{id}?after={last}&edge={edge}");
            watch = world.watch(&back, &alice).await;
        }
    }
    enough.cancel();
    let made = within("all changes", changing).await.unwrap();
    assert!(requests <= made && breaks >= 7, "{requests} of {made}, {breaks}");
    // Whose number says nothing here gets to see how things are.
    for back in [
        format!("after={last}&edge=edge-0"),
        format!("after={last}"),
        format!("after=999999&edge={edge}"),
    ] {
        let mut other = world.watch(&format!("/ws/tunnels/{id}?{back}"), &alice).await;
        let snapshot = other.snapshot().await;
        assert_eq!(
            snapshot["tunnels"][0]["local_url"],
            format!("http://localhost:{}", CHANGES - 1)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_seen_at_once_and_a_deleted_tunnel_is_the_end() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let id = world.tunnel(&alice, "demo").await;
    let other = world.tunnel(&alice, "other").await;
    let mut mine = world.watch("/ws/user", &alice).await;
    let snapshot = mine.snapshot().await;
    assert_eq!(snapshot["tunnels"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&snapshot["more"], &snapshot["tunnels"][0]["is_online"]),
        (&json!(false), &json!(false))
    );
    let mut one = world.watch(&format!("/ws/tunnels/{id}"), &alice).await;
    one.snapshot().await;
    for (does, kind) in [("pause", "tunnel.paused"), ("resume", "tunnel.resumed")] {
        let began = Instant::now();
        // The other tunnel's is not told to who watches this one.
        for tunnel in [&other, &id] {
            let path = format!("/tunnels/{tunnel}/{does}");
            assert_eq!(world.call("POST", &path, &alice, &Value::Null).await.status(), 200);
        }
        let event = one.event().await;
        assert_eq!(
            (&event["event"]["kind"], &event["event"]["tunnel"]),
            (&json!(kind), &json!(id))
        );
        for tunnel in [&other, &id] {
            let event = mine.event().await;
            assert_eq!(
                (&event["event"]["kind"], &event["event"]["tunnel"]),
                (&json!(kind), &json!(tunnel))
            );
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    world.call("DELETE", &format!("/tunnels/{id}"), &alice, &Value::Null).await;
    assert_eq!(one.event().await["event"]["kind"], "tunnel.deleted");
    assert_eq!(one.closed().await, Some(4004));
    assert_eq!(mine.event().await["event"]["kind"], "tunnel.deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_figures_are_told_to_their_owner_only() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let bob = world.account("bob", Role::User).await;
    let op = world.account("op", Role::Operator).await;
    let upstream = TestUpstream::saying("hello").await;
    let (mut hers, mut his) =
        (world.watch("/ws/user", &alice).await, world.watch("/ws/user", &bob).await);
    let mut all = world.watch("/ws/user?all=true", &op).await;
    for watch in [&mut hers, &mut his, &mut all] {
        watch.snapshot().await;
    }
    let _agent = world.agent("alice", &["demo"], &upstream).await;
    let id = hers.event_of("tunnel.online").await["event"]["tunnel"].clone();
    world.edge.get("demo", "/shop?token=canary&page=2").await.assert_ok("hello");
    let mut figures = None;
    let mut request = None;
    while figures.is_none() || request.is_none() {
        let message = hers.next().await;
        match message["type"].as_str().unwrap() {
            "stats" => {
                figures =
                    message["tunnels"][0]["requests"].as_u64().filter(|n| *n > 0).map(|_| message);
            }
            _ if message["event"]["kind"] == "request" => request = Some(message),
            _ => {}
        }
    }
    let (figures, request) = (figures.unwrap()["tunnels"][0].clone(), request.unwrap());
    assert_eq!((&figures["tunnel"], &figures["is_online"]), (&id, &json!(true)));
    assert_eq!((&figures["requests"], &figures["bytes_out"]), (&json!(1), &json!(5)));
    assert_eq!(figures["minute"]["requests"], 1);
    for part in ["p50", "p95", "p99"] {
        assert!(figures["minute"]["latency_ms"][part].as_f64().unwrap() > 0.0, "{figures}");
    }
    let data = &request["event"]["data"];
    assert_eq!((&request["event"]["tunnel"], &data["method"]), (&id, &json!("GET")));
    // T20: as it is written down.
    assert_eq!(data["path"], "/shop?token=***&page=2");
    assert_eq!(
        (&data["status"], &data["error"], &data["visitor"]),
        (&json!(200), &json!(null), &json!("127.0.0.1"))
    );
    let mut told = all.event_of("request").await;
    assert_eq!(told["event"].take(), request["event"]);
    // The first thing that he hears is his own.
    let his_own = world.tunnel(&bob, "bobs").await;
    let event = his.event().await;
    assert_eq!(event["event"]["kind"], "tunnel.created");
    assert_eq!(event["event"]["tunnel"], his_own);
}

/// One who takes nothing is dropped and told so; nobody else waits for him.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_dropped_and_told_so() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let names: Vec<String> = (0..12).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let upstream = TestUpstream::saying("hello").await;
    let _agent = world.agent("alice", &names, &upstream).await;
    // The kernel takes little for him.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = socket.connect(world.edge.http()).await.unwrap();
    let bearer = format!("Bearer {alice}");
    let request = world.request("/ws/user", &[("authorization", &bearer)]);
    let (socket, _) = within("the WebSocket opens", client_async(request, socket)).await.unwrap();
    let mut slow = Watch { socket };
    let snapshot = slow.snapshot().await;
    let edge = snapshot["edge"].as_str().unwrap().to_owned();
    let mut well = world.watch("/ws/user", &alice).await;
    well.snapshot().await;
    let well = tokio::spawn(async move {
        let mut numbers = Vec::new();
        loop {
            let message = well.next().await;
            if message["type"] == "event" {
                numbers.push(message["number"].as_u64().unwrap());
                if message["event"]["kind"] == "tunnel.paused" {
                    return numbers;
                }
            } else {
                assert_eq!(message["type"], "stats");
            }
        }
    });
    let mut visitor = world.edge.visitor().await;
    let path = format!("/{}", "x".repeat(480));
    eventually("the slow one lags", async || {
        for name in &names {
            visitor.get(name, &path).await.assert_ok("hello");
        }
        (world.edge.metric("watchers_lagged_total").await == 1).then_some(())
    })
    .await;
    // Now he looks: first what was on its way, then that it is not all.
    let mut last = snapshot["number"].as_u64().unwrap();
    let code = loop {
        match within("his messages", slow.try_next()).await {
            Ok(message) if message["type"] == "event" => last = message["number"].as_u64().unwrap(),
            Ok(message) if message["type"] == "lagged" => {
                break within("the close", slow.try_next()).await.unwrap_err();
            }
            Ok(message) => assert_eq!(message["type"], "stats"),
            Err(code) => panic!("closed before he was told: {code:?}"),
        }
    };
    assert_eq!(code, Some(4008));
    // He comes back for the rest, and the other one has missed nothing.
    let mut back = world.watch(&format!("/ws/user?after={last}&edge={edge}"), &alice).await;
    let first = back.next().await;
    assert_eq!(first["type"], "event");
    let first = first["number"].as_u64().unwrap();
    let id = json_of(&world.call("GET", "/tunnels?limit=1", &alice, &Value::Null).await);
    let pause = format!("/tunnels/{}/pause", id["items"][0]["id"].as_str().unwrap());
    world.call("POST", &pause, &alice, &Value::Null).await;
    let numbers = within("the other one sees the end", well).await.unwrap();
    let place = numbers.iter().position(|number| *number == last);
    assert_eq!(numbers[place.unwrap() + 1], first);
    assert!(numbers.is_sorted());
    assert_eq!(world.edge.metric("watchers_lagged_total").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_logged_out_is_told_nothing_more() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let again = world.log_in("alice").await;
    let op = world.account("op", Role::Operator).await;
    let admin = world.account("admin", Role::Admin).await;
    let mut first = world.watch("/ws/user", &alice).await;
    let mut second = world.watch("/ws/user", &again).await;
    let mut all = world.watch("/ws/user?all=true", &op).await;
    for watch in [&mut first, &mut second, &mut all] {
        watch.snapshot().await;
    }
    let out = world.call("POST", "/auth/logout", &alice, &json!({})).await;
    assert_eq!(out.status(), 204, "{}", out.text());
    assert_eq!(first.closed().await, Some(4001));
    // The other login goes on.
    assert_eq!(second.event().await["event"]["kind"], "user.logged-out");
    world.tunnel(&again, "demo").await;
    assert_eq!(second.event_of("tunnel.created").await["event"]["data"]["name"], "demo");
    // An account that is made inactive, and one that may see less from now on.
    let change = |change: Value| {
        let (world, admin) = (&world, &admin);
        async move |email: &str| {
            let users = json_of(&world.call("GET", "/users", admin, &Value::Null).await);
            let user =
                users["items"].as_array().unwrap().iter().find(|user| user["email"] == email);
            let path = format!("/users/{}", user.unwrap()["id"].as_str().unwrap());
            let answer = world.call("PATCH", &path, admin, &change).await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
    };
    change(json!({ "is_active": false }))("alice@example.com").await;
    assert_eq!(second.closed().await, Some(4001));
    change(json!({ "role": "user" }))("op@example.com").await;
    let code = all.closed().await;
    assert!(matches!(code, Some(4001 | 4003)), "{code:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_of_one_account() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let bob = world.account("bob", Role::User).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(world.watch("/ws/user", &alice).await);
    }
    let bearer = format!("Bearer {alice}");
    world.refuses("/ws/user", &[("authorization", &bearer)], 429, "UR-5041").await;
    world.watch("/ws/user", &bob).await.snapshot().await;
    open.pop();
    eventually("there is room again", async || {
        world.try_watch("/ws/user", &[("authorization", &bearer)]).await.ok()
    })
    .await
    .snapshot()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_is_dropped_and_who_talks_too_long_too() {
    let world = World::with(|settings| settings.heartbeat = Duration::from_millis(200)).await;
    let alice = world.account("alice", Role::User).await;
    let mut here = world.watch("/ws/user", &alice).await;
    here.snapshot().await;
    let mut silent = world.watch("/ws/user", &alice).await;
    silent.snapshot().await;
    // Reads on, and so answers pings.
    let here = tokio::spawn(async move { (here.event().await, here) });
    eventually("the silent one is dropped", async || {
        (world.edge.metric("watchers_closed_total").await == 1).then_some(())
    })
    .await;
    world.tunnel(&alice, "demo").await;
    let (event, mut here) = within("the other one is told", here).await.unwrap();
    assert_eq!(event["event"]["kind"], "tunnel.created");
    here.socket.send(Message::text("x".repeat(64 * 1024 + 1))).await.unwrap();
    assert_eq!(here.closed().await, Some(1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_says_so_and_waits_for_nobody() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let mut watch = world.watch("/ws/user", &alice).await;
    watch.snapshot().await;
    let closed = tokio::spawn(watch.closed());
    let World { edge, .. } = world;
    assert!(edge.shutdown().await);
    assert_eq!(within("the close", closed).await.unwrap(), Some(1001));
}

/// RFC 8441: one stream of a connection that serves others, too.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2() {
    let world = World::new().await;
    let alice = world.account("alice", Role::User).await;
    let id = world.tunnel(&alice, "demo").await;
    let socket = TcpStream::connect(world.edge.http()).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(socket).await.unwrap();
    let settings = std::future::poll_fn(|cx| {
        // The edge's settings say that it knows extended CONNECT.
        let _ = std::pin::Pin::new(&mut connection).poll(cx);
        if client.is_extended_connect_protocol_enabled() {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    });
    within("the settings", settings).await;
    tokio::spawn(connection);
    let mut open = async |token: &str| {
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = format!("http://edge/ws/tunnels/{id}").parse().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-version", "13".parse().unwrap());
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (answer, stream) = client.send_request(request, false).unwrap();
        (within("an answer", answer).await.unwrap(), stream)
    };
    let (refused, _stream) = open("x").await;
    assert_eq!(refused.status(), 401);
    let (answer, _stream) = open(&alice).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().get("sec-websocket-accept").is_none());
    let mut body = answer.into_body();
    let mut text = String::new();
    let mut until = async |mark: &str| {
        while !text.contains(mark) {
            let data = within("bytes", body.data()).await.unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            text.push_str(&String::from_utf8_lossy(&data));
        }
    };
    until(r#""type":"snapshot""#).await;
    world.call("POST", &format!("/tunnels/{id}/pause"), &alice, &Value::Null).await;
    until("tunnel.paused").await;
    world.call("POST", "/auth/logout", &alice, &json!({})).await;
    until("the login is over").await;
}
