//! Commands that run tunnels: one for each kind, and `start` for those of the config file.

use std::path::PathBuf;

use clap::Args;
use uniroute_agent::TunnelKind;

use super::{
    common::{Common, Plan},
    policy::PolicyFlags,
};
use crate::config::{self, File, FileTunnel, SettingsError};

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
