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

use std::ffi::OsStr;

use clap::{
    Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
};

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

/// Variables that keep visitors out. One of them that is empty is a mistake, and not a tunnel for
/// everybody.
const GUARDS: [&str; 4] =
    ["UNIROUTE_ALLOW", "UNIROUTE_DENY", "UNIROUTE_BASIC_AUTH_FILE", "UNIROUTE_WEBHOOK"];

impl Cli {
    /// What the command line and the environment say; ends the process where that can't be read, or
    /// help is wanted. An empty variable counts as not set.
    pub(crate) fn of_process() -> Self {
        let matches = without_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let guards = |name: &OsStr| GUARDS.iter().any(|guard| name == *guard);
    let arg = |arg: Arg| match arg.get_env() {
        Some(name) if is_empty(name) && !guards(name) => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(arg).mut_subcommands(without_empty)
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
