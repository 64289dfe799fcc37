//! Flags that every command with tunnels has, and what they become together with the environment
//! and the config file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use uniroute_agent::{Settings, TunnelSettings, upstream::Trust};
use uniroute_shared::{id::Token, telemetry::LogFormat};

pub(crate) use crate::config::agent::Output;
use crate::config::{
    self, File, FileTunnel, InspectorPlan, Selection, SettingsError,
    agent::AgentSection,
    identity::Identity,
    tunnel::Hashes,
    values::{Over as _, Span, Written},
};

/// Where an edge is looked for when nothing says otherwise.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// Order: flag, environment, config file, default.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The config file. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) agent: AgentSection,
}

/// What to run, and how to show it.
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) output: Output,
    /// Show the URL as a QR code too.
    pub(crate) qr: bool,
    pub(crate) require_local: bool,
    pub(crate) log_level: Option<String>,
    /// A line of the log for each request.
    pub(crate) log_requests: bool,
    pub(crate) log_format: LogFormat,
    /// Where the agent keeps what outlives it.
    pub(crate) state_dir: PathBuf,
    pub(crate) inspector: InspectorPlan,
    /// The tunnels of the config file that run, to be read again when it changes.
    pub(crate) selection: Option<Selection>,
    /// Which agent this process is, for as long as it runs.
    pub(crate) identity: Arc<Identity>,
}

impl Common {
    /// The config file that counts, and its path.
    pub(super) fn file(&self) -> Result<(PathBuf, File), SettingsError> {
        match &self.config {
            Some(path) => Ok((path.clone(), File::load(path)?)),
            None => Ok((config::default_path(), File::load_default()?)),
        }
    }

    /// One tunnel that no file has; its key is the word for its kind.
    pub(super) fn plan_one(self, tunnel: &FileTunnel) -> Result<Plan, SettingsError> {
        let settings = tunnel.settings(tunnel.kind().as_str(), &Hashes::default());
        let settings = settings.map_err(SettingsError::Flags)?;
        let (_, file) = self.file()?;
        self.plan(file, vec![settings])
    }

    /// Tunnels of the config file.
    pub(super) fn plan_selected(self, selection: Selection) -> Result<Plan, SettingsError> {
        let (file, tunnels) = selection.load()?;
        Ok(Plan { selection: Some(selection), ..self.plan(file, tunnels)? })
    }

    fn plan(self, file: File, tunnels: Vec<TunnelSettings>) -> Result<Plan, SettingsError> {
        let agent = self.agent.over_file(file)?;
        let settings = settings(&agent, tunnels)?;
        let state_dir = config::state_dir(agent.state_dir.as_deref());
        let identity = Identity::take(&state_dir, &settings.tunnels);
        Ok(Plan {
            settings: Settings { agent_id: identity.id().clone(), ..settings },
            output: agent.output.unwrap_or(Output::Text),
            qr: agent.qr.unwrap_or(false),
            require_local: agent.require_local.unwrap_or(false),
            log_requests: agent.log.requests.unwrap_or(false),
            log_level: agent.log.level.map(|Written(level)| level.as_str().to_owned()),
            log_format: agent.log.format.map(|Written(format)| format).unwrap_or_default(),
            inspector: agent.inspector.plan(&state_dir),
            state_dir,
            selection: None,
            identity: Arc::new(identity),
        })
    }
}

impl AgentSection {
    /// What flags and environment say, and what `file` says below them.
    pub(super) fn over_file(self, file: File) -> Result<Self, SettingsError> {
        self.check_arguments()?;
        file.check_agent()?;
        let agent = self.over(file.agent);
        match agent.faults().first() {
            Some((key, what)) => Err(SettingsError::Agent(format!("{key}: {what}"))),
            None => Ok(agent),
        }
    }
}

/// What the agent is told, with an id of this run's own.
pub(super) fn settings(
    agent: &AgentSection,
    tunnels: Vec<TunnelSettings>,
) -> Result<Settings, SettingsError> {
    let token = config::token(agent.token_file.as_deref())?;
    let from_file = config::variable(config::TOKEN).is_none();
    let token_file =
        agent.token_file.as_deref().filter(|path| from_file && *path != Path::new("-"));
    let settings = settings_with(agent, token, tunnels)?;
    Ok(Settings { token_file: token_file.map(Path::to_owned), ..settings })
}

/// The same with a token that is known.
pub(super) fn settings_with(
    agent: &AgentSection,
    token: Token,
    tunnels: Vec<TunnelSettings>,
) -> Result<Settings, SettingsError> {
    let default =
        DEFAULT_SERVER.parse().map_err(|error| SettingsError::Agent(format!("{error}")))?;
    let mut settings = Settings::new(default, token, tunnels);
    if !agent.server.is_empty() {
        settings.servers = agent.server.iter().map(|Written(server)| server.clone()).collect();
    }
    settings.agent_name = hostname();
    settings.fail_fast = agent.fail_fast.unwrap_or(false);
    settings.transport = agent.transport.as_ref().map(|t| t.0).unwrap_or_default();
    if let Some(lanes) = agent.lanes {
        settings.lanes = lanes.into();
    }
    if let Some(sessions) = agent.sessions {
        settings.sessions = sessions.into();
    }
    settings.heartbeat = agent.heartbeat.map(|Span(length)| length);
    settings.quic_options.gso = agent.quic_gso.unwrap_or(true);
    settings.quic_options.congestion = agent.quic_congestion.unwrap_or_default();
    settings.trust = agent.server_ca.clone().map_or(Trust::System, Trust::CaFile);
    settings.pins = agent.server_pin.iter().map(|Written(pin)| *pin).collect();
    if let (Some(certificate), Some(key)) = (&agent.client_certificate, &agent.client_key) {
        settings.identity =
            Some(uniroute_agent::Identity { certificate: certificate.clone(), key: key.clone() });
    }
    settings.proxy = agent.proxy()?;
    Ok(settings)
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    name.trim().chars().take(64).collect()
}
