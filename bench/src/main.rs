//! Load and end-to-end measurements.
//!
//! `origin` is the local server being tunnelled, `load` one run of the load generator, and `e2e` starts every part
//! and compares the tunnel with a direct connection and with a chain of two nginx reverse proxies, which makes the
//! same HTTP hops as edge and agent. Only `e2e` knows the tunnel's binaries, and only by their command lines. `link` is
//! a slow way between two of them, `net` a lossy one between two network namespaces, `agents` a crowd of them in one
//! process.

mod agents;
mod body;
mod client;
mod crowd;
mod e2e;
mod histogram;
mod link;
mod links;
mod load;
mod net;
mod nginx;
mod origin;
mod output;
mod peers;
mod process;
mod procfs;
mod report;
mod scenario;
mod system;
mod table;
mod tls;
mod tunnel;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "uniroute-bench", version, about = "Load and end-to-end measurements")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve /1k, /bytes/N and /upload; prints `listening ADDR`
    Origin(origin::Args),
    /// Run one load and print its report as a line of JSON
    #[command(subcommand)]
    Load(load::Load),
    /// Forward to an address over a link with a delay and a rate; prints `listening ADDR`
    Link(link::Args),
    /// Make two network namespaces with a lossy link between them; prints `ready NS_A NS_B ADDR_A ADDR_B`
    Net(net::Args),
    /// Connect many idle agents; prints `ready N` and stays until it is ended
    Agents(agents::Args),
    /// Compare the tunnel with plain TCP over a link that loses packets
    Links(links::Args),
    /// Start every part, measure direct, nginx chain and tunnel in turn, and compare
    E2e(e2e::Args),
}

// One thread for every role: what is measured is the processes in the middle, and they need the other core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Origin(args) => origin::run(args).await,
        Command::Load(load) => load::run(load).await,
        Command::Link(args) => link::run(args).await,
        Command::Net(args) => net::run(args).await,
        Command::Agents(args) => agents::run(args).await,
        Command::Links(args) => links::run(args).await,
        Command::E2e(args) => e2e::run(args).await,
    }
}
