//! Many idle agents in one process, to see what one costs an edge.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use futures_util::future::select_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uniroute_agent::upstream::Trust;
use uniroute_agent::{Agent, AgentError, Event, Settings, TunnelSettings};
use uniroute_shared::id::Token;

use crate::output;
use crate::process::raise_open_files;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// URL of the edge
    #[arg(long)]
    server: String,
    /// File with the token
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// Agents that connect at the same time
    #[arg(long, default_value_t = 50)]
    at_once: usize,
}

/// Prints `ready N in S s` when all are connected, and stays until it is ended.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    raise_open_files()?;
    let token = std::fs::read_to_string(&args.token_file).context("the token file")?;
    let stop = CancellationToken::new();
    let start = Instant::now();
    let mut connecting = JoinSet::new();
    let mut running = Vec::with_capacity(args.count);
    for _ in 0..args.count {
        if connecting.len() >= args.at_once {
            running.push(connected(&mut connecting).await?);
        }
        let mut tunnel = TunnelSettings::http("idle", "9".parse()?);
        // There is no TLS here, and each agent would read the system's certificates for itself.
        tunnel.trust = Trust::Insecure;
        let mut settings =
            Settings::new(args.server.parse()?, Token::parse(token.trim())?, vec![tunnel]);
        settings.trust = Trust::Insecure;
        settings.fail_fast = true;
        let (agent, events) = Agent::new(settings)?;
        let task = tokio::spawn(agent.run(stop.clone()));
        connecting.spawn(async move { (task, ready(events).await) });
    }
    while !connecting.is_empty() {
        running.push(connected(&mut connecting).await?);
    }
    output::line(format_args!("ready {} in {:.3} s", args.count, start.elapsed().as_secs_f64()));
    // None of them ends by itself.
    let (ended, ..) = select_all(running).await;
    Ok(ended??)
}

type Running = tokio::task::JoinHandle<Result<(), AgentError>>;

/// The next agent that is ready.
async fn connected(
    connecting: &mut JoinSet<(Running, anyhow::Result<()>)>,
) -> anyhow::Result<Running> {
    let next = connecting.join_next().await.context("no agent is connecting")?;
    let (task, ready) = next?;
    ready?;
    Ok(task)
}

async fn ready(mut events: mpsc::Receiver<Event>) -> anyhow::Result<()> {
    loop {
        match events.recv().await.context("an agent ended")? {
            Event::Ready { .. } => return Ok(()),
            Event::Refused { message, .. } => bail!("refused: {message}"),
            _ => {}
        }
    }
}
