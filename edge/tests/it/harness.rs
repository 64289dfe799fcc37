//! What every test stands on: an edge, an agent, local servers and a visitor, each on a free port
//! and gone with its value. Nothing sleeps to be in step: [`eventually`] and [`within`] wait for a
//! condition, with a bound.

pub(crate) mod cluster;
pub(crate) mod hand;
pub(crate) mod link;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod upstream;
pub(crate) mod waiting;
pub(crate) mod ways;
pub(crate) mod wire;

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uniroute_agent::{
    Agent, AgentError, Event, Settings as AgentSettings, Transport, TunnelSettings,
};
use uniroute_edge::{
    Edge, StartError,
    config::{Durable, Quic, Settings},
};
use uniroute_shared::id::{AgentId, TokenSet};

pub(crate) use self::waiting::{BOUND, eventually, within};
use self::wire::{Answer, Wire};

/// What agents come with.
pub(crate) const TOKEN: &str = "ur_test_0123456789abcdef";
/// Tunnels are `NAME.tunnels.test`.
pub(crate) const DOMAIN: &str = "tunnels.test";

/// An edge on free ports; any host that is no tunnel's is its own, as in `dev`.
pub(crate) struct TestEdge {
    edge: Edge,
}

impl TestEdge {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// Signs of life every 200 ms, so that a silent link is noticed in little more than 5 s.
    pub(crate) fn with_short_heartbeat() -> Self {
        Self::with(|settings| settings.heartbeat = Duration::from_millis(200))
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Self::settings();
        change(&mut settings);
        Self::try_start(settings).unwrap()
    }

    pub(crate) fn try_start(settings: Settings) -> Result<Self, StartError> {
        Ok(Self { edge: Edge::start(settings)? })
    }

    pub(crate) fn settings() -> Settings {
        Settings {
            http: ([127, 0, 0, 1], 0).into(),
            quic: Quic::BesideHttp,
            quic_options: Default::default(),
            admin: Some(([127, 0, 0, 1], 0).into()),
            domain: DOMAIN.into(),
            any_host_is_own: true,
            public_url: None,
            tokens: Some(TokenSet::parse(TOKEN).unwrap()),
            durable: Durable::in_memory(),
            heartbeat: uniroute_edge::config::HEARTBEAT,
            hold: Duration::ZERO,
            stall: uniroute_edge::config::STALL,
            max_held: uniroute_edge::config::MAX_HELD,
            workers: NonZeroUsize::new(2).unwrap(),
            max_connections: 2_000,
            max_sessions: 500,
            sockets: Default::default(),
            trusted_proxies: Default::default(),
        }
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.edge.http()
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.edge.https().unwrap()
    }

    pub(crate) fn quic(&self) -> Option<SocketAddr> {
        self.edge.quic()
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.edge.admin().unwrap()
    }

    /// A visitor's connection.
    pub(crate) async fn visitor(&self) -> Wire {
        Wire::connect(self.http()).await
    }

    /// One GET on a connection of its own.
    pub(crate) async fn get(&self, name: &str, path: &str) -> Answer {
        get(self.http(), name, path).await
    }

    /// What `/debug/status` says.
    pub(crate) async fn status(&self) -> Value {
        let answer = self.ask_admin("/debug/status").await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// A figure of `/metrics`, such as `sessions`.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let answer = self.ask_admin("/metrics").await;
        let prefix = format!("uniroute_edge_{name} ");
        let line =
            answer.text().lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    pub(crate) async fn ask_admin(&self, path: &str) -> Answer {
        let mut wire = Wire::connect(self.admin()).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")).await;
        wire.answer("GET").await
    }

    /// Drains; whether everything under way came to its end.
    pub(crate) async fn shutdown(self) -> bool {
        self.edge.shutdown(BOUND).await
    }
}

/// Whether this run of the tests is over QUIC: `make test` runs those that don't mind a second time.
pub(crate) fn over_quic() -> bool {
    std::env::var_os("UNIROUTE_TEST_QUIC").is_some()
}

/// `NAME.tunnels.test`.
pub(crate) fn host(name: &str) -> String {
    format!("{name}.{DOMAIN}")
}

/// One GET to the edge at `edge`, on a connection of its own.
pub(crate) async fn get(edge: SocketAddr, name: &str, path: &str) -> Answer {
    let mut wire = Wire::connect(edge).await;
    wire.get(name, path).await
}

/// An agent on a task of its own; dropped, it is gone without a word, as if killed.
pub(crate) struct TestAgent {
    events: Arc<Mutex<Vec<Event>>>,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), AgentError>>>,
}

