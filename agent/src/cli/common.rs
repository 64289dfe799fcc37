//! Flags that every command with tunnels has, and what they become together with the environment
//! and the config file.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use uniroute_agent::{Settings, Transport, TunnelSettings};
use uniroute_shared::{id::AgentId, telemetry::LogFormat};

use crate::config::{self, File, FileTunnel, SettingsError};

/// Where an edge is looked for when nothing says otherwise.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// Order: flag, environment, config file, default.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// URL of the edge: scheme (http, https, ws or wss), host and port. Config key `server`.
    /// Default: http://127.0.0.1:8080.
    #[arg(long, env = "UNIROUTE_SERVER", value_name = "URL")]
    server: Option<String>,
    /// A file with the token, `-` for standard input; UNIROUTE_TOKEN goes over it.
    /// Config key `token_file`.
    #[arg(long, env = "UNIROUTE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The config file. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// PEM file with the authorities for the edge's certificate. Default: the system's.
    #[arg(long, env = "UNIROUTE_SERVER_CA", value_name = "FILE")]
    server_ca: Option<PathBuf>,
    /// What carries the session: ws (WebSocket over TCP or TLS), quic (over UDP), or auto: ws at
    /// first, and quic where that was measured to be better. Config key `transport`. Default: auto.
    #[arg(long, env = "UNIROUTE_TRANSPORT", value_name = "auto|ws|quic")]
    transport: Option<Transport>,
    /// Connections for long bodies beside the session's own, opened when there are some; 0 to 8, only
    /// over WebSocket. Config key `lanes`. Default: 4.
    #[arg(long, env = "UNIROUTE_LANES", value_name = "N", value_parser = clap::value_parser!(u8).range(..=8))]
    lanes: Option<u8>,
    /// Where the agent's id is kept. Default: a folder of this user's state.
    #[arg(long, env = "UNIROUTE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What standard output gets: text (a live view on a terminal), one JSON object a line, or
    /// only the URLs.
    #[arg(long, env = "UNIROUTE_OUTPUT", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Show each URL as a code for telephones, too.
    #[arg(long)]
    qr: bool,
    /// End with exit code 5 when the edge can't be reached at the start.
    #[arg(long, env = "UNIROUTE_FAIL_FAST")]
    fail_fast: bool,
    /// End with exit code 7 when a local server takes no connection at the start.
    #[arg(long, env = "UNIROUTE_REQUIRE_LOCAL")]
    require_local: bool,
    /// off, error, warn, info, debug, trace, or directives. Default: warn.
    #[arg(long, env = "UNIROUTE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json. Default: text.
    #[arg(long, env = "UNIROUTE_LOG_FORMAT", value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,
}

/// What standard output gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people; a live view on a terminal.
    Text,
    /// One object a line.
    Json,
    /// One URL a line.
    Url,
}

/// What to run, and how to show it.
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) output: Output,
    pub(crate) qr: bool,
    pub(crate) require_local: bool,
    pub(crate) log_level: Option<String>,
    pub(crate) log_format: LogFormat,
    /// The id could not be kept: names are not taken back after a restart.
    pub(crate) id_error: Option<io::Error>,
}

impl Common {
    /// One tunnel that no file has; its key is the word for its kind.
    pub(super) fn plan_one(self, tunnel: &FileTunnel) -> Result<Plan, SettingsError> {
        let file = match &self.config {
            Some(path) => File::load(path)?,
            None => File::load_default()?,
        };
        self.plan(&file, vec![tunnel.settings(tunnel.kind.as_str())?])
    }

    pub(super) fn plan(
        self,
        file: &File,
        tunnels: Vec<TunnelSettings>,
    ) -> Result<Plan, SettingsError> {
        let server = match (&self.server, &file.server) {
            (Some(url), _) => config::server_url("--server", url)?,
            (None, Some(url)) => config::server_url("server", url)?,
            (None, None) => config::server_url("default", DEFAULT_SERVER)?,
        };
        let token_file = self.token_file.as_deref().or(file.token_file.as_deref());
        let token = config::token(token_file)?;
        let token_file = token_file.filter(|_| std::env::var_os("UNIROUTE_TOKEN").is_none());
        let token_file = token_file.filter(|path| *path != Path::new("-")).map(Path::to_owned);
        let (agent_id, id_error) = match config::agent_id(self.state_dir.as_deref()) {
            Ok(id) => (id, None),
            Err(error) => (AgentId::random(), Some(error)),
        };
        let mut settings = Settings::new(server, token, tunnels);
        settings.agent_id = agent_id;
        settings.token_file = token_file;
        settings.agent_name = hostname();
        settings.fail_fast = self.fail_fast;
        settings.transport = self.transport.or(file.transport()?).unwrap_or_default();
        if let Some(lanes) = self.lanes.map(usize::from).or(file.lanes()?) {
            settings.lanes = lanes;
        }
        settings.quic_options.gso = file.quic_gso.unwrap_or(true);
        settings.quic_options.congestion = file.quic_congestion.unwrap_or_default();
        if let Some(path) = self.server_ca {
            settings.trust = uniroute_agent::upstream::Trust::CaFile(path);
        }
        Ok(Plan {
            settings,
            output: self.output,
            qr: self.qr,
            require_local: self.require_local,
            log_level: self.log_level,
            log_format: self.log_format,
            id_error,
        })
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    name.trim().chars().take(64).collect()
}
