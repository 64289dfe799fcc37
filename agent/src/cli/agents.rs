//! The agents that run here, asked over their local APIs.

use std::{
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use clap::Args;
use serde_json::Value;
use tokio::time::timeout;
use uniroute_agent::local::{
    client::Client,
    running::{self, Running},
};

use crate::config::{self, File};

/// What an agent has for its answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Which agents are asked.
#[derive(Debug, Args)]
pub(crate) struct Agents {
    /// Only the agent with this process number.
    #[arg(long, value_name = "PID", conflicts_with = "address")]
    pid: Option<u32>,
    /// Only the agent whose local API is there, such as 127.0.0.1:4040.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// The config file, for its `agent.state_dir`. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agents keep their state. Default: a folder of this user's state.
    #[arg(long, env = "UNIROUTE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// An agent, and what it says of itself.
pub(crate) struct Asked {
    /// `None`: it was named by its address.
    pub(crate) running: Option<Running>,
    /// Its local API.
    pub(crate) inspector: Option<String>,
    /// The JSON of its status; in words why there is none.
    pub(crate) status: Result<Value, String>,
}

impl Agents {
    /// Asks all of them.
    pub(crate) async fn ask(&self) -> Vec<Asked> {
        if let Some(address) = &self.address {
            let status = status(address).await;
            let inspector = Some(Client::new(address).url().to_owned());
            return vec![Asked { running: None, inspector, status }];
        }
        let mut asked = Vec::new();
        for running in running::find(&self.state_dir()) {
            if self.pid.is_some_and(|pid| pid != running.pid) {
                continue;
            }
            let inspector = running.inspector.clone();
            let status = match &inspector {
                Some(address) => status(address).await,
                None => Err("its inspector is off, so it tells nothing of itself".to_owned()),
            };
            asked.push(Asked { running: Some(running), inspector, status });
        }
        asked
    }

    /// What to say when there is none.
    pub(crate) fn none(&self) -> String {
        match self.pid {
            Some(pid) => format!("no agent of this user is process {pid}"),
            None => format!(
                "no agent runs here (looked in {}); start one with `uniroute http 3000` or \
                 `uniroute start --all`",
                self.state_dir().join("agents").display()
            ),
        }
    }

    fn state_dir(&self) -> PathBuf {
        let of_file = || {
            let path = self.config.clone().unwrap_or_else(config::default_path);
            // What is wrong with the file is said where it is used.
            File::load(&path).ok().and_then(|file| file.agent.state_dir)
        };
        config::state_dir(self.state_dir.clone().or_else(of_file).as_deref())
    }
}

/// The agent of this machine that serves the public name `name`, beside this process.
pub(crate) async fn serving(state_dir: &Path, name: &str) -> Option<Running> {
    let others = running::find(state_dir).into_iter().filter(|other| other.pid != process::id());
    for other in others {
        let Some(address) = &other.inspector else { continue };
        let Ok(status) = status(address).await else { continue };
        let mut tunnels = status["tunnels"].as_array().into_iter().flatten();
        if tunnels.any(|tunnel| tunnel["name"] == name) {
            return Some(other);
        }
    }
    None
}

impl Asked {
    /// For people: which one it is.
    pub(crate) fn label(&self) -> String {
        match (&self.running, &self.inspector) {
            (Some(running), _) => format!("agent {}", running.pid),
            (None, Some(address)) => format!("agent at {address}"),
            (None, None) => "agent".to_owned(),
        }
    }
}

async fn status(address: &str) -> Result<Value, String> {
    let client = Client::new(address);
    let asked = timeout(ANSWER, client.get("/api/v1/status")).await;
    let told = asked.map_err(|_| format!("{address} gives no answer within {ANSWER:?}"))?;
    told.map_err(|error| error.to_string())
}
