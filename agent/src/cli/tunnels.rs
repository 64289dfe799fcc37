//! Commands that run tunnels: one for each kind, and `start` for those of the config file.

use std::path::PathBuf;

use clap::Args;
use uniroute_agent::{TunnelKind, upstream::Protocol};
use uniroute_shared::proxy_protocol;

use super::{
    common::{Common, Plan},
    policy::PolicyFlags,
};
use crate::config::{
    self, FileTunnel, Selection, SettingsError,
    tunnel::{FileHealth, FileHold, FileLimits, Probe},
    values::{Span, SpanOrOff, Written},
};

#[derive(Debug, Args)]
pub(crate) struct Http {
    /// The local server: PORT, HOST:PORT, http://HOST:PORT, https://HOST:PORT, unix:PATH, or
    /// file:FOLDER for the files in a folder.
    upstream: String,
    #[command(flatten)]
    public: PublicName,
    /// PEM file with the authorities for the local server's certificate. Config key `upstream_ca` of
    /// the tunnel. Default: the system's.
    #[arg(
        long,
        env = "UNIROUTE_UPSTREAM_CA",
        value_name = "FILE",
        conflicts_with = "insecure_upstream"
    )]
    upstream_ca: Option<PathBuf>,
    /// Take any certificate of the local server. Config key `insecure_upstream` of the tunnel.
    #[arg(long, env = "UNIROUTE_INSECURE_UPSTREAM")]
    insecure_upstream: bool,
    /// The HTTP that the local server is spoken to in: http1, h2 (without TLS on prior knowledge), or
    /// auto: http1, but h2 for gRPC where the local server speaks it. Config key
    /// `upstream_protocol` of the tunnel. Default: auto.
    #[arg(long, env = "UNIROUTE_UPSTREAM_PROTOCOL", value_name = "auto|http1|h2")]
    upstream_protocol: Option<Written<Protocol>>,
    /// Time for a connection to the local server. Config key `connect_timeout` of the tunnel.
    /// Default: 5s.
    #[arg(long, env = "UNIROUTE_CONNECT_TIMEOUT", value_name = "TIME")]
    connect_timeout: Option<Span>,
    /// Time for its answer to begin; 0 waits for ever. Config key `response_timeout` of the tunnel.
    /// Default: 120s.
    #[arg(long, env = "UNIROUTE_RESPONSE_TIMEOUT", value_name = "TIME")]
    response_timeout: Option<Span>,
    #[command(flatten)]
    local: Local,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    common: Common,
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
    local: Local,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// The local server: PORT, HOST:PORT or unix:PATH. Its own certificate is what visitors see.
    upstream: String,
    #[command(flatten)]
    public: PublicName,
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    local: Local,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Udp {
    /// The local server: PORT or HOST:PORT.
    upstream: String,
    #[command(flatten)]
    public: PublicPort,
    /// Time after which the flow of a visitor that is still ends; not 0, since nothing else tells
    /// that one is over. Config key `idle_timeout` of the tunnel. Default: 60s.
    #[arg(long, env = "UNIROUTE_IDLE_TIMEOUT", value_name = "TIME")]
    idle_timeout: Option<Span>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

/// Where visitors come in, by a name.
#[derive(Debug, Args)]
struct PublicName {
    /// The public name wanted; the edge chooses one otherwise. Config key `name` of the tunnel.
    #[arg(long, env = "UNIROUTE_NAME", value_name = "NAME")]
    name: Option<String>,
    /// The public URL wanted, in place of --name: `https://NAME.DOMAIN`. Config key `url` of the tunnel.
    #[arg(long, env = "UNIROUTE_URL", value_name = "URL")]
    url: Option<String>,
}

/// Where visitors come in, by a port.
#[derive(Debug, Args)]
struct PublicPort {
    /// The public port wanted, of the edge's range; 0: the edge chooses one. Config key `port` of the
    /// tunnel. Default: 0.
    #[arg(long, env = "UNIROUTE_PORT", value_name = "N")]
    port: Option<u16>,
    /// The public URL wanted, in place of --port: tcp://DOMAIN:PORT or udp://DOMAIN:PORT. Config key
    /// `url` of the tunnel.
    #[arg(long, env = "UNIROUTE_URL", value_name = "URL")]
    url: Option<String>,
    /// A name for the tunnel, for people to read; the edge chooses one otherwise. Config key `name` of
    /// the tunnel.
    #[arg(long, env = "UNIROUTE_NAME", value_name = "NAME")]
    name: Option<String>,
}

/// How connections are treated.
#[derive(Debug, Args)]
struct Connections {
    /// Time for which nothing may move on a connection, or it is ended; 0: for ever.
    /// Config key `idle_timeout` of the tunnel. Default: 0.
    #[arg(long, env = "UNIROUTE_IDLE_TIMEOUT", value_name = "TIME")]
    idle_timeout: Option<Span>,
    /// Tell the local server who the visitor is, in a PROXY protocol header in front of each
    /// connection. Config key `proxy_protocol` of the tunnel. Default: no header.
    #[arg(long, env = "UNIROUTE_PROXY_PROTOCOL", value_name = "v1|v2")]
    proxy_protocol: Option<Written<proxy_protocol::Version>>,
    /// Time for a connection to the local server. Config key `connect_timeout` of the tunnel.
    /// Default: 5s.
    #[arg(long, env = "UNIROUTE_CONNECT_TIMEOUT", value_name = "TIME")]
    connect_timeout: Option<Span>,
}

/// What is done about local servers that fail.
#[derive(Debug, Args)]
#[command(next_help_heading = "The local server")]
struct Local {
    /// A further local server that does the same; may be given several times. Config key `upstream`
    /// of the tunnel, as a list.
    #[arg(
        id = "further",
        long = "upstream",
        env = "UNIROUTE_UPSTREAM",
        value_name = "UPSTREAM",
        value_delimiter = ','
    )]
    further: Vec<String>,
    /// Look whether the local server is healthy: tcp (it takes a connection), http (it answers a GET)
    /// or off. Config key `health.probe` of the tunnel. Default: http with --health-path, or off.
    #[arg(
        long,
        env = "UNIROUTE_HEALTH",
        value_enum,
        value_name = "tcp|http|off",
        hide_possible_values = true
    )]
    health: Option<Probe>,
    /// Path of that GET. Config key `health.path` of the tunnel. Default: /.
    #[arg(long, env = "UNIROUTE_HEALTH_PATH", value_name = "PATH")]
    health_path: Option<String>,
    /// The only status that will do. Config key `health.status` of the tunnel. Default: 200 to 399.
    #[arg(long, env = "UNIROUTE_HEALTH_STATUS", value_name = "STATUS")]
    health_status: Option<u16>,
    /// Time between two looks. Config key `health.interval` of the tunnel. Default: 10s.
    #[arg(long, env = "UNIROUTE_HEALTH_INTERVAL", value_name = "TIME")]
    health_interval: Option<Span>,
    /// Time for one of them. Config key `health.timeout` of the tunnel. Default: 5s.
    #[arg(long, env = "UNIROUTE_HEALTH_TIMEOUT", value_name = "TIME")]
    health_timeout: Option<Span>,
    /// Successes in a row that make it healthy again. Config key `health.rise` of the tunnel.
    /// Default: 1.
    #[arg(long, env = "UNIROUTE_HEALTH_RISE", value_name = "N")]
    health_rise: Option<u32>,
    /// Failures in a row that make it unhealthy. Config key `health.fall` of the tunnel. Default: 3.
    #[arg(long, env = "UNIROUTE_HEALTH_FALL", value_name = "N")]
    health_fall: Option<u32>,
    /// How long a request waits for a local server that takes no connection, such as one that is
    /// being restarted; 120s at most. Config key `hold.local` of the tunnel. Default: 0.
    #[arg(long, env = "UNIROUTE_HOLD_LOCAL", value_name = "TIME")]
    hold_local: Option<Span>,
    /// How long the edge lets a request wait for this agent while it is away; `off` or 0: it fails at
    /// once. Never longer than the edge's own time. Config key `hold.reconnect` of the tunnel. Default:
    /// the edge's.
    #[arg(long, env = "UNIROUTE_HOLD_RECONNECT", value_name = "TIME|off")]
    hold_reconnect: Option<SpanOrOff>,
    /// Keep nothing of this tunnel's requests for the inspector. Config key `inspect = false` of the
    /// tunnel.
    #[arg(long, env = "UNIROUTE_NO_INSPECT")]
    no_inspect: bool,
}

