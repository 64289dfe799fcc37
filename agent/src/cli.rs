//! The command line of `uniroute`.

mod common;
mod config;
mod policy;
pub(crate) mod routes;
mod tunnels;

use clap::{Parser, Subcommand};

pub(crate) use self::common::{Output, Plan};
use self::{
    config::ConfigCommand,
    routes::RoutesCommand,
    tunnels::{Http, Start, Tcp, Tls, Udp},
};

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