impl TestAgent {
    /// Settings for the edge at `edge`.
    pub(crate) fn settings(edge: SocketAddr, tunnels: Vec<TunnelSettings>) -> AgentSettings {
        let server = format!("http://{edge}").parse().unwrap();
        let mut settings = AgentSettings::new(server, TOKEN.parse().unwrap(), tunnels);
        if over_quic() {
            settings.transport = Transport::Quic;
        }
        settings
    }

    /// One tunnel with the public name `name`; its key is the same.
    pub(crate) fn tunnel(name: &str, upstream: &str) -> TunnelSettings {
        let mut tunnel = TunnelSettings::http(name, upstream.parse().unwrap());
        tunnel.name = Some(name.into());
        tunnel
    }

    /// An agent with one tunnel, ready.
    pub(crate) async fn start(edge: &TestEdge, name: &str, upstream: &str) -> Self {
        Self::serve(edge, Self::tunnel(name, upstream)).await
    }

    /// An agent with `tunnel`, ready.
    pub(crate) async fn serve(edge: &TestEdge, tunnel: TunnelSettings) -> Self {
        Self::launch(Self::settings(edge.http(), vec![tunnel])).await
    }

    /// An agent whose tunnels are all ready.
    pub(crate) async fn launch(settings: AgentSettings) -> Self {
        let tunnels = settings.tunnels.len();
        let agent = Self::spawn(settings);
        agent.readies(tunnels).await;
        agent
    }

    /// An agent that may never get anywhere.
    pub(crate) fn spawn(settings: AgentSettings) -> Self {
        let (agent, mut listener) = Agent::new(settings).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&events);
        tokio::spawn(async move {
            while let Some(event) = listener.recv().await {
                log.lock().await.push(event);
            }
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent.run(stop.clone()));
        Self { events, stop, task: Some(task) }
    }

    /// Waits until tunnels became ready `count` times, over all sessions.
    pub(crate) async fn readies(&self, count: usize) {
        eventually("the agent's tunnels are ready", async || {
            let seen = self.seen(|event| matches!(event, Event::Ready { .. }).then_some(())).await;
            if self.is_over() {
                panic!("the agent ended instead of getting ready");
            }
            (seen.len() >= count).then_some(())
        })
        .await;
    }

    /// What `pick` takes from the events so far.
    pub(crate) async fn seen<T>(&self, pick: impl FnMut(&Event) -> Option<T>) -> Vec<T> {
        self.events.lock().await.iter().filter_map(pick).collect()
    }

    /// Public names that were given out, in order.
    pub(crate) async fn names(&self) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::Ready { name, .. } => Some(name.clone()),
            _ => None,
        };
        self.seen(name).await
    }

    pub(crate) fn is_over(&self) -> bool {
        self.task.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// How it ended by itself.
    pub(crate) async fn ended(mut self) -> Result<(), AgentError> {
        within("the agent ends", self.task.take().unwrap()).await.unwrap()
    }

    /// Drains.
    pub(crate) async fn stop(self) -> Result<(), AgentError> {
        self.stop.cancel();
        self.ended().await
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// An agent's identity with a name that can be read in a log.
pub(crate) fn agent_id(text: &str) -> AgentId {
    AgentId::parse(text).unwrap()
}
