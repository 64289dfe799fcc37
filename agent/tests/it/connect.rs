//! The way to the edge: proxies, certificates, links that die.

pub(crate) mod foreign;
pub(crate) mod fronts;
mod life;
mod proxies;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Agent, AgentError, Event, Settings, TunnelSettings};

use uniroute_shared::id::AgentId;

use crate::harness::{Edge, Upstream, within};

/// An agent inside this process; gone with its value.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    events: tokio::sync::mpsc::Receiver<Event>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

/// What an agent of `edge` needs, with the tunnel `demo`; it ends when it does not get there.
fn settings(edge: &Edge, server: &str, upstream: &Upstream) -> Settings {
    let token = std::fs::read_to_string(edge.token_file()).unwrap();
    let mut tunnel = TunnelSettings::http("web", upstream.port().parse().unwrap());
    tunnel.name = Some("demo".into());
    let server = server.parse().unwrap();
    let mut settings = Settings::new(server, token.trim().parse().unwrap(), vec![tunnel]);
    settings.fail_fast = true;
    // A later one may have the name at once.
    settings.agent_id = AgentId::parse("the-one-agent").unwrap();
    settings
}

/// Once its tunnel takes requests, or why it does not.
async fn run(settings: Settings) -> Result<Running, String> {
    let (agent, events) = Agent::new(settings).map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(agent.run(stop.clone()));
    let mut running = Running { stop, task, events };
    let ready = async {
        loop {
            match running.events.recv().await {
                Some(Event::Ready { .. }) => return true,
                Some(_) => {}
                None => return false,
            }
        }
    };
    if within("a session", ready).await {
        return Ok(running);
    }
    Err(within("its end", &mut running.task).await.unwrap().unwrap_err().to_string())
}

/// Visitors get what the local server says.
async fn serves(edge: &Edge) {
    let (status, answer) = edge.get("demo", "/").await;
    assert!(status == 200 && answer.ends_with("served"), "{answer}");
}
