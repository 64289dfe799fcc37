//! Edges that share a database and a state, and a client of the REST API.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::TcpSocket;
use uniroute_agent::Settings as AgentSettings;
use uniroute_edge::{
    config::{PublicBase, SecretSource, Settings},
    setup::{Role, Setup},
    store::{Store, StoreOptions, StoreUrl},
};
use uniroute_shared::id::AgentId;

use super::{
    TestAgent, TestEdge, eventually,
    postgres::TestPostgres,
    redis::{TestRedis, TestRedisCluster},
    wire::{Answer, Wire},
    within,
};

/// Of every account that tests make.
pub(crate) const PASSWORD: &str = "correct horse battery";
/// How often an edge of a test looks at things that others look at every few seconds.
const OFTEN: Duration = Duration::from_millis(200);
/// The same for writing down what was counted.
const FLUSH: Duration = Duration::from_millis(100);

/// What edges share.
pub(crate) enum Shared {
    Redis(TestRedis),
    Cluster(TestRedisCluster),
}

impl Shared {
    fn url(&self) -> String {
        match self {
            Self::Redis(redis) => redis.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// The one server.
    pub(crate) fn redis(&mut self) -> &mut TestRedis {
        match self {
            Self::Redis(redis) => redis,
            Self::Cluster(_) => panic!("there are several"),
        }
    }
}

/// Several edges on one PostgreSQL and one Redis.
pub(crate) struct Cluster {
    pub(crate) edges: Vec<TestEdge>,
    pub(crate) postgres: TestPostgres,
    pub(crate) shared: Shared,
    /// The test's own way to the rows.
    pub(crate) store: Store,
    folder: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start(edges: usize) -> Self {
        Self::with(edges, |_| {}).await
    }

    pub(crate) async fn with(edges: usize, change: impl Fn(&mut Settings)) -> Self {
        Self::on(Shared::Redis(TestRedis::start().await), edges, change).await
    }

    pub(crate) async fn on(shared: Shared, edges: usize, change: impl Fn(&mut Settings)) -> Self {
        let postgres = TestPostgres::start().await;
        let store = postgres.store().await;
        let folder = secret();
        let mut cluster = Self { edges: Vec::new(), postgres, shared, store, folder };
        for _ in 0..edges {
            cluster.edges.push(cluster.edge(&change).await);
        }
        cluster
    }

    /// One more edge.
    pub(crate) async fn edge(&self, change: impl Fn(&mut Settings)) -> TestEdge {
        let mut settings = settings(self.postgres.url("postgres"), self.folder.path());
        settings.durable.state = self.shared.url().parse().unwrap();
        settings.workers = std::num::NonZeroUsize::new(1).unwrap();
        change(&mut settings);
        let edge = started(settings).await;
        eventually("the edge is connected to the state", async || {
            (edge.metric("state_up").await == 1).then_some(())
        })
        .await;
        edge
    }

    pub(crate) async fn setup(&self) -> Setup {
        setup(&self.postgres.url("postgres")).await
    }

    /// A client of the first edge with the rights of an administrator.
    pub(crate) async fn admin(&self) -> Api {
        admin(&self.setup().await, &self.edges[0]).await
    }
}

/// An edge on a file.
pub(crate) struct Alone {
    pub(crate) edge: TestEdge,
    pub(crate) url: StoreUrl,
    pub(crate) folder: tempfile::TempDir,
}

impl Alone {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = secret();
        let url = StoreUrl::file(folder.path().join("edge.db"));
        let mut settings = settings(url.clone(), folder.path());
        change(&mut settings);
        Self { edge: started(settings).await, url, folder }
    }

    /// Stops the edge in order and starts it anew on what it has left.
    pub(crate) async fn restart(self, change: impl FnOnce(&mut Settings)) -> Self {
        let Self { edge, url, folder } = self;
        assert!(edge.shutdown().await);
        let mut settings = settings(url.clone(), folder.path());
        change(&mut settings);
        Self { edge: started(settings).await, url, folder }
    }

    pub(crate) async fn setup(&self) -> Setup {
        setup(&self.url).await
    }

    pub(crate) async fn admin(&self) -> Api {
        admin(&self.setup().await, &self.edge).await
    }

    /// The test's own way to the rows.
    pub(crate) async fn store(&self) -> Store {
        Store::open(&self.url, &StoreOptions::default()).await.unwrap()
    }
}

/// A folder with the secret of all edges of a test.
fn secret() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n")
        .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, mode).unwrap();
    folder
}

fn settings(store: StoreUrl, folder: &Path) -> Settings {
    let mut settings = TestEdge::settings();
    settings.tokens = None;
    // All edges of a cluster are one to the outside.
    settings.public_url = Some(PublicBase { scheme: "http".into(), port: None });
    let durable = &mut settings.durable;
    durable.store = store;
    durable.secret = SecretSource::File(folder.join("secret"));
    (durable.log.flush, durable.feed, durable.jobs) = (FLUSH, OFTEN, OFTEN);
    settings
}

