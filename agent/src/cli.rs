//! The command line of `uniroute`.

mod policy;
pub(crate) mod routes;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uniroute_agent::{Settings, Transport, TunnelKind, TunnelSettings};
use uniroute_shared::{id::AgentId, telemetry::LogFormat};

use self::{policy::PolicyFlags, routes::RoutesCommand};
use crate::config::{self, File, FileTunnel, SAMPLE, SettingsError};

/// Where an edge is looked for when nothing says otherwise.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// Puts local servers on the internet through a UniRoute edge.
#[derive(Debug, Parser)]
#[command(name = "uniroute", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One tunnel to a local HTTP server, now.
    Http(Box<Http>),
    /// One tunnel to a local TCP server, now: it gets a public port.
    Tcp(Tcp),
    /// One tunnel to a local TLS server, now: the edge passes connections on as they are, by the
    /// server name that they ask for, and can't read them.
    Tls(Tls),
    /// One tunnel to a local UDP server, now: it gets a public port.
    Udp(Udp),
    /// Tunnels of the config file.
    Start(Start),
    /// The config file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the tunnels of the config file do with a request.
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Prints the version.
    Version,
}

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
    config: Option<PathBuf>,
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

#[derive(Debug, Args)]
pub(crate) struct Http {
    /// The local server: PORT, HOST:PORT, http://HOST:PORT, https://HOST:PORT, unix:PATH, or
    /// file:FOLDER for the files in a folder.
    upstream: String,
    /// The public name wanted; the edge chooses one otherwise.
    #[arg(long, env = "UNIROUTE_NAME", value_name = "NAME")]
    name: Option<String>,
    /// PEM file with the authorities for the local server's certificate.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_upstream")]
    upstream_ca: Option<PathBuf>,
    /// Take any certificate of the local server.
    #[arg(long)]
    insecure_upstream: bool,
    /// The HTTP that the local server is spoken to in: http1, h2 (without TLS on prior knowledge), or
    /// auto: http1, but h2 for gRPC where the local server speaks it. Config key
    /// `upstream_protocol`.
    #[arg(long, env = "UNIROUTE_UPSTREAM_PROTOCOL", value_name = "auto|http1|h2")]
    upstream_protocol: Option<String>,
    /// Seconds for a connection to the local server.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    connect_timeout: f64,
    /// Seconds for its answer to begin; 0 waits for ever.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    response_timeout: f64,
    #[command(flatten)]
    common: Common,
    // Last: its heading would be that of what follows.
    #[command(flatten)]
    policy: PolicyFlags,
}

#[derive(Debug, Args)]
pub(crate) struct Tcp {
    /// The local server: PORT, HOST:PORT or unix:PATH.
    upstream: String,
    #[command(flatten)]
    public: PublicPort,
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// The local server: PORT, HOST:PORT or unix:PATH. Its own certificate is what visitors see.
    upstream: String,
    /// The public name wanted; the edge chooses one otherwise. Config key `name` of the tunnel.
    #[arg(long, env = "UNIROUTE_NAME", value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Udp {
    /// The local server: PORT or HOST:PORT.
    upstream: String,
    #[command(flatten)]
    public: PublicPort,
    /// Seconds after which the flow of a visitor that is still ends; not 0, since nothing else tells
    /// that one is over. Config key `idle_timeout` of the tunnel. Default: 60.
    #[arg(long, env = "UNIROUTE_IDLE_TIMEOUT", value_name = "SECONDS")]
    idle_timeout: Option<f64>,
    #[command(flatten)]
    common: Common,
}

/// Where visitors come in.
#[derive(Debug, Args)]
struct PublicPort {
    /// The public port wanted, of the edge's range; 0: the edge chooses one. Config key `port` of the
    /// tunnel. Default: 0.
    #[arg(long, env = "UNIROUTE_PORT", value_name = "N")]
    port: Option<u16>,
    /// A name for the tunnel, for people to read; the edge chooses one otherwise. Config key `name` of
    /// the tunnel.
    #[arg(long, env = "UNIROUTE_NAME", value_name = "NAME")]
    name: Option<String>,
}

