//! The REST API at a real edge, on SQLite and on PostgreSQL, and what a change does to what runs.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};
use uniroute_edge::{
    config::Durable,
    setup::{Role, Setup},
    store::{StoreOptions, StoreUrl},
};
use uniroute_shared::id::AgentId;

use crate::harness::{
    DOMAIN, TestAgent, TestEdge, eventually, host,
    postgres::TestPostgres,
    upstream::TestUpstream,
    wire::{Answer, Wire},
};

const PASSWORD: &str = "correct horse battery";

/// An edge with accounts, whose store others can open, too.
pub(crate) struct Office {
    pub(crate) edge: TestEdge,
    setup: Setup,
}

impl Office {
    /// On SQLite in a folder.
    pub(crate) async fn new(dir: &Path) -> Self {
        Self::on(StoreUrl::file(dir.join("edge.db"))).await
    }

    async fn on(store: StoreUrl) -> Self {
        let durable = Durable { store: store.clone(), ..Durable::in_memory() };
        let edge = TestEdge::with(|settings| settings.durable = durable);
        let setup = eventually("the store is there", async || {
            Setup::open(&store, &StoreOptions::default()).await.ok()
        });
        Self { setup: setup.await, edge }
    }

    /// A new account, logged in.
    pub(crate) async fn account(&self, email: &str, role: Role) -> Client {
        self.setup.add_user(email, Some(PASSWORD.into()), role, None).await.unwrap();
        let stranger = Client { edge: self.edge.http(), token: String::new() };
        let body = json!({ "email": email, "password": PASSWORD });
        let tokens = stranger.post("/auth/login", &body).await.is(200);
        Client { edge: self.edge.http(), token: text(&tokens["access_token"]) }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Somebody who is logged in.
pub(crate) struct Client {
    edge: SocketAddr,
    pub(crate) token: String,
}

trait Is {
    /// Checks the status and gives the body.
    fn is(&self, status: u16) -> Value;
}

impl Is for Answer {
    fn is(&self, status: u16) -> Value {
        assert_eq!(self.status(), status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Client {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (token, length) = (&self.token, body.len());
        let mut wire = Wire::connect(self.edge).await;
        wire.send(format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: {DOMAIN}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await;
        wire.answer(method).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None).await
    }
}

/// Goes through everything once, so that each statement meets the database.
async fn go_through(office: &Office) {
    let admin = office.account("root@example.com", Role::Admin).await;
    let ann = office.account("ann@example.com", Role::User).await;
    let me = ann.get("/users/me").await.is(200);
    let user = format!("/users/{}", text(&me["id"]));

    let limits = json!({ "tunnels": 5, "transfer_bytes_per_month": 1_000_000_000_000_u64 });
    admin.send("PUT", "/plans/small", Some(&limits)).await.is(200);
    admin.send("PUT", "/plans/small", Some(&json!({ "tunnels": 2 }))).await.is(200);
    admin.send("PATCH", &user, Some(&json!({ "plan": "small" }))).await.is(200);
    admin.delete("/plans/small").await.is(409);
    admin.send("PATCH", &user, Some(&json!({ "plan": "none" }))).await.is(422);
    let users = admin.get("/users?role=user&is_active=true&email=ANN@example.com").await.is(200);
    assert_eq!(users["items"][0]["plan"], "small");

    let body = json!({ "name": "shop", "metadata": { "a": "b" }, "requests_per_second": 5 });
    let tunnel = ann.post("/tunnels", &body).await.is(201);
    ann.post("/tunnels", &body).await.is(409);
    ann.post("/tunnels", &json!({})).await.is(201);
    ann.post("/tunnels", &json!({})).await.is(403);
    let path = format!("/tunnels/{}", text(&tunnel["id"]));
    let patch = json!({ "local_url": "x", "metadata": {}, "requests_per_second": null });
    assert_eq!(ann.send("PATCH", &path, Some(&patch)).await.is(200)["version"], 2);
    ann.post(&format!("{path}/pause"), &json!({})).await.is(200);
    ann.post(&format!("{path}/resume"), &json!({})).await.is(200);
    let after = text(&tunnel["id"]);
    let query = format!("/tunnels?limit=1&name=sho&kind=http&status=active&after={after}");
    assert_eq!(ann.get(&query).await.is(200)["items"], json!([]));
    for part in ["stats", "requests?failed=true&path=x&method=GET", "metrics?step=hour"] {
        ann.get(&format!("{path}/{part}")).await.is(200);
    }
    ann.get("/usage").await.is(200);

    let scopes = json!({ "names": ["shop"] });
    let token = ann.post("/tokens", &json!({ "name": "t", "scopes": scopes })).await.is(201);
    let token_path = format!("/tokens/{}", text(&token["id"]));
    let patch = json!({ "expires_at": "2096-01-01T00:00:00Z" });
    ann.send("PATCH", &token_path, Some(&patch)).await.is(200);
    let rotated = ann.post(&format!("{token_path}/rotate"), &json!({})).await.is(201);
    let ends = ann.get(&token_path).await.is(200);
    assert!(text(&ends["expires_at"]).as_str() < "2095", "{ends}");
    assert_eq!(ann.get("/tokens?good=true").await.is(200)["items"].as_array().unwrap().len(), 2);
    ann.delete(&format!("/tokens/{}", text(&rotated["id"]))).await.is(204);
    assert_eq!(ann.get("/tokens?good=true").await.is(200)["items"].as_array().unwrap().len(), 1);

    let domain = json!({ "name": "shop.example.com", "tunnel_id": tunnel["id"] });
    let domain = ann.post("/domains", &domain).await.is(201);
    let domain_path = format!("/domains/{}", text(&domain["id"]));
    ann.send("PATCH", &domain_path, Some(&json!({ "tunnel_id": null }))).await.is(200);
    ann.get("/domains").await.is(200);
    ann.delete(&domain_path).await.is(204);

    let invite = admin.post("/invites", &json!({ "email": "x@example.com" })).await.is(201);
    assert_eq!(admin.get("/invites?open=true").await.is(200)["items"][0]["id"], invite["id"]);
    admin.delete(&format!("/invites/{}", text(&invite["id"]))).await.is(204);

    admin.get("/sessions?connected=false").await.is(200);
    admin.get("/bans").await.is(200);
    admin.post("/keys/rotate", &json!({})).await.is(201);
    ann.get("/users/me").await.is(200);
    let events = ann.get("/events?kind=tunnel.paused&from=2020-01-01T00:00:00Z").await.is(200);
    assert_eq!(events["items"][0]["tunnel_id"], tunnel["id"]);
    assert_eq!(events["items"][0]["actor"]["peer"], "127.0.0.1");
    same_request_twice(&ann).await;

    for tunnel in ann.get("/tunnels").await.is(200)["items"].as_array().unwrap() {
        ann.delete(&format!("/tunnels/{}", text(&tunnel["id"]))).await.is(204);
    }
    admin.delete(&user).await.is(409);
    let change = json!({ "old_password": PASSWORD, "new_password": "another long one" });
    ann.post("/auth/password", &change).await.is(204);
    ann.post("/auth/logout", &json!({ "everywhere": true })).await.is(204);
    ann.get("/users/me").await.is(401);
    let body = json!({ "email": "ann@example.com", "password": "another long one" });
    let tokens = ann.post("/auth/login", &body).await.is(200);
    let refresh = json!({ "refresh_token": tokens["refresh_token"] });
    ann.post("/auth/refresh", &refresh).await.is(200);
    ann.post("/auth/refresh", &refresh).await.is(401);
    let wrong = json!({ "email": "ann@example.com", "password": "wrong" });
    ann.post("/auth/login", &wrong).await.is(401);
    admin.send("PATCH", &user, Some(&json!({ "is_active": false }))).await.is(200);
    ann.post("/auth/login", &body).await.is(401);
}

async fn same_request_twice(client: &Client) {
    let send = async || {
        let mut wire = Wire::connect(client.edge).await;
        let token = &client.token;
        wire.send(format!(
            "POST /api/v1/tokens HTTP/1.1\r\nhost: {DOMAIN}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\nidempotency-key: k1\r\ncontent-length: 2\r\n\r\n{{}}"
        ))
        .await;
        wire.answer("POST").await
    };
    let (first, again) = (send().await, send().await);
    assert_eq!(first.is(201)["id"], again.is(201)["id"]);
    assert_eq!(again.head.get("idempotency-replayed"), Some("true"));
}

#[tokio::test]
async fn all_of_it_works_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    go_through(&Office::new(dir.path()).await).await;
}

#[tokio::test]
async fn all_of_it_works_on_postgres() {
    let postgres = TestPostgres::start().await;
    postgres.store().await;
    go_through(&Office::on(postgres.url("postgres")).await).await;
}

#[tokio::test]
async fn tunnels_do_not_have_the_api() {
    let edge = TestEdge::start();
    let upstream = TestUpstream::saying("hi").await;
    let _agent = TestAgent::start(&edge, "shop", &upstream.url()).await;
    let answer = edge.get("shop", "/api/v1/health").await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.text().contains("\"store\""), "{}", answer.text());
    let mut wire = edge.visitor().await;
    wire.send(format!("GET /api/v1/health HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
    let own = wire.answer("GET").await;
    assert_eq!(own.is(200)["store"], true);
    // The connection goes on.
    wire.send(format!("GET /api/v1/nothing HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
    wire.answer("GET").await.assert_failed(404, "UR-4030");
    wire.send(format!("HEAD /api/v1/openapi.json HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
    let head = wire.answer("HEAD").await;
    assert_eq!((head.status(), head.body.len()), (200, 0));
    wire.send(format!("GET /api/v1/health HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")).await;
    wire.answer("GET").await.is(200);
}

/// An agent of the account's, that serves `name`.
async fn agent(client: &Client, edge: &TestEdge, name: &str, url: &str) -> (TestAgent, String) {
    let token = client.post("/tokens", &json!({ "name": "agent" })).await.is(201);
    let mut settings = TestAgent::settings(edge.http(), vec![TestAgent::tunnel(name, url)]);
    settings.token = text(&token["token"]).parse().unwrap();
    settings.agent_id = AgentId::random();
    (TestAgent::launch(settings).await, text(&token["id"]))
}

#[tokio::test]
async fn a_pause_is_seen_within_a_second_and_so_is_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let office = Office::new(dir.path()).await;
    let ann = office.account("ann@example.com", Role::User).await;
    let upstream = TestUpstream::saying("hi").await;
    let (_agent, _) = agent(&ann, &office.edge, "shop", &upstream.url()).await;
    assert_eq!(office.edge.get("shop", "/").await.status(), 200, "{}", host("shop"));
    let tunnels = ann.get("/tunnels").await.is(200);
    let tunnel = &tunnels["items"][0];
    assert_eq!((&tunnel["name"], &tunnel["is_reserved"]), (&json!("shop"), &json!(false)));
    let path = format!("/tunnels/{}", text(&tunnel["id"]));
    assert_eq!(ann.get(&format!("{path}/stats")).await.is(200)["is_online"], true);
    for (what, serves) in [("pause", false), ("resume", true)] {
        ann.post(&format!("{path}/{what}"), &json!({})).await.is(200);
        let began = std::time::Instant::now();
        eventually(what, async || {
            let status = office.edge.get("shop", "/").await.status();
            ((status == 200) == serves).then_some(())
        })
        .await;
        assert!(began.elapsed().as_secs_f64() < 1.0, "{what}: {:?}", began.elapsed());
    }
}

/// The agent has no session any more, and gets none: it tries, or has given up.
async fn is_kept_out(client: &Client, agent: &TestAgent) {
    eventually("its session is over", async || {
        let list = client.get("/sessions").await.is(200);
        (list["items"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(agent.names().await.len(), 1, "it was ready once");
}

#[tokio::test]
async fn a_revoked_token_ends_its_sessions_within_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let office = Office::new(dir.path()).await;
    let ann = office.account("ann@example.com", Role::User).await;
    let upstream = TestUpstream::saying("hi").await;
    let (agent, token) = agent(&ann, &office.edge, "shop", &upstream.url()).await;
    assert_eq!(office.edge.get("shop", "/").await.status(), 200);
    ann.delete(&format!("/tokens/{token}")).await.is(204);
    let began = std::time::Instant::now();
    eventually("the session is gone", async || {
        (office.edge.get("shop", "/").await.status() != 200).then_some(())
    })
    .await;
    assert!(began.elapsed().as_secs_f64() < 2.0, "{:?}", began.elapsed());
    is_kept_out(&ann, &agent).await;
}

#[tokio::test]
async fn a_token_that_the_command_line_revokes_ends_its_sessions_too() {
    let dir = tempfile::tempdir().unwrap();
    let office = Office::new(dir.path()).await;
    let ann = office.account("ann@example.com", Role::User).await;
    let upstream = TestUpstream::saying("hi").await;
    let (agent, token) = agent(&ann, &office.edge, "shop", &upstream.url()).await;
    office.setup.revoke_token(token.parse().unwrap()).await.unwrap();
    eventually("the session is gone", async || {
        (office.edge.get("shop", "/").await.status() != 200).then_some(())
    })
    .await;
    is_kept_out(&ann, &agent).await;
}

#[tokio::test]
async fn sessions_are_listed_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let office = Office::new(dir.path()).await;
    let ann = office.account("ann@example.com", Role::User).await;
    let operator = office.account("op@example.com", Role::Operator).await;
    let bob = office.account("bob@example.com", Role::User).await;
    let upstream = TestUpstream::saying("hi").await;
    let (agent, token) = agent(&ann, &office.edge, "shop", &upstream.url()).await;
    let session = eventually("the session is listed", async || {
        let list = ann.get("/sessions").await.is(200);
        list["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&session["token_id"], &session["is_connected"]), (&json!(token), &json!(true)));
    assert_eq!(bob.get("/sessions").await.is(200)["items"], json!([]));
    let path = format!("/sessions/{}", text(&session["session_id"]));
    bob.delete(&path).await.is(404);
    operator.delete(&path).await.is(204);
    // It comes back with a session of its own.
    agent.readies(2).await;
    assert_eq!(office.edge.get("shop", "/").await.status(), 200);
}