/// How much the edge lets in.
#[derive(Debug, Args)]
#[command(next_help_heading = "How much comes in")]
struct Limits {
    /// Requests a second that the edge lets in, of tcp, tls and udp new connections or flows; a
    /// second's worth may come at once. Config key `limits.requests_per_second` of the tunnel. Default:
    /// the edge's own limits.
    #[arg(long, env = "UNIROUTE_REQUESTS_PER_SECOND", value_name = "N")]
    requests_per_second: Option<u32>,
    /// Requests that may be under way at a time, of tcp, tls and udp open connections or flows.
    /// Config key `limits.in_flight` of the tunnel. Default: the edge's own limits.
    #[arg(long, env = "UNIROUTE_IN_FLIGHT", value_name = "N")]
    in_flight: Option<u32>,
}

impl Limits {
    fn of(&self, tunnel: FileTunnel) -> FileTunnel {
        let Self { requests_per_second, in_flight } = *self;
        FileTunnel { limits: FileLimits { requests_per_second, in_flight }, ..tunnel }
    }
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

impl Http {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = FileTunnel {
            kind: Some(TunnelKind::Http),
            upstream_ca: self.upstream_ca,
            insecure_upstream: self.insecure_upstream,
            upstream_protocol: self.upstream_protocol,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            ..self.policy.tunnel()
        };
        let tunnel = self.limits.of(self.local.of(self.upstream, tunnel));
        self.common.plan_one(&self.public.of(tunnel))
    }
}