/// How connections are treated.
#[derive(Debug, Args)]
struct Connections {
    /// Seconds for which nothing may move on a connection, or it is ended; 0: for ever.
    /// Config key `idle_timeout` of the tunnel. Default: 0.
    #[arg(long, env = "UNIROUTE_IDLE_TIMEOUT", value_name = "SECONDS")]
    idle_timeout: Option<f64>,
    /// Tell the local server who the visitor is, in a PROXY protocol header in front of each
    /// connection. Config key `proxy_protocol` of the tunnel. Default: no header.
    #[arg(long, env = "UNIROUTE_PROXY_PROTOCOL", value_name = "v1|v2")]
    proxy_protocol: Option<String>,
    /// Seconds for a connection to the local server. Config key `connect_timeout` of the tunnel.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    connect_timeout: f64,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Tunnels of the config file, by the word in `[tunnels.NAME]`.
    names: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints a commented sample.
    Init,
    /// Prints where the config file is looked for.
    Path,
    /// Names every fault of a config file.
    Check {
        /// The file. Default: see `config path`.
        file: Option<PathBuf>,
    },
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

impl Http {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = FileTunnel {
            upstream: self.upstream,
            name: self.name,
            upstream_ca: self.upstream_ca,
            insecure_upstream: self.insecure_upstream,
            upstream_protocol: self.upstream_protocol,
            connect_timeout: Some(self.connect_timeout),
            response_timeout: Some(self.response_timeout),
            ..self.policy.tunnel()
        };
        self.common.plan_one(&tunnel)
    }
}

impl Tcp {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = FileTunnel {
            kind: TunnelKind::Tcp,
            upstream: self.upstream,
            ..self.connections.tunnel()
        };
        self.common.plan_one(&self.public.of(tunnel))
    }
}

impl Tls {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        self.common.plan_one(&FileTunnel {
            kind: TunnelKind::Tls,
            upstream: self.upstream,
            name: self.name,
            ..self.connections.tunnel()
        })
    }
}

impl Udp {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = FileTunnel {
            kind: TunnelKind::Udp,
            upstream: self.upstream,
            idle_timeout: self.idle_timeout,
            ..FileTunnel::default()
        };
        self.common.plan_one(&self.public.of(tunnel))
    }
}

impl PublicPort {
    fn of(self, tunnel: FileTunnel) -> FileTunnel {
        FileTunnel { port: self.port, name: self.name, ..tunnel }
    }
}

impl Connections {
    fn tunnel(self) -> FileTunnel {
        FileTunnel {
            idle_timeout: self.idle_timeout,
            proxy_protocol: self.proxy_protocol,
            connect_timeout: Some(self.connect_timeout),
            ..FileTunnel::default()
        }
    }
}

impl Start {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let path = self.common.config.clone().unwrap_or_else(config::default_path);
        let file = File::load(&path)?;
        file.check()?;
        let tunnels = file.select(&path, &self.names, self.all)?;
        self.common.plan(&file, tunnels)
    }
}

impl Common {
    /// One tunnel that no file has; its key is the word for its kind.
    fn plan_one(self, tunnel: &FileTunnel) -> Result<Plan, SettingsError> {
        let file = match &self.config {
            Some(path) => File::load(path)?,
            None => File::load_default()?,
        };
        self.plan(&file, vec![tunnel.settings(tunnel.kind.as_str())?])
    }

    fn plan(self, file: &File, tunnels: Vec<TunnelSettings>) -> Result<Plan, SettingsError> {
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

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut out = io::stdout();
        match self {
            Self::Init => out.write_all(SAMPLE.as_bytes())?,
            Self::Path => writeln!(out, "{}", config::default_path().display())?,
            Self::Check { file } => {
                let path = file.unwrap_or_else(config::default_path);
                File::load(&path)?.check()?;
                writeln!(out, "{}: no faults", path.display())?;
            }
        }
        Ok(())
    }
}
