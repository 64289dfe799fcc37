//! The command line of `uniroute`.

pub(crate) mod agents;
mod common;
mod config;
mod diagnose;
mod generate;
mod hidden;
mod import;
mod inspect;
mod login;
mod policy;
pub(crate) mod routes;
mod service;
mod status;
mod tunnels;

use clap::{Parser, Subcommand};

pub(crate) use self::common::{Output, Plan};
use self::{
    config::ConfigCommand,
    diagnose::Diagnose,
    generate::{Completion, Man},
    inspect::Inspect,
    login::{Login, Logout},
    routes::RoutesCommand,
    service::ServiceCommand,
    status::{ReadyCommand, StatusCommand},
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
    /// Asks for the edge's URL and a token, tries them, and keeps them.
    Login(Box<Login>),
    /// Forgets them.
    Logout(Logout),
    /// One tunnel to a local HTTP server, now.
    Http(Box<Http>),
    /// One tunnel to a local TCP server, now: it gets a public port.
    Tcp(Box<Tcp>),
    /// One tunnel to a local TLS server, now: the edge passes connections on as they are, by the
    /// server name that they ask for, and can't read them.
    Tls(Box<Tls>),
    /// One tunnel to a local UDP server, now: it gets a public port.
    Udp(Box<Udp>),
    /// Tunnels of the config file.
    Start(Box<Start>),
    /// The config file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the tunnels of the config file do with a request.
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Looks at each step of the way from here to the edge and to the local servers, and says what works
    /// and what to do about the rest.
    Diagnose(Box<Diagnose>),
    /// Requests that an agent of this machine keeps: lists, shows, replays and exports them.
    Inspect(Inspect),
    /// What the agents that run here do.
    Status(StatusCommand),
    /// Ends with exit code 0 when the tunnels of the agents that run here take requests, with 1
    /// otherwise, and says why.
    Ready(ReadyCommand),
    /// The tunnels of the config file as a service of the system.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Prints completions for a shell.
    Completion(Completion),
    /// Prints the man page, or writes one for each command into a folder.
    Man(Man),
    /// Prints the version.
    Version,
}