impl Tcp {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = self.connections.tunnel(TunnelKind::Tcp);
        let tunnel = self.limits.of(self.local.of(self.upstream, tunnel));
        self.common.plan_one(&self.public.of(tunnel))
    }
}

impl Tls {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = self.connections.tunnel(TunnelKind::Tls);
        let tunnel = self.limits.of(self.local.of(self.upstream, tunnel));
        self.common.plan_one(&self.public.of(tunnel))
    }
}

impl Udp {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let tunnel = FileTunnel {
            kind: Some(TunnelKind::Udp),
            upstream: vec![self.upstream],
            idle_timeout: self.idle_timeout,
            ..FileTunnel::default()
        };
        self.common.plan_one(&self.public.of(self.limits.of(tunnel)))
    }
}

impl PublicName {
    fn of(self, tunnel: FileTunnel) -> FileTunnel {
        FileTunnel { name: self.name, url: self.url, ..tunnel }
    }
}

impl PublicPort {
    fn of(self, tunnel: FileTunnel) -> FileTunnel {
        FileTunnel { port: self.port, name: self.name, url: self.url, ..tunnel }
    }
}

impl Connections {
    fn tunnel(self, kind: TunnelKind) -> FileTunnel {
        FileTunnel {
            kind: Some(kind),
            idle_timeout: self.idle_timeout,
            proxy_protocol: self.proxy_protocol,
            connect_timeout: self.connect_timeout,
            ..FileTunnel::default()
        }
    }
}

impl Local {
    fn of(self, upstream: String, tunnel: FileTunnel) -> FileTunnel {
        FileTunnel {
            upstream: std::iter::once(upstream).chain(self.further).collect(),
            inspect: self.no_inspect.then_some(false),
            health: FileHealth {
                probe: self.health,
                path: self.health_path,
                status: self.health_status,
                interval: self.health_interval,
                timeout: self.health_timeout,
                rise: self.health_rise,
                fall: self.health_fall,
            },
            hold: FileHold { local: self.hold_local, reconnect: self.hold_reconnect },
            ..tunnel
        }
    }
}

impl Start {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let path = self.common.config.clone().unwrap_or_else(config::default_path);
        self.common.plan_selected(Selection::new(path, self.names, self.all))
    }
}