/// An edge waits for its store while it starts.
async fn started(settings: Settings) -> TestEdge {
    let starting = tokio::task::spawn_blocking(|| TestEdge::try_start(settings));
    within("the edge starts", starting).await.unwrap().unwrap()
}

async fn setup(url: &StoreUrl) -> Setup {
    Setup::open(url, &StoreOptions::default()).await.unwrap()
}

async fn admin(setup: &Setup, edge: &TestEdge) -> Api {
    account(setup, "admin@example.com", Role::Admin, None).await;
    Api::login(edge, "admin@example.com").await
}

/// A new account; its identifier.
pub(crate) async fn account(
    setup: &Setup,
    email: &str,
    role: Role,
    plan: Option<&str>,
) -> uuid::Uuid {
    let plan = plan.map(str::to_owned);
    setup.add_user(email, Some(PASSWORD.to_owned()), role, plan).await.unwrap().0.id
}

/// A new account and a token for its agents.
pub(crate) async fn user(setup: &Setup, email: &str, plan: Option<&str>) -> String {
    account(setup, email, Role::User, plan).await;
    setup.add_token(email, "test", None, Vec::new()).await.unwrap()
}

/// Settings of the agent `id` with `token` and one tunnel.
pub(crate) fn agent(
    edge: &TestEdge,
    token: &str,
    id: &str,
    name: &str,
    upstream: &str,
) -> AgentSettings {
    let mut settings = TestAgent::settings(edge.http(), vec![TestAgent::tunnel(name, upstream)]);
    settings.token = token.parse().unwrap();
    settings.agent_id = AgentId::parse(id).unwrap();
    settings
}

/// A client of the REST API.
#[derive(Clone)]
pub(crate) struct Api {
    edge: SocketAddr,
    /// Where it connects from.
    from: Ipv4Addr,
    access: String,
}

impl Api {
    /// Nobody yet, from `from`.
    pub(crate) fn nobody(edge: &TestEdge, from: [u8; 4]) -> Self {
        Self { edge: edge.http(), from: from.into(), access: String::new() }
    }

    pub(crate) async fn login(edge: &TestEdge, email: &str) -> Self {
        let mut api = Self::nobody(edge, [127, 0, 0, 1]);
        let body = json!({ "email": email, "password": PASSWORD });
        let answer = api.post("/auth/login", body).await;
        api.access = answer["access_token"].as_str().unwrap().to_owned();
        api
    }

    /// The same login from another address.
    pub(crate) fn from(self, from: [u8; 4]) -> Self {
        Self { from: from.into(), ..self }
    }

    /// The same login at another edge.
    pub(crate) fn at(&self, edge: &TestEdge) -> Self {
        Self { edge: edge.http(), ..self.clone() }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        good(&self.send("GET", path, None).await)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        good(&self.send("POST", path, Some(body)).await)
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Value {
        good(&self.send("PATCH", path, Some(body)).await)
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        good(&self.send("PUT", path, Some(body)).await)
    }

    pub(crate) async fn delete(&self, path: &str) {
        good(&self.send("DELETE", path, None).await);
    }

    /// A request for a path below `/api/v1`, and whatever comes back.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut wire = connect(self.edge, self.from).await;
        let mut head =
            format!("{method} /api/v1{path} HTTP/1.1\r\nhost: edge.test\r\nconnection: close\r\n");
        if !self.access.is_empty() {
            head.push_str(&format!("authorization: Bearer {}\r\n", self.access));
        }
        let body = body.map(|body| body.to_string());
        if let Some(body) = &body {
            let length = body.len();
            head.push_str(&format!(
                "content-type: application/json\r\ncontent-length: {length}\r\n"
            ));
        }
        wire.send(format!("{head}\r\n{}", body.unwrap_or_default())).await;
        wire.answer(method).await
    }

    /// A tunnel of the caller's by its name.
    pub(crate) async fn tunnel(&self, name: &str) -> Value {
        let list = self.get("/tunnels?limit=100").await;
        let mut tunnels = list["items"].as_array().unwrap().iter();
        let found = tunnels.find(|tunnel| tunnel["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no tunnel {name}: {list}"))
    }
}

/// Says what was measured, to who wants to see it (`--no-capture`).
#[expect(clippy::print_stderr, reason = "it is the test's own")]
pub(crate) fn figure(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// A connection from one of this machine's addresses.
pub(crate) async fn connect(to: SocketAddr, from: Ipv4Addr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    Wire::new(within("a connection", socket.connect(to)).await.unwrap())
}

fn good(answer: &Answer) -> Value {
    assert!((200..300).contains(&answer.status()), "{} {}", answer.status(), answer.text());
    if answer.body.is_empty() { Value::Null } else { serde_json::from_slice(&answer.body).unwrap() }
}

/// The identifier in an answer, for a path.
pub(crate) fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id: {value}")).to_owned()
}
